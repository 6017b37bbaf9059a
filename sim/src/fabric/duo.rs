//! Two simulated hosts behind [`Duo`]: what measurements and the conformance suite run on.

use super::{FabricEvent, Fabrics, FabricsError, HostSpec, Mistakes, PortSpec, Ready};
use crate::net::{Topology, TopologyError};
use crate::nic::NicProfile;
use crate::queue::EventQueue;
use engine::fabric::{Duo, Fabric, LinkLayer};
use engine::time::{Span, Time};
use std::sync::Arc;

/// Two hosts with one port each. [`Default`] is an ideal NIC at 200 Gb/s with 1 us from port to port.
#[derive(Clone, Debug)]
pub struct DuoSpec {
    /// NIC of both hosts.
    pub nic: NicProfile,
    /// Line rate.
    pub gbps: f64,
    /// Latency of each of the two links between the ports, through one switch.
    pub link: Span,
    /// Link layer of both ports.
    pub link_layer: LinkLayer,
    /// Path MTU of both ports, in bytes.
    pub mtu: u16,
    /// Seed of everything random.
    pub seed: u64,
    /// What the fabric gets wrong on purpose.
    pub mistakes: Mistakes,
}

impl Default for DuoSpec {
    fn default() -> Self {
        Self {
            nic: NicProfile::ideal(),
            gbps: 200.0,
            link: Span::ns(500),
            link_layer: LinkLayer::Ethernet,
            mtu: 4096,
            seed: 1,
            mistakes: Mistakes::default(),
        }
    }
}

/// Why there are no two hosts.
#[derive(Debug, thiserror::Error)]
pub enum DuoError {
    /// The network cannot be.
    #[error(transparent)]
    Network(#[from] TopologyError),
    /// The hosts cannot be.
    #[error(transparent)]
    Fabrics(#[from] FabricsError),
}

/// Two hosts over one switch, in virtual time. Each side has one CPU: a call starts when the CPU time of that side's calls before it is
/// over. The two sides' CPUs run at the same time. A poll that finds nothing takes no time: it stands for a CPU that spins, and sees a
/// completion as soon as it is there.
pub struct SimDuo {
    fabrics: Fabrics,
    queue: EventQueue<FabricEvent>,
    ready: Vec<Ready>,
    /// Until where events are worked off.
    at: Time,
    /// When each side's CPU is free.
    free: [Time; 2],
    /// Whose call was the last.
    last: usize,
}

impl SimDuo {
    /// Two hosts without queue pairs.
    pub fn new(spec: DuoSpec) -> Result<Self, DuoError> {
        let nic = Arc::new(spec.nic);
        let port = |side: usize| PortSpec {
            name: format!("sim{side}/1"),
            link_layer: spec.link_layer,
            bits_per_s: (spec.gbps * 1e9) as u64,
            mtu: spec.mtu,
            numa: None,
        };
        let hosts = (0..2).map(|side| HostSpec { ports: vec![port(side)], nic: nic.clone() }).collect();
        let topology = Topology::star(2, spec.gbps, spec.link.0)?;
        let mut fabrics = Fabrics::new(hosts, topology, spec.seed)?;
        fabrics.set_mistakes(spec.mistakes);
        let queue = EventQueue::new();
        Ok(Self { fabrics, queue, ready: Vec::new(), at: Time::ZERO, free: [Time::ZERO; 2], last: 0 })
    }

    /// The hosts, to look at.
    pub fn fabrics(&self) -> &Fabrics {
        &self.fabrics
    }

    fn step(&mut self) {
        if let Some((at, event)) = self.queue.pop() {
            self.at = self.at.max(at);
            self.fabrics.handle(at, event, &mut self.queue, &mut self.ready);
        }
    }

    fn run_to(&mut self, to: Time) {
        while self.queue.peek_time().is_some_and(|at| at <= to) {
            self.step();
        }
        self.at = self.at.max(to);
    }
}

impl Duo for SimDuo {
    fn call(&mut self, side: usize, calls: &mut dyn FnMut(&mut dyn Fabric)) {
        self.run_to(self.free[side]);
        self.fabrics.begin_call(side, self.at);
        let host = self.fabrics.host(side);
        calls(host);
        let spun = host.spun;
        let cpu = self.fabrics.after_call(side, self.at, &mut self.queue, &mut self.ready);
        self.free[side] = self.at + Span(cpu.0 - spun.0);
        self.last = side;
    }

    /// The instant at which the last call ended, or until which time passed since.
    fn now(&self) -> Time {
        self.at.max(self.free[self.last])
    }

    /// Runs to the next instant at which anything happens: what arrives in memory makes no queue ready.
    fn pass(&mut self, until: Time) -> bool {
        self.run_to(self.now().min(until));
        let ready = !std::mem::take(&mut self.ready).is_empty();
        if !ready {
            match self.queue.peek_time() {
                None => return false,
                Some(at) => self.run_to(at.min(until)),
            }
            self.ready.clear();
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_passes_only_while_something_can_happen() {
        let mut duo = SimDuo::new(DuoSpec::default()).unwrap();
        assert!(!duo.pass(Time::NEVER));
        assert_eq!(duo.now(), Time::ZERO);
        let mut ports = [0; 2];
        for (side, n) in ports.iter_mut().enumerate() {
            duo.call(side, &mut |fabric| *n = fabric.ports().len());
        }
        assert_eq!(ports, [1, 1]);
    }

    #[test]
    fn spinning_on_an_empty_queue_takes_no_time() {
        let nic = NicProfile { poll: crate::nic::Duration(Span::ns(40)), ..NicProfile::ideal() };
        let mut duo = SimDuo::new(DuoSpec { nic, ..DuoSpec::default() }).unwrap();
        duo.call(0, &mut |fabric| {
            let cq = fabric.create_cq(engine::id::PortId(0), 16).unwrap();
            assert_eq!(fabric.poll(cq, &mut [engine::fabric::Completion::default(); 4]), 0);
        });
        assert_eq!(duo.now(), Time::ZERO);
    }

    #[test]
    fn a_side_that_is_busy_starts_its_next_call_later_and_the_other_does_not() {
        let nic = NicProfile { create_qp: crate::nic::Duration(Span::us(900)), ..NicProfile::ideal() };
        let mut duo = SimDuo::new(DuoSpec { nic, ..DuoSpec::default() }).unwrap();
        let make = |fabric: &mut dyn Fabric| {
            let port = engine::id::PortId(0);
            let cq = fabric.create_cq(port, 16).unwrap();
            let spec = engine::fabric::QpSpec {
                send_cq: cq,
                recv_cq: cq,
                srq: None,
                max_send: 4,
                max_recv: 4,
                max_sge: 1,
                max_inline: 0,
            };
            fabric.create_qp(port, spec).unwrap();
        };
        for side in [0, 1] {
            duo.call(side, &mut |fabric| make(fabric));
            assert_eq!(duo.now(), Time::ZERO + Span::us(900));
        }
        duo.call(1, &mut |fabric| make(fabric));
        assert_eq!(duo.now(), Time::ZERO + Span::us(1800));
    }
}
