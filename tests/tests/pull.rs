//! Pull: decode reads. What the protocol rules are for when prefill is the target, and stories of what goes wrong in the middle of a READ.
//! Rules that the control channel's order protects as well are shown in `duo`, for both directions.

use engine::id::RequestId;
use engine::node::Step;
use engine::policy::{Direction, Granularity};
use engine::registry::Message;
use engine::time::Span;
use kvrail_tests::stories::shows;
use sim::kit::{Build, Ending, Kit};
use std::cell::Cell;
use std::rc::Rc;

/// Slow enough that a story can be told while data moves: 100 tokens take 41 ms.
fn slow() -> Build {
    Kit::pair().pull().network(0.01, Span::us(1))
}

/// In the middle of its READs.
fn reads(t: &mut Kit, request: RequestId) {
    assert!(t.run_until(|t| t.saw(request, |s| *s == Step::TransferStart)));
    t.run_for(Span::ms(5));
    assert!(!t.succeeded(request));
    // Where the aux row is read to.
    assert!(t.held(t.decode(0)).slots > 0);
}

/// A room fails on prefill in the middle of decode's READs, and decode does not hear of it. Its pages go to another request.
#[test]
fn fence_before_free() {
    let story = |build: Build| {
        let mut t = build.build();
        let a = t.request(100, 5);
        reads(&mut t, a);
        let prefill = t.prefill(0);
        let late = t.hold(move |said| said.from == prefill && matches!(said.message, Message::Abort { .. }));
        t.request(100, 5);
        t.run_for(Span::ms(60));
        t.let_go(late);
        assert!(t.run());
        t
    };
    // Pages for one request.
    let base = slow().prefill(|i| {
        i.pages(7).transfer(|t| {
            t.room_deadline = Span::ms(10);
            t.drain_deadline = Span::ms(1);
        })
    });
    shows(story, base, |r| r.fence_before_free = false, "wrong content");
}

/// Decode gives a room up in the middle of its READs: its pages are still written to.
#[test]
fn initiator_waits() {
    let story = |build: Build| {
        let mut t = build.build();
        t.request(100, 5);
        assert!(t.run());
        t
    };
    let base = slow().decode(|i| i.transfer(|t| t.transfer_deadline = Span::ms(10)));
    shows(story, base.clone(), |r| r.initiator_waits = false, "were outstanding");
    shows(story, base, |r| r.initiator_waits = false, "written to while no room owned it");
}

/// Decode's process stops until its lease is gone, while its NIC reads the rest of the room.
#[test]
fn lease() {
    let story = |build: Build| {
        let mut t = build.build();
        let a = t.request(100, 1);
        reads(&mut t, a);
        let node = t.decode(0);
        t.pause(node);
        t.run_for(Span::s(8));
        t.resume(node);
        t.run();
        t
    };
    let base = slow().router(|r| r.patience = Span::s(1));
    shows(story, base, |r| r.lease = false, "reached 2 final states");
}

/// A queue pair of decode dies: prefill's end does not see it by itself.
#[test]
fn ask() {
    let end = |build: Build| {
        let mut t = build.build();
        let a = t.request(100, 5);
        reads(&mut t, a);
        let node = t.decode(0);
        t.fail_qp(node, 0);
        assert!(t.run());
        assert_eq!(t.violations(), Vec::<String>::new());
        t.ending(a)
    };
    assert_eq!(end(slow()), Some(Ending::Finished));
    assert!(matches!(end(slow().rules(|r| r.ask = false)), Some(Ending::Failed(_))));
}

/// Decode stops for longer than its lease with READs on the way that take longer still. Prefill is told that it is gone, fences, and gives the
/// pages to a request of another decode instance; then the stopped one goes on.
#[test]
fn a_decode_that_was_given_up_reads_nothing_of_the_next_owner() {
    // 100 tokens take 20 s.
    let build = Kit::cluster(1, 2).pull().network(0.000_02, Span::us(1)).prefill(|i| i.pages(7));
    let mut t = build
        .transfer(|t| {
            t.rts.timeout = 22;
            t.transfer_deadline = Span::s(60);
            t.room_deadline = Span::s(100);
        })
        .router(|r| {
            r.request_deadline = Span::s(150);
            r.patience = Span::s(1);
        })
        .build();
    let a = t.request(100, 5);
    reads(&mut t, a);
    let stopped = t.decode(0);
    t.pause(stopped);
    let b = t.request(100, 5);
    assert!(t.run_until(|t| t.saw(b, |s| *s == Step::TransferStart)), "prefill has its pages back");
    assert!(t.counted().fences > 0);
    t.run_for(Span::s(1));
    t.resume(stopped);
    assert!(t.run());
    assert!(!t.succeeded(a) && matches!(t.ending(a), Some(Ending::Failed(_))));
    t.assert_finished(b);
    t.assert_clean();
}

#[test]
fn either_side_gives_up_in_the_middle_of_a_read() {
    let decode = slow().decode(|i| i.transfer(|t| t.transfer_deadline = Span::ms(10)));
    let prefill = slow().prefill(|i| i.transfer(|t| t.room_deadline = Span::ms(10)));
    for (who, build) in [("decode", decode), ("prefill", prefill)] {
        let mut t = build.bytes().build();
        let a = t.request(100, 5);
        assert!(t.run(), "{who}");
        assert!(matches!(t.ending(a), Some(Ending::Failed(_))), "{who}: {:?}", t.ending(a));
        // Decode's READs ended well, so that its report lets prefill free without a fence.
        assert_eq!(t.counted().fences, 0, "{who}");
        t.assert_clean();
    }
}

#[test]
fn reads_begin_anew_on_new_queue_pairs() {
    for (side, index) in [(0, 0), (0, 3), (1, 0), (1, 2)] {
        let mut t = slow().prefill(|i| i.tp(2)).decode(|i| i.tp(4)).bytes().build();
        let requests = [t.request(100, 5), t.request(40, 5)];
        reads(&mut t, requests[0]);
        let node = [t.prefill(0), t.decode(0)][side];
        t.fail_qp(node, index);
        assert!(t.run());
        for request in requests {
            t.assert_finished(request);
        }
        t.assert_clean();
    }
}

#[test]
fn a_prefill_that_dies_takes_its_rooms_with_it() {
    for leaves in [false, true] {
        let mut t = slow().router(|r| r.patience = Span::s(1)).build();
        let a = t.request(100, 5);
        reads(&mut t, a);
        let node = t.prefill(0);
        if leaves {
            t.leave(node);
        } else {
            t.pause(node);
            t.run_for(Span::s(8));
            t.resume(node);
        }
        assert!(t.run());
        assert!(t.ending(a).is_some());
        t.assert_clean();
    }
}

/// The registry dies and comes back knowing nothing while rooms are at every stage: nobody loses a request over it.
#[test]
fn registry_restarts() {
    for ms in [1, 5, 20, 30, 70, 200] {
        let mut t = slow().prefill(|i| i.tp(2).batch(32)).build();
        let requests = [t.request(100, 5), t.request(60, 300), t.request(20, 3)];
        t.run_for(Span::ms(ms));
        t.restart_registry();
        assert!(t.run(), "quiet again after {ms} ms");
        for request in requests {
            t.assert_finished(request);
        }
        t.assert_clean();
    }
}

/// More chunks and layers than messages: what is beyond is told at the end.
#[test]
fn prefill_tells_of_a_room_a_bounded_number_of_times() {
    let said = |parts: u16, granularity| {
        let mut t = Kit::pair()
            .pull()
            .prefill(|i| i.batch(32))
            .transfer(|t| (t.parts_per_rail, t.granularity) = (parts, granularity))
            .build();
        let count = Rc::new(Cell::new(0));
        let heard = count.clone();
        t.lose(move |said| {
            let told = said.to_registry() && matches!(said.message, Message::Produced { .. });
            heard.set(heard.get() + u32::from(told));
            false
        });
        let a = t.request(500, 3);
        assert!(t.run());
        t.assert_finished(a);
        t.assert_fault_free();
        count.get()
    };
    let layers = Granularity::LayerWise { layers: 1 };
    assert_eq!(said(5, layers), 5);
    assert_eq!(said(1, layers), 1);
    assert_eq!(said(100, Granularity::Chunk), 16);
    assert_eq!(said(100, Granularity::Request), 1);
}

/// Far away, what counts is how many READs are outstanding: as many as the end that can do less.
#[test]
fn both_ends_bound_the_reads_outstanding() {
    let takes = |at_prefill: u8, at_decode: u8| {
        let mut t = Kit::pair()
            .pull()
            .network(100.0, Span::ms(1))
            .prefill(|i| i.scatter().transfer(|t| t.rts.max_rd_atomic = at_prefill))
            .decode(|i| i.transfer(|t| t.rts.max_rd_atomic = at_decode))
            .build();
        let a = t.request(300, 3);
        assert!(t.run());
        let at = |step: Step| t.steps(a).find(|s| s.record.step == step).map(|s| s.at);
        let (start, end) = (at(Step::TransferStart).unwrap(), at(Step::Success).unwrap());
        t.assert_fault_free();
        end.since(start)
    };
    assert_eq!(takes(1, 16), takes(16, 1));
    assert_eq!(takes(1, 16), takes(1, 1));
    assert!(takes(1, 16).0 > 3 * takes(16, 16).0, "{:?} {:?}", takes(1, 16), takes(16, 16));
}

/// A prefill that writes and a decode that reads could only wait for one another.
#[test]
fn sides_of_unlike_direction_are_refused_at_once() {
    let mut t = Kit::pair().decode(|i| i.transfer(|t| t.direction = Direction::Pull)).build();
    let a = t.request(100, 5);
    assert!(t.run());
    assert!(!matches!(t.ending(a), Some(Ending::Finished)), "{:?}", t.ending(a));
}
