//! Reads: of committed state. The leader answers at once while it has the word of its in-sync copies (`lease.rs`), else after
//! they have confirmed, in one round trip for all reads that wait, that it still leads; that gives it their word, too.

use crate::batch::{Range, Read, Rows};
use crate::copy::{Copy, Role};
use crate::gate::{Effects, Reply, Ticket};
use crate::key::Space;
use crate::lead::Leading;
use crate::lease::Eyes;
use crate::msg::Msg;
use crate::mutant;
use crate::store::FETCHES_MAX;
use base::{Instant, NodeId, Now};
use std::ops::Bound;

/// How many bytes of rows one answer carries at most.
const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Reads that wait for the next round of confirmations, and for the one under way.
#[derive(Default)]
pub(crate) struct Reads {
    next: Vec<(Ticket, Read)>,
    current: Vec<(Ticket, Read)>,
    /// The round under way or last done, and when it was begun.
    nonce: u64,
    begun: Instant,
    /// A round is wanted although no read waits for it.
    pub warm: bool,
    asked: Option<Instant>,
}

impl Reads {
    pub(crate) fn is_empty(&self) -> bool {
        self.next.is_empty() && self.current.is_empty() && self.asked.is_none()
    }

    pub(crate) fn into_tickets(self) -> impl Iterator<Item = Ticket> {
        self.current.into_iter().chain(self.next).map(|(ticket, _)| ticket)
    }
}

impl Copy {
    pub(crate) fn on_read(&mut self, now: Now, ticket: Ticket, read: Read, fx: &mut Effects) {
        let elsewhere = self.is_elsewhere(&read);
        match &mut self.role {
            Role::Leading(l) if l.ready && elsewhere => fx.replies.push((ticket, Reply::Elsewhere)),
            Role::Leading(l) if l.ready => {
                let left = l.word(self.config.me, now.mono);
                l.reads.warm |= left.is_some_and(|left| left.0 < self.config.timing.lease.0 / 2);
                match self.read_under_lease(now, &read) {
                    Some(rows) => fx.replies.push((ticket, Reply::Rows(rows))),
                    None => self.queue_read(ticket, read),
                }
                self.pump_reads(now, fx);
            }
            Role::Following(f) if f.joined => self.follower_read(now, ticket, read, fx),
            _ => fx.replies.push((ticket, Reply::NotLeading)),
        }
    }

    fn queue_read(&mut self, ticket: Ticket, read: Read) {
        if let Role::Leading(l) = &mut self.role {
            l.reads.next.push((ticket, read));
        }
    }

    pub(crate) fn on_confirmed(&mut self, now: Now, from: NodeId, session: u64, nonce: u64, fx: &mut Effects) {
        let held = self.config.timing.lease_held();
        let Role::Leading(l) = &mut self.role else { return };
        if let Some(follower) = l.followers.get_mut(&from).filter(|f| f.session == session) {
            follower.confirmed = follower.confirmed.max(nonce);
            if follower.acked >= follower.sent && follower.joined() {
                (follower.owes, follower.spared) = (None, false);
            }
            if nonce == l.reads.nonce {
                // From when it was first asked: a question may have been repeated.
                follower.grants = l.reads.begun + held;
            }
            self.pump_reads(now, fx);
        }
    }

    /// Answers the round that is confirmed, and starts the next.
    pub(crate) fn pump_reads(&mut self, now: Now, fx: &mut Effects) {
        let unconfirmed = mutant!(self, ReadUnconfirmed);
        for _ in 0..2 {
            let Role::Leading(l) = &mut self.role else { return };
            if (l.reads.is_empty() && !l.reads.warm) || !l.answers(now, &self.view) {
                return;
            }
            if l.reads.asked.is_some() {
                if !(unconfirmed || l.set_committed() && confirmed(l, self.config.me)) {
                    return;
                }
                l.reads.asked = None;
                let reads = std::mem::take(&mut l.reads.current);
                for (ticket, read) in reads {
                    // Nothing only where a value is lost, and then this copy says nothing.
                    let rows = self.answer_read(now, &read);
                    fx.replies.push((ticket, rows.map_or(Reply::NotLeading, Reply::Rows)));
                }
            }
            let Role::Leading(l) = &mut self.role else { return };
            let warm = std::mem::take(&mut l.reads.warm);
            if l.reads.next.is_empty() && !warm {
                return;
            }
            l.reads.nonce += 1;
            l.reads.begun = now.mono;
            l.reads.current = std::mem::take(&mut l.reads.next);
            l.reads.asked = Some(now.mono);
            ask(now, l, fx);
        }
    }

    /// A question or an answer may have been lost.
    pub(crate) fn retry_reads(&mut self, now: Now, fx: &mut Effects) {
        let retry = self.config.timing.retry;
        let Role::Leading(l) = &mut self.role else { return };
        if l.reads.asked.is_some_and(|at| now.mono - at > retry) {
            l.reads.asked = Some(now.mono);
            ask(now, l, fx);
        }
    }

    fn answer_read(&self, now: Now, read: &Read) -> Option<Vec<Rows>> {
        let Role::Leading(l) = &self.role else { return None };
        let eyes = Eyes::Leader(l);
        read.iter().map(|range| self.read_range(now, range, &eyes)).collect()
    }

    /// One range as these eyes see it; `None` where they cannot tell. Only a leader shows what is not the users'.
    pub(crate) fn read_range(&self, now: Now, range: &Range, eyes: &Eyes<'_>) -> Option<Rows> {
        if range.space != Space::User && matches!(eyes, Eyes::Follower(_)) {
            return None;
        }
        let (from, to) = range.bounds();
        let (mut out, mut size) = (Rows::default(), 0);
        if from >= to {
            return Some(out);
        }
        let point = range.is_point();
        let one = if point { self.store.entry(&from) } else { None };
        let scan = if point { None } else { Some(self.store.range(Bound::Included(&from), Bound::Excluded(&to))) };
        let (limit, mut fetched) = (range.limit as usize, 0);
        for (stored, kept) in one.into_iter().chain(scan.into_iter().flatten()) {
            // Before the disc is asked: a row too many must not cost a look at it.
            let full = out.rows.len() >= limit || size >= ANSWER_BYTES_MAX || fetched >= FETCHES_MAX;
            if full {
                out.more = true;
                break;
            }
            let Some(record) = self.shown(now, eyes, stored, kept)? else { continue };
            // One that has expired is not asked for.
            fetched += usize::from(kept.here().is_none());
            size += record.weight(stored);
            out.rows.push((stored.slice(1..), record));
        }
        if point && range.space == Space::User {
            self.note_use(&from, !out.rows.is_empty());
        }
        Some(out)
    }
}

/// Has every other member of the in-sync set answered this round?
fn confirmed(l: &Leading, me: NodeId) -> bool {
    let answered = |n: &NodeId| l.followers.get(n).is_some_and(|f| f.confirmed >= l.reads.nonce);
    l.set.iter().all(|n| *n == me || answered(n))
}

/// Whoever does not answer this is silent, as one who does not acknowledge.
fn ask(now: Now, l: &mut Leading, fx: &mut Effects) {
    let (set, nonce) = (&l.set, l.reads.nonce);
    for (node, follower) in l.followers.iter_mut().filter(|(node, f)| set.contains(node) && f.confirmed < nonce) {
        follower.owes.get_or_insert(now.mono);
        let msg = Msg::Confirm { ballot: l.ballot, session: follower.session, nonce: l.reads.nonce };
        fx.sends.push((*node, msg));
    }
}
