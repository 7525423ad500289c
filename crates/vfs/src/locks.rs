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
use crate::fs::{Fs, Ino, TRIES_MAX, first, lock, pause, put, version_of, wall_ns};
use crate::names::HERE;
use crate::record::{self, Lock};
use base::Version;
use client::{Batch, Check, Range, Rows, Write};
use std::collections::{BTreeSet, HashMap};
use std::sync::Mutex;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// So long a mount may be silent before it loses a lock that is in somebody's way.
const LEASE: Duration = Duration::from_secs(10);
/// How often a mount that holds a lock in somebody's way is asked whether it is there.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// How often whoever waits for a lock looks by itself.
const LOOK: Duration = Duration::from_millis(100);
/// How often a mount looks whether it still has what it holds.
const MIND_EVERY: Duration = Duration::from_secs(1);
/// How many ranges of one inode the processes of one mount may lock.
const LOCKS_MAX: usize = 1024;
/// How many mounts there are at most.
const MOUNTS_MAX: u32 = 65_000;

/// Locks as one mount knows them.
#[derive(Default)]
pub(crate) struct Locks {
    /// What its own records say; `None`: nobody told what became of a change. Changed under the inode's commit lock.
    held: Mutex<HashMap<Ino, Option<Vec<Lock>>>>,
    /// Mounts with a lock in somebody's way: with which request they were asked for a sign of life, and since when.
    asked: Mutex<HashMap<u64, (Version, Option<Instant>)>>,
    minded: Mutex<Option<Instant>>,
    /// Somewhere a lock was changed.
    pub changed: Notify,
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

    /// Locks a range of a file. `waits`: until that can be done, or that says that nobody waits any more.
    pub async fn lock(&self, ino: Ino, wanted: Wanted, waits: Option<impl Fn() -> bool + Send>) -> Result<(), FsError> {
        loop {
            let changed = self.locks.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.change(ino, wanted, true).await? {
                return self.freshen(ino).await;
            }
            let Some(waits) = &waits else { return Err(FsError::Locked) };
            let _ = tokio::time::timeout(LOOK, changed).await;
            if !waits() {
                return Err(FsError::Interrupted);
            }
        }
    }

    /// Unlocks it, after what was written in it is there for all.
    pub async fn unlock(&self, ino: Ino, wanted: Wanted) -> Result<(), FsError> {
        if !lock(&self.locks.held).contains_key(&ino) {
            return Ok(());
        }
        // What goes wrong whoever has it open is told.
        let _ = self.flush_inode(ino, false).await;
        self.change(ino, wanted, false).await.map(drop)
    }

    /// An owner has closed the file: it has nothing locked any more. `None`: nobody has.
    pub async fn unlock_all(&self, ino: Ino, owner: Option<u64>) {
        if !lock(&self.locks.held).contains_key(&ino) {
            return;
        }
        let owners = match owner {
            Some(owner) => Ok(BTreeSet::from([owner])),
            None => self.owners(ino).await,
        };
        let owners = owners.unwrap_or_else(|e| {
            tracing::warn!("inode {ino:x}: what is locked stays so until this mount ends: {e}");
            BTreeSet::new()
        });
        for owner in owners {
            let all = Wanted { owner, pid: 0, start: 0, end: u64::MAX, write: false };
            if let Err(e) = self.unlock(ino, all).await {
                tracing::warn!(
                    "inode {ino:x}: a lock stays after its owner closed the file, until this mount ends: {e}"
                );
            }
        }
    }

    /// Who has something locked here, by this mount's own record.
    async fn owners(&self, ino: Ino) -> Result<BTreeSet<u64>, FsError> {
        let range = Range::prefix(record::lock_of(ino, self.session), 1);
        let rows = rows_of(self.read_own(vec![range]).await?.into_iter().next().unwrap_or_default())?;
        Ok(rows.iter().flat_map(|row| &row.locks).map(|lock| lock.owner).collect())
    }

    /// `false`: somebody is in the way.
    async fn change(&self, ino: Ino, wanted: Wanted, locked: bool) -> Result<bool, FsError> {
        let guard = self.commit_lock(ino);
        let _guard = guard.lock().await;
        let own = record::lock_of(ino, self.session);
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
            let before = mine.map(|row| &row.locks[..]).unwrap_or_default();
            let after = wanted.over(before, locked);
            if after.len() > LOCKS_MAX {
                return Err(FsError::TooManyLocks);
            }
            if after.is_empty() && mine.is_none() {
                return Ok(true);
            }
            let mut checks = vec![Check::Present(record::inode(ino))];
            checks.push(mine.map_or(Check::Absent(own.clone()), |row| Check::AtVersion(own.clone(), row.version)));
            if locked {
                // Nobody came meanwhile, and nobody changed what he has.
                checks.push(Check::Count(record::locks(ino), rows.len() as u32));
                let others = rows.iter().filter(|row| row.session != self.session);
                checks.extend(others.map(|row| Check::AtVersion(record::lock_of(ino, row.session), row.version)));
            }
            let write = match after.is_empty() {
                true => Write::Delete { key: own.clone() },
                false => put(own.clone(), record::encode(&after)),
            };
            match self.commit_as(checks, vec![write], false, Told::Replies).await {
                Ok(Ok(_)) => {
                    self.now_held(ino, after);
                    return Ok(true);
                }
                Ok(Err(_)) => pause(round).await,
                Err(e) => {
                    lock(&self.locks.held).insert(ino, None);
                    return Err(e);
                }
            }
        }
        Err(FsError::Unavailable)
    }

    fn now_held(&self, ino: Ino, locks: Vec<Lock>) {
        let mut held = lock(&self.locks.held);
        if locks.is_empty() {
            held.remove(&ino);
        } else {
            held.insert(ino, Some(locks));
        }
        drop(held);
        self.locks.changed.notify_waiters();
    }

    /// What a commit of the file relies on, if its processes have locked it here.
    pub(crate) fn relies_on(&self, ino: Ino) -> Option<Check> {
        let held = matches!(lock(&self.locks.held).get(&ino), Some(Some(_)));
        held.then(|| Check::Present(record::lock_of(ino, self.session)))
    }

    /// Does its record say what it is taken to say here? Otherwise somebody took it away.
    fn still_held(&self, ino: Ino, row: Option<&Row>) -> bool {
        let is = row.map(|row| &row.locks[..]).unwrap_or_default();
        let same = match lock(&self.locks.held).get(&ino) {
            Some(Some(held)) => held[..] == *is,
            Some(None) | None => true,
        };
        if !same {
            self.lose_lock(ino);
            lock(&self.locks.held).extend(row.map(|row| (ino, Some(row.locks.clone()))));
        }
        same
    }

    /// A lock that processes here rely on is not theirs any more: they are told.
    pub(crate) fn lose_lock(&self, ino: Ino) {
        let Some(Some(_)) = lock(&self.locks.held).remove(&ino) else { return };
        tracing::warn!(
            "inode {ino:x}: a lock of this mount was given to another, since it did not answer, or was later"
        );
        if let Some(open) = lock(&self.open).get_mut(&ino) {
            open.errors.push(FsError::Unavailable);
        }
    }

    /// Does this mount, whose lock is in the way, not exist any more, or not answer? Then it has it no more.
    async fn is_gone(&self, ino: Ino, session: u64, rows: &[Row]) -> Result<bool, FsError> {
        let request = record::recall(session, 0);
        let ranges = vec![Range::key(record::session(session)), Range::key(request.clone())];
        let mut found = self.meta.read(&[0; 8], ranges).await?.into_iter();
        let (there, waits) = (first(found.next()).is_some(), first(found.next()).map(|row| row.version));
        let now = Instant::now();
        let (silent, asks) = {
            let mut asked = lock(&self.locks.asked);
            let (seen, since) = asked.get(&session).copied().unwrap_or_default();
            match (waits, since) {
                _ if !there => (true, false),
                (Some(waits), Some(since)) if waits == seen => (now - since >= LEASE, false),
                // It has answered, not long ago.
                (None, Some(since)) if now - since < ASK_EVERY => (false, false),
                (waits, _) => {
                    asked.insert(session, (waits.unwrap_or_default(), Some(now)));
                    (false, waits.is_none())
                }
            }
        };
        if asks {
            self.plain(Batch { writes: vec![put(request.clone(), HERE)], ..Batch::default() }).await?;
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

    /// The kernel is to have nothing of an older commit than the present one.
    async fn freshen(&self, ino: Ino) -> Result<(), FsError> {
        let key = record::content(ino);
        let content = version_of(self.get(key.clone()).await?.as_ref());
        self.watch.freshen(ino, self.real(&key, content)).await;
        Ok(())
    }

    /// Looks whether this mount has still what it holds, and whether islands that met gave one lock twice.
    pub(crate) async fn mind_locks(&self) -> Result<(), FsError> {
        let due = lock(&self.locks.minded).is_none_or(|at| at.elapsed() >= MIND_EVERY);
        let inos: Vec<Ino> = lock(&self.locks.held).keys().copied().filter(|_| due).collect();
        for ino in inos {
            let guard = self.commit_lock(ino);
            let _guard = guard.lock().await;
            // What others have acknowledged and not landed they give back to nobody who only looks.
            let range = Range::prefix(record::locks(ino), MOUNTS_MAX);
            let rows = rows_of(self.read_own(vec![range]).await?.into_iter().next().unwrap_or_default())?;
            let mine = rows.iter().find(|row| row.session == self.session);
            if !self.still_held(ino, mine) {
                continue;
            }
            let others = rows.iter().filter(|row| row.session != self.session);
            let all: Vec<(u64, &Lock)> = others.flat_map(|row| row.locks.iter().map(|l| (row.session, l))).collect();
            let lost = |mine: &&Lock| {
                let as_wanted = Wanted { owner: 0, pid: 0, start: mine.start, end: mine.end, write: mine.write };
                let earlier = |(session, lock): &(u64, &Lock)| {
                    as_wanted.is_kept_by(lock) && (lock.since, *session) < (mine.since, self.session)
                };
                all.iter().any(earlier)
            };
            let Some(mine) = mine.filter(|row| row.locks.iter().any(|l| lost(&l))) else { continue };
            let key = record::lock_of(ino, self.session);
            let checks = vec![Check::AtVersion(key.clone(), mine.version)];
            if self.commit_as(checks, vec![Write::Delete { key }], false, Told::Replies).await?.is_ok() {
                self.lose_lock(ino);
            }
        }
        if due {
            *lock(&self.locks.minded) = Some(Instant::now());
        }
        Ok(())
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
                        while let Err(e) = fs.lock(ino, mine, WAITS).await {
                            assert_eq!(e, FsError::Unavailable);
                        }
                        let bytes = fs.read(ino, 0, 8).await.expect("read");
                        let now = bytes.first_chunk().map_or(0, |n| u64::from_be_bytes(*n));
                        fs.write(handle, 0, &(now + 1).to_be_bytes(), false).await.expect("taken");
                        while let Err(e) = fs.unlock(ino, mine).await {
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
        one.lock(ino, of(1, 0, 9, true), NOT).await.expect("free");
        one.land_all(false).await.expect("landed");
        assert_eq!(two.lock(ino, of(1, 5, 5, false), NOT).await, Err(FsError::Locked));
        assert_eq!(
            two.blocking(ino, &of(1, 5, 5, false)).await.expect("asked").map(|by| (by.start, by.end)),
            Some((0, 9))
        );
        two.lock(ino, of(1, 10, 10, true), NOT).await.expect("nobody has it");
        two.unlock(ino, of(1, 10, 10, true)).await.expect("unlocked");
        // As long as it gives signs of life it keeps it.
        for _ in 0..60 {
            tokio::time::sleep(Duration::from_millis(500)).await;
            assert_eq!(two.lock(ino, of(1, 5, 5, true), NOT).await, Err(FsError::Locked));
        }
        world.freeze(0, true);
        let begun = Instant::now();
        two.lock(ino, of(1, 5, 5, true), WAITS).await.expect("it is silent");
        assert!(begun.elapsed() >= LEASE, "{:?}", begun.elapsed());
        one.write(handles[0], 0, b"late", false).await.expect("taken");
        assert_eq!(one.flush(handles[0]).await, Err(FsError::Unavailable));
        two.write(handles[1], 0, b"mine", false).await.expect("taken");
        two.fsync(handles[1]).await.expect("on disc");
        world.freeze(0, false);
        assert_eq!(one.lock(ino, of(1, 0, 0, true), NOT).await, Ok(()), "it is another range");
        assert_eq!(one.read(ino, 0, 4).await.expect("read"), b"mine"[..]);
    }

    /// What a mount that ended held is free at once.
    #[tokio::test(start_paused = true)]
    async fn what_an_ended_mount_had_locked_is_free() {
        let world = World::with(1, true).await;
        let (ino, _) = shared(&world).await;
        world.mounts[0].lock(ino, of(1, 0, 9, true), NOT).await.expect("free");
        world.mounts[0].land_all(true).await.expect("landed");
        // Not even its record went.
        world.mounts[0].end_session().await.expect("ended");
        world.mounts[1].lock(ino, of(1, 0, 9, true), NOT).await.expect("free");
    }

    /// Both sides of a cut give the same: when they meet, the earlier stays, and the other is told.
    #[tokio::test(start_paused = true)]
    async fn of_a_lock_that_islands_gave_twice_the_earlier_stays() {
        let world = World::with(1, true).await;
        let (ino, handles) = shared(&world).await;
        world.cut(true);
        for side in [1, 0] {
            world.mounts[side].lock(ino, of(1, 0, 9, true), NOT).await.expect("free");
            world.mounts[side].land_all(false).await.expect("landed");
        }
        world.cut(false);
        tokio::time::sleep(3 * MIND_EVERY).await;
        assert_eq!(world.mounts[0].write(handles[0], 0, b"x", false).await, Err(FsError::Unavailable));
        world.mounts[1].write(handles[1], 0, b"x", false).await.expect("it has it");
        assert_eq!(world.mounts[0].lock(ino, of(1, 0, 0, true), NOT).await, Err(FsError::Locked));
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
