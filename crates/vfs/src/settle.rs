//! What becomes of what both sides of a cut made: of one name, and of one file's bytes.

use crate::delegate::Told;
use crate::error::FsError;
use crate::fs::{Fs, Ino, Kind, TRIES_MAX, first, pause, put, to_content, wall_ns};
use crate::map::unreferenced;
use crate::names::{Found, touch};
use crate::record::{self, Content, Dropped, Extent, Gone, Inode, Place};
use crate::tidy::{Entry, MOVES_MAX, Walk, conflict_name, is_left_out, put_back, settled};
use bytes::Bytes;
use client::{Check, LedgerRow, Range, Record, Write};
use std::collections::{BTreeMap, BTreeSet};

/// How many bytes of two files are compared, or copied, at once.
pub(crate) const STEP: u64 = 1024 * 1024;
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
            if let Some(seen) = self.is_alike(&winner, &other).await? {
                let what = format!("{shown:?} was made alike on both sides: one of the two goes");
                let (mut checks, mut writes) = (seen, vec![touch(dir, wall_ns())]);
                let found = Found { alike: true, ..Found::from(&other) };
                let _still = self.take(dir, &other.name, &found, wall_ns(), (&mut checks, &mut writes)).await?;
                self.mend(walk, "alike", what, (checks, writes)).await?;
                continue;
            }
            let Some((place, row)) = &other.place else { continue };
            let name = self.free_name(dir, &other.name, other.link, place.ctime).await?;
            let what =
                format!("{shown:?} is of two files: the earlier is {:?} from now on", String::from_utf8_lossy(&name));
            let to = Place { name: name.clone(), ..place.clone() };
            let (mut checks, mut writes) =
                put_back((other.ino, other.link, other.kind), row.version, Some((dir, &other.name)), to);
            checks.push(Check::Count(record::name(dir, &name), 0));
            writes.push(settled(other.link, what.clone()));
            self.mend(walk, "name", what, (checks, writes)).await?;
        }
        Ok(())
    }

    /// A name that nothing has yet, for what loses its own.
    pub(crate) async fn free_name(&self, dir: Ino, name: &[u8], made: u64, when: u64) -> Result<Bytes, FsError> {
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

    /// Are these the same for whoever looks at them? As long as this holds.
    async fn is_alike(&self, a: &Entry, b: &Entry) -> Result<Option<Vec<Check>>, FsError> {
        let (Some(i), Some(j)) = (&a.inode, &b.inode) else { return Ok(None) };
        let looks = |i: &Inode| (i.kind, i.mode, i.uid, i.gid, i.rdev, i.target.clone());
        if a.ino == b.ino {
            // Two links of one inode.
            return Ok(Some(Vec::new()));
        }
        if looks(i) != looks(j) || i.kind == Kind::Directory {
            return Ok(None);
        }
        let attributes = [a.ino, b.ino].map(|ino| Range::prefix(record::xattr(ino, b""), 4096));
        let keys = [record::content(a.ino), record::content(b.ino), record::inode(a.ino), record::inode(b.ino)];
        let ranges = attributes.into_iter().chain(keys.clone().map(Range::key)).collect();
        let mut rows = self.read_meta(ranges).await?.into_iter();
        let mut listed = || -> Vec<(Bytes, Option<Bytes>)> {
            let rows = rows.next().unwrap_or_default().rows;
            rows.into_iter().map(|(key, row)| (key.slice(8..), row.value)).collect()
        };
        let (mine, others) = (listed(), listed());
        let rows: Vec<Option<Record>> = rows.map(|rows| first(Some(rows))).collect();
        let as_seen = |(key, row): (Bytes, &Option<Record>)| match row {
            Some(row) => Check::AtVersion(key, row.version),
            None => Check::Absent(key),
        };
        let seen: Vec<Check> = keys.into_iter().zip(&rows).map(as_seen).collect();
        let content = |n: usize| to_content(rows.get(n).and_then(Option::as_ref));
        let same = mine == others && self.is_same((a.ino, &content(0)?), (b.ino, &content(1)?)).await?;
        Ok(same.then_some(seen))
    }

    /// The same bytes? Where some cannot be read, that is not known.
    async fn is_same(&self, (ino, a): (Ino, &Content), (other, b): (Ino, &Content)) -> Result<bool, FsError> {
        if a.size != b.size {
            return Ok(false);
        }
        let mut steps = self.steps(ino, a).await?;
        steps.extend(self.steps(other, b).await?);
        for at in steps {
            let end = a.size.min(at + STEP);
            match (self.read_range(ino, a, at, end).await, self.read_range(other, b, at, end).await) {
                (Ok(one), Ok(two)) if one == two => {}
                (Ok(_), Ok(_)) | (Err(FsError::Damaged(_)), _) | (_, Err(FsError::Damaged(_))) => return Ok(false),
                (Err(e), _) | (_, Err(e)) => return Err(e),
            }
        }
        Ok(true)
    }

    /// Where steps begin that hold anything but holes.
    pub(crate) async fn steps(&self, ino: Ino, content: &Content) -> Result<BTreeSet<u64>, FsError> {
        let (extents, _) = self.named(ino, content).await?;
        let steps = |e: &Extent| e.at / STEP..=(e.at + u64::from(e.len) - 1) / STEP;
        let all = extents.iter().filter(|e| e.len > 0 && e.at < content.size).flat_map(steps);
        Ok(all.map(|step| step * STEP).filter(|at| *at < content.size).collect())
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
        let mut empty = false;
        loop {
            let rows = self.read_meta(vec![Range::prefix(record::names(from.ino), 1024)]).await?;
            let rows: Vec<_> = rows.into_iter().flat_map(|r| r.rows).collect();
            empty |= rows.is_empty();
            let mended = walk.mended;
            for part in rows.chunks(MOVES_MAX) {
                self.move_entries(part, from.ino, into, walk).await?;
            }
            if walk.mended == mended {
                break;
            }
        }
        if empty && walk.mends() {
            let (mut checks, mut writes) =
                (vec![Check::Count(record::names(from.ino), 0)], vec![touch(dir, wall_ns())]);
            let _still = self.take(dir, &from.name, &Found::from(from), wall_ns(), (&mut checks, &mut writes)).await?;
            self.mend(walk, "emptied", "the one that is empty by now goes".into(), (checks, writes)).await?;
        }
        Ok(())
    }

    /// Moves some entries of a directory that is merged into another.
    async fn move_entries(
        &self,
        part: &[(Bytes, Record)],
        from: Ino,
        into: Ino,
        walk: &mut Walk,
    ) -> Result<(), FsError> {
        let (mut checks, mut writes, mut places) = (Vec::new(), Vec::new(), Vec::new());
        let split = |key: &Bytes| record::split_entry(key).ok_or(FsError::Damaged("an entry's key"));
        for (key, _) in part {
            let (_, ino, link) = split(key)?;
            places.push(Range::key(record::place(ino, link)));
        }
        for ((key, row), place) in part.iter().zip(self.read_meta(places).await?) {
            let (name, ino, link) = split(key)?;
            let Some(place) = first(Some(place)) else { continue };
            let was: Place = record::decode(place.value.as_deref().unwrap_or_default())?;
            if was.parent != from || was.name != name {
                continue;
            }
            let kind: Kind = record::decode(row.value.as_deref().unwrap_or_default())?;
            let previous = (kind == Kind::Directory).then(|| (from, name.clone()));
            let to = Place { parent: into, name: name.clone(), ctime: was.ctime, previous };
            let step = put_back((ino, link, kind), place.version, Some((from, &name)), to);
            checks.extend(step.0);
            writes.extend(step.1);
        }
        if !writes.is_empty() {
            let what = format!("{} entries go into it", checks.len());
            self.mend(walk, "entries", what, (checks, writes)).await?;
        }
        Ok(())
    }

    /// Versions of files' bytes that were written over by another island's, by inode.
    pub(crate) async fn lost_bytes(&self) -> Result<BTreeMap<Ino, Vec<LedgerRow>>, FsError> {
        let (mut all, mut from) = (BTreeMap::<Ino, Vec<LedgerRow>>::new(), Some(Bytes::new()));
        while let Some(at) = from {
            let (rows, next) = self.meta.ledger(at).await?;
            for (_, row) in rows {
                if row.key.get(8) == Some(&b'C') {
                    all.entry(record::ino_of(&row.key)).or_default().push(row);
                }
            }
            from = next;
        }
        Ok(all)
    }

    /// They become files beside those. Returns how many did. `patient`: what is not there may be on its way, and is waited for.
    pub(crate) async fn settle_bytes(&self, patient: bool) -> Result<usize, FsError> {
        let mut settled = 0;
        for round in 0..TRIES_MAX {
            let mut again = false;
            for (ino, rows) in self.lost_bytes().await? {
                for (n, row) in rows.iter().enumerate() {
                    let others: Vec<&LedgerRow> =
                        rows.iter().enumerate().filter(|(m, _)| *m != n).map(|(_, r)| r).collect();
                    match self.settle_one(ino, row, &others).await {
                        Ok(made) => {
                            settled += usize::from(made == Some(true));
                            again |= made.is_none();
                        }
                        Err(FsError::Missing(_)) if patient => return Err(FsError::Unavailable),
                        // It stays in the ledger, where `tombolo conflicts` shows it, and so does what it names.
                        Err(e @ (FsError::Damaged(_) | FsError::Missing(_))) => {
                            tracing::warn!("a losing version of inode {ino:x} is left in the ledger: {e}");
                        }
                        Err(e) => return Err(e),
                    }
                }
            }
            if !again || is_left_out("bytes") {
                return Ok(settled);
            }
            pause(round).await;
        }
        Err(FsError::Unavailable)
    }

    /// `Some(true)`: it became a file; `None`: something changed meanwhile.
    async fn settle_one(&self, ino: Ino, row: &LedgerRow, others: &[&LedgerRow]) -> Result<Option<bool>, FsError> {
        if is_left_out("bytes") {
            return Ok(Some(false));
        }
        let id = blake3::hash(&[&row.key[..], &record::encode(&row.lost.version)].concat());
        let id = id.as_bytes().first_chunk::<8>().map_or(0, |bytes| u64::from_be_bytes(*bytes));
        let keys = [record::inode(ino), record::content(ino), record::orphan(ino), record::settled(id)].map(Range::key);
        let mut rows = self.read_meta(keys.into()).await?.into_iter();
        let (inode, content, orphan) = (first(rows.next()), first(rows.next()), first(rows.next()));
        let is_settled = first(rows.next()).is_some();
        let forget = Write::Forget { key: row.key.clone(), lost: row.lost.version };
        let (Some(inode), Some(lost), false) = (inode, row.lost.value.as_deref(), is_settled) else {
            return self.commit_as(Vec::new(), vec![forget], false, Told::Nothing).await.map(|_| Some(false));
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
            let done = self.commit_as(at.into_iter().collect(), writes, false, Told::Nothing).await?;
            return Ok(done.is_ok().then_some(false));
        }
        let copy = self.numbers.fresh()?;
        self.copy_losing(copy, ino, &inode, &losing).await?;
        let (dir, name) = self.place_beside(ino, orphan.as_ref()).await?;
        let made = losing.extents.iter().map(|e| e.id).max().unwrap_or(ino);
        let (link, name) = (self.numbers.fresh()?, self.free_name(dir, &name, made, losing.mtime).await?);
        let shown = String::from_utf8_lossy(&name).into_owned();
        let what = format!("inode {ino:x} was written on both sides: the earlier version is {shown:?}");
        tracing::warn!("{what}");
        let place = Place { parent: dir, name: name.clone(), ctime: wall_ns(), previous: None };
        let (mut checks, mut writes) = put_back((copy, link, Kind::File), Default::default(), None, place);
        checks.extend([
            // Another mount that does the same at once: one of them is first.
            Check::Absent(record::settled(id)),
            Check::Count(record::name(dir, &name), 0),
            Check::Absent(record::orphan(copy)),
        ]);
        writes.extend([settled(id, what), forget]);
        writes.extend(drop);
        Ok(self.commit_as(checks, writes, false, Told::Pushes).await?.is_ok().then_some(true))
    }

    /// Where a file's other version is put: beside its first name, or what was that.
    pub(crate) async fn place_beside(&self, ino: Ino, orphan: Option<&Record>) -> Result<(Ino, Bytes), FsError> {
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

    /// A file of that number with the bytes of a version that lost, without a name so far.
    pub(crate) async fn copy_losing(&self, copy: Ino, ino: Ino, like: &Inode, losing: &Content) -> Result<(), FsError> {
        let inode = Inode { ctime: wall_ns(), birth: wall_ns(), after: false, ..like.clone() };
        let key = record::inode(copy);
        let made = vec![put(key.clone(), record::encode(&inode))];
        self.commit_as(vec![Check::Absent(key)], made, false, Told::Nothing).await?.ok();
        // Holes stay holes; the last byte says how long it is.
        let mut steps = self.steps(ino, losing).await?;
        steps.extend(losing.size.checked_sub(1).map(|last| last / STEP * STEP));
        for at in steps {
            let bytes = self.read_range(ino, losing, at, losing.size.min(at + STEP)).await?;
            self.commit_ranges(copy, vec![(at, bytes.to_vec())], losing.mtime, false, false).await?;
        }
        Ok(())
    }

    /// What one version of a file's map names and no other that is still wanted does.
    pub(crate) async fn only_in(
        &self,
        ino: Ino,
        losing: &Content,
        now: &Content,
        others: &[&LedgerRow],
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
        Found { ino: e.ino, link: e.link, kind: e.kind, version: e.version, alike: false }
    }
}
