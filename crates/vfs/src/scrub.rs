//! Scrubbing: from time to time a mount reads every byte of every file, slowly, through the copies of its own node. A piece that is not
//! what was written is put right from a copy where it is; what was stored and is named by nothing goes.

use crate::error::FsError;
use crate::fs::{Fs, Ino, Kind, lock, wall_ns};
use crate::map::within;
use crate::record::{self, Content, Dropped, Extent};
use crate::tidy::{Group, Walk, stamp};
use base::{Hlc, WallMs};
use bytes::Bytes;
use client::{Batch, Check, Outcome, Range, Space, Write};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Weak;
use std::time::Duration;
use tokio::time::Instant;

/// When a mount begins to look.
const FIRST: Duration = Duration::from_secs(600);
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
    begun: Instant,
    read: u64,
}

impl Pace {
    pub(crate) fn new(per_second: u64) -> Pace {
        Pace { per_second: per_second.max(1), begun: Instant::now(), read: 0 }
    }

    async fn keep(&mut self, bytes: u64) {
        self.read += bytes;
        let due = Duration::from_secs_f64(self.read as f64 / self.per_second as f64);
        tokio::time::sleep_until(self.begun + due).await;
    }
}

/// What a walk that reads bytes does beside.
#[derive(Debug, Default)]
pub(crate) struct Scrub {
    pub pace: Option<Pace>,
    /// What is named by what is to be freed anyway, or by what lost a conflict; read once.
    named: Option<BTreeMap<Ino, BTreeSet<u64>>>,
    /// Whether what nothing names may go now.
    may_remove: Option<bool>,
}

impl Fs {
    /// Reads everything, at so many bytes a second, and mends what can be mended.
    pub(crate) async fn scrub(&self, per_second: u64) -> Result<Walk, FsError> {
        let mut walk = Walk::new(false, true, true);
        walk.scrub = Some(Scrub { pace: Some(Pace::new(per_second)), ..Scrub::default() });
        self.walk(walk).await
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
        if let Some(pace) = walk.scrub.as_mut().and_then(|scrub| scrub.pace.as_mut()) {
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

    /// What is stored of an inode for longer than a day, and named by nothing: told, and removed, if that is asked for.
    pub(crate) async fn look_for_unnamed(&self, group: &Group, walk: &mut Walk) -> Result<(), FsError> {
        let before = Hlc::from_wall(WallMs((wall_ns() / 1_000_000).saturating_sub(UNNAMED_FOR_MS)));
        let old = group.stored.iter().filter(|(_, _, hlc)| *hlc < before);
        let mut unnamed = Dropped { ino: group.ino, ..Dropped::default() };
        for (kind, id, _) in old {
            if *kind == b'E' { &mut unnamed.small } else { &mut unnamed.pages }.push(*id);
        }
        let blocks = if group.is(Kind::File) { self.old_blocks(group.ino, before).await? } else { BTreeMap::new() };
        unnamed.blocks = blocks.iter().map(|(id, pieces)| (*id, *pieces)).collect();
        if unnamed.is_empty() {
            return Ok(());
        }
        // As it is after those were read: whoever commits from now on names what it stores now.
        let (content, _) = match self.content(group.ino).await {
            Err(FsError::Stale) => return Ok(()),
            content => content?,
        };
        let (extents, pages) = self.named(group.ino, &content).await?;
        let mut wanted: BTreeSet<u64> = extents.iter().map(|e| e.id).chain(pages).collect();
        wanted.extend(self.named_elsewhere(walk).await?.get(&group.ino).into_iter().flatten());
        unnamed.keep_out(&wanted);
        if unnamed.is_empty() {
            return Ok(());
        }
        let count = unnamed.small.len() + unnamed.pages.len() + unnamed.blocks.len();
        let pieces = if count == 1 { "a piece is".into() } else { format!("{count} pieces are") };
        let what = format!("inode {:x}: {pieces} stored that nothing names", group.ino);
        if !self.may_remove(walk, before).await? {
            walk.say(what);
            return Ok(());
        }
        let (meta, blocks) = unnamed.keys();
        self.delete_blocks(group.ino, blocks).await?;
        self.delete_meta(meta).await?;
        walk.mended += count;
        tracing::info!("{what}; they are removed");
        Ok(())
    }

    /// The extents of an inode in the blocks table that were all stored before, and how long they are at most.
    async fn old_blocks(&self, ino: Ino, before: Hlc) -> Result<BTreeMap<u64, u32>, FsError> {
        let (mut old, mut fresh) = (BTreeMap::new(), BTreeSet::new());
        let mut from = Bytes::copy_from_slice(&ino.to_be_bytes());
        let to: Option<Bytes> = ino.checked_add(1).map(|next| Bytes::copy_from_slice(&next.to_be_bytes()));
        loop {
            let range = Range { space: Space::User, from: from.clone(), to: to.clone(), limit: ROWS };
            let rows = self.blocks.read(&ino.to_be_bytes(), vec![range]).await?.into_iter().next().unwrap_or_default();
            for (key, row) in &rows.rows {
                let Some(id) = key.get(8..16).and_then(|id| id.try_into().ok()).map(u64::from_be_bytes) else {
                    continue;
                };
                if row.hlc < before {
                    old.insert(id, crate::data::EXTENT as u32);
                } else {
                    fresh.insert(id);
                }
            }
            match rows.rows.last() {
                Some((last, _)) if rows.more => from = [&last[..], &[0]].concat().into(),
                _ => break,
            }
        }
        old.retain(|id, _| !fresh.contains(id));
        Ok(old)
    }

    /// What is to be freed anyway, and what the losing versions in the ledger name, by inode.
    async fn named_elsewhere<'a>(&self, walk: &'a mut Walk) -> Result<&'a BTreeMap<Ino, BTreeSet<u64>>, FsError> {
        let scrub = walk.scrub.get_or_insert_default();
        if scrub.named.is_none() {
            let mut all: BTreeMap<Ino, BTreeSet<u64>> = BTreeMap::new();
            for (_, row) in self.all(record::dropped_all()).await?.0 {
                let gone: Dropped = record::decode(row.value.as_deref().unwrap_or_default())?;
                let ids = gone.small.iter().chain(&gone.pages).chain(gone.blocks.iter().map(|(id, _)| id));
                all.entry(gone.ino).or_default().extend(ids);
            }
            for (ino, rows) in self.lost_bytes().await? {
                for row in rows {
                    let content = crate::fs::to_content(Some(&row.lost))?;
                    match self.named(ino, &content).await {
                        Ok((extents, pages)) => {
                            all.entry(ino).or_default().extend(extents.iter().map(|e| e.id).chain(pages));
                        }
                        Err(FsError::Damaged(_) | FsError::Missing(_)) => {}
                        Err(e) => return Err(e),
                    }
                }
            }
            scrub.named = Some(all);
        }
        Ok(scrub.named.get_or_insert_default())
    }

    /// Nothing goes as long as somebody is away who may name it, or has not been back for a day.
    async fn may_remove(&self, walk: &mut Walk, before: Hlc) -> Result<bool, FsError> {
        let Some(scrub) = walk.scrub.as_mut().filter(|scrub| scrub.pace.is_some()) else { return Ok(false) };
        if scrub.may_remove.is_none() {
            let long_ago = self.meta.heals().await?.iter().all(|heal| Hlc::from_wall(heal.at) < before);
            scrub.may_remove = Some(long_ago && self.everybody_is_here().await?);
        }
        Ok(scrub.may_remove == Some(true))
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
