use crate::convert::{attr, errno, file_type, kind_of_mode, nanos};
use crate::locks;
use crate::side::Side;
use crate::tally::{Call, Tally};
use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLock, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
    Request, TimeOrNow, WriteFlags,
};
use procfs::{Proc, is_ours};
use std::ffi::OsStr;
use std::future::Future;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::runtime::Handle;
use vfs::{Allocate, Attr, Caller, Fs, FsError, Kind, Mark, New, Over, SetAttr, SetXattr};

/// The largest write that the kernel hands over at once.
const WRITE_BYTES_MAX: u32 = 1024 * 1024;
/// How many children one readdirplus looks at together.
const PLUS_MAX: usize = 128;
const XATTR_CREATE: i32 = 1;
const XATTR_REPLACE: i32 = 2;
const O_APPEND: i32 = 0o2000;
const O_TRUNC: i32 = 0o1000;
const O_EXCL: i32 = 0o200;
const SEEK_DATA: i32 = 3;
const SEEK_HOLE: i32 = 4;
/// `fallocate(2)`: bits of its mode.
const KEEP_SIZE: i32 = 0x01;
const PUNCH_HOLE: i32 = 0x02;
const ZERO_RANGE: i32 = 0x10;
const UNSHARE_RANGE: i32 = 0x40;

/// In the top directory, hidden from listings: the cluster itself.
const PROC: &str = ".tombolo";

pub(crate) struct Adapter {
    fs: Arc<Fs>,
    runtime: Handle,
    tally: Arc<Tally>,
    side: Side,
}

impl Adapter {
    pub(crate) fn new(fs: Arc<Fs>, proc: Arc<Proc>, runtime: Handle, tally: Arc<Tally>) -> Adapter {
        Adapter { fs, side: Side::new(proc, runtime.clone()), runtime, tally }
    }

    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, call: Call, work: impl FnOnce(Arc<Fs>) -> F) {
        // What reads from the disc would keep others waiting.
        self.begin(call, !matches!(call, Call::Read | Call::Readdir), work);
    }

    /// `here`: what is answered from memory is answered on this thread; another would take longer to wake.
    fn begin<F: Future<Output = ()> + Send + 'static>(&self, call: Call, here: bool, work: impl FnOnce(Arc<Fs>) -> F) {
        let (work, tally) = (work(self.fs.clone()), self.tally.clone());
        let mut work = Box::pin(async move {
            let begun = Instant::now();
            work.await;
            tally.note(call, begun.elapsed());
        });
        if here {
            let _here = self.runtime.enter();
            if work.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
                return;
            }
        }
        self.runtime.spawn(work);
    }

    fn make(&self, parent: INodeNo, name: &OsStr, new: New, reply: ReplyEntry) {
        let name = name.as_bytes().to_vec();
        self.spawn(Call::Make, |fs| async move {
            let done = fs.make(parent.0, &name, new).await;
            entry(&fs, reply, done).await;
        });
    }
}

/// An inode that this caller makes.
fn new(req: &Request, kind: Kind, mode: u32, umask: u32) -> New {
    New { kind, mode, umask, uid: req.uid(), gid: req.gid(), rdev: 0, target: None }
}

/// The kernel puts what is appended where it thinks the end is; so it keeps none of it.
fn open_flags(flags: i32, keep: bool) -> FopenFlags {
    match (flags & O_APPEND != 0, keep) {
        (true, _) => FopenFlags::FOPEN_DIRECT_IO,
        (false, true) => FopenFlags::FOPEN_KEEP_CACHE,
        (false, false) => FopenFlags::empty(),
    }
}

/// Who asks, with all its groups. One that has ended since has the group that the kernel names.
fn caller(req: &Request) -> Caller {
    let status = std::fs::read_to_string(format!("/proc/{}/status", req.pid())).unwrap_or_default();
    let groups = status.lines().find_map(|l| l.strip_prefix("Groups:")).unwrap_or_default();
    let more = groups.split_ascii_whitespace().filter_map(|g| g.parse().ok());
    Caller { uid: req.uid(), gids: [req.gid()].into_iter().chain(more).collect() }
}

fn is_proc(parent: INodeNo, name: &OsStr) -> bool {
    parent == INodeNo::ROOT && name == PROC
}

/// Is it nothing that can be made, changed or removed?
fn is_fixed(parent: INodeNo, name: &OsStr) -> bool {
    is_ours(parent.0) || is_proc(parent, name)
}

async fn entry(fs: &Fs, reply: ReplyEntry, done: Result<(Attr, Mark), FsError>) {
    match done {
        Ok((a, mark)) => {
            fs.tells(a.ino, &mark).await;
            reply.entry(&fs.kept(&mark), &attr(&a), Generation(0));
        }
        Err(e) => reply.error(errno(&e)),
    }
}

/// That there is no such name: inode 0 says so for a while, an error for this once.
fn no_entry(reply: ReplyEntry, kept: Duration) {
    if kept.is_zero() {
        return reply.error(Errno::ENOENT);
    }
    let nothing = FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    };
    reply.entry(&kept, &nothing, Generation(0));
}

async fn attributes(fs: &Fs, reply: ReplyAttr, done: Result<(Attr, Mark), FsError>) {
    match done {
        Ok((a, mark)) => {
            fs.tells(a.ino, &mark).await;
            reply.attr(&fs.kept(&mark), &attr(&a));
        }
        Err(e) => reply.error(errno(&e)),
    }
}

/// Opens what has a name; and whether the kernel may keep its bytes. Cuts it off if asked to, which happens only where the kernel took
/// the name to be free: otherwise it asks for that by itself, once it knows that no program runs from the file (so not ATOMIC_O_TRUNC).
async fn open(fs: &Fs, ino: u64, flags: i32, kill: bool) -> Result<(FileHandle, bool), FsError> {
    let (handle, keep) = fs.open(ino, flags & O_APPEND != 0).await?;
    if flags & O_TRUNC != 0
        && let Err(e) = fs.setattr(ino, SetAttr { size: Some(0), kill, ..SetAttr::default() }).await
    {
        fs.release(handle).await;
        return Err(e);
    }
    Ok((FileHandle(handle), keep))
}

/// What to do with a name that the kernel took to be free: another mount was first, and whoever does not insist on making
/// the file opens it.
async fn open_made(
    fs: &Fs,
    dir: u64,
    name: &[u8],
    flags: i32,
    kill: bool,
) -> Result<(Attr, Mark, FileHandle, bool), FsError> {
    let (found, _) = fs.lookup(dir, name).await?.map_err(|_| FsError::Stale)?;
    match found.kind {
        _ if flags & O_EXCL != 0 => return Err(FsError::Exists),
        Kind::File => {}
        Kind::Directory => return Err(FsError::IsDirectory),
        // Looked up again, it is followed or opened as what it is.
        _ => return Err(FsError::Stale),
    }
    let (handle, keep) = open(fs, found.ino, flags, kill).await?;
    let (attr, mark) = fs.getattr(found.ino).await?;
    Ok((attr, mark, handle, keep))
}

fn empty(reply: ReplyEmpty, done: Result<(), FsError>) {
    match done {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(errno(&e)),
    }
}

fn xattr(reply: ReplyXattr, size: u32, done: Result<Vec<u8>, FsError>) {
    match done {
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(e) => reply.error(errno(&e)),
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let _ = config.set_max_write(WRITE_BYTES_MAX);
        // Each alone: a kernel without one still has the others.
        for flag in [
            InitFlags::FUSE_ASYNC_READ,
            InitFlags::FUSE_BIG_WRITES,
            InitFlags::FUSE_PARALLEL_DIROPS,
            // What others change we say.
            InitFlags::FUSE_EXPLICIT_INVAL_DATA,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_DO_READDIRPLUS,
            // Of ranges of files, across machines; whole files (`flock(2)`) the kernel locks by itself.
            InitFlags::FUSE_POSIX_LOCKS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_MAX_PAGES,
            // The kernel decides by access control lists, and leaves it to us what a new inode inherits.
            InitFlags::FUSE_POSIX_ACL,
            InitFlags::FUSE_DONT_MASK,
            // Without it the kernel asks for an attribute before each write.
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
        ] {
            let _ = config.add_capabilities(flag);
        }
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if is_proc(parent, name) {
            return self.side.lookup_top(reply);
        }
        if is_ours(parent.0) {
            return self.side.lookup(parent, name, reply);
        }
        let name = name.as_bytes().to_vec();
        self.spawn(Call::Lookup, |fs| async move {
            match fs.lookup(parent.0, &name).await {
                Ok(Ok(found)) => entry(&fs, reply, Ok(found)).await,
                Ok(Err(mark)) => no_entry(reply, fs.kept(&mark)),
                Err(e) => reply.error(errno(&e)),
            }
        });
    }

    fn forget(&self, _req: &Request, ino: INodeNo, times: u64) {
        if is_ours(ino.0) {
            return self.side.forget(ino, times);
        }
        self.fs.forgotten(ino.0);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        if is_ours(ino.0) {
            return self.side.getattr(ino, reply);
        }
        self.spawn(Call::Getattr, |fs| async move {
            let done = fs.getattr(ino.0).await;
            attributes(&fs, reply, done).await;
        });
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        if is_ours(ino.0) {
            return self.side.setattr(ino, (size, mode.or(uid).or(gid)), reply);
        }
        let kill = req.uid() != 0;
        let set = SetAttr { mode, uid, gid, size, atime: atime.map(nanos), mtime: mtime.map(nanos), kill };
        self.spawn(Call::Setattr, |fs| async move {
            let done = fs.setattr(ino.0, set).await;
            attributes(&fs, reply, done).await;
        });
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        if is_ours(ino.0) {
            return self.side.readlink(ino, reply);
        }
        self.spawn(Call::Read, |fs| async move {
            match fs.readlink(ino.0).await {
                Ok(target) => reply.data(&target),
                Err(e) => reply.error(errno(&e)),
            }
        });
    }

    fn mknod(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, rdev: u32, reply: ReplyEntry) {
        if is_fixed(parent, name) {
            return reply.error(Errno::EPERM);
        }
        let Some(kind) = kind_of_mode(mode) else { return reply.error(Errno::EINVAL) };
        self.make(parent, name, New { rdev, ..new(req, kind, mode, umask) }, reply);
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        if is_fixed(parent, name) {
            return reply.error(Errno::EPERM);
        }
        self.make(parent, name, new(req, Kind::Directory, mode, umask), reply);
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        if is_fixed(parent, name) {
            return reply.error(Errno::EPERM);
        }
        let target = Some(target.as_os_str().to_owned().into_vec().into());
        self.make(parent, name, New { target, ..new(req, Kind::Symlink, 0o777, 0) }, reply);
    }

    fn link(&self, _req: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if is_ours(ino.0) || is_fixed(parent, name) {
            return reply.error(Errno::EPERM);
        }
        let name = name.as_bytes().to_vec();
        self.spawn(Call::Make, |fs| async move {
            let done = fs.link(ino.0, parent.0, &name).await;
            entry(&fs, reply, done).await;
        });
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        if is_fixed(parent, name) {
            return reply.error(Errno::EPERM);
        }
        let name = name.as_bytes().to_vec();
        self.spawn(Call::Remove, |fs| async move { empty(reply, fs.remove(parent.0, &name, false).await) });
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        if is_fixed(parent, name) {
            return reply.error(Errno::EPERM);
        }
        let name = name.as_bytes().to_vec();
        self.spawn(Call::Remove, |fs| async move { empty(reply, fs.remove(parent.0, &name, true).await) });
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        to: INodeNo,
        new: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if is_fixed(parent, name) || is_fixed(to, new) {
            return reply.error(Errno::EPERM);
        }
        let over = match flags {
            _ if flags.is_empty() => Over::Replace,
            RenameFlags::RENAME_NOREPLACE => Over::Keep,
            RenameFlags::RENAME_EXCHANGE => Over::Exchange,
            _ => return reply.error(Errno::EINVAL),
        };
        let (name, new) = (name.as_bytes().to_vec(), new.as_bytes().to_vec());
        self.spawn(Call::Rename, |fs| async move { empty(reply, fs.rename(parent.0, &name, to.0, &new, over).await) });
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if is_ours(ino.0) {
            return self.side.open(ino, reply);
        }
        let kill = req.uid() != 0;
        self.spawn(Call::Open, |fs| async move {
            match open(&fs, ino.0, flags.0, kill).await {
                Ok((handle, keep)) => reply.opened(handle, open_flags(flags.0, keep)),
                Err(e) => reply.error(errno(&e)),
            }
        });
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        if is_fixed(parent, name) {
            return reply.error(Errno::EPERM);
        }
        let (name, kill) = (name.as_bytes().to_vec(), req.uid() != 0);
        let new = new(req, Kind::File, mode, umask);
        self.spawn(Call::Make, |fs| async move {
            let done = match fs.make(parent.0, &name, new).await {
                Ok((a, mark)) => {
                    let handle = FileHandle(fs.open_known(a.ino, flags & O_APPEND != 0));
                    Ok((a, mark, handle, false))
                }
                Err(FsError::Exists) => open_made(&fs, parent.0, &name, flags, kill).await,
                Err(e) => Err(e),
            };
            match done {
                Ok((a, mark, handle, keep)) => {
                    fs.tells(a.ino, &mark).await;
                    reply.created(&fs.kept(&mark), &attr(&a), Generation(0), handle, open_flags(flags, keep));
                }
                Err(e) => reply.error(errno(&e)),
            }
        });
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
        if is_ours(ino.0) {
            return self.side.read(ino, (offset, size), reply);
        }
        self.spawn(Call::Read, |fs| async move {
            match fs.read(ino.0, offset, size).await {
                Ok(data) => reply.data(&data),
                Err(e) => reply.error(errno(&e)),
            }
        });
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        if is_ours(ino.0) {
            return self.side.write(ino, offset, data, reply);
        }
        let (data, kill) = (data.to_vec(), write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID));
        self.spawn(Call::Write, |fs| async move {
            match fs.write(fh.0, offset, &data, kill).await {
                Ok(()) => reply.written(data.len() as u32),
                Err(e) => reply.error(errno(&e)),
            }
        });
    }

    fn flush(&self, _req: &Request, ino: INodeNo, fh: FileHandle, owner: LockOwner, reply: ReplyEmpty) {
        if is_ours(ino.0) {
            return reply.ok();
        }
        self.spawn(Call::Sync, |fs| async move {
            let done = fs.flush(fh.0).await;
            fs.closes(ino.0, owner.0).await;
            empty(reply, done);
        });
    }

    fn getlk(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        kind: i32,
        pid: u32,
        reply: ReplyLock,
    ) {
        if is_ours(ino.0) {
            return reply.error(Errno::ENOLCK);
        }
        let wanted = locks::wanted(owner.0, pid, start, end, kind);
        self.spawn(Call::Lock, |fs| async move { locks::tell(&fs, ino.0, wanted, reply).await });
    }

    fn setlk(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        kind: i32,
        pid: u32,
        sleep: bool,
        reply: ReplyEmpty,
    ) {
        if is_ours(ino.0) {
            return reply.error(Errno::ENOLCK);
        }
        let (wanted, how) = (locks::wanted(owner.0, pid, start, end, kind), (kind, sleep, req.pid()));
        self.spawn(Call::Lock, |fs| async move { locks::set(&fs, fh.0, wanted, how, reply).await });
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        if is_ours(ino.0) {
            return reply.ok();
        }
        self.spawn(Call::Release, |fs| async move {
            fs.release(fh.0).await;
            reply.ok();
        });
    }

    fn fsync(&self, _req: &Request, ino: INodeNo, fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        if is_ours(ino.0) {
            return reply.ok();
        }
        self.spawn(Call::Sync, |fs| async move { empty(reply, fs.fsync(fh.0).await) });
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        if is_ours(ino.0) {
            return self.side.opendir(reply);
        }
        reply.opened(FileHandle(self.fs.opendir(ino.0)), FopenFlags::empty());
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        if is_ours(ino.0) {
            return self.side.readdir(ino, fh, offset, reply);
        }
        // The list is there from the first part on.
        self.begin(Call::Readdir, offset > 0, |fs| async move {
            match fs.listing(fh.0, offset == 0).await {
                Ok(listing) => {
                    for (i, e) in listing
                        .entries
                        .iter()
                        .enumerate()
                        .skip(offset as usize)
                        .filter(|(_, e)| !is_proc(ino, OsStr::from_bytes(&e.name)))
                    {
                        let full =
                            reply.add(INodeNo(e.ino), i as u64 + 1, file_type(e.kind), OsStr::from_bytes(&e.name));
                        if full {
                            break;
                        }
                    }
                    reply.ok();
                }
                Err(e) => reply.error(errno(&e)),
            }
        });
    }

    fn readdirplus(&self, _req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        if is_ours(ino.0) {
            return self.side.readdirplus(ino, fh, offset, reply);
        }
        self.begin(Call::Readdir, offset > 0, |fs| async move {
            let listing = match fs.listing(fh.0, offset == 0).await {
                Ok(listing) => listing,
                Err(e) => return reply.error(errno(&e)),
            };
            let from = (offset as usize).min(listing.entries.len());
            let part = &listing.entries[from..listing.entries.len().min(from + PLUS_MAX)];
            let inos: Vec<u64> = part.iter().map(|e| e.ino).collect();
            let attrs = match fs.getattrs(&listing, &inos).await {
                Ok(attrs) => attrs,
                Err(e) => return reply.error(errno(&e)),
            };
            for (i, (e, a)) in part.iter().zip(attrs).enumerate() {
                // Gone since it was listed, or where the cluster is.
                let Some((a, mark)) = a.filter(|_| !is_proc(ino, OsStr::from_bytes(&e.name))) else { continue };
                let (next, name) = ((from + i) as u64 + 1, OsStr::from_bytes(&e.name));
                if reply.add(INodeNo(e.ino), next, name, &fs.kept(&mark), &attr(&a), Generation(0)) {
                    break;
                }
                if !matches!(&e.name[..], b"." | b"..") {
                    fs.tells(e.ino, &mark).await;
                }
            }
            reply.ok();
        });
    }

    fn releasedir(&self, _req: &Request, ino: INodeNo, fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        if is_ours(ino.0) {
            self.side.releasedir(fh);
            return reply.ok();
        }
        self.spawn(Call::Release, |fs| async move {
            fs.release(fh.0).await;
            reply.ok();
        });
    }

    fn fsyncdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        if is_ours(ino.0) {
            return reply.ok();
        }
        self.spawn(Call::Sync, |fs| async move { empty(reply, fs.sync_names(ino.0).await) });
    }

    fn fallocate(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let how = match mode & !UNSHARE_RANGE {
            _ if is_ours(ino.0) => return reply.error(Errno::EPERM),
            0 => Allocate::Extend,
            KEEP_SIZE => Allocate::KeepSize,
            m if m == PUNCH_HOLE | KEEP_SIZE => Allocate::Punch,
            ZERO_RANGE => Allocate::Zero,
            m if m == ZERO_RANGE | KEEP_SIZE => Allocate::Punch,
            _ => return reply.error(Errno::EOPNOTSUPP),
        };
        let kill = req.uid() != 0;
        self.spawn(Call::Write, |fs| async move {
            let done = fs.allocate(ino.0, offset, length, how).await;
            empty(reply, if done.is_ok() && kill { fs.kill_privileges(ino.0, true).await } else { done });
        });
    }

    fn lseek(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        if is_ours(ino.0) {
            return reply.error(Errno::EOPNOTSUPP);
        }
        let (Ok(at), SEEK_DATA | SEEK_HOLE) = (u64::try_from(offset), whence) else {
            return reply.error(Errno::EINVAL);
        };
        self.spawn(Call::Read, |fs| async move {
            match fs.seek(ino.0, at, whence == SEEK_DATA).await {
                Ok(found) => reply.offset(found as i64),
                Err(e) => reply.error(errno(&e)),
            }
        });
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        const BLOCK: u64 = 4096;
        self.spawn(Call::Getattr, |fs| async move {
            let usage = fs.usage().await;
            let (blocks, free) = (usage.total / BLOCK, usage.free / BLOCK);
            reply.statfs(blocks, free, free, u64::MAX >> 16, u64::MAX >> 16, BLOCK as u32, 255, BLOCK as u32);
        });
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        if is_ours(ino.0) {
            return reply.error(Errno::EPERM);
        }
        let (name, value, caller) = (name.as_bytes().to_vec(), value.to_vec(), caller(req));
        let how = match flags {
            XATTR_CREATE => SetXattr::Create,
            XATTR_REPLACE => SetXattr::Replace,
            _ => SetXattr::Any,
        };
        self.spawn(Call::Xattr, |fs| async move {
            empty(reply, fs.setxattr(ino.0, &name, &value, how, &caller).await);
        });
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        if is_ours(ino.0) {
            return reply.error(Errno::ENODATA);
        }
        let name = name.as_bytes().to_vec();
        self.spawn(Call::Xattr, |fs| async move { xattr(reply, size, fs.getxattr(ino.0, &name).await.map(Vec::from)) });
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        if is_ours(ino.0) {
            return xattr(reply, size, Ok(Vec::new()));
        }
        let caller = Caller { uid: req.uid(), gids: Vec::new() };
        self.spawn(Call::Xattr, |fs| async move { xattr(reply, size, fs.listxattr(ino.0, &caller).await) });
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        if is_ours(ino.0) {
            return reply.error(Errno::EPERM);
        }
        let name = name.as_bytes().to_vec();
        self.spawn(Call::Xattr, |fs| async move { empty(reply, fs.removexattr(ino.0, &name).await) });
    }
}
