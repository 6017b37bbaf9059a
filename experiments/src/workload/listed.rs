//! Requests that the experiment names one by one.

use super::error::WorkloadError;
use super::{Request, Workload};
use crate::spec::workload::RequestSpec;

/// The stream.
pub(crate) struct Listed {
    requests: Vec<RequestSpec>,
    rate_scale: f64,
    next: usize,
}

impl Listed {
    pub(crate) fn new(requests: &[RequestSpec], rate_scale: f64, skip: u64, limit: Option<u64>) -> Self {
        let most = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        let mut requests: Vec<RequestSpec> =
            requests.iter().skip(most(skip)).take(limit.map_or(usize::MAX, most)).cloned().collect();
        // Time starts at the first one that is left.
        let first = if skip > 0 { requests.first().map_or(0, |request| request.at.0) } else { 0 };
        requests.iter_mut().for_each(|request| request.at.0 -= first);
        Listed { requests, rate_scale, next: 0 }
    }
}

impl Iterator for Listed {
    type Item = Result<Request, WorkloadError>;

    fn next(&mut self) -> Option<Self::Item> {
        let request = self.requests.get(self.next)?;
        let id = self.next as u64;
        self.next += 1;
        let arrival_ps = if self.rate_scale == 1.0 {
            request.at.0
        } else {
            // The cast saturates.
            libm::round(request.at.0 as f64 / self.rate_scale) as u64
        };
        Some(Ok(Request {
            id,
            arrival_ps,
            prompt: request.prompt,
            output: request.output,
            blocks: request.blocks.clone(),
            tenant: request.tenant,
        }))
    }
}

impl Workload for Listed {
    fn fraction(&self) -> f64 {
        if self.requests.is_empty() { 1.0 } else { self.next as f64 / self.requests.len() as f64 }
    }
}
