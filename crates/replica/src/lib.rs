//! One copy of one fragment (what Mnesia was in 2008): conditional batches, branches, openings, delta sync and merge.
//!
//! [`Copy`] is a state machine: `handle(now, input, effects)`. It owns no clock, socket, thread or file; randomness is
//! the seed it is given. `docs/replication.md` has the message table, the rules and the invariants.
//!
//! It does *not* know which nodes are alive (it is told its view), where clients are (it answers tickets), or how
//! batches reach the disc (it emits [`Persist`] and is told [`Input::Durable`]).

mod batch;
mod changes;
mod config;
mod copy;
mod cut;
mod dropped;
mod evict;
mod follow;
mod forget;
mod gate;
mod handover;
mod heal;
mod kept;
mod key;
mod lead;
mod lease;
mod ledger;
mod merge;
mod msg;
mod mutants;
mod open;
mod policy;
mod quorum;
mod read;
mod record;
mod shortage;
mod slab;
mod stand_in;
mod state;
mod store;
mod sync;
mod table;
mod turn;
mod uses;
mod write;

pub use batch::{Answer, Batch, Bump, Check, Measure, Outcome, Range, Read, Refusal, Request, Rows, SessionId, Write};
pub use changes::{Changes, Since};
pub use config::{Config, Room, Storage, Timing};
pub use copy::{Copy, Inspect, RoleName};
pub use cut::{Fit, Legacy, Slice, known_of};
pub use evict::{Candidate, Evict, EvictFunction, NoPolicy};
pub use forget::Floor;
pub use gate::{Effects, Input, Notice, Persist, Reply, Ticket};
pub use heal::Progress;
pub use kept::{Kept, Place, Values, is_apart};
pub use key::{MemberStatus, Space};
pub use ledger::{Heal, LedgerRow};
pub use msg::{Chunk, Lead, Msg, Pass, Status};
pub use mutants::Mutant;
pub use policy::{Choice, Functions, MergeFunction, MergePolicy, MergeRule, NoRule, beside_whom};
pub use quorum::MinInSync;
pub use record::{Entry, Meta, Record, Stage, WriteBatch};
pub use shortage::{Pressure, Shortage};
pub use state::shown;
pub use store::{Store, Stored};
pub use table::OVERHEAD as RECORD_OVERHEAD;
pub use uses::Tally;

/// Is this known bug switched on? Always `false` without the `mutants` feature.
macro_rules! mutant {
    ($copy:expr, $name:ident) => {{
        #[cfg(feature = "mutants")]
        let on = $copy.config.mutant == Some($crate::Mutant::$name);
        #[cfg(not(feature = "mutants"))]
        let on = false;
        on
    }};
}
pub(crate) use mutant;
