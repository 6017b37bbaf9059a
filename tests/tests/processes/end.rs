//! Runs that are ended from outside.

use std::process::{Command, Stdio};
use std::time::Duration;

use engine::driver;
use engine::time::Span;
use kvrail_tests::cluster::{Cluster, Devices, Folder, send};

use crate::{PATIENCE, alive, quickstart, secs, until_alive};

/// A node that is told to go gives everything back and leaves; the others go on.
#[test]
fn terminated_node() {
    let Some(devices) = Devices::find() else { return };
    let sets = [
        "transfer.lease=2s",
        "policy.routing=round-robin",
        "workload.arrival={fixed: {rate: 8}}",
        "workload.synthetic={requests: 40, prompt: {fixed: 256}, output: {fixed: 8}}",
    ];
    let mut cluster = Cluster::start(&devices, "quickstart", &sets);
    let begun = cluster.begin(PATIENCE);
    cluster.wait_for_requests(4, PATIENCE);
    cluster.signal("prefill-1", "TERM");
    let told = driver::now().since(begun);
    let status = cluster.wait_for_end("prefill-1", Duration::from_secs(10));
    let took = driver::now().since(begun).0 - told.0;
    assert!(status.success(), "{status}");
    assert!(
        took <= (Span::s(2) * 2).0 + Span::ms(500).0,
        "two leases to leave, not {:.2} s",
        took as f64 / 1e12
    );
    let outcome = cluster.finish(Duration::from_secs(60));
    outcome.assert_nothing_left();
    let failed: Vec<_> = outcome.rows.iter().filter(|row| !row.succeeded()).collect();
    for row in &failed {
        assert_ne!(row.number("prefill_instance"), Some(0), "{row:?}");
        let end = row.time("end_ps").expect("it ended");
        assert!(end <= told + Span::s(1), "who leaves says so, nobody waits for a lease: {row:?}");
    }
    let later =
        outcome.rows.iter().filter(|row| row.time("arrival_ps").is_some_and(|at| at > told + Span::s(1)));
    assert!(later.clone().count() > 0 && later.clone().all(|row| row.succeeded()));
    println!("left {:.2} s after SIGTERM; {} of 40 requests failed", took as f64 / 1e12, failed.len());
}

/// Ctrl-C of a run that started its processes itself.
#[test]
fn interrupted_run() {
    let Some(devices) = Devices::find() else { return };
    let out = Folder::new();
    let mut command = Command::new(&devices.kvrail);
    command.arg("run").arg(quickstart()).args(["--fabric", "verbs", "--quiet", "--out"]).arg(out.path());
    for set in devices.sets().iter().map(String::as_str).chain(["workload.arrival={fixed: {rate: 2}}"]) {
        command.args(["--set", set]);
    }
    let mut child = command.stdin(Stdio::null()).spawn().expect("kvrail runs");
    until_alive("registry, router, four instances and the run itself come", out.path(), 7..=7);
    // In the midst of it.
    std::thread::sleep(Duration::from_secs(2));
    send(child.id(), "INT");
    let told = driver::now();
    let end = told + Span::s(20);
    let status = loop {
        match child.try_wait().expect("waits") {
            Some(status) => break status,
            None if driver::now() < end => std::thread::sleep(Duration::from_millis(10)),
            None => {
                send(child.id(), "KILL");
                panic!("it did not end within 20 s of SIGINT");
            }
        }
    };
    let took = driver::now().since(told);
    assert_eq!(status.code(), Some(130), "{status}");
    assert_eq!(alive(out.path()), 0, "it ends after its processes");
    println!("ended {:.2} s after SIGINT", secs(took));
}

/// Without the measuring process nodes that others started go on, and end when they are told to.
#[test]
fn killed_collector() {
    let Some(devices) = Devices::find() else { return };
    let sets = [
        "transfer.lease=2s",
        "workload.arrival={fixed: {rate: 8}}",
        "workload.synthetic={requests: 200, prompt: {fixed: 128}, output: {fixed: 8}}",
    ];
    let nodes = ["router", "prefill-0", "prefill-1", "decode-0", "decode-1"];
    let mut cluster = Cluster::start(&devices, "quickstart", &sets);
    cluster.begin(PATIENCE);
    cluster.wait_for_requests(4, PATIENCE);
    cluster.signal("run", "KILL");
    // They go on moving KV.
    kvrail_tests::network::wait_for_bytes("veth0", 500_000, Duration::from_secs(20));
    for name in nodes {
        assert!(cluster.runs(name), "{name} has ended");
    }
    let told = driver::now();
    for name in nodes {
        cluster.signal(name, "TERM");
    }
    for name in nodes {
        let status = cluster.wait_for_end(name, Duration::from_secs(10));
        assert!(status.success(), "{name}: {status}");
    }
    cluster.signal("registry", "TERM");
    let status = cluster.wait_for_end("registry", Duration::from_secs(10));
    assert!(status.success(), "{status}");
    println!("six processes ended {:.2} s after SIGTERM", secs(driver::now().since(told)));
}
