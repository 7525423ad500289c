//! How long clients' operations take that go through the node. Reads that are answered by a function call are not among them.

use base::Span;
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
