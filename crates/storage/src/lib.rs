//! Records on disc: `fjall` behind the batches of `replica`. The only crate that knows the engine.
//!
//! Assumed of the disc: a flushed write stays; an unflushed one may be lost, but not one before it while one after it
//! stays (the engine's journal is one log, checked by checksums).

mod dir;
mod disc;
mod long;
mod writer;

pub use dir::{DataDir, Identity};
pub use disc::{Disc, Loaded};
pub use writer::{Event, Writer, Written};

use dir::FORMAT_MAJOR;
use std::path::PathBuf;

/// Why a data directory cannot be used. Nothing in it was changed.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// Another process has it.
    #[error(
        "the data directory {path} is in use by process {pid}; stop that node, or give another directory with --data"
    )]
    InUse {
        /// Which directory.
        path: PathBuf,
        /// Whose it is.
        pid: String,
    },
    /// It cannot be read or written.
    #[error("cannot use the data directory {path}; check that it is a directory of yours with room on its disc")]
    Io {
        /// Which file or directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// What is in it cannot be understood.
    #[error(
        "the data in {path} is damaged ({what}); move the directory aside and start again: the other nodes' copies will fill it, and nothing in it was changed"
    )]
    Damaged {
        /// Which directory.
        path: PathBuf,
        /// How it showed.
        what: String,
    },
    /// Another version wrote it.
    #[error(
        "the data in {path} is of form {theirs}, this program reads form {FORMAT_MAJOR}: run the version that wrote it, or move the directory aside; nothing in it was changed"
    )]
    Format {
        /// Which directory.
        path: PathBuf,
        /// What it says of itself.
        theirs: String,
    },
    /// A write failed.
    #[error(
        "writing to {path} failed ({what}); the node stops, what it acknowledged is on disc or on other nodes: give the disc room, then start again"
    )]
    Write {
        /// Which directory.
        path: PathBuf,
        /// How it showed.
        what: String,
    },
}
