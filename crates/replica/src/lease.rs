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
use crate::key::Space;
use crate::lead::Leading;
use crate::msg::Msg;
use crate::mutant;
use crate::record::Entry;
use base::{Instant, NodeId, Now, Span};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
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

impl Loan {
    /// Is a key of the range pending?
    fn hides(&self, read: &Read) -> bool {
        !self.pending.is_empty()
            && read.iter().any(|range| {
                let (from, to) = range.bounds();
                from < to && self.pending.range((Bound::Included(from), Bound::Excluded(to))).next().is_some()
            })
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
    /// Reads without a word to anybody, if this copy may: it leads with the word of all in-sync copies, or follows with a
    /// loan. `now` must have been taken while this copy was borrowed: nothing changes between the look and the clock.
    pub fn read_under_lease(&self, now: Now, read: &Read) -> Option<Vec<Rows>> {
        match &self.role {
            Role::Leading(l) if l.answers(now, &self.view) => {
                l.word(self.config.me, now.mono)?;
                Some(read.iter().map(|range| self.read_range(now, range, Some(l))).collect())
            }
            Role::Following(f) if f.joined && now.mono < f.loan.until => self.read_as_follower(now, f, read),
            _ => None,
        }
    }

    /// Should [`Input::Warm`](crate::Input::Warm) be sent, since leases are old or missing? Says so once.
    pub fn wants_warmth(&self, now: Now) -> bool {
        let left = match &self.role {
            Role::Leading(l) => l.word(self.config.me, now.mono),
            Role::Following(f) => Some(f.loan.until - now.mono),
            _ => return false,
        };
        let cold = left.unwrap_or_default().0 < self.config.timing.lease.0 / 2;
        cold && !self.warming.swap(true, Ordering::Relaxed)
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

    /// What `committed` may see of these ranges; `None` where something is pending, or is not the users'.
    fn read_as_follower(&self, now: Now, f: &Following, read: &Read) -> Option<Vec<Rows>> {
        let users = read.iter().all(|range| range.space == Space::User);
        if !users || (f.loan.hides(read) && !mutant!(self, PendingShown)) {
            return None;
        }
        Some(read.iter().map(|range| self.read_range(now, range, None)).collect())
    }

    // ---- the follower's half ----

    pub(crate) fn follower_read(&mut self, now: Now, ticket: Ticket, read: Read, fx: &mut Effects) {
        let Role::Following(f) = &mut self.role else { return };
        if now.mono >= f.loan.until && f.loan.waiting.len() < WAITING_READS_MAX {
            f.loan.waiting.push((ticket, read));
            return self.borrow(now, fx);
        }
        let half = Span(self.config.timing.lease.0 / 2);
        let cold = f.loan.until - now.mono < half;
        fx.replies.push((ticket, self.follower_answer(now, &read)));
        if cold {
            self.borrow(now, fx);
        }
    }

    fn follower_answer(&self, now: Now, read: &Read) -> Reply {
        let rows = match &self.role {
            Role::Following(f) if now.mono < f.loan.until => self.read_as_follower(now, f, read),
            _ => None,
        };
        rows.map_or(Reply::NotLeading, Reply::Rows)
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
        let from_receipt = mutant!(self, LeaseFromReceipt);
        let held = self.config.timing.lease_held();
        let Role::Following(f) = &mut self.role else { return };
        if f.session != session || f.loan.nonce != nonce {
            return;
        }
        let Some(asked) = f.loan.asked.take() else { return };
        f.loan.until = if from_receipt { now.mono } else { asked } + held;
        f.learn_commit(commit);
        for (ticket, read) in std::mem::take(&mut f.loan.waiting) {
            let reply = self.follower_answer(now, &read);
            fx.replies.push((ticket, reply));
        }
    }

    /// A question that was not answered is not asked again: those who wait ask the leader.
    pub(crate) fn tend_loan(&mut self, now: Now, fx: &mut Effects) {
        let retry = self.config.timing.retry;
        let Role::Following(f) = &self.role else { return };
        if f.loan.asked.is_some_and(|at| now.mono - at > retry) {
            self.return_loan(fx);
        }
    }

    /// What was borrowed ends here and now.
    pub(crate) fn return_loan(&mut self, fx: &mut Effects) {
        let Role::Following(f) = &mut self.role else { return };
        (f.loan.asked, f.loan.until) = (None, Instant(0));
        let waiting = std::mem::take(&mut f.loan.waiting);
        fx.replies.extend(waiting.into_iter().map(|(ticket, _)| (ticket, Reply::NotLeading)));
    }

    // ---- the leader's half ----

    /// Lends to a copy that nothing can be committed without from here on.
    pub(crate) fn on_borrow(&mut self, now: Now, from: NodeId, session: u64, nonce: u64, fx: &mut Effects) {
        let timing = self.config.timing;
        let seen = self.view.contains(&from);
        let Role::Leading(l) = &mut self.role else { return };
        let bound = l.set.contains(&from) && l.set_committed() && l.answers(now, &self.view);
        let (ballot, commit) = (l.ballot, l.commit);
        let Some(f) = l.followers.get_mut(&from).filter(|f| f.session == session) else { return };
        let prompt = f.owes.is_none_or(|since| now.mono - since < Span(timing.append_timeout.0 / 2));
        if bound && seen && f.joined() && !f.doomed && prompt {
            f.leased = f.leased.max(now.mono + timing.lease_given());
            fx.sends.push((from, Msg::Lent { ballot, session, nonce, commit }));
        }
    }

    /// Of those that are to be dropped, the ones that can be now: a copy that may still be read is waited for, unless it is
    /// dead. Who has recovered by then stays.
    pub(crate) fn without_leased(&mut self, now: Now, gone: BTreeSet<NodeId>) -> BTreeSet<NodeId> {
        let ignored = mutant!(self, LeaseIgnored);
        let Role::Leading(l) = &mut self.role else { return gone };
        for (node, f) in &mut l.followers {
            f.doomed = gone.contains(node);
        }
        let leased = |n: &NodeId| l.followers.get(n).is_some_and(|f| f.leased > now.mono) && !self.dead.contains(n);
        gone.into_iter().filter(|n| ignored || !leased(n)).collect()
    }

    /// A process that was stopped for a while must not take its own silence for that of others: whoever owes an answer gets
    /// a fresh chance to give it, or to say that it has promised another leader.
    pub(crate) fn mind_pause(&mut self, now: Now) {
        let late = self.deadline().is_some_and(|at| now.mono > at + Span(self.config.timing.lease.0 / 4));
        let Role::Leading(l) = &mut self.role else { return };
        if late {
            l.followers.values_mut().filter_map(|f| f.owes.as_mut()).for_each(|since| *since = now.mono);
        }
    }
}
