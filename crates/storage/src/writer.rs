use crate::long::Long;
use crate::{Disc, StorageError};
use base::FragmentId;
use replica::{Persist, Place, Stage};
use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How many batches may wait for the disc before the node waits too.
const QUEUE_MAX: usize = 8192;
/// And how many bytes.
const QUEUE_BYTES_MAX: usize = 128 * 1024 * 1024;
/// How many batches one flush covers at most.
const GROUP_MAX: usize = 2048;
/// So many of those that stood in line are written at once, of about so many bytes.
const FEW_MAX: usize = 512;
const FEW_BYTES_MAX: usize = 4 * 1024 * 1024;
/// `sync_interval`: what was acknowledged without a flush is flushed within this.
const SYNC_INTERVAL: Duration = Duration::from_millis(100);

/// What takes no longer than this is not worth a word.
const SLOW_MIN: Duration = Duration::from_millis(50);

/// What the disc has to say.
#[derive(Debug)]
pub enum Event {
    /// All batches of the fragment up to the mark are on disc.
    Durable(FragmentId, u64),
    /// So many batches of so many bytes took so long.
    Slow(usize, usize, Duration),
    /// Nothing more can be written.
    Failed(StorageError),
}

/// A thread that writes the batches of each fragment in order: many in one flush (group commit), and a flush at least every 100 ms while there
/// is something to flush. An idle node writes nothing.
pub struct Writer {
    queue: SyncSender<(FragmentId, Persist)>,
    queued: Arc<Queued>,
    counts: Arc<Counts>,
    thread: JoinHandle<()>,
}

impl Writer {
    /// Starts the thread; `tell` is called on it.
    pub fn start(disc: Arc<Disc>, tell: impl Fn(Event) + Send + 'static) -> std::io::Result<Writer> {
        let (queue, jobs) = sync_channel(QUEUE_MAX);
        let queued = Arc::new(Queued { bytes: Mutex::new(Some(0)), less: Condvar::new() });
        let counts: Arc<Counts> = Arc::default();
        let (done, counted) = (queued.clone(), counts.clone());
        let thread = std::thread::Builder::new().name("disc".into()).spawn(move || {
            let work = Work::new(&disc, &done, &counted, &tell);
            // The engine asserts on what it does not expect; then nothing more can be written either.
            let worked = catch_unwind(AssertUnwindSafe(|| work.run(&jobs)));
            if let Err(e) = worked.unwrap_or_else(|_| Err(disc.broken())) {
                tell(Event::Failed(e));
                // Whoever still sends must not block: take and drop.
                done.open();
                while jobs.recv().is_ok() {}
            }
        })?;
        Ok(Writer { queue, queued, counts, thread })
    }

    /// Queues a batch; waits while the queue is full.
    pub fn write(&self, fragment: FragmentId, persist: Persist) {
        self.queued.more(persist.batch.bytes());
        // The thread ends only after this sender is gone.
        let _ = self.queue.send((fragment, persist));
    }

    /// What was written so far.
    pub fn written(&self) -> Written {
        let read = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let c = &self.counts;
        Written {
            batches: read(&c.batches),
            bytes: read(&c.bytes),
            flushes: read(&c.flushes),
            seconds: read(&c.nanos) as f64 / 1e9,
            queued_bytes: self.queued.bytes.lock().unwrap_or_else(PoisonError::into_inner).unwrap_or(0) as u64,
        }
    }

    /// Writes and flushes everything, then ends.
    pub fn close(self) {
        drop(self.queue);
        let _ = self.thread.join();
    }
}

/// What was written since the start, as batches came; those that take long are not counted.
#[derive(Clone, Copy, Default, Debug)]
pub struct Written {
    /// How many batches.
    pub batches: u64,
    /// Of how many bytes.
    pub bytes: u64,
    /// How often it was flushed.
    pub flushes: u64,
    /// How long writing and flushing took.
    pub seconds: f64,
    /// How many bytes wait.
    pub queued_bytes: u64,
}

#[derive(Default)]
struct Counts {
    batches: AtomicU64,
    bytes: AtomicU64,
    flushes: AtomicU64,
    nanos: AtomicU64,
}

impl Counts {
    fn add(&self, batches: usize, bytes: usize, flushed: bool, took: Duration) {
        self.batches.fetch_add(batches as u64, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.flushes.fetch_add(u64::from(flushed), Ordering::Relaxed);
        self.nanos.fetch_add(took.as_nanos() as u64, Ordering::Relaxed);
    }
}

/// How many bytes wait for the disc; `None`: nobody waits any more.
struct Queued {
    bytes: Mutex<Option<usize>>,
    less: Condvar,
}

impl Queued {
    /// Waits for room; what is larger than all the room goes alone.
    fn more(&self, bytes: usize) {
        let queued = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let full = |queued: &mut Option<usize>| queued.is_some_and(|n| n > 0 && n + bytes > QUEUE_BYTES_MAX);
        let mut queued = self.less.wait_while(queued, full).unwrap_or_else(PoisonError::into_inner);
        *queued = queued.map(|n| n + bytes);
    }

    fn less(&self, bytes: usize) {
        let mut queued = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        *queued = queued.map(|n| n.saturating_sub(bytes));
        self.less.notify_all();
    }

    /// Nothing is counted from here on.
    fn open(&self) {
        *self.bytes.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.less.notify_all();
    }
}

/// What the thread is at.
struct Work<'a, T> {
    disc: &'a Disc,
    queued: &'a Queued,
    counts: &'a Counts,
    tell: &'a T,
    /// Since when there is something that was not flushed.
    unflushed: Option<Instant>,
    /// Fragments with a batch that takes long, or with batches behind one. The first has its turn until one such batch is done.
    lines: VecDeque<(FragmentId, Line)>,
}

/// The batches of a fragment that wait for one that takes long, and that one.
#[derive(Default)]
struct Line {
    long: Option<Long>,
    behind: VecDeque<Persist>,
}

impl<'a, T: Fn(Event)> Work<'a, T> {
    fn new(disc: &'a Disc, queued: &'a Queued, counts: &'a Counts, tell: &'a T) -> Work<'a, T> {
        Work { disc, queued, counts, tell, unflushed: None, lines: VecDeque::new() }
    }

    fn run(mut self, jobs: &Receiver<(FragmentId, Persist)>) -> Result<(), StorageError> {
        loop {
            let (first, ended) = self.wait(jobs);
            let mut group: Vec<_> = first.into_iter().collect();
            while group.len() < GROUP_MAX
                && let Ok(job) = jobs.try_recv()
            {
                group.push(job);
            }
            self.take(group)?;
            self.step()?;
            if ended && self.lines.is_empty() {
                return self.disc.persist(true);
            }
        }
    }

    /// The next batch, if one comes before something else is to be done; and whether none will come any more.
    fn wait(&self, jobs: &Receiver<(FragmentId, Persist)>) -> (Option<(FragmentId, Persist)>, bool) {
        let wait = if self.lines.is_empty() {
            self.unflushed.map(|since| SYNC_INTERVAL.saturating_sub(since.elapsed()))
        } else {
            Some(Duration::ZERO)
        };
        match wait.map_or_else(|| jobs.recv().map_err(RecvTimeoutError::from), |wait| jobs.recv_timeout(wait)) {
            Ok(job) => (Some(job), false),
            Err(e) => (None, e == RecvTimeoutError::Disconnected),
        }
    }

    /// Writes what can be written at once, and has what takes long, and what comes after it, stand in line.
    fn take(&mut self, group: Vec<(FragmentId, Persist)>) -> Result<(), StorageError> {
        let mut now = Vec::new();
        for (fragment, persist) in group {
            if let Some((_, line)) = self.lines.iter_mut().find(|(of, _)| *of == fragment) {
                line.behind.push_back(persist);
            } else if matches!(persist.batch.stage, Stage::Open | Stage::Close) {
                // By itself, but small: nothing has to wait for its turn.
                self.write(std::mem::take(&mut now), false)?;
                let mut long = Long::new(fragment, persist);
                while !self.disc.step(&mut long)? {}
                self.finish(long)?;
            } else if Long::takes(&persist.batch) {
                self.lines.push_back((fragment, Line { long: None, behind: [persist].into() }));
            } else {
                now.push((fragment, persist));
            }
        }
        let late = self.unflushed.is_some_and(|since| since.elapsed() >= SYNC_INTERVAL);
        if now.is_empty() && !late { Ok(()) } else { self.write(now, late) }
    }

    fn write(&mut self, now: Vec<(FragmentId, Persist)>, sync: bool) -> Result<(), StorageError> {
        let sync = sync || now.iter().any(|(_, p)| p.sync);
        let (begun, bytes) = (Instant::now(), now.iter().map(|(_, p)| p.batch.bytes()).sum());
        let written = self.disc.write(&now, sync);
        let took = begun.elapsed();
        self.counts.add(now.len(), bytes, sync, took);
        if took >= SLOW_MIN {
            (self.tell)(Event::Slow(now.len(), bytes, took));
        }
        self.queued.less(bytes);
        written?;
        self.written(sync, now.iter().map(|(f, p)| (*f, p)));
        Ok(())
    }

    /// What was to be flushed is told.
    fn written<'p>(&mut self, flushed: bool, all: impl Iterator<Item = (FragmentId, &'p Persist)>) {
        self.unflushed = if flushed { None } else { self.unflushed.or(Some(Instant::now())) };
        let marks: BTreeMap<FragmentId, u64> = all.filter(|(_, p)| p.sync).map(|(f, p)| (f, p.mark)).collect();
        marks.into_iter().for_each(|(fragment, mark)| (self.tell)(Event::Durable(fragment, mark)));
    }

    /// The next step of the first line: one of the batch that takes long, or a few of those behind it.
    fn step(&mut self) -> Result<(), StorageError> {
        let Some((fragment, line)) = self.lines.front_mut() else { return Ok(()) };
        let fragment = *fragment;
        if let Some(long) = &mut line.long {
            if !self.disc.step(long)? {
                return Ok(());
            }
            let done = line.long.take();
            // The next one's turn.
            self.lines.rotate_left(1);
            return done.map_or(Ok(()), |long| self.finish(long));
        }
        let (mut few, mut bytes) = (Vec::new(), 0);
        while few.len() < FEW_MAX
            && bytes < FEW_BYTES_MAX
            && line.behind.front().is_some_and(|p| !Long::takes(&p.batch))
        {
            let Some(persist) = line.behind.pop_front() else { break };
            bytes += persist.batch.bytes();
            few.push((fragment, persist));
        }
        if few.is_empty()
            && let Some(persist) = line.behind.pop_front()
        {
            // What it is made of is in RAM in any case, and as a whole: nobody waits because of it.
            self.queued.less(persist.batch.bytes());
            line.long = Some(Long::new(fragment, persist));
        }
        let ended = line.long.is_none() && line.behind.is_empty();
        if ended {
            self.lines.pop_front();
        } else if !few.is_empty() {
            // A fragment that is written all the time keeps no other from its turn.
            self.lines.rotate_left(1);
        }
        if few.is_empty() { Ok(()) } else { self.write(few, false) }
    }

    fn finish(&mut self, long: Long) -> Result<(), StorageError> {
        let Long { fragment, persist, .. } = long;
        self.disc.persist(persist.sync)?;
        persist.batch.apart.iter().for_each(Place::written);
        self.written(persist.sync, [(fragment, &persist)].into_iter());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::{BranchId, Hlc, NodeId, TableId, Version};
    use bytes::Bytes;
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};
    use replica::{Meta, Record, Stage, Store, Values, WriteBatch};
    use std::sync::mpsc;

    fn fragment(index: u32) -> FragmentId {
        FragmentId { table: TableId(7), index }
    }

    fn batch(seq: u64, keys: usize, size: usize) -> WriteBatch {
        let version = Version { branch: BranchId { node: NodeId(1), n: 1 }, seq };
        let record = |_| Record { version, hlc: Hlc(seq), expires: None, value: Some(vec![seq as u8; size].into()) };
        let puts = (0..keys).map(|k| (Bytes::from(format!("\x01{k:06}")), record(k))).collect();
        WriteBatch {
            meta: Some(Meta { n: seq, ..Meta::default() }),
            heads: vec![version],
            puts,
            ..WriteBatch::default()
        }
    }

    fn open(path: &std::path::Path) -> (Disc, crate::Loaded) {
        Disc::open(path, 1).expect("opens")
    }

    #[test]
    fn what_is_durable_is_there_after_a_restart() {
        let dir = tempfile::tempdir().expect("dir");
        let (disc, loaded) = open(dir.path());
        assert!(loaded.is_empty());
        let (tx, rx) = mpsc::channel();
        let writer = Writer::start(Arc::new(disc), move |e| tx.send(e).expect("listens")).expect("thread");
        for (mark, index) in [(1, 0), (2, 0), (1, 1)] {
            writer.write(fragment(index), Persist { batch: batch(mark, 3, 10), mark, sync: true });
        }
        let mut durable = BTreeMap::new();
        while durable.get(&fragment(0)) != Some(&2) || !durable.contains_key(&fragment(1)) {
            match rx.recv_timeout(Duration::from_secs(10)).expect("durable in time") {
                Event::Durable(f, mark) => durable.insert(f, mark),
                Event::Slow(..) => None,
                Event::Failed(e) => panic!("{e}"),
            };
        }
        writer.close();
        let (_, loaded) = open(dir.path());
        assert_eq!(loaded.len(), 2);
        let stored = &loaded[&fragment(0)];
        assert_eq!((stored.meta.n, stored.store.len()), (2, 3));
        assert!(stored.store.all().all(|(_, r)| r.version().seq == 2));
    }

    #[test]
    fn a_large_batch_goes_through_the_staging_space() {
        let dir = tempfile::tempdir().expect("dir");
        let (disc, _) = open(dir.path());
        let large = Persist { batch: batch(3, 3000, 4000), mark: 1, sync: true };
        disc.write_all(vec![(fragment(0), large)], true).expect("written");
        drop(disc);
        let (_, loaded) = open(dir.path());
        let store = &loaded[&fragment(0)].store;
        assert_eq!(store.len(), 3000);
        assert!(store.all().all(|(_, r)| r.version().seq == 3 && r.value_bytes() == Some(4000)));
    }

    /// Written both ways, a small batch and one that is staged: values are found again, with the write that they are of.
    #[test]
    fn values_that_lie_apart_are_read_back_and_go_with_their_records() {
        let dir = tempfile::tempdir().expect("dir");
        let (disc, _) = open(dir.path());
        let mut store = Store::new(1);
        for (seq, keys, size) in [(1, 3, 5000), (2, 2000, 4000)] {
            let mut batch = batch(seq, keys, size);
            let place = Place::first();
            batch.apart = Some(place.clone());
            disc.write_all(vec![(fragment(0), Persist { batch, mark: seq, sync: true })], true).expect("written");
            assert!(place.is_written());
        }
        let key = |k: usize| Bytes::from(format!("\x01{k:06}"));
        let gone = Record { value: None, ..batch(3, 1, 1).puts.remove(0).1 };
        let batch = WriteBatch { puts: vec![(key(7), gone)], apart: Some(Place::first()), ..batch(3, 0, 0) };
        disc.write_all(vec![(fragment(0), Persist { batch, mark: 3, sync: true })], true).expect("written");
        drop(disc);
        let (disc, mut loaded) = open(dir.path());
        std::mem::swap(&mut store, &mut loaded.get_mut(&fragment(0)).expect("loaded").store);
        assert_eq!((store.len(), store.live_size().0), (2000, 1999));
        for (k, kept) in store.all() {
            assert!(kept.here().is_none() || kept.is_tombstone(), "{k:?} is in RAM");
            let there = disc.value(fragment(0), k).map(|(version, value)| (version, value.len()));
            assert_eq!(there, (!kept.is_tombstone()).then_some((kept.version(), 4000)));
        }
        assert_eq!(disc.value(fragment(1), &key(1)), None);
    }

    /// A delta in parts is nowhere until the batch that switches it on; what an earlier one left is forgotten, and what comes
    /// with the switch lies on top.
    #[test]
    fn a_delta_that_is_staged_becomes_true_in_one_step() {
        let dir = tempfile::tempdir().expect("dir");
        let (disc, _) = open(dir.path());
        let part = |seq, keys, stage| {
            let batch = batch(seq, keys, 300);
            let apart = Some(Place::first());
            Persist { batch: WriteBatch { meta: None, heads: vec![], apart, stage, ..batch }, mark: 1, sync: false }
        };
        let given_up = part(1, 9, Stage::Keep { first: true });
        let rest = part(2, 5, Stage::Keep { first: true });
        disc.write_all(vec![(fragment(0), given_up), (fragment(0), rest)], true).expect("written");
        drop(disc);
        let (disc, loaded) = open(dir.path());
        assert!(loaded.is_empty() && disc.value(fragment(0), b"\x01000001").is_none(), "a crash forgets it");
        let parts = [part(2, 9, Stage::Keep { first: true }), part(3, 5, Stage::Keep { first: true })];
        let switch = WriteBatch { apart: Some(Place::first()), stage: Stage::Switch, ..batch(4, 2, 300) };
        let all = parts.into_iter().chain([Persist { batch: switch, mark: 1, sync: true }]);
        disc.write_all(all.map(|p| (fragment(0), p)).collect(), true).expect("written");
        drop(disc);
        let (disc, loaded) = open(dir.path());
        let seqs: Vec<u64> = loaded[&fragment(0)].store.all().map(|(_, kept)| kept.version().seq).collect();
        assert_eq!(seqs, [4, 4, 3, 3, 3]);
        for (key, kept) in loaded[&fragment(0)].store.all() {
            let value = disc.value(fragment(0), key);
            assert_eq!(value, Some((kept.version(), vec![kept.version().seq as u8; 300].into())));
        }
    }

    #[test]
    fn damage_is_said_and_nothing_is_changed() {
        let dir = tempfile::tempdir().expect("dir");
        let (disc, _) = open(dir.path());
        disc.write_all(vec![(fragment(0), Persist { batch: batch(1, 200, 100), mark: 1, sync: true })], true)
            .expect("written");
        drop(disc);
        // Overwrite the middle of every file of some size.
        let mut stack = vec![dir.path().to_path_buf()];
        let mut hit = 0;
        while let Some(path) = stack.pop() {
            if path.is_dir() {
                stack.extend(std::fs::read_dir(&path).expect("dir").map(|e| e.expect("entry").path()));
            } else if path.metadata().expect("meta").len() > 64 {
                let mut bytes = std::fs::read(&path).expect("read");
                let at = bytes.len() / 3;
                bytes[at..at + 20].fill(0xee);
                std::fs::write(&path, bytes).expect("write");
                hit += 1;
            }
        }
        assert!(hit > 0);
        match Disc::open(dir.path(), 1) {
            Err(e) => assert!(e.to_string().contains("damaged"), "{e}"),
            Ok((_, loaded)) => {
                // The journal's tail counts as never written: then nothing of the broken batch may be claimed.
                assert!(loaded.is_empty(), "half a batch was loaded");
            }
        }
    }

    /// What takes long keeps nobody else waiting, and what comes behind it in its own fragment is not lost beneath it.
    #[test]
    fn batches_of_others_are_written_between_the_steps_of_a_long_one() {
        let dir = tempfile::tempdir().expect("dir");
        let (disc, _) = open(dir.path());
        let told = Mutex::new(Vec::new());
        let tell = |event| match event {
            Event::Durable(f, mark) => told.lock().expect("whole").push((f.index, mark)),
            Event::Slow(..) => {}
            Event::Failed(e) => panic!("{e}"),
        };
        let queued = Queued { bytes: Mutex::new(Some(0)), less: Condvar::new() };
        let counts = Counts::default();
        let mut work = Work::new(&disc, &queued, &counts, &tell);
        let job = |index, mark, seq, keys, size| {
            (fragment(index), Persist { batch: batch(seq, keys, size), mark, sync: true })
        };
        work.take(vec![job(0, 1, 1, 3000, 9000), job(1, 1, 1, 3, 10), job(0, 2, 2, 2, 10)]).expect("taken");
        let mut number = 1;
        while !work.lines.is_empty() {
            work.step().expect("a step");
            number += 1;
            work.take(vec![job(1, number, number, 3, 10)]).expect("taken");
        }
        let told = told.into_inner().expect("whole");
        let last = told.iter().position(|t| *t == (0, 1)).expect("it was written");
        assert!(last > 10 && told[..last].iter().all(|(index, _)| *index == 1), "{told:?}");
        assert_eq!(told[last + 1..].iter().find(|(index, _)| *index == 0), Some(&(0, 2)), "{told:?}");
        drop(disc);
        let (_, loaded) = open(dir.path());
        let seqs: Vec<u64> = loaded[&fragment(0)].store.all().map(|(_, kept)| kept.version().seq).collect();
        assert_eq!((&seqs[..3], seqs.len()), (&[2, 2, 1][..], 3000));
    }

    /// One fragment that is written all the time, behind a batch that took long, and another that waits for its own turn.
    #[test]
    fn no_fragment_keeps_another_from_its_turn() {
        let dir = tempfile::tempdir().expect("dir");
        let (disc, _) = open(dir.path());
        let told = Mutex::new(Vec::new());
        let tell = |event| {
            if let Event::Durable(f, _) = event {
                told.lock().expect("whole").push(f.index);
            }
        };
        let queued = Queued { bytes: Mutex::new(Some(0)), less: Condvar::new() };
        let counts = Counts::default();
        let mut work = Work::new(&disc, &queued, &counts, &tell);
        let job =
            |index, mark, keys, size| (fragment(index), Persist { batch: batch(mark, keys, size), mark, sync: true });
        work.take(vec![job(0, 1, 600, 9000)]).expect("taken");
        for mark in 2..80 {
            // More than is taken off a line at once.
            work.take(vec![job(0, 2 * mark, 60, 60_000), job(0, 2 * mark + 1, 60, 60_000)]).expect("taken");
            if mark == 20 {
                work.take(vec![job(1, 1, 600, 9000)]).expect("taken");
            }
            work.step().expect("a step");
            if told.lock().expect("whole").contains(&1) {
                return;
            }
        }
        panic!("it never had its turn");
    }

    /// What a copy is after a start: its number of branches, whether it has heads, and the version of each key.
    type State = (u64, bool, BTreeMap<Bytes, u64>);

    /// A batch of any kind, and what it makes of a copy.
    fn some(
        rng: &mut StdRng,
        apart: bool,
        seq: u64,
        staged: &mut BTreeMap<Bytes, u64>,
        state: &mut State,
    ) -> WriteBatch {
        let kind = rng.random_range(0..if apart { 7 } else { 5 });
        let (keys, size) = if kind < 3 { (rng.random_range(0..4), 10) } else { (50, 90_000) };
        let mut made = batch(seq, keys, size);
        made.apart = apart.then(Place::first);
        made.wipe = matches!(kind, 2 | 4);
        made.removes = if kind == 1 { vec![Bytes::from("\x01000003")] } else { vec![] };
        let puts: Vec<Bytes> = made.puts.iter().map(|(key, _)| key.clone()).collect();
        made.puts.retain(|(key, _)| !made.removes.contains(key));
        if kind == 5 {
            let first = staged.is_empty();
            (made.stage, made.meta, made.heads) = (Stage::Keep { first }, None, Vec::new());
            staged.extend(puts.into_iter().map(|key| (key, seq)));
            return made;
        }
        if made.wipe {
            *state = (state.0, false, BTreeMap::new());
        }
        if kind == 6 {
            made.stage = Stage::Switch;
            state.2.append(staged);
        } else if Long::takes(&made) {
            staged.clear();
        }
        (state.0, state.1) = (seq, true);
        state.2.extend(puts.into_iter().map(|key| (key, seq)));
        state.2.retain(|key, _| !made.removes.contains(key));
        made
    }

    /// Batches of all kinds, taken and stepped as chance will have it, and a crash at any point: each fragment is as it was after one of
    /// its batches, and not before one that was told to be durable.
    #[test]
    fn a_crash_at_any_point_leaves_each_fragment_as_one_of_its_batches_left_it() {
        for seed in 0..400 {
            let mut rng = StdRng::seed_from_u64(seed);
            let dir = tempfile::tempdir().expect("dir");
            let (disc, _) = open(dir.path());
            let told = Mutex::new([0u64; 2]);
            let tell = |event| match event {
                Event::Durable(f, mark) => told.lock().expect("whole")[f.index as usize] = mark,
                Event::Slow(..) => {}
                Event::Failed(e) => panic!("{e}"),
            };
            let queued = Queued { bytes: Mutex::new(Some(0)), less: Condvar::new() };
            let counts = Counts::default();
            let mut work = Work::new(&disc, &queued, &counts, &tell);
            // Of each fragment the state before its first batch and after each.
            let mut states: [Vec<State>; 2] = [vec![State::default()], vec![State::default()]];
            let mut staged: [BTreeMap<Bytes, u64>; 2] = Default::default();
            let mut group = Vec::new();
            for seq in 1..rng.random_range(2..9) {
                let index = rng.random_range(0..2u32);
                let all = &mut states[index as usize];
                let mut state = all.last().cloned().expect("one at least");
                let batch = some(&mut rng, index == 0, seq, &mut staged[index as usize], &mut state);
                let between = (all.last().expect("one at least").0, false, BTreeMap::new());
                // A copy that goes may be gone before its last word is there.
                all.extend(batch.wipe.then_some(between));
                all.push(state);
                let persist = Persist { batch, mark: all.len() as u64 - 1, sync: rng.random() };
                group.push((fragment(index), persist));
                if rng.random() {
                    work.take(std::mem::take(&mut group)).expect("taken");
                }
                (0..rng.random_range(0..3)).for_each(|_| work.step().expect("a step"));
            }
            work.take(group).expect("taken");
            (0..rng.random_range(0..12)).for_each(|_| work.step().expect("a step"));
            disc.persist(true).expect("flushed");
            let told = told.into_inner().expect("whole");
            drop(disc);
            let (disc, loaded) = open(dir.path());
            for index in [0, 1] {
                let now = loaded.get(&fragment(index)).map_or_else(State::default, |there| {
                    let row = |(k, kept): (&Bytes, &replica::Kept)| {
                        let bytes = kept.here().is_none().then(|| disc.value(fragment(index), k).map(|(v, _)| v));
                        assert!(bytes.is_none_or(|version| version == Some(kept.version())), "seed {seed}");
                        (k.clone(), kept.version().seq)
                    };
                    (there.meta.n, !there.store.heads().is_empty(), there.store.all().map(row).collect())
                });
                let all = &states[index as usize];
                let fits = all.iter().rposition(|state| *state == now);
                let least = told[index as usize] as usize;
                assert!(fits.is_some_and(|n| n >= least), "seed {seed}, {index}: {fits:?} of {least}..{}", all.len());
            }
        }
    }
}
