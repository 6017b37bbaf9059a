//! Experiments: an experiment YAML becomes a cluster, a workload and a simulation, and the simulation's
//! records become a report.
//!
//! [`spec`] is the YAML, [`workload`] streams requests from trace files or distributions, [`units`] are the
//! quantities a YAML writes with their units.

pub mod spec;
pub mod units;
pub mod workload;
