//! Reads by the leader: of committed state, after the in-sync set has confirmed, in one round trip for all reads that wait,
//! that this is still its leader.

use crate::batch::{Range, Read, Rows};
use crate::copy::{Copy, Role};
use crate::gate::{Effects, Reply, Ticket};
use crate::key;
use crate::lead::Leading;
use crate::msg::Msg;
use crate::mutant;
use base::{Instant, NodeId, Now};
use std::ops::Bound;

/// How many bytes of rows one answer carries at most.
const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Reads that wait for the next round of confirmations, and for the one under way.
#[derive(Default)]
pub(crate) struct Reads {
    next: Vec<(Ticket, Read)>,
    current: Vec<(Ticket, Read)>,
    nonce: u64,
    asked: Option<Instant>,
}

impl Reads {
    pub(crate) fn is_empty(&self) -> bool {
        self.next.is_empty() && self.current.is_empty()
    }

    pub(crate) fn into_tickets(self) -> impl Iterator<Item = Ticket> {
        self.current.into_iter().chain(self.next).map(|(ticket, _)| ticket)
    }
}

impl Copy {
    pub(crate) fn on_read(&mut self, now: Now, ticket: Ticket, read: Read, fx: &mut Effects) {
        match &mut self.role {
            Role::Leading(l) if l.ready => {
                l.reads.next.push((ticket, read));
                self.pump_reads(now, fx);
            }
            _ => fx.replies.push((ticket, Reply::NotLeading)),
        }
    }

    pub(crate) fn on_confirmed(&mut self, now: Now, from: NodeId, session: u64, nonce: u64, fx: &mut Effects) {
        let Role::Leading(l) = &mut self.role else { return };
        if let Some(follower) = l.followers.get_mut(&from).filter(|f| f.session == session) {
            follower.confirmed = follower.confirmed.max(nonce);
            self.pump_reads(now, fx);
        }
    }

    /// Answers the round that is confirmed, and starts the next.
    pub(crate) fn pump_reads(&mut self, now: Now, fx: &mut Effects) {
        let unconfirmed = mutant!(self, ReadUnconfirmed);
        for _ in 0..2 {
            let Role::Leading(l) = &mut self.role else { return };
            if l.reads.is_empty() || !l.answers(now, &self.view) {
                return;
            }
            if l.reads.asked.is_some() {
                if !(unconfirmed || l.set_committed() && confirmed(l, self.config.me)) {
                    return;
                }
                l.reads.asked = None;
                let reads = std::mem::take(&mut l.reads.current);
                for (ticket, read) in reads {
                    let rows = self.answer_read(now, &read);
                    fx.replies.push((ticket, Reply::Rows(rows)));
                }
            }
            let Role::Leading(l) = &mut self.role else { return };
            if l.reads.next.is_empty() {
                return;
            }
            l.reads.nonce += 1;
            l.reads.current = std::mem::take(&mut l.reads.next);
            l.reads.asked = Some(now.mono);
            ask(l, fx);
        }
    }

    /// A question or an answer may have been lost.
    pub(crate) fn retry_reads(&mut self, now: Now, fx: &mut Effects) {
        let retry = self.config.timing.retry;
        let Role::Leading(l) = &mut self.role else { return };
        if l.reads.asked.is_some_and(|at| now.mono - at > retry) {
            l.reads.asked = Some(now.mono);
            ask(l, fx);
        }
    }

    fn answer_read(&self, now: Now, read: &Read) -> Vec<Rows> {
        let Role::Leading(l) = &self.role else { return Vec::new() };
        let committed = if mutant!(self, ReadUncommitted) { None } else { Some(&**l) };
        read.iter().map(|range| self.read_range(now, range, committed)).collect()
    }

    pub(crate) fn read_range(&self, now: Now, range: &Range, committed: Option<&Leading>) -> Rows {
        let from = key::in_space(range.space, &range.from);
        let to = match &range.to {
            Some(to) => key::in_space(range.space, to),
            None => vec![range.space as u8 + 1].into(),
        };
        let (mut out, mut size) = (Rows::default(), 0);
        if from >= to {
            return out;
        }
        for (stored, record) in self.store.range(Bound::Included(&from), Bound::Excluded(&to)) {
            let record = match committed {
                Some(l) => l.committed(stored, Some(record)),
                None => Some(record),
            };
            let Some(record) = record.filter(|r| r.live(now.wall).is_some()) else { continue };
            if out.rows.len() >= range.limit as usize || size >= ANSWER_BYTES_MAX {
                out.more = true;
                break;
            }
            size += record.weight(stored);
            out.rows.push((stored.slice(1..), record.clone()));
        }
        out
    }
}

/// Has every other member of the in-sync set answered this round?
fn confirmed(l: &Leading, me: NodeId) -> bool {
    let answered = |n: &NodeId| l.followers.get(n).is_some_and(|f| f.confirmed >= l.reads.nonce);
    l.set.iter().all(|n| *n == me || answered(n))
}

fn ask(l: &Leading, fx: &mut Effects) {
    for (node, follower) in l.followers.iter().filter(|(node, f)| l.set.contains(node) && f.confirmed < l.reads.nonce) {
        let msg = Msg::Confirm { ballot: l.ballot, session: follower.session, nonce: l.reads.nonce };
        fx.sends.push((*node, msg));
    }
}
