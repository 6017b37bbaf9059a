//! Who posts next on a port.

mod deadline;
mod deficit;
mod fifo;
mod shortest;
mod sorted;
mod strict;

pub use deadline::{EarliestDeadline, Slo};
pub use deficit::{DeficitRoundRobin, Shares};
pub use fifo::Fifo;
pub use shortest::ShortestRemaining;
pub use strict::{Priorities, StrictPriority};

use super::Own;
use crate::time::Time;

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
    /// Tokens of its request's prompt.
    pub tokens: u32,
    /// Bytes not yet posted.
    pub left: u64,
}

/// A queue, not a sort key: deficit round-robin, for one, has no key.
///
/// The engine asks at every completion and arrival that leaves room in the window, posts, and says what it posted. A job that it cannot
/// post from (its send queue is full) it takes out and pushes again later. A choice that is not in the queue is not trusted: nothing is
/// posted until the next question.
pub trait Order: Send {
    /// A job has bytes to post; it is not in the queue.
    fn push(&mut self, job: Job);
    /// The job to post from, and how many bytes at most before the next question. The job stays in the queue. At least one work request is
    /// posted, whatever its size.
    fn next(&mut self, now: Time) -> Option<(JobId, u64)>;
    /// So many bytes of a job in the queue were posted; `update` or `remove` follows.
    fn posted(&mut self, id: JobId, bytes: u64) {
        let _ = (id, bytes);
    }
    /// The job has more (or fewer) bytes left; it is in the queue.
    fn update(&mut self, id: JobId, left: u64);
    /// The job leaves the queue: all posted, blocked or ended.
    fn remove(&mut self, id: JobId);
}

/// Names of the order policies, with their parameters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum OrderPolicy {
    /// [`Fifo`].
    #[default]
    Fifo,
    /// [`ShortestRemaining`].
    ShortestRemaining,
    /// [`EarliestDeadline`].
    EarliestDeadline(Slo),
    /// [`DeficitRoundRobin`].
    DeficitRoundRobin(Shares),
    /// [`StrictPriority`].
    StrictPriority(Priorities),
    /// One that is not of this crate.
    Own(Own<dyn Order>),
}

impl OrderPolicy {
    /// A queue of its own for one port.
    pub fn build(&self) -> Box<dyn Order> {
        match self {
            Self::Fifo => Box::<Fifo>::default(),
            Self::ShortestRemaining => Box::<ShortestRemaining>::default(),
            Self::EarliestDeadline(slo) => Box::new(EarliestDeadline::new(slo.clone())),
            Self::DeficitRoundRobin(shares) => Box::new(DeficitRoundRobin::new(shares.clone())),
            Self::StrictPriority(priorities) => Box::new(StrictPriority::new(priorities.clone())),
            Self::Own(own) => own.make(0),
        }
    }
}

#[cfg(test)]
pub(super) mod harness {
    use super::*;
    use proptest::prelude::*;

    /// A job to come: when, whose, of how many tokens, how many bytes.
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct Coming {
        pub at: u64,
        pub tenant: u32,
        pub tokens: u32,
        pub bytes: u64,
    }

    pub(crate) fn jobs() -> impl Strategy<Value = Vec<Coming>> {
        let one = (0u64..50, 0u32..4, 1u32..50, 1u64..100).prop_map(|(at, tenant, tokens, bytes)| Coming {
            at,
            tenant,
            tokens,
            bytes,
        });
        proptest::collection::vec(one, 1..20).prop_map(|mut jobs| {
            jobs.sort_by_key(|job| job.at);
            jobs
        })
    }

    /// Runs jobs through a policy on a link of a byte a tick, which posts `slice` bytes at a time. Calls `each` at every posting with the
    /// time, the jobs that wait (by index), the one chosen, and its bytes. Returns the order of ends and their times.
    pub(crate) fn serve(
        order: &mut dyn Order,
        jobs: &[Coming],
        slice: u64,
        mut each: impl FnMut(u64, &[JobId], JobId, u64),
    ) -> Vec<(JobId, u64)> {
        let mut left: Vec<u64> = jobs.iter().map(|job| job.bytes).collect();
        let (mut now, mut next, mut ends) = (0, 0, Vec::new());
        let mut waiting: Vec<JobId> = Vec::new();
        while ends.len() < jobs.len() {
            while next < jobs.len() && jobs[next].at <= now {
                let Coming { at, tenant, tokens, bytes } = jobs[next];
                order.push(Job { id: next as u32, tenant, arrived: Time(at), tokens, left: bytes });
                waiting.push(next as u32);
                next += 1;
            }
            let Some((id, most)) = order.next(Time(now)) else {
                // Work conservation.
                assert!(waiting.is_empty(), "jobs wait and none is chosen");
                now = jobs[next].at;
                continue;
            };
            assert!(waiting.contains(&id), "a job that does not wait was chosen");
            let n = left[id as usize].min(most).min(slice).max(1);
            each(now, &waiting, id, n);
            left[id as usize] -= n;
            now += n;
            order.posted(id, n);
            if left[id as usize] == 0 {
                order.remove(id);
                waiting.retain(|other| *other != id);
                ends.push((id, now));
            } else {
                order.update(id, left[id as usize]);
            }
        }
        assert_eq!(order.next(Time(now)), None);
        ends
    }

    proptest! {
        /// A job that is taken out and pushed again, as one whose send queue is full, is lost by no policy, and none is left behind.
        #[test]
        fn every_policy_conserves_work(jobs in jobs(), slice in 1u64..40, quantum in 1u64..60) {
            let policies = [
                OrderPolicy::Fifo,
                OrderPolicy::ShortestRemaining,
                OrderPolicy::EarliestDeadline(Slo::default()),
                OrderPolicy::DeficitRoundRobin(Shares { quantum, weights: [(1, 3)].into() }),
                OrderPolicy::StrictPriority(Priorities { tenants: [(1, 3)].into() }),
            ];
            let mut last = Vec::new();
            for policy in policies {
                let ends = serve(&mut *policy.build(), &jobs, slice, |_, _, _, _| ());
                prop_assert_eq!(ends.len(), jobs.len());
                last.push(ends.last().map(|end| end.1));
                let mut order = policy.build();
                for (id, job) in (0u32..).zip(&jobs) {
                    let Coming { at, tenant, tokens, bytes } = *job;
                    order.push(Job { id, tenant, arrived: Time(at), tokens, left: bytes });
                }
                let mut seen = Vec::new();
                while let Some((id, _)) = order.next(Time(99)) {
                    order.remove(id);
                    seen.push(id);
                }
                seen.sort_unstable();
                prop_assert!(seen.into_iter().eq(0..jobs.len() as u32));
            }
            prop_assert!(last.windows(2).all(|w| w[0] == w[1]), "{:?}", last);
        }
    }
}
