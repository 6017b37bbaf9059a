//! `verbs:` what a run on real devices uses; simulated runs ignore it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use engine::fabric::{DeviceConfig, GidChoice, Memory, Reach};
use engine::time::Span;
use models::Picos;
use serde::de::{Deserializer, Error as _};
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};

use super::field;

/// Devices, packet fields and waiting on real hosts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VerbsSpec {
    /// Devices of prefill's hosts.
    pub prefill: VerbsSideSpec,
    /// Devices of decode's hosts.
    pub decode: VerbsSideSpec,
    /// Traffic class: DSCP and ECN bits on RoCE. Either this or `dscp`.
    #[serde(deserialize_with = "field::byte")]
    pub traffic_class: u8,
    /// DSCP of RoCE packets, 0 to 63: a traffic class of four times this.
    #[serde(deserialize_with = "field::dscp", skip_serializing_if = "Option::is_none")]
    pub dscp: Option<u8>,
    /// Service level: InfiniBand SL, or RoCE priority.
    #[serde(deserialize_with = "field::service_level")]
    pub service_level: u8,
    /// Index into the ports' tables of partition keys.
    #[serde(deserialize_with = "field::pkey_index")]
    pub pkey_index: u16,
    /// Hop limit of RoCE and routed InfiniBand packets.
    #[serde(deserialize_with = "field::hop_limit")]
    pub hop_limit: u8,
    /// Lets devices reorder their writes to host memory over PCIe.
    pub relaxed_ordering: bool,
    /// Which remote ports a local port reaches, for rail-only networks. Empty: all of them.
    pub reach: Vec<ReachSpec>,
    /// How long a node polls after the last work before it sleeps until there is more.
    pub spin: Picos,
    /// What KV pools are made of.
    pub memory: VerbsMemory,
    /// NIC profile of the simulation that is shown beside what was measured, if not `cluster.nic`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub simulate_as: Option<String>,
}

impl Default for VerbsSpec {
    fn default() -> Self {
        let side = VerbsSideSpec::default;
        VerbsSpec {
            prefill: side(),
            decode: side(),
            traffic_class: 0,
            dscp: None,
            service_level: 0,
            pkey_index: 0,
            hop_limit: 64,
            relaxed_ordering: false,
            reach: Vec::new(),
            spin: Picos(20_000_000),
            memory: VerbsMemory::Host,
            simulate_as: None,
        }
    }
}

/// Devices of one side's hosts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VerbsSideSpec {
    /// Ports to use as rails, in this order: `mlx5_0` (its first active port) or `mlx5_0/1`. Empty: every active port.
    pub devices: Vec<String>,
    /// Where `devices` is empty: only ports near this NUMA node, if there are any.
    #[serde(deserialize_with = "field::optional_byte", skip_serializing_if = "Option::is_none")]
    pub numa: Option<u8>,
    /// Index into the GID tables of RoCE ports; without it the first IPv4-mapped address of RoCE v2.
    #[serde(deserialize_with = "field::optional_byte", skip_serializing_if = "Option::is_none")]
    pub gid_index: Option<u8>,
}

/// What KV pools are made of on real hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VerbsMemory {
    /// Ordinary host memory.
    Host,
    /// Huge pages, ordinary where there are none.
    HugePages,
}

/// From this local port, remote ports in this network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReachSpec {
    /// Local port, by device (`mlx5_0`) or device and port (`mlx5_0/1`).
    pub local: String,
    /// Addresses of the remote ports: `10.0.1.0/24`, or `fe80::/64`.
    pub remote: Network,
}

/// An address and how many of its first bits count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

impl std::str::FromStr for Network {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no network, expected one such as 10.0.1.0/24 or fe80::/64");
        let (address, bits) = text.split_once('/').ok_or_else(wrong)?;
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits: u8 = bits.parse().ok().filter(|bits| *bits <= most).ok_or_else(wrong)?;
        Ok(Network { address, bits })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

impl Serialize for Network {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl Network {
    /// As the first bytes of a GID: IPv4 is mapped into IPv6 (RFC 4291, 2.5.5.2), as RoCE v2 does.
    fn prefix(self) -> ([u8; 16], u8) {
        let mapped = |v4: Ipv4Addr| v4.to_ipv6_mapped().octets();
        match self.address {
            IpAddr::V4(v4) => (mapped(v4), 96 + self.bits),
            IpAddr::V6(v6) => (Ipv6Addr::octets(&v6), self.bits),
        }
    }
}

impl VerbsSpec {
    /// What a host of this side is told.
    #[must_use]
    pub fn device(&self, side: &VerbsSideSpec) -> DeviceConfig {
        DeviceConfig {
            devices: side.devices.clone(),
            numa: side.numa,
            gid: side.gid_index.map_or(GidChoice::Auto, GidChoice::Index),
            traffic_class: self.dscp.map_or(self.traffic_class, |dscp| dscp << 2),
            service_level: self.service_level,
            pkey_index: self.pkey_index,
            hop_limit: self.hop_limit,
            relaxed_ordering: self.relaxed_ordering,
            reach: self
                .reach
                .iter()
                .map(|line| {
                    let (prefix, bits) = line.remote.prefix();
                    Reach { local: line.local.clone(), prefix, bits }
                })
                .collect(),
        }
    }

    /// What KV pools are made of.
    #[must_use]
    pub fn pools(&self) -> Memory {
        match self.memory {
            VerbsMemory::Host => Memory::Host,
            VerbsMemory::HugePages => Memory::HugePages,
        }
    }

    /// How long nodes poll before they sleep.
    #[must_use]
    pub fn spin(&self) -> Span {
        Span(self.spin.0)
    }

    /// What is wrong between keys: (key below `verbs`, problem).
    pub(super) fn problem(&self) -> Option<(String, String)> {
        if self.dscp.is_some() && self.traffic_class != 0 {
            return Some((
                "dscp".to_owned(),
                "both `dscp` and `traffic_class` are given; keep one of them".to_owned(),
            ));
        }
        for (name, side) in [("prefill", &self.prefill), ("decode", &self.decode)] {
            for (i, device) in side.devices.iter().enumerate() {
                if let Some(problem) = device_problem(device) {
                    return Some((format!("{name}.devices.{i}"), problem));
                }
                if side.devices[..i].contains(device) {
                    return Some((format!("{name}.devices.{i}"), format!("`{device}` is there twice")));
                }
            }
        }
        let problem = |(i, line): (usize, &ReachSpec)| {
            device_problem(&line.local).map(|problem| (format!("reach.{i}.local"), problem))
        };
        self.reach.iter().enumerate().find_map(problem)
    }
}

/// What is wrong with `mlx5_0` or `mlx5_0/1`.
fn device_problem(name: &str) -> Option<String> {
    let (device, port) = name.split_once('/').map_or((name, None), |(device, port)| (device, Some(port)));
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let right = !device.is_empty()
        && device.chars().all(fine)
        && port.is_none_or(|port| port.parse::<u8>().is_ok_and(|port| port > 0));
    (!right)
        .then(|| format!("`{name}` is no device, expected a name such as mlx5_0, or with its port, mlx5_0/1"))
}
