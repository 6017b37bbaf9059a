//! What end-to-end checksums cost: bytes of KV per second on one core, by the bytes of a unit, beside a copy of the same memory.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use engine::fabric::{Extent, Grid, Units, bytes};
use std::hint::black_box;

/// More than the caches hold.
const POOL: u64 = 256 << 20;

fn checksum(c: &mut Criterion) {
    let memory: Vec<u8> = (0..POOL).map(|i| (i * 7 % 251) as u8).collect();
    let grid = Grid::bytes(POOL);
    let mut group = c.benchmark_group("checksum");
    group.throughput(Throughput::Bytes(POOL)).sample_size(10);
    // A KV head of 64 or 128 values at bf16; a latent row.
    for unit in [128, 256, 1152] {
        let len = POOL / unit * unit;
        let place = Extent::piece(0, 0, len);
        let units = Units { name: 0, per_buffer: 0, per_piece: 0, unit };
        group.bench_with_input(BenchmarkId::new("unit", unit), &unit, |b, _| {
            b.iter(|| {
                bytes::checksum(&grid, black_box(&place), units, |at, into| {
                    into.copy_from_slice(&memory[at..at + into.len()])
                })
            });
        });
    }
    let mut copy = vec![0u8; POOL as usize];
    group.bench_function("copy", |b| b.iter(|| black_box(&mut copy).copy_from_slice(black_box(&memory))));
    group.finish();
}

criterion_group!(benches, checksum);
criterion_main!(benches);
