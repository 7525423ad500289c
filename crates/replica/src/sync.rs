//! The leader's half of a join: what the joiner lacks, cut from the version index in chunks, while appends go on.

use crate::copy::{Copy, Role};
use crate::gate::Effects;
use crate::key::{self, MemberStatus};
use crate::lead::{Follower, Progress};
use crate::msg::{Chunk, Msg};
use crate::mutant;
use crate::store::Cursor;
use base::{Ballot, Heads, NodeId, Now};

/// How many chunks may be on their way to a joiner.
const CHUNKS_IN_FLIGHT_MAX: u32 = 4;

/// How far the delta to one joiner has got.
pub(crate) struct Delta {
    /// What the joiner held.
    have: Heads,
    /// The joiner may hold what was deleted and forgotten since: it gets all there is.
    anew: bool,
    /// What it has staged counts as held.
    over: bool,
    /// Nothing is sent before this entry is committed: a copy is a member before it holds anything.
    listed: u64,
    /// The leader's heads when the session began.
    h0: Heads,
    after: Cursor,
    /// Chunks sent, and acknowledged.
    sent: u32,
    acked: u32,
    done: bool,
}

impl Delta {
    /// Is all told that there is?
    pub(crate) fn is_anew(&self) -> bool {
        self.anew
    }

    /// Did the joiner hold this itself?
    pub(crate) fn holds(&self, heads: &Heads) -> bool {
        !self.over && heads.within(&self.have)
    }
}

impl Copy {
    pub(crate) fn on_join(
        &mut self,
        now: Now,
        from: NodeId,
        session: u64,
        (heads, staged, stand_in): (Heads, Heads, bool),
        promised: Ballot,
        fx: &mut Effects,
    ) {
        let unchecked = mutant!(self, JoinUnchecked);
        let rejoin_kept = mutant!(self, RejoinKept);
        let meeting = self.foreign_lead().is_some() && !self.all_staged();
        let left = self.members().get(&from) == Some(&MemberStatus::Left);
        let Role::Leading(l) = &mut self.role else { return };
        // Islands meet, and are not done with fetching what they lack: soon there will be an opening anyway.
        if promised <= l.ballot && meeting && !heads.within(self.store.heads()) && !unchecked {
            return;
        }
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
        if stand_in || left {
            return self.part_with(now, from, session, fx);
        }
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
            Some(MemberStatus::Left | MemberStatus::StandIn) => return,
            // A buried node that is back, and has something of it, is a copy again.
            Some(MemberStatus::Buried) if heads.is_empty() && !self.config.open_membership => return,
            None | Some(MemberStatus::Buried) => self.add_member(now, from, fx),
            Some(_) => {}
        }
        if !self.members().get(&from).is_some_and(|s| s.is_member()) {
            // A majority has to take it in first.
            return;
        }
        let Some(delta) = self.delta_for(from, heads, &staged) else { return };
        let Role::Leading(l) = &mut self.role else { return };
        let follower = Follower::new(session, l.last, Progress::Syncing(Box::new(delta)));
        l.followers.insert(from, follower);
        self.send_chunks(now, from, fx);
    }

    /// What is to be told to a member that holds this, and has that staged.
    fn delta_for(&self, to: NodeId, heads: Heads, staged: &Heads) -> Option<Delta> {
        let Role::Leading(l) = &self.role else { return None };
        let h0 = self.store.heads().clone();
        // One that has nothing is told all there is, whatever is forgotten meanwhile.
        let anew = heads.is_empty() || self.store.floor().is_beyond(&heads, &h0);
        let mut have = if anew { Heads::default() } else { heads };
        let mut both = have.clone();
        both.join(staged);
        let told = !anew && self.store.floor().levels.within(&both);
        let there = staged.within(&h0) || mutant!(self, StagedBeyond);
        let over = told && !l.by_side && !staged.is_empty() && there;
        if over {
            have = both;
        }
        // Nobody is given anything who could not be listed.
        let row = self.store.own(&key::member(to)).map(|r| r.version).or(self.founder(to))?;
        let listed = if row.branch == l.branch { row.seq } else { 0 };
        Some(Delta { have, anew, over, listed, h0, after: None, sent: 0, acked: 0, done: false })
    }

    pub(crate) fn on_sync_ack(&mut self, now: Now, from: NodeId, session: u64, no: u32, fx: &mut Effects) {
        let Role::Leading(l) = &mut self.role else { return };
        let Some(follower) = l.followers.get_mut(&from).filter(|f| f.session == session) else { return };
        if let Progress::Syncing(delta) = &mut follower.progress {
            delta.acked = delta.acked.max(no.saturating_add(1)).min(delta.sent);
            self.send_chunks(now, from, fx);
        }
    }

    /// While the list of members is empty, founders are members.
    fn founder(&self, node: NodeId) -> Option<base::Version> {
        self.members().contains_key(&node).then(base::Version::default)
    }

    /// Begins the deltas that had to wait until the joiner's membership is committed.
    pub(crate) fn begin_deltas(&mut self, now: Now, fx: &mut Effects) {
        let Role::Leading(l) = &self.role else { return };
        let due = |f: &Follower| matches!(&f.progress, Progress::Syncing(d) if d.sent == 0 && d.listed <= l.commit);
        let due: Vec<NodeId> = l.followers.iter().filter(|(_, f)| due(f)).map(|(node, _)| *node).collect();
        due.into_iter().for_each(|node| self.send_chunks(now, node, fx));
    }

    fn send_chunks(&mut self, now: Now, to: NodeId, fx: &mut Effects) {
        let Role::Leading(l) = &mut self.role else { return };
        let (ballot, upto, commit) = (l.ballot, l.last, l.commit);
        let Some(follower) = l.followers.get_mut(&to) else { return };
        let session = follower.session;
        follower.owes = Some(now.mono);
        let Progress::Syncing(delta) = &mut follower.progress else { return };
        if delta.listed > commit {
            return;
        }
        while !delta.done && delta.sent < delta.acked + CHUNKS_IN_FLIGHT_MAX {
            let after = delta.after.take();
            let bytes = self.config.timing.chunk_bytes;
            let Some((records, after)) = self.store.delta(&delta.have, &delta.h0, after, bytes) else { return };
            let (no, last) = (delta.sent, after.is_none());
            (delta.after, delta.done) = (after, last);
            delta.sent += 1;
            let (h0, anew, staged) = (delta.h0.clone(), delta.anew, delta.over);
            let chunk = Chunk { no, h0, records, last, upto, anew, staged };
            fx.sends.push((to, Msg::Sync { ballot, session, chunk }));
        }
    }
}
