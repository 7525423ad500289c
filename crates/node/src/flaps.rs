//! Peers that come and go: each return takes twice as long as the one before, so that one of them keeps nobody's view from
//! settling. Both ends of a link are told, and let each other in at the same time.

use base::{Instant, Span};

/// The wait of the second return within [`CALM`]; the first is free.
const FIRST_WAIT: Span = Span::ms(1_000);
/// The longest wait.
const WAIT_MAX: Span = Span::ms(30_000);
/// Who has stayed for so long has no past.
const CALM: Span = Span::ms(60_000);

/// What is remembered of one peer's coming and going.
#[derive(Default)]
pub(crate) struct Flaps {
    /// How often it left without a goodbye, each time within [`CALM`] of the time before.
    times: u32,
    left: Instant,
    held: Instant,
}

impl Flaps {
    /// It has left the view, and did not say goodbye.
    pub(crate) fn left(&mut self, now: Instant) {
        self.times = if now - self.left < CALM { self.times.saturating_add(1) } else { 1 };
        self.left = now;
    }

    /// It is linked again; how long it has to wait.
    pub(crate) fn back(&mut self, now: Instant) -> Span {
        if self.times < 2 || now - self.left >= CALM {
            return Span(0);
        }
        let wait = Span(FIRST_WAIT.0 << (self.times - 2).min(16)).min(WAIT_MAX);
        self.hold(now, wait);
        wait
    }

    /// It is not let in for so long, by this end's word or the other's.
    pub(crate) fn hold(&mut self, now: Instant, wait: Span) {
        self.held = self.held.max(now + wait.min(WAIT_MAX));
    }

    /// Until when it is not let in, if that is to come.
    pub(crate) fn held(&self, now: Instant) -> Option<Instant> {
        (self.held > now).then_some(self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_until_the_peer_has_stayed_for_a_while() {
        let at = |ms: u64| Instant((ms + 100_000) * 1_000_000);
        let mut flaps = Flaps::default();
        let waits: Vec<u64> = (0..8)
            .map(|n| {
                flaps.left(at(n * 40_000));
                flaps.back(at(n * 40_000 + 10)).as_ms()
            })
            .collect();
        assert_eq!(waits, [0, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]);
        assert_eq!(flaps.held(at(280_011)), Some(at(310_010)));
        assert_eq!(flaps.held(at(310_010)), None);
        assert_eq!(flaps.back(at(341_000)), Span(0), "it was away for a minute: that is no flapping");
        flaps.left(at(400_000));
        assert_eq!(flaps.back(at(400_001)), Span(0));
        flaps.hold(at(0), Span::ms(1_000_000));
        assert_eq!(flaps.held(at(0)), Some(at(30_000)), "nobody is held off for longer by another's word");
    }
}
