//! Leases: reading without a round trip.
//!
//! Two kinds, both asked for only while there are readers. A member of the in-sync set *gives* the leader its word: whoever
//! it promises meanwhile is told how long to wait. With the word of all of them the leader reads alone. The leader *lends*
//! an in-sync copy the right to be read: nothing is committed without that copy for so long. Holders count from when they
//! asked, givers from when they answered, each with a hundredth to spare for clocks that run differently.

use crate::batch::{Read, Rows};
use crate::copy::{Copy, Role};
use crate::follow::Following;
use crate::gate::{Effects, Reply, Ticket};
use crate::kept::Kept;
use crate::key::{self, Space};
use crate::lead::Leading;
use crate::msg::Msg;
use crate::mutant;
use crate::record::{Entry, Record};
use base::{Instant, NodeId, Now, Span};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::Ordering;

/// How many reads may wait for one loan.
const WAITING_READS_MAX: usize = 4096;

/// A follower's right to be read, and what it must not show.
#[derive(Default)]
pub(crate) struct Loan {
    nonce: u64,
    /// When the loan under way was asked for.
    asked: Option<Instant>,
    until: Instant,
    waiting: Vec<(Ticket, Read)>,
    /// Users' keys with an entry that is not committed, as far as is known here: the last such entry.
    pending: BTreeMap<Bytes, u64>,
    order: VecDeque<(u64, Bytes)>,
}

/// The leases that this copy gave: its word to leaders that it followed, and what it lent to copies while it led.
pub(crate) struct Word {
    /// What it gave before it was born may hold until then; to whom is not known.
    born: Instant,
    /// Until when each holder may count on it.
    held: BTreeMap<NodeId, Instant>,
}

impl Word {
    pub(crate) fn new(born: Instant) -> Word {
        Word { born, held: BTreeMap::new() }
    }

    pub(crate) fn give(&mut self, now: Instant, holder: NodeId, until: Instant) {
        self.held.retain(|_, until| *until > now);
        let held = self.held.entry(holder).or_default();
        *held = until.max(*held);
    }

    /// Something given may hold until then; to whom is not known.
    pub(crate) fn extend(&mut self, until: Instant) {
        self.born = self.born.max(until);
    }

    /// All that still hold: by whom, and for how long.
    pub(crate) fn leases(&self, now: Instant) -> Vec<(Option<NodeId>, Span)> {
        let held = self.held.iter().map(|(holder, until)| (Some(*holder), *until));
        let all = held.chain([(None, self.born)]).filter(|(_, until)| *until > now);
        all.map(|(holder, until)| (holder, until - now)).collect()
    }
}

/// Whose view of the records a reader gets.
pub(crate) enum Eyes<'a> {
    Leader(&'a Leading),
    Follower(&'a Following),
}

impl Loan {
    pub(crate) fn is_asked(&self) -> bool {
        self.asked.is_some()
    }
}

impl Following {
    pub(crate) fn note_pending(&mut self, entry: &Entry) {
        if entry.seq <= self.commit {
            return;
        }
        for (key, _) in entry.puts.iter().filter(|(key, _)| key.first() == Some(&(Space::User as u8))) {
            self.loan.pending.insert(key.clone(), entry.seq);
            self.loan.order.push_back((entry.seq, key.clone()));
        }
    }

    pub(crate) fn learn_commit(&mut self, commit: u64) {
        self.commit = self.commit.max(commit);
        while self.loan.order.front().is_some_and(|(seq, _)| *seq <= self.commit)
            && let Some((seq, key)) = self.loan.order.pop_front()
        {
            if self.loan.pending.get(&key) == Some(&seq) {
                self.loan.pending.remove(&key);
            }
        }
    }
}

impl Leading {
    /// How long the word of every in-sync copy still holds; `None`: it does not.
    pub(crate) fn word(&self, me: NodeId, now: Instant) -> Option<Span> {
        if !self.set_committed() {
            return None;
        }
        let others = self.set.iter().filter(|n| **n != me);
        let until = others.map(|n| self.followers.get(n).map_or(Instant(0), |f| f.grants)).min();
        let left = until.unwrap_or(Instant(u64::MAX)) - now;
        (left > Span(0)).then_some(left)
    }
}

impl Copy {
    /// Through whose eyes this copy may be read at this moment without a word to anybody: it leads with the word of all
    /// in-sync copies, or follows with a loan.
    fn eyes(&self, now: Now) -> Option<Eyes<'_>> {
        match &self.role {
            _ if self.store.is_lost() => None,
            Role::Leading(l) if l.answers(now, &self.view) => l.word(self.config.me, now.mono).map(|_| Eyes::Leader(l)),
            Role::Following(f) if f.joined && now.mono < f.loan.until => Some(Eyes::Follower(f)),
            _ => None,
        }
    }

    /// Reads without a word to anybody, if this copy may. `now` must have been taken while this copy was borrowed: nothing
    /// changes between the look and the clock.
    pub fn read_under_lease(&self, now: Now, read: &Read) -> Option<Vec<Rows>> {
        let eyes = self.eyes(now).filter(|_| !self.is_elsewhere(read))?;
        read.iter().map(|range| self.read_range(now, range, &eyes)).collect()
    }

    /// One key's live record, as [`Copy::read_under_lease`] reads it; `None`: this copy may not be read.
    pub fn get_under_lease(&self, now: Now, key: &[u8]) -> Option<Option<Record>> {
        let eyes = self.eyes(now)?;
        let stored = key::user(key);
        if !self.knows(&stored) {
            return None;
        }
        let found = match self.store.entry(&stored) {
            Some((stored, record)) => self.shown(now, &eyes, stored, record)?,
            None => None,
        };
        self.note_use(&stored, found.is_some());
        Some(found)
    }

    /// Should [`Input::Warm`](crate::Input::Warm) be sent, since leases are old or missing? Says so once.
    pub fn wants_warmth(&self, now: Now) -> bool {
        let left = match &self.role {
            Role::Leading(l) => l.word(self.config.me, now.mono),
            Role::Following(f) if f.joined && f.loan.asked.is_none() => Some(f.loan.until - now.mono),
            _ => return false,
        };
        let cold = left.unwrap_or_default().0 < self.config.timing.lease.0 / 2;
        cold && self.may_be_lent() && !self.warming.swap(true, Ordering::Relaxed)
    }

    /// A mirror is lent nothing: what the leader commits does not wait for it.
    fn may_be_lent(&self) -> bool {
        !matches!(self.role, Role::Following(_)) || self.known_set().contains(&self.config.me)
    }

    pub(crate) fn warm(&mut self, now: Now, fx: &mut Effects) {
        self.warming.store(false, Ordering::Relaxed);
        match &mut self.role {
            Role::Leading(l) => {
                l.reads.warm = true;
                self.pump_reads(now, fx);
            }
            Role::Following(_) => self.borrow(now, fx),
            _ => {}
        }
    }

    /// What may be seen of a record, if it lives; `None`: these eyes cannot tell. A follower cannot where an entry is not
    /// committed, nor what has expired: of that the leader's clock is the judge. Nobody can where a value is lost.
    pub(crate) fn shown(&self, now: Now, eyes: &Eyes<'_>, stored: &Bytes, kept: &Kept) -> Option<Option<Record>> {
        match eyes {
            Eyes::Leader(l) => {
                if let Some(before) = l.replaced(stored).filter(|_| !mutant!(self, ReadUncommitted)) {
                    let before = before.clone().filter(|r| r.live(now.wall).is_some());
                    return Some(before.map(|record| self.presented(stored, record)));
                }
            }
            Eyes::Follower(f) => {
                let pending = f.loan.pending.contains_key(stored) && !mutant!(self, PendingShown);
                let mortal = kept.expires().is_some() && !kept.is_tombstone() && !mutant!(self, ExpiryByFollower);
                if pending || mortal {
                    return None;
                }
            }
        }
        if !kept.is_live(now.wall) {
            return Some(None);
        }
        self.store.whole(stored, kept).map(|record| Some(self.presented(stored, record)))
    }

    /// A record as users see it: counters and sets are kept as states.
    pub(crate) fn presented(&self, stored: &Bytes, record: Record) -> Record {
        if !self.config.policy.has_states() || key::space_of(stored) != Some(Space::User) {
            return record;
        }
        let rule = self.config.policy.rule(&stored[1..]);
        let value = record.value.as_ref().map(|value| crate::state::shown(rule, value));
        Record { value, ..record }
    }

    // ---- the follower's half ----

    pub(crate) fn follower_read(&mut self, now: Now, ticket: Ticket, read: Read, fx: &mut Effects) {
        let lent = self.may_be_lent();
        let Role::Following(f) = &mut self.role else { return };
        if now.mono >= f.loan.until && f.loan.waiting.len() < WAITING_READS_MAX && lent {
            f.loan.waiting.push((ticket, read));
            return self.borrow(now, fx);
        }
        let half = Span(self.config.timing.lease.0 / 2);
        let cold = lent && f.loan.until - now.mono < half;
        fx.replies.push((ticket, self.follower_answer(now, &read)));
        if cold {
            self.borrow(now, fx);
        }
    }

    fn follower_answer(&self, now: Now, read: &Read) -> Reply {
        self.read_under_lease(now, read).map_or(Reply::NotLeading, Reply::Rows)
    }

    fn borrow(&mut self, now: Now, fx: &mut Effects) {
        let Role::Following(f) = &mut self.role else { return };
        if f.joined && f.loan.asked.is_none() {
            f.loan.nonce += 1;
            f.loan.asked = Some(now.mono);
            fx.sends.push((f.leader, Msg::Borrow { session: f.session, nonce: f.loan.nonce }));
        }
    }

    pub(crate) fn on_lent(&mut self, now: Now, session: u64, nonce: u64, commit: u64, fx: &mut Effects) {
        let held = self.config.timing.lease_held();
        let Role::Following(f) = &mut self.role else { return };
        if f.session != session || f.loan.nonce != nonce {
            return;
        }
        let Some(asked) = f.loan.asked.take() else { return };
        f.loan.until = asked + held;
        f.learn_commit(commit);
        for (ticket, read) in std::mem::take(&mut f.loan.waiting) {
            let reply = self.follower_answer(now, &read);
            fx.replies.push((ticket, reply));
        }
    }

    pub(crate) fn on_not_lent(&mut self, session: u64, nonce: u64, fx: &mut Effects) {
        let Role::Following(f) = &self.role else { return };
        if f.session == session && f.loan.nonce == nonce {
            self.ask_no_more(fx);
        }
    }

    /// A question that was not answered is not asked again.
    pub(crate) fn tend_loan(&mut self, now: Now, fx: &mut Effects) {
        let retry = self.config.timing.retry;
        let Role::Following(f) = &self.role else { return };
        if f.loan.asked.is_some_and(|at| now.mono - at > retry) {
            self.ask_no_more(fx);
        }
    }

    /// Those who wait for a loan ask the leader instead. What was lent before still holds.
    fn ask_no_more(&mut self, fx: &mut Effects) {
        let Role::Following(f) = &mut self.role else { return };
        f.loan.asked = None;
        let waiting = std::mem::take(&mut f.loan.waiting);
        fx.replies.extend(waiting.into_iter().map(|(ticket, _)| (ticket, Reply::NotLeading)));
    }

    /// What was borrowed ends here and now.
    pub(crate) fn return_loan(&mut self, fx: &mut Effects) {
        self.ask_no_more(fx);
        if let Role::Following(f) = &mut self.role {
            f.loan.until = Instant(0);
        }
    }

    // ---- the leader's half ----

    /// The leases that this copy gave and that still hold: by whom, if that is known, and for how long. Whoever said goodbye
    /// to this node holds none. To another it may have said so long ago, and be back.
    pub(crate) fn leases_given(&self, now: Now) -> Vec<(Option<NodeId>, Span)> {
        let mut all = self.word.leases(now.mono);
        all.retain(|(holder, _)| !holder.is_some_and(|node| self.gone.contains(&node)));
        all
    }

    /// Lends to a copy that nothing can be committed without from here on.
    pub(crate) fn on_borrow(&mut self, now: Now, from: NodeId, session: u64, nonce: u64, fx: &mut Effects) {
        let timing = self.config.timing;
        let seen = self.view.contains(&from);
        let Role::Leading(l) = &mut self.role else { return };
        let bound = l.set.contains(&from) && l.set_committed() && l.answers(now, &self.view);
        let (ballot, commit) = (l.ballot, l.commit);
        let Some(f) = l.followers.get_mut(&from).filter(|f| f.session == session) else {
            return fx.sends.push((from, Msg::Dropped { ballot, session }));
        };
        let prompt = f.owes.is_none_or(|since| now.mono - since < Span(timing.append_timeout.0 / 2));
        fx.sends.push(if bound && seen && f.joined() && !f.doomed && prompt {
            f.leased = f.leased.max(now.mono + timing.lease_given());
            (from, Msg::Lent { ballot, session, nonce, commit })
        } else {
            (from, Msg::NotLent { session, nonce })
        });
    }

    /// Of those that are to be dropped, the ones that can be now: a copy that may still be read is waited for, unless it
    /// said goodbye. Who has recovered by then stays.
    pub(crate) fn without_leased(&mut self, now: Now, silent: BTreeSet<NodeId>) -> BTreeSet<NodeId> {
        let ignored = mutant!(self, LeaseIgnored);
        let Role::Leading(l) = &mut self.role else { return silent };
        for (node, f) in &mut l.followers {
            f.doomed = silent.contains(node);
        }
        let leased = |n: &NodeId| l.followers.get(n).is_some_and(|f| f.leased > now.mono) && !self.gone.contains(n);
        silent.into_iter().filter(|n| ignored || !leased(n)).collect()
    }

    /// A process that was stopped for a while must not take its own silence for that of others: whoever owes an answer gets
    /// one fresh chance to give it, or to say that it has promised another leader.
    pub(crate) fn mind_pause(&mut self, now: Now) {
        if !matches!(self.role, Role::Leading(_)) {
            return;
        }
        let late = self.deadline().is_some_and(|at| now.mono > at + Span(self.config.timing.lease.0 / 4));
        let Role::Leading(l) = &mut self.role else { return };
        if late {
            for f in l.followers.values_mut().filter(|f| f.owes.is_some() && !f.spared) {
                (f.owes, f.spared) = (Some(now.mono), true);
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use crate::copy::Role;
    use crate::open::tests::{at, copy};
    use crate::{Copy, Effects, Input, Meta, Msg};
    use base::{Heads, NodeId, Span};
    use std::collections::BTreeSet;

    /// Feeds one input, with a disc that is never behind.
    pub(crate) fn feed(copy: &mut Copy, ms: u64, input: Input) -> Vec<Msg> {
        let mut fx = Effects::default();
        copy.handle(at(ms), input, &mut fx);
        while let Some(mark) = fx.persists.drain(..).map(|p| p.mark).max() {
            copy.handle(at(ms), Input::Durable(mark), &mut fx);
        }
        fx.sends.into_iter().map(|(_, msg)| msg).collect()
    }

    /// Node 1 leads, with node 2 in sync.
    pub(crate) fn leading() -> (Copy, u64) {
        let mut copy = copy(at(0), Meta::default());
        let say = |msg| Input::Msg(NodeId(2), msg);
        feed(
            &mut copy,
            1,
            Input::View {
                view: [NodeId(2)].into(),
                dead: [].into(),
                gone: [].into(),
                flapping: [].into(),
                whole: false,
            },
        );
        let asked = feed(&mut copy, 5000, Input::Tick);
        let Some(ballot) =
            asked.iter().find_map(|m| if let Msg::Prepare { ballot } = m { Some(*ballot) } else { None })
        else {
            panic!("it opens: {asked:?}")
        };
        let (heads, floor) = Default::default();
        let promise = Msg::Promise { ballot, heads, floor, set: [].into(), leases: vec![] };
        feed(&mut copy, 5001, say(promise));
        let branch = copy.lead().expect("it leads").branch;
        let join = Msg::Join {
            ballot,
            branch,
            session: 7,
            heads: Heads::default(),
            staged: Heads::default(),
            promised: ballot,
            stand_in: false,
        };
        feed(&mut copy, 5002, say(join));
        let seq = copy.store().heads().seq(branch);
        feed(&mut copy, 5003, say(Msg::Ack { session: 7, seq }));
        let seq = copy.store().heads().seq(branch);
        feed(&mut copy, 5004, say(Msg::Ack { session: 7, seq }));
        assert_eq!(copy.inspect().in_sync.len(), 2);
        (copy, 6000)
    }

    /// A process that was stopped gives a silent copy another chance; one that is late all the time does not for ever.
    #[test]
    fn a_leader_that_is_always_late_still_drops_a_silent_copy() {
        let (mut copy, start) = leading();
        let asked = feed(&mut copy, start, Input::Read(1, vec![crate::Range::key("k".into())]));
        assert!(asked.iter().any(|m| matches!(m, Msg::Confirm { .. })), "{asked:?}");
        let mut dropped = Vec::new();
        for late in 1..=4 {
            feed(&mut copy, start + late * 900, Input::Tick);
            dropped.push(copy.inspect().in_sync.len() == 1);
        }
        assert_eq!(dropped, [false, true, true, true]);
    }

    /// The set record of an opening that was given up names nobody else: who was in sync before may still be read.
    #[test]
    fn an_opening_anew_still_waits_for_members_out_of_view() {
        let (mut copy, start) = leading();
        feed(
            &mut copy,
            start,
            Input::View { view: [].into(), dead: [].into(), gone: [].into(), flapping: [].into(), whole: false },
        );
        feed(&mut copy, start + 10, Input::Resign);
        let view = |nodes: &[u64]| nodes.iter().map(|n| NodeId(*n)).collect::<BTreeSet<_>>();
        for at in (start + 20..start + 4000).step_by(50) {
            // It leads anew, and steps down again at once, until it may not any more be silent.
            feed(
                &mut copy,
                at,
                Input::View { view: view(&[]), dead: view(&[2]), gone: view(&[]), flapping: [].into(), whole: false },
            );
            if copy.lead().is_some() {
                let Role::Leading(l) = &copy.role else { continue };
                assert_eq!(l.answers(super::tests::at(at), &copy.view), at >= start + 1010, "at {at}");
                if at < start + 1000 {
                    feed(&mut copy, at, Input::Resign);
                }
            }
        }
        assert!(copy.lead().is_some());
    }

    /// D12: a holder counts from when it asked, however late the answer came.
    #[test]
    fn a_leader_counts_its_lease_from_its_question() {
        let (mut copy, start) = leading();
        let asked = feed(&mut copy, start, Input::Read(1, vec![crate::Range::key("k".into())]));
        let Some(nonce) =
            asked.iter().find_map(|m| if let Msg::Confirm { nonce, .. } = m { Some(*nonce) } else { None })
        else {
            panic!("{asked:?}")
        };
        feed(&mut copy, start + 400, Input::Msg(NodeId(2), Msg::Confirmed { session: 7, nonce }));
        let reads = |copy: &Copy, ms| copy.get_under_lease(at(start + ms), b"k").is_some();
        assert_eq!((reads(&copy, 989), reads(&copy, 991), reads(&copy, 1300)), (true, false, false));
    }

    #[test]
    fn a_follower_counts_its_loan_from_its_question() {
        let mut copy = copy(at(0), Meta::default());
        let say = |msg| Input::Msg(NodeId(2), msg);
        let ballot = base::Ballot { counter: 1, node: NodeId(2) };
        let branch = base::BranchId { node: NodeId(2), n: 1 };
        let lead = Some(crate::Lead { branch, ballot, in_sync: 2 });
        feed(
            &mut copy,
            1,
            Input::View {
                view: [NodeId(2)].into(),
                dead: [].into(),
                gone: [].into(),
                flapping: [].into(),
                whole: false,
            },
        );
        let status = crate::Status { lead, heard: ballot, was_in_sync: true, weight: 1, ..Default::default() };
        let asked = feed(&mut copy, 2, say(Msg::Status(status)));
        let session = asked.iter().find_map(|m| if let Msg::Join { session, .. } = m { Some(*session) } else { None });
        let session = session.expect("it asks to join");
        let first = base::Version { branch, seq: 1 };
        let set = crate::key::encode(&BTreeSet::from([NodeId(1), NodeId(2)]));
        let record = crate::Record { version: first, hlc: base::Hlc(1), expires: None, value: Some(set) };
        let (h0, records) = ([first].into_iter().collect(), vec![(crate::key::set(0), record)]);
        let chunk = crate::Chunk { no: 0, h0, records, last: true, upto: 1, anew: false, staged: false };
        feed(&mut copy, 3, say(Msg::Sync { ballot, session, chunk }));
        let asked = feed(&mut copy, 100, Input::Warm);
        let nonce = asked.iter().find_map(|m| if let Msg::Borrow { nonce, .. } = m { Some(*nonce) } else { None });
        let nonce = nonce.expect("it asks for a loan");
        feed(&mut copy, 300, say(Msg::Lent { ballot, session, nonce, commit: 1 }));
        let reads = |ms| copy.get_under_lease(at(ms), b"k").is_some();
        assert_eq!((reads(1089), reads(1091), reads(1250)), (true, false, false));
    }

    /// What a leader lent binds it when it leads no more.
    #[test]
    fn a_leader_that_steps_down_tells_an_opener_of_its_loans() {
        let (mut copy, start) = leading();
        let lent = feed(&mut copy, start, Input::Msg(NodeId(2), Msg::Borrow { session: 7, nonce: 1 }));
        assert!(lent.iter().any(|m| matches!(m, Msg::Lent { .. })), "{lent:?}");
        let ballot = base::Ballot { counter: 9, node: NodeId(3) };
        let said = feed(&mut copy, start + 10, Input::Msg(NodeId(3), Msg::Prepare { ballot }));
        assert!(
            said.iter()
                .any(|m| matches!(m, Msg::Promise { leases, .. } if *leases == [(Some(NodeId(2)), Span::ms(1000))])),
            "{said:?}"
        );
    }
}
