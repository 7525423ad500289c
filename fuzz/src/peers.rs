//! A node among peers that send it anything: frames on links, gossip and beacons under the right key, and hellos.
#![no_main]

use base::{Instant, NodeId, Now, Span, WallMs};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use node::{Config, Effect, Frame, Hello, Input, Node, PROTOCOL};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use wire::{Header, Keys, Kind};

/// Steps of one run.
const STEPS_MAX: usize = 64;

fn at(ms: u64) -> Now {
    Now { mono: Instant(ms * 1_000_000), wall: WallMs(1_700_000_000_000 + ms) }
}

fn addr(node: u64) -> SocketAddr {
    ([10, 0, 0, node as u8], 7474).into()
}

fn made(keys: &Keys) -> Node {
    let config = Config {
        me: NodeId(1),
        incarnation: 1,
        name: "me".into(),
        group: "g".into(),
        advertise: addr(1),
        announce: addr(1),
        zone: None,
        weight: None,
        keys: keys.clone(),
        accept: Vec::new(),
        join: vec![addr(2)],
        discover_delay: Span::ms(100),
        patience: Default::default(),
        timing: replica::Timing::default(),
        functions: replica::Functions::default(),
        values: None,
        seed: 7,
    };
    Node::new(at(0), config, BTreeMap::new())
}

fn hello(node: u64) -> Hello {
    let name = format!("n{node}");
    Hello { protocol: PROTOCOL, node: NodeId(node), incarnation: 1, life: 0, name, listen: addr(node), zone: None }
}

fn linked(node: u64, hello: Hello) -> Input {
    Input::Linked { link: node, dialled: false, addr: addr(node), hello }
}

/// The next step: a kind, a length, and so many bytes.
fn next<'a>(data: &mut &'a [u8]) -> Option<(u8, &'a [u8])> {
    let (head, rest) = data.split_at_checked(3)?;
    let len = usize::from(u16::from_le_bytes([head[1], head[2]])).min(rest.len());
    *data = &rest[len..];
    Some((head[0], &rest[..len]))
}

fn datagram(keys: &Keys, kind: Kind, counter: u64, now: Now, payload: &[u8]) -> Bytes {
    let header = Header { node: NodeId(2), incarnation: 1, counter, sent: now.wall };
    wire::seal(keys, kind, &header, payload, [counter as u8; 24]).into()
}

fuzz_target!(|data: &[u8]| {
    let keys = Keys::derive(b"secret", "g");
    let (mut node, mut out, mut rest, mut ms) = (made(&keys), Vec::new(), data, 1);
    for peer in [2, 3] {
        node.handle(at(ms), linked(peer, hello(peer)), &mut out);
    }
    for step in 0..STEPS_MAX as u64 {
        let Some((kind, bytes)) = next(&mut rest) else { break };
        let now = at(ms);
        let input = match kind % 8 {
            0..=3 => {
                let frame = postcard::from_bytes::<Frame>(bytes).ok();
                frame.map(|frame| Input::Frame(2 + u64::from(kind & 1), frame))
            }
            4 => postcard::from_bytes(bytes).ok().map(|hello| linked(4 + step, hello)),
            5 => Some(Input::Datagram(addr(2), datagram(&keys, Kind::Swim, step + 1, now, bytes))),
            6 => Some(Input::Beacon(addr(2), datagram(&keys, Kind::Beacon, step + 1, now, bytes))),
            _ => {
                ms += 1 + u64::from(bytes.first().copied().unwrap_or(0)) * 20;
                Some(Input::Tick)
            }
        };
        if let Some(input) = input {
            node.handle(at(ms), input, &mut out);
        }
        node.flush(at(ms), &mut out);
        // The disc keeps up.
        let durable: Vec<Input> = out
            .drain(..)
            .filter_map(|effect| match effect {
                Effect::Persist(fragment, persist) => Some(Input::Durable(fragment, persist.mark)),
                _ => None,
            })
            .collect();
        durable.into_iter().for_each(|input| node.handle(at(ms), input, &mut out));
        let _ = node.status(at(ms));
    }
});
