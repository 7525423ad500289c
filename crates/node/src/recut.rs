//! The number of a table's fragments changes: copies of those that are no more become copies of those that are, operations under way are
//! sent where their keys are by now, and whoever leads the system table has one group of fragments changed after the other.

use crate::balance::SOON;
use crate::gateway::{ClientError, Op, OpReply, What};
use crate::io::{Effect, Notice, OpId};
use crate::node::Node;
use crate::schema::{self, TableDef, sys_fragment};
use base::{FragmentId, Instant, NodeId, Now, Span, TableId};
use bytes::Bytes;
use replica::{Batch, Check, Copy, Effects, Fit, Legacy, Outcome, Persist, Range, Store, Stored, Write, WriteBatch};
use std::collections::{BTreeMap, BTreeSet};

/// Whoever came into view so lately may lead an island that has not been merged with this one.
const JUST_MET: Span = Span::ms(5_000);
/// How long copies that are to be joined have to come to know the same.
const FIT_WAIT: Span = Span::ms(20_000);
/// How soon what could not be joined is looked at again.
const LOOK_AGAIN: Span = Span::ms(1_000);
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
    /// What copies left that have ended, until others are made of it; and whether they led.
    ended: BTreeMap<FragmentId, (Legacy, bool)>,
    /// Those of which nothing can be made: they are kept until whoever holds what they would be part of knows all of it.
    pub(crate) aside: BTreeSet<FragmentId>,
    /// Those of them that nobody was told of.
    aside_said: Vec<FragmentId>,
    /// Since when copies have not been made others of because they do not know the same.
    waiting: BTreeMap<FragmentId, Instant>,
    /// When those are looked at again.
    again: Option<Instant>,
    /// There is more to do.
    pub(crate) more: bool,
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

/// Those of the sources and of the targets that have to do with this source, directly or through others.
fn group(
    def: &TableDef,
    first: FragmentId,
    alike: BTreeSet<FragmentId>,
    targets: Vec<FragmentId>,
) -> (Vec<FragmentId>, Vec<FragmentId>) {
    let shares = |a: FragmentId, b: FragmentId| def.slice(a).overlaps(def.slice(b));
    let mut sources = BTreeSet::from([first]);
    loop {
        let mine: Vec<FragmentId> =
            targets.iter().copied().filter(|t| sources.iter().any(|s| shares(*s, *t))).collect();
        let more: BTreeSet<FragmentId> =
            alike.iter().copied().filter(|s| mine.iter().any(|t| shares(*s, *t))).collect();
        if more.len() <= sources.len() {
            return (sources.into_iter().collect(), mine);
        }
        sources = more;
    }
}

impl Node {
    /// Is something of it here, in RAM or on the disc?
    fn keeps(&self, fragment: FragmentId) -> bool {
        let live = self.copies.with(fragment, |c| !c.store().heads().is_empty() || c.stands_in());
        let stored = || self.stored.get(&fragment).is_some_and(|s| !s.store.heads().is_empty());
        live.unwrap_or(false) || stored() || self.recutting.ended.contains_key(&fragment)
    }

    /// Every fragment that something is here of, by table.
    fn kept(&self) -> BTreeMap<TableId, BTreeSet<FragmentId>> {
        let mut all: BTreeMap<TableId, BTreeSet<FragmentId>> = BTreeMap::new();
        let ids = self.copies.ids().into_iter().chain(self.stored.keys().copied());
        for fragment in ids.chain(self.recutting.ended.keys().copied()) {
            all.entry(fragment.table).or_default().insert(fragment);
        }
        all
    }

    /// Is something here that a copy of this fragment is to be made of? Then this node does not say yet that it has nothing of it.
    pub(crate) fn keeps_kin(&self, fragment: FragmentId) -> bool {
        let def = self.definition(fragment);
        let kin = |f: &FragmentId| {
            let other = f.table == fragment.table && layout_of(*f) != layout_of(fragment);
            // Where this node has not heard of the fragment yet, it will be made of one that is not old here.
            let old = |def: &TableDef| !def.has(fragment) || !def.has(*f);
            let shares = |def: &TableDef| old(def) && def.slice(*f).overlaps(def.slice(fragment));
            other && def.is_none_or(shares) && self.keeps(*f)
        };
        let ended = self.recutting.ended.keys().filter(|f| !self.recutting.aside.contains(f));
        self.copies.ids().iter().chain(self.stored.keys()).chain(ended).any(kin)
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

    /// Copies of fragments that are no more become copies of those that are: of each table one group of them, and soon the next.
    pub(crate) fn recut(&mut self, now: Now) {
        self.recutting.more = false;
        let kept = self.kept();
        let dropped = self.graves.values().filter(|(_, shown)| !shown).map(|(grave, _)| &grave.def);
        let old = |def: &TableDef, f: &FragmentId| !def.has(*f) && self.keeps(*f);
        let stray = |def: &&TableDef| kept.get(&def.id).is_some_and(|all| all.iter().any(|f| old(def, f)));
        let changed: Vec<TableDef> = self.tables.values().chain(dropped).filter(stray).cloned().collect();
        for def in changed {
            let all = kept.get(&def.id).into_iter().flatten().copied();
            let strays: Vec<FragmentId> = all.filter(|f| !def.has(*f) && self.keeps(*f)).collect();
            let (aside, strays): (Vec<_>, Vec<_>) = strays.into_iter().partition(|f| self.recutting.aside.contains(f));
            self.recut_first(now, &def, strays);
            if self.recutting.again.is_none_or(|again| now.mono >= again) {
                aside.into_iter().for_each(|f| self.recut_first(now, &def, vec![f]));
            }
        }
        if self.recutting.again.is_none_or(|again| now.mono >= again) {
            self.recutting.again = Some(now.mono + LOOK_AGAIN);
        }
        if self.recutting.more {
            self.chores_at = self.chores_at.min(now.mono + SOON);
        }
    }

    /// Of copies of an older number first, into those of the next that there is something of.
    fn recut_first(&mut self, now: Now, def: &TableDef, strays: Vec<FragmentId>) {
        let Some(first) = strays.first().copied() else { return };
        let next = strays.iter().copied().find(|f| layout_of(*f) != layout_of(first));
        let targets: Vec<FragmentId> = match next {
            Some(next) => {
                let count = next.count().unwrap_or_default();
                (0..count).map(|place| FragmentId::new(def.id, next.era(), count, place)).collect()
            }
            None => def.all().collect(),
        };
        let alike = strays.into_iter().filter(|f| layout_of(*f) == layout_of(first)).collect();
        let (sources, targets) = group(def, first, alike, targets);
        match self.become_others(now, def, &sources, &targets) {
            Some(true) => self.recutting.aside.retain(|f| !sources.contains(f)),
            // What cannot be joined is kept, and nothing waits for it.
            Some(false) => {
                let new = sources.into_iter().filter(|f| !self.recutting.aside.contains(f)).collect::<Vec<_>>();
                self.recutting.aside_said.extend(&new);
                self.recutting.aside.extend(new);
            }
            None => {}
        }
        self.recutting.more |= !self.recutting.aside.contains(&first);
    }

    /// All of these become all of those; `None`: something of them cannot be read yet, and what could be is kept until then.
    /// `false`: not all could.
    fn become_others(
        &mut self,
        now: Now,
        def: &TableDef,
        sources: &[FragmentId],
        targets: &[FragmentId],
    ) -> Option<bool> {
        if self.may_still_fit(now, def, sources, targets) {
            return None;
        }
        let left = sources.iter().filter(|f| !self.recutting.ended.contains_key(f)).copied().collect::<Vec<_>>();
        let ended: Vec<bool> = left.into_iter().map(|source| self.bequeath(now, def, source)).collect();
        if !ended.into_iter().all(|done| done) {
            return None;
        }
        if sources.iter().all(|f| self.recutting.aside.contains(f)) && !self.is_known(def, sources, targets) {
            return Some(false);
        }
        let mut parts: BTreeMap<FragmentId, Vec<Legacy>> = BTreeMap::new();
        for (legacy, _) in sources.iter().filter_map(|f| self.recutting.ended.get(f)) {
            let shares = |target: &FragmentId| legacy.slice.overlaps(def.slice(*target));
            let slices: Vec<_> = targets.iter().copied().filter(shares).map(|t| (t, def.slice(t))).collect();
            for (target, part) in legacy.cut(slices.iter().map(|(t, _)| *t), |key| def.which(&slices, key)) {
                parts.entry(target).or_default().push(part);
            }
        }
        // Of those that were led here the first: with several leaders one is to go on.
        let leads = sources.first().and_then(|f| self.recutting.ended.get(f)).is_some_and(|(_, led)| *led);
        let majority = def.options.min_in_sync == replica::MinInSync::Majority;
        let mut heirs: Vec<(FragmentId, u64)> = Vec::new();
        let mut all = true;
        for (target, parts) in parts {
            if self.keeps(target) {
                // Made before this process began, perhaps: then it knows all of this.
                let knows = self.holds_all(target, parts.iter());
                let written = self.copies.with(target, Copy::written).unwrap_or(0);
                heirs.extend((knows && written > 0).then_some((target, written)));
                all &= knows;
                continue;
            }
            let fit = Fit::of(def.slice(target), &|line| def.slice(def.of_line(line)), &parts);
            // Nobody stands in where a majority is asked for.
            match fit.filter(|fit| !(fit.stand_in && majority)) {
                Some(fit) => heirs.push((target, self.inherit(now, def, target, (fit, parts), leads))),
                None => all = false,
            }
        }
        for source in sources.iter().filter(|_| all) {
            let Some((legacy, _)) = self.recutting.ended.remove(source) else { continue };
            let stored = Stored { meta: legacy.meta(), store: Store::handed_on(legacy.handed) };
            self.recutting.ashes.insert(*source, Ash { stored, heirs: heirs.clone() });
            self.recutting.said.push(*source);
        }
        for source in sources {
            self.invited.remove(source);
            self.routes.remove(source);
        }
        Some(all)
    }

    /// Copies that live, and do not know the same of what they go back to, are still about to learn it from others: for a while.
    fn may_still_fit(&mut self, now: Now, def: &TableDef, sources: &[FragmentId], targets: &[FragmentId]) -> bool {
        let heads = |f: &FragmentId| Some((def.slice(*f), self.copies.with(*f, |c| c.store().heads().clone())?));
        let Some(live) = sources.iter().map(heads).collect::<Option<Vec<_>>>() else { return false };
        let fits = |target: &FragmentId| {
            let of = live.iter().filter(|(slice, heads)| slice.overlaps(def.slice(*target)) && !heads.is_empty());
            let of: Vec<_> = of.map(|(slice, heads)| (*slice, heads)).collect();
            let known = replica::known_of(def.slice(*target), &|line| def.slice(def.of_line(line)), &of);
            of.iter().all(|(_, heads)| heads.within(&known))
        };
        if sources.len() < 2 || targets.iter().all(fits) {
            self.recutting.waiting.retain(|f, _| !sources.contains(f));
            return false;
        }
        let since = sources.iter().map(|f| *self.recutting.waiting.entry(*f).or_insert(now.mono)).min();
        since.is_some_and(|since| now.mono - since < FIT_WAIT)
    }

    /// Do what there is of the targets know all that the sources did?
    fn is_known(&self, def: &TableDef, sources: &[FragmentId], targets: &[FragmentId]) -> bool {
        targets.iter().all(|target| {
            let of = sources.iter().filter_map(|f| self.recutting.ended.get(f)).map(|(legacy, _)| legacy);
            self.holds_all(*target, of.filter(|legacy| legacy.slice.overlaps(def.slice(*target))))
        })
    }

    /// Does what there is of a fragment know all of this?
    fn holds_all<'a>(&self, target: FragmentId, parts: impl Iterator<Item = &'a Legacy> + Clone) -> bool {
        let within = |store: &Store| parts.clone().all(|part| part.knows().1.within(store.heads()));
        let live = self.copies.with(target, |c| within(c.store()) && !c.stands_in());
        live.unwrap_or_else(|| self.stored.get(&target).is_some_and(|s| within(&s.store)))
    }

    /// Ends the copy of a fragment that is no more; `false`: something of it cannot be read yet, and it goes on.
    fn bequeath(&mut self, now: Now, def: &TableDef, source: FragmentId) -> bool {
        let (slice, led) = (def.slice(source), self.copies.with(source, |c| c.lead().is_some()).unwrap_or(false));
        if self.copies.contains(source) {
            let (legacy, fx) = self.copies.end(now, source, |copy, fx| copy.bequeath(now, slice, fx));
            self.late.push((source, fx));
            let done = legacy.is_some();
            self.recutting.ended.extend(legacy.map(|legacy| (source, (legacy, led))));
            return done;
        }
        let Some(stored) = self.stored.remove(&source) else { return true };
        let stand_in = stored.store.stands_in(self.config.me);
        let config = self.copy_config(def, source, Vec::new(), stand_in);
        let mut fx = Effects::default();
        let mut copy = Copy::new(now, config, stored.meta, stored.store);
        match copy.bequeath(now, slice, &mut fx) {
            Some(legacy) => drop(self.recutting.ended.insert(source, (legacy, false))),
            None => drop(self.stored.insert(source, copy.take_stored())),
        }
        self.late.push((source, fx));
        self.recutting.ended.contains_key(&source)
    }

    /// Makes a copy of what there was; the mark of its first batch.
    fn inherit(
        &mut self,
        now: Now,
        def: &TableDef,
        target: FragmentId,
        (fit, parts): (Fit, Vec<Legacy>),
        leads: bool,
    ) -> u64 {
        // One that was made and has nothing yet; or one that was, and became others.
        let (empty, last) = self.copies.end(now, target, |copy, _| Some(copy.take_stored()));
        self.late.push((target, last));
        let ash = self.recutting.ashes.remove(&target).map(|ash| ash.stored);
        let own = empty.or(ash).or_else(|| self.stored.remove(&target)).unwrap_or_else(|| self.nothing());
        self.given_away.remove(&target);
        self.gave_before.remove(&target);
        let config = self.copy_config(def, target, Vec::new(), false);
        let mut fx = Effects::default();
        let copy = Copy::inherit(now, config, own, fit, parts, &mut fx);
        let mark = copy.written();
        self.begin_copy(now, target, copy, fx);
        if leads {
            let mut fx = Effects::default();
            self.copies.step(target, |copy| copy.lead_on(now, &mut fx));
            self.late.push((target, fx));
        }
        mark
    }

    /// Is it on the disc still, though it has become others?
    pub(crate) fn smoulders(&self, fragment: FragmentId) -> bool {
        self.recutting.ashes.contains_key(&fragment)
    }

    /// A batch of a copy is on disc.
    pub(crate) fn note_durable(&mut self, fragment: FragmentId, mark: u64) {
        for ash in self.recutting.ashes.values_mut() {
            ash.heirs.retain(|(heir, of)| *heir != fragment || *of > mark);
        }
    }

    /// What became other copies goes from the disc when those are on it.
    pub(crate) fn tend_ashes(&mut self, out: &mut Vec<Effect>) {
        for fragment in std::mem::take(&mut self.recutting.aside_said) {
            out.push(Effect::Notice(Notice::SetAside(self.table_of(fragment), fragment)));
        }
        if !self.recutting.said.is_empty() {
            let gone = std::mem::take(&mut self.recutting.said);
            self.view.iter().for_each(|node| self.to(*node, crate::Frame::GaveAway(gone.clone()), out));
        }
        let cold = self.recutting.ashes.iter().filter(|(_, ash)| ash.heirs.is_empty()).map(|(f, _)| *f);
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
        let before: BTreeMap<TableId, &TableDef> = before.values().map(|def| (def.id, def)).collect();
        let changed = |def: &&TableDef| before.get(&def.id).is_some_and(|old| **old != **def);
        let changed: Vec<TableDef> = self.tables.values().filter(changed).cloned().collect();
        for def in changed {
            let recut = before.get(&def.id).is_some_and(|old| old.layout != def.layout);
            self.copies.window().note_layout(&def, recut);
            if !recut {
                continue;
            }
            let known: BTreeSet<FragmentId> = before.get(&def.id).into_iter().flat_map(|def| def.all()).collect();
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
        self.recutting.over.extend(match self.gateway.end(self.latest, number, reply) {
            crate::gateway::Next::Done(op, reply) => Some((op, reply)),
            _ => None,
        });
    }

    /// The fragment that an operation is for, which its client may take for one that is no more; all of its keys must lie in it.
    pub(crate) fn present(&self, fragment: FragmentId, what: &What) -> Result<FragmentId, ClientError> {
        let Some(def) = self.tables.values().find(|def| def.id == fragment.table) else { return Ok(fragment) };
        let one = match what {
            What::Write { batch, .. } => {
                let keys = || batch.checks.iter().map(checked).chain(batch.writes.iter().map(Write::key));
                keys().all(|key| Some(key) == keys().next())
            }
            // Of ranges one that takes all of a fragment is as good as any.
            What::Read(ranges) => ranges.len() <= 1 || ranges.iter().all(|range| may_be_in(def, fragment, range)),
        };
        if def.has(fragment) && one {
            return Ok(fragment);
        }
        match (place_of(def, what), what) {
            (Place::At(fragment), _) => Ok(fragment),
            (Place::Apart, What::Read(_)) if !def.has(fragment) => Err(ClientError::Recut(def.name.clone())),
            (Place::Apart, _) => Err(ClientError::Parted(def.name.clone())),
        }
    }

    /// Whoever leads the system table has the next group of fragments changed when all is well: nobody is missing, every copy is in
    /// step, and those that are to be joined lie on the same nodes.
    pub(crate) fn tend_layouts(&mut self, now: Now, out: &mut Vec<Effect>) {
        // One that goes by another name for now has no record to change.
        let named =
            |def: &&TableDef| def.change().is_some() && self.sys_record(&schema::table_key(&def.name)).is_some();
        let changing: Vec<TableDef> = self.tables.values().filter(named).cloned().collect();
        if changing.is_empty() {
            return;
        }
        let leads = self.copies.with(sys_fragment(), |c| c.lead().is_some() && !c.stands_in()).unwrap_or(false);
        let calm = self.whole && now.mono - self.view_at >= CALM && self.here().len() == self.roster.len();
        if calm {
            // What leaders tell is waited for.
            self.chores_at = self.chores_at.min(now.mono + SOON);
        }
        let waits = self.recutting.until.is_some_and(|until| now.mono < until);
        if !leads || !calm || waits || self.is_stopping() {
            return;
        }
        let in_step = self.balance.in_step();
        for def in changing {
            if self.may_go_on(&def, &in_step) {
                self.recutting.until = Some(now.mono + SOON);
                self.advance(now, &def.name, out);
            }
        }
    }

    /// Is every copy in step of what is to be changed next, and of what was changed last?
    fn may_go_on(&self, def: &TableDef, in_step: &BTreeMap<FragmentId, BTreeSet<NodeId>>) -> bool {
        let Some((old, new)) = def.next_group() else { return false };
        let era = new.first().map_or(0, |f| f.era());
        let here = self.here();
        let holders = |f: &FragmentId| in_step.get(f).filter(|nodes| !nodes.is_empty() && nodes.is_subset(&here));
        let done = def.all().filter(|f| f.era() == era).all(|f| holders(&f).is_some());
        let first = old.first().and_then(holders);
        let alike = old.len() == 1 || self.balance.know_alike(&old);
        done && alike && first.is_some() && old.iter().all(|f| holders(f) == first)
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

fn checked(check: &Check) -> &Bytes {
    let (Check::Absent(key) | Check::Present(key) | Check::AtVersion(key, _) | Check::Count(key, _)) = check;
    key
}

/// Where the keys of an operation are.
fn place_of(def: &TableDef, what: &What) -> Place {
    let keys: Vec<&Bytes> = match what {
        What::Write { batch, .. } => {
            batch.checks.iter().map(checked).chain(batch.writes.iter().map(Write::key)).collect()
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

/// Is it no range of one key that lies elsewhere?
fn may_be_in(def: &TableDef, fragment: FragmentId, range: &Range) -> bool {
    range.space != replica::Space::User || !range.is_point() || def.fragment(&range.from) == fragment
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
