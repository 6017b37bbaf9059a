//! What a plan costs: 64 pages of 64 tokens, Llama 3.1 70B at bf16, all 160 buffers (K and V of 80 layers) of a rank.
//!
//! `naive` is what a planner without runs and lanes does, in the same process: every page of every buffer (every token, where
//! rows are cut) becomes an entry of a list of requests. Ratios are between lines of one group.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use engine::fabric::{Lane, Plan};
use engine::registry::{Facts, RankFacts};
use engine::transfer::{PagePool, PageTable, Pairing, PlanLimits, Reach, Share, layout_of, plan};
use models::{DType, presets};
use std::hint::black_box;

const PAGES: u32 = 64;
const PAGE_TOKENS: u32 = 64;
const LIMITS: PlanLimits = PlanLimits { max_sge: 30, max_message: 1 << 31 };

/// The first share between two tensor-parallel sizes.
fn share(src_tp: u32, dst_tp: u32) -> Share {
    let model = presets::lookup("llama-3.1-70b").expect("a preset");
    let side = |tp: u32| {
        let mut facts = Facts { tp: tp as u16, pp: 1, dp: 1, page_size: PAGE_TOKENS, ..Facts::default() };
        let layout = layout_of(&model, DType::Bf16, &facts).expect("a layout");
        for rank in layout.ranks() {
            let pitches = rank.pools().iter().map(|pool| pool.page_bytes * 4096).collect();
            facts.ranks.push(RankFacts {
                pools: rank.pools().iter().map(|_| Default::default()).collect(),
                pitches,
                aux: Default::default(),
                stage: Default::default(),
            });
        }
        facts
    };
    let (src, dst) = (side(src_tp), side(dst_tp));
    let pairing =
        Pairing::new(&model, DType::Bf16, &src, &dst, Default::default(), 1, &Reach::Any).expect("a pairing");
    pairing.feeds[0].shares[0].clone()
}

fn table(scatter: bool, skip: u32) -> PageTable {
    let mut pool = PagePool::new(4096, scatter);
    pool.take(skip, &mut PageTable::default());
    let mut table = PageTable::default();
    pool.take(PAGES, &mut table);
    table
}

/// Single pages in rising order.
fn rising() -> PageTable {
    let mut runs = table(true, 100).runs().to_vec();
    runs.sort_unstable_by_key(|run| run.first.0);
    PageTable::new(runs)
}

/// (local, remote, bytes)
type Request = (u64, u64, u32);

/// Page by page and buffer by buffer, from page numbers; `rows`: also token by token.
fn naive(share: &Share, src: &[u32], dst: &[u32], rows: bool) -> Vec<Request> {
    let group = &share.group;
    let pair = group.sections[0];
    let mut all = Vec::new();
    for Lane { local, remote } in share.lanes.iter() {
        for (s, d) in src.iter().zip(dst) {
            let from = local + u64::from(*s) * group.src_page_bytes + pair.src_base;
            let to = remote + u64::from(*d) * group.dst_page_bytes + pair.dst_base;
            if rows {
                for token in 0..u64::from(group.dst_page_tokens) {
                    all.push((from + token * pair.src_stride, to + token * pair.dst_stride, pair.len as u32));
                }
            } else {
                all.push((from, to, (group.dst_page_bytes) as u32));
            }
        }
    }
    all
}

fn pages(table: &PageTable) -> Vec<u32> {
    table.runs().iter().flat_map(|run| run.first.0..run.first.0 + run.count).collect()
}

fn expand(plan: &Plan) -> u64 {
    let mut sum = 0;
    plan.for_each(&(0..plan.requests()), |_, pieces, remote| {
        sum += remote ^ pieces.iter().map(|piece| piece.0).sum::<u64>();
    });
    sum
}

fn planner(c: &mut Criterion) {
    let (equal, cut) = (share(4, 4), share(4, 8));
    let cases = [
        ("contiguous", &equal, table(false, 0), table(false, 7), false),
        ("fragmented, rising", &equal, table(true, 0), rising(), false),
        ("fragmented, any order", &equal, table(true, 0), table(true, 100), false),
        ("tp4 to tp8", &cut, table(false, 0), table(false, 7), true),
        ("tp4 to tp8, fragmented", &cut, table(true, 0), table(true, 100), true),
    ];
    for (name, share, src, dst, rows) in &cases {
        let make =
            || plan(share, share.lanes.clone(), src, dst, 0..PAGES * PAGE_TOKENS, LIMITS).expect("a plan");
        let mut group = c.benchmark_group(*name);
        group.throughput(Throughput::Elements(u64::from(PAGES)));
        group.bench_function(BenchmarkId::new("plan", "pages"), |b| b.iter(|| black_box(make())));
        let (from, to) = (pages(src), pages(dst));
        group.bench_function(BenchmarkId::new("naive", "pages"), |b| {
            b.iter(|| black_box(naive(share, black_box(&from), black_box(&to), *rows)));
        });
        let made = make();
        group.throughput(Throughput::Elements(made.requests()));
        group.bench_function(BenchmarkId::new("expand", "requests"), |b| b.iter(|| expand(black_box(&made))));
        group.finish();
    }
}

criterion_group!(benches, planner);
criterion_main!(benches);
