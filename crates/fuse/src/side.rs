//! procfs behind the kernel's calls: alone, or as a directory beside another filesystem.

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use procfs::{Attr, Entry, Kind, Proc, ProcError, ROOT};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::future::Future;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant, SystemTime};
use tokio::runtime::Handle;

/// For so long the kernel takes names to lead to what it was told: what is read is not older than this, and than what was asked for
/// last.
const TTL: Duration = Duration::from_millis(100);
const BLOCK: u32 = 4096;

/// The one place where an error becomes an errno.
fn errno(e: ProcError) -> Errno {
    match e {
        ProcError::NotFound => Errno::ENOENT,
        ProcError::NotDirectory => Errno::ENOTDIR,
        ProcError::IsDirectory => Errno::EISDIR,
        ProcError::Invalid => Errno::EINVAL,
        ProcError::NotPermitted => Errno::EPERM,
        ProcError::Unavailable => Errno::EIO,
    }
}

/// Names, and when they were looked up.
type Listing = (Vec<Entry>, Instant);
type Listings = HashMap<u64, Arc<Listing>>;

/// procfs, for the kernel.
#[derive(Clone)]
pub(crate) struct Side {
    proc: Arc<Proc>,
    runtime: Handle,
    /// What the kernel calls the top.
    top: u64,
    owner: (u32, u32),
    listings: Arc<Mutex<Listings>>,
    next: Arc<AtomicU64>,
}

impl Side {
    /// Beside another filesystem, as a directory of it.
    pub(crate) fn new(proc: Arc<Proc>, runtime: Handle) -> Side {
        let owner = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        Side { proc, runtime, top: ROOT, owner, listings: Arc::default(), next: Arc::new(AtomicU64::new(1)) }
    }

    fn ino(&self, ino: INodeNo) -> u64 {
        if ino.0 == self.top { ROOT } else { ino.0 }
    }

    fn listings(&self) -> MutexGuard<'_, Listings> {
        self.listings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers at once what is known, and the rest as soon as it is told, on other threads.
    fn run(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut work = Box::pin(work);
        let _inside = self.runtime.enter();
        if work.as_mut().poll(&mut Context::from_waker(Waker::noop())) == Poll::Pending {
            self.runtime.spawn(work);
        }
    }

    pub(crate) fn attr(&self, a: &Attr) -> FileAttr {
        let (kind, perm) = match a.kind {
            Kind::Dir => (FileType::Directory, 0o555),
            Kind::File => (FileType::RegularFile, 0o444),
            Kind::Knob => (FileType::RegularFile, 0o644),
            Kind::Link => (FileType::Symlink, 0o777),
        };
        FileAttr {
            ino: INodeNo(if a.ino == ROOT { self.top } else { a.ino }),
            size: a.size,
            blocks: a.size.div_ceil(512),
            atime: a.since,
            mtime: a.since,
            ctime: a.since,
            crtime: a.since,
            kind,
            perm,
            nlink: if a.kind == Kind::Dir { 2 } else { 1 },
            uid: self.owner.0,
            gid: self.owner.1,
            rdev: 0,
            blksize: BLOCK,
            flags: 0,
        }
    }

    pub(crate) fn lookup(&self, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (side, parent, name) = (self.clone(), self.ino(parent), name.as_bytes().to_vec());
        self.run(async move {
            match side.proc.lookup(parent, &name).await {
                Ok(a) => reply.entry(&ttl(&a), &side.attr(&a), Generation(0)),
                Err(e) => reply.error(errno(e)),
            }
        });
    }

    /// The top, as an entry of the other filesystem.
    pub(crate) fn lookup_top(&self, reply: ReplyEntry) {
        let side = self.clone();
        self.run(async move {
            match side.proc.getattr(ROOT).await {
                Ok(a) => reply.entry(&ttl(&a), &side.attr(&a), Generation(0)),
                Err(e) => reply.error(errno(e)),
            }
        });
    }

    fn answer_attr(&self, reply: ReplyAttr, done: Result<Attr, ProcError>) {
        match done {
            Ok(a) => reply.attr(&ttl(&a), &self.attr(&a)),
            Err(e) => reply.error(errno(e)),
        }
    }

    pub(crate) fn getattr(&self, ino: INodeNo, reply: ReplyAttr) {
        let (side, ino) = (self.clone(), self.ino(ino));
        self.run(async move { side.answer_attr(reply, side.proc.getattr(ino).await) });
    }

    /// A knob may be emptied, on its way to be written; nothing else may be changed.
    pub(crate) fn setattr(&self, ino: INodeNo, (size, other): (Option<u64>, Option<u32>), reply: ReplyAttr) {
        let (side, ino) = (self.clone(), self.ino(ino));
        if size != Some(0) || other.is_some() {
            return reply.error(Errno::EPERM);
        }
        self.run(async move { side.answer_attr(reply, side.proc.empty(ino).await) });
    }

    pub(crate) fn readlink(&self, ino: INodeNo, reply: ReplyData) {
        let (side, ino) = (self.clone(), self.ino(ino));
        self.run(async move {
            match side.proc.readlink(ino).await {
                Ok(target) => reply.data(&target),
                Err(e) => reply.error(errno(e)),
            }
        });
    }

    /// A value does not change: there is nothing to be opened, and what the kernel has of it is good.
    pub(crate) fn open(&self, ino: INodeNo, reply: ReplyOpen) {
        let (side, ino) = (self.clone(), self.ino(ino));
        self.run(async move {
            match side.proc.getattr(ino).await {
                Ok(a) if a.lasts => reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE),
                Ok(_) => reply.opened(FileHandle(0), FopenFlags::empty()),
                Err(e) => reply.error(errno(e)),
            }
        });
    }

    pub(crate) fn read(&self, ino: INodeNo, (offset, size): (u64, u32), reply: ReplyData) {
        let (side, ino) = (self.clone(), self.ino(ino));
        self.run(async move {
            match side.proc.read(ino, offset, size).await {
                Ok(data) => reply.data(&data),
                Err(e) => reply.error(errno(e)),
            }
        });
    }

    pub(crate) fn write(&self, ino: INodeNo, offset: u64, data: &[u8], reply: ReplyWrite) {
        let (side, ino, data) = (self.clone(), self.ino(ino), data.to_vec());
        self.run(async move {
            match side.proc.write(ino, offset, &data).await {
                Ok(()) => reply.written(data.len() as u32),
                Err(e) => reply.error(errno(e)),
            }
        });
    }

    pub(crate) fn forget(&self, ino: INodeNo, times: u64) {
        self.proc.forget(self.ino(ino), times);
    }

    pub(crate) fn opendir(&self, reply: ReplyOpen) {
        reply.opened(FileHandle(self.next.fetch_add(1, Ordering::Relaxed)), FopenFlags::empty());
    }

    pub(crate) fn releasedir(&self, fh: FileHandle) {
        self.listings().remove(&fh.0);
    }

    /// What was in the directory when it was begun to be read.
    async fn listing(&self, ino: u64, fh: u64, anew: bool) -> Result<Arc<Listing>, ProcError> {
        let known = self.listings().get(&fh).filter(|_| !anew).cloned();
        if let Some(listing) = known {
            return Ok(listing);
        }
        let at = Instant::now();
        let listing = Arc::new((self.proc.list(ino).await?, at));
        self.listings().insert(fh, listing.clone());
        Ok(listing)
    }

    pub(crate) fn readdir(&self, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let (side, ino) = (self.clone(), self.ino(ino));
        self.run(async move {
            match side.listing(ino, fh.0, offset == 0).await {
                Ok(listing) => {
                    for (i, e) in listing.0.iter().enumerate().skip(offset as usize) {
                        let a = side.attr(&e.attr);
                        if reply.add(a.ino, i as u64 + 1, a.kind, &e.name) {
                            break;
                        }
                    }
                    reply.ok();
                }
                Err(e) => reply.error(errno(e)),
            }
        });
    }

    pub(crate) fn readdirplus(&self, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let (side, ino) = (self.clone(), self.ino(ino));
        self.run(async move {
            match side.listing(ino, fh.0, offset == 0).await {
                Ok(listing) => {
                    // Whoever reads a directory slowly is told names that are old by now: they are looked up again.
                    let is_old = listing.1.elapsed() > TTL;
                    for (i, e) in listing.0.iter().enumerate().skip(offset as usize) {
                        let a = side.attr(&e.attr);
                        let ttl = if is_old { Duration::ZERO } else { ttl(&e.attr) };
                        if reply.add(a.ino, i as u64 + 1, &e.name, &ttl, &a, Generation(0)) {
                            break;
                        }
                        side.proc.told(e);
                    }
                    reply.ok();
                }
                Err(e) => reply.error(errno(e)),
            }
        });
    }
}

fn ttl(a: &Attr) -> Duration {
    if a.lasts { TTL } else { Duration::ZERO }
}

/// procfs alone.
pub(crate) struct Alone(Side);

impl Alone {
    pub(crate) fn new(proc: Arc<Proc>, runtime: Handle) -> Alone {
        Alone(Side { top: INodeNo::ROOT.0, ..Side::new(proc, runtime) })
    }
}

impl Filesystem for Alone {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // Each alone: a kernel without one still has the others.
        for flag in [InitFlags::FUSE_PARALLEL_DIROPS, InitFlags::FUSE_DO_READDIRPLUS, InitFlags::FUSE_AUTO_INVAL_DATA] {
            let _ = config.add_capabilities(flag);
        }
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.0.lookup(parent, name, reply);
    }

    fn forget(&self, _req: &Request, ino: INodeNo, times: u64) {
        self.0.forget(ino, times);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.0.getattr(ino, reply);
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.0.setattr(ino, (size, mode.or(uid).or(gid)), reply);
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        self.0.readlink(ino, reply);
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        // From here on the kernel opens and closes files without asking: values do not change, and what grows is seen to grow.
        reply.error(Errno::ENOSYS);
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.0.read(ino, (offset, size), reply);
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.0.write(ino, offset, data, reply);
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.0.opendir(reply);
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectory) {
        self.0.readdir(ino, fh, offset, reply);
    }

    fn readdirplus(&self, _req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectoryPlus) {
        self.0.readdirplus(ino, fh, offset, reply);
    }

    fn releasedir(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        self.0.releasedir(fh);
        reply.ok();
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        reply.statfs(0, 0, 0, 0, 0, BLOCK, 255, BLOCK);
    }

    // Nothing is made or removed here.

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn mkdir(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn symlink(&self, _: &Request, _: INodeNo, _: &OsStr, _: &Path, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EPERM);
    }

    fn rmdir(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EPERM);
    }

    fn rename(&self, _: &Request, _: INodeNo, _: &OsStr, _: INodeNo, _: &OsStr, _: RenameFlags, reply: ReplyEmpty) {
        reply.error(Errno::EPERM);
    }

    fn create(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        reply.error(Errno::EPERM);
    }
}
