//! Requests that fail.

use crate::FLUSH;
use crate::rig::{ALL, PORT, Rig, SIZE, Spec, pairs, short, signaled};
use engine::fabric::{Access, Flags, Item, Op, QpState, Rts, Status, WorkRequest};
use engine::id::{RKey, WrId};
use engine::time::Span;

/// Posts `bad` between good requests; the chain must stop there. Then the connection is made anew, and works.
fn fails_with(rig: &mut Rig, bad: WorkRequest<'_>, statuses: &[Status], responder: QpState) {
    let good = [rig.sge(0, 0, 64)];
    let remote = rig.remote(0, 0);
    let ok = |id, signaled| WorkRequest {
        id: WrId(id),
        op: Op::Write,
        flags: Flags { signaled, ..Flags::default() },
        local: &good,
        remote,
    };
    let chain = [ok(1, true), ok(2, false), bad, ok(4, false), ok(5, true)].map(Item::One);
    rig.post(0, &chain).unwrap();
    let sent = short(&rig.sent(0, 4));
    assert_eq!([sent[0], sent[2], sent[3]], [(1, None), (4, FLUSH), (5, FLUSH)], "{sent:?}");
    assert!(sent[1].0 == bad.id.0 && statuses.contains(&sent[1].1.unwrap()), "{sent:?}");
    rig.becomes(0, QpState::Err);
    rig.becomes(1, responder);
    rig.connect();
    rig.send(0, 6, Op::Write, 0, 64, signaled());
    assert_eq!(short(&rig.sent(0, 1)), [(6, None)]);
}

#[test]
fn bad_rkey_range_or_right_is_remote_access_error() {
    let key = |rig: &Rig| (rig.mrs[1].addr, RKey(rig.mrs[1].rkey.0 ^ 0xff));
    let range = |rig: &Rig| (rig.mrs[1].addr + SIZE - 32, rig.mrs[1].rkey);
    let below = |rig: &Rig| (rig.mrs[1].addr - 1, rig.mrs[1].rkey);
    for pair in pairs() {
        let mut rig = Rig::new(&pair);
        rig.fill(1, 0, 0, SIZE as usize);
        rig.fill(0, 0, 5, 64);
        for target in [key as fn(&Rig) -> _, range, below] {
            let sge = [rig.sge(0, 0, 64)];
            let remote = target(&rig);
            let flags = Flags::default();
            let bad = WorkRequest { id: WrId(3), op: Op::Write, flags, local: &sge, remote };
            fails_with(&mut rig, bad, &[Status::RemAccess], QpState::Err);
        }
        assert_eq!(rig.bytes(1, SIZE - 32, 32), [0; 32]);
        let buf = rig.bufs[1];
        for (op, len) in [(Op::Write, 64), (Op::Read, 64), (Op::FetchAdd(1), 8)] {
            let mr = rig.f(1).register(PORT, buf, 0..SIZE, Access::LOCAL).unwrap();
            let sge = [rig.sge(0, 0, len)];
            let remote = (mr.addr, mr.rkey);
            let bad = WorkRequest { id: WrId(3), op, flags: Flags::default(), local: &sge, remote };
            fails_with(&mut rig, bad, &[Status::RemAccess], QpState::Err);
            // A key that was valid, and is no more.
            let mr2 = rig.f(1).register(PORT, buf, 0..SIZE, ALL).unwrap();
            rig.f(1).deregister(mr2.id).unwrap();
            rig.f(1).deregister(mr.id).unwrap();
            let bad = WorkRequest { remote: (mr2.addr, mr2.rkey), ..bad };
            fails_with(&mut rig, bad, &[Status::RemAccess], QpState::Err);
        }
    }
}

#[test]
fn bad_local_key_is_a_local_error() {
    for pair in pairs() {
        let mut rig = Rig::new(&pair);
        let sge = [rig.bad_sge(0, 0, 64)];
        let remote = rig.remote(0, 0);
        let flags = Flags::default();
        let bad = WorkRequest { id: WrId(3), op: Op::Write, flags, local: &sge, remote };
        // The specification: LOC_PROT_ERR. Linux 6.12: WR_FLUSH_ERR.
        fails_with(&mut rig, bad, &[Status::LocProt, Status::LocQpOp, Status::WrFlush], QpState::Rts);
    }
}

#[test]
fn a_failed_end_says_so() {
    for pair in pairs() {
        let mut rig = Rig::new(&pair);
        let sge = [rig.sge(0, 0, 64)];
        let remote = (rig.mrs[1].addr, RKey(1));
        let request = WorkRequest { id: WrId(1), op: Op::Write, flags: signaled(), local: &sge, remote };
        rig.recv(1, 5, 2, &[]);
        rig.post(0, &[Item::One(request)]).unwrap();
        let sent = rig.sent(0, 1);
        assert_eq!(short(&sent), [(1, Some(Status::RemAccess))]);
        assert_eq!(short(&rig.received(1, 2)), [(5, FLUSH), (6, FLUSH)]);
        assert_eq!(rig.state(1), QpState::Err);
    }
}

#[test]
fn a_receive_that_is_too_small_fails_both_ends() {
    for pair in pairs() {
        let mut rig = Rig::new(&pair);
        let into = [rig.sge(1, 0, 32)];
        rig.recv(1, 4, 2, &into);
        rig.send(0, 1, Op::Send, 0, 64, signaled());
        // The specification: REM_INV_REQ_ERR, and LOC_LEN_ERR.
        let sent = short(&rig.sent(0, 1));
        assert!(matches!(sent[..], [(1, Some(Status::RemOp | Status::RemInvReq))]), "{sent:?}");
        let recv = short(&rig.received(1, 2));
        assert!(matches!(recv[0], (4, Some(Status::LocQpOp | Status::LocLen))), "{recv:?}");
        assert_eq!(recv[1], (5, FLUSH));
        assert_eq!((rig.state(0), rig.state(1)), (QpState::Err, QpState::Err));
    }
}

#[test]
fn no_receive_is_retried_then_fails() {
    for pair in pairs() {
        let rts = Rts { rnr_retry: 1, ..Spec::default().rts };
        let mut rig = Rig::with(&pair, Spec { rts, ..Spec::default() });
        rig.send(0, 1, Op::WriteImm(1), 0, 64, signaled());
        rig.send(0, 2, Op::Write, 0, 64, Flags::default());
        assert_eq!(short(&rig.sent(0, 2)), [(1, Some(Status::RnrRetryExc)), (2, FLUSH)]);
        assert_eq!(rig.state(1), QpState::Rts);
        // For ever: it is delivered when the receive comes.
        let mut rig = Rig::new(&pair);
        rig.send(0, 1, Op::WriteImm(1), 0, 64, signaled());
        rig.sleep(Span::ms(20));
        assert_eq!(rig.sent(0, 0), []);
        rig.recv(1, 4, 1, &[]);
        assert_eq!(short(&rig.sent(0, 1)), [(1, None)]);
        assert_eq!(short(&rig.received(1, 1)), [(4, None)]);
    }
}

#[test]
fn nobody_there_is_retry_exceeded() {
    for pair in pairs() {
        let mut rig = Rig::new(&pair);
        let qp = rig.qps[1];
        rig.f(1).destroy_qp(qp).unwrap();
        rig.send(0, 1, Op::Write, 0, 64, Flags::default());
        rig.send(0, 2, Op::Write, 0, 64, signaled());
        assert_eq!(short(&rig.sent(0, 2)), [(1, Some(Status::RetryExc)), (2, FLUSH)]);
        assert_eq!(rig.state(0), QpState::Err);
    }
}
