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
const DOUBT_WAIT: Span = Span::ms(700);
/// Who has stayed for so long has no past.
const CALM: Span = Span::ms(60_000);
/// So often within that time, and it comes and goes.
const FLAPS_MIN: u32 = 2;
/// Where one is said to be gone, so many others are asked once: a wire that is cut seldom takes one node alone.
const BESIDE_MAX: usize = 16;
/// That one is gone is no news any more for so long: in a large fleet all would tell all.
const NEWS_FOR: Span = Span::ms(5_000);
/// How often one is asked how long it takes to answer, at most.
const PROBE_EVERY: Span = Span::ms(1_000);
/// How often it is asked while it is said to be gone.
const ASK_AGAIN: Span = Span::ms(2_000);

/// A link that stands.
struct Link {
    id: LinkId,
    /// This node dialled.
    dialled: bool,
    /// Where the peer is, by this link.
    addr: SocketAddr,
}

/// A peer that did not answer, and its links that are given up.
type Gone = (NodeId, Vec<LinkId>);

/// A question on its way: are you there?
struct Question {
    number: u64,
    asked: Instant,
}

/// What a new link means for those there were.
#[derive(Debug)]
pub(crate) struct Linked {
    /// To be closed: of two links between the same nodes, both sides keep the one that the smaller id dialled.
    pub close: Vec<LinkId>,
    /// The peer has restarted since it was last linked.
    pub restarted: bool,
    /// It was linked already: what was on its way may be lost with the link that goes.
    pub doubled: bool,
}

/// One peer, from its first hello on.
pub(crate) struct Peer {
    pub hello: Hello,
    pub addr: SocketAddr,
    /// The links that stand, newest last, and whether we dialled. More than one for a moment only.
    links: Vec<Link>,
    unlinked: Instant,
    /// What SWIM last said. `None`: it never heard of it, and the link alone counts. `false`: it answers for itself, asked
    /// again and again.
    swim: Option<bool>,
    /// Another was said to be gone: it is asked once.
    beside: bool,
    /// When this node was last told that it is gone, or that somebody else was.
    doubted_at: Instant,
    question: Option<Question>,
    /// When to ask next.
    ask_at: Instant,
    refused: bool,
    pub bye: bool,
    /// How often it left without a goodbye, each time within [`CALM`] of the time before, and when it last did.
    flaps: u32,
    left: Instant,
    /// How far its wall clock was ahead of ours, in ms, when it last sent a datagram; the way is not counted.
    offset: Option<i64>,
    /// How long it took to answer when it was last asked, and the question that is to tell next.
    rtt: Option<Span>,
    probe: Option<Question>,
    probed_at: Instant,
}

/// What can be seen of a peer.
pub(crate) struct Seen {
    /// One word: linked, doubted, unlinked, refused or gone.
    pub state: &'static str,
    pub addr: SocketAddr,
    pub incarnation: u64,
    pub rtt: Option<Span>,
    pub ahead_ms: Option<i64>,
    pub flaps: u32,
}

impl Peer {
    fn state(&self, now: Instant) -> &'static str {
        match () {
            () if self.bye => "gone",
            () if self.refused && self.links.is_empty() => "refused",
            () if !self.in_view(now) || self.links.is_empty() => "unlinked",
            () if self.is_doubted() => "doubted",
            () => "linked",
        }
    }

    fn in_view(&self, now: Instant) -> bool {
        let linked = !self.links.is_empty() || (!self.refused && now - self.unlinked < RELINK_WAIT);
        linked && !self.bye
    }

    /// It has to answer for itself.
    fn is_doubted(&self) -> bool {
        self.swim == Some(false) || self.beside
    }
}

/// All peers ever met by this process.
#[derive(Default)]
pub(crate) struct Peers {
    all: BTreeMap<NodeId, Peer>,
    by_link: BTreeMap<LinkId, NodeId>,
    /// Whom SWIM called up last, whether a link stood then or not.
    up: BTreeSet<NodeId>,
    questions: u64,
    /// How often SWIM said that one is gone, and how many were given up because they did not answer.
    pub doubts: u64,
    pub given_up: u64,
    /// When waits were last looked after.
    ticked: Instant,
}

impl Peers {
    /// A new link.
    pub(crate) fn linked(&mut self, me: NodeId, link: LinkId, dialled: bool, addr: SocketAddr, hello: Hello) -> Linked {
        let node = hello.node;
        self.by_link.insert(link, node);
        let fresh = Peer {
            hello: hello.clone(),
            addr,
            links: Vec::new(),
            unlinked: Instant(0),
            swim: None,
            beside: false,
            doubted_at: Instant(0),
            question: None,
            ask_at: Instant(0),
            refused: false,
            bye: false,
            flaps: 0,
            left: Instant(0),
            offset: None,
            rtt: None,
            probe: None,
            probed_at: Instant(0),
        };
        let peer = self.all.entry(node).or_insert(fresh);
        let restarted = peer.hello.incarnation != hello.incarnation;
        let mut close = Vec::new();
        if restarted {
            // What still comes through them is of the process before.
            close.extend(peer.links.drain(..).map(|l| l.id));
            self.by_link.retain(|link, _| !close.contains(link));
            (peer.swim, peer.rtt) = (None, None);
        }
        if self.up.contains(&node) {
            peer.swim = Some(true);
        }
        let doubled = !peer.links.is_empty();
        (peer.hello, peer.refused, peer.bye) = (hello, false, false);
        (peer.question, peer.beside, peer.probe) = (None, false, None);
        peer.links.push(Link { id: link, dialled, addr });
        let keep = peer.links.iter().rfind(|l| l.dialled == (me < node)).or(peer.links.last());
        let (keep, addr) = keep.map_or((link, addr), |l| (l.id, l.addr));
        peer.addr = addr;
        close.extend(peer.links.iter().map(|l| l.id).filter(|id| *id != keep));
        peer.links.retain(|l| l.id == keep);
        Linked { close, restarted, doubled }
    }

    /// It knows by now how often it was buried.
    pub(crate) fn lives(&mut self, node: NodeId, life: u64) {
        if let Some(peer) = self.all.get_mut(&node) {
            peer.hello.life = life;
        }
    }

    /// It left the view; `true`: by now it comes and goes.
    pub(crate) fn left(&mut self, now: Instant, node: NodeId) -> bool {
        let Some(peer) = self.all.get_mut(&node).filter(|p| !p.bye) else { return false };
        peer.flaps = if now - peer.left < CALM { peer.flaps.saturating_add(1) } else { 1 };
        peer.left = now;
        peer.flaps == FLAPS_MIN
    }

    /// Those whose coming and going is no news: what waits for a calm view does not wait for them.
    pub(crate) fn flapping(&self, now: Instant) -> BTreeSet<NodeId> {
        let flapping = |p: &Peer| p.flaps >= FLAPS_MIN && now - p.left < CALM;
        self.all.iter().filter(|(_, p)| flapping(p)).map(|(node, _)| *node).collect()
    }

    /// A link went; returns its peer if that was the last one.
    pub(crate) fn unlinked(&mut self, now: Instant, link: LinkId) -> Option<NodeId> {
        let node = self.by_link.remove(&link)?;
        let peer = self.all.get_mut(&node)?;
        let had = !peer.links.is_empty();
        peer.links.retain(|l| l.id != link);
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

    /// Does SWIM hear it, directly or through others?
    pub(crate) fn hears(&self, node: NodeId) -> bool {
        self.up.contains(&node)
    }

    /// SWIM hears it.
    pub(crate) fn up(&mut self, node: NodeId) {
        self.up.insert(node);
        if let Some(peer) = self.all.get_mut(&node) {
            (peer.swim, peer.question, peer.beside) = (Some(true), None, false);
        }
    }

    /// SWIM says that it is gone: a rumour, until it has been asked itself. One whose datagrams never got through is judged by
    /// its link alone. `true`: this is news.
    pub(crate) fn doubt(&mut self, now: Instant, node: NodeId) -> bool {
        self.up.remove(&node);
        let Some(peer) = self.all.get_mut(&node).filter(|p| p.swim == Some(true)) else { return false };
        let news = now - peer.doubted_at >= NEWS_FOR;
        self.doubts += 1;
        (peer.swim, peer.ask_at, peer.doubted_at) = (Some(false), now, now);
        let (before, after): (Vec<_>, Vec<_>) = self.all.iter_mut().partition(|(other, _)| **other <= node);
        let others = after.into_iter().chain(before).filter(|(_, p)| p.swim == Some(true) && !p.links.is_empty());
        for (_, peer) in others.take(BESIDE_MAX) {
            (peer.beside, peer.ask_at) = (true, now);
        }
        news
    }

    /// Somebody in view was told that it is gone: it is asked once.
    pub(crate) fn ask_once(&mut self, now: Instant, node: NodeId) {
        let Some(peer) = self.all.get_mut(&node) else { return };
        peer.doubted_at = now;
        if peer.swim == Some(true) && !peer.links.is_empty() && !peer.is_doubted() {
            (peer.beside, peer.ask_at) = (true, now);
        }
    }

    /// Whom to ask how long it takes to answer, on which link and by which number: nobody more often than once a second.
    pub(crate) fn probe(&mut self, now: Instant) -> Vec<(LinkId, u64)> {
        let mut ask = Vec::new();
        for peer in self.all.values_mut().filter(|p| p.probed_at == Instant(0) || now - p.probed_at >= PROBE_EVERY) {
            let Some(link) = peer.links.last() else { continue };
            self.questions += 1;
            peer.probed_at = now;
            peer.probe = Some(Question { number: self.questions, asked: now });
            ask.push((link.id, self.questions));
        }
        ask
    }

    /// Every peer that was ever met, as it is now.
    pub(crate) fn seen(&self, now: Instant) -> impl Iterator<Item = (NodeId, Seen)> + '_ {
        let seen = move |p: &Peer| Seen {
            state: p.state(now),
            addr: p.addr,
            incarnation: p.hello.incarnation,
            rtt: p.rtt.filter(|_| !p.links.is_empty()),
            ahead_ms: p.offset,
            flaps: p.flaps,
        };
        self.all.iter().map(move |(node, peer)| (*node, seen(peer)))
    }

    /// It has answered a question.
    pub(crate) fn answered(&mut self, now: Instant, node: NodeId, number: u64) {
        let probed = |p: &&mut Peer| p.probe.as_ref().is_some_and(|q| q.number == number);
        if let Some(peer) = self.all.get_mut(&node).filter(probed) {
            peer.rtt = peer.probe.take().map(|q| now - q.asked);
            return;
        }
        let asked = |p: &&mut Peer| p.question.as_ref().is_some_and(|q| q.number == number);
        if let Some(peer) = self.all.get_mut(&node).filter(asked) {
            // SWIM says a thing once: as long as it does not take it back, the peer is asked again.
            (peer.question, peer.ask_at, peer.beside) = (None, now + ASK_AGAIN, false);
        }
    }

    /// Whom to ask now, on which link and by which number; and who has not answered, with the links that are given up.
    pub(crate) fn tend(&mut self, now: Instant) -> (Vec<(LinkId, u64)>, Vec<Gone>) {
        self.ticked = now;
        let (mut ask, mut gone) = (Vec::new(), Vec::new());
        for (node, peer) in self.all.iter_mut().filter(|(_, p)| p.is_doubted()) {
            let Some(link) = peer.links.last() else { continue };
            match &peer.question {
                Some(question) if now - question.asked >= DOUBT_WAIT => {
                    // Out of view at once: its time to come back was this.
                    (peer.question, peer.unlinked, peer.beside) = (None, Instant(0), false);
                    gone.push((*node, peer.links.drain(..).map(|l| l.id).collect::<Vec<_>>()));
                }
                None if now >= peer.ask_at => {
                    self.questions += 1;
                    ask.push((link.id, self.questions));
                    peer.question = Some(Question { number: self.questions, asked: now });
                }
                _ => {}
            }
        }
        self.given_up += gone.len() as u64;
        for link in gone.iter().flat_map(|(_, links)| links) {
            self.by_link.remove(link);
        }
        (ask, gone)
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
        self.all.get(&node)?.links.last().map(|l| l.id)
    }

    /// Who is linked with, and by which link.
    pub(crate) fn linked_by(&self) -> impl Iterator<Item = (NodeId, LinkId)> + '_ {
        self.all.iter().filter_map(|(node, p)| Some((*node, p.links.last()?.id)))
    }

    pub(crate) fn links(&self) -> impl Iterator<Item = LinkId> + '_ {
        self.all.values().filter_map(|p| p.links.last().map(|l| l.id))
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
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let waiting = self.all.values().filter(|p| p.links.is_empty() && !p.refused && !p.bye);
        let relinked = waiting.map(|p| p.unlinked + RELINK_WAIT);
        let doubted = self.all.values().filter(|p| p.is_doubted() && !p.links.is_empty());
        let asked = doubted.map(|p| p.question.as_ref().map_or(p.ask_at, |q| q.asked + DOUBT_WAIT));
        // What was due before they were last looked after has been done.
        relinked.chain(asked).filter(|at| *at > self.ticked).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(node: u64, incarnation: u64) -> Hello {
        let listen = ([127, 0, 0, 1], node as u16).into();
        Hello { protocol: 1, node: NodeId(node), incarnation, life: 0, name: "x".into(), listen, zone: None }
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
                closed_one.extend(one.linked(NodeId(1), 10 + which, which == 0, addr(), hello(2, 1)).close);
                closed_two.extend(two.linked(NodeId(2), 20 + which, which == 1, addr(), hello(1, 1)).close);
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
    fn whoever_comes_and_goes_is_known_for_it_until_it_has_stayed() {
        let mut peers = Peers::default();
        let at = |s: u64| Instant((s + 1000) * 1_000_000_000);
        peers.linked(NodeId(1), 7, true, addr(), hello(2, 1));
        assert!(!peers.left(at(0), NodeId(2)) && peers.flapping(at(0)).is_empty(), "once is nothing");
        assert!(!peers.left(at(61), NodeId(2)) && peers.flapping(at(61)).is_empty());
        assert!(peers.left(at(100), NodeId(2)) && !peers.left(at(110), NodeId(2)), "said once");
        assert_eq!(peers.flapping(at(169)), [NodeId(2)].into());
        assert!(peers.flapping(at(170)).is_empty());
        peers.bye(NodeId(2));
        assert!(!peers.left(at(171), NodeId(2)) && peers.flapping(at(171)).is_empty(), "it said goodbye");
    }

    #[test]
    fn where_one_is_said_to_be_gone_others_are_asked_once() {
        let mut peers = Peers::default();
        let at = |ms: u64| Instant(ms * 1_000_000 + 1);
        for n in 2..40 {
            peers.linked(NodeId(1), n, true, addr(), hello(n, 1));
            peers.up(NodeId(n));
        }
        peers.doubt(at(0), NodeId(30));
        let (asked, _) = peers.tend(at(0));
        let links: Vec<u64> = asked.iter().map(|(link, _)| *link).collect();
        assert_eq!(links, (2..9).chain(30..40).collect::<Vec<_>>(), "it, and so many others");
        for (link, number) in asked.iter().filter(|(link, _)| ![30, 31].contains(link)) {
            peers.answered(at(100), NodeId(*link), *number);
        }
        let gone: Vec<NodeId> = peers.tend(at(700)).1.into_iter().map(|(node, _)| node).collect();
        assert_eq!(gone, [NodeId(30), NodeId(31)], "those that do not answer");
        assert!(peers.tend(at(60_000)).0.is_empty() && peers.deadline().is_none(), "nobody is asked again");
    }

    #[test]
    fn a_rumour_is_told_to_others_once() {
        let mut peers = Peers::default();
        let at = |ms: u64| Instant(ms * 1_000_000 + 1);
        for n in 2..5 {
            peers.linked(NodeId(1), n, true, addr(), hello(n, 1));
            peers.up(NodeId(n));
        }
        assert!(peers.doubt(at(10_000), NodeId(2)));
        peers.ask_once(at(10_000), NodeId(3));
        assert_eq!(
            peers.tend(at(10_000)).0.len(),
            3,
            "they are asked: it, one beside it, and the one that was told of"
        );
        assert!(!peers.doubt(at(12_000), NodeId(3)), "whoever told of it told all");
        peers.up(NodeId(2));
        assert!(!peers.doubt(at(12_000), NodeId(2)));
        peers.up(NodeId(2));
        assert!(peers.doubt(at(17_000), NodeId(2)));
    }

    #[test]
    fn whoever_is_said_to_be_gone_is_asked_and_asked_again() {
        let mut peers = Peers::default();
        let at = |ms: u64| Instant(ms * 1_000_000 + 1);
        peers.linked(NodeId(1), 7, true, addr(), hello(2, 1));
        // Its datagrams never got through: its link alone counts.
        peers.doubt(at(0), NodeId(2));
        assert_eq!((peers.tend(at(5000)).0.len(), peers.view(at(5000)).len()), (0, 1));
        peers.up(NodeId(2));
        peers.doubt(at(6000), NodeId(2));
        assert_eq!(peers.deadline(), Some(at(6000)));
        assert_eq!(peers.tend(at(6000)).0, [(7, 1)]);
        // It answers for itself, to the question and not to another; and is asked again.
        peers.answered(at(6100), NodeId(2), 9);
        assert_eq!(peers.deadline(), Some(at(6700)));
        peers.answered(at(6100), NodeId(2), 1);
        assert_eq!((peers.deadline(), peers.view(at(7000)).len()), (Some(at(8100)), 1));
        assert_eq!(peers.tend(at(8100)).0, [(7, 2)]);
        // It does not: its link is given up, and what still comes through it is nobody's.
        assert_eq!(peers.view(at(8799)).len(), 1);
        assert_eq!(peers.tend(at(8800)).1, [(NodeId(2), vec![7])]);
        assert_eq!((peers.view(at(8800)).len(), peers.node(7), peers.deadline()), (0, None, None));
        // Linked anew it is in view, and asked on, until SWIM hears it.
        peers.linked(NodeId(1), 8, true, addr(), hello(2, 1));
        assert_eq!((peers.view(at(9000)).len(), peers.tend(at(11_000)).0.len()), (1, 1));
        peers.up(NodeId(2));
        assert_eq!(peers.deadline(), None);
    }
}
