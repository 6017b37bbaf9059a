//! Queue-pair states, and what each takes.

use crate::FLUSH;
use crate::rig::{ALL, Rig, Spec, pairs, short, signaled};
use engine::fabric::{
    Completion, Error, Fabric, Item, Op, QpState, Recv, RnrTimer, Rtr, Rts, Step, WorkRequest,
};
use engine::id::{RKey, WrId};
use engine::time::Span;

#[test]
fn every_state_change_is_as_the_table_says() {
    use QpState as S;
    for pair in pairs() {
        let mut rig = Rig::unconnected(&pair, Spec::default());
        let (qp, other) = (rig.qps[0], rig.qps[1]);
        let peer = rig.f(1).endpoint(other).unwrap();
        let rtr = Step::Rtr(Rtr { peer, max_dest_rd_atomic: 1, min_rnr_timer: RnrTimer(12) });
        let rts = Step::Rts(Rts { timeout: 14, retry_cnt: 7, rnr_retry: 7, max_rd_atomic: 1 });
        let init = Step::Init(ALL);
        let path = |to: S| -> Vec<Step> {
            match to {
                S::Reset => vec![],
                S::Init => vec![init],
                S::Rtr => vec![init, rtr],
                S::Rts => vec![init, rtr, rts],
                S::Err => vec![init, Step::Err],
            }
        };
        let allowed = |from: S, step: &Step| match step {
            Step::Reset => Some(S::Reset),
            Step::Err => (from != S::Reset).then_some(S::Err),
            Step::Init(_) => matches!(from, S::Reset | S::Init).then_some(S::Init),
            Step::Rtr(_) => (from == S::Init).then_some(S::Rtr),
            Step::Rts(_) => (from == S::Rtr).then_some(S::Rts),
        };
        let f = rig.f(0);
        for from in [S::Reset, S::Init, S::Rtr, S::Rts, S::Err] {
            for step in [Step::Reset, Step::Err, init, rtr, rts] {
                f.modify_qp(qp, Step::Reset).unwrap();
                path(from).into_iter().for_each(|s| f.modify_qp(qp, s).unwrap());
                assert_eq!(f.qp_state(qp), Ok(from));
                let before = f.endpoint(qp).unwrap();
                let result = f.modify_qp(qp, step);
                let after = f.qp_state(qp).unwrap();
                match allowed(from, &step) {
                    Some(to) => assert_eq!((result, after), (Ok(()), to), "{from:?} {step:?}"),
                    None => {
                        assert!(
                            matches!(result, Err(Error::State { state, .. }) if state == from),
                            "{step:?}"
                        );
                        assert_eq!((after, f.endpoint(qp).unwrap()), (from, before));
                    }
                }
            }
        }
        let psns: Vec<u32> = (0..4)
            .map(|_| {
                f.modify_qp(qp, Step::Reset).unwrap();
                f.modify_qp(qp, init).unwrap();
                f.endpoint(qp).unwrap().psn
            })
            .collect();
        assert!(psns.windows(2).all(|w| w[0] != w[1] && w[0] <= 0xff_ffff), "{psns:?}");
    }
}

#[test]
fn attributes_out_of_range_are_refused_and_change_nothing() {
    for pair in pairs() {
        let mut rig = Rig::unconnected(&pair, Spec::default());
        let (qp, other) = (rig.qps[0], rig.qps[1]);
        let peer = rig.f(1).endpoint(other).unwrap();
        let rtr = Rtr { peer, max_dest_rd_atomic: 1, min_rnr_timer: RnrTimer(12) };
        let rts = Rts { timeout: 14, retry_cnt: 7, rnr_retry: 7, max_rd_atomic: 1 };
        let f = rig.f(0);
        f.modify_qp(qp, Step::Init(ALL)).unwrap();
        for bad in [
            Rtr { min_rnr_timer: RnrTimer(32), ..rtr },
            Rtr { max_dest_rd_atomic: 255, ..rtr },
            Rtr { peer: engine::fabric::Endpoint { qpn: 1 << 24, ..peer }, ..rtr },
            Rtr { peer: engine::fabric::Endpoint { psn: 1 << 24, ..peer }, ..rtr },
            Rtr { peer: engine::fabric::Endpoint { mtu: 1500, ..peer }, ..rtr },
        ] {
            assert!(matches!(f.modify_qp(qp, Step::Rtr(bad)), Err(Error::Invalid { .. })));
            assert_eq!(f.qp_state(qp), Ok(QpState::Init));
        }
        f.modify_qp(qp, Step::Rtr(rtr)).unwrap();
        for bad in [
            Rts { timeout: 32, ..rts },
            Rts { retry_cnt: 8, ..rts },
            Rts { rnr_retry: 8, ..rts },
            Rts { max_rd_atomic: 255, ..rts },
        ] {
            assert!(matches!(f.modify_qp(qp, Step::Rts(bad)), Err(Error::Invalid { .. })));
            assert_eq!(f.qp_state(qp), Ok(QpState::Rtr));
        }
    }
}

#[test]
fn sends_need_rts_and_receives_init() {
    for pair in pairs() {
        let mut rig = Rig::unconnected(&pair, Spec::default());
        let (qp, other) = (rig.qps[0], rig.qps[1]);
        let peer = rig.f(1).endpoint(other).unwrap();
        let request =
            WorkRequest { id: WrId(1), op: Op::Write, flags: signaled(), local: &[], remote: (0, RKey(0)) };
        let recv = Recv { first: WrId(7), count: 2, sges: &[] };
        let f = rig.f(0);
        let send = |f: &mut dyn Fabric| f.post_send(qp, &[Item::One(request)]).map_err(|r| r.why);
        assert!(matches!(send(f), Err(Error::State { state: QpState::Reset, .. })));
        assert!(matches!(f.post_recv(qp, recv).map_err(|r| r.why), Err(Error::State { .. })));
        f.modify_qp(qp, Step::Init(ALL)).unwrap();
        assert!(matches!(send(f), Err(Error::State { state: QpState::Init, .. })));
        assert_eq!(f.post_recv(qp, recv), Ok(()));
        let rtr = Rtr { peer, max_dest_rd_atomic: 1, min_rnr_timer: RnrTimer(12) };
        f.modify_qp(qp, Step::Rtr(rtr)).unwrap();
        assert!(matches!(send(f), Err(Error::State { state: QpState::Rtr, .. })));
        f.modify_qp(qp, Step::Err).unwrap();
        let mut done = [Completion::default(); 8];
        let cq = rig.recv_cqs[0];
        let n = rig.f(0).poll(cq, &mut done);
        assert_eq!(short(&done[..n]), [(7, FLUSH), (8, FLUSH)], "there at once");
        // Posted in ERR they complete flushed.
        assert_eq!(send(rig.f(0)), Ok(()));
        rig.recv(0, 20, 2, &[]);
        assert_eq!(short(&rig.sent(0, 1)), [(1, FLUSH)]);
        assert_eq!(short(&rig.received(0, 2)), [(20, FLUSH), (21, FLUSH)]);
    }
}

#[test]
fn reset_discards_work_and_completions() {
    for pair in pairs() {
        for one_cq in [false, true] {
            let mut rig = Rig::with(&pair, Spec { one_cq, ..Spec::default() });
            rig.recv(1, 10, 3, &[]);
            rig.send(0, 1, Op::WriteImm(5), 0, 64, signaled());
            rig.sleep(Span::ms(5));
            rig.send(0, 2, Op::Write, 0, 64, signaled());
            rig.step(0, Step::Reset).unwrap();
            rig.step(1, Step::Reset).unwrap();
            rig.sleep(Span::ms(5));
            assert_eq!((rig.sent(0, 0), rig.received(1, 0)), (vec![], vec![]));
            rig.connect();
            rig.recv(1, 30, 1, &[]);
            rig.send(0, 3, Op::WriteImm(6), 0, 64, signaled());
            assert_eq!(short(&rig.sent(0, 1)), [(3, None)]);
            assert_eq!(short(&rig.received(1, 1)), [(30, None)]);
        }
    }
}
