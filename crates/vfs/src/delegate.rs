//! Delegations: a directory that one mount alone works in it has to itself. What it does there is acknowledged at once, from
//! what it knows, and lands in the tables in order, many operations in a batch. Whoever else comes asks for the directory back
//! first ([`crate::recall`]).
//!
//! **Nobody else changes what a mount has to itself**: every batch of another mount holds only if no delegation stands that
//! it did not look at. **What is acknowledged early is checked again when it lands**, so that a mount whose directory was taken, since
//! it did not answer, overwrites nothing: what cannot land any more becomes files beside the others ([`crate::salvage`]).

use crate::error::FsError;
use crate::fs::{Fs, Ino, TRIES_MAX, lock, pause, put, refused};
use crate::overlay::{self, Overlay, is_early};
use crate::record::{self, Place};
use crate::salvage::Lost;
use crate::tidy::is_left_out;
use base::Version;
use bytes::Bytes;
use client::{Batch, Check, Outcome, Range, Record, Refusal, Rows, Write};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// So long operations are gathered before they are sent, at most.
const GATHER: Duration = Duration::from_millis(5);
/// How soon is tried again where the tables did not answer.
const AGAIN: Duration = Duration::from_millis(100);
/// How many directories a mount has to itself, at most.
pub(crate) const SCOPE_MAX: usize = 1024;
/// After so many operations in a second a mount wants a directory to itself.
const WARM: u32 = 3;
const WARM_FOR: Duration = Duration::from_secs(1);
/// Of how many inodes is known how often they were used.
const HEAT_MAX: usize = 1024;
/// So long a mount does without delegations that was refused room.
const SHUT_FOR: Duration = Duration::from_secs(10);
/// So long a mount that ends waits for what it has acknowledged to land.
const LAST: Duration = Duration::from_secs(30);

/// What wakes the tasks of a mount.
#[derive(Default)]
pub(crate) struct Signals {
    /// Something is to land.
    pub pending: Notify,
    /// There is enough of it for a batch.
    pub ripe: Notify,
    /// Another asks for a directory, or this mount wants one.
    pub keeper: Notify,
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
    /// Its row as it is in the table, and as it is on its way there.
    pub row: Option<Bytes>,
    sent: Option<Bytes>,
    serial: u64,
    /// The row has to be written anew.
    pub dirty: bool,
    /// Requests of others that are answered with it.
    pub answered: Vec<Bytes>,
    shut_until: Option<Instant>,
}

/// What is on its way, one batch at a time.
#[derive(Default)]
pub(crate) struct Line {
    /// How many batches have landed: tells whether one of unknown fate has.
    marker: u64,
    marker_version: Option<Version>,
    pub row_version: Option<Version>,
    in_flight: Option<Sent>,
    /// Directories were taken: each operation is tried by itself.
    replaying: bool,
    /// Up to which operation all is on disc.
    synced: u64,
}

struct Sent {
    batch: Batch,
    folded: Option<overlay::Folded>,
    /// The row that it puts; the outer `None`: it leaves that as it is.
    row: Option<Option<Bytes>>,
}

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
    fresh: BTreeSet<Ino>,
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
    /// Others have some of it to themselves.
    Others(Vec<(u64, Ino)>),
    Again,
}

/// What became of a batch that was sent.
enum Landing {
    Landed,
    Nothing,
    /// Some of it does not hold any more.
    Lost,
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
        let mut out =
            Touched { inos: BTreeSet::new(), changed: BTreeSet::new(), fresh: BTreeSet::new(), common: false };
        let puts = |kind: u8| {
            let put = move |w: &Write| match w {
                Write::Put { key, .. } if key.get(8) == Some(&kind) && record::ino_of(key) != 0 => {
                    Some(record::ino_of(key))
                }
                _ => None,
            };
            writes.iter().filter_map(put).collect::<BTreeSet<Ino>>()
        };
        out.fresh = puts(b'I').intersection(&puts(b'P')).copied().collect();
        for write in writes {
            let early = matches!(write, Write::Put { ttl_ms: None, .. } | Write::Delete { .. })
                || matches!(write, Write::Bump { by: client::Bump::Max, .. });
            out.common |= !early;
            match owner(write.key()) {
                Some(ino) => drop(out.changed.insert(ino)),
                None => out.common = true,
            }
        }
        out.inos.clone_from(&out.changed);
        for check in checks {
            let (Check::Absent(key) | Check::Present(key) | Check::AtVersion(key, _) | Check::Count(key, _)) = check;
            match owner(key) {
                Some(ino) => drop(out.inos.insert(ino)),
                None => out.common = true,
            }
        }
        out.inos.remove(&0);
        out.inos.retain(|ino| !out.fresh.contains(ino));
        out.changed.retain(|ino| out.inos.contains(ino));
        out
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
    /// What a version is by now that was read before its write landed.
    pub(crate) fn real(&self, version: Version) -> Version {
        lock(&self.delegations.overlay).real(version)
    }

    /// Ranges of the metadata with what this mount has acknowledged, all at one moment.
    pub(crate) async fn read_own(&self, ranges: Vec<Range>) -> Result<Vec<Rows>, FsError> {
        loop {
            let (epoch, wide) = {
                let overlay = lock(&self.delegations.overlay);
                let more = |r: &Range| Range { limit: r.limit.saturating_add(overlay.hidden(r)), ..r.clone() };
                (overlay.epoch(), (!overlay.is_empty()).then(|| ranges.iter().map(more).collect()))
            };
            let rows = self.meta.read(&[0; 8], wide.unwrap_or_else(|| ranges.clone())).await?;
            let overlay = lock(&self.delegations.overlay);
            if overlay.is_empty() && overlay.epoch() == epoch {
                return Ok(rows);
            }
            if overlay.epoch() == epoch {
                return Ok(ranges.iter().zip(rows).map(|(range, rows)| overlay.merge(range, rows)).collect());
            }
        }
    }

    /// A batch on the metadata, with the version that it was given; `Err(i)`: check `i` did not hold.
    pub(crate) async fn commit_as(
        &self,
        checks: Vec<Check>,
        writes: Vec<Write>,
        sync: bool,
        told: Told,
    ) -> Result<Result<Version, u32>, FsError> {
        if checks.is_empty() && writes.is_empty() {
            return self.land_all(sync).await.map(|()| Ok(Version::default()));
        }
        let touched = Touched::of(&checks, &writes);
        let mut batch = Batch { checks, writes, sync };
        for round in 0..TRIES_MAX {
            {
                let overlay = lock(&self.delegations.overlay);
                batch.checks = batch.checks.iter().map(|check| overlay.real_check(check)).collect();
            }
            match self.attempt(&batch, &touched, told).await? {
                Attempt::Done(Ok(version)) if sync && is_early(version) => return self.made_durable(version).await,
                Attempt::Done(done) => return Ok(done),
                Attempt::Land => self.land_all(false).await?,
                Attempt::Others(blocked) => self.recall(blocked).await?,
                Attempt::Again => pause(round).await,
            }
        }
        Err(FsError::Unavailable)
    }

    async fn attempt(&self, batch: &Batch, touched: &Touched, told: Told) -> Result<Attempt, FsError> {
        let gate = self.delegations.gate.read().await;
        match self.reach(touched).await? {
            Reach::All if told == Told::Replies => self.acknowledge(batch, touched).await,
            Reach::Nothing => self.directly(batch, touched, told).await,
            // What keeps order, too: it relies on what it has done.
            Reach::All | Reach::Part => {
                drop(gate);
                let _gate = self.delegations.gate.write().await;
                self.land_held().await?;
                lock(&self.delegations.scope).covered.clear();
                self.directly(batch, touched, told).await
            }
        }
    }

    /// Has what was acknowledged land, on disc.
    async fn made_durable(&self, version: Version) -> Result<Result<Version, u32>, FsError> {
        self.land_upto(version.seq, true).await?;
        let real = self.real(version);
        // What could not land is beside its place by now, or will be: not what the caller asked for.
        if is_early(real) { Err(FsError::Unavailable) } else { Ok(Ok(real)) }
    }

    async fn reach(&self, touched: &Touched) -> Result<Reach, FsError> {
        let (mut inside, mut unknown) = (0, Vec::new());
        {
            let scope = lock(&self.delegations.scope);
            if scope.dirs.is_empty() {
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
            let rows = self.read_own(places_of(unknown.iter().copied())).await?;
            let mut scope = lock(&self.delegations.scope);
            for (ino, rows) in unknown.into_iter().zip(rows) {
                let parents = parents(&rows);
                if !parents.is_empty() && parents.iter().all(|dir| scope.dirs.contains_key(dir)) {
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
        loop {
            let (epoch, wide) = {
                let overlay = lock(&self.delegations.overlay);
                let more = |r: &Range| Range { limit: r.limit.saturating_add(overlay.hidden(r)), ..r.clone() };
                (overlay.epoch(), ranges.iter().map(more).collect())
            };
            let rows = self.meta.read(&[0; 8], wide).await?;
            let mut overlay = lock(&self.delegations.overlay);
            if overlay.epoch() != epoch {
                continue;
            }
            let mut scope = lock(&self.delegations.scope);
            let row = rows.last().and_then(|r| r.rows.first()).and_then(|(_, row)| row.value.as_ref());
            let mine = row.is_some() && (row == scope.row.as_ref() || row == scope.sent.as_ref());
            if !mine || overlay.is_full() {
                scope.dirty |= !mine;
                return Ok(Attempt::Land);
            }
            for (n, (check, rows)) in batch.checks.iter().zip(rows).enumerate() {
                let rows = overlay.merge(&ranges[n], rows);
                if !overlay::holds(check, &rows) {
                    return Ok(Attempt::Done(Err(n as u32)));
                }
            }
            scope.follow(batch, touched);
            drop(scope);
            let keys: Vec<Bytes> = batch.writes.iter().map(|w| w.key().clone()).collect();
            self.watch.begin(&keys);
            let version = overlay.push(batch.checks.clone(), batch.writes.clone());
            let ripe = overlay.is_ripe();
            drop(overlay);
            self.delegations.signals.pending.notify_one();
            if ripe {
                self.delegations.signals.ripe.notify_one();
            }
            return Ok(Attempt::Done(Ok(version)));
        }
    }

    /// Sends a batch by itself. It holds only if nobody has anything of it alone.
    async fn directly(&self, batch: &Batch, touched: &Touched, told: Told) -> Result<Attempt, FsError> {
        if !lock(&self.delegations.overlay).is_empty() && lock(&self.delegations.scope).dirs.is_empty() {
            // Taken from this mount, and not looked through yet.
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
        if scope.shut_until.is_some_and(|until| now < until) {
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

    /// Begins what a mount with delegations needs.
    pub(crate) fn keep_delegations(self: &Arc<Self>) {
        let signals = &self.delegations.signals;
        tokio::spawn(keep_landing(Arc::downgrade(self), signals.clone()));
        tokio::spawn(crate::recall::keep(Arc::downgrade(self), signals.clone()));
    }

    /// Before a mount goes: all that was acknowledged lands, however often that has to be tried.
    pub(crate) async fn land_at_last(&self) -> Result<(), FsError> {
        let begun = Instant::now();
        loop {
            let done = self.land_all(true).await;
            self.salvage().await;
            let left = lock(&self.delegations.lost).ops.len();
            match done {
                Ok(()) if left == 0 => return Ok(()),
                _ if begun.elapsed() < LAST => tokio::time::sleep(AGAIN).await,
                _ => {
                    let waiting = lock(&self.delegations.overlay).waiting() + left;
                    tracing::error!("{waiting} operations that were acknowledged are lost: the copies did not answer");
                    return Err(FsError::Unavailable);
                }
            }
        }
    }

    /// Waits until all has landed that was acknowledged. `sync`: and is on disc, with all that this mount sent before.
    pub(crate) async fn land_all(&self, sync: bool) -> Result<(), FsError> {
        let upto = lock(&self.delegations.overlay).last();
        self.land_upto(upto, false).await?;
        if !sync {
            return Ok(());
        }
        match self.meta.batch(&[0; 8], Batch { sync: true, ..Batch::default() }).await? {
            Outcome::Done { .. } => Ok(()),
            Outcome::Failed(refusal) => Err(refused(&refusal)),
            Outcome::Unknown => Err(FsError::Unavailable),
        }
    }

    /// The same of operations up to that one.
    async fn land_upto(&self, upto: u64, sync: bool) -> Result<(), FsError> {
        loop {
            let mut line = self.delegations.line.lock().await;
            if self.has_landed(upto) && (!sync || line.synced >= upto) {
                return Ok(());
            }
            let landing = self.send(&mut line, sync.then_some(upto)).await?;
            drop(line);
            match landing {
                Landing::Landed => {}
                Landing::Nothing if sync => return self.land_sync(upto).await,
                Landing::Nothing => return Ok(()),
                Landing::Lost => {
                    let _gate = self.delegations.gate.write().await;
                    let mut line = self.delegations.line.lock().await;
                    self.replay(&mut line).await?;
                }
            }
        }
    }

    /// All of it has landed, not all is on disc.
    async fn land_sync(&self, upto: u64) -> Result<(), FsError> {
        let mut line = self.delegations.line.lock().await;
        if line.synced >= upto {
            return Ok(());
        }
        let landed = lock(&self.delegations.overlay).landed();
        match self.meta.batch(&[0; 8], Batch { sync: true, ..Batch::default() }).await? {
            Outcome::Done { .. } => line.synced = line.synced.max(landed),
            Outcome::Failed(refusal) => return Err(refused(&refusal)),
            Outcome::Unknown => return Err(FsError::Unavailable),
        }
        Ok(())
    }

    fn has_landed(&self, upto: u64) -> bool {
        let scope = lock(&self.delegations.scope);
        let said = !scope.dirty && scope.answered.is_empty();
        drop(scope);
        said && lock(&self.delegations.overlay).landed() >= upto
    }

    /// The same for whoever holds the gate: nothing is acknowledged meanwhile.
    pub(crate) async fn land_held(&self) -> Result<(), FsError> {
        let mut line = self.delegations.line.lock().await;
        loop {
            match self.send(&mut line, None).await? {
                Landing::Landed => {}
                Landing::Nothing => return Ok(()),
                Landing::Lost => self.replay(&mut line).await?,
            }
        }
    }

    /// Sends what comes next. `sync`: on disc, if it ends with that operation or a later one.
    async fn send(&self, line: &mut Line, sync: Option<u64>) -> Result<Landing, FsError> {
        if line.replaying {
            return Ok(Landing::Lost);
        }
        if line.in_flight.is_none() {
            line.in_flight = self.next_batch(line);
        }
        let Some(sent) = &line.in_flight else { return Ok(Landing::Nothing) };
        let upto = sent.folded.as_ref().map_or(0, |f| f.upto);
        let sync = sync.is_some_and(|wanted| upto >= wanted);
        let batch = Batch { sync, ..sent.batch.clone() };
        let version = match self.meta.batch(&[0; 8], batch).await? {
            Outcome::Done { version, .. } => Some(version),
            Outcome::Failed(Refusal::Check(0)) => self.marked(line).await?,
            Outcome::Failed(refusal) => {
                self.shut(&refusal);
                None
            }
            // Whether it has landed the next attempt finds out.
            Outcome::Unknown => return Err(FsError::Unavailable),
        };
        let Some(sent) = line.in_flight.take() else { return Ok(Landing::Nothing) };
        let Some(version) = version else {
            line.replaying = true;
            return Ok(Landing::Lost);
        };
        line.marker += 1;
        line.marker_version = Some(version);
        if let Some(folded) = &sent.folded {
            self.watch.landed(&folded.keys, Some(version), &folded.commits);
            line.synced = if sync { folded.upto } else { line.synced };
        }
        let mut overlay = lock(&self.delegations.overlay);
        overlay.land(upto, version);
        if let Some(row) = sent.row {
            line.row_version = row.is_some().then_some(version);
            let mut scope = lock(&self.delegations.scope);
            (scope.row, scope.sent) = (row, None);
        }
        Ok(Landing::Landed)
    }

    /// A batch was refused because of its marker: did it land at an earlier attempt, and with what version?
    async fn marked(&self, line: &mut Line) -> Result<Option<Version>, FsError> {
        let rows = self.meta.read(&[0; 8], vec![Range::key(record::marker(self.session))]).await?;
        let row = rows.into_iter().flat_map(|r| r.rows).next().map(|(_, row)| row);
        let wanted = (line.marker + 1).to_be_bytes();
        let version = row.as_ref().map(|row| row.version);
        if row.is_some_and(|row| row.value.as_deref() == Some(&wanted[..])) {
            return Ok(version);
        }
        line.marker_version = version;
        Ok(None)
    }

    /// Without room it is better to hear of it at once.
    fn shut(&self, refusal: &Refusal) {
        if !matches!(refusal, Refusal::Check(_)) {
            lock(&self.delegations.scope).shut_until = Some(Instant::now() + SHUT_FOR);
        }
    }

    fn marker_check(&self, line: &Line) -> Check {
        let key = record::marker(self.session);
        line.marker_version.map_or(Check::Absent(key.clone()), |v| Check::AtVersion(key, v))
    }

    fn marker_put(&self, line: &Line) -> Write {
        put(record::marker(self.session), Bytes::copy_from_slice(&(line.marker + 1).to_be_bytes()))
    }

    pub(crate) fn row_check(&self, line: &Line) -> Check {
        let key = record::delegation(self.session);
        line.row_version.map_or(Check::Absent(key.clone()), |v| Check::AtVersion(key, v))
    }

    fn next_batch(&self, line: &Line) -> Option<Sent> {
        let overlay = lock(&self.delegations.overlay);
        let folded = overlay.fold();
        let mut scope = lock(&self.delegations.scope);
        if folded.is_none() && !scope.dirty && scope.answered.is_empty() {
            return None;
        }
        let mut batch = Batch { checks: vec![self.marker_check(line), self.row_check(line)], ..Batch::default() };
        batch.writes.push(self.marker_put(line));
        if let Some(folded) = &folded {
            batch.checks.extend(folded.checks.iter().filter(|_| !is_left_out("landing")).cloned());
            batch.writes.extend(folded.writes.iter().cloned());
        }
        batch.writes.extend(scope.answered.drain(..).map(|key| Write::Delete { key }));
        let mut row = None;
        if std::mem::take(&mut scope.dirty) {
            let value = (!scope.dirs.is_empty()).then(|| scope.next_row(&[]));
            let key = record::delegation(self.session);
            batch.writes.push(value.clone().map_or(Write::Delete { key: key.clone() }, |value| put(key, value)));
            scope.sent.clone_from(&value);
            row = Some(value);
        }
        Some(Sent { batch, folded, row })
    }

    /// What this mount had to itself it has no more. What is acknowledged and has not landed is tried, each operation by itself.
    async fn replay(&self, line: &mut Line) -> Result<(), FsError> {
        line.replaying = true;
        {
            let mut scope = lock(&self.delegations.scope);
            scope.dirs.clear();
            scope.covered.clear();
            (scope.row, scope.sent, scope.dirty) = (None, None, false);
        }
        let gone = Batch { writes: vec![Write::Delete { key: record::delegation(self.session) }], ..Batch::default() };
        if !matches!(self.meta.batch(&[0; 8], gone).await?, Outcome::Done { .. }) {
            return Err(FsError::Unavailable);
        }
        line.row_version = None;
        loop {
            let Some(folded) = lock(&self.delegations.overlay).fold_one() else { break };
            let mut batch = Batch { checks: vec![self.marker_check(line)], ..Batch::default() };
            batch.checks.extend(folded.checks);
            batch.writes.push(self.marker_put(line));
            batch.writes.extend(folded.writes);
            let (version, refusal) = match self.meta.batch(&[0; 8], batch).await? {
                Outcome::Done { version, .. } => (Some(version), None),
                Outcome::Failed(Refusal::Check(0)) => match self.marked(line).await? {
                    Some(version) => (Some(version), None),
                    None => continue,
                },
                Outcome::Failed(refusal) => (None, Some(refusal)),
                Outcome::Unknown => return Err(FsError::Unavailable),
            };
            self.watch.landed(&folded.keys, version, &folded.commits);
            if let Some(version) = version {
                line.marker += 1;
                line.marker_version = Some(version);
                lock(&self.delegations.overlay).land(folded.upto, version);
            }
            if let Some(refusal) = refusal {
                self.shut(&refusal);
                let op = lock(&self.delegations.overlay).lose();
                self.watch.push_all(&folded.keys);
                let op = op.filter(|_| !is_left_out("salvage"));
                lock(&self.delegations.lost).ops.extend(op.map(|op| (op, refusal)));
                self.delegations.signals.pending.notify_one();
            }
        }
        line.replaying = false;
        Ok(())
    }
}

impl Scope {
    /// The row with these directories, too, if they are to be this mount's.
    pub(crate) fn next_row(&mut self, more: &[Ino]) -> Bytes {
        self.serial += 1;
        let mut all: Vec<Ino> = self.dirs.keys().chain(more).copied().collect();
        all.sort_unstable();
        record::encode_delegation(self.serial, all.into_iter())
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
        self.covered.extend(&touched.fresh);
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

/// Has what was acknowledged land, until the mount is gone.
pub(crate) async fn keep_landing(fs: Weak<Fs>, signals: Arc<Signals>) {
    loop {
        // Looked at now and then all the same, to notice that the mount is gone.
        let _ = tokio::time::timeout(WARM_FOR, signals.pending.notified()).await;
        let Some(fs) = fs.upgrade() else { return };
        #[cfg(test)]
        if fs.delegations.frozen.load(std::sync::atomic::Ordering::Relaxed) {
            continue;
        }
        let waiting = !lock(&fs.delegations.overlay).is_empty();
        if waiting && !lock(&fs.delegations.overlay).is_ripe() {
            let _ = tokio::time::timeout(GATHER, signals.ripe.notified()).await;
        }
        if let Err(e) = fs.land_all(false).await {
            tracing::debug!("what was acknowledged has not landed yet: {e}");
            tokio::time::sleep(AGAIN).await;
            signals.pending.notify_one();
        }
        fs.salvage().await;
    }
}
