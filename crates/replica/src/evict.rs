//! A fragment with a bound never holds more: what goes to make room is chosen by its leader, in the very entry that needs the room, and so
//! goes alike on every copy.
//!
//! What is evicted leaves a tombstone with the stamp of what it was: it loses to every write that did, or would have. These tombstones, and
//! those of what has expired, are kept for a while so that a copy that was away for a moment is told. They do not wait for members that
//! are missing, as those of users do: there are never many, and whoever comes with less than what was forgotten begins anew.

use crate::copy::{Copy, Role};
use crate::gate::Effects;
use crate::key;
use crate::lead::Progress;
use crate::mutant;
use crate::record::Record;
use crate::store::FETCHES_MAX;
use crate::table::{OVERHEAD, live_size};
use crate::{Measure, Refusal, Storage};
use base::{Heads, Now, TableId, Version};
use bytes::Bytes;
use evict::{Order, Policy, Slot};
use hashbrown::HashTable;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::hash::{DefaultHasher, Hasher};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Of a bound, so much is made free when a write needs room: the next ones find some.
const SLACK: u64 = 128;
/// How many go with one write beyond those that it needs gone, and with one entry of a pass.
const VICTIMS_MAX: usize = 256;
const PASS_MAX: usize = 4096;
/// How many entries one pass makes at a time.
const PASS_ENTRIES: usize = 8;
/// How many tombstones one entry forgets.
const CLEARED_MAX: usize = 4096;
/// How many candidates a function is shown.
const SHOWN_MAX: usize = 16;
/// How many uses are remembered until somebody takes them; of more the latest.
const USES_MAX: usize = 1024;

/// What goes when there is no room for a write.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub enum Evict {
    /// Nothing: the write is refused.
    #[default]
    Reject,
    /// See [`Policy::Fifo`].
    Fifo,
    /// See [`Policy::Lru`].
    Lru,
    /// See [`Policy::Sieve`].
    Sieve,
    /// See [`Policy::S3Fifo`].
    S3Fifo,
    /// See [`Policy::TtlFirst`].
    TtlFirst,
    /// What a function of the program that embeds the node says, by name; the oldest, where it is not there.
    Function(String),
}

impl Evict {
    /// The order that is kept for it.
    fn policy(&self) -> Option<Policy> {
        Some(match self {
            Evict::Reject => return None,
            Evict::Fifo | Evict::Function(_) => Policy::Fifo,
            Evict::Lru => Policy::Lru,
            Evict::Sieve => Policy::Sieve,
            Evict::S3Fifo => Policy::S3Fifo,
            Evict::TtlFirst => Policy::TtlFirst,
        })
    }

    /// Does it matter what is read?
    fn counts_reads(&self) -> bool {
        matches!(self, Evict::Lru | Evict::Sieve | Evict::S3Fifo)
    }
}

impl fmt::Display for Evict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self, self.policy()) {
            (Evict::Function(name), _) => write!(f, "function:{name}"),
            (_, Some(policy)) => policy.fmt(f),
            (_, None) => f.write_str("reject"),
        }
    }
}

/// A text that is no policy of eviction.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is none of reject, fifo, lru, sieve, s3-fifo, ttl-first and function:NAME")]
pub struct NoPolicy(String);

impl FromStr for Evict {
    type Err = NoPolicy;

    fn from_str(text: &str) -> Result<Evict, NoPolicy> {
        Ok(match text {
            "reject" => Evict::Reject,
            "fifo" => Evict::Fifo,
            "lru" => Evict::Lru,
            "sieve" => Evict::Sieve,
            "s3-fifo" => Evict::S3Fifo,
            "ttl-first" => Evict::TtlFirst,
            other => match other.strip_prefix("function:") {
                Some(name) if !name.is_empty() => Evict::Function(name.into()),
                _ => return Err(NoPolicy(text.into())),
            },
        })
    }
}

/// A record that may have to go, as a function of the embedding program is shown it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Candidate {
    /// Its key.
    pub key: Bytes,
    /// The bytes that it counts for.
    pub bytes: u64,
    /// When it was written, by the stamp of the write.
    pub written: base::WallMs,
    /// When it expires.
    pub expires: Option<base::WallMs>,
}

/// Which of up to 16 candidates goes next, those that came first before the others; `None`: none of them, and the write is refused.
pub type EvictFunction = dyn Fn(&[Candidate]) -> Option<usize> + Send + Sync;

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
    fn note(&self, hash: u64, found: bool) {
        let counter = if found { &self.hits } else { &self.misses };
        counter.fetch_add(1, Ordering::Relaxed);
        if found {
            let at = self.at.fetch_add(1, Ordering::Relaxed);
            self.ring[at % USES_MAX].store(hash, Ordering::Relaxed);
        }
    }

    /// The latest, in order.
    fn take(&mut self) -> Vec<u64> {
        let at = *self.at.get_mut();
        let new = at.wrapping_sub(self.taken).min(USES_MAX);
        self.taken = at;
        (at.wrapping_sub(new)..at).map(|at| *self.ring[at % USES_MAX].get_mut()).collect()
    }

    /// Reads that found something, and that did not.
    fn counts(&mut self) -> (u64, u64) {
        (std::mem::take(self.hits.get_mut()), std::mem::take(self.misses.get_mut()))
    }
}

/// What a leader knows of the records that may have to go.
pub(crate) struct Evictor {
    evict: Evict,
    order: Order,
    slots: HashTable<Slot>,
}

impl Evictor {
    fn find(&self, hash: u64, key: &[u8]) -> Option<Slot> {
        self.slots.find(hash, |slot| self.order.key(*slot).is_some_and(|k| k == key)).copied()
    }

    /// A record is there, or is another.
    fn note(&mut self, key: &Bytes, hash: u64, bytes: u64, expires: Option<u64>) {
        match self.find(hash, key) {
            Some(slot) => {
                self.order.change(slot, bytes, expires);
                self.order.touch(slot);
            }
            None => {
                let slot = self.order.insert(key.clone(), hash, bytes, expires);
                let order = &self.order;
                self.slots.insert_unique(hash, slot, |slot| order.hash(*slot));
            }
        }
    }

    fn forget(&mut self, key: &[u8], hash: u64) {
        let order = &mut self.order;
        let there = self.slots.find_entry(hash, |slot| order.key(*slot).is_some_and(|k| k == key));
        if let Ok(there) = there {
            let (slot, _) = there.remove();
            order.remove(slot);
        }
    }

    /// It was read; two keys of one hash are taken for each other.
    fn touch(&mut self, hash: u64) {
        let order = &self.order;
        if let Some(slot) = self.slots.find(hash, |slot| order.hash(*slot) == hash).copied() {
            self.order.touch(slot);
        }
    }

    /// The next by the order.
    fn next(&mut self, hash: impl Fn(&[u8]) -> u64) -> Option<Bytes> {
        let (key, _) = self.order.evict()?;
        let order = &self.order;
        if let Ok(there) = self.slots.find_entry(hash(&key), |slot| order.key(*slot).is_none()) {
            there.remove();
        }
        Some(key)
    }
}

/// A stored key's hash, the same at every copy.
fn spot(table: TableId, stored: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write_u64(table.0);
    hasher.write(stored);
    hasher.finish()
}

/// What a record counts for, if it is a user's and holds a value: one, and its bytes with what is kept with them.
fn counted(key: &[u8], value_bytes: Option<usize>) -> (u64, u64) {
    let (records, bytes) = live_size(key, value_bytes);
    (records, bytes + records * OVERHEAD)
}

impl Copy {
    /// Somebody has read a key, and found a value or not.
    pub(crate) fn note_use(&self, stored: &[u8], found: bool) {
        if let Some(uses) = &self.uses {
            let hash = if self.config.evict.counts_reads() { spot(self.config.fragment.table, stored) } else { 0 };
            uses.note(hash, found);
        }
    }

    /// Reads are counted where there is a bound.
    pub(crate) fn mind_uses(&mut self) {
        let bounded = self.config.room != crate::Room::default();
        if bounded && self.uses.is_none() {
            self.uses = Some(Uses::default());
        } else if !bounded {
            self.uses = None;
        }
        if let Role::Leading(l) = &mut self.role
            && l.evictor.as_ref().is_some_and(|evictor| !bounded || evictor.evict != self.config.evict)
        {
            l.evictor = None;
        }
    }

    /// The order in which records go is made when it is first needed, the oldest first.
    fn mind_evictor(&mut self) {
        let there = matches!(&self.role, Role::Leading(l) if l.evictor.is_some());
        let Some(policy) = self.config.evict.policy().filter(|_| !there) else { return };
        let mut all: Vec<_> = self
            .store
            .space(crate::Space::User)
            .filter_map(|(key, kept)| Some((kept.hlc(), key.clone(), kept.value_bytes()?, kept.expires())))
            .collect();
        all.sort_unstable_by_key(|(hlc, ..)| *hlc);
        let evict = self.config.evict.clone();
        let mut evictor = Evictor { evict, order: Order::new(policy), slots: HashTable::with_capacity(all.len()) };
        for (_, key, bytes, expires) in all {
            let (_, bytes) = counted(&key, Some(bytes));
            evictor.note(&key, spot(self.config.fragment.table, &key), bytes, expires.map(|at| at.0));
        }
        if let Role::Leading(l) = &mut self.role {
            l.evictor = Some(Box::new(evictor));
        }
    }

    /// The order learns what an entry puts.
    pub(crate) fn note_puts(&mut self, puts: &[(Bytes, Record)]) {
        if !matches!(&self.role, Role::Leading(l) if l.evictor.is_some()) {
            return;
        }
        for (key, record) in puts.iter().filter(|(key, _)| key.first() == Some(&(crate::Space::User as u8))) {
            let hash = spot(self.config.fragment.table, key);
            let Role::Leading(l) = &mut self.role else { return };
            let Some(evictor) = &mut l.evictor else { return };
            match &record.value {
                Some(value) => {
                    evictor.note(key, hash, counted(key, Some(value.len())).1, record.expires.map(|at| at.0));
                }
                None => evictor.forget(key, hash),
            }
        }
    }

    /// What was read here counts from now on.
    fn take_uses(&mut self) {
        let Some(uses) = &mut self.uses else { return };
        let (used, (hits, misses)) = (uses.take(), uses.counts());
        (self.tally.hits, self.tally.misses) = (self.tally.hits + hits, self.tally.misses + misses);
        if let Role::Leading(l) = &mut self.role
            && let Some(evictor) = l.evictor.as_mut().filter(|_| self.config.evict.counts_reads())
        {
            used.into_iter().for_each(|hash| evictor.touch(hash));
        }
    }

    /// What was read here, for the leader.
    pub(crate) fn uses_to_tell(&mut self) -> Option<(Vec<u64>, u64, u64)> {
        let counts = self.config.evict.counts_reads();
        let uses = self.uses.as_mut()?;
        let (used, (hits, misses)) = (uses.take(), uses.counts());
        let used = if counts { used } else { Vec::new() };
        (hits + misses > 0).then_some((used, hits, misses))
    }

    /// A follower tells what was read there.
    pub(crate) fn on_used(&mut self, from: base::NodeId, session: u64, used: Vec<u64>, hits: u64, misses: u64) {
        let Role::Leading(l) = &mut self.role else { return };
        if !l.followers.get(&from).is_some_and(|f| f.session == session && f.joined()) {
            return;
        }
        self.tally.hits = self.tally.hits.saturating_add(hits);
        self.tally.misses = self.tally.misses.saturating_add(misses);
        if let Some(evictor) = l.evictor.as_mut().filter(|_| self.config.evict.counts_reads()) {
            used.into_iter().take(USES_MAX).for_each(|hash| evictor.touch(hash));
        }
    }

    /// The records that a batch would put, and the tombstones of what has to go for them. Whatever else the fragment holds has its room
    /// by now: this is the leader's latest state.
    pub(crate) fn bounded(
        &mut self,
        now: Now,
        mut puts: Vec<(Bytes, Record)>,
    ) -> Result<Vec<(Bytes, Record)>, Refusal> {
        let room = self.config.room;
        if room == crate::Room::default() {
            return Ok(puts);
        }
        self.take_uses();
        let (mut before, mut after) = ((0, 0), (0, 0));
        for (key, record) in &puts {
            let add = |sum: &mut (u64, u64), more: (u64, u64)| *sum = (sum.0 + more.0, sum.1 + more.1);
            add(&mut before, counted(key, self.store.get(key).and_then(crate::Kept::value_bytes)));
            add(&mut after, counted(key, record.value.as_ref().map(Bytes::len)));
        }
        let held = self.store.held();
        let grown = |held: u64, before: u64, after: u64| held.saturating_add(after) - before;
        let then = (grown(held.0, before.0, after.0), grown(held.1, before.1, after.1));
        let over = |bound: Option<u64>, before: u64, after: u64, then: u64| {
            after > before && bound.is_some_and(|most| then > most)
        };
        let over = (over(room.records, before.0, after.0, then.0), over(room.bytes, before.1, after.1, then.1));
        if !over.0 && !over.1 {
            return Ok(puts);
        }
        let what = if over.0 { Measure::Records } else { Measure::Bytes };
        let whole = room.records.is_some_and(|most| after.0 > most) || room.bytes.is_some_and(|most| after.1 > most);
        if self.config.evict == Evict::Reject || whole {
            return Err(Refusal::TableFull { what });
        }
        let (gone, fits) = self.victims(now, then, room, VICTIMS_MAX, &puts);
        if !fits {
            return Err(Refusal::TableFull { what });
        }
        self.tally.evicted += gone.len() as u64;
        puts.extend(gone);
        Ok(puts)
    }

    /// Tombstones of what goes, so that of `held` no more is left than the room has, and somewhat less as long as there are not too many of
    /// them; and whether it is so.
    fn victims(
        &mut self,
        #[allow(unused)] now: Now,
        mut held: (u64, u64),
        room: crate::Room,
        most: usize,
        puts: &[(Bytes, Record)],
    ) -> (Vec<(Bytes, Record)>, bool) {
        self.mind_evictor();
        // What is replaced is kept whole until that is committed: values on disc are read for it.
        let most = if self.store.form() == Storage::DiscOnly { most.min(FETCHES_MAX) } else { most };
        let fits = |held: (u64, u64)| {
            room.records.is_none_or(|most| held.0 <= most) && room.bytes.is_none_or(|most| held.1 <= most)
        };
        let low = |most: Option<u64>| most.map(|most| most - most / SLACK);
        let low = crate::Room { records: low(room.records), bytes: low(room.bytes) };
        let slack = |held: (u64, u64)| {
            low.records.is_none_or(|most| held.0 <= most) && low.bytes.is_none_or(|most| held.1 <= most)
        };
        let mut gone = Vec::new();
        while !fits(held) || (gone.len() < most && !slack(held)) {
            let Some(key) = self.next_victim() else { break };
            // What is written anew has no size before it, and comes back into the order with its entry.
            let written = puts.iter().any(|(k, _)| *k == key);
            let Some(kept) = self.store.get(&key).filter(|_| !written) else { continue };
            let size = counted(&key, kept.value_bytes());
            held = (held.0.saturating_sub(size.0), held.1.saturating_sub(size.1));
            let hlc = kept.hlc();
            let hlc = if mutant!(self, ClearedAnew) { self.stamp(now) } else { hlc };
            gone.push((key, Record::cleared(self.next_version(), hlc)));
        }
        let fits = fits(held);
        if let Role::Leading(l) = &mut self.role
            && !fits
        {
            // What was taken out of the order may stay where it is.
            l.evictor = None;
        }
        (gone, fits)
    }

    fn next_victim(&mut self) -> Option<Bytes> {
        let chosen = self.chosen_by_function();
        let table = self.config.fragment.table;
        let Role::Leading(l) = &mut self.role else { return None };
        let evictor = l.evictor.as_mut()?;
        let Some(key) = chosen else { return evictor.next(|stored| spot(table, stored)) };
        let key = key?;
        evictor.forget(&key, spot(table, &key));
        Some(key)
    }

    /// What the function says, if there is one to ask.
    fn chosen_by_function(&self) -> Option<Option<Bytes>> {
        let Evict::Function(name) = &self.config.evict else { return None };
        let Role::Leading(l) = &self.role else { return None };
        let evictor = l.evictor.as_ref()?;
        let candidate = |slot: Slot| {
            let key = evictor.order.key(slot)?;
            let kept = self.store.get(key)?;
            let (_, bytes) = counted(key, kept.value_bytes());
            Some(Candidate { key: key.slice(1..), bytes, written: kept.hlc().wall(), expires: kept.expires() })
        };
        let all: Vec<Candidate> = evictor.order.oldest().filter_map(candidate).take(SHOWN_MAX).collect();
        let chosen = self.config.functions.evict(name, &all)?;
        Some(chosen.and_then(|at| all.get(at)).map(|c| key::user(&c.key)))
    }

    /// What islands wrote apart may exceed the bound when they meet, and a bound may have been lowered: it is held again in one pass.
    pub(crate) fn mind_room(&mut self, now: Now, fx: &mut Effects) {
        let room = self.config.room;
        let bounded = room != crate::Room::default() && self.config.evict != Evict::Reject;
        for _ in 0..PASS_ENTRIES {
            let Role::Leading(l) = &self.role else { return };
            let held = self.store.held();
            let over = room.records.is_some_and(|most| held.0 > most) || room.bytes.is_some_and(|most| held.1 > most);
            if !bounded || !over || !l.ready || l.is_busy() || self.too_few_to_write().is_some() {
                return;
            }
            // Not all at once, where there is much.
            let excess = |held: u64, most: Option<u64>| most.map_or(0, |most| held.saturating_sub(most));
            let share = |held: u64, most: Option<u64>| most.map(|most| held - excess(held, Some(most)).min(held / 8));
            let part = crate::Room { records: share(held.0, room.records), bytes: share(held.1, room.bytes) };
            let (gone, _) = self.victims(now, held, part, PASS_MAX, &[]);
            if gone.is_empty() {
                return;
            }
            self.tally.evicted += gone.len() as u64;
            self.append(now, gone, false, fx);
            self.shed(now, fx);
        }
    }

    /// How many tombstones of what had to go, or had expired, are kept for those who were away for a moment.
    fn cleared_max(&self) -> usize {
        let least = self.config.timing.cleared_min;
        let room = self.config.room;
        let records = room.records.unwrap_or(u64::MAX).min(room.bytes.map_or(u64::MAX, |bytes| bytes / OVERHEAD));
        usize::try_from(records / 16).unwrap_or(usize::MAX).max(least)
    }

    /// Forgets the oldest tombstones of what the table itself took out, when there are many: whoever does not know of them, and comes back,
    /// is told all there is.
    pub(crate) fn shed(&mut self, now: Now, fx: &mut Effects) {
        let most = self.cleared_max();
        let bounded = self.config.room != crate::Room::default();
        let Role::Leading(l) = &mut self.role else { return };
        if !bounded || !l.ready || l.commit == 0 || self.store.cleared() <= most {
            return;
        }
        let branch = l.branch;
        let none = Heads::default();
        let known = self.store.heads().clamped(branch, l.commit);
        let many = (self.store.cleared() - most / 2).min(CLEARED_MAX);
        let oldest: Vec<Version> =
            self.store.cleared_of(&none, &known).take(many).map(|(version, _)| *version).collect();
        let Some(level) =
            oldest.iter().filter(|v| v.branch == branch).map(|v| v.seq).max().or(oldest.first().map(|_| 1))
        else {
            return;
        };
        let mut floor = self.store.floor().clone();
        let level = Version { branch, seq: level.max(floor.levels.seq(branch)) };
        if !mutant!(self, ClearedUnleveled) {
            floor.levels = Heads::from_iter([level]);
        }
        floor.cleared.join(&oldest.iter().copied().collect());
        // Whoever is being told what it lacks would not be told of these.
        let misses = |d: &crate::sync::Delta| !d.is_anew() && !d.holds(&floor.levels);
        let lost = |f: &crate::lead::Follower| matches!(&f.progress, Progress::Syncing(delta) if misses(delta));
        if !mutant!(self, ClearedMidway) {
            let gone: Vec<_> = l.followers.extract_if(.., |_, f| lost(f)).collect();
            let ballot = l.ballot;
            fx.sends
                .extend(gone.into_iter().map(|(node, f)| (node, crate::Msg::Dropped { ballot, session: f.session })));
        }
        let record = self.next_record(now, Some(floor.row()));
        self.append(now, vec![(key::floor(self.config.line), record)], false, fx);
    }

    /// How a bounded fragment has fared; of one without a bound, only what it holds.
    pub fn tally(&self, now: Now) -> Tally {
        let written = self.store.oldest().map(base::Hlc::wall);
        let oldest_ms = written.map_or(0, |at| now.wall.0.saturating_sub(at.0));
        let here = |n: fn(&Uses) -> &AtomicU64| self.uses.as_ref().map_or(0, |u| n(u).load(Ordering::Relaxed));
        let (hits, misses) = (here(|u| &u.hits), here(|u| &u.misses));
        let (held, room) = (self.store.held(), self.config.room);
        let part = |held: u64, most: Option<u64>| most.map_or(0, |most| held.saturating_mul(10_000) / most.max(1));
        let full = part(held.0, room.records).max(part(held.1, room.bytes));
        let (held, full) = (held.1, u32::try_from(full).unwrap_or(u32::MAX));
        Tally { held, full, oldest_ms, hits: self.tally.hits + hits, misses: self.tally.misses + misses, ..self.tally }
    }
}
