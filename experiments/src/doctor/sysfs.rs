//! RDMA devices as the kernel shows them below /sys, which needs neither libibverbs nor a right to open them.

use std::fs;
use std::net::Ipv6Addr;
use std::path::Path;

use serde::Serialize;

/// A device.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Device {
    /// Its name, such as `mlx5_0`.
    pub name: String,
    /// The kernel's driver, such as `mlx5_core`, or what a device without hardware calls itself.
    pub driver: Option<String>,
    /// Version of its firmware.
    pub firmware: Option<String>,
    /// PCI address.
    pub pci: Option<String>,
    /// PCIe link as it runs, such as `16.0 GT/s x8`, and what device could do if that is more.
    pub pcie: Option<String>,
    /// What it could do, where it runs below that.
    pub pcie_could: Option<String>,
    /// NUMA node, if the kernel knows one.
    pub numa: Option<u8>,
    /// The character device that opens it, such as `uverbs0`.
    pub uverbs: Option<String>,
    /// Whether this user may open that.
    pub may_open: bool,
    /// What it can do; none where libibverbs was not asked.
    pub can: Option<Capabilities>,
    /// Its ports, by number.
    pub ports: Vec<Port>,
}

/// What a device can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Capabilities {
    /// Queue pairs.
    pub queue_pairs: u32,
    /// Work requests of a queue.
    pub send_depth: u32,
    /// Ranges of a work request.
    pub sge: u32,
    /// Inline bytes of a work request.
    pub inline: u32,
    /// READs and atomics that a queue pair has outstanding.
    pub rd_atomic: u8,
    /// Whether it registers dmabufs, such as GPU memory.
    pub dmabuf: bool,
    /// Whether it registers memory without pinning it.
    pub on_demand_paging: bool,
}

/// A port.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Port {
    /// Its number, from 1.
    pub port: u8,
    /// `ACTIVE`, `DOWN`, `INIT`, ...
    pub state: String,
    /// `LinkUp`, `Disabled`, `Polling`, ...
    pub physical: String,
    /// `Ethernet` (RoCE) or `InfiniBand`.
    pub link_layer: String,
    /// 10^9 bits per second.
    pub gbps: f64,
    /// RDMA MTU in bytes. Of RoCE it follows from the network interface's; of InfiniBand only libibverbs says it.
    pub mtu: Option<u32>,
    /// Local identifier, of InfiniBand.
    pub lid: u16,
    /// Network interface, of RoCE.
    pub netdev: Option<String>,
    /// MTU of the network interface in bytes.
    pub netdev_mtu: Option<u32>,
    /// The entries of the table of addresses that are in use.
    pub gids: Vec<GidEntry>,
    /// The entries of the table of partition keys that are in use: (index, key).
    pub pkeys: Vec<(u16, u16)>,
}

/// An entry of a port's table of addresses.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GidEntry {
    /// Its index.
    pub index: u32,
    /// The address.
    pub gid: Ipv6Addr,
    /// `RoCE v2`, `IB/RoCE v1`.
    pub kind: String,
    /// Network interface.
    pub netdev: Option<String>,
}

impl GidEntry {
    /// Whether packets with it are RoCE version 2.
    #[must_use]
    pub fn is_v2(&self) -> bool {
        self.kind == "RoCE v2"
    }

    /// The IPv4 address that it stands for.
    #[must_use]
    pub fn ipv4(&self) -> Option<std::net::Ipv4Addr> {
        self.gid.to_ipv4_mapped()
    }
}

impl Port {
    /// Whether it carries packets.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.state == "ACTIVE"
    }

    /// Whether it is one of RoCE, not of InfiniBand.
    #[must_use]
    pub fn is_ethernet(&self) -> bool {
        self.link_layer == "Ethernet"
    }
}

/// A file's text without the white space around it, if it can be read and has any.
pub(super) fn text(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

/// Names in a folder, sorted; numbers in them count as numbers. None if there is no folder.
pub(super) fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    let key = |name: &String| {
        let digits = name.len() - name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
        let (stem, number) = name.split_at(name.len() - digits);
        (stem.to_owned(), number.parse::<u64>().unwrap_or(0), name.clone())
    };
    names.sort_by_cached_key(key);
    names
}

/// The last part of where a link points to.
fn target(link: &Path) -> Option<String> {
    let target = fs::read_link(link).ok()?;
    Some(target.file_name()?.to_string_lossy().into_owned())
}

/// All devices below `root`, by name.
#[must_use]
pub(super) fn devices(root: &Path) -> Vec<Device> {
    let class = root.join("sys/class/infiniband");
    let uverbs = root.join("sys/class/infiniband_verbs");
    let opens: Vec<(String, String)> = names(&uverbs)
        .into_iter()
        .filter_map(|name| Some((text(&uverbs.join(&name).join("ibdev"))?, name)))
        .collect();
    let device = |name: String| {
        let folder = class.join(&name);
        let uverbs = opens.iter().find(|(device, _)| *device == name).map(|(_, uverbs)| uverbs.clone());
        let may_open = uverbs.as_ref().is_some_and(|uverbs| {
            let path = root.join("dev/infiniband").join(uverbs);
            fs::OpenOptions::new().read(true).write(true).open(path).is_ok()
        });
        let ports = names(&folder.join("ports"));
        let ports =
            ports.into_iter().filter_map(|number| port(root, &folder, number.parse().ok()?)).collect();
        // One that is not on a bus names the interface below it instead, and says what it is in its description.
        let driver = target(&folder.join("device/driver")).or_else(|| text(&folder.join("node_desc")));
        let (pcie, pcie_could) = pcie(&folder.join("device"));
        Device {
            driver,
            firmware: text(&folder.join("fw_ver")),
            pci: target(&folder.join("device")).filter(|name| name.contains(':')),
            pcie,
            pcie_could,
            numa: text(&folder.join("device/numa_node")).and_then(|node| node.parse().ok()),
            uverbs,
            may_open,
            can: None,
            ports,
            name,
        }
    };
    names(&class).into_iter().map(device).collect()
}

/// The link to the PCIe bus: as it is, and what it could be if that is more.
fn pcie(device: &Path) -> (Option<String>, Option<String>) {
    let link = |which: &str| {
        let speed = text(&device.join(format!("{which}_link_speed")))?;
        let width = text(&device.join(format!("{which}_link_width")))?;
        let rate: f64 = speed.split(' ').next()?.parse().ok()?;
        let lanes: u32 = width.parse().ok()?;
        Some((format!("{} x{lanes}", speed.trim_end_matches(" PCIe")), rate * f64::from(lanes)))
    };
    match (link("current"), link("max")) {
        (Some((now, rate)), Some((could, most))) if rate < most => (Some(now), Some(could)),
        (now, _) => (now.map(|(now, _)| now), None),
    }
}

/// `4: ACTIVE` -> `ACTIVE`.
fn after_colon(text: &str) -> String {
    text.split_once(':').map_or(text, |(_, name)| name).trim().to_owned()
}

fn port(root: &Path, device: &Path, number: u8) -> Option<Port> {
    let folder = device.join("ports").join(number.to_string());
    let word = |name: &str| text(&folder.join(name)).unwrap_or_else(|| "unknown".to_owned());
    let gids = gids(&folder);
    let link_layer = word("link_layer");
    let netdev = gids.iter().find_map(|entry| entry.netdev.clone()).or_else(|| {
        // A port without addresses still has its interface, by name for Soft-RoCE, on the same PCI function otherwise.
        text(&device.join("parent")).or_else(|| names(&device.join("device/net")).into_iter().next())
    });
    let netdev = netdev.filter(|_| link_layer == "Ethernet");
    let netdev_mtu = netdev
        .as_ref()
        .and_then(|name| text(&root.join("sys/class/net").join(name).join("mtu")))
        .and_then(|mtu| mtu.parse().ok());
    Some(Port {
        port: number,
        state: after_colon(&word("state")),
        physical: after_colon(&word("phys_state")),
        gbps: word("rate").split(' ').next().and_then(|rate| rate.parse().ok()).unwrap_or(0.0),
        mtu: netdev_mtu.and_then(roce_mtu),
        lid: u16::from_str_radix(word("lid").trim_start_matches("0x"), 16).unwrap_or(0),
        netdev,
        netdev_mtu,
        gids,
        pkeys: pkeys(&folder.join("pkeys")),
        link_layer,
    })
}

/// The largest RDMA MTU that fits an Ethernet MTU, as `iboe_get_mtu` of Linux (include/rdma/ib_addr.h) has it: 96 bytes are kept for headers.
fn roce_mtu(ethernet: u32) -> Option<u32> {
    [4096, 2048, 1024, 512, 256].into_iter().find(|mtu| mtu + 96 <= ethernet)
}

fn gids(port: &Path) -> Vec<GidEntry> {
    let entry = |name: String| {
        let gid: Ipv6Addr = text(&port.join("gids").join(&name))?.parse().ok()?;
        (!gid.is_unspecified()).then(|| GidEntry {
            index: name.parse().unwrap_or(u32::MAX),
            gid,
            kind: text(&port.join("gid_attrs/types").join(&name)).unwrap_or_else(|| "unknown".to_owned()),
            netdev: text(&port.join("gid_attrs/ndevs").join(&name)),
        })
    };
    names(&port.join("gids")).into_iter().filter_map(entry).collect()
}

fn pkeys(folder: &Path) -> Vec<(u16, u16)> {
    let entry = |name: String| {
        let key = text(&folder.join(&name))?;
        let key = u16::from_str_radix(key.trim_start_matches("0x"), 16).ok()?;
        (key != 0).then_some((name.parse().ok()?, key))
    };
    names(folder).into_iter().filter_map(entry).collect()
}
