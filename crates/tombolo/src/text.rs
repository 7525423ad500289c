//! Small things between bytes and people.

use std::fmt::Write;

/// Shows bytes on one line: text as it is, the rest as \t \n \\ \xNN.
pub(crate) fn escape(bytes: &[u8]) -> String {
    let mut out = String::new();
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\t' => out.push_str("\\t"),
                '\n' => out.push_str("\\n"),
                '\\' => out.push_str("\\\\"),
                c if c.is_control() => c.to_string().bytes().for_each(|b| hex(&mut out, b)),
                c => out.push(c),
            }
        }
        chunk.invalid().iter().for_each(|b| hex(&mut out, *b));
    }
    out
}

fn hex(out: &mut String, byte: u8) {
    let _ = write!(out, "\\x{byte:02x}");
}

/// Reads 500ms, 30s, 10m, 2h, 7d as milliseconds.
pub(crate) fn duration_ms(text: &str) -> Result<u64, String> {
    let units = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
    let read = units.iter().find_map(|(unit, ms)| {
        let n: u64 = text.strip_suffix(unit)?.parse().ok()?;
        n.checked_mul(*ms)
    });
    read.filter(|ms| *ms > 0).ok_or_else(|| format!("{text:?} is not a duration; write 500ms, 30s, 10m, 2h or 7d"))
}

/// Reads 512, 64KiB, 10MiB, 1.5GiB, 2TiB as bytes.
pub(crate) fn size_bytes(text: &str) -> Result<u64, String> {
    let units = [("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40), ("B", 0), ("", 0)];
    let read = units.iter().find_map(|(unit, shift)| {
        let n: f64 = text.strip_suffix(unit)?.trim_end().parse().ok()?;
        let bytes = n * (1u64 << shift) as f64;
        (1.0..9e18).contains(&bytes).then_some(bytes as u64)
    });
    read.ok_or_else(|| format!("{text:?} is not a size; write 512, 64KiB, 10MiB, 1.5GiB or 2TiB"))
}

/// A size for people: three digits or so.
pub(crate) fn bytes_text(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let step = (0..UNITS.len() - 1).find(|step| bytes >> (10 * step) < 1024).unwrap_or(UNITS.len() - 1);
    let size = bytes as f64 / (1u64 << (10 * step)) as f64;
    if step == 0 { format!("{bytes} B") } else { format!("{size:.1} {}", UNITS[step]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_stay_on_one_line_and_can_be_told_apart() {
        assert_eq!(escape(b"a\tb\nc\\d\xff\x01 \xc3\xbc"), "a\\tb\\nc\\\\d\\xff\\x01 ü");
    }

    #[test]
    fn sizes() {
        assert_eq!((size_bytes("512"), size_bytes("7B"), size_bytes("64KiB")), (Ok(512), Ok(7), Ok(65_536)));
        assert_eq!((size_bytes("1.5GiB"), size_bytes("2 TiB")), (Ok(3 << 29), Ok(2 << 40)));
        for bad in ["", "0", "-1MiB", "MiB", "10MB", "nan", "inf", "1e30TiB"] {
            assert!(size_bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations() {
        assert_eq!(duration_ms("500ms"), Ok(500));
        assert_eq!(duration_ms("2h"), Ok(7_200_000));
        for bad in ["", "5", "s", "-1s", "0s", "99999999999999999999d"] {
            assert!(duration_ms(bad).is_err(), "{bad}");
        }
    }
}
