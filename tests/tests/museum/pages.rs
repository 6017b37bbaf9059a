//! Who owns pages: cases 1, 16 and 20.

use engine::node::Step;
use engine::time::Span;
use kvrail_tests::stories::{decode_aborts, no_report_in_time, one_request, shows, slow, tries_one_request};
use sim::kit::{Kit, Side};

/// The request was aborted, and its pages went back to the pool at once, on either side. What its NIC had been told to write went on landing
/// in them: in the cache of whoever had them next. Law: nothing outside a room's own pages changes, and nobody gives pages back that an
/// outstanding request names.
#[test]
fn case_01_pages_reused_while_writes_are_in_flight() {
    let (written, outstanding) = ("written to while no room owned it", "were outstanding");
    shows(one_request, no_report_in_time(), |r| r.fence_before_free = false, written);
    shows(one_request, decode_aborts(), |r| r.initiator_waits = false, outstanding);
    let pull = slow().pull().decode(|i| i.transfer(|t| t.transfer_deadline = Span::ms(10)));
    shows(one_request, pull, |r| r.initiator_waits = false, outstanding);
}

/// Both sides gave the same request up in the same moment. Each took the other's abort for consent, and what was still posted for
/// nothing: pages went back under it. (In other places the second abort found no request and took the scheduler down.) Law: nobody gives
/// pages back that an outstanding request names.
#[test]
fn case_16_both_sides_abort_at_once() {
    let both = |ms: u64, skew: u64| {
        let deadline = move |us: u64| {
            move |i: Side| {
                i.transfer(|t| (t.room_deadline, t.transfer_deadline) = (Span::us(us), Span::us(us)))
            }
        };
        slow().prefill(deadline(1000 * ms)).decode(deadline(1000 * ms + skew))
    };
    shows(one_request, both(10, 0), |r| r.crossed_aborts_wait = false, "were outstanding");
    // At any moment of the room's life, and with the two aborts as far apart as a message is long.
    for ms in [1, 2, 5, 20, 30, 39, 41, 42] {
        for skew in [0, 1, 3, 20, 100] {
            for build in [both(ms, skew), both(ms, skew).pull()] {
                let mut t = build.build();
                let a = t.request(100, 300);
                assert!(t.run(), "quiet with aborts at {ms} ms, {skew} us apart");
                assert!(t.ending(a).is_some());
                t.assert_clean();
            }
        }
    }
}

/// After a failure the room's entry was dropped and its pages were not, nor its registrations and connections: a server that lived through a
/// bad night was out of memory in the morning. Law: at rest nothing is held.
#[test]
fn case_20_leaks_after_failure() {
    shows(tries_one_request, decode_aborts(), |r| r.failed_rooms_released = false, "pages at quiescence");
    // Failure after failure, of every kind, and nothing is left: not after any of them, and not after shutdown.
    let mut t = Kit::pair().network(0.01, Span::us(1)).build();
    for round in 0..12u32 {
        let a = t.request(60, 5);
        assert!(t.run_until(|t| t.saw(a, |s| *s == Step::TransferStart) || t.ending(a).is_some()));
        t.run_for(Span::ms(u64::from(round)));
        let node = if round % 2 == 0 { t.prefill(0) } else { t.decode(0) };
        match round % 3 {
            0 => t.fail_qp(node, 0),
            1 => {
                t.link_down(node, 0);
                t.run_for(Span::s(5));
                t.link_up(node, 0);
            }
            _ => {
                t.pause(node);
                t.run_for(Span::s(8));
                t.resume(node);
            }
        }
        assert!(t.run(), "round {round}");
        assert!(t.ending(a).is_some());
        assert_eq!(t.violations(), Vec::<String>::new(), "round {round}");
    }
    t.assert_clean();
}
