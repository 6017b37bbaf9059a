//! Strict priority.

use super::sorted::Sorted;
use super::{Job, JobId, Order};
use crate::time::Time;
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// Who goes before whom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Priorities {
    /// By tenant, the highest first; 0 for those without an entry.
    pub tenants: BTreeMap<u32, u32>,
}

/// Highest priority first, arrival order within one. Promises that nothing of a lower priority is posted while something of a higher one
/// waits. What is posted already is not called back: a window of bytes may be ahead. A low priority can wait for ever.
#[derive(Debug)]
pub struct StrictPriority {
    priorities: Priorities,
    queue: Sorted<Reverse<u32>>,
}

impl StrictPriority {
    /// With these priorities.
    pub fn new(priorities: Priorities) -> Self {
        Self { priorities, queue: Sorted::default() }
    }
}

impl Order for StrictPriority {
    fn push(&mut self, job: Job) {
        let priority = self.priorities.tenants.get(&job.tenant).copied().unwrap_or(0);
        self.queue.push(Reverse(priority), &job);
    }
    fn next(&mut self, _now: Time) -> Option<(JobId, u64)> {
        self.queue.first().map(|id| (id, u64::MAX))
    }
    fn update(&mut self, _id: JobId, _left: u64) {}
    fn remove(&mut self, id: JobId) {
        self.queue.remove(id);
    }
}

#[cfg(test)]
mod tests {
    use super::super::harness::{jobs, serve};
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_lower_priority_is_posted_while_a_higher_one_waits(
            jobs in jobs(),
            slice in 1u64..40,
            tenants in proptest::collection::btree_map(0u32..4, 0u32..3, 0..4),
        ) {
            let of = |id: JobId| tenants.get(&jobs[id as usize].tenant).copied().unwrap_or(0);
            let mut order = StrictPriority::new(Priorities { tenants: tenants.clone() });
            serve(&mut order, &jobs, slice, |_, waiting, chosen, _| {
                assert!(waiting.iter().all(|other| of(*other) <= of(chosen)));
                // Within one, first come first served.
                assert!(waiting.iter().all(|other| of(*other) < of(chosen) || *other >= chosen));
            });
        }
    }
}
