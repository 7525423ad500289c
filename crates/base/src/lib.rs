//! The words that every other crate shares: ids, versions, clocks, heads and limits. No logic beyond their own
//! laws, and no IO.

mod clock;
mod heads;
mod ids;
mod limits;

pub use clock::{Hlc, Instant, Now, Span, WallMs};
pub use heads::Heads;
pub use ids::{Ballot, BranchId, FragmentId, NodeId, TableId, Version};
pub use limits::*;
