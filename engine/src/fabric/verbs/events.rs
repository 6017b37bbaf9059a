//! Asynchronous events.

use super::VerbsFabric;
use super::list::{self, PortState};
use crate::fabric::{Event, QpState};
use crate::id::{CqId, PortId, QpId, SrqId};
use ibverbs_sys as ffi;

impl VerbsFabric {
    /// Reads and acknowledges what the devices have to say; it then waits in `next_event`.
    pub(super) fn take_events(&mut self) {
        for nic in 0..self.nics.len() {
            while let Some((kind, tag)) = self.nics[nic].context.take_event() {
                self.event(nic, kind, tag);
            }
        }
    }

    fn event(&mut self, nic: usize, kind: ffi::ibv_event_type, tag: usize) {
        match kind {
            ffi::IBV_EVENT_CQ_ERR => self.overrun(CqId(tag as u32)),
            ffi::IBV_EVENT_QP_FATAL | ffi::IBV_EVENT_QP_REQ_ERR | ffi::IBV_EVENT_QP_ACCESS_ERR => {
                let id = QpId(tag as u32);
                if let Ok(qp) = self.qp_mut(id) {
                    // It may have been reset since: then the event is of an older connection.
                    if qp.learn() == QpState::Err {
                        self.events.push_back(Event::QpFatal(id));
                    }
                }
            }
            ffi::IBV_EVENT_QP_LAST_WQE_REACHED => self.last_receive(QpId(tag as u32)),
            ffi::IBV_EVENT_SRQ_LIMIT_REACHED => self.events.push_back(Event::SrqLimit(SrqId(tag as u32))),
            ffi::IBV_EVENT_SRQ_ERR => {
                let srq = SrqId(tag as u32);
                let users = self.qps.iter().flatten().filter(|q| q.spec.srq == Some(srq));
                let users: Vec<_> = users.map(|q| q.id).collect();
                users.into_iter().for_each(|id| self.kill(id));
            }
            ffi::IBV_EVENT_DEVICE_FATAL => {
                for port in 0..self.ports.len() {
                    if self.rails[port].nic == nic {
                        self.link(port, false);
                    }
                }
            }
            ffi::IBV_EVENT_PORT_ACTIVE
            | ffi::IBV_EVENT_PORT_ERR
            | ffi::IBV_EVENT_LID_CHANGE
            | ffi::IBV_EVENT_GID_CHANGE
            | ffi::IBV_EVENT_CLIENT_REREGISTER => {
                let number = u8::try_from(tag).unwrap_or(0);
                let port = self.rails.iter().position(|r| r.nic == nic && r.number == number);
                let Some(port) = port else { return };
                let before = self.ports[port].up;
                self.refresh(port);
                match kind {
                    ffi::IBV_EVENT_PORT_ACTIVE => self.link(port, true),
                    // Unless its failed requests have told so before.
                    ffi::IBV_EVENT_PORT_ERR if before => self.link(port, false),
                    _ => {}
                }
            }
            _ => {}
        }
    }

    /// Asks a port for its state, and tells of a link that went.
    pub(super) fn look_at(&mut self, port: PortId) {
        let port = port.index();
        let before = self.ports[port].up;
        self.refresh(port);
        if before && !self.ports[port].up {
            self.link(port, false);
        }
    }

    fn link(&mut self, port: usize, up: bool) {
        let own = &mut self.ports[port];
        own.up = up;
        self.events.push_back(if up { Event::PortUp(own.id) } else { Event::PortDown(own.id) });
    }

    /// Addresses and MTU may have changed. New connections use the new ones.
    fn refresh(&mut self, port: usize) {
        let rail = self.rails[port];
        let nic = &mut self.nics[rail.nic];
        let Ok(info) = list::look(&nic.info.name, &nic.context) else { return };
        nic.info = info;
        let Some(now) = nic.info.ports.iter().find(|p| p.number == rail.number) else { return };
        let own = &mut self.ports[port];
        (own.lid, own.mtu, own.bits_per_s) = (now.lid, now.mtu, now.bits_per_s);
        own.up = now.state == PortState::Active;
        if let Ok((gid, _)) = now.choose(self.config.gid)
            && let Ok(index) = u8::try_from(gid.index)
        {
            self.rails[port].gid_index = index;
            own.gids = vec![gid.gid];
            own.gids.extend(now.gids.iter().filter(|g| g.index != gid.index).map(|g| g.gid));
        }
    }

    /// Completions were lost. The contract has the queue pairs in ERR then; not every driver sees to that.
    fn overrun(&mut self, cq: CqId) {
        if self.cqs.get(cq.index()).is_none_or(Option::is_none) {
            return;
        }
        self.events.push_back(Event::CqOverrun(cq));
        let users = self.qps.iter().flatten().filter(|q| q.spec.send_cq == cq || q.spec.recv_cq == cq);
        let users: Vec<_> = users.map(|q| q.id).collect();
        users.into_iter().for_each(|id| self.kill(id));
    }

    /// Moves a queue pair to ERR without waiting for anything.
    fn kill(&mut self, id: QpId) {
        if let Ok(qp) = self.qp_mut(id)
            && qp.state != QpState::Reset
            && qp.to_err().is_ok()
        {
            qp.failed();
        }
    }

    /// Tells once for each stay in ERR that no more shared receives will complete on a queue pair.
    pub(super) fn last_receive(&mut self, id: QpId) {
        if let Ok(qp) = self.qp_mut(id)
            && !std::mem::replace(&mut qp.told_last, true)
        {
            qp.failed();
            self.events.push_back(Event::LastWqeReached(id));
        }
    }
}
