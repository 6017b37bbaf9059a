//! The initiator's side: rooms whose KV this instance moves. In push that is prefill, which WRITEs; in pull decode, which READs.
//!
//! A room's KV comes in pieces ([`Initiator::produced`], [`Initiator::told`]). Once the target's page list is there, each piece becomes
//! *parts*: all requests of one (piece, source rank, destination rank) on one queue pair. In push the last request of a part carries the
//! immediate; in pull nothing is said to the target but the report at the end. Parts wait in the queue of their port until order and window
//! let them be posted, slice by slice. A room is Success when all its parts completed; that is final. In push it means "delivered", in pull
//! that decode may start: READs say by their own completions that the bytes are here.
//!
//! A *link* is all queue pairs between two instances. It lives and dies as one: the fence epoch is one for the two instances, a free by
//! fence must take every queue pair anyway, and one state machine is easier to get right than one for each queue pair. The price is that
//! an error on one queue pair flushes its siblings, whose rooms are not to blame and are posted again after the reconnect.

mod jobs;
mod link;
mod paths;
mod post;
mod pull;
mod room;
mod show;
mod stage;

use super::config::TransferConfig;
use super::end::{End, EndHeld, EndStats, RoomState, has_failed};
use super::memory::InstanceMemory;
use super::news::News;
use super::pairing::Pairing;
use super::tombstones::Tombstones;
use super::wire::Immediate;
use crate::fabric::{Completion, Error, Event, Fabric, Plan};
use crate::id::{CqId, InstanceId, PortId, QpId, RequestId};
use crate::map::Map;
use crate::node::{Cx, Reason};
use crate::policy::{Direction, Health, Job, JobId, Order, Rails};
use crate::registry::{Facts, LinkBody, Report, RoomKey};
use crate::time::Time;
use crate::timers::Timers;
use jobs::JobState;
use link::Link;
use room::Room;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// What a port has posted, and who posts next.
struct PortQueue {
    order: Box<dyn Order>,
    posted_bytes: u64,
    posted_requests: u64,
    cq: CqId,
    /// Whether its link has been down lately.
    health: Health,
    /// Requests that may be posted at a time, whatever the window says: flushed, each of them takes a place in the completion queue,
    /// and how many queue pairs a peer's ranks need is not known when the queue is made.
    most_requests: u64,
}

/// A room to open.
#[derive(Clone, Debug)]
pub struct InitiatorRoom {
    /// The room.
    pub key: RoomKey,
    /// Whose it is.
    pub request: RequestId,
    /// The target's instance.
    pub peer: InstanceId,
    /// For fairness.
    pub tenant: u32,
    /// This side's DP group.
    pub group: u16,
    /// Prompt tokens.
    pub tokens: u32,
}

impl InitiatorRoom {
    /// What order policies know of its share of a port.
    fn job(&self, id: JobId, arrived: Time, left: u64) -> Job {
        Job { id, tenant: self.tenant, arrived, tokens: self.tokens, left }
    }
}

/// The initiator's transfer engine.
pub struct Initiator {
    config: TransferConfig,
    /// Completions that each port's queue holds.
    depth: u32,
    memory: InstanceMemory,
    ports: Vec<PortQueue>,
    links: BTreeMap<InstanceId, Link>,
    /// By queue pair: its link and its index there.
    qps: Map<QpId, (InstanceId, usize)>,
    rooms: Vec<Option<Room>>,
    free_rooms: Vec<u32>,
    /// Rooms that are over, for their memory.
    spare_rooms: Vec<Room>,
    by_key: Map<RoomKey, u32>,
    jobs: Vec<JobState>,
    free_jobs: Vec<JobId>,
    /// Rooms begun and ended.
    uses: u64,
    /// An offer waits until a link gives up its queue pairs.
    starved: bool,
    /// Pull: aux slots of this side, where aux rows are read to.
    free_slots: VecDeque<u16>,
    tombstones: Tombstones<Report>,
    timers: Timers<RoomKey>,
    news: VecDeque<News>,
    lease_until: Time,
    stats: EndStats,
    /// Plans of the piece at hand by share class.
    plans: Vec<(u32, usize, Arc<Plan>)>,
    /// Staging slots of this side that are free, by rank of the instance; none without staging.
    sources: Vec<Vec<u16>>,
    /// Rooms that wait for one.
    starved_rooms: Vec<u32>,
    /// Rate of each port, bytes per second.
    rates: Vec<u64>,
    /// Chooses rails, where the policy is one that chooses; and whether it looks at what goes over them.
    rails: Option<Box<dyn Rails>>,
    measures: bool,
    /// Rails of the feed at hand that its piece goes on.
    homes: Vec<u16>,
    /// Ports and paths that failed lately.
    doubts: usize,
    /// When a link may have queue pairs back that it lacks.
    recheck: Time,
}

impl Initiator {
    /// For an instance with this memory. Completion queues have room for what `queue_pairs` queue pairs can hold; no more than fits is
    /// ever posted, so that even flushing all of it overruns none.
    pub fn new(
        mut config: TransferConfig,
        memory: InstanceMemory,
        fabric: &mut dyn Fabric,
        queue_pairs: u32,
    ) -> Result<Self, Error> {
        let count = fabric.ports().len() as u32;
        let per_port = queue_pairs.div_ceil(count.max(1)).max(1);
        let most = fabric.limits().max_cqe;
        config.max_queue_pairs = config.max_queue_pairs.min(fabric.limits().max_qp);
        // The window bounds what is posted on a port (aux row and seal may go one beyond it); ports are not always used evenly.
        let window = u32::try_from(config.window.requests).unwrap_or(u32::MAX).saturating_add(1);
        let depth = config.send_depth.saturating_mul(per_port).max(window).clamp(64.min(most), most);
        let ids: Vec<_> = fabric.ports().iter().map(|port| port.id).collect();
        let rates = fabric.ports().iter().map(|port| port.bits_per_s / 8).collect();
        let sources: Vec<Vec<u16>> = match memory.staging() {
            Some(staging) => {
                let slots = staging.slots.min(u16::MAX.into()) as u16;
                memory.ranks.iter().map(|_| (0..slots).rev().collect()).collect()
            }
            None => Vec::new(),
        };
        // A part's aux row and seal may go above the bound; a staged one is posted whole.
        let above = if sources.is_empty() { 2 } else { 2 + stage::REQUESTS };
        let mut ports = Vec::new();
        for port in ids {
            let cq = fabric.create_cq(port, depth)?;
            let most_requests = u64::from(depth).saturating_sub(above).max(1);
            let order = config.order.build();
            let (posted_bytes, posted_requests, health) = (0, 0, Health::default());
            ports.push(PortQueue { order, posted_bytes, posted_requests, cq, health, most_requests });
        }
        let rails = config.rail_policy.build();
        Ok(Self {
            depth,
            ports,
            memory,
            links: BTreeMap::new(),
            qps: Map::default(),
            rooms: Vec::new(),
            free_rooms: Vec::new(),
            spare_rooms: Vec::new(),
            by_key: Map::default(),
            jobs: Vec::new(),
            free_jobs: Vec::new(),
            uses: 0,
            starved: false,
            free_slots: match config.direction {
                Direction::Push => VecDeque::new(),
                Direction::Pull => (0..config.slots.min(Immediate::SLOTS) as u16).collect(),
            },
            tombstones: Tombstones::new(config.tombstone),
            timers: Timers::default(),
            news: VecDeque::new(),
            lease_until: Time::NEVER,
            stats: EndStats::default(),
            plans: Vec::new(),
            sources,
            starved_rooms: Vec::new(),
            rates,
            measures: rails.as_ref().is_some_and(|rails| rails.measures()),
            rails,
            homes: Vec::new(),
            doubts: 0,
            recheck: Time::NEVER,
            config,
        })
    }

    /// A peer's facts: a link to it is prepared, and the target asked for an offer. Rooms that waited for this go on.
    pub fn meet(&mut self, cx: &mut Cx<'_>, peer: InstanceId, facts: Arc<Facts>, pairing: Arc<Pairing>) {
        if self.links.contains_key(&peer) {
            return;
        }
        self.links.insert(peer, Link::new(facts, pairing));
        self.ask(peer);
        let waiting: Vec<RoomKey> = self
            .rooms
            .iter()
            .flatten()
            .filter(|room| room.spec.peer == peer)
            .map(|room| room.spec.key)
            .collect();
        for key in waiting {
            if let Some(index) = self.by_key.get(&key).copied() {
                self.begin(peer, index);
                self.advance(cx, index);
            }
        }
        self.pump_all(cx);
    }

    /// Completions were lost: what was posted on the port cannot be told apart any more. Its queue pairs and the completion queue
    /// are made anew.
    fn overrun(&mut self, cx: &mut Cx<'_>, cq: CqId) {
        let Some(port) = self.ports.iter().position(|port| port.cq == cq) else { return };
        let hit = |link: &Link| link.wires.iter().any(|wire| wire.port.index() == port);
        let peers: Vec<_> = self.links.iter().filter(|(_, link)| hit(link)).map(|(peer, _)| *peer).collect();
        for peer in &peers {
            self.scrap(cx, *peer);
        }
        // Nothing uses it any more; where no new one can be had, the links to come are refused.
        let _ = cx.fabric.destroy_cq(cq);
        if let Ok(cq) = cx.fabric.create_cq(PortId(port as u32), self.depth) {
            self.ports[port].cq = cq;
        }
        for peer in peers {
            self.ask(peer);
        }
    }

    fn room_mut(&mut self, index: u32) -> Option<&mut Room> {
        self.rooms.get_mut(index as usize).and_then(Option::as_mut)
    }
}

impl End for Initiator {
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

    fn wake(&mut self, cx: &mut Cx<'_>) {
        while let Some(key) = self.timers.expired(cx.now) {
            self.fail(cx, key, Reason::Deadline, true);
        }
        self.check_paths(cx);
        self.feed_starved(cx);
    }

    fn is_timed(&self, key: &RoomKey) -> bool {
        self.timers.get(*key).is_some()
    }

    fn expire(&mut self, cx: &mut Cx<'_>, key: RoomKey) -> bool {
        let armed = self.timers.cancel(key);
        if armed {
            self.fail(cx, key, Reason::Deadline, true);
        }
        armed
    }

    fn completions(&mut self, cx: &mut Cx<'_>, batch: &[Completion]) {
        for completion in batch {
            self.completed(cx, completion);
        }
        self.pump_all(cx);
        self.feed_starved(cx);
    }

    fn event(&mut self, cx: &mut Cx<'_>, event: Event) {
        match event {
            Event::QpFatal(qp) => {
                if let Some(&(peer, _)) = self.qps.get(&qp)
                    && has_failed(cx.fabric, qp)
                {
                    self.broken(cx, peer, true);
                }
            }
            Event::CqOverrun(cq) => self.overrun(cx, cq),
            Event::Copied(id) => {
                self.gathered(cx, id);
                self.pump_all(cx);
            }
            Event::PortDown(port) => self.port_down(cx, port),
            Event::PortUp(port) => self.port_up(cx.now, port),
            Event::SrqLimit(_) | Event::LastWqeReached(_) => {}
        }
        self.feed_starved(cx);
    }

    fn knows(&self, peer: InstanceId) -> bool {
        self.links.contains_key(&peer)
    }

    fn close(&mut self, fabric: &mut dyn Fabric) -> Result<(), Error> {
        while let Some((_, link)) = self.links.pop_first() {
            for wire in &link.wires {
                self.qps.remove(&wire.qp);
                fabric.destroy_qp(wire.qp)?;
            }
        }
        for port in self.ports.drain(..) {
            fabric.destroy_cq(port.cq)?;
        }
        self.memory.close(fabric)
    }

    fn link(&mut self, cx: &mut Cx<'_>, peer: InstanceId, body: LinkBody) {
        self.heard(cx, peer, body);
        self.feed_starved(cx);
    }

    fn say_again(&mut self, _cx: &mut Cx<'_>) {
        let down: Vec<InstanceId> =
            self.links.iter().filter(|(_, link)| !link.is_up()).map(|(peer, _)| *peer).collect();
        for peer in down {
            self.ask(peer);
        }
    }

    fn reject_peer(&mut self, cx: &mut Cx<'_>, peer: InstanceId, reason: Reason, tell: bool) {
        let rooms = self.rooms.iter().flatten().filter(|room| room.spec.peer == peer);
        let keys: Vec<RoomKey> = rooms.map(|room| room.spec.key).collect();
        for key in keys {
            self.fail(cx, key, reason, tell);
        }
        self.feed_starved(cx);
    }

    fn peer_gone(&mut self, cx: &mut Cx<'_>, peer: InstanceId) {
        self.reject_peer(cx, peer, Reason::PeerGone, false);
        self.scrap(cx, peer);
        self.links.remove(&peer);
        self.feed(cx);
        self.feed_starved(cx);
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

    fn held(&self) -> EndHeld {
        let slots = match self.config.direction {
            Direction::Push => 0,
            Direction::Pull => self.config.slots.min(Immediate::SLOTS) as usize - self.free_slots.len(),
        };
        EndHeld {
            rooms: self.by_key.len() as u64,
            slots: slots as u64 + self.held_sources(),
            timers: self.timers.len() as u64,
            queue_pairs: self.links.values().map(|link| link.wires.len() as u64).sum(),
            receives: 0,
        }
    }

    fn stats(&self) -> EndStats {
        self.stats
    }

    fn rooms(&self, see: &mut dyn FnMut(RoomKey, RequestId, RoomState)) {
        for room in self.rooms.iter().flatten() {
            see(room.spec.key, room.spec.request, room.state(self.config.direction));
        }
    }

    fn ended(&self, key: &RoomKey) -> Option<RoomState> {
        let report = self.tombstones.get(key)?;
        Some(if report.delivered { RoomState::Success } else { RoomState::Failed })
    }
}
