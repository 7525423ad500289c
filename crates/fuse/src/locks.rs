//! Locks of ranges (`fcntl(2)`) between the kernel and the filesystem.

use crate::convert::errno;
use fuser::{ReplyEmpty, ReplyLock};
use vfs::{Fs, FsError, Wanted};

const F_RDLCK: i32 = 0;
const F_WRLCK: i32 = 1;
const F_UNLCK: i32 = 2;

/// Whether a lock or an unlock is wanted; `None`: neither.
fn locks(kind: i32) -> Option<bool> {
    matches!(kind, F_RDLCK | F_WRLCK | F_UNLCK).then_some(kind != F_UNLCK)
}

/// What the kernel asks for.
pub(crate) fn wanted(owner: u64, pid: u32, start: u64, end: u64, kind: i32) -> Wanted {
    Wanted { owner, pid, start, end, write: kind == F_WRLCK }
}

/// Who is in the way.
pub(crate) async fn tell(fs: &Fs, ino: u64, wanted: Wanted, reply: ReplyLock) {
    match fs.blocking(ino, &wanted).await {
        Ok(None) => reply.locked(wanted.start, wanted.end, F_UNLCK, 0),
        Ok(Some(by)) => reply.locked(by.start, by.end, if by.write { F_WRLCK } else { F_RDLCK }, by.pid),
        Err(e) => reply.error(errno(&e)),
    }
}

/// Locks or unlocks. `sleep`: waits for whoever is in the way, until the thread that asks gets a signal.
pub(crate) async fn set(fs: &Fs, ino: u64, wanted: Wanted, (kind, sleep, thread): (i32, bool, u32), reply: ReplyEmpty) {
    let done = match locks(kind) {
        Some(true) => fs.lock(ino, wanted, sleep.then_some(move || !is_signalled(thread))).await,
        Some(false) => fs.unlock(ino, wanted).await,
        None => Err(FsError::Invalid),
    };
    match done {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(errno(&e)),
    }
}

/// Has a thread a signal that it does not block, or has it ended? The kernel's own word of it the binding takes for something
/// unknown. A thread that cannot be seen from here (0) waits.
fn is_signalled(thread: u32) -> bool {
    if thread == 0 {
        return false;
    }
    let Ok(status) = std::fs::read_to_string(format!("/proc/{thread}/status")) else { return true };
    let set = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0)
    };
    (set("SigPnd:") | set("ShdPnd:")) & !set("SigBlk:") != 0
}
