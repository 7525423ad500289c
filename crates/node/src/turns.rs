//! Copies come to keep their records as their tables' definitions say, a few at a time: each of them reads, or writes anew, all that it
//! has.

use crate::balance::{SOON, Told};
use crate::io::Effect;
use crate::node::Node;
use base::Now;
use replica::Input;

/// So many copies are on their way at once.
const TURNS_MAX: usize = 4;

impl Node {
    /// Has some of those set out that are to.
    pub(crate) fn turn_copies(&mut self, now: Now, out: &mut Vec<Effect>) {
        let (mut under_way, mut waiting) = (0, Vec::new());
        // Where there is no room those that take some wait, and those that make room do not wait for them.
        let most = if self.is_full() { usize::MAX } else { TURNS_MAX };
        for fragment in self.copies.ids() {
            match self.copies.with(fragment, |c| (c.is_turning(), c.may_turn())) {
                Some((true, _)) => under_way += 1,
                Some((_, true)) => waiting.push(fragment),
                _ => {}
            }
        }
        if under_way > 0 || !waiting.is_empty() {
            self.chores_at = self.chores_at.min(now.mono + SOON);
        }
        for fragment in waiting.into_iter().take(most.saturating_sub(under_way)) {
            self.feed(now, fragment, Input::Turn, out);
        }
    }

    /// For whoever asks how everything is: what is led here, and how many copies here are not kept as they are to be.
    pub(crate) fn survey(&self, now: Now) -> Told {
        let odd = |fragment: &base::FragmentId| self.copies.with(*fragment, replica::Copy::is_odd).unwrap_or(false);
        let odd = self.copies.ids().iter().filter(|fragment| odd(fragment)).count();
        Told { odd: u32::try_from(odd).unwrap_or(u32::MAX), tallies: self.tallies(now), ..self.tell() }
    }
}
