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
use crate::table::{OVERHEAD, Seeded, counted, is_users};
use crate::uses::{Tally, USES_MAX, Uses};
use crate::{Measure, Refusal, Room, Storage};
use base::{Heads, NodeId, Now, TableId, Version};
use bytes::Bytes;
use evict::{Order, Policy, Slot};
use hashbrown::HashTable;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::hash::BuildHasher;
use std::str::FromStr;

/// Of a bound, so much is made free when a write needs room: the next ones find some.
const SLACK: u64 = 128;
/// How many go with one write beyond those that it needs gone, and with one entry of a pass.
const VICTIMS_MAX: usize = 256;
pub(crate) const PASS_MAX: usize = 4096;
/// And how many bytes of them: a pass goes in one frame.
pub(crate) const PASS_BYTES: usize = 1024 * 1024;
/// How many entries one pass makes at a time.
const PASS_ENTRIES: usize = 4;
/// So many bytes of what has to go fit into an entry beside the largest batch.
const VICTIM_BYTES_MAX: usize = 3 * 1024 * 1024;
/// How many tombstones one entry forgets.
const CLEARED_MAX: usize = 4096;
/// How many candidates a function is shown.
const SHOWN_MAX: usize = 16;

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
    Seeded(table.0).hash_one(stored)
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
        let bounded = self.config.room != Room::default();
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

    /// The order in which records go is made when this leader first writes, the oldest first.
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
        for (key, record) in puts.iter().filter(|(key, _)| is_users(key)) {
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
        let (used, counts) = (uses.take(), uses.counts());
        self.count_uses(used, counts);
    }

    fn count_uses(&mut self, used: Vec<u64>, (hits, misses): (u64, u64)) {
        self.tally.hits = self.tally.hits.saturating_add(hits);
        self.tally.misses = self.tally.misses.saturating_add(misses);
        if let Role::Leading(l) = &mut self.role
            && let Some(evictor) = l.evictor.as_mut().filter(|_| self.config.evict.counts_reads())
        {
            used.into_iter().take(USES_MAX).for_each(|hash| evictor.touch(hash));
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
    pub(crate) fn on_used(&mut self, from: NodeId, session: u64, used: Vec<u64>, hits: u64, misses: u64) {
        let Role::Leading(l) = &self.role else { return };
        if l.followers.get(&from).is_some_and(|f| f.session == session && f.joined()) {
            self.count_uses(used, (hits, misses));
        }
    }

    /// The records that a batch would put, and the tombstones of what has to go for them. Whatever else the fragment holds has its room
    /// by now: this is the leader's latest state.
    pub(crate) fn bounded(&mut self, mut puts: Vec<(Bytes, Record)>) -> Result<Vec<(Bytes, Record)>, Refusal> {
        let room = self.room_now();
        if room == Room::default() {
            return Ok(puts);
        }
        // From the first write on: what is read before there is anything to evict counts, too.
        self.mind_evictor();
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
        if self.config.evict == Evict::Reject || !self.config.room.holds(after) {
            return Err(Refusal::TableFull { what });
        }
        if !room.holds(after) {
            return Err(Refusal::NoSpace);
        }
        if self.config.stand_in && self.store.cleared() > self.cleared_max().saturating_mul(16) {
            // It forgets nothing, and may have to go on for long.
            return Err(Refusal::TableFull { what });
        }
        // Where there is more than there should be, the write makes it no more; the rest is for the pass.
        let most = |bound: Option<u64>, held: u64| bound.map(|bound| bound.max(held));
        let room = Room { records: most(room.records, held.0), bytes: most(room.bytes, held.1) };
        let (gone, fits) = self.victims(then, room, (usize::MAX, VICTIMS_MAX), &puts);
        if !fits {
            self.take_back(gone.into_iter().chain(puts));
            return Err(Refusal::TableFull { what });
        }
        self.tally.evicted += gone.len() as u64;
        puts.extend(gone);
        Ok(puts)
    }

    /// Tombstones of what goes, so that of `held` no more is left than the room has, and somewhat less; at most so many for the one and for
    /// the other. And whether it is so.
    fn victims(
        &mut self,
        mut held: (u64, u64),
        room: Room,
        (most, more): (usize, usize),
        puts: &[(Bytes, Record)],
    ) -> (Vec<(Bytes, Record)>, bool) {
        // What is replaced is kept whole until that is committed: values on disc are read for it.
        let fetches = if self.store.form() == Storage::DiscOnly { FETCHES_MAX } else { usize::MAX };
        let (most, more) = (most.max(1), more.min(fetches));
        let low = |most: Option<u64>| most.map(|most| most - most / SLACK);
        let low = Room { records: low(room.records), bytes: low(room.bytes) };
        let (mut gone, mut bytes) = (Vec::new(), 0);
        while (!room.holds(held) && gone.len() < most && bytes < VICTIM_BYTES_MAX)
            || (!low.holds(held) && gone.len() < more && bytes < PASS_BYTES)
        {
            let Some(key) = self.next_victim() else { break };
            // What is written anew has no size before it, and comes back into the order with its entry.
            let written = puts.iter().any(|(k, _)| *k == key);
            let Some(kept) = self.store.get(&key).filter(|_| !written) else { continue };
            let size = counted(&key, kept.value_bytes());
            held = (held.0.saturating_sub(size.0), held.1.saturating_sub(size.1));
            let hlc = if mutant!(self, ClearedAnew) { self.hlc.next() } else { kept.hlc() };
            bytes += key.len() + 64;
            gone.push((key, Record::cleared(self.next_version(), hlc)));
        }
        (gone, room.holds(held))
    }

    /// What was chosen, or passed over because it was to be written, stays where it is.
    fn take_back(&mut self, gone: impl Iterator<Item = (Bytes, Record)>) {
        for (key, _) in gone {
            let held = self.store.get(&key).filter(|kept| !kept.is_tombstone() && is_users(&key));
            let Some(kept) = held else { continue };
            let (size, expires) = (counted(&key, kept.value_bytes()).1, kept.expires().map(|at| at.0));
            if let Role::Leading(l) = &mut self.role
                && let Some(evictor) = &mut l.evictor
            {
                evictor.note(&key, spot(self.config.fragment.table, &key), size, expires);
            }
        }
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
        let room = self.room_now();
        let bounded = room != Room::default() && self.config.evict != Evict::Reject;
        if bounded && !room.holds(self.store.held()) {
            self.mind_evictor();
        }
        for _ in 0..PASS_ENTRIES {
            let Role::Leading(l) = &self.role else { return };
            let held = self.store.held();
            if !bounded || room.holds(held) || !l.ready || l.is_busy() || self.too_few_to_write().is_some() {
                return;
            }
            // Not all at once, where there is much.
            let (gone, _) = self.victims(held, room, (0, PASS_MAX), &[]);
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
        let room = self.room_now();
        let records = room.records.unwrap_or(u64::MAX).min(room.bytes.map_or(u64::MAX, |bytes| bytes / OVERHEAD));
        usize::try_from(records / 16).unwrap_or(usize::MAX).max(least)
    }

    /// Forgets the oldest tombstones of what the table itself took out, when there are many: whoever does not know of them, and comes back,
    /// is told all there is.
    pub(crate) fn shed(&mut self, now: Now, fx: &mut Effects) {
        let dropped = matches!(&self.role, Role::Leading(l) if l.clears.is_some());
        let most = if dropped { 0 } else { self.cleared_max() };
        let bounded = dropped || self.config.room != Room::default();
        let Role::Leading(l) = &mut self.role else { return };
        if !bounded || self.config.stand_in || !l.ready || l.commit == 0 || self.store.cleared() <= most {
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
            let gone: Vec<NodeId> = l.followers.iter().filter(|(_, f)| lost(f)).map(|(node, _)| *node).collect();
            gone.into_iter().for_each(|node| l.end_session(node, fx));
        }
        let record = self.next_record(now, Some(floor.row()));
        self.append(now, vec![(key::floor(self.config.line), record)], false, fx);
    }

    /// What was counted here since the start, whoever leads now: none of it goes back.
    pub fn counted(&self) -> Tally {
        let (hits, misses) = self.uses.as_ref().map_or((0, 0), Uses::seen);
        self.told.and(self.tally).and(Tally { hits, misses, ..Tally::default() })
    }

    /// How many records had to go since this copy came to lead.
    pub fn evicted(&self) -> u64 {
        self.tally.evicted
    }

    /// How a bounded fragment has fared; of one without a bound, only what it holds.
    pub fn tally(&self, now: Now) -> Tally {
        let written = self.store.oldest().map(base::Hlc::wall);
        let oldest_ms = written.map_or(0, |at| now.wall.0.saturating_sub(at.0));
        let (hits, misses) = self.uses.as_ref().map_or((0, 0), Uses::seen);
        let (held, room) = (self.store.held(), self.config.room);
        let part = |held: u64, most: Option<u64>| most.map_or(0, |most| held.saturating_mul(10_000) / most.max(1));
        let full = part(held.0, room.records).max(part(held.1, room.bytes));
        let (held, full) = (held.1, u32::try_from(full).unwrap_or(u32::MAX));
        Tally {
            held,
            full,
            oldest_ms,
            hits: self.tally.hits.saturating_add(hits),
            misses: self.tally.misses.saturating_add(misses),
            ..self.tally
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::lease::tests::feed;
    use crate::open::tests::{at, config};
    use crate::{Answer, Batch, Input, Meta, Msg, Outcome, Range, Reply, Request, SessionId, Store, Write};
    use std::sync::Arc;

    /// One that leads alone.
    pub(crate) fn leading(evict: Evict, room: Room) -> Copy {
        let oldest_but = |all: &[Candidate]| all.iter().position(|c| c.key != "dear");
        let functions = crate::Functions::default().with_evict("spares", Arc::new(oldest_but));
        let config = crate::Config { founders: vec![NodeId(1)], evict, room, functions, ..config() };
        let mut copy = Copy::new(at(0), config, Meta::default(), Store::default());
        [5000, 5100].into_iter().for_each(|ms| drop(feed(&mut copy, ms, Input::Tick)));
        copy
    }

    /// Sends a batch, and tells whether it was refused for want of room.
    fn ask(copy: &mut Copy, ms: u64, number: u64, writes: Vec<Write>) -> bool {
        let answer = ask_for(copy, ms, number, writes);
        matches!(answer, Some(Answer::Outcome(Outcome::Failed(Refusal::TableFull { .. }), _)))
    }

    /// Sends a batch; the answer, if there is one by when it is on disc.
    pub(crate) fn ask_for(copy: &mut Copy, ms: u64, number: u64, writes: Vec<Write>) -> Option<Answer> {
        let branches = vec![copy.lead().expect("it leads").branch];
        let session = SessionId { node: NodeId(1), incarnation: 1 };
        let batch = Batch { writes, ..Batch::default() };
        let mut fx = Effects::default();
        copy.handle(
            at(ms),
            Input::Write(number, Request { session, number, done_through: number, branches, batch }),
            &mut fx,
        );
        copy.handle(at(ms), Input::Durable(u64::MAX), &mut fx);
        fx.replies.into_iter().find_map(|(_, reply)| if let Reply::Write(answer) = reply { Some(answer) } else { None })
    }

    pub(crate) fn put(key: &str, bytes: usize) -> Write {
        Write::Put { key: key.to_string().into(), value: vec![0; bytes].into(), ttl_ms: None }
    }

    /// What of these keys is there.
    fn there(copy: &Copy, keys: &str) -> String {
        let live =
            |k: &char| copy.store().get(&key::user(k.to_string().as_bytes())).is_some_and(|kept| !kept.is_tombstone());
        keys.chars().filter(live).collect()
    }

    /// Whatever is asked for, it never holds more; what it has room for is taken, and nothing is done by halves.
    #[test]
    fn a_fragment_never_holds_more_than_it_has_room_for() {
        let all =
            [Evict::Fifo, Evict::Lru, Evict::Sieve, Evict::S3Fifo, Evict::TtlFirst, Evict::Function("spares".into())];
        for evict in all.into_iter().chain([Evict::Reject]) {
            let most = 20 * OVERHEAD + 1000;
            let mut copy = leading(evict.clone(), Room { records: Some(20), bytes: Some(most) });
            let (mut random, mut full) = (7u64, 0);
            for number in 1..=3000 {
                let mut next = |below: u64| {
                    random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    (random >> 33) % below
                };
                let mut write = || match next(120) * next(3) {
                    0 => Write::Delete { key: next(40).to_string().into() },
                    bytes => put(&next(40).to_string(), bytes as usize),
                };
                let writes = vec![write(), write()];
                let keys: Vec<Bytes> = writes.iter().map(|w| key::user(w.key())).collect();
                let put = !matches!(writes[1], Write::Delete { .. });
                let before = copy.store().live_size();
                let refused = ask(&mut copy, 6000 + number, number, writes);
                assert!(copy.store().held().0 <= 20 && copy.store().held().1 <= most, "{evict}");
                if refused {
                    assert_eq!((before, &evict), (copy.store().live_size(), &Evict::Reject));
                    full += 1;
                } else {
                    let kept = copy.store().get(&keys[1]);
                    assert_eq!(
                        kept.is_some_and(|kept| !kept.is_tombstone()),
                        put,
                        "{evict}: what was asked for is done"
                    );
                }
                if number % 7 == 0 {
                    drop(feed(&mut copy, 6000 + number, Input::Read(1, vec![Range::key(next(40).to_string().into())])));
                }
            }
            assert!((100..2900).contains(&full) || evict != Evict::Reject, "{full}");
            // One that holds more than it may, since its bound was lowered, is within it after a pass; or takes what makes it smaller.
            copy.set_options(|config| config.room = Room { records: Some(2), bytes: Some(4 * OVERHEAD) });
            drop(feed(&mut copy, 10_000, Input::Tick));
            assert!(copy.store().held().0 <= 2 || evict == Evict::Reject, "{evict}");
            let mut stored = copy.store().space(crate::Space::User).filter(|(_, kept)| !kept.is_tombstone());
            let key = stored.next().map(|(key, _)| key.slice(1..)).expect("one is left");
            drop(stored);
            assert!(!ask(&mut copy, 10_001, 9000, vec![Write::Put { key, value: Bytes::new(), ttl_ms: None }]));
        }
    }

    #[test]
    fn each_policy_takes_what_it_says() {
        // a is the oldest, b expires first, c was not read, d is to be kept by the function.
        let cases =
            [("fifo", "bcdx"), ("lru", "abdx"), ("sieve", "abdx"), ("ttl-first", "acdx"), ("function:spares", "bcdx")];
        for (evict, left) in cases {
            let mut copy = leading(evict.parse().expect("a policy"), Room { records: Some(4), bytes: None });
            for (number, k) in (1..).zip("abcd".chars()) {
                let ttl_ms = (k == 'b').then_some(60_000);
                let write = Write::Put { key: k.to_string().into(), value: "v".into(), ttl_ms };
                assert!(!ask(&mut copy, 6000 + number, number, vec![write]));
            }
            for k in ["a", "b", "d"] {
                feed(&mut copy, 6010, Input::Read(1, vec![Range::key(k.into())]));
            }
            assert!(!ask(&mut copy, 6020, 9, vec![put("x", 1)]));
            assert_eq!(there(&copy, "abcdx"), left, "{evict}");
        }
        // One that will not choose any more makes the table full; one that is not there is taken for fifo.
        let mut copy = leading(Evict::Function("spares".into()), Room { records: Some(1), bytes: None });
        assert!(!ask(&mut copy, 6000, 1, vec![put("dear", 1)]) && ask(&mut copy, 6001, 2, vec![put("x", 1)]));
        assert!(!ask(&mut copy, 6002, 3, vec![put("dear", 5)]), "it may change");
        let mut copy = leading(Evict::Function("gone".into()), Room { records: Some(1), bytes: None });
        assert!(!ask(&mut copy, 6000, 1, vec![put("dear", 1)]) && !ask(&mut copy, 6001, 2, vec![put("x", 1)]));
    }

    #[test]
    fn what_is_larger_than_the_bound_is_refused_and_nothing_goes_for_it() {
        let mut copy = leading(Evict::Lru, Room { records: None, bytes: Some(3 * OVERHEAD) });
        assert!(!ask(&mut copy, 6000, 1, vec![put("a", 10)]));
        assert!(ask(&mut copy, 6001, 2, vec![put("b", 5000)]));
        assert_eq!(there(&copy, "ab"), "a");
        // Three at once are within it only if nothing else is.
        assert!(!ask(&mut copy, 6002, 3, vec![put("c", 10), put("d", 10)]));
        assert_eq!(there(&copy, "abcd"), "cd");
    }

    /// Tombstones of what had to go are few, and go although a member is missing, who begins anew if it comes back; those of users stay.
    #[test]
    fn tombstones_of_what_had_to_go_do_not_wait_for_the_missing() {
        let (mut copy, start) = crate::lease::tests::leading();
        let (evict, room) = (Evict::Fifo, Room { records: Some(10), bytes: None });
        copy.set_options(|config| {
            (config.evict, config.room) = (evict, room);
            config.timing.cleared_min = 16;
        });
        let gone = Input::View { view: [].into(), dead: [].into(), gone: [].into(), flapping: [].into(), whole: false };
        feed(&mut copy, start, gone);
        let old = copy.store().heads().clone();
        feed(&mut copy, start + 2000, Input::Tick);
        feed(&mut copy, start + 3000, Input::Tick);
        assert!(!ask(&mut copy, start + 3000, 1, vec![put("mine", 1)]));
        assert!(!ask(&mut copy, start + 3000, 2, vec![Write::Delete { key: "mine".into() }]));
        for number in 3..1000 {
            assert!(!ask(&mut copy, start + 3000, number, vec![put(&number.to_string(), 1)]));
            assert!(copy.store().cleared() <= 17, "{}", copy.store().cleared());
        }
        let graves = copy.store().space(crate::Space::User).filter(|(_, kept)| kept.is_tombstone());
        let (cleared, asked): (Vec<_>, Vec<_>) = graves.partition(|(_, kept)| kept.is_cleared());
        assert_eq!((asked.len(), cleared.len() <= 17), (1, true));
        let floor = copy.store().floor();
        assert!(floor.is_beyond(&old, copy.store().heads()) && floor.purged.is_empty());
        assert!(!floor.is_beyond(copy.store().heads(), copy.store().heads()));
        assert!(!floor.is_beyond(&Heads::default(), copy.store().heads()), "who has nothing has nothing to lose");
    }

    /// The leader hears of what is read at a follower; what a stranger says does not count.
    #[test]
    fn reads_at_followers_count() {
        for (session, left) in [(7, "acx"), (8, "bcx")] {
            let (mut copy, start) = crate::lease::tests::leading();
            copy.set_options(|config| {
                (config.evict, config.room) = (Evict::Lru, Room { records: Some(3), bytes: None })
            });
            let say = |copy: &mut Copy, msg| drop(feed(copy, start + 10, Input::Msg(NodeId(2), msg)));
            for (number, k) in (1..).zip(["a", "b", "c"]) {
                ask(&mut copy, start + number, number, vec![put(k, 1)]);
            }
            let used = vec![spot(base::TableId(1), &key::user(b"a"))];
            say(&mut copy, Msg::Used { session, used, hits: 5, misses: 2 });
            ask(&mut copy, start + 11, 9, vec![put("x", 1)]);
            assert_eq!(there(&copy, "abcx"), left);
            let tally = copy.tally(at(start + 12));
            assert_eq!((tally.hits, tally.misses, tally.evicted), if session == 7 { (5, 2, 1) } else { (0, 0, 1) });
        }
    }

    #[test]
    fn policies_read_back_as_printed() {
        for text in ["reject", "fifo", "lru", "sieve", "s3-fifo", "ttl-first", "function:mine"] {
            assert_eq!(text.parse::<Evict>().map(|evict| evict.to_string()), Ok(text.into()));
        }
        for text in ["", "LRU", "function:", "random"] {
            assert!(text.parse::<Evict>().is_err(), "{text}");
        }
    }
}
