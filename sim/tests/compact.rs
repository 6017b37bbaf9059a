//! A chain written as batches and the same chain request by request: same memory, same completions, same times.

mod common;

use common::{ALL, short};
use engine::fabric::{
    Batch, Completion, Content, Extent, Fabric, Grid, Item, Lane, Memory, Op, Plan, Recv, Run, Sge, Status,
    WorkRequest,
};
use engine::id::WrId;
use engine::time::{Span, Time};
use proptest::prelude::*;
use sim::fabric::pair::{Pair, PairSpec};
use sim::fabric::{Counters, Ready};
use sim::nic::{Bandwidth, Duration, Headers, NicProfile};
use std::sync::Arc;

const PAGE: u64 = 64;
const PAGES: u32 = 40;

/// A NIC in which every term costs something odd.
fn nic() -> NicProfile {
    let ns = |n| Duration(Span(n));
    NicProfile {
        build: ns(61_003),
        build_sge: ns(7_001),
        inline_copy: ns(3_001),
        doorbell: ns(101_003),
        poll: ns(50_021),
        doorbell_latency: ns(150_001),
        wqe_fetch: ns(303_007),
        payload_fetch: ns(401_009),
        transmit: ns(202_003),
        receive: ns(205_007),
        respond: ns(111_101),
        ack: ns(99_991),
        recv_cqe: ns(77_773),
        send_cqe: ns(77_777),
        qp_message: ns(91_009),
        nic_message: ns(5_003),
        pcie: Bandwidth(31_500_000_000),
        headers: Headers { ethernet: 82, infiniband: 26, reth: 16, immediate: 4, aeth: 4 },
        ..NicProfile::ideal()
    }
}

#[derive(Clone, Debug)]
struct Part {
    window: (u64, u64),
    every: u32,
    last: bool,
    imm: bool,
    read: bool,
    /// Cuts the target's registration short: somewhere a request fails.
    short: bool,
}

#[derive(Clone, Debug)]
struct Case {
    runs: Vec<(u64, u32, u16, bool)>,
    lanes: u32,
    chains: Vec<Vec<Part>>,
    kind: Memory,
    room: u32,
    gap: u64,
    stop: Option<u64>,
}

fn case() -> impl Strategy<Value = Case> {
    let part = ((0u64..30, 0u64..30), 0u32..9, any::<bool>(), any::<bool>(), 0..4, 0..5).prop_map(
        |(window, every, last, imm, read, short)| Part {
            window,
            every: if every > 3 { 0 } else { every },
            last,
            imm,
            read: read == 0,
            short: short == 0,
        },
    );
    let runs = proptest::collection::vec((0u64..3, 1u32..5, 1u16..4, any::<bool>()), 1..5);
    let chains = proptest::collection::vec(proptest::collection::vec(part, 1..4), 1..4);
    let kind = prop_oneof![Just(Memory::Host), Just(Memory::Phantom)];
    let room = prop_oneof![3 => Just(4096u32), 1 => 10u32..60];
    let stop = prop_oneof![3 => Just(None), 1 => (0u64..9_000_000).prop_map(Some)];
    (runs, 1u32..5, chains, kind, room, 0u64..2_000_000, stop).prop_map(
        |(runs, lanes, chains, kind, room, gap, stop)| Case { runs, lanes, chains, kind, room, gap, stop },
    )
}

fn plan(case: &Case) -> Arc<Plan> {
    let (mut runs, mut local, mut remote) = (Vec::new(), 0, 0);
    for &(gap, count, gather, joins) in &case.runs {
        local += gap * 8;
        let joins = joins && !runs.is_empty();
        if !joins {
            remote += gap * 16;
        }
        let count = if joins { 1 } else { count };
        runs.push(Run { local, remote, len: 24, count, local_step: 32, remote_step: 24, gather, joins });
        local += 32 * u64::from(count);
        remote += 24 * u64::from(count);
    }
    let pitch = PAGE * u64::from(PAGES);
    let lanes = (0..u64::from(case.lanes)).map(|i| Lane { local: i * pitch, remote: i * pitch }).collect();
    Arc::new(Plan::new(lanes, runs).unwrap())
}

#[derive(Debug, PartialEq)]
struct Seen {
    posts: Vec<Result<(), engine::fabric::Refused>>,
    cpu: Vec<Span>,
    ready: Vec<(Time, Ready)>,
    sends: Vec<Completion>,
    receives: Vec<(u64, Option<Status>)>,
    counters: Counters,
    end: Time,
    memory: Vec<bool>,
    bytes: Vec<Vec<u8>>,
}

fn run(case: &Case, compact: bool) -> Seen {
    let spec = PairSpec { nic: nic(), max_send: case.room, mtu: 256, ..PairSpec::default() };
    let mut pair = Pair::new(spec).unwrap();
    let plan = plan(case);
    let grid = Grid { buffers: 4, pitch: PAGE * u64::from(PAGES), pages: PAGES, page: PAGE };
    let place = Extent { buffers: 0..4, at: 0, len: 8, count: PAGES * 8, step: 8 };
    let what = |side: u64| Content { seed: side, at: 0, per_buffer: 1 << 20, per_piece: 8 };
    let mut make = |i: usize| {
        let port = pair.ends[i].port;
        pair.call(i, |f| {
            let buf = f.alloc(case.kind, grid).unwrap();
            f.stamp(buf, &place, what(i as u64)).unwrap();
            let whole = f.register(port, buf, 0..grid.len(), ALL).unwrap();
            (buf, whole, f.register(port, buf, 0..grid.pitch + 100, ALL).unwrap())
        })
    };
    let (own, other) = (make(0), make(1));
    let qps = [pair.ends[0].qp, pair.ends[1].qp];
    pair.call(1, |f| f.post_recv(qps[1], Recv { first: WrId(500), count: 100, sges: &[] })).unwrap();
    let mut seen = Seen {
        posts: Vec::new(),
        cpu: Vec::new(),
        ready: Vec::new(),
        sends: Vec::new(),
        receives: Vec::new(),
        counters: Counters::default(),
        end: Time::ZERO,
        memory: Vec::new(),
        bytes: Vec::new(),
    };
    for chain in &case.chains {
        let batches: Vec<Batch<'_>> = chain
            .iter()
            .enumerate()
            .map(|(i, part)| {
                let (a, b) = (part.window.0.min(plan.requests()), part.window.1.min(plan.requests()));
                let target = if part.short { &other.2 } else { &other.1 };
                Batch {
                    plan: &plan,
                    first: WrId(1000 * i as u64),
                    op: if part.read { Op::Read } else { Op::Write },
                    local: (own.1.addr, own.1.lkey),
                    remote: (target.addr, target.rkey),
                    window: a.min(b)..a.max(b),
                    signal_every: part.every,
                    signal_last: part.last,
                    last: (part.imm && !part.read).then_some(Op::WriteImm(i as u32)),
                }
            })
            .collect();
        let (result, cpu) = if compact {
            let items: Vec<Item<'_>> = batches.into_iter().map(Item::Many).collect();
            pair.timed(0, |f| f.post_send(qps[0], &items))
        } else {
            let mut all: Vec<(WorkRequest<'static>, Vec<Sge>)> = Vec::new();
            for batch in &batches {
                batch.for_each(|r| all.push((WorkRequest { local: &[], ..*r }, r.local.to_vec())));
            }
            let items: Vec<Item<'_>> =
                all.iter().map(|(r, local)| Item::One(WorkRequest { local, ..*r })).collect();
            pair.timed(0, |f| f.post_send(qps[0], &items))
        };
        seen.posts.push(result);
        seen.cpu.push(cpu);
        pair.run_for(Span(case.gap));
    }
    if let Some(at) = case.stop {
        pair.run_for(Span(at));
        pair.fabrics.fail_qp(0, qps[0], pair.now, &mut pair.queue, &mut pair.ready);
    }
    while pair.step() {
        let now = pair.now;
        seen.ready.extend(pair.ready.drain(..).map(|r| (now, r)));
    }
    seen.end = pair.now;
    seen.sends = pair.sends(0);
    seen.receives = short(&pair.receives(1));
    seen.counters = pair.fabrics.counters();
    for (side, buf) in [(0, own.0), (1, other.0)] {
        let f = pair.fabrics.host_ref(side);
        if case.kind == Memory::Host {
            let mut bytes = vec![0; grid.len() as usize];
            f.read(buf, 0, &mut bytes).unwrap();
            seen.bytes.push(bytes);
        }
        for k in 0..PAGES * 8 {
            for from in 0..2 {
                let piece = Extent { at: u64::from(k) * 8, count: 1, ..place.clone() };
                let name = Content { at: u64::from(k) * 8, ..what(from) };
                seen.memory.push(f.holds(buf, &piece, name).unwrap());
            }
        }
    }
    seen
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn compact_and_expanded_are_the_same(case in case()) {
        prop_assert_eq!(run(&case, true), run(&case, false));
    }
}
