//! Forgetting: what every member holds on its disc needs no tombstone, and no entry of its own for each branch.
//!
//! The leader appends a *level*, an entry that has to be on disc. When every member has acknowledged it, whatever it builds
//! on is known everywhere: nobody can write any more without knowing it. Then the *floor* is raised to it, as an entry of the
//! branch, and every copy removes the same tombstones at the same place. A member that is missing holds all of this back.

use crate::copy::{Copy, Role};
use crate::gate::Effects;
use crate::key::{self, MemberStatus, Space};
use crate::mutant;
use crate::record::Record;
use crate::store::Store;
use base::{BranchId, Heads, Instant, NodeId, Now, Version};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// How many tombstones one entry takes: a large one would hold up everything else.
const GRAVES_MAX: usize = 1024;

/// How far a fragment has forgotten.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Floor {
    /// All tombstones of users' keys that these heads cover are gone, and the branches that are folded here are folded.
    pub purged: Heads,
    /// What every member held when tombstones last went, and beyond which none of the table's own has gone. A copy that does not hold it
    /// may still have what was deleted.
    pub levels: Heads,
    /// All tombstones that these heads cover, and that nobody asked for, are gone. No matter to anybody but who holds them.
    #[serde(skip)]
    pub cleared: Heads,
}

impl Floor {
    /// May a copy that holds this much, out of what these heads say, hold what has been deleted and forgotten since?
    pub(crate) fn is_beyond(&self, heads: &Heads, known: &Heads) -> bool {
        !self.levels.within(heads) && !heads.meet(known).is_empty()
    }

    /// As it lies in its record.
    pub(crate) fn read(record: &Record) -> Floor {
        let Some(value) = &record.value else { return Floor::default() };
        match key::decode::<(Heads, Heads, Heads)>(value) {
            Some((purged, levels, cleared)) => Floor { purged, levels, cleared },
            // Of a version that knew no more.
            None => key::decode(value).unwrap_or_default(),
        }
    }

    /// The value of its record: earlier versions read as much of it as they know.
    pub(crate) fn row(&self) -> Bytes {
        key::encode(&(&self.purged, &self.levels, &self.cleared))
    }

    /// As it counts in a copy of this line: what its own leaders have forgotten is forgotten; of what it was made of only the levels count,
    /// since parts that were joined need not have forgotten the same. Who was not told of such a floor before it became a part has not
    /// forgotten at that place, and never will.
    pub(crate) fn seen_from(line: u32, key: &[u8], record: &Record) -> Floor {
        let floor = Floor::read(record);
        if key::line_of(key) == line {
            return floor;
        }
        let mut floor = floor.levels_only();
        floor.levels.add(record.version);
        floor
    }

    /// What is to be held by whoever may have been told of all that was deleted.
    pub(crate) fn levels_only(self) -> Floor {
        Floor { purged: Heads::default(), cleared: Heads::default(), ..self }
    }

    /// Both floors at once.
    pub(crate) fn joined(mut self, other: &Floor) -> Floor {
        self.purged.join(&other.purged);
        self.levels.join(&other.levels);
        self.cleared.join(&other.cleared);
        self
    }
}

/// How far forgetting has got, at a leader.
#[derive(Default)]
pub(crate) struct Forgetting {
    /// The level that is waited for, and since when.
    pub level: Option<(u64, Instant)>,
    /// There are more tombstones to take than one step takes.
    pub goes_on: bool,
}

impl Copy {
    /// Begins to forget when there is something to forget and everybody is there, and goes on step by step.
    pub(crate) fn mind_floor(&mut self, now: Now, fx: &mut Effects) {
        let Role::Leading(l) = &self.role else { return };
        if self.config.stand_in {
            return;
        }
        let due = match l.forgetting.level {
            None => self.store.is_forgettable(l.branch),
            // Who was away for a moment, or reads on from a place that it has kept, shall still be told what was deleted.
            Some((_, at)) => now.mono - at >= self.config.timing.forget_after,
        };
        if !due || (self.is_anybody_absent(now) && !mutant!(self, MissingForgotten)) {
            return;
        }
        match l.forgetting.level {
            Some((level, _)) if l.everybody_holds(level) => self.raise_floor(now, level, fx),
            Some(_) => {}
            None => {
                let level = self.append(now, Vec::new(), true, fx);
                if let Role::Leading(l) = &mut self.role {
                    l.forgetting.level = Some((level, now.mono));
                }
            }
        }
    }

    /// Is there anybody of whom it is not known for certain what they hold: a member that does not follow this leader in step,
    /// another leader, a copy that nobody lists, or a node that is missing and may have one?
    fn is_anybody_absent(&self, now: Now) -> bool {
        let Role::Leading(l) = &self.role else { return true };
        let follows = |node: &NodeId| *node == self.config.me || l.followers.get(node).is_some_and(|f| f.joined());
        let mut members = self.members().into_iter().filter(|(_, s)| !s.is_gone());
        let mut holders = self.statuses.iter().filter(|(_, s)| s.weight > 0 || s.lead.is_some());
        let known = members.all(|(node, _)| follows(&node)) && holders.all(|(node, _)| follows(node));
        !known || !self.whole || !l.ready || !self.view_is_stable(now)
    }

    /// Which nodes are known to hold this, as the leader hears from them.
    pub fn holders(&self, version: Version) -> BTreeSet<NodeId> {
        let Role::Leading(l) = &self.role else { return BTreeSet::new() };
        if !self.store.heads().covers(version) {
            return BTreeSet::new();
        }
        let seq = if version.branch == l.branch { version.seq } else { 1 };
        l.holders(seq).chain([self.config.me]).collect()
    }

    /// One step: so many of the oldest tombstones, or, when none are left, all branches but this one.
    fn raise_floor(&mut self, now: Now, level: u64, fx: &mut Effects) {
        let Role::Leading(l) = &self.role else { return };
        let branch = l.branch;
        let mut floor = self.store.floor().clone();
        let known = self.store.heads().clamped(branch, level);
        let oldest: Vec<Version> =
            self.store.graves(&Heads::default(), &known).take(GRAVES_MAX).map(|(version, _)| *version).collect();
        let last = oldest.len() < GRAVES_MAX;
        if last {
            floor.purged.join(&known);
            for ended in self.store.ended_branches(&known, branch) {
                floor.purged.fold(ended);
            }
            if mutant!(self, BuriedFolded) && self.store.lists_buried() {
                let ended = known.iter().filter(|v| v.branch != branch && self.store.may_go_on(*v));
                ended.for_each(|v| drop(floor.purged.fold(v.branch)));
            }
        } else {
            floor.purged.join(&oldest.iter().copied().collect());
        }
        if !oldest.is_empty() {
            // What the table itself took out may be forgotten beyond it.
            let seq = level.max(floor.levels.seq(branch));
            floor.levels = Heads::from_iter([Version { branch, seq }]);
        }
        if last {
            floor.cleared = floor.cleared.iter().filter(|version| !floor.purged.covers(*version)).collect();
        }
        let record = self.next_record(now, Some(floor.row()));
        self.append(now, vec![(key::floor(self.config.line), record)], false, fx);
        let Role::Leading(l) = &mut self.role else { return };
        l.forgetting.goes_on = !last;
        if last {
            l.forgetting.level = None;
        }
    }
}

impl Store {
    /// Of each node and line, the last of its branches that can be folded: all before it are known to their ends, and it is not the one
    /// that is led now. Those of other lines stay as they are: parts
    /// that may be joined must know the same of what they go back to. A number that is missing (a `ram` copy may have lost what it was) may still stand somewhere; and while a
    /// node is buried that was a member, it may hold more of any branch than those who stayed, unless the end is known.
    pub(crate) fn ended_branches(&self, heads: &Heads, led: BranchId) -> Vec<BranchId> {
        let mut last: BTreeMap<(NodeId, u32), u32> = heads.folds().map(|b| ((b.node, b.line()), b.nth())).collect();
        let buried = self.lists_buried();
        let foldable = |b: BranchId| b.line() == led.line() && (b.node != led.node || b.nth() < led.nth());
        for version in heads.iter().filter(|v| foldable(v.branch)) {
            let branch = version.branch;
            let n = last.entry((branch.node, branch.line())).or_insert(0);
            if branch.nth() == *n + 1 && !(buried && self.may_go_on(version)) {
                *n = branch.nth();
            }
        }
        let known = last.into_iter().filter(|(_, n)| *n > 0);
        known.map(|((node, line), n)| BranchId::of_line(node, line, n)).collect()
    }

    /// Is a member buried that has not come back?
    fn lists_buried(&self) -> bool {
        let buried = |value: &bytes::Bytes| key::decode(value) == Some(MemberStatus::Buried);
        self.own_space(Space::Member).any(|(_, r)| r.value.as_ref().is_some_and(buried))
    }

    fn may_go_on(&self, version: Version) -> bool {
        self.own(&key::closed(version.branch)).is_none_or(|end| end.version != version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::tests::{feed, leading};
    use crate::open::tests::at;
    use crate::{Batch, Effects, Entry, Input, Msg, Request, SessionId, Write};
    use base::Ballot;

    fn view(nodes: &[u64], whole: bool) -> Input {
        let view = nodes.iter().map(|n| NodeId(*n)).collect();
        Input::View { view, dead: [].into(), gone: [].into(), flapping: [].into(), whole }
    }

    fn say(from: u64, msg: Msg) -> Input {
        Input::Msg(NodeId(from), msg)
    }

    /// Writes, and tells what is sent.
    fn write(copy: &mut Copy, ms: u64, number: u64, write: Write) -> Vec<Msg> {
        let branches = vec![copy.lead().expect("it leads").branch];
        let session = SessionId { node: NodeId(9), incarnation: 1 };
        let batch = Batch { writes: vec![write], ..Batch::default() };
        feed(copy, ms, Input::Write(number, Request { session, number, done_through: 0, branches, batch }))
    }

    /// Everything that the burst gathered.
    fn flushed(copy: &mut Copy, ms: u64) -> Vec<Entry> {
        let mut fx = Effects::default();
        copy.flush(at(ms), &mut fx);
        let entries = |msg| if let Msg::Append { entries, .. } = msg { entries } else { vec![] };
        fx.sends.into_iter().flat_map(|(_, msg)| entries(msg)).collect()
    }

    fn seq(copy: &Copy) -> u64 {
        copy.store().heads().seq(copy.lead().expect("it leads").branch)
    }

    fn graves(copy: &Copy) -> usize {
        copy.store().space(Space::User).filter(|(_, kept)| kept.is_tombstone()).count()
    }

    /// Node 1 leads node 2, and has put and deleted.
    fn deleted() -> (Copy, u64) {
        let (mut copy, start) = leading();
        feed(&mut copy, start, view(&[2], true));
        write(&mut copy, start, 1, Write::Put { key: "k".into(), value: "v".into(), ttl_ms: None });
        write(&mut copy, start, 2, Write::Delete { key: "k".into() });
        flushed(&mut copy, start);
        let held = seq(&copy);
        feed(&mut copy, start + 1, say(2, Msg::Ack { session: 7, seq: held }));
        (copy, start)
    }

    #[test]
    fn a_tombstone_goes_when_every_member_has_a_later_level_on_disc() {
        let (mut copy, start) = deleted();
        feed(&mut copy, start + 2000, Input::Tick);
        let level = flushed(&mut copy, start + 2000);
        assert_eq!(level, [Entry { seq: seq(&copy), sync: true, puts: vec![] }], "it has to be on disc");
        // Not acknowledged, and then not for long enough.
        feed(&mut copy, start + 2100, Input::Tick);
        let level = seq(&copy);
        feed(&mut copy, start + 2200, say(2, Msg::Ack { session: 7, seq: level }));
        feed(&mut copy, start + 61_900, Input::Tick);
        assert_eq!((graves(&copy), flushed(&mut copy, start + 61_900).len()), (1, 0));
        feed(&mut copy, start + 62_000, Input::Tick);
        assert_eq!((graves(&copy), flushed(&mut copy, start + 62_000).len()), (0, 1));
    }

    #[test]
    fn nothing_is_forgotten_while_anybody_is_missing() {
        for seen in [view(&[2], false), view(&[], false)] {
            let (mut copy, start) = deleted();
            feed(&mut copy, start + 5900, seen);
            for ms in (6000..70_000).step_by(1000) {
                feed(&mut copy, start + ms, Input::Tick);
                let held = seq(&copy);
                feed(&mut copy, start + ms, say(2, Msg::Ack { session: 7, seq: held }));
            }
            assert_eq!(graves(&copy), 1);
        }
    }

    /// A leader that forgot a membership in a crash would not know whom it has to ask before it forgets more.
    #[test]
    fn a_copy_is_a_member_for_certain_before_it_is_given_anything() {
        let (mut copy, start) = leading();
        copy.config.open_membership = true;
        let lead = copy.lead().expect("it leads");
        let join = Msg::Join {
            ballot: lead.ballot,
            branch: lead.branch,
            session: 8,
            heads: Heads::default(),
            staged: Heads::default(),
            promised: Ballot::default(),
            stand_in: false,
        };
        let chunks = |sent: Vec<Msg>| sent.into_iter().filter(|m| matches!(m, Msg::Sync { .. })).count();
        assert_eq!(chunks(feed(&mut copy, start, say(3, join))), 0);
        let listed = seq(&copy);
        assert_eq!(chunks(feed(&mut copy, start + 1, say(2, Msg::Ack { session: 7, seq: listed }))), 1);
    }

    /// Where a machine comes back with an old disc: it knows the record, and not that it was deleted.
    #[test]
    fn a_copy_that_is_older_than_what_was_forgotten_begins_anew() {
        let (mut copy, start) = deleted();
        let old = Heads::from_iter([Version { branch: copy.lead().expect("leads").branch, seq: 4 }]);
        feed(&mut copy, start + 2000, Input::Tick);
        let level = seq(&copy);
        feed(&mut copy, start + 2200, say(2, Msg::Ack { session: 7, seq: level }));
        feed(&mut copy, start + 63_000, Input::Tick);
        let lead = copy.lead().expect("it leads");
        let (ballot, branch) = (lead.ballot, lead.branch);
        // It has lost its session, and so is dropped, and let in again a while later.
        let join = Msg::Join {
            ballot,
            branch,
            session: 9,
            heads: old.clone(),
            staged: Heads::default(),
            promised: ballot,
            stand_in: false,
        };
        feed(&mut copy, start + 63_100, say(2, join));
        let sent = feed(&mut copy, start + 66_000, Input::Tick);
        let join = Msg::Join {
            ballot,
            branch,
            session: 10,
            heads: old,
            staged: Heads::default(),
            promised: ballot,
            stand_in: false,
        };
        let sent = [sent, feed(&mut copy, start + 66_000, say(2, join))].concat();
        let chunk = sent.into_iter().find_map(|m| if let Msg::Sync { chunk, .. } = m { Some(chunk) } else { None });
        let chunk = chunk.expect("it is let in");
        assert!(chunk.anew && chunk.records.iter().any(|(key, _)| *key == key::floor(0)));
        // What it held goes.
        let mut other = Store::default();
        let record = crate::Record {
            version: Version { branch, seq: 4 },
            hlc: base::Hlc(1),
            expires: None,
            value: Some("v".into()),
        };
        other.apply(vec![record.version], vec![(key::user(b"k"), record)]);
        let drops = other.all_but(chunk.records.iter().map(|(key, _)| key));
        let batch = other.switch(&chunk.h0, Vec::new(), chunk.records, drops);
        assert_eq!((batch.removes, other.find(&key::user(b"k"))), (vec![key::user(b"k")], None::<crate::Record>));
    }

    #[test]
    fn branches_are_folded_as_far_as_none_is_missing() {
        let branch = |node, n| BranchId { node: NodeId(node), n };
        let heads: Heads = [(1, 1), (1, 2), (2, 1), (2, 3), (3, 2), (4, 1)]
            .map(|(node, n)| Version { branch: branch(node, n), seq: 5 })
            .into_iter()
            .collect();
        let mut store = Store::default();
        assert_eq!(store.ended_branches(&heads, branch(1, 2)), [branch(1, 1), branch(2, 1), branch(4, 1)]);
        let mut folded = heads.clone();
        folded.fold(branch(3, 1));
        assert!(store.ended_branches(&folded, branch(1, 2)).contains(&branch(3, 2)));
        // A buried node may hold more of any of them.
        let record = |version, value| crate::Record { version, hlc: base::Hlc(1), expires: None, value: Some(value) };
        let end = Version { branch: branch(4, 1), seq: 5 };
        let row = record(Version { branch: branch(1, 2), seq: 1 }, key::encode(&MemberStatus::Buried));
        store.apply(vec![], vec![(key::member(NodeId(9)), row)]);
        assert!(store.ended_branches(&heads, branch(1, 2)).is_empty());
        store.apply(vec![], vec![(key::closed(branch(4, 1)), record(end, bytes::Bytes::new()))]);
        assert!(store.ended_branches(&heads, branch(1, 2)).contains(&branch(4, 1)));
    }
}
