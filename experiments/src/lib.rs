//! Experiments: an experiment YAML becomes a cluster, a workload and a simulation, and the simulation's
//! records become a report.
//!
//! [`spec::Spec`] is the YAML, [`workload`] streams requests from trace files or distributions, [`compute`]
//! says how long prefill and decode take, [`build`] runs one seed, [`explore`] looks for seeds that break a law, and [`report`] turns its
//! [`report::RunResult`] into `summary.json`, `requests.csv` and a table. [`cli`] is the `kvrail` command.

pub mod build;
pub mod cli;
pub mod compute;
pub mod doctor;
pub mod exhaustive;
pub mod explore;
pub mod nic;
pub mod own;
pub mod perftest;
mod processes;
pub mod report;
pub mod spec;
pub mod workload;
