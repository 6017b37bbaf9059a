//! Who posts next on a port.

use crate::time::Time;
use std::collections::{BTreeMap, VecDeque};

/// A transfer's share of one port.
pub type JobId = u32;

/// What an order policy knows of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Job {
    /// Its name.
    pub id: JobId,
    /// Whose it is.
    pub tenant: u32,
    /// When its request came to this node.
    pub arrived: Time,
    /// Bytes not yet posted.
    pub left: u64,
}

/// A queue, not a sort key: deficit round-robin, for one, has no key.
pub trait Order: Send {
    /// A job has bytes to post; it is not in the queue.
    fn push(&mut self, job: Job);
    /// The job to post from, and how many bytes at most before the next question. The job stays in the queue.
    fn next(&mut self, now: Time) -> Option<(JobId, u64)>;
    /// The job has more (or fewer) bytes left; it is in the queue.
    fn update(&mut self, id: JobId, left: u64);
    /// The job leaves the queue: all posted, blocked or ended.
    fn remove(&mut self, id: JobId);
}

/// Names of the order policies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OrderPolicy {
    /// [`Fifo`].
    #[default]
    Fifo,
    /// [`ShortestRemaining`].
    ShortestRemaining,
}

impl OrderPolicy {
    /// A queue of its own for one port.
    pub fn build(self) -> Box<dyn Order> {
        match self {
            Self::Fifo => Box::<Fifo>::default(),
            Self::ShortestRemaining => Box::<ShortestRemaining>::default(),
        }
    }
}

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

/// Fewest bytes left first, ties by arrival: least mean completion time on one link (Schrage 1968). Asks again every
/// [`ShortestRemaining::QUANTUM`] bytes. A long transfer can wait for as long as shorter ones keep coming.
#[derive(Debug, Default)]
pub struct ShortestRemaining {
    queue: BTreeMap<(u64, Time, JobId), ()>,
    keys: BTreeMap<JobId, (u64, Time)>,
}

impl ShortestRemaining {
    /// Bytes posted before the order is asked again.
    pub const QUANTUM: u64 = 8 << 20;
}

impl Order for ShortestRemaining {
    fn push(&mut self, job: Job) {
        self.keys.insert(job.id, (job.left, job.arrived));
        self.queue.insert((job.left, job.arrived, job.id), ());
    }
    fn next(&mut self, _now: Time) -> Option<(JobId, u64)> {
        self.queue.first_key_value().map(|((_, _, id), ())| (*id, Self::QUANTUM))
    }
    fn update(&mut self, id: JobId, left: u64) {
        if let Some((old, arrived)) = self.keys.get_mut(&id) {
            self.queue.remove(&(*old, *arrived, id));
            *old = left;
            self.queue.insert((left, *arrived, id), ());
        }
    }
    fn remove(&mut self, id: JobId) {
        if let Some((left, arrived)) = self.keys.remove(&id) {
            self.queue.remove(&(left, arrived, id));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Runs jobs (arrival, bytes) through a policy on a link that posts `slice` bytes a step; returns the order of ends and the waits.
    fn serve(order: &mut dyn Order, jobs: &[(u64, u64)], slice: u64) -> Vec<(JobId, u64)> {
        let mut left: Vec<u64> = jobs.iter().map(|j| j.1).collect();
        let (mut now, mut next, mut ends) = (0, 0, Vec::new());
        while ends.len() < jobs.len() {
            while next < jobs.len() && jobs[next].0 <= now {
                let (arrived, left) = jobs[next];
                order.push(Job { id: next as u32, tenant: 0, arrived: Time(arrived), left });
                next += 1;
            }
            let Some((id, most)) = order.next(Time(now)) else {
                now = jobs[next].0;
                continue;
            };
            let n = left[id as usize].min(most).min(slice);
            assert!(n > 0, "a served job has bytes left");
            left[id as usize] -= n;
            now += n;
            if left[id as usize] == 0 {
                order.remove(id);
                ends.push((id, now));
            } else {
                order.update(id, left[id as usize]);
            }
        }
        assert_eq!(order.next(Time(now)), None);
        ends
    }

    fn jobs() -> impl Strategy<Value = Vec<(u64, u64)>> {
        proptest::collection::vec((0u64..50, 1u64..100), 1..20).prop_map(|mut jobs| {
            jobs.sort();
            jobs
        })
    }

    proptest! {
        #[test]
        fn fifo_ends_in_arrival_order(jobs in jobs()) {
            let ends = serve(&mut Fifo::default(), &jobs, 7);
            prop_assert!(ends.windows(2).all(|w| w[0].0 < w[1].0));
        }

        #[test]
        fn shortest_remaining_has_the_least_mean_end(jobs in jobs()) {
            let mean = |ends: &[(JobId, u64)]| ends.iter().map(|e| e.1).sum::<u64>();
            let srpt = serve(&mut ShortestRemaining::default(), &jobs, 1);
            let fifo = serve(&mut Fifo::default(), &jobs, 1);
            prop_assert!(mean(&srpt) <= mean(&fifo));
            // Work conservation: both are done at the same time.
            prop_assert_eq!(srpt.last().map(|e| e.1), fifo.last().map(|e| e.1));
        }
    }
}
