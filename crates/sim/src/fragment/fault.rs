use super::world::{Event, World};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use replica::{Pressure, Shortage, Storage};

impl World {
    pub(crate) fn run_short(&mut self, node: usize, shortage: Shortage) {
        if self.faults {
            self.trace(|| format!("{node} is short: {shortage:?}"));
            self.short.insert(node);
            self.step(node, replica::Input::Shortage(shortage));
        }
    }

    /// Nodes run short of memory, and of room on their discs, now and then for a while.
    pub(crate) fn plan_shortages(&mut self, seed: u64) {
        let mut chance = StdRng::seed_from_u64(seed ^ 0x7368_6f72);
        if !chance.random_bool(0.1) {
            return;
        }
        let levels = [Pressure::Low, Pressure::Steady, Pressure::High, Pressure::Full, Pressure::Full];
        for _ in 0..chance.random_range(1..8) {
            let node = chance.random_range(0..self.nodes.len());
            let mut level = || levels[chance.random_range(0..levels.len())];
            let shortage = Shortage { memory: level(), disc: level() };
            let (at, long) = (chance.random_range(0..8_000_000), chance.random_range(10_000..2_000_000));
            self.at(at, Event::Short(node, shortage));
            self.at(at + long, Event::Short(node, Shortage::default()));
        }
    }

    pub(crate) fn fault(&mut self) {
        let n = self.nodes.len();
        let (a, b) = (self.rng.random_range(0..n), self.rng.random_range(0..n));
        match self.rng.random_range(0..12) {
            0 | 1 => {
                let sides: u32 = self.rng.random_range(0..1 << n);
                self.trace(|| format!("split {sides:b}"));
                self.wire(|x, y| (sides >> x & 1) == (sides >> y & 1));
            }
            2..=4 => {
                self.trace(|| "join".into());
                self.wire(|_, _| true);
            }
            5 if a != b => {
                let both = self.rng.random_bool(0.5);
                self.trace(|| format!("cut {a} {} {b}", if both { "<->" } else { "->" }));
                self.wired[a][b] = false;
                self.wired[b][a] &= !both;
            }
            6 => self.crash(a),
            7 if self.rng.random_bool(0.25) => (0..n).for_each(|node| self.crash(node)),
            7 => self.crash(a),
            8 => {
                self.nodes[a].paused = self.now + self.rng.random_range(60..900) * 1000;
                self.trace(|| format!("pause {a} until {}", self.nodes[a].paused / 1000));
            }
            10 => {
                self.trace(|| format!("{a} resigns"));
                self.step(a, replica::Input::Resign);
                if self.rng.random_bool(0.5) && self.nodes[a].copy.is_some() {
                    // A clean stop: its disc gets all.
                    self.nodes[a].stopped = true;
                    let (all, after) = (self.nodes[a].disc.at_risk(), self.rng.random_range(20..2000) * 1000);
                    self.crash_keeping(a, all, after);
                }
            }
            11 if self.storage == Storage::DiscOnly && self.rng.random_bool(0.3) => {
                self.trace(|| format!("the disc of {a} cannot be read"));
                self.nodes[a].disc.engine.fail();
            }
            9 => {
                self.nodes[a].skew = self.rng.random_range(-8000..8000);
                self.trace(|| format!("clock of {a} off by {}", self.nodes[a].skew));
            }
            11 => {
                self.trace(|| format!("the links of {a} and {b} are doubled"));
                self.step(a, replica::Input::Met(super::world::id(b)));
            }
            _ => {
                self.suspects[a][b] = self.now + self.rng.random_range(100..700) * 1000;
                self.trace(|| format!("{a} suspects {b}"));
            }
        }
        self.views();
    }

    pub(crate) fn wire(&mut self, on: impl Fn(usize, usize) -> bool) {
        for a in 0..self.nodes.len() {
            for b in 0..self.nodes.len() {
                self.wired[a][b] = on(a, b);
            }
        }
    }

    pub(crate) fn crash(&mut self, node: usize) {
        let kept = self.rng.random_range(0..=self.nodes[node].disc.at_risk());
        let after = self.rng.random_range(20..2000) * 1000;
        self.crash_keeping(node, kept, after);
    }

    /// A crash that keeps so many of the unflushed batches; the node starts again so many microseconds later.
    pub(crate) fn crash_keeping(&mut self, node: usize, kept: usize, after: u64) {
        let Some(copy) = self.nodes[node].copy.take() else { return };
        self.report.crashes += 1;
        let at_risk = self.nodes[node].disc.at_risk();
        let mut image = self.nodes[node].disc.crash(kept);
        self.trace(|| format!("crash {node}, {kept} of {at_risk} unflushed batches kept"));
        let (line, n) = (self.cuts.fragment(node).index, image.meta.n);
        if self.fall_back(node, image.meta == replica::Meta::default()) {
            let kept = self.rng.random_range(0..=self.nodes[node].disc.at_risk());
            image = self.nodes[node].disc.crash(kept);
        }
        self.check.crashed(node, copy.store().heads(), &image.heads, (line, n));
        self.nodes[node].life += 1;
        self.nodes[node].firm = None;
        self.tickets.retain(|(n, _), _| *n != node);
        self.at(after, Event::Restart(node));
        self.views();
    }

    pub(crate) fn restart(&mut self, node: usize) {
        if self.nodes[node].copy.is_some() {
            return;
        }
        let image = self.nodes[node].disc.crash(usize::MAX);
        let store = image.store();
        self.trace(|| format!("restart {node} with {:?}", store.heads()));
        self.boot(node, image.meta, store);
        self.at(1000, super::world::Event::Heard(node));
    }

    /// The end of all faults: from here on it must converge and serve.
    pub(crate) fn calm(&mut self) {
        self.trace(|| "calm".into());
        (self.faults, self.load, self.loss, self.wild) = (false, false, 0, false);
        for node in (0..self.nodes.len()).filter(|n| self.nodes[*n].disc.engine.is_broken()).collect::<Vec<_>>() {
            self.crash(node);
        }
        for node in std::mem::take(&mut self.short) {
            self.step(node, replica::Input::Shortage(Shortage::default()));
        }
        for a in 0..self.nodes.len() {
            self.nodes[a].paused = 0;
            for b in 0..self.nodes.len() {
                self.wired[a][b] = true;
                self.suspects[a][b] = 0;
            }
        }
        self.views();
    }
}
