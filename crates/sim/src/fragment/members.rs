//! Members that come and go: taken in late, told to go, buried, and back.

use super::follow::Subscriber;
use super::world::{Event, Node, World, id, index};
use base::NodeId;
use rand::RngExt;
use replica::{Copy, Input, MinInSync};
use std::collections::BTreeSet;

impl World {
    /// Whoever leads takes the others in; again until they are in.
    pub(crate) fn invite(&mut self) {
        let all = self.nodes.len();
        let leads = |n: &Node| n.copy.as_ref().is_some_and(|c| c.lead().is_some());
        for node in (0..all).filter(|n| leads(&self.nodes[*n])).collect::<Vec<_>>() {
            let one_too_many = self.faults && self.trims && self.rng.random_bool(0.3);
            for late in (self.founders..all).filter(|late| !self.buried.contains(late)).collect::<Vec<_>>() {
                let input = if one_too_many { Input::RemoveMember(id(late)) } else { Input::AddMember(id(late)) };
                self.step(node, input);
            }
        }
        self.at(700_000, Event::Invite);
    }

    /// Nodes are buried where the others have a copy that leads; from then on each leader strikes them off its list.
    pub(crate) fn bury(&mut self, doomed: BTreeSet<usize>) {
        let leads = |n: &Node| n.copy.as_ref().is_some_and(|c| c.lead().is_some() && !c.stands_in());
        let leaders: Vec<usize> =
            (0..self.nodes.len()).filter(|n| !doomed.contains(n) && leads(&self.nodes[*n])).collect();
        // Where a majority is asked for, those who stay must be one, or somebody must have insisted.
        let force = !self.check.is_majority();
        let stays = |(node, s): &(NodeId, replica::MemberStatus)| s.is_member() && !doomed.contains(&index(*node));
        let most = |c: &Copy| {
            let members = c.members();
            members.clone().into_iter().filter(stays).count() * 2 > members.values().filter(|s| s.is_member()).count()
        };
        // Copies in RAM that all restart are begun anew by those that the table began with.
        let founded = !self.lossy || (0..self.founders).any(|node| !doomed.contains(&node));
        let enough =
            founded && !self.returned && (force || self.nodes.iter().filter_map(|n| n.copy.as_ref()).all(most));
        // Who insists is heard where nobody can lead, too.
        let insisted = force && self.min_in_sync == MinInSync::Majority;
        if self.buried.is_empty() && self.faults && enough && (insisted || !leaders.is_empty()) {
            self.trace(|| format!("{doomed:?} are buried"));
            self.buried.clone_from(&doomed);
            self.check.buried = doomed.iter().map(|node| id(*node)).collect();
            // What it was told by those is not known to the rest.
            self.subscriber = Subscriber::default();
            self.views();
        }
        if !self.buried.is_empty() {
            let all: Vec<usize> = (0..self.nodes.len()).filter(|n| !doomed.contains(n)).collect();
            for leader in if insisted { all } else { leaders } {
                if insisted {
                    self.step(leader, Input::GivenUp(doomed.iter().map(|node| id(*node)).collect()));
                }
                doomed.iter().for_each(|node| self.step(leader, Input::Bury(id(*node), force)));
            }
        }
        if self.returned {
            // Those that come back with nothing are taken in like new ones.
            for leader in (0..self.nodes.len()).filter(|n| leads(&self.nodes[*n])).collect::<Vec<_>>() {
                let copies = doomed.iter().filter(|node| !self.is_stand_in(**node)).copied().collect::<Vec<_>>();
                copies.into_iter().for_each(|node| self.step(leader, Input::AddMember(id(node))));
            }
        }
        self.at(300_000, Event::Bury(doomed));
    }

    /// Buried nodes are let in again: they bring what they had, and what they took among themselves.
    pub(crate) fn come_back(&mut self) {
        if self.buried.is_empty() {
            // Not yet, or never.
            if self.faults {
                self.at(500_000, Event::Return);
            }
            return;
        }
        self.trace(|| "the buried come back".into());
        (self.buried, self.returned) = (BTreeSet::new(), true);
        self.check.buried = BTreeSet::new();
        self.views();
    }

    /// May they have a link?
    pub(crate) fn are_of_one_side(&self, a: usize, b: usize) -> bool {
        self.buried.contains(&a) == self.buried.contains(&b)
    }
}
