//! Opening, joining and the meeting of two leaders: every schedule with one deviation from the plain course of events, and
//! every one with a second soon after. `cargo run --release -p sim -- --exhaustive 40` goes further.

#![allow(clippy::panic)]

use replica::Mutant;
use sim::fragment::{Base, explore};

fn clean(base: Base) {
    let (count, found) = explore(base, 5, None);
    assert!(count > 5_000, "only {count} schedules of {base:?}: they show nothing");
    if let Some(what) = found {
        panic!("{what}");
    }
}

#[test]
fn every_small_opening_is_clean() {
    clean(Base::Open);
}

#[test]
fn every_small_join_is_clean() {
    clean(Base::Join);
}

#[test]
fn every_small_meeting_is_clean() {
    clean(Base::Meet);
}

/// The instrument itself: rules that a small schedule must show to be needed.
#[test]
fn small_schedules_catch_what_they_are_for() {
    for (base, mutant) in [
        (Base::Open, Mutant::AckEarly),
        (Base::Open, Mutant::AckUnsynced),
        (Base::Open, Mutant::PromiseForgotten),
        (Base::Join, Mutant::SyncUnstaged),
        (Base::Meet, Mutant::NoLedger),
        (Base::Meet, Mutant::NoPull),
        (Base::Meet, Mutant::JoinUnchecked),
        (Base::Meet, Mutant::FalseConflicts),
    ] {
        let (count, found) = explore(base, 5, Some(mutant));
        let what = found.unwrap_or_else(|| panic!("{mutant:?} was not noticed in {count} schedules of {base:?}"));
        println!("{mutant:?}: {what}");
    }
}
