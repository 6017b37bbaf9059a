//! The target's side: rooms whose KV others move while this end's NIC serves them. In push that is decode, which is written to; in pull
//! prefill, which is read from.
//!
//! A room has pages (its node's) and an aux slot with a generation. In push it has receives promised before its page list is published, and
//! is Success when every source rank that the relation names has sealed, every sealed part has been seen, and the aux row is in. In pull
//! the page list is published as soon as there are pages, then what of the KV is in them, and it is Success when decode says so. Either
//! way its pages may be reused once the initiator reported that all it posted completed with success (or that it posted nothing), or
//! after a *fence*: this side's end of every queue pair of the link moved to ERR. A timer may decide to fence, never to free.

mod link;
mod parts;
mod paths;
mod pull;
mod push;
mod room;
mod show;
mod stage;

use super::config::TransferConfig;
use super::end::{End, EndHeld, EndStats, RoomState, has_failed};
use super::memory::InstanceMemory;
use super::news::News;
use super::pages::PagePool;
use super::pairing::Pairing;
use super::tombstones::Tombstones;
use super::wire::{Immediate, MAX_SOURCES};
use crate::fabric::{Completion, Error, Event, Fabric, Recv, SrqSpec};
use crate::id::{CqId, InstanceId, QpId, RequestId, SrqId, WrId};
use crate::map::Map;
use crate::node::{Cx, Reason};
use crate::policy::{Direction, Health};
use crate::registry::{LinkBody, RoomKey};
use crate::time::Time;
use crate::timers::Timers;
use link::Link;
use room::Room;
pub use room::{Opening, TargetRoom};
use stage::Scatter;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// Receives of one port, shared by all of its queue pairs.
struct PortReceives {
    /// None in pull: READs use no receives.
    srq: Option<SrqId>,
    cq: CqId,
    posted: u32,
    promised: u32,
    next: u64,
    /// Whether its link has been down lately.
    health: Health,
}

/// The target's transfer engine.
pub struct Target {
    config: TransferConfig,
    memory: InstanceMemory,
    ports: Vec<PortReceives>,
    links: BTreeMap<InstanceId, Link>,
    /// Peers that asked for an offer before their facts were known.
    asked: BTreeSet<InstanceId>,
    /// Peers that wait for an offer until a link gives up its queue pairs.
    starved: Vec<InstanceId>,
    /// Rooms begun and ended.
    uses: u64,
    qps: Map<QpId, (InstanceId, usize)>,
    rooms: Vec<Option<Room>>,
    free_rooms: Vec<u32>,
    by_key: Map<RoomKey, u32>,
    /// By slot: its generation and the room that owns it.
    slots: Vec<(u8, Option<u32>)>,
    free_slots: VecDeque<u16>,
    tombstones: Tombstones<RoomState>,
    timers: Timers<RoomKey>,
    news: VecDeque<News>,
    lease_until: Time,
    stats: EndStats,
    /// Staging slots by DP group; none without staging.
    stage: Vec<PagePool>,
    /// Parts on their way from their slots to their pages, by the number of the copy.
    scatters: Vec<Option<Scatter>>,
    /// Rooms whose senders wait for word of that.
    untold: Vec<u32>,
    /// When a link may have queue pairs back that it lacks.
    recheck: Time,
}

impl Target {
    /// For an instance with this memory, see [`super::Initiator::new`].
    pub fn new(
        mut config: TransferConfig,
        memory: InstanceMemory,
        fabric: &mut dyn Fabric,
        queue_pairs: u32,
    ) -> Result<Self, Error> {
        let count = fabric.ports().len() as u32;
        let limits = *fabric.limits();
        let ids: Vec<_> = fabric.ports().iter().map(|port| port.id).collect();
        let max_recv = config.receive_depth.min(limits.max_srq_wr);
        // No more is promised than the device can hold.
        config.receive_depth = max_recv;
        config.max_queue_pairs = config.max_queue_pairs.min(limits.max_qp);
        let copies = if config.replica.splits() { MAX_SOURCES as u32 } else { 1 };
        let per_port = queue_pairs.div_ceil(count.max(1)).max(1).saturating_mul(copies);
        let pull = config.direction == Direction::Pull;
        // One slot for each receive, and one for each end that is moved to ERR.
        let depth = if pull { per_port } else { max_recv.saturating_add(per_port) };
        let depth = depth.clamp(1, limits.max_cqe);
        let mut ports = Vec::new();
        for port in ids {
            let srq =
                if pull { None } else { Some(fabric.create_srq(port, SrqSpec { max_recv, max_sge: 1 })?) };
            let cq = fabric.create_cq(port, depth)?;
            ports.push(PortReceives { srq, cq, posted: 0, promised: 0, next: 0, health: Health::default() });
        }
        let slots = config.slots.min(Immediate::SLOTS);
        let stage = match memory.staging() {
            // The pool's page 0 is nobody's.
            Some(staging) => (0..memory.layout().parallel().dp.max(1))
                .map(|_| PagePool::new(staging.slots.saturating_add(1), false))
                .collect(),
            None => Vec::new(),
        };
        Ok(Self {
            stage,
            scatters: Vec::new(),
            untold: Vec::new(),
            memory,
            ports,
            links: BTreeMap::new(),
            asked: BTreeSet::new(),
            starved: Vec::new(),
            uses: 0,
            qps: Map::default(),
            rooms: Vec::new(),
            free_rooms: Vec::new(),
            by_key: Map::default(),
            slots: vec![(0, None); slots as usize],
            free_slots: (0..slots as u16).collect(),
            tombstones: Tombstones::new(config.tombstone),
            timers: Timers::default(),
            news: VecDeque::new(),
            lease_until: Time::NEVER,
            stats: EndStats::default(),
            recheck: Time::NEVER,
            config,
        })
    }

    /// A peer's facts: a link to it can be offered.
    pub fn meet(&mut self, cx: &mut Cx<'_>, peer: InstanceId, pairing: Arc<Pairing>) {
        if self.links.contains_key(&peer) {
            return;
        }
        let mut link = Link::new(pairing);
        match self.config.direction {
            Direction::Push => {
                link.stage_window = self.stage_window(&link);
                link.needs = self.needs(&link, link.stage_window);
                link.whole_needs = link.needs.clone();
            }
            Direction::Pull => link.rooms = self.rooms_with(peer),
        }
        let waiting = link.rooms.clone();
        self.links.insert(peer, link);
        for index in waiting {
            self.show(cx, index);
        }
        if self.asked.remove(&peer) {
            self.offer(cx, peer);
        }
    }

    /// Posts receives until there are as many as are promised.
    fn refill(&mut self, fabric: &mut dyn Fabric) {
        for port in &mut self.ports {
            if port.posted >= port.promised {
                continue;
            }
            let count = (port.promised - port.posted).max(64).min(self.config.receive_depth - port.posted);
            let Some(srq) = port.srq else { continue };
            let recv = Recv { first: WrId(port.next), count, sges: &[] };
            let posted = match fabric.post_srq_recv(srq, recv) {
                Ok(()) => count,
                Err(refused) => refused.at as u32,
            };
            port.posted += posted;
            port.next += u64::from(posted);
        }
    }

    /// Polls every completion that is there.
    fn drain(&mut self, cx: &mut Cx<'_>) {
        let mut batch = [Completion::default(); 16];
        for port in 0..self.ports.len() {
            loop {
                let n = cx.fabric.poll(self.ports[port].cq, &mut batch);
                for completion in &batch[..n] {
                    self.received(cx, completion);
                }
                if n < batch.len() {
                    break;
                }
            }
        }
    }
}

impl End for Target {
    fn memory(&self) -> &InstanceMemory {
        &self.memory
    }
    fn set_lease(&mut self, until: Time) {
        self.lease_until = until;
    }
    fn next_news(&mut self) -> Option<News> {
        self.news.pop_front()
    }
    fn deadline(&self) -> Option<Time> {
        let recheck = (self.recheck != Time::NEVER).then_some(self.recheck);
        self.timers.head().into_iter().chain(recheck).min()
    }
    fn knows(&self, peer: InstanceId) -> bool {
        self.links.contains_key(&peer)
    }
    fn stats(&self) -> EndStats {
        self.stats
    }
    fn rooms(&self, see: &mut dyn FnMut(RoomKey, RequestId, RoomState)) {
        for room in self.rooms.iter().flatten() {
            see(room.spec.key, room.spec.request, room.told_state(self.config.direction));
        }
    }
    fn ended(&self, key: &RoomKey) -> Option<RoomState> {
        self.tombstones.get(key).copied()
    }

    fn held(&self) -> EndHeld {
        EndHeld {
            rooms: self.by_key.len() as u64,
            slots: (self.slots.len() - self.free_slots.len()) as u64
                + self.stage.iter().map(|pool| u64::from(pool.used())).sum::<u64>(),
            timers: self.timers.len() as u64,
            queue_pairs: self.links.values().map(|link| link.qps.len() as u64).sum(),
            receives: self.ports.iter().map(|port| u64::from(port.promised)).sum(),
        }
    }

    fn wake(&mut self, cx: &mut Cx<'_>) {
        while let Some(key) = self.timers.expired(cx.now) {
            self.expired(cx, key);
        }
        self.check_paths(cx);
        if !self.config.rules.receive_credits {
            self.refill(cx.fabric);
        }
    }

    fn is_timed(&self, key: &RoomKey) -> bool {
        self.timers.get(*key).is_some()
    }

    fn expire(&mut self, cx: &mut Cx<'_>, key: RoomKey) -> bool {
        let armed = self.timers.cancel(key);
        if armed {
            self.expired(cx, key);
            if !self.config.rules.receive_credits {
                self.refill(cx.fabric);
            }
        }
        armed
    }

    fn completions(&mut self, cx: &mut Cx<'_>, batch: &[Completion]) {
        for completion in batch {
            self.received(cx, completion);
        }
        if self.config.rules.receive_credits {
            self.refill(cx.fabric);
        }
        self.tell_scattered(cx);
    }

    fn event(&mut self, cx: &mut Cx<'_>, event: Event) {
        match event {
            Event::QpFatal(qp) => {
                if let Some(&(peer, _)) = self.qps.get(&qp)
                    && has_failed(cx.fabric, qp)
                {
                    self.offer(cx, peer);
                }
            }
            Event::CqOverrun(cq) => {
                let port = self.ports.iter().position(|port| port.cq == cq);
                let peers: Vec<_> =
                    self.links.iter().filter(|(_, link)| link.uses_port(port)).map(|(p, _)| *p).collect();
                for peer in peers {
                    self.offer(cx, peer);
                }
            }
            Event::Copied(id) => self.copied(cx, id),
            Event::PortDown(port) => self.port_down(cx, port),
            Event::PortUp(port) => self.port_up(cx.now, port),
            Event::SrqLimit(_) | Event::LastWqeReached(_) => {}
        }
    }

    fn abandon(&mut self, cx: &mut Cx<'_>, reason: Reason) {
        let keys: Vec<RoomKey> = self.rooms.iter().flatten().map(|room| room.spec.key).collect();
        for key in keys {
            self.fail(cx, key, reason, true);
        }
        let peers: Vec<InstanceId> = self.links.keys().copied().collect();
        for peer in peers {
            self.peer_gone(cx, peer);
        }
    }

    fn close(&mut self, fabric: &mut dyn Fabric) -> Result<(), Error> {
        while let Some((_, link)) = self.links.pop_first() {
            for qp in &link.qps {
                self.qps.remove(qp);
                fabric.destroy_qp(*qp)?;
            }
        }
        for port in self.ports.drain(..) {
            if let Some(srq) = port.srq {
                fabric.destroy_srq(srq)?;
            }
            fabric.destroy_cq(port.cq)?;
        }
        self.memory.close(fabric)
    }

    fn link(&mut self, cx: &mut Cx<'_>, peer: InstanceId, body: LinkBody) {
        self.heard(cx, peer, body);
    }

    fn say_again(&mut self, cx: &mut Cx<'_>) {
        // Page lists of live rooms go with the room's next Assign.
        for peer in self.offered() {
            self.offer(cx, peer);
        }
    }

    fn reject_peer(&mut self, cx: &mut Cx<'_>, peer: InstanceId, reason: Reason, tell: bool) {
        for key in self.keys_of(peer) {
            self.fail(cx, key, reason, tell);
        }
    }

    fn peer_gone(&mut self, cx: &mut Cx<'_>, peer: InstanceId) {
        self.gone(cx, peer);
    }
}
