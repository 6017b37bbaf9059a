//! Requests that one of the two ends refuses: keys, ranges, rights, receives.

use crate::common;
use crate::common::{ALL, Rig, SIZE, signaled};
use crate::{FLUSH, batch, events, plan, state};
use engine::fabric::{
    Access, Batch, Event, Fabric as _, Flags, Grid, Item, Memory, Op, QpSpec, QpState, RnrTimer, Rtr, Rts,
    Sge, Status, Step, WorkRequest,
};
use engine::id::{LKey, PortId, RKey, WrId};
use engine::time::Time;
use sim::fabric::pair::PairSpec;
use std::sync::Arc;

/// Posts `bad` between good requests; the chain must stop there.
fn fails_with(rig: &mut Rig, bad: WorkRequest<'_>, status: Status, responder: QpState) {
    let good = [rig.sge(0, 0, 64)];
    let ok = |id, signaled| WorkRequest {
        id: WrId(id),
        op: Op::Write,
        flags: Flags { signaled, ..Flags::default() },
        local: &good,
        remote: rig.remote(0, 0),
    };
    let chain = [ok(1, true), ok(2, false), bad, ok(4, false), ok(5, true)].map(Item::One);
    rig.post(0, &chain).unwrap();
    rig.run();
    assert_eq!(rig.sent(0), [(1, None), (bad.id.0, Some(status)), (4, FLUSH), (5, FLUSH)]);
    assert_eq!((state(rig, 0), state(rig, 1)), (QpState::Err, responder));
    assert_eq!(rig.pair.fabrics.host_ref(0).objects().sends, 0, "every place is free again");
    if responder == QpState::Err {
        assert!(events(rig, 1).contains(&Event::QpFatal(rig.pair.ends[1].qp)));
    }
}

#[test]
fn bad_rkey_range_or_right_is_remote_access_error() {
    let key = |rig: &Rig| (rig.mrs[1].addr, RKey(rig.mrs[1].rkey.0 ^ 1));
    let range = |rig: &Rig| (rig.mrs[1].addr + SIZE - 32, rig.mrs[1].rkey);
    let below = |rig: &Rig| (rig.mrs[1].addr - 1, rig.mrs[1].rkey);
    let far = |rig: &Rig| (u64::MAX - 8, rig.mrs[1].rkey);
    for target in [key as fn(&Rig) -> _, range, below, far] {
        let mut rig = Rig::ideal();
        let sge = [rig.sge(0, 0, 64)];
        let bad = WorkRequest {
            id: WrId(3),
            op: Op::Write,
            flags: Flags::default(),
            local: &sge,
            remote: target(&rig),
        };
        fails_with(&mut rig, bad, Status::RemAccess, QpState::Err);
    }
    // Rights of the registration.
    for (op, len) in [(Op::Write, 64), (Op::Read, 64), (Op::FetchAdd(1), 8)] {
        let mut rig = Rig::ideal();
        let (buf, port) = (rig.bufs[1], PortId(0));
        let mr = rig.pair.call(1, |f| f.register(port, buf, 0..SIZE, Access::LOCAL)).unwrap();
        let sge = [rig.sge(0, 0, len)];
        let bad =
            WorkRequest { id: WrId(3), op, flags: Flags::default(), local: &sge, remote: (mr.addr, mr.rkey) };
        fails_with(&mut rig, bad, Status::RemAccess, QpState::Err);
    }
}

#[test]
fn rights_of_the_queue_pair_count_too() {
    let mut rig = Rig::new(PairSpec { access: Access::REMOTE_READ, ..PairSpec::default() });
    rig.send(0, 1, Op::Read, 0, 64, signaled());
    rig.send(0, 2, Op::Write, 0, 64, signaled());
    rig.run();
    assert_eq!(rig.sent(0), [(1, None), (2, Some(Status::RemInvReq))], "an operation it does not take");
}

#[test]
fn a_queue_pair_refuses_even_nothing_of_what_it_does_not_take() {
    for inline in [false, true] {
        let mut rig = Rig::new(PairSpec { access: Access::REMOTE_READ, ..PairSpec::default() });
        let flags = Flags { inline, ..signaled() };
        let request = WorkRequest { id: WrId(1), op: Op::Write, flags, local: &[], remote: (0, RKey(0)) };
        rig.post(0, &[Item::One(request)]).unwrap();
        rig.run();
        assert_eq!(rig.sent(0), [(1, Some(Status::RemInvReq))]);
    }
}

#[test]
fn a_stale_rkey_is_refused() {
    let mut rig = Rig::ideal();
    let mr = rig.mrs[1].id;
    rig.pair.call(1, |f| f.deregister(mr)).unwrap();
    rig.send(0, 3, Op::Write, 0, 64, Flags::default());
    rig.run();
    assert_eq!(rig.sent(0), [(3, Some(Status::RemAccess))]);
}

#[test]
fn bad_local_key_or_range_is_local_protection_error() {
    let key = |rig: &Rig| Sge { lkey: LKey(rig.mrs[0].lkey.0 ^ 1), ..rig.sge(0, 0, 64) };
    let range = |rig: &Rig| rig.sge(0, SIZE - 32, 64);
    for sge in [key as fn(&Rig) -> Sge, range] {
        let mut rig = Rig::ideal();
        let local = [sge(&rig)];
        let bad = WorkRequest {
            id: WrId(3),
            op: Op::Write,
            flags: Flags::default(),
            local: &local,
            remote: rig.remote(0, 0),
        };
        fails_with(&mut rig, bad, Status::LocProt, QpState::Rts);
    }
}

#[test]
fn a_key_of_another_port_is_not_valid() {
    use sim::fabric::{Fabrics, HostSpec, PortSpec};
    use sim::net::Topology;
    use sim::nic::NicProfile;
    let port = |i: usize| PortSpec {
        name: format!("p{i}"),
        link_layer: Default::default(),
        bits_per_s: 200_000_000_000,
        mtu: 4096,
        numa: None,
    };
    let host = || HostSpec { ports: vec![port(0), port(1)], nic: Arc::new(NicProfile::ideal()) };
    let mut fabrics = Fabrics::new(vec![host(), host()], Topology::star(4, 200.0, 1000).unwrap(), 1).unwrap();
    let mut queue: sim::queue::EventQueue<sim::fabric::FabricEvent> = Default::default();
    let mut made = Vec::new();
    for h in 0..2 {
        let f = fabrics.host(h);
        let buf = f.alloc(Memory::Host, Grid::bytes(4096)).unwrap();
        let mrs = [0, 1].map(|p| f.register(PortId(p), buf, 0..4096, ALL).unwrap());
        let cq = f.create_cq(PortId(0), 16).unwrap();
        let other = f.create_cq(PortId(1), 16).unwrap();
        let spec = QpSpec {
            send_cq: cq,
            recv_cq: cq,
            srq: None,
            max_send: 4,
            max_recv: 4,
            max_sge: 1,
            max_inline: 0,
        };
        let qp = f.create_qp(PortId(0), spec).unwrap();
        assert!(f.create_qp(PortId(0), QpSpec { recv_cq: other, ..spec }).is_err());
        f.modify_qp(qp, Step::Init(ALL)).unwrap();
        made.push((qp, cq, mrs, f.endpoint(qp).unwrap()));
    }
    for h in 0..2 {
        let rtr = Rtr { peer: made[1 - h].3, max_dest_rd_atomic: 1, min_rnr_timer: RnrTimer(1) };
        fabrics.host(h).modify_qp(made[h].0, Step::Rtr(rtr)).unwrap();
        let rts = Rts { timeout: 1, retry_cnt: 1, rnr_retry: 1, max_rd_atomic: 1 };
        fabrics.host(h).modify_qp(made[h].0, Step::Rts(rts)).unwrap();
    }
    let sge = [Sge { addr: made[0].2[0].addr, len: 8, lkey: made[0].2[0].lkey }];
    let remote = (made[1].2[1].addr, made[1].2[1].rkey);
    let request = WorkRequest { id: WrId(1), op: Op::Write, flags: signaled(), local: &sge, remote };
    fabrics.begin_call(0, Time::ZERO);
    fabrics.host(0).post_send(made[0].0, &[Item::One(request)]).unwrap();
    let mut ready = Vec::new();
    fabrics.after_call(0, Time::ZERO, &mut queue, &mut ready);
    while let Some((now, event)) = queue.pop() {
        fabrics.handle(now, event, &mut queue, &mut ready);
    }
    let mut out = [Default::default(); 4];
    assert_eq!(fabrics.host(0).poll(made[0].1, &mut out), 1);
    assert_eq!(common::short(&out[..1]), [(1, Some(Status::RemAccess))]);
}

#[test]
fn misaligned_atomics_and_too_many_reads_are_invalid_requests() {
    let mut rig = Rig::ideal();
    let sge = [rig.sge(0, 0, 8)];
    let bad = WorkRequest {
        id: WrId(3),
        op: Op::FetchAdd(1),
        flags: Flags::default(),
        local: &sge,
        remote: rig.remote(0, 4),
    };
    fails_with(&mut rig, bad, Status::RemInvReq, QpState::Err);

    let mut rig = Rig::new(PairSpec { max_dest_rd_atomic: 2, ..PairSpec::default() });
    let plan = plan(4);
    let reads = Batch { op: Op::Read, ..batch(&rig, &plan) };
    rig.post(0, &[Item::Many(reads)]).unwrap();
    rig.run();
    assert_eq!(rig.sent(0), [(102, Some(Status::RemInvReq)), (103, FLUSH)]);
    // No more outstanding than the responder takes: all is well.
    let rts = Rts { timeout: 14, retry_cnt: 7, rnr_retry: 7, max_rd_atomic: 2 };
    let mut rig = Rig::new(PairSpec { max_dest_rd_atomic: 2, rts, ..PairSpec::default() });
    let reads = Batch { op: Op::Read, ..batch(&rig, &plan) };
    rig.post(0, &[Item::Many(reads)]).unwrap();
    rig.run();
    assert_eq!(rig.sent(0), [(103, None)]);
}

#[test]
fn a_batch_is_split_exactly_at_the_request_at_fault() {
    let mut rig = Rig::ideal();
    let (buf, port) = (rig.bufs[1], PortId(0));
    rig.fill(0, 0, 6, 640);
    rig.recv(1, 1, 2, &[]);
    // Room for two requests and a half.
    let small = rig.pair.call(1, |f| f.register(port, buf, 0..160, Access::REMOTE_WRITE)).unwrap();
    let plan = plan(10);
    let writes = Batch { remote: (small.addr, small.rkey), ..batch(&rig, &plan) };
    rig.post(0, &[Item::Many(writes)]).unwrap();
    rig.run();
    let sent = rig.sent(0);
    assert_eq!(sent[0], (102, Some(Status::RemAccess)));
    assert_eq!(sent[1..], (103..110).map(|i| (i, FLUSH)).collect::<Vec<_>>());
    assert_eq!(rig.bytes(1, 0, 129), [vec![6; 128], vec![0]].concat());
    assert_eq!(rig.received(1), [(1, FLUSH), (2, FLUSH)]);
    assert_eq!(rig.pair.fabrics.host_ref(0).objects().sends, 0);
}

#[test]
fn a_receive_that_is_too_small_fails_both_ends() {
    let mut rig = Rig::ideal();
    let into = [rig.sge(1, 0, 32)];
    rig.recv(1, 4, 2, &into);
    rig.send(0, 1, Op::Send, 0, 64, signaled());
    rig.run();
    assert_eq!(rig.sent(0), [(1, Some(Status::RemInvReq))]);
    assert_eq!(rig.received(1), [(4, Some(Status::LocLen)), (5, FLUSH)]);
    assert_eq!((state(&rig, 0), state(&rig, 1)), (QpState::Err, QpState::Err));
}

#[test]
fn a_receive_with_a_bad_key_fails_both_ends() {
    let mut rig = Rig::ideal();
    let into = [Sge { lkey: LKey(1), ..rig.sge(1, 0, 64) }];
    rig.recv(1, 4, 1, &into);
    rig.send(0, 1, Op::Send, 0, 64, signaled());
    rig.run();
    assert_eq!(rig.sent(0), [(1, Some(Status::RemOp))]);
    assert_eq!(rig.received(1), [(4, Some(Status::LocProt))]);
}
