//! Queue pairs: attributes of their state changes, and what is known of each.

use super::open::Rail;
use super::post::Ledger;
use super::sys;
use crate::fabric::{Access, DeviceConfig, Endpoint, Error, LinkLayer, QpSpec, QpState, Result, Rtr, Rts};
use crate::id::{PortId, QpId};
use ffi::ibv_qp_attr_mask as mask;
use ffi::ibv_qp_state as code;
use ibverbs_sys as ffi;

pub(super) struct Qp {
    pub(super) id: QpId,
    pub(super) port: PortId,
    pub(super) spec: QpSpec,
    pub(super) pair: sys::Pair,
    /// As far as is known; see [`Qp::learn`].
    pub(super) state: QpState,
    /// First PSN of the present connection.
    pub(super) psn: u32,
    pub(super) access: Access,
    pub(super) ledger: Ledger,
    /// Receives of its own queue that have not completed.
    pub(super) receives: u32,
    /// The marker at the end of the send queue came back; see [`super::fence`].
    pub(super) send_marker: bool,
    /// The one at the end of the receive queue did.
    pub(super) receive_marker: bool,
    /// Was ready to receive since it was made or reset: the device may be at work on packets for it.
    pub(super) exposed: bool,
    /// Numbers that it had before, under which completions may still lie in its queues.
    pub(super) old: Vec<u32>,
    /// In ERR, and nothing of the connection is under way any more.
    pub(super) fenced: bool,
    /// [`crate::fabric::Event::LastWqeReached`] was told since the last RESET.
    pub(super) told_last: bool,
}

pub(super) fn access_flags(access: Access) -> ffi::ibv_access_flags {
    let mut flags = ffi::ibv_access_flags(0);
    for (given, flag) in [
        (access.local_write, ffi::ibv_access_flags::IBV_ACCESS_LOCAL_WRITE),
        (access.remote_write, ffi::ibv_access_flags::IBV_ACCESS_REMOTE_WRITE),
        (access.remote_read, ffi::ibv_access_flags::IBV_ACCESS_REMOTE_READ),
        (access.remote_atomic, ffi::ibv_access_flags::IBV_ACCESS_REMOTE_ATOMIC),
    ] {
        if given {
            flags |= flag;
        }
    }
    flags
}

fn check(ok: bool, what: &'static str, value: u64, right: &'static str) -> Result<()> {
    if ok { Ok(()) } else { Err(Error::Invalid { what, value, right }) }
}

fn mtu_code(bytes: u16) -> ffi::ibv_mtu {
    u32::from(bytes).ilog2().saturating_sub(7)
}

impl Qp {
    /// The state that the device has the queue pair in. It moves one to ERR by itself; what it says of others is what was asked of it.
    pub(super) fn real_state(&self) -> QpState {
        if matches!(self.state, QpState::Reset | QpState::Err) {
            return self.state;
        }
        match self.pair.state() {
            Ok(code::IBV_QPS_ERR | code::IBV_QPS_SQE) => QpState::Err,
            _ => self.state,
        }
    }

    /// Asks the device for the state, and keeps the answer.
    pub(super) fn learn(&mut self) -> QpState {
        if self.real_state() == QpState::Err && self.state != QpState::Err {
            self.failed();
        }
        self.state
    }

    /// It is known to be in ERR.
    pub(super) fn failed(&mut self) {
        if self.state != QpState::Reset {
            self.state = QpState::Err;
            self.ledger.fail();
        }
    }

    /// Everything outstanding is gone.
    pub(super) fn emptied(&mut self) {
        self.ledger.clear();
        self.receives = 0;
        (self.send_marker, self.receive_marker) = (false, false);
    }

    fn modify(&self, attr: &mut ffi::ibv_qp_attr, bits: mask) -> Result<()> {
        self.pair.modify(attr, bits).map_err(|errno| {
            let advice = "the device refuses these attributes in this state";
            Error::System { call: "ibv_modify_qp", errno, advice }
        })
    }

    pub(super) fn to_reset(&self) -> Result<()> {
        let mut attr = ffi::ibv_qp_attr { qp_state: code::IBV_QPS_RESET, ..Default::default() };
        self.modify(&mut attr, mask::IBV_QP_STATE)
    }

    pub(super) fn to_err(&self) -> Result<()> {
        let mut attr = ffi::ibv_qp_attr { qp_state: code::IBV_QPS_ERR, ..Default::default() };
        self.modify(&mut attr, mask::IBV_QP_STATE)
    }

    pub(super) fn to_init(&self, access: Access, rail: &Rail, config: &DeviceConfig) -> Result<()> {
        let mut attr = ffi::ibv_qp_attr {
            qp_state: code::IBV_QPS_INIT,
            pkey_index: config.pkey_index,
            port_num: rail.number,
            qp_access_flags: access_flags(access).0,
            ..Default::default()
        };
        let bits =
            mask::IBV_QP_STATE | mask::IBV_QP_PKEY_INDEX | mask::IBV_QP_PORT | mask::IBV_QP_ACCESS_FLAGS;
        self.modify(&mut attr, bits)
    }

    pub(super) fn to_rtr(
        &self,
        rtr: &Rtr,
        own: &Endpoint,
        rail: &Rail,
        config: &DeviceConfig,
        max_reads: u8,
    ) -> Result<()> {
        let peer = rtr.peer;
        check(peer.qpn <= 0xff_ffff, "peer qpn", peer.qpn.into(), "24 bits")?;
        check(peer.psn <= 0xff_ffff, "peer psn", peer.psn.into(), "24 bits")?;
        let mtu = peer.mtu.is_power_of_two() && (256..=4096).contains(&peer.mtu);
        check(mtu, "peer mtu", peer.mtu.into(), "256, 512, 1024, 2048 or 4096")?;
        let reads = rtr.max_dest_rd_atomic;
        check(reads <= max_reads, "max_dest_rd_atomic", reads.into(), "at most the device's max_rd_atomic")?;
        check(rtr.min_rnr_timer.0 <= 31, "min_rnr_timer", rtr.min_rnr_timer.0.into(), "0 to 31")?;
        let ethernet = rail.link_layer == LinkLayer::Ethernet;
        // On InfiniBand a global header costs 40 bytes a packet: only towards another subnet.
        let routed = peer.gid != [0; 16] && peer.gid[..8] != own.gid[..8];
        let mut ah = ffi::ibv_ah_attr {
            dlid: if ethernet { 0 } else { peer.lid },
            sl: config.service_level,
            port_num: rail.number,
            is_global: (ethernet || routed).into(),
            ..Default::default()
        };
        if ethernet || routed {
            ah.grh = ffi::ibv_global_route {
                dgid: ffi::ibv_gid { raw: peer.gid },
                sgid_index: rail.gid_index,
                hop_limit: config.hop_limit,
                traffic_class: config.traffic_class,
                ..Default::default()
            };
        }
        let mut attr = ffi::ibv_qp_attr {
            qp_state: code::IBV_QPS_RTR,
            path_mtu: mtu_code(peer.mtu.min(own.mtu)),
            dest_qp_num: peer.qpn,
            rq_psn: peer.psn,
            max_dest_rd_atomic: reads,
            min_rnr_timer: rtr.min_rnr_timer.0,
            ah_attr: ah,
            ..Default::default()
        };
        let bits = mask::IBV_QP_STATE
            | mask::IBV_QP_AV
            | mask::IBV_QP_PATH_MTU
            | mask::IBV_QP_DEST_QPN
            | mask::IBV_QP_RQ_PSN
            | mask::IBV_QP_MAX_DEST_RD_ATOMIC
            | mask::IBV_QP_MIN_RNR_TIMER;
        self.modify(&mut attr, bits)
    }

    pub(super) fn to_rts(&self, rts: &Rts, max_reads: u8) -> Result<()> {
        check(rts.timeout <= 31, "timeout", rts.timeout.into(), "0 to 31")?;
        check(rts.retry_cnt <= 7, "retry_cnt", rts.retry_cnt.into(), "0 to 7")?;
        check(rts.rnr_retry <= 7, "rnr_retry", rts.rnr_retry.into(), "0 to 7")?;
        let reads = rts.max_rd_atomic;
        check(reads <= max_reads, "max_rd_atomic", reads.into(), "at most the device's max_rd_atomic")?;
        let mut attr = ffi::ibv_qp_attr {
            qp_state: code::IBV_QPS_RTS,
            sq_psn: self.psn,
            timeout: rts.timeout,
            retry_cnt: rts.retry_cnt,
            rnr_retry: rts.rnr_retry,
            max_rd_atomic: reads,
            ..Default::default()
        };
        let bits = mask::IBV_QP_STATE
            | mask::IBV_QP_SQ_PSN
            | mask::IBV_QP_TIMEOUT
            | mask::IBV_QP_RETRY_CNT
            | mask::IBV_QP_RNR_RETRY
            | mask::IBV_QP_MAX_QP_RD_ATOMIC;
        self.modify(&mut attr, bits)
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn mtu_codes_are_those_of_verbs() {
        let codes = [256, 512, 1024, 2048, 4096].map(super::mtu_code);
        assert_eq!(codes, [1, 2, 3, 4, 5]);
        assert_eq!(codes.map(super::super::list::mtu_bytes), [256, 512, 1024, 2048, 4096]);
    }
}
