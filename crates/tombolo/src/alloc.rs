//! The allocator, which counts what is in use: resident memory does not tell, since what is freed among what is not stays resident, to
//! be used again.
#![allow(unsafe_code)]

use mimalloc::MiMalloc;
use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::sync::atomic::{AtomicI64, Ordering};

/// A thread adds up so many bytes before it tells: the common count is not written for every record.
const TELL_BYTES: i64 = 16 * 1024;

static IN_USE: AtomicI64 = AtomicI64::new(0);

thread_local! {
    static UNTOLD: Cell<i64> = const { Cell::new(0) };
}

/// Bytes in use by the process, within some kilobytes for each thread that runs or ran.
pub(crate) fn in_use() -> u64 {
    u64::try_from(IN_USE.load(Ordering::Relaxed)).unwrap_or(0)
}

fn count(change: i64) {
    // Where a thread has no place of its own, it tells at once.
    let told = UNTOLD.try_with(|untold| {
        let sum = untold.get() + change;
        let tell = sum.abs() >= TELL_BYTES;
        untold.set(if tell { 0 } else { sum });
        if tell { sum } else { 0 }
    });
    let told = told.unwrap_or(change);
    if told != 0 {
        IN_USE.fetch_add(told, Ordering::Relaxed);
    }
}

/// mimalloc: records come and go by the thousand with every flush, and with the system's allocator that was 40 % of a durable load.
pub(crate) struct Counting;

/// What could not be had is not in use.
fn counted(at: *mut u8, change: i64) -> *mut u8 {
    if !at.is_null() {
        count(change);
    }
    at
}

fn size(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

// SAFETY: everything is mimalloc's, which keeps to the contract; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are passed on.
        counted(unsafe { MiMalloc.alloc(layout) }, size(layout.size()))
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        counted(unsafe { MiMalloc.alloc_zeroed(layout) }, size(layout.size()))
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-size(layout.size()));
        // SAFETY: as above.
        unsafe { MiMalloc.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: as above.
        counted(unsafe { MiMalloc.realloc(at, layout, new_size) }, size(new_size) - size(layout.size()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_use_is_counted_over_threads() {
        let before = in_use();
        let held = std::thread::spawn(|| vec![1u8; 64 << 20]).join().expect("thread");
        let more = in_use().saturating_sub(before);
        assert!((63 << 20..80 << 20).contains(&more), "{more}");
        drop(held);
        assert!(in_use() < before + (16 << 20));
    }
}
