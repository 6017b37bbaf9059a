//! The initiator's end of a link: ask, offer, answer, ready. Connecting is reconnecting.

use super::super::news::News;
use super::super::pairing::Pairing;
use super::super::usable::Usable;
use super::Initiator;
use super::paths::Path;
use super::room::PartState;
use crate::fabric::{Access, Completion, Endpoint, Error, Fabric, QpSpec, QpState, Rtr, Status, Step};
use crate::id::{InstanceId, PortId, QpId};
use crate::node::{Cx, Reason};
use crate::policy::{Direction, JobId};
use crate::registry::{Endpoints, Facts, LinkBody, LiveRoom, Message, RoomKey};
use crate::time::Time;
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
    /// When.
    pub posted: Time,
    /// Whether it is the end of its part.
    pub end: bool,
    /// Whether that is a staged one, whose slot it frees.
    pub staged: bool,
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
pub(super) enum State {
    /// Not connected, or broken.
    Down,
    /// Answered; the target has not said ready.
    Answered,
    /// May post.
    Up,
}

/// An offer not yet answered.
#[derive(Clone, Debug)]
pub(super) struct Offer {
    number: u32,
    fence_epoch: u32,
    reads: u8,
    endpoints: Endpoints,
    live: Vec<LiveRoom>,
}

/// All queue pairs to one target.
#[derive(Clone)]
pub(super) struct Link {
    pub facts: Arc<Facts>,
    pub pairing: Arc<Pairing>,
    pub wires: Vec<LinkWire>,
    pub rooms: Vec<u32>,
    /// Slices posted and not completed.
    pub outstanding: u64,
    pub(super) state: State,
    /// Newest offer heard of, and the one accepted.
    pub(super) heard: u32,
    pub(super) accepted: u32,
    pub(super) fence_epoch: u32,
    pub(super) live: Vec<RoomKey>,
    pub(super) pending: Option<Offer>,
    /// An offer was asked for, and neither it nor a refusal has come.
    pub(super) asked: bool,
    /// When a room of it last began or ended, by count.
    pub(super) used: u64,
    /// Whether a part completed since it came up.
    pub(super) served: bool,
    /// Others wait for its queue pairs: no new part is posted, and it closes when those begun are through.
    pub yielding: bool,
    /// The target has asked for that.
    pub(super) wanted: bool,
    /// It makes way for a connection of itself that has more queue pairs.
    pub(super) renewing: bool,
    /// Queue pairs that are connected, and those that the target offered.
    pub(super) usable: Usable,
    pub(super) offered: Usable,
    /// Pairs of ports that its queue pairs join, and which of them each joins.
    pub(super) paths: Vec<Path>,
    pub(super) path_of: Vec<u16>,
    /// Only where [`super::super::Rules::links_recover`] is off: it failed once.
    pub(super) banned: bool,
}

impl Link {
    pub(super) fn new(facts: Arc<Facts>, pairing: Arc<Pairing>) -> Self {
        let (paths, path_of) = super::paths::paths(&pairing);
        Self {
            paths,
            path_of,
            usable: Usable::default(),
            offered: Usable::default(),
            renewing: false,
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
            used: 0,
            served: false,
            yielding: false,
            wanted: false,
            banned: false,
        }
    }
    pub(super) fn is_up(&self) -> bool {
        self.state == State::Up
    }
    pub(super) fn is_down(&self) -> bool {
        self.state == State::Down
    }
    /// Whether a page list of this epoch is older than the last accepted offer, and its room not live there.
    pub(super) fn is_stale(&self, fence_epoch: u32, key: &RoomKey) -> bool {
        fence_epoch < self.fence_epoch && !self.live.contains(key)
    }
}

impl Initiator {
    /// Asks the target for an offer.
    pub(super) fn ask(&mut self, peer: InstanceId) {
        if let Some(link) = self.links.get_mut(&peer).filter(|link| !link.banned) {
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
        let Some(link) = self.links.get_mut(&peer).filter(|link| !link.banned) else { return };
        match body {
            LinkBody::Offer { offer, fence_epoch, rails, reads, endpoints, live } => {
                if offer <= link.heard {
                    return;
                }
                link.heard = offer;
                link.asked = false;
                let other = (reads > 0) != (self.config.direction == Direction::Pull);
                let offered = Usable::of(&link.pairing, &endpoints, &Usable::default());
                let (false, true, Some(offered)) = (other, rails == link.pairing.rails, offered) else {
                    self.refuse(cx, peer, Reason::Layout);
                    return;
                };
                link.offered = offered;
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
            LinkBody::Refuse { reason } => {
                link.asked = false;
                link.pending = None;
                self.broken(cx, peer, false);
                self.refuse(cx, peer, reason);
            }
            LinkBody::Close { offer } => {
                if offer < link.accepted {
                    return;
                }
                link.pending = link.pending.take().filter(|pending| pending.number > offer);
                if link.rooms.is_empty() {
                    self.scrap(cx, peer);
                } else {
                    self.broken(cx, peer, false);
                    self.ask(peer);
                }
            }
            LinkBody::Yield { offer } => {
                if offer == link.accepted && link.state != State::Down {
                    link.wanted = true;
                    self.make_way(cx, peer);
                }
            }
            LinkBody::Ask { .. } | LinkBody::Answer { .. } => {}
        }
    }

    /// A link, one of whose rooms begins or ends now.
    fn use_link(&mut self, peer: InstanceId) -> Option<&mut Link> {
        self.uses += 1;
        let link = self.links.get_mut(&peer)?;
        link.used = self.uses;
        Some(link)
    }

    /// A room of a link begins.
    pub(super) fn begin(&mut self, peer: InstanceId, room: u32) {
        if let Some(link) = self.use_link(peer) {
            link.rooms.push(room);
        }
    }

    /// A room of a link has ended. Links that wait for queue pairs may have this one's.
    pub(super) fn leave(&mut self, cx: &mut Cx<'_>, peer: InstanceId, room: u32) {
        if let Some(link) = self.use_link(peer) {
            link.rooms.retain(|other| *other != room);
        }
        self.feed(cx);
    }

    /// Answers offers that waited for queue pairs.
    pub(super) fn feed(&mut self, cx: &mut Cx<'_>) {
        if std::mem::take(&mut self.starved) {
            let waits = |link: &Link| link.pending.is_some() && link.outstanding == 0;
            let peers: Vec<_> = self.links.iter().filter(|(_, link)| waits(link)).map(|(p, _)| *p).collect();
            for peer in peers {
                self.answer(cx, peer);
            }
        }
    }

    /// Whether anything of a link is still to be posted or to complete.
    fn has_work(&self, link: &Link) -> bool {
        let undone = |i: &u32| self.rooms[*i as usize].as_ref().is_some_and(|room| room.undone > 0);
        link.outstanding > 0 || link.rooms.iter().any(undone)
    }

    /// Whether a part of a link has begun and not ended.
    fn in_part(&self, link: &Link) -> bool {
        let begun = |i: &u32| {
            self.rooms[*i as usize].as_ref().is_some_and(|room| {
                room.parts.iter().any(|part| part.cursor > 0 && part.state == PartState::Waiting)
            })
        };
        link.outstanding > 0 || link.rooms.iter().any(begun)
    }

    /// Gives a link's queue pairs up and tells the target. What it still has to move asks for it again.
    fn give_up(&mut self, cx: &mut Cx<'_>, peer: InstanceId) {
        let Some(link) = self.links.get(&peer) else { return };
        let (down, offer, again) = (link.state == State::Down, link.heard, self.has_work(link));
        self.scrap(cx, peer);
        if !down {
            self.news.push_back(News::Tell(Message::Link { peer, body: LinkBody::Close { offer } }));
            if again {
                self.ask(peer);
            }
        }
    }

    /// A link that should make way does so when it has moved something, or has nothing to move, and no part is begun.
    pub(super) fn make_way(&mut self, cx: &mut Cx<'_>, peer: InstanceId) {
        let Some(link) = self.links.get_mut(&peer) else { return };
        if !(link.wanted || link.yielding) || link.state == State::Down {
            return;
        }
        if link.renewing {
            // Nothing is under way, so nothing is posted twice.
            if !self.in_part(&self.links[&peer]) {
                self.broken(cx, peer, true);
            }
            return;
        }
        link.yielding |= link.served;
        let link = &self.links[&peer];
        if link.yielding && !self.in_part(link) || !self.has_work(link) {
            self.give_up(cx, peer);
            self.feed(cx);
        }
    }

    /// Sees to it that a link can have its queue pairs under the cap. Those of links that have nothing to move go first, the one used
    /// longest ago before the others; where all are busy, the one that came up first is told to make way. None if that takes time; false if
    /// no cap holds one link.
    ///
    /// Nobody waits for ever: a link that holds queue pairs either is down, and loses them, or is up or on its way there, which takes nothing
    /// but the target's word; then it moves a part and makes way.
    fn make_room(&mut self, cx: &mut Cx<'_>, peer: InstanceId) -> Option<bool> {
        let link = self.links.get(&peer)?;
        let (all, missing) = (link.pairing.wires.len(), link.pairing.wires.len() - link.wires.len());
        let most = self.config.max_queue_pairs as usize;
        if all > most {
            return Some(false);
        }
        while self.qps.len() + missing > most {
            let others = || self.links.iter().filter(|(p, link)| **p != peer && !link.wires.is_empty());
            let idle =
                |link: &Link| link.state == State::Down && link.outstanding == 0 || !self.has_work(link);
            let spare = others().filter(|(_, link)| idle(link)).min_by_key(|(_, link)| link.used);
            if let Some((other, _)) = spare {
                let other = *other;
                self.give_up(cx, other);
                continue;
            }
            let busy = others().filter(|(_, link)| link.state != State::Down && !link.yielding);
            let first = busy.filter(|(_, link)| link.served).min_by_key(|(_, link)| link.used);
            let (other, done) = first.map(|(other, link)| (*other, !self.in_part(link)))?;
            if done {
                self.give_up(cx, other);
            } else if let Some(link) = self.links.get_mut(&other) {
                link.yielding = true;
                return None;
            }
        }
        Some(true)
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
    fn refuse(&mut self, cx: &mut Cx<'_>, peer: InstanceId, reason: Reason) {
        let Some(link) = self.links.get(&peer) else { return };
        let rooms = link.rooms.iter().filter_map(|i| self.rooms[*i as usize].as_ref());
        let keys: Vec<RoomKey> = rooms.map(|room| room.spec.key).collect();
        for key in keys {
            self.fail(cx, key, reason, true);
        }
    }

    /// The link broke: nothing more is posted on it, and what is posted is flushed out.
    pub(super) fn broken(&mut self, cx: &mut Cx<'_>, peer: InstanceId, tell: bool) {
        let Some(link) = self.links.get_mut(&peer) else { return };
        if link.state == State::Down {
            return;
        }
        link.state = State::Down;
        (link.served, link.yielding, link.wanted, link.renewing) = (false, false, false, false);
        let mut lost = false;
        for wire in &mut link.wires {
            for id in wire.blocked.drain(..) {
                self.jobs[id as usize].blocked = None;
            }
            // Also one that failed by itself: its device may still read or write for it.
            if cx.fabric.qp_state(wire.qp) != Ok(QpState::Reset) {
                // One that cannot be moved is gone, or its device does not flush it: nobody may wait for its completions.
                lost |= cx.fabric.modify_qp(wire.qp, Step::Err).is_err();
            }
        }
        for index in link.rooms.clone() {
            self.drop_jobs(index);
            self.ungather(index);
        }
        if lost {
            self.scrap(cx, peer);
        }
        if tell && self.config.rules.ask {
            self.ask(peer);
        }
    }

    /// Answers the pending offer once every completion is in.
    fn answer(&mut self, cx: &mut Cx<'_>, peer: InstanceId) {
        let Some(link) = self.links.get_mut(&peer) else { return };
        if link.outstanding > 0 || link.pending.is_none() {
            return;
        }
        let Some(fits) = self.make_room(cx, peer) else {
            self.starved = true;
            return;
        };
        let Some(offer) = self.links.get_mut(&peer).and_then(|link| link.pending.take()) else { return };
        self.choose_paths(cx.now, cx.fabric, peer);
        let connected = if fits {
            self.connect(cx.fabric, peer, &offer.endpoints, offer.reads)
        } else {
            Err(Error::Unsupported("cap that holds the queue pairs of one link"))
        };
        let endpoints = match connected {
            Ok(endpoints) => endpoints,
            Err(_) => {
                let reason = Reason::Connection;
                let body = LinkBody::Refuse { reason };
                self.news.push_back(News::Tell(Message::Link { peer, body }));
                self.refuse(cx, peer, reason);
                return;
            }
        };
        let rules = self.config.rules;
        let measures = self.measures;
        let Some(link) = self.links.get_mut(&peer) else { return };
        link.state = State::Answered;
        link.accepted = offer.number;
        link.fence_epoch = offer.fence_epoch;
        link.live = offer.live.iter().map(|room| room.key).collect();
        let body = LinkBody::Answer { offer: offer.number, fence_epoch: offer.fence_epoch, endpoints };
        self.news.push_back(News::Tell(Message::Link { peer, body }));
        let (pairing, usable) = (link.pairing.clone(), link.usable.clone());
        for index in link.rooms.clone() {
            let Some(room) = self.rooms.get_mut(index as usize).and_then(Option::as_mut) else { continue };
            // The target fenced before it offered: what failed before that cannot execute any more.
            room.dirty = false;
            if room.ending {
                // It waits for copies of this side, and posts nothing more.
                continue;
            }
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
                part.acked = 0;
                let base = part.wire - u32::from(pairing.wires[part.wire as usize].rail);
                part.wire = base + u32::from(usable.carrier(base as usize, pairing.rails, part.home));
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
        if measures {
            self.count_backlog(peer);
        }
        self.plan_recheck(cx, peer);
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
            let port = link.pairing.wires[index].src_port;
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
        for (index, (wire, theirs)) in link.wires.iter().zip(theirs).enumerate() {
            if !link.usable.has(index) {
                fabric.modify_qp(wire.qp, Step::Reset)?;
                endpoints.push(Endpoint::NONE);
                continue;
            }
            if !fabric.reaches(wire.port, theirs) {
                return Err(Error::Unsupported("path from this port to the peer's"));
            }
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
        let rules = self.config.rules;
        match completion.result {
            Err(_) if !rules.failures_count => return,
            Err(_) if !rules.status_first => {
                while let Some(slice) = self.pop_slice(peer, index, |slice| slice.last <= id) {
                    self.finished(cx, slice, true);
                }
            }
            Ok(_) => {
                while let Some(slice) = self.pop_slice(peer, index, |slice| slice.last <= id) {
                    if self.measures {
                        self.measure(cx.now, peer, index, &slice);
                    }
                    self.finished(cx, slice, true);
                }
            }
            Err(failed) => {
                let Some(link) = self.links.get_mut(&peer) else { return };
                link.banned |= !rules.links_recover && failed.status != Status::WrFlush;
                // The first one that is neither success nor flush names the culprit, also when the target's offer came before it.
                if failed.status != Status::WrFlush {
                    let culprit = link.wires[index].slices.front().map(|slice| slice.room);
                    let port = link.wires[index].port.index();
                    // Whatever a NIC says of a request that it could not send: Linux' rxe says LocQpOp.
                    let cut_off = cx.fabric.ports().get(port).is_some_and(|port| !port.up);
                    // A responder that lost its place in a message says RemInvReq, as Linux' rxe does after some
                    // retransmissions. A request that is invalid fails again, and the bound on re-posts ends its room.
                    let retry = cut_off
                        || matches!(
                            failed.status,
                            Status::RetryExc | Status::RnrRetryExc | Status::RemOp | Status::RemInvReq
                        );
                    if failed.status == Status::RetryExc {
                        self.path_failed(cx.now, peer, index);
                    }
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
            self.make_way(cx, peer);
        }
        if self.starved {
            self.feed(cx);
        }
    }

    fn pop_slice(&mut self, peer: InstanceId, index: usize, when: impl Fn(&Slice) -> bool) -> Option<Slice> {
        let link = self.links.get_mut(&peer)?;
        // Another link may have taken its queue pairs since, when its last room ended.
        let wire = link.wires.get_mut(index)?;
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
                && job.has_work()
                // The number may have another job by now. To wake one too early on this port is harmless; to put it into another
                // port's queue is not, for nothing would ever take it out.
                && job.port == wire.port
            {
                job.queued = true;
                port.order.push(room.spec.job(id, room.arrived, job.left));
            }
        }
        Some(slice)
    }

    fn finished(&mut self, cx: &mut Cx<'_>, slice: Slice, ok: bool) {
        if slice.staged {
            self.release_source(slice.room, slice.part);
        }
        let Some(room) = self.room_mut(slice.room) else { return };
        room.outstanding -= 1;
        let part = &mut room.parts[slice.part as usize];
        part.acked += if ok { slice.bytes } else { 0 };
        if !ok {
            room.dirty = true;
        } else if slice.end {
            if part.state != PartState::Done {
                part.state = PartState::Done;
                part.plans = Vec::new();
                room.undone -= 1;
            }
            let (peer, wire) = (room.spec.peer, part.wire);
            if let Some(link) = self.links.get_mut(&peer) {
                link.served = true;
                if self.doubts > 0 {
                    self.path_worked(cx.now, peer, wire as usize);
                }
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
