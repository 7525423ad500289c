//! The copies of one fragment.

mod account;
mod check;
mod client;
mod cuts;
pub(crate) mod disc;
mod fault;
mod follow;
mod members;
mod schedule;
mod turns;
mod world;

pub use schedule::{Base, Deviation, explore, replay};
pub use world::{Options, Report, run};
