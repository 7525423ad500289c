//! Bytes from strangers and users: datagrams, connections, the control socket, dumps, config files.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wire::{Keys, Kind};

fuzz_target!(|data: &[u8]| {
    let keys = Keys::derive(b"secret", "g");
    for kind in [Kind::Swim, Kind::Beacon] {
        let _ = wire::open(&keys, kind, data);
    }
    if let Ok(node::Frame::Said(_, node::Said::Facts(facts))) = wire::decode(data) {
        procfs::fuzz(facts);
    }
    let _ = wire::decode::<node::Hello>(data);
    transport::fuzz(data);
    tombolo::fuzz(data);
});
