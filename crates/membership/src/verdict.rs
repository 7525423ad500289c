//! When is a node that is out of view dead? The decision table of 2026, for what went wrong in 2008: there each of two islands
//! declared the other dead, and threw it out.
//!
//! One function, no clock and no memory: what is known of a node goes in, what is thought of it and what is to be done comes out.

use crate::roster::RosterStatus;
use base::Span;

/// What an operator has said of a node. It outlives what the node says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub enum Mark {
    /// Never expires, however long it is away.
    Immortal,
    /// Gone for good: to be buried; `force`: even if the last copy of something goes with it.
    Condemned {
        /// The operator was told what would be lost.
        force: bool,
    },
    /// On its way out, by its own doing: its copies move away, and then it goes.
    Leaving,
}

/// What authoritative providers say of a node, when their answers have settled.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Truth {
    /// There is no such provider, or none that answers.
    #[default]
    Unknown,
    /// The node should exist.
    Exists,
    /// The node is gone: said twice, [`TRUTH_APART`] apart, by answers that named the asking node.
    Gone,
}

/// Two answers that say that a node is gone lie at least this far apart.
pub const TRUTH_APART: Span = Span::ms(30_000);
/// A node is marked lost no earlier than this after it left the view.
pub const LOST_AFTER: Span = Span::ms(10_000);

/// How long what takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Patience {
    /// A lost node is buried after so long, by the majority (`node_timeout`); `None`: never.
    pub node: Option<Span>,
    /// A node that said goodbye is buried after so long (`stopped_timeout`); `None`: never.
    pub stopped: Option<Span>,
    /// Copies on nodes that have been lost for so long are made elsewhere, too (`replace_after`).
    pub replace: Span,
}

impl Default for Patience {
    fn default() -> Self {
        Patience { node: Some(Span::ms(4 * 3_600_000)), stopped: None, replace: Span::ms(300_000) }
    }
}

/// What is known of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Facts {
    /// What its line in the roster says.
    pub status: RosterStatus,
    /// What an operator has said.
    pub mark: Option<Mark>,
    /// It is in view.
    pub in_view: bool,
    /// How long it has been out of view without a break, as the asking process saw it.
    pub away: Span,
    /// What authoritative providers say.
    pub truth: Truth,
    /// For how long the asking island has held more than half of the nodes of the last whole roster, if it does. When islands
    /// meet, one is in view before the other: who has been away for hours must not be given up in that moment.
    pub majority: Option<Span>,
}

/// What is thought of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub enum Verdict {
    /// It is there.
    Present,
    /// It said goodbye: a planned absence.
    Stopped,
    /// It may be away for ever.
    Immortal,
    /// It is gone for good.
    Condemned,
    /// It exists, out of reach.
    Partitioned,
    /// It is out of reach, and nothing more is known.
    Lost,
}

impl Verdict {
    /// As `nodes` shows it.
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Present => "present",
            Verdict::Stopped => "stopped",
            Verdict::Immortal => "immortal",
            Verdict::Condemned => "condemned",
            Verdict::Partitioned => "partitioned",
            Verdict::Lost => "lost",
        }
    }
}

/// What is thought of a node, and what is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Judgement {
    /// What is thought.
    pub verdict: Verdict,
    /// Its line in the roster is to say `lost`.
    pub set_lost: bool,
    /// It is to be buried, if that loses no last copy.
    pub bury: bool,
    /// Why, for people.
    pub why: &'static str,
}

/// The decision table of docs/membership.md, row by row from the top.
pub fn judge(facts: &Facts, patience: &Patience) -> Judgement {
    let away = |limit: Span| !facts.in_view && facts.away >= limit;
    let set_lost = away(LOST_AFTER) && matches!(facts.status, RosterStatus::Up | RosterStatus::Joining);
    let rest = |verdict, why| Judgement { verdict, set_lost: false, bury: false, why };
    let given_up = |limit: Span| away(limit) && facts.majority.is_some_and(|held| held >= limit);
    let missing = |verdict, bury, why| Judgement { verdict, set_lost, bury, why };
    // Whoever breaks off on its way out is missed like anybody.
    match (facts.mark.filter(|mark| *mark != Mark::Leaving), facts.truth) {
        _ if facts.in_view => rest(Verdict::Present, "it is in view"),
        (Some(Mark::Condemned { .. }), _) => {
            missing(Verdict::Condemned, away(LOST_AFTER), "an operator said that it is gone for good")
        }
        (Some(Mark::Immortal | Mark::Leaving), _) => {
            missing(Verdict::Immortal, false, "an operator said that it never expires")
        }
        (None, Truth::Gone) => {
            missing(Verdict::Condemned, away(LOST_AFTER), "those who list the machines say that it is gone")
        }
        _ if facts.status == RosterStatus::Stopped => {
            let bury = patience.stopped.is_some_and(given_up);
            Judgement { bury, ..rest(Verdict::Stopped, "it said goodbye, and is waited for") }
        }
        (None, Truth::Exists) => {
            missing(Verdict::Partitioned, false, "those who list the machines say that it exists: it is never given up")
        }
        (None, Truth::Unknown) if facts.majority.is_some() => missing(
            Verdict::Lost,
            patience.node.is_some_and(given_up),
            "it is out of reach, and this side has the majority",
        ),
        (None, Truth::Unknown) => {
            missing(Verdict::Lost, false, "it is out of reach; this side, without a majority, gives nobody up")
        }
    }
}

/// How many of those that are to be buried may be, of a last whole roster of this size: not more than half of it, but for those
/// whom an operator named.
pub fn may_bury(whole: usize, buried_since: usize, by_ourselves: usize) -> bool {
    (buried_since + by_ourselves) * 2 <= whole
}

/// May an answer of a provider that says of so many nodes of a roster of this size that they are gone be acted on? Not of more
/// than a third of them, and more than one: it is the answer that is wrong, then.
pub fn is_credible(gone: usize, roster: usize) -> bool {
    gone <= 1 || gone * 3 <= roster
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: u64 = 60_000;

    fn lost(away_ms: u64) -> Facts {
        let away = Span::ms(away_ms);
        Facts {
            status: RosterStatus::Lost,
            mark: None,
            in_view: false,
            away,
            truth: Truth::Unknown,
            majority: Some(away),
        }
    }

    /// Every cell: each status, mark, truth, majority and time away, and what each row of the table says of it.
    #[test]
    fn the_table_holds_cell_by_cell() {
        use RosterStatus::*;
        let patience = Patience {
            node: Some(Span::ms(240 * MINUTE)),
            stopped: Some(Span::ms(100 * MINUTE)),
            ..Patience::default()
        };
        let mut cells = 0;
        for status in [Joining, Up, Stopped, Lost] {
            for mark in [None, Some(Mark::Immortal), Some(Mark::Condemned { force: false })] {
                for truth in [Truth::Unknown, Truth::Exists, Truth::Gone] {
                    for majority in [None, Some(Span(0)), Some(Span::ms(1000 * MINUTE))] {
                        for (in_view, minutes) in
                            [(true, 0), (false, 0), (false, 1), (false, 6), (false, 120), (false, 300)]
                        {
                            let away = Span::ms(minutes * MINUTE);
                            let facts = Facts { status, mark, in_view, away, truth, majority };
                            let it = judge(&facts, &patience);
                            cells += 1;
                            // Whoever is there is nobody's business.
                            assert_eq!(in_view, it.verdict == Verdict::Present, "{facts:?}");
                            let untouched = (false, false);
                            assert!(!in_view || (it.set_lost, it.bury) == untouched, "{facts:?}");
                            // Only these may be buried.
                            let operator = matches!(mark, Some(Mark::Condemned { .. }));
                            let gone = mark.is_none() && truth == Truth::Gone;
                            let waited = if status == Stopped { minutes >= 100 } else { minutes >= 240 };
                            let unknown = truth == Truth::Unknown || status == Stopped;
                            let late = mark.is_none() && unknown && majority.is_some_and(|held| held.0 > 0) && waited;
                            assert_eq!(it.bury, !in_view && ((operator || gone) && minutes >= 1 || late), "{facts:?}");
                            // A minority gives nobody up by itself, and nobody is given up who is known to exist.
                            assert!(
                                !it.bury
                                    || operator
                                    || gone
                                    || (majority.is_some() && truth != Truth::Exists || status == Stopped)
                            );
                            assert!(!it.bury || mark != Some(Mark::Immortal), "{facts:?}");
                            let away_for = |limit| !in_view && minutes >= limit;
                            let was_up = matches!(status, Up | Joining);
                            assert_eq!(it.set_lost, away_for(1) && was_up, "{facts:?}");
                        }
                    }
                }
            }
        }
        assert_eq!(cells, 4 * 3 * 3 * 3 * 6);
    }

    #[test]
    fn a_goodbye_is_waited_for_without_end_unless_told_otherwise() {
        let stopped = Facts { status: RosterStatus::Stopped, ..lost(1_000_000 * MINUTE) };
        assert!(!judge(&stopped, &Patience::default()).bury);
    }

    #[test]
    fn two_halves_of_one_roster_never_bury_each_other() {
        let patience = Patience { node: Some(Span::ms(240 * MINUTE)), ..Patience::default() };
        for whole in 1..20usize {
            for here in 0..=whole {
                let held = Span::ms(300 * MINUTE);
                let side = |n: usize| Facts { majority: (n * 2 > whole).then_some(held), ..lost(300 * MINUTE) };
                let (a, b) = (judge(&side(here), &patience), judge(&side(whole - here), &patience));
                assert!(!(a.bury && b.bury), "{here} of {whole}");
                assert!(!a.bury || may_bury(whole, 0, whole - here), "what a majority buries is less than half");
            }
        }
    }

    #[test]
    fn an_answer_that_would_empty_the_roster_is_not_believed() {
        assert!(is_credible(1, 1) && is_credible(1, 2) && is_credible(2, 6) && is_credible(0, 9));
        assert!(!is_credible(2, 5) && !is_credible(3, 3) && !is_credible(34, 100));
        assert!(!may_bury(5, 1, 2) && may_bury(5, 1, 1) && may_bury(4, 0, 2));
    }
}
