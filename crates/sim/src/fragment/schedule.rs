//! Small and exhaustive: three copies that open, join, or meet after a cut, with every single and double deviation from the
//! plain course of events. What a random history meets once in ten thousand, this meets for certain, if it is small.
//!
//! A *point* is a message about to be delivered or a flush about to end. A schedule is a base history and what happens
//! otherwise at which points: delay bounding (Emmi, Qadeer, Rakamaric 2011) with faults among the deviations.

use super::client::{Op, Pending, key};
use super::world::{Event, Options, Report, World, id};
use replica::{Batch, Check, Mutant, Request, SessionId, Write};

/// The plain course of events.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Base {
    /// Three fresh copies open, and are written to.
    Open,
    /// A follower crashes, is written past, and joins again.
    Join,
    /// The leader is cut off, both sides are written to, and meet.
    Meet,
}

/// What happens otherwise at a point.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Deviation {
    /// It happens 120 ms later.
    Late,
    /// The message is lost.
    Lost,
    /// The message comes again 150 ms later.
    Twice,
    /// The node crashes first, and loses what is not flushed.
    Crash,
    /// The node crashes, and what it wrote last happens to be kept.
    CrashKeeping,
    /// The node is cut off from the others for 400 ms.
    Cut,
}

/// All of them.
const DEVIATIONS: [Deviation; 6] =
    [Deviation::Late, Deviation::Lost, Deviation::Twice, Deviation::Crash, Deviation::CrashKeeping, Deviation::Cut];

/// A base, and what happens otherwise at which points, in order.
#[derive(Clone, Debug)]
pub(crate) struct Schedule {
    base: Base,
    deviations: Vec<(u64, Deviation)>,
    seen: u64,
}

enum Step {
    Split,
    Heal,
    Crash(usize),
    /// A write through this node, to whoever it believes to lead.
    Write(usize),
    End,
}

/// When what happens, in ms.
fn steps(base: Base) -> Vec<(u64, Step)> {
    let writes = |from: u64, n: u64, via: &'static [usize]| {
        (0..n).map(move |i| (from + i * 30, Step::Write(via[i as usize % via.len()])))
    };
    let mut all: Vec<(u64, Step)> = match base {
        Base::Open => writes(150, 8, &[0, 1, 2]).collect(),
        Base::Join => {
            let crash = [(500, Step::Crash(2))];
            writes(400, 14, &[0, 1]).chain(crash).collect()
        }
        Base::Meet => {
            let cut = [(500, Step::Split), (1300, Step::Heal)];
            writes(450, 3, &[0, 1])
                .chain(writes(1000, 6, &[0, 1, 2]))
                .chain(writes(1700, 8, &[1, 0]))
                .chain(cut)
                .collect()
        }
    };
    all.push((if base == Base::Meet { 2300 } else { 1200 }, Step::End));
    all.sort_by_key(|(at, _)| *at);
    all
}

/// Points before this are the same in every schedule of the base, in microseconds.
fn window(base: Base) -> std::ops::Range<u64> {
    match base {
        Base::Open => 0..700_000,
        Base::Join => 480_000..1_200_000,
        Base::Meet => 1_290_000..2_400_000,
    }
}

impl World {
    /// What becomes of the next event where a schedule says so; `None`: nothing comes of it now.
    pub(crate) fn deviate(&mut self, event: Event) -> Option<Event> {
        let node = match &event {
            Event::Deliver { to, .. } => *to,
            Event::Flush(node, _) => *node,
            _ => return Some(event),
        };
        let now = self.now;
        let Some(schedule) = &mut self.schedule else { return Some(event) };
        if !window(schedule.base).contains(&now) || self.nodes[node].copy.is_none() {
            return Some(event);
        }
        let point = schedule.seen;
        schedule.seen += 1;
        self.report.points = schedule.seen;
        let found = schedule.deviations.iter().find(|(at, _)| *at == point).map(|(_, what)| *what);
        let Some(what) = found else { return Some(event) };
        self.trace(|| format!("point {point}: {what:?} at {node}"));
        match (what, &event) {
            (Deviation::Late, _) => self.at(120_000, event),
            (Deviation::Lost, Event::Deliver { .. }) => {}
            (Deviation::Twice, Event::Deliver { from, to, life, fragment, msg }) => {
                let (fragment, msg) = (*fragment, msg.clone());
                let again = Event::Deliver { from: *from, to: *to, life: *life, fragment, msg };
                self.at(150_000, again);
                return Some(event);
            }
            // A flush is neither lost nor doubled.
            (Deviation::Lost | Deviation::Twice, _) => return Some(event),
            (Deviation::Crash, _) => self.crash_keeping(node, 0, 200_000),
            (Deviation::CrashKeeping, _) => self.crash_keeping(node, self.nodes[node].disc.at_risk(), 200_000),
            (Deviation::Cut, _) => {
                self.wire(|a, b| (a == node) == (b == node));
                self.views();
                let heal = self.schedule.as_ref().map_or(0, |s| steps(s.base).len());
                self.at(400_000, Event::Scripted(heal));
                return Some(event);
            }
        }
        None
    }

    /// One step of the base history, and the next one's turn. A step beyond the last ends a deviation's cut.
    pub(crate) fn scripted(&mut self, n: usize) {
        let Some(base) = self.schedule.as_ref().map(|s| s.base) else { return };
        let all = steps(base);
        let Some((_, step)) = all.get(n) else {
            self.wire(|_, _| true);
            return self.views();
        };
        match step {
            Step::Split => {
                let alone = self.leader().unwrap_or(0);
                self.wire(|a, b| (a == alone) == (b == alone));
                self.views();
            }
            Step::Heal => {
                self.wire(|_, _| true);
                self.views();
            }
            Step::Crash(node) => {
                // A follower, whoever leads.
                let node = if self.leader() == Some(*node) { 1 } else { *node };
                self.crash_keeping(node, 0, 200_000);
            }
            Step::Write(via) => self.scripted_write(*via),
            Step::End => {
                self.wire(|_, _| true);
                self.views();
            }
        }
        if let Some((next, _)) = all.get(n + 1) {
            let after = (next * 1000).saturating_sub(self.now);
            self.at(after, Event::Scripted(n + 1));
        }
    }

    fn leader(&self) -> Option<usize> {
        self.nodes.iter().position(|n| n.copy.as_ref().is_some_and(|c| c.lead().is_some()))
    }

    /// Every other write is a put-if-absent, and every third a delete.
    fn scripted_write(&mut self, home: usize) {
        let number = self.pending.len() as u64;
        let k = key((number % 2) as u8);
        let value = bytes::Bytes::copy_from_slice(&number.to_be_bytes());
        let (op, checks, write) = match number % 6 {
            3 => (Op::Delete, vec![], Write::Delete { key: k }),
            n if n % 2 == 1 => {
                (Op::PutIfAbsent, vec![Check::Absent(k.clone())], Write::Put { key: k, value, ttl_ms: None })
            }
            _ => (Op::Put, vec![], Write::Put { key: k, value, ttl_ms: None }),
        };
        let session = SessionId { node: id(home), incarnation: 1 };
        let batch = Batch { checks, writes: vec![write], sync: false };
        let request = Request { session, number, done_through: 0, branches: Vec::new(), batch };
        self.pending.push(Pending { op, request, tries: 0, outcome: None, home });
        self.at(0, Event::Retry(number as usize));
    }
}

/// One schedule.
pub fn replay(base: Base, deviations: &[(u64, Deviation)], options: Options) -> Report {
    let schedule = Schedule { base, deviations: deviations.to_vec(), seen: 0 };
    let mut world = World::scheduled(schedule, options);
    let end = steps(base).last().map_or(0, |(at, _)| at * 1000);
    world.run(end, 4_500_000);
    world.report
}

/// Every schedule with one deviation, and every one with a second within so many points after the first. Returns how many
/// there were, and the first that broke an invariant.
pub fn explore(base: Base, reach: u64, mutant: Option<Mutant>) -> (u64, Option<String>) {
    let options = Options { mutant, ..Options::default() };
    let plain = replay(base, &[], options);
    let say = |deviations: &[(u64, Deviation)], what: String| Some(format!("{base:?} {deviations:?}: {what}"));
    if let Some(what) = plain.violation {
        return (1, say(&[], what));
    }
    let next = std::sync::atomic::AtomicU64::new(0);
    let sum = std::sync::Mutex::new((1, None));
    let work = || loop {
        let first = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let (point, what) = (first / DEVIATIONS.len() as u64, DEVIATIONS[first as usize % DEVIATIONS.len()]);
        let done = || sum.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if point >= plain.points || done().1.is_some() {
            return;
        }
        let (mut count, mut bad) = (0, None);
        let mut one = |deviations: &[(u64, Deviation)]| {
            let report = replay(base, deviations, options);
            count += 1;
            bad = bad.take().or_else(|| report.violation.and_then(|v| say(deviations, v)));
            (report.points, bad.is_some())
        };
        let (points, found) = one(&[(point, what)]);
        if !found {
            'second: for second in point + 1..points.min(point + 1 + reach) {
                for other in DEVIATIONS {
                    if one(&[(point, what), (second, other)]).1 {
                        break 'second;
                    }
                }
            }
        }
        let mut sum = done();
        sum.0 += count;
        sum.1 = sum.1.take().or(bad);
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, |n| n.get()) {
            scope.spawn(work);
        }
    });
    sum.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
}
