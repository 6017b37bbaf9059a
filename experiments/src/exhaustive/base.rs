//! What the states of a walk have in common: configuration, topology, and what pages hold.

use std::sync::Arc;

use engine::fabric::{Access, Fabric as _, LinkLayer, Memory, RnrTimer, Rts};
use engine::id::RequestId;
use engine::node::{Admission, Chunk, Compute, Estimate, InstanceConfig, Request};
use engine::policy::{RailPolicy, Window};
use engine::registry::SessionConfig;
use engine::time::Span;
use engine::transfer::{InstanceMemory, PageTable, Rules, TransferConfig};
use models::{Attention, DType, Layout, Model, PageOrder, Parallel};
use sim::fabric::{Fabrics, HostSpec, PortSpec};
use sim::net::Topology;
use sim::nic::{Duration, NicProfile};

use super::cell::ROOMS;
use super::scope::Scope;
use super::step::Side;

/// Pages of either side, the padding page among them.
const PAGES: u32 = 2;
/// Tokens of a page: one of the prompt, and one that decode appends.
const PAGE_SIZE: u32 = 2;
/// Layers of the model: as many as there are queue pairs, so that each carries one of them.
pub(super) const LAYERS: u32 = 2;
/// How long a step of compute takes, unless it takes no time.
const COMPUTE: Span = Span(1);

/// What a walk is about, and what all of its states share.
pub(super) struct Base {
    pub(super) scope: Scope,
    pub(super) config: InstanceConfig,
    nic: Arc<NicProfile>,
    topology: Topology,
    /// The bytes of each room's page at decode when its KV is there, by room and layer.
    pub(super) content: Vec<Vec<Vec<u8>>>,
}

/// How long steps take.
struct Steps {
    prefill: Span,
    decode: Span,
}

impl Compute for Steps {
    fn prefill(&self, _: &[Chunk]) -> Estimate {
        Estimate { span: self.prefill, extrapolated: false }
    }
    fn decode(&self, _: u32, _: u64) -> Estimate {
        Estimate { span: self.decode, extrapolated: false }
    }
}

pub(super) fn request(room: usize, output: u32) -> Request {
    Request { id: RequestId(room as u64 + 1), prompt: 1, output, ..Request::default() }
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
        let transfer = TransferConfig {
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
            // Every byte is looked at in every state.
            verify: false,
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
        let config = InstanceConfig {
            model,
            dtype: DType::Bf16,
            parallel: Parallel::default(),
            page_size: PAGE_SIZE,
            order: PageOrder::TokenMajor,
            pages: PAGES,
            scatter: false,
            memory: Memory::Host,
            transfer,
            // Nothing that is said waits for a clock.
            session: SessionConfig { ack_delay: Span(0), ..SessionConfig::default() },
            life: 1,
            batch: 8,
            prefix_cache: false,
            admission: Admission::Reserve,
            most_waiting: None,
            tell_deliveries: false,
            peers: 1,
        };
        let mut base = Self { scope, config, nic, topology, content: Vec::new() };
        base.content = base.contents()?;
        Ok(base)
    }

    pub(super) fn fabrics(&self) -> Result<Fabrics, String> {
        Fabrics::new(hosts(&self.nic), self.topology.clone(), 1).map_err(broken("fabric"))
    }

    /// What the pages of decode are to hold, made in a fabric of its own.
    fn contents(&self) -> Result<Vec<Vec<Vec<u8>>>, String> {
        let (mut fabrics, config) = (self.fabrics()?, &self.config);
        let fabric = fabrics.host(0);
        let layout =
            Layout::new(&config.model, config.dtype, config.parallel, config.page_size, config.order)
                .map_err(broken("layout"))?;
        let paths = (config.transfer.rails, &config.transfer.reach);
        let memory =
            InstanceMemory::new(fabric, layout, config.memory, PAGES, (1, None), paths, Access::REMOTE_READ)
                .map_err(broken("memory"))?;
        let mut content = Vec::new();
        for room in 0..ROOMS {
            fill_page(fabric, Some(&memory), 1, super::check::mark(Side::Decode));
            let table = PageTable::new(vec![run(1)]);
            memory.stamp(fabric, 0, &request(room, 1), &table, 0..1, 0..LAYERS).map_err(broken("content"))?;
            content.push((0..LAYERS).map(|layer| page_of(fabric, Some(&memory), layer, 1)).collect());
        }
        Ok(content)
    }

    /// How long nodes compute.
    pub(super) fn compute(&self) -> Box<dyn Compute> {
        Box::new(Steps { prefill: if self.scope.compute { COMPUTE } else { Span(0) }, decode: COMPUTE })
    }

    /// Tokens to generate: the second one takes decode a step of its batch.
    pub(super) fn output(&self) -> u32 {
        1 + u32::from(self.scope.hold)
    }
}

fn run(page: u32) -> engine::registry::PageRun {
    engine::registry::PageRun { first: engine::id::Page(page), count: 1 }
}

/// What stands in a page of one buffer.
pub(super) fn page_of(
    fabric: &sim::fabric::SimFabric,
    memory: Option<&InstanceMemory>,
    layer: u32,
    page: u32,
) -> Vec<u8> {
    let pool = memory.and_then(|memory| memory.ranks.first()).and_then(|rank| rank.pools.first());
    let Some(pool) = pool else { return Vec::new() };
    let mut bytes = vec![0; pool.grid.page as usize];
    let at = u64::from(layer) * pool.grid.pitch + u64::from(page) * pool.grid.page;
    match fabric.read(pool.buf, at, &mut bytes) {
        Ok(()) => bytes,
        Err(_) => Vec::new(),
    }
}

/// Fills a page of every buffer.
pub(super) fn fill_page(
    fabric: &mut sim::fabric::SimFabric,
    memory: Option<&InstanceMemory>,
    page: u32,
    byte: u8,
) {
    let pool = memory.and_then(|memory| memory.ranks.first()).and_then(|rank| rank.pools.first());
    let Some(pool) = pool else { return };
    for layer in 0..u64::from(LAYERS) {
        let at = layer * pool.grid.pitch + u64::from(page) * pool.grid.page;
        // In range: the pool has this page.
        let _ = fabric.write(pool.buf, at, &vec![byte; pool.grid.page as usize]);
    }
}
