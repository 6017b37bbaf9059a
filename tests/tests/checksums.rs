//! End-to-end checksums: equal for equal content wherever it lies, and another one for whatever else arrives.

use engine::node::{Reason, Step};
use engine::policy::{Coalescing, Granularity, RailPolicy, Staging};
use engine::time::Span;
use engine::transfer::Rules;
use models::{DType, IndexK, presets};
use proptest::prelude::*;
use sim::fabric::Mistakes;
use sim::kit::{Build, Ending, Kit};

/// A bit of whatever moves changes on its way.
fn flips(t: &mut Kit) {
    t.world_mut().fabrics_mut().set_mistakes(Mistakes { bits_flipped: true, ..Mistakes::default() });
}

/// Pairs of layouts that have little in common.
fn unlike() -> Vec<(&'static str, Build)> {
    let mut v32 = presets::lookup("tiny-mla").unwrap();
    v32.index_k = Some(IndexK { head_dim: 128 });
    let gqa = || Kit::pair().model("tiny-gqa");
    vec![
        ("TP4 to TP8", gqa().prefill(|i| i.tp(4)).decode(|i| i.tp(8))),
        ("TP16 to TP2", gqa().prefill(|i| i.tp(16)).decode(|i| i.tp(2))),
        ("PP2 to PP1", gqa().prefill(|i| i.tp(2).pp(2)).decode(|i| i.tp(2))),
        ("pages of 16 to 64", gqa().prefill(|i| i.page(16)).decode(|i| i.page(64).scatter())),
        ("pages of 64 to 3", gqa().prefill(|i| i.page(64)).decode(|i| i.page(3).pages(400))),
        ("page orders", gqa().prefill(|i| i.tp(2)).decode(|i| i.tp(4).head_major())),
        ("DP groups", gqa().prefill(|i| i.tp(4).dp(2)).decode(|i| i.tp(8).dp(4))),
        ("MLA and index keys", Kit::pair().model_of(v32).prefill(|i| i.tp(8)).decode(|i| i.tp(2).page(64))),
        ("packed fp8", Kit::pair().model("tiny-mla").dtype(DType::Fp8Packed).decode(|i| i.page(64))),
    ]
    .into_iter()
    .flat_map(|(name, build)| [(name, build.clone()), (name, build.pull())])
    .flat_map(|(name, build)| [(name, build.clone().bytes()), (name, build.phantom())])
    .map(|(name, build)| (name, build.prefill(|i| i.batch(70)).transfer(|t| t.checksums = true)))
    .collect()
}

#[test]
fn equal_whatever_the_layouts() {
    for (name, build) in unlike() {
        let mut t = build.build();
        let all = [(1, 1), (16, 3), (64, 2), (300, 20)].map(|(prompt, output)| t.request(prompt, output));
        assert!(t.run(), "{name}");
        for request in all {
            t.assert_finished(request);
        }
        // No byte and no request more than without.
        t.assert_fault_free();
    }
}

/// A page that changes on its way, unseen by NIC and wire: with checksums the request fails before its first token and says why; without them
/// it is served from the wrong cache.
#[test]
fn a_page_that_changes_on_its_way_is_not_delivered() {
    for (name, build) in unlike() {
        let story = |on: bool| {
            let mut t = build
                .clone()
                .transfer(|t| {
                    t.checksums = on;
                    t.verify = false;
                })
                .build();
            flips(&mut t);
            let a = t.request(300, 5);
            assert!(t.run(), "{name}");
            (t.ending(a), t.succeeded(a), t.saw(a, |s| *s == Step::FirstToken), t.violations())
        };
        assert_eq!(story(true), (Some(Ending::Failed(Reason::Checksum)), false, false, Vec::new()), "{name}");
        assert_eq!(story(false), (Some(Ending::Finished), true, true, Vec::new()), "{name}");
    }
}

/// The sums are there and nobody compares them: the mistake of that name.
#[test]
fn checksums_that_nobody_compares_help_nobody() {
    let base = Kit::pair().transfer(|t| t.checksums = true);
    for base in [base.clone(), base.pull()] {
        let ends = |build: Build| {
            let mut t = build.build();
            flips(&mut t);
            let a = t.request(100, 5);
            assert!(t.run());
            (t.ending(a), t.corrupt() > 0)
        };
        assert_eq!(ends(base.clone()), (Some(Ending::Failed(Reason::Checksum)), false));
        let off = Rules::by_name("checksums_compared").unwrap();
        assert_eq!(ends(base.rules(|r| *r = off)), (Some(Ending::Finished), true));
    }
}

/// Parts that are posted again after a reconnect, and a registry that forgets everything in the middle.
#[test]
fn sums_survive_reconnects_and_restarts() {
    let base = Kit::pair().network(0.01, Span::us(1)).prefill(|i| i.tp(2).batch(32)).decode(|i| i.tp(4));
    let base = base.transfer(|t| t.checksums = true);
    for base in [base.clone(), base.pull()] {
        for ms in [1, 5, 20, 40] {
            for restart in [false, true] {
                let mut t = base.clone().bytes().build();
                let all = [t.request(100, 5), t.request(40, 50)];
                t.run_for(Span::ms(ms));
                if restart {
                    t.restart_registry();
                } else {
                    let node = t.decode(0);
                    t.fail_qp(node, 1);
                }
                assert!(t.run());
                all.into_iter().for_each(|request| t.assert_finished(request));
                t.assert_clean();
            }
        }
    }
}

/// Staged: what changes in a slot, at either copy or on the wire, is seen when it is in its pages, and counted.
#[test]
fn staged_parts_are_summed_up_where_they_end() {
    let base = |bytes: bool| {
        let build =
            Kit::pair().model("tiny-gqa").prefill(|i| i.tp(2).batch(70)).decode(|i| i.tp(4)).transfer(|t| {
                t.coalescing = Coalescing::Staging(Staging { slot: 3000, slots: 64, window: 4 });
                (t.checksums, t.verify) = (true, false);
            });
        if bytes { build.bytes() } else { build.phantom() }
    };
    let mistakes = [
        Mistakes::default(),
        Mistakes { bits_flipped: true, ..Mistakes::default() },
        Mistakes { copies_flipped: true, ..Mistakes::default() },
    ];
    for bytes in [false, true] {
        for mistake in mistakes {
            let mut t = base(bytes).build();
            t.world_mut().fabrics_mut().set_mistakes(mistake);
            let a = t.request(300, 5);
            assert!(t.run());
            let counters = t.world().counters();
            assert!(counters.staged_parts > 10, "{counters:?}");
            if mistake == Mistakes::default() {
                t.assert_finished(a);
                assert_eq!(counters.checksum_mismatches, 0);
                t.assert_fault_free();
                continue;
            }
            assert_eq!(t.ending(a), Some(Ending::Failed(Reason::Checksum)), "{mistake:?}");
            assert!(!t.succeeded(a));
            assert_eq!(counters.checksum_mismatches, 1, "one room");
            t.assert_clean();
        }
    }
}

/// One side has them, the other does not: refused when it registers.
#[test]
fn sides_that_are_not_agreed_are_refused() {
    let mut t = Kit::pair().decode(|i| i.transfer(|t| t.checksums = true)).build();
    let a = t.request(100, 5);
    assert!(t.run());
    assert!(!matches!(t.ending(a), Some(Ending::Finished)), "{:?}", t.ending(a));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Whatever the layouts, the pieces and the rails: without a change every request finishes, with one none does.
    #[test]
    fn any_layouts(
        tp in (0u32..5, 0u32..5), page in (1u32..40, 1u32..40), head_major in any::<(bool, bool)>(), batch in 5u32..200,
        pull: bool, bytes: bool, layers in 0u32..4, rails in 1u16..3, prompt in 9u32..300, flip: bool,
    ) {
        let side = |i: sim::kit::Side, tp: u32, page: u32, heads: bool| {
            let i = i.tp(1 << tp).page(page).pages(400).ports(2);
            if heads { i.head_major() } else { i }
        };
        let build = Kit::pair()
            .prefill(|i| side(i, tp.0, page.0, head_major.0).batch(batch))
            .decode(|i| side(i, tp.1, page.1, head_major.1).scatter())
            .transfer(|t| {
                (t.checksums, t.rails, t.rail_policy) = (true, rails, RailPolicy::Striped);
                t.granularity = if layers == 0 { Granularity::Chunk } else { Granularity::LayerWise { layers } };
            });
        let build = if pull { build.pull() } else { build };
        let mut t = if bytes { build.bytes() } else { build }.build();
        if flip {
            flips(&mut t);
        }
        let a = t.request(prompt, 3);
        prop_assert!(t.run());
        let moved_little = t.counted().work_requests > 0 && t.corrupt() == 0;
        prop_assert!(moved_little);
        match t.ending(a) {
            Some(Ending::Finished) => {
                // Requests of 64 bytes and less do not change.
                prop_assert_eq!(t.violations(), Vec::<String>::new());
            }
            ending => prop_assert!(flip && ending == Some(Ending::Failed(Reason::Checksum)), "{:?}", ending),
        }
    }
}
