use base::FRAME_BYTES_MAX;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// The first byte of every frame and stored value of ours: the version of its form, the major one in the upper half. Of one major
/// version, a higher minor one may have more fields at the end of what is encoded, and more kinds of frames; it reads what a
/// lower one wrote with nothing (0, none, empty) in those fields.
pub const FORMAT: u8 = 0x37;
/// How many fields' worth of bytes a higher minor version may have added.
const ADDED_BYTES_MAX: usize = 64;

/// How much of an encoding buffer is kept.
const BUFFER_BYTES_KEPT: usize = 8 * 1024 * 1024;

/// Bytes that cannot be taken, or a value that cannot be sent. Nothing was changed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CodecError {
    /// No bytes at all.
    #[error("an empty frame")]
    Empty,
    /// Another program version's form.
    #[error("a frame of form {}; this program reads form {}: run the same major version on all nodes", form(*.0), form(FORMAT))]
    Format(u8),
    /// Of a higher minor version, and of a kind that this one does not know: to be passed over.
    #[error("a frame of form {}, of a kind that this program (form {}) does not know", form(*.0), form(FORMAT))]
    Newer(u8),
    /// Damaged, or not meant for this.
    #[error("a damaged frame")]
    Damaged,
    /// Over `FRAME_BYTES_MAX`.
    #[error("a frame of {0} bytes; at most {FRAME_BYTES_MAX} are taken")]
    TooLarge(usize),
}

fn form(byte: u8) -> String {
    format!("{}.{}", byte >> 4, byte & 15)
}

/// Encodes a frame.
pub fn encode<T: Serialize>(value: &T) -> Result<Bytes, CodecError> {
    encode_by(&mut Vec::new(), value)
}

/// Encodes a frame by way of a buffer that many are encoded in, one after the other: it does not grow anew for each.
pub fn encode_by<T: Serialize>(buffer: &mut Vec<u8>, value: &T) -> Result<Bytes, CodecError> {
    let mut scratch = std::mem::take(buffer);
    scratch.clear();
    scratch.push(FORMAT);
    let bytes = postcard::to_extend(value, scratch).map_err(|_| CodecError::Damaged)?;
    let frame = match bytes.len() {
        len if len > FRAME_BYTES_MAX => Err(CodecError::TooLarge(len)),
        _ => Ok(Bytes::copy_from_slice(&bytes)),
    };
    *buffer = bytes;
    buffer.clear();
    buffer.shrink_to(BUFFER_BYTES_KEPT);
    frame
}

/// Decodes a frame; bytes left over are damage, unless they are fields of a higher minor version.
pub fn decode<T: for<'a> Deserialize<'a>>(bytes: &[u8]) -> Result<T, CodecError> {
    decode_as(FORMAT, bytes)
}

fn decode_as<T: for<'a> Deserialize<'a>>(ours: u8, bytes: &[u8]) -> Result<T, CodecError> {
    if bytes.len() > FRAME_BYTES_MAX {
        return Err(CodecError::TooLarge(bytes.len()));
    }
    let Some((&theirs, rest)) = bytes.split_first() else { return Err(CodecError::Empty) };
    match (theirs, postcard::take_from_bytes(rest)) {
        (theirs, _) if theirs >> 4 != ours >> 4 => Err(CodecError::Format(theirs)),
        (_, Ok((value, []))) => Ok(value),
        (theirs, Ok((value, _))) if theirs > ours => Ok(value),
        (theirs, Err(_)) if theirs > ours => Err(CodecError::Newer(theirs)),
        (theirs, Err(_)) if theirs < ours => {
            let padded = [rest, &[0; ADDED_BYTES_MAX]].concat();
            match postcard::take_from_bytes(&padded) {
                Ok((value, left)) if left.len() < ADDED_BYTES_MAX => Ok(value),
                _ => Err(CodecError::Damaged),
            }
        }
        _ => Err(CodecError::Damaged),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_told_apart() {
        let frame = encode(&(7u64, "text".to_string())).expect("small");
        assert_eq!(decode::<(u64, String)>(&frame), Ok((7, "text".into())));
        assert_eq!(decode::<(u64, String)>(&frame[..frame.len() - 1]), Err(CodecError::Damaged));
        assert_eq!(decode::<(u64, String)>(&[&frame[..], &[0]].concat()), Err(CodecError::Damaged));
        assert_eq!(decode::<(u64, String)>(&[]), Err(CodecError::Empty));
        assert_eq!(decode::<(u64, String)>(&[0x90, 1]), Err(CodecError::Format(0x90)));
        assert!(matches!(encode(&vec![0u8; FRAME_BYTES_MAX + 1]), Err(CodecError::TooLarge(_))));
    }

    #[derive(Serialize, Deserialize, PartialEq, Debug)]
    enum Old {
        A(u64),
    }

    #[derive(Serialize, Deserialize, PartialEq, Debug)]
    enum New {
        A(u64, Option<u64>, String),
        B,
    }

    /// Two programs of one major version: what the newer one added is passed over by the older, and empty where the older wrote.
    #[test]
    fn one_minor_version_away_is_understood_both_ways() {
        let of = |form: u8, bytes: Bytes| [&[form], &bytes[1..]].concat();
        let newer = of(0x31, encode(&New::A(7, Some(9), "x".into())).expect("small"));
        assert_eq!(decode_as::<Old>(0x30, &newer), Ok(Old::A(7)));
        assert_eq!(decode_as::<Old>(0x30, &of(0x31, encode(&New::B).expect("small"))), Err(CodecError::Newer(0x31)));
        let older = of(0x30, encode(&Old::A(7)).expect("small"));
        assert_eq!(decode_as::<New>(0x31, &older), Ok(New::A(7, None, String::new())));
        // Not so of one version, nor of another major one.
        assert_eq!(decode_as::<New>(0x30, &older), Err(CodecError::Damaged));
        assert_eq!(decode_as::<Old>(0x31, &newer), Err(CodecError::Damaged));
        assert_eq!(decode_as::<Old>(0x40, &older), Err(CodecError::Format(0x30)));
    }
}
