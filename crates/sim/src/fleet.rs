//! Many whole nodes and no data: who sees whom and when, what an idle fleet sends, who is lost and who is buried. Discs are instant;
//! datagrams get lost; wires are cut, both ways or one; nodes pause, die and come anew.

use base::{Instant, NodeId, Now, Span, WallMs};
use membership::Patience;
use node::{Config, Effect, Frame, Hello, Input, Node, Op, Word};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap};
use std::net::SocketAddr;
use wire::Keys;

/// A broken wire is noticed by the machines themselves after this, in microseconds.
const SILENCE_US: u64 = 3_000_000;

enum Event {
    Tick(usize),
    Input(usize, Box<Input>),
    Frame(usize, u64, Box<Frame>),
    Broken(u64),
}

struct Machine {
    node: Option<Node>,
    /// What it says on new links: what it said last that it says.
    hello: Hello,
    /// When its next tick is due.
    tick_at: u64,
    paused: u64,
}

/// A fleet.
pub struct Fleet {
    rng: StdRng,
    /// Microseconds since the start.
    pub now: u64,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    events: HashMap<u64, Event>,
    next: u64,
    machines: Vec<Machine>,
    cut: BTreeSet<(usize, usize)>,
    links: HashMap<u64, (usize, u64)>,
    arrivals: HashMap<u64, u64>,
    next_link: u64,
    /// Datagrams lost, in per cent.
    loss: u32,
    patience: Patience,
    /// Datagrams and frames sent.
    pub sent: u64,
}

fn addr(machine: usize) -> SocketAddr {
    ([10, (machine >> 16) as u8, (machine >> 8) as u8, machine as u8], 7474).into()
}

fn id(machine: usize) -> NodeId {
    NodeId(machine as u64 + 1)
}

impl Fleet {
    /// So many nodes, started within a second, on a network that loses so many per cent of the datagrams.
    pub fn new(seed: u64, nodes: usize, loss: u32, patience: Patience) -> Fleet {
        let mut fleet = Fleet {
            rng: StdRng::seed_from_u64(seed),
            now: 0,
            queue: BinaryHeap::new(),
            events: HashMap::new(),
            next: 0,
            machines: Vec::new(),
            cut: BTreeSet::new(),
            links: HashMap::new(),
            arrivals: HashMap::new(),
            next_link: 0,
            loss,
            patience,
            sent: 0,
        };
        for _ in 0..nodes {
            fleet.join();
        }
        fleet
    }

    /// One more node; its number.
    pub fn join(&mut self) -> usize {
        let m = self.machines.len();
        let config = Config {
            me: id(m),
            incarnation: 1,
            name: format!("m{m}"),
            group: "sim".into(),
            advertise: addr(m),
            announce: addr(m),
            zone: None,
            weight: None,
            keys: Keys::derive(b"sim", "sim"),
            accept: Vec::new(),
            join: vec![addr(0)],
            discover_delay: Span::ms(3000),
            patience: self.patience,
            timing: replica::Timing::default(),
            functions: replica::Functions::default(),
            values: None,
            seed: self.rng.random(),
        };
        let node = Node::new(self.clock(), config, BTreeMap::new());
        self.machines.push(Machine { hello: node.hello(), node: Some(node), tick_at: u64::MAX, paused: 0 });
        let after = self.rng.random_range(0..1_000_000);
        self.tick_by(m, self.now + after);
        m
    }

    fn clock(&self) -> Now {
        Now { mono: Instant((self.now + 1_000_000) * 1000), wall: WallMs(1_000_000_000 + self.now / 1000) }
    }

    fn at(&mut self, at: u64, event: Event) {
        self.next += 1;
        self.queue.push(Reverse((at, self.next)));
        self.events.insert(self.next, event);
    }

    fn tick_by(&mut self, m: usize, at: u64) {
        if at < self.machines[m].tick_at {
            self.machines[m].tick_at = at;
            self.at(at, Event::Tick(m));
        }
    }

    /// Runs for so many microseconds.
    pub fn run(&mut self, us: u64) {
        let end = self.now + us;
        while let Some(Reverse((at, key))) = self.queue.peek().copied().filter(|Reverse((at, _))| *at <= end) {
            self.queue.pop();
            self.now = at;
            if let Some(event) = self.events.remove(&key) {
                self.event(event);
            }
        }
        self.now = end;
    }

    /// Runs until this holds, looking every 10 ms; how many microseconds it took, `None`: longer than `limit`.
    pub fn until(&mut self, limit: u64, holds: impl Fn(&Fleet) -> bool) -> Option<u64> {
        let begun = self.now;
        while !holds(self) {
            if self.now - begun > limit {
                return None;
            }
            self.run(10_000);
        }
        Some(self.now - begun)
    }

    fn event(&mut self, event: Event) {
        let target = match &event {
            Event::Tick(m) | Event::Input(m, _) | Event::Frame(m, ..) => Some(*m),
            Event::Broken(_) => None,
        };
        if let Some(until) = target.map(|m| self.machines[m].paused).filter(|until| *until > self.now) {
            return self.at(until, event);
        }
        match event {
            Event::Tick(m) => {
                if self.machines[m].tick_at <= self.now {
                    self.machines[m].tick_at = u64::MAX;
                    self.step(m, Input::Tick);
                }
            }
            Event::Input(m, input) => self.step(m, *input),
            Event::Frame(m, link, frame) => {
                if self.links.contains_key(&link) {
                    self.step(m, Input::Frame(link, *frame));
                }
            }
            Event::Broken(link) => self.unlink(link),
        }
    }

    fn step(&mut self, m: usize, input: Input) {
        let now = self.clock();
        let Some(node) = self.machines[m].node.as_mut() else { return };
        let mut out = Vec::new();
        node.handle(now, input, &mut out);
        node.flush(now, &mut out);
        let due = node.deadline(now.mono);
        let due = (due.0 / 1000).saturating_sub(1_000_000).max(self.now + 100);
        self.tick_by(m, due);
        for effect in out {
            self.perform(m, effect);
        }
    }

    fn perform(&mut self, m: usize, effect: Effect) {
        match effect {
            Effect::Persist(fragment, persist) => {
                self.at(self.now + 1000, Event::Input(m, Box::new(Input::Durable(fragment, persist.mark))));
            }
            Effect::Frame(link, frame) => {
                self.sent += 1;
                let Some((_, other)) = self.links.get(&link).copied() else { return };
                let Some((to, _)) = self.links.get(&other).copied() else { return };
                if self.wired(m, to) {
                    let at = self.now + self.rng.random_range(200..1500);
                    let last = self.arrivals.entry(other).or_insert(0);
                    *last = at.max(*last + 1);
                    let at = *last;
                    self.at(at, Event::Frame(to, other, Box::new(frame)));
                }
            }
            Effect::Datagram(to, bytes) => {
                if let Some(to) = self.machine_at(to) {
                    self.packet(m, to, Input::Datagram(addr(m), bytes.into()));
                }
            }
            // One name is enough for all: who calls out is heard by none.
            Effect::Multicast(_) => {}
            Effect::Dial(to) => self.dial(m, to),
            // What is queued is sent first.
            Effect::Close(link) => self.at(self.now + 2000, Event::Broken(link)),
            Effect::Hello(hello) => self.machines[m].hello = hello,
            Effect::Reply(..) | Effect::Ask(..) | Effect::Notice(_) => {}
            Effect::Stopped => self.kill(m),
        }
    }

    fn machine_at(&self, to: SocketAddr) -> Option<usize> {
        let SocketAddr::V4(to) = to else { return None };
        let [_, a, b, c] = to.ip().octets();
        Some(usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c)).filter(|m| *m < self.machines.len())
    }

    fn wired(&self, from: usize, to: usize) -> bool {
        !self.cut.contains(&(from, to))
    }

    fn packet(&mut self, from: usize, to: usize, input: Input) {
        self.sent += 1;
        if self.wired(from, to) && self.rng.random_range(0..100) >= self.loss {
            let at = self.now + self.rng.random_range(200..2000);
            self.at(at, Event::Input(to, Box::new(input)));
        }
    }

    fn dial(&mut self, m: usize, to: SocketAddr) {
        let target = self.machine_at(to).filter(|t| self.wired(m, *t) && self.wired(*t, m));
        let Some(target) = target else {
            let failed = Input::DialFailed { addr: to, refused: false };
            return self.at(self.now + SILENCE_US, Event::Input(m, Box::new(failed)));
        };
        let hello = |m: usize| self.machines[m].node.as_ref().map(|_| self.machines[m].hello.clone());
        let (Some(theirs), Some(mine)) = (hello(target), hello(m)) else {
            let failed = Input::DialFailed { addr: to, refused: true };
            return self.at(self.now + 500, Event::Input(m, Box::new(failed)));
        };
        let (a, b) = (self.next_link + 1, self.next_link + 2);
        self.next_link += 2;
        self.links.insert(a, (m, b));
        self.links.insert(b, (target, a));
        let here = Input::Linked { link: a, dialled: true, addr: to, hello: theirs };
        let there = Input::Linked { link: b, dialled: false, addr: SocketAddr::new(addr(m).ip(), 40_000), hello: mine };
        self.at(self.now + 1000, Event::Input(m, Box::new(here)));
        self.at(self.now + 1000, Event::Input(target, Box::new(there)));
    }

    fn unlink(&mut self, link: u64) {
        let Some((a, other)) = self.links.remove(&link) else { return };
        let both = [Some((a, link)), self.links.remove(&other).map(|(b, _)| (b, other))];
        for (m, link) in both.into_iter().flatten() {
            self.arrivals.remove(&link);
            self.at(self.now + 1001, Event::Input(m, Box::new(Input::Unlinked(link))));
        }
    }

    /// Its process is gone, for good.
    pub fn kill(&mut self, m: usize) {
        self.machines[m].node = None;
        let mine: Vec<u64> = self.links.iter().filter(|(_, (owner, _))| *owner == m).map(|(l, _)| *l).collect();
        mine.into_iter().for_each(|link| self.unlink(link));
    }

    /// It does nothing for so many microseconds.
    pub fn pause(&mut self, m: usize, us: u64) {
        self.machines[m].paused = self.now + us;
    }

    /// Nothing gets from one to the other any more; or again.
    pub fn wire(&mut self, from: usize, to: usize, on: bool) {
        if on {
            self.cut.remove(&(from, to));
            return;
        }
        self.cut.insert((from, to));
        let broken = |(_, (owner, other)): &(&u64, &(usize, u64))| {
            *owner == from && self.links.get(other).is_some_and(|(b, _)| *b == to)
        };
        let broken: Vec<u64> = self.links.iter().filter(broken).map(|(link, _)| *link).collect();
        broken.into_iter().for_each(|link| self.at(self.now + SILENCE_US, Event::Broken(link)));
    }

    /// Those for whom `side` says the same see each other, and none of the rest.
    pub fn split(&mut self, side: impl Fn(usize) -> usize) {
        for a in 0..self.machines.len() {
            for b in (0..self.machines.len()).filter(|b| *b != a) {
                self.wire(a, b, side(a) == side(b));
            }
        }
    }

    /// Those that run.
    pub fn alive(&self) -> Vec<usize> {
        (0..self.machines.len()).filter(|m| self.machines[*m].node.is_some()).collect()
    }

    /// An operator's word, at this node.
    pub fn say(&mut self, m: usize, of: usize, word: Word) {
        self.step(m, Input::Op(1, Op::Word(format!("m{of}"), word)));
    }

    /// How this node sees things.
    pub fn status(&self, m: usize) -> Option<node::Status> {
        self.machines[m].node.as_ref().map(|node| node.status(self.clock()))
    }

    /// Does every living node see exactly the others of this group?
    pub fn sees(&self, group: &[usize]) -> bool {
        group.iter().all(|m| {
            let others: BTreeSet<NodeId> = group.iter().filter(|o| *o != m).map(|o| id(*o)).collect();
            self.machines[*m].node.as_ref().is_some_and(|node| *node.sees() == others)
        })
    }

    /// Does no other living node see it?
    pub fn unseen(&self, m: usize) -> bool {
        let sees = |o: &Machine| o.node.as_ref().is_some_and(|node| node.sees().contains(&id(m)));
        !self.machines.iter().enumerate().any(|(o, machine)| o != m && sees(machine))
    }
}

/// What a fleet of a size, on a network of a quality, does.
#[derive(Debug)]
pub struct Figures {
    /// From the first start until every node sees every other, in ms.
    pub met_ms: u64,
    /// Datagrams and frames sent per node and second while nothing happens.
    pub idle: f64,
    /// From the death of a process until nobody sees it, in ms.
    pub death_ms: u64,
    /// From the moment that a node's wires are cut until nobody sees it, in ms.
    pub cut_ms: u64,
    /// From the start of a process until it is in every node's view, and they in its, in ms.
    pub joined_ms: u64,
}

/// Measures a fleet; `None`: what was waited for did not come.
pub fn figures(seed: u64, nodes: usize, loss: u32) -> Option<Figures> {
    let ms = |us: u64| us / 1000;
    let mut fleet = Fleet::new(seed, nodes, loss, Patience::default());
    let all = fleet.alive();
    let met_ms = ms(fleet.until(300_000_000, |f| f.sees(&all))?);
    fleet.run(30_000_000);
    let before = fleet.sent;
    fleet.run(20_000_000);
    let idle = (fleet.sent - before) as f64 / 20.0 / nodes as f64;
    fleet.kill(nodes - 1);
    let death_ms = ms(fleet.until(60_000_000, |f| f.unseen(nodes - 1))?);
    fleet.run(5_000_000);
    let cut = nodes - 2;
    (0..nodes).filter(|m| *m != cut).for_each(|m| {
        fleet.wire(m, cut, false);
        fleet.wire(cut, m, false);
    });
    let cut_ms = ms(fleet.until(60_000_000, |f| f.unseen(cut))?);
    fleet.split(|_| 0);
    fleet.run(20_000_000);
    let late = fleet.join();
    let started = fleet.until(2_000_000, |f| f.machines[late].tick_at > f.now + 500)?;
    let alive = fleet.alive();
    let joined_ms = ms(started + fleet.until(60_000_000, |f| f.sees(&alive))?);
    Some(Figures { met_ms, idle, death_ms, cut_ms, joined_ms })
}

/// So many simulated hours with lost datagrams, a pause of two seconds each half minute, and a wire that is cut one way for some seconds
/// as often; the nodes that were called lost meanwhile.
pub fn false_deaths(seed: u64, nodes: usize, loss: u32, hours: u64) -> Option<BTreeSet<String>> {
    let mut fleet = Fleet::new(seed, nodes, loss, Patience::default());
    let all = fleet.alive();
    fleet.until(300_000_000, |f| f.sees(&all))?;
    let mut lost = BTreeSet::new();
    for _ in 0..hours * 120 {
        let (m, a, b) =
            (fleet.rng.random_range(0..nodes), fleet.rng.random_range(0..nodes), fleet.rng.random_range(0..nodes));
        fleet.pause(m, 2_000_000);
        let cut = fleet.rng.random_range(1_000_000..29_000_000);
        if a != b {
            fleet.wire(a, b, false);
        }
        fleet.run(cut);
        fleet.wire(a, b, true);
        fleet.run(30_000_000 - cut);
        let status = fleet.status(m)?;
        lost.extend(status.nodes.into_iter().filter(|n| n.status == "lost").map(|n| n.name));
    }
    Some(lost)
}
