use crate::batch::SessionId;
use crate::config::Storage;
use crate::forget::Floor;
use crate::kept::{Apart, Kept};
use crate::key::{self, Space};
use crate::record::{Meta, Record, Stage, WriteBatch};
use crate::table::{OVERHEAD, Table, is_users};
use crate::turn::Turn;
use base::{BranchId, Heads, Hlc, NodeId, Version, WallMs};
use bytes::Bytes;
use std::collections::btree_set::Range;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

/// The records of one copy, in RAM but for the values that are kept apart, and the index version -> keys from which deltas are cut.
///
/// Invariant H2: no record lies beyond the heads. H1: the heads hold the base of every branch they name.
#[derive(Default, Debug)]
pub struct Store {
    records: Table,
    index: Index,
    /// Users' keys that hold tombstones; and those of them that nobody asked for.
    graves: Index,
    cleared: Index,
    /// How far all has been forgotten.
    floor: Floor,
    /// Rows of the ledger, and their bytes.
    ledger: (u64, u64),
    expiring: BTreeSet<(WallMs, Bytes)>,
    /// What the sessions' records say: asked with every write.
    done: BTreeMap<SessionId, u64>,
    heads: Heads,
    /// Of the copy's own branches.
    line: u32,
    /// How often it has changed.
    edition: u64,
    /// Where values are read that are on disc only.
    pub(crate) apart: Option<Apart>,
    /// How records are kept; not known of those that were found on disc.
    pub(crate) form: Option<Storage>,
    /// Some are kept in another way still.
    pub(crate) mixed: bool,
    pub(crate) turn: Option<Turn>,
    /// The mark of the last batch that a copy before handed to the disc.
    pub(crate) handed: u64,
    /// And how often it had asked to join.
    pub(crate) sessions: u64,
}

/// Keys by the version of what they hold.
pub(crate) type Index = BTreeSet<(Version, Bytes)>;

/// A copy as found on disc.
pub struct Stored {
    /// Its durable words.
    pub meta: Meta,
    /// Its records.
    pub store: Store,
}

/// Where a delta goes on: the last record sent.
pub(crate) type Cursor = Option<(Version, Bytes)>;
/// Records of a delta, and where it goes on.
pub(crate) type Part = (Vec<(Bytes, Record)>, Cursor);

/// How many values one answer reads from the disc at most: that takes time, in which nothing else is done.
pub(crate) const FETCHES_MAX: usize = 256;

impl Store {
    /// An empty one; `seed` is of its hash tables, and changes nothing that can be seen.
    pub fn new(seed: u64) -> Store {
        Store { records: Table::new(seed), ..Store::default() }
    }

    /// An empty one, after a copy that has handed so many batches to the disc.
    pub fn handed_on(handed: u64) -> Store {
        Store { handed, ..Store::default() }
    }

    /// The mark of one more batch.
    pub fn hand_on(&mut self) -> u64 {
        self.handed += 1;
        self.handed
    }

    /// A copy as loaded from disc. Records beyond the heads (there are none unless the disc lied) are left out.
    pub fn load(seed: u64, heads: Heads, records: impl IntoIterator<Item = (Bytes, Kept)>) -> Store {
        let mut store = Store { heads, ..Store::new(seed) };
        for (key, record) in records {
            if store.heads.covers(record.version()) {
                store.put(key, record);
            }
        }
        store
    }

    /// Keeps users' keys in order, or finds them by hash only: then a range of them costs a walk over all.
    pub(crate) fn set_unordered(&mut self, unordered: bool) {
        self.records.set_unordered(unordered);
    }

    /// It is of a fragment with branches of this line.
    pub(crate) fn set_line(&mut self, line: u32) {
        self.line = line;
        self.floor = self.floor_of_rows();
        // A version of this program that knew of fewer reasons may have left some.
        self.sink(&mut WriteBatch::default());
    }

    fn floor_of_rows(&self) -> Floor {
        let floors = self.own_space(Space::Floor).map(|(key, record)| Floor::seen_from(self.line, key, record));
        floors.reduce(|floor, other| floor.joined(&other)).unwrap_or_default()
    }

    /// Can every value be read that is on disc?
    pub(crate) fn is_settled(&self) -> bool {
        self.apart.as_ref().is_none_or(Apart::is_settled)
    }

    /// Are values let go of?
    pub(crate) fn lets_go(&self) -> bool {
        self.apart.as_ref().is_some_and(|apart| apart.more)
    }

    /// Is this record's value one that is kept apart, where values are let go of?
    pub(crate) fn takes(&self, key: &[u8], record: &Record) -> bool {
        self.apart.as_ref().is_some_and(|apart| apart.takes(key, record))
    }

    /// A delta or a merge becomes true: the records that were staged, and on top of them `puts`; what is under `drops` goes.
    pub(crate) fn switch(
        &mut self,
        heads: &Heads,
        staged: Vec<(Bytes, Kept)>,
        mut puts: Vec<(Bytes, Record)>,
        mut drops: Vec<Bytes>,
    ) -> WriteBatch {
        let mut folds: Vec<_> = heads.folds().map(|last| (last, self.heads.fold(last))).collect();
        if !folds.is_empty() {
            // Of its own line they go when its floor says so, everywhere at the same place; others' floors are raised no more.
            let told = |key: &Bytes| {
                let branch = matches!(key::space_of(key), Some(Space::Branch | Space::Closed));
                key::branch_of(key).is_some_and(|b| branch && b.line() != self.line && self.heads.is_folded(b))
            };
            puts.retain(|(key, _)| !told(key));
            let rows = [Space::Branch, Space::Closed].into_iter().flat_map(|space| self.own_space(space));
            drops.extend(rows.map(|(key, _)| key).filter(|key| told(key)).cloned());
        }
        let drops: Vec<Bytes> = drops.into_iter().filter(|key| self.remove(key)).collect();
        let none = staged.is_empty();
        staged.into_iter().for_each(|(key, kept)| self.put(key, kept));
        let mut batch = self.apply(heads.iter().collect(), puts);
        if self.is_volatile() {
            batch.removes.extend(drops);
            return self.on_the_way(batch);
        }
        // The floor may be among the records, and higher: the last word on a node is the one that stays.
        folds.append(&mut batch.folds);
        batch.folds = folds;
        batch.removes.extend(drops);
        if let Some(apart) = self.apart.as_mut().filter(|_| !none) {
            apart.switched();
            batch.stage = Stage::Switch;
        }
        batch
    }

    /// All keys but these.
    pub(crate) fn all_but<'a>(&self, keys: impl Iterator<Item = &'a Bytes>) -> Vec<Bytes> {
        let keys: BTreeSet<&Bytes> = keys.collect();
        self.all().map(|(key, _)| key).filter(|key| !keys.contains(key)).cloned().collect()
    }

    /// Does a user's key live, or a value that lost a conflict, whose record is not among these?
    pub(crate) fn is_live_beyond(&self, known: &Heads, wall: WallMs) -> bool {
        let counts = |key: &&Bytes| matches!(key::space_of(key), Some(Space::User | Space::Ledger));
        let beyond = Beyond::new(&self.index, known, &self.heads, None).map(|(_, key)| key).filter(counts);
        beyond.filter_map(|key| self.records.get(key)).any(|kept| kept.is_live(wall))
    }

    /// Users' records that hold a value, in the order of the index: what went from its front is not passed over again.
    pub(crate) fn first_live(&self) -> impl Iterator<Item = (Bytes, Hlc)> {
        let users = self.index.iter().map(|(_, key)| key).filter(|key| is_users(key));
        let live = users.filter_map(|key| Some((key, self.records.get(key).filter(|kept| !kept.is_tombstone())?)));
        live.map(|(key, kept)| (key.clone(), kept.hlc()))
    }

    /// How far all has been forgotten.
    pub fn floor(&self) -> &Floor {
        &self.floor
    }

    /// Is there a tombstone, or a branch beside the one led, that could be forgotten?
    pub(crate) fn is_forgettable(&self, led: BranchId) -> bool {
        !self.graves.is_empty() || self.ended_branches(&self.heads, led).iter().any(|b| !self.heads.is_folded(*b))
    }

    /// How many tombstones there are that nobody asked for.
    pub(crate) fn cleared(&self) -> usize {
        self.cleared.len()
    }

    /// The oldest of them, of what `upto` covers.
    pub(crate) fn cleared_of<'a>(
        &'a self,
        none: &'a Heads,
        upto: &'a Heads,
    ) -> impl Iterator<Item = &'a (Version, Bytes)> {
        Beyond::new(&self.cleared, none, upto, None)
    }

    /// The oldest users' keys that hold tombstones of what `upto` covers, by version.
    pub(crate) fn graves<'a>(&'a self, have: &'a Heads, upto: &'a Heads) -> impl Iterator<Item = &'a (Version, Bytes)> {
        Beyond::new(&self.graves, have, upto, None)
    }

    /// The floor has moved: tombstones and branches go that it covers.
    fn sink(&mut self, batch: &mut WriteBatch) {
        let floor = self.floor.clone();
        let none = Heads::default();
        let graves = self.graves(&none, &floor.purged).chain(self.cleared_of(&none, &floor.cleared));
        let graves: Vec<Bytes> = graves.map(|(_, key)| key.clone()).collect();
        for last in floor.purged.folds() {
            batch.folds.push((last, self.heads.fold(last)));
        }
        batch.heads.retain(|v| !self.heads.is_folded(v.branch));
        let of_branches = [Space::Branch, Space::Closed].into_iter().flat_map(|space| self.own_space(space));
        let folded =
            of_branches.map(|(key, _)| key).filter(|k| key::branch_of(k).is_some_and(|b| floor.purged.is_folded(b)));
        let gone: Vec<Bytes> = folded.cloned().chain(graves).collect();
        batch.removes.extend(gone.into_iter().filter(|key| self.remove(key)));
    }

    /// Takes a record out without trace; was there one?
    fn remove(&mut self, key: &Bytes) -> bool {
        let Some(old) = self.records.remove(key) else { return false };
        let less = ledger_size(key, &old);
        self.ledger = (self.ledger.0 - less.0, self.ledger.1 - less.1);
        self.index.remove(&(old.version(), key.clone()));
        self.graves.remove(&(old.version(), key.clone()));
        self.cleared.remove(&(old.version(), key.clone()));
        if let Some(at) = old.expires() {
            self.expiring.remove(&(at, key.clone()));
        }
        true
    }

    /// Lets go of the values that are on disc by now; with `early`, of those that are not, too.
    pub(crate) fn let_go(&mut self, early: bool) {
        let Some(apart) = &mut self.apart else { return };
        while let Some((key, version)) = apart.next_written(early) {
            self.records.let_go(&key, version);
        }
    }

    /// Is there a record whose value cannot be read?
    pub(crate) fn is_lost(&self) -> bool {
        self.apart.as_ref().is_some_and(Apart::is_lost)
    }

    /// The whole of the record that is under this key; `None` where it is lost, or was staged and is not in its place yet: then
    /// nothing of this copy is durable yet, and nobody reads it.
    pub(crate) fn whole(&self, key: &[u8], kept: &Kept) -> Option<Record> {
        if let Some(record) = kept.here() {
            return Some(record.clone());
        }
        let apart = self.apart.as_ref()?;
        // In this order: what was not settled at first may be by the time that it is read.
        let settled = apart.is_settled();
        let record = apart.read(key, kept);
        if record.is_none() && settled {
            apart.lose();
        }
        record
    }

    /// The whole of what is under a stored key.
    pub fn find(&self, key: &[u8]) -> Option<Record> {
        self.whole(key, self.get(key)?)
    }

    /// A record of the copy's own, which are never kept apart.
    pub(crate) fn own(&self, key: &[u8]) -> Option<&Record> {
        self.get(key)?.here()
    }

    /// The copy's own records of one space, but that of outcomes.
    pub(crate) fn own_space(&self, space: Space) -> impl Iterator<Item = (&Bytes, &Record)> {
        self.space(space).filter_map(|(key, kept)| Some((key, kept.here()?)))
    }

    /// Grows with every change.
    pub fn edition(&self) -> u64 {
        self.edition
    }

    /// What is incorporated.
    pub fn heads(&self) -> &Heads {
        &self.heads
    }

    /// The record under a stored key (space included), tombstones too.
    pub fn get(&self, key: &[u8]) -> Option<&Kept> {
        self.records.get(key)
    }

    /// The record under a stored key, and that key.
    pub(crate) fn entry(&self, key: &[u8]) -> Option<(&Bytes, &Kept)> {
        self.records.entry(key)
    }

    /// All records of a range of stored keys, in order; outcomes are not among them.
    pub fn range(&self, from: Bound<&[u8]>, to: Bound<&[u8]>) -> impl Iterator<Item = (&Bytes, &Kept)> {
        self.records.range(from, to)
    }

    /// All records of one space, but that of outcomes.
    pub fn space(&self, space: Space) -> impl Iterator<Item = (&Bytes, &Kept)> {
        self.records.space(space)
    }

    /// Every record of every space.
    pub fn all(&self) -> impl Iterator<Item = (&Bytes, &Kept)> {
        self.records.all()
    }

    /// How many records, tombstones and internal ones included.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// How many users' records hold a value, expired ones included, and the bytes of their keys and values.
    pub fn live_size(&self) -> (u64, u64) {
        self.records.live_size()
    }

    /// The same as it counts for a bound: with what is kept beside each.
    pub fn held(&self) -> (u64, u64) {
        let (records, bytes) = self.live_size();
        (records, bytes + records * OVERHEAD)
    }

    /// The stamp of the oldest of the records that hold a value, going by the first of each branch.
    pub(crate) fn oldest(&self) -> Option<Hlc> {
        let (mut next, mut oldest) = (self.index.first(), None);
        while let Some((Version { branch, .. }, _)) = next {
            let within = |seq| (Version { branch: *branch, seq }, Bytes::new());
            let all = self.index.range(within(0)..within(u64::MAX));
            let mut held = all.filter(|(_, key)| is_users(key)).filter_map(|(_, key)| self.records.get(key));
            let first = held.find(|kept| !kept.is_tombstone()).map(Kept::hlc);
            oldest = [oldest, first].into_iter().flatten().min();
            next = self.index.range(within(u64::MAX)..).next();
        }
        oldest
    }

    /// Rows of the ledger, and their bytes.
    pub(crate) fn ledger_size(&self) -> (u64, u64) {
        self.ledger
    }

    /// No record at all?
    pub fn is_empty(&self) -> bool {
        self.records.len() == 0
    }

    /// Puts records and moves heads as one step; returns what the disc must do, finished outcomes removed.
    pub(crate) fn apply(&mut self, heads: Vec<Version>, puts: Vec<(Bytes, Record)>) -> WriteBatch {
        let mut batch = WriteBatch::default();
        self.edition += 1;
        for version in &heads {
            self.heads.add(*version);
        }
        batch.heads = heads;
        batch.apart = self.apart.as_mut().and_then(Apart::place);
        batch.gathered = self.mixed && !self.lets_go();
        let (mut sinks, unseen) = (false, self.is_volatile() && !self.is_turning());
        for (key, record) in puts {
            match key::space_of(&key) {
                Some(Space::Floor) => sinks |= key::line_of(&key) == self.line,
                Some(Space::Outcome) if self.is_finished(&key) => continue,
                Some(Space::Session) => self.forget_outcomes(&key, &record, &mut batch.removes),
                _ => {}
            }
            if !unseen {
                batch.puts.push((key.clone(), record.clone()));
            }
            if let Some(apart) = self.apart.as_mut().filter(|apart| apart.more && apart.takes(&key, &record)) {
                apart.came(key.clone(), record.version);
            }
            self.put(key, record.into());
        }
        if sinks {
            self.sink(&mut batch);
        }
        if self.is_volatile() {
            batch = self.on_the_way(batch);
        }
        if !batch.removes.is_empty() {
            // A batch never both puts and removes a key: the disc may do the two in either order.
            batch.puts.retain(|(key, _)| self.records.get(key).is_some());
        }
        batch
    }

    /// Keys by the version of what they hold.
    pub(crate) fn index(&self) -> &Index {
        &self.index
    }

    /// Is there a record of which this is true?
    pub(crate) fn is_any(&self, of: impl Fn(&Bytes, &Kept) -> bool) -> bool {
        self.records.is_any(of)
    }

    /// Keeps the same record in another way.
    pub(crate) fn replace(&mut self, key: Bytes, kept: Kept) {
        self.records.insert(key, kept);
    }

    fn put(&mut self, key: Bytes, record: Kept) {
        let (version, expires) = (record.version(), record.expires());
        self.index.insert((version, key.clone()));
        if let Some(session) = key::session_of(&key) {
            let said = record.here().and_then(|r| key::decode(r.value.as_ref()?));
            self.done.insert(session, said.unwrap_or(0));
        }
        let sinks = key.first() == Some(&(Space::Floor as u8));
        let grave = record.is_tombstone() && key::is_deletable(&key);
        let cleared = record.is_cleared();
        let more = ledger_size(&key, &record);
        self.ledger = (self.ledger.0 + more.0, self.ledger.1 + more.1);
        if let Some(old) = self.records.insert(key.clone(), record) {
            if let Some(at) = old.expires() {
                self.expiring.remove(&(at, key.clone()));
            }
            if old.version() != version {
                self.index.remove(&(old.version(), key.clone()));
            }
            let less = ledger_size(&key, &old);
            self.ledger = (self.ledger.0 - less.0, self.ledger.1 - less.1);
            if old.is_tombstone() {
                self.graves.remove(&(old.version(), key.clone()));
                self.cleared.remove(&(old.version(), key.clone()));
            }
        }
        if sinks {
            self.floor = self.floor_of_rows();
        }
        if cleared {
            self.cleared.insert((version, key.clone()));
        }
        if grave {
            self.graves.insert((version, key.clone()));
        }
        if let Some(at) = expires.filter(|_| !cleared) {
            self.expiring.insert((at, key));
        }
    }

    /// Up to `most` keys whose records have expired, with their stamps, the earliest first.
    pub(crate) fn expired(&self, wall: WallMs, most: usize) -> Vec<(Bytes, Hlc)> {
        let due = self.expiring.iter().take_while(|(at, _)| *at <= wall).take(most);
        due.filter_map(|(_, key)| Some((key.clone(), self.records.get(key)?.hlc()))).collect()
    }

    /// The number below which all requests of the session are finished.
    pub(crate) fn done_through(&self, session: SessionId) -> u64 {
        self.done.get(&session).copied().unwrap_or(0)
    }

    fn is_finished(&self, outcome_key: &Bytes) -> bool {
        key::outcome_of(outcome_key).is_some_and(|(session, number)| number < self.done_through(session))
    }

    /// A session's record makes the outcomes below it void, on every copy alike, however the two arrive.
    fn forget_outcomes(&mut self, session_key: &Bytes, record: &Record, removes: &mut Vec<Bytes>) {
        let Some(done): Option<u64> = record.value.as_ref().and_then(|v| key::decode(v)) else { return };
        let Some(session) = key::session_of(session_key) else { return };
        let gone: Vec<u64> = self.records.outcomes(session, done).collect();
        for number in gone {
            let key = key::outcome(session, number);
            if self.remove(&key) {
                removes.push(key);
            }
        }
    }

    /// Up to about `bytes` of the records that `upto` covers and `have` does not, in the order of their versions; `None`: a
    /// value cannot be read.
    pub(crate) fn delta(&self, have: &Heads, upto: &Heads, after: Cursor, bytes: usize) -> Option<Part> {
        self.delta_of(have, upto, after, bytes, |key, kept| self.whole(key, kept))
    }

    /// The same with an empty value in the place of each: nothing is read from the disc.
    pub(crate) fn bare_delta(&self, have: &Heads, upto: &Heads, after: Cursor, bytes: usize) -> Part {
        self.delta_of(have, upto, after, bytes, |_, kept| Some(kept.bare())).unwrap_or_default()
    }

    fn delta_of(
        &self,
        have: &Heads,
        upto: &Heads,
        after: Cursor,
        bytes: usize,
        whole: impl Fn(&Bytes, &Kept) -> Option<Record>,
    ) -> Option<Part> {
        let (mut out, mut size, mut fetched) = (Vec::new(), 0, 0);
        for (version, key) in Beyond::new(&self.index, have, upto, after) {
            let Some(kept) = self.records.get(key) else { continue };
            fetched += usize::from(kept.here().is_none());
            let record = whole(key, kept)?;
            size += record.weight(key);
            out.push((key.clone(), record));
            if size >= bytes || fetched >= FETCHES_MAX {
                return Some((out, Some((*version, key.clone()))));
            }
        }
        Some((out, None))
    }
}

/// One row of the ledger, if this is one.
fn ledger_size(key: &[u8], kept: &Kept) -> (u64, u64) {
    let value = kept.value_bytes().filter(|_| key.first() == Some(&(Space::Ledger as u8)));
    value.map_or((0, 0), |bytes| (1, (key.len() + bytes) as u64))
}

/// The entries of an index that `upto` covers and `have` does not, in order. Branches that are known already are leapt over.
pub(crate) struct Beyond<'a> {
    index: &'a Index,
    have: &'a Heads,
    upto: &'a Heads,
    range: Range<'a, (Version, Bytes)>,
    /// The branch that `range` is in, and the last of its entries that is wanted.
    branch: Option<(BranchId, u64)>,
}

impl<'a> Beyond<'a> {
    pub(crate) fn new(index: &'a Index, have: &'a Heads, upto: &'a Heads, after: Cursor) -> Beyond<'a> {
        let range = index.range((after.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded));
        Beyond { index, have, upto, range, branch: None }
    }

    fn leap(&mut self, to: Version) {
        self.range = self.index.range((Bound::Included((to, Bytes::new())), Bound::Unbounded));
    }
}

impl<'a> Iterator for Beyond<'a> {
    type Item = &'a (Version, Bytes);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let entry = self.range.next()?;
            let Version { branch, seq } = entry.0;
            let known = self.have.seq(branch);
            if self.branch.is_none_or(|(at, _)| at != branch) {
                self.branch = Some((branch, self.upto.seq(branch)));
            }
            let last = self.branch.map_or(0, |(_, last)| last);
            if known >= last || seq > last {
                let next = match branch.n.checked_add(1) {
                    Some(n) => BranchId { n, ..branch },
                    None => BranchId { node: NodeId(branch.node.0.checked_add(1)?), n: 0 },
                };
                self.leap(Version { branch: next, seq: 0 });
            } else if seq <= known {
                self.leap(Version { branch, seq: known + 1 });
            } else {
                return Some(entry);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::{BranchId, Hlc, NodeId};

    fn record(n: u64, seq: u64) -> Record {
        let version = Version { branch: BranchId { node: NodeId(n), n: 1 }, seq };
        Record { version, hlc: Hlc(seq), expires: None, value: Some(Bytes::from_static(b"v")) }
    }

    #[test]
    fn a_delta_in_small_chunks_is_exactly_what_is_missing() {
        let mut store = Store::default();
        for n in 1..4 {
            for seq in 1..6 {
                let r = record(n, seq);
                store.apply(vec![r.version], vec![(key::user(&[n as u8, seq as u8]), r)]);
            }
        }
        // One overwritten: its old version has left the index.
        let r = record(3, 6);
        store.apply(vec![r.version], vec![(key::user(&[1, 1]), r)]);
        let have: Heads = [record(1, 2).version, record(2, 5).version].into_iter().collect();
        let (upto, mut after, mut got) = (store.heads().clone(), None, Vec::new());
        loop {
            let (rows, next) = store.delta(&have, &upto, after, 1).expect("all is in RAM");
            got.extend(rows.into_iter().map(|(_, r)| r.version));
            after = next;
            if after.is_none() {
                break;
            }
        }
        let mut want: Vec<Version> = (3..6).map(|s| record(1, s).version).collect();
        want.extend((1..7).map(|s| record(3, s).version));
        assert_eq!(got, want);
    }

    #[test]
    fn a_session_that_is_done_takes_its_outcomes_along_in_either_order() {
        let id = crate::SessionId { node: NodeId(7), incarnation: 1 };
        let session = |done: u64, seq| (key::session(id), Record { value: Some(key::encode(&done)), ..record(1, seq) });
        let outcome = |number, seq| (key::outcome(id, number), record(1, seq));
        let mut a = Store::default();
        a.apply(vec![record(1, 3).version], vec![outcome(1, 1), outcome(2, 2), session(2, 3)]);
        let mut b = Store::default();
        b.apply(vec![record(1, 3).version], vec![session(2, 3), outcome(2, 2), outcome(1, 1)]);
        assert_eq!(a.len(), 2);
        assert!(a.all().eq(b.all()));
    }
}
