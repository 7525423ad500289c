//! The tables that a filesystem lies in. In the tests of what islands do to it they are copies on a network of the test's own.

use bytes::Bytes;
use client::{Batch, Error, Heal, LedgerRow, Outcome, Range, Record, Rows, Table};

/// Where records are.
#[derive(Clone)]
pub(crate) enum Records {
    /// In a running node's table.
    Table(Box<Table>),
    #[cfg(test)]
    Model(std::sync::Arc<crate::model::Side>),
}

impl Records {
    /// A conditional batch; all its keys must lie in the fragment of `key`.
    pub(crate) async fn batch(&self, key: &[u8], batch: Batch) -> Result<Outcome, Error> {
        match self {
            Records::Table(table) => table.batch(key, batch).await,
            #[cfg(test)]
            Records::Model(side) => side.batch(batch).await,
        }
    }

    /// Rows of the fragment of `key`, all ranges at one moment.
    pub(crate) async fn read(&self, key: &[u8], ranges: Vec<Range>) -> Result<Vec<Rows>, Error> {
        match self {
            Records::Table(table) => table.read(key, ranges).await,
            #[cfg(test)]
            Records::Model(side) => side.read(ranges).await,
        }
    }

    /// One record of the fragment of `key` as each copy has it that can answer for itself.
    pub(crate) async fn copies(&self, key: &[u8], of: Bytes) -> Result<Vec<Record>, Error> {
        match self {
            Records::Table(table) => table.copies(table.fragment(key), of).await,
            #[cfg(test)]
            Records::Model(side) => Ok(side.copies(&of)),
        }
    }

    /// The heals that the metadata remembers.
    pub(crate) async fn heals(&self) -> Result<Vec<Heal>, Error> {
        match self {
            Records::Table(table) => table.heals(table.fragment(&[0; 8])).await,
            #[cfg(test)]
            Records::Model(side) => side.heals(),
        }
    }

    /// Some values that lost a conflict, from a place on, and where to go on.
    pub(crate) async fn ledger(&self, from: Bytes) -> Result<(Vec<(Bytes, LedgerRow)>, Option<Bytes>), Error> {
        match self {
            Records::Table(table) => table.ledger(table.fragment(&[0; 8]), from, 256).await,
            #[cfg(test)]
            Records::Model(side) => side.ledger(from),
        }
    }

    /// Its name, if it is a table.
    pub(crate) fn table(&self) -> Option<&Table> {
        match self {
            Records::Table(table) => Some(table),
            #[cfg(test)]
            Records::Model(_) => None,
        }
    }
}
