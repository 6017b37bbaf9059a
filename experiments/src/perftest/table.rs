//! Figures for a person.

use super::figures::Figures;
use super::spec::{Metric, Test};

/// The head of a table.
pub fn head(metric: Metric) -> String {
    match metric {
        Metric::Bw => format!(
            "{:>10}{:>12}{:>14}{:>14}{:>14}{:>14}\n{:>10}{:>12}{:>14}{:>14}{:>14}{:>14}\n",
            "bytes",
            "iterations",
            "peak",
            "average",
            "average",
            "messages",
            "",
            "",
            "MiB/s",
            "MiB/s",
            "Gb/s",
            "million/s"
        ),
        Metric::Lat => format!(
            "{:>10}{:>12}{:>10}{:>10}{:>10}{:>10}{:>10}{:>10}{:>10}   us\n",
            "bytes", "iterations", "min", "max", "typical", "average", "stddev", "99 %", "99.9 %"
        ),
    }
}

/// One line of it.
pub fn line(test: &Test, figures: &Figures) -> String {
    let start = format!("{:>10}{:>12}", test.size, test.iterations);
    match figures {
        Figures::Bandwidth(bw) => {
            let peak = bw.peak.map_or_else(|| "-".to_owned(), |peak| format!("{:.2}", bw.mib_per_s(peak)));
            format!(
                "{start}{peak:>14}{:>14.2}{:>14.3}{:>14.6}\n",
                bw.mib_per_s(bw.rate),
                bw.gbit_per_s(bw.rate),
                bw.rate / 1e6
            )
        }
        Figures::Latency(lat) => {
            let all = [lat.min, lat.max, lat.typical, lat.avg, lat.stdev, lat.p99, lat.p999];
            all.iter().fold(start, |line, us| line + &format!("{us:>10.2}")) + "\n"
        }
    }
}
