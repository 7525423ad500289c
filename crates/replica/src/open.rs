//! Taking the lead: promises, pulls, and the merge that happens nowhere else.

use crate::copy::{Copy, Role};
use crate::forget::Floor;
use crate::gate::{Effects, Notice, Then};
use crate::key::{self, MemberStatus};
use crate::lead::Leading;
use crate::ledger::Heal;
use crate::merge::Merge;
use crate::msg::Msg;
use crate::mutant;
use crate::quorum::MinInSync;
use crate::record::Record;
use crate::store::Cursor;
use base::{Ballot, BranchId, Heads, Instant, NodeId, Now, Span, Version};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};

/// What a copy promised, with what it holds.
pub(crate) struct Promised {
    pub heads: Heads,
    /// How far it has forgotten.
    pub floor: Floor,
    pub set: BTreeSet<NodeId>,
    /// The leases that it gave: by whom they are held, if that is known, and until when.
    pub leases: Vec<(Option<NodeId>, Instant)>,
}

/// What a copy with these heads had.
pub(crate) struct Pulled {
    pub heads: Heads,
    pub records: Vec<(Bytes, Record)>,
    /// It is all that copy had, since it has forgotten what was deleted beyond what this one knew: whatever else of it this one
    /// holds has been deleted.
    pub whole: bool,
    pub from: NodeId,
    /// More of it was staged before.
    pub staged: bool,
}

struct Pull {
    from: NodeId,
    have: Heads,
    staged: bool,
    no: u32,
    after: Cursor,
    records: Vec<(Bytes, Record)>,
}

/// A candidate's state.
pub(crate) struct Opening {
    ballot: Ballot,
    started: Instant,
    asked_at: Instant,
    /// The moment of the last answer: an opening that gets on is not given up.
    moved_at: Instant,
    pub(crate) answers: BTreeMap<NodeId, Promised>,
    /// What I hold plus what was pulled.
    have: Heads,
    pub(crate) pulled: Vec<Pulled>,
    /// What was staged before counts as pulled, or is to be brought up to date.
    begun: bool,
    stale: BTreeMap<NodeId, Heads>,
    pull: Option<Pull>,
}

/// A branch's number within its line. (At one a second they last for a century.)
pub(crate) fn nth(n: u64) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

impl Opening {
    pub(crate) fn ballot(&self) -> Ballot {
        self.ballot
    }
}

impl Copy {
    /// Becomes a candidate, with a ballot higher than any it has heard of.
    pub(crate) fn open(&mut self, now: Now, fx: &mut Effects) {
        self.step_down(now, fx);
        let counter = self.heard.max(self.meta.promised).counter.saturating_add(1);
        let ballot = Ballot { counter, node: self.config.me };
        self.hear(ballot);
        self.meta.promised = ballot;
        self.role = Role::Opening(Box::new(Opening {
            ballot,
            started: now.mono,
            asked_at: now.mono,
            moved_at: now.mono,
            answers: BTreeMap::new(),
            have: self.store.heads().clone(),
            pulled: Vec::new(),
            begun: false,
            stale: BTreeMap::new(),
            pull: None,
        }));
        self.write_meta(fx);
        for node in self.electorate() {
            self.gate.push(Then::Send(node, Msg::Prepare { ballot }));
        }
        self.drain(now, fx);
    }

    /// Every copy in view: the members, whoever says that it holds one, and who was in sync as far as anybody knows.
    fn electorate(&self) -> Vec<NodeId> {
        if mutant!(self, CutUnasked) && self.config.line > 0 && self.store.own(&key::set(self.config.line)).is_none() {
            return Vec::new();
        }
        let (members, mut in_sync) = (self.members(), self.known_set());
        if let Role::Opening(o) = &self.role {
            o.answers.values().for_each(|p| in_sync.extend(&p.set));
        }
        let member = |node: &NodeId| members.get(node).is_some_and(|s| s.is_member());
        let holds = |node: &&NodeId| self.statuses.contains_key(node) || member(node) || in_sync.contains(node);
        self.view.iter().filter(|n| **n != self.config.me).filter(holds).copied().collect()
    }

    /// Asks again whoever has not answered (a copy that entered the view meanwhile is asked too), and gives up when nothing
    /// moves.
    pub(crate) fn tend_opening(&mut self, now: Now, fx: &mut Effects) {
        if self.config.stand_in && self.sees_a_copy() {
            // It would fetch all that the copy has.
            return self.rest(now);
        }
        let electorate = self.electorate();
        let timing = self.config.timing;
        let idle = self.gate.idle();
        let Role::Opening(o) = &mut self.role else { return };
        if now.mono - o.moved_at > timing.promise_wait {
            return self.rest(now);
        }
        let missing = |node: &&NodeId| !o.answers.contains_key(node);
        if idle && now.mono - o.asked_at >= timing.retry {
            o.asked_at = now.mono;
            // Those who have answered are reminded that the opening goes on.
            let again = now.mono - o.started >= Span(timing.retry.0 * 2);
            let to: Vec<NodeId> = electorate.iter().filter(|n| again || missing(n)).copied().collect();
            fx.sends.extend(to.into_iter().map(|node| (node, Msg::Prepare { ballot: o.ballot })));
            if let Some(pull) = &o.pull {
                let (have, no, after) = (pull.have.clone(), pull.no, pull.after.clone());
                fx.sends.push((pull.from, Msg::Pull { ballot: o.ballot, have, no, after }));
            }
        }
        self.try_open(now, fx);
    }

    pub(crate) fn on_prepare(&mut self, now: Now, from: NodeId, ballot: Ballot, fx: &mut Effects) {
        self.hear(ballot);
        let promised = self.meta.promised;
        if ballot < promised {
            fx.sends.push((from, Msg::Refuse { ballot, promised }));
            return;
        }
        let forgetful = mutant!(self, PromiseForgotten) && !matches!(self.role, Role::Leading(_));
        if ballot > promised && !forgetful {
            self.step_down(now, fx);
            self.meta.promised = ballot;
            // A flush: the heads are durable from here on, too.
            self.write_meta(fx);
            self.role = Role::Promised { at: now.mono };
        } else if let Role::Promised { at } = &mut self.role {
            *at = now.mono;
        } else if !forgetful {
            return;
        }
        let leases = self.leases_given(now);
        let (heads, floor) = (self.store.heads().clone(), Box::new(self.store.floor().clone()));
        let promise = Msg::Promise { ballot, heads, floor, set: self.known_set(), leases };
        self.gate.push(Then::Send(from, promise));
    }

    pub(crate) fn on_promise(&mut self, now: Now, from: NodeId, ballot: Ballot, promise: Promised, fx: &mut Effects) {
        let Role::Opening(o) = &mut self.role else { return };
        if o.ballot == ballot && !o.answers.contains_key(&from) {
            o.answers.insert(from, promise);
            o.moved_at = now.mono;
            self.try_open(now, fx);
        }
    }

    pub(crate) fn on_refuse(&mut self, now: Now, ballot: Ballot, promised: Ballot, fx: &mut Effects) {
        self.hear(promised);
        let mine = match &self.role {
            Role::Opening(o) => o.ballot == ballot,
            Role::Leading(l) => l.ballot == ballot,
            _ => false,
        };
        if mine && promised > ballot {
            self.step_down(now, fx);
        }
    }

    /// Once everybody in view has answered: pull what is lacking, from whoever lacks least first; then open.
    fn try_open(&mut self, now: Now, fx: &mut Effects) {
        if self.config.stand_in && self.sees_a_copy() {
            return self.rest(now);
        }
        let electorate = self.electorate();
        let durable = self.gate.idle() && self.store.is_settled();
        let no_pull = mutant!(self, NoPull);
        let Role::Opening(o) = &self.role else { return };
        if !durable || o.pull.is_some() || electorate.iter().any(|node| !o.answers.contains_key(node)) {
            return;
        }
        if !o.begun && !no_pull {
            self.count_staged();
        }
        let Role::Opening(o) = &mut self.role else { return };
        if let Some((from, staged)) = o.stale.pop_first() {
            // Even if nothing has come since: what it has is asked for under its present heads.
            let mut have = o.have.clone();
            have.join(&staged);
            fx.sends.push((from, Msg::Pull { ballot: o.ballot, have: have.clone(), no: 0, after: None }));
            o.pull = Some(Pull { from, have, staged: true, no: 0, after: None, records: Vec::new() });
            return;
        }
        let source = o.answers.iter().filter(|(_, p)| !p.heads.within(&o.have)).max_by_key(|(_, p)| p.heads.weight());
        let stale = |p: &Promised| p.floor.is_beyond(&o.have, &p.heads);
        match source.map(|(node, p)| (*node, stale(p))) {
            Some((from, stale)) if !no_pull => {
                let have = if stale { Heads::default() } else { o.have.clone() };
                fx.sends.push((from, Msg::Pull { ballot: o.ballot, have: have.clone(), no: 0, after: None }));
                o.pull = Some(Pull { from, have, staged: false, no: 0, after: None, records: Vec::new() });
            }
            _ if self.may_open_by_number() => self.open_branch(now, fx),
            // Given up in a while, unless more answer.
            _ => {}
        }
    }

    /// What other leaders had is here already, but for the last of it. A leader that is not here is represented by what is
    /// staged of it.
    fn count_staged(&mut self) {
        let Role::Opening(o) = &self.role else { return };
        let fresh = |(node, p): (&NodeId, &Promised)| {
            let stale = p.floor.is_beyond(self.store.heads(), &p.heads);
            Some((*node, self.staged_of(*node, &p.heads, &p.floor)?)).filter(|_| !stale)
        };
        let stale: BTreeMap<NodeId, Heads> = o.answers.iter().filter_map(fresh).collect();
        let mut absent = self.staged_of_others(|node| o.answers.contains_key(node));
        // One that had nothing new has nothing to be merged.
        absent.retain(|(_, heads)| !heads.within(self.store.heads()));
        let Role::Opening(o) = &mut self.role else { return };
        (o.begun, o.stale) = (true, stale);
        for (node, heads) in absent {
            o.have.join(&heads);
            o.pulled.push(Pulled { heads, records: Vec::new(), whole: false, from: node, staged: true });
        }
    }

    /// A promiser's heads stand still, so that a cursor is enough.
    pub(crate) fn on_pull(
        &mut self,
        from: NodeId,
        ballot: Ballot,
        have: Heads,
        no: u32,
        after: Cursor,
        fx: &mut Effects,
    ) {
        let promised = self.meta.promised;
        if ballot != promised {
            fx.sends.push((from, Msg::Refuse { ballot, promised }));
        } else if matches!(self.role, Role::Promised { .. }) {
            let bytes = self.config.timing.chunk_bytes;
            let Some((records, after)) = self.store.delta(&have, self.store.heads(), after, bytes) else { return };
            fx.sends.push((from, Msg::Pulled { ballot, no, records, after }));
        }
    }

    #[allow(clippy::too_many_arguments)]
    pub(crate) fn on_pulled(
        &mut self,
        now: Now,
        from: NodeId,
        ballot: Ballot,
        no: u32,
        records: Vec<(Bytes, Record)>,
        after: Cursor,
        fx: &mut Effects,
    ) {
        let Role::Opening(o) = &mut self.role else { return };
        if o.ballot != ballot {
            return;
        }
        let Some(pull) = o.pull.as_mut().filter(|p| p.from == from && p.no == no) else { return };
        pull.records.extend(records);
        o.moved_at = now.mono;
        if after.is_some() {
            (pull.no, pull.after) = (no.saturating_add(1), after);
            let (have, no, after) = (pull.have.clone(), pull.no, pull.after.clone());
            fx.sends.push((from, Msg::Pull { ballot, have, no, after }));
            return;
        }
        if let (Some(pull), Some(source)) = (o.pull.take(), o.answers.get(&from)) {
            o.have.join(&source.heads);
            let whole = pull.have.is_empty();
            o.pulled.push(Pulled {
                heads: source.heads.clone(),
                records: pull.records,
                whole,
                from,
                staged: pull.staged,
            });
        }
        self.try_open(now, fx);
    }

    /// The merge and the first entry of the new branch, in one batch.
    fn open_branch(&mut self, now: Now, fx: &mut Effects) {
        let outcomes_stay = mutant!(self, OutcomesStay);
        let (no_ledger, false_conflicts) = (mutant!(self, NoLedger), mutant!(self, FalseConflicts));
        let by_ballot = self.config.min_in_sync == MinInSync::Majority && !mutant!(self, MajorityByStamp);
        let me = self.config.me;
        let Role::Opening(mut o) = std::mem::replace(&mut self.role, Role::Idle { since: now.mono, wait: Span(0) })
        else {
            return;
        };
        let (first, hlc) = self.begin_branch(now, &mut o);
        let branch = first.branch;
        let mut heal = self.heal_begun(now, &o);
        let mut merge = Merge::new(&self.store, &self.config.policy, &self.config.functions, first, hlc);
        (merge.no_ledger, merge.false_conflicts) = (no_ledger, false_conflicts);
        if by_ballot {
            merge.by_ballot();
        }
        for mut pulled in o.pulled {
            if outcomes_stay {
                pulled.records.retain(|(key, _)| key.first() != Some(&(crate::Space::Outcome as u8)));
            }
            merge.fold(pulled);
        }
        if let Some(heal) = &mut heal {
            (heal.taken, heal.conflicts) = (merge.taken, merge.conflicts);
        }
        if self.store.is_lost() {
            // A conflict could not be decided.
            return;
        }
        let (mut heads, mut puts, drops) = merge.finish();
        heads.add(first);
        if let Some(heal) = &heal {
            let own = key::heals(self.config.line);
            let value = Some(heal.clone().added(puts.get(&own).or(self.store.own(&own))));
            puts.insert(own, Record { version: first, hlc, expires: None, value });
        }
        let record = |value| Record { version: first, hlc, expires: None, value: Some(value) };
        puts.insert(key::branch(branch), record(key::encode(&(o.ballot, vec![(1u64, BTreeSet::from([me]))]))));
        puts.insert(key::set(self.config.line), record(key::encode(&BTreeSet::from([me]))));
        let listed =
            |node: NodeId| puts.contains_key(&key::member(node)) || self.store.get(&key::member(node)).is_some();
        if self.config.stand_in {
            puts.insert(key::member(me), record(key::encode(&MemberStatus::StandIn)));
        } else if !self.config.founders.iter().any(|n| listed(*n)) && !listed(me) {
            for node in self.config.founders.iter().filter(|n| **n != me) {
                puts.insert(key::member(*node), record(key::encode(&MemberStatus::Joining)));
            }
            puts.insert(key::member(me), record(key::encode(&MemberStatus::In)));
        }
        self.settle_members(record, &mut puts);
        let (not_before, settle) = self.opening_waits(now, &o.answers);
        let mut batch = self.store.switch(&heads, Vec::new(), puts.into_iter().collect(), drops);
        self.raise_ceiling();
        batch.meta = Some(self.meta);
        self.stagings.clear();
        self.told = self.told.and(std::mem::take(&mut self.tally));
        let mut leading = Leading::new(branch, o.ballot, me, not_before, settle, self.config.in_sync_max);
        leading.by_side = by_ballot;
        self.role = Role::Leading(Box::new(leading));
        self.persist(batch, true, fx);
        self.gate.push(Then::Ready(branch));
        if let Some(heal) = heal {
            self.note(Notice::Merged(heal), fx);
        }
        self.drain(now, fx);
    }

    /// The list of the new branch: whoever opens it is a member, even if others had buried it; and whom an operator gave up is
    /// none.
    fn settle_members(&self, record: impl Fn(Bytes) -> Record, puts: &mut BTreeMap<Bytes, Record>) {
        let status = |node: NodeId| -> Option<MemberStatus> {
            let row = puts.get(&key::member(node)).or(self.store.own(&key::member(node)))?;
            key::decode(row.value.as_ref()?)
        };
        let me = self.config.me;
        // One that was to go goes later; one that stood in for others is the copy by now: there are no others.
        let none = status(me).is_some_and(|s| !s.is_member()) && !self.config.stand_in;
        let mine = none.then_some((me, MemberStatus::In));
        let given_up = self.given_up.iter().filter(|node| status(**node).is_some_and(|s| !s.is_gone()));
        let changes: Vec<_> = given_up.map(|node| (*node, MemberStatus::Buried)).chain(mine).collect();
        puts.extend(changes.into_iter().map(|(node, status)| (key::member(node), record(key::encode(&status)))));
    }

    /// The first version of the new branch, with everything at hand that is to be merged.
    fn begin_branch(&mut self, now: Now, o: &mut Opening) -> (Version, base::Hlc) {
        let node = self.config.me;
        // Never one that anybody knows: a disc may be older than what its node did last.
        self.meta.n = self.meta.n.max(o.have.last_of(node, self.config.line).into()).saturating_add(1);
        for pulled in o.pulled.iter_mut().filter(|pulled| pulled.staged) {
            pulled.records = self.take_staged(pulled.from, std::mem::take(&mut pulled.records));
        }
        let stamps = o.pulled.iter().flat_map(|pulled| &pulled.records).map(|(_, r)| r.hlc);
        self.hlc = self.hlc.max(self.seen(now, stamps));
        let branch = BranchId::of_line(node, self.config.line, nth(self.meta.n));
        (Version { branch, seq: 1 }, self.stamp(now))
    }

    /// What is to be told of this opening, if copies are among its sources that have gone on apart from this one.
    fn heal_begun(&mut self, now: Now, o: &Opening) -> Option<Heal> {
        let mine = self.store.heads();
        let apart = |pulled: &&Pulled| !mine.within(&pulled.heads);
        let with: Vec<NodeId> = o.pulled.iter().filter(apart).map(|pulled| pulled.from).collect();
        let given = o.answers.iter().filter(|(node, _)| with.contains(node)).map(|(_, p)| mine.beyond(&p.heads));
        let given = given.fold(0, u64::saturating_add);
        let took = now.mono - self.rival_seen.take().unwrap_or(o.started);
        let by = self.config.me;
        (!with.is_empty()).then_some(Heal { at: now.wall, took, by, with, taken: 0, given, conflicts: 0 })
    }

    /// Until when a new leader stays silent: an in-sync copy that did not promise may still serve its old leader until a
    /// lease after it left this view (unless it said goodbye: that nobody listens at its address proves nothing, a firewall
    /// can say so, too); leases that those who promised gave, and this copy itself, must have run out, unless their holder
    /// has promised, too, and so given them back; and copies that did promise get a moment to follow, so that what is
    /// acknowledged first does not stand on one.
    fn opening_waits(&self, now: Now, answers: &BTreeMap<NodeId, Promised>) -> (Instant, (Instant, BTreeSet<NodeId>)) {
        let timing = self.config.timing;
        // Not only those in sync by the newest word: an opening that was given up may have written that word, and waited.
        let members = self.members().into_iter().filter(|(_, s)| s.is_member());
        let mut set: BTreeSet<NodeId> = self.known_set().into_iter().chain(members.map(|(node, _)| node)).collect();
        answers.values().for_each(|p| set.extend(&p.set));
        let absent = set.iter().filter(|n| **n != self.config.me && !answers.contains_key(n) && !self.gone.contains(n));
        let left = absent.map(|n| *self.left.get(n).unwrap_or(&self.born) + timing.lease_given());
        let mine = self.leases_given(now).into_iter().map(|(holder, left)| (holder, now.mono + left));
        let leases = answers.values().flat_map(|p| p.leases.iter().copied()).chain(mine);
        // One that holds nothing made no durable promise, and may have come to hold something since.
        let promised = |n: &NodeId| answers.get(n).is_some_and(|p| !p.heads.is_empty());
        let returned = |n: NodeId| n == self.config.me || promised(&n);
        let held = leases.filter(|(holder, _)| !holder.is_some_and(returned));
        let not_before = left.chain(held.map(|(_, until)| until)).max();
        // One that stands in is on its way out.
        let follows = |node: &&NodeId| !self.statuses.get(node).is_some_and(|s| s.stand_in);
        let awaited = answers.keys().filter(follows).copied().collect();
        (not_before.unwrap_or(now.mono), (now.mono + timing.settle, awaited))
    }

    /// The latest stamp among these that may move this copy's clock.
    pub(crate) fn seen(&self, now: Now, stamps: impl Iterator<Item = base::Hlc>) -> base::Hlc {
        let bound = base::Hlc::from_wall(base::WallMs(now.wall.0 + self.config.timing.skew_max.as_ms()));
        stamps.filter(|hlc| *hlc <= bound).max().unwrap_or_default()
    }

    /// Keeps the durable ceiling above the clock; the caller persists meta.
    pub(crate) fn raise_ceiling(&mut self) {
        if self.hlc > self.meta.ceiling {
            self.meta.ceiling = base::Hlc::from_wall(base::WallMs(self.hlc.wall().0 + 1000));
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{Config, Copy, Input, MergePolicy, Meta, Status, Store, Timing};
    use base::{FragmentId, TableId, WallMs};

    pub(crate) fn at(ms: u64) -> Now {
        Now { mono: Instant(ms * 1_000_000), wall: WallMs(ms) }
    }

    pub(crate) fn config() -> Config {
        Config {
            fragment: FragmentId { table: TableId(1), index: 0 },
            line: 0,
            me: NodeId(1),
            incarnation: 1,
            founders: vec![NodeId(1), NodeId(2)],
            storage: crate::Storage::Disc,
            values: None,
            unordered: false,
            sync: true,
            eager: false,
            opens_after: Instant(0),
            open_membership: false,
            stand_in: false,
            min_in_sync: crate::MinInSync::default(),
            ttl_ms: None,
            room: crate::Room::default(),
            evict: crate::Evict::default(),
            in_sync_max: usize::MAX,
            policy: MergePolicy::default(),
            functions: crate::Functions::default(),
            timing: Timing::default(),
            seed: 1,
            mutant: None,
        }
    }

    pub(crate) fn copy(at: Now, meta: Meta) -> Copy {
        Copy::new(at, config(), meta, Store::default())
    }

    /// What it gave before it crashed is forgotten, and may still hold: a whole lease, from its start on.
    #[test]
    fn a_restarted_copy_tells_an_opener_to_wait_for_a_lease() {
        let prepare = Msg::Prepare { ballot: Ballot { counter: 5, node: NodeId(2) } };
        let promised = |meta, ms| {
            let (mut copy, mut fx) = (copy(at(1000), meta), Effects::default());
            copy.handle(at(ms), Input::Msg(NodeId(2), prepare.clone()), &mut fx);
            let mark = fx.persists.last().map(|p| p.mark).expect("a promise is durable");
            copy.handle(at(ms), Input::Durable(mark), &mut fx);
            fx.sends.into_iter().find_map(|(_, msg)| match msg {
                Msg::Promise { leases, .. } => Some(leases),
                _ => None,
            })
        };
        let old = Meta { promised: Ballot { counter: 1, node: NodeId(1) }, ..Meta::default() };
        assert_eq!(promised(old, 1400), Some(vec![(None, Span::ms(610))]));
        assert_eq!(promised(old, 2100), Some(vec![]));
        assert_eq!(promised(Meta::default(), 1400), Some(vec![]), "one that is new gave nothing");
    }

    /// R4: a lease that a copy gave under an older leader still holds, and its holder may be read.
    #[test]
    fn an_opener_is_silent_until_leases_that_copies_gave_to_others_have_run_out() {
        for holder in [Some(NodeId(3)), None] {
            let mut copy = copy(at(0), Meta::default());
            let view = Input::View {
                view: [NodeId(2)].into(),
                dead: [].into(),
                gone: [].into(),
                flapping: [].into(),
                whole: false,
            };
            crate::lease::tests::feed(&mut copy, 1, view);
            let asked = crate::lease::tests::feed(&mut copy, 5000, Input::Tick);
            let ballot = asked.iter().find_map(|m| if let Msg::Prepare { ballot } = m { Some(*ballot) } else { None });
            let (heads, floor, set) = Default::default();
            let leases = vec![(holder, Span::ms(900))];
            let promise = Msg::Promise { ballot: ballot.expect("it opens"), heads, floor, set, leases };
            crate::lease::tests::feed(&mut copy, 5001, Input::Msg(NodeId(2), promise));
            let Role::Leading(l) = &copy.role else { panic!("it leads") };
            assert_eq!([5600, 5900, 5902].map(|ms| l.answers(at(ms), &copy.view)), [false, false, true]);
        }
    }

    /// One node that comes and goes faster than the view calms down keeps nobody from opening.
    #[test]
    fn a_flapping_node_does_not_keep_a_view_from_settling() {
        for known in [false, true] {
            let mut copy = copy(at(0), Meta { n: 1, ..Meta::default() });
            let flapping: BTreeSet<NodeId> = if known { [NodeId(3)].into() } else { [].into() };
            let mut asked = false;
            for ms in (0..6000).step_by(500) {
                let view: BTreeSet<NodeId> =
                    if ms % 1000 == 0 { [2, 3].map(NodeId).into() } else { [NodeId(2)].into() };
                let mut fx = Effects::default();
                let seen =
                    Input::View { view, dead: [].into(), gone: [].into(), flapping: flapping.clone(), whole: true };
                copy.handle(at(ms), seen, &mut fx);
                copy.handle(at(ms), Input::Tick, &mut fx);
                let mark = fx.persists.last().map_or(0, |p| p.mark);
                copy.handle(at(ms), Input::Durable(mark), &mut fx);
                asked |= fx.sends.iter().any(|(_, msg)| matches!(msg, Msg::Prepare { .. }));
            }
            assert_eq!(asked, known);
        }
    }

    /// Two islands meet; a copy that opens in one sends nobody to the leader of the other, which does not know what was shown here.
    #[test]
    fn whoever_has_just_led_does_not_point_to_the_leader_of_another_island() {
        let (mut copy, start) = crate::lease::tests::leading();
        let branch = base::BranchId { node: NodeId(3), n: 1 };
        let ballot = Ballot { counter: 1, node: NodeId(3) };
        let lead = Some(crate::Lead { branch, ballot, in_sync: 1 });
        let heal = crate::Progress::Alone;
        let status =
            Status { lead, heard: ballot, was_in_sync: true, weight: 9, heal, stand_in: true, ..Default::default() };
        let view = [2, 3].map(NodeId).into();
        let seen = Input::View { view, dead: [].into(), gone: [].into(), flapping: [].into(), whole: false };
        let mut fx = Effects::default();
        copy.handle(at(start), seen, &mut fx);
        copy.handle(at(start), Input::Msg(NodeId(3), Msg::Status(status)), &mut fx);
        assert_eq!(copy.leader().map(|(node, _)| node), Some(NodeId(1)));
        copy.open(at(start + 1), &mut fx);
        assert_eq!(copy.leader(), None);
        copy.rest(at(start + 2));
        copy.handle(at(start + 100), Input::Tick, &mut fx);
        assert_eq!(copy.leader(), None, "nor while it waits for the one who opens");
        // One that it has promised is its own.
        let mine = Ballot { counter: 99, node: NodeId(3) };
        copy.handle(at(start + 200), Input::Msg(NodeId(3), Msg::Prepare { ballot: mine }), &mut fx);
        let lead = Some(crate::Lead { branch, ballot: mine, in_sync: 1 });
        copy.handle(at(start + 200), Input::Msg(NodeId(3), Msg::Status(Status { lead, ..status })), &mut fx);
        assert_eq!(copy.leader().map(|(node, _)| node), Some(NodeId(3)));
    }

    /// R3: with a ballot below one that the other side has promised, two leaders would refuse each other for ever.
    #[test]
    fn an_opener_goes_above_every_ballot_it_has_heard_of() {
        let mut copy = copy(at(0), Meta::default());
        let mut fx = Effects::default();
        copy.handle(
            at(1),
            Input::View {
                view: [NodeId(2)].into(),
                dead: [].into(),
                gone: [].into(),
                flapping: [].into(),
                whole: false,
            },
            &mut fx,
        );
        let heard = Ballot { counter: 9, node: NodeId(2) };
        let status = Status { heard, ..Default::default() };
        copy.handle(at(2), Input::Msg(NodeId(2), Msg::Status(status)), &mut fx);
        copy.handle(at(5000), Input::Tick, &mut fx);
        let mark = fx.persists.last().map(|p| p.mark).expect("its own promise is durable before it asks");
        assert!(!fx.sends.iter().any(|(_, msg)| matches!(msg, Msg::Prepare { .. })));
        let mut fx = Effects::default();
        copy.handle(at(5001), Input::Durable(mark), &mut fx);
        let ballot = Ballot { counter: 10, node: NodeId(1) };
        assert!(fx.sends.contains(&(NodeId(2), Msg::Prepare { ballot })), "{:?}", fx.sends);
    }
}
