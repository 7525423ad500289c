//! How long clients' operations take that go through the node. Reads that are answered by a function call are not among them.

use base::{Instant, Span};
use node::{Op, Sample};

/// What is told apart.
const KINDS: [&str; 3] = ["read", "write", "other"];
/// Upper bounds of the buckets, in microseconds.
const BUCKETS_US: [u64; 13] =
    [100, 250, 500, 1000, 2500, 5000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000, 10_000_000];

#[derive(Clone, Copy, Default)]
struct Histogram {
    /// Each on its own; the last is for what is above all bounds.
    counts: [u64; BUCKETS_US.len() + 1],
    sum_us: u64,
}

/// Histograms of how long operations took, by kind.
#[derive(Default)]
pub(crate) struct Meter {
    kinds: [Histogram; KINDS.len()],
}

/// Which kind it is.
pub(crate) fn kind(op: &Op) -> usize {
    match op {
        Op::Read(..) => 0,
        Op::Write(..) => 1,
        _ => 2,
    }
}

impl Meter {
    pub(crate) fn note(&mut self, kind: usize, took: Span) {
        let us = took.0 / 1000;
        let Some(histogram) = self.kinds.get_mut(kind) else { return };
        let at = BUCKETS_US.partition_point(|most| *most < us);
        histogram.counts[at] += 1;
        histogram.sum_us = histogram.sum_us.saturating_add(us);
    }

    pub(crate) fn tell(&self, all: &mut Vec<Sample>) {
        for (name, histogram) in KINDS.into_iter().zip(self.kinds) {
            let mut sum = 0;
            let bounds = BUCKETS_US.iter().map(|us| (*us as f64 / 1e6).to_string()).chain(["+Inf".into()]);
            for (count, bound) in histogram.counts.into_iter().zip(bounds) {
                sum += count;
                all.push(Sample::new("tombolo_op_seconds_bucket", sum).of("op", name).of("le", bound));
            }
            all.push(Sample::new("tombolo_op_seconds_sum", histogram.sum_us as f64 / 1e6).of("op", name));
            all.push(Sample::new("tombolo_op_seconds_count", sum).of("op", name));
        }
    }
}

/// So many lines tell of slow requests, at most,
const SLOW_LINES_MAX: u32 = 100;
/// in so long.
const SLOW_LINES_PER: Span = Span::ms(1_000);

/// Lines about slow requests. Under a load that is too much for a node all requests are slow: some lines tell as much as all would.
pub(crate) struct SlowLines {
    /// From when on a request is slow.
    pub after: Span,
    since: Instant,
    said: u32,
}

impl Default for SlowLines {
    fn default() -> SlowLines {
        SlowLines { after: node::SLOW_AFTER, since: Instant(0), said: 0 }
    }
}

impl SlowLines {
    pub(crate) fn may_say(&mut self, now: Instant) -> bool {
        if now - self.since >= SLOW_LINES_PER {
            (self.since, self.said) = (now, 0);
        }
        self.said += 1;
        self.said <= SLOW_LINES_MAX
    }
}

/// What happened, in numbers, since the start.
#[derive(Default)]
pub(crate) struct Counts {
    /// Fragments in which islands met, as this node led, what that brought in and gave out, and how long it took.
    pub heals: u64,
    pub records_in: u64,
    pub entries_out: u64,
    pub conflicts: u64,
    pub heal_time: Span,
    pub datagrams_in: u64,
    pub datagrams_out: u64,
    pub beacons_in: u64,
    pub beacons_out: u64,
    pub frames_in: u64,
    pub frames_out: u64,
    pub dials: u64,
    pub dials_failed: u64,
    pub links: u64,
    pub links_lost: u64,
    pub slow: SlowLines,
}

impl Counts {
    pub(crate) fn heal(&mut self, heal: &replica::Heal) {
        self.heals += 1;
        self.records_in += heal.taken;
        self.entries_out += heal.given;
        self.conflicts += heal.conflicts;
        self.heal_time = Span(self.heal_time.0.saturating_add(heal.took.0));
    }

    pub(crate) fn tell(&self, all: &mut Vec<Sample>) {
        let one = |name, n: u64| Sample::new(name, n);
        let way = |name, way, n: u64| Sample::new(name, n).of("way", way);
        all.extend([
            one("tombolo_heals_total", self.heals),
            way("tombolo_heal_records_total", "in", self.records_in),
            way("tombolo_heal_records_total", "out", self.entries_out),
            one("tombolo_heal_conflicts_total", self.conflicts),
            Sample::new("tombolo_heal_seconds_total", self.heal_time.as_ms() as f64 / 1000.0),
            way("tombolo_datagrams_total", "in", self.datagrams_in),
            way("tombolo_datagrams_total", "out", self.datagrams_out),
            way("tombolo_beacons_total", "in", self.beacons_in),
            way("tombolo_beacons_total", "out", self.beacons_out),
            way("tombolo_frames_total", "in", self.frames_in),
            way("tombolo_frames_total", "out", self.frames_out),
            one("tombolo_dials_total", self.dials),
            one("tombolo_dials_failed_total", self.dials_failed),
            one("tombolo_links_total", self.links),
            one("tombolo_links_lost_total", self.links_lost),
        ]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_falls_into_the_bucket_of_the_next_bound() {
        let mut meter = Meter::default();
        [0, 100, 101, 9_999_999, 20_000_000].into_iter().for_each(|us| meter.note(1, Span(us * 1000)));
        let mut all = Vec::new();
        meter.tell(&mut all);
        let of = |bound: &str| {
            let is =
                |s: &&Sample| s.labels.iter().any(|(_, v)| v == "write") && s.labels.iter().any(|(_, v)| v == bound);
            all.iter().find(is).map(|s| s.value)
        };
        assert_eq!(
            (of("0.0001"), of("0.00025"), of("1"), of("10"), of("+Inf")),
            (Some(2.), Some(3.), Some(3.), Some(4.), Some(5.))
        );
        let sum = all.iter().find(|s| s.name == "tombolo_op_seconds_sum" && s.labels[0].1 == "write").map(|s| s.value);
        assert!(sum.is_some_and(|s| (s - 30.0002).abs() < 0.0001), "{sum:?}");
    }
}
