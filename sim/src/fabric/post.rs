//! Posting: a chain is checked request by request, and what follows each other without an observer between becomes a segment.

use super::host::SimFabric;
use super::qp::{Kind, Qp, Segment, Work};
use crate::nic::cost::Load;
use engine::fabric::{Batch, Error, Item, Op, Plan, QpState, Refused, Status, WorkRequest};
use engine::id::{QpId, WrId};
use engine::time::{Span, Time};

/// What posting a chain has found out so far.
#[derive(Default)]
struct Chain {
    posted: u64,
    sges: u64,
    inline_blocks: u64,
    inline: u64,
    /// Segments made, the last of them still open if `open`.
    segments: u32,
    open: bool,
}

fn kind(op: Op) -> (Kind, Option<u32>) {
    match op {
        Op::Write => (Kind::Write, None),
        Op::WriteImm(imm) => (Kind::Write, Some(imm)),
        Op::Send => (Kind::Send, None),
        Op::SendImm(imm) => (Kind::Send, Some(imm)),
        Op::Read => (Kind::Read, None),
        Op::FetchAdd(add) => (Kind::FetchAdd(add), None),
        Op::CompareSwap { expect, swap } => (Kind::CompareSwap { expect, swap }, None),
    }
}

fn load(kind: Kind, imm: bool, requests: u64, bytes: u64, packets: u64) -> Load {
    Load {
        requests,
        bytes,
        packets,
        reths: if kind == Kind::Write { requests } else { 0 },
        immediates: imm.into(),
        answers: if kind.answered() { requests } else { 0 },
    }
}

fn invalid<T>(what: &'static str, value: u64, right: &'static str) -> Result<T, Error> {
    Err(Error::Invalid { what, value, right })
}

impl Qp {
    /// Puts requests at the end of the queue: into the open segment if nothing tells them apart, else into a new one.
    fn append(&mut self, chain: &mut Chain, work: Work, part: Part) {
        let last = work.id(work.requests() - 1);
        let number = self.work_head + self.works.len() as u64;
        self.used += work.requests() as u32;
        self.works.push_back(work);
        let joins = chain.open && !part.fence;
        match self.sq.back_mut() {
            Some(segment) if joins && segment.kind == part.kind => {
                segment.load.add(&part.load);
                segment.works += 1;
                (segment.last, segment.signaled, segment.imm) = (last, part.signaled, part.imm);
                segment.inline &= part.inline;
            }
            _ => {
                chain.segments += 1;
                self.reads += u32::from(part.kind.answered());
                self.sq.push_back(Segment {
                    kind: part.kind,
                    load: part.load,
                    wire: 0,
                    work: number,
                    works: 1,
                    last,
                    signaled: part.signaled,
                    imm: part.imm,
                    fence: part.fence,
                    inline: part.inline,
                    ready: Time::ZERO,
                    left: false,
                    placed: false,
                    announced: false,
                    again: 0,
                    deaf: false,
                    executed: false,
                    arrives: Time::NEVER,
                    acked: Time::NEVER,
                });
            }
        }
        let rows = matches!(part.kind, Kind::Write | Kind::Read);
        chain.open = rows && !part.signaled && part.imm.is_none();
    }
}

/// What [`Qp::append`] must know of the requests.
struct Part {
    kind: Kind,
    imm: Option<u32>,
    signaled: bool,
    fence: bool,
    inline: bool,
    load: Load,
}

impl SimFabric {
    pub(super) fn post_chain(&mut self, id: QpId, items: &[Item<'_>]) -> Result<(), Refused> {
        let refuse = |why| Refused { at: 0, why };
        let mut qp = self.take_qp(id).ok_or(refuse(Error::NoSuch("queue pair")))?;
        let state = qp.state;
        if !matches!(state, QpState::Rts | QpState::Err) {
            self.put_qp(qp);
            return Err(refuse(Error::State { what: "post_send needs RTS; the queue pair", state }));
        }
        let mut chain = Chain::default();
        let mut result = Ok(());
        for item in items {
            let posted = match item {
                Item::One(request) => self.one(&mut qp, &mut chain, request),
                Item::Many(batch) => self.many(&mut qp, &mut chain, batch),
            };
            if let Err(why) = posted {
                result = Err(Refused { at: chain.posted, why });
                break;
            }
        }
        if result.is_err() && chain.posted == self.faults.takes() {
            self.faults.refused();
            self.counters.refused_posts += 1;
        }
        if chain.posted > 0 {
            self.ring(&mut qp, &chain);
        }
        self.put_qp(qp);
        result
    }

    /// The CPU's time for the chain, and when the NIC is ready for it.
    fn ring(&mut self, qp: &mut Qp, chain: &Chain) {
        let nic = self.nic.clone();
        self.cpu = self.cpu
            + nic.build.0 * chain.posted
            + nic.build_sge.0 * (chain.sges - chain.sges.min(chain.posted))
            + nic.inline_copy.0 * chain.inline_blocks
            + nic.doorbell.0;
        self.counters.work_requests += chain.posted;
        self.counters.doorbells += 1;
        if qp.state == QpState::Err {
            self.flush_sends(qp, 0, Status::WrFlush);
            return;
        }
        let mut known = self.now + self.cpu + nic.doorbell_latency.0;
        if chain.posted > 1 || chain.inline == 0 {
            known += nic.wqe_fetch.0;
        }
        let link = self.ports[qp.port.index()].link_layer;
        let first = qp.sq.len() - chain.segments as usize;
        for segment in qp.sq.range_mut(first..) {
            let fetch = if segment.inline || segment.kind.answered() { Span(0) } else { nic.payload_fetch.0 };
            segment.ready = known + fetch;
            segment.wire = segment.load.wire_bytes(&nic, link);
        }
        self.todo.push(super::host::Todo::Serve(qp.id));
    }

    fn one(&self, qp: &mut Qp, chain: &mut Chain, request: &WorkRequest<'_>) -> Result<(), Error> {
        if qp.used >= qp.spec.max_send || chain.posted >= self.faults.takes() {
            return Err(Error::QueueFull);
        }
        let (kind, mut imm) = kind(request.op);
        if self.mistakes.immediates_swapped {
            imm = imm.map(u32::swap_bytes);
        }
        let sges = request.local.len() as u64;
        if sges > u64::from(qp.spec.max_sge) {
            return invalid("SGEs of a request", sges, "at most the queue pair's max_sge");
        }
        let bytes: u64 = request.local.iter().map(|s| u64::from(s.len)).sum();
        if bytes > u64::from(self.limits.max_message) {
            return invalid("bytes of a request", bytes, "at most the device's max_message");
        }
        let atomic = matches!(kind, Kind::FetchAdd(_) | Kind::CompareSwap { .. });
        if atomic && bytes != 8 {
            return invalid("bytes of an atomic", bytes, "exactly 8");
        }
        let inline = request.flags.inline && !self.mistakes.inline_late;
        let data = if inline {
            if kind.answered() {
                return invalid("inline", bytes, "not for READ and atomics");
            }
            if bytes > u64::from(qp.spec.max_inline) {
                return invalid("inline bytes", bytes, "at most the queue pair's max_inline");
            }
            let mut data = qp.spare.pop().unwrap_or_default();
            data.clear();
            for sge in request.local {
                self.memory.take(sge.addr, sge.len.into(), &mut data)?;
            }
            Some(data)
        } else {
            None
        };
        let sge = qp.sge_head + qp.sges.len() as u64;
        let count = if inline { 0 } else { request.local.len() as u16 };
        if !inline {
            qp.sges.extend(request.local);
        }
        let packets = bytes.div_ceil(qp.mtu().into()).max(1);
        let load = load(kind, imm.is_some(), 1, bytes, packets);
        let work = Work::One { id: request.id, sge, sges: count, remote: request.remote, data };
        let (signaled, fence) = (request.flags.signaled, request.flags.fence);
        qp.append(chain, work, Part { kind, imm, signaled, fence, inline, load });
        chain.posted += 1;
        chain.sges += sges;
        if inline {
            chain.inline += 1;
            chain.inline_blocks += bytes.div_ceil(64);
        }
        Ok(())
    }

    fn many(&self, qp: &mut Qp, chain: &mut Chain, batch: &Batch<'_>) -> Result<(), Error> {
        let total = batch.plan.requests();
        let window = batch.window.clone();
        if window.start > window.end || window.end > total {
            return invalid("window", window.end, "a range of the plan's requests");
        }
        if window.is_empty() {
            return Ok(());
        }
        let (op, last) = (kind(batch.op), kind(batch.last.unwrap_or(batch.op)));
        if !matches!(batch.op, Op::Write | Op::WriteImm(_) | Op::Read) || op.0 != last.0 {
            return Err(Error::Unsupported("batch of anything but WRITE or READ"));
        }
        let room = u64::from(qp.spec.max_send - qp.used.min(qp.spec.max_send));
        let room = room.min(self.faults.takes() - chain.posted.min(self.faults.takes()));
        let bad = self.first_invalid(qp, batch.plan, &window);
        let fits = window.end.min(window.start + room);
        let (end, why) = match bad {
            Some((index, why)) if index < fits => (index, Some(why)),
            _ => (fits, (fits < window.end).then_some(Error::QueueFull)),
        };
        let mut at = window.start;
        let every = u64::from(batch.signal_every);
        while at < end {
            // An immediate in every request, or a signal, ends a segment.
            let mut to = at.checked_div(every).map_or(end, |n| ((n + 1) * every).min(end));
            if op.1.is_some() {
                to = at + 1;
            }
            let (request, flags) = batch.request(to - 1);
            let (kind, imm) = kind(request);
            let sums = batch.plan.totals(&(at..to), qp.mtu());
            let load = load(kind, imm.is_some(), sums.requests, sums.bytes, sums.packets);
            let work = Work::Many {
                plan: batch.plan.clone(),
                window: at..to,
                first: batch.first,
                local: batch.local,
                remote: batch.remote,
            };
            let part = Part { kind, imm, signaled: flags.signaled, fence: false, inline: false, load };
            qp.append(chain, work, part);
            chain.posted += to - at;
            chain.sges += sums.sges;
            at = to;
        }
        why.map_or(Ok(()), Err)
    }

    /// The first request of the window that has too many SGEs or bytes.
    fn first_invalid(&self, qp: &Qp, plan: &Plan, window: &std::ops::Range<u64>) -> Option<(u64, Error)> {
        let (max_sge, max_bytes) = (u64::from(qp.spec.max_sge), u64::from(self.limits.max_message));
        // An upper bound first: a run's gather list and everything that joins it.
        let (mut sges, mut bytes, mut fits) = (0, 0, true);
        for run in plan.runs() {
            let (n, len) = (u64::from(run.gather).min(run.count.into()), u64::from(run.len));
            (sges, bytes) = if run.joins { (sges + 1, bytes + len) } else { (n, n * len) };
            fits &= sges <= max_sge && bytes <= max_bytes;
        }
        if fits {
            return None;
        }
        let mut found = None;
        plan.for_each(window, |index, pieces, _| {
            if found.is_some() {
                return;
            }
            let (sges, bytes) = (pieces.len() as u64, pieces.iter().map(|p| u64::from(p.1)).sum::<u64>());
            if sges > max_sge {
                let right = "at most the queue pair's max_sge";
                found = Some((index, Error::Invalid { what: "SGEs of a request", value: sges, right }));
            } else if bytes > max_bytes {
                let right = "at most the device's max_message";
                found = Some((index, Error::Invalid { what: "bytes of a request", value: bytes, right }));
            }
        });
        found
    }
}

/// Id of the `i`-th request of a segment's works, for completions.
pub(super) fn ids<'a>(works: impl Iterator<Item = &'a Work>) -> impl Iterator<Item = WrId> {
    works.flat_map(|work| (0..work.requests()).map(|i| work.id(i)))
}
