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
use crate::gate::Effects;
use crate::kept::Kept;
use crate::key::{self, MemberStatus, Space};
use crate::mutant;
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

/// What a copy leaves to those that are made of it.
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

    /// The part of it that is for another slice: of users' keys those of which this is true.
    pub fn part(&self, keep: impl Fn(&[u8]) -> bool) -> Legacy {
        let wanted = |key: &Bytes| users_key(key).is_none_or(&keep);
        let records = self.records.iter().filter(|(key, _)| wanted(key)).cloned().collect();
        let (leases, left) = (self.leases.clone(), self.left.clone());
        Legacy { heads: self.heads.clone(), records, leases, left, ..*self }
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

/// What all of these know of a slice: of a line that several of them go back to, only what each knows that has keys of it. `of_line`
/// tells which keys the fragment of a line had.
pub fn known_of(target: Slice, of_line: &dyn Fn(u32) -> Slice, all: &[(Slice, &Heads)]) -> Heads {
    if let [(slice, heads)] = all
        && slice.holds(target)
    {
        return (*heads).clone();
    }
    let all: Vec<_> = all.iter().filter(|(_, heads)| !heads.is_empty()).collect();
    let branches =
        |(_, heads): &&(Slice, &Heads)| heads.iter().map(|v| v.branch).chain(heads.folds()).collect::<Vec<_>>();
    let lines: BTreeSet<u32> = all.iter().flat_map(branches).map(BranchId::line).collect();
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
    /// cannot be read yet, and nothing was done.
    pub fn bequeath(&mut self, now: Now, slice: Slice, fx: &mut Effects) -> Option<Legacy> {
        let belonged = match &self.role {
            Role::Leading(_) => true,
            Role::Following(f) => f.joined,
            _ => false,
        };
        if !self.may_bequeath() {
            return None;
        }
        if !mutant!(self, CutUnclosed) {
            self.step_down(now, fx);
        }
        self.flush(now, fx);
        let whole = |(key, kept): (&Bytes, &Kept)| Some((key.clone(), self.store.whole(key, kept)?));
        let records = self.store.all().map(whole).collect::<Option<Vec<_>>>()?;
        let leases = self.leases_given(now).into_iter().map(|(holder, left)| (holder, now.mono + left)).collect();
        let mut meta = self.meta;
        meta.ceiling = meta.ceiling.max(self.hlc);
        let (heads, left) = (self.store.heads().clone(), std::mem::take(&mut self.left));
        self.store = Store::default();
        Some(Legacy {
            slice,
            meta,
            heads,
            records,
            leases,
            left,
            born: self.born,
            belonged,
            stands_in: self.config.stand_in,
            handed: self.gate.written,
        })
    }

    /// Can all that it has be read?
    pub fn may_bequeath(&self) -> bool {
        self.store.is_settled() && !self.store.is_lost()
    }

    /// The mark of the last batch that it handed to the disc.
    pub fn written(&self) -> u64 {
        self.gate.written
    }

    /// Is that batch on disc, as far as this copy was told? (It is told of those that it asked to be.)
    pub fn is_durable(&self, mark: u64) -> bool {
        self.gate.durable >= mark
    }

    /// A copy of the keys in `target`, made of what others held that hold keys of it, no two the same ones; `own` is what there was of
    /// it before, which has no records. Where they do not hold all
    /// of them it knows too little to be a copy, and stands in until it has given away what it has. `of_line` tells
    /// which keys the fragment of a line had.
    pub fn inherit(
        now: Now,
        config: Config,
        own: Stored,
        (target, of_line): (Slice, &dyn Fn(u32) -> Slice),
        legacies: Vec<Legacy>,
        fx: &mut Effects,
    ) -> Copy {
        let known: Vec<(Slice, &Heads)> = legacies.iter().map(|legacy| (legacy.slice, &legacy.heads)).collect();
        let heads = known_of(target, of_line, &known);
        let promised = legacies.iter().map(|l| l.meta.promised).chain([own.meta.promised]).max().unwrap_or_default();
        let ceiling = legacies.iter().map(|l| l.meta.ceiling).chain([own.meta.ceiling]).max().unwrap_or_default();
        let n = own.meta.n;
        let mut copy = Copy::new(now, config, own.meta, own.store);
        // One that has nothing, or nothing any more, holds no keys.
        let slices: Vec<Slice> = legacies.iter().filter(|l| !l.heads.is_empty()).map(|l| l.slice).collect();
        let partial = !slices.is_empty() && !cover(slices.into_iter(), &[target]) && !mutant!(copy, PartForWhole);
        copy.config.stand_in |= partial || legacies.iter().any(|l| l.stands_in);
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
        copy.settle_in(now, heads, records, fx);
        if belonged {
            copy.mourn(now);
        }
        copy
    }

    /// All of it goes to the store and the disc in one batch.
    fn settle_in(&mut self, now: Now, mut heads: Heads, mut records: BTreeMap<Bytes, Record>, fx: &mut Effects) {
        let status = records.get(&key::member(self.config.me)).and_then(|r| key::decode(r.value.as_ref()?));
        let newly = self.config.stand_in && status != Some(MemberStatus::StandIn) && !records.is_empty();
        // Of a line that several go back to, which do not know the same of it.
        let loose: Vec<Bytes> =
            records.iter().filter(|(_, r)| !heads.covers(r.version)).map(|(key, _)| key.clone()).collect();
        if newly || !loose.is_empty() {
            self.write_alone(now, newly, &loose, &mut heads, &mut records);
        }
        let mut batch = self.store.switch(&heads, Vec::new(), records.into_iter().collect(), Vec::new());
        self.raise_ceiling();
        batch.meta = Some(self.meta);
        self.persist(batch, true, fx);
    }

    /// A branch of this copy's own, closed at once: what it has and its heads cannot tell of is written anew in it, as it was; and
    /// that it stands in.
    fn write_alone(
        &mut self,
        now: Now,
        stands_in: bool,
        loose: &[Bytes],
        heads: &mut Heads,
        records: &mut BTreeMap<Bytes, Record>,
    ) {
        let (me, line) = (self.config.me, self.config.line);
        self.meta.n = self.meta.n.max(heads.last_of(me, line).into()).saturating_add(1);
        let branch = BranchId::of_line(me, line, self.meta.n as u32);
        let ballot = Ballot { counter: self.heard.counter.saturating_add(1), node: me };
        self.hear(ballot);
        self.meta.promised = ballot;
        let (first, last) = (Version { branch, seq: 1 }, Version { branch, seq: 2 });
        loose.iter().filter_map(|key| records.get_mut(key).map(|r| r.version = first)).for_each(drop);
        let hlc = self.stamp(now);
        let mut put =
            |key, version, value| records.insert(key, Record { version, hlc, expires: None, value: Some(value) });
        let alone = BTreeSet::from([me]);
        put(key::branch(branch), first, key::encode(&(ballot, vec![(1u64, alone.clone())])));
        put(key::closed(branch), last, Bytes::new());
        if stands_in {
            put(key::set(line), first, key::encode(&alone));
            put(key::member(me), first, key::encode(&MemberStatus::StandIn));
        }
        heads.add(last);
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
