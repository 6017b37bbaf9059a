//! Which instances are left alone for a while after failures.

use crate::id::InstanceId;
use crate::policy::{Candidate, Retry};
use crate::time::{Span, Time};
use std::collections::BTreeMap;

/// What is held against an instance.
#[derive(Clone, Copy, Debug)]
struct Mark {
    failures: u32,
    until: Time,
}

/// Failures of instances since they last did well.
#[derive(Debug)]
pub(super) struct Health {
    retry: Retry,
    marks: BTreeMap<InstanceId, Mark>,
}

impl Health {
    pub(super) fn new(retry: Retry) -> Self {
        Self { retry, marks: BTreeMap::new() }
    }

    /// An instance had part in a failed transfer. Several that fail of the same cause count once.
    pub(super) fn failed(&mut self, instance: InstanceId, now: Time) {
        if self.retry.cooldown == Span(0) {
            return;
        }
        let mark = self.marks.entry(instance).or_insert(Mark { failures: 0, until: now });
        if now < mark.until {
            return;
        }
        let doubled = self.retry.cooldown * (1u64 << mark.failures.min(32));
        mark.until = now + doubled.min(self.retry.longest);
        mark.failures = mark.failures.saturating_add(1);
    }

    /// A request finished there.
    pub(super) fn well(&mut self, instance: InstanceId) {
        self.marks.remove(&instance);
    }

    /// Whether it gets no requests now.
    pub(super) fn avoided(&self, instance: InstanceId, now: Time) -> bool {
        self.marks.get(&instance).is_some_and(|mark| now < mark.until)
    }

    /// Those of a side that a request may go to: not those in `tried`, and none that is avoided, for as long as others are there. None if all
    /// are.
    pub(super) fn choice(
        &self,
        side: &[Candidate],
        tried: &[InstanceId],
        now: Time,
    ) -> Option<Vec<Candidate>> {
        if self.marks.is_empty() && tried.is_empty() {
            return None;
        }
        let keep = |right: &dyn Fn(&Candidate) -> bool| -> Vec<Candidate> {
            side.iter().filter(|c| right(c)).copied().collect()
        };
        let mut rest = keep(&|c| !tried.contains(&c.instance) && !self.avoided(c.instance, now));
        if rest.is_empty() {
            // One that failed others may do; the one that failed this request just now is the last choice.
            rest = keep(&|c| !tried.contains(&c.instance));
        }
        if rest.is_empty() {
            rest = keep(&|c| !self.avoided(c.instance, now));
        }
        (!rest.is_empty() && rest.len() < side.len()).then_some(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever happened, an instance is back within the longest cooldown, and no sooner than after the first one.
        #[test]
        fn nobody_is_left_alone_for_ever(gaps in proptest::collection::vec(0u64..5000, 1..60), cooldown in 1u64..100, longest in 100u64..2000) {
            let mut health = Health::new(Retry { attempts: 2, cooldown: Span(cooldown), longest: Span(longest) });
            let (one, mut now, mut last) = (InstanceId(1), Time::ZERO, Span(0));
            for gap in gaps {
                now += Span(gap);
                let fresh = !health.avoided(one, now);
                health.failed(one, now);
                prop_assert!(health.avoided(one, now));
                prop_assert!(!health.avoided(one, now + Span(longest)));
                if fresh {
                    prop_assert!(health.avoided(one, now + Span(cooldown - 1)));
                    let until = health.marks[&one].until.since(now);
                    prop_assert!(until >= last, "it grows");
                    last = until;
                }
            }
            health.well(one);
            prop_assert!(!health.avoided(one, now));
        }

        /// Somebody is always left to choose.
        #[test]
        fn a_side_is_never_empty(n in 1u64..6, bad in proptest::collection::vec(0u64..6, 0..8), tried in proptest::collection::vec(0u64..6, 0..4)) {
            let mut health = Health::new(Retry { attempts: 2, cooldown: Span::s(1), longest: Span::s(1) });
            bad.iter().for_each(|i| health.failed(InstanceId(*i), Time::ZERO));
            let side: Vec<Candidate> = (0..n).map(|i| Candidate::new(InstanceId(i), 0)).collect();
            let tried: Vec<InstanceId> = tried.into_iter().map(InstanceId).collect();
            let rest = health.choice(&side, &tried, Time::ZERO).unwrap_or_else(|| side.clone());
            prop_assert!(!rest.is_empty());
            let good = |c: &Candidate| !tried.contains(&c.instance) && !bad.contains(&c.instance.0);
            if side.iter().any(good) {
                prop_assert!(rest.iter().all(good));
                prop_assert_eq!(rest.len(), side.iter().filter(|c| good(c)).count());
            }
        }
    }

    #[test]
    fn without_a_cooldown_nobody_is_avoided() {
        let mut health = Health::new(Retry::default());
        health.failed(InstanceId(1), Time::ZERO);
        assert!(!health.avoided(InstanceId(1), Time::ZERO));
    }
}
