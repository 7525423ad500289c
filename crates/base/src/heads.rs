use crate::{BranchId, NodeId, Version};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// A copy's knowledge: branch -> highest sequence number incorporated. Absent means none.
///
/// Branches that every copy holds to their ends are folded: of each node and line, all branches up to a number. So what a copy must
/// remember does not grow with how often the lead has changed hands.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Heads {
    /// Of each node and line at most one: the last of those that are folded.
    folded: BTreeSet<BranchId>,
    open: BTreeMap<BranchId, u64>,
}

impl Heads {
    /// Is this version incorporated?
    pub fn covers(&self, version: Version) -> bool {
        self.seq(version.branch) >= version.seq
    }

    /// The highest sequence number known of a branch; 0 when none, the greatest there is when all of it is known.
    pub fn seq(&self, branch: BranchId) -> u64 {
        if self.is_folded(branch) { u64::MAX } else { self.open.get(&branch).copied().unwrap_or(0) }
    }

    /// Is all of this branch known, to its end?
    pub fn is_folded(&self, branch: BranchId) -> bool {
        self.last_fold(branch).is_some_and(|last| branch.n <= last.n)
    }

    /// The last folded branch of the same node and line.
    fn last_fold(&self, branch: BranchId) -> Option<BranchId> {
        self.folded.range(line_of(branch)).next().copied()
    }

    /// Learns one version and all before it in its branch.
    pub fn add(&mut self, version: Version) {
        if !self.is_folded(version.branch) {
            let seq = self.open.entry(version.branch).or_insert(0);
            *seq = (*seq).max(version.seq);
        }
    }

    /// Learns that all of this node's branches up to this one, of its line, are known to their ends; returns those that need no
    /// entry of their own any more.
    pub fn fold(&mut self, last: BranchId) -> Vec<BranchId> {
        match self.last_fold(last) {
            Some(known) if known.n >= last.n => {}
            known => {
                known.map(|known| self.folded.remove(&known));
                self.folded.insert(last);
            }
        }
        let first = *line_of(last).start();
        let gone: Vec<BranchId> = self.open.range(first..=last).map(|(branch, _)| *branch).collect();
        for branch in &gone {
            self.open.remove(branch);
        }
        gone
    }

    /// Learns all that `other` knows.
    pub fn join(&mut self, other: &Heads) {
        for last in other.folds() {
            self.fold(last);
        }
        for version in other.iter() {
            self.add(version);
        }
    }

    /// What both know.
    pub fn meet(&self, other: &Heads) -> Heads {
        let both = self.iter().chain(other.iter());
        let both = both.map(|v| Version { seq: self.seq(v.branch).min(other.seq(v.branch)), ..v });
        let mut met: Heads = both.filter(|v| v.seq > 0).collect();
        for last in self.folds() {
            if let Some(theirs) = other.last_fold(last) {
                met.fold(last.min(theirs));
            }
        }
        met
    }

    /// Does `other` know all that I know? What is folded here counts as known there only if it is folded there, too.
    pub fn within(&self, other: &Heads) -> bool {
        self.iter().all(|v| other.covers(v)) && self.folds().all(|last| other.is_folded(last))
    }

    /// The lines that anything is known of.
    pub fn lines(&self) -> BTreeSet<u32> {
        self.open.keys().chain(&self.folded).map(|branch| branch.line()).collect()
    }

    /// What is known of this line's branches.
    pub fn of_line(&self, line: u32) -> Heads {
        let folded = self.folded.iter().filter(|branch| branch.line() == line).copied().collect();
        let open = self.open.iter().filter(|(branch, _)| branch.line() == line).map(|(branch, seq)| (*branch, *seq));
        Heads { folded, open: open.collect() }
    }

    /// All but this branch.
    pub fn without(mut self, branch: BranchId) -> Heads {
        self.open.remove(&branch);
        self
    }

    /// The same, but of this branch no more than up to `seq`.
    pub fn clamped(&self, branch: BranchId, seq: u64) -> Heads {
        let mut heads = self.clone();
        if let Some(known) = heads.open.get_mut(&branch) {
            *known = seq.min(*known);
        }
        heads
    }

    /// Every branch that is not folded, with its highest sequence number, in order.
    pub fn iter(&self) -> impl Iterator<Item = Version> + '_ {
        self.open.iter().map(|(&branch, &seq)| Version { branch, seq })
    }

    /// Of each node and line, the last branch of those that are folded.
    pub fn folds(&self) -> impl Iterator<Item = BranchId> + '_ {
        self.folded.iter().copied()
    }

    /// The highest number of this node's branches of a line that anything is known of.
    pub fn last_of(&self, node: NodeId, line: u32) -> u32 {
        let any = BranchId::of_line(node, line, 0);
        let open = self.open.range(line_of(any)).next_back().map_or(0, |(branch, _)| branch.nth());
        open.max(self.last_fold(any).map_or(0, BranchId::nth))
    }

    /// How much is known, as a rough weight for choosing who should open: the number of entries of all branches that are not
    /// folded.
    pub fn weight(&self) -> u64 {
        let folded = self.folded.iter().fold(0u64, |sum, branch| sum.saturating_add(branch.nth().into()));
        self.open.values().fold(folded, |sum, seq| sum.saturating_add(*seq))
    }

    /// How many entries this knows that `other` does not, as far as can be told.
    pub fn beyond(&self, other: &Heads) -> u64 {
        let more = self.iter().map(|v| v.seq.saturating_sub(other.seq(v.branch)));
        more.fold(0, u64::saturating_add)
    }

    /// Nothing known?
    pub fn is_empty(&self) -> bool {
        self.open.is_empty() && self.folded.is_empty()
    }

    /// How many branches have entries of their own.
    pub fn len(&self) -> usize {
        self.open.len()
    }
}

/// All branches of the same node and line.
fn line_of(branch: BranchId) -> std::ops::RangeInclusive<BranchId> {
    let (node, line) = (branch.node, branch.line());
    BranchId::of_line(node, line, 0)..=BranchId::of_line(node, line, u32::MAX)
}

impl FromIterator<Version> for Heads {
    fn from_iter<I: IntoIterator<Item = Version>>(versions: I) -> Self {
        let mut heads = Heads::default();
        versions.into_iter().for_each(|v| heads.add(v));
        heads
    }
}

impl fmt::Debug for Heads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.folds().map(|b| format!("..{b:?}"))).entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_are_folded_apart() {
        let branch = |line, n| BranchId::of_line(NodeId(1), line, n);
        let mut heads: Heads = [(0, 1), (0, 2), (7, 1), (7, 2), (9, 1)]
            .map(|(line, n)| Version { branch: branch(line, n), seq: 5 })
            .into_iter()
            .collect();
        assert_eq!(heads.fold(branch(7, 2)), [branch(7, 1), branch(7, 2)]);
        assert!(heads.is_folded(branch(7, 1)) && !heads.is_folded(branch(0, 1)) && !heads.is_folded(branch(9, 1)));
        assert_eq!((heads.last_of(NodeId(1), 7), heads.last_of(NodeId(1), 0), heads.last_of(NodeId(1), 8)), (2, 2, 0));
        heads.fold(branch(0, 1));
        heads.fold(branch(7, 1));
        assert_eq!(heads.folds().collect::<Vec<_>>(), [branch(0, 1), branch(7, 2)]);
    }

    fn heads() -> impl Strategy<Value = Heads> {
        proptest::collection::vec((0u64..4, 0u32..2, 1u32..4, 1u64..8), 0..8).prop_map(|all| {
            let mut heads = Heads::default();
            for (node, line, n, seq) in all {
                let branch = BranchId::of_line(NodeId(node), line, n);
                if seq < 6 { heads.add(Version { branch, seq }) } else { drop(heads.fold(branch)) }
            }
            heads
        })
    }

    proptest! {
        #[test]
        fn join_is_a_least_upper_bound(a in heads(), b in heads(), c in heads()) {
            let union = |x: &Heads, y: &Heads| { let mut u = x.clone(); u.join(y); u };
            let ab = union(&a, &b);
            prop_assert!(a.within(&ab) && b.within(&ab));
            prop_assert_eq!(&ab, &union(&b, &a));
            prop_assert_eq!(union(&ab, &c), union(&a, &union(&b, &c)));
            prop_assert_eq!(&union(&a, &a), &a);
            if a.within(&c) && b.within(&c) { prop_assert!(ab.within(&c)); }
            prop_assert!(a.within(&ab) && (ab.iter().all(|v| a.covers(v) || b.covers(v))));
        }

        #[test]
        fn meet_is_what_both_know(a in heads(), b in heads()) {
            let met = a.meet(&b);
            prop_assert_eq!(&met, &b.meet(&a));
            let all = (0..8).flat_map(|x| (1..4).flat_map(move |n| (1..7).map(move |s| (x, n, s))));
            for (node, n, seq) in all {
                let v = Version { branch: BranchId::of_line(NodeId(node / 2), node as u32 % 2, n), seq };
                prop_assert_eq!(met.covers(v), a.covers(v) && b.covers(v));
            }
        }
    }
}
