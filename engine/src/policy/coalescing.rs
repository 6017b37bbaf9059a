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
    /// One work request, on the queue pair that is the bottleneck.
    pub request: Span,
    /// One copy within a host's memory, whatever its size.
    pub copy: Span,
    /// Bytes that such a copy moves in a second.
    pub copy_rate: u64,
}

impl Default for StagingCosts {
    /// A ConnectX-7's queue pair, and copies on an H100.
    fn default() -> Self {
        Self { request: Span::ns(105), copy: Span::us(5), copy_rate: 1_340_000_000_000 }
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
    /// Whichever is predicted to end sooner, for each piece and kind of pair of ranks.
    Auto(Staging, StagingCosts),
}

/// A piece to move between two ranks, as a coalescing policy sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Payload bytes.
    pub bytes: u64,
    /// Requests that it takes directly.
    pub requests: u64,
    /// Bytes of a slot.
    pub slot: u64,
    /// Rate of the port, bytes per second.
    pub rate: u64,
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
            Self::Auto(_, costs) => costs.staged(load) < costs.direct(load),
        }
    }
}

/// Time for so many bytes.
fn moving(bytes: u64, rate: u64) -> Span {
    let ps = (u128::from(bytes) * 1_000_000_000_000).checked_div(rate.into()).unwrap_or(0);
    Span(u64::try_from(ps).unwrap_or(u64::MAX))
}

impl StagingCosts {
    /// Time of a piece that goes directly: requests are made while earlier ones are on the wire.
    pub fn direct(&self, load: &Load) -> Span {
        moving(load.bytes, load.rate).max(self.request * load.requests)
    }

    /// Time of a piece that is staged: the first slot's gather and the last one's scatter are added to whatever is slowest.
    pub fn staged(&self, load: &Load) -> Span {
        let slots = load.bytes.div_ceil(load.slot.max(1));
        let copy = |bytes| self.copy + moving(bytes, self.copy_rate);
        let copies = self.copy * slots + moving(load.bytes, self.copy_rate);
        // The header is a request of its own.
        let requests = self.request * (2 * slots);
        let slowest = moving(load.bytes, load.rate).max(copies).max(requests);
        slowest + copy(load.slot.min(load.bytes)) * 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The choice is the one that is predicted to end sooner, and more requests never speak against staging.
        #[test]
        fn auto_takes_the_cheaper_one(bytes in 1u64..1 << 32, requests in 1u64..1 << 20, more in 0u64..1 << 20, slot in 1u64..1 << 24) {
            let costs = StagingCosts::default();
            let auto = Coalescing::Auto(Staging::default(), costs);
            let load = Load { bytes, requests, slot, rate: 50_000_000_000 };
            prop_assert_eq!(auto.stages(&load), costs.staged(&load) < costs.direct(&load));
            let longer = Load { requests: requests + more, ..load };
            prop_assert!(auto.stages(&longer) || !auto.stages(&load));
            prop_assert!(!Coalescing::Direct.stages(&load));
            prop_assert!(Coalescing::Staging(Staging::default()).stages(&load));
        }
    }

    #[test]
    fn long_rows_go_directly_and_short_ones_are_staged() {
        let auto = Coalescing::Auto(Staging::default(), StagingCosts::default());
        // Llama-3.1-70B, 2,048 tokens for one of 8 ranks: 160 buffers of rows of 256 bytes.
        let bytes = 2048 * 160 * 256;
        let load = |requests| Load { bytes, requests, slot: 4 << 20, rate: 50_000_000_000 };
        assert!(auto.stages(&load(2048 * 160)), "token by token");
        assert!(!auto.stages(&load(160)), "one run of pages");
    }
}
