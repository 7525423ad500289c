/// Why a filesystem operation was not done. Unless said otherwise nothing was changed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum FsError {
    #[error("no such file or directory")]
    NotFound,
    #[error("the name is taken")]
    Exists,
    #[error("not a directory")]
    NotDirectory,
    #[error("a directory")]
    IsDirectory,
    #[error("the directory is not empty")]
    NotEmpty,
    #[error("the name is longer than 255 bytes")]
    NameTooLong,
    #[error("not possible with these arguments")]
    Invalid,
    #[error("not permitted")]
    NotPermitted,
    #[error("the file has lost its name since it was looked up")]
    Stale,
    #[error("no such attribute")]
    NoAttribute,
    #[error("too large")]
    TooLarge,
    #[error("no room on the disc of the node that leads")]
    NoSpace,
    #[error("beyond the end of the file")]
    Beyond,
    #[error("this filesystem cannot do that")]
    Unsupported,
    #[error("too many links")]
    TooManyLinks,
    #[error("somebody else has locked it")]
    Locked,
    #[error("the processes of this mount have locked more than 1024 ranges of it")]
    TooManyLocks,
    #[error("whoever waited was interrupted")]
    Interrupted,
    /// No leader within the time limit, or the fate of the change is not known.
    #[error("the copies of this filesystem do not answer")]
    Unavailable,
    #[error("the stored filesystem is damaged: {0}")]
    Damaged(&'static str),
    /// It may still be on its way from another island.
    #[error("not found where it should be: {0}")]
    Missing(&'static str),
}

/// Why a filesystem could not be mounted.
#[derive(Clone, Debug, thiserror::Error)]
pub enum MountError {
    /// The database says why.
    #[error(transparent)]
    Client(#[from] client::Error),
    /// Its records are of another form.
    #[error(
        "filesystem {name:?} was made by another version of tombolo (form {found}, this one reads {ours}); copy it with that version"
    )]
    Form {
        /// Which filesystem.
        name: String,
        /// Its form.
        found: u64,
        /// What this program reads.
        ours: u64,
    },
}

impl From<client::Error> for FsError {
    fn from(e: client::Error) -> Self {
        tracing::debug!("{e}");
        FsError::Unavailable
    }
}
