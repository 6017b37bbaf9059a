//! What each protocol rule is for: a scenario that ends clean with the rule, and without it shows the loss that the rule prevents.
//!
//! Rules that the control channel's order protects as well are shown on sender and receiver alone, in `duo`.

use engine::node::Step;
use engine::time::Span;
use kvrail_tests::stories::{decode_aborts, no_report_in_time, one_request, shows, slow};
use sim::kit::{Build, Ending, Kit};
use sim::nic::NicProfile;

/// A room fails on decode in the middle of its transfer, and prefill's report does not come in time.
#[test]
fn fence_before_free() {
    let loss = "written to while no room owned it";
    shows(one_request, no_report_in_time(), |r| r.fence_before_free = false, loss);
}

/// Decode aborts a room while prefill's requests are outstanding.
#[test]
fn initiator_waits() {
    shows(one_request, decode_aborts(), |r| r.initiator_waits = false, "were outstanding");
}

/// Prefill computes in two chunks: the first part is not all there is.
#[test]
fn seals() {
    let base = Kit::pair().prefill(|i| i.batch(50));
    shows(one_request, base, |r| r.seals = false, "wrong content");
}

/// The aux row behind the immediate on the same queue pair: Success comes before it.
#[test]
fn aux_in_part() {
    shows(one_request, Kit::pair(), |r| r.aux_in_part = false, "wrong content");
}

/// Page lists before receives: the immediate finds none.
#[test]
fn receive_credits() {
    let naks = |build: Build| {
        let mut t = build.compute(Span::ns(1), Span::us(100)).build();
        t.request(100, 5);
        t.run();
        t.counted().rnr_naks
    };
    assert_eq!(naks(Kit::pair()), 0);
    assert!(naks(Kit::pair().rules(|r| r.receive_credits = false)) > 0);
}

/// Decode's process stops until its lease is gone, while its NIC takes the rest of the room in.
#[test]
fn lease() {
    let story = |build: Build| {
        let mut t = build.build();
        let a = t.request(100, 1);
        assert!(t.run_until(|t| t.saw(a, |s| *s == Step::TransferStart)));
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

/// Decode has aborted a room, and a queue pair dies at prefill with packets still on the way. With [`Rules::ask`] on, the ask arrives before
/// the report (one session keeps the order), and decode fences for that: both must be off for the loss.
#[test]
fn honest_report() {
    let story = |build: Build| {
        let mut t = build.build();
        let a = t.request(100, 5);
        assert!(t.run_until(|t| t.saw(a, |s| matches!(s, Step::Failed(_)))));
        t.run_for(Span::us(100));
        let node = t.prefill(0);
        t.fail_qp(node, 0);
        t.run();
        t
    };
    let base = Kit::pair()
        .network(0.1, Span::ms(5))
        .decode(|i| i.transfer(|t| t.room_deadline = Span::ms(3)))
        .rules(|r| r.ask = false);
    shows(story, base, |r| r.honest_report = false, "written to while no room owned it");
}

/// A queue pair of prefill dies, and decode's end does not see it by itself.
#[test]
fn ask() {
    let end = |build: Build| {
        let mut t = build.build();
        let a = t.request(100, 5);
        assert!(t.run_until(|t| t.saw(a, |s| *s == Step::TransferStart)));
        t.run_for(Span::ms(1));
        let node = t.prefill(0);
        t.fail_qp(node, 0);
        assert!(t.run());
        assert_eq!(t.violations(), Vec::<String>::new());
        t.ending(a)
    };
    assert_eq!(end(slow()), Some(Ending::Finished));
    // Nothing is corrupted, but the request waits for a deadline and fails.
    assert!(matches!(end(slow().rules(|r| r.ask = false)), Some(Ending::Failed(_))));
}

/// A NIC that writes the completion of a receive late: data is there and acknowledged, the receiver does not know yet.
fn late_completions() -> Build {
    let mut nic = NicProfile::ideal();
    nic.recv_cqe = sim::nic::Duration(Span::ms(2));
    Kit::pair().nic(nic)
}

/// A queue pair dies at prefill when everything has arrived and been acknowledged: decode is asked for an offer before it has polled.
#[test]
fn poll_before_offer() {
    let end = |build: Build| {
        let mut t = build.build();
        let a = t.request(100, 5);
        assert!(t.run_until(|t| t.delivered(a)));
        assert!(!t.succeeded(a));
        let node = t.prefill(0);
        t.fail_qp(node, 0);
        assert!(t.run());
        t.ending(a)
    };
    assert_eq!(end(late_completions()), Some(Ending::Finished));
    assert!(matches!(
        end(late_completions().rules(|r| r.poll_before_offer = false)),
        Some(Ending::Failed(_))
    ));
}

/// An immediate of an ended room is polled after its slot has a new owner, whose own first part is stuck. `others` requests go elsewhere in
/// between.
fn stale_immediate(build: Build) -> Kit {
    let mut t = build.build();
    // The first room: the parts of its first chunk arrive, then prefill gives up and reports, in good order.
    let a = t.request(100, 5);
    assert!(t.run_until(|t| t.ending(a).is_some()));
    // The second one takes its slot. Its first part is stuck behind a link that is down.
    t.request(50, 5);
    let prefill = t.prefill(t.prefills() - 1);
    t.link_down(prefill, 0);
    t.run_for(Span::ms(8));
    t.link_up(prefill, 0);
    t.run();
    t
}

fn two_rails(build: Build) -> Build {
    build
        .prefill(|i| i.ports(2).batch(50))
        .decode(|i| i.ports(2))
        .compute(Span::us(20), Span::us(100))
        .transfer(|t| {
            t.rails = 2;
            t.rail_policy = engine::policy::RailPolicy::Striped;
            t.slots = 1;
            // Else the part that is stuck would go another way.
            t.failover = None;
        })
}

#[test]
fn slot_generation() {
    let base = two_rails(late_completions());
    let base = base.prefill(|i| i.transfer(|t| t.room_deadline = Span::us(1500)));
    assert!(stale_immediate(base.clone()).counted().stale > 0);
    shows(stale_immediate, base, |r| r.slot_generation = false, "wrong content");
}

/// The same with two prefill instances. A generation has eight bits: after 256 owners of the slot it says nothing, and only the queue pair
/// tells whose immediate it is. Generations are off here in both runs, for there is no time for 256 owners.
#[test]
fn sender_check() {
    let base = two_rails(late_completions()).rules(|r| r.slot_generation = false);
    let base = base.prefill(|i| i.instances(2).transfer(|t| t.room_deadline = Span::us(1500)));
    assert!(stale_immediate(base.clone()).counted().stale > 0);
    shows(stale_immediate, base, |r| r.sender_check = false, "wrong content");
}

/// Prefill leaves in good order while it computes: nothing of the step is waited for.
#[test]
fn prefill_leaves_in_the_middle_of_a_step() {
    let mut t = Kit::pair().compute(Span::ms(1), Span::us(100)).build();
    let a = t.request(100, 5);
    assert!(t.run_until(|t| t.saw(a, |s| matches!(s, Step::PrefillStart { .. }))));
    let node = t.prefill(0);
    t.leave(node);
    assert!(t.run());
    assert!(matches!(t.ending(a), Some(Ending::Failed(_))));
    t.assert_clean();
}

/// A process that was stopped for longer than its lease is told to leave: it goes before it is welcomed again.
#[test]
fn prefill_leaves_when_its_lease_is_gone() {
    let mut t = Kit::pair().build();
    let node = t.prefill(0);
    t.pause(node);
    t.run_for(Span::s(8));
    t.leave(node);
    t.resume(node);
    let before = t.world().events();
    t.run_for(Span::s(20));
    assert!(t.world().events() - before < 10_000, "goes round in circles");
    t.assert_clean();
}

/// The registry dies and comes back knowing nothing while rooms are at every stage: nobody loses a request over it.
#[test]
fn registry_restarts() {
    for ms in [1, 5, 20, 30, 70, 200] {
        let mut t = slow().prefill(|i| i.tp(2)).build();
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
