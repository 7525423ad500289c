use crate::{Entry, Floor, Progress, Record, Shortage};
use base::{Ballot, BranchId, Heads, NodeId, Span};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Who leads, under what.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Lead {
    /// The branch led.
    pub branch: BranchId,
    /// The ballot it was opened with.
    pub ballot: Ballot,
    /// How many copies are in sync, the leader among them.
    pub in_sync: u16,
}

/// What a copy says of itself when that changes, and now and then.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Status {
    /// If it leads, under what.
    pub lead: Option<Lead>,
    /// The highest ballot it has heard of.
    pub heard: Ballot,
    /// It was in sync, as far as it knows.
    pub was_in_sync: bool,
    /// Its clock is far off the others': it leaves leading to them.
    pub barred: bool,
    /// How much it knows ([`Heads::weight`]).
    pub weight: u64,
    /// How far it is with fetching what other islands wrote.
    pub heal: Progress,
    /// It stands in for copies that are elsewhere.
    pub stand_in: bool,
    /// How short its node is of what it takes.
    pub pressed: Shortage,
}

/// A part of a delta from a leader to a copy that joins.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Chunk {
    /// Which one.
    pub no: u32,
    /// The leader's heads when the session began: what the delta makes known. Entries after them come as appends meanwhile.
    pub h0: Heads,
    /// The records.
    pub records: Vec<(Bytes, Record)>,
    /// There are no more chunks.
    pub last: bool,
    /// The leader's last entry when the chunk was cut; what that overwrote is missing here, and comes as an append.
    pub upto: u64,
    /// The delta is all there is: whatever else the joiner holds has been deleted, and forgotten.
    pub anew: bool,
    /// It is beyond what the joiner has staged, too.
    pub staged: bool,
}

/// What of another island's records is asked for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Pass {
    /// What the asker knows or has staged.
    pub have: Heads,
    /// The pass under way goes so far; `None`: it begins.
    pub upto: Option<Heads>,
    /// Its last record so far.
    pub after: Option<(base::Version, Bytes)>,
}

/// What the copies of one fragment say to each other. Any may be lost, doubled or late.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum Msg {
    /// See [`Status`].
    Status(Status),
    /// Opener to all: follow nothing below this ballot.
    Prepare { ballot: Ballot },
    /// The durable word, with what this copy holds.
    /// `leases`: who holds leases that it gave, if that is known, and how long they still run.
    Promise {
        ballot: Ballot,
        heads: Heads,
        floor: Box<Floor>,
        set: BTreeSet<NodeId>,
        leases: Vec<(Option<NodeId>, Span)>,
    },
    /// No: a higher ballot was promised.
    Refuse { ballot: Ballot, promised: Ballot },
    /// Opener to a promiser: give me what I lack, chunk `no`, after this cursor.
    Pull { ballot: Ballot, have: Heads, no: u32, after: Option<(base::Version, Bytes)> },
    /// Chunk `no` of it.
    Pulled { ballot: Ballot, no: u32, records: Vec<(Bytes, Record)>, after: Option<(base::Version, Bytes)> },
    /// Copy to leader: let me follow. `staged`: what I have beside my heads, where nobody sees it.
    Join {
        ballot: Ballot,
        branch: BranchId,
        session: u64,
        heads: Heads,
        staged: Heads,
        promised: Ballot,
        stand_in: bool,
    },
    /// Leader to a stand-in: all that you have is here; keep nothing.
    Leave { ballot: Ballot, session: u64 },
    /// Leader to joiner: a part of what it lacked.
    Sync { ballot: Ballot, session: u64, chunk: Chunk },
    /// Joiner to leader: chunk `no` has arrived, send more.
    SyncAck { session: u64, no: u32 },
    /// Leader to follower: the entries after the last ones sent, in order, and how far all is committed.
    Append { ballot: Ballot, session: u64, entries: Vec<Entry>, commit: u64 },
    /// Follower to leader: persisted up to here.
    Ack { session: u64, seq: u64 },
    /// Leader to a copy whose session is over: join again.
    Dropped { ballot: Ballot, session: u64 },
    /// Leader to the in-sync set: am I still your leader, and will you promise nobody else for the length of a lease?
    Confirm { ballot: Ballot, session: u64, nonce: u64 },
    /// Yes: an opener that I promise meanwhile is told how long it has to wait.
    Confirmed { session: u64, nonce: u64 },
    /// Follower to leader: will you commit nothing without me for the length of a lease, so that I may be read?
    Borrow { session: u64, nonce: u64 },
    /// Yes; and how far all is committed.
    Lent { ballot: Ballot, session: u64, nonce: u64, commit: u64 },
    /// Not now: ask the leader itself for what was to be read.
    NotLent { session: u64, nonce: u64 },
    /// Copy to another island's leader: what have you that I have not?
    Stage { ballot: Ballot, nonce: u64, pass: Pass },
    /// A part of it. `upto`: the leader's heads when the pass began. `left`: about how many entries there were to tell.
    Staged { nonce: u64, records: Vec<(Bytes, Record)>, upto: Heads, after: Option<(base::Version, Bytes)>, left: u64 },
    /// Leader to follower: you alone write, so lead.
    TakeOver { ballot: Ballot, session: u64 },
    /// Follower to leader: these keys (hashes of them, the latest of many) were read here since I told you last, and so many reads found
    /// something, or nothing.
    Used { session: u64, used: Vec<u64>, hits: u64, misses: u64 },
}
