//! Records side by side, without gaps: what they take does not depend on how many came and went.

use crate::kept::Kept;
use bytes::Bytes;

/// How many lie in one piece: only the last grows, by doubling, until it is full.
const PIECE: usize = 1024;

/// Records by their places, which are all below how many there are.
#[derive(Default, Debug)]
pub(crate) struct Slab(Vec<Vec<(Bytes, Kept)>>);

fn split(at: u32) -> (usize, usize) {
    (at as usize / PIECE, at as usize % PIECE)
}

impl Slab {
    pub(crate) fn len(&self) -> usize {
        self.0.last().map_or(0, |last| (self.0.len() - 1) * PIECE + last.len())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &(Bytes, Kept)> {
        self.0.iter().flatten()
    }

    pub(crate) fn key(&self, at: u32) -> &Bytes {
        let (piece, place) = split(at);
        &self.0[piece][place].0
    }

    pub(crate) fn get(&self, at: u32) -> &(Bytes, Kept) {
        let (piece, place) = split(at);
        &self.0[piece][place]
    }

    pub(crate) fn get_mut(&mut self, at: u32) -> &mut Kept {
        let (piece, place) = split(at);
        &mut self.0[piece][place].1
    }

    /// Its place.
    pub(crate) fn push(&mut self, key: Bytes, kept: Kept) -> u32 {
        let at = self.len() as u32;
        match self.0.last_mut().filter(|last| last.len() < PIECE) {
            Some(last) => last.push((key, kept)),
            None => self.0.push(vec![(key, kept)]),
        }
        at
    }

    /// Takes a record out; the last comes to its place, unless it is that.
    pub(crate) fn remove(&mut self, at: u32) -> Option<Kept> {
        let last = self.0.last_mut()?;
        let moved = last.pop()?;
        if last.is_empty() {
            self.0.pop();
        }
        let (piece, place) = split(at);
        match self.0.get_mut(piece).and_then(|piece| piece.get_mut(place)) {
            Some(there) => Some(std::mem::replace(there, moved).1),
            None => Some(moved.1),
        }
    }
}
