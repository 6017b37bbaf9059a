//! The interface to a NIC, cut at the level of RDMA verbs.
//!
//! [`Fabric`] is what one host's NICs, memory and queue pairs can do. It is cut this low because what goes
//! wrong in KV transfer goes wrong here: a chain that stops in the middle, a completion that never comes,
//! a remote key that went stale, a receive queue that ran dry. Both implementations pass one conformance
//! suite. Object handles are small copyable ids; no call waits for the network.
//!
//! Memory is made and checked by *content* ([`Fabric::stamp`], [`Fabric::holds`]), so that the same nodes run on
//! real bytes and on phantom memory, which stores only where each byte came from.
//!
//! Where a rule below has no other source it is the InfiniBand Architecture Specification, volume 1, chapters
//! 9 to 11, as implemented by Linux (drivers/infiniband) and documented in the libibverbs manual pages.

mod absent;
pub mod bytes;
mod completion;
mod copy;
mod device;
mod duo;
mod memory;
mod qp;
#[cfg(feature = "verbs")]
pub mod verbs;
mod work;

pub use absent::Absent;
pub use completion::{Completion, Done, Event, Failed, Opcode, Status};
pub use copy::LocalCopy;
pub use device::{Device, DeviceConfig, GidChoice, Objects, Reach};
pub use duo::Duo;
pub use memory::{Access, Content, Extent, Grid, Memory, Mr, Units};
pub use qp::{
    Endpoint, Gid, Limits, LinkLayer, Port, QpSpec, QpState, Recv, RnrTimer, Rtr, Rts, SrqSpec, Step,
    ack_timeout, rnr_delay,
};
pub use work::{
    Batch, Flags, Item, Lane, Lanes, MAX_GATHER, Op, Plan, PlanError, Run, Sge, Totals, WorkRequest,
};

use crate::id::{BufId, CopyId, CqId, MrId, PortId, QpId, SrqId};
use std::ops::Range;

/// Why a fabric refused a call. Nothing has changed then, except as [`Refused`] says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The id names nothing (any more).
    #[error("no such {0}")]
    NoSuch(&'static str),
    /// The object's state does not allow it (EINVAL of `ibv_modify_qp`, `ibv_post_*`).
    #[error("{what} is in state {state:?}, which does not allow this")]
    State {
        /// What the call needed.
        what: &'static str,
        /// The state it is in.
        state: QpState,
    },
    /// A queue is full (ENOMEM of `ibv_post_send`, `ibv_post_recv`).
    #[error("queue full")]
    QueueFull,
    /// Something still uses the object (EBUSY).
    #[error("{0} is still in use")]
    Busy(&'static str),
    /// An argument is out of its range.
    #[error("{what}: {value} is not valid, {right}")]
    Invalid {
        /// The argument.
        what: &'static str,
        /// Its value.
        value: u64,
        /// What would be right.
        right: &'static str,
    },
    /// This fabric has no such kind of memory or operation.
    #[error("this fabric has no {0}")]
    Unsupported(&'static str),
    /// The operating system or the device's driver refused.
    #[error("{call}: {}{}{advice}", os(*.errno), if .advice.is_empty() { "" } else { "; " })]
    System {
        /// What was called.
        call: &'static str,
        /// Its error number.
        errno: i32,
        /// What usually mends it; empty if nothing does.
        advice: &'static str,
    },
}

fn os(errno: i32) -> std::io::Error {
    std::io::Error::from_raw_os_error(errno)
}

/// The answer of a fabric call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A chain that was posted in part: requests before `at` are posted; `at` and what follows are not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("request {at} of the chain: {why}")]
pub struct Refused {
    /// Index over all requests of the chain, repeats expanded.
    pub at: u64,
    /// Why that one was not posted.
    pub why: Error,
}

/// One host's NICs, memory and the objects on them.
///
/// Object-safe: nodes hold `&mut dyn Fabric`. A call costs a few nanoseconds of dispatch, once per batch.
pub trait Fabric: Send {
    /// The ports of this host, in id order.
    fn ports(&self) -> &[Port];
    /// What this host's devices can do at most.
    fn limits(&self) -> &Limits;
    /// Whether packets from `port` can reach the remote port of `peer` (on a rail-only network not all do).
    fn reaches(&self, port: PortId, peer: &Endpoint) -> bool;

    /// Makes a buffer. Its bytes are undefined: read nothing that was not written.
    fn alloc(&mut self, kind: Memory, grid: Grid) -> Result<BufId>;
    /// Gives a buffer back. [`Error::Busy`] while a registration names it.
    fn free(&mut self, buf: BufId) -> Result<()>;
    /// Copies bytes in, as the CPU (or GPU) would.
    fn write(&mut self, buf: BufId, at: u64, bytes: &[u8]) -> Result<()>;
    /// Copies bytes out. Phantom memory has none: [`Error::Unsupported`].
    fn read(&self, buf: BufId, at: u64, bytes: &mut [u8]) -> Result<()>;
    /// Writes content as prefill compute would.
    fn stamp(&mut self, buf: BufId, place: &Extent, what: Content) -> Result<()>;
    /// Whether every byte of `place` holds just this content.
    fn holds(&self, buf: BufId, place: &Extent, what: Content) -> Result<bool>;
    /// A sum over the units of a place, of their bytes and names ([`bytes::checksum`]): equal places of equal names have equal sums, however
    /// they are cut into calls. Phantom memory sums where its bytes came from.
    fn checksum(&self, buf: BufId, place: &Extent, units: Units) -> Result<u64>;
    /// Makes writes that arrived (as told by a completion) visible to whoever computes on this kind of memory.
    /// Nothing to do for host memory.
    fn flush(&mut self, buf: BufId) -> Result<()>;
    /// Starts a copy within this host's memory and returns; [`Event::Copied`] with this id says that it is over. Bytes are read and written
    /// at any time until then: neither the one may be changed nor the other used, and a buffer of it cannot be freed ([`Error::Busy`]).
    /// A refused copy does nothing, an accepted one does not fail. Copies of one `engine` (the queue of a GPU, named by its rank here)
    /// are done one after the other, in the order of the calls; nothing orders two engines, or a copy and a queue pair.
    fn copy(&mut self, engine: u32, id: CopyId, parts: &[LocalCopy<'_>]) -> Result<()>;

    /// Registers `span` bytes of a buffer with one port's device.
    fn register(&mut self, port: PortId, buf: BufId, span: Range<u64>, access: Access) -> Result<Mr>;
    /// Ends a registration. Requests that still name it fail; the caller makes sure that there are none.
    fn deregister(&mut self, mr: MrId) -> Result<()>;

    /// Makes a completion queue with room for `depth` completions; more than that overrun it.
    fn create_cq(&mut self, port: PortId, depth: u32) -> Result<CqId>;
    /// Destroys it. [`Error::Busy`] while a queue pair uses it.
    fn destroy_cq(&mut self, cq: CqId) -> Result<()>;
    /// Makes a shared receive queue.
    fn create_srq(&mut self, port: PortId, spec: SrqSpec) -> Result<SrqId>;
    /// Arms the limit event: [`Event::SrqLimit`] once when fewer than `limit` receives are left.
    fn arm_srq(&mut self, srq: SrqId, limit: u32) -> Result<()>;
    /// Destroys it. [`Error::Busy`] while a queue pair uses it.
    fn destroy_srq(&mut self, srq: SrqId) -> Result<()>;
    /// Makes a queue pair (RC) in RESET.
    fn create_qp(&mut self, port: PortId, spec: QpSpec) -> Result<QpId>;
    /// What a peer needs to connect to it. The first PSN is drawn anew at every step to INIT; after a step to RESET or ERR the
    /// number may be another one too.
    fn endpoint(&self, qp: QpId) -> Result<Endpoint>;
    /// One state change; a refused one changes nothing. To ERR: everything outstanding completes flushed.
    /// To RESET: outstanding work and completions not yet polled are discarded.
    fn modify_qp(&mut self, qp: QpId, step: Step) -> Result<()>;
    /// Its state.
    fn qp_state(&self, qp: QpId) -> Result<QpState>;
    /// Destroys it; outstanding work and completions are discarded.
    fn destroy_qp(&mut self, qp: QpId) -> Result<()>;

    /// Posts a chain with one doorbell. Legal in RTS; in ERR every request completes flushed. A full queue
    /// refuses in ERR too; as the device empties it at the same time, when it has room again is a race.
    fn post_send(&mut self, qp: QpId, chain: &[Item<'_>]) -> Result<(), Refused>;
    /// Posts receives on a queue pair's own receive queue. Legal from INIT on.
    fn post_recv(&mut self, qp: QpId, recv: Recv<'_>) -> Result<(), Refused>;
    /// Posts receives on a shared receive queue.
    fn post_srq_recv(&mut self, srq: SrqId, recv: Recv<'_>) -> Result<(), Refused>;
    /// Takes completions out of a queue, oldest first; returns how many.
    fn poll(&mut self, cq: CqId, into: &mut [Completion]) -> usize;
    /// The next asynchronous event, if any.
    fn next_event(&mut self) -> Option<Event>;
}
