//! Arrival: what the responder does with a segment, and what the requester hears of it.

use super::exec::{self, Ends, Fault};
use super::memory::{Local, Sides};
use super::qp::{Kind, Pending, Qp, Segment};
use super::{FabricEvent, Fabrics, Inner, Schedule, host};
use engine::fabric::{Done, Event, Opcode, QpState, Status, rnr_delay};
use engine::id::{PortId, QpId};
use engine::time::{Span, Time};

/// Why a segment was not worked.
enum Refusal {
    /// No receive; try again after this.
    NotReady(Span),
    Fault(Fault),
}

impl Fabrics {
    /// The responder of a connection, if it takes packets of `from` now.
    pub(super) fn responder(&self, from: &Qp) -> Option<(u32, QpId)> {
        let peer = from.peer.as_ref()?;
        let place = peer.place?;
        let host = &self.hosts[place.host as usize];
        let id = host.by_number(peer.end.qpn)?;
        let qp = host.qp_ref(id)?;
        let takes = matches!(qp.state, QpState::Rtr | QpState::Rts)
            && qp.port == place.port
            && qp.end.psn == peer.end.psn
            && qp.talks_to(&from.end)
            && host.passes(place.port);
        takes.then_some((place.host, id))
    }

    pub(super) fn arrive(
        &mut self,
        host: u32,
        id: QpId,
        epoch: u32,
        number: u64,
        now: Time,
        q: &mut impl Schedule,
    ) {
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
        if self.losses.any() && self.lost_on_the_way(host, id, number, back, now, q) {
            return;
        }
        let mistakes = self.hosts[host as usize].mistakes;
        if mistakes.immediate_before_data && segment.imm.is_some() && !segment.announced {
            return self.announce(host, id, number, (there, target), now, q);
        }
        let verdict = if segment.executed && segment.kind != Kind::Read {
            Ok(())
        } else {
            self.touch(there, now);
            self.work(host, id, &segment, there, target, now, q)
        };
        let cqe = self.hosts[host as usize].nic.send_cqe.0;
        self.acknowledge_before(host, id, number, now + back, q);
        match verdict {
            Ok(()) => {
                let own = &mut self.hosts[host as usize];
                own.counters.bytes += if segment.executed { 0 } else { segment.load.bytes };
                if (self.losses.any() || own.faults.unacknowledged > 0 || segment.deaf)
                    && self.ack_lost(host, id, number)
                {
                    if let Some(segment) = self.hosts[host as usize].qp(id).and_then(|qp| qp.segment(number))
                    {
                        segment.executed = true;
                    }
                    return self.lose(host, id, now, q);
                }
                let own = &mut self.hosts[host as usize];
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

    /// ACKs and NAKs are cumulative: one of segment `number` stands for those before it that were lost.
    pub(super) fn acknowledge_before(
        &mut self,
        host: u32,
        id: QpId,
        number: u64,
        at: Time,
        q: &mut impl Schedule,
    ) {
        let cqe = self.hosts[host as usize].nic.send_cqe.0;
        let Some(qp) = self.hosts[host as usize].qp(id) else { return };
        let (before, acked) = ((number - qp.head) as usize, at.max(qp.last_ack));
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

    /// [`Mistakes::immediate_before_data`](super::Mistakes): the receive completes, and the message arrives once more later.
    fn announce(
        &mut self,
        host: u32,
        id: QpId,
        number: u64,
        (there, target): (u32, QpId),
        now: Time,
        q: &mut impl Schedule,
    ) {
        let own = &mut self.hosts[host as usize];
        let Some(qp) = own.qp(id) else { return };
        let epoch = qp.epoch;
        let Some(segment) = qp.segment(number) else { return };
        segment.announced = true;
        let segment = *segment;
        if let Some(qp) = own.qp_ref(id)
            && segment.kind == Kind::Write
        {
            let bytes = host::last_bytes(qp, &segment);
            self.touch(there, now);
            self.receive(there, target, &segment, bytes, now, q);
        }
        q.at(now + Span::us(20), FabricEvent(Inner::Arrive { host, qp: id, epoch, number }));
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
        let announced = segment.announced && segment.kind == Kind::Write;
        let consumes = segment.kind == Kind::Send || segment.imm.is_some() && !announced;
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
            fault = self.execute(host, id, segment, (there, rport), access, &ranges, None);
        }
        if let Some(fault) = fault {
            if fault.remote {
                self.responder_fails(there, target, &fault, now);
            }
            return Err(Refusal::Fault(fault));
        }
        if !ready && self.hosts[there as usize].mistakes.rnr_ignored {
            return Ok(());
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
    pub(super) fn receive(
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

    /// Does what a segment says to the memory of both ends; with `limit` only so many of its bytes.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn execute(
        &mut self,
        host: u32,
        id: QpId,
        segment: &Segment,
        (there, remote_port): (u32, PortId),
        access: engine::fabric::Access,
        receive: &[engine::fabric::Sge],
        limit: Option<u64>,
    ) -> Option<Fault> {
        let mistakes = self.hosts[there as usize].mistakes;
        let lanes = &mut self.lanes;
        let mut run = |qp: &Qp, sides: Sides<'_>| {
            let mtu = u64::from(qp.mtu());
            let mut ends = Ends { sides, local_port: qp.port, remote_port, access, mtu, mistakes };
            exec::execute(qp, segment, &mut ends, lanes, receive, limit).err()
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
    pub(super) fn responder_fails(&mut self, there: u32, target: QpId, fault: &Fault, now: Time) {
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
}
