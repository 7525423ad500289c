//! How many calls of the kernel there were of each kind, and how long they took.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What the kernel calls for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Call {
    Lookup,
    Getattr,
    Setattr,
    Read,
    Write,
    Open,
    Make,
    Remove,
    Rename,
    Readdir,
    Sync,
    Xattr,
    Release,
    Lock,
}

const NAMES: [&str; 14] = [
    "lookup", "getattr", "setattr", "read", "write", "open", "make", "remove", "rename", "readdir", "sync", "xattr",
    "release", "lock",
];

#[derive(Default, Debug)]
struct Count {
    calls: AtomicU64,
    nanos: AtomicU64,
}

/// Calls of a mount, by kind.
#[derive(Default, Debug)]
pub struct Tally([Count; NAMES.len()]);

impl Tally {
    pub(crate) fn note(&self, call: Call, took: Duration) {
        let Some(count) = self.0.get(call as usize) else { return };
        count.calls.fetch_add(1, Ordering::Relaxed);
        count.nanos.fetch_add(took.as_nanos() as u64, Ordering::Relaxed);
    }

    /// Of each kind of which there were any: its name, how many there were, and how many seconds they took together.
    pub fn all(&self) -> impl Iterator<Item = (&'static str, u64, f64)> + '_ {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let counts = NAMES.into_iter().zip(&self.0);
        counts
            .map(move |(name, c)| (name, read(&c.calls), read(&c.nanos) as f64 / 1e9))
            .filter(|(_, calls, _)| *calls > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_counted_under_its_name() {
        let tally = Tally::default();
        tally.note(Call::Release, Duration::from_millis(500));
        tally.note(Call::Lookup, Duration::from_millis(250));
        tally.note(Call::Lookup, Duration::from_millis(250));
        assert_eq!(tally.all().collect::<Vec<_>>(), [("lookup", 2, 0.5), ("release", 1, 0.5)]);
    }
}
