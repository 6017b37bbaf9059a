//! Failure, whoever gives up and when: every participant is told at once, everything is given back, and what comes later is served.

use engine::id::NodeId;
use engine::node::{Reason, Step};
use engine::registry::Message;
use engine::time::Span;
use kvrail_tests::stories::slow;
use sim::kit::{Build, Ending, ROUTER, Side};

/// Both directions.
fn ways() -> [Build; 2] {
    [slow(), slow().pull()]
}

/// A side gives a room up after so many microseconds, in whatever state it is.
fn gives_up(us: u64) -> impl Fn(Side) -> Side {
    move |i| i.transfer(|t| (t.room_deadline, t.transfer_deadline) = (Span::us(us), Span::us(us)))
}

/// Prefill, decode or the router aborts at any moment of a request's life: before there are pages, while prefill computes, with requests
/// outstanding, at the end, and after it. The other two hear of it, nothing is left, and the next request is served.
#[test]
fn anybody_may_abort_at_any_moment() {
    for base in ways() {
        for us in [1, 30, 60, 100, 130, 200, 1_000, 5_000, 20_000, 40_000, 41_000, 41_500, 42_000, 60_000] {
            for who in 0..3 {
                let build = match who {
                    0 => base.clone().prefill(gives_up(us)),
                    1 => base.clone().decode(gives_up(us)),
                    _ => base.clone().router(|r| r.request_deadline = Span::us(us)),
                };
                let mut t = build.build();
                let a = t.request(100, 50);
                assert!(t.run(), "{who} at {us} us: quiet");
                assert!(t.ending(a).is_some());
                let mut wrong = t.violations();
                wrong.extend(t.shut_down());
                assert_eq!(wrong, Vec::<String>::new(), "{who} at {us} us");
            }
        }
    }
}

/// Nobody waits for a timer of his own: a failure is at the router, and the room is over on both sides, within a few messages and what was
/// posted needs to end.
#[test]
fn everybody_is_told_at_once() {
    for base in ways() {
        // With a small window little is outstanding when somebody gives up.
        let base = base.transfer(|t| t.window.bytes = 4096);
        for side in 0..2 {
            let build = match side {
                0 => base.clone().prefill(gives_up(10_000)),
                _ => base.clone().decode(gives_up(10_000)),
            };
            let mut t = build.build();
            let (a, start) = (t.request(100, 5), t.now());
            assert!(t.run_until(|t| t.ending(a).is_some()));
            assert_eq!(t.ending(a), Some(Ending::Failed(Reason::Deadline)));
            assert!(
                t.now().since(start) < Span::ms(20),
                "{side}: the router after {:?}",
                t.now().since(start)
            );
            assert!(t.run_until(|t| (2..4).all(|node| t.held(NodeId(node)).rooms == 0)));
            assert!(
                t.now().since(start) < Span::ms(25),
                "{side}: both sides after {:?}",
                t.now().since(start)
            );
            assert_eq!(t.counted().fences, 0, "{side}: a report is enough");
            t.run();
            t.assert_clean();
        }
    }
}

/// An instance is silent for longer than its lease and comes back as another one: its rooms have failed, and it serves the next request
/// under its new id. The registry is restarted in between, or not.
#[test]
fn an_instance_is_replaced() {
    for base in ways() {
        for (side, restart) in [(0, false), (0, true), (1, false), (1, true)] {
            let mut t = base.clone().router(|r| r.patience = Span::s(30)).build();
            let a = t.request(100, 5);
            assert!(t.run_until(|t| t.saw(a, |s| *s == Step::TransferStart)));
            let node = if side == 0 { t.prefill(0) } else { t.decode(0) };
            t.pause(node);
            if restart {
                t.run_for(Span::s(1));
                t.restart_registry();
            }
            // A registry that comes back waits for the instances that others name.
            t.run_for(Span::s(25));
            t.resume(node);
            let b = t.request(100, 5);
            assert!(t.run(), "quiet");
            assert!(t.ending(a).is_some());
            t.assert_finished(b);
            let ids = |id| {
                t.steps(id).find_map(|s| match s.record.step {
                    Step::Routed { prefill, decode } => Some([prefill, decode]),
                    _ => None,
                })
            };
            assert_ne!(ids(a).unwrap()[side], ids(b).unwrap()[side], "another id");
            t.assert_clean();
        }
    }
}

/// Aborts that cross, and an abort for a room that the other side has not heard of yet: what is assigned later finds its tombstone.
#[test]
fn an_abort_overtakes_the_room() {
    for base in ways() {
        for late in [0, 1] {
            let mut t = base.clone().router(|r| r.request_deadline = Span::ms(20)).build();
            let node = if late == 0 { t.prefill(0) } else { t.decode(0) };
            let held = t.hold(move |said| said.to == node && matches!(said.message, Message::Assign { .. }));
            let a = t.request(100, 5);
            t.run_for(Span::ms(40));
            t.let_go(held);
            assert!(t.run());
            assert_eq!(t.ending(a), Some(Ending::Failed(Reason::Deadline)));
            assert!(!t.succeeded(a));
            t.assert_clean();
        }
    }
}

/// A router that leaves takes its requests with it: no instance keeps a room that nobody waits for.
#[test]
fn a_router_that_stops_leaves_no_rooms() {
    for base in ways() {
        let mut t = base.build();
        let a = t.request(100, 500);
        assert!(t.run_until(|t| t.saw(a, |s| *s == Step::TransferStart)));
        t.pause(ROUTER);
        t.run_for(Span::s(40));
        for node in [2, 3] {
            let held = t.held(NodeId(node));
            assert_eq!((held.rooms, held.pages, held.slots, held.timers), (0, 0, 0, 0), "node {node}");
        }
        t.resume(ROUTER);
        assert!(t.run());
        t.assert_clean();
    }
}
