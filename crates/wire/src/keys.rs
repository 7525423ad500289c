/// The keys of one group, derived from its cookie (BLAKE3 in key derivation mode), one per use.
#[derive(Clone)]
pub struct Keys {
    pub(crate) datagram: [u8; 32],
    /// Pre-shared key of the Noise handshake between nodes.
    pub stream: [u8; 32],
}

impl Keys {
    /// Two clusters with the same cookie and group have the same keys; any difference gives others.
    pub fn derive(cookie: &[u8], group: &str) -> Keys {
        let mut material = (cookie.len() as u64).to_be_bytes().to_vec();
        material.extend_from_slice(cookie);
        material.extend_from_slice(group.as_bytes());
        Keys {
            datagram: blake3::derive_key("tombolo 2026 datagrams between nodes", &material),
            stream: blake3::derive_key("tombolo 2026 streams between nodes", &material),
        }
    }
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keys(..)")
    }
}
