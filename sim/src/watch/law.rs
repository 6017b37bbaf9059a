//! The laws by name, and what is said where one is broken.

use std::fmt;

/// What must hold in every run, and beneath what must hold in a run without faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Law {
    /// Nothing in kvrail panics.
    NoPanic,
    /// Every request has one final state.
    OneEnd,
    /// Everything comes to rest in bounded time.
    Bounded,
    /// What decode uses is what prefill computed.
    Content,
    /// A try of a request is Success once, and before its last token.
    Success,
    /// A room's state only moves on, and Success and Failed are final.
    Forward,
    /// Nobody writes to pages that no room owns.
    RedZone,
    /// The initiator keeps its pages while requests that name them are outstanding.
    InitiatorWaits,
    /// At rest nobody holds anything for a request.
    Leak,
    /// After all nodes left the fabric is empty.
    Remains,
    /// Receives are credits.
    NoRnrNak,
    /// Nothing has to be fenced, dropped or repeated.
    NoRepair,
    /// Every request is served.
    Served,
    /// No more bytes are moved than the two layouts need.
    LeastBytes,
}

impl Law {
    /// As reports say it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Law::NoPanic => "no-panic",
            Law::OneEnd => "one-end",
            Law::Bounded => "bounded",
            Law::Content => "content",
            Law::Success => "success",
            Law::Forward => "forward",
            Law::RedZone => "red-zone",
            Law::InitiatorWaits => "initiator-waits",
            Law::Leak => "leak",
            Law::Remains => "remains",
            Law::NoRnrNak => "no-rnr-nak",
            Law::NoRepair => "no-repair",
            Law::Served => "served",
            Law::LeastBytes => "least-bytes",
        }
    }
}

impl fmt::Display for Law {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A law that was broken, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// Which.
    pub law: Law,
    /// What was seen.
    pub what: String,
}

impl Broken {
    /// This law, in this way.
    #[must_use]
    pub fn new(law: Law, what: impl Into<String>) -> Self {
        Self { law, what: what.into() }
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.law, self.what)
    }
}
