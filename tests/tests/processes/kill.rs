//! Processes that die without a word.

use std::time::Duration;

use engine::driver;
use engine::time::Span;
use kvrail_tests::cluster::{Cluster, Devices};
use kvrail_tests::network::{Discipline, wait_for_bytes};

use crate::{PATIENCE, STAGED, secs, sleep};

/// A prefill in mid-transfer: its requests fail within twice the lease, all others succeed, and started again it serves again.
fn killed(sets: &[&str]) {
    let Some(devices) = Devices::find() else { return };
    let lease = Span::s(2);
    let common = [
        "transfer.lease=2s",
        // Longer than what waits on the slow wire takes.
        "transfer.ack_timeout=19",
        "cluster.prefill.tp=1",
        "cluster.decode.tp=1",
        "policy.routing=round-robin",
        "workload.arrival={fixed: {rate: 6}}",
        "workload.synthetic={requests: 84, prompt: {fixed: 256}, output: {fixed: 8}}",
    ];
    let sets = [&common[..], sets].concat();
    let mut cluster = Cluster::start(&devices, "quickstart", &sets);
    let begun = cluster.begin(PATIENCE);
    cluster.wait_for_requests(4, PATIENCE);
    // A request's 0.5 MB take half a second of the whole wire now, and three of each prefill arrive in a second.
    let slow = Discipline::slow("veth0", "8mbit");
    wait_for_bytes("veth0", 1_000_000, PATIENCE);
    // Before, for a process with packets on a slow wire takes its time to go.
    let killed = driver::now().since(begun);
    cluster.signal("prefill-0", "KILL");
    slow.rate("1gbit");
    sleep(lease * 2);
    cluster.spawn("prefill-0");
    let again = driver::now().since(begun);
    let decodes = ["decode-0", "decode-1"].map(|name| cluster.runs(name));
    assert_eq!(decodes, [true, true]);
    let outcome = cluster.finish(Duration::from_secs(90));
    outcome.assert_nothing_left();
    assert_eq!(outcome.rows.len(), 84);

    let failed: Vec<_> = outcome.rows.iter().filter(|row| !row.succeeded()).collect();
    let cut = failed.iter().filter(|row| row.time("transfer_start_ps").is_some()).count();
    assert!(cut > 0, "none was in mid-transfer");
    for row in &failed {
        assert_eq!(row.get("reason"), "its instance is gone", "{row:?}");
        assert_ne!(row.number("prefill_instance"), Some(1), "the other prefill's requests go on: {row:?}");
        assert_eq!(row.time("success_ps"), None, "{row:?}");
        let end = row.time("end_ps").expect("it ended");
        assert!(end <= killed + lease * 2, "later than twice the lease after {killed:?}: {row:?}");
    }
    let last = failed.iter().filter_map(|row| row.time("end_ps")).max().unwrap_or_default();
    let later: Vec<_> =
        outcome.rows.iter().filter(|row| row.time("prefill_start_ps").is_some_and(|at| at > again)).collect();
    let served = later.iter().filter(|row| row.number("prefill_instance") == Some(0)).count();
    assert!(served >= 5 && later.iter().all(|row| row.succeeded()), "{served} of {}", later.len());
    println!(
        "killed {:.2} s after the start: {} requests failed, {cut} of them in mid-transfer, the last {:.2} s later (lease {} s); {} \
         succeeded, {served} of them on the prefill that was started again",
        secs(killed),
        failed.len(),
        secs(last) - secs(killed),
        secs(lease),
        outcome.rows.len() - failed.len(),
    );
}

#[test]
fn killed_prefill() {
    killed(&[]);
}

/// What it had gathered and not written goes with it; what decode had not scattered is not decode's.
#[test]
fn killed_prefill_that_stages() {
    killed(&[&STAGED[..], &["cluster.decode.tp=2"]].concat());
}

/// The registry, in mid-transfer, for shorter than a lease: nobody notices.
#[test]
fn killed_registry() {
    let Some(devices) = Devices::find() else { return };
    let sets = [
        "transfer.lease=3s",
        // Longer than what waits on the slow wire takes.
        "transfer.ack_timeout=19",
        "cluster.prefill.tp=1",
        "cluster.decode.tp=1",
        "workload.arrival={fixed: {rate: 6}}",
        "workload.synthetic={requests: 40, prompt: {fixed: 256}, output: {fixed: 8}}",
    ];
    let mut cluster = Cluster::start(&devices, "quickstart", &sets);
    let begun = cluster.begin(PATIENCE);
    cluster.wait_for_requests(3, PATIENCE);
    let slow = Discipline::slow("veth0", "8mbit");
    wait_for_bytes("veth0", 1_000_000, PATIENCE);
    cluster.signal("registry", "KILL");
    let killed = driver::now().since(begun);
    // What has its pages comes to its end of transfer meanwhile.
    slow.rate("1gbit");
    sleep(Span::ms(1500));
    cluster.spawn("registry");
    let again = driver::now().since(begun);
    let outcome = cluster.finish(Duration::from_secs(90));
    outcome.assert_clean();
    let between = |column: &str| {
        let at =
            |row: &&kvrail_tests::cluster::Row| row.time(column).is_some_and(|at| at > killed && at < again);
        outcome.rows.iter().filter(at).count()
    };
    let started = |row: &&kvrail_tests::cluster::Row| {
        row.time("transfer_start_ps").is_some_and(|at| at < killed)
            && row.time("success_ps").is_some_and(|at| at > killed)
    };
    let cut = outcome.rows.iter().filter(started).count();
    assert!(cut > 0 && between("arrival_ps") > 0, "nothing was under way");
    println!(
        "registry away from {:.2} s to {:.2} s: {cut} transfers under way, {} requests arrived and {} reached decode's Success meanwhile; all {} \
         succeeded",
        secs(killed),
        secs(again),
        between("arrival_ps"),
        between("success_ps"),
        outcome.rows.len(),
    );
}
