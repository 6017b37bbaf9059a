//! Hosts and network of a simulated experiment, with its nodes on them.

use std::sync::Arc;

use engine::fabric::{LinkLayer, Memory};
use engine::id::NodeId;
use sim::control::ControlConfig;
use sim::fabric::{Fabrics, HostSpec, PortSpec};
use sim::fault::Pace;
use sim::net::{LeafSpine, Topology};
use sim::world::World;

use super::RunError;
use super::nodes::{Nodes, Place, ROUTER, input, instances, places, span};
use crate::nic;
use crate::spec::{MemorySpec, Spec, TopologySpec};

/// A world that is ready to start.
pub(super) struct Cluster {
    pub(super) world: World,
    pub(super) router: NodeId,
    /// Nodes of the prefill instances, then of the decode instances.
    pub(super) instances: (Vec<NodeId>, Vec<NodeId>),
}

/// Builds everything that a seed of an experiment needs.
pub(super) fn build(spec: &Spec, seed: u64) -> Result<Cluster, RunError> {
    let nic = nic::load(&spec.cluster.nic).map_err(|error| input(format!("cluster.nic: {error}")))?;
    let bits_per_s = spec.cluster.link.map_or(nic.rate.bits_per_s(), |link| link.bits_per_sec());
    let sides = [&spec.cluster.prefill, &spec.cluster.decode];

    // Registry and router have hosts without ports.
    let nic = Arc::new(nic);
    let bare = || HostSpec { ports: Vec::new(), nic: nic.clone() };
    let mut hosts = vec![bare(), bare()];
    for side in sides {
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
    let mut fabrics = Fabrics::new(hosts, topology, seed).map_err(input)?;
    fabrics.set_copy_costs(spec.cluster.gpu_copy);

    let maker = Nodes::new(spec, seed)?;
    let memory = match spec.cluster.memory {
        MemorySpec::Bytes => Memory::Host,
        MemorySpec::Phantom => Memory::Phantom,
    };
    let places = places(spec);
    // Each on a host of its own, in the same order.
    let paces: Vec<Pace> = places.iter().map(|_| Pace::default()).collect();
    let nodes = places.iter().zip(&paces).enumerate();
    let nodes =
        nodes.map(|(host, (place, pace))| (maker.paced(*place, 1, memory, pace.clone()), host)).collect();
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
    let mut world = World::new(fabrics, nodes, control, seed);
    let instances = instances(&places);
    let own = paces.clone();
    world.set_maker(Box::new(move |node, life| {
        let at = node.index();
        let (place, pace) = (places.get(at).copied(), own.get(at).cloned());
        maker.paced(place.unwrap_or(Place::Registry), life, memory, pace.unwrap_or_default())
    }));
    world.set_paces(paces);
    Ok(Cluster { world, router: ROUTER, instances })
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
