use base::{FragmentId, Heads, Version};
use bytes::Bytes;
use replica::{Kept, Meta, Persist, Record, Stage, Store, Values, WriteBatch, is_apart};
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What is on the platters.
#[derive(Clone, Default)]
pub(crate) struct Image {
    pub meta: Meta,
    pub heads: Heads,
    /// Whether their values lie apart, too.
    pub records: BTreeMap<Bytes, (Record, bool)>,
    staged: BTreeMap<Bytes, (Record, bool)>,
    /// None of its records counts.
    open: bool,
}

impl Image {
    fn apply(&mut self, batch: WriteBatch) {
        if batch.wipe {
            *self = Image { meta: self.meta, ..Image::default() };
        }
        match batch.stage {
            Stage::Keep { first } => {
                if first {
                    self.staged.clear();
                }
                return self.staged.extend(batch.puts.into_iter().map(|(key, r)| (key, (r, true))));
            }
            Stage::Switch => self.records.append(&mut self.staged),
            Stage::Open => (self.open, self.heads) = (true, Heads::default()),
            Stage::Close => self.open = false,
            Stage::None => {}
        }
        if let Some(meta) = batch.meta {
            self.meta = meta;
        }
        batch.heads.into_iter().for_each(|v: Version| self.heads.add(v));
        for (last, _) in batch.folds {
            self.heads.fold(last);
        }
        batch.removes.iter().for_each(|key| {
            self.records.remove(key);
        });
        let parts = batch.apart.is_some();
        let put = |(key, r): (Bytes, Record)| {
            let apart = parts && goes_apart(&key, &r);
            (key, (r, apart))
        };
        self.records.extend(batch.puts.into_iter().map(put));
    }

    /// What a copy loads.
    pub(crate) fn store(&self) -> Store {
        let kept = |(key, (r, apart)): (&Bytes, &(Record, bool))| match &r.value {
            Some(_) if *apart => (key.clone(), Kept::without_value(r)),
            _ => (key.clone(), r.clone().into()),
        };
        Store::load(0, self.heads.clone(), self.records.iter().map(kept))
    }
}

/// What counts as large here: what lies under one key is now apart, now not.
fn is_large(value: &[u8]) -> bool {
    value.last().is_some_and(|last| last % 4 != 0)
}

/// Is the value of this record one that is kept apart, where values are?
pub(crate) fn goes_apart(key: &[u8], record: &Record) -> bool {
    is_apart(key) && record.value.as_ref().is_some_and(|value| is_large(value))
}

/// What the engine has written, on the platters or not, and can read back.
#[derive(Default, Debug)]
pub(crate) struct Engine {
    values: Mutex<BTreeMap<Bytes, (Version, Bytes)>>,
    /// Nothing can be read any more.
    broken: AtomicBool,
}

impl Engine {
    fn wipe(&self) {
        self.values.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    pub(crate) fn fail(&self) {
        self.broken.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    fn take(&self, puts: impl IntoIterator<Item = (Bytes, Record)>) {
        let mut values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        for (key, record) in puts {
            match record.value {
                Some(value) => values.insert(key, (record.version, value)),
                None => values.remove(&key),
            };
        }
    }

    fn remove<'a>(&self, keys: impl IntoIterator<Item = &'a Bytes>) {
        let mut values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        for key in keys {
            values.remove(key);
        }
    }
}

impl Values for Engine {
    fn value(&self, _: FragmentId, key: &[u8]) -> Option<(Version, Bytes)> {
        let values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        values.get(key).filter(|_| !self.is_broken()).cloned()
    }

    fn takes(&self, value: &[u8]) -> bool {
        is_large(value)
    }
}

/// A disc that takes batches in order and, at a crash, loses any suffix of those not flushed.
#[derive(Default)]
pub(crate) struct Disc {
    image: Image,
    cached: VecDeque<Persist>,
    /// A flush is under way up to this mark.
    pub flushing: Option<u64>,
    pub engine: Arc<Engine>,
    /// What the engine has not come to yet.
    queued: VecDeque<WriteBatch>,
    staged: BTreeMap<Bytes, Record>,
    last: u64,
    /// Batches came in another order than that of their marks.
    pub disordered: bool,
}

impl Disc {
    pub(crate) fn write(&mut self, persist: Persist) {
        self.disordered |= persist.mark <= self.last;
        self.last = persist.mark;
        self.queued.push_back(persist.batch.clone());
        self.cached.push_back(persist);
    }

    /// The engine writes what is queued.
    pub(crate) fn work(&mut self) {
        for batch in self.queued.drain(..) {
            if batch.wipe {
                self.engine.wipe();
                self.staged.clear();
            }
            match batch.stage {
                Stage::Keep { first } => {
                    if first {
                        self.staged.clear();
                    }
                    self.staged.extend(batch.puts);
                    continue;
                }
                Stage::Switch => self.engine.take(std::mem::take(&mut self.staged)),
                Stage::None | Stage::Open | Stage::Close => {}
            }
            self.engine.remove(&batch.removes);
            if batch.apart.is_some() {
                self.engine.take(batch.puts);
            } else if batch.gathered {
                self.engine.remove(batch.puts.iter().map(|(key, _)| key));
            }
            if let Some(place) = batch.apart {
                place.written();
            }
        }
    }

    pub(crate) fn wants_flush(&self) -> bool {
        self.flushing.is_none() && self.cached.iter().any(|p| p.sync)
    }

    pub(crate) fn last_mark(&self) -> Option<u64> {
        self.cached.back().map(|p| p.mark)
    }

    pub(crate) fn flush(&mut self, mark: u64) {
        self.work();
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

    /// Does what is on the platters count?
    pub(crate) fn counts(&self) -> bool {
        !self.image.open && !self.image.heads.is_empty()
    }

    /// What is on the platters when all is written.
    pub(crate) fn at_rest(&self) -> Image {
        let mut image = self.image.clone();
        self.cached.iter().for_each(|persist| image.apply(persist.batch.clone()));
        image
    }

    /// A crash that keeps the first `kept` batches of those at risk.
    pub(crate) fn crash(&mut self, kept: usize) -> Image {
        self.cached.truncate(kept);
        while let Some(persist) = self.cached.pop_front() {
            self.image.apply(persist.batch);
        }
        self.flushing = None;
        self.image.staged.clear();
        if std::mem::take(&mut self.image.open) {
            self.image.records.clear();
        }
        self.staged.clear();
        self.queued.clear();
        self.last = 0;
        self.engine = Arc::default();
        let apart = self.image.records.iter().filter(|(_, (_, apart))| *apart);
        self.engine.take(apart.map(|(key, (record, _))| (key.clone(), record.clone())));
        self.image.clone()
    }
}
