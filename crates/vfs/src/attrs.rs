//! Attributes: mode, owner, times, access control lists and extended attributes.

use crate::acl::{self, Acl};
use crate::delegate::Told;
use crate::error::FsError;
use crate::fs::{
    Attr, Caller, Fs, Ino, Kind, NAME_BYTES_MAX, SetAttr, TRIES_MAX, first, is_removed, named, pause, put, put_xattr,
    to_content, version_of, wall_ns,
};
use crate::record::{self, Inode};
use crate::watch::Mark;
use bytes::Bytes;
use client::{Bump, Check, Range, Record, Write};

/// The longest value of an extended attribute, as Linux has it.
const XATTR_BYTES_MAX: usize = 65_536;
/// A day, in nanoseconds.
const DAY_NS: u64 = 86_400_000_000_000;
/// What a program may do that others may not, kept in a file's attributes.
const CAPABILITY: &[u8] = b"security.capability";

/// A change of an inode that none of its records shows.
pub(crate) fn changed(ino: Ino, now: u64) -> Write {
    Write::Bump { key: record::times(ino), by: Bump::Max, fields: vec![0, now] }
}

/// A mode without what is lost by a change of bytes or owner: as Linux has it, the set-group bit says something else where
/// the group may not execute.
fn without_privileges(mode: u32) -> u32 {
    let mode = mode & !0o4000;
    if mode & 0o010 != 0 { mode & !0o2000 } else { mode }
}

/// How an extended attribute is to be set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SetXattr {
    /// Whether it is there or not.
    Any,
    /// It must not be there.
    Create,
    /// It must be there.
    Replace,
}

impl Fs {
    /// Changes attributes.
    pub async fn setattr(&self, ino: Ino, set: SetAttr) -> Result<(Attr, Mark), FsError> {
        if let Some(size) = set.size {
            self.truncate(ino, size).await?;
            if set.kill {
                self.kill_privileges(ino, true).await?;
            }
        }
        if set.mtime.is_some() {
            // What is written later must not set it again.
            self.flush_inode(ino, false).await?;
        }
        let nothing = set.mode.or(set.uid).or(set.gid).is_none() && set.atime.or(set.mtime).is_none();
        for round in 0..TRIES_MAX {
            if nothing || self.set_once(ino, &set).await? {
                return self.getattr(ino).await;
            }
            pause(round).await;
        }
        Err(FsError::Unavailable)
    }

    /// One attempt; `false`: something changed meanwhile.
    async fn set_once(&self, ino: Ino, set: &SetAttr) -> Result<bool, FsError> {
        let keys = [record::inode(ino), record::content(ino), record::xattr(ino, acl::ACCESS), record::orphan(ino)];
        let keys = keys.map(Range::key);
        let mut rows = self.read_meta(keys.into()).await?.into_iter();
        let i = first(rows.next()).ok_or(FsError::NotFound)?;
        let (c, list, orphan) = (first(rows.next()), first(rows.next()), first(rows.next()));
        let mut inode: Inode = record::decode(i.value.as_deref().unwrap_or_default())?;
        let (mut checks, mut writes) = (vec![Check::AtVersion(record::inode(ino), i.version)], Vec::new());
        checks.push(named(ino, orphan.is_none()));
        (inode.ctime, inode.after) = (wall_ns(), is_removed(orphan.as_ref()));
        if set.uid.or(set.gid).is_some() {
            (inode.uid, inode.gid) = (set.uid.unwrap_or(inode.uid), set.gid.unwrap_or(inode.gid));
            if inode.kind != Kind::Directory {
                inode.mode = without_privileges(inode.mode);
                writes.push(Write::Delete { key: record::xattr(ino, CAPABILITY) });
            }
        }
        if let Some(mode) = set.mode {
            inode.mode = mode & 0o7777;
            writes.extend(follow_mode(ino, list, mode, &mut checks));
        }
        if let Some(atime) = set.atime {
            writes.push(put(record::atime(ino), Bytes::copy_from_slice(&atime.to_be_bytes())));
        }
        let before = version_of(c.as_ref());
        let mut commits = false;
        match (set.mtime, inode.kind) {
            (None, _) => {}
            (Some(mtime), Kind::Directory) => writes.push(put(record::times(ino), two(mtime, inode.ctime))),
            (Some(mtime), _) => {
                let mut content = to_content(c.as_ref())?;
                (content.mtime, content.ctime, content.after) = (mtime, inode.ctime, inode.after);
                let key = record::content(ino);
                checks.push(c.map_or(Check::Absent(key.clone()), |c| Check::AtVersion(key.clone(), c.version)));
                writes.push(put(key, record::encode(&content)));
                commits = true;
            }
        }
        writes.push(put(record::inode(ino), record::encode(&inode)));
        let done = self.commit_as(checks, writes, false, Told::Replies).await?;
        if let (true, Ok(after)) = (commits, done) {
            let key = record::content(ino);
            self.watch.committed(ino, self.real(&key, before), self.real(&key, after));
        }
        Ok(done.is_ok())
    }

    /// Bytes change: what the file lets its users do beyond their own rights goes. `mode`: its mode too, since whoever does it
    /// has no right to keep that.
    pub async fn kill_privileges(&self, ino: Ino, mode: bool) -> Result<(), FsError> {
        for round in 0..TRIES_MAX {
            let keys = [record::inode(ino), record::xattr(ino, CAPABILITY), record::orphan(ino)].map(Range::key);
            let mut rows = self.read_meta(keys.into()).await?.into_iter();
            let i = first(rows.next()).ok_or(FsError::Stale)?;
            let (capability, orphan) = (first(rows.next()), first(rows.next()));
            let mut inode: Inode = record::decode(i.value.as_deref().unwrap_or_default())?;
            let less = if mode { without_privileges(inode.mode) } else { inode.mode };
            if capability.is_none() && less == inode.mode {
                return Ok(());
            }
            (inode.mode, inode.ctime, inode.after) = (less, wall_ns(), is_removed(orphan.as_ref()));
            let checks = vec![Check::AtVersion(record::inode(ino), i.version), named(ino, orphan.is_none())];
            let gone = Write::Delete { key: record::xattr(ino, CAPABILITY) };
            let writes = vec![put(record::inode(ino), record::encode(&inode)), gone];
            if self.commit_as(checks, writes, false, Told::Pushes).await?.is_ok() {
                // The reply says nothing of it, and what the kernel keeps would let programs do more than they may.
                self.watch.forget(ino, false).await;
                return Ok(());
            }
            pause(round).await;
        }
        Err(FsError::Unavailable)
    }

    /// Writes down when a file was read, if that is to be.
    pub(crate) async fn note_read(&self, ino: Ino, at: u64) -> Result<(), FsError> {
        let (attr, _) = self.getattr(ino).await?;
        if !is_read_noted(&attr, at) {
            return Ok(());
        }
        let bump = Write::Bump { key: record::atime(ino), by: Bump::Max, fields: vec![at] };
        // The kernel is told: the file may have been looked at since it was closed.
        let checks = vec![Check::Present(record::inode(ino))];
        self.commit_as(checks, vec![bump], false, Told::Pushes).await.map(drop)
    }

    /// Where a symbolic link leads.
    pub async fn readlink(&self, ino: Ino) -> Result<Bytes, FsError> {
        self.inode(ino).await?.target.ok_or(FsError::Invalid)
    }

    /// An extended attribute.
    pub async fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Bytes, FsError> {
        let row = self.get(record::xattr(ino, name)).await?;
        row.and_then(|r| r.value).map(|v| v.slice(1..)).ok_or(FsError::NoAttribute)
    }

    /// The names of the extended attributes, each with a zero byte behind it. Those that begin with `trusted.` root alone sees.
    pub async fn listxattr(&self, ino: Ino, caller: &Caller) -> Result<Vec<u8>, FsError> {
        let rows = self.read_meta(vec![Range::prefix(record::xattr(ino, b""), 4096)]).await?;
        let mut out = Vec::new();
        for (key, _) in rows.into_iter().flat_map(|r| r.rows) {
            let name = &key[9..];
            if caller.uid == 0 || !name.starts_with(b"trusted.") {
                out.extend_from_slice(name);
                out.push(0);
            }
        }
        Ok(out)
    }

    /// Sets an extended attribute. An access control list changes the mode, too.
    pub async fn setxattr(
        &self,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        how: SetXattr,
        caller: &Caller,
    ) -> Result<(), FsError> {
        if name.len() > NAME_BYTES_MAX || value.len() > XATTR_BYTES_MAX {
            return Err(FsError::TooLarge);
        }
        if name == acl::ACCESS {
            return self.set_list(ino, Acl::parse(value).ok_or(FsError::Invalid)?, caller).await;
        }
        if name == acl::DEFAULT && self.inode(ino).await?.kind != Kind::Directory {
            return Err(FsError::NotPermitted);
        }
        let key = record::xattr(ino, name);
        let mut checks = vec![Check::Present(record::inode(ino))];
        checks.extend((how == SetXattr::Create).then(|| Check::Absent(key.clone())));
        checks.extend((how == SetXattr::Replace).then(|| Check::Present(key.clone())));
        match self.commit(checks, vec![put_xattr(ino, name, value), changed(ino, wall_ns())], false).await? {
            None => Ok(()),
            Some(0) => Err(FsError::NotFound),
            Some(_) if how == SetXattr::Create => Err(FsError::Exists),
            Some(_) => Err(FsError::NoAttribute),
        }
    }

    /// A list and the mode that it stands for, together.
    async fn set_list(&self, ino: Ino, mut list: Acl, caller: &Caller) -> Result<(), FsError> {
        for round in 0..TRIES_MAX {
            let keys = [record::inode(ino), record::orphan(ino)].map(Range::key);
            let mut rows = self.read_meta(keys.into()).await?.into_iter();
            let (row, orphan) = (first(rows.next()).ok_or(FsError::NotFound)?, first(rows.next()));
            let mut inode: Inode = record::decode(row.value.as_deref().unwrap_or_default())?;
            inode.mode = list.mode(inode.mode);
            (inode.ctime, inode.after) = (wall_ns(), is_removed(orphan.as_ref()));
            if !caller.is_in(inode.gid) {
                inode.mode &= !0o2000;
            }
            let key = record::xattr(ino, acl::ACCESS);
            let stored =
                if list.is_minimal() { Write::Delete { key } } else { put_xattr(ino, acl::ACCESS, &list.to_bytes()) };
            let checks = vec![Check::AtVersion(record::inode(ino), row.version), named(ino, orphan.is_none())];
            let writes = vec![put(record::inode(ino), record::encode(&inode)), stored];
            if self.commit(checks, writes, false).await?.is_none() {
                return Ok(());
            }
            pause(round).await;
        }
        Err(FsError::Unavailable)
    }

    /// Removes an extended attribute. That there is no access control list is no error: the kernel does not look first.
    pub async fn removexattr(&self, ino: Ino, name: &[u8]) -> Result<(), FsError> {
        let key = record::xattr(ino, name);
        let writes = vec![Write::Delete { key: key.clone() }, changed(ino, wall_ns())];
        let gone = self.commit(vec![Check::Present(key)], writes, false).await?.is_none();
        if gone || [acl::ACCESS, acl::DEFAULT].contains(&name) { Ok(()) } else { Err(FsError::NoAttribute) }
    }
}

/// Is it written down that a file is read at this time? If it changed since it was read before, or a day has gone by.
pub(crate) fn is_read_noted(attr: &Attr, at: u64) -> bool {
    attr.atime <= attr.mtime.max(attr.ctime) || at.saturating_sub(attr.atime) >= DAY_NS
}

/// The list follows the mode, if there is one.
fn follow_mode(ino: Ino, row: Option<Record>, mode: u32, checks: &mut Vec<Check>) -> Option<Write> {
    let key = record::xattr(ino, acl::ACCESS);
    let Some(row) = row else {
        checks.push(Check::Absent(key));
        return None;
    };
    checks.push(Check::AtVersion(key, row.version));
    let mut list = Acl::parse(row.value.as_deref()?.get(1..)?)?;
    list.set_mode(mode);
    Some(put_xattr(ino, acl::ACCESS, &list.to_bytes()))
}

/// The value of a record of times.
fn two(mtime: u64, ctime: u64) -> Bytes {
    [mtime.to_be_bytes(), ctime.to_be_bytes()].concat().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_set_group_bit_goes_where_the_group_may_execute() {
        assert_eq!(without_privileges(0o6755), 0o755);
        assert_eq!(without_privileges(0o6745), 0o2745);
        assert_eq!(without_privileges(0o1644), 0o1644);
    }
}
