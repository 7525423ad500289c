use base::{Instant, Now, Span, WallMs};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The machine's clocks, as the cores see them.
#[derive(Clone, Copy)]
pub struct Clock {
    origin: std::time::Instant,
}

impl Default for Clock {
    fn default() -> Self {
        Clock { origin: std::time::Instant::now() }
    }
}

impl Clock {
    /// Both clocks now. The first nanosecond is 1 s, so that subtracting a wait never reaches below zero.
    pub fn now(&self) -> Now {
        let mono = Instant(self.origin.elapsed().as_nanos() as u64) + Span::ms(1000);
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now { mono, wall: WallMs(wall.as_millis() as u64) }
    }

    /// The machine's own instant for one of ours.
    pub fn instant(&self, at: Instant) -> std::time::Instant {
        self.origin + Duration::from_nanos((at - Instant(Span::ms(1000).0)).0)
    }
}
