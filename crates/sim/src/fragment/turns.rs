//! Histories in which a table's copies come to keep their records in another way.

use super::disc::{Image, goes_apart};
use super::world::{Event, World};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use replica::{Copy, Input, Meta, Storage, Store};

/// Which changes there are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Turns {
    None,
    /// Any.
    All,
    /// From RAM to disc for good, and then between the two ways to keep it there.
    ToDisc,
    /// Between the two.
    Discs,
}

impl World {
    /// By chance of its own: histories without such changes are what they were before there were any.
    pub(crate) fn plan_turns(&mut self, seed: u64) {
        let mut chance = StdRng::seed_from_u64(seed ^ 0x7475_726e);
        if self.lossy || self.options.asks.is_some() || !(chance.random_bool(0.3) || self.options.turns) {
            return;
        }
        self.turns = [Turns::All, Turns::ToDisc, Turns::Discs][chance.random_range(0..3)];
        self.lossy = self.turns != Turns::Discs;
        self.check.lossy(self.lossy);
        if self.turns == Turns::ToDisc {
            self.keep_as(Storage::Ram);
            for node in 0..self.nodes.len() {
                self.nodes[node].life += 1;
                self.boot(node, Meta::default(), Store::default());
            }
        }
        let first = chance.random_range(500_000..4_000_000);
        self.at(first, Event::Alter);
    }

    /// From the start.
    pub(crate) fn keep_as(&mut self, storage: Storage) {
        self.storage = storage;
        self.nodes.iter_mut().for_each(|node| node.storage = storage);
    }

    pub(crate) fn alter(&mut self) {
        let all = [Storage::Disc, Storage::DiscOnly, Storage::Ram];
        let count = if self.turns == Turns::All { 3 } else { 2 };
        self.storage = all[self.rng.random_range(0..count)];
        let storage = self.storage;
        self.trace(|| format!("to be kept as {storage}"));
        for node in 0..self.nodes.len() {
            let after = self.rng.random_range(1..300) * 1000;
            self.at(after, Event::Altered(node));
        }
        // Now and then before the last change is through.
        let after =
            if self.rng.random_bool(0.3) { self.rng.random_range(1..50) } else { self.rng.random_range(50..3000) };
        self.at(after * 1000, Event::Alter);
    }

    pub(crate) fn altered(&mut self, node: usize) {
        let storage = self.storage;
        let sync = self.sync && storage != Storage::Ram;
        self.nodes[node].storage = storage;
        if let Some(copy) = &mut self.nodes[node].copy {
            copy.set_options(|config| (config.storage, config.sync) = (storage, sync));
        }
    }

    pub(crate) fn turn(&mut self, node: usize) {
        let odd = self.nodes[node].copy.as_ref().is_some_and(|c| c.is_odd() && !c.is_turning());
        if odd && self.rng.random_bool(0.5) {
            self.trace(|| format!("{node} sets out"));
            self.step(node, Input::Turn);
        }
    }

    pub(crate) fn note_firm(&mut self, node: usize) {
        let n = &mut self.nodes[node];
        let firm = n.copy.as_ref().is_some_and(|c| c.store().form() != Storage::Ram) && n.disc.counts();
        n.firm = if firm { n.firm.or(Some(self.now)) } else { None };
    }

    /// Does a copy keep its records in another way than it is to, or is on its disc what is not in it?
    pub(crate) fn ill_kept(&self) -> Option<String> {
        let counts = |node: &usize| !self.is_stand_in(*node) && !self.buried.contains(node);
        (0..self.nodes.len()).filter(counts).find_map(|node| {
            let copy = self.nodes[node].copy.as_ref()?;
            let form = copy.store().form();
            if copy.is_odd() || form != self.storage {
                return Some(format!("liveness: {node} keeps its records as {form}, not as {}", self.storage));
            }
            wrong(copy, &self.nodes[node].disc.at_rest()).map(|what| format!("on the disc of {node}, {form}: {what}"))
        })
    }
}

fn wrong(copy: &Copy, image: &Image) -> Option<String> {
    let form = copy.store().form();
    if form == Storage::Ram {
        let nothing = image.records.is_empty() && image.heads.is_empty();
        return (!nothing).then(|| format!("{} records and {:?}", image.records.len(), image.heads));
    }
    if image.heads != *copy.store().heads() {
        return Some(format!("{:?}, and not {:?}", image.heads, copy.store().heads()));
    }
    let ill = image.records.iter().find(|(key, (record, apart))| {
        let parts = form == Storage::DiscOnly && goes_apart(key, record);
        record.value.is_some() && *apart != parts
            || copy.store().get(key).is_none_or(|kept| {
                kept.version() != record.version
                    || kept.here().is_none() != parts
                    || copy.store().find(key).as_ref() != Some(record)
            })
    });
    let count = copy.store().all().count();
    let ill = ill.map(|(key, (record, apart))| format!("{key:?} {record:?} apart {apart}"));
    ill.or_else(|| (count != image.records.len()).then(|| format!("{} records of {count}", image.records.len())))
}
