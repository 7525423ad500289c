use base::{Heads, Version};
use bytes::Bytes;
use replica::{Meta, Persist, Record, Store, WriteBatch};
use std::collections::{BTreeMap, VecDeque};

/// What is on the platters.
#[derive(Clone, Default)]
pub(crate) struct Image {
    pub meta: Meta,
    pub heads: Heads,
    records: BTreeMap<Bytes, Record>,
}

impl Image {
    fn apply(&mut self, batch: WriteBatch) {
        if let Some(meta) = batch.meta {
            self.meta = meta;
        }
        batch.heads.into_iter().for_each(|v: Version| self.heads.add(v));
        batch.removes.iter().for_each(|key| {
            self.records.remove(key);
        });
        self.records.extend(batch.puts);
    }

    pub(crate) fn store(&self) -> Store {
        Store::load(0, self.heads.clone(), self.records.clone())
    }
}

/// A disc that takes batches in order and, at a crash, loses any suffix of those not flushed.
#[derive(Default)]
pub(crate) struct Disc {
    image: Image,
    cached: VecDeque<Persist>,
    /// A flush is under way up to this mark.
    pub flushing: Option<u64>,
}

impl Disc {
    pub(crate) fn write(&mut self, persist: Persist) {
        self.cached.push_back(persist);
    }

    pub(crate) fn wants_flush(&self) -> bool {
        self.flushing.is_none() && self.cached.iter().any(|p| p.sync)
    }

    pub(crate) fn last_mark(&self) -> Option<u64> {
        self.cached.back().map(|p| p.mark)
    }

    pub(crate) fn flush(&mut self, mark: u64) {
        while self.cached.front().is_some_and(|p| p.mark <= mark)
            && let Some(persist) = self.cached.pop_front()
        {
            self.image.apply(persist.batch);
        }
    }

    /// How many batches a crash may lose.
    pub(crate) fn at_risk(&self) -> usize {
        self.cached.len()
    }

    /// A crash that keeps the first `kept` batches of those at risk.
    pub(crate) fn crash(&mut self, kept: usize) -> Image {
        self.cached.truncate(kept);
        while let Some(persist) = self.cached.pop_front() {
            self.image.apply(persist.batch);
        }
        self.flushing = None;
        self.image.clone()
    }
}
