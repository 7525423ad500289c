/// A rule that can be removed at run time. Each names the finding of the throwaway models, or the invariant, that must
/// notice; `crates/sim/tests/mutants.rs` shows that it does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Mutant {
    /// D1: records are applied as they arrive, before the heads that cover them (H2).
    SyncUnstaged,
    /// A joiner does not wait for the entries that overwrote what its delta left out (H3: heads are complete).
    SwitchEarly,
    /// D2: outcomes are left out of what a copy pulls or syncs (invariant 4).
    OutcomesStay,
    /// D3, invariant 1: the loser of a conflict is not kept.
    NoLedger,
    /// D4: a copy that promised goes on acknowledging the old leader (invariant 2).
    PromiseForgotten,
    /// D6, R1: a retry is applied though another listed branch is not known to be closed (invariant 4).
    FirstBranchOnly,
    /// D9: branch numbers start over at a restart (invariant 1).
    BranchReused,
    /// D10: only a copy that was in sync during this very run opens (liveness).
    RestartedWaits,
    /// D11: a dropped copy is not told and does not notice (liveness).
    DropUntold,
    /// A joiner's heads are not looked at (invariant 1).
    JoinUnchecked,
    /// R2: a restart closes the branches that the node led (invariant 4).
    RestartCloses,
    /// D14: a retry of a write that is still pending is answered at once (invariant 1).
    PendingAnswered,
    /// R7: the newest in-sync set is taken to have been in force all along (invariant 1).
    CommitNewSet,
    /// R5: a refusal is forgotten (invariant 4).
    RefusalForgotten,
    /// R6: a member that asks to join keeps counting as in sync (liveness).
    RejoinKept,
    /// Leader reads are not confirmed by the in-sync set (invariant 2).
    ReadUnconfirmed,
    /// A leader drops a copy that still holds a lease, and commits without it (invariant 2).
    LeaseIgnored,
    /// D15: a follower shows entries that are not committed (invariant 2).
    PendingShown,
    /// A follower judges by its own clock which records have expired (invariant 2).
    ExpiryByFollower,
    /// Uncommitted values are shown (invariant 2).
    ReadUncommitted,
    /// A write is answered before the in-sync set has it (invariant 1).
    AckEarly,
    /// The leader does not wait for its own disc (invariant 1).
    AckUnsynced,
    /// The opener does not pull what it lacks (invariant 1).
    NoPull,
    /// Writes are called done that were committed by fewer copies than `min_in_sync` (invariant 1).
    UnsureDone,
    /// Where a majority is asked for, a branch is opened with fewer promises (invariant 1).
    MajorityOpenedByFew,
    /// Where a majority is asked for, a conflict is decided by stamps alone (invariant 1).
    MajorityByStamp,
    /// A subscriber's round moves on with the heads (it misses what lies before the place that it has come to).
    ChangesMoving,
    /// A subscriber's round is ended by a copy that knows less than it is to tell.
    ChangesShort,
    /// A subscriber is not told that deletions it has not seen are forgotten.
    ChangesStale,
    /// What a session that was given up has staged becomes true with the next one (invariant 3).
    StagingKept,
    /// A value leaves the RAM before the disc has it (invariant 1: it cannot be found).
    ValuesLeaveEarly,
    /// Mirrors are taken into the in-sync set beyond its bound (liveness: they would be waited for).
    MirrorsAdmitted,
    /// What is staged counts as complete after a long pass (H3).
    StagedEarly,
    /// A joiner is believed to hold what it staged, though the leader does not know it (H3).
    StagedBeyond,
    /// Tombstones and branches are forgotten while a member is missing (invariant 1).
    MissingForgotten,
    /// What a buried node led is taken to have ended where the others know it (invariant 1, when it comes back).
    BuriedFolded,
    /// A stand-in is followed by copies, and opens before them (liveness).
    StandInPromoted,
    /// What is written while a copy comes to the disc is not written there (H3).
    TurnUnmirrored,
    /// Records come and go on the disc while the heads there stand (H3).
    TurnUnmarked,
    /// Values leave the RAM though they are to stay in it (invariant 1: they cannot be found).
    GatheredLeave,
    /// A copy changes how it keeps records while it is not in step.
    TurnUnsteady,
    /// Whoever opens a new fragment first asks nobody (invariant 2).
    CutUnasked,
    /// What holds only some of a fragment's keys is taken for a copy of it (invariant 1).
    PartForWhole,
    /// What had expired, or had to go, is forgotten, and who does not know of it goes on with what it has (invariant 4).
    ClearedUnleveled,
    /// The same, while somebody is being told what it lacks (invariant 3).
    ClearedMidway,
    /// What had to go outranks what was written elsewhere meanwhile (invariant 7).
    ClearedAnew,
    /// Invariant 7: every concurrent-looking pair is called a conflict, known or not.
    FalseConflicts,
}
