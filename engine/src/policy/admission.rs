//! Who is let in, and who is told at once that there is no room.
//!
//! Three places decide. The router lets so many requests of a tenant fly at a time ([`Limits`]), and others wait there in the order of their
//! arrival. A decode instance lets a request in when it has pages for it ([`Admission`]). And both may have a bounded queue: a request
//! that finds it full ends as rejected, [`crate::node::Reason::Busy`], within a message's way there and back, instead of waiting for
//! something that may never come in time.

/// When decode takes pages for tokens that are yet to be generated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Admission {
    /// All of them before the transfer: a request that was let in never runs out.
    #[default]
    Reserve,
    /// As they are generated; when none is left, the request let in last is sent back.
    OnDemand,
}

/// What a router lets fly at a time. Without limits, everything at once. A request counts from the time it is sent to instances until it
/// is final, also while it is sent again.
///
/// Promises: no tenant ever has more in flight than its limits say (but a request that alone is above the limit of tokens flies alone); a
/// tenant's requests go in the order of their arrival, and its first one never waits while it would keep the limits; of several that may go
/// the one that came first does. So a tenant at its limit holds up nobody else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Requests in flight, all tenants together.
    pub requests: Option<u32>,
    /// Requests in flight of one tenant.
    pub tenant_requests: Option<u32>,
    /// Tokens in flight of one tenant, prompts and outputs.
    pub tenant_tokens: Option<u64>,
    /// Requests that may wait at the router; one that comes when so many wait is rejected.
    pub waiting: Option<u32>,
}
