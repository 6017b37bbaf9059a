//! How much may be posted and not yet completed.

/// Bounds on what is posted on one port at a time. Promises that nothing is posted while as much as this is: so one request may go beyond the
/// bytes, the one that reaches them, and the aux row and seal that go with it beyond both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Payload bytes in flight on a port.
    pub bytes: u64,
    /// Work requests in flight on a port.
    pub requests: u64,
    /// Every n-th work request is signalled beside the last of each posting; 0: only the last.
    pub signal_every: u32,
}

impl Default for Window {
    fn default() -> Self {
        Self { bytes: 64 << 20, requests: 8192, signal_every: 0 }
    }
}
