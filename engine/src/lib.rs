//! The engine of kvrail: everything that decides something about moving a KV cache.
//!
//! Nothing in this crate does I/O, reads a clock, draws a random number from outside or starts a
//! thread: registry, transfer engine and nodes are state machines, [`node::Input`]s in, posted work and
//! frames out. A driver runs them, over a [`fabric::Fabric`]: the simulated one of the `sim` crate, or
//! RDMA verbs. Nothing here can tell which. The exceptions are the real edges, which do all of that and decide nothing:
//! [`driver`] (operating system clock, ZeroMQ sockets) and the verbs fabric (feature `verbs`).
//!
//! Start with [`fabric::Fabric`] (what a NIC can do), [`node::Node`] (what a driver runs) and
//! [`transfer`] (how pages become work requests, and when decode may start).

pub mod driver;
pub mod fabric;
pub mod id;
pub mod map;
pub mod node;
pub mod policy;
pub mod registry;
pub mod time;
pub mod timers;
pub mod transfer;
