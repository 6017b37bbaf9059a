//! The calls of [`Fabric`] and [`Device`].

use super::post::{Caps, Doorbell, Ledger, refusal};
use super::qp::Qp;
use super::{Cq, Srq, VerbsFabric, list, open, sys};
use crate::fabric::{
    Access, Completion, Content, Device, Endpoint, Error, Event, Extent, Fabric, Gid, Grid, Item, Limits,
    LinkLayer, LocalCopy, Memory as Kind, Mr, Objects, Port, QpSpec, QpState, Recv, Refused, Result, Sge,
    SrqSpec, Step, Units,
};
use crate::id::{BufId, CopyId, CqId, MrId, PortId, QpId, SrqId};
use ibverbs_sys as ffi;
use rand_chacha::rand_core::Rng;
use std::collections::VecDeque;
use std::ffi::{c_int, c_void};
use std::ops::Range;
use std::os::fd::RawFd;
use std::ptr::null_mut;

/// Receives handed to the device with one call.
const RECEIVES: usize = 64;

fn check(ok: bool, what: &'static str, value: u64, right: &'static str) -> Result<()> {
    if ok { Ok(()) } else { Err(Error::Invalid { what, value, right }) }
}

fn system(call: &'static str) -> impl Fn(i32) -> Error {
    move |errno| Error::System { call, errno, advice: sys::advice(errno) }
}

/// The object at an index of a list of those that exist or existed.
fn find<'a, T>(list: &'a mut [Option<T>], index: usize, what: &'static str) -> Result<&'a mut T> {
    list.get_mut(index).and_then(Option::as_mut).ok_or(Error::NoSuch(what))
}

/// How many entries of an array lie before the one that a failed call names.
fn before<T>(head: *const T, bad: *const T) -> usize {
    // A driver that names none has taken all of them, and then could not tell the device.
    if bad.is_null() { usize::MAX } else { (bad as usize).wrapping_sub(head as usize) / size_of::<T>() }
}

/// A queue pair's doorbell.
pub(super) struct Bell(pub(super) *mut ffi::ibv_qp);

impl Bell {
    /// Posts what `head` leads to.
    pub(super) fn post(&mut self, head: *mut ffi::ibv_send_wr) -> Result<(), (usize, i32)> {
        let mut bad = null_mut();
        // SAFETY: the queue pair exists while its fabric is borrowed; `head` starts a chain that ends in null, with gather lists that
        // are valid during the call, as drivers copy what they need. Every driver fills in post_send.
        let errno = unsafe {
            match (*(*self.0).context).ops.post_send {
                Some(post) => post(self.0, head, &mut bad),
                None => rustix::io::Errno::OPNOTSUPP.raw_os_error(),
            }
        };
        if errno == 0 { Ok(()) } else { Err((before(head, bad), errno)) }
    }
}

impl Doorbell for Bell {
    fn ring(&mut self, head: *mut ffi::ibv_send_wr) -> Result<(), (usize, i32)> {
        self.post(head)
    }
}

/// Posts receives on a queue pair.
pub(super) fn post_recv(qp: *mut ffi::ibv_qp, head: *mut ffi::ibv_recv_wr) -> Result<(), (usize, i32)> {
    let mut bad = null_mut();
    // SAFETY: as in `Bell::post`.
    let errno = unsafe {
        match (*(*qp).context).ops.post_recv {
            Some(post) => post(qp, head, &mut bad),
            None => rustix::io::Errno::OPNOTSUPP.raw_os_error(),
        }
    };
    if errno == 0 { Ok(()) } else { Err((before(head, bad), errno)) }
}

fn post_srq_recv(srq: *mut ffi::ibv_srq, head: *mut ffi::ibv_recv_wr) -> Result<(), (usize, i32)> {
    let mut bad = null_mut();
    // SAFETY: as in `Bell::post`.
    let errno = unsafe {
        match (*(*srq).context).ops.post_srq_recv {
            Some(post) => post(srq, head, &mut bad),
            None => rustix::io::Errno::OPNOTSUPP.raw_os_error(),
        }
    };
    if errno == 0 { Ok(()) } else { Err((before(head, bad), errno)) }
}

fn begins_with(gid: &Gid, prefix: &Gid, bits: u8) -> bool {
    let mask = u128::MAX.checked_shl(128 - u32::from(bits.min(128))).unwrap_or(0);
    (u128::from_be_bytes(*gid) ^ u128::from_be_bytes(*prefix)) & mask == 0
}

impl VerbsFabric {
    /// Posts `count` receives alike through `post`, in chunks. Returns how many were posted, and why not more.
    fn post_receives(
        &mut self,
        recv: &Recv<'_>,
        count: u32,
        mut post: impl FnMut(*mut ffi::ibv_recv_wr) -> Result<(), (usize, i32)>,
    ) -> (u32, Result<()>) {
        let mut sges: Vec<ffi::ibv_sge> = Vec::with_capacity(recv.sges.len());
        sges.extend(recv.sges.iter().map(|s: &Sge| ffi::ibv_sge {
            addr: s.addr,
            length: s.len,
            lkey: s.lkey.0,
        }));
        let mut done = 0;
        while done < count {
            let n = (count - done).min(RECEIVES as u32);
            self.recvs.clear();
            self.recvs.extend((0..n).map(|i| ffi::ibv_recv_wr {
                wr_id: recv.first.0.wrapping_add(u64::from(done + i)),
                next: null_mut(),
                sg_list: sges.as_mut_ptr(),
                num_sge: sges.len() as c_int,
            }));
            let base = self.recvs.as_mut_ptr();
            for (i, wr) in self.recvs.iter_mut().enumerate().take(n as usize - 1) {
                wr.next = base.wrapping_add(i + 1);
            }
            if let Err((posted, errno)) = post(base) {
                return (done + (posted.min(n as usize)) as u32, Err(refusal(errno)));
            }
            done += n;
        }
        (done, Ok(()))
    }

    /// Makes a queue pair of the device, in RESET.
    pub(super) fn make_pair(&mut self, id: QpId, port: PortId, spec: &QpSpec) -> Result<sys::Pair> {
        let nic = self.rail(port)?.nic;
        let send_cq = find(&mut self.cqs, spec.send_cq.index(), "completion queue")?.raw.raw();
        let recv_cq = find(&mut self.cqs, spec.recv_cq.index(), "completion queue")?.raw.raw();
        let srq = match spec.srq {
            Some(srq) => find(&mut self.srqs, srq.index(), "shared receive queue")?.raw.raw(),
            None => null_mut(),
        };
        let receives = if spec.srq.is_some() { 0 } else { spec.max_recv + list::RESERVED };
        let mut init = ffi::ibv_qp_init_attr {
            qp_context: id.index() as *mut c_void,
            send_cq,
            recv_cq,
            srq,
            cap: ffi::ibv_qp_cap {
                max_send_wr: spec.max_send + list::RESERVED,
                max_recv_wr: receives,
                max_send_sge: spec.max_sge.max(1),
                max_recv_sge: spec.max_sge.max(1),
                max_inline_data: spec.max_inline,
            },
            qp_type: ffi::ibv_qp_type::IBV_QPT_RC,
            sq_sig_all: 0,
        };
        // SAFETY: domain, queues and attributes are valid and of one device; the tag is a number.
        let pair = unsafe { ffi::ibv_create_qp(self.nics[nic].context.pd, &mut init) };
        sys::Pair::new(pair).map_err(system("ibv_create_qp"))
    }

    /// A failed queue pair whose receives the device may not look at by itself.
    fn kick(&self, qp: QpId) {
        if let Ok(qp) = self.qp(qp)
            && qp.state == QpState::Err
        {
            // It cannot fail in a way that matters: the queue pair is in ERR.
            let _ = qp.to_err();
        }
    }
}

impl Fabric for VerbsFabric {
    fn ports(&self) -> &[Port] {
        &self.ports
    }
    fn limits(&self) -> &Limits {
        &self.limits
    }
    fn reaches(&self, port: PortId, peer: &Endpoint) -> bool {
        let Some(own) = self.ports.get(port.index()) else { return false };
        if own.link_layer == LinkLayer::Ethernet && peer.gid == [0; 16] {
            return false;
        }
        self.config.reach.is_empty()
            || self.config.reach.iter().any(|line| {
                open::is_named(own, &line.local) && begins_with(&peer.gid, &line.prefix, line.bits)
            })
    }

    fn alloc(&mut self, kind: Kind, grid: Grid) -> Result<BufId> {
        self.memory.alloc(kind, grid)
    }
    fn free(&mut self, buf: BufId) -> Result<()> {
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
    fn copy(&mut self, _engine: u32, id: CopyId, parts: &[LocalCopy<'_>]) -> Result<()> {
        // The CPU does it in the call; that it is over is told like everything else, or nodes would be called back from within.
        self.memory.copy(parts)?;
        self.events.push_back(Event::Copied(id));
        Ok(())
    }

    fn register(&mut self, port: PortId, buf: BufId, span: Range<u64>, access: Access) -> Result<Mr> {
        let nic = self.rail(port)?.nic;
        let context = &self.nics[nic].context;
        self.memory.register(context, buf, span, access, self.config.relaxed_ordering)
    }
    fn deregister(&mut self, mr: MrId) -> Result<()> {
        self.memory.deregister(mr)
    }

    fn create_cq(&mut self, port: PortId, depth: u32) -> Result<CqId> {
        let nic = self.rail(port)?.nic;
        let most = self.limits.max_cqe;
        check((1..=most).contains(&depth), "depth", depth.into(), "1 to the device's max_cqe")?;
        let id = CqId(self.cqs.len() as u32);
        let context = &self.nics[nic].context;
        // SAFETY: context and channel are valid; the tag is a number.
        let raw = unsafe {
            ffi::ibv_create_cq(context.ctx, depth as c_int, id.index() as *mut c_void, context.channel, 0)
        };
        let raw = sys::Completions::new(raw).map_err(system("ibv_create_cq"))?;
        self.cqs.push(Some(Cq { raw, port, users: 0, stash: VecDeque::new() }));
        self.live_cqs.push(id);
        Ok(id)
    }
    fn destroy_cq(&mut self, cq: CqId) -> Result<()> {
        if find(&mut self.cqs, cq.index(), "completion queue")?.users > 0 {
            return Err(Error::Busy("completion queue"));
        }
        let slot = &mut self.cqs[cq.index()];
        if let Some(Cq { raw, port, users, stash }) = slot.take()
            && let Err((raw, errno)) = raw.destroy()
        {
            *slot = Some(Cq { raw, port, users, stash });
            return Err(system("ibv_destroy_cq")(errno));
        }
        self.live_cqs.retain(|id| *id != cq);
        Ok(())
    }

    fn create_srq(&mut self, port: PortId, spec: SrqSpec) -> Result<SrqId> {
        let nic = &self.nics[self.rail(port)?.nic];
        let right = "1 to the device's max_srq_wr";
        let max_recv = spec.max_recv;
        check((1..=self.limits.max_srq_wr).contains(&max_recv), "max_recv", max_recv.into(), right)?;
        let right = "at most the device's max_sge";
        let most = self.limits.max_sge.min(nic.info.max_srq_sge);
        check(spec.max_sge <= most, "max_sge", spec.max_sge.into(), right)?;
        let id = SrqId(self.srqs.len() as u32);
        let mut init = ffi::ibv_srq_init_attr {
            srq_context: id.index() as *mut c_void,
            attr: ffi::ibv_srq_attr { max_wr: max_recv, max_sge: spec.max_sge.max(1), srq_limit: 0 },
        };
        // SAFETY: the protection domain and the attributes are valid; the tag is a number.
        let raw = unsafe { ffi::ibv_create_srq(nic.context.pd, &mut init) };
        let raw = sys::Shared::new(raw).map_err(system("ibv_create_srq"))?;
        self.srqs.push(Some(Srq { raw, port, spec, users: 0, posted: 0, counted: true }));
        Ok(id)
    }
    fn arm_srq(&mut self, srq: SrqId, limit: u32) -> Result<()> {
        let own = find(&mut self.srqs, srq.index(), "shared receive queue")?;
        check(limit <= own.spec.max_recv, "limit", limit.into(), "at most max_recv")?;
        let users = self.qps.iter().flatten().filter(|q| q.spec.srq == Some(srq));
        let queues: Vec<_> = users.map(|q| q.spec.recv_cq).collect();
        queues.into_iter().for_each(|cq| self.sweep(cq, None));
        let own = find(&mut self.srqs, srq.index(), "shared receive queue")?;
        // Already below: mlx5 tells at once, Soft-RoCE at the next receive, which may never come.
        if own.counted && own.posted < limit {
            self.events.push_back(Event::SrqLimit(srq));
            return Ok(());
        }
        let mut attr = ffi::ibv_srq_attr { max_wr: 0, max_sge: 0, srq_limit: limit };
        // SAFETY: the queue and the attributes are valid.
        let errno = unsafe { ffi::ibv_modify_srq(own.raw.raw(), &mut attr, ffi::IBV_SRQ_LIMIT as c_int) };
        sys::check(errno).map_err(system("ibv_modify_srq"))
    }
    fn destroy_srq(&mut self, srq: SrqId) -> Result<()> {
        if find(&mut self.srqs, srq.index(), "shared receive queue")?.users > 0 {
            return Err(Error::Busy("shared receive queue"));
        }
        let slot = &mut self.srqs[srq.index()];
        if let Some(own) = slot.take() {
            let Srq { raw, port, spec, users, posted, counted } = own;
            if let Err((raw, errno)) = raw.destroy() {
                *slot = Some(Srq { raw, port, spec, users, posted, counted });
                return Err(system("ibv_destroy_srq")(errno));
            }
        }
        Ok(())
    }

    fn create_qp(&mut self, port: PortId, spec: QpSpec) -> Result<QpId> {
        let nic = self.rail(port)?.nic;
        let limits = self.limits;
        let right = "at most the device's max_qp";
        check(self.live_qps < limits.max_qp, "queue pairs", self.live_qps.into(), right)?;
        for (what, value, most, right) in [
            ("max_send", spec.max_send, limits.max_qp_wr, "at most the device's max_qp_wr"),
            ("max_recv", spec.max_recv, limits.max_qp_wr, "at most the device's max_qp_wr"),
            ("max_sge", spec.max_sge, limits.max_sge, "at most the device's max_sge"),
            ("max_inline", spec.max_inline, limits.max_inline, "at most the device's max_inline"),
        ] {
            check(value <= most, what, value.into(), right)?;
        }
        for cq in [spec.send_cq, spec.recv_cq] {
            let own = find(&mut self.cqs, cq.index(), "completion queue")?;
            check(own.port == port, "port", port.0.into(), "a completion queue of the same port")?;
        }
        if let Some(srq) = spec.srq {
            check(spec.max_recv == 0, "max_recv", spec.max_recv.into(), "0 with a shared receive queue")?;
            let own = find(&mut self.srqs, srq.index(), "shared receive queue")?;
            check(own.port == port, "port", port.0.into(), "a shared receive queue of the same port")?;
        }
        let id = QpId(self.qps.len() as u32);
        let pair = self.make_pair(id, port, &spec)?;
        self.numbers.insert((nic, pair.number()), id);
        self.qps.push(Some(Box::new(Qp {
            id,
            port,
            spec,
            pair,
            state: QpState::Reset,
            psn: 0,
            access: Access::default(),
            ledger: Ledger::new(spec.max_send),
            receives: 0,
            send_marker: false,
            receive_marker: false,
            exposed: false,
            old: Vec::new(),
            fenced: false,
            told_last: false,
        })));
        self.live_qps += 1;
        for cq in [spec.send_cq, spec.recv_cq] {
            find(&mut self.cqs, cq.index(), "completion queue")?.users += 1;
        }
        if let Some(srq) = spec.srq {
            find(&mut self.srqs, srq.index(), "shared receive queue")?.users += 1;
        }
        Ok(id)
    }
    fn endpoint(&self, qp: QpId) -> Result<Endpoint> {
        self.qp(qp).map(|qp| self.end(qp))
    }
    fn modify_qp(&mut self, id: QpId, step: Step) -> Result<()> {
        let state = self.qp_mut(id)?.learn();
        let allowed = match step {
            Step::Reset => true,
            Step::Err => state != QpState::Reset,
            Step::Init(_) => matches!(state, QpState::Reset | QpState::Init),
            Step::Rtr(_) => state == QpState::Init,
            Step::Rts(_) => state == QpState::Rtr,
        };
        if !allowed {
            return Err(Error::State { what: "the queue pair", state });
        }
        if step == Step::Err {
            return self.fence(id);
        }
        let reads = self.limits.max_rd_atomic;
        let qp = self.qp(id)?;
        let rail = self.rails[qp.port.index()];
        let mut psn = qp.psn;
        let (to, access) = match step {
            Step::Reset | Step::Err => {
                let access = qp.access;
                self.sever(id)?;
                (QpState::Reset, access)
            }
            Step::Init(access) => {
                qp.to_init(access, &rail, &self.config)?;
                psn = self.psns.next_u32() & 0xff_ffff;
                (QpState::Init, access)
            }
            Step::Rtr(rtr) => {
                qp.to_rtr(&rtr, &self.end(qp), &rail, &self.config, reads)?;
                (QpState::Rtr, qp.access)
            }
            Step::Rts(rts) => {
                qp.to_rts(&rts, reads)?;
                (QpState::Rts, qp.access)
            }
        };
        let qp = self.qp_mut(id)?;
        (qp.state, qp.access, qp.psn) = (to, access, psn);
        qp.exposed |= to == QpState::Rtr;
        if to == QpState::Reset {
            let spec = qp.spec;
            self.sweep(spec.send_cq, Some(id));
            self.sweep(spec.recv_cq, Some(id));
            self.forget_old(id);
            let qp = self.qp_mut(id)?;
            qp.emptied();
            (qp.fenced, qp.told_last) = (false, false);
        }
        Ok(())
    }
    fn qp_state(&self, qp: QpId) -> Result<QpState> {
        self.qp(qp).map(Qp::real_state)
    }
    fn destroy_qp(&mut self, id: QpId) -> Result<()> {
        let slot = self.qps.get_mut(id.index()).ok_or(Error::NoSuch("queue pair"))?;
        let mut own = slot.take().ok_or(Error::NoSuch("queue pair"))?;
        let (port, spec, number) = (own.port, own.spec, own.pair.number());
        if let Err((pair, errno)) = own.pair.destroy() {
            own.pair = pair;
            *slot = Some(own);
            return Err(system("ibv_destroy_qp")(errno));
        }
        // Its number may be given to the next one: nothing of this one may be left then.
        self.numbers.remove(&(self.rails[port.index()].nic, number));
        self.live_qps -= 1;
        for cq in [spec.send_cq, spec.recv_cq] {
            self.sweep(cq, Some(id));
            find(&mut self.cqs, cq.index(), "completion queue")?.users -= 1;
        }
        if let Some(srq) = spec.srq {
            find(&mut self.srqs, srq.index(), "shared receive queue")?.users -= 1;
        }
        Ok(())
    }

    fn post_send(&mut self, id: QpId, items: &[Item<'_>]) -> Result<(), Refused> {
        let refuse = |why| Refused { at: 0, why };
        let Some(Some(qp)) = self.qps.get_mut(id.index()) else {
            return Err(refuse(Error::NoSuch("queue pair")));
        };
        if !matches!(qp.state, QpState::Rts | QpState::Err) && qp.learn() != QpState::Err {
            let state = qp.state;
            return Err(refuse(Error::State { what: "post_send needs RTS; the queue pair", state }));
        }
        let caps = Caps {
            max_sge: qp.spec.max_sge,
            max_inline: qp.spec.max_inline,
            max_message: self.limits.max_message,
        };
        let sees = |addr, len| self.memory.sees(addr, len);
        self.chain.post(items, &caps, &mut qp.ledger, &sees, &mut Bell(qp.pair.raw()))
    }
    fn post_recv(&mut self, id: QpId, recv: Recv<'_>) -> Result<(), Refused> {
        let refuse = |at, why| Err(Refused { at, why });
        let qp = match self.qp_mut(id) {
            Ok(qp) => qp,
            Err(why) => return refuse(0, why),
        };
        if qp.spec.srq.is_some() {
            return refuse(0, Error::Unsupported("receives on a queue pair with a shared receive queue"));
        }
        if qp.state == QpState::Reset {
            let what = "post_recv needs INIT or later; the queue pair";
            return refuse(0, Error::State { what, state: qp.state });
        }
        let (value, right) = (recv.sges.len() as u64, "at most the queue pair's max_sge");
        if value > u64::from(qp.spec.max_sge) {
            return refuse(0, Error::Invalid { what: "SGEs of a receive", value, right });
        }
        let (cq, raw, max) = (qp.spec.recv_cq, qp.pair.raw(), qp.spec.max_recv);
        let free = |f: &Self| f.qp(id).map_or(0, |q| max.saturating_sub(q.receives));
        if free(self) < recv.count {
            // Those that completed have left the queue, polled or not.
            self.sweep(cq, None);
        }
        let failed = self.qp(id).is_ok_and(|q| q.state == QpState::Err);
        let room = if failed { recv.count } else { recv.count.min(free(self)) };
        let (posted, result) = self.post_receives(&recv, room, |head| post_recv(raw, head));
        if let Ok(qp) = self.qp_mut(id) {
            qp.receives = qp.receives.saturating_add(posted);
        }
        if posted > 0 {
            self.kick(id);
        }
        match result {
            Err(why) => refuse(posted.into(), why),
            Ok(()) if posted < recv.count => refuse(posted.into(), Error::QueueFull),
            Ok(()) => Ok(()),
        }
    }
    fn post_srq_recv(&mut self, srq: SrqId, recv: Recv<'_>) -> Result<(), Refused> {
        let refuse = |at, why| Err(Refused { at, why });
        let own = match find(&mut self.srqs, srq.index(), "shared receive queue") {
            Ok(own) => own,
            Err(why) => return refuse(0, why),
        };
        let (value, right) = (recv.sges.len() as u64, "at most the shared receive queue's max_sge");
        if value > u64::from(own.spec.max_sge) {
            return refuse(0, Error::Invalid { what: "SGEs of a receive", value, right });
        }
        let (raw, max) = (own.raw.raw(), own.spec.max_recv);
        let free = |f: &mut Self| match find(&mut f.srqs, srq.index(), "shared receive queue") {
            Ok(own) if own.counted => max.saturating_sub(own.posted),
            Ok(_) => u32::MAX,
            Err(_) => 0,
        };
        if free(self) < recv.count {
            let users = self.qps.iter().flatten().filter(|q| q.spec.srq == Some(srq));
            let queues: Vec<_> = users.map(|q| q.spec.recv_cq).collect();
            queues.into_iter().for_each(|cq| self.sweep(cq, None));
        }
        let room = recv.count.min(free(self));
        let (posted, result) = self.post_receives(&recv, room, |head| post_srq_recv(raw, head));
        if let Ok(own) = find(&mut self.srqs, srq.index(), "shared receive queue") {
            own.posted = own.posted.saturating_add(posted);
        }
        match result {
            Err(why) => refuse(posted.into(), why),
            Ok(()) if posted < recv.count => refuse(posted.into(), Error::QueueFull),
            Ok(()) => Ok(()),
        }
    }

    fn poll(&mut self, cq: CqId, into: &mut [Completion]) -> usize {
        self.poll_cq(cq, into)
    }
    fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }
}

impl Device for VerbsFabric {
    fn queues(&self) -> &[CqId] {
        &self.live_cqs
    }
    fn arm(&mut self) -> Result<()> {
        for queue in self.cqs.iter().flatten() {
            queue.raw.arm().map_err(system("ibv_req_notify_cq"))?;
        }
        Ok(())
    }
    fn descriptors(&self) -> &[RawFd] {
        &self.descriptors
    }
    fn wake(&mut self) {
        for nic in &self.nics {
            nic.context.take_completion_events();
        }
        self.take_events();
    }
    fn objects(&self) -> Objects {
        let (buffers, memory_regions) = self.memory.objects();
        Objects {
            buffers,
            memory_regions,
            queue_pairs: self.qps.iter().flatten().count(),
            completion_queues: self.cqs.iter().flatten().count(),
            shared_receive_queues: self.srqs.iter().flatten().count(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_count_bits_from_the_left() {
        let mut gid = [0; 16];
        (gid[0], gid[15]) = (0b1010_0000, 1);
        let mut prefix = [0; 16];
        prefix[0] = 0b1011_0000;
        assert!(begins_with(&gid, &prefix, 0));
        assert!(begins_with(&gid, &prefix, 3));
        assert!(!begins_with(&gid, &prefix, 4));
        assert!(begins_with(&gid, &gid, 128));
        assert!(!begins_with(&gid, &[0; 16], 128));
    }
}
