use crate::delegate::{Delegations, Told};
use crate::error::{FsError, MountError};
use crate::locks::Locks;
use crate::numbers::Numbers;
use crate::record::{self, Content, Inode};
use crate::state::State;
use crate::tables::Records;
use crate::watch::{Mark, Watch};
use base::{NodeId, Version};
use bytes::Bytes;
use client::{Batch, Check, Database, Outcome, Range, Record, Refusal, Rows, Write};
use node::{FragmentBy, Status, TableOptions};
use replica::{MergePolicy, MergeRule, Storage};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// An inode's number.
pub type Ino = u64;
/// Names an open file or directory of one mount.
pub type HandleId = u64;

/// Of what form the records are: raised whenever an older program would not understand them, or they an older one's.
const FORM: u64 = 5;
/// The root directory.
pub(crate) const ROOT: Ino = 1;
/// How often an operation is tried when others keep changing what it looked at.
pub(crate) const TRIES_MAX: usize = 64;
/// The longest name.
pub(crate) const NAME_BYTES_MAX: usize = 255;

/// What an inode is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum Kind {
    File,
    Directory,
    Symlink,
    Fifo,
    Socket,
    CharDevice,
    BlockDevice,
}

/// An inode as `stat` shows it. Times are nanoseconds since 1970.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub struct Attr {
    pub ino: Ino,
    pub kind: Kind,
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u32,
    pub size: u64,
    pub atime: u64,
    pub mtime: u64,
    pub ctime: u64,
    pub birth: u64,
}

/// What is to be made.
#[derive(Clone, Debug)]
pub struct New {
    /// Its type.
    pub kind: Kind,
    /// Permission bits that were asked for.
    pub mode: u32,
    /// Bits to leave out, unless a default access control list says which.
    pub umask: u32,
    /// Owner.
    pub uid: u32,
    /// Group, unless the directory's is to be taken.
    pub gid: u32,
    /// Device number of a special file.
    pub rdev: u32,
    /// Where a symbolic link leads.
    pub target: Option<Bytes>,
}

/// What happens to what stands where something is moved to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Over {
    /// It is replaced.
    Replace,
    /// It stays, and the move fails.
    Keep,
    /// It goes where the other one was.
    Exchange,
}

/// Who asks.
#[derive(Clone, Default, Debug)]
pub struct Caller {
    /// Its user; 0 may do everything.
    pub uid: u32,
    /// Its groups.
    pub gids: Vec<u32>,
}

impl Caller {
    /// Does it count as a member of that group?
    pub(crate) fn is_in(&self, gid: u32) -> bool {
        self.uid == 0 || self.gids.contains(&gid)
    }
}

/// What to change of an inode.
#[derive(Clone, Default, Debug)]
#[allow(missing_docs)]
pub struct SetAttr {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<u64>,
    pub mtime: Option<u64>,
    /// Whoever changes the size has no right to keep the set-user and set-group bits.
    pub kill: bool,
}

/// How a filesystem is mounted.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// Copies of every record, when the filesystem is made.
    pub copies: u16,
    /// How many bytes of all files together may wait to be committed.
    pub dirty_bytes_max: usize,
    /// The kernel keeps no name and no attribute: each is asked for.
    pub strict: bool,
    /// Reading changes the time of access, where that is older than the last change, or than a day.
    pub relatime: bool,
    /// All files are shown as this user's.
    pub uid: Option<u32>,
    /// And as this group's.
    pub gid: Option<u32>,
    /// How many bytes a second are read to see whether all is as it was written; `None`: none.
    pub scrub: Option<u64>,
    /// Directories in which this mount works alone it has to itself: what it does there is acknowledged before the copies have it.
    pub delegate: bool,
}

impl Default for MountOptions {
    fn default() -> Self {
        MountOptions {
            copies: 3,
            dirty_bytes_max: 64 * 1024 * 1024,
            strict: false,
            relatime: false,
            uid: None,
            gid: None,
            scrub: None,
            delegate: false,
        }
    }
}

/// What `statfs` shows.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// Bytes that there is room for in all.
    pub total: u64,
    /// Bytes that there is room for still.
    pub free: u64,
}

/// What bytes that wait say of their file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Pending {
    /// It is at least so long.
    pub end: u64,
    /// When the last of them was written: what the commit says too.
    pub mtime: u64,
}

/// An inode that is open here, with the bytes that are not committed yet.
#[derive(Default)]
pub(crate) struct Open {
    pub handles: usize,
    /// Sorted, apart.
    pub dirty: Vec<(u64, Vec<u8>)>,
    pub dirty_since: Option<std::time::Instant>,
    /// Of bytes that are not committed yet, those on their way included.
    pub pending: Option<Pending>,
    /// When it was last read, if that is to be written down.
    pub read_at: Option<u64>,
    /// What of it lies in the blocks table and was put on disc when this mount asked for that last.
    pub on_disc: Option<u64>,
    /// Errors of late commits, counted; each handle reports those it has not seen.
    pub errors: Vec<FsError>,
}

/// An open file or directory.
pub(crate) struct Handle {
    pub ino: Ino,
    pub append: bool,
    pub errors_seen: usize,
    pub listing: Option<Arc<crate::Listing>>,
    /// Bytes were written through it.
    pub wrote: bool,
    /// Who locked ranges through it.
    pub owners: BTreeSet<u64>,
}

/// A mounted filesystem.
pub struct Fs {
    /// `None`: the tables are a test's.
    pub(crate) db: Option<Database>,
    pub(crate) meta: Records,
    pub(crate) blocks: Records,
    /// Of the node that mounts: conflict names tell it.
    name_of_node: String,
    pub(crate) session: u64,
    pub(crate) numbers: Numbers,
    pub(crate) open: Mutex<HashMap<Ino, Open>>,
    /// One commit at a time per inode.
    pub(crate) committing: Mutex<HashMap<Ino, Arc<tokio::sync::Mutex<()>>>>,
    pub(crate) handles: Mutex<HashMap<HandleId, Handle>>,
    next_handle: AtomicU64,
    pub(crate) dirty_bytes: AtomicUsize,
    pub(crate) watch: Arc<Watch>,
    pub(crate) delegations: Delegations,
    pub(crate) locks: Locks,
    pub(crate) options: MountOptions,
    pub(crate) data_dir: std::path::PathBuf,
    pub(crate) state: Mutex<State>,
    /// What the last scrubbing came to.
    pub(crate) scrubbed: Mutex<Option<String>>,
    /// How much room there was when that was last asked.
    pub(crate) usage: Mutex<Option<(Instant, Usage)>>,
}

/// Wall nanoseconds since 1970.
pub(crate) fn wall_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64
}

/// The tables of a filesystem: metadata and small data, large data.
pub fn table_names(name: &str) -> (String, String) {
    (format!("fs.{name}"), format!("fs.{name}.blocks"))
}

/// The names of the filesystems among these tables.
pub fn filesystems<'a>(tables: impl Iterator<Item = &'a str>) -> Vec<String> {
    tables.filter_map(|t| t.strip_prefix("fs.")).filter(|t| !t.ends_with(".blocks")).map(String::from).collect()
}

/// Did somebody take its last name who meant to?
pub(crate) fn is_removed(orphan: Option<&Record>) -> bool {
    let said = orphan.and_then(|row| row.value.as_deref()).map(record::Gone::read);
    said.is_some_and(|said| said.is_empty() || said.iter().any(|gone| !gone.alike))
}

/// The inode has a name, or has lost its last one.
pub(crate) fn named(ino: Ino, so: bool) -> Check {
    let key = record::orphan(ino);
    if so { Check::Absent(key) } else { Check::Present(key) }
}

/// What becomes of records that two islands wrote.
pub(crate) fn policy() -> MergePolicy {
    // Times merge by `max`: two islands that made files in one directory are no conflict. Of those who removed one inode each is
    // heard.
    let exceptions = vec![
        (8, b'T', MergeRule::Max),
        (8, b'U', MergeRule::Union),
        (8, b'Q', MergeRule::Union),
        (8, b'Z', MergeRule::Union),
    ];
    MergePolicy { default: MergeRule::Latest, exceptions }
}

pub(crate) fn put(key: Bytes, value: Bytes) -> Write {
    Write::Put { key, value, ttl_ms: None }
}

pub(crate) fn put_xattr(ino: Ino, name: &[u8], value: &[u8]) -> Write {
    // A byte before it, so that an empty value is not a missing one.
    put(record::xattr(ino, name), [&[1], value].concat().into())
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn check_name(name: &[u8]) -> Result<(), FsError> {
    match name {
        _ if name.len() > NAME_BYTES_MAX => Err(FsError::NameTooLong),
        b"" | b"." | b".." => Err(FsError::Invalid),
        _ if name.contains(&0) || name.contains(&b'/') => Err(FsError::Invalid),
        _ => Ok(()),
    }
}

impl Fs {
    /// Mounts a filesystem, and makes it if it is not there.
    pub async fn mount(
        db: Database,
        name: &str,
        options: MountOptions,
        data_dir: std::path::PathBuf,
    ) -> Result<Arc<Fs>, MountError> {
        let (meta_name, blocks_name) = table_names(name);
        let meta = TableOptions {
            copies: options.copies,
            fragments: 1,
            policy: policy(),
            fragment_by: FragmentBy::Prefix(2),
            // Bytes of files on disc alone, names and attributes in RAM: they are small.
            storage: Storage::DiscOnly,
            ..TableOptions::default()
        };
        let blocks = TableOptions {
            copies: options.copies,
            fragment_by: FragmentBy::Prefix(8),
            storage: Storage::DiscOnly,
            ..TableOptions::default()
        };
        let meta = Records::Table(Box::new(db.create_table(&meta_name, meta, true).await?));
        let blocks = Records::Table(Box::new(db.create_table(&blocks_name, blocks, true).await?));
        let me = db.status().await?.node;
        let fs = Arc::new(Fs::begin(Some(db), (meta, blocks), (name, &me), options, data_dir).await?);
        fs.keep_delegations();
        tokio::spawn(crate::reap::keep_house(Arc::downgrade(&fs)));
        tokio::spawn(crate::reap::keep_order(Arc::downgrade(&fs)));
        if let Some(rate) = fs.options.scrub {
            tokio::spawn(crate::scrub::keep_clean(Arc::downgrade(&fs), rate));
        }
        Ok(fs)
    }

    /// A mount of these tables, by a node of this name.
    pub(crate) async fn begin(
        db: Option<Database>,
        (meta, blocks): (Records, Records),
        (name, me): (&str, &str),
        options: MountOptions,
        data_dir: std::path::PathBuf,
    ) -> Result<Fs, MountError> {
        let mut fs = Fs {
            db,
            meta,
            blocks,
            name_of_node: me.into(),
            session: 0,
            numbers: Numbers::new(0),
            open: Mutex::default(),
            committing: Mutex::default(),
            handles: Mutex::default(),
            next_handle: AtomicU64::new(1),
            dirty_bytes: AtomicUsize::new(0),
            watch: Arc::default(),
            delegations: Delegations::default(),
            locks: Locks::default(),
            options,
            data_dir,
            state: Mutex::default(),
            scrubbed: Mutex::default(),
            usage: Mutex::default(),
        };
        fs.make_root().await?;
        fs.check_form(name).await?;
        let allocator = fs.claim_allocator().await?;
        (fs.session, fs.numbers) = (u64::from(allocator), Numbers::new(allocator));
        fs.begin_session().await?;
        Ok(fs)
    }

    async fn make_root(&self) -> Result<(), client::Error> {
        // The same bytes whoever makes it: two islands that do are no conflict.
        let root = Inode {
            kind: Kind::Directory,
            mode: 0o755,
            uid: 0,
            gid: 0,
            rdev: 0,
            target: None,
            ctime: 0,
            birth: 0,
            after: false,
        };
        let key = record::inode(ROOT);
        let writes = vec![
            put(key.clone(), record::encode(&root)),
            put(record::form(), Bytes::copy_from_slice(&FORM.to_be_bytes())),
        ];
        let batch = Batch { checks: vec![Check::Absent(key)], writes, sync: true };
        self.meta.batch(&[0; 8], batch).await.map(drop)
    }

    async fn check_form(&self, name: &str) -> Result<(), MountError> {
        let row = first(self.meta.read(&[0; 8], vec![Range::key(record::form())]).await?.into_iter().next());
        let found = number(row.as_ref(), 0).unwrap_or(0);
        if found == FORM { Ok(()) } else { Err(MountError::Form { name: name.into(), found, ours: FORM }) }
    }

    /// A number that no mount ever had, for making others: never an old one again.
    pub(crate) async fn claim_allocator(&self) -> Result<u32, client::Error> {
        for tried in 1.. {
            // By chance, so that islands do not claim the same; a test's are the same each time.
            let chance = || getrandom::u32().unwrap_or_else(|_| wall_ns() as u32) & 0xff_ffff;
            let n = if self.db.is_some() { chance() } else { (u32::MAX / 7).wrapping_mul(tried) & 0xff_ffff };
            let key = record::allocator(n);
            let made = put(key.clone(), Bytes::copy_from_slice(self.name_of_node.as_bytes()));
            let batch = Batch { checks: vec![Check::Absent(key)], writes: vec![made], sync: true };
            if n != 0 && matches!(self.meta.batch(&[0; 8], batch).await?, Outcome::Done { .. }) {
                return Ok(n);
            }
        }
        Err(client::Error::Ended)
    }

    pub(crate) fn next_handle(&self) -> HandleId {
        self.next_handle.fetch_add(1, Ordering::Relaxed)
    }

    /// One record of the metadata.
    pub(crate) async fn get(&self, key: Bytes) -> Result<Option<Record>, FsError> {
        let rows = self.read_meta(vec![Range::key(key)]).await?;
        Ok(first(rows.into_iter().next()))
    }

    /// A batch on the metadata as it is, whoever has to himself what it is about; `false`: a check did not hold.
    pub(crate) async fn plain(&self, batch: Batch) -> Result<bool, FsError> {
        match self.meta.batch(&[0; 8], batch).await? {
            Outcome::Done { .. } => Ok(true),
            Outcome::Failed(Refusal::Check(_)) => Ok(false),
            Outcome::Failed(refusal) => Err(refused(&refusal)),
            Outcome::Unknown => Err(FsError::Unavailable),
        }
    }

    /// A batch on the metadata. `Ok(None)`: applied. `Ok(Some(i))`: check `i` did not hold. Of a batch whose fate is not
    /// known the caller finds out by looking again: every operation here can tell its own work.
    pub(crate) async fn commit(
        &self,
        checks: Vec<Check>,
        writes: Vec<Write>,
        sync: bool,
    ) -> Result<Option<u32>, FsError> {
        Ok(self.commit_as(checks, writes, sync, Told::Replies).await?.err())
    }

    /// Attributes of an inode.
    pub async fn getattr(&self, ino: Ino) -> Result<(Attr, Mark), FsError> {
        let before = self.pending(ino);
        let mark = self.watch.mark(0, ino);
        let rows = self.read_meta(attr_ranges(ino)).await?;
        self.tell_attr(ino, rows, before, mark)?.ok_or(FsError::NotFound)
    }

    /// Attributes as they are to be told. Bytes not committed yet count too, in this mount: those that were so `before` the rows
    /// were read, and by now.
    pub(crate) fn tell_attr(
        &self,
        ino: Ino,
        rows: Vec<Rows>,
        before: Option<Pending>,
        mark: Mark,
    ) -> Result<Option<(Attr, Mark)>, FsError> {
        let Some((mut attr, content)) = to_attr(ino, rows)? else { return Ok(None) };
        self.show_owner(&mut attr);
        for pending in before.into_iter().chain(self.pending(ino)) {
            attr.size = attr.size.max(pending.end);
            (attr.mtime, attr.ctime) = (attr.mtime.max(pending.mtime), attr.ctime.max(pending.mtime));
        }
        Ok(Some((attr, mark.with_content(content))))
    }

    /// Whose it is shown as.
    pub(crate) fn show_owner(&self, attr: &mut Attr) {
        (attr.uid, attr.gid) = (self.options.uid.unwrap_or(attr.uid), self.options.gid.unwrap_or(attr.gid));
    }

    pub(crate) fn pending(&self, ino: Ino) -> Option<Pending> {
        lock(&self.open).get(&ino).and_then(|o| o.pending)
    }

    /// The child of that name; `Err`: there is none, and how long that may be kept.
    pub async fn lookup(&self, dir: Ino, name: &[u8]) -> Result<Result<(Attr, Mark), Mark>, FsError> {
        check_name(name)?;
        let names = self.watch.mark(dir, 0);
        let Some((ino, ..)) = self.find(dir, name).await? else { return Ok(Err(names)) };
        let (attr, mark) = self.getattr(ino).await?;
        Ok(Ok((attr, mark.and(names))))
    }

    /// The entry of that name: inode, link, kind and the version of its `D`. Of several (two islands made one each) the
    /// latest shows.
    pub(crate) async fn find(&self, dir: Ino, name: &[u8]) -> Result<Option<(Ino, u64, Kind, Record)>, FsError> {
        let rows = self.read_meta(vec![Range::prefix(record::name(dir, name), 16)]).await?;
        let mut entries = Vec::new();
        for (key, row) in rows.into_iter().flat_map(|r| r.rows) {
            let (_, ino, link) = record::split_entry(&key).ok_or(FsError::Damaged("an entry's key"))?;
            entries.push((ino, link, row));
        }
        if entries.is_empty() {
            return Ok(None);
        }
        // A name is there if both its halves say so.
        let ranges = entries.iter().map(|(ino, link, _)| Range::key(record::place(*ino, *link))).collect();
        let mut best = None;
        for ((ino, link, row), places) in entries.into_iter().zip(self.read_meta(ranges).await?) {
            let Some(place) = first(Some(places)) else { continue };
            let stands: record::Place = record::decode(place.value.as_deref().unwrap_or_default())?;
            let rank = place.rank();
            if stands.parent == dir && stands.name == name && best.as_ref().is_none_or(|(least, _)| rank > *least) {
                let kind = record::decode(row.value.as_deref().unwrap_or_default())?;
                best = Some((rank, (ino, link, kind, row)));
            }
        }
        Ok(best.map(|(_, found)| found))
    }

    /// Who else is there, for the decision what may be freed.
    pub(crate) async fn status(&self) -> Result<Option<Status>, FsError> {
        let Some(db) = &self.db else { return Ok(None) };
        Ok(Some(db.status().await?))
    }

    pub(crate) fn me(&self) -> (NodeId, u64) {
        self.db.as_ref().map_or((NodeId(1), 1), |db| (db.handle().me, db.handle().incarnation))
    }

    /// Is it being unmounted, or has been?
    pub(crate) fn is_ending(&self) -> bool {
        lock(&self.delegations.scope).is_closed()
    }

    /// Writes everything out and ends the mount's session.
    pub async fn unmount(&self) -> Result<(), FsError> {
        let all: Vec<Ino> = lock(&self.open).keys().copied().collect();
        let mut result = Ok(());
        for ino in all {
            result = result.and(self.flush_inode(ino, true).await);
        }
        result = result.and(self.land_at_last().await);
        self.watch.close();
        self.end_session().await?;
        result
    }
}

pub(crate) fn refused(refusal: &Refusal) -> FsError {
    match refusal {
        Refusal::NoSpace | Refusal::TableFull { .. } => FsError::NoSpace,
        Refusal::TooLarge { .. } => FsError::TooLarge,
        _ => FsError::Unavailable,
    }
}

/// The ranges that [`to_attr`] reads.
pub(crate) fn attr_ranges(ino: Ino) -> Vec<Range> {
    let keys = [record::inode(ino), record::content(ino), record::times(ino), record::atime(ino)];
    let mut ranges: Vec<Range> = keys.into_iter().map(Range::key).collect();
    ranges.extend([record::places(ino), record::subdirs(ino)].map(|p| Range::prefix(p, 65_000)));
    ranges
}

pub(crate) fn first(rows: Option<Rows>) -> Option<Record> {
    rows.and_then(|r| r.rows.into_iter().next()).map(|(_, record)| record)
}

pub(crate) fn to_content(row: Option<&Record>) -> Result<Content, FsError> {
    row.and_then(|r| r.value.as_deref()).map_or_else(|| Ok(Content::default()), record::decode)
}

/// One of the numbers in a record.
fn number(row: Option<&Record>, n: usize) -> Option<u64> {
    let bytes = row?.value.as_ref()?.get(8 * n..8 * n + 8)?;
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}

/// Puts together what [`attr_ranges`] gave, and with which commit of its bytes; `None`: no such inode.
fn to_attr(ino: Ino, rows: Vec<Rows>) -> Result<Option<(Attr, Version)>, FsError> {
    let mut rows = rows.into_iter();
    let (i, c, t, a) = (first(rows.next()), first(rows.next()), first(rows.next()), first(rows.next()));
    let Some(i) = i else { return Ok(None) };
    let inode: Inode = record::decode(i.value.as_deref().unwrap_or_default())?;
    let content = to_content(c.as_ref())?;
    let (places, subdirs) = (rows.next().unwrap_or_default().rows, rows.next().unwrap_or_default().rows);
    let mut ctime = inode.ctime.max(content.ctime).max(number(t.as_ref(), 1).unwrap_or(0));
    for (_, place) in &places {
        let place: record::Place = record::decode(place.value.as_deref().unwrap_or_default())?;
        ctime = ctime.max(place.ctime);
    }
    let dir = inode.kind == Kind::Directory;
    let mtime = match number(t.as_ref(), 0) {
        Some(t) if dir && t > 0 => t,
        _ if c.is_some() => content.mtime,
        _ => inode.birth,
    };
    let size = match (&inode.target, dir) {
        (Some(target), _) => target.len() as u64,
        (None, true) => 4096,
        (None, false) => content.size,
    };
    let attr = Attr {
        ino,
        kind: inode.kind,
        mode: inode.mode,
        nlink: match places.len() as u32 {
            // Its name, its `.`, and the `..` of each directory in it.
            n if dir && (n > 0 || ino == ROOT) => 2 + subdirs.len() as u32,
            n => n,
        },
        uid: inode.uid,
        gid: inode.gid,
        rdev: inode.rdev,
        size,
        atime: number(a.as_ref(), 0).unwrap_or(mtime),
        mtime,
        ctime,
        birth: inode.birth,
    };
    Ok(Some((attr, version_of(c.as_ref()))))
}

/// The write that put a record there; one that never was has a version, too.
pub(crate) fn version_of(row: Option<&Record>) -> Version {
    row.map(|r| r.version).unwrap_or_default()
}

/// A pause before looking again at what others keep changing.
pub(crate) async fn pause(round: usize) {
    tokio::time::sleep(Duration::from_micros(200 << round.min(8))).await;
}
