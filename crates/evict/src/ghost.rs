use hashbrown::HashTable;
use std::collections::VecDeque;

/// With fewer that do not count any more they are left where they are.
const SPARSE_MIN: usize = 64;

/// Hashes of what went lately, the oldest first.
#[derive(Default)]
pub(crate) struct Ghost {
    order: VecDeque<(u32, u32)>,
    /// By hash (the upper half of it: few are taken for others), the number under which it went last.
    known: HashTable<(u32, u32)>,
    number: u32,
}

/// What is remembered of a hash.
fn tag(hash: u64) -> u32 {
    (hash >> 32) as u32
}

/// The hash of that.
fn spread(tag: u32) -> u64 {
    u64::from(tag).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl Ghost {
    /// It went; at most so many are remembered.
    pub(crate) fn add(&mut self, hash: u64, most: usize) {
        self.number = self.number.wrapping_add(1);
        self.take(hash);
        let tag = tag(hash);
        self.known.insert_unique(spread(tag), (tag, self.number), |(tag, _)| spread(*tag));
        self.order.push_back((tag, self.number));
        while self.known.len() > most {
            let Some(first) = self.order.pop_front() else { return };
            // Unless it came back meanwhile, or went again.
            if let Ok(entry) = self.known.find_entry(spread(first.0), |known| *known == first) {
                entry.remove();
            }
        }
        if self.order.len() > 2 * self.known.len() + SPARSE_MIN {
            let known = &self.known;
            self.order.retain(|one| known.find(spread(one.0), |known| known == one).is_some());
        }
    }

    /// Was it remembered? Not any more.
    pub(crate) fn take(&mut self, hash: u64) -> bool {
        let tag = tag(hash);
        let found = self.known.find_entry(spread(tag), |(known, _)| *known == tag);
        found.map(|entry| entry.remove()).is_ok()
    }
}
