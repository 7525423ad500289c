//! Values that merge without losing anything: counters and sets. What is stored is a state, made of parts that each name the
//! write that made them; what users see is computed from it. A part that one side has and the other has not was added where
//! it is, or removed where it is not: the heads tell which (dotted version vectors; Almeida et al., 2014).

use crate::merge::{fields, unfields};
use crate::policy::MergeRule;
use base::{BranchId, Heads, Version};
use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};
use std::collections::BTreeMap;

/// A counter: of each branch that added to it, the sum of what it added, and its last write that did.
type Counter = BTreeMap<BranchId, (u64, Vec<u64>)>;
/// A set: each line, and the write that added it.
type Lines = BTreeMap<Bytes, Version>;

/// One side of a conflict: the stored value, and what that side knew.
pub(crate) type Side<'a> = (Option<&'a Bytes>, &'a Heads);

fn decode<T: DeserializeOwned + Default>(value: Option<&Bytes>) -> Option<T> {
    value.map_or_else(|| Some(T::default()), |v| crate::key::decode(v))
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
        MergeRule::Sum => Some(crate::key::encode(&Counter::from([(by.branch, (by.seq, fields(value)?))]))),
        MergeRule::Union => {
            let before: Lines = decode(old).unwrap_or_default();
            let lines = value.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
            let line = |line| (Bytes::copy_from_slice(line), before.get(line).copied().unwrap_or(by));
            Some(crate::key::encode(&lines.map(line).collect::<Lines>()))
        }
        _ => Some(value.clone()),
    }
}

/// The state of a counter after `more` was added to it by this write; `None`: it is no counter of so many fields.
pub(crate) fn added(old: Option<&Bytes>, more: &[u64], by: Version) -> Option<Bytes> {
    let mut counter: Counter = decode(old)?;
    let width = |part: &Vec<u64>| part.len() == more.len();
    if !counter.values().all(|(_, part)| width(part)) {
        return None;
    }
    let part = counter.entry(by.branch).or_default();
    part.0 = by.seq;
    add(&mut part.1, more);
    Some(crate::key::encode(&counter))
}

/// What a counter is, of so many fields.
pub(crate) fn counted(old: Option<&Bytes>, width: usize) -> Option<Vec<u64>> {
    let mut sum = total(&decode(old)?);
    sum.resize(width.max(sum.len()), 0);
    (sum.len() == width).then_some(sum)
}

/// Both sides together; `None`: one of them is no such state.
pub(crate) fn merged(rule: &MergeRule, mine: Side<'_>, theirs: Side<'_>) -> Option<Bytes> {
    match rule {
        MergeRule::Sum => {
            let (a, b): (Counter, Counter) = (decode(mine.0)?, decode(theirs.0)?);
            let at = |branch: &BranchId, part: &(u64, Vec<u64>)| Version { branch: *branch, seq: part.0 };
            Some(encoded(join((a, mine.1), (b, theirs.1), at, |x, y| if x.0 >= y.0 { x } else { y })))
        }
        MergeRule::Union => {
            let (a, b): (Lines, Lines) = (decode(mine.0)?, decode(theirs.0)?);
            Some(encoded(join((a, mine.1), (b, theirs.1), |_, by| *by, |x, y| x.max(y))))
        }
        _ => None,
    }
}

fn encoded<T: Serialize>(state: T) -> Bytes {
    crate::key::encode(&state)
}

/// Parts that both have, and those that one has and the other has never known.
fn join<K: Ord + Clone, P: Clone>(
    (a, knew_a): (BTreeMap<K, P>, &Heads),
    (b, knew_b): (BTreeMap<K, P>, &Heads),
    by: impl Fn(&K, &P) -> Version,
    newer: impl Fn(P, P) -> P,
) -> BTreeMap<K, P> {
    let mut all = BTreeMap::new();
    for (key, x) in &a {
        match b.get(key) {
            Some(y) => drop(all.insert(key.clone(), newer(x.clone(), y.clone()))),
            None if knew_b.covers(by(key, x)) => {}
            None => drop(all.insert(key.clone(), x.clone())),
        }
    }
    let unknown = b.into_iter().filter(|(key, y)| !a.contains_key(key) && !knew_a.covers(by(key, y)));
    all.extend(unknown);
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

    #[test]
    fn what_both_sides_added_counts_once() {
        let base = added(None, &[10], by(1, 1)).expect("counts");
        // One side goes on with the branch, the other with one of its own; then they meet twice.
        let left = added(Some(&base), &[5], by(1, 2)).expect("counts");
        let right = added(Some(&base), &[u64::MAX], by(2, 1)).expect("counts");
        let (knew_left, knew_right) = (heads(&[(1, 2)]), heads(&[(1, 1), (2, 1)]));
        let both = merged(&MergeRule::Sum, (Some(&left), &knew_left), (Some(&right), &knew_right)).expect("merges");
        assert_eq!(counted(Some(&both), 1), Some(vec![14]), "10 + 5 - 1");
        let all = heads(&[(1, 2), (2, 1), (3, 1)]);
        let again = merged(&MergeRule::Sum, (Some(&both), &all), (Some(&right), &knew_right)).expect("merges");
        assert_eq!(again, both);
        // A deletion takes what it knew, and leaves what was added elsewhere.
        let gone = merged(&MergeRule::Sum, (None, &heads(&[(1, 1)])), (Some(&right), &knew_right)).expect("merges");
        assert_eq!(counted(Some(&gone), 1), Some(vec![u64::MAX]));
        assert_eq!(added(Some(&base), &[1, 2], by(1, 3)), None, "of another width");
    }

    #[test]
    fn a_line_stays_if_either_side_added_it_and_goes_if_either_removed_it() {
        let rule = MergeRule::Union;
        let base = put(&rule, None, &"a\nb\nc".into(), by(1, 1)).expect("a set");
        let left = put(&rule, Some(&base), &"a\nc\nnew".into(), by(1, 2)).expect("a set");
        let right = put(&rule, Some(&base), &"other\na\nb\n".into(), by(2, 1)).expect("a set");
        let both = merged(&rule, (Some(&left), &heads(&[(1, 2)])), (Some(&right), &heads(&[(1, 1), (2, 1)])));
        assert_eq!(shown(&rule, &both.expect("merges")), "a\nnew\nother");
        let anew = put(&rule, Some(&left), &"a\nb".into(), by(1, 3)).expect("a set");
        let both = merged(&rule, (Some(&anew), &heads(&[(1, 3)])), (Some(&right), &heads(&[(1, 1), (2, 1)])));
        assert_eq!(shown(&rule, &both.expect("merges")), "a\nb\nother", "b was added anew");
    }
}
