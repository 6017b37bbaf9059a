//! The contract of verbs, rule by rule: states, errors, queues, ordering. Sources: InfiniBand Architecture Specification volume 1,
//! chapters 9 to 11; Linux drivers/infiniband (core/verbs.c, sw/rxe); libibverbs manual pages.

mod common;

use common::{ALL, Rig, SIZE, signaled};
use engine::fabric::{
    Access, Batch, Done, Error, Event, Fabric, Flags, Grid, Item, Lane, Memory, Op, Opcode, Plan, QpSpec,
    QpState, Recv, RnrTimer, Rtr, Rts, Run, Sge, SrqSpec, Status, Step, WorkRequest, ack_timeout, rnr_delay,
};
use engine::id::{LKey, PortId, RKey, WrId};
use engine::time::{Span, Time};
use sim::fabric::pair::{Pair, PairSpec};
use std::sync::Arc;

const FLUSH: Option<Status> = Some(Status::WrFlush);

fn state(rig: &Rig, side: usize) -> QpState {
    let end = rig.pair.ends[side];
    rig.pair.fabrics.host_ref(end.host).qp_state(end.qp).unwrap()
}

fn events(rig: &mut Rig, side: usize) -> Vec<Event> {
    rig.pair.call(side, |f| std::iter::from_fn(|| f.next_event()).collect())
}

/// 256 bytes from offset 0, in requests of 64.
fn plan(requests: u32) -> Arc<Plan> {
    let run = Run { count: requests, local_step: 64, remote_step: 64, ..Run::piece(0, 0, 64) };
    Arc::new(Plan::new(Arc::new([Lane { local: 0, remote: 0 }]), vec![run]).unwrap())
}

fn batch<'a>(rig: &Rig, plan: &'a Arc<Plan>) -> Batch<'a> {
    Batch {
        plan,
        first: WrId(100),
        op: Op::Write,
        local: (rig.mrs[0].addr, rig.mrs[0].lkey),
        remote: (rig.mrs[1].addr, rig.mrs[1].rkey),
        window: 0..plan.requests(),
        signal_every: 0,
        signal_last: true,
        last: None,
    }
}

// ---- states ----

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

// ---- data ----

#[test]
fn write_imm_places_data_and_consumes_a_receive() {
    let mut rig = Rig::ideal();
    rig.fill(0, 0, 7, 100);
    rig.recv(1, 50, 1, &[]);
    rig.send(0, 1, Op::WriteImm(0xabcd), 0, 100, signaled());
    rig.run();
    let recv = rig.pair.receives(1);
    assert_eq!(recv.len(), 1);
    assert_eq!(recv[0].id, WrId(50));
    assert_eq!(recv[0].result, Ok(Done { opcode: Opcode::RecvWithImm, bytes: 100, imm: Some(0xabcd) }));
    let sent = rig.pair.sends(0);
    assert_eq!(sent[0].result, Ok(Done { opcode: Opcode::Write, bytes: 0, imm: None }));
    assert_eq!(rig.bytes(1, 0, 101), [vec![7; 100], vec![0]].concat());
}

#[test]
fn send_scatters_into_the_receive() {
    let mut rig = Rig::ideal();
    rig.fill(0, 0, 1, 10);
    rig.fill(0, 10, 2, 10);
    let into = [rig.sge(1, 1000, 5), rig.sge(1, 2000, 50)];
    rig.recv(1, 9, 1, &into);
    rig.send(0, 1, Op::SendImm(3), 0, 20, signaled());
    rig.run();
    let recv = rig.pair.receives(1);
    assert_eq!(recv[0].result, Ok(Done { opcode: Opcode::Recv, bytes: 20, imm: Some(3) }));
    assert_eq!(rig.bytes(1, 1000, 6), [1, 1, 1, 1, 1, 0]);
    assert_eq!(rig.bytes(1, 2000, 16), [vec![1; 5], vec![2; 10], vec![0]].concat());
}

#[test]
fn read_brings_bytes_and_atomics_bring_the_old_value() {
    let mut rig = Rig::ideal();
    rig.fill(1, 0, 9, 64);
    let buf = rig.bufs[1];
    rig.pair.call(1, |f| f.write(buf, 64, &5u64.to_le_bytes())).unwrap();
    rig.send(0, 1, Op::Read, 0, 64, signaled());
    rig.send(0, 2, Op::FetchAdd(3), 64, 8, signaled());
    rig.send(0, 3, Op::CompareSwap { expect: 8, swap: 100 }, 64, 8, signaled());
    rig.run();
    let sent = rig.pair.sends(0);
    let opcodes: Vec<_> = sent.iter().map(|c| c.result.unwrap()).map(|d| (d.opcode, d.bytes)).collect();
    assert_eq!(opcodes, [(Opcode::Read, 64), (Opcode::FetchAdd, 8), (Opcode::CompareSwap, 8)]);
    assert_eq!(rig.bytes(0, 0, 64), [9; 64]);
    assert_eq!(rig.bytes(0, 64, 8), 8u64.to_le_bytes());
    assert_eq!(rig.bytes(1, 64, 8), 100u64.to_le_bytes());
}

#[test]
fn sources_are_read_when_bytes_leave_and_inline_ones_at_posting() {
    let mut rig = Rig::ideal();
    rig.fill(0, 0, 1, 64);
    rig.send(0, 1, Op::Write, 0, 64, signaled());
    rig.fill(0, 0, 2, 64);
    rig.run();
    assert_eq!(rig.bytes(1, 0, 64), [2; 64], "written too early, and seen");
    let sge = [Sge { lkey: LKey(12345), ..rig.sge(0, 0, 64) }];
    let flags = Flags { inline: true, ..signaled() };
    let request = WorkRequest { id: WrId(2), op: Op::Write, flags, local: &sge, remote: rig.remote(0, 128) };
    rig.post(0, &[Item::One(request)]).unwrap();
    rig.fill(0, 0, 3, 64);
    rig.run();
    assert_eq!(rig.bytes(1, 128, 64), [2; 64]);
    assert_eq!(rig.sent(0), [(1, None), (2, None)], "the key of an inline request is not looked at");
}

#[test]
fn an_immediate_comes_after_all_data_before_it() {
    let mut rig = Rig::ideal();
    rig.recv(1, 0, 1, &[]);
    for i in 0..4 {
        rig.fill(0, i * 64, 1 + i as u8, 64);
        rig.send(0, i, Op::Write, i * 64, 64, Flags::default());
    }
    rig.send(0, 9, Op::WriteImm(0), 0, 0, signaled());
    while rig.pair.ready.iter().all(|r| r.host != 1) {
        assert!(rig.pair.step());
    }
    let want: Vec<u8> = (1..5).flat_map(|i| [i; 64]).collect();
    assert_eq!(rig.bytes(1, 0, 256), want);
}

#[test]
fn one_host_can_talk_to_itself() {
    let mut rig = Rig::new(PairSpec { same_host: true, ..PairSpec::default() });
    rig.fill(0, 0, 4, 64);
    rig.recv(1, 3, 1, &[]);
    rig.send(0, 1, Op::WriteImm(1), 0, 64, signaled());
    // Within one buffer, too.
    let sge = [rig.sge(0, 0, 64)];
    let remote = (rig.mrs[0].addr + 32, rig.mrs[0].rkey);
    let request = WorkRequest { id: WrId(2), op: Op::Write, flags: signaled(), local: &sge, remote };
    rig.post(0, &[Item::One(request)]).unwrap();
    rig.run();
    assert_eq!((rig.sent(0), rig.received(1)), (vec![(1, None), (2, None)], vec![(3, None)]));
    assert_eq!(rig.bytes(1, 0, 64), [4; 64]);
    assert_eq!(rig.bytes(0, 32, 64), [4; 64]);
}

// ---- errors ----

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
    let (q, ready) = (&mut rig.pair.queue, &mut rig.pair.ready);
    rig.pair.fabrics.link_down(1, port, Time::ZERO, q, ready);
    rig.send(0, 1, Op::Write, 0, 64, signaled());
    rig.pair.run_for(Span::ms(6));
    let now = rig.pair.now;
    rig.pair.fabrics.link_up(1, port, now, &mut rig.pair.queue, &mut rig.pair.ready);
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
    let now = rig.pair.now;
    rig.pair.fabrics.link_down(0, PortId(0), now, &mut rig.pair.queue, &mut rig.pair.ready);
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
fn zero_length_operations_check_no_key() {
    let mut rig = Rig::ideal();
    rig.recv(1, 1, 1, &[]);
    let request = WorkRequest {
        id: WrId(1),
        op: Op::WriteImm(2),
        flags: signaled(),
        local: &[],
        remote: (u64::MAX, RKey(0)),
    };
    rig.post(0, &[Item::One(request)]).unwrap();
    rig.run();
    assert_eq!((rig.sent(0), rig.received(1)), (vec![(1, None)], vec![(1, None)]));
}

// ---- queues ----

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

#[test]
fn a_fence_waits_for_earlier_reads() {
    let mut rig = Rig::ideal();
    rig.fill(1, 0, 9, 64);
    rig.send(0, 1, Op::Read, 0, 64, Flags::default());
    // What was read goes back at once: only with the fence is it there.
    let sge = [rig.sge(0, 0, 64)];
    let flags = Flags { fence: true, ..signaled() };
    let request = WorkRequest { id: WrId(2), op: Op::Write, flags, local: &sge, remote: rig.remote(0, 512) };
    rig.post(0, &[Item::One(request)]).unwrap();
    let end = rig.run();
    assert_eq!(rig.bytes(1, 512, 64), [9; 64]);
    assert!(end >= 4_000_000, "a READ's and a WRITE's round trip: {end}");
    assert_eq!(rig.sent(0), [(2, None)]);
}

// ---- objects ----

#[test]
fn objects_in_use_are_busy_and_ids_are_never_used_again() {
    let mut rig = Rig::ideal();
    let (end, buf, mr) = (rig.pair.ends[0], rig.bufs[0], rig.mrs[0]);
    rig.pair.call(0, |f| {
        assert_eq!(f.free(buf), Err(Error::Busy("buffer")));
        assert_eq!(f.destroy_cq(end.send_cq), Err(Error::Busy("completion queue")));
        f.deregister(mr.id).unwrap();
        assert!(matches!(f.deregister(mr.id), Err(Error::NoSuch(_))));
        f.free(buf).unwrap();
        assert!(matches!(f.free(buf), Err(Error::NoSuch(_))));
        f.destroy_qp(end.qp).unwrap();
        assert!(matches!(f.destroy_qp(end.qp), Err(Error::NoSuch(_))));
        f.destroy_cq(end.send_cq).unwrap();
        f.destroy_cq(end.recv_cq).unwrap();
        let next = f.alloc(Memory::Host, Grid::bytes(64)).unwrap();
        assert_ne!(next, buf);
        f.free(next).unwrap();
    });
    assert_eq!(rig.pair.fabrics.host_ref(0).objects(), Default::default());
    rig.run();
}

#[test]
fn registrations_need_sensible_rights_and_ranges() {
    let mut rig = Rig::ideal();
    let buf = rig.bufs[0];
    let wrong = Access { local_write: false, ..Access::REMOTE_WRITE };
    rig.pair.call(0, |f| {
        let port = PortId(0);
        assert!(matches!(f.register(port, buf, 0..64, wrong), Err(Error::Invalid { .. })));
        assert!(matches!(f.register(port, buf, 0..SIZE + 1, ALL), Err(Error::Invalid { .. })));
        assert!(matches!(f.register(port, buf, 64..64, ALL), Err(Error::Invalid { .. })));
        assert!(matches!(f.register(PortId(1), buf, 0..64, ALL), Err(Error::NoSuch("port"))));
        let part = f.register(port, buf, 4096..8192, ALL).unwrap();
        assert_eq!((part.addr, part.len), (rig.mrs[0].addr + 4096, 4096));
    });
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
