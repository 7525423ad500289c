//! The histories that CI runs: `cargo run --release -p sim -- --seeds N` runs as many as there is time for.

#![allow(clippy::panic)]

use sim::fragment::{Options, run};

fn clean(from: u64, to: u64) {
    for seed in from..to {
        if let Some(what) = run(seed, Options::default()).violation {
            panic!("seed {seed}: {what}\n  replay: cargo run --release -p sim -- --seed {seed} --trace");
        }
    }
}

/// What a soak found: a subscriber's round that was given up had told of another island's write, and what beat that write in
/// the end was taken for known.
#[test]
fn a_round_that_was_given_up_is_told_again() {
    clean(48_470, 48_471);
}

#[test]
fn histories_1_to_3000_are_clean() {
    clean(1, 3000);
}

#[test]
fn histories_3000_to_6000_are_clean() {
    clean(3000, 6000);
}
