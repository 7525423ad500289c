//! Leading a branch: order, persist, send to the in-sync set, commit, answer.

use crate::batch::Answer;
use crate::copy::{Copy, Role};
use crate::dropped::Clears;
use crate::evict::Evictor;
use crate::forget::Forgetting;
use crate::gate::{Effects, Notice, Reply, Then, Ticket};
use crate::handover::Writers;
use crate::key::{self, MemberStatus, Space};
use crate::msg::Msg;
use crate::mutant;
use crate::quorum;
use crate::read::Reads;
use crate::record::{Entry, Record};
use crate::shortage::Cap;
use crate::sync::Delta;
use base::{Ballot, BranchId, Hlc, Instant, NodeId, Now, Span, Version};
use bytes::Bytes;
use rand::RngExt;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// How far behind the last entry a follower may be when it is taken into the in-sync set: the entry that takes it in
/// commits only when it has caught up, so the bound is about stalls, not safety.
const LAG_ENTRIES_MAX: u64 = 64;
/// How many in-sync sets of a branch are remembered.
const SETS_MAX: usize = 32;
/// How many entries may be uncommitted before writers are told to wait.
const PENDING_ENTRIES_MAX: usize = 4096;
/// And how many bytes.
const PENDING_BYTES_MAX: usize = 64 * 1024 * 1024;
/// The most bytes of entries that go together: no single one is so large that it would not go alone.
const APPEND_BYTES_MAX: usize = 4 * 1024 * 1024;

pub(crate) enum Progress {
    Syncing(Box<Delta>),
    Joined,
}

/// A copy that follows this leader, or is about to.
pub(crate) struct Follower {
    pub session: u64,
    pub progress: Progress,
    /// Persisted up to here.
    pub acked: u64,
    /// Sent up to here.
    pub sent: u64,
    /// Since when it owes an answer: an acknowledgement or a confirmation.
    pub owes: Option<Instant>,
    /// It was given a fresh chance to answer since it last did.
    pub spared: bool,
    /// The last round of confirmations it answered, and until when its word holds.
    pub confirmed: u64,
    pub grants: Instant,
    /// Until when it may be read: nothing is committed without it before that.
    pub leased: Instant,
    /// It is to be dropped as soon as its lease has run out, and gets no other.
    pub doomed: bool,
}

impl Follower {
    pub(crate) fn new(session: u64, sent: u64, progress: Progress) -> Follower {
        let (grants, leased) = (Instant(0), Instant(0));
        Follower {
            session,
            progress,
            acked: 0,
            sent,
            owes: None,
            spared: false,
            confirmed: 0,
            grants,
            leased,
            doomed: false,
        }
    }

    pub(crate) fn joined(&self) -> bool {
        matches!(self.progress, Progress::Joined)
    }
}

/// Answers that wait until an entry is committed, in the order of those entries.
#[derive(Default)]
pub(crate) struct Waits(VecDeque<(u64, Ticket, Answer)>);

impl Waits {
    pub(crate) fn add(&mut self, seq: u64, ticket: Ticket, answer: Answer) {
        // Nearly always the newest entry.
        let at = self.0.iter().rposition(|(before, ..)| *before <= seq).map_or(0, |last| last + 1);
        self.0.insert(at, (seq, ticket, answer));
    }

    /// The next that is due.
    fn next(&mut self, commit: u64) -> Option<(Ticket, Answer)> {
        let due = self.0.front().is_some_and(|(seq, ..)| *seq <= commit);
        if due { self.0.pop_front().map(|(_, ticket, answer)| (ticket, answer)) } else { None }
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What a record was before an entry that is not committed yet replaced it.
type Before = VecDeque<(u64, Option<Record>)>;

/// A leader's state. `last >= commit`; `sets` holds every in-sync set in force from `commit` on, the newest last.
pub(crate) struct Leading {
    pub branch: BranchId,
    pub ballot: Ballot,
    /// The opening is on disc: may be followed and asked.
    pub ready: bool,
    pub last: u64,
    self_acked: u64,
    /// For people: whom the last commit waited for, and whether that one acknowledged; who was dropped, and what waited for it.
    decided: Option<(NodeId, bool)>,
    dropped: Option<(u64, NodeId)>,
    pub commit: u64,
    pub set: BTreeSet<NodeId>,
    sets: VecDeque<(u64, BTreeSet<NodeId>)>,
    pub followers: BTreeMap<NodeId, Follower>,
    /// What the fragment may hold for the moment.
    pub cap: Cap,
    /// What was dropped is being cleared.
    pub clears: Option<Clears>,
    /// The newest session that each copy asked for.
    pub sessions: BTreeMap<NodeId, u64>,
    /// Nothing is acknowledged or read before this.
    not_before: Instant,
    /// Until then, or until these copies follow, answers are held back.
    settle: (Instant, BTreeSet<NodeId>),
    /// The in-sync set grows no further than this.
    set_max: usize,
    out: Vec<Entry>,
    uncommitted: VecDeque<(u64, Vec<Bytes>, usize)>,
    uncommitted_bytes: usize,
    before: BTreeMap<Bytes, Before>,
    pub waits: Waits,
    /// What was refused, and the last entry that the refusal saw.
    pub refused: BTreeMap<(crate::SessionId, u64), (crate::Refusal, u64)>,
    /// Below this, a session's requests are finished: the highest it ever said to this branch.
    pub floors: BTreeMap<crate::SessionId, u64>,
    pub reads: Reads,
    returns: BTreeMap<NodeId, (Instant, Span)>,
    /// Since when another leader has been in view, and nothing more was staged.
    pub rival_since: Option<Instant>,
    /// Since when another leader has been in view.
    rival_met: Option<Instant>,
    /// Conflicts were decided by which side was opened last.
    pub by_side: bool,
    /// How long it waits before it opens anew, so that not all fragments do so at once.
    rival_turn: Option<Span>,
    /// How far all together are with staging.
    rival_far: Option<u64>,
    pub swept: Instant,
    pub writers: Writers,
    pub forgetting: Forgetting,
    /// What knows which records go first, from its first write on.
    pub evictor: Option<Box<Evictor>>,
}

impl Leading {
    pub(crate) fn new(
        branch: BranchId,
        ballot: Ballot,
        me: NodeId,
        not_before: Instant,
        settle: (Instant, BTreeSet<NodeId>),
        set_max: usize,
    ) -> Self {
        let set: BTreeSet<NodeId> = [me].into();
        Leading {
            branch,
            ballot,
            ready: false,
            last: 1,
            self_acked: 0,
            decided: None,
            dropped: None,
            commit: 0,
            sets: [(1, set.clone())].into(),
            set,
            followers: BTreeMap::new(),
            sessions: BTreeMap::new(),
            not_before,
            settle,
            set_max,
            out: Vec::new(),
            uncommitted: VecDeque::new(),
            uncommitted_bytes: 0,
            before: BTreeMap::new(),
            waits: Waits::default(),
            refused: BTreeMap::new(),
            floors: BTreeMap::new(),
            reads: Reads::default(),
            returns: BTreeMap::new(),
            rival_since: None,
            rival_met: None,
            by_side: false,
            rival_turn: None,
            rival_far: None,
            swept: Instant(0),
            writers: Writers::default(),
            forgetting: Forgetting::default(),
            evictor: None,
            cap: Cap::default(),
            clears: None,
        }
    }

    /// Nothing owed to or by anybody?
    pub(crate) fn at_rest(&self, view: &BTreeSet<NodeId>) -> bool {
        let followers = self.followers.values().all(|f| f.joined() && f.owes.is_none());
        let fit = (self.followers.len() + 1).min(self.set_max);
        let set = self.set.len() == fit && self.followers.keys().all(|n| view.contains(n));
        let idle = self.waits.is_empty() && self.reads.is_empty() && !self.forgetting.goes_on;
        self.commit == self.last && followers && set && idle
    }

    /// Is this entry committed, and on the disc of every copy that follows, if it was to be?
    pub(crate) fn everybody_holds(&self, seq: u64) -> bool {
        self.commit >= seq && self.self_acked >= seq && self.followers.values().all(|f| f.acked >= seq)
    }

    /// Those who follow in step and have acknowledged this entry.
    pub(crate) fn holders(&self, seq: u64) -> impl Iterator<Item = NodeId> + '_ {
        self.followers.iter().filter(move |(_, f)| f.joined() && f.acked >= seq).map(|(node, _)| *node)
    }

    /// Is an entry that changes the list of members not committed yet?
    pub(crate) fn changes_members(&self) -> bool {
        self.before.keys().any(|key| key.first() == Some(&(Space::Member as u8)))
    }

    /// Too much waits for the in-sync set: writers must wait too.
    pub(crate) fn is_busy(&self) -> bool {
        self.uncommitted.len() >= PENDING_ENTRIES_MAX || self.uncommitted_bytes >= PENDING_BYTES_MAX
    }

    /// May answers go out?
    pub(crate) fn answers(&self, now: Now, view: &BTreeSet<NodeId>) -> bool {
        let followed = self.settle.1.is_disjoint(view);
        let settled = followed || self.set.len() >= self.set_max;
        self.ready && now.mono >= self.not_before && (settled || now.mono >= self.settle.0)
    }

    /// May this copy join again, or has it been dropped too often of late?
    pub(crate) fn may_return(&self, node: NodeId, now: Now) -> bool {
        self.returns.get(&node).is_none_or(|(at, _)| now.mono >= *at)
    }

    /// The in-sync set in force at the commit index.
    pub(crate) fn in_force(&self) -> &BTreeSet<NodeId> {
        self.sets.front().map_or(&self.set, |(_, set)| set)
    }

    /// The in-sync set in force is itself committed.
    pub(crate) fn set_committed(&self) -> bool {
        self.sets.back().is_some_and(|(from, _)| self.commit >= *from)
    }

    /// What a key held before an entry that is not committed replaced it; `None`: what the store has is committed.
    pub(crate) fn replaced(&self, key: &[u8]) -> Option<&Option<Record>> {
        Some(&self.before.get(key)?.front()?.1)
    }

    /// The largest seq that every member of the set in force at that seq has persisted; all before it are committed too.
    fn commit_index(&self, me: NodeId, early: bool, newest: bool) -> u64 {
        let mut next = u64::MAX;
        for (from, set) in self.sets.iter().rev() {
            let from = if newest { &1 } else { from };
            let acked = set.iter().filter(|n| **n != me && !early);
            let acked = acked.map(|n| self.followers.get(n).map_or(0, |f| f.acked)).min().unwrap_or(u64::MAX);
            let seq = acked.min(self.self_acked).min(next.saturating_sub(1));
            if seq >= *from {
                return seq.max(self.commit);
            }
            next = *from;
        }
        self.commit
    }

    /// It is told, and has to ask to join again.
    pub(crate) fn end_session(&mut self, node: NodeId, fx: &mut Effects) {
        if let Some(follower) = self.followers.remove(&node) {
            fx.sends.push((node, Msg::Dropped { ballot: self.ballot, session: follower.session }));
        }
    }

    /// Copies that are being read learn of each commit at once; others with their next entries.
    fn tell_commit(&mut self, now: Now, fx: &mut Effects) {
        for (node, f) in self.followers.iter_mut().filter(|(_, f)| f.leased > now.mono) {
            let (ballot, session, commit) = (self.ballot, f.session, self.commit);
            fx.sends.push((*node, Msg::Append { ballot, session, entries: Vec::new(), commit }));
        }
    }

    /// Forgets what entries up to `commit` had replaced.
    fn settle_before(&mut self) {
        while self.uncommitted.front().is_some_and(|(seq, ..)| *seq <= self.commit) {
            let Some((_, keys, bytes)) = self.uncommitted.pop_front() else { return };
            self.uncommitted_bytes -= bytes;
            for key in keys {
                let Some(before) = self.before.get_mut(&key) else { continue };
                while before.front().is_some_and(|(seq, _)| *seq <= self.commit) {
                    before.pop_front();
                }
                if before.is_empty() {
                    self.before.remove(&key);
                }
            }
        }
        while self.sets.len() > 1 && self.sets[1].0 <= self.commit {
            self.sets.pop_front();
        }
    }
}

impl Copy {
    /// Appends an entry to the branch: applied, handed to the disc, and sent with the next flush.
    pub(crate) fn append(&mut self, now: Now, puts: Vec<(Bytes, Record)>, sync: bool, fx: &mut Effects) -> u64 {
        let sync = sync && self.config.storage != crate::Storage::Ram;
        let Role::Leading(l) = &mut self.role else { return 0 };
        l.last += 1;
        let version = Version { branch: l.branch, seq: l.last };
        // Nobody reads outcomes; there is one with every write.
        let shown = |key: &Bytes| key::space_of(key) != Some(Space::Outcome);
        let keys: Vec<Bytes> = puts.iter().map(|(key, _)| key).filter(|key| shown(key)).cloned().collect();
        let mut bytes = puts.iter().map(|(k, r)| r.weight(k)).sum();
        for key in &keys {
            // Whole: the disc will have the new value by the time that somebody asks for the old one.
            let old = self.store.find(key);
            bytes += old.as_ref().and_then(|old| old.value.as_ref()).map_or(0, Bytes::len);
            l.before.entry(key.clone()).or_default().push_back((l.last, old));
        }
        l.uncommitted_bytes += bytes;
        l.uncommitted.push_back((l.last, keys, bytes));
        l.out.push(Entry { seq: l.last, sync, puts: puts.clone() });
        self.note_puts(&puts);
        self.write(now, vec![version], puts, sync, fx);
        self.gate.push(Then::SelfAck(version.branch, version.seq));
        version.seq
    }

    /// A record of this branch's next entry.
    pub(crate) fn next_record(&mut self, now: Now, value: Option<Bytes>) -> Record {
        let hlc = self.stamp(now);
        Record { version: self.next_version(), hlc, expires: None, value }
    }

    /// The version of this branch's next entry.
    pub(crate) fn next_version(&self) -> Version {
        match &self.role {
            Role::Leading(l) => Version { branch: l.branch, seq: l.last + 1 },
            _ => Version::default(),
        }
    }

    /// The next stamp of this copy's clock.
    pub(crate) fn stamp(&mut self, now: Now) -> Hlc {
        self.hlc = self.hlc.next().max(Hlc::from_wall(now.wall));
        self.hlc
    }

    /// If it leads, how many entries of it the copy in sync lacks that has the fewest, its own left out.
    pub fn lag(&self) -> Option<u64> {
        let Role::Leading(l) = &self.role else { return None };
        let lacks =
            l.followers.iter().filter(|(node, _)| l.set.contains(node)).map(|(_, f)| l.last.saturating_sub(f.acked));
        Some(lacks.max().unwrap_or(0))
    }

    /// Sends the gathered entries to every follower, and starts the clock on their answers.
    pub(crate) fn send_appends(&mut self, now: Now, fx: &mut Effects) {
        let Role::Leading(l) = &mut self.role else { return };
        if l.out.is_empty() {
            return;
        }
        let out = std::mem::take(&mut l.out);
        for (node, follower) in &mut l.followers {
            let mut weight = 0;
            // A burst of large ones does not fit into one message.
            let together = |a: &Entry, b: &Entry| {
                weight = if weight == 0 { a.weight() } else { weight } + b.weight();
                weight = if weight > APPEND_BYTES_MAX { 0 } else { weight };
                weight > 0
            };
            let from = out.partition_point(|e| e.seq <= follower.sent);
            for entries in out[from..].chunk_by(together) {
                let (ballot, session, entries) = (l.ballot, follower.session, entries.to_vec());
                fx.sends.push((*node, Msg::Append { ballot, session, entries, commit: l.commit }));
                follower.owes.get_or_insert(now.mono);
            }
            follower.sent = follower.sent.max(l.last);
        }
    }

    pub(crate) fn on_ready(&mut self, now: Now, branch: BranchId, fx: &mut Effects) {
        let Role::Leading(l) = &mut self.role else { return };
        if l.branch == branch && !l.ready {
            l.ready = true;
            self.on_self_ack(now, branch, 1, fx);
            if let Some(lead) = self.lead() {
                self.note(Notice::Opened(lead), fx);
            }
        }
    }

    pub(crate) fn on_self_ack(&mut self, now: Now, branch: BranchId, seq: u64, fx: &mut Effects) {
        let Role::Leading(l) = &mut self.role else { return };
        if l.branch == branch {
            l.self_acked = l.self_acked.max(seq);
            let before = self.positions();
            self.advance(now, fx);
            self.note_decided(before, self.config.me);
        }
    }

    pub(crate) fn on_ack(&mut self, now: Now, from: NodeId, session: u64, seq: u64, fx: &mut Effects) {
        let Role::Leading(l) = &mut self.role else { return };
        let Some(follower) = l.followers.get_mut(&from).filter(|f| f.session == session) else {
            return fx.sends.push((from, Msg::Dropped { ballot: l.ballot, session }));
        };
        follower.progress = Progress::Joined;
        follower.acked = follower.acked.max(seq.min(l.last));
        follower.owes = (follower.acked < follower.sent).then_some(now.mono);
        follower.spared = false;
        let before = self.positions();
        self.admit(now, fx);
        self.advance(now, fx);
        self.note_decided(before, from);
    }

    /// For people: whom the commit waited for that has just been made, if one was.
    fn note_decided(&mut self, before: Option<(u64, u64)>, by: NodeId) {
        let Role::Leading(l) = &mut self.role else { return };
        let Some((_, before)) = before.filter(|(_, before)| l.commit > *before) else { return };
        // What waited for one that was let go was decided by whoever was left, and not because of that.
        let dropped = l.dropped.take_if(|(seq, _)| l.commit >= *seq).filter(|(seq, _)| before < *seq);
        l.decided = Some(dropped.map_or((by, true), |(_, node)| (node, false)));
    }

    /// If it leads, whom its last commit waited for: who acknowledged last, or (`false`) did not, and was dropped.
    pub fn decided(&self) -> Option<(NodeId, bool)> {
        if let Role::Leading(l) = &self.role { l.decided } else { None }
    }

    /// Moves the commit index as far as it goes, and answers what that decides.
    pub(crate) fn advance(&mut self, now: Now, fx: &mut Effects) {
        let (me, early, newest) = (self.config.me, mutant!(self, AckEarly), mutant!(self, CommitNewSet));
        let Role::Leading(l) = &mut self.role else { return };
        let commit = l.commit_index(me, early, newest);
        if commit > l.commit {
            l.commit = commit;
            l.settle_before();
            // Before the answers: whoever asks a follower next finds what it was told of here.
            l.tell_commit(now, fx);
            self.begin_deltas(now, fx);
        }
        let Role::Leading(l) = &mut self.role else { return };
        if !l.answers(now, &self.view) {
            return;
        }
        let unsure = self.too_few_to_answer();
        let Role::Leading(l) = &mut self.role else { return };
        while let Some((ticket, answer)) = l.waits.next(l.commit) {
            let answer = if unsure { quorum::unsure(answer) } else { answer };
            fx.replies.push((ticket, Reply::Write(answer)));
        }
        self.pump_reads(now, fx);
    }

    /// Takes followers that have caught up into the in-sync set, as far as there is room: one entry for all of them. The rest
    /// are mirrors, until somebody is missing.
    fn admit(&mut self, now: Now, fx: &mut Effects) {
        let admit_all = mutant!(self, MirrorsAdmitted);
        let Role::Leading(l) = &mut self.role else { return };
        let fit = |(node, f): &(&NodeId, &Follower)| {
            f.joined() && !l.set.contains(node) && self.view.contains(node) && f.acked + LAG_ENTRIES_MAX >= l.last
        };
        let room = if admit_all { usize::MAX } else { l.set_max.saturating_sub(l.set.len()) };
        let fit: BTreeSet<NodeId> = l.followers.iter().filter(fit).take(room).map(|(node, _)| *node).collect();
        if !fit.is_empty() && l.ready {
            let set = l.set.union(&fit).copied().collect();
            self.change_set(now, set, fx);
        }
    }

    /// Drops members from the in-sync set and ends their sessions; writes no longer wait for them.
    pub(crate) fn drop_members(&mut self, now: Now, gone: BTreeSet<NodeId>, fx: &mut Effects) {
        let most = self.config.timing.return_wait_max;
        let Role::Leading(l) = &mut self.role else { return };
        let acked = |node: &NodeId| l.followers.get(node).map_or(0, |f| f.acked);
        let slowest = gone.iter().filter(|node| l.set.contains(node)).min_by_key(|node| acked(node));
        l.dropped = slowest.filter(|node| acked(node) < l.last).map(|node| (l.last, *node)).or(l.dropped);
        for node in &gone {
            l.end_session(*node, fx);
            let wait = l.returns.get(node).map_or(Span::ms(50), |(_, wait)| Span(wait.0 * 2).min(most));
            l.returns.insert(*node, (now.mono + wait, wait));
        }
        let set: BTreeSet<NodeId> = l.set.difference(&gone).copied().collect();
        if set != l.set {
            self.change_set(now, set, fx);
        }
    }

    /// The in-sync set is itself entries of the branch; the new set is in force from its own entry on.
    fn change_set(&mut self, now: Now, set: BTreeSet<NodeId>, fx: &mut Effects) {
        let mut puts = Vec::new();
        let members = self.members();
        for node in set.iter().filter(|node| members.get(node) == Some(&MemberStatus::Joining)) {
            let record = self.next_record(now, Some(key::encode(&MemberStatus::In)));
            puts.push((key::member(*node), record));
        }
        puts.push((key::set(self.config.line), self.next_record(now, Some(key::encode(&set)))));
        puts.extend(self.set_noted(now, &set));
        let seq = self.append(now, puts, true, fx);
        let Role::Leading(l) = &mut self.role else { return };
        // Whoever has followed is not waited for again when it is let go.
        l.settle.1.retain(|node| !set.contains(node));
        l.set = set.clone();
        l.sets.push_back((seq, set.clone()));
        self.note(Notice::InSync(set), fx);
        self.send_appends(now, fx);
        self.advance(now, fx);
    }

    /// The branch's record with one more in-sync set, for rules that ask in which island something was written.
    fn set_noted(&mut self, now: Now, set: &BTreeSet<NodeId>) -> Option<(Bytes, Record)> {
        let Role::Leading(l) = &self.role else { return None };
        let (key, seq) = (key::branch(l.branch), l.last + 1);
        let (_, (ballot, mut sets)) = key::branch_opened(&key, self.store.own(&key)?)?;
        if sets.len() >= SETS_MAX {
            // Of a copy that comes and goes: the oldest but the first.
            sets.remove(1);
        }
        sets.push((seq, set.clone()));
        Some((key, self.next_record(now, Some(key::encode(&(ballot, sets))))))
    }

    /// A node is a member before it is seeded.
    pub(crate) fn add_member(&mut self, now: Now, node: NodeId, fx: &mut Effects) {
        let known = self.members().get(&node).is_some_and(|s| !s.is_gone());
        let leads = self.lead().is_some() && !self.config.stand_in;
        if leads && !known && self.may_grow() && self.stays_enough() {
            let record = self.next_record(now, Some(key::encode(&MemberStatus::Joining)));
            self.append(now, vec![(key::member(node), record)], true, fx);
        }
    }

    /// There are copies enough without this one. It is told to go when it asks to join again, and everything that it has is
    /// known to others (see `part_with`).
    pub(crate) fn remove_member(&mut self, now: Now, node: NodeId, fx: &mut Effects) {
        let listed = self.members().get(&node).is_some_and(|s| s.is_member());
        let Role::Leading(l) = &self.role else { return };
        let in_sync = l.set.contains(&node) && l.set_committed();
        let rest = &self.listed() - &BTreeSet::from([node]);
        // Where a majority is asked for, it is there without this one.
        let majority = self.are_most(&l.set, &rest);
        let enough = l.set.len() > 1 && majority;
        if self.lead().is_none() || node == self.config.me || !listed || !in_sync || !enough || !self.may_grow() {
            return;
        }
        let record = self.next_record(now, Some(key::encode(&MemberStatus::Left)));
        // It is dropped when it cannot be read any more.
        self.append(now, vec![(key::member(node), record)], true, fx);
    }

    /// A node does not come back: it is no member any more. Where a majority is asked for, only a majority says so: the buried may
    /// still be one among themselves.
    pub(crate) fn bury(&mut self, now: Now, node: NodeId, force: bool, fx: &mut Effects) {
        // One that was told to leave, and had not gone yet, may have gone on elsewhere.
        let listed = self.members().get(&node).is_some_and(|s| *s != MemberStatus::Buried);
        if self.lead().is_none() || node == self.config.me || !listed || !(force || self.may_grow()) {
            return;
        }
        let record = self.next_record(now, Some(key::encode(&MemberStatus::Buried)));
        self.append(now, vec![(key::member(node), record)], true, fx);
    }

    /// Looks after the branch: the silent are dropped, rivals met, waits ended.
    pub(crate) fn tend_branch(&mut self, now: Now, fx: &mut Effects) {
        let timing = self.config.timing;
        let members = self.members();
        let left = |node: &NodeId| members.get(node) == Some(&MemberStatus::Left);
        let Role::Leading(l) = &mut self.role else { return };
        if !l.ready {
            return;
        }
        let silent = |f: &Follower| {
            let patience = if f.joined() { timing.append_timeout } else { timing.sync_timeout };
            f.owes.is_some_and(|since| now.mono - since > patience)
        };
        let gone: BTreeSet<NodeId> = l
            .set
            .iter()
            .chain(l.followers.keys())
            .filter(|n| **n != self.config.me)
            .filter(|n| left(n) || !self.view.contains(n) || l.followers.get(n).is_none_or(silent))
            .copied()
            .collect();
        let gone = self.without_leased(now, gone);
        let Role::Leading(l) = &mut self.role else { return };
        // Who has been in step for long is no flapper.
        l.returns.retain(|_, (at, wait)| now.mono < *at + Span(wait.0 * 8 + 5_000_000_000));
        if !gone.is_empty() {
            self.drop_members(now, gone, fx);
        }
        if self.should_yield() {
            self.step_down(now, fx);
            return self.say(now, true, fx);
        }
        self.admit(now, fx);
        self.sweep(now, fx);
        self.mind_cap(now);
        self.mind_room(now, fx);
        self.shed(now, fx);
        self.strike_stand_ins(now, fx);
        self.mind_floor(now, fx);
        self.advance(now, fx);
        self.retry_reads(now, fx);
        self.mind_writers(now, fx);
        self.meet_rival(now, fx);
    }

    /// A clock far off stamps records that win every conflict, or none: let another lead, where one is in step and in view.
    fn should_yield(&self) -> bool {
        let Role::Leading(l) = &self.role else { return false };
        self.barred && l.set.iter().any(|node| self.is_able(*node))
    }

    /// Two leaders in one view: one of them opens anew and so merges; both compute the same which one.
    fn meet_rival(&mut self, now: Now, fx: &mut Effects) {
        let Some(mine) = self.lead() else { return };
        let rival = self.foreign_lead();
        let stable = self.view_is_stable(now);
        let (patience, spread) = (Span(self.config.timing.promise_wait.0 * 2), self.config.timing.heal_spread);
        let (staged, far) = (self.all_staged(), self.staged_by_all());
        let Role::Leading(l) = &mut self.role else { return };
        let Some((node, theirs)) = rival.filter(|_| stable) else {
            (l.rival_since, l.rival_turn, l.rival_met) = (None, None, None);
            return;
        };
        // Both sides go on serving until what each lacks is here, or nothing moves any more.
        let far = if staged { u64::MAX } else { far };
        let met = *l.rival_met.get_or_insert(now.mono);
        if l.rival_far.replace(far) != Some(far) && now.mono - met < self.config.timing.heal_wait_max {
            l.rival_since = None;
        }
        let since = *l.rival_since.get_or_insert(now.mono);
        if !staged && now.mono - since <= self.config.timing.promise_wait {
            return;
        }
        let barred = self.statuses.get(&node).is_some_and(|s| s.barred);
        let (me, it) = (std::cmp::Reverse(self.config.me), std::cmp::Reverse(node));
        let stands_in = self.statuses.get(&node).is_some_and(|s| s.stand_in);
        let heir = (!self.config.stand_in, !self.barred, mine.in_sync, me) > (!stands_in, !barred, theirs.in_sync, it);
        if self.config.stand_in && !stands_in {
            return;
        }
        // Fragments take turns, as chance will have it: each is opened sooner than if all were at once.
        let Role::Leading(l) = &mut self.role else { return };
        let turn = *l.rival_turn.get_or_insert_with(|| Span(self.rng.random_range(0..=spread.0)));
        if (heir && now.mono - since >= turn) || now.mono - since > patience {
            self.rival_seen = self.first_seen(node);
            self.open(now, fx);
        }
    }

    /// Stops leading: the branch is closed durably at its last entry, pending ones included. Nothing is undone, and nobody
    /// is told that anything failed.
    pub(crate) fn step_down(&mut self, now: Now, fx: &mut Effects) {
        self.return_loan(fx);
        if let Role::Leading(l) = &self.role {
            let (branch, ready) = (l.branch, l.ready);
            for (node, f) in l.followers.iter().filter(|(_, f)| f.leased > now.mono) {
                self.word.give(now.mono, *node, f.leased);
            }
            if ready {
                let record = self.next_record(now, Some(Bytes::new()));
                self.append(now, vec![(key::closed(branch), record)], true, fx);
                self.send_appends(now, fx);
            }
            let Role::Leading(l) = &mut self.role else { return };
            let waits = std::mem::take(&mut l.waits).0.into_iter();
            fx.replies.extend(waits.map(|(_, ticket, _)| (ticket, Reply::Write(Answer::NotLeading))));
            let reads = std::mem::take(&mut l.reads).into_tickets();
            fx.replies.extend(reads.map(|ticket| (ticket, Reply::NotLeading)));
            self.note(Notice::SteppedDown(branch), fx);
        }
        self.rest(now);
    }
}

#[cfg(test)]
mod tests {
    use crate::evict::tests::{ask_for, put};
    use crate::lease::tests::leading;
    use crate::open::tests::at;
    use crate::{Effects, Msg};

    /// A burst of large entries travels in messages that fit into a frame, all of it and in order.
    #[test]
    fn a_burst_of_large_entries_is_sent_in_parts() {
        let (mut copy, start) = leading();
        let mut fx = Effects::default();
        copy.flush(at(start), &mut fx);
        let mut fx = Effects::default();
        let before = copy.inspect().committed.map_or(0, |(last, _)| last);
        for number in 1..=30 {
            let bytes = if number % 10 == 0 { base::VALUE_BYTES_MAX } else { 300_000 };
            ask_for(&mut copy, start, number, vec![put(&number.to_string(), bytes); 1 + number as usize % 3]);
        }
        copy.flush(at(start), &mut fx);
        let (mut seqs, mut parts) = (Vec::new(), 0);
        for (_, msg) in &fx.sends {
            let Msg::Append { entries, .. } = msg else { continue };
            let bytes: usize = entries.iter().map(crate::Entry::weight).sum();
            assert!(bytes <= super::APPEND_BYTES_MAX || entries.len() == 1, "{bytes}");
            seqs.extend(entries.iter().map(|entry| entry.seq));
            parts += 1;
        }
        assert_eq!(seqs, (before + 1..=before + 30).collect::<Vec<_>>());
        assert!((3..12).contains(&parts), "{parts}");
    }
}
