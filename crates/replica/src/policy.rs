//! What a table's conflicts become.

use crate::evict::{Candidate, EvictFunction};
use base::{BranchId, NodeId};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// What a true conflict of two values becomes.
///
/// `Latest` picks the same winner wherever it is decided. All others are decided once, by the opening that finds the
/// conflict, and written as a record of its branch.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum MergeRule {
    /// The greater (Hlc, version) stays.
    #[default]
    Latest,
    /// Field by field the greater: values are big-endian 64-bit fields of equal number, else `Latest`.
    Max,
    /// Field by field the smaller; likewise.
    Min,
    /// Values are counters of big-endian 64-bit fields: what both sides added counts, each once.
    Sum,
    /// Values are sets of lines: what either side added is in, what either removed and the other did not add anew is out.
    Union,
    /// As `Latest`, and the other value is put beside it, under `KEY~conflict-VERSION`.
    KeepBoth,
    /// The value of one island, whichever is later; `Latest` where both were written in it or neither.
    Island(Choice),
    /// What a function of the program that embeds the node makes of both; `Latest` where a node does not know it.
    Function(String),
}

/// Whose values stay.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Choice {
    /// Of the island with more copies in sync when the value was written.
    Largest,
    /// Of the island with the copy that has been a member for longest.
    Oldest,
    /// Of the island with this node.
    Node(NodeId),
}

impl fmt::Display for MergeRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MergeRule::Latest => f.write_str("latest"),
            MergeRule::Max => f.write_str("max"),
            MergeRule::Min => f.write_str("min"),
            MergeRule::Sum => f.write_str("sum"),
            MergeRule::Union => f.write_str("union"),
            MergeRule::KeepBoth => f.write_str("keep-both"),
            MergeRule::Island(Choice::Largest) => f.write_str("island:largest"),
            MergeRule::Island(Choice::Oldest) => f.write_str("island:oldest"),
            MergeRule::Island(Choice::Node(node)) => write!(f, "island:{node}"),
            MergeRule::Function(name) => write!(f, "function:{name}"),
        }
    }
}

/// Text that names no rule.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "{0:?} is no rule for conflicts: latest, max, min, sum, union, keep-both, island:largest, island:oldest, island:NODE or function:NAME"
)]
pub struct NoRule(String);

impl std::str::FromStr for MergeRule {
    type Err = NoRule;

    /// Nodes by their ids, as `Display` prints them.
    fn from_str(text: &str) -> Result<Self, NoRule> {
        let none = || NoRule(text.into());
        Ok(match text.split_once(':') {
            None => match text {
                "latest" => MergeRule::Latest,
                "max" => MergeRule::Max,
                "min" => MergeRule::Min,
                "sum" => MergeRule::Sum,
                "union" => MergeRule::Union,
                "keep-both" => MergeRule::KeepBoth,
                _ => return Err(none()),
            },
            Some(("island", "largest")) => MergeRule::Island(Choice::Largest),
            Some(("island", "oldest")) => MergeRule::Island(Choice::Oldest),
            Some(("island", id)) if id.len() == 16 => {
                MergeRule::Island(Choice::Node(NodeId(u64::from_str_radix(id, 16).map_err(|_| none())?)))
            }
            Some(("function", name)) if !name.is_empty() => MergeRule::Function(name.into()),
            Some(_) => return Err(none()),
        })
    }
}

/// A table's rules: one, or by the kind of key, told by one byte at an offset.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct MergePolicy {
    /// For all keys that no exception names.
    pub default: MergeRule,
    /// (offset in the key, byte found there, rule).
    pub exceptions: Vec<(u16, u8, MergeRule)>,
}

impl MergePolicy {
    pub(crate) fn rule(&self, user_key: &[u8]) -> &MergeRule {
        let matches = |(at, byte, _): &&(u16, u8, MergeRule)| user_key.get(usize::from(*at)) == Some(byte);
        self.exceptions.iter().find(matches).map_or(&self.default, |(_, _, rule)| rule)
    }

    fn any(&self, which: impl Fn(&MergeRule) -> bool) -> bool {
        which(&self.default) || self.exceptions.iter().any(|(_, _, rule)| which(rule))
    }

    /// Are some values kept as a state from which what users see is computed?
    pub(crate) fn has_states(&self) -> bool {
        self.any(|rule| matches!(rule, MergeRule::Sum | MergeRule::Union))
    }

    /// Does it matter in which island a value was written?
    pub(crate) fn asks_for_islands(&self) -> bool {
        self.any(|rule| matches!(rule, MergeRule::Island(_)))
    }
}

/// What lies beside a key whose conflict was kept: the other value, under a key that shares its fragment.
const BESIDE: &str = "~conflict-";

/// The key of the losing value of a conflict, beside the winner's.
pub(crate) fn beside(key: &[u8], lost: base::Version) -> Bytes {
    [key, BESIDE.as_bytes(), lost.to_string().as_bytes()].concat().into()
}

/// The part of a key that says in which fragment it lies, where losing values are put beside winners.
pub fn beside_whom(key: &[u8]) -> &[u8] {
    let at = key.windows(BESIDE.len()).position(|w| w == BESIDE.as_bytes());
    at.map_or(key, |at| &key[..at])
}

/// A function that merges two values of one key: the key, then the values, the earlier first; `None` stands for a deletion,
/// and as the answer for "I cannot". It must give the same for the same.
pub type MergeFunction = dyn Fn(&[u8], Option<&[u8]>, Option<&[u8]>) -> Option<Bytes> + Send + Sync;

/// The functions that a program brings along, by name.
#[derive(Clone, Default)]
pub struct Functions(BTreeMap<String, Arc<MergeFunction>>, BTreeMap<String, Arc<EvictFunction>>);

impl Functions {
    /// Adds one. Tables name it `function:NAME`; every node that may lead their fragments should have it.
    pub fn with(mut self, name: &str, function: Arc<MergeFunction>) -> Functions {
        self.0.insert(name.into(), function);
        self
    }

    /// Adds one that says what goes when there is no room. Tables name it with `evict`, and every node that may lead their fragments
    /// should have it.
    pub fn with_evict(mut self, name: &str, function: Arc<EvictFunction>) -> Functions {
        self.1.insert(name.into(), function);
        self
    }

    /// Which of these goes; `None`: there is no such function, or it panics.
    pub(crate) fn evict(&self, name: &str, all: &[Candidate]) -> Option<Option<usize>> {
        let function = self.1.get(name)?;
        catch_unwind(AssertUnwindSafe(|| function(all))).ok()
    }

    /// What it makes of these values; `None`: it is not there, cannot, or panics.
    pub(crate) fn call(&self, name: &str, key: &[u8], a: Option<&[u8]>, b: Option<&[u8]>) -> Option<Bytes> {
        let function = self.0.get(name)?;
        catch_unwind(AssertUnwindSafe(|| function(key, a, b))).ok().flatten()
    }
}

impl fmt::Debug for Functions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).entries(self.1.keys()).finish()
    }
}

/// What is known of a branch: the ballot it was opened with, and the in-sync sets from which entries on.
pub(crate) type BranchInfo = (base::Ballot, Vec<(u64, std::collections::BTreeSet<NodeId>)>);

/// The copies that were in sync when an entry of the branch was written.
pub(crate) fn in_sync_at(
    all: &BTreeMap<BranchId, BranchInfo>,
    version: base::Version,
) -> Option<&std::collections::BTreeSet<NodeId>> {
    let (_, sets) = all.get(&version.branch)?;
    sets.iter().rev().find(|(from, _)| *from <= version.seq).map(|(_, set)| set)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_read_back_as_printed() {
        let node = MergeRule::Island(Choice::Node(NodeId(0xab)));
        let function = MergeRule::Function("mine".into());
        let named = ["latest", "max", "min", "sum", "union", "keep-both", "island:largest", "island:oldest"];
        for text in named.into_iter().map(String::from).chain([node.to_string(), function.to_string()]) {
            assert_eq!(text.parse::<MergeRule>().map(|rule| rule.to_string()), Ok(text));
        }
        for text in ["", "Latest", "island", "island:", "island:x", "island:0000000000000zzz", "function:", "sum:1"] {
            assert!(text.parse::<MergeRule>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_losing_value_lies_beside_the_winner() {
        let lost = base::Version { branch: BranchId { node: NodeId(1), n: 2 }, seq: 3 };
        let key = beside(b"k", lost);
        assert_eq!((&key[..], beside_whom(&key)), (&b"k~conflict-0000000000000001/2:3"[..], &b"k"[..]));
        assert_eq!(beside_whom(&beside(&key, lost)), b"k", "whatever was put beside what");
        assert_eq!(beside_whom(b"k"), b"k");
    }

    #[test]
    fn a_function_that_panics_is_none() {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let all = Functions::default()
            .with("bad", Arc::new(|_, _, _| panic!("no")))
            .with("b", Arc::new(|_, _, b| b.map(Bytes::copy_from_slice)));
        let (bad, good) = (all.call("bad", b"k", None, Some(b"x")), all.call("b", b"k", None, Some(b"x")));
        std::panic::set_hook(hook);
        assert_eq!((bad, good, all.call("none", b"k", None, None)), (None, Some("x".into()), None));
    }
}
