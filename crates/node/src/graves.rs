//! Tables that were dropped. Their copies go on meeting those of other islands: what was written there by nodes that could not know
//! of the drop turns up under a name of its own.

use crate::gateway::Op;
use crate::io::Effect;
use crate::node::Node;
use crate::schema::{self, TableDef, sys_fragment};
use base::{NodeId, Now, Span};
use bytes::Bytes;
use replica::{Batch, Check, Copy, Input, Write};
use serde::{Deserialize, Serialize};

/// A table that was dropped, as the system table remembers it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Grave {
    /// What it was.
    pub def: TableDef,
    /// How many times it was dropped, with what had turned up of it in between.
    pub number: u64,
    /// Who was in view when it was last dropped: what they led went with it.
    pub island: Vec<NodeId>,
}

impl Grave {
    /// The name under which what turned up of it goes.
    pub(crate) fn name(&self) -> String {
        format!("{}~dropped-{:04x}", self.def.name, self.def.id.0 >> 48)
    }
}

impl Node {
    /// The writes that drop a table: its name, or, where it had been dropped before, the note that something turned up.
    pub(crate) fn burial(&self, shown: &str, def: &TableDef) -> Batch {
        let (id, island) = (def.id, self.view.iter().copied().chain([self.config.me]).collect());
        let before = self.graves.get(&id).map(|(grave, _)| grave);
        let def = before.map_or_else(|| def.clone(), |grave| grave.def.clone());
        let grave = Grave { number: before.map_or(0, |grave| grave.number) + 1, def, island };
        let key = if before.is_some() { schema::saved_key(id) } else { schema::table_key(shown) };
        let value = wire::encode(&grave).unwrap_or_default();
        let mut writes =
            vec![Write::Delete { key: key.clone() }, Write::Put { key: schema::grave_key(id), value, ttl_ms: None }];
        if before.is_none() {
            writes.push(Write::Bump { key: schema::dropped_key(shown), by: replica::Bump::Add, fields: vec![1] });
        }
        Batch { checks: vec![Check::Present(key)], writes, sync: true }
    }

    /// What is led here of tables that were dropped: marked, if this node was of the island that dropped it; and told of, if more
    /// turns up.
    pub(crate) fn tend_graves(&mut self, now: Now, out: &mut Vec<Effect>) {
        let (mut mark, mut saved) = (Vec::new(), Vec::new());
        for (id, (grave, shown)) in &self.graves {
            for fragment in grave.def.all() {
                let look =
                    |c: &Copy| (c.leads_alone(), c.outlives(grave.number, now.wall), c.store().live_size().0 > 0);
                let Some((true, outlives, live)) = self.copies.with(fragment, look) else { continue };
                match outlives {
                    None if grave.island.contains(&self.config.me) => mark.push((fragment, grave.number)),
                    // Its copies were all on this side, and everybody has met by now.
                    None => saved.extend((live && self.whole && !shown).then_some(*id)),
                    Some(more) => saved.extend((more && !shown).then_some(*id)),
                }
            }
        }
        for (fragment, number) in mark {
            self.feed(now, fragment, Input::Dropped(number), out);
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
