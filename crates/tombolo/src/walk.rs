//! A walk over all rows of a table, fragment by fragment, which does not lose its way when the fragments change.

use base::FragmentId;
use bytes::Bytes;
use node::TableDef;
use std::collections::VecDeque;

/// Where a walk is.
pub(crate) struct Walk {
    def: TableDef,
    todo: VecDeque<FragmentId>,
    /// In the first of those: from this key on.
    from: Bytes,
    /// Fragments as they were when they were walked through: to the end, or up to a key.
    seen: Vec<(FragmentId, Option<Bytes>)>,
}

impl Walk {
    pub(crate) fn new(def: TableDef) -> Walk {
        Walk { todo: def.all().collect(), def, from: Bytes::new(), seen: Vec::new() }
    }

    pub(crate) fn def(&self) -> &TableDef {
        &self.def
    }

    /// What to read next.
    pub(crate) fn next(&self) -> Option<(FragmentId, Bytes)> {
        self.todo.front().map(|fragment| (*fragment, self.from.clone()))
    }

    /// Was this key not met before?
    pub(crate) fn is_new(&self, key: &[u8]) -> bool {
        !self.seen.iter().any(|(f, upto)| self.def.is_in(*f, key) && upto.as_ref().is_none_or(|upto| key < &upto[..]))
    }

    /// It was read; this is where it goes on, if there is more.
    pub(crate) fn went_on(&mut self, next: Option<Bytes>) {
        match next {
            Some(next) => self.from = next,
            None => {
                self.seen.extend(self.todo.pop_front().map(|fragment| (fragment, None)));
                self.from = Bytes::new();
            }
        }
    }

    /// The fragment that is read is read from its beginning.
    pub(crate) fn begin_again(&mut self) {
        self.from = Bytes::new();
    }

    /// The table is cut otherwise.
    pub(crate) fn renew(&mut self, def: TableDef) {
        let at = self.todo.front().copied().filter(|_| !self.from.is_empty());
        self.seen.extend(at.map(|fragment| (fragment, Some(std::mem::take(&mut self.from)))));
        self.from = Bytes::new();
        let walked = |f: &FragmentId| self.seen.iter().any(|(seen, upto)| seen == f && upto.is_none());
        self.todo = def.all().filter(|f| !walked(f)).collect();
        self.def = def;
    }
}
