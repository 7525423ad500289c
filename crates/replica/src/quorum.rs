//! How few in-sync copies are too few to take a write, and how many are enough.

use crate::batch::{Answer, Batch, Outcome, Refusal, Write};
use crate::copy::{Copy, Role};
use crate::key::{self, MemberStatus, Space};
use crate::mutant;
use base::{NodeId, Version};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// `min_in_sync`: how many in-sync copies a fragment must have for its leader to take writes. Availability comes first by
/// default; whoever would rather wait than have a write on few machines says more.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum MinInSync {
    /// So many, the leader among them.
    Copies(u16),
    /// More than half of the fragment's members, reachable or not: at most one side of a cut acknowledges writes or gets a
    /// new leader. What the other side took before it noticed loses to them when they meet.
    Majority,
}

impl Default for MinInSync {
    fn default() -> Self {
        MinInSync::Copies(1)
    }
}

impl std::fmt::Display for MinInSync {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            MinInSync::Copies(n) => n.fmt(f),
            MinInSync::Majority => f.write_str("majority"),
        }
    }
}

impl Copy {
    /// May another member be counted from here on? Where a majority is asked for, one at a time, and only by a majority:
    /// any two majorities must share a copy, those before and after included.
    pub(crate) fn may_grow(&self) -> bool {
        let Role::Leading(l) = &self.role else { return false };
        self.config.min_in_sync != MinInSync::Majority || (self.too_few().is_none() && !l.changes_members())
    }

    /// Those who hold copies that count.
    pub(crate) fn listed(&self) -> BTreeSet<NodeId> {
        self.members().into_iter().filter(|(_, s)| s.is_member()).map(|(node, _)| node).collect()
    }

    /// Where a majority is asked for, are these one of those?
    pub(crate) fn are_most(&self, these: &BTreeSet<NodeId>, of: &BTreeSet<NodeId>) -> bool {
        self.config.min_in_sync != MinInSync::Majority || (these & of).len() * 2 > of.len()
    }

    /// Where a majority is asked for, will it be there still when there is one member more, who has nothing yet? Of one alone it
    /// will not, whatever one does.
    pub(crate) fn stays_enough(&self) -> bool {
        let Role::Leading(l) = &self.role else { return false };
        let members = self.listed().len();
        self.config.min_in_sync != MinInSync::Majority || members < 2 || l.set.len() * 2 > members + 1
    }

    /// Where a majority is asked for, have so many promised that this opener may lead? Then two openings share a copy, each
    /// branch builds on all that was acknowledged before it, and of two sides the one opened last holds it.
    pub(crate) fn may_open_by_number(&self) -> bool {
        let Role::Opening(o) = &self.role else { return false };
        if self.config.min_in_sync != MinInSync::Majority || mutant!(self, MajorityOpenedByFew) {
            return true;
        }
        // The list as it will be: what was pulled may name more.
        let mut members = self.members();
        let pulled = o.pulled.iter().flat_map(|pulled| &pulled.records);
        for (key, record) in pulled.filter(|(key, _)| key::space_of(key) == Some(Space::Member)) {
            let status = record.value.as_ref().and_then(|v| key::decode::<MemberStatus>(v));
            members.extend(key::node_of_member(key).zip(status));
        }
        members.retain(|node, status| status.is_member() && !self.given_up.contains(node));
        let promised = members.keys().filter(|node| **node == self.config.me || o.answers.contains_key(node));
        promised.count() > members.len() / 2
    }

    /// The in-sync copies in force and those that there must be, if there are too few.
    fn too_few(&self) -> Option<(u16, u16)> {
        let Role::Leading(l) = &self.role else { return None };
        let mut counted = l.in_force() & &l.set;
        let need = match self.config.min_in_sync {
            MinInSync::Copies(n) if n <= 1 => return None,
            MinInSync::Copies(n) => n,
            MinInSync::Majority => {
                let members = self.listed();
                counted = &counted & &members;
                (members.len() / 2 + 1) as u16
            }
        };
        // One that is being dropped counts no more, one that is being taken in not yet.
        let have = counted.len() as u16;
        (have < need).then_some((have, need))
    }

    /// Where a majority is asked for: was this write, which nobody had been told of, beaten by one that a majority took?
    pub(crate) fn was_overruled(&self, batch: &Batch, version: Version) -> bool {
        let lost = |write: &Write| self.store.get(&key::ledger(write.key(), version)).is_some();
        self.config.min_in_sync == MinInSync::Majority && batch.writes.iter().any(lost)
    }

    /// Why a write may not be taken now.
    pub(crate) fn too_few_to_write(&self) -> Option<Refusal> {
        self.too_few().map(|(have, need)| Refusal::TooFewCopies { have, need })
    }

    /// May what is committed be called done? Not what was taken by enough copies and then committed without them: it may be
    /// on too few.
    pub(crate) fn too_few_to_answer(&self) -> bool {
        self.too_few().is_some() && !mutant!(self, UnsureDone)
    }
}

/// The answer to a write that is on too few copies: it is there, and may be lost with them.
pub(crate) fn unsure(answer: Answer) -> Answer {
    match answer {
        Answer::Outcome(Outcome::Done { .. }, branch) => Answer::Outcome(Outcome::Unknown, branch),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::tests::{feed, leading};
    use crate::open::tests::at;
    use crate::{Input, Msg};

    fn view(nodes: &[u64]) -> Input {
        let set = |nodes: &[u64]| nodes.iter().map(|n| NodeId(*n)).collect();
        Input::View { view: set(nodes), dead: set(&[]), gone: set(&[]), flapping: set(&[]), whole: false }
    }

    /// Two members added by a leader alone would make it a majority of the longer list, while the others are one of the
    /// shorter that they know.
    #[test]
    fn a_majority_grows_by_one_at_a_time_and_only_by_a_majority() {
        let (mut copy, start) = leading();
        copy.set_options(|config| (config.sync, config.min_in_sync) = (true, MinInSync::Majority));
        feed(&mut copy, start, view(&[]));
        for at in 1..20 {
            feed(&mut copy, start + at * 100, Input::Tick);
        }
        assert_eq!(copy.inspect().in_sync.len(), 1, "it leads alone");
        feed(&mut copy, start + 2000, Input::AddMember(NodeId(3)));
        assert_eq!(copy.members().len(), 2, "one of two is no majority");
        feed(&mut copy, start + 2100, view(&[2]));
        let branch = copy.lead().expect("leads").branch;
        let ballot = copy.lead().expect("leads").ballot;
        let heads = copy.store().heads().clone();
        let say = |msg| Input::Msg(NodeId(2), msg);
        feed(
            &mut copy,
            start + 3500,
            say(Msg::Join {
                ballot,
                branch,
                session: 9,
                heads,
                staged: base::Heads::default(),
                promised: ballot,
                stand_in: false,
            }),
        );
        for at in [3501, 3502] {
            let seq = copy.store().heads().seq(branch);
            feed(&mut copy, start + at, say(Msg::Ack { session: 9, seq }));
        }
        assert_eq!(copy.inspect().in_force.len(), 2);
        feed(&mut copy, start + 3600, Input::AddMember(NodeId(3)));
        feed(&mut copy, start + 3600, Input::AddMember(NodeId(4)));
        assert_eq!(copy.members().len(), 3, "the first is not committed yet");
        let seq = copy.store().heads().seq(branch);
        feed(&mut copy, start + 3601, say(Msg::Ack { session: 9, seq }));
        feed(&mut copy, start + 3602, Input::AddMember(NodeId(4)));
        assert_eq!(copy.members().len(), 3, "two are a majority of three, and none of four");
    }

    #[test]
    fn writes_are_refused_with_fewer_copies_than_asked_for() {
        let (mut copy, start) = leading();
        let branch = copy.lead().expect("it leads").branch;
        let mut put = |copies, number| {
            copy.set_options(|config| (config.sync, config.min_in_sync) = (true, MinInSync::Copies(copies)));
            let session = crate::SessionId { node: NodeId(9), incarnation: 1 };
            let writes = vec![crate::Write::Put { key: "k".into(), value: "v".into(), ttl_ms: None }];
            let batch = crate::Batch { writes, ..crate::Batch::default() };
            let request = crate::Request { session, number, done_through: 0, branches: vec![branch], batch };
            let mut fx = crate::Effects::default();
            copy.handle(at(start), Input::Write(number, request), &mut fx);
            (fx.replies.into_iter().map(|(_, reply)| reply).collect::<Vec<_>>(), fx.persists.len())
        };
        let refused = Outcome::Failed(Refusal::TooFewCopies { have: 2, need: 3 });
        assert_eq!(put(3, 1), (vec![crate::Reply::Write(Answer::Outcome(refused, branch))], 0));
        assert_eq!(put(2, 2), (vec![], 1), "taken, and waits for the other copy");
    }
}
