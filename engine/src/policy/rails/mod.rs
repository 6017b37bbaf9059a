//! Which rails, that is queue pairs of a pair of ranks, carry a piece of work, and how long one that failed is avoided.

mod cooldown;
mod hash;
mod least_inflight;
mod round_robin;

pub use cooldown::{Cooldown, Health};
pub use hash::Hash;
pub use least_inflight::{Bandwidth, LeastInflight};
pub use round_robin::RoundRobin;

use crate::id::Rank;
use crate::time::Time;
use std::ops::Range;

/// How work is spread over the rails of a pair of ranks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum RailPolicy {
    /// All of a feed on one rail: its own by affinity, the n-th feed of a source rank on rail n modulo their number.
    #[default]
    Pinned,
    /// Each piece cut into as many parts as there are rails, alike in size.
    Striped,
    /// [`RoundRobin`].
    RoundRobin,
    /// [`struct@Hash`].
    Hash,
    /// [`LeastInflight`].
    LeastInflight(LeastInflight),
}

/// Rails that the pieces of a feed may go on. Both sides know it without a message: the target promises receives by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spread {
    /// A part of each piece on every one of these.
    All(Range<u16>),
    /// Each piece is one part, on a rail which the initiator alone chooses. At every port where one of the rails ends the target promises
    /// receives for all parts: they come from the queue that all rails of a port share, so that two rails of one port are not counted twice.
    One,
}

impl Spread {
    /// Parts that a piece becomes.
    pub fn width(&self) -> u16 {
        match self {
            Self::All(rails) => rails.len() as u16,
            Self::One => 1,
        }
    }
}

impl RailPolicy {
    /// Rails that pieces of the `nth` feed of a source rank use, out of `rails`.
    pub fn spread(&self, nth: u16, rails: u16) -> Spread {
        let rails = rails.max(1);
        match self {
            Self::Pinned => Spread::All(nth % rails..nth % rails + 1),
            Self::Striped => Spread::All(0..rails),
            Self::RoundRobin | Self::Hash | Self::LeastInflight(_) => Spread::One,
        }
    }

    /// What chooses, where there is a choice.
    pub fn build(&self) -> Option<Box<dyn Rails>> {
        match self {
            Self::Pinned | Self::Striped => None,
            Self::RoundRobin => Some(Box::<RoundRobin>::default()),
            Self::Hash => Some(Box::new(Hash)),
            Self::LeastInflight(policy) => Some(Box::new(policy.clone())),
        }
    }
}

/// A piece of a room's KV that one rank of the initiator moves to or from one of the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Number of the room.
    pub room: u64,
    /// The initiator's rank in its instance.
    pub rank: Rank,
    /// Which of that rank's feeds it belongs to.
    pub nth: u16,
    /// Payload.
    pub bytes: u64,
}

/// A rail that is connected, as the initiator sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rail {
    /// Bytes of parts that go between the rail's two ports and have not completed.
    pub backlog: u64,
    /// What goes between these two ports: measured, or their line rate; bytes per second.
    pub rate: u64,
    /// Its port is on another NUMA node than the rank's own port. Where that is not known it is not.
    pub far: bool,
}

/// Chooses a rail.
pub trait Rails: Send {
    /// An index into `rails`, which are in order and not none. What is out of range is taken for the first.
    fn choose(&mut self, now: Time, piece: &Piece, rails: &[Rail]) -> usize;
    /// Whether it looks at [`Rail::backlog`] and [`Rail::rate`]: else they are zero and nobody keeps count.
    fn measures(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_promised_for() {
        assert_eq!(RailPolicy::Pinned.spread(5, 4), Spread::All(1..2));
        assert_eq!(RailPolicy::Striped.spread(5, 4), Spread::All(0..4));
        assert_eq!(RailPolicy::Striped.spread(0, 0).width(), 1);
        for policy in
            [RailPolicy::RoundRobin, RailPolicy::Hash, RailPolicy::LeastInflight(LeastInflight::default())]
        {
            assert_eq!(policy.spread(5, 4).width(), 1);
            assert!(policy.build().is_some());
        }
    }
}
