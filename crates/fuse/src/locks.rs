//! Locks of ranges (`fcntl(2)`) between the kernel and the filesystem.

use crate::convert::errno;
use fuser::{ReplyEmpty, ReplyLock};
use std::sync::atomic::{AtomicBool, Ordering};
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
pub(crate) async fn set(
    fs: &Fs,
    handle: u64,
    wanted: Wanted,
    (kind, sleep, thread): (i32, bool, u32),
    reply: ReplyEmpty,
) {
    let done = match locks(kind) {
        Some(true) => fs.lock(handle, wanted, sleep.then(|| waits(thread))).await,
        Some(false) => fs.unlock(handle, wanted).await,
        None => Err(FsError::Invalid),
    };
    match done {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(errno(&e)),
    }
}

/// Whether a thread still waits: until it was seen with a signal twice. Another thread of its process may have taken the first.
fn waits(thread: u32) -> impl Fn() -> bool + Send {
    let seen = AtomicBool::new(false);
    move || {
        let signalled = is_signalled(thread);
        !(seen.swap(signalled, Ordering::Relaxed) && signalled)
    }
}

/// Has a thread a signal that it does not block, or has it ended? The kernel's own word of it the binding takes for something
/// unknown. Signals for a whole process its first thread is taken to get. A thread that cannot be seen from here waits.
fn is_signalled(thread: u32) -> bool {
    let status = match std::fs::read_to_string(format!("/proc/{thread}/status")) {
        Ok(status) => status,
        Err(e) => return thread != 0 && e.kind() == std::io::ErrorKind::NotFound,
    };
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
    let set = |name: &str| u64::from_str_radix(field(name), 16).unwrap_or(0);
    let of_all = if field("Tgid:") == field("Pid:") { set("ShdPnd:") } else { 0 };
    (set("SigPnd:") | of_all) & !set("SigBlk:") != 0
}
