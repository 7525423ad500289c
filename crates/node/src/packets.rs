//! Datagrams in and out: opened and sealed, and what discovery and membership make of them.

use crate::frame::Frame;
use crate::io::{Effect, Notice};
use crate::node::Node;
use crate::view::reachable;
use base::Now;
use discovery::Beacon;
use rand::RngExt;
use std::net::SocketAddr;
use wire::{Header, Kind, Opened, Verdict};

impl Node {
    /// Opens and judges a packet; foreign and replayed ones are silence.
    fn opened(
        &mut self,
        now: Now,
        kind: Kind,
        from: SocketAddr,
        bytes: &[u8],
        out: &mut Vec<Effect>,
    ) -> Option<(Header, Vec<u8>)> {
        let mut opened = wire::open(&self.config.keys, kind, bytes);
        for keys in &self.config.accept {
            if matches!(opened, Opened::Foreign) {
                opened = wire::open(keys, kind, bytes);
            }
        }
        match opened {
            Opened::Ours(header, payload) => {
                self.peers.clock(header.node, header.sent.0 as i64 - now.wall.0 as i64);
                let fresh = header.node != self.config.me && self.replay.judge(now.wall, &header) == Verdict::Fresh;
                if fresh {
                    self.discover(now, discovery::Input::Heard(header.node), out);
                }
                fresh.then_some((header, payload))
            }
            Opened::Foreign => {
                let before = self.discovery.foreign();
                self.discover(now, discovery::Input::Foreign(from), out);
                if self.discovery.foreign() > before {
                    out.push(Effect::Notice(Notice::Foreign(from, before + 1)));
                }
                None
            }
            Opened::Malformed => None,
        }
    }

    pub(crate) fn on_datagram(&mut self, now: Now, from: SocketAddr, bytes: &[u8], out: &mut Vec<Effect>) {
        if let Some((header, payload)) = self.opened(now, Kind::Swim, from, bytes, out)
            && !self.lives.buried.contains_key(&header.node)
        {
            self.swim(now, membership::Input::Datagram(payload), out);
        }
    }

    pub(crate) fn on_beacon(&mut self, now: Now, from: SocketAddr, bytes: &[u8], out: &mut Vec<Effect>) {
        if let Some((header, payload)) = self.opened(now, Kind::Beacon, from, bytes, out)
            && let Ok(beacon) = wire::decode::<Beacon>(&payload)
        {
            let found = discovery::Input::Found(header.node, reachable(beacon.listen, from));
            self.discover(now, found, out);
        }
    }

    fn seal(&mut self, now: Now, kind: Kind, payload: &[u8]) -> Vec<u8> {
        self.counter += 1;
        let header = Header {
            node: self.config.me,
            incarnation: self.config.incarnation,
            counter: self.counter,
            sent: now.wall,
        };
        let nonce: [u8; 24] = self.rng.random();
        wire::seal(&self.config.keys, kind, &header, payload, nonce)
    }

    pub(crate) fn discover(&mut self, now: Now, input: discovery::Input, out: &mut Vec<Effect>) {
        let mut effects = Vec::new();
        self.discovery.handle(now.mono, input, &mut effects);
        for effect in effects {
            match effect {
                discovery::Effect::Dial(addr) => out.push(Effect::Dial(addr)),
                discovery::Effect::Beacon => {
                    let payload = wire::encode(&Beacon { listen: self.config.announce }).unwrap_or_default();
                    let packet = self.seal(now, Kind::Beacon, &payload);
                    out.push(Effect::Multicast(packet));
                }
            }
        }
    }

    pub(crate) fn swim(&mut self, now: Now, input: membership::Input, out: &mut Vec<Effect>) {
        let mut effects = Vec::new();
        self.swim.handle(now.mono, input, &mut effects);
        for effect in effects {
            match effect {
                membership::Effect::Send(to, data) => {
                    let packet = self.seal(now, Kind::Swim, &data);
                    // Where its link says that it is, rather than where it once said so itself: it may have several addresses.
                    let addr = self.peers.get(to.node).map_or(to.addr, |peer| peer.addr);
                    out.push(Effect::Datagram(addr, packet));
                }
                membership::Effect::Up(node, addr) => {
                    self.peers.up(node);
                    // Gossip brings news of nodes that were not met yet: everybody links with everybody.
                    self.discover(now, discovery::Input::Found(node, addr), out);
                    self.discover(now, discovery::Input::Heard(node), out);
                }
                membership::Effect::Down(node) => {
                    // One sick node can make all others believe that a well one is gone: whoever has a link to it asks.
                    // Gossip would take its time to reach all: they are told to ask, too.
                    if self.peers.doubt(now.mono, node) {
                        self.view.iter().for_each(|other| self.to(*other, Frame::Doubted(node), out));
                    }
                }
            }
        }
    }
}
