//! How pieces that are not contiguous on both sides become work requests.
//!
//! *Direct*: one request for each range that is contiguous at the target, gathered by SGEs. With unequal head shards in token-major pages
//! that is a request for each token, layer and buffer. *Staging*: the source gathers a part into one contiguous slot, writes it as one
//! request, and the target scatters it. It buys requests with two copies in GPU memory, so it wins where rows are short, and loses where
//! pages already are contiguous on both sides. `Auto` predicts both.

use crate::time::Span;

/// Staging memory of an instance, and how much of it a room may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Staging {
    /// Bytes of a slot. A part has at most so many, or as many as the other side's slots if that is less.
    pub slot: u64,
    /// Slots of each rank.
    pub slots: u32,
    /// Slots that decode gives a room for each sending rank: parts of one sender that are under way or not yet scattered.
    pub window: u32,
}

impl Default for Staging {
    fn default() -> Self {
        Self { slot: 4 << 20, slots: 64, window: 4 }
    }
}

/// What [`Coalescing::Auto`] takes things to cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StagingCosts {
    /// CPU time to build one work request.
    pub build: Span,
    /// CPU time of each further SGE of a request.
    pub sge: Span,
    /// One work request on its queue pair.
    pub request: Span,
    /// CPU time to start a copy within a host's memory.
    pub submit: Span,
    /// Such a copy on its GPU, whatever its size.
    pub copy: Span,
    /// Bytes that such a copy moves in a second.
    pub copy_rate: u64,
}

impl Default for StagingCosts {
    /// A ConnectX-7 at a CPU that feeds it, and copies on an H100, as the simulator has them.
    fn default() -> Self {
        Self {
            build: Span::ns(70),
            sge: Span::ns(5),
            request: Span::ns(105),
            submit: Span::us(2),
            copy: Span::us(3),
            copy_rate: 1_340_000_000_000,
        }
    }
}

/// How a part becomes work requests. What both sides must have for staging is memory for it: where one has none, parts go directly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Coalescing {
    /// A request for each contiguous range of the target.
    #[default]
    Direct,
    /// Gather, one bulk write, scatter, wherever a slot can hold a token of a layer.
    Staging(Staging),
    /// Whichever is predicted to end sooner, for each piece and kind of pair of ranks. A room that finds no slots goes directly.
    Auto(Staging, StagingCosts),
}

/// A piece to move between two ranks, as a coalescing policy sees it, and what moves beside it: the other pairs of ranks of the room have
/// pieces of about the same size at the same moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Payload bytes.
    pub bytes: u64,
    /// Requests that it takes directly.
    pub requests: u64,
    /// SGEs of these requests.
    pub sges: u64,
    /// Bytes of a slot.
    pub slot: u64,
    /// Rate of the ports between the two ranks, bytes per second.
    pub rate: u64,
    /// Chains of requests that it is posted in, one after the other: what a send queue and the window hold at a time.
    pub chains: u64,
    /// Pairs of ranks of the room. One CPU works for all of them.
    pub pairs: u64,
    /// Those that share the busier of the two ports.
    pub sharing: u64,
    /// Those that share the busier of the two GPUs.
    pub copying: u64,
}

impl Coalescing {
    /// The staging memory that it needs.
    pub fn staging(&self) -> Option<Staging> {
        match self {
            Self::Direct => None,
            Self::Staging(staging) | Self::Auto(staging, _) => {
                Some(*staging).filter(|s| s.slots > 0 && s.slot > 0)
            }
        }
    }

    /// Whether the choice depends on how many requests a piece takes directly.
    pub fn predicts(&self) -> bool {
        matches!(self, Self::Auto(..))
    }

    /// Whether a piece that can be staged should be.
    pub fn stages(&self, load: &Load) -> bool {
        match self {
            Self::Direct => false,
            Self::Staging(_) => true,
            Self::Auto(staging, costs) => costs.staged(load, staging.window) < costs.direct(load),
        }
    }
}

/// Time for so many bytes.
fn moving(bytes: u64, rate: u64) -> Span {
    let ps = (u128::from(bytes) * 1_000_000_000_000).checked_div(rate.into()).unwrap_or(0);
    Span(u64::try_from(ps).unwrap_or(u64::MAX))
}

impl StagingCosts {
    /// Time from the first piece's first request to the end of the last piece, directly. A chain is built before its doorbell, so that the
    /// wire waits for the CPU at the first chain and works beside it at those that follow.
    pub fn direct(&self, load: &Load) -> Span {
        let further = load.sges.saturating_sub(load.requests);
        let cpu = (self.build * load.requests + self.sge * further) * load.pairs;
        let nic = self.wire(load).max(self.request * load.requests);
        cpu.max(nic) + Span(cpu.min(nic).0 / load.chains.max(1))
    }

    /// The same when it is staged: the first slots' gather and the last ones' scatter are added to whatever is slowest. `window` copies are
    /// started before the first slot is posted.
    pub fn staged(&self, load: &Load, window: u32) -> Span {
        let slots = load.bytes.div_ceil(load.slot.max(1));
        let copy = self.copy + moving(load.slot.min(load.bytes), self.copy_rate);
        // The header is a request of its own.
        let post = self.build * 2;
        let gather = self.submit * (load.pairs * slots.min(window.max(1).into())) + copy + post * load.pairs;
        let scatter = self.submit * load.pairs + copy;
        let gpu = (self.copy * slots + moving(load.bytes, self.copy_rate)) * load.copying;
        let cpu = (self.submit + post) * (load.pairs * slots);
        gather + self.wire(load).max(gpu).max(cpu).max(self.request * (2 * slots)) + scatter
    }

    /// Time of all pieces that share a port.
    fn wire(&self, load: &Load) -> Span {
        moving(load.bytes.saturating_mul(load.sharing), load.rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn load(bytes: u64, requests: u64, sges: u64, pairs: u64) -> Load {
        let (slot, rate) = (4 << 20, 50_000_000_000);
        Load { bytes, requests, sges, slot, rate, chains: 1, pairs, sharing: 1, copying: 1 }
    }

    proptest! {
        /// The choice is the one that is predicted to end sooner, and more requests never speak against staging.
        #[test]
        fn auto_takes_the_cheaper_one(bytes in 1u64..1 << 32, requests in 1u64..1 << 20, more in 0u64..1 << 20, slot in 1u64..1 << 24,
            pairs in 1u64..64, chains in 1u64..20)
        {
            let (costs, staging) = (StagingCosts::default(), Staging::default());
            let auto = Coalescing::Auto(staging, costs);
            let load = Load { slot, chains, ..load(bytes, requests, requests, pairs) };
            prop_assert_eq!(auto.stages(&load), costs.staged(&load, staging.window) < costs.direct(&load));
            let longer = Load { requests: requests + more, sges: requests + more, ..load };
            prop_assert!(auto.stages(&longer) || !auto.stages(&load));
            prop_assert!(!Coalescing::Direct.stages(&load));
            prop_assert!(Coalescing::Staging(Staging::default()).stages(&load));
        }

        /// Neither way is predicted to be faster than the wire, or to be slowed down by less to do.
        #[test]
        fn predictions_are_bounded_and_monotonous(bytes in 1u64..1 << 32, requests in 1u64..1 << 20, pairs in 1u64..64, less in 1u64..100) {
            let costs = StagingCosts::default();
            let whole = load(bytes, requests, requests * 3, pairs);
            let part = load(bytes.div_ceil(less), requests.div_ceil(less), requests.div_ceil(less) * 3, pairs.div_ceil(less));
            let wire = moving(bytes, whole.rate);
            prop_assert!(costs.direct(&whole) >= wire && costs.staged(&whole, 4) >= wire);
            prop_assert!(costs.direct(&part) <= costs.direct(&whole));
            prop_assert!(costs.staged(&part, 4) <= costs.staged(&whole, 4));
        }
    }

    #[test]
    fn what_the_simulator_takes_to_move_a_prompt_is_what_is_predicted() {
        // Llama-3.1-70B, TP8 to TP8, 160 buffers of rows of 256 bytes; from the first request to Success, experiments/coalescing.yaml.
        let costs = StagingCosts::default();
        let near = |predicted: Span, ms: f64| {
            let ratio = predicted.0 as f64 / (ms * 1e9);
            assert!((0.85..1.15).contains(&ratio), "{predicted:?} for {ms} ms");
        };
        let tokens = |tokens: u64, requests, sges| load(tokens * 160 * 256, requests, sges, 8);
        near(costs.direct(&tokens(16, 162, 162)), 0.113);
        near(costs.direct(&tokens(1024, 162, 162)), 0.952);
        near(costs.staged(&tokens(1024, 162, 162), 4), 0.945);
        // From TP4 each port carries what two ranks get, gathered head by head.
        let shared = |load| Load { sharing: 2, copying: 2, ..load };
        near(costs.direct(&shared(tokens(16, 162, 2562))), 0.209);
        near(costs.staged(&shared(tokens(16, 162, 2562)), 4), 0.065);
        near(costs.staged(&shared(tokens(1024, 10_242, 163_842)), 4), 1.80);
    }

    #[test]
    fn many_requests_are_staged_and_few_go_directly() {
        let auto = Coalescing::Auto(Staging::default(), StagingCosts::default());
        // Llama-3.1-70B, 2,048 tokens for one of 8 ranks.
        let bytes = 2048 * 160 * 256;
        assert!(auto.stages(&load(bytes, 2048 * 160, 2048 * 160, 8)), "token by token");
        // Llama-3.1-8B on one rank, consecutive pages.
        assert!(!auto.stages(&load(2048 * 64 * 2048, 64, 64, 1)), "one run of pages");
    }
}
