//! Which record goes when there is no room: an order of what is there, by the policy of a table.
//!
//! It knows keys, sizes and accesses, and neither values nor a clock. Records are named by slots, which their holder keeps with them:
//! nothing is looked up here. What is decided depends on the calls alone.

mod ghost;
mod list;

use bytes::Bytes;
use ghost::Ghost;
use list::{List, Slots};
use std::collections::BTreeSet;
use std::fmt;

/// What goes first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Policy {
    /// The oldest, however often it is read.
    Fifo,
    /// What has not been used for the longest time.
    Lru,
    /// The oldest that has not been used since the hand came by last: SIEVE (Zhang et al., NSDI 2024).
    Sieve,
    /// What came lately and was not used again, then the oldest of the others that has not been used: S3-FIFO (Yang et al., SOSP 2023).
    S3Fifo,
    /// What expires next, then the oldest that does not.
    TtlFirst,
}

/// All of them.
pub const POLICIES: [Policy; 5] = [Policy::Fifo, Policy::Lru, Policy::Sieve, Policy::S3Fifo, Policy::TtlFirst];

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Policy::Fifo => "fifo",
            Policy::Lru => "lru",
            Policy::Sieve => "sieve",
            Policy::S3Fifo => "s3-fifo",
            Policy::TtlFirst => "ttl-first",
        })
    }
}

/// Names a record in an [`Order`], until it is removed or evicted.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Slot(u32);

/// Of what comes, so many tenths of the whole are watched before they count as used.
const SMALL_TENTHS: u64 = 1;
/// Used more often is not counted.
const USED_MAX: u8 = 3;

/// What is there, in the order in which it would go.
pub struct Order {
    policy: Policy,
    slots: Slots,
    /// The newest at its head: all records, or for S3-FIFO those that proved to be used.
    main: List,
    /// S3-FIFO: what came lately.
    small: List,
    /// S3-FIFO: what went lately without having been used again.
    ghost: Ghost,
    /// SIEVE: who is looked at next; none: the oldest.
    hand: Option<u32>,
    /// TTL first: when each expires (or never), and in which order they came.
    expiring: BTreeSet<(u64, u64, u32)>,
    came: u64,
}

impl Order {
    /// An empty one.
    pub fn new(policy: Policy) -> Order {
        Order {
            policy,
            slots: Slots::default(),
            main: List::default(),
            small: List::default(),
            ghost: Ghost::default(),
            hand: None,
            expiring: BTreeSet::new(),
            came: 0,
        }
    }

    /// How many records.
    pub fn len(&self) -> usize {
        self.main.len + self.small.len
    }

    /// None?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes of all.
    pub fn bytes(&self) -> u64 {
        self.main.bytes + self.small.bytes
    }

    /// A record comes. `hash`: of its key, the same whenever it comes. `expires`: in any unit that grows.
    pub fn insert(&mut self, key: Bytes, hash: u64, bytes: u64, expires: Option<u64>) -> Slot {
        self.came += 1;
        let at = self.slots.add(key, hash, bytes, (expires.unwrap_or(u64::MAX), self.came));
        if self.policy == Policy::S3Fifo && !self.ghost.take(hash) {
            self.slots.set_small(at, true);
            self.small.push(&mut self.slots, at);
        } else {
            self.main.push(&mut self.slots, at);
        }
        if self.policy == Policy::TtlFirst {
            self.expiring.insert((expires.unwrap_or(u64::MAX), self.came, at));
        }
        Slot(at)
    }

    /// A record was read, or written again.
    pub fn touch(&mut self, slot: Slot) {
        match self.policy {
            Policy::Fifo | Policy::TtlFirst => {}
            Policy::Lru => {
                if self.slots.is_used(slot.0) {
                    self.main.remove(&mut self.slots, slot.0);
                    self.main.push(&mut self.slots, slot.0);
                }
            }
            Policy::Sieve | Policy::S3Fifo => self.slots.touch(slot.0, USED_MAX),
        }
    }

    /// A record has another size, or another time to expire, from here on.
    pub fn change(&mut self, slot: Slot, bytes: u64, expires: Option<u64>) {
        if !self.slots.is_used(slot.0) {
            return;
        }
        let before = self.slots.bytes(slot.0);
        let list = if self.slots.is_small(slot.0) { &mut self.small } else { &mut self.main };
        list.bytes = list.bytes - before + bytes;
        let (at, came) = self.slots.change(slot.0, bytes, expires.unwrap_or(u64::MAX));
        if self.policy == Policy::TtlFirst {
            self.expiring.remove(&(at, came, slot.0));
            self.expiring.insert((expires.unwrap_or(u64::MAX), came, slot.0));
        }
    }

    /// A record is not there any more.
    pub fn remove(&mut self, slot: Slot) {
        if self.slots.is_used(slot.0) {
            self.take(slot.0);
        }
    }

    /// The key of a record that is there.
    pub fn key(&self, slot: Slot) -> Option<&Bytes> {
        self.slots.is_used(slot.0).then(|| self.slots.key(slot.0))
    }

    /// The hash that a record that is there came with.
    pub fn hash(&self, slot: Slot) -> u64 {
        if self.slots.is_used(slot.0) { self.slots.hash(slot.0) } else { 0 }
    }

    /// Those that have been there, or for [`Policy::Lru`] unused, for the longest time; S3-FIFO: of those that proved to be used.
    pub fn oldest(&self) -> impl Iterator<Item = Slot> {
        std::iter::successors(self.main.tail, |at| self.slots.newer(*at)).map(Slot)
    }

    /// The next to go, which is not there any more from here on; and its size.
    pub fn evict(&mut self) -> Option<(Bytes, u64)> {
        let at = match self.policy {
            Policy::Fifo | Policy::Lru => self.main.tail?,
            Policy::Sieve => self.sieve()?,
            Policy::S3Fifo => self.s3_fifo()?,
            Policy::TtlFirst => self.expiring.first()?.2,
        };
        Some(self.take(at))
    }

    fn take(&mut self, at: u32) -> (Bytes, u64) {
        if self.hand == Some(at) {
            self.hand = self.slots.newer(at);
        }
        let list = if self.slots.is_small(at) { &mut self.small } else { &mut self.main };
        list.remove(&mut self.slots, at);
        let (key, bytes, due) = self.slots.free(at);
        if self.policy == Policy::TtlFirst {
            self.expiring.remove(&(due.0, due.1, at));
        }
        (key, bytes)
    }

    /// Passes by what was used since it came by last.
    fn sieve(&mut self) -> Option<u32> {
        let mut at = self.hand.or(self.main.tail)?;
        while self.slots.used(at) > 0 {
            self.slots.set_used(at, 0);
            at = self.slots.newer(at).or(self.main.tail)?;
        }
        // Where it was is taken: it goes on from there.
        self.hand = Some(at);
        Some(at)
    }

    fn s3_fifo(&mut self) -> Option<u32> {
        loop {
            let watch = self.small.bytes * 10 >= self.bytes() * SMALL_TENTHS || self.main.tail.is_none();
            if let Some(at) = self.small.tail.filter(|_| watch) {
                if self.slots.used(at) <= 1 {
                    self.ghost.add(self.slots.hash(at), self.main.len.max(self.small.len));
                    return Some(at);
                }
                self.small.remove(&mut self.slots, at);
                self.slots.set_small(at, false);
                self.slots.set_used(at, 0);
                self.main.push(&mut self.slots, at);
                continue;
            }
            let at = self.main.tail?;
            match self.slots.used(at) {
                0 => return Some(at),
                used => self.slots.set_used(at, used - 1),
            }
            self.main.remove(&mut self.slots, at);
            self.main.push(&mut self.slots, at);
        }
    }
}

impl fmt::Debug for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Order").field("policy", &self.policy).field("len", &self.len()).finish_non_exhaustive()
    }
}
