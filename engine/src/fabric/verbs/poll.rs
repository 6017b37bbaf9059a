//! Completions: taking them off the device, knowing whose they are, keeping those that are not wanted yet.

use super::VerbsFabric;
use crate::fabric::{Completion, Done, Failed, Opcode, Status};
use crate::id::{CqId, QpId, WrId};
use ffi::ibv_wc_opcode as opcode;
use ffi::ibv_wc_status as status;
use ibverbs_sys as ffi;

/// Completions taken off a queue with one call.
pub(super) const AT_ONCE: usize = 64;

/// The nearest status of the contract, which has those that reliable connections use; the rest say in `vendor` what they were.
fn failed(code: status::Type, vendor: u32) -> Failed {
    let (near, exact) = match code {
        status::IBV_WC_LOC_LEN_ERR => (Status::LocLen, true),
        status::IBV_WC_LOC_QP_OP_ERR => (Status::LocQpOp, true),
        status::IBV_WC_LOC_PROT_ERR => (Status::LocProt, true),
        status::IBV_WC_WR_FLUSH_ERR => (Status::WrFlush, true),
        status::IBV_WC_REM_INV_REQ_ERR => (Status::RemInvReq, true),
        status::IBV_WC_REM_ACCESS_ERR => (Status::RemAccess, true),
        status::IBV_WC_REM_OP_ERR => (Status::RemOp, true),
        status::IBV_WC_RETRY_EXC_ERR => (Status::RetryExc, true),
        status::IBV_WC_RNR_RETRY_EXC_ERR => (Status::RnrRetryExc, true),
        // A local buffer of a receive, refused while a peer's message came in.
        status::IBV_WC_LOC_ACCESS_ERR | status::IBV_WC_MW_BIND_ERR => (Status::LocProt, false),
        // Answers that never came or were not understood: nothing is known of the target.
        status::IBV_WC_RESP_TIMEOUT_ERR => (Status::RetryExc, false),
        status::IBV_WC_BAD_RESP_ERR | status::IBV_WC_REM_ABORT_ERR => (Status::RemOp, false),
        status::IBV_WC_REM_INV_RD_REQ_ERR => (Status::RemInvReq, false),
        _ => (Status::LocQpOp, false),
    };
    // A status outside the contract without a vendor's word would be lost.
    Failed { status: near, vendor: if exact || vendor != 0 { vendor } else { code } }
}

fn is_receive(wc: &ffi::ibv_wc) -> bool {
    wc.opcode() & opcode::IBV_WC_RECV != 0
}

/// What a completion says. In a failed one only id, status and vendor's word mean anything.
fn completion(qp: QpId, wc: &ffi::ibv_wc) -> Completion {
    let id = WrId(wc.wr_id());
    if let Some((code, vendor)) = wc.error() {
        return Completion { id, qp, result: Err(failed(code, vendor)) };
    }
    let bytes = wc.len() as u32;
    // At the sender of an immediate some drivers set the flag too.
    let imm = if is_receive(wc) { wc.imm_data().map(u32::from_be) } else { None };
    let (opcode, bytes) = match wc.opcode() {
        opcode::IBV_WC_SEND => (Opcode::Send, 0),
        opcode::IBV_WC_RDMA_READ => (Opcode::Read, bytes),
        opcode::IBV_WC_COMP_SWAP => (Opcode::CompareSwap, 8),
        opcode::IBV_WC_FETCH_ADD => (Opcode::FetchAdd, 8),
        opcode::IBV_WC_RECV => (Opcode::Recv, bytes),
        opcode::IBV_WC_RECV_RDMA_WITH_IMM => (Opcode::RecvWithImm, bytes),
        // Nothing else is ever posted.
        _ => (Opcode::Write, 0),
    };
    Completion { id, qp, result: Ok(Done { opcode, bytes, imm }) }
}

impl VerbsFabric {
    /// Takes in that a completion came off a queue. `None` for one that nobody waits for: of a queue pair that was destroyed or is
    /// being reset, or a fence's own.
    fn note(&mut self, nic: usize, cq: CqId, wc: &ffi::ibv_wc, discard: Option<QpId>) -> Option<QpId> {
        let id = *self.numbers.get(&(nic, wc.qp_num))?;
        let qp = self.qps.get_mut(id.index())?.as_deref_mut()?;
        let error = !wc.is_valid();
        let receive = if qp.spec.send_cq != qp.spec.recv_cq {
            Some(cq == qp.spec.recv_cq)
        } else if error {
            None
        } else {
            Some(is_receive(wc))
        };
        if let Some(which) = self.markers.iter().position(|m| *m == wc.wr_id()) {
            *[&mut qp.send_marker, &mut qp.receive_marker][which] = true;
            return None;
        }
        if error {
            qp.failed();
        }
        match (receive, qp.spec.srq) {
            (Some(true), None) => qp.receives = qp.receives.saturating_sub(1),
            (Some(true), Some(srq)) => {
                if let Some(Some(srq)) = self.srqs.get_mut(srq.index()) {
                    srq.posted = srq.posted.saturating_sub(1);
                }
            }
            (None, Some(srq)) => {
                if let Some(Some(srq)) = self.srqs.get_mut(srq.index()) {
                    srq.counted = false;
                }
            }
            _ => {}
        }
        (discard != Some(id)).then_some(id)
    }

    /// The completion as its poller gets it, who thereby frees places of the send queue.
    fn hand_over(&mut self, id: QpId, wc: &ffi::ibv_wc) -> Completion {
        if wc.is_valid()
            && !is_receive(wc)
            && let Some(Some(qp)) = self.qps.get_mut(id.index())
        {
            qp.ledger.complete();
        }
        completion(id, wc)
    }

    fn nic_of(&self, cq: CqId) -> Option<usize> {
        let queue = self.cqs.get(cq.index())?.as_ref()?;
        Some(self.rails[queue.port.index()].nic)
    }

    pub(super) fn poll_cq(&mut self, cq: CqId, into: &mut [Completion]) -> usize {
        let Some(nic) = self.nic_of(cq) else { return 0 };
        let mut n = 0;
        while n < into.len() {
            let Some(queue) = &mut self.cqs[cq.index()] else { break };
            if let Some((qp, wc)) = queue.stash.pop_front() {
                into[n] = self.hand_over(qp, &wc);
                n += 1;
                continue;
            }
            let want = (into.len() - n).min(AT_ONCE);
            let got = queue.raw.poll(&mut self.wcs[..want]);
            let mut refused = false;
            for i in 0..got {
                let wc = self.wcs[i];
                if let Some(qp) = self.note(nic, cq, &wc, None) {
                    into[n] = self.hand_over(qp, &wc);
                    refused |= matches!(into[n].result, Err(failed) if failed.status == Status::LocQpOp);
                    n += 1;
                }
            }
            if refused && let Some(queue) = &self.cqs[cq.index()] {
                let port = queue.port;
                // Without a link Soft-RoCE fails requests so, before it tells of the link.
                self.look_at(port);
            }
            if got < want {
                break;
            }
        }
        n
    }

    /// Takes everything off a queue and keeps it, but for what belongs to `discard`.
    pub(super) fn sweep(&mut self, cq: CqId, discard: Option<QpId>) {
        let Some(nic) = self.nic_of(cq) else { return };
        loop {
            let Some(queue) = &mut self.cqs[cq.index()] else { return };
            let got = queue.raw.poll(&mut self.wcs);
            for i in 0..got {
                let wc = self.wcs[i];
                if let Some(qp) = self.note(nic, cq, &wc, discard)
                    && let Some(queue) = &mut self.cqs[cq.index()]
                {
                    queue.stash.push_back((qp, wc));
                }
            }
            if got < self.wcs.len() {
                break;
            }
        }
        if let (Some(id), Some(queue)) = (discard, &mut self.cqs[cq.index()]) {
            queue.stash.retain(|(qp, _)| *qp != id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_has_a_place() {
        for code in 1..=status::IBV_WC_TM_RNDV_INCOMPLETE {
            let exact = failed(code, 7);
            assert_eq!(exact.vendor, 7);
            // Those that the contract has are told apart from those that are only near.
            let bare = failed(code, 0);
            assert_eq!(bare.status, exact.status);
            assert!(bare.vendor == 0 || bare.vendor == code);
        }
        assert_eq!(failed(status::IBV_WC_WR_FLUSH_ERR, 0), Failed { status: Status::WrFlush, vendor: 0 });
        assert_eq!(failed(status::IBV_WC_GENERAL_ERR, 0), Failed { status: Status::LocQpOp, vendor: 21 });
    }
}
