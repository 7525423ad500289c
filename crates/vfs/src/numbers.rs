//! Fresh numbers for inodes, links, extents and pages: locality (16 bits, 0) ‖ allocator (24) ‖ counter (24).
//!
//! A mount claims an allocator, which nobody ever had, and counts. Half way through it claims the next, so that no number
//! is ever given twice, however much is written.

use crate::error::FsError;
use crate::fs::lock;
use std::sync::Mutex;

/// Bits of a number that count.
const COUNTER_BITS: u32 = 24;

struct Inner {
    allocator: u32,
    next: u32,
    spare: Option<u32>,
}

/// Gives out numbers.
pub(crate) struct Numbers {
    inner: Mutex<Inner>,
    /// How many each allocator gives.
    count: u32,
}

impl Numbers {
    pub(crate) fn new(allocator: u32) -> Numbers {
        Numbers::of(allocator, 1 << COUNTER_BITS)
    }

    fn of(allocator: u32, count: u32) -> Numbers {
        Numbers { inner: Mutex::new(Inner { allocator, next: 1, spare: None }), count }
    }

    /// A number that nobody was given before. Fails where the next allocator could not be claimed in time.
    pub(crate) fn fresh(&self) -> Result<u64, FsError> {
        let mut inner = lock(&self.inner);
        if inner.next >= self.count {
            inner.allocator = inner.spare.take().ok_or(FsError::Unavailable)?;
            inner.next = 0;
        }
        let number = u64::from(inner.allocator) << COUNTER_BITS | u64::from(inner.next);
        inner.next += 1;
        Ok(number)
    }

    /// Is it time to claim the next allocator?
    pub(crate) fn wants_spare(&self) -> bool {
        let inner = lock(&self.inner);
        inner.spare.is_none() && inner.next >= self.count / 2
    }

    /// The next allocator, claimed.
    pub(crate) fn take_spare(&self, allocator: u32) {
        lock(&self.inner).spare = Some(allocator);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_number_is_given_twice_when_an_allocator_is_used_up() {
        let numbers = Numbers::of(5, 8);
        let mut seen = BTreeSet::new();
        for allocator in 6..10 {
            while !numbers.wants_spare() {
                assert!(seen.insert(numbers.fresh().expect("there are some")));
            }
            numbers.take_spare(allocator);
            assert!(!numbers.wants_spare());
            while !numbers.wants_spare() {
                assert!(seen.insert(numbers.fresh().expect("there are some")));
            }
        }
        assert!(seen.len() > 30 && seen.iter().all(|n| *n >> COUNTER_BITS >= 5));
    }

    #[test]
    fn without_another_allocator_none_is_given() {
        let numbers = Numbers::of(5, 4);
        let given: Vec<_> = (0..4).map(|_| numbers.fresh().ok()).collect();
        assert_eq!(given.last(), Some(&None));
        numbers.take_spare(6);
        assert_eq!(numbers.fresh(), Ok(6 << COUNTER_BITS));
    }
}
