use crate::{BranchId, Version};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// A copy's knowledge: branch -> highest sequence number incorporated. Absent means none.
///
/// Folding closed branches into one number per node comes with forgetting; until then every branch has its entry.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Heads(BTreeMap<BranchId, u64>);

impl Heads {
    /// Is this version incorporated?
    pub fn covers(&self, version: Version) -> bool {
        self.seq(version.branch) >= version.seq
    }

    /// The highest sequence number known of a branch; 0 when none.
    pub fn seq(&self, branch: BranchId) -> u64 {
        self.0.get(&branch).copied().unwrap_or(0)
    }

    /// Learns one version and all before it in its branch.
    pub fn add(&mut self, version: Version) {
        let seq = self.0.entry(version.branch).or_insert(0);
        *seq = (*seq).max(version.seq);
    }

    /// Learns all that `other` knows.
    pub fn join(&mut self, other: &Heads) {
        for version in other.iter() {
            self.add(version);
        }
    }

    /// What both know.
    pub fn meet(&self, other: &Heads) -> Heads {
        let both = self.iter().map(|v| Version { seq: v.seq.min(other.seq(v.branch)), ..v });
        both.filter(|v| v.seq > 0).collect()
    }

    /// Does `other` know all that I know?
    pub fn within(&self, other: &Heads) -> bool {
        self.iter().all(|v| other.covers(v))
    }

    /// Every branch with its highest sequence number, in order.
    pub fn iter(&self) -> impl Iterator<Item = Version> + '_ {
        self.0.iter().map(|(&branch, &seq)| Version { branch, seq })
    }

    /// How much is known, as a rough weight for choosing who should open: the number of entries of all branches.
    pub fn weight(&self) -> u64 {
        self.0.values().fold(0, |sum, seq| sum.saturating_add(*seq))
    }

    /// Nothing known?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many branches.
    pub fn len(&self) -> usize {
        self.0.len()
    }
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
        f.debug_set().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NodeId;
    use proptest::prelude::*;

    fn heads() -> impl Strategy<Value = Heads> {
        proptest::collection::vec((0u64..4, 1u64..4, 1u64..6), 0..8).prop_map(|all| {
            all.into_iter().map(|(node, n, seq)| Version { branch: BranchId { node: NodeId(node), n }, seq }).collect()
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
        }
    }
}
