//! Which ports and addresses the settings of an experiment select, and the other settings of queue pairs as they would be in effect.

use engine::fabric::{DeviceConfig, GidChoice, RnrTimer, rnr_delay};
use serde::Serialize;

use super::sysfs::{Device, GidEntry, Port};
use crate::spec::Spec;

/// A value that would be in effect.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Setting {
    /// Its key in the YAML.
    pub key: String,
    /// Its value.
    pub value: String,
    /// What that means.
    pub meaning: String,
}

/// A port that a side would use.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rail {
    /// `prefill`, `decode`, or `both sides`.
    pub side: String,
    /// The device.
    pub device: String,
    /// The port of it.
    pub port: u8,
    /// Index of the address, on RoCE.
    pub gid_index: Option<u32>,
}

/// What the hosts of each side are told; one, where both are told the same.
pub(super) fn sides(spec: &Spec) -> Vec<(String, DeviceConfig)> {
    let verbs = &spec.verbs;
    let (prefill, decode) = (verbs.device(&verbs.prefill), verbs.device(&verbs.decode));
    if prefill == decode {
        return vec![("both sides".to_owned(), prefill)];
    }
    vec![("prefill".to_owned(), prefill), ("decode".to_owned(), decode)]
}

/// The address of a RoCE port that is used, or why none is.
pub(super) fn pick_gid(port: &Port, choice: GidChoice) -> Result<&GidEntry, String> {
    let of = |entry: &GidEntry| (entry.index, entry.gid.octets(), entry.is_v2());
    choice.pick(&port.gids, of).map(|(entry, _)| entry)
}

/// The ports that a host with this configuration uses, in order; or the name of one that is not there or not active.
pub(super) fn pick_ports<'a>(
    devices: &'a [Device],
    config: &DeviceConfig,
) -> Result<Vec<(&'a Device, &'a Port)>, String> {
    if config.devices.is_empty() {
        let active = |near: &dyn Fn(&Device) -> bool| -> Vec<(&'a Device, &'a Port)> {
            let devices = devices.iter().filter(|device| near(device));
            devices
                .flat_map(|device| device.ports.iter().map(move |port| (device, port)))
                .filter(|(_, port)| port.is_active())
                .collect()
        };
        let near = active(&|device| config.numa.is_some() && device.numa == config.numa);
        return Ok(if near.is_empty() { active(&|_| true) } else { near });
    }
    config.devices.iter().map(|name| named(devices, name)).collect()
}

fn named<'a>(devices: &'a [Device], name: &str) -> Result<(&'a Device, &'a Port), String> {
    let (device, number) = match name.split_once('/') {
        Some((device, number)) => (device, Some(number)),
        None => (name, None),
    };
    let known = || devices.iter().map(|device| device.name.as_str()).collect::<Vec<_>>().join(", ");
    let Some(found) = devices.iter().find(|known| known.name == device) else {
        return Err(format!("there is no device `{device}`; there are: {}", known()));
    };
    let port = match number {
        Some(number) => found.ports.iter().find(|port| port.port.to_string() == number),
        None => found.ports.iter().find(|port| port.is_active()).or(found.ports.first()),
    };
    match port {
        Some(port) if port.is_active() => Ok((found, port)),
        Some(port) => Err(format!("{}/{} is {}, not ACTIVE", found.name, port.port, port.state)),
        None => Err(format!("{device} has no port {}", number.unwrap_or("at all"))),
    }
}

/// The wait that an RNR NAK with this code asks for, in milliseconds.
#[allow(clippy::cast_precision_loss)]
fn rnr_ms(code: u8) -> f64 {
    rnr_delay(RnrTimer(code)).0 as f64 / 1e9
}

/// The settings that are sent to devices.
pub(super) fn settings(spec: &Spec) -> Vec<Setting> {
    let (_, device) = sides(spec).swap_remove(0);
    let transfer = &spec.transfer;
    let timeout_us = 4.096 * f64::from(1_u32 << transfer.ack_timeout.min(31));
    let rows = [
        (
            "verbs.traffic_class",
            device.traffic_class.to_string(),
            format!("DSCP {}, ECN bits {}", device.traffic_class >> 2, device.traffic_class & 3),
        ),
        (
            "verbs.service_level",
            device.service_level.to_string(),
            "InfiniBand SL, or RoCE priority".to_owned(),
        ),
        ("verbs.pkey_index", device.pkey_index.to_string(), String::new()),
        ("verbs.hop_limit", device.hop_limit.to_string(), String::new()),
        (
            "verbs.relaxed_ordering",
            device.relaxed_ordering.to_string(),
            "order of writes over PCIe".to_owned(),
        ),
        (
            "transfer.ack_timeout",
            transfer.ack_timeout.to_string(),
            format!("{:.1} ms before a packet is sent again", timeout_us / 1e3),
        ),
        (
            "transfer.retries",
            transfer.retries.to_string(),
            format!(
                "gives up after {:.1} to {:.1} s",
                timeout_us * f64::from(transfer.retries + 1) / 1e6,
                4.0 * timeout_us * f64::from(transfer.retries + 1) / 1e6
            ),
        ),
        (
            "transfer.rnr_retries",
            transfer.rnr_retries.to_string(),
            "tries of a peer that has no receive posted".to_owned(),
        ),
        (
            "transfer.min_rnr_timer",
            transfer.min_rnr_timer.to_string(),
            format!("{:.2} ms that a sender then waits", rnr_ms(transfer.min_rnr_timer)),
        ),
        (
            "transfer.max_rd_atomic",
            transfer.max_rd_atomic.to_string(),
            "reads at a time; a device may allow fewer".to_owned(),
        ),
        ("transfer.queue_pairs", transfer.queue_pairs.to_string(), "per pair of ranks".to_owned()),
        (
            "transfer.send_depth",
            transfer.send_depth.to_string(),
            "work requests; a device may allow fewer".to_owned(),
        ),
        (
            "transfer.receive_depth",
            transfer.receive_depth.to_string(),
            "receives; a device may allow fewer".to_owned(),
        ),
        (
            "transfer.max_sge",
            transfer.max_sge.to_string(),
            "ranges of a work request; a device may allow fewer".to_owned(),
        ),
    ];
    let reach = spec.verbs.reach.iter().map(|line| Setting {
        key: "verbs.reach".to_owned(),
        value: line.local.clone(),
        meaning: format!("reaches {} only", line.remote),
    });
    let row = |(key, value, meaning): (&str, String, String)| Setting { key: key.to_owned(), value, meaning };
    rows.into_iter().map(row).chain(reach).collect()
}
