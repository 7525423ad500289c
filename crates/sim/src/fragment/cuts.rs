//! Histories in which the fragment is joined with another, cut, and numbered anew while it is in use. Each node hears of it by itself:
//! from somebody in reach who has heard, or when it starts again.
//!
//! The other fragment is at rest: every node begins with a copy of it, which may lack the last of it or be missing.

use super::client::KEYS;
use super::disc::Disc;
use super::world::{Event, Node, World, id};
use base::{Ballot, BranchId, FragmentId, Heads, Hlc, NodeId, TableId, Version};
use bytes::Bytes;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use replica::{Copy, Effects, Fit, Legacy, MinInSync, Record, Slice, Space, Store};
use std::collections::{BTreeMap, BTreeSet};

const TABLE: TableId = TableId(1);
/// How many records the other fragment has.
const OTHERS: u8 = 12;
/// Whoever wrote them, long ago.
const AUTHOR: NodeId = NodeId(90);

/// What becomes of the fragment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// It and the other become one.
    Join,
    /// Of two parts it is one; the other goes its own way.
    Part,
    /// The same keys under another id.
    Same,
}

/// Which fragments there were and will be, and how far the nodes are.
pub(crate) struct Cuts {
    /// The fragment, era by era; the first is the one that there is from the start.
    eras: Vec<FragmentId>,
    kinds: Vec<Kind>,
    /// How many of the changes were made.
    made: usize,
    /// Up to which each node has heard, and which its copy is of.
    heard: Vec<usize>,
    pub at: Vec<usize>,
    /// What each node begins with of the other fragment: so many of its entries, or no copy.
    others: Vec<Option<u64>>,
    /// Nodes that are taken in again.
    adopted: BTreeSet<usize>,
}

/// What a node had before its copy was cut, until the new one is on disc.
pub(crate) struct Before {
    disc: Disc,
    at: usize,
}

impl Cuts {
    pub(crate) fn none(nodes: usize) -> Cuts {
        let eras = vec![FragmentId { table: TABLE, index: 0 }];
        let (zeros, others, adopted) = (vec![0; nodes], vec![None; nodes], BTreeSet::new());
        Cuts { eras, kinds: Vec::new(), made: 0, heard: zeros.clone(), at: zeros, others, adopted }
    }

    /// Is it joined with a fragment of which each record is to be there in the end?
    pub(crate) fn join(&self) -> bool {
        self.kinds.contains(&Kind::Join)
    }

    pub(crate) fn fragment(&self, node: usize) -> FragmentId {
        self.eras[self.at[node]]
    }
}

fn slice(first: u32, fragment: FragmentId) -> Slice {
    Slice { count: fragment.count().map_or(first, u32::from), place: fragment.place().into() }
}

fn other() -> FragmentId {
    FragmentId { table: TABLE, index: 1 }
}

fn others_key(n: u8) -> Bytes {
    Bytes::from(vec![Space::User as u8, 200 + n])
}

fn others_version(seq: u64) -> Version {
    Version { branch: BranchId::of_line(AUTHOR, other().index, 1), seq }
}

impl World {
    /// By chance of its own: histories without such changes are what they were before there were any.
    pub(crate) fn plan_cuts(&mut self, seed: u64) {
        let mut chance = StdRng::seed_from_u64(seed ^ 0x6375_7473);
        let nodes = self.nodes.len();
        let may = !self.stand_ins && self.options.asks.is_none() && self.min_in_sync != MinInSync::Majority;
        if !may || !(chance.random_bool(0.2) || self.options.cuts) {
            return;
        }
        // What all lose in a crash the other fragment, which is at rest here, would lose, too.
        let joins = chance.random_bool(0.5) && !self.lossy;
        let mut kinds = if joins { vec![Kind::Join] } else { Vec::new() };
        for _ in 0..chance.random_range(1..3) {
            kinds.push(Kind::Same);
        }
        if kinds[0] == Kind::Join {
            let at = chance.random_range(1..=kinds.len());
            kinds.insert(at, Kind::Part);
        }
        let mut count = if kinds[0] == Kind::Join { 2 } else { 1 };
        let mut eras = vec![FragmentId { table: TABLE, index: 0 }];
        for (era, kind) in (1..).zip(&kinds) {
            match kind {
                Kind::Join => count = 1,
                Kind::Part => count = 2,
                Kind::Same => {}
            }
            eras.push(FragmentId::new(TABLE, era, count, 0));
        }
        let has = |node: usize, chance: &mut StdRng| match chance.random_range(0..10) {
            _ if node == 0 || node >= self.founders => Some(u64::from(OTHERS)),
            0 => None,
            1 => Some(chance.random_range(1..u64::from(OTHERS))),
            _ => Some(u64::from(OTHERS)),
        };
        let others = (0..nodes).map(|node| has(node, &mut chance)).collect();
        self.cuts = Cuts { kinds, eras, others, ..Cuts::none(nodes) };
        let first = chance.random_range(800_000..4_000_000);
        self.at(first, Event::Cut);
    }

    /// Is it joined with the other one at first?
    pub(crate) fn joins(&self) -> bool {
        self.cuts.kinds.first() == Some(&Kind::Join)
    }

    /// The table's definition changes, as one node makes it known.
    pub(crate) fn cut(&mut self) {
        let all = self.cuts.made == self.cuts.heard.iter().copied().min().unwrap_or(0);
        let leads = |n: &Node| n.copy.as_ref().is_some_and(|c| c.lead().is_some() && !c.stands_in());
        if self.cuts.made < self.cuts.kinds.len() && all && self.nodes.iter().any(leads) {
            self.cuts.made += 1;
            let kind = self.cuts.kinds[self.cuts.made - 1];
            self.trace(|| format!("the fragment is changed: {kind:?}"));
            let first = self.rng.random_range(0..self.nodes.len());
            self.cuts.heard[first] = self.cuts.made;
            for node in 0..self.nodes.len() {
                let after = self.rng.random_range(1..100) * 1000;
                self.at(after, Event::Heard(node));
            }
        }
        if self.cuts.made < self.cuts.kinds.len() {
            let after = self.rng.random_range(200..3000) * 1000;
            self.at(after, Event::Cut);
        }
    }

    /// A node may have heard by now.
    pub(crate) fn hear_of_cut(&mut self, node: usize) {
        let told = |other: usize| {
            let down = self.nodes[other].copy.is_none() || self.nodes[node].copy.is_none();
            let linked = self.wired[node][other] && self.wired[other][node] && self.are_of_one_side(node, other);
            if !down && linked { self.cuts.heard[other] } else { 0 }
        };
        let heard = (0..self.nodes.len()).map(told).max().unwrap_or(0);
        self.cuts.heard[node] = heard.max(self.cuts.heard[node]);
        if self.nodes[node].copy.is_some() && self.nodes[node].paused <= self.now {
            while self.cuts.at[node] < self.cuts.heard[node] && self.change(node) {}
        }
        if self.cuts.at[node] < self.cuts.made {
            let after = self.rng.random_range(5..200) * 1000;
            self.at(after, Event::Heard(node));
        }
    }

    /// Its copy becomes one of the next fragment; `false`: not yet.
    fn change(&mut self, node: usize) -> bool {
        let now = self.clock(node);
        let (from, to) = (self.cuts.fragment(node), self.cuts.eras[self.cuts.at[node] + 1]);
        let first = if self.joins() { 2 } else { 1 };
        let kind = self.cuts.kinds[self.cuts.at[node]];
        let Some(mut copy) = self.nodes[node].copy.take() else { return false };
        self.check.before(node, &copy);
        let (leads, mut fx) = (copy.lead().is_some(), Effects::default());
        let heads = copy.store().heads().clone();
        let legacy = copy.bequeath(now, slice(first, from), &mut fx);
        let Some(legacy) = legacy else {
            self.nodes[node].copy = Some(copy);
            return false;
        };
        self.trace(|| format!("{node} changes with {heads:?}"));
        self.perform(node, fx);
        let keep = |key: &[u8]| Some(kind != Kind::Part || key.first().is_some_and(|k| *k < KEYS));
        let mut legacies: Vec<Legacy> = legacy.cut([true, false], keep).remove(&true).into_iter().collect();
        if kind == Kind::Join {
            legacies.extend(self.others(node));
        }
        let old = std::mem::take(&mut self.nodes[node].disc);
        self.nodes[node].disc.flushing = None;
        self.nodes[node].before = Some(Before { disc: old, at: self.cuts.at[node] });
        self.cuts.at[node] += 1;
        // What was on its way to the old one's disc is no word for the new one.
        self.nodes[node].life += 1;
        let stand_in = self.is_stand_in(node);
        let config = self.config(node, stand_in);
        let own = replica::Stored { meta: replica::Meta::default(), store: Store::default() };
        let of_line = |line: u32| slice(first, FragmentId { table: TABLE, index: line });
        let mut fx = Effects::default();
        let Some(fit) = Fit::of(slice(first, to), &of_line, &legacies) else {
            self.fail(format!("{node} has parts that do not fit"));
            return false;
        };
        let copy = Copy::inherit(now, config, own, fit, legacies, &mut fx);
        self.place(node, copy);
        let Some(copy) = &self.nodes[node].copy else { return false };
        if let Some(what) = self.check.after(node, copy, &fx) {
            self.fail(what);
        }
        self.perform(node, fx);
        self.see(node);
        if leads && let Some(copy) = &mut self.nodes[node].copy {
            let mut fx = Effects::default();
            copy.lead_on(now, &mut fx);
            self.perform(node, fx);
        }
        true
    }

    /// The node's copy of the other fragment, as it lay there.
    fn others(&mut self, node: usize) -> Option<Legacy> {
        let upto = self.cuts.others[node]?;
        let record = |seq: u64, value: Bytes| Record {
            version: others_version(seq),
            hlc: Hlc(seq << 16),
            expires: None,
            value: Some(value),
        };
        let full = |n: &usize| self.cuts.others[*n] == Some(OTHERS.into());
        let set: BTreeSet<NodeId> = (0..self.founders).filter(full).map(id).collect();
        let all: BTreeSet<NodeId> = (0..self.founders).map(id).collect();
        let mut rows: BTreeMap<Bytes, Record> = BTreeMap::new();
        let own = |space: Space, rest: &[u8]| Bytes::from([&[space as u8], rest].concat());
        let encode = |value: &dyn Fn() -> Vec<u8>| Bytes::from(value());
        let branch = [AUTHOR.0.to_be_bytes(), others_version(1).branch.n.to_be_bytes()].concat();
        let line = other().index.to_be_bytes();
        let opened = (Ballot { counter: 1, node: AUTHOR }, vec![(1u64, all.clone())]);
        rows.insert(own(Space::Branch, &branch), record(1, encode(&|| bytes_of(&opened))));
        for member in &all {
            let row = encode(&|| bytes_of(&replica::MemberStatus::In));
            rows.insert(own(Space::Member, &member.0.to_be_bytes()), record(1, row));
        }
        rows.insert(own(Space::Set, &line), record(1, encode(&|| bytes_of(&all))));
        for n in 1..OTHERS {
            rows.insert(others_key(n), record(n.into(), Bytes::from(vec![n])));
        }
        if upto == u64::from(OTHERS) {
            rows.insert(own(Space::Set, &line), record(upto, encode(&|| bytes_of(&set))));
        }
        rows.retain(|_, r| r.version.seq <= upto);
        let heads: Heads = [others_version(upto)].into_iter().collect();
        let store = Store::load(0, heads, rows.into_iter().map(|(key, r)| (key, r.into())));
        let config = replica::Config { fragment: other(), line: other().index, ..self.config(node, false) };
        let promised = replica::Meta { n: 1, promised: Ballot { counter: 1, node: AUTHOR }, ceiling: Hlc(1) };
        // It gave no leases that still run.
        let mut copy = Copy::new(self.clock(node), replica::Config { values: None, ..config }, promised, store);
        let mut fx = Effects::default();
        copy.bequeath(self.clock(node), slice(2, other()), &mut fx)
    }

    /// A crash took what was not on disc yet of a copy that had been changed: what it was made of is still there.
    pub(crate) fn fall_back(&mut self, node: usize, nothing: bool) -> bool {
        let Some(before) = self.nodes[node].before.take().filter(|_| nothing) else { return false };
        self.trace(|| format!("{node} has what it was before"));
        self.nodes[node].disc = before.disc;
        self.cuts.at[node] = before.at;
        true
    }

    /// What stood in with a part of the keys has given it away, or has lost it in a crash and is not counted on any more.
    pub(crate) fn parted_with(&mut self, node: usize) {
        if self.nodes[node].copy.as_ref().is_some_and(Copy::stands_in) {
            self.crash_keeping(node, usize::MAX, 1000);
        } else if self.cuts.kinds.is_empty() || !self.cuts.adopted.insert(node) {
            return;
        }
        self.at(300_000, Event::Adopt(node));
    }

    /// It is taken in like a new one.
    pub(crate) fn adopt(&mut self, node: usize) {
        let leads = |n: &Node| n.copy.as_ref().is_some_and(|c| c.lead().is_some() && !c.stands_in());
        for leader in (0..self.nodes.len()).filter(|n| leads(&self.nodes[*n])).collect::<Vec<_>>() {
            self.step(leader, replica::Input::AddMember(id(node)));
        }
        self.at(500_000, Event::Adopt(node));
    }

    /// A copy that was joined with nothing of the other fragment is no copy, and must not call its keys absent.
    pub(crate) fn leads_a_part(&self, node: usize) -> Option<String> {
        let kinds = &self.cuts.kinds[..self.cuts.at[node]];
        let joined = kinds.contains(&Kind::Join) && !kinds.contains(&Kind::Part) && !self.lossy;
        let copy = self.nodes[node].copy.as_ref().filter(|copy| joined && !copy.stands_in())?;
        let knows = copy.store().heads().covers(others_version(1));
        (!knows).then(|| format!("invariant 2: {node} leads, and knows nothing of half of the keys"))
    }

    /// Everybody has all of the other fragment where it was joined with it, and nothing of it after the two were parted.
    pub(crate) fn account_others(&self, store: &Store) -> Option<String> {
        let counts = |node: &usize| !self.buried.contains(node);
        // Whoever alone had heard may be buried.
        let heard = (0..self.nodes.len()).filter(counts).map(|node| self.cuts.heard[node]).max().unwrap_or(0);
        let late = (0..self.nodes.len()).filter(counts).find(|node| self.cuts.at[*node] != heard);
        if let Some(node) = late {
            return Some(format!("liveness: {node} has not changed"));
        }
        let kinds = &self.cuts.kinds[..heard];
        let there = kinds.contains(&Kind::Join) && !kinds.contains(&Kind::Part);
        let wrong = (1..OTHERS).find(|n| {
            let version = store.get(&others_key(*n)).map(|kept| kept.version());
            version != there.then_some(others_version(u64::from(*n)))
        });
        wrong.map(|n| format!("invariant 1: record {n} of the other fragment is {:?}", store.get(&others_key(n))))
    }
}

fn bytes_of(value: &impl serde::Serialize) -> Vec<u8> {
    postcard::to_stdvec(value).unwrap_or_default()
}
