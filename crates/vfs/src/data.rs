//! Bytes of files: gathered, written as extents that never change, and committed by the inode's `C` record.

use crate::attrs::is_read_noted;
use crate::delegate::Told;
use crate::error::FsError;
use crate::fs::{
    Fs, Handle, HandleId, Ino, Pending, TRIES_MAX, first, is_removed, lock, named, pause, refused, to_content,
    version_of, wall_ns,
};
use crate::map::{lay, unreferenced, within};
use crate::record::{self, Content, Dropped, Extent};
use crate::space::SIZE_MAX;
use base::Version;
use bytes::{Bytes, BytesMut};
use client::{Batch, Check, Outcome, Range, Write};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// One record of data.
pub(crate) const PIECE: u64 = 64 * 1024;
/// The longest extent.
pub(crate) const EXTENT: u64 = 1024 * 1024;
/// What one `M` record maps.
pub(crate) const PAGE: u64 = 16 * 1024 * 1024;
/// How many extents `C` itself holds.
const INLINE_MAX: usize = 32;
/// Up to so many bytes go into the same batch as `C`: one round trip.
const SMALL_MAX: u64 = 64 * 1024;
/// How many ranges one commit takes.
const RANGES_MAX: usize = 512;
/// How many extents are on their way at once.
const EXTENTS_IN_FLIGHT: usize = 8;
/// How many bytes of one file are gathered before they are committed.
const DIRTY_INODE_MAX: usize = 4 * 1024 * 1024;
/// Which check of a commit says that the mount still has its locks of the file.
const LOCK_CHECK: u32 = 3;
/// How long bytes are looked for that are not where they should be.
const LOOK_FOR: std::time::Duration = std::time::Duration::from_secs(3);
/// How much one read of the database asks for.
const READ_BYTES_MAX: u64 = 2 * 1024 * 1024;

/// New bytes, and under what extent they are to be found.
type Piece = (Extent, Bytes);

impl Fs {
    /// Opens a file that has a name; and whether the kernel may keep the bytes that it has.
    pub async fn open(&self, ino: Ino, append: bool) -> Result<(HandleId, bool), FsError> {
        let keys = [record::inode(ino), record::orphan(ino), record::content(ino)].map(Range::key);
        let mut rows = self.read_meta(keys.into()).await?.into_iter();
        let (inode, orphan, content) = (first(rows.next()), first(rows.next()), first(rows.next()));
        let here = lock(&self.open).contains_key(&ino);
        if inode.is_none() || (orphan.is_some() && !here) {
            return Err(FsError::Stale);
        }
        let id = self.open_known(ino, append);
        let mut keep = self.watch.opened(ino, self.real(&record::content(ino), version_of(content.as_ref()))).await;
        if keep && self.options.relatime {
            // What the kernel reads by itself nobody hears of.
            let (attr, _) = self.getattr(ino).await?;
            keep = !is_read_noted(&attr, wall_ns());
        }
        Ok((id, keep))
    }

    /// Opens a file that was made just now.
    pub fn open_known(&self, ino: Ino, append: bool) -> HandleId {
        let id = self.next_handle();
        let mut open = lock(&self.open);
        let inode = open.entry(ino).or_default();
        inode.handles += 1;
        let errors_seen = inode.errors.len();
        drop(open);
        lock(&self.handles)
            .insert(id, Handle { ino, append, errors_seen, listing: None, wrote: false, owners: BTreeSet::new() });
        id
    }

    /// Closes a file or directory. Bytes not committed yet are committed by the house keeping, if `flush` was not called.
    pub async fn release(&self, handle: HandleId) {
        let Some(handle) = lock(&self.handles).remove(&handle) else { return };
        // Reported by flush, if at all: release answers nobody.
        let _ = self.flush_inode(handle.ino, false).await;
        // Of locks that belong to an open file, and not to a process, the kernel says nothing when that is closed.
        for owner in handle.owners {
            self.unlock_all(handle.ino, owner).await;
        }
        let read_at = lock(&self.open).get_mut(&handle.ino).and_then(|inode| inode.read_at.take());
        if let Some(at) = read_at {
            let _ = self.note_read(handle.ino, at).await;
        }
        let still = {
            let mut open = lock(&self.open);
            if let Some(inode) = open.get_mut(&handle.ino) {
                inode.handles = inode.handles.saturating_sub(1);
                if inode.handles == 0 && inode.dirty.is_empty() {
                    open.remove(&handle.ino);
                }
            }
            open.contains_key(&handle.ino)
        };
        if !still {
            lock(&self.committing).retain(|ino, lock| *ino != handle.ino || Arc::strong_count(lock) > 1);
        }
    }

    fn handle(&self, handle: HandleId) -> Result<(Ino, bool), FsError> {
        lock(&self.handles).get(&handle).map(|h| (h.ino, h.append)).ok_or(FsError::Invalid)
    }

    /// An error of a late commit, once per handle.
    fn late_error(&self, handle: HandleId) -> Result<(), FsError> {
        let mut handles = lock(&self.handles);
        let Some(handle) = handles.get_mut(&handle) else { return Ok(()) };
        let open = lock(&self.open);
        let Some(inode) = open.get(&handle.ino) else { return Ok(()) };
        let error = inode.errors.get(handle.errors_seen).cloned();
        handle.errors_seen = inode.errors.len();
        error.map_or(Ok(()), Err)
    }

    /// Writes bytes: kept in this mount until closed, synced, too many, or a second old. Appends are committed at once, at
    /// the end that the file has then.
    /// `kill`: whoever writes has no right to keep the file's set-user and set-group bits.
    pub async fn write(&self, handle: HandleId, at: u64, data: &[u8], kill: bool) -> Result<(), FsError> {
        let (ino, append) = self.handle(handle)?;
        self.late_error(handle)?;
        let wrote = lock(&self.handles).get_mut(&handle).is_some_and(|h| std::mem::replace(&mut h.wrote, true));
        if kill || !wrote {
            self.kill_privileges(ino, kill).await?;
        }
        if append {
            self.flush_inode(ino, false).await?;
            let guard = self.commit_lock(ino);
            let _guard = guard.lock().await;
            let done = self.commit_ranges(ino, vec![(0, data.to_vec())], wall_ns(), false, true).await;
            // The kernel does not know where they went.
            self.watch.drop_bytes(ino);
            return done;
        }
        let end = at.checked_add(data.len() as u64).filter(|end| *end <= SIZE_MAX).ok_or(FsError::TooLarge)?;
        let full = {
            let mut open = lock(&self.open);
            let inode = open.entry(ino).or_default();
            let before: usize = inode.dirty.iter().map(|(_, b)| b.len()).sum();
            gather(&mut inode.dirty, at, data);
            inode.dirty_since.get_or_insert_with(std::time::Instant::now);
            let longest = inode.pending.map_or(end, |p| p.end.max(end));
            inode.pending = Some(Pending { end: longest, mtime: wall_ns() });
            let after: usize = inode.dirty.iter().map(|(_, b)| b.len()).sum();
            let all = self.dirty_bytes.fetch_add(after.saturating_sub(before), Ordering::Relaxed) + after - before;
            after >= DIRTY_INODE_MAX || all >= self.options.dirty_bytes_max
        };
        if full { self.flush_inode(ino, false).await } else { Ok(()) }
    }

    pub(crate) fn commit_lock(&self, ino: Ino) -> Arc<tokio::sync::Mutex<()>> {
        lock(&self.committing).entry(ino).or_default().clone()
    }

    /// Commits what was gathered, and reports what went wrong since this handle last heard.
    pub async fn flush(&self, handle: HandleId) -> Result<(), FsError> {
        let (ino, _) = self.handle(handle)?;
        let now = self.flush_inode(ino, false).await;
        self.late_error(handle).and(now)
    }

    /// The same, and on disc at every in-sync copy.
    pub async fn fsync(&self, handle: HandleId) -> Result<(), FsError> {
        let (ino, _) = self.handle(handle)?;
        let now = self.flush_inode(ino, true).await;
        self.late_error(handle).and(now)
    }

    /// Commits what was gathered of an inode. `sync`: data and name are on disc at every in-sync copy when this returns.
    pub(crate) async fn flush_inode(&self, ino: Ino, sync: bool) -> Result<(), FsError> {
        let nothing = lock(&self.open).get(&ino).is_none_or(|o| o.dirty.is_empty());
        if nothing && !sync && !lock(&self.committing).contains_key(&ino) {
            return Ok(());
        }
        let guard = self.commit_lock(ino);
        let _guard = guard.lock().await;
        let (dirty, mtime) = match lock(&self.open).get_mut(&ino) {
            Some(inode) => {
                inode.dirty_since = None;
                (std::mem::take(&mut inode.dirty), inode.pending.map_or_else(wall_ns, |p| p.mtime))
            }
            None => (Vec::new(), 0),
        };
        let bytes: usize = dirty.iter().map(|(_, b)| b.len()).sum();
        let commits = !dirty.is_empty();
        let mut done = if commits { self.commit_ranges(ino, dirty, mtime, sync, false).await } else { Ok(()) };
        self.dirty_bytes.fetch_sub(bytes, Ordering::Relaxed);
        if let Some(inode) = lock(&self.open).get_mut(&ino).filter(|o| o.dirty.is_empty()) {
            // Until here whoever asked was told of them, on their way as they were.
            inode.pending = None;
        }
        self.watch.changes(ino);
        if sync && done.is_ok() {
            done = self.sync_data(ino, commits).await;
        }
        if let Err(e) = &done
            && bytes > 0
            && let Some(inode) = lock(&self.open).get_mut(&ino)
        {
            // What was written is gone: every handle hears of it once, and the kernel must not show it.
            inode.errors.push(e.clone());
            self.watch.drop_bytes(ino);
        }
        done
    }

    /// Flushes what earlier commits of this file left to the interval. `committed`: one that is on disc came after them, and all
    /// names that came before it are, too.
    async fn sync_data(&self, ino: Ino, committed: bool) -> Result<(), FsError> {
        let (content, _) = self.content(ino).await?;
        // What lies in the other table was put on disc before, as a rule: a change of some bytes of a large file needs one batch.
        let large = stored_apart(&content);
        let known = lock(&self.open).get(&ino).and_then(|open| open.on_disc);
        if large.is_some() && large != known {
            self.sync_blocks(ino).await?;
            if let Some(open) = lock(&self.open).get_mut(&ino) {
                open.on_disc = large;
            }
        }
        if committed { self.tell_lost(ino) } else { self.sync_names(ino).await }
    }

    /// All of a file that was stored in the blocks table is on disc when this returns.
    async fn sync_blocks(&self, ino: Ino) -> Result<(), FsError> {
        let nothing = Batch { sync: true, ..Batch::default() };
        for round in 0..TRIES_MAX {
            match self.blocks.batch(&ino.to_be_bytes(), nothing.clone()).await {
                // The fragment was made into others meanwhile, or its leader went away.
                Ok(Outcome::Unknown) | Err(client::Error::Node(node::ClientError::Parted(_))) => pause(round).await,
                Ok(Outcome::Failed(refusal)) => return Err(refused(&refusal)),
                Ok(_) => return Ok(()),
                Err(e) => return Err(e.into()),
            }
        }
        Err(FsError::Unavailable)
    }

    /// Writes ranges as extents, then commits them; if another mount committed meanwhile, lays them over its map instead.
    pub(crate) async fn commit_ranges(
        &self,
        ino: Ino,
        ranges: Vec<(u64, Vec<u8>)>,
        mtime: u64,
        sync: bool,
        append: bool,
    ) -> Result<(), FsError> {
        let mut ranges = ranges.into_iter();
        loop {
            let part: Vec<_> = ranges.by_ref().take(RANGES_MAX).collect();
            if part.is_empty() {
                return Ok(());
            }
            self.commit_some(ino, part, mtime, sync, append).await?;
        }
    }

    async fn commit_some(
        &self,
        ino: Ino,
        ranges: Vec<(u64, Vec<u8>)>,
        mtime: u64,
        sync: bool,
        append: bool,
    ) -> Result<(), FsError> {
        let total: u64 = ranges.iter().map(|(_, b)| b.len() as u64).sum();
        let small = total <= SMALL_MAX;
        let mut pieces = Vec::new();
        // A lock that is lost from here on, or got, is not the one under which it was written.
        let locked = self.relies_on_lock(ino);
        for round in 0..TRIES_MAX {
            let (mut content, version) = self.content(ino).await?;
            content.locked = locked;
            (content.mtime, content.ctime) = (mtime, mtime);
            let at = if append { content.size } else { 0 };
            // What has been stored once is named again, under the numbers that it has.
            if round == 0 || append {
                pieces = self.split(&ranges, at, small)?;
                if !small {
                    self.write_blocks(ino, &pieces, sync).await?;
                }
            }
            let end = ranges.iter().map(|(from, b)| at + from + b.len() as u64).max().unwrap_or(0);
            if self.commit_map(ino, content, version, &pieces, end, sync).await? {
                return Ok(());
            }
            pause(round).await;
        }
        Err(FsError::Unavailable)
    }

    /// The present map. Fails for an inode that is gone.
    pub(crate) async fn content(&self, ino: Ino) -> Result<(Content, Option<Version>), FsError> {
        let keys = [record::inode(ino), record::content(ino), record::orphan(ino)].map(Range::key);
        let mut rows = self.read_meta(keys.clone().into()).await?.into_iter();
        if rows.as_slice().first().is_some_and(|rows| rows.rows.is_empty()) && self.salvages(ino) {
            // It will be there when what could not land has been put down.
            Box::pin(self.salvage()).await;
            rows = self.read_meta(keys.into()).await?.into_iter();
        }
        first(rows.next()).ok_or(FsError::Stale)?;
        let (row, orphan) = (first(rows.next()), first(rows.next()));
        // Of whoever changes it from here on it is known whether it knew that the file had lost its name.
        let content = Content {
            after: is_removed(orphan.as_ref()),
            nameless: orphan.is_some(),
            locked: self.relies_on_lock(ino),
            ..to_content(row.as_ref())?
        };
        Ok((content, row.map(|r| r.version)))
    }

    /// Cuts ranges into extents, none over a page's edge.
    fn split(&self, ranges: &[(u64, Vec<u8>)], shift: u64, small: bool) -> Result<Vec<Piece>, FsError> {
        let most = if small { PIECE } else { EXTENT };
        let mut out = Vec::new();
        for (from, bytes) in ranges {
            let mut done = 0;
            while done < bytes.len() as u64 {
                let at = shift + from + done;
                let len = (bytes.len() as u64 - done).min(most).min(PAGE - at % PAGE);
                let extent = Extent { at, len: len as u32, id: self.numbers.fresh()?, skip: 0, small };
                out.push((extent, Bytes::copy_from_slice(&bytes[done as usize..(done + len) as usize])));
                done += len;
            }
        }
        Ok(out)
    }

    /// Extents first, several at once; nothing refers to them yet.
    async fn write_blocks(&self, ino: Ino, pieces: &[Piece], sync: bool) -> Result<(), FsError> {
        let mut tasks = tokio::task::JoinSet::new();
        let mut result = Ok(());
        for (extent, bytes) in pieces {
            while tasks.len() >= EXTENTS_IN_FLIGHT
                && let Some(done) = tasks.join_next().await
            {
                result = result.and(done.unwrap_or(Err(FsError::Unavailable)));
            }
            let (table, id, bytes) = (self.blocks.clone(), extent.id, bytes.clone());
            tasks.spawn(async move {
                let put = |(n, piece): (usize, &[u8])| Write::Put {
                    key: record::block(ino, id, n as u32),
                    value: record::checked(piece),
                    ttl_ms: None,
                };
                let writes: Vec<Write> = bytes.chunks(PIECE as usize).enumerate().map(put).collect();
                loop {
                    let batch = Batch { checks: Vec::new(), writes: writes.clone(), sync };
                    match table.batch(&ino.to_be_bytes(), batch).await? {
                        Outcome::Done { .. } => return Ok(()),
                        Outcome::Failed(refusal) => return Err(refused(&refusal)),
                        // The same bytes under the same number: writing them twice is writing them once.
                        Outcome::Unknown => {}
                    }
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            result = result.and(done.unwrap_or(Err(FsError::Unavailable)));
        }
        result
    }

    /// One attempt to commit; `false`: the map has changed meanwhile.
    async fn commit_map(
        &self,
        ino: Ino,
        mut content: Content,
        version: Option<Version>,
        pieces: &[Piece],
        end: u64,
        sync: bool,
    ) -> Result<bool, FsError> {
        let before = content.extents.clone();
        for (extent, _) in pieces {
            lay(&mut content.extents, *extent);
        }
        let mut dropped = Dropped { ino, ..Dropped::default() };
        dropped.add(&unreferenced(&before, &content.extents));
        let mut writes = Vec::new();
        for (extent, bytes) in pieces.iter().filter(|(e, _)| e.small) {
            let (key, value) = (record::small(ino, extent.id), record::checked(bytes));
            writes.push(Write::Put { key, value, ttl_ms: None });
        }
        if content.extents.len() > INLINE_MAX {
            self.fold(ino, &mut content, &mut dropped, &mut writes).await?;
        }
        content.size = content.size.max(end);
        self.put_content(ino, content, version, dropped, writes, sync).await
    }

    /// Moves the extents that `C` holds into new pages.
    async fn fold(
        &self,
        ino: Ino,
        content: &mut Content,
        dropped: &mut Dropped,
        writes: &mut Vec<Write>,
    ) -> Result<(), FsError> {
        let mut by_page: BTreeMap<u32, Vec<Extent>> = BTreeMap::new();
        for extent in content.extents.drain(..) {
            by_page.entry((extent.at / PAGE) as u32).or_default().push(extent);
        }
        let old = self.pages(ino, content, |n| by_page.contains_key(&n)).await?;
        for (n, extents) in by_page {
            let before = old.get(&n).cloned().unwrap_or_default();
            let mut after = before.clone();
            extents.iter().for_each(|e| lay(&mut after, *e));
            let all: Vec<Extent> = before.iter().chain(&extents).copied().collect();
            dropped.add(&unreferenced(&all, &after));
            self.put_page(ino, content, n, &after, dropped, writes)?;
        }
        Ok(())
    }

    /// Replaces a page; an empty one is left out.
    pub(crate) fn put_page(
        &self,
        ino: Ino,
        content: &mut Content,
        n: u32,
        extents: &[Extent],
        dropped: &mut Dropped,
        writes: &mut Vec<Write>,
    ) -> Result<(), FsError> {
        dropped.pages.extend(content.pages.iter().filter(|(i, _)| *i == n).map(|(_, id)| *id));
        content.pages.retain(|(i, _)| *i != n);
        if !extents.is_empty() {
            let id = self.numbers.fresh()?;
            writes.push(Write::Put { key: record::page(ino, id), value: record::encode(&extents), ttl_ms: None });
            let at = content.pages.partition_point(|(i, _)| *i < n);
            content.pages.insert(at, (n, id));
        }
        Ok(())
    }

    /// The extents of those pages that are asked for.
    pub(crate) async fn pages(
        &self,
        ino: Ino,
        content: &Content,
        want: impl Fn(u32) -> bool,
    ) -> Result<BTreeMap<u32, Vec<Extent>>, FsError> {
        let wanted: Vec<(u32, u64)> = content.pages.iter().filter(|(n, _)| want(*n)).copied().collect();
        if wanted.is_empty() {
            return Ok(BTreeMap::new());
        }
        let ranges = wanted.iter().map(|(_, id)| Range::key(record::page(ino, *id))).collect();
        let rows = self.read_meta(ranges).await?;
        let mut out = BTreeMap::new();
        for ((n, _), rows) in wanted.into_iter().zip(rows) {
            let row = first(Some(rows)).ok_or(FsError::Missing("a page of a file's map"))?;
            out.insert(n, record::decode(row.value.as_deref().unwrap_or_default())?);
        }
        Ok(out)
    }

    pub(crate) async fn put_content(
        &self,
        ino: Ino,
        content: Content,
        version: Option<Version>,
        dropped: Dropped,
        mut writes: Vec<Write>,
        sync: bool,
    ) -> Result<bool, FsError> {
        let key = record::content(ino);
        let at = version.map_or(Check::Absent(key.clone()), |v| Check::AtVersion(key.clone(), v));
        writes.push(Write::Put { key, value: record::encode(&content), ttl_ms: None });
        if !dropped.is_empty() {
            let key = record::dropped(self.numbers.fresh()?);
            writes.push(Write::Put { key, value: record::encode(&dropped), ttl_ms: None });
        }
        let named = named(ino, !content.nameless);
        let mut checks = vec![Check::Present(record::inode(ino)), at, named];
        checks.extend(content.locked.then(|| Check::Present(record::lock_of(ino, self.session))));
        let done = self.commit_as(checks, writes, sync, Told::Replies).await?;
        if done == Err(LOCK_CHECK) {
            self.lose_lock(ino);
            return Err(FsError::Unavailable);
        }
        if let Ok(after) = done {
            let key = record::content(ino);
            let before = self.real(&key, version.unwrap_or_default());
            self.watch.committed(ino, before, self.real(&key, after));
        }
        Ok(done.is_ok())
    }

    /// Up to `len` bytes from `at`; fewer at the end of the file.
    pub async fn read(&self, ino: Ino, at: u64, len: u32) -> Result<Bytes, FsError> {
        self.flush_inode(ino, false).await?;
        if let Some(inode) = lock(&self.open).get_mut(&ino).filter(|_| self.options.relatime) {
            inode.read_at = Some(wall_ns());
        }
        let begun = tokio::time::Instant::now();
        for round in 0.. {
            let (content, _) = self.content(ino).await?;
            let end = content.size.min(at.saturating_add(u64::from(len)));
            if at >= end {
                return Ok(Bytes::new());
            }
            match self.read_range(ino, &content, at, end).await {
                // The map was replaced, and what it named freed, while it was followed; or islands have met, and names came before
                // what they name: look again.
                Err(FsError::Missing(_)) if begun.elapsed() < LOOK_FOR => pause(round).await,
                other => return other,
            }
        }
        Err(FsError::Unavailable)
    }

    pub(crate) async fn read_range(&self, ino: Ino, content: &Content, at: u64, end: u64) -> Result<Bytes, FsError> {
        let (from, to) = ((at / PAGE) as u32, (end / PAGE) as u32);
        let pages = self.pages(ino, content, |n| (from..=to).contains(&n)).await?;
        let mut map: Vec<Extent> = pages.into_values().flatten().collect();
        content.extents.iter().for_each(|e| lay(&mut map, *e));
        let mut out = BytesMut::zeroed((end - at) as usize);
        let map = within(&map, at, end);
        let (small, large): (Vec<Extent>, Vec<Extent>) = map.into_iter().partition(|e| e.small);
        let ranges: Vec<Range> = small.iter().map(|e| Range::key(record::small(ino, e.id))).collect();
        if !ranges.is_empty() {
            for (extent, rows) in small.iter().zip(self.read_meta(ranges).await?) {
                let stored = first(Some(rows)).and_then(|r| r.value).ok_or(FsError::Missing("data of a file"))?;
                paint(&mut out, at, extent, &record::unchecked(&stored)?, 0)?;
            }
        }
        let mut group: Vec<(Extent, u32)> = Vec::new();
        for extent in large {
            let (first, last) = (u64::from(extent.skip) / PIECE, (u64::from(extent.skip + extent.len) - 1) / PIECE);
            for n in first..=last {
                group.push((extent, n as u32));
                if group.len() as u64 * PIECE >= READ_BYTES_MAX {
                    self.read_blocks(ino, at, &mut group, &mut out).await?;
                }
            }
        }
        self.read_blocks(ino, at, &mut group, &mut out).await?;
        Ok(out.freeze())
    }

    async fn read_blocks(
        &self,
        ino: Ino,
        at: u64,
        group: &mut Vec<(Extent, u32)>,
        out: &mut BytesMut,
    ) -> Result<(), FsError> {
        if group.is_empty() {
            return Ok(());
        }
        let ranges = group.iter().map(|(e, n)| Range::key(record::block(ino, e.id, *n))).collect();
        let rows = self.blocks.read(&ino.to_be_bytes(), ranges).await?;
        for ((extent, n), rows) in group.drain(..).zip(rows) {
            let stored = first(Some(rows)).and_then(|r| r.value).ok_or(FsError::Missing("data of a file"))?;
            paint(out, at, &extent, &record::unchecked(&stored)?, u64::from(n) * PIECE)?;
        }
        Ok(())
    }
}

/// Names all of a file that lies, or may lie, in the blocks table; `None`: nothing does.
fn stored_apart(content: &Content) -> Option<u64> {
    let large = content.extents.iter().filter(|e| !e.small).map(|e| e.id);
    let all: BTreeSet<u64> = content.pages.iter().map(|(_, id)| *id).chain(large).collect();
    let mut hash = DefaultHasher::new();
    all.hash(&mut hash);
    (!all.is_empty()).then(|| hash.finish())
}

/// Copies what `bytes` (which begin at `offset` of the stored extent) hold of the extent to its place.
fn paint(out: &mut BytesMut, at: u64, extent: &Extent, bytes: &[u8], offset: u64) -> Result<(), FsError> {
    let (skip, len) = (u64::from(extent.skip), u64::from(extent.len));
    let (from, to) = (skip.max(offset), (skip + len).min(offset + bytes.len() as u64));
    if from >= to {
        return Err(FsError::Damaged("an extent is shorter than its map says"));
    }
    let target = (extent.at - at + (from - skip)) as usize;
    let source = &bytes[(from - offset) as usize..(to - offset) as usize];
    out[target..target + source.len()].copy_from_slice(source);
    Ok(())
}

/// Adds bytes to sorted ranges that lie apart; what they cover is replaced.
fn gather(dirty: &mut Vec<(u64, Vec<u8>)>, at: u64, data: &[u8]) {
    let end = at + data.len() as u64;
    if let Some((from, bytes)) = dirty.last_mut()
        && *from + bytes.len() as u64 == at
    {
        return bytes.extend_from_slice(data);
    }
    let touches = |(from, bytes): &(u64, Vec<u8>)| *from <= end && *from + bytes.len() as u64 >= at;
    let first = dirty.iter().position(touches);
    let Some(first) = first else {
        let place = dirty.partition_point(|(from, _)| *from < at);
        return dirty.insert(place, (at, data.to_vec()));
    };
    let count = dirty[first..].iter().take_while(|r| touches(r)).count();
    let old: Vec<(u64, Vec<u8>)> = dirty.drain(first..first + count).collect();
    let from = old[0].0.min(at);
    let to = old.iter().map(|(f, b)| f + b.len() as u64).max().unwrap_or(end).max(end);
    let mut joined = vec![0; (to - from) as usize];
    for (f, b) in &old {
        joined[(f - from) as usize..][..b.len()].copy_from_slice(b);
    }
    joined[(at - from) as usize..][..data.len()].copy_from_slice(data);
    dirty.insert(first, (from, joined));
}

impl Dropped {
    pub(crate) fn add(&mut self, gone: &[Extent]) {
        for extent in gone {
            if extent.small {
                self.small.push(extent.id);
            } else {
                // At most so long: pieces that are not there cost nothing to delete.
                self.blocks.push((extent.id, EXTENT as u32));
            }
        }
    }

    /// Leaves out what is wanted.
    pub(crate) fn keep_out(&mut self, wanted: &BTreeSet<u64>) {
        self.small.retain(|id| !wanted.contains(id));
        self.blocks.retain(|(id, _)| !wanted.contains(id));
        self.pages.retain(|id| !wanted.contains(id));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.small.is_empty() && self.blocks.is_empty() && self.pages.is_empty()
    }

    /// The keys in the metadata table, and in the blocks table.
    pub(crate) fn keys(&self) -> (Vec<Bytes>, Vec<Bytes>) {
        let small = self.small.iter().map(|id| record::small(self.ino, *id));
        let pages = self.pages.iter().map(|id| record::page(self.ino, *id));
        let pieces = |len: u32| 0..len.div_ceil(PIECE as u32);
        let blocks = self.blocks.iter().flat_map(|(id, len)| pieces(*len).map(|n| record::block(self.ino, *id, n)));
        (small.chain(pages).collect(), blocks.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gathered_ranges_read_as_the_writes_in_order() {
        let (mut dirty, mut plain, mut x) = (Vec::new(), [0u8; 100], 99u64);
        for n in 1..500u64 {
            x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let (at, len) = ((x >> 33) % 80, (x >> 50) % 19 + 1);
            let data = vec![(n % 255) as u8 + 1; len as usize];
            gather(&mut dirty, at, &data);
            plain[at as usize..(at + len) as usize].copy_from_slice(&data);
            let mut got = [0u8; 100];
            for (from, bytes) in &dirty {
                got[*from as usize..][..bytes.len()].copy_from_slice(bytes);
            }
            assert_eq!(got, plain);
            assert!(dirty.windows(2).all(|w| w[0].0 + (w[0].1.len() as u64) < w[1].0 + 1));
        }
    }
}
