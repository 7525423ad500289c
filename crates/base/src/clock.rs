use serde::{Deserialize, Serialize};
use std::ops::{Add, Sub};

/// Nanoseconds since the process (or the simulated world) began; never goes back. Our own type, so that it can be
/// simulated.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Instant(pub u64);

/// A length of time in nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Serialize, Deserialize)]
pub struct Span(pub u64);

impl Span {
    /// A span of `ms` milliseconds.
    pub const fn ms(ms: u64) -> Span {
        Span(ms * 1_000_000)
    }

    /// Whole milliseconds, rounded down.
    pub const fn as_ms(self) -> u64 {
        self.0 / 1_000_000
    }
}

impl Add<Span> for Instant {
    type Output = Instant;

    fn add(self, span: Span) -> Instant {
        Instant(self.0.saturating_add(span.0))
    }
}

impl Sub<Instant> for Instant {
    type Output = Span;

    /// The time since `earlier`; zero when it lies in the future.
    fn sub(self, earlier: Instant) -> Span {
        Span(self.0.saturating_sub(earlier.0))
    }
}

/// The wall clock: milliseconds since 1970. It may jump; only Hlc stamps and expiry look at it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Serialize, Deserialize)]
pub struct WallMs(pub u64);

/// Both clocks at the moment an input is handled.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Now {
    /// For waits and deadlines.
    pub mono: Instant,
    /// For stamps.
    pub wall: WallMs,
}

/// A hybrid logical clock (Kulkarni et al., 2014): 48 bits of wall milliseconds, 16 bits of count.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Hlc(pub u64);

impl Hlc {
    /// The smallest stamp of that millisecond.
    pub const fn from_wall(wall: WallMs) -> Hlc {
        let most = u64::MAX >> 16;
        Hlc((if wall.0 < most { wall.0 } else { most }) << 16)
    }

    /// The stamp's wall part.
    pub const fn wall(self) -> WallMs {
        WallMs(self.0 >> 16)
    }

    /// The next stamp.
    pub const fn next(self) -> Hlc {
        Hlc(self.0.saturating_add(1))
    }
}

impl std::fmt::Debug for Hlc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.0 >> 16, self.0 & 0xffff)
    }
}
