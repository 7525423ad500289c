//! Following a leader: join, take the delta into an inbox, switch it on with the heads in one step, then mirror appends.

use crate::copy::{Copy, Role};
use crate::gate::{Effects, Notice, Then};
use crate::kept::Kept;
use crate::lease::Loan;
use crate::msg::{Chunk, Lead, Msg};
use crate::mutant;
use crate::record::{Entry, Record, Stage, WriteBatch};
use crate::shortage::Pressure;
use base::{Ballot, Heads, Instant, NodeId, Now, Span, Version};
use bytes::Bytes;
use std::collections::BTreeMap;

/// How many bytes of appends a joiner keeps while its delta comes; beyond that it begins anew.
const TAIL_BYTES_MAX: usize = 512 * 1024 * 1024;
/// How often a follower tells its leader what was read.
const TELL_USES: Span = Span::ms(1000);

/// A session with one leader, from asking to join until anything goes wrong.
pub(crate) struct Following {
    pub leader: NodeId,
    pub lead: Lead,
    pub session: u64,
    /// In step: the delta is in, appends are applied as they come.
    pub joined: bool,
    /// The delta so far. Invisible, since the heads do not cover it yet [D1].
    inbox: BTreeMap<u32, Vec<(Bytes, Record)>>,
    /// Those of its records whose values are on disc already, where nothing sees them.
    staged: Vec<(Bytes, Kept)>,
    /// How many chunks there are, once the last has come.
    chunks: Option<u32>,
    /// What the delta does not hold is not there any more.
    anew: bool,
    /// The delta is beyond what this copy has staged of other islands.
    over_staged: bool,
    /// Appends that came meanwhile.
    tail: BTreeMap<u64, Entry>,
    tail_bytes: usize,
    /// The leader's heads when the session began, and its last entry when the newest chunk was cut.
    h0: Heads,
    upto: u64,
    /// The last entry applied.
    seq: u64,
    pub commit: u64,
    heard: Instant,
    /// When it told last what was read here.
    told: Instant,
    pub loan: Loan,
}

impl Following {
    /// Has some of its delta been staged?
    pub(crate) fn stages(&self) -> bool {
        !self.staged.is_empty()
    }
}

impl Copy {
    /// Asks a leader to be let in.
    pub(crate) fn follow(&mut self, now: Now, leader: NodeId, lead: Lead, fx: &mut Effects) {
        // Grows with every request of this copy, over restarts too.
        self.sessions += 1;
        let session = self.config.incarnation << 32 | self.sessions;
        let (heads, staged, promised) = (self.store.heads().clone(), self.staged_heads(), self.meta.promised);
        let (ballot, branch, stand_in) = (lead.ballot, lead.branch, self.config.stand_in);
        fx.sends.push((leader, Msg::Join { ballot, branch, session, heads, staged, promised, stand_in }));
        if lead.ballot < promised {
            // Not to be followed; but it learns of the higher ballot, and opens anew.
            return self.rest(now);
        }
        self.role = Role::Following(Box::new(Following {
            leader,
            lead,
            session,
            joined: false,
            inbox: BTreeMap::new(),
            staged: Vec::new(),
            chunks: None,
            anew: false,
            over_staged: false,
            tail: BTreeMap::new(),
            tail_bytes: 0,
            h0: Heads::default(),
            upto: 0,
            seq: 0,
            commit: 0,
            heard: now.mono,
            told: now.mono,
            loan: Loan::default(),
        }));
    }

    pub(crate) fn tend_following(&mut self, now: Now, fx: &mut Effects) {
        let Role::Following(f) = &mut self.role else { return };
        let said = self.statuses.get(&f.leader).map(|s| s.lead.map(|l| l.ballot));
        let gone = !self.view.contains(&f.leader);
        // The leader says that it leads something else, or nothing.
        let over = said.is_some_and(|ballot| ballot != Some(f.lead.ballot));
        let timing = self.config.timing;
        let patience = if f.inbox.is_empty() { timing.append_timeout } else { timing.sync_timeout };
        let stuck = !f.joined && now.mono - f.heard > patience;
        if gone || over {
            self.step_down(now, fx);
        } else if stuck {
            self.rejoin(now, fx);
        } else if f.joined && now.mono - f.heard > timing.probe {
            // Am I still your follower? A leader that knows nothing of this session says so.
            let (leader, msg) = (f.leader, Msg::Ack { session: f.session, seq: f.seq });
            f.heard = now.mono;
            self.gate.push(Then::Send(leader, msg));
        }
        self.tell_uses(now, fx);
        self.tend_loan(now, fx);
    }

    /// Once a second: what is read here has its use for the leader.
    fn tell_uses(&mut self, now: Now, fx: &mut Effects) {
        let Role::Following(f) = &mut self.role else { return };
        if !f.joined || now.mono - f.told < TELL_USES {
            return;
        }
        f.told = now.mono;
        let (leader, session) = (f.leader, f.session);
        if let Some((used, hits, misses)) = self.uses_to_tell() {
            fx.sends.push((leader, Msg::Used { session, used, hits, misses }));
        }
    }

    /// The session is broken: ask anew, at once if the leader still leads.
    fn rejoin(&mut self, now: Now, fx: &mut Effects) {
        // The same one, not one of another island that leads with a higher ballot.
        let same = match &self.role {
            Role::Following(f) => {
                self.leads().find(|(node, lead, _)| (*node, lead.ballot) == (f.leader, f.lead.ballot))
            }
            _ => None,
        };
        self.step_down(now, fx);
        let next = same.map(|(node, lead, _)| (node, lead)).or_else(|| self.foreign_lead());
        if let Some((leader, lead)) = next.filter(|(node, _)| self.may_follow(*node)) {
            self.follow(now, leader, lead, fx);
        }
    }

    pub(crate) fn on_sync(&mut self, now: Now, from: NodeId, session: u64, chunk: Chunk, fx: &mut Effects) {
        let unstaged = mutant!(self, SyncUnstaged);
        let Chunk { no, h0, mut records, last, upto, anew, staged } = chunk;
        let Role::Following(f) = &mut self.role else { return };
        if f.session != session || f.joined {
            return;
        }
        f.heard = now.mono;
        // No room to stage it: the leader gives it up after a while, and it is asked for again.
        if self.shortage.disc == Pressure::Full && self.store.lets_go() {
            return;
        }
        if last {
            f.chunks = Some(no.saturating_add(1));
        }
        f.upto = f.upto.max(upto);
        (f.h0, f.anew, f.over_staged) = (h0, anew, staged);
        let early = if unstaged { records.clone() } else { Vec::new() };
        if f.inbox.contains_key(&no) {
            return self.gate.push(Then::Send(from, Msg::SyncAck { session, no }));
        }
        let first = f.staged.is_empty() && !mutant!(self, StagingKept);
        let mut batch = WriteBatch { stage: Stage::Keep { first }, ..WriteBatch::default() };
        if self.store.lets_go() {
            let apart = |(key, record): &mut (Bytes, Record)| self.store.takes(key, record);
            batch.puts = records.extract_if(.., apart).collect();
        }
        f.staged.extend(batch.puts.iter().map(|(key, r)| (key.clone(), Kept::without_value(r))));
        f.inbox.insert(no, records);
        if !batch.puts.is_empty() {
            self.staging = true;
            self.persist(batch, true, fx);
        }
        // Not before it is on disc, lest a fast leader fill the way there.
        self.gate.push(Then::Send(from, Msg::SyncAck { session, no }));
        if unstaged {
            let batch = self.store.apply(Vec::new(), early);
            self.persist(batch, false, fx);
        }
        self.try_switch(now, fx);
    }

    /// Is the whole delta here, and every entry up to where its last chunk was cut? A record that was overwritten before its
    /// chunk was cut is in no chunk: only the overwriting entry tells of it.
    fn try_switch(&mut self, now: Now, fx: &mut Effects) {
        let early = mutant!(self, SwitchEarly);
        let Role::Following(f) = &mut self.role else { return };
        if f.chunks != Some(f.inbox.len() as u32) {
            return;
        }
        let first = f.h0.seq(f.lead.branch).saturating_add(1);
        if early || (first..=f.upto).all(|seq| f.tail.contains_key(&seq)) {
            let h0 = std::mem::take(&mut f.h0);
            self.switch_on(now, h0, fx);
        }
    }

    /// Records, heads and the word to the leader become true in one step.
    fn switch_on(&mut self, now: Now, h0: Heads, fx: &mut Effects) {
        let outcomes_stay = mutant!(self, OutcomesStay);
        let Role::Following(f) = &mut self.role else { return };
        let branch = f.lead.branch;
        f.seq = h0.seq(branch);
        let inbox: Vec<_> = std::mem::take(&mut f.inbox).into_values().flatten().collect();
        let mut puts = if f.over_staged { self.merge_staged() } else { Vec::new() };
        puts.extend(inbox);
        self.stagings.clear();
        let Role::Following(f) = &mut self.role else { return };
        if outcomes_stay {
            puts.retain(|(key, _)| key.first() != Some(&(crate::Space::Outcome as u8)));
        }
        let staged = std::mem::take(&mut f.staged);
        let (mut heads, anew) = (h0, f.anew);
        let tail = std::mem::take(&mut f.tail);
        for entry in tail.into_values() {
            if entry.seq == f.seq.saturating_add(1) {
                f.seq = entry.seq;
                puts.extend(entry.puts);
            } else if entry.seq > f.seq {
                // One was lost on the way.
                return self.rejoin(now, fx);
            }
        }
        heads.add(Version { branch, seq: f.seq });
        f.joined = true;
        self.let_go = None;
        let (leader, session, seq, ballot) = (f.leader, f.session, f.seq, f.lead.ballot);
        self.meta.promised = self.meta.promised.max(ballot);
        let stamps = puts.iter().map(|(_, r)| r.hlc).chain(staged.iter().map(|(_, kept)| kept.hlc()));
        self.hlc = self.hlc.max(self.seen(now, stamps));
        let drops = if anew {
            self.store.all_but(staged.iter().map(|(k, _)| k).chain(puts.iter().map(|(k, _)| k)))
        } else {
            Vec::new()
        };
        let mut batch = self.store.switch(&heads, staged, puts, drops);
        self.staging = false;
        self.raise_ceiling();
        batch.meta = Some(self.meta);
        self.persist(batch, true, fx);
        self.gate.push(Then::Send(leader, Msg::Ack { session, seq }));
        self.note(Notice::Following(leader), fx);
    }

    pub(crate) fn on_append(
        &mut self,
        now: Now,
        from: NodeId,
        session: u64,
        entries: Vec<Entry>,
        commit: u64,
        fx: &mut Effects,
    ) {
        let Role::Following(f) = &mut self.role else { return };
        if f.session != session {
            return;
        }
        f.heard = now.mono;
        f.learn_commit(commit);
        if entries.is_empty() {
            return;
        }
        if !f.joined {
            f.tail_bytes += entries.iter().flat_map(|e| &e.puts).map(|(k, r)| r.weight(k)).sum::<usize>();
            f.tail.extend(entries.into_iter().map(|e| (e.seq, e)));
            if f.tail_bytes > TAIL_BYTES_MAX {
                return self.rejoin(now, fx);
            }
            return self.try_switch(now, fx);
        }
        let (mut puts, mut sync, branch) = (Vec::new(), false, f.lead.branch);
        for entry in entries {
            if entry.seq > f.seq.saturating_add(1) {
                return self.rejoin(now, fx);
            }
            if entry.seq == f.seq.saturating_add(1) {
                f.seq = entry.seq;
                sync |= entry.sync;
                f.note_pending(&entry);
                puts.extend(entry.puts);
            }
        }
        let seq = f.seq;
        self.write(now, vec![Version { branch, seq }], puts, sync, fx);
        self.gate.push(Then::Send(from, Msg::Ack { session, seq }));
    }

    pub(crate) fn on_dropped(&mut self, now: Now, from: NodeId, ballot: Ballot, session: u64, fx: &mut Effects) {
        let Role::Following(f) = &self.role else { return };
        if f.leader == from && f.lead.ballot == ballot && f.session == session && !mutant!(self, DropUntold) {
            self.step_down(now, fx);
        }
    }

    pub(crate) fn on_confirm(&mut self, now: Now, from: NodeId, session: u64, nonce: u64, fx: &mut Effects) {
        let Role::Following(f) = &self.role else { return };
        if f.joined && f.session == session {
            let until = now.mono + self.config.timing.lease_given();
            self.word.give(now.mono, from, until);
            fx.sends.push((from, Msg::Confirmed { session, nonce }));
        }
    }
}
