//! Places in queues, and what becomes of what waits there when a queue pair fails.

use crate::common::{Rig, signaled};
use crate::{FLUSH, batch, events, plan, state};
use engine::fabric::{
    Batch, Error, Event, Fabric as _, Flags, Item, Lane, Op, Plan, QpSpec, QpState, Recv, Rts, Run, Sge,
    SrqSpec, Status, Step, WorkRequest,
};
use engine::id::{PortId, WrId};
use engine::time::Span;
use sim::fabric::pair::PairSpec;
use std::sync::Arc;

#[test]
fn unsignalled_requests_hold_their_place_until_a_later_completion_is_polled() {
    let mut rig = Rig::new(PairSpec { max_send: 4, ..PairSpec::default() });
    for i in 0..3 {
        rig.send(0, i, Op::Write, 0, 64, Flags::default());
    }
    rig.run();
    rig.send(0, 3, Op::Write, 0, 64, signaled());
    let sge = [rig.sge(0, 0, 64)];
    let one = |rig: &Rig, id| WorkRequest {
        id: WrId(id),
        op: Op::Write,
        flags: signaled(),
        local: &sge,
        remote: rig.remote(0, 0),
    };
    let full = one(&rig, 4);
    assert_eq!(rig.post(0, &[Item::One(full)]).unwrap_err().why, Error::QueueFull);
    rig.run();
    assert_eq!(
        rig.post(0, &[Item::One(full)]).unwrap_err().why,
        Error::QueueFull,
        "completed, but not polled"
    );
    assert_eq!(rig.sent(0), [(3, None)]);
    let chain: Vec<_> = (4..10).map(|i| Item::One(one(&rig, i))).collect();
    let refused = rig.post(0, &chain).unwrap_err();
    assert_eq!((refused.at, refused.why), (4, Error::QueueFull));
    rig.run();
    assert_eq!(
        rig.sent(0),
        [(4, None), (5, None), (6, None), (7, None)],
        "earlier ones of the chain are posted"
    );
}

#[test]
fn a_batch_is_posted_as_far_as_it_fits() {
    let mut rig = Rig::new(PairSpec { max_send: 6, ..PairSpec::default() });
    rig.fill(0, 0, 3, 640);
    rig.send(0, 1, Op::Write, 1024, 64, Flags::default());
    let plan = plan(10);
    let writes = Batch { signal_every: 2, ..batch(&rig, &plan) };
    let refused = rig.post(0, &[Item::Many(writes)]).unwrap_err();
    assert_eq!((refused.at, refused.why), (5, Error::QueueFull));
    rig.run();
    assert_eq!(rig.sent(0), [(101, None), (103, None)]);
    assert_eq!(rig.bytes(1, 0, 321), [vec![3; 320], vec![0]].concat());
}

#[test]
fn what_is_out_of_limits_is_refused_at_posting() {
    let mut rig = Rig::new(PairSpec { max_sge: 2, max_inline: 32, ..PairSpec::default() });
    let sge = rig.sge(0, 0, 16);
    let many = [sge, sge, sge];
    let ask = |rig: &mut Rig, op, flags, local: &[Sge]| {
        let request = WorkRequest { id: WrId(1), op, flags, local, remote: rig.remote(0, 0) };
        rig.post(0, &[Item::One(request)]).map_err(|r| r.why)
    };
    let inline = Flags { inline: true, ..Flags::default() };
    let invalid = |r: Result<(), Error>| matches!(r, Err(Error::Invalid { .. }));
    assert!(invalid(ask(&mut rig, Op::Write, Flags::default(), &many)));
    let big = [rig.sge(0, 0, 33)];
    assert!(invalid(ask(&mut rig, Op::Write, inline, &big)));
    assert!(invalid(ask(&mut rig, Op::Read, inline, &[sge])));
    assert!(invalid(ask(&mut rig, Op::FetchAdd(1), Flags::default(), &[sge])), "an atomic has 8 bytes");
    let huge = [Sge { len: 1 << 31, ..sge }, Sge { len: 1, ..sge }];
    assert!(invalid(ask(&mut rig, Op::Write, Flags::default(), &huge)));
    // In a batch, at the right request.
    let runs = vec![Run::piece(0, 0, 16), Run { count: 3, gather: 3, ..Run::piece(64, 64, 16) }];
    let plan = Arc::new(Plan::new(Arc::new([Lane { local: 0, remote: 0 }]), runs).unwrap());
    let writes = batch(&rig, &plan);
    let refused = rig.post(0, &[Item::Many(writes)]).unwrap_err();
    assert_eq!(refused.at, 1);
    assert!(matches!(refused.why, Error::Invalid { value: 3, .. }));
}

#[test]
fn completion_queue_overrun_fails_its_queue_pairs() {
    let mut rig = Rig::new(PairSpec { depth: 2, ..PairSpec::default() });
    for i in 0..3 {
        rig.send(0, i, Op::Write, 0, 64, signaled());
    }
    rig.run();
    let cq = rig.pair.ends[0].send_cq;
    assert_eq!(events(&mut rig, 0), [Event::CqOverrun(cq)]);
    assert_eq!(state(&rig, 0), QpState::Err);
    assert_eq!(rig.sent(0), [(0, None), (1, None)]);
}

#[test]
fn err_flushes_everything_in_order_and_shows_what_was_under_way() {
    let mut rig = Rig::ideal();
    rig.recv(1, 20, 3, &[]);
    rig.send(0, 1, Op::WriteImm(1), 0, 64, signaled());
    rig.send(0, 2, Op::Write, 0, 32_768, Flags::default());
    rig.send(0, 3, Op::Write, 0, 64, signaled());
    rig.pair.run_for(Span::ns(1100));
    let (a, b) = (rig.pair.ends[0].qp, rig.pair.ends[1].qp);
    rig.pair.call(1, |f| f.modify_qp(b, Step::Err)).unwrap();
    assert_eq!(rig.received(1), [(20, None), (21, FLUSH), (22, FLUSH)]);
    rig.pair.call(0, |f| f.modify_qp(a, Step::Err)).unwrap();
    assert_eq!(rig.sent(0), [(1, FLUSH), (2, FLUSH), (3, FLUSH)], "executed at the target, and flushed");
    rig.run();
    assert_eq!((rig.sent(0), rig.received(1)), (vec![], vec![]));
    assert!(rig.pair.fabrics.quiescent());
}

#[test]
fn what_left_before_a_failure_still_arrives_as_it_was() {
    let mut rig = Rig::ideal();
    rig.fill(0, 0, 1, 65_536);
    rig.recv(1, 20, 2, &[]);
    rig.send(0, 1, Op::WriteImm(1), 0, 4096, signaled());
    rig.send(0, 2, Op::WriteImm(2), 4096, 32_768, signaled());
    // 4096 bytes take 164 ns at 25 GB/s; 700 ns later about half of the second request has left.
    rig.pair.run_for(Span::ns(864));
    let a = rig.pair.ends[0].qp;
    rig.pair.call(0, |f| f.modify_qp(a, Step::Err)).unwrap();
    assert_eq!(rig.sent(0), [(1, FLUSH), (2, FLUSH)]);
    rig.fill(0, 0, 9, 65_536);
    rig.run();
    assert_eq!(rig.received(1), [(20, None)], "the second immediate was not sent");
    assert_eq!(rig.bytes(1, 0, 4096), vec![1; 4096], "not what was written afterwards");
    let arrived = rig.bytes(1, 4096, 32_768);
    let n = arrived.iter().take_while(|b| **b == 1).count();
    assert_eq!(n, 16_384, "whole packets");
    assert!(arrived[n..].iter().all(|b| *b == 0));
    assert!(rig.pair.fabrics.quiescent());
}

#[test]
fn a_fenced_target_takes_nothing_more() {
    let rts = Rts { timeout: 8, retry_cnt: 0, rnr_retry: 7, max_rd_atomic: 1 };
    let mut rig = Rig::new(PairSpec { rts, ..PairSpec::default() });
    rig.fill(0, 0, 1, 64);
    rig.send(0, 1, Op::Write, 0, 64, signaled());
    rig.pair.run_for(Span::ns(500));
    let b = rig.pair.ends[1].qp;
    rig.pair.call(1, |f| f.modify_qp(b, Step::Err)).unwrap();
    rig.run();
    assert_eq!(rig.bytes(1, 0, 64), [0; 64]);
    assert_eq!(rig.sent(0), [(1, Some(Status::RetryExc))]);
    // And both can be connected again.
    rig.pair.connect().unwrap();
    rig.send(0, 2, Op::Write, 0, 64, signaled());
    rig.run();
    assert_eq!(rig.sent(0), [(2, None)]);
    assert_eq!(rig.bytes(1, 0, 64), [1; 64]);
}

#[test]
fn a_queue_pair_that_fails_by_itself_says_so() {
    let mut rig = Rig::ideal();
    let qp = rig.pair.ends[0].qp;
    rig.recv(0, 5, 1, &[]);
    rig.send(0, 1, Op::Write, 0, 64, Flags::default());
    let now = rig.pair.now;
    rig.pair.fabrics.fail_qp(0, qp, now, &mut rig.pair.queue, &mut rig.pair.ready);
    assert_eq!((rig.sent(0), rig.received(0)), (vec![(1, FLUSH)], vec![(5, FLUSH)]));
    assert_eq!(events(&mut rig, 0), [Event::QpFatal(qp)]);
}

#[test]
fn shared_receives_are_not_flushed_and_tell_their_limit() {
    let mut rig = Rig::ideal();
    let end = rig.pair.ends[1];
    let spec = QpSpec {
        send_cq: end.send_cq,
        recv_cq: end.recv_cq,
        srq: None,
        max_send: 8,
        max_recv: 0,
        max_sge: 1,
        max_inline: 0,
    };
    let (srq, qp) = rig.pair.call(1, |f| {
        let srq = f.create_srq(PortId(0), SrqSpec { max_recv: 8, max_sge: 1 }).unwrap();
        let qp = f.create_qp(PortId(0), QpSpec { srq: Some(srq), ..spec }).unwrap();
        assert!(f.create_qp(PortId(0), QpSpec { srq: Some(srq), max_recv: 1, ..spec }).is_err());
        assert!(f.post_recv(qp, Recv { first: WrId(0), count: 1, sges: &[] }).is_err());
        f.post_srq_recv(srq, Recv { first: WrId(40), count: 3, sges: &[] }).unwrap();
        let refused = f.post_srq_recv(srq, Recv { first: WrId(50), count: 6, sges: &[] }).unwrap_err();
        assert_eq!((refused.at, refused.why), (5, Error::QueueFull));
        f.arm_srq(srq, 8).unwrap();
        assert_eq!(f.destroy_srq(srq), Err(Error::Busy("shared receive queue")));
        (srq, qp)
    });
    rig.pair.ends[1].qp = qp;
    rig.pair.connect().unwrap();
    assert_eq!(events(&mut rig, 1), []);
    rig.send(0, 1, Op::WriteImm(6), 0, 64, signaled());
    rig.run();
    assert_eq!(rig.received(1), [(40, None)]);
    assert_eq!(events(&mut rig, 1), [Event::SrqLimit(srq)]);
    rig.pair.call(1, |f| f.modify_qp(qp, Step::Err)).unwrap();
    assert_eq!(events(&mut rig, 1), [Event::LastWqeReached(qp)]);
    assert_eq!(rig.received(1), []);
    assert_eq!(rig.pair.fabrics.host_ref(1).objects().receives, 7);
}
