//! The short table that a run prints.

use std::fmt::Write;

use super::summary::Summary;

/// The table, several lines with their ends.
#[must_use]
pub fn table(summary: &Summary) -> String {
    let mut out = String::new();
    let r = &summary.requests;
    let _ = writeln!(
        out,
        "{}: {} requests: {} succeeded, {} failed, {} rejected",
        summary.name, r.total, r.succeeded, r.failed, r.rejected
    );
    let _ = writeln!(out, "{:<22}{:>12}{:>12}{:>12}{:>12}", "ms", "mean", "p50", "p90", "p99");
    for (name, stats) in [
        ("TTFT", &summary.ttft_ms),
        ("TPOT", &summary.tpot_ms),
        ("transfer", &summary.transfer_ms),
        ("exposed transfer", &summary.exposed_transfer_ms),
    ] {
        let _ = writeln!(
            out,
            "{name:<22}{:>12.3}{:>12.3}{:>12.3}{:>12.3}",
            stats.mean, stats.p50, stats.p90, stats.p99
        );
    }
    if let Some(slo) = &summary.slo {
        let _ = writeln!(
            out,
            "{:<22}TTFT {:.1} %, TPOT {:.1} %, both {:.1} % of requests",
            "within SLO",
            slo.ttft * 100.0,
            slo.tpot * 100.0,
            slo.both * 100.0
        );
    }
    if summary.tenants > 1 {
        let t = &summary.tenant_ttft_ms;
        let _ = writeln!(
            out,
            "{:<22}{:>12.3}{:>12.3}{:>12.3}{:>12.3}",
            format!("TTFT of {} tenants", summary.tenants),
            t.mean,
            t.p50,
            t.p90,
            t.p99
        );
    }
    let _ = writeln!(
        out,
        "{:<22}{} in {} work requests",
        "moved",
        bytes(summary.bytes_moved),
        count(summary.work_requests)
    );
    if summary.staged_parts > 0 {
        let (parts, copied) = (count(summary.staged_parts), bytes(summary.copied_bytes));
        let _ = writeln!(out, "{:<22}{parts} parts, {copied} copied", "staged");
    }
    if summary.retries > 0 {
        let _ = writeln!(out, "{:<22}{} attempts beyond the first", "retries", count(summary.retries));
    }
    if summary.cached_tokens > 0 {
        let share = summary.cached_tokens as f64 / summary.prompt_tokens.max(1) as f64 * 100.0;
        let _ = writeln!(out, "{:<22}{share:.1} % of prompt tokens", "prefix hits");
    }
    if summary.checksum_mismatches > 0 {
        let _ = writeln!(
            out,
            "{:<22}{} transfers arrived with another checksum",
            "corrupted",
            count(summary.checksum_mismatches)
        );
    }
    let _ = writeln!(
        out,
        "{:<22}{} messages, {} RNR NAKs, {} extrapolated compute times",
        "registry",
        count(summary.registry_messages),
        summary.rnr_naks,
        count(summary.extrapolated)
    );
    let struck: Vec<_> = summary
        .faults
        .iter()
        .filter(|(_, n)| **n > 0)
        .map(|(kind, n)| format!("{} {kind}", count(*n)))
        .collect();
    if !struck.is_empty() {
        let _ = writeln!(out, "{:<22}{}", "faults", struck.join(", "));
    }
    let _ = writeln!(out, "{:<22}{}", "leaks", leaked(summary));
    let rate = summary.events as f64 / summary.wall_seconds.max(1e-9);
    let _ = writeln!(
        out,
        "{:<22}{:.3} s simulated in {:.3} s, {} events ({}/s)",
        "time",
        summary.sim_seconds,
        summary.wall_seconds,
        count(summary.events),
        count(rate as u64)
    );
    for (seed, digest) in summary.seeds.iter().zip(&summary.digest.0) {
        let _ = writeln!(out, "{:<22}{digest:016x} (seed {seed})", "digest");
    }
    out
}

/// A measured run beside the simulation of the same experiment with NIC profile `nic`.
#[must_use]
pub fn beside(simulated: &Summary, nic: &str, measured: &Summary) -> String {
    let mut out = String::new();
    let r = &measured.requests;
    let _ = writeln!(
        out,
        "{}: {} requests: {} succeeded, {} failed, {} rejected",
        measured.name, r.total, r.succeeded, r.failed, r.rejected
    );
    let _ = writeln!(out, "{:<22}{:<36}measured", "", format!("simulated ({nic})"));
    let head = format!("{:>10}{:>10}{:>10}", "p50", "p90", "p99");
    let _ = writeln!(out, "{:<16}{head}{:<6}{head}", "ms", "");
    for (name, s, m) in [
        ("TTFT", &simulated.ttft_ms, &measured.ttft_ms),
        ("TPOT", &simulated.tpot_ms, &measured.tpot_ms),
        ("transfer", &simulated.transfer_ms, &measured.transfer_ms),
        ("exposed transfer", &simulated.exposed_transfer_ms, &measured.exposed_transfer_ms),
    ] {
        let _ = writeln!(
            out,
            "{name:<16}{:>10.3}{:>10.3}{:>10.3}{:<6}{:>10.3}{:>10.3}{:>10.3}",
            s.p50, s.p90, s.p99, "", m.p50, m.p90, m.p99
        );
    }
    for (name, s, m) in [
        ("moved", bytes(simulated.bytes_moved), bytes(measured.bytes_moved)),
        ("work requests", count(simulated.work_requests), count(measured.work_requests)),
        ("registry", count(simulated.registry_messages), count(measured.registry_messages)),
    ] {
        let _ = writeln!(out, "{name:<16}{s:>30}{:<6}{m:>30}", "");
    }
    if let Some(slo) = &measured.slo {
        let _ = writeln!(
            out,
            "{:<22}TTFT {:.1} %, TPOT {:.1} %, both {:.1} % of requests",
            "within SLO",
            slo.ttft * 100.0,
            slo.tpot * 100.0,
            slo.both * 100.0
        );
    }
    let _ = writeln!(out, "{:<22}{}", "leaks", leaked(measured));
    let _ = writeln!(
        out,
        "{:<22}{:.3} s, {:.3} s with start and end",
        "time", measured.sim_seconds, measured.wall_seconds
    );
    out
}

/// What is left over, in words.
fn leaked(summary: &Summary) -> String {
    let leaked: Vec<String> = summary
        .leaks
        .named()
        .iter()
        .filter(|(_, n)| *n > 0)
        .map(|(name, n)| format!("{n} {}", name.replace('_', " ")))
        .collect();
    if leaked.is_empty() { "none".to_owned() } else { leaked.join(", ") }
}

/// Whole number with thousands apart.
pub(crate) fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Bytes with three digits or so.
pub(crate) fn bytes(value: u64) -> String {
    let mut unit = "B";
    let mut size = value as f64;
    for next in ["kB", "MB", "GB", "TB", "PB"] {
        if size < 1000.0 {
            break;
        }
        size /= 1000.0;
        unit = next;
    }
    if unit == "B" { format!("{value} B") } else { format!("{size:.2} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::RunResult;
    use crate::spec::SloSpec;

    #[test]
    fn numbers() {
        assert_eq!(
            (count(0).as_str(), count(999).as_str(), count(1_234_567).as_str()),
            ("0", "999", "1,234,567")
        );
        assert_eq!((bytes(12).as_str(), bytes(1_342_177_280).as_str()), ("12 B", "1.34 GB"));
    }

    #[test]
    fn an_empty_run_has_a_table_too() {
        let text = table(&Summary::of("x", &SloSpec::default(), &[RunResult::default()]));
        assert!(text.contains("0 requests") && text.contains("leaks") && text.contains("digest"), "{text}");
    }
}
