//! Delegations: a directory that one mount alone works in it has to itself. What it does there is acknowledged at once, from
//! what it knows, and lands in the tables in order, many operations in a batch ([`crate::land`]). Whoever else comes asks for the
//! directory back first ([`crate::recall`]).
//!
//! **Nobody else changes what a mount has to itself**: every batch of another mount holds only if no delegation stands that
//! it did not look at. **What is acknowledged early is checked again when it lands**, so that a mount whose directory was taken, since
//! it did not answer, overwrites nothing: what cannot land any more becomes files beside the others ([`crate::salvage`]).
//!
//! Locks are taken in this order: the gate, the line, the overlay, the scope.

use crate::error::FsError;
use crate::fs::{Fs, Ino, Kind, TRIES_MAX, first, lock, pause, refused};
use crate::land::Line;
use crate::overlay::{self, Overlay, is_early};
use crate::record::{self, Inode, Place};
use crate::salvage::Lost;
use crate::tidy::is_left_out;
use base::Version;
use bytes::Bytes;
use client::{Batch, Check, Outcome, Range, Record, Refusal, Rows, Write};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// How many directories a mount has to itself, at most.
pub(crate) const SCOPE_MAX: usize = 1024;
/// After so many operations in a second a mount wants a directory to itself.
const WARM: u32 = 3;
const WARM_FOR: Duration = Duration::from_secs(1);
/// Of how many inodes is known how often they were used.
const HEAT_MAX: usize = 1024;
/// Of how many inodes is known that all their names are in directories of this mount's own.
const COVERED_MAX: usize = 100_000;
/// So long a mount does without delegations that was refused room.
const SHUT_FOR: Duration = Duration::from_secs(10);
/// So long an operation is tried again whose directories others took, or gave back, meanwhile.
const AGAIN_FOR: Duration = Duration::from_secs(10);
/// It waits a little longer each time, and after so many as at first.
const AGAIN_PAUSES: usize = 8;
/// So often something is read beside what lands, before nothing lands meanwhile.
const READS_MAX: usize = 8;

/// What wakes the tasks of a mount.
#[derive(Default)]
pub(crate) struct Signals {
    /// Something is to land.
    pub pending: Notify,
    /// There is enough of it for a batch.
    pub ripe: Notify,
    /// Another asks for a directory, or this mount wants one.
    pub keeper: Notify,
    /// Something could not land.
    pub lost: Notify,
}

/// What a mount has to itself.
#[derive(Default)]
pub(crate) struct Scope {
    /// Directories, and when they were used last.
    pub dirs: HashMap<Ino, Instant>,
    /// Inodes all of whose names are in those.
    pub covered: HashSet<Ino>,
    heat: HashMap<Ino, (Instant, u32)>,
    pub wanted: BTreeSet<Ino>,
    /// Until when it does without those.
    pub banned: HashMap<Ino, Instant>,
    /// Which write put its row into the table, and what is on its way there.
    pub row: Option<Version>,
    pub sent: Option<Bytes>,
    serial: u64,
    /// The row has to be written anew.
    pub dirty: bool,
    /// Requests of others that are answered with it.
    pub answered: Vec<Bytes>,
    shut_until: Option<Instant>,
    /// The mount ends.
    closed: bool,
}

/// What another mount has to itself, as of which version of its row.
pub(crate) type Known = (Version, Arc<HashSet<Ino>>);

/// Everything about delegations of one mount.
#[derive(Default)]
pub(crate) struct Delegations {
    pub overlay: Mutex<Overlay>,
    pub scope: Mutex<Scope>,
    /// Held to read by every operation, to write by whoever changes what this mount has to itself.
    pub gate: tokio::sync::RwLock<()>,
    pub line: tokio::sync::Mutex<Line>,
    pub signals: Arc<Signals>,
    /// Other mounts have something to themselves, as far as is known.
    pub others: AtomicBool,
    /// What they have, by session.
    pub scopes: Mutex<HashMap<u64, Known>>,
    /// What could not land.
    pub lost: Mutex<Lost>,
    pub salvaging: tokio::sync::Mutex<()>,
    /// A test's: requests are not answered.
    #[cfg(test)]
    pub frozen: AtomicBool,
}

/// What a batch touches.
pub(crate) struct Touched {
    /// Inodes that are there already.
    pub inos: BTreeSet<Ino>,
    /// Of those, the ones that are changed.
    changed: BTreeSet<Ino>,
    /// Inodes that it makes, with their names.
    pub fresh: BTreeSet<Ino>,
    /// Records of the whole filesystem, or writes that need the leader.
    common: bool,
}

/// How the kernel of this machine learns of a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Told {
    /// From the reply to whoever asked for it. Where this mount is alone it is acknowledged before it lands.
    Replies,
    /// It need not know.
    Nothing,
    /// It is told as of what others do.
    Pushes,
}

/// How much of what a batch touches this mount has to itself.
enum Reach {
    Nothing,
    Part,
    All,
}

/// What became of an attempt.
enum Attempt {
    Done(Result<Version, u32>),
    /// All is to land first.
    Land,
    /// What this mount had to itself was taken.
    Taken,
    /// Others have some of it to themselves.
    Others(Vec<(u64, Ino)>),
    Again,
}

/// Whose record it is: an inode's, everybody's, or (`Some(0)`) of no meaning here.
fn owner(key: &Bytes) -> Option<Ino> {
    match (record::ino_of(key), key.get(8)) {
        (0, Some(b'U' | b'H')) => key.get(9..17).map(|_| record::ino_of(&key.slice(9..))),
        (0, Some(b'G' | b'Y')) => Some(0),
        (0, _) => None,
        (ino, _) => Some(ino),
    }
}

impl Touched {
    pub(crate) fn of(checks: &[Check], writes: &[Write]) -> Touched {
        let puts = |kind: u8| {
            let put = move |w: &Write| match w {
                Write::Put { key, .. } if key.get(8) == Some(&kind) => {
                    Some(record::ino_of(key)).filter(|ino| *ino != 0)
                }
                _ => None,
            };
            writes.iter().filter_map(put).collect::<BTreeSet<Ino>>()
        };
        let fresh: BTreeSet<Ino> = puts(b'I').intersection(&puts(b'P')).copied().collect();
        let checked = checks.iter().map(|check| match check {
            Check::Absent(key) | Check::Present(key) | Check::AtVersion(key, _) | Check::Count(key, _) => key,
        });
        let early = |w: &Write| match w {
            Write::Put { ttl_ms, .. } => ttl_ms.is_none(),
            Write::Bump { by, .. } => *by == client::Bump::Max,
            other => matches!(other, Write::Delete { .. }),
        };
        let keys: Vec<&Bytes> = checked.chain(writes.iter().map(Write::key)).collect();
        let there = |ino: &Ino| *ino != 0 && !fresh.contains(ino);
        Touched {
            inos: keys.iter().filter_map(|key| owner(key)).filter(there).collect(),
            changed: writes.iter().filter_map(|w| owner(w.key())).filter(there).collect(),
            common: keys.iter().any(|key| owner(key).is_none()) || !writes.iter().all(early),
            fresh,
        }
    }
}

/// The directories that a row of places names.
pub(crate) fn parents(rows: &Rows) -> Vec<Ino> {
    let place = |row: &Record| record::decode::<Place>(row.value.as_deref().unwrap_or_default()).ok();
    rows.rows.iter().filter_map(|(_, row)| place(row)).map(|place| place.parent).collect()
}

pub(crate) fn places_of(inos: impl Iterator<Item = Ino>) -> Vec<Range> {
    inos.map(|ino| Range::prefix(record::places(ino), crate::names::LINKS_MAX as u32 + 1)).collect()
}

impl Fs {
    /// What the version of a key is by now that was read before its write landed.
    pub(crate) fn real(&self, key: &Bytes, version: Version) -> Version {
        if is_early(version) { lock(&self.delegations.overlay).real(key, version) } else { version }
    }

    /// Ranges of the metadata with what this mount has acknowledged, all at one moment.
    pub(crate) async fn read_own(&self, ranges: Vec<Range>) -> Result<Vec<Rows>, FsError> {
        let (overlay, rows) = self.snapshot(&ranges).await?;
        if overlay.is_empty() {
            return Ok(rows);
        }
        Ok(ranges.iter().zip(rows).map(|(range, rows)| overlay.merge(range, rows)).collect())
    }

    /// Rows of the tables, with enough of them for what the overlay hides, and the overlay that belongs to them.
    async fn snapshot(&self, ranges: &[Range]) -> Result<(MutexGuard<'_, Overlay>, Vec<Rows>), FsError> {
        for round in 0.. {
            // A read that takes longer than what lands meanwhile would never end.
            let _still = if round >= READS_MAX { Some(self.delegations.line.lock().await) } else { None };
            let (epoch, wide) = {
                let overlay = lock(&self.delegations.overlay);
                (overlay.epoch(), ranges.iter().map(|range| overlay.widened(range)).collect::<Vec<_>>())
            };
            let rows = self.meta.read(&[0; 8], wide.clone()).await?;
            let overlay = lock(&self.delegations.overlay);
            let enough = |(range, wide): (&Range, &Range)| overlay.widened(range).limit <= wide.limit;
            if overlay.epoch() == epoch && ranges.iter().zip(&wide).all(enough) {
                return Ok((overlay, rows));
            }
        }
        Err(FsError::Unavailable)
    }

    /// A batch on the metadata, with the version that it was given; `Err(i)`: check `i` did not hold. What this mount has to itself and was
    /// asked to do ([`Told::Replies`]) is acknowledged before it lands; the version is an early one then, see [`Fs::real`].
    pub(crate) async fn commit_as(
        &self,
        checks: Vec<Check>,
        writes: Vec<Write>,
        sync: bool,
        told: Told,
    ) -> Result<Result<Version, u32>, FsError> {
        let touched = Touched::of(&checks, &writes);
        let mut batch = Batch { checks, writes, sync };
        let begun = Instant::now();
        for round in 0.. {
            if round >= TRIES_MAX && begun.elapsed() > AGAIN_FOR {
                break;
            }
            {
                let overlay = lock(&self.delegations.overlay);
                batch.checks = batch.checks.iter().map(|check| overlay.real_check(check)).collect();
            }
            match self.attempt(&batch, &touched, told).await? {
                Attempt::Done(Ok(version)) if sync && is_early(version) => {
                    return self.land_upto(version.seq, true).await.map(|()| Ok(version));
                }
                Attempt::Done(done) => return Ok(done),
                Attempt::Land => self.land_all(false).await?,
                Attempt::Taken => self.give_way().await?,
                Attempt::Others(blocked) => self.recall(blocked).await?,
                Attempt::Again => pause(round % AGAIN_PAUSES).await,
            }
        }
        Err(FsError::Unavailable)
    }

    async fn attempt(&self, batch: &Batch, touched: &Touched, told: Told) -> Result<Attempt, FsError> {
        let gate = self.delegations.gate.read().await;
        let early = told == Told::Replies && !overlay::is_large(batch);
        match self.reach(touched).await? {
            Reach::All if early => self.acknowledge(batch, touched).await,
            Reach::Nothing => self.directly(batch, touched, told).await,
            // What keeps order, too: it relies on what it has done.
            Reach::All | Reach::Part => {
                drop(gate);
                let _gate = self.delegations.gate.write().await;
                self.land_held().await?;
                lock(&self.delegations.scope).covered.clear();
                let checks = {
                    let overlay = lock(&self.delegations.overlay);
                    batch.checks.iter().map(|check| overlay.real_check(check)).collect()
                };
                self.directly(&Batch { checks, ..batch.clone() }, touched, told).await
            }
        }
    }

    async fn reach(&self, touched: &Touched) -> Result<Reach, FsError> {
        let (mut inside, mut unknown) = (0, Vec::new());
        {
            let mut scope = lock(&self.delegations.scope);
            if scope.dirs.is_empty() {
                return Ok(Reach::Nothing);
            }
            if scope.is_shut() {
                // Nothing more is acknowledged early, and what is known of files need not hold afterwards.
                scope.covered.clear();
                return Ok(Reach::Nothing);
            }
            for ino in &touched.inos {
                if scope.dirs.contains_key(ino) || scope.covered.contains(ino) {
                    inside += 1;
                } else {
                    unknown.push(*ino);
                }
            }
        }
        if !unknown.is_empty() {
            let mut ranges = places_of(unknown.iter().copied());
            ranges.extend(unknown.iter().map(|ino| Range::key(record::inode(*ino))));
            let mut places = self.read_own(ranges).await?;
            let inodes = places.split_off(unknown.len());
            let mut scope = lock(&self.delegations.scope);
            if scope.covered.len() > COVERED_MAX {
                scope.covered.clear();
            }
            for ((ino, places), inode) in unknown.into_iter().zip(places).zip(inodes) {
                let value = first(Some(inode)).and_then(|row| row.value);
                let inode = value.map(|value| record::decode::<Inode>(&value)).transpose()?;
                // Another may have a directory to itself that lies in one of this mount's.
                let is_file = inode.is_some_and(|inode| inode.kind != Kind::Directory);
                let parents = parents(&places);
                if is_file && !parents.is_empty() && parents.iter().all(|dir| scope.dirs.contains_key(dir)) {
                    scope.covered.insert(ino);
                    inside += 1;
                }
            }
        }
        Ok(match inside {
            0 => Reach::Nothing,
            n if n == touched.inos.len() && !touched.common => Reach::All,
            _ => Reach::Part,
        })
    }

    /// Checks a batch by what is known here, and acknowledges it.
    async fn acknowledge(&self, batch: &Batch, touched: &Touched) -> Result<Attempt, FsError> {
        let mut ranges: Vec<Range> = batch.checks.iter().map(overlay::range_of).collect();
        ranges.push(Range::key(record::delegation(self.session)));
        let (mut overlay, rows) = self.snapshot(&ranges).await?;
        let row = rows.last().and_then(|r| r.rows.first()).map(|(_, row)| row);
        if !lock(&self.delegations.scope).is_mine(row) {
            return Ok(Attempt::Taken);
        }
        if overlay.is_full() {
            return Ok(Attempt::Land);
        }
        for (n, (check, rows)) in batch.checks.iter().zip(rows).enumerate() {
            if !overlay::holds(check, &overlay.merge(&ranges[n], rows)) {
                return Ok(Attempt::Done(Err(n as u32)));
            }
        }
        lock(&self.delegations.scope).follow(batch, touched);
        let keys: Vec<Bytes> = batch.writes.iter().map(|w| w.key().clone()).collect();
        self.watch.begin(&keys);
        let version = overlay.push(batch.checks.clone(), batch.writes.clone());
        if overlay.is_ripe() {
            self.delegations.signals.ripe.notify_one();
        }
        drop(overlay);
        self.delegations.signals.pending.notify_one();
        Ok(Attempt::Done(Ok(version)))
    }

    /// Sends a batch by itself. It holds only if nobody has anything of it alone.
    async fn directly(&self, batch: &Batch, touched: &Touched, told: Told) -> Result<Attempt, FsError> {
        let waits = {
            let overlay = lock(&self.delegations.overlay);
            touched.inos.iter().any(|ino| overlay.touches(*ino))
        };
        if waits && !is_left_out("order") {
            // It comes after what was acknowledged before.
            return Ok(Attempt::Land);
        }
        let mut checks = batch.checks.clone();
        if !touched.inos.is_empty() && !is_left_out("others") {
            let (blocked, stand) = self.others(&touched.inos).await?;
            if !blocked.is_empty() {
                return Ok(Attempt::Others(blocked));
            }
            checks.extend(stand);
        }
        let known = told != Told::Pushes;
        let keys: Vec<Bytes> = if known { batch.writes.iter().map(|w| w.key().clone()).collect() } else { Vec::new() };
        self.watch.begin(&keys);
        let outcome = self.meta.batch(&[0; 8], Batch { checks, writes: batch.writes.clone(), sync: batch.sync }).await;
        let done = match &outcome {
            Ok(Outcome::Done { version, .. }) => Some(*version),
            _ => None,
        };
        self.watch.end(&keys, done.filter(|_| known));
        match outcome? {
            Outcome::Done { version, .. } => {
                lock(&self.delegations.scope).without_removed(batch);
                self.warm(touched);
                Ok(Attempt::Done(Ok(version)))
            }
            Outcome::Failed(Refusal::Check(index)) if index as usize >= batch.checks.len() => Ok(Attempt::Again),
            Outcome::Failed(Refusal::Check(index)) => Ok(Attempt::Done(Err(index))),
            Outcome::Failed(refusal) => Err(refused(&refusal)),
            Outcome::Unknown => Err(FsError::Unavailable),
        }
    }

    /// Where this mount works again and again, it would like to be alone.
    fn warm(&self, touched: &Touched) {
        if !self.options.delegate {
            return;
        }
        let (now, mut scope) = (Instant::now(), lock(&self.delegations.scope));
        if scope.is_shut() {
            return;
        }
        if scope.heat.len() > HEAT_MAX {
            scope.heat.clear();
        }
        let mut wants = false;
        for ino in &touched.changed {
            let heat = scope.heat.entry(*ino).or_insert((now, 0));
            if now - heat.0 > WARM_FOR {
                *heat = (now, 0);
            }
            heat.1 += 1;
            if heat.1 >= WARM {
                scope.heat.remove(ino);
                wants |= scope.wanted.insert(*ino);
            }
        }
        if wants {
            self.delegations.signals.keeper.notify_one();
        }
    }
}

impl Scope {
    /// Is there no room, or no more time, for anything to be acknowledged early?
    pub(crate) fn is_shut(&self) -> bool {
        self.closed || self.shut_until.is_some_and(|until| Instant::now() < until)
    }

    /// For a while nothing is acknowledged early: without room it is better to hear of it at once.
    pub(crate) fn shut(&mut self) {
        self.shut_until = Some(Instant::now() + SHUT_FOR);
    }

    /// Does the mount end?
    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    /// From now on nothing is.
    pub(crate) fn close(&mut self) {
        self.closed = true;
        self.wanted.clear();
    }

    /// Is this row the one that this mount wrote? What a heal makes of it is another.
    pub(crate) fn is_mine(&self, row: Option<&Record>) -> bool {
        row.is_some_and(|row| Some(row.version) == self.row || (self.sent.is_some() && row.value == self.sent))
    }

    /// The rows with these directories, too, if they are to be this mount's: the one that all read, and the one that says which.
    pub(crate) fn next_rows(&mut self, more: &[Ino]) -> (Bytes, Bytes) {
        self.serial += 1;
        let all: Vec<Ino> = self.dirs.keys().chain(more).copied().collect();
        (format!("#{}", self.serial).into(), record::encode_scope(all))
    }

    /// What a batch makes of what this mount has to itself: a directory that it makes in one of its own is its own, too.
    fn follow(&mut self, batch: &Batch, touched: &Touched) {
        let now = Instant::now();
        for ino in &touched.inos {
            if let Some(used) = self.dirs.get_mut(ino) {
                *used = now;
            }
        }
        for write in &batch.writes {
            let Write::Put { key, .. } = write else { continue };
            if record::ino_of(key) == 0 || key.get(8) != Some(&b'K') || self.dirs.len() >= SCOPE_MAX {
                continue;
            }
            let ino = record::ino_of(&key.slice(9..));
            if touched.fresh.contains(&ino) {
                self.dirs.insert(ino, now);
                self.dirty |= !is_left_out("fresh");
            }
        }
        let is_dir = |ino: &Ino| {
            batch.writes.iter().any(|w| w.key().get(8) == Some(&b'K') && w.key().ends_with(&ino.to_be_bytes()))
        };
        self.covered.extend(touched.fresh.iter().filter(|ino| !is_dir(ino)));
        self.without_removed(batch);
    }

    /// What has lost its last name is nobody's.
    fn without_removed(&mut self, batch: &Batch) {
        for write in &batch.writes {
            if let Write::Put { key, .. } = write
                && (record::ino_of(key), key.get(8)) == (0, Some(&b'U'))
            {
                let ino = record::ino_of(&key.slice(9..));
                self.covered.remove(&ino);
                self.dirty |= self.dirs.remove(&ino).is_some();
            }
        }
    }
}
