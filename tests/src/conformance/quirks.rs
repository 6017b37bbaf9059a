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
        source: "InfiniBand spec 9.9.2.4.2, 10.10.2.2; ibv_poll_cq(3)",
        rxe: Status::LocQpOp,
        why: "rxe_req.c: a packet that cannot be filled ends as IB_WC_LOC_QP_OP_ERR",
    },
    Quirk {
        case: "receive buffer too small",
        queue: Queue::Send,
        spec: Status::RemInvReq,
        source: "InfiniBand spec 9.7.5.2.6, table 58; ibv_poll_cq(3)",
        rxe: Status::RemOp,
        why: "rxe_resp.c: RESPST_ERR_MALFORMED_WQE is answered with a NAK for a remote operational error",
    },
    Quirk {
        case: "receive buffer too small",
        queue: Queue::Receive,
        spec: Status::LocLen,
        source: "InfiniBand spec 9.9.3, table 61; ibv_poll_cq(3)",
        rxe: Status::LocQpOp,
        why: "rxe_resp.c: RESPST_ERR_MALFORMED_WQE completes the receive with IB_WC_LOC_QP_OP_ERR",
    },
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
