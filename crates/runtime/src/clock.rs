use base::{Instant, Now, Span, WallMs};
use rustix::time::{ClockId, clock_gettime};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The machine's clocks, as the cores see them. The one for waits and leases counts on while the machine is suspended
/// (`CLOCK_BOOTTIME`): a lease must not outlive a closed lid.
#[derive(Clone, Copy)]
pub struct Clock {
    origin: u64,
}

/// Nanoseconds since the machine was started.
fn boot_ns() -> u64 {
    let t = clock_gettime(ClockId::Boottime);
    (t.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(t.tv_nsec as u64)
}

impl Default for Clock {
    fn default() -> Self {
        Clock { origin: boot_ns() }
    }
}

impl Clock {
    /// Both clocks now. The first nanosecond is 1 s, so that subtracting a wait never reaches below zero.
    pub fn now(&self) -> Now {
        let mono = Instant(boot_ns().saturating_sub(self.origin)) + Span::ms(1000);
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now { mono, wall: WallMs(wall.as_millis() as u64) }
    }

    /// How long it is from `now` to `at`.
    pub fn until(&self, now: Instant, at: Instant) -> Duration {
        Duration::from_nanos((at - now).0)
    }
}
