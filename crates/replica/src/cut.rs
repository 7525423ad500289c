//! A fragment is cut into several, or joined with others, without a word between copies: each copy makes copies of the new fragments
//! out of what it holds, by itself and whenever it hears of the change.
//!
//! What makes that safe is that all else stays as it is. A copy that was cut holds, of its part of the keys, what its heads say. One
//! that was joined holds what either's heads say, since branches of different fragments have different names ([`BranchId::line`]). So
//! copies of a new fragment are copies like any others, some of which may know more than others, or have been written on the other side
//! of a cut; whoever opens the first branch asks them all, and merges. The records of the fragment's own (who is a member, who was in
//! sync, what was forgotten) come along.

use crate::config::Config;
use crate::copy::{Copy, Role};
use crate::gate::{Effects, Notice};
use crate::kept::{Kept, is_apart};
use crate::key::{self, MemberStatus, Space};
use crate::mutant;
use crate::open::nth;
use crate::record::{Meta, Record};
use crate::store::{Store, Stored};
use base::{Ballot, BranchId, Heads, Instant, NodeId, Now, Version};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};

/// The keys of a fragment: those whose hash leaves `place` when divided by `count`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slice {
    /// Of so many fragments, at least 1.
    pub count: u32,
    /// This one, from 0.
    pub place: u32,
}

fn gcd(a: u128, b: u128) -> u128 {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn lcm(a: u128, b: u128) -> Option<u128> {
    (a / gcd(a, b).max(1)).checked_mul(b)
}

impl Slice {
    /// Is there a key that lies in both? (Chinese remainder theorem.)
    pub fn overlaps(self, other: Slice) -> bool {
        let common = gcd(self.count.max(1).into(), other.count.max(1).into());
        u128::from(self.place) % common == u128::from(other.place) % common
    }

    /// Do keys with this hash lie in it?
    pub fn has(self, hash: u64) -> bool {
        hash % u64::from(self.count.max(1)) == u64::from(self.place)
    }

    /// Does every key of the other one lie in this one?
    fn holds(self, other: Slice) -> bool {
        self.overlaps(other) && other.count.is_multiple_of(self.count.max(1))
    }
}

/// Of all keys one in so many lies in all of these; `None`: none does.
fn one_in(slices: &[Slice]) -> Option<u128> {
    let apart = slices.iter().enumerate().any(|(i, a)| slices[i + 1..].iter().any(|b| !a.overlaps(*b)));
    let all = slices.iter().try_fold(1, |all, slice| lcm(all, slice.count.max(1).into()));
    if apart { None } else { all }
}

/// Do these slices, no two of which overlap, hold all keys that lie in all of `of`?
fn cover(slices: impl Iterator<Item = Slice> + Clone, of: &[Slice]) -> bool {
    let Some(whole) = one_in(of) else { return true };
    let parts: Vec<u128> = slices.filter_map(|slice| one_in(&[&[slice], of].concat())).collect();
    let Some(unit) = parts.iter().try_fold(whole, |unit, part| lcm(unit, *part)) else { return false };
    parts.iter().map(|part| unit / part).sum::<u128>() == unit / whole
}

/// What a copy leaves to those that are made of it. As long as none is, it is kept.
pub struct Legacy {
    /// Which keys it holds.
    pub slice: Slice,
    meta: Meta,
    heads: Heads,
    records: Vec<(Bytes, Record)>,
    leases: Vec<(Option<NodeId>, Instant)>,
    left: BTreeMap<NodeId, Instant>,
    born: Instant,
    /// It led, or followed in step: its island has an order of its own.
    belonged: bool,
    stands_in: bool,
    /// The mark of the last batch that it handed to the disc.
    pub handed: u64,
}

impl Legacy {
    /// Its durable words.
    pub fn meta(&self) -> Meta {
        self.meta
    }

    /// Which keys it holds, and what it knows of them.
    pub fn knows(&self) -> (Slice, &Heads) {
        (self.slice, &self.heads)
    }

    /// The parts of it that are for others: each users' key goes to whom this says, and the rest to all. A key that is nobody's (it was
    /// written where it did not belong) goes to the first: what was acknowledged is not dropped.
    pub fn cut<K: Ord + Clone>(
        &self,
        among: impl IntoIterator<Item = K>,
        to: impl Fn(&[u8]) -> Option<K>,
    ) -> BTreeMap<K, Legacy> {
        let users = |(key, _): &&(Bytes, Record)| users_key(key).is_some();
        let own: Vec<_> = self.records.iter().filter(|row| !users(row)).cloned().collect();
        let part = || {
            let (records, leases, left) = (own.clone(), self.leases.clone(), self.left.clone());
            Legacy { heads: self.heads.clone(), records, leases, left, ..*self }
        };
        let mut parts: BTreeMap<K, Legacy> = among.into_iter().map(|whom| (whom, part())).collect();
        let Some(first) = parts.first_key_value().map(|(whom, _)| whom.clone()) else { return parts };
        for row in self.records.iter().filter(users) {
            let whom = users_key(&row.0).and_then(&to).filter(|whom| parts.contains_key(whom));
            parts.entry(whom.unwrap_or_else(|| first.clone())).and_modify(|part| part.records.push(row.clone()));
        }
        parts
    }
}

/// The user's key that a record is of, or a losing value was.
fn users_key(stored: &[u8]) -> Option<&[u8]> {
    match key::space_of(stored)? {
        Space::User => Some(&stored[1..]),
        Space::Ledger => stored.get(1..stored.len().checked_sub(24)?),
        _ => None,
    }
}

/// What can be made of what copies left.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fit {
    heads: Heads,
    /// They do not hold all of the keys, or do so in others' place: it is no copy.
    pub stand_in: bool,
}

impl Fit {
    /// What becomes of these, no two of which hold the same keys, as what holds those in `target`; `of_line` tells which keys the fragment
    /// of a line had. `None`: they do not know the same of a line that they go back to, so that heads could not tell what is
    /// known; or one that they go back to had keys that none of them has.
    pub fn of(target: Slice, of_line: &dyn Fn(u32) -> Slice, legacies: &[Legacy]) -> Option<Fit> {
        let known: Vec<(Slice, &Heads)> = legacies.iter().map(Legacy::knows).collect();
        let heads = known_of(target, of_line, &known);
        // One that has nothing, or nothing any more, holds no keys.
        let full = || legacies.iter().filter(|legacy| !legacy.heads.is_empty());
        let all = cover(full().filter(|l| !l.stands_in).map(|l| l.slice), &[target]);
        let stand_in = full().next().is_some() && !all || legacies.iter().any(|l| l.stands_in);
        full().all(|legacy| legacy.heads.within(&heads)).then_some(Fit { heads, stand_in })
    }
}

/// What all of these know of a slice: of a line that several of them go back to, only what each knows that has keys of it. `of_line`
/// tells which keys the fragment of a line had.
pub fn known_of(target: Slice, of_line: &dyn Fn(u32) -> Slice, all: &[(Slice, &Heads)]) -> Heads {
    if let [(slice, heads)] = all
        && slice.holds(target)
    {
        return (*heads).clone();
    }
    let all: Vec<_> = all.iter().filter(|(_, heads)| !heads.is_empty()).collect();
    let lines: BTreeSet<u32> = all.iter().flat_map(|(_, heads)| heads.lines()).collect();
    let mut heads = Heads::default();
    for line in lines {
        let both = [of_line(line), target];
        let concerned = || all.iter().filter(|(slice, _)| one_in(&[&both[..], &[*slice]].concat()).is_some());
        if !cover(concerned().map(|(slice, _)| *slice), &both) {
            continue;
        }
        let known = concerned().map(|(_, heads)| heads.of_line(line)).reduce(|a, b| a.meet(&b));
        heads.join(&known.unwrap_or_default());
    }
    heads
}

/// Of two records of the fragment's own under one key the one that knows of the other, or is greater everywhere alike.
fn newer(a: &Record, b: &Record, key: &Bytes) -> bool {
    let done = |r: &Record| r.value.as_ref().and_then(|v| key::decode::<u64>(v)).unwrap_or(0);
    match key::space_of(key) {
        Some(Space::Session) => (done(b), b.version) > (done(a), a.version),
        _ => b.rank() > a.rank(),
    }
}

impl Copy {
    /// Ends this copy: its branch is closed, whoever waits is told to ask elsewhere, and all that it has is handed over. `None`: a value
    /// cannot be read, or not yet, and the copy goes on.
    pub fn bequeath(&mut self, now: Now, slice: Slice, fx: &mut Effects) -> Option<Legacy> {
        let belonged = match &self.role {
            Role::Leading(_) => true,
            Role::Following(f) => f.joined,
            _ => false,
        };
        if !self.store.is_settled() || self.store.is_lost() {
            return None;
        }
        // Before anything is ended.
        let whole = |(key, kept): (&Bytes, &Kept)| Some((key.clone(), self.store.whole(key, kept)?));
        let users: Option<Vec<_>> = self.store.all().filter(|(key, _)| is_apart(key)).map(whole).collect();
        let Some(mut records) = users else {
            self.note(Notice::ValueLost, fx);
            return None;
        };
        self.step_down(now, fx);
        self.flush(now, fx);
        let own = self.store.all().filter(|(key, _)| !is_apart(key));
        records.extend(own.filter_map(|(key, kept)| Some((key.clone(), kept.here()?.clone()))));
        let leases = self.leases_given(now).into_iter().map(|(holder, left)| (holder, now.mono + left)).collect();
        let mut meta = self.meta;
        meta.ceiling = meta.ceiling.max(self.hlc);
        let (heads, left) = (self.store.heads().clone(), std::mem::take(&mut self.left));
        self.store = Store::default();
        let (born, stands_in, handed) = (self.born, self.config.stand_in, self.gate.written);
        Some(Legacy { slice, meta, heads, records, leases, left, born, belonged, stands_in, handed })
    }

    /// The mark of the last batch that it handed to the disc.
    pub fn written(&self) -> u64 {
        self.gate.written
    }

    /// A copy made of what others left, and of `own`, what there was of it before, which has no records. Where it is no copy
    /// it stands in until it has given away what it has.
    pub fn inherit(now: Now, config: Config, own: Stored, fit: Fit, legacies: Vec<Legacy>, fx: &mut Effects) -> Copy {
        let promised = legacies.iter().map(|l| l.meta.promised).chain([own.meta.promised]).max().unwrap_or_default();
        let ceiling = legacies.iter().map(|l| l.meta.ceiling).chain([own.meta.ceiling]).max().unwrap_or_default();
        let n = own.meta.n;
        // What it left on the disc when it was before goes first.
        let wipe = own.meta != Meta::default();
        let mut copy = Copy::new(now, config, own.meta, own.store);
        copy.config.stand_in |= fit.stand_in && !mutant!(copy, PartForWhole);
        (copy.meta, copy.hlc) = (Meta { n, promised, ceiling }, ceiling);
        copy.hear(promised);
        copy.born = legacies.iter().map(|l| l.born).max().unwrap_or(now.mono);
        let mut records: BTreeMap<Bytes, Record> = BTreeMap::new();
        let belonged = legacies.iter().any(|l| l.belonged);
        for legacy in legacies {
            for (holder, until) in legacy.leases {
                match holder {
                    Some(node) => copy.word.give(now.mono, node, until),
                    None => copy.word.extend(until),
                }
            }
            for (node, at) in legacy.left {
                let left = copy.left.entry(node).or_insert(at);
                *left = at.max(*left);
            }
            for (key, record) in legacy.records {
                if records.get(&key).is_none_or(|before| newer(before, &record, &key)) {
                    records.insert(key, record);
                }
            }
        }
        copy.settle_in(now, fit.heads, records, wipe, fx);
        if belonged {
            copy.mourn(now);
        }
        copy
    }

    /// All of it goes to the store and the disc in one batch; what stands in says so, in a branch of its own that is closed at once.
    fn settle_in(
        &mut self,
        now: Now,
        mut heads: Heads,
        mut records: BTreeMap<Bytes, Record>,
        wipe: bool,
        fx: &mut Effects,
    ) {
        let me = self.config.me;
        let status = records.get(&key::member(me)).and_then(|r| key::decode(r.value.as_ref()?));
        if self.config.stand_in && status != Some(MemberStatus::StandIn) && !heads.is_empty() {
            let line = self.config.line;
            self.meta.n = self.meta.n.max(heads.last_of(me, line).into()).saturating_add(1);
            let branch = BranchId::of_line(me, line, nth(self.meta.n));
            let hlc = self.stamp(now);
            let mut put = |key, seq, value| {
                let version = Version { branch, seq };
                records.insert(key, Record { version, hlc, expires: None, value: Some(value) })
            };
            let alone = BTreeSet::from([me]);
            // Nobody promised it anything: it outranks nothing.
            put(key::branch(branch), 1, key::encode(&(Ballot::default(), vec![(1u64, alone.clone())])));
            put(key::set(line), 1, key::encode(&alone));
            put(key::member(me), 1, key::encode(&MemberStatus::StandIn));
            put(key::closed(branch), 2, Bytes::new());
            heads.add(Version { branch, seq: 2 });
        }
        let mut batch = self.store.switch(&heads, Vec::new(), records.into_iter().collect(), Vec::new());
        self.raise_ceiling();
        batch.wipe = wipe;
        batch.meta = Some(self.meta);
        self.persist(batch, true, fx);
    }

    /// Opens at once, in the place of a leader that it was made of: nobody waits for a calm view.
    pub fn lead_on(&mut self, now: Now, fx: &mut Effects) {
        if matches!(self.role, Role::Idle { .. })
            && !self.config.stand_in
            && !self.barred
            && !self.store.heads().is_empty()
        {
            self.open(now, fx);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::tests::{feed, leading};
    use crate::open::tests::{at, config};
    use crate::{Batch, Input, Request, SessionId, Write};
    use base::FragmentId;

    fn all_slices() -> impl Iterator<Item = Slice> {
        [1, 2, 3, 4, 6].into_iter().flat_map(|count| (0..count).map(move |place| Slice { count, place }))
    }

    fn holds(slice: Slice, hash: u32) -> bool {
        slice.has(hash.into())
    }

    #[test]
    fn slices_overlap_where_a_key_lies_in_both() {
        for (a, b) in all_slices().flat_map(|a| all_slices().map(move |b| (a, b))) {
            let both = (0..12).any(|hash| holds(a, hash) && holds(b, hash));
            assert_eq!(a.overlaps(b), both, "{a:?} {b:?}");
            assert_eq!(a.holds(b), (0..12).all(|hash| !holds(b, hash) || holds(a, hash)), "{a:?} {b:?}");
            // Of those of one number some hold all of what lies in two others, or do not.
            for some in 0..16u32 {
                let four = (0..4).filter(|place| some >> place & 1 == 1).map(|place| Slice { count: 4, place });
                let in_all = |hash: &u32| holds(a, *hash) && holds(b, *hash);
                let want = (0..12).filter(in_all).all(|hash| four.clone().any(|slice| holds(slice, hash)));
                assert_eq!(cover(four, &[a, b]), want, "{some:b} {a:?} {b:?}");
            }
        }
    }

    const TABLE: base::TableId = base::TableId(1);

    fn half(place: u16) -> (FragmentId, Slice) {
        (FragmentId::new(TABLE, 1, 2, place), Slice { count: 2, place: place.into() })
    }

    fn of_line(line: u32) -> Slice {
        let id = FragmentId { table: TABLE, index: line };
        Slice { count: id.count().unwrap_or(1).into(), place: id.place().into() }
    }

    /// The last byte of a key counts as its hash.
    fn cut(legacy: &Legacy) -> Vec<Legacy> {
        let place = |key: &[u8]| Some(u16::from(key.last().copied().unwrap_or(0) % 2));
        legacy.cut([0, 1], place).into_values().collect()
    }

    fn made(fragment: FragmentId, target: Slice, parts: Vec<Legacy>) -> (Copy, Effects) {
        let fit = Fit::of(target, &of_line, &parts).expect("they fit");
        let config = Config { fragment, line: fragment.index, ..config() };
        let own = Stored { meta: Meta::default(), store: Store::default() };
        let mut fx = Effects::default();
        (Copy::inherit(at(20_000), config, own, fit, parts, &mut fx), fx)
    }

    /// What a leader leaves that has put six keys and deleted one of them.
    fn legacy() -> Legacy {
        let (mut copy, start) = leading();
        for n in 0..7u64 {
            let key = Bytes::from(vec![b'k', (n % 6) as u8]);
            let put = Write::Put { key: key.clone(), value: "v".into(), ttl_ms: None };
            let write = if n == 6 { Write::Delete { key } } else { put };
            let branches = vec![copy.lead().expect("it leads").branch];
            let (session, batch) =
                (SessionId { node: NodeId(9), incarnation: 1 }, Batch { writes: vec![write], ..Batch::default() });
            let request = Request { session, number: n, done_through: 0, branches, batch };
            feed(&mut copy, start, Input::Write(n, request));
        }
        let mut fx = Effects::default();
        copy.bequeath(at(start + 1), Slice { count: 1, place: 0 }, &mut fx).expect("all can be read")
    }

    fn users(copy: &Copy) -> Vec<u8> {
        let live = copy.store().space(Space::User).filter(|(_, kept)| !kept.is_tombstone());
        live.map(|(key, _)| key[key.len() - 1]).collect()
    }

    #[test]
    fn halves_hold_what_the_whole_did_and_make_it_again() {
        let whole = legacy();
        let mut halves = cut(&whole);
        let (odd, fx) = made(half(1).0, half(1).1, vec![halves.remove(1)]);
        assert_eq!((users(&odd), odd.store().heads()), (vec![1, 3, 5], &whole.heads));
        assert!(fx.persists.len() == 1 && fx.persists[0].sync, "all of it in one batch");
        let (even, _) = made(half(0).0, half(0).1, vec![halves.remove(0)]);
        assert_eq!(users(&even), [2, 4], "the deleted one is none");
        assert_eq!(even.known_set(), odd.known_set());
        assert!(odd.meta.promised == whole.meta.promised && !odd.stands_in());
        let ends = |mut copy: Copy, place| copy.bequeath(at(20_001), half(place).1, &mut Effects::default());
        let (even, odd) = (ends(even, 0).expect("read"), ends(odd, 1).expect("read"));
        let (again, _) = made(FragmentId::new(TABLE, 2, 1, 0), Slice { count: 1, place: 0 }, vec![even, odd]);
        assert_eq!((users(&again), again.stands_in()), (vec![1, 2, 3, 4, 5], false));
        assert_eq!(again.store().heads(), &whole.heads);
        assert_eq!(again.store().all().count(), whole.records.len());
    }

    /// What heads cannot tell of is not claimed, and is not written anew either.
    #[test]
    fn halves_that_do_not_know_the_same_are_no_whole() {
        let target = Slice { count: 1, place: 0 };
        let with = |change: &dyn Fn(&mut Legacy)| {
            let mut halves = cut(&legacy());
            (halves[0].slice, halves[1].slice) = (half(0).1, half(1).1);
            change(&mut halves[1]);
            Fit::of(target, &of_line, &halves)
        };
        let first = |half: &Legacy| half.heads.iter().next().expect("one").branch;
        assert!(with(&|_| {}).is_some_and(|fit| !fit.stand_in));
        assert_eq!(with(&|half| half.heads = half.heads.clamped(first(half), 3)), None);
        assert_eq!(with(&|half| drop(half.heads.fold(first(half)))), None);
        // One half of what was cut says nothing of the other.
        let mut one = cut(&legacy()).remove(0);
        one.slice = half(0).1;
        assert_eq!(Fit::of(target, &of_line, &[one]), None);
    }

    /// One of two that never were one: it takes writes and tells what it has, and calls nothing absent.
    #[test]
    fn a_part_of_what_is_joined_stands_in() {
        let mut part = legacy();
        part.slice = Slice { count: 2, place: 0 };
        let own_line = |line: u32| if line == 0 { Slice { count: 2, place: 0 } } else { of_line(line) };
        let fit = Fit::of(Slice { count: 1, place: 0 }, &own_line, std::slice::from_ref(&part)).expect("it fits");
        assert!(fit.stand_in);
        let (fragment, known) = (FragmentId::new(TABLE, 1, 1, 0), part.heads.clone());
        let config = Config { fragment, line: fragment.index, ..config() };
        let own = Stored { meta: Meta::default(), store: Store::default() };
        let copy = Copy::inherit(at(20_000), config, own, fit, vec![part], &mut Effects::default());
        assert!(copy.stands_in() && copy.store().stands_in(NodeId(1)) && known.within(copy.store().heads()));
        // Its word outranks nobody's.
        let branch = BranchId::of_line(NodeId(1), fragment.index, 1);
        let row = copy.store().own(&key::branch(branch)).and_then(|r| key::decode(r.value.as_ref()?));
        let (ballot, _): crate::policy::BranchInfo = row.expect("a branch of its own");
        assert_eq!(ballot, Ballot::default());
    }

    /// Which half has forgotten how much is known of each by itself.
    #[test]
    fn what_one_half_forgot_is_not_forgotten_of_the_other() {
        let whole = legacy();
        let mut halves = cut(&whole);
        (halves[0].slice, halves[1].slice) = (half(0).1, half(1).1);
        let level = Heads::from_iter([Version { branch: BranchId::of_line(NodeId(2), half(1).0.index, 1), seq: 1 }]);
        let floor = crate::Floor { purged: whole.heads.clone(), levels: level.clone(), ..Default::default() };
        let version = level.iter().next().expect("one");
        let row = Record { version, hlc: base::Hlc(1 << 40), expires: None, value: Some(floor.row()) };
        halves[1].records.push((key::floor(half(1).0.index), row));
        halves[1].heads.add(version);
        let (copy, _) = made(FragmentId::new(TABLE, 2, 1, 0), Slice { count: 1, place: 0 }, halves);
        let grave = copy.store().space(Space::User).filter(|(_, kept)| kept.is_tombstone()).count();
        assert_eq!((grave, &copy.store().floor().levels), (1, &level), "the tombstone of the other half stays");
        assert!(copy.store().floor().purged.is_empty());
    }
}
