use hashbrown::HashTable;
use std::collections::VecDeque;

/// With fewer that do not count any more they are left where they are.
const SPARSE_MIN: usize = 64;

/// Hashes of what went lately, the oldest first.
#[derive(Default)]
pub(crate) struct Ghost {
    order: VecDeque<(u64, u64)>,
    /// By hash, the number under which it went last.
    known: HashTable<(u64, u64)>,
    number: u64,
}

impl Ghost {
    /// It went; at most so many are remembered.
    pub(crate) fn add(&mut self, hash: u64, most: usize) {
        self.number += 1;
        self.take(hash);
        self.known.insert_unique(hash, (hash, self.number), |(hash, _)| *hash);
        self.order.push_back((hash, self.number));
        while self.known.len() > most {
            let Some((hash, number)) = self.order.pop_front() else { return };
            // Unless it came back meanwhile, or went again.
            if let Ok(entry) = self.known.find_entry(hash, |known| *known == (hash, number)) {
                entry.remove();
            }
        }
        if self.order.len() > 2 * self.known.len() + SPARSE_MIN {
            let known = &self.known;
            self.order.retain(|(hash, number)| known.find(*hash, |known| known == &(*hash, *number)).is_some());
        }
    }

    /// Was it remembered? Not any more.
    pub(crate) fn take(&mut self, hash: u64) -> bool {
        let found = self.known.find_entry(hash, |(known, _)| *known == hash);
        found.map(|entry| entry.remove()).is_ok()
    }
}
