//! Earliest deadline first: the transfer with the least TTFT slack.

use super::sorted::Sorted;
use super::{Job, JobId, Order};
use crate::time::{Span, Time};
use std::collections::BTreeMap;

/// How soon after its arrival a request is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slo {
    /// From the request's arrival at this node to its first token, if its tenant has no entry.
    pub ttft: Span,
    /// On top for each token of the prompt: long prompts are given longer.
    pub per_token: Span,
    /// Other times from arrival to first token, by tenant.
    pub tenants: BTreeMap<u32, Span>,
}

impl Default for Slo {
    fn default() -> Self {
        Self { ttft: Span::s(1), per_token: Span(0), tenants: BTreeMap::new() }
    }
}

impl Slo {
    /// When a job is due.
    pub fn deadline(&self, job: &Job) -> Time {
        let ttft = self.tenants.get(&job.tenant).unwrap_or(&self.ttft);
        let extra = self.per_token.0.saturating_mul(job.tokens.into());
        Time(job.arrived.0.saturating_add(ttft.0).saturating_add(extra))
    }
}

/// Earliest deadline first, ties by arrival. Promises that on one port, if the transfers that are there can all be over by their deadlines in
/// any order, they are in this one (Jackson 1955; Liu and Layland 1973). With more load than fits it does badly: what is late already goes
/// first. With one SLO for all and nothing per token it is [`super::Fifo`].
#[derive(Debug)]
pub struct EarliestDeadline {
    slo: Slo,
    queue: Sorted<Time>,
}

impl EarliestDeadline {
    /// With these deadlines.
    pub fn new(slo: Slo) -> Self {
        Self { slo, queue: Sorted::default() }
    }
}

impl Order for EarliestDeadline {
    fn push(&mut self, job: Job) {
        self.queue.push(self.slo.deadline(&job), &job);
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
    use super::super::harness::{Coming, jobs, serve};
    use super::super::{Fifo, ShortestRemaining};
    use super::*;
    use proptest::prelude::*;

    fn late(slo: &Slo, jobs: &[Coming], ends: &[(JobId, u64)]) -> usize {
        let due = |id: u32| {
            let Coming { at, tenant, tokens, bytes } = jobs[id as usize];
            slo.deadline(&Job { id, tenant, arrived: Time(at), tokens, left: bytes })
        };
        ends.iter().filter(|(id, end)| Time(*end) > due(*id)).count()
    }

    /// Whether all can be in time: for every interval between an arrival and a deadline, what must be done in it fits (the processor demand
    /// criterion of Baruah et al. 1990, exact for a preemptible link).
    fn feasible(slo: &Slo, jobs: &[Coming]) -> bool {
        let spans: Vec<(u64, u64, u64)> = (0u32..)
            .zip(jobs)
            .map(|(id, job)| {
                let Coming { at, tenant, tokens, bytes } = *job;
                let due = slo.deadline(&Job { id, tenant, arrived: Time(at), tokens, left: bytes });
                (at, due.0, bytes)
            })
            .collect();
        spans.iter().all(|(from, _, _)| {
            spans.iter().all(|(_, to, _)| {
                let inside = spans.iter().filter(|(at, due, _)| at >= from && due <= to);
                inside.map(|span| span.2).sum::<u64>() <= to.saturating_sub(*from) || to < from
            })
        })
    }

    proptest! {
        #[test]
        fn meets_all_deadlines_that_any_order_meets(
            jobs in jobs(),
            ttft in 1u64..800,
            per_token in 0u64..30,
            tenants in proptest::collection::btree_map(0u32..4, (1u64..800).prop_map(Span), 0..4),
        ) {
            let slo = Slo { ttft: Span(ttft), per_token: Span(per_token), tenants };
            let ends = serve(&mut EarliestDeadline::new(slo.clone()), &jobs, 1, |_, _, _, _| ());
            prop_assert_eq!(late(&slo, &jobs, &ends) == 0, feasible(&slo, &jobs));
            let others: [&mut dyn Order; 2] = [&mut Fifo::default(), &mut ShortestRemaining::default()];
            for other in others {
                let theirs = serve(other, &jobs, 1, |_, _, _, _| ());
                prop_assert!(late(&slo, &jobs, &theirs) > 0 || late(&slo, &jobs, &ends) == 0);
            }
        }
    }

    #[test]
    fn absurd_spans_do_not_wrap() {
        let slo = Slo { ttft: Span(u64::MAX), per_token: Span(u64::MAX), ..Slo::default() };
        let job = Job { id: 0, tenant: 0, arrived: Time(7), tokens: 3, left: 1 };
        assert_eq!(slo.deadline(&job), Time(u64::MAX));
    }
}
