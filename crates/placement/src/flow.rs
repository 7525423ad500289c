//! Shortest augmenting paths, over whatever the nodes are.

use std::collections::VecDeque;

/// One step of a path: from, to, and by what.
pub(crate) type Hop<L> = (usize, usize, L);

/// Takes a step; `false`: it was the last one that was looked for.
pub(crate) type Say<'a, L> = &'a mut dyn FnMut(usize, L) -> bool;

/// A shortest path from one of `from` to where `ends` holds, by what `next` leads to.
pub(crate) fn path<L: Copy>(
    nodes: usize,
    from: impl IntoIterator<Item = usize>,
    next: impl Fn(usize, Say<'_, L>),
    ends: impl Fn(usize) -> bool,
) -> Option<Vec<Hop<L>>> {
    let mut came: Vec<Option<Hop<L>>> = vec![None; nodes];
    let mut seen = vec![false; nodes];
    let mut queue: VecDeque<usize> = from.into_iter().collect();
    queue.iter().for_each(|node| seen[*node] = true);
    while let Some(at) = queue.pop_front() {
        let mut found = None;
        next(at, &mut |to, label| {
            if !seen[to] {
                (seen[to], came[to]) = (true, Some((at, to, label)));
                queue.push_back(to);
                found = ends(to).then_some(to);
            }
            found.is_none()
        });
        if let Some(end) = found {
            let mut hops: Vec<Hop<L>> = std::iter::successors(came[end], |(from, ..)| came[*from]).collect();
            hops.reverse();
            return Some(hops);
        }
    }
    None
}
