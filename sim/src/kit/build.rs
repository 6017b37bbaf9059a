//! How a scenario is put together: every choice has a default that makes a small, fast, fault-free world.

use super::Kit;
use crate::control::ControlConfig;
use crate::fabric::{Fabrics, HostSpec, PortSpec};
use crate::fault::{Pace, Paced};
use crate::net::Topology;
use crate::nic::NicProfile;
use crate::world::{AnyNode, World};
use engine::fabric::{LinkLayer, Memory};
use engine::id::NodeId;
use engine::node::{
    Admission, Chunk, Compute, DecodeNode, Estimate, InstanceConfig, PrefillNode, RouterConfig, RouterNode,
};
use engine::policy::{Direction, ReplicaChoice, RoutingPolicy};
use engine::registry::{Registry, RegistryConfig, SessionConfig};
use engine::time::Span;
use engine::transfer::{Rules, TransferConfig};
use models::{DType, Model, PageOrder, Parallel, presets};
use std::sync::Arc;

/// Compute that takes the same time for every token and every step.
#[derive(Clone, Copy, Debug)]
pub struct FixedCompute {
    /// Prefill, for each new token.
    pub per_token: Span,
    /// Decode, for each step of the batch.
    pub step: Span,
}

impl Compute for FixedCompute {
    fn prefill(&self, chunks: &[Chunk]) -> Estimate {
        let tokens: u64 = chunks.iter().map(|chunk| u64::from(chunk.new)).sum();
        Estimate { span: self.per_token * tokens, extrapolated: false }
    }
    fn decode(&self, _batch: u32, _context: u64) -> Estimate {
        Estimate { span: self.step, extrapolated: false }
    }
}

/// One side of a scenario.
#[derive(Clone, Debug)]
pub struct Side {
    pub(super) instances: u32,
    pub(super) ports: u32,
    pub(super) config: InstanceConfig,
}

impl Side {
    /// How many instances there are.
    #[must_use]
    pub fn instances(mut self, n: u32) -> Self {
        self.instances = n;
        self
    }
    /// Tensor-parallel ranks.
    #[must_use]
    pub fn tp(mut self, n: u32) -> Self {
        self.config.parallel.tp = n;
        self
    }
    /// Pipeline stages.
    #[must_use]
    pub fn pp(mut self, n: u32) -> Self {
        self.config.parallel.pp = n;
        self
    }
    /// Data-parallel attention groups.
    #[must_use]
    pub fn dp(mut self, n: u32) -> Self {
        self.config.parallel.dp = n;
        self
    }
    /// Tokens of a page.
    #[must_use]
    pub fn page(mut self, tokens: u32) -> Self {
        self.config.page_size = tokens;
        self
    }
    /// Heads before tokens within a page.
    #[must_use]
    pub fn head_major(mut self) -> Self {
        self.config.order = PageOrder::HeadMajor;
        self
    }
    /// Pages that can be given out.
    #[must_use]
    pub fn pages(mut self, n: u32) -> Self {
        self.config.pages = n + 1;
        self
    }
    /// Pages come one by one and never in order.
    #[must_use]
    pub fn scatter(mut self) -> Self {
        self.config.scatter = true;
        self
    }
    /// Prefill: tokens of a step. Decode: requests let in.
    #[must_use]
    pub fn batch(mut self, n: u32) -> Self {
        self.config.batch = n;
        self
    }
    /// Prefill keeps blocks for later requests.
    #[must_use]
    pub fn prefix_cache(mut self) -> Self {
        self.config.prefix_cache = true;
        self
    }
    /// Decode takes pages as tokens are generated.
    #[must_use]
    pub fn on_demand(mut self) -> Self {
        self.config.admission = Admission::OnDemand;
        self
    }
    /// Decode refuses a request when so many wait for pages.
    #[must_use]
    pub fn refuse_above(mut self, waiting: u32) -> Self {
        self.config.most_waiting = Some(waiting);
        self
    }
    /// NIC ports of each instance.
    #[must_use]
    pub fn ports(mut self, n: u32) -> Self {
        self.ports = n;
        self
    }
    /// This side's transfer parameters; what [`TransferConfig`] says must be equal on both sides must stay so.
    #[must_use]
    pub fn transfer(mut self, change: impl FnOnce(&mut TransferConfig)) -> Self {
        change(&mut self.config.transfer);
        self
    }
}

/// A scenario in the making.
#[derive(Clone, Debug)]
pub struct Build {
    pub(super) prefill: Side,
    pub(super) decode: Side,
    control: ControlConfig,
    session: SessionConfig,
    pub(super) lease: Span,
    router: RouterConfig,
    compute: FixedCompute,
    nic: Arc<NicProfile>,
    gbps: f64,
    latency: Span,
    pub(super) seed: u64,
}

impl Build {
    pub(super) fn new() -> Self {
        let session = SessionConfig {
            ack_delay: Span::ms(2),
            retransmit: Span::ms(10),
            retransmit_max: Span::ms(200),
            ..SessionConfig::default()
        };
        let transfer = TransferConfig {
            slots: 16,
            receive_depth: 4096,
            send_depth: 1024,
            transfer_deadline: Span::s(4),
            room_deadline: Span::s(20),
            drain_deadline: Span::ms(500),
            tombstone: Span::s(40),
            ..TransferConfig::default()
        };
        let config = InstanceConfig {
            model: tiny(),
            dtype: DType::Bf16,
            parallel: Parallel::default(),
            page_size: 16,
            order: PageOrder::TokenMajor,
            pages: 65,
            scatter: false,
            memory: Memory::Phantom,
            transfer,
            session,
            life: 1,
            batch: 512,
            prefix_cache: false,
            admission: Admission::Reserve,
            most_waiting: None,
            tell_deliveries: false,
            peers: 1,
        };
        let side = Side { instances: 1, ports: 1, config };
        Self {
            prefill: side.clone(),
            decode: side,
            control: ControlConfig::default(),
            session,
            lease: Span::s(5),
            router: RouterConfig {
                routing: RoutingPolicy::RoundRobin,
                session,
                life: 1,
                context_len: u32::MAX,
                request_deadline: Span::s(60),
                patience: Span::s(20),
                ..RouterConfig::default()
            },
            compute: FixedCompute { per_token: Span::us(1), step: Span::us(100) },
            nic: Arc::new(NicProfile::ideal()),
            gbps: 100.0,
            latency: Span::us(1),
            seed: 1,
        }
    }

    /// The model, by its preset's name.
    ///
    /// # Panics
    /// On an unknown name: a scenario is written by hand.
    #[must_use]
    pub fn model(self, name: &str) -> Self {
        match presets::lookup(name) {
            Ok(model) => self.model_of(model),
            Err(error) => panic!("{error}"),
        }
    }
    /// The model.
    #[must_use]
    pub fn model_of(mut self, model: Model) -> Self {
        self.prefill.config.model = model.clone();
        self.decode.config.model = model;
        self
    }
    /// How KV is stored.
    #[must_use]
    pub fn dtype(mut self, dtype: DType) -> Self {
        self.prefill.config.dtype = dtype;
        self.decode.config.dtype = dtype;
        self
    }
    /// Changes the prefill side.
    #[must_use]
    pub fn prefill(mut self, change: impl FnOnce(Side) -> Side) -> Self {
        self.prefill = change(self.prefill);
        self
    }
    /// Changes the decode side.
    #[must_use]
    pub fn decode(mut self, change: impl FnOnce(Side) -> Side) -> Self {
        self.decode = change(self.decode);
        self
    }
    /// KV pools of real bytes.
    #[must_use]
    pub fn bytes(mut self) -> Self {
        self.prefill.config.memory = Memory::Host;
        self.decode.config.memory = Memory::Host;
        self
    }
    /// KV pools that know where each byte came from, and nothing else: the default.
    #[must_use]
    pub fn phantom(mut self) -> Self {
        self.prefill.config.memory = Memory::Phantom;
        self.decode.config.memory = Memory::Phantom;
        self
    }
    /// Transfer parameters of both sides.
    #[must_use]
    pub fn transfer(mut self, change: impl Fn(&mut TransferConfig)) -> Self {
        change(&mut self.prefill.config.transfer);
        change(&mut self.decode.config.transfer);
        self
    }
    /// Decode reads instead of prefill writing.
    #[must_use]
    pub fn pull(self) -> Self {
        self.transfer(|t| t.direction = Direction::Pull)
    }
    pub(super) fn replica(&self) -> ReplicaChoice {
        self.decode.config.transfer.replica
    }
    pub(super) fn direction(&self) -> Direction {
        self.decode.config.transfer.direction
    }
    /// Switches of protocol rules.
    #[must_use]
    pub fn rules(self, change: impl Fn(&mut Rules)) -> Self {
        self.transfer(|t| change(&mut t.rules))
    }
    /// The control channel.
    #[must_use]
    pub fn control(mut self, change: impl FnOnce(&mut ControlConfig)) -> Self {
        change(&mut self.control);
        self
    }
    /// The router.
    #[must_use]
    pub fn router(mut self, change: impl FnOnce(&mut RouterConfig)) -> Self {
        change(&mut self.router);
        self
    }
    /// Silence after which an instance is gone.
    #[must_use]
    pub fn lease(mut self, lease: Span) -> Self {
        self.lease = lease;
        self
    }
    /// Time of a prompt token and of a decode step.
    #[must_use]
    pub fn compute(mut self, per_token: Span, step: Span) -> Self {
        self.compute = FixedCompute { per_token, step };
        self
    }
    /// Costs of the NICs; the default has none.
    #[must_use]
    pub fn nic(mut self, nic: NicProfile) -> Self {
        self.nic = Arc::new(nic);
        self
    }
    /// Speed of every port, and one way between any two.
    #[must_use]
    pub fn network(mut self, gbps: f64, latency: Span) -> Self {
        (self.gbps, self.latency) = (gbps, latency);
        self
    }
    /// What random numbers come from.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    pub(super) fn registry(&self) -> RegistryConfig {
        RegistryConfig {
            lease: self.lease,
            session: self.session,
            tombstone: self.lease * 3,
            recovery: self.lease,
            ..RegistryConfig::default()
        }
    }

    /// A node of the scenario, in its n-th life: the registry, the router, prefill instances, decode instances.
    fn node(&self, node: NodeId, life: u32, paces: &[Pace]) -> AnyNode {
        let compute = || {
            let pace = paces.get(node.index()).cloned().unwrap_or_default();
            Box::new(Paced { inner: self.compute, pace })
        };
        let config = |side: &Side| InstanceConfig { life, ..side.config.clone() };
        match node.0 {
            0 => AnyNode::Registry(Registry::new(life, self.registry())),
            1 => AnyNode::Router(RouterNode::new(RouterConfig { life, ..self.router.clone() })),
            n if n < 2 + self.prefill.instances => {
                AnyNode::Prefill(PrefillNode::new(config(&self.prefill), compute()))
            }
            _ => AnyNode::Decode(DecodeNode::new(config(&self.decode), compute())),
        }
    }

    /// Makes the world, starts it, and waits until every node has registered.
    ///
    /// # Panics
    /// If the scenario is impossible, with the reason.
    #[must_use]
    pub fn build(mut self) -> Kit {
        self.prefill.config.peers = self.decode.instances;
        self.decode.config.peers = self.prefill.instances;
        self.router.seed = self.seed;
        self.prefill.config.tell_deliveries = self.router.routing.wants_deliveries();
        let bare = || HostSpec { ports: Vec::new(), nic: self.nic.clone() };
        let mut hosts = vec![bare(), bare()];
        for side in [&self.prefill, &self.decode] {
            let port = |p| PortSpec {
                name: format!("nic{p}/1"),
                link_layer: LinkLayer::Ethernet,
                bits_per_s: (self.gbps * 1e9) as u64,
                mtu: self.nic.mtu,
                numa: None,
            };
            let host = || HostSpec { ports: (0..side.ports).map(port).collect(), nic: self.nic.clone() };
            hosts.extend((0..side.instances).map(|_| host()));
        }
        let ports: u32 = hosts.iter().map(|host| host.ports.len() as u32).sum();
        let mut topology =
            Topology::star(ports, self.gbps, self.latency.0).unwrap_or_else(|error| panic!("{error}"));
        let mut at = 0;
        for (h, host) in (0u32..).zip(&hosts) {
            for _ in &host.ports {
                topology.set_host(at, h).unwrap_or_else(|error| panic!("{error}"));
                at += 1;
            }
        }
        let fabrics = Fabrics::new(hosts, topology, self.seed).unwrap_or_else(|error| panic!("{error}"));
        let count = 2 + self.prefill.instances + self.decode.instances;
        let paces: Vec<Pace> = (0..count).map(|_| Pace::default()).collect();
        let nodes = (0..count).map(|n| (self.node(NodeId(n), 1, &paces), n as usize)).collect();
        let prefill = (2..2 + self.prefill.instances).map(NodeId).collect();
        let decode = (2 + self.prefill.instances..count).map(NodeId).collect();
        let mut world = World::new(fabrics, nodes, self.control, self.seed);
        let (build, own) = (self.clone(), paces.clone());
        world.set_maker(Box::new(move |node, life| build.node(node, life, &own)));
        world.set_paces(paces);
        Kit::start(self, world, prefill, decode)
    }
}

/// Four layers, eight KV heads of four elements: every layout of up to 16 ranks fits, and a token is 512 bytes.
fn tiny() -> Model {
    Model {
        name: "kit".to_owned(),
        layers: 4,
        q_heads: 48,
        attention: models::Attention::Gqa { kv_heads: 8, head_dim: 4 },
        context_len: 1 << 20,
        index_k: None,
    }
}
