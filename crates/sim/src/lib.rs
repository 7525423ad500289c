//! The simulator: real cores on a simulated network, disc, clock and scheduler, all from one seed.
//!
//! [`cluster`] runs whole nodes: discovery, membership, links, the system table and placement composed.
//! [`fleet`] runs many of them without data. [`fragment`] runs the copies of one fragment with clients, faults and an omniscient checker. A run has two phases:
//! safety under faults, then liveness with all faults off. A failing run prints the seed; `cargo run -p sim -- --seed N
//! --trace` replays it. When it has been clean for long, suspect it: `tests/mutants.rs` puts known bugs back.

pub mod cluster;
pub mod fleet;
pub mod fragment;
