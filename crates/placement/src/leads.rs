//! Who leads: a machine leads its part of what it holds.

use crate::copies::{Placed, places};
use crate::share::{NEARLY, Quota, ceil, floor};
use crate::{Aim, Group, Picture, flow};

/// One group's leaders.
struct Leads<'a> {
    placed: &'a Placed,
    lead: Vec<Option<usize>>,
    count: Vec<usize>,
    share: Vec<f64>,
    low: Vec<usize>,
    high: Vec<usize>,
    /// Of each machine, what it leads.
    of: Vec<Vec<usize>>,
}

impl Leads<'_> {
    fn put(&mut self, f: usize, to: usize) {
        if let Some(from) = self.lead[f].replace(to) {
            self.count[from] -= 1;
            self.of[from].retain(|other| *other != f);
        }
        self.count[to] += 1;
        self.of[to].push(f);
    }

    /// What this one leads, and who could instead.
    fn others(&self, from: usize) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.of[from].iter().flat_map(move |f| self.placed.on[*f].iter().map(move |to| (*f, *to)))
    }
}

/// Who is to lead each fragment of each group.
pub(crate) fn choose(
    picture: &Picture,
    groups: &[Group],
    placed: &[Placed],
    quotas: &[Quota],
    aim: Aim,
) -> Vec<Vec<Option<usize>>> {
    let all = groups.iter().zip(placed).zip(quotas);
    let mut all: Vec<Leads> = all.map(|((group, placed), quota)| begin(picture, group, placed, quota)).collect();
    if aim == Aim::Balance {
        all.iter_mut().for_each(even_out);
        level(picture.machines.len(), groups, &mut all);
    }
    all.into_iter().map(|leads| leads.lead).collect()
}

/// Who leads goes on, if it keeps its copy.
fn begin<'a>(picture: &Picture, group: &Group, placed: &'a Placed, quota: &Quota) -> Leads<'a> {
    let place = places(picture);
    let n = picture.machines.len();
    let share: Vec<f64> = quota.share.iter().map(|share| share / group.copies.max(1) as f64).collect();
    let (low, high) = (share.iter().map(|s| floor(*s)).collect(), share.iter().map(|s| ceil(*s)).collect());
    let lead = vec![None; placed.on.len()];
    let mut leads = Leads { placed, lead, count: vec![0; n], share, low, high, of: vec![Vec::new(); n] };
    let head = &picture.tables[group.tables[0]].fragments;
    let now = |f: usize| head[f].leader.and_then(|node| place.get(&node).copied());
    let mut open = Vec::new();
    for f in 0..head.len() {
        match now(f).filter(|i| placed.on[f].contains(i)) {
            Some(i) => leads.put(f, i),
            None => open.push(f),
        }
    }
    for f in open {
        let able = |i: &&usize| !picture.machines[**i].away;
        let ahead = |i: &usize| leads.count[*i] as f64 - leads.share[*i];
        let best = placed.on[f].iter().filter(able).min_by(|a, b| ahead(a).total_cmp(&ahead(b)));
        if let Some(best) = best.copied() {
            leads.put(f, best);
        }
    }
    leads
}

/// Each machine leads its share of the group, rounded up or down.
fn even_out(leads: &mut Leads) {
    let n = leads.count.len();
    for _ in 0..leads.lead.len() * 2 {
        let over: Vec<usize> = (0..n).filter(|i| leads.count[*i] > leads.high[*i]).collect();
        let from: Vec<usize> = match over.is_empty() {
            false => over.clone(),
            true => (0..n).filter(|i| leads.count[*i] > leads.low[*i]).collect(),
        };
        let next = |from: usize, say: flow::Say<'_, usize>| {
            leads.others(from).all(|(f, to)| say(to, f));
        };
        let ends = |i: usize| leads.count[i] < if over.is_empty() { leads.low[i] } else { leads.high[i] };
        if over.is_empty() && !(0..n).any(ends) {
            return;
        }
        let Some(way) = flow::path(n, from, next, ends) else { return };
        way.into_iter().rev().for_each(|(_, to, f)| leads.put(f, to));
    }
}

/// And so it is over all tables together.
fn level(n: usize, groups: &[Group], all: &mut [Leads]) {
    let most = groups.iter().map(Group::weight).max().unwrap_or(1) as f64;
    let mut ahead = vec![0.0; n];
    for (group, leads) in groups.iter().zip(all.iter()) {
        for (i, ahead) in ahead.iter_mut().enumerate() {
            *ahead += group.weight() as f64 * (leads.count[i] as f64 - leads.share[i]);
        }
    }
    let bound = most - NEARLY;
    for _ in 0..n * groups.len() {
        let over: Vec<usize> = (0..n).filter(|i| ahead[*i] >= bound).collect();
        let under: Vec<usize> = (0..n).filter(|i| ahead[*i] <= -bound).collect();
        let way = if !over.is_empty() {
            exchange(n, all, over, |i| ahead[i] < -NEARLY)
        } else if !under.is_empty() {
            exchange(n, all, (0..n).filter(|i| ahead[*i] > NEARLY).collect(), |i| under.contains(&i))
        } else {
            return;
        };
        let Some(way) = way else { return };
        for (from, to, (g, f)) in way {
            all[g].put(f, to);
            ahead[from] -= groups[g].weight() as f64;
            ahead[to] += groups[g].weight() as f64;
        }
    }
}

/// A shortest way to let others lead so that one machine leads one less and another one more, and all of them their share of each
/// group. A point of the way is a machine, or a machine that leads one too many of a group.
fn exchange(
    n: usize,
    all: &[Leads],
    from: Vec<usize>,
    ends: impl Fn(usize) -> bool,
) -> Option<Vec<flow::Hop<(usize, usize)>>> {
    let next = |at: usize, say: flow::Say<'_, Option<(usize, usize)>>| {
        if at < n {
            let mut groups = (0..all.len()).filter(|g| all[*g].count[at] > all[*g].low[at]);
            groups.all(|g| say(n + g * n + at, None));
            return;
        }
        let (g, i) = ((at - n) / n, (at - n) % n);
        let leads = &all[g];
        // As a way begins with a machine, what it leads is not counted yet.
        let room = leads.count[i] < leads.high[i];
        if !room || say(i, None) {
            leads.others(i).all(|(f, to)| say(n + g * n + to, Some((g, f))));
        }
    };
    let way = flow::path(n * (1 + all.len()), from, next, |at| at < n && ends(at))?;
    let machine = |at: usize| if at < n { at } else { (at - n) % n };
    Some(way.into_iter().filter_map(|(a, b, by)| Some((machine(a), machine(b), by?))).collect())
}
