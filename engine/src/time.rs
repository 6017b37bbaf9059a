//! Time as a node sees it: integer picoseconds on its own clock.

use std::ops::{Add, AddAssign, Sub};

/// A reading of one node's clock, in picoseconds. Readings never cross the wire; spans may.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub u64);

/// A length of time in picoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(pub u64);

impl Span {
    /// Nanoseconds.
    pub const fn ns(n: u64) -> Self {
        Self(n * 1_000)
    }
    /// Microseconds.
    pub const fn us(n: u64) -> Self {
        Self(n * 1_000_000)
    }
    /// Milliseconds.
    pub const fn ms(n: u64) -> Self {
        Self(n * 1_000_000_000)
    }
    /// Seconds.
    pub const fn s(n: u64) -> Self {
        Self(n * 1_000_000_000_000)
    }
    /// In seconds, for reports.
    pub fn as_secs(self) -> f64 {
        self.0 as f64 / 1e12
    }
}

impl Time {
    /// The start of the clock.
    pub const ZERO: Self = Self(0);
    /// Later than every reading.
    pub const NEVER: Self = Self(u64::MAX);
    /// The earliest of some deadlines, where [`Time::NEVER`] stands for none.
    pub fn earliest(deadlines: [Self; 3]) -> Option<Self> {
        let [a, b, c] = deadlines;
        let at = a.min(b).min(c);
        (at != Self::NEVER).then_some(at)
    }
    /// How long ago `earlier` was; zero if it lies ahead.
    pub fn since(self, earlier: Self) -> Span {
        Span(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Span> for Time {
    type Output = Self;
    fn add(self, span: Span) -> Self {
        Self(self.0.saturating_add(span.0))
    }
}
impl AddAssign<Span> for Time {
    fn add_assign(&mut self, span: Span) {
        *self = *self + span;
    }
}
impl Sub<Span> for Time {
    type Output = Self;
    fn sub(self, span: Span) -> Self {
        Self(self.0.saturating_sub(span.0))
    }
}
impl Add for Span {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}
impl std::ops::Mul<u64> for Span {
    type Output = Self;
    fn mul(self, by: u64) -> Self {
        Self(self.0.saturating_mul(by))
    }
}
