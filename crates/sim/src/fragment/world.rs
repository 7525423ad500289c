use super::account::{difference, same};
use super::check::Checker;
use super::client::{Op, Pending};
use super::cuts::{Before, Cuts};
use super::disc::Disc;
use super::follow::Subscriber;
use super::schedule::Schedule;
use super::turns::Turns;
use base::{FragmentId, Instant, NodeId, Now, Span, WallMs};
use bytes::Bytes;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use replica::{
    Choice, Config, Copy, Effects, Evict, Functions, Input, MergePolicy, MergeRule, Meta, MinInSync, Msg, Mutant,
    Reply, RoleName, Storage, Store, Timing,
};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;

/// How long the faultless second phase lasts, in ms: several openings and joins.
const QUIET_MS: u64 = 12_000;
/// And so long beyond that, in microseconds, while something is on its way.
const LAST_US: u64 = 1_000_000;

/// What to run.
#[derive(Clone, Copy, Default)]
pub struct Options {
    /// Prints what happens.
    pub trace: bool,
    /// Every history is of a table that asks for so many copies, on discs that lose nothing.
    pub asks: Option<MinInSync>,
    /// In every history that can be of such a table, where records are kept changes.
    pub turns: bool,
    /// The same of the number of its fragments.
    pub cuts: bool,
    /// Only histories of fragments with a bound.
    pub bounds: bool,
    /// The rule that is removed.
    pub mutant: Option<Mutant>,
}

/// What a run came to.
#[derive(Clone, Default, Debug)]
pub struct Report {
    /// The first thing that must not be.
    pub violation: Option<String>,
    /// Acknowledged writes, refused ones, and those of unknown fate.
    pub done: u64,
    #[allow(missing_docs)]
    pub failed: u64,
    #[allow(missing_docs)]
    pub unknown: u64,
    /// Reads answered, and those of them by followers.
    pub reads: u64,
    #[allow(missing_docs)]
    pub follower_reads: u64,
    /// Conflicts that openings found.
    pub conflicts: u64,
    /// Branches opened.
    pub opened: u64,
    /// How often a leader asked the only writer to lead.
    pub handovers: u64,
    /// Crashes.
    pub crashes: u64,
    /// Points of a schedule at which it could have gone otherwise.
    pub points: u64,
}

pub(crate) enum Event {
    Tick(usize, u64),
    Deliver {
        from: usize,
        to: usize,
        life: (u64, u64),
        fragment: FragmentId,
        msg: Msg,
    },
    Flushed(usize, u64, u64),
    Flush(usize, u64),
    View(usize),
    Restart(usize),
    Fault,
    Client,
    Retry(usize),
    Ghost(usize, replica::Request),
    /// The next step of a schedule.
    Scripted(usize),
    /// The nodes that are no founders are taken in as copies.
    Invite,
    /// These nodes never come back.
    Bury(BTreeSet<usize>),
    Return,
    /// A node is so short of what copies take.
    Short(usize, replica::Shortage),
    /// The table's definition changes: how records are to be kept; and a node hears of it.
    Alter,
    Altered(usize),
    /// The fragment becomes another; a node may hear of it; and it is taken in again.
    Cut,
    Heard(usize),
    Adopt(usize),
}

pub(crate) struct Node {
    pub copy: Option<Copy>,
    pub disc: Disc,
    /// What it had before its fragment was changed.
    pub before: Option<Before>,
    /// Counts starts.
    pub life: u64,
    pub paused: u64,
    pub skew: i64,
    /// How much faster than true time its clocks run, in thousandths.
    pub drift: i64,
    pub view: BTreeSet<usize>,
    pub born: u64,
    /// As far as it has heard.
    pub storage: Storage,
    /// Since when it has kept what it acknowledges on disc.
    pub firm: Option<u64>,
    /// It ended by itself, and said goodbye.
    pub stopped: bool,
}

pub(crate) struct World {
    pub options: Options,
    pub rng: StdRng,
    /// Microseconds.
    pub now: u64,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    events: BTreeMap<u64, Event>,
    next: u64,
    pub nodes: Vec<Node>,
    pub wired: Vec<Vec<bool>>,
    pub suspects: Vec<Vec<u64>>,
    arrivals: BTreeMap<(usize, usize), u64>,
    pub faults: bool,
    pub load: bool,
    pub loss: u32,
    pub wild: bool,
    /// Copies keep nothing on disc, or may come to that: what all lose that acknowledged it may be lost.
    pub lossy: bool,
    pub sync: bool,
    pub rule: MergeRule,
    pub min_in_sync: MinInSync,
    /// More copies than this are mirrors.
    in_sync_max: usize,
    unordered: bool,
    /// How copies are to keep their records, and whether that changes.
    pub storage: Storage,
    pub turns: Turns,
    pub cuts: Cuts,
    /// Values are touched.
    pub touches: bool,
    /// What goes when there is no room.
    pub evict: Evict,
    /// How many tombstones that nobody asked for are kept.
    pub cleared_min: usize,
    /// Requests come in bursts.
    pub bursts: bool,
    /// How many of the nodes begin with copies.
    pub founders: usize,
    /// The rest are never given one: they stand in where there is none.
    pub stand_ins: bool,
    /// Nobody links with them any more; they go on among themselves.
    pub buried: BTreeSet<usize>,
    /// They were, and have come back.
    pub returned: bool,
    /// Those that ran short of something.
    pub short: BTreeSet<usize>,
    /// Copies are told to go now and then, and made anew.
    pub trims: bool,
    /// What happens when, where nothing is left to chance.
    pub schedule: Option<Schedule>,
    pub check: Checker,
    pub report: Report,
    pub pending: Vec<Pending>,
    /// Somebody who follows the fragment, at whichever copy.
    pub subscriber: Subscriber,
    /// (node, ticket) -> (request, when it was sent).
    pub tickets: BTreeMap<(usize, u64), (usize, u64)>,
}

impl Node {
    fn starting(rng: &mut StdRng) -> Node {
        Node {
            copy: None,
            disc: Disc::default(),
            before: None,
            life: 0,
            paused: 0,
            skew: rng.random_range(-3000..3000),
            drift: rng.random_range(-9..=9),
            view: BTreeSet::new(),
            born: 0,
            storage: Storage::Disc,
            firm: None,
            stopped: false,
        }
    }
}

pub(crate) fn id(node: usize) -> NodeId {
    NodeId(node as u64 + 1)
}

pub(crate) fn index(node: NodeId) -> usize {
    node.0 as usize - 1
}

fn form(ram: bool, apart: bool) -> Storage {
    match (ram, apart) {
        (true, _) => Storage::Ram,
        (_, true) => Storage::DiscOnly,
        _ => Storage::Disc,
    }
}

/// One history.
pub fn run(seed: u64, options: Options) -> Report {
    let mut world = World::new(seed, options);
    let stop = world.rng.random_range(2_500_000..9_000_000);
    world.run(stop, QUIET_MS * 1000);
    world.report
}

impl World {
    fn new(seed: u64, options: Options) -> World {
        let mut rng = StdRng::seed_from_u64(seed);
        let n = rng.random_range(2..=5);
        let mut world = World::of(n, rng, options);
        world.at(1_500_000, Event::Fault);
        world.at(300_000, Event::Client);
        if world.founders < n && !world.stand_ins {
            let at = world.rng.random_range(500_000..2_000_000);
            world.at(at, Event::Invite);
        }
        // By chance of its own: histories without burials are what they were before there were any.
        let mut chance = StdRng::seed_from_u64(seed ^ 0x7472_696d);
        world.trims = chance.random_bool(0.3);
        world.plan_turns(seed);
        world.plan_cuts(seed);
        let mut chance = StdRng::seed_from_u64(seed ^ 0x746f_7563);
        world.touches = world.rule == MergeRule::Latest && chance.random_bool(0.2);
        world.check.touches = world.touches;
        world.plan_bound(seed);
        world.plan_shortages(seed);
        let mut chance = StdRng::seed_from_u64(seed ^ 0x6275_7279);
        if n >= 3 && world.rule != MergeRule::Sum && chance.random_bool(0.15) {
            // Of a majority that was given up nothing is promised.
            world.check.insisted(chance.random_bool(0.3));
            let first = chance.random_range(0..n);
            let doomed = (0..chance.random_range(1..=(n - 1) / 2)).map(|i| (first + i) % n).collect();
            let at = chance.random_range(2_000_000..6_000_000);
            world.at(at, Event::Bury(doomed));
            // Some come back, with what they have.
            if chance.random_bool(0.6) {
                world.at(at + chance.random_range(300_000..3_000_000), Event::Return);
            }
        }
        world
    }

    /// Some may hold less than is written. What adds up is not to be thrown out.
    fn plan_bound(&mut self, seed: u64) {
        let mut chance = StdRng::seed_from_u64(seed ^ 0x626f_756e);
        let adds = matches!(self.rule, MergeRule::Sum | MergeRule::Union | MergeRule::Max);
        let whole = !adds && !self.cuts.join();
        if whole && (self.options.bounds || chance.random_bool(0.1)) {
            let all = [Evict::Fifo, Evict::Lru, Evict::Sieve, Evict::S3Fifo, Evict::TtlFirst, Evict::Reject];
            self.evict = all[chance.random_range(0..all.len())].clone();
            self.cleared_min = chance.random_range(0..4);
            self.check.bound = Some(chance.random_range(1..3));
            self.trace(|| format!("at most {:?} records, {}", self.check.bound, self.evict));
            let (room, evict) = (replica::Room { records: self.check.bound, bytes: None }, &self.evict);
            for copy in self.nodes.iter_mut().filter_map(|node| node.copy.as_mut()) {
                copy.set_options(|config| {
                    (config.room, config.evict) = (room, evict.clone());
                    config.timing.cleared_min = self.cleared_min;
                });
            }
        }
    }

    /// So many nodes that have just started.
    fn of(n: usize, mut rng: StdRng, options: Options) -> World {
        let loss = [0, 0, 2, 5][rng.random_range(0..4)];
        let (wild, mut ram, mut sync) = (rng.random_bool(0.25), rng.random_bool(0.15), rng.random_bool(0.7));
        let (mut rule, bursts) = (some_rule(&mut rng), rng.random_bool(0.1));
        let min_in_sync = match rng.random_range(0..10) {
            0 => MinInSync::Copies(2),
            1 => MinInSync::Majority,
            _ => MinInSync::Copies(1),
        };
        if options.asks.is_some() {
            (ram, sync, rule) = (false, true, MergeRule::Latest);
        }
        let min_in_sync = options.asks.unwrap_or(min_in_sync);
        // Mirrors where writes do not need more copies than there may be in sync.
        let bounded = rng.random_bool(0.25) && min_in_sync == MinInSync::Copies(1);
        let in_sync_max = if bounded { rng.random_range(1..=n) } else { usize::MAX };
        let (unordered, apart) = (rng.random_bool(0.2), rng.random_bool(0.3));
        let late = if rng.random_bool(0.3) { rng.random_range(1..=2) } else { 0usize };
        let founders = n.saturating_sub(late).max(1);
        let stand_ins = founders < n && rng.random_bool(0.5) && min_in_sync != MinInSync::Majority;
        let nodes = (0..n).map(|_| Node::starting(&mut rng)).collect();
        let mut world = World {
            options,
            rng,
            now: 0,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            next: 0,
            nodes,
            wired: vec![vec![true; n]; n],
            suspects: vec![vec![0; n]; n],
            arrivals: BTreeMap::new(),
            faults: true,
            load: true,
            loss,
            wild,
            lossy: ram,
            sync,
            rule,
            min_in_sync,
            in_sync_max,
            unordered,
            storage: Storage::Disc,
            turns: Turns::None,
            cuts: Cuts::none(n),
            touches: false,
            evict: Evict::Reject,
            cleared_min: 0,
            bursts,
            founders,
            stand_ins,
            buried: BTreeSet::new(),
            returned: false,
            short: BTreeSet::new(),
            trims: false,
            schedule: None,
            check: Checker::new(n, sync && !ram, min_in_sync == MinInSync::Majority),
            report: Report::default(),
            pending: Vec::new(),
            subscriber: Subscriber::default(),
            tickets: BTreeMap::new(),
        };
        world.trace(|| {
            let kind = format!("wild {wild}, ram {ram}, sync {sync}, {}, apart {apart}", world.rule);
            format!("{n} nodes, loss {loss} %, {kind}, {min_in_sync:?}, at most {in_sync_max}")
        });
        world.keep_as(form(ram, apart));
        (0..n).for_each(|node| world.boot(node, Meta::default(), Store::default()));
        world
    }

    /// Three nodes that all begin with copies, on a network that loses nothing, for a schedule.
    pub(crate) fn scheduled(schedule: Schedule, options: Options) -> World {
        let mut world = World::of(3, StdRng::seed_from_u64(1), options);
        (world.loss, world.wild, world.lossy, world.sync, world.rule) = (0, false, false, true, MergeRule::Latest);
        (world.founders, world.faults, world.load) = (3, false, false);
        world.stand_ins = false;
        (world.min_in_sync, world.in_sync_max) = (MinInSync::default(), usize::MAX);
        world.unordered = false;
        world.keep_as(Storage::Disc);
        world.check = Checker::new(3, true, false);
        for node in 0..3 {
            world.nodes[node].life += 1;
            (world.nodes[node].skew, world.nodes[node].drift) = (0, 0);
            world.boot(node, Meta::default(), Store::default());
        }
        world.at(0, Event::Scripted(0));
        world.schedule = Some(schedule);
        world
    }

    pub(crate) fn boot(&mut self, node: usize, meta: Meta, store: Store) {
        let stand_in = self.is_stand_in(node) || store.stands_in(id(node));
        let config = self.config(node, stand_in);
        let copy = Copy::new(self.clock(node), config, meta, store);
        self.place(node, copy);
        self.views();
    }

    /// From here on it is the node's copy.
    pub(crate) fn place(&mut self, node: usize, copy: Copy) {
        self.nodes[node].copy = Some(copy);
        self.nodes[node].view.clear();
        (self.nodes[node].born, self.nodes[node].stopped) = (self.now, false);
        let life = self.nodes[node].life;
        self.at(1000, Event::Tick(node, life));
    }

    pub(crate) fn config(&mut self, node: usize, stand_in: bool) -> Config {
        // What was made of others has nobody to begin it, unless all is lost and nobody missing.
        let founders = if self.cuts.at[node] > 0 && !self.lossy { 0 } else { self.founders };
        let all = if stand_in { vec![id(node)] } else { (0..founders).map(id).collect() };
        let timing = Timing {
            tick: Span::ms(50),
            stable_view: Span::ms(300),
            append_timeout: Span::ms(200),
            lease: Span::ms(300),
            retry: Span::ms(100),
            writers_window: Span::ms(100),
            writes_min: 2,
            promise_wait: Span::ms(800),
            settle: Span::ms(150),
            heal_wait_max: Span::ms(2000),
            heal_spread: Span::ms(50),
            forget_after: Span::ms(100),
            cleared_min: self.cleared_min,
            sync_timeout: Span::ms(700),
            probe: Span::ms(1000),
            return_wait_max: Span::ms(1000),
            chunk_bytes: 300,
            ..Timing::default()
        };
        let greater = |_: &[u8], a: Option<&[u8]>, b: Option<&[u8]>| Some(Bytes::copy_from_slice(a?.max(b?)));
        let fragment = self.cuts.fragment(node);
        Config {
            fragment,
            line: fragment.index,
            me: id(node),
            incarnation: self.nodes[node].life + 1,
            founders: all,
            storage: self.nodes[node].storage,
            unordered: self.unordered,
            values: Some(self.nodes[node].disc.engine.clone()),
            sync: self.sync && self.nodes[node].storage != Storage::Ram,
            eager: true,
            opens_after: Instant(0),
            stand_in,
            open_membership: false,
            min_in_sync: self.min_in_sync,
            ttl_ms: None,
            room: replica::Room { records: self.check.bound, bytes: None },
            evict: self.evict.clone(),
            in_sync_max: self.in_sync_max,
            policy: MergePolicy { default: self.rule.clone(), exceptions: vec![] },
            functions: Functions::default().with("greater", Arc::new(greater)),
            timing,
            seed: self.rng.random(),
            mutant: self.options.mutant,
        }
    }

    pub(crate) fn clock(&self, node: usize) -> Now {
        let wall = (self.now / 1000 + 1_000_000) as i64 + self.nodes[node].skew;
        let mono = self.now * (1000 + self.nodes[node].drift) as u64;
        Now { mono: Instant(mono), wall: WallMs(wall.max(0) as u64) }
    }

    pub(crate) fn at(&mut self, after_us: u64, event: Event) {
        self.next += 1;
        self.queue.push(Reverse((self.now + after_us, self.next)));
        self.events.insert(self.next, event);
    }

    pub(crate) fn trace(&self, line: impl FnOnce() -> String) {
        if self.options.trace {
            println!("{:>9.3} {}", self.now as f64 / 1000.0, line());
        }
    }

    pub(crate) fn fail(&mut self, what: String) {
        self.trace(|| format!("VIOLATION {what}"));
        self.report.violation.get_or_insert(what);
    }

    pub(crate) fn run(&mut self, stop: u64, quiet: u64) {
        while let Some(Reverse((at, key))) = self.queue.pop() {
            if at > stop && self.faults {
                self.calm();
            }
            // A record may expire in the last moment: what that causes gets its time.
            let over = at > stop + quiet && (self.is_level() || at > stop + quiet + LAST_US);
            if over || self.report.violation.is_some() {
                break;
            }
            self.now = at;
            if let Some(event) = self.events.remove(&key).and_then(|event| self.deviate(event)) {
                self.event(event);
            }
        }
        if self.report.violation.is_none() {
            self.finish();
        }
    }

    /// Does every copy hold the same entries, and the leader know it?
    fn is_level(&self) -> bool {
        let copies = || self.copies();
        let committed = copies().filter_map(|c| c.inspect().committed).all(|(last, commit)| last == commit);
        let heads: BTreeSet<_> = copies().map(|c| format!("{:?}", c.store().heads())).collect();
        committed && heads.len() == 1
    }

    fn event(&mut self, event: Event) {
        let target = match &event {
            Event::Tick(n, _) | Event::Flushed(n, ..) | Event::Flush(n, _) | Event::View(n) => Some(*n),
            Event::Deliver { to, .. } => Some(*to),
            _ => None,
        };
        if let Some(until) = target.map(|n| self.nodes[n].paused).filter(|until| *until > self.now) {
            return self.at(until - self.now, event);
        }
        match event {
            Event::Tick(node, life) if self.nodes[node].life == life => self.tick(node),
            // What is meant for a copy of another fragment has nobody there.
            Event::Deliver { to, fragment, .. } if self.cuts.fragment(to) != fragment => {}
            Event::Deliver { from, to, life, msg, .. } => {
                let lives = (self.nodes[from].life, self.nodes[to].life);
                // Old packets outlive their sender only where the network is wild.
                let linked = self.are_of_one_side(from, to);
                if linked && life.1 == lives.1 && (life.0 == lives.0 || self.wild) {
                    self.step(to, Input::Msg(id(from), msg));
                }
            }
            Event::Flush(node, life) if self.nodes[node].life == life => {
                if let Some(mark) = self.nodes[node].disc.flushing {
                    self.nodes[node].disc.flush(mark);
                    self.nodes[node].disc.flushing = None;
                    self.at(0, Event::Flushed(node, life, mark));
                    self.start_flush(node);
                }
            }
            Event::Flushed(node, life, mark) if self.nodes[node].life == life => self.step(node, Input::Durable(mark)),
            Event::View(node) => self.see(node),
            Event::Restart(node) => self.restart(node),
            Event::Fault if self.faults => {
                self.fault();
                let soon = self.rng.random_bool(0.4);
                let after = if soon { self.rng.random_range(1..60) } else { self.rng.random_range(60..1200) };
                self.at(after * 1000, Event::Fault);
            }
            Event::Client if self.load => self.client(),
            Event::Retry(request) => self.retry(request),
            Event::Ghost(leader, request) => self.ghost(leader, request),
            Event::Invite => self.invite(),
            Event::Bury(doomed) => self.bury(doomed),
            Event::Return => self.come_back(),
            Event::Short(node, shortage) => self.run_short(node, shortage),
            Event::Scripted(step) => self.scripted(step),
            Event::Alter if self.faults => self.alter(),
            Event::Altered(node) => self.altered(node),
            Event::Cut if self.faults => self.cut(),
            Event::Heard(node) => self.hear_of_cut(node),
            Event::Adopt(node) => self.adopt(node),
            _ => {}
        }
        self.check.separate(self.now, &self.nodes, &self.wired);
    }

    pub(crate) fn tick(&mut self, node: usize) {
        let now = self.clock(node);
        let due = self.nodes[node].copy.as_ref().and_then(Copy::deadline).unwrap_or(now.mono + Span::ms(50));
        if due <= now.mono {
            self.step(node, Input::Tick);
        }
        self.turn(node);
        let life = self.nodes[node].life;
        self.at(25_000, Event::Tick(node, life));
    }

    /// What a node sees: whoever it can talk to both ways, and does not suspect by mistake.
    pub(crate) fn see(&mut self, node: usize) {
        if self.nodes[node].copy.is_none() {
            return;
        }
        let both = |a: usize, b: usize| self.wired[a][b] && self.wired[b][a] && self.nodes[b].copy.is_some();
        let both = |a: usize, b: usize| both(a, b) && self.are_of_one_side(a, b);
        let sees = |b: &usize| *b != node && both(node, *b) && self.suspects[node][*b] <= self.now;
        let view: BTreeSet<usize> = (0..self.nodes.len()).filter(sees).collect();
        let later = (0..self.nodes.len()).map(|b| self.suspects[node][b]).filter(|t| *t > self.now).min();
        if let Some(until) = later {
            self.at(until - self.now + 1000, Event::View(node));
        }
        if view != self.nodes[node].view {
            self.trace(|| format!("{node} sees {view:?}"));
            let missing: Vec<usize> = self.nodes[node].view.difference(&view).copied().collect();
            // A firewall may refuse for a machine that is well: some of the missing look dead and are not.
            let wrong = self.faults && self.rng.random_bool(0.1);
            let dead = missing.iter().filter(|b| wrong || self.nodes[**b].copy.is_none()).map(|b| id(*b)).collect();
            let stopped = |b: &&usize| self.nodes[**b].copy.is_none() && self.nodes[**b].stopped;
            let gone = missing.iter().filter(stopped).map(|b| id(*b)).collect();
            self.nodes[node].view = view.clone();
            // Who comes and goes is told as it may be.
            let flapping = if self.rng.random_bool(0.3) { missing.iter().map(|b| id(*b)).collect() } else { [].into() };
            let missed = if self.buried.contains(&node) { 0 } else { self.buried.len() };
            let whole = view.len() + 1 == self.nodes.len() - missed;
            let view = view.into_iter().map(id).collect();
            self.step(node, Input::View { view, dead, gone, flapping, whole });
        }
    }

    /// Everybody notices what changed, each in its own time.
    pub(crate) fn views(&mut self) {
        for node in 0..self.nodes.len() {
            let after = self.rng.random_range(10..250) * 1000;
            self.at(after, Event::View(node));
        }
    }

    /// Hands one input to a copy, checks what it did, and performs its effects.
    pub(crate) fn step(&mut self, node: usize, input: Input) {
        let now = self.clock(node);
        let Some(copy) = self.nodes[node].copy.as_mut() else { return };
        let mut fx = Effects::default();
        let shown = if self.options.trace { Some(format!("{input:?}")) } else { None };
        self.check.before(node, copy);
        copy.handle(now, input, &mut fx);
        // A burst may be gathered before it is sent.
        if self.rng.random_bool(0.8) {
            copy.flush(now, &mut fx);
        }
        if let Some(shown) = shown.filter(|s| s != "Tick" && !s.contains("Status")) {
            let cut: String = shown.chars().take(230).collect();
            println!("{:>9.3} {node} <- {cut}", self.now as f64 / 1000.0);
        }
        let found = self.check.after(node, copy, &fx);
        if let Some(what) = found {
            self.fail(what);
        }
        self.perform(node, fx);
        self.note_firm(node);
    }

    pub(crate) fn perform(&mut self, node: usize, fx: Effects) {
        let gave = fx.notices.contains(&replica::Notice::Left);
        for notice in fx.notices {
            self.trace(|| format!("{node} {notice:?}"));
            match notice {
                replica::Notice::Opened(lead) => {
                    self.report.opened += 1;
                    self.check.opened(lead.branch, self.now);
                    if let Some(what) = self.leads_a_part(node) {
                        self.fail(what);
                    }
                }
                replica::Notice::ValueLost => {
                    if !self.nodes[node].disc.engine.is_broken() {
                        self.fail(format!("a value of {node} is not to be found, though its disc is well"));
                    }
                    return self.crash(node);
                }
                replica::Notice::Left if fx.persists.iter().any(|p| p.batch.wipe) => {
                    self.check.handed_over(node, &self.nodes);
                }
                replica::Notice::Merged(heal) => self.report.conflicts += heal.conflicts,
                _ => {}
            }
        }
        for persist in fx.persists {
            self.nodes[node].disc.write(persist);
        }
        if self.rng.random_bool(0.5) {
            self.nodes[node].disc.work();
        }
        self.start_flush(node);
        for (to, msg) in fx.sends {
            self.report.handovers += u64::from(matches!(msg, Msg::TakeOver { .. }));
            self.send(node, index(to), msg);
        }
        for (ticket, reply) in fx.replies {
            self.replied(node, ticket, reply);
        }
        if gave && !self.is_stand_in(node) {
            self.parted_with(node);
        }
    }

    fn start_flush(&mut self, node: usize) {
        let disc = &mut self.nodes[node].disc;
        if disc.wants_flush() {
            disc.flushing = disc.last_mark();
            let life = self.nodes[node].life;
            let after = self.rng.random_range(1..8) * 1000;
            self.at(after, Event::Flush(node, life));
        }
    }

    fn send(&mut self, from: usize, to: usize, msg: Msg) {
        let fragment = self.cuts.fragment(from);
        if !self.wired[from][to] || !self.are_of_one_side(from, to) || self.rng.random_range(0..100) < self.loss {
            return;
        }
        let slow = self.faults && self.rng.random_bool(0.02);
        let ms = if slow { self.rng.random_range(20..400) } else { self.rng.random_range(1..12) };
        let mut at = self.now + ms * 1000 + self.rng.random_range(0..1000);
        if self.wild {
            if self.rng.random_bool(0.05) {
                let life = (self.nodes[from].life, self.nodes[to].life);
                let late = self.rng.random_range(0..2_000_000);
                self.at(late, Event::Deliver { from, to, life, fragment, msg: msg.clone() });
            }
        } else {
            let last = self.arrivals.entry((from, to)).or_insert(0);
            at = at.max(*last + 1);
            *last = at;
        }
        let life = (self.nodes[from].life, self.nodes[to].life);
        self.at(at - self.now, Event::Deliver { from, to, life, fragment, msg });
    }

    fn replied(&mut self, node: usize, ticket: u64, reply: Reply) {
        let Some((request, since)) = self.tickets.remove(&(node, ticket)) else { return };
        match reply {
            Reply::Write(answer) => self.answered(request, node, answer),
            Reply::Rows(rows) => self.read_answered(request, node, &rows, since),
            Reply::NotLeading | Reply::Elsewhere => {}
        }
    }

    /// Is it a node that is to hold no copy?
    pub(crate) fn is_stand_in(&self, node: usize) -> bool {
        self.stand_ins && node >= self.founders
    }

    /// The copies that count.
    fn copies(&self) -> impl Iterator<Item = &Copy> {
        let counts = |node: usize| !self.is_stand_in(node) && !self.buried.contains(&node);
        let all = self.nodes.iter().enumerate().filter(move |(node, _)| counts(*node));
        all.filter_map(|(_, n)| n.copy.as_ref())
    }

    /// After the quiet phase: one leader, all copies in sync, all alike, everything accounted for.
    fn finish(&mut self) {
        let copies: Vec<&Copy> = self.copies().collect();
        let holders = copies.len();
        let idle = self.nodes.iter().enumerate();
        let idle = idle.filter(|(node, _)| self.is_stand_in(*node) && !self.buried.contains(node));
        if let Some((node, _)) = idle.into_iter().find(|(_, n)| n.copy.as_ref().is_some_and(|c| !c.store().is_empty()))
        {
            return self.fail(format!("liveness: {node} stands in for copies that are all there"));
        }
        let leaders: Vec<&&Copy> = copies.iter().filter(|c| c.inspect().role == RoleName::Leading).collect();
        let [leader] = leaders[..] else {
            let roles: Vec<RoleName> = copies.iter().map(|c| c.inspect().role).collect();
            return self.fail(format!("liveness: roles at rest are {roles:?}"));
        };
        let seen = leader.inspect();
        let Some((last, commit)) = seen.committed else { return };
        if seen.in_sync.len() != holders.min(self.in_sync_max) || last != commit {
            let roles: Vec<_> = copies.iter().map(|c| (c.inspect().role, c.inspect().lead)).collect();
            let at = format!("in sync at rest {:?}, {commit} of {last} committed, {roles:?}", seen.in_sync);
            return self.fail(format!("liveness: {at}"));
        }
        if copies.iter().filter(|c| c.inspect().role == RoleName::Following).count() + 1 != copies.len() {
            let roles: Vec<RoleName> = copies.iter().map(|c| c.inspect().role).collect();
            return self.fail(format!("liveness: all shall follow, but roles at rest are {roles:?}"));
        }
        if let Some(other) = copies.iter().find(|c| !same(c.store(), leader.store())) {
            let differ = difference(other.store(), leader.store());
            return self.fail(format!("invariant 3: copies differ at rest: {differ}"));
        }
        if let Some(what) = self.ill_kept() {
            return self.fail(what);
        }
        let store = leader.store();
        let found = self.check.account(store, &self.rule).or_else(|| self.account_requests(store));
        let found = found.or_else(|| if self.lossy { None } else { self.account_others(store) });
        let found = found.or_else(|| self.account_sums(store));
        let found = found.or_else(|| self.subscriber.clone().account(leader, self.sync && !self.lossy));
        if let Some(what) = found {
            self.fail(what);
        }
    }

    fn account_requests(&self, store: &Store) -> Option<String> {
        if matches!(self.rule, MergeRule::Sum | MergeRule::Union) {
            return None;
        }
        self.pending.iter().filter(|p| p.op != Op::Read).find_map(|p| self.check.request(p, store))
    }
}

/// What conflicts become: mostly the usual.
fn some_rule(rng: &mut StdRng) -> MergeRule {
    match rng.random_range(0..40) {
        0..=3 => MergeRule::Max,
        4..=6 => MergeRule::Sum,
        7 => MergeRule::Union,
        8 => MergeRule::Min,
        9 => MergeRule::KeepBoth,
        10 => MergeRule::Island(Choice::Largest),
        11 => MergeRule::Island(Choice::Oldest),
        12 => MergeRule::Island(Choice::Node(id(0))),
        13 => MergeRule::Function("greater".into()),
        _ => MergeRule::Latest,
    }
}
