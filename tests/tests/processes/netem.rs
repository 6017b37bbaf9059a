//! Wires that lose packets, and long ones.

use std::time::Duration;

use kvrail_tests::cluster::{Cluster, Devices};
use kvrail_tests::network::Discipline;

use crate::PATIENCE;

const SETS: [&str; 3] = [
    "transfer.ack_timeout=16",
    "workload.arrival={fixed: {rate: 10}}",
    "workload.synthetic={requests: 40, prompt: {uniform: {min: 32, max: 512}}, output: {fixed: 8}}",
];

#[test]
fn one_packet_of_a_hundred_is_lost() {
    let Some(devices) = Devices::find() else { return };
    // Linux' rxe takes some retransmissions for invalid: how often that comes is the device's matter, that all bytes arrive is ours.
    let sets = [&SETS[..], &["transfer.reposts=50"]].concat();
    let cluster = Cluster::start(&devices, "quickstart", &sets);
    cluster.begin(PATIENCE);
    let wire = Discipline::on_both("netem limit 100000 loss 1%");
    let outcome = {
        // Counted before the discipline goes, and it goes after the nodes.
        let outcome = cluster.finish(Duration::from_secs(90));
        let dropped: u64 = wire.iter().map(Discipline::dropped).sum();
        assert!(dropped > 0, "no packet was lost");
        println!("{dropped} packets lost");
        outcome
    };
    outcome.assert_clean();
    assert_eq!(outcome.rows.len(), 40);
    for line in outcome.text.lines().filter(|line| line.contains("work requests failed")) {
        println!("{line}");
    }
}

#[test]
fn twenty_milliseconds_away() {
    let Some(devices) = Devices::find() else { return };
    let cluster = Cluster::start(&devices, "quickstart", &SETS);
    cluster.begin(PATIENCE);
    let wire = Discipline::on_both("netem limit 100000 delay 20ms");
    let outcome = cluster.finish(Duration::from_secs(90));
    drop(wire);
    outcome.assert_clean();
    assert_eq!(outcome.rows.len(), 40);
    // A write and its acknowledgement are both late: no transfer after the first ones is shorter than one way.
    let transfers = outcome.rows.iter().filter_map(|row| {
        let took = row.time("success_ps")?.0 - row.time("transfer_start_ps")?.0;
        Some(took as f64 / 1e9)
    });
    let mut transfers: Vec<f64> = transfers.collect();
    transfers.sort_by(f64::total_cmp);
    println!("transfer: median {:.1} ms", transfers[transfers.len() / 2]);
    assert!(transfers[transfers.len() / 2] > 20.0, "{transfers:?}");
}
