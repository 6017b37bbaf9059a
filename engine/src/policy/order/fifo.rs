//! First come, first served.

use super::{Job, JobId, Order};
use crate::time::Time;
use std::collections::VecDeque;

/// First come, first served, by the time at which the request came to this node: a transfer that was blocked takes its old
/// place. Promises that no job waits for a later one.
#[derive(Debug, Default)]
pub struct Fifo {
    queue: VecDeque<(Time, JobId)>,
}

impl Order for Fifo {
    fn push(&mut self, job: Job) {
        let key = (job.arrived, job.id);
        match self.queue.back() {
            Some(last) if *last > key => {
                let at = self.queue.partition_point(|k| *k < key);
                self.queue.insert(at, key);
            }
            _ => self.queue.push_back(key),
        }
    }
    fn next(&mut self, _now: Time) -> Option<(JobId, u64)> {
        self.queue.front().map(|(_, id)| (*id, u64::MAX))
    }
    fn update(&mut self, _id: JobId, _left: u64) {}
    fn remove(&mut self, id: JobId) {
        if self.queue.front().is_some_and(|(_, first)| *first == id) {
            self.queue.pop_front();
        } else {
            self.queue.retain(|(_, other)| *other != id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::harness::{jobs, serve};
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ends_in_arrival_order(jobs in jobs()) {
            let ends = serve(&mut Fifo::default(), &jobs, 7, |_, _, _, _| ());
            prop_assert!(ends.windows(2).all(|w| w[0].0 < w[1].0));
        }
    }
}
