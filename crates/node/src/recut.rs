//! The number of a table's fragments changes: copies of those that are no more become copies of those that are, operations under way are
//! sent where their keys are by now, and whoever leads the system table has one group of fragments changed after the other.

use crate::balance::SOON;
use crate::gateway::{ClientError, Op, OpReply, What};
use crate::io::{Effect, OpId};
use crate::node::Node;
use crate::schema::{self, TableDef, sys_fragment};
use base::{FragmentId, Instant, Now, Span};
use bytes::Bytes;
use replica::{Batch, Check, Copy, Effects, Legacy, Outcome, Persist, Range, Store, Stored, Write, WriteBatch};
use std::collections::{BTreeMap, BTreeSet};

/// Whoever came into view so lately may lead an island that has not been merged with this one.
const JUST_MET: Span = Span::ms(5_000);
/// A view must have stood for so long before more fragments are changed.
const CALM: Span = Span::ms(2_000);

/// What a copy left on the disc that has become copies of other fragments: it goes when those are there.
pub(crate) struct Ash {
    stored: Stored,
    /// Which they are, and up to which mark they have to be on disc.
    heirs: Vec<(FragmentId, u64)>,
}

/// What is left to do of changes that were made.
#[derive(Default)]
pub(crate) struct Recutting {
    /// Copies that have become copies of other fragments, and are on the disc still.
    ashes: BTreeMap<FragmentId, Ash>,
    /// And those that others are to be told of.
    said: Vec<FragmentId>,
    /// Operations that are over, and whose clients are to be told.
    pub(crate) over: Vec<(OpId, OpReply)>,
    /// No more fragments are changed before this.
    until: Option<Instant>,
}

/// Where an operation's keys are by now.
enum Place {
    At(FragmentId),
    /// Not in one fragment any more.
    Apart,
}

/// Fragments of one number: the era, and how many there are.
fn layout_of(fragment: FragmentId) -> (u16, Option<u16>) {
    (fragment.era(), fragment.count())
}

impl Node {
    /// Is something of it here, in RAM or on the disc?
    fn keeps(&self, fragment: FragmentId) -> bool {
        let live = self.copies.with(fragment, |c| !c.store().heads().is_empty() || c.stands_in());
        live.unwrap_or(false) || self.stored.get(&fragment).is_some_and(|s| !s.store.heads().is_empty())
    }

    /// What is here of fragments that the table has no more.
    fn strays(&self, def: &TableDef) -> BTreeSet<FragmentId> {
        let stored = self.stored.keys().copied().filter(|f| self.keeps(*f));
        let all = self.copies.ids().into_iter().chain(stored);
        all.filter(|f| f.table == def.id && !def.has(*f)).collect()
    }

    /// Is something here that a copy of this fragment is to be made of? Then this node does not say yet that it has nothing of it.
    pub(crate) fn keeps_kin(&self, fragment: FragmentId) -> bool {
        let def = self.definition(fragment);
        let kin = |f: &FragmentId| {
            let other = f.table == fragment.table && layout_of(*f) != layout_of(fragment) && self.keeps(*f);
            let shares =
                |def: &TableDef| !def.has(fragment) || def.has(*f) || def.slice(*f).overlaps(def.slice(fragment));
            other && def.is_none_or(shares)
        };
        self.copies.ids().iter().chain(self.stored.keys()).any(kin)
    }

    /// Does somebody in view hold a copy that is still to become one of this fragment?
    pub(crate) fn awaits_kin(&self, def: &TableDef, fragment: FragmentId) -> bool {
        let here = self.here();
        let shares = |f: &FragmentId| f.table == def.id && !def.has(*f) && def.slice(*f).overlaps(def.slice(fragment));
        let held = self.holders.iter().filter(|(f, _)| shares(f));
        let mut nodes = held.flat_map(|(_, nodes)| nodes).filter(|(_, full)| **full).map(|(node, _)| node);
        nodes.any(|node| here.contains(node)) || self.keeps_kin(fragment)
    }

    /// The definition of the table that a fragment is of, dropped or not.
    fn definition(&self, fragment: FragmentId) -> Option<&TableDef> {
        let dropped = || self.graves.get(&fragment.table).map(|(grave, _)| &grave.def);
        self.tables.values().find(|def| def.id == fragment.table).or_else(dropped)
    }

    /// Copies of fragments that are no more become copies of those that are.
    pub(crate) fn recut(&mut self, now: Now) {
        let dropped = self.graves.values().filter(|(_, shown)| !shown).map(|(grave, _)| &grave.def);
        let all: Vec<TableDef> = self.tables.values().chain(dropped).cloned().collect();
        for def in all {
            loop {
                let strays = self.strays(&def);
                // Of an older number first, into those of the next that there is something of.
                let Some(oldest) = strays.first().copied().map(layout_of) else { break };
                let next = strays.iter().find(|f| layout_of(**f) != oldest).copied();
                let sources: Vec<FragmentId> = strays.into_iter().filter(|f| layout_of(*f) == oldest).collect();
                let targets: Vec<FragmentId> = match next {
                    Some(next) => {
                        let count = next.count().unwrap_or_default();
                        (0..count).map(|place| FragmentId::new(def.id, next.era(), count, place)).collect()
                    }
                    None => def.all().collect(),
                };
                if !self.become_others(now, &def, &sources, &targets) {
                    // A value is still on its way to where it can be read.
                    self.chores_at = self.chores_at.min(now.mono + SOON);
                    break;
                }
            }
        }
    }

    fn become_others(&mut self, now: Now, def: &TableDef, sources: &[FragmentId], targets: &[FragmentId]) -> bool {
        let ready = |f: &FragmentId| self.copies.with(*f, Copy::may_bequeath).unwrap_or(true);
        if !sources.iter().all(ready) {
            return false;
        }
        let mut legacies: BTreeMap<FragmentId, (Legacy, bool)> = BTreeMap::new();
        for source in sources {
            let led = self.copies.with(*source, |c| c.lead().is_some()).unwrap_or(false);
            let Some(legacy) = self.bequeath(now, def, *source) else { continue };
            legacies.insert(*source, (legacy, led));
        }
        let shares = |a: FragmentId, b: FragmentId| def.slice(a).overlaps(def.slice(b));
        let mut heirs: BTreeMap<FragmentId, u64> = BTreeMap::new();
        for target in targets.iter().copied().filter(|t| sources.iter().any(|s| shares(*s, *t))) {
            let mark = if self.keeps(target) { 0 } else { self.inherit(now, def, target, &legacies) };
            heirs.insert(target, mark);
        }
        let gone: Vec<FragmentId> = legacies.keys().copied().collect();
        for (source, (legacy, _)) in legacies {
            let own = heirs.iter().filter(|(t, _)| shares(source, **t)).map(|(t, mark)| (*t, *mark)).collect();
            let stored = Stored { meta: legacy.meta(), store: Store::handed_on(legacy.handed) };
            self.recutting.ashes.insert(source, Ash { stored, heirs: own });
        }
        self.invited.retain(|fragment| !gone.contains(fragment));
        self.routes.retain(|fragment, _| !gone.contains(fragment));
        self.recutting.said.extend(gone);
        true
    }

    /// Ends the copy of a fragment that is no more.
    fn bequeath(&mut self, now: Now, def: &TableDef, source: FragmentId) -> Option<Legacy> {
        let slice = def.slice(source);
        if let Some(ended) = self.copies.end(now, source, |copy, fx| copy.bequeath(now, slice, fx)) {
            let (legacy, fx) = ended;
            self.late.push((source, fx));
            return legacy;
        }
        let stored = self.stored.remove(&source)?;
        let stand_in = stored.store.stands_in(self.config.me);
        let config = self.copy_config(def, source, Vec::new(), stand_in);
        let mut fx = Effects::default();
        let legacy = Copy::new(now, config, stored.meta, stored.store).bequeath(now, slice, &mut fx);
        self.late.push((source, fx));
        legacy
    }

    /// Makes a copy of what there was; the mark of its first batch.
    fn inherit(
        &mut self,
        now: Now,
        def: &TableDef,
        target: FragmentId,
        legacies: &BTreeMap<FragmentId, (Legacy, bool)>,
    ) -> u64 {
        let (slice, of_line) = (def.slice(target), |line| def.slice(def.of_line(line)));
        let shares = |source: &FragmentId| def.slice(*source).overlaps(slice);
        // Of those that were led here the first: with several leaders one is to go on.
        let leads = legacies.iter().find(|(source, _)| shares(source)).is_some_and(|(_, (_, led))| *led);
        let parts = legacies.iter().filter(|(source, _)| shares(source));
        let parts = parts.map(|(_, (legacy, _))| legacy.part(|key| def.is_in(target, key))).collect();
        // One that was made and has nothing yet.
        let empty = self.copies.end(now, target, |copy, _| copy.take_stored()).map(|(stored, _)| stored);
        let own = empty.or_else(|| self.stored.remove(&target)).unwrap_or_else(|| self.nothing());
        self.given_away.remove(&target);
        self.gave_before.remove(&target);
        let config = self.copy_config(def, target, Vec::new(), false);
        let mut fx = Effects::default();
        let copy = Copy::inherit(now, config, own, (slice, &of_line), parts, &mut fx);
        let mark = copy.written();
        self.begin_copy(now, target, copy, fx);
        if leads {
            let mut fx = Effects::default();
            self.copies.step(target, |copy| copy.lead_on(now, &mut fx));
            self.late.push((target, fx));
        }
        mark
    }

    /// What became other copies goes from the disc when those are on it.
    pub(crate) fn tend_ashes(&mut self, out: &mut Vec<Effect>) {
        if !self.recutting.said.is_empty() {
            let gone = std::mem::take(&mut self.recutting.said);
            self.view.iter().for_each(|node| self.to(*node, crate::Frame::GaveAway(gone.clone()), out));
        }
        let there = |(heir, mark): &(FragmentId, u64)| self.copies.with(*heir, |c| c.is_durable(*mark)).unwrap_or(true);
        let cold = self.recutting.ashes.iter().filter(|(_, ash)| ash.heirs.iter().all(there)).map(|(f, _)| *f);
        for fragment in cold.collect::<Vec<_>>() {
            let Some(Ash { mut stored, .. }) = self.recutting.ashes.remove(&fragment) else { continue };
            let batch = WriteBatch { wipe: true, meta: Some(stored.meta), ..WriteBatch::default() };
            let mark = stored.store.hand_on();
            out.push(Effect::Persist(fragment, Persist { batch, mark, sync: false }));
            // Numbers of branches go on where they ended, should it ever be again.
            self.stored.insert(fragment, stored);
        }
    }

    /// The tables' fragments are others than before: whatever is under way goes where its keys are.
    pub(crate) fn mind_layouts(&mut self, now: Now, before: &BTreeMap<String, TableDef>) {
        let changed = |def: &&TableDef| before.get(&def.name).is_some_and(|old| old.layout != def.layout);
        let changed: Vec<TableDef> = self.tables.values().filter(changed).cloned().collect();
        for def in changed {
            self.copies.window().note_layout(&def);
            let known: BTreeSet<FragmentId> = before.get(&def.name).into_iter().flat_map(TableDef::all).collect();
            if now.mono - self.view_at < JUST_MET {
                // Those who lead there may have been on the other side of a cut, and not know what was shown here.
                let later = self.latest + self.config.timing.promise_wait;
                for new in def.all().filter(|f| !known.contains(f)) {
                    let routes = self.routes.get_mut(&new).into_iter().flat_map(BTreeMap::values_mut);
                    routes.for_each(|(.., since)| *since = later);
                }
            }
            let numbers =
                self.gateway.pending.iter().filter(|(_, p)| p.fragment.table == def.id && !def.has(p.fragment));
            for number in numbers.map(|(number, _)| *number).collect::<Vec<_>>() {
                self.send_on(&def, number);
            }
        }
    }

    fn send_on(&mut self, def: &TableDef, number: u64) {
        let Some(pending) = self.gateway.pending.get(&number) else { return };
        let reply = match (place_of(def, &pending.what), &pending.what) {
            (Place::At(fragment), _) => return self.gateway.redirect(number, fragment),
            // It may have been done before.
            (_, What::Write { branches, .. }) if !branches.is_empty() => OpReply::Outcome(Outcome::Unknown),
            (_, What::Write { .. }) => OpReply::Error(ClientError::Parted(def.name.clone())),
            (_, What::Read(_)) => OpReply::Error(ClientError::Recut(def.name.clone())),
        };
        self.recutting.over.extend(match self.gateway.end(number, reply) {
            crate::gateway::Next::Done(op, reply) => Some((op, reply)),
            _ => None,
        });
    }

    /// The fragment that an operation is for, which its client may take for one that is no more.
    pub(crate) fn present(&self, fragment: FragmentId, what: &What) -> Result<FragmentId, ClientError> {
        let Some(def) = self.tables.values().find(|def| def.id == fragment.table) else { return Ok(fragment) };
        if def.has(fragment) {
            return Ok(fragment);
        }
        match (place_of(def, what), what) {
            (Place::At(fragment), _) => Ok(fragment),
            (_, What::Write { .. }) => Err(ClientError::Parted(def.name.clone())),
            (_, What::Read(_)) => Err(ClientError::Recut(def.name.clone())),
        }
    }

    /// Whoever leads the system table has the next group of fragments changed when all is well: nobody is missing, every copy is in
    /// step, and those that are to be joined lie on the same nodes.
    pub(crate) fn tend_layouts(&mut self, now: Now, out: &mut Vec<Effect>) {
        let changing: Vec<TableDef> = self.tables.values().filter(|def| def.change().is_some()).cloned().collect();
        if changing.is_empty() {
            return;
        }
        self.chores_at = self.chores_at.min(now.mono + SOON);
        let leads = self.copies.with(sys_fragment(), |c| c.lead().is_some() && !c.stands_in()).unwrap_or(false);
        let calm = self.whole && now.mono - self.view_at >= CALM && self.here().len() == self.roster.len();
        if !leads
            || !calm
            || self.balance.paused
            || self.is_stopping()
            || self.recutting.until.is_some_and(|until| now.mono < until)
        {
            return;
        }
        for def in changing {
            if self.may_go_on(&def) {
                self.recutting.until = Some(now.mono + SOON);
                self.advance(now, &def.name, out);
            }
        }
    }

    /// Is every copy in step of what is to be changed next, and of what was changed last?
    fn may_go_on(&self, def: &TableDef) -> bool {
        let Some((old, new)) = def.next_group() else { return false };
        let era = new.first().map_or(0, |f| f.era());
        let done: Vec<FragmentId> = def.all().filter(|f| f.era() == era).collect();
        let here = self.here();
        let want = usize::from(def.options.copies).min(here.len());
        let holders = |fragment: &FragmentId| {
            let holders = self.balance.in_step(*fragment)?;
            (holders.is_subset(&here) && !holders.is_empty()).then_some(holders)
        };
        if !done.iter().all(|f| holders(f).is_some()) {
            return false;
        }
        let old: Option<Vec<_>> = old.iter().map(holders).collect();
        let Some(old) = old else { return false };
        let alike = old.iter().all(|nodes| Some(nodes) == old.first());
        alike && old.iter().all(|nodes| nodes.len() >= want || self.balance.paused)
    }

    fn advance(&mut self, now: Now, name: &str, out: &mut Vec<Effect>) {
        let key = schema::table_key(name);
        let Some(record) = self.sys_record(&key) else { return };
        let Some(mut def) = record.value.as_ref().and_then(|v| wire::decode::<TableDef>(v).ok()) else { return };
        def.advance();
        let value = wire::encode(&def).unwrap_or_default();
        let checks = vec![Check::AtVersion(key.clone(), record.version)];
        let batch = Batch { checks, writes: vec![Write::Put { key, value, ttl_ms: None }], sync: true };
        let op = self.next_internal();
        self.on_op(now, op, Op::Write(sys_fragment(), batch, Span::ms(5_000)), out);
    }

    /// What there is of a copy that was never made.
    pub(crate) fn nothing(&mut self) -> Stored {
        Stored { meta: Default::default(), store: Store::new(self.seed()) }
    }
}

/// Where the keys of an operation are.
fn place_of(def: &TableDef, what: &What) -> Place {
    let keys: Vec<&Bytes> = match what {
        What::Write { batch, .. } => {
            let checked = |check: &Check| match check {
                Check::Absent(key) | Check::Present(key) | Check::AtVersion(key, _) | Check::Count(key, _) => {
                    key.clone()
                }
            };
            let checked: Vec<Bytes> = batch.checks.iter().map(checked).collect();
            let places: BTreeSet<FragmentId> =
                checked.iter().chain(batch.writes.iter().map(Write::key)).map(|key| def.fragment(key)).collect();
            return match places.iter().collect::<Vec<_>>()[..] {
                [only] => Place::At(*only),
                _ => Place::Apart,
            };
        }
        What::Read(ranges) if ranges.iter().all(|range| is_in_one(def, range)) => {
            ranges.iter().map(|r| &r.from).collect()
        }
        What::Read(_) => return Place::Apart,
    };
    let places: BTreeSet<FragmentId> = keys.into_iter().map(|key| def.fragment(key)).collect();
    match places.iter().collect::<Vec<_>>()[..] {
        [only] => Place::At(*only),
        _ => Place::Apart,
    }
}

/// Are all keys of a range in one fragment, whatever their number?
fn is_in_one(def: &TableDef, range: &Range) -> bool {
    if range.space != replica::Space::User {
        return false;
    }
    match def.options.fragment_by {
        schema::FragmentBy::Key => range.is_point(),
        schema::FragmentBy::Prefix(n) => {
            let Some(prefix) = range.from.get(..usize::from(n)) else { return range.is_point() };
            let within =
                |to: &Bytes| to.starts_with(prefix) || Some(to) == Range::prefix(prefix.to_vec().into(), 1).to.as_ref();
            range.to.as_ref().is_some_and(within)
        }
    }
}
