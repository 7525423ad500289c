//! The leader's half of a join: what the joiner lacks, cut from the version index in chunks, while appends go on.

use crate::copy::{Copy, Role};
use crate::gate::Effects;
use crate::key::MemberStatus;
use crate::lead::{Follower, Progress};
use crate::msg::Msg;
use crate::mutant;
use crate::store::Cursor;
use base::{Ballot, Heads, NodeId, Now};

/// How many chunks may be on their way to a joiner.
const CHUNKS_IN_FLIGHT_MAX: u32 = 4;

/// How far the delta to one joiner has got.
pub(crate) struct Delta {
    /// What the joiner held.
    have: Heads,
    /// The leader's heads when the session began.
    h0: Heads,
    after: Cursor,
    /// Chunks sent, and acknowledged.
    sent: u32,
    acked: u32,
    done: bool,
}

impl Copy {
    pub(crate) fn on_join(
        &mut self,
        now: Now,
        from: NodeId,
        session: u64,
        heads: Heads,
        promised: Ballot,
        fx: &mut Effects,
    ) {
        let unchecked = mutant!(self, JoinUnchecked);
        let rejoin_kept = mutant!(self, RejoinKept);
        let Role::Leading(l) = &mut self.role else { return };
        // What it holds and I do not can only be merged in an opening; and a copy bound to a higher ballot needs one.
        if promised > l.ballot || (!heads.within(self.store.heads()) && !unchecked) {
            return self.open(now, fx);
        }
        // Neither a doubled request nor one that a later one overtook means anything any more.
        let newest = l.sessions.entry(from).or_insert(0);
        if session <= *newest {
            return;
        }
        *newest = session;
        if !l.may_return(from, now) {
            return;
        }
        if l.set.contains(&from) {
            if rejoin_kept {
                return;
            }
            // A member that lost its session does not answer [R6].
            self.drop_members(now, [from].into(), fx);
        }
        match self.members().get(&from) {
            None if !self.config.open_membership => return,
            Some(MemberStatus::Left) => return,
            None => self.add_member(now, from, fx),
            Some(_) => {}
        }
        let h0 = self.store.heads().clone();
        let Role::Leading(l) = &mut self.role else { return };
        let delta = Delta { have: heads, h0, after: None, sent: 0, acked: 0, done: false };
        let follower = Follower::new(session, l.last, Progress::Syncing(Box::new(delta)));
        l.followers.insert(from, follower);
        self.send_chunks(now, from, fx);
    }

    pub(crate) fn on_sync_ack(&mut self, now: Now, from: NodeId, session: u64, no: u32, fx: &mut Effects) {
        let Role::Leading(l) = &mut self.role else { return };
        let Some(follower) = l.followers.get_mut(&from).filter(|f| f.session == session) else { return };
        if let Progress::Syncing(delta) = &mut follower.progress {
            delta.acked = delta.acked.max(no.saturating_add(1)).min(delta.sent);
            self.send_chunks(now, from, fx);
        }
    }

    fn send_chunks(&mut self, now: Now, to: NodeId, fx: &mut Effects) {
        let Role::Leading(l) = &mut self.role else { return };
        let (ballot, upto) = (l.ballot, l.last);
        let Some(follower) = l.followers.get_mut(&to) else { return };
        let session = follower.session;
        follower.owes = Some(now.mono);
        let Progress::Syncing(delta) = &mut follower.progress else { return };
        while !delta.done && delta.sent < delta.acked + CHUNKS_IN_FLIGHT_MAX {
            let after = delta.after.take();
            let bytes = self.config.timing.chunk_bytes;
            let Some((records, after)) = self.store.delta(&delta.have, &delta.h0, after, bytes) else { return };
            let (no, last) = (delta.sent, after.is_none());
            (delta.after, delta.done) = (after, last);
            delta.sent += 1;
            let h0 = delta.h0.clone();
            fx.sends.push((to, Msg::Sync { ballot, session, no, h0, records, last, upto }));
        }
    }
}
