//! What those who list the machines say: which nodes should exist, and which are gone.

use crate::verdict::{TRUTH_APART, Truth, is_credible};
use base::{Instant, NodeId, Span};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

/// An answer older than this says nothing any more.
const TRUTH_FRESH: Span = Span::ms(180_000);

/// Where a provider says that a node is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Place {
    /// The machine.
    pub ip: IpAddr,
    /// The port; `None`: the provider knows machines only.
    pub port: Option<u16>,
}

impl Place {
    fn is_of(&self, addr: SocketAddr) -> bool {
        self.ip == addr.ip() && self.port.is_none_or(|port| port == addr.port())
    }
}

/// What became of an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Taken {
    /// It counts.
    Believed,
    /// It does not name the asking node: it is about other machines, or wrong.
    WithoutMe,
    /// It would have so many of so many nodes gone at once: it is the answer that is wrong.
    Incredible(usize, usize),
}

/// Of one provider: its last answer that counted.
struct Answer {
    at: Instant,
    exist: BTreeSet<NodeId>,
    /// Nodes that it leaves out, and since which answer without a break.
    gone: BTreeMap<NodeId, Instant>,
}

/// The answers of all authoritative providers, by their numbers.
#[derive(Default)]
pub struct Truths {
    all: BTreeMap<u16, Answer>,
}

impl Truths {
    /// Takes an answer that could be read. `roster`: where each node is, the asking one among them.
    pub fn answer(
        &mut self,
        now: Instant,
        provider: u16,
        named: &[Place],
        me: NodeId,
        roster: &BTreeMap<NodeId, SocketAddr>,
    ) -> Taken {
        let is_named = |addr: &SocketAddr| named.iter().any(|place| place.is_of(*addr));
        if !roster.get(&me).is_some_and(is_named) {
            self.all.remove(&provider);
            return Taken::WithoutMe;
        }
        let (exist, gone): (Vec<_>, Vec<_>) = roster.iter().partition(|(_, addr)| is_named(addr));
        if !is_credible(gone.len(), roster.len()) {
            self.all.remove(&provider);
            return Taken::Incredible(gone.len(), roster.len());
        }
        let before = self.all.remove(&provider).map(|answer| answer.gone).unwrap_or_default();
        let since = |node: &NodeId| before.get(node).copied().unwrap_or(now);
        let gone = gone.into_iter().map(|(node, _)| (*node, since(node))).collect();
        let exist = exist.into_iter().map(|(node, _)| *node).collect();
        self.all.insert(provider, Answer { at: now, exist, gone });
        Taken::Believed
    }

    /// What they say of a node together: whoever is named by one exists.
    pub fn of(&self, now: Instant, node: NodeId) -> Truth {
        let fresh = || self.all.values().filter(|answer| now - answer.at < TRUTH_FRESH);
        if fresh().any(|answer| answer.exist.contains(&node)) {
            return Truth::Exists;
        }
        let settled = |a: &Answer| a.gone.get(&node).is_some_and(|since| a.at - *since >= TRUTH_APART);
        if fresh().count() > 0 && fresh().all(settled) { Truth::Gone } else { Truth::Unknown }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(s: u64) -> Instant {
        Instant((s + 1000) * 1_000_000_000)
    }

    fn addr(n: u64) -> SocketAddr {
        ([10, 0, 0, n as u8], 7474).into()
    }

    fn roster(n: u64) -> BTreeMap<NodeId, SocketAddr> {
        (1..=n).map(|n| (NodeId(n), addr(n))).collect()
    }

    fn named(nodes: &[u64]) -> Vec<Place> {
        nodes.iter().map(|n| Place { ip: addr(*n).ip(), port: None }).collect()
    }

    fn told(truths: &mut Truths, s: u64, provider: u16, nodes: &[u64]) -> Taken {
        truths.answer(at(s), provider, &named(nodes), NodeId(1), &roster(6))
    }

    #[test]
    fn gone_is_who_is_left_out_by_two_answers_half_a_minute_apart() {
        let mut truths = Truths::default();
        assert_eq!(truths.of(at(0), NodeId(6)), Truth::Unknown);
        assert_eq!(told(&mut truths, 0, 0, &[1, 2, 3, 4, 5]), Taken::Believed);
        assert_eq!((truths.of(at(0), NodeId(5)), truths.of(at(0), NodeId(6))), (Truth::Exists, Truth::Unknown));
        told(&mut truths, 29, 0, &[1, 2, 3, 4, 5]);
        assert_eq!(truths.of(at(60), NodeId(6)), Truth::Unknown, "time alone says nothing");
        told(&mut truths, 61, 0, &[1, 2, 3, 4, 5]);
        assert_eq!(truths.of(at(61), NodeId(6)), Truth::Gone);
        told(&mut truths, 62, 0, &[1, 2, 3, 4, 5, 6]);
        assert_eq!(truths.of(at(62), NodeId(6)), Truth::Exists);
        told(&mut truths, 63, 0, &[1, 2, 3, 4, 5]);
        assert_eq!(truths.of(at(63), NodeId(6)), Truth::Unknown, "it counts from the first again");
    }

    #[test]
    fn an_old_answer_and_one_that_fails_say_nothing() {
        let mut truths = Truths::default();
        told(&mut truths, 0, 0, &[1, 2, 3, 4, 5]);
        told(&mut truths, 40, 0, &[1, 2, 3, 4, 5]);
        assert_eq!(truths.of(at(219), NodeId(6)), Truth::Gone);
        assert_eq!(truths.of(at(220), NodeId(6)), Truth::Unknown);
    }

    #[test]
    fn who_does_not_name_me_or_empties_the_roster_is_not_believed() {
        let mut truths = Truths::default();
        assert_eq!(told(&mut truths, 0, 0, &[2, 3, 4, 5]), Taken::WithoutMe);
        assert_eq!(told(&mut truths, 0, 0, &[1, 2, 3]), Taken::Incredible(3, 6));
        assert_eq!(truths.of(at(0), NodeId(2)), Truth::Unknown, "nothing of it counts");
        // What was said before it does not count on.
        told(&mut truths, 1, 0, &[1, 2, 3, 4, 5]);
        told(&mut truths, 20, 0, &[1]);
        told(&mut truths, 40, 0, &[1, 2, 3, 4, 5]);
        assert_eq!(truths.of(at(40), NodeId(6)), Truth::Unknown);
    }

    #[test]
    fn of_two_providers_either_one_keeps_a_node_alive() {
        let mut truths = Truths::default();
        for s in [0, 31] {
            told(&mut truths, s, 0, &[1, 2, 3, 4, 5]);
        }
        told(&mut truths, 31, 1, &[1, 2, 3, 4, 6]);
        assert_eq!(truths.of(at(32), NodeId(6)), Truth::Exists);
        told(&mut truths, 33, 1, &[1, 2, 3, 4, 5]);
        assert_eq!(truths.of(at(34), NodeId(6)), Truth::Unknown, "both have to say it twice");
    }

    #[test]
    fn a_port_tells_nodes_of_one_machine_apart() {
        let roster = [(NodeId(1), ([10, 0, 0, 1], 1).into()), (NodeId(2), ([10, 0, 0, 1], 2).into())].into();
        let place = |port| Place { ip: [10, 0, 0, 1].into(), port };
        let mut truths = Truths::default();
        for s in [0, 40] {
            assert_eq!(truths.answer(at(s), 0, &[place(Some(1))], NodeId(1), &roster), Taken::Believed);
        }
        assert_eq!(truths.of(at(40), NodeId(2)), Truth::Gone);
        truths.answer(at(41), 0, &[place(None)], NodeId(1), &roster);
        assert_eq!(truths.of(at(41), NodeId(2)), Truth::Exists);
    }
}
