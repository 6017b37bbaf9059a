//! What a driver of real time needs of a fabric, and what a fabric of real devices is told.

use super::{Absent, Fabric, Gid, Result};
use crate::id::CqId;
use core::net::Ipv6Addr;
use std::os::fd::RawFd;

/// A fabric in real time: which queues to poll, and how to sleep until one of them has something.
pub trait Device: Fabric {
    /// Completion queues that exist now, in the order in which they were made.
    fn queues(&self) -> &[CqId];
    /// Asks every queue for a wake-up at its next completion. One that came before this call may not wake: poll once more after it.
    fn arm(&mut self) -> Result<()>;
    /// Descriptors that become readable with a completion on an armed queue or an asynchronous event.
    fn descriptors(&self) -> &[RawFd];
    /// Takes in what made descriptors readable, so that they no longer are; never blocks. Asynchronous events then wait
    /// in [`Fabric::next_event`], and come there in no other way: a driver that polls without sleeping calls this now and then, too.
    fn wake(&mut self);
    /// What exists on it now. After shutdown everything must be zero.
    fn objects(&self) -> Objects;
}

/// Objects that exist on a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Objects {
    /// Buffers.
    pub buffers: usize,
    /// Memory registrations.
    pub memory_regions: usize,
    /// Queue pairs.
    pub queue_pairs: usize,
    /// Completion queues.
    pub completion_queues: usize,
    /// Shared receive queues.
    pub shared_receive_queues: usize,
}

impl Device for Absent {
    fn queues(&self) -> &[CqId] {
        &[]
    }
    fn arm(&mut self) -> Result<()> {
        Ok(())
    }
    fn descriptors(&self) -> &[RawFd] {
        &[]
    }
    fn wake(&mut self) {}
    fn objects(&self) -> Objects {
        Objects::default()
    }
}

/// Which address of a RoCE port's table is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GidChoice {
    /// The first IPv4-mapped one of RoCE version 2, else the first of version 2 that is not link-local, else the first of version 2.
    #[default]
    Auto,
    /// This index of the table.
    Index(u8),
}

impl GidChoice {
    /// The address that it means in the table of a RoCE port, and why it is that one; or why there is none. `of` reads an entry: its index, its
    /// address, and whether packets with it are RoCE version 2.
    pub fn pick<T>(
        self,
        table: &[T],
        of: impl Fn(&T) -> (u32, Gid, bool),
    ) -> std::result::Result<(&T, &'static str), String> {
        if let Self::Index(index) = self {
            let found = table.iter().find(|entry| of(entry).0 == u32::from(index));
            let found = found.ok_or_else(|| format!("no address at index {index} of its table"))?;
            return match of(found) {
                (.., true) => Ok((found, "configured")),
                (.., false) => {
                    Err(format!("the address at index {index} of its table is not RoCE version 2"))
                }
            };
        }
        let v2 = |fits: fn(Ipv6Addr) -> bool| {
            table.iter().find(|entry| {
                let (_, gid, v2) = of(entry);
                v2 && fits(gid.into())
            })
        };
        if let Some(found) = v2(|gid| gid.to_ipv4_mapped().is_some()) {
            Ok((found, "the first IPv4-mapped one of RoCE version 2"))
        } else if let Some(found) = v2(|gid| !gid.is_unicast_link_local()) {
            Ok((found, "no IPv4: the first of RoCE version 2 that is not link-local"))
        } else if let Some(found) = v2(|_| true) {
            Ok((found, "neither IPv4 nor global IPv6: the first of RoCE version 2, link-local"))
        } else {
            Err("no address of RoCE version 2: its network device needs an IP address".to_owned())
        }
    }
}

/// A line of the table of a rail-only network: from this local port, remote ports whose address begins with these bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach {
    /// Local port, by device name (`mlx5_0`) or device and port (`mlx5_0/1`).
    pub local: String,
    /// First bytes of the remote address.
    pub prefix: Gid,
    /// How many bits of it count, 0 to 128.
    pub bits: u8,
}

/// Which devices a host uses, and what its packets look like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceConfig {
    /// Ports to use as rails, in this order: `mlx5_0` (its first active port) or `mlx5_0/1`. Empty: every active port, ordered by name.
    pub devices: Vec<String>,
    /// Where `devices` is empty: only ports near this NUMA node, if there are any.
    pub numa: Option<u8>,
    /// Address of RoCE ports.
    pub gid: GidChoice,
    /// DSCP and ECN bits (RoCE), or traffic class (InfiniBand).
    pub traffic_class: u8,
    /// Service level: InfiniBand SL, or RoCE priority.
    pub service_level: u8,
    /// Index into the port's table of partition keys.
    pub pkey_index: u16,
    /// Hop limit (RoCE and routed InfiniBand).
    pub hop_limit: u8,
    /// Lets the device reorder its writes to host memory over PCIe.
    pub relaxed_ordering: bool,
    /// Which remote ports a local port reaches. Empty: all of them.
    pub reach: Vec<Reach>,
}

impl Default for DeviceConfig {
    fn default() -> Self {
        Self {
            devices: Vec::new(),
            numa: None,
            gid: GidChoice::Auto,
            traffic_class: 0,
            service_level: 0,
            pkey_index: 0,
            hop_limit: 64,
            relaxed_ordering: false,
            reach: Vec::new(),
        }
    }
}
