//! The initiator's end of a link: ask, offer, answer, ready. Connecting is reconnecting.

use super::super::memory::InstanceMemory;
use super::super::news::News;
use super::super::pairing::Pairing;
use super::Initiator;
use super::room::PartState;
use crate::fabric::{Access, Completion, Error, Fabric, QpSpec, QpState, Rtr, Status, Step};
use crate::id::{InstanceId, PortId, QpId};
use crate::node::{Cx, Reason};
use crate::policy::{Direction, JobId};
use crate::registry::{Endpoints, Facts, LinkBody, LiveRoom, Message, RoomKey};
use std::collections::VecDeque;
use std::sync::Arc;

/// Requests posted with one doorbell; its last one is signalled.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slice {
    pub last: u64,
    pub requests: u64,
    pub bytes: u64,
    pub room: u32,
    pub part: u32,
    /// Whether it is the end of its part.
    pub end: bool,
}

/// One queue pair.
#[derive(Clone, Debug)]
pub(super) struct LinkWire {
    pub qp: QpId,
    pub port: PortId,
    /// Id of the next request. Starts high, so that a plan's first id never falls below zero.
    pub next: u64,
    /// Send queue slots in use.
    pub used: u64,
    pub slices: VecDeque<Slice>,
    /// Jobs that wait for send queue room.
    pub blocked: Vec<JobId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Not connected, or broken.
    Down,
    /// Answered; the target has not said ready.
    Answered,
    /// May post.
    Up,
}

/// An offer not yet answered.
#[derive(Clone, Debug)]
struct Offer {
    number: u32,
    fence_epoch: u32,
    reads: u8,
    endpoints: Endpoints,
    live: Vec<LiveRoom>,
}

/// All queue pairs to one target.
#[derive(Clone, Debug)]
pub(super) struct Link {
    pub facts: Arc<Facts>,
    pub pairing: Arc<Pairing>,
    pub wires: Vec<LinkWire>,
    pub rooms: Vec<u32>,
    /// Slices posted and not completed.
    pub outstanding: u64,
    state: State,
    /// Newest offer heard of, and the one accepted.
    heard: u32,
    accepted: u32,
    fence_epoch: u32,
    live: Vec<RoomKey>,
    pending: Option<Offer>,
    /// An offer was asked for, and neither it nor a refusal has come.
    asked: bool,
}

impl Link {
    pub(super) fn new(facts: Arc<Facts>, pairing: Arc<Pairing>) -> Self {
        Self {
            facts,
            pairing,
            wires: Vec::new(),
            rooms: Vec::new(),
            outstanding: 0,
            state: State::Down,
            heard: 0,
            accepted: 0,
            fence_epoch: 0,
            live: Vec::new(),
            pending: None,
            asked: false,
        }
    }
    pub(super) fn is_up(&self) -> bool {
        self.state == State::Up
    }
    /// Whether a page list of this epoch is older than the last accepted offer, and its room not live there.
    pub(super) fn is_stale(&self, fence_epoch: u32, key: &RoomKey) -> bool {
        fence_epoch < self.fence_epoch && !self.live.contains(key)
    }
    /// The local port of a wire, also before there are queue pairs.
    pub(super) fn port_of(&self, wire: usize, memory: &InstanceMemory) -> PortId {
        let wire = &self.pairing.wires[wire];
        memory.ranks[wire.src.index()].ports[usize::from(wire.rail)]
    }
}

impl Initiator {
    /// Asks the target for an offer.
    pub(super) fn ask(&mut self, peer: InstanceId) {
        if let Some(link) = self.links.get_mut(&peer) {
            link.asked = true;
            let body = LinkBody::Ask { broken: link.accepted };
            self.news.push_back(News::Tell(Message::Link { peer, body }));
        }
    }

    /// Asks again on a link that is down for good: the last attempt was refused. One refused attempt fails the rooms that there
    /// are, and must not condemn those to come.
    pub(super) fn ask_if_idle(&mut self, peer: InstanceId) {
        let idle = |link: &Link| link.state == State::Down && link.pending.is_none() && !link.asked;
        if self.links.get(&peer).is_some_and(idle) {
            self.ask(peer);
        }
    }

    /// What the target says about the link.
    pub(super) fn heard(&mut self, cx: &mut Cx<'_>, peer: InstanceId, body: LinkBody) {
        let rules = self.config.rules;
        let Some(link) = self.links.get_mut(&peer) else { return };
        match body {
            LinkBody::Offer { offer, fence_epoch, rails, reads, endpoints, live } => {
                if offer <= link.heard {
                    return;
                }
                link.heard = offer;
                link.asked = false;
                let other = (reads > 0) != (self.config.direction == Direction::Pull);
                if other || rails != link.pairing.rails || endpoints.len() != link.pairing.wires.len() {
                    self.refuse(cx, peer);
                    return;
                }
                link.pending = Some(Offer { number: offer, fence_epoch, reads, endpoints, live });
                let ended: Vec<RoomKey> = if rules.live_list {
                    let offer = link.pending.as_ref();
                    let listed =
                        |key| offer.is_some_and(|offer| offer.live.iter().any(|room| room.key == key));
                    let rooms = link.rooms.iter().filter_map(|i| self.rooms[*i as usize].as_ref());
                    rooms
                        .filter(|room| room.remote.is_some() && !listed(room.spec.key))
                        .map(|room| room.spec.key)
                        .collect()
                } else {
                    Vec::new()
                };
                self.broken(cx, peer, false);
                for key in ended {
                    self.fail(cx, key, Reason::Refused, true);
                }
                self.answer(cx, peer);
            }
            LinkBody::Ready { offer } => {
                if link.state == State::Answered && link.accepted == offer {
                    self.raise(cx, peer);
                }
            }
            LinkBody::Refuse { .. } => {
                link.asked = false;
                link.pending = None;
                self.broken(cx, peer, false);
                self.refuse(cx, peer);
            }
            LinkBody::Ask { .. } | LinkBody::Answer { .. } => {}
        }
    }

    /// The link may post again.
    fn raise(&mut self, cx: &mut Cx<'_>, peer: InstanceId) {
        let Some(link) = self.links.get_mut(&peer) else { return };
        link.state = State::Up;
        for index in link.rooms.clone() {
            self.queue_jobs(index);
        }
        self.pump_all(cx);
    }

    /// The two cannot be linked: every room between them fails.
    fn refuse(&mut self, cx: &mut Cx<'_>, peer: InstanceId) {
        let Some(link) = self.links.get(&peer) else { return };
        let rooms = link.rooms.iter().filter_map(|i| self.rooms[*i as usize].as_ref());
        let keys: Vec<RoomKey> = rooms.map(|room| room.spec.key).collect();
        for key in keys {
            self.fail(cx, key, Reason::Layout, true);
        }
    }

    /// The link broke: nothing more is posted on it, and what is posted is flushed out.
    pub(super) fn broken(&mut self, cx: &mut Cx<'_>, peer: InstanceId, tell: bool) {
        let Some(link) = self.links.get_mut(&peer) else { return };
        if link.state == State::Down {
            return;
        }
        link.state = State::Down;
        for wire in &mut link.wires {
            for id in wire.blocked.drain(..) {
                self.jobs[id as usize].blocked = None;
            }
            if !matches!(cx.fabric.qp_state(wire.qp), Ok(QpState::Err | QpState::Reset)) {
                // A queue pair that cannot be moved is gone already.
                let _ = cx.fabric.modify_qp(wire.qp, Step::Err);
            }
        }
        for index in link.rooms.clone() {
            self.drop_jobs(index);
        }
        if tell && self.config.rules.ask {
            self.ask(peer);
        }
    }

    /// Answers the pending offer once every completion is in.
    fn answer(&mut self, cx: &mut Cx<'_>, peer: InstanceId) {
        let Some(link) = self.links.get_mut(&peer) else { return };
        if link.outstanding > 0 {
            return;
        }
        let Some(offer) = link.pending.take() else { return };
        let endpoints = match self.connect(cx.fabric, peer, &offer.endpoints, offer.reads) {
            Ok(endpoints) => endpoints,
            Err(_) => {
                let body = LinkBody::Refuse { reason: Reason::Layout };
                self.news.push_back(News::Tell(Message::Link { peer, body }));
                self.refuse(cx, peer);
                return;
            }
        };
        let rules = self.config.rules;
        let Some(link) = self.links.get_mut(&peer) else { return };
        link.state = State::Answered;
        link.accepted = offer.number;
        link.fence_epoch = offer.fence_epoch;
        link.live = offer.live.iter().map(|room| room.key).collect();
        let body = LinkBody::Answer { offer: offer.number, fence_epoch: offer.fence_epoch, endpoints };
        self.news.push_back(News::Tell(Message::Link { peer, body }));
        let pairing = link.pairing.clone();
        for index in link.rooms.clone() {
            let Some(room) = self.rooms.get_mut(index as usize).and_then(Option::as_mut) else { continue };
            // The target fenced before it offered: what failed before that cannot execute any more.
            room.dirty = false;
            let seen = offer.live.iter().find(|live| live.key == room.spec.key);
            let mut again = 0;
            for part in &mut room.parts {
                let feed = &pairing.feeds[usize::from(part.feed)];
                let name = (feed.src, feed.dst, part.number);
                if part.state == PartState::Done {
                    continue;
                }
                if rules.seen_list && part.cursor > 0 && seen.is_some_and(|room| room.seen.contains(&name)) {
                    part.state = PartState::Done;
                    room.undone -= 1;
                    continue;
                }
                again += u32::from(part.cursor > 0);
                part.state = PartState::Waiting;
                part.cursor = 0;
            }
            let parts = 0..room.parts.len() as u32;
            let key = room.spec.key;
            if again > 0 {
                room.retries += 1;
                if room.retries > self.config.retries {
                    self.fail(cx, key, Reason::Retries, true);
                    continue;
                }
            }
            self.drop_jobs(index);
            self.enqueue(index, parts);
            self.settle(cx, index);
        }
        if !rules.ready_gate {
            self.raise(cx, peer);
        }
    }

    /// Resets this side's ends, makes them if there are none, and connects them.
    fn connect(
        &mut self,
        fabric: &mut dyn Fabric,
        peer: InstanceId,
        theirs: &Endpoints,
        reads: u8,
    ) -> Result<Endpoints, Error> {
        let mut rts = self.config.rts_within(fabric.limits());
        if reads > 0 {
            // More READs than the target answers at a time would be an error there.
            rts.max_rd_atomic = rts.max_rd_atomic.min(reads);
        }
        let Some(link) = self.links.get_mut(&peer) else { return Err(Error::NoSuch("link")) };
        // All of them the first time, what is missing if that was refused half way.
        for index in link.wires.len()..link.pairing.wires.len() {
            let port = link.port_of(index, &self.memory);
            let cq = self.ports[port.index()].cq;
            let spec = QpSpec {
                send_cq: cq,
                recv_cq: cq,
                srq: None,
                max_send: self.config.send_depth,
                max_recv: 0,
                max_sge: u32::from(self.config.max_sge),
                max_inline: super::super::wire::AUX_BYTES as u32,
            };
            let qp = fabric.create_qp(port, spec)?;
            self.qps.insert(qp, (peer, index));
            link.wires.push(LinkWire {
                qp,
                port,
                next: 1 << 40,
                used: 0,
                slices: VecDeque::new(),
                blocked: Vec::new(),
            });
        }
        let mut endpoints = Vec::with_capacity(link.wires.len());
        for (wire, theirs) in link.wires.iter().zip(theirs) {
            fabric.modify_qp(wire.qp, Step::Reset)?;
            fabric.modify_qp(wire.qp, Step::Init(Access::default()))?;
            endpoints.push(fabric.endpoint(wire.qp)?);
            let rtr = Rtr {
                peer: *theirs,
                max_dest_rd_atomic: rts.max_rd_atomic,
                min_rnr_timer: self.config.min_rnr_timer,
            };
            fabric.modify_qp(wire.qp, Step::Rtr(rtr))?;
            fabric.modify_qp(wire.qp, Step::Rts(rts))?;
        }
        Ok(endpoints)
    }

    /// One completion.
    pub(super) fn completed(&mut self, cx: &mut Cx<'_>, completion: &Completion) {
        let Some((peer, index)) = self.qps.get(&completion.qp).copied() else { return };
        let id = completion.id.0;
        match completion.result {
            Ok(_) => {
                while let Some(slice) = self.pop_slice(peer, index, |slice| slice.last <= id) {
                    self.finished(cx, slice, true);
                }
            }
            Err(failed) => {
                let Some(link) = self.links.get(&peer) else { return };
                // The first one that is neither success nor flush names the culprit, also when the target's offer came before it.
                if failed.status != Status::WrFlush {
                    let culprit = link.wires[index].slices.front().map(|slice| slice.room);
                    // A responder that lost its place in a message says RemInvReq, as Linux' rxe does after some
                    // retransmissions. A request that is invalid fails again, and the bound on re-posts ends its room.
                    let retry = matches!(
                        failed.status,
                        Status::RetryExc | Status::RnrRetryExc | Status::RemOp | Status::RemInvReq
                    );
                    if let Some(room) = culprit.and_then(|room| self.rooms[room as usize].as_ref())
                        && !retry
                    {
                        let key = room.spec.key;
                        self.fail(cx, key, Reason::Transfer, true);
                    }
                }
                self.broken(cx, peer, true);
                if let Some(slice) = self.pop_slice(peer, index, |slice| slice.last == id) {
                    self.finished(cx, slice, false);
                }
            }
        }
        let drained = self.links.get(&peer).is_some_and(|link| link.outstanding == 0);
        if drained {
            self.answer(cx, peer);
        }
    }

    fn pop_slice(&mut self, peer: InstanceId, index: usize, when: impl Fn(&Slice) -> bool) -> Option<Slice> {
        let link = self.links.get_mut(&peer)?;
        let wire = &mut link.wires[index];
        let slice = wire.slices.front().copied().filter(|slice| when(slice))?;
        wire.slices.pop_front();
        wire.used -= slice.requests;
        link.outstanding -= 1;
        let port = &mut self.ports[wire.port.index()];
        port.posted_bytes -= slice.bytes;
        port.posted_requests -= slice.requests;
        for id in wire.blocked.drain(..) {
            let job = &mut self.jobs[id as usize];
            job.blocked = None;
            if let Some(room) = self.rooms.get(job.room as usize).and_then(Option::as_ref)
                && !job.queued
                && !job.parts.is_empty()
                // The number may have another job by now. To wake one too early on this port is harmless; to put it into another
                // port's queue is not, for nothing would ever take it out.
                && job.port == wire.port
            {
                job.queued = true;
                let (tenant, arrived) = (room.spec.tenant, room.arrived);
                port.order.push(crate::policy::Job { id, tenant, arrived, left: job.left });
            }
        }
        Some(slice)
    }

    fn finished(&mut self, cx: &mut Cx<'_>, slice: Slice, ok: bool) {
        let Some(room) = self.room_mut(slice.room) else { return };
        room.outstanding -= 1;
        if !ok {
            room.dirty = true;
        } else if slice.end {
            let part = &mut room.parts[slice.part as usize];
            if part.state != PartState::Done {
                part.state = PartState::Done;
                part.plans = Vec::new();
                room.undone -= 1;
            }
        }
        self.settle(cx, slice.room);
    }

    /// Destroys the queue pairs of a link. What they had posted counts as failed, and this side's pages are free of it: a destroyed
    /// queue pair reads nothing any more. New ones are made with the next answer.
    pub(super) fn scrap(&mut self, cx: &mut Cx<'_>, peer: InstanceId) {
        self.broken(cx, peer, false);
        let Some(link) = self.links.get_mut(&peer) else { return };
        link.outstanding = 0;
        for wire in std::mem::take(&mut link.wires) {
            self.qps.remove(&wire.qp);
            // A fabric that refuses has lost it already.
            let _ = cx.fabric.destroy_qp(wire.qp);
            for slice in wire.slices {
                let port = &mut self.ports[wire.port.index()];
                port.posted_bytes -= slice.bytes;
                port.posted_requests -= slice.requests;
                self.finished(cx, slice, false);
            }
        }
    }
}
