//! Processes that stand still for longer than their lease, while their NIC goes on.

use std::time::Duration;

use engine::driver;
use engine::time::Span;
use kvrail_tests::cluster::{Cluster, Devices};
use kvrail_tests::network::{Discipline, queue_pairs};

use crate::{PATIENCE, STAGED, secs, sleep};

const LEASE: Span = Span::s(2);

/// Stops `name` in mid-transfer past its lease while its peers need the pages that it is using, and lets it go on.
fn paused(name: &str, column: &str, reads: bool, rate: &str, sets: &[&str]) {
    let Some(devices) = Devices::find() else { return };
    let common = [
        "transfer.lease=2s",
        // A wire that is slow on purpose is no dead peer; and a NIC that is not answered goes on for as long as the test.
        "transfer.ack_timeout=21",
        "cluster.prefill.tp=1",
        "cluster.decode.tp=1",
        "policy.routing=round-robin",
        "workload.arrival={fixed: {rate: 6}}",
        "workload.synthetic={requests: 90, prompt: {fixed: 256}, output: {fixed: 64}}",
        // Decode holds pages for a while: they are compared again when it gives them back.
        "compute.scale=20",
    ];
    let sets: Vec<&str> = common.iter().chain(sets).copied().collect();
    let mut cluster = Cluster::start(&devices, "quickstart", &sets);
    let begun = cluster.begin(PATIENCE);
    cluster.wait_for_requests(4, PATIENCE);
    // Slow for what the one process moves: its NIC has work for longer than the lease.
    let own = queue_pairs(cluster.pid(name), reads);
    let slow = Discipline::slow_to("veth0", &own, rate);
    sleep(Span::ms(1500));
    cluster.signal(name, "STOP");
    let stopped = driver::now().since(begun);
    // The lease runs out. Its peers fence, and use the pages again, while its NIC goes on.
    sleep(LEASE + Span::s(4));
    cluster.signal(name, "CONT");
    let again = driver::now().since(begun);
    drop(slow);
    let outcome = cluster.finish(Duration::from_secs(90));
    // Decode compares every byte at Success, and again when it gives pages back: wrong content is a violation.
    outcome.assert_nothing_left();
    assert_eq!(outcome.rows.len(), 90);

    let failed: Vec<_> = outcome.rows.iter().filter(|row| !row.succeeded()).collect();
    let cut = failed.iter().filter(|row| row.time("transfer_start_ps").is_some()).count();
    assert!(cut > 0, "none was in mid-transfer");
    for row in &failed {
        assert_ne!(row.number(column), Some(1), "the other's requests go on: {row:?}");
        let end = row.time("end_ps").expect("it ended");
        assert!(end <= stopped + LEASE * 2, "later than twice the lease after {stopped:?}: {row:?}");
    }
    let meanwhile = outcome.rows.iter().filter(|row| {
        row.succeeded() && row.time("success_ps").is_some_and(|at| at > stopped + LEASE && at < again)
    });
    let meanwhile = meanwhile.count();
    assert!(meanwhile >= 4, "{meanwhile} requests used the pages meanwhile");
    let last = failed.iter().filter_map(|row| row.time("end_ps")).max().unwrap_or_default();
    let served = outcome.rows.iter().filter(|row| {
        row.number(column) == Some(0) && row.time("transfer_start_ps").is_some_and(|at| at > again)
    });
    let (served, fine) = (served.clone().count(), served.filter(|row| row.succeeded()).count());
    assert!(served > 0 && fine == served, "after it went on {name} served {fine} of {served}");
    println!(
        "{name} stopped from {:.2} s to {:.2} s: {} requests failed, {cut} of them in mid-transfer, the last {:.2} s after the stop (lease {} s); \
         {meanwhile} used the pages between lease and going on; {served} served by it afterwards",
        secs(stopped),
        secs(again),
        failed.len(),
        secs(last) - secs(stopped),
        secs(LEASE),
    );
}

/// Decode has pages for five requests at a time: those that the stopped prefill's NIC writes to have new owners at once.
#[test]
fn paused_prefill() {
    paused("prefill-0", "prefill_instance", false, "400kbit", &["cluster.decode.memory=2560KiB"]);
}

/// The same through staging slots, whose next owners are other rooms.
#[test]
fn paused_prefill_that_stages() {
    let sets = [&STAGED[..], &["cluster.decode.memory=2560KiB"]].concat();
    paused("prefill-0", "prefill_instance", false, "400kbit", &sets);
}

/// The same on the side that is read from.
#[test]
fn paused_decode_that_reads() {
    paused(
        "decode-0",
        "decode_instance",
        true,
        // Faster than in the other direction: rxe destroys a queue pair only when its last packet has left the queue, and prefill stands
        // still meanwhile, which must be shorter than its lease.
        "2400kbit",
        &["policy.direction=pull", "cluster.prefill.memory=2560KiB", "batch.prefix_cache=false"],
    );
}
