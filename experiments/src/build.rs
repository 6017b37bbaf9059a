//! From an experiment to a simulation: the one place that knows the simulator.

use std::io::BufRead;
use std::path::PathBuf;

use crate::report::RunResult;
use crate::spec::Spec;
use crate::workload::WorkloadError;

/// What a running simulation tells about itself, and hears.
pub trait Progress: Sync {
    /// Called now and then, for instance every few thousand events: requests that have ended, the part of the
    /// workload that was taken (0 to 1, as [`crate::workload::Workload::fraction`] says), virtual time.
    /// Returns false when the run is to stop, with [`RunError::Interrupted`].
    fn update(&self, ended: u64, fraction: f64, sim_ps: u64) -> bool;
}

/// No reports, never stopped.
pub struct Silent;

impl Progress for Silent {
    fn update(&self, _ended: u64, _fraction: f64, _sim_ps: u64) -> bool {
        true
    }
}

/// Why a run ended without a result.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The workload could not be read on.
    #[error(transparent)]
    Workload(#[from] WorkloadError),
    /// The experiment cannot be built.
    #[error("{0}")]
    Input(String),
    /// What the run needs from this machine is not there.
    #[error("{0}")]
    Environment(String),
    /// The output cannot be written.
    #[error("{}: cannot write: {source}; choose another folder with --out", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The user stopped it.
    #[error("interrupted")]
    Interrupted,
}

/// Runs one seed of an experiment.
pub fn simulate(spec: &Spec, seed: u64, progress: &dyn Progress) -> Result<RunResult, RunError> {
    let _ = (spec, seed, progress);
    Err(RunError::Environment("not connected: this build has no simulator".to_owned()))
}

/// Runs bare flows (`start_s src dst bytes` a line) on a star of `hosts` hosts, and gives each flow's duration
/// in seconds, in the order of the lines. The error says what is wrong with the input.
pub fn flows(reader: &mut dyn BufRead, hosts: u32, gbps: f64, latency_us: f64) -> Result<Vec<f64>, RunError> {
    let _ = (reader, hosts, gbps, latency_us);
    Err(RunError::Environment("not connected: this build has no simulator".to_owned()))
}
