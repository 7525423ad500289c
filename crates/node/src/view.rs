//! Links that come and go, and the view that copies are shown.

use crate::frame::{Frame, Hello, PROTOCOL};
use crate::io::{Effect, LinkId, Notice};
use crate::node::Node;
use base::{NodeId, Now};
use membership::Identity;
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
        if hello.protocol != PROTOCOL {
            out.push(Effect::Notice(Notice::WrongProtocol(addr, hello.protocol)));
            return out.push(Effect::Close(link));
        }
        let listen = reachable(hello.listen, addr);
        let identity = Identity::first(node, listen, hello.incarnation);
        let (close, restarted) = self.peers.linked(self.config.me, link, dialled, listen, hello);
        out.extend(close.into_iter().map(Effect::Close));
        if restarted && self.view.contains(&node) {
            // Whoever it was before is gone: its copies begin anew.
            let mut without = self.view.clone();
            without.remove(&node);
            self.show_view(now, without, out);
        }
        if let Some(wait) = self.peers.back(now.mono, node) {
            out.push(Effect::Notice(Notice::Flaps(node, self.name_of(node), wait)));
            self.to(node, Frame::Hold(wait.as_ms() as u32), out);
        }
        self.discover(now, discovery::Input::Linked(node, if dialled { addr } else { listen }), out);
        self.discover(now, discovery::Input::Found(node, listen), out);
        self.swim(now, membership::Input::Found(identity), out);
        self.update_view(now, out);
        if !self.ready {
            self.chores_at = now.mono;
        }
    }

    pub(crate) fn on_unlinked(&mut self, now: Now, link: LinkId, out: &mut Vec<Effect>) {
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
        for node in self.view.difference(&view) {
            let bye = self.peers.get(*node).is_some_and(|p| p.bye);
            out.push(Effect::Notice(Notice::MemberLeave(*node, self.name_of(*node), bye)));
            self.routes.values_mut().for_each(|leads| {
                leads.remove(node);
            });
            self.gateway.lost(*node);
            self.peers.left(now.mono, *node);
        }
        self.view = view;
        let sight = self.sight();
        self.feed_all(now, &sight, out);
    }

    /// What copies are told of others.
    pub(crate) fn sight(&self) -> replica::Input {
        let (dead, gone) = self.missing.clone();
        replica::Input::View { view: self.view.clone(), dead, gone }
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
