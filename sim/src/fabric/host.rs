//! One host's end of the simulated fabric.

use super::copy::{CopyCosts, Copying};
use super::counters::{Counters, Objects};
use super::faults::HostFaults;
use super::memory::Memory;
use super::mistakes::Mistakes;
use super::post::ids;
use super::qp::{Peer, Place, Qp, RecvQueue};
use crate::net::Topology;
use crate::nic::{NicProfile, cost};
use engine::fabric::{
    Completion, Done, Endpoint, Error, Event, Failed, Gid, Limits, Opcode, Port, QpState, Result, SrqSpec,
    Status, Step,
};
use engine::id::{CqId, PortId, QpId, WrId};
use engine::map::Map;
use engine::time::{Span, Time};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::collections::VecDeque;
use std::sync::Arc;

/// Which ports there are and how they hang together; the same for all hosts.
#[derive(Debug)]
pub(super) struct Wiring {
    pub(super) topology: Topology,
    /// Host and port of each port of the network.
    pub(super) ports: Vec<(u32, PortId)>,
}

/// The address of a port of the network, as an IPv4-mapped GID in 10.0.0.0/8.
pub(super) fn gid(global: u32) -> Gid {
    let [_, a, b, c] = global.to_be_bytes();
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, a, b, c]
}

impl Wiring {
    /// The port of the network that an address names.
    pub(super) fn port(&self, end: &Endpoint) -> Option<u32> {
        let global = match end.gid {
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, a, b, c] => u32::from_be_bytes([0, a, b, c]),
            _ => u32::from(end.lid).checked_sub(1)?,
        };
        ((global as usize) < self.ports.len()).then_some(global)
    }
}

/// What a completion queue holds: the completion, and how many places of the send queue it gives back when polled.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) completion: Completion,
    pub(super) slots: u32,
}

#[derive(Debug)]
pub(super) struct Cq {
    pub(super) port: PortId,
    pub(super) depth: u32,
    pub(super) entries: VecDeque<Entry>,
    /// Completions that a fault holds back, and until when.
    pub(super) late: VecDeque<(Time, Entry)>,
    pub(super) users: u32,
    pub(super) overrun: bool,
    pub(super) touched: bool,
}

#[derive(Debug)]
pub(super) struct Srq {
    pub(super) port: PortId,
    pub(super) spec: SrqSpec,
    pub(super) queue: RecvQueue,
    /// The armed limit; 0 for none.
    pub(super) limit: u32,
    pub(super) users: u32,
}

/// What calls leave for the coupler to do.
#[derive(Debug)]
pub(super) enum Todo {
    /// There may be something new to serve.
    Serve(QpId),
    /// A queue pair left its connection.
    Gone(Box<Gone>),
    /// A copy has started and will be over then.
    Copy { slot: u32, over: Time },
    /// Completions that a fault holds back are due then.
    Late(CqId, Time),
}

/// A queue pair as it was when it failed or went: what had left its NIC still arrives.
#[derive(Debug)]
pub(super) struct Gone {
    pub(super) qp: Qp,
    pub(super) memory: Option<Memory>,
    /// Arrivals that are still to come.
    pub(super) pending: u32,
}

/// One host's NICs, memory and queue pairs. Calls only change this host and leave doorbells behind, which
/// [`Fabrics::after_call`](super::Fabrics::after_call) works off.
#[derive(Debug)]
pub struct SimFabric {
    pub(super) host: u32,
    pub(super) first_port: u32,
    pub(super) ports: Vec<Port>,
    pub(super) nic: Arc<NicProfile>,
    pub(super) limits: Limits,
    pub(super) memory: Memory,
    pub(super) cqs: Vec<Option<Cq>>,
    pub(super) srqs: Vec<Option<Srq>>,
    pub(super) qps: Vec<Option<Box<Qp>>>,
    pub(super) qpns: Map<u32, QpId>,
    pub(super) next_qpn: u32,
    pub(super) live_qps: u32,
    pub(super) psns: ChaCha8Rng,
    pub(super) events: VecDeque<Event>,
    pub(super) wiring: Arc<Wiring>,
    pub(super) now: Time,
    /// CPU time of the calls since `begin_call`.
    pub(super) cpu: Span,
    /// The share of it that went into polls which found nothing.
    pub(super) spun: Span,
    pub(super) todo: Vec<Todo>,
    pub(super) touched: Vec<CqId>,
    pub(super) overruns: Vec<CqId>,
    pub(super) counters: Counters,
    /// Per port: connected queue pairs, registered pages, when its message engine is free.
    pub(super) connected: Vec<u64>,
    pub(super) pages: Vec<u64>,
    pub(super) engine: Vec<Time>,
    pub(super) mistakes: Mistakes,
    pub(super) copy_costs: CopyCosts,
    /// By copy engine: when it is free.
    pub(super) copy_engines: Vec<Time>,
    pub(super) copying: Vec<Option<Copying>>,
    pub(super) faults: HostFaults,
}

fn stream(seed: u64, purpose: u64, host: u32) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(purpose << 32 | u64::from(host));
    rng
}

const PSNS: u64 = 1;
const KEYS: u64 = 2;

pub(super) fn find<'a, T>(table: &'a [Option<T>], at: usize, what: &'static str) -> Result<&'a T> {
    table.get(at).and_then(Option::as_ref).ok_or(Error::NoSuch(what))
}

pub(super) fn find_mut<'a, T>(
    table: &'a mut [Option<T>],
    at: usize,
    what: &'static str,
) -> Result<&'a mut T> {
    table.get_mut(at).and_then(Option::as_mut).ok_or(Error::NoSuch(what))
}

pub(super) fn check(ok: bool, what: &'static str, value: u64, right: &'static str) -> Result<()> {
    if ok { Ok(()) } else { Err(Error::Invalid { what, value, right }) }
}

impl SimFabric {
    pub(super) fn new(
        host: u32,
        first_port: u32,
        ports: Vec<Port>,
        nic: Arc<NicProfile>,
        wiring: Arc<Wiring>,
        seed: u64,
    ) -> Self {
        let n = ports.len();
        let base = 0x1000_0000_0000 + (u64::from(host % 1024) << 36);
        Self {
            host,
            first_port,
            ports,
            limits: nic.limits(),
            nic,
            memory: Memory::new(base, stream(seed, KEYS, host)),
            cqs: Vec::new(),
            srqs: Vec::new(),
            qps: Vec::new(),
            qpns: Map::default(),
            next_qpn: 0x100 + host * 37,
            live_qps: 0,
            psns: stream(seed, PSNS, host),
            events: VecDeque::new(),
            wiring,
            now: Time::ZERO,
            cpu: Span(0),
            spun: Span(0),
            todo: Vec::new(),
            touched: Vec::new(),
            overruns: Vec::new(),
            counters: Counters::default(),
            connected: vec![0; n],
            pages: vec![0; n],
            engine: vec![Time::ZERO; n],
            mistakes: Mistakes::default(),
            copy_costs: CopyCosts::default(),
            copy_engines: Vec::new(),
            copying: Vec::new(),
            faults: HostFaults::new(n),
        }
    }

    /// Which host of the cluster this is.
    pub fn host(&self) -> usize {
        self.host as usize
    }

    /// What it did and saw since the start.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// What exists now.
    pub fn objects(&self) -> Objects {
        let (buffers, memory_regions) = self.memory.objects();
        let qps = || self.qps.iter().flatten();
        let srqs = || self.srqs.iter().flatten();
        Objects {
            buffers,
            memory_regions,
            queue_pairs: qps().count(),
            completion_queues: self.cqs.iter().flatten().count(),
            shared_receive_queues: srqs().count(),
            receives: qps().map(|q| u64::from(q.rq.posted)).sum::<u64>()
                + srqs().map(|s| u64::from(s.queue.posted)).sum::<u64>(),
            sends: qps().map(|q| u64::from(q.used)).sum(),
        }
    }

    /// What is posted on a port and not completed: payload bytes, and requests that occupy a send queue.
    pub fn outstanding(&self, port: PortId) -> (u64, u64) {
        let qps = self.qps.iter().flatten().filter(|qp| qp.port == port);
        qps.fold((0, 0), |(bytes, sends), qp| {
            let posted: u64 = qp.sq.iter().map(|segment| segment.load.bytes).sum();
            (bytes + posted, sends + u64::from(qp.used))
        })
    }

    pub(super) fn global(&self, port: PortId) -> u32 {
        self.first_port + port.0
    }

    pub(super) fn qp(&mut self, id: QpId) -> Option<&mut Qp> {
        self.qps.get_mut(id.index())?.as_deref_mut()
    }
    pub(super) fn qp_ref(&self, id: QpId) -> Option<&Qp> {
        self.qps.get(id.index())?.as_deref()
    }
    pub(super) fn qp_and_memory(&mut self, id: QpId) -> Option<(&Qp, &mut Memory)> {
        Some((self.qps.get(id.index())?.as_deref()?, &mut self.memory))
    }
    pub(super) fn by_number(&self, qpn: u32) -> Option<QpId> {
        self.qpns.get(&qpn).copied()
    }
    pub(super) fn take_qp(&mut self, id: QpId) -> Option<Box<Qp>> {
        self.qps.get_mut(id.index())?.take()
    }
    pub(super) fn put_qp(&mut self, qp: Box<Qp>) {
        let at = qp.id.index();
        self.qps[at] = Some(qp);
    }
    /// Its queue pairs, in the order of their ids.
    pub fn queue_pairs(&self) -> Vec<QpId> {
        self.qp_ids()
    }
    pub(super) fn qp_ids(&self) -> Vec<QpId> {
        self.qps.iter().flatten().map(|q| q.id).collect()
    }
    pub(super) fn push_event(&mut self, event: Event) {
        self.events.push_back(event);
    }
    pub(super) fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    /// Time that one request occupies a port's message engine.
    pub(super) fn nic_message(&self, port: PortId) -> Span {
        cost::nic_message(&self.nic, self.connected[port.index()], self.pages[port.index()])
    }

    /// Whether a call left something to do.
    pub(super) fn is_changed(&self) -> bool {
        !(self.todo.is_empty()
            && self.touched.is_empty()
            && self.overruns.is_empty()
            && self.events.is_empty())
    }

    /// Completion queues with something new since the last call.
    pub(super) fn take_touched(&mut self, mut each: impl FnMut(CqId)) {
        for cq in self.touched.drain(..) {
            if let Some(Some(queue)) = self.cqs.get_mut(cq.index()) {
                queue.touched = false;
                if !queue.entries.is_empty() {
                    each(cq);
                }
            }
        }
    }

    pub(super) fn push_cqe(&mut self, cq: CqId, completion: Completion, slots: u32) {
        if let Some(entry) = self.keep_late(cq, Entry { completion, slots }) {
            self.put_cqe(cq, entry);
        }
    }

    pub(super) fn put_cqe(&mut self, cq: CqId, entry: Entry) {
        let Some(Some(queue)) = self.cqs.get_mut(cq.index()) else { return };
        if queue.overrun {
            return;
        }
        if queue.entries.len() as u64 >= u64::from(queue.depth) {
            queue.overrun = true;
            self.overruns.push(cq);
            return;
        }
        self.counters.completions += 1;
        queue.entries.push_back(entry);
        if !queue.touched {
            queue.touched = true;
            self.touched.push(cq);
        }
    }

    /// Queue pairs on overrun completion queues fail; their own flushes may overrun others.
    pub(super) fn settle_overruns(&mut self) {
        while let Some(cq) = self.overruns.pop() {
            self.events.push_back(Event::CqOverrun(cq));
            for id in self.qp_ids() {
                if self.qp_ref(id).is_some_and(|q| q.spec.send_cq == cq || q.spec.recv_cq == cq) {
                    self.fail(id, None);
                }
            }
        }
    }

    /// The oldest segment succeeded: its places are accounted for, and it completes if it is signalled.
    pub(super) fn complete_front(&mut self, qp: &mut Qp) {
        let Some(&segment) = qp.sq.front() else { return };
        qp.silent += segment.load.requests as u32;
        if segment.signaled {
            use super::qp::Kind as K;
            let (opcode, answer) = match segment.kind {
                K::Write => (Opcode::Write, false),
                K::Send => (Opcode::Send, false),
                K::Read => (Opcode::Read, true),
                K::FetchAdd(_) => (Opcode::FetchAdd, true),
                K::CompareSwap { .. } => (Opcode::CompareSwap, true),
            };
            let bytes = if answer { last_bytes(qp, &segment) } else { 0 };
            let done = Done { opcode, bytes, imm: None };
            let completion = Completion { id: segment.last, qp: qp.id, result: Ok(done) };
            let slots = std::mem::take(&mut qp.silent);
            let slots = if self.mistakes.unsignaled_places_kept { 1 } else { slots };
            self.push_cqe(qp.spec.send_cq, completion, slots);
        }
        qp.pop_segment();
        qp.next = qp.next.max(qp.head);
    }

    /// Completes what was acknowledged by now.
    pub(super) fn reap(&mut self, qp: &mut Qp) {
        while qp.sq.front().is_some_and(|s| s.acked <= self.now) {
            self.complete_front(qp);
        }
    }

    /// Makes arrived messages visible: those due by now, or all.
    pub(super) fn deliver(&mut self, qp: &mut Qp, all: bool) {
        while let Some(p) = qp.arrived.front().copied() {
            if !all && p.at > self.now {
                break;
            }
            qp.arrived.pop_front();
            let completion = Completion { id: p.id, qp: qp.id, result: Ok(p.done) };
            self.push_cqe(qp.spec.recv_cq, completion, 0);
        }
    }

    /// Every request of the send queue completes in error, the first one with `status`, but for `skip` that succeeded.
    pub(super) fn flush_sends(&mut self, qp: &mut Qp, mut skip: u64, mut status: Status) {
        let mut silent = qp.silent;
        let mut backwards = Vec::new();
        while let Some(segment) = qp.sq.front().copied() {
            for id in ids(qp.works_of(&segment)) {
                if skip > 0 {
                    skip -= 1;
                    silent += 1;
                    continue;
                }
                let result = Err(Failed { status, vendor: vendor(status) });
                let slots = std::mem::take(&mut silent) + 1;
                let completion = Completion { id, qp: qp.id, result };
                if self.mistakes.silent_errors
                    && status != Status::WrFlush
                    && !(segment.signaled && id == segment.last)
                {
                    silent = slots;
                } else if self.mistakes.flush_reversed {
                    backwards.push((completion, slots));
                } else {
                    self.push_cqe(qp.spec.send_cq, completion, slots);
                }
                status = Status::WrFlush;
            }
            qp.pop_segment();
        }
        for (completion, slots) in backwards.into_iter().rev() {
            self.push_cqe(qp.spec.send_cq, completion, slots);
        }
        qp.silent = silent;
        qp.next = qp.head;
    }

    pub(super) fn flush_receives(&mut self, qp: &mut Qp, mut status: Status) {
        while let Some(id) = qp.rq.pop(None) {
            if self.mistakes.receives_not_flushed {
                continue;
            }
            let result = Err(Failed { status, vendor: vendor(status) });
            self.push_cqe(qp.spec.recv_cq, Completion { id, qp: qp.id, result }, 0);
            status = Status::WrFlush;
        }
    }

    /// A receive completes in error.
    pub(super) fn fail_receive(&mut self, qp: QpId, cq: CqId, id: WrId, status: Status) {
        let result = Err(Failed { status, vendor: vendor(status) });
        self.push_cqe(cq, Completion { id, qp, result }, 0);
    }

    /// Takes the oldest receive for a message on this queue pair.
    pub(super) fn consume(&mut self, qp: QpId) -> Option<WrId> {
        if self.faults.dry {
            return None;
        }
        let qp = self.qps.get_mut(qp.index())?.as_mut()?;
        let Some(id) = qp.spec.srq else { return qp.rq.pop(None) };
        let srq = self.srqs.get_mut(id.index())?.as_mut()?;
        let wr = srq.queue.pop(None);
        if srq.limit > 0 && srq.queue.posted < srq.limit {
            srq.limit = 0;
            self.events.push_back(Event::SrqLimit(id));
        }
        wr
    }

    /// The ranges of the oldest receive, if there is a receive.
    pub(super) fn next_receive<'a>(&'a self, qp: &'a Qp) -> Option<&'a [engine::fabric::Sge]> {
        if self.faults.dry {
            return None;
        }
        let queue = match qp.spec.srq {
            Some(srq) => &self.srqs.get(srq.index())?.as_ref()?.queue,
            None => &qp.rq,
        };
        queue.runs.front().map(|run| &run.sges[..])
    }

    /// A queue pair goes to ERR. With `failure`, that request (counted from the oldest not acknowledged) is the one at fault.
    /// Everything that will ever complete on it has completed when this returns.
    pub(super) fn fail(&mut self, id: QpId, failure: Option<(Status, u64)>) {
        let Some(mut qp) = self.take_qp(id) else { return };
        if !matches!(qp.state, QpState::Reset | QpState::Err) {
            self.deliver(&mut qp, true);
            self.reap(&mut qp);
            self.leave(&mut qp);
            qp.state = QpState::Err;
            let (status, skip) = failure.unwrap_or((Status::WrFlush, 0));
            self.flush_sends(&mut qp, skip, status);
            self.flush_receives(&mut qp, Status::WrFlush);
            if qp.spec.srq.is_some() {
                self.events.push_back(Event::LastWqeReached(id));
            }
        }
        self.put_qp(qp);
    }

    /// The queue pair leaves its connection: nothing of it is served any more, but what had left its NIC arrives.
    pub(super) fn leave(&mut self, qp: &mut Qp) {
        if matches!(qp.state, QpState::Rtr | QpState::Rts) {
            self.connected[qp.port.index()] -= 1;
            let moving = qp.sq.iter().take((qp.next - qp.head) as usize + usize::from(qp.flow.is_some()));
            let moving = moving.filter(|s| !s.executed && !s.kind.answered()).copied().collect::<Vec<_>>();
            let mut then = Qp::new(qp.id, qp.port, qp.spec, qp.end);
            (then.peer, then.flow, then.head, then.next) = (qp.peer, qp.flow, qp.head, qp.next);
            let mut memory = None;
            if !moving.is_empty() {
                (then.sq, then.works, then.sges) = (qp.sq.clone(), qp.works.clone(), qp.sges.clone());
                (then.work_head, then.sge_head) = (qp.work_head, qp.sge_head);
                let mut buffers = Vec::new();
                for segment in &moving {
                    self.sources(qp, segment, &mut buffers);
                }
                buffers.sort_unstable();
                buffers.dedup();
                memory = Some(self.memory.snapshot(&buffers));
            }
            self.todo.push(Todo::Gone(Box::new(Gone { qp: then, memory, pending: 0 })));
        }
        qp.epoch = qp.epoch.wrapping_add(1);
        (qp.flow, qp.stalled, qp.answers) = (None, false, 0);
    }

    pub(super) fn sources(&self, qp: &Qp, segment: &super::qp::Segment, buffers: &mut Vec<u32>) {
        use super::qp::Work;
        for work in qp.works_of(segment) {
            match work {
                Work::One { sge, sges, .. } => {
                    let keys = qp.sges_of(*sge, *sges).map(|s| s.lkey);
                    buffers.extend(keys.filter_map(|key| self.memory.buffer_of(key)));
                }
                Work::Many { local, .. } => buffers.extend(self.memory.buffer_of(local.1)),
            }
        }
    }

    pub(super) fn discard(&mut self, qp: &mut Qp) {
        self.leave(qp);
        while qp.pop_segment().is_some() {}
        (qp.used, qp.silent, qp.next) = (0, 0, qp.head);
        qp.rq = RecvQueue::default();
        qp.arrived.clear();
        for cq in [qp.spec.send_cq, qp.spec.recv_cq] {
            if let Some(Some(queue)) = self.cqs.get_mut(cq.index()) {
                queue.entries.retain(|e| e.completion.qp != qp.id);
                queue.late.retain(|(_, e)| e.completion.qp != qp.id);
            }
        }
    }

    pub(super) fn step(&mut self, qp: &mut Qp, step: Step) -> Result<()> {
        use QpState as S;
        let state = qp.state;
        let refused = Err(Error::State { what: "the queue pair", state });
        match step {
            Step::Reset => {
                self.discard(qp);
                qp.state = S::Reset;
                qp.peer = None;
            }
            Step::Err => {
                if state == S::Reset {
                    return refused;
                }
            }
            Step::Init(access) => {
                if !matches!(state, S::Reset | S::Init) {
                    return refused;
                }
                self.awake(qp.port, "ibv_modify_qp")?;
                qp.access = access;
                qp.end.psn = self.psns.next_u32() & 0xff_ffff;
                qp.state = S::Init;
            }
            Step::Rtr(rtr) => {
                if state != S::Init {
                    return refused;
                }
                self.awake(qp.port, "ibv_modify_qp")?;
                let end = rtr.peer;
                check(end.qpn <= 0xff_ffff, "peer qpn", end.qpn.into(), "24 bits")?;
                check(end.psn <= 0xff_ffff, "peer psn", end.psn.into(), "24 bits")?;
                let mtu = end.mtu.is_power_of_two() && (256..=4096).contains(&end.mtu);
                check(mtu, "peer mtu", end.mtu.into(), "256, 512, 1024, 2048 or 4096")?;
                let reads = rtr.max_dest_rd_atomic;
                let right = "at most the device's max_rd_atomic";
                check(reads <= self.limits.max_rd_atomic, "max_dest_rd_atomic", reads.into(), right)?;
                check(rtr.min_rnr_timer.0 <= 31, "min_rnr_timer", rtr.min_rnr_timer.0.into(), "0 to 31")?;
                let place = self.place(qp.port, &end, qp.end.qpn);
                qp.peer = Some(Peer { end, place, rtr });
                qp.state = S::Rtr;
                self.connected[qp.port.index()] += 1;
            }
            Step::Rts(rts) => {
                if state != S::Rtr {
                    return refused;
                }
                self.awake(qp.port, "ibv_modify_qp")?;
                check(rts.timeout <= 31, "timeout", rts.timeout.into(), "0 to 31")?;
                check(rts.retry_cnt <= 7, "retry_cnt", rts.retry_cnt.into(), "0 to 7")?;
                check(rts.rnr_retry <= 7, "rnr_retry", rts.rnr_retry.into(), "0 to 7")?;
                let right = "at most the device's max_rd_atomic";
                let reads = rts.max_rd_atomic;
                check(reads <= self.limits.max_rd_atomic, "max_rd_atomic", reads.into(), right)?;
                qp.rts = rts;
                (qp.retries, qp.rnr_retries) = (rts.retry_cnt, rts.rnr_retry);
                qp.state = S::Rts;
            }
        }
        Ok(())
    }

    /// Where an address leads from a port. `label` picks among paths of equal cost, as the UDP source port of RoCEv2 does.
    pub(super) fn place(&self, port: PortId, end: &Endpoint, label: u32) -> Option<Place> {
        let (own, global) = (self.global(port), self.wiring.port(end)?);
        let out = self.wiring.topology.path(own, global, label)?.latency();
        let back = self.wiring.topology.path(global, own, label)?.latency();
        let (host, port) = self.wiring.ports[global as usize];
        Some(Place { host, port, global, out: Span(out), back: Span(back) })
    }

    pub(super) fn pages(&self, bytes: u64) -> u64 {
        bytes.div_ceil(self.nic.page_bytes)
    }

    pub(super) fn known_port(&self, port: PortId) -> Result<()> {
        if port.index() < self.ports.len() { Ok(()) } else { Err(Error::NoSuch("port")) }
    }
}

/// Bytes of a segment's last request.
pub(super) fn last_bytes(qp: &Qp, segment: &super::qp::Segment) -> u32 {
    use super::qp::Work;
    match qp.works_of(segment).last() {
        Some(Work::One { data: Some(data), .. }) => data.len() as u32,
        Some(Work::One { sge, sges, .. }) => qp.sges_of(*sge, *sges).map(|s| s.len).sum(),
        Some(Work::Many { plan, window, .. }) => {
            (plan.offset(window.end) - plan.offset(window.end - 1)) as u32
        }
        None => 0,
    }
}

/// The vendor's word of a failure: here the number of `enum ibv_wc_status`.
fn vendor(status: Status) -> u32 {
    match status {
        Status::LocLen => 1,
        Status::LocQpOp => 2,
        Status::LocProt => 4,
        Status::WrFlush => 5,
        Status::RemInvReq => 9,
        Status::RemAccess => 10,
        Status::RemOp => 11,
        Status::RetryExc => 12,
        Status::RnrRetryExc => 13,
    }
}
