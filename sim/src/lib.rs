//! The simulated side of kvrail: a deterministic fabric, network and control channel, and the driver that runs the production nodes
//! of the `engine` crate over them.
//!
//! Start with [`world::World`] (all nodes and one event queue), [`fabric::Fabrics`] (queue pairs, memory and NICs of all hosts) and
//! [`net`] (weighted max-min sharing of links). Tests tell their stories with [`kit::Kit`].

pub mod control;
pub mod digest;
pub mod fabric;
pub mod fault;
pub mod kit;
pub mod net;
pub mod nic;
pub mod queue;
pub mod watch;
pub mod world;
