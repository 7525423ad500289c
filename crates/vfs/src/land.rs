//! Landing: what a mount has acknowledged goes to the tables, in order and in batches, one of them at a time.
//!
//! Each batch puts a marker, which counts them, and holds only at the marker before: so one of unknown fate may be sent again. It holds,
//! too, only as long as the mount's row stands, and with it all that the operations had checked.

use crate::delegate::{Scope, Signals};
use crate::error::FsError;
use crate::fs::{Fs, Ino, lock, put, refused};
use crate::overlay::{Folded, is_early};
use crate::recall::rows_of;
use crate::record;
use crate::tidy::is_left_out;
use base::Version;
use bytes::Bytes;
use client::{Batch, Check, Outcome, Range, Record, Refusal, Write};
use std::collections::BTreeSet;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::time::Instant;

/// So long operations are gathered before they are sent, at most.
const GATHER: Duration = Duration::from_millis(5);
/// How soon is tried again where the tables did not answer.
const AGAIN: Duration = Duration::from_millis(100);
/// How often is looked whether the mount is still there.
const LOOK: Duration = Duration::from_secs(1);
/// So long a mount that ends waits for what it has acknowledged to land.
const LAST: Duration = Duration::from_secs(100);

/// What is on its way, one batch at a time.
#[derive(Default)]
pub(crate) struct Line {
    /// How many batches have landed: tells whether one of unknown fate has.
    marker: u64,
    marker_version: Option<Version>,
    in_flight: Option<Sent>,
    /// Some of it did not hold: each operation is tried by itself.
    replaying: bool,
    /// Inodes of which locks were lost with that.
    unlocked: BTreeSet<Ino>,
    /// Up to which operation all is on disc.
    synced: u64,
    /// There was no room: operations go one by one, which may use what is kept for removals.
    narrow: bool,
}

struct Sent {
    batch: Batch,
    folded: Option<Folded>,
    /// It puts this mount's row, or takes it away.
    row: Option<bool>,
    /// Requests that it answers.
    answered: Vec<Bytes>,
}

/// What became of a batch that was sent.
enum Landing {
    /// It landed, or goes in another form: there may be more.
    Onward,
    Nothing,
    /// Some of it does not hold any more.
    Lost,
}

/// May it be taken later, as it is?
fn waits(refusal: &Refusal) -> bool {
    use Refusal::{Check, Finished, LivesInParts, NotACounter, TooLarge};
    !matches!(refusal, Check(_) | NotACounter(_) | LivesInParts | TooLarge { .. } | Finished)
}

impl Fs {
    /// Begins what a mount with delegations needs.
    pub(crate) fn keep_delegations(self: &Arc<Self>) {
        let signals = &self.delegations.signals;
        tokio::spawn(keep_landing(Arc::downgrade(self), signals.clone()));
        tokio::spawn(crate::salvage::keep(Arc::downgrade(self), signals.clone()));
        tokio::spawn(crate::recall::keep(Arc::downgrade(self), signals.clone()));
        tokio::spawn(crate::locks::keep(Arc::downgrade(self)));
    }

    /// Before a mount goes: all that was acknowledged lands, however often that has to be tried.
    pub(crate) async fn land_at_last(&self) -> Result<(), FsError> {
        let begun = Instant::now();
        {
            let _gate = self.delegations.gate.write().await;
            lock(&self.delegations.scope).close();
        }
        loop {
            let done = self.land_all(true).await;
            self.salvage().await;
            let left = lock(&self.delegations.lost).ops.len();
            match done {
                Ok(()) if left == 0 => return Ok(()),
                _ if begun.elapsed() < LAST => tokio::time::sleep(AGAIN).await,
                _ => {
                    let waiting = lock(&self.delegations.overlay).waiting() + left;
                    tracing::error!(
                        "{waiting} operations that were acknowledged are lost: the copies did not take them"
                    );
                    return Err(FsError::Unavailable);
                }
            }
        }
    }

    /// Waits until all has landed that was acknowledged. `sync`: and is on disc, with all that this mount sent before.
    pub(crate) async fn land_all(&self, sync: bool) -> Result<(), FsError> {
        let upto = lock(&self.delegations.overlay).last();
        self.land_upto(upto, false).await?;
        if sync { self.land_sync(upto).await } else { Ok(()) }
    }

    /// The same of operations up to that one.
    pub(crate) async fn land_upto(&self, upto: u64, sync: bool) -> Result<(), FsError> {
        loop {
            let mut line = self.delegations.line.lock().await;
            let landed = lock(&self.delegations.overlay).landed() >= upto;
            match (landed, sync) {
                (true, false) => return Ok(()),
                (true, true) if line.synced >= upto => return Ok(()),
                (true, true) => {
                    drop(line);
                    return self.land_sync(upto).await;
                }
                (false, _) => {}
            }
            let landing = self.send(&mut line, sync.then_some(upto)).await?;
            drop(line);
            if let Landing::Lost = landing {
                let _gate = self.delegations.gate.write().await;
                self.land_held().await?;
            }
        }
    }

    /// All that was sent before is on disc when this returns.
    async fn land_sync(&self, upto: u64) -> Result<(), FsError> {
        let mut line = self.delegations.line.lock().await;
        self.plain(Batch { sync: true, ..Batch::default() }).await?;
        line.synced = line.synced.max(upto);
        Ok(())
    }

    /// Whoever asks for durability of something is told, once, that what was acknowledged of it could not land where it was meant
    /// to.
    pub(crate) fn tell_lost(&self, ino: Ino) -> Result<(), FsError> {
        let lost = lock(&self.delegations.lost).tell(ino);
        if lost { Err(FsError::Unavailable) } else { Ok(()) }
    }

    /// Everything lands, for whoever holds the gate to write: nothing is acknowledged meanwhile.
    pub(crate) async fn land_held(&self) -> Result<(), FsError> {
        let mut line = self.delegations.line.lock().await;
        loop {
            match self.send(&mut line, None).await? {
                Landing::Onward => {}
                Landing::Nothing => return Ok(()),
                Landing::Lost => self.replay(&mut line).await?,
            }
        }
    }

    /// What this mount had to itself is not as it wrote it down: it is written down anew, which shows whether it was taken.
    pub(crate) async fn give_way(&self) -> Result<(), FsError> {
        let _gate = self.delegations.gate.write().await;
        lock(&self.delegations.scope).dirty = true;
        self.land_held().await
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
        let mut sync = sync.is_some_and(|wanted| upto >= wanted);
        let batch = Batch { sync, ..sent.batch.clone() };
        let version = match self.meta.batch(&[0; 8], batch).await? {
            Outcome::Done { version, .. } => Some(version),
            Outcome::Failed(refusal) => {
                // It may have been an earlier attempt that landed, and that was sent for somebody else.
                sync = false;
                let landed = self.marked(line).await?;
                if landed.is_none() && waits(&refusal) {
                    lock(&self.delegations.scope).shut();
                    self.take_back(line);
                    return if std::mem::replace(&mut line.narrow, true) {
                        Err(refused(&refusal))
                    } else {
                        Ok(Landing::Onward)
                    };
                }
                landed
            }
            // Whether it has landed the next attempt finds out.
            Outcome::Unknown => return Err(FsError::Unavailable),
        };
        let Some(sent) = line.in_flight.take() else { return Ok(Landing::Nothing) };
        let Some(version) = version else {
            line.replaying = true;
            return Ok(Landing::Lost);
        };
        line.passed(version);
        if let Some(folded) = &sent.folded {
            self.watch.landed(&folded.keys, Some(version), &folded.commits);
            line.synced = if sync { folded.upto } else { line.synced };
        }
        let mut overlay = lock(&self.delegations.overlay);
        overlay.land(upto, version);
        line.narrow &= !overlay.is_empty();
        if let Some(row) = sent.row {
            let mut scope = lock(&self.delegations.scope);
            (scope.row, scope.sent) = (row.then_some(version), None);
        }
        Ok(Landing::Onward)
    }

    /// What was to be sent is put together anew.
    fn take_back(&self, line: &mut Line) {
        let Some(sent) = line.in_flight.take() else { return };
        let mut scope = lock(&self.delegations.scope);
        scope.dirty |= sent.row.is_some();
        scope.sent = None;
        scope.answered.extend(sent.answered);
    }

    async fn row_of(&self, key: Bytes) -> Result<Option<Record>, FsError> {
        let rows = self.meta.read(&[0; 8], vec![Range::key(key)]).await?;
        Ok(rows.into_iter().flat_map(|r| r.rows).next().map(|(_, row)| row))
    }

    /// A batch was refused: did it land at an earlier attempt, and with what version?
    async fn marked(&self, line: &mut Line) -> Result<Option<Version>, FsError> {
        let row = self.row_of(record::marker(self.session)).await?;
        let version = row.as_ref().map(|row| row.version);
        let wanted = (line.marker + 1).to_be_bytes();
        if row.is_some_and(|row| row.value.as_deref() == Some(&wanted[..])) {
            return Ok(version);
        }
        line.marker_version = version;
        Ok(None)
    }

    fn marker_check(&self, line: &Line) -> Check {
        let key = record::marker(self.session);
        line.marker_version.map_or(Check::Absent(key.clone()), |v| Check::AtVersion(key, v))
    }

    fn marker_put(&self, line: &Line) -> Write {
        put(record::marker(self.session), Bytes::copy_from_slice(&(line.marker + 1).to_be_bytes()))
    }

    pub(crate) fn row_check(&self, scope: &Scope) -> Check {
        let key = record::delegation(self.session);
        scope.row.map_or(Check::Absent(key.clone()), |v| Check::AtVersion(key, v))
    }

    fn next_batch(&self, line: &Line) -> Option<Sent> {
        let overlay = lock(&self.delegations.overlay);
        let folded = if line.narrow { overlay.fold_one() } else { overlay.fold() };
        let mut scope = lock(&self.delegations.scope);
        if folded.is_none() && !scope.dirty && scope.answered.is_empty() {
            return None;
        }
        let mut batch = Batch { checks: vec![self.marker_check(line), self.row_check(&scope)], ..Batch::default() };
        batch.writes.push(self.marker_put(line));
        if let Some(folded) = &folded {
            batch.checks.extend(folded.checks.iter().filter(|_| !is_left_out("landing")).cloned());
            batch.writes.extend(folded.writes.iter().cloned());
        }
        let answered = std::mem::take(&mut scope.answered);
        batch.writes.extend(answered.iter().map(|key| Write::Delete { key: key.clone() }));
        if line.narrow {
            // It is no removal, and there is room for it all the same.
            batch.writes.push(nothing());
        }
        let mut row = None;
        if std::mem::take(&mut scope.dirty) {
            let rows = (!scope.dirs.is_empty()).then(|| scope.next_rows(&[]));
            scope.sent = rows.as_ref().map(|(row, _)| row.clone());
            row = Some(rows.is_some());
            batch.writes.extend(rows_of(self.session, rows));
        }
        Some(Sent { batch, folded, row, answered })
    }

    /// What is acknowledged and has not landed is tried, each operation by itself; after that this mount has nothing to itself.
    async fn replay(&self, line: &mut Line) -> Result<(), FsError> {
        line.replaying = true;
        {
            // Until this is over nothing is acknowledged early, and as long as the row stands others wait.
            let mut scope = lock(&self.delegations.scope);
            (scope.row, scope.sent, scope.dirty) = (None, None, false);
        }
        loop {
            let Some(folded) = lock(&self.delegations.overlay).fold_one() else { break };
            if self.relies_on_lost(&folded, line) {
                self.lose(&folded.keys, &Refusal::Check(0));
                continue;
            }
            let mut batch = Batch { checks: vec![self.marker_check(line)], ..Batch::default() };
            batch.checks.extend(folded.checks);
            batch.writes.extend([self.marker_put(line), nothing()]);
            batch.writes.extend(folded.writes);
            let (version, refusal) = match self.meta.batch(&[0; 8], batch).await? {
                Outcome::Done { version, .. } => (Some(version), None),
                Outcome::Failed(refusal) => {
                    let before = line.marker_version;
                    match (self.marked(line).await?, &refusal) {
                        (Some(version), _) => (Some(version), None),
                        // It was tried at a marker that is not the present one.
                        (None, Refusal::Check(0)) if line.marker_version != before => continue,
                        (None, _) if !waits(&refusal) => (None, Some(refusal)),
                        (None, _) => return Err(refused(&refusal)),
                    }
                }
                Outcome::Unknown => return Err(FsError::Unavailable),
            };
            self.watch.landed(&folded.keys, version, &folded.commits);
            if let Some(version) = version {
                line.passed(version);
                lock(&self.delegations.overlay).land(folded.upto, version);
            }
            if let Some(refusal) = refusal {
                self.lose(&folded.keys, &refusal);
            }
        }
        let mut writes: Vec<Write> = rows_of(self.session, None).into();
        // Of what was locked here nobody knows any more what it is; whoever relied on it has been told.
        writes.extend(line.unlocked.iter().map(|ino| Write::Delete { key: record::lock_of(*ino, self.session) }));
        self.plain(Batch { writes, ..Batch::default() }).await?;
        line.unlocked.clear();
        let mut scope = lock(&self.delegations.scope);
        scope.dirs.clear();
        scope.covered.clear();
        line.replaying = false;
        Ok(())
    }

    /// Is it a lock, or done under one that is lost? Others may have had it meanwhile, and be gone again.
    fn relies_on_lost(&self, folded: &Folded, line: &mut Line) -> bool {
        let of_lock = |key: &Bytes| record::is_lock(key).then(|| record::ino_of(key));
        let taken: Vec<Ino> = folded.writes.iter().filter_map(|w| of_lock(w.key())).collect();
        line.unlocked.extend(&taken);
        let under = folded.checks.iter().any(|check| match check {
            Check::Present(key) => of_lock(key).is_some_and(|ino| line.unlocked.contains(&ino)),
            _ => false,
        });
        !taken.is_empty() || under
    }

    /// The next operation cannot land where it was meant to.
    fn lose(&self, keys: &[Bytes], refusal: &Refusal) {
        let mut overlay = lock(&self.delegations.overlay);
        let op = overlay.lose().filter(|_| !is_left_out("salvage"));
        drop(overlay);
        self.watch.push_all(keys);
        keys.iter().filter(|key| record::is_lock(key)).for_each(|key| self.lose_lock(record::ino_of(key)));
        for key in keys.iter().filter(|key| key.get(8) == Some(&b'C')) {
            if let Some(open) = lock(&self.open).get_mut(&record::ino_of(key)) {
                // Whoever has it open hears that its bytes are not where it put them.
                open.errors.push(refused(refusal));
            }
        }
        if let Some(op) = op {
            lock(&self.delegations.lost).add(op, refusal.clone());
        }
        self.delegations.signals.lost.notify_one();
    }
}

/// A write that changes nothing: with it a batch is one that removes, for which room is kept.
pub(crate) fn nothing() -> Write {
    Write::Delete { key: record::recall(0, 0) }
}

impl Line {
    fn passed(&mut self, version: Version) {
        debug_assert!(!is_early(version));
        self.marker += 1;
        self.marker_version = Some(version);
    }
}

/// Has what was acknowledged land, until the mount is gone.
async fn keep_landing(fs: Weak<Fs>, signals: Arc<Signals>) {
    loop {
        let _ = tokio::time::timeout(LOOK, signals.pending.notified()).await;
        let Some(fs) = fs.upgrade() else { return };
        #[cfg(test)]
        if fs.delegations.frozen.load(std::sync::atomic::Ordering::Relaxed) {
            continue;
        }
        let gathers = {
            let overlay = lock(&fs.delegations.overlay);
            !overlay.is_empty() && !overlay.is_ripe()
        };
        if gathers {
            let _ = tokio::time::timeout(GATHER, signals.ripe.notified()).await;
        }
        if let Err(e) = fs.land_all(false).await {
            tracing::debug!("what was acknowledged has not landed yet: {e}");
            tokio::time::sleep(AGAIN).await;
            signals.pending.notify_one();
        }
    }
}
