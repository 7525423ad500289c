//! What two islands made of one tree, made one tree again.
//!
//! When islands meet, their records are merged each by itself, and the halves of a name may end up apart, a directory
//! inside itself, or a name twice. A walk over all inodes mends that, step by step; each step is a conditional batch that leaves
//! the tree better than it was, so that it may stop anywhere, and several mounts may do it at once. Nothing that was acknowledged
//! goes without somebody having removed it who had seen it: what was changed on one side and removed on the other stays, and what
//! both sides gave one name gets two. `docs/walkenfs.md` has the rules.

use crate::check::TOLD_MAX;
use crate::delegate::Told;
use crate::error::FsError;
use crate::fs::{Fs, Ino, Kind, ROOT, first, put, version_of, wall_ns};
use crate::names::{DEPTH_MAX, HERE, put_at, touch};
use crate::record::{self, Content, Gone, Inode, Place, Settled};
use crate::scrub::Pace;
use base::{Hlc, Version};
use bytes::Bytes;
use client::{Check, Range, Record, Space, Write};
use std::collections::{BTreeSet, HashSet};

/// How many rows one read brings.
const ROWS: u32 = 1000;
/// How often the tree is walked over, at most, until nothing is left to do.
const WALKS_MAX: usize = 64;
/// How many entries of a directory are moved in one batch.
pub(crate) const MOVES_MAX: usize = 64;
/// The directory for what has no other place: always of this number and these bytes, whoever makes it.
const LOST: Ino = 2;
const LOST_NAME: &[u8] = b"lost+found";

/// One name in a directory, with all that says whether it stands.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub name: Bytes,
    pub ino: Ino,
    pub link: u64,
    pub kind: Kind,
    pub version: Version,
    pub place: Option<(Place, Record)>,
    pub inode: Option<Inode>,
    pub orphan: Option<Version>,
}

impl Entry {
    fn stands_in(&self, dir: Ino) -> bool {
        self.place.as_ref().is_some_and(|(place, _)| place.parent == dir && place.name == self.name)
    }
}

/// All of an inode that says where it is.
#[derive(Default)]
pub(crate) struct Group {
    pub ino: Ino,
    pub inode: Option<(Inode, Version)>,
    pub content: Option<(Content, Version)>,
    pub places: Vec<(u64, Place, Record)>,
    pub merged: bool,
    /// Of names that it had beside others.
    taken: Vec<(Hlc, Gone)>,
    /// Entries, not looked at yet.
    names: Vec<(Bytes, Ino, u64, Kind, Version)>,
    /// Directories among them, and as they are counted.
    dirs: BTreeSet<Ino>,
    counted: BTreeSet<Ino>,
    has_names: bool,
    /// Bytes and pages: kind, number, and when they were stored.
    pub stored: Vec<(u8, u64, Hlc)>,
}

/// What a walk found, and did.
#[derive(Default, Debug)]
pub(crate) struct Walk {
    /// In words, one for each thing that is not as it should be.
    pub found: Vec<String>,
    /// How many of them were mended.
    pub mended: usize,
    /// How many inodes there are, and how many bytes of files were read.
    pub inodes: u64,
    pub bytes: u64,
    /// Bytes are read, too.
    deep: bool,
    /// What is only judged when nothing else is to be done.
    calm: bool,
    /// Directories from which the root is reached.
    rooted: HashSet<Ino>,
    repair: bool,
    /// It looks at bytes alone, at this pace; mends them, and gives up what nothing names.
    pub scrub: Option<Pace>,
}

impl Walk {
    /// `repair`: mends what it can; `calm`: judges, too, what could be the half of something else; `deep`: reads all bytes.
    pub(crate) fn new(repair: bool, calm: bool, deep: bool) -> Walk {
        Walk { repair, calm, deep, ..Walk::default() }
    }

    /// Does it mend what it finds?
    pub(crate) fn mends(&self) -> bool {
        self.repair
    }

    pub(crate) fn say(&mut self, what: String) {
        // What goes on for days does not gather for ever.
        if self.scrub.is_none() || self.found.len() < TOLD_MAX {
            self.found.push(what);
        }
    }
}

#[cfg(test)]
thread_local! {
    /// The rule that is left out: the tests must notice.
    pub(crate) static LEFT_OUT: std::cell::Cell<&'static str> = const { std::cell::Cell::new("") };
}

/// Is this rule left out, to see that the tests notice?
#[cfg(test)]
pub(crate) fn is_left_out(rule: &str) -> bool {
    LEFT_OUT.get() == rule
}

#[cfg(not(test))]
pub(crate) fn is_left_out(_: &str) -> bool {
    false
}

/// Checks and writes of one step.
type Step = (Vec<Check>, Vec<Write>);

fn decode<T: for<'a> serde::Deserialize<'a>>(row: &Record) -> Result<T, FsError> {
    record::decode(row.value.as_deref().unwrap_or_default())
}

impl Group {
    /// What is known of an inode by these records alone.
    pub(crate) fn of(ino: Ino, inode: &Record, content: Option<&Record>) -> Result<Group, FsError> {
        let content = content.map(|row| Ok::<_, FsError>((decode(row)?, row.version))).transpose()?;
        Ok(Group { ino, inode: Some((decode(inode)?, inode.version)), content, ..Group::default() })
    }

    pub(crate) fn is(&self, kind: Kind) -> bool {
        self.inode.as_ref().is_some_and(|(inode, _)| inode.kind == kind)
    }

    /// Is there anything of it that whoever took the name had not seen?
    pub(crate) fn is_newer(&self, gone: &Gone) -> bool {
        let newer = |seen: Version, now: Option<Version>, after: bool| !after && now.is_some_and(|now| now != seen);
        let (inode, content) = (self.inode.as_ref(), self.content.as_ref());
        newer(gone.inode, inode.map(|(_, v)| *v), inode.is_some_and(|(i, _)| i.after))
            || newer(gone.content, content.map(|(_, v)| *v), content.is_some_and(|(c, _)| c.after))
    }
}

impl Fs {
    /// Walks over the tree until there is nothing to mend. Returns how many things were mended, and says which. `patient`: what is
    /// not there may be on its way still.
    pub(crate) async fn tidy(&self, patient: bool, say: impl Fn(String)) -> Result<usize, FsError> {
        let (mut mended, mut calm) = (self.settle_bytes(patient).await?, false);
        for _ in 0..WALKS_MAX {
            let walk = self.walk(Walk::new(true, calm, false)).await?;
            mended += walk.mended;
            walk.found.into_iter().for_each(&say);
            // What others were changing meanwhile was nothing to mend.
            if walk.mended == 0 && calm {
                return Ok(mended);
            }
            calm = walk.mended == 0;
        }
        Err(FsError::Unavailable)
    }

    /// Looks at every inode once.
    pub(crate) async fn walk(&self, mut walk: Walk) -> Result<Walk, FsError> {
        let mut from = Bytes::copy_from_slice(&ROOT.to_be_bytes());
        let mut group = Group::default();
        loop {
            let range = Range { space: Space::User, from: from.clone(), to: None, limit: ROWS };
            if walk.scrub.is_some() && self.is_ending() {
                return Err(FsError::Unavailable);
            }
            let rows = match self.read_meta(vec![range]).await {
                // What takes days goes on when the copies answer again.
                Err(FsError::Unavailable) if walk.scrub.is_some() => {
                    tokio::time::sleep(crate::scrub::AGAIN).await;
                    continue;
                }
                rows => rows?.into_iter().next().unwrap_or_default(),
            };
            for (key, row) in &rows.rows {
                let (ino, Some(kind)) = (record::ino_of(key), key.get(8)) else { continue };
                if ino != group.ino {
                    self.look_at(std::mem::take(&mut group), &mut walk).await?;
                    group.ino = ino;
                }
                if gather(&mut group, *kind, key, row).is_err() {
                    walk.say(format!("a record {:?} of inode {ino:x} cannot be read", char::from(*kind)));
                }
            }
            if walk.scrub.is_some() {
                group.names.clear();
            } else {
                // The last name is kept back: another of it may follow.
                self.look_at_names(&mut group, false, &mut walk).await?;
            }
            match rows.rows.last() {
                Some((last, _)) if rows.more => from = [&last[..], &[0]].concat().into(),
                _ => break,
            }
        }
        self.look_at(group, &mut walk).await?;
        Ok(walk)
    }

    /// Does a step, if it is to be done and nothing changed meanwhile.
    pub(crate) async fn mend(
        &self,
        walk: &mut Walk,
        rule: &str,
        what: String,
        (checks, writes): Step,
    ) -> Result<bool, FsError> {
        // The kernel knows nothing of it.
        let done =
            walk.repair && !is_left_out(rule) && self.commit_as(checks, writes, false, Told::Pushes).await?.is_ok();
        walk.mended += usize::from(done);
        // What is refused was changed by somebody meanwhile.
        if done || !walk.repair {
            walk.say(what);
        }
        Ok(done)
    }

    async fn look_at(&self, mut group: Group, walk: &mut Walk) -> Result<(), FsError> {
        if group.ino == 0 {
            return Ok(());
        }
        walk.inodes += 1;
        if walk.scrub.is_some() {
            return self.scrub_one(&group, walk).await;
        }
        self.look_at_names(&mut group, true, walk).await?;
        let orphan = self.get(record::orphan(group.ino)).await?;
        let Some((inode, _)) = &group.inode else {
            // One that is being freed has its mark until the end.
            if orphan.is_none() && walk.calm {
                walk.say(format!("records of inode {:x}, which is not there", group.ino));
            }
            return Ok(());
        };
        let kind = inode.kind;
        if group.ino != ROOT {
            self.look_at_places(&group, kind, orphan.as_ref(), walk).await?;
        }
        if walk.deep {
            self.look_at_bytes(&group, walk).await?;
            self.look_for_unnamed(&group, walk).await?;
        }
        if kind == Kind::Directory {
            self.look_at_count(&group, walk).await?;
            if orphan.is_none() && group.ino != ROOT {
                self.look_for_circle(&group, walk).await?;
            }
        }
        Ok(())
    }

    /// The names that were gathered of a directory.
    async fn look_at_names(&self, group: &mut Group, all: bool, walk: &mut Walk) -> Result<(), FsError> {
        let last = group.names.last().map(|(name, ..)| name.clone());
        let kept =
            if all { 0 } else { group.names.iter().rev().take_while(|(name, ..)| Some(name) == last.as_ref()).count() };
        let ripe: Vec<_> = group.names.drain(..group.names.len() - kept).collect();
        let mut rows = Vec::new();
        // An answer is cut after some megabytes: so many fit, whatever they hold.
        for part in ripe.chunks(MOVES_MAX) {
            let keys = |(_, ino, link, ..): &(Bytes, Ino, u64, Kind, Version)| {
                [record::place(*ino, *link), record::inode(*ino), record::orphan(*ino)].map(Range::key)
            };
            rows.extend(self.read_meta(part.iter().flat_map(keys).collect()).await?);
        }
        let mut rows = rows.into_iter();
        let mut same: Vec<Entry> = Vec::new();
        for (name, ino, link, kind, version) in ripe {
            let (place, inode, orphan) = (first(rows.next()), first(rows.next()), first(rows.next()));
            let place = place.map(|row| Ok::<_, FsError>((decode(&row)?, row))).transpose()?;
            let inode = inode.as_ref().map(decode).transpose()?;
            let entry = Entry { name, ino, link, kind, version, place, inode, orphan: orphan.map(|r| r.version) };
            if !entry.stands_in(group.ino) || entry.inode.is_none() {
                self.mend_entry(group.ino, entry, walk).await?;
                continue;
            }
            if kind == Kind::Directory {
                group.dirs.insert(ino);
            }
            if same.first().is_some_and(|e| e.name != entry.name) {
                self.settle_name(group.ino, std::mem::take(&mut same), walk).await?;
            }
            same.push(entry);
        }
        self.settle_name(group.ino, same, walk).await
    }

    /// A name whose other half says something else, or nothing.
    async fn mend_entry(&self, dir: Ino, entry: Entry, walk: &mut Walk) -> Result<(), FsError> {
        let key = record::entry(dir, &entry.name, entry.ino, entry.link);
        let shown = String::from_utf8_lossy(&entry.name).into_owned();
        let place = record::place(entry.ino, entry.link);
        let mut checks = vec![Check::AtVersion(key.clone(), entry.version)];
        let (inode, moved) = (entry.inode.as_ref(), entry.place.is_some());
        if let (Some(inode), false) = (inode, moved) {
            // Removed on one side, and given this name on the other.
            let previous = None;
            let back = Place { parent: dir, name: entry.name.clone(), ctime: inode.ctime, previous };
            checks.extend([Check::Absent(place.clone()), Check::Present(record::inode(entry.ino))]);
            let mut writes = vec![put(place, record::encode(&back))];
            if let Some(orphan) = entry.orphan {
                let key = record::orphan(entry.ino);
                checks.push(Check::AtVersion(key.clone(), orphan));
                writes.push(Write::Delete { key });
            }
            let what = format!("{shown:?} was removed on one side and moved on the other: it stays");
            self.mend(walk, "moved", what, (checks, writes)).await?;
            return Ok(());
        }
        let mut writes = vec![Write::Delete { key }];
        checks.push(match &entry.place {
            Some((_, row)) => Check::AtVersion(place, row.version),
            None => Check::Absent(place),
        });
        if inode.is_none() {
            checks.push(Check::Absent(record::inode(entry.ino)));
        }
        if entry.kind == Kind::Directory {
            writes.push(Write::Delete { key: record::subdir(dir, entry.ino) });
        }
        let why = if moved { "is elsewhere by now" } else { "is not there" };
        let what = format!("the name {shown:?} in directory {dir:x} is of inode {:x}, which {why}", entry.ino);
        self.mend(walk, "stray", what, (checks, writes)).await?;
        Ok(())
    }

    /// How many directories are in one.
    async fn look_at_count(&self, group: &Group, walk: &mut Walk) -> Result<(), FsError> {
        for dir in group.dirs.symmetric_difference(&group.counted) {
            // Looked at again: it may have come or gone while the rows were read.
            let (key, places) = (record::subdir(group.ino, *dir), Range::prefix(record::places(*dir), 1));
            let mut rows = self.read_meta(vec![places, Range::key(key.clone())]).await?.into_iter();
            let (place, counted) = (rows.next().unwrap_or_default().rows.into_iter().next(), first(rows.next()));
            let place =
                place.map(|(key, row)| Ok::<_, FsError>((key, decode::<Place>(&row)?, row.version))).transpose()?;
            let here = place.filter(|(_, place, _)| place.parent == group.ino);
            let (checks, write) = match (here, counted) {
                (Some((place, _, version)), None) => {
                    (vec![Check::AtVersion(place, version), Check::Absent(key.clone())], put(key, HERE))
                }
                (None, Some(row)) => (vec![Check::AtVersion(key.clone(), row.version)], Write::Delete { key }),
                _ => continue,
            };
            let what = format!("directory {:x} counts {dir:x} wrongly", group.ino);
            self.mend(walk, "count", what, (checks, vec![write])).await?;
        }
        Ok(())
    }

    /// Where an inode says that it is.
    async fn look_at_places(
        &self,
        group: &Group,
        kind: Kind,
        orphan: Option<&Record>,
        walk: &mut Walk,
    ) -> Result<(), FsError> {
        for (link, place, row) in &group.places {
            let parent = self.usable(place.parent, 0, walk).await?;
            let there = self.get(record::entry(place.parent, &place.name, group.ino, *link)).await?.is_some();
            if parent == place.parent && there {
                continue;
            }
            let from = Some((place.parent, &place.name[..]));
            let step = put_back((group.ino, *link, kind), row.version, from, Place { parent, ..place.clone() });
            let shown = String::from_utf8_lossy(&place.name).into_owned();
            let what = format!("{shown:?} was in no directory: it is put into {parent:x}");
            self.mend(walk, "nowhere", what, step).await?;
        }
        match (group.places.is_empty(), orphan) {
            (false, Some(orphan)) => {
                let key = record::orphan(group.ino);
                let checks = vec![
                    Check::AtVersion(key.clone(), orphan.version),
                    Check::Count(record::places(group.ino), group.places.len() as u32),
                ];
                let what = format!("inode {:x} was removed on one side and named on the other: it stays", group.ino);
                self.mend(walk, "named", what, (checks, vec![Write::Delete { key }])).await?;
            }
            (true, Some(orphan)) if walk.calm && self.is_wanted(group, orphan) => {
                self.revive(group.ino, 0, walk).await?;
            }
            (true, None) if walk.calm => {
                // Each side took one name and left the other: nobody meant it to go.
                if let Some((_, gone)) = group.taken.iter().max_by_key(|(hlc, _)| *hlc) {
                    return self.name_again((group.ino, kind), gone.clone(), None, 0, walk).await;
                }
                let (inode, content) = (group.inode.as_ref(), group.content.as_ref());
                let seen = |version: Option<Version>| version.unwrap_or_default();
                let (inode, content) = (seen(inode.map(|(_, v)| *v)), seen(content.map(|(_, v)| *v)));
                let gone = Gone { link: 0, place: None, inode, content, alike: false };
                let key = record::orphan(group.ino);
                let checks = vec![Check::Absent(key.clone()), Check::Count(record::places(group.ino), 0)];
                let what = format!("inode {:x} never got a name: it goes", group.ino);
                self.mend(walk, "nameless", what, (checks, vec![put(key, gone.to_line())])).await?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Has nobody removed it who had seen all of it?
    fn is_wanted(&self, group: &Group, orphan: &Record) -> bool {
        let said = Gone::read(orphan.value.as_deref().unwrap_or_default());
        (group.has_names && !group.merged) || said.iter().all(|gone| group.is_newer(gone))
    }

    /// Gives an inode back a name that it had, and its directory, too, if that is gone.
    async fn revive(&self, ino: Ino, depth: usize, walk: &mut Walk) -> Result<(), FsError> {
        let keys = [record::inode(ino), record::orphan(ino)].map(Range::key);
        let mut rows = self.read_meta(keys.into()).await?.into_iter();
        let (Some(inode), Some(orphan)) = (first(rows.next()), first(rows.next())) else { return Ok(()) };
        let kind = decode::<Inode>(&inode)?.kind;
        let said = Gone::read(orphan.value.as_deref().unwrap_or_default());
        let last = said.into_iter().max_by_key(|gone| gone.place.as_ref().map(|p| p.ctime));
        let none = Gone { link: 0, place: None, inode: Version::default(), content: Version::default(), alike: false };
        self.name_again((ino, kind), last.unwrap_or(none), Some(orphan.version), depth, walk).await
    }

    /// Puts a name that was taken back where it was.
    async fn name_again(
        &self,
        (ino, kind): (Ino, Kind),
        gone: Gone,
        orphan: Option<Version>,
        depth: usize,
        walk: &mut Walk,
    ) -> Result<(), FsError> {
        let place = |parent, name| Place { parent, name, ctime: wall_ns(), previous: None };
        let (link, place) = match gone.place {
            Some(was) => (gone.link, place(self.usable(was.parent, depth + 1, walk).await?, was.name)),
            None => (self.numbers.fresh()?, place(self.lost(walk).await?, format!("inode {ino:x}").into())),
        };
        let key = record::orphan(ino);
        let (mut checks, mut writes) = put_back((ino, link, kind), Version::default(), None, place.clone());
        checks.push(Check::Count(record::places(ino), 0));
        match orphan {
            Some(version) => {
                checks.push(Check::AtVersion(key.clone(), version));
                writes.push(Write::Delete { key });
            }
            None => checks.push(Check::Absent(key)),
        }
        let shown = String::from_utf8_lossy(&place.name).into_owned();
        let why = if orphan.is_some() { "changed" } else { "had another name" };
        let what = format!("{shown:?} was removed on one side and {why} on the other: it stays");
        self.mend(walk, "revive", what, (checks, writes)).await?;
        Ok(())
    }

    /// A directory that things may be put into in this one's place: itself, brought back if it must be; the one that it was merged
    /// into; or the one for what is lost.
    pub(crate) async fn usable(&self, dir: Ino, depth: usize, walk: &mut Walk) -> Result<Ino, FsError> {
        let mut at = dir;
        for _ in 0..DEPTH_MAX {
            if at == ROOT || depth > DEPTH_MAX {
                return Ok(ROOT);
            }
            let keys = [record::inode(at), record::merged(at), record::orphan(at)].map(Range::key);
            let mut rows = self.read_meta(keys.into()).await?.into_iter();
            let (inode, merged, orphan) = (first(rows.next()), first(rows.next()), first(rows.next()));
            let is_dir =
                inode.as_ref().is_some_and(|row| decode::<Inode>(row).is_ok_and(|i| i.kind == Kind::Directory));
            match (is_dir, merged.and_then(|row| row.value)) {
                (_, Some(into)) if orphan.is_some() => {
                    let into = into.first_chunk::<8>().ok_or(FsError::Damaged("a directory's successor"))?;
                    at = u64::from_be_bytes(*into);
                }
                (true, _) => {
                    if orphan.is_some() {
                        Box::pin(self.revive(at, depth, walk)).await?;
                    }
                    return Ok(at);
                }
                (false, _) => return self.lost(walk).await,
            }
        }
        self.lost(walk).await
    }

    /// The directory for what has no other place.
    pub(crate) async fn lost(&self, walk: &Walk) -> Result<Ino, FsError> {
        let (key, kind) = (record::inode(LOST), Kind::Directory);
        if walk.repair && self.get(key.clone()).await?.is_none() {
            let target = None;
            let inode = Inode { kind, mode: 0o700, uid: 0, gid: 0, rdev: 0, target, ctime: 0, birth: 0, after: false };
            let place = Place { parent: ROOT, name: Bytes::from_static(LOST_NAME), ctime: 0, previous: None };
            let (mut checks, mut writes) = put_back((LOST, 1, kind), Version::default(), None, place);
            checks.push(Check::Absent(key.clone()));
            writes.push(put(key, record::encode(&inode)));
            self.commit_as(checks, writes, false, Told::Pushes).await?.ok();
        }
        Ok(LOST)
    }

    /// Two directories that were moved into each other: of the circle the one that was moved last goes back.
    async fn look_for_circle(&self, group: &Group, walk: &mut Walk) -> Result<(), FsError> {
        let Some((link, place, row)) = group.places.first() else { return Ok(()) };
        let mut path = vec![(group.ino, *link, place.clone(), row.clone())];
        loop {
            let Some((.., place, _)) = path.last() else { return Ok(()) };
            let parent = place.parent;
            if parent == ROOT || walk.rooted.contains(&parent) {
                walk.rooted.extend(path.iter().map(|(ino, ..)| *ino));
                return Ok(());
            }
            if let Some(at) = path.iter().position(|(other, ..)| *other == parent) {
                let circle = path.split_off(at);
                return self.open_circle(circle, walk).await;
            }
            if path.len() > DEPTH_MAX {
                walk.say(format!("directory {:x} lies deeper than {DEPTH_MAX} directories", group.ino));
                return Ok(());
            }
            let rows = self.read_meta(vec![Range::prefix(record::places(parent), 1)]).await?;
            // Where it is nowhere, that is mended first.
            let Some((key, row)) = rows.into_iter().flat_map(|r| r.rows).next() else { return Ok(()) };
            let link = key.last_chunk::<8>().map_or(0, |link| u64::from_be_bytes(*link));
            path.push((parent, link, decode(&row)?, row));
        }
    }

    async fn open_circle(&self, circle: Vec<(Ino, u64, Place, Record)>, walk: &mut Walk) -> Result<(), FsError> {
        let within: BTreeSet<Ino> = circle.iter().map(|(ino, ..)| *ino).collect();
        let Some((ino, link, place, row)) = circle.into_iter().max_by_key(|(_, _, _, row)| row.rank()) else {
            return Ok(());
        };
        let (parent, name) = match &place.previous {
            Some((parent, name)) if !within.contains(parent) => (self.usable(*parent, 0, walk).await?, name.clone()),
            _ => (self.lost(walk).await?, place.name.clone()),
        };
        let back = Place { parent, name, ctime: wall_ns(), previous: None };
        let from = Some((place.parent, &place.name[..]));
        let step = put_back((ino, link, Kind::Directory), row.version, from, back);
        let shown = String::from_utf8_lossy(&place.name).into_owned();
        let what = format!("{shown:?} and a directory in it were moved into each other: it goes back");
        self.mend(walk, "circle", what, step).await?;
        Ok(())
    }
}

/// Adds a row to what is known of its inode.
fn gather(group: &mut Group, kind: u8, key: &Bytes, row: &Record) -> Result<(), FsError> {
    let last = || key.last_chunk::<8>().map_or(0, |n| u64::from_be_bytes(*n));
    match kind {
        b'I' => group.inode = Some((decode(row)?, row.version)),
        b'C' => group.content = Some((decode(row)?, version_of(Some(row)))),
        b'F' => group.merged = true,
        b'E' | b'M' => group.stored.push((kind, last(), row.hlc)),
        b'L' => group.taken.push((row.hlc, decode(row)?)),
        b'K' => drop(group.counted.insert(last())),
        b'P' => group.places.push((last(), decode(row)?, row.clone())),
        b'D' => {
            let (name, ino, link) = record::split_entry(key).ok_or(FsError::Damaged("an entry's key"))?;
            group.names.push((name, ino, link, decode(row)?, row.version));
            group.has_names = true;
        }
        _ => {}
    }
    Ok(())
}

/// The step that puts a link at a place, and takes it from where it was. A version that never was: the link is nowhere.
pub(crate) fn put_back(
    (ino, link, kind): (Ino, u64, Kind),
    seen: Version,
    from: Option<(Ino, &[u8])>,
    place: Place,
) -> Step {
    let key = record::place(ino, link);
    let as_seen =
        if seen == Version::default() { Check::Absent(key.clone()) } else { Check::AtVersion(key.clone(), seen) };
    let mut writes = vec![touch(place.parent, place.ctime)];
    writes.extend(put_at((ino, link, kind), from, &place));
    (vec![as_seen], writes)
}

/// When it was, for a name: `2026-11-27 10.28.37`.
pub(crate) fn stamp(ns: u64) -> String {
    let (days, second) = ((ns / 1_000_000_000 / 86_400) as i64, ns / 1_000_000_000 % 86_400);
    // Howard Hinnant, "chrono-compatible low-level date algorithms".
    let z = days + 719_468;
    let (era, day_of_era) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let (day, month) = (day_of_year - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year}-{month:02}-{day:02} {hour:02}.{minute:02}.{second:02}")
}

/// `stem (conflict WHO WHEN).ext`, cut to 255 bytes; from the second on with its number.
pub(crate) fn conflict_name(name: &[u8], who: &str, when: u64, number: usize) -> Bytes {
    let dot = name.iter().rposition(|c| *c == b'.').filter(|at| *at > 0 && name.len() - at <= 32).unwrap_or(name.len());
    let (stem, extension) = name.split_at(dot);
    let more = if number > 1 { format!(" #{number}") } else { String::new() };
    let who: String = who.chars().filter(|c| *c != '/' && *c != '\0').take(64).collect();
    let middle = format!(" (conflict {who} {}{more})", stamp(when));
    let room = crate::fs::NAME_BYTES_MAX.saturating_sub(middle.len() + extension.len());
    let mut end = stem.len().min(room);
    // Not in the middle of a letter, if it is text.
    while end > 0 && end < stem.len() && stem[end] & 0xc0 == 0x80 {
        end -= 1;
    }
    [&stem[..end], middle.as_bytes(), extension].concat().into()
}

/// A line of what was settled.
pub(crate) fn settled(id: u64, what: String) -> Write {
    put(record::settled(id), record::encode(&Settled { at: wall_ns(), what }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conflict_name_keeps_its_ending_and_fits() {
        let when = 1_795_774_117_000_000_000;
        assert_eq!(stamp(when), "2026-11-27 10.08.37");
        assert_eq!(stamp(951_782_400_000_000_000), "2000-02-29 00.00.00");
        let name = |n: &[u8], k| String::from_utf8(conflict_name(n, "n1", when, k).to_vec()).expect("text");
        assert_eq!(name(b"notes.txt", 1), "notes (conflict n1 2026-11-27 10.08.37).txt");
        assert_eq!(name(b".profile", 2), ".profile (conflict n1 2026-11-27 10.08.37 #2)");
        let long = name("\u{e4}".repeat(127).as_bytes(), 1);
        assert!(long.len() <= 255 && long.ends_with(".37)"), "{long}");
    }
}
