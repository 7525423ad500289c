//! procfs: the running cluster as files. No FUSE type, no errno.
//!
//! Everything is asked for when it is looked at, and nothing is done while nobody looks. A node tells [facts](node::Fact) of itself or
//! of a table, all of one moment; here they become a tree of files with one value each, and a `.json` beside each directory. What
//! was told is looked at for a tenth of a second before it is asked for again, so that one `grep -r` asks once for each table.
//!
//! Another node has a moment to answer; if it does not, looking at its files fails at once until it does again.

mod ask;
pub mod exposition;
mod files;
mod follow;
mod inodes;
mod knobs;
mod tree;

pub use files::{Attr, Entry, Kind, Proc};
pub use inodes::{Ino, ROOT, is_ours};

/// Why something cannot be looked at, or changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ProcError {
    /// There is no such file.
    #[error("there is no such file")]
    NotFound,
    /// It is no directory.
    #[error("it is no directory")]
    NotDirectory,
    /// It is a directory.
    #[error("it is a directory")]
    IsDirectory,
    /// What was written makes no sense; the log of the node says why.
    #[error("what was written makes no sense")]
    Invalid,
    /// It cannot be written.
    #[error("it cannot be changed")]
    NotPermitted,
    /// The node that would have to tell does not answer.
    #[error("the node that would have to tell does not answer")]
    Unavailable,
}

/// What another node tells, as files and as JSON.
#[cfg(fuzzing)]
pub fn fuzz(facts: Vec<node::Fact>) {
    let now = std::time::SystemTime::UNIX_EPOCH;
    let mut tree = tree::Tree::of(facts, now);
    let before = tree.clone();
    tree.since(&before);
    let _ = tree::json_file(&tree.json());
}
