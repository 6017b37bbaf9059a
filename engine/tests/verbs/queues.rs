//! Places in queues.

use crate::rig::{PORT, Rig, Spec, pairs, short, signaled};
use crate::{FLUSH, batch_of, plan};
use engine::fabric::{
    Batch, Error, Event, Flags, Item, Lane, Op, Plan, QpSpec, QpState, Recv, Run, Sge, SrqSpec, Step,
    WorkRequest,
};
use engine::id::WrId;
use engine::time::Span;
use std::sync::Arc;

#[test]
fn a_full_send_queue_says_where_it_stopped() {
    for pair in pairs() {
        let mut rig = Rig::with(&pair, Spec { max_send: 6, ..Spec::default() });
        rig.fill(1, 0, 0, 1024);
        rig.fill(0, 0, 3, 1024);
        rig.send(0, 1, Op::Write, 1024, 64, Flags::default());
        let plan = plan(10);
        let writes = Batch { signal_every: 2, ..batch_of(&plan, &rig.mrs[0], &rig.mrs[1]) };
        let refused = rig.post(0, &[Item::Many(writes)]).unwrap_err();
        assert_eq!((refused.at, refused.why), (5, Error::QueueFull));
        rig.sleep(Span::ms(20));
        let sge = [rig.sge(0, 0, 64)];
        let remote = rig.remote(0, 0);
        let one = |id| WorkRequest { id: WrId(id), op: Op::Write, flags: signaled(), local: &sge, remote };
        let refused = rig.post(0, &[Item::One(one(50))]).unwrap_err();
        assert_eq!(refused.why, Error::QueueFull, "completed, but not polled");
        assert_eq!(short(&rig.sent(0, 2)), [(101, None), (103, None)]);
        assert_eq!(rig.bytes(1, 0, 321), [vec![3; 320], vec![0]].concat());
        // The last unsignalled one holds its place.
        let chain: Vec<_> = (0..9).map(|i| Item::One(one(i))).collect();
        let refused = rig.post(0, &chain).unwrap_err();
        assert_eq!((refused.at, refused.why), (5, Error::QueueFull));
        assert_eq!(rig.sent(0, 5).len(), 5);
        rig.post(0, &chain[..6]).unwrap();
        assert_eq!(rig.sent(0, 6).len(), 6);
    }
}

#[test]
fn a_full_receive_queue_says_where_it_stopped() {
    for pair in pairs() {
        let mut rig = Rig::with(&pair, Spec { max_recv: 100, ..Spec::default() });
        let qp = rig.qps[1];
        let refused = rig.f(1).post_recv(qp, Recv { first: WrId(0), count: 130, sges: &[] }).unwrap_err();
        assert_eq!((refused.at, refused.why), (100, Error::QueueFull));
        rig.send(0, 1, Op::WriteImm(1), 0, 64, signaled());
        rig.sent(0, 1);
        // What a message consumed has left the queue, although nobody polled yet.
        let refused = rig.f(1).post_recv(qp, Recv { first: WrId(200), count: 2, sges: &[] }).unwrap_err();
        assert_eq!((refused.at, refused.why), (1, Error::QueueFull));
        assert_eq!(short(&rig.received(1, 1)), [(0, None)]);
        rig.step(1, Step::Err).unwrap();
        let want: Vec<_> = (1..100).chain([200]).map(|id| (id, FLUSH)).collect();
        assert_eq!(short(&rig.received(1, 100)), want);
    }
}

#[test]
fn what_is_out_of_limits_is_refused_at_posting() {
    for pair in pairs() {
        let mut rig = Rig::with(&pair, Spec { max_sge: 2, ..Spec::default() });
        let sge = rig.sge(0, 0, 16);
        let many = [sge, sge, sge];
        let ask = |rig: &mut Rig, op, flags, local: &[Sge]| {
            let request = WorkRequest { id: WrId(1), op, flags, local, remote: rig.remote(0, 0) };
            rig.post(0, &[Item::One(request)]).map_err(|r| r.why)
        };
        let inline = Flags { inline: true, ..Flags::default() };
        let invalid = |r: Result<(), Error>| matches!(r, Err(Error::Invalid { .. }));
        assert!(invalid(ask(&mut rig, Op::Write, Flags::default(), &many)));
        let big = [rig.sge(0, 0, 65)];
        assert!(invalid(ask(&mut rig, Op::Write, inline, &big)));
        assert!(invalid(ask(&mut rig, Op::Read, inline, &[sge])));
        assert!(invalid(ask(&mut rig, Op::FetchAdd(1), Flags::default(), &[sge])), "an atomic has 8 bytes");
        let huge = [Sge { len: 1 << 31, ..sge }, Sge { len: 1, ..sge }];
        assert!(invalid(ask(&mut rig, Op::Write, Flags::default(), &huge)));
        let runs = vec![Run::piece(0, 0, 16), Run { count: 3, gather: 3, ..Run::piece(64, 64, 16) }];
        let plan = Arc::new(Plan::new(Arc::new([Lane { local: 0, remote: 0 }]), runs).unwrap());
        let writes = batch_of(&plan, &rig.mrs[0], &rig.mrs[1]);
        let refused = rig.post(0, &[Item::Many(writes)]).unwrap_err();
        assert_eq!(refused.at, 1);
        assert!(matches!(refused.why, Error::Invalid { value: 3, .. }));
        let qp = rig.qps[0];
        let refused = rig.f(0).post_recv(qp, Recv { first: WrId(0), count: 1, sges: &many }).unwrap_err();
        assert!(matches!(refused.why, Error::Invalid { value: 3, .. }));
    }
}

#[test]
fn completion_queue_overrun_fails_its_queue_pairs() {
    for pair in pairs() {
        let mut rig = Rig::with(&pair, Spec { depth: 2, ..Spec::default() });
        for i in 0..60 {
            rig.send(0, i, Op::Write, 0, 64, signaled());
        }
        let cq = rig.send_cqs[0];
        rig.event(0, Event::CqOverrun(cq));
        rig.becomes(0, QpState::Err);
    }
}

#[test]
fn shared_receives_are_not_flushed_and_tell_their_limit() {
    for pair in pairs() {
        let mut rig = Rig::unconnected(&pair, Spec::default());
        let (send_cq, recv_cq, old) = (rig.send_cqs[1], rig.recv_cqs[1], rig.qps[1]);
        let spec =
            QpSpec { send_cq, recv_cq, srq: None, max_send: 8, max_recv: 0, max_sge: 1, max_inline: 0 };
        let f = rig.f(1);
        f.destroy_qp(old).unwrap();
        let srq = f.create_srq(PORT, SrqSpec { max_recv: 8, max_sge: 1 }).unwrap();
        let qp = f.create_qp(PORT, QpSpec { srq: Some(srq), ..spec }).unwrap();
        assert!(f.create_qp(PORT, QpSpec { srq: Some(srq), max_recv: 1, ..spec }).is_err());
        assert!(f.post_recv(qp, Recv { first: WrId(0), count: 1, sges: &[] }).is_err());
        f.post_srq_recv(srq, Recv { first: WrId(40), count: 3, sges: &[] }).unwrap();
        let refused = f.post_srq_recv(srq, Recv { first: WrId(50), count: 6, sges: &[] }).unwrap_err();
        assert_eq!((refused.at, refused.why), (5, Error::QueueFull));
        f.arm_srq(srq, 8).unwrap();
        assert_eq!(f.destroy_srq(srq), Err(Error::Busy("shared receive queue")));
        rig.qps[1] = qp;
        rig.connect();
        assert_eq!(rig.events(1), []);
        rig.send(0, 1, Op::WriteImm(6), 0, 64, signaled());
        let recv = rig.received(1, 1);
        assert_eq!((short(&recv), recv[0].qp), (vec![(40, None)], qp));
        rig.event(1, Event::SrqLimit(srq));
        // Below the limit already: told at once.
        rig.f(1).arm_srq(srq, 8).unwrap();
        assert_eq!(rig.events(1), [Event::SrqLimit(srq)]);
        rig.f(1).modify_qp(qp, Step::Err).unwrap();
        assert_eq!(rig.events(1), [Event::LastWqeReached(qp)]);
        assert_eq!(rig.received(1, 0), []);
        // They serve the next connection.
        rig.connect();
        rig.send(0, 2, Op::WriteImm(7), 0, 64, signaled());
        assert_eq!(short(&rig.received(1, 1)), [(41, None)]);
        let f = rig.f(1);
        f.post_srq_recv(srq, Recv { first: WrId(60), count: 2, sges: &[] }).unwrap();
        f.destroy_qp(qp).unwrap();
        f.destroy_srq(srq).unwrap();
    }
}
