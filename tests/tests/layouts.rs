//! Named pairs of layouts, byte by byte: everything arrives where the decode layout says, nothing else changes, and no byte more moves
//! than the two layouts need. Written by prefill, read by decode, and through staging slots.

use engine::policy::{Granularity, LeastInflight, RailPolicy};
use kvrail_tests::stories::{gqa, staged};
use models::{DType, presets};
use sim::kit::{Build, Kit};

/// Prompts that end within a page, at its end, and span many. How many parts were staged.
fn prompts(build: Build) -> u64 {
    let mut t = build.bytes().build();
    for (prompt, output) in [(1, 1), (16, 3), (64, 2), (300, 20), (131, 70)] {
        t.request(prompt, output);
    }
    assert!(t.run(), "not quiet within the bound");
    let parts = t.world().counters().staged_parts;
    t.assert_fault_free();
    parts
}

/// In both directions, and through slots of several sizes.
fn moves(build: Build) {
    prompts(build.clone());
    prompts(build.clone().pull());
    for (slot, slots, window) in [(3000, 64, 4), (1 << 20, 32, 1), (20_000, 16, 2)] {
        let parts = prompts(build.clone().transfer(staged(slot, slots, window)));
        assert!(parts >= 5, "nothing was staged");
    }
}

fn mla_index_k() -> Build {
    // The tiny preset with the index keys of DeepSeek-V3.2.
    let mut model = presets::lookup("tiny-mla").unwrap();
    model.index_k = Some(models::IndexK { head_dim: 128 });
    Kit::pair().model_of(model)
}

#[test]
fn gqa_tp4_to_tp8() {
    moves(gqa().prefill(|i| i.tp(4)).decode(|i| i.tp(8)));
}

#[test]
fn gqa_tp8_to_tp4() {
    moves(gqa().prefill(|i| i.tp(8)).decode(|i| i.tp(4)));
}

#[test]
fn gqa_replicated_on_tp16_to_tp2() {
    moves(gqa().prefill(|i| i.tp(16)).decode(|i| i.tp(2)));
}

#[test]
fn gqa_tp2_to_replicated_on_tp16() {
    moves(gqa().prefill(|i| i.tp(2)).decode(|i| i.tp(16)));
}

#[test]
fn pp2_to_pp1_and_back() {
    moves(gqa().prefill(|i| i.tp(2).pp(2)).decode(|i| i.tp(2)));
    moves(gqa().prefill(|i| i.tp(2)).decode(|i| i.tp(4).pp(2)));
}

#[test]
fn page_16_to_64() {
    moves(gqa().prefill(|i| i.page(16)).decode(|i| i.page(64)));
}

#[test]
fn page_64_to_1_scattered() {
    moves(gqa().prefill(|i| i.page(64)).decode(|i| i.page(1).pages(1024).scatter()));
}

#[test]
fn page_orders() {
    moves(gqa().prefill(|i| i.tp(2)).decode(|i| i.tp(4).head_major()));
    moves(gqa().prefill(|i| i.tp(2).page(3).pages(400)).decode(|i| i.tp(4).head_major()));
    moves(gqa().prefill(|i| i.tp(4).head_major()).decode(|i| i.tp(2).head_major()));
}

#[test]
fn mla_tp_up_with_index_keys() {
    moves(mla_index_k().prefill(|i| i.tp(8)).decode(|i| i.tp(16)));
    moves(mla_index_k().prefill(|i| i.tp(4).page(16)).decode(|i| i.tp(8).page(64)));
}

#[test]
fn mla_fp8_to_larger_pages() {
    moves(Kit::pair().model("tiny-mla").dtype(DType::Fp8Packed).decode(|i| i.page(64)));
}

#[test]
fn data_parallel_attention() {
    moves(gqa().prefill(|i| i.tp(4)).decode(|i| i.tp(8).dp(4)));
    moves(gqa().prefill(|i| i.tp(4).dp(2)).decode(|i| i.tp(4).pp(2)));
    moves(mla_index_k().prefill(|i| i.tp(4).dp(4)).decode(|i| i.tp(8).dp(2)));
}

#[test]
fn layer_by_layer_and_on_several_rails() {
    let build = gqa().prefill(|i| i.tp(2).pp(2).ports(2)).decode(|i| i.tp(4).ports(2)).transfer(|t| {
        t.rails = 2;
        t.rail_policy = RailPolicy::Striped;
        t.granularity = Granularity::LayerWise { layers: 1 };
    });
    moves(build);
}

/// A page list of more runs than one message takes, on whichever side it is.
#[test]
fn page_lists_in_several_messages() {
    let scattered = |i: sim::kit::Side| i.page(1).pages(6000).scatter();
    let build = Kit::pair().prefill(scattered).decode(scattered);
    for build in [build.clone(), build.pull()] {
        let mut t = build.build();
        let request = t.request(5000, 2);
        assert!(t.run());
        t.assert_finished(request);
        t.assert_fault_free();
    }
}

/// Each rail has receives for what may come on it, whichever a policy takes: none is missing.
#[test]
fn one_rail_for_each_part() {
    let least = RailPolicy::LeastInflight(LeastInflight::default());
    for policy in [RailPolicy::RoundRobin, RailPolicy::Hash, least, RailPolicy::Pinned] {
        let build = gqa().prefill(|i| i.tp(2).ports(2)).decode(|i| i.tp(4).ports(2)).transfer(|t| {
            t.rails = 2;
            t.rail_policy = policy.clone();
        });
        prompts(build.clone());
        prompts(build.clone().pull());
        // As many rooms as there are receives for.
        assert!(prompts(build.clone().transfer(staged(3000, 64, 3)).transfer(|t| t.receive_depth = 128)) > 5);
    }
}
