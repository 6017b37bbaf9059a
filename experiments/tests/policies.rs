//! Each policy has an experiment in which it wins and one in which it loses, and the experiments' own expectations hold.

use std::path::Path;

use engine::policy::{Job, JobId, Order};
use engine::time::Time;
use experiments::build::{Silent, simulate};
use experiments::report::{RunResult, Summary, check};
use experiments::spec::Spec;

#[path = "../examples/own_policy.rs"]
mod own_policy;

fn load(file: &str, sets: &[&str]) -> Spec {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("policies").join(file);
    let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
    Spec::load(&path, &sets).unwrap_or_else(|error| panic!("{error}"))
}

fn play(spec: &Spec) -> Summary {
    let seed = |seed| simulate(spec, seed, &Silent).unwrap_or_else(|error| panic!("{}: {error}", spec.name));
    let runs: Vec<RunResult> = spec.seeds().into_iter().map(seed).collect();
    let summary = Summary::of(&spec.name, &spec.slo, &runs);
    assert_eq!((summary.violations, summary.leaks.total()), (0, 0), "{}", spec.name);
    summary
}

/// A number of `summary.json`.
fn value(summary: &Summary, path: &str) -> f64 {
    let tree = serde_json::to_value(summary).expect("a summary is JSON");
    path.split('.').try_fold(&tree, |at, key| at.get(key)).and_then(serde_json::Value::as_f64).expect(path)
}

/// What both runs of a comparison share, what the baseline has instead of the policy, and by how much which number must differ.
struct Case {
    file: &'static str,
    both: &'static [&'static str],
    baseline: &'static [&'static str],
    number: &'static str,
    /// Policy over baseline.
    ratio: std::ops::RangeInclusive<f64>,
}

const LEAST_LOADED: &[&str] = &["policy.routing=least-loaded"];
/// The links of all decode instances go down.
const ALL_DOWN: &[&str] = &[
    "faults=[{at: 500ms, link-down: {host: 2, for: 20s}}, {at: 500ms, link-down: {host: 3, for: 20s}}, {at: 500ms, link-down: {host: 4, for: 20s}}]",
];
const MUCH: f64 = f64::INFINITY;

fn cases() -> Vec<Case> {
    let case = |file, both, baseline, number, ratio| Case { file, both, baseline, number, ratio };
    vec![
        case("power-of-two.yaml", &[][..], &["policy.routing=round-robin"][..], "ttft_ms.mean", 0.0..=0.7),
        case("power-of-two.yaml", &[], LEAST_LOADED, "ttft_ms.mean", 1.1..=MUCH),
        case("prefix-aware.yaml", &[], LEAST_LOADED, "ttft_ms.mean", 0.0..=0.8),
        case(
            "prefix-aware.yaml",
            &["workload.synthetic.prefix.groups=1", "policy.routing.prefix-aware.weight=20"],
            LEAST_LOADED,
            "ttft_ms.mean",
            2.0..=MUCH,
        ),
        case("network-aware.yaml", &[], LEAST_LOADED, "exposed_transfer_ms.mean", 0.0..=0.5),
        case(
            "network-aware.yaml",
            &[
                "workload.synthetic.output={fixed: 400}",
                "workload.synthetic.prompt={fixed: 64}",
                "workload.arrival.poisson.rate=400",
            ],
            LEAST_LOADED,
            "tpot_ms.mean",
            1.4..=MUCH,
        ),
        case("refuse.yaml", &[], &["policy.admission=reserve"], "slo.both", 2.0..=MUCH),
        case(
            "refuse.yaml",
            &["workload.arrival=at-once", "workload.synthetic.requests=20"],
            &["policy.admission=reserve"],
            "slo.both",
            0.0..=0.5,
        ),
        case("tenant-limits.yaml", &[], &["policy.limits={}"], "tenant_ttft_ms.p50", 0.0..=0.2),
        case(
            "tenant-limits.yaml",
            &["workload.tenants={count: 1}"],
            &["policy.limits={}"],
            "ttft_ms.mean",
            1.05..=MUCH,
        ),
        case(
            "retry.yaml",
            &[],
            &["policy.retry={attempts: 1, cooldown: 0s}"],
            "requests.succeeded",
            1.15..=MUCH,
        ),
        case("direction.yaml", &[], &["policy.direction=push"], "exposed_transfer_ms.mean", 0.0..=0.2),
        case(
            "direction.yaml",
            &["cluster.prefill.tp=4", "cluster.decode.tp=8"],
            &["policy.direction=push"],
            "exposed_transfer_ms.mean",
            5.0..=MUCH,
        ),
        case(
            "retry.yaml",
            ALL_DOWN,
            &["policy.retry={attempts: 1, cooldown: 0s}"],
            "registry_messages",
            2.0..=MUCH,
        ),
    ]
}

#[test]
fn each_policy_wins_and_loses_where_it_says() {
    let mut wrong = Vec::new();
    for case in cases() {
        let policy = play(&load(case.file, case.both));
        let others: Vec<&str> = case.both.iter().filter(|set| !set.contains("routing.")).copied().collect();
        let baseline = play(&load(case.file, &[&others[..], case.baseline].concat()));
        let (a, b) = (value(&policy, case.number), value(&baseline, case.number));
        let told = format!(
            "{} {:?}: {} {a:.3}, with {:?} {b:.3}, ratio {:.3}, must be {:?}",
            case.file,
            case.both,
            case.number,
            case.baseline,
            a / b,
            case.ratio
        );
        println!("{told}");
        if !case.ratio.contains(&(a / b)) {
            wrong.push(told);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_experiments_hold_what_they_expect() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("policies");
    for entry in std::fs::read_dir(folder).expect("the folder is there") {
        let name = entry.expect("an entry").file_name().to_string_lossy().into_owned();
        let spec = load(&name, &[]);
        for checked in check(&play(&spec), &spec.expect) {
            assert!(checked.holds(), "{name}: {checked:?}");
        }
    }
}

#[test]
fn a_policy_of_ones_own_runs_the_quickstart() {
    own_policy::main().expect("the example runs");
}

#[test]
fn a_policy_that_nobody_registered_is_refused_by_name() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("quickstart.yaml");
    let sets = ["policy.routing={own: nobody}".to_owned()];
    let error = Spec::load(&path, &sets).expect_err("must be refused").to_string();
    assert!(error.contains("policy.routing") && error.contains("`nobody`"), "{error}");
}

/// Last come, first served: an order that nobody has built in.
#[derive(Default)]
struct Newest(Vec<JobId>);

impl Order for Newest {
    fn push(&mut self, job: Job) {
        self.0.push(job.id);
    }
    fn next(&mut self, _now: Time) -> Option<(JobId, u64)> {
        self.0.last().map(|id| (*id, u64::MAX))
    }
    fn update(&mut self, _id: JobId, _left: u64) {}
    fn remove(&mut self, id: JobId) {
        self.0.retain(|other| *other != id);
    }
}

#[test]
fn an_order_of_ones_own_decides_what_is_posted() {
    experiments::own::order("newest-first", |_seed| Box::<Newest>::default());
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("quickstart.yaml");
    // One port, slow, with little posted at a time: there is always something to choose.
    let digest = |order: &str| {
        let sets = ["cluster.link=2Gb/s", "cluster.nics_per_host=1", "policy.window.bytes=16KiB"];
        let mut sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        sets.push(format!("policy.order={order}"));
        let spec = Spec::load(&path, &sets).unwrap_or_else(|error| panic!("{error}"));
        let summary = play(&Spec { expect: Default::default(), ..spec });
        assert_eq!(summary.requests.succeeded, summary.requests.total);
        summary.digest
    };
    assert_ne!(digest("{own: newest-first}"), digest("fifo"));
    assert_eq!(digest("{own: newest-first}"), digest("{own: newest-first}"));
}
