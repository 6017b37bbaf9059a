//! Service: which segment of a queue pair is on the wire, and what happens when nobody answers.

use super::qp::Kind;
use super::qp::{NO_WIRE, Place, Qp, Segment};
use super::{FabricEvent, Fabrics, Inner, Schedule};
use crate::net::{FlowSpec, Network};
use crate::nic::{NicProfile, cost};
use engine::fabric::{LinkLayer, QpState, Status, ack_timeout};
use engine::id::{PortId, QpId};
use engine::time::{Span, Time};

impl Fabrics {
    /// The last byte of the segment in service left its NIC at `finish`.
    pub(super) fn left(&mut self, host: u32, id: QpId, finish: Time, q: &mut impl Schedule) {
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
    pub(super) fn serve(&mut self, host: u32, id: QpId, now: Time, q: &mut impl Schedule) {
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
    pub(super) fn open(&self, host: u32, qp: &Qp) -> Option<Place> {
        let place = qp.peer.as_ref()?.place?;
        let up = |host: u32, port: PortId| self.hosts[host as usize].passes(port);
        (up(host, qp.port) && up(place.host, place.port)).then_some(place)
    }

    /// Stops the service of a queue pair; what is under way means nothing any more. It goes on at segment `next`.
    pub(super) fn halt(&mut self, host: u32, id: QpId, next: u64, now: Time) -> Option<&mut Qp> {
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
    pub(super) fn lose(&mut self, host: u32, id: QpId, since: Time, q: &mut impl Schedule) {
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

    pub(super) fn timeout(&mut self, host: u32, id: QpId, now: Time, q: &mut impl Schedule) {
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

    pub(super) fn again(&mut self, host: u32, id: QpId, now: Time, q: &mut impl Schedule) {
        if let Some(qp) = self.touch(host, now).qp(id) {
            qp.stalled = false;
            qp.free = now;
        }
        self.serve(host, id, now, q);
    }

    /// A link went down: everything of this queue pair that needed it is lost.
    pub(super) fn cut_off(&mut self, host: u32, id: QpId, global: u32, now: Time, q: &mut impl Schedule) {
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
}

impl Segment {
    /// Bytes that have to go over the wire: all, or the last packet if the data is in place already.
    pub(super) fn rest(&self, qp: &Qp, nic: &NicProfile, link: LinkLayer) -> u64 {
        if self.placed && self.kind == Kind::Write {
            self.wire.min(
                u64::from(qp.mtu()) + u64::from(nic.packet_header(link)) + u64::from(nic.headers.immediate),
            )
        } else if self.again > 0 {
            self.wire.min(self.again)
        } else {
            self.wire
        }
    }

    /// Answers of it that are outstanding at a time.
    pub(super) fn window(&self, qp: Option<&Qp>) -> u64 {
        self.load.requests.min(qp.map_or(0, |q| u64::from(q.rts.max_rd_atomic)))
    }
}

impl Qp {
    /// READs and atomics that left and are not answered.
    pub(super) fn outstanding(&self) -> u64 {
        if self.reads == 0 {
            return 0;
        }
        let left = (self.next - self.head) as usize;
        let most = u64::from(self.rts.max_rd_atomic);
        let open = self.sq.iter().take(left).filter(|s| s.kind.answered() && s.acked == Time::NEVER);
        open.map(|s| s.load.requests.min(most)).sum()
    }
}
