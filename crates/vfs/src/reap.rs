//! Freeing: an unlinked inode or a dropped extent goes when every mount has looked at it and none has it open, and every
//! node of the cluster is there to see it go.
//!
//! The last condition is stronger than it has to be (walkenfs' reaper will ask each copy instead), and safe: no copy can
//! come back with a map that names what was freed.

use crate::delegate::Told;
use crate::error::FsError;
use crate::fs::{Fs, Ino, first, lock, put, to_content};
use crate::land::nothing;
use crate::names::{HERE, removal_ranges};
use crate::record::{self, Dropped, Gone, Session};
use crate::state::StateTold;
use crate::tables::Records;
use crate::tidy::Group;
use bytes::Bytes;
use client::{Batch, Check, Outcome, Range, Record, Space, Write};
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
/// How long things are freed in one round.
const REAP_FOR: Duration = Duration::from_millis(500);
/// So long is waited for what may be on its way still, before tidying does without.
const PATIENCE: Duration = Duration::from_secs(60);
/// How many rows one read brings.
const ROWS: u32 = 4000;
/// How many keys one batch deletes.
const DELETE_MAX: usize = 1000;

/// Commits what is old enough, until the mount is gone.
pub(crate) async fn keep_house(fs: Weak<Fs>) {
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
    }
}

/// Tidies after heals and frees what nobody needs, until the mount is gone.
pub(crate) async fn keep_order(fs: Weak<Fs>) {
    let (mut rounds, mut told) = (Rounds::default(), StateTold::default());
    loop {
        tokio::time::sleep(REAP_EVERY).await;
        let Some(fs) = fs.upgrade() else { return };
        if fs.is_ending() {
            return;
        }
        fs.look_at_state(&mut told).await;
        if let Err(e) = fs.reap(&mut rounds).await {
            tracing::debug!("nothing freed this time: {e}");
        }
    }
}

/// What one round leaves to the next.
#[derive(Default)]
pub(crate) struct Rounds {
    /// Since when there is something to tidy.
    untidy: Option<Instant>,
    /// The newest mark of the last round.
    newest: u64,
}

/// Whether an inode may be freed.
#[derive(PartialEq, Eq, Debug)]
enum Verdict {
    /// Nothing brings it back.
    Given,
    /// Not now.
    Kept,
    /// Somebody changed it who had not been told that it was removed.
    Wanted,
}

impl Fs {
    pub(crate) async fn begin_session(&self) -> Result<(), client::Error> {
        let (node, incarnation) = self.me();
        let session = Session { node, incarnation, seen: 0, heals: 0 };
        let put = put(record::session(self.session), record::encode(&session));
        let batch = Batch { checks: Vec::new(), writes: vec![put], sync: true };
        self.meta.batch(&[0; 8], batch).await.map(drop)
    }

    pub(crate) async fn end_session(&self) -> Result<(), FsError> {
        let mut gone = self.asked_of(self.session).await?;
        gone.extend(session_keys(self.session).map(|key| Write::Delete { key }));
        self.keep(Vec::new(), gone).await.map(drop)
    }

    /// One round: say what this mount has seen and holds; if it is this mount's turn, free what nobody needs.
    pub(crate) async fn reap(&self, rounds: &mut Rounds) -> Result<(), FsError> {
        let ((holds, _), (sessions, _)) = (self.all(record::holds()).await?, self.all(record::sessions()).await?);
        let sessions = self.live_sessions(sessions, &holds).await?;
        let ((orphans, one), (dropped, other)) =
            (self.all(record::orphans()).await?, self.all(record::dropped_all()).await?);
        // What islands made of one tree may name what one of them gave up.
        let mark = self.heal_mark().await?;
        if !self.is_tidied(sessions.range(..self.session).count(), rounds).await? || orphans.len() + dropped.len() == 0
        {
            return Ok(());
        }
        let orphans: BTreeMap<Ino, Record> =
            orphans.into_iter().filter_map(|(k, r)| Some((number(&k, 9)?, r))).collect();
        let newest = orphans.values().chain(dropped.iter().map(|(_, r)| r)).map(|r| r.hlc.0).max().unwrap_or(0);
        // In several reads one that was written between them may be missing. What was there a round ago is not.
        let seen = if one && other { newest } else { rounds.newest.min(newest) };
        rounds.newest = newest;
        // What has not landed may name what those rows give up.
        if !self.is_up_to_date().await? {
            return Ok(());
        }
        self.say_seen(&orphans, (seen, mark), &sessions, &holds).await?;
        // In this order: with everybody here no island is left whose heal would come after this.
        let first = sessions.keys().next() == Some(&self.session);
        if !first || !self.everybody_is_here().await? || self.untidied().await?.is_some() {
            return Ok(());
        }
        // What a mount saw before islands met says nothing of what the other island removed.
        if sessions.values().any(|s| s.heals != mark) {
            return Ok(());
        }
        let seen = sessions.values().map(|s| s.seen).min().unwrap_or(0);
        let ledger = self.lost_bytes().await?;
        let begun = Instant::now();
        for (ino, row) in orphans {
            if row.hlc.0 > seen || ledger.contains_key(&ino) {
                continue;
            }
            match self.give_up(ino).await? {
                Verdict::Given => self.free_inode(ino).await?,
                Verdict::Kept => {}
                Verdict::Wanted => drop(self.tidy(false, |what| tracing::info!("{what}")).await?),
            }
            if begun.elapsed() > REAP_FOR {
                return Ok(());
            }
        }
        let mut by_ino: BTreeMap<Ino, Vec<(Bytes, Dropped)>> = BTreeMap::new();
        for (key, row) in dropped.into_iter().filter(|(_, r)| r.hlc.0 <= seen) {
            let dropped: Dropped = record::decode(row.value.as_deref().unwrap_or_default())?;
            by_ino.entry(dropped.ino).or_default().push((key, dropped));
        }
        for (ino, all) in by_ino.into_iter().filter(|(ino, _)| !ledger.contains_key(ino)) {
            self.free_dropped(ino, all).await?;
            if begun.elapsed() > REAP_FOR {
                return Ok(());
            }
        }
        Ok(())
    }

    /// All rows under a prefix, and whether one read brought them.
    pub(crate) async fn all(&self, prefix: Bytes) -> Result<(Vec<(Bytes, Record)>, bool), FsError> {
        let (mut out, mut range) = (Vec::new(), Range::prefix(prefix, ROWS));
        for reads in 1.. {
            // What has not landed nobody else knows: it neither frees anything nor is freed.
            let rows = self.meta.read(&[0; 8], vec![range.clone()]).await?.into_iter().next().unwrap_or_default();
            let last = rows.rows.last().map(|(key, _)| key.clone());
            out.extend(rows.rows);
            match last {
                Some(last) if rows.more => range.from = [&last[..], &[0]].concat().into(),
                _ => return Ok((out, reads == 1)),
            }
        }
        Ok((out, false))
    }

    /// Deletes what commits of a file gave up, but what its map names all the same: another island's commit may have won that
    /// had not given it up.
    async fn free_dropped(&self, ino: Ino, all: Vec<(Bytes, Dropped)>) -> Result<(), FsError> {
        // As it is in the table: what others have not landed names nothing that was given up.
        let rows = self.meta.read(&[0; 8], vec![Range::key(record::content(ino))]).await?;
        let row = first(rows.into_iter().next());
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

    /// Names all heals so far.
    async fn heal_mark(&self) -> Result<u64, FsError> {
        let heals = self.meta.heals().await?;
        let hash = blake3::hash(&record::encode(&heals));
        let number = hash.as_bytes().first_chunk::<8>().map_or(0, |bytes| u64::from_be_bytes(*bytes));
        Ok(if heals.is_empty() { 0 } else { number })
    }

    /// What to put down when all is tidied that heals left; `None`: it is.
    async fn untidied(&self) -> Result<Option<Bytes>, FsError> {
        let (now, said) = (self.heal_mark().await?, self.get(record::tidied()).await?.and_then(|row| row.value));
        let mark = Bytes::copy_from_slice(&now.to_be_bytes());
        Ok((now != 0 && said.as_ref() != Some(&mark)).then_some(mark))
    }

    /// Takes the heart of an inode that nobody wants any more, so that nothing brings it back.
    async fn give_up(&self, ino: Ino) -> Result<Verdict, FsError> {
        let key = record::orphan(ino);
        let ranges = removal_ranges(ino).into_iter().chain([Range::key(key.clone())]).collect();
        let mut rows = self.read_meta(ranges).await?.into_iter();
        let links = rows.next().unwrap_or_default().rows;
        let (inode, content, orphan) = (first(rows.next()), first(rows.next()), first(rows.next()));
        let Some(orphan) = orphan.filter(|_| links.is_empty()) else { return Ok(Verdict::Kept) };
        let Some(inode) = inode else { return Ok(Verdict::Given) };
        let group = Group::of(ino, &inode, content.as_ref())?;
        if Gone::read(orphan.value.as_deref().unwrap_or_default()).iter().all(|gone| group.is_newer(gone)) {
            return Ok(Verdict::Wanted);
        }
        let at = record::content(ino);
        let checks = vec![
            Check::AtVersion(key, orphan.version),
            Check::AtVersion(record::inode(ino), inode.version),
            content.map_or(Check::Absent(at.clone()), |c| Check::AtVersion(at, c.version)),
            Check::Count(record::places(ino), 0),
            Check::Count(record::names(ino), 0),
            Check::Count(record::holds_of(ino), 0),
        ];
        let heart = vec![Write::Delete { key: record::inode(ino) }];
        let done = self.keep(checks, heart).await?;
        Ok(if done { Verdict::Given } else { Verdict::Kept })
    }

    /// Has everything been tidied that heals left? The first of the mounts does it, another if it does not.
    async fn is_tidied(&self, before: usize, rounds: &mut Rounds) -> Result<bool, FsError> {
        let Some(mark) = self.untidied().await? else {
            rounds.untidy = None;
            return Ok(true);
        };
        let since = *rounds.untidy.get_or_insert_with(Instant::now);
        if since.elapsed() < TIDY_AFTER * before as u32 {
            return Ok(false);
        }
        let mended = self.tidy(since.elapsed() < PATIENCE, |what| tracing::info!("islands met: {what}")).await?;
        if mended > 0 {
            tracing::info!("islands met: {mended} things in the tree were put in order");
        }
        self.keep(Vec::new(), vec![put(record::tidied(), mark)]).await?;
        Ok(true)
    }

    /// Holds what is open here before it says that it has looked.
    async fn say_seen(
        &self,
        orphans: &BTreeMap<Ino, Record>,
        (seen, heals): (u64, u64),
        sessions: &BTreeMap<u64, Session>,
        holds: &[(Bytes, Record)],
    ) -> Result<(), FsError> {
        let open: BTreeSet<Ino> = lock(&self.open).keys().copied().filter(|ino| orphans.contains_key(ino)).collect();
        let mine = |k: &Bytes| number(k, 17) == Some(self.session);
        let held: BTreeSet<Ino> = holds.iter().filter(|(k, _)| mine(k)).filter_map(|(k, _)| number(k, 9)).collect();
        let mut writes: Vec<Write> =
            open.difference(&held).map(|ino| put(record::hold(*ino, self.session), HERE)).collect();
        writes.extend(held.difference(&open).map(|ino| Write::Delete { key: record::hold(*ino, self.session) }));
        let key = record::session(self.session);
        let (node, incarnation) = self.me();
        let now = Session { node, incarnation, seen, heals };
        if sessions.get(&self.session) != Some(&now) {
            writes.push(put(key, record::encode(&now)));
        }
        // Said on a full disc, too: what is freed by it makes room.
        let nothing = (!writes.is_empty()).then(nothing);
        writes.extend(nothing);
        if writes.is_empty() { Ok(()) } else { self.keep(Vec::new(), writes).await.map(drop) }
    }

    /// Sessions that still count; one ends by unmount or a newer start of its node, never by silence.
    async fn live_sessions(
        &self,
        rows: Vec<(Bytes, Record)>,
        holds: &[(Bytes, Record)],
    ) -> Result<BTreeMap<u64, Session>, FsError> {
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
        let gone: Vec<Bytes> = all.iter().filter(|(_, s)| over(s)).flat_map(|(id, _)| session_keys(*id)).collect();
        all.retain(|_, s| !over(s));
        // What an ended session held it holds no more.
        let held =
            holds.iter().map(|(key, _)| key).filter(|key| number(key, 17).is_none_or(|id| !all.contains_key(&id)));
        let gone: Vec<Bytes> = gone.into_iter().chain(held.cloned()).collect();
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
        let (mut from, to) = record::all_of(ino);
        // However many pieces there are: an answer brings some megabytes of them.
        loop {
            let range = Range { space: Space::User, from: from.clone(), to: to.clone(), limit: DELETE_MAX as u32 };
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
            let from = record::all_of(ino).0;
            let range = Range { space: Space::User, from, to: to.clone(), limit: DELETE_MAX as u32 };
            let rows = self.read_meta(vec![range]).await?.into_iter().next().unwrap_or_default();
            let more = rows.more;
            self.delete_meta(rows.rows.into_iter().map(|(k, _)| k).collect()).await?;
            if !more {
                return self.delete_meta(vec![record::orphan(ino)]).await;
            }
        }
    }

    /// A batch that nobody asked for; `false`: a check did not hold.
    async fn keep(&self, checks: Vec<Check>, writes: Vec<Write>) -> Result<bool, FsError> {
        Ok(self.commit_as(checks, writes, false, Told::Nothing).await?.is_ok())
    }

    async fn delete_meta(&self, keys: Vec<Bytes>) -> Result<(), FsError> {
        for part in keys.chunks(DELETE_MAX) {
            let writes = part.iter().map(|key| Write::Delete { key: key.clone() }).collect();
            // Of what nobody names: not even whoever has its directory to itself.
            self.plain(Batch { writes, ..Batch::default() }).await?;
        }
        Ok(())
    }

    async fn delete_blocks(&self, ino: Ino, keys: Vec<Bytes>) -> Result<(), FsError> {
        for part in keys.chunks(DELETE_MAX) {
            let writes = part.iter().map(|key| Write::Delete { key: key.clone() }).collect();
            match self.blocks.batch(&ino.to_be_bytes(), Batch { checks: Vec::new(), writes, sync: false }).await? {
                Outcome::Done { .. } => {}
                _ => return Err(FsError::Unavailable),
            }
        }
        Ok(())
    }
}

/// What goes with a session.
fn session_keys(session: u64) -> [Bytes; 4] {
    [record::session(session), record::delegation(session), record::scope(session), record::marker(session)]
}

fn number(key: &Bytes, at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(key.get(at..at + 8)?.try_into().ok()?))
}
