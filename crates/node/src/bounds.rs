//! How much each fragment of a bounded table may hold, and how it fares.

use crate::io::{Effect, Notice};
use crate::node::Node;
use crate::schema::{Per, TableDef};
use base::{FragmentId, Instant, NodeId, Now, Span, TableId};
use replica::{Room, Tally};
use std::collections::BTreeMap;

/// How often it is said at most that something has to go.
const SAY_EVERY: Span = Span::ms(60_000);

/// Of each table, when it was said last that something had to go here, and how much had to by then.
pub(crate) type Said = BTreeMap<TableId, (Instant, u64)>;

impl Node {
    /// What a fragment may hold: of a bound for each node, a part for each fragment of the table on the fullest of its nodes.
    pub(crate) fn room_of(&self, def: &TableDef, fragment: FragmentId) -> Room {
        let o = &def.options;
        let all = def.slice(fragment).count;
        if o.per == Per::Cluster {
            return o.share(all);
        }
        let mut held: BTreeMap<NodeId, u32> = BTreeMap::new();
        let has = |f: FragmentId| {
            let others = self.holders.get(&f).into_iter().flatten().filter(|(_, has)| **has).map(|(node, _)| *node);
            let mine = self.copies.contains(f).then_some(self.config.me);
            others.chain(mine).collect::<std::collections::BTreeSet<_>>()
        };
        for node in def.all().flat_map(has) {
            *held.entry(node).or_insert(0) += 1;
        }
        let fullest = has(fragment).iter().filter_map(|node| held.get(node)).max().copied();
        o.share(fullest.unwrap_or(all).clamp(1, all.max(1)))
    }

    /// Copies learn of what they may hold as others come and go; and people, now and then, of what had to go.
    pub(crate) fn tend_bounds(&mut self, now: Now, out: &mut Vec<Effect>) {
        let bounded = |def: &&TableDef| def.options.max_bytes.is_some() || def.options.max_records.is_some();
        for def in self.tables.values().filter(bounded).cloned().collect::<Vec<_>>() {
            let (mut gone, mut oldest) = (0, u64::MAX);
            for fragment in def.all() {
                if def.options.per == Per::Node {
                    let room = self.room_of(&def, fragment);
                    if self.copies.with(fragment, |c| c.room() != room) == Some(true) {
                        self.copies.step(fragment, |copy| copy.set_options(|config| config.room = room));
                    }
                }
                if let Some(tally) = self.copies.with(fragment, |c| c.lead().map(|_| c.tally(now))).flatten() {
                    (gone, oldest) = (gone + tally.evicted, oldest.min(tally.oldest_ms));
                }
            }
            let (at, before) = self.evicted_said.get(&def.id).copied().unwrap_or((Instant(0), 0));
            let due = at == Instant(0) || now.mono - at >= SAY_EVERY;
            if gone > before && due {
                out.push(Effect::Notice(Notice::Evicted(def.name.clone(), gone - before, oldest)));
            }
            if gone < before || (gone > before && due) {
                self.evicted_said.insert(def.id, (if gone > before { now.mono } else { at }, gone));
            }
        }
    }

    /// How the bounded fragments have fared that this node leads.
    pub(crate) fn tallies(&self, now: Now) -> Vec<(FragmentId, Tally)> {
        let bounded = |def: &&TableDef| def.options.max_bytes.is_some() || def.options.max_records.is_some();
        let all = self.tables.values().filter(bounded).flat_map(TableDef::all);
        all.filter_map(|f| Some((f, self.copies.with(f, |c| c.lead().map(|_| c.tally(now))).flatten()?))).collect()
    }
}
