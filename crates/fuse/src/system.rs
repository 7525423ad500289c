//! Mounting by the system's own call, as root, so that the kernel's list names the filesystem's type: `fuse.walkenfs`.

use crate::is_root;
use crate::options::{Flag, Options};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_remount};
use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// So long what is in use may come to be in use no more.
const BUSY: Duration = Duration::from_secs(2);

/// Mounts, and returns the connection to the kernel. `None`: the system does not let this user; fusermount3 may.
pub(crate) fn mount_by_call((name, kind): (&str, &str), path: &Path, options: &Options) -> io::Result<Option<OwnedFd>> {
    if !is_root() {
        return Ok(None);
    }
    let device = open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let mut data = format!(
        "fd={},rootmode={:o},user_id=0,group_id={},default_permissions",
        device.as_raw_fd(),
        std::fs::metadata(path)?.mode(),
        rustix::process::getgid().as_raw()
    );
    if options.allow_other {
        data.push_str(",allow_other");
    }
    let data = CString::new(data)?;
    match mount(name, path, format!("fuse.{kind}"), flags(options), Some(data.as_c_str())) {
        Ok(()) => Ok(Some(device)),
        Err(Errno::PERM) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

fn flags(options: &Options) -> MountFlags {
    let one = |flag: &Flag| match flag {
        Flag::NoExec => MountFlags::NOEXEC,
        Flag::NoSuid => MountFlags::NOSUID,
        Flag::NoDev => MountFlags::NODEV,
        Flag::Sync => MountFlags::SYNCHRONOUS,
        Flag::DirSync => MountFlags::DIRSYNC,
    };
    let all: MountFlags = options.kernel.iter().map(one).collect();
    if options.ro { all | MountFlags::RDONLY } else { all }
}

/// Makes what is mounted there read-only, or not any more.
///
/// Errors: the kernel's. Of files that were closed and removed a moment ago it says for some milliseconds that they are in use; that is
/// waited for.
pub fn remount(dir: &OsStr, ro: bool) -> io::Result<()> {
    let flags = if ro { MountFlags::RDONLY } else { MountFlags::empty() };
    let begun = Instant::now();
    loop {
        match mount_remount(dir, flags, "") {
            Err(Errno::BUSY) if begun.elapsed() < BUSY => std::thread::sleep(BUSY / 100),
            done => return Ok(done?),
        }
    }
}
