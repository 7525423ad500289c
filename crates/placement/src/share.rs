//! How many copies of each table every node is to hold.

use crate::{Aim, Group, Picture, caps, flow, zones};
use std::collections::BTreeSet;

/// What rounding may make of numbers that are equal.
pub(crate) const NEARLY: f64 = 1e-6;

/// Divides by weight, nobody more than there is room for.
fn divide(total: f64, weights: &[f64], room: &[f64]) -> Vec<f64> {
    let mut full = vec![false; weights.len()];
    loop {
        let taken: f64 = full.iter().zip(room).filter(|(full, _)| **full).map(|(_, room)| room).sum();
        let free: f64 = full.iter().zip(weights).filter(|(full, _)| !**full).map(|(_, weight)| weight).sum();
        let each = if free > 0.0 { (total - taken).max(0.0) / free } else { 0.0 };
        let over = |i: &usize| !full[*i] && weights[*i] * each > room[*i] + NEARLY;
        let over: Vec<usize> = (0..weights.len()).filter(over).collect();
        if over.is_empty() {
            let part = |i: usize| if full[i] { room[i] } else { weights[i] * each };
            return (0..weights.len()).map(part).collect();
        }
        over.into_iter().for_each(|i| full[i] = true);
    }
}

pub(crate) fn floor(share: f64) -> usize {
    (share + NEARLY).floor() as usize
}

pub(crate) fn ceil(share: f64) -> usize {
    (share - NEARLY).ceil().max(0.0) as usize
}

/// What each machine is to hold of a group.
pub(crate) struct Quota {
    /// Its exact share of the copies.
    pub(crate) share: Vec<f64>,
    /// Rounded: how many copies.
    pub(crate) copies: Vec<usize>,
}

/// One table's shares, and how they are rounded.
struct Rounded {
    shares: Vec<f64>,
    /// Copies that each node is to hold.
    quota: Vec<usize>,
    zone_room: Vec<usize>,
    zone_sum: Vec<usize>,
    /// None of its copies can be given to a machine that is short of them: it had better keep what it has.
    stuck: Vec<bool>,
    /// What each holds.
    held: Vec<usize>,
}

impl Rounded {
    /// Of what a node holds, what its share allows; and what that asks for in any case.
    fn stays(&self, i: usize) -> usize {
        self.held[i].clamp(floor(self.shares[i]), ceil(self.shares[i]).max(floor(self.shares[i])))
    }

    /// Can one more, or one less, be taken by this node?
    fn may_gain(&self, i: usize) -> bool {
        self.quota[i] < ceil(self.shares[i])
    }

    fn may_lose(&self, i: usize) -> bool {
        self.quota[i] > floor(self.shares[i])
    }

    /// May one be had by `to` instead of `from`?
    fn may_shift(&self, from: usize, to: usize, zone: &[usize]) -> bool {
        let room = zone[from] == zone[to] || self.zone_sum[zone[to]] < self.zone_room[zone[to]];
        self.may_lose(from) && self.may_gain(to) && room
    }

    fn shift(&mut self, from: usize, to: usize, zone: &[usize]) {
        self.quota[from] -= 1;
        self.quota[to] += 1;
        self.zone_sum[zone[from]] -= 1;
        self.zone_sum[zone[to]] += 1;
    }
}

/// Of each group, how many of its fragments every machine is to hold.
/// And how far each machine is ahead of its share of all groups by that.
pub(crate) fn quotas(picture: &Picture, groups: &[Group], aim: Aim) -> (Vec<Quota>, Vec<f64>) {
    let (count, zone) = zones(picture);
    let n = picture.machines.len();
    let mut totals = (vec![0.0; n], vec![0usize; n]);
    let mut all = Vec::with_capacity(groups.len());
    // How far each is ahead of its share of all tables, as far as it can stay with what it has.
    let mut ahead = vec![0.0; n];
    for group in groups {
        let held = held(picture, group);
        let rounded = match group.aim(picture, aim) {
            Aim::Balance => shares(picture, group, held, (count, &zone)),
            // Nobody is over his share: nothing moves for its sake.
            Aim::Repair => {
                let fill = |i: usize| if picture.machines[i].weight == 0 { held[i] } else { group.fragments };
                all.push(Rounded {
                    shares: vec![0.0; n],
                    quota: (0..n).map(fill).collect(),
                    zone_room: Vec::new(),
                    zone_sum: Vec::new(),
                    stuck: Vec::new(),
                    held,
                });
                continue;
            }
        };
        for (i, ahead) in ahead.iter_mut().enumerate() {
            *ahead += (rounded.stays(i) as f64 - rounded.shares[i]) * group.weight() as f64;
        }
        all.push(rounded);
    }
    for (rounded, group) in all.iter_mut().zip(groups).filter(|(r, _)| !r.stuck.is_empty()) {
        round(rounded, (group, bound(groups)), &mut ahead, &mut totals, &zone);
    }
    if aim == Aim::Balance {
        level(groups, &mut all, &mut totals, &zone);
    }
    let ahead = totals.0.iter().zip(&totals.1).map(|(share, copies)| *copies as f64 - share).collect();
    (all.into_iter().map(|rounded| Quota { share: rounded.shares, copies: rounded.quota }).collect(), ahead)
}

/// How many fragments of the group's first table each machine holds.
fn held(picture: &Picture, group: &Group) -> Vec<usize> {
    let place = crate::copies::places(picture);
    let mut held = vec![0; picture.machines.len()];
    for fragment in group.tables.first().iter().flat_map(|t| &picture.tables[**t].fragments) {
        fragment.holders.iter().filter_map(|h| place.get(&h.node)).for_each(|i| held[*i] += 1);
    }
    held
}

/// By weight, first among zones and then within each: a zone has no room for more than its part of each fragment.
fn shares(picture: &Picture, group: &Group, held: Vec<usize>, (count, zone): (usize, &[usize])) -> Rounded {
    let machines = &picture.machines;
    let fragments = group.fragments as f64;
    let caps = caps(picture, zone, count, group.copies);
    // Who is away keeps what it has.
    let stays = |i: usize| if machines[i].away { held[i].min(group.fragments) } else { 0 };
    let kept: usize = (0..machines.len()).map(stays).sum();
    let total = ((group.fragments * group.copies) as f64 - kept as f64).max(0.0);
    let weight = |i: usize| if machines[i].away { 0.0 } else { f64::from(machines[i].weight) };
    let (mut zone_weight, mut zone_room) = (vec![0.0; count], vec![0.0; count]);
    let mut zone_kept = vec![0; count];
    for i in 0..machines.len() {
        zone_weight[zone[i]] += weight(i);
        zone_kept[zone[i]] += stays(i);
    }
    for z in 0..count {
        zone_room[z] = (fragments * caps[z] as f64 - zone_kept[z] as f64).max(0.0);
    }
    let parts = divide(total, &zone_weight, &zone_room);
    let mut shares = vec![0.0; machines.len()];
    for (z, part) in parts.into_iter().enumerate() {
        let of: Vec<usize> = (0..machines.len()).filter(|i| zone[*i] == z).collect();
        let weights: Vec<f64> = of.iter().map(|i| weight(*i)).collect();
        let within = divide(part, &weights, &vec![fragments; of.len()]);
        of.iter().zip(within).for_each(|(i, share)| shares[*i] = share + stays(*i) as f64);
    }
    let room = |z: usize| group.fragments * caps[z];
    let n = machines.len();
    let stuck = stuck(picture, group, (&shares, &held), zone, &caps);
    let (zone_room, zone_sum) = ((0..count).map(room).collect(), vec![0; count]);
    Rounded { shares, quota: vec![0; n], zone_room, zone_sum, stuck, held }
}

/// Of each machine, whether no zone of those that are short has room for any of its copies.
fn stuck(
    picture: &Picture,
    group: &Group,
    (shares, held): (&[f64], &[usize]),
    zone: &[usize],
    caps: &[usize],
) -> Vec<bool> {
    let n = picture.machines.len();
    let short: BTreeSet<usize> = (0..n).filter(|i| held[*i] < floor(shares[*i])).map(|i| zone[i]).collect();
    let mut stuck: Vec<bool> = held.iter().map(|held| *held > 0).collect();
    if short.is_empty() || short.len() == caps.len() {
        return vec![false; n];
    }
    let place = crate::copies::places(picture);
    for fragment in group.tables.first().iter().flat_map(|t| &picture.tables[**t].fragments) {
        let on: Vec<usize> = fragment.holders.iter().filter_map(|h| place.get(&h.node).copied()).collect();
        let others = |z: usize, i: usize| on.iter().filter(|j| zone[**j] == z && **j != i).count();
        for i in &on {
            stuck[*i] &= !short.iter().any(|z| others(*z, *i) < caps[*z]);
        }
    }
    stuck
}

/// Rounds down, and gives what is left over: first to those who would have too little of all tables without, then to those who hold it
/// already, then to those who have the least.
fn round(
    rounded: &mut Rounded,
    (group, bound): (&Group, f64),
    ahead: &mut [f64],
    totals: &mut (Vec<f64>, Vec<usize>),
    zone: &[usize],
) {
    let n = rounded.shares.len();
    for (i, zone) in zone.iter().enumerate() {
        rounded.quota[i] = floor(rounded.shares[i]);
        rounded.zone_sum[*zone] += rounded.quota[i];
    }
    let total: f64 = rounded.shares.iter().sum();
    let mut left = (total + 0.5).floor() as usize - rounded.quota.iter().sum::<usize>().min((total + 0.5) as usize);
    let mut order: Vec<usize> = (0..n).filter(|i| rounded.may_gain(*i)).collect();
    let weight = group.weight() as f64;
    // Without what is left over.
    for (i, ahead) in ahead.iter_mut().enumerate() {
        *ahead -= (rounded.stays(i) as f64 - rounded.quota[i] as f64) * weight;
    }
    let first = |i: usize| {
        let (has, fits) = (rounded.held[i] > rounded.quota[i], ahead[i] + weight < bound);
        (has && fits, ahead[i] <= -bound, has && rounded.stuck[i], fits)
    };
    order.sort_by(|a, b| first(*b).cmp(&first(*a)).then(ahead[*a].total_cmp(&ahead[*b])).then(a.cmp(b)));
    for i in order {
        if left > 0 && rounded.zone_sum[zone[i]] < rounded.zone_room[zone[i]] {
            (rounded.quota[i], left) = (rounded.quota[i] + 1, left - 1);
            rounded.zone_sum[zone[i]] += 1;
            ahead[i] += weight;
        }
    }
    for i in 0..n {
        totals.0[i] += rounded.shares[i] * group.weight() as f64;
        totals.1[i] += rounded.quota[i] * group.weight();
    }
}

/// How far from its share of all tables a machine may not be: as much as moves together.
pub(crate) fn bound(groups: &[Group]) -> f64 {
    groups.iter().map(Group::weight).max().unwrap_or(1) as f64 - NEARLY
}

/// Over all tables, too, every node has its share: roundings are exchanged along shortest paths until it has.
fn level(groups: &[Group], all: &mut [Rounded], totals: &mut (Vec<f64>, Vec<usize>), zone: &[usize]) {
    let n = totals.0.len();
    let ahead = |totals: &(Vec<f64>, Vec<usize>), i: usize| totals.1[i] as f64 - totals.0[i];
    let bound = bound(groups);
    // Those who could not give keep what they have, as long as others can be found.
    let mut strict = true;
    // Each path brings one node nearer; more than there are roundings cannot be wrong.
    for _ in 0..n * groups.len() {
        let over: Vec<usize> = (0..n).filter(|i| ahead(totals, *i) >= bound).collect();
        let under: Vec<usize> = (0..n).filter(|i| ahead(totals, *i) <= -bound).collect();
        let next = |from: usize, say: flow::Say<'_, usize>| {
            // Of what is fixed nothing is exchanged.
            let even = |rounded: &Rounded| rounded.stuck.get(from).is_some_and(|stuck| !(strict && *stuck));
            let may = |rounded: &Rounded| even(rounded) && rounded.may_lose(from);
            let mut all = all.iter().enumerate().filter(|(_, rounded)| may(rounded));
            all.all(|(g, rounded)| (0..n).filter(|to| rounded.may_shift(from, *to, zone)).all(|to| say(to, g)));
        };
        let way = if !over.is_empty() {
            flow::path(n, over, next, |i| ahead(totals, i) < -NEARLY)
        } else if !under.is_empty() {
            let ends = |i: usize| under.contains(&i);
            flow::path(n, (0..n).filter(|i| ahead(totals, *i) > NEARLY), next, ends)
        } else {
            return;
        };
        if strict && way.is_none() {
            strict = false;
            continue;
        }
        let Some(way) = way else { return };
        for (from, to, g) in way {
            if !all[g].may_shift(from, to, zone) {
                return;
            }
            all[g].shift(from, to, zone);
            totals.1[from] -= groups[g].weight();
            totals.1[to] += groups[g].weight();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_go_by_weight_and_nobody_gets_more_than_there_is_room_for() {
        assert_eq!(divide(12.0, &[1.0, 2.0, 3.0], &[9.0; 3]), [2.0, 4.0, 6.0]);
        assert_eq!(divide(12.0, &[1.0, 1.0, 10.0], &[5.0; 3]), [3.5, 3.5, 5.0]);
        assert_eq!(divide(12.0, &[0.0, 1.0, 1.0], &[5.0; 3]), [0.0, 5.0, 5.0]);
        assert_eq!((floor(2.9999999), ceil(3.0000001)), (3, 3));
    }
}
