//! What decode has: the side that KV comes to, whichever way it goes.

use super::config::TransferConfig;
use super::end::End;
use super::initiator::{Initiator, InitiatorRoom};
use super::memory::InstanceMemory;
use super::pages::PageTable;
use super::pairing::Pairing;
use super::target::{Opening, Target, TargetRoom};
use crate::fabric::{Error, Fabric};
use crate::id::InstanceId;
use crate::node::{Cx, Reason};
use crate::policy::Direction;
use crate::registry::{Facts, PageList, Piece, Report, RoomKey};
use std::sync::Arc;

/// Decode's transfer engine.
pub enum Sink {
    /// It is written to.
    Push(Target),
    /// It reads.
    Pull(Initiator),
}

impl Sink {
    /// For an instance with this memory, see [`Initiator::new`] and [`Target::new`].
    pub fn new(
        config: TransferConfig,
        memory: InstanceMemory,
        fabric: &mut dyn Fabric,
        queue_pairs: u32,
    ) -> Result<Self, Error> {
        Ok(match config.direction {
            Direction::Push => Self::Push(Target::new(config, memory, fabric, queue_pairs)?),
            Direction::Pull => Self::Pull(Initiator::new(config, memory, fabric, queue_pairs)?),
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
    pub fn meet(&mut self, cx: &mut Cx<'_>, peer: InstanceId, facts: &Arc<Facts>, pairing: Arc<Pairing>) {
        match self {
            Self::Push(end) => end.meet(cx, peer, pairing),
            Self::Pull(end) => end.meet(cx, peer, facts.clone(), pairing),
        }
    }

    /// A room will come: in pull its page list may be here before there are pages to read to.
    pub fn expect(&mut self, cx: &mut Cx<'_>, spec: InitiatorRoom) {
        if let Self::Pull(end) = self {
            end.open(cx, spec);
        }
    }

    /// The registry lost what was said of a room, which has these pages if it is in transfer.
    pub fn tell_again(&mut self, key: &RoomKey, table: Option<&PageTable>) {
        match (self, table) {
            (Self::Push(end), Some(table)) => end.publish(key, table),
            (Self::Push(_), None) => {}
            (Self::Pull(end), _) => end.tell_again(*key),
        }
    }

    /// Whether the room has ended here, or is open.
    pub fn knows_room(&self, key: &RoomKey) -> bool {
        match self {
            Self::Push(end) => end.knows_room(key),
            Self::Pull(end) => end.knows_room(key),
        }
    }

    /// Whether a room of this peer and group can ever be opened.
    pub fn could_open(&self, peer: InstanceId, group: u16) -> bool {
        match self {
            Self::Push(end) => end.could_open(peer, group),
            Self::Pull(end) => end.could_land(),
        }
    }

    /// Whether a room of this peer and group could be opened now.
    pub fn opening(&self, peer: InstanceId, group: u16) -> Opening {
        match self {
            Self::Push(end) => end.opening(peer, group),
            Self::Pull(end) if end.can_land() => Opening::Now,
            Self::Pull(_) => Opening::Later,
        }
    }

    /// Gives a room these pages: publishes them, or reads into them. False, and nothing done, if that cannot be now.
    pub fn open(&mut self, cx: &mut Cx<'_>, spec: TargetRoom, table: &PageTable) -> bool {
        match self {
            Self::Push(end) => end.open(cx, spec, table),
            Self::Pull(end) => end.land(cx, &spec.key, table),
        }
    }

    /// Pull: prefill's page list, or a fragment of it.
    pub fn publish(&mut self, cx: &mut Cx<'_>, list: &PageList) {
        if let Self::Pull(end) = self {
            end.publish(cx, list);
        }
    }

    /// Pull: prefill's word that more can be read.
    pub fn produced(
        &mut self,
        cx: &mut Cx<'_>,
        key: &RoomKey,
        before: u32,
        pieces: &[Piece],
        last: Option<&[u64]>,
    ) {
        if let Self::Pull(end) = self {
            end.told(cx, key, before, pieces, last);
        }
    }

    /// Prefill's word on a room.
    pub fn report(&mut self, cx: &mut Cx<'_>, key: RoomKey, report: Report) {
        match self {
            Self::Push(end) => end.report(cx, key, report),
            Self::Pull(end) => end.ended_there(cx, key),
        }
    }

    /// The other side, the router or this node ends a room.
    pub fn abort(&mut self, cx: &mut Cx<'_>, key: RoomKey, reason: Reason) {
        match self {
            Self::Push(end) => end.abort(cx, key, reason, false),
            Self::Pull(end) => end.abort(cx, key, reason, false),
        }
    }

    /// This side needs the pages of a room no more; or, of one not yet decided, wants it no more.
    pub fn finish(&mut self, cx: &mut Cx<'_>, key: RoomKey) {
        match self {
            Self::Push(end) => end.finish(cx, key),
            Self::Pull(end) => end.finish(cx, key),
        }
    }
}
