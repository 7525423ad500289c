//! Who leads: a machine leads its part of what it holds.

use crate::copies::{Placed, places};
use crate::share::{NEARLY, Quota, bound, ceil, floor};
use crate::{Aim, Group, Picture, flow};

/// One group's leaders.
struct Leads<'a> {
    placed: &'a Placed,
    lead: Vec<Option<usize>>,
    count: Vec<usize>,
    share: Vec<f64>,
    low: Vec<usize>,
    high: Vec<usize>,
    /// Of each machine, what it leads and others may lead.
    of: Vec<Vec<usize>>,
    /// Which may be given more to lead.
    able: Vec<bool>,
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
        let able = |to: &&usize| self.able[**to];
        self.of[from].iter().flat_map(move |f| self.placed.on[*f].iter().filter(able).map(move |to| (*f, *to)))
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
        all.iter_mut().zip(groups).filter(|(_, g)| g.aim(picture, aim) == aim).for_each(|(leads, _)| even_out(leads));
        level(picture.machines.len(), groups, &mut all);
    }
    all.into_iter().map(|leads| leads.lead).collect()
}

/// Who leads goes on, if it keeps its copy.
fn begin<'a>(picture: &Picture, group: &Group, placed: &'a Placed, quota: &Quota) -> Leads<'a> {
    let place = places(picture);
    let n = picture.machines.len();
    // What some cannot lead the others do.
    let able: Vec<bool> = picture.machines.iter().map(|m| m.leads && !m.away).collect();
    let sum: f64 = quota.share.iter().zip(&able).filter(|(_, able)| **able).map(|(share, _)| share).sum();
    let scale = if sum > NEARLY { placed.on.len() as f64 / sum } else { 0.0 };
    let share: Vec<f64> = quota.share.iter().zip(&able).map(|(s, able)| if *able { s * scale } else { 0.0 }).collect();
    let (low, high) = (share.iter().map(|s| floor(*s)).collect(), share.iter().map(|s| ceil(*s)).collect());
    let lead = vec![None; placed.on.len()];
    let mut leads = Leads { placed, lead, count: vec![0; n], share, low, high, of: vec![Vec::new(); n], able };
    let head = &picture.tables[group.tables[0]].fragments;
    let mut open = Vec::new();
    for (f, fragment) in head.iter().enumerate() {
        let now = fragment.leader.and_then(|node| place.get(&node).copied());
        match now.filter(|i| placed.on[f].contains(i)) {
            Some(i) if fragment.settled => (leads.lead[f], leads.count[i]) = (Some(i), leads.count[i] + 1),
            Some(i) => leads.put(f, i),
            None => open.push(f),
        }
    }
    for f in open {
        let able = |i: &&usize| leads.able[**i];
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
    let mut stuck = vec![false; n];
    for _ in 0..leads.lead.len() * 2 + 1 {
        // Where all is settled nothing can be given away.
        let may = |i: &usize| leads.count[*i] > leads.high[*i] && !leads.of[*i].is_empty() && !stuck[*i];
        let over: Vec<usize> = (0..n).filter(may).collect();
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
        let Some(way) = flow::path(n, from, next, ends) else {
            if over.is_empty() {
                return;
            }
            over.into_iter().for_each(|i| stuck[i] = true);
            continue;
        };
        way.into_iter().rev().for_each(|(_, to, f)| leads.put(f, to));
    }
}

/// And so it is over all tables together.
fn level(n: usize, groups: &[Group], all: &mut [Leads]) {
    let mut ahead = vec![0.0; n];
    for (group, leads) in groups.iter().zip(all.iter()) {
        for (i, ahead) in ahead.iter_mut().enumerate() {
            *ahead += group.weight() as f64 * (leads.count[i] as f64 - leads.share[i]);
        }
    }
    let bound = bound(groups);
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
