//! The nodes of an experiment, as every driver runs them: simulated and real runs share this.

use std::fmt;

use engine::fabric::{Memory, RnrTimer, Rts};
use engine::id::NodeId;
use engine::node::{
    Chunk, Compute, DecodeNode, Estimate, Held, InstanceConfig, PrefillNode, RouterConfig, RouterNode,
};
use engine::policy;
use engine::registry::{Registry, RegistryConfig, SessionConfig};
use engine::time::Span;
use engine::transfer::{Reach, Rules, TransferConfig};
use models::Picos;
use sim::fault::{Pace, Paced};
use sim::world::AnyNode;

use super::{RunError, routing};
use crate::compute::Profile;
use crate::own;
use crate::report::Leaks;
use crate::spec::{Direction, Granularity, Order, Pages, PortReach, SideSpec, Spec};

/// The router's number; the registry is node 0.
pub(crate) const ROUTER: NodeId = NodeId(1);

/// What a node of the cluster is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The registry.
    Registry,
    /// The router.
    Router,
    /// A prefill instance, from 0.
    Prefill(u32),
    /// A decode instance, from 0.
    Decode(u32),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Registry => f.write_str("registry"),
            Place::Router => f.write_str("router"),
            Place::Prefill(i) => write!(f, "prefill-{i}"),
            Place::Decode(i) => write!(f, "decode-{i}"),
        }
    }
}

/// The nodes of an experiment: the number of each is its index.
pub(crate) fn places(spec: &Spec) -> Vec<Place> {
    let prefill = (0..spec.cluster.prefill.instances).map(Place::Prefill);
    let decode = (0..spec.cluster.decode.instances).map(Place::Decode);
    [Place::Registry, Place::Router].into_iter().chain(prefill).chain(decode).collect()
}

/// Numbers of the prefill instances, then of the decode instances.
pub(crate) fn instances(places: &[Place]) -> (Vec<NodeId>, Vec<NodeId>) {
    let of = |is: fn(&Place) -> bool| {
        let numbers = (0..).zip(places).filter(|(_, place)| is(place));
        numbers.map(|(number, _)| NodeId(number)).collect()
    };
    (of(|place| matches!(place, Place::Prefill(_))), of(|place| matches!(place, Place::Decode(_))))
}

/// What makes the nodes of an experiment.
pub(crate) struct Nodes {
    registry: RegistryConfig,
    router: RouterConfig,
    prefill: InstanceConfig,
    decode: InstanceConfig,
    compute: Profile,
}

impl Nodes {
    /// For this experiment and seed, whose memory is yet to be chosen.
    pub(crate) fn new(spec: &Spec, seed: u64) -> Result<Self, RunError> {
        let model = spec.model().map_err(RunError::Input)?;
        let compute = Profile::load(&spec.compute.profile).map_err(input)?.scaled(spec.compute.scale);
        if let Order::Own(name) = &spec.policy.order {
            own::find_order(name).map_err(RunError::Input)?;
        }
        let (session, transfer) = (session(spec), transfer(spec));
        let router = RouterConfig {
            limits: routing::limits(&spec.policy.limits),
            retry: routing::retry(&spec.policy.retry),
            routing: routing::policy(&spec.policy.routing).map_err(RunError::Input)?,
            seed,
            session,
            life: 1,
            context_len: model.context_len,
            request_deadline: transfer.room_deadline * 4,
            patience: transfer.room_deadline,
        };
        let (pages, most_waiting) = spec.policy.admission.parts();
        let tell_deliveries = router.routing.wants_deliveries();
        let instance = |side: &SideSpec, batch: u32, peers: u32| {
            let layout = side.layout(&model, spec.dtype).map_err(input)?;
            Ok::<_, RunError>(InstanceConfig {
                model: model.clone(),
                dtype: spec.dtype,
                parallel: side.parallel(),
                page_size: side.page_size,
                order: side.page_order,
                // Page 0 is padding and comes on top.
                pages: side.pages(&layout).saturating_add(1),
                scatter: side.scatter,
                memory: Memory::Host,
                transfer: transfer.clone(),
                session,
                life: 1,
                batch,
                prefix_cache: spec.batch.prefix_cache,
                admission: match pages {
                    Pages::Reserve => policy::Admission::Reserve,
                    Pages::OnDemand => policy::Admission::OnDemand,
                },
                most_waiting,
                tell_deliveries,
                peers,
            })
        };
        let (prefill, decode) = (&spec.cluster.prefill, &spec.cluster.decode);
        Ok(Self {
            registry: registry(spec),
            router,
            prefill: instance(prefill, spec.batch.prefill_tokens, decode.instances)?,
            decode: instance(decode, spec.batch.decode_requests, prefill.instances)?,
            compute,
        })
    }

    /// A node to be started. `life` rises with each restart, and is the epoch of a registry; `memory` is what an instance's pools are made of.
    pub(crate) fn node(&self, place: Place, life: u32, memory: Memory) -> AnyNode {
        self.paced(place, life, memory, Pace::default())
    }

    /// The same, whose model computes at a pace that the simulator can change.
    pub(crate) fn paced(&self, place: Place, life: u32, memory: Memory, pace: Pace) -> AnyNode {
        let compute = || Box::new(Paced { inner: Measured(self.compute.clone()), pace: pace.clone() });
        let instance = |config: &InstanceConfig| InstanceConfig { life, memory, ..config.clone() };
        match place {
            Place::Registry => AnyNode::Registry(Registry::new(life, self.registry)),
            Place::Router => AnyNode::Router(RouterNode::new(RouterConfig { life, ..self.router.clone() })),
            Place::Prefill(_) => AnyNode::Prefill(PrefillNode::new(instance(&self.prefill), compute())),
            Place::Decode(_) => AnyNode::Decode(DecodeNode::new(instance(&self.decode), compute())),
        }
    }
}

/// A measured profile as nodes ask it.
struct Measured(Profile);

impl Compute for Measured {
    fn prefill(&self, chunks: &[Chunk]) -> Estimate {
        let (ps, extrapolated) = self.0.prefill_step(chunks.iter().map(|chunk| (chunk.new, chunk.context)));
        Estimate { span: Span(ps), extrapolated }
    }
    fn decode(&self, batch: u32, context: u64) -> Estimate {
        let (ps, extrapolated) = self.0.decode(batch, context);
        Estimate { span: Span(ps), extrapolated }
    }
}

pub(super) fn span(picos: Picos) -> Span {
    Span(picos.0)
}

pub(super) fn input(error: impl fmt::Display) -> RunError {
    RunError::Input(error.to_string())
}

fn session(spec: &Spec) -> SessionConfig {
    SessionConfig {
        ack_delay: span(spec.transfer.ack_delay),
        retransmit: span(spec.transfer.retransmit),
        ..SessionConfig::default()
    }
}

/// The registry of an experiment.
pub(crate) fn registry(spec: &Spec) -> RegistryConfig {
    RegistryConfig {
        lease: span(spec.transfer.lease),
        session: session(spec),
        tombstone: span(spec.transfer.lease) * 3,
        recovery: span(spec.transfer.lease),
        ..RegistryConfig::default()
    }
}

fn transfer(spec: &Spec) -> TransferConfig {
    let t = &spec.transfer;
    TransferConfig {
        rails: u16::try_from(t.queue_pairs).unwrap_or(u16::MAX),
        max_queue_pairs: t.max_queue_pairs,
        reach: match &t.reach {
            PortReach::Any => Reach::Any,
            PortReach::SameRail => Reach::SameRail,
            PortReach::Pairs(pairs) => Reach::Pairs(pairs.as_slice().into()),
        },
        rail_policy: spec.policy.rails.engine(),
        failover: spec.policy.failover.engine(),
        replica: spec.policy.replica.engine(),
        direction: match spec.policy.direction {
            Direction::Push => policy::Direction::Push,
            Direction::Pull => policy::Direction::Pull,
        },
        granularity: match spec.policy.granularity {
            Granularity::Request => policy::Granularity::Request,
            Granularity::Chunk => policy::Granularity::Chunk,
            Granularity::LayerWise { layers } => policy::Granularity::LayerWise { layers },
        },
        order: spec.policy.order.engine(spec.slo.ttft),
        coalescing: spec.policy.coalescing.policy(),
        window: policy::Window {
            bytes: spec.policy.window.bytes.0,
            requests: spec.policy.window.requests.into(),
            signal_every: t.signal_every,
        },
        send_depth: t.send_depth,
        max_sge: u16::try_from(t.max_sge).unwrap_or(u16::MAX),
        parts_per_rail: u16::try_from(t.parts).unwrap_or(u16::MAX),
        receive_depth: t.receive_depth,
        slots: t.slots,
        retries: t.reposts,
        rts: Rts {
            timeout: t.ack_timeout,
            retry_cnt: t.retries,
            rnr_retry: t.rnr_retries,
            max_rd_atomic: t.max_rd_atomic,
        },
        min_rnr_timer: RnrTimer(t.min_rnr_timer),
        transfer_deadline: span(t.transfer_timeout),
        room_deadline: span(t.room_timeout),
        drain_deadline: span(t.drain_timeout),
        checksums: t.checksums,
        verify: spec.verify,
        rules: rules(&t.without),
        ..TransferConfig::default()
    }
}

/// All rules but these; names were checked with the experiment.
fn rules(without: &[String]) -> Rules {
    let mut rules = Rules::default();
    for name in without {
        rules.switch_off(name);
    }
    rules
}

/// Why a node could not start.
pub(crate) fn start_error(node: &AnyNode) -> Option<String> {
    match node {
        AnyNode::Prefill(node) => node.error().map(|error| format!("cluster.prefill: {error}")),
        AnyNode::Decode(node) => node.error().map(|error| format!("cluster.decode: {error}")),
        AnyNode::Registry(_) | AnyNode::Router(_) | AnyNode::Dead(_) => None,
    }
}

/// What several nodes hold together.
pub(crate) fn sum(all: impl Iterator<Item = Held>) -> Held {
    let mut sum = Held::default();
    for held in all {
        sum.rooms += held.rooms;
        sum.pages += held.pages;
        sum.slots += held.slots;
        sum.pool_memory_regions += held.pool_memory_regions;
        sum.pool_queue_pairs += held.pool_queue_pairs;
        sum.timers += held.timers;
        sum.receives += held.receives;
    }
    sum
}

/// Whether they hold nothing for a request.
pub(crate) fn quiet(held: &Held) -> bool {
    held.rooms == 0 && held.pages == 0 && held.slots == 0 && held.timers == 0 && held.receives == 0
}

/// What is too much, where the fabric has so many memory regions and queue pairs.
pub(crate) fn leaks(held: &Held, memory_regions: u64, queue_pairs: u64) -> Leaks {
    Leaks {
        rooms: held.rooms,
        pages: held.pages,
        slots: held.slots,
        memory_regions: memory_regions.abs_diff(held.pool_memory_regions),
        queue_pairs: queue_pairs.abs_diff(held.pool_queue_pairs),
        timers: held.timers,
        receives: held.receives,
    }
}

/// What is left after shutdown, in words, one line each.
pub(crate) fn left(memory_regions: u64, queue_pairs: u64, buffers: u64) -> impl Iterator<Item = String> {
    [("memory regions", memory_regions), ("queue pairs", queue_pairs), ("buffers", buffers)]
        .into_iter()
        .filter(|(_, count)| *count > 0)
        .map(|(what, count)| format!("{count} {what} are left after shutdown, must be 0"))
}
