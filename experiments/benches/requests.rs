//! Requests per second through everything: router, registry, both sides' transfer engines, fabric, network.
//!
//! The case is `experiments/speed.yaml`, shortened; pages in one piece and scattered, and several ranks.

use std::path::Path;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use experiments::build::{Silent, simulate};
use experiments::spec::Spec;

const REQUESTS: u64 = 1_000;

fn requests(c: &mut Criterion) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("speed.yaml");
    let cases: [(&str, &[&str]); 3] = [
        ("contiguous", &[]),
        ("scattered", &["cluster.prefill.scatter=true", "cluster.decode.scatter=true"]),
        (
            "tp8",
            &[
                "cluster.prefill.tp=8",
                "cluster.decode.tp=8",
                "cluster.gpus_per_host=8",
                "cluster.nics_per_host=8",
            ],
        ),
    ];
    let mut group = c.benchmark_group("requests");
    group.throughput(Throughput::Elements(REQUESTS)).sample_size(10);
    for (name, sets) in cases {
        let mut sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        sets.push(format!("workload.limit={REQUESTS}"));
        let spec = Spec::load(&file, &sets).expect("the experiment of this repository");
        group.bench_function(name, |b| b.iter(|| simulate(&spec, 1, &Silent).expect("it runs").digest));
    }
    group.finish();
}

criterion_group!(benches, requests);
criterion_main!(benches);
