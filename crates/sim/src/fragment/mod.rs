//! The copies of one fragment.

mod check;
mod client;
pub(crate) mod disc;
mod fault;
mod world;

pub use world::{Options, Report, run};
