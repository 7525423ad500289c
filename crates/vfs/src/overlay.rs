//! What this mount has acknowledged and the tables do not have yet: operations in their order, and what reads show of them.
//!
//! No clock, no table, no task: [`crate::delegate`] has those.

use crate::fs::Ino;
use crate::record;
use base::{BranchId, Hlc, NodeId, Version};
use bytes::Bytes;
use client::{Batch, Bump, Check, Range, Record, Rows, Space, Write};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::Bound;

/// How many operations one batch carries, at most.
const OPS_MAX: usize = 64;
/// And how many bytes, unless one operation alone has more.
const BYTES_MAX: usize = 1024 * 1024;
/// And how many checks and writes.
const ITEMS_MAX: usize = 2048;
/// How many operations may wait, and how many bytes.
const WAITING_OPS_MAX: usize = 1024;
const WAITING_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Of how many writes it is remembered what version they got.
const REAL_MAX: usize = 65_536;
/// Whose branch it is that acknowledged writes are of until they have landed: no node has this number.
const NOBODY: NodeId = NodeId(u64::MAX);

/// The version of a write that has not landed.
fn early(seq: u64) -> Version {
    Version { branch: BranchId { node: NOBODY, n: 0 }, seq }
}

/// Is it of a write that had not landed when it was read?
pub(crate) fn is_early(version: Version) -> bool {
    version.branch.node == NOBODY
}

/// One acknowledged operation.
#[derive(Clone, Debug)]
pub(crate) struct Op {
    pub seq: u64,
    pub checks: Vec<Check>,
    pub writes: Vec<Write>,
}

impl Op {
    fn bytes(&self) -> usize {
        self.writes.iter().map(size_of).sum()
    }

    /// Does it change anything of this inode?
    pub(crate) fn is_of(&self, ino: Ino) -> bool {
        self.writes.iter().any(|w| record::ino_of(w.key()) == ino)
    }
}

fn size_of(write: &Write) -> usize {
    match write {
        Write::Put { key, value, .. } => key.len() + value.len(),
        other => other.key().len(),
    }
}

/// Some operations as one batch.
#[derive(Clone, Debug)]
pub(crate) struct Folded {
    /// The last of them.
    pub upto: u64,
    pub checks: Vec<Check>,
    pub writes: Vec<Write>,
    /// All keys, each as often as it was begun.
    pub keys: Vec<Bytes>,
    /// Of commits of bytes, which operation was the last of the inode.
    pub commits: Vec<(u64, Version)>,
}

/// The newest change of a key.
#[derive(Clone, Debug)]
struct Change {
    seq: u64,
    what: What,
}

#[derive(Clone, Debug)]
enum What {
    Put(Bytes),
    Gone,
    /// Field by field the greater of these and what is there.
    Max(Vec<u64>),
}

/// Acknowledged operations that have not landed.
#[derive(Default)]
pub(crate) struct Overlay {
    ops: VecDeque<Op>,
    keys: BTreeMap<Bytes, Change>,
    bytes: usize,
    last: u64,
    /// Counted up whenever something lands: what was read of the tables before may lack it.
    epoch: u64,
    /// What version writes got that have landed: the last of each key in its batch. One that another of the batch wrote over was never
    /// anybody's.
    real: HashMap<(Bytes, u64), Version>,
    order: VecDeque<(Bytes, u64)>,
}

impl Overlay {
    pub(crate) fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The last operation that was acknowledged, and the last of those that have landed.
    pub(crate) fn last(&self) -> u64 {
        self.last
    }

    pub(crate) fn landed(&self) -> u64 {
        self.ops.front().map_or(self.last, |op| op.seq - 1)
    }

    /// How many operations have not landed.
    pub(crate) fn waiting(&self) -> usize {
        self.ops.len()
    }

    /// Must whoever comes wait?
    pub(crate) fn is_full(&self) -> bool {
        self.ops.len() >= WAITING_OPS_MAX || self.bytes >= WAITING_BYTES_MAX
    }

    /// Has any operation that has not landed to do with this inode?
    pub(crate) fn touches(&self, ino: Ino) -> bool {
        let own = Bytes::copy_from_slice(&ino.to_be_bytes());
        let of_it = self.keys.range(own.clone()..).next().is_some_and(|(key, _)| key.starts_with(&own));
        of_it || self.keys.contains_key(&record::orphan(ino))
    }

    /// Is there enough for a batch?
    pub(crate) fn is_ripe(&self) -> bool {
        self.ops.len() >= OPS_MAX || self.bytes >= BYTES_MAX
    }

    /// What the version of a key is by now.
    pub(crate) fn real(&self, key: &Bytes, version: Version) -> Version {
        let landed = || self.real.get(&(key.clone(), version.seq)).copied();
        if is_early(version) { landed().unwrap_or(version) } else { version }
    }

    /// The same of a check.
    pub(crate) fn real_check(&self, check: &Check) -> Check {
        match check {
            Check::AtVersion(key, version) => Check::AtVersion(key.clone(), self.real(key, *version)),
            other => other.clone(),
        }
    }

    /// Acknowledges an operation. Returns the version that its writes have until they land.
    pub(crate) fn push(&mut self, checks: Vec<Check>, writes: Vec<Write>) -> Version {
        self.last += 1;
        let op = Op { seq: self.last, checks, writes };
        for write in &op.writes {
            let before = self.keys.get(write.key()).map(|c| &c.what);
            if let Some(what) = after(before, write) {
                self.keys.insert(write.key().clone(), Change { seq: op.seq, what });
            }
        }
        self.bytes += op.bytes();
        self.ops.push_back(op);
        early(self.last)
    }

    /// The same range with so many rows more as reads must not show.
    pub(crate) fn widened(&self, range: &Range) -> Range {
        let hidden = match range.space {
            Space::User if !self.keys.is_empty() => {
                let gone = |(_, change): &(&Bytes, &Change)| matches!(change.what, What::Gone);
                self.changes(&range.from, range.to.as_ref()).filter(gone).count() as u32
            }
            _ => 0,
        };
        Range { limit: range.limit.saturating_add(hidden), ..range.clone() }
    }

    fn changes(&self, from: &Bytes, to: Option<&Bytes>) -> impl Iterator<Item = (&Bytes, &Change)> {
        let nothing = to.is_some_and(|to| to <= from);
        let to = to.filter(|_| !nothing).map_or(Bound::Unbounded, Bound::Excluded);
        self.keys.range::<Bytes, _>((Bound::Included(from), to)).filter(move |_| !nothing)
    }

    /// Rows of the tables as they are with what was acknowledged.
    pub(crate) fn merge(&self, range: &Range, rows: Rows) -> Rows {
        if range.space != Space::User || self.changes(&range.from, range.to.as_ref()).next().is_none() {
            return rows;
        }
        let end = rows.rows.last().filter(|_| rows.more).map(|(key, _)| [&key[..], &[0]].concat().into());
        let mut out: BTreeMap<Bytes, Record> = rows.rows.into_iter().collect();
        for (key, change) in self.changes(&range.from, end.as_ref().or(range.to.as_ref())) {
            let value = match &change.what {
                What::Put(value) => value.clone(),
                What::Gone => {
                    out.remove(key);
                    continue;
                }
                What::Max(fields) => greater(out.get(key).and_then(|r| r.value.as_ref()), fields),
            };
            // It is later than all there is.
            let (version, hlc) = (early(change.seq), Hlc(u64::MAX));
            out.insert(key.clone(), Record { version, hlc, expires: None, value: Some(value) });
        }
        let more = rows.more || out.len() > range.limit as usize;
        Rows { rows: out.into_iter().take(range.limit as usize).collect(), more }
    }

    /// The next operations as one batch. What an earlier one of them wrote is not checked again: it was when it was acknowledged.
    pub(crate) fn fold(&self) -> Option<Folded> {
        let (mut count, mut bytes, mut items) = (0, 0, 0);
        for op in self.ops.iter().take(OPS_MAX) {
            bytes += op.bytes();
            items += op.checks.len() + op.writes.len();
            if count > 0 && (bytes > BYTES_MAX || items > ITEMS_MAX) {
                break;
            }
            count += 1;
        }
        self.fold_some(count)
    }

    /// The next operation alone.
    pub(crate) fn fold_one(&self) -> Option<Folded> {
        self.fold_some(1)
    }

    fn fold_some(&self, count: usize) -> Option<Folded> {
        let mut changes: BTreeMap<Bytes, (u64, What)> = BTreeMap::new();
        let (mut checks, mut seen) = (Vec::new(), BTreeSet::new());
        let (mut keys, mut upto) = (Vec::new(), None);
        for op in self.ops.iter().take(count) {
            for check in &op.checks {
                let own = match check {
                    Check::Count(prefix, _) => {
                        changes.range(prefix.clone()..).next().is_some_and(|(key, _)| key.starts_with(prefix))
                    }
                    Check::Absent(key) | Check::Present(key) | Check::AtVersion(key, _) => changes.contains_key(key),
                };
                let check = self.real_check(check);
                if !own && seen.insert(record::encode(&check)) {
                    checks.push(check);
                }
            }
            for write in &op.writes {
                if let Some(what) = after(changes.get(write.key()).map(|(_, what)| what), write) {
                    changes.insert(write.key().clone(), (op.seq, what));
                }
                keys.push(write.key().clone());
            }
            upto = Some(op.seq);
        }
        let is_commit = |key: &Bytes| key.get(8) == Some(&b'C') && record::ino_of(key) != 0;
        let commit = |(key, (seq, _)): (&Bytes, &(u64, What))| (record::ino_of(key), early(*seq));
        let commits = changes.iter().filter(|(key, _)| is_commit(key)).map(commit).collect();
        let write = |(key, (_, what)): (Bytes, (u64, What))| match what {
            What::Put(value) => Write::Put { key, value, ttl_ms: None },
            What::Gone => Write::Delete { key },
            What::Max(fields) => Write::Bump { key, by: Bump::Max, fields },
        };
        Some(Folded { upto: upto?, checks, writes: changes.into_iter().map(write).collect(), keys, commits })
    }

    /// All operations up to that one are in the tables, with this version. 0: none; something else of this mount is.
    pub(crate) fn land(&mut self, upto: u64, version: Version) {
        self.end(upto, Some(version));
    }

    /// The next operation will never be.
    pub(crate) fn lose(&mut self) -> Option<Op> {
        let op = self.ops.front()?.clone();
        self.end(op.seq, None);
        Some(op)
    }

    fn end(&mut self, upto: u64, version: Option<Version>) {
        let mut last: HashMap<Bytes, u64> = HashMap::new();
        while self.ops.front().is_some_and(|op| op.seq <= upto)
            && let Some(op) = self.ops.pop_front()
        {
            self.bytes -= op.bytes();
            for write in op.writes {
                let key = write.key();
                if self.keys.get(key).is_some_and(|change| change.seq <= upto) {
                    self.keys.remove(key);
                }
                last.insert(key.clone(), op.seq);
            }
        }
        self.epoch += 1;
        let Some(version) = version else { return };
        for written in last {
            self.real.insert(written.clone(), version);
            self.order.push_back(written);
        }
        while self.order.len() > REAL_MAX
            && let Some(old) = self.order.pop_front()
        {
            self.real.remove(&old);
        }
    }
}

/// What one more write makes of a change; `None`: it is none that can be acknowledged early.
fn after(before: Option<&What>, write: &Write) -> Option<What> {
    match (write, before) {
        (Write::Put { value, .. }, _) => Some(What::Put(value.clone())),
        (Write::Delete { .. }, _) => Some(What::Gone),
        (Write::Bump { by: Bump::Max, fields, .. }, None) => Some(What::Max(fields.clone())),
        (Write::Bump { by: Bump::Max, fields, .. }, Some(What::Max(more))) => {
            Some(What::Max(fields.iter().zip(more).map(|(a, b)| *a.max(b)).collect()))
        }
        (Write::Bump { by: Bump::Max, fields, .. }, Some(What::Put(value))) => {
            Some(What::Put(greater(Some(value), fields)))
        }
        (Write::Bump { by: Bump::Max, fields, .. }, Some(What::Gone)) => Some(What::Put(greater(None, fields))),
        _ => None,
    }
}

/// Field by field the greater.
fn greater(value: Option<&Bytes>, fields: &[u64]) -> Bytes {
    let there = |n: usize| {
        let bytes = value?.get(8 * n..8 * n + 8)?;
        Some(u64::from_be_bytes(bytes.try_into().ok()?))
    };
    let field = |(n, field): (usize, &u64)| there(n).unwrap_or(0).max(*field).to_be_bytes();
    fields.iter().enumerate().flat_map(field).collect::<Vec<u8>>().into()
}

/// Is it too large to wait?
pub(crate) fn is_large(batch: &Batch) -> bool {
    let bytes: usize = batch.writes.iter().map(size_of).sum();
    bytes > BYTES_MAX || batch.checks.len() + batch.writes.len() > ITEMS_MAX || batch.validate().is_err()
}

/// What must be read to know whether a check holds.
pub(crate) fn range_of(check: &Check) -> Range {
    match check {
        Check::Absent(key) | Check::Present(key) | Check::AtVersion(key, _) => Range::key(key.clone()),
        Check::Count(prefix, count) => Range::prefix(prefix.clone(), count.saturating_add(1)),
    }
}

/// Does it hold, of what was read for it?
pub(crate) fn holds(check: &Check, rows: &Rows) -> bool {
    match check {
        Check::Absent(_) => rows.rows.is_empty(),
        Check::Present(_) => !rows.rows.is_empty(),
        Check::AtVersion(_, version) => rows.rows.first().is_some_and(|(_, row)| row.version == *version),
        Check::Count(_, count) => rows.rows.len() == *count as usize && !rows.more,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::put;

    fn key(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    fn write(text: &'static str, value: &'static str) -> Write {
        put(key(text), key(value))
    }

    fn version(seq: u64) -> Version {
        Version { branch: BranchId { node: NodeId(1), n: 1 }, seq }
    }

    fn row(text: &'static str, value: &'static str) -> (Bytes, Record) {
        (key(text), Record { version: version(1), hlc: Hlc(1), expires: None, value: Some(key(value)) })
    }

    fn shown(overlay: &Overlay, range: &Range, rows: Vec<(Bytes, Record)>) -> String {
        let wide = overlay.widened(range);
        let rows =
            Rows { more: rows.len() > wide.limit as usize, rows: rows.into_iter().take(wide.limit as usize).collect() };
        let merged = overlay.merge(range, rows);
        let text = |b: &Bytes| String::from_utf8_lossy(b).into_owned();
        let one = |(k, r): &(Bytes, Record)| format!("{}={}", text(k), r.value.as_ref().map(text).unwrap_or_default());
        let all: Vec<String> = merged.rows.iter().map(one).collect();
        format!("{}{}", all.join(" "), if merged.more { " more" } else { "" })
    }

    #[test]
    fn reads_show_what_was_acknowledged() {
        let mut overlay = Overlay::default();
        overlay.push(Vec::new(), vec![write("b", "new"), Write::Delete { key: key("c") }]);
        let there = || vec![row("a", "1"), row("b", "2"), row("c", "3"), row("d", "4")];
        let all = Range { space: Space::User, from: key("a"), to: None, limit: 10 };
        assert_eq!(shown(&overlay, &all, there()), "a=1 b=new d=4");
        assert_eq!(shown(&overlay, &Range { limit: 3, ..all.clone() }, there()), "a=1 b=new d=4");
        assert_eq!(shown(&overlay, &Range { limit: 2, ..all.clone() }, there()), "a=1 b=new more");
        assert_eq!(shown(&overlay, &Range { to: Some(key("b")), ..all.clone() }, there()[..1].to_vec()), "a=1");
        assert_eq!(shown(&overlay, &Range::key(key("c")), there()[2..3].to_vec()), "");
        assert_eq!(shown(&overlay, &all, Vec::new()), "b=new");
    }

    #[test]
    fn what_is_raised_is_never_lowered() {
        let bump = |n| Write::Bump { key: key("t"), by: Bump::Max, fields: vec![n, n] };
        let value = |overlay: &Overlay, there: u64| {
            let bytes: Bytes = [there.to_be_bytes(), there.to_be_bytes()].concat().into();
            let record = Record { version: version(1), hlc: Hlc(1), expires: None, value: Some(bytes) };
            let rows = Rows { rows: vec![(key("t"), record)], more: false };
            overlay.merge(&Range::key(key("t")), rows).rows[0].1.value.clone().expect("a value")[7]
        };
        let mut overlay = Overlay::default();
        overlay.push(Vec::new(), vec![bump(5)]);
        overlay.push(Vec::new(), vec![bump(3)]);
        assert_eq!((value(&overlay, 4), value(&overlay, 9)), (5, 9));
        assert_eq!(overlay.fold().expect("some").writes, [bump(5)]);
        overlay.push(Vec::new(), vec![put(key("t"), greater(None, &[1, 1])), bump(2)]);
        assert_eq!(value(&overlay, 9), 2, "it was set since");
    }

    #[test]
    fn a_batch_checks_only_what_it_did_not_write_itself() {
        let mut overlay = Overlay::default();
        let first = overlay.push(vec![Check::Absent(key("a"))], vec![write("a", "1")]);
        let second =
            overlay.push(vec![Check::AtVersion(key("a"), first), Check::Present(key("x"))], vec![write("a", "2")]);
        overlay.push(vec![Check::Count(key("a"), 1), Check::Count(key("y"), 0)], vec![write("b", "3")]);
        let folded = overlay.fold().expect("some");
        assert_eq!(folded.checks, [Check::Absent(key("a")), Check::Present(key("x")), Check::Count(key("y"), 0)]);
        assert_eq!(folded.writes, [write("a", "2"), write("b", "3")]);
        overlay.land(folded.upto, version(7));
        assert!(overlay.is_empty() && overlay.landed() == 3);
        // What another operation of the batch wrote over was never in the table.
        assert_eq!(overlay.real(&key("a"), second), version(7));
        assert!(is_early(overlay.real(&key("a"), first)));
        overlay.push(vec![Check::AtVersion(key("a"), second)], vec![write("a", "4")]);
        assert_eq!(overlay.fold().expect("some").checks, [Check::AtVersion(key("a"), version(7))]);
    }

    #[test]
    fn what_is_lost_leaves_what_came_after_it() {
        let mut overlay = Overlay::default();
        overlay.push(Vec::new(), vec![write("a", "1"), write("b", "1")]);
        overlay.push(Vec::new(), vec![write("b", "2")]);
        assert_eq!(overlay.lose().map(|op| op.seq), Some(1));
        let all = Range { space: Space::User, from: key("a"), to: None, limit: 10 };
        assert_eq!(shown(&overlay, &all, Vec::new()), "b=2");
        assert_eq!((overlay.landed(), overlay.waiting()), (1, 1));
    }

    #[test]
    fn no_batch_is_too_large() {
        let mut overlay = Overlay::default();
        for _ in 0..3 {
            overlay.push(Vec::new(), vec![put(key("a"), vec![1; BYTES_MAX * 2 / 3].into())]);
        }
        assert_eq!(overlay.fold().map(|f| f.upto), Some(1));
        assert!(overlay.is_ripe() && !overlay.is_full());
        for _ in 0..WAITING_OPS_MAX {
            overlay.push(Vec::new(), vec![write("b", "1")]);
        }
        assert!(overlay.is_full());
        overlay.land(3, version(1));
        assert_eq!(overlay.fold().map(|f| f.upto), Some(3 + OPS_MAX as u64));
    }
}
