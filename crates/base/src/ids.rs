use crate::limits::ERA_MAX;
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
///
/// A table whose number of fragments has changed has others: they never share an id with those before, so that nobody takes one for
/// the other who has not heard of the change.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct FragmentId {
    /// The table it is a slice of.
    pub table: TableId,
    /// Which slice, as [`FragmentId::new`] makes it: below 2^31, and below 1024 as long as the number of fragments has never changed.
    pub index: u32,
}

/// How many bits a place in a table, and the number of fragments, take of an index.
const PLACE_BITS: u32 = 10;
const PLACE_MASK: u32 = (1 << PLACE_BITS) - 1;

impl FragmentId {
    /// Slice `place` of `count` (1 to 1024), after the number of fragments has changed `era` times.
    pub fn new(table: TableId, era: u16, count: u16, place: u16) -> FragmentId {
        let counted = u32::from(count.saturating_sub(1)) & PLACE_MASK;
        let before = if era == 0 { 0 } else { (u32::from(era.min(ERA_MAX)) << PLACE_BITS | counted) << PLACE_BITS };
        FragmentId { table, index: before | u32::from(place) & PLACE_MASK }
    }

    /// How often the number of fragments had changed.
    pub fn era(self) -> u16 {
        (self.index >> (2 * PLACE_BITS)) as u16
    }

    /// Of how many it is one; `None` where that has never changed, and the table's first number tells.
    pub fn count(self) -> Option<u16> {
        (self.era() > 0).then_some((self.index >> PLACE_BITS & PLACE_MASK) as u16 + 1)
    }

    /// Which of them, from 0.
    pub fn place(self) -> u16 {
        (self.index & PLACE_MASK) as u16
    }
}

impl fmt::Debug for FragmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}.{}", self.table, self.place())?;
        if self.era() > 0 { write!(f, "/{}", self.era()) } else { Ok(()) }
    }
}

/// An unbroken run of writes made under one leader. `n` grows durably per node and fragment and is never used twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct BranchId {
    /// The leader.
    pub node: NodeId,
    /// Its how-manieth branch of this fragment, from 1, below the fragment's line.
    pub n: u64,
}

/// Below these bits of a branch's number stands the line it is of.
const LINE_SHIFT: u32 = 32;

impl BranchId {
    /// A node's how-manieth branch of a line. What joins copies of several fragments has branches of several lines: they are never
    /// mistaken for each other.
    pub fn of_line(node: NodeId, line: u32, n: u32) -> BranchId {
        BranchId { node, n: u64::from(line) << LINE_SHIFT | u64::from(n) }
    }

    /// The index of the fragment that it is a branch of; 0 of those made by a program that did not tell them apart.
    pub fn line(self) -> u32 {
        (self.n >> LINE_SHIFT) as u32
    }

    /// The how-manieth of its node and line.
    pub fn nth(self) -> u32 {
        self.n as u32
    }

    fn number(self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line() > 0 {
            write!(f, "{}.", self.line())?;
        }
        write!(f, "{}", self.nth())
    }
}

impl fmt::Debug for BranchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}/", self.node)?;
        self.number(f)
    }
}

impl fmt::Display for BranchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/", self.node)?;
        self.number(f)
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
        let (line, nth) = n.split_once('.').unwrap_or(("0", n));
        let node = NodeId(u64::from_str_radix(node, 16).map_err(|_| FORM)?);
        let (line, nth) = (line.parse().map_err(|_| FORM)?, nth.parse().map_err(|_| FORM)?);
        Ok(Version { branch: BranchId::of_line(node, line, nth), seq: seq.parse().map_err(|_| FORM)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_reads_back_as_printed() {
        let v = Version { branch: BranchId { node: NodeId(0xab), n: 3 }, seq: 9 };
        assert_eq!(v.to_string().parse(), Ok(v));
        let v = Version { branch: BranchId::of_line(NodeId(0xab), 7, 3), seq: 9 };
        assert_eq!((v.to_string().parse(), v.to_string().ends_with("ab/7.3:9")), (Ok(v), true));
        assert!("ab:9".parse::<Version>().is_err());
        assert!("ab/x:9".parse::<Version>().is_err());
    }

    #[test]
    fn a_fragment_tells_of_how_many_it_is_one() {
        let first = FragmentId::new(TableId(1), 0, 8, 5);
        assert_eq!((first.index, first.era(), first.count(), first.place()), (5, 0, None, 5));
        for (era, count, place) in [(1, 1, 0), (1, 1024, 1023), (ERA_MAX, 7, 6)] {
            let id = FragmentId::new(TableId(1), era, count, place);
            assert_eq!((id.era(), id.count(), id.place()), (era, Some(count), place));
            assert!(id.index < 1 << 31 && id.index >= 1 << 15);
        }
    }
}
