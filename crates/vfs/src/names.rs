//! Operations on names: each is one conditional batch. What a check refuses is looked at again.

use crate::acl::{self, Acl};
use crate::attrs::changed;
use crate::error::FsError;
use crate::fs::{
    Attr, Fs, Ino, Kind, New, Over, ROOT, TRIES_MAX, check_name, first, lock, pause, put, put_xattr, version_of,
    wall_ns,
};
use crate::overlay::is_early;
use crate::record::{self, Gone, Inode, Place};
use crate::tidy::is_left_out;
use crate::watch::Mark;
use base::Version;
use bytes::Bytes;
use client::{Bump, Check, Range, Write};
use tokio::sync::OwnedMutexGuard;

/// The most links of one inode.
pub(crate) const LINKS_MAX: usize = 60_000;
/// The deepest path that a move of a directory walks up.
pub(crate) const DEPTH_MAX: usize = 4096;

/// The value of records whose key says all.
pub(crate) const HERE: Bytes = Bytes::from_static(&[1]);

pub(crate) fn touch(dir: Ino, now: u64) -> Write {
    Write::Bump { key: record::times(dir), by: Bump::Max, fields: vec![now, now] }
}

/// Writes that put a link at a place, and take it from where it stood, if it stood anywhere.
pub(crate) fn put_at((ino, link, kind): (Ino, u64, Kind), from: Option<(Ino, &[u8])>, place: &Place) -> Vec<Write> {
    let mut writes = Vec::new();
    if let Some((dir, name)) = from.filter(|(dir, name)| (*dir, *name) != (place.parent, &place.name[..])) {
        writes.push(Write::Delete { key: record::entry(dir, name, ino, link) });
        if kind == Kind::Directory && dir != place.parent {
            writes.push(Write::Delete { key: record::subdir(dir, ino) });
        }
    }
    if kind == Kind::Directory && from.is_none_or(|(dir, _)| dir != place.parent) {
        writes.push(put(record::subdir(place.parent, ino), HERE));
    }
    writes.push(put(record::entry(place.parent, &place.name, ino, link), record::encode(&kind)));
    writes.push(put(record::place(ino, link), record::encode(place)));
    writes
}

/// Writes that give something another place.
fn moved(from: (Ino, &[u8]), to: (Ino, &[u8]), what: &Found, now: u64) -> Vec<Write> {
    let moves = what.kind == Kind::Directory && from.0 != to.0;
    let previous = moves.then(|| (from.0, Bytes::copy_from_slice(from.1)));
    let place = Place { parent: to.0, name: Bytes::copy_from_slice(to.1), ctime: now, previous };
    put_at((what.ino, what.link, what.kind), Some(from), &place)
}

/// What must be known of an inode that may lose its last name.
pub(crate) fn removal_ranges(ino: Ino) -> Vec<Range> {
    let keys = [record::inode(ino), record::content(ino)].map(Range::key);
    [Range::prefix(record::places(ino), LINKS_MAX as u32 + 1)].into_iter().chain(keys).collect()
}

/// A name that stands: what an operation on it must know.
pub(crate) struct Found {
    pub ino: Ino,
    pub link: u64,
    pub kind: Kind,
    pub version: Version,
    /// Nobody asks for its removal: there is another like it.
    pub alike: bool,
}

impl Fs {
    /// Makes an inode under a name. The mode's set-group bit and group follow the directory's, and so does a default access
    /// control list, as Linux has it.
    pub async fn make(&self, dir: Ino, name: &[u8], new: New) -> Result<(Attr, Mark), FsError> {
        check_name(name)?;
        // The kernel keeps what else is done in the directory out of this one's way.
        let mark = self.watch.mark(0, 0);
        let keys = [record::inode(dir), record::xattr(dir, acl::DEFAULT)].map(Range::key);
        let mut rows = self.read_meta(keys.into()).await?.into_iter();
        let (parent, default) = (first(rows.next()).ok_or(FsError::NotFound)?, first(rows.next()));
        let parent: Inode = record::decode(parent.value.as_deref().unwrap_or_default())?;
        if parent.kind != Kind::Directory {
            return Err(FsError::NotDirectory);
        }
        let New { kind, uid, mut gid, rdev, .. } = new;
        let mut mode = new.mode & 0o7777;
        let (ino, link, now) = (self.numbers.fresh()?, self.numbers.fresh()?, wall_ns());
        let mut writes = vec![touch(dir, now)];
        let default = default.and_then(|r| r.value).filter(|_| kind != Kind::Symlink);
        match default.as_ref().and_then(|stored| Acl::parse(&stored[1..])) {
            None => mode &= !new.umask,
            Some(list) => {
                let (access, masked) = list.inherited(mode);
                mode = masked;
                writes.extend((!access.is_minimal()).then(|| put_xattr(ino, acl::ACCESS, &access.to_bytes())));
                writes.extend((kind == Kind::Directory).then(|| put_xattr(ino, acl::DEFAULT, &list.to_bytes())));
            }
        }
        if parent.mode & 0o2000 != 0 {
            gid = parent.gid;
            mode |= if kind == Kind::Directory { 0o2000 } else { 0 };
        }
        let inode = Inode { kind, mode, uid, gid, rdev, target: new.target, ctime: now, birth: now, after: false };
        let place = Place { parent: dir, name: Bytes::copy_from_slice(name), ctime: now, previous: None };
        let checks = vec![
            Check::Present(record::inode(dir)),
            Check::Absent(record::orphan(dir)),
            Check::Count(record::name(dir, name), 0),
        ];
        writes.extend([
            put(record::inode(ino), record::encode(&inode)),
            put(record::place(ino, link), record::encode(&place)),
            put(record::entry(dir, name, ino, link), record::encode(&kind)),
        ]);
        writes.extend((kind == Kind::Directory).then(|| put(record::subdir(dir, ino), HERE)));
        match self.commit(checks, writes, false).await {
            Ok(None) => {}
            Ok(Some(2)) => return Err(FsError::Exists),
            Ok(Some(_)) => return Err(FsError::NotFound),
            // My own number under the name is my own success.
            Err(FsError::Unavailable) if self.find(dir, name).await?.is_some_and(|(i, ..)| i == ino) => {}
            Err(e) => return Err(e),
        }
        let size = inode.target.as_ref().map_or(if kind == Kind::Directory { 4096 } else { 0 }, |t| t.len() as u64);
        let nlink = if kind == Kind::Directory { 2 } else { 1 };
        let mut attr =
            Attr { ino, kind, mode, nlink, uid, gid, rdev, size, atime: now, mtime: now, ctime: now, birth: now };
        self.show_owner(&mut attr);
        self.watch.made(ino);
        Ok((attr, mark))
    }

    pub(crate) async fn inode(&self, ino: Ino) -> Result<Inode, FsError> {
        let row = self.get(record::inode(ino)).await?.ok_or(FsError::NotFound)?;
        record::decode(row.value.as_deref().unwrap_or_default())
    }

    async fn found(&self, dir: Ino, name: &[u8]) -> Result<Option<Found>, FsError> {
        let found = self.find(dir, name).await?;
        Ok(found.map(|(ino, link, kind, row)| Found { ino, link, kind, version: row.version, alike: false }))
    }

    async fn links(&self, ino: Ino) -> Result<usize, FsError> {
        let rows = self.read_meta(vec![Range::prefix(record::places(ino), LINKS_MAX as u32 + 1)]).await?;
        Ok(rows.into_iter().map(|r| r.rows.len()).sum())
    }

    /// Checks and writes that take a name away; the last one makes its inode an orphan. What is returned is held until they are done.
    pub(crate) async fn take(
        &self,
        dir: Ino,
        name: &[u8],
        found: &Found,
        now: u64,
        (checks, writes): (&mut Vec<Check>, &mut Vec<Write>),
    ) -> Result<Option<OwnedMutexGuard<()>>, FsError> {
        // What is open here and written all the time is not while this goes on.
        let open = lock(&self.open).contains_key(&found.ino);
        let still = if open { Some(self.commit_lock(found.ino).lock_owned().await) } else { None };
        let key = record::entry(dir, name, found.ino, found.link);
        checks.push(Check::AtVersion(key.clone(), found.version));
        writes.push(Write::Delete { key });
        writes.push(Write::Delete { key: record::place(found.ino, found.link) });
        if found.kind == Kind::Directory {
            writes.push(Write::Delete { key: record::subdir(dir, found.ino) });
        }
        let place = record::place(found.ino, found.link);
        let (links, inode, content) = loop {
            let mut rows = self.read_meta(removal_ranges(found.ino)).await?.into_iter();
            let links = rows.next().unwrap_or_default().rows;
            let (inode, content) = (first(rows.next()).ok_or(FsError::Stale)?, first(rows.next()));
            let early = is_early(inode.version) || is_early(version_of(content.as_ref()));
            if !early || is_left_out("early") {
                break (links, inode, content);
            }
            // What was seen is written down, and has to be what everybody calls it.
            self.land_all(false).await?;
        };
        checks.push(Check::Count(record::places(found.ino), links.len() as u32));
        let seen = links.iter().find(|(key, _)| *key == place).and_then(|(_, row)| row.value.as_deref());
        let gone = Gone {
            link: found.link,
            place: seen.map(record::decode).transpose()?,
            inode: inode.version,
            content: version_of(content.as_ref()),
            alike: found.alike,
        };
        // What is seen here is all that there is: else it would come back when islands meet.
        checks.push(Check::AtVersion(record::inode(found.ino), inode.version));
        let key = record::content(found.ino);
        checks.push(content.map_or(Check::Absent(key.clone()), |c| Check::AtVersion(key, c.version)));
        if links.len() > 1 {
            writes.push(changed(found.ino, now));
            writes.push(put(record::taken(found.ino, found.link), record::encode(&gone)));
        } else {
            writes.push(put(record::orphan(found.ino), gone.to_line()));
        }
        Ok(still)
    }

    /// Removes a name; `directory`: of an empty directory, else of anything but a directory.
    pub async fn remove(&self, dir: Ino, name: &[u8], directory: bool) -> Result<(), FsError> {
        check_name(name)?;
        let mut sent = None;
        for round in 0..TRIES_MAX {
            let Some(found) = self.found(dir, name).await? else {
                // Gone after an attempt whose fate was not known: that was mine.
                return if sent.is_some() { Ok(()) } else { Err(FsError::NotFound) };
            };
            match (directory, found.kind) {
                (true, kind) if kind != Kind::Directory => return Err(FsError::NotDirectory),
                (false, Kind::Directory) => return Err(FsError::IsDirectory),
                _ if sent.is_some_and(|ino| ino != found.ino) => return Ok(()),
                _ => {}
            }
            let now = wall_ns();
            let (mut checks, mut writes) = (Vec::new(), vec![touch(dir, now)]);
            if directory {
                checks.push(Check::Count(record::names(found.ino), 0));
            }
            let _still = self.take(dir, name, &found, now, (&mut checks, &mut writes)).await?;
            match self.commit(checks, writes, false).await {
                Ok(None) => return Ok(()),
                Ok(Some(0)) if directory => return Err(FsError::NotEmpty),
                Ok(Some(_)) => pause(round).await,
                Err(FsError::Unavailable) if sent.is_none() => sent = Some(found.ino),
                Err(e) => return Err(e),
            }
        }
        Err(FsError::Unavailable)
    }

    /// Another name for a file.
    pub async fn link(&self, ino: Ino, dir: Ino, name: &[u8]) -> Result<(Attr, Mark), FsError> {
        check_name(name)?;
        let inode = self.inode(ino).await?;
        if inode.kind == Kind::Directory {
            return Err(FsError::NotPermitted);
        }
        if self.links(ino).await? >= LINKS_MAX {
            return Err(FsError::TooManyLinks);
        }
        let (link, now) = (self.numbers.fresh()?, wall_ns());
        let place = Place { parent: dir, name: Bytes::copy_from_slice(name), ctime: now, previous: None };
        let checks = vec![
            Check::Count(record::name(dir, name), 0),
            Check::Present(record::inode(ino)),
            Check::Absent(record::orphan(ino)),
            Check::Present(record::inode(dir)),
            Check::Absent(record::orphan(dir)),
        ];
        let writes = vec![
            put(record::place(ino, link), record::encode(&place)),
            put(record::entry(dir, name, ino, link), record::encode(&inode.kind)),
            touch(dir, now),
        ];
        match self.commit(checks, writes, false).await {
            Ok(None) => {}
            Ok(Some(0)) => return Err(FsError::Exists),
            Ok(Some(_)) => return Err(FsError::NotFound),
            Err(FsError::Unavailable) if self.found(dir, name).await?.is_some_and(|f| f.link == link) => {}
            Err(e) => return Err(e),
        }
        self.getattr(ino).await
    }

    /// Gives a file or directory another place. What stands there is replaced, kept (and the call fails), or exchanged with it.
    pub async fn rename(&self, dir: Ino, name: &[u8], to: Ino, new: &[u8], over: Over) -> Result<(), FsError> {
        check_name(name)?;
        check_name(new)?;
        let mut sent = None;
        for round in 0..TRIES_MAX {
            let (source, target) = (self.found(dir, name).await?, self.found(to, new).await?);
            let arrived = target.as_ref().is_some_and(|t| Some((t.ino, t.link)) == sent);
            let Some(source) = source else {
                return if arrived { Ok(()) } else { Err(FsError::NotFound) };
            };
            match &target {
                _ if over == Over::Exchange && arrived => return Ok(()),
                None if over == Over::Exchange => return Err(FsError::NotFound),
                None => {}
                Some(_) if over == Over::Keep => return Err(FsError::Exists),
                // Two names of one inode: nothing to do.
                Some(target) if source.ino == target.ino => return Ok(()),
                Some(_) if over == Over::Exchange => {}
                Some(target) => match (source.kind, target.kind) {
                    (Kind::Directory, Kind::Directory) => {}
                    (Kind::Directory, _) => return Err(FsError::NotDirectory),
                    (_, Kind::Directory) => return Err(FsError::IsDirectory),
                    _ => {}
                },
            }
            let done = match &target {
                Some(target) if over == Over::Exchange => {
                    self.exchange_once((dir, name, &source), (to, new, target)).await
                }
                target => self.move_once(dir, name, to, new, &source, target.as_ref()).await,
            };
            match done {
                Ok(true) => return Ok(()),
                Ok(false) => pause(round).await,
                Err(FsError::Unavailable) if sent.is_none() => sent = Some((source.ino, source.link)),
                Err(e) => return Err(e),
            }
        }
        Err(FsError::Unavailable)
    }

    /// What must hold, and is written, for directories that change their parent: of each, which and its new parent.
    async fn moving(&self, moves: &[(&Found, Ino)]) -> Result<(Vec<Check>, Vec<Write>), FsError> {
        let mut checks = Vec::new();
        for (what, to) in moves.iter().filter(|(what, _)| what.kind == Kind::Directory) {
            checks.push(self.check_move(what.ino, *to).await?);
        }
        let bump = Write::Bump { key: record::moves(), by: Bump::Add, fields: vec![1] };
        let writes = if checks.is_empty() { Vec::new() } else { vec![bump] };
        Ok((checks, writes))
    }

    /// One attempt; `false`: something changed meanwhile.
    async fn move_once(
        &self,
        dir: Ino,
        name: &[u8],
        to: Ino,
        new: &[u8],
        source: &Found,
        target: Option<&Found>,
    ) -> Result<bool, FsError> {
        let now = wall_ns();
        let mut checks = vec![
            Check::Present(record::inode(to)),
            Check::Absent(record::orphan(to)),
            Check::Count(target.map_or(record::name(to, new), |t| record::names(t.ino)), 0),
            Check::AtVersion(record::entry(dir, name, source.ino, source.link), source.version),
        ];
        let mut writes = vec![touch(dir, now), touch(to, now)];
        if dir != to {
            let (more, bump) = self.moving(&[(source, to)]).await?;
            checks.extend(more);
            writes.extend(bump);
        }
        let _still = match target {
            Some(target) => self.take(to, new, target, now, (&mut checks, &mut writes)).await?,
            None => None,
        };
        writes.extend(moved((dir, name), (to, new), source, now));
        match self.commit(checks, writes, false).await? {
            None => Ok(true),
            Some(0 | 1) => Err(FsError::NotFound),
            Some(2) if target.is_some() => Err(FsError::NotEmpty),
            Some(_) => Ok(false),
        }
    }

    /// One attempt to exchange two places; `false`: something changed meanwhile.
    async fn exchange_once(&self, a: (Ino, &[u8], &Found), b: (Ino, &[u8], &Found)) -> Result<bool, FsError> {
        let now = wall_ns();
        let as_seen = |(dir, name, what): (Ino, &[u8], &Found)| {
            Check::AtVersion(record::entry(dir, name, what.ino, what.link), what.version)
        };
        let mut checks = vec![as_seen(a), as_seen(b)];
        let mut writes = vec![touch(a.0, now), touch(b.0, now)];
        if a.0 != b.0 {
            let (more, bump) = self.moving(&[(a.2, b.0), (b.2, a.0)]).await?;
            checks.extend(more);
            writes.extend(bump);
        }
        writes.extend(moved((a.0, a.1), (b.0, b.1), a.2, now));
        writes.extend(moved((b.0, b.1), (a.0, a.1), b.2, now));
        Ok(self.commit(checks, writes, false).await?.is_none())
    }

    /// A directory must not move below itself. The walk up holds as long as no other directory moves: all moves change
    /// one record, and this check is on it.
    async fn check_move(&self, moved: Ino, to: Ino) -> Result<Check, FsError> {
        let moves = self.get(record::moves()).await?;
        let mut at = to;
        for _ in 0..DEPTH_MAX {
            if at == moved {
                return Err(FsError::Invalid);
            }
            if at == ROOT {
                let key = record::moves();
                return Ok(moves.map_or(Check::Absent(key.clone()), |r| Check::AtVersion(key, r.version)));
            }
            at = self.parent(at).await?;
        }
        Err(FsError::Damaged("a path without end"))
    }

    /// The directory that an inode's first link lies in; the root is its own.
    pub async fn parent(&self, ino: Ino) -> Result<Ino, FsError> {
        if ino == ROOT {
            return Ok(ROOT);
        }
        let rows = self.read_meta(vec![Range::prefix(record::places(ino), 1)]).await?;
        let row = rows.into_iter().flat_map(|r| r.rows).next().ok_or(FsError::NotFound)?;
        let place: Place = record::decode(row.1.value.as_deref().unwrap_or_default())?;
        Ok(place.parent)
    }
}
