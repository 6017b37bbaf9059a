//! What a researcher swaps: small traits, one file for each implementation.
//!
//! Policies see a read-only view and return a choice. They hold no ids that they could leak, and a bad choice is rejected by the
//! engine, not trusted. Order and window decide *together* what is posted next on a port: the engine keeps unposted
//! parts in its own queues and at most a window of bytes posted, or no order policy could do anything on a FIFO queue pair.

mod direction;
mod granularity;
mod order;
mod rails;
mod replica;
mod routing;
mod window;

pub use direction::Direction;
pub use granularity::Granularity;
pub use order::{
    DeficitRoundRobin, EarliestDeadline, Fifo, Job, JobId, Order, OrderPolicy, Priorities, Shares,
    ShortestRemaining, Slo, StrictPriority,
};
pub use rails::{
    Bandwidth, Cooldown, Hash as HashRails, Health, LeastInflight, Piece, Rail, RailPolicy, Rails,
    RoundRobin as RoundRobinRails, Spread,
};
pub use replica::ReplicaChoice;
pub use routing::{Candidate, LeastLoaded, RoundRobin, Routing, RoutingPolicy};
pub use window::Window;
