//! Who has which directory to itself: looking at what others have, asking for it, giving it back, and taking it from whoever
//! does not answer.

use crate::delegate::{SCOPE_MAX, Signals, parents, places_of};
use crate::error::FsError;
use crate::fs::{Fs, Ino, Kind, first, lock, pause, put};
use crate::land::nothing;
use crate::names::HERE;
use crate::record::{self, Inode};
use crate::tidy::is_left_out;
use base::Version;
use bytes::Bytes;
use client::{Batch, Check, Outcome, Range, Record, Rows, Write};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::time::Instant;

/// Whoever does not give back what it was asked for so often, and for so long each time, loses all it has.
const ASKED_MAX: usize = 2;
const PATIENCE: Duration = Duration::from_millis(1500);
/// How many requests are looked at at once.
const ASKED_AT_ONCE: u32 = 1000;
/// Of how many places of an inode is checked that they stand.
const PLACES_MAX: usize = 64;
/// So long a mount does without a directory that it was asked for.
const SHARED_FOR: Duration = Duration::from_secs(1);
/// What was not used for so long is given back.
const IDLE: Duration = Duration::from_secs(10);
/// How often is looked for requests that nobody announces.
const LOOK: Duration = Duration::from_millis(200);
/// How many mounts there are at most.
pub(crate) const MOUNTS_MAX: u32 = 65_000;
/// How many directories are asked for at once.
const WANTED_MAX: usize = 64;

/// What one mount has to itself.
struct Held {
    session: u64,
    version: Version,
    dirs: Arc<HashSet<Ino>>,
}

fn everything() -> Range {
    Range::prefix(record::delegations(), MOUNTS_MAX)
}

fn session_of(key: &Bytes) -> u64 {
    record::ino_of(&key.slice(9..))
}

impl Fs {
    /// Ranges of the metadata, all at one moment, as they are for everybody: what others have to themselves they give back
    /// first.
    pub(crate) async fn read_meta(&self, mut ranges: Vec<Range>) -> Result<Vec<Rows>, FsError> {
        let inos: BTreeSet<Ino> =
            ranges.iter().map(|range| record::ino_of(&range.from)).filter(|ino| *ino != 0).collect();
        let count = ranges.len();
        ranges.push(everything());
        loop {
            let wide = self.delegations.others.load(Ordering::Relaxed) && !inos.is_empty();
            ranges.truncate(count + 1);
            if wide {
                ranges.extend(places_of(inos.iter().copied()));
            }
            let mut rows = self.read_own(ranges.clone()).await?;
            let places = rows.split_off(count + 1);
            let stand = rows.pop().unwrap_or_default();
            if self.is_taken(&inos, &stand) {
                // What was acknowledged here others may have changed by now.
                self.give_way().await?;
                continue;
            }
            let Some(others) = self.of_others(&stand).await? else { continue };
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

    /// Has somebody taken what this mount had to itself, and is something of these on its way?
    fn is_taken(&self, inos: &BTreeSet<Ino>, stand: &Rows) -> bool {
        let overlay = lock(&self.delegations.overlay);
        inos.iter().any(|ino| overlay.touches(*ino)) && !lock(&self.delegations.scope).is_mine(self.own(stand))
    }

    /// This mount's row among all.
    fn own<'a>(&self, stand: &'a Rows) -> Option<&'a Record> {
        stand.rows.iter().find(|(key, _)| session_of(key) == self.session).map(|(_, row)| row)
    }

    /// What other mounts have to themselves, by these rows. `None`: they have changed since.
    async fn of_others(&self, stand: &Rows) -> Result<Option<Vec<Held>>, FsError> {
        let (mut out, mut unknown) = (Vec::new(), Vec::new());
        {
            let mut known = lock(&self.delegations.scopes);
            if stand.rows.is_empty() {
                known.clear();
            }
            for (key, row) in stand.rows.iter().filter(|(key, _)| session_of(key) != self.session) {
                let session = session_of(key);
                match known.get(&session).filter(|(version, _)| *version == row.version) {
                    Some((version, dirs)) => out.push(Held { session, version: *version, dirs: dirs.clone() }),
                    None => unknown.push((session, row.version)),
                }
            }
        }
        if unknown.is_empty() {
            return Ok(Some(out));
        }
        let both =
            |(session, _): &(u64, Version)| [record::delegation(*session), record::scope(*session)].map(Range::key);
        let mut rows = self.meta.read(&[0; 8], unknown.iter().flat_map(both).collect()).await?.into_iter();
        for (session, version) in unknown {
            let (row, scope) = (first(rows.next()), first(rows.next()));
            if row.map(|row| row.version) != Some(version) {
                return Ok(None);
            }
            let value = scope.and_then(|row| row.value).unwrap_or_default();
            let dirs = Arc::new(record::decode_scope(&value));
            lock(&self.delegations.scopes).insert(session, (version, dirs.clone()));
            out.push(Held { session, version, dirs });
        }
        Ok(Some(out))
    }

    /// What of these inodes others have to themselves; and if nothing, what holds as long as that is so.
    pub(crate) async fn others(&self, inos: &BTreeSet<Ino>) -> Result<(Vec<(u64, Ino)>, Vec<Check>), FsError> {
        loop {
            let wide = self.delegations.others.load(Ordering::Relaxed);
            let mut ranges = vec![everything()];
            if wide {
                ranges.extend(places_of(inos.iter().copied()));
            }
            let mut rows = self.read_own(ranges).await?;
            let places = rows.split_off(1);
            let stand = rows.pop().unwrap_or_default();
            let Some(others) = self.of_others(&stand).await? else { continue };
            self.delegations.others.store(!others.is_empty(), Ordering::Relaxed);
            if !others.is_empty() && !wide {
                continue;
            }
            let mut checks = as_they_stand(&stand, &others);
            if others.is_empty() {
                return Ok((Vec::new(), checks));
            }
            // A file may come into another's directory with nothing else changed.
            for (ino, places) in inos.iter().zip(&places) {
                checks.push(Check::Count(record::places(*ino), places.rows.len() as u32));
                let stands = |(key, row): &(Bytes, Record)| Check::AtVersion(key.clone(), row.version);
                checks.extend(places.rows.iter().take(PLACES_MAX).map(stands));
            }
            return Ok((blocked(inos, &places, &others), checks));
        }
    }

    /// Asks for directories, each of a mount, and waits until they are given back. Whoever does not answer, while the tables do, has
    /// nothing to itself any more.
    pub(crate) async fn recall(&self, blocked: Vec<(u64, Ino)>) -> Result<(), FsError> {
        let (mut asked, mut begun, mut seen) = (0, Instant::now(), BTreeMap::new());
        for round in 0.. {
            let ranges = vec![everything(), Range::prefix(record::markers(), MOUNTS_MAX)];
            let mut rows = self.meta.read(&[0; 8], ranges).await?.into_iter();
            let (stand, markers) = (rows.next().unwrap_or_default(), rows.next().unwrap_or_default());
            let Some(all) = self.of_others(&stand).await? else { continue };
            // Whoever lands something is at work.
            let marker =
                |session| markers.rows.iter().find(|(key, _)| session_of(key) == session).map(|(_, row)| row.version);
            let still = |held: &&Held| blocked.iter().any(|(s, dir)| *s == held.session && held.dirs.contains(dir));
            let silent: BTreeMap<u64, (Version, Option<Version>)> =
                all.iter().filter(still).map(|h| (h.session, (h.version, marker(h.session)))).collect();
            if silent.is_empty() {
                return Ok(());
            }
            if silent != seen {
                // They do something: they are asked anew.
                (asked, seen) = (0, silent.clone());
            }
            if asked == 0 || begun.elapsed() > PATIENCE {
                if asked == ASKED_MAX {
                    return self.take_from(&silent).await;
                }
                let ask = |(session, dir): &(u64, Ino)| put(record::recall(*session, *dir), HERE);
                let there = blocked.iter().filter(|(session, _)| silent.contains_key(session));
                let writes = there.map(ask).chain([nothing()]).collect();
                self.plain(Batch { writes, ..Batch::default() }).await?;
                (asked, begun) = (asked + 1, Instant::now());
            }
            pause(round.min(6)).await;
        }
        Err(FsError::Unavailable)
    }

    async fn take_from(&self, silent: &BTreeMap<u64, (Version, Option<Version>)>) -> Result<(), FsError> {
        for (session, (version, _)) in silent {
            tracing::warn!("a mount (session {session:x}) does not answer: it has nothing to itself any more");
            let mut writes = self.asked_of(*session).await?;
            writes.extend(rows_of(*session, None));
            let checks = vec![Check::AtVersion(record::delegation(*session), *version)];
            self.plain(Batch { checks, writes, sync: false }).await?;
        }
        Ok(())
    }

    /// Writes that take away what was asked of a mount.
    pub(crate) async fn asked_of(&self, session: u64) -> Result<Vec<Write>, FsError> {
        let asked = Range::prefix(record::recalls_of(session), ASKED_AT_ONCE);
        let rows = self.meta.read(&[0; 8], vec![asked]).await?;
        Ok(rows.into_iter().flat_map(|rows| rows.rows).map(|(key, _)| Write::Delete { key }).collect())
    }

    /// A key was changed: is it about what somebody has to itself?
    pub(crate) fn hears(&self, key: &Bytes) {
        if key.starts_with(&record::recalls_of(self.session)) || key.starts_with(&record::delegations()) {
            self.delegations.signals.keeper.notify_one();
        }
        if record::is_lock(key) {
            self.locks.changed.notify_waiters();
        }
    }

    /// Gives back what others ask for or what is not used, and takes what this mount wants.
    pub(crate) async fn mind_delegations(&self) -> Result<(), FsError> {
        #[cfg(test)]
        if self.delegations.frozen.load(Ordering::Relaxed) {
            return Ok(());
        }
        let asked = Range::prefix(record::recalls_of(self.session), ASKED_AT_ONCE);
        let mut rows = self.meta.read(&[0; 8], vec![asked, everything()]).await?.into_iter();
        let (asked, stand) = (rows.next().unwrap_or_default(), rows.next().unwrap_or_default());
        let Some(others) = self.of_others(&stand).await? else {
            self.delegations.signals.keeper.notify_one();
            return Ok(());
        };
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
        let taken = {
            let scope = lock(&self.delegations.scope);
            !scope.dirs.is_empty() && !scope.is_mine(self.own(&stand))
        };
        if taken {
            self.give_way().await?;
        }
        // A sign of life is all that whoever asks for 0 wants.
        back.remove(&0);
        if !back.is_empty() || !keys.is_empty() {
            self.give_back(&back, keys).await?;
        }
        let wanted = {
            let mut scope = lock(&self.delegations.scope);
            scope.banned.retain(|_, until| Instant::now() < *until);
            std::mem::take(&mut scope.wanted)
        };
        if wanted.is_empty() { Ok(()) } else { self.take_alone(wanted.into_iter().take(WANTED_MAX).collect()).await }
    }

    /// Does nothing that was acknowledged here name what others gave up by now? As long as the row stands they give up nothing of it.
    pub(crate) async fn is_up_to_date(&self) -> Result<bool, FsError> {
        if lock(&self.delegations.overlay).is_empty() && lock(&self.delegations.lost).ops.is_empty() {
            return Ok(true);
        }
        let row = self.meta.read(&[0; 8], vec![Range::key(record::delegation(self.session))]).await?;
        let row = first(row.into_iter().next());
        Ok(lock(&self.delegations.scope).is_mine(row.as_ref()) && lock(&self.delegations.lost).ops.is_empty())
    }

    async fn give_back(&self, dirs: &HashSet<Ino>, asked: Vec<Bytes>) -> Result<(), FsError> {
        let _gate = self.delegations.gate.write().await;
        // As long as something has not landed it is this mount's.
        self.land_held().await?;
        {
            let mut scope = lock(&self.delegations.scope);
            let until = Instant::now() + SHARED_FOR;
            for dir in dirs {
                scope.dirty |= scope.dirs.remove(dir).is_some();
                scope.banned.insert(*dir, until);
            }
            if scope.is_shut() {
                // There may be no room for a row; there is for taking it away.
                scope.dirty |= !scope.dirs.is_empty();
                scope.dirs.clear();
            }
            if !dirs.is_empty() || scope.is_shut() {
                scope.covered.clear();
            }
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
        ranges.extend(wanted.iter().map(|ino| Range::key(record::orphan(*ino))));
        ranges.extend(places_of(wanted.iter().copied()));
        let mut rows = self.meta.read(&[0; 8], ranges).await?;
        let places = rows.split_off(1 + 2 * wanted.len());
        let orphans = rows.split_off(1 + wanted.len());
        let inodes = rows.split_off(1);
        let stand = rows.pop().unwrap_or_default();
        let Some(others) = self.of_others(&stand).await? else { return Ok(()) };
        let mut dirs: BTreeSet<Ino> = BTreeSet::new();
        let removed: Vec<bool> = orphans.into_iter().map(|rows| !rows.rows.is_empty()).collect();
        for (n, (ino, inode)) in wanted.into_iter().zip(inodes).enumerate().filter(|(n, _)| !removed[*n]) {
            let inode = first(Some(inode)).and_then(|row| row.value);
            match inode.map(|value| record::decode::<Inode>(&value)).transpose()?.map(|inode| inode.kind) {
                Some(Kind::Directory) => drop(dirs.insert(ino)),
                Some(_) => dirs.extend(parents(&places[n])),
                None => {}
            }
        }
        {
            let scope = lock(&self.delegations.scope);
            let taken = |dir: &Ino| others.iter().any(|held| held.dirs.contains(dir));
            dirs.retain(|dir| !scope.banned.contains_key(dir) && !scope.dirs.contains_key(dir) && !taken(dir));
            if dirs.is_empty() || scope.is_shut() || scope.dirs.len() + dirs.len() > SCOPE_MAX {
                return Ok(());
            }
        }
        let dirs: Vec<Ino> = dirs.into_iter().collect();
        let (rows, own) = {
            let mut scope = lock(&self.delegations.scope);
            (scope.next_rows(&dirs), self.row_check(&scope))
        };
        let mut checks = as_they_stand(&stand, &others);
        checks.push(own);
        for dir in &dirs {
            checks.extend([Check::Present(record::inode(*dir)), Check::Absent(record::orphan(*dir))]);
        }
        let batch = Batch { checks, writes: rows_of(self.session, Some(rows)).into(), sync: false };
        match self.meta.batch(&[0; 8], batch).await? {
            Outcome::Done { version, .. } => {
                let (now, mut scope) = (Instant::now(), lock(&self.delegations.scope));
                scope.row = Some(version);
                scope.dirs.extend(dirs.into_iter().map(|dir| (dir, now)));
            }
            // Whatever became of it: what is there now is not what this mount knows, and is looked at when next something lands.
            Outcome::Unknown => lock(&self.delegations.scope).dirty = true,
            Outcome::Failed(_) => {}
        }
        Ok(())
    }
}

/// What holds as long as nobody takes or gives back anything.
fn as_they_stand(stand: &Rows, others: &[Held]) -> Vec<Check> {
    let count = Check::Count(record::delegations(), stand.rows.len() as u32);
    let at = others.iter().map(|held| Check::AtVersion(record::delegation(held.session), held.version));
    [count].into_iter().chain(at).collect()
}

/// Writes that put a mount's rows, or take them away.
pub(crate) fn rows_of(session: u64, rows: Option<(Bytes, Bytes)>) -> [Write; 2] {
    let (row, scope) = (record::delegation(session), record::scope(session));
    match rows {
        Some((serial, dirs)) => [put(row, serial), put(scope, dirs)],
        None => [row, scope].map(|key| Write::Delete { key }),
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
