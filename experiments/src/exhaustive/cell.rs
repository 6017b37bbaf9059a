//! Two instances and everything between them, one step at a time.

use std::collections::VecDeque;
use std::sync::Arc;

use engine::fabric::{Access, Completion, Event, Fabric as _, LinkLayer, Memory, RnrTimer, Rts};
use engine::id::{CqId, InstanceId, RequestId, Room};
use engine::node::{Cx, Outbox, Reason, Request, Step as Recorded};
use engine::policy::{RailPolicy, ReplicaChoice, Window};
use engine::registry::{Facts, Message, RoomKey};
use engine::time::{Span, Time};
use engine::transfer::{
    End as _, Initiator, InitiatorRoom, InstanceMemory, News, PagePool, PageTable, Pairing, Rules, Target,
    TargetRoom, TransferConfig,
};
use models::{Attention, DType, Layout, Model, PageOrder, Parallel};
use sim::fabric::{FabricEvent, Fabrics, HostSpec, Lane, PortSpec, Ready, Schedule};
use sim::net::Topology;
use sim::nic::{Duration, NicProfile};

use super::check::Broken;
use super::scope::Scope;
use super::step::{Side, Step};

/// Rooms of a walk.
pub(super) const ROOMS: usize = 2;
/// Pages of either side, the padding page among them.
const PAGES: u32 = 2;
/// Layers of the model: as many as there are queue pairs, so that each carries one of them.
pub(super) const LAYERS: u32 = 2;
/// What nodes' clocks say: it is always the same instant.
const NOW: Time = Time(1_000_000_000_000);

pub(super) const IDS: [InstanceId; 2] = [InstanceId(1), InstanceId(2)];

/// Either instance's only completion queue.
const QUEUE: CqId = CqId(0);

/// What a walk is about, and what all of its states share.
pub(super) struct Base {
    pub(super) scope: Scope,
    config: TransferConfig,
    nic: Arc<NicProfile>,
    topology: Topology,
    layout: Layout,
    facts: [Arc<Facts>; 2],
    pairing: Arc<Pairing>,
    /// The bytes of each room's KV, by room and layer.
    pub(super) content: Vec<Vec<Vec<u8>>>,
}

pub(super) fn key(room: usize) -> RoomKey {
    RoomKey { room: Room(room as u64 + 1), attempt: 1 }
}

pub(super) fn room_of(key: &RoomKey) -> Option<usize> {
    (key.room.0 as usize).checked_sub(1).filter(|room| *room < ROOMS)
}

fn request(room: usize) -> Request {
    Request { id: RequestId(room as u64 + 1), prompt: 1, output: 1, ..Request::default() }
}

fn hosts(nic: &Arc<NicProfile>) -> Vec<HostSpec> {
    let port = |host| PortSpec {
        name: format!("nic{host}/1"),
        link_layer: LinkLayer::Ethernet,
        bits_per_s: 100_000_000_000,
        mtu: nic.mtu,
        numa: None,
    };
    (0..2).map(|host| HostSpec { ports: vec![port(host)], nic: nic.clone() }).collect()
}

/// Why there is no cell; only if this module contradicts itself.
fn broken<E: std::fmt::Display>(what: &'static str) -> impl FnOnce(E) -> String {
    move |error| format!("{what}: {error}")
}

impl Base {
    pub(super) fn new(scope: Scope, rules: Rules) -> Result<Self, String> {
        let config = TransferConfig {
            rails: 2,
            rail_policy: RailPolicy::Striped,
            failover: None,
            slots: 1,
            send_depth: 16,
            receive_depth: 8,
            parts_per_rail: 1,
            retries: 1,
            // A request without an answer fails at its first timeout.
            rts: Rts { timeout: 1, retry_cnt: 0, rnr_retry: 0, max_rd_atomic: 1 },
            min_rnr_timer: RnrTimer(1),
            window: Window { signal_every: u32::from(scope.split), ..Window::default() },
            rules,
            ..TransferConfig::default()
        };
        let nic = Arc::new(NicProfile { ack: Duration(Span::ms(1)), ..NicProfile::ideal() });
        let topology = Topology::star(2, 100.0, 1000).map_err(broken("topology"))?;
        let model = Model {
            name: "two-layers".to_owned(),
            layers: LAYERS,
            q_heads: 1,
            attention: Attention::Mla { kv_lora_rank: 2, qk_rope_head_dim: 2 },
            context_len: 64,
            index_k: None,
        };
        let layout = Layout::new(&model, DType::Bf16, Parallel::default(), 1, PageOrder::TokenMajor)
            .map_err(broken("layout"))?;
        let mut fabrics = Fabrics::new(hosts(&nic), topology.clone(), 1).map_err(broken("fabric"))?;
        let prefill = memory(&mut fabrics, Side::Prefill, &layout, &config)?;
        let decode = memory(&mut fabrics, Side::Decode, &layout, &config)?;
        let facts = [Arc::new(prefill.facts()), Arc::new(decode.facts())];
        let replica = ReplicaChoice::ByDestination;
        let pairing =
            Pairing::new(&model, DType::Bf16, &facts[0], &facts[1], replica, config.rails, &config.reach)
                .map_err(broken("pairing"))?;
        let mut content = Vec::new();
        for room in 0..ROOMS {
            let (table, fabric) = (PageTable::new(vec![run(1)]), fabrics.host(0));
            prefill.stamp(fabric, 0, &request(room), &table, 0..1, 0..LAYERS).map_err(broken("content"))?;
            content.push((0..LAYERS).map(|layer| page_of(fabric, &prefill, layer, 1)).collect());
        }
        Ok(Self { scope, config, nic, topology, layout, facts, pairing: Arc::new(pairing), content })
    }
}

fn memory(
    fabrics: &mut Fabrics,
    side: Side,
    layout: &Layout,
    config: &TransferConfig,
) -> Result<InstanceMemory, String> {
    let access = match side {
        Side::Prefill => Access::REMOTE_READ,
        Side::Decode => Access::REMOTE_WRITE,
    };
    let (fabric, paths) = (fabrics.host(side as usize), (config.rails, &config.reach));
    InstanceMemory::new(fabric, layout.clone(), Memory::Host, PAGES, (config.slots, None), paths, access)
        .map_err(broken("memory"))
}

pub(super) fn run(page: u32) -> engine::registry::PageRun {
    engine::registry::PageRun { first: engine::id::Page(page), count: 1 }
}

/// What stands in a page of one buffer.
pub(super) fn page_of(
    fabric: &sim::fabric::SimFabric,
    memory: &InstanceMemory,
    layer: u32,
    page: u32,
) -> Vec<u8> {
    let Some(pool) = memory.ranks.first().and_then(|rank| rank.pools.first()) else { return Vec::new() };
    let mut bytes = vec![0; pool.grid.page as usize];
    let at = u64::from(layer) * pool.grid.pitch + u64::from(page) * pool.grid.page;
    match fabric.read(pool.buf, at, &mut bytes) {
        Ok(()) => bytes,
        Err(_) => Vec::new(),
    }
}

/// Pending events, in the order of their times.
#[derive(Default)]
pub(super) struct Pending(pub(super) Vec<(Time, FabricEvent)>);

impl Schedule for Pending {
    fn at(&mut self, when: Time, event: FabricEvent) {
        let at = self.0.partition_point(|(at, _)| *at <= when);
        self.0.insert(at, (when, event));
    }
}

/// A room on one side, as its node sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The node has not heard of it, or has no pages for it, or never will.
    Nowhere,
    /// It waits for pages.
    Waiting,
    /// It has pages.
    Live,
    /// Success; it keeps its pages for a while.
    Success,
    /// Over; its pages are not free yet.
    Over,
    /// Its pages are free.
    Released,
}

/// A node, as far as it has to do with pages.
pub(super) struct NodeAt {
    pub(super) pool: PagePool,
    pub(super) phase: [Phase; ROOMS],
    pub(super) assigned: [bool; ROOMS],
    /// How each room ended: whether with Success.
    pub(super) ended: [Option<bool>; ROOMS],
    tables: [PageTable; ROOMS],
    waiting: VecDeque<usize>,
    /// Messages on their way to it.
    pub(super) inbox: VecDeque<Message>,
    pub(super) late: Vec<Message>,
    pub(super) events: VecDeque<Event>,
    pub(super) lease_over: bool,
    pub(super) dead: bool,
}

impl NodeAt {
    fn new() -> Self {
        Self {
            pool: PagePool::new(PAGES, false),
            phase: [Phase::Nowhere; ROOMS],
            assigned: [false; ROOMS],
            ended: [None; ROOMS],
            tables: Default::default(),
            waiting: VecDeque::new(),
            inbox: VecDeque::new(),
            late: Vec::new(),
            events: VecDeque::new(),
            lease_over: false,
            dead: false,
        }
    }
    /// The pages of a room that has any.
    pub(super) fn page(&self, room: usize) -> Option<u32> {
        self.tables[room].runs().first().map(|run| run.first.0)
    }
    pub(super) fn waiting(&self) -> &VecDeque<usize> {
        &self.waiting
    }
}

/// A state.
pub(super) struct Cell<'a> {
    pub(super) base: &'a Base,
    pub(super) fabrics: Fabrics,
    pub(super) pending: Pending,
    ready: Vec<Ready>,
    pub(super) now: Time,
    pub(super) prefill: Initiator,
    pub(super) decode: Target,
    pub(super) nodes: [NodeAt; 2],
    out: Outbox,
    pub(super) created: usize,
    pub(super) paused: bool,
    /// What is left of the scope's faults: deaths, late messages, pauses, leases.
    pub(super) left: [u8; 4],
    /// No deadline has passed, and no fault has struck.
    pub(super) undisturbed: bool,
    pub(super) broken: Option<Broken>,
    /// What the last step was about, if anybody reads it.
    pub(super) said: Option<String>,
}

impl<'a> Cell<'a> {
    /// The first state: connected, no room.
    pub(super) fn new(base: &'a Base) -> Result<Self, String> {
        let mut fabrics =
            Fabrics::new(hosts(&base.nic), base.topology.clone(), 1).map_err(broken("fabric"))?;
        let prefill = memory(&mut fabrics, Side::Prefill, &base.layout, &base.config)?;
        let decode = memory(&mut fabrics, Side::Decode, &base.layout, &base.config)?;
        let prefill =
            Initiator::new(base.config.clone(), prefill, fabrics.host(0), 2).map_err(broken("prefill"))?;
        let decode =
            Target::new(base.config.clone(), decode, fabrics.host(1), 2).map_err(broken("decode"))?;
        let scope = &base.scope;
        let mut cell = Self {
            base,
            fabrics,
            pending: Pending::default(),
            ready: Vec::new(),
            now: Time::ZERO,
            prefill,
            decode,
            nodes: [NodeAt::new(), NodeAt::new()],
            out: Outbox::default(),
            created: 0,
            paused: false,
            left: [scope.deaths, scope.late, scope.pauses, scope.leases],
            undisturbed: true,
            broken: None,
            said: None,
        };
        cell.mark_page(Side::Prefill, 1);
        cell.mark_page(Side::Decode, 1);
        cell.mark_slot();
        cell.on_decode(|decode, cx| decode.meet(cx, IDS[0], base.pairing.clone()));
        let facts = base.facts[1].clone();
        cell.on_prefill(|prefill, cx| prefill.meet(cx, IDS[1], facts, base.pairing.clone()));
        while let Some(side) = Side::BOTH.into_iter().find(|side| !cell.node(*side).inbox.is_empty()) {
            cell.apply(Step::Deliver(side));
        }
        Ok(cell)
    }

    pub(super) fn node(&mut self, side: Side) -> &mut NodeAt {
        &mut self.nodes[side as usize]
    }

    fn awake(&self, side: Side) -> bool {
        side == Side::Decode || !self.paused
    }

    /// Everything that can happen next, in an order that depends on the state alone.
    pub(super) fn steps(&self) -> Vec<Step> {
        let scope = &self.base.scope;
        let mut steps = Vec::new();
        if self.created < usize::from(scope.rooms).min(ROOMS) && !self.nodes.iter().any(|node| node.dead) {
            steps.push(Step::Create);
        }
        for side in Side::BOTH.into_iter().filter(|side| self.awake(*side)) {
            let node = &self.nodes[side as usize];
            if !node.inbox.is_empty() {
                steps.push(Step::Deliver(side));
            }
            steps.extend((0..node.late.len() as u8).map(|at| Step::LateComes(side, at)));
            if self.fabrics.host_ref(side as usize).has_completions() {
                steps.push(Step::Poll(side));
            }
            if !node.events.is_empty() {
                steps.push(Step::Hear(side));
            }
        }
        let mut seen: Vec<Lane> = Vec::new();
        for (_, event) in &self.pending.0 {
            let lane = event.lane();
            if seen.contains(&lane) {
                continue;
            }
            seen.push(lane);
            match lane {
                Lane::Requests { .. } | Lane::Remains(_) | Lane::Copy { .. } => {
                    steps.push(Step::Execute(lane));
                }
                Lane::Acks => steps.push(Step::Ack),
                Lane::Refusal { .. } => steps.push(Step::Refuse(lane)),
                Lane::Internal => {}
            }
        }
        for room in 0..ROOMS as u8 {
            if scope.hold && self.nodes[1].phase[usize::from(room)] == Phase::Success {
                steps.push(Step::Finish(room));
            }
        }
        for side in Side::BOTH.into_iter().filter(|side| scope.deadlines && self.awake(*side)) {
            for room in 0..ROOMS as u8 {
                let timed = match side {
                    Side::Prefill => self.prefill.is_timed(&key(room.into())),
                    Side::Decode => self.decode.is_timed(&key(room.into())),
                };
                if timed {
                    steps.push(Step::Deadline(side, room));
                }
            }
        }
        if self.paused {
            steps.push(Step::Resume);
        }
        for side in Side::BOTH {
            let node = &self.nodes[side as usize];
            if node.lease_over && !node.dead {
                steps.push(Step::DeclareDead(side));
            }
        }
        self.faults(&seen, &mut steps);
        steps
    }

    fn faults(&self, lanes: &[Lane], steps: &mut Vec<Step>) {
        let [deaths, late, pauses, leases] = self.left;
        if self.created == 0 {
            return;
        }
        if deaths > 0 {
            for lane in lanes.iter().filter(|lane| matches!(lane, Lane::Requests { .. })) {
                steps.push(Step::ExecuteUnheard(*lane));
            }
            for side in Side::BOTH {
                let host = self.fabrics.host_ref(side as usize);
                for (at, qp) in (0u8..).zip(host.queue_pairs()) {
                    if host.qp_state(qp) == Ok(engine::fabric::QpState::Rts) {
                        steps.push(Step::Die(side, at));
                    }
                }
            }
        }
        if late > 0 {
            for side in Side::BOTH.into_iter().filter(|side| !self.nodes[*side as usize].inbox.is_empty()) {
                steps.push(Step::Overtaken(side));
            }
        }
        if pauses > 0 && !self.paused {
            steps.push(Step::Pause);
        }
        for side in Side::BOTH {
            let can = leases > 0 || side == Side::Prefill && self.paused;
            if can && !self.nodes[side as usize].lease_over {
                steps.push(Step::LeaseEnds(side));
            }
        }
    }

    /// Takes a step.
    pub(super) fn apply(&mut self, step: Step) {
        match step {
            Step::Create => {
                let room = self.created;
                self.created += 1;
                for side in Side::BOTH {
                    let peer = IDS[side.other() as usize];
                    let assign = Message::Assign { key: key(room), peer, request: request(room) };
                    self.node(side).inbox.push_back(assign);
                }
            }
            Step::Deliver(side) => {
                if let Some(message) = self.node(side).inbox.pop_front() {
                    self.deliver(side, message);
                }
            }
            Step::Overtaken(side) => {
                self.left[1] -= 1;
                self.undisturbed = false;
                let message = self.node(side).inbox.pop_front();
                if let (Some(said), Some(message)) = (&mut self.said, &message) {
                    *said = format!("{message:?}");
                }
                self.node(side).late.extend(message);
            }
            Step::LateComes(side, at) => {
                if usize::from(at) < self.node(side).late.len() {
                    let message = self.node(side).late.remove(at.into());
                    self.deliver(side, message);
                }
            }
            Step::Execute(lane) | Step::Refuse(lane) => self.take(lane),
            Step::ExecuteUnheard(lane) => {
                self.left[0] -= 1;
                self.undisturbed = false;
                if let Lane::Requests { host, .. } = lane {
                    self.fabrics.swallow_acks(host, 1);
                }
                self.take(lane);
            }
            Step::Ack => self.take(Lane::Acks),
            Step::Poll(side) => self.poll(side),
            Step::Hear(side) => {
                if let Some(event) = self.node(side).events.pop_front() {
                    match side {
                        Side::Prefill => self.on_prefill(|end, cx| end.event(cx, event)),
                        Side::Decode => self.on_decode(|end, cx| end.event(cx, event)),
                    }
                }
            }
            Step::Deadline(side, room) => {
                self.undisturbed = false;
                let key = key(room.into());
                match side {
                    Side::Prefill => self.on_prefill(|end, cx| _ = end.expire(cx, key)),
                    Side::Decode => self.on_decode(|end, cx| _ = end.expire(cx, key)),
                }
            }
            Step::Finish(room) => self.finish(room.into()),
            Step::Die(side, at) => {
                self.left[0] -= 1;
                self.undisturbed = false;
                let qp = self.fabrics.host_ref(side as usize).queue_pairs().get(usize::from(at)).copied();
                if let Some(qp) = qp {
                    self.fabrics.fail_qp(side as usize, qp, self.now, &mut self.pending, &mut self.ready);
                }
            }
            Step::Pause => {
                self.left[2] -= 1;
                self.undisturbed = false;
                self.paused = true;
            }
            Step::Resume => self.paused = false,
            Step::LeaseEnds(side) => {
                self.left[3] = self.left[3].saturating_sub(1);
                self.undisturbed = false;
                self.node(side).lease_over = true;
                match side {
                    Side::Prefill => self.prefill.set_lease(Time::ZERO),
                    Side::Decode => self.decode.set_lease(Time::ZERO),
                }
            }
            Step::DeclareDead(side) => {
                self.node(side).dead = true;
                let instance = IDS[side as usize];
                for side in Side::BOTH {
                    self.node(side).inbox.push_back(Message::Gone { instance });
                }
            }
        }
        self.settle();
        self.check();
    }

    /// The first pending event of a lane happens.
    fn take(&mut self, lane: Lane) {
        let Some(at) = self.pending.0.iter().position(|(_, event)| event.lane() == lane) else { return };
        let (when, event) = self.pending.0.remove(at);
        self.now = self.now.max(when);
        self.fabrics.handle(self.now, event, &mut self.pending, &mut self.ready);
    }

    /// What makes no difference to anybody happens at once.
    fn settle(&mut self) {
        loop {
            let (fabrics, now) = (&self.fabrics, self.now);
            let due = |(when, event): &(Time, FabricEvent)| match event.lane() {
                Lane::Internal => true,
                Lane::Acks => *when <= now || fabrics.is_void(event),
                _ => fabrics.is_void(event),
            };
            let Some(at) = self.pending.0.iter().position(due) else { break };
            let (when, event) = self.pending.0.remove(at);
            if event.lane() == Lane::Internal {
                self.now = self.now.max(when);
            }
            self.fabrics.handle(self.now, event, &mut self.pending, &mut self.ready);
        }
        self.ready.clear();
        for side in Side::BOTH {
            while let Some(event) = self.fabrics.host(side as usize).next_event() {
                // Neither end does anything about these.
                if !matches!(event, Event::LastWqeReached(_) | Event::SrqLimit(_)) {
                    self.node(side).events.push_back(event);
                }
            }
        }
    }

    fn poll(&mut self, side: Side) {
        let mut batch = [Completion::default()];
        self.fabrics.begin_call(side as usize, self.now);
        if self.fabrics.host(side as usize).poll(QUEUE, &mut batch) == 0 {
            return;
        }
        if let Some(said) = &mut self.said {
            *said = format!("{:?}", batch[0].result);
        }
        match side {
            Side::Prefill => self.on_prefill(|end, cx| end.completions(cx, &batch)),
            Side::Decode => self.on_decode(|end, cx| end.completions(cx, &batch)),
        }
    }

    fn deliver(&mut self, side: Side, message: Message) {
        if let Some(said) = &mut self.said {
            *said = format!("{message:?}");
        }
        match (side, message) {
            (_, Message::Assign { key, .. }) => self.assigned(side, key),
            (_, Message::Gone { instance }) => self.gone(side, instance),
            (Side::Prefill, Message::Publish(list)) => self.on_prefill(|end, cx| end.publish(cx, &list)),
            (Side::Prefill, Message::Abort { key, reason }) => {
                self.on_prefill(|end, cx| end.abort(cx, key, reason, false));
            }
            (Side::Prefill, Message::Link { peer, body }) => {
                self.on_prefill(|end, cx| end.link(cx, peer, body));
            }
            (Side::Decode, Message::Report { key, report }) => {
                self.on_decode(|end, cx| end.report(cx, key, report));
            }
            (Side::Decode, Message::Abort { key, reason }) => {
                self.drop_waiting(|room| room_of(&key) == Some(room));
                self.on_decode(|end, cx| end.abort(cx, key, reason, false));
            }
            (Side::Decode, Message::Link { peer, body }) => {
                self.on_decode(|end, cx| end.link(cx, peer, body));
            }
            // Nothing else is said between the two.
            (_, _) => {}
        }
    }

    /// Rooms that wait for pages of decode wait no more: they have failed.
    fn drop_waiting(&mut self, which: impl Fn(usize) -> bool) {
        let node = &mut self.nodes[1];
        for room in node.waiting.iter().copied().filter(|room| which(*room)) {
            (node.phase[room], node.ended[room]) = (Phase::Released, Some(false));
        }
        node.waiting.retain(|room| !which(*room));
    }

    fn assigned(&mut self, side: Side, key: RoomKey) {
        let Some(room) = room_of(&key) else { return };
        let other = self.nodes[side.other() as usize].dead;
        self.node(side).assigned[room] = true;
        let (id, peer) = (RequestId(room as u64 + 1), IDS[side.other() as usize]);
        match side {
            Side::Prefill => {
                let spec = InitiatorRoom { key, request: id, peer, tenant: 0, group: 0, tokens: 1 };
                let mut opened = false;
                self.on_prefill(|end, cx| opened = end.open(cx, spec));
                if opened {
                    self.nodes[0].phase[room] = Phase::Waiting;
                    self.nodes[0].waiting.push_back(room);
                    if other {
                        self.on_prefill(|end, cx| end.peer_gone(cx, peer));
                    }
                    self.place();
                }
            }
            Side::Decode if other => {
                self.nodes[1].ended[room] = Some(false);
                self.on_decode(|end, cx| end.abort(cx, key, Reason::PeerGone, false));
            }
            Side::Decode if !self.decode.knows_room(&key) => {
                self.nodes[1].phase[room] = Phase::Waiting;
                self.nodes[1].waiting.push_back(room);
                self.admit();
            }
            Side::Decode => {}
        }
    }

    /// The registry says that an instance is no more: the other one, or this one itself.
    fn gone(&mut self, side: Side, instance: InstanceId) {
        let own = instance == IDS[side as usize];
        if side == Side::Decode {
            let rooms: Vec<usize> = self.nodes[1].waiting.iter().copied().collect();
            self.drop_waiting(|_| true);
            for room in rooms {
                self.on_decode(|end, cx| end.abort(cx, key(room), Reason::PeerGone, false));
            }
        }
        match (side, own) {
            (Side::Prefill, true) => self.on_prefill(|end, cx| end.abandon(cx, Reason::LeaseLost)),
            (Side::Decode, true) => self.on_decode(|end, cx| end.abandon(cx, Reason::LeaseLost)),
            (Side::Prefill, false) => self.on_prefill(|end, cx| end.peer_gone(cx, instance)),
            (Side::Decode, false) => self.on_decode(|end, cx| end.peer_gone(cx, instance)),
        }
    }

    /// Prefill gives pages to the rooms that wait for them, and computes.
    fn place(&mut self) {
        while let Some(room) = self.nodes[0].waiting.front().copied() {
            if self.prefill.is_active(&key(room)) {
                let mut table = PageTable::default();
                if !self.nodes[0].pool.take(1, &mut table) {
                    return;
                }
                self.nodes[0].tables[room] = table.clone();
                self.nodes[0].phase[room] = Phase::Live;
                self.nodes[0].waiting.pop_front();
                self.on_prefill(|end, cx| {
                    end.attach(&key(room), &table, 0);
                    // Pages of its own: it cannot be refused.
                    let _ = end.memory().stamp(cx.fabric, 0, &request(room), &table, 0..1, 0..LAYERS);
                    end.produced(cx, &key(room), 0..1, 0..LAYERS, true);
                });
            } else {
                self.nodes[0].waiting.pop_front();
            }
        }
    }

    /// Decode lets in the rooms that wait, first come first served.
    fn admit(&mut self) {
        while let Some(room) = self.nodes[1].waiting.front().copied() {
            let mut table = PageTable::default();
            if !self.decode.can_open(IDS[0], 0) || !self.nodes[1].pool.take(1, &mut table) {
                return;
            }
            self.nodes[1].waiting.pop_front();
            self.nodes[1].tables[room] = table.clone();
            self.nodes[1].phase[room] = Phase::Live;
            let request = RequestId(room as u64 + 1);
            let spec = TargetRoom { key: key(room), request, peer: IDS[0], group: 0, tokens: 1 };
            let mut opened = false;
            self.on_decode(|end, cx| opened = end.open(cx, spec, &table));
            if !opened {
                self.nodes[1].ended[room] = Some(false);
                self.released(Side::Decode, room);
            }
        }
    }

    fn finish(&mut self, room: usize) {
        self.nodes[1].phase[room] = Phase::Over;
        self.on_decode(|end, cx| end.finish(cx, key(room)));
    }

    fn on_prefill(&mut self, call: impl FnOnce(&mut Initiator, &mut Cx<'_>)) {
        self.fabrics.begin_call(0, self.now);
        let mut cx = Cx { now: NOW, fabric: self.fabrics.host(0), out: &mut self.out };
        call(&mut self.prefill, &mut cx);
        self.fabrics.after_call(0, self.now, &mut self.pending, &mut self.ready);
        // What inline requests were made in: nobody reads it again.
        if let Some(aux) = self.prefill.memory().ranks.first().map(|rank| rank.aux.buf) {
            let _ = self.fabrics.host(0).write(aux, 0, &[0; 128]);
        }
        self.news(Side::Prefill);
        self.place();
    }

    fn on_decode(&mut self, call: impl FnOnce(&mut Target, &mut Cx<'_>)) {
        self.fabrics.begin_call(1, self.now);
        let mut cx = Cx { now: NOW, fabric: self.fabrics.host(1), out: &mut self.out };
        call(&mut self.decode, &mut cx);
        self.fabrics.after_call(1, self.now, &mut self.pending, &mut self.ready);
        self.news(Side::Decode);
        self.admit();
    }

    fn news(&mut self, side: Side) {
        let corrupt = self.out.records.iter().any(|record| record.step == Recorded::Corrupt);
        self.out.clear();
        if corrupt {
            self.breaks("Success without the aux row", "every sealed part was seen".to_owned());
        }
        loop {
            let news = match side {
                Side::Prefill => self.prefill.next_news(),
                Side::Decode => self.decode.next_news(),
            };
            let Some(news) = news else { return };
            match news {
                News::Tell(Message::Link { body, .. }) => {
                    let message = Message::Link { peer: IDS[side as usize], body };
                    self.node(side.other()).inbox.push_back(message);
                }
                News::Tell(message) => self.node(side.other()).inbox.push_back(message),
                News::Started(_) => {}
                News::Success(key) => {
                    if let Some(room) = room_of(&key) {
                        self.succeeded(side, room);
                    }
                }
                News::Failed(key, _) => {
                    if let Some(room) = room_of(&key) {
                        self.ends(side, room, false);
                        if self.node(side).phase[room] == Phase::Live {
                            self.node(side).phase[room] = Phase::Over;
                        }
                    }
                }
                News::Released(key) => {
                    if let Some(room) = room_of(&key) {
                        self.released(side, room);
                    }
                }
            }
        }
    }

    /// A side says how a room ended.
    fn ends(&mut self, side: Side, room: usize, success: bool) {
        let before = self.node(side).ended[room].replace(success);
        if before.is_some() {
            self.breaks("a room ends twice", format!("room {} on {side}", room + 1));
        }
    }

    fn succeeded(&mut self, side: Side, room: usize) {
        self.ends(side, room, true);
        if self.nodes[side as usize].dead {
            let what = format!("room {} on {side}", room + 1);
            self.breaks("Success after the lease was declared dead", what);
        }
        self.check_success(side, room);
        if side == Side::Decode {
            self.nodes[1].phase[room] = Phase::Success;
            // Decode writes on: its last page is its own now.
            if let Some(page) = self.nodes[1].page(room) {
                self.fill_page(Side::Decode, page, super::check::APPENDED);
            }
            if !self.base.scope.hold {
                self.finish(room);
            }
        }
    }

    fn released(&mut self, side: Side, room: usize) {
        let Some(page) = self.node(side).page(room) else { return };
        self.node(side).phase[room] = Phase::Released;
        let node = &mut self.nodes[side as usize];
        if node.pool.give_all(&mut node.tables[room]) > 0 {
            self.breaks("pages are freed twice", format!("page {page} of {side}, room {}", room + 1));
        }
        self.mark_page(side, page);
        if side == Side::Decode {
            self.mark_slot();
        }
    }

    fn mark_page(&mut self, side: Side, page: u32) {
        self.fill_page(side, page, super::check::mark(side));
    }

    fn fill_page(&mut self, side: Side, page: u32, byte: u8) {
        let memory = match side {
            Side::Prefill => self.prefill.memory(),
            Side::Decode => self.decode.memory(),
        };
        let Some(pool) = memory.ranks.first().and_then(|rank| rank.pools.first()) else { return };
        for layer in 0..u64::from(LAYERS) {
            let at = layer * pool.grid.pitch + u64::from(page) * pool.grid.page;
            let bytes = vec![byte; pool.grid.page as usize];
            // In range: the pool has this page.
            let _ = self.fabrics.host(side as usize).write(pool.buf, at, &bytes);
        }
    }

    fn mark_slot(&mut self) {
        let Some(rank) = self.decode.memory().ranks.first() else { return };
        let (buf, bytes) = (rank.aux.buf, [super::check::mark(Side::Decode); 96]);
        let _ = self.fabrics.host(1).write(buf, 0, &bytes);
    }
}
