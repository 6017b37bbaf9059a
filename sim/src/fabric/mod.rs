//! The simulated fabric: queue pairs, memory and NICs of all hosts over a [network](crate::net).
//!
//! [`SimFabric`] is one host's end and implements [`engine::fabric::Fabric`]; its calls change only that host. [`Fabrics`] owns all of
//! them and the network, and moves what was posted: it is called after every call of a node ([`Fabrics::after_call`]) and for every
//! [`FabricEvent`] that it put into its owner's event queue ([`Fabrics::handle`]).
//!
//! **Service.** Requests of a chain between which nobody can look (unsignalled WRITEs, up to a signal or an immediate; READs up to a
//! signal) are one *segment*. A queue pair serves its segments in order; each is one flow of wire bytes, limited by the NIC's rates,
//! and the next one starts when its last byte has left. All costs are sums over requests, so that a batch and the same requests one by
//! one take the same time.
//!
//! **Memory** moves when a segment arrives. Sources are read then, not when they were posted, so a page that is overwritten too early is
//! seen. A queue pair that fails or is destroyed keeps what its sources held at that instant: what had left its NIC still arrives.
//!
//! **Failures.** A segment is split exactly at the request at fault. Local keys are checked when the segment arrives, and not when the NIC
//! fetches it: a request refused locally still took its time on the wire. No ACK within the timeout: service starts again at the oldest
//! request that was not acknowledged, `retry_cnt` times, every `4.096 us * 2^timeout` (real devices take 1 to 4 times that).
//!
//! **Send-queue room.** A request occupies its place until a completion that covers it is *polled*, as with mlx5 and rxe.
//! A receive's place is free as soon as a message consumed it, as with rxe.

mod arrive;
mod calls;
mod copy;
mod counters;
pub mod duo;
mod exec;
mod faults;
mod host;
mod loss;
mod memory;
mod mistakes;
pub mod pair;
mod post;
mod qp;
mod remains;
mod serve;
mod steps;

pub use copy::CopyCosts;
pub use counters::{Counters, Objects};
pub use faults::PortFault;
pub use host::SimFabric;
pub use mistakes::Mistakes;
pub use steps::Lane;

use crate::net::{Fluid, Network, Topology};
use crate::nic::NicProfile;
use engine::fabric::{LinkLayer, Port, QpState, Status};
use engine::id::{CqId, PortId, QpId};
use engine::time::{Span, Time};
use exec::LaneCache;
use host::{Gone, Todo, Wiring, gid};
use loss::Losses;
use qp::Qp;
use std::sync::Arc;

/// A port to make.
#[derive(Clone, Debug, PartialEq)]
pub struct PortSpec {
    /// Device and port, `mlx5_0/1`.
    pub name: String,
    /// Link layer.
    pub link_layer: LinkLayer,
    /// Line rate; the links of the topology are what really limits.
    pub bits_per_s: u64,
    /// Path MTU in bytes.
    pub mtu: u16,
    /// NUMA node of the NIC, if it matters.
    pub numa: Option<u8>,
}

/// A host to make.
#[derive(Clone, Debug)]
pub struct HostSpec {
    /// Its ports, in id order. Ports of all hosts, one after the other, are the ports of the topology.
    pub ports: Vec<PortSpec>,
    /// What its NICs cost.
    pub nic: Arc<NicProfile>,
}

/// Why hosts and a topology do not fit.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum FabricsError {
    /// The numbers of ports differ.
    #[error("the hosts have {hosts} ports, the topology has {topology}: they must be equal")]
    Ports {
        /// Ports of all hosts.
        hosts: usize,
        /// Ports of the topology.
        topology: u32,
    },
    /// A port cannot be.
    #[error("port {port} of host {host}: MTU {mtu} is not valid, use 256, 512, 1024, 2048 or 4096")]
    Mtu {
        /// Which host.
        host: usize,
        /// Which of its ports.
        port: usize,
        /// Its MTU.
        mtu: u16,
    },
}

/// Something that will happen in the fabric; means nothing to anybody else.
#[derive(Clone, Copy, Debug)]
pub struct FabricEvent(Inner);

#[derive(Clone, Copy, Debug)]
enum Inner {
    /// The network has something to do.
    Network,
    /// The last byte of a segment reaches its target.
    Arrive { host: u32, qp: QpId, epoch: u32, number: u64 },
    /// The same, of a queue pair that is gone; only `limit` payload bytes had left.
    Remains { gone: u32, number: u64, limit: Option<u64> },
    /// A failure reaches the requester.
    Nak { host: u32, qp: QpId, epoch: u32, index: u64, status: Status },
    /// No ACK came in time.
    Timeout { host: u32, qp: QpId, epoch: u32 },
    /// The wait after an RNR NAK is over.
    Retry { host: u32, qp: QpId, epoch: u32 },
    /// Completions of sends are due.
    Acked { host: u32, qp: QpId },
    /// Completions of receives are due.
    Received { host: u32, qp: QpId },
    /// A copy within a host's memory is over.
    Copied { host: u32, slot: u32 },
    /// Completions that a fault held back are due.
    Late { host: u32, cq: CqId },
}

/// Whoever owns the event queue.
pub trait Schedule {
    /// Calls [`Fabrics::handle`] with `event` at `when`.
    fn at(&mut self, when: Time, event: FabricEvent);
}

impl<E: From<FabricEvent>> Schedule for crate::queue::EventQueue<E> {
    fn at(&mut self, when: Time, event: FabricEvent) {
        self.push(when, event.into());
    }
}

/// Something for a node to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    /// Its host.
    pub host: usize,
    /// What.
    pub what: ReadyWhat,
}

/// What there is to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadyWhat {
    /// Completions to poll, until there are none: this is said once per burst.
    Completions(CqId),
    /// Asynchronous events to take, all of them.
    Events,
}

/// All hosts' fabrics and the network between them.
pub struct Fabrics {
    hosts: Vec<SimFabric>,
    wiring: Arc<Wiring>,
    net: Fluid,
    /// When the network's event is due, if one is scheduled.
    wake: Option<Time>,
    /// Whether the network was told something since it was last asked for its next event.
    changed: bool,
    /// Queue pairs by the tag of their flows.
    wires: Vec<(u32, QpId)>,
    gone: Vec<Option<Box<Gone>>>,
    gone_free: Vec<u32>,
    /// Hosts that were changed by the present event.
    dirty: Vec<u32>,
    lanes: LaneCache,
    done: Vec<crate::net::Done>,
    losses: Losses,
}

impl Fabrics {
    /// Makes hosts over a network. Ports of the topology are the hosts' ports in order.
    pub fn new(hosts: Vec<HostSpec>, topology: Topology, seed: u64) -> Result<Self, FabricsError> {
        let total: usize = hosts.iter().map(|h| h.ports.len()).sum();
        if total != topology.ports() as usize {
            return Err(FabricsError::Ports { hosts: total, topology: topology.ports() });
        }
        let mut places = Vec::with_capacity(total);
        for (h, host) in hosts.iter().enumerate() {
            for (p, port) in host.ports.iter().enumerate() {
                if !(256..=4096).contains(&port.mtu) || !port.mtu.is_power_of_two() {
                    return Err(FabricsError::Mtu { host: h, port: p, mtu: port.mtu });
                }
                places.push((h as u32, PortId(p as u32)));
            }
        }
        let wiring = Arc::new(Wiring { topology: topology.clone(), ports: places });
        let mut first = 0;
        let mut own = Vec::with_capacity(hosts.len());
        for (h, host) in hosts.into_iter().enumerate() {
            let ports: Vec<Port> = host
                .ports
                .into_iter()
                .enumerate()
                .map(|(p, spec)| port(first + p as u32, p as u32, spec))
                .collect();
            let count = ports.len() as u32;
            own.push(SimFabric::new(h as u32, first, ports, host.nic, wiring.clone(), seed));
            first += count;
        }
        Ok(Self {
            hosts: own,
            wiring,
            net: Fluid::new(topology),
            wake: None,
            changed: false,
            wires: Vec::new(),
            gone: Vec::new(),
            gone_free: Vec::new(),
            dirty: Vec::new(),
            lanes: LaneCache::default(),
            done: Vec::new(),
            losses: Losses::new(seed),
        })
    }

    /// What all hosts get wrong on purpose from now on.
    pub fn set_mistakes(&mut self, mistakes: Mistakes) {
        for host in &mut self.hosts {
            host.mistakes = mistakes;
            host.memory.set_mistakes(mistakes);
        }
    }

    /// How many hosts there are.
    pub fn hosts(&self) -> usize {
        self.hosts.len()
    }

    /// A host's fabric, as a node is handed it. Between [`begin_call`](Self::begin_call) and [`after_call`](Self::after_call).
    pub fn host(&mut self, host: usize) -> &mut SimFabric {
        &mut self.hosts[host]
    }

    /// A host's fabric, to look at.
    pub fn host_ref(&self, host: usize) -> &SimFabric {
        &self.hosts[host]
    }

    /// Counters of all hosts together.
    pub fn counters(&self) -> Counters {
        let mut sum = Counters::default();
        self.hosts.iter().for_each(|h| sum.add(&h.counters()));
        sum
    }

    /// Whether nothing is under way: no flow, no answer outstanding, no remains of failed queue pairs.
    pub fn quiescent(&self) -> bool {
        let busy = |qp: &Qp| {
            let left = qp.sq.iter().take((qp.next - qp.head) as usize);
            qp.flow.is_some() || qp.stalled || left.into_iter().any(|s| s.acked == Time::NEVER)
        };
        self.gone.iter().all(Option::is_none)
            && self.hosts.iter().all(|h| h.copying.iter().all(Option::is_none))
            && self.hosts.iter().all(|h| h.qp_ids().iter().all(|id| !h.qp_ref(*id).is_some_and(busy)))
    }

    /// A node's call begins: its fabric calls happen at `now`.
    pub fn begin_call(&mut self, host: usize, now: Time) {
        let own = &mut self.hosts[host];
        (own.now, own.cpu, own.spun) = (now, Span(0), Span(0));
    }

    /// A node's call is over: what it posted starts to move. Returns the CPU time that its fabric calls took. `ready` gets what
    /// the calls themselves made ready (flushes, limits).
    pub fn after_call(
        &mut self,
        host: usize,
        now: Time,
        q: &mut impl Schedule,
        ready: &mut Vec<Ready>,
    ) -> Span {
        let own = &mut self.hosts[host];
        let cpu = std::mem::replace(&mut own.cpu, Span(0));
        // Most calls of a node leave the fabric alone.
        if own.is_changed() {
            self.dirty.push(host as u32);
            self.settle(now, q, ready);
        }
        cpu
    }

    /// Works one event of its own off.
    pub fn handle(&mut self, now: Time, event: FabricEvent, q: &mut impl Schedule, ready: &mut Vec<Ready>) {
        match event.0 {
            Inner::Network => self.network(now, q),
            Inner::Arrive { host, qp, epoch, number } => self.arrive(host, qp, epoch, number, now, q),
            Inner::Remains { gone, number, limit } => self.remains(gone, number, limit, now, q),
            Inner::Nak { host, qp, epoch, index, status } => {
                if self.current(host, qp, epoch) {
                    self.touch(host, now).fail(qp, Some((status, index)));
                }
            }
            Inner::Timeout { host, qp, epoch } => {
                if self.current(host, qp, epoch) {
                    self.timeout(host, qp, now, q);
                }
            }
            Inner::Retry { host, qp, epoch } => {
                if self.current(host, qp, epoch) {
                    self.again(host, qp, now, q);
                }
            }
            Inner::Acked { host, qp } => {
                let own = self.touch(host, now);
                if let Some(mut pair) = own.take_qp(qp) {
                    own.reap(&mut pair);
                    pair.answers = pair.outstanding();
                    own.put_qp(pair);
                    self.serve(host, qp, now, q);
                }
            }
            Inner::Received { host, qp } => {
                let own = self.touch(host, now);
                if let Some(mut pair) = own.take_qp(qp) {
                    own.deliver(&mut pair, false);
                    own.put_qp(pair);
                }
            }
            Inner::Copied { host, slot } => self.copied(host, slot, now),
            Inner::Late { host, cq } => self.late(host, cq, now),
        }
        self.settle(now, q, ready);
    }

    // ---- service ----

    /// A host that this event changes.
    pub(super) fn touch(&mut self, host: u32, now: Time) -> &mut SimFabric {
        if !self.dirty.contains(&host) {
            self.dirty.push(host);
        }
        let own = &mut self.hosts[host as usize];
        own.now = now;
        own
    }

    pub(super) fn current(&self, host: u32, qp: QpId, epoch: u32) -> bool {
        self.hosts[host as usize].qp_ref(qp).is_some_and(|p| p.epoch == epoch && p.state == QpState::Rts)
    }

    /// Works off what calls and failures left, tells what is ready, and sets the network's alarm.
    pub(super) fn settle(&mut self, now: Time, q: &mut impl Schedule, ready: &mut Vec<Ready>) {
        let mut at = 0;
        while at < self.dirty.len() {
            let host = self.dirty[at];
            at += 1;
            let own = &mut self.hosts[host as usize];
            own.settle_overruns();
            if own.todo.is_empty() {
                continue;
            }
            let mut todo = std::mem::take(&mut own.todo);
            for task in todo.drain(..) {
                match task {
                    Todo::Serve(qp) => self.serve(host, qp, now, q),
                    Todo::Gone(gone) => self.bury(host, gone, now, q),
                    Todo::Copy { slot, over } => self.schedule_copy(host, slot, over, q),
                    Todo::Late(cq, at) => q.at(at, faults::late_event(host, cq)),
                }
            }
            let own = &mut self.hosts[host as usize];
            if own.todo.is_empty() {
                own.todo = todo;
            } else {
                self.dirty.push(host);
            }
        }
        if self.dirty.len() > 1 {
            self.dirty.sort_unstable();
            self.dirty.dedup();
        }
        for &host in &self.dirty {
            let own = &mut self.hosts[host as usize];
            let host = host as usize;
            own.take_touched(|cq| ready.push(Ready { host, what: ReadyWhat::Completions(cq) }));
            if own.has_events() {
                ready.push(Ready { host, what: ReadyWhat::Events });
            }
        }
        self.dirty.clear();
        self.reschedule(q);
    }

    pub(super) fn reschedule(&mut self, q: &mut impl Schedule) {
        if !self.changed {
            return;
        }
        self.changed = false;
        if let Some(next) = self.net.next().map(Time)
            && self.wake.is_none_or(|wake| next < wake)
        {
            self.wake = Some(next);
            q.at(next, FabricEvent(Inner::Network));
        }
    }

    pub(super) fn network(&mut self, now: Time, q: &mut impl Schedule) {
        if self.wake.is_some_and(|wake| wake <= now) {
            self.wake = None;
        }
        let mut done = std::mem::take(&mut self.done);
        self.net.advance(now.0, &mut done);
        self.changed = true;
        for end in done.drain(..) {
            let (host, id) = self.wires[end.tag as usize];
            let Some(qp) = self.hosts[host as usize].qp(id) else { continue };
            if qp.flow == Some(end.flow) {
                qp.flow = None;
                let finish = Time(end.at).max(qp.engine);
                self.left(host, id, finish, q);
                self.serve(host, id, now, q);
            }
        }
        self.done = done;
    }
}

fn port(global: u32, id: u32, spec: PortSpec) -> Port {
    let lid = match spec.link_layer {
        LinkLayer::InfiniBand => (global + 1) as u16,
        LinkLayer::Ethernet => 0,
    };
    Port {
        id: PortId(id),
        name: spec.name,
        link_layer: spec.link_layer,
        bits_per_s: spec.bits_per_s,
        mtu: spec.mtu,
        numa: spec.numa,
        pcie: String::new(),
        gids: vec![gid(global)],
        lid,
        up: true,
    }
}
