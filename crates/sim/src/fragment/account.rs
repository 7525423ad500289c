//! What must be there at the end of a history.

use super::client::{KEYS, Op, key};
use super::world::World;
use bytes::Bytes;
use replica::{MergeRule, Outcome, Space, Store};
use std::collections::BTreeSet;

impl World {
    /// Every addition that was acknowledged counts once, one of unknown fate once or not at all, and no other.
    pub(crate) fn account_sums(&self, store: &Store) -> Option<String> {
        if self.rule != MergeRule::Sum || !self.sync || self.lossy {
            return None;
        }
        for k in 0..KEYS {
            let added =
                self.pending.iter().filter(|p| p.op == Op::BumpAdd && p.request.batch.writes[0].key() == &key(k));
            let (mut sure, mut most) = ((0, 0), (0, 0));
            for p in added {
                let more = |sum: &mut (u64, u64)| *sum = (sum.0 + 1, sum.1 + p.request.number);
                match p.outcome {
                    Some(Outcome::Failed(_)) => continue,
                    Some(Outcome::Done { .. }) => more(&mut sure),
                    _ => {}
                }
                more(&mut most);
            }
            let stored: Bytes = [&[Space::User as u8, k][..]].concat().into();
            let value = store.find(&stored).and_then(|r| r.value).map(|v| replica::shown(&self.rule, &v));
            let fields: Vec<u64> = value
                .iter()
                .flat_map(|v| v.chunks(8))
                .map(|f| u64::from_be_bytes(f.try_into().unwrap_or_default()))
                .collect();
            let is = (fields.first().copied().unwrap_or(0), fields.get(1).copied().unwrap_or(0));
            if is.0 < sure.0 || is.1 < sure.1 || is.0 > most.0 || is.1 > most.1 {
                return Some(format!("invariant 1: the sum of {k} is {is:?}, and must be {sure:?} to {most:?}"));
            }
        }
        None
    }
}

pub(crate) fn same(a: &Store, b: &Store) -> bool {
    let whole = |s: &Store| s.all().map(|(k, _)| (k.clone(), s.find(k))).collect::<Vec<_>>();
    a.heads() == b.heads() && whole(a) == whole(b)
}

pub(crate) fn difference(a: &Store, b: &Store) -> String {
    if a.heads() != b.heads() {
        return format!("heads {:?} and {:?}", a.heads(), b.heads());
    }
    let keys: BTreeSet<&Bytes> = a.all().chain(b.all()).map(|(k, _)| k).collect();
    let found = keys.into_iter().find(|k| a.find(k) != b.find(k));
    found.map_or_else(String::new, |k| format!("{k:?}: {:?} and {:?}", a.find(k), b.find(k)))
}
