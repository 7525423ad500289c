//! What a bounded table in RAM is said to hold is what it takes of the allocator, within a tenth: measured on a copy that leads alone.

#![allow(clippy::expect_used)]

use base::{FragmentId, Instant, NodeId, Now, TableId, WallMs};
use replica::{
    Batch, Config, Copy, Effects, Evict, Input, Meta, Request, Room, SessionId, Storage, Store, Timing, Write,
};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

static TAKEN: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, which counts what it has given and not got back.
struct Counting;

#[allow(unsafe_code)]
// SAFETY: every call is the system allocator's own.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        TAKEN.fetch_add(layout.size(), Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        TAKEN.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn at(ms: u64) -> Now {
    Now { mono: Instant(ms * 1_000_000), wall: WallMs(ms) }
}

/// Hands an input over, with a disc that is never behind.
fn feed(copy: &mut Copy, ms: u64, input: Input) {
    let mut fx = Effects::default();
    copy.handle(at(ms), input, &mut fx);
    while let Some(mark) = fx.persists.drain(..).map(|p| p.mark).max() {
        copy.handle(at(ms), Input::Durable(mark), &mut fx);
    }
    copy.flush(at(ms), &mut fx);
}

fn leading(evict: Evict, bytes: Option<u64>, unordered: bool) -> Copy {
    let config = Config {
        fragment: FragmentId { table: TableId(1), index: 0 },
        line: 0,
        me: NodeId(1),
        incarnation: 1,
        founders: vec![NodeId(1)],
        storage: Storage::Ram,
        values: None,
        unordered,
        sync: false,
        eager: true,
        opens_after: Instant(0),
        open_membership: false,
        stand_in: false,
        min_in_sync: Default::default(),
        ttl_ms: None,
        room: Room { records: None, bytes },
        evict,
        in_sync_max: usize::MAX,
        policy: Default::default(),
        functions: Default::default(),
        timing: Timing::default(),
        seed: 1,
        mutant: None,
    };
    let mut copy = Copy::new(at(0), config, Meta::default(), Store::new(1));
    for ms in [5000, 5100, 5200] {
        feed(&mut copy, ms, Input::Tick);
    }
    copy
}

fn put(copy: &mut Copy, n: u64, value: usize) {
    let branches = vec![copy.lead().expect("it leads").branch];
    // Of its own, as what comes off the wire is.
    let writes =
        vec![Write::Put { key: format!("key-{n:012}").into(), value: vec![n as u8; value].into(), ttl_ms: None }];
    let session = SessionId { node: NodeId(1), incarnation: 1 };
    let batch = Batch { writes, ..Batch::default() };
    feed(copy, 6000 + n, Input::Write(n, Request { session, number: n, done_through: n, branches, batch }));
}

#[test]
fn a_bounded_table_takes_of_the_allocator_what_it_says() {
    for (value, unordered) in [(16, false), (16, true), (100, false), (100, true), (1024, false), (16 * 1024, false)] {
        let bound = 16 * 1024 * 1024;
        let before = TAKEN.load(Ordering::Relaxed);
        let mut copy = leading(Evict::S3Fifo, Some(bound), unordered);
        let room = bound / (replica::RECORD_OVERHEAD + 16 + value as u64);
        let (mut least, mut most) = (f64::MAX, 0.0f64);
        // Until it is full, and three times over: tables double on their way.
        for n in 1..=room * 4 {
            put(&mut copy, n, value);
            if n % 100 == 0 {
                feed(&mut copy, 6000 + n, Input::Tick);
            }
            let held = copy.store().held().1;
            assert!(held <= bound, "{held} bytes of {bound}");
            if held > bound / 8 {
                let taken = (TAKEN.load(Ordering::Relaxed) - before) as f64;
                (least, most) = (least.min(taken / held as f64), most.max(taken / held as f64));
            }
        }
        println!("values of {value} B, unordered {unordered}: {least:.2} to {most:.2} of what is counted");
        assert!(least > 0.5 && most < 1.2, "values of {value} B: {least:.2} to {most:.2} of what is counted");
    }
}
