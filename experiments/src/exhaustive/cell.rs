//! Two instances and everything between them, one step at a time.

use std::collections::VecDeque;
use std::sync::Arc;

use engine::fabric::{Access, Event, Fabric as _, LinkLayer, Memory, RnrTimer, Rts};
use engine::id::{CqId, InstanceId, RequestId, Room};
use engine::node::{Outbox, Request};
use engine::policy::{RailPolicy, ReplicaChoice, Window};
use engine::registry::{Facts, Message, RoomKey};
use engine::time::{Span, Time};
use engine::transfer::{
    Initiator, InstanceMemory, PagePool, PageTable, Pairing, Rules, Target, TransferConfig,
};
use models::{Attention, DType, Layout, Model, PageOrder, Parallel};
use sim::fabric::{FabricEvent, Fabrics, HostSpec, PortSpec, Ready, Schedule};
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
pub(super) const NOW: Time = Time(1_000_000_000_000);

pub(super) const IDS: [InstanceId; 2] = [InstanceId(1), InstanceId(2)];

/// Either instance's only completion queue.
pub(super) const QUEUE: CqId = CqId(0);

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

pub(super) fn request(room: usize) -> Request {
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
    pub(super) tables: [PageTable; ROOMS],
    pub(super) waiting: VecDeque<usize>,
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
}

/// A state.
pub(super) struct Cell<'a> {
    pub(super) base: &'a Base,
    pub(super) fabrics: Fabrics,
    pub(super) pending: Pending,
    pub(super) ready: Vec<Ready>,
    pub(super) now: Time,
    pub(super) prefill: Initiator,
    pub(super) decode: Target,
    pub(super) nodes: [NodeAt; 2],
    pub(super) out: Outbox,
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

    pub(super) fn awake(&self, side: Side) -> bool {
        side == Side::Decode || !self.paused
    }
}
