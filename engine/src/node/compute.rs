//! How long the model takes: measured tables, waited out by nodes. Nothing is computed.

use crate::time::Span;

/// New tokens of one request in a prefill step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Tokens computed now.
    pub new: u32,
    /// Tokens before them, whose KV is there.
    pub context: u32,
}

/// A time, and whether it lies outside what was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Estimate {
    /// How long.
    pub span: Span,
    /// Outside the measured range.
    pub extrapolated: bool,
}

/// A compute profile of one instance.
pub trait Compute: Send {
    /// One prefill step over these chunks; at least one.
    fn prefill(&self, chunks: &[Chunk]) -> Estimate;
    /// One decode step of `batch` requests with `context` tokens of KV in all.
    fn decode(&self, batch: u32, context: u64) -> Estimate;
}
