//! How long what failed is avoided: a time that grows, and ends.

use crate::time::{Span, Time};

/// How long a port or path that failed is avoided where there is another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cooldown {
    /// After the first failure.
    pub first: Span,
    /// After many; each one after the first doubles the time up to this.
    pub most: Span,
}

impl Default for Cooldown {
    fn default() -> Self {
        Self { first: Span::ms(100), most: Span::s(10) }
    }
}

/// What is known of a port or path. It is avoided for a while after a failure, or after it came back from one, and then tried with real work;
/// it counts as well again when it has worked for as long as it was last avoided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Health {
    failures: u32,
    until: Time,
    last: Span,
}

impl Health {
    /// It failed.
    pub fn failed(&mut self, now: Time, cooldown: Cooldown) {
        let times = 1u64.checked_shl(self.failures).unwrap_or(u64::MAX);
        self.failures = self.failures.saturating_add(1);
        self.last = Span(cooldown.first.0.saturating_mul(times).min(cooldown.most.0));
        self.until = self.until.max(Time(now.0.saturating_add(self.last.0)));
    }
    /// It is there again after a failure.
    pub fn returned(&mut self, now: Time) {
        if self.failures > 0 {
            self.until = self.until.max(now + self.last);
        }
    }
    /// It works.
    pub fn worked(&mut self, now: Time) {
        if self.failures > 0 && now.0 >= self.until.0.saturating_add(self.last.0) {
            *self = Self::default();
        }
    }
    /// Until when it is avoided; in the past if it is not.
    pub fn until(&self) -> Time {
        self.until
    }
    /// Whether it has failed lately.
    pub fn is_doubtful(&self) -> bool {
        self.failures > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn avoided_longer_each_time_and_never_for_ever(
            steps in prop::collection::vec((0u64..400, any::<bool>()), 1..60),
            (first, most) in (1u64..50, 50u64..500),
        ) {
            let cooldown = Cooldown { first: Span(first), most: Span(most) };
            let (mut health, mut now) = (Health::default(), Time(0));
            for (wait, fails) in steps {
                now += Span(wait);
                let before = health;
                if fails {
                    health.failed(now, cooldown);
                    prop_assert!(health.until() >= now + Span(first) && health.until() <= now.max(before.until()) + Span(most));
                    let longer = before.last.0 * 2 <= health.last.0 || health.last == cooldown.most;
                    prop_assert!(longer || !before.is_doubtful());
                } else {
                    health.worked(now);
                    prop_assert!(health == before || !health.is_doubtful() && now >= before.until());
                }
            }
            // Left alone it is well again.
            health.worked(now + Span(3 * most));
            prop_assert_eq!(health, Health::default());
        }
    }

    #[test]
    fn a_hundred_failures_do_not_overflow() {
        let mut health = Health::default();
        for _ in 0..100 {
            health.failed(Time(u64::MAX - 5), Cooldown { first: Span(u64::MAX), most: Span(u64::MAX) });
        }
        assert_eq!(health.until(), Time(u64::MAX));
    }
}
