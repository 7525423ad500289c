//! Scrubbing: from time to time a mount reads every byte of every file, slowly, through the copies of its own node. A piece that is not
//! what was written is put right from a copy where it is; what was stored and is named by nothing is given up.

use crate::delegate::Told;
use crate::error::FsError;
use crate::fs::{Fs, Ino, Kind, lock, put, to_content, wall_ns};
use crate::map::within;
use crate::record::{self, Content, Dropped, Extent};
use crate::tidy::{Group, Walk, stamp};
use base::{Hlc, WallMs};
use bytes::Bytes;
use client::{Batch, Check, Outcome, Range, Space, Write};
use std::collections::BTreeSet;
use std::sync::Weak;
use std::time::Duration;
use tokio::time::Instant;

/// When a mount begins to look.
const FIRST: Duration = Duration::from_secs(3600);
/// How soon is tried again where the copies do not answer.
pub(crate) const AGAIN: Duration = Duration::from_secs(10);
/// What was not read in its time is not made up for, beyond this.
const BEHIND_MAX: Duration = Duration::from_secs(1);
/// How long it rests when it has looked at everything.
const REST: Duration = Duration::from_secs(7 * 24 * 3600);
/// What nothing names for so long nobody is about to name.
const UNNAMED_FOR_MS: u64 = 24 * 3600 * 1000;
/// How many rows one read brings.
const ROWS: u32 = 1000;

/// How fast bytes are read.
#[derive(Debug)]
pub(crate) struct Pace {
    per_second: u64,
    due: Instant,
}

impl Pace {
    pub(crate) fn new(per_second: u64) -> Pace {
        Pace { per_second: per_second.max(1), due: Instant::now() }
    }

    async fn keep(&mut self, bytes: u64) {
        self.due = self.due.max(Instant::now() - BEHIND_MAX);
        self.due += Duration::from_secs_f64(bytes as f64 / self.per_second as f64);
        tokio::time::sleep_until(self.due).await;
    }
}

impl Fs {
    /// Reads everything, at so many bytes a second, and mends what can be mended.
    pub(crate) async fn scrub(&self, per_second: u64) -> Result<Walk, FsError> {
        let mut walk = Walk::new(false, true, true);
        walk.scrub = Some(Pace::new(per_second));
        self.walk(walk).await
    }

    /// All of one inode. What takes days goes on when the copies answer again.
    pub(crate) async fn scrub_one(&self, group: &Group, walk: &mut Walk) -> Result<(), FsError> {
        loop {
            let done = match self.look_at_bytes(group, walk).await {
                Ok(()) => self.look_for_unnamed(group, walk).await,
                no => no,
            };
            match done {
                Err(FsError::Unavailable | FsError::NoSpace) if !self.is_ending() => tokio::time::sleep(AGAIN).await,
                done => return done,
            }
        }
    }

    /// Reads a part of a file; a piece of it that is not what was written is put right, if that is asked for.
    pub(crate) async fn read_to_check(
        &self,
        ino: Ino,
        content: &Content,
        (from, to): (u64, u64),
        walk: &mut Walk,
    ) -> Result<(), FsError> {
        let mut read = self.read_range(ino, content, from, to).await.map(drop);
        if self.is_ending() {
            return Err(FsError::Unavailable);
        }
        if let Err(FsError::Damaged(what)) = read
            && walk.scrub.is_some()
        {
            let mended = self.mend_bytes(ino, content, from, to).await?;
            if mended > 0 {
                walk.mended += mended;
                tracing::warn!("inode {ino:x}: {mended} pieces of it were put right from another copy: {what}");
                read = self.read_range(ino, content, from, to).await.map(drop);
            }
        }
        if let Some(pace) = &mut walk.scrub {
            pace.keep(to - from).await;
        }
        read
    }

    /// Puts right what some copy has as it was written. Returns how many pieces.
    async fn mend_bytes(&self, ino: Ino, content: &Content, from: u64, to: u64) -> Result<usize, FsError> {
        let (map, _) = self.named(ino, content).await?;
        let mut mended = 0;
        for extent in within(&map, from, to) {
            let at = ino.to_be_bytes();
            let (table, shard, keys) = match extent.small {
                true => (&self.meta, &[0; 8], vec![record::small(ino, extent.id)]),
                false => (&self.blocks, &at, pieces(ino, &extent)),
            };
            for key in keys {
                let rows = table.read(shard, vec![Range::key(key.clone())]).await?;
                let Some((_, row)) = rows.into_iter().flat_map(|rows| rows.rows).next() else { continue };
                let is_good = |value: &Option<Bytes>| value.as_ref().is_some_and(|v| record::unchecked(v).is_ok());
                if is_good(&row.value) {
                    continue;
                }
                let copies = table.copies(shard, key.clone()).await?;
                let good = copies.into_iter().find(|copy| copy.version == row.version && is_good(&copy.value));
                let Some(value) = good.and_then(|copy| copy.value) else { continue };
                let write = Write::Put { key: key.clone(), value, ttl_ms: None };
                let batch = Batch { checks: vec![Check::AtVersion(key, row.version)], writes: vec![write], sync: true };
                mended += usize::from(matches!(table.batch(shard, batch).await?, Outcome::Done { .. }));
            }
        }
        Ok(mended)
    }

    /// What is stored of an inode for longer than a day, and named by nothing: told, and given up, if that is asked for. Whoever frees what
    /// commits gave up frees that, too, once every mount and every copy is there to see it, unless it is named by then.
    pub(crate) async fn look_for_unnamed(&self, group: &Group, walk: &mut Walk) -> Result<(), FsError> {
        let before = self.a_day_ago().await?;
        let old = group.stored.iter().filter(|(_, _, hlc)| *hlc < before);
        let mut unnamed = Dropped { ino: group.ino, ..Dropped::default() };
        for (kind, id, _) in old {
            if *kind == b'E' { &mut unnamed.small } else { &mut unnamed.pages }.push(*id);
        }
        if group.is(Kind::File) {
            let blocks = self.old_blocks(group.ino, before, walk).await?;
            unnamed.blocks = blocks.into_iter().map(|id| (id, crate::data::EXTENT as u32)).collect();
        }
        if unnamed.is_empty() {
            return Ok(());
        }
        // As it is after those were read: whoever commits from now on names what it stores now.
        let key = record::content(group.ino);
        let row = self.get(key.clone()).await?;
        let named = match to_content(row.as_ref()) {
            Ok(content) => self.named(group.ino, &content).await,
            Err(e) => Err(e),
        };
        // What cannot be read may name it. It has been told of.
        let Ok((extents, pages)) = named else { return Ok(()) };
        unnamed.keep_out(&extents.iter().map(|e| e.id).chain(pages).collect());
        if unnamed.is_empty() || self.lost_bytes().await?.contains_key(&group.ino) {
            return Ok(());
        }
        for (_, row) in self.all(record::dropped_all()).await?.0 {
            let gone: Result<Dropped, FsError> = record::decode(row.value.as_deref().unwrap_or_default());
            let Ok(gone) = gone else { return Ok(()) };
            let ids = gone.small.iter().chain(&gone.pages).chain(gone.blocks.iter().map(|(id, _)| id));
            unnamed.keep_out(&ids.copied().filter(|_| gone.ino == group.ino).collect());
        }
        let count = unnamed.small.len() + unnamed.pages.len() + unnamed.blocks.len();
        if count == 0 {
            return Ok(());
        }
        let pieces = if count == 1 { "a piece is".into() } else { format!("{count} pieces are") };
        let what = format!("inode {:x}: {pieces} stored that nothing names", group.ino);
        if walk.scrub.is_none() {
            walk.say(what);
            return Ok(());
        }
        let mut checks = vec![row.map_or(Check::Absent(key.clone()), |row| Check::AtVersion(key, row.version))];
        checks.push(Check::Present(record::inode(group.ino)));
        let give_up = put(record::dropped(self.numbers.fresh()?), record::encode(&unnamed));
        if self.commit_as(checks, vec![give_up], false, Told::Nothing).await?.is_ok() {
            walk.mended += count;
            tracing::info!("{what}: given up");
        }
        Ok(())
    }

    /// A day before now, by the clocks that stamp records and by this node's own.
    async fn a_day_ago(&self) -> Result<Hlc, FsError> {
        let stamped = self.all(record::sessions()).await?.0.iter().map(|(_, row)| row.hlc.wall().0).max().unwrap_or(0);
        Ok(Hlc::from_wall(WallMs(stamped.min(wall_ns() / 1_000_000).saturating_sub(UNNAMED_FOR_MS))))
    }

    /// The extents of an inode in the blocks table that were all stored before.
    async fn old_blocks(&self, ino: Ino, before: Hlc, walk: &mut Walk) -> Result<BTreeSet<u64>, FsError> {
        let (mut old, mut fresh) = (BTreeSet::new(), BTreeSet::new());
        let (mut from, to) = record::all_of(ino);
        loop {
            let range = Range { space: Space::User, from: from.clone(), to: to.clone(), limit: ROWS };
            let rows = self.blocks.read(&ino.to_be_bytes(), vec![range]).await?.into_iter().next().unwrap_or_default();
            let mut bytes = 0;
            for (key, row) in &rows.rows {
                bytes += row.value.as_ref().map_or(0, Bytes::len) as u64;
                let Some(id) = key.get(8..16).and_then(|id| id.try_into().ok()).map(u64::from_be_bytes) else {
                    continue;
                };
                if row.hlc < before { &mut old } else { &mut fresh }.insert(id);
            }
            if let Some(pace) = &mut walk.scrub {
                pace.keep(bytes).await;
            }
            match rows.rows.last() {
                Some((last, _)) if rows.more && !self.is_ending() => from = [&last[..], &[0]].concat().into(),
                _ => break,
            }
        }
        old.retain(|id| !fresh.contains(id));
        Ok(old)
    }
}

/// The keys under which an extent's bytes lie.
fn pieces(ino: Ino, extent: &Extent) -> Vec<Bytes> {
    let (first, last) =
        (extent.skip / crate::data::PIECE as u32, (extent.skip + extent.len - 1) / crate::data::PIECE as u32);
    (first..=last).map(|n| record::block(ino, extent.id, n)).collect()
}

/// Scrubs from time to time, until the mount is gone.
pub(crate) async fn keep_clean(fs: Weak<Fs>, per_second: u64) {
    let mut wait = FIRST;
    loop {
        tokio::time::sleep(wait).await;
        let Some(fs) = fs.upgrade() else { return };
        match fs.scrub(per_second).await {
            Ok(walk) => {
                for what in &walk.found {
                    tracing::error!("scrubbing: {what}");
                }
                let Walk { inodes, bytes, mended, .. } = walk;
                let left = walk.found.len();
                let said = format!("{inodes} inodes, {bytes} bytes of files; {mended} mended, {left} left");
                tracing::info!("scrubbed: {said}");
                *lock(&fs.scrubbed) = Some(format!("{}: {said}", stamp(wall_ns())));
                wait = REST;
            }
            Err(e) => {
                tracing::debug!("scrubbing: {e}");
                wait = FIRST;
            }
        }
    }
}
