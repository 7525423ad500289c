//! Batches that take long, because they are large or because much has to go first: they are done in steps, between which batches
//! of other fragments are written. A crash between any two steps leaves all of such a batch, or nothing.

use crate::StorageError;
use crate::disc::{Disc, FOLD, HEAD, TO_PART, TO_WHOLE, WHOLE, prefix, split, staged_tag, with};
use base::FragmentId;
use bytes::Bytes;
use fjall::Keyspace;
use postcard::from_bytes;
use replica::{Persist, Record, Stage, WriteBatch};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

/// A batch above this is staged in pieces and switched on at the end; also what one step writes at most, about.
const PIECE_BYTES: usize = 4 * 1024 * 1024;
/// So many rows are removed in one step.
const PIECE_ROWS: usize = 4096;

/// A staged batch is complete, and is to be moved over.
const SWITCH: u8 = b's';
/// All records of the fragment are to be removed.
const WIPE: u8 = b'w';

/// A batch that is done in steps.
pub(crate) struct Long {
    pub(crate) fragment: FragmentId,
    pub(crate) persist: Persist,
    /// What is to be done; not known before it is begun, when all before it is written.
    steps: Option<VecDeque<Step>>,
}

/// What is to be done; those that go through rows know where they are.
#[derive(Debug)]
enum Step {
    /// Heads go, and what follows does not count until the mark that is set does not stand any more: a crash leaves no heads without
    /// their records, and no records without their heads.
    Begin,
    /// A mark means nothing any more.
    Unmark(u8),
    /// All rows go.
    Clear(Rows, Option<Vec<u8>>),
    /// Records from this one on go to the staging space, beside those that are there already; or at once where they belong.
    Put(Rows, usize),
    /// Heads move, and what is staged counts.
    Switch,
    /// Heads move, and what was put counts.
    Become,
    /// What is staged goes where it belongs.
    Drain(Option<Vec<u8>>),
    /// All of the batch at once.
    Fill,
}

#[derive(Clone, Copy, Debug)]
enum Rows {
    Staging,
    Records,
    Values,
}

/// The mark goes first: from then on the pieces mean nothing.
fn clear_staging() -> [Step; 2] {
    [Step::Unmark(SWITCH), Step::Clear(Rows::Staging, None)]
}

fn wipe() -> Vec<Step> {
    let rows = [Step::Clear(Rows::Records, None), Step::Clear(Rows::Values, None), Step::Unmark(WIPE)];
    clear_staging().into_iter().chain(rows).collect()
}

fn drain() -> [Step; 2] {
    [Step::Drain(None), Step::Unmark(SWITCH)]
}

fn is_large(batch: &WriteBatch) -> bool {
    batch.bytes() > PIECE_BYTES && !matches!(batch.stage, Stage::Keep { .. })
}

impl Long {
    pub(crate) fn new(fragment: FragmentId, persist: Persist) -> Long {
        Long { fragment, persist, steps: None }
    }

    /// Does this batch take long?
    pub(crate) fn takes(batch: &WriteBatch) -> bool {
        let alone = matches!(batch.stage, Stage::Switch | Stage::Keep { first: true } | Stage::Open | Stage::Close);
        batch.wipe || is_large(batch) || alone
    }
}

/// All keys of a fragment after this one.
fn rest(fragment: FragmentId, after: Option<Vec<u8>>) -> (Bound<Vec<u8>>, Bound<Vec<u8>>) {
    let mut end = prefix(fragment);
    while end.last() == Some(&0xff) {
        end.pop();
    }
    let end = match end.last_mut() {
        Some(last) => {
            *last += 1;
            Bound::Excluded(end)
        }
        None => Bound::Unbounded,
    };
    (after.map_or(Bound::Included(prefix(fragment)), Bound::Excluded), end)
}

impl Disc {
    /// What is to be done for a batch, all before it being written.
    fn steps(&self, fragment: FragmentId, batch: &WriteBatch) -> Result<VecDeque<Step>, StorageError> {
        let mut steps = VecDeque::new();
        match batch.stage {
            Stage::Open => return Ok([Step::Begin].into()),
            Stage::Close => return Ok([Step::Become].into()),
            Stage::None | Stage::Keep { .. } | Stage::Switch => {}
        }
        if batch.wipe {
            steps.push_back(Step::Begin);
            steps.extend(wipe());
        }
        let (staged, large) = (batch.stage == Stage::Switch, is_large(batch));
        if !staged {
            steps.extend(clear_staging());
        }
        if large && !staged && (batch.wipe || self.is_empty(fragment)?) {
            // There is nothing that has to stay until all of it is there.
            steps.extend([Step::Begin, Step::Put(Rows::Records, 0), Step::Become]);
        } else if staged || large {
            steps.extend([Step::Put(Rows::Staging, 0), Step::Switch]);
            steps.extend(drain());
        } else {
            steps.push_back(Step::Fill);
        }
        Ok(steps)
    }

    /// Neither heads nor records, nor a mark that it is to stay so if the node crashes?
    fn is_empty(&self, fragment: FragmentId) -> Result<bool, StorageError> {
        let heads = [HEAD, FOLD, WIPE].map(|tag| self.state.prefix(with(fragment, &[&[tag]])));
        let records = self.records.prefix(prefix(fragment));
        match heads.into_iter().flatten().chain(records).next().map(|row| row.key()) {
            Some(Err(e)) => Err(self.failed(e)),
            first => Ok(first.is_none()),
        }
    }

    /// Does the next step of a batch; `true` when that was the last one.
    pub(crate) fn step(&self, long: &mut Long) -> Result<bool, StorageError> {
        let (fragment, batch) = (long.fragment, &long.persist.batch);
        let steps = match &mut long.steps {
            Some(steps) => steps,
            none => none.insert(self.steps(fragment, batch)?),
        };
        let again = match steps.pop_front() {
            None => None,
            Some(Step::Begin) => self.begin(fragment)?,
            Some(Step::Unmark(mark)) => {
                self.state.remove(with(fragment, &[&[mark]])).map_err(|e| self.failed(e))?;
                None
            }
            Some(Step::Clear(rows, after)) => self.clear(fragment, rows, after)?,
            Some(Step::Put(rows, from)) => self.put_some(fragment, batch, rows, from)?,
            Some(step @ (Step::Switch | Step::Become)) => {
                let mut out = self.db.batch();
                self.fill_state(&mut out, fragment, batch)?;
                if let Step::Switch = step {
                    out.insert(&self.state, with(fragment, &[&[SWITCH]]), []);
                } else {
                    out.remove(&self.state, with(fragment, &[&[WIPE]]));
                }
                out.commit().map_err(|e| self.failed(e))?;
                None
            }
            Some(Step::Drain(after)) => self.drain(fragment, after)?,
            Some(Step::Fill) => {
                let mut out = self.db.batch();
                self.fill(&mut out, fragment, batch)?;
                out.commit().map_err(|e| self.failed(e))?;
                None
            }
        };
        again.into_iter().for_each(|step| steps.push_front(step));
        Ok(steps.is_empty())
    }

    fn begin(&self, fragment: FragmentId) -> Result<Option<Step>, StorageError> {
        let failed = |e| self.failed(e);
        let mut out = self.db.batch();
        for tag in [HEAD, FOLD] {
            for row in self.state.prefix(with(fragment, &[&[tag]])) {
                out.remove(&self.state, row.key().map_err(failed)?);
            }
        }
        out.insert(&self.state, with(fragment, &[&[WIPE]]), []);
        out.commit().map_err(failed)?;
        Ok(None)
    }

    fn clear(&self, fragment: FragmentId, rows: Rows, after: Option<Vec<u8>>) -> Result<Option<Step>, StorageError> {
        let failed = |e| self.failed(e);
        let space: &Keyspace = match rows {
            Rows::Staging => &self.staging,
            Rows::Records => &self.records,
            Rows::Values => &self.values,
        };
        let (mut out, mut last, mut count) = (self.db.batch(), None, 0);
        for row in space.range(rest(fragment, after)).take(PIECE_ROWS) {
            let key = row.key().map_err(failed)?;
            (last, count) = (Some(key.to_vec()), count + 1);
            out.remove(space, key);
        }
        out.commit().map_err(failed)?;
        Ok((count == PIECE_ROWS).then_some(Step::Clear(rows, last)))
    }

    fn put_some(
        &self,
        fragment: FragmentId,
        batch: &WriteBatch,
        rows: Rows,
        from: usize,
    ) -> Result<Option<Step>, StorageError> {
        let (mut out, mut size, mut next) = (self.db.batch(), 0, from);
        let staged = matches!(rows, Rows::Staging);
        let tag = staged_tag(batch);
        for (key, record) in batch.puts.iter().skip(from) {
            if staged {
                out.insert(&self.staging, with(fragment, &[key]), self.row(tag, record)?);
            } else {
                self.put(&mut out, fragment, batch, key, record)?;
            }
            size += key.len() + record.value.as_ref().map_or(0, Bytes::len);
            next += 1;
            if size > PIECE_BYTES || next - from >= PIECE_ROWS {
                break;
            }
        }
        for key in batch.removes.iter().skip(next.saturating_sub(batch.puts.len())) {
            if next < batch.puts.len() || next - from >= PIECE_ROWS {
                break;
            }
            if staged {
                // An empty value says: remove.
                out.insert(&self.staging, with(fragment, &[key]), []);
            } else {
                self.remove(&mut out, fragment, key);
            }
            next += 1;
        }
        out.commit().map_err(|e| self.failed(e))?;
        Ok((next < batch.puts.len() + batch.removes.len()).then_some(Step::Put(rows, next)))
    }

    fn drain(&self, fragment: FragmentId, after: Option<Vec<u8>>) -> Result<Option<Step>, StorageError> {
        let failed = |e| self.failed(e);
        let (mut out, mut size, mut count, mut last) = (self.db.batch(), 0, 0, None);
        for row in self.staging.range(rest(fragment, after)) {
            let (key, value) = row.into_inner().map_err(failed)?;
            (size, count) = (size + key.len() + value.len(), count + 1);
            last = Some(key.to_vec());
            out.remove(&self.staging, key.clone());
            match value.split_first() {
                None => {
                    out.remove(&self.values, key.clone());
                    out.remove(&self.records, key);
                }
                Some((&TO_PART, rest)) => {
                    let record: Record = from_bytes(rest).map_err(|e| self.damaged(e))?;
                    let (_, own) = split(&key).ok_or_else(|| self.damaged("a staged key"))?;
                    self.fill_parted(&mut out, key.to_vec(), own, &record)?;
                }
                Some((&TO_WHOLE, rest)) => {
                    out.remove(&self.values, key.clone());
                    out.insert(&self.records, key, [&[WHOLE], rest].concat());
                }
                Some(_) => out.insert(&self.records, key, value),
            }
            if size > PIECE_BYTES || count >= PIECE_ROWS {
                break;
            }
        }
        out.commit().map_err(failed)?;
        Ok((size > PIECE_BYTES || count >= PIECE_ROWS).then_some(Step::Drain(last)))
    }

    /// After a crash: what was switched on is moved over, what was not is forgotten.
    pub(crate) fn finish_switches(&self) -> Result<(), StorageError> {
        let mut todo: BTreeMap<FragmentId, VecDeque<Step>> = BTreeMap::new();
        for row in self.staging.iter() {
            let key = row.key().map_err(|e| self.failed(e))?;
            if let Some((fragment, _)) = split(&key) {
                todo.entry(fragment).or_insert_with(|| clear_staging().into());
            }
        }
        for row in self.state.iter() {
            let key = row.key().map_err(|e| self.failed(e))?;
            match split(&key) {
                // Whoever goes needs nothing that was staged.
                Some((fragment, [SWITCH])) => drop(todo.insert(fragment, drain().into())),
                Some((fragment, [WIPE])) => drop(todo.insert(fragment, wipe().into())),
                _ => {}
            }
        }
        for (fragment, steps) in todo {
            let persist = Persist { batch: WriteBatch::default(), mark: 0, sync: false };
            let mut long = Long { fragment, persist, steps: Some(steps) };
            while !self.step(&mut long)? {}
        }
        Ok(())
    }

    /// All of it, in order.
    #[cfg(test)]
    pub(crate) fn write_all(&self, jobs: Vec<(FragmentId, Persist)>, sync: bool) -> Result<(), StorageError> {
        for (fragment, persist) in jobs {
            if !Long::takes(&persist.batch) {
                self.write(&[(fragment, persist)], false)?;
                continue;
            }
            let mut long = Long::new(fragment, persist);
            while !self.step(&mut long)? {}
            long.persist.batch.apart.iter().for_each(replica::Place::written);
        }
        self.persist(sync)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::{BranchId, Hlc, NodeId, TableId, Version};
    use replica::{Meta, Place, Values};

    /// What a copy shows: its number of branches, its heads, and of each key the version and the value's bytes.
    type Shown = (u64, usize, BTreeMap<Bytes, (Version, usize)>);

    fn version(seq: u64) -> Version {
        Version { branch: BranchId { node: NodeId(1), n: 1 }, seq }
    }

    fn key(k: u32) -> Bytes {
        Bytes::from([&[1], &k.to_be_bytes()[..]].concat())
    }

    fn batch(apart: bool, seq: u64, puts: std::ops::Range<u32>, bytes: usize) -> WriteBatch {
        let record =
            || Record { version: version(seq), hlc: Hlc(seq), expires: None, value: Some(vec![7; bytes].into()) };
        WriteBatch {
            meta: Some(Meta { n: seq, ..Meta::default() }),
            heads: vec![version(seq)],
            puts: puts.map(|k| (key(k), record())).collect(),
            apart: apart.then(Place::first),
            ..WriteBatch::default()
        }
    }

    fn persist(batch: WriteBatch) -> Persist {
        Persist { batch, mark: 1, sync: true }
    }

    /// As it is after a start; nothing is left in the staging space, and no value without its record.
    fn shown(path: &std::path::Path, fragment: FragmentId, apart: bool) -> Shown {
        let (disc, loaded) = Disc::open(path, 1).expect("opens");
        let none = (0, 0, BTreeMap::new());
        let Some(there) = loaded.get(&fragment) else {
            assert_eq!(
                (disc.records.iter().count(), disc.values.iter().count()),
                (0, 0),
                "nothing that nobody knows of"
            );
            return none;
        };
        let row = |(k, kept): (&Bytes, &replica::Kept)| {
            let bytes = kept.value_bytes().expect("none is deleted");
            let on_disc = disc.value(fragment, k).map(|(version, value)| (version, value.len()));
            assert_eq!(on_disc, apart.then_some((kept.version(), bytes)), "{k:?}");
            (k.clone(), (kept.version(), bytes))
        };
        let rows: BTreeMap<_, _> = there.store.all().map(row).collect();
        assert_eq!((disc.staging.iter().count(), disc.values.iter().count()), (0, if apart { rows.len() } else { 0 }));
        (there.meta.n, there.store.heads().len(), rows)
    }

    #[test]
    fn a_crash_between_any_two_steps_leaves_all_of_a_batch_or_nothing() {
        let cases = |apart: bool| {
            let removes = (0..5).map(key).collect();
            let kept = batch(apart, 2, 50..60, 1000);
            let kept = WriteBatch { meta: None, heads: vec![], stage: Stage::Keep { first: true }, ..kept };
            let switch = WriteBatch { stage: Stage::Switch, ..batch(apart, 2, 60..70, 1000) };
            let large = WriteBatch { removes, ..batch(apart, 2, 5..600, 20_000) };
            let gone = WriteBatch { wipe: true, meta: Some(Meta { n: 2, ..Meta::default() }), ..WriteBatch::default() };
            let anew = WriteBatch { wipe: true, ..batch(apart, 2, 100..700, 20_000) };
            let first = || batch(apart, 1, 0..20, 1000);
            let new = batch(apart, 2, 5..600, 20_000);
            let mut all = vec![(vec![first()], large), (vec![first()], gone), (vec![first()], anew), (vec![], new)];
            all.extend(apart.then(|| (vec![first(), kept], switch)));
            all
        };
        // The second looks like the mark of a switch.
        let plain = (false, FragmentId { table: TableId(7), index: 0 });
        let odd = (true, FragmentId { table: TableId(0x7300_0000_0000_0007), index: 0xffff });
        for (apart, fragment) in [plain, odd] {
            for (number, (before, last)) in cases(apart).into_iter().enumerate() {
                let mut seen = Vec::new();
                for steps in 0.. {
                    let dir = tempfile::tempdir().expect("dir");
                    let (disc, _) = Disc::open(dir.path(), 1).expect("opens");
                    let before = before.iter().map(|b| (fragment, persist(b.clone()))).collect();
                    disc.write_all(before, true).expect("written");
                    let mut long = Long::new(fragment, persist(last.clone()));
                    let done = (0..steps).any(|_| disc.step(&mut long).expect("a step"));
                    disc.persist(true).expect("flushed");
                    drop(disc);
                    let now = shown(dir.path(), fragment, apart);
                    if seen.last() != Some(&now) {
                        seen.push(now);
                    }
                    if done {
                        break;
                    }
                }
                // All that was there before; nothing, while a copy goes; and what came.
                let states: Vec<_> = seen.iter().map(|(n, heads, rows)| (*n, *heads, rows.len())).collect();
                let expected: &[(u64, usize, usize)] = match number {
                    0 => &[(1, 1, 20), (2, 1, 595)],
                    1 => &[(1, 1, 20), (1, 0, 0), (2, 0, 0)],
                    2 => &[(1, 1, 20), (1, 0, 0), (2, 1, 600)],
                    3 => &[(0, 0, 0), (2, 1, 595)],
                    _ => &[(1, 1, 20), (2, 1, 40)],
                };
                assert_eq!(states, expected, "case {number}, apart {apart}");
            }
        }
    }

    /// A copy that goes to the disc while it is in use, and one that leaves it: whatever is put and removed on the way counts when all is
    /// there, and not before, large batches too.
    #[test]
    fn nothing_counts_between_an_opening_and_its_close() {
        let fragment = FragmentId { table: TableId(7), index: 0 };
        let between = |puts, bytes| WriteBatch { heads: vec![], meta: None, ..batch(false, 2, puts, bytes) };
        let mark = |stage| WriteBatch { stage, ..WriteBatch::default() };
        let jobs = || {
            let gone = WriteBatch { removes: (0..500).map(key).collect(), ..WriteBatch::default() };
            let heads = vec![version(2)];
            [
                batch(false, 1, 0..20, 1000),
                mark(Stage::Open),
                between(0..400, 20_000),
                WriteBatch { removes: vec![key(7)], ..between(400..410, 10) },
                WriteBatch { heads, ..mark(Stage::Close) },
                mark(Stage::Open),
                gone,
                mark(Stage::Close),
            ]
        };
        let expected = [0, 20, 0, 0, 0, 409, 0, 0, 0];
        for (count, rows) in expected.into_iter().enumerate() {
            let dir = tempfile::tempdir().expect("dir");
            let (disc, _) = Disc::open(dir.path(), 1).expect("opens");
            let first = jobs().into_iter().take(count).map(|b| (fragment, persist(b)));
            disc.write_all(first.collect(), true).expect("written");
            drop(disc);
            let (n, heads, there) = shown(dir.path(), fragment, false);
            assert_eq!((n, heads, there.len()), (count.min(1) as u64, usize::from(rows > 0), rows), "after {count}");
        }
    }

    /// Values that come back to their records are not kept twice, whichever way they are written.
    #[test]
    fn values_that_are_gathered_leave_their_own_place() {
        let fragment = FragmentId { table: TableId(7), index: 0 };
        for bytes in [100, 20_000] {
            let dir = tempfile::tempdir().expect("dir");
            let (disc, _) = Disc::open(dir.path(), 1).expect("opens");
            let back = WriteBatch { gathered: true, ..batch(false, 2, 0..400, bytes) };
            let jobs = [batch(true, 1, 0..400, bytes), back].map(|b| (fragment, persist(b)));
            disc.write_all(jobs.into(), true).expect("written");
            drop(disc);
            let (_, _, there) = shown(dir.path(), fragment, false);
            assert!(there.len() == 400 && there.values().all(|(version, _)| version.seq == 2));
        }
    }
}
