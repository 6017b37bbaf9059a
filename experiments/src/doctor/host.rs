//! What a host brings besides devices: locked memory, huge pages, kernel, modules, libraries.

use std::path::Path;

use serde::Serialize;

use super::sysfs::{names, text};

/// Huge pages of one size.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HugePages {
    /// Bytes of a page.
    pub size: u64,
    /// Pages there are.
    pub total: u64,
    /// Pages that nobody uses.
    pub free: u64,
}

/// Memory of NVIDIA GPUs as a source and target of RDMA.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Gpu {
    /// Version of the NVIDIA driver, if it is loaded.
    pub driver: Option<String>,
    /// Whether `nvidia_peermem` (or its older name) is loaded.
    pub peermem: bool,
    /// Whether the kernel can register dmabufs with RDMA devices at all (Linux 5.12 and newer, `ib_umem_dmabuf_get`).
    pub kernel_dmabuf: bool,
}

/// A host.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Host {
    /// Version of the kernel.
    pub kernel: String,
    /// NUMA nodes.
    pub numa_nodes: usize,
    /// Bytes that this process may lock into memory; none: as many as it wants.
    pub locked_memory: Option<u64>,
    /// Whether this process may lock more than that (CAP_IPC_LOCK).
    pub may_exceed: bool,
    /// Huge pages, by size.
    pub huge_pages: Vec<HugePages>,
    /// GPU memory.
    pub gpu: Gpu,
    /// User-space drivers of libibverbs that are installed, such as `mlx5`.
    pub providers: Vec<String>,
    /// Kernel drivers for RDMA devices on the PCI bus: (module, whether it is loaded).
    pub adapters: Vec<(String, bool)>,
    /// Network interfaces that carry Ethernet and are up, without loopback.
    pub interfaces: Vec<String>,
}

/// Looks at the host below `root`.
#[must_use]
pub(super) fn host(root: &Path) -> Host {
    let kernel = text(&root.join("proc/sys/kernel/osrelease")).unwrap_or_else(|| "unknown".to_owned());
    let nodes = names(&root.join("sys/devices/system/node"));
    let is_node = |name: &&String| name.strip_prefix("node").is_some_and(|n| n.parse::<u32>().is_ok());
    Host {
        numa_nodes: nodes.iter().filter(is_node).count().max(1),
        locked_memory: locked_memory(root),
        may_exceed: may_lock(root),
        huge_pages: huge_pages(root),
        gpu: Gpu {
            driver: text(&root.join("sys/module/nvidia/version")),
            peermem: ["nvidia_peermem", "nv_peer_mem"]
                .iter()
                .any(|module| root.join("sys/module").join(module).is_dir()),
            kernel_dmabuf: version(&kernel) >= (5, 12),
        },
        providers: providers(root),
        adapters: adapters(root),
        interfaces: interfaces(root),
        kernel,
    }
}

/// `6.1.0-56-amd64` -> (6, 1).
fn version(kernel: &str) -> (u32, u32) {
    let mut numbers = kernel.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// The soft limit, which is the one that counts.
fn locked_memory(root: &Path) -> Option<u64> {
    let limits = text(&root.join("proc/self/limits"))?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// CAP_IPC_LOCK is bit 14 (capabilities(7)).
fn may_lock(root: &Path) -> bool {
    text(&root.join("proc/self/status"))
        .as_deref()
        .and_then(|status| status.lines().find_map(|line| line.strip_prefix("CapEff:")))
        .and_then(|set| u64::from_str_radix(set.trim(), 16).ok())
        .is_some_and(|set| set >> 14 & 1 == 1)
}

fn huge_pages(root: &Path) -> Vec<HugePages> {
    let folder = root.join("sys/kernel/mm/hugepages");
    let kind = |name: String| {
        let size: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
        let count = |file: &str| text(&folder.join(&name).join(file))?.parse().ok();
        Some(HugePages { size: size * 1024, total: count("nr_hugepages")?, free: count("free_hugepages")? })
    };
    let mut kinds: Vec<HugePages> = names(&folder).into_iter().filter_map(kind).collect();
    kinds.sort_by_key(|kind| kind.size);
    kinds
}

/// Each is a file `libNAME-rdmavNUMBER.so` in the folder `libibverbs` of a library folder.
fn providers(root: &Path) -> Vec<String> {
    let mut folders = Vec::new();
    for lib in ["usr/lib", "usr/lib64", "usr/local/lib"] {
        let lib = root.join(lib);
        folders.push(lib.join("libibverbs"));
        folders.extend(
            names(&lib)
                .into_iter()
                .filter(|name| name.ends_with("-linux-gnu"))
                .map(|name| lib.join(name).join("libibverbs")),
        );
    }
    let provider = |name: &String| Some(name.strip_prefix("lib")?.split_once("-rdmav")?.0.to_owned());
    let mut providers: Vec<String> =
        folders.iter().flat_map(|folder| names(folder)).filter_map(|name| provider(&name)).collect();
    // libmlx5 is a library of its own, which the file in that folder points to.
    providers.sort();
    providers.dedup();
    providers
}

/// Network adapters (PCI class 02) of vendors whose RDMA driver is a module of its own, and bears the same name everywhere.
fn adapters(root: &Path) -> Vec<(String, bool)> {
    let bus = root.join("sys/bus/pci/devices");
    let mut found: Vec<(String, bool)> = Vec::new();
    for name in names(&bus) {
        let word = |file: &str| text(&bus.join(&name).join(file)).unwrap_or_default();
        if !word("class").starts_with("0x02") {
            continue;
        }
        let module = match word("vendor").as_str() {
            // ConnectX-3 is 0x1003 to 0x1007, newer ones from 0x1011 on.
            "0x15b3" if word("device").as_str() < "0x1010" => "mlx4_ib",
            "0x15b3" => "mlx5_ib",
            _ => continue,
        };
        if !found.iter().any(|(known, _)| known == module) {
            found.push((module.to_owned(), root.join("sys/module").join(module).is_dir()));
        }
    }
    found
}

fn interfaces(root: &Path) -> Vec<String> {
    let class = root.join("sys/class/net");
    let is_up = |name: &String| {
        let word = |file: &str| text(&class.join(name).join(file)).unwrap_or_default();
        // ARPHRD_ETHER, not loopback.
        word("type") == "1" && word("operstate") == "up"
    };
    names(&class).into_iter().filter(is_up).collect()
}
