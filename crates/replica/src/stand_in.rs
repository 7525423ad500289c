//! Stand-ins: where an island has no copy of a fragment, one of its nodes takes writes in the copies' place.
//!
//! A stand-in begins with nothing and knows only what was written to it. What it does not know it does not call absent: it
//! says that the copies are elsewhere. It never leads where a copy is in view, is nobody's member, and when what it took lies
//! with the copies it goes.

use crate::batch::{Check, Range, Read, Refusal};
use crate::copy::{Copy, Role};
use crate::gate::{Effects, Notice};
use crate::key::{self, MemberStatus, Space};
use crate::msg::{Msg, Status};
use crate::mutant;
use crate::record::WriteBatch;
use crate::store::Store;
use base::{Ballot, NodeId, Now, Span, WallMs};
use bytes::Bytes;

impl Store {
    /// Was this copy made to stand in for others?
    pub fn stands_in(&self, me: NodeId) -> bool {
        let status = self.own(&key::member(me)).and_then(|r| key::decode(r.value.as_ref()?));
        status == Some(MemberStatus::StandIn)
    }
}

impl Copy {
    /// Is a copy in view that is no stand-in?
    pub(crate) fn sees_a_copy(&self) -> bool {
        // One that was never filled knows nothing, either.
        let copy = |s: &Status| !s.stand_in && (s.weight > 0 || s.lead.is_some());
        self.statuses.iter().any(|(node, s)| self.view.contains(node) && copy(s))
    }

    /// Does it take writes in others' place?
    pub fn stands_in(&self) -> bool {
        self.config.stand_in
    }

    /// Does it follow a leader that is no stand-in?
    pub fn follows_a_copy(&self) -> bool {
        let Role::Following(f) = &self.role else { return false };
        self.statuses.get(&f.leader).is_some_and(|s| !s.stand_in)
    }

    /// Was it made to stand in for others, or does it hold something?
    pub fn serves(&self) -> bool {
        self.config.stand_in || !self.store.heads().is_empty()
    }

    /// Was it made to begin the fragment, or to begin it anew, by itself?
    pub fn begins_alone(&self) -> bool {
        !self.config.stand_in && self.config.founders[..] == [self.config.me]
    }

    /// Does it hold what others lack, in their place?
    pub fn keeps_for_others(&self) -> bool {
        self.config.stand_in && !self.store.heads().is_empty()
    }

    /// A stand-in that was given nothing, where nobody needs one: it can go.
    pub(crate) fn is_idle_stand_in(&self) -> bool {
        let idle = matches!(self.role, Role::Idle { .. } | Role::Promised { .. });
        self.config.stand_in && idle && self.store.heads().is_empty() && (self.whole || self.sees_a_copy())
    }

    /// Leaders of everybody strike out nodes that stood in, and have nothing of it any more: `ram` copies that were restarted.
    pub(crate) fn strike_stand_ins(&mut self, now: Now, fx: &mut Effects) {
        if self.lead().is_none() || !self.whole || self.config.stand_in || !self.view_is_stable(now) {
            return;
        }
        let idle = |node: &NodeId| self.statuses.get(node).is_none_or(|s| !s.stand_in && s.weight == 0);
        let members = self.members().into_iter().filter(|(_, s)| *s == MemberStatus::StandIn).map(|(node, _)| node);
        let gone: Vec<NodeId> = members.filter(|node| self.view.contains(node) && idle(node)).collect();
        for node in gone {
            let record = self.next_record(now, Some(key::encode(&MemberStatus::Left)));
            self.append(now, vec![(key::member(node), record)], true, fx);
        }
    }

    /// May this copy follow that leader? A copy does not follow those who stand in for it: it opens, and takes what they have.
    pub(crate) fn may_follow(&self, leader: NodeId) -> bool {
        if self.config.stand_in && self.store.heads().is_empty() {
            // It has nothing to give away.
            return false;
        }
        let copy = self.statuses.get(&leader).is_none_or(|s| !s.stand_in);
        self.config.stand_in || copy || mutant!(self, StandInPromoted)
    }

    /// Is it known here what lies under this key, if anything? Only a stand-in may not know.
    pub(crate) fn knows(&self, stored: &[u8]) -> bool {
        if !self.config.stand_in {
            return true;
        }
        let before = if let Role::Leading(l) = &self.role { l.replaced(stored) } else { None };
        // The first write of a key is not committed yet: until then nothing is known of it.
        self.store.get(stored).is_some() && before.is_none_or(Option::is_some)
    }

    /// Must somebody else be asked for some of this?
    pub(crate) fn is_elsewhere(&self, read: &Read) -> bool {
        let known = |range: &Range| range.is_point() && range.space == Space::User && self.knows(&range.bounds().0);
        self.config.stand_in && !read.iter().all(known)
    }

    /// A check that cannot be decided here.
    pub(crate) fn check_elsewhere(&self, check: &Check) -> Option<Refusal> {
        let decided = match check {
            Check::Absent(k) | Check::Present(k) | Check::AtVersion(k, _) => self.store.get(&key::user(k)).is_some(),
            Check::Count(..) => false,
        };
        (self.config.stand_in && !decided).then_some(Refusal::Elsewhere)
    }

    /// A copy that stands in, or that is one too many, asks to follow, and this leader knows all that it has: it may go, once that
    /// is certain.
    pub(crate) fn part_with(&mut self, now: Now, from: NodeId, session: u64, fx: &mut Effects) {
        let row = self.store.own(&key::member(from));
        let left = row.is_some_and(|r| r.value.as_ref().and_then(|v| key::decode(v)) == Some(MemberStatus::Left));
        let version = row.map(|r| r.version);
        if !left && row.is_some() {
            let record = self.next_record(now, Some(key::encode(&MemberStatus::Left)));
            self.append(now, vec![(key::member(from), record)], true, fx);
            // It asks again.
            return;
        }
        let members = self.listed();
        let copies = (&members & &self.view).len();
        let Role::Leading(l) = &self.role else { return };
        let majority = self.are_most(l.in_force(), &members);
        let certain = version.is_none_or(|v| v.branch != l.branch || v.seq <= l.commit);
        // Not on the word of one copy, where there is another.
        let enough = (1 + copies).min(2).min(self.config.in_sync_max);
        if certain && majority && l.in_force().len() >= enough {
            fx.sends.push((from, Msg::Leave { ballot: l.ballot, session }));
        }
    }

    /// Everything that this copy has lies with others: it keeps nothing.
    pub(crate) fn on_leave(&mut self, now: Now, from: NodeId, ballot: Ballot, session: u64, fx: &mut Effects) {
        let Role::Following(f) = &self.role else { return };
        if f.leader != from || f.lead.ballot != ballot || f.session != session {
            return;
        }
        let lead = f.lead;
        self.role = Role::Idle { since: now.mono, wait: Span(0) };
        let mut store = Store::new(self.config.seed);
        store.handed = self.store.handed;
        self.config.dress(&mut store);
        self.store = store;
        self.stagings.clear();
        // Its node has to know whom to ask from here on: whoever let it go, and not another island's leader.
        self.let_go = Some((from, lead));
        self.persist(WriteBatch { meta: Some(self.meta), wipe: true, ..WriteBatch::default() }, true, fx);
        self.note(Notice::Left, fx);
    }

    /// The live record that a check looks at.
    pub(crate) fn is_live(&self, wall: WallMs, key: &Bytes) -> bool {
        self.store.get(&key::user(key)).is_some_and(|r| r.is_live(wall))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::tests::feed;
    use crate::open::tests::{at, config};
    use crate::{Answer, Batch, Bump, Input, Lead, Meta, Outcome, Reply, Request, SessionId, Status, Write};
    use base::BranchId;

    fn view(nodes: &[u64]) -> Input {
        let view = nodes.iter().map(|n| NodeId(*n)).collect();
        Input::View { view, dead: [].into(), gone: [].into(), flapping: [].into(), whole: false }
    }

    fn stand_in() -> Copy {
        let config = crate::Config { stand_in: true, founders: vec![NodeId(1)], ..config() };
        let mut copy = Copy::new(at(0), config, Meta::default(), Store::default());
        feed(&mut copy, 1, view(&[3]));
        feed(&mut copy, 5000, Input::Tick);
        feed(&mut copy, 5100, Input::Tick);
        assert!(copy.lead().is_some());
        copy
    }

    fn write(copy: &mut Copy, number: u64, checks: Vec<Check>, writes: Vec<Write>) -> Outcome {
        let branches = vec![copy.lead().expect("it leads").branch];
        let session = SessionId { node: NodeId(9), incarnation: 1 };
        let batch = Batch { checks, writes, sync: false };
        let request = Request { session, number, done_through: 0, branches, batch };
        let mut fx = Effects::default();
        copy.handle(at(6000), Input::Write(number, request), &mut fx);
        let mark = fx.persists.last().map(|p| p.mark);
        mark.into_iter().for_each(|mark| copy.handle(at(6000), Input::Durable(mark), &mut fx));
        match fx.replies.into_iter().find(|(ticket, _)| *ticket == number) {
            Some((_, Reply::Write(Answer::Outcome(outcome, _)))) => outcome,
            other => panic!("{other:?}"),
        }
    }

    fn put(key: &'static str, value: &'static str) -> Write {
        Write::Put { key: key.into(), value: value.into(), ttl_ms: None }
    }

    fn read(copy: &mut Copy, read: Read) -> Reply {
        let mut fx = Effects::default();
        copy.handle(at(6001), Input::Read(77, read), &mut fx);
        fx.replies.into_iter().find(|(ticket, _)| *ticket == 77).expect("answered").1
    }

    #[test]
    fn what_a_stand_in_does_not_know_is_elsewhere_and_not_absent() {
        let mut copy = stand_in();
        let elsewhere = Outcome::Failed(Refusal::Elsewhere);
        let key = || Bytes::from_static(b"k");
        let get = |copy: &mut Copy| read(copy, vec![Range::key(key())]);
        assert_eq!(get(&mut copy), Reply::Elsewhere);
        assert_eq!(copy.get_under_lease(at(6001), b"k"), None);
        assert_eq!(write(&mut copy, 1, vec![Check::Absent(key())], vec![put("k", "1")]), elsewhere);
        assert_eq!(write(&mut copy, 2, vec![Check::Count(key(), 0)], vec![put("k", "1")]), elsewhere);
        let add = Write::Bump { key: key(), by: Bump::Add, fields: vec![1] };
        assert_eq!(write(&mut copy, 3, vec![], vec![add]), elsewhere);
        // What was written here can be read and checked.
        assert!(matches!(write(&mut copy, 4, vec![], vec![put("k", "1")]), Outcome::Done { .. }));
        assert!(matches!(get(&mut copy), Reply::Rows(rows) if rows[0].rows.len() == 1));
        assert!(matches!(write(&mut copy, 5, vec![Check::Present(key())], vec![put("k", "2")]), Outcome::Done { .. }));
        // A deletion is known, too, even of what was never seen here.
        assert!(matches!(
            write(&mut copy, 6, vec![], vec![Write::Delete { key: "other".into() }]),
            Outcome::Done { .. }
        ));
        assert!(
            matches!(read(&mut copy, vec![Range::key("other".into())]), Reply::Rows(rows) if rows[0].rows.is_empty())
        );
        assert_eq!(read(&mut copy, vec![Range::prefix(key(), 10)]), Reply::Elsewhere, "there may be more");
    }

    #[test]
    fn a_stand_in_gives_way_and_goes_when_it_is_told() {
        let mut copy = stand_in();
        write(&mut copy, 1, vec![], vec![put("k", "1")]);
        let ballot = Ballot { counter: 9, node: NodeId(2) };
        let branch = BranchId { node: NodeId(2), n: 1 };
        let lead = Some(Lead { branch, ballot, in_sync: 1 });
        let say = |msg| Input::Msg(NodeId(2), msg);
        feed(&mut copy, 7000, view(&[2, 3]));
        feed(&mut copy, 7001, say(Msg::Prepare { ballot }));
        assert!(copy.lead().is_none(), "a copy opens");
        let status = Status { lead, heard: ballot, was_in_sync: true, weight: 9, ..Default::default() };
        let asked = feed(&mut copy, 7002, say(Msg::Status(status)));
        let session = asked
            .iter()
            .find_map(|m| if let Msg::Join { session, stand_in: true, .. } = m { Some(*session) } else { None });
        let session = session.expect("it asks, and says what it is");
        feed(&mut copy, 7003, say(Msg::Leave { ballot, session: session + 1 }));
        assert!(!copy.store().is_empty(), "not its session");
        let n = copy.inspect().meta.n;
        feed(&mut copy, 7004, say(Msg::Leave { ballot, session }));
        assert!(copy.store().is_empty() && copy.store().heads().is_empty());
        assert_eq!(copy.inspect().meta.n, n, "numbers of branches are never used twice");
        // Another island's leader, with a higher ballot.
        let ballot = Ballot { counter: 20, node: NodeId(3) };
        let other = Some(Lead { branch: BranchId { node: NodeId(3), n: 1 }, ballot, in_sync: 1 });
        feed(&mut copy, 7005, Input::Msg(NodeId(3), Msg::Status(Status { lead: other, heard: ballot, ..status })));
        assert_eq!(copy.leader(), Some(NodeId(2)).zip(lead), "its node asks whoever let it go");
        assert_eq!(copy.leads().count(), 2, "and knows of the other");
    }

    #[test]
    fn a_stand_in_is_told_to_go_when_it_is_certain_that_what_it_took_stays() {
        let (mut copy, start) = crate::lease::tests::leading();
        let mut fx = Effects::default();
        let record = copy.next_record(at(start), Some(key::encode(&MemberStatus::StandIn)));
        copy.append(at(start), vec![(key::member(NodeId(3)), record)], true, &mut fx);
        let lead = copy.lead().expect("it leads");
        let (ballot, branch) = (lead.ballot, lead.branch);
        let ask = |copy: &mut Copy, session| {
            let heads = base::Heads::default();
            let join = Msg::Join {
                ballot,
                branch,
                session,
                heads: heads.clone(),
                staged: heads,
                promised: ballot,
                stand_in: true,
            };
            let sent = feed(copy, start + session, Input::Msg(NodeId(3), join));
            assert!(!sent.iter().any(|m| matches!(m, Msg::Sync { .. })), "it is given nothing");
            sent.iter().any(|m| matches!(m, Msg::Leave { .. }))
        };
        feed(&mut copy, start, view(&[2, 3]));
        assert!(!ask(&mut copy, 1), "it is listed as gone first");
        assert!(!ask(&mut copy, 2), "that is not committed");
        let seq = copy.store().heads().seq(branch);
        feed(&mut copy, start + 3, Input::Msg(NodeId(2), Msg::Ack { session: 7, seq }));
        assert!(ask(&mut copy, 4));
    }
}
