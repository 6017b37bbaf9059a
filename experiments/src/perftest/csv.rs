//! Figures for a program: one row a figure, in the columns in which measurements of NICs are commonly collected.

use super::figures::Figures;
use super::spec::Test;
use serde::{Deserialize, Serialize};
use std::io;

/// The columns.
pub const COLUMNS: [&str; 11] =
    ["source", "nic", "link_gbps", "op", "size_bytes", "qps", "inline", "metric", "value", "unit", "notes"];

/// One figure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// Where the figure comes from.
    pub source: String,
    /// Device or profile.
    pub nic: String,
    /// Line rate, 10^9 bits per second, if known.
    pub link_gbps: String,
    /// WRITE, WRITE_IMM, SEND or READ.
    pub op: String,
    /// Message size.
    pub size_bytes: u64,
    /// Queue pairs.
    pub qps: u32,
    /// Messages up to so many bytes were sent inline.
    pub inline: u32,
    /// `bw_peak`, `bw_avg`, `msg_rate`, `lat_min`, `lat_max`, `lat_typical`, `lat_avg`, `lat_stdev`, `lat_p99`, `lat_p999`.
    pub metric: String,
    /// In `unit`.
    pub value: f64,
    /// `MiB/s`, `Mmsg/s` or `us`.
    pub unit: String,
    /// How it was measured.
    pub notes: String,
}

/// What a row says of the device.
#[derive(Clone, Debug, PartialEq)]
pub struct About {
    /// Device or profile.
    pub nic: String,
    /// Line rate in bits per second.
    pub bits_per_s: u64,
    /// Path MTU and whatever else is worth a word.
    pub notes: String,
}

/// The rows of one measurement.
pub fn rows(about: &About, test: &Test, figures: &Figures) -> Vec<Row> {
    let all: Vec<(&str, f64, &str)> = match figures {
        Figures::Bandwidth(bw) => {
            let peak = bw.peak.map(|peak| ("bw_peak", bw.mib_per_s(peak), "MiB/s"));
            let rest = [("bw_avg", bw.mib_per_s(bw.rate), "MiB/s"), ("msg_rate", bw.rate / 1e6, "Mmsg/s")];
            peak.into_iter().chain(rest).collect()
        }
        Figures::Latency(lat) => [
            ("lat_min", lat.min),
            ("lat_max", lat.max),
            ("lat_typical", lat.typical),
            ("lat_avg", lat.avg),
            ("lat_stdev", lat.stdev),
            ("lat_p99", lat.p99),
            ("lat_p999", lat.p999),
        ]
        .map(|(metric, us)| (metric, us, "us"))
        .to_vec(),
    };
    let notes = format!(
        "{}; TXdepth{}; CQmod{}; post list {}; {} iterations",
        about.notes, test.depth, test.signal_every, test.batch, test.iterations
    );
    all.into_iter()
        .map(|(metric, value, unit)| Row {
            source: "kvrail perftest".to_owned(),
            nic: about.nic.clone(),
            link_gbps: (about.bits_per_s as f64 / 1e9).to_string(),
            op: test.op.name().to_owned(),
            size_bytes: test.size.into(),
            qps: test.qps,
            inline: if test.inlined() { test.inline } else { 0 },
            metric: metric.to_owned(),
            // Six digits behind the point: a picosecond of a microsecond.
            value: (value * 1e6).round() / 1e6,
            unit: unit.to_owned(),
            notes: notes.clone(),
        })
        .collect()
}

/// Writes rows with a head.
pub fn write(rows: &[Row], into: impl io::Write) -> io::Result<()> {
    let mut writer = csv::WriterBuilder::new().has_headers(false).from_writer(into);
    writer.write_record(COLUMNS)?;
    for row in rows {
        writer.serialize(row)?;
    }
    writer.flush()
}
