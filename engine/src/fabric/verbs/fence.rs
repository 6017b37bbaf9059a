//! Moving a queue pair to ERR, and knowing that nothing of its connection is under way any more.

use super::VerbsFabric;
use crate::fabric::{Error, QpState, Result};
use crate::id::QpId;
use ibverbs_sys as ffi;
use std::ptr::null_mut;
use std::time::Duration;
#[expect(clippy::disallowed_types, reason = "real devices live in real time")]
use std::time::Instant;

/// Far more than any device takes to flush its queues. Software devices are at the mercy of the scheduler.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long the event of an emptied shared receive queue is waited for; some drivers never send it.
const LAST_RECEIVE: Duration = Duration::from_millis(2);
/// Vendor of Soft-RoCE (Linux rxe_param.h, `RXE_VENDOR_ID`).
const SOFT_ROCE: u32 = 0xff_ffff;

impl VerbsFabric {
    /// To ERR from any state but RESET. On return the device touches no memory on behalf of this connection any more, and everything
    /// outstanding has its completion, to be polled. An error says that completions are missing, or that the device is lost.
    pub(super) fn fence(&mut self, id: QpId) -> Result<()> {
        let qp = self.qp_mut(id)?;
        if qp.state == QpState::Reset {
            return Err(Error::State { what: "the queue pair", state: qp.state });
        }
        if qp.fenced {
            return Ok(());
        }
        qp.to_err()?;
        qp.failed();
        let (access, port, spec) = (qp.access, qp.port, qp.spec);
        let flushed = self.drain(id);
        if spec.srq.is_some() {
            self.wait_for(LAST_RECEIVE, |f| {
                f.take_events();
                f.sweep(spec.recv_cq, None);
                f.qp(id).map_or(true, |q| q.told_last)
            });
        }
        self.sever(id)?;
        // What completed between the last look and the cut.
        self.sweep(spec.send_cq, None);
        self.sweep(spec.recv_cq, None);
        self.forget_old(id);
        let rail = self.rails[port.index()];
        let qp = self.qp(id)?;
        qp.to_init(access, &rail, &self.config)?;
        qp.to_err()?;
        let qp = self.qp_mut(id)?;
        qp.emptied();
        qp.failed();
        qp.fenced = true;
        if spec.srq.is_some() {
            self.last_receive(id);
        }
        flushed
    }

    /// Ends the connection of a queue pair for good, and leaves it in RESET. Completions that the device made before stay in the queues;
    /// [`VerbsFabric::forget_old`] is to be called when they were taken. If the one way is refused the other is tried: what fails both
    /// ways is a device that is lost.
    pub(super) fn sever(&mut self, id: QpId) -> Result<()> {
        let qp = self.qp(id)?;
        let nic = self.rails[qp.port.index()].nic;
        let replace = qp.exposed && self.nics[nic].info.vendor.0 == SOFT_ROCE;
        let done = if replace {
            self.replace(id).or_else(|_| self.qp(id)?.to_reset())
        } else {
            qp.to_reset().or_else(|why| self.replace(id).map_err(|_| why))
        };
        if done.is_ok() {
            self.qp_mut(id)?.exposed = false;
        }
        done
    }

    /// Puts a new queue pair of the device in the place of the old one. The new one is made first, so that nothing is lost by a failure.
    fn replace(&mut self, id: QpId) -> Result<()> {
        let qp = self.qp(id)?;
        // Nothing more may come in while the old one waits for what it works on.
        let _ = qp.to_err();
        let (port, spec) = (qp.port, qp.spec);
        let new = self.make_pair(id, port, &spec)?;
        let nic = self.rails[port.index()].nic;
        self.numbers.insert((nic, new.number()), id);
        let qp = self.qp_mut(id)?;
        let old = std::mem::replace(&mut qp.pair, new);
        let number = old.number();
        match old.destroy() {
            Ok(()) => {
                qp.old.push(number);
                Ok(())
            }
            Err((old, errno)) => {
                let new = std::mem::replace(&mut qp.pair, old);
                self.numbers.remove(&(nic, new.number()));
                Err(Error::System { call: "ibv_destroy_qp", errno, advice: super::sys::advice(errno) })
            }
        }
    }

    /// No completion is told by an earlier number of the queue pair any more.
    pub(super) fn forget_old(&mut self, id: QpId) {
        let Ok(qp) = self.qp_mut(id) else { return };
        let (port, old) = (qp.port, std::mem::take(&mut qp.old));
        let nic = self.rails[port.index()].nic;
        for number in old {
            self.numbers.remove(&(nic, number));
        }
    }

    /// Waits until the send queue, and the receive queue of its own, have flushed everything: a marker at their end comes back.
    fn drain(&mut self, id: QpId) -> Result<()> {
        let (mut sent, mut received) = (false, false);
        let own = self.qp(id)?.spec.srq.is_none();
        let flushed = self.wait_for(PATIENCE, |f| {
            let Ok(spec) = f.qp(id).map(|q| q.spec) else { return true };
            f.sweep(spec.send_cq, None);
            f.sweep(spec.recv_cq, None);
            // A full queue takes the marker when something of it was flushed.
            if !sent {
                sent = f.mark_sends(id);
            }
            if own && !received {
                received = f.mark_receives(id);
                // Soft-RoCE looks at receives posted in ERR only when it is told again.
                let _ = f.qp(id).map(|q| q.to_err());
            }
            f.qp(id).map_or(true, |q| q.send_marker && (q.receive_marker || !own))
        });
        if flushed {
            return Ok(());
        }
        let errno = rustix::io::Errno::TIMEDOUT.raw_os_error();
        let qp = self.qp(id)?;
        let advice = match (qp.send_marker, qp.receive_marker || !own) {
            (false, true) => "the device did not flush the send queue; the connection is cut all the same",
            (true, false) => "the device did not flush the receive queue; the connection is cut all the same",
            _ => "the device flushed neither queue; the connection is cut all the same",
        };
        Err(Error::System { call: "ibv_poll_cq", errno, advice })
    }

    fn wait_for(&mut self, time: Duration, mut done: impl FnMut(&mut Self) -> bool) -> bool {
        #[expect(clippy::disallowed_types, reason = "real devices live in real time")]
        let start = Instant::now();
        loop {
            if done(self) {
                return true;
            }
            if start.elapsed() > time {
                return false;
            }
            std::thread::yield_now();
        }
    }

    fn mark_sends(&mut self, id: QpId) -> bool {
        let Ok(qp) = self.qp(id) else { return false };
        let mut request = ffi::ibv_send_wr {
            wr_id: self.markers[0],
            opcode: ffi::ibv_wr_opcode::IBV_WR_RDMA_WRITE,
            send_flags: ffi::ibv_send_flags::IBV_SEND_SIGNALED.0,
            ..Default::default()
        };
        super::calls::Bell(qp.pair.raw()).post(&mut request).is_ok()
    }

    fn mark_receives(&mut self, id: QpId) -> bool {
        let Ok(qp) = self.qp(id) else { return false };
        let mut recv =
            ffi::ibv_recv_wr { wr_id: self.markers[1], next: null_mut(), sg_list: null_mut(), num_sge: 0 };
        super::calls::post_recv(qp.pair.raw(), &mut recv).is_ok()
    }
}
