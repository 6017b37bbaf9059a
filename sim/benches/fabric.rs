//! What the fabric costs the simulator: phantom memory of one request's pages, and the whole life of one request's posts.

use criterion::{Criterion, criterion_group, criterion_main};
use engine::fabric::{
    Access, Batch, Completion, Content, Extent, Fabric, Flags, Grid, Item, Lane, Lanes, Memory, Mr, Op, Plan,
    Recv, Run, Sge, WorkRequest,
};
use engine::id::{BufId, WrId};
use sim::fabric::pair::{Pair, PairSpec};
use std::sync::Arc;

const BUFFERS: u32 = 160;
const PAGES: u32 = 4096;
const PAGE: u64 = 32_768;
const N: u32 = 64;

struct Rig {
    pair: Pair,
    bufs: [BufId; 2],
    mrs: [Mr; 2],
    aux: [Mr; 2],
    pitch: u64,
}

fn rig() -> Rig {
    let mut pair = Pair::new(PairSpec { max_send: 32_768, ..PairSpec::default() }).unwrap();
    let pitch = u64::from(PAGES) * PAGE;
    let grid = Grid { buffers: BUFFERS, pitch, pages: PAGES, page: PAGE };
    let mut make = |i: usize| {
        let port = pair.ends[i].port;
        pair.call(i, |f| {
            let buf = f.alloc(Memory::Phantom, grid).unwrap();
            let aux = f.alloc(Memory::Host, Grid::bytes(4096)).unwrap();
            let mr = f.register(port, buf, 0..grid.len(), Access::REMOTE_WRITE).unwrap();
            (buf, mr, f.register(port, aux, 0..4096, Access::REMOTE_WRITE).unwrap())
        })
    };
    let ((a, m, x), (b, n, y)) = (make(0), make(1));
    Rig { pair, bufs: [a, b], mrs: [m, n], aux: [x, y], pitch }
}

fn lanes(pitch: u64) -> Arc<Lanes> {
    (0..u64::from(BUFFERS)).map(|i| Lane { local: i * pitch, remote: i * pitch }).collect()
}

/// 64 pages: in one run, or each on its own.
fn plan(pitch: u64, fragmented: bool) -> Arc<Plan> {
    let runs = if fragmented {
        (0..u64::from(N)).map(|i| Run::piece((i * 7 + 3) * PAGE, (i * 5 + 1) * PAGE, PAGE as u32)).collect()
    } else {
        vec![Run::piece(PAGE, 100 * PAGE, (u64::from(N) * PAGE) as u32)]
    };
    Arc::new(Plan::new(lanes(pitch), runs).unwrap())
}

fn memory(c: &mut Criterion) {
    let mut group = c.benchmark_group("phantom");
    let mut rig = rig();
    let buf = rig.bufs[0];
    let whole = |at: u64| Extent { buffers: 0..BUFFERS, at, len: u64::from(N) * PAGE, count: 1, step: 0 };
    let what = |seed| Content { seed, at: 0, per_buffer: 1 << 40, per_piece: 0 };
    let mut i = 0;
    group.bench_function("stamp 64 pages x 160", |b| {
        b.iter(|| {
            i += 1;
            rig.pair.fabrics.host(0).stamp(buf, &whole(i % 32 * PAGE), what(i)).unwrap();
        });
    });
    rig.pair.fabrics.host(0).stamp(buf, &whole(0), what(1)).unwrap();
    group.bench_function("holds 64 pages x 160", |b| {
        b.iter(|| assert!(rig.pair.fabrics.host(0).holds(buf, &whole(0), what(1)).unwrap()));
    });
    group.finish();
}

fn request(c: &mut Criterion) {
    let mut group = c.benchmark_group("request");
    for (name, fragmented, most) in [
        ("160 WRITEs of 64 pages", false, u64::MAX),
        ("160 x 64 WRITEs of a page", true, u64::MAX),
        ("4000 WRITEs of a page", true, 4000),
    ] {
        let mut rig = rig();
        let plan = plan(rig.pitch, fragmented);
        let place = Extent { buffers: 0..BUFFERS, at: 0, len: 512 * PAGE, count: 1, step: 0 };
        let what = Content { seed: 1, at: 0, per_buffer: 1 << 40, per_piece: 0 };
        let (from, qps) = (rig.bufs[0], [rig.pair.ends[0].qp, rig.pair.ends[1].qp]);
        rig.pair.call(0, |f| f.stamp(from, &place, what)).unwrap();
        let one = |rig: &mut Rig| {
            let sge = [Sge { addr: rig.aux[0].addr, len: 64, lkey: rig.aux[0].lkey }];
            let writes = Batch {
                plan: &plan,
                first: WrId(0),
                op: Op::Write,
                local: (rig.mrs[0].addr, rig.mrs[0].lkey),
                remote: (rig.mrs[1].addr, rig.mrs[1].rkey),
                window: 0..plan.requests().min(most),
                signal_every: 0,
                signal_last: false,
                last: None,
            };
            let flags = Flags { signaled: true, inline: true, ..Flags::default() };
            let remote = (rig.aux[1].addr, rig.aux[1].rkey);
            let last = WorkRequest { id: WrId(9), op: Op::WriteImm(1), flags, local: &sge, remote };
            let mut out = [Completion::default(); 4];
            let pair = &mut rig.pair;
            pair.call(1, |f| f.post_recv(qps[1], Recv { first: WrId(1), count: 1, sges: &[] })).unwrap();
            pair.call(0, |f| f.post_send(qps[0], &[Item::Many(writes), Item::One(last)])).unwrap();
            pair.run();
            pair.ready.clear();
            let (a, b) = (pair.ends[0].send_cq, pair.ends[1].recv_cq);
            assert_eq!(pair.call(0, |f| f.poll(a, &mut out)), 1);
            assert_eq!(pair.call(1, |f| f.poll(b, &mut out)), 1);
            assert!(out[0].result.is_ok());
        };
        group.bench_function(name, |b| b.iter(|| one(&mut rig)));
    }
    group.finish();
}

criterion_group!(benches, memory, request);
criterion_main!(benches);
