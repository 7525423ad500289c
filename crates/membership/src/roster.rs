use base::NodeId;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

/// A node's standing in the cluster. Seconds-level reachability is SWIM's; this changes only on transitions.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum RosterStatus {
    /// Takes part.
    Up,
    /// Said goodbye: a planned absence.
    Stopped,
    /// Has been out of view for a while.
    Lost,
    /// Is on its way in: it does not know yet what the cluster is.
    Joining,
}

impl RosterStatus {
    /// Live: expected to be in view.
    pub fn is_live(self) -> bool {
        !matches!(self, RosterStatus::Stopped)
    }

    /// As `status` shows it.
    pub fn name(self) -> &'static str {
        match self {
            RosterStatus::Up => "up",
            RosterStatus::Stopped => "stopped",
            RosterStatus::Lost => "lost",
            RosterStatus::Joining => "joining",
        }
    }
}

/// One node as the roster knows it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RosterEntry {
    /// A label, for people.
    pub name: String,
    /// Where it listens.
    pub addr: SocketAddr,
    /// Its zone, if it has one.
    pub zone: Option<String>,
    /// Its how-manieth start.
    pub incarnation: u64,
    /// How often it was buried before.
    pub life: u64,
    /// Its standing.
    pub status: RosterStatus,
    /// Its share of copies in relation to other nodes', if it has said one; 0: none.
    pub weight: Option<u16>,
}

/// Which part of the cluster this node can reach.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Island {
    /// Every live node.
    Whole,
    /// Some live node is out of view.
    Partitioned(BTreeSet<NodeId>),
    /// I am the only live node.
    Solo,
}

impl Island {
    /// As `status` shows it.
    pub fn name(&self) -> &'static str {
        match self {
            Island::Whole => "whole",
            Island::Partitioned(_) => "partitioned",
            Island::Solo => "solo",
        }
    }
}

/// Compares the view with the roster.
pub fn island(me: NodeId, view: &BTreeSet<NodeId>, roster: &BTreeMap<NodeId, RosterEntry>) -> Island {
    let live = roster.iter().filter(|(node, entry)| **node != me && entry.status.is_live());
    let missing: BTreeSet<NodeId> = live.map(|(node, _)| *node).filter(|node| !view.contains(node)).collect();
    if !missing.is_empty() {
        Island::Partitioned(missing)
    } else if view.is_empty() {
        Island::Solo
    } else {
        Island::Whole
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(status: RosterStatus) -> RosterEntry {
        RosterEntry {
            name: "x".into(),
            addr: ([127, 0, 0, 1], 1).into(),
            zone: None,
            incarnation: 1,
            life: 0,
            status,
            weight: None,
        }
    }

    #[test]
    fn an_island_is_what_the_roster_says_less_what_is_seen() {
        use RosterStatus::*;
        let roster = |all: &[(u64, RosterStatus)]| all.iter().map(|(n, s)| (NodeId(*n), entry(*s))).collect();
        let view = |all: &[u64]| all.iter().map(|n| NodeId(*n)).collect();
        let me = NodeId(1);
        let three = roster(&[(1, Up), (2, Up), (3, Up)]);
        assert_eq!(island(me, &view(&[2, 3]), &three), Island::Whole);
        assert_eq!(island(me, &view(&[2]), &three), Island::Partitioned(view(&[3])));
        assert_eq!(island(me, &view(&[]), &roster(&[(1, Up), (2, Stopped)])), Island::Solo);
        assert_eq!(island(me, &view(&[]), &roster(&[(1, Up), (2, Lost)])), Island::Partitioned(view(&[2])));
        // One that is not in the roster yet belongs to the island all the same.
        assert_eq!(island(me, &view(&[9]), &roster(&[])), Island::Whole);
    }
}
