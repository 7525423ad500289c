use super::client::KEYS;
use base::{Heads, Version};
use bytes::Bytes;
use replica::{Copy, Since, Space};
use std::collections::BTreeMap;

/// How many bytes it takes at once: little, so that rounds have many parts.
const PART_BYTES: usize = 60;
/// The longest round at the end.
const PARTS_MAX: usize = 1000;

/// Follows the fragment by its changes alone, from one copy and another.
#[derive(Clone, Default)]
pub(crate) struct Subscriber {
    since: Since,
    seen: BTreeMap<Bytes, Version>,
}

/// Those of the other fragment go without a word when the two are parted.
fn is_followed(key: &[u8]) -> bool {
    key.first().is_some_and(|k| *k < KEYS)
}

impl Subscriber {
    /// Takes what a copy has to tell; `false`: it cannot.
    pub(crate) fn ask(&mut self, copy: &Copy) -> bool {
        let Some(changes) = copy.changes(&self.since, PART_BYTES) else {
            // A round that cannot be ended here is begun anew.
            (self.since.upto, self.since.after) = (None, None);
            return false;
        };
        if changes.anew {
            self.seen.clear();
            self.since.have = Heads::default();
        }
        for (key, record) in changes.rows.into_iter().filter(|(key, _)| is_followed(key)) {
            match record.value {
                Some(_) => self.seen.insert(key, record.version),
                None => self.seen.remove(&key),
            };
        }
        if changes.after.is_some() {
            self.since.have = self.since.have.meet(&changes.upto);
            (self.since.upto, self.since.after) = (Some(changes.upto), changes.after);
        } else {
            self.since = Since { have: changes.upto, ..Since::default() };
        }
        true
    }

    /// At rest: once it has asked to the end, it knows the newest version of every key. `kept`: no crash has lost anything.
    pub(crate) fn account(mut self, leader: &Copy, kept: bool) -> Option<String> {
        (self.since.upto, self.since.after) = (None, None);
        for _ in 0..PARTS_MAX {
            if !self.ask(leader) {
                return Some("a subscriber gets no answer".into());
            }
            if self.since.upto.is_none() {
                break;
            }
        }
        let live = leader.store().space(Space::User).filter(|(key, r)| !r.is_tombstone() && is_followed(&key[1..]));
        let stored = live.map(|(key, record)| (key.slice(1..), record.version()));
        let stored: BTreeMap<Bytes, Version> = stored.collect();
        (kept && self.seen != stored).then(|| format!("a subscriber knows {:?}, and there is {stored:?}", self.seen))
    }
}
