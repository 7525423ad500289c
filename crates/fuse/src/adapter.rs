use crate::side::Side;
use crate::tally::{Call, Tally};
use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow,
    WriteFlags,
};
use procfs::{Proc, is_ours};
use std::ffi::OsStr;
use std::future::Future;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::runtime::Handle;
use vfs::{Attr, Fs, FsError, Kind, SetAttr};

/// Nothing is kept by the kernel between calls.
const TTL: Duration = Duration::ZERO;
/// The largest write that the kernel hands over at once.
const WRITE_BYTES_MAX: u32 = 1024 * 1024;
/// How many children one readdirplus looks at together.
const PLUS_MAX: usize = 128;
const XATTR_CREATE: i32 = 1;
const XATTR_REPLACE: i32 = 2;
const O_APPEND: i32 = 0o2000;

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
        let (work, tally) = (work(self.fs.clone()), self.tally.clone());
        self.runtime.spawn(async move {
            let begun = Instant::now();
            work.await;
            tally.note(call, begun.elapsed());
        });
    }
}

fn is_proc(parent: INodeNo, name: &OsStr) -> bool {
    parent == INodeNo::ROOT && name == PROC
}

/// Is it nothing that can be made, changed or removed?
fn is_fixed(parent: INodeNo, name: &OsStr) -> bool {
    is_ours(parent.0) || is_proc(parent, name)
}

/// The one place where an error becomes an errno.
fn errno(e: &FsError) -> Errno {
    tracing::debug!("{e}");
    match e {
        FsError::NotFound => Errno::ENOENT,
        FsError::Exists => Errno::EEXIST,
        FsError::NotDirectory => Errno::ENOTDIR,
        FsError::IsDirectory => Errno::EISDIR,
        FsError::NotEmpty => Errno::ENOTEMPTY,
        FsError::NameTooLong => Errno::ENAMETOOLONG,
        FsError::Invalid => Errno::EINVAL,
        FsError::NotPermitted => Errno::EPERM,
        FsError::Stale => Errno::ESTALE,
        FsError::NoAttribute => Errno::ENODATA,
        FsError::TooLarge => Errno::EFBIG,
        FsError::NoSpace => Errno::ENOSPC,
        FsError::TooManyLinks => Errno::EMLINK,
        FsError::Unavailable | FsError::Damaged(_) => Errno::EIO,
    }
}

fn time(ns: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_nanos(ns)
}

fn nanos(time: TimeOrNow) -> u64 {
    let at = match time {
        TimeOrNow::SpecificTime(at) => at,
        TimeOrNow::Now => SystemTime::now(),
    };
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos().min(u128::from(u64::MAX)) as u64
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
        Kind::CharDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
    }
}

fn kind_of_mode(mode: u32) -> Option<Kind> {
    Some(match mode & 0o170_000 {
        0 | 0o100_000 => Kind::File,
        0o010_000 => Kind::Fifo,
        0o140_000 => Kind::Socket,
        0o020_000 => Kind::CharDevice,
        0o060_000 => Kind::BlockDevice,
        _ => return None,
    })
}

fn attr(a: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(a.ino),
        size: a.size,
        blocks: a.size.div_ceil(512),
        atime: time(a.atime),
        mtime: time(a.mtime),
        ctime: time(a.ctime),
        crtime: time(a.birth),
        kind: file_type(a.kind),
        perm: a.mode as u16,
        nlink: a.nlink,
        uid: a.uid,
        gid: a.gid,
        rdev: a.rdev,
        blksize: 65_536,
        flags: 0,
    }
}

fn entry(reply: ReplyEntry, done: Result<Attr, FsError>) {
    match done {
        Ok(a) => reply.entry(&TTL, &attr(&a), Generation(0)),
        Err(e) => reply.error(errno(&e)),
    }
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
            InitFlags::FUSE_AUTO_INVAL_DATA,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_MAX_PAGES,
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
        self.spawn(Call::Lookup, |fs| async move { entry(reply, fs.lookup(parent.0, &name).await) });
    }

    fn forget(&self, _req: &Request, ino: INodeNo, times: u64) {
        if is_ours(ino.0) {
            self.side.forget(ino, times);
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        if is_ours(ino.0) {
            return self.side.getattr(ino, reply);
        }
        self.spawn(Call::Getattr, |fs| async move {
            match fs.getattr(ino.0).await {
                Ok(a) => reply.attr(&TTL, &attr(&a)),
                Err(e) => reply.error(errno(&e)),
            }
        });
    }

    fn setattr(
        &self,
        _req: &Request,
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
        let set = SetAttr { mode, uid, gid, size, atime: atime.map(nanos), mtime: mtime.map(nanos) };
        self.spawn(Call::Setattr, |fs| async move {
            match fs.setattr(ino.0, set).await {
                Ok(a) => reply.attr(&TTL, &attr(&a)),
                Err(e) => reply.error(errno(&e)),
            }
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
        let (name, owner) = (name.as_bytes().to_vec(), (req.uid(), req.gid()));
        let Some(kind) = kind_of_mode(mode) else { return reply.error(Errno::EINVAL) };
        self.spawn(Call::Make, |fs| async move {
            entry(reply, fs.make(parent.0, &name, kind, mode & !umask, owner, rdev, None).await);
        });
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        if is_fixed(parent, name) {
            return reply.error(Errno::EPERM);
        }
        let (name, owner) = (name.as_bytes().to_vec(), (req.uid(), req.gid()));
        self.spawn(Call::Make, |fs| async move {
            entry(reply, fs.make(parent.0, &name, Kind::Directory, mode & !umask, owner, 0, None).await);
        });
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        if is_fixed(parent, name) {
            return reply.error(Errno::EPERM);
        }
        let (name, owner) = (name.as_bytes().to_vec(), (req.uid(), req.gid()));
        let target = target.as_os_str().to_owned().into_vec().into();
        self.spawn(Call::Make, |fs| async move {
            entry(reply, fs.make(parent.0, &name, Kind::Symlink, 0o777, owner, 0, Some(target)).await);
        });
    }

    fn link(&self, _req: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if is_ours(ino.0) || is_fixed(parent, name) {
            return reply.error(Errno::EPERM);
        }
        let name = name.as_bytes().to_vec();
        self.spawn(Call::Make, |fs| async move { entry(reply, fs.link(ino.0, parent.0, &name).await) });
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
        let keep = flags == RenameFlags::RENAME_NOREPLACE;
        if !keep && !flags.is_empty() {
            return reply.error(Errno::EINVAL);
        }
        let (name, new) = (name.as_bytes().to_vec(), new.as_bytes().to_vec());
        self.spawn(Call::Rename, |fs| async move { empty(reply, fs.rename(parent.0, &name, to.0, &new, keep).await) });
    }

    fn open(&self, _req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if is_ours(ino.0) {
            return self.side.open(ino, reply);
        }
        let append = flags.0 & O_APPEND != 0;
        self.spawn(Call::Open, |fs| async move {
            match fs.open(ino.0, append).await {
                Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::empty()),
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
        let (name, owner) = (name.as_bytes().to_vec(), (req.uid(), req.gid()));
        let append = flags & O_APPEND != 0;
        self.spawn(Call::Make, |fs| async move {
            match fs.make(parent.0, &name, Kind::File, mode & !umask, owner, 0, None).await {
                Ok(a) => {
                    let handle = FileHandle(fs.open_known(a.ino, append));
                    reply.created(&TTL, &attr(&a), Generation(0), handle, FopenFlags::empty());
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
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        if is_ours(ino.0) {
            return self.side.write(ino, offset, data, reply);
        }
        let data = data.to_vec();
        self.spawn(Call::Write, |fs| async move {
            match fs.write(fh.0, offset, &data).await {
                Ok(()) => reply.written(data.len() as u32),
                Err(e) => reply.error(errno(&e)),
            }
        });
    }

    fn flush(&self, _req: &Request, ino: INodeNo, fh: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        if is_ours(ino.0) {
            return reply.ok();
        }
        self.spawn(Call::Sync, |fs| async move { empty(reply, fs.flush(fh.0).await) });
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
        self.spawn(Call::Readdir, |fs| async move {
            match fs.listing(fh.0, offset == 0).await {
                Ok(listing) => {
                    for (i, e) in listing
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
        self.spawn(Call::Readdir, |fs| async move {
            let listing = match fs.listing(fh.0, offset == 0).await {
                Ok(listing) => listing,
                Err(e) => return reply.error(errno(&e)),
            };
            let from = (offset as usize).min(listing.len());
            let part = &listing[from..listing.len().min(from + PLUS_MAX)];
            let inos: Vec<u64> = part.iter().map(|e| e.ino).collect();
            let attrs = match fs.getattrs(&inos).await {
                Ok(attrs) => attrs,
                Err(e) => return reply.error(errno(&e)),
            };
            for (i, (e, a)) in part.iter().zip(attrs).enumerate() {
                // Gone since it was listed, or where the cluster is.
                let Some(a) = a.filter(|_| !is_proc(ino, OsStr::from_bytes(&e.name))) else { continue };
                let next = (from + i) as u64 + 1;
                if reply.add(INodeNo(e.ino), next, OsStr::from_bytes(&e.name), &TTL, &attr(&a), Generation(0)) {
                    break;
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
        self.spawn(Call::Sync, |fs| async move { empty(reply, fs.sync_names().await) });
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        const BLOCK: u64 = 4096;
        let usage = self.fs.usage();
        let (blocks, free) = (usage.total / BLOCK, usage.free / BLOCK);
        reply.statfs(blocks, free, free, u64::MAX >> 16, u64::MAX >> 16, BLOCK as u32, 255, BLOCK as u32);
    }

    fn setxattr(
        &self,
        _req: &Request,
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
        let (name, value) = (name.as_bytes().to_vec(), value.to_vec());
        let (create, replace) = (flags & XATTR_CREATE != 0, flags & XATTR_REPLACE != 0);
        self.spawn(
            Call::Xattr,
            |fs| async move { empty(reply, fs.setxattr(ino.0, &name, &value, create, replace).await) },
        );
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        if is_ours(ino.0) {
            return reply.error(Errno::ENODATA);
        }
        let name = name.as_bytes().to_vec();
        self.spawn(Call::Xattr, |fs| async move { xattr(reply, size, fs.getxattr(ino.0, &name).await.map(Vec::from)) });
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        if is_ours(ino.0) {
            return xattr(reply, size, Ok(Vec::new()));
        }
        self.spawn(Call::Xattr, |fs| async move { xattr(reply, size, fs.listxattr(ino.0).await) });
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        if is_ours(ino.0) {
            return reply.error(Errno::EPERM);
        }
        let name = name.as_bytes().to_vec();
        self.spawn(Call::Xattr, |fs| async move { empty(reply, fs.removexattr(ino.0, &name).await) });
    }
}
