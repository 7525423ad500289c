//! A copy made of records that a disc gave back, whatever they are, and then used.
#![no_main]

use base::{FragmentId, Heads, Instant, NodeId, Now, Span, TableId, Version, WallMs};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use replica::{
    Config, Copy, Effects, Input, Meta, MinInSync, Msg, Place, Record, Space, Storage, Store, Timing, Values,
};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

const KINDS: [Storage; 3] = [Storage::Disc, Storage::DiscOnly, Storage::Ram];

type Stored = (Meta, Heads, Vec<(Vec<u8>, Record)>, Vec<Msg>);

fn at(ms: u64) -> Now {
    Now { mono: Instant(ms * 1_000_000), wall: WallMs(ms) }
}

fn feed(copy: &mut Copy, engine: &Engine, ms: u64, input: Input) {
    let mut fx = Effects::default();
    copy.handle(at(ms), input, &mut fx);
    copy.flush(at(ms), &mut fx);
    loop {
        let Some(mark) = fx.persists.iter().map(|p| p.mark).max() else { return };
        for batch in fx.persists.drain(..).map(|p| p.batch) {
            let value = |(k, r): (Bytes, Record)| Some((k, (r.version, r.value?)));
            engine
                .0
                .lock()
                .into_iter()
                .for_each(|mut all| all.extend(batch.puts.clone().into_iter().filter_map(value)));
            batch.apart.iter().for_each(Place::written);
        }
        copy.handle(at(ms), Input::Durable(mark), &mut fx);
    }
}

/// A disc that is never behind.
#[derive(Default, Debug)]
struct Engine(Mutex<BTreeMap<Bytes, (Version, Bytes)>>);

impl Values for Engine {
    fn value(&self, _: FragmentId, key: &[u8]) -> Option<(Version, Bytes)> {
        self.0.lock().ok()?.get(key).cloned()
    }
}

fuzz_target!(|data: &[u8]| {
    let Ok((meta, heads, records, messages)) = postcard::from_bytes::<Stored>(data) else { return };
    // The storage layer never hands over a key without a space.
    let records =
        records.into_iter().filter(|(key, _)| !key.is_empty()).map(|(key, record)| (Bytes::from(key), record.into()));
    let store = Store::load(1, heads, records);
    let engine = Arc::new(Engine::default());
    let config = Config {
        fragment: FragmentId { table: TableId(1), index: 0 },
        line: 0,
        me: NodeId(1),
        incarnation: 1,
        founders: vec![NodeId(1), NodeId(2)],
        storage: KINDS[data.len() % 3],
        functions: replica::Functions::default(),
        values: Some(engine.clone()),
        unordered: data.len() % 2 == 0,
        sync: true,
        eager: false,
        opens_after: Instant(0),
        stand_in: false,
        open_membership: true,
        min_in_sync: if data.len() % 3 == 0 { MinInSync::Majority } else { MinInSync::default() },
        in_sync_max: usize::MAX,
        room: replica::Room { records: (data.len() % 11 == 0).then_some(1), bytes: None },
        evict: if data.len() % 2 == 0 { replica::Evict::Fifo } else { replica::Evict::Reject },
        ttl_ms: (data.len() % 7 == 0).then_some(500),
        policy: Default::default(),
        timing: Timing { stable_view: Span::ms(10), ..Timing::default() },
        seed: 1,
        mutant: None,
    };
    let mut copy = Copy::new(at(0), config, meta, store);
    let view = [NodeId(2)].into();
    feed(
        &mut copy,
        &engine,
        1,
        Input::View { view, dead: [].into(), gone: [].into(), flapping: [].into(), whole: false },
    );
    for ms in 1..10 {
        feed(&mut copy, &engine, ms * 300, Input::Tick);
        if ms % 3 == 0 {
            // How records are kept changes now and then.
            copy.set_options(|config| config.storage = KINDS[(data.len() / 3 + ms as usize / 3) % 3]);
            feed(&mut copy, &engine, ms * 300, Input::Turn);
        }
        if let Some(msg) = messages.get(ms as usize) {
            feed(&mut copy, &engine, ms * 300 + 1, Input::Msg(NodeId(2), msg.clone()));
        }
    }
    let range = replica::Range { space: Space::User, from: Bytes::new(), to: None, limit: 10 };
    feed(&mut copy, &engine, 3000, Input::Read(1, vec![range]));
    let _ = (copy.inspect(), copy.ledger().count(), copy.changes(&Default::default(), 100));
});
