//! From counts of requests, packets and bytes to wire bytes and time. Everything is a sum over requests, so that a run of requests
//! costs the same however it is written down.

use super::NicProfile;
use engine::fabric::LinkLayer;
use engine::time::Span;

/// What a row of requests of one kind adds up to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Requests.
    pub requests: u64,
    /// Payload bytes.
    pub bytes: u64,
    /// Data packets at the path MTU.
    pub packets: u64,
    /// Requests with an RDMA extended header on a data packet (WRITE).
    pub reths: u64,
    /// Requests with an immediate.
    pub immediates: u64,
    /// Requests answered with data (READ, atomics).
    pub answers: u64,
}

impl Load {
    /// Adds another row.
    pub fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.bytes += other.bytes;
        self.packets += other.packets;
        self.reths += other.reths;
        self.immediates += other.immediates;
        self.answers += other.answers;
    }

    /// Bytes on the wire in the direction of the data. ACKs and READ requests go the other way and are not charged: they
    /// are under 2 % of a full-size packet each, on links that are used in both directions alike.
    pub fn wire_bytes(&self, nic: &NicProfile, link: LinkLayer) -> u64 {
        let h = &nic.headers;
        self.bytes
            + self.packets * u64::from(nic.packet_header(link))
            + self.reths * u64::from(h.reth)
            + self.immediates * u64::from(h.immediate)
            + self.answers * u64::from(h.aeth)
    }
}

/// Expected extra time per request when `used` objects share a cache of `room`: a miss costs `miss`, and with least-recently-used
/// replacement and all objects used alike a share of `1 - room / used` misses.
fn misses(used: u64, room: u64, miss: Span) -> u64 {
    if room == 0 || used <= room {
        0
    } else {
        (u128::from(miss.0) * u128::from(used - room) / u128::from(used)) as u64
    }
}

/// Time that a request occupies the NIC's port, given the connected queue pairs and the registered pages of that port.
pub fn nic_message(nic: &NicProfile, queue_pairs: u64, pages: u64) -> Span {
    Span(
        nic.nic_message.0.0
            + misses(queue_pairs, nic.qp_cache.into(), nic.qp_cache_miss.0)
            + misses(pages, nic.translation_cache, nic.translation_miss.0),
    )
}

/// Largest rate in wire bytes per second of a flow of `wire` bytes for this load, infinite if nothing limits it.
/// `window` is, for READs, how many may be outstanding and how long one takes.
pub fn rate_cap(nic: &NicProfile, load: &Load, wire: u64, window: Option<(u64, Span)>) -> f64 {
    let mut cap = f64::INFINITY;
    let occupied = load.requests * nic.qp_message.0.0;
    if occupied > 0 {
        cap = cap.min(wire as f64 * 1e12 / occupied as f64);
    }
    if nic.pcie.0 > 0 && load.bytes > 0 {
        cap = cap.min(nic.pcie.0 as f64 * (wire as f64 / load.bytes as f64));
    }
    if let Some((reads, round_trip)) = window
        && round_trip.0 > 0
        && load.requests > reads
    {
        cap = cap.min(wire as f64 * reads as f64 * 1e12 / (load.requests as f64 * round_trip.0 as f64));
    }
    cap
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nic::{Bandwidth, Duration, Headers};

    fn roce() -> NicProfile {
        let headers = Headers { ethernet: 82, infiniband: 26, reth: 16, immediate: 4, aeth: 4 };
        NicProfile { headers, ..NicProfile::ideal() }
    }

    /// InfiniBand and RoCE goodput as measured: MTU / (MTU + 82), MTU / (MTU + 26).
    #[test]
    fn goodput_is_mtu_over_mtu_and_headers() {
        let load = Load { requests: 1, bytes: 4096 * 1000, packets: 1000, reths: 1, ..Load::default() };
        assert_eq!(load.wire_bytes(&roce(), LinkLayer::Ethernet), 4178 * 1000 + 16);
        assert_eq!(load.wire_bytes(&roce(), LinkLayer::InfiniBand), 4122 * 1000 + 16);
    }

    #[test]
    fn message_rate_pcie_and_read_window_cap_a_flow() {
        let mut nic = NicProfile { qp_message: Duration(Span::ns(100)), ..NicProfile::ideal() };
        let load = Load { requests: 10, bytes: 640, packets: 10, ..Load::default() };
        assert_eq!(rate_cap(&nic, &load, 640, None), 640e6);
        nic.pcie = Bandwidth(320_000_000);
        assert_eq!(rate_cap(&nic, &load, 1280, None), 640e6);
        assert_eq!(rate_cap(&nic, &load, 640, Some((2, Span::us(1)))), 128e6);
        assert_eq!(rate_cap(&NicProfile::ideal(), &load, 640, Some((16, Span::us(1)))), f64::INFINITY);
    }

    #[test]
    fn cache_misses_grow_with_use() {
        let nic = NicProfile {
            nic_message: Duration(Span::ns(5)),
            qp_cache: 100,
            qp_cache_miss: Duration(Span::ns(100)),
            ..NicProfile::ideal()
        };
        assert_eq!(nic_message(&nic, 100, 0), Span::ns(5));
        assert_eq!(nic_message(&nic, 200, 0), Span::ns(55));
    }
}
