//! `summary.json`.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};
use sim::fault::FaultKind;

use super::result::{Effects, Leaks, Outcome, RunResult};
use super::stats::Stats;
use crate::spec::SloSpec;

const PS_PER_MS: f64 = 1e9;
const PS_PER_S: f64 = 1e12;

/// The summary of all seeds of an experiment. Its JSON fields are stable: scripts depend on them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// The experiment's name.
    pub name: String,
    /// One hexadecimal digest, or a list of one per seed when there are several.
    pub digest: Digest,
    /// The seeds, in the order of the digests.
    pub seeds: Vec<u64>,
    /// How many requests, and how they ended.
    pub requests: RequestCounts,
    /// Arrival to the first token leaving decode, of requests which succeeded.
    pub ttft_ms: Stats,
    /// Time per output token after the first, of requests which succeeded with two or more.
    pub tpot_ms: Stats,
    /// First request posted to decode's Success.
    pub transfer_ms: Stats,
    /// End of prefill compute to decode's Success.
    pub exposed_transfer_ms: Stats,
    /// Over the tenants: the mean TTFT of each one's requests. The median is that of the tenant in the middle.
    pub tenant_ttft_ms: Stats,
    /// Tenants that had requests.
    pub tenants: u64,
    /// Attempts beyond the first, of requests whose transfer failed.
    pub retries: u64,
    /// Of all requests, the part which succeeded within the objectives, 0 to 1; none without objectives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slo: Option<SloShare>,
    /// Prompt tokens found in prefix caches.
    pub cached_tokens: u64,
    /// Prompt tokens of all requests.
    pub prompt_tokens: u64,
    /// Bytes written to decode.
    pub bytes_moved: u64,
    /// Work requests posted.
    pub work_requests: u64,
    /// Of these, parts that were staged: gathered, written as one, scattered.
    pub staged_parts: u64,
    /// Bytes copied to gather and scatter them.
    pub copied_bytes: u64,
    /// Messages of the registry.
    pub registry_messages: u64,
    /// RNR NAKs.
    pub rnr_naks: u64,
    /// Transfers whose KV arrived with another checksum, with `transfer.checksums`.
    pub checksum_mismatches: u64,
    /// Compute times beyond what was measured.
    pub extrapolated: u64,
    /// Faults that struck, by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// What faults did.
    pub effects: Effects,
    /// What was left over.
    pub leaks: Leaks,
    /// Invariants that did not hold.
    pub violations: u64,
    /// Virtual time, all seeds together.
    pub sim_seconds: f64,
    /// Time on this machine, all seeds together; not reproducible.
    pub wall_seconds: f64,
    /// Events of the simulator.
    pub events: u64,
}

/// The digest of each seed. In JSON 16 hexadecimal digits, in a list unless there is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digest(pub Vec<u64>);

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [digest] => serializer.serialize_str(&format!("{digest:016x}")),
            digests => serializer.collect_seq(digests.iter().map(|d| format!("{d:016x}"))),
        }
    }
}

/// How many requests, and how they ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RequestCounts {
    /// All.
    pub total: u64,
    /// Finished.
    pub succeeded: u64,
    /// Accepted and not finished.
    pub failed: u64,
    /// Refused at once.
    pub rejected: u64,
}

/// The part of all requests that met the objectives, 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct SloShare {
    /// TTFT met.
    pub ttft: f64,
    /// TPOT met (a single token meets it).
    pub tpot: f64,
    /// Both.
    pub both: f64,
}

impl Summary {
    /// Pools the runs, which are in the order of their seeds.
    #[must_use]
    pub fn of(name: &str, slo: &SloSpec, runs: &[RunResult]) -> Self {
        let mut requests = RequestCounts::default();
        let mut leaks = Leaks::default();
        let mut effects = Effects::default();
        let [mut ttft, mut tpot, mut transfer, mut exposed] = [const { Vec::new() }; 4];
        let (mut cached_tokens, mut prompt_tokens) = (0, 0);
        let mut met = [0_u64; 3];
        let mut by_tenant: BTreeMap<u32, Vec<f64>> = BTreeMap::new();
        let mut retries = 0;
        for run in runs {
            leaks.add(&run.leaks);
            effects.add(&run.effects);
            for record in &run.requests {
                requests.total += 1;
                cached_tokens += u64::from(record.cached_tokens);
                prompt_tokens += u64::from(record.prompt);
                retries += u64::from(record.retries);
                let own = by_tenant.entry(record.tenant).or_default();
                match record.outcome {
                    Outcome::Succeeded => requests.succeeded += 1,
                    Outcome::Failed(_) => requests.failed += 1,
                    Outcome::Rejected(_) => requests.rejected += 1,
                }
                if record.outcome != Outcome::Succeeded {
                    continue;
                }
                own.extend(record.ttft().map(|ps| ps as f64 / PS_PER_MS));
                ttft.extend(record.ttft().map(|ps| ps as f64 / PS_PER_MS));
                tpot.extend(record.tpot().map(|ps| ps / PS_PER_MS));
                transfer.extend(record.transfer().map(|ps| ps as f64 / PS_PER_MS));
                exposed.extend(record.exposed_transfer().map(|ps| ps as f64 / PS_PER_MS));
                let ttft_met = slo.ttft.is_none_or(|most| record.ttft().is_some_and(|ps| ps <= most.0));
                let tpot_met = slo.tpot.is_none_or(|most| record.tpot().is_none_or(|ps| ps <= most.0 as f64));
                for (count, holds) in met.iter_mut().zip([ttft_met, tpot_met, ttft_met && tpot_met]) {
                    *count += u64::from(holds);
                }
            }
        }
        let share = |count: u64| if requests.total == 0 { 0.0 } else { count as f64 / requests.total as f64 };
        let tenants = by_tenant.len() as u64;
        by_tenant.retain(|_, values| !values.is_empty());
        let means = by_tenant.into_values().map(|values| Stats::of(values).mean);
        let has_slo = slo.ttft.is_some() || slo.tpot.is_some();
        let sum = |of: fn(&RunResult) -> u64| runs.iter().map(of).sum::<u64>();
        Summary {
            name: name.to_owned(),
            digest: Digest(runs.iter().map(|run| run.digest).collect()),
            seeds: runs.iter().map(|run| run.seed).collect(),
            requests,
            ttft_ms: Stats::of(ttft),
            tpot_ms: Stats::of(tpot),
            transfer_ms: Stats::of(transfer),
            exposed_transfer_ms: Stats::of(exposed),
            tenant_ttft_ms: Stats::of(means.collect()),
            tenants,
            retries,
            slo: has_slo.then(|| SloShare { ttft: share(met[0]), tpot: share(met[1]), both: share(met[2]) }),
            cached_tokens,
            prompt_tokens,
            bytes_moved: sum(|run| run.counters.bytes_moved),
            work_requests: sum(|run| run.counters.work_requests),
            staged_parts: sum(|run| run.counters.staged_parts),
            copied_bytes: sum(|run| run.counters.copied_bytes),
            registry_messages: sum(|run| run.counters.registry_messages),
            rnr_naks: sum(|run| run.counters.rnr_naks),
            checksum_mismatches: sum(|run| run.counters.checksum_mismatches),
            extrapolated: sum(|run| run.counters.extrapolated),
            faults: FaultKind::ALL
                .into_iter()
                .map(|kind| (kind.name(), runs.iter().map(|run| run.struck.of(kind)).sum()))
                .collect(),
            effects,
            leaks,
            violations: runs.iter().map(|run| run.violations.len() as u64).sum(),
            sim_seconds: runs.iter().map(|run| run.sim_ps as f64 / PS_PER_S).sum(),
            wall_seconds: runs.iter().map(|run| run.wall_seconds).sum(),
            events: sum(|run| run.counters.events),
        }
    }

    /// As `summary.json` has it.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string_pretty(self).map(|text| text + "\n")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::report::{Counters, RequestRecord};

    fn record(id: u64, outcome: Outcome) -> RequestRecord {
        let ms = 1_000_000_000;
        RequestRecord {
            id,
            arrival: ms,
            prompt: 100,
            output: 11,
            outcome,
            prefill_end: Some(3 * ms),
            transfer_start: Some(2 * ms),
            success: Some(5 * ms),
            first_token: Some(7 * ms),
            last_token: Some(27 * ms),
            ..RequestRecord::default()
        }
    }

    fn run(seed: u64) -> RunResult {
        RunResult {
            seed,
            digest: 0xab + seed,
            requests: vec![
                record(0, Outcome::Succeeded),
                record(1, Outcome::Failed("x".to_owned())),
                RequestRecord {
                    tenant: 1,
                    retries: 2,
                    outcome: Outcome::Rejected("y".to_owned()),
                    ..RequestRecord::default()
                },
            ],
            counters: Counters { events: 5, checksum_mismatches: 3, ..Counters::default() },
            leaks: Leaks { pages: 1, ..Leaks::default() },
            sim_ps: 2_000_000_000_000,
            ..RunResult::default()
        }
    }

    #[test]
    fn the_fields_that_scripts_depend_on() {
        let slo = SloSpec { ttft: Some(models::Picos(6_000_000_000)), tpot: None };
        let summary = Summary::of("x", &slo, &[run(1), run(2)]);
        let json: Value = serde_json::from_str(&summary.to_json().unwrap()).unwrap();
        assert_eq!(json["digest"], serde_json::json!(["00000000000000ac", "00000000000000ad"]));
        assert_eq!(
            json["requests"],
            serde_json::json!({"total": 6, "succeeded": 2, "failed": 2, "rejected": 2})
        );
        assert_eq!(json["ttft_ms"], serde_json::json!({"mean": 6.0, "p50": 6.0, "p90": 6.0, "p99": 6.0}));
        assert_eq!(json["tpot_ms"]["mean"], 2.0);
        assert_eq!(json["transfer_ms"]["p50"], 3.0);
        assert_eq!(json["exposed_transfer_ms"]["p99"], 2.0);
        assert_eq!((&json["tenants"], &json["retries"]), (&2.into(), &4.into()));
        assert_eq!(json["tenant_ttft_ms"]["p50"], 6.0);
        assert_eq!(json["leaks"]["pages"], 2);
        assert_eq!(json["sim_seconds"], 4.0);
        assert_eq!((&json["events"], &json["checksum_mismatches"]), (&10.into(), &6.into()));
        for key in
            ["bytes_moved", "work_requests", "registry_messages", "rnr_naks", "extrapolated", "wall_seconds"]
        {
            assert!(json[key].is_number(), "{key}");
        }
        for key in ["rooms", "slots", "memory_regions", "queue_pairs", "timers", "receives"] {
            assert_eq!(json["leaks"][key], 0, "{key}");
        }
        assert_eq!(summary.slo, Some(SloShare { ttft: 2.0 / 6.0, tpot: 2.0 / 6.0, both: 2.0 / 6.0 }));
        let one = Summary::of("x", &SloSpec::default(), &[run(1)]);
        let json: Value = serde_json::from_str(&one.to_json().unwrap()).unwrap();
        assert_eq!(json["digest"], "00000000000000ac");
        assert!(json.get("slo").is_none());
    }
}
