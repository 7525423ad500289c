//! What happened at this node lately: the same that its log says.

use base::WallMs;
use node::{EventMark, Grade, Happened};
use std::collections::{BTreeMap, VecDeque};

/// So many events are kept.
const EVENTS_MAX: usize = 1000;

/// And so much of each.
const TEXT_BYTES_MAX: usize = 4000;

/// The latest lines of something, numbered within one start.
pub struct Latest {
    most: usize,
    last: EventMark,
    lines: VecDeque<Happened>,
}

impl Latest {
    /// Keeps so many at most.
    pub const fn new(incarnation: u64, most: usize) -> Latest {
        Latest { most, last: EventMark { incarnation, number: 0 }, lines: VecDeque::new() }
    }

    /// One more; of a text not more than 4000 bytes.
    pub fn keep(&mut self, at: WallMs, (grade, kind, mut text): (Grade, &str, String)) {
        // Reasons come from anywhere.
        base::shorten(&mut text, TEXT_BYTES_MAX);
        if self.lines.len() >= self.most {
            self.lines.pop_front();
        }
        self.last.number += 1;
        self.lines.push_back(Happened { mark: self.last, at, grade, kind: kind.into(), text });
    }

    /// Those after that one, the oldest first; of more than so many the latest.
    pub fn since(&self, after: EventMark, most: u32) -> Vec<Happened> {
        let from = self.lines.partition_point(|line| line.mark <= after);
        let from = from.max(self.lines.len().saturating_sub(most as usize));
        self.lines.range(from..).cloned().collect()
    }
}

/// The latest events of a node, and how many there were of each grade and kind.
pub(crate) struct Journal {
    latest: Latest,
    counts: BTreeMap<(&'static str, String), u64>,
}

impl Journal {
    pub(crate) fn new(incarnation: u64) -> Journal {
        Journal { latest: Latest::new(incarnation, EVENTS_MAX), counts: BTreeMap::new() }
    }

    pub(crate) fn note(&mut self, at: WallMs, line: (Grade, &str, String)) {
        *self.counts.entry((line.0.name(), line.1.into())).or_default() += 1;
        self.latest.keep(at, line);
    }

    /// How many there were of each grade and kind since the start.
    pub(crate) fn counts(&self) -> impl Iterator<Item = (&'static str, &str, u64)> {
        self.counts.iter().map(|((grade, kind), n)| (*grade, kind.as_str(), *n))
    }

    /// The latest after that one, the oldest first.
    pub(crate) fn since(&self, after: EventMark, most: u32) -> Vec<Happened> {
        self.latest.since(after, most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_are_kept_and_told_once() {
        let mut journal = Journal::new(7);
        for n in 0..EVENTS_MAX as u64 + 10 {
            journal.note(WallMs(n), (Grade::Info, "test", n.to_string()));
        }
        let numbers = |after, most| -> Vec<u64> { journal.since(after, most).iter().map(|e| e.mark.number).collect() };
        let all = numbers(EventMark::default(), u32::MAX);
        assert_eq!((all.len(), all[0]), (EVENTS_MAX, 11));
        assert_eq!(numbers(EventMark { incarnation: 7, number: 1007 }, 99), [1008, 1009, 1010]);
        assert_eq!(numbers(EventMark { incarnation: 6, number: 5000 }, 2), [1009, 1010], "of an earlier start");
        assert!(numbers(EventMark { incarnation: 7, number: 1010 }, 99).is_empty());
        assert!(numbers(EventMark { incarnation: 8, number: 0 }, 99).is_empty());
    }
}
