//! Faults of ports, NICs and providers that an experiment injects.

use super::host::{Entry, Todo};
use super::{FabricEvent, Fabrics, Inner, Ready, Schedule, SimFabric};
use crate::net::{NetError, Network};
use engine::fabric::{Error, Event, Fabric as _, QpState};
use engine::id::{CqId, PortId, QpId};
use engine::time::{Span, Time};

/// What goes wrong with a port (true), or is right again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortFault {
    /// It has no link.
    Down(bool),
    /// It is out of service: its host hears that it is down, packets pass all the same.
    Drained(bool),
    /// Its NIC resets: its queue pairs fail, each with an event, and its link is down until the NIC is back.
    Reset(bool),
}

/// What is wrong with a port.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PortFaults {
    down: bool,
    drained: bool,
    reset: bool,
}

impl PortFaults {
    /// Whether packets get through.
    pub(super) fn passes(self) -> bool {
        !(self.down || self.reset)
    }
}

/// What is wrong with a host.
#[derive(Debug, Default)]
pub(super) struct HostFaults {
    pub(super) ports: Vec<PortFaults>,
    /// The number of the request to refuse in its chain, and of how many chains.
    refuse: (u64, u32),
    /// Rows of requests whose acknowledgements will never come.
    pub(super) unacknowledged: u32,
    /// How much later completions come.
    delay: Span,
    /// No receive can be used.
    pub(super) dry: bool,
}

impl HostFaults {
    pub(super) fn new(ports: usize) -> Self {
        Self { ports: vec![PortFaults::default(); ports], ..Self::default() }
    }

    /// Requests of a chain that the provider takes: all but if a fault says otherwise.
    pub(super) fn takes(&self) -> u64 {
        if self.refuse.1 > 0 { self.refuse.0 } else { u64::MAX }
    }

    pub(super) fn refused(&mut self) {
        self.refuse.1 = self.refuse.1.saturating_sub(1);
    }
}

impl SimFabric {
    pub(super) fn passes(&self, port: PortId) -> bool {
        self.faults.ports.get(port.index()).is_some_and(|p| p.passes())
    }

    /// Whether a port's NIC is there to be asked.
    pub(super) fn awake(&self, port: PortId, call: &'static str) -> Result<(), Error> {
        const EIO: i32 = 5;
        match self.faults.ports.get(port.index()) {
            Some(p) if p.reset => Err(Error::System { call, errno: EIO, advice: "" }),
            _ => Ok(()),
        }
    }

    /// Keeps a completion back if completions are late, and behind those that are. Gives back what is not kept.
    pub(super) fn keep_late(&mut self, cq: CqId, entry: Entry) -> Option<Entry> {
        let (now, delay) = (self.now, self.faults.delay);
        let Some(Some(queue)) = self.cqs.get_mut(cq.index()) else { return Some(entry) };
        let last = queue.late.back().map(|(at, _)| *at);
        if delay == Span(0) && last.is_none() {
            return Some(entry);
        }
        let at = (now + delay).max(last.unwrap_or(Time::ZERO));
        queue.late.push_back((at, entry));
        self.counters.late_completions += 1;
        self.todo.push(Todo::Late(cq, at));
        None
    }
}

impl Fabrics {
    /// A queue pair fails by itself: it goes to ERR, and [`Event::QpFatal`] says so.
    pub fn fail_qp(
        &mut self,
        host: usize,
        qp: QpId,
        now: Time,
        q: &mut impl Schedule,
        ready: &mut Vec<Ready>,
    ) {
        self.break_qp(host, qp, now);
        self.settle(now, q, ready);
    }

    fn break_qp(&mut self, host: usize, qp: QpId, now: Time) {
        let own = self.touch(host as u32, now);
        if own.qp_ref(qp).is_some_and(|p| !matches!(p.state, QpState::Reset | QpState::Err)) {
            own.fail(qp, None);
            own.push_event(Event::QpFatal(qp));
        }
    }

    /// Changes what is wrong with a port. What is on the way when packets stop to pass is lost, and so are ACKs; queue pairs go on at their next
    /// retry when packets pass again.
    pub fn port_fault(
        &mut self,
        host: usize,
        port: PortId,
        fault: PortFault,
        now: Time,
        q: &mut impl Schedule,
        ready: &mut Vec<Ready>,
    ) {
        if fault == PortFault::Reset(true) {
            for qp in self.hosts[host].qp_ids() {
                if self.hosts[host].qp_ref(qp).is_some_and(|p| p.port == port) {
                    self.break_qp(host, qp, now);
                }
            }
        }
        let own = self.touch(host as u32, now);
        if let Some(faults) = own.faults.ports.get_mut(port.index()) {
            let passed = faults.passes();
            match fault {
                PortFault::Down(down) => faults.down = down,
                PortFault::Drained(drained) => faults.drained = drained,
                PortFault::Reset(reset) => faults.reset = reset,
            }
            let (passes, up) = (faults.passes(), faults.passes() && !faults.drained);
            if std::mem::replace(&mut own.ports[port.index()].up, up) != up {
                own.push_event(if up { Event::PortUp(port) } else { Event::PortDown(port) });
            }
            if passed && !passes {
                let global = own.global(port);
                for h in 0..self.hosts.len() as u32 {
                    for id in self.hosts[h as usize].qp_ids() {
                        self.cut_off(h, id, global, now, q);
                    }
                }
            }
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

    /// Each packet that crosses a port's link is lost with this probability from now on; 0 for none.
    pub fn lose_packets(&mut self, host: usize, port: PortId, probability: f64) {
        let own = &self.hosts[host];
        if port.index() < own.ports.len() {
            let global = own.global(port) as usize;
            self.losses.set(global, probability);
        }
    }

    /// The provider refuses the request with this number of the next `times` chains that are long enough.
    pub fn refuse_posts(&mut self, host: usize, request: u32, times: u32) {
        self.hosts[host].faults.refuse = (request.into(), times);
    }

    /// The next `times` rows of WRITEs or SENDs of a host that are executed are never acknowledged.
    pub fn swallow_acks(&mut self, host: usize, times: u32) {
        let faults = &mut self.hosts[host].faults;
        faults.unacknowledged = faults.unacknowledged.saturating_add(times);
    }

    /// Completions of a host come so much later from now on.
    pub fn delay_completions(&mut self, host: usize, by: Span) {
        self.hosts[host].faults.delay = by;
    }

    /// No receive of a host can be used until they are given back.
    pub fn withhold_receives(&mut self, host: usize, withheld: bool) {
        self.hosts[host].faults.dry = withheld;
    }

    /// Completions that were late are due.
    pub(super) fn late(&mut self, host: u32, cq: CqId, now: Time) {
        let own = self.touch(host, now);
        while let Some(Some(queue)) = own.cqs.get_mut(cq.index())
            && queue.late.front().is_some_and(|(at, _)| *at <= now)
            && let Some((_, entry)) = queue.late.pop_front()
        {
            own.put_cqe(cq, entry);
        }
    }

    /// The process that uses a host's NICs dies: the system destroys its queue pairs and takes registrations and memory back. What had left
    /// the NICs still arrives; peers hear nothing.
    pub fn process_dies(&mut self, host: usize, now: Time, q: &mut impl Schedule, ready: &mut Vec<Ready>) {
        let own = self.touch(host as u32, now);
        for qp in own.qp_ids() {
            // It is there: nothing refuses to destroy it.
            let _ = own.destroy_qp(qp);
        }
        own.cqs.iter_mut().for_each(|cq| *cq = None);
        own.srqs.iter_mut().for_each(|srq| *srq = None);
        own.memory.clear();
        own.abandon_copies();
        own.pages.iter_mut().for_each(|pages| *pages = 0);
        own.touched.clear();
        own.overruns.clear();
        own.events.clear();
        self.settle(now, q, ready);
    }
}

/// [`Inner::Late`] for a completion queue.
pub(super) fn late_event(host: u32, cq: CqId) -> FabricEvent {
    FabricEvent(Inner::Late { host, cq })
}
