use super::client::{KEYS, Op, Pending, key};
use super::world::{Node, id, index};
use base::{BranchId, Heads, NodeId, Version};
use bytes::Bytes;
use replica::{Copy, Effects, Floor, MergeRule, Outcome, Record, Rows, Space, Store};
use std::collections::{BTreeMap, BTreeSet};

/// How long after two nodes were last apart one may still not see the other's writes, in microseconds: three leases.
const APART_US: u64 = 900_000;

/// One write of one key, as the all-seeing checker knows it.
struct Wrote {
    key: Bytes,
    version: Version,
    /// All writes of this key that its leader's copy held when it was made, itself included: the ground truth of causality,
    /// kept apart from heads and stamps.
    knew: BTreeSet<usize>,
    value: Option<Bytes>,
    /// Nobody asked for it: something had to go, or had expired.
    cleared: bool,
    acked: Option<Acked>,
    /// When, in microseconds, and whether it was acknowledged by copies that keep what they acknowledge.
    made: u64,
    firm: bool,
}

#[derive(Clone)]
struct Acked {
    at: u64,
    /// The branch whose leader said so.
    branch: BranchId,
    set: BTreeSet<NodeId>,
    /// The writer was told; else it was only shown to a reader.
    told: bool,
}

/// Watches every step of every copy.
pub(crate) struct Checker {
    writes: Vec<Wrote>,
    by_version: BTreeMap<(Version, Bytes), usize>,
    by_request: BTreeMap<usize, Vec<usize>>,
    bases: BTreeMap<BranchId, Heads>,
    opened: BTreeMap<BranchId, u64>,
    /// How far branches went that are folded: what a crash took beyond that never was anywhere else.
    ends: BTreeMap<BranchId, u64>,
    heads_before: Heads,
    /// The in-sync set in force before the step: it may go through several in one.
    pub in_force_before: BTreeSet<NodeId>,
    /// How many records the stepping node's copy held that count for its bound, and those of them that never expire.
    held_before: u64,
    lasting_before: Vec<Bytes>,
    /// When two nodes were last apart.
    apart: Vec<Vec<u64>>,
    /// Which nodes lost a version in a crash.
    lost: BTreeMap<Version, BTreeSet<NodeId>>,
    /// And which gave it away on purpose.
    wiped: BTreeMap<Version, BTreeSet<NodeId>>,
    /// Nodes that do not come back: what they alone had goes with them.
    pub buried: BTreeSet<NodeId>,
    /// Every write is on disc before it is acknowledged.
    flushed: bool,
    /// Values may be written again as they are, to live longer.
    pub touches: bool,
    /// How many records a copy may hold.
    pub bound: Option<u64>,
    now: u64,
    /// Each write takes more than half of the copies: no two sides may both acknowledge.
    majority: bool,
    /// What the stepping node's copy knew of each key before the step.
    knew_before: BTreeMap<Bytes, BTreeSet<usize>>,
}

fn users(key: &Bytes) -> bool {
    key.first() == Some(&(Space::User as u8))
}

impl Checker {
    pub(crate) fn new(n: usize, flushed: bool, majority: bool) -> Checker {
        Checker {
            writes: Vec::new(),
            by_version: BTreeMap::new(),
            by_request: BTreeMap::new(),
            bases: BTreeMap::new(),
            opened: BTreeMap::new(),
            ends: BTreeMap::new(),
            heads_before: Heads::default(),
            in_force_before: BTreeSet::new(),
            held_before: 0,
            lasting_before: Vec::new(),
            apart: vec![vec![0; n]; n],
            lost: BTreeMap::new(),
            wiped: BTreeMap::new(),
            buried: BTreeSet::new(),
            flushed,
            touches: false,
            bound: None,
            now: 0,
            majority: majority && flushed,
            knew_before: BTreeMap::new(),
        }
    }

    /// Each write is taken by a majority, and no side goes on without one.
    pub(crate) fn is_majority(&self) -> bool {
        self.majority
    }

    /// Somebody will insist that a side goes on without a majority.
    pub(crate) fn insisted(&mut self, insisted: bool) {
        self.majority &= !insisted;
    }

    /// Copies may come to keep nothing on disc.
    pub(crate) fn lossy(&mut self, lossy: bool) {
        self.flushed &= !lossy;
        self.majority &= !lossy;
    }

    pub(crate) fn opened(&mut self, branch: BranchId, now: u64) {
        self.opened.insert(branch, now);
    }

    /// What a store knows of a key: the record's causes, and those of every ledger row.
    fn knows(&self, store: &Store, stored: &Bytes) -> BTreeSet<usize> {
        self.knows_with(store, stored, store.get(stored).map(|r| r.version()))
    }

    /// The same, were this version shown.
    fn knows_with(&self, store: &Store, stored: &Bytes, shown: Option<Version>) -> BTreeSet<usize> {
        let mut known = BTreeSet::new();
        let mut add = |version: Version| {
            if let Some(w) = self.by_version.get(&(version, stored.clone())) {
                known.extend(&self.writes[*w].knew);
            }
        };
        // What is forgotten can be in conflict with nothing: a stand-in, which never knew it, writes after it.
        self.forgotten(store, stored).chain(shown).for_each(&mut add);
        let prefix = &stored[1..];
        for (k, _) in
            store.space(Space::Ledger).filter(|(k, _)| k.len() == 25 + prefix.len() && k[1..].starts_with(prefix))
        {
            add(ledger_version(k));
        }
        known
    }

    /// The tombstones of a key that this store has forgotten, and those that nobody asked for: what they took is gone for good, wherever
    /// they are.
    fn forgotten<'a>(&'a self, store: &'a Store, stored: &'a Bytes) -> impl Iterator<Item = Version> + 'a {
        // Of all lines: in no history here two parts are joined of what was one.
        let floors = store.space(Space::Floor).filter_map(|(_, kept)| kept.here()?.value.clone());
        let floors: Vec<Floor> = floors.filter_map(|floor| postcard::from_bytes(&floor).ok()).collect();
        let purged = move |v: Version| floors.iter().any(|floor| floor.purged.covers(v)) && self.claims(store, v);
        self.writes
            .iter()
            .filter(move |w| w.key == *stored && w.value.is_none())
            .filter(move |w| purged(w.version) || (w.cleared && self.claims(store, w.version)))
            .map(|w| w.version)
    }

    /// Equal values written apart are no conflict: one of the two goes without a ledger row, and what it had superseded is
    /// then superseded by its equal.
    fn with_equals(&self, mut known: BTreeSet<usize>, stored: &Bytes) -> BTreeSet<usize> {
        loop {
            let equal = |x: &Wrote, y: &usize| {
                let y = &self.writes[*y];
                x.value == y.value && !y.knew.iter().any(|w| self.writes[*w].version == x.version)
            };
            let gone = |(wid, x): &(usize, &Wrote)| {
                x.key == *stored && !known.contains(wid) && known.iter().any(|y| !x.knew.contains(y) && equal(x, y))
            };
            let Some((_, x)) = self.writes.iter().enumerate().find(gone) else { return known };
            known.extend(x.knew.clone());
        }
    }

    pub(crate) fn before(&mut self, _node: usize, copy: &Copy) {
        let known = (0..KEYS).map(stored).map(|k| (k.clone(), self.knows(copy.store(), &k))).collect();
        self.knew_before = known;
        self.heads_before.clone_from(copy.store().heads());
        self.held_before = copy.store().live_size().0;
        let lasting =
            copy.store().space(Space::User).filter(|(_, kept)| !kept.is_tombstone() && kept.expires().is_none());
        self.lasting_before = lasting.map(|(key, _)| key.clone()).collect();
        self.in_force_before = copy.inspect().in_force;
    }

    /// H1, H2, H3 and invariant 7 after a step, and the ground truth of what it wrote.
    pub(crate) fn after(&mut self, node: usize, copy: &Copy, fx: &Effects) -> Option<String> {
        for v in self.heads_before.iter().filter(|v| copy.store().heads().is_folded(v.branch)) {
            let end = self.ends.entry(v.branch).or_insert(0);
            *end = v.seq.max(*end);
        }
        if fx.persists.iter().any(|p| p.batch.wipe) {
            for w in self.writes.iter().filter(|w| self.heads_before.covers(w.version)) {
                self.wiped.entry(w.version).or_default().insert(id(node));
            }
        }
        for persist in &fx.persists {
            self.learn(node, copy, &persist.batch.puts);
        }
        if fx.persists.is_empty() && copy.store().is_empty() {
            return None;
        }
        // `ram` tables persist nothing: look at the store itself.
        let fresh: Vec<(Bytes, Record)> = copy
            .store()
            .all()
            .filter(|(_, r)| r.version().branch.node == id(node))
            .filter_map(|(k, _)| Some((k.clone(), copy.store().find(k)?)))
            .collect();
        self.learn(node, copy, &fresh);
        // `ram` tables hand nothing to the disc.
        let moved = self.heads_before != *copy.store().heads();
        self.bounded(node, copy)
            .or_else(|| self.holds(node, copy))
            .or_else(|| if moved { self.complete(node, copy) } else { None })
    }

    /// A leader never goes beyond its bound by itself.
    fn bounded(&self, node: usize, copy: &Copy) -> Option<String> {
        let led = copy.lead()?.branch;
        let (held, most) = (copy.store().live_size().0, self.bound?);
        let went_on = self.heads_before.seq(led) > 0;
        if went_on && held > most && held > self.held_before {
            return Some(format!("copy {node} holds {held} records, and may hold {most}"));
        }
        let cleared =
            |key: &Bytes| copy.store().get(key).is_some_and(|kept| kept.is_cleared() && kept.version().branch == led);
        let gone = self.lasting_before.iter().any(cleared);
        (went_on && gone && held < most)
            .then(|| format!("copy {node} evicted something, and holds {held} of {most} records"))
    }

    /// H3: whatever the heads claim is there, superseded by one that knew it, or in the ledger.
    fn complete(&self, node: usize, copy: &Copy) -> Option<String> {
        let store = copy.store();
        for key in (0..KEYS).map(stored) {
            let claimed = |(wid, w): &(usize, &Wrote)| {
                w.key == key
                    && self.claims(store, w.version)
                    && self.by_version.get(&(w.version, key.clone())) == Some(wid)
            };
            let missed = |known: &BTreeSet<usize>| {
                let all = self.writes.iter().enumerate().filter(claimed);
                all.filter(|(wid, _)| !known.contains(wid)).map(|(_, w)| w.version).next()
            };
            let known = self.knows(store, &key);
            if missed(&known).is_some()
                && let Some(version) = missed(&self.with_equals(known, &key))
            {
                return Some(format!("H3: copy {node} claims {version:?} of {key:?} and has it nowhere"));
            }
        }
        None
    }

    /// Was it not taken back by a crash before it left its node?
    fn stands(&self, w: &Wrote) -> bool {
        self.by_version.get(&(w.version, w.key.clone())).is_some_and(|wid| std::ptr::eq(&self.writes[*wid], w))
    }

    /// Do the heads say so? Of what is folded, what a crash took beyond the end never was anywhere else.
    fn claims(&self, store: &Store, version: Version) -> bool {
        store.heads().covers(version) && self.ends.get(&version.branch).is_none_or(|end| version.seq <= *end)
    }

    fn learn(&mut self, node: usize, copy: &Copy, puts: &[(Bytes, Record)]) {
        let mine = |r: &Record| r.version.branch.node == id(node);
        for (k, r) in puts.iter().filter(|(_, r)| mine(r)) {
            let Some(branch) = branch_of(k).filter(|b| *b == r.version.branch) else { continue };
            let base = copy.store().heads().clone().without(branch);
            self.bases.entry(branch).or_insert(base);
        }
        for (k, r) in puts.iter().filter(|(k, r)| users(k) && mine(r)) {
            if self.by_version.contains_key(&(r.version, k.clone())) {
                continue;
            }
            let wid = self.writes.len();
            let mut knew = self.knew_before.get(k).cloned().unwrap_or_default();
            // A record that the opening itself made (field-wise max) knew all that it was made of.
            if r.version.seq == 1 {
                knew.extend(
                    (0..wid)
                        .filter(|w| self.writes[*w].key == *k && self.claims(copy.store(), self.writes[*w].version)),
                );
            }
            knew.insert(wid);
            self.knew_before.insert(k.clone(), knew.clone());
            self.by_version.insert((r.version, k.clone()), wid);
            // What an opening makes is nobody's request.
            let touched = |w: &usize| self.touches && *w != wid && self.writes[*w].value == r.value;
            if let Some(number) = request_of(r).filter(|_| r.version.seq != 1 && !knew.iter().any(touched)) {
                self.by_request.entry(number).or_default().push(wid);
            }
            self.writes.push(Wrote {
                key: k.clone(),
                version: r.version,
                knew,
                value: r.value.clone(),
                cleared: r.is_cleared(),
                acked: None,
                made: self.now,
                firm: false,
            });
        }
    }

    fn holds(&self, node: usize, copy: &Copy) -> Option<String> {
        let store = copy.store();
        for (k, r) in store.all() {
            if !store.heads().covers(r.version()) {
                return Some(format!("H2: copy {node} holds {k:?} of {:?} beyond its heads", r.version()));
            }
        }
        for key in (0..KEYS).map(stored) {
            let Some(kept) = store.get(&key) else { continue };
            let cleared = kept.is_cleared() && store.floor().cleared.covers(kept.version());
            if cleared || (kept.is_tombstone() && store.floor().purged.covers(kept.version())) {
                let (floor, at) = (store.floor(), kept.version());
                return Some(format!("copy {node} keeps a tombstone of {key:?}, {at:?}, below its floor {floor:?}"));
            }
            let Some(shown) = self.by_version.get(&(kept.version(), key.clone())) else { continue };
            let beaten = |w: &Wrote| w.version != kept.version() && w.knew.contains(shown);
            let by = self
                .writes
                .iter()
                .find(|w| w.key == key && beaten(w) && self.stands(w) && self.claims(store, w.version));
            if let Some(Wrote { version: by, .. }) = by {
                return Some(format!(
                    "invariant 4: copy {node} shows {:?} of {key:?}, which {by:?} knew",
                    kept.version()
                ));
            }
        }
        for head in store.heads().iter() {
            if let Some(base) = self.bases.get(&head.branch)
                && !base.within(store.heads())
            {
                return Some(format!("H1: copy {node} holds {head:?} without its base {base:?}: {:?}", store.heads()));
            }
        }
        for (k, _) in store.space(Space::Ledger) {
            let (key, version) = (stored_of_ledger(k), ledger_version(k));
            let Some(w) = self.by_version.get(&(version, key.clone())) else { continue };
            // What had to go, or had expired, is in conflict with nothing.
            let apart = |o: &Wrote| o.key == key && !o.cleared && !o.knew.contains(w);
            let real = self.writes.iter().enumerate().any(|(i, o)| apart(o) && !self.writes[*w].knew.contains(&i));
            if !real {
                return Some(format!("invariant 7: {version:?} stands in the ledger without a true conflict"));
            }
        }
        None
    }

    /// An acknowledgement: two committed entries of different ballots share no in-sync member unless one base contains the
    /// other.
    pub(crate) fn acknowledged(
        &mut self,
        version: Version,
        branch: BranchId,
        set: BTreeSet<NodeId>,
        now: u64,
        firm: Option<u64>,
    ) -> Option<String> {
        let mut clash = None;
        for other in self.writes.iter().filter_map(|w| Some((w.version, w.acked.as_ref()?))) {
            let (v, acked) = other;
            let (mine, theirs) = (self.bases.get(&branch)?, self.bases.get(&acked.branch)?);
            let related = acked.branch == branch || mine.covers(v) || theirs.covers(version);
            let shared = acked.set.iter().any(|n| set.contains(n) && !self.is_without(*n, v));
            if v.branch == acked.branch
                && version.branch == branch
                && !related
                && (shared || self.majority && acked.told)
            {
                let what = format!("{version:?} by {set:?} and {v:?} by {:?}", acked.set);
                clash = Some(format!("invariant 2: two leaders committed apart with a shared copy: {what}"));
            }
        }
        for ((v, _), wid) in self.by_version.range((version, Bytes::new())..) {
            if *v != version {
                break;
            }
            let acked = Acked { at: now, branch, set: set.clone(), told: true };
            let write = &mut self.writes[*wid];
            write.acked.get_or_insert(acked).told = true;
            write.firm |= firm.is_some_and(|since| since < write.made);
        }
        clash
    }

    /// Invariant 2 for a read by a leader, or by a copy that follows one.
    pub(crate) fn read(
        &mut self,
        node: usize,
        branch: BranchId,
        (leads, set): (bool, &BTreeSet<NodeId>),
        store: &Store,
        rows: &[Rows],
        (since, now): (u64, u64),
    ) -> Option<String> {
        for k in 0..KEYS {
            let stored = stored(k);
            let shown = rows.iter().flat_map(|r| &r.rows).find(|(rk, _)| *rk == key(k)).map(|(_, r)| r.version);
            if let Some(wid) = shown.and_then(|version| self.by_version.get(&(version, stored.clone()))) {
                // What was once shown must be there for ever, acknowledged or not.
                self.writes[*wid].acked.get_or_insert(Acked { at: now, branch, set: set.clone(), told: false });
            }
            // Deleted or never there: what the copy knows is the best that can be said.
            let shown = shown.or_else(|| store.get(&stored).map(|r| r.version()));
            let mut known = self.knows_with(store, &stored, shown);
            let missed = |(wid, w): &(usize, &Wrote)| {
                w.key == stored && !known.contains(wid) && w.acked.as_ref().is_some_and(|a| a.at < since)
            };
            if self.writes.iter().enumerate().any(|w| missed(&w)) {
                known = self.with_equals(known, &stored);
            }
            for (wid, w) in self.writes.iter().enumerate().filter(|(_, w)| w.key == stored) {
                let Some(acked) = w.acked.as_ref().filter(|a| a.at < since && !known.contains(&wid)) else { continue };
                if self.excused(w) {
                    continue;
                }
                // A follower answers for itself alone: who else is in sync with its leader may be on another side by now.
                let mine = if leads { set } else { &BTreeSet::new() };
                if let Some(why) = self.one_side(node, branch, mine, acked, w.version) {
                    let w = format!("{:?} acknowledged at {} under {:?}", w.version, acked.at / 1000, acked.branch);
                    return Some(format!(
                        "invariant 2: a read at {node} under {branch:?} of key {k} missed {w}: {why}"
                    ));
                }
            }
        }
        None
    }

    /// Why these two served one side; `None` if they may have been apart.
    fn one_side(
        &self,
        node: usize,
        branch: BranchId,
        set: &BTreeSet<NodeId>,
        acked: &Acked,
        version: Version,
    ) -> Option<&'static str> {
        let kept = |n: &NodeId| acked.set.contains(n) && !self.is_without(*n, version);
        let opened = |b: &BranchId| self.opened.get(b).copied().unwrap_or(0);
        let since = opened(&branch).max(opened(&acked.branch)).saturating_sub(APART_US);
        // A copy that follows is on its leader's side.
        let together = |n: usize| self.apart[n][index(acked.branch.node)] < since;
        if acked.branch == branch {
            Some("one branch")
        } else if kept(&id(node)) {
            Some("this copy was in sync")
        } else if set.iter().any(kept) {
            Some("a copy in sync with both")
        } else if kept(&acked.branch.node) && together(node) && together(index(branch.node)) {
            Some("never apart")
        } else {
            None
        }
    }

    /// A stand-in has given away what it had: whoever holds it by now answers for it.
    pub(crate) fn handed_over(&mut self, node: usize, nodes: &[Node]) {
        for w in &mut self.writes {
            let gave = self.wiped.get(&w.version).is_some_and(|from| from.contains(&id(node)));
            if let Some(acked) = w.acked.as_mut().filter(|_| gave) {
                acked.set.remove(&id(node));
                let holds = |n: &Node| n.copy.as_ref().is_some_and(|c| c.store().heads().covers(w.version));
                acked.set.extend((0..nodes.len()).filter(|n| holds(&nodes[*n])).map(id));
            }
        }
    }

    /// Has this node lost a version that it had, or given it away?
    fn is_without(&self, node: NodeId, version: Version) -> bool {
        [&self.lost, &self.wiped].into_iter().any(|all| all.get(&version).is_some_and(|nodes| nodes.contains(&node)))
    }

    /// Lost by the stated limits: every copy that was in sync when it was acknowledged lost it unflushed in a crash, or was
    /// buried.
    fn excused(&self, w: &Wrote) -> bool {
        let lost = self.lost.get(&w.version).filter(|_| !self.flushed && !w.firm);
        let without = |node: &NodeId| self.buried.contains(node) || lost.is_some_and(|lost| lost.contains(node));
        let taken = lost.is_some() || !self.buried.is_empty();
        taken && w.acked.as_ref().is_some_and(|a| a.set.iter().all(without))
    }

    /// A crash: `n` branches of this node are on disc. A later one never left it, and its number may be used again.
    pub(crate) fn crashed(&mut self, node: usize, had: &Heads, has: &Heads, (line, n): (u32, u64)) {
        let kept = |b: &BranchId| b.node != id(node) || b.line() != line || u64::from(b.nth()) <= n;
        self.bases.retain(|b, _| kept(b));
        self.by_version.retain(|(v, _), _| kept(&v.branch));
        for w in self.writes.iter().filter(|w| had.covers(w.version) && !has.covers(w.version)) {
            self.lost.entry(w.version).or_default().insert(id(node));
        }
    }

    /// Notes which nodes are apart now: cut, down, or out of each other's view.
    pub(crate) fn separate(&mut self, now: u64, nodes: &[Node], wired: &[Vec<bool>]) {
        self.now = now;
        for a in 0..nodes.len() {
            for b in 0..a {
                let down = nodes[a].copy.is_none() || nodes[b].copy.is_none();
                let unseen = !nodes[a].view.contains(&b) || !nodes[b].view.contains(&a);
                let silent = nodes[a].paused > now || nodes[b].paused > now;
                if down || unseen || silent || !wired[a][b] || !wired[b][a] {
                    (self.apart[a][b], self.apart[b][a]) = (now, now);
                }
            }
        }
    }

    /// Invariant 1 at the end: every acknowledged write is there, superseded by one that knew it, or in the ledger.
    pub(crate) fn account(&self, store: &Store, rule: &MergeRule) -> Option<String> {
        let max = *rule == MergeRule::Max;
        let made = max || matches!(rule, MergeRule::Min | MergeRule::Function(_));
        for (wid, w) in self.writes.iter().enumerate().filter(|(_, w)| w.acked.is_some()) {
            let there = || self.with_equals(self.knows(store, &w.key), &w.key).contains(&wid);
            let lost = |key: &Bytes| store.get(&ledger_key(key, w.version)).is_some();
            if self.majority && !made && w.acked.as_ref().is_some_and(|a| a.told) && lost(&w.key) {
                return Some(format!("invariant 1: {:?}, acknowledged by a majority, lost a conflict", w.version));
            }
            if !self.excused(w) && !there() {
                return Some(format!("invariant 1: acknowledged {:?} of {:?} is gone", w.version, w.key));
            }
            let now = store.find(&w.key).and_then(|r| r.value);
            if max && !self.excused(w) && !at_least(now.as_ref(), w.value.as_ref()) {
                return Some(format!("invariant 1: field-wise max of {:?} is below {:?}", w.key, w.version));
            }
        }
        None
    }

    /// Invariant 4: applied at most once, never after a refusal, never lost after an acknowledgement.
    pub(crate) fn request(&self, pending: &Pending, store: &Store) -> Option<String> {
        let number = pending.request.number as usize;
        let wids = self.by_request.get(&number).into_iter().flatten();
        let versions: BTreeSet<Version> = wids
            .filter(|w| self.knows(store, &self.writes[**w].key).contains(w))
            .map(|w| self.writes[*w].version)
            .collect();
        let say = |what: &str| Some(format!("invariant 4: request {number} {:?} {what}: {versions:?}", pending.op));
        match &pending.outcome {
            _ if matches!(pending.op, Op::Delete | Op::Touch | Op::BumpMax) => None,
            _ if versions.len() > 1 => say("was applied twice"),
            Some(Outcome::Failed(_)) if !versions.is_empty() => say("was refused, and applied"),
            _ => None,
        }
    }
}

fn stored(k: u8) -> Bytes {
    Bytes::copy_from_slice(&[Space::User as u8, k])
}

fn at_least(now: Option<&Bytes>, then: Option<&Bytes>) -> bool {
    let (Some(now), Some(then)) = (now, then) else { return then.is_none() };
    now.chunks(8).zip(then.chunks(8)).all(|(a, b)| a >= b)
}

/// The request that a value names: the last eight bytes.
fn request_of(record: &Record) -> Option<usize> {
    let value = record.value.as_ref()?;
    Some(u64::from_be_bytes(value[value.len().checked_sub(8)?..].try_into().ok()?) as usize)
}

fn branch_at(key: &[u8]) -> BranchId {
    let number = |at: usize| u64::from_be_bytes(key[at..at + 8].try_into().unwrap_or_default());
    BranchId { node: NodeId(number(0)), n: number(8) }
}

fn branch_of(key: &Bytes) -> Option<BranchId> {
    (key.first() == Some(&(Space::Branch as u8)) && key.len() == 17).then(|| branch_at(&key[1..]))
}

fn ledger_version(key: &Bytes) -> Version {
    let tail = &key[key.len() - 24..];
    let seq = u64::from_be_bytes(tail[16..].try_into().unwrap_or_default());
    Version { branch: branch_at(tail), seq }
}

fn ledger_key(stored: &Bytes, version: Version) -> Bytes {
    let mut key = vec![Space::Ledger as u8];
    key.extend_from_slice(&stored[1..]);
    for part in [version.branch.node.0, version.branch.n, version.seq] {
        key.extend_from_slice(&part.to_be_bytes());
    }
    key.into()
}

fn stored_of_ledger(key: &Bytes) -> Bytes {
    let mut stored = vec![Space::User as u8];
    stored.extend_from_slice(&key[1..key.len() - 24]);
    stored.into()
}
