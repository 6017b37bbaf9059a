//! What only libibverbs knows of devices: what they can do, and whether they open.

use engine::fabric::verbs::{DeviceInfo, list};

use super::sysfs::{Capabilities, Device};
use super::{Finding, Severity};

/// Adds to devices what libibverbs says of them; what it cannot do is a finding.
pub(super) fn look(devices: &mut [Device]) -> Vec<Finding> {
    let error = |problem: String| Finding { severity: Severity::Error, problem, mend: Vec::new() };
    let found = match list() {
        Ok(found) => found,
        // Without devices there may be nothing to ask, and that has been said.
        Err(_) if devices.is_empty() => return Vec::new(),
        Err(problem) => return vec![error(problem.to_string())],
    };
    let mut findings = Vec::new();
    for device in devices {
        match found.iter().find(|(name, _)| *name == device.name) {
            Some((_, Ok(info))) => add(device, info),
            Some((_, Err(problem))) => findings.push(error(problem.to_string())),
            None => findings
                .push(error(format!("{}: the kernel has it, libibverbs does not see it", device.name))),
        }
    }
    findings
}

fn add(device: &mut Device, info: &DeviceInfo) {
    device.can = Some(Capabilities {
        queue_pairs: info.limits.max_qp,
        send_depth: info.limits.max_qp_wr,
        sge: info.limits.max_sge,
        inline: info.limits.max_inline,
        rd_atomic: info.limits.max_rd_atomic,
        dmabuf: info.dmabuf,
        on_demand_paging: info.on_demand_paging,
    });
    for port in &mut device.ports {
        if let Some(info) = info.ports.iter().find(|info| info.number == port.port)
            && info.mtu > 0
        {
            port.mtu = Some(info.mtu.into());
        }
    }
}
