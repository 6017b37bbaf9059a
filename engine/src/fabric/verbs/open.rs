//! Which devices and ports a configuration means.

use super::list::{self, DeviceInfo, PortInfo, PortState};
use super::sys::Context;
use crate::fabric::{DeviceConfig, LinkLayer, Port};
use crate::id::PortId;

/// Why no fabric could be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// There are no RDMA devices.
    #[error(
        "this host has no RDMA device: load the NIC's driver (modprobe mlx5_ib), or Soft-RoCE (modprobe rdma_rxe; rdma link add \
         rxe0 type rxe netdev eth0)"
    )]
    None,
    /// A name in `devices` is not there.
    #[error("no RDMA device or port `{asked}`; there are: {there}")]
    NoSuch {
        /// The name.
        asked: String,
        /// Every port, with its state.
        there: String,
    },
    /// A port is named twice.
    #[error("port {0} is named twice in `devices`: one rail for each port")]
    Twice(String),
    /// No port that was asked for has a link.
    #[error("no active port among {0}: check cable and switch; on RoCE, ip link set NETDEV up")]
    NoneActive(String),
    /// A port has no address of the kind asked for.
    #[error("port {port}: {why}; its table: {table}")]
    Gid {
        /// Which port.
        port: String,
        /// What is wrong.
        why: String,
        /// Index and kind of its addresses.
        table: String,
    },
    /// The index of the partition key is out of the table, or that entry is empty.
    #[error("port {port}: no partition key at index {index}; indices with one: {there:?}")]
    Pkey {
        /// Which port.
        port: String,
        /// The configured index.
        index: u16,
        /// Indices that have one.
        there: Vec<u16>,
    },
    /// A line of the reach table is wrong.
    #[error("reach: {0}")]
    Reach(String),
    /// The service level is out of range.
    #[error("service_level {0} is not valid: 0 to 15 on InfiniBand, 0 to 7 on RoCE")]
    ServiceLevel(u8),
    /// A call failed.
    #[error("{device}: {call}: {}{}{advice}", std::io::Error::from_raw_os_error(*.errno), if .advice.is_empty() { "" } else { "; " })]
    Call {
        /// On which device.
        device: String,
        /// What was called.
        call: &'static str,
        /// Its error number.
        errno: i32,
        /// What usually mends it.
        advice: &'static str,
    },
}

/// A port as packets need it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rail {
    /// Which of the fabric's devices.
    pub(super) nic: usize,
    /// The port's number on it.
    pub(super) number: u8,
    pub(super) gid_index: u8,
    pub(super) link_layer: LinkLayer,
}

/// What [`choose`] found.
pub(super) struct Chosen {
    pub(super) nics: Vec<(Context, DeviceInfo)>,
    pub(super) rails: Vec<Rail>,
    pub(super) ports: Vec<Port>,
}

type Candidate = (DeviceInfo, PortInfo);

fn full_name((device, port): &Candidate) -> String {
    format!("{}/{}", device.name, port.number)
}

fn describe(candidates: &[Candidate]) -> String {
    let one = |c: &Candidate| format!("{} ({:?})", full_name(c), c.1.state);
    candidates.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn is_up(candidate: &&Candidate) -> bool {
    candidate.1.state == PortState::Active
}

/// The ports that a configuration means, in its order.
fn select(all: &[Candidate], config: &DeviceConfig) -> Result<Vec<Candidate>, OpenError> {
    let mut chosen: Vec<Candidate> = Vec::new();
    for asked in &config.devices {
        let named = |c: &&Candidate| *asked == c.0.name || *asked == full_name(c);
        let mut named = all.iter().filter(named).peekable();
        let there = || describe(all);
        let first =
            *named.peek().ok_or_else(|| OpenError::NoSuch { asked: asked.clone(), there: there() })?;
        // A port that was named by its number is used even while it is down: it may come up.
        let port = match named.find(is_up) {
            Some(active) => active,
            None if *asked == full_name(first) => first,
            None => return Err(OpenError::NoneActive(asked.clone())),
        };
        if chosen.contains(port) {
            return Err(OpenError::Twice(full_name(port)));
        }
        chosen.push(port.clone());
    }
    if config.devices.is_empty() {
        let active: Vec<_> = all.iter().filter(is_up).cloned().collect();
        let near = |c: &&Candidate| config.numa.is_some() && c.0.numa == config.numa;
        chosen = active.iter().filter(near).cloned().collect();
        if chosen.is_empty() {
            chosen = active;
        }
        if chosen.is_empty() {
            return Err(OpenError::NoneActive(describe(all)));
        }
    }
    Ok(chosen)
}

fn rail(candidate: &Candidate, config: &DeviceConfig, id: u32) -> Result<(Rail, Port), OpenError> {
    let (device, port) = candidate;
    let name = full_name(candidate);
    let (gid, _) = port.choose(config.gid).map_err(|why| {
        let one = |g: &list::GidInfo| format!("{} {:?}", g.index, g.kind);
        let table = port.gids.iter().map(one).collect::<Vec<_>>().join(", ");
        OpenError::Gid {
            port: name.clone(),
            why,
            table: if table.is_empty() { "empty".into() } else { table },
        }
    })?;
    let Ok(gid_index) = u8::try_from(gid.index) else {
        let why = "its address lies beyond index 255, which an address vector cannot name";
        return Err(OpenError::Gid { port: name, why: why.to_owned(), table: gid.index.to_string() });
    };
    if port.pkeys.get(usize::from(config.pkey_index)).is_none_or(|key| *key == 0) {
        let there = (0..).zip(&port.pkeys).filter(|(_, key)| **key != 0).map(|(i, _)| i).collect();
        return Err(OpenError::Pkey { port: name, index: config.pkey_index, there });
    }
    let most = if port.link_layer == LinkLayer::Ethernet { 7 } else { 15 };
    if config.service_level > most {
        return Err(OpenError::ServiceLevel(config.service_level));
    }
    let mut gids = vec![gid.gid];
    gids.extend(port.gids.iter().filter(|g| g.index != gid.index).map(|g| g.gid));
    let own = Port {
        id: PortId(id),
        name,
        link_layer: port.link_layer,
        bits_per_s: port.bits_per_s,
        mtu: port.mtu,
        numa: device.numa,
        pcie: device.pcie.clone(),
        gids,
        lid: port.lid,
        up: port.state == PortState::Active,
    };
    Ok((Rail { nic: 0, number: port.number, gid_index, link_layer: port.link_layer }, own))
}

fn check_reach(config: &DeviceConfig, ports: &[Port]) -> Result<(), OpenError> {
    for line in &config.reach {
        if line.bits > 128 {
            return Err(OpenError::Reach(format!("{} bits of {}: 0 to 128", line.bits, line.local)));
        }
        if !ports.iter().any(|p| is_named(p, &line.local)) {
            let names: Vec<_> = ports.iter().map(|p| p.name.as_str()).collect();
            let names = names.join(", ");
            return Err(OpenError::Reach(format!("{} is not a port in use, which are {names}", line.local)));
        }
    }
    Ok(())
}

/// Whether a name of a configuration, `mlx5_0` or `mlx5_0/1`, means this port.
pub(super) fn is_named(port: &Port, name: &str) -> bool {
    port.name == name || port.name.rsplit_once('/').is_some_and(|(device, _)| device == name)
}

pub(super) fn choose(config: &DeviceConfig) -> Result<Chosen, OpenError> {
    let list = list::devices()?;
    let mut devices: Vec<_> = list.devices().collect();
    devices.sort_by(|a, b| a.0.cmp(&b.0));
    if devices.is_empty() {
        return Err(OpenError::None);
    }
    let (mut open, mut all, mut broken) = (Vec::new(), Vec::new(), None);
    for (name, device) in devices {
        let context = list::open(&name, device);
        match context.and_then(|context| Ok((list::look(&name, &context)?, context))) {
            Ok((info, context)) => {
                all.extend(info.ports.iter().map(|port| (info.clone(), port.clone())));
                open.push((context, info));
            }
            // A device that cannot be opened is an error if it was asked for, or if there is no other.
            Err(error) => {
                let asked = |a: &String| *a == name || a.starts_with(&format!("{name}/"));
                if config.devices.iter().any(asked) {
                    return Err(error);
                }
                broken = Some(error);
            }
        }
    }
    if let (true, Some(error)) = (open.is_empty(), broken) {
        return Err(error);
    }
    let chosen = select(&all, config)?;
    let (mut nics, mut rails, mut ports): (Vec<(Context, DeviceInfo)>, Vec<Rail>, Vec<Port>) =
        Default::default();
    for (candidate, id) in chosen.iter().zip(0..) {
        let (mut own, port) = rail(candidate, config, id)?;
        let known = nics.iter().position(|(_, info)| info.name == candidate.0.name);
        own.nic = match known.or_else(|| {
            let at = open.iter().position(|(_, info)| info.name == candidate.0.name)?;
            nics.push(open.remove(at));
            Some(nics.len() - 1)
        }) {
            Some(at) => at,
            // It was opened above, and is taken once.
            None => return Err(OpenError::None),
        };
        rails.push(own);
        ports.push(port);
    }
    check_reach(config, &ports)?;
    Ok(Chosen { nics, rails, ports })
}
