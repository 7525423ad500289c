use crate::Record;
use crate::key::Space;
use base::{BATCH_BYTES_MAX, BATCH_ITEMS_MAX, BranchId, Hlc, KEY_BYTES_MAX, NodeId, VALUE_BYTES_MAX, Version};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Whose requests these are: one per running node, so that numbers are never used twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct SessionId {
    /// The node that speaks for its local clients.
    pub node: NodeId,
    /// Its how-manieth start.
    pub incarnation: u64,
}

/// What must hold for a batch to be applied.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Check {
    /// No live value under the key.
    Absent(Bytes),
    /// A live value under the key.
    Present(Bytes),
    /// The live value that this very write put.
    AtVersion(Bytes, Version),
    /// Exactly so many live keys start with the prefix.
    Count(Bytes, u32),
}

/// How a [`Write::Bump`] combines, field by field.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Bump {
    /// The greater of the two.
    Max,
    /// The sum, wrapping.
    Add,
}

/// One change of one key.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Write {
    /// Puts a value, for so many milliseconds, or for as long as the table says.
    Put {
        /// The key.
        key: Bytes,
        /// The value.
        value: Bytes,
        /// Time to live in milliseconds.
        ttl_ms: Option<u64>,
    },
    /// Deletes; no error when absent.
    Delete {
        /// The key.
        key: Bytes,
    },
    /// Combines with the present value, at the leader, so that writers of one counter never fail each other. Values are
    /// big-endian 64-bit fields; an absent one counts as all zero. It expires when it would have.
    Bump {
        /// The key.
        key: Bytes,
        /// How.
        by: Bump,
        /// With what, one per field.
        fields: Vec<u64>,
    },
    /// Drops the ledger's row of a losing value; no error when there is none.
    Forget {
        /// The key that it was a value of.
        key: Bytes,
        /// The write that made it.
        lost: Version,
    },
    /// The value that is there expires after so many milliseconds from now, or never. No error when absent.
    Expire {
        /// The key.
        key: Bytes,
        /// Time to live in milliseconds.
        ttl_ms: Option<u64>,
    },
}

impl Write {
    /// The key it changes.
    pub fn key(&self) -> &Bytes {
        match self {
            Write::Put { key, .. }
            | Write::Delete { key }
            | Write::Bump { key, .. }
            | Write::Forget { key, .. }
            | Write::Expire { key, .. } => key,
        }
    }
}

/// The one write primitive: all keys in one fragment, applied whole or not at all.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Batch {
    /// All must hold.
    pub checks: Vec<Check>,
    /// Then all are done.
    pub writes: Vec<Write>,
    /// On disc at every in-sync copy before it is answered, whatever the table's default.
    pub sync: bool,
}

/// Why a batch was not applied.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// The check of this index did not hold.
    #[error("check {0} of the batch does not hold")]
    Check(u32),
    /// A bump of a value that is not big-endian 64-bit fields of that number.
    #[error("write {0} bumps a value that is not a counter of that many fields")]
    NotACounter(u32),
    /// A node with a copy is short of memory, or its disc is nearly full; batches that delete, and put little, are still taken.
    #[error(
        "no space: a node that has a copy is at its memory ceiling, or its disc is nearly full (`tombolo nodes` says which); delete something, or give it room"
    )]
    NoSpace,
    /// A value of which every side's part is kept: they would not expire as one.
    #[error(
        "values of this table are made of parts (on-conflict sum or union), whose time to live is given when they are put"
    )]
    LivesInParts,
    /// The table would grow beyond its bound; nothing that shrinks it, or leaves it as it is, is refused.
    #[error(
        "the table is full: it holds as much as it may ({what}); delete something, or raise its bound with `tombolo table alter`"
    )]
    TableFull {
        /// Of which it holds as much as it may.
        what: Measure,
    },
    /// Fewer copies than the table's `min_in_sync` are in sync; it may be tried again under another number.
    #[error(
        "{have} copies are in sync here, and the table asks for {need} (min-in-sync): see `tombolo status` for which nodes are missing"
    )]
    TooFewCopies {
        /// In sync here, the leader among them.
        have: u16,
        /// Asked for.
        need: u16,
    },
    /// Only a stand-in is here: it does not know what lies under that key.
    #[error(
        "the copies are on the other side of a cut: what is not known here cannot be checked or changed by what it was"
    )]
    Elsewhere,
    /// The session has said that this request is finished.
    #[error("the request was given up by its own session")]
    Finished,
    /// A limit of `base::limits` is exceeded.
    #[error("{what} is {is} bytes or items; at most {most} are taken")]
    TooLarge {
        /// Of what there is too much.
        what: Limit,
        /// How much there is.
        is: u64,
        /// How much is taken.
        most: u64,
    },
}

/// In what a table is bounded.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Measure {
    /// Records that hold a value.
    Records,
    /// Bytes of their keys and values.
    Bytes,
}

impl std::fmt::Display for Measure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Measure::Records => "records",
            Measure::Bytes => "bytes",
        })
    }
}

/// Which limit a batch exceeds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Limit {
    /// `KEY_BYTES_MAX`
    Key,
    /// `VALUE_BYTES_MAX`
    Value,
    /// `BATCH_BYTES_MAX`
    Batch,
    /// `BATCH_ITEMS_MAX`
    Items,
}

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Limit::Key => "the key",
            Limit::Value => "the value",
            Limit::Batch => "the batch",
            Limit::Items => "the number of checks and writes",
        })
    }
}

/// On a nearly full disc, batches that delete may still put so many bytes.
pub(crate) const FULL_PUT_BYTES_MAX: usize = 4096;

impl Batch {
    /// May it be taken when the disc is nearly full?
    pub(crate) fn frees(&self, most: usize) -> bool {
        let put = |w: &Write| match w {
            Write::Put { value, .. } => value.len(),
            _ => 0,
        };
        let deletes = self.writes.iter().any(|w| matches!(w, Write::Delete { .. }));
        let touches = self.writes.iter().any(|w| matches!(w, Write::Expire { .. }));
        // One that only asks for what is there to be on disc takes nothing.
        self.writes.is_empty() || (deletes && !touches && self.writes.iter().map(put).sum::<usize>() <= most)
    }

    /// Holds the batch against the limits on keys, values and its whole size.
    pub fn validate(&self) -> Result<(), Refusal> {
        let over = |what, is: usize, most: usize| {
            if is > most { Err(Refusal::TooLarge { what, is: is as u64, most: most as u64 }) } else { Ok(()) }
        };
        over(Limit::Items, self.checks.len() + self.writes.len(), BATCH_ITEMS_MAX)?;
        let mut sum = 0;
        for check in &self.checks {
            let (Check::Absent(key) | Check::Present(key) | Check::AtVersion(key, _) | Check::Count(key, _)) = check;
            over(Limit::Key, key.len(), KEY_BYTES_MAX)?;
            sum += key.len();
        }
        for write in &self.writes {
            over(Limit::Key, write.key().len(), KEY_BYTES_MAX)?;
            let size = match write {
                Write::Put { value, .. } => value.len(),
                Write::Delete { .. } | Write::Forget { .. } | Write::Expire { .. } => 0,
                Write::Bump { fields, .. } => fields.len() * 8,
            };
            over(Limit::Value, size, VALUE_BYTES_MAX)?;
            sum += write.key().len() + size;
        }
        over(Limit::Batch, sum, BATCH_BYTES_MAX)
    }
}

/// A batch on its way: (session, number) name it for ever; `branches` lists every branch it was ever sent to, the one
/// meant last.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Request {
    /// Whose.
    pub session: SessionId,
    /// Its number within the session.
    pub number: u64,
    /// All requests of the session below this number are finished: their outcomes may be forgotten.
    pub done_through: u64,
    /// Where it may have been applied; the last is where it may be applied now.
    pub branches: Vec<BranchId>,
    /// What to do.
    pub batch: Batch,
}

/// What became of a write. A fate that cannot be known is a value, not an error.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Outcome {
    /// Applied, and held by every in-sync copy.
    Done {
        /// The version given to all records of the batch.
        version: Version,
        /// Its stamp.
        hlc: Hlc,
    },
    /// Not applied, and never will be.
    Failed(Refusal),
    /// It may or may not have been applied.
    Unknown,
}

/// A leader's answer to one attempt at a [`Request`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Answer {
    /// The end of it, said by this branch.
    Outcome(Outcome, BranchId),
    /// I lead, but under this branch: list it, and send again.
    Moved(BranchId),
    /// I do not lead, or stopped while it was pending; ask elsewhere.
    NotLeading,
    /// Too much is pending: wait, and send again.
    Busy,
}

/// A range of keys of one space of one fragment.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Range {
    /// Which kind of records.
    pub space: Space,
    /// The first key.
    pub from: Bytes,
    /// The key to stop before; `None`: to the end.
    pub to: Option<Bytes>,
    /// The most rows.
    pub limit: u32,
}

impl Range {
    /// Stored keys, space included: the first, and the one to stop before.
    pub(crate) fn bounds(&self) -> (Bytes, Bytes) {
        let to = match &self.to {
            Some(to) => crate::key::in_space(self.space, to),
            None => vec![self.space as u8 + 1].into(),
        };
        (crate::key::in_space(self.space, &self.from), to)
    }

    /// Can it hold one key only, the first? Such a read need not walk the keys in order.
    pub fn is_point(&self) -> bool {
        self.to.as_ref().is_some_and(|to| to.split_last().is_some_and(|(last, head)| *last == 0 && head == self.from))
    }

    /// One key of the users' records.
    pub fn key(key: Bytes) -> Range {
        let mut to = key.to_vec();
        to.push(0);
        Range { space: Space::User, from: key, to: Some(to.into()), limit: 1 }
    }

    /// All keys of the users' records that start so.
    pub fn prefix(prefix: Bytes, limit: u32) -> Range {
        let to = crate::key::after_prefix(&prefix);
        Range { space: Space::User, from: prefix, to, limit }
    }
}

/// Several ranges of one fragment, read at one moment.
pub type Read = Vec<Range>;

/// The live rows of one [`Range`]; `more` when a limit cut it short.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Rows {
    /// Keys (without the space) and records, in key order.
    pub rows: Vec<(Bytes, Record)>,
    /// There may be more behind the last row.
    pub more: bool,
}
