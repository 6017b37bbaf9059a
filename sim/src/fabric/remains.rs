//! What queue pairs leave behind when they fail, are reset or destroyed.

use super::exec::{self, Ends};
use super::host::{self, Gone};
use super::memory::{Local, Sides};
use super::qp::{Kind, Qp};
use super::{FabricEvent, Fabrics, Inner, Schedule};
use crate::net::Network;
use engine::fabric::QpState;
use engine::id::QpId;
use engine::time::Time;

impl Fabrics {
    /// A queue pair left its connection. What had left its NIC still arrives; answers that its peer waited for do not.
    pub(super) fn bury(&mut self, host: u32, mut gone: Box<Gone>, now: Time, q: &mut impl Schedule) {
        let mut torn = None;
        if let Some(flow) = gone.qp.flow.take() {
            self.changed = true;
            let served = self.net.cancel(now.0, flow).unwrap_or(0.0);
            let nic = &self.hosts[host as usize].nic;
            let link = self.hosts[host as usize].ports[gone.qp.port.index()].link_layer;
            let number = gone.qp.next;
            if let Some(segment) = number.checked_sub(gone.qp.head).and_then(|i| gone.qp.sq.get(i as usize)) {
                let wire = segment.rest(&gone.qp, nic, link);
                // What came before a lost packet is there.
                let came = (segment.wire - wire) as f64 + served;
                let share = if wire == 0 { 0.0 } else { (came / segment.wire as f64).clamp(0.0, 1.0) };
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

    pub(super) fn responder_of_gone(&self, qp: &Qp) -> Option<(u32, QpId)> {
        let peer = qp.peer?;
        let place = peer.place?;
        Some((place.host, self.hosts[place.host as usize].by_number(peer.end.qpn)?))
    }

    /// What a failed queue pair had sent arrives.
    pub(super) fn remains(
        &mut self,
        slot: u32,
        number: u64,
        limit: Option<u64>,
        now: Time,
        q: &mut impl Schedule,
    ) {
        let Some(mut gone) = self.gone[slot as usize].take() else { return };
        self.remains_of(&gone, number, limit, now, q);
        gone.pending -= 1;
        if gone.pending > 0 {
            self.gone[slot as usize] = Some(gone);
        } else {
            self.gone_free.push(slot);
        }
    }

    pub(super) fn remains_of(
        &mut self,
        gone: &Gone,
        number: u64,
        limit: Option<u64>,
        now: Time,
        q: &mut impl Schedule,
    ) {
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
            let mistakes = own.mistakes;
            let mut ends = Ends { sides, local_port: gone.qp.port, remote_port, access, mtu, mistakes };
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
