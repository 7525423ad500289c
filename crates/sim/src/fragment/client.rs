use super::turns::Turns;
use super::world::{Event, World, id, index};
use base::{BranchId, NodeId, Version};
use bytes::Bytes;
use rand::RngExt;
use replica::{
    Answer, Batch, Bump, Check, Input, MergeRule, MinInSync, Outcome, Range, Refusal, Request, Rows, SessionId, Space,
    Write,
};
use std::collections::BTreeSet;

/// How many users' keys there are: few, so that writers meet.
pub(crate) const KEYS: u8 = 3;
const TRIES_MAX: u32 = 12;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Op {
    Put,
    Delete,
    /// Changes when what is there expires.
    Touch,
    PutIfAbsent,
    Swap,
    /// Two keys at once.
    Pair,
    BumpMax,
    BumpAdd,
    Read,
}

fn everything() -> Vec<Range> {
    vec![Range { space: Space::User, from: Bytes::new(), to: None, limit: 100 }]
}

/// A request under way, or ended.
pub(crate) struct Pending {
    pub op: Op,
    pub request: Request,
    pub tries: u32,
    pub outcome: Option<Outcome>,
    pub home: usize,
}

pub(crate) fn key(n: u8) -> Bytes {
    Bytes::copy_from_slice(&[n])
}

impl World {
    pub(crate) fn client(&mut self) {
        self.follow();
        let k = self.rng.random_range(0..KEYS);
        let home = self.rng.random_range(0..self.nodes.len());
        let op = match self.rng.random_range(0..20) {
            0..=7 => Op::Read,
            _ if self.rule == MergeRule::Max => Op::BumpMax,
            _ if self.rule == MergeRule::Sum => Op::BumpAdd,
            8..=10 if self.touches && self.rng.random_bool(0.7) => Op::Touch,
            8..=10 => Op::Put,
            11 | 12 => Op::Delete,
            13..=15 => Op::PutIfAbsent,
            16 | 17 => Op::Swap,
            _ => Op::Pair,
        };
        let number = self.pending.len() as u64;
        let value = Bytes::copy_from_slice(&number.to_be_bytes());
        let ttl_ms = self.rng.random_bool(0.1).then(|| self.rng.random_range(1..3000));
        let put = |k: u8| Write::Put { key: key(k), value: value.clone(), ttl_ms };
        let (checks, writes) = match op {
            Op::Put => (vec![], vec![put(k)]),
            Op::Delete => (vec![], vec![Write::Delete { key: key(k) }]),
            Op::Touch => (vec![], vec![Write::Expire { key: key(k), ttl_ms }]),
            Op::PutIfAbsent => (vec![Check::Absent(key(k)), Check::Count(key(k), 0)], vec![put(k)]),
            Op::Swap => {
                let stored: Vec<u8> = [Space::User as u8, k].into();
                let copy = self.nodes[home].copy.as_ref();
                let version = copy.and_then(|c| c.store().get(&stored)).map(replica::Kept::version).unwrap_or_default();
                (vec![Check::AtVersion(key(k), version)], vec![put(k)])
            }
            Op::Pair => (vec![], vec![put(k), put((k + 1) % KEYS)]),
            Op::BumpMax => {
                let fields = vec![self.rng.random_range(0..1000), number];
                (vec![], vec![Write::Bump { key: key(k), by: Bump::Max, fields }])
            }
            Op::BumpAdd => (vec![], vec![Write::Bump { key: key(k), by: Bump::Add, fields: vec![1, number] }]),
            Op::Read => (vec![], vec![]),
        };
        let sync = self.rng.random_bool(0.2) && !self.lossy;
        let request = Request {
            session: SessionId { node: id(home), incarnation: 1 },
            number,
            done_through: self.done_through(home),
            branches: Vec::new(),
            batch: Batch { checks, writes, sync },
        };
        self.pending.push(Pending { op, request, tries: 0, outcome: None, home });
        self.at(0, Event::Retry(number as usize));
        // Now and then many come at once.
        let burst = self.rng.random_bool(if self.bursts { 0.8 } else { 0.0 });
        let after = if burst { self.rng.random_range(10..200) } else { self.rng.random_range(2..50) * 1000 };
        self.at(after, Event::Client);
    }

    /// The subscriber asks one copy.
    fn follow(&mut self) {
        let node = self.rng.random_range(0..self.nodes.len());
        if self.nodes[node].paused <= self.now
            && !self.buried.contains(&node)
            && let Some(copy) = &self.nodes[node].copy
        {
            self.subscriber.ask(copy);
        }
    }

    /// The number below which all requests of this home are finished.
    fn done_through(&self, home: usize) -> u64 {
        let open = |p: &&Pending| p.home == home && p.op != Op::Read && p.outcome.is_none() && p.tries < TRIES_MAX;
        self.pending.iter().find(open).map_or(self.pending.len() as u64, |p| p.request.number)
    }

    /// An attempt that was made before arrives again.
    pub(crate) fn ghost(&mut self, leader: usize, request: Request) {
        if self.nodes[leader].copy.is_some() && self.nodes[leader].paused <= self.now {
            self.step(leader, Input::Write(u64::MAX, request));
        }
    }

    /// Sends a request to whoever its node believes to lead, and comes back later.
    pub(crate) fn retry(&mut self, which: usize) {
        let nodes = self.nodes.len();
        let pending = &mut self.pending[which];
        if pending.outcome.is_some() || pending.tries >= TRIES_MAX {
            return;
        }
        let via = if pending.tries == 0 { pending.home } else { self.rng.random_range(0..nodes) };
        pending.tries += 1;
        let again = self.rng.random_range(60..400) * 1000;
        self.at(again, Event::Retry(which));
        let read = self.pending[which].op == Op::Read;
        if read && self.rng.random_bool(0.6) {
            // At a copy of any standing, by message or as a thread beside it would.
            if self.rng.random_bool(0.5) {
                return self.read_beside(which, via);
            }
            return self.attempt(which, via, BranchId::default());
        }
        let leader = self.nodes[via].copy.as_ref().and_then(|c| c.leader());
        let Some((leader, lead)) = leader else { return };
        self.attempt(which, index(leader), lead.branch);
    }

    fn attempt(&mut self, which: usize, leader: usize, branch: BranchId) {
        let pending = &mut self.pending[which];
        if pending.op != Op::Read {
            pending.request.branches.retain(|b| *b != branch);
            pending.request.branches.push(branch);
        }
        let ticket = (which as u64) << 16 | u64::from(pending.tries);
        let alone = self.stand_ins && leader >= self.founders;
        let input = if pending.op == Op::Read {
            Input::Read(ticket, if alone { vec![Range::key(key(0))] } else { everything() })
        } else {
            Input::Write(ticket, pending.request.clone())
        };
        let ghost = match &input {
            Input::Write(_, request) if self.rng.random_bool(0.1) => Some(request.clone()),
            _ => None,
        };
        if self.nodes[leader].copy.is_some() && self.nodes[leader].paused <= self.now {
            self.tickets.insert((leader, ticket), (which, self.now));
            self.step(leader, input);
            if let Some(request) = ghost {
                let after = self.rng.random_range(0..1_500_000);
                self.at(after, Event::Ghost(leader, request));
            }
        }
    }

    fn read_beside(&mut self, which: usize, node: usize) {
        let now = self.clock(node);
        if self.nodes[node].paused > self.now {
            return;
        }
        let Some(copy) = &self.nodes[node].copy else { return };
        let (rows, cold) = (copy.read_under_lease(now, &everything()), copy.wants_warmth(now));
        let alone = |k: u8| copy.get_under_lease(now, &key(k));
        let within = |k: u8| rows.iter().flatten().flat_map(|r| &r.rows).find(|(rk, _)| *rk == key(k)).map(|(_, r)| r);
        if rows.is_some() && (0..KEYS).any(|k| alone(k).as_ref().map(Option::as_ref) != Some(within(k))) {
            return self.fail(format!("invariant 2: a key read alone at {node} is not as a range shows it"));
        }
        if let Some(rows) = rows {
            self.read_answered(which, node, &rows, self.now);
        }
        if cold {
            self.step(node, Input::Warm);
        }
    }

    pub(crate) fn answered(&mut self, which: usize, node: usize, answer: Answer) {
        let pending = &self.pending[which];
        if pending.outcome.is_some() {
            return;
        }
        let Answer::Outcome(outcome, branch) = answer else { return };
        // A refusal counts only from the branch that the list names last [R5].
        let last = pending.request.branches.last() == Some(&branch);
        match &outcome {
            Outcome::Failed(_) if !last => return,
            Outcome::Failed(Refusal::Check(_) | Refusal::TooFewCopies { .. } | Refusal::Elsewhere) => {
                self.report.failed += 1;
            }
            Outcome::Failed(_) => return,
            Outcome::Unknown => self.report.unknown += 1,
            Outcome::Done { version, .. } => {
                self.report.done += 1;
                let set = self.nodes[node].copy.as_ref().map(|c| c.inspect().in_force).unwrap_or_default();
                let short = self.too_few(node, &(&set | &self.check.in_force_before), *version);
                let firm = self.firm_since(&set);
                let found = self.check.acknowledged(*version, branch, set, self.now, firm);
                if let Some(what) = short.or(found) {
                    self.fail(what);
                }
            }
        }
        self.trace(|| format!("request {which} {outcome:?}"));
        self.pending[which].outcome = Some(outcome);
    }

    /// Since when all of these have kept what they acknowledge on disc, where that is to stay so.
    fn firm_since(&self, set: &BTreeSet<NodeId>) -> Option<u64> {
        let all: Option<Vec<u64>> = set.iter().map(|n| self.nodes[index(*n)].firm).collect();
        all?.into_iter().max().filter(|_| self.sync && self.turns == Turns::ToDisc)
    }

    /// An acknowledgement by fewer copies than the table asks for.
    fn too_few(&self, node: usize, set: &BTreeSet<NodeId>, version: Version) -> Option<String> {
        let copy = self.nodes[node].copy.as_ref()?;
        let need = match self.min_in_sync {
            MinInSync::Copies(n) => usize::from(n),
            MinInSync::Majority => copy.members().into_values().filter(|s| s.is_member()).count() / 2 + 1,
        };
        // Not only by the leader's own word: by what each of them has, where a crash takes nothing from it.
        let holds = |n: &&NodeId| {
            let heads = self.nodes[index(**n)].copy.as_ref().map(|c| c.store().heads());
            heads.is_none_or(|heads| heads.covers(version))
        };
        let kept = self.sync && !self.lossy;
        let held = set.iter().filter(|n| !kept || holds(n)).count();
        (!set.is_empty() && held < need)
            .then(|| format!("invariant 1: acknowledged by {set:?}, and {need} were asked for"))
    }

    pub(crate) fn read_answered(&mut self, which: usize, node: usize, rows: &[Rows], since: u64) {
        let Some(copy) = self.nodes[node].copy.as_ref() else { return };
        let seen = copy.inspect();
        let Some((_, lead)) = seen.lead else { return };
        if self.is_stand_in(node) || copy.stands_in() {
            // Of one key, and of what was written there.
            return;
        }
        self.report.reads += 1;
        self.pending[which].outcome = Some(Outcome::Unknown);
        let leads = copy.lead().is_some();
        self.report.follower_reads += u64::from(!leads);
        let set = if leads { &seen.in_force } else { &seen.in_sync };
        let at = (since, self.now);
        let found = self.check.read(node, lead.branch, (leads, set), copy.store(), rows, at);
        let found = found.or_else(|| if leads { None } else { self.expired_alike(node, rows) });
        if let Some(what) = found {
            self.fail(what);
        }
    }

    /// What a follower shows has not expired by its leader's clock, and what it does not show has.
    fn expired_alike(&self, node: usize, rows: &[Rows]) -> Option<String> {
        let copy = self.nodes[node].copy.as_ref()?;
        let (leader, _) = copy.inspect().lead?;
        let wall = self.clock(index(leader)).wall;
        let shown = |key: &[u8]| rows.iter().flat_map(|r| &r.rows).any(|(k, _)| *k == key[1..]);
        let mortal = copy.store().space(Space::User).filter(|(_, r)| !r.is_tombstone() && r.expires().is_some());
        let wrong = mortal.into_iter().find(|(key, r)| r.is_live(wall) != shown(key))?;
        Some(format!("invariant 2: {node} judged by its own clock whether {wrong:?} has expired at {wall:?}"))
    }
}
