//! `fsck`: everything of a filesystem looked at, in words, and mended where it can be.

use crate::error::FsError;
use crate::fs::{Fs, Kind, lock};
use crate::settle::STEP;
use crate::tidy::{Group, Walk};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::sync::Mutex;

/// How much is told of what was found; all of it is counted.
pub(crate) const TOLD_MAX: usize = 1000;

/// What `fsck` found.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Checked {
    /// How many inodes there are.
    pub inodes: u64,
    /// How many bytes of files were read.
    pub bytes: u64,
    /// What was not as it should be, in words: the first thousand.
    pub found: Vec<String>,
    /// How many things were mended.
    pub mended: u64,
    /// What is still not as it should be, in words: the first thousand.
    pub left: Vec<String>,
}

impl Fs {
    /// Looks at every inode, every name and every byte. `repair`: mends what can be mended first; nothing is thrown away.
    ///
    /// Errors: the copies do not answer. What was mended until then is mended.
    pub async fn fsck(&self, repair: bool) -> Result<Checked, FsError> {
        let mut out = Checked::default();
        if repair {
            let found = Mutex::new(Vec::new());
            let say = |what| lock(&found).push(what);
            out.mended = self.tidy(false, say).await? as u64;
            out.mended += self.scrub(u64::MAX).await?.mended as u64;
            out.found = found.into_inner().unwrap_or_default();
            out.found.truncate(TOLD_MAX);
        }
        let walk = self.walk(Walk::new(false, true, true)).await?;
        (out.inodes, out.bytes, out.left) = (walk.inodes, walk.bytes, walk.found);
        if !out.left.is_empty() {
            // What somebody was changing at that moment is not found twice.
            let again: HashSet<String> = self.walk(Walk::new(false, true, true)).await?.found.into_iter().collect();
            out.left.retain(|what| again.contains(what));
        }
        out.left.truncate(TOLD_MAX);
        if !repair {
            out.found = out.left.clone();
        }
        Ok(out)
    }

    /// Reads all bytes of a file.
    pub(crate) async fn look_at_bytes(&self, group: &Group, walk: &mut Walk) -> Result<(), FsError> {
        let Some((content, _)) = group.content.as_ref().filter(|_| group.is(Kind::File)) else { return Ok(()) };
        let name = group.places.first().map(|(_, place, _)| String::from_utf8_lossy(&place.name).into_owned());
        let name = name.unwrap_or_else(|| "a file without a name".into());
        let steps = match self.steps(group.ino, content).await {
            Err(e @ (FsError::Damaged(_) | FsError::Missing(_))) => {
                walk.say(format!("where the bytes of {name:?} (inode {:x}) lie: {e}", group.ino));
                return Ok(());
            }
            steps => steps?,
        };
        for at in steps {
            let end = content.size.min(at + STEP);
            match self.read_to_check(group.ino, content, (at, end), walk).await {
                Ok(()) => {}
                Err(e @ (FsError::Damaged(_) | FsError::Missing(_))) => {
                    // Written over meanwhile, it is another's.
                    let now = self.get(crate::record::content(group.ino)).await?;
                    if now.map(|row| row.version) == group.content.as_ref().map(|(_, version)| *version) {
                        walk.say(format!("bytes {at} to {end} of {name:?} (inode {:x}): {e}", group.ino));
                    }
                }
                Err(e) => return Err(e),
            }
            walk.bytes += end - at;
        }
        Ok(())
    }
}
