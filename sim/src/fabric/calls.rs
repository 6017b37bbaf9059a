//! The calls of [`Fabric`] on one host.

use super::host::{Cq, SimFabric, Srq, check, find, find_mut};
use super::qp::{Qp, RecvQueue};
use engine::fabric::{
    Access, Completion, Content, Endpoint, Error, Event, Extent, Fabric, Grid, Item, Limits, LocalCopy,
    Memory as Kind, Mr, Port, QpSpec, QpState, Recv, Refused, Result, SrqSpec, Status, Step, Units,
};
use engine::id::{BufId, CopyId, CqId, MrId, PortId, QpId, SrqId};
use std::collections::VecDeque;
use std::ops::Range;

impl Fabric for SimFabric {
    fn ports(&self) -> &[Port] {
        &self.ports
    }
    fn limits(&self) -> &Limits {
        &self.limits
    }
    fn reaches(&self, port: PortId, peer: &Endpoint) -> bool {
        port.index() < self.ports.len() && self.place(port, peer, 0).is_some()
    }

    fn alloc(&mut self, kind: Kind, grid: Grid) -> Result<BufId> {
        self.memory.alloc(kind, grid)
    }
    fn free(&mut self, buf: BufId) -> Result<()> {
        if self.copying.iter().flatten().any(|copying| copying.names(buf)) {
            return Err(Error::Busy("buffer"));
        }
        self.memory.free(buf)
    }
    fn write(&mut self, buf: BufId, at: u64, bytes: &[u8]) -> Result<()> {
        self.memory.write(buf, at, bytes)
    }
    fn read(&self, buf: BufId, at: u64, bytes: &mut [u8]) -> Result<()> {
        self.memory.read(buf, at, bytes)
    }
    fn stamp(&mut self, buf: BufId, place: &Extent, what: Content) -> Result<()> {
        self.memory.stamp(buf, place, what)
    }
    fn holds(&self, buf: BufId, place: &Extent, what: Content) -> Result<bool> {
        self.memory.holds(buf, place, what)
    }
    fn checksum(&self, buf: BufId, place: &Extent, units: Units) -> Result<u64> {
        self.memory.checksum(buf, place, units)
    }
    fn flush(&mut self, buf: BufId) -> Result<()> {
        self.memory.flush(buf)
    }
    fn copy(&mut self, engine: u32, id: CopyId, parts: &[LocalCopy<'_>]) -> Result<()> {
        self.start_copy(engine, id, parts)
    }

    fn register(&mut self, port: PortId, buf: BufId, span: Range<u64>, access: Access) -> Result<Mr> {
        self.known_port(port)?;
        let mr = self.memory.register(port, buf, span, access)?;
        let pages = self.pages(mr.len);
        self.pages[port.index()] += pages;
        self.cpu = self.cpu + self.nic.register.0 + self.nic.register_page.0 * pages;
        Ok(mr)
    }
    fn deregister(&mut self, mr: MrId) -> Result<()> {
        let (port, bytes) = self.memory.deregister(mr)?;
        self.pages[port.index()] -= self.pages(bytes);
        self.cpu = self.cpu + self.nic.deregister.0;
        Ok(())
    }

    fn create_cq(&mut self, port: PortId, depth: u32) -> Result<CqId> {
        self.known_port(port)?;
        check(
            (1..=self.limits.max_cqe).contains(&depth),
            "depth",
            depth.into(),
            "1 to the device's max_cqe",
        )?;
        let (entries, late) = (VecDeque::new(), VecDeque::new());
        self.cqs.push(Some(Cq { port, depth, entries, late, users: 0, overrun: false, touched: false }));
        Ok(CqId(self.cqs.len() as u32 - 1))
    }
    fn destroy_cq(&mut self, cq: CqId) -> Result<()> {
        if find(&self.cqs, cq.index(), "completion queue")?.users > 0 {
            return Err(Error::Busy("completion queue"));
        }
        self.cqs[cq.index()] = None;
        Ok(())
    }

    fn create_srq(&mut self, port: PortId, spec: SrqSpec) -> Result<SrqId> {
        self.known_port(port)?;
        let right = "1 to the device's max_srq_wr";
        check(
            (1..=self.limits.max_srq_wr).contains(&spec.max_recv),
            "max_recv",
            spec.max_recv.into(),
            right,
        )?;
        let right = "at most the device's max_sge";
        check(spec.max_sge <= self.limits.max_sge, "max_sge", spec.max_sge.into(), right)?;
        self.srqs.push(Some(Srq { port, spec, queue: RecvQueue::default(), limit: 0, users: 0 }));
        Ok(SrqId(self.srqs.len() as u32 - 1))
    }
    fn arm_srq(&mut self, srq: SrqId, limit: u32) -> Result<()> {
        let queue = find_mut(&mut self.srqs, srq.index(), "shared receive queue")?;
        check(limit <= queue.spec.max_recv, "limit", limit.into(), "at most max_recv")?;
        queue.limit = limit;
        // Already below: as on mlx5, the event comes at once.
        if limit > 0 && queue.queue.posted < limit {
            queue.limit = 0;
            self.events.push_back(Event::SrqLimit(srq));
        }
        Ok(())
    }
    fn destroy_srq(&mut self, srq: SrqId) -> Result<()> {
        if find(&self.srqs, srq.index(), "shared receive queue")?.users > 0 {
            return Err(Error::Busy("shared receive queue"));
        }
        self.srqs[srq.index()] = None;
        Ok(())
    }

    fn create_qp(&mut self, port: PortId, spec: QpSpec) -> Result<QpId> {
        self.known_port(port)?;
        self.awake(port, "ibv_create_qp")?;
        let limits = self.limits;
        check(
            self.live_qps < limits.max_qp,
            "queue pairs",
            self.live_qps.into(),
            "at most the device's max_qp",
        )?;
        for (what, value, most, right) in [
            ("max_send", spec.max_send, limits.max_qp_wr, "at most the device's max_qp_wr"),
            ("max_recv", spec.max_recv, limits.max_qp_wr, "at most the device's max_qp_wr"),
            ("max_sge", spec.max_sge, limits.max_sge, "at most the device's max_sge"),
            ("max_inline", spec.max_inline, limits.max_inline, "at most the device's max_inline"),
        ] {
            check(value <= most, what, value.into(), right)?;
        }
        for cq in [spec.send_cq, spec.recv_cq] {
            let right = "a completion queue of the same port";
            check(
                find(&self.cqs, cq.index(), "completion queue")?.port == port,
                "port",
                port.0.into(),
                right,
            )?;
        }
        if let Some(srq) = spec.srq {
            check(spec.max_recv == 0, "max_recv", spec.max_recv.into(), "0 with a shared receive queue")?;
            let right = "a shared receive queue of the same port";
            let srq = find_mut(&mut self.srqs, srq.index(), "shared receive queue")?;
            check(srq.port == port, "port", port.0.into(), right)?;
            srq.users += 1;
        }
        for cq in [spec.send_cq, spec.recv_cq] {
            find_mut(&mut self.cqs, cq.index(), "completion queue")?.users += 1;
        }
        while self.qpns.contains(&self.next_qpn) {
            self.next_qpn = 0x10 + (self.next_qpn + 1) % 0xff_fff0;
        }
        let qpn = self.next_qpn;
        self.next_qpn = 0x10 + (self.next_qpn + 1 - 0x10) % 0xff_fff0;
        let own = &self.ports[port.index()];
        let gid = own.gids.first().copied().unwrap_or_default();
        let end = Endpoint { qpn, psn: 0, gid, lid: own.lid, mtu: own.mtu };
        let id = QpId(self.qps.len() as u32);
        self.qps.push(Some(Box::new(Qp::new(id, port, spec, end))));
        self.qpns.insert(qpn, id);
        self.live_qps += 1;
        self.cpu = self.cpu + self.nic.create_qp.0;
        Ok(id)
    }
    fn endpoint(&self, qp: QpId) -> Result<Endpoint> {
        self.qp_ref(qp).map(|q| q.end).ok_or(Error::NoSuch("queue pair"))
    }
    fn modify_qp(&mut self, qp: QpId, step: Step) -> Result<()> {
        let mut own = self.take_qp(qp).ok_or(Error::NoSuch("queue pair"))?;
        let result = self.step(&mut own, step);
        self.put_qp(own);
        if result.is_ok() {
            self.cpu = self.cpu + self.nic.modify_qp.0;
            if step == Step::Err {
                self.fail(qp, None);
                self.settle_overruns();
            }
        }
        result
    }
    fn qp_state(&self, qp: QpId) -> Result<QpState> {
        self.qp_ref(qp).map(|q| q.state).ok_or(Error::NoSuch("queue pair"))
    }
    fn destroy_qp(&mut self, qp: QpId) -> Result<()> {
        let mut own = self.take_qp(qp).ok_or(Error::NoSuch("queue pair"))?;
        self.discard(&mut own);
        self.qpns.remove(&own.end.qpn);
        self.live_qps -= 1;
        for cq in [own.spec.send_cq, own.spec.recv_cq] {
            find_mut(&mut self.cqs, cq.index(), "completion queue")?.users -= 1;
        }
        if let Some(srq) = own.spec.srq {
            find_mut(&mut self.srqs, srq.index(), "shared receive queue")?.users -= 1;
        }
        Ok(())
    }

    fn post_send(&mut self, qp: QpId, chain: &[Item<'_>]) -> Result<(), Refused> {
        let result = self.post_chain(qp, chain);
        self.settle_overruns();
        result
    }
    fn post_recv(&mut self, qp: QpId, recv: Recv<'_>) -> Result<(), Refused> {
        let refuse = |at, why| Err(Refused { at, why });
        let Some(mut own) = self.take_qp(qp) else { return refuse(0, Error::NoSuch("queue pair")) };
        let result = if own.spec.srq.is_some() {
            refuse(0, Error::Unsupported("receives on a queue pair with a shared receive queue"))
        } else if own.state == QpState::Reset {
            refuse(
                0,
                Error::State { what: "post_recv needs INIT or later; the queue pair", state: own.state },
            )
        } else if recv.sges.len() as u64 > u64::from(own.spec.max_sge) {
            let (value, right) = (recv.sges.len() as u64, "at most the queue pair's max_sge");
            refuse(0, Error::Invalid { what: "SGEs of a receive", value, right })
        } else {
            let room = recv.count.min(own.spec.max_recv - own.rq.posted);
            if room > 0 {
                own.rq.push(recv.first, room, recv.sges);
                self.cpu = self.cpu + self.nic.post_recv.0 * u64::from(room);
                if own.state == QpState::Err {
                    self.flush_receives(&mut own, Status::WrFlush);
                }
            }
            if room < recv.count { refuse(room.into(), Error::QueueFull) } else { Ok(()) }
        };
        self.put_qp(own);
        self.settle_overruns();
        result
    }
    fn post_srq_recv(&mut self, srq: SrqId, recv: Recv<'_>) -> Result<(), Refused> {
        let refuse = |at, why| Err(Refused { at, why });
        let own = match find_mut(&mut self.srqs, srq.index(), "shared receive queue") {
            Ok(own) => own,
            Err(why) => return refuse(0, why),
        };
        if recv.sges.len() as u64 > u64::from(own.spec.max_sge) {
            let (value, right) = (recv.sges.len() as u64, "at most the shared receive queue's max_sge");
            return refuse(0, Error::Invalid { what: "SGEs of a receive", value, right });
        }
        let room = recv.count.min(own.spec.max_recv - own.queue.posted);
        if room > 0 {
            own.queue.push(recv.first, room, recv.sges);
            self.cpu = self.cpu + self.nic.post_recv.0 * u64::from(room);
        }
        if room < recv.count { refuse(room.into(), Error::QueueFull) } else { Ok(()) }
    }

    fn poll(&mut self, cq: CqId, into: &mut [Completion]) -> usize {
        let Some(Some(queue)) = self.cqs.get_mut(cq.index()) else { return 0 };
        let n = queue.entries.len().min(into.len());
        for (entry, slot) in queue.entries.drain(..n).zip(into) {
            *slot = entry.completion;
            if entry.slots > 0
                && let Some(Some(qp)) = self.qps.get_mut(entry.completion.qp.index())
            {
                qp.used -= entry.slots;
            }
        }
        self.cpu = self.cpu + self.nic.poll.0 + self.nic.poll_cqe.0 * n as u64;
        if n == 0 {
            self.spun = self.spun + self.nic.poll.0;
        }
        n
    }
    fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }
}
