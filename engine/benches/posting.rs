//! What posting costs: [`Fabric::post_send`] through the verbs fabric's own [`Chain`], with a doorbell that does nothing, against a
//! bare loop that fills in the same `ibv_send_wr` and `ibv_sge`. The difference is what kvrail adds to a work request.
//!
//! Before criterion's figures it prints the difference, from measurements taken by turns in one run.

use criterion::{Criterion, Throughput, criterion_group};
use engine::fabric::verbs::post::{CHAIN, Caps, Chain, Doorbell, Ledger};
use engine::fabric::{
    Absent, Access, Batch, Completion, Content, Endpoint, Event, Extent, Fabric, Flags, Grid, Item, Lane,
    Limits, LocalCopy, Memory, Mr, Op, Plan, Port, QpSpec, QpState, Recv, Refused, Result, Run, Sge, SrqSpec,
    Step, Units, WorkRequest,
};
use engine::id::{BufId, CopyId, CqId, LKey, MrId, PortId, QpId, RKey, SrqId, WrId};
use ibverbs_sys as ffi;
use std::hint::black_box;
use std::ops::Range;
use std::ptr::null_mut;
use std::sync::Arc;
#[expect(clippy::disallowed_types, reason = "a benchmark measures real time")]
use std::time::Instant;

/// Layers of a model, and runs of pages in each: 61 x 16 requests.
const LANES: u64 = 61;
const RUNS: u64 = 16;
const REQUESTS: usize = (LANES * RUNS) as usize;
const PAGE: u32 = 16 * 1152;

/// Looks at the chain, as a device would, and takes it.
struct Null;

impl Doorbell for Null {
    fn ring(&mut self, head: *mut ffi::ibv_send_wr) -> Result<(), (usize, i32)> {
        black_box(head);
        Ok(())
    }
}

/// A fabric that can post and nothing else.
struct Poster {
    chain: Chain,
    ledger: Ledger,
    caps: Caps,
    rest: Absent,
}

impl Fabric for Poster {
    fn ports(&self) -> &[Port] {
        self.rest.ports()
    }
    fn limits(&self) -> &Limits {
        self.rest.limits()
    }
    fn reaches(&self, port: PortId, peer: &Endpoint) -> bool {
        self.rest.reaches(port, peer)
    }
    fn alloc(&mut self, kind: Memory, grid: Grid) -> Result<BufId> {
        self.rest.alloc(kind, grid)
    }
    fn free(&mut self, buf: BufId) -> Result<()> {
        self.rest.free(buf)
    }
    fn write(&mut self, buf: BufId, at: u64, bytes: &[u8]) -> Result<()> {
        self.rest.write(buf, at, bytes)
    }
    fn read(&self, buf: BufId, at: u64, bytes: &mut [u8]) -> Result<()> {
        self.rest.read(buf, at, bytes)
    }
    fn stamp(&mut self, buf: BufId, place: &Extent, what: Content) -> Result<()> {
        self.rest.stamp(buf, place, what)
    }
    fn holds(&self, buf: BufId, place: &Extent, what: Content) -> Result<bool> {
        self.rest.holds(buf, place, what)
    }
    fn checksum(&self, buf: BufId, place: &Extent, units: Units) -> Result<u64> {
        self.rest.checksum(buf, place, units)
    }
    fn flush(&mut self, buf: BufId) -> Result<()> {
        self.rest.flush(buf)
    }
    fn copy(&mut self, engine: u32, id: CopyId, parts: &[LocalCopy<'_>]) -> Result<()> {
        self.rest.copy(engine, id, parts)
    }
    fn register(&mut self, port: PortId, buf: BufId, span: Range<u64>, access: Access) -> Result<Mr> {
        self.rest.register(port, buf, span, access)
    }
    fn deregister(&mut self, mr: MrId) -> Result<()> {
        self.rest.deregister(mr)
    }
    fn create_cq(&mut self, port: PortId, depth: u32) -> Result<CqId> {
        self.rest.create_cq(port, depth)
    }
    fn destroy_cq(&mut self, cq: CqId) -> Result<()> {
        self.rest.destroy_cq(cq)
    }
    fn create_srq(&mut self, port: PortId, spec: SrqSpec) -> Result<SrqId> {
        self.rest.create_srq(port, spec)
    }
    fn arm_srq(&mut self, srq: SrqId, limit: u32) -> Result<()> {
        self.rest.arm_srq(srq, limit)
    }
    fn destroy_srq(&mut self, srq: SrqId) -> Result<()> {
        self.rest.destroy_srq(srq)
    }
    fn create_qp(&mut self, port: PortId, spec: QpSpec) -> Result<QpId> {
        self.rest.create_qp(port, spec)
    }
    fn endpoint(&self, qp: QpId) -> Result<Endpoint> {
        self.rest.endpoint(qp)
    }
    fn modify_qp(&mut self, qp: QpId, step: Step) -> Result<()> {
        self.rest.modify_qp(qp, step)
    }
    fn qp_state(&self, qp: QpId) -> Result<QpState> {
        self.rest.qp_state(qp)
    }
    fn destroy_qp(&mut self, qp: QpId) -> Result<()> {
        self.rest.destroy_qp(qp)
    }
    fn post_send(&mut self, _qp: QpId, chain: &[Item<'_>]) -> Result<(), Refused> {
        let all = |_, _| true;
        self.chain.post(chain, &self.caps, &mut self.ledger, &all, &mut Null)
    }
    fn post_recv(&mut self, qp: QpId, recv: Recv<'_>) -> Result<(), Refused> {
        self.rest.post_recv(qp, recv)
    }
    fn post_srq_recv(&mut self, srq: SrqId, recv: Recv<'_>) -> Result<(), Refused> {
        self.rest.post_srq_recv(srq, recv)
    }
    fn poll(&mut self, _cq: CqId, _into: &mut [Completion]) -> usize {
        // Every request was signalled at the end of its batch: its completion frees all places.
        self.ledger.complete();
        1
    }
    fn next_event(&mut self) -> Option<Event> {
        self.rest.next_event()
    }
}

fn poster() -> Poster {
    let caps = Caps { max_sge: 32, max_inline: 0, max_message: 1 << 31 };
    Poster { chain: Chain::default(), ledger: Ledger::new(REQUESTS as u32 + 1), caps, rest: Absent }
}

/// `gather` pages to a request, which touch at the target.
fn plan(gather: u16) -> Arc<Plan> {
    let page = u64::from(PAGE);
    let lane = |i: u64| Lane { local: i << 30, remote: i << 28 };
    let run = |i: u64| Run {
        count: gather.into(),
        local_step: 2 * page,
        remote_step: page,
        gather,
        ..Run::piece(i * 40 * page, i * 32 * page, PAGE)
    };
    let lanes: Arc<[Lane]> = (0..LANES).map(lane).collect();
    Arc::new(Plan::new(lanes, (0..RUNS).map(run).collect()).expect("runs are well-formed"))
}

const LOCAL: (u64, LKey) = (0x7f00_0000_0000, LKey(0x1234));
const REMOTE: (u64, RKey) = (0x7e00_0000_0000, RKey(0x5678));

fn post_batch(fabric: &mut dyn Fabric, plan: &Arc<Plan>) {
    let batch = Batch {
        plan,
        first: WrId(0),
        op: Op::Write,
        local: LOCAL,
        remote: REMOTE,
        window: 0..plan.requests(),
        signal_every: 0,
        signal_last: true,
        last: Some(Op::WriteImm(7)),
    };
    fabric.post_send(QpId(0), &[Item::Many(batch)]).expect("there is room");
    fabric.poll(CqId(0), &mut []);
}

fn singles(sges: &[Sge]) -> Vec<Item<'_>> {
    let one = |i: usize| {
        let last = i + 1 == REQUESTS;
        Item::One(WorkRequest {
            id: WrId(i as u64),
            op: if last { Op::WriteImm(7) } else { Op::Write },
            flags: Flags { signaled: last, ..Flags::default() },
            local: &sges[i..=i],
            remote: (REMOTE.0 + i as u64 * u64::from(PAGE), REMOTE.1),
        })
    };
    (0..REQUESTS).map(one).collect()
}

fn post_singles(fabric: &mut dyn Fabric, items: &[Item<'_>]) {
    fabric.post_send(QpId(0), items).expect("there is room");
    fabric.poll(CqId(0), &mut []);
}

/// The same structures, as a program for just this transfer would fill them in.
struct Bare {
    wrs: Vec<ffi::ibv_send_wr>,
    sges: Vec<ffi::ibv_sge>,
}

impl Bare {
    fn new() -> Self {
        Self { wrs: vec![Default::default(); CHAIN], sges: vec![Default::default(); CHAIN * 32] }
    }

    #[inline(never)]
    fn post(&mut self, gather: usize) {
        let page = u64::from(PAGE);
        let (mut n, mut s) = (0, 0);
        let base = self.wrs.as_mut_ptr();
        for lane in 0..black_box(LANES) {
            for run in 0..black_box(RUNS) {
                let local = LOCAL.0 + (lane << 30) + run * 40 * page;
                let sges = &mut self.sges[s..s + gather];
                for (k, sge) in sges.iter_mut().enumerate() {
                    *sge = ffi::ibv_sge { addr: local + k as u64 * 2 * page, length: PAGE, lkey: LOCAL.1.0 };
                }
                let index = lane * RUNS + run;
                let last = index + 1 == REQUESTS as u64;
                let wr = &mut self.wrs[n];
                wr.wr_id = index;
                wr.next = base.wrapping_add(n + 1);
                wr.sg_list = sges.as_mut_ptr();
                wr.num_sge = gather as i32;
                wr.opcode = if last {
                    ffi::ibv_wr_opcode::IBV_WR_RDMA_WRITE_WITH_IMM
                } else {
                    ffi::ibv_wr_opcode::IBV_WR_RDMA_WRITE
                };
                wr.send_flags = if last { ffi::ibv_send_flags::IBV_SEND_SIGNALED.0 } else { 0 };
                wr.__bindgen_anon_1.imm_data = if last { 7u32.to_be() } else { 0 };
                wr.wr.rdma = ffi::ibv_send_wr__bindgen_ty_2__bindgen_ty_1 {
                    remote_addr: REMOTE.0 + (lane << 28) + run * 32 * page,
                    rkey: REMOTE.1.0,
                };
                (n, s) = (n + 1, s + gather);
                if n == CHAIN || last {
                    self.wrs[n - 1].next = null_mut();
                    let _ = Null.ring(self.wrs.as_mut_ptr());
                    (n, s) = (0, 0);
                }
            }
        }
    }
}

/// Median nanoseconds per request of some things that are measured by turns.
fn by_turns<const N: usize>(mut things: [&mut dyn FnMut(); N]) -> [f64; N] {
    const ROUNDS: usize = 201;
    const REPEATS: usize = 20;
    let mut times = [(); N].map(|()| Vec::with_capacity(ROUNDS));
    for _ in 0..ROUNDS {
        for (thing, times) in things.iter_mut().zip(&mut times) {
            #[expect(clippy::disallowed_types, reason = "a benchmark measures real time")]
            let start = Instant::now();
            (0..REPEATS).for_each(|_| thing());
            times.push(start.elapsed().as_secs_f64() * 1e9 / (REPEATS * REQUESTS) as f64);
        }
    }
    times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[ROUNDS / 2]
    })
}

fn posting(c: &mut Criterion) {
    let sges: Vec<Sge> = (0..REQUESTS as u64)
        .map(|i| Sge { addr: LOCAL.0 + i * u64::from(PAGE), len: PAGE, lkey: LOCAL.1 })
        .collect();
    let items = singles(&sges);
    for gather in [1u16, 16] {
        let plan = plan(gather);
        assert_eq!(plan.requests(), REQUESTS as u64);
        let (mut bare, mut batches, mut ones) = (Bare::new(), poster(), poster());
        let [a, b, one] = by_turns([
            &mut || bare.post(gather.into()),
            &mut || post_batch(black_box(&mut batches), &plan),
            &mut || post_singles(black_box(&mut ones), &items),
        ]);
        println!("{gather} pages a request, ns per request: bare loop {a:.1}, batch {b:.1} (+{:.1})", b - a);
        if gather == 1 {
            println!("1 page a request, ns per request: single requests {one:.1} (+{:.1})", one - a);
        }
        let mut group = c.benchmark_group(format!("posting/{gather}"));
        group.throughput(Throughput::Elements(REQUESTS as u64));
        group.bench_function("bare", |b| b.iter(|| bare.post(gather.into())));
        group.bench_function("batch", |b| b.iter(|| post_batch(black_box(&mut batches), &plan)));
        if gather == 1 {
            group.bench_function("single", |b| b.iter(|| post_singles(black_box(&mut ones), &items)));
        }
        group.finish();
    }
}

criterion_group!(benches, posting);

fn main() {
    benches();
    Criterion::default().configure_from_args().final_summary();
}
