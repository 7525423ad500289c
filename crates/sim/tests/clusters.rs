//! Histories of whole nodes.
#![allow(clippy::panic)]

#[test]
fn clusters_form_are_cut_and_come_back() {
    let mut acknowledged = 0;
    for seed in 1..=60 {
        match sim::cluster::run(seed) {
            Ok(n) => acknowledged += n,
            Err(what) => panic!("seed {seed}: {what}\n  replay: cargo run --release -p sim -- --cluster --seed {seed}"),
        }
    }
    assert!(acknowledged > 60 * 50, "only {acknowledged} writes were acknowledged: the histories show nothing");
}
