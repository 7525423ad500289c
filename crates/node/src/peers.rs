//! Peers: which links stand, and who is in view.

use crate::frame::Hello;
use crate::io::LinkId;
use base::{Instant, NodeId, Span};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

/// A link that broke gets so long to be replaced before its peer leaves the view: a reset connection is evidence, and a
/// refused one proof enough.
const RELINK_WAIT: Span = Span::ms(700);
/// So long a peer that is said to be gone may take to say that it is not.
const DOUBT_WAIT: Span = Span::ms(500);

/// One peer, from its first hello on.
pub(crate) struct Peer {
    pub hello: Hello,
    pub addr: SocketAddr,
    /// The links that stand, newest last, and whether we dialled. More than one for a moment only.
    links: Vec<(LinkId, bool)>,
    unlinked: Instant,
    /// What SWIM last said since the newest link came up.
    swim: Option<bool>,
    /// Since when there is a rumour that it is gone.
    doubted: Option<Instant>,
    refused: bool,
    pub bye: bool,
    /// How far its wall clock was ahead of ours, in ms, when it last sent a datagram; the way is not counted.
    offset: Option<i64>,
}

impl Peer {
    fn in_view(&self, now: Instant) -> bool {
        let linked = !self.links.is_empty() || (!self.refused && now - self.unlinked < RELINK_WAIT);
        let doubted = self.doubted.is_some_and(|since| now - since >= DOUBT_WAIT || self.links.is_empty());
        linked && !doubted && !self.bye
    }
}

/// All peers ever met by this process.
#[derive(Default)]
pub(crate) struct Peers {
    all: BTreeMap<NodeId, Peer>,
    by_link: BTreeMap<LinkId, NodeId>,
    /// Whom SWIM called up last, whether a link stood then or not.
    up: BTreeSet<NodeId>,
}

impl Peers {
    /// A new link. Returns the links to close: of two between the same nodes, both sides keep the one that the smaller id
    /// dialled. `true`: the peer has restarted since it was last linked.
    pub(crate) fn linked(
        &mut self,
        me: NodeId,
        link: LinkId,
        dialled: bool,
        addr: SocketAddr,
        hello: Hello,
    ) -> (Vec<LinkId>, bool) {
        let node = hello.node;
        self.by_link.insert(link, node);
        let fresh = Peer {
            hello: hello.clone(),
            addr,
            links: Vec::new(),
            unlinked: Instant(0),
            swim: None,
            doubted: None,
            refused: false,
            bye: false,
            offset: None,
        };
        let peer = self.all.entry(node).or_insert(fresh);
        let restarted = peer.hello.incarnation != hello.incarnation;
        let mut close = Vec::new();
        if restarted {
            close.extend(peer.links.drain(..).map(|(id, _)| id));
        }
        let swim = self.up.contains(&node).then_some(true);
        (peer.hello, peer.addr, peer.swim, peer.refused, peer.bye) = (hello, addr, swim, false, false);
        peer.doubted = None;
        peer.links.push((link, dialled));
        let good = |(_, dialled): &(LinkId, bool)| *dialled == (me < node);
        let keep = peer.links.iter().rfind(|l| good(l)).or(peer.links.last()).map(|(id, _)| *id);
        close.extend(peer.links.iter().map(|(id, _)| *id).filter(|id| Some(*id) != keep));
        peer.links.retain(|(id, _)| Some(*id) == keep);
        (close, restarted)
    }

    /// A link went; returns its peer if that was the last one.
    pub(crate) fn unlinked(&mut self, now: Instant, link: LinkId) -> Option<NodeId> {
        let node = self.by_link.remove(&link)?;
        let peer = self.all.get_mut(&node)?;
        let had = !peer.links.is_empty();
        peer.links.retain(|(id, _)| *id != link);
        if had && peer.links.is_empty() {
            peer.unlinked = now;
            return Some(node);
        }
        None
    }

    pub(crate) fn refused(&mut self, addr: SocketAddr) {
        for peer in self.all.values_mut().filter(|p| p.addr == addr && p.links.is_empty()) {
            peer.refused = true;
        }
    }

    /// SWIM hears it.
    pub(crate) fn up(&mut self, node: NodeId) {
        self.up.insert(node);
        if let Some(peer) = self.all.get_mut(&node) {
            (peer.swim, peer.doubted) = (Some(true), None);
        }
    }

    /// SWIM says that it is gone. Its link, to ask it: what comes through that within [`DOUBT_WAIT`] is stronger than a
    /// rumour.
    pub(crate) fn doubt(&mut self, now: Instant, node: NodeId) -> Option<LinkId> {
        self.up.remove(&node);
        let peer = self.all.get_mut(&node)?;
        // One whose datagrams never got through is judged by its link alone.
        peer.swim?;
        peer.swim = Some(false);
        peer.doubted.get_or_insert(now);
        peer.links.last().map(|(id, _)| *id)
    }

    /// Something came through a link.
    pub(crate) fn heard(&mut self, link: LinkId) {
        let peer = self.by_link.get(&link).and_then(|node| self.all.get_mut(node));
        if let Some(peer) = peer.filter(|p| p.doubted.is_some()) {
            // Until SWIM hears it again it is judged by its link.
            (peer.swim, peer.doubted) = (None, None);
        }
    }

    /// The links of those that have not answered for themselves, to be closed.
    pub(crate) fn give_up(&self, now: Instant) -> Vec<LinkId> {
        let gone = self.all.values().filter(|p| p.doubted.is_some_and(|since| now - since >= DOUBT_WAIT));
        gone.flat_map(|p| &p.links).map(|(id, _)| *id).collect()
    }

    pub(crate) fn bye(&mut self, node: NodeId) {
        if let Some(peer) = self.all.get_mut(&node) {
            peer.bye = true;
        }
    }

    pub(crate) fn clock(&mut self, node: NodeId, ahead_ms: i64) {
        if let Some(peer) = self.all.get_mut(&node) {
            peer.offset = Some(ahead_ms);
        }
    }

    /// How far this machine's clock is ahead of the median of the view's, its own included, in ms; and of how many.
    pub(crate) fn ahead(&self, now: Instant) -> (i64, usize) {
        let known = self.all.values().filter(|p| p.in_view(now)).filter_map(|p| p.offset);
        let mut all: Vec<i64> = known.chain([0]).collect();
        all.sort_unstable();
        // Of an even number the two in the middle: with two nodes each is off by half.
        let (low, high) = (all[(all.len() - 1) / 2], all[all.len() / 2]);
        (-(low + high) / 2, all.len())
    }

    /// Does SWIM hear it, as far as that is known? Of those with a link.
    pub(crate) fn datagrams(&self, node: NodeId) -> Option<bool> {
        self.all.get(&node).filter(|p| !p.links.is_empty()).map(|p| p.swim == Some(true))
    }

    pub(crate) fn node(&self, link: LinkId) -> Option<NodeId> {
        self.by_link.get(&link).copied()
    }

    pub(crate) fn link(&self, node: NodeId) -> Option<LinkId> {
        self.all.get(&node)?.links.last().map(|(id, _)| *id)
    }

    pub(crate) fn links(&self) -> impl Iterator<Item = LinkId> + '_ {
        self.all.values().filter_map(|p| p.links.last().map(|(id, _)| *id))
    }

    pub(crate) fn get(&self, node: NodeId) -> Option<&Peer> {
        self.all.get(&node)
    }

    pub(crate) fn view(&self, now: Instant) -> BTreeSet<NodeId> {
        self.all.iter().filter(|(_, p)| p.in_view(now)).map(|(node, _)| *node).collect()
    }

    /// Peers that look dead, not merely out of reach: nobody listens where they did.
    pub(crate) fn dead(&self) -> BTreeSet<NodeId> {
        self.all.iter().filter(|(_, p)| p.refused || p.bye).map(|(node, _)| *node).collect()
    }

    /// Peers that said goodbye.
    pub(crate) fn gone(&self) -> BTreeSet<NodeId> {
        self.all.iter().filter(|(_, p)| p.bye).map(|(node, _)| *node).collect()
    }

    /// When a broken link's grace ends.
    pub(crate) fn deadline(&self, now: Instant) -> Option<Instant> {
        let waiting = self.all.values().filter(|p| p.links.is_empty() && !p.refused && !p.bye);
        let doubted = self.all.values().filter_map(|p| p.doubted).map(|since| since + DOUBT_WAIT);
        waiting.map(|p| p.unlinked + RELINK_WAIT).chain(doubted).filter(|at| *at > now).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(node: u64, incarnation: u64) -> Hello {
        let listen = ([127, 0, 0, 1], node as u16).into();
        Hello { protocol: 1, node: NodeId(node), incarnation, name: "x".into(), listen, zone: None }
    }

    fn addr() -> SocketAddr {
        ([127, 0, 0, 1], 5).into()
    }

    #[test]
    fn of_two_links_both_sides_keep_the_same() {
        // Node 1 dialled link A (10 here, 20 there), node 2 dialled link B (11 here, 21 there), in either order.
        for flip in [false, true] {
            let (mut one, mut two) = (Peers::default(), Peers::default());
            let order = if flip { [0, 1] } else { [1, 0] };
            let (mut closed_one, mut closed_two) = (Vec::new(), Vec::new());
            for which in order {
                closed_one.extend(one.linked(NodeId(1), 10 + which, which == 0, addr(), hello(2, 1)).0);
                closed_two.extend(two.linked(NodeId(2), 20 + which, which == 1, addr(), hello(1, 1)).0);
            }
            assert_eq!((closed_one, closed_two), (vec![11], vec![21]), "the one that node 1 dialled stays");
        }
    }

    #[test]
    fn a_broken_link_is_evidence_and_a_refused_one_proof() {
        let mut peers = Peers::default();
        let at = |ms: u64| Instant(ms * 1_000_000 + 1);
        peers.linked(NodeId(1), 7, true, addr(), hello(2, 1));
        assert_eq!(peers.view(at(0)).len(), 1);
        assert_eq!(peers.unlinked(at(100), 7), Some(NodeId(2)));
        assert_eq!(peers.view(at(700)).len(), 1, "may be back in a moment");
        assert_eq!(peers.view(at(801)).len(), 0);
        assert!(peers.dead().is_empty());
        peers.refused(addr());
        assert_eq!((peers.view(at(101)).len(), peers.dead().len()), (0, 1));
    }

    #[test]
    fn a_clock_is_held_against_the_median_of_the_view() {
        let mut peers = Peers::default();
        assert_eq!(peers.ahead(Instant(0)), (0, 1));
        for n in 2..4 {
            peers.linked(NodeId(1), n, true, addr(), hello(n, 1));
            peers.clock(NodeId(n), -9000);
        }
        assert_eq!(peers.ahead(Instant(0)), (9000, 3), "both others agree that I am ahead");
        peers.clock(NodeId(3), 10);
        assert_eq!(peers.ahead(Instant(0)), (0, 3), "one of three is off, and it is not me");
    }

    #[test]
    fn swim_counts_only_where_its_datagrams_get_through_and_asks_before_it_buries() {
        let mut peers = Peers::default();
        let at = |ms: u64| Instant(ms * 1_000_000 + 1);
        peers.linked(NodeId(1), 7, true, addr(), hello(2, 1));
        assert_eq!(peers.doubt(at(0), NodeId(2)), None);
        assert_eq!(peers.view(at(5000)).len(), 1);
        peers.up(NodeId(2));
        // It answers for itself.
        assert_eq!(peers.doubt(at(0), NodeId(2)), Some(7));
        peers.heard(7);
        assert_eq!((peers.view(at(600)).len(), peers.give_up(at(600)).len()), (1, 0));
        // It does not.
        peers.up(NodeId(2));
        peers.doubt(at(1000), NodeId(2));
        assert_eq!((peers.view(at(1499)).len(), peers.deadline(at(1000))), (1, Some(at(1500))));
        assert_eq!((peers.view(at(1500)).len(), peers.give_up(at(1500))), (0, vec![7]));
        // Called up before its link stood: it counts from the start.
        peers.up(NodeId(3));
        peers.linked(NodeId(1), 8, true, addr(), hello(3, 1));
        assert_eq!(peers.doubt(at(0), NodeId(3)), Some(8));
    }
}
