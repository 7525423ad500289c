//! How few in-sync copies are too few to take a write, and how many are enough.

use crate::batch::{Answer, Outcome, Refusal};
use crate::copy::{Copy, Role};
use crate::key::MemberStatus;
use crate::mutant;
use serde::{Deserialize, Serialize};

/// `min_in_sync`: how many in-sync copies a fragment must have for its leader to take writes. Availability comes first by
/// default; whoever would rather wait than have a write on few machines says more.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum MinInSync {
    /// So many, the leader among them.
    Copies(u16),
    /// More than half of the fragment's members, reachable or not: at most one side of a cut takes writes.
    Majority,
}

impl Default for MinInSync {
    fn default() -> Self {
        MinInSync::Copies(1)
    }
}

impl std::fmt::Display for MinInSync {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            MinInSync::Copies(n) => n.fmt(f),
            MinInSync::Majority => f.write_str("majority"),
        }
    }
}

impl Copy {
    /// The in-sync copies in force and those that there must be, if there are too few.
    fn too_few(&self) -> Option<(u16, u16)> {
        let Role::Leading(l) = &self.role else { return None };
        let need = match self.config.min_in_sync {
            MinInSync::Copies(n) if n <= 1 => return None,
            MinInSync::Copies(n) => n,
            MinInSync::Majority => {
                let members = self.members().into_values().filter(|s| *s != MemberStatus::Left).count();
                (members / 2 + 1) as u16
            }
        };
        // One that is being dropped counts no more, one that is being taken in not yet.
        let have = l.in_force().intersection(&l.set).count() as u16;
        (have < need && !mutant!(self, TooFewIgnored)).then_some((have, need))
    }

    /// Why a write may not be taken now.
    pub(crate) fn too_few_to_write(&self) -> Option<Refusal> {
        self.too_few().map(|(have, need)| Refusal::TooFewCopies { have, need })
    }

    /// May what is committed be called done? Not what was taken by enough copies and then committed without them: it may be
    /// on too few.
    pub(crate) fn too_few_to_answer(&self) -> bool {
        self.too_few().is_some()
    }
}

/// The answer to a write that is on too few copies: it is there, and may be lost with them.
pub(crate) fn unsure(answer: Answer) -> Answer {
    match answer {
        Answer::Outcome(Outcome::Done { .. }, branch) => Answer::Outcome(Outcome::Unknown, branch),
        other => other,
    }
}
