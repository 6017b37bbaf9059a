//! Ways to fail that need queues and attributes which random programs do not have.

use engine::fabric::{
    Completion, Duo, Event, Fabric, Flags, Grid, Item, Memory, Mr, Op, QpSpec, QpState, RnrTimer, Rtr, Rts,
    Sge, Status, Step, WorkRequest,
};
use engine::id::{BufId, CqId, PortId, QpId, WrId};
use engine::time::Span;
use kvrail_tests::conformance::run::on;
use kvrail_tests::conformance::script::ALL;
use sim::fabric::duo::{DuoSpec, SimDuo};

const PORT: PortId = PortId(0);

/// Two connected queue pairs, with one completion queue and 4 KiB on each side.
struct Rig<'a> {
    duo: &'a mut dyn Duo,
    bufs: [BufId; 2],
    mrs: [Mr; 2],
    cqs: [CqId; 2],
    qps: [QpId; 2],
}

impl<'a> Rig<'a> {
    fn new(duo: &'a mut dyn Duo, depth: u32, (asked, answered): (u8, u8)) -> Self {
        let mut made = [0, 1].map(|side| {
            Some(on(duo, side, |f| {
                let buf = f.alloc(Memory::Host, Grid::bytes(4096)).unwrap();
                let mr = f.register(PORT, buf, 0..4096, ALL).unwrap();
                let cq = f.create_cq(PORT, depth).unwrap();
                let spec = QpSpec {
                    send_cq: cq,
                    recv_cq: cq,
                    srq: None,
                    max_send: 63,
                    max_recv: 1,
                    max_sge: 1,
                    max_inline: 0,
                };
                let qp = f.create_qp(PORT, spec).unwrap();
                f.modify_qp(qp, Step::Init(ALL)).unwrap();
                (buf, mr, cq, qp, f.endpoint(qp).unwrap())
            }))
        });
        let [a, b] = made.each_mut().map(|side| side.take().unwrap());
        for (side, (own, peer)) in [(a.3, b.4), (b.3, a.4)].into_iter().enumerate() {
            let rtr = Rtr { peer, max_dest_rd_atomic: answered, min_rnr_timer: RnrTimer(1) };
            let rts = Rts { timeout: 12, retry_cnt: 7, rnr_retry: 7, max_rd_atomic: asked };
            on(duo, side, |f| {
                f.modify_qp(own, Step::Rtr(rtr)).unwrap();
                f.modify_qp(own, Step::Rts(rts)).unwrap();
            });
        }
        Self { duo, bufs: [a.0, b.0], mrs: [a.1, b.1], cqs: [a.2, b.2], qps: [a.3, b.3] }
    }

    /// Signalled requests of 64 bytes from side 0.
    fn post(&mut self, op: Op, count: u64) {
        let sge = [Sge { addr: self.mrs[0].addr, len: 64, lkey: self.mrs[0].lkey }];
        let flags = Flags { signaled: true, ..Flags::default() };
        let remote = (self.mrs[1].addr, self.mrs[1].rkey);
        let one = |id| Item::One(WorkRequest { id: WrId(id), op, flags, local: &sge, remote });
        let chain: Vec<Item<'_>> = (1..=count).map(one).collect();
        let qp = self.qps[0];
        on(self.duo, 0, |f| f.post_send(qp, &chain)).unwrap();
    }

    /// Lets time pass until `done` says so, at most two seconds.
    fn wait(&mut self, mut done: impl FnMut(&mut dyn Fabric) -> bool) -> bool {
        let until = self.duo.now() + Span::s(2);
        while self.duo.now() < until {
            if on(self.duo, 0, &mut done) {
                return true;
            }
            if !self.duo.pass(until) {
                break;
            }
        }
        on(self.duo, 0, &mut done)
    }

    fn clean(self) {
        for side in 0..2 {
            let (buf, mr, cq, qp) = (self.bufs[side], self.mrs[side].id, self.cqs[side], self.qps[side]);
            on(self.duo, side, |f| {
                f.destroy_qp(qp).unwrap();
                f.destroy_cq(cq).unwrap();
                f.deregister(mr).unwrap();
                f.free(buf).unwrap();
            });
        }
    }
}

/// Completions that nobody took in time: the queue says so, and its queue pairs fail.
fn overrun(duo: &mut dyn Duo) {
    let mut rig = Rig::new(duo, 7, (1, 1));
    rig.post(Op::Write, 40);
    let (cq, qp) = (rig.cqs[0], rig.qps[0]);
    let mut events = Vec::new();
    let told = rig.wait(|f| {
        events.extend(std::iter::from_fn(|| f.next_event()));
        events.contains(&Event::CqOverrun(cq)) && f.qp_state(qp) == Ok(QpState::Err)
    });
    assert!(told, "no overrun: {events:?}");
    rig.clean();
}

/// READs to a queue pair that answers none.
fn reads_that_nobody_answers(duo: &mut dyn Duo) {
    let mut rig = Rig::new(duo, 64, (1, 0));
    rig.post(Op::Read, 2);
    let cq = rig.cqs[0];
    let mut taken = Vec::new();
    rig.wait(|f| {
        let mut some = [Completion::default(); 4];
        let n = f.poll(cq, &mut some);
        taken.extend(some[..n].iter().map(|c| (c.id.0, c.result.err().map(|failed| failed.status))));
        taken.len() >= 2
    });
    assert_eq!(taken, [(1, Some(Status::RemInvReq)), (2, Some(Status::WrFlush))]);
    rig.clean();
}

fn everywhere(check: fn(&mut dyn Duo)) {
    check(&mut SimDuo::new(DuoSpec::default()).unwrap());
    #[cfg(feature = "verbs")]
    crate::real::everywhere(check);
}

#[test]
fn a_completion_queue_that_overruns() {
    everywhere(overrun);
}

#[test]
fn reads_that_nobody_answers_are_invalid() {
    everywhere(reads_that_nobody_answers);
}
