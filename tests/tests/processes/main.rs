//! Real processes on real devices: `tests/soft-roce/run` runs these where there are none.
#![cfg(feature = "verbs")]

mod content;
mod end;
mod kill;
mod netem;
mod pause;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use engine::driver;
use engine::time::Span;
use kvrail_tests::cluster::{Cluster, Devices, Folder, Outcome, send};

/// How long processes may take to come, or requests to end, in a machine that is emulated.
const PATIENCE: Duration = Duration::from_secs(60);

/// Parts of requests go through staging slots, and what arrives is compared with its checksum; pages are unlike on the two sides.
const STAGED: [&str; 4] = [
    "policy.coalescing={staging: {slot: 64KiB, slots: 32, window: 4}}",
    "transfer.checksums=true",
    "cluster.prefill.page_order=head-major",
    "cluster.decode.page_size=32",
];

fn secs(span: Span) -> f64 {
    span.as_secs()
}

fn sleep(span: Span) {
    std::thread::sleep(Duration::from_nanos(span.0 / 1000));
}

/// Processes that have the folder among their arguments.
fn alive(folder: &Path) -> usize {
    let folder = folder.to_string_lossy();
    let processes = std::fs::read_dir("/proc").expect("/proc").flatten();
    let has = |entry: &std::fs::DirEntry| {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(&*folder)
    };
    processes.filter(has).count()
}

fn until_alive(what: &str, folder: &Path, count: std::ops::RangeInclusive<usize>) {
    let end = driver::now() + Span::s(60);
    while !count.contains(&alive(folder)) {
        assert!(driver::now() < end, "{what}: {} processes", alive(folder));
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn quickstart() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../experiments/quickstart.yaml")
}

/// `kvrail run quickstart.yaml --fabric verbs`, which starts all processes itself.
fn run(devices: &Devices, sets: &[&str]) -> Outcome {
    let out = Folder::new();
    let mut command = Command::new(&devices.kvrail);
    command.arg("run").arg(quickstart()).args(["--fabric", "verbs", "--patience", "120", "--out"]);
    command.arg(out.path());
    let devices = devices.sets();
    for set in devices.iter().map(String::as_str).chain(sets.iter().copied()) {
        command.args(["--set", set]);
    }
    let done = command.output().expect("kvrail runs");
    let text = [&done.stdout[..], &done.stderr[..]].concat();
    Outcome::read(out.path(), done.status, String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn quickstart_on_grouped_heads() {
    let Some(devices) = Devices::find() else { return };
    let outcome = run(&devices, &[]);
    outcome.assert_clean();
    assert_eq!(outcome.rows.len(), 100);
    // Simulated stands beside measured.
    for word in ["simulated (", "measured", "exposed transfer", "one host, one clock"] {
        assert!(outcome.text.contains(word), "no `{word}`");
    }
    let used = |column: &str| (0..2).all(|i| outcome.rows.iter().any(|row| row.number(column) == Some(i)));
    assert!(used("prefill_instance") && used("decode_instance"), "all four instances serve");
}

#[test]
fn quickstart_on_latent_attention() {
    let Some(devices) = Devices::find() else { return };
    run(&devices, &["model=tiny-mla"]).assert_clean();
}

#[test]
fn quickstart_through_staging_slots() {
    let Some(devices) = Devices::find() else { return };
    let outcome = run(&devices, &STAGED);
    outcome.assert_clean();
    let (parts, requests) = (outcome.number("/staged_parts"), outcome.number("/work_requests"));
    let tokens = outcome.number("/prompt_tokens");
    // Directly it takes several for each token: a row is cut in two.
    assert!(parts >= 100.0 && requests * 5.0 < tokens, "{parts} parts, {requests} requests, {tokens} tokens");
    println!("{tokens} tokens in {requests} work requests, {parts} staged parts");
}

#[test]
fn quickstart_read_by_decode() {
    let Some(devices) = Devices::find() else { return };
    let sets = [
        "policy.direction=pull",
        "transfer.checksums=true",
        "cluster.decode.page_size=32",
        // A READ for each token of each buffer: its remote side is one range.
        "workload.synthetic={requests: 20, prompt: {uniform: {min: 16, max: 128}}, output: {fixed: 8}}",
    ];
    run(&devices, &sets).assert_clean();
}

#[test]
fn processes_that_others_started() {
    let Some(devices) = Devices::find() else { return };
    let sets = ["workload.limit=30", "policy.granularity={layer-wise: {layers: 1}}"];
    let cluster = Cluster::start(&devices, "quickstart", &sets);
    let outcome = cluster.finish(Duration::from_secs(180));
    outcome.assert_clean();
    assert_eq!(outcome.rows.len(), 30);
}

#[test]
fn nobody_outlives_the_run() {
    let Some(devices) = Devices::find() else { return };
    let out = Folder::new();
    let mut command = Command::new(&devices.kvrail);
    command.arg("run").arg(quickstart()).args(["--fabric", "verbs", "--quiet", "--out"]).arg(out.path());
    for set in devices.sets().iter().map(String::as_str).chain(["workload.arrival={fixed: {rate: 1}}"]) {
        command.args(["--set", set]);
    }
    let mut child = command.stdin(Stdio::null()).spawn().expect("kvrail runs");
    until_alive("registry, router, four instances and the run itself come", out.path(), 7..=7);
    send(child.id(), "KILL");
    let _ = child.wait();
    until_alive("all of them go", out.path(), 0..=0);
}
