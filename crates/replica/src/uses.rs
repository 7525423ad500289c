//! What is read of a bounded fragment, and how that fares.

use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// How many uses are remembered until somebody takes them; of more the latest.
pub(crate) const USES_MAX: usize = 1024;

/// How a bounded fragment has fared, as far as its present leader and the copies that told it have counted.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Tally {
    /// What counts of its bound: bytes of keys and values, and of what is kept with them.
    pub held: u64,
    /// Records that had to go.
    pub evicted: u64,
    /// Records that had expired.
    pub expired: u64,
    /// Reads of one key that found a value,
    pub hits: u64,
    /// and that found none.
    pub misses: u64,
    /// The oldest record's age, in milliseconds.
    pub oldest_ms: u64,
    /// How full it is, in ten-thousandths of what it may hold.
    pub full: u32,
}

impl Tally {
    /// Both as one.
    pub fn and(self, other: Tally) -> Tally {
        let sum = u64::saturating_add;
        Tally {
            held: sum(self.held, other.held),
            evicted: sum(self.evicted, other.evicted),
            expired: sum(self.expired, other.expired),
            hits: sum(self.hits, other.hits),
            misses: sum(self.misses, other.misses),
            oldest_ms: self.oldest_ms.max(other.oldest_ms),
            full: self.full.max(other.full),
        }
    }
}

/// What was read here since somebody took it last: readers beside the node note it while nobody may change the copy.
#[derive(Debug)]
pub(crate) struct Uses {
    ring: Box<[AtomicU64]>,
    at: AtomicUsize,
    taken: usize,
    hits: AtomicU64,
    misses: AtomicU64,
}

impl Default for Uses {
    fn default() -> Uses {
        let ring = (0..USES_MAX).map(|_| AtomicU64::new(0)).collect();
        Uses { ring, at: AtomicUsize::new(0), taken: 0, hits: AtomicU64::new(0), misses: AtomicU64::new(0) }
    }
}

impl Uses {
    pub(crate) fn note(&self, hash: u64, found: bool) {
        let counter = if found { &self.hits } else { &self.misses };
        counter.fetch_add(1, Ordering::Relaxed);
        if found {
            let at = self.at.fetch_add(1, Ordering::Relaxed);
            self.ring[at % USES_MAX].store(hash, Ordering::Relaxed);
        }
    }

    /// The latest, in order.
    pub(crate) fn take(&mut self) -> Vec<u64> {
        let at = *self.at.get_mut();
        let new = at.wrapping_sub(self.taken).min(USES_MAX);
        self.taken = at;
        (at.wrapping_sub(new)..at).map(|at| *self.ring[at % USES_MAX].get_mut()).collect()
    }

    /// Reads that found something, and that did not.
    pub(crate) fn counts(&mut self) -> (u64, u64) {
        (std::mem::take(self.hits.get_mut()), std::mem::take(self.misses.get_mut()))
    }

    /// The same, for whoever may not take them.
    pub(crate) fn seen(&self) -> (u64, u64) {
        (self.hits.load(Ordering::Relaxed), self.misses.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_follower_tells_what_was_read_once_a_second_and_not_too_much_of_it() {
        let mut uses = Uses::default();
        (0..10).for_each(|n| uses.note(n, n % 2 == 0));
        assert_eq!((uses.take(), uses.counts()), (vec![0, 2, 4, 6, 8], (5, 5)));
        (0..5000).for_each(|n| uses.note(n, true));
        let latest: Vec<u64> = (5000 - USES_MAX as u64..5000).collect();
        assert_eq!((uses.take(), uses.counts(), uses.take()), (latest, (5000, 0), vec![]));
    }
}
