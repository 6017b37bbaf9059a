//! The report for people.

use std::fmt::Write as _;

use super::advice::bytes;
use super::{Device, Port, Report, Severity};

impl Report {
    /// As text of a few dozen lines.
    #[must_use]
    pub fn table(&self) -> String {
        let mut out = String::new();
        let verbs = if self.build.verbs { "with verbs" } else { "without verbs" };
        row(&mut out, "kvrail", &format!("{}, {verbs}; ZeroMQ {}", self.build.kvrail, self.build.zeromq));
        self.host(&mut out);
        for device in &self.devices {
            self.device(&mut out, device);
        }
        if self.devices.is_empty() {
            row(&mut out, "devices", "none");
        }
        for (at, rail) in self.rails.iter().enumerate() {
            let gid = rail.gid_index.map_or_else(String::new, |index| format!(", GID {index}"));
            let name = if at == 0 { "would use" } else { "" };
            row(&mut out, name, &format!("{}/{}{gid} ({})", rail.device, rail.port, rail.side));
        }
        for (at, setting) in self.settings.iter().enumerate() {
            let name = if at == 0 { "settings" } else { "" };
            let text = format!("{:<24}{:<8}{}", setting.key, setting.value, setting.meaning);
            row(&mut out, name, text.trim_end());
        }
        out.push('\n');
        for finding in &self.findings {
            let severity = match finding.severity {
                Severity::Error => "error",
                Severity::Warning => "warning",
                Severity::Note => "note",
            };
            let _ = writeln!(out, "{severity}: {}", finding.problem);
            for line in &finding.mend {
                let _ = writeln!(out, "    {line}");
            }
        }
        out.push_str(if self.usable { "usable\n" } else { "not usable\n" });
        out
    }

    fn host(&self, out: &mut String) {
        let host = &self.host;
        row(out, "kernel", &format!("{}, {} NUMA node(s)", host.kernel, host.numa_nodes));
        let limit = host.locked_memory.map_or_else(|| "unlimited".to_owned(), bytes);
        let beyond =
            if host.locked_memory.is_some() && host.may_exceed { "; this user may exceed it" } else { "" };
        row(out, "locked memory", &format!("{limit}{beyond}"));
        let kind =
            |kind: &super::HugePages| format!("{} of {} ({} free)", kind.total, bytes(kind.size), kind.free);
        let pages: Vec<String> = host.huge_pages.iter().map(kind).collect();
        row(out, "huge pages", &if pages.is_empty() { "none".to_owned() } else { pages.join(", ") });
        let gpu = &host.gpu;
        let driver = gpu
            .driver
            .as_ref()
            .map_or_else(|| "no NVIDIA driver".to_owned(), |version| format!("NVIDIA driver {version}"));
        let peermem = if gpu.peermem { "nvidia_peermem loaded" } else { "nvidia_peermem not loaded" };
        let dmabuf = if gpu.kernel_dmabuf {
            "kernel can register dmabufs"
        } else {
            "kernel too old to register dmabufs"
        };
        row(out, "GPUDirect", &format!("{driver}, {peermem}, {dmabuf}"));
        let providers = if host.providers.is_empty() { "none".to_owned() } else { host.providers.join(" ") };
        row(out, "libibverbs", &format!("drivers: {providers}"));
    }

    fn device(&self, out: &mut String, device: &Device) {
        let mut words = vec![device.driver.clone().unwrap_or_else(|| "unknown driver".to_owned())];
        words.extend(device.firmware.as_ref().map(|version| format!("firmware {version}")));
        words.extend(device.pci.clone());
        words.extend(device.pcie.as_ref().map(|link| format!("PCIe {link}")));
        words.push(
            device.numa.map_or_else(|| "NUMA node unknown".to_owned(), |node| format!("NUMA node {node}")),
        );
        words.extend(device.uverbs.as_ref().map(|uverbs| format!("/dev/infiniband/{uverbs}")));
        row(out, "device", &format!("{}: {}", device.name, words.join(", ")));
        if let Some(can) = &device.can {
            let yes = |can: bool| if can { "" } else { "no " };
            let text = format!(
                "at most {} queue pairs, {} work requests in each, {} SGEs, {} inline bytes, {} reads; {}dmabuf, {}on-demand paging",
                can.queue_pairs,
                can.send_depth,
                can.sge,
                can.inline,
                can.rd_atomic,
                yes(can.dmabuf),
                yes(can.on_demand_paging)
            );
            row(out, "", &text);
        }
        for port in &device.ports {
            self.port(out, device, port);
        }
    }

    fn port(&self, out: &mut String, device: &Device, port: &Port) {
        let mut words = vec![port.link_layer.clone(), port.state.clone(), format!("{} Gb/s", port.gbps)];
        words.extend(port.mtu.map(|mtu| format!("MTU {mtu}")));
        match &port.netdev {
            Some(netdev) => words.push(netdev.clone()),
            None if !port.is_ethernet() => words.push(format!("LID {}", port.lid)),
            None => {}
        }
        row(out, "", &format!("port {}: {}", port.port, words.join(", ")));
        for entry in &port.gids {
            let used = self.rails.iter().any(|rail| {
                rail.device == device.name && rail.port == port.port && rail.gid_index == Some(entry.index)
            });
            let used = if used { "  <- would be used" } else { "" };
            row(out, "", &format!("    GID {}: {} {}{used}", entry.index, entry.gid, entry.kind));
        }
    }
}

fn row(out: &mut String, name: &str, text: &str) {
    let _ = writeln!(out, "{name:<16}{text}");
}
