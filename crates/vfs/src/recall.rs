//! Who has which directory to itself: looking at what others have, asking for it, giving it back, and taking it from whoever
//! does not answer.

use crate::delegate::{SCOPE_MAX, Signals, parents, places_of};
use crate::error::FsError;
use crate::fs::{Fs, Ino, Kind, first, lock, pause, put, refused};
use crate::names::HERE;
use crate::record::{self, Inode};
use crate::tidy::is_left_out;
use base::Version;
use bytes::Bytes;
use client::{Batch, Check, Outcome, Range, Rows, Write};
use std::collections::{BTreeSet, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::time::Instant;

/// Whoever does not give back for so long what it was asked for loses all it has.
const PATIENCE: Duration = Duration::from_secs(2);
/// So long a mount does without a directory that it was asked for.
const SHARED_FOR: Duration = Duration::from_secs(1);
/// What was not used for so long is given back.
const IDLE: Duration = Duration::from_secs(10);
/// How often is looked for requests that nobody announces.
const LOOK: Duration = Duration::from_millis(200);
/// How many mounts there are at most.
const MOUNTS_MAX: u32 = 65_000;
/// How many directories are asked for at once.
const WANTED_MAX: usize = 64;

/// What one mount has to itself.
struct Held {
    session: u64,
    version: Version,
    dirs: HashSet<Ino>,
}

fn held(rows: Rows) -> Vec<Held> {
    let one = |(key, row): (Bytes, client::Record)| {
        let session = record::ino_of(&key.slice(9..));
        Held {
            session,
            version: row.version,
            dirs: record::decode_delegation(row.value.as_deref().unwrap_or_default()),
        }
    };
    rows.rows.into_iter().map(one).collect()
}

fn everything() -> Range {
    Range::prefix(record::delegations(), MOUNTS_MAX)
}

impl Fs {
    /// Ranges of the metadata, all at one moment, as they are for everybody: what others have to themselves they give back
    /// first.
    pub(crate) async fn read_meta(&self, ranges: Vec<Range>) -> Result<Vec<Rows>, FsError> {
        let inos: BTreeSet<Ino> =
            ranges.iter().map(|range| record::ino_of(&range.from)).filter(|ino| *ino != 0).collect();
        let count = ranges.len();
        let mut ranges = ranges;
        ranges.push(everything());
        loop {
            let wide = self.delegations.others.load(Ordering::Relaxed);
            ranges.truncate(count + 1);
            if wide {
                ranges.extend(places_of(inos.iter().copied()));
            }
            let mut rows = self.read_own(ranges.clone()).await?;
            let places = rows.split_off(count + 1);
            let others = self.of_others(rows.pop().unwrap_or_default());
            self.delegations.others.store(!others.is_empty(), Ordering::Relaxed);
            if others.is_empty() || inos.is_empty() {
                return Ok(rows);
            }
            if !wide {
                continue;
            }
            let blocked = blocked(&inos, &places, &others);
            if blocked.is_empty() || is_left_out("recall") {
                return Ok(rows);
            }
            self.recall(blocked).await?;
        }
    }

    fn of_others(&self, rows: Rows) -> Vec<Held> {
        let mut all = held(rows);
        all.retain(|held| held.session != self.session);
        all
    }

    /// What of these inodes others have to themselves; and if nothing, what holds as long as that is so.
    pub(crate) async fn others(&self, inos: &BTreeSet<Ino>) -> Result<(Vec<(u64, Ino)>, Vec<Check>), FsError> {
        let mut ranges = vec![everything()];
        if self.delegations.others.load(Ordering::Relaxed) {
            ranges.extend(places_of(inos.iter().copied()));
        }
        let mut rows = self.read_own(ranges).await?;
        let mut places = rows.split_off(1);
        let rows = rows.pop().unwrap_or_default();
        let count = rows.rows.len() as u32;
        let others = self.of_others(rows);
        if !others.is_empty() && places.is_empty() {
            self.delegations.others.store(true, Ordering::Relaxed);
            places = self.read_own(places_of(inos.iter().copied())).await?;
        }
        let mut checks = vec![Check::Count(record::delegations(), count)];
        checks.extend(others.iter().map(|held| Check::AtVersion(record::delegation(held.session), held.version)));
        Ok((blocked(inos, &places, &others), checks))
    }

    /// Asks for directories, each of a mount, and waits until they are given back.
    pub(crate) async fn recall(&self, blocked: Vec<(u64, Ino)>) -> Result<(), FsError> {
        let ask = |(session, dir): &(u64, Ino)| put(record::recall(*session, *dir), HERE);
        self.common(Vec::new(), blocked.iter().map(ask).collect()).await?;
        let begun = Instant::now();
        for round in 0.. {
            let rows = self.meta.read(&[0; 8], vec![everything()]).await?;
            let all = held(rows.into_iter().next().unwrap_or_default());
            let still = |held: &&Held| blocked.iter().any(|(s, dir)| *s == held.session && held.dirs.contains(dir));
            let silent: Vec<&Held> = all.iter().filter(still).collect();
            if silent.is_empty() {
                return Ok(());
            }
            if begun.elapsed() > PATIENCE {
                for held in silent {
                    let key = record::delegation(held.session);
                    tracing::warn!(
                        "a mount (session {:x}) does not answer: it has nothing to itself any more",
                        held.session
                    );
                    let mut writes = vec![Write::Delete { key: key.clone() }];
                    let asked = held.dirs.iter().map(|dir| Write::Delete { key: record::recall(held.session, *dir) });
                    writes.extend(asked);
                    self.common(vec![Check::AtVersion(key, held.version)], writes).await?;
                }
            }
            pause(round.min(3)).await;
        }
        Err(FsError::Unavailable)
    }

    /// A batch of records that are no inode's.
    async fn common(&self, checks: Vec<Check>, writes: Vec<Write>) -> Result<bool, FsError> {
        match self.meta.batch(&[0; 8], Batch { checks, writes, sync: false }).await? {
            Outcome::Done { .. } => Ok(true),
            Outcome::Failed(client::Refusal::Check(_)) => Ok(false),
            Outcome::Failed(refusal) => Err(refused(&refusal)),
            Outcome::Unknown => Err(FsError::Unavailable),
        }
    }

    /// A key was changed: is it about what somebody has to itself?
    pub(crate) fn hears(&self, key: &Bytes) {
        if key.starts_with(&record::recalls_of(self.session)) || key.starts_with(&record::delegations()) {
            self.delegations.signals.keeper.notify_one();
        }
    }

    /// Gives back what others ask for or what is not used, and takes what this mount wants.
    pub(crate) async fn mind_delegations(&self) -> Result<(), FsError> {
        #[cfg(test)]
        if self.delegations.frozen.load(Ordering::Relaxed) {
            return Ok(());
        }
        let asked = Range::prefix(record::recalls_of(self.session), WANTED_MAX as u32 * 16);
        let mut rows = self.meta.read(&[0; 8], vec![asked, everything()]).await?.into_iter();
        let (asked, others) = (rows.next().unwrap_or_default(), self.of_others(rows.next().unwrap_or_default()));
        self.delegations.others.store(!others.is_empty(), Ordering::Relaxed);
        let keys: Vec<Bytes> = asked.rows.into_iter().map(|(key, _)| key).collect();
        let mut back: HashSet<Ino> = keys.iter().map(|key| record::ino_of(&key.slice(17..))).collect();
        {
            let scope = lock(&self.delegations.scope);
            // Islands that met may both have one.
            let twice = |dir: &&Ino| others.iter().any(|held| held.dirs.contains(dir));
            back.extend(scope.dirs.keys().filter(twice));
            back.extend(scope.dirs.iter().filter(|(_, used)| used.elapsed() > IDLE).map(|(dir, _)| *dir));
        }
        if !back.is_empty() {
            self.give_back(&back, keys).await?;
        }
        let wanted = {
            let mut scope = lock(&self.delegations.scope);
            scope.banned.retain(|_, until| Instant::now() < *until);
            std::mem::take(&mut scope.wanted)
        };
        if wanted.is_empty() { Ok(()) } else { self.take_alone(wanted.into_iter().take(WANTED_MAX).collect()).await }
    }

    async fn give_back(&self, dirs: &HashSet<Ino>, asked: Vec<Bytes>) -> Result<(), FsError> {
        let _gate = self.delegations.gate.write().await;
        {
            let mut scope = lock(&self.delegations.scope);
            let until = Instant::now() + SHARED_FOR;
            for dir in dirs {
                scope.dirty |= scope.dirs.remove(dir).is_some();
                scope.banned.insert(*dir, until);
            }
            scope.covered.clear();
            scope.answered.extend(asked);
        }
        self.land_held().await
    }

    /// Takes the directories of these inodes, or these, unless others have them.
    async fn take_alone(&self, wanted: Vec<Ino>) -> Result<(), FsError> {
        let _gate = self.delegations.gate.write().await;
        self.land_held().await?;
        let mut ranges = vec![everything()];
        ranges.extend(wanted.iter().map(|ino| Range::key(record::inode(*ino))));
        ranges.extend(places_of(wanted.iter().copied()));
        let mut rows = self.meta.read(&[0; 8], ranges).await?;
        let places = rows.split_off(1 + wanted.len());
        let inodes = rows.split_off(1);
        let all = held(rows.pop().unwrap_or_default());
        let mut dirs: BTreeSet<Ino> = BTreeSet::new();
        for ((ino, inode), places) in wanted.into_iter().zip(inodes).zip(&places) {
            let inode = first(Some(inode)).and_then(|row| row.value);
            match inode.map(|value| record::decode::<Inode>(&value)).transpose()?.map(|inode| inode.kind) {
                Some(Kind::Directory) => drop(dirs.insert(ino)),
                Some(_) => dirs.extend(parents(places)),
                None => {}
            }
        }
        {
            let scope = lock(&self.delegations.scope);
            let taken = |dir: &Ino| all.iter().any(|h| h.session != self.session && h.dirs.contains(dir));
            dirs.retain(|dir| !scope.banned.contains_key(dir) && !scope.dirs.contains_key(dir) && !taken(dir));
            if dirs.is_empty() || scope.dirs.len() + dirs.len() > SCOPE_MAX {
                return Ok(());
            }
        }
        let mut line = self.delegations.line.lock().await;
        let dirs: Vec<Ino> = dirs.into_iter().collect();
        let row = lock(&self.delegations.scope).next_row(&dirs);
        let mut checks = vec![self.row_check(&line), Check::Count(record::delegations(), all.len() as u32)];
        let others = all.iter().filter(|held| held.session != self.session);
        checks.extend(others.map(|held| Check::AtVersion(record::delegation(held.session), held.version)));
        for dir in &dirs {
            checks.extend([Check::Present(record::inode(*dir)), Check::Absent(record::orphan(*dir))]);
        }
        let batch = Batch { checks, writes: vec![put(record::delegation(self.session), row.clone())], sync: false };
        match self.meta.batch(&[0; 8], batch).await? {
            Outcome::Done { version, .. } => {
                line.row_version = Some(version);
                let (now, mut scope) = (Instant::now(), lock(&self.delegations.scope));
                scope.row = Some(row);
                scope.dirs.extend(dirs.into_iter().map(|dir| (dir, now)));
            }
            // Whatever became of it: what is there now is not what this mount knows, and is looked at when next something lands.
            Outcome::Unknown => lock(&self.delegations.scope).dirty = true,
            Outcome::Failed(_) => {}
        }
        Ok(())
    }
}

/// Which of these inodes others have to themselves: of whom, and which directory.
fn blocked(inos: &BTreeSet<Ino>, places: &[Rows], others: &[Held]) -> Vec<(u64, Ino)> {
    let mut out = Vec::new();
    for (ino, places) in inos.iter().zip(places) {
        for dir in parents(places).into_iter().chain([*ino]) {
            out.extend(others.iter().filter(|held| held.dirs.contains(&dir)).map(|held| (held.session, dir)));
        }
    }
    out.sort_unstable();
    out.dedup();
    out
}

/// Minds what this mount has to itself, until it is gone.
pub(crate) async fn keep(fs: Weak<Fs>, signals: Arc<Signals>) {
    loop {
        let _ = tokio::time::timeout(LOOK, signals.keeper.notified()).await;
        let Some(fs) = fs.upgrade() else { return };
        if let Err(e) = fs.mind_delegations().await {
            tracing::debug!("delegations: {e}");
        }
    }
}
