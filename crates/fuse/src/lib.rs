//! Adapter from `vfs` to the kernel, through `fuser`. The only crate that names `fuser` and errno.
//!
//! Handlers never block a FUSE thread: the reply moves into a task. What the kernel keeps between calls is told to forget
//! what others change (`vfs::Kernel`).

mod adapter;
mod convert;
mod locks;
mod options;
mod side;
mod system;
mod tally;

use adapter::Adapter;
use fuser::{BackgroundSession, Config, Filesystem, INodeNo, MountOption, Notifier, Session, SessionACL};
pub use options::Options;
use procfs::Proc;
use rustix::mount::{UnmountFlags, unmount};
use side::Alone;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
pub use system::remount;
pub use tally::Tally;
use vfs::{Fs, Ino, Kernel};

/// Threads that read requests of the kernel.
const THREADS: usize = 2;

/// Why a filesystem was not mounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// An option of `-o` that is not known.
    #[error("the mount option {0:?} is not known; known are {known}", known = options::KNOWN)]
    Option(String),
    /// The mount point.
    #[error("{path} is not a directory; make it first: mkdir -p {path}")]
    NoDirectory {
        /// Which.
        path: PathBuf,
    },
    /// The kernel or fusermount3 said no.
    #[error(
        "cannot mount on {path}; /dev/fuse must be there, and for users other than root fusermount3 (Debian: fuse3)"
    )]
    Refused {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A mounted filesystem; dropping it unmounts.
pub struct Mounted {
    session: Option<BackgroundSession>,
    path: PathBuf,
}

/// Mounts on a directory. A mount point whose process is gone is cleared first. The cluster itself is seen below `.tombolo`.
pub async fn mount(
    fs: Arc<Fs>,
    proc: Arc<Proc>,
    name: &str,
    path: &Path,
    options: &Options,
) -> Result<(Mounted, Arc<Tally>), MountError> {
    let tally: Arc<Tally> = Arc::default();
    let adapter = Adapter::new(fs.clone(), proc, tokio::runtime::Handle::current(), tally.clone());
    let mounted = begin(adapter, (name, "walkenfs"), path, options)?;
    if let Some(session) = &mounted.session
        && let Err(e) = fs.watch(Arc::new(Told(session.notifier()))).await
    {
        tracing::warn!("the kernel keeps nothing of {name}: {e}");
    }
    Ok((mounted, tally))
}

/// The kernel's memory of a mount. It has no such thing any more where it says so.
struct Told(Notifier);

impl Kernel for Told {
    fn forget_name(&self, dir: Ino, name: &[u8]) {
        let _ = self.0.inval_entry(INodeNo(dir), OsStr::from_bytes(name));
    }

    fn forget_attributes(&self, ino: Ino) {
        let _ = self.0.inval_inode(INodeNo(ino), -1, 0);
    }

    fn forget_bytes(&self, ino: Ino) {
        let _ = self.0.inval_inode(INodeNo(ino), 0, 0);
    }
}

/// Mounts the cluster itself, as files.
pub fn mount_proc(proc: Arc<Proc>, path: &Path, options: &Options) -> Result<Mounted, MountError> {
    begin(Alone::new(proc, tokio::runtime::Handle::current()), ("tombolo", "procfs"), path, options)
}

fn begin(
    filesystem: impl Filesystem,
    (name, kind): (&str, &str),
    path: &Path,
    options: &Options,
) -> Result<Mounted, MountError> {
    clear_dead(path);
    if !path.is_dir() {
        return Err(MountError::NoDirectory { path: path.into() });
    }
    let mut config = Config::default();
    let named = [MountOption::FSName(name.into()), MountOption::Subtype(kind.into()), MountOption::DefaultPermissions];
    config.mount_options = named.into_iter().chain(options.for_kernel()).collect();
    config.acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
    config.n_threads = Some(THREADS);
    let refused = |source| MountError::Refused { path: path.into(), source };
    let session = match system::mount_by_call((name, kind), path, options).map_err(refused)? {
        Some(device) => {
            let begun = Session::from_fd(filesystem, device, config.acl, config);
            begun.and_then(Session::spawn).inspect_err(|_| {
                let _ = unmount(path, UnmountFlags::DETACH);
            })
        }
        None => fuser::spawn_mount(filesystem, path, &config),
    };
    Ok(Mounted { session: Some(session.map_err(refused)?), path: path.into() })
}

/// After a crash every call on the mount point says ENOTCONN, and mounting over it fails.
fn clear_dead(path: &Path) {
    let dead =
        std::fs::metadata(path).is_err_and(|e| e.raw_os_error() == Some(rustix::io::Errno::NOTCONN.raw_os_error()));
    if dead && unmount(path, UnmountFlags::DETACH).is_err() {
        let _ = std::process::Command::new("fusermount3").args(["-u", "-z"]).arg(path).status();
    }
}

/// Is this directory a mount point of the process that asks? By the kernel's list.
pub fn is_mounted(path: &Path) -> bool {
    let list = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let wanted = path.to_string_lossy().replace('\\', "\\134").replace(' ', "\\040");
    list.lines().any(|line| line.split(' ').nth(4) == Some(wanted.as_str()))
}

impl Mounted {
    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Has somebody unmounted it?
    pub fn is_gone(&self) -> bool {
        self.session.as_ref().is_none_or(|s| s.guard.is_finished())
    }

    /// Unmounts, waiting for what is under way; detaches a busy one.
    pub fn unmount(mut self) {
        self.detach();
    }

    fn detach(&mut self) {
        let Some(session) = self.session.take() else { return };
        if !session.guard.is_finished() && unmount(&self.path, UnmountFlags::empty()).is_err() {
            // In use: it goes from the tree now, and altogether when the last user lets go.
            let _ = unmount(&self.path, UnmountFlags::DETACH);
        }
        drop(session);
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.detach();
    }
}
