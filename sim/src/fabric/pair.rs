//! Two connected queue pairs on two hosts, and an event queue to run them: the smallest testbed.

use super::{FabricEvent, Fabrics, HostSpec, PortFault, PortSpec, Ready, SimFabric};
use crate::net::Topology;
use crate::nic::NicProfile;
use crate::queue::EventQueue;
use engine::fabric::{
    Access, Completion, Endpoint, Fabric, LinkLayer, QpSpec, Result, RnrTimer, Rtr, Rts, Step,
};
use engine::id::{CqId, PortId, QpId};
use engine::time::{Span, Time};
use std::sync::Arc;

/// How the two sides are made and connected. [`Default`] is an ideal NIC at 200 Gb/s with 1 us from port to port.
#[derive(Clone, Debug)]
pub struct PairSpec {
    /// NIC of both hosts.
    pub nic: NicProfile,
    /// Line rate.
    pub gbps: f64,
    /// Latency of each of the two links between the ports, through one switch.
    pub link: Span,
    /// Path MTU of both ports.
    pub mtu: u16,
    /// Both queue pairs on one host (of port 0).
    pub same_host: bool,
    /// Requests and receives of each queue pair, SGEs, inline bytes.
    pub max_send: u32,
    /// Receives of each queue pair.
    pub max_recv: u32,
    /// SGEs of a request.
    pub max_sge: u32,
    /// Inline bytes.
    pub max_inline: u32,
    /// Completions of each completion queue.
    pub depth: u32,
    /// Rights of both queue pairs.
    pub access: Access,
    /// Attributes to RTR, but for the peer.
    pub max_dest_rd_atomic: u8,
    /// RNR timer.
    pub min_rnr_timer: RnrTimer,
    /// Attributes to RTS.
    pub rts: Rts,
    /// Seed of everything random.
    pub seed: u64,
}

impl Default for PairSpec {
    fn default() -> Self {
        let all = Access { local_write: true, remote_write: true, remote_read: true, remote_atomic: true };
        Self {
            nic: NicProfile::ideal(),
            gbps: 200.0,
            link: Span::ns(500),
            mtu: 4096,
            same_host: false,
            max_send: 4096,
            max_recv: 4096,
            max_sge: 30,
            max_inline: 220,
            depth: 65_536,
            access: all,
            max_dest_rd_atomic: 16,
            min_rnr_timer: RnrTimer(12),
            rts: Rts { timeout: 14, retry_cnt: 7, rnr_retry: 7, max_rd_atomic: 16 },
            seed: 1,
        }
    }
}

/// One end: where it is and what it is made of.
#[derive(Clone, Copy, Debug)]
pub struct End {
    /// Its host.
    pub host: usize,
    /// Its port.
    pub port: PortId,
    /// Completions of its sends.
    pub send_cq: CqId,
    /// Completions of its receives.
    pub recv_cq: CqId,
    /// The queue pair.
    pub qp: QpId,
}

/// The testbed. Calls on a side happen at [`Pair::now`]; [`Pair::run`] lets time pass.
pub struct Pair {
    /// Both hosts.
    pub fabrics: Fabrics,
    /// What is to come.
    pub queue: EventQueue<FabricEvent>,
    /// Present time.
    pub now: Time,
    /// What became ready, in order; for tests to look at and clear.
    pub ready: Vec<Ready>,
    /// The two ends.
    pub ends: [End; 2],
    spec: PairSpec,
}

impl Pair {
    /// Two hosts and two queue pairs in RTS.
    pub fn new(spec: PairSpec) -> Result<Self> {
        let mut pair = Self::unconnected(spec)?;
        pair.connect()?;
        Ok(pair)
    }

    /// Two hosts and two queue pairs in RESET.
    pub fn unconnected(spec: PairSpec) -> Result<Self> {
        let bits_per_s = (spec.gbps * 1e9) as u64;
        let port = |i: u32| PortSpec {
            name: format!("sim{i}/1"),
            link_layer: LinkLayer::Ethernet,
            bits_per_s,
            mtu: spec.mtu,
            numa: None,
        };
        let nic = Arc::new(spec.nic.clone());
        let hosts =
            vec![HostSpec { ports: vec![port(0)], nic: nic.clone() }, HostSpec { ports: vec![port(0)], nic }];
        let invalid =
            |what, value| engine::fabric::Error::Invalid { what, value, right: "a star of two ports" };
        let topology = Topology::star(2, spec.gbps, spec.link.0).map_err(|_| invalid("speed", bits_per_s))?;
        let mut fabrics =
            Fabrics::new(hosts, topology, spec.seed).map_err(|_| invalid("mtu", spec.mtu.into()))?;
        let mut make = |host: usize| -> Result<End> {
            let (side, port) = (fabrics.host(host), PortId(0));
            let (send_cq, recv_cq) = (side.create_cq(port, spec.depth)?, side.create_cq(port, spec.depth)?);
            let qp = side.create_qp(
                port,
                QpSpec {
                    send_cq,
                    recv_cq,
                    srq: None,
                    max_send: spec.max_send,
                    max_recv: spec.max_recv,
                    max_sge: spec.max_sge,
                    max_inline: spec.max_inline,
                },
            )?;
            Ok(End { host, port, send_cq, recv_cq, qp })
        };
        let ends = [make(0)?, make(usize::from(!spec.same_host))?];
        Ok(Self { fabrics, queue: EventQueue::new(), now: Time::ZERO, ready: Vec::new(), ends, spec })
    }

    /// Connects both ends, from whatever state they are in.
    pub fn connect(&mut self) -> Result<()> {
        let access = self.spec.access;
        for i in 0..2 {
            let qp = self.ends[i].qp;
            self.call(i, |side| {
                side.modify_qp(qp, Step::Reset)?;
                side.modify_qp(qp, Step::Init(access))
            })?;
        }
        for i in 0..2 {
            let peer = self.endpoint(1 - i)?;
            let (qp, rts) = (self.ends[i].qp, self.spec.rts);
            let rtr = Rtr {
                peer,
                max_dest_rd_atomic: self.spec.max_dest_rd_atomic,
                min_rnr_timer: self.spec.min_rnr_timer,
            };
            self.call(i, |side| {
                side.modify_qp(qp, Step::Rtr(rtr))?;
                side.modify_qp(qp, Step::Rts(rts))
            })?;
        }
        Ok(())
    }

    /// What the other end needs to connect to end `i`.
    pub fn endpoint(&self, i: usize) -> Result<Endpoint> {
        self.fabrics.host_ref(self.ends[i].host).endpoint(self.ends[i].qp)
    }

    /// One end's port loses its link now, or has it back.
    pub fn link(&mut self, i: usize, up: bool) {
        let End { host, port, .. } = self.ends[i];
        let fault = PortFault::Down(!up);
        self.fabrics.port_fault(host, port, fault, self.now, &mut self.queue, &mut self.ready);
    }

    /// A call of the node on side `i`; what it posted starts to move.
    pub fn call<R>(&mut self, i: usize, node: impl FnOnce(&mut SimFabric) -> R) -> R {
        self.timed(i, node).0
    }

    /// The same, with the CPU time that it took.
    pub fn timed<R>(&mut self, i: usize, node: impl FnOnce(&mut SimFabric) -> R) -> (R, Span) {
        let host = self.ends[i].host;
        self.fabrics.begin_call(host, self.now);
        let result = node(self.fabrics.host(host));
        let cpu = self.fabrics.after_call(host, self.now, &mut self.queue, &mut self.ready);
        (result, cpu)
    }

    /// Works one event off; whether there was one.
    pub fn step(&mut self) -> bool {
        let Some((at, event)) = self.queue.pop() else { return false };
        self.now = self.now.max(at);
        self.fabrics.handle(at, event, &mut self.queue, &mut self.ready);
        true
    }

    /// Runs until nothing happens any more. Only `rnr_retry` 7 and endless retries keep it from coming back.
    pub fn run(&mut self) -> Time {
        while self.step() {}
        self.now
    }

    /// Runs to an instant.
    pub fn run_to(&mut self, to: Time) {
        while self.queue.peek_time().is_some_and(|at| at <= to) {
            self.step();
        }
        self.now = self.now.max(to);
    }

    /// Runs for a while.
    pub fn run_for(&mut self, span: Span) {
        self.run_to(self.now + span);
    }

    /// Takes all completions of sends of end `i`.
    pub fn sends(&mut self, i: usize) -> Vec<Completion> {
        self.poll(i, self.ends[i].send_cq)
    }

    /// Takes all completions of receives of end `i`.
    pub fn receives(&mut self, i: usize) -> Vec<Completion> {
        self.poll(i, self.ends[i].recv_cq)
    }

    fn poll(&mut self, i: usize, cq: CqId) -> Vec<Completion> {
        let mut all = Vec::new();
        let mut some = [Completion::default(); 16];
        loop {
            match self.call(i, |side| side.poll(cq, &mut some)) {
                0 => return all,
                n => all.extend_from_slice(&some[..n]),
            }
        }
    }
}
