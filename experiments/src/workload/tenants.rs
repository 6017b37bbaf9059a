//! Tenants for a workload that does not name them.

use super::error::WorkloadError;
use super::random::{Purpose, Random};
use super::{Request, Workload};
use crate::spec::workload::Tenants;

/// A stream whose requests each get a tenant, drawn independently of everything else.
pub(super) struct Assigned {
    inner: Box<dyn Workload>,
    /// Sums of the weights up to each tenant; none if all weigh the same.
    upto: Vec<u64>,
    total: u64,
    random: Random,
}

impl Assigned {
    /// `skip` requests were left out at the start: the others keep their tenants.
    pub(super) fn new(inner: Box<dyn Workload>, tenants: &Tenants, skip: u64, seed: u64) -> Self {
        let (upto, total) = match tenants {
            Tenants::Count(count) => (Vec::new(), u64::from(*count)),
            Tenants::Weights(weights) => {
                let sums = weights.iter().scan(0, |sum, weight| {
                    *sum += u64::from(*weight);
                    Some(*sum)
                });
                let upto: Vec<u64> = sums.collect();
                let total = upto.last().copied().unwrap_or(0);
                (upto, total)
            }
        };
        let mut random = Random::new(seed, Purpose::Tenant);
        for _ in 0..skip {
            random.below(total);
        }
        Self { inner, upto, total, random }
    }
}

impl Iterator for Assigned {
    type Item = Result<Request, WorkloadError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut request = self.inner.next()?;
        if let Ok(request) = &mut request {
            let at = self.random.below(self.total);
            let tenant =
                if self.upto.is_empty() { at } else { self.upto.partition_point(|sum| *sum <= at) as u64 };
            request.tenant = u32::try_from(tenant).unwrap_or(u32::MAX);
        }
        Some(request)
    }
}

impl Workload for Assigned {
    fn fraction(&self) -> f64 {
        self.inner.fraction()
    }
}
