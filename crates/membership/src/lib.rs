//! Who is there (what schemafinder and its "delirium" table were in 2008): SWIM through `foca`, the roster, and islands.
//!
//! Pure: datagrams in and out are bytes and node ids; sealing them and finding addresses is `node`'s business. What
//! follows from a verdict is, too.

mod roster;
mod swim;
mod truth;
mod verdict;

pub use roster::{Island, RosterEntry, RosterStatus, island};
pub use swim::{Effect, Identity, Input, Swim};
pub use truth::{Place, Taken, Truths};
pub use verdict::{
    Facts, Judgement, LOST_AFTER, Mark, Patience, TRUTH_APART, Truth, Verdict, is_credible, judge, may_bury,
};
