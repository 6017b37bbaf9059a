//! Whether this host can run experiments on RDMA devices: what there is, what would be used, what is missing and how to mend it.
//!
//! [`examine`] reads what the kernel shows in /sys and /proc, so that it is as useful without devices, without libibverbs, and in a `kvrail` built
//! without the feature `verbs`. [`Report`] is what it found, for people ([`Report::table`]) and for programs (JSON).

mod advice;
mod host;
mod settings;
mod sysfs;
mod table;
#[cfg(feature = "verbs")]
mod verbs;

use std::path::Path;

use serde::Serialize;

pub use host::{Gpu, Host, HugePages};
pub use settings::{Rail, Setting};
pub use sysfs::{Capabilities, Device, GidEntry, Port};

use crate::spec::Spec;

/// How bad something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Nothing runs.
    Error,
    /// It runs, slowly or in part.
    Warning,
    /// Good to know.
    Note,
}

/// Something found, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong, with its name and value.
    pub problem: String,
    /// Commands that mend it, if commands can.
    pub mend: Vec<String>,
}

/// What this command was built with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Build {
    /// The version of kvrail.
    pub kvrail: String,
    /// Whether it can use devices.
    pub verbs: bool,
    /// The version of ZeroMQ.
    pub zeromq: String,
}

/// All that was found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Whether an experiment could run on devices here, with this command.
    pub usable: bool,
    /// This command.
    pub build: Build,
    /// The host.
    pub host: Host,
    /// Devices, by name.
    pub devices: Vec<Device>,
    /// Ports that would be used, in order.
    pub rails: Vec<Rail>,
    /// Settings that would be in effect.
    pub settings: Vec<Setting>,
    /// What is missing or worth knowing, the worst first.
    pub findings: Vec<Finding>,
}

/// What this command was built with.
#[must_use]
pub fn build() -> Build {
    let (major, minor, patch) = zmq::version();
    Build {
        kvrail: env!("CARGO_PKG_VERSION").to_owned(),
        verbs: cfg!(feature = "verbs"),
        zeromq: format!("{major}.{minor}.{patch}"),
    }
}

/// Looks at the host whose files lie below `root`, for an experiment with these settings.
#[must_use]
pub fn examine(root: &Path, build: Build, spec: &Spec) -> Report {
    #[cfg_attr(not(feature = "verbs"), expect(unused_mut))]
    let (host, mut devices) = (host::host(root), sysfs::devices(root));
    let mut rails: Vec<Rail> = Vec::new();
    let mut findings = advice::host(&host, &build);
    // libibverbs knows this host only.
    #[cfg(feature = "verbs")]
    if root == Path::new("/") {
        findings.extend(verbs::look(&mut devices));
    }
    findings.extend(advice::devices(&devices, &host));
    for (side, config) in settings::sides(spec) {
        match settings::pick_ports(&devices, &config) {
            Err(problem) => {
                let problem = format!("{side}: {problem}");
                findings.push(Finding { severity: Severity::Error, problem, mend: Vec::new() });
            }
            Ok(ports) => {
                findings.extend(advice::ports(&side, &ports, &config, &devices));
                rails.extend(ports.into_iter().map(|(device, port)| {
                    Rail {
                        side: side.clone(),
                        device: device.name.clone(),
                        port: port.port,
                        gid_index: settings::pick_gid(port, config.gid)
                            .ok()
                            .filter(|_| port.is_ethernet())
                            .map(|entry| entry.index),
                    }
                }));
            }
        }
    }
    findings.sort_by_key(|finding| finding.severity as u8);
    findings.dedup();
    let usable = findings.iter().all(|finding| finding.severity != Severity::Error);
    Report { usable, build, host, devices, rails, settings: settings::settings(spec), findings }
}
