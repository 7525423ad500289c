use base::FRAME_BYTES_MAX;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// The first byte of every frame and stored value of ours: the version of its form.
pub const FORMAT: u8 = 2;

/// How much of an encoding buffer is kept.
const BUFFER_BYTES_KEPT: usize = 8 * 1024 * 1024;

/// Bytes that cannot be taken, or a value that cannot be sent. Nothing was changed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CodecError {
    /// No bytes at all.
    #[error("an empty frame")]
    Empty,
    /// Another program version's form.
    #[error("a frame of form {0}; this program reads form {FORMAT}: run the same version on all nodes")]
    Format(u8),
    /// Damaged, or not meant for this.
    #[error("a damaged frame")]
    Damaged,
    /// Over `FRAME_BYTES_MAX`.
    #[error("a frame of {0} bytes; at most {FRAME_BYTES_MAX} are taken")]
    TooLarge(usize),
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

/// Decodes a frame; bytes left over are damage.
pub fn decode<T: for<'a> Deserialize<'a>>(bytes: &[u8]) -> Result<T, CodecError> {
    if bytes.len() > FRAME_BYTES_MAX {
        return Err(CodecError::TooLarge(bytes.len()));
    }
    match bytes.split_first() {
        None => Err(CodecError::Empty),
        Some((&FORMAT, rest)) => match postcard::take_from_bytes(rest) {
            Ok((value, [])) => Ok(value),
            _ => Err(CodecError::Damaged),
        },
        Some((form, _)) => Err(CodecError::Format(*form)),
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
        assert_eq!(decode::<(u64, String)>(&[9, 1]), Err(CodecError::Format(9)));
        assert!(matches!(encode(&vec![0u8; FRAME_BYTES_MAX + 1]), Err(CodecError::TooLarge(_))));
    }
}
