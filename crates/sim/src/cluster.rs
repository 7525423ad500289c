//! Whole nodes on a simulated network: they find each other by beacons, form one cluster, make a table, and are cut,
//! crashed and started again under writes. At rest all are whole, and every acknowledged write is there.

use crate::fragment::disc::Disc;
use base::{FragmentId, Instant, NodeId, Now, Span, WallMs};
use bytes::Bytes;
use node::{Config, Effect, Frame, Input, Node, Op, OpReply, TableDef, TableOptions};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use replica::{Batch, Check, Outcome, Range, Stored, Write};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::net::SocketAddr;
use wire::Keys;

/// How long the faultless second phase lasts, in microseconds.
const QUIET_US: u64 = 40_000_000;
/// A broken wire is noticed by the machines themselves after this.
const SILENCE_US: u64 = 3_000_000;

enum Event {
    Tick(usize, u64),
    Deliver(usize, u64, Input),
    /// A frame on a link of the receiver.
    Frame(usize, u64, Bytes),
    Durable(usize, u64, FragmentId, u64),
    Fault,
    Client,
    Restart(usize),
    Broken(u64),
}

struct Machine {
    node: Option<Node>,
    discs: BTreeMap<FragmentId, Disc>,
    life: u64,
    /// How far its wall clock is ahead, in ms.
    skew: i64,
}

/// One history of a cluster of three to four nodes; what must not be, if it was.
pub fn run(seed: u64) -> Result<u64, String> {
    World::new(seed).run()
}

struct World {
    rng: StdRng,
    now: u64,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    events: BTreeMap<u64, Event>,
    next: u64,
    machines: Vec<Machine>,
    wired: Vec<Vec<bool>>,
    /// Link -> (its owner, the other end's link).
    links: BTreeMap<u64, (usize, u64)>,
    arrivals: BTreeMap<u64, u64>,
    next_link: u64,
    next_op: u64,
    puts: BTreeMap<u64, Bytes>,
    acknowledged: BTreeSet<Bytes>,
    def: Option<TableDef>,
    reads: BTreeMap<u64, Bytes>,
    found: BTreeSet<Bytes>,
    faults: bool,
    /// Writes whose checks cannot hold, and what was told of one of them.
    never: BTreeSet<u64>,
    wrong: Option<String>,
    /// Many clients: much is gathered in each burst.
    busy: bool,
}

fn addr(machine: usize) -> SocketAddr {
    ([10, 0, 0, machine as u8 + 1], 7474).into()
}

impl World {
    fn new(seed: u64) -> World {
        let mut rng = StdRng::seed_from_u64(seed);
        let n = rng.random_range(3..=4);
        let machine = |_| Machine { node: None, discs: BTreeMap::new(), life: 0, skew: 0 };
        let mut world = World {
            rng,
            now: 0,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            next: 0,
            machines: (0..n).map(machine).collect(),
            wired: vec![vec![true; n]; n],
            links: BTreeMap::new(),
            arrivals: BTreeMap::new(),
            next_link: 0,
            next_op: 0,
            puts: BTreeMap::new(),
            acknowledged: BTreeSet::new(),
            def: None,
            reads: BTreeMap::new(),
            found: BTreeSet::new(),
            faults: true,
            never: BTreeSet::new(),
            wrong: None,
            busy: false,
        };
        world.busy = world.rng.random_bool(0.15);
        if world.rng.random_bool(0.4) {
            let far = world.rng.random_range(6_000..60_000);
            world.machines[0].skew = if world.rng.random_bool(0.5) { far } else { -far };
        }
        for machine in 0..n {
            let after = world.rng.random_range(0..4_000_000);
            world.at(after, Event::Restart(machine));
        }
        world.at(9_000_000, Event::Client);
        world.at(14_000_000, Event::Fault);
        world
    }

    fn at(&mut self, after: u64, event: Event) {
        self.next += 1;
        self.queue.push(Reverse((self.now + after, self.next)));
        self.events.insert(self.next, event);
    }

    fn clock(&self, m: usize) -> Now {
        let wall = 1_000_000_000 + (self.now / 1000) as i64 + self.machines[m].skew;
        Now { mono: Instant((self.now + 1_000_000) * 1000), wall: WallMs(wall as u64) }
    }

    fn run(mut self) -> Result<u64, String> {
        let stop = self.rng.random_range(16_000_000..34_000_000);
        while let Some(Reverse((at, key))) = self.queue.pop() {
            if at > stop && self.faults {
                self.faults = false;
                self.wire(|_, _| true);
            }
            if at > stop + QUIET_US {
                break;
            }
            self.now = at;
            if let Some(event) = self.events.remove(&key) {
                self.event(event);
            }
        }
        self.check()
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Tick(m, life) if self.machines[m].life == life => {
                self.step(m, Input::Tick);
                self.at(20_000, Event::Tick(m, life));
            }
            Event::Deliver(m, life, input) if self.machines[m].life == life => self.step(m, input),
            Event::Frame(m, link, bytes) if self.links.contains_key(&link) => {
                if let Ok(frame) = wire::decode::<Frame>(&bytes) {
                    self.step(m, Input::Frame(link, frame));
                }
            }
            Event::Durable(m, life, fragment, mark) if self.machines[m].life == life => {
                if let Some(disc) = self.machines[m].discs.get_mut(&fragment) {
                    disc.flush(mark);
                }
                self.step(m, Input::Durable(fragment, mark));
            }
            Event::Fault if self.faults => self.fault(),
            Event::Client => self.client(),
            Event::Restart(m) if self.machines[m].node.is_none() => self.boot(m),
            Event::Broken(link) => self.unlink(link),
            _ => {}
        }
    }

    fn boot(&mut self, m: usize) {
        let machine = &mut self.machines[m];
        machine.life += 1;
        let images = machine.discs.iter_mut().map(|(fragment, disc)| (*fragment, disc.crash(usize::MAX)));
        let stored = images.map(|(f, image)| (f, Stored { meta: image.meta, store: image.store() })).collect();
        let (life, seed) = (machine.life, self.rng.random());
        let config = Config {
            me: NodeId(m as u64 + 1),
            incarnation: life,
            name: format!("m{m}"),
            group: "sim".into(),
            advertise: addr(m),
            announce: addr(m),
            zone: None,
            weight: None,
            keys: Keys::derive(b"sim", "sim"),
            accept: Vec::new(),
            join: Vec::new(),
            discover_delay: Span::ms(3000),
            patience: Default::default(),
            timing: replica::Timing::default(),
            functions: replica::Functions::default(),
            values: None,
            seed,
        };
        self.machines[m].node = Some(Node::new(self.clock(m), config, stored));
        self.at(0, Event::Tick(m, life));
    }

    fn step(&mut self, m: usize, input: Input) {
        let (now, life) = (self.clock(m), self.machines[m].life);
        let Some(node) = self.machines[m].node.as_mut() else { return };
        let mut out = Vec::new();
        node.handle(now, input, &mut out);
        // A burst may be gathered, and its copies may run in any order.
        let (ends, backwards) = (self.rng.random_bool(if self.busy { 0.1 } else { 0.8 }), self.rng.random_bool(0.5));
        let mut run = |tasks: &mut [node::Task]| {
            if backwards {
                tasks.reverse();
            }
            tasks.iter_mut().for_each(|task| task.run(now));
        };
        if ends {
            node.flush_by(now, &mut run, &mut out);
        } else {
            self.at(1_000, Event::Deliver(m, life, Input::Tick));
        }
        for effect in out {
            self.perform(m, life, effect);
        }
    }

    fn perform(&mut self, m: usize, life: u64, effect: Effect) {
        match effect {
            Effect::Persist(fragment, persist) => {
                let (mark, sync) = (persist.mark, persist.sync);
                self.machines[m].discs.entry(fragment).or_default().write(persist);
                if sync {
                    let after = self.rng.random_range(1..6) * 1000;
                    self.at(after, Event::Durable(m, life, fragment, mark));
                }
            }
            Effect::Frame(link, frame) => {
                let Some((_, other)) = self.links.get(&link).copied() else { return };
                let Some((to, _)) = self.links.get(&other).copied() else { return };
                if let Ok(bytes) = wire::encode(&frame)
                    && self.wired[m][to]
                {
                    let at = self.now + self.rng.random_range(200..3000);
                    let last = self.arrivals.entry(other).or_insert(0);
                    *last = at.max(*last + 1);
                    let after = *last - self.now;
                    self.at(after, Event::Frame(to, other, bytes));
                }
            }
            Effect::Datagram(to, bytes) => {
                let to = (0..self.machines.len()).find(|i| addr(*i) == to);
                to.into_iter().for_each(|to| self.packet(m, to, Input::Datagram(addr(m), bytes.clone().into())));
            }
            Effect::Multicast(bytes) => {
                for to in 0..self.machines.len() {
                    self.packet(m, to, Input::Beacon(addr(m), bytes.clone().into()));
                }
            }
            Effect::Dial(to) => self.dial(m, life, to),
            Effect::Close(link) => self.unlink(link),
            Effect::Hello(_) => {}
            Effect::Reply(op, reply) => self.replied(op, reply),
            Effect::Stopped => self.stopped(m),
            Effect::Ask(..) | Effect::Notice(_) => {}
        }
    }

    fn packet(&mut self, from: usize, to: usize, input: Input) {
        if self.wired[from][to] && self.rng.random_bool(0.98) {
            let (after, life) = (self.rng.random_range(200..5000), self.machines[to].life);
            self.at(after, Event::Deliver(to, life, input));
        }
    }

    fn dial(&mut self, m: usize, life: u64, to: SocketAddr) {
        let target = (0..self.machines.len()).find(|i| addr(*i) == to && self.wired[m][*i] && self.wired[*i][m]);
        let Some(target) = target else {
            let failed = Input::DialFailed { addr: to, refused: false };
            return self.at(SILENCE_US, Event::Deliver(m, life, failed));
        };
        let hello = self.machines[target].node.as_ref().map(Node::hello);
        let mine = self.machines[m].node.as_ref().map(Node::hello);
        let (Some(theirs), Some(mine)) = (hello, mine) else {
            return self.at(500, Event::Deliver(m, life, Input::DialFailed { addr: to, refused: true }));
        };
        let (a, b) = (self.next_link + 1, self.next_link + 2);
        self.next_link += 2;
        self.links.insert(a, (m, b));
        self.links.insert(b, (target, a));
        let other = self.machines[target].life;
        self.at(1000, Event::Deliver(m, life, Input::Linked { link: a, dialled: true, addr: to, hello: theirs }));
        let from = SocketAddr::new(addr(m).ip(), 40_000);
        self.at(
            1000,
            Event::Deliver(target, other, Input::Linked { link: b, dialled: false, addr: from, hello: mine }),
        );
    }

    fn unlink(&mut self, link: u64) {
        let Some((a, other)) = self.links.remove(&link) else { return };
        let both = [Some((a, link)), self.links.remove(&other).map(|(b, _)| (b, other))];
        for (m, link) in both.into_iter().flatten() {
            let life = self.machines[m].life;
            self.at(1001, Event::Deliver(m, life, Input::Unlinked(link)));
        }
    }

    fn wire(&mut self, on: impl Fn(usize, usize) -> bool) {
        for a in 0..self.machines.len() {
            for b in 0..self.machines.len() {
                self.wired[a][b] = on(a, b);
            }
        }
        let cut = |(a, other): &(usize, u64)| self.links.get(other).is_some_and(|(b, _)| !self.wired[*a][*b]);
        let broken: Vec<u64> = self.links.iter().filter(|(_, l)| cut(l)).map(|(id, _)| *id).collect();
        broken.into_iter().for_each(|link| self.at(SILENCE_US, Event::Broken(link)));
    }

    fn fault(&mut self) {
        let n = self.machines.len();
        match self.rng.random_range(0..5) {
            4 => {
                // A clean stop, in the midst of everything.
                let m = self.rng.random_range(0..n);
                self.step(m, Input::Stop);
            }
            0 => {
                let sides: u32 = self.rng.random_range(0..1 << n);
                self.wire(|a, b| (sides >> a & 1) == (sides >> b & 1));
            }
            1 => self.wire(|_, _| true),
            _ => {
                let m = self.rng.random_range(0..n);
                if self.machines[m].node.is_some() {
                    for disc in self.machines[m].discs.values_mut() {
                        let kept = self.rng.random_range(0..=disc.at_risk());
                        let _ = disc.crash(kept);
                    }
                    self.stopped(m);
                }
            }
        }
        let after = self.rng.random_range(500_000..6_000_000);
        self.at(after, Event::Fault);
    }

    /// Its process is gone, what is on its disc stays, and it comes back.
    fn stopped(&mut self, m: usize) {
        self.machines[m].node = None;
        self.machines[m].life += 1;
        let mine: Vec<u64> = self.links.iter().filter(|(_, (o, _))| *o == m).map(|(l, _)| *l).collect();
        mine.into_iter().for_each(|link| self.unlink(link));
        let after = self.rng.random_range(100_000..6_000_000);
        self.at(after, Event::Restart(m));
    }

    fn op(&mut self, m: usize, op: Op) -> u64 {
        self.next_op += 1;
        let id = self.next_op;
        self.step(m, Input::Op(id, op));
        id
    }

    /// First makes the table, then puts fresh keys, and at rest reads all that were acknowledged.
    fn client(&mut self) {
        let clients = if self.busy && self.faults { 3 } else { 1 };
        self.at(if clients > 1 { 4_000 } else { 60_000 }, Event::Client);
        (0..clients).for_each(|_| self.one_client());
    }

    fn one_client(&mut self) {
        let m = self.rng.random_range(0..self.machines.len());
        let Some(def) = self.def.clone() else {
            let options = TableOptions { fragments: 2, durability: node::Durability::Sync, ..TableOptions::default() };
            self.op(m, Op::CreateTable("t".into(), options, true));
            return;
        };
        if self.faults {
            let key = Bytes::copy_from_slice(&(self.puts.len() as u64).to_be_bytes());
            let write = Write::Put { key: key.clone(), value: key.clone(), ttl_ms: None };
            // One in four asks for what never is, and can never be done.
            let never = self.rng.random_bool(0.25);
            let checks = if never { vec![Check::Present("never".into())] } else { Vec::new() };
            if never {
                self.never.insert(self.next_op + 1);
            }
            let batch = Batch { checks, writes: vec![write], ..Batch::default() };
            self.puts.insert(self.next_op + 1, key.clone());
            self.op(m, Op::Write(def.fragment(&key), batch, Span::ms(4000)));
        } else if let Some(key) = self.acknowledged.difference(&self.found).next().cloned() {
            self.reads.insert(self.next_op + 1, key.clone());
            self.op(m, Op::Read(def.fragment(&key), vec![Range::key(key)], Span::ms(4000)));
        }
    }

    fn replied(&mut self, op: u64, reply: OpReply) {
        match reply {
            OpReply::Table(def) => self.def = Some(def),
            OpReply::Outcome(Outcome::Done { .. }) if self.never.contains(&op) => {
                self.wrong = Some(format!("write {op}, whose check cannot hold, was acknowledged"));
            }
            OpReply::Outcome(Outcome::Done { .. }) => self.acknowledged.extend(self.puts.get(&op).cloned()),
            OpReply::Rows(rows) if rows.iter().any(|r| !r.rows.is_empty()) => {
                self.found.extend(self.reads.get(&op).cloned());
            }
            _ => {}
        }
    }

    fn check(&self) -> Result<u64, String> {
        if let Some(what) = &self.wrong {
            return Err(what.clone());
        }
        for (m, machine) in self.machines.iter().enumerate() {
            if let Some((fragment, _)) = machine.discs.iter().find(|(_, disc)| disc.disordered) {
                return Err(format!("machine {m}: batches of {fragment:?} reached the disc out of order"));
            }
            let now = self.clock(m);
            if machine.skew != 0
                && let Some(led) = machine.node.as_ref().and_then(|n| n.find_copy(|f, c| c.lead().map(|_| f)))
            {
                return Err(format!("machine {m}, whose clock is {} ms off, leads {led:?} at rest", machine.skew));
            }
            let Some(node) = &machine.node else { return Err(format!("machine {m} is down at rest")) };
            let status = node.status(now);
            if status.state != "whole" || status.nodes.len() != self.machines.len() {
                return Err(format!("machine {m} at rest: {} ({}), {:?}", status.state, status.why, status.nodes));
            }
            if status.nodes.iter().any(|n| n.status != "up") {
                return Err(format!("machine {m} at rest knows nodes that are not up: {:?}", status.nodes));
            }
            let copies = self.machines.len().min(3) as u16;
            if self.def.is_some() && !status.tables.iter().all(|t| t.led == 2 && t.in_sync >= copies) {
                return Err(format!("machine {m} at rest: tables {:?}", status.tables));
            }
        }
        let copy = |key: &Bytes| {
            let def = self.def.as_ref()?;
            let fragment = def.fragment(key);
            let stored = [&[replica::Space::User as u8][..], key].concat();
            let has = |f, c: &replica::Copy| (f == fragment && c.store().get(&stored).is_some()).then_some(());
            Some(self.machines.iter().filter(|m| m.node.as_ref().is_some_and(|n| n.find_copy(has).is_some())).count())
        };
        match self.acknowledged.iter().find(|key| copy(key).is_none_or(|n| n < 3)) {
            Some(key) => Err(format!("acknowledged {key:?} is not at every copy")),
            None => Ok(self.acknowledged.len() as u64),
        }
    }
}
