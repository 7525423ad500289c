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
    /// In pieces, so that no more is taken than is used when there are many.
    pieces: Vec<Vec<Entry>>,
    len: u32,
    free: Vec<u32>,
}

/// How many lie in one piece.
const PIECE: usize = 1024;

fn some(at: u32) -> Option<u32> {
    if at == NONE { None } else { Some(at) }
}

impl Slots {
    fn at(&self, at: u32) -> &Entry {
        &self.pieces[at as usize / PIECE][at as usize % PIECE]
    }

    fn at_mut(&mut self, at: u32) -> &mut Entry {
        &mut self.pieces[at as usize / PIECE][at as usize % PIECE]
    }

    pub(crate) fn add(&mut self, key: Bytes, hash: u64, bytes: u64, due: (u64, u64)) -> u32 {
        let entry = Entry { key, hash, bytes, due, older: NONE, newer: NONE, used: 0, small: false, there: true };
        match self.free.pop() {
            Some(at) => {
                *self.at_mut(at) = entry;
                at
            }
            None => {
                match self.pieces.last_mut().filter(|last| last.len() < PIECE) {
                    Some(last) => last.push(entry),
                    None => self.pieces.push(vec![entry]),
                }
                self.len += 1;
                self.len - 1
            }
        }
    }

    pub(crate) fn free(&mut self, at: u32) -> (Bytes, u64, (u64, u64)) {
        self.free.push(at);
        let entry = self.at_mut(at);
        entry.there = false;
        (std::mem::take(&mut entry.key), entry.bytes, entry.due)
    }

    pub(crate) fn is_used(&self, at: u32) -> bool {
        at < self.len && self.at(at).there
    }

    pub(crate) fn touch(&mut self, at: u32, most: u8) {
        if self.is_used(at) {
            let entry = self.at_mut(at);
            entry.used = (entry.used + 1).min(most);
        }
    }

    /// Changes size and expiry; what the latter was before, and its number.
    pub(crate) fn change(&mut self, at: u32, bytes: u64, expires: u64) -> (u64, u64) {
        let entry = self.at_mut(at);
        let before = entry.due;
        (entry.bytes, entry.due.0) = (bytes, expires);
        before
    }

    pub(crate) fn key(&self, at: u32) -> &Bytes {
        &self.at(at).key
    }

    pub(crate) fn hash(&self, at: u32) -> u64 {
        self.at(at).hash
    }

    pub(crate) fn bytes(&self, at: u32) -> u64 {
        self.at(at).bytes
    }

    pub(crate) fn used(&self, at: u32) -> u8 {
        self.at(at).used
    }

    pub(crate) fn set_used(&mut self, at: u32, used: u8) {
        self.at_mut(at).used = used;
    }

    pub(crate) fn is_small(&self, at: u32) -> bool {
        self.at(at).small
    }

    pub(crate) fn set_small(&mut self, at: u32, small: bool) {
        self.at_mut(at).small = small;
    }

    pub(crate) fn newer(&self, at: u32) -> Option<u32> {
        some(self.at(at).newer)
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
        let entry = slots.at_mut(at);
        (entry.older, entry.newer) = (self.head.unwrap_or(NONE), NONE);
        self.bytes += entry.bytes;
        self.len += 1;
        match self.head {
            Some(head) => slots.at_mut(head).newer = at,
            None => self.tail = Some(at),
        }
        self.head = Some(at);
    }

    pub(crate) fn remove(&mut self, slots: &mut Slots, at: u32) {
        let entry = slots.at(at);
        let (older, newer) = (some(entry.older), some(entry.newer));
        self.bytes -= entry.bytes;
        self.len -= 1;
        match older {
            Some(older) => slots.at_mut(older).newer = newer.unwrap_or(NONE),
            None => self.tail = newer,
        }
        match newer {
            Some(newer) => slots.at_mut(newer).older = older.unwrap_or(NONE),
            None => self.head = older,
        }
    }
}
