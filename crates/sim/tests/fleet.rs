//! Fleets: what is seen when nodes die and wires are cut, and who is buried for it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use base::Span;
use membership::Patience;
use node::Word;
use sim::fleet::Fleet;

const SECOND: u64 = 1_000_000;

/// Burial after 60 s.
fn hasty() -> Patience {
    Patience { node: Some(Span::ms(60_000)), stopped: None, ..Patience::default() }
}

fn whole(fleet: &Fleet, nodes: &[usize]) -> bool {
    nodes.iter().all(|m| {
        fleet.status(*m).is_some_and(|s| {
            s.state == "whole" && s.nodes.len() == nodes.len() && s.nodes.iter().all(|n| n.status == "up")
        })
    })
}

fn buried(fleet: &Fleet, m: usize) -> Vec<String> {
    fleet.status(m).map(|s| s.buried.into_iter().map(|b| b.name).collect()).unwrap_or_default()
}

#[test]
fn a_fleet_of_50_that_loses_10_buries_them_at_once_and_is_whole() {
    let mut fleet = Fleet::new(1, 50, 2, hasty());
    let all = fleet.alive();
    fleet.until(60 * SECOND, |f| whole(f, &all)).expect("they meet");
    // What a majority is counted among is known to all by then.
    fleet.run(10 * SECOND);
    (40..50).for_each(|m| fleet.kill(m));
    let rest = fleet.alive();
    let seen = fleet.until(5 * SECOND, |f| f.sees(&rest)).expect("it is seen");
    assert!(seen <= SECOND, "{seen} us");
    fleet.run(50 * SECOND);
    assert!(buried(&fleet, 0).is_empty(), "not before its time");
    fleet.until(60 * SECOND, |f| whole(f, &rest)).expect("whole without them");
    for m in &rest {
        let status = fleet.status(*m).unwrap();
        assert_eq!(status.buried.len(), 10);
        assert!(status.buried.iter().all(|b| b.at_ms == status.buried[0].at_ms), "in one batch");
    }
}

/// Each side may take in new nodes meanwhile, and an operator may have spoken.
#[test]
fn islands_never_bury_each_other() {
    for seed in 1..=24 {
        let n = 3 + (seed as usize) % 5;
        let mut fleet = Fleet::new(seed, n, 5, hasty());
        let all = fleet.alive();
        fleet.until(60 * SECOND, |f| whole(f, &all)).expect("they meet");
        if seed % 3 > 0 {
            fleet.run(10 * SECOND);
        }
        // Some seeds cut while the roster changes.
        if seed % 4 == 0 {
            fleet.join();
            fleet.run((seed * 173 % 1500) * 1000);
        }
        let here = 1 + (seed as usize * 7) % (n - 1);
        let side = move |m: usize| usize::from(m % n >= here);
        fleet.split(side);
        for _ in 0..seed % 3 {
            fleet.join();
            fleet.split(side);
        }
        fleet.run(300 * SECOND);
        let sides: Vec<Vec<usize>> =
            (0..2).map(|s| fleet.alive().into_iter().filter(|m| side(*m) == s).collect()).collect();
        let by = |s: usize| sides[s].iter().flat_map(|m| buried(&fleet, *m)).collect::<Vec<_>>();
        let (by_left, by_right) = (by(0), by(1));
        assert!(by_left.is_empty() || by_right.is_empty(), "seed {seed}: {by_left:?} and {by_right:?}");
        let majority =
            [0, 1].into_iter().find(|s| (0..n).filter(|m| side(*m) == *s).count() * 2 > fleet.alive().len().max(n));
        // Where there was time to agree on whom a majority is counted among.
        if let Some(majority) = majority.filter(|_| seed % 3 > 0) {
            assert!(!by(majority).is_empty(), "seed {seed}: the majority buried nobody");
            assert!(by(1 - majority).is_empty(), "seed {seed}");
        }
        // When they meet those that were buried come anew, in place, and all are whole.
        fleet.split(|_| 0);
        let all = fleet.alive();
        let took = fleet.until(60 * SECOND, |f| whole(f, &all));
        let says = |m: &usize| fleet.status(*m).map(|s| format!("m{m}: {} {}", s.state, s.why)).unwrap_or_default();
        assert!(took.is_some(), "seed {seed}: {:?}", all.iter().map(says).collect::<Vec<_>>());
        assert!(all.iter().all(|m| buried(&fleet, *m).is_empty()), "seed {seed}");
    }
}

/// Both sides insist, by an operator's word: each buries the other. That heals, too.
#[test]
fn islands_that_buried_each_other_are_one_again() {
    for seed in 1..=6 {
        let mut fleet = Fleet::new(100 + seed, 4, 2, hasty());
        let all = fleet.alive();
        fleet.until(60 * SECOND, |f| whole(f, &all)).expect("they meet");
        fleet.run(10 * SECOND);
        let here = 1 + seed as usize % 3;
        fleet.split(move |m| usize::from(m >= here));
        fleet.run(15 * SECOND);
        for m in &all {
            let by = if *m < here { 3 } else { 0 };
            fleet.say(by, *m, Word::Condemn(true));
        }
        fleet.run(40 * SECOND);
        assert_eq!(buried(&fleet, 0).len() + buried(&fleet, 3).len(), 4, "seed {seed}");
        fleet.split(|_| 0);
        let took = fleet.until(60 * SECOND, |f| whole(f, &all));
        let says = |m: &usize| fleet.status(*m).map(|s| format!("m{m}: {} {:?}", s.state, s.nodes)).unwrap_or_default();
        assert!(took.is_some(), "seed {seed}: {:?}", all.iter().map(says).collect::<Vec<_>>());
    }
}

/// Nodes that leave are counted among no majority any more; not even while others are dead.
#[test]
fn whoever_leaves_holds_up_no_burial() {
    let mut fleet = Fleet::new(7, 3, 0, hasty());
    let all = fleet.alive();
    fleet.until(60 * SECOND, |f| whole(f, &all)).expect("they meet");
    fleet.run(10 * SECOND);
    fleet.kill(1);
    fleet.until(5 * SECOND, |f| f.unseen(1)).expect("it is seen");
    fleet.say(0, 2, Word::Leave);
    fleet.until(30 * SECOND, |f| f.alive() == [0]).expect("it has left");
    fleet.say(0, 1, Word::Condemn(true));
    fleet.until(60 * SECOND, |f| buried(f, 0).len() == 2).expect("both are gone");
    let state = fleet.status(0).unwrap().state;
    assert_eq!(state, "solo");
    // The last of all does not go, whoever asks for it.
    fleet.say(0, 0, Word::Leave);
    fleet.run(30 * SECOND);
    assert_eq!(fleet.alive(), [0]);
}

#[test]
fn a_node_that_is_paused_or_cannot_be_heard_by_one_is_not_lost() {
    let mut fleet = Fleet::new(3, 20, 5, Patience::default());
    let all = fleet.alive();
    fleet.until(60 * SECOND, |f| whole(f, &all)).expect("they meet");
    for round in 0..60 {
        fleet.pause(round * 7 % 20, 2 * SECOND);
        let (a, b) = (round % 20, (round * 3 + 1) % 20);
        if a != b {
            fleet.wire(a, b, false);
        }
        for m in &all {
            let lost = fleet.status(*m).unwrap().nodes.into_iter().find(|n| n.status == "lost");
            assert!(lost.is_none(), "round {round}: {lost:?}");
        }
        fleet.run(20 * SECOND);
        fleet.wire(a, b, true);
    }
}

#[test]
fn an_operator_s_word_is_carried_out_by_whoever_leads() {
    let mut fleet = Fleet::new(4, 5, 0, hasty());
    let all = fleet.alive();
    fleet.until(60 * SECOND, |f| whole(f, &all)).expect("they meet");
    fleet.kill(4);
    fleet.until(5 * SECOND, |f| f.unseen(4)).expect("it is seen");
    fleet.say(3, 4, Word::Condemn(false));
    let rest = fleet.alive();
    fleet.until(30 * SECOND, |f| whole(f, &rest)).expect("whole without it");
    assert_eq!(buried(&fleet, 2), ["m4"]);
}
