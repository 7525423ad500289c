use crate::dropped::Mark;
use crate::forget::Floor;
use crate::kept::Kept;
use crate::key::{self, Space};
use crate::ledger::Heal;
use crate::open::Pulled;
use crate::policy::{self, BranchInfo, Choice, Functions, MergePolicy, MergeRule};
use crate::record::Record;
use crate::state;
use crate::store::Store;
use base::{Ballot, BranchId, Heads, Hlc, KEY_BYTES_MAX, NodeId, Version, WallMs};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};

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
    /// The line of the copy.
    line: u32,
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
    by_side: bool,
    sides: BTreeMap<Bytes, Ballot>,
    /// All branches, where it matters in which island a record was written; of records that this merge made by that, the
    /// version of the one it took.
    branches: Option<BTreeMap<BranchId, BranchInfo>>,
    islands: BTreeMap<Bytes, Version>,
    /// The members, oldest first.
    by_age: Vec<NodeId>,
    functions: &'a Functions,
    foretold: bool,
    pub no_ledger: bool,
    pub false_conflicts: bool,
}

impl<'a> Merge<'a> {
    pub(crate) fn new(
        store: &'a Store,
        policy: &'a MergePolicy,
        functions: &'a Functions,
        version: Version,
        hlc: Hlc,
    ) -> Self {
        let heads = store.heads().clone();
        let (puts, made) = (BTreeMap::new(), BTreeMap::new());
        let mut merge = Merge {
            store,
            policy,
            version,
            hlc,
            line: version.branch.line(),
            heads,
            puts,
            drops: BTreeSet::new(),
            made,
            conflicts: 0,
            taken: 0,
            by_side: false,
            sides: BTreeMap::new(),
            branches: None,
            islands: BTreeMap::new(),
            by_age: Vec::new(),
            functions,
            foretold: false,
            no_ledger: false,
            false_conflicts: false,
        };
        if policy.asks_for_islands() {
            merge.tell_islands();
        }
        merge
    }

    /// From here on it is known in which island a record was written.
    fn tell_islands(&mut self) {
        let rows = self.store.own_space(Space::Branch);
        self.branches = Some(rows.filter_map(|(key, record)| key::branch_opened(key, record)).collect());
        let members = self.store.own_space(Space::Member);
        let mut ages: Vec<_> = members.filter_map(|(key, r)| Some((r.hlc, key::node_of_member(key)?))).collect();
        ages.sort_unstable();
        self.by_age = ages.into_iter().map(|(_, node)| node).collect();
    }

    /// Somebody else, a leader of this line, has decided, and what it decided in another way than by rank is told: what it began from may be
    /// newer than this.
    pub(crate) fn foretells(&mut self, line: u32) {
        (self.no_ledger, self.foretold, self.line) = (true, true, line);
    }

    /// From here on conflicts go by the ballots of the sides.
    pub(crate) fn by_ballot(&mut self) {
        self.by_side = true;
        self.tell_islands();
    }

    /// The highest ballot of the branches that a side holds.
    fn side(&self, heads: &Heads) -> Ballot {
        let branches = self.branches.iter().filter(|_| self.by_side);
        let ballots = branches.flat_map(|all| heads.iter().filter_map(|v| Some(all.get(&v.branch)?.0)));
        ballots.max().unwrap_or_default()
    }

    /// Folds in what a copy with these heads had beyond those I had told it of.
    pub(crate) fn fold(&mut self, Pulled { heads, records, whole, .. }: Pulled) {
        let theirs = &heads;
        if whole {
            self.drop_forgotten(theirs, &records);
        }
        if let Some(branches) = &mut self.branches {
            for (branch, info) in records.iter().filter_map(|(key, record)| key::branch_opened(key, record)) {
                // The one with more entries knows more of them.
                let known = branches.entry(branch).or_insert_with(|| info.clone());
                if known.1.len() < info.1.len() {
                    *known = info;
                }
            }
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
        let forgotten = |key: &Bytes, version| key::is_deletable(key) && theirs.covers(version) && !there.contains(key);
        let gone = self.store.all().filter(|(key, kept)| forgotten(key, kept.version())).map(|(key, _)| key.clone());
        self.drops.extend(gone);
        let (made, version) = (&self.made, self.version);
        self.puts.retain(|key, record| match made.get(key).filter(|_| record.version == version) {
            Some((of, _)) => !of.iter().all(|version| forgotten(key, *version)),
            None => !forgotten(key, record.version),
        });
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
        if self.by_side {
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
            Some(space @ (Space::Set | Space::Floor | Space::Dropped | Space::Heals)) => {
                return self.of_lines(side, space, key, m, r);
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
        // Which side an eviction was on says nothing: it stands for what it replaced.
        let cleared = m.is_cleared() || r.is_cleared();
        let take = (if cleared { mine } else { side }, r.rank()) > (mine, m.rank());
        if self.foretold {
            return if take {
                self.take(side, key, r)
            };
        }
        let gone = m.value.is_none() && r.value.is_none();
        let (winner, loser) = if take { (&r, &m) } else { (&m, &r) };
        if gone && winner.is_cleared() && !loser.is_cleared() {
            // Somebody wished it away, and is not to wait for less than that.
            let both = Record { version: self.version, expires: None, ..winner.clone() };
            return self.make(side, key, both, &m, &r);
        }
        if gone || (m.value == r.value && m.expires == r.expires) {
            return if take {
                self.take(side, key, r)
            };
        }
        if m.value == r.value {
            // The same, touched on both sides: it lives as long as either said.
            let (value, expires) = (m.value.clone(), expiry(&None, &m, &r));
            let both = Record { version: self.version, hlc: self.hlc, value, expires };
            return self.make(side, key, both, &m, &r);
        }
        if loser.is_cleared() {
            // It stood for what was there before, and never for anybody's wish.
            return if take {
                self.take(side, key, r)
            };
        }
        self.conflicts += 1;
        if let Some((_, within)) = self.made.get_mut(&key) {
            // What the other write replaced knowingly is not lost to it.
            within.retain(|x| !theirs.covers(x.version));
        }
        if let Some(value) = self.decided(theirs, &key, (&m, &r), (winner, loser)).filter(|_| !winner.is_cleared()) {
            let expires = if value.is_some() { expiry(&value, winner, loser) } else { None };
            let merged = Record { version: self.version, hlc: self.hlc, value, expires };
            return self.make(side, key, merged, &m, &r);
        }
        self.lose(&key, loser);
        if self.policy.rule(&key[1..]) == &MergeRule::KeepBoth {
            self.put_beside(&key, loser);
        }
        if take {
            self.take(side, key, r);
        }
    }

    /// The one record of a line, on both sides. What both say stands in that of this line: a record of another is one that its own
    /// leaders wrote, the same wherever it is.
    fn of_lines(&mut self, side: Ballot, space: Space, key: Bytes, m: Record, r: Record) {
        let own = key::one_of(space, self.line);
        let both = match space {
            Space::Floor => {
                let both = Floor::read(&m).joined(&Floor::read(&r));
                if key == own { both.row() } else { both.levels_only().row() }
            }
            Space::Dropped => key::encode(&Mark::read(&m).joined(&Mark::read(&r))),
            Space::Heals => Heal::joined(&m, &r),
            // The opening entry writes its own set.
            _ if key == own => return,
            _ => Bytes::new(),
        };
        let both = Record { version: self.version, hlc: self.hlc, expires: None, value: Some(both) };
        if key == own {
            return self.take(side, key, both);
        }
        if r.rank() > m.rank() {
            self.take(side, key, r);
        }
        if space != Space::Set {
            match self.puts.get(&own).cloned().or_else(|| self.store.find(&own)) {
                Some(before) => self.of_lines(side, space, own, before, both),
                None => self.take(side, own, both),
            }
        }
    }

    /// The value that a rule makes of both, or picks; `None`: the greater rank stays. `winner` has it.
    fn decided(
        &self,
        theirs: &Heads,
        key: &Bytes,
        (m, r): (&Record, &Record),
        (winner, loser): (&Record, &Record),
    ) -> Option<Option<Bytes>> {
        let user_key = &key[1..];
        let rule = self.policy.rule(user_key);
        match rule {
            MergeRule::Latest | MergeRule::KeepBoth => None,
            // The side that only can hold what a majority acknowledged stays.
            MergeRule::Island(_) if self.by_side => None,
            MergeRule::Max => by_fields(m, r, u64::max).map(Some),
            MergeRule::Min => by_fields(m, r, u64::min).map(Some),
            MergeRule::Sum | MergeRule::Union => {
                let mine = (m.value.as_ref(), &self.heads);
                state::merged(rule, mine, (r.value.as_ref(), theirs))
            }
            MergeRule::Island(choice) => {
                let (first, second) = (self.island_of(key, winner)?, self.island_of(key, loser)?);
                match self.prefers(*choice, first, second) {
                    Some(true) => Some(winner.value.clone()),
                    Some(false) => Some(loser.value.clone()),
                    None => None,
                }
            }
            MergeRule::Function(name) => {
                let value = |x: &Record| x.value.clone();
                self.functions.call(name, user_key, value(loser).as_deref(), value(winner).as_deref()).map(Some)
            }
        }
    }

    /// The copies that were in sync when a record was written; of one that this merge made, those of the value it took.
    fn island_of(&self, key: &Bytes, record: &Record) -> Option<&BTreeSet<NodeId>> {
        let of = if record.version == self.version { self.islands.get(key).copied()? } else { record.version };
        policy::in_sync_at(self.branches.as_ref()?, of)
    }

    /// Does the first of two islands stay? `None`: the rule does not tell them apart.
    fn prefers(&self, choice: Choice, first: &BTreeSet<NodeId>, second: &BTreeSet<NodeId>) -> Option<bool> {
        let only = |node: &NodeId| (first.contains(node) != second.contains(node)).then(|| first.contains(node));
        match choice {
            Choice::Largest => (first.len() != second.len()).then_some(first.len() > second.len()),
            Choice::Oldest => self.by_age.iter().find_map(only),
            Choice::Node(node) => only(&node),
        }
    }

    /// A record of this merge's own. What stands in it unchanged is lost only if it loses; what does not stand in it, and is no
    /// part of a state that nothing is lost in, is lost now.
    fn make(&mut self, side: Ballot, key: Bytes, merged: Record, m: &Record, r: &Record) {
        let rule = self.policy.rule(&key[1..]);
        let whole = state::is_state(rule);
        let (stand, lost): (Vec<_>, Vec<_>) = [m, r].into_iter().partition(|x| whole || x.value == merged.value);
        if let (true, Some(taken)) = (matches!(rule, MergeRule::Island(_)), stand.first()) {
            let of = self.islands.get(&key).copied().filter(|_| taken.version == self.version).unwrap_or(taken.version);
            self.islands.insert(key.clone(), of);
        }
        lost.iter().for_each(|x| self.lose(&key, x));
        let (of, within) = self.made.entry(key.clone()).or_default();
        of.extend([m.version, r.version].iter().filter(|version| **version != self.version));
        within.extend(stand.into_iter().filter(|x| x.version != self.version && !whole).cloned());
        self.take(side, key, merged)
    }

    /// The other value of a conflict, under a key of its own.
    fn put_beside(&mut self, key: &Bytes, loser: &Record) {
        let beside = policy::beside(&key[1..], loser.version);
        if self.no_ledger || loser.value.is_none() || loser.version == self.version || beside.len() > KEY_BYTES_MAX {
            return;
        }
        let stored = key::user(&beside);
        // It was put there before, and may have been changed or deleted since.
        if self.puts.contains_key(&stored) || self.store.get(&stored).is_some() {
            return;
        }
        self.made.insert(stored.clone(), (vec![loser.version], Vec::new()));
        self.puts.insert(stored, Record { version: self.version, ..loser.clone() });
    }

    /// The ledger row of a losing record: a pure function of that record, but for the version that carries it.
    fn lose(&mut self, key: &Bytes, loser: &Record) {
        if self.no_ledger || loser.is_cleared() {
            return;
        }
        if loser.version == self.version {
            // Made by this very merge, and never anybody's value; but it stood for values that were.
            let stood = self.made.get_mut(key).map(|(_, within)| std::mem::take(within));
            return stood.unwrap_or_default().iter().for_each(|x| self.lose(key, x));
        }
        let at = key::ledger(&key[1..], loser.version);
        // The same row, or an operator has dropped it.
        if self.store.get(&at).is_some() {
            return;
        }
        let value = Some(key::encode(loser));
        let row = Record { version: self.version, hlc: loser.hlc, expires: None, value };
        self.puts.insert(at, row);
    }

    /// The union of all heads, the records to put, and the keys whose records go.
    pub(crate) fn finish(self) -> (Heads, BTreeMap<Bytes, Record>, Vec<Bytes>) {
        let drops = self.drops.into_iter().filter(|key| !self.puts.contains_key(key)).collect();
        (self.heads, self.puts, drops)
    }
}

/// When a value that was made of two expires: as the one that it is; one that is made of both lives as long as either.
fn expiry(value: &Option<Bytes>, winner: &Record, loser: &Record) -> Option<WallMs> {
    if let Some(whose) = [winner, loser].into_iter().find(|r| value.is_some() && r.value == *value) {
        return whose.expires;
    }
    let living = [winner, loser].into_iter().filter(|r| r.value.is_some());
    living.map(|r| r.expires.unwrap_or(WallMs(u64::MAX))).max().filter(|at| at.0 < u64::MAX)
}

fn by_fields(a: &Record, b: &Record, pick: impl Fn(u64, u64) -> u64) -> Option<Bytes> {
    let (a, b) = (fields(a.value.as_ref()?)?, fields(b.value.as_ref()?)?);
    (a.len() == b.len()).then(|| unfields(a.into_iter().zip(b).map(|(x, y)| pick(x, y))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LedgerRow;
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

    /// What `into` has after an opening that pulls all of `from`, and how many conflicts that found.
    fn opened(into: &Store, from: &Store, rule: MergeRule) -> (BTreeMap<Bytes, Record>, u64) {
        let policy = MergePolicy { default: rule, ..MergePolicy::default() };
        let functions = Functions::default();
        let mut merge = Merge::new(into, &policy, &functions, version(99, 1), Hlc(1 << 40));
        let (rows, _) = from.delta(into.heads(), from.heads(), None, usize::MAX).expect("all is in RAM");
        merge.fold(Pulled { heads: from.heads().clone(), records: rows, whole: false, from: NodeId(2), staged: false });
        let conflicts = merge.conflicts;
        let (_, puts, _) = merge.finish();
        let mut all: BTreeMap<_, _> = into.all().filter_map(|(k, r)| Some((k.clone(), r.here()?.clone()))).collect();
        all.extend(puts);
        (all, conflicts)
    }

    /// What is shown to users and kept in the ledger then, versions of the merge's own writes aside.
    fn merged(into: &Store, from: &Store, rule: MergeRule) -> (Vec<(Bytes, Option<Bytes>)>, u64) {
        let (all, conflicts) = opened(into, from, rule);
        (all.into_iter().map(|(k, r)| (k, r.value)).collect(), conflicts)
    }

    proptest! {
        #[test]
        fn a_merge_gives_the_same_whoever_does_it(
            a in proptest::collection::vec((0u8..4, 1u64..50, 0u64..10), 0..8),
            b in proptest::collection::vec((0u8..4, 1u64..50, 0u64..10), 0..8),
            max in any::<bool>(),
        ) {
            let rule = || if max { MergeRule::Max } else { MergeRule::Latest };
            let (a, b) = (side(1, &a), side(2, &b));
            prop_assert_eq!(merged(&a, &b, rule()), merged(&b, &a, rule()));
        }
    }

    /// Under one key on each side a value that expires; what is made of them, whichever side does it.
    #[test]
    fn what_is_merged_expires_with_the_value_that_it_has() {
        let ten = |n: u64| Some(unfields([n, n]));
        let side = |node, hlc, value: Option<Bytes>, expires: Option<u64>| {
            let mut store = Store::default();
            let record = Record { version: version(node, 1), hlc: Hlc(hlc), expires: expires.map(WallMs), value };
            store.apply(vec![record.version], vec![(key::user(&[1]), record)]);
            store
        };
        let merged = |a: &Store, b: &Store, rule: MergeRule| {
            let (mut all, conflicts) = opened(a, b, rule);
            let now = all.remove(&key::user(&[1])).expect("there");
            (now.value, now.expires.map(|at| at.0), conflicts)
        };
        let both = |a: &Store, b: &Store, rule: fn() -> MergeRule, want: (Option<Bytes>, Option<u64>, u64)| {
            assert_eq!((merged(a, b, rule()), merged(b, a, rule())), (want.clone(), want));
        };
        let (max, latest) = (|| MergeRule::Max, || MergeRule::Latest);
        // The greater one for good, and a later one that expires.
        both(&side(1, 10, ten(9), None), &side(2, 50, ten(5), Some(70)), max, (ten(9), None, 1));
        both(&side(1, 10, ten(9), Some(30)), &side(2, 50, ten(5), None), max, (ten(9), Some(30), 1));
        // Made of both.
        let mixed = Some(unfields([9, 5]));
        let (a, b) = (Some(unfields([9, 1])), Some(unfields([2, 5])));
        both(&side(1, 10, a.clone(), Some(30)), &side(2, 50, b.clone(), Some(70)), max, (mixed.clone(), Some(70), 1));
        both(&side(1, 10, a, None), &side(2, 50, b, Some(70)), max, (mixed, None, 1));
        // The same, touched on both sides, is no conflict.
        both(&side(1, 10, ten(9), Some(80)), &side(2, 50, ten(9), Some(70)), latest, (ten(9), Some(80), 0));
        both(&side(1, 10, ten(9), None), &side(2, 50, ten(9), Some(70)), latest, (ten(9), None, 0));
        // Put later, it lives as long as it says.
        both(&side(1, 10, ten(9), None), &side(2, 50, ten(5), Some(70)), latest, (ten(5), Some(70), 1));
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
        let functions = Functions::default();
        let mut merge = Merge::new(&mine, &policy, &functions, version(99, 1), Hlc(1 << 40));
        for from in [&other, &both] {
            let (records, _) = from.delta(mine.heads(), from.heads(), None, usize::MAX).expect("all is in RAM");
            merge.fold(Pulled { heads: from.heads().clone(), records, whole: false, from: NodeId(2), staged: false });
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
        let row = LedgerRow::read(&key.slice(1..), &row).expect("readable");
        assert_eq!(row.key, Bytes::from_static(&[1]));
        assert_eq!(Some(row.lost), a.find(&key::user(&[1])));
    }

    /// What both sides make of one key, by a rule: left was written by n1 with `left` in sync, right by n2 with `right`.
    fn decided(rule: MergeRule, left: &[u64], right: &[u64]) -> (Option<Bytes>, Vec<Version>, Vec<Bytes>) {
        let set = |nodes: &[u64]| nodes.iter().map(|n| NodeId(*n)).collect::<BTreeSet<_>>();
        let with = |node: u64, value: u64, nodes: &[u64]| {
            let mut store = side(node, &[(1, 50 + node, value)]);
            let branch = version(node, 1).branch;
            let info: BranchInfo = (Ballot { counter: 1, node: NodeId(node) }, vec![(1, set(nodes))]);
            let put =
                |key, value, hlc| (key, Record { version: version(node, 2), hlc: Hlc(hlc), expires: None, value });
            let mut puts = vec![put(key::branch(branch), Some(key::encode(&info)), 1)];
            // n2 has been a member for longest.
            puts.extend(
                (1..4).map(|n| put(key::member(NodeId(n)), Some(Bytes::from_static(&[1])), if n == 2 { 1 } else { 2 })),
            );
            store.apply(vec![version(node, 2)], puts);
            store
        };
        let (mine, theirs) = (with(1, 5, left), with(2, 3, right));
        let policy = MergePolicy { default: rule, ..MergePolicy::default() };
        let join = |_: &[u8], a: Option<&[u8]>, b: Option<&[u8]>| Some([a?, b?].concat().into());
        let functions = Functions::default().with("join", std::sync::Arc::new(join));
        let mut merge = Merge::new(&mine, &policy, &functions, version(99, 1), Hlc(1 << 40));
        let (records, _) = theirs.delta(mine.heads(), theirs.heads(), None, usize::MAX).expect("all is in RAM");
        merge.fold(Pulled { heads: theirs.heads().clone(), records, whole: false, from: NodeId(2), staged: false });
        let (_, puts, _) = merge.finish();
        let rows = puts.iter().filter(|(k, _)| key::space_of(k) == Some(Space::Ledger));
        let lost = rows.filter_map(|(k, r)| Some(LedgerRow::read(&k.slice(1..), r)?.lost.version));
        let beside = puts.keys().filter(|k| k.starts_with(b"\x01\x01~")).map(|k| k.slice(1..)).collect();
        let value = puts
            .get(&key::user(&[1]))
            .map_or_else(|| mine.find(&key::user(&[1])).and_then(|r| r.value), |r| r.value.clone());
        (value, lost.collect(), beside)
    }

    #[test]
    fn each_rule_decides_as_it_says() {
        let (left, right) = (unfields([5, 4]), unfields([3, 6]));
        let one = |rule| decided(rule, &[1], &[2, 3]);
        let (v1, v2) = (version(1, 1), version(2, 1));
        assert_eq!(one(MergeRule::Latest), (Some(right.clone()), vec![v1], vec![]));
        assert_eq!(one(MergeRule::KeepBoth), (Some(right.clone()), vec![v1], vec![policy::beside(&[1], v1)]));
        assert_eq!(one(MergeRule::Max), (Some(unfields([5, 6])), vec![v1, v2], vec![]));
        assert_eq!(one(MergeRule::Min), (Some(unfields([3, 4])), vec![v1, v2], vec![]));
        assert_eq!(one(MergeRule::Function("join".into())).0, Some([&left[..], &right[..]].concat().into()));
        assert_eq!(one(MergeRule::Function("none".into())).0, Some(right.clone()), "the later, where nobody knows it");
        let island = |choice, left: &[u64], right: &[u64]| decided(MergeRule::Island(choice), left, right);
        assert_eq!(island(Choice::Largest, &[1, 3], &[2]), (Some(left.clone()), vec![v2], vec![]));
        assert_eq!(island(Choice::Largest, &[1], &[2]).0, Some(right.clone()), "equal: the later");
        assert_eq!(island(Choice::Oldest, &[1, 3], &[2]).0, Some(right.clone()));
        assert_eq!(island(Choice::Oldest, &[1, 2, 3], &[3]).0, Some(left.clone()));
        assert_eq!(island(Choice::Node(NodeId(1)), &[1], &[2, 3]).0, Some(left.clone()));
        assert_eq!(island(Choice::Node(NodeId(9)), &[1], &[2, 3]).0, Some(right));
    }
}
