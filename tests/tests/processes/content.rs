//! Bytes that change between prefill's memory and decode's.

use std::time::Duration;

use engine::time::Span;
use kvrail_tests::cluster::{Cluster, Devices, Outcome};
use kvrail_tests::memory::{invert, on_huge_pages};
use kvrail_tests::network::Discipline;

use crate::{PATIENCE, STAGED, sleep};

/// Staging slots of a rank: 32 of 64 KiB. A huge page, and nothing else of prefill has that size.
const SLOTS: u64 = 2 << 20;

/// Prefill's staging slots change under its NIC's eyes.
fn spoilt(checksums: bool) -> Option<Outcome> {
    let devices = Devices::find()?;
    let switch = format!("transfer.checksums={checksums}");
    let sets = [
        "verbs.memory=huge-pages",
        "cluster.prefill.memory=4MiB",
        "cluster.decode.memory=4MiB",
        "transfer.ack_timeout=19",
        "policy.routing=round-robin",
        "workload.arrival={fixed: {rate: 6}}",
        "workload.synthetic={requests: 40, prompt: {fixed: 256}, output: {fixed: 8}}",
    ];
    let sets = [&STAGED[..], &sets, &[&switch]].concat();
    let cluster = Cluster::start(&devices, "quickstart", &sets);
    cluster.begin(PATIENCE);
    cluster.wait_for_requests(3, PATIENCE);
    let slow = Discipline::slow("veth0", "8mbit");
    let prefill = cluster.pid("prefill-0");
    let slots: Vec<_> =
        on_huge_pages(prefill).into_iter().filter(|place| place.end - place.start == SLOTS).collect();
    assert_eq!(slots.len(), 2, "one for each rank: {:x?}", on_huge_pages(prefill));
    // An odd number of times for what stays in a slot, at moments between gathering and sending for some.
    for _ in 0..81 {
        sleep(Span::ms(40));
        slots.iter().for_each(|place| invert(prefill, place));
    }
    slow.rate("1gbit");
    Some(cluster.finish(Duration::from_secs(90)))
}

#[test]
fn what_changes_in_a_slot_is_seen_by_its_checksum() {
    let Some(outcome) = spoilt(true) else { return };
    outcome.assert_nothing_left();
    let failed: Vec<_> = outcome.rows.iter().filter(|row| !row.succeeded()).collect();
    assert!(!failed.is_empty(), "nothing changed on its way");
    for row in &failed {
        assert_eq!(row.get("reason"), "its KV arrived with another checksum", "{row:?}");
        assert_eq!(row.number("prefill_instance"), Some(0), "{row:?}");
        assert_eq!(row.time("success_ps"), None, "{row:?}");
    }
    println!("{} of {} requests refused for their checksums", failed.len(), outcome.rows.len());
}

/// Without checksums kvrail's own comparison of every byte with what prefill made finds it, after the first token.
#[test]
fn what_changes_in_a_slot_is_seen_by_verification() {
    let Some(outcome) = spoilt(false) else { return };
    assert_eq!(outcome.status.code(), Some(1), "an invariant does not hold");
    let violations = outcome.number("/violations");
    assert!(violations > 0.0, "nothing changed on its way");
    println!("{violations} violations in {} requests", outcome.rows.len());
}
