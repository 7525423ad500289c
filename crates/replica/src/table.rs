//! Records by key, and the keys in order: what a point access costs does not grow with the table.

#![expect(clippy::disallowed_types, reason = "the hash tables are never walked, so that a seed still replays")]

use crate::batch::SessionId;
use crate::key::{self, Space};
use crate::record::Record;
use bytes::Bytes;
use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher, Hasher};
use std::ops::Bound;

/// How many hash tables share the records. Each grows by itself, so that no put waits until all records have moved.
const SHARDS: usize = 64;

/// SipHash behind a seed that whoever chooses keys does not know: nobody can make them collide on purpose.
#[derive(Clone, Copy, Default, Debug)]
struct Seeded(u64);

impl BuildHasher for Seeded {
    type Hasher = DefaultHasher;

    fn build_hasher(&self) -> DefaultHasher {
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(self.0);
        hasher
    }
}

/// The records of a copy. Nothing depends on the order in which hashing puts them.
#[derive(Default, Debug)]
pub(crate) struct Table {
    shards: Vec<HashMap<Bytes, Record, Seeded>>,
    seed: Seeded,
    len: usize,
    /// All keys but those of outcomes.
    order: BTreeSet<Bytes>,
    /// Outcomes come and go with every write, and are only ever looked for by session and number.
    outcomes: BTreeSet<(SessionId, u64)>,
}

impl Table {
    pub(crate) fn new(seed: u64) -> Table {
        Table { seed: Seeded(seed), ..Table::default() }
    }

    /// By bits of the hash that the hash table itself does not look at.
    fn shard(&self, key: &[u8]) -> usize {
        (self.seed.hash_one(key) >> 40) as usize % SHARDS
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<&Record> {
        self.shards.get(self.shard(key))?.get(key)
    }

    /// The record with the key as it is stored, which costs less to clone than to make.
    pub(crate) fn entry(&self, key: &[u8]) -> Option<(&Bytes, &Record)> {
        self.shards.get(self.shard(key))?.get_key_value(key)
    }

    /// Returns the record that was there.
    pub(crate) fn insert(&mut self, key: Bytes, record: Record) -> Option<Record> {
        if self.shards.is_empty() {
            self.shards.resize_with(SHARDS, || HashMap::with_hasher(self.seed));
        }
        let shard = self.shard(&key);
        let old = self.shards[shard].insert(key.clone(), record);
        if old.is_none() {
            self.len += 1;
            match key::outcome_of(&key) {
                Some(id) => self.outcomes.insert(id),
                None => self.order.insert(key),
            };
        }
        old
    }

    pub(crate) fn remove(&mut self, key: &[u8]) -> Option<Record> {
        let shard = self.shard(key);
        let old = self.shards.get_mut(shard)?.remove(key)?;
        self.len -= 1;
        match key::outcome_of(key) {
            Some(id) => self.outcomes.remove(&id),
            None => self.order.remove(key),
        };
        Some(old)
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Records of a range of keys, in order. Outcomes are not among them.
    pub(crate) fn range(&self, from: Bound<&[u8]>, to: Bound<&[u8]>) -> impl Iterator<Item = (&Bytes, &Record)> {
        self.order.range::<[u8], _>((from, to)).filter_map(|key| Some((key, self.get(key)?)))
    }

    /// The numbers of a session's outcomes below `end`.
    pub(crate) fn outcomes(&self, session: SessionId, end: u64) -> impl Iterator<Item = u64> {
        self.outcomes.range((session, 0)..(session, end)).map(|(_, number)| *number)
    }

    /// Every record: those of all spaces in order, then outcomes.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&Bytes, &Record)> {
        let outcomes = self.outcomes.iter().filter_map(|(session, number)| {
            let key = key::outcome(*session, *number);
            self.entry(&key)
        });
        self.range(Bound::Unbounded, Bound::Unbounded).chain(outcomes)
    }

    /// All records of one space but that of outcomes.
    pub(crate) fn space(&self, space: Space) -> impl Iterator<Item = (&Bytes, &Record)> {
        let (from, to) = (space as u8, space as u8 + 1);
        let bounds = (Bound::Included([from]), Bound::Excluded([to]));
        let keys = self.order.range::<[u8], _>((bounds.0.as_ref().map(|b| &b[..]), bounds.1.as_ref().map(|b| &b[..])));
        keys.filter_map(|key| Some((key, self.get(key)?)))
    }
}
