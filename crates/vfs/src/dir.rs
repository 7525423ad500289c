use crate::error::FsError;
use crate::fs::{Attr, Fs, Handle, HandleId, Ino, Kind, attr_ranges, lock};
use crate::record;
use crate::watch::Mark;
use bytes::Bytes;
use client::{Range, Space};
use std::sync::Arc;

/// How many entries one read of the database brings.
const PAGE: u32 = 4000;
/// Ranges that [`attr_ranges`] needs.
const RANGES_PER_INODE: usize = 6;

/// The names in a directory.
#[derive(Debug)]
pub struct Listing {
    /// In the order in which they are told.
    pub entries: Vec<Entry>,
    mark: Mark,
}

/// One name in a directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The name; any bytes but zero and `/`.
    pub name: Bytes,
    /// Its inode.
    pub ino: Ino,
    /// What that is.
    pub kind: Kind,
}

impl Fs {
    /// Opens a directory for listing.
    pub fn opendir(&self, ino: Ino) -> HandleId {
        let id = self.next_handle();
        lock(&self.handles).insert(
            id,
            Handle { ino, append: false, errors_seen: 0, listing: None, wrote: false, owners: Default::default() },
        );
        id
    }

    /// The entries of an open directory, `.` and `..` first. Listed when first asked for, and anew from the start (`rewind`):
    /// places in the list stay valid while names come and go.
    pub async fn listing(&self, handle: HandleId, rewind: bool) -> Result<Arc<Listing>, FsError> {
        let (ino, listing) = {
            let handles = lock(&self.handles);
            let handle = handles.get(&handle).ok_or(FsError::Invalid)?;
            (handle.ino, handle.listing.clone())
        };
        if let Some(listing) = listing.filter(|_| !rewind) {
            return Ok(listing);
        }
        let mark = self.watch.mark(ino, 0);
        let listing = Arc::new(Listing { entries: self.list(ino).await?, mark });
        if let Some(handle) = lock(&self.handles).get_mut(&handle) {
            handle.listing = Some(listing.clone());
        }
        Ok(listing)
    }

    async fn list(&self, ino: Ino) -> Result<Vec<Entry>, FsError> {
        let parent = self.parent(ino).await.unwrap_or(ino);
        let dots = |name: &'static [u8], ino| Entry { name: Bytes::from_static(name), ino, kind: Kind::Directory };
        let mut out = vec![dots(b".", ino), dots(b"..", parent)];
        let mut range = Range::prefix(record::names(ino), PAGE);
        loop {
            let rows = self.read_meta(vec![range.clone()]).await?;
            let Some(rows) = rows.into_iter().next() else { return Ok(out) };
            let Some(last) = rows.rows.last().map(|(key, _)| key.clone()) else { return Ok(out) };
            let mut rank = None;
            for (key, row) in &rows.rows {
                let (name, ino, _) = record::split_entry(key).ok_or(FsError::Damaged("an entry's key"))?;
                let entry = Entry { name, ino, kind: record::decode(row.value.as_deref().unwrap_or_default())? };
                // Two islands may have made one each: the latest shows, as in lookup.
                match out.last_mut().filter(|e| e.name == entry.name && out_is_entry(e)) {
                    Some(same) if rank < Some(row.rank()) => *same = entry,
                    Some(_) => continue,
                    None => out.push(entry),
                }
                rank = Some(row.rank());
            }
            if !rows.more {
                return Ok(out);
            }
            range = Range { space: Space::User, from: [&last[..], &[0]].concat().into(), ..range };
        }
    }

    /// Attributes of several inodes of a listing at once; `None` for those that are gone.
    pub async fn getattrs(&self, listing: &Listing, inos: &[Ino]) -> Result<Vec<Option<(Attr, Mark)>>, FsError> {
        let before: Vec<_> =
            inos.iter().map(|ino| (self.pending(*ino), self.watch.mark(0, *ino).and(listing.mark))).collect();
        let ranges = inos.iter().flat_map(|ino| attr_ranges(*ino)).collect();
        let mut rows = self.read_meta(ranges).await?.into_iter();
        let mut out = Vec::with_capacity(inos.len());
        for (ino, (pending, mark)) in inos.iter().zip(before) {
            out.push(self.tell_attr(*ino, rows.by_ref().take(RANGES_PER_INODE).collect(), pending, mark)?);
        }
        Ok(out)
    }

    /// Makes all that was done in this directory durable.
    pub async fn sync_names(&self, dir: Ino) -> Result<(), FsError> {
        self.land_all(true).await?;
        self.tell_lost(dir)
    }
}

fn out_is_entry(entry: &Entry) -> bool {
    &entry.name[..] != b"." && &entry.name[..] != b".."
}
