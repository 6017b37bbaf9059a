//! For an explorer of every order: what a pending event is, whether it still means anything, and what a state of all hosts is.
//!
//! Whoever owns the event queue may hand [`Fabrics::handle`] its events in another order than that of their times, as long as the
//! events of one [`Lane`] keep theirs and time never runs back. An event that comes late is one that the network took longer for.

use super::qp::{Qp, Work};
use super::{FabricEvent, Fabrics, Inner, SimFabric};
use engine::fabric::QpState;
use engine::id::QpId;
use engine::time::Time;
use std::io::Write as _;

/// Events that keep their order among each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Requests of this queue pair reach their target and are executed there.
    Requests {
        /// Whose.
        host: usize,
        /// Which.
        qp: QpId,
    },
    /// The same, of a queue pair that has failed since.
    Remains(u32),
    /// Acknowledgements, of all queue pairs: they come in the order in which requests were executed.
    Acks,
    /// A queue pair hears that its request was refused, or hears nothing for too long.
    Refusal {
        /// Whose.
        host: usize,
        /// Which.
        qp: QpId,
    },
    /// A copy within a host's own memory is done.
    Copy {
        /// Whose.
        host: usize,
        /// Which.
        slot: u32,
    },
    /// What nobody needs to order: bytes leave a NIC, a completion of an arrived message is written.
    Internal,
}

impl FabricEvent {
    /// Where its order counts.
    pub fn lane(&self) -> Lane {
        match self.0 {
            Inner::Arrive { host, qp, .. } => Lane::Requests { host: host as usize, qp },
            Inner::Remains { gone, .. } => Lane::Remains(gone),
            Inner::Acked { .. } => Lane::Acks,
            Inner::Nak { host, qp, .. } | Inner::Timeout { host, qp, .. } | Inner::Retry { host, qp, .. } => {
                Lane::Refusal { host: host as usize, qp }
            }
            Inner::Copied { host, slot } => Lane::Copy { host: host as usize, slot },
            Inner::Network | Inner::Received { .. } | Inner::Late { .. } => Lane::Internal,
        }
    }
}

impl Fabrics {
    /// Whether an event changes nothing any more, whenever it comes: its queue pair has failed or was connected anew, or its target has.
    pub fn is_void(&self, event: &FabricEvent) -> bool {
        match event.0 {
            Inner::Arrive { host, qp, epoch, .. }
            | Inner::Nak { host, qp, epoch, .. }
            | Inner::Timeout { host, qp, epoch }
            | Inner::Retry { host, qp, epoch } => !self.current(host, qp, epoch),
            Inner::Remains { gone, .. } => {
                let Some(Some(gone)) = self.gone.get(gone as usize) else { return true };
                let target = self
                    .responder_of_gone(&gone.qp)
                    .and_then(|(host, qp)| self.hosts.get(host as usize).and_then(|host| host.qp_ref(qp)));
                let psn = gone.qp.peer.map(|peer| peer.end.psn);
                target.is_none_or(|qp| Some(qp.end.psn) != psn || qp.state == QpState::Err)
            }
            Inner::Acked { host, qp } => self.hosts[host as usize]
                .qp_ref(qp)
                .is_none_or(|qp| qp.sq.is_empty() || qp.state != QpState::Rts),
            Inner::Network | Inner::Received { .. } | Inner::Late { .. } | Inner::Copied { .. } => false,
        }
    }

    /// Appends everything that a later event or call can see, but for times: two states that say the same go on the same, if whoever
    /// owns the event queue says what is in it as well. Not counted: costs, caches and what a fault has switched on.
    pub fn show(&self, now: Time, into: &mut Vec<u8>) {
        for host in &self.hosts {
            host.show(now, into);
        }
        for gone in self.gone.iter().flatten() {
            gone.qp.show(now, into);
            if let Some(memory) = &gone.memory {
                memory.show(into);
            }
        }
    }
}

impl SimFabric {
    /// Whether a completion waits to be polled.
    pub fn has_completions(&self) -> bool {
        self.cqs.iter().flatten().any(|cq| !cq.entries.is_empty())
    }

    fn show(&self, now: Time, into: &mut Vec<u8>) {
        for qp in self.qps.iter().flatten() {
            qp.show(now, into);
        }
        for cq in self.cqs.iter().flatten() {
            // Writing to memory does not fail, here and below.
            let _ = write!(into, "cq{:?}{:?}", cq.entries, cq.overrun);
        }
        for srq in self.srqs.iter().flatten() {
            let _ = write!(into, "srq{}", srq.queue.posted);
        }
        let _ = write!(into, "{:?}{:?}", self.events, self.copying);
        self.memory.show(into);
    }
}

impl Qp {
    fn show(&self, now: Time, into: &mut Vec<u8>) {
        let peer = self.peer.map(|peer| (peer.end.qpn, peer.end.psn));
        let own = (self.id, self.state, self.end.psn, peer, self.next - self.head, self.used, self.silent);
        let _ = write!(into, "{own:?}{}{}{}", self.stalled, self.retries, self.rnr_retries);
        for segment in &self.sq {
            let acked = (segment.acked <= now, segment.acked == Time::NEVER);
            let flags = (segment.signaled, segment.imm, segment.left, segment.placed, segment.executed);
            let _ = write!(into, "{:?}{flags:?}{acked:?}{}", segment.kind, segment.deaf);
            for work in self.works_of(segment) {
                let _ = match work {
                    Work::One { id, sge, sges, remote, data } => {
                        let local: Vec<_> = self.sges_of(*sge, *sges).collect();
                        write!(into, "{id:?}{local:?}{remote:?}{data:?}")
                    }
                    Work::Many { plan, window, first, local, remote } => {
                        let (runs, lanes) = (plan.runs(), plan.lanes());
                        write!(into, "{runs:?}{lanes:?}{window:?}{first:?}{local:?}{remote:?}")
                    }
                };
            }
        }
        let arrived: Vec<_> = self.arrived.iter().map(|pending| (pending.id, pending.done)).collect();
        let _ = write!(into, "{}{arrived:?}", self.rq.posted);
    }
}
