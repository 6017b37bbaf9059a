//! Packets that get lost on a link, at message fidelity.
//!
//! When a segment arrives, it is drawn whether one of its packets was lost, and which one was first. What is behind that one has to come
//! again (go-back-N, as RC requires: InfiniBand spec 9.7.5.1). If anything behind it arrives, the responder sees the gap and NAKs at once;
//! if nothing does, or the NAK or an acknowledgement is lost, only the requester's timer finds out. Both use up a retry, and an
//! acknowledgement of anything new gives all retries back (Linux rxe_comp.c).

use super::qp::{Kind, Segment};
use super::{FabricEvent, Fabrics, Inner, Schedule};
use engine::fabric::Status;
use engine::id::QpId;
use engine::time::{Span, Time};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// How lossy each port of the network is.
#[derive(Debug)]
pub(super) struct Losses {
    /// By port of the network; empty while nothing is lost.
    ports: Vec<f64>,
    seed: u64,
    rng: Option<Box<ChaCha8Rng>>,
}

const LOSS: u64 = 3;

impl Losses {
    pub(super) fn new(seed: u64) -> Self {
        Self { ports: Vec::new(), seed, rng: None }
    }

    pub(super) fn set(&mut self, port: usize, probability: f64) {
        if self.ports.len() <= port {
            self.ports.resize(port + 1, 0.0);
        }
        self.ports[port] = probability.clamp(0.0, 1.0);
        if self.ports.iter().all(|p| *p == 0.0) {
            self.ports.clear();
        }
    }

    /// Whether packets get lost anywhere.
    pub(super) fn any(&self) -> bool {
        !self.ports.is_empty()
    }

    /// Probability that a packet between two ports is lost.
    fn between(&self, a: u32, b: u32) -> f64 {
        let of = |port: u32| self.ports.get(port as usize).copied().unwrap_or(0.0);
        if a == b { of(a) } else { 1.0 - (1.0 - of(a)) * (1.0 - of(b)) }
    }

    /// Uniform over [0, 1).
    fn unit(&mut self) -> f64 {
        let seed = self.seed;
        let rng = self.rng.get_or_insert_with(|| {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(LOSS << 32);
            Box::new(rng)
        });
        (rng.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Packets before the first one that is lost (geometric).
    fn before_first(&mut self, probability: f64) -> u64 {
        if probability >= 1.0 {
            return 0;
        }
        (libm::log(1.0 - self.unit()) / libm::log(1.0 - probability)) as u64
    }
}

impl Fabrics {
    /// Whether a packet of a segment that should arrive now was lost; then everything that follows from it has been set going.
    pub(super) fn lost_on_the_way(
        &mut self,
        host: u32,
        id: QpId,
        number: u64,
        back: Span,
        now: Time,
        q: &mut impl Schedule,
    ) -> bool {
        let own = &self.hosts[host as usize];
        let Some(qp) = own.qp_ref(id) else { return false };
        let (Some(place), Some(segment)) =
            (qp.peer.and_then(|p| p.place), qp.sq.get((number - qp.head) as usize).copied())
        else {
            return false;
        };
        let probability = self.losses.between(own.global(qp.port), place.global);
        if probability <= 0.0 {
            return false;
        }
        let rest = segment.rest(qp, &own.nic, own.ports[qp.port.index()].link_layer).max(1);
        let packets = if segment.placed {
            1
        } else {
            (u128::from(segment.load.packets) * u128::from(rest)).div_ceil(u128::from(segment.wire.max(1)))
                as u64
        };
        let packets = packets.max(1);
        let followed = qp.next > number + 1 || qp.flow.is_some();
        let before = self.losses.before_first(probability);
        if before >= packets {
            return false;
        }
        self.place_part(host, id, &segment, before, packets, now);
        let own = self.touch(host, now);
        own.counters.packets_lost += 1;
        let earlier = {
            let Some(qp) = own.qp(id) else { return true };
            let earlier = qp.sq.iter().take((number - qp.head) as usize).any(|s| s.acked == Time::NEVER);
            if let Some(segment) = qp.segment(number)
                && !segment.placed
            {
                // At least a byte: it still has to come.
                segment.again = ((u128::from(rest) * u128::from(packets - before))
                    .div_ceil(u128::from(packets)) as u64)
                    .max(1);
            }
            earlier
        };
        // Something behind the gap must arrive, and the NAK of it.
        let behind = packets - 1 - before;
        let arrives = followed || behind > 0 && self.losses.unit() >= libm::pow(probability, behind as f64);
        if !arrives || self.losses.unit() < probability {
            self.acknowledge_before(host, id, number, now + back, q);
            self.lose(host, id, now, q);
            return true;
        }
        // The NAK acknowledges what was before the gap.
        self.acknowledge_before(host, id, number, now + back, q);
        let Some(qp) = self.hosts[host as usize].qp(id) else { return true };
        if before > 0 || earlier {
            qp.retries = qp.rts.retry_cnt;
        }
        let over = qp.retries == 0;
        qp.retries -= u8::from(!over);
        let Some(qp) = self.halt(host, id, number, now) else { return true };
        let epoch = qp.epoch;
        let event = if over {
            Inner::Nak { host, qp: id, epoch, index: 0, status: Status::RetryExc }
        } else {
            Inner::Retry { host, qp: id, epoch }
        };
        q.at(now + back, FabricEvent(event));
        self.hosts[host as usize].counters.retransmissions += 1;
        true
    }

    /// What came before the lost packet is in the target's memory already.
    fn place_part(&mut self, host: u32, id: QpId, segment: &Segment, before: u64, packets: u64, now: Time) {
        if segment.kind != Kind::Write
            || segment.placed
            || segment.executed
            || segment.again > 0
            || before == 0
        {
            return;
        }
        let Some(qp) = self.hosts[host as usize].qp_ref(id) else { return };
        let Some((there, target)) = self.responder(qp) else { return };
        let Some(rqp) = self.hosts[there as usize].qp_ref(target) else { return };
        let (port, access) = (rqp.port, rqp.access);
        let bytes = (u128::from(segment.load.bytes) * u128::from(before) / u128::from(packets)) as u64;
        self.touch(there, now);
        // A refusal shows when the whole of it comes.
        let _ = self.execute(host, id, segment, (there, port), access, &[], Some(bytes));
    }

    /// Whether the acknowledgement of a segment is lost, with nothing behind it that would be acknowledged as well.
    pub(super) fn ack_lost(&mut self, host: u32, id: QpId, number: u64) -> bool {
        let own = &mut self.hosts[host as usize];
        let Some(qp) = own.qp(id) else { return false };
        let followed = qp.next > number + 1 || qp.flow.is_some();
        let port = qp.port;
        let Some(place) = qp.peer.and_then(|p| p.place) else { return false };
        let Some(segment) = qp.segment(number) else { return false };
        if segment.kind.answered() {
            return false;
        }
        if segment.deaf {
            return true;
        }
        if own.faults.unacknowledged > 0 {
            own.faults.unacknowledged -= 1;
            own.counters.unacknowledged += 1;
            if let Some(segment) = own.qp(id).and_then(|qp| qp.segment(number)) {
                segment.deaf = true;
            }
            return true;
        }
        if followed || !self.losses.any() {
            return false;
        }
        let global = self.hosts[host as usize].global(port);
        let probability = self.losses.between(global, place.global);
        let lost = probability > 0.0 && self.losses.unit() < probability;
        self.hosts[host as usize].counters.packets_lost += u64::from(lost);
        lost
    }
}
