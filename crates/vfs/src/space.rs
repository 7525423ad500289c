//! What is there of a file and what is not: cutting off, holes, and where they lie.

use crate::data::PAGE;
use crate::error::FsError;
use crate::fs::{Fs, Ino, TRIES_MAX, pause, wall_ns};
use crate::map::{cut, lay, unreferenced};
use crate::record::{Content, Dropped};

/// The largest size of a file.
pub(crate) const SIZE_MAX: u64 = i64::MAX as u64;

/// What `fallocate` is to do with a range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Allocate {
    /// The file is at least so long. Room is not kept for it: bytes of a file are never written in place.
    Extend,
    /// Nothing but that the range is sane.
    KeepSize,
    /// The range reads as zeros, and takes no room; the size stays.
    Punch,
    /// The same, and the file is at least so long.
    Zero,
}

impl Fs {
    /// Cuts a file off, or makes it longer with a hole.
    pub(crate) async fn truncate(&self, ino: Ino, size: u64) -> Result<(), FsError> {
        if size > SIZE_MAX {
            return Err(FsError::TooLarge);
        }
        self.cut_out(ino, size..u64::MAX, |_| size).await
    }

    /// Changes what is there of a range of a file.
    pub async fn allocate(&self, ino: Ino, at: u64, len: u64, how: Allocate) -> Result<(), FsError> {
        let end = at.checked_add(len).filter(|end| *end <= SIZE_MAX).ok_or(FsError::TooLarge)?;
        if len == 0 {
            return Err(FsError::Invalid);
        }
        match how {
            Allocate::KeepSize => self.inode(ino).await.map(drop),
            Allocate::Extend => self.cut_out(ino, 0..0, |size| size.max(end)).await,
            Allocate::Punch => self.cut_out(ino, at..end, |size| size).await,
            Allocate::Zero => self.cut_out(ino, at..end, |size| size.max(end)).await,
        }
    }

    /// Takes a range out of the map, and changes the size.
    async fn cut_out(&self, ino: Ino, range: std::ops::Range<u64>, resize: impl Fn(u64) -> u64) -> Result<(), FsError> {
        self.flush_inode(ino, false).await?;
        let guard = self.commit_lock(ino);
        let _guard = guard.lock().await;
        for round in 0..TRIES_MAX {
            let (mut content, version) = self.content(ino).await?;
            let (mut dropped, mut writes) = (Dropped { ino, ..Dropped::default() }, Vec::new());
            if range.start < content.size.min(range.end) {
                let before = content.extents.clone();
                cut(&mut content.extents, range.start, range.end);
                dropped.add(&unreferenced(&before, &content.extents));
                let pages =
                    (range.start / PAGE) as u32..=(range.end.min(SIZE_MAX) / PAGE).min(u64::from(u32::MAX)) as u32;
                for (n, before) in self.pages(ino, &content, |n| pages.contains(&n)).await? {
                    let mut after = before.clone();
                    cut(&mut after, range.start, range.end);
                    if after != before {
                        dropped.add(&unreferenced(&before, &after));
                        self.put_page(ino, &mut content, n, &after, &mut dropped, &mut writes)?;
                    }
                }
            }
            content.size = resize(content.size);
            content.mtime = wall_ns();
            content.ctime = content.mtime;
            if self.put_content(ino, content, version, dropped, writes, false).await? {
                return Ok(());
            }
            pause(round).await;
        }
        Err(FsError::Unavailable)
    }

    /// The first byte from `at` on that is data, or in a hole; the end of the file counts as one. [`FsError::Beyond`]: there is none.
    pub async fn seek(&self, ino: Ino, at: u64, data: bool) -> Result<u64, FsError> {
        self.flush_inode(ino, false).await?;
        let (content, _) = self.content(ino).await?;
        if at >= content.size {
            return Err(FsError::Beyond);
        }
        let mut at = at;
        while at < content.size {
            let page_end = (at / PAGE + 1) * PAGE;
            if let Some(found) = self.seek_in_page(ino, &content, at, data).await? {
                return if found < content.size || !data { Ok(found.min(content.size)) } else { Err(FsError::Beyond) };
            }
            at = page_end;
        }
        if data { Err(FsError::Beyond) } else { Ok(content.size) }
    }

    async fn seek_in_page(&self, ino: Ino, content: &Content, at: u64, data: bool) -> Result<Option<u64>, FsError> {
        let page = (at / PAGE) as u32;
        let pages = self.pages(ino, content, |n| n == page).await?;
        let mut map: Vec<_> = pages.into_values().flatten().collect();
        content.extents.iter().filter(|e| (e.at / PAGE) as u32 == page).for_each(|e| lay(&mut map, *e));
        let first = map.partition_point(|e| e.at + u64::from(e.len) <= at);
        if data {
            return Ok(map.get(first).map(|e| e.at.max(at)));
        }
        let mut at = at;
        for e in &map[first..] {
            if e.at > at {
                break;
            }
            at = e.at + u64::from(e.len);
        }
        Ok((at < (u64::from(page) + 1) * PAGE).then_some(at))
    }
}
