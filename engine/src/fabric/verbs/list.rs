//! What there is: devices, ports and addresses, and which address would be used.

use super::OpenError;
use super::sys::{Context, DeviceList};
use crate::fabric::{Gid, GidChoice, Limits, LinkLayer};
use ibverbs_sys as ffi;
use std::ffi::CStr;
use std::fs;
use std::path::{Path, PathBuf};

/// Places in the send and receive queue of every queue pair that [`super::VerbsFabric`] keeps for itself: see there, fences.
pub(super) const RESERVED: u32 = 1;

/// Which atomics a device has (`enum ibv_atomic_cap`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Atomics {
    /// None.
    None,
    /// Atomic among the requests of this device.
    Device,
    /// Atomic towards the CPU, too.
    Host,
}

/// State of a port's link (`enum ibv_port_state`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortState {
    /// No link.
    Down,
    /// Link, but no addresses yet (InfiniBand: no subnet manager).
    Init,
    /// Almost there.
    Armed,
    /// Usable.
    Active,
    /// Another state, by its number.
    Other(u32),
}

/// What kind of address an entry of the table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GidKind {
    /// InfiniBand.
    InfiniBand,
    /// RoCE version 1: Ethernet only, not routed.
    RoceV1,
    /// RoCE version 2: over UDP.
    RoceV2,
}

/// An entry of a port's address table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GidInfo {
    /// Its index.
    pub index: u32,
    /// The address.
    pub gid: Gid,
    /// Its kind.
    pub kind: GidKind,
    /// The network device it comes from; empty if there is none.
    pub netdev: String,
}

/// A port as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortInfo {
    /// Number on its device, from 1.
    pub number: u8,
    /// State of its link.
    pub state: PortState,
    /// Link layer.
    pub link_layer: LinkLayer,
    /// Line rate: speed of a lane times lanes; 0 if unknown.
    pub bits_per_s: u64,
    /// Active path MTU in bytes.
    pub mtu: u16,
    /// Most that the device can do.
    pub max_mtu: u16,
    /// Local identifier; 0 on Ethernet.
    pub lid: u16,
    /// Bytes in a message.
    pub max_message: u32,
    /// Valid entries of the address table.
    pub gids: Vec<GidInfo>,
    /// Entries of the table of partition keys, 0 for none.
    pub pkeys: Vec<u16>,
}

/// A device as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its name, `mlx5_0`.
    pub name: String,
    /// Its GUID.
    pub node_guid: u64,
    /// Firmware version, as the vendor writes it.
    pub firmware: String,
    /// Vendor and part number.
    pub vendor: (u32, u32),
    /// NUMA node, if it has one.
    pub numa: Option<u8>,
    /// PCIe address; empty for software devices.
    pub pcie: String,
    /// What it can do, less what kvrail keeps for itself.
    pub limits: Limits,
    /// SGEs of a receive of a shared queue.
    pub max_srq_sge: u32,
    /// Atomics.
    pub atomics: Atomics,
    /// Whether memory can be registered without being pinned (found out by trying).
    pub on_demand_paging: bool,
    /// Whether dma-buf memory can be registered (found out by trying).
    pub dmabuf: bool,
    /// Its ports.
    pub ports: Vec<PortInfo>,
}

/// A device's name, and what it is or why it cannot be used.
pub type Listed = (String, Result<DeviceInfo, OpenError>);

/// Every RDMA device of this host, by name.
pub fn list() -> Result<Vec<Listed>, OpenError> {
    let list = devices()?;
    let mut all: Vec<_> = list.devices().collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    let look = |name: &str, device| look(name, &open(name, device)?);
    Ok(all
        .into_iter()
        .map(|(name, device)| {
            let info = look(&name, device);
            (name, info)
        })
        .collect())
}

pub(super) fn devices() -> Result<DeviceList, OpenError> {
    DeviceList::get().map_err(|errno| OpenError::Call {
        device: "every device".into(),
        call: "ibv_get_device_list",
        errno,
        advice: "load the kernel's RDMA modules: modprobe ib_uverbs, and the NIC's (mlx5_ib, rdma_rxe)",
    })
}

pub(super) fn open(name: &str, device: *mut ffi::ibv_device) -> Result<Context, OpenError> {
    Context::open(device).map_err(|(call, errno)| failed(name, call, errno))
}

pub(super) fn failed(name: &str, call: &'static str, errno: i32) -> OpenError {
    OpenError::Call { device: name.into(), call, errno, advice: super::sys::advice(errno) }
}

fn sysfs(name: &str) -> PathBuf {
    Path::new("/sys/class/infiniband").join(name)
}

fn word(path: PathBuf) -> String {
    fs::read_to_string(path).map(|s| s.trim().to_string()).unwrap_or_default()
}

/// Lane speed times lanes, by their codes (InfiniBand spec, PortInfo.LinkSpeedActive and LinkWidthActive; `ib_port_speed` of the
/// kernel), in the rates that ports are called by: 100 Gb/s for 4 lanes of EDR. 0 for an unknown code.
fn data_rate(speed: u8, width: u8) -> u64 {
    let lanes = match width {
        1 => 1,
        2 => 4,
        4 => 8,
        8 => 12,
        16 => 2,
        _ => 0,
    };
    let mega = match speed {
        1 => 2_500,
        2 => 5_000,
        4 | 8 => 10_000,
        16 => 14_000,
        32 => 25_000,
        64 => 50_000,
        128 => 100_000,
        _ => 0,
    };
    mega * 1_000_000 * lanes
}

/// The kernel's own words, for speeds that have no code in the old field: `800 Gb/sec (4X XDR)`.
fn told_rate(text: &str) -> u64 {
    let number = text.split_whitespace().next().unwrap_or("");
    let (whole, tenths) = number.split_once('.').unwrap_or((number, "0"));
    let digit = tenths.chars().next().and_then(|c| c.to_digit(10)).unwrap_or(0);
    whole.parse::<u64>().map_or(0, |n| n * 1_000_000_000 + u64::from(digit) * 100_000_000)
}

pub(super) fn mtu_bytes(code: u32) -> u16 {
    match code {
        1..=5 => 128 << code,
        _ => 0,
    }
}

/// Everything about an open device.
pub(super) fn look(name: &str, context: &Context) -> Result<DeviceInfo, OpenError> {
    let attr = context.attributes().map_err(|e| failed(name, "ibv_query_device", e))?;
    let path = sysfs(name);
    let count = |n: i32| n.max(0) as u32;
    let mut ports = Vec::new();
    let mut max_message = u32::MAX;
    let attrs: Result<Vec<_>, i32> = (1..=attr.phys_port_cnt).map(|n| context.port(n)).collect();
    let attrs = attrs.map_err(|e| failed(name, "ibv_query_port", e))?;
    let most = attrs.iter().map(|p| p.gid_tbl_len.max(0) as usize).sum();
    let entries = context.gids(most).map_err(|e| failed(name, "ibv_query_gid_table", e))?;
    for (number, port) in (1..).zip(&attrs) {
        max_message = max_message.min(port.max_msg_sz);
        ports.push(look_port(name, context, number, port, &entries)?);
    }
    let reads = attr.max_qp_rd_atom.min(attr.max_qp_init_rd_atom).clamp(0, 255) as u8;
    let sges = if attr.max_sge_rd > 0 { attr.max_sge.min(attr.max_sge_rd) } else { attr.max_sge };
    let limits = Limits {
        max_qp_wr: count(attr.max_qp_wr).saturating_sub(RESERVED),
        max_sge: count(sges),
        max_inline: context.max_inline(),
        max_rd_atomic: reads,
        max_cqe: count(attr.max_cqe),
        max_srq_wr: count(attr.max_srq_wr),
        max_qp: count(attr.max_qp),
        max_message: max_message.min(1 << 31),
    };
    let pcie = fs::read_link(path.join("device"))
        .ok()
        .and_then(|p| p.file_name().map(|n| n.to_string_lossy().into_owned()))
        .filter(|n| n.split([':', '.']).count() == 4)
        .unwrap_or_default();
    let name_bytes = attr.fw_ver.map(|c| c as u8);
    let firmware = CStr::from_bytes_until_nul(&name_bytes).map(|s| s.to_string_lossy().into_owned());
    Ok(DeviceInfo {
        name: name.into(),
        node_guid: u64::from_be(attr.node_guid),
        firmware: firmware.unwrap_or_default(),
        vendor: (attr.vendor_id, attr.vendor_part_id),
        // -1 where the machine has no NUMA.
        numa: word(path.join("device/numa_node")).parse().ok(),
        pcie,
        limits,
        max_srq_sge: count(attr.max_srq_sge),
        atomics: match attr.atomic_cap {
            ffi::IBV_ATOMIC_NONE => Atomics::None,
            ffi::IBV_ATOMIC_HCA => Atomics::Device,
            _ => Atomics::Host,
        },
        on_demand_paging: context.has_on_demand_paging(),
        dmabuf: context.has_dmabuf(),
        ports,
    })
}

pub(super) fn state(code: ffi::ibv_port_state::Type) -> PortState {
    use ffi::ibv_port_state as s;
    match code {
        s::IBV_PORT_DOWN => PortState::Down,
        s::IBV_PORT_INIT => PortState::Init,
        s::IBV_PORT_ARMED => PortState::Armed,
        s::IBV_PORT_ACTIVE => PortState::Active,
        other => PortState::Other(other),
    }
}

fn look_port(
    name: &str,
    context: &Context,
    number: u8,
    port: &ffi::ibv_port_attr,
    entries: &[ffi::ibv_gid_entry],
) -> Result<PortInfo, OpenError> {
    let path = sysfs(name).join("ports").join(number.to_string());
    let link_layer = match u32::from(port.link_layer) {
        ffi::IBV_LINK_LAYER_ETHERNET => LinkLayer::Ethernet,
        _ => LinkLayer::InfiniBand,
    };
    let mut bits_per_s = data_rate(port.active_speed, port.active_width);
    if bits_per_s == 0 {
        bits_per_s = told_rate(&word(path.join("rate")));
    }
    let gids = entries.iter().filter(|e| e.port_num == u32::from(number)).map(|e| GidInfo {
        index: e.gid_index,
        // SAFETY: both views of the union are plain bytes.
        gid: unsafe { e.gid.raw },
        kind: match e.gid_type {
            ffi::IBV_GID_TYPE_ROCE_V2 => GidKind::RoceV2,
            ffi::IBV_GID_TYPE_ROCE_V1 => GidKind::RoceV1,
            _ => GidKind::InfiniBand,
        },
        netdev: word(path.join("gid_attrs/ndevs").join(e.gid_index.to_string())),
    });
    let gids = gids.collect();
    let pkeys = (0..port.pkey_tbl_len).map(|i| context.pkey(number, i).unwrap_or(0)).collect();
    Ok(PortInfo {
        number,
        state: state(port.state),
        link_layer,
        bits_per_s,
        mtu: mtu_bytes(port.active_mtu),
        max_mtu: mtu_bytes(port.max_mtu),
        lid: port.lid,
        max_message: port.max_msg_sz,
        gids,
        pkeys,
    })
}

impl PortInfo {
    /// The address that a choice means, and why it is that one; or why there is none.
    pub fn choose(&self, choice: GidChoice) -> Result<(&GidInfo, &'static str), String> {
        if self.link_layer == LinkLayer::InfiniBand && choice == GidChoice::Auto {
            let first = self.gids.first().ok_or("the port has no GID")?;
            return Ok((first, "InfiniBand: the first; packets go by LID"));
        }
        // InfiniBand has no versions.
        let fits = |kind| kind == GidKind::RoceV2 || self.link_layer != LinkLayer::Ethernet;
        choice.pick(&self.gids, |entry| (entry.index, entry.gid, fits(entry.kind)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(link_layer: LinkLayer, gids: &[(u32, GidKind, [u8; 2])]) -> PortInfo {
        let gids = gids.iter().map(|&(index, kind, start)| {
            let mut gid = [1; 16];
            gid[..2].copy_from_slice(&start);
            if start == [0, 0] {
                gid = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1];
            }
            GidInfo { index, gid, kind, netdev: String::new() }
        });
        PortInfo {
            number: 1,
            state: PortState::Active,
            link_layer,
            bits_per_s: 0,
            mtu: 1024,
            max_mtu: 4096,
            lid: 0,
            max_message: 0,
            gids: gids.collect(),
            pkeys: vec![],
        }
    }

    #[test]
    fn the_address_of_a_roce_port_is_chosen_in_order() {
        use GidKind::{RoceV1, RoceV2};
        let (local, global, ipv4) = ([0xfe, 0x80], [0x20, 0x01], [0, 0]);
        let all = [
            (0, RoceV1, local),
            (1, RoceV2, local),
            (2, RoceV1, ipv4),
            (3, RoceV2, global),
            (5, RoceV2, ipv4),
            (6, RoceV2, ipv4),
        ];
        let chosen = |gids: &[_], choice| {
            port(LinkLayer::Ethernet, gids).choose(choice).map(|(gid, _)| gid.index).map_err(|why| why.len())
        };
        assert_eq!(chosen(&all, GidChoice::Auto), Ok(5));
        assert_eq!(chosen(&all[..4], GidChoice::Auto), Ok(3));
        assert_eq!(chosen(&all[..3], GidChoice::Auto), Ok(1));
        assert!(chosen(&all[..1], GidChoice::Auto).is_err());
        assert_eq!(chosen(&all, GidChoice::Index(3)), Ok(3));
        assert!(chosen(&all, GidChoice::Index(4)).is_err(), "empty");
        assert!(chosen(&all, GidChoice::Index(2)).is_err(), "version 1");
        let infiniband = port(LinkLayer::InfiniBand, &[(0, GidKind::InfiniBand, local)]);
        assert_eq!(infiniband.choose(GidChoice::Auto).map(|g| g.0.index), Ok(0));
    }

    #[test]
    fn rates_are_those_that_ports_are_called_by() {
        let gb = |n: u64| n * 1_000_000_000;
        assert_eq!(data_rate(32, 2), gb(100));
        assert_eq!(data_rate(64, 2), gb(200));
        assert_eq!(data_rate(128, 2), gb(400));
        assert_eq!(data_rate(4, 1), gb(10));
        assert_eq!(data_rate(0, 2), 0);
        assert_eq!(told_rate("800 Gb/sec (4X XDR)"), gb(800));
        assert_eq!(told_rate("2.5 Gb/sec (1X SDR)"), 2_500_000_000);
        assert_eq!(told_rate(""), 0);
    }
}
