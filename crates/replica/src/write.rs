//! Conditional batches: checked against the leader's latest state, answered when what they saw is committed.

use crate::batch::{Answer, Batch, Bump, Check, FULL_PUT_BYTES_MAX, Limit, Outcome, Refusal, Request, Write};
use crate::config::Storage;
use crate::copy::{Copy, Role};
use crate::gate::{Effects, Reply, Ticket};
use crate::kept::Kept;
use crate::key;
use crate::merge::{fields, unfields};
use crate::mutant;
use crate::policy::MergeRule;
use crate::record::Record;
use crate::shortage::Pressure;
use crate::state;
use crate::store::FETCHES_MAX;
use base::{BATCH_BYTES_MAX, BranchId, Now, Span, VALUE_BYTES_MAX, WallMs};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::Bound;

/// A session's record is rewritten when so many of its requests are finished.
const FINISHED_STEP: u64 = 64;
/// How many expired records one sweep turns into tombstones.
const SWEEP_RECORDS_MAX: usize = 2048;
/// How often the leader looks for expired records.
const SWEEP_EVERY: Span = Span::ms(1000);

/// What a write leaves under its key, nothing if it deletes; and when that expires.
type Left = (Option<Bytes>, Option<WallMs>);

impl Copy {
    pub(crate) fn on_write(&mut self, now: Now, ticket: Ticket, request: Request, fx: &mut Effects) {
        let answer = self.decide(now, ticket, request, fx);
        if let Some(answer) = answer {
            fx.replies.push((ticket, Reply::Write(answer)));
        } else {
            self.advance(now, fx);
        }
    }

    /// An answer that is due at once; `None` when the ticket waits for a commit.
    fn decide(&mut self, now: Now, ticket: Ticket, request: Request, fx: &mut Effects) -> Option<Answer> {
        let first_only = mutant!(self, FirstBranchOnly);
        let id = (request.session, request.number);
        let Role::Leading(l) = &mut self.role else { return Some(Answer::NotLeading) };
        if !l.ready {
            return Some(Answer::Busy);
        }
        let branch = l.branch;
        if request.branches.last() != Some(&branch) {
            return Some(Answer::Moved(branch));
        }
        let floor = l.floors.entry(id.0).or_insert(0);
        if request.done_through > *floor {
            *floor = request.done_through;
            let gone: Vec<_> = l.refused.range((id.0, 0)..(id.0, *floor)).map(|(id, _)| *id).collect();
            for id in gone {
                l.refused.remove(&id);
            }
        }
        let floor = *floor;
        if let Some(record) = self.store.get(&key::outcome(id.0, id.1)) {
            let (version, hlc) = (record.version(), record.hlc());
            if self.too_few_to_answer() {
                return Some(Answer::Busy);
            }
            if self.was_overruled(&request.batch, version) {
                return Some(Answer::Outcome(Outcome::Unknown, branch));
            }
            let pending = version.branch == branch && !mutant!(self, PendingAnswered);
            let seq = if pending { version.seq } else { 0 };
            return self.wait(ticket, seq, Outcome::Done { version, hlc });
        }
        if let Some((refusal, seen)) = l.refused.get(&id).cloned() {
            return self.wait(ticket, seen, Outcome::Failed(refusal));
        }
        if request.number < floor.max(self.store.done_through(id.0)) {
            return Some(Answer::Outcome(Outcome::Failed(Refusal::Finished), branch));
        }
        // May it have been applied where I cannot see it? [R1]
        let ended = |b: &BranchId| self.store.heads().is_folded(*b) || self.store.get(&key::closed(*b)).is_some();
        let settled = |b: &BranchId| *b == branch || ended(b);
        if !request.branches.iter().all(|b| settled(b) || (first_only && Some(b) != request.branches.first())) {
            return Some(Answer::Outcome(Outcome::Unknown, branch));
        }
        if l.is_busy() {
            return Some(Answer::Busy);
        }
        // What is dropped is described by what the system table keeps of it.
        let least = if self.config.open_membership { BATCH_BYTES_MAX } else { FULL_PUT_BYTES_MAX };
        let full = self.pressure().most() == Pressure::Full && !request.batch.frees(least);
        let puts = match self.too_few_to_write() {
            Some(refusal) => Err(refusal),
            None if full => Err(Refusal::NoSpace),
            None => self.evaluate(now, &request.batch).and_then(|puts| self.bounded(puts)),
        };
        match puts {
            Ok(puts) => self.accept(now, ticket, request, puts, fx),
            Err(refusal) => {
                let forget = mutant!(self, RefusalForgotten);
                let Role::Leading(l) = &mut self.role else { return Some(Answer::NotLeading) };
                let seen = l.last;
                if !forget {
                    l.refused.insert(id, (refusal.clone(), seen));
                }
                self.wait(ticket, seen, Outcome::Failed(refusal))
            }
        }
    }

    fn wait(&mut self, ticket: Ticket, seq: u64, outcome: Outcome) -> Option<Answer> {
        if let Role::Leading(l) = &mut self.role {
            let answer = Answer::Outcome(outcome, l.branch);
            l.waits.add(seq, ticket, answer);
        }
        None
    }

    fn accept(
        &mut self,
        now: Now,
        ticket: Ticket,
        request: Request,
        mut puts: Vec<(Bytes, Record)>,
        fx: &mut Effects,
    ) -> Option<Answer> {
        let outcome = self.next_record(now, Some(Bytes::new()));
        let (version, hlc) = (outcome.version, outcome.hlc);
        puts.push((key::outcome(request.session, request.number), outcome));
        if request.done_through >= self.store.done_through(request.session).saturating_add(FINISHED_STEP) {
            let record = self.next_record(now, Some(key::encode(&request.done_through)));
            puts.push((key::session(request.session), record));
        }
        if let Role::Leading(l) = &mut self.role {
            l.writers.note(request.session.node);
        }
        let sync = self.config.sync || request.batch.sync;
        let seq = self.append(now, puts, sync, fx);
        self.shed(now, fx);
        self.wait(ticket, seq, Outcome::Done { version, hlc })
    }

    /// The records that the batch would put, or why it may not.
    fn evaluate(&mut self, now: Now, batch: &Batch) -> Result<Vec<(Bytes, Record)>, Refusal> {
        batch.validate()?;
        for (index, check) in (0..).zip(&batch.checks) {
            if let Some(refusal) = self.check_elsewhere(check) {
                return Err(refusal);
            }
            if !self.holds(now.wall, check) {
                return Err(Refusal::Check(index));
            }
        }
        let mut puts: BTreeMap<Bytes, Record> = BTreeMap::new();
        for (index, write) in (0..).zip(&batch.writes) {
            let stored = match write {
                Write::Forget { key, lost } => key::ledger(key, *lost),
                _ => key::user(write.key()),
            };
            let put = puts.get(&stored);
            let kept = if put.is_some() { None } else { self.store.get(&stored) };
            let over = put.map(|r| r.hlc).or(kept.map(Kept::hlc));
            let Some((value, expires)) = self.outcome_of(now, (index, write), &stored, put)? else { continue };
            let state = state::is_state(self.config.policy.rule(write.key()));
            if let Some(value) = value.as_ref().filter(|value| state && value.len() > VALUE_BYTES_MAX) {
                // With what it takes to merge it.
                let is = value.len() as u64;
                return Err(Refusal::TooLarge { what: Limit::Value, is, most: VALUE_BYTES_MAX as u64 });
            }
            let mut record = self.next_record(now, value);
            // Above what it overwrites, so that the order of stamps extends causality. A value that is touched is no newer for that: it
            // loses to what was put elsewhere meanwhile.
            let least = over.map_or(record.hlc, |hlc| hlc.next());
            record.hlc = if let Write::Expire { .. } = write { least } else { record.hlc.max(least) };
            record.expires = expires;
            puts.insert(stored, record);
        }
        // Touched values are written whole, and are no part of what was asked for.
        let bytes = puts.iter().map(|(k, r)| k.len() + r.value.as_ref().map_or(0, Bytes::len)).sum::<usize>();
        if bytes > BATCH_BYTES_MAX && batch.writes.iter().any(|w| matches!(w, Write::Expire { .. })) {
            return Err(Refusal::TooLarge { what: Limit::Batch, is: bytes as u64, most: BATCH_BYTES_MAX as u64 });
        }
        Ok(puts.into_iter().collect())
    }

    /// What one write of a batch leaves under its key, and when that expires; `None`: what is there.
    fn outcome_of(
        &self,
        now: Now,
        (index, write): (u32, &Write),
        stored: &Bytes,
        put: Option<&Record>,
    ) -> Result<Option<Left>, Refusal> {
        let kept = if put.is_some() { None } else { self.store.get(stored) };
        // What the table itself took out is not what somebody wished away.
        let wished = |kept: &Kept| kept.is_tombstone() && !kept.is_cleared();
        let gone = put.map(|r| r.value.is_none()).or(kept.map(wished));
        let rule = self.config.policy.rule(write.key());
        let state = state::is_state(rule);
        let after = |ttl_ms: Option<u64>| ttl_ms.map(|ms| WallMs(now.wall.0.saturating_add(ms)));
        let or_usual = |ttl_ms: &Option<u64>| after(ttl_ms.or(self.config.ttl_ms));
        Ok(Some(match write {
            Write::Put { .. } if state && self.config.stand_in && put.is_none() && kept.is_none() => {
                return Err(Refusal::Elsewhere);
            }
            Write::Put { value, ttl_ms, .. } if state => {
                let old = self.whole_before(stored, put, index)?;
                let old = old.as_ref().and_then(|r| r.live(now.wall));
                let value = state::put(rule, old, value, self.next_version());
                (Some(value.ok_or(Refusal::NotACounter(index))?), or_usual(ttl_ms))
            }
            Write::Put { value, ttl_ms, .. } => (Some(value.clone()), or_usual(ttl_ms)),
            // One that has expired still needs its tombstone: another leader's clock may run behind.
            Write::Delete { .. } | Write::Forget { .. } if gone.unwrap_or(!self.config.stand_in) => return Ok(None),
            Write::Delete { .. } | Write::Forget { .. } => (None, None),
            Write::Expire { .. } if matches!(rule, MergeRule::Sum | MergeRule::Union) => {
                return Err(Refusal::LivesInParts);
            }
            Write::Expire { .. } if self.config.stand_in && gone.is_none() => return Err(Refusal::Elsewhere),
            Write::Expire { ttl_ms, .. } => {
                let old = self.whole_before(stored, put, index)?;
                let Some(value) = old.as_ref().and_then(|r| r.live(now.wall)) else { return Ok(None) };
                (Some(value.clone()), after(*ttl_ms))
            }
            Write::Bump { by, fields, .. } => {
                let old = self.whole_before(stored, put, index)?;
                let alone = matches!((rule, by), (MergeRule::Sum, Bump::Add) | (MergeRule::Max, Bump::Max));
                if old.is_none() && self.config.stand_in && !alone {
                    return Err(Refusal::Elsewhere);
                }
                let live = old.as_ref().and_then(|r| r.live(now.wall));
                let value = match rule {
                    MergeRule::Sum => self.bump_state(old.as_ref().filter(|_| live.is_some()), *by, fields),
                    _ => bump(live, *by, fields),
                };
                let expires = if live.is_some() { old.as_ref().and_then(|r| r.expires) } else { or_usual(&None) };
                (Some(value.ok_or(Refusal::NotACounter(index))?), expires)
            }
        }))
    }

    /// What is under a key before this write of a batch.
    fn whole_before(&self, stored: &Bytes, put: Option<&Record>, index: u32) -> Result<Option<Record>, Refusal> {
        match (put, self.store.get(stored)) {
            (Some(put), _) => Ok(Some(put.clone())),
            // One that cannot be read is not taken for none.
            (None, Some(kept)) => self.store.whole(stored, kept).map(Some).ok_or(Refusal::NotACounter(index)),
            (None, None) => Ok(None),
        }
    }

    /// A counter of which every author's part is kept.
    fn bump_state(&self, old: Option<&Record>, by: Bump, with: &[u64]) -> Option<Bytes> {
        let more: Vec<u64> = match by {
            Bump::Add => with.to_vec(),
            Bump::Max => {
                let now = state::counted(old, with.len())?;
                with.iter().zip(now).map(|(with, now)| (*with).max(now).wrapping_sub(now)).collect()
            }
        };
        state::added(old, &more, self.next_version())
    }

    fn holds(&self, wall: WallMs, check: &Check) -> bool {
        let live = |k: &Bytes| self.store.get(&key::user(k)).filter(|r| r.is_live(wall));
        match check {
            Check::Absent(k) => !self.is_live(wall, k),
            Check::Present(k) => self.is_live(wall, k),
            Check::AtVersion(k, version) => live(k).is_some_and(|r| r.version() == *version),
            Check::Count(prefix, n) => {
                let from = key::user(prefix);
                let to = key::after_prefix(&from);
                let to = to.as_ref().map_or(Bound::Unbounded, |to| Bound::Excluded(&to[..]));
                let live = self.store.range(Bound::Included(&from), to).filter(|(_, r)| r.is_live(wall));
                live.take(*n as usize + 1).count() == *n as usize
            }
        }
    }

    /// Turns expired records into tombstones with their victims' stamps, so that they lose to every later write.
    pub(crate) fn sweep(&mut self, now: Now, fx: &mut Effects) {
        let Role::Leading(l) = &mut self.role else { return };
        if now.mono - l.swept < SWEEP_EVERY || l.is_busy() {
            return;
        }
        // What has expired is absent for readers all the same.
        if self.too_few_to_write().is_some() {
            return;
        }
        let Role::Leading(l) = &mut self.role else { return };
        // What is replaced is kept whole until that is committed: values on disc are read for it.
        let most = if self.store.form() == Storage::DiscOnly { FETCHES_MAX } else { SWEEP_RECORDS_MAX };
        let gone = self.store.expired(now.wall, most);
        // A full sweep goes on with the next tick.
        if gone.len() < most {
            l.swept = now.mono;
        }
        if !gone.is_empty() {
            let mut puts = Vec::new();
            for (stored, hlc) in gone {
                puts.push((stored, Record::cleared(self.next_version(), hlc)));
            }
            self.tally.expired += puts.len() as u64;
            self.append(now, puts, false, fx);
        }
    }
}

fn bump(live: Option<&Bytes>, by: Bump, with: &[u64]) -> Option<Bytes> {
    let old = live.map_or_else(|| Some(vec![0; with.len()]), |value| fields(value))?;
    let combine = |(old, new): (u64, &u64)| match by {
        Bump::Max => old.max(*new),
        Bump::Add => old.wrapping_add(*new),
    };
    (old.len() == with.len()).then(|| unfields(old.into_iter().zip(with).map(combine)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::tests::feed;
    use crate::open::tests::{at, config};
    use crate::{Input, Meta, Range, SessionId, Store};
    use base::NodeId;

    /// A copy that leads alone, of a table whose values live for 10 s if nothing else is said.
    fn leading() -> Copy {
        let config = crate::Config { founders: vec![NodeId(1)], ttl_ms: Some(10_000), ..config() };
        let mut copy = Copy::new(at(0), config, Meta::default(), Store::default());
        feed(&mut copy, 5000, Input::Tick);
        feed(&mut copy, 5100, Input::Tick);
        copy
    }

    pub(crate) fn write(copy: &mut Copy, ms: u64, number: u64, write: Write) {
        let session = SessionId { node: NodeId(1), incarnation: 1 };
        let branches = vec![copy.lead().expect("it leads").branch];
        let batch = Batch { writes: vec![write], ..Batch::default() };
        feed(copy, ms, Input::Write(number, Request { session, number, done_through: 0, branches, batch }));
    }

    /// When what is under a key expires, after that moment's start; `None`: never, or there is nothing.
    fn left(copy: &Copy, ms: u64, key: &'static str) -> Option<u64> {
        let record = copy.store().find(&key::user(key.as_bytes()))?;
        record.live(at(ms).wall)?;
        Some(record.expires?.0 - at(ms).wall.0)
    }

    fn shown(copy: &mut Copy, ms: u64, key: &'static str) -> bool {
        let mut fx = Effects::default();
        copy.handle(at(ms), Input::Read(99, vec![Range::key(key.into())]), &mut fx);
        fx.replies.iter().any(|(_, reply)| matches!(reply, Reply::Rows(rows) if !rows[0].rows.is_empty()))
    }

    #[test]
    fn values_live_for_as_long_as_they_or_their_table_say() {
        let mut copy = leading();
        let put = |key: &'static str, ttl_ms| Write::Put { key: key.into(), value: vec![0; 8].into(), ttl_ms };
        let expire = |key: &'static str, ttl_ms| Write::Expire { key: key.into(), ttl_ms };
        write(&mut copy, 6000, 1, put("usual", None));
        write(&mut copy, 6000, 2, put("own", Some(2000)));
        assert_eq!((left(&copy, 6000, "usual"), left(&copy, 6000, "own")), (Some(10_000), Some(2000)));
        // A bump leaves it when it was to go; one that makes a counter has it live as the table says.
        for (number, key) in [(3, "own"), (4, "new")] {
            write(&mut copy, 7000, number, Write::Bump { key: key.into(), by: Bump::Add, fields: vec![1] });
        }
        assert_eq!((left(&copy, 7000, "own"), left(&copy, 7000, "new")), (Some(1000), Some(10_000)));
        let before = copy.store().find(&key::user(b"own")).expect("there").value;
        write(&mut copy, 7500, 5, expire("own", Some(4000)));
        write(&mut copy, 7500, 6, expire("usual", None));
        write(&mut copy, 7500, 7, expire("nothing", Some(4000)));
        assert_eq!((left(&copy, 7500, "own"), left(&copy, 7500, "usual")), (Some(4000), None));
        assert_eq!(copy.store().find(&key::user(b"own")).expect("there").value, before);
        assert!(copy.store().get(&key::user(b"nothing")).is_none());
        assert!(shown(&mut copy, 11_499, "own") && !shown(&mut copy, 11_500, "own"));
        // It is no newer for having been touched.
        let (touched, put) = (copy.store().find(&key::user(b"own")), copy.store().find(&key::user(b"new")));
        assert!(touched.expect("there").hlc.wall() < at(7500).wall && put.expect("there").hlc.wall() >= at(7000).wall);
        // What has expired does not come back.
        write(&mut copy, 11_600, 8, expire("own", None));
        assert!(!shown(&mut copy, 11_600, "own") && shown(&mut copy, 60_000, "usual"));
    }

    #[test]
    fn what_expires_gives_its_room_back_within_seconds() {
        let mut copy = leading();
        for number in 1..=5000 {
            let key = number.to_string().into();
            write(&mut copy, 6000, number, Write::Put { key, value: vec![0; 100].into(), ttl_ms: None });
        }
        assert_eq!(copy.store().live_size().0, 5000);
        for tenth in 0..20 {
            feed(&mut copy, 16_000 + tenth * 100, Input::Tick);
        }
        assert_eq!(copy.store().live_size(), (0, 0));
    }
}
