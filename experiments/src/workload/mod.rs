//! Streams of requests: trace files of any size, and distributions.
//!
//! [`open`] gives an iterator over [`Request`]s whose arrivals never decrease. A file is read line by line
//! and its format recognised from its first line; see [`Format`]. Every error names the file, the line,
//! the value and what would be right ([`WorkloadError`]).

use std::io::BufRead;
use std::path::Path;

mod error;
mod format;
mod lines;
mod listed;
pub(crate) mod random;
mod synthetic;
mod tenants;
mod timestamp;
mod trace;

pub use error::{MAX_ARRIVAL_PS, MAX_LINE, MAX_TOKENS, Problem, WorkloadError};
pub use format::{BLOCK_TOKENS, Format};
pub use random::{Purpose, Random};

use crate::spec::workload::WorkloadSpec;

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Its place in the stream, from 0.
    pub id: u64,
    /// When it arrives, picoseconds from the start of the run; never before the request before it.
    pub arrival_ps: u64,
    /// Tokens of the prompt, at least 1.
    pub prompt: u32,
    /// Tokens to generate, at least 1; the first comes out of prefill.
    pub output: u32,
    /// One id per started block of 512 prompt tokens; two requests which agree on the first n ids share
    /// that prefix. Empty when the workload says nothing about prefixes.
    pub blocks: Vec<u64>,
    /// Whose request it is.
    pub tenant: u32,
}

/// A stream of requests. It ends after the first error.
pub trait Workload: Iterator<Item = Result<Request, WorkloadError>> + Send {
    /// How much of the stream has been taken, 0 to 1: an estimate for progress reports.
    fn fraction(&self) -> f64;
}

/// Opens the workload that `spec` names, with the random draws of `seed`.
pub fn open(spec: &WorkloadSpec, seed: u64) -> Result<Box<dyn Workload>, WorkloadError> {
    if let Some(path) = &spec.path {
        return Ok(assigned(Box::new(trace::Trace::open(path, spec, seed)?), spec, seed));
    }
    if !spec.requests.is_empty() {
        return Ok(Box::new(listed::Listed::new(&spec.requests, spec.rate_scale, spec.skip, spec.limit)));
    }
    let arrivals = synthetic::Arrivals::new(spec.arrival, spec.rate_scale, seed);
    let synthetic = spec.synthetic.clone().unwrap_or_default();
    let stream = synthetic::Synthetic::new(synthetic, arrivals, spec.skip, spec.limit, seed);
    Ok(assigned(Box::new(stream), spec, seed))
}

/// Reads a trace of `size` bytes (an estimate, for progress) from `reader`; `name` stands for the file in
/// errors.
pub fn read(
    reader: Box<dyn BufRead + Send>,
    name: &Path,
    size: u64,
    spec: &WorkloadSpec,
    seed: u64,
) -> Result<Box<dyn Workload>, WorkloadError> {
    Ok(assigned(Box::new(trace::Trace::new(reader, name, size, spec, seed)?), spec, seed))
}

/// With tenants, where the experiment says which there are.
fn assigned(stream: Box<dyn Workload>, spec: &WorkloadSpec, seed: u64) -> Box<dyn Workload> {
    match &spec.tenants {
        Some(tenants) => Box::new(tenants::Assigned::new(stream, tenants, spec.skip, seed)),
        None => stream,
    }
}

#[cfg(test)]
mod tests;
