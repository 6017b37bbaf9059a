//! Which prefill and which decode instance serve a request.

use crate::id::InstanceId;
use crate::node::Request;

/// An instance that could take a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Which.
    pub instance: InstanceId,
    /// Requests sent there and not yet ended.
    pub requests: u32,
    /// Their tokens: prompts for prefill, prompts and outputs for decode.
    pub tokens: u64,
}

/// Picks an instance. Asked once for prefill and once for decode; candidates are in instance order and never none.
pub trait Routing: Send {
    /// Index of the chosen prefill instance.
    fn prefill(&mut self, request: &Request, candidates: &[Candidate]) -> usize;
    /// Index of the chosen decode instance.
    fn decode(&mut self, request: &Request, candidates: &[Candidate]) -> usize;
}

/// Names of the routing policies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RoutingPolicy {
    /// [`RoundRobin`].
    #[default]
    RoundRobin,
    /// [`LeastLoaded`].
    LeastLoaded,
}

impl RoutingPolicy {
    /// A router's own.
    pub fn build(self) -> Box<dyn Routing> {
        match self {
            Self::RoundRobin => Box::<RoundRobin>::default(),
            Self::LeastLoaded => Box::new(LeastLoaded),
        }
    }
}

/// One after the other. Promises that the numbers of requests sent to two instances that were always there differ by one at most.
#[derive(Debug, Default)]
pub struct RoundRobin {
    prefill: usize,
    decode: usize,
}

impl Routing for RoundRobin {
    fn prefill(&mut self, _request: &Request, candidates: &[Candidate]) -> usize {
        self.prefill = self.prefill.wrapping_add(1);
        self.prefill.wrapping_sub(1) % candidates.len()
    }
    fn decode(&mut self, _request: &Request, candidates: &[Candidate]) -> usize {
        self.decode = self.decode.wrapping_add(1);
        self.decode.wrapping_sub(1) % candidates.len()
    }
}

/// Fewest tokens under way, ties to the lowest instance. Promises that no instance is chosen while another has fewer.
#[derive(Debug, Default)]
pub struct LeastLoaded;

fn least(candidates: &[Candidate]) -> usize {
    let key = |i: &usize| (candidates[*i].tokens, candidates[*i].requests, *i);
    (0..candidates.len()).min_by_key(key).unwrap_or(0)
}

impl Routing for LeastLoaded {
    fn prefill(&mut self, _request: &Request, candidates: &[Candidate]) -> usize {
        least(candidates)
    }
    fn decode(&mut self, _request: &Request, candidates: &[Candidate]) -> usize {
        least(candidates)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn round_robin_is_even_and_least_loaded_picks_the_least(n in 1usize..9, loads in proptest::collection::vec(0u64..1000, 9), asks in 1usize..40) {
            let candidates: Vec<Candidate> = (0..n).map(|i| Candidate { instance: InstanceId(i as u64), requests: 0, tokens: loads[i] }).collect();
            let mut counts = vec![0u32; n];
            let mut policy = RoundRobin::default();
            for _ in 0..asks {
                counts[policy.prefill(&Request::default(), &candidates)] += 1;
            }
            let (low, high) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
            prop_assert!(high - low <= 1);
            let chosen = LeastLoaded.decode(&Request::default(), &candidates);
            prop_assert!(candidates.iter().all(|c| c.tokens >= candidates[chosen].tokens));
        }
    }
}
