//! Records by key, and the keys in order: what a point access costs does not grow with the table.

use crate::batch::SessionId;
use crate::kept::Kept;
use crate::key::{self, Space};
use crate::slab::Slab;
use base::Version;
use bytes::Bytes;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use std::collections::BTreeSet;
use std::collections::btree_set::Range;
use std::hash::DefaultHasher;
use std::hash::{BuildHasher, Hasher};
use std::ops::{Bound, RangeBounds};

/// How many hash tables share the records. Each grows by itself, so that no put waits until all records have moved.
const SHARDS: usize = 64;

/// What a record takes in RAM beyond its key and its value, in bytes: its places in the indexes, and what is known of it. Measured against
/// the allocator (`tests/accounting.rs`).
pub const OVERHEAD: u64 = 480;

/// A hash table with less room than this is left as it is when it empties.
const SPARSE_MIN: usize = 1024;

/// SipHash behind a seed that whoever chooses keys does not know: nobody can make them collide on purpose.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Seeded(pub u64);

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
    all: Slab,
    /// Where they lie.
    shards: Vec<HashTable<u32>>,
    seed: Seeded,
    /// Users' records that hold a value, and the bytes of their keys and values.
    live: (u64, u64),
    /// All keys but those of outcomes, and of users where they are not kept in order.
    order: BTreeSet<Bytes>,
    /// Users' keys are found by hash only; a range of them is gathered and sorted when it is asked for.
    unordered: bool,
    /// Outcomes come and go with every write, and are only ever looked for by session and number.
    outcomes: BTreeSet<(SessionId, u64)>,
}

impl Table {
    pub(crate) fn new(seed: u64) -> Table {
        Table { seed: Seeded(seed), ..Table::default() }
    }

    /// Keeps users' keys in order from here on, or no longer.
    pub(crate) fn set_unordered(&mut self, unordered: bool) {
        if unordered && !self.unordered {
            self.order.retain(|key| !is_users(key));
        } else if self.unordered && !unordered {
            self.order.extend(self.all.iter().map(|(key, _)| key).filter(|key| is_users(key)).cloned());
        }
        self.unordered = unordered;
    }

    /// A key's hash, and the table that it lies in: by bits that the table itself does not look at.
    fn place(&self, key: &[u8]) -> (u64, usize) {
        let hash = self.seed.hash_one(key);
        (hash, (hash >> 40) as usize % SHARDS)
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<&Kept> {
        self.entry(key).map(|(_, kept)| kept)
    }

    /// Is there one of which this is true?
    pub(crate) fn is_any(&self, of: impl Fn(&Bytes, &Kept) -> bool) -> bool {
        self.all.iter().any(|(key, kept)| of(key, kept))
    }

    /// The record with the key as it is stored, which costs less to clone than to make.
    pub(crate) fn entry(&self, key: &[u8]) -> Option<(&Bytes, &Kept)> {
        let (hash, shard) = self.place(key);
        let at = self.shards.get(shard)?.find(hash, |at| self.all.key(*at) == key)?;
        let (key, kept) = self.all.get(*at);
        Some((key, kept))
    }

    /// Lets go of a value, if it is still that of this write.
    pub(crate) fn let_go(&mut self, key: &[u8], version: Version) {
        let (hash, shard) = self.place(key);
        let found = self.shards.get(shard).and_then(|s| s.find(hash, |at| self.all.key(*at) == key));
        if let Some(kept) = found.map(|at| self.all.get_mut(*at)).filter(|kept| kept.version() == version) {
            kept.let_go();
        }
    }

    /// Returns the record that was there.
    pub(crate) fn insert(&mut self, key: Bytes, record: Kept) -> Option<Kept> {
        if self.shards.is_empty() {
            self.shards.resize_with(SHARDS, HashTable::new);
        }
        let (hash, shard) = self.place(&key);
        let size = live_size(&key, record.value_bytes());
        let (seed, all) = (self.seed, &self.all);
        let old = match self.shards[shard].entry(hash, |at| *all.key(*at) == key, |at| seed.hash_one(&all.key(*at)[..]))
        {
            Entry::Occupied(there) => Some(std::mem::replace(self.all.get_mut(*there.get()), record)),
            Entry::Vacant(room) => {
                room.insert(self.all.len() as u32);
                self.all.push(key.clone(), record);
                None
            }
        };
        let before = live_size(&key, old.as_ref().and_then(Kept::value_bytes));
        self.live = (self.live.0 + size.0 - before.0, self.live.1 + size.1 - before.1);
        if old.is_none() {
            match key::outcome_of(&key) {
                Some(id) => self.outcomes.insert(id),
                None if self.unordered && is_users(&key) => true,
                None => self.order.insert(key),
            };
        }
        old
    }

    pub(crate) fn remove(&mut self, key: &[u8]) -> Option<Kept> {
        let (hash, shard) = self.place(key);
        let all = &self.all;
        let (at, _) = self.shards.get_mut(shard)?.find_entry(hash, |at| all.key(*at) == key).ok()?.remove();
        let last = self.all.len() as u32 - 1;
        if at != last {
            // It comes to the place of what goes.
            let (hash, shard) = self.place(self.all.key(last));
            *self.shards[shard].find_mut(hash, |at| *at == last)? = at;
        }
        let old = self.all.remove(at)?;
        let (seed, all, table) = (self.seed, &self.all, &mut self.shards[shard]);
        // What was large once does not stay so.
        if table.capacity() > SPARSE_MIN && table.len() < table.capacity() / 8 {
            table.shrink_to(table.len() * 2, |at| seed.hash_one(&all.key(*at)[..]));
        }
        let size = live_size(key, old.value_bytes());
        self.live = (self.live.0 - size.0, self.live.1 - size.1);
        match key::outcome_of(key) {
            Some(id) => self.outcomes.remove(&id),
            None => self.order.remove(key),
        };
        Some(old)
    }

    pub(crate) fn live_size(&self) -> (u64, u64) {
        self.live
    }

    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    /// Records of a range of keys, in order. Outcomes are not among them.
    pub(crate) fn range(&self, from: Bound<&[u8]>, to: Bound<&[u8]>) -> impl Iterator<Item = (&Bytes, &Kept)> {
        let kept = self.order.range::<[u8], _>((from, to));
        let all = self.gathered((from, to)).map_or_else(|| Keys::Kept(kept), |keys| Keys::Gathered(keys.into_iter()));
        all.filter_map(|key| Some((key, self.get(key)?)))
    }

    /// The keys of a range, sorted, if users' keys that are not kept in order may be among them.
    fn gathered(&self, bounds: (Bound<&[u8]>, Bound<&[u8]>)) -> Option<Vec<&Bytes>> {
        let (Bound::Included(from) | Bound::Excluded(from), Bound::Included(to) | Bound::Excluded(to)) = bounds else {
            return self.unordered.then(|| self.sorted(bounds));
        };
        let users = from < &[Space::User as u8 + 1][..] && to >= &[Space::User as u8][..];
        (self.unordered && users).then(|| self.sorted(bounds))
    }

    fn sorted(&self, bounds: (Bound<&[u8]>, Bound<&[u8]>)) -> Vec<&Bytes> {
        let users = self.all.iter().map(|(key, _)| key).filter(|key| is_users(key));
        let within = users.filter(|key| RangeBounds::<[u8]>::contains(&bounds, &key[..]));
        let mut keys: Vec<&Bytes> = within.chain(self.order.range::<[u8], _>(bounds)).collect();
        keys.sort_unstable();
        keys
    }

    /// The numbers of a session's outcomes below `end`.
    pub(crate) fn outcomes(&self, session: SessionId, end: u64) -> impl Iterator<Item = u64> {
        self.outcomes.range((session, 0)..(session, end)).map(|(_, number)| *number)
    }

    /// Every record: those of all spaces in order, then outcomes.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&Bytes, &Kept)> {
        let outcomes = self.outcomes.iter().filter_map(|(session, number)| {
            let key = key::outcome(*session, *number);
            self.entry(&key)
        });
        self.range(Bound::Unbounded, Bound::Unbounded).chain(outcomes)
    }

    /// All records of one space but that of outcomes.
    pub(crate) fn space(&self, space: Space) -> impl Iterator<Item = (&Bytes, &Kept)> {
        let (from, to) = (space as u8, space as u8 + 1);
        let (from, to) = ([from], [to]);
        self.range(Bound::Included(&from), Bound::Excluded(&to)).collect::<Vec<_>>().into_iter()
    }
}

/// What a record counts for in a bound: with what is kept beside it.
pub(crate) fn counted(key: &[u8], value_bytes: Option<usize>) -> (u64, u64) {
    let (records, bytes) = live_size(key, value_bytes);
    (records, bytes + records * OVERHEAD)
}

/// One record, and its bytes without the byte that names its space, if it is a user's and holds a value.
fn live_size(key: &[u8], value_bytes: Option<usize>) -> (u64, u64) {
    value_bytes.filter(|_| is_users(key)).map_or((0, 0), |bytes| (1, (key.len() - 1 + bytes) as u64))
}

pub(crate) fn is_users(key: &[u8]) -> bool {
    key.first() == Some(&(Space::User as u8))
}

/// The keys of a range, in order.
enum Keys<'a> {
    Kept(Range<'a, Bytes>),
    Gathered(std::vec::IntoIter<&'a Bytes>),
}

impl<'a> Iterator for Keys<'a> {
    type Item = &'a Bytes;

    fn next(&mut self) -> Option<&'a Bytes> {
        match self {
            Keys::Kept(keys) => keys.next(),
            Keys::Gathered(keys) => keys.next(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Record;
    use base::Hlc;
    use proptest::prelude::*;

    fn record(n: u8) -> Kept {
        let value = (!n.is_multiple_of(3)).then(|| vec![n; usize::from(n)].into());
        Record { version: Version::default(), hlc: Hlc(u64::from(n)), expires: None, value }.into()
    }

    proptest! {
        /// Whatever is put and removed, and whenever order is given up or taken up, both show the same.
        #[test]
        fn an_unordered_table_shows_what_an_ordered_one_does(
            steps in proptest::collection::vec((0u8..5, 0u8..40, any::<bool>()), 0..80),
            from in 0u8..40,
            to in 0u8..40,
        ) {
            let (mut plain, mut other) = (Table::new(1), Table::new(2));
            for (what, k, space) in steps {
                let key = if space { key::user(&[k]) } else { key::member(base::NodeId(u64::from(k))) };
                match what {
                    0 => other.set_unordered(k % 2 == 0),
                    1 => prop_assert_eq!(plain.remove(&key), other.remove(&key)),
                    _ => prop_assert_eq!(plain.insert(key.clone(), record(k)), other.insert(key, record(k))),
                }
            }
            prop_assert!(plain.all().eq(other.all()));
            let live = plain.space(Space::User).map(|(k, r)| live_size(k, r.value_bytes()));
            prop_assert_eq!(plain.live_size(), live.fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1)));
            let (from, to) = (key::user(&[from.min(to)]), key::user(&[from.max(to)]));
            let bounds = || (Bound::Included(&from[..]), Bound::Excluded(&to[..]));
            prop_assert!(plain.range(bounds().0, bounds().1).eq(other.range(bounds().0, bounds().1)));
            prop_assert!(plain.space(Space::Member).eq(other.space(Space::Member)));
            prop_assert!(plain.space(Space::User).eq(other.space(Space::User)));
        }
    }
}
