//! Values that merge without losing anything: counters and sets. What is stored is a state, made of parts that each name the
//! write that made them; what users see is computed from it. A part that one side has and the other has not was added where
//! it is, or removed where it is not: the heads tell which (dotted version vectors; Almeida et al., 2014).

use crate::merge::{fields, unfields};
use crate::policy::MergeRule;
use crate::record::Record;
use base::{BranchId, Heads, VALUE_BYTES_MAX, Version};
use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};
use std::collections::{BTreeMap, BTreeSet};

/// A counter: of each branch that added to it, the sum of what it added, and its last write that did.
type Counter = BTreeMap<BranchId, (u64, Vec<u64>)>;
/// A set: each line, and the writes that added it.
type Lines = BTreeMap<Bytes, BTreeSet<Version>>;

/// One side of a conflict: the stored value, and what that side knew.
pub(crate) type Side<'a> = (Option<&'a Bytes>, &'a Heads);

/// How a stored state begins, so that what was put before the table had its rule is not taken for one.
const MAGIC: &[u8] = b"\xc5tombolo\x01";

fn decode<T: DeserializeOwned + Default>(value: Option<&Bytes>) -> Option<T> {
    let Some(value) = value else { return Some(T::default()) };
    let (state, rest) = postcard::take_from_bytes(value.strip_prefix(MAGIC)?).ok()?;
    rest.is_empty().then_some(state)
}

fn encode(state: &impl Serialize) -> Option<Bytes> {
    postcard::to_extend(state, MAGIC.to_vec()).ok().map(Bytes::from)
}

/// Is what is stored under this rule a state?
pub(crate) fn is_state(rule: &MergeRule) -> bool {
    matches!(rule, MergeRule::Sum | MergeRule::Union)
}

/// What users see of a stored value. One that cannot be read (the table's rule was another when it was written) is shown as
/// it is.
pub fn shown(rule: &MergeRule, value: &Bytes) -> Bytes {
    match rule {
        MergeRule::Sum => decode::<Counter>(Some(value)).map_or_else(|| value.clone(), |c| unfields(total(&c))),
        MergeRule::Union => decode::<Lines>(Some(value))
            .map_or_else(|| value.clone(), |lines| lines.into_keys().collect::<Vec<_>>().join(&b'\n').into()),
        _ => value.clone(),
    }
}

fn total(counter: &Counter) -> Vec<u64> {
    let mut sum = Vec::new();
    for (_, part) in counter.values() {
        add(&mut sum, part);
    }
    sum
}

fn add(sum: &mut Vec<u64>, part: &[u64]) {
    sum.resize(sum.len().max(part.len()), 0);
    sum.iter_mut().zip(part).for_each(|(sum, part)| *sum = sum.wrapping_add(*part));
}

/// The state after a put of what users see, by this write; `None`: it is no counter.
pub(crate) fn put(rule: &MergeRule, old: Option<&Bytes>, value: &Bytes, by: Version) -> Option<Bytes> {
    match rule {
        MergeRule::Sum => encode(&Counter::from([(by.branch, (by.seq, fields(value)?))])),
        MergeRule::Union => {
            let before: Lines = decode(old).unwrap_or_default();
            let lines = value.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
            let line = |line| {
                let added = before.get(line).cloned().unwrap_or_else(|| BTreeSet::from([by]));
                (Bytes::copy_from_slice(line), added)
            };
            encode(&lines.map(line).collect::<Lines>())
        }
        _ => Some(value.clone()),
    }
}

/// A counter as stored; one that was put before the table counted is the part of the write that put it.
fn counter(old: Option<&Record>) -> Option<Counter> {
    let Some(old) = old else { return Some(Counter::new()) };
    let value = old.value.as_ref();
    decode(value).or_else(|| Some(Counter::from([(old.version.branch, (old.version.seq, fields(value?)?))])))
}

/// The state of a counter after `more` was added to it by this write; `None`: it is no counter of so many fields.
pub(crate) fn added(old: Option<&Record>, more: &[u64], by: Version) -> Option<Bytes> {
    let mut counter = counter(old)?;
    if !counter.values().all(|(_, part)| part.len() == more.len()) {
        return None;
    }
    let part = counter.entry(by.branch).or_default();
    part.0 = by.seq;
    add(&mut part.1, more);
    encode(&counter)
}

/// What a counter is, of so many fields.
pub(crate) fn counted(old: Option<&Record>, width: usize) -> Option<Vec<u64>> {
    let mut sum = total(&counter(old)?);
    sum.resize(width.max(sum.len()), 0);
    (sum.len() == width).then_some(sum)
}

/// Both sides together, a tombstone if one side deleted all that the other has; `None`: one of them is no such state, or both
/// are too much for one value.
pub(crate) fn merged(rule: &MergeRule, mine: Side<'_>, theirs: Side<'_>) -> Option<Option<Bytes>> {
    let deleted = mine.0.is_none() || theirs.0.is_none();
    let (empty, state) = match rule {
        MergeRule::Sum => {
            let (a, b): (Counter, Counter) = (decode(mine.0)?, decode(theirs.0)?);
            let all = joined((a, mine.1), (b, theirs.1));
            (all.is_empty(), encode(&all)?)
        }
        MergeRule::Union => {
            let (a, b): (Lines, Lines) = (decode(mine.0)?, decode(theirs.0)?);
            let all = united((&a, mine.1), (&b, theirs.1));
            (all.is_empty(), encode(&all)?)
        }
        _ => return None,
    };
    (state.len() <= VALUE_BYTES_MAX).then_some(if deleted && empty { None } else { Some(state) })
}

/// Of each branch the part that is further on; one that only one side has, if the other has never known it.
fn joined((a, knew_a): (Counter, &Heads), (b, knew_b): (Counter, &Heads)) -> Counter {
    let new = |branch: &BranchId, part: &(u64, Vec<u64>), knew: &Heads| {
        !knew.covers(Version { branch: *branch, seq: part.0 })
    };
    let mut all = Counter::new();
    for (branch, part) in &a {
        match b.get(branch) {
            Some(other) => drop(all.insert(*branch, if part.0 >= other.0 { part.clone() } else { other.clone() })),
            None if new(branch, part, knew_b) => drop(all.insert(*branch, part.clone())),
            None => {}
        }
    }
    all.extend(b.into_iter().filter(|(branch, part)| !a.contains_key(branch) && new(branch, part, knew_a)));
    all
}

/// Of each line the additions that both sides have, and those that one side has and the other has never known.
fn united((a, knew_a): (&Lines, &Heads), (b, knew_b): (&Lines, &Heads)) -> Lines {
    let none = BTreeSet::new();
    let mut all = Lines::new();
    for line in a.keys().chain(b.keys()) {
        let (x, y) = (a.get(line).unwrap_or(&none), b.get(line).unwrap_or(&none));
        let mine = x.iter().filter(|by| y.contains(by) || !knew_b.covers(**by));
        let theirs = y.iter().filter(|by| !x.contains(by) && !knew_a.covers(**by));
        let added: BTreeSet<Version> = mine.chain(theirs).copied().collect();
        if !added.is_empty() {
            all.insert(line.clone(), added);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::NodeId;

    fn by(node: u64, seq: u64) -> Version {
        Version { branch: BranchId { node: NodeId(node), n: 1 }, seq }
    }

    fn heads(all: &[(u64, u64)]) -> Heads {
        all.iter().map(|(node, seq)| by(*node, *seq)).collect()
    }

    fn record(value: &Bytes) -> Record {
        Record { version: by(7, 1), hlc: base::Hlc(1), expires: None, value: Some(value.clone()) }
    }

    fn count(old: Option<&Bytes>, width: usize) -> Option<Vec<u64>> {
        counted(old.map(record).as_ref(), width)
    }

    fn more(old: Option<&Bytes>, more: &[u64], by: Version) -> Option<Bytes> {
        added(old.map(record).as_ref(), more, by)
    }

    fn both(rule: &MergeRule, mine: Side<'_>, theirs: Side<'_>) -> Bytes {
        merged(rule, mine, theirs).expect("merges").expect("is there")
    }

    #[test]
    fn what_both_sides_added_counts_once() {
        let base = more(None, &[10], by(1, 1)).expect("counts");
        // One side goes on with the branch, the other with one of its own; then they meet twice.
        let left = more(Some(&base), &[5], by(1, 2)).expect("counts");
        let right = more(Some(&base), &[u64::MAX], by(2, 1)).expect("counts");
        let (knew_left, knew_right) = (heads(&[(1, 2)]), heads(&[(1, 1), (2, 1)]));
        let sum = both(&MergeRule::Sum, (Some(&left), &knew_left), (Some(&right), &knew_right));
        assert_eq!(count(Some(&sum), 1), Some(vec![14]), "10 + 5 - 1");
        let all = heads(&[(1, 2), (2, 1), (3, 1)]);
        let again = both(&MergeRule::Sum, (Some(&sum), &all), (Some(&right), &knew_right));
        assert_eq!(again, sum);
        // A deletion takes what it knew, and leaves what was added elsewhere.
        let gone = both(&MergeRule::Sum, (None, &heads(&[(1, 1)])), (Some(&right), &knew_right));
        assert_eq!(count(Some(&gone), 1), Some(vec![u64::MAX]));
        assert_eq!(more(Some(&base), &[1, 2], by(1, 3)), None, "of another width");
    }

    #[test]
    fn a_line_stays_if_either_side_added_it_and_goes_if_either_removed_it() {
        let rule = MergeRule::Union;
        let base = put(&rule, None, &"a\nb\nc".into(), by(1, 1)).expect("a set");
        let left = put(&rule, Some(&base), &"a\nc\nnew".into(), by(1, 2)).expect("a set");
        let right = put(&rule, Some(&base), &"other\na\nb\n".into(), by(2, 1)).expect("a set");
        let all = both(&rule, (Some(&left), &heads(&[(1, 2)])), (Some(&right), &heads(&[(1, 1), (2, 1)])));
        assert_eq!(shown(&rule, &all), "a\nnew\nother");
        let anew = put(&rule, Some(&left), &"a\nb".into(), by(1, 3)).expect("a set");
        let all = both(&rule, (Some(&anew), &heads(&[(1, 3)])), (Some(&right), &heads(&[(1, 1), (2, 1)])));
        assert_eq!(shown(&rule, &all), "a\nb\nother", "b was added anew");
        // Deleted on one side, and what the other removed: nothing is left.
        let empty = put(&rule, Some(&base), &"".into(), by(2, 1)).expect("a set");
        let gone = merged(&rule, (None, &heads(&[(1, 2)])), (Some(&empty), &heads(&[(1, 1), (2, 1)])));
        assert_eq!(gone, Some(None));
    }

    /// Two sides add the same line, and a third that knew one of the two takes it out: the other stays, in any order.
    #[test]
    fn a_line_that_was_added_twice_is_removed_twice() {
        let rule = MergeRule::Union;
        let a = put(&rule, None, &"l".into(), by(1, 1)).expect("a set");
        let b = put(&rule, None, &"l".into(), by(2, 1)).expect("a set");
        let c = put(&rule, Some(&b), &"other".into(), by(3, 1)).expect("a set");
        let (ha, hb, hc) = (heads(&[(1, 1)]), heads(&[(2, 1)]), heads(&[(2, 1), (3, 1)]));
        let ab = both(&rule, (Some(&a), &ha), (Some(&b), &hb));
        let one = both(&rule, (Some(&ab), &heads(&[(1, 1), (2, 1)])), (Some(&c), &hc));
        let other = both(&rule, (Some(&a), &ha), (Some(&c), &hc));
        assert_eq!((shown(&rule, &one), shown(&rule, &other)), ("l\nother".into(), "l\nother".into()));
    }

    /// Values from before the table had its rule.
    #[test]
    fn a_plain_value_is_no_state_and_is_not_lost() {
        let raw: Bytes = unfields([5]);
        assert_eq!(shown(&MergeRule::Sum, &raw), raw);
        let six = more(Some(&raw), &[1], by(1, 1)).expect("counts");
        assert_eq!(count(Some(&six), 1), Some(vec![6]));
        let side = heads(&[(1, 1)]);
        assert_eq!(merged(&MergeRule::Sum, (Some(&raw), &side), (Some(&six), &side)), None, "the ledger has it");
    }
}
