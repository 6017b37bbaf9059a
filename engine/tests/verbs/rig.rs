//! Two connected queue pairs on real devices, for tests.

use engine::fabric::verbs::{VerbsDuo, list};
use engine::fabric::{
    Access, Completion, Device, DeviceConfig, Duo, Error, Event, Fabric, Flags, Grid, Item, Memory, Mr, Op,
    QpSpec, QpState, Recv, RnrTimer, Rtr, Rts, Sge, Status, Step, WorkRequest,
};
use engine::id::{BufId, CqId, LKey, PortId, QpId, WrId};
use engine::time::Span;
use std::sync::{Mutex, PoisonError};

pub(crate) const ALL: Access =
    Access { local_write: true, remote_write: true, remote_read: true, remote_atomic: true };
pub(crate) const SIZE: u64 = 1 << 20;
pub(crate) const PORT: PortId = PortId(0);

/// Patience with what must happen. In a guest whose CPU is emulated, everything is slow.
const LONG: Span = Span::s(20);

/// One test at a time: they count what the process holds, and time out where CPUs are few.
static TURN: Mutex<()> = Mutex::new(());

/// The devices of the test machine: one that loops back, and two that reach each other.
pub(crate) fn pairs() -> impl Iterator<Item = [DeviceConfig; 2]> {
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    found().into_iter().inspect(move |_| {
        let _ = &turn;
    })
}

fn found() -> Vec<[DeviceConfig; 2]> {
    let there: Vec<String> = match list() {
        Ok(all) => all.into_iter().filter(|(_, info)| info.is_ok()).map(|(name, _)| name).collect(),
        Err(error) => {
            eprintln!("{error}");
            Vec::new()
        }
    };
    let config = |name: &str| DeviceConfig { devices: vec![name.into()], ..DeviceConfig::default() };
    let has = |name: &str| there.iter().any(|t| t == name);
    let mut pairs = Vec::new();
    for [a, b] in [["rxe0", "rxe0"], ["rxeA", "rxeB"]] {
        if has(a) && has(b) {
            pairs.push([config(a), config(b)]);
        }
    }
    if pairs.is_empty() {
        let message = format!("no rxe0, and no rxeA with rxeB; RDMA devices here: {there:?}");
        let required = std::env::var("KVRAIL_VERBS").is_ok_and(|v| v == "required");
        assert!(!required, "KVRAIL_VERBS=required, but {message}");
        eprintln!("SKIPPED: {message}");
    }
    pairs
}

/// How a rig is made.
#[derive(Clone, Copy)]
pub(crate) struct Spec {
    pub(crate) max_send: u32,
    pub(crate) max_recv: u32,
    pub(crate) max_sge: u32,
    pub(crate) depth: u32,
    pub(crate) access: Access,
    pub(crate) max_dest_rd_atomic: u8,
    pub(crate) min_rnr_timer: RnrTimer,
    pub(crate) rts: Rts,
    pub(crate) one_cq: bool,
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            max_send: 64,
            max_recv: 64,
            max_sge: 4,
            depth: 512,
            access: ALL,
            max_dest_rd_atomic: 4,
            min_rnr_timer: RnrTimer(1),
            rts: Rts { timeout: 14, retry_cnt: 2, rnr_retry: 7, max_rd_atomic: 4 },
            one_cq: false,
        }
    }
}

pub(crate) struct Rig {
    pub(crate) duo: VerbsDuo,
    pub(crate) bufs: [BufId; 2],
    pub(crate) mrs: [Mr; 2],
    pub(crate) send_cqs: [CqId; 2],
    pub(crate) recv_cqs: [CqId; 2],
    pub(crate) qps: [QpId; 2],
    pub(crate) spec: Spec,
}

pub(crate) fn signaled() -> Flags {
    Flags { signaled: true, ..Flags::default() }
}

/// Id, and status if it failed.
pub(crate) fn short(completions: &[Completion]) -> Vec<(u64, Option<Status>)> {
    completions.iter().map(|c| (c.id.0, c.result.err().map(|f| f.status))).collect()
}

impl Rig {
    pub(crate) fn new(configs: &[DeviceConfig; 2]) -> Self {
        Self::with(configs, Spec::default())
    }

    pub(crate) fn with(configs: &[DeviceConfig; 2], spec: Spec) -> Self {
        let mut rig = Self::unconnected(configs, spec);
        rig.connect();
        rig
    }

    pub(crate) fn unconnected(configs: &[DeviceConfig; 2], spec: Spec) -> Self {
        let mut duo = VerbsDuo::open([&configs[0], &configs[1]]).unwrap();
        let made = [0, 1].map(|side| {
            let f = duo.side(side);
            let buf = f.alloc(Memory::Host, Grid::bytes(SIZE)).unwrap();
            let mr = f.register(PORT, buf, 0..SIZE, ALL).unwrap();
            let send = f.create_cq(PORT, spec.depth).unwrap();
            let recv = if spec.one_cq { send } else { f.create_cq(PORT, spec.depth).unwrap() };
            let qp = QpSpec {
                send_cq: send,
                recv_cq: recv,
                srq: None,
                max_send: spec.max_send,
                max_recv: spec.max_recv,
                max_sge: spec.max_sge,
                max_inline: 64,
            };
            (buf, mr, send, recv, f.create_qp(PORT, qp).unwrap())
        });
        Self {
            duo,
            bufs: [made[0].0, made[1].0],
            mrs: [made[0].1, made[1].1],
            send_cqs: [made[0].2, made[1].2],
            recv_cqs: [made[0].3, made[1].3],
            qps: [made[0].4, made[1].4],
            spec,
        }
    }

    /// From any state to RTS.
    pub(crate) fn connect(&mut self) {
        let qps = self.qps;
        let ends = [0, 1].map(|side| {
            let f = self.duo.side(side);
            f.modify_qp(qps[side], Step::Reset).unwrap();
            f.modify_qp(qps[side], Step::Init(self.spec.access)).unwrap();
            f.endpoint(qps[side]).unwrap()
        });
        for side in 0..2 {
            let rtr = Rtr {
                peer: ends[1 - side],
                max_dest_rd_atomic: self.spec.max_dest_rd_atomic,
                min_rnr_timer: self.spec.min_rnr_timer,
            };
            let f = self.duo.side(side);
            assert!(f.reaches(PORT, &ends[1 - side]));
            f.modify_qp(qps[side], Step::Rtr(rtr)).unwrap();
            f.modify_qp(qps[side], Step::Rts(self.spec.rts)).unwrap();
        }
    }

    pub(crate) fn f(&mut self, side: usize) -> &mut dyn Fabric {
        self.duo.side(side)
    }

    pub(crate) fn fill(&mut self, side: usize, at: u64, byte: u8, len: usize) {
        let buf = self.bufs[side];
        self.f(side).write(buf, at, &vec![byte; len]).unwrap();
    }

    pub(crate) fn bytes(&mut self, side: usize, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let buf = self.bufs[side];
        self.f(side).read(buf, at, &mut bytes).unwrap();
        bytes
    }

    pub(crate) fn sge(&self, side: usize, at: u64, len: u32) -> Sge {
        Sge { addr: self.mrs[side].addr + at, len, lkey: self.mrs[side].lkey }
    }

    pub(crate) fn bad_sge(&self, side: usize, at: u64, len: u32) -> Sge {
        Sge { lkey: LKey(self.mrs[side].lkey.0 ^ 0xff), ..self.sge(side, at, len) }
    }

    pub(crate) fn remote(&self, side: usize, at: u64) -> (u64, engine::id::RKey) {
        (self.mrs[1 - side].addr + at, self.mrs[1 - side].rkey)
    }

    pub(crate) fn post(&mut self, side: usize, chain: &[Item<'_>]) -> Result<(), engine::fabric::Refused> {
        let qp = self.qps[side];
        self.f(side).post_send(qp, chain)
    }

    pub(crate) fn send(&mut self, side: usize, id: u64, op: Op, at: u64, len: u32, flags: Flags) {
        let local = [self.sge(side, at, len)];
        let remote = self.remote(side, at);
        let request = WorkRequest { id: WrId(id), op, flags, local: &local, remote };
        self.post(side, &[Item::One(request)]).unwrap();
    }

    pub(crate) fn recv(&mut self, side: usize, first: u64, count: u32, sges: &[Sge]) {
        let qp = self.qps[side];
        self.f(side).post_recv(qp, Recv { first: WrId(first), count, sges }).unwrap();
    }

    /// Waits for `n` completions and takes what is there then.
    #[track_caller]
    pub(crate) fn wait(&mut self, side: usize, cq: CqId, n: usize) -> Vec<Completion> {
        let (mut all, mut some) = (Vec::new(), [Completion::default(); 16]);
        let end = self.duo.now() + LONG;
        loop {
            let got = self.f(side).poll(cq, &mut some);
            all.extend_from_slice(&some[..got]);
            if got == 0 && all.len() >= n {
                return all;
            }
            assert!(self.duo.now() < end, "{n} completions are due, there are only {all:?}");
            self.duo.pass(end);
        }
    }

    #[track_caller]
    pub(crate) fn sent(&mut self, side: usize, n: usize) -> Vec<Completion> {
        let cq = self.send_cqs[side];
        self.wait(side, cq, n)
    }

    #[track_caller]
    pub(crate) fn received(&mut self, side: usize, n: usize) -> Vec<Completion> {
        let cq = self.recv_cqs[side];
        self.wait(side, cq, n)
    }

    pub(crate) fn state(&mut self, side: usize) -> QpState {
        let qp = self.qps[side];
        self.f(side).qp_state(qp).unwrap()
    }

    #[track_caller]
    pub(crate) fn becomes(&mut self, side: usize, state: QpState) {
        let end = self.duo.now() + LONG;
        while self.state(side) != state {
            assert!(self.duo.now() < end, "it stays {:?}", self.state(side));
            self.duo.pass(end);
        }
    }

    pub(crate) fn events(&mut self, side: usize) -> Vec<Event> {
        self.duo.side(side).wake();
        std::iter::from_fn(|| self.f(side).next_event()).collect()
    }

    #[track_caller]
    pub(crate) fn event(&mut self, side: usize, wanted: Event) {
        let end = self.duo.now() + LONG;
        while !self.events(side).contains(&wanted) {
            assert!(self.duo.now() < end, "{wanted:?} does not come");
            self.duo.pass(end);
        }
    }

    pub(crate) fn step(&mut self, side: usize, step: Step) -> Result<(), Error> {
        let qp = self.qps[side];
        self.f(side).modify_qp(qp, step)
    }

    /// Lets real time pass.
    pub(crate) fn sleep(&mut self, time: Span) {
        let end = self.duo.now() + time;
        while self.duo.now() < end {
            self.duo.pass(end);
        }
    }
}
