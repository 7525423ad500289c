//! Who might be there (what nodefinder was in 2008): where to dial, and when to call out.
//!
//! Pure. Providers are IO and live elsewhere; they say what they found through [`Input::Found`]. A node out of reach is
//! looked for again for ever: that this was done only at start kept the islands of 2008 apart.

use base::{Instant, NodeId, Span};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

/// The first wait before an address is dialled again; it doubles.
const DIAL_AGAIN: Span = Span::ms(250);
/// The longest wait.
const DIAL_AGAIN_MAX: Span = Span::ms(2_000);
/// A node without a link whose packets get through is dialled at once, but no more often than this.
const HEARD_AGAIN: Span = Span::ms(500);
/// How often to call out while somebody is missing, or nobody was found yet.
const BEACON_SEARCHING: Span = Span::ms(1_000);
/// How often to call out when all are there: strangers may be listening.
const BEACON_AT_REST: Span = Span::ms(10_000);
/// How many found addresses are remembered.
const ADDRESSES_MAX: usize = 4096;
/// How long an address that only beacons named is dialled after the last one.
const FOUND_FOR: Span = Span::ms(60_000);
/// How many foreign senders are told apart.
const FOREIGN_MAX: usize = 1024;

/// "I am here", as multicast carries it. The envelope says who.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Beacon {
    /// Where the sender takes connections; an unspecified IP means the one the packet came from.
    pub listen: SocketAddr,
}

/// What happens.
#[derive(Clone, Debug)]
pub enum Input {
    /// The deadline has passed, or may have.
    Tick,
    /// A beacon or the roster named a node's address.
    Found(NodeId, SocketAddr),
    /// All that a provider lists now; what it listed before and no more is looked for no longer.
    Listed(u16, BTreeSet<SocketAddr>),
    /// A packet of this node got through. It may have been out of reach until now.
    Heard(NodeId),
    /// A packet sealed with another key came from here.
    Foreign(SocketAddr),
    /// A link to this node stands; it was dialled at this address, or dialled us.
    Linked(NodeId, SocketAddr),
    /// No link to this node any more.
    Unlinked(NodeId),
    /// An attempt to dial failed.
    Failed(SocketAddr),
    /// The dialled address turned out to be this very node's.
    Myself(SocketAddr),
    /// Is everybody there who should be?
    Whole(bool),
}

/// What is wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Connect there.
    Dial(SocketAddr),
    /// Call out.
    Beacon,
}

#[derive(Clone, Debug)]
struct Target {
    node: Option<NodeId>,
    fixed: bool,
    heard: Instant,
    next: Instant,
    wait: Span,
    dialling: bool,
    /// When it was last dialled.
    tried: Instant,
}

/// The book of addresses.
pub struct Discovery {
    me: NodeId,
    targets: BTreeMap<SocketAddr, Target>,
    linked: BTreeSet<NodeId>,
    /// What each provider listed last.
    listed: BTreeMap<u16, BTreeSet<SocketAddr>>,
    mine: BTreeSet<SocketAddr>,
    foreign: BTreeSet<IpAddr>,
    whole: bool,
    beacon_at: Instant,
    /// When the next address is to be dialled.
    dial_at: Option<Instant>,
    rng: StdRng,
}

impl Discovery {
    /// A book with these addresses, which are dialled for as long as this process lives.
    pub fn new(now: Instant, me: NodeId, fixed: &[SocketAddr], seed: u64) -> Discovery {
        let mut book = Discovery {
            me,
            targets: BTreeMap::new(),
            linked: BTreeSet::new(),
            listed: BTreeMap::new(),
            mine: BTreeSet::new(),
            foreign: BTreeSet::new(),
            whole: false,
            beacon_at: now,
            dial_at: (!fixed.is_empty()).then_some(now),
            rng: StdRng::seed_from_u64(seed),
        };
        fixed.iter().for_each(|addr| book.note(now, *addr, None, true));
        book
    }

    /// Takes one input.
    pub fn handle(&mut self, now: Instant, input: Input, effects: &mut Vec<Effect>) {
        match input {
            Input::Tick => {}
            Input::Found(node, addr) => {
                let known = self.targets.get(&addr).is_some_and(|t| t.node == Some(node));
                if node != self.me {
                    self.note(now, addr, Some(node), false);
                }
                // A flood of beacons costs no walk through the book.
                if known || node == self.me {
                    return;
                }
            }
            Input::Listed(provider, addrs) => {
                addrs.iter().for_each(|addr| self.note(now, *addr, None, false));
                self.listed.insert(provider, addrs);
            }
            Input::Heard(node) => {
                // One of the two dials: of two links one would have to go again. An attempt under way may be waiting for an
                // answer to a question that was lost.
                if self.linked.contains(&node) || node < self.me {
                    return;
                }
                let due = |t: &Target| t.node == Some(node) && now - t.tried >= HEARD_AGAIN;
                if !self.targets.values().any(due) {
                    return;
                }
                self.retry(now, due);
            }
            Input::Foreign(addr) => {
                if self.foreign.len() < FOREIGN_MAX {
                    // Not by port: each call comes from another.
                    self.foreign.insert(addr.ip());
                }
                return;
            }
            Input::Linked(node, addr) => {
                self.linked.insert(node);
                self.note_as(now, addr, Some(node), (false, true));
                self.retry(now, |t| t.node == Some(node));
            }
            Input::Unlinked(node) => {
                self.linked.remove(&node);
                self.retry(now, |t| t.node == Some(node));
            }
            Input::Failed(addr) => {
                if let Some(target) = self.targets.get_mut(&addr) {
                    let jitter = Span(self.rng.random_range(0..=target.wait.0 / 4));
                    target.next = now + target.wait + jitter;
                    target.wait = Span(target.wait.0 * 2).min(DIAL_AGAIN_MAX);
                    target.dialling = false;
                }
            }
            Input::Myself(addr) => {
                self.mine.insert(addr);
                self.targets.remove(&addr);
            }
            Input::Whole(whole) => {
                if self.whole && !whole {
                    self.beacon_at = now;
                }
                self.whole = whole;
            }
        }
        self.act(now, effects);
    }

    fn note(&mut self, now: Instant, addr: SocketAddr, node: Option<NodeId>, fixed: bool) {
        self.note_as(now, addr, node, (fixed, false));
    }

    /// `fixed`: dialled for ever; `linked`: it is known who answers there.
    fn note_as(&mut self, now: Instant, addr: SocketAddr, node: Option<NodeId>, (fixed, linked): (bool, bool)) {
        if self.mine.contains(&addr) || (self.targets.len() >= ADDRESSES_MAX && !self.targets.contains_key(&addr)) {
            return;
        }
        let fresh = Target { node, fixed, heard: now, next: now, wait: DIAL_AGAIN, dialling: false, tried: Instant(0) };
        let target = self.targets.entry(addr).or_insert(fresh);
        // Hearsay does not make the machine that answers there another.
        let settled = target.node.is_some_and(|known| self.linked.contains(&known)) && !linked;
        target.node = if settled { target.node } else { node.or(target.node) };
        target.fixed |= fixed;
        target.heard = now;
    }

    fn retry(&mut self, now: Instant, which: impl Fn(&Target) -> bool) {
        for target in self.targets.values_mut().filter(|t| which(t)) {
            (target.next, target.wait, target.dialling) = (now, DIAL_AGAIN, false);
        }
    }

    fn act(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        let listed = |addr: &SocketAddr| self.listed.values().any(|all| all.contains(addr));
        self.targets.retain(|addr, t| t.fixed || t.dialling || now - t.heard < FOUND_FOR || listed(addr));
        // A machine with several addresses is dialled at one after the other: of two links, each side might keep another.
        let dialled = self.targets.values().filter(|t| t.dialling).filter_map(|t| t.node);
        let mut busy: BTreeSet<NodeId> = dialled.chain(self.linked.iter().copied()).collect();
        for (addr, target) in &mut self.targets {
            let open = !target.dialling && target.node.is_none_or(|node| !busy.contains(&node));
            if open && target.next <= now {
                (target.dialling, target.tried) = (true, now);
                busy.extend(target.node);
                effects.push(Effect::Dial(*addr));
            }
        }
        let open = |t: &&Target| !t.dialling && t.node.is_none_or(|node| !busy.contains(&node));
        self.dial_at = self.targets.values().filter(open).map(|t| t.next).min();
        if now >= self.beacon_at {
            let wait = if self.whole { BEACON_AT_REST } else { BEACON_SEARCHING };
            self.beacon_at = now + wait + Span(self.rng.random_range(0..=wait.0 / 8));
            effects.push(Effect::Beacon);
        }
    }

    /// When to call with [`Input::Tick`] at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        Some(self.dial_at.map_or(self.beacon_at, |dial| dial.min(self.beacon_at)))
    }

    /// How many senders of other cookies or groups were heard.
    pub fn foreign(&self) -> usize {
        self.foreign.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(port: u16) -> SocketAddr {
        ([127, 0, 0, 1], port).into()
    }

    fn at(ms: u64) -> Instant {
        Instant(ms * 1_000_000)
    }

    /// The moments, in ms, at which the address is dialled when every attempt fails at once.
    fn dials(book: &mut Discovery, port: u16, from: u64, to: u64) -> Vec<u64> {
        let mut seen = Vec::new();
        for ms in from..to {
            let mut effects = Vec::new();
            book.handle(at(ms), Input::Tick, &mut effects);
            if effects.contains(&Effect::Dial(addr(port))) {
                seen.push(ms);
                book.handle(at(ms), Input::Failed(addr(port)), &mut Vec::new());
            }
        }
        seen
    }

    #[test]
    fn a_static_address_is_dialled_for_ever_with_growing_waits() {
        let mut book = Discovery::new(at(0), NodeId(1), &[addr(7)], 1);
        book.handle(at(0), Input::Failed(addr(7)), &mut Vec::new());
        let first = dials(&mut book, 7, 0, 10_000);
        assert!((4..8).contains(&first.len()), "{first:?}");
        let hour = dials(&mut book, 7, 3_600_000, 3_612_000);
        assert!(hour.len() >= 2, "still looked for: {hour:?}");
    }

    #[test]
    fn a_linked_node_is_left_alone_until_the_link_goes() {
        let mut book = Discovery::new(at(0), NodeId(1), &[], 1);
        let mut effects = Vec::new();
        book.handle(at(0), Input::Found(NodeId(2), addr(7)), &mut effects);
        assert!(effects.contains(&Effect::Dial(addr(7))));
        book.handle(at(1), Input::Linked(NodeId(2), addr(7)), &mut Vec::new());
        assert_eq!(dials(&mut book, 7, 1, 30_000), Vec::<u64>::new());
        let mut effects = Vec::new();
        book.handle(at(30_000), Input::Unlinked(NodeId(2)), &mut effects);
        assert!(effects.contains(&Effect::Dial(addr(7))), "at once");
    }

    #[test]
    fn my_own_address_is_not_dialled_again() {
        let mut book = Discovery::new(at(0), NodeId(1), &[addr(7)], 1);
        book.handle(at(1), Input::Myself(addr(7)), &mut Vec::new());
        assert_eq!(dials(&mut book, 7, 1, 30_000), Vec::<u64>::new());
    }

    #[test]
    fn it_calls_out_often_while_somebody_is_missing() {
        let mut book = Discovery::new(at(0), NodeId(1), &[], 1);
        let count = |book: &mut Discovery, from: u64, to: u64| {
            let mut effects = Vec::new();
            (from..to).for_each(|ms| book.handle(at(ms), Input::Tick, &mut effects));
            effects.iter().filter(|e| **e == Effect::Beacon).count()
        };
        assert!((8..12).contains(&count(&mut book, 0, 10_000)));
        book.handle(at(10_000), Input::Whole(true), &mut Vec::new());
        assert!((4..8).contains(&count(&mut book, 20_000, 70_000)));
        let mut effects = Vec::new();
        book.handle(at(70_000), Input::Whole(false), &mut effects);
        assert!(effects.contains(&Effect::Beacon), "at once when one goes missing");
    }

    #[test]
    fn a_flood_is_bounded() {
        let mut book = Discovery::new(at(0), NodeId(1), &[], 1);
        for i in 0..20_000u64 {
            let far: SocketAddr = ([10, 0, (i / 250) as u8, (i % 250) as u8], 9).into();
            book.handle(at(0), Input::Found(NodeId(i + 2), far), &mut Vec::new());
            book.handle(at(0), Input::Foreign(far), &mut Vec::new());
        }
        assert_eq!((book.targets.len(), book.foreign()), (ADDRESSES_MAX, FOREIGN_MAX));
    }

    #[test]
    fn what_a_provider_lists_is_dialled_until_it_lists_it_no_more() {
        let mut book = Discovery::new(at(0), NodeId(1), &[], 1);
        book.handle(at(0), Input::Listed(0, [addr(7), addr(8)].into()), &mut Vec::new());
        book.handle(at(0), Input::Listed(1, [addr(8)].into()), &mut Vec::new());
        book.handle(at(0), Input::Failed(addr(7)), &mut Vec::new());
        book.handle(at(0), Input::Failed(addr(8)), &mut Vec::new());
        assert!(dials(&mut book, 7, 3_600_000, 3_606_000).len() >= 2, "an hour later still");
        book.handle(at(3_610_000), Input::Listed(0, [].into()), &mut Vec::new());
        assert_eq!(dials(&mut book, 7, 3_680_000, 3_690_000), Vec::<u64>::new());
        // It was dialled meanwhile, and that attempt is still open.
        book.handle(at(3_690_000), Input::Failed(addr(8)), &mut Vec::new());
        assert!(!dials(&mut book, 8, 3_690_000, 3_700_000).is_empty(), "another provider lists it");
    }

    #[test]
    fn whoever_is_heard_again_is_dialled_at_once_by_one_of_the_two() {
        let mut book = Discovery::new(at(0), NodeId(5), &[], 1);
        let mut effects = Vec::new();
        let mut feed = |ms, input| {
            effects.clear();
            book.handle(at(ms), input, &mut effects);
            effects.iter().filter(|e| matches!(e, Effect::Dial(_))).count()
        };
        assert_eq!(feed(1, Input::Found(NodeId(7), addr(7))), 1);
        // The question got lost on the way: nobody says that it failed.
        assert_eq!(feed(400, Input::Heard(NodeId(7))), 0, "not that often");
        assert_eq!(feed(600, Input::Heard(NodeId(7))), 1);
        feed(601, Input::Linked(NodeId(7), addr(7)));
        assert_eq!(feed(2000, Input::Heard(NodeId(7))), 0);
        assert_eq!(feed(2000, Input::Found(NodeId(3), addr(3))), 1);
        assert_eq!(feed(4000, Input::Heard(NodeId(3))), 0, "that one dials");
    }
}
