//! Fewest bytes left first.

use super::sorted::Sorted;
use super::{Job, JobId, Order};
use crate::time::Time;

/// Fewest bytes left first, ties by arrival: least mean completion time on one link (Schrage 1968). Asks again every
/// [`ShortestRemaining::QUANTUM`] bytes. A long transfer can wait for as long as shorter ones keep coming.
#[derive(Debug, Default)]
pub struct ShortestRemaining {
    queue: Sorted<u64>,
}

impl ShortestRemaining {
    /// Bytes posted before the order is asked again.
    pub const QUANTUM: u64 = 8 << 20;
}

impl Order for ShortestRemaining {
    fn push(&mut self, job: Job) {
        self.queue.push(job.left, &job);
    }
    fn next(&mut self, _now: Time) -> Option<(JobId, u64)> {
        self.queue.first().map(|id| (id, Self::QUANTUM))
    }
    fn update(&mut self, id: JobId, left: u64) {
        self.queue.change(id, left);
    }
    fn remove(&mut self, id: JobId) {
        self.queue.remove(id);
    }
}

#[cfg(test)]
mod tests {
    use super::super::Fifo;
    use super::super::harness::{jobs, serve};
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn has_the_least_mean_end(jobs in jobs()) {
            let sum = |ends: &[(JobId, u64)]| ends.iter().map(|e| e.1).sum::<u64>();
            let shortest = serve(&mut ShortestRemaining::default(), &jobs, 1, |_, _, _, _| ());
            let fifo = serve(&mut Fifo::default(), &jobs, 1, |_, _, _, _| ());
            prop_assert!(sum(&shortest) <= sum(&fifo));
            // Work conservation: both are done at the same time.
            prop_assert_eq!(shortest.last().map(|e| e.1), fifo.last().map(|e| e.1));
        }
    }
}
