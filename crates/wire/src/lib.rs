//! What goes over the network, as bytes: keys from the cookie, sealed datagrams, the replay window, the codec of frames.
//!
//! Everything here parses bytes from outside and never panics. It knows no sockets.

mod codec;
mod envelope;
mod keys;
mod replay;

pub use codec::{CodecError, FORMAT, decode, encode, encode_by};
pub use envelope::{Header, Kind, Opened, open, seal};
pub use keys::Keys;
pub use replay::{ReplayWindow, Verdict};
