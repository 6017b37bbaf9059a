//! What operations move, and in which order.

use crate::common::{Rig, signaled};
use engine::fabric::{Done, Fabric as _, Flags, Item, Op, Opcode, Sge, WorkRequest};
use engine::id::{LKey, RKey, WrId};
use sim::fabric::pair::PairSpec;

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
