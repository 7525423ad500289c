use crate::asking::{Asking, Said};
use crate::balance::{Balance, Told};
use crate::burial::Fates;
use crate::copies::{Copies, Task, Window};
use crate::follow::Questions;
use crate::fragments::given_away;
use crate::frame::{Frame, Hello, PROTOCOL};
use crate::gateway::{ClientError, Gateway, Next, Op, OpReply, What};
use crate::graves::Grave;
use crate::io::{Effect, Input, LinkId, Notice, OpId};
use crate::lifecycle::Lives;
use crate::peers::Peers;
use crate::schema::{self, TableDef, TableOptions, sys_fragment, sys_table};
use base::{FragmentId, Instant, NodeId, Now, Span, TableId, Version};
use bytes::Bytes;
use discovery::Discovery;
use membership::{Identity, Island, Patience, RosterEntry, RosterStatus, Swim, Truths, island};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use replica::{Lead, Outcome, SessionId, Stored, Ticket, Timing, Values};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use wire::{Keys, ReplayWindow};

/// How often the node looks after its slow duties.
const CHORES: Span = Span::ms(1_000);
/// `max_clock_skew`: a clock further off the median of the view than this leads nothing, where others can.
const SKEW_MAX_MS: i64 = 5_000;
/// It may lead again below this.
const SKEW_GOOD_MS: i64 = 4_000;
/// From this on it is said that values that lost conflicts take much room.
const LEDGER_WARN_BYTES: u64 = 1 << 30;
/// How long a clean stop may take before the node just goes.
const STOP_WAIT: Span = Span::ms(2_000);
/// How often an operation may be tried within one burst.
const ROUNDS_MAX: usize = 3;
/// Operations of the node itself, not of a client, have this bit.
const INTERNAL: OpId = 1 << 63;

/// What a node is told when it is made.
#[derive(Clone, Debug)]
pub struct Config {
    /// Who I am.
    pub me: NodeId,
    /// My how-manieth start.
    pub incarnation: u64,
    /// My name.
    pub name: String,
    /// My group.
    pub group: String,
    /// Where others reach me, TCP and UDP, as the roster says.
    pub advertise: SocketAddr,
    /// What beacons and hellos say of that; an unspecified IP means the one that they come from.
    pub announce: SocketAddr,
    /// My zone.
    pub zone: Option<String>,
    /// My share of copies in relation to other nodes', if not the usual one; 0: none.
    pub weight: Option<u16>,
    /// Keys of the cookie and group.
    pub keys: Keys,
    /// Keys of other cookies that are taken from others, while a fleet changes from one to the other.
    pub accept: Vec<Keys>,
    /// Addresses to try for ever.
    pub join: Vec<SocketAddr>,
    /// How long to look for peers before taking part alone.
    pub discover_delay: Span,
    /// How long who is waited for before it is given up.
    pub patience: Patience,
    /// Waits of the copies.
    pub timing: Timing,
    /// What the program that embeds the node brings along to merge conflicts with.
    pub functions: replica::Functions,
    /// Where copies read values that they do not keep in RAM.
    pub values: Option<Arc<dyn Values>>,
    /// Of all random choices.
    pub seed: u64,
}

/// Who waits for a copy's answer.
pub(crate) enum Origin {
    Local(u64),
    Remote(NodeId, u64),
}

/// One node. See the crate's documentation.
pub struct Node {
    pub(crate) config: Config,
    pub(crate) started: Instant,
    pub(crate) discovery: Discovery,
    pub(crate) swim: Swim,
    pub(crate) replay: ReplayWindow,
    pub(crate) peers: Peers,
    pub(crate) view: BTreeSet<NodeId>,
    /// Those of the missing that look dead, and those that said goodbye.
    pub(crate) missing: (BTreeSet<NodeId>, BTreeSet<NodeId>),
    /// No node is missing, as copies were last told.
    pub(crate) whole: bool,
    /// When that was noticed, or that it is not so any more.
    pub(crate) whole_since: Instant,
    pub(crate) gateway: Gateway,
    pub(crate) copies: Copies,
    pub(crate) stored: BTreeMap<FragmentId, Stored>,
    pub(crate) invited: BTreeSet<FragmentId>,
    /// Which nodes in view have copies of what, and whether there is something in them.
    pub(crate) holders: BTreeMap<FragmentId, BTreeMap<NodeId, bool>>,
    /// When a table was last made or dropped.
    pub(crate) tables_at: Instant,
    /// Copies that have gone, and all that went since this process began.
    pub(crate) left: Vec<FragmentId>,
    pub(crate) given_away: BTreeSet<FragmentId>,
    /// Those of which its disc tells that a copy left before this process began, or was never begun.
    pub(crate) gave_before: BTreeSet<FragmentId>,
    /// When the view last changed.
    pub(crate) view_at: Instant,
    /// Who leads what in view, whether that is a copy or stands in for one, and since when it is known.
    pub(crate) routes: BTreeMap<FragmentId, BTreeMap<NodeId, (bool, Lead, Instant)>>,
    pub(crate) origins: BTreeMap<Ticket, (Origin, Instant)>,
    pub(crate) late: Vec<(FragmentId, replica::Effects)>,
    /// Copies that have become copies of other fragments.
    pub(crate) recutting: crate::recut::Recutting,
    pub(crate) roster: BTreeMap<NodeId, RosterEntry>,
    pub(crate) tables: BTreeMap<String, TableDef>,
    /// How many records of the system table make no sense to this program, and whether that is to be said.
    pub(crate) unreadable: usize,
    pub(crate) say_unreadable: bool,
    pub(crate) sys_edition: u64,
    /// The number of this cluster, and whether peers are to be told of it.
    pub(crate) cluster: Option<u64>,
    pub(crate) say_cluster: bool,
    /// Tables that lost their names when islands met: by the names they go under, the rows of the ledger that keep them.
    /// Tables that were dropped, and whether something of them has turned up.
    pub(crate) graves: BTreeMap<TableId, (Grave, bool)>,
    pub(crate) nameless: BTreeMap<String, (Bytes, Version)>,
    /// What copies here held of tables that this island dropped, when it did; by the number of the drop.
    pub(crate) dropped_at: BTreeMap<TableId, (u64, BTreeMap<FragmentId, base::Heads>)>,
    /// The moment of the newest input.
    pub(crate) latest: Instant,
    /// It was said that the ledger is large.
    ledger_said: bool,
    pub(crate) creating: BTreeMap<OpId, (String, TableOptions, bool)>,
    pub(crate) ready: bool,
    pub(crate) counter: u64,
    tickets: Ticket,
    internal: OpId,
    pub(crate) entered: Option<OpId>,
    /// Since when those of the roster that are not in view have been out of it.
    pub(crate) out_since: BTreeMap<NodeId, Instant>,
    /// Since when this island has the majority, without a break.
    pub(crate) majority_since: Option<Instant>,
    /// What the system table says of nodes, beside the roster.
    pub(crate) lives: Lives,
    /// Links to buried nodes may still stand.
    pub(crate) part_with_buried: bool,
    /// What authoritative providers say.
    pub(crate) truths: Truths,
    /// Providers that fail.
    pub(crate) failing: BTreeSet<u16>,
    /// What becomes of nodes, this one among them.
    pub(crate) fates: Fates,
    said: Option<(&'static str, String)>,
    pub(crate) chores_at: Instant,
    pub(crate) bounds: crate::bounds::Bounds,
    pub(crate) stopping: Option<(Instant, OpId)>,
    /// Everything that has to be done before the node goes is done.
    pub(crate) leaving: bool,
    pub(crate) shortage: replica::Shortage,
    /// How far this machine's clock is ahead of the others', in ms, while that is too far.
    pub(crate) skewed: Option<i64>,
    /// So far that it leads nothing.
    pub(crate) barred: bool,
    pub(crate) asking: Asking<Said>,
    pub(crate) surveys: Asking<Told>,
    pub(crate) balance: Balance,
    pub(crate) questions: Questions,
    pub(crate) rng: StdRng,
}

impl Node {
    /// A node with what its disc holds. It takes part after the first input.
    pub fn new(now: Now, config: Config, stored: BTreeMap<FragmentId, Stored>) -> Node {
        let (me, incarnation) = (config.me, config.incarnation);
        let mut rng = StdRng::seed_from_u64(config.seed);
        let mut node = Node {
            started: now.mono,
            discovery: Discovery::new(now.mono, config.me, &config.join, rng.random()),
            swim: Swim::new(Identity::first(me, config.advertise, incarnation), rng.random()),
            replay: ReplayWindow::default(),
            peers: Peers::default(),
            view: BTreeSet::new(),
            missing: Default::default(),
            whole: false,
            whole_since: now.mono,
            gateway: Gateway::new(SessionId { node: me, incarnation }),
            copies: Copies::default(),
            gave_before: given_away(&stored),
            stored,
            invited: BTreeSet::new(),
            holders: BTreeMap::new(),
            tables_at: now.mono,
            left: Vec::new(),
            given_away: BTreeSet::new(),
            view_at: now.mono,
            routes: BTreeMap::new(),
            origins: BTreeMap::new(),
            late: Vec::new(),
            recutting: Default::default(),
            roster: BTreeMap::new(),
            tables: BTreeMap::new(),
            unreadable: 0,
            say_unreadable: false,
            sys_edition: 0,
            cluster: None,
            say_cluster: false,
            graves: BTreeMap::new(),
            nameless: BTreeMap::new(),
            dropped_at: BTreeMap::new(),
            latest: now.mono,
            ledger_said: false,
            creating: BTreeMap::new(),
            ready: false,
            counter: 0,
            tickets: 0,
            internal: INTERNAL,
            entered: None,
            out_since: BTreeMap::new(),
            majority_since: None,
            lives: Lives::default(),
            part_with_buried: false,
            truths: Truths::default(),
            failing: BTreeSet::new(),
            fates: Fates::default(),
            said: None,
            chores_at: now.mono,
            bounds: Default::default(),
            stopping: None,
            leaving: false,
            shortage: replica::Shortage::default(),
            skewed: None,
            barred: false,
            asking: Asking::default(),
            surveys: Asking::default(),
            balance: Balance::default(),
            questions: Questions::default(),
            rng,
            config,
        };
        node.refresh_at_start(now);
        node
    }

    /// Tables known from disc get their copies before the first packet: a copy that exists must answer for itself.
    fn refresh_at_start(&mut self, now: Now) {
        self.make_copy(now, sys_fragment(), &sys_table(), vec![self.config.me], (false, false));
        self.sys_edition = u64::MAX;
        self.refresh(now);
        // It is old news.
        (self.fates.say_life, self.fates.news) = (false, Vec::new());
        self.make_copies(now, false);
    }

    /// A random number from the node's own generator.
    pub(crate) fn seed(&mut self) -> u64 {
        self.rng.random()
    }

    /// Where threads beside the node read its copies.
    pub fn window(&self) -> Window {
        self.copies.window()
    }

    /// The hello that this node says on every link.
    pub fn hello(&self) -> Hello {
        Hello {
            protocol: PROTOCOL,
            node: self.config.me,
            incarnation: self.config.incarnation,
            life: self.fates.life,
            name: self.config.name.clone(),
            listen: self.config.announce,
            zone: self.config.zone.clone(),
        }
    }

    /// Whom it sees, itself left out.
    pub fn sees(&self) -> &BTreeSet<NodeId> {
        &self.view
    }

    /// The roster as last read.
    pub(crate) fn roster(&self) -> &BTreeMap<NodeId, RosterEntry> {
        &self.roster
    }

    /// The tables as last read.
    pub(crate) fn tables(&self) -> &BTreeMap<String, TableDef> {
        &self.tables
    }

    pub(crate) fn island(&self, now: Now) -> Island {
        island(self.config.me, &self.peers.view(now.mono), &self.roster)
    }

    /// Takes one input. Call [`Node::flush`] after each burst.
    pub fn handle(&mut self, now: Now, input: Input, out: &mut Vec<Effect>) {
        self.latest = now.mono;
        match input {
            Input::Tick => self.tick(now, out),
            Input::Datagram(from, bytes) => self.on_datagram(now, from, &bytes, out),
            Input::Beacon(from, bytes) => self.on_beacon(now, from, &bytes, out),
            Input::Linked { link, dialled, addr, hello } => self.on_linked(now, link, dialled, addr, hello, out),
            Input::Unlinked(link) => self.on_unlinked(now, link, out),
            Input::DialFailed { addr, refused } => {
                if refused {
                    self.peers.refused(addr);
                }
                self.discover(now, discovery::Input::Failed(addr), out);
                self.update_view(now, out);
            }
            Input::Frame(link, Frame::Buried(burial)) => self.told_buried(now, link, burial, out),
            Input::Frame(link, frame) => {
                // A goodbye on a link that was replaced may be an earlier process's last word.
                let late = |from| frame == Frame::Bye && self.peers.link(from) != Some(link);
                if let Some(from) = self.peers.node(link).filter(|from| !late(*from)) {
                    self.on_frame(now, from, frame, out);
                }
            }
            Input::Durable(fragment, mark) => {
                self.note_durable(fragment, mark);
                self.copies.later(fragment, replica::Input::Durable(mark));
            }
            Input::Op(op, what) => self.on_op(now, op, what, out),
            Input::Said(number, said) => self.process_said(self.config.me, number, said, out),
            Input::Advertise(addr) => {
                // The roster learns of it at the next round.
                self.config.advertise = addr;
                self.chores_at = now.mono;
            }
            Input::Listed { provider, authoritative, places } => {
                self.listed(now, provider, authoritative, places, out);
            }
            Input::Warm(fragment) => drop(self.copies.later(fragment, replica::Input::Warm)),
            Input::Forget(op) => {
                self.creating.remove(&op);
                self.gateway.forget(op);
            }
            Input::Shortage(shortage) => {
                self.shortage = shortage;
                self.feed_all(now, &replica::Input::Shortage(shortage), out);
            }
            Input::Probe => self.probe_peers(now, out),
            Input::SlowAfter(span) => self.gateway.traces.after = span,
            Input::Stop => self.stop(now, out),
        }
        self.deliver_late(now, out);
    }

    /// Ends a burst: clients' operations go where they can, copies take what came for them and send what they gathered.
    pub fn flush(&mut self, now: Now, out: &mut Vec<Effect>) {
        self.flush_by(now, &mut |tasks| tasks.iter_mut().for_each(|task| task.run(now)), out);
    }

    /// The same, by whoever runs all of the tasks it is given, each once, in any order and on any threads.
    pub fn flush_by(&mut self, now: Now, run: &mut dyn FnMut(&mut [Task]), out: &mut Vec<Effect>) {
        // What a copy here could not answer goes elsewhere at once.
        for _ in 0..ROUNDS_MAX {
            self.attempt_due(now, out);
            if !self.flush_copies(now, run, out) {
                break;
            }
        }
        self.part_with_left(now, out);
        self.tell_slow(out);
        self.say_fates(out);
        if std::mem::take(&mut self.part_with_buried) {
            self.part_with_buried(now, out);
        }
        self.deliver_late(now, out);
        // Not sooner: what copies want done is carried out in the order in which they wanted it.
        if std::mem::take(&mut self.leaving) {
            self.leave(now, out);
        }
    }

    /// When to call with [`Input::Tick`] at the latest.
    pub fn deadline(&self, now: Instant) -> Instant {
        let all = [
            Some(self.chores_at),
            self.discovery.deadline(),
            self.swim.deadline(),
            self.peers.deadline(),
            self.gateway.deadline(now),
            self.copies.deadline(),
            self.asking.deadline(),
            self.surveys.deadline(),
            self.questions.deadline(),
            self.balance.pace.deadline(),
        ];
        all.into_iter().flatten().min().unwrap_or(now + CHORES)
    }

    fn tick(&mut self, now: Now, out: &mut Vec<Effect>) {
        self.discover(now, discovery::Input::Tick, out);
        self.swim(now, membership::Input::Tick, out);
        self.tend_peers(now, out);
        self.update_view(now, out);
        for fragment in self.copies.due(now.mono) {
            self.copies.later(fragment, replica::Input::Tick);
        }
        for (op, fragment, outcome) in self.gateway.expired(now.mono) {
            let reply = match outcome {
                Some(outcome) => OpReply::Outcome(outcome),
                None => OpReply::Error(self.unavailable(fragment)),
            };
            self.finish(now, op, reply, out);
        }
        self.send_paced(now, out);
        self.tend_ashes(out);
        self.tend_asking(now, out);
        self.tend_questions(now, out);
        if now.mono >= self.chores_at {
            self.chores_at = now.mono + CHORES;
            self.chores(now, out);
        }
    }

    /// Whoever is said to be gone is asked; whoever does not answer is unlinked.
    fn tend_peers(&mut self, now: Now, out: &mut Vec<Effect>) {
        let (ask, gone) = self.peers.tend(now.mono);
        out.extend(ask.into_iter().map(|(link, number)| Effect::Frame(link, Frame::AreYouThere(number))));
        for (node, links) in gone {
            out.extend(links.into_iter().map(Effect::Close));
            self.gateway.lost(node);
            self.discover(now, discovery::Input::Unlinked(node), out);
        }
    }

    /// What is done about once a second.
    fn chores(&mut self, now: Now, out: &mut Vec<Effect>) {
        if !self.ready && (now.mono - self.started >= self.config.discover_delay || !self.view.is_empty()) {
            self.ready = true;
            self.gateway.traces.ready = now.mono;
            out.push(Effect::Notice(Notice::Ready { peers: self.view.len() }));
        }
        if self.stopping.is_some_and(|(at, _)| now.mono - at > STOP_WAIT) {
            self.leaving = true;
            return;
        }
        if self.recutting.more || !self.recutting.aside.is_empty() {
            self.recut(now);
        }
        self.make_copies(now, true);
        self.stand_in(now);
        let island = self.island(now);
        if let Island::Partitioned(missing) = &island {
            // The missing are looked for for ever, wherever the roster last knew them.
            let addrs: Vec<_> = missing.iter().filter_map(|n| Some((*n, self.roster.get(n)?.addr))).collect();
            for (node, addr) in addrs {
                self.discover(now, discovery::Input::Found(node, addr), out);
            }
        }
        self.discover(now, discovery::Input::Whole(island == Island::Whole), out);
        let whole = !matches!(island, Island::Partitioned(_));
        if whole != self.whole {
            (self.whole, self.whole_since) = (whole, now.mono);
            let sight = self.sight(now);
            self.feed_all(now, &sight, out);
        }
        self.say_island(&island, out);
        if std::mem::take(&mut self.say_unreadable) {
            out.push(Effect::Notice(Notice::Unreadable(self.unreadable)));
        }
        let ledger = self.ledger_size().1;
        if ledger >= LEDGER_WARN_BYTES && !self.ledger_said {
            out.push(Effect::Notice(Notice::Ledger(ledger)));
        }
        self.ledger_said = ledger >= LEDGER_WARN_BYTES;
        self.mind_clock(now, out);
        self.tend_graves(now, out);
        self.name_cluster(now, out);
        self.tell_cluster(out);
        self.enter_roster(now, out);
        self.tend_roster(now, &island, out);
        self.invite_members(out);
        self.tell_reports(now, out);
        self.tend_balance(now, out);
        self.tend_layouts(now, out);
        self.turn_copies(now, out);
        self.tend_bounds(now, out);
        self.tend_departure(now, out);
        self.close_refused(out);
        self.look_for_buried(now, out);
    }

    /// How far this clock is ahead of the others'.
    pub(crate) fn clock_ahead(&self, now: Now) -> Option<i64> {
        let (ahead, clocks) = self.peers.ahead(now.mono);
        (clocks > 1).then_some(if clocks == 2 { ahead * 2 } else { ahead })
    }

    /// With two nodes nobody can tell whose clock is wrong: both say so, and both may lead.
    fn mind_clock(&mut self, now: Now, out: &mut Vec<Effect>) {
        let (_, clocks) = self.peers.ahead(now.mono);
        let ahead = self.clock_ahead(now).unwrap_or(0);
        let bound = if self.skewed.is_some() { SKEW_GOOD_MS } else { SKEW_MAX_MS };
        let before = (self.skewed.is_some(), self.barred);
        self.skewed = (ahead.abs() > bound).then_some(ahead);
        // Whoever is about to go lets others lead, too.
        self.barred = (self.skewed.is_some() && clocks > 2) || self.is_leaving(self.config.me);
        if before != (self.skewed.is_some(), self.barred) {
            let clock = self.skewed.is_some() || before.0;
            out.extend(clock.then_some(Effect::Notice(Notice::Clock(self.skewed, self.barred))));
            self.feed_all(now, &replica::Input::Barred(self.barred), out);
        }
    }

    /// Can it take nothing in?
    pub(crate) fn is_full(&self) -> bool {
        self.shortage.most() == replica::Pressure::Full
    }

    /// Feeds every copy the same.
    pub(crate) fn feed_all(&mut self, now: Now, input: &replica::Input, out: &mut Vec<Effect>) {
        self.copies.ids().into_iter().for_each(|f| self.feed(now, f, input.clone(), out));
    }

    fn say_island(&mut self, island: &Island, out: &mut Vec<Effect>) {
        let now = (island.name(), self.why(island));
        if self.said.as_ref() != Some(&now) {
            out.push(Effect::Notice(Notice::Island(now.0, now.1.clone())));
            self.said = Some(now);
        }
    }

    /// A record of the system table as this node's copy has it.
    pub(crate) fn sys_record(&self, key: &[u8]) -> Option<replica::Record> {
        let stored = [&[replica::Space::User as u8][..], key].concat();
        self.copies.with(sys_fragment(), |c| c.store().find(&stored))?
    }

    pub(crate) fn next_internal(&mut self) -> OpId {
        self.internal += 1;
        self.internal
    }

    // ---- links, packets and the view ----

    fn on_frame(&mut self, now: Now, from: NodeId, frame: Frame, out: &mut Vec<Effect>) {
        match frame {
            Frame::Copy(fragment, msg) => self.on_copy_msg(now, from, fragment, msg, out),
            Frame::Invite(fragment) => {
                self.given_away.remove(&fragment);
                self.gave_before.remove(&fragment);
                if self.invited.insert(fragment) {
                    self.make_copies(now, true);
                }
            }
            Frame::Write(number, fragment, request) => {
                let ticket = self.ticket(now, Origin::Remote(from, number));
                if !self.copies.later(fragment, replica::Input::Write(ticket, request)) {
                    self.origins.remove(&ticket);
                    self.to(from, Frame::Answer(number, replica::Answer::NotLeading), out);
                }
            }
            Frame::Read(number, fragment, read) => {
                let ticket = self.ticket(now, Origin::Remote(from, number));
                if !self.copies.later(fragment, replica::Input::Read(ticket, read)) {
                    self.origins.remove(&ticket);
                    self.to(from, Frame::Rows(number, None), out);
                }
            }
            Frame::Answer(number, answer) => {
                self.mind_not_leading(from, number, answer == replica::Answer::NotLeading);
                let next = self.gateway.answered(now.mono, from, number, answer);
                self.next(now, next, out);
            }
            Frame::Elsewhere(number) => {
                let next = self.read_elsewhere(number);
                self.next(now, next, out);
            }
            Frame::Rows(number, rows) => {
                self.mind_not_leading(from, number, rows.is_none());
                let next = self.gateway.rows(now.mono, number, rows);
                self.next(now, next, out);
            }
            Frame::AreYouThere(number) => self.to(from, Frame::Here(number), out),
            Frame::Here(number) => self.peers.answered(now.mono, from, number),
            Frame::Doubted(node) => self.peers.ask_once(now.mono, node),
            Frame::GaveAway(fragments) => self.gave_away(from, &fragments),
            Frame::AskLeads(number) => self.to(from, Frame::Leads(number, self.survey(now)), out),
            Frame::Leads(0, told) => self.balance_told(now, from, told),
            Frame::Leads(number, told) => self.leads_told(now, from, number, told, out),
            Frame::Order(fragment, order) => self.told_order(now, from, fragment, order, out),
            Frame::AskChanges(number, fragment, since) => self.answer_changes(from, number, fragment, &since, out),
            Frame::Changes(number, changes) => self.changes_told(number, changes, out),
            Frame::Ask(number, what) => out.extend(self.peers.link(from).map(|l| Effect::Ask(Some(l), number, what))),
            Frame::Said(number, said) => self.process_said(from, number, said, out),
            Frame::Cluster(number) => self.cluster_told(from, number, out),
            Frame::Buried(_) => {}
            Frame::Life(life) => self.peers.lives(from, life),
            Frame::Bye => {
                self.peers.bye(from);
                self.update_view(now, out);
            }
        }
    }

    pub(crate) fn to(&self, node: NodeId, frame: Frame, out: &mut Vec<Effect>) {
        out.extend(self.peers.link(node).map(|link| Effect::Frame(link, frame)));
    }

    fn ticket(&mut self, now: Now, origin: Origin) -> Ticket {
        self.tickets += 1;
        self.origins.insert(self.tickets, (origin, now.mono));
        self.tickets
    }

    // ---- local clients ----

    pub(crate) fn on_op(&mut self, now: Now, op: OpId, what: Op, out: &mut Vec<Effect>) {
        if self.stopping.is_some() && op & INTERNAL == 0 {
            return self.reply(op, OpReply::Error(ClientError::Stopping), out);
        }
        let (fragment, what, wait) = match what {
            Op::Write(fragment, batch, wait) => {
                if let Err(refusal) = batch.validate() {
                    return self.reply(op, OpReply::Outcome(Outcome::Failed(refusal)), out);
                }
                (fragment, What::Write { batch, branches: Vec::new() }, wait)
            }
            Op::Read(fragment, read, wait) => (fragment, What::Read(read), wait),
            Op::CreateTable(name, options, may_exist) => return self.create(now, op, name, options, may_exist, out),
            Op::DropTable(name) => return self.drop_table(now, op, name, out),
            Op::Table(name) => {
                let reply = match self.tables.get(&name) {
                    Some(def) => OpReply::Table(def.clone()),
                    None => OpReply::Error(ClientError::NoTable(name)),
                };
                return self.reply(op, reply, out);
            }
            Op::Tables => return self.reply(op, OpReply::Tables(self.tables.values().cloned().collect()), out),
            Op::Status => return self.reply(op, OpReply::Status(Box::new(self.status(now))), out),
            Op::TableInfo(name) => {
                let info = self.tables.get(&name).map(|def| self.table_info(def));
                let reply =
                    info.map_or(OpReply::Error(ClientError::NoTable(name)), |i| OpReply::TableInfo(Box::new(i)));
                return self.reply(op, reply, out);
            }
            Op::Changes(fragment, since) => return self.ask_changes(now, op, fragment, since, out),
            Op::Ask(question, alone) => return self.ask_processes(now, op, (&question, alone), out),
            Op::Why(object) => return self.tell_why(now, op, &object, out),
            Op::Map => return self.ask_leads(now, op, out),
            Op::PauseBalance(paused) => return self.set(now, op, schema::PAUSED_KEY, &paused, out),
            Op::CopyRate(rate) => return self.set(now, op, schema::RATE_KEY, &rate.unwrap_or(0), out),
            Op::AlterTable(name, change) => return self.alter(now, op, name, change, out),
            Op::Word(named, word) => return self.word(now, op, &named, word, out),
        };
        let fragment = match self.present(fragment, &what) {
            Ok(fragment) => fragment,
            Err(error) => return self.reply(op, OpReply::Error(error), out),
        };
        match self.gateway.begin(now.mono, op, fragment, what, wait) {
            Some(number) => self.attempt(now, number, out),
            None => self.reply(op, OpReply::Error(ClientError::Overloaded), out),
        }
    }

    /// An operation has ended: its client is told, unless the node itself asked or there is a second half to it.
    pub(crate) fn finish(&mut self, now: Now, op: OpId, reply: OpReply, out: &mut Vec<Effect>) {
        if self.stopping.is_some_and(|(_, last)| last == op) {
            self.leaving = true;
            return;
        }
        if self.entered == Some(op) {
            self.entered = None;
        }
        self.mind_last_word(now, op, &reply);
        if op & INTERNAL != 0 {
            return;
        }
        let Some((name, _, may_exist)) = self.creating.remove(&op) else { return self.reply(op, reply, out) };
        self.refresh(now);
        let reply = match (reply, self.tables.get(&name)) {
            (OpReply::Outcome(Outcome::Done { .. }), Some(def)) => OpReply::Table(def.clone()),
            (OpReply::Outcome(Outcome::Failed(_)), Some(def)) if may_exist => OpReply::Table(def.clone()),
            (OpReply::Outcome(Outcome::Failed(_)), _) => OpReply::Error(ClientError::TableExists(name)),
            (OpReply::Outcome(Outcome::Done { .. }), None) => OpReply::Outcome(Outcome::Unknown),
            (other, _) => other,
        };
        self.reply(op, reply, out);
    }

    pub(crate) fn next(&mut self, now: Now, next: Next, out: &mut Vec<Effect>) {
        match next {
            Next::Done(op, reply) => self.finish(now, op, reply, out),
            Next::Moved(fragment, node, branch) => {
                if let Some((_, lead, _)) = self.routes.get_mut(&fragment).and_then(|leads| leads.get_mut(&node)) {
                    lead.branch = branch;
                }
            }
            Next::Retry | Next::Nothing => {}
        }
    }

    fn attempt_due(&mut self, now: Now, out: &mut Vec<Effect>) {
        for number in self.gateway.due(now.mono) {
            self.attempt(now, number, out);
        }
    }

    /// Sends an operation to whoever leads its fragment now.
    pub(crate) fn attempt(&mut self, now: Now, number: u64, out: &mut Vec<Effect>) {
        let Some(fragment) = self.gateway.pending.get(&number).map(|p| p.fragment) else { return };
        // A copy beside it may be read; whatever it cannot answer goes to the leader.
        let here = self.gateway.may_read_here(number)
            && self.copies.with(fragment, |c| c.inspect_role() == replica::RoleName::Following).unwrap_or(false);
        let lead = if here { Some((self.config.me, Lead::default())) } else { self.lead_of(fragment) };
        let Some((leader, lead)) = lead else {
            return self.gateway.nobody(now.mono, number);
        };
        let request = self.gateway.request(number, lead.branch);
        self.gateway.attempted(now.mono, number, leader, here);
        let Some(pending) = self.gateway.pending.get(&number) else { return };
        let read = match &pending.what {
            What::Read(read) => Some(read.clone()),
            What::Write { .. } => None,
        };
        if leader == self.config.me {
            let ticket = self.ticket(now, Origin::Local(number));
            let input = match (request, read) {
                (Some(request), _) => replica::Input::Write(ticket, request),
                (None, Some(read)) => replica::Input::Read(ticket, read),
                (None, None) => return,
            };
            self.copies.later(fragment, input);
            return;
        }
        match (request, read) {
            (Some(request), _) => self.to(leader, Frame::Write(number, fragment, request), out),
            (None, Some(read)) => self.to(leader, Frame::Read(number, fragment, read), out),
            (None, None) => {}
        }
    }

    // ---- stopping ----

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.is_some()
    }

    /// A clean stop: first the roster learns that it is planned.
    fn stop(&mut self, now: Now, out: &mut Vec<Effect>) {
        if self.stopping.is_some() {
            return;
        }
        // The next internal operation is the last one.
        self.stopping = Some((now.mono, self.internal + 1));
        // What stands in for others must be waited for: others count on it that nothing is missing.
        let needed = self.find_copy(|_, c| c.keeps_for_others().then_some(())).is_some();
        if needed || self.lead_of(sys_fragment()).is_none() {
            self.leaving = true;
            return;
        }
        let entry = self.entry(RosterStatus::Stopped);
        self.put_entry(now, self.config.me, &entry, Vec::new(), out);
    }

    /// Then every branch led here ends, so that others can tell how; then goodbye.
    fn leave(&mut self, now: Now, out: &mut Vec<Effect>) {
        self.feed_all(now, &replica::Input::Resign, out);
        self.flush(now, out);
        // Gossip of it might come first, and cost the link that carries the goodbye.
        let links: Vec<LinkId> = self.peers.links().collect();
        out.extend(links.into_iter().map(|link| Effect::Frame(link, Frame::Bye)));
        out.push(Effect::Stopped);
    }
}
