//! The copies of one fragment.

mod check;
mod client;
mod disc;
mod fault;
mod world;

pub use world::{Options, Report, run};
