//! Where the copies of one group of tables are to be.

use crate::share::{Quota, ceil, floor};
use crate::{Aim, Group, Picture, caps, flow, zones};
use base::{FragmentId, NodeId};
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// Where each machine is in the picture.
pub(crate) fn places(picture: &Picture) -> BTreeMap<NodeId, usize> {
    picture.machines.iter().enumerate().map(|(i, machine)| (machine.node, i)).collect()
}

/// Of each fragment, the machines with copies.
pub(crate) struct Placed {
    pub(crate) on: Vec<Vec<usize>>,
}

struct Work<'a> {
    picture: &'a Picture,
    ids: Vec<FragmentId>,
    bytes: Vec<u64>,
    zone: Vec<usize>,
    caps: Vec<usize>,
    quota: Vec<usize>,
    /// Who may get copies at all.
    open: Vec<bool>,
    on: Vec<Vec<usize>>,
    /// Where copies were at first: others are not made yet, and may go elsewhere at no cost.
    had: Vec<Vec<usize>>,
    /// Of each machine, its fragments, small ones first.
    of: Vec<Vec<usize>>,
    share: &'a [f64],
    weight: f64,
    /// Of each machine, the bytes of all tables placed so far.
    load: &'a mut [u64],
    ahead: &'a mut [f64],
    bound: f64,
}

/// What all groups have in common.
pub(crate) struct SoFar<'a> {
    /// Of each machine, the bytes of all that was placed.
    pub(crate) bytes: &'a mut [u64],
    /// How far each machine is ahead of its share of all groups, and how far it must not be.
    pub(crate) ahead: &'a mut [f64],
    pub(crate) bound: f64,
}

/// What is where it may be stays, as far as nobody is over his share.
pub(crate) fn place(picture: &Picture, group: &Group, quota: &Quota, aim: Aim, so_far: SoFar<'_>) -> Placed {
    let mut work = Work::new(picture, group, quota, so_far);
    if aim == Aim::Balance {
        (0..group.fragments).for_each(|f| work.trim(f, group.copies));
    }
    // The most endangered first.
    let mut needy: Vec<usize> = (0..group.fragments).filter(|f| work.on[*f].len() < group.copies).collect();
    needy.sort_by_key(|f| work.on[*f].len());
    for f in needy {
        while work.on[f].len() < group.copies && work.fill(f, aim) {}
    }
    if aim == Aim::Balance {
        work.even_out();
    }
    Placed { on: work.on }
}

impl<'a> Work<'a> {
    fn new(picture: &'a Picture, group: &Group, quota: &'a Quota, so_far: SoFar<'a>) -> Work<'a> {
        let SoFar { bytes: load, ahead, bound } = so_far;
        let place = places(picture);
        let (count, zone) = zones(picture);
        let caps = caps(picture, &zone, count, group.copies);
        let head = &picture.tables[group.tables[0]].fragments;
        let bytes_of =
            |f: usize| group.tables.iter().filter_map(move |t| picture.tables[*t].fragments.get(f)).map(|f| f.bytes);
        let bytes: Vec<u64> = (0..head.len()).map(|f| bytes_of(f).fold(0, u64::saturating_add)).collect();
        let mut on = Vec::with_capacity(head.len());
        let mut of = vec![Vec::new(); picture.machines.len()];
        for (f, fragment) in head.iter().enumerate() {
            let mut here: Vec<usize> = fragment.holders.iter().filter_map(|h| place.get(&h.node).copied()).collect();
            here.sort_unstable();
            here.dedup();
            here.iter().for_each(|i| of[*i].push(f));
            on.push(here);
        }
        for (i, mine) in of.iter_mut().enumerate() {
            mine.sort_by_key(|f| (bytes[*f], *f));
            load[i] = mine.iter().map(|f| bytes[*f]).fold(load[i], u64::saturating_add);
        }
        let ids = head.iter().map(|f| f.id).collect();
        let open = picture.machines.iter().map(|m| m.weight > 0 && !m.away).collect();
        let (share, weight, quota) = (&quota.share[..], group.weight() as f64, quota.copies.clone());
        let had = on.clone();
        Work { picture, ids, bytes, zone, caps, quota, open, on, had, of, share, weight, load, ahead, bound }
    }

    fn spare(&self, i: usize) -> usize {
        self.quota[i].saturating_sub(self.of[i].len())
    }

    fn in_zone(&self, f: usize, zone: usize) -> usize {
        self.on[f].iter().filter(|i| self.zone[**i] == zone).count()
    }

    /// May this machine get a copy, in place of another's?
    fn may_hold(&self, f: usize, i: usize, instead: Option<usize>) -> bool {
        if !self.open[i] || self.on[f].contains(&i) {
            return false;
        }
        let zone = self.zone[i];
        let leaves = usize::from(instead.is_some_and(|other| self.zone[other] == zone));
        self.in_zone(f, zone) - leaves < self.caps[zone]
    }

    fn put(&mut self, f: usize, i: usize) {
        self.on[f].push(i);
        self.of[i].push(f);
        self.load[i] = self.load[i].saturating_add(self.bytes[f]);
    }

    fn take(&mut self, f: usize, i: usize) {
        self.on[f].retain(|other| *other != i);
        self.of[i].retain(|other| *other != f);
        self.load[i] = self.load[i].saturating_sub(self.bytes[f]);
    }

    /// Copies that are too many in their zone, or at all, are no part of the plan: first those of machines that have the most too many.
    fn trim(&mut self, f: usize, copies: usize) {
        loop {
            let crowded = |i: &usize| self.in_zone(f, self.zone[*i]) > self.caps[self.zone[*i]];
            let live = self.on[f].iter().filter(|i| !self.picture.machines[**i].away).count();
            let mut may_go: Vec<usize> =
                self.on[f].iter().copied().filter(|i| !self.picture.machines[*i].away).collect();
            // Not in favour of one that is away; nor of a zone that has nobody to take it.
            if live <= copies {
                let elsewhere = |i: &usize| (0..self.quota.len()).any(|to| self.may_hold(f, to, Some(*i)));
                may_go.retain(|i| crowded(i) && elsewhere(i));
            }
            let excess = |i: usize| self.of[i].len() as i64 - self.quota[i] as i64;
            let worst = may_go.into_iter().max_by_key(|i| (crowded(i), excess(*i), self.load[*i], Reverse(*i)));
            let Some(worst) = worst else { return };
            self.take(f, worst);
        }
    }

    /// Puts one more copy somewhere; `false`: there is nowhere.
    fn fill(&mut self, f: usize, aim: Aim) -> bool {
        let key =
            |i: &usize| (self.spare(*i), Reverse(self.load[*i]), mix(self.ids[f], self.picture.machines[*i].node));
        let n = self.quota.len();
        // Most are ruled out by what costs the least to look at.
        let mut best: Option<usize> = None;
        for i in (0..n).filter(|i| self.spare(*i) > 0) {
            if best.is_none_or(|b| self.spare(i) >= self.spare(b) && key(&i) > key(&b)) && self.may_hold(f, i, None) {
                best = Some(i);
            }
        }
        if let Some(best) = best {
            self.put(f, best);
            return true;
        }
        let from: Vec<usize> = (0..n).filter(|i| self.may_hold(f, *i, None)).collect();
        if aim == Aim::Repair || from.is_empty() {
            // Better in a zone that has one already than nowhere.
            let any = (0..n).filter(|i| self.open[*i] && !self.on[f].contains(i)).max_by_key(key);
            any.inspect(|i| self.put(f, *i));
            return any.is_some();
        }
        if let Some(way) = self.way(from.clone(), true) {
            let first = way.first().map(|(from, ..)| *from);
            self.walk(way);
            if let Some(there) = first.into_iter().chain(from.clone()).find(|i| self.may_hold(f, *i, None)) {
                self.put(f, there);
                return true;
            }
        }
        if let Some((taker, other, f)) = self.taker(&[f], None) {
            self.exchange(taker, other);
            self.put(f, taker);
            return true;
        }
        let Some(way) = self.way(from.clone(), false) else {
            // More than its share, rather than nowhere: it is evened out later.
            from.first().inspect(|i| self.put(f, **i));
            return !from.is_empty();
        };
        let first = way.first().map(|(from, ..)| *from);
        self.walk(way);
        let there = first.into_iter().chain(from).find(|i| self.may_hold(f, *i, None));
        there.inspect(|i| self.put(f, *i)).is_some()
    }

    /// A shortest way from one of these machines to one that has less than its share, by moving a fragment each time; `free`: one whose
    /// copy is not made yet.
    fn way(&self, from: Vec<usize>, free: bool) -> Option<Vec<flow::Hop<usize>>> {
        let n = self.quota.len();
        let mut spare: Vec<usize> = (0..n).filter(|i| self.spare(*i) > 0 && self.open[*i]).collect();
        spare.sort_by_key(|i| (Reverse(self.spare(*i)), self.load[*i], *i));
        let next = |from: usize, say: flow::Say<'_, usize>| {
            if self.picture.machines[from].away {
                return;
            }
            let mut try_all = |to: &[usize]| {
                let mine = self.of[from].iter().filter(|f| !free || !self.had[**f].contains(&from));
                let mut both = mine.flat_map(|f| to.iter().map(move |to| (*f, *to)));
                both.all(|(f, to)| !self.may_hold(f, to, Some(from)) || say(to, f))
            };
            if try_all(&spare) {
                let rest: Vec<usize> = (0..n).filter(|i| self.spare(*i) == 0 && self.open[*i]).collect();
                try_all(&rest);
            }
        };
        flow::path(n, from, next, |i| self.spare(i) > 0)
    }

    /// From its end: after each step every fragment has as many copies as before.
    fn walk(&mut self, way: Vec<flow::Hop<usize>>) -> bool {
        for (from, to, f) in way.into_iter().rev() {
            if !self.on[f].contains(&from) || !self.may_hold(f, to, Some(from)) {
                return false;
            }
            self.take(f, from);
            self.put(f, to);
        }
        true
    }

    /// Where one could give only by moving others first: somebody else who can give away one at once, and may have less.
    fn instead(&self, i: usize) -> Option<flow::Hop<usize>> {
        if self.quota[i] >= ceil(self.share[i]) || self.ahead[i] + self.weight >= self.bound {
            return None;
        }
        let may = |j: &usize| {
            let less = self.quota[*j] > floor(self.share[*j]) && self.ahead[*j] - self.weight > -self.bound;
            *j != i && less && self.of[*j].len() == self.quota[*j] && !self.picture.machines[*j].away
        };
        let spare: Vec<usize> = (0..self.quota.len()).filter(|to| self.spare(*to) > 0 && self.open[*to]).collect();
        let gives = |j: usize| {
            let mut both = self.of[j].iter().flat_map(|f| spare.iter().map(move |to| (*f, *to)));
            both.find(|(f, to)| self.may_hold(*f, *to, Some(j))).map(|(f, to)| (j, to, f))
        };
        (0..self.quota.len()).filter(may).find_map(gives)
    }

    /// Where whoever is short of copies can be given none of these at once: somebody else who can, and may have one more in place of
    /// one who is short; that one; and which.
    fn taker(&self, fragments: &[usize], from: Option<usize>) -> Option<(usize, usize, usize)> {
        let n = self.quota.len();
        let less = |i: &usize| {
            let may = self.quota[*i] > floor(self.share[*i]) && self.ahead[*i] - self.weight > -self.bound;
            may && self.open[*i] && self.spare(*i) > 0
        };
        let short = (0..n).filter(less).max_by_key(|i| (self.spare(*i), Reverse(*i)))?;
        let more = |i: &usize| {
            let may = self.quota[*i] < ceil(self.share[*i]) && self.ahead[*i] + self.weight < self.bound;
            may && self.of[*i].len() <= self.quota[*i] && *i != short
        };
        let takes = |i: usize| fragments.iter().find(|f| self.may_hold(**f, i, from)).map(|f| (i, short, *f));
        (0..n).filter(more).find_map(takes)
    }

    /// One may have one more, and the other one less.
    fn exchange(&mut self, more: usize, less: usize) {
        (self.quota[more], self.quota[less]) = (self.quota[more] + 1, self.quota[less] - 1);
        self.ahead[more] += self.weight;
        self.ahead[less] -= self.weight;
    }

    /// Whoever has more than its share gives to those who have less.
    fn even_out(&mut self) {
        for i in (0..self.quota.len()).filter(|i| !self.picture.machines[*i].away).collect::<Vec<_>>() {
            while self.of[i].len() > self.quota[i] {
                let Some(way) = self.way(vec![i], false) else { break };
                if way.len() > 1
                    && let Some((other, to, f)) = self.instead(i)
                {
                    self.exchange(i, other);
                    self.walk(vec![(other, to, f)]);
                    continue;
                }
                if way.len() > 1
                    && let Some((taker, other, f)) = self.taker(&self.of[i], Some(i))
                {
                    self.exchange(taker, other);
                    self.walk(vec![(i, taker, f)]);
                    continue;
                }
                if !self.walk(way) {
                    break;
                }
            }
        }
    }
}

/// Spreads the copies of a node's fragments over all others, so that all help when it is lost.
fn mix(fragment: FragmentId, node: NodeId) -> u64 {
    let mut x =
        fragment.table.0 ^ u64::from(fragment.index).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ node.0.rotate_left(32);
    // The finalizer of SplitMix64 (Steele, Lea, Flood, 2014).
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
