//! Which prefill and which decode instance serve a request.
//!
//! A [`Routing`] policy is asked once for each attempt at a request and sees both sides at once. What it knows comes from the router:
//! what was sent where and has not ended, and how much room there is. That much is free. Some policies also want to know *when* KV arrived,
//! long before the last token: [`Routing::wants_deliveries`]. Then every prefill instance tells the router of each delivery, with the times
//! it took ([`crate::registry::Message::Delivered`]): two messages more for a request, on the control channel and on nobody's critical path.
//! Without that wish nothing is sent, and what a candidate has undelivered falls when the request ends.
//!
//! | policy | what it looks at | messages for a request |
//! |---|---|---|
//! | [`RoundRobin`] | nothing | 0 |
//! | [`LeastLoaded`] | tokens under way | 0 |
//! | [`PowerOfTwo`] | tokens under way of two drawn at random | 0 |
//! | [`PrefixAware`] | prefix blocks sent before, tokens undelivered | 2 |
//! | [`NetworkAware`] | measured times of queue, compute and transfer, by pair | 2 |

mod least_loaded;
mod network_aware;
mod power_of_two;
mod prefix_aware;
mod round_robin;

pub use least_loaded::LeastLoaded;
pub use network_aware::NetworkAware;
pub use power_of_two::PowerOfTwo;
pub use prefix_aware::PrefixAware;
pub use round_robin::RoundRobin;

use super::Own;
use crate::id::InstanceId;
use crate::node::Request;
use crate::time::{Span, Time};

/// An instance that could take a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Which.
    pub instance: InstanceId,
    /// Requests sent there and not yet ended.
    pub requests: u32,
    /// Their tokens: prompts for prefill, prompts and outputs for decode.
    pub tokens: u64,
    /// Prompt tokens sent there whose KV has not arrived at decode, as far as the router knows.
    pub undelivered: u64,
    /// Tokens of KV that its memory holds.
    pub capacity: u64,
}

impl Candidate {
    /// One with nothing under way.
    pub fn new(instance: InstanceId, capacity: u64) -> Self {
        Self { instance, requests: 0, tokens: 0, undelivered: 0, capacity }
    }
}

/// What a policy is asked: read-only, and gone after the call.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// The request; a preempted one's prompt has grown.
    pub request: &'a Request,
    /// The router's clock.
    pub now: Time,
    /// Which attempt at it this is, from 1.
    pub attempt: u32,
    /// Prefill instances in the order of their ids, never none. Those that are avoided after failures are left out while there are others.
    pub prefill: &'a [Candidate],
    /// Decode instances, likewise.
    pub decode: &'a [Candidate],
}

/// Indices into the two lists of an [`Ask`]. One that is out of range fails the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Of [`Ask::prefill`].
    pub prefill: usize,
    /// Of [`Ask::decode`].
    pub decode: usize,
}

/// A request's KV has arrived, as its prefill instance says. Times are by that instance's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivery<'a> {
    /// When the router heard.
    pub now: Time,
    /// The request.
    pub request: &'a Request,
    /// Where its prompt was computed.
    pub prefill: InstanceId,
    /// Where its KV went.
    pub decode: InstanceId,
    /// Tokens undelivered at the two of them when it was sent, its own included.
    pub ahead: (u64, u64),
    /// Prompt tokens that came from the prefix cache.
    pub cached: u32,
    /// From its arrival at prefill to the start of its first step.
    pub queued: Span,
    /// From there to the end of its last step.
    pub compute: Span,
    /// From there until all was delivered.
    pub handoff: Span,
}

/// Picks instances.
pub trait Routing: Send {
    /// The instances for a request.
    fn choose(&mut self, ask: &Ask<'_>) -> Choice;
    /// Whether prefill instances are to tell the router of deliveries. The same for the whole life of a policy.
    fn wants_deliveries(&self) -> bool {
        false
    }
    /// A request's KV has arrived; only if it [`Routing::wants_deliveries`].
    fn delivered(&mut self, _delivery: &Delivery<'_>) {}
    /// An instance is gone and will not come back under this id.
    fn gone(&mut self, _instance: InstanceId) {}
}

/// Names of the routing policies, with their parameters.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum RoutingPolicy {
    /// [`RoundRobin`].
    #[default]
    RoundRobin,
    /// [`LeastLoaded`].
    LeastLoaded,
    /// [`PowerOfTwo`].
    PowerOfTwo,
    /// [`PrefixAware`].
    PrefixAware {
        /// Tokens of queue that a token found in the cache is worth.
        weight: f64,
        /// Blocks remembered of an instance at most; what fits into its memory, if that is less.
        blocks: u32,
    },
    /// [`NetworkAware`].
    NetworkAware {
        /// Weight of the newest measurement, above 0 to 1.
        gain: f64,
        /// Time after which half of what is known against a pair is forgotten.
        forget: Span,
    },
    /// One that is not of this crate.
    Own(Own<dyn Routing>),
}

impl RoutingPolicy {
    /// A router's own. `seed` is the run's: what draws random numbers has a stream of its own from it.
    pub fn build(&self, seed: u64) -> Box<dyn Routing> {
        match self {
            Self::RoundRobin => Box::<RoundRobin>::default(),
            Self::LeastLoaded => Box::new(LeastLoaded),
            Self::PowerOfTwo => Box::new(PowerOfTwo::new(seed)),
            Self::PrefixAware { weight, blocks } => Box::new(PrefixAware::new(*weight, *blocks)),
            Self::NetworkAware { gain, forget } => Box::new(NetworkAware::new(*gain, *forget)),
            Self::Own(own) => own.make(seed),
        }
    }
    /// Whether prefill instances are to tell the router of deliveries.
    pub fn wants_deliveries(&self) -> bool {
        self.build(0).wants_deliveries()
    }
}

/// The least of some candidates by a key, ties to the lowest instance.
fn least<K: Ord>(candidates: &[Candidate], key: impl Fn(&Candidate) -> K) -> usize {
    (0..candidates.len()).min_by_key(|i| (key(&candidates[*i]), *i)).unwrap_or(0)
}

#[cfg(test)]
mod testing {
    //! What the policies' tests have in common.
    use super::*;
    use proptest::prelude::*;

    /// Candidates with these tokens under way, all of them undelivered.
    pub(super) fn candidates(loads: &[u64]) -> Vec<Candidate> {
        let one = |(i, tokens): (u64, &u64)| Candidate {
            requests: u32::from(*tokens > 0),
            tokens: *tokens,
            undelivered: *tokens,
            ..Candidate::new(InstanceId(10 + i), 1 << 20)
        };
        (0..).zip(loads).map(one).collect()
    }

    pub(super) fn loads() -> impl Strategy<Value = Vec<u64>> {
        proptest::collection::vec(0u64..1000, 1..9)
    }

    pub(super) fn ask<'a>(
        request: &'a Request,
        prefill: &'a [Candidate],
        decode: &'a [Candidate],
    ) -> Ask<'a> {
        Ask { request, now: Time::ZERO, attempt: 1, prefill, decode }
    }
}
