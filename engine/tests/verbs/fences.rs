//! What a queue pair that left RTS lets through no more.

use crate::FLUSH;
use crate::rig::{PORT, Rig, SIZE, Spec, pairs, short, signaled};
use engine::fabric::{Completion, Flags, Item, Op, QpSpec, SrqSpec, Step, WorkRequest};
use engine::id::WrId;
use engine::time::Span;

/// A peer keeps writing; the target moves its end to ERR and takes its memory back. From then on no byte may change.
/// One doorbell for 12 MiB: more than a software device works off before the call returns.
fn long_transfer(rig: &mut Rig) {
    let sges: Vec<_> = (0..4).map(|i| [rig.sge(0, i << 18, 1 << 18)]).collect();
    let chain: Vec<_> = (0..48)
        .map(|id| {
            let remote = rig.remote(0, (id % 4) << 18);
            let (op, flags, local) = (Op::Write, Flags::default(), &sges[id as usize % 4][..]);
            Item::One(WorkRequest { id: WrId(id), op, flags, local, remote })
        })
        .collect();
    rig.post(0, &chain).unwrap();
}

#[test]
fn a_reset_in_the_middle_of_a_transfer_ends_it() {
    for pair in pairs() {
        let mut rig = Rig::unconnected(&pair, Spec::default());
        rig.fill(0, 0, 1, SIZE as usize);
        // Both orders, as each side may find out first.
        for (round, first) in [1, 0, 1, 0, 1, 0].into_iter().enumerate() {
            rig.connect();
            long_transfer(&mut rig);
            rig.sleep(Span::us(300 + 900 * round as u64));
            rig.step(first, Step::Reset).unwrap();
            rig.fill(1, 0, 2, SIZE as usize);
            rig.step(1 - first, Step::Reset).unwrap();
            if first == 0 {
                // The target may have taken in what was under way until now.
                rig.fill(1, 0, 2, SIZE as usize);
            }
            rig.sleep(Span::ms(10));
            let bytes = rig.bytes(1, 0, SIZE as usize);
            assert_eq!(bytes.iter().position(|b| *b != 2), None, "round {round}");
            let mut done = [Completion::default(); 64];
            let cq = rig.send_cqs[0];
            assert_eq!(rig.f(0).poll(cq, &mut done), 0, "completions are discarded");
        }
        // The same queue pairs work again.
        rig.connect();
        rig.send(0, 7, Op::Write, 0, 4096, signaled());
        let done = rig.sent(0, 1);
        assert_eq!(short(&done), [(7, None)]);
        assert_eq!(rig.bytes(1, 0, 4096), vec![1; 4096]);
    }
}

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
                long_transfer(&mut rig);
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
