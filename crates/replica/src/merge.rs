use crate::forget::Floor;
use crate::kept::{Kept, is_apart};
use crate::key::{self, Space};
use crate::open::Pulled;
use crate::record::Record;
use crate::store::Store;
use base::{Ballot, BranchId, Heads, Hlc, Version};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// What a true conflict of two values becomes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum MergeRule {
    /// The greater (Hlc, version) stays.
    #[default]
    Latest,
    /// Field by field the greater: values are big-endian 64-bit fields of equal number, else `Latest`.
    Max,
}

/// A table's rules: one, or by the kind of key, told by one byte at an offset.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct MergePolicy {
    /// For all keys that no exception names.
    pub default: MergeRule,
    /// (offset in the key, byte found there, rule).
    pub exceptions: Vec<(u16, u8, MergeRule)>,
}

impl MergePolicy {
    fn rule(&self, user_key: &[u8]) -> MergeRule {
        let matches = |(at, byte, _): &&(u16, u8, MergeRule)| user_key.get(usize::from(*at)) == Some(byte);
        self.exceptions.iter().find(matches).map_or(self.default, |(_, _, rule)| *rule)
    }
}

/// Reads a value as big-endian 64-bit fields.
pub(crate) fn fields(value: &[u8]) -> Option<Vec<u64>> {
    let (chunks, rest) = value.as_chunks::<8>();
    rest.is_empty().then(|| chunks.iter().map(|c| u64::from_be_bytes(*c)).collect())
}

/// The inverse of [`fields`].
pub(crate) fn unfields(fields: impl IntoIterator<Item = u64>) -> Bytes {
    fields.into_iter().flat_map(u64::to_be_bytes).collect()
}

/// What an opening takes from the copies it pulled, on top of what it has: nothing is changed until the whole of it goes
/// to the store in one batch.
pub(crate) struct Merge<'a> {
    store: &'a Store,
    policy: &'a MergePolicy,
    /// Version of what the merge itself writes: the opening entry's.
    version: Version,
    hlc: Hlc,
    heads: Heads,
    puts: BTreeMap<Bytes, Record>,
    /// Keys whose records were deleted, and are forgotten elsewhere.
    drops: BTreeSet<Bytes>,
    /// Of records that this merge made, by key: what they were made of, and what of it stands in them unchanged, and is lost
    /// only if they lose.
    made: BTreeMap<Bytes, (Vec<Version>, Vec<Record>)>,
    pub conflicts: u64,
    pub taken: u64,
    /// Where every opening takes a majority: a conflict goes to the side that was opened last, for only that can hold what a
    /// majority acknowledged. The ballots of all branches, and, of keys that were taken over, that of their side.
    ballots: Option<BTreeMap<BranchId, Ballot>>,
    sides: BTreeMap<Bytes, Ballot>,
    pub no_ledger: bool,
    pub false_conflicts: bool,
}

impl<'a> Merge<'a> {
    pub(crate) fn new(store: &'a Store, policy: &'a MergePolicy, version: Version, hlc: Hlc) -> Self {
        let heads = store.heads().clone();
        let (puts, made) = (BTreeMap::new(), BTreeMap::new());
        Merge {
            store,
            policy,
            version,
            hlc,
            heads,
            puts,
            drops: BTreeSet::new(),
            made,
            conflicts: 0,
            taken: 0,
            ballots: None,
            sides: BTreeMap::new(),
            no_ledger: false,
            false_conflicts: false,
        }
    }

    /// What loses is not written down: somebody else has done so.
    pub(crate) fn keeps_no_ledger(&mut self) {
        self.no_ledger = true;
    }

    /// From here on conflicts go by the ballots of the sides.
    pub(crate) fn by_ballot(&mut self) {
        let rows = self.store.own_space(Space::Branch);
        self.ballots = Some(rows.filter_map(|(key, record)| key::branch_opened(key, record)).collect());
    }

    /// The highest ballot of the branches that a side holds.
    fn side(&self, heads: &Heads) -> Ballot {
        let ballots = self.ballots.iter();
        ballots.flat_map(|all| heads.iter().filter_map(|v| all.get(&v.branch))).max().copied().unwrap_or_default()
    }

    /// Folds in what a copy with these heads had beyond those I had told it of.
    pub(crate) fn fold(&mut self, Pulled { heads, records, whole, .. }: Pulled) {
        let theirs = &heads;
        if whole {
            self.drop_forgotten(theirs, &records);
        }
        if let Some(ballots) = &mut self.ballots {
            ballots.extend(records.iter().filter_map(|(key, record)| key::branch_opened(key, record)));
        }
        let side = self.side(theirs);
        for (key, record) in records {
            self.one((theirs, side), key, record);
        }
        self.heads.join(theirs);
    }

    /// What they knew and have not got any more was deleted, and is forgotten there.
    fn drop_forgotten(&mut self, theirs: &Heads, records: &[(Bytes, Record)]) {
        let there: BTreeSet<&Bytes> = records.iter().map(|(key, _)| key).collect();
        let forgotten = |key: &Bytes, version| is_apart(key) && theirs.covers(version) && !there.contains(key);
        let gone = self.store.all().filter(|(key, kept)| forgotten(key, kept.version())).map(|(key, _)| key.clone());
        self.drops.extend(gone);
        self.puts.retain(|key, record| !forgotten(key, record.version));
    }

    /// Knowledge decides; only where neither side knew the other's write is there a conflict.
    fn one(&mut self, (theirs, side): (&Heads, Ballot), key: Bytes, r: Record) {
        let seen = self.heads.covers(r.version);
        let put = self.puts.get(&key);
        let kept = if self.drops.contains(&key) { None } else { self.store.get(&key) };
        let Some(mine) = put.map(|m| m.version).or(kept.map(Kept::version)) else {
            if !seen {
                self.take(side, key, r);
            }
            return;
        };
        if mine == r.version {
            return;
        }
        let known = if mine == self.version {
            // They know a record of this merge if they know all that it was made of.
            self.made.get(&key).is_some_and(|(of, _)| of.iter().all(|version| theirs.covers(*version)))
        } else {
            theirs.covers(mine)
        };
        if seen && !self.false_conflicts {
        } else if known && !self.false_conflicts {
            self.take(side, key, r);
        } else if let Some(m) = put.cloned().or_else(|| self.store.find(&key)) {
            self.conflict((theirs, side), key, m, r);
        }
    }

    fn take(&mut self, side: Ballot, key: Bytes, r: Record) {
        if self.ballots.is_some() {
            self.sides.insert(key.clone(), side);
        }
        if r.version != self.version {
            self.made.remove(&key);
        }
        self.taken += 1;
        self.puts.insert(key, r);
    }

    fn conflict(&mut self, (theirs, side): (&Heads, Ballot), key: Bytes, m: Record, r: Record) {
        match key::space_of(&key) {
            Some(Space::User) => {}
            // The opening entry writes its own set.
            Some(Space::Set) => return,
            Some(Space::Floor) => {
                let floor = |x: &Record| x.value.as_ref().and_then(|v| key::decode::<Floor>(v)).unwrap_or_default();
                let value = Some(key::encode(&floor(&m).joined(&floor(&r))));
                let both = Record { version: self.version, hlc: self.hlc, expires: None, value };
                return self.take(side, key, both);
            }
            Some(Space::Session) => {
                let done = |x: &Record| (x.value.as_ref().and_then(|v| key::decode::<u64>(v)).unwrap_or(0), x.version);
                return if done(&r) > done(&m) {
                    self.take(side, key, r)
                };
            }
            _ => {
                return if r.rank() > m.rank() {
                    self.take(side, key, r)
                };
            }
        }
        let mine = self.sides.get(&key).copied().unwrap_or_else(|| self.side(self.store.heads()));
        let take = (side, r.rank()) > (mine, m.rank());
        let (winner, loser) = if take { (r, m) } else { (m, r) };
        if winner.value == loser.value && winner.expires == loser.expires {
            return if take {
                self.take(side, key, winner)
            };
        }
        self.conflicts += 1;
        if let Some((_, within)) = self.made.get_mut(&key) {
            // What the other write replaced knowingly is not lost to it.
            within.retain(|x| !theirs.covers(x.version));
        }
        if self.policy.rule(&key[1..]) == MergeRule::Max
            && let Some(value) = field_max(&winner, &loser)
        {
            // Values that stand in the result unchanged have lost nothing.
            let (stand, lost): (Vec<_>, Vec<_>) =
                [&winner, &loser].into_iter().partition(|x| x.value.as_ref() == Some(&value));
            lost.iter().for_each(|x| self.lose(&key, x));
            let (of, within) = self.made.entry(key.clone()).or_default();
            of.extend([winner.version, loser.version].iter().filter(|version| **version != self.version));
            within.extend(stand.into_iter().filter(|x| x.version != self.version).cloned());
            let merged = Record { version: self.version, hlc: self.hlc, value: Some(value), ..winner };
            return self.take(side, key, merged);
        }
        self.lose(&key, &loser);
        if take {
            self.take(side, key, winner);
        }
    }

    /// The ledger row of a losing record: a pure function of that record, but for the version that carries it.
    fn lose(&mut self, key: &Bytes, loser: &Record) {
        if self.no_ledger {
            return;
        }
        if loser.version == self.version {
            // Made by this very merge, and never anybody's value; but it stood for values that were.
            let stood = self.made.get_mut(key).map(|(_, within)| std::mem::take(within));
            return stood.unwrap_or_default().iter().for_each(|x| self.lose(key, x));
        }
        let value = Some(key::encode(loser));
        let row = Record { version: self.version, hlc: loser.hlc, expires: None, value };
        self.puts.insert(key::ledger(&key[1..], loser.version), row);
    }

    /// The union of all heads, the records to put, and the keys whose records go.
    pub(crate) fn finish(self) -> (Heads, BTreeMap<Bytes, Record>, Vec<Bytes>) {
        let drops = self.drops.into_iter().filter(|key| !self.puts.contains_key(key)).collect();
        (self.heads, self.puts, drops)
    }
}

fn field_max(a: &Record, b: &Record) -> Option<Bytes> {
    let (a, b) = (fields(a.value.as_ref()?)?, fields(b.value.as_ref()?)?);
    (a.len() == b.len()).then(|| unfields(a.into_iter().zip(b).map(|(x, y)| x.max(y))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::{BranchId, NodeId};
    use proptest::prelude::*;

    fn version(node: u64, seq: u64) -> Version {
        Version { branch: BranchId { node: NodeId(node), n: 1 }, seq }
    }

    fn side(node: u64, writes: &[(u8, u64, u64)]) -> Store {
        let mut store = Store::default();
        for (seq, (key, hlc, value)) in (1..).zip(writes) {
            let value = Some(unfields([*value, 9 - (*value).min(9)]));
            let record = Record { version: version(node, seq), hlc: Hlc(*hlc), expires: None, value };
            store.apply(vec![version(node, seq)], vec![(key::user(&[*key]), record)]);
        }
        store
    }

    /// What `into` shows to users and keeps in its ledger after an opening that pulls all of `from`, versions of the
    /// merge's own writes aside.
    fn merged(into: &Store, from: &Store, rule: MergeRule) -> (Vec<(Bytes, Option<Bytes>)>, u64) {
        let policy = MergePolicy { default: rule, ..MergePolicy::default() };
        let mut merge = Merge::new(into, &policy, version(99, 1), Hlc(1 << 40));
        let (rows, _) = from.delta(into.heads(), from.heads(), None, usize::MAX).expect("all is in RAM");
        merge.fold(Pulled { heads: from.heads().clone(), records: rows, whole: false, staged: None });
        let conflicts = merge.conflicts;
        let (_, puts, _) = merge.finish();
        let mut all: BTreeMap<Bytes, Option<Bytes>> =
            into.all().filter_map(|(k, r)| Some((k.clone(), r.here()?.value.clone()))).collect();
        all.extend(puts.into_iter().map(|(k, r)| (k, r.value)));
        (all.into_iter().collect(), conflicts)
    }

    proptest! {
        #[test]
        fn a_merge_gives_the_same_whoever_does_it(
            a in proptest::collection::vec((0u8..4, 1u64..50, 0u64..10), 0..8),
            b in proptest::collection::vec((0u8..4, 1u64..50, 0u64..10), 0..8),
            max in any::<bool>(),
        ) {
            let rule = if max { MergeRule::Max } else { MergeRule::Latest };
            let (a, b) = (side(1, &a), side(2, &b));
            prop_assert_eq!(merged(&a, &b, rule), merged(&b, &a, rule));
        }
    }

    #[test]
    fn knowledge_beats_the_clock_and_makes_no_conflict() {
        // The other side overwrote what I hold, with a clock that runs behind.
        let mine = side(1, &[(1, 50, 5)]);
        let mut theirs = side(1, &[(1, 50, 5)]);
        let r = Record { version: version(2, 1), hlc: Hlc(10), expires: None, value: None };
        theirs.apply(vec![r.version], vec![(key::user(&[1]), r)]);
        let (rows, conflicts) = merged(&mine, &theirs, MergeRule::Latest);
        assert_eq!((rows, conflicts), (vec![(key::user(&[1]), None)], 0));
    }

    #[test]
    fn whoever_knows_what_a_merged_record_was_made_of_replaces_it() {
        // Three copies: mine, another island's, and one that has merged the two and written again.
        let (mine, other) = (side(1, &[(1, 50, 5)]), side(2, &[(1, 60, 6)]));
        let mut both = side(1, &[(1, 50, 5)]);
        let key = key::user(&[1]);
        let r = Record { version: version(3, 1), hlc: Hlc(70), expires: None, value: Some(unfields([7, 4])) };
        both.apply(vec![version(2, 1), r.version], vec![(key.clone(), r.clone())]);
        let policy = MergePolicy { default: MergeRule::Max, ..MergePolicy::default() };
        let mut merge = Merge::new(&mine, &policy, version(99, 1), Hlc(1 << 40));
        for from in [&other, &both] {
            let (records, _) = from.delta(mine.heads(), from.heads(), None, usize::MAX).expect("all is in RAM");
            merge.fold(Pulled { heads: from.heads().clone(), records, whole: false, staged: None });
        }
        let (_, puts, _) = merge.finish();
        assert_eq!(puts.get(&key), Some(&r));
        // 5 and 6 were a conflict; what came of it, and 7, are none.
        let ledger = puts.keys().filter(|k| key::space_of(k) == Some(Space::Ledger)).count();
        assert_eq!(ledger, 2, "both fields of 5|4 and 6|3 stood for something: {puts:?}");
    }

    #[test]
    fn the_loser_stands_in_the_ledger_whole() {
        let (a, b) = (side(1, &[(1, 50, 5)]), side(2, &[(1, 60, 6)]));
        let (rows, conflicts) = merged(&a, &b, MergeRule::Latest);
        assert_eq!(conflicts, 1);
        let (key, value) = rows.iter().find(|(k, _)| key::space_of(k) == Some(Space::Ledger)).expect("a row");
        let row = Record { version: version(9, 9), hlc: Hlc(1), expires: None, value: value.clone() };
        let row = key::ledger_row(key, &row).expect("readable");
        assert_eq!(row.key, Bytes::from_static(&[1]));
        assert_eq!(Some(row.lost), a.find(&key::user(&[1])));
    }
}
