//! Where Soft-RoCE says something else than the specification. Comparisons go through this table; nothing else is lenient.

use engine::fabric::Status;
use std::collections::BTreeMap;

/// Which work queue a completion is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queue {
    /// Send queue.
    Send,
    /// Receive queue.
    Receive,
}

/// One status that rxe gives where the specification names another.
#[derive(Debug)]
pub struct Quirk {
    /// When.
    pub case: &'static str,
    /// In which work queue.
    pub queue: Queue,
    /// The specification's word.
    pub spec: Status,
    /// Where it says so.
    pub source: &'static str,
    /// What rxe says.
    pub rxe: Status,
    /// Where it does.
    pub why: &'static str,
}

/// All of them.
pub const QUIRKS: &[Quirk] = &[
    Quirk {
        case: "bad local key, range or right",
        queue: Queue::Send,
        spec: Status::LocProt,
        source: "InfiniBand spec 11.6.2, local protection error; IBV_WC_LOC_PROT_ERR in ibv_poll_cq(3)",
        rxe: Status::LocQpOp,
        why: "rxe_req.c: a packet that cannot be filled ends as IB_WC_LOC_QP_OP_ERR",
    },
    Quirk {
        case: "receive buffer too small",
        queue: Queue::Send,
        spec: Status::RemInvReq,
        source: "InfiniBand spec 11.6.2, remote invalid request error; IBV_WC_REM_INV_REQ_ERR in ibv_poll_cq(3)",
        rxe: Status::RemOp,
        why: "rxe_resp.c: RESPST_ERR_MALFORMED_WQE is answered with a NAK for a remote operational error",
    },
    Quirk {
        case: "receive buffer too small",
        queue: Queue::Receive,
        spec: Status::LocLen,
        source: "InfiniBand spec 11.6.2, local length error; IBV_WC_LOC_LEN_ERR in ibv_poll_cq(3)",
        rxe: Status::LocQpOp,
        why: "rxe_resp.c: RESPST_ERR_MALFORMED_WQE completes the receive with IB_WC_LOC_QP_OP_ERR",
    },
    Quirk {
        case: "receive with a bad local key",
        queue: Queue::Receive,
        spec: Status::LocProt,
        source: "InfiniBand spec 11.6.2, local protection error; IBV_WC_LOC_PROT_ERR in ibv_poll_cq(3)",
        rxe: Status::LocQpOp,
        why: "rxe_resp.c: as for a receive that is too small, RESPST_ERR_MALFORMED_WQE",
    },
    Quirk {
        case: "WRITE with immediate that the responder refuses",
        queue: Queue::Receive,
        spec: Status::WrFlush,
        source: "InfiniBand spec 11.6.2 has no remote access error on a receive queue: the receive was not used, so it is flushed",
        rxe: Status::RemAccess,
        why: "rxe_resp.c: check_resource takes the receive before check_rkey refuses; it completes with IB_WC_REM_ACCESS_ERR",
    },
];

/// What rxe does so wrong that no outcome of it can be compared. No random program that runs on devices has it.
pub const AVOIDED: &[(&str, &str)] = &[
    (
        "a fence after an RNR NAK or timeout, on a queue pair with READs or atomics behind it",
        "rxe_req.c, rxe_wqe_is_fenced: a READ or atomic that was sent once holds its place among the outstanding ones while it is \
         sent again, and so the fence before it, or its own, waits for ever",
    ),
    (
        "a misaligned atomic",
        "rdma-core providers/rxe/rxe.c, validate_send_wr: refused at posting with EINVAL, where the specification has the responder refuse it \
         (9.4.5)",
    ),
    (
        "a local protection error while an earlier request is outstanding",
        "seen now and then, mostly between two devices: neither the request at fault nor those after it ever complete, and the queue \
         pair stays in RTS",
    ),
    (
        "a retransmission while acknowledgements come in",
        "up to Linux 6.9 the requester and the completer are two tasks without a common lock. req_retry (rxe_req.c) sets a request up to be \
         sent again from comp.psn on, which the completer (rxe_comp.c) moves at the same time: the packet then has the number that the \
         responder expects, and the opcode or length of another place of the message. The responder refuses it (rxe_resp.c, check_op_seq \
         and RESPST_ERR_LENGTH) with a NAK for an invalid request and goes to ERR; if the request was acknowledged meanwhile, nobody has \
         a failed completion. No packet is lost here, and timeouts are long, so that nothing is sent again",
    ),
    (
        "a WRITE with immediate that the responder refuses, on a shared receive queue",
        "rxe_resp.c: as in the table above a receive is gone, here of the queue that others use too",
    ),
];

/// How often each case was met.
pub type Used = BTreeMap<&'static str, u64>;

/// Whether `seen` is how rxe says `spec`.
pub fn accepts(queue: Queue, spec: Status, seen: Status, used: &mut Used) -> bool {
    let quirk = QUIRKS.iter().find(|q| (q.queue, q.spec, q.rxe) == (queue, spec, seen));
    if let Some(quirk) = quirk {
        *used.entry(quirk.case).or_default() += 1;
    }
    quirk.is_some()
}
