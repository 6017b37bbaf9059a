//! Faults that an experiment injects.

use super::{Fabrics, Ready, Schedule};
use crate::net::{NetError, Network};
use engine::fabric::{Event, QpState};
use engine::id::{PortId, QpId};
use engine::time::Time;

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
}
