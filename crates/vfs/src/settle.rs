//! What becomes of what both sides of a cut made: of one name, and of one file's bytes.

use crate::error::FsError;
use crate::fs::{Fs, Ino, Kind, first, put, to_content, wall_ns};
use crate::map::unreferenced;
use crate::names::{Found, touch};
use crate::record::{self, Content, Dropped, Extent, Gone, Inode, Place};
use crate::tidy::{Entry, Walk, batches, conflict_name, is_left_out, put_back, settled};
use bytes::Bytes;
use client::{Check, LedgerRow, Range, Record, Write};
use std::collections::{BTreeMap, BTreeSet};

/// How many bytes of two files are compared, or copied, at once.
const STEP: u64 = 1024 * 1024;
/// How many names are tried for a file that lost its own.
const NAMES_MAX: usize = 1000;

impl Fs {
    /// One name of several inodes: directories become one, and of the others the latest keeps it.
    pub(crate) async fn settle_name(&self, dir: Ino, mut same: Vec<Entry>, walk: &mut Walk) -> Result<(), FsError> {
        if same.len() < 2 {
            return Ok(());
        }
        let birth = |e: &Entry| (e.inode.as_ref().map_or(0, |i| i.birth), e.ino);
        let dirs: Vec<Entry> = same.iter().filter(|e| e.kind == Kind::Directory).cloned().collect();
        if let (Some(keep), true) = (dirs.iter().min_by_key(|e| birth(e)), dirs.len() > 1) {
            for other in dirs.iter().filter(|e| e.ino != keep.ino) {
                self.merge_directory(dir, other, keep.ino, walk).await?;
            }
            return Ok(());
        }
        same.sort_by_key(|e| e.place.as_ref().map(|(_, row)| std::cmp::Reverse(row.rank())));
        let mut same = same.into_iter();
        let Some(winner) = same.next() else { return Ok(()) };
        for other in same {
            let shown = String::from_utf8_lossy(&other.name).into_owned();
            if self.is_alike(&winner, &other).await? {
                let what = format!("{shown:?} was made alike on both sides: one of the two goes");
                let (mut checks, mut writes) = (Vec::new(), vec![touch(dir, wall_ns())]);
                self.take(dir, &other.name, &Found::from(&other), wall_ns(), (&mut checks, &mut writes)).await?;
                self.mend(walk, "alike", what, (checks, writes)).await?;
                continue;
            }
            let Some((place, row)) = &other.place else { continue };
            let name = self.free_name(dir, &other.name, other.link, place.ctime).await?;
            let what =
                format!("{shown:?} is of two files: the earlier is {:?} from now on", String::from_utf8_lossy(&name));
            let to = Place { name: name.clone(), ..place.clone() };
            let (mut checks, mut writes) =
                put_back((other.ino, other.link, other.kind), row.version, (dir, &other.name), to);
            checks.push(Check::Count(record::name(dir, &name), 0));
            writes.push(settled(other.link, what.clone()));
            self.mend(walk, "name", what, (checks, writes)).await?;
        }
        Ok(())
    }

    /// A name that nothing has yet, for what loses its own.
    async fn free_name(&self, dir: Ino, name: &[u8], made: u64, when: u64) -> Result<Bytes, FsError> {
        let maker = self.get(record::allocator((made >> 24) as u32 & 0xff_ffff)).await?.and_then(|row| row.value);
        let maker = String::from_utf8_lossy(maker.as_deref().unwrap_or(b"?")).into_owned();
        for number in 1..NAMES_MAX {
            let name = conflict_name(name, &maker, when, number);
            let there = self.read_meta(vec![Range::prefix(record::name(dir, &name), 1)]).await?;
            if there.iter().all(|rows| rows.rows.is_empty()) {
                return Ok(name);
            }
        }
        Err(FsError::Exists)
    }

    /// Are these the same for whoever looks at them?
    async fn is_alike(&self, a: &Entry, b: &Entry) -> Result<bool, FsError> {
        let (Some(i), Some(j)) = (&a.inode, &b.inode) else { return Ok(false) };
        let looks = |i: &Inode| (i.kind, i.mode, i.uid, i.gid, i.rdev, i.target.clone());
        if a.ino == b.ino || looks(i) != looks(j) || i.kind == Kind::Directory {
            return Ok(a.ino == b.ino && a.link != b.link);
        }
        let attributes = [a.ino, b.ino].map(|ino| Range::prefix(record::xattr(ino, b""), 4096));
        let keys = [a.ino, b.ino].map(|ino| Range::key(record::content(ino)));
        let mut rows = self.read_meta(attributes.into_iter().chain(keys).collect()).await?.into_iter();
        let mut listed = || -> Vec<(Bytes, Option<Bytes>)> {
            let rows = rows.next().unwrap_or_default().rows;
            rows.into_iter().map(|(key, row)| (key.slice(8..), row.value)).collect()
        };
        if listed() != listed() {
            return Ok(false);
        }
        let (c, d) = (first(rows.next()), first(rows.next()));
        self.is_same((a.ino, &to_content(c.as_ref())?), (b.ino, &to_content(d.as_ref())?)).await
    }

    /// The same bytes?
    async fn is_same(&self, (ino, a): (Ino, &Content), (other, b): (Ino, &Content)) -> Result<bool, FsError> {
        if a.size != b.size {
            return Ok(false);
        }
        let mut at = 0;
        while at < a.size {
            let end = a.size.min(at + STEP);
            if self.read_range(ino, a, at, end).await? != self.read_range(other, b, at, end).await? {
                return Ok(false);
            }
            at = end;
        }
        Ok(true)
    }

    /// What is in one directory goes into another of the same name, and whoever comes to the one finds the other.
    async fn merge_directory(&self, dir: Ino, from: &Entry, into: Ino, walk: &mut Walk) -> Result<(), FsError> {
        let shown = String::from_utf8_lossy(&from.name).into_owned();
        let what = format!("{shown:?} was made on both sides: the two directories become one");
        let key = record::merged(from.ino);
        if self.get(key.clone()).await?.is_none() {
            let mark = put(key.clone(), Bytes::copy_from_slice(&into.to_be_bytes()));
            if !self.mend(walk, "merged", what, (vec![Check::Absent(key)], vec![mark])).await? {
                return Ok(());
            }
        } else {
            walk.say(what);
        }
        let rows = self.read_meta(vec![Range::prefix(record::names(from.ino), 4096)]).await?;
        let rows: Vec<_> = rows.into_iter().flat_map(|r| r.rows).collect();
        let empty = rows.is_empty();
        for part in batches(rows) {
            let (mut checks, mut writes) = (Vec::new(), Vec::new());
            for (key, row) in part {
                let (name, ino, link) = record::split_entry(&key).ok_or(FsError::Damaged("an entry's key"))?;
                let Some(place) = self.get(record::place(ino, link)).await? else { continue };
                let was: Place = record::decode(place.value.as_deref().unwrap_or_default())?;
                if was.parent != from.ino || was.name != name {
                    continue;
                }
                let kind: Kind = record::decode(row.value.as_deref().unwrap_or_default())?;
                let previous = (kind == Kind::Directory).then(|| (from.ino, name.clone()));
                let to = Place { parent: into, name: name.clone(), ctime: was.ctime, previous };
                let step = put_back((ino, link, kind), place.version, (from.ino, &name), to);
                checks.extend(step.0);
                writes.extend(step.1);
            }
            if !writes.is_empty() {
                self.mend(walk, "entries", format!("{} entries go into it", checks.len()), (checks, writes)).await?;
            }
        }
        if empty && walk.mends() {
            let (mut checks, mut writes) =
                (vec![Check::Count(record::names(from.ino), 0)], vec![touch(dir, wall_ns())]);
            self.take(dir, &from.name, &Found::from(from), wall_ns(), (&mut checks, &mut writes)).await?;
            self.mend(walk, "emptied", "the one that is empty by now goes".into(), (checks, writes)).await?;
        }
        Ok(())
    }

    /// Bytes that were written over by another island's become files beside those. Returns how many did.
    pub(crate) async fn settle_bytes(&self) -> Result<usize, FsError> {
        let (mut all, mut from) = (BTreeMap::<Ino, Vec<LedgerRow>>::new(), Some(Bytes::new()));
        while let Some(at) = from {
            let (rows, next) = self.meta.ledger(at).await?;
            for (_, row) in rows {
                if let (Some(ino), Some(b'C')) = (row.key.first_chunk::<8>(), row.key.get(8)) {
                    all.entry(u64::from_be_bytes(*ino)).or_default().push(row);
                }
            }
            from = next;
        }
        let mut settled = 0;
        for (ino, mut rows) in all {
            while let Some(row) = rows.pop() {
                if is_left_out("bytes") {
                    continue;
                }
                match self.settle_one(ino, &row, &rows).await {
                    Ok(made) => settled += usize::from(made),
                    // It stays in the ledger, where `tombolo conflicts` shows it.
                    Err(FsError::Damaged(why)) => tracing::warn!("a losing version of inode {ino:x} is left: {why}"),
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(settled)
    }

    async fn settle_one(&self, ino: Ino, row: &LedgerRow, others: &[LedgerRow]) -> Result<bool, FsError> {
        let keys = [record::inode(ino), record::content(ino), record::orphan(ino)].map(Range::key);
        let mut rows = self.read_meta(keys.into()).await?.into_iter();
        let (inode, content, orphan) = (first(rows.next()), first(rows.next()), first(rows.next()));
        let forget = Write::Forget { key: row.key.clone(), lost: row.lost.version };
        let (Some(inode), Some(lost)) = (inode, row.lost.value.as_deref()) else {
            return self.commit(Vec::new(), vec![forget], false).await.map(|_| false);
        };
        let (inode, losing): (Inode, Content) =
            (record::decode(inode.value.as_deref().unwrap_or_default())?, record::decode(lost)?);
        let now = to_content(content.as_ref())?;
        let dropped = self.only_in(ino, &losing, &now, others).await?;
        let drop = (!dropped.is_empty()).then(|| self.numbers.fresh()).transpose()?;
        let drop = drop.map(|id| put(record::dropped(id), record::encode(&dropped)));
        if self.is_same((ino, &now), (ino, &losing)).await? {
            let at = content.map(|c| Check::AtVersion(record::content(ino), c.version));
            let writes = [forget].into_iter().chain(drop).collect();
            return self.commit(at.into_iter().collect(), writes, false).await.map(|_| false);
        }
        let copy = self.copy_losing(ino, &inode, &losing).await?;
        let (dir, name) = self.place_beside(ino, orphan.as_ref()).await?;
        let id = u64::from_be_bytes(
            *blake3::hash(&[&row.key[..], &record::encode(&row.lost.version)].concat())
                .as_bytes()
                .first_chunk()
                .unwrap_or(&[0; 8]),
        );
        let made = losing.extents.iter().map(|e| e.id).max().unwrap_or(ino);
        let (link, name) = (self.numbers.fresh()?, self.free_name(dir, &name, made, losing.mtime).await?);
        let shown = String::from_utf8_lossy(&name).into_owned();
        let what = format!("inode {ino:x} was written on both sides: the earlier version is {shown:?}");
        tracing::warn!("{what}");
        let place = Place { parent: dir, name: name.clone(), ctime: wall_ns(), previous: None };
        let (mut checks, mut writes) = put_back((copy, link, Kind::File), Default::default(), (0, b""), place);
        checks.extend([
            // Another mount that does the same at once: one of them is first.
            Check::Absent(record::settled(id)),
            Check::Count(record::name(dir, &name), 0),
            Check::Absent(record::orphan(copy)),
        ]);
        writes.extend([settled(id, what), forget]);
        writes.extend(drop);
        Ok(self.commit_as(checks, writes, false, false).await?.is_ok())
    }

    /// Where a file's other version is put: beside its first name, or what was that.
    async fn place_beside(&self, ino: Ino, orphan: Option<&Record>) -> Result<(Ino, Bytes), FsError> {
        let rows = self.read_meta(vec![Range::prefix(record::places(ino), 1)]).await?;
        let place = match rows.into_iter().flat_map(|r| r.rows).next() {
            Some((_, row)) => Some(record::decode(row.value.as_deref().unwrap_or_default())?),
            None => {
                let said = orphan.and_then(|row| row.value.as_deref()).map(Gone::read).unwrap_or_default();
                said.into_iter().find_map(|gone| gone.place)
            }
        };
        let mut walk = Walk::new(true, false, false);
        match place {
            Some(Place { parent, name, .. }) => Ok((self.usable(parent, 0, &mut walk).await?, name)),
            None => Ok((self.lost(&walk).await?, format!("inode {ino:x}").into())),
        }
    }

    /// A file of its own with the bytes of a version that lost, without a name so far.
    async fn copy_losing(&self, ino: Ino, like: &Inode, losing: &Content) -> Result<Ino, FsError> {
        let copy = self.numbers.fresh()?;
        let inode = Inode { ctime: wall_ns(), birth: wall_ns(), after: false, ..like.clone() };
        let key = record::inode(copy);
        self.commit(vec![Check::Absent(key.clone())], vec![put(key, record::encode(&inode))], false).await?;
        let mut at = 0;
        while at < losing.size {
            let end = losing.size.min(at + STEP);
            let bytes = self.read_range(ino, losing, at, end).await?;
            // Holes stay holes; the last byte says how long it is.
            if end == losing.size || bytes.iter().any(|b| *b != 0) {
                self.commit_ranges(copy, vec![(at, bytes.to_vec())], losing.mtime, false, false).await?;
            }
            at = end;
        }
        Ok(copy)
    }

    /// What one version of a file's map names and no other that is still wanted does.
    async fn only_in(
        &self,
        ino: Ino,
        losing: &Content,
        now: &Content,
        others: &[LedgerRow],
    ) -> Result<Dropped, FsError> {
        let (mut wanted, mut pages) = self.named(ino, now).await?;
        for other in others {
            if let Some(Ok(content)) = other.lost.value.as_deref().map(record::decode::<Content>) {
                let (more, ids) = self.named(ino, &content).await?;
                wanted.extend(more);
                pages.extend(ids);
            }
        }
        let (mine, my_pages) = self.named(ino, losing).await?;
        let mut dropped = Dropped { ino, ..Dropped::default() };
        dropped.add(&unreferenced(&mine, &wanted));
        dropped.pages.extend(my_pages.difference(&pages));
        Ok(dropped)
    }

    /// All extents that a map names, and its pages.
    pub(crate) async fn named(&self, ino: Ino, content: &Content) -> Result<(Vec<Extent>, BTreeSet<u64>), FsError> {
        let ids = content.pages.iter().map(|(_, id)| *id).collect();
        let pages = self.pages(ino, content, |_| true).await?;
        Ok((pages.into_values().flatten().chain(content.extents.iter().copied()).collect(), ids))
    }
}

impl From<&Entry> for Found {
    fn from(e: &Entry) -> Found {
        Found { ino: e.ino, link: e.link, kind: e.kind, version: e.version }
    }
}
