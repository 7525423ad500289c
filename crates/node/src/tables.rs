//! Tables are made, changed and dropped: records of the system table.

use crate::gateway::{ClientError, Next, Op, OpReply, What};
use crate::io::{Effect, OpId};
use crate::layout::BadCount;
use crate::node::Node;
use crate::schema::{self, Alteration, BadTable, TableDef, TableOptions, sys_fragment};
use base::{FragmentId, NodeId, Now, Span, TableId};
use placement::{Aim, Fragment, Machine, Picture, Step, Table};
use replica::{Batch, Check, Write};

impl Node {
    pub(crate) fn table_of(&self, fragment: FragmentId) -> String {
        let def = self.tables.values().find(|def| def.id == fragment.table);
        def.map_or_else(|| "sys".to_string(), |def| def.name.clone())
    }

    pub(crate) fn unavailable(&self, fragment: FragmentId) -> ClientError {
        ClientError::Unavailable { table: self.table_of(fragment), index: fragment.place() }
    }

    /// A read that only copies could answer, which are elsewhere.
    pub(crate) fn read_elsewhere(&mut self, number: u64) -> Next {
        let Some(fragment) = self.gateway.pending.get(&number).map(|p| p.fragment) else { return Next::Nothing };
        let error = ClientError::Elsewhere { table: self.table_of(fragment), index: fragment.place() };
        self.gateway.end(self.latest, number, OpReply::Error(error))
    }

    /// What a table is called, or was.
    pub fn table_name(&self, id: base::TableId) -> String {
        let dropped = || self.graves.get(&id).map(|(grave, _)| grave.name());
        let known = self.tables.values().find(|def| def.id == id).map(|def| def.name.clone());
        let other = || if id == schema::sys_fragment().table { "the system table" } else { "a table that is gone" };
        known.or_else(dropped).unwrap_or_else(|| other().into())
    }

    pub(crate) fn create(
        &mut self,
        now: Now,
        op: OpId,
        name: String,
        mut options: TableOptions,
        may_exist: bool,
        out: &mut Vec<Effect>,
    ) {
        if let Some(def) = self.tables.get(&name).cloned() {
            let error = OpReply::Error(ClientError::TableExists(name));
            return self.reply(op, if may_exist { OpReply::Table(def) } else { error }, out);
        }
        options.once_on_disc = false;
        let beside = match self.check_beside(&name, None, &mut options) {
            Ok(beside) => beside,
            Err(bad) => return self.reply(op, OpReply::Error(bad.into()), out),
        };
        if let Err(bad) = schema::validate(&name, &options) {
            return self.reply(op, OpReply::Error(bad.into()), out);
        }
        let here = self.here();
        let any = here.iter().any(|node| self.weight(*node) > 0);
        let nodes: Vec<NodeId> = here.into_iter().filter(|node| !any || self.weight(*node) > 0).collect();
        let counter = schema::dropped_key(&name);
        let dropped = self.sys_record(&counter);
        let counted = dropped.as_ref().map_or(Check::Absent(counter.clone()), |r| Check::AtVersion(counter, r.version));
        let dropped = dropped.and_then(|r| r.value);
        let generation = dropped.and_then(|v| Some(u64::from_be_bytes(v[..].try_into().ok()?))).unwrap_or(0);
        let mut def = TableDef::new(&name, options.clone(), generation, nodes.clone());
        def.layout.lined = true;
        self.lay_out(&mut def, nodes);
        if let Some(rows) = beside.map(|other| other.founders).filter(|rows| rows.iter().all(|row| !row.is_empty())) {
            def.founders = rows;
        }
        let key = schema::table_key(&name);
        let value = wire::encode(&def).unwrap_or_default();
        let checks = vec![Check::Absent(key.clone()), counted];
        let batch = Batch { checks, writes: vec![Write::Put { key, value, ttl_ms: None }], sync: true };
        self.creating.insert(op, (name, options, may_exist));
        let what = What::Write { batch, branches: Vec::new() };
        match self.gateway.begin(now.mono, op, sys_fragment(), what, Span::ms(10_000)) {
            Some(number) => self.attempt(now, number, out),
            None => self.finish(now, op, OpReply::Error(ClientError::Overloaded), out),
        }
    }

    /// Where a new table's copies are to be, by weight and by zone, the leader of each fragment first.
    fn lay_out(&self, def: &mut TableDef, nodes: Vec<NodeId>) {
        let machine = |node: &NodeId| Machine {
            node: *node,
            weight: u32::from(self.weight(*node)).max(1),
            zone: self.roster.get(node).and_then(|entry| entry.zone.clone()),
            away: false,
            leads: true,
        };
        let fragment = |id| Fragment { id, holders: Vec::new(), leader: None, bytes: 0, settled: false };
        let (copies, fragments) = (def.options.copies.into(), def.all().map(fragment).collect());
        let tables = vec![Table { copies, with: None, fixed: false, fragments }];
        let plan = placement::plan(&Picture { machines: nodes.iter().map(machine).collect(), tables }, Aim::Balance);
        let mut rows = vec![Vec::new(); def.founders.len()];
        for step in &plan.moves {
            if let (Step::Add(node), Some(row)) = (step.step, rows.get_mut(usize::from(step.fragment.place()))) {
                row.push(node);
            }
        }
        for (row, leader) in rows.iter_mut().zip(plan.leaders.iter().flatten()) {
            row.sort_by_key(|node| leader.and_then(|i| nodes.get(i)) != Some(node));
        }
        if rows.iter().all(|row| !row.is_empty()) {
            def.founders = rows;
        }
    }

    /// The table that this one lies beside, with founders that are here; it gets as many copies as that one has.
    fn check_beside(
        &self,
        name: &str,
        own: Option<TableId>,
        options: &mut TableOptions,
    ) -> Result<Option<TableDef>, BadTable> {
        let Some(id) = options.beside else { return Ok(None) };
        let bad = || BadTable::Beside(name.into());
        let mut other = self.tables.values().find(|def| def.id == id).cloned().ok_or_else(bad)?;
        let followed = own.is_some_and(|own| self.tables.values().any(|def| def.options.beside == Some(own)));
        let alike = other.options.fragments == options.fragments && other.change().is_none() && other.era() == 0;
        let fits = alike && other.options.beside.is_none();
        if !fits || followed || own == Some(id) {
            return Err(bad());
        }
        options.copies = other.options.copies;
        let here = self.here();
        other.founders.iter_mut().for_each(|row| row.retain(|node| here.contains(node)));
        Ok(Some(other))
    }

    /// The table's name goes; its records stay on disc. A later table of that name is another.
    pub(crate) fn drop_table(&mut self, now: Now, op: OpId, name: String, out: &mut Vec<Effect>) {
        let Some(def) = self.tables.get(&name).cloned() else {
            return self.reply(op, OpReply::Error(ClientError::NoTable(name)), out);
        };
        let batch = self.burial(&name, &def);
        self.on_op(now, op, Op::Write(sys_fragment(), batch, Span::ms(10_000)), out);
    }

    /// The table is to have so many fragments, if that can be.
    fn recut_to(&self, def: &mut TableDef, count: u16) -> Result<(), BadTable> {
        let (name, now) = (def.name.clone(), def.options.fragments);
        if count != now
            && (def.options.beside.is_some() || self.tables.values().any(|t| t.options.beside == Some(def.id)))
        {
            return Err(BadTable::RecutBeside(name));
        }
        if count != now && (!self.whole || self.here().len() < self.roster.len()) {
            return Err(BadTable::NotWhole(name));
        }
        if count != now && def.options.storage == schema::Storage::DiscOnly {
            return Err(BadTable::OnDiscOnly(name));
        }
        if count < now && self.balance.paused {
            return Err(BadTable::NothingMoves(name));
        }
        def.recut(count).map_err(|bad| match bad {
            BadCount::Uneven => BadTable::Uneven(name, now),
            BadCount::Busy => BadTable::BeingRecut(name),
            BadCount::Old => BadTable::Unlined(name),
            BadCount::Often => BadTable::TooOften(name),
        })
    }

    /// The table's definition changes; its copies go by it as they hear of it.
    pub(crate) fn alter(&mut self, now: Now, op: OpId, name: String, change: Alteration, out: &mut Vec<Effect>) {
        let key = schema::table_key(&name);
        let record = self.sys_record(&key);
        let def = record.as_ref().and_then(|r| wire::decode::<TableDef>(r.value.as_ref()?).ok());
        let (Some(record), Some(mut def)) = (record, def) else {
            return self.reply(op, OpReply::Error(ClientError::NoTable(name)), out);
        };
        let copies = change.copies;
        if self.beside(&def).is_none() {
            // That one is gone, and whoever changes this one need not say so.
            def.options.beside = None;
        }
        if let Some(count) = change.fragments
            && let Err(bad) = self.recut_to(&mut def, count)
        {
            return self.reply(op, OpReply::Error(bad.into()), out);
        }
        change.apply(&mut def.options);
        if def.change().is_some() && def.options.storage == schema::Storage::DiscOnly {
            return self.reply(op, OpReply::Error(BadTable::OnDiscOnly(name).into()), out);
        }
        if def.change().is_some() && def.options.beside.is_some() {
            return self.reply(op, OpReply::Error(BadTable::RecutBeside(name).into()), out);
        }
        if let Err(bad) = self.check_beside(&name, Some(def.id), &mut def.options) {
            return self.reply(op, OpReply::Error(bad.into()), out);
        }
        // Those beside it get as many copies, and may ask for more in sync.
        let beside = self.tables.values().filter(|other| other.options.beside == Some(def.id));
        let mut asked =
            beside.map(|other| (other, TableOptions { copies: def.options.copies, ..other.options.clone() }));
        if let Some(bad) = asked.find_map(|(other, options)| schema::validate(&other.name, &options).err()) {
            return self.reply(op, OpReply::Error(bad.into()), out);
        }
        if copies.is_some_and(|copies| copies != def.options.copies) {
            return self.reply(op, OpReply::Error(BadTable::CopiesBeside(name).into()), out);
        }
        if let Err(bad) = schema::validate(&name, &def.options) {
            return self.reply(op, OpReply::Error(bad.into()), out);
        }
        let value = wire::encode(&def).unwrap_or_default();
        let checks = vec![Check::AtVersion(key.clone(), record.version)];
        let batch = Batch { checks, writes: vec![Write::Put { key, value, ttl_ms: None }], sync: true };
        self.on_op(now, op, Op::Write(sys_fragment(), batch, Span::ms(10_000)), out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use membership::{RosterEntry, RosterStatus};

    #[test]
    fn a_new_table_lies_by_weight_and_in_different_zones_from_the_start() {
        let mut node = crate::view::tests::made();
        let entry = |n: u64| RosterEntry {
            name: format!("n{n}"),
            addr: crate::view::tests::addr(n),
            zone: Some(format!("z{}", n % 3)),
            incarnation: 1,
            life: 0,
            status: RosterStatus::Up,
            weight: Some(if n < 3 { 200 } else { 100 }),
        };
        node.roster = (0..6).map(|n| (NodeId(n), entry(n))).collect();
        let nodes: Vec<NodeId> = (0..6).map(NodeId).collect();
        let options = TableOptions { copies: 3, fragments: 30, ..TableOptions::default() };
        let mut def = TableDef::new("t", options, 0, nodes.clone());
        node.lay_out(&mut def, nodes);
        for row in &def.founders {
            let zones: std::collections::BTreeSet<u64> = row.iter().map(|node| node.0 % 3).collect();
            assert_eq!((row.len(), zones.len()), (3, 3), "{row:?}");
        }
        for n in 0..6 {
            let held = def.founders.iter().flatten().filter(|node| node.0 == n).count();
            let led = def.founders.iter().filter(|row| row.first() == Some(&NodeId(n))).count();
            assert_eq!(held, if n < 3 { 20 } else { 10 });
            assert!(led.abs_diff(if n < 3 { 7 } else { 3 }) <= 1, "{n} leads {led}");
        }
    }
}
