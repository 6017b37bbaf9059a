//! Requests that find no receive, or nobody.

use crate::common::{ALL, Rig, signaled};
use crate::{FLUSH, batch, events, plan, state};
use engine::fabric::{
    Batch, Event, Fabric as _, Flags, Item, Op, QpState, RnrTimer, Rtr, Rts, Status, Step, ack_timeout,
    rnr_delay,
};
use engine::id::PortId;
use engine::time::Span;
use sim::fabric::pair::PairSpec;

#[test]
fn no_receive_is_an_rnr_nak_and_data_is_placed() {
    let mut rig = Rig::new(PairSpec { min_rnr_timer: RnrTimer(14), ..PairSpec::default() });
    rig.fill(0, 0, 5, 64);
    rig.send(0, 1, Op::WriteImm(77), 0, 64, signaled());
    rig.pair.run_for(Span::ms(3));
    assert_eq!(rig.bytes(1, 0, 64), [5; 64], "data may be in place already");
    assert_eq!(rig.sent(0), []);
    let naks = rig.pair.fabrics.counters().rnr_naks;
    assert_eq!(naks, 3, "1.28 ms apart");
    rig.recv(1, 4, 1, &[]);
    rig.run();
    assert_eq!((rig.sent(0), rig.received(1)), (vec![(1, None)], vec![(4, None)]));
    assert_eq!(rig.pair.fabrics.counters().rnr_naks, naks);
}

#[test]
fn rnr_retries_run_out() {
    let rts = Rts { timeout: 14, retry_cnt: 7, rnr_retry: 2, max_rd_atomic: 1 };
    let mut rig = Rig::new(PairSpec { rts, ..PairSpec::default() });
    rig.fill(0, 0, 5, 256);
    let plan = plan(4);
    let writes = Batch { last: Some(Op::WriteImm(1)), ..batch(&rig, &plan) };
    rig.post(0, &[Item::Many(writes)]).unwrap();
    rig.send(0, 9, Op::Write, 0, 64, signaled());
    let end = rig.run();
    assert_eq!(rig.sent(0), [(103, Some(Status::RnrRetryExc)), (9, FLUSH)], "the one with the immediate");
    assert_eq!(rig.pair.fabrics.counters().rnr_naks, 3);
    assert!(end > 2 * rnr_delay(RnrTimer(12)).0);
    assert_eq!(state(&rig, 1), QpState::Rts);
}

#[test]
fn a_send_waits_for_its_receive() {
    let mut rig = Rig::ideal();
    rig.fill(0, 0, 5, 64);
    rig.send(0, 1, Op::Send, 0, 64, signaled());
    rig.send(0, 2, Op::Write, 512, 64, signaled());
    rig.pair.run_for(Span::us(100));
    let into = [rig.sge(1, 128, 64)];
    rig.recv(1, 4, 1, &into);
    rig.run();
    assert_eq!((rig.sent(0), rig.received(1)), (vec![(1, None), (2, None)], vec![(4, None)]));
    assert_eq!(rig.bytes(1, 128, 64), [5; 64]);
}

#[test]
fn nobody_there_is_retry_exceeded_after_all_tries() {
    let rts = Rts { timeout: 10, retry_cnt: 3, rnr_retry: 7, max_rd_atomic: 1 };
    for kill in [Step::Reset, Step::Err] {
        let mut rig = Rig::new(PairSpec { rts, ..PairSpec::default() });
        let qp = rig.pair.ends[1].qp;
        rig.pair.call(1, |f| f.modify_qp(qp, kill)).unwrap();
        rig.send(0, 1, Op::Write, 0, 64, Flags::default());
        rig.send(0, 2, Op::Write, 0, 64, signaled());
        let end = rig.run();
        assert_eq!(rig.sent(0), [(1, Some(Status::RetryExc)), (2, FLUSH)]);
        let wait = ack_timeout(10).unwrap().0 * 4;
        assert!((wait..wait + 20_000_000).contains(&end), "{end} is not 4 tries of {wait}");
        assert_eq!(rig.bytes(1, 0, 64), [0; 64]);
    }
}

#[test]
fn a_peer_that_comes_back_in_time_is_reached() {
    let rts = Rts { timeout: 10, retry_cnt: 3, rnr_retry: 7, max_rd_atomic: 1 };
    let mut rig = Rig::new(PairSpec { rts, ..PairSpec::default() });
    rig.fill(0, 0, 8, 64);
    let port = PortId(0);
    rig.pair.link(1, false);
    rig.send(0, 1, Op::Write, 0, 64, signaled());
    rig.pair.run_for(Span::ms(6));
    rig.pair.link(1, true);
    rig.run();
    assert_eq!(rig.sent(0), [(1, None)]);
    assert_eq!(events(&mut rig, 1), [Event::PortDown(port), Event::PortUp(port)]);
    assert_eq!(rig.pair.fabrics.counters().timeouts, 2);
}

#[test]
fn retry_exceeded_does_not_mean_not_executed() {
    let rts = Rts { timeout: 10, retry_cnt: 1, rnr_retry: 7, max_rd_atomic: 1 };
    let mut rig = Rig::new(PairSpec { rts, ..PairSpec::default() });
    rig.fill(0, 0, 8, 64);
    rig.recv(1, 3, 1, &[]);
    rig.send(0, 1, Op::WriteImm(1), 0, 64, signaled());
    while rig.pair.ready.iter().all(|r| r.host != 1) {
        assert!(rig.pair.step());
    }
    // The ACK is under way.
    rig.pair.link(0, false);
    rig.run();
    assert_eq!((rig.sent(0), rig.received(1)), (vec![(1, Some(Status::RetryExc))], vec![(3, None)]));
    assert_eq!(rig.bytes(1, 0, 64), [8; 64]);
}

#[test]
fn packets_of_an_older_connection_are_dropped() {
    let rts = Rts { timeout: 8, retry_cnt: 0, rnr_retry: 7, max_rd_atomic: 1 };
    let mut rig = Rig::new(PairSpec { rts, ..PairSpec::default() });
    rig.fill(0, 0, 8, 64);
    // The other end reconnects to somebody with another PSN.
    let mut peer = rig.pair.endpoint(0).unwrap();
    peer.psn ^= 1;
    let qp = rig.pair.ends[1].qp;
    rig.pair.call(1, |f| {
        f.modify_qp(qp, Step::Reset).unwrap();
        f.modify_qp(qp, Step::Init(ALL)).unwrap();
        f.modify_qp(qp, Step::Rtr(Rtr { peer, max_dest_rd_atomic: 1, min_rnr_timer: RnrTimer(1) })).unwrap();
    });
    rig.send(0, 1, Op::Write, 0, 64, signaled());
    rig.run();
    assert_eq!(rig.sent(0), [(1, Some(Status::RetryExc))]);
    assert_eq!(rig.bytes(1, 0, 64), [0; 64]);
}

#[test]
fn unreachable_addresses_are_told_and_time_out() {
    let rts = Rts { timeout: 8, retry_cnt: 1, rnr_retry: 7, max_rd_atomic: 1 };
    let mut rig = Rig::new(PairSpec { rts, ..PairSpec::default() });
    let mut nowhere = rig.pair.endpoint(1).unwrap();
    assert!(rig.pair.fabrics.host_ref(0).reaches(PortId(0), &nowhere));
    nowhere.gid[15] = 99;
    assert!(!rig.pair.fabrics.host_ref(0).reaches(PortId(0), &nowhere));
    let qp = rig.pair.ends[0].qp;
    rig.pair.call(0, |f| {
        f.modify_qp(qp, Step::Reset).unwrap();
        f.modify_qp(qp, Step::Init(ALL)).unwrap();
        let rtr = Rtr { peer: nowhere, max_dest_rd_atomic: 1, min_rnr_timer: RnrTimer(1) };
        f.modify_qp(qp, Step::Rtr(rtr)).unwrap();
        f.modify_qp(qp, Step::Rts(rts)).unwrap();
    });
    rig.send(0, 1, Op::Write, 0, 64, signaled());
    rig.run();
    assert_eq!(rig.sent(0), [(1, Some(Status::RetryExc))]);
}
