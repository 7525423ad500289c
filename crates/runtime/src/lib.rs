//! The shell: owns the node, feeds it what happens, performs what it wants. Clock and randomness enter the system here.
//!
//! One thread runs the node, and others help it with its copies where there is work for several. Sockets, disc and clients
//! talk to it through channels: those of peers and clients are bounded, so that a busy node slows them down;
//! that of the disc is not, since it only ever answers what was asked.

mod answers;
mod ceilings;
mod clock;
mod cookie;
mod crew;
mod host;
mod journal;
mod log;
mod meter;
mod shell;

pub use ceilings::{Ceilings, FREE_BYTES_MIN, available_memory, resident};
pub use clock::Clock;
pub use cookie::{Cookie, CookieError, default_cookie_path};
pub use host::{Host, NoHost, Setting};
pub use journal::Latest;
pub use shell::{Event, Handle, Settings, StartError, start};
