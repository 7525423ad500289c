//! Freeing: an unlinked inode or a dropped extent goes when every mount has looked at it and none has it open, and every
//! node of the cluster is there to see it go.
//!
//! The last condition is stronger than it has to be (walkenfs' reaper will ask each copy instead), and safe: no copy can
//! come back with a map that names what was freed.

use crate::error::FsError;
use crate::fs::{Fs, Ino, TRIES_MAX, first, lock, put, to_content};
use crate::names::{HERE, removal_ranges};
use crate::record::{self, Dropped, Gone, Session};
use crate::tables::Records;
use crate::tidy::Group;
use bytes::Bytes;
use client::{Batch, Check, Range, Record, Space, Write};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Weak;
use std::time::{Duration, Instant};

/// How often late commits are looked for.
const ROUND: Duration = Duration::from_millis(250);
/// How old gathered bytes may get.
const DIRTY_AGE: Duration = Duration::from_secs(1);
/// How often is looked for what may be freed, and for islands that have met.
const REAP_EVERY: Duration = Duration::from_secs(1);
/// So much later another mount tidies what the one before it did not.
const TIDY_AFTER: Duration = Duration::from_secs(5);
/// How much is freed in one round.
const REAP_MAX: u32 = 500;
/// How many keys one batch deletes.
const DELETE_MAX: usize = 1000;

/// Runs until the mount is gone.
pub(crate) async fn keep_house(fs: Weak<Fs>) {
    let (mut reaped, mut untidy) = (Instant::now(), None);
    loop {
        tokio::time::sleep(ROUND).await;
        let Some(fs) = fs.upgrade() else { return };
        let old = |since: Option<Instant>| since.is_some_and(|at| at.elapsed() >= DIRTY_AGE);
        let late: Vec<Ino> = lock(&fs.open).iter().filter(|(_, o)| old(o.dirty_since)).map(|(ino, _)| *ino).collect();
        for ino in late {
            // Kept for the handles, which report it.
            let _ = fs.flush_inode(ino, false).await;
        }
        if fs.numbers.wants_spare()
            && let Ok(next) = fs.claim_allocator().await
        {
            fs.numbers.take_spare(next);
        }
        if reaped.elapsed() >= REAP_EVERY {
            reaped = Instant::now();
            if let Err(e) = fs.reap(&mut untidy).await {
                tracing::debug!("nothing freed this time: {e}");
            }
        }
    }
}

impl Fs {
    pub(crate) async fn begin_session(&self) -> Result<(), client::Error> {
        let (node, incarnation) = self.me();
        let session = Session { node, incarnation, seen: 0 };
        let put = put(record::session(self.session), record::encode(&session));
        let batch = Batch { checks: Vec::new(), writes: vec![put], sync: true };
        self.meta.batch(&[0; 8], batch).await.map(drop)
    }

    pub(crate) async fn end_session(&self) -> Result<(), FsError> {
        let gone = vec![Write::Delete { key: record::session(self.session) }];
        self.commit(Vec::new(), gone, false).await.map(drop)
    }

    /// One round: say what this mount has seen and holds; if it is this mount's turn, free what nobody needs.
    async fn reap(&self, since: &mut Option<Instant>) -> Result<(), FsError> {
        let prefixes = [record::orphans(), record::dropped_all(), record::sessions(), record::holds()];
        let ranges = prefixes.into_iter().map(|p| Range::prefix(p, REAP_MAX)).collect();
        let mut rows = self.read_meta(ranges).await?.into_iter();
        let mut next = || rows.next().unwrap_or_default().rows;
        let (orphans, dropped, sessions, holds) = (next(), next(), next(), next());
        let sessions = self.live_sessions(sessions).await?;
        // What islands made of one tree may name what one of them gave up.
        if !self.is_tidied(sessions.range(..self.session).count(), since).await?
            || orphans.is_empty() && dropped.is_empty()
        {
            return Ok(());
        }
        let orphans: BTreeMap<Ino, Record> =
            orphans.into_iter().filter_map(|(k, r)| Some((number(&k, 9)?, r))).collect();
        self.say_seen(&orphans, &dropped, &sessions, &holds).await?;
        let first = sessions.keys().next() == Some(&self.session);
        // In this order: with everybody here no island is left whose heal would come after this.
        if !first || !self.everybody_is_here().await? || self.untidied().await?.is_some() {
            return Ok(());
        }
        let seen = sessions.values().map(|s| s.seen).min().unwrap_or(0);
        let held: BTreeSet<Ino> = holds
            .iter()
            .filter(|(k, _)| number(k, 17).is_some_and(|s| sessions.contains_key(&s)))
            .filter_map(|(k, _)| number(k, 9))
            .collect();
        for (ino, row) in orphans {
            if row.hlc.0 <= seen && !held.contains(&ino) && self.give_up(ino).await? {
                self.free_inode(ino).await?;
            }
        }
        let mut by_ino: BTreeMap<Ino, Vec<(Bytes, Dropped)>> = BTreeMap::new();
        for (key, row) in dropped.into_iter().filter(|(_, r)| r.hlc.0 <= seen) {
            let dropped: Dropped = record::decode(row.value.as_deref().unwrap_or_default())?;
            by_ino.entry(dropped.ino).or_default().push((key, dropped));
        }
        for (ino, all) in by_ino {
            self.free_dropped(ino, all).await?;
        }
        Ok(())
    }

    /// Deletes what commits of a file gave up, but what its map names all the same: another island's commit may have won that
    /// had not given it up.
    async fn free_dropped(&self, ino: Ino, all: Vec<(Bytes, Dropped)>) -> Result<(), FsError> {
        let row = self.get(record::content(ino)).await?;
        let (extents, pages) = self.named(ino, &to_content(row.as_ref())?).await?;
        let wanted: BTreeSet<u64> = extents.iter().map(|e| e.id).chain(pages).collect();
        for (key, mut dropped) in all {
            dropped.keep_out(&wanted);
            let (mut meta, blocks) = dropped.keys();
            self.delete_blocks(ino, blocks).await?;
            meta.push(key);
            self.delete_meta(meta).await?;
        }
        Ok(())
    }

    /// What to put down when all is tidied that heals left; `None`: it is.
    async fn untidied(&self) -> Result<Option<Bytes>, FsError> {
        let heals = self.meta.heals().await?;
        let said = self.get(record::tidied()).await?.and_then(|row| row.value);
        let mark = Bytes::copy_from_slice(&blake3::hash(&record::encode(&heals)).as_bytes()[..8]);
        Ok((!heals.is_empty() && said.as_ref() != Some(&mark)).then_some(mark))
    }

    /// Takes the heart of an inode that nobody wants any more, so that nothing brings it back; `false`: somebody does, or may.
    async fn give_up(&self, ino: Ino) -> Result<bool, FsError> {
        let key = record::orphan(ino);
        let ranges = removal_ranges(ino).into_iter().chain([Range::key(key.clone())]).collect();
        let mut rows = self.read_meta(ranges).await?.into_iter();
        let links = rows.next().unwrap_or_default().rows;
        let (inode, content, orphan) = (first(rows.next()), first(rows.next()), first(rows.next()));
        let Some(orphan) = orphan.filter(|_| links.is_empty()) else { return Ok(false) };
        let Some(inode) = inode else { return Ok(true) };
        let group = Group::of(ino, &inode, content.as_ref())?;
        if Gone::read(orphan.value.as_deref().unwrap_or_default()).iter().all(|gone| group.is_newer(gone)) {
            return Ok(false);
        }
        let at = record::content(ino);
        let checks = vec![
            Check::AtVersion(key, orphan.version),
            Check::AtVersion(record::inode(ino), inode.version),
            content.map_or(Check::Absent(at.clone()), |c| Check::AtVersion(at, c.version)),
            Check::Count(record::places(ino), 0),
            Check::Count(record::names(ino), 0),
        ];
        Ok(self.commit(checks, vec![Write::Delete { key: record::inode(ino) }], false).await?.is_none())
    }

    /// Has everything been tidied that heals left? The first of the mounts does it, another if it does not.
    async fn is_tidied(&self, before: usize, since: &mut Option<Instant>) -> Result<bool, FsError> {
        let Some(mark) = self.untidied().await? else {
            *since = None;
            return Ok(true);
        };
        let since = *since.get_or_insert_with(Instant::now);
        if since.elapsed() < TIDY_AFTER * before as u32 {
            return Ok(false);
        }
        let mended = self.tidy().await?;
        if mended > 0 {
            tracing::info!("islands met: {mended} things in the tree were put in order");
        }
        self.commit(Vec::new(), vec![put(record::tidied(), mark)], false).await?;
        Ok(true)
    }

    /// Holds what is open here before it says that it has looked.
    async fn say_seen(
        &self,
        orphans: &BTreeMap<Ino, Record>,
        dropped: &[(Bytes, Record)],
        sessions: &BTreeMap<u64, Session>,
        holds: &[(Bytes, Record)],
    ) -> Result<(), FsError> {
        let open: BTreeSet<Ino> = lock(&self.open).keys().copied().filter(|ino| orphans.contains_key(ino)).collect();
        let mine = |k: &Bytes| number(k, 17) == Some(self.session);
        let held: BTreeSet<Ino> = holds.iter().filter(|(k, _)| mine(k)).filter_map(|(k, _)| number(k, 9)).collect();
        let mut writes: Vec<Write> =
            open.difference(&held).map(|ino| put(record::hold(*ino, self.session), HERE)).collect();
        writes.extend(held.difference(&open).map(|ino| Write::Delete { key: record::hold(*ino, self.session) }));
        let newest = orphans.values().chain(dropped.iter().map(|(_, r)| r)).map(|r| r.hlc.0).max().unwrap_or(0);
        let key = record::session(self.session);
        let (node, incarnation) = self.me();
        let now = Session { node, incarnation, seen: newest };
        if sessions.get(&self.session) != Some(&now) {
            writes.push(put(key, record::encode(&now)));
        }
        if writes.is_empty() { Ok(()) } else { self.commit(Vec::new(), writes, false).await.map(drop) }
    }

    /// Sessions that still count; one ends by unmount or a newer start of its node, never by silence.
    async fn live_sessions(&self, rows: Vec<(Bytes, Record)>) -> Result<BTreeMap<u64, Session>, FsError> {
        let mut all: BTreeMap<u64, Session> = BTreeMap::new();
        for (key, row) in rows {
            let session = record::decode(row.value.as_deref().unwrap_or_default())?;
            all.extend(number(&key, 9).map(|id| (id, session)));
        }
        let mut newest: BTreeMap<base::NodeId, u64> = BTreeMap::new();
        for s in all.values() {
            let n = newest.entry(s.node).or_insert(0);
            *n = (*n).max(s.incarnation);
        }
        let (me, incarnation) = self.me();
        newest.insert(me, incarnation);
        let over = |s: &Session| newest.get(&s.node).is_some_and(|n| *n > s.incarnation);
        let gone: Vec<Bytes> = all.iter().filter(|(_, s)| over(s)).map(|(id, _)| record::session(*id)).collect();
        all.retain(|_, s| !over(s));
        if !gone.is_empty() {
            self.delete_meta(gone).await?;
        }
        Ok(all)
    }

    async fn everybody_is_here(&self) -> Result<bool, FsError> {
        let Some(status) = self.status().await? else { return Ok(true) };
        let wanted = status.nodes.len();
        let in_sync = |name: &str| {
            let line = status.tables.iter().find(|t| t.name == name);
            line.is_some_and(|t| t.led == t.fragments && usize::from(t.in_sync) >= wanted.min(usize::from(t.copies)))
        };
        let all_in_sync = |records: &Records| records.table().is_none_or(|table| in_sync(&table.def().name));
        let tables = all_in_sync(&self.meta) && all_in_sync(&self.blocks);
        Ok(status.nodes.iter().all(|n| n.reachable) && tables)
    }

    /// Deletes everything of an inode, its mark last.
    async fn free_inode(&self, ino: Ino) -> Result<(), FsError> {
        let mut from = Bytes::copy_from_slice(&ino.to_be_bytes());
        let to: Option<Bytes> = ino.checked_add(1).map(|next| Bytes::copy_from_slice(&next.to_be_bytes()));
        for _ in 0..TRIES_MAX {
            let range = Range { space: Space::User, from: from.clone(), to: to.clone(), limit: REAP_MAX };
            let rows = self.blocks.read(&ino.to_be_bytes(), vec![range]).await?;
            let Some(rows) = rows.into_iter().next() else { break };
            let keys: Vec<Bytes> = rows.rows.into_iter().map(|(k, _)| k).collect();
            from = keys.last().map_or(from, |last| [&last[..], &[0]].concat().into());
            self.delete_blocks(ino, keys).await?;
            if !rows.more {
                break;
            }
        }
        loop {
            let range = Range {
                space: Space::User,
                from: Bytes::copy_from_slice(&ino.to_be_bytes()),
                to: to.clone(),
                limit: REAP_MAX,
            };
            let rows = self.read_meta(vec![range]).await?.into_iter().next().unwrap_or_default();
            let more = rows.more;
            self.delete_meta(rows.rows.into_iter().map(|(k, _)| k).collect()).await?;
            if !more {
                return self.delete_meta(vec![record::orphan(ino)]).await;
            }
        }
    }

    async fn delete_meta(&self, keys: Vec<Bytes>) -> Result<(), FsError> {
        for part in keys.chunks(DELETE_MAX) {
            let writes = part.iter().map(|key| Write::Delete { key: key.clone() }).collect();
            self.commit(Vec::new(), writes, false).await?;
        }
        Ok(())
    }

    async fn delete_blocks(&self, ino: Ino, keys: Vec<Bytes>) -> Result<(), FsError> {
        for part in keys.chunks(DELETE_MAX) {
            let writes = part.iter().map(|key| Write::Delete { key: key.clone() }).collect();
            self.blocks.batch(&ino.to_be_bytes(), Batch { checks: Vec::new(), writes, sync: false }).await?;
        }
        Ok(())
    }
}

fn number(key: &Bytes, at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(key.get(at..at + 8)?.try_into().ok()?))
}
