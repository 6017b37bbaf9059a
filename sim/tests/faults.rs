//! Random programs with faults at random times: every request completes as the contract says, nothing is lost, nothing is left.

mod common;

use common::Rig;
use engine::fabric::{Completion, Fabric, Flags, Op, QpState, RnrTimer, Rts, Step};
use engine::id::PortId;
use engine::time::Span;
use proptest::prelude::*;
use sim::fabric::pair::PairSpec;
use sim::nic::{Duration, NicProfile};

#[derive(Clone, Debug)]
enum Act {
    /// WRITE number `slot` of this side: its own 64 bytes.
    Write {
        side: usize,
        slot: u64,
        imm: bool,
        signaled: bool,
        long: bool,
    },
    Read {
        side: usize,
        slot: u64,
    },
    Recv {
        side: usize,
        count: u32,
    },
    Wait {
        ps: u64,
    },
    Fail {
        side: usize,
    },
    Err {
        side: usize,
    },
    Reconnect,
    Link {
        side: usize,
        up: bool,
    },
    Degrade {
        side: usize,
    },
}

fn act() -> impl Strategy<Value = Act> {
    let side = 0usize..2;
    prop_oneof![
        8 => (side.clone(), 0u64..100, any::<bool>(), any::<bool>(), 0..4).prop_map(
            |(side, slot, imm, signaled, long)| Act::Write { side, slot, imm, signaled, long: long == 0 }),
        1 => (side.clone(), 0u64..100).prop_map(|(side, slot)| Act::Read { side, slot }),
        4 => (side.clone(), 1u32..4).prop_map(|(side, count)| Act::Recv { side, count }),
        4 => (0u64..4_000_000).prop_map(|ps| Act::Wait { ps }),
        1 => (0u64..900_000_000).prop_map(|ps| Act::Wait { ps }),
        1 => side.clone().prop_map(|side| Act::Fail { side }),
        1 => side.clone().prop_map(|side| Act::Err { side }),
        1 => Just(Act::Reconnect),
        1 => (side.clone(), any::<bool>()).prop_map(|(side, up)| Act::Link { side, up }),
        1 => side.prop_map(|side| Act::Degrade { side }),
    ]
}

/// What one side posted since it was last connected: (id, signalled).
#[derive(Default)]
struct Log {
    posted: Vec<(u64, bool)>,
    done: Vec<Completion>,
}

impl Log {
    /// Requests after the last completion: they succeeded unseen.
    fn silent(&self) -> u64 {
        let last = self.done.last().and_then(|c| self.posted.iter().position(|p| p.0 == c.id.0));
        (self.posted.len() - last.map_or(0, |at| at + 1)) as u64
    }

    /// Completions in order; signalled ones before the first error, every one from it on, the first of these the culprit.
    fn check(&self, finished: bool) -> Result<(), TestCaseError> {
        let mut posted = self.posted.iter();
        let mut failed = false;
        for done in &self.done {
            let error = done.result.is_err();
            if failed {
                prop_assert!(error);
                prop_assert_eq!(
                    posted.next().map(|p| p.0),
                    Some(done.id.0),
                    "every request after an error completes"
                );
            } else if error {
                // Requests before it that had no completion of their own succeeded.
                let this = posted.by_ref().find(|p| p.0 == done.id.0 || p.1);
                prop_assert_eq!(this.map(|p| p.0), Some(done.id.0));
            } else {
                prop_assert_eq!(posted.by_ref().find(|p| p.1).map(|p| p.0), Some(done.id.0));
            }
            failed = error;
        }
        if finished && failed {
            prop_assert_eq!(posted.next(), None, "nothing is left when a queue pair has failed");
        }
        Ok(())
    }
}

fn nic() -> NicProfile {
    let ns = |n| Duration(Span::ns(n));
    NicProfile {
        build: ns(50),
        doorbell_latency: ns(100),
        transmit: ns(200),
        receive: ns(200),
        ack: ns(100),
        recv_cqe: ns(80),
        send_cqe: ns(90),
        qp_message: ns(100),
        ..NicProfile::ideal()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn every_request_completes_as_it_should(
        acts in proptest::collection::vec(act(), 1..60),
        same_host in (0..5).prop_map(|n| n == 0),
        rnr_retry in prop_oneof![Just(0u8), Just(2), Just(7)],
    ) {
        let rts = Rts { timeout: 5, retry_cnt: 2, rnr_retry, max_rd_atomic: 4 };
        let spec = PairSpec { nic: nic(), rts, min_rnr_timer: RnrTimer(1), same_host, ..PairSpec::default() };
        let mut rig = Rig::new(spec);
        let mut logs = [Log::default(), Log::default()];
        let mut id = 0;
        // Side s fills its slots in its own half with a byte of its own.
        for side in 0..2 {
            rig.fill(side, side as u64 * 32_768, 1 + side as u8, 32_768);
        }
        for act in acts {
            match act {
                Act::Write { side, slot, imm, signaled, long } => {
                    if state(&rig, side) == QpState::Rts {
                        id += 1;
                        let op = if imm { Op::WriteImm(id as u32) } else { Op::Write };
                        let at = side as u64 * 32_768 + slot * 64;
                        let len = if long { 16_384 } else { 64 };
                        rig.send(side, id, op, at, len, Flags { signaled, ..Flags::default() });
                        logs[side].posted.push((id, signaled));
                    }
                }
                Act::Read { side, slot } => {
                    if state(&rig, side) == QpState::Rts {
                        id += 1;
                        // The upper end of the other side's half: nobody writes there.
                        let at = (1 - side as u64) * 32_768 + 30_000 + slot;
                        rig.send(side, id, Op::Read, at, 64, Flags { signaled: true, ..Flags::default() });
                        logs[side].posted.push((id, true));
                    }
                }
                Act::Recv { side, count } => rig.recv(side, 0, count, &[]),
                Act::Wait { ps } => rig.pair.run_for(Span(ps)),
                Act::Fail { side } => {
                    let (end, now) = (rig.pair.ends[side], rig.pair.now);
                    let pair = &mut rig.pair;
                    pair.fabrics.fail_qp(end.host, end.qp, now, &mut pair.queue, &mut pair.ready);
                }
                Act::Err { side } => {
                    let qp = rig.pair.ends[side].qp;
                    rig.pair.call(side, |f| f.modify_qp(qp, Step::Err)).unwrap();
                }
                Act::Reconnect => {
                    for (side, log) in logs.iter_mut().enumerate() {
                        log.done.extend(rig.pair.sends(side));
                        log.check(false)?;
                        *log = Log::default();
                    }
                    rig.pair.connect().unwrap();
                    // What RESET discarded never completes.
                    prop_assert_eq!((rig.sent(0), rig.sent(1)), (vec![], vec![]));
                }
                Act::Link { side, up } => rig.pair.link(side, up),
                Act::Degrade { side } => {
                    let (host, now, pair) = (rig.pair.ends[side].host, rig.pair.now, &mut rig.pair);
                    pair.fabrics.degrade(host, PortId(0), 0.5, now, &mut pair.queue).unwrap();
                }
            }
        }
        // Everything ends: receives for all who wait, links up, time.
        for side in 0..2 {
            rig.pair.link(side, true);
            if state(&rig, side) != QpState::Reset {
                rig.recv(side, 0, 100, &[]);
            }
        }
        rig.run();
        prop_assert!(rig.pair.fabrics.quiescent());
        for (side, log) in logs.iter_mut().enumerate() {
            let ok = state(&rig, side) == QpState::Rts;
            log.done.extend(rig.pair.sends(side));
            log.check(true)?;
            if ok {
                // All signalled requests succeeded, and so did all before the last of them.
                let signaled = log.posted.iter().filter(|p| p.1).count();
                prop_assert_eq!(log.done.len(), signaled);
            } else {
                prop_assert_eq!(rig.pair.fabrics.host_ref(rig.pair.ends[side].host).qp_state(rig.pair.ends[side].qp), Ok(QpState::Err));
            }
            // Nothing but the other side's content in its half, nothing at all beyond its slots.
            if !same_host {
                let other = 1 - side;
                let half = rig.bytes(side, other as u64 * 32_768, 32_768);
                prop_assert!(half.iter().all(|b| *b == 0 || *b == 1 + other as u8));
                prop_assert!(half[99 * 64 + 16_384..30_000].iter().all(|b| *b == 0));
                let own = rig.bytes(side, side as u64 * 32_768, 32_768);
                prop_assert!(own.iter().all(|b| *b == 1 + side as u8));
            }
            let qp = rig.pair.ends[side].qp;
            rig.pair.call(side, |f| f.modify_qp(qp, Step::Err)).unwrap();
            log.done.extend(rig.pair.sends(side));
        }
        rig.run();
        let silent: u64 = logs.iter().map(Log::silent).sum();
        let sends = (0..2).map(|h| rig.pair.fabrics.host_ref(h).objects().sends).sum::<u64>();
        prop_assert_eq!(sends, silent, "every place is free again that a completion covers");
        prop_assert_eq!(rig.pair.fabrics.host_ref(0).objects().receives, 0);
    }
}

fn state(rig: &Rig, side: usize) -> QpState {
    let end = rig.pair.ends[side];
    rig.pair.fabrics.host_ref(end.host).qp_state(end.qp).unwrap()
}
