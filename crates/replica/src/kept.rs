//! Records whose values are kept on disc alone (`disc_only` tables): keys and versions stay in RAM, as in Bitcask
//! (Sheehy and Smith, 2010), so that checks, deltas and merges are decided without the disc, and only values are read from it.
//! Small values stay in RAM, too.

use crate::key::Space;
use crate::record::Record;
use base::{FragmentId, Hlc, Version, WallMs};
use bytes::Bytes;
use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Where a copy reads the values that it does not keep in RAM.
pub trait Values: Send + Sync + fmt::Debug {
    /// The newest value written under a stored key of a fragment, and the write that put it there. `None`: there is none, or
    /// the disc cannot be read. A copy that needs it says [`Notice::ValueLost`](crate::Notice::ValueLost), and nothing more.
    fn value(&self, fragment: FragmentId, key: &[u8]) -> Option<(Version, Bytes)>;

    /// Is it one that is kept apart? Depends on the value alone.
    fn takes(&self, value: &[u8]) -> bool {
        value.len() >= APART_BYTES_MIN
    }
}

/// May values under this stored key be kept apart, in a copy that does so? The copy's own are small, and needed at every step.
pub fn is_apart(key: &[u8]) -> bool {
    key.first() == Some(&(Space::User as u8))
}

/// Of so many bytes on, values are kept apart: what a smaller one takes is no more than what is kept to find it.
pub(crate) const APART_BYTES_MIN: usize = 256;

/// A record as a copy holds it: whole, or with its value on disc alone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Kept {
    /// Where the value is on disc, an empty one stands in its place.
    record: Record,
    apart: Option<u32>,
}

impl From<Record> for Kept {
    fn from(record: Record) -> Kept {
        Kept { record, apart: None }
    }
}

impl Kept {
    /// One whose value of so many bytes is on disc.
    pub fn on_disc(version: Version, hlc: Hlc, expires: Option<WallMs>, bytes: u32) -> Kept {
        let value = Some(Bytes::new());
        Kept { record: Record { version, hlc, expires, value }, apart: Some(bytes) }
    }

    /// All of a record but its value, which is on disc.
    pub fn without_value(record: &Record) -> Kept {
        let bytes = record.value.as_ref().map_or(0, Bytes::len) as u32;
        Kept::on_disc(record.version, record.hlc, record.expires, bytes)
    }

    /// The write that made it.
    pub fn version(&self) -> Version {
        self.record.version
    }

    /// Its stamp.
    pub fn hlc(&self) -> Hlc {
        self.record.hlc
    }

    /// When it expires.
    pub fn expires(&self) -> Option<WallMs> {
        self.record.expires
    }

    /// Holds it no value?
    pub fn is_tombstone(&self) -> bool {
        self.record.value.is_none()
    }

    /// See [`Record::is_cleared`].
    pub fn is_cleared(&self) -> bool {
        self.record.is_cleared()
    }

    /// Is it neither deleted nor expired?
    pub fn is_live(&self, wall: WallMs) -> bool {
        self.record.live(wall).is_some()
    }

    /// How many bytes its value has, if it has one.
    pub fn value_bytes(&self) -> Option<usize> {
        self.apart.map(|bytes| bytes as usize).or(self.record.value.as_ref().map(Bytes::len))
    }

    /// All of it, unless its value is on disc.
    pub fn here(&self) -> Option<&Record> {
        if self.apart.is_none() { Some(&self.record) } else { None }
    }

    /// The record with an empty value, if it has one.
    pub(crate) fn bare(&self) -> Record {
        Record { value: self.record.value.as_ref().map(|_| Bytes::new()), ..self.record.clone() }
    }

    /// Lets go of the value, which is on disc.
    pub(crate) fn let_go(&mut self) {
        if let (None, Some(value)) = (self.apart, &mut self.record.value) {
            self.apart = Some(std::mem::take(value).len() as u32);
        }
    }
}

/// What a copy knows of its values on disc.
#[derive(Debug)]
pub(crate) struct Apart {
    values: Arc<dyn Values>,
    fragment: FragmentId,
    /// What comes from here on is let go of when it is on disc.
    pub(crate) more: bool,
    /// How many batches were handed to the disc, and how many of them it has written.
    batches: u64,
    written: Arc<AtomicU64>,
    /// Values that are in RAM until their batch is written, the oldest first.
    here: VecDeque<(u64, Bytes, Version)>,
    /// The last batch that made what was staged true: until it is written, those values are not where they belong.
    staged: u64,
    /// A value could not be read.
    lost: AtomicBool,
}

/// A batch's place among those of its copy, and where to say that it can be read back.
#[derive(Clone, Debug)]
pub struct Place {
    number: u64,
    written: Arc<AtomicU64>,
}

impl Place {
    /// That of the first batch of a copy.
    pub fn first() -> Place {
        Place { number: 1, written: Arc::default() }
    }

    /// Can it be read back?
    pub fn is_written(&self) -> bool {
        self.written.load(Ordering::Acquire) >= self.number
    }

    /// The batch, and all before it, can be read back.
    pub fn written(&self) {
        self.written.fetch_max(self.number, Ordering::Release);
    }
}

impl Apart {
    pub(crate) fn new(values: Arc<dyn Values>, fragment: FragmentId) -> Apart {
        Apart {
            values,
            fragment,
            more: false,
            batches: 0,
            written: Arc::default(),
            here: VecDeque::new(),
            staged: 0,
            lost: AtomicBool::new(false),
        }
    }

    /// Nothing that is in RAM is let go of any more.
    pub(crate) fn keep(&mut self) {
        self.here.clear();
    }

    /// Is this record's value one that is kept apart?
    pub(crate) fn takes(&self, key: &[u8], record: &Record) -> bool {
        is_apart(key) && record.value.as_ref().is_some_and(|value| self.values.takes(value))
    }

    /// The place of the next batch, if its values are to be let go of.
    pub(crate) fn place(&mut self) -> Option<Place> {
        if !self.more {
            return None;
        }
        self.batches += 1;
        Some(Place { number: self.batches, written: self.written.clone() })
    }

    /// A value came with the batch that was placed last.
    pub(crate) fn came(&mut self, key: Bytes, version: Version) {
        self.here.push_back((self.batches, key, version));
    }

    /// The next value that need not be in RAM any more.
    pub(crate) fn next_written(&mut self, early: bool) -> Option<(Bytes, Version)> {
        let written = if early { u64::MAX } else { self.written.load(Ordering::Acquire) };
        let due = self.here.front().is_some_and(|(number, ..)| *number <= written);
        if due { self.here.pop_front().map(|(_, key, version)| (key, version)) } else { None }
    }

    /// What was staged becomes true with the batch that was placed last.
    pub(crate) fn switched(&mut self) {
        self.staged = self.batches;
    }

    /// Is all that was staged where it belongs?
    pub(crate) fn is_settled(&self) -> bool {
        self.written.load(Ordering::Acquire) >= self.staged
    }

    /// The whole of a record.
    pub(crate) fn read(&self, key: &[u8], kept: &Kept) -> Option<Record> {
        let (version, value) = self.values.value(self.fragment, key)?;
        let bytes = kept.apart.map(|bytes| bytes as usize);
        (version == kept.record.version && Some(value.len()) == bytes)
            .then(|| Record { value: Some(value), ..kept.record.clone() })
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    pub(crate) fn lose(&self) {
        self.lost.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::tests::feed;
    use crate::open::tests::{at, config};
    use crate::{Copy, Effects, Input, Meta, Notice, Range, Reply, SessionId, Storage, Store, Write};
    use base::NodeId;
    use std::collections::BTreeMap;
    use std::sync::{Mutex, PoisonError};

    /// A disc that can break.
    #[derive(Default, Debug)]
    struct Shelf {
        values: Mutex<BTreeMap<Bytes, (Version, Bytes)>>,
        broken: AtomicBool,
    }

    impl Shelf {
        fn take(&self, fx: &Effects) {
            let mut values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
            for persist in &fx.persists {
                let value = |(k, r): &(Bytes, Record)| Some((k.clone(), (r.version, r.value.clone()?)));
                values.extend(persist.batch.puts.iter().filter_map(value));
                persist.batch.apart.iter().for_each(Place::written);
            }
        }
    }

    impl Values for Shelf {
        fn value(&self, _: FragmentId, key: &[u8]) -> Option<(Version, Bytes)> {
            let values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
            values.get(key).filter(|_| !self.broken.load(Ordering::Relaxed)).cloned()
        }

        fn takes(&self, value: &[u8]) -> bool {
            !value.is_empty()
        }
    }

    /// A copy that leads alone, and has put `k`.
    fn leading() -> (Copy, Arc<Shelf>, u64) {
        let shelf = Arc::new(Shelf::default());
        let values: Arc<dyn Values> = shelf.clone();
        let config =
            crate::Config { storage: Storage::DiscOnly, values: Some(values), founders: vec![NodeId(1)], ..config() };
        let mut copy = Copy::new(at(0), config, Meta::default(), Store::default());
        feed(&mut copy, 5000, Input::Tick);
        feed(&mut copy, 5100, Input::Tick);
        let mark = put(&mut copy, &shelf, 1, "one");
        (copy, shelf, mark)
    }

    /// Returns the mark by which it is durable.
    fn put(copy: &mut Copy, shelf: &Shelf, number: u64, value: &'static str) -> u64 {
        let session = SessionId { node: NodeId(1), incarnation: 1 };
        let writes = vec![Write::Put { key: "k".into(), value: value.into(), ttl_ms: None }];
        let branches = vec![copy.lead().expect("it leads").branch];
        let batch = crate::Batch { writes, ..crate::Batch::default() };
        let request = crate::Request { session, number, done_through: 0, branches, batch };
        let mut fx = Effects::default();
        copy.handle(at(6000), Input::Write(number, request), &mut fx);
        shelf.take(&fx);
        fx.persists.last().map(|p| p.mark).expect("it is to be kept")
    }

    fn read(copy: &mut Copy, ticket: u64) -> Effects {
        let mut fx = Effects::default();
        copy.handle(at(6001), Input::Read(ticket, vec![Range::key("k".into())]), &mut fx);
        fx
    }

    fn shown(fx: &Effects) -> Vec<(u64, Bytes)> {
        let value = |(ticket, reply): &(u64, Reply)| match reply {
            Reply::Rows(rows) => Some((*ticket, rows.first()?.rows.first()?.1.value.clone()?)),
            _ => None,
        };
        fx.replies.iter().filter_map(value).collect()
    }

    #[test]
    fn a_value_leaves_the_ram_when_it_is_on_disc_and_is_read_from_there() {
        let (mut copy, _, mark) = leading();
        let here = |copy: &Copy| copy.store().get(b"\x01k").is_some_and(|kept| kept.here().is_some());
        assert!(here(&copy), "nobody has told it yet that the disc has it");
        feed(&mut copy, 6000, Input::Durable(mark));
        assert!(!here(&copy));
        assert_eq!(shown(&read(&mut copy, 7)), [(7, "one".into())]);
    }

    /// The disc has the new value already, and it is not committed.
    #[test]
    fn a_value_that_is_being_replaced_is_shown_until_the_commit() {
        let (mut copy, shelf, mark) = leading();
        feed(&mut copy, 6000, Input::Durable(mark));
        let mark = put(&mut copy, &shelf, 2, "two");
        assert_eq!(shown(&read(&mut copy, 7)), [(7, "one".into())]);
        feed(&mut copy, 6002, Input::Durable(mark));
        assert_eq!(shown(&read(&mut copy, 8)), [(8, "two".into())]);
    }

    #[test]
    fn a_copy_that_cannot_read_a_value_says_so_and_nothing_else() {
        let (mut copy, shelf, mark) = leading();
        feed(&mut copy, 6000, Input::Durable(mark));
        shelf.broken.store(true, Ordering::Relaxed);
        let fx = read(&mut copy, 7);
        assert_eq!((fx.notices, fx.replies.len(), fx.sends.len()), (vec![Notice::ValueLost], 0, 0));
        let mut fx = Effects::default();
        copy.handle(at(9000), Input::Tick, &mut fx);
        assert_eq!((fx.notices, fx.sends.len(), fx.persists.len()), (vec![Notice::ValueLost], 0, 0));
    }
}
