//! The contract of [`engine::fabric::Fabric`] on real devices: Soft-RoCE's rxe0 (which loops back), and rxeA with rxeB. Without them
//! the tests are skipped, unless `KVRAIL_VERBS=required` is set. Statuses are those of Soft-RoCE in Linux 6.1 where it departs from the
//! specification, whose word stands beside them.

mod verbs_rig;

use engine::fabric::verbs::{OpenError, VerbsFabric, list};
use engine::fabric::{
    Access, Batch, Completion, Content, Device, DeviceConfig, Done, Error, Event, Extent, Fabric, Flags,
    GidChoice, Grid, Item, Lane, Memory, Op, Opcode, Plan, QpSpec, QpState, Reach, Recv, RnrTimer, Rtr, Rts,
    Run, Sge, SrqSpec, Status, Step, WorkRequest,
};
use engine::id::{LKey, PortId, RKey, WrId};
use engine::time::Span;
use std::sync::Arc;
use verbs_rig::{ALL, PORT, Rig, SIZE, Spec, pairs, short, signaled};

const FLUSH: Option<Status> = Some(Status::WrFlush);

// ---- devices ----

#[test]
fn devices_are_listed_with_what_they_can_do() {
    for [config, _] in pairs() {
        let name = &config.devices[0];
        let all = list().unwrap();
        let info = all.into_iter().find(|(n, _)| n == name).unwrap().1.unwrap();
        assert_eq!(&info.name, name);
        assert!(
            info.node_guid != 0 && info.limits.max_qp_wr > 64 && info.limits.max_inline >= 64,
            "{info:?}"
        );
        assert!(!info.dmabuf && !info.on_demand_paging, "Soft-RoCE has neither: {info:?}");
        let port = &info.ports[0];
        assert!(port.bits_per_s > 0 && (256..=4096).contains(&port.mtu), "{port:?}");
        assert!(port.pkeys.contains(&0xffff), "{port:?}");
        let (gid, why) = port.choose(GidChoice::Auto).unwrap();
        assert_eq!(gid.gid[10..13], [0xff, 0xff, 10], "{why}");
        assert!(!gid.netdev.is_empty(), "{gid:?}");
        let fabric = VerbsFabric::open(&config).unwrap();
        assert_eq!(fabric.ports().len(), 1);
        let own = &fabric.ports()[0];
        assert_eq!((own.name.as_str(), own.gids[0], own.up), (format!("{name}/1").as_str(), gid.gid, true));
        assert_eq!(fabric.limits(), &info.limits);
    }
}

#[test]
fn what_is_not_there_is_named_with_what_is() {
    for [config, _] in pairs() {
        let open = |config: &DeviceConfig| VerbsFabric::open(config).map(|_| ()).unwrap_err();
        let name = config.devices[0].clone();
        let missing = open(&DeviceConfig { devices: vec!["mlx5_77".into()], ..config.clone() });
        assert!(missing.to_string().contains("mlx5_77") && missing.to_string().contains(&name), "{missing}");
        let twice = vec![name.clone(), format!("{name}/1")];
        assert!(matches!(open(&DeviceConfig { devices: twice, ..config.clone() }), OpenError::Twice(_)));
        let gid = open(&DeviceConfig { gid: GidChoice::Index(200), ..config.clone() });
        assert!(matches!(gid, OpenError::Gid { .. }), "{gid}");
        let pkey = open(&DeviceConfig { pkey_index: 60_000, ..config.clone() });
        assert!(matches!(pkey, OpenError::Pkey { index: 60_000, .. }), "{pkey}");
        let reach = vec![Reach { local: "mlx5_77".into(), prefix: [0; 16], bits: 0 }];
        assert!(matches!(open(&DeviceConfig { reach, ..config.clone() }), OpenError::Reach(_)));
        assert!(matches!(
            open(&DeviceConfig { service_level: 9, ..config.clone() }),
            OpenError::ServiceLevel(9)
        ));
        let all = VerbsFabric::open(&DeviceConfig { devices: vec![], ..config.clone() }).unwrap();
        assert!(all.ports().iter().any(|p| p.name == format!("{name}/1")));
        assert!(all.ports().windows(2).all(|w| w[0].name < w[1].name));
    }
}

#[test]
fn the_reach_table_says_which_ports_see_each_other() {
    for pair in pairs() {
        let mut rig = Rig::new(&pair);
        let qp = rig.qps[1];
        let peer = rig.f(1).endpoint(qp).unwrap();
        let line = |prefix, bits| Reach { local: pair[0].devices[0].clone(), prefix, bits };
        let mut wrong = peer.gid;
        wrong[14] ^= 1;
        for (reach, reaches) in [
            (vec![], true),
            (vec![line(peer.gid, 128)], true),
            (vec![line(wrong, 112)], true),
            (vec![line(wrong, 120)], false),
        ] {
            let fabric = VerbsFabric::open(&DeviceConfig { reach, ..pair[0].clone() }).unwrap();
            assert_eq!(fabric.reaches(PORT, &peer), reaches);
            assert!(!fabric.reaches(PortId(1), &peer));
        }
    }
}

// ---- states ----

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

// ---- data ----

#[test]
fn write_imm_places_data_and_consumes_a_receive() {
    for pair in pairs() {
        let mut rig = Rig::new(&pair);
        rig.fill(0, 0, 7, 100);
        rig.fill(1, 0, 0, 101);
        rig.recv(1, 50, 1, &[]);
        rig.send(0, 1, Op::WriteImm(0xabcd), 0, 100, signaled());
        let recv = rig.received(1, 1);
        assert_eq!((recv.len(), recv[0].id, recv[0].qp), (1, WrId(50), rig.qps[1]));
        assert_eq!(recv[0].result, Ok(Done { opcode: Opcode::RecvWithImm, bytes: 100, imm: Some(0xabcd) }));
        let sent = rig.sent(0, 1);
        assert_eq!((sent[0].id, sent[0].qp), (WrId(1), rig.qps[0]));
        assert_eq!(sent[0].result, Ok(Done { opcode: Opcode::Write, bytes: 0, imm: None }));
        assert_eq!(rig.bytes(1, 0, 101), [vec![7; 100], vec![0]].concat());
    }
}

#[test]
fn send_scatters_into_the_receive() {
    for pair in pairs() {
        let mut rig = Rig::new(&pair);
        rig.fill(1, 0, 0, 4096);
        rig.fill(0, 0, 1, 10);
        rig.fill(0, 10, 2, 10);
        let into = [rig.sge(1, 1000, 5), rig.sge(1, 2000, 50)];
        rig.recv(1, 9, 2, &into);
        rig.send(0, 1, Op::SendImm(0x0102_0304), 0, 20, signaled());
        rig.send(0, 2, Op::Send, 0, 3, signaled());
        let recv = rig.received(1, 2);
        assert_eq!(recv[0].result, Ok(Done { opcode: Opcode::Recv, bytes: 20, imm: Some(0x0102_0304) }));
        assert_eq!(recv[1].result, Ok(Done { opcode: Opcode::Recv, bytes: 3, imm: None }));
        assert_eq!(short(&recv), [(9, None), (10, None)]);
        assert_eq!(rig.bytes(1, 1000, 6), [1, 1, 1, 1, 1, 0]);
        assert_eq!(rig.bytes(1, 2000, 16), [vec![1; 5], vec![2; 10], vec![0]].concat());
        let sent = rig.sent(0, 2);
        assert!(sent.iter().all(|c| c.result == Ok(Done { opcode: Opcode::Send, bytes: 0, imm: None })));
    }
}

#[test]
fn read_brings_bytes_and_atomics_bring_the_old_value() {
    for pair in pairs() {
        let mut rig = Rig::new(&pair);
        rig.fill(1, 0, 9, 64);
        rig.fill(0, 0, 0, 128);
        let buf = rig.bufs[1];
        rig.f(1).write(buf, 64, &5u64.to_le_bytes()).unwrap();
        rig.send(0, 1, Op::Read, 0, 64, signaled());
        rig.send(0, 2, Op::FetchAdd(3), 64, 8, signaled());
        rig.send(0, 3, Op::CompareSwap { expect: 8, swap: 100 }, 64, 8, signaled());
        let sent = rig.sent(0, 3);
        let opcodes: Vec<_> = sent.iter().map(|c| c.result.unwrap()).map(|d| (d.opcode, d.bytes)).collect();
        assert_eq!(opcodes, [(Opcode::Read, 64), (Opcode::FetchAdd, 8), (Opcode::CompareSwap, 8)]);
        assert_eq!(rig.bytes(0, 0, 64), [9; 64]);
        assert_eq!(rig.bytes(0, 64, 8), 8u64.to_le_bytes());
        assert_eq!(rig.bytes(1, 64, 8), 100u64.to_le_bytes());
    }
}

#[test]
fn inline_bytes_are_taken_at_posting_and_their_key_is_not_looked_at() {
    for pair in pairs() {
        let mut rig = Rig::new(&pair);
        rig.fill(1, 0, 0, 256);
        rig.fill(0, 0, 2, 64);
        let sges = [Sge { lkey: LKey(0), ..rig.sge(0, 0, 40) }, Sge { lkey: LKey(77), ..rig.sge(0, 40, 24) }];
        let flags = Flags { inline: true, ..signaled() };
        let remote = rig.remote(0, 128);
        let request = WorkRequest { id: WrId(2), op: Op::Write, flags, local: &sges, remote };
        rig.post(0, &[Item::One(request)]).unwrap();
        rig.fill(0, 0, 3, 64);
        assert_eq!(short(&rig.sent(0, 1)), [(2, None)]);
        assert_eq!(rig.bytes(1, 128, 65), [vec![2; 64], vec![0]].concat());
        // The CPU reads these bytes: an address that is nobody's would end the process.
        let wild = [Sge { addr: 8, len: 8, lkey: LKey(0) }];
        let request = WorkRequest { local: &wild, ..request };
        let refused = rig.post(0, &[Item::One(request)]).unwrap_err();
        assert!(matches!(refused.why, Error::Invalid { what: "inline address", value: 8, .. }), "{refused}");
    }
}

#[test]
fn gather_lists_and_unsignalled_runs_arrive_in_order() {
    for pair in pairs() {
        let mut rig = Rig::new(&pair);
        rig.fill(1, 0, 0, 65_536);
        rig.recv(1, 0, 1, &[]);
        for i in 0..4 {
            rig.fill(0, i * 1000, 1 + i as u8, 1000);
        }
        let sges = [rig.sge(0, 3000, 500), rig.sge(0, 0, 1000), rig.sge(0, 2000, 1)];
        let remote = rig.remote(0, 4096);
        let one = |id, op, flags| WorkRequest { id: WrId(id), op, flags, local: &sges, remote };
        let mut chain: Vec<_> = (0..20).map(|id| Item::One(one(id, Op::Write, Flags::default()))).collect();
        chain.push(Item::One(one(20, Op::WriteImm(1), signaled())));
        rig.post(0, &chain).unwrap();
        assert_eq!(short(&rig.received(1, 1)), [(0, None)]);
        assert_eq!(rig.bytes(1, 4096, 1502), [vec![4; 500], vec![1; 1000], vec![3], vec![0]].concat());
        assert_eq!(short(&rig.sent(0, 1)), [(20, None)]);
    }
}

/// Pages of several layers, scattered at the source, gathered four at a time; more requests than fit in one call of the device.
#[test]
fn a_batch_is_the_requests_of_its_plan() {
    for pair in pairs() {
        let mut rig = Rig::with(&pair, Spec { max_send: 700, ..Spec::default() });
        let (lanes, pages, page) = (40u32, 60u32, 256u64);
        let grid = Grid { buffers: lanes, pitch: u64::from(pages) * page * 2, pages: pages * 2, page };
        let [from, to] = [0, 1].map(|side| rig.f(side).alloc(Memory::HugePages, grid).unwrap());
        let local = rig.f(0).register(PORT, from, 0..grid.len(), Access::LOCAL).unwrap();
        let remote = rig.f(1).register(PORT, to, 0..grid.len(), Access::REMOTE_WRITE).unwrap();
        // Every other page at the source, touching pages at the target, from its middle on.
        let place = |at, step| Extent { buffers: 0..lanes, at, len: page, count: pages, step };
        let what = Content { seed: 7, at: 3, per_buffer: 1 << 20, per_piece: page };
        rig.f(0).stamp(from, &place(0, 2 * page), what).unwrap();
        let everything = Extent { len: page * u64::from(pages) * 2, count: 1, ..place(0, 0) };
        rig.f(1).stamp(to, &everything, Content { seed: 8, ..what }).unwrap();
        let run = Run {
            local: 0,
            remote: 5 * page,
            len: page as u32,
            count: pages,
            local_step: 2 * page,
            remote_step: page,
            gather: 4,
            joins: false,
        };
        let lane = |i: u64| Lane { local: i * grid.pitch, remote: i * grid.pitch };
        let lanes: Arc<[Lane]> = (0..u64::from(lanes)).map(lane).collect();
        let plan = Arc::new(Plan::new(lanes, vec![run]).unwrap());
        assert_eq!(plan.requests(), 600);
        let batch = Batch {
            plan: &plan,
            first: WrId(1000),
            op: Op::Write,
            local: (local.addr, local.lkey),
            remote: (remote.addr, remote.rkey),
            window: 0..plan.requests(),
            signal_every: 64,
            signal_last: true,
            last: Some(Op::WriteImm(9)),
        };
        rig.recv(1, 4, 1, &[]);
        rig.post(0, &[Item::Many(batch)]).unwrap();
        let recv = rig.received(1, 1);
        assert_eq!(recv[0].result, Ok(Done { opcode: Opcode::RecvWithImm, bytes: 1024, imm: Some(9) }));
        assert_eq!(rig.f(1).holds(to, &place(5 * page, page), what), Ok(true));
        let before = Extent { len: 5 * page, count: 1, ..place(0, 0) };
        assert_eq!(
            rig.f(1).holds(to, &before, Content { seed: 8, ..what }),
            Ok(true),
            "nothing else changed"
        );
        let sent = rig.sent(0, 10);
        let want: Vec<u64> = (1..10).map(|i| 1000 + i * 64 - 1).chain([1599]).collect();
        assert_eq!(sent.iter().map(|c| c.id.0).collect::<Vec<_>>(), want);
        // And back, by READ, into the other half.
        let into = Batch {
            op: Op::Read,
            last: None,
            signal_every: 0,
            first: WrId(0),
            ..batch_of(&plan, &local, &remote)
        };
        let other = rig.f(0).alloc(Memory::Host, grid).unwrap();
        let mr = rig.f(0).register(PORT, other, 0..grid.len(), Access::LOCAL).unwrap();
        let source = rig.f(1).register(PORT, to, 0..grid.len(), Access::REMOTE_READ).unwrap();
        let into = Batch { local: (mr.addr, mr.lkey), remote: (source.addr, source.rkey), ..into };
        rig.post(0, &[Item::Many(into)]).unwrap();
        assert_eq!(short(&rig.sent(0, 1)), [(599, None)]);
        assert_eq!(rig.f(0).holds(other, &place(0, 2 * page), what), Ok(true));
    }
}

fn batch_of<'a>(plan: &'a Arc<Plan>, local: &engine::fabric::Mr, remote: &engine::fabric::Mr) -> Batch<'a> {
    Batch {
        plan,
        first: WrId(100),
        op: Op::Write,
        local: (local.addr, local.lkey),
        remote: (remote.addr, remote.rkey),
        window: 0..plan.requests(),
        signal_every: 0,
        signal_last: true,
        last: None,
    }
}

/// 64 bytes each, one after the other.
fn plan(requests: u32) -> Arc<Plan> {
    let run = Run { count: requests, local_step: 64, remote_step: 64, ..Run::piece(0, 0, 64) };
    Arc::new(Plan::new(Arc::new([Lane { local: 0, remote: 0 }]), vec![run]).unwrap())
}

// ---- errors ----

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

// ---- queues ----

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

// ---- objects ----

#[test]
fn completions_are_told_apart_after_a_queue_pair_was_made_anew() {
    for pair in pairs() {
        for one_cq in [false, true] {
            let mut rig = Rig::with(&pair, Spec { one_cq, ..Spec::default() });
            for round in 0..10 {
                rig.recv(1, 10, 2, &[]);
                rig.send(0, 1, Op::WriteImm(5), 0, 64, signaled());
                rig.send(0, 2, Op::Write, 0, 64, signaled());
                if round % 2 == 0 {
                    rig.sleep(Span::ms(3));
                }
                // With work outstanding, and completions that nobody polled.
                for side in 0..2 {
                    let (send_cq, recv_cq, old) = (rig.send_cqs[side], rig.recv_cqs[side], rig.qps[side]);
                    let f = rig.f(side);
                    f.destroy_qp(old).unwrap();
                    assert_eq!(f.qp_state(old), Err(Error::NoSuch("queue pair")));
                    let new = QpSpec {
                        send_cq,
                        recv_cq,
                        srq: None,
                        max_send: 64,
                        max_recv: 64,
                        max_sge: 4,
                        max_inline: 64,
                    };
                    rig.qps[side] = f.create_qp(PORT, new).unwrap();
                    assert_ne!(rig.qps[side], old);
                }
                assert_eq!((rig.sent(0, 0), rig.received(1, 0)), (vec![], vec![]));
                rig.connect();
                rig.send(0, 3, Op::Write, 0, 64, signaled());
                let sent = rig.sent(0, 1);
                assert_eq!((short(&sent), sent[0].qp), (vec![(3, None)], rig.qps[0]));
                rig.step(0, Step::Err).unwrap();
                rig.step(1, Step::Err).unwrap();
                rig.connect();
            }
        }
    }
}

#[test]
fn objects_in_use_are_busy_and_ids_are_never_used_again() {
    for pair in pairs() {
        let mut rig = Rig::new(&pair);
        let (buf, mr, qp) = (rig.bufs[0], rig.mrs[0], rig.qps[0]);
        let (send_cq, recv_cq) = (rig.send_cqs[0], rig.recv_cqs[0]);
        assert_eq!(rig.duo.side(0).queues(), [send_cq, recv_cq]);
        let f = rig.f(0);
        assert_eq!(f.free(buf), Err(Error::Busy("buffer")));
        assert_eq!(f.destroy_cq(send_cq), Err(Error::Busy("completion queue")));
        f.deregister(mr.id).unwrap();
        assert!(matches!(f.deregister(mr.id), Err(Error::NoSuch(_))));
        f.free(buf).unwrap();
        assert!(matches!(f.free(buf), Err(Error::NoSuch(_))));
        f.destroy_qp(qp).unwrap();
        assert!(matches!(f.destroy_qp(qp), Err(Error::NoSuch(_))));
        f.destroy_cq(send_cq).unwrap();
        let next = f.alloc(Memory::Host, Grid::bytes(64)).unwrap();
        assert_ne!(next, buf);
        assert_eq!(f.poll(send_cq, &mut [Completion::default(); 2]), 0);
        assert_eq!(rig.duo.side(0).queues(), [recv_cq]);
    }
}

#[test]
fn registrations_need_sensible_rights_and_ranges() {
    for pair in pairs() {
        let mut rig = Rig::new(&pair);
        let (buf, base) = (rig.bufs[0], rig.mrs[0].addr);
        let wrong = Access { local_write: false, ..Access::REMOTE_WRITE };
        let f = rig.f(0);
        assert!(matches!(f.register(PORT, buf, 0..64, wrong), Err(Error::Invalid { .. })));
        assert!(matches!(f.register(PORT, buf, 0..SIZE + 1, ALL), Err(Error::Invalid { .. })));
        assert!(matches!(f.register(PORT, buf, 64..64, ALL), Err(Error::Invalid { .. })));
        assert!(matches!(f.register(PortId(1), buf, 0..64, ALL), Err(Error::NoSuch("port"))));
        let part = f.register(PORT, buf, 4096..8192, ALL).unwrap();
        assert_eq!((part.addr, part.len), (base + 4096, 4096));
        let place = Extent::piece(0, SIZE - 1, 2);
        let what = Content { seed: 1, at: 0, per_buffer: 0, per_piece: 0 };
        assert!(matches!(f.stamp(buf, &place, what), Err(Error::Invalid { .. })));
        assert!(matches!(f.write(buf, SIZE, &[1]), Err(Error::Invalid { .. })));
        assert!(matches!(f.read(buf, u64::MAX, &mut [1]), Err(Error::Invalid { .. })));
    }
}

#[test]
fn memory_is_of_the_kinds_that_the_host_has() {
    for pair in pairs() {
        let mut own = vec![7u8; 8192];
        let mut rig = Rig::new(&pair);
        let f = rig.f(0);
        // The test machine has no huge pages reserved, or some: both must do.
        let huge = f.alloc(Memory::HugePages, Grid::bytes(3 << 20)).unwrap();
        f.register(PORT, huge, 0..3 << 20, ALL).unwrap();
        f.write(huge, (3 << 20) - 1, &[9]).unwrap();
        let adopted = Memory::Adopted { addr: own.as_mut_ptr() as u64 };
        let buf = f.alloc(adopted, Grid::bytes(8192)).unwrap();
        let mr = f.register(PORT, buf, 100..8192, Access::LOCAL).unwrap();
        assert_eq!(mr.addr, own.as_ptr() as u64 + 100);
        let mut byte = [0];
        f.read(buf, 8191, &mut byte).unwrap();
        assert_eq!(byte, [7]);
        for kind in [Memory::Phantom, Memory::Device { ordinal: 0 }] {
            assert!(matches!(f.alloc(kind, Grid::bytes(64)), Err(Error::Unsupported(_))));
        }
        let exported = f.alloc(Memory::DmaBuf { fd: 1 << 20, offset: 0 }, Grid::bytes(4096)).unwrap();
        let refused = f.register(PORT, exported, 0..4096, ALL).unwrap_err();
        assert_eq!(refused, Error::Unsupported("dma-buf registration"));
        assert!(matches!(f.write(exported, 0, &[1]), Err(Error::Unsupported(_))));
        f.free(exported).unwrap();
        // Nothing is mapped there: an error, not a crash.
        let wild = f.alloc(Memory::Adopted { addr: 4096 }, Grid::bytes(4096)).unwrap();
        let refused = f.register(PORT, wild, 0..4096, ALL).unwrap_err();
        assert!(matches!(refused, Error::System { call: "ibv_reg_mr", .. }), "{refused}");
        f.deregister(mr.id).unwrap();
        f.free(buf).unwrap();
        own.fill(1);
    }
}

#[test]
fn a_descriptor_wakes_at_the_next_completion() {
    for pair in pairs() {
        let mut rig = Rig::new(&pair);
        let readable = |rig: &mut Rig, side, wait_ms: i64| {
            let fds = rig.duo.side(side).descriptors();
            let mut fds: Vec<_> = fds.iter().map(|fd| zmq::PollItem::from_fd(*fd, zmq::POLLIN)).collect();
            zmq::poll(&mut fds, wait_ms).unwrap() > 0
        };
        rig.recv(1, 0, 20, &[]);
        for round in 0..3 {
            rig.duo.side(1).arm().unwrap();
            assert!(!readable(&mut rig, 1, 20));
            rig.send(0, round, Op::WriteImm(1), 0, 64, signaled());
            rig.send(0, round, Op::WriteImm(1), 0, 64, signaled());
            assert!(readable(&mut rig, 1, 20_000));
            assert_eq!((rig.sent(0, 2).len(), rig.received(1, 2).len()), (2, 2));
            rig.duo.side(1).wake();
            assert!(!readable(&mut rig, 1, 20), "it is quiet until it is armed again");
        }
        // An asynchronous event wakes too, armed or not.
        let mut rig = Rig::with(&pair, Spec { depth: 2, ..Spec::default() });
        for id in 0..60 {
            rig.send(0, id, Op::Write, 0, 64, signaled());
        }
        assert!(readable(&mut rig, 0, 20_000));
        let cq = rig.send_cqs[0];
        rig.event(0, Event::CqOverrun(cq));
    }
}

// ---- fences ----

/// A peer keeps writing; the target moves its end to ERR and takes its memory back. From then on no byte may change.
#[test]
fn nothing_arrives_at_a_fenced_target() {
    for pair in pairs() {
        for shared in [false, true] {
            let mut rig = Rig::unconnected(&pair, Spec::default());
            if shared {
                let (send_cq, recv_cq, old) = (rig.send_cqs[1], rig.recv_cqs[1], rig.qps[1]);
                let f = rig.f(1);
                f.destroy_qp(old).unwrap();
                let srq = f.create_srq(PORT, SrqSpec { max_recv: 8, max_sge: 1 }).unwrap();
                let spec = QpSpec {
                    send_cq,
                    recv_cq,
                    srq: Some(srq),
                    max_send: 8,
                    max_recv: 0,
                    max_sge: 1,
                    max_inline: 0,
                };
                rig.qps[1] = f.create_qp(PORT, spec).unwrap();
            }
            rig.fill(0, 0, 1, SIZE as usize);
            let mut cut = 0;
            for round in 0..8u64 {
                rig.connect();
                // One doorbell for 12 MiB: more than a software device works off before the call returns.
                let sges: Vec<_> = (0..4).map(|i| [rig.sge(0, i << 18, 1 << 18)]).collect();
                let chain: Vec<_> = (0..48)
                    .map(|id| {
                        let remote = rig.remote(0, (id % 4) << 18);
                        let (op, flags, local) = (Op::Write, Flags::default(), &sges[id as usize % 4][..]);
                        Item::One(WorkRequest { id: WrId(id), op, flags, local, remote })
                    })
                    .collect();
                rig.post(0, &chain).unwrap();
                rig.sleep(Span::us(200 + 700 * round));
                rig.step(1, Step::Err).unwrap();
                rig.fill(1, 0, 2, SIZE as usize);
                rig.sleep(Span::ms(10));
                let bytes = rig.bytes(1, 0, SIZE as usize);
                assert_eq!(bytes.iter().position(|b| *b != 2), None, "round {round}");
                // The writer's end: everything has its completion when ERR is there.
                rig.step(0, Step::Err).unwrap();
                let mut done = [Completion::default(); 64];
                let cq = rig.send_cqs[0];
                let n = rig.f(0).poll(cq, &mut done);
                let first = 48 - n as u64;
                assert_eq!(short(&done[..n]), (first..48).map(|id| (id, FLUSH)).collect::<Vec<_>>());
                cut += usize::from(n > 0);
            }
            assert!(cut > 0, "no fence came in the middle of a transfer");
        }
    }
}

#[test]
fn err_flushes_everything_in_order_even_from_full_queues() {
    for pair in pairs() {
        for one_cq in [false, true] {
            let spec = Spec { max_send: 16, max_recv: 16, one_cq, depth: 32, ..Spec::default() };
            let mut rig = Rig::with(&pair, spec);
            let other = rig.qps[1];
            rig.f(1).destroy_qp(other).unwrap();
            rig.recv(0, 100, 16, &[]);
            for id in 0..16 {
                rig.send(0, id, Op::Write, 0, 64, Flags { signaled: id % 4 == 3, ..Flags::default() });
            }
            rig.step(0, Step::Err).unwrap();
            rig.step(0, Step::Err).unwrap();
            let mut done = [Completion::default(); 64];
            let (send_cq, recv_cq) = (rig.send_cqs[0], rig.recv_cqs[0]);
            let mut n = rig.f(0).poll(send_cq, &mut done);
            n += rig.f(0).poll(recv_cq, &mut done[n..]);
            let all = short(&done[..n]);
            let of = |from: u64, to: u64| -> Vec<_> {
                all.iter().copied().filter(|c| (from..to).contains(&c.0)).collect()
            };
            assert_eq!(of(0, 16), (0..16).map(|id| (id, FLUSH)).collect::<Vec<_>>());
            assert_eq!(of(100, 116), (100..116).map(|id| (id, FLUSH)).collect::<Vec<_>>());
            assert_eq!(n, 32, "and no other: {all:?}");
        }
    }
}

// ---- the end ----

#[test]
fn whatever_is_left_is_given_back() {
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    for pair in pairs() {
        let mut before = None;
        for round in 0..20 {
            let mut rig = Rig::new(&pair);
            let srq = rig.f(1).create_srq(PORT, SrqSpec { max_recv: 8, max_sge: 1 }).unwrap();
            rig.f(1).post_srq_recv(srq, Recv { first: WrId(0), count: 4, sges: &[] }).unwrap();
            rig.recv(1, 0, 4, &[]);
            for id in 0..10 {
                rig.send(0, id, Op::WriteImm(1), 0, 4096, signaled());
            }
            rig.duo.side(1).arm().unwrap();
            drop(rig);
            let now = descriptors();
            if round > 0 {
                assert_eq!(Some(now), before);
            }
            before = Some(now);
        }
        // What the kernel still counts would be named here.
        if let Ok(out) = std::process::Command::new("rdma").args(["resource", "show", "qp"]).output() {
            let ours = format!("pid {}", std::process::id());
            let left = String::from_utf8_lossy(&out.stdout);
            let left = left.lines().filter(|l| l.contains(&ours) && l.contains("type RC")).count();
            assert_eq!(left, 0, "queue pairs");
        }
    }
}
