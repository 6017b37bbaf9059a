//! Hold model: pop one event, push one later, at a steady number of pending events.

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use engine::time::Time;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use sim::queue::EventQueue;

fn hold(c: &mut Criterion) {
    let mut group = c.benchmark_group("queue");
    for pending in [1_000u64, 10_000, 100_000] {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let gaps: Vec<u64> = (0..1 << 16).map(|_| rng.next_u64() % 1_000_000).collect();
        let mut queue = EventQueue::new();
        for i in 0..pending {
            queue.push(Time(gaps[i as usize % gaps.len()]), [i; 4]);
        }
        let mut i = 0;
        group.bench_function(BenchmarkId::new("pop+push", pending), |b| {
            b.iter(|| {
                let (now, event) = queue.pop().unwrap();
                i = (i + 1) % gaps.len();
                queue.push(Time(now.0 + gaps[i]), event);
            });
        });
    }
    group.finish();
}

criterion_group!(benches, hold);
criterion_main!(benches);
