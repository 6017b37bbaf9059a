//! Decode's side: rooms whose KV comes to this instance.
//!
//! A room has pages (its node's), an aux slot with a generation, and receives promised to it before its page list is published. It is
//! Success when every source rank that the relation names has sealed, every sealed part has been seen, and the aux row is in. Its pages
//! may be reused once prefill reported that all it posted completed with success (or that it posted nothing), or after a *fence*: this
//! side's end of every queue pair of the link moved to ERR. A timer may decide to fence, never to free.

mod link;
mod parts;
mod room;

use super::config::TransferConfig;
use super::memory::InstanceMemory;
use super::news::News;
use super::pairing::Pairing;
use super::tombstones::Tombstones;
use super::wire::Immediate;
use crate::fabric::{Completion, Error, Event, Fabric, Recv, SrqSpec};
use crate::id::{CqId, InstanceId, QpId, SrqId, WrId};
use crate::map::Map;
use crate::node::{Cx, Reason};
use crate::registry::RoomKey;
use crate::time::Time;
use crate::timers::Timers;
use link::Link;
use room::Room;
pub use room::TargetRoom;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Receives of one port, shared by all of its queue pairs.
struct PortReceives {
    srq: SrqId,
    cq: CqId,
    posted: u32,
    promised: u32,
    next: u64,
}

/// What a receiver holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TargetHeld {
    /// Rooms not yet released.
    pub rooms: u64,
    /// Slots given out.
    pub slots: u64,
    /// Timers armed.
    pub timers: u64,
    /// Queue pairs of links.
    pub queue_pairs: u64,
    /// Receives promised to rooms.
    pub receives: u64,
}

/// Events that a fault-free run never sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TargetStats {
    /// Immediates of a slot's earlier life, or from a queue pair that is not the room's sender's.
    pub stale_immediates: u64,
    /// Parts seen before.
    pub repeated_parts: u64,
    /// Fences.
    pub fences: u64,
    /// Rooms whose aux row was not there at Success.
    pub missing_aux: u64,
}

/// Decode's transfer engine.
pub struct Target {
    config: TransferConfig,
    memory: InstanceMemory,
    ports: Vec<PortReceives>,
    links: BTreeMap<InstanceId, Link>,
    /// Peers that asked for an offer before their facts were known.
    asked: Vec<InstanceId>,
    qps: Map<QpId, (InstanceId, usize)>,
    rooms: Vec<Option<Room>>,
    free_rooms: Vec<u32>,
    by_key: Map<RoomKey, u32>,
    /// By slot: its generation and the room that owns it.
    slots: Vec<(u8, Option<u32>)>,
    free_slots: VecDeque<u16>,
    tombstones: Tombstones<()>,
    timers: Timers<RoomKey>,
    news: VecDeque<News>,
    lease_until: Time,
    stats: TargetStats,
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
        let per_port = queue_pairs.div_ceil(count.max(1)).max(1);
        // One slot for each receive, and one for each end that is moved to ERR.
        let depth = max_recv.saturating_add(per_port).clamp(1, limits.max_cqe);
        let mut ports = Vec::new();
        for port in ids {
            let srq = fabric.create_srq(port, SrqSpec { max_recv, max_sge: 1 })?;
            let cq = fabric.create_cq(port, depth)?;
            ports.push(PortReceives { srq, cq, posted: 0, promised: 0, next: 0 });
        }
        let slots = config.slots.min(Immediate::SLOTS);
        Ok(Self {
            memory,
            ports,
            links: BTreeMap::new(),
            asked: Vec::new(),
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
            stats: TargetStats::default(),
            config,
        })
    }

    /// Destroys queue pairs, shared receive queues, completion queues and memory.
    pub fn close(&mut self, fabric: &mut dyn Fabric) -> Result<(), Error> {
        while let Some((_, link)) = self.links.pop_first() {
            for qp in &link.qps {
                self.qps.remove(qp);
                fabric.destroy_qp(*qp)?;
            }
        }
        for port in self.ports.drain(..) {
            fabric.destroy_srq(port.srq)?;
            fabric.destroy_cq(port.cq)?;
        }
        self.memory.close(fabric)
    }

    /// The pools.
    pub fn memory(&self) -> &InstanceMemory {
        &self.memory
    }
    /// This node's lease holds until then; no Success is reported later.
    pub fn set_lease(&mut self, until: Time) {
        self.lease_until = until;
    }
    /// The next thing to know.
    pub fn next_news(&mut self) -> Option<News> {
        self.news.pop_front()
    }
    /// When it wants [`Target::wake`].
    pub fn deadline(&self) -> Option<Time> {
        self.timers.head()
    }
    /// Whether the peer's facts are known.
    pub fn knows(&self, peer: InstanceId) -> bool {
        self.links.contains_key(&peer)
    }
    /// What happened that should not.
    pub fn stats(&self) -> TargetStats {
        self.stats
    }

    /// A peer's facts: a link to it can be offered.
    pub fn meet(&mut self, cx: &mut Cx<'_>, peer: InstanceId, pairing: Arc<Pairing>) {
        if self.links.contains_key(&peer) {
            return;
        }
        let mut link = Link::new(pairing);
        link.needs = self.needs(&link);
        self.links.insert(peer, link);
        if self.asked.contains(&peer) {
            self.asked.retain(|other| *other != peer);
            self.offer(cx, peer);
        }
    }

    /// What it holds.
    pub fn held(&self) -> TargetHeld {
        TargetHeld {
            rooms: self.by_key.len() as u64,
            slots: (self.slots.len() - self.free_slots.len()) as u64,
            timers: self.timers.len() as u64,
            queue_pairs: self.links.values().map(|link| link.qps.len() as u64).sum(),
            receives: self.ports.iter().map(|port| u64::from(port.promised)).sum(),
        }
    }

    /// Deadlines that passed.
    pub fn wake(&mut self, cx: &mut Cx<'_>) {
        while let Some(key) = self.timers.expired(cx.now) {
            self.expired(cx, key);
        }
        if !self.config.rules.receive_credits {
            self.refill(cx.fabric);
        }
    }

    /// Completions that the driver polled.
    pub fn completions(&mut self, cx: &mut Cx<'_>, batch: &[Completion]) {
        for completion in batch {
            self.received(cx, completion);
        }
        if self.config.rules.receive_credits {
            self.refill(cx.fabric);
        }
    }

    /// An asynchronous event.
    pub fn event(&mut self, cx: &mut Cx<'_>, event: Event) {
        match event {
            Event::QpFatal(qp) => {
                if let Some(&(peer, _)) = self.qps.get(&qp) {
                    self.offer(cx, peer);
                }
            }
            Event::CqOverrun(cq) => {
                let port = self.ports.iter().position(|port| port.cq == cq);
                let peers: Vec<_> = self
                    .links
                    .iter()
                    .filter(|(_, link)| link.uses_port(port, &self.memory))
                    .map(|(p, _)| *p)
                    .collect();
                for peer in peers {
                    self.offer(cx, peer);
                }
            }
            Event::SrqLimit(_) | Event::LastWqeReached(_) | Event::PortDown(_) | Event::PortUp(_) => {}
        }
    }

    /// Posts receives until there are as many as are promised.
    fn refill(&mut self, fabric: &mut dyn Fabric) {
        for port in &mut self.ports {
            if port.posted >= port.promised {
                continue;
            }
            let count = (port.promised - port.posted).max(64).min(self.config.receive_depth - port.posted);
            let recv = Recv { first: WrId(port.next), count, sges: &[] };
            let posted = match fabric.post_srq_recv(port.srq, recv) {
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

    /// Every room fails for the same reason, and every link is cut: this instance's life is over.
    pub fn abandon(&mut self, cx: &mut Cx<'_>, reason: Reason) {
        let keys: Vec<RoomKey> = self.rooms.iter().flatten().map(|room| room.spec.key).collect();
        for key in keys {
            self.fail(cx, key, reason, true);
        }
        let peers: Vec<InstanceId> = self.links.keys().copied().collect();
        for peer in peers {
            self.peer_gone(cx, peer);
        }
    }
}
