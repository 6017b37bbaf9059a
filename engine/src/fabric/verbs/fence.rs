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

impl VerbsFabric {
    /// To ERR from any state but RESET. On return everything outstanding has its completion, to be polled, and the device touches no
    /// memory on behalf of this connection any more.
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
        let rail = self.rails[port.index()];
        let qp = self.qp(id)?;
        qp.to_reset()?;
        qp.to_init(access, &rail, &self.config)?;
        qp.to_err()?;
        // What completed between the last look and the reset.
        self.sweep(spec.send_cq, None);
        self.sweep(spec.recv_cq, None);
        let qp = self.qp_mut(id)?;
        qp.emptied();
        qp.failed();
        qp.fenced = true;
        if spec.srq.is_some() {
            self.last_receive(id);
        }
        if flushed {
            return Ok(());
        }
        let errno = rustix::io::Errno::TIMEDOUT.raw_os_error();
        let advice = "the device did not flush its queues: it needs a reset";
        Err(Error::System { call: "ibv_poll_cq", errno, advice })
    }

    /// Waits until the send queue, and the receive queue of its own, have flushed everything: a marker at their end comes back.
    fn drain(&mut self, id: QpId) -> bool {
        let (mut sent, mut received, mut wanted) = (false, false, 0);
        self.wait_for(PATIENCE, |f| {
            let Ok(spec) = f.qp(id).map(|q| q.spec) else { return true };
            f.sweep(spec.send_cq, None);
            f.sweep(spec.recv_cq, None);
            // A full queue takes the marker when something of it was flushed.
            if !sent {
                sent = f.mark_sends(id);
                wanted += u32::from(sent);
            }
            if !received && spec.srq.is_none() {
                received = f.mark_receives(id);
                wanted += u32::from(received);
                // Soft-RoCE looks at receives posted in ERR only when it is told again.
                let _ = f.qp(id).map(|q| q.to_err());
            }
            let marked = sent && (received || spec.srq.is_some());
            marked && f.qp(id).is_ok_and(|q| q.markers >= wanted)
        })
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
            wr_id: self.marker,
            opcode: ffi::ibv_wr_opcode::IBV_WR_RDMA_WRITE,
            send_flags: ffi::ibv_send_flags::IBV_SEND_SIGNALED.0,
            ..Default::default()
        };
        super::calls::Bell(qp.pair.raw()).post(&mut request).is_ok()
    }

    fn mark_receives(&mut self, id: QpId) -> bool {
        let Ok(qp) = self.qp(id) else { return false };
        let mut recv =
            ffi::ibv_recv_wr { wr_id: self.marker, next: null_mut(), sg_list: null_mut(), num_sge: 0 };
        super::calls::post_recv(qp.pair.raw(), &mut recv).is_ok()
    }
}
