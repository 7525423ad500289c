use crate::StorageError;
use base::{BranchId, FragmentId, Heads, Hlc, NodeId, TableId, Version, WallMs};
use bytes::Bytes;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, KvSeparationOptions, OwnedWriteBatch, PersistMode};
use replica::{Kept, Meta, Persist, Record, Stage, Store, Stored, Values, WriteBatch, is_apart};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Journals are kept small, so that a start takes a second, not a minute.
const JOURNAL_BYTES_MAX: u64 = 128 * 1024 * 1024;
const MEMTABLE_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// What was read lately of the values that are not in RAM.
const CACHE_BYTES: u64 = 64 * 1024 * 1024;
/// Values from this on lie in files of their own: those of files, not those of most tables, which are quicker among their keys.
const LARGE_BYTES: u32 = 16 * 1024;
/// Batches are handed to the engine together, up to about so many bytes.
const COMMIT_BYTES: usize = 4 * 1024 * 1024;

const META: u8 = b'm';
pub(crate) const HEAD: u8 = b'h';
/// Of one node, all branches up to this number are folded.
pub(crate) const FOLD: u8 = b'f';
/// How a record lies in its row, by the row's first byte: all of it,
pub(crate) const WHOLE: u8 = 0;
/// all but its value, which is under the same key in `values`,
const APART: u8 = 1;
/// or, in the staging space, all of it, though it is to lie apart,
pub(crate) const TO_PART: u8 = 2;
/// or is not to any more.
pub(crate) const TO_WHOLE: u8 = 3;

/// What lies in the row of a record whose value lies apart: the version, the stamp, when it expires, the value's bytes.
type Head = (Version, Hlc, Option<WallMs>, u32);

/// Indices with this bit take more than two bytes, with this one set of the four.
const SHORT_END: u16 = 1 << 15;
const LONG: u32 = 1 << 31;

/// How a batch's records lie in the staging space.
pub(crate) fn staged_tag(batch: &WriteBatch) -> u8 {
    match (batch.stage, batch.apart.is_some()) {
        (Stage::Keep { .. }, _) | (_, true) => TO_PART,
        _ if batch.gathered => TO_WHOLE,
        _ => WHOLE,
    }
}

/// Everything that was on disc.
pub type Loaded = BTreeMap<FragmentId, Stored>;

/// The records of all copies of a node.
pub struct Disc {
    path: PathBuf,
    pub(crate) db: Database,
    pub(crate) records: Keyspace,
    pub(crate) values: Keyspace,
    pub(crate) state: Keyspace,
    pub(crate) staging: Keyspace,
    lost: Mutex<Option<String>>,
}

/// How the rows of a fragment begin, those of no other: an index of more than 15 bits takes four bytes, of which the first tells.
pub(crate) fn prefix(fragment: FragmentId) -> Vec<u8> {
    let mut key = fragment.table.0.to_be_bytes().to_vec();
    match u16::try_from(fragment.index) {
        Ok(short) if short & SHORT_END == 0 => key.extend_from_slice(&short.to_be_bytes()),
        _ => key.extend_from_slice(&(fragment.index | LONG).to_be_bytes()),
    }
    key
}

pub(crate) fn with(fragment: FragmentId, rest: &[&[u8]]) -> Vec<u8> {
    let mut key = prefix(fragment);
    rest.iter().for_each(|part| key.extend_from_slice(part));
    key
}

pub(crate) fn split(key: &[u8]) -> Option<(FragmentId, &[u8])> {
    let table = TableId(u64::from_be_bytes(key.get(..8)?.try_into().ok()?));
    let short = u16::from_be_bytes(key.get(8..10)?.try_into().ok()?);
    if short & SHORT_END == 0 {
        return Some((FragmentId { table, index: short.into() }, &key[10..]));
    }
    let long = u32::from_be_bytes(key.get(8..12)?.try_into().ok()?);
    Some((FragmentId { table, index: long & !LONG }, &key[12..]))
}

/// A node and the line of its branches: those of line 0 as they lay before there were others.
fn fold_key(fragment: FragmentId, last: BranchId) -> Vec<u8> {
    let (node, line) = (last.node.0.to_be_bytes(), last.line().to_be_bytes());
    let line: &[u8] = if last.line() == 0 { &[] } else { &line };
    with(fragment, &[&[FOLD], &node, line])
}

fn head_key(fragment: FragmentId, branch: BranchId) -> Vec<u8> {
    with(fragment, &[&[HEAD], &branch.node.0.to_be_bytes(), &branch.n.to_be_bytes()])
}

impl Disc {
    /// Opens or makes the store in `path`, and reads all of it; `seed` is of the stores' hash tables.
    pub fn open(path: &Path, seed: u64) -> Result<(Disc, Loaded), StorageError> {
        let damaged = |what: String| StorageError::Damaged { path: path.into(), what };
        // The engine asserts on what it does not expect to find; that is damage, not a bug of ours.
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let opened = catch_unwind(AssertUnwindSafe(|| {
            let disc = Disc::open_engine(path)?;
            disc.finish_switches()?;
            let loaded = disc.load(seed)?;
            Ok((disc, loaded))
        }));
        std::panic::set_hook(hook);
        opened.unwrap_or_else(|_| Err(damaged("the storage engine cannot read it".into())))
    }

    fn open_engine(path: &Path) -> Result<Disc, StorageError> {
        let fail = |e: fjall::Error| match e {
            fjall::Error::Io(source) => StorageError::Io { path: path.into(), source },
            other => StorageError::Damaged { path: path.into(), what: other.to_string() },
        };
        let builder = Database::builder(path).cache_size(CACHE_BYTES).worker_threads(1);
        let db = builder.max_journaling_size(JOURNAL_BYTES_MAX).open().map_err(fail)?;
        let options = || KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES_MAX);
        // Large values in files of their own: merging keys does not write them again.
        let large = || KvSeparationOptions::default().separation_threshold(LARGE_BYTES);
        let separate = || options().with_kv_separation(Some(large()));
        let records = db.keyspace("records", separate).map_err(fail)?;
        let values = db.keyspace("values", separate).map_err(fail)?;
        let state = db.keyspace("state", options).map_err(fail)?;
        let staging = db.keyspace("staging", separate).map_err(fail)?;
        Ok(Disc { path: path.into(), db, records, values, state, staging, lost: Mutex::default() })
    }

    pub(crate) fn damaged(&self, what: impl ToString) -> StorageError {
        StorageError::Damaged { path: self.path.clone(), what: what.to_string() }
    }

    pub(crate) fn broken(&self) -> StorageError {
        StorageError::Write { path: self.path.clone(), what: "the storage engine failed".into() }
    }

    pub(crate) fn failed(&self, e: fjall::Error) -> StorageError {
        let what = match e {
            fjall::Error::Io(e) => e.to_string(),
            other => other.to_string(),
        };
        StorageError::Write { path: self.path.clone(), what }
    }

    fn load(&self, seed: u64) -> Result<Loaded, StorageError> {
        let mut state: BTreeMap<FragmentId, (Meta, Heads)> = BTreeMap::new();
        for row in self.state.iter() {
            let (key, value) = row.into_inner().map_err(|e| self.damaged(e))?;
            let (fragment, rest) = split(&key).ok_or_else(|| self.damaged("a state key"))?;
            let entry = state.entry(fragment).or_default();
            match rest.split_first() {
                Some((&META, [])) => entry.0 = postcard::from_bytes(&value).map_err(|e| self.damaged(e))?,
                Some((&HEAD, branch)) if branch.len() == 16 && value.len() == 8 => {
                    let number = |b: &[u8]| u64::from_be_bytes(b.try_into().unwrap_or_default());
                    let branch = BranchId { node: NodeId(number(&branch[..8])), n: number(&branch[8..]) };
                    entry.1.add(Version { branch, seq: number(&value) });
                }
                Some((&FOLD, of)) if matches!(of.len(), 8 | 12) && value.len() == 8 => {
                    let number = |b: &[u8]| u64::from_be_bytes(b.try_into().unwrap_or_default());
                    entry.1.fold(BranchId { node: NodeId(number(&of[..8])), n: number(&value) });
                }
                _ => return Err(self.damaged("a state row")),
            }
        }
        let mut loaded = Loaded::new();
        for (fragment, (meta, heads)) in state {
            let mut records: Vec<(Bytes, Kept)> = Vec::new();
            for row in self.records.prefix(prefix(fragment)) {
                let (key, value) = row.into_inner().map_err(|e| self.damaged(e))?;
                let record = self.kept(&value)?;
                if !heads.covers(record.version()) {
                    return Err(self.damaged("a record that no head covers"));
                }
                let (_, key) = split(&key).ok_or_else(|| self.damaged("a record's key"))?;
                records.push((Bytes::copy_from_slice(key), record));
            }
            loaded.insert(fragment, Stored { meta, store: Store::load(seed, heads, records) });
        }
        Ok(loaded)
    }

    /// Writes a group of batches, none of which takes long, in order; durable when this returns if `sync`, else in the hands of the
    /// system.
    pub(crate) fn write(&self, group: &[(FragmentId, Persist)], sync: bool) -> Result<(), StorageError> {
        let (mut out, mut size) = (self.db.batch(), 0);
        for (fragment, persist) in group {
            self.fill(&mut out, *fragment, &persist.batch)?;
            size += persist.batch.bytes();
            if size > COMMIT_BYTES {
                out.commit().map_err(|e| self.failed(e))?;
                (out, size) = (self.db.batch(), 0);
            }
        }
        out.commit().map_err(|e| self.failed(e))?;
        group.iter().filter_map(|(_, p)| p.batch.apart.as_ref()).for_each(replica::Place::written);
        self.persist(sync)
    }

    /// Hands what was written to the system, or to the disc.
    pub(crate) fn persist(&self, sync: bool) -> Result<(), StorageError> {
        let mode = if sync { PersistMode::SyncData } else { PersistMode::Buffer };
        self.db.persist(mode).map_err(|e| self.failed(e))
    }

    pub(crate) fn fill(
        &self,
        out: &mut OwnedWriteBatch,
        fragment: FragmentId,
        batch: &WriteBatch,
    ) -> Result<(), StorageError> {
        for (key, record) in &batch.puts {
            if let Stage::Keep { .. } = batch.stage {
                out.insert(&self.staging, with(fragment, &[key]), self.row(staged_tag(batch), record)?);
            } else {
                self.put(out, fragment, batch, key, record)?;
            }
        }
        batch.removes.iter().for_each(|key| self.remove(out, fragment, key));
        self.fill_state(out, fragment, batch)
    }

    /// A record goes where it belongs.
    pub(crate) fn put(
        &self,
        out: &mut OwnedWriteBatch,
        fragment: FragmentId,
        batch: &WriteBatch,
        key: &[u8],
        record: &Record,
    ) -> Result<(), StorageError> {
        let stored = with(fragment, &[key]);
        if batch.apart.is_some() {
            return self.fill_parted(out, stored, key, record);
        }
        if batch.gathered && is_apart(key) {
            out.remove(&self.values, stored.clone());
        }
        out.insert(&self.records, stored, self.row(WHOLE, record)?);
        Ok(())
    }

    pub(crate) fn remove(&self, out: &mut OwnedWriteBatch, fragment: FragmentId, key: &[u8]) {
        out.remove(&self.records, with(fragment, &[key]));
        if is_apart(key) {
            out.remove(&self.values, with(fragment, &[key]));
        }
    }

    pub(crate) fn row(&self, tag: u8, content: &impl serde::Serialize) -> Result<Vec<u8>, StorageError> {
        postcard::to_extend(content, vec![tag]).map_err(|e| self.damaged(e))
    }

    /// A record as it is kept in RAM, from its row.
    fn kept(&self, row: &[u8]) -> Result<Kept, StorageError> {
        match row.split_first() {
            Some((&WHOLE, rest)) => postcard::from_bytes::<Record>(rest).map(Kept::from).map_err(|e| self.damaged(e)),
            Some((&APART, rest)) => {
                let (version, hlc, expires, bytes): Head = postcard::from_bytes(rest).map_err(|e| self.damaged(e))?;
                Ok(Kept::on_disc(version, hlc, expires, bytes))
            }
            _ => Err(self.damaged("a record's row")),
        }
    }

    /// A record of a copy that keeps values apart; a value that was there before goes with the record that it was of.
    pub(crate) fn fill_parted(
        &self,
        out: &mut OwnedWriteBatch,
        stored: Vec<u8>,
        key: &[u8],
        record: &Record,
    ) -> Result<(), StorageError> {
        let row = match &record.value {
            Some(value) if is_apart(key) && self.takes(value) => {
                let v = record.version;
                let named = [v.branch.node.0, v.branch.n, v.seq].map(u64::to_be_bytes).concat();
                out.insert(&self.values, stored.clone(), [&named[..], value].concat());
                let head: Head = (v, record.hlc, record.expires, value.len() as u32);
                self.row(APART, &head)?
            }
            None if is_apart(key) => {
                out.remove(&self.values, stored.clone());
                self.row(WHOLE, record)?
            }
            _ => self.row(WHOLE, record)?,
        };
        out.insert(&self.records, stored, row);
        Ok(())
    }

    pub(crate) fn fill_state(
        &self,
        out: &mut OwnedWriteBatch,
        fragment: FragmentId,
        batch: &WriteBatch,
    ) -> Result<(), StorageError> {
        for head in &batch.heads {
            out.insert(&self.state, head_key(fragment, head.branch), head.seq.to_be_bytes());
        }
        for (last, branches) in &batch.folds {
            out.insert(&self.state, fold_key(fragment, *last), last.n.to_be_bytes());
            branches.iter().for_each(|branch| out.remove(&self.state, head_key(fragment, *branch)));
        }
        if let Some(meta) = &batch.meta {
            let value = postcard::to_stdvec(meta).map_err(|e| self.damaged(e))?;
            out.insert(&self.state, with(fragment, &[&[META]]), value);
        }
        Ok(())
    }
}

impl Disc {
    /// What lies on the disc, in bytes, the journal taken to be as large as it may be: its true size is known only to whoever waits
    /// for those that write to it.
    pub fn used_bytes(&self) -> u64 {
        let all = [&self.records, &self.values, &self.state, &self.staging];
        all.iter().map(|space| space.disk_space()).fold(JOURNAL_BYTES_MAX, u64::saturating_add)
    }

    /// Why a value could not be read, if one could not.
    pub fn lost(&self) -> Option<String> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn look(&self, stored: &[u8]) -> Result<Option<(Version, Bytes)>, String> {
        // The engine asserts on what it does not expect to find.
        let row = catch_unwind(AssertUnwindSafe(|| self.values.get(stored)));
        let row = row.map_err(|_| "the storage engine cannot read it".to_string())?.map_err(|e| e.to_string())?;
        let Some(row) = row else { return Ok(None) };
        let (named, value) = row.split_at_checked(24).ok_or("its row is cut short")?;
        let number = |at: usize| u64::from_be_bytes(named[at..at + 8].try_into().unwrap_or_default());
        let branch = BranchId { node: NodeId(number(0)), n: number(8) };
        Ok(Some((Version { branch, seq: number(16) }, Bytes::copy_from_slice(value))))
    }
}

impl Values for Disc {
    fn value(&self, fragment: FragmentId, key: &[u8]) -> Option<(Version, Bytes)> {
        let stored = with(fragment, &[key]);
        // What fails for want of descriptors or memory may do so once.
        let found = self.look(&stored).or_else(|_| self.look(&stored));
        found.unwrap_or_else(|why| {
            self.lost.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
            None
        })
    }
}

impl std::fmt::Debug for Disc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Disc").field("path", &self.path).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Heads that are folded take their own rows along, and records of folded branches are still covered.
    #[test]
    fn folded_branches_are_one_row_of_their_node() {
        let dir = tempfile::tempdir().expect("dir");
        let (disc, _) = Disc::open(dir.path(), 1).expect("opens");
        let fragment = FragmentId { table: TableId(7), index: 0 };
        let version = |n| Version { branch: BranchId { node: NodeId(1), n }, seq: 3 };
        let record = Record { version: version(1), hlc: Hlc(1), expires: None, value: Some("v".into()) };
        let puts = vec![(Bytes::from_static(b"\x01k"), record)];
        let first = WriteBatch { heads: (1..5).map(version).collect(), puts, ..WriteBatch::default() };
        let folds = vec![(version(3).branch, (1..4).map(|n| version(n).branch).collect())];
        let second = WriteBatch { folds, ..WriteBatch::default() };
        for (mark, batch) in [(1, first), (2, second)] {
            disc.write_all(vec![(fragment, Persist { batch, mark, sync: false })], true).expect("written");
        }
        assert_eq!(disc.state.iter().count(), 2);
        drop(disc);
        let (_, loaded) = Disc::open(dir.path(), 1).expect("opens");
        let heads = loaded[&fragment].store.heads();
        assert_eq!((heads.len(), heads.is_folded(version(3).branch), loaded[&fragment].store.len()), (1, true, 1));
    }

    #[test]
    fn no_fragments_rows_are_among_those_of_another() {
        let table = TableId(7);
        let ids = [(0, 8, 0), (0, 1024, 1023), (1, 1, 0), (1, 2, 1), (2047, 1024, 1023)]
            .map(|(era, count, place)| FragmentId::new(table, era, count, place));
        for id in ids {
            let row = with(id, &[b"rest"]);
            assert_eq!(split(&row), Some((id, &b"rest"[..])));
            assert!(ids.iter().all(|other| *other == id || !row.starts_with(&prefix(*other))));
        }
        // Folds of two lines of one node.
        let dir = tempfile::tempdir().expect("dir");
        let (disc, _) = Disc::open(dir.path(), 1).expect("opens");
        let folds = [0, 9].map(|line| (BranchId::of_line(NodeId(1), line, 3), Vec::new()));
        let batch = WriteBatch { folds: folds.to_vec(), ..WriteBatch::default() };
        disc.write_all(vec![(ids[4], Persist { batch, mark: 1, sync: false })], true).expect("written");
        drop(disc);
        let (_, loaded) = Disc::open(dir.path(), 1).expect("opens");
        assert_eq!(loaded[&ids[4]].store.heads().folds().collect::<Vec<_>>(), folds.map(|(last, _)| last));
    }

    /// What other versions of this program wrote, and will read: rows as they lie on the disc. Whoever changes them on purpose
    /// raises the form in `dir.rs`, and writes the file anew: `GOLDEN=write cargo test -p storage golden`.
    #[test]
    fn golden_rows() {
        let dir = tempfile::tempdir().expect("dir");
        let (disc, _) = Disc::open(dir.path(), 1).expect("fresh");
        let branch = BranchId { node: NodeId(0x0123_4567_89ab_cdef), n: 300 };
        let version = Version { branch, seq: 70_000 };
        let whole = Record { version, hlc: Hlc(1 << 50), expires: Some(base::WallMs(5)), value: Some("value".into()) };
        let tombstone = Record { value: None, expires: None, ..whole.clone() };
        let head: Head = (version, Hlc(9), None, 1234);
        let promised = base::Ballot { counter: 7, node: NodeId(3) };
        let meta = Meta { n: 4, promised, ceiling: Hlc(11) };
        let hex = |bytes: Vec<u8>| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        let rows = [
            ("whole", hex(disc.row(WHOLE, &whole).expect("small"))),
            ("tombstone", hex(disc.row(WHOLE, &tombstone).expect("small"))),
            ("apart", hex(disc.row(APART, &head).expect("small"))),
            ("meta", hex(postcard::to_stdvec(&meta).expect("small"))),
        ];
        let text: String = rows.iter().map(|(name, hex)| format!("{name} {hex}\n")).collect();
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/golden/rows");
        if std::env::var_os("GOLDEN").is_some_and(|v| v == "write") {
            std::fs::write(path, &text).expect("written");
        }
        assert_eq!(std::fs::read_to_string(path).expect("there"), text);
        // And they are read as what they were.
        let bytes = |hex: &str| -> Vec<u8> {
            (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).expect("hex")).collect()
        };
        assert_eq!(disc.kept(&bytes(&rows[0].1)).expect("read"), Kept::from(whole));
        assert_eq!(disc.kept(&bytes(&rows[1].1)).expect("read"), Kept::from(tombstone));
        assert_eq!(disc.kept(&bytes(&rows[2].1)).expect("read"), Kept::on_disc(version, Hlc(9), None, 1234));
        assert_eq!(postcard::from_bytes::<Meta>(&bytes(&rows[3].1)).expect("read"), meta);
    }
}
