use crate::config::Config;
use crate::follow::Following;
use crate::gate::{Effects, Gate, Input, Notice, Persist, Then};
use crate::heal::{Progress, Staging};
use crate::key::{self, MemberStatus, Space};
use crate::lead::Leading;
use crate::lease::Word;
use crate::msg::{Lead, Msg, Status};
use crate::mutant;
use crate::open::{Opening, Promised};
use crate::record::{Meta, Record, Stage, WriteBatch};
use crate::shortage::Shortage;
use crate::store::{Store, Stored};
use crate::uses::{Tally, Uses};
use base::{Ballot, Hlc, Instant, NodeId, Now, Span, Version};
use bytes::Bytes;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicBool;

/// How soon the next step of a copy on its way is due when nothing happens to it.
const TURN_EVERY: Span = Span::ms(5);
/// To how many nodes at a time a copy says again how it stands.
const SAID_AGAIN_TO: usize = 8;

/// What the copy is doing.
pub(crate) enum Role {
    /// Nothing, since then; opens after that wait if nobody leads.
    Idle {
        since: Instant,
        wait: Span,
    },
    Opening(Box<Opening>),
    Leading(Box<Leading>),
    Following(Box<Following>),
    /// Has promised, and waits for the opener.
    Promised {
        at: Instant,
    },
}

/// [`Role`] by name, for people and checkers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum RoleName {
    Idle,
    Opening,
    Leading,
    Joining,
    Following,
    Promised,
}

/// One copy of one fragment. See the crate's documentation.
pub struct Copy {
    pub(crate) config: Config,
    pub(crate) meta: Meta,
    pub(crate) store: Store,
    pub(crate) hlc: Hlc,
    pub(crate) role: Role,
    pub(crate) view: BTreeSet<NodeId>,
    pub(crate) left: BTreeMap<NodeId, Instant>,
    pub(crate) born: Instant,
    view_at: Instant,
    /// Who left the view since it was last stable.
    lost: BTreeSet<NodeId>,
    /// Those of the missing that look dead, and those that said goodbye.
    dead: BTreeSet<NodeId>,
    pub(crate) gone: BTreeSet<NodeId>,
    /// No node is missing.
    pub(crate) whole: bool,
    pub(crate) word: Word,
    pub(crate) statuses: BTreeMap<NodeId, Status>,
    /// When each node in view entered it.
    entered: BTreeMap<NodeId, Instant>,
    /// Since when the rival is in view that this copy is about to merge with.
    pub(crate) rival_seen: Option<Instant>,
    /// How many parts of stagings were asked for.
    pub(crate) stage_nonce: u64,
    /// And how many came.
    pub(crate) stage_parts: u64,
    /// What other islands' leaders have that this copy has not.
    pub(crate) stagings: BTreeMap<NodeId, Staging>,
    pub(crate) heard: Ballot,
    pub(crate) gate: Gate,
    pub(crate) rng: StdRng,
    pub(crate) shortage: Shortage,
    /// What is read here, where that matters.
    pub(crate) uses: Option<Uses>,
    pub(crate) tally: Tally,
    /// What was counted before this lead.
    pub(crate) told: Tally,
    pub(crate) barred: bool,
    /// Members that an operator gave up, whatever becomes of what only they have.
    pub(crate) given_up: BTreeSet<NodeId>,
    /// A reader has asked for fresh leases, and they are not under way yet.
    pub(crate) warming: AtomicBool,
    /// How many times this copy has asked to join.
    pub(crate) sessions: u64,
    /// Something is staged on disc.
    pub(crate) staging: bool,
    /// When it last lost its leader, or its lead.
    orphaned: Option<Instant>,
    /// Whoever let this copy go, which is about to be taken out; until it is one again.
    pub(crate) let_go: Option<(NodeId, Lead)>,
    said: Option<Status>,
    said_at: Instant,
    ticked: Instant,
}

/// What can be seen of a copy from outside, without changing it.
#[derive(Clone, Debug)]
pub struct Inspect {
    /// What it does.
    pub role: RoleName,
    /// The branch it leads or follows, and who leads.
    pub lead: Option<(NodeId, Lead)>,
    /// The in-sync set of the last entry that named one.
    pub in_sync: BTreeSet<NodeId>,
    /// The in-sync set in force at the commit index, when leading.
    pub in_force: BTreeSet<NodeId>,
    /// Last entry and commit index, when leading.
    pub committed: Option<(u64, u64)>,
    /// The fragment's own list of copies.
    pub members: BTreeMap<NodeId, MemberStatus>,
    /// Durable words.
    pub meta: Meta,
}

impl Copy {
    /// A copy as found on disc, or an empty one.
    pub fn new(now: Now, config: Config, #[allow(unused_mut)] mut meta: Meta, mut store: Store) -> Copy {
        #[cfg(feature = "mutants")]
        if config.mutant == Some(crate::Mutant::BranchReused) {
            meta.n = 0;
        }
        #[cfg(feature = "mutants")]
        if config.mutant == Some(crate::Mutant::RestartCloses) {
            store = close_all(config.me, store);
        }
        config.dress(&mut store);
        let rng = StdRng::seed_from_u64(config.seed ^ config.me.0 ^ config.fragment.table.0);
        let mut copy = Copy {
            meta,
            hlc: meta.ceiling,
            role: Role::Idle { since: now.mono, wait: Span(0) },
            view: BTreeSet::new(),
            left: BTreeMap::new(),
            born: now.mono,
            view_at: now.mono,
            lost: BTreeSet::new(),
            dead: BTreeSet::new(),
            gone: BTreeSet::new(),
            whole: false,
            // What it gave before a restart is not known: as much as can be.
            word: Word::new(if meta == Meta::default() { Instant(0) } else { now.mono + config.timing.lease_given() }),
            statuses: BTreeMap::new(),
            entered: BTreeMap::new(),
            rival_seen: None,
            stage_nonce: 0,
            stage_parts: 0,
            stagings: BTreeMap::new(),
            heard: meta.promised,
            gate: Gate::after(store.handed),
            rng,
            shortage: Shortage::default(),
            uses: None,
            tally: Tally::default(),
            told: Tally::default(),
            given_up: BTreeSet::new(),
            warming: AtomicBool::new(false),
            barred: false,
            sessions: store.sessions,
            staging: false,
            orphaned: None,
            let_go: None,
            said: None,
            said_at: Instant(0),
            ticked: now.mono,
            store,
            config,
        };
        copy.mind_uses();
        copy.rest(now);
        copy
    }

    /// Takes one input. Inputs that are late, doubled or meant for an earlier role change nothing.
    pub fn handle(&mut self, now: Now, input: Input, fx: &mut Effects) {
        self.mind_pause(now);
        match input {
            Input::Tick => self.tick(now, fx),
            Input::View { view, dead, gone, flapping, whole } => {
                (self.dead, self.gone, self.whole) = (dead, gone, whole);
                self.on_view(now, view, &flapping, fx);
            }
            Input::Met(node) => fx.sends.push((node, Msg::Status(self.status()))),
            Input::Msg(from, msg) => self.on_msg(now, from, msg, fx),
            Input::Durable(mark) => self.gate.durable = self.gate.durable.max(mark),
            Input::Write(ticket, request) => self.on_write(now, ticket, request, fx),
            Input::Read(ticket, read) => self.on_read(now, ticket, read, fx),
            Input::Warm => self.warm(now, fx),
            Input::Dropped(number, heads) => self.mark_dropped(now, number, heads, fx),
            Input::Clear(number, before) => self.clear_dropped(now, number, before, fx),
            Input::AddMember(node) => self.add_member(now, node, fx),
            Input::RemoveMember(node) => self.remove_member(now, node, fx),
            Input::HandOver(node) => self.hand_over(now, node, fx),
            Input::GivenUp(nodes) => self.given_up = nodes,
            Input::Bury(node, force) => self.bury(now, node, force, fx),
            Input::Shortage(shortage) => {
                self.shortage = shortage;
                self.say(now, false, fx);
            }
            Input::Turn => self.turn(fx),
            Input::Barred(barred) => {
                self.barred = barred;
                self.tick(now, fx);
            }
            Input::Resign => {
                let heir = self.heir();
                self.step_down(now, fx);
                fx.sends.extend(heir);
                self.say(now, true, fx);
            }
        }
        self.drain(now, fx);
        self.mind_values(fx);
    }

    /// Values that are on disc by now leave the RAM. One that cannot be read is never passed off as anything else: from then
    /// on this copy says nothing at all.
    fn mind_values(&mut self, fx: &mut Effects) {
        if self.staging && !mutant!(self, StagingKept) && !matches!(&self.role, Role::Following(f) if f.stages()) {
            // The session is over: its room is given back.
            self.staging = false;
            self.persist(WriteBatch { stage: Stage::Keep { first: true }, ..WriteBatch::default() }, false, fx);
        }
        self.store.let_go(mutant!(self, ValuesLeaveEarly));
        if self.store.is_lost() {
            *fx = Effects { notices: vec![Notice::ValueLost], ..Effects::default() };
        }
    }

    /// Sends what was gathered since the last flush. The shell calls it after a burst of inputs, so that a burst of writes
    /// travels as one append.
    pub fn flush(&mut self, now: Now, fx: &mut Effects) {
        self.send_appends(now, fx);
        self.drain(now, fx);
        self.tend_turn(fx);
        self.say(now, false, fx);
        self.mind_values(fx);
    }

    /// When to call with [`Input::Tick`] at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        let busy = match &self.role {
            // A rival is met as soon as the view has stood for long enough.
            Role::Leading(l) => !l.at_rest(&self.view) || self.foreign_lead().is_some(),
            Role::Following(f) => !f.joined || f.loan.is_asked() || self.progress() != Progress::Alone,
            _ => true,
        };
        if self.turn_is_due() {
            return Some(self.ticked + TURN_EVERY);
        }
        let wait = if busy || !self.gate.idle() { self.config.timing.tick } else { Span::ms(1000) };
        Some(self.ticked + wait)
    }

    /// The table's definition has changed: from here on the copy goes by that. How it keeps its records changes when it is told to set out.
    pub fn set_options(&mut self, change: impl FnOnce(&mut Config)) {
        change(&mut self.config);
        self.store.set_unordered(self.config.unordered);
        self.mind_uses();
    }

    /// What it may hold.
    pub fn room(&self) -> crate::Room {
        self.config.room
    }

    /// Whom an operator gave up, as it was told.
    pub fn given_up(&self) -> &BTreeSet<NodeId> {
        &self.given_up
    }

    /// What it is doing.
    pub fn inspect_role(&self) -> RoleName {
        match &self.role {
            Role::Idle { .. } => RoleName::Idle,
            Role::Opening(_) => RoleName::Opening,
            Role::Promised { .. } => RoleName::Promised,
            Role::Leading(_) => RoleName::Leading,
            Role::Following(f) if f.joined => RoleName::Following,
            Role::Following(_) => RoleName::Joining,
        }
    }

    /// A look inside.
    pub fn inspect(&self) -> Inspect {
        let mine = self.lead().map(|lead| (self.config.me, lead));
        let role = self.inspect_role();
        let (lead, committed) = match &self.role {
            Role::Idle { .. } | Role::Opening(_) | Role::Promised { .. } => (None, None),
            Role::Leading(_) => (mine, self.positions()),
            Role::Following(f) => (Some((f.leader, f.lead)), None),
        };
        let in_force = match &self.role {
            Role::Leading(l) => l.in_force().clone(),
            _ => BTreeSet::new(),
        };
        Inspect { role, lead, committed, in_force, in_sync: self.known_set(), members: self.members(), meta: self.meta }
    }

    /// The records, for readers that may see uncommitted ones: checkers, statistics.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// What it keeps, taken out of it: for a copy that is to be made anew later.
    pub fn take_stored(&mut self) -> Stored {
        // A reader beside it may still have it in hand.
        self.role = Role::Idle { since: self.ticked, wait: Span(0) };
        (self.store.handed, self.store.sessions) = (self.gate.written, self.sessions);
        Stored { meta: self.meta, store: std::mem::take(&mut self.store) }
    }

    /// The fragment's own list of copies; the founders as long as it is empty.
    pub fn members(&self) -> BTreeMap<NodeId, MemberStatus> {
        let listed: BTreeMap<_, _> = self
            .store
            .own_space(Space::Member)
            .filter_map(|(k, r)| Some((key::node_of_member(k)?, key::decode(r.value.as_ref()?)?)))
            .collect();
        if !listed.is_empty() {
            return listed;
        }
        self.config.founders.iter().map(|node| (*node, MemberStatus::Joining)).collect()
    }

    /// The leader's own position, if this copy leads and is ready.
    pub fn lead(&self) -> Option<Lead> {
        match &self.role {
            Role::Leading(l) if l.ready => {
                Some(Lead { branch: l.branch, ballot: l.ballot, in_sync: l.set.len() as u16 })
            }
            _ => None,
        }
    }

    /// Who leads, as far as this copy knows: itself, its leader, or whoever says so with the highest ballot.
    pub fn leader(&self) -> Option<(NodeId, Lead)> {
        if let Some(leader) = self.let_go.filter(|(node, _)| self.view.contains(node)) {
            return Some(leader);
        }
        if let Role::Following(f) = &self.role {
            // What it last said of itself, if that is still the same lead.
            let said = self.statuses.get(&f.leader).and_then(|s| s.lead).filter(|l| l.ballot == f.lead.ballot);
            return Some((f.leader, said.unwrap_or(f.lead)));
        }
        let other = || self.foreign_lead().filter(|(_, lead)| self.may_turn_to(lead));
        self.lead().map(|lead| (self.config.me, lead)).or_else(other)
    }

    /// All in view that say that they lead, and whether they are copies: those of other islands, too.
    pub fn leads(&self) -> impl Iterator<Item = (NodeId, Lead, bool)> + '_ {
        let known = self.statuses.iter().filter(|(node, _)| self.view.contains(node));
        known.filter_map(|(node, s)| Some((*node, s.lead?, !s.stand_in)))
    }

    /// Is it a stand-in, as far as this copy knows?
    pub fn is_stand_in(&self, node: NodeId) -> bool {
        self.statuses.get(&node).is_some_and(|s| s.stand_in)
    }

    /// May this lead be taken for one's own? Whoever has just lost its leader, or its lead, waits for the one who opens in its
    /// island: a leader of another island, which is about to be merged, does not know what was shown here.
    pub(crate) fn may_turn_to(&self, lead: &Lead) -> bool {
        let recently = |at: Instant| self.ticked - at < self.config.timing.promise_wait;
        let promised = matches!(self.role, Role::Promised { .. }) && lead.ballot >= self.meta.promised;
        promised || self.store.heads().seq(lead.branch) > 0 || !self.orphaned.is_some_and(recently)
    }

    pub(crate) fn foreign_lead(&self) -> Option<(NodeId, Lead)> {
        // One whose branch is known here is of this copy's own island.
        let own = |lead: &Lead| self.store.heads().seq(lead.branch) > 0;
        // Few lead, and many are in view.
        let leads = self.statuses.iter().filter_map(|(node, s)| Some((node, s, s.lead?)));
        let leads = leads.filter(|(node, ..)| self.view.contains(node));
        let leads = leads.map(|(node, s, lead)| (!s.stand_in, own(&lead), *node, lead));
        leads.max_by_key(|(copy, own, _, lead)| (*copy, *own, lead.ballot)).map(|(_, _, node, lead)| (node, lead))
    }

    /// Does somebody in view lead who is of another island, or was a moment ago?
    pub fn has_rival(&self) -> bool {
        self.lead().is_some() && self.foreign_lead().is_some()
    }

    /// If it leads, its last entry, and the last that is committed.
    pub fn positions(&self) -> Option<(u64, u64)> {
        if let Role::Leading(l) = &self.role { Some((l.last, l.commit)) } else { None }
    }

    /// Since when a node is in view, if that is known: those that enter it are noted.
    pub(crate) fn first_seen(&self, node: NodeId) -> Option<Instant> {
        self.entered.get(&node).copied()
    }

    pub(crate) fn known_set(&self) -> BTreeSet<NodeId> {
        if let Some(own) = self.store.own(&key::set(self.config.line)) {
            return key::decode_set(Some(own));
        }
        // It was never led under its own line: whoever was in sync in what it was made of, and before.
        self.store.own_space(Space::Set).flat_map(|(_, record)| key::decode_set(Some(record))).collect()
    }

    fn status(&self) -> Status {
        let was_in_sync = self.known_set().contains(&self.config.me);
        let weight = self.store.heads().weight();
        let heal = self.progress();
        let stand_in = self.config.stand_in;
        let (heard, barred, pressed) = (self.heard, self.barred, self.pressed());
        Status { lead: self.lead(), heard, was_in_sync, barred, weight, heal, stand_in, pressed }
    }

    /// Says it again, in case a link that broke took it along: to some of the view by turns, so that what is sent does not grow with
    /// the number of nodes.
    fn say_again(&mut self, now: Now, fx: &mut Effects) {
        if self.view.len() <= SAID_AGAIN_TO {
            return self.say(now, true, fx);
        }
        let status = self.status();
        let from = self.rng.random_range(0..self.view.len());
        let some = self.view.iter().cycle().skip(from).take(SAID_AGAIN_TO);
        fx.sends.extend(some.map(|node| (*node, Msg::Status(status))));
        self.said_at = now.mono;
    }

    /// Tells the view what changed in a way that others act on; all of it when asked to.
    pub(crate) fn say(&mut self, now: Now, all: bool, fx: &mut Effects) {
        let status = self.status();
        let lead = |s: &Status| s.lead.map(|l| (l.branch, l.in_sync));
        let acts = |s: &Status| (lead(s), s.heard, s.barred, s.was_in_sync, s.heal, s.pressed);
        if all || self.said.as_ref().map(acts) != Some(acts(&status)) {
            fx.sends.extend(self.view.iter().map(|node| (*node, Msg::Status(status))));
            (self.said, self.said_at) = (Some(status), now.mono);
        }
    }

    fn on_view(&mut self, now: Now, view: BTreeSet<NodeId>, flapping: &BTreeSet<NodeId>, fx: &mut Effects) {
        if self.view != view {
            if now.mono - self.view_at >= self.config.timing.stable_view {
                self.lost.clear();
            }
            for node in view.difference(&self.view) {
                self.entered.insert(*node, now.mono);
            }
            for node in self.view.difference(&view) {
                self.entered.remove(node);
                self.left.insert(*node, now.mono);
                self.statuses.remove(node);
                self.lost.insert(*node);
            }
            self.lost.retain(|node| !flapping.contains(node));
            // Who is back is counted again.
            self.given_up.retain(|node| !view.contains(node));
            if self.view.symmetric_difference(&view).any(|node| !flapping.contains(node)) {
                self.view_at = now.mono;
            }
            self.view = view;
            self.say(now, true, fx);
        }
        self.tick(now, fx);
    }

    /// Has it stood for long enough? Whoever stopped or looks dead will not be back in a moment.
    pub(crate) fn view_is_stable(&self, now: Now) -> bool {
        let dead = |node: &NodeId| self.dead.contains(node) || self.gone.contains(node);
        (!self.lost.is_empty() && self.lost.iter().all(dead))
            || now.mono - self.view_at >= self.config.timing.stable_view
    }

    fn on_msg(&mut self, now: Now, from: NodeId, msg: Msg, fx: &mut Effects) {
        match msg {
            Msg::Status(status) => self.on_status(now, from, status, fx),
            Msg::Prepare { ballot } => self.on_prepare(now, from, ballot, fx),
            Msg::Promise { ballot, heads, floor, set, leases } => {
                let leases = leases.into_iter().map(|(holder, left)| (holder, now.mono + left)).collect();
                let promise = Promised { heads, floor: *floor, set, leases };
                self.on_promise(now, from, ballot, promise, fx);
            }
            Msg::Refuse { ballot, promised } => self.on_refuse(now, ballot, promised, fx),
            Msg::Pull { ballot, have, no, after } => self.on_pull(from, ballot, have, no, after, fx),
            Msg::Pulled { ballot, no, records, after } => self.on_pulled(now, from, ballot, no, records, after, fx),
            Msg::Join { ballot, branch, session, heads, staged, promised, stand_in } => {
                self.hear(promised);
                if self.lead().is_some_and(|lead| lead.ballot == ballot && lead.branch == branch) {
                    self.on_join(now, from, session, (heads, staged, stand_in), promised, fx);
                }
            }
            Msg::Leave { ballot, session } => self.on_leave(now, from, ballot, session, fx),
            Msg::Stage { ballot, nonce, pass } => self.on_stage(from, ballot, nonce, pass, fx),
            Msg::Staged { nonce, records, upto, after, left } => {
                self.on_staged(now, from, nonce, records, upto, after, left, fx);
            }
            Msg::Sync { ballot, session, chunk } => {
                if self.follows(from, ballot, fx) {
                    self.on_sync(now, from, session, chunk, fx);
                }
            }
            Msg::SyncAck { session, no } => self.on_sync_ack(now, from, session, no, fx),
            Msg::Append { ballot, session, entries, commit } => {
                if self.follows(from, ballot, fx) {
                    self.on_append(now, from, session, entries, commit, fx);
                }
            }
            Msg::Ack { session, seq } => self.on_ack(now, from, session, seq, fx),
            Msg::Dropped { ballot, session } => self.on_dropped(now, from, ballot, session, fx),
            Msg::Confirm { ballot, session, nonce } => {
                if self.follows(from, ballot, fx) {
                    self.on_confirm(now, from, session, nonce, fx);
                }
            }
            Msg::Borrow { session, nonce } => self.on_borrow(now, from, session, nonce, fx),
            Msg::Lent { ballot, session, nonce, commit } => {
                if self.follows(from, ballot, fx) {
                    self.on_lent(now, session, nonce, commit, fx);
                }
            }
            Msg::TakeOver { ballot, session } => {
                if self.follows(from, ballot, fx) {
                    self.on_take_over(now, session, fx);
                }
            }
            Msg::NotLent { session, nonce } => self.on_not_lent(session, nonce, fx),
            Msg::Used { session, used, hits, misses } => self.on_used(from, session, used, hits, misses),
            Msg::Confirmed { session, nonce } => self.on_confirmed(now, from, session, nonce, fx),
        }
    }

    /// May I listen to this leader? If I have promised a higher ballot it is told so.
    fn follows(&mut self, from: NodeId, ballot: Ballot, fx: &mut Effects) -> bool {
        if ballot < self.meta.promised && !mutant!(self, PromiseForgotten) {
            fx.sends.push((from, Msg::Refuse { ballot, promised: self.meta.promised }));
            return false;
        }
        matches!(&self.role, Role::Following(f) if f.leader == from && f.lead.ballot == ballot)
    }

    pub(crate) fn hear(&mut self, ballot: Ballot) {
        self.heard = self.heard.max(ballot);
    }

    fn on_status(&mut self, now: Now, from: NodeId, status: Status, fx: &mut Effects) {
        self.hear(status.heard);
        let before = self.statuses.insert(from, status);
        if before.is_none()
            && let Role::Opening(o) = &self.role
        {
            // It was made this moment, and could not be asked before.
            self.gate.push(Then::Send(from, Msg::Prepare { ballot: o.ballot() }));
        }
        if before.is_none_or(|old| old.lead != status.lead) {
            self.tick(now, fx);
        }
    }

    pub(crate) fn tick(&mut self, now: Now, fx: &mut Effects) {
        self.ticked = now.mono;
        match &self.role {
            Role::Idle { since, wait } => {
                let ours = |(node, lead): &(NodeId, Lead)| self.may_follow(*node) && self.may_turn_to(lead);
                if let Some((leader, lead)) = self.foreign_lead().filter(ours) {
                    self.follow(now, leader, lead, fx);
                } else if now.mono >= *since + *wait + self.patience() && self.may_open(now) {
                    self.open(now, fx);
                }
            }
            Role::Promised { at } => {
                let known = |(node, lead): &(NodeId, Lead)| lead.ballot >= self.meta.promised && self.may_follow(*node);
                if let Some((leader, lead)) = self.foreign_lead().filter(known) {
                    self.follow(now, leader, lead, fx);
                } else if now.mono - *at > self.config.timing.promise_wait {
                    self.rest(now);
                }
            }
            Role::Opening(_) => self.tend_opening(now, fx),
            Role::Leading(_) => self.tend_branch(now, fx),
            Role::Following(_) => self.tend_following(now, fx),
        }
        self.tend_heal(now, fx);
        if self.is_idle_stand_in() {
            self.note(Notice::Left, fx);
        }
        if now.mono - self.said_at > self.config.timing.probe {
            self.say_again(now, fx);
        }
    }

    /// Holds something worth leading, or was chosen to begin; and the view has stood for long enough.
    fn may_open(&self, now: Now) -> bool {
        let new = self.meta == Meta::default() || self.config.stand_in;
        let first = self.config.founders.first() == Some(&self.config.me);
        // One that has nothing any more (a `ram` copy that was restarted) may call things absent only where nobody is missing.
        let founds = self.config.founders.contains(&self.config.me) && (new || self.whole);
        let entitled = !self.store.heads().is_empty() || founds;
        let stable = self.view_is_stable(now) || (self.config.eager && new && first);
        if mutant!(self, RestartedWaits) && !new && self.sessions == 0 {
            return false;
        }
        // A stand-in leads only where nobody else could.
        // Or where what it took lies nowhere else.
        let needed = !self.whole || !self.store.heads().is_empty();
        let alone = !self.config.stand_in || (needed && !self.sees_a_copy());
        entitled && stable && alone && now.mono >= self.config.opens_after
    }

    /// How long to leave the opening to better placed copies in view: first those whose clock is right and that were in sync, of those the
    /// founder listed first, or the one that knows most. Only speed depends on it.
    fn patience(&self) -> Span {
        let place = |node: NodeId| self.config.founders.iter().position(|f| *f == node).unwrap_or(usize::MAX);
        let mine = self.status();
        let me =
            (!mine.barred, mine.was_in_sync, mine.weight > 0, std::cmp::Reverse(place(self.config.me)), mine.weight);
        let better = self.statuses.iter().filter(|(node, s)| {
            self.view.contains(node)
                && !s.stand_in
                && (!s.barred, s.was_in_sync, s.weight > 0, std::cmp::Reverse(place(**node)), s.weight, **node)
                    > (me.0, me.1, me.2, me.3, me.4, self.config.me)
        });
        Span(self.config.timing.retry.0 * 2 * better.count() as u64)
    }

    /// Stops whatever it was doing and waits a random while before it opens by itself.
    pub(crate) fn rest(&mut self, now: Now) {
        let belonged = match &self.role {
            Role::Leading(_) => true,
            Role::Following(f) => f.joined,
            _ => false,
        };
        self.orphaned = if belonged { Some(now.mono) } else { self.orphaned };
        let most = self.config.timing.retry.0;
        let wait = Span(self.rng.random_range(0..=most));
        self.role = Role::Idle { since: now.mono, wait };
    }

    /// It was of an island a moment ago, which has an order of its own.
    pub(crate) fn mourn(&mut self, now: Now) {
        self.orphaned = Some(now.mono);
    }

    /// Runs what the disc has caught up with.
    pub(crate) fn drain(&mut self, now: Now, fx: &mut Effects) {
        while let Some(then) = self.gate.pop() {
            match then {
                Then::Send(to, msg) => fx.sends.push((to, msg)),
                Then::SelfAck(branch, seq) => self.on_self_ack(now, branch, seq, fx),
                Then::Ready(branch) => self.on_ready(now, branch, fx),
            }
        }
    }

    /// Hands a batch to the disc.
    pub(crate) fn persist(&mut self, batch: WriteBatch, sync: bool, fx: &mut Effects) {
        let sync = sync || batch.meta.is_some();
        if batch.is_empty() {
            return;
        }
        self.gate.written += 1;
        if sync && !mutant!(self, AckUnsynced) {
            self.gate.synced = self.gate.written;
        }
        fx.persists.push(Persist { batch, mark: self.gate.written, sync });
    }

    /// Applies records and heads to the store and hands them to the disc, with the clock's ceiling if they pass it.
    pub(crate) fn write(
        &mut self,
        now: Now,
        heads: Vec<Version>,
        puts: Vec<(Bytes, Record)>,
        sync: bool,
        fx: &mut Effects,
    ) {
        let bound = Hlc::from_wall(base::WallMs(now.wall.0 + self.config.timing.skew_max.as_ms()));
        let top = puts.iter().map(|(_, r)| r.hlc).filter(|hlc| *hlc <= bound).max().unwrap_or_default();
        self.hlc = self.hlc.max(top);
        let mut batch = self.store.apply(heads, puts);
        let sync = sync && !self.store.is_volatile();
        if mutant!(self, TurnUnmirrored) && self.store.is_volatile() {
            batch = WriteBatch::default();
        }
        if self.hlc > self.meta.ceiling {
            self.meta.ceiling = Hlc::from_wall(base::WallMs(self.hlc.wall().0 + 1000));
            batch.meta = Some(self.meta);
        }
        self.persist(batch, sync, fx);
    }

    /// Keeps a changed meta durably.
    pub(crate) fn write_meta(&mut self, fx: &mut Effects) {
        self.persist(WriteBatch { meta: Some(self.meta), ..WriteBatch::default() }, true, fx);
    }

    pub(crate) fn note(&self, notice: Notice, fx: &mut Effects) {
        fx.notices.push(notice);
    }
}

/// The bug R2: what the node led before a restart is taken to be closed where it stands.
#[cfg(feature = "mutants")]
fn close_all(me: NodeId, mut store: Store) -> Store {
    let mine: Vec<Version> = store.heads().iter().filter(|v| v.branch.node == me).collect();
    for version in mine {
        let record = Record { version, hlc: Hlc(1), expires: None, value: Some(Bytes::new()) };
        store.apply(vec![], vec![(key::closed(version.branch), record)]);
    }
    store
}
