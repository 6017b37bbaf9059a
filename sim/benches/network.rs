//! Flows per second of the fluid network: the measured loads when the data folder is there
//! (`KVRAIL_SHARED`, or `shared` beside the repository), generated ones like them in any case, and
//! loads that are hard on the solver.

use std::fmt::Write;
use std::hint::black_box;
use std::path::PathBuf;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sim::net::{FlowSpec, Fluid, Network, Topology, flows};

fn shared(name: &str) -> Option<String> {
    let folder = match std::env::var_os("KVRAIL_SHARED") {
        Some(path) => PathBuf::from(path),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared"),
    };
    std::fs::read_to_string(folder.join("data/flows").join(name)).ok()
}

/// Random pairs with exponential gaps, at `load` of the sum of all links up; all at 0 for load 0.
fn generated(flows: u32, hosts: u32, bytes: u32, load: f64) -> String {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut text = String::new();
    let mut start = 0.0;
    for _ in 0..flows {
        if load > 0.0 {
            let u = (f64::from(rng.random::<u32>()) + 0.5) / 4294967296.0;
            start -= libm::log(u) * f64::from(bytes) / (load * f64::from(hosts) * 50e9);
        }
        let src = rng.random_range(0..hosts);
        let dst = (src + rng.random_range(1..hosts)) % hosts;
        writeln!(text, "{start:.9} {src} {dst} {bytes}").expect("to a string");
    }
    text
}

fn files(c: &mut Criterion) {
    let mut group = c.benchmark_group("network");
    group.sample_size(10);
    let mut case = |name: &str, hosts: u32, text: String| {
        group.throughput(Throughput::Elements(text.lines().count() as u64));
        group.bench_function(name, |b| {
            b.iter(|| flows::run(black_box(text.as_bytes()), hosts, 400.0, 1.0).expect("valid flows"));
        });
    };
    for (name, hosts) in [("pd64-10k", 64), ("burst64-10k", 64), ("rand1024-100k", 1024)] {
        if let Some(text) = shared(&format!("{name}.flows")) {
            case(name, hosts, text);
        } else {
            eprintln!("{name}.flows is absent: set KVRAIL_SHARED; a generated load stands in");
        }
    }
    case("generated-poisson-64-10k", 64, generated(10_000, 64, 100_000_000, 0.6));
    case("generated-burst-64-10k", 64, generated(10_000, 64, 100_000_000, 0.0));
    case("generated-poisson-1024-100k", 1024, generated(100_000, 1024, 100_000_000, 0.6));
}

/// Flows that all differ in cap, so that no two share a class, kept `parallel` at a time.
fn distinct_caps(flows: u32, hosts: u32, parallel: usize) -> u64 {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let mut net = Fluid::new(Topology::star(hosts, 400.0, 1_000_000).expect("star"));
    let (mut left, mut now, mut done) = (flows, 0, Vec::new());
    loop {
        while left > 0 && net.flows() < parallel {
            left -= 1;
            let src = rng.random_range(0..hosts);
            let dst = (src + rng.random_range(1..hosts)) % hosts;
            let cap = 1e8 + f64::from(rng.random_range(0..1_000_000u32)) * 2e4;
            net.start(now, &FlowSpec::new(src, dst, 1e7).cap(cap)).expect("valid");
        }
        let Some(next) = net.next() else { return now };
        now = next;
        done.clear();
        net.advance(now, &mut done);
    }
}

fn caps(c: &mut Criterion) {
    let mut group = c.benchmark_group("network-caps");
    group.sample_size(10).throughput(Throughput::Elements(10_000));
    group.bench_function("distinct-64-10k-256-parallel", |b| b.iter(|| distinct_caps(10_000, 64, 256)));
    group.bench_function("distinct-64-10k-2048-parallel", |b| b.iter(|| distinct_caps(10_000, 64, 2048)));
    group.bench_function("distinct-2-10k-256-parallel", |b| b.iter(|| distinct_caps(10_000, 2, 256)));
}

criterion_group!(benches, files, caps);
criterion_main!(benches);
