//! Two simulated hosts and their time, for whoever drives a fabric by hand.

use super::{FabricEvent, Fabrics, FabricsError, HostSpec, PortSpec, Ready};
use crate::net::{Topology, TopologyError};
use crate::nic::NicProfile;
use crate::queue::EventQueue;
use engine::fabric::{Duo, Fabric, LinkLayer};
use engine::time::{Span, Time};
use std::sync::Arc;

/// What the two hosts are. Each has one port, and the two ports hang on one switch.
#[derive(Clone, Debug)]
pub struct DuoSpec {
    /// NIC of both hosts; line rate and path MTU are the profile's.
    pub nic: NicProfile,
    /// Link layer of both ports.
    pub link_layer: LinkLayer,
    /// Latency of each of the two links between the ports.
    pub link: Span,
    /// Seed of packet sequence numbers and keys.
    pub seed: u64,
}

impl Default for DuoSpec {
    fn default() -> Self {
        Self { nic: NicProfile::ideal(), link_layer: LinkLayer::Ethernet, link: Span::ns(130), seed: 1 }
    }
}

/// Why there are no such hosts.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum DuoError {
    /// The network cannot be.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// The hosts cannot be.
    #[error(transparent)]
    Hosts(#[from] FabricsError),
}

/// [`Duo`] over the simulator.
///
/// A call happens when its side's CPU is free, so what calls cost passes before the next call on that side. A poll that finds nothing
/// costs nothing: it stands for a CPU that spins, and sees a completion as soon as it is there.
pub struct SimDuo {
    fabrics: Fabrics,
    queue: EventQueue<FabricEvent>,
    ready: Vec<Ready>,
    now: Time,
    /// When each side's CPU is done with its last call.
    free: [Time; 2],
}

impl SimDuo {
    /// Two hosts without any objects yet.
    pub fn new(spec: &DuoSpec) -> Result<Self, DuoError> {
        let nic = Arc::new(spec.nic.clone());
        let bits_per_s = nic.rate.bits_per_s();
        let host = |i: usize| HostSpec {
            ports: vec![PortSpec {
                name: format!("sim{i}/1"),
                link_layer: spec.link_layer,
                bits_per_s,
                mtu: nic.mtu,
                numa: None,
            }],
            nic: nic.clone(),
        };
        let topology = Topology::star(2, bits_per_s as f64 / 1e9, spec.link.0)?;
        let fabrics = Fabrics::new(vec![host(0), host(1)], topology, spec.seed)?;
        let queue = EventQueue::new();
        Ok(Self { fabrics, queue, ready: Vec::new(), now: Time::ZERO, free: [Time::ZERO; 2] })
    }

    /// Both hosts, to look at.
    pub fn fabrics(&self) -> &Fabrics {
        &self.fabrics
    }

    fn run_to(&mut self, to: Time) {
        while self.queue.peek_time().is_some_and(|at| at <= to) {
            let Some((at, event)) = self.queue.pop() else { break };
            self.now = self.now.max(at);
            self.fabrics.handle(at, event, &mut self.queue, &mut self.ready);
        }
        self.ready.clear();
        self.now = self.now.max(to);
    }
}

impl Duo for SimDuo {
    fn call(&mut self, side: usize, calls: &mut dyn FnMut(&mut dyn Fabric)) {
        self.run_to(self.free[side]);
        self.fabrics.begin_call(side, self.now);
        let host = self.fabrics.host(side);
        calls(host);
        let spun = host.spun;
        let cpu = self.fabrics.after_call(side, self.now, &mut self.queue, &mut self.ready);
        self.ready.clear();
        self.free[side] = self.now + Span(cpu.0 - spun.0);
    }

    fn now(&self) -> Time {
        self.now
    }

    fn pass(&mut self, until: Time) -> bool {
        let busy = self.free.into_iter().filter(|free| *free > self.now).min();
        let next = [self.queue.peek_time(), busy].into_iter().flatten().min();
        match next {
            Some(next) if next <= until => {
                self.run_to(next);
                true
            }
            _ => {
                if until != Time::NEVER {
                    self.run_to(until);
                }
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nic::Duration;
    use engine::fabric::Completion;
    use engine::id::PortId;

    fn polling() -> SimDuo {
        let nic = NicProfile {
            poll: Duration(Span::ns(40)),
            create_qp: Duration(Span::us(5)),
            register: Duration(Span::us(3)),
            ..NicProfile::ideal()
        };
        SimDuo::new(&DuoSpec { nic, ..DuoSpec::default() }).unwrap()
    }

    #[test]
    fn calls_of_a_side_wait_for_its_cpu_and_spinning_is_free() {
        let mut duo = polling();
        let mut cq = None;
        duo.call(0, &mut |f| {
            cq = f.create_cq(PortId(0), 8).ok();
            let buf = f.alloc(engine::fabric::Memory::Host, engine::fabric::Grid::bytes(64)).unwrap();
            f.register(PortId(0), buf, 0..64, engine::fabric::Access::LOCAL).unwrap();
        });
        assert_eq!(duo.now(), Time::ZERO);
        // The other side's CPU is not busy.
        duo.call(1, &mut |_| {});
        assert_eq!(duo.now(), Time::ZERO);
        duo.call(0, &mut |f| assert_eq!(f.poll(cq.unwrap(), &mut [Completion::default(); 4]), 0));
        assert_eq!(duo.now(), Time::ZERO + Span::us(3));
        duo.call(0, &mut |_| {});
        assert_eq!(duo.now(), Time::ZERO + Span::us(3));
    }

    #[test]
    fn nothing_more_happens_once_all_cpus_are_free_and_nothing_is_under_way() {
        let mut duo = polling();
        duo.call(0, &mut |f| {
            let buf = f.alloc(engine::fabric::Memory::Host, engine::fabric::Grid::bytes(64)).unwrap();
            f.register(PortId(0), buf, 0..64, engine::fabric::Access::LOCAL).unwrap();
        });
        assert!(duo.pass(Time::NEVER));
        assert_eq!(duo.now(), Time::ZERO + Span::us(3));
        assert!(!duo.pass(Time::NEVER));
        assert_eq!(duo.now(), Time::ZERO + Span::us(3));
        assert!(!duo.pass(Time::ZERO + Span::us(9)));
        assert_eq!(duo.now(), Time::ZERO + Span::us(9));
    }
}
