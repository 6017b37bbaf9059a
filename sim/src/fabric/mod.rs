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

mod exec;
mod host;
mod memory;
pub mod pair;
mod post;
mod qp;

pub use host::{Counters, Objects, SimFabric};

use crate::net::{FlowSpec, Fluid, NetError, Network, Topology};
use crate::nic::{NicProfile, cost};
use engine::fabric::{Done, Event, LinkLayer, Opcode, Port, QpState, Status, ack_timeout, rnr_delay};
use engine::id::{CqId, PortId, QpId};
use engine::time::{Span, Time};
use exec::{Ends, Fault, LaneCache};
use host::{Gone, Todo, Wiring, gid};
use memory::{Local, Sides};
use qp::{Kind, NO_WIRE, Pending, Place, Qp, Segment};
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
        })
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
            && self.hosts.iter().all(|h| h.qp_ids().iter().all(|id| !h.qp_ref(*id).is_some_and(busy)))
    }

    /// A node's call begins: its fabric calls happen at `now`.
    pub fn begin_call(&mut self, host: usize, now: Time) {
        let own = &mut self.hosts[host];
        (own.now, own.cpu) = (now, Span(0));
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
        let cpu = std::mem::replace(&mut self.hosts[host].cpu, Span(0));
        self.dirty.push(host as u32);
        self.settle(now, q, ready);
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
        }
        self.settle(now, q, ready);
    }

    // ---- faults ----

    /// A queue pair fails by itself: it goes to ERR, and [`Event::QpFatal`] says so.
    pub fn fail_qp(
        &mut self,
        host: usize,
        qp: QpId,
        now: Time,
        q: &mut impl Schedule,
        ready: &mut Vec<Ready>,
    ) {
        let own = self.touch(host as u32, now);
        if own.qp_ref(qp).is_some_and(|p| !matches!(p.state, QpState::Reset | QpState::Err)) {
            own.fail(qp, None);
            own.push_event(Event::QpFatal(qp));
        }
        self.settle(now, q, ready);
    }

    /// A port loses its link. What is on the way to it, and ACKs over it, are lost.
    pub fn link_down(
        &mut self,
        host: usize,
        port: PortId,
        now: Time,
        q: &mut impl Schedule,
        ready: &mut Vec<Ready>,
    ) {
        let own = self.touch(host as u32, now);
        let Some(state) = own.ports.get_mut(port.index()) else { return };
        if std::mem::replace(&mut state.up, false) {
            own.push_event(Event::PortDown(port));
            let global = own.global(port);
            for h in 0..self.hosts.len() as u32 {
                for id in self.hosts[h as usize].qp_ids() {
                    self.cut_off(h, id, global, now, q);
                }
            }
        }
        self.settle(now, q, ready);
    }

    /// A port gets its link back. Queue pairs go on at their next retry.
    pub fn link_up(
        &mut self,
        host: usize,
        port: PortId,
        now: Time,
        q: &mut impl Schedule,
        ready: &mut Vec<Ready>,
    ) {
        let own = self.touch(host as u32, now);
        let Some(state) = own.ports.get_mut(port.index()) else { return };
        if !std::mem::replace(&mut state.up, true) {
            own.push_event(Event::PortUp(port));
        }
        self.settle(now, q, ready);
    }

    /// A port's links run at `factor` of their speed from now on; 1 restores them.
    pub fn degrade(
        &mut self,
        host: usize,
        port: PortId,
        factor: f64,
        now: Time,
        q: &mut impl Schedule,
    ) -> Result<(), NetError> {
        let global = self.hosts[host].global(port);
        let topology = &self.wiring.topology;
        let links = [topology.port_up(global), topology.port_down(global)];
        for link in links.into_iter().flatten() {
            let capacity = topology.links()[link.0 as usize].capacity * factor;
            self.net.set_capacity(now.0, link, capacity)?;
        }
        self.changed = true;
        self.reschedule(q);
        Ok(())
    }

    // ---- service ----

    /// A host that this event changes.
    fn touch(&mut self, host: u32, now: Time) -> &mut SimFabric {
        if !self.dirty.contains(&host) {
            self.dirty.push(host);
        }
        let own = &mut self.hosts[host as usize];
        own.now = now;
        own
    }

    fn current(&self, host: u32, qp: QpId, epoch: u32) -> bool {
        self.hosts[host as usize].qp_ref(qp).is_some_and(|p| p.epoch == epoch && p.state == QpState::Rts)
    }

    /// Works off what calls and failures left, tells what is ready, and sets the network's alarm.
    fn settle(&mut self, now: Time, q: &mut impl Schedule, ready: &mut Vec<Ready>) {
        let mut at = 0;
        while at < self.dirty.len() {
            let host = self.dirty[at];
            at += 1;
            self.hosts[host as usize].settle_overruns();
            let mut todo = std::mem::take(&mut self.hosts[host as usize].todo);
            for task in todo.drain(..) {
                match task {
                    Todo::Serve(qp) => self.serve(host, qp, now, q),
                    Todo::Gone(gone) => self.bury(host, gone, now, q),
                }
            }
            let own = &mut self.hosts[host as usize];
            if own.todo.is_empty() {
                own.todo = todo;
            } else {
                self.dirty.push(host);
            }
        }
        self.dirty.sort_unstable();
        self.dirty.dedup();
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

    fn reschedule(&mut self, q: &mut impl Schedule) {
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

    fn network(&mut self, now: Time, q: &mut impl Schedule) {
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

    /// The last byte of the segment in service left its NIC at `finish`.
    fn left(&mut self, host: u32, id: QpId, finish: Time, q: &mut impl Schedule) {
        let own = &mut self.hosts[host as usize];
        let (transmit, receive) = (own.nic.transmit.0, own.nic.receive.0);
        let Some(qp) = own.qp(id) else { return };
        let (number, epoch) = (qp.next, qp.epoch);
        qp.free = finish;
        qp.next += 1;
        let place = qp.peer.and_then(|p| p.place);
        let Some(segment) = qp.segment(number) else { return };
        let links = place.map_or(Span(0), |p| if segment.kind.answered() { p.back } else { p.out });
        segment.left = true;
        segment.arrives = finish + transmit + links + receive;
        let arrives = segment.arrives;
        qp.answers = qp.outstanding();
        q.at(arrives, FabricEvent(Inner::Arrive { host, qp: id, epoch, number }));
    }

    /// Serves what waits on a queue pair, as far as it can go.
    fn serve(&mut self, host: u32, id: QpId, now: Time, q: &mut impl Schedule) {
        loop {
            let own = &self.hosts[host as usize];
            let Some(qp) = own.qp_ref(id) else { return };
            if qp.state != QpState::Rts || qp.flow.is_some() || qp.stalled {
                return;
            }
            let Some(&segment) = qp.sq.get((qp.next - qp.head) as usize) else { return };
            let window = u64::from(qp.rts.max_rd_atomic);
            if segment.fence && qp.answers > 0 {
                return;
            }
            if segment.kind.answered() {
                if window == 0 {
                    if qp.next == qp.head {
                        self.touch(host, now).fail(id, Some((Status::LocQpOp, 0)));
                    }
                    return;
                }
                if qp.answers >= window {
                    return;
                }
            }
            let start = now.max(segment.ready).max(qp.free);
            let (port, free) = (qp.port, own.engine[qp.port.index()]);
            let Some(place) = self.open(host, qp) else { return self.lose(host, id, start, q) };
            let per = own.nic_message(port) * segment.load.requests;
            let engine = free.max(start) + per;
            let (wire, load) = (segment.rest(qp, &own.nic, own.ports[port.index()].link_layer), segment.load);
            let read = segment.kind.answered();
            let trip =
                place.out + place.back + own.nic.transmit.0 * 2 + own.nic.receive.0 * 2 + own.nic.respond.0;
            let cap = cost::rate_cap(&own.nic, &load, wire, read.then_some((window, trip)));
            let line = own.ports[port.index()].bits_per_s as f64 / 8.0;
            // Flows without a cap share one class of the network.
            let cap = if cap >= line && line > 0.0 { f64::INFINITY } else { cap };
            let (mut src, mut dst) = (own.global(port), place.global);
            let mut begin = start;
            if read {
                begin = start + own.nic.transmit.0 + place.out + own.nic.receive.0 + own.nic.respond.0;
                std::mem::swap(&mut src, &mut dst);
            }
            let label = qp.end.qpn;
            let mut tag = qp.wire;
            if tag == NO_WIRE {
                tag = self.wires.len() as u32;
                self.wires.push((host, id));
            }
            let own = &mut self.hosts[host as usize];
            own.engine[port.index()] = engine;
            own.counters.segments += 1;
            own.counters.wire_bytes += wire;
            own.counters.packets += load.packets;
            let Some(qp) = own.qp(id) else { return };
            (qp.wire, qp.engine) = (tag, engine);
            if wire == 0 {
                self.left(host, id, begin.max(engine), q);
                continue;
            }
            let spec = FlowSpec { src, dst, bytes: wire as f64, weight: 1.0, cap, label, tag };
            let flow = if begin <= now {
                self.net.start(now.0, &spec)
            } else {
                self.net.start_at(now.0, begin.0, &spec)
            };
            self.changed = true;
            match flow {
                Ok(flow) => {
                    if let Some(qp) = self.hosts[host as usize].qp(id) {
                        qp.flow = Some(flow);
                    }
                }
                Err(_) => self.lose(host, id, start, q),
            }
            return;
        }
    }

    /// Where a queue pair's peer is, if packets get there now.
    fn open(&self, host: u32, qp: &Qp) -> Option<Place> {
        let place = qp.peer.as_ref()?.place?;
        let up = |host: u32, port: PortId| self.hosts[host as usize].ports[port.index()].up;
        (up(host, qp.port) && up(place.host, place.port)).then_some(place)
    }

    /// Stops the service of a queue pair; what is under way means nothing any more. It goes on at segment `next`.
    fn halt(&mut self, host: u32, id: QpId, next: u64, now: Time) -> Option<&mut Qp> {
        let qp = self.hosts[host as usize].qp(id)?;
        if let Some(flow) = qp.flow.take() {
            let _ = self.net.cancel(now.0, flow);
            self.changed = true;
        }
        let qp = self.hosts[host as usize].qp(id)?;
        qp.epoch = qp.epoch.wrapping_add(1);
        qp.stalled = true;
        qp.next = next.max(qp.head);
        qp.free = now;
        let from = (qp.next - qp.head) as usize;
        for segment in qp.sq.range_mut(from..) {
            (segment.left, segment.acked) = (false, Time::NEVER);
        }
        qp.answers = qp.outstanding();
        Some(qp)
    }

    /// No ACK will come for the oldest segment that has none: its timer runs from `since`.
    fn lose(&mut self, host: u32, id: QpId, since: Time, q: &mut impl Schedule) {
        let now = self.hosts[host as usize].now;
        let Some(qp) = self.hosts[host as usize].qp_ref(id) else { return };
        let acked = qp.sq.iter().take_while(|s| s.acked != Time::NEVER).count() as u64;
        let next = qp.head + acked;
        let Some(qp) = self.halt(host, id, next, now.max(since)) else { return };
        let epoch = qp.epoch;
        if let Some(wait) = ack_timeout(qp.rts.timeout) {
            q.at(since.max(now) + wait, FabricEvent(Inner::Timeout { host, qp: id, epoch }));
        }
    }

    fn timeout(&mut self, host: u32, id: QpId, now: Time, q: &mut impl Schedule) {
        let own = self.touch(host, now);
        let Some(mut qp) = own.take_qp(id) else { return };
        own.reap(&mut qp);
        let over = qp.retries == 0;
        if !over {
            qp.retries -= 1;
            own.counters.timeouts += 1;
        }
        own.put_qp(qp);
        if over {
            own.fail(id, Some((Status::RetryExc, 0)));
        } else {
            self.again(host, id, now, q);
        }
    }

    fn again(&mut self, host: u32, id: QpId, now: Time, q: &mut impl Schedule) {
        if let Some(qp) = self.touch(host, now).qp(id) {
            qp.stalled = false;
            qp.free = now;
        }
        self.serve(host, id, now, q);
    }

    /// A link went down: everything of this queue pair that needed it is lost.
    fn cut_off(&mut self, host: u32, id: QpId, global: u32, now: Time, q: &mut impl Schedule) {
        let own = &mut self.hosts[host as usize];
        let Some(qp) = own.qp_ref(id) else { return };
        let there = qp.peer.and_then(|p| p.place).map(|p| p.global);
        if qp.state != QpState::Rts || own.global(qp.port) != global && there != Some(global) {
            return;
        }
        own.now = now;
        let Some(qp) = own.qp(id) else { return };
        for segment in qp.sq.iter_mut().filter(|s| s.acked > now) {
            segment.acked = Time::NEVER;
        }
        let sent = qp.sq.iter().any(|s| s.left && s.acked == Time::NEVER);
        if !qp.stalled && (sent || qp.flow.is_some()) {
            self.touch(host, now);
            self.lose(host, id, now, q);
        }
    }

    // ---- arrival ----

    /// The responder of a connection, if it takes packets of `from` now.
    fn responder(&self, from: &Qp) -> Option<(u32, QpId)> {
        let peer = from.peer.as_ref()?;
        let place = peer.place?;
        let host = &self.hosts[place.host as usize];
        let id = host.by_number(peer.end.qpn)?;
        let qp = host.qp_ref(id)?;
        let takes = matches!(qp.state, QpState::Rtr | QpState::Rts)
            && qp.port == place.port
            && qp.end.psn == peer.end.psn
            && qp.talks_to(&from.end)
            && host.ports[place.port.index()].up;
        takes.then_some((place.host, id))
    }

    fn arrive(&mut self, host: u32, id: QpId, epoch: u32, number: u64, now: Time, q: &mut impl Schedule) {
        if !self.current(host, id, epoch) {
            return;
        }
        self.touch(host, now);
        let Some(qp) = self.hosts[host as usize].qp_ref(id) else { return };
        let Some(&segment) = number.checked_sub(qp.head).and_then(|i| qp.sq.get(i as usize)) else { return };
        let (Some((there, target)), Some(place)) = (self.responder(qp), qp.peer.and_then(|p| p.place)) else {
            self.hosts[host as usize].counters.dropped += 1;
            return self.lose(host, id, now, q);
        };
        let answered = segment.kind.answered();
        let back = self.hosts[host as usize].nic.ack.0 + place.back;
        let verdict = if segment.executed && segment.kind != Kind::Read {
            Ok(())
        } else {
            self.touch(there, now);
            self.work(host, id, &segment, there, target, now, q)
        };
        // ACKs and NAKs are cumulative: this one stands for those that a dead link swallowed.
        let cqe = self.hosts[host as usize].nic.send_cqe.0;
        if let Some(qp) = self.hosts[host as usize].qp(id) {
            let (before, acked) = ((number - qp.head) as usize, (now + back).max(qp.last_ack));
            let mut seen = false;
            for earlier in qp.sq.range_mut(..before).filter(|s| s.acked == Time::NEVER) {
                earlier.acked = acked;
                seen |= earlier.signaled || earlier.kind.answered();
            }
            if seen {
                qp.last_ack = acked;
                q.at(acked + cqe, FabricEvent(Inner::Acked { host, qp: id }));
            }
        }
        match verdict {
            Ok(()) => {
                let own = &mut self.hosts[host as usize];
                own.counters.bytes += if segment.executed { 0 } else { segment.load.bytes };
                let Some(qp) = own.qp(id) else { return };
                let acked = if answered { now } else { now + back }.max(qp.last_ack);
                qp.last_ack = acked;
                (qp.retries, qp.rnr_retries) = (qp.rts.retry_cnt, qp.rts.rnr_retry);
                if let Some(segment) = qp.segment(number) {
                    (segment.executed, segment.acked) = (true, acked);
                }
                if segment.signaled || answered {
                    q.at(acked + cqe, FabricEvent(Inner::Acked { host, qp: id }));
                }
            }
            Err(Refusal::NotReady(wait)) => {
                self.hosts[host as usize].counters.rnr_naks += 1;
                let Some(qp) = self.halt(host, id, number, now) else { return };
                let epoch = qp.epoch;
                let requests = segment.load.requests;
                if let Some(segment) = qp.segment(number) {
                    segment.placed = segment.kind == Kind::Write;
                }
                if qp.rnr_retries == 0 {
                    let (index, status) = (requests - 1, Status::RnrRetryExc);
                    q.at(now + back, FabricEvent(Inner::Nak { host, qp: id, epoch, index, status }));
                } else {
                    // 7 is for ever (InfiniBand spec 9.7.5.2.8).
                    qp.rnr_retries -= u8::from(qp.rnr_retries != 7);
                    q.at(now + back + wait, FabricEvent(Inner::Retry { host, qp: id, epoch }));
                }
            }
            Err(Refusal::Fault(fault)) => {
                let Some(qp) = self.halt(host, id, number, now) else { return };
                let epoch = qp.epoch;
                let (index, status) = (fault.index, fault.requester);
                q.at(now + back, FabricEvent(Inner::Nak { host, qp: id, epoch, index, status }));
            }
        }
    }

    /// The responder's side of a segment that arrived whole.
    #[allow(clippy::too_many_arguments)]
    fn work(
        &mut self,
        host: u32,
        id: QpId,
        segment: &Segment,
        there: u32,
        target: QpId,
        now: Time,
        q: &mut impl Schedule,
    ) -> Result<(), Refusal> {
        let consumes = segment.kind == Kind::Send || segment.imm.is_some();
        let responder = &self.hosts[there as usize];
        let Some(rqp) = responder.qp_ref(target) else { return Err(Refusal::NotReady(Span(0))) };
        let (rport, access, Some(peer)) = (rqp.port, rqp.access, rqp.peer) else {
            return Err(Refusal::NotReady(Span(0)));
        };
        let mut fault = None;
        if segment.kind.answered() {
            let most = u64::from(peer.rtr.max_dest_rd_atomic);
            let open = self.hosts[host as usize].qp_ref(id).map_or(0, |qp| qp.answers);
            if open > most {
                let own = segment.window(self.hosts[host as usize].qp_ref(id));
                let index = most.saturating_sub(open - own);
                fault = Some(Fault { index, requester: Status::RemInvReq, receive: None, remote: true });
            }
        }
        let receive = if consumes { responder.next_receive(rqp) } else { None };
        let ready = !consumes || receive.is_some();
        // Only a SEND looks at the receive's ranges.
        let ranges = if segment.kind == Kind::Send {
            receive.map(<[_]>::to_vec).unwrap_or_default()
        } else {
            Vec::new()
        };
        if fault.is_none() && !segment.placed && (ready || segment.kind == Kind::Write) {
            fault = self.execute(host, id, segment, (there, rport), access, &ranges);
        }
        if let Some(fault) = fault {
            if fault.remote {
                self.responder_fails(there, target, &fault, now);
            }
            return Err(Refusal::Fault(fault));
        }
        if !ready {
            return Err(Refusal::NotReady(rnr_delay(peer.rtr.min_rnr_timer)));
        }
        if consumes {
            let bytes = match self.hosts[host as usize].qp_ref(id) {
                Some(qp) => host::last_bytes(qp, segment),
                None => 0,
            };
            self.receive(there, target, segment, bytes, now, q);
        }
        Ok(())
    }

    /// A message consumed a receive: its completion is on its way.
    fn receive(
        &mut self,
        there: u32,
        target: QpId,
        segment: &Segment,
        bytes: u32,
        now: Time,
        q: &mut impl Schedule,
    ) {
        let own = &mut self.hosts[there as usize];
        let Some(wr) = own.consume(target) else { return };
        let opcode = if segment.kind == Kind::Send { Opcode::Recv } else { Opcode::RecvWithImm };
        let at = now + own.nic.recv_cqe.0;
        let done = Done { opcode, bytes, imm: segment.imm };
        if let Some(qp) = own.qp(target) {
            qp.arrived.push_back(Pending { at, id: wr, done });
            q.at(at, FabricEvent(Inner::Received { host: there, qp: target }));
        }
    }

    fn execute(
        &mut self,
        host: u32,
        id: QpId,
        segment: &Segment,
        (there, remote_port): (u32, PortId),
        access: engine::fabric::Access,
        receive: &[engine::fabric::Sge],
    ) -> Option<Fault> {
        let lanes = &mut self.lanes;
        let mut run = |qp: &Qp, sides: Sides<'_>| {
            let mtu = u64::from(qp.mtu());
            let mut ends = Ends { sides, local_port: qp.port, remote_port, access, mtu };
            exec::execute(qp, segment, &mut ends, lanes, receive, None).err()
        };
        if host == there {
            let (qp, memory) = self.hosts[host as usize].qp_and_memory(id)?;
            return run(qp, Sides { local: Local::Same, remote: memory });
        }
        let [own, other] = self.hosts.get_disjoint_mut([host as usize, there as usize]).ok()?;
        let (qp, memory) = own.qp_and_memory(id)?;
        run(qp, Sides { local: Local::Own(memory), remote: &mut other.memory })
    }

    /// The responder found a request wrong: its queue pair fails too.
    fn responder_fails(&mut self, there: u32, target: QpId, fault: &Fault, now: Time) {
        let own = self.touch(there, now);
        if let Some(status) = fault.receive
            && let Some(wr) = own.consume(target)
            && let Some(mut qp) = own.take_qp(target)
        {
            own.deliver(&mut qp, true);
            let cq = qp.spec.recv_cq;
            own.put_qp(qp);
            own.fail_receive(target, cq, wr, status);
        }
        own.fail(target, None);
        own.push_event(Event::QpFatal(target));
    }

    // ---- what queue pairs leave behind ----

    /// A queue pair left its connection. What had left its NIC still arrives; answers that its peer waited for do not.
    fn bury(&mut self, host: u32, mut gone: Box<Gone>, now: Time, q: &mut impl Schedule) {
        let mut torn = None;
        if let Some(flow) = gone.qp.flow.take() {
            self.changed = true;
            let served = self.net.cancel(now.0, flow).unwrap_or(0.0);
            let nic = &self.hosts[host as usize].nic;
            let link = self.hosts[host as usize].ports[gone.qp.port.index()].link_layer;
            let number = gone.qp.next;
            if let Some(segment) = number.checked_sub(gone.qp.head).and_then(|i| gone.qp.sq.get(i as usize)) {
                let wire = segment.rest(&gone.qp, nic, link);
                let share = if wire == 0 { 0.0 } else { (served / wire as f64).clamp(0.0, 1.0) };
                if !segment.kind.answered() && !segment.placed {
                    torn = Some((number, (segment.load.bytes as f64 * share) as u64));
                }
            }
        }
        if let Some((there, peer)) = self.responder_of_gone(&gone.qp) {
            let waits = |qp: &Qp| {
                qp.flow.is_some()
                    && qp.sq.get((qp.next - qp.head) as usize).is_some_and(|s| s.kind.answered())
                    && qp.state == QpState::Rts
                    && qp.talks_to(&gone.qp.end)
            };
            if self.hosts[there as usize].qp_ref(peer).is_some_and(waits) {
                self.touch(there, now);
                self.lose(there, peer, now, q);
            }
        }
        let Some(place) = gone.qp.peer.and_then(|p| p.place) else { return };
        if gone.memory.is_none() {
            return;
        }
        let own = &self.hosts[host as usize].nic;
        let way = own.transmit.0 + place.out + own.receive.0;
        let slot = self.gone_free.pop().unwrap_or(self.gone.len() as u32);
        let left = (gone.qp.next - gone.qp.head) as usize;
        for (i, segment) in gone.qp.sq.iter().take(left).enumerate() {
            if segment.left && !segment.executed && !segment.kind.answered() {
                let number = gone.qp.head + i as u64;
                let event = Inner::Remains { gone: slot, number, limit: None };
                q.at(segment.arrives.max(now), FabricEvent(event));
                gone.pending += 1;
            }
        }
        if let Some((number, limit)) = torn {
            q.at(now + way, FabricEvent(Inner::Remains { gone: slot, number, limit: Some(limit) }));
            gone.pending += 1;
        }
        if gone.pending == 0 {
            if (slot as usize) < self.gone.len() {
                self.gone_free.push(slot);
            }
        } else if slot as usize == self.gone.len() {
            self.gone.push(Some(gone));
        } else {
            self.gone[slot as usize] = Some(gone);
        }
    }

    fn responder_of_gone(&self, qp: &Qp) -> Option<(u32, QpId)> {
        let peer = qp.peer?;
        let place = peer.place?;
        Some((place.host, self.hosts[place.host as usize].by_number(peer.end.qpn)?))
    }

    /// What a failed queue pair had sent arrives.
    fn remains(&mut self, slot: u32, number: u64, limit: Option<u64>, now: Time, q: &mut impl Schedule) {
        let Some(mut gone) = self.gone[slot as usize].take() else { return };
        self.remains_of(&gone, number, limit, now, q);
        gone.pending -= 1;
        if gone.pending > 0 {
            self.gone[slot as usize] = Some(gone);
        } else {
            self.gone_free.push(slot);
        }
    }

    fn remains_of(&mut self, gone: &Gone, number: u64, limit: Option<u64>, now: Time, q: &mut impl Schedule) {
        let Some((there, target)) = self.responder(&gone.qp) else { return };
        let Some(memory) = &gone.memory else { return };
        let Some(&segment) = number.checked_sub(gone.qp.head).and_then(|i| gone.qp.sq.get(i as usize)) else {
            return;
        };
        self.touch(there, now);
        let own = &mut self.hosts[there as usize];
        let Some(rqp) = own.qp_ref(target) else { return };
        let (remote_port, access) = (rqp.port, rqp.access);
        let consumes = segment.kind == Kind::Send || segment.imm.is_some();
        let receive = own.next_receive(rqp).map(<[_]>::to_vec);
        if segment.kind == Kind::Send && receive.is_none() {
            return;
        }
        if !segment.placed {
            let mtu = u64::from(gone.qp.mtu());
            let sides = Sides { local: Local::Then(memory), remote: &mut own.memory };
            let mut ends = Ends { sides, local_port: gone.qp.port, remote_port, access, mtu };
            let ranges = receive.as_deref().unwrap_or(&[]);
            if let Err(fault) = exec::execute(&gone.qp, &segment, &mut ends, &mut self.lanes, ranges, limit) {
                if fault.remote && limit.is_none() {
                    self.responder_fails(there, target, &fault, now);
                }
                return;
            }
        }
        if consumes && limit.is_none() && receive.is_some() {
            let bytes = host::last_bytes(&gone.qp, &segment);
            self.receive(there, target, &segment, bytes, now, q);
        }
    }
}

/// Why a segment was not worked.
enum Refusal {
    /// No receive; try again after this.
    NotReady(Span),
    Fault(Fault),
}

impl Segment {
    /// Bytes that have to go over the wire: all, or the last packet if the data is in place already.
    fn rest(&self, qp: &Qp, nic: &NicProfile, link: LinkLayer) -> u64 {
        if self.placed && self.kind == Kind::Write {
            self.wire.min(
                u64::from(qp.mtu()) + u64::from(nic.packet_header(link)) + u64::from(nic.headers.immediate),
            )
        } else {
            self.wire
        }
    }

    /// Answers of it that are outstanding at a time.
    fn window(&self, qp: Option<&Qp>) -> u64 {
        self.load.requests.min(qp.map_or(0, |q| u64::from(q.rts.max_rd_atomic)))
    }
}

impl Qp {
    /// READs and atomics that left and are not answered.
    fn outstanding(&self) -> u64 {
        if self.reads == 0 {
            return 0;
        }
        let left = (self.next - self.head) as usize;
        let most = u64::from(self.rts.max_rd_atomic);
        let open = self.sq.iter().take(left).filter(|s| s.kind.answered() && s.acked == Time::NEVER);
        open.map(|s| s.load.requests.min(most)).sum()
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
