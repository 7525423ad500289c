//! Two islands of one filesystem: the real copies of its tables on a network of two nodes that can be cut, random operations on
//! both sides, and what must hold when they have met.

use crate::attrs::SetXattr;
use crate::error::{FsError, MountError};
use crate::fs::{Caller, Fs, Ino, Kind, MountOptions, New, Over, ROOT, SetAttr, lock, policy};
use crate::reap::Rounds;
use crate::tables::Records;
use crate::tidy::Walk;
use base::{FragmentId, Instant, NodeId, Now, TableId, Version, WallMs};
use bytes::Bytes;
use client::{Batch, Error, Heal, LedgerRow, Outcome, Range, Record, Rows, Space};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use replica::{Answer, Config, Copy, Effects, Input, MergePolicy, Meta, Msg, Reply, Request, SessionId, Store};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

/// The two copies of one table's only fragment.
pub(crate) struct Pair {
    copies: [Copy; 2],
    queue: VecDeque<(usize, Msg)>,
    replies: Vec<Reply>,
    now: u64,
    cut: bool,
    numbers: u64,
    /// What lands is sometimes refused for want of room, or nobody says whether it did.
    pub(crate) flaky: bool,
    /// How many batches were to be on disc.
    pub(crate) syncs: u64,
    /// Whose batches take long to come here.
    pub(crate) slow: BTreeSet<usize>,
    /// What one copy has on its disc in place of what was written.
    pub(crate) rot: BTreeMap<(usize, Bytes), (Version, Bytes)>,
    /// There is room for what removes alone.
    pub(crate) full: bool,
}

/// When the first step was.
const BEGAN_MS: u64 = 1_700_000_000_000;

fn at(ms: u64) -> Now {
    Now { mono: Instant(ms * 1_000_000), wall: WallMs(BEGAN_MS + ms) }
}

fn view(of: &[u64]) -> Input {
    let view = of.iter().map(|n| NodeId(*n)).collect();
    let none = BTreeSet::new;
    Input::View { view, dead: none(), gone: none(), flapping: none(), whole: !of.is_empty() }
}

impl Pair {
    fn new(table: u64, policy: &MergePolicy, seed: u64) -> Pair {
        let copy = |node: u64| {
            let config = Config {
                fragment: FragmentId { table: TableId(table), index: 0 },
                line: 0,
                me: NodeId(node),
                incarnation: 1,
                founders: vec![NodeId(1), NodeId(2)],
                storage: replica::Storage::Disc,
                values: None,
                unordered: false,
                sync: false,
                eager: false,
                opens_after: Instant(0),
                open_membership: false,
                stand_in: false,
                min_in_sync: replica::MinInSync::default(),
                ttl_ms: None,
                room: replica::Room::default(),
                evict: replica::Evict::default(),
                in_sync_max: usize::MAX,
                policy: policy.clone(),
                functions: replica::Functions::default(),
                timing: replica::Timing::default(),
                seed: seed + node,
                mutant: None,
            };
            Copy::new(at(0), config, Meta::default(), Store::new(seed + node))
        };
        let (queue, replies) = (VecDeque::new(), Vec::new());
        let mut pair = Pair {
            copies: [copy(1), copy(2)],
            queue,
            replies,
            now: 1,
            cut: false,
            numbers: 0,
            flaky: false,
            syncs: 0,
            slow: BTreeSet::new(),
            rot: BTreeMap::new(),
            full: false,
        };
        pair.feed(0, view(&[2]));
        pair.feed(1, view(&[1]));
        pair.settle();
        pair
    }

    fn feed(&mut self, i: usize, input: Input) {
        let (now, mut fx) = (at(self.now), Effects::default());
        self.copies[i].handle(now, input, &mut fx);
        self.copies[i].flush(now, &mut fx);
        while let Some(mark) = fx.persists.drain(..).map(|p| p.mark).max() {
            self.copies[i].handle(now, Input::Durable(mark), &mut fx);
            self.copies[i].flush(now, &mut fx);
        }
        if !self.cut {
            self.queue.extend(fx.sends.into_iter().map(|(to, msg)| (to.0 as usize - 1, msg)));
        }
        self.replies.extend(fx.replies.into_iter().map(|(_, reply)| reply));
    }

    fn deliver(&mut self) {
        while let Some((to, msg)) = self.queue.pop_front() {
            self.feed(to, Input::Msg(NodeId(2 - to as u64), msg));
        }
    }

    fn step(&mut self) {
        self.now += 10;
        (0..2).for_each(|i| self.feed(i, Input::Tick));
        self.deliver();
    }

    /// Until each island has one leader, and all copies of it know the same.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            self.step();
            let leads = self.copies.iter().filter(|c| c.lead().is_some_and(|l| self.cut || l.in_sync == 2)).count();
            let same = self.copies[0].store().heads() == self.copies[1].store().heads();
            if leads == if self.cut { 2 } else { 1 } && (self.cut || same) {
                return;
            }
        }
        panic!("the copies do not come to terms");
    }

    fn cut(&mut self, cut: bool) {
        self.cut = cut;
        self.queue.clear();
        self.feed(0, view(if cut { &[] } else { &[2] }));
        self.feed(1, view(if cut { &[] } else { &[1] }));
        self.settle();
    }

    /// The copy that answers for this node.
    pub(crate) fn leader(&mut self, i: usize) -> usize {
        if self.cut || self.copies[i].lead().is_some() { i } else { 1 - i }
    }

    pub(crate) fn rows(&mut self, i: usize, ranges: Vec<Range>) -> Vec<Rows> {
        self.feed(i, Input::Read(0, ranges));
        match self.reply() {
            Some(Reply::Rows(rows)) => rows,
            other => panic!("{other:?}"),
        }
    }

    fn spoil(&self, copy: usize, key: &Bytes, row: &mut Record) {
        if let Some((version, bad)) = self.rot.get(&(copy, key.clone()))
            && *version == row.version
        {
            row.value = Some(bad.clone());
        }
    }

    fn reply(&mut self) -> Option<Reply> {
        for _ in 0..500 {
            self.deliver();
            if let Some(reply) = self.replies.pop() {
                return Some(reply);
            }
            self.step();
        }
        None
    }
}

/// One node's look at a table.
pub(crate) struct Side {
    pair: Arc<Mutex<Pair>>,
    me: usize,
}

impl Side {
    /// Others may be first.
    async fn way(&self) {
        let turns = lock(&self.pair).numbers % 3;
        for _ in 0..turns {
            tokio::task::yield_now().await;
        }
    }

    pub(crate) async fn batch(&self, batch: Batch) -> Result<Outcome, Error> {
        self.way().await;
        let slow = lock(&self.pair).slow.contains(&self.me);
        if slow {
            tokio::time::sleep(std::time::Duration::from_millis(30)).await;
        }
        self.decide(batch)
    }

    fn decide(&self, batch: Batch) -> Result<Outcome, Error> {
        let mut pair = lock(&self.pair);
        pair.numbers += 1;
        pair.syncs += u64::from(batch.sync);
        let (number, i) = (pair.numbers, pair.leader(self.me));
        // What lands, and what is made of what could not.
        let lands = batch.writes.iter().any(|w| matches!(w.key()[..9], [0, 0, 0, 0, 0, 0, 0, 0, b'W' | b'Y']));
        let deletes = batch.writes.iter().any(|w| matches!(w, client::Write::Delete { .. }));
        let puts: usize =
            batch.writes.iter().map(|w| if let client::Write::Put { value, .. } = w { value.len() } else { 0 }).sum();
        if pair.full && !batch.writes.is_empty() && !(deletes && puts <= 4096) {
            return Ok(Outcome::Failed(client::Refusal::NoSpace));
        }
        let chance = if pair.flaky && lands { number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 60 } else { 9 };
        match chance {
            0 => return Ok(Outcome::Failed(client::Refusal::NoSpace)),
            1 | 2 => return Ok(Outcome::Unknown),
            _ => {}
        }
        let Some(lead) = pair.copies[i].lead() else { return Err(Error::Ended) };
        let session = SessionId { node: NodeId(self.me as u64 + 1), incarnation: 1 };
        let request = Request { session, number, done_through: number, branches: vec![lead.branch], batch };
        pair.feed(i, Input::Write(number, request));
        match pair.reply() {
            // It was done, and the answer was lost.
            Some(Reply::Write(Answer::Outcome(..))) if matches!(chance, 3 | 4) => Ok(Outcome::Unknown),
            Some(Reply::Write(Answer::Outcome(outcome, _))) => Ok(outcome),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn read(&self, ranges: Vec<Range>) -> Result<Vec<Rows>, Error> {
        self.way().await;
        self.rows(ranges)
    }

    fn rows(&self, ranges: Vec<Range>) -> Result<Vec<Rows>, Error> {
        let mut pair = lock(&self.pair);
        let i = pair.leader(self.me);
        let mut rows = pair.rows(i, ranges);
        rows.iter_mut().flat_map(|rows| &mut rows.rows).for_each(|(key, row)| pair.spoil(i, key, row));
        Ok(rows)
    }

    /// As each copy has it on its disc.
    pub(crate) fn copies(&self, key: &Bytes) -> Vec<Record> {
        let mut pair = lock(&self.pair);
        let i = pair.leader(self.me);
        let found = pair.rows(i, vec![Range::key(key.clone())]).into_iter().flat_map(|rows| rows.rows).next();
        let Some((_, row)) = found else { return Vec::new() };
        let mut both = vec![row.clone(), row];
        both.iter_mut().enumerate().for_each(|(copy, row)| pair.spoil(copy, key, row));
        both
    }

    fn space(&self, space: Space, from: Bytes) -> Result<Rows, Error> {
        let range = Range { space, from, to: None, limit: 100_000 };
        Ok(self.rows(vec![range])?.into_iter().next().unwrap_or_default())
    }

    pub(crate) fn heals(&self) -> Result<Vec<Heal>, Error> {
        Ok(self.space(Space::Heals, Bytes::new())?.rows.iter().flat_map(|(_, row)| Heal::read(row)).collect())
    }

    #[allow(clippy::type_complexity)]
    pub(crate) fn ledger(&self, from: Bytes) -> Result<(Vec<(Bytes, LedgerRow)>, Option<Bytes>), Error> {
        let rows = self.space(Space::Ledger, from)?.rows;
        Ok((rows.into_iter().filter_map(|(at, row)| Some((at.clone(), LedgerRow::read(&at, &row)?))).collect(), None))
    }
}

/// Two mounts of one filesystem.
pub(crate) struct World {
    pub(crate) tables: [Arc<Mutex<Pair>>; 2],
    pub(crate) mounts: Vec<Arc<Fs>>,
    pub(crate) rounds: [Rounds; 2],
    pub(crate) rng: StdRng,
    pub(crate) tokens: u64,
    /// A mount may have been taken for gone: what it does may fail.
    pub(crate) shaken: bool,
    /// What each side has seen, ever.
    pub(crate) seen: [BTreeSet<String>; 2],
    /// What was written, and acknowledged.
    pub(crate) written: BTreeSet<String>,
    /// What somebody who saw it wanted removed, or written over.
    pub(crate) given_up: BTreeSet<String>,
}

/// Tries something again that fails for a while.
async fn again<T, F: Future<Output = Result<T, FsError>>>(what: impl Fn() -> F) -> Result<T, String> {
    for _ in 0..100 {
        match what().await {
            Err(FsError::Unavailable | FsError::NoSpace) => {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
            done => return done.map_err(|e| e.to_string()),
        }
    }
    Err("it does not answer for good".into())
}

/// Something that is made.
pub(crate) fn new(kind: Kind) -> New {
    New { kind, mode: 0o755, umask: 0, uid: 0, gid: 0, rdev: 0, target: None }
}

/// A file that was made, and not written.
const EMPTY: &str = "-";

/// What a side sees: paths, and what lies there.
pub(crate) type Tree = BTreeMap<String, String>;

/// A mount on one side.
async fn mount(tables: &[Arc<Mutex<Pair>>; 2], me: usize, delegate: bool) -> Result<Arc<Fs>, MountError> {
    let side = |n: usize| Records::Model(Arc::new(Side { pair: tables[n].clone(), me }));
    let (name, options) = (format!("n{}", me + 1), MountOptions { delegate, ..MountOptions::default() });
    let fs = Arc::new(Fs::begin(None, (side(0), side(1)), ("shared", &name), options, "/".into()).await?);
    fs.keep_delegations();
    Ok(fs)
}

impl World {
    pub(crate) async fn new(seed: u64) -> World {
        World::with(seed, false).await
    }

    /// `delegate`: each mount has to itself what it works in alone.
    pub(crate) async fn with(seed: u64, delegate: bool) -> World {
        let pair = |table, policy: &MergePolicy| Arc::new(Mutex::new(Pair::new(table, policy, seed)));
        let tables = [pair(1, &policy()), pair(2, &MergePolicy::default())];
        let mut mounts = Vec::new();
        for me in 0..2 {
            mounts.push(mount(&tables, me, delegate).await.expect("mounted"));
        }
        let rng = StdRng::seed_from_u64(seed);
        World {
            tables,
            mounts,
            rounds: Default::default(),
            rng,
            tokens: 0,
            shaken: false,
            seen: Default::default(),
            written: BTreeSet::new(),
            given_up: BTreeSet::new(),
        }
    }

    /// Another mount on that side.
    pub(crate) async fn mount(&self, me: usize) -> Result<Arc<Fs>, MountError> {
        mount(&self.tables, me, false).await
    }

    /// A side that answers nobody, and from which nothing lands by itself.
    pub(crate) fn freeze(&self, side: usize, so: bool) {
        self.mounts[side].delegations.frozen.store(so, Ordering::Relaxed);
    }

    /// Time passes until today.
    pub(crate) fn is_today(&self) {
        for pair in &self.tables {
            let mut pair = lock(pair);
            pair.now = crate::fs::wall_ns() / 1_000_000 - BEGAN_MS;
            pair.settle();
        }
    }

    /// One of the tables alone: the names, or the bytes.
    pub(crate) fn cut_table(&self, table: usize, cut: bool) {
        lock(&self.tables[table]).cut(cut);
    }

    pub(crate) fn cut(&self, cut: bool) {
        self.tables.iter().for_each(|pair| lock(pair).cut(cut));
    }

    /// All paths that a side sees: directories with nothing, files with what they hold.
    pub(crate) async fn tree(&self, side: usize) -> Result<Tree, String> {
        let (fs, mut out) = (&self.mounts[side], Tree::new());
        let mut todo = vec![(ROOT, String::new(), 0)];
        while let Some((dir, path, depth)) = todo.pop() {
            if depth > 100 {
                return Err(format!("a circle at {path}"));
            }
            let handle = fs.opendir(dir);
            for e in &again(|| fs.listing(handle, true)).await?.entries[2..] {
                let path = format!("{path}/{}", String::from_utf8_lossy(&e.name));
                let stands = again(|| fs.lookup(dir, &e.name)).await?.is_ok();
                if !stands {
                    continue;
                }
                match e.kind {
                    Kind::Directory => {
                        out.insert(path.clone(), String::new());
                        todo.push((e.ino, path, depth + 1));
                    }
                    _ => {
                        let bytes = again(|| fs.read(e.ino, 0, 1 << 20)).await.map_err(|e| format!("{path}: {e}"))?;
                        let start = String::from_utf8_lossy(&bytes[..bytes.len().min(8)]).into_owned();
                        out.insert(path, if start.is_empty() { EMPTY.into() } else { start });
                    }
                }
            }
            fs.release(handle).await;
        }
        Ok(out)
    }

    async fn find(&self, side: usize, path: &str) -> Option<Ino> {
        let mut at = ROOT;
        for name in path.split('/').filter(|n| !n.is_empty()) {
            at = self.mounts[side].lookup(at, name.as_bytes()).await.ok()?.ok()?.0.ino;
        }
        Some(at)
    }

    pub(crate) async fn write(&mut self, side: usize, ino: Ino) -> Result<(), FsError> {
        self.tokens += 1;
        let large = self.rng.random_bool(0.2);
        let token = format!("{:08}", self.tokens);
        let text = token.repeat(if large { 10_000 } else { 1 });
        let fs = &self.mounts[side];
        let (handle, _) = fs.open(ino, false).await?;
        fs.setattr(ino, SetAttr { size: Some(0), ..SetAttr::default() }).await?;
        fs.write(handle, 0, text.as_bytes(), false).await?;
        fs.flush(handle).await?;
        fs.release(handle).await;
        self.written.insert(token);
        Ok(())
    }

    /// Writes somewhere in a file, and leaves how it begins.
    async fn write_into(&mut self, side: usize, ino: Ino) -> Result<(), FsError> {
        let at = self.rng.random_range(8..100_000);
        let fs = &self.mounts[side];
        let (handle, _) = fs.open(ino, false).await?;
        fs.write(handle, at, &at.to_be_bytes(), false).await?;
        fs.flush(handle).await?;
        fs.release(handle).await;
        Ok(())
    }

    /// Looks for what may be freed, and tidies.
    pub(crate) async fn reap(&mut self, side: usize) -> Result<(), String> {
        match self.mounts[side].reap(&mut self.rounds[side]).await {
            // Bytes that have not come yet are waited for, and room.
            Ok(()) | Err(FsError::Unavailable | FsError::NoSpace) => Ok(()),
            Err(e) => Err(e.to_string()),
        }
    }

    /// One random operation. What cannot be done is not done.
    pub(crate) async fn operate(&mut self, side: usize) -> Result<(), String> {
        let tree = self.tree(side).await?;
        self.seen[side].extend(tokens(&tree));
        let tree: Vec<(String, String)> = tree.into_iter().collect();
        let mut dirs: Vec<&str> = tree.iter().filter(|(_, t)| t.is_empty()).map(|(p, _)| p.as_str()).collect();
        dirs.retain(|path| path.matches('/').count() < 4);
        dirs.push("");
        let pick = |rng: &mut StdRng, n: usize| rng.random_range(0..n);
        let dir = dirs[pick(&mut self.rng, dirs.len())];
        let to = dirs[pick(&mut self.rng, dirs.len())];
        let name = ["a", "b", "c"][pick(&mut self.rng, 3)];
        let over = format!("{to}/{name}");
        let chosen = (!tree.is_empty()).then(|| tree[pick(&mut self.rng, tree.len())].0.clone());
        let (Some(dir), Some(to)) = (self.find(side, dir).await, self.find(side, to).await) else { return Ok(()) };
        let what = self.rng.random_range(0..20);
        let loses = match (what, &chosen) {
            (9..=13, Some(path)) => path,
            _ => &over,
        };
        if matches!(what, 9..=15) {
            self.given_up.extend(tree.iter().filter(|(path, _)| path == loses).map(|(_, token)| token.clone()));
        }
        let fs = &self.mounts[side];
        match (what, chosen) {
            (19, _) => self.reap(side).await?,
            (0..=3, _) => drop(fs.make(dir, name.as_bytes(), new(Kind::Directory)).await),
            (4..=7, _) => {
                if let Ok((made, _)) = fs.make(dir, name.as_bytes(), new(Kind::File)).await {
                    let done = self.write(side, made.ino).await;
                    self.must(done);
                }
            }
            (_, Some(path)) => {
                let (parent, old) = path.rsplit_once('/').expect("a path");
                let (Some(parent), Some(ino)) = (self.find(side, parent).await, self.find(side, &path).await) else {
                    return Ok(());
                };
                let is_dir = tree.iter().any(|(p, t)| *p == path && t.is_empty());
                match what {
                    8 if !is_dir => {
                        let done = self.write_into(side, ino).await;
                        self.must(done);
                    }
                    9..=10 if !is_dir => {
                        let done = self.write(side, ino).await;
                        self.must(done);
                    }
                    11..=13 => drop(self.mounts[side].remove(parent, old.as_bytes(), is_dir).await),
                    14..=16 => {
                        let over = if what == 16 { Over::Exchange } else { Over::Replace };
                        drop(fs.rename(parent, old.as_bytes(), to, name.as_bytes(), over).await);
                    }
                    17 if !is_dir => drop(fs.link(ino, to, name.as_bytes()).await),
                    18 => drop(fs.setattr(ino, SetAttr { mode: Some(0o700), ..SetAttr::default() }).await),
                    _ => {}
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Both sides do something with one name at the same moment.
    pub(crate) async fn race(&mut self) -> Result<(), String> {
        let tree: Vec<(String, String)> = self.tree(0).await?.into_iter().collect();
        let mut dirs: Vec<&str> = tree.iter().filter(|(_, t)| t.is_empty()).map(|(p, _)| p.as_str()).collect();
        dirs.retain(|path| path.matches('/').count() < 4);
        dirs.push("");
        let (dir, to) = (dirs[self.rng.random_range(0..dirs.len())], dirs[self.rng.random_range(0..dirs.len())]);
        let (Some(dir), Some(to)) = (self.find(0, dir).await, self.find(0, to).await) else { return Ok(()) };
        let what = [self.rng.random_range(0..6), self.rng.random_range(0..6)];
        let one = |side: usize| {
            let fs = self.mounts[side].clone();
            async move {
                match what[side] {
                    0..=1 => fs.make(dir, b"a", new(Kind::File)).await.map(|made| (true, Some(made.0.ino))),
                    2 => fs.make(dir, b"a", new(Kind::Directory)).await.map(|_| (true, None)),
                    3 => fs.remove(dir, b"a", side == 0).await.map(|()| (false, None)),
                    4 => fs.rename(dir, b"a", to, b"b", Over::Replace).await.map(|()| (false, None)),
                    _ => fs.rename(to, b"b", dir, b"a", Over::Keep).await.map(|()| (true, None)),
                }
            }
        };
        let (one, two) = tokio::join!(one(0), one(1));
        self.given_up.extend(tokens(&tree.into_iter().collect()));
        let before = self.tokens;
        for (side, done) in [&one, &two].into_iter().enumerate() {
            if let Ok((_, Some(ino))) = done {
                // The other may have removed it.
                drop(self.write(side, *ino).await);
            }
        }
        self.given_up.extend((before..self.tokens).map(|n| format!("{:08}", n + 1)));
        match (one, two) {
            (Ok((true, _)), Ok((true, _))) if !what.contains(&4) => Err(format!("both of {what:?} got the name")),
            _ => Ok(()),
        }
    }

    /// A side works in a directory until it has that to itself. What happens then is what is tried.
    pub(crate) async fn alone(&mut self, side: usize) -> Result<(), String> {
        let tree = self.tree(side).await?;
        let mut dirs: Vec<&str> = tree.iter().filter(|(_, t)| t.is_empty()).map(|(p, _)| p.as_str()).collect();
        dirs.push("");
        let dir = dirs[self.rng.random_range(0..dirs.len())];
        let Some(dir) = self.find(side, dir).await else { return Ok(()) };
        match self.rng.random_range(0..4) {
            0 if self.shaken => self.rob(side, dir).await,
            1 => self.outrun(side, dir).await,
            2 => self.overtake(side, dir).await,
            _ => self.deepen(side, dir).await,
        }
    }

    /// Something is made and removed, often enough to be alone afterwards, if nobody else comes.
    pub(crate) async fn warm(&self, side: usize, dir: Ino, pauses: Vec<u64>) {
        for ms in pauses {
            if self.mounts[side].make(dir, b"d", new(Kind::File)).await.is_ok() {
                tokio::time::sleep(std::time::Duration::from_millis(ms)).await;
                drop(self.mounts[side].remove(dir, b"d", false).await);
            }
        }
    }

    /// The other is slow to make something; meanwhile this side gets the directory to itself.
    async fn outrun(&mut self, side: usize, dir: Ino) -> Result<(), String> {
        let begins = self.rng.random_range(0..10);
        let pauses = (0..30).map(|_| self.rng.random_range(0..4)).collect();
        lock(&self.tables[0]).slow.insert(1 - side);
        let busy = async {
            tokio::time::sleep(std::time::Duration::from_millis(begins)).await;
            self.warm(side, dir, pauses).await;
        };
        tokio::join!(busy, async { drop(self.mounts[1 - side].make(dir, b"d", new(Kind::File)).await) });
        lock(&self.tables[0]).slow.clear();
        Ok(())
    }

    /// What was acknowledged does not land for a while; what comes later is not sent before it.
    async fn overtake(&mut self, side: usize, dir: Ino) -> Result<(), String> {
        self.warm(side, dir, vec![5; 4]).await;
        let (fs, caller) = (&self.mounts[side], Caller { uid: 0, gids: Vec::new() });
        let set = |value: &'static [u8]| fs.setxattr(dir, b"user.t", value, SetXattr::Any, &caller);
        if set(b"earlier").await.is_err() {
            return Ok(());
        }
        lock(&self.tables[0]).full = true;
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        lock(&self.tables[0]).full = false;
        let later = set(b"later").await.is_ok();
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        let is = fs.getxattr(dir, b"user.t").await;
        if later && is.as_deref() == Ok(b"earlier") { Err("what came later was written over".into()) } else { Ok(()) }
    }

    /// A directory in it, and something in that: the other sees it in the same moment, though it knows nothing of the one above.
    async fn deepen(&mut self, side: usize, dir: Ino) -> Result<(), String> {
        self.warm(side, dir, vec![5; 4]).await;
        let Ok((made, _)) = self.mounts[side].make(dir, b"e", new(Kind::Directory)).await else { return Ok(()) };
        again(|| self.mounts[side].land_all(false)).await?;
        let file = self.mounts[side].make(made.ino, b"a", new(Kind::File)).await;
        let seen = again(|| self.mounts[1 - side].lookup(made.ino, b"a")).await?;
        if file.is_ok() && seen.is_err() { Err("it is not seen".into()) } else { Ok(()) }
    }

    /// It falls silent with what it was told is done; the other does the same, and is first.
    async fn rob(&mut self, side: usize, dir: Ino) -> Result<(), String> {
        self.warm(side, dir, vec![5; 4]).await;
        self.freeze(side, true);
        for side in [side, 1 - side] {
            for name in [b"a", b"f"] {
                match self.mounts[side].make(dir, name, new(Kind::File)).await {
                    Ok((made, _)) => drop(self.write(side, made.ino).await),
                    Err(_) => continue,
                }
            }
        }
        self.freeze(side, false);
        tokio::time::sleep(std::time::Duration::from_secs(5)).await;
        Ok(())
    }

    /// The tree as a side sees it who asks nobody.
    pub(crate) async fn glance(&self, side: usize) -> Result<Tree, String> {
        let rule = crate::tidy::LEFT_OUT.replace("recall");
        let tree = self.tree(side).await;
        crate::tidy::LEFT_OUT.set(rule);
        tree
    }

    /// The disc is full for a while, with something on its way: all that is there can be read, and what is there removed.
    pub(crate) async fn fill_up(&mut self, side: usize) -> Result<(), String> {
        for _ in 0..8 {
            self.operate(side).await?;
        }
        lock(&self.tables[0]).full = true;
        for _ in 0..8 {
            self.operate(side).await?;
            self.wait(20).await;
        }
        let tree = self.tree(side).await.map_err(|e| format!("a full disc: {e}"))?;
        if self.tree(1 - side).await.map_err(|e| format!("a full disc, from elsewhere: {e}"))? != tree {
            return Err("a full disc, and two trees".into());
        }
        if let Some((path, token)) = tree.iter().find(|(_, text)| !text.is_empty()) {
            self.given_up.insert(token.clone());
            let (dir, name) = path.rsplit_once('/').expect("a path");
            let dir = self.find(side, dir).await.ok_or("it was there")?;
            let gone = again(|| self.mounts[side].remove(dir, name.as_bytes(), false)).await;
            gone.map_err(|e| format!("a full disc, and a file stays: {e}"))?;
        }
        lock(&self.tables[0]).full = false;
        Ok(())
    }

    /// Both sides look around.
    pub(crate) async fn look(&mut self) -> Result<(), String> {
        for side in 0..2 {
            let tree = self.glance(side).await?;
            self.seen[side].extend(tokens(&tree));
        }
        Ok(())
    }

    /// How much could not land where it was meant to.
    pub(crate) async fn salvaged(&self) -> usize {
        let range = Range::prefix(crate::record::key(0, b'Y', &[]), 100_000);
        let rows = self.mounts[0].meta.read(&[0; 8], vec![range]).await.expect("read").remove(0).rows;
        let said = rows.iter().filter_map(|(_, row)| row.value.as_ref());
        said.filter(|said| String::from_utf8_lossy(said).contains("taken for gone")).count()
    }

    /// Some milliseconds go by.
    pub(crate) async fn wait(&mut self, most: u64) {
        let ms = self.rng.random_range(0..most);
        tokio::time::sleep(std::time::Duration::from_millis(ms)).await;
    }

    /// What was written, and acknowledged, is there, unless somebody who saw it wanted it gone.
    pub(crate) fn is_kept(&self, after: &Tree) -> Result<(), String> {
        let have = tokens(after);
        let lost: Vec<_> = self.written.difference(&self.given_up).filter(|token| !have.contains(*token)).collect();
        if lost.is_empty() { Ok(()) } else { Err(format!("{lost:?} are lost: {after:#?}")) }
    }

    /// Nothing is refused, unless a mount was taken for gone.
    fn must(&self, done: Result<(), FsError>) {
        let later = matches!(done, Err(FsError::Unavailable | FsError::NoSpace));
        let table = lock(&self.tables[0]);
        assert!(done.is_ok() || self.shaken || (later && (table.flaky || table.full)), "{done:?}");
    }

    pub(crate) async fn tidy(&self) -> Result<usize, String> {
        let side = self.tokens as usize % 2;
        self.mounts[side].tidy(true, drop).await.map_err(|e| e.to_string())
    }

    /// The tree is sound, and the same from both sides.
    pub(crate) async fn check(&self) -> Result<Tree, String> {
        for fs in &self.mounts {
            // However often it must be tried.
            while fs.land_all(false).await.is_err() {}
        }
        for side in 0..2 {
            let walk = self.mounts[side].walk(Walk::new(false, true, true)).await.expect("walked");
            if !walk.found.is_empty() {
                return Err(format!("{:?}", walk.found));
            }
        }
        let (one, two) = (self.tree(0).await?, self.tree(1).await?);
        if one == two { Ok(one) } else { Err(format!("{one:?} is not {two:?}")) }
    }
}

pub(crate) fn tokens(tree: &Tree) -> BTreeSet<String> {
    tree.values().filter(|t| !t.is_empty() && *t != EMPTY).cloned().collect()
}
