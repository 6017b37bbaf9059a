//! Staging: slots that are too few, and everything that can break on the way. That unlike layouts arrive byte by byte is shown in `layouts`.

mod common;

use common::{Case, cases, faulty};
use engine::policy::{Coalescing, Granularity, Staging, StagingCosts};
use engine::registry::Message;
use engine::time::Span;
use kvrail_tests::stories::{gqa, staged};
use proptest::prelude::*;
use sim::fabric::CopyCosts;
use sim::kit::Kit;
use sim::nic::Bandwidth;
use sim::world::Fault;

/// Exactly one sender writes the aux row of each decode rank, whatever the pipeline stages: the bytes are counted to the last one, and two
/// writers would be 64 too many.
#[test]
fn one_stage_writes_the_aux_row() {
    for coalescing in [Coalescing::Direct, Coalescing::Staging(Staging::default())] {
        let build = |one: bool| {
            gqa().prefill(|i| i.tp(2).pp(4)).decode(|i| i.tp(4)).transfer(move |t| {
                t.coalescing = coalescing;
                t.rules.one_aux_writer = one;
            })
        };
        let mut t = build(true).bytes().build();
        t.request(100, 5);
        assert!(t.run());
        let (kv, beside) = t.least_bytes(100);
        let headers = t.world().counters().staged_parts * engine::transfer::HEADER_BYTES;
        assert_eq!(t.counted().bytes, kv + beside + headers);
        t.assert_fault_free();
        let mut t = build(false).bytes().build();
        t.request(100, 5);
        t.run();
        assert!(!t.fault_free_violations().is_empty(), "every stage wrote it, and nobody saw that");
    }
}

/// A chunk many times as large as all staging memory, through one slot: the next part waits until the last one was scattered.
#[test]
fn a_chunk_larger_than_the_staging_memory() {
    for slots in [1, 2, 3] {
        let mut t =
            gqa().prefill(|i| i.tp(2)).decode(|i| i.tp(4)).transfer(staged(4096, slots, 8)).bytes().build();
        let requests = [t.request(900, 3), t.request(900, 3), t.request(17, 3)];
        assert!(t.run(), "{slots} slots: not quiet within the bound");
        // 900 tokens of 256 bytes for each of 4 layers, K and V, on each of four ranks: 512 bytes a token, at most 8 in a slot.
        assert!(t.world().counters().staged_parts >= 2 * 4 * 900 / 16);
        requests.iter().for_each(|request| t.assert_finished(*request));
        t.assert_fault_free();
    }
}

/// Slots are free again when nothing can be written to them, long before the room's pages are.
#[test]
fn slots_do_not_wait_for_the_end_of_generation() {
    let mut t = gqa().prefill(|i| i.tp(2)).decode(|i| i.tp(4)).transfer(staged(8192, 4, 4)).bytes().build();
    let (long, next) = (t.request(100, 400), t.request(100, 2));
    assert!(t.run_until(|t| t.ending(next).is_some()));
    assert_eq!(t.ending(long), None, "it still generates");
    assert!(t.run());
    t.assert_finished(long);
    t.assert_fault_free();
}

/// All parts of a room are in its pages, and it generates: its slots are given on only when prefill has said that it writes nothing more, for a
/// part may be written again until then.
#[test]
fn slots_wait_for_the_word_that_nothing_more_is_written() {
    let mut t = gqa().prefill(|i| i.tp(2)).decode(|i| i.tp(4)).transfer(staged(8192, 4, 4)).bytes().build();
    let mute = t.lose(|said| matches!(said.message, Message::Report { .. }));
    let (long, next) = (t.request(100, 400), t.request(100, 2));
    assert!(t.run_until(|t| t.succeeded(long)));
    t.run_for(Span::ms(20));
    assert_eq!(t.ending(long), None, "it still generates");
    assert!(!t.succeeded(next), "it was given slots that may still be written to");
    t.let_go(mute);
    assert!(t.run());
    [long, next].iter().for_each(|request| t.assert_finished(*request));
    t.assert_fault_free();
}

/// A room fails while decode's copy engines still move what arrived: its pages and slots are free when the last copy is over, and not before.
#[test]
fn pages_of_a_room_that_is_over_wait_for_its_copies() {
    let mut waited = 0;
    for us in (500..5000).step_by(500) {
        let mut t = gqa()
            .prefill(|i| i.tp(2))
            .decode(|i| i.tp(4))
            .transfer(staged(2048, 64, 8))
            .decode(|i| i.transfer(|t| (t.room_deadline, t.drain_deadline) = (Span::us(us), Span::us(10))))
            .bytes()
            .build();
        // A fifth of a millisecond for each slot.
        t.world_mut()
            .fabrics_mut()
            .set_copy_costs(CopyCosts { rate: Bandwidth(10_000_000), ..CopyCosts::free() });
        let request = t.request(100, 5);
        assert!(t.run_until(|t| t.ending(request).is_some()));
        t.run_for(Span::us(50));
        waited += t.held(t.decode(0)).rooms;
        assert!(t.run(), "{us} us: not quiet within the bound");
        t.assert_clean();
    }
    assert!(waited > 0, "no room ended during a copy");
}

/// Slots that are too small for a token of a layer, and too few for the senders of a rank: everything goes directly.
#[test]
fn what_no_slot_can_hold_goes_directly() {
    for (slot, slots) in [(8, 64), (1 << 20, 3)] {
        let mut t =
            gqa().prefill(|i| i.tp(8)).decode(|i| i.tp(2)).transfer(staged(slot, slots, 1)).bytes().build();
        t.request(100, 3);
        assert!(t.run());
        assert_eq!(t.world().counters().staged_parts, 0);
        t.assert_fault_free();
    }
}

/// A staged part's header, bulk, aux row and seal go out at once: a send queue that cannot hold them has everything go directly.
#[test]
fn a_send_queue_too_short_for_a_staged_part_has_none() {
    for (depth, some) in [(3, false), (4, true)] {
        let mut t = gqa().prefill(|i| i.tp(8)).decode(|i| i.tp(2)).transfer(staged(1 << 16, 64, 2));
        t = t.transfer(|t| t.send_depth = depth);
        let mut t = t.bytes().build();
        t.request(100, 3);
        assert!(t.run());
        assert_eq!(t.world().counters().staged_parts > 0, some, "{depth}");
        t.assert_fault_free();
    }
}

/// Where a room's slots are enough, no message is needed for them; where they are not, parts wait for it, and for nothing else.
#[test]
fn slots_are_used_again_when_decode_says_so() {
    let build =
        |window| gqa().prefill(|i| i.tp(2)).decode(|i| i.tp(4)).transfer(staged(8192, 64, window)).bytes();
    let is_scattered = |message: &Message| matches!(message, Message::Scattered { .. });
    // 100 tokens of 512 bytes are 7 slots' worth on each rank.
    let mut t = build(8).build();
    let mute = t.lose(move |said| is_scattered(said.message));
    let request = t.request(100, 3);
    t.run_for(Span::ms(100));
    assert!(t.succeeded(request), "seven parts through eight slots");
    t.let_go(mute);
    assert!(t.run());
    t.assert_fault_free();

    let mut t = build(2).build();
    let mute = t.lose(move |said| is_scattered(said.message));
    let request = t.request(100, 3);
    t.run_for(Span::ms(100));
    assert!(!t.succeeded(request), "it must not write to slots that may still be full");
    assert_eq!(t.world().counters().staged_parts, 4 * 2, "two slots for each of four ranks");
    t.let_go(mute);
    assert!(t.run());
    t.assert_finished(request);
    t.assert_fault_free();
}

/// Decode stops while parts arrive: its NIC takes as many as there are slots, and what is in them waits for it.
#[test]
fn a_stopped_decode_is_not_overrun() {
    let mut t = gqa().prefill(|i| i.tp(2)).decode(|i| i.tp(4)).transfer(staged(4096, 64, 2)).bytes().build();
    let request = t.request(300, 3);
    t.run_until(|t| t.world().counters().staged_parts > 5);
    t.pause(t.decode(0));
    t.run_for(Span::ms(50));
    let posted = t.world().counters().staged_parts;
    t.run_for(Span::ms(50));
    assert_eq!(t.world().counters().staged_parts, posted, "nothing is posted without a free slot");
    t.resume(t.decode(0));
    assert!(t.run());
    t.assert_finished(request);
    t.assert_fault_free();
}

/// A queue pair dies at every stage of a staged transfer: what was seen is not scattered again, what was not is posted again.
#[test]
fn a_queue_pair_dies_at_any_moment() {
    for us in (0..160).step_by(4) {
        for (side, window) in [(0, 1), (1, 3)] {
            let mut t = gqa()
                .prefill(|i| i.tp(2).batch(64))
                .decode(|i| i.tp(4))
                .network(2.0, Span::us(1))
                .transfer(staged(4096, 16, window))
                .bytes()
                .build();
            let request = t.request(200, 20);
            t.run_until(|t| t.world().counters().staged_parts > 0);
            let node = if side == 0 { t.prefill(0) } else { t.decode(0) };
            t.fault_in(Span::us(us), Fault::QueuePairError { host: node.index(), index: us as usize });
            assert!(t.run(), "{us} us: not quiet within the bound");
            t.assert_finished(request);
            t.assert_clean();
        }
    }
}

/// A room ends while its parts are being gathered, are under way, or are being scattered: nothing of it may be written to pages of another one.
#[test]
fn a_room_that_ends_half_way_gives_its_pages_back_late_enough() {
    let mut failed = 0;
    for us in (1..200).step_by(3) {
        let mut t = gqa()
            .prefill(|i| i.tp(2).pages(40))
            .decode(|i| i.tp(4).pages(20))
            .network(2.0, Span::us(1))
            .transfer(staged(4096, 16, 3))
            .transfer(|t| t.transfer_deadline = Span::us(us))
            .bytes()
            .build();
        let requests: Vec<_> = (0..4).map(|_| t.request(250, 5)).collect();
        assert!(t.run(), "{us} us: not quiet within the bound");
        failed += requests.iter().filter(|r| t.ending(**r) != Some(sim::kit::Ending::Finished)).count();
        t.assert_clean();
    }
    assert!(failed > 20, "{failed} rooms ended half way");
}

/// The planner takes what it predicts to be sooner: requests for like layouts, staging for rows of unlike heads.
#[test]
fn auto_chooses_by_layout() {
    let parts = |prefill: u32, decode: u32| {
        let auto = Coalescing::Auto(Staging::default(), StagingCosts::default());
        let mut t = Kit::pair()
            .model("llama-3.1-8b")
            .prefill(|i| i.tp(prefill).pages(80))
            .decode(|i| i.tp(decode).pages(80))
            .network(400.0, Span::us(1))
            .transfer(move |t| t.coalescing = auto)
            .build();
        t.request(1024, 2);
        assert!(t.run());
        let parts = t.world().counters().staged_parts;
        t.assert_fault_free();
        parts
    };
    assert_eq!(parts(4, 4), 0);
    assert!(parts(4, 8) > 0);
}

/// With the planner's choice a room without slots goes directly: a crowd does not wait for slots to come back.
#[test]
fn auto_waits_for_no_slot() {
    let run = |coalescing: Coalescing| {
        let mut t = Kit::pair()
            .model("llama-3.1-8b")
            .prefill(|i| i.tp(4).pages(400))
            .decode(|i| i.tp(8).pages(400))
            .network(400.0, Span::us(1))
            .transfer(move |t| t.coalescing = coalescing)
            .build();
        for _ in 0..20 {
            t.request(256, 2);
        }
        assert!(t.run());
        let parts = t.world().counters().staged_parts;
        t.assert_fault_free();
        parts
    };
    let few = Staging { slots: 8, ..Staging::default() };
    let staged = run(Coalescing::Staging(few));
    let auto = run(Coalescing::Auto(few, StagingCosts::default()));
    assert!(auto > 0 && auto < staged, "{auto} parts staged of {staged}");
}

/// Slots come back with the word that nothing will be written to them any more. Whoever waits for slots says so, and then that word does not
/// wait for company: 20 requests go through 8 slots, 4 each, two at a time. With a wait of one `ack_delay` for each of the ten times they would take more than ten of them.
#[test]
fn who_waits_for_slots_does_not_wait_for_an_acknowledgement_to_leave() {
    let mut t = Kit::pair()
        .model("llama-3.1-8b")
        .prefill(|i| i.tp(4).pages(400))
        .decode(|i| i.tp(4).pages(400))
        .network(400.0, Span::us(1))
        .compute(Span::ns(10), Span::us(100))
        .transfer(|t| t.coalescing = Coalescing::Staging(Staging { slots: 8, ..Staging::default() }))
        .build();
    let before = t.now();
    let requests: Vec<_> = (0..20).map(|_| t.request(256, 2)).collect();
    assert!(t.run_until(|t| requests.iter().all(|request| t.succeeded(*request))));
    let took = t.now().since(before);
    assert!(t.run());
    assert!(took < Span::ms(2) * 10, "{took:?}");
    t.assert_fault_free();
}

/// Llama-3.1-70B, TP4 to TP8 in token-major pages of 16: at most a fiftieth of the requests, every byte right, and sooner on a ConnectX-7.
#[test]
fn a_fiftieth_of_the_requests_and_sooner() {
    let run = |coalescing: Coalescing, bytes: bool, prompt: u32| {
        let build = Kit::pair()
            .model("llama-3.1-70b")
            .prefill(|i| i.tp(4).pages(prompt / 16 + 1).ports(4))
            .decode(|i| i.tp(8).pages(prompt / 16 + 1).ports(8))
            .nic(experiments::nic::load("connectx-7-400g").unwrap())
            .network(400.0, Span::us(1))
            .compute(Span::us(100), Span::ms(30))
            .transfer(move |t| {
                t.coalescing = coalescing;
                t.granularity = Granularity::Request;
            });
        let mut t = if bytes { build.bytes() } else { build }.build();
        let request = t.request(prompt, 2);
        assert!(t.run());
        let at = |step: fn(&engine::node::Step) -> bool| {
            t.steps(request).find(|stamped| step(&stamped.record.step)).map(|stamped| stamped.at).unwrap()
        };
        use engine::node::Step;
        let took = at(|step| *step == Step::Success).since(at(|step| *step == Step::PrefillEnd));
        let requests = t.counted().work_requests;
        t.assert_fault_free();
        (requests, took)
    };
    let staging = Coalescing::Staging(Staging::default());
    for (prompt, bytes) in [(48, true), (2048, false)] {
        let ((direct, slow), (staged, quick)) =
            (run(Coalescing::Direct, bytes, prompt), run(staging, bytes, prompt));
        println!("{prompt} tokens: {direct} requests in {slow:?}, staged {staged} in {quick:?}");
        assert!(staged * 50 <= direct, "{staged} of {direct} requests");
        assert!(quick < slow, "{quick:?} against {slow:?}");
    }
}

#[test]
fn a_side_that_reads_cannot_stage() {
    let build = || Kit::pair().transfer(staged(4096, 16, 1)).pull().build();
    let why = std::panic::catch_unwind(build).err().unwrap();
    let why = why.downcast_ref::<String>().unwrap();
    assert!(why.contains("StagedPull"), "{why}");
}

fn staged_and_faulty() -> impl Strategy<Value = Case> {
    let slot = prop::sample::select(vec![300u64, 1500, 1 << 20]);
    (faulty(), slot, 1u32..40, 1u32..5).prop_map(|(case, slot, slots, window)| Case {
        pull: false,
        staging: Some((slot, slots, window, false)),
        ..case
    })
}

proptest! {
    #![proptest_config(cases(60))]

    /// Faults on top: every request ends, and no cache is lost, corrupted or leaked.
    #[test]
    fn faults_corrupt_and_leak_nothing(case in staged_and_faulty()) {
        case.keeps(Kit::violations)?;
    }
}
