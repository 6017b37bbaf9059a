//! What the two ends of a link have in common, whichever side of a room they serve.

use super::memory::InstanceMemory;
use super::news::News;
use crate::fabric::{Completion, Error, Event, Fabric, QpState};
use crate::id::{InstanceId, QpId, RequestId};
use crate::node::{Cx, Reason};
use crate::registry::{LinkBody, RoomKey};
use crate::time::Time;

/// What an end holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndHeld {
    /// Rooms not yet released.
    pub rooms: u64,
    /// Aux and staging slots given out.
    pub slots: u64,
    /// Timers armed.
    pub timers: u64,
    /// Queue pairs of links.
    pub queue_pairs: u64,
    /// Receives promised to rooms.
    pub receives: u64,
}

/// What is counted: but for staging events that a fault-free run never sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndStats {
    /// Immediates of a slot's earlier life, or from a queue pair that is not the room's sender's.
    pub stale_immediates: u64,
    /// Parts seen before.
    pub repeated_parts: u64,
    /// Fences.
    pub fences: u64,
    /// Rooms whose aux row was not there at Success.
    pub missing_aux: u64,
    /// Staged parts posted, and posted again; at the target: scattered.
    pub staged_parts: u64,
    /// Bytes gathered for them; at the target: scattered.
    pub staged_bytes: u64,
    /// Rooms that failed because what arrived had another checksum.
    pub checksum_mismatches: u64,
}

/// What a room is doing at one end. It only ever moves on, and the last two are final.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RoomState {
    /// Open; the pages of one of the two sides are missing.
    Bootstrapping,
    /// The pages of both sides are known, and nothing has moved.
    WaitingForInput,
    /// Some of its KV was posted, told of or seen.
    Transferring,
    /// All of it is there, or as the initiator of WRITEs says it: delivered.
    Success,
    /// It ended without.
    Failed,
}

/// Whether the event that a queue pair failed is about what it is now. Completions may say so first, and it may be connected anew before the
/// event is heard: a link that works must not be broken for it, and its rooms not lose one of their tries.
pub(super) fn has_failed(fabric: &dyn Fabric, qp: QpId) -> bool {
    !matches!(fabric.qp_state(qp), Ok(QpState::Init | QpState::Rtr | QpState::Rts))
}

/// One end of the links of an instance: the [`super::Initiator`] of its requests, or their [`super::Target`].
pub trait End: std::fmt::Debug {
    /// The pools.
    fn memory(&self) -> &InstanceMemory;
    /// This node's lease holds until then; no Success is reported later.
    fn set_lease(&mut self, until: Time);
    /// The next thing to know.
    fn next_news(&mut self) -> Option<News>;
    /// When it wants [`End::wake`].
    fn deadline(&self) -> Option<Time>;
    /// Deadlines that passed.
    fn wake(&mut self, cx: &mut Cx<'_>);
    /// Whether a deadline of a room is to come.
    fn is_timed(&self, key: &RoomKey) -> bool;
    /// The deadline of this room passes now, whatever the clock says, and no other does. For an explorer of every order: how far apart
    /// deadlines are is a matter of configuration, and nothing may be lost whichever passes first. False if there is none.
    fn expire(&mut self, cx: &mut Cx<'_>, key: RoomKey) -> bool;
    /// Completions that the driver polled.
    fn completions(&mut self, cx: &mut Cx<'_>, batch: &[Completion]);
    /// An asynchronous event.
    fn event(&mut self, cx: &mut Cx<'_>, event: Event);
    /// Whether the peer's facts are known.
    fn knows(&self, peer: InstanceId) -> bool;
    /// What the other end says about the link.
    fn link(&mut self, cx: &mut Cx<'_>, peer: InstanceId, body: LinkBody);
    /// A restarted registry lost what it had not passed on: handshakes under way begin anew.
    fn say_again(&mut self, cx: &mut Cx<'_>);
    /// Every room with a peer fails: this instance cannot be paired with it.
    fn reject_peer(&mut self, cx: &mut Cx<'_>, peer: InstanceId, reason: Reason, tell: bool);
    /// The peer is gone for good: its rooms fail, and the link goes.
    fn peer_gone(&mut self, cx: &mut Cx<'_>, peer: InstanceId);
    /// Every room fails for the same reason, and every link is cut: this instance's life is over.
    fn abandon(&mut self, cx: &mut Cx<'_>, reason: Reason);
    /// What it holds.
    fn held(&self) -> EndHeld;
    /// What happened that should not.
    fn stats(&self) -> EndStats;
    /// Every room that is not released, in an order that depends on nothing but the past.
    fn rooms(&self, see: &mut dyn FnMut(RoomKey, RequestId, RoomState));
    /// How a room ended that is released, for as long as that is remembered.
    fn ended(&self, key: &RoomKey) -> Option<RoomState>;
    /// Destroys queue pairs, shared receive queues, completion queues and memory.
    fn close(&mut self, fabric: &mut dyn Fabric) -> Result<(), Error>;
}
