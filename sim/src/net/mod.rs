//! The network of the simulated fabric, at message fidelity.
//!
//! A [`Topology`] says which links a message from one port to another crosses. A [`Network`] moves
//! *flows* over it: amounts of wire bytes with a weight and a rate cap. [`Fluid`] gives every flow
//! its weighted max-min fair rate at every instant, as if bytes were infinitely divisible
//! (Bertsekas and Gallager, *Data Networks*, 6.5.2), and works out when each flow ends.
//!
//! Times are whole picoseconds, capacities and caps are bytes per second. Nothing here depends on
//! the machine: only `+ - * /` on `f64`, and no iteration over hash maps.

mod class;
pub mod flows;
mod fluid;
mod max_min;
mod min_tree;
mod path;
mod topology;

pub use fluid::Fluid;
pub use path::{Link, LinkId, MAX_HOPS, Path, TopologyError};
pub use topology::{LeafSpine, Topology};

use thiserror::Error;

/// What a caller asks the network to move.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FlowSpec {
    /// Port where the bytes leave.
    pub src: u32,
    /// Port where they arrive.
    pub dst: u32,
    /// Bytes on the wire, headers included; zero is allowed and ends at once.
    pub bytes: f64,
    /// Share of this flow relative to others on a saturated link; positive, usually 1.
    pub weight: f64,
    /// Largest rate of this flow, bytes per second; infinity for none.
    pub cap: f64,
    /// Selects among equal-cost paths together with the ports.
    pub label: u32,
    /// Handed back in [`Done`]; means nothing to the network.
    pub tag: u32,
}

impl FlowSpec {
    /// A flow of `bytes` with weight 1, no cap, label 0 and tag 0.
    pub fn new(src: u32, dst: u32, bytes: f64) -> Self {
        FlowSpec { src, dst, bytes, weight: 1.0, cap: f64::INFINITY, label: 0, tag: 0 }
    }

    /// The same flow with this weight.
    pub fn weight(self, weight: f64) -> Self {
        FlowSpec { weight, ..self }
    }

    /// The same flow with this rate cap, bytes per second.
    pub fn cap(self, cap: f64) -> Self {
        FlowSpec { cap, ..self }
    }

    /// The same flow with this path label.
    pub fn label(self, label: u32) -> Self {
        FlowSpec { label, ..self }
    }

    /// The same flow with this tag.
    pub fn tag(self, tag: u32) -> Self {
        FlowSpec { tag, ..self }
    }
}

/// A flow in a network. Never handed out twice by one network, so a stale id is recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowId {
    /// Number of the start among all starts of this network.
    seq: u64,
    /// Place of the flow in the network's table.
    slot: u32,
}

/// A flow that carried its last byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// When the last byte was carried, picoseconds, rounded up.
    pub at: u64,
    /// Which flow.
    pub flow: FlowId,
    /// The tag it was started with.
    pub tag: u32,
}

/// Why the network refused a call.
#[derive(Clone, Copy, Debug, PartialEq, Error)]
pub enum NetError {
    /// A port that the topology does not have.
    #[error("port {port} does not exist: the topology has ports 0 to {}", ports.saturating_sub(1))]
    NoPort {
        /// The port asked for.
        port: u32,
        /// How many there are.
        ports: u32,
    },
    /// Two ports with no path between them.
    #[error("no path from port {src} to port {dst}: connect them, or use ports that share a switch")]
    NoPath {
        /// Sending port.
        src: u32,
        /// Receiving port.
        dst: u32,
    },
    /// Bytes that cannot be moved.
    #[error("a flow of {0} bytes: use a finite number that is not negative")]
    Bytes(f64),
    /// A weight that gives no share.
    #[error("flow weight {0}: use a finite number above zero")]
    Weight(f64),
    /// A cap that is not a rate.
    #[error("flow cap {0} bytes/s: use a number that is not negative, or infinity for none")]
    Cap(f64),
    /// A link that the topology does not have.
    #[error("link {link} does not exist: the topology has links 0 to {}", links.saturating_sub(1))]
    NoLink {
        /// The link asked for.
        link: u32,
        /// How many there are.
        links: u32,
    },
    /// A capacity that is not a rate.
    #[error("link capacity {0} bytes/s: use a finite number that is not negative (0 is down)")]
    Capacity(f64),
    /// A flow that ended, was cancelled, or never was.
    #[error("flow {0:?} is not in the network: it ended or was cancelled")]
    NoFlow(FlowId),
}

/// Moves flows in virtual time.
///
/// Every `now` is at or after the last instant the network was told; an earlier one counts as that
/// instant. Calls at one instant may come in any order: rates are worked out once, when they are
/// next needed. A flow that ends before an instant which the caller names without having called
/// [`advance`](Network::advance) is kept and handed out by the next `advance`.
pub trait Network {
    /// Starts a flow which takes part from `now` on.
    fn start(&mut self, now: u64, flow: &FlowSpec) -> Result<FlowId, NetError>;

    /// Starts a flow which takes part from `at` on; until then it is only remembered.
    fn start_at(&mut self, now: u64, at: u64, flow: &FlowSpec) -> Result<FlowId, NetError>;

    /// The next instant at which the network has something to do: a flow ends, or one starts that
    /// was given a later instant. `None` when nothing will happen without a further call.
    fn next(&mut self) -> Option<u64>;

    /// Moves to `to` and appends the flows that ended at or before it, by end, then by start.
    fn advance(&mut self, to: u64, done: &mut Vec<Done>);

    /// Takes a flow out and returns the bytes it had carried.
    fn cancel(&mut self, now: u64, flow: FlowId) -> Result<f64, NetError>;

    /// Bytes a flow has carried by `now`.
    fn served(&mut self, now: u64, flow: FlowId) -> Result<f64, NetError>;

    /// Rate of a flow after everything that happened at `now`, bytes per second.
    fn rate(&mut self, now: u64, flow: FlowId) -> Result<f64, NetError>;

    /// Gives a flow another weight and cap (bytes per second) from `now` on.
    fn reshape(&mut self, now: u64, flow: FlowId, weight: f64, cap: f64) -> Result<(), NetError>;

    /// Gives a link another capacity (bytes per second) from `now` on; 0 is a link that is down.
    fn set_capacity(&mut self, now: u64, link: LinkId, capacity: f64) -> Result<(), NetError>;

    /// The links and paths it runs on, with the capacities it was made with.
    fn topology(&self) -> &Topology;
}
