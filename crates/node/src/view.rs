//! Links that come and go, and the view that copies are shown.

use crate::frame::{Frame, Hello, PROTOCOL};
use crate::io::{Effect, LinkId, Notice};
use crate::node::{Node, Origin};
use crate::peers::Linked;
use base::{NodeId, Now};
use membership::{Identity, Island};
use std::collections::BTreeSet;
use std::net::SocketAddr;

impl Node {
    pub(crate) fn on_linked(
        &mut self,
        now: Now,
        link: LinkId,
        dialled: bool,
        addr: SocketAddr,
        hello: Hello,
        out: &mut Vec<Effect>,
    ) {
        let node = hello.node;
        if node == self.config.me {
            out.push(Effect::Close(link));
            if dialled {
                self.discover(now, discovery::Input::Myself(addr), out);
            }
            if hello.incarnation != self.config.incarnation {
                out.push(Effect::Notice(Notice::Twin(addr)));
            }
            return;
        }
        if hello.protocol >> 8 != PROTOCOL >> 8 {
            out.push(Effect::Notice(Notice::WrongProtocol(addr, hello.protocol)));
            return out.push(Effect::Close(link));
        }
        if self.is_refused(&hello, link, out) {
            if dialled {
                // Another may answer there one day.
                self.discover(now, discovery::Input::Failed(addr), out);
            }
            return;
        }
        let listen = reachable(hello.listen, addr);
        let identity = Identity::first(node, listen, hello.incarnation);
        let Linked { close, restarted, doubled } = self.peers.linked(self.config.me, link, dialled, listen, hello);
        out.extend(close.into_iter().map(Effect::Close));
        if doubled {
            self.gateway.lost(node);
            for fragment in self.copies.ids() {
                self.copies.later(fragment, replica::Input::Met(node));
            }
        }
        self.tell_cluster_to(link, out);
        self.balance.linked(node);
        if !self.given_away.is_empty() {
            // It may not have heard of them.
            out.push(Effect::Frame(link, Frame::GaveAway(self.given_away.iter().copied().collect())));
        }
        if restarted {
            // What its process before asked for is not answered to this one, which numbers anew.
            self.origins.retain(|_, (origin, _)| !matches!(origin, Origin::Remote(asker, _) if *asker == node));
        }
        if restarted && self.view.contains(&node) {
            // Whoever it was before is gone: its copies begin anew.
            let mut without = self.view.clone();
            without.remove(&node);
            self.show_view(now, without, out);
        }
        self.discover(now, discovery::Input::Linked(node, if dialled { addr } else { listen }), out);
        self.discover(now, discovery::Input::Found(node, listen), out);
        self.swim(now, membership::Input::Found(identity), out);
        self.update_view(now, out);
        if !self.ready {
            self.chores_at = now.mono;
        }
    }

    /// Asks peers how long they take to answer.
    pub(crate) fn probe_peers(&mut self, now: Now, out: &mut Vec<Effect>) {
        let ask = self.peers.probe(now.mono);
        out.extend(ask.into_iter().map(|(link, number)| Effect::Frame(link, Frame::AreYouThere(number))));
    }

    pub(crate) fn on_unlinked(&mut self, now: Now, link: LinkId, out: &mut Vec<Effect>) {
        self.fates.refused.remove(&link);
        if let Some(node) = self.peers.unlinked(now.mono, link) {
            self.gateway.lost(node);
            self.discover(now, discovery::Input::Unlinked(node), out);
            self.update_view(now, out);
        }
    }

    pub(crate) fn update_view(&mut self, now: Now, out: &mut Vec<Effect>) {
        let view = self.peers.view(now.mono);
        let missing = (self.peers.dead(), self.peers.gone());
        if view != self.view || missing != self.missing {
            self.missing = missing;
            self.show_view(now, view, out);
            // The island may have changed: say so soon, not at the next round.
            self.chores_at = now.mono;
        }
    }

    fn show_view(&mut self, now: Now, view: BTreeSet<NodeId>, out: &mut Vec<Effect>) {
        for node in view.difference(&self.view) {
            out.push(Effect::Notice(Notice::MemberJoin(*node, self.name_of(*node))));
        }
        for node in &self.view.difference(&view).copied().collect::<Vec<_>>() {
            let led = self.routes.iter().filter(|(_, leads)| leads.contains_key(node));
            let led: Vec<_> = led.map(|(fragment, _)| *fragment).collect();
            led.into_iter().for_each(|fragment| self.drop_route(fragment, *node));
            let bye = self.peers.get(*node).is_some_and(|p| p.bye);
            out.push(Effect::Notice(Notice::MemberLeave(*node, self.name_of(*node), bye)));
            self.holders.values_mut().for_each(|nodes| {
                nodes.remove(node);
            });
            self.gateway.lost(*node);
            self.balance.parted(*node);
            if self.peers.left(now.mono, *node) {
                out.push(Effect::Notice(Notice::Flaps(*node, self.name_of(*node))));
            }
        }
        if view != self.view {
            (self.view, self.view_at) = (view, now.mono);
        }
        self.whole = !matches!(self.island(now), Island::Partitioned(_));
        let sight = self.sight(now);
        self.feed_all(now, &sight, out);
    }

    /// What copies are told of others.
    pub(crate) fn sight(&self, now: Now) -> replica::Input {
        let (dead, gone) = self.missing.clone();
        let (view, flapping) = (self.view.clone(), self.peers.flapping(now.mono));
        replica::Input::View { view, dead, gone, flapping, whole: self.whole }
    }
}

/// An address that its owner may not know: an unspecified IP means the one that packets come from.
pub(crate) fn reachable(listen: SocketAddr, from: SocketAddr) -> SocketAddr {
    if !listen.ip().is_unspecified() {
        return listen;
    }
    // The scope of a link-local address is part of the way there.
    let mut addr = from;
    addr.set_port(listen.port());
    addr
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{Config, Input};
    use base::{Instant, Span, WallMs};
    use replica::{Batch, Request, SessionId, Write};
    use std::collections::BTreeMap;

    fn at(ms: u64) -> Now {
        Now { mono: Instant(ms * 1_000_000), wall: WallMs(1_000_000 + ms) }
    }

    pub(crate) fn addr(node: u64) -> SocketAddr {
        ([10, 0, 0, node as u8], 7474).into()
    }

    pub(crate) fn made() -> Node {
        let config = Config {
            me: NodeId(1),
            incarnation: 1,
            name: "n1".into(),
            group: "g".into(),
            advertise: addr(1),
            announce: addr(1),
            zone: None,
            weight: None,
            keys: wire::Keys::derive(b"c", "g"),
            accept: Vec::new(),
            join: Vec::new(),
            discover_delay: Span::ms(100),
            patience: Default::default(),
            timing: replica::Timing::default(),
            functions: replica::Functions::default(),
            values: None,
            seed: 7,
        };
        Node::new(at(0), config, BTreeMap::new())
    }

    fn linked(link: LinkId, incarnation: u64) -> Input {
        let (name, listen) = ("n2".into(), addr(2));
        let hello = Hello { protocol: PROTOCOL, node: NodeId(2), incarnation, life: 0, name, listen, zone: None };
        Input::Linked { link, dialled: false, addr: addr(2), hello }
    }

    /// Feeds and flushes; what was wanted, and what the disc still owes: nothing, unless it is `slow`.
    fn feed(node: &mut Node, ms: u64, input: Input, slow: bool) -> (Vec<Effect>, Vec<Input>) {
        let (mut out, mut all, mut owed) = (Vec::new(), Vec::new(), Vec::new());
        node.handle(at(ms), input, &mut out);
        node.flush(at(ms), &mut out);
        while !out.is_empty() {
            let now = std::mem::take(&mut out);
            let durable = |e: &Effect| match e {
                Effect::Persist(fragment, persist) => Some(Input::Durable(*fragment, persist.mark)),
                _ => None,
            };
            owed.extend(now.iter().filter_map(durable));
            all.extend(now);
            if !slow {
                owed.drain(..).for_each(|input| node.handle(at(ms), input, &mut out));
                node.flush(at(ms), &mut out);
            }
        }
        (all, owed)
    }

    #[test]
    fn one_minor_version_away_is_welcome_and_one_major_is_told_and_let_go() {
        for (protocol, welcome) in [(PROTOCOL, true), (PROTOCOL + 1, true), (PROTOCOL + 0x100, false)] {
            let mut node = made();
            let Input::Linked { link, dialled, addr, hello } = linked(7, 1) else { panic!("linked") };
            let hello = Hello { protocol, ..hello };
            let (all, _) = feed(&mut node, 200, Input::Linked { link, dialled, addr, hello }, false);
            let told = all
                .iter()
                .any(|e| matches!(e, Effect::Notice(Notice::WrongProtocol(_, theirs)) if *theirs == protocol));
            let closed = all.iter().any(|e| matches!(e, Effect::Close(7)));
            assert_eq!((told, closed, node.sees().contains(&NodeId(2))), (!welcome, !welcome, welcome), "{protocol:x}");
        }
    }

    /// Its new process numbers its requests from 1 again: an answer to the old one's would be taken for one to another.
    #[test]
    fn what_a_process_asked_for_is_not_answered_to_the_one_after_it() {
        for restarted in [false, true] {
            let mut node = made();
            for ms in (100..4000).step_by(50) {
                feed(&mut node, ms, Input::Tick, false);
            }
            feed(&mut node, 4000, linked(7, 1), false);
            let (_, lead) = node.lead_of(crate::sys_fragment()).expect("it leads, being alone");
            let session = SessionId { node: NodeId(2), incarnation: 1 };
            let writes = vec![Write::Put { key: "k".into(), value: "v".into(), ttl_ms: None }];
            let batch = Batch { writes, sync: true, ..Batch::default() };
            let request = Request { session, number: 5, done_through: 0, branches: vec![lead.branch], batch };
            let write = Frame::Write(5, crate::sys_fragment(), request);
            let (_, owed) = feed(&mut node, 4010, Input::Frame(7, write), true);
            assert!(!owed.is_empty(), "it waits for the disc");
            feed(&mut node, 4020, linked(8, if restarted { 2 } else { 1 }), true);
            let told = owed.into_iter().flat_map(|input| feed(&mut node, 4030, input, true).0);
            let answers = told.filter(|e| matches!(e, Effect::Frame(_, Frame::Answer(5, _)))).count();
            assert_eq!(answers, usize::from(!restarted));
        }
    }
}
