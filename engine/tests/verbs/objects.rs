//! Objects, memory and descriptors.

use crate::rig::{ALL, PORT, Rig, SIZE, Spec, pairs, short, signaled};
use engine::fabric::{
    Access, Completion, Content, Device as _, Error, Event, Extent, Grid, Memory, Op, QpSpec, Recv, SrqSpec,
    Step,
};
use engine::id::{PortId, WrId};
use engine::time::Span;

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
