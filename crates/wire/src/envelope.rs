use crate::Keys;
use base::{DATAGRAM_BYTES_MAX, NodeId, WallMs};
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use serde::{Deserialize, Serialize};

const MAGIC: &[u8; 4] = b"TMBL";
/// The version of this form; a higher one is somebody else's packet to us.
const VERSION: u8 = 1;
const PLAIN: usize = 4 + 1 + 1;
const NONCE: usize = 24;

/// What a datagram carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// "I am here", to everybody.
    Beacon = 1,
    /// Membership gossip, to one node.
    Swim = 2,
}

/// Who sent a datagram, and when: sealed with its payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Header {
    /// The sender.
    pub node: NodeId,
    /// Its how-manieth start.
    pub incarnation: u64,
    /// Grows with each datagram of that start.
    pub counter: u64,
    /// The sender's wall clock.
    pub sent: WallMs,
}

/// What became of received bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Opened {
    /// Of our group, unaltered.
    Ours(Header, Vec<u8>),
    /// Ours in form, but sealed with another key: another cookie or group, or altered on the way. No log line: several
    /// cookies on one wire is normal.
    Foreign,
    /// Not a packet of this program and version at all.
    Malformed,
}

/// Seals a payload. The nonce must be random.
pub fn seal(keys: &Keys, kind: Kind, header: &Header, payload: &[u8], nonce: [u8; NONCE]) -> Vec<u8> {
    let mut out = Vec::with_capacity(DATAGRAM_BYTES_MAX);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&[VERSION, kind as u8]);
    let mut plain = postcard::to_stdvec(header).unwrap_or_default();
    plain.extend_from_slice(payload);
    let cipher = XChaCha20Poly1305::new(&keys.datagram.into());
    let sealed = cipher.encrypt(&XNonce::from(nonce), Payload { msg: &plain, aad: &out });
    out.extend_from_slice(&nonce);
    // Encryption into memory fails only beyond 256 GiB.
    out.extend(sealed.unwrap_or_default());
    out
}

/// Opens what [`seal`] made; tells foreign from damaged as far as that can be told.
pub fn open(keys: &Keys, kind: Kind, bytes: &[u8]) -> Opened {
    let Some((plain, rest)) = bytes.split_at_checked(PLAIN) else { return Opened::Malformed };
    if plain[..4] != *MAGIC || plain[4..] != [VERSION, kind as u8] {
        return Opened::Malformed;
    }
    let Some((nonce, sealed)) = rest.split_at_checked(NONCE) else { return Opened::Malformed };
    let Ok(nonce) = <[u8; NONCE]>::try_from(nonce) else { return Opened::Malformed };
    let cipher = XChaCha20Poly1305::new(&keys.datagram.into());
    let Ok(plain) = cipher.decrypt(&XNonce::from(nonce), Payload { msg: sealed, aad: plain }) else {
        return Opened::Foreign;
    };
    match postcard::take_from_bytes::<Header>(&plain) {
        Ok((header, payload)) => Opened::Ours(header, payload.to_vec()),
        Err(_) => Opened::Malformed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> Header {
        Header { node: NodeId(7), incarnation: 2, counter: 9, sent: WallMs(1_700_000_000_000) }
    }

    fn sealed() -> (Keys, Vec<u8>) {
        let keys = Keys::derive(b"secret", "default");
        let bytes = seal(&keys, Kind::Swim, &header(), b"payload", [3; 24]);
        (keys, bytes)
    }

    #[test]
    fn opens_what_it_sealed() {
        let (keys, bytes) = sealed();
        assert_eq!(open(&keys, Kind::Swim, &bytes), Opened::Ours(header(), b"payload".to_vec()));
        assert_eq!(open(&keys, Kind::Beacon, &bytes), Opened::Malformed);
        assert_eq!(open(&Keys::derive(b"secret", "other"), Kind::Swim, &bytes), Opened::Foreign);
        assert_eq!(open(&Keys::derive(b"secre", "tdefault"), Kind::Swim, &bytes), Opened::Foreign);
    }

    #[test]
    fn every_truncation_and_every_flipped_bit_is_refused() {
        let (keys, bytes) = sealed();
        for end in 0..bytes.len() {
            assert!(!matches!(open(&keys, Kind::Swim, &bytes[..end]), Opened::Ours(..)), "cut at {end}");
        }
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(!matches!(open(&keys, Kind::Swim, &bad), Opened::Ours(..)), "bit {bit}");
        }
    }

    proptest! {
        #[test]
        fn noise_is_malformed_or_foreign(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let keys = Keys::derive(b"secret", "default");
            prop_assert!(!matches!(open(&keys, Kind::Beacon, &bytes), Opened::Ours(..)));
        }
    }
}
