//! Fragments of a table that was dropped: what was written by those who could not know of it is told apart, so that it is not
//! lost with the rest.

use crate::copy::{Copy, Role};
use crate::gate::Effects;
use crate::key::{self, Space};
use crate::record::Record;
use base::{Heads, Now, WallMs};
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::tests::{feed, leading};
    use crate::{Batch, Input, Request, SessionId, Write};
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
