//! Hosts, network and nodes of an experiment.

use std::sync::Arc;

use engine::fabric::{LinkLayer, Memory, Rts};
use engine::id::{NodeId, PortId};
use engine::node::{
    self, Chunk, Compute, DecodeNode, Estimate, InstanceConfig, PrefillNode, RouterConfig, RouterNode,
};
use engine::policy;
use engine::registry::{Registry, RegistryConfig, SessionConfig};
use engine::time::{Span, Time};
use engine::transfer::{Rules, TransferConfig};
use models::Picos;
use sim::control::ControlConfig;
use sim::fabric::{Fabrics, HostSpec, PortSpec};
use sim::net::{LeafSpine, Topology};
use sim::world::{AnyNode, Fault, World};

use super::RunError;
use crate::compute::Profile;
use crate::nic;
use crate::spec::{
    Admission, Direction, Granularity, MemorySpec, Order, Rails, Replica, Routing, Spec, TopologySpec,
};

/// A world that is ready to start.
pub(super) struct Cluster {
    pub(super) world: World,
    pub(super) router: NodeId,
    /// Nodes of the prefill instances, then of the decode instances.
    pub(super) instances: (Vec<NodeId>, Vec<NodeId>),
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

fn span(picos: Picos) -> Span {
    Span(picos.0)
}

fn input(error: impl std::fmt::Display) -> RunError {
    RunError::Input(error.to_string())
}

/// Builds everything that a seed of an experiment needs.
pub(super) fn build(spec: &Spec, seed: u64) -> Result<Cluster, RunError> {
    let model = spec.model().map_err(RunError::Input)?;
    let nic = nic::load(&spec.cluster.nic).map_err(|error| input(format!("cluster.nic: {error}")))?;
    let compute = Profile::load(&spec.compute.profile).map_err(input)?.scaled(spec.compute.scale);
    let bits_per_s = spec.cluster.link.map_or(nic.rate.bits_per_s(), |link| link.bits_per_sec());
    let sides = [(&spec.cluster.prefill, true), (&spec.cluster.decode, false)];

    // Registry and router have hosts without ports.
    let nic = Arc::new(nic);
    let bare = || HostSpec { ports: Vec::new(), nic: nic.clone() };
    let mut hosts = vec![bare(), bare()];
    for (side, _) in sides {
        let ports = spec.ports(side);
        for _ in 0..side.instances {
            let port = |p| PortSpec {
                name: format!("nic{p}/1"),
                link_layer: LinkLayer::Ethernet,
                bits_per_s,
                mtu: nic.mtu,
                numa: None,
            };
            hosts.push(HostSpec { ports: (0..ports).map(port).collect(), nic: nic.clone() });
        }
    }
    let topology = topology(spec, &hosts, bits_per_s as f64 / 1e9)?;
    let fabrics = Fabrics::new(hosts, topology, seed).map_err(input)?;

    let session = SessionConfig {
        ack_delay: span(spec.transfer.ack_delay),
        retransmit: span(spec.transfer.retransmit),
        ..SessionConfig::default()
    };
    let transfer = transfer(spec);
    let registry = RegistryConfig {
        lease: span(spec.transfer.lease),
        session,
        tombstone: span(spec.transfer.lease) * 3,
        recovery: span(spec.transfer.lease),
        ..RegistryConfig::default()
    };
    let router = RouterConfig {
        routing: match spec.policy.routing {
            Routing::RoundRobin => policy::RoutingPolicy::RoundRobin,
            Routing::LeastLoaded => policy::RoutingPolicy::LeastLoaded,
        },
        session,
        life: 1,
        context_len: model.context_len,
        request_deadline: transfer.room_deadline * 4,
        patience: transfer.room_deadline,
    };
    let mut nodes = vec![
        (AnyNode::Registry(Registry::new(1, registry)), 0),
        (AnyNode::Router(RouterNode::new(router)), 1),
    ];
    let mut instances = (Vec::new(), Vec::new());
    for (side, is_prefill) in sides {
        let layout = side.layout(&model, spec.dtype).map_err(input)?;
        let config = InstanceConfig {
            model: model.clone(),
            dtype: spec.dtype,
            parallel: side.parallel(),
            page_size: side.page_size,
            order: side.page_order,
            // Page 0 is padding and comes on top.
            pages: side.pages(&layout).saturating_add(1),
            scatter: side.scatter,
            memory: match spec.cluster.memory {
                MemorySpec::Bytes => Memory::Host,
                MemorySpec::Phantom => Memory::Phantom,
            },
            transfer: transfer.clone(),
            session,
            life: 1,
            batch: if is_prefill { spec.batch.prefill_tokens } else { spec.batch.decode_requests },
            prefix_cache: spec.batch.prefix_cache,
            admission: match spec.policy.admission {
                Admission::Reserve => node::Admission::Reserve,
                Admission::OnDemand => node::Admission::OnDemand,
            },
            peers: if is_prefill { spec.cluster.decode.instances } else { spec.cluster.prefill.instances },
        };
        for _ in 0..side.instances {
            let compute = Box::new(Measured(compute.clone()));
            let id = NodeId(nodes.len() as u32);
            let host = nodes.len();
            if is_prefill {
                instances.0.push(id);
                nodes.push((AnyNode::Prefill(PrefillNode::new(config.clone(), compute)), host));
            } else {
                instances.1.push(id);
                nodes.push((AnyNode::Decode(DecodeNode::new(config.clone(), compute)), host));
            }
        }
    }
    let control = ControlConfig {
        latency: span(spec.control.latency),
        jitter: span(spec.control.jitter),
        loss: spec.control.loss,
        duplicate: spec.control.duplicate,
        reorder: spec.control.reorder,
        reorder_by: span(spec.control.latency) * 10,
        service_per_frame: span(spec.control.service_per_message),
        service_per_byte: span(spec.control.service_per_byte),
        queue: spec.control.queue as usize,
    };
    let world = World::new(fabrics, nodes, control, seed);
    Ok(Cluster { world, router: NodeId(1), instances })
}

/// Faults happen so long after `zero`.
pub(super) fn schedule_faults(spec: &Spec, world: &mut World, zero: Time) {
    for fault in &spec.faults {
        let at = zero + span(fault.at);
        if let Some(error) = &fault.queue_pair_error {
            let host = 2 + error.prefill as usize;
            world.fault(at, Fault::QueuePairError { host, index: error.index as usize });
        }
        if let Some(down) = &fault.link_down {
            let (host, port) = (2 + down.host as usize, PortId(down.port));
            world.fault(at, Fault::LinkDown { host, port });
            world.fault(at + span(down.duration), Fault::LinkUp { host, port });
        }
    }
}

fn topology(spec: &Spec, hosts: &[HostSpec], gbps: f64) -> Result<Topology, RunError> {
    let ports: u32 = hosts.iter().map(|host| host.ports.len() as u32).sum();
    let mut topology = match &spec.cluster.topology {
        TopologySpec::Star { latency } => Topology::star(ports, gbps, latency.0),
        TopologySpec::Direct => Topology::star(ports, gbps, 0),
        TopologySpec::LeafSpine { leaves, spines, oversubscription, latency } => {
            let machines: Vec<&HostSpec> = hosts.iter().filter(|host| !host.ports.is_empty()).collect();
            let per_leaf = (machines.len() as u32).div_ceil((*leaves).max(1)).max(1);
            let leaf_of: Vec<u32> = (0u32..)
                .zip(&machines)
                .flat_map(|(h, host)| host.ports.iter().map(move |_| h / per_leaf))
                .collect();
            let most =
                u32::try_from(machines.iter().map(|host| host.ports.len()).max().unwrap_or(1)).unwrap_or(1);
            let spines = spines.unwrap_or(per_leaf * most);
            let oversubscription = oversubscription.unwrap_or_else(|| {
                // Uplinks as fast as ports.
                f64::from(per_leaf * most) / f64::from(spines.max(1))
            });
            let shape =
                LeafSpine { leaves: *leaves, spines, port_gbps: gbps, oversubscription, latency: latency.0 };
            Topology::leaf_spine_of(&shape, &leaf_of)
        }
    }
    .map_err(input)?;
    let mut port = 0;
    for (host, machine) in (0u32..).zip(hosts) {
        for _ in &machine.ports {
            topology.set_host(port, host).map_err(input)?;
            port += 1;
        }
    }
    Ok(topology)
}

fn transfer(spec: &Spec) -> TransferConfig {
    let t = &spec.transfer;
    TransferConfig {
        rails: u16::try_from(t.queue_pairs).unwrap_or(u16::MAX),
        rail_policy: match spec.policy.rails {
            Rails::Pinned => policy::RailPolicy::Pinned,
            Rails::Striped => policy::RailPolicy::Striped,
        },
        replica: match spec.policy.replica {
            Replica::ByDestination => policy::ReplicaChoice::ByDestination,
        },
        direction: match spec.policy.direction {
            Direction::Push => policy::Direction::Push,
            Direction::Pull => policy::Direction::Pull,
        },
        granularity: match spec.policy.granularity {
            Granularity::Request => policy::Granularity::Request,
            Granularity::Chunk => policy::Granularity::Chunk,
            Granularity::LayerWise { layers } => policy::Granularity::LayerWise { layers },
        },
        order: match spec.policy.order {
            Order::Fifo => policy::OrderPolicy::Fifo,
            Order::ShortestRemaining => policy::OrderPolicy::ShortestRemaining,
        },
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
            max_rd_atomic: 16,
        },
        transfer_deadline: span(t.transfer_timeout),
        room_deadline: span(t.room_timeout),
        drain_deadline: span(t.drain_timeout),
        verify: spec.verify,
        rules: Rules::default(),
        ..TransferConfig::default()
    }
}

/// Why a node could not start.
pub(super) fn start_error(node: &AnyNode) -> Option<String> {
    match node {
        AnyNode::Prefill(node) => node.error().map(|error| format!("cluster.prefill: {error}")),
        AnyNode::Decode(node) => node.error().map(|error| format!("cluster.decode: {error}")),
        AnyNode::Registry(_) | AnyNode::Router(_) => None,
    }
}
