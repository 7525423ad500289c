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

#[test]
fn histories_1_to_1500_are_clean() {
    clean(1, 1500);
}

#[test]
fn histories_1500_to_3000_are_clean() {
    clean(1500, 3000);
}
