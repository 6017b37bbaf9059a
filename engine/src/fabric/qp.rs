//! Ports, limits, queue pairs and the attributes of their state changes.

use super::memory::Access;
use super::work::Sge;
use crate::id::{CqId, PortId, SrqId, WrId};
use crate::time::Span;

/// InfiniBand addresses by LID, RoCE by GID.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LinkLayer {
    /// Native InfiniBand.
    InfiniBand,
    /// RoCE version 2.
    #[default]
    Ethernet,
}

/// A 128-bit port address.
pub type Gid = [u8; 16];

/// One port of one NIC.
#[derive(Clone, Debug, PartialEq)]
pub struct Port {
    /// Its name here; ports are numbered from 0.
    pub id: PortId,
    /// Device and port, `mlx5_0/1`.
    pub name: String,
    /// Link layer.
    pub link_layer: LinkLayer,
    /// Line rate.
    pub bits_per_s: u64,
    /// Active path MTU in bytes: 256 to 4096.
    pub mtu: u16,
    /// NUMA node of the NIC, if known.
    pub numa: Option<u8>,
    /// PCIe address, empty if there is none.
    pub pcie: String,
    /// Its GIDs; the first is the one to use.
    pub gids: Vec<Gid>,
    /// Local identifier; 0 on Ethernet.
    pub lid: u16,
    /// Whether the link is up.
    pub up: bool,
}

/// What a device can do at most (`struct ibv_device_attr`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Work requests in a send or receive queue.
    pub max_qp_wr: u32,
    /// SGEs in a request.
    pub max_sge: u32,
    /// Inline bytes.
    pub max_inline: u32,
    /// Outstanding READs and atomics of a queue pair, either role.
    pub max_rd_atomic: u8,
    /// Completions in a completion queue.
    pub max_cqe: u32,
    /// Receives in a shared receive queue.
    pub max_srq_wr: u32,
    /// Queue pairs.
    pub max_qp: u32,
    /// Bytes in a message.
    pub max_message: u32,
}

/// What a peer needs to connect; travels through the registry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Endpoint {
    /// Queue pair number, 24 bits.
    pub qpn: u32,
    /// First packet sequence number, 24 bits.
    pub psn: u32,
    /// Port address on RoCE.
    pub gid: Gid,
    /// Port address on InfiniBand.
    pub lid: u16,
    /// Path MTU in bytes; the lower one of both ends is used.
    pub mtu: u16,
}

impl Endpoint {
    /// Stands for a queue pair that is not there: number 0 is the subnet manager's and never an RC queue pair's (InfiniBand spec 3.9.2).
    pub const NONE: Self = Self { qpn: 0, psn: 0, gid: [0; 16], lid: 0, mtu: 0 };

    /// Whether it stands for none.
    pub fn is_none(&self) -> bool {
        self.qpn == 0
    }
}

/// A queue pair to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QpSpec {
    /// Where sends complete.
    pub send_cq: CqId,
    /// Where receives complete.
    pub recv_cq: CqId,
    /// Receives come from here instead of a queue of its own.
    pub srq: Option<SrqId>,
    /// Requests the send queue must hold. Unsignalled ones occupy it until a later one completes.
    pub max_send: u32,
    /// Receives its own queue must hold; 0 with `srq`.
    pub max_recv: u32,
    /// SGEs a request may have.
    pub max_sge: u32,
    /// Bytes that may be sent inline.
    pub max_inline: u32,
}

/// A shared receive queue to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SrqSpec {
    /// Receives it must hold.
    pub max_recv: u32,
    /// SGEs a receive may have.
    pub max_sge: u32,
}

/// State of a queue pair. SQD is not used by kvrail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum QpState {
    /// Made, or reset.
    #[default]
    Reset,
    /// Receives may be posted.
    Init,
    /// Ready to receive.
    Rtr,
    /// Ready to send.
    Rts,
    /// Failed: everything completes flushed.
    Err,
}

/// Code of the RNR NAK timer, 0 to 31; see [`rnr_delay`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RnrTimer(pub u8);

/// Attributes to RTR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rtr {
    /// The other end.
    pub peer: Endpoint,
    /// READs and atomics that this end answers at a time.
    pub max_dest_rd_atomic: u8,
    /// How long a peer is told to wait when no receive is posted.
    pub min_rnr_timer: RnrTimer,
}

/// Attributes to RTS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rts {
    /// Code of the ACK timeout, 0 to 31; see [`ack_timeout`].
    pub timeout: u8,
    /// Tries after the first when no ACK comes, 0 to 7.
    pub retry_cnt: u8,
    /// Tries after an RNR NAK, 0 to 7; 7 is for ever.
    pub rnr_retry: u8,
    /// READs and atomics outstanding at a time.
    pub max_rd_atomic: u8,
}

/// A state change with the attributes that it needs and no others: a wrong mask cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Any state -> RESET.
    Reset,
    /// Any state but RESET -> ERR.
    Err,
    /// RESET or INIT -> INIT, with the rights that peers get.
    Init(Access),
    /// INIT -> RTR.
    Rtr(Rtr),
    /// RTR -> RTS.
    Rts(Rts),
}

/// `count` receives alike; no SGE where only immediates are expected. Receive `i` has id `first + i`.
#[derive(Clone, Copy, Debug)]
pub struct Recv<'a> {
    /// Id of the first.
    pub first: WrId,
    /// How many.
    pub count: u32,
    /// Where a SEND's bytes go.
    pub sges: &'a [Sge],
}

/// The ACK timeout of a code: 4.096 us * 2^code; code 0 means never (InfiniBand spec 9.9.2.1.1).
pub fn ack_timeout(code: u8) -> Option<Span> {
    (code != 0).then(|| Span(4_096_000 << code.min(31)))
}

/// The wait that an RNR NAK asks for (InfiniBand spec, table 45; Linux rxe_comp.c, `rnrnak_usec`).
pub fn rnr_delay(timer: RnrTimer) -> Span {
    const TEN_US: [u64; 32] = [
        65536, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048,
        3072, 4096, 6144, 8192, 12288, 16384, 24576, 32768, 49152,
    ];
    Span::us(10 * TEN_US[usize::from(timer.0 & 31)])
}
