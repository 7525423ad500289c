//! Tables that were dropped. Their copies go on meeting those of other islands: what was written there by nodes that could not know
//! of the drop turns up under a name of its own.

use crate::balance::SOON;
use crate::gateway::Op;
use crate::io::Effect;
use crate::node::Node;
use crate::schema::{self, TableDef, sys_fragment};
use base::{NodeId, Now, Span, TableId, WallMs};
use bytes::Bytes;
use replica::{Batch, Check, Copy, Input, Write};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// A node that does not answer is out of view by then, and clocks that are taken seriously are not as far apart.
const NOTICE_WAIT: Span = Span::ms(10_000);

/// A table that was dropped, as the system table remembers it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Grave {
    /// What it was.
    pub def: TableDef,
    /// How many times it was dropped, with what had turned up of it in between.
    pub number: u64,
    /// Who was in view when it was last dropped: what they led went with it.
    pub island: Vec<NodeId>,
    /// When its record was written.
    #[serde(skip)]
    pub at: WallMs,
}

impl Grave {
    /// The name under which what turned up of it goes.
    pub(crate) fn name(&self) -> String {
        format!("{}~dropped-{:04x}", self.def.name, self.def.id.0 >> 48)
    }
}

impl Node {
    /// Is it what has turned up of a table that was dropped?
    fn is_alias(&self, def: &TableDef) -> bool {
        self.graves.get(&def.id).is_some_and(|(grave, shown)| *shown && def.name == grave.name())
    }

    /// Was no node missing here since before that moment, with time enough to have noticed? Then nobody can have written without knowing
    /// what was decided then.
    fn knew_all_since(&self, now: Now, at: WallMs) -> bool {
        let (ago, whole) = (Span::ms(now.wall.0.saturating_sub(at.0)), now.mono - self.whole_since);
        self.whole && self.skewed.is_none() && ago >= NOTICE_WAIT && whole.0 >= ago.0.saturating_add(NOTICE_WAIT.0)
    }

    /// The writes that drop a table which goes by this name: its record; or the row of the ledger that keeps it where it lost its name;
    /// or, where it had been dropped before, the note that something turned up.
    pub(crate) fn burial(&self, shown: &str, def: &TableDef) -> Batch {
        let (id, island) = (def.id, self.view.iter().copied().chain([self.config.me]).collect());
        let before = self.graves.get(&id).map(|(grave, _)| grave);
        let kept = before.map_or_else(|| def.clone(), |grave| grave.def.clone());
        let grave = Grave { number: before.map_or(0, |grave| grave.number) + 1, def: kept, island, at: WallMs(0) };
        let value = wire::encode(&grave).unwrap_or_default();
        let mut writes = vec![Write::Put { key: schema::grave_key(id), value, ttl_ms: None }];
        let mut checks = Vec::new();
        let key = schema::table_key(shown);
        let record = self.sys_record(&key).filter(|r| {
            let named = r.value.as_ref().and_then(|v| wire::decode::<TableDef>(v).ok());
            named.is_some_and(|named| named.id == id)
        });
        if let Some(record) = record {
            // Not of another table that has come by the name meanwhile.
            checks.push(Check::AtVersion(key.clone(), record.version));
            writes.push(Write::Delete { key });
            writes.push(Write::Bump { key: schema::dropped_key(shown), by: replica::Bump::Add, fields: vec![1] });
        } else if let Some((key, lost)) = self.nameless.get(shown).cloned() {
            writes.push(Write::Forget { key, lost });
        } else {
            checks.push(Check::Present(schema::saved_key(id)));
            writes.push(Write::Delete { key: schema::saved_key(id) });
        }
        Batch { checks, writes, sync: true }
    }

    /// Notes, when this node of the island that dropped a table learns of it, what its copies hold: no more goes with the table.
    pub(crate) fn note_graves(&mut self) {
        for (id, (grave, _)) in &self.graves {
            let known = self.dropped_at.get(id).is_some_and(|(number, _)| *number >= grave.number);
            if known || !grave.island.contains(&self.config.me) {
                continue;
            }
            // What is led here is marked soon: other islands may be about to meet it.
            self.chores_at = self.latest;
            let heads = |fragment| Some((fragment, self.copies.with(fragment, |c: &Copy| c.store().heads().clone())?));
            let all = grave.def.all().filter_map(heads).collect();
            self.dropped_at.insert(*id, (grave.number, all));
        }
        self.dropped_at.retain(|id, _| self.graves.contains_key(id));
    }

    /// What is led here of tables that were dropped: marked, if this node was of the island that dropped it; and told of, if more
    /// turns up; and emptied, when everybody knows.
    pub(crate) fn tend_graves(&mut self, now: Now, out: &mut Vec<Effect>) {
        let (mut mark, mut saved, mut clear) = (Vec::new(), Vec::new(), Vec::new());
        // One that was changed where the drop was not known lives on.
        let lives = self.tables.values().filter(|def| !self.is_alias(def)).map(|def| def.id);
        let lives: BTreeSet<TableId> = lives.filter(|id| self.graves.contains_key(id)).collect();
        for (id, (grave, shown)) in self.graves.iter().filter(|(id, _)| !lives.contains(id)) {
            let certain = self.knew_all_since(now, grave.at);
            for fragment in grave.def.all() {
                let look = |c: &Copy| {
                    let live = c.store().live_size().0 > 0;
                    let clear = certain && c.may_clear(grave.number, now.wall);
                    (c.lead().is_some(), c.outlives(grave.number, now.wall), live && !c.has_rival(), clear)
                };
                let Some((true, outlives, live, clears)) = self.copies.with(fragment, look) else { continue };
                let noted = self.dropped_at.get(id).filter(|(number, _)| *number == grave.number);
                match (outlives, noted.and_then(|(_, heads)| heads.get(&fragment))) {
                    (None, Some(heads)) => mark.push((fragment, grave.number, heads.clone())),
                    // Its copies were all on this side, and everybody has met by now.
                    (None, None) => saved.extend((live && self.whole && !shown).then_some(*id)),
                    (Some(true), _) => saved.extend((!shown).then_some(*id)),
                    (Some(false), _) => {
                        let before = WallMs(grave.at.0.saturating_sub(NOTICE_WAIT.as_ms()));
                        clear.extend((clears && !shown).then_some((fragment, grave.number, before)));
                    }
                }
            }
        }
        for (fragment, number, heads) in mark {
            self.feed(now, fragment, Input::Dropped(number, heads), out);
        }
        if !clear.is_empty() {
            self.chores_at = self.chores_at.min(now.mono + SOON);
        }
        for (fragment, number, before) in clear {
            self.feed(now, fragment, Input::Clear(number, before), out);
        }
        saved.dedup();
        for id in saved {
            let put = Write::Put { key: schema::saved_key(id), value: Bytes::from_static(b"1"), ttl_ms: None };
            let checks = vec![Check::Absent(schema::saved_key(id))];
            let batch = Batch { checks, writes: vec![put], sync: true };
            let op = self.next_internal();
            self.on_op(now, op, Op::Write(sys_fragment(), batch, Span::ms(5_000)), out);
        }
    }
}
