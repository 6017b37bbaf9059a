//! What one side believes of the other: cases 10, 11, 15 and 17.

use engine::time::Span;
use kvrail_tests::stories::{Outage, meets, shows, slow, without};
use sim::kit::{Build, Ending};

/// A link was down for a moment. The first send that failed put the peer on a list, and nothing ever took it off: all later requests to it failed
/// at once, or waited, until somebody restarted the process. Law: a request that meets no fault finishes.
#[test]
fn case_10_one_failed_send_blacklists_a_peer() {
    let ends = |build: Build| {
        let outage = Outage { prefill: true, port: 0, after: Span::ms(5), down: Span::s(3) };
        let (mut t, _) = meets(outage, build);
        assert!(t.run());
        // Nothing happens any more.
        let later: Vec<_> = (0..3)
            .map(|_| {
                let b = t.request(100, 5);
                assert!(t.run());
                t.ending(b)
            })
            .collect();
        assert_eq!(t.violations(), Vec::<String>::new());
        later
    };
    for base in [slow(), slow().pull()] {
        assert_eq!(ends(base.clone()), [Some(Ending::Finished); 3]);
        let lost = ends(without(base, "links_recover"));
        assert!(lost.iter().all(|ending| matches!(ending, Some(Ending::Failed(_)))), "{lost:?}");
    }
}

/// The side that failed told nobody. The other one waited for what would not come until its own timer ran out, minutes later, with its pages and
/// a client on the line. Law: whoever takes part is told at once.
#[test]
fn case_15_no_failure_message() {
    let takes = |build: Build| {
        let mut t = build.build();
        let a = t.request(100, 5);
        let from = t.now();
        assert!(t.run_until(|t| t.ending(a).is_some()));
        let told = t.now().since(from);
        assert!(matches!(t.ending(a), Some(Ending::Failed(_))));
        t.run();
        (told, t.violations())
    };
    // Prefill gives up after 10 ms; decode's own timer is 20 s.
    let base = slow()
        .prefill(|i| i.transfer(|t| t.transfer_deadline = Span::ms(10)))
        .transfer(|t| t.window.bytes = 4096);
    let (told, waited) = (takes(base.clone()), takes(without(base, "failures_told")));
    assert!(told.0 < Span::ms(100) && told.1.is_empty(), "{told:?}");
    // Prefill's word is what the registry waits for as well.
    assert!(
        waited.0 > Span::s(3) && waited.1.iter().any(|w| w.contains("node 0 holds 1 rooms")),
        "{waited:?}"
    );
}

/// Each rank polled for itself and reported what it saw. The first one that was done started the request; the others still waited, or failed.
/// Law: Success is seen only after all of it is in place, and all ranks of a side agree.
#[test]
fn case_17_ranks_disagree() {
    // One rank's port is late.
    let late = Outage { prefill: false, port: 1, after: Span(0), down: Span::ms(60) };
    let base = || slow().prefill(|i| i.tp(2).ports(2)).decode(|i| i.tp(4).ports(2));
    shows(|build| meets(late, build).0, base(), |r| r.all_ranks = false, "wrong content");
    // And a rank that fails takes the others with it: the outcome is one, and told to all.
    let (mut t, a) = meets(late, base().decode(|i| i.transfer(|t| t.room_deadline = Span::ms(30))));
    assert!(t.run());
    assert!(!t.succeeded(a) && matches!(t.ending(a), Some(Ending::Failed(_))));
    t.assert_clean();
}

/// Prefill was restarted. Decode knew its address, its queue pairs and its keys from before and used them: every request failed until decode
/// was restarted too. Law: a request that meets no fault finishes. (Pushed it is prefill that would believe in a decode that is gone.)
#[test]
fn case_11_a_restarted_prefill_needs_the_decode_restarted_too() {
    let ends = |build: Build, pull: bool| {
        let mut t = build.build();
        let a = t.request(100, 5);
        assert!(t.run());
        t.assert_finished(a);
        let node = if pull { t.prefill(0) } else { t.decode(0) };
        t.crash(node);
        t.run_for(Span::s(8));
        t.restart(node);
        t.run_for(Span::s(1));
        (0..3)
            .map(|_| {
                let b = t.request(100, 5);
                t.run();
                t.ending(b)
            })
            .collect::<Vec<_>>()
    };
    for (base, pull) in [(slow(), false), (slow().pull(), true)] {
        let finished = Some(Ending::Finished);
        assert_eq!(ends(base.clone(), pull), [finished; 3]);
        let lost = ends(without(base, "facts_of_instance"), pull);
        assert!(!lost.contains(&finished), "{lost:?}");
    }
}
