//! A queue pair: its states, its send queue as segments of work, its receives.

use crate::net::FlowId;
use crate::nic::cost::Load;
use engine::fabric::{Access, Endpoint, Plan, QpSpec, QpState, Rtr, Rts, Sge};
use engine::id::{LKey, PortId, QpId, RKey, WrId};
use engine::time::{Span, Time};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

/// Requests of one kind that are served as one: nobody can observe a point between them unless something fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Write,
    Send,
    Read,
    FetchAdd(u64),
    CompareSwap { expect: u64, swap: u64 },
}

impl Kind {
    /// READs and atomics: answered with data, counted against the window, waited for by fences.
    pub(crate) fn answered(self) -> bool {
        !matches!(self, Kind::Write | Kind::Send)
    }
}

/// Posted requests: a single one or a window of a plan.
#[derive(Clone, Debug)]
pub(crate) enum Work {
    One {
        id: WrId,
        /// Absolute number of its first SGE among those of the queue pair.
        sge: u64,
        sges: u16,
        remote: (u64, RKey),
        /// Inline bytes.
        data: Option<Vec<u8>>,
    },
    Many {
        plan: Arc<Plan>,
        window: Range<u64>,
        first: WrId,
        local: (u64, LKey),
        remote: (u64, RKey),
    },
}

impl Work {
    pub(crate) fn requests(&self) -> u64 {
        match self {
            Work::One { .. } => 1,
            Work::Many { window, .. } => window.end - window.start,
        }
    }
    /// Id of its `i`-th request.
    pub(crate) fn id(&self, i: u64) -> WrId {
        match self {
            Work::One { id, .. } => *id,
            Work::Many { window, first, .. } => WrId(first.0.wrapping_add(window.start + i)),
        }
    }
}

/// A row of requests that is served, acknowledged and, if its last one is signalled, completed as one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    pub(crate) kind: Kind,
    pub(crate) load: Load,
    /// Bytes on the wire.
    pub(crate) wire: u64,
    /// Absolute number of its first [`Work`], and how many.
    pub(crate) work: u64,
    pub(crate) works: u32,
    pub(crate) last: WrId,
    pub(crate) signaled: bool,
    pub(crate) imm: Option<u32>,
    pub(crate) fence: bool,
    /// Every request of it is inline.
    pub(crate) inline: bool,
    /// When the NIC has its work requests and first byte.
    pub(crate) ready: Time,
    /// Its last byte has left the sending NIC.
    pub(crate) left: bool,
    /// Its data is in place, but an immediate or SEND found no receive.
    pub(crate) placed: bool,
    /// Its immediate came before its data: a mistake on purpose.
    pub(crate) announced: bool,
    /// Bytes on the wire that have to come again, 0 for all of them: those before a lost packet came.
    pub(crate) again: u64,
    /// No ACK of it will ever come back: a fault.
    pub(crate) deaf: bool,
    /// It was worked at the responder; an ACK may still be lost.
    pub(crate) executed: bool,
    /// When its last byte is in the responder's memory (READ: in the requester's).
    pub(crate) arrives: Time,
    /// When its ACK is in, [`Time::NEVER`] if there is none under way.
    pub(crate) acked: Time,
}

/// Where the other end is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer {
    pub(crate) end: Endpoint,
    /// Host, port of that host, port of the network; `None` if the address leads nowhere.
    pub(crate) place: Option<Place>,
    pub(crate) rtr: Rtr,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) host: u32,
    pub(crate) port: PortId,
    pub(crate) global: u32,
    /// Latency of the links there and back.
    pub(crate) out: Span,
    pub(crate) back: Span,
}

/// Receives alike, on a queue pair's own or a shared queue.
#[derive(Clone, Debug)]
pub(crate) struct Receives {
    pub(crate) first: WrId,
    pub(crate) count: u32,
    pub(crate) sges: Vec<Sge>,
}

/// A receive queue.
#[derive(Clone, Debug, Default)]
pub(crate) struct RecvQueue {
    pub(crate) runs: VecDeque<Receives>,
    pub(crate) posted: u32,
}

impl RecvQueue {
    pub(crate) fn push(&mut self, first: WrId, count: u32, sges: &[Sge]) {
        self.posted += count;
        self.runs.push_back(Receives { first, count, sges: sges.to_vec() });
    }
    /// Takes the oldest receive; its SGEs replace those in `sges`.
    pub(crate) fn pop(&mut self, sges: Option<&mut Vec<Sge>>) -> Option<WrId> {
        let run = self.runs.front_mut()?;
        let id = run.first;
        if let Some(sges) = sges {
            sges.clone_from(&run.sges);
        }
        run.first.0 = run.first.0.wrapping_add(1);
        run.count -= 1;
        self.posted -= 1;
        if run.count == 0 {
            self.runs.pop_front();
        }
        Some(id)
    }
}

/// A completion that is on its way into a completion queue.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pending {
    pub(crate) at: Time,
    pub(crate) id: WrId,
    pub(crate) done: engine::fabric::Done,
}

/// A queue pair.
#[derive(Debug)]
pub(crate) struct Qp {
    pub(crate) id: QpId,
    pub(crate) port: PortId,
    pub(crate) spec: QpSpec,
    pub(crate) state: QpState,
    pub(crate) access: Access,
    pub(crate) end: Endpoint,
    pub(crate) peer: Option<Peer>,
    pub(crate) rts: Rts,

    // ---- send queue ----
    pub(crate) sq: VecDeque<Segment>,
    /// Absolute number of `sq[0]`.
    pub(crate) head: u64,
    /// Absolute number of the next segment to serve, or of the one being served.
    pub(crate) next: u64,
    pub(crate) works: VecDeque<Work>,
    pub(crate) work_head: u64,
    pub(crate) sges: VecDeque<Sge>,
    pub(crate) sge_head: u64,
    /// Buffers of inline requests that are done, for the next ones.
    pub(crate) spare: Vec<Vec<u8>>,
    /// Requests that occupy the send queue: posted, and not covered by a completion that was polled.
    pub(crate) used: u32,
    /// Those of them that succeeded without a completion of their own.
    pub(crate) silent: u32,

    // ---- service ----
    /// The flow that carries segment `next`.
    pub(crate) flow: Option<FlowId>,
    /// When the NIC's message engine is through with the segment in service.
    pub(crate) engine: Time,
    /// When the sending side is free for the next segment.
    pub(crate) free: Time,
    /// Acknowledgements come in order.
    pub(crate) last_ack: Time,
    /// Waits for a retry; nothing is served.
    pub(crate) stalled: bool,
    /// Which service this is; events of an earlier one mean nothing.
    pub(crate) epoch: u32,
    pub(crate) retries: u8,
    pub(crate) rnr_retries: u8,
    /// READs and atomics that left and are not answered.
    pub(crate) answers: u64,
    /// Segments of READs and atomics in the send queue.
    pub(crate) reads: u32,
    /// Number of this queue pair among those that ever had a flow.
    pub(crate) wire: u32,

    // ---- receive side ----
    pub(crate) rq: RecvQueue,
    pub(crate) arrived: VecDeque<Pending>,
}

/// `Qp::wire` of a queue pair that never had a flow.
pub(crate) const NO_WIRE: u32 = u32::MAX;

impl Qp {
    pub(crate) fn new(id: QpId, port: PortId, spec: QpSpec, end: Endpoint) -> Self {
        Self {
            id,
            port,
            spec,
            state: QpState::Reset,
            access: Access::default(),
            end,
            peer: None,
            rts: Rts { timeout: 0, retry_cnt: 0, rnr_retry: 0, max_rd_atomic: 0 },
            sq: VecDeque::new(),
            head: 0,
            next: 0,
            works: VecDeque::new(),
            work_head: 0,
            sges: VecDeque::new(),
            sge_head: 0,
            spare: Vec::new(),
            used: 0,
            silent: 0,
            flow: None,
            engine: Time::ZERO,
            free: Time::ZERO,
            last_ack: Time::ZERO,
            stalled: false,
            epoch: 0,
            retries: 0,
            rnr_retries: 0,
            answers: 0,
            reads: 0,
            wire: NO_WIRE,
            rq: RecvQueue::default(),
            arrived: VecDeque::new(),
        }
    }

    /// The segment of this absolute number.
    pub(crate) fn segment(&mut self, number: u64) -> Option<&mut Segment> {
        self.sq.get_mut(number.checked_sub(self.head)? as usize)
    }

    /// Its requests.
    pub(crate) fn works_of(&self, segment: &Segment) -> impl Iterator<Item = &Work> {
        let from = (segment.work - self.work_head) as usize;
        self.works.range(from..from + segment.works as usize)
    }

    /// The SGEs of a single request.
    pub(crate) fn sges_of(&self, sge: u64, sges: u16) -> impl Iterator<Item = &Sge> {
        let from = (sge - self.sge_head) as usize;
        self.sges.range(from..from + usize::from(sges))
    }

    /// Forgets the oldest segment and its requests.
    pub(crate) fn pop_segment(&mut self) -> Option<Segment> {
        let segment = self.sq.pop_front()?;
        self.reads -= u32::from(segment.kind.answered());
        self.head += 1;
        for _ in 0..segment.works {
            self.work_head += 1;
            if let Some(Work::One { sges, data, .. }) = self.works.pop_front() {
                self.sge_head += u64::from(sges);
                self.sges.drain(..usize::from(sges));
                if let Some(data) = data {
                    self.spare.push(data);
                }
            }
        }
        Some(segment)
    }

    /// Whether packets that say they are from this peer belong to the present connection.
    pub(crate) fn talks_to(&self, end: &Endpoint) -> bool {
        self.peer.is_some_and(|p| p.end.qpn == end.qpn && p.end.psn == end.psn && p.end.gid == end.gid)
    }

    /// Path MTU of the connection.
    pub(crate) fn mtu(&self) -> u32 {
        let peer = self.peer.map_or(self.end.mtu, |p| p.end.mtu);
        u32::from(self.end.mtu.min(peer)).max(1)
    }
}
