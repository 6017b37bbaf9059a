//! Real runs: an experiment's nodes as processes, and the process that measures them.
//!
//! [`serve`] runs one node in this process, over real devices. [`measure()`] is the other end: it gathers the nodes over one more socket,
//! starts the workload, takes in what they record, asks at the end what they hold, and stops them. [`local`] starts them all on this host.
//!
//! Nodes do without the measuring process: without one the router begins as soon as all instances have joined, and one that is lost
//! stops nothing.

pub(crate) mod local;
mod measure;
mod member;
mod message;
mod open;
mod serve;

pub(crate) use measure::{Elsewhere, Hub, Measured, measure};
pub(crate) use open::available;
pub(crate) use serve::{Service, serve};
