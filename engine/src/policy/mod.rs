//! What a researcher swaps: small traits, one file for each implementation.
//!
//! Policies see a read-only view and return a choice. They hold no ids that they could leak, and a bad choice is rejected by the
//! engine, not trusted. Order and window decide *together* what is posted next on a port: the engine keeps unposted
//! parts in its own queues and at most a window of bytes posted, or no order policy could do anything on a FIFO queue pair.

mod admission;
mod coalescing;
mod direction;
mod granularity;
mod order;
mod own;
mod rails;
mod replica;
mod retry;
mod routing;
mod window;

pub use admission::{Admission, Limits};
pub use coalescing::{Coalescing, Load, Staging, StagingCosts};
pub use direction::Direction;
pub use granularity::Granularity;
pub use order::{
    DeficitRoundRobin, EarliestDeadline, Fifo, Job, JobId, Order, OrderPolicy, Priorities, Shares,
    ShortestRemaining, Slo, StrictPriority,
};
pub use own::Own;
pub use rails::{
    Bandwidth, Cooldown, Hash as HashRails, Health, LeastInflight, Piece, Rail, RailPolicy, Rails,
    RoundRobin as RoundRobinRails, Spread,
};
pub use replica::ReplicaChoice;
pub use retry::Retry;
pub use routing::{
    Ask, Candidate, Choice, Delivery, LeastLoaded, NetworkAware, PowerOfTwo, PrefixAware, RoundRobin,
    Routing, RoutingPolicy,
};
pub use window::Window;
