//! From what is to what shall be, safely.

use crate::copies::Placed;
use crate::{Fragment, Group, Move, Picture, Plan, Step};
use base::NodeId;

/// The moves of all fragments, those that lack copies first.
pub(crate) fn steps(picture: &Picture, groups: &[Group], placed: &[Placed], leaders: &[Vec<Option<usize>>]) -> Plan {
    let mut target = vec![Vec::new(); picture.tables.len()];
    let mut leads = vec![Vec::new(); picture.tables.len()];
    let mut all: Vec<((bool, usize, u64), Vec<Move>)> = Vec::new();
    for ((group, placed), leaders) in groups.iter().zip(placed).zip(leaders) {
        for table in &group.tables {
            for (f, fragment) in picture.tables[*table].fragments.iter().enumerate() {
                let (Some(on), Some(lead)) = (placed.on.get(f), leaders.get(f)) else { continue };
                let moves = of(picture, fragment, on, *lead, group.copies);
                let in_sync = fragment.holders.iter().filter(|h| h.in_sync && is_machine(picture, h.node)).count();
                let repair = moves.iter().any(|m| m.is_repair);
                if !moves.is_empty() {
                    all.push(((!repair, in_sync, fragment.bytes), moves));
                }
            }
            target[*table].clone_from(&placed.on);
            leads[*table].clone_from(leaders);
        }
    }
    all.sort_by_key(|(urgency, _)| *urgency);
    Plan { moves: all.into_iter().flat_map(|(_, moves)| moves).collect(), target, leaders: leads }
}

fn is_machine(picture: &Picture, node: NodeId) -> bool {
    picture.machines.iter().any(|m| m.node == node)
}

/// First more copies, then another leader, and then fewer.
fn of(picture: &Picture, fragment: &Fragment, on: &[usize], lead: Option<usize>, copies: usize) -> Vec<Move> {
    let node = |i: usize| picture.machines[i].node;
    let wanted: Vec<NodeId> = on.iter().map(|i| node(*i)).collect();
    let holds = |n: &NodeId| fragment.holders.iter().any(|h| h.node == *n);
    let in_sync = |n: &NodeId| fragment.holders.iter().any(|h| h.node == *n && h.in_sync);
    // Those that count: on nodes that stay in the cluster.
    let there = fragment.holders.iter().filter(|h| is_machine(picture, h.node)).count();
    let is_repair = there < copies;
    let mut moves = Vec::new();
    let mut push = |step, bytes, safe_now| {
        moves.push(Move { fragment: fragment.id, step, bytes, safe_now, is_repair });
    };
    wanted.iter().filter(|n| !holds(n)).for_each(|n| push(Step::Add(*n), fragment.bytes, true));
    let lead = lead.map(node).filter(|n| fragment.leader.is_some_and(|now| now != *n));
    let going: Vec<NodeId> = fragment.holders.iter().map(|h| h.node).filter(|n| !wanted.contains(n)).collect();
    lead.into_iter().for_each(|n| push(Step::Lead(n), 0, in_sync(&n)));
    let stays = wanted.iter().filter(|n| in_sync(n)).count();
    for n in going {
        // The leader goes last, after another leads.
        push(Step::Remove(n), 0, stays >= copies.min(wanted.len()) && fragment.leader != Some(n));
    }
    moves
}
