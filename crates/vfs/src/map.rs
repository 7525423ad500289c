//! A file's map: sorted extents that do not overlap. Pure.

use crate::record::Extent;

/// Lays `new` over the sorted `map`: what it covers is cut away. What nothing refers to any more, [`unreferenced`] finds.
pub(crate) fn lay(map: &mut Vec<Extent>, new: Extent) {
    cut(map, new.at, new.at + u64::from(new.len));
    let at = map.partition_point(|e| e.at < new.at);
    map.insert(at, new);
}

/// Removes the bytes from `from` up to `to`.
pub(crate) fn cut(map: &mut Vec<Extent>, from: u64, to: u64) {
    let mut out = Vec::with_capacity(map.len() + 1);
    for e in map.drain(..) {
        let end = e.at + u64::from(e.len);
        if end <= from || e.at >= to {
            out.push(e);
            continue;
        }
        if e.at < from {
            out.push(Extent { len: (from - e.at) as u32, ..e });
        }
        if end > to {
            let gone = (to - e.at) as u32;
            out.push(Extent { at: to, len: e.len - gone, skip: e.skip + gone, ..e });
        }
    }
    *map = out;
}

/// The parts of the map within a range.
pub(crate) fn within(map: &[Extent], from: u64, to: u64) -> Vec<Extent> {
    let first = map.partition_point(|e| e.at + u64::from(e.len) <= from);
    map[first..]
        .iter()
        .take_while(|e| e.at < to)
        .map(|e| {
            let start = e.at.max(from);
            let end = (e.at + u64::from(e.len)).min(to);
            Extent { at: start, len: (end - start) as u32, skip: e.skip + (start - e.at) as u32, ..*e }
        })
        .collect()
}

/// The numbers that `before` names and `after` does not.
pub(crate) fn unreferenced(before: &[Extent], after: &[Extent]) -> Vec<Extent> {
    let mut gone: Vec<Extent> = before.iter().filter(|b| !after.iter().any(|a| a.id == b.id)).copied().collect();
    gone.sort_by_key(|e| e.id);
    gone.dedup_by_key(|e| e.id);
    gone
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(map: &[Extent], size: usize) -> Vec<u64> {
        let mut out = vec![0; size];
        for e in map {
            for i in 0..u64::from(e.len) {
                assert_eq!(out[(e.at + i) as usize], 0, "overlap");
                out[(e.at + i) as usize] = e.id << 32 | (u64::from(e.skip) + i);
            }
        }
        out
    }

    #[test]
    fn any_sequence_of_writes_and_cuts_reads_as_on_plain_bytes() {
        let (mut map, mut plain, mut x) = (Vec::new(), vec![0u64; 64], 12345u64);
        for id in 1..400 {
            x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let (at, len) = ((x >> 33) % 50, (x >> 50) % 13 + 1);
            if x.is_multiple_of(7) {
                cut(&mut map, at, at + len);
                plain[at as usize..(at + len) as usize].fill(0);
            } else {
                lay(&mut map, Extent { at, len: len as u32, id, skip: 0, small: false });
                (0..len).for_each(|i| plain[(at + i) as usize] = id << 32 | i);
            }
            assert!(map.is_sorted_by_key(|e| e.at));
            assert_eq!(bytes(&map, 64), plain);
            let part = within(&map, 10, 30);
            let mut want = plain.clone();
            want[..10].fill(0);
            want[30..].fill(0);
            assert_eq!(bytes(&part, 64), want);
        }
    }

    #[test]
    fn what_nothing_refers_to_is_found_once() {
        let e = |at, id| Extent { at, len: 4, id, skip: 0, small: true };
        let gone = unreferenced(&[e(0, 1), e(8, 2), e(16, 1), e(20, 3)], &[e(8, 2)]);
        assert_eq!(gone.iter().map(|e| e.id).collect::<Vec<_>>(), vec![1, 3]);
    }
}
