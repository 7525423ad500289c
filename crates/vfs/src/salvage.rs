//! What was acknowledged and cannot land where it was meant to, since the directory was taken from a mount that did not answer:
//! nothing of it is lost without a word.
//!
//! | what could not land | what becomes of it |
//! |---|---|
//! | something new | it is made all the same: beside what has its name by now, in another directory if its own is gone |
//! | bytes of a file that others wrote meanwhile | a file beside it |
//! | a removal, another name, a mode | it is left out, as the other mount saw it last; the log says so |

use crate::delegate::{Signals, Told, Touched};
use crate::error::FsError;
use crate::fs::{Fs, Ino, Kind, TRIES_MAX, first, lock, pause, put, to_content, wall_ns};
use crate::names::{put_at, touch};
use crate::overlay::Op;
use crate::record::{self, Content, Inode, Place};
use crate::tidy::{Walk, put_back, settled};
use base::Version;
use bytes::Bytes;
use client::{Check, Range, Refusal, Write};
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// How soon is tried again what could not be put down.
const LOOK: Duration = Duration::from_secs(1);

/// Operations that could not land, in their order.
#[derive(Default)]
pub(crate) struct Lost {
    pub ops: VecDeque<(Op, Refusal)>,
    /// What was new and has been made all the same, and its bytes as they were put then.
    saved: HashMap<Ino, Option<Version>>,
    /// How often the first was tried, and what file was begun for its bytes.
    tries: usize,
    copy: Option<Ino>,
    /// Of which inodes something was lost that nobody who asked for durability was told of.
    untold: HashSet<Ino>,
}

impl Lost {
    pub(crate) fn add(&mut self, op: Op, refusal: Refusal) {
        let keys = op.writes.iter().map(|w| record::ino_of(w.key())).filter(|ino| *ino != 0);
        self.untold.extend(keys);
        self.ops.push_back((op, refusal));
    }

    /// Was something of it lost? Said once.
    pub(crate) fn tell(&mut self, ino: Ino) -> bool {
        self.untold.remove(&ino)
    }
}

/// What one put of an operation says, by the kind of its key.
fn put_of(op: &Op, kind: u8) -> Option<(&Bytes, &Bytes)> {
    op.writes.iter().find_map(|write| match write {
        Write::Put { key, value, .. } if key.get(8) == Some(&kind) && record::ino_of(key) != 0 => Some((key, value)),
        _ => None,
    })
}

impl Fs {
    /// Puts down what could not land. What cannot be put down now is tried again later.
    pub(crate) async fn salvage(&self) {
        let _alone = self.delegations.salvaging.lock().await;
        loop {
            let Some((op, refusal)) = lock(&self.delegations.lost).ops.front().cloned() else { break };
            let done = self.salvage_one(&op, &refusal).await;
            let mut lost = lock(&self.delegations.lost);
            match done {
                Ok(()) => {}
                // There may be room again, or what is missing may come.
                Err(FsError::Unavailable | FsError::NoSpace) => return,
                Err(_) if lost.tries < TRIES_MAX => {
                    lost.tries += 1;
                    return;
                }
                Err(e) => tracing::error!("an operation that was acknowledged could not be kept: {e}: {op:?}"),
            }
            lost.ops.pop_front();
            (lost.tries, lost.copy) = (0, None);
        }
        lock(&self.delegations.lost).saved.clear();
    }

    /// Is something of it to be put down still?
    pub(crate) fn salvages(&self, ino: Ino) -> bool {
        lock(&self.delegations.lost).ops.iter().any(|(op, _)| op.is_of(ino))
    }

    async fn salvage_one(&self, op: &Op, refusal: &Refusal) -> Result<(), FsError> {
        if op.writes.iter().all(|w| record::is_lock(w.key())) {
            // A lock is not given afterwards.
            return Ok(());
        }
        let touched = Touched::of(&op.checks, &op.writes);
        if let (Some((key, inode)), Some((at, place))) = (put_of(op, b'I'), put_of(op, b'P')) {
            let link = at.last_chunk::<8>().map_or(0, |link| u64::from_be_bytes(*link));
            let (inode, place): (Inode, Place) = (record::decode(inode)?, record::decode(place)?);
            return self.make_all_the_same(op, (record::ino_of(key), link, inode.kind), place).await;
        }
        let commit = put_of(op, b'C').map(|(key, content)| (record::ino_of(key), content.clone()));
        if let Some(done) = self.go_on(op, &touched, commit.is_some()).await? {
            return Ok(done);
        }
        match commit {
            Some((ino, content)) => self.keep_bytes(op, ino, &record::decode(&content)?).await,
            None => {
                tracing::warn!(
                    "left out, since another mount came first ({refusal}): a change of inodes {:x?}",
                    touched.inos
                );
                Ok(())
            }
        }
    }

    /// More of something that was made all the same, if nobody else has to do with it.
    async fn go_on(&self, op: &Op, touched: &Touched, commits: bool) -> Result<Option<()>, FsError> {
        let names = op.writes.iter().any(|w| matches!(w.key().get(8), Some(b'P' | b'D' | b'U')));
        let [ino] = touched.inos.iter().copied().collect::<Vec<_>>()[..] else { return Ok(None) };
        let Some(last) = lock(&self.delegations.lost).saved.get(&ino).copied().filter(|_| !names) else {
            return Ok(None);
        };
        let mut checks = vec![Check::Present(record::inode(ino))];
        if commits {
            let key = record::content(ino);
            checks.push(last.map_or(Check::Absent(key.clone()), |version| Check::AtVersion(key, version)));
        }
        let Ok(version) = self.commit_as(checks, op.writes.clone(), false, Told::Pushes).await? else {
            return Ok(None);
        };
        if commits {
            lock(&self.delegations.lost).saved.insert(ino, Some(version));
        }
        Ok(Some(()))
    }

    /// What was new, under its name if that is free, else beside it.
    async fn make_all_the_same(
        &self,
        op: &Op,
        (ino, link, kind): (Ino, u64, Kind),
        place: Place,
    ) -> Result<(), FsError> {
        let mut walk = Walk::new(true, false, false);
        let keys = [record::inode(ino), record::content(ino)].map(Range::key);
        let mut rows = self.read_meta(keys.into()).await?.into_iter();
        if first(rows.next()).is_some() {
            // It was made at an earlier attempt whose fate was not known.
            let version = first(rows.next()).map(|row| row.version);
            lock(&self.delegations.lost).saved.insert(ino, version);
            return Ok(());
        }
        for round in 0..TRIES_MAX {
            let dir = self.usable(place.parent, 0, &mut walk).await?;
            let name = match self.find(dir, &place.name).await? {
                Some(_) => self.free_name(dir, &place.name, link, place.ctime).await?,
                None => place.name.clone(),
            };
            let shown = String::from_utf8_lossy(&name).into_owned();
            let what = format!("made by a mount that had been taken for gone: {shown:?}");
            let checks = vec![
                Check::Absent(record::inode(ino)),
                Check::Count(record::name(dir, &name), 0),
                Check::Present(record::inode(dir)),
                Check::Absent(record::orphan(dir)),
            ];
            let of_its_own = |w: &&Write| record::ino_of(w.key()) == ino && w.key().get(8) != Some(&b'P');
            let mut writes: Vec<Write> = op.writes.iter().filter(of_its_own).cloned().collect();
            let to = Place { parent: dir, name, ctime: place.ctime, previous: None };
            writes.extend(put_at((ino, link, kind), None, &to));
            writes.extend([touch(dir, wall_ns()), settled(link, what.clone())]);
            if self.commit_as(checks, writes, false, Told::Pushes).await?.is_ok() {
                tracing::warn!("{what}");
                lock(&self.delegations.lost).saved.insert(ino, None);
                return Ok(());
            }
            pause(round).await;
        }
        Err(FsError::Unavailable)
    }

    /// Bytes that others wrote over meanwhile become a file beside that one.
    async fn keep_bytes(&self, op: &Op, ino: Ino, content: &Content) -> Result<(), FsError> {
        // Nobody names these: they harm nobody until they are dropped again.
        let named = |w: &&Write| matches!(w.key().get(8), Some(b'E' | b'M')) && record::ino_of(w.key()) == ino;
        let bytes: Vec<Write> = op.writes.iter().filter(named).cloned().collect();
        if !bytes.is_empty() {
            self.commit_as(Vec::new(), bytes, false, Told::Pushes).await?.ok();
        }
        let keys = [record::inode(ino), record::content(ino), record::orphan(ino)].map(Range::key);
        let mut rows = self.read_meta(keys.into()).await?.into_iter();
        let (inode, now, orphan) = (first(rows.next()), first(rows.next()), first(rows.next()));
        let Some(inode) = inode else { return Err(FsError::Stale) };
        let (inode, now): (Inode, Content) =
            (record::decode(inode.value.as_deref().unwrap_or_default())?, to_content(now.as_ref())?);
        let made = content.extents.iter().map(|e| e.id).max().unwrap_or(ino);
        let dropped = self.only_in(ino, content, &now, &[]).await?;
        let kept = self.keep_beside((ino, &inode), content, orphan.as_ref(), made).await;
        // What comes after it may name the same.
        let last = !lock(&self.delegations.lost).ops.iter().skip(1).any(|(op, _)| op.is_of(ino));
        if kept.is_ok() && last && !dropped.is_empty() {
            let row = put(record::dropped(self.numbers.fresh()?), record::encode(&dropped));
            self.commit_as(Vec::new(), vec![row], false, Told::Nothing).await?.ok();
        }
        kept
    }

    async fn keep_beside(
        &self,
        (ino, inode): (Ino, &Inode),
        content: &Content,
        orphan: Option<&client::Record>,
        made: u64,
    ) -> Result<(), FsError> {
        let fresh = self.numbers.fresh()?;
        let copy = *lock(&self.delegations.lost).copy.get_or_insert(fresh);
        let places = self.read_meta(vec![Range::prefix(record::places(copy), 1)]).await?;
        if places.iter().any(|rows| !rows.rows.is_empty()) {
            // It got its name at an earlier attempt.
            return Ok(());
        }
        self.copy_losing(copy, ino, inode, content).await?;
        for round in 0..TRIES_MAX {
            let (dir, name) = self.place_beside(ino, orphan).await?;
            let (link, name) = (self.numbers.fresh()?, self.free_name(dir, &name, made, content.mtime).await?);
            let what = format!(
                "inode {ino:x} was written by a mount that had been taken for gone: its version is {:?}",
                String::from_utf8_lossy(&name)
            );
            let place = Place { parent: dir, name: name.clone(), ctime: wall_ns(), previous: None };
            let (mut checks, mut writes) = put_back((copy, link, Kind::File), Default::default(), None, place);
            checks.push(Check::Count(record::name(dir, &name), 0));
            writes.push(settled(link, what.clone()));
            if self.commit_as(checks, writes, false, Told::Pushes).await?.is_ok() {
                tracing::warn!("{what}");
                return Ok(());
            }
            pause(round).await;
        }
        Err(FsError::Unavailable)
    }
}

/// Puts down what could not land, until the mount is gone.
pub(crate) async fn keep(fs: Weak<Fs>, signals: Arc<Signals>) {
    loop {
        let _ = tokio::time::timeout(LOOK, signals.lost.notified()).await;
        let Some(fs) = fs.upgrade() else { return };
        if !lock(&fs.delegations.lost).ops.is_empty() {
            fs.salvage().await;
        }
    }
}
