//! Requests from distributions.

use super::error::{MAX_ARRIVAL_PS, MAX_TOKENS, WorkloadError};
use super::format::BLOCK_TOKENS;
use super::random::{Purpose, Random};
use super::{Request, Workload};
use crate::spec::workload::{Arrival, Length, SyntheticSpec};

const PS_PER_S: f64 = 1e12;

/// Gaps between arrivals, added up in whole picoseconds.
pub(crate) struct Arrivals {
    process: Arrival,
    random: Random,
    count: u64,
    now: u64,
}

impl Arrivals {
    pub(crate) fn new(process: Arrival, rate_scale: f64, seed: u64) -> Self {
        let process = match process {
            Arrival::Poisson { rate } => Arrival::Poisson { rate: rate * rate_scale },
            Arrival::Gamma { rate, cv } => Arrival::Gamma { rate: rate * rate_scale, cv },
            Arrival::Fixed { rate } => Arrival::Fixed { rate: rate * rate_scale },
            Arrival::AtOnce => Arrival::AtOnce,
        };
        Arrivals { process, random: Random::new(seed, Purpose::Arrival), count: 0, now: 0 }
    }

    /// The next arrival in picoseconds, or none when it is too late for virtual time.
    pub(crate) fn next(&mut self) -> Option<u64> {
        let ps = match self.process {
            Arrival::AtOnce => 0.0,
            // From the count, not from a sum of rounded gaps: no drift.
            Arrival::Fixed { rate } => self.count as f64 / rate * PS_PER_S,
            Arrival::Poisson { rate } => self.random.exponential() / rate * PS_PER_S,
            Arrival::Gamma { rate, cv } => {
                let shape = 1.0 / (cv * cv);
                self.random.gamma(shape) / (shape * rate) * PS_PER_S
            }
        };
        self.count += 1;
        if !(0.0..=MAX_ARRIVAL_PS as f64).contains(&ps) {
            return None;
        }
        let ps = libm::round(ps) as u64;
        self.now = if matches!(self.process, Arrival::Fixed { .. }) { ps } else { self.now + ps };
        (self.now <= MAX_ARRIVAL_PS).then_some(self.now)
    }
}

/// Draws one length.
fn length(distribution: &Length, random: &mut Random) -> u32 {
    match distribution {
        Length::Fixed(tokens) => *tokens,
        Length::Uniform { min, max } => {
            let (min, max) = (*min.min(max), *min.max(max));
            min + random.below(u64::from(max - min) + 1) as u32
        }
        Length::Lognormal { median, sigma, min, max } => {
            let value = median * libm::exp(sigma * random.normal());
            let (min, max) = (*min.min(max), *min.max(max));
            // The cast saturates, so infinity becomes `max`.
            (libm::round(value) as u32).clamp(min, max)
        }
        Length::Empirical(values) => {
            values.get(random.below(values.len() as u64) as usize).copied().unwrap_or(1)
        }
    }
    .clamp(1, MAX_TOKENS)
}

/// The stream.
pub(crate) struct Synthetic {
    spec: SyntheticSpec,
    total: u64,
    next: u64,
    skip: u64,
    arrivals: Arrivals,
    prompt: Random,
    output: Random,
    prefix: Random,
    tenant: Random,
}

impl Synthetic {
    pub(crate) fn new(
        spec: SyntheticSpec,
        arrivals: Arrivals,
        skip: u64,
        limit: Option<u64>,
        seed: u64,
    ) -> Self {
        let total = spec.requests.saturating_sub(skip).min(limit.unwrap_or(u64::MAX));
        Synthetic {
            spec,
            total,
            next: 0,
            skip,
            arrivals,
            prompt: Random::new(seed, Purpose::Prompt),
            output: Random::new(seed, Purpose::Output),
            prefix: Random::new(seed, Purpose::Prefix),
            tenant: Random::new(seed, Purpose::Tenant),
        }
    }

    fn draw(&mut self) -> Result<Request, WorkloadError> {
        let id = self.next;
        let arrival_ps = self.arrivals.next().ok_or(WorkloadError::TooLate { id })?;
        let (prompt, output, tenant, blocks) = self.body();
        Ok(Request { id, arrival_ps, prompt, output, blocks, tenant })
    }

    fn body(&mut self) -> (u32, u32, u32, Vec<u64>) {
        let prompt = length(&self.spec.prompt, &mut self.prompt);
        let output = length(&self.spec.output, &mut self.output);
        let tenant = self.tenant.below(u64::from(self.spec.tenants)) as u32;
        (prompt, output, tenant, self.blocks(self.next, prompt))
    }

    /// Shared blocks are `group << 20 | index`; a request's own have the top bit and its id instead.
    fn blocks(&mut self, id: u64, prompt: u32) -> Vec<u64> {
        let Some(prefix) = self.spec.prefix else { return Vec::new() };
        let belongs = self.prefix.unit() < prefix.share;
        let group = self.prefix.below(u64::from(prefix.groups));
        let shared = if belongs { prefix.tokens.min(prompt - 1) / BLOCK_TOKENS } else { 0 };
        (0..u64::from(prompt.div_ceil(BLOCK_TOKENS)))
            .map(|i| if i < u64::from(shared) { group << 20 | i } else { 1 << 63 | id << 20 | i })
            .collect()
    }
}

impl Iterator for Synthetic {
    type Item = Result<Request, WorkloadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next >= self.total {
            return None;
        }
        for _ in 0..std::mem::take(&mut self.skip) {
            self.body();
        }
        let drawn = self.draw();
        self.next = if drawn.is_ok() { self.next + 1 } else { self.total };
        Some(drawn)
    }
}

impl Workload for Synthetic {
    fn fraction(&self) -> f64 {
        if self.total == 0 { 1.0 } else { self.next as f64 / self.total as f64 }
    }
}
