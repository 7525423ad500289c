//! What happened at this node lately: the same that its log says.

use base::WallMs;
use node::{EventMark, Grade, Happened};
use std::collections::{BTreeMap, VecDeque};

/// So many events are kept.
const EVENTS_MAX: usize = 1000;

/// And so much of each.
const TEXT_BYTES_MAX: usize = 4000;

/// The latest events of a node, numbered.
pub(crate) struct Journal {
    next: EventMark,
    latest: VecDeque<Happened>,
    /// Of each grade and kind, so many.
    counts: BTreeMap<(&'static str, String), u64>,
}

impl Journal {
    pub(crate) fn new(incarnation: u64) -> Journal {
        Journal { next: EventMark { incarnation, number: 1 }, latest: VecDeque::new(), counts: BTreeMap::new() }
    }

    pub(crate) fn note(&mut self, at: WallMs, (grade, kind, mut text): (Grade, &str, String)) {
        // Reasons come from anywhere.
        base::shorten(&mut text, TEXT_BYTES_MAX);
        if self.latest.len() >= EVENTS_MAX {
            self.latest.pop_front();
        }
        self.latest.push_back(Happened { mark: self.next, at, grade, kind: kind.into(), text });
        self.next.number += 1;
        *self.counts.entry((grade.name(), kind.into())).or_default() += 1;
    }

    /// How many there were of each grade and kind since the start.
    pub(crate) fn counts(&self) -> impl Iterator<Item = (&'static str, &str, u64)> {
        self.counts.iter().map(|((grade, kind), n)| (*grade, kind.as_str(), *n))
    }

    /// The latest after that one, the oldest first.
    pub(crate) fn since(&self, after: EventMark, most: u32) -> Vec<Happened> {
        let from = self.latest.partition_point(|event| event.mark <= after);
        let from = from.max(self.latest.len().saturating_sub(most as usize));
        self.latest.range(from..).cloned().collect()
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
