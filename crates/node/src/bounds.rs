//! How much each fragment of a bounded table may hold, and how it fares.

use crate::io::{Effect, Notice};
use crate::node::Node;
use crate::schema::{Per, TableDef};
use base::{FragmentId, Instant, NodeId, Now, Span, TableId};
use replica::{Room, Tally};
use std::collections::{BTreeMap, BTreeSet};

/// How often it is said at most that something has to go.
const SAY_EVERY: Span = Span::ms(60_000);
/// A node holds more for so long before its fragments may hold less: copies come and go.
const SHRINK_AFTER: Span = Span::ms(5_000);

/// What is remembered of bounded tables.
#[derive(Default)]
pub(crate) struct Bounds {
    /// When it was said last that something had to go here, and how much had to by then.
    said: BTreeMap<TableId, (Instant, u64)>,
    /// Since when a fragment is to hold less.
    shrinks: BTreeMap<FragmentId, Instant>,
}

/// How many fragments of a table each node holds.
type Held = BTreeMap<NodeId, u32>;

impl Node {
    /// Who holds a copy that counts, as far as this node knows.
    fn holders_of(&self, fragment: FragmentId) -> BTreeSet<NodeId> {
        let others = self.holders.get(&fragment).into_iter().flatten().filter(|(_, has)| **has).map(|(node, _)| *node);
        let counts = |c: &replica::Copy| !c.stands_in() && !c.store().heads().is_empty();
        let mine = self.copies.with(fragment, counts).unwrap_or(false).then_some(self.config.me);
        others.chain(mine).collect()
    }

    fn held_of(&self, def: &TableDef) -> Held {
        let mut held = Held::new();
        for node in def.all().flat_map(|fragment| self.holders_of(fragment)) {
            *held.entry(node).or_insert(0) += 1;
        }
        held
    }

    /// What a new copy may hold.
    pub(crate) fn room_of(&self, def: &TableDef, fragment: FragmentId) -> Room {
        match def.options.per {
            Per::Cluster => def.options.share(def.slice(fragment).count),
            Per::Node => self.part_of(def, fragment, &self.held_of(def)),
        }
    }

    /// Of a bound for each node, a part for each fragment of the table on the fullest of its nodes, and no more than if all were spread
    /// evenly.
    fn part_of(&self, def: &TableDef, fragment: FragmentId, held: &Held) -> Room {
        let (all, nodes) = (def.slice(fragment).count, self.here().len().max(1) as u32);
        let even = (all * u32::from(self.copies_of(def)).min(nodes)).div_ceil(nodes);
        let fullest = self.holders_of(fragment).iter().filter_map(|node| held.get(node)).max().copied();
        def.options.share(fullest.unwrap_or(even).max(even).clamp(1, all.max(1)))
    }

    /// Copies learn of what they may hold as others come and go; and people, now and then, of what had to go.
    pub(crate) fn tend_bounds(&mut self, now: Now, out: &mut Vec<Effect>) {
        let all: Vec<TableDef> = self.bounded().cloned().collect();
        for def in all {
            if def.options.per == Per::Node {
                self.tend_parts(now, &def);
            }
            let evicted = |f| self.copies.with(f, |c| c.lead().map_or(0, |_| c.evicted())).unwrap_or(0);
            let gone = def.all().map(evicted).fold(0, u64::saturating_add);
            let (at, before) = self.bounds.said.get(&def.id).copied().unwrap_or((Instant(0), 0));
            if gone > before && (at == Instant(0) || now.mono - at >= SAY_EVERY) {
                let oldest = |f| self.copies.with(f, |c| c.lead().map(|_| c.tally(now).oldest_ms)).flatten();
                let oldest = def.all().filter_map(oldest).max().unwrap_or(0);
                out.push(Effect::Notice(Notice::Evicted(def.name.clone(), gone - before, oldest)));
                self.bounds.said.insert(def.id, (now.mono, gone));
            } else if gone < before {
                // Others lead some of it by now.
                self.bounds.said.insert(def.id, (at, gone));
            }
        }
    }

    fn tend_parts(&mut self, now: Now, def: &TableDef) {
        let held = self.held_of(def);
        for fragment in def.all() {
            let Some(before) = self.copies.with(fragment, replica::Copy::room) else {
                self.bounds.shrinks.remove(&fragment);
                continue;
            };
            let room = self.part_of(def, fragment, &held);
            let less = |now: Option<u64>, before: Option<u64>| now.is_some_and(|now| before.is_none_or(|b| now < b));
            if !less(room.records, before.records) && !less(room.bytes, before.bytes) {
                self.bounds.shrinks.remove(&fragment);
            } else if now.mono - *self.bounds.shrinks.entry(fragment).or_insert(now.mono) < SHRINK_AFTER {
                continue;
            }
            if room != before {
                self.copies.step(fragment, |copy| copy.set_options(|config| config.room = room));
            }
        }
    }

    fn bounded(&self) -> impl Iterator<Item = &TableDef> {
        self.tables.values().filter(|def| def.options.is_bounded())
    }

    /// How the bounded fragments have fared that this node leads.
    pub(crate) fn tallies(&self, now: Now) -> Vec<(FragmentId, Tally)> {
        let tally = |f| Some((f, self.copies.with(f, |c| c.lead().map(|_| c.tally(now))).flatten()?));
        self.bounded().flat_map(TableDef::all).filter_map(tally).collect()
    }
}
