//! What prefill has: the side that KV leaves, whichever way it goes.

use super::config::TransferConfig;
use super::end::End;
use super::initiator::{Initiator, InitiatorRoom};
use super::memory::InstanceMemory;
use super::pages::PageTable;
use super::pairing::Pairing;
use super::target::{Target, TargetRoom};
use crate::fabric::{Error, Fabric};
use crate::id::InstanceId;
use crate::node::{Cx, Reason};
use crate::policy::Direction;
use crate::registry::{Facts, PageList, Report, RoomKey};
use std::ops::Range;
use std::sync::Arc;

/// Prefill's transfer engine.
pub enum Source {
    /// It writes.
    Push(Initiator),
    /// It is read from.
    Pull(Target),
}

impl Source {
    /// For an instance with this memory, see [`Initiator::new`] and [`Target::new`].
    pub fn new(
        config: TransferConfig,
        memory: InstanceMemory,
        fabric: &mut dyn Fabric,
        queue_pairs: u32,
    ) -> Result<Self, Error> {
        Ok(match config.direction {
            Direction::Push => Self::Push(Initiator::new(config, memory, fabric, queue_pairs)?),
            Direction::Pull => Self::Pull(Target::new(config, memory, fabric, queue_pairs)?),
        })
    }

    /// What both directions have.
    pub fn end(&self) -> &dyn End {
        match self {
            Self::Push(end) => end,
            Self::Pull(end) => end,
        }
    }
    /// The same, to change.
    pub fn end_mut(&mut self) -> &mut dyn End {
        match self {
            Self::Push(end) => end,
            Self::Pull(end) => end,
        }
    }

    /// A peer's facts.
    pub fn meet(&mut self, cx: &mut Cx<'_>, peer: InstanceId, facts: Arc<Facts>, pairing: Arc<Pairing>) {
        match self {
            Self::Push(end) => end.meet(cx, peer, facts, pairing),
            Self::Pull(end) => end.meet(cx, peer, pairing),
        }
    }

    /// Opens a room. False if it is open already or has ended here; what the other side may have missed is told again.
    pub fn open(&mut self, cx: &mut Cx<'_>, spec: InitiatorRoom) -> bool {
        match self {
            Self::Push(end) => end.open(cx, spec),
            Self::Pull(end) => {
                let InitiatorRoom { key, request, peer, group, tokens, .. } = spec;
                end.open_shown(cx, TargetRoom { key, request, peer, group, tokens })
            }
        }
    }

    /// Whether the room is open and not ending.
    pub fn is_active(&self, key: &RoomKey) -> bool {
        match self {
            Self::Push(end) => end.is_active(key),
            Self::Pull(end) => end.is_live(key),
        }
    }

    /// Whether a room could be given its pages now: in pull that takes an aux slot.
    pub fn can_attach(&self) -> bool {
        match self {
            Self::Push(_) => true,
            Self::Pull(end) => end.can_attach(),
        }
    }

    /// The room's pages on this side, and how many of its tokens came from the prefix cache.
    pub fn attach(&mut self, cx: &mut Cx<'_>, key: &RoomKey, table: &PageTable, cached: u32) {
        match self {
            Self::Push(end) => end.attach(key, table, cached),
            Self::Pull(end) => {
                end.attach(cx, key, table, cached);
            }
        }
    }

    /// More KV of a room is in its pages: these tokens of these layers. `last` says that it was the rest.
    pub fn produced(
        &mut self,
        cx: &mut Cx<'_>,
        key: &RoomKey,
        tokens: Range<u32>,
        layers: Range<u32>,
        last: bool,
    ) {
        match self {
            Self::Push(end) => end.produced(cx, key, tokens, layers, last),
            Self::Pull(end) => end.produced(cx, key, tokens, layers, last),
        }
    }

    /// Push: decode's page list, or a fragment of it.
    pub fn publish(&mut self, cx: &mut Cx<'_>, list: &PageList) {
        if let Self::Push(end) = self {
            end.publish(cx, list);
        }
    }

    /// Push: decode's word on staged parts.
    pub fn scattered(&mut self, cx: &mut Cx<'_>, key: RoomKey, done: &[u32]) {
        if let Self::Push(end) = self {
            end.scattered(cx, key, done);
        }
    }

    /// Pull: decode's word on a room.
    pub fn report(&mut self, cx: &mut Cx<'_>, key: RoomKey, report: Report) {
        if let Self::Pull(end) = self {
            end.report(cx, key, report);
        }
    }

    /// Somebody ends a room.
    pub fn abort(&mut self, cx: &mut Cx<'_>, key: RoomKey, reason: Reason, tell: bool) {
        match self {
            Self::Push(end) => end.abort(cx, key, reason, tell),
            Self::Pull(end) => end.abort(cx, key, reason, tell),
        }
    }
}
