//! What a copy is told when it is made.

use crate::evict::Evict;
use crate::kept::Values;
use crate::policy::{Functions, MergePolicy};
use crate::quorum::MinInSync;
use crate::store::Store;
use base::{FragmentId, Instant, NodeId, Span};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Where a table's records are kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Storage {
    /// In RAM only: gone when all copies restart.
    Ram,
    /// In RAM and on disc.
    Disc,
    /// Keys in RAM, values on disc only, but for a bounded cache: for tables larger than the RAM.
    DiscOnly,
}

/// How much a fragment may hold. What islands wrote apart may exceed it when they meet: then it is held again soon, or nothing more is
/// taken until it is.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Room {
    /// Records that hold a value.
    pub records: Option<u64>,
    /// Bytes of their keys and values, and of what is kept with them (480 a record).
    pub bytes: Option<u64>,
}

impl Room {
    /// Is there room for so many records, and so many bytes?
    pub(crate) fn holds(&self, (records, bytes): (u64, u64)) -> bool {
        self.records.is_none_or(|most| records <= most) && self.bytes.is_none_or(|most| bytes <= most)
    }
}

impl std::fmt::Display for Storage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Storage::Ram => "ram",
            Storage::Disc => "disc",
            Storage::DiscOnly => "disc_only",
        })
    }
}

/// How long things take. The defaults are those of docs/replication.md; the simulator shortens some.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// How often a copy looks after its waits.
    pub tick: Span,
    /// A copy opens only when its view has not changed for so long, unless the leader is known to be dead.
    pub stable_view: Span,
    /// A member of the in-sync set that does not answer for so long is dropped from it.
    pub append_timeout: Span,
    /// How long a lease runs; holders count a hundredth less, givers a hundredth more.
    pub lease: Span,
    /// Requests to other copies are repeated after this.
    pub retry: Span,
    /// If one node alone wrote during so long, it shall lead;
    pub writers_window: Span,
    /// and wrote at least so often.
    pub writes_min: u32,
    /// A promise binds the copy to wait for the opener for so long before it tries itself.
    pub promise_wait: Span,
    /// A new leader holds its answers back for at most so long, until the copies that promised follow it.
    pub settle: Span,
    /// A stamp from further in the future than this does not move the copy's own clock.
    pub skew_max: Span,
    /// A heal is not put off for longer than this, however much there is to fetch.
    pub heal_wait_max: Span,
    /// When islands meet, fragments are opened anew within this, not all at once.
    pub heal_spread: Span,
    /// How long tombstones are kept after everybody was told to forget them, and branches that have ended.
    pub forget_after: Span,
    /// So many tombstones of what had to go, or had expired, are kept in a bounded fragment at least.
    pub cleared_min: usize,
    /// A join that does not move for so long is begun anew.
    pub sync_timeout: Span,
    /// How often a copy at rest says where it stands, so that what was lost on the way is noticed.
    pub probe: Span,
    /// The longest wait that a flapping copy has to sit out before it may join again.
    pub return_wait_max: Span,
    /// How many bytes of records one chunk carries.
    pub chunk_bytes: usize,
}

impl Timing {
    /// How long the giver of a lease counts it: clocks' rates differ by a hundredth at most.
    pub fn lease_given(&self) -> Span {
        Span(self.lease.0 + self.lease.0 / 100)
    }

    /// How long its holder does, from the moment it asked.
    pub fn lease_held(&self) -> Span {
        Span(self.lease.0 - self.lease.0 / 100)
    }
}

impl Default for Timing {
    fn default() -> Self {
        Timing {
            tick: Span::ms(100),
            stable_view: Span::ms(1000),
            append_timeout: Span::ms(500),
            lease: Span::ms(1000),
            retry: Span::ms(250),
            writers_window: Span::ms(1000),
            writes_min: 32,
            promise_wait: Span::ms(2000),
            settle: Span::ms(500),
            skew_max: Span::ms(5000),
            heal_wait_max: Span::ms(120_000),
            heal_spread: Span::ms(400),
            forget_after: Span::ms(60_000),
            cleared_min: 1024,
            sync_timeout: Span::ms(10_000),
            probe: Span::ms(5000),
            return_wait_max: Span::ms(10_000),
            chunk_bytes: 256 * 1024,
        }
    }
}

/// What a copy is told when it is made.
#[derive(Clone, Debug)]
pub struct Config {
    /// Of which fragment.
    pub fragment: FragmentId,
    /// What its branches are told by from those of others that it may be joined with: its index.
    pub line: u32,
    /// On which node.
    pub me: NodeId,
    /// The node's how-manieth start.
    pub incarnation: u64,
    /// Who shall hold copies, as long as the fragment's own list is empty.
    pub founders: Vec<NodeId>,
    /// How records are to be kept: a copy that is in use comes to it in steps ([`Input::Turn`](crate::Input::Turn)).
    pub storage: Storage,
    /// Where values that are not in RAM are read.
    pub values: Option<Arc<dyn Values>>,
    /// Users' keys are found by hash, not kept in order.
    pub unordered: bool,
    /// Every write is on disc before it is acknowledged.
    pub sync: bool,
    /// The table was made this moment: the first founder opens without waiting for a stable view.
    pub eager: bool,
    /// Opens nothing by itself before this: the node is still looking for peers.
    pub opens_after: Instant,
    /// It takes writes where no copy is, and knows nothing else.
    pub stand_in: bool,
    /// Take in any node that asks (system tables).
    pub open_membership: bool,
    /// With fewer in-sync copies than this, writes are refused.
    pub min_in_sync: MinInSync,
    /// How many copies are taken into the in-sync set at most, at least 1; more than those are mirrors, which follow and are
    /// never waited for, and take the place of one that is missing.
    pub in_sync_max: usize,
    /// What is put without a time to live lives for so many milliseconds.
    pub ttl_ms: Option<u64>,
    /// How much the fragment may hold.
    pub room: Room,
    /// What goes when there is no room.
    pub evict: Evict,
    /// What conflicts become.
    pub policy: MergePolicy,
    /// What the program that embeds the node brings along for that.
    pub functions: Functions,
    /// Waits and sizes.
    pub timing: Timing,
    /// Of the copy's own random choices.
    pub seed: u64,
    /// The known bug that is put back; without the `mutants` feature it changes nothing.
    pub mutant: Option<crate::Mutant>,
}

impl Config {
    /// Tells a store how it is to keep records.
    pub(crate) fn dress(&self, store: &mut Store) {
        store.set_line(self.line);
        store.set_unordered(self.unordered);
        store.keep_as(self.storage, self.values.as_ref(), self.fragment);
    }
}
