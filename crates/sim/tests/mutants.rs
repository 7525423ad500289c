//! Known bugs are put back one by one; the checkers must notice each within so many histories. What does not fail here
//! would be a rule without evidence.

#![allow(clippy::panic)]

use replica::{MinInSync, Mutant};
use sim::fragment::{Options, run};

fn caught(mutant: Mutant, within: u64) {
    let asks = match mutant {
        Mutant::MajorityOpenedByFew | Mutant::MajorityByStamp => Some(MinInSync::Majority),
        _ => None,
    };
    let turns =
        matches!(mutant, Mutant::TurnUnmirrored | Mutant::TurnUnmarked | Mutant::GatheredLeave | Mutant::TurnUnsteady);
    let cuts = matches!(mutant, Mutant::CutUnasked | Mutant::PartForWhole);
    let bounds = matches!(mutant, Mutant::ClearedUnleveled | Mutant::ClearedMidway | Mutant::ClearedAnew);
    let options = Options { mutant: Some(mutant), asks, turns, cuts, bounds, ..Options::default() };
    let found = (1..=within).find_map(|seed| run(seed, options).violation.map(|what| (seed, what)));
    let (seed, what) = found.unwrap_or_else(|| panic!("{mutant:?} was not noticed in {within} histories"));
    println!("{mutant:?}: seed {seed}: {what}");
}

macro_rules! mutants {
    ($($test:ident $mutant:ident $within:literal)*) => { $(
        #[test]
        fn $test() {
            caught(Mutant::$mutant, $within);
        }
    )* };
}

mutants! {
    d1_sync_unstaged SyncUnstaged 100
    h3_switch_early SwitchEarly 3000
    d2_outcomes_stay OutcomesStay 3000
    d3_no_ledger NoLedger 100
    d4_promise_forgotten PromiseForgotten 100
    d9_branch_reused BranchReused 3000
    d10_restarted_waits RestartedWaits 1000
    d11_drop_untold DropUntold 1000
    r1_first_branch_only FirstBranchOnly 3000
    r2_restart_closes RestartCloses 3000
    r5_refusal_forgotten RefusalForgotten 3000
    r6_rejoin_kept RejoinKept 3000
    join_unchecked JoinUnchecked 100
    read_unconfirmed ReadUnconfirmed 1000
    lease_ignored LeaseIgnored 3000
    d15_pending_shown PendingShown 1000
    expiry_by_follower ExpiryByFollower 1000
    read_uncommitted ReadUncommitted 1000
    ack_early AckEarly 100
    ack_unsynced AckUnsynced 3000
    no_pull NoPull 100
    unsure_done UnsureDone 300
    majority_opened_by_few MajorityOpenedByFew 3000
    majority_by_stamp MajorityByStamp 3000
    changes_moving ChangesMoving 1000
    changes_short ChangesShort 1000
    changes_stale ChangesStale 300
    mirrors_admitted MirrorsAdmitted 300
    buried_folded BuriedFolded 3000
    cut_unasked CutUnasked 300
    part_for_whole PartForWhole 1000
    false_conflicts FalseConflicts 100
    d14_pending_answered PendingAnswered 3000
    r7_commit_new_set CommitNewSet 3000
    staging_kept StagingKept 3000
    stand_in_promoted StandInPromoted 3000
    staged_early StagedEarly 3000
    staged_beyond StagedBeyond 3000
    missing_forgotten MissingForgotten 3000
    values_leave_early ValuesLeaveEarly 100
    turn_unmirrored TurnUnmirrored 300
    turn_unmarked TurnUnmarked 3000
    gathered_leave GatheredLeave 3000
    turn_unsteady TurnUnsteady 3000
    cleared_unleveled ClearedUnleveled 3000
    cleared_midway ClearedMidway 3000
    cleared_anew ClearedAnew 3000
}
