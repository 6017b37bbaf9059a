//! What completions mean, and when a transfer is complete: cases 2, 3, 4, 5, 8, 12 and 22.

use engine::node::Step;
use engine::policy::RailPolicy;
use engine::time::Span;
use kvrail_tests::stories::{
    Outage, in_transfer, meets, one_request, shows, shows_fault_free, slow, tries_one_request, without,
};
use sim::kit::{Build, Ending, Kit};

/// In the middle of a transfer the sender's link goes away for longer than its queue pairs try once: 0.54 s.
const LOST: Outage = Outage { prefill: true, port: 0, after: Span::ms(5), down: Span::s(1) };

/// A rail that is late: what goes over another one overtakes.
const LATE: Outage = Outage { prefill: true, port: 0, after: Span(0), down: Span::ms(60) };

fn link_lost(build: Build) -> Kit {
    meets(LOST, build).0
}

fn late(build: Build) -> Kit {
    meets(LATE, build).0
}

/// The poller wrote the error of a failed completion to the log and went on to the next one. Nobody ever told the request: it waited for
/// ever, with its pages. Law: every request ends in bounded time and holds nothing afterwards.
#[test]
fn case_02_a_failed_completion_is_only_logged() {
    let patient = |build: Build| build.transfer(|t| t.transfer_deadline = Span::s(30));
    shows(link_lost, patient(slow()), |r| r.failures_count = false, "rooms at quiescence");
    shows(link_lost, patient(slow().pull()), |r| r.failures_count = false, "rooms at quiescence");
}

/// Decode waited for a notification of every prefill rank, but not every one of them has something to send to it: with unlike TP some send
/// to its neighbours only. It waited for a number that could not come. Law: without faults every request finishes.
#[test]
fn case_03_a_count_that_is_never_reached() {
    let base = Kit::pair().prefill(|i| i.tp(2)).decode(|i| i.tp(2));
    shows_fault_free(tries_one_request, base, "sources_of_relation", "without faults");
    let base = Kit::pair().prefill(|i| i.tp(16)).decode(|i| i.tp(2));
    shows_fault_free(tries_one_request, base, "sources_of_relation", "without faults");
}

/// The row with the first token came last in program order, so its arrival was taken for the arrival of everything. It went over another
/// queue pair than the KV and overtook it: decode began on pages that were still empty. Law: Success is seen only when all KV is in place.
#[test]
fn case_04_the_aux_row_overtakes_the_kv() {
    let base = slow().prefill(|i| i.ports(2)).decode(|i| i.ports(2)).transfer(|t| {
        t.rails = 2;
        t.rail_policy = RailPolicy::Striped;
    });
    shows(late, base, |r| r.seals = false, "wrong content");
}

/// Every pipeline stage wrote the row with the first token into the same place. Only the last stage has sampled one: whether decode saw that
/// or nothing depended on who came last. Law: the aux row is in place at Success, and no byte more moves than the layouts need.
#[test]
fn case_05_every_pipeline_stage_writes_the_aux_row() {
    let base = Kit::pair().prefill(|i| i.pp(2).ports(2)).decode(|i| i.ports(2));
    shows_fault_free(one_request, base.clone(), "one_aux_writer", "bytes moved");
    // Stage 0 is late: its row is the one that stays.
    let slow = slow().prefill(|i| i.pp(2).ports(2)).decode(|i| i.ports(2));
    shows(late, slow, |r| r.one_aux_writer = false, "wrong content");
}

/// For a prompt that was computed in chunks, each chunk's transfer began at the start of the prompt again. It was slower than it had to be,
/// and wrote again what decode took for its own. Law: each byte moves once.
#[test]
fn case_08_a_second_chunk_posts_the_first_ones_writes_again() {
    for base in [Kit::pair(), Kit::pair().pull(), Kit::pair().decode(|i| i.page(64))] {
        shows_fault_free(one_request, base.prefill(|i| i.batch(30)), "chunks_once", "bytes moved");
    }
}

/// A request was sent back and queued again, and found in its place the mark of completion that its first life had left there: it began on
/// KV that had not come. Law: Success is seen only when all KV is in place.
#[test]
fn case_12_a_request_that_is_queued_again_inherits_success() {
    // One slot, and pages for one and a half requests: decode runs out of them and sends the request back.
    let base = slow()
        .compute(Span::us(400), Span::us(100))
        .prefill(|i| i.batch(40))
        .decode(|i| i.pages(12).on_demand().transfer(|t| t.slots = 2));
    let story = |build: Build| {
        let mut t = build.build();
        t.request(60, 90);
        t.request(60, 90);
        t.run();
        assert!((0..2).any(|r| t.saw(engine::id::RequestId(r), |s| matches!(s, Step::Preempted { .. }))));
        t
    };
    shows(story, base, |r| r.seals_name_rooms = false, "wrong content");
}

/// The poller looked at the opcode of a completion to see what had ended, and at its status later or never. In a failed completion the opcode
/// is whatever stood there before: a failed READ passed for one that had come. Law: Success is seen only when all KV is in place.
#[test]
fn case_22_the_opcode_of_a_failed_completion() {
    let dies = |build: Build| {
        let (mut t, _) = in_transfer(build);
        t.run_for(Span::ms(5));
        let node = t.decode(0);
        t.fail_qp(node, 0);
        t.run();
        t
    };
    shows(dies, slow().pull(), |r| r.status_first = false, "wrong content");
    // Pushed, prefill believes in a delivery that was none: decode learns nothing, and the request is lost where it could be had.
    let ending = |build: Build| {
        let (t, request) = meets(LOST, build);
        t.ending(request)
    };
    assert_eq!(ending(slow()), Some(Ending::Finished));
    assert!(matches!(ending(without(slow(), "status_first")), Some(Ending::Failed(_))));
}
