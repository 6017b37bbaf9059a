//! Completions and asynchronous events.

use crate::id::{CopyId, CqId, PortId, QpId, SrqId, WrId};

/// Why a work request failed (`enum ibv_wc_status`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord, Hash)]
pub enum Status {
    /// A length does not fit: message over 2^31, receive buffer too small.
    LocLen,
    /// The queue pair could not do it: local consistency.
    LocQpOp,
    /// A local key, range or right is wrong.
    LocProt,
    /// Not worked on, or not to the end, because the queue pair failed. May have executed at the target.
    WrFlush,
    /// The responder found the request invalid.
    RemInvReq,
    /// The responder refused key, range or right.
    RemAccess,
    /// The responder failed.
    RemOp,
    /// No answer after all retries. May have executed at the target.
    RetryExc,
    /// No receive at the responder after all retries.
    RnrRetryExc,
}

/// What a successful request did (`enum ibv_wc_opcode`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord, Hash)]
pub enum Opcode {
    /// RDMA WRITE, with or without immediate, at its sender.
    Write,
    /// SEND, at its sender.
    Send,
    /// RDMA READ, at its requester.
    Read,
    /// Compare-and-swap, at its requester.
    CompareSwap,
    /// Fetch-and-add, at its requester.
    FetchAdd,
    /// A receive filled by a SEND.
    Recv,
    /// A receive consumed by a WRITE with immediate; its buffer is untouched.
    RecvWithImm,
}

/// The end of a work request. A failed one has no opcode and no length: what verbs leaves undefined cannot be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Completion {
    /// The request's id.
    pub id: WrId,
    /// Its queue pair; for receives of a shared queue the one on which the message came.
    pub qp: QpId,
    /// How it ended.
    pub result: Result<Done, Failed>,
}

/// A success.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Done {
    /// What it did.
    pub opcode: Opcode,
    /// Bytes received (receives, READ, atomics); for a WRITE with immediate the bytes written.
    pub bytes: u32,
    /// The immediate that came with it.
    pub imm: Option<u32>,
}

/// A failure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Failed {
    /// Why.
    pub status: Status,
    /// The vendor's own word, for logs.
    pub vendor: u32,
}

impl Default for Completion {
    fn default() -> Self {
        let result = Err(Failed { status: Status::WrFlush, vendor: 0 });
        Self { id: WrId(0), qp: QpId(0), result }
    }
}

/// Something that happened outside any request (`enum ibv_event_type`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// A queue pair failed; it is in ERR.
    QpFatal(QpId),
    /// Completions were lost; the queue pairs on it are in ERR.
    CqOverrun(CqId),
    /// Fewer receives than the armed limit are left.
    SrqLimit(SrqId),
    /// No more receives of the shared queue will complete on this queue pair, which is in ERR.
    LastWqeReached(QpId),
    /// The port lost its link.
    PortDown(PortId),
    /// The port has its link back.
    PortUp(PortId),
    /// A copy within this host's memory is over.
    Copied(CopyId),
}
