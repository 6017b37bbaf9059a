//! Queue-pair states, and what each takes.

use crate::FLUSH;
use crate::common;
use crate::common::{ALL, Rig, signaled};
use engine::fabric::{Error, Fabric as _, Item, Op, QpState, Recv, RnrTimer, Rtr, Rts, Step, WorkRequest};
use engine::id::{RKey, WrId};
use sim::fabric::pair::{Pair, PairSpec};

#[test]
fn every_state_change_is_as_the_table_says() {
    use QpState as S;
    let mut pair = Pair::unconnected(PairSpec::default()).unwrap();
    let qp = pair.ends[0].qp;
    let peer = pair.endpoint(1).unwrap();
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
    // qp_state_table of drivers/infiniband/core/verbs.c, without SQD and the attributes of RTS to RTS.
    let allowed = |from: S, step: &Step| match step {
        Step::Reset => Some(S::Reset),
        Step::Err => (from != S::Reset).then_some(S::Err),
        Step::Init(_) => matches!(from, S::Reset | S::Init).then_some(S::Init),
        Step::Rtr(_) => (from == S::Init).then_some(S::Rtr),
        Step::Rts(_) => (from == S::Rtr).then_some(S::Rts),
    };
    for from in [S::Reset, S::Init, S::Rtr, S::Rts, S::Err] {
        for step in [Step::Reset, Step::Err, init, rtr, rts] {
            let (result, after, ends) = pair.call(0, |f| {
                f.modify_qp(qp, Step::Reset).unwrap();
                path(from).into_iter().for_each(|s| f.modify_qp(qp, s).unwrap());
                assert_eq!(f.qp_state(qp), Ok(from));
                let before = f.endpoint(qp).unwrap();
                let result = f.modify_qp(qp, step);
                (result, f.qp_state(qp).unwrap(), (before, f.endpoint(qp).unwrap()))
            });
            match allowed(from, &step) {
                Some(to) => assert_eq!((result, after), (Ok(()), to), "{from:?} {step:?}"),
                None => {
                    assert!(matches!(result, Err(Error::State { state, .. }) if state == from), "{step:?}");
                    assert_eq!((after, ends.0), (from, ends.1), "a refused change changes nothing");
                }
            }
            assert!(ends.1.psn <= 0xff_ffff && ends.1.qpn <= 0xff_ffff);
        }
    }
}

#[test]
fn attributes_out_of_range_are_refused_and_change_nothing() {
    let mut pair = Pair::unconnected(PairSpec::default()).unwrap();
    let qp = pair.ends[0].qp;
    let peer = pair.endpoint(1).unwrap();
    let rtr = Rtr { peer, max_dest_rd_atomic: 1, min_rnr_timer: RnrTimer(12) };
    let rts = Rts { timeout: 14, retry_cnt: 7, rnr_retry: 7, max_rd_atomic: 1 };
    pair.call(0, |f| {
        f.modify_qp(qp, Step::Init(ALL)).unwrap();
        for bad in [
            Rtr { min_rnr_timer: RnrTimer(32), ..rtr },
            Rtr { max_dest_rd_atomic: 17, ..rtr },
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
            Rts { max_rd_atomic: 17, ..rts },
        ] {
            assert!(matches!(f.modify_qp(qp, Step::Rts(bad)), Err(Error::Invalid { .. })));
            assert_eq!(f.qp_state(qp), Ok(QpState::Rtr));
        }
    });
}

#[test]
fn the_first_psn_is_drawn_anew_at_every_step_to_init() {
    let mut pair = Pair::unconnected(PairSpec::default()).unwrap();
    let qp = pair.ends[0].qp;
    let psns: Vec<u32> = (0..4)
        .map(|_| {
            pair.call(0, |f| {
                f.modify_qp(qp, Step::Init(ALL)).unwrap();
                f.endpoint(qp).unwrap().psn
            })
        })
        .collect();
    assert!(psns.windows(2).all(|w| w[0] != w[1]), "{psns:?}");
}

#[test]
fn sends_need_rts_and_receives_init() {
    let mut pair = Pair::unconnected(PairSpec::default()).unwrap();
    let qp = pair.ends[0].qp;
    let peer = pair.endpoint(1).unwrap();
    let request =
        WorkRequest { id: WrId(1), op: Op::Write, flags: signaled(), local: &[], remote: (0, RKey(0)) };
    let recv = Recv { first: WrId(7), count: 1, sges: &[] };
    pair.call(0, |f| {
        let send = |f: &mut sim::fabric::SimFabric| f.post_send(qp, &[Item::One(request)]).map_err(|r| r.why);
        assert!(matches!(send(f), Err(Error::State { state: QpState::Reset, .. })));
        assert!(matches!(f.post_recv(qp, recv).map_err(|r| r.why), Err(Error::State { .. })));
        f.modify_qp(qp, Step::Init(ALL)).unwrap();
        assert!(matches!(send(f), Err(Error::State { state: QpState::Init, .. })));
        assert_eq!(f.post_recv(qp, recv), Ok(()));
        let rtr = Rtr { peer, max_dest_rd_atomic: 1, min_rnr_timer: RnrTimer(12) };
        f.modify_qp(qp, Step::Rtr(rtr)).unwrap();
        assert!(matches!(send(f), Err(Error::State { state: QpState::Rtr, .. })));
        f.modify_qp(qp, Step::Err).unwrap();
        assert_eq!(send(f), Ok(()), "in ERR it completes flushed");
    });
    assert_eq!(common::short(&pair.sends(0)), [(1, FLUSH)]);
    assert_eq!(common::short(&pair.receives(0)), [(7, FLUSH)]);
}

#[test]
fn reset_discards_work_and_completions() {
    let mut rig = Rig::ideal();
    rig.recv(1, 10, 3, &[]);
    rig.send(0, 1, Op::WriteImm(5), 0, 64, signaled());
    rig.run();
    rig.send(0, 2, Op::Write, 0, 64, signaled());
    for side in 0..2 {
        let qp = rig.pair.ends[side].qp;
        rig.pair.call(side, |f| f.modify_qp(qp, Step::Reset)).unwrap();
    }
    rig.run();
    assert_eq!((rig.sent(0), rig.received(1)), (vec![], vec![]));
    for side in 0..2 {
        let objects = rig.pair.fabrics.host_ref(side).objects();
        assert_eq!((objects.sends, objects.receives), (0, 0));
    }
    assert!(rig.pair.fabrics.quiescent());
}
