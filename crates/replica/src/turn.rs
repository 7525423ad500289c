//! A copy changes how it keeps its records while it is in use: step by step, and what is written meanwhile is kept in the new way from
//! the start. Between RAM and disc nothing on the disc counts until all of it is there, or none ([`Stage::Open`]): a crash on the way
//! leaves what a copy in RAM would have, nothing.

use crate::config::Storage;
use crate::copy::{Copy, Role};
use crate::gate::{Effects, Persist};
use crate::kept::{Apart, Kept, Values, is_apart};
use crate::mutant;
use crate::record::{Record, Stage, WriteBatch};
use crate::shortage::Pressure;
use crate::store::{Beyond, Cursor, FETCHES_MAX, Store};
use base::{FragmentId, Heads};
use bytes::Bytes;
use std::sync::Arc;

/// What one step takes on at most: of records that it writes, of their bytes, and of those that it looks at.
const STEP_ROWS: usize = 512;
const STEP_BYTES: usize = 512 * 1024;
const STEP_LOOKS: usize = 8 * STEP_ROWS;

/// A way from one form to the next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    /// From RAM to disc.
    Fill,
    /// From disc to RAM.
    Drain,
    /// Values leave the RAM.
    Part,
    /// Values come back to it.
    Gather,
}

/// How far a copy is on its way.
#[derive(Debug)]
pub(crate) struct Turn {
    way: Way,
    /// What comes beyond these is kept in the new way already.
    upto: Heads,
    after: Cursor,
    /// The batch of the last step.
    mark: u64,
    /// That was the last one.
    ends: bool,
}

impl Store {
    /// How records are kept, or soon all will be.
    pub fn form(&self) -> Storage {
        self.form.unwrap_or(Storage::Disc)
    }

    /// Nothing that is written counts on the disc.
    pub(crate) fn is_volatile(&self) -> bool {
        self.form() == Storage::Ram
    }

    /// Is it on its way to another form?
    pub(crate) fn is_turning(&self) -> bool {
        self.turn.is_some()
    }

    fn set_form(&mut self, form: Storage) {
        self.form = Some(form);
        if let Some(apart) = &mut self.apart {
            apart.more = form == Storage::DiscOnly;
        }
    }

    /// How records are to be kept. An empty copy keeps them so from here on; what was found on disc is on disc, however it lies there;
    /// and one that is in use is as it is.
    pub(crate) fn keep_as(&mut self, storage: Storage, values: Option<&Arc<dyn Values>>, fragment: FragmentId) {
        if let Some(values) = values {
            self.apart.get_or_insert_with(|| Apart::new(values.clone(), fragment));
        }
        if self.heads().is_empty() {
            (self.turn, self.mixed) = (None, false);
            self.set_form(storage);
        } else if self.form.is_none() {
            let parts = storage == Storage::DiscOnly;
            self.set_form(if parts { Storage::DiscOnly } else { Storage::Disc });
            let odd = |key: &Bytes, kept: &Kept| match kept.here() {
                Some(record) => parts && self.takes(key, record),
                None => !parts,
            };
            self.mixed = self.is_any(odd);
        }
    }

    /// The next way to that form, if it is not reached.
    pub(crate) fn way(&self, wanted: Storage) -> Option<Way> {
        match (self.form(), wanted) {
            (Storage::Disc, Storage::DiscOnly) => Some(Way::Part),
            (Storage::Disc, _) if self.mixed => Some(Way::Gather),
            (Storage::DiscOnly, Storage::DiscOnly) => self.mixed.then_some(Way::Part),
            (Storage::DiscOnly, _) => Some(Way::Gather),
            (Storage::Disc, Storage::Ram) => Some(Way::Drain),
            (Storage::Ram, Storage::Disc | Storage::DiscOnly) => Some(Way::Fill),
            (Storage::Ram, Storage::Ram) | (Storage::Disc, Storage::Disc) => None,
        }
    }

    /// Sets out; returns what the disc must do first.
    fn set_out(&mut self, way: Way) -> WriteBatch {
        self.turn = Some(Turn { way, upto: self.heads().clone(), after: None, mark: 0, ends: false });
        let open = WriteBatch { stage: Stage::Open, ..WriteBatch::default() };
        match way {
            Way::Fill => return open,
            Way::Drain => {
                self.set_form(Storage::Ram);
                return open;
            }
            Way::Part => self.set_form(Storage::DiscOnly),
            Way::Gather => self.set_form(Storage::Disc),
        }
        self.mixed = true;
        WriteBatch::default()
    }

    /// The next step, as what the disc must do; `None`: it must wait until a value can be read.
    fn turn_on(&mut self) -> Option<WriteBatch> {
        let turn = self.turn.as_ref()?;
        let (way, none) = (turn.way, Heads::default());
        let mut batch = WriteBatch { gathered: way == Way::Gather, ..WriteBatch::default() };
        let (mut bytes, mut looks, mut after) = (0, 0, turn.after.clone());
        for (version, key) in Beyond::new(self.index(), &none, &turn.upto, turn.after.clone()) {
            let full = batch.puts.len() + batch.removes.len() >= STEP_ROWS || bytes >= STEP_BYTES;
            let fetched = way == Way::Gather && batch.puts.len() >= FETCHES_MAX / 2;
            if full || fetched || looks >= STEP_LOOKS {
                break;
            }
            looks += 1;
            after = Some((*version, key.clone()));
            let Some(kept) = self.get(key) else { continue };
            if let Some(record) = self.turned(way, key, kept)? {
                bytes += record.weight(key);
                batch.puts.push((key.clone(), record));
            }
            batch.removes.extend((way == Way::Drain).then(|| key.clone()));
        }
        if looks == 0 {
            return Some(self.arrive(way));
        }
        self.take_step(way, &mut batch);
        self.turn.as_mut()?.after = after;
        Some(batch)
    }

    /// The record as the disc is to get it, if it is; `None`: its value cannot be read now.
    fn turned(&self, way: Way, key: &Bytes, kept: &Kept) -> Option<Option<Record>> {
        let valued = is_apart(key) && !kept.is_tombstone();
        Some(match way {
            Way::Fill => Some(self.whole(key, kept)?),
            Way::Gather if valued => Some(self.whole(key, kept)?),
            Way::Part => kept.here().filter(|record| self.takes(key, record)).cloned(),
            Way::Drain | Way::Gather => None,
        })
    }

    fn take_step(&mut self, way: Way, batch: &mut WriteBatch) {
        match way {
            Way::Part if !batch.puts.is_empty() => {
                let Some(apart) = &mut self.apart else { return };
                batch.apart = apart.place();
                batch.puts.iter().for_each(|(key, record)| apart.came(key.clone(), record.version));
            }
            Way::Gather => {
                let all = batch.puts.iter().cloned();
                all.for_each(|(key, record)| self.replace(key, record.into()));
            }
            _ => {}
        }
    }

    /// All of it is as it is to be; what the disc has counts again.
    fn arrive(&mut self, way: Way) -> WriteBatch {
        if matches!(way, Way::Part | Way::Gather) {
            (self.turn, self.mixed) = (None, false);
            return WriteBatch::default();
        }
        if let Some(turn) = &mut self.turn {
            turn.ends = true;
        }
        if way == Way::Fill {
            self.set_form(Storage::Disc);
        }
        let heads =
            |store: &Store| (store.heads().iter().collect(), store.heads().folds().map(|b| (b, vec![])).collect());
        let (heads, folds) = if way == Way::Fill { heads(self) } else { Default::default() };
        WriteBatch { stage: Stage::Close, heads, folds, ..WriteBatch::default() }
    }

    /// What the disc gets of a batch while nothing on it counts.
    pub(crate) fn on_the_way(&self, mut batch: WriteBatch) -> WriteBatch {
        match self.turn.as_ref().filter(|turn| !turn.ends).map(|turn| turn.way) {
            Some(Way::Fill) => {}
            Some(Way::Drain) => batch.removes.extend(std::mem::take(&mut batch.puts).into_iter().map(|(key, _)| key)),
            _ => return WriteBatch::default(),
        }
        WriteBatch { puts: batch.puts, removes: batch.removes, ..WriteBatch::default() }
    }
}

impl Copy {
    /// Is the next step due as soon as possible?
    pub(crate) fn turn_is_due(&self) -> bool {
        let due = |turn: &Turn| self.gate.durable >= turn.mark && !self.lacks_room(turn.way);
        self.store.turn.as_ref().is_some_and(due) && !self.staging
    }

    /// What frees some never waits.
    fn lacks_room(&self, way: Way) -> bool {
        let full = |pressure: Pressure| pressure == Pressure::Full;
        match way {
            Way::Drain => false,
            Way::Fill | Way::Part => full(self.shortage.disc),
            Way::Gather => full(self.shortage.most()),
        }
    }

    /// Does it keep its records in another way than it is to?
    pub fn is_odd(&self) -> bool {
        self.store.is_turning() || self.store.way(self.config.storage).is_some()
    }

    /// Is it on its way to keep its records as it is to?
    pub fn is_turning(&self) -> bool {
        self.store.is_turning()
    }

    /// Could it set out? Only in step, when what it has others have, too, and all of it can be read.
    pub fn may_turn(&self) -> bool {
        let way = self.store.way(self.config.storage).filter(|way| !self.lacks_room(*way));
        if way.is_none() || self.is_turning() || !self.store.is_settled() {
            return false;
        }
        let steady = match &self.role {
            Role::Leading(l) => l.ready && self.foreign_lead().is_none(),
            Role::Following(f) => f.joined,
            _ => false,
        };
        steady || mutant!(self, TurnUnsteady)
    }

    /// Sets out for the form that its records are to be kept in.
    pub(crate) fn turn(&mut self, fx: &mut Effects) {
        if let Some(way) = self.store.way(self.config.storage).filter(|_| self.may_turn()) {
            let mut batch = self.store.set_out(way);
            if mutant!(self, TurnUnmarked) {
                batch.stage = Stage::None;
            }
            // Values that were about to leave the RAM stay.
            if way == Way::Gather && !mutant!(self, GatheredLeave) {
                self.store.apart.iter_mut().for_each(Apart::keep);
            }
            self.persist_step(batch, fx);
        }
    }

    /// The next step, when the one before is on disc: so the disc's queue never holds more than one of a copy.
    pub(crate) fn tend_turn(&mut self, fx: &mut Effects) {
        let storage = self.config.storage;
        let Some(turn) = self.store.turn.as_ref().filter(|turn| self.gate.durable >= turn.mark) else { return };
        if turn.ends {
            self.store.turn = None;
            return;
        }
        // Half way there and no longer wanted: back, from the beginning. Nothing on the disc counts either way.
        let back = match turn.way {
            Way::Fill if storage == Storage::Ram => Some(Way::Drain),
            Way::Drain if storage != Storage::Ram => Some(Way::Fill),
            _ => None,
        };
        let way = back.unwrap_or(turn.way);
        if back.is_some() {
            let (upto, mark) = (self.store.heads().clone(), self.gate.durable);
            self.store.turn = Some(Turn { way, upto, after: None, mark, ends: false });
        }
        // What a joining copy has staged is not to be disturbed.
        if self.staging || self.lacks_room(way) {
            return;
        }
        if let Some(batch) = self.store.turn_on() {
            self.persist_step(batch, fx);
        }
    }

    /// Flushed, so that it is told when the next may come; nobody's answer waits for it.
    fn persist_step(&mut self, batch: WriteBatch, fx: &mut Effects) {
        if batch.is_empty() {
            return;
        }
        self.gate.written += 1;
        if let Some(turn) = &mut self.store.turn {
            turn.mark = self.gate.written;
        }
        fx.persists.push(Persist { batch, mark: self.gate.written, sync: true });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::tests::feed;
    use crate::open::tests::{at, config};
    use crate::{Batch, Input, Meta, Request, SessionId, Write};
    use base::{BranchId, Hlc, NodeId, Version};
    use std::collections::BTreeMap;

    /// What a disc has that does as it is told: keys, whether they count, and which batch was the last.
    #[derive(Default)]
    struct Platter {
        rows: BTreeMap<Bytes, Record>,
        open: bool,
        heads: Heads,
        mark: u64,
    }

    impl Platter {
        fn take(&mut self, fx: &Effects) {
            for persist in &fx.persists {
                let batch = &persist.batch;
                match batch.stage {
                    Stage::Open => (self.open, self.heads) = (true, Heads::default()),
                    Stage::Close => self.open = false,
                    _ => {}
                }
                batch.heads.iter().for_each(|v| self.heads.add(*v));
                batch.removes.iter().for_each(|key| drop(self.rows.remove(key)));
                self.rows.extend(batch.puts.iter().cloned());
                self.mark = persist.mark;
            }
        }
    }

    fn put(copy: &mut Copy, platter: &mut Platter, number: u64) {
        let session = SessionId { node: NodeId(1), incarnation: 1 };
        let branches = vec![copy.lead().expect("it leads").branch];
        let key = (number % 2000).to_string().into();
        let batch =
            Batch { writes: vec![Write::Put { key, value: vec![1; 100].into(), ttl_ms: None }], ..Batch::default() };
        let request = Request { session, number, done_through: number, branches, batch };
        let mut fx = Effects::default();
        copy.handle(at(6000), Input::Write(number, request), &mut fx);
        platter.take(&fx);
    }

    /// One burst: what was flushed is told, and the next step taken.
    fn burst(copy: &mut Copy, platter: &mut Platter, input: Input) {
        let mut fx = Effects::default();
        copy.handle(at(6000), Input::Durable(platter.mark), &mut fx);
        copy.handle(at(6000), input, &mut fx);
        copy.flush(at(6000), &mut fx);
        platter.take(&fx);
    }

    fn in_ram() -> (Copy, Platter) {
        let config = crate::Config { storage: Storage::Ram, founders: vec![NodeId(1)], ..config() };
        let mut copy = Copy::new(at(0), config, Meta::default(), Store::default());
        feed(&mut copy, 5000, Input::Tick);
        feed(&mut copy, 5100, Input::Tick);
        let mut platter = Platter::default();
        (1..=2000).for_each(|number| put(&mut copy, &mut platter, number));
        assert!(platter.rows.is_empty());
        (copy, platter)
    }

    fn go(copy: &mut Copy, platter: &mut Platter, storage: Storage) {
        copy.set_options(|config| config.storage = storage);
        burst(copy, platter, Input::Turn);
    }

    /// There, and back again before all is there: nothing is left, whatever was written meanwhile.
    #[test]
    fn a_copy_that_is_called_back_on_its_way_to_the_disc_leaves_nothing_there() {
        let (mut copy, mut platter) = in_ram();
        go(&mut copy, &mut platter, Storage::Disc);
        for number in 2001..2004 {
            put(&mut copy, &mut platter, number);
            burst(&mut copy, &mut platter, Input::Tick);
        }
        assert!(platter.open && platter.rows.len() > 1000 && platter.heads.is_empty());
        copy.set_options(|config| config.storage = Storage::Ram);
        for number in 2004..2020 {
            put(&mut copy, &mut platter, number);
            burst(&mut copy, &mut platter, Input::Tick);
        }
        assert!(!copy.is_odd() && !platter.open && platter.rows.is_empty() && platter.heads.is_empty());
    }

    #[test]
    fn a_copy_comes_to_the_disc_with_all_that_was_written_meanwhile_and_says_so_no_sooner() {
        let (mut copy, mut platter) = in_ram();
        go(&mut copy, &mut platter, Storage::Disc);
        let mut number = 2000;
        while platter.open {
            number += 1;
            put(&mut copy, &mut platter, number);
            assert!(copy.is_odd());
            burst(&mut copy, &mut platter, Input::Tick);
        }
        assert!(copy.is_odd(), "the last batch is not told to be on disc");
        burst(&mut copy, &mut platter, Input::Tick);
        assert!(!copy.is_odd() && platter.heads == *copy.store().heads());
        let all = copy.store().all().map(|(key, kept)| (key.clone(), kept.here().expect("in RAM").clone()));
        assert_eq!(all.collect::<BTreeMap<_, _>>(), platter.rows);
    }

    /// No value is asked for.
    #[derive(Debug)]
    struct Unread;

    impl Values for Unread {
        fn value(&self, _: FragmentId, _: &[u8]) -> Option<(Version, Bytes)> {
            None
        }

        fn takes(&self, _: &[u8]) -> bool {
            true
        }
    }

    /// A step that finds nothing to write is one step, however many inputs a burst has: here all values but the last are where they are to be.
    #[test]
    fn a_burst_takes_one_step() {
        let last = 3 * STEP_LOOKS as u64;
        let version = |seq| Version { branch: BranchId { node: NodeId(9), n: 1 }, seq };
        let record =
            |seq: u64| Record { version: version(seq), hlc: Hlc(seq), expires: None, value: Some(vec![1; 10].into()) };
        let kept = |seq| if seq == last { record(seq).into() } else { Kept::without_value(&record(seq)) };
        let rows = (1..=last).map(|seq| (crate::key::user(&seq.to_be_bytes()), kept(seq)));
        let store = Store::load(1, [version(last)].into_iter().collect(), rows);
        let (storage, values): (_, Arc<dyn Values>) = (Storage::DiscOnly, Arc::new(Unread));
        let config = crate::Config { storage, values: Some(values), founders: vec![NodeId(1)], ..config() };
        let meta = Meta { n: 1, ..Meta::default() };
        let mut copy = Copy::new(at(0), config, meta, store);
        for ms in [5000, 5100, 5200, 7000] {
            feed(&mut copy, ms, Input::Tick);
        }
        let mut platter = Platter::default();
        burst(&mut copy, &mut platter, Input::Turn);
        let mut bursts = 0;
        while copy.is_odd() {
            let mut fx = Effects::default();
            copy.handle(at(7000), Input::Durable(platter.mark), &mut fx);
            (0..100).for_each(|_| copy.handle(at(7000), Input::Tick, &mut fx));
            copy.flush(at(7000), &mut fx);
            platter.take(&fx);
            bursts += 1;
        }
        assert!(bursts >= 4, "{bursts}");
        assert_eq!(platter.rows.len(), 1);
    }
}
