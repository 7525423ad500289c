//! The simple and even placement: which nodes are to hold copies of what. Each fragment's leader sees to its own.

use crate::fragments::rendezvous;
use crate::frame::Frame;
use crate::io::{Effect, LinkId};
use crate::node::Node;
use crate::schema::TableDef;
use base::{FragmentId, NodeId, Now, Span};
use membership::{Mark, RosterStatus};
use replica::{Input, Inspect};

/// How soon after it became a member a node is invited to hold its copy.
const INVITE_SOON: Span = Span::ms(50);

impl Node {
    /// Each fragment's leader takes in nodes until there are as many copies as wished, invites those that have not come yet,
    /// and lets go of those that are too many.
    pub(crate) fn tend_members(&mut self, now: Now, out: &mut Vec<Effect>) {
        let (mut inputs, mut invite) = (Vec::new(), Vec::new());
        for def in self.tables.values() {
            for (fragment, founders) in def.all().zip(&def.founders) {
                // One that stands in knows nothing that others could hold copies of.
                let seen = self.copies.with(fragment, |c| c.lead().filter(|_| !c.stands_in()).map(|_| c.inspect()));
                let Some(seen) = seen.flatten() else { continue };
                invite.extend(self.awaited(&seen).into_iter().map(|link| Effect::Frame(link, Frame::Invite(fragment))));
                let going = self.one_leaving(now, def, &seen);
                if let Some(node) = self.next_member(now, def, fragment, &seen) {
                    inputs.push((fragment, Input::AddMember(node)));
                } else if let Some(node) = going.or_else(|| self.one_too_many(def, fragment, founders, &seen)) {
                    inputs.push((fragment, Input::RemoveMember(node)));
                }
            }
        }
        out.extend(invite);
        if !inputs.is_empty() {
            // Members before they are invited.
            self.chores_at = now.mono + INVITE_SOON;
        }
        for (fragment, input) in inputs {
            self.feed(now, fragment, input, out);
        }
    }

    /// Members that have not come yet, or do not know any more that they are: what they had may have been in RAM.
    fn awaited(&self, seen: &Inspect) -> Vec<LinkId> {
        let away = seen.members.iter().filter(|(node, s)| s.is_member() && !seen.in_sync.contains(node));
        away.filter_map(|(node, _)| self.peers.link(*node)).collect()
    }

    /// Does a copy on this node count among those that are wished for? Not if its node is about to go, nor if it has been out of
    /// reach for so long that another is made, in case it does not come back soon.
    fn counts(&self, now: Now, node: NodeId) -> bool {
        let stopped = self.roster.get(&node).is_some_and(|entry| entry.status == RosterStatus::Stopped);
        let planned = stopped || self.lives.marks.get(&node) == Some(&Mark::Immortal);
        let away = self.out_since.get(&node).map_or(Span(0), |since| now.mono - *since);
        // One that has only just come may not be in the roster yet.
        !self.is_gone(node) && !self.is_leaving(node) && (planned || away < self.config.patience.replace)
    }

    /// Can a fragment do without this node's copy? As many as can be have others, in sync where their nodes are here.
    pub(crate) fn are_enough(&self, now: Now, without: NodeId, def: &TableDef, seen: &Inspect) -> bool {
        let (here, rest) = (self.here(), self.remaining(without));
        let there = seen.in_sync.intersection(&rest).count();
        let members = seen.members.iter().filter(|(_, s)| s.is_member()).map(|(node, _)| *node);
        let away = members.filter(|n| *n != without && !here.contains(n) && self.counts(now, *n)).count();
        there > 0 && there + away >= usize::from(def.options.copies).min(rest.len() + away)
    }

    /// Who is to hold another copy, if there are too few.
    fn next_member(&self, now: Now, def: &TableDef, fragment: FragmentId, seen: &Inspect) -> Option<NodeId> {
        let members = seen.members.iter().filter(|(_, s)| s.is_member());
        if members.filter(|(node, _)| self.counts(now, **node)).count() >= usize::from(def.options.copies) {
            return None;
        }
        let nodes: Vec<NodeId> = self.remaining(NodeId(0)).into_iter().collect();
        let start = (def.id.0 as usize).wrapping_add(usize::from(fragment.index)) % nodes.len().max(1);
        let free = |node: &NodeId| seen.members.get(node).is_none_or(|s| s.is_gone());
        nodes.iter().cycle().skip(start).take(nodes.len()).copied().find(free)
    }

    /// A member on its way out that can go: others have enough copies.
    fn one_leaving(&self, now: Now, def: &TableDef, seen: &Inspect) -> Option<NodeId> {
        let members = seen.members.iter().filter(|(_, s)| s.is_member()).map(|(node, _)| *node);
        let mut leaving = members.filter(|node| *node != self.config.me && self.is_leaving(*node));
        leaving.find(|node| self.are_enough(now, *node, def, seen))
    }

    /// Whose copy is one too many: made while others were away, which are back. Those that the table began with stay.
    fn one_too_many(
        &self,
        def: &TableDef,
        fragment: FragmentId,
        founders: &[NodeId],
        seen: &Inspect,
    ) -> Option<NodeId> {
        let here = self.here();
        let members: Vec<NodeId> = seen.members.iter().filter(|(_, s)| s.is_member()).map(|(node, _)| *node).collect();
        let settled = self.whole && members.iter().all(|n| here.contains(n) && seen.in_force.contains(n));
        if !settled || members.len() <= usize::from(def.options.copies) {
            return None;
        }
        let may_go = |n: &NodeId| *n != self.config.me && !founders.contains(n);
        members.into_iter().filter(may_go).min_by_key(|node| rendezvous(fragment, *node))
    }
}
