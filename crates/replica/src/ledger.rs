//! What conflicts left behind: losing values, until an operator drops them, and a history of heals.

use crate::copy::Copy;
use crate::key::{self, Space};
use crate::record::Record;
use base::{NodeId, Span, WallMs};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// How many heals a fragment remembers.
const HEALS_MAX: usize = 32;

/// One losing value, as the ledger keeps it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LedgerRow {
    /// The users' key.
    pub key: Bytes,
    /// What it held on the side that lost.
    pub lost: Record,
}

impl LedgerRow {
    /// Reads a row of [`Space::Ledger`], as [`Rows`](crate::Rows) carry it; `None` when damaged.
    pub fn read(key: &Bytes, row: &Record) -> Option<LedgerRow> {
        let end = key.len().checked_sub(24)?;
        let lost = key::decode(row.value.as_ref()?)?;
        Some(LedgerRow { key: key.slice(..end), lost })
    }
}

/// One opening that merged what islands had written apart.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Heal {
    /// When it was done, by the opener's clock.
    pub at: WallMs,
    /// How long the other side had been in view by then.
    pub took: Span,
    /// Who opened.
    pub by: NodeId,
    /// The copies that had what it lacked.
    pub with: Vec<NodeId>,
    /// How many records it took over.
    pub taken: u64,
    /// How many entries of its own they lacked, together.
    pub given: u64,
    /// How many keys had been written on both sides.
    pub conflicts: u64,
}

impl Heal {
    /// Reads the history of a fragment from [`Space::Heals`].
    pub fn read(row: &Record) -> Vec<Heal> {
        row.value.as_ref().and_then(|v| key::decode(v)).unwrap_or_default()
    }

    /// Two histories in one.
    pub(crate) fn joined(a: &Record, b: &Record) -> Bytes {
        let mut all = Heal::read(a);
        all.extend(Heal::read(b));
        Heal::written(all)
    }

    fn written(mut all: Vec<Heal>) -> Bytes {
        all.sort_unstable();
        all.dedup();
        let old = all.len().saturating_sub(HEALS_MAX);
        key::encode(&all.split_off(old))
    }

    /// The history with this one at its end.
    pub(crate) fn added(self, before: Option<&Record>) -> Bytes {
        let mut all = before.map(Heal::read).unwrap_or_default();
        all.push(self);
        Heal::written(all)
    }
}

impl Copy {
    /// All conflicts' losers that this copy knows of.
    pub fn ledger(&self) -> impl Iterator<Item = LedgerRow> + '_ {
        self.store.own_space(Space::Ledger).filter_map(|(k, r)| LedgerRow::read(&k.slice(1..), r))
    }

    /// How many losing values this copy keeps, and their bytes.
    pub fn ledger_size(&self) -> (u64, u64) {
        self.store.ledger_size()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::Version;

    #[test]
    fn a_history_is_bounded_and_the_same_from_either_side() {
        let heal = |at| Heal {
            at: WallMs(at),
            took: Span::ms(1),
            by: NodeId(1),
            with: vec![NodeId(2)],
            taken: at,
            given: 0,
            conflicts: 0,
        };
        let record =
            |value| Record { version: Version::default(), hlc: base::Hlc(1), expires: None, value: Some(value) };
        let some = |range: std::ops::Range<u64>| {
            range.fold(None, |before: Option<Record>, at| Some(record(heal(at).added(before.as_ref())))).expect("some")
        };
        let (a, b) = (some(0..40), some(30..50));
        assert_eq!(Heal::read(&a).len(), HEALS_MAX);
        let both = Heal::joined(&a, &b);
        assert_eq!(both, Heal::joined(&b, &a));
        let at: Vec<u64> = Heal::read(&record(both)).iter().map(|heal| heal.at.0).collect();
        assert_eq!(at, (18..50).collect::<Vec<_>>());
    }
}
