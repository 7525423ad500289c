use bytes::Bytes;

/// No slot.
const NONE: u32 = u32::MAX;

/// What is known of a record.
struct Entry {
    key: Bytes,
    hash: u64,
    bytes: u64,
    /// When it expires, and its number among all that came.
    due: (u64, u64),
    /// The next older and the next newer one of its list.
    older: u32,
    newer: u32,
    used: u8,
    small: bool,
    there: bool,
}

/// The records of all lists, and room that is free.
#[derive(Default)]
pub(crate) struct Slots {
    entries: Vec<Entry>,
    free: Vec<u32>,
}

fn some(at: u32) -> Option<u32> {
    if at == NONE { None } else { Some(at) }
}

impl Slots {
    pub(crate) fn add(&mut self, key: Bytes, hash: u64, bytes: u64, due: (u64, u64)) -> u32 {
        let entry = Entry { key, hash, bytes, due, older: NONE, newer: NONE, used: 0, small: false, there: true };
        match self.free.pop() {
            Some(at) => {
                self.entries[at as usize] = entry;
                at
            }
            None => {
                self.entries.push(entry);
                self.entries.len() as u32 - 1
            }
        }
    }

    pub(crate) fn free(&mut self, at: u32) -> (Bytes, u64, (u64, u64)) {
        let entry = &mut self.entries[at as usize];
        entry.there = false;
        self.free.push(at);
        (std::mem::take(&mut entry.key), entry.bytes, entry.due)
    }

    pub(crate) fn is_used(&self, at: u32) -> bool {
        self.entries.get(at as usize).is_some_and(|entry| entry.there)
    }

    pub(crate) fn touch(&mut self, at: u32, most: u8) {
        if let Some(entry) = self.entries.get_mut(at as usize) {
            entry.used = (entry.used + 1).min(most);
        }
    }

    /// Changes size and expiry; what the latter was before, and its number.
    pub(crate) fn change(&mut self, at: u32, bytes: u64, expires: u64) -> (u64, u64) {
        let entry = &mut self.entries[at as usize];
        let before = entry.due;
        (entry.bytes, entry.due.0) = (bytes, expires);
        before
    }

    pub(crate) fn key(&self, at: u32) -> &Bytes {
        &self.entries[at as usize].key
    }

    pub(crate) fn hash(&self, at: u32) -> u64 {
        self.entries[at as usize].hash
    }

    pub(crate) fn bytes(&self, at: u32) -> u64 {
        self.entries[at as usize].bytes
    }

    pub(crate) fn used(&self, at: u32) -> u8 {
        self.entries[at as usize].used
    }

    pub(crate) fn set_used(&mut self, at: u32, used: u8) {
        self.entries[at as usize].used = used;
    }

    pub(crate) fn is_small(&self, at: u32) -> bool {
        self.entries[at as usize].small
    }

    pub(crate) fn set_small(&mut self, at: u32, small: bool) {
        self.entries[at as usize].small = small;
    }

    pub(crate) fn newer(&self, at: u32) -> Option<u32> {
        some(self.entries[at as usize].newer)
    }
}

/// A list through slots.
#[derive(Default)]
pub(crate) struct List {
    head: Option<u32>,
    /// The oldest.
    pub(crate) tail: Option<u32>,
    pub(crate) len: usize,
    pub(crate) bytes: u64,
}

impl List {
    /// It is the newest from here on.
    pub(crate) fn push(&mut self, slots: &mut Slots, at: u32) {
        let entry = &mut slots.entries[at as usize];
        (entry.older, entry.newer) = (self.head.unwrap_or(NONE), NONE);
        self.bytes += entry.bytes;
        self.len += 1;
        match self.head {
            Some(head) => slots.entries[head as usize].newer = at,
            None => self.tail = Some(at),
        }
        self.head = Some(at);
    }

    pub(crate) fn remove(&mut self, slots: &mut Slots, at: u32) {
        let entry = &slots.entries[at as usize];
        let (older, newer) = (some(entry.older), some(entry.newer));
        self.bytes -= entry.bytes;
        self.len -= 1;
        match older {
            Some(older) => slots.entries[older as usize].newer = newer.unwrap_or(NONE),
            None => self.tail = newer,
        }
        match newer {
            Some(newer) => slots.entries[newer as usize].older = older.unwrap_or(NONE),
            None => self.head = older,
        }
    }
}
