//! Queues, staging slots, keys and timers of the NIC: cases 9, 18, 23 and 24.

use engine::fabric::{RnrTimer, rnr_delay};
use engine::node::Step;
use engine::policy::{Coalescing, Staging};
use engine::time::Span;
use kvrail_tests::stories::{shows_fault_free, without};
use sim::kit::{Build, Kit};

fn scattered(build: Build) -> Kit {
    let mut t = build.build();
    t.request(300, 5);
    t.run();
    t
}

/// Everything that a request had to move was posted at once. Beyond what the send queue holds the call failed half way through the chain, and
/// with it the request: short prompts worked. Law: without faults every request finishes.
#[test]
fn case_09_more_work_requests_than_the_send_queue_holds() {
    let base = || {
        Kit::pair().prefill(|i| i.scatter()).decode(|i| i.scatter()).transfer(|t| {
            t.send_depth = 8;
            t.max_sge = 1;
        })
    };
    shows_fault_free(scattered, base(), "send_queue_bound", "without faults");
    shows_fault_free(scattered, base().pull(), "send_queue_bound", "without faults");
}

/// A chunk was ready when all of it was in staging memory, a ring whose free part had to be in one piece: one over half of the ring never got
/// there, and what it had taken was never given back. Smaller ones worked. Law: without faults every request finishes.
#[test]
fn case_18_a_chunk_over_half_the_staging_ring() {
    let build = |slots: u32| {
        let staging = Coalescing::Staging(Staging { slot: 4096, slots, window: slots });
        let build = Kit::pair().model("tiny-gqa").prefill(|i| i.tp(2)).decode(|i| i.tp(4));
        build.transfer(move |t| t.coalescing = staging).bytes()
    };
    let story = |build: Build| {
        let mut t = build.build();
        // 100 tokens of 512 bytes from each prefill rank for each of two decode ranks: 13 slots for each.
        t.request(100, 3);
        t.run();
        t
    };
    shows_fault_free(story, build(20), "staged_in_parts", "without faults");
    // Both fit.
    story(without(build(30), "staged_in_parts")).assert_fault_free();
}

/// The remote key of a registration is good on the NIC that it was made on, and nowhere else. With several NICs the first one's was told to
/// everybody. Law: without faults every request finishes.
#[test]
fn case_23_one_nics_key_on_another_nic() {
    let base =
        || Kit::pair().prefill(|i| i.tp(2).ports(2)).decode(|i| i.tp(2).ports(2)).transfer(|t| t.rails = 2);
    shows_fault_free(scattered, base(), "key_of_port", "without faults");
    shows_fault_free(scattered, base().pull(), "key_of_port", "without faults");
    // With one NIC the mistake is none.
    scattered(Kit::pair().rules(|r| r.key_of_port = false)).assert_fault_free();
}

/// The timer for a receiver that has nothing posted was left at 0, which reads like "at once" and is the longest but for none: 655.36 ms. Each
/// time that data came before its receive, a transfer of a millisecond took that long. Laws: the codes mean what the specification
/// says; a run without faults has no such wait at all, for receives are posted before pages are published.
#[test]
fn case_24_rnr_timer_zero_is_655_ms() {
    assert_eq!(rnr_delay(RnrTimer(0)), Span::us(655_360));
    assert_eq!(rnr_delay(RnrTimer(1)), Span::us(10));
    assert_eq!(rnr_delay(RnrTimer(12)), Span::us(640));
    let takes = |code: u8, credits: bool| {
        let build = Kit::pair().compute(Span::ns(1), Span::us(100)).rules(|r| r.receive_credits = credits);
        let mut t = build.transfer(|t| t.min_rnr_timer = RnrTimer(code)).build();
        let a = t.request(100, 5);
        assert!(t.run());
        t.assert_finished(a);
        let at = |step| t.steps(a).find(|s| s.record.step == step).map(|s| s.at).unwrap();
        (at(Step::Success).since(at(Step::TransferStart)), t.counted().rnr_naks)
    };
    let (late, naks) = takes(0, false);
    assert!(naks > 0 && late >= Span::us(655_360), "{late:?}, {naks} RNR NAKs");
    let (soon, naks) = takes(12, false);
    assert!(naks > 0 && soon < Span::ms(10), "{soon:?}, {naks} RNR NAKs");
    for code in [0, 12] {
        let (never, naks) = takes(code, true);
        assert!(naks == 0 && never < Span::ms(1), "{never:?}, {naks} RNR NAKs");
    }
    // What is configured when nothing is said.
    assert!(rnr_delay(engine::transfer::TransferConfig::default().min_rnr_timer) < Span::ms(1));
}
