//! What the program around a node adds to what the node tells of itself.

use base::Span;
use node::{Facts, Happened, Sample};

/// A knob of the node, turned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Setting {
    /// How much memory may be in use, in bytes.
    MemoryMax(Option<u64>),
    /// How much the data directory may hold, in bytes.
    DiscMax(Option<u64>),
    /// From when on a request is slow.
    SlowAfter(Span),
    /// It was one of the program's own, and is done.
    Done,
}

/// The program around a node. It is called on the node's thread: no call may wait for anything.
pub trait Host: Send + Sync {
    /// What it knows of itself.
    fn facts(&self, all: &mut Facts);
    /// What it counts.
    fn metrics(&self, all: &mut Vec<Sample>);
    /// The lines of its log after that one, by number, at most so many: the latest.
    fn log(&self, after: u64, most: u32) -> Vec<Happened>;
    /// What turning this knob to this means, or why it cannot be.
    fn set(&self, knob: &str, value: &str) -> Result<Setting, String>;
}

/// A program that has nothing to add.
pub struct NoHost;

impl Host for NoHost {
    fn facts(&self, _: &mut Facts) {}

    fn metrics(&self, _: &mut Vec<Sample>) {}

    fn log(&self, _: u64, _: u32) -> Vec<Happened> {
        Vec::new()
    }

    fn set(&self, knob: &str, _: &str) -> Result<Setting, String> {
        Err(format!("there is no knob {knob:?}"))
    }
}
