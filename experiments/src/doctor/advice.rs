//! What is wrong with what was found, and the commands that mend it.

use engine::fabric::{DeviceConfig, GidChoice};

use super::host::Host;
use super::settings::pick_gid;
use super::sysfs::{Device, Port};
use super::{Build, Finding, Severity};

/// Locked memory below this is not enough for the pools of even a small experiment.
const LITTLE_LOCKED: u64 = 64 << 20;

fn finding(severity: Severity, problem: String, mend: &[&str]) -> Finding {
    Finding { severity, problem, mend: mend.iter().map(|&line| line.to_owned()).collect() }
}

fn error(problem: String, mend: &[&str]) -> Finding {
    finding(Severity::Error, problem, mend)
}

fn warning(problem: String, mend: &[&str]) -> Finding {
    finding(Severity::Warning, problem, mend)
}

fn note(problem: String, mend: &[&str]) -> Finding {
    finding(Severity::Note, problem, mend)
}

/// Of the host as a whole.
pub(super) fn host(host: &Host, build: &Build) -> Vec<Finding> {
    let mut found = Vec::new();
    if !build.verbs {
        found.push(error(
            "this kvrail was built without verbs: it simulates, and cannot use devices".to_owned(),
            &[
                "sudo apt-get install gcc g++ cmake make pkg-config python3 libclang-dev libnl-3-dev libnl-route-3-dev libibverbs-dev",
                "cargo build --release --features verbs",
            ],
        ));
    }
    if let Some(limit) = host.locked_memory.filter(|_| !host.may_exceed) {
        let problem =
            format!("only {} of memory may be locked: a registered KV pool is locked", bytes(limit));
        let mend = [
            "echo '* - memlock unlimited' | sudo tee /etc/security/limits.d/rdma.conf    # then log in again",
            "docker run --ulimit memlock=-1 ...    # in a container; LimitMEMLOCK=infinity in a systemd unit",
        ];
        found.push(if limit < LITTLE_LOCKED { error(problem, &mend) } else { warning(problem, &mend) });
    }
    if host.huge_pages.iter().all(|kind| kind.total == 0) {
        found.push(note(
            "there are no huge pages: registrations have more entries for the NIC to look up".to_owned(),
            &["sudo sysctl -w vm.nr_hugepages=1024    # 2 GiB, where a page has 2 MiB"],
        ));
    }
    if host.gpu.driver.is_some() && !host.gpu.peermem {
        let problem = "NVIDIA GPUs, but nvidia_peermem is not loaded";
        let dmabuf = "GPU memory can be registered as dmabuf only, where driver and device can";
        let neither = format!("and Linux {} registers no dmabufs (5.12 does)", host.kernel);
        let rest = if host.gpu.kernel_dmabuf { dmabuf } else { &neither };
        found.push(note(format!("{problem}; {rest}"), &["sudo modprobe nvidia_peermem"]));
    }
    found
}

/// Of devices as such.
pub(super) fn devices(devices: &[Device], host: &Host) -> Vec<Finding> {
    let mut found = Vec::new();
    if devices.is_empty() {
        found.push(no_device(host));
    }
    for device in devices {
        match &device.uverbs {
            None => found.push(error(
                format!("{}: no process can open it: ib_uverbs is not loaded", device.name),
                &["sudo modprobe ib_uverbs"],
            )),
            Some(uverbs) if !device.may_open => found.push(error(
                format!("{}: /dev/infiniband/{uverbs} is not there or may not be opened", device.name),
                &[
                    &format!("sudo chmod a+rw /dev/infiniband/{uverbs}    # or join the group that owns it"),
                    "docker run --device=/dev/infiniband ...    # in a container",
                ],
            )),
            Some(_) => {}
        }
        if let Some(provider) = provider(device)
            && !host.providers.iter().any(|there| there == provider)
        {
            let problem = format!("{}: libibverbs has no `{provider}` driver here", device.name);
            found.push(error(problem, &["sudo apt-get install ibverbs-providers"]));
        }
        if let (Some(now), Some(could)) = (&device.pcie, &device.pcie_could) {
            let problem = format!("{}: its PCIe link runs at {now} and could at {could}", device.name);
            found.push(warning(problem, &[]));
        }
        if device.pci.is_some() && device.numa.is_none() && host.numa_nodes > 1 {
            let problem = format!(
                "{}: the firmware does not say which of {} NUMA nodes it is near",
                device.name, host.numa_nodes
            );
            found.push(note(problem, &[]));
        }
        for port in device.ports.iter().filter(|port| !port.is_active()) {
            found.push(inactive(device, port));
        }
    }
    if !devices.is_empty() && devices.iter().all(|device| device.ports.iter().all(|port| !port.is_active())) {
        found.push(error("no port is ACTIVE".to_owned(), &[]));
    }
    found
}

fn no_device(host: &Host) -> Finding {
    if let Some((module, _)) = host.adapters.iter().find(|(_, loaded)| !loaded) {
        let problem =
            format!("no RDMA device: there is an adapter for it, and its driver {module} is not loaded");
        return error(problem, &[&format!("sudo modprobe {module}")]);
    }
    let interface = host.interfaces.first().map_or("INTERFACE", String::as_str);
    error(
        "no RDMA device: /sys/class/infiniband has none".to_owned(),
        &[
            &format!(
                "sudo modprobe rdma_rxe && sudo rdma link add rxe0 type rxe netdev {interface}    # Soft-RoCE: slow, over any Ethernet"
            ),
            "tests/soft-roce/run -- kvrail doctor    # or devices in a small virtual machine",
        ],
    )
}

/// The user-space driver of a device, where its name is certain.
fn provider(device: &Device) -> Option<&'static str> {
    match device.driver.as_deref()? {
        "mlx5_core" => Some("mlx5"),
        "mlx4_core" => Some("mlx4"),
        "rxe" => Some("rxe"),
        "siw" => Some("siw"),
        "efa" => Some("efa"),
        "irdma" => Some("irdma"),
        _ => None,
    }
}

fn inactive(device: &Device, port: &Port) -> Finding {
    let problem = format!("{}/{} is {} ({})", device.name, port.port, port.state, port.physical);
    match (&port.netdev, port.state.as_str()) {
        (Some(netdev), _) => {
            warning(problem, &[&format!("sudo ip link set {netdev} up    # and see to its cable")])
        }
        (None, "INIT" | "ARMED") => warning(
            format!("{problem}: no subnet manager has been here"),
            &["sudo systemctl start opensm    # on one host of the fabric"],
        ),
        (None, _) => warning(problem, &[]),
    }
}

/// Of the ports that a side would use.
pub(super) fn ports(
    side: &str,
    ports: &[(&Device, &Port)],
    config: &DeviceConfig,
    all: &[Device],
) -> Vec<Finding> {
    let mut found = Vec::new();
    if let Some(node) = config.numa.filter(|_| config.devices.is_empty())
        && !all.iter().any(|device| device.numa == Some(node))
    {
        found.push(note(
            format!("{side}: no device is near NUMA node {node}: all active ports are used"),
            &[],
        ));
    }
    for (device, port) in ports {
        let name = format!("{}/{}", device.name, port.port);
        if !port.pkeys.iter().any(|(index, _)| *index == config.pkey_index) {
            found.push(error(
                format!("{side}: {name} has no partition key at index {}", config.pkey_index),
                &[],
            ));
        }
        if !port.is_ethernet() {
            continue;
        }
        let netdev = port.netdev.as_deref().unwrap_or("INTERFACE");
        let address = format!("sudo ip addr add ADDRESS/BITS dev {netdev}");
        match pick_gid(port, config.gid) {
            Err(why) => {
                let mend: &[&str] = if config.gid == GidChoice::Auto { &[&address] } else { &[] };
                found.push(error(format!("{side}: {name}: {why}"), mend));
            }
            Ok(entry) if entry.gid.is_unicast_link_local() => found.push(warning(
                format!("{side}: {name} would use a link-local address, which no router forwards"),
                &[&address],
            )),
            Ok(_) => {}
        }
        match (port.netdev_mtu, port.mtu) {
            (Some(ethernet), mtu) if mtu.is_none_or(|mtu| mtu < 4096) => {
                let mtu = mtu.map_or_else(|| "none".to_owned(), |mtu| mtu.to_string());
                found.push(warning(
                    format!("{name}: the RDMA MTU is {mtu}, because {netdev} has an MTU of {ethernet}; 4096 needs 4200"),
                    &[&format!("sudo ip link set {netdev} mtu 4200    # if the switches forward it; the same on every host")],
                ));
            }
            _ => {}
        }
    }
    found
}

/// `8 MiB`.
pub(super) fn bytes(bytes: u64) -> String {
    let units = [(1_u64 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.iter().find(|(size, _)| bytes >= *size) {
        Some((size, unit)) if bytes.is_multiple_of(*size) => format!("{} {unit}", bytes / size),
        #[allow(clippy::cast_precision_loss)]
        Some((size, unit)) => format!("{:.1} {unit}", bytes as f64 / *size as f64),
        None => format!("{bytes} bytes"),
    }
}
