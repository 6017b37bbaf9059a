//! The contract of [`engine::fabric::Fabric`] on real devices: Soft-RoCE's rxe0 (which loops back), and rxeA with rxeB. Without them
//! the tests are skipped, unless `KVRAIL_VERBS=required` is set.

mod verbs_rig;

use engine::fabric::{Done, Op, Opcode};
use engine::id::WrId;
use verbs_rig::{Rig, pairs, signaled};

#[test]
fn write_imm_places_data_and_consumes_a_receive() {
    for pair in pairs() {
        let mut rig = Rig::new(&pair);
        rig.fill(0, 0, 7, 100);
        rig.fill(1, 0, 0, 101);
        rig.recv(1, 50, 1, &[]);
        rig.send(0, 1, Op::WriteImm(0xabcd), 0, 100, signaled());
        let recv = rig.received(1, 1);
        assert_eq!((recv.len(), recv[0].id), (1, WrId(50)));
        assert_eq!(recv[0].result, Ok(Done { opcode: Opcode::RecvWithImm, bytes: 100, imm: Some(0xabcd) }));
        let sent = rig.sent(0, 1);
        assert_eq!(sent[0].result, Ok(Done { opcode: Opcode::Write, bytes: 0, imm: None }));
        assert_eq!(rig.bytes(1, 0, 101), [vec![7; 100], vec![0]].concat());
    }
}
