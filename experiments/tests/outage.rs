//! `experiments/outage.yaml`: an hour with faults beside the same hour without, and beside one in which the same links and instances are taken
//! away in good order.

use std::path::{Path, PathBuf};

use experiments::build::{Silent, simulate};
use experiments::report::{Outcome, RequestRecord, RunResult};
use experiments::spec::Spec;

/// The faults of the file come after so many seconds here, and the requests end before the file's would begin.
const FIRST: u64 = 60;
const REQUESTS: usize = 1500;

fn run(workload: &[String], faults: &str) -> RunResult {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("outage.yaml");
    let mut sets = vec![
        format!("workload.limit={REQUESTS}"),
        "transfer.lease=5s".to_owned(),
        "invariants=always".to_owned(),
        format!("faults={faults}"),
    ];
    sets.extend_from_slice(workload);
    let spec = Spec::load(&file, &sets).unwrap_or_else(|error| panic!("{error}"));
    simulate(&spec, 1, &Silent).unwrap_or_else(|error| panic!("{error}"))
}

fn p99(ttft: impl Iterator<Item = u64>) -> u64 {
    let mut sorted: Vec<u64> = ttft.collect();
    sorted.sort_unstable();
    sorted[sorted.len() * 99 / 100]
}

/// Requests that came after the first fault, met none and were served: their instances stayed.
fn spared(run: &RunResult) -> impl Iterator<Item = &RequestRecord> {
    let stayed = |r: &RequestRecord| r.prefill_instance != Some(3) && r.decode_instance != Some(5);
    run.requests.iter().filter(move |r| {
        r.arrival >= FIRST * 1_000_000_000_000 && r.outcome == Outcome::Succeeded && stayed(r)
    })
}

fn holds(workload: &[String]) {
    let faulty = format!(
        "[{{at: {FIRST}s, random: {{share: 0.05}}, flap: {{node: all, every: 5s, for: 100ms, until: 300s}}}}, \
         {{at: {}s, crash: {{node: prefill-3}}}}, {{at: {}s, crash: {{node: decode-5}}}}]",
        FIRST + 20,
        FIRST + 40
    );
    let orderly = format!(
        "[{{at: {FIRST}s, random: {{share: 0.05}}, link-remove: {{node: all}}}}, \
         {{at: {}s, leave: {{node: prefill-3}}}}, {{at: {}s, leave: {{node: decode-5}}}}]",
        FIRST + 20,
        FIRST + 40
    );
    let (free, faulty, orderly) = (run(workload, "[]"), run(workload, &faulty), run(workload, &orderly));
    for run in [&free, &faulty, &orderly] {
        assert_eq!(run.requests.len(), REQUESTS);
        assert!(run.requests.iter().all(|r| r.end.is_some()), "every request is final");
        assert_eq!((run.leaks.total(), run.violations.as_slice()), (0, &[][..]));
    }
    assert!(free.requests.iter().all(|r| r.outcome == Outcome::Succeeded));
    assert!(faulty.struck.iter().map(|(_, count)| count).sum::<u64>() > 10, "{:?}", faulty.struck);

    let before = |r: &&RequestRecord| r.end.is_some_and(|end| end < FIRST * 1_000_000_000_000);
    let early: Vec<_> = free.requests.iter().filter(before).collect();
    assert!(early.len() > 50);
    for was in early {
        assert_eq!(Some(was), faulty.requests.iter().find(|r| r.id == was.id), "before the first fault");
    }
    let ttft = |run| p99(spared(run).filter_map(|r| r.first_token.map(|at| at - r.arrival)));
    let (with, without) = (ttft(&faulty), ttft(&orderly));
    assert!(
        with.abs_diff(without) * 10 <= without,
        "p99 TTFT of those that met no fault: {with} ps, after an orderly removal {without} ps"
    );
    println!("p99 TTFT {with} ps with faults, {without} ps after an orderly removal");
}

#[test]
fn requests_that_met_no_fault_hardly_notice() {
    holds(&[]);
}

/// The same on the conversation trace of Mooncake, where it is.
#[test]
fn requests_of_a_trace_that_met_no_fault_hardly_notice() {
    let trace =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/traces/conversation_trace.jsonl");
    if !trace.exists() {
        println!("SKIPPED: there is no {}", trace.display());
        return;
    }
    holds(&["workload.synthetic=null".to_owned(), format!("workload.path={}", trace.display())]);
}
