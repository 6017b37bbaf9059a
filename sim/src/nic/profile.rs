//! The parameters of one device.

use super::units::{Bandwidth, Duration};
use engine::fabric::{Limits, LinkLayer};
use serde::{Deserialize, Serialize};

/// Why a profile makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("NIC profile {name:?}: {field} is {value}, {right}")]
pub struct ProfileError {
    name: String,
    field: &'static str,
    value: u64,
    right: &'static str,
}

/// Bytes that are not payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Headers {
    /// Of every RoCEv2 packet, from preamble to gap: 82 over IPv4, 102 over IPv6, 4 more with a VLAN tag.
    pub ethernet: u32,
    /// Of every InfiniBand packet: LRH 8, BTH 12, ICRC 4, VCRC 2.
    pub infiniband: u32,
    /// RDMA extended header: on the first packet of a WRITE.
    pub reth: u32,
    /// Immediate: on the last packet of a request that has one.
    pub immediate: u32,
    /// ACK extended header: on READ responses and atomic answers.
    pub aeth: u32,
}

/// A NIC's costs and limits. One request's life is
///
/// `build` (CPU) -> `doorbell` (CPU) -> `doorbell_latency` -> `wqe_fetch` -> `payload_fetch` -> bytes on the wire, no faster than
/// `qp_message`, `nic_message` and `pcie` allow -> `transmit` -> links -> `receive` -> `recv_cqe` at the target; `ack` -> links ->
/// `send_cqe` at the requester; `poll` (CPU).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NicProfile {
    /// Device, for reports.
    pub name: String,

    // ---- host CPU ----
    /// Line rate of a port.
    pub rate: Bandwidth,
    /// Building one work request.
    pub build: Duration,
    /// Building each further SGE of a request.
    pub build_sge: Duration,
    /// Copying 64 inline bytes into the work request.
    pub inline_copy: Duration,
    /// Ringing the doorbell, once per chain.
    pub doorbell: Duration,
    /// Posting one receive.
    pub post_recv: Duration,
    /// One call of poll.
    pub poll: Duration,
    /// Taking one completion out.
    pub poll_cqe: Duration,
    /// Registering memory: fixed part.
    pub register: Duration,
    /// Registering memory: each page of `page_bytes`.
    pub register_page: Duration,
    /// Ending a registration.
    pub deregister: Duration,
    /// Creating a queue pair.
    pub create_qp: Duration,
    /// One state change of a queue pair.
    pub modify_qp: Duration,

    // ---- latencies of the NIC ----
    /// From the doorbell's write to the NIC knowing it.
    pub doorbell_latency: Duration,
    /// Fetching work requests over PCIe. A lone inline request comes with its doorbell and skips it.
    pub wqe_fetch: Duration,
    /// First byte of payload over PCIe; inline requests skip it.
    pub payload_fetch: Duration,
    /// Through the sending NIC.
    pub transmit: Duration,
    /// Through the receiving NIC and into memory.
    pub receive: Duration,
    /// A READ's or atomic's turn-around at the responder: fetch from its memory.
    pub respond: Duration,
    /// Making an ACK, and taking it in.
    pub ack: Duration,
    /// Writing a completion of a receive.
    pub recv_cqe: Duration,
    /// Writing a completion of a send.
    pub send_cqe: Duration,

    // ---- rates of the NIC ----
    /// Time that one request occupies its queue pair.
    pub qp_message: Duration,
    /// Time that one request occupies the NIC's port, all queue pairs together.
    pub nic_message: Duration,
    /// Payload between host memory and NIC, each way; 0 for no limit.
    pub pcie: Bandwidth,

    // ---- caches ----
    /// Connected queue pairs whose context the NIC holds; 0 for all.
    pub qp_cache: u32,
    /// Added to `nic_message` when the context is not there.
    pub qp_cache_miss: Duration,
    /// Pages whose translation the NIC holds; 0 for all.
    pub translation_cache: u64,
    /// Added to `nic_message` when a translation is not there.
    pub translation_miss: Duration,
    /// Size of a translated page: 4096, or 2 MiB with huge pages.
    pub page_bytes: u64,

    // ---- wire ----
    /// Bytes that are not payload.
    pub headers: Headers,
    /// Path MTU that ports start with: 256 to 4096.
    pub mtu: u16,

    // ---- limits ----
    /// Most inline bytes of a request.
    pub max_inline: u32,
    /// Most SGEs of a request.
    pub max_sge: u32,
    /// Most requests of a queue.
    pub max_qp_wr: u32,
    /// Most outstanding READs and atomics of a queue pair.
    pub max_rd_atomic: u8,
    /// Most completions of a completion queue.
    pub max_cqe: u32,
    /// Most receives of a shared receive queue.
    pub max_srq_wr: u32,
    /// Most queue pairs of a host.
    pub max_qp: u32,
    /// Most bytes of a message.
    pub max_message: u32,
}

impl NicProfile {
    /// No costs, no headers: payload moves at line rate and only links have latency. For tests of everything but the NIC.
    pub fn ideal() -> Self {
        let zero = Duration::default();
        Self {
            name: "ideal".into(),
            rate: Bandwidth(25_000_000_000),
            build: zero,
            build_sge: zero,
            inline_copy: zero,
            doorbell: zero,
            post_recv: zero,
            poll: zero,
            poll_cqe: zero,
            register: zero,
            register_page: zero,
            deregister: zero,
            create_qp: zero,
            modify_qp: zero,
            doorbell_latency: zero,
            wqe_fetch: zero,
            payload_fetch: zero,
            transmit: zero,
            receive: zero,
            respond: zero,
            ack: zero,
            recv_cqe: zero,
            send_cqe: zero,
            qp_message: zero,
            nic_message: zero,
            pcie: Bandwidth(0),
            qp_cache: 0,
            qp_cache_miss: zero,
            translation_cache: 0,
            translation_miss: zero,
            page_bytes: 4096,
            headers: Headers { ethernet: 0, infiniband: 0, reth: 0, immediate: 0, aeth: 0 },
            mtu: 4096,
            max_inline: 220,
            max_sge: 30,
            max_qp_wr: 32_768,
            max_rd_atomic: 16,
            max_cqe: 4_194_303,
            max_srq_wr: 32_767,
            max_qp: 131_072,
            max_message: 1 << 31,
        }
    }

    /// Whether the numbers can be worked with; call it after reading one from a file.
    pub fn check(&self) -> Result<(), ProfileError> {
        let fail = |field, value, right| Err(ProfileError { name: self.name.clone(), field, value, right });
        if !(256..=4096).contains(&self.mtu) || !self.mtu.is_power_of_two() {
            return fail("mtu", self.mtu.into(), "use 256, 512, 1024, 2048 or 4096");
        }
        if self.page_bytes == 0 || !self.page_bytes.is_power_of_two() {
            return fail("page_bytes", self.page_bytes, "use a power of two such as 4096");
        }
        if self.max_message > 1 << 31 || self.max_message == 0 {
            return fail("max_message", self.max_message.into(), "use 1 to 2147483648");
        }
        for (field, value) in [
            ("max_sge", self.max_sge),
            ("max_qp_wr", self.max_qp_wr),
            ("max_cqe", self.max_cqe),
            ("max_srq_wr", self.max_srq_wr),
            ("max_qp", self.max_qp),
        ] {
            if value == 0 {
                return fail(field, 0, "use at least 1");
            }
        }
        Ok(())
    }

    /// Bytes in front of and behind every packet.
    pub fn packet_header(&self, link: LinkLayer) -> u32 {
        match link {
            LinkLayer::Ethernet => self.headers.ethernet,
            LinkLayer::InfiniBand => self.headers.infiniband,
        }
    }

    /// What the device reports as its limits.
    pub fn limits(&self) -> Limits {
        Limits {
            max_qp_wr: self.max_qp_wr,
            max_sge: self.max_sge,
            max_inline: self.max_inline,
            max_rd_atomic: self.max_rd_atomic,
            max_cqe: self.max_cqe,
            max_srq_wr: self.max_srq_wr,
            max_qp: self.max_qp,
            max_message: self.max_message,
        }
    }
}
