use crate::kept::Place;
use base::{Ballot, BranchId, Hlc, Version, WallMs};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// What a key holds: a value or a tombstone, and which write put it there.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Record {
    /// The write that made it.
    pub version: Version,
    /// Its stamp: above those of the records that the write knew of.
    pub hlc: Hlc,
    /// From this moment of the serving leader's wall clock on, it counts as absent.
    pub expires: Option<WallMs>,
    /// `None`: a tombstone.
    pub value: Option<Bytes>,
}

impl Record {
    /// A tombstone of the table's own making: what was under the key had expired, or had to make room. It stands for that record among
    /// others, and is told from one that a user asked for by having a time.
    pub(crate) fn cleared(version: Version, hlc: Hlc) -> Record {
        Record { version, hlc, expires: Some(WallMs(0)), value: None }
    }

    /// Did nobody ask for this tombstone?
    pub fn is_cleared(&self) -> bool {
        self.value.is_none() && self.expires.is_some()
    }

    /// The order of true conflicts: it extends causality, since a write is stamped above what it overwrites. An expiry
    /// tombstone has its victim's stamp, and sorts right after it.
    pub fn rank(&self) -> (Hlc, bool, Version) {
        (self.hlc, self.value.is_none(), self.version)
    }

    /// The value, unless deleted or expired.
    pub fn live(&self, wall: WallMs) -> Option<&Bytes> {
        if self.expires.is_some_and(|at| at <= wall) { None } else { self.value.as_ref() }
    }

    /// About how many bytes it takes in RAM, or on its way, with its key: for bounds on chunks, not for accounting.
    pub fn weight(&self, key: &Bytes) -> usize {
        key.len() + self.value.as_ref().map_or(0, Bytes::len) + 64
    }
}

/// One step of a branch: what the leader orders, persists, sends and commits as a whole.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// Its place in the branch, from 1.
    pub seq: u64,
    /// Must be on disc at a copy before that copy acknowledges it.
    pub sync: bool,
    /// The records it puts, all with this entry's version.
    pub puts: Vec<(Bytes, Record)>,
}

impl Entry {
    /// About how many bytes it takes on its way.
    pub fn weight(&self) -> usize {
        self.puts.iter().map(|(key, record)| record.weight(key)).sum()
    }
}

/// What every copy keeps durably, `ram` tables too.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Meta {
    /// How many branches this node has begun of this fragment.
    pub n: u64,
    /// The copy follows no lower ballot.
    pub promised: Ballot,
    /// No Hlc above this was issued or taken over before it was on disc.
    pub ceiling: Hlc,
}

/// A change of a copy's storage: atomic, whatever its size.
#[derive(Clone, Default, Debug)]
pub struct WriteBatch {
    /// The new meta, if it changed.
    pub meta: Option<Meta>,
    /// Heads that moved, with their new values.
    pub heads: Vec<Version>,
    /// Branches that are folded: of each of these nodes all up to that one, and which of them had heads of their own.
    pub folds: Vec<(BranchId, Vec<BranchId>)>,
    /// All that there is of the copy goes first, but for its meta.
    pub wipe: bool,
    /// Records to put.
    pub puts: Vec<(Bytes, Record)>,
    /// Keys to remove without trace.
    pub removes: Vec<Bytes>,
    /// Users' values are to be kept apart from their records, and to be read back from when this is told so.
    pub apart: Option<Place>,
    /// Values that lay apart under these keys are not needed there any more.
    pub gathered: bool,
    /// What becomes of `puts`.
    pub stage: Stage,
}

/// A batch's part in something that comes in several of them: a delta that is too large to be kept in RAM until all of it is there, or a
/// copy that comes to the disc, or leaves it, while it is used.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Stage {
    /// None.
    #[default]
    None,
    /// Its records are kept where nothing sees them; with `first`, what was kept there before is forgotten.
    Keep {
        /// The delta begins.
        first: bool,
    },
    /// What was kept becomes true with it, beneath its own records.
    Switch,
    /// From here on nothing of the copy counts but its meta, and its heads go: a crash takes its records. They are put and removed by batches
    /// as ever.
    Open,
    /// What is there counts again, with the heads that come with it.
    Close,
}

impl WriteBatch {
    /// How many bytes its keys and values have.
    pub fn bytes(&self) -> usize {
        let puts = self.puts.iter().map(|(k, r)| k.len() + r.value.as_ref().map_or(0, Bytes::len));
        puts.chain(self.removes.iter().map(Bytes::len)).sum()
    }

    /// Nothing to do?
    pub fn is_empty(&self) -> bool {
        let marks = matches!(self.stage, Stage::Keep { first: true } | Stage::Open | Stage::Close);
        let state = self.meta.is_none() && self.heads.is_empty() && self.folds.is_empty();
        !marks && !self.wipe && state && self.puts.is_empty() && self.removes.is_empty()
    }
}
