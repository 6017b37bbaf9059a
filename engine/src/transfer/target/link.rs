//! The target's end of a link: fence, offer, accept.

use super::super::news::News;
use super::super::pairing::Pairing;
use super::super::usable::Usable;
use super::Target;
use super::room::State as RoomState;
use crate::fabric::{Access, Endpoint, Error, Fabric, QpSpec, QpState, Rtr, Step};
use crate::id::{InstanceId, QpId};
use crate::node::{Cx, Reason};
use crate::policy::Direction;
use crate::registry::{Endpoints, LinkBody, Message, RoomKey};
use std::sync::Arc;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Never offered, or fenced and not offered again.
    Down,
    /// Offered; this end is in INIT.
    Offered,
    /// Ready.
    Up,
}

/// All queue pairs to one initiator.
#[derive(Clone)]
pub(super) struct Link {
    pub pairing: Arc<Pairing>,
    pub qps: Vec<QpId>,
    pub rooms: Vec<u32>,
    /// Receives that a room needs, by DP group of this side and port.
    pub needs: Vec<Vec<u32>>,
    /// Staging slots that a room has for each sender to a rank; 0: everything goes directly.
    pub stage_window: u32,
    /// The same with all queue pairs connected.
    pub whole_needs: Vec<Vec<u32>>,
    /// Rises with every free by fence.
    pub fence_epoch: u32,
    state: State,
    offer: u32,
    /// When a room of it last began or ended, by count.
    pub used: u64,
    /// The initiator was asked to make way since it came up.
    pub(super) urged: bool,
    /// Queue pairs that this side offered, and those that are connected.
    pub(super) offered: Usable,
    pub(super) usable: Usable,
}

impl Link {
    pub(super) fn new(pairing: Arc<Pairing>) -> Self {
        Self {
            pairing,
            qps: Vec::new(),
            rooms: Vec::new(),
            needs: Vec::new(),
            stage_window: 0,
            whole_needs: Vec::new(),
            fence_epoch: 1,
            state: State::Down,
            offer: 0,
            used: 0,
            urged: false,
            offered: Usable::default(),
            usable: Usable::default(),
        }
    }
    /// Whether the initiator could have requests under way: there was an offer since the last fence.
    pub(super) fn may_be_used(&self) -> bool {
        self.state != State::Down
    }
    /// What of it changes, see [`super::show`].
    pub(super) fn show(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        use std::fmt::Debug as _;
        let Self {
            pairing: _,
            qps,
            rooms,
            needs,
            whole_needs: _,
            fence_epoch,
            state,
            offer,
            used: _,
            urged,
            offered,
            usable,
            stage_window: _,
        } = self;
        (qps, rooms, needs, fence_epoch, state, offer, urged, offered, usable).fmt(f)
    }
    pub(super) fn is_up(&self) -> bool {
        self.state == State::Up
    }
    pub(super) fn number(&self) -> u32 {
        self.offer
    }
    pub(super) fn uses_port(&self, port: Option<usize>) -> bool {
        self.pairing.wires.iter().any(|wire| Some(wire.dst_port.index()) == port)
    }
}

impl Target {
    /// What the initiator says about the link.
    pub(super) fn heard(&mut self, cx: &mut Cx<'_>, peer: InstanceId, body: LinkBody) {
        let Some(link) = self.links.get(&peer) else {
            if matches!(body, LinkBody::Ask { .. }) {
                self.asked.insert(peer);
            }
            return;
        };
        match body {
            // A newer offer is under way already.
            LinkBody::Ask { broken } if broken < link.offer && link.state != State::Down => {}
            LinkBody::Ask { .. } => self.offer(cx, peer),
            LinkBody::Answer { offer, fence_epoch, endpoints } => {
                let current = fence_epoch == link.fence_epoch || !self.config.rules.fence_voids_offers;
                if link.state == State::Offered && offer == link.offer && current {
                    self.accept(cx, peer, &endpoints);
                }
            }
            LinkBody::Refuse { reason } => {
                self.fence(cx, peer);
                let keys: Vec<RoomKey> = self.keys_of(peer);
                for key in keys {
                    self.fail(cx, key, reason, false);
                }
            }
            LinkBody::Close { offer } => {
                if offer == link.offer {
                    self.cut(cx, peer);
                }
            }
            LinkBody::Offer { .. } | LinkBody::Ready { .. } | LinkBody::Yield { .. } => {}
        }
    }

    /// Fences a link and destroys this end's queue pairs; the next offer makes new ones.
    fn cut(&mut self, cx: &mut Cx<'_>, peer: InstanceId) {
        if self.links.get(&peer).is_some_and(|link| link.state != State::Down) {
            self.close_off(cx, peer);
        }
        let Some(link) = self.links.get_mut(&peer) else { return };
        for qp in std::mem::take(&mut link.qps) {
            self.qps.remove(&qp);
            // A fabric that refuses has lost it already.
            let _ = cx.fabric.destroy_qp(qp);
        }
        self.feed(cx);
    }

    /// Offers connections that waited for queue pairs.
    pub(super) fn feed(&mut self, cx: &mut Cx<'_>) {
        for peer in std::mem::take(&mut self.starved) {
            self.offer(cx, peer);
        }
    }

    /// Sees to it that a link can have its queue pairs under the cap, by taking those of links that are fenced or that no initiator has
    /// anything to do on. None if it has to wait; then the initiator of the link used longest ago is asked to make way.
    fn make_room(&mut self, cx: &mut Cx<'_>, peer: InstanceId) -> Option<Result<(), Error>> {
        let link = self.links.get(&peer)?;
        let (all, missing) = (link.pairing.wires.len(), link.pairing.wires.len() - link.qps.len());
        let most = self.config.max_queue_pairs as usize;
        if all > most {
            return Some(Err(Error::Unsupported("cap that holds the queue pairs of one link")));
        }
        while self.qps.len() + missing > most {
            let others = || self.links.iter().filter(|(other, link)| **other != peer && !link.qps.is_empty());
            let over = |i: &u32| self.rooms[*i as usize].as_ref().is_none_or(|room| room.report.is_some());
            let idle = |link: &Link| link.state == State::Down || link.rooms.iter().all(over);
            let spare = others().filter(|(_, link)| idle(link)).min_by_key(|(_, link)| link.used);
            let Some((other, link)) = spare else {
                let busy = others().filter(|(_, link)| link.state == State::Up);
                let (other, link) = busy.min_by_key(|(_, link)| (link.urged, link.used))?;
                if !link.urged {
                    let (other, offer) = (*other, link.offer);
                    let body = LinkBody::Yield { offer };
                    self.news.push_back(News::Tell(Message::Link { peer: other, body }));
                    if let Some(link) = self.links.get_mut(&other) {
                        link.urged = true;
                    }
                }
                return None;
            };
            let (other, offer, down) = (*other, link.offer, link.state == State::Down);
            self.cut(cx, other);
            if !down {
                let body = LinkBody::Close { offer };
                self.news.push_back(News::Tell(Message::Link { peer: other, body }));
            }
        }
        Some(Ok(()))
    }

    /// Rooms with a peer, also one whose facts are not known yet.
    pub(super) fn rooms_with(&self, peer: InstanceId) -> Vec<u32> {
        match self.links.get(&peer) {
            Some(link) => link.rooms.clone(),
            None => (0u32..)
                .zip(&self.rooms)
                .filter(|(_, room)| room.as_ref().is_some_and(|room| room.spec.peer == peer))
                .map(|(index, _)| index)
                .collect(),
        }
    }

    pub(super) fn keys_of(&self, peer: InstanceId) -> Vec<RoomKey> {
        let rooms = self.rooms_with(peer);
        rooms.iter().filter_map(|i| self.rooms[*i as usize].as_ref()).map(|room| room.spec.key).collect()
    }

    /// Moves this end of every queue pair of a link to ERR, and takes every completion that came before. After this nothing
    /// that the initiator posted, and nothing that its NIC still holds, can reach this side's memory.
    pub(super) fn fence(&mut self, cx: &mut Cx<'_>, peer: InstanceId) {
        self.stats.fences += u64::from(self.links.contains_key(&peer));
        self.close_off(cx, peer);
    }

    fn close_off(&mut self, cx: &mut Cx<'_>, peer: InstanceId) {
        let Some(link) = self.links.get_mut(&peer) else { return };
        link.state = State::Down;
        for qp in &link.qps {
            // Also one that failed by itself: its device may still be at work for it.
            if cx.fabric.qp_state(*qp) != Ok(QpState::Reset) {
                // Where this fails the connection is cut all the same, or the device is lost.
                let _ = cx.fabric.modify_qp(*qp, Step::Err);
            }
        }
        if self.config.rules.poll_before_offer {
            self.drain(cx);
        }
        self.free_fenced(cx, peer);
    }

    /// Every ended room of a link is free of the initiator now: raises the fence epoch and releases those that are finished.
    fn free_fenced(&mut self, cx: &mut Cx<'_>, peer: InstanceId) {
        let Some(link) = self.links.get_mut(&peer) else { return };
        link.fence_epoch += 1;
        for index in link.rooms.clone() {
            let Some(room) = self.rooms[index as usize].as_mut() else { continue };
            if room.finished {
                self.release(cx, index);
            } else if room.state == RoomState::Success {
                room.fenced = true;
                self.free_stage(index);
            }
        }
    }

    /// Frees a room that may still be written: fences, which releases every ended room of the link, and offers a new
    /// connection to the others.
    pub(super) fn fence_for_free(&mut self, cx: &mut Cx<'_>, peer: InstanceId, index: u32) {
        let rules = self.config.rules;
        match self.links.get(&peer).map(|link| link.state) {
            None => self.release(cx, index),
            Some(_) if !rules.fence_before_free => self.release(cx, index),
            // The mistake: an offer under way goes on.
            Some(State::Offered) if !rules.fence_voids_offers => self.free_fenced(cx, peer),
            Some(State::Down) => self.free_fenced(cx, peer),
            Some(State::Offered | State::Up) => {
                self.fence(cx, peer);
                self.offer(cx, peer);
            }
        }
    }

    /// Offers a connection: fences this end if it is up, drains it, and says what is live and what has been seen.
    pub(super) fn offer(&mut self, cx: &mut Cx<'_>, peer: InstanceId) {
        if self.links.get(&peer).is_some_and(|link| link.state != State::Down) {
            self.fence(cx, peer);
        }
        let Some(room) = self.make_room(cx, peer) else {
            if !self.starved.contains(&peer) {
                self.starved.push(peer);
            }
            return;
        };
        self.choose_paths(cx.now, cx.fabric, peer);
        match room.and_then(|()| self.prepare(cx.fabric, peer)) {
            Ok(endpoints) => {
                let live = self.live_rooms(peer);
                let Some(link) = self.links.get_mut(&peer) else { return };
                link.offer += 1;
                link.state = State::Offered;
                let body = LinkBody::Offer {
                    offer: link.offer,
                    fence_epoch: link.fence_epoch,
                    rails: link.pairing.rails,
                    reads: match self.config.direction {
                        Direction::Push => 0,
                        Direction::Pull => self.config.rts_within(cx.fabric.limits()).max_rd_atomic.max(1),
                    },
                    endpoints,
                    live,
                };
                self.news.push_back(News::Tell(Message::Link { peer, body }));
                self.plan_recheck(cx.fabric, peer);
            }
            Err(_) => {
                let body = LinkBody::Refuse { reason: Reason::Connection };
                self.news.push_back(News::Tell(Message::Link { peer, body }));
            }
        }
    }

    /// Brings this side's ends to INIT, and makes them if there are none.
    fn prepare(&mut self, fabric: &mut dyn Fabric, peer: InstanceId) -> Result<Endpoints, Error> {
        let Some(link) = self.links.get_mut(&peer) else { return Err(Error::NoSuch("link")) };
        // All of them the first time, what is missing if that was refused half way.
        for wire in link.qps.len()..link.pairing.wires.len() {
            let port = link.pairing.wires[wire].dst_port;
            let receives = &self.ports[port.index()];
            let spec = QpSpec {
                send_cq: receives.cq,
                recv_cq: receives.cq,
                srq: receives.srq,
                max_send: 1,
                max_recv: 0,
                max_sge: 1,
                max_inline: 0,
            };
            let qp = fabric.create_qp(port, spec)?;
            self.qps.insert(qp, (peer, wire));
            link.qps.push(qp);
        }
        let access = match self.config.direction {
            Direction::Push => Access::REMOTE_WRITE,
            Direction::Pull => Access::REMOTE_READ,
        };
        let mut endpoints = Vec::with_capacity(link.qps.len());
        for (wire, qp) in link.qps.iter().enumerate() {
            fabric.modify_qp(*qp, Step::Reset)?;
            if !link.offered.has(wire) {
                endpoints.push(Endpoint::NONE);
                continue;
            }
            fabric.modify_qp(*qp, Step::Init(access))?;
            endpoints.push(fabric.endpoint(*qp)?);
        }
        Ok(endpoints)
    }

    /// The initiator answered the current offer: this end can receive.
    fn accept(&mut self, cx: &mut Cx<'_>, peer: InstanceId, theirs: &Endpoints) {
        let rts = self.config.rts_within(cx.fabric.limits());
        let Some(link) = self.links.get_mut(&peer) else { return };
        let offer = link.offer;
        let mut connect = || -> Result<(), Error> {
            let usable = Usable::of(&link.pairing, theirs, &link.offered);
            link.usable = usable.ok_or(Error::Invalid {
                what: "endpoints",
                value: theirs.len() as u64,
                right: "one for each queue pair of the link, and at least one between two ranks",
            })?;
            for ((qp, peer), wire) in link.qps.iter().zip(theirs).zip(&link.pairing.wires) {
                if peer.is_none() {
                    continue;
                }
                if !cx.fabric.reaches(wire.dst_port, peer) {
                    return Err(Error::Unsupported("path from this port to the peer's"));
                }
                let rtr = Rtr {
                    peer: *peer,
                    max_dest_rd_atomic: rts.max_rd_atomic,
                    min_rnr_timer: self.config.min_rnr_timer,
                };
                cx.fabric.modify_qp(*qp, Step::Rtr(rtr))?;
                cx.fabric.modify_qp(*qp, Step::Rts(rts))?;
            }
            Ok(())
        };
        let connected = connect();
        if connected.is_ok() {
            self.promise_again(cx, peer);
        }
        // To promise again may end rooms, and the link with them.
        let Some(link) = self.links.get_mut(&peer).filter(|link| link.state == State::Offered) else {
            return;
        };
        let body = match connected {
            Ok(()) => {
                link.state = State::Up;
                link.urged = false;
                LinkBody::Ready { offer }
            }
            Err(_) => LinkBody::Refuse { reason: Reason::Connection },
        };
        self.news.push_back(News::Tell(Message::Link { peer, body }));
    }

    /// Peers with an offer that they have not answered.
    pub(super) fn offered(&self) -> Vec<InstanceId> {
        self.links.iter().filter(|(_, link)| link.state == State::Offered).map(|(peer, _)| *peer).collect()
    }

    /// The peer is gone for good: its rooms fail, this end is fenced and destroyed, and everything is released.
    pub(super) fn gone(&mut self, cx: &mut Cx<'_>, peer: InstanceId) {
        self.asked.remove(&peer);
        self.starved.retain(|other| *other != peer);
        self.fence(cx, peer);
        for key in self.keys_of(peer) {
            self.fail(cx, key, Reason::PeerGone, false);
        }
        // Rooms that are still being decoded were fenced: they release themselves without the link.
        if let Some(link) = self.links.remove(&peer) {
            for qp in link.qps {
                self.qps.remove(&qp);
                let _ = cx.fabric.destroy_qp(qp);
            }
        }
        self.feed(cx);
    }
}
