use serde::{Deserialize, Serialize};
use std::fmt;

/// A running process with a data directory: random, made at first start and kept in that directory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct NodeId(pub u64);

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{:x}", self.0)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A table. Derived from the table's name and shape (see `node::schema`), so that two islands which each make the same
/// table make one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct TableId(pub u64);

impl fmt::Debug for TableId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "t{:x}", self.0)
    }
}

/// One hash slice of a table: the unit of placement and replication.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct FragmentId {
    /// The table it is a slice of.
    pub table: TableId,
    /// Which slice, from 0.
    pub index: u16,
}

impl fmt::Debug for FragmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}.{}", self.table, self.index)
    }
}

/// An unbroken run of writes made under one leader. `n` grows durably per node and fragment and is never used twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct BranchId {
    /// The leader.
    pub node: NodeId,
    /// Its how-manieth branch of this fragment, from 1.
    pub n: u64,
}

impl fmt::Debug for BranchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}/{}", self.node, self.n)
    }
}

impl fmt::Display for BranchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.node, self.n)
    }
}

/// Orders the openings of a fragment. Never a clock: a jumped clock would win for ever.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Ballot {
    /// Higher than any that the opener had heard of.
    pub counter: u64,
    /// The opener: makes ballots unique.
    pub node: NodeId,
}

impl fmt::Debug for Ballot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}@{:?}", self.counter, self.node)
    }
}

/// Which write made a record: the branch and the place in it (from 1).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Version {
    /// The branch.
    pub branch: BranchId,
    /// The entry in the branch, from 1.
    pub seq: u64,
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}:{}", self.branch, self.seq)
    }
}

impl fmt::Display for Version {
    /// `node/branch:seq`, as `get --version` prints it and `put --if-version` takes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.branch, self.seq)
    }
}

impl std::str::FromStr for Version {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORM: &str = "a version looks like 0123456789abcdef/1:42, as `tombolo get --version` prints it";
        let (branch, seq) = text.split_once(':').ok_or(FORM)?;
        let (node, n) = branch.split_once('/').ok_or(FORM)?;
        Ok(Version {
            branch: BranchId {
                node: NodeId(u64::from_str_radix(node, 16).map_err(|_| FORM)?),
                n: n.parse().map_err(|_| FORM)?,
            },
            seq: seq.parse().map_err(|_| FORM)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_reads_back_as_printed() {
        let v = Version { branch: BranchId { node: NodeId(0xab), n: 3 }, seq: 9 };
        assert_eq!(v.to_string().parse(), Ok(v));
        assert!("ab:9".parse::<Version>().is_err());
        assert!("ab/x:9".parse::<Version>().is_err());
    }
}
