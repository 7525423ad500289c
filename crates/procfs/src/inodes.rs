//! Numbers for what the kernel knows. A directory or a text that grows has one number for good. A value has one for each state that it is
//! in, as a file has that is replaced by another of the same name: what is read of it is what it was when it was looked up, and the
//! kernel may keep it.

use bytes::Bytes;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

/// A file's number. All have the highest bit set: the lower half is another filesystem's.
pub type Ino = u64;

const OURS: Ino = 1 << 63;
/// The top directory.
pub const ROOT: Ino = OURS | 1;

/// Is it a number of this filesystem?
pub fn is_ours(ino: Ino) -> bool {
    ino & OURS != 0
}

/// What is in a file, at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Value {
    pub content: Bytes,
    /// Since when it is so, as far as somebody looked.
    pub since: SystemTime,
    /// It can be written, and so often one was before.
    pub knob: Option<u64>,
}

/// What the kernel knows by a number.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub path: Arc<str>,
    /// `None`: it is asked for anew each time.
    pub value: Option<Value>,
}

/// What the kernel knows, by number, and how often it was told.
#[derive(Default)]
pub(crate) struct Inodes(Mutex<HashMap<Ino, (Known, u64)>>);

impl Known {
    /// The number.
    pub(crate) fn ino(&self) -> Ino {
        if self.path.is_empty() {
            return ROOT;
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.path.as_bytes());
        if let Some(value) = &self.value {
            // No path holds a byte 0.
            hasher.update(&[0]).update(&value.knob.unwrap_or(0).to_be_bytes()).update(&value.content);
        }
        let hash = hasher.finalize();
        let ino = hash.as_bytes().first_chunk().map_or(0, |first| u64::from_be_bytes(*first)) | OURS;
        // The top is nobody else's.
        if ino == ROOT { ino + 1 } else { ino }
    }
}

impl Inodes {
    fn all(&self) -> MutexGuard<'_, HashMap<Ino, (Known, u64)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The kernel is told of it, by this number.
    pub(crate) fn tell(&self, ino: Ino, known: &Known) {
        self.all().entry(ino).or_insert_with(|| (known.clone(), 0)).1 += 1;
    }

    pub(crate) fn known(&self, ino: Ino) -> Option<Known> {
        if ino == ROOT {
            return Some(Known { path: "".into(), value: None });
        }
        self.all().get(&ino).map(|(known, _)| known.clone())
    }

    /// The kernel forgets it, as often as it was told of it.
    pub(crate) fn forget(&self, ino: Ino, times: u64) {
        let mut all = self.all();
        if let Some((_, told)) = all.get_mut(&ino) {
            *told = told.saturating_sub(times);
            if *told == 0 {
                all.remove(&ino);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(path: &str, content: &'static str) -> Known {
        let value = Value { content: content.into(), since: SystemTime::UNIX_EPOCH, knob: None };
        Known { path: path.into(), value: Some(value) }
    }

    #[test]
    fn a_value_has_a_number_for_each_state_and_is_known_until_it_is_forgotten_as_often_as_it_was_told() {
        let all = Inodes::default();
        let (one, two) = (value("tables/t/why", "well"), value("tables/t/why", "ill"));
        let ino = one.ino();
        assert!(is_ours(ino) && ino != ROOT && ino != two.ino() && ino == value("tables/t/why", "well").ino());
        assert_ne!(ino, value("tables/u/why", "well").ino());
        all.tell(ino, &one);
        all.tell(ino, &one);
        all.forget(ino, 1);
        assert_eq!(all.known(ino).map(|known| known.path.to_string()).as_deref(), Some("tables/t/why"));
        all.forget(ino, 1);
        assert!(all.known(ino).is_none() && all.known(ROOT).is_some());
    }
}
