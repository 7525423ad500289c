//! Each policy does what a plain model of it does, and keeps as much of what is asked for as other implementations.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use bytes::Bytes;
use evict::{Order, POLICIES, Policy, Slot};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::collections::BTreeMap;
use std::num::NonZeroUsize;

/// SplitMix64's finalizer (Steele, Lea, Flood, 2014).
fn hash(key: u64) -> u64 {
    let mut x = key.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn bytes(key: u64) -> Bytes {
    Bytes::copy_from_slice(&key.to_be_bytes())
}

/// The same in lists that are searched from end to end: the oldest first.
#[derive(Default)]
struct Model {
    small: Vec<(u64, u8, u64, u64)>,
    main: Vec<(u64, u8, u64, u64)>,
    ghost: Vec<u64>,
    hand: Option<u64>,
}

impl Model {
    fn insert(&mut self, policy: Policy, key: u64, size: u64, expires: u64) {
        let back = self.ghost.iter().position(|k| *k == key).map(|i| self.ghost.remove(i)).is_some();
        if policy == Policy::S3Fifo && !back { &mut self.small } else { &mut self.main }.push((key, 0, size, expires));
    }

    fn touch(&mut self, policy: Policy, key: u64) {
        if policy == Policy::Lru {
            let at = self.main.iter().position(|(k, ..)| *k == key).expect("there");
            let entry = self.main.remove(at);
            self.main.push(entry);
        }
        let all = self.small.iter_mut().chain(&mut self.main);
        all.filter(|(k, ..)| *k == key).for_each(|(_, used, ..)| *used = (*used + 1).min(3));
    }

    fn remove(&mut self, key: u64) -> u64 {
        if self.hand == Some(key) {
            let at = self.main.iter().position(|(k, ..)| *k == key);
            self.hand = at.and_then(|at| self.main.get(at + 1)).map(|(k, ..)| *k);
        }
        self.small.retain(|(k, ..)| *k != key);
        self.main.retain(|(k, ..)| *k != key);
        key
    }

    fn evict(&mut self, policy: Policy) -> Option<u64> {
        let key = match policy {
            Policy::Fifo | Policy::Lru => self.main.first()?.0,
            Policy::TtlFirst => self.main.iter().min_by_key(|(.., expires)| *expires)?.0,
            Policy::Sieve => {
                let mut at = self.main.iter().position(|(k, ..)| Some(*k) == self.hand).unwrap_or(0);
                while self.main.get(at)?.1 > 0 {
                    self.main[at].1 = 0;
                    at = (at + 1) % self.main.len();
                }
                self.hand = Some(self.main[at].0);
                self.main[at].0
            }
            Policy::S3Fifo => loop {
                let sum = |list: &[(u64, u8, u64, u64)]| list.iter().map(|(_, _, size, _)| size).sum::<u64>();
                let (small, main) = (sum(&self.small), sum(&self.main));
                if !self.small.is_empty() && (small * 10 >= small + main || self.main.is_empty()) {
                    let (key, used, size, expires) = self.small[0];
                    if used <= 1 {
                        let most = self.main.len().max(self.small.len());
                        self.ghost.retain(|k| *k != key);
                        self.ghost.push(key);
                        let over = self.ghost.len().saturating_sub(most);
                        self.ghost.drain(..over);
                        break key;
                    }
                    self.small.remove(0);
                    self.main.push((key, 0, size, expires));
                    continue;
                }
                let (key, used, size, expires) = *self.main.first()?;
                if used == 0 {
                    break key;
                }
                self.main.remove(0);
                self.main.push((key, used - 1, size, expires));
            },
        };
        Some(self.remove(key))
    }
}

#[test]
fn each_policy_does_what_a_plain_model_of_it_does() {
    for policy in POLICIES {
        for seed in 0..60 {
            let mut rng = StdRng::seed_from_u64(seed);
            let (mut order, mut model) = (Order::new(policy), Model::default());
            let mut slots: BTreeMap<u64, Slot> = BTreeMap::new();
            let room = rng.random_range(1..40);
            for step in 0..600 {
                let key = rng.random_range(0..60);
                match (slots.get(&key).copied(), rng.random_range(0..10)) {
                    (Some(slot), 0) => {
                        order.remove(slot);
                        model.remove(key);
                        slots.remove(&key);
                    }
                    (Some(slot), 1) => {
                        let size = rng.random_range(1..5);
                        let expires = 1000 * step + key;
                        order.change(slot, size, Some(expires));
                        let all = model.small.iter_mut().chain(&mut model.main);
                        all.filter(|(k, ..)| *k == key).for_each(|entry| (entry.2, entry.3) = (size, expires));
                    }
                    (Some(slot), _) => {
                        order.touch(slot);
                        model.touch(policy, key);
                    }
                    (None, _) => {
                        let (size, expires) = (rng.random_range(1..5), 1000 * rng.random_range(0..900) + key);
                        slots.insert(key, order.insert(bytes(key), hash(key), size, Some(expires)));
                        model.insert(policy, key, size, expires);
                    }
                }
                while order.len() > room {
                    let (gone, _) = order.evict().expect("something is there");
                    let gone = u64::from_be_bytes(gone[..].try_into().expect("ours"));
                    assert_eq!(Some(gone), model.evict(policy), "{policy}, seed {seed}, step {step}");
                    slots.remove(&gone);
                }
                let (count, size) = model.small.iter().chain(&model.main).fold((0, 0), |(n, b), e| (n + 1, b + e.2));
                assert_eq!((order.len(), order.bytes(), slots.len()), (count, size, count), "{policy}, seed {seed}");
            }
            while let Some((gone, _)) = order.evict() {
                let gone = u64::from_be_bytes(gone[..].try_into().expect("ours"));
                assert_eq!(Some(gone), model.evict(policy), "{policy}, seed {seed}, at the end");
            }
            assert!(order.is_empty() && model.evict(policy).is_none());
        }
    }
}

/// Keys by Zipf's law; with `scans`, now and then a run of keys that come once.
fn trace(exponent: f64, keys: usize, length: usize, scans: bool) -> Vec<u64> {
    let mut rng = StdRng::seed_from_u64(7);
    let mut sum = 0.0;
    let sums: Vec<f64> = (1..=keys).map(|rank| (sum += (rank as f64).powf(-exponent), sum).1).collect();
    let (mut all, mut once) = (Vec::with_capacity(length), 1 << 40);
    while all.len() < length {
        let at = rng.random_range(0.0..sum);
        all.push(hash(sums.partition_point(|s| *s < at) as u64) >> 20);
        if scans && all.len().is_multiple_of(2000) {
            all.extend(once..once + 1000);
            once += 1000;
        }
    }
    all
}

/// Of a thousand requests so many find what they ask for.
fn ours(policy: Policy, room: usize, trace: &[u64]) -> u64 {
    let (mut order, mut slots, mut hits) = (Order::new(policy), BTreeMap::new(), 0u64);
    for key in trace {
        if let Some(slot) = slots.get(key) {
            order.touch(*slot);
            hits += 1;
            continue;
        }
        if order.len() >= room {
            let (gone, _) = order.evict().expect("full");
            slots.remove(&u64::from_be_bytes(gone[..].try_into().expect("ours")));
        }
        slots.insert(*key, order.insert(bytes(*key), hash(*key), 1, None));
    }
    hits * 1000 / trace.len() as u64
}

fn others(trace: &[u64], mut has: impl FnMut(u64) -> bool) -> u64 {
    trace.iter().filter(|key| has(**key)).count() as u64 * 1000 / trace.len() as u64
}

#[test]
fn as_much_is_kept_as_by_other_implementations_and_not_less_than_by_lru() {
    for (exponent, scans) in [(1.0, false), (0.8, false), (1.0, true), (0.8, true)] {
        for room in [200, 2000] {
            let trace = trace(exponent, 20_000, 300_000, scans);
            let [lru, sieve, s3] = [Policy::Lru, Policy::Sieve, Policy::S3Fifo].map(|p| ours(p, room, &trace));
            let why = format!("zipf {exponent}, scans {scans}, room {room}: lru {lru}, sieve {sieve}, s3-fifo {s3}");
            assert!(sieve >= lru && s3 >= lru, "{why}");
            let mut cache = lru::LruCache::new(NonZeroUsize::new(room).expect("room"));
            let other = others(&trace, |key| cache.put(key, ()).is_some());
            assert!(lru.abs_diff(other) <= 10, "{why}; lru elsewhere {other}");
            let mut cache = sieve_cache::SieveCache::new(room).expect("room");
            let other = others(&trace, |key| {
                let has = cache.get(&key).is_some();
                if !has {
                    cache.insert(key, ());
                }
                has
            });
            assert!(sieve + 10 >= other, "{why}; sieve elsewhere {other}");
            let mut cache = s3_fifo::S3FIFO::new(room);
            let other = others(&trace, |key| {
                let has = cache.get(&key).is_some();
                if !has {
                    cache.put(key, ());
                }
                has
            });
            assert!(s3 + 10 >= other, "{why}; s3-fifo elsewhere {other}");
            println!("{why}");
        }
    }
}
