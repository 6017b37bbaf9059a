//! What operations move.

use crate::batch_of;
use crate::rig::{PORT, Rig, Spec, pairs, short, signaled};
use engine::fabric::{
    Access, Batch, Content, Done, Error, Extent, Flags, Grid, Item, Lane, Memory, Op, Opcode, Plan, Run, Sge,
    WorkRequest,
};
use engine::id::{LKey, WrId};
use std::sync::Arc;

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
