//! Locks of ranges of files (`fcntl(2)`), across mounts. What a mount's processes have of one inode is one record, so that taking one is
//! a batch that holds only if nobody else's has changed since it was looked at. Where a mount has the directory to itself it is
//! acknowledged at once, like everything else there.
//!
//! Who locks reads what was written before: an unlock commits the file's bytes first, and a lock has the kernel forget bytes of an
//! older commit. **A mount that is gone holds nothing**: whoever comes asks it for a sign of life, and without one for as long as a lease
//! its record goes. From then on commits of that mount fail that relied on the lock, and whoever has the file open there gets an error.
//! So it is, too, where islands have met that both gave a lock: the earlier stays.

use crate::delegate::Told;
use crate::error::FsError;
use crate::fs::{Fs, HandleId, Ino, TRIES_MAX, first, lock, pause, put, version_of, wall_ns};
use crate::names::HERE;
use crate::recall::MOUNTS_MAX;
use crate::record::{self, Lock};
use base::Version;
use client::{Batch, Check, Range, Rows, Write};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, Weak};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// So long a mount may be silent before it loses a lock that is in somebody's way.
const LEASE: Duration = Duration::from_secs(10);
/// Then it is asked once more, which shows that the tables take writes, and has so long for an answer.
const LAST: Duration = Duration::from_millis(1500);
/// How often a mount that holds a lock in somebody's way is asked whether it is there.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// How often whoever waits for a lock looks by itself.
const LOOK: Duration = Duration::from_millis(100);
/// How often a mount looks whether it still has what it holds.
const MIND_EVERY: Duration = Duration::from_secs(1);
/// So long a batch of unknown fate may land.
const UNKNOWN_FOR: Duration = Duration::from_secs(60);
/// How many ranges of one inode the processes of one mount may lock.
const LOCKS_MAX: usize = 1024;

/// What the record of this mount may say: one thing, as a rule; several, if nobody told what became of a change; anything, if none.
type Held = Vec<Vec<Lock>>;

/// Locks as one mount knows them.
#[derive(Default)]
pub(crate) struct Locks {
    /// By inode. Changed under its commit lock, but for what is lost.
    held: Mutex<HashMap<Ino, Held>>,
    /// Owners that closed a file, and could not be unlocked, and since when.
    left: Mutex<HashMap<(Ino, u64), Instant>>,
    /// Something was locked here, ever.
    used: AtomicBool,
    /// Mounts with a lock in somebody's way.
    asked: Mutex<HashMap<u64, Asked>>,
    /// Somewhere a lock was changed.
    pub changed: Notify,
}

/// A mount that was asked for a sign of life.
#[derive(Clone, Copy)]
struct Asked {
    /// With which request; the first version: with one that was not met yet.
    request: Version,
    since: Instant,
    /// For the last time.
    last: bool,
}

impl Locks {
    /// Of how many inodes this mount has something locked.
    pub(crate) fn count(&self) -> usize {
        lock(&self.held).len()
    }
}

/// Who wants what.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Whoever shares this shares locks: a process, or an open file. A number of the kernel's.
    pub owner: u64,
    /// The process, to tell who asks.
    pub pid: u32,
    /// The first byte.
    pub start: u64,
    /// And the last.
    pub end: u64,
    /// Alone; otherwise with all who only read.
    pub write: bool,
}

/// A mount's record of one inode.
struct Row {
    session: u64,
    version: Version,
    locks: Vec<Lock>,
}

fn rows_of(rows: Rows) -> Result<Vec<Row>, FsError> {
    let row = |(key, row): (bytes::Bytes, client::Record)| {
        let session = key.get(9..17).and_then(|id| id.try_into().ok()).map_or(0, u64::from_be_bytes);
        Ok(Row { session, version: row.version, locks: record::decode(row.value.as_deref().unwrap_or_default())? })
    };
    rows.rows.into_iter().map(row).collect()
}

impl Wanted {
    /// All that an owner may have, for giving it back.
    fn all_of(owner: u64) -> Wanted {
        Wanted { owner, pid: 0, start: 0, end: u64::MAX, write: false }
    }

    fn meets(&self, lock: &Lock) -> bool {
        lock.start <= self.end && self.start <= lock.end
    }

    fn is_kept_by(&self, lock: &Lock) -> bool {
        self.meets(lock) && (self.write || lock.write)
    }

    /// What one mount has with this changed: locked, or (`false`) unlocked.
    fn over(&self, locks: &[Lock], locked: bool) -> Vec<Lock> {
        let mut out = Vec::new();
        for lock in locks {
            if lock.owner != self.owner || !self.meets(lock) {
                out.push(*lock);
                continue;
            }
            out.extend((lock.start < self.start).then(|| Lock { end: self.start - 1, ..*lock }));
            out.extend((lock.end > self.end).then(|| Lock { start: self.end + 1, ..*lock }));
        }
        if locked {
            let Wanted { owner, pid, mut start, mut end, write } = *self;
            // What touches it and is alike is one lock with it.
            out.retain(|lock| {
                let touches = lock.end.checked_add(1) == Some(start) || end.checked_add(1) == Some(lock.start);
                let joins = touches && (lock.owner, lock.write) == (owner, write);
                if joins {
                    (start, end) = (start.min(lock.start), end.max(lock.end));
                }
                !joins
            });
            out.push(Lock { owner, pid, start, end, write, since: wall_ns() });
        }
        out.sort_unstable_by_key(|lock| (lock.owner, lock.start));
        out
    }
}

impl Fs {
    /// Whose lock is in the way, if any. Its process is told of this mount alone.
    pub async fn blocking(&self, ino: Ino, wanted: &Wanted) -> Result<Option<Wanted>, FsError> {
        let rows = self.read_meta(vec![Range::prefix(record::locks(ino), MOUNTS_MAX)]).await?.remove(0);
        let found = self.in_the_way(&rows_of(rows)?, wanted);
        Ok(found.map(|(session, Lock { owner, pid, start, end, write, .. })| {
            let pid = if session == self.session { pid } else { 0 };
            Wanted { owner, pid, start, end, write }
        }))
    }

    fn in_the_way(&self, rows: &[Row], wanted: &Wanted) -> Option<(u64, Lock)> {
        let mut all = rows.iter().flat_map(|row| row.locks.iter().map(|lock| (row.session, *lock)));
        all.find(|(session, lock)| wanted.is_kept_by(lock) && (*session, lock.owner) != (self.session, wanted.owner))
    }

    /// Locks a range of an open file. `waits`: until that can be done, or that says that nobody waits any more.
    pub async fn lock(
        &self,
        handle: HandleId,
        wanted: Wanted,
        waits: Option<impl Fn() -> bool + Send>,
    ) -> Result<(), FsError> {
        let ino = self.ino_of(handle)?;
        self.locks.used.store(true, Ordering::Release);
        if !wanted.write {
            // It may have been locked to be written, until now.
            self.flush_locked(ino).await;
        }
        loop {
            let changed = self.locks.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.change(ino, wanted, true).await? {
                if let Some(handle) = lock(&self.handles).get_mut(&handle) {
                    handle.owners.insert(wanted.owner);
                }
                self.freshen(ino).await;
                return Ok(());
            }
            let Some(waits) = &waits else { return Err(FsError::Locked) };
            let _ = tokio::time::timeout(LOOK, changed).await;
            if !waits() {
                return Err(FsError::Interrupted);
            }
        }
    }

    /// Unlocks it, after what was written in it is there for all.
    pub async fn unlock(&self, handle: HandleId, wanted: Wanted) -> Result<(), FsError> {
        self.unlock_range(self.ino_of(handle)?, wanted).await
    }

    fn ino_of(&self, handle: HandleId) -> Result<Ino, FsError> {
        lock(&self.handles).get(&handle).map(|handle| handle.ino).ok_or(FsError::Invalid)
    }

    /// Whoever locks next reads what was written here. What goes wrong whoever has it open is told.
    async fn flush_locked(&self, ino: Ino) {
        if lock(&self.locks.held).contains_key(&ino) {
            let _ = self.flush_inode(ino, false).await;
        }
    }

    async fn unlock_range(&self, ino: Ino, wanted: Wanted) -> Result<(), FsError> {
        let has = |lock: &Lock| lock.owner == wanted.owner && wanted.meets(lock);
        let may_have = |held: &Held| held.is_empty() || held.iter().flatten().any(has);
        if !lock(&self.locks.held).get(&ino).is_some_and(may_have) {
            return Ok(());
        }
        self.flush_locked(ino).await;
        if self.change(ino, wanted, false).await? { Ok(()) } else { Err(FsError::Unavailable) }
    }

    /// An owner closes the file, by whatever handle: it has nothing of it locked any more.
    pub async fn closes(&self, ino: Ino, owner: u64) {
        if !self.locks.used.load(Ordering::Acquire) {
            return;
        }
        for handle in lock(&self.handles).values_mut().filter(|handle| handle.ino == ino) {
            handle.owners.remove(&owner);
        }
        self.unlock_all(ino, owner).await;
    }

    /// All that an owner has of a file. What cannot be unlocked now is later.
    pub(crate) async fn unlock_all(&self, ino: Ino, owner: u64) {
        if let Err(e) = self.unlock_range(ino, Wanted::all_of(owner)).await {
            tracing::warn!("inode {ino:x}: a lock whose owner closed the file stays for now: {e}");
            lock(&self.locks.left).insert((ino, owner), Instant::now());
        }
    }

    /// `false`: somebody is in the way.
    async fn change(&self, ino: Ino, wanted: Wanted, locked: bool) -> Result<bool, FsError> {
        let guard = self.commit_lock(ino);
        let _guard = guard.lock().await;
        self.change_alone(ino, wanted, locked).await
    }

    /// For whoever has the inode's commit lock.
    async fn change_alone(&self, ino: Ino, wanted: Wanted, locked: bool) -> Result<bool, FsError> {
        for round in 0..TRIES_MAX {
            let ranges = vec![Range::prefix(record::locks(ino), MOUNTS_MAX), Range::key(record::inode(ino))];
            let mut found = self.read_meta(ranges).await?.into_iter();
            let rows = rows_of(found.next().unwrap_or_default())?;
            first(found.next()).ok_or(FsError::Stale)?;
            let mine = rows.iter().find(|row| row.session == self.session);
            self.still_held(ino, mine);
            if locked && let Some((session, _)) = self.in_the_way(&rows, &wanted) {
                if session == self.session || !self.is_gone(ino, session, &rows).await? {
                    return Ok(false);
                }
                continue;
            }
            let before = mine.map(|row| row.locks.clone()).unwrap_or_default();
            let after = wanted.over(&before, locked);
            if after.len() > LOCKS_MAX {
                return Err(FsError::TooManyLocks);
            }
            if !locked && after == before {
                return Ok(true);
            }
            let (checks, write) = self.step(ino, &rows, &after, locked);
            match self.commit_as(checks, vec![write], false, Told::Replies).await {
                Ok(Ok(_)) => {
                    self.now_held(ino, vec![after]);
                    self.locks.changed.notify_waiters();
                    if locked {
                        lock(&self.locks.left).remove(&(ino, wanted.owner));
                    }
                    return Ok(true);
                }
                Ok(Err(_)) => pause(round).await,
                Err(e) => {
                    let had = before.iter().any(|lock| lock.owner == wanted.owner);
                    self.now_held(ino, vec![before, after]);
                    if locked && had {
                        // It goes on with what it has, and does not know that it may have more.
                        self.lose_lock(ino);
                    }
                    if locked {
                        lock(&self.locks.left).insert((ino, wanted.owner), Instant::now());
                    }
                    return Err(e);
                }
            }
        }
        Ok(false)
    }

    /// The batch that makes this mount's record say that.
    fn step(&self, ino: Ino, rows: &[Row], after: &[Lock], locked: bool) -> (Vec<Check>, Write) {
        let own = record::lock_of(ino, self.session);
        let mut checks = vec![Check::Present(record::inode(ino))];
        let mine = rows.iter().find(|row| row.session == self.session);
        checks.push(mine.map_or(Check::Absent(own.clone()), |row| Check::AtVersion(own.clone(), row.version)));
        if locked {
            // Nobody came meanwhile, and nobody changed what he has.
            checks.push(Check::Count(record::locks(ino), rows.len() as u32));
            let others = rows.iter().filter(|row| row.session != self.session);
            checks.extend(others.map(|row| Check::AtVersion(record::lock_of(ino, row.session), row.version)));
        }
        let write = match after.is_empty() {
            true => Write::Delete { key: own },
            false => put(own, record::encode(&after)),
        };
        (checks, write)
    }

    fn now_held(&self, ino: Ino, may_be: Held) {
        let mut held = lock(&self.locks.held);
        if may_be.iter().all(Vec::is_empty) {
            held.remove(&ino);
        } else {
            held.insert(ino, may_be);
        }
    }

    /// Do commits of the file rely on what its processes have locked here?
    pub(crate) fn relies_on_lock(&self, ino: Ino) -> bool {
        // Of what was lost a moment ago nothing is known, and what is written still may have been written under it.
        lock(&self.locks.held).get(&ino).is_some_and(|held| held.iter().all(|locks| !locks.is_empty()))
    }

    /// Does its record say what it is taken to say here? Otherwise somebody took it away.
    fn still_held(&self, ino: Ino, row: Option<&Row>) -> bool {
        let is = row.map(|row| &row.locks[..]).unwrap_or_default();
        let may_be = lock(&self.locks.held).get(&ino).cloned();
        let held = may_be.unwrap_or_default();
        // A batch of unknown fate may still land.
        if held.len() > 1 && held[0][..] == *is {
            return true;
        }
        let same = held.is_empty() || held.iter().any(|locks| locks[..] == *is);
        if !same {
            self.lose_lock(ino);
        }
        self.now_held(ino, vec![is.to_vec()]);
        same
    }

    /// A lock that processes here rely on is not theirs any more. They are told, and what they wrote and is not committed goes.
    pub(crate) fn lose_lock(&self, ino: Ino) {
        let Some(held) = lock(&self.locks.held).get_mut(&ino).map(std::mem::take) else { return };
        if held.is_empty() {
            return;
        }
        tracing::warn!(
            "inode {ino:x}: a lock of this mount was given to another, since it did not answer, or was later"
        );
        if let Some(open) = lock(&self.open).get_mut(&ino) {
            open.errors.push(FsError::Unavailable);
            let bytes: usize = open.dirty.drain(..).map(|(_, bytes)| bytes.len()).sum();
            (open.dirty_since, open.pending) = (None, None);
            self.dirty_bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        self.watch.drop_bytes(ino);
    }

    /// Does this mount, whose lock is in the way, not exist any more, or not answer? Then it has it no more.
    async fn is_gone(&self, ino: Ino, session: u64, rows: &[Row]) -> Result<bool, FsError> {
        let request = record::recall(session, 0);
        let ranges = vec![Range::key(record::session(session)), Range::key(request.clone())];
        let mut found = self.meta.read(&[0; 8], ranges).await?.into_iter();
        let (there, waits) = (first(found.next()).is_some(), first(found.next()).map(|row| row.version));
        let (now, mut silent, mut asks) = (Instant::now(), !there, None);
        {
            let mut asked = lock(&self.locks.asked);
            let anew = |request, last| Asked { request, since: now, last };
            let known = asked.get(&session).copied();
            let next = match (waits, known) {
                (Some(request), Some(known)) if known.request == Version::default() => Some(Asked { request, ..known }),
                (Some(request), Some(known)) if known.request == request => {
                    silent |= known.last && now - known.since >= LAST;
                    asks = (!known.last && now - known.since >= LEASE).then_some(anew(Version::default(), true));
                    None
                }
                (Some(request), _) => Some(anew(request, false)),
                // It has answered, not long ago.
                (None, Some(known)) if now - known.since < ASK_EVERY => None,
                (None, _) => {
                    asks = Some(anew(Version::default(), false));
                    None
                }
            };
            asked.extend(next.map(|next| (session, next)));
        }
        if let Some(next) = asks.filter(|_| there)
            && self.plain(Batch { writes: vec![put(request.clone(), HERE)], ..Batch::default() }).await?
        {
            lock(&self.locks.asked).insert(session, next);
        }
        if !silent {
            return Ok(false);
        }
        let key = record::lock_of(ino, session);
        let stands = rows.iter().filter(|row| row.session == session);
        let mut checks: Vec<Check> = stands.map(|row| Check::AtVersion(key.clone(), row.version)).collect();
        checks.extend(there.then_some(Check::Present(request)));
        tracing::warn!("inode {ino:x}: a mount that is gone (session {session:x}) had it locked, and has it no more");
        self.plain(Batch { checks, writes: vec![Write::Delete { key }], sync: false }).await
    }

    /// The kernel is to have nothing of an older commit than the present one; and nothing at all, if that cannot be told.
    async fn freshen(&self, ino: Ino) {
        let key = record::content(ino);
        let content = self.get(key.clone()).await.ok().map(|row| self.real(&key, version_of(row.as_ref())));
        self.watch.freshen(ino, content).await;
    }

    /// Looks whether this mount has still what it holds of an inode, and whether islands that met gave it twice.
    async fn mind_lock(&self, ino: Ino) -> Result<(), FsError> {
        let guard = self.commit_lock(ino);
        // Whoever commits just now finds out by itself.
        let Ok(_guard) = guard.try_lock() else { return Ok(()) };
        // Others' rows as they have landed: nobody is asked for anything by one who only looks.
        let range = Range::prefix(record::locks(ino), MOUNTS_MAX);
        let rows = rows_of(self.read_own(vec![range]).await?.into_iter().next().unwrap_or_default())?;
        let mine = rows.iter().find(|row| row.session == self.session);
        if !self.still_held(ino, mine) {
            return Ok(());
        }
        let Some(mine) = mine else { return Ok(()) };
        let others = rows.iter().filter(|row| row.session != self.session);
        let all: Vec<(u64, &Lock)> = others.flat_map(|row| row.locks.iter().map(|l| (row.session, l))).collect();
        let is_later = |mine: &Lock| {
            let as_wanted = Wanted { owner: 0, pid: 0, start: mine.start, end: mine.end, write: mine.write };
            let before = |(session, l): &(u64, &Lock)| (l.since, *session) < (mine.since, self.session);
            all.iter().any(|other| as_wanted.is_kept_by(other.1) && before(other))
        };
        if mine.locks.iter().any(is_later) {
            let key = record::lock_of(ino, self.session);
            let checks = vec![Check::AtVersion(key.clone(), mine.version)];
            self.commit_as(checks, vec![Write::Delete { key }], false, Told::Replies).await?.ok();
            self.lose_lock(ino);
        }
        Ok(())
    }

    /// Unlocks what an owner left that closed the file while the tables did not answer.
    async fn unlock_left(&self, (ino, owner): (Ino, u64), since: Instant) -> Result<(), FsError> {
        let guard = self.commit_lock(ino);
        let Ok(_guard) = guard.try_lock() else { return Ok(()) };
        if !lock(&self.locks.left).contains_key(&(ino, owner)) {
            return Ok(());
        }
        // What is gone with its inode needs no unlocking.
        let done = matches!(self.change_alone(ino, Wanted::all_of(owner), false).await, Ok(true) | Err(FsError::Stale));
        if done && since.elapsed() > UNKNOWN_FOR {
            lock(&self.locks.left).remove(&(ino, owner));
        }
        Ok(())
    }
}

/// Looks whether a mount has still what it holds, until it is gone.
pub(crate) async fn keep(fs: Weak<Fs>) {
    loop {
        tokio::time::sleep(MIND_EVERY).await;
        let Some(fs) = fs.upgrade() else { return };
        #[cfg(test)]
        if fs.delegations.frozen.load(Ordering::Relaxed) {
            continue;
        }
        let inos: Vec<Ino> = lock(&fs.locks.held).keys().copied().collect();
        for ino in inos {
            if let Err(e) = fs.mind_lock(ino).await {
                tracing::debug!("locks of inode {ino:x}: {e}");
            }
        }
        let left: Vec<_> = lock(&fs.locks.left).iter().map(|(of, since)| (*of, *since)).collect();
        for (of, since) in left {
            if let Err(e) = fs.unlock_left(of, since).await {
                tracing::debug!("locks of inode {:x}: {e}", of.0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::fs::{Kind, ROOT};
    use crate::model::{World, new};

    const NOT: Option<fn() -> bool> = None;
    const WAITS: Option<fn() -> bool> = Some(|| true);

    /// A file, and two mounts that have it open.
    async fn shared(world: &World) -> (Ino, [u64; 2]) {
        let ino = world.mounts[0].make(ROOT, b"file", new(Kind::File)).await.expect("made").0.ino;
        let handles =
            [world.mounts[0].open_known(ino, false), world.mounts[1].open(ino, false).await.expect("opened").0];
        (ino, handles)
    }

    /// What both sides count in one file, each under a lock: none is lost, whoever has the directory to himself.
    #[tokio::test(start_paused = true)]
    async fn who_locks_reads_what_the_last_one_wrote() {
        for seed in 1..20 {
            let world = World::with(seed, true).await;
            lock(&world.tables[0]).flaky = seed % 3 == 0;
            let (ino, handles) = shared(&world).await;
            let count = |side: usize| {
                let (fs, handle) = (world.mounts[side].clone(), handles[side]);
                async move {
                    for n in 0..40 {
                        let mine = of(side as u64, 0, 0, true);
                        while let Err(e) = fs.lock(handle, mine, WAITS).await {
                            assert_eq!(e, FsError::Unavailable);
                        }
                        let bytes = fs.read(ino, 0, 8).await.expect("read");
                        let now = bytes.first_chunk().map_or(0, |n| u64::from_be_bytes(*n));
                        fs.write(handle, 0, &(now + 1).to_be_bytes(), false).await.expect("taken");
                        while let Err(e) = fs.unlock(handle, mine).await {
                            assert_eq!(e, FsError::Unavailable);
                        }
                        tokio::time::sleep(Duration::from_millis((seed * n) % 7 * side as u64)).await;
                    }
                }
            };
            tokio::join!(count(0), count(1));
            let bytes = world.mounts[0].read(ino, 0, 8).await.expect("read");
            assert_eq!(bytes.first_chunk().map(|n| u64::from_be_bytes(*n)), Some(80), "seed {seed}");
        }
    }

    /// A lock is the other's once its mount is silent, which writes nothing that relied on it from then on, and is told.
    #[tokio::test(start_paused = true)]
    async fn a_lock_of_a_silent_mount_goes_and_its_writes_with_it() {
        let world = World::with(1, true).await;
        let (ino, handles) = shared(&world).await;
        let (one, two) = (&world.mounts[0], &world.mounts[1]);
        one.lock(handles[0], of(1, 0, 9, true), NOT).await.expect("free");
        one.land_all(false).await.expect("landed");
        assert_eq!(two.lock(handles[1], of(1, 5, 5, false), NOT).await, Err(FsError::Locked));
        assert_eq!(
            two.blocking(ino, &of(1, 5, 5, false)).await.expect("asked").map(|by| (by.start, by.end)),
            Some((0, 9))
        );
        two.lock(handles[1], of(1, 10, 10, true), NOT).await.expect("nobody has it");
        two.unlock(handles[1], of(1, 10, 10, true)).await.expect("unlocked");
        // As long as it gives signs of life it keeps it.
        for _ in 0..60 {
            tokio::time::sleep(Duration::from_millis(500)).await;
            assert_eq!(two.lock(handles[1], of(1, 5, 5, true), NOT).await, Err(FsError::Locked));
        }
        world.freeze(0, true);
        let begun = Instant::now();
        two.lock(handles[1], of(1, 5, 5, true), WAITS).await.expect("it is silent");
        assert!(begun.elapsed() >= LEASE + LAST, "{:?}", begun.elapsed());
        one.write(handles[0], 0, b"late", false).await.expect("taken");
        assert_eq!(one.flush(handles[0]).await, Err(FsError::Unavailable));
        two.write(handles[1], 0, b"mine", false).await.expect("taken");
        two.fsync(handles[1]).await.expect("on disc");
        world.freeze(0, false);
        assert_eq!(one.lock(handles[0], of(1, 0, 0, true), NOT).await, Ok(()), "it is another range");
        assert_eq!(one.read(ino, 0, 4).await.expect("read"), b"mine"[..]);
    }

    /// What a mount that ended held is free at once.
    #[tokio::test(start_paused = true)]
    async fn what_an_ended_mount_had_locked_is_free() {
        let world = World::with(1, true).await;
        let (_, handles) = shared(&world).await;
        world.mounts[0].lock(handles[0], of(1, 0, 9, true), NOT).await.expect("free");
        world.mounts[0].land_all(true).await.expect("landed");
        // Not even its record went.
        world.mounts[0].end_session().await.expect("ended");
        world.mounts[1].lock(handles[1], of(1, 0, 9, true), NOT).await.expect("free");
    }

    /// Both sides of a cut give the same: when they meet, the earlier stays, and the other is told.
    #[tokio::test(start_paused = true)]
    async fn of_a_lock_that_islands_gave_twice_the_earlier_stays() {
        let world = World::with(1, true).await;
        let (_, handles) = shared(&world).await;
        world.cut(true);
        for side in [1, 0] {
            world.mounts[side].lock(handles[side], of(1, 0, 9, true), NOT).await.expect("free");
            world.mounts[side].land_all(false).await.expect("landed");
        }
        world.cut(false);
        tokio::time::sleep(3 * MIND_EVERY).await;
        assert_eq!(world.mounts[0].write(handles[0], 0, b"x", false).await, Err(FsError::Unavailable));
        world.mounts[1].write(handles[1], 0, b"x", false).await.expect("it has it");
        assert_eq!(world.mounts[0].lock(handles[0], of(1, 0, 0, true), NOT).await, Err(FsError::Locked));
    }

    /// What was written under a lock that was lost goes with it, though the mount hears of the loss before it commits that.
    #[tokio::test(start_paused = true)]
    async fn bytes_that_wait_go_with_their_lock() {
        let world = World::with(1, true).await;
        let (ino, handles) = shared(&world).await;
        let (one, two) = (&world.mounts[0], &world.mounts[1]);
        one.lock(handles[0], of(1, 0, 0, true), NOT).await.expect("free");
        one.land_all(false).await.expect("landed");
        one.write(handles[0], 0, b"late", false).await.expect("taken");
        world.freeze(0, true);
        two.lock(handles[1], of(1, 0, 0, true), WAITS).await.expect("it is silent");
        two.write(handles[1], 0, b"mine", false).await.expect("taken");
        two.flush(handles[1]).await.expect("committed");
        // It locks something else, which shows it the loss.
        assert_eq!(one.lock(handles[0], of(2, 9, 9, true), NOT).await, Ok(()));
        assert_eq!(one.flush(handles[0]).await, Err(FsError::Unavailable));
        world.freeze(0, false);
        tokio::time::sleep(5 * MIND_EVERY).await;
        assert_eq!(two.read(ino, 0, 9).await.expect("read"), b"mine"[..]);
    }

    /// What was acknowledged early and robbed before it landed is not given afterwards, though nobody has it by then.
    #[tokio::test(start_paused = true)]
    async fn a_lock_that_did_not_land_in_time_is_lost() {
        let world = World::with(1, true).await;
        let (ino, handles) = shared(&world).await;
        let (one, two) = (&world.mounts[0], &world.mounts[1]);
        world.warm(0, ROOT, vec![5; 4]).await;
        world.freeze(0, true);
        one.lock(handles[0], of(1, 0, 0, true), NOT).await.expect("free");
        assert!(!lock(&one.delegations.overlay).is_empty(), "it was acknowledged before it landed");
        let read = one.read(ino, 0, 9).await.expect("read");
        two.lock(handles[1], of(1, 0, 0, true), WAITS).await.expect("robbed");
        two.write(handles[1], 0, b"mine", false).await.expect("taken");
        two.unlock(handles[1], of(1, 0, 0, true)).await.expect("unlocked");
        world.freeze(0, false);
        let done = match one.write(handles[0], 0, b"from what was read", false).await {
            Ok(()) => one.flush(handles[0]).await,
            no => no,
        };
        assert_eq!((done, read.len()), (Err(FsError::Unavailable), 0));
        tokio::time::sleep(5 * MIND_EVERY).await;
        assert_eq!(two.read(ino, 0, 99).await.expect("read"), b"mine"[..]);
        // It is free, and nobody's record is left.
        two.lock(handles[1], of(1, 0, 0, true), NOT).await.expect("free");
    }

    /// What was done under a lock that was lost does not land under another one of that mount.
    #[tokio::test(start_paused = true)]
    async fn what_was_done_under_a_lost_lock_is_kept_beside() {
        let world = World::with(1, true).await;
        let (ino, handles) = shared(&world).await;
        let (one, two) = (&world.mounts[0], &world.mounts[1]);
        one.lock(handles[0], of(1, 100, 100, true), NOT).await.expect("free");
        one.land_all(false).await.expect("landed");
        world.warm(0, ROOT, vec![5; 4]).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        world.freeze(0, true);
        one.lock(handles[0], of(2, 0, 0, true), NOT).await.expect("free");
        one.write(handles[0], 0, b"counted by one", false).await.expect("taken");
        one.unlock(handles[0], of(2, 0, 0, true)).await.expect("unlocked");
        assert!(!lock(&one.delegations.overlay).is_empty(), "it was acknowledged before it landed");
        two.lock(handles[1], of(1, 0, 0, true), WAITS).await.expect("robbed");
        assert_eq!(two.read(ino, 0, 99).await.expect("read"), b""[..]);
        world.freeze(0, false);
        tokio::time::sleep(5 * MIND_EVERY).await;
        assert_eq!(two.read(ino, 0, 99).await.expect("read"), b""[..], "it is locked");
        assert!(one.fsync(handles[0]).await.is_err());
        let tree = world.check().await.expect("sound");
        assert!(tree.iter().any(|(path, text)| path.starts_with("/file (conflict") && text == "counted "), "{tree:?}");
        // Nobody has what was lost with it.
        two.lock(handles[1], of(1, 0, 200, true), NOT).await.expect("free");
    }

    /// Whatever owner locks through a handle, closing that lets go.
    #[tokio::test(start_paused = true)]
    async fn a_closed_file_is_not_locked() {
        let world = World::with(1, true).await;
        let (ino, handles) = shared(&world).await;
        let one = &world.mounts[0];
        let other = one.open(ino, false).await.expect("opened").0;
        one.lock(handles[0], of(7, 0, 0, true), NOT).await.expect("free");
        one.lock(other, of(8, 5, 5, true), NOT).await.expect("free");
        one.lock(other, of(9, 7, 7, true), NOT).await.expect("free");
        // By another handle than it locked with: an owner is a process.
        one.closes(ino, 8).await;
        one.release(handles[0]).await;
        let two = &world.mounts[1];
        two.lock(handles[1], of(1, 0, 5, true), NOT).await.expect("free");
        assert_eq!(two.lock(handles[1], of(1, 7, 7, true), NOT).await, Err(FsError::Locked));
        one.release(other).await;
        two.lock(handles[1], of(1, 7, 7, true), NOT).await.expect("free");
        // Who closes one of two is not taken for having it still when the other's last user goes.
        two.closes(ino, 1).await;
        let [a, b] = [one.open(ino, false).await.expect("opened").0, one.open(ino, false).await.expect("opened").0];
        one.lock(a, of(7, 0, 0, true), NOT).await.expect("free");
        one.unlock(a, of(7, 0, 0, true)).await.expect("unlocked");
        one.closes(ino, 7).await;
        one.lock(b, of(7, 0, 0, true), NOT).await.expect("free");
        one.release(a).await;
        assert_eq!(two.lock(handles[1], of(1, 0, 0, true), NOT).await, Err(FsError::Locked));
    }

    fn of(owner: u64, start: u64, end: u64, write: bool) -> Wanted {
        Wanted { owner, pid: 1, start, end, write }
    }

    fn shown(locks: &[Lock]) -> Vec<(u64, u64, u64, bool)> {
        locks.iter().map(|l| (l.owner, l.start, l.end, l.write)).collect()
    }

    #[test]
    fn ranges_of_one_owner_are_cut_and_joined() {
        let all = of(1, 0, u64::MAX, true).over(&[], true);
        let hole = of(1, 10, 19, true).over(&all, false);
        assert_eq!(shown(&hole), [(1, 0, 9, true), (1, 20, u64::MAX, true)]);
        let read = of(1, 10, 19, false).over(&hole, true);
        assert_eq!(shown(&read), [(1, 0, 9, true), (1, 10, 19, false), (1, 20, u64::MAX, true)]);
        assert_eq!(shown(&of(1, 10, 19, true).over(&hole, true)), [(1, 0, u64::MAX, true)]);
        let two = of(2, 5, 5, false).over(&hole, true);
        assert_eq!(shown(&of(1, 0, u64::MAX, false).over(&two, false)), [(2, 5, 5, false)]);
    }
}
