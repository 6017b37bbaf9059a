//! A host has two ports, each on a wire of its own, and one of them fails.

use std::time::Duration;

use engine::driver;
use engine::time::Span;
use kvrail_tests::cluster::{Cluster, Devices};
use kvrail_tests::network::{Discipline, LinkDown, sent, wait_for_bytes};

use crate::{PATIENCE, secs, sleep};

/// Breaks the first wire in mid-transfer and mends it after `away`: what was begun and what comes meanwhile goes over the second one, and the
/// first one is used again afterwards. Every request succeeds.
fn first_rail_fails<T>(breaks: impl FnOnce() -> T, away: Span) {
    let Some(devices) = Devices::find() else { return };
    let sets = [
        "verbs.prefill.devices=[rxeA, rxeC]",
        "verbs.decode.devices=[rxeB, rxeD]",
        "transfer.reach=same-rail",
        "transfer.queue_pairs=2",
        "transfer.retries=3",
        "transfer.checksums=true",
        "policy.rails=striped",
        "policy.failover={cooldown: {first: 1s, most: 2s}}",
        "cluster.prefill.tp=1",
        "cluster.decode.tp=1",
        "workload.arrival={fixed: {rate: 8}}",
        "workload.synthetic={requests: 120, prompt: {fixed: 256}, output: {fixed: 8}}",
    ];
    let cluster = Cluster::start(&devices, "quickstart", &sets);
    let begun = cluster.begin(PATIENCE);
    cluster.wait_for_requests(4, PATIENCE);
    // Half of a request's 0.5 MB take 70 ms now.
    let slow = Discipline::slow("veth0", "30mbit");
    wait_for_bytes("veth0", 500_000, PATIENCE);
    drop(slow);
    let broken = breaks();
    let gone = driver::now().since(begun);
    let before = sent("veth2");
    sleep(away);
    let other = sent("veth2") - before;
    drop(broken);
    let back = driver::now().since(begun);
    wait_for_bytes("veth0", 1_000_000, Duration::from_secs(20));
    let again = driver::now().since(begun);
    let outcome = cluster.finish(Duration::from_secs(90));
    outcome.assert_clean();
    assert_eq!(outcome.rows.len(), 120);

    let at = |column: &'static str, from: Span, to: Span| {
        move |row: &&kvrail_tests::cluster::Row| row.time(column).is_some_and(|at| at > from && at < to)
    };
    let rows = || outcome.rows.iter();
    let cut =
        rows().filter(at("transfer_start_ps", Span(0), gone)).filter(at("success_ps", gone, Span(u64::MAX)));
    let meanwhile =
        rows().filter(at("transfer_start_ps", gone, back)).filter(at("success_ps", gone, back)).count();
    let cut = cut.count();
    assert!(meanwhile >= 5, "{meanwhile} requests went over the other rail");
    println!(
        "first rail away from {:.2} s to {:.2} s: {cut} transfers under way, {meanwhile} requests begun and ended meanwhile, {:.1} MB over the \
         second; used again {:.2} s after it was back",
        secs(gone),
        secs(back),
        other as f64 / 1e6,
        secs(again) - secs(back),
    );
}

/// Both ends hear of it.
#[test]
fn a_link_goes_down_and_comes_back() {
    first_rail_fails(|| LinkDown::of(0), Span::s(3));
}

/// Nobody hears of it: queue pairs give up after their retries.
#[test]
fn a_wire_swallows_everything_for_a_while() {
    first_rail_fails(|| Discipline::on_both("netem loss 100%"), Span::s(5));
}
