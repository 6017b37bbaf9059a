//! Deficit round-robin: tenants share a port by weight.

use super::{Job, JobId, Order};
use crate::time::Time;
use std::collections::{BTreeMap, VecDeque};

/// How tenants share a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shares {
    /// Bytes that a tenant of weight 1 may post in its turn, at least 1.
    pub quantum: u64,
    /// Weights by tenant, at least 1; 1 for those without an entry.
    pub weights: BTreeMap<u32, u32>,
}

impl Default for Shares {
    fn default() -> Self {
        Self { quantum: 8 << 20, weights: BTreeMap::new() }
    }
}

impl Shares {
    fn turn(&self, tenant: u32) -> i64 {
        let weight = self.weights.get(&tenant).copied().unwrap_or(1).max(1);
        let turn = self.quantum.max(1).saturating_mul(weight.into());
        i64::try_from(turn).unwrap_or(i64::MAX / 4).min(i64::MAX / 4)
    }
}

#[derive(Debug, Default)]
struct Tenant {
    /// Bytes that it may still post in this turn; negative: what it posted beyond earlier ones, because a request is not cut.
    deficit: i64,
    jobs: VecDeque<(Time, JobId)>,
}

/// Deficit round-robin by tenant (Shreedhar and Varghese, "Efficient fair queueing using deficit round robin", SIGCOMM '95), arrival order
/// within one. Promises that of two tenants of weight 1 which have had work ever since, neither is ahead of the other by more than one
/// quantum and one work request; by weight where they differ. A request is not cut, and posted when the deficit has not run out; what it
/// takes beyond it is taken from the next turns. A tenant that runs out of work keeps what it owes but not what it is owed.
#[derive(Debug)]
pub struct DeficitRoundRobin {
    shares: Shares,
    /// Tenants with jobs, the one whose turn it is first.
    ring: VecDeque<u32>,
    tenants: BTreeMap<u32, Tenant>,
    tenant_of: BTreeMap<JobId, u32>,
    /// The first of the ring was given its turn.
    began: bool,
}

impl DeficitRoundRobin {
    /// With these shares.
    pub fn new(shares: Shares) -> Self {
        Self {
            shares,
            ring: VecDeque::new(),
            tenants: BTreeMap::new(),
            tenant_of: BTreeMap::new(),
            began: false,
        }
    }

    /// Goes on to the first tenant that may post.
    fn settle(&mut self) {
        for _ in 0..2 {
            for _ in 0..self.ring.len() {
                let Some(first) = self.ring.front().copied() else { return };
                let Some(tenant) = self.tenants.get_mut(&first) else { return };
                if !std::mem::replace(&mut self.began, true) {
                    tenant.deficit = tenant.deficit.saturating_add(self.shares.turn(first));
                }
                if tenant.deficit > 0 {
                    return;
                }
                self.ring.rotate_left(1);
                self.began = false;
            }
            // All owe more than a turn: as many rounds at once as leave the first one able to go.
            let rounds = self.ring.iter().filter_map(|tenant| {
                let owed = self.tenants.get(tenant)?.deficit.saturating_neg();
                Some(owed / self.shares.turn(*tenant))
            });
            let rounds = rounds.min().unwrap_or(0);
            for id in &self.ring {
                if let Some(tenant) = self.tenants.get_mut(id) {
                    tenant.deficit += self.shares.turn(*id) * rounds;
                }
            }
        }
    }
}

impl Order for DeficitRoundRobin {
    fn push(&mut self, job: Job) {
        let tenant = self.tenants.entry(job.tenant).or_default();
        if tenant.jobs.is_empty() {
            self.ring.push_back(job.tenant);
        }
        let key = (job.arrived, job.id);
        let at = tenant.jobs.partition_point(|other| *other < key);
        tenant.jobs.insert(at, key);
        self.tenant_of.insert(job.id, job.tenant);
    }

    fn next(&mut self, _now: Time) -> Option<(JobId, u64)> {
        self.settle();
        let tenant = self.tenants.get(self.ring.front()?)?;
        let (_, id) = tenant.jobs.front()?;
        Some((*id, tenant.deficit.max(1).unsigned_abs()))
    }

    fn posted(&mut self, id: JobId, bytes: u64) {
        let tenant = self.tenant_of.get(&id).and_then(|tenant| self.tenants.get_mut(tenant));
        if let Some(tenant) = tenant {
            tenant.deficit = tenant.deficit.saturating_sub_unsigned(bytes);
        }
    }

    fn update(&mut self, _id: JobId, _left: u64) {}

    fn remove(&mut self, id: JobId) {
        let Some(name) = self.tenant_of.remove(&id) else { return };
        let Some(tenant) = self.tenants.get_mut(&name) else { return };
        tenant.jobs.retain(|(_, other)| *other != id);
        if !tenant.jobs.is_empty() {
            return;
        }
        tenant.deficit = tenant.deficit.min(0);
        if tenant.deficit == 0 {
            self.tenants.remove(&name);
        }
        if self.ring.front() == Some(&name) {
            self.began = false;
        }
        self.ring.retain(|other| *other != name);
        if self.ring.is_empty() {
            // Nobody waited: nothing is owed.
            self.tenants.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::harness::{Coming, jobs, serve};
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        /// All tenants have work from the start and never run out; requests are of any size up to `largest`.
        #[test]
        fn backlogged_tenants_are_apart_by_a_quantum_and_a_request_at_most(
            weights in proptest::collection::vec(1u32..5, 2..6),
            sizes in proptest::collection::vec(1u64..5000, 1..50),
            quantum in 1u64..4000,
            moves in proptest::collection::vec(0u32..6, 20..60),
        ) {
            let by_tenant = (0u32..).zip(weights.iter().copied()).collect();
            let mut order = DeficitRoundRobin::new(Shares { quantum, weights: by_tenant });
            let job = |id, left| Job { id, tenant: id % weights.len() as u32, arrived: Time(0), tokens: 1, left };
            let count = weights.len() as u32 * 2;
            (0..count).for_each(|id| order.push(job(id, u64::MAX)));
            let mut posted = vec![0u64; weights.len()];
            let largest = *sizes.iter().max().unwrap();
            for step in 0..400usize {
                let (id, most) = order.next(Time(0)).unwrap();
                prop_assert!(most > 0);
                // Whole requests, the first one whatever its size, as many as fit.
                let mut bytes = sizes[step % sizes.len()];
                while let next = sizes[(step + 1) % sizes.len()] && bytes + next <= most && bytes < 20_000 {
                    bytes += next;
                }
                order.posted(id, bytes);
                order.update(id, u64::MAX);
                posted[job(id, 0).tenant as usize] += bytes;
                // One of its jobs is taken out and pushed again, the other stays.
                if moves[step % moves.len()] == 0 {
                    order.remove(id);
                    order.push(job(id, u64::MAX));
                }
                for (i, a) in posted.iter().enumerate() {
                    for (j, b) in posted.iter().enumerate() {
                        // In turns of each: a / (weight a) - b / (weight b), without division.
                        let (wa, wb) = (u128::from(weights[i]), u128::from(weights[j]));
                        let ahead = (u128::from(*a) * wb).saturating_sub(u128::from(*b) * wa);
                        let bound = wa * wb * u128::from(quantum) + u128::from(largest) * wb;
                        prop_assert!(ahead <= bound, "{:?} of weights {:?}", posted, weights);
                    }
                }
            }
        }

        /// Nobody waits for more than some turns of the others, however much they have.
        #[test]
        fn nobody_starves(jobs in jobs(), slice in 1u64..20, quantum in 1u64..60) {
            let mut order = DeficitRoundRobin::new(Shares { quantum, weights: BTreeMap::new() });
            let tenant = |id: JobId| jobs[id as usize].tenant;
            let mut waited = BTreeMap::<u32, u64>::new();
            serve(&mut order, &jobs, slice, |_, waiting, chosen, bytes| {
                let now: BTreeSet<u32> = waiting.iter().map(|id| tenant(*id)).collect();
                waited.retain(|tenant, _| now.contains(tenant));
                for other in &now {
                    *waited.entry(*other).or_default() += bytes;
                }
                waited.insert(tenant(chosen), 0);
                // Turns of three others, more than one only where it owes more than a turn.
                let bound = 3 * (2 + slice / quantum) * (quantum + slice);
                assert!(waited.values().all(|waited| *waited <= bound), "{waited:?}");
            });
        }
    }

    #[test]
    fn a_debt_of_many_turns_is_worked_off_at_once() {
        let mut order = DeficitRoundRobin::new(Shares { quantum: 1, weights: [(7, 2)].into() });
        for (id, tenant) in [(0, 7), (1, 8)] {
            order.push(Job { id, tenant, arrived: Time(0), tokens: 1, left: 1 << 40 });
        }
        let mut posted = [0u64; 2];
        for _ in 0..3000 {
            let (id, _) = order.next(Time(0)).unwrap();
            order.posted(id, 1 << 30);
            posted[id as usize] += 1;
        }
        assert_eq!(posted, [2000, 1000]);
    }

    #[test]
    fn absurd_parameters_do_not_overflow() {
        let shares = Shares { quantum: u64::MAX, weights: [(0, u32::MAX)].into() };
        let mut order = DeficitRoundRobin::new(shares);
        let coming = |at, tenant| Coming { at, tenant, tokens: 1, bytes: 3 };
        assert_eq!(
            serve(&mut order, &[coming(0, 0), coming(0, 1), coming(1, 0)], 1, |_, _, _, _| ()).len(),
            3
        );
    }
}
