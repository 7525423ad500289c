//! Bounds on what comes from outside, each with its unit last. The command line documents them to users.

/// The longest key. Keys lie in memory, in frames and in ledger rows.
pub const KEY_BYTES_MAX: usize = 1024;
/// The longest value.
pub const VALUE_BYTES_MAX: usize = 1024 * 1024;
/// The largest conditional batch, keys and values together.
pub const BATCH_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The most checks and writes in one batch.
pub const BATCH_ITEMS_MAX: usize = 4096;
/// The largest frame between nodes or on the control socket: a batch and its surroundings fit twice.
pub const FRAME_BYTES_MAX: usize = 8 * 1024 * 1024;
/// The largest datagram: one Ethernet frame less IP and UDP headers.
pub const DATAGRAM_BYTES_MAX: usize = 1432;
/// The longest table, group, node or zone name.
pub const NAME_BYTES_MAX: usize = 128;
/// The most fragments of a table.
pub const FRAGMENTS_MAX: u16 = 1024;
/// How often the number of a table's fragments can change.
pub const ERA_MAX: u16 = 2047;
/// Where a node listens unless it is told otherwise, TCP and UDP.
pub const PORT: u16 = 7474;

/// Cuts a text to at most so many bytes, between two characters.
pub fn shorten(text: &mut String, bytes_max: usize) {
    let end = (0..=bytes_max.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    text.truncate(end.unwrap_or(0));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_between_two_characters() {
        for (most, expected) in [(0, ""), (1, "a"), (2, "a"), (3, "aü"), (9, "aü")] {
            let mut text = "aü".to_string();
            shorten(&mut text, most);
            assert_eq!(text, expected);
        }
    }
}
