//! Tables are made, changed and dropped: records of the system table.

use crate::gateway::{ClientError, Op, OpReply, What};
use crate::io::{Effect, OpId};
use crate::node::Node;
use crate::schema::{self, Alteration, BadTable, TableDef, TableOptions, sys_fragment};
use base::{Now, Span, TableId};
use replica::{Batch, Check, Write};

impl Node {
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
        let beside = match self.check_beside(&name, None, &mut options) {
            Ok(beside) => beside,
            Err(bad) => return self.reply(op, OpReply::Error(bad.into()), out),
        };
        if let Err(bad) = schema::validate(&name, &options) {
            return self.reply(op, OpReply::Error(bad.into()), out);
        }
        let here = self.here();
        let any = here.iter().any(|node| self.weight(*node) > 0);
        let nodes = here.into_iter().filter(|node| !any || self.weight(*node) > 0).collect();
        let counter = schema::dropped_key(&name);
        let dropped = self.sys_record(&counter);
        let counted = dropped.as_ref().map_or(Check::Absent(counter.clone()), |r| Check::AtVersion(counter, r.version));
        let dropped = dropped.and_then(|r| r.value);
        let generation = dropped.and_then(|v| Some(u64::from_be_bytes(v[..].try_into().ok()?))).unwrap_or(0);
        let mut def = TableDef::new(&name, options.clone(), generation, nodes);
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
        let fits = other.options.fragments == options.fragments && other.options.beside.is_none();
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
        change.apply(&mut def.options);
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
