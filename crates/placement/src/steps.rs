//! From what is to what shall be, safely.

use crate::copies::Placed;
use crate::{Fragment, Group, Machine, Move, Picture, Plan, Step};
use base::NodeId;
use std::collections::BTreeMap;

/// The moves of all fragments, those that lack copies first.
pub(crate) fn steps(picture: &Picture, groups: &[Group], placed: &[Placed], leaders: &[Vec<Option<usize>>]) -> Plan {
    let mut leads = vec![Vec::new(); picture.tables.len()];
    let mut all: Vec<((bool, usize, u64), Vec<Move>)> = Vec::new();
    let machines: BTreeMap<NodeId, &Machine> = picture.machines.iter().map(|m| (m.node, m)).collect();
    for ((group, placed), leaders) in groups.iter().zip(placed).zip(leaders) {
        for table in &group.tables {
            for (f, fragment) in picture.tables[*table].fragments.iter().enumerate() {
                let (Some(on), Some(lead)) = (placed.on.get(f), leaders.get(f)) else { continue };
                let moves = of(picture, &machines, fragment, on, *lead, group.copies);
                let in_sync = fragment.holders.iter().filter(|h| h.in_sync && machines.contains_key(&h.node)).count();
                let repair = moves.iter().any(|m| m.is_repair);
                if !moves.is_empty() {
                    all.push(((!repair, in_sync, fragment.bytes), moves));
                }
            }
            leads[*table].clone_from(leaders);
        }
    }
    all.sort_by_key(|(urgency, _)| *urgency);
    Plan { moves: all.into_iter().flat_map(|(_, moves)| moves).collect(), leaders: leads }
}

/// First more copies, then another leader, and then fewer.
fn of(
    picture: &Picture,
    machines: &BTreeMap<NodeId, &Machine>,
    fragment: &Fragment,
    on: &[usize],
    lead: Option<usize>,
    copies: usize,
) -> Vec<Move> {
    let node = |i: usize| picture.machines[i].node;
    let wanted: Vec<NodeId> = on.iter().map(|i| node(*i)).collect();
    let holds = |n: &NodeId| fragment.holders.iter().any(|h| h.node == *n);
    let in_sync = |n: &NodeId| fragment.holders.iter().any(|h| h.node == *n && h.in_sync);
    // Those that count: on nodes that stay in the cluster.
    let there = fragment.holders.iter().filter(|h| machines.contains_key(&h.node)).count();
    let is_repair = there < copies;
    let mut moves = Vec::new();
    let mut push = |step, bytes, safe_now| {
        moves.push(Move { fragment: fragment.id, step, bytes, safe_now, is_repair });
    };
    // One that is away gets nothing; what lies beside another's copy there stays without.
    let takes = |n: &NodeId| !holds(n) && machines.get(n).is_some_and(|m| !m.away);
    wanted.iter().filter(|n| takes(n)).for_each(|n| push(Step::Add(*n), fragment.bytes, true));
    // One beside another may be led where it is written.
    let stays = |now: NodeId| fragment.settled && wanted.contains(&now);
    let lead = lead.map(node).filter(|n| fragment.leader.is_some_and(|now| now != *n && !stays(now)));
    let going: Vec<NodeId> = fragment.holders.iter().map(|h| h.node).filter(|n| !wanted.contains(n)).collect();
    lead.into_iter().for_each(|n| push(Step::Lead(n), 0, in_sync(&n)));
    // Who is away, and waited for, counts, if there is one who can tell.
    let away = |n: &NodeId| holds(n) && machines.get(n).is_some_and(|m| m.away);
    let there = wanted.iter().filter(|n| in_sync(n)).count();
    let stays = wanted.iter().filter(|n| in_sync(n) || away(n)).count();
    let present = fragment.holders.iter().filter(|h| h.in_sync && machines.contains_key(&h.node)).count();
    let enough = there > 0 && stays >= copies.min(wanted.len().max(present));
    // One that is lost and behind goes when it is buried, or when it is back.
    let may_go = |n: &NodeId| in_sync(n) || machines.contains_key(n);
    for n in going.into_iter().filter(may_go) {
        // The leader goes last, after another leads; and a copy that is behind, when it is known that it has nothing of its own.
        push(Step::Remove(n), 0, enough && in_sync(&n) && fragment.leader != Some(n));
    }
    moves
}
