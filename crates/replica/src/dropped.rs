//! Fragments of a table that was dropped: what was written by those who could not know of it is told apart, so that it is not
//! lost with the rest.

use crate::config::Storage;
use crate::copy::{Copy, Role};
use crate::evict::{PASS_BYTES, PASS_MAX};
use crate::gate::Effects;
use crate::key::{self, MemberStatus, Space};
use crate::lead::Leading;
use crate::record::Record;
use crate::store::FETCHES_MAX;
use base::{Heads, Hlc, NodeId, Now, WallMs};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Up to where a fragment's records went with its table.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Mark {
    /// Which drop of the table: what turned up later may be dropped, too.
    pub number: u64,
    /// What the leader held that learned of the drop in its own island.
    pub heads: Heads,
}

impl Mark {
    pub(crate) fn read(record: &Record) -> Mark {
        record.value.as_ref().and_then(|v| key::decode(v)).unwrap_or_default()
    }

    /// Of two drops the later; where both islands dropped it, what either knew.
    pub(crate) fn joined(self, other: &Mark) -> Mark {
        match self.number.cmp(&other.number) {
            std::cmp::Ordering::Less => other.clone(),
            std::cmp::Ordering::Greater => self,
            std::cmp::Ordering::Equal => {
                let mut heads = self.heads;
                heads.join(&other.heads);
                Mark { heads, ..self }
            }
        }
    }
}

/// How far a leader is with clearing what was dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Clears {
    /// Which drop of the table.
    pub number: u64,
    /// Nothing is left that may go.
    pub ends: bool,
}

impl Copy {
    /// The table was dropped in this island, which knew so much of it then: that goes with it.
    pub(crate) fn mark_dropped(&mut self, now: Now, number: u64, heads: Heads, fx: &mut Effects) {
        if self.lead().is_none() || self.drop_mark().is_some_and(|mark| mark.number >= number) {
            return;
        }
        let mark = Mark { number, heads };
        let record = self.next_record(now, Some(key::encode(&mark)));
        self.append(now, vec![(key::dropped(self.config.line), record)], true, fx);
    }

    fn drop_mark(&self) -> Option<Mark> {
        let all = self.store.own_space(Space::Dropped).map(|(_, record)| Mark::read(record));
        all.reduce(|mark, other| mark.joined(&other))
    }

    /// Does this leader hold records that whoever dropped the table, for the so-manieth time, did not know of? `None`: it has
    /// not been marked, or this copy does not lead.
    pub fn outlives(&self, number: u64, wall: WallMs) -> Option<bool> {
        let Role::Leading(l) = &self.role else { return None };
        let mark = self.drop_mark().filter(|mark| l.ready && mark.number >= number)?;
        Some(self.store.is_live_beyond(&mark.heads, wall))
    }

    /// Could records of a table that was dropped, for the so-manieth time, go now? Every copy that there is must know of it, and nothing
    /// outlive it.
    pub fn may_clear(&self, number: u64, wall: WallMs) -> bool {
        let more = |l: &Leading| l.clears != Some(Clears { number, ends: true });
        matches!(&self.role, Role::Leading(l) if more(l))
            && self.store.live_size().0 > 0
            && self.outlives(number, wall) == Some(false)
            && self.is_everywhere()
    }

    /// Some of them go, like those that are evicted, so that they beat nothing that turns up after all. What was stamped later than that
    /// stays: whoever wrote it may not have known, though the mark counts it.
    pub(crate) fn clear_dropped(&mut self, now: Now, number: u64, before: WallMs, fx: &mut Effects) {
        if !self.may_clear(number, now.wall) || matches!(&self.role, Role::Leading(l) if l.is_busy()) {
            return;
        }
        // What goes is kept whole until that is committed: values on disc are read for it.
        let most = if self.store.form() == Storage::DiscOnly { FETCHES_MAX } else { PASS_MAX };
        let mut bytes = 0;
        let fits = |(key, _): &(Bytes, Hlc)| {
            bytes += key.len() + 64;
            bytes < PASS_BYTES
        };
        let some: Vec<_> =
            self.store.first_live().filter(|(_, hlc)| hlc.wall() < before).take(most).take_while(fits).collect();
        if let Role::Leading(l) = &mut self.role {
            l.clears = Some(Clears { number, ends: some.is_empty() });
        }
        if some.is_empty() {
            return;
        }
        let gone = some.into_iter().map(|(key, hlc)| (key, Record::cleared(self.next_version(), hlc))).collect();
        self.append(now, gone, false, fx);
        self.shed(now, fx);
    }

    /// Has this leader no rival, and every copy that there is all that it has?
    fn is_everywhere(&self) -> bool {
        let Role::Leading(l) = &self.role else { return false };
        let has_all = |node: &NodeId| {
            *node == self.config.me || l.followers.get(node).is_some_and(|f| f.joined() && f.acked >= l.last)
        };
        let counts = |status: &MemberStatus| !matches!(status, MemberStatus::Left | MemberStatus::Buried);
        let all = self.members();
        let met = self.whole && l.ready && l.commit >= l.last && self.foreign_lead().is_none();
        met && all.iter().filter(|(_, status)| counts(status)).all(|(node, _)| has_all(node))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::tests::{feed, leading};
    use crate::{Batch, Input, Msg, Request, SessionId, Write};
    use base::NodeId;

    #[test]
    fn what_comes_after_the_mark_outlives_the_table() {
        let (mut copy, start) = leading();
        let put = |copy: &mut Copy, number: u64| {
            let branches = vec![copy.lead().expect("it leads").branch];
            let writes = vec![Write::Put { key: "k".into(), value: "v".into(), ttl_ms: None }];
            let batch = Batch { writes, ..Batch::default() };
            let session = SessionId { node: NodeId(9), incarnation: 1 };
            feed(copy, start, Input::Write(number, Request { session, number, done_through: 0, branches, batch }));
        };
        put(&mut copy, 1);
        assert_eq!(copy.outlives(1, WallMs(0)), None, "nobody has said so");
        let known = copy.store().heads().clone();
        feed(&mut copy, start, Input::Dropped(1, known));
        assert_eq!(copy.outlives(1, WallMs(0)), Some(false));
        // Written by somebody who did not know.
        put(&mut copy, 2);
        assert_eq!(copy.outlives(1, WallMs(0)), Some(true));
        assert_eq!(copy.outlives(2, WallMs(0)), None);
        let known = copy.store().heads().clone();
        feed(&mut copy, start, Input::Dropped(2, known));
        assert_eq!(copy.outlives(2, WallMs(0)), Some(false), "dropped again");
    }

    /// Only when each copy knows, and nothing that was written since; and what turns up later beats it.
    #[test]
    fn what_was_dropped_goes_when_everybody_knows() {
        let (mut copy, start) = leading();
        let live = |copy: &Copy| copy.store().live_size().0;
        let put = |copy: &mut Copy, number: u64, key: &str| {
            let branches = vec![copy.lead().expect("it leads").branch];
            let writes = vec![Write::Put { key: key.to_string().into(), value: "v".into(), ttl_ms: None }];
            let batch = Batch { writes, ..Batch::default() };
            let session = SessionId { node: NodeId(9), incarnation: 1 };
            feed(copy, start, Input::Write(number, Request { session, number, done_through: 0, branches, batch }));
        };
        let seen = |whole| {
            let view = [NodeId(2)].into();
            Input::View { view, dead: [].into(), gone: [].into(), flapping: [].into(), whole }
        };
        let ack = || Input::Msg(NodeId(2), Msg::Ack { session: 7, seq: u64::MAX });
        (0..10).for_each(|n| put(&mut copy, n + 1, &format!("k{n}")));
        let known = copy.store().heads().clone();
        feed(&mut copy, start, Input::Clear(1, WallMs(u64::MAX)));
        feed(&mut copy, start, Input::Dropped(1, known));
        feed(&mut copy, start, seen(true));
        feed(&mut copy, start, Input::Clear(1, WallMs(u64::MAX)));
        assert_eq!(live(&copy), 10, "the other copy may not know");
        feed(&mut copy, start, seen(false));
        feed(&mut copy, start, ack());
        feed(&mut copy, start, Input::Clear(1, WallMs(u64::MAX)));
        assert_eq!(live(&copy), 10, "somebody is missing");
        feed(&mut copy, start, seen(true));
        feed(&mut copy, start, Input::Clear(2, WallMs(u64::MAX)));
        assert_eq!(live(&copy), 10, "it was not dropped a second time");
        feed(&mut copy, start, Input::Clear(1, WallMs(u64::MAX)));
        assert_eq!(live(&copy), 0);
        assert!(copy.store().get(&key::user(b"k1")).is_none_or(crate::Kept::is_cleared));
        feed(&mut copy, start, ack());
        put(&mut copy, 11, "late");
        feed(&mut copy, start, ack());
        assert_eq!(copy.outlives(1, WallMs(0)), Some(true));
        feed(&mut copy, start, Input::Clear(1, WallMs(u64::MAX)));
        assert_eq!(live(&copy), 1, "what outlives the table stays");
    }

    /// Whoever wrote about when it was dropped may not have known, though the mark counts it.
    #[test]
    fn what_was_written_about_when_it_was_dropped_stays() {
        let (mut copy, start) = leading();
        let put = |copy: &mut Copy, number: u64, ms: u64| {
            let branches = vec![copy.lead().expect("it leads").branch];
            let writes = vec![Write::Put { key: number.to_string().into(), value: "v".into(), ttl_ms: None }];
            let batch = Batch { writes, ..Batch::default() };
            let session = SessionId { node: NodeId(9), incarnation: 1 };
            feed(copy, ms, Input::Write(number, Request { session, number, done_through: 0, branches, batch }));
            feed(copy, ms, Input::Msg(NodeId(2), Msg::Ack { session: 7, seq: u64::MAX }));
        };
        let view = [NodeId(2)].into();
        feed(
            &mut copy,
            start,
            Input::View { view, dead: [].into(), gone: [].into(), flapping: [].into(), whole: true },
        );
        (1..=3).for_each(|number| put(&mut copy, number, start));
        (4..=5).for_each(|number| put(&mut copy, number, start + 400));
        let known = copy.store().heads().clone();
        feed(&mut copy, start + 400, Input::Dropped(1, known));
        feed(&mut copy, start + 400, Input::Msg(NodeId(2), Msg::Ack { session: 7, seq: u64::MAX }));
        let before = crate::open::tests::at(start + 200).wall;
        assert!(copy.may_clear(1, WallMs(0)));
        feed(&mut copy, start + 400, Input::Clear(1, before));
        assert_eq!(copy.store().live_size().0, 2);
        feed(&mut copy, start + 400, Input::Msg(NodeId(2), Msg::Ack { session: 7, seq: u64::MAX }));
        feed(&mut copy, start + 400, Input::Clear(1, before));
        assert_eq!(copy.store().live_size().0, 2);
        assert!(!copy.may_clear(1, WallMs(0)), "it is not asked for ever");
    }

    #[test]
    fn two_islands_that_dropped_it_knew_what_either_knew() {
        let heads =
            |n: u64| Heads::from_iter([base::Version { branch: base::BranchId { node: NodeId(n), n: 1 }, seq: 5 }]);
        let (a, b) = (Mark { number: 1, heads: heads(1) }, Mark { number: 1, heads: heads(2) });
        let both = a.clone().joined(&b);
        assert!(heads(1).within(&both.heads) && heads(2).within(&both.heads));
        assert_eq!(a.clone().joined(&Mark { number: 2, heads: heads(2) }).heads, heads(2), "the later drop");
        assert_eq!(both, b.joined(&a));
    }
}
