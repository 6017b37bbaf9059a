//! `kvrail doctor` on hosts in all states, as folders with what the kernel would show.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use experiments::doctor::{Build, Report, Severity, examine};
use experiments::spec::Spec;

/// A host's files.
struct Host(PathBuf);

impl Host {
    /// One with Linux 6.1, no limit on locked memory, huge pages, and libibverbs' driver of ConnectX.
    fn new(name: &str) -> Self {
        let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("doctor").join(name);
        let _ = fs::remove_dir_all(&root);
        let host = Host(root);
        host.file("proc/sys/kernel/osrelease", "6.1.0-56-amd64\n");
        host.locked("unlimited", "0000000000000000");
        host.file("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "64\n");
        host.file("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "60\n");
        host.file("usr/lib/x86_64-linux-gnu/libibverbs/libmlx5-rdmav34.so", "");
        host.file("sys/class/net/eth0/type", "1\n");
        host.file("sys/class/net/eth0/operstate", "up\n");
        host
    }

    fn file(&self, path: &str, text: &str) {
        let path = self.0.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn gone(&self, path: &str) {
        let path = self.0.join(path);
        if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
    }

    fn locked(&self, limit: &str, capabilities: &str) {
        let line = format!(
            "Limit     Soft Limit  Hard Limit  Units\nMax locked memory         {limit}   {limit}   bytes\n"
        );
        self.file("proc/self/limits", &line);
        self.file("proc/self/status", &format!("Name:\tkvrail\nCapEff:\t{capabilities}\n"));
    }

    /// A device that works: one RoCE port at 400 Gb/s with a MTU of 4200 and the usual table of addresses.
    fn roce(&self, name: &str, number: u8) {
        let device = format!("sys/class/infiniband/{name}");
        self.file(&format!("{device}/fw_ver"), "28.39.1002\n");
        self.file(&format!("{device}/device/numa_node"), &format!("{}\n", number % 2));
        let (driver, at) = (self.0.join("sys/bus/drivers/mlx5_core"), self.0.join(&device).join("device"));
        fs::create_dir_all(&driver).unwrap();
        std::os::unix::fs::symlink(driver, at.join("driver")).unwrap();
        for (file, text) in [
            ("current_link_speed", "32.0 GT/s PCIe"),
            ("max_link_speed", "32.0 GT/s PCIe"),
            ("current_link_width", "16"),
            ("max_link_width", "16"),
        ] {
            self.file(&format!("{device}/device/{file}"), text);
        }
        let port = format!("{device}/ports/1");
        for (file, text) in [
            ("state", "4: ACTIVE\n"),
            ("phys_state", "5: LinkUp\n"),
            ("link_layer", "Ethernet\n"),
            ("rate", "400 Gb/sec (4X NDR)\n"),
            ("lid", "0x0\n"),
            ("pkeys/0", "0xffff\n"),
            ("pkeys/1", "0x0000\n"),
        ] {
            self.file(&format!("{port}/{file}"), text);
        }
        let local = "fe80:0000:0000:0000:0893:77ff:fec9:bc56";
        let ipv4 = format!("0000:0000:0000:0000:0000:ffff:0a08:{number:04x}");
        for (index, gid, kind) in [
            (0, local, "IB/RoCE v1"),
            (1, local, "RoCE v2"),
            (2, ipv4.as_str(), "IB/RoCE v1"),
            (3, ipv4.as_str(), "RoCE v2"),
        ] {
            self.gid(name, index, gid, kind, &format!("eth{number}"));
        }
        self.file(&format!("{port}/gids/4"), "0000:0000:0000:0000:0000:0000:0000:0000\n");
        self.file(&format!("sys/class/net/eth{number}/mtu"), "4200\n");
        self.file(&format!("sys/class/infiniband_verbs/uverbs{number}/ibdev"), &format!("{name}\n"));
        self.file(&format!("dev/infiniband/uverbs{number}"), "");
    }

    fn gid(&self, device: &str, index: u8, gid: &str, kind: &str, netdev: &str) {
        let port = format!("sys/class/infiniband/{device}/ports/1");
        self.file(&format!("{port}/gids/{index}"), &format!("{gid}\n"));
        self.file(&format!("{port}/gid_attrs/types/{index}"), &format!("{kind}\n"));
        self.file(&format!("{port}/gid_attrs/ndevs/{index}"), &format!("{netdev}\n"));
    }

    fn examine(&self) -> Report {
        self.examine_for(&[])
    }

    fn examine_for(&self, sets: &[&str]) -> Report {
        let sets: Vec<String> = sets.iter().map(|&set| set.to_owned()).collect();
        let spec = Spec::parse("{}", Path::new("test"), &sets).unwrap();
        let build = Build { kvrail: "0".to_owned(), verbs: true, zeromq: "4".to_owned() };
        examine(&self.0, build, &spec)
    }
}

/// There is a finding as bad as this that says this, and a mend of it that says that.
#[track_caller]
fn finds(report: &Report, severity: Severity, problem: &str, mend: &str) {
    let matches = report.findings.iter().any(|finding| {
        let mended = mend.is_empty() || finding.mend.iter().any(|line| line.contains(mend));
        finding.severity == severity && finding.problem.contains(problem) && mended
    });
    assert!(matches, "no {severity:?} `{problem}` with `{mend}` in\n{}", report.table());
    assert_eq!(report.usable, report.findings.iter().all(|finding| finding.severity != Severity::Error));
    assert!(report.table().contains(problem));
}

#[test]
fn a_host_that_lacks_nothing_is_usable() {
    let host = Host::new("fine");
    host.roce("mlx5_0", 1);
    host.roce("mlx5_1", 2);
    let report = host.examine();
    assert!(report.usable && report.findings.is_empty(), "{}", report.table());
    let device = &report.devices[0];
    assert_eq!((device.driver.as_deref(), device.numa, device.may_open), (Some("mlx5_core"), Some(1), true));
    assert_eq!(device.pcie.as_deref(), Some("32.0 GT/s x16"));
    let port = &device.ports[0];
    assert_eq!((port.gbps, port.mtu, port.netdev.as_deref()), (400.0, Some(4096), Some("eth1")));
    assert_eq!(port.gids.len(), 4, "an empty entry is none");
    // The first IPv4-mapped address of RoCE v2, on every port.
    let rails: Vec<_> =
        report.rails.iter().map(|rail| (rail.device.as_str(), rail.port, rail.gid_index)).collect();
    assert_eq!(rails, [("mlx5_0", 1, Some(3)), ("mlx5_1", 1, Some(3))]);
    assert!(report.table().ends_with("usable\n") && report.table().contains("<- would be used"));
}

#[test]
fn devices_come_in_the_order_of_their_numbers() {
    let host = Host::new("order");
    for number in [10, 2, 1] {
        host.roce(&format!("mlx5_{number}"), number);
    }
    let names: Vec<_> = host.examine().devices.into_iter().map(|device| device.name).collect();
    assert_eq!(names, ["mlx5_1", "mlx5_2", "mlx5_10"]);
}

#[test]
fn without_devices_it_says_how_to_get_one() {
    let host = Host::new("none");
    finds(&host.examine(), Severity::Error, "no RDMA device", "type rxe netdev eth0");
    host.file("sys/bus/pci/devices/0000:81:00.0/class", "0x020000\n");
    host.file("sys/bus/pci/devices/0000:81:00.0/vendor", "0x15b3\n");
    host.file("sys/bus/pci/devices/0000:81:00.0/device", "0x1021\n");
    finds(&host.examine(), Severity::Error, "driver mlx5_ib is not loaded", "modprobe mlx5_ib");
    let nothing = Host(PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("doctor/nothing-at-all"));
    finds(&nothing.examine(), Severity::Error, "no RDMA device", "rxe");
}

#[test]
fn a_device_that_cannot_be_opened_is_no_use() {
    let host = Host::new("closed");
    host.roce("mlx5_0", 1);
    host.gone("dev/infiniband/uverbs1");
    finds(&host.examine(), Severity::Error, "/dev/infiniband/uverbs1", "--device=/dev/infiniband");
    host.gone("sys/class/infiniband_verbs");
    finds(&host.examine(), Severity::Error, "ib_uverbs is not loaded", "modprobe ib_uverbs");
    host.gone("usr/lib/x86_64-linux-gnu/libibverbs");
    finds(&host.examine(), Severity::Error, "`mlx5`", "ibverbs-providers");
}

#[test]
fn ports_that_carry_nothing_are_told() {
    let host = Host::new("down");
    host.roce("mlx5_0", 1);
    host.file("sys/class/infiniband/mlx5_0/ports/1/state", "1: DOWN\n");
    host.file("sys/class/infiniband/mlx5_0/ports/1/phys_state", "3: Disabled\n");
    let report = host.examine();
    finds(&report, Severity::Error, "no port is ACTIVE", "");
    finds(&report, Severity::Warning, "mlx5_0/1 is DOWN (Disabled)", "ip link set eth1 up");
    assert!(report.rails.is_empty());
    // InfiniBand, which nobody has given a LID.
    host.file("sys/class/infiniband/mlx5_0/ports/1/link_layer", "InfiniBand\n");
    host.file("sys/class/infiniband/mlx5_0/ports/1/state", "2: INIT\n");
    finds(&host.examine(), Severity::Warning, "subnet manager", "opensm");
    // With one it needs no address.
    host.file("sys/class/infiniband/mlx5_0/ports/1/state", "4: ACTIVE\n");
    host.file("sys/class/infiniband/mlx5_0/ports/1/lid", "0x2a\n");
    let report = host.examine();
    assert!(report.usable, "{}", report.table());
    assert_eq!((report.devices[0].ports[0].lid, report.rails[0].gid_index), (42, None));
}

#[test]
fn an_address_must_be_one_of_roce_v2() {
    let host = Host::new("addresses");
    host.roce("mlx5_0", 1);
    for index in [2, 3] {
        host.gone(&format!("sys/class/infiniband/mlx5_0/ports/1/gids/{index}"));
    }
    finds(&host.examine(), Severity::Warning, "link-local", "ip addr add");
    host.gid("mlx5_0", 5, "2001:0db8:0000:0000:0000:0000:0000:0001", "RoCE v2", "eth1");
    assert_eq!(host.examine().rails[0].gid_index, Some(5), "global before link-local");
    for index in [1, 5] {
        host.gone(&format!("sys/class/infiniband/mlx5_0/ports/1/gids/{index}"));
    }
    finds(
        &host.examine(),
        Severity::Error,
        "no address of RoCE version 2",
        "ip addr add ADDRESS/BITS dev eth1",
    );
}

#[test]
fn what_runs_slowly_is_told() {
    let host = Host::new("slow");
    host.roce("mlx5_0", 1);
    host.file("sys/class/net/eth1/mtu", "1500\n");
    host.file("sys/class/infiniband/mlx5_0/device/current_link_width", "8");
    host.file("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "0\n");
    let report = host.examine();
    finds(&report, Severity::Warning, "the RDMA MTU is 1024, because eth1 has an MTU of 1500", "mtu 4200");
    finds(&report, Severity::Warning, "runs at 32.0 GT/s x8 and could at 32.0 GT/s x16", "");
    finds(&report, Severity::Note, "no huge pages", "vm.nr_hugepages");
    assert!(report.usable);
}

#[test]
fn an_experiment_says_which_ports_are_used() {
    let host = Host::new("chosen");
    for number in 1..=4 {
        host.roce(&format!("mlx5_{number}"), number);
    }
    let rails = |report: &Report| -> Vec<String> {
        let rails = report.rails.iter();
        rails
            .map(|rail| format!("{} {}/{} {:?}", rail.side, rail.device, rail.port, rail.gid_index))
            .collect()
    };
    let report = host.examine_for(&["verbs.prefill.devices=[mlx5_3, mlx5_2/1]", "verbs.decode.numa=1"]);
    assert!(report.usable, "{}", report.table());
    assert_eq!(
        rails(&report),
        [
            "prefill mlx5_3/1 Some(3)",
            "prefill mlx5_2/1 Some(3)",
            "decode mlx5_1/1 Some(3)",
            "decode mlx5_3/1 Some(3)"
        ]
    );
    let report =
        host.examine_for(&["verbs.prefill.gid_index=1", "verbs.decode.gid_index=1", "verbs.dscp=26"]);
    assert_eq!(report.rails[0].gid_index, Some(1));
    finds(&report, Severity::Warning, "link-local", "");
    let traffic = report.settings.iter().find(|setting| setting.key == "verbs.traffic_class").unwrap();
    assert_eq!((traffic.value.as_str(), traffic.meaning.as_str()), ("104", "DSCP 26, ECN bits 0"));
    for (set, problem) in [
        ("verbs.decode.devices=[mlx5_9]", "there is no device `mlx5_9`; there are: mlx5_1, mlx5_2"),
        ("verbs.decode.devices=[mlx5_1/2]", "mlx5_1 has no port 2"),
        ("verbs.decode.gid_index=2", "index 2 of its table is not RoCE version 2"),
        ("verbs.decode.gid_index=9", "no address at index 9"),
        ("verbs.pkey_index=1", "no partition key at index 1"),
    ] {
        finds(&host.examine_for(&[set]), Severity::Error, problem, "");
    }
    finds(&host.examine_for(&["verbs.decode.numa=7"]), Severity::Note, "NUMA node 7", "");
}

#[test]
fn locked_memory_has_to_hold_the_pools() {
    let host = Host::new("locked");
    host.roce("mlx5_0", 1);
    host.locked("8388608", "0000000000000000");
    finds(&host.examine(), Severity::Error, "8 MiB", "memlock");
    host.locked("1073741824", "0000000000000000");
    finds(&host.examine(), Severity::Warning, "1 GiB", "memlock");
    // CAP_IPC_LOCK.
    host.locked("8388608", "0000000000004000");
    assert!(host.examine().findings.is_empty());
}

#[test]
fn gpu_memory_needs_a_module_or_a_kernel() {
    let host = Host::new("gpu");
    host.roce("mlx5_0", 1);
    host.file("sys/module/nvidia/version", "550.54\n");
    finds(&host.examine(), Severity::Note, "as dmabuf only", "modprobe nvidia_peermem");
    host.file("proc/sys/kernel/osrelease", "5.4.0-150-generic\n");
    let report = host.examine();
    finds(&report, Severity::Note, "Linux 5.4.0-150-generic registers no dmabufs", "nvidia_peermem");
    assert!(!report.host.gpu.kernel_dmabuf);
    host.file("sys/module/nvidia_peermem/refcnt", "0\n");
    assert!(host.examine().findings.is_empty());
}

#[test]
fn files_that_make_no_sense_do_no_harm() {
    let host = Host::new("nonsense");
    host.roce("mlx5_0", 1);
    let port = "sys/class/infiniband/mlx5_0/ports/1";
    for file in ["state", "phys_state", "link_layer", "rate", "lid", "gids/3", "gid_attrs/types/1", "pkeys/0"]
    {
        fs::write(host.0.join(port).join(file), [0xff, 0xfe, b'?', b'\n']).unwrap();
    }
    host.file("sys/class/infiniband/mlx5_0/ports/x/state", "4: ACTIVE\n");
    host.file("sys/class/infiniband/mlx5_0/ports/999/state", "4: ACTIVE\n");
    host.file("sys/class/net/eth1/mtu", "-1\n");
    host.file("proc/self/limits", "Max locked memory\n");
    host.file("proc/sys/kernel/osrelease", "six\n");
    let report = host.examine();
    assert!(!report.usable);
    finds(&report, Severity::Warning, "mlx5_0/1 is unknown", "");
    serde_json::to_string(&report).unwrap();
}

fn kvrail(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kvrail")).args(["doctor"]).args(args).output().unwrap()
}

#[test]
fn the_command_prints_a_table_or_json_and_its_status_says_whether_it_is_usable() {
    let host = Host::new("command");
    host.roce("mlx5_0", 1);
    let root = ["--root", host.0.to_str().unwrap()];
    let output = kvrail(&root);
    let text = String::from_utf8(output.stdout).unwrap();
    let verbs = cfg!(feature = "verbs");
    assert_eq!(output.status.code(), Some(if verbs { 0 } else { 3 }), "{text}");
    assert!(text.contains("mlx5_0") && text.contains("400 Gb/s"), "{text}");
    assert_eq!(text.contains("cargo build --release --features verbs"), !verbs);
    let output = kvrail(&[&root[..], &["--json"]].concat());
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["usable"], verbs);
    assert_eq!(json["devices"][0]["ports"][0]["gids"][3]["index"], 3);
    assert_eq!(kvrail(&["--root", "nowhere"]).status.code(), Some(2));
    assert_eq!(kvrail(&["nowhere.yaml"]).status.code(), Some(2));
}

#[cfg(feature = "verbs")]
#[test]
fn on_soft_roce_it_agrees_with_libibverbs() {
    let output = kvrail(&["--json"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let devices = report["devices"].as_array().unwrap();
    if devices.is_empty() {
        assert_ne!(std::env::var("KVRAIL_VERBS").as_deref(), Ok("required"), "no device");
        eprintln!("skipped: no RDMA device");
        return;
    }
    assert_eq!((output.status.code(), &report["usable"]), (Some(0), &true.into()), "{report:#}");
    for (name, info) in engine::fabric::verbs::list().unwrap() {
        let (info, device) =
            (info.unwrap(), devices.iter().find(|device| device["name"] == name.as_str()).unwrap());
        assert!(device["can"]["send_depth"].as_u64() > Some(0));
        for (port, ours) in info.ports.iter().zip(device["ports"].as_array().unwrap()) {
            assert_eq!(port.gids.len(), ours["gids"].as_array().unwrap().len());
            #[allow(clippy::cast_precision_loss)]
            let gbps = port.bits_per_s as f64 / 1e9;
            assert_eq!(
                (gbps, u64::from(port.mtu)),
                (ours["gbps"].as_f64().unwrap(), ours["mtu"].as_u64().unwrap())
            );
            let chosen = port.choose(engine::fabric::GidChoice::Auto).unwrap().0.index;
            let rail =
                report["rails"].as_array().unwrap().iter().find(|rail| rail["device"] == name.as_str());
            assert_eq!(rail.unwrap()["gid_index"], chosen);
        }
    }
}
