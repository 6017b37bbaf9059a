//! The transfer relation against an oracle that walks single bytes: source memory is filled through the
//! oracle, the relation's feeds are carried out, and destination memory must then be what the oracle
//! says, byte by byte, each byte written once.

mod oracle;

use models::{
    Attention, DType, IndexK, Layout, Model, PageOrder, Parallel, Relation, RelationError, presets,
};
use oracle::{Case, Side, check, layout};
use proptest::prelude::*;
use proptest::sample::Index;

fn gqa(kv_heads: u32, layers: u32) -> Model {
    Model {
        name: "test".to_owned(),
        layers,
        q_heads: 48 * kv_heads,
        attention: Attention::Gqa { kv_heads, head_dim: 3 },
        context_len: 4096,
        index_k: None,
    }
}

fn mla(layers: u32) -> Model {
    Model {
        attention: Attention::Mla { kv_lora_rank: 5, qk_rope_head_dim: 2 },
        index_k: Some(IndexK { head_dim: 128 }),
        ..gqa(1, layers)
    }
}

/// A page table that is neither sorted nor dense.
fn side(tp: u32, pp: u32, dp: u32, page: u32, order: PageOrder) -> Side {
    let pages = 200 / page + 3;
    let step =
        (3..).find(|s| (2..=*s).all(|d| !(pages.is_multiple_of(d) && s.is_multiple_of(d)))).unwrap_or(1);
    let table = (0..pages).map(|i| (i * step + 1) % pages).collect();
    Side { parallel: Parallel { tp, pp, dp }, page, order, table }
}

fn token_major(tp: u32, pp: u32, page: u32) -> Side {
    side(tp, pp, 1, page, PageOrder::TokenMajor)
}

fn pair(model: Model, src: Side, dst: Side) -> Relation {
    check(&Case { model, dtype: DType::Bf16, src, dst, tokens: 130, salt: 1 })
}

#[test]
fn gqa_tp4_to_tp8() {
    let relation = pair(gqa(8, 2), token_major(4, 1, 16), token_major(8, 1, 16));
    for rank in 0..8 {
        assert_eq!(relation.assign_default().senders(rank), [rank / 2]);
    }
}

#[test]
fn gqa_tp8_to_tp4() {
    let relation = pair(gqa(8, 2), token_major(8, 1, 16), token_major(4, 1, 16));
    for rank in 0..4 {
        assert_eq!(relation.assign_default().senders(rank), [2 * rank, 2 * rank + 1]);
    }
}

#[test]
fn gqa_tp16_with_8_heads_to_tp2() {
    let relation = pair(gqa(8, 2), token_major(16, 1, 16), token_major(2, 1, 16));
    let chosen = relation.assign_default();
    assert_eq!(chosen.senders(0), [0, 2, 4, 6], "4 senders a rank, even replicas for rank 0");
    assert_eq!(chosen.senders(1), [9, 11, 13, 15]);
    assert_eq!(relation.feeds(1)[0].sources, [8, 9]);
}

#[test]
fn gqa_tp2_to_tp16_with_8_heads() {
    let relation = pair(gqa(8, 2), token_major(2, 1, 16), token_major(16, 1, 16));
    assert_eq!(relation.bytes(0, 10), relation.bytes(1, 10), "replicas get the same");
}

#[test]
fn pp2_to_pp1() {
    let relation = pair(gqa(4, 5), token_major(1, 2, 16), token_major(1, 1, 16));
    assert_eq!(relation.assign_default().senders(0), [0, 1]);
    assert_eq!(relation.aux_feed(0), 1, "the last stage writes the aux row");
}

#[test]
fn pp1_to_pp3_and_pp3_to_pp2() {
    pair(gqa(4, 5), token_major(2, 1, 16), token_major(2, 3, 16));
    let relation = pair(gqa(4, 6), token_major(1, 3, 16), token_major(1, 2, 16));
    assert_eq!(relation.assign_default().senders(0), [0, 1], "layers 0 to 2 of stages 0 and 1");
    assert_eq!((relation.aux_feed(0), relation.aux_feed(1)), (1, 1));
}

#[test]
fn page_16_to_64_and_back() {
    pair(gqa(4, 2), token_major(2, 1, 16), token_major(2, 1, 64));
    pair(gqa(4, 2), token_major(2, 1, 64), token_major(2, 1, 16));
    pair(mla(2), token_major(2, 1, 64), token_major(2, 1, 1));
}

#[test]
fn token_major_to_head_major_and_back() {
    let head_major = |tp, page| side(tp, 1, 1, page, PageOrder::HeadMajor);
    pair(gqa(8, 2), token_major(2, 1, 16), head_major(4, 16));
    pair(gqa(8, 2), head_major(4, 64), token_major(2, 1, 16));
    let relation = pair(gqa(8, 2), head_major(2, 16), head_major(2, 16));
    let group = &relation.feeds(0)[0].groups[0];
    assert_eq!(group.sections.len(), 4, "one section per head");
    assert_eq!(group.whole_page.len(), 1, "whole pages are one range");
}

#[test]
fn mla_tp8_to_tp16_with_index_k() {
    let relation = pair(mla(3), token_major(8, 1, 64), token_major(16, 1, 16));
    let chosen = relation.assign_default();
    for rank in 0..16 {
        assert_eq!(chosen.senders(rank), [rank % 8], "spread over all source ranks");
        let groups = &relation.feeds(rank)[0].groups;
        assert_eq!(groups.len(), 2, "latent and index-K");
        assert_eq!(groups[1].sections.len(), 2, "values and scales");
        assert_eq!(groups[1].bytes_per_token(), 3 * 132);
    }
}

#[test]
fn dp_attention() {
    // TP8 with 4 groups is attention TP 2 within the group.
    let dp = side(8, 1, 4, 16, PageOrder::TokenMajor);
    let relation = pair(gqa(4, 2), dp.clone(), token_major(4, 1, 16));
    assert_eq!(relation.src_ranks(), 2);
    pair(gqa(4, 4), token_major(4, 2, 16), side(8, 2, 4, 64, PageOrder::HeadMajor));
    let relation = pair(mla(2), token_major(4, 1, 16), side(8, 1, 8, 16, PageOrder::TokenMajor));
    assert_eq!(relation.dst_ranks(), 1);
    let group = dp.parallel;
    assert_eq!((0..2).map(|r| group.world_rank(3, r)).collect::<Vec<_>>(), [6, 7]);
}

#[test]
fn unlike_sides_are_told_why() {
    let layout = |model: &Model, dtype, tp| {
        Layout::new(model, dtype, Parallel::tp(tp), 16, PageOrder::TokenMajor).unwrap()
    };
    let (a, b) = (gqa(12, 2), gqa(8, 2));
    let base = layout(&a, DType::Bf16, 4);
    for (other, what) in [
        (layout(&b, DType::Bf16, 4), "attention"),
        (layout(&gqa(12, 3), DType::Bf16, 4), "layers: 2 and 3"),
        (layout(&a, DType::Fp8, 4), "dtype: bf16 and fp8"),
        (layout(&Model { index_k: mla(1).index_k, ..a.clone() }, DType::Bf16, 4), "index_k: None"),
    ] {
        let error = Relation::new(&base, &other).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
        assert_ne!(base.fingerprint(), other.fingerprint());
    }
    let error = Relation::new(&base, &layout(&a, DType::Bf16, 6)).unwrap_err();
    assert!(matches!(error, RelationError::Slices { src_slices: 4, dst_slices: 6, .. }), "{error}");
    let error = Layout::new(&a, DType::Bf16, Parallel::tp(1), 0, PageOrder::TokenMajor).unwrap_err();
    assert!(error.to_string().starts_with("page_size is 0 tokens"), "{error}");
}

/// The largest numbers that are allowed, and the next ones.
#[test]
fn bounds_are_inclusive() {
    let fits = |layers, q_heads, kv_heads, head_dim| {
        let attention = Attention::Gqa { kv_heads, head_dim };
        Model { layers, q_heads, attention, ..gqa(1, 1) }.validate(DType::Fp8).is_ok()
    };
    assert!(fits(16_384, 1, 1, 1) && !fits(16_385, 1, 1, 1) && !fits(0, 1, 1, 1));
    assert!(fits(1, 16_384, 1, 1) && !fits(1, 16_385, 1, 1) && !fits(1, 0, 1, 1));
    assert!(fits(1, 1, 16_384, 1) && !fits(1, 1, 16_385, 1) && !fits(1, 1, 0, 1) && !fits(1, 1, 1, 0));
    // K and V of 2^31 bytes each.
    assert!(fits(1, 1, 1, 1 << 31) && !fits(1, 1, 1, (1 << 31) + 1));
    let packed = |kv_lora_rank, dtype| {
        let attention = Attention::Mla { kv_lora_rank, qk_rope_head_dim: 1 };
        Model { attention, ..gqa(1, 1) }.validate(dtype).map_err(|error| error.to_string())
    };
    assert_eq!((packed(256, DType::Fp8Packed), packed(129, DType::Bf16)), (Ok(()), Ok(())));
    let error = packed(129, DType::Fp8Packed).unwrap_err();
    assert!(error.contains("kv_lora_rank is 129, must be a multiple of 128"), "{error}");
    let page = |tokens| Layout::new(&mla(1), DType::Bf16, Parallel::tp(1), tokens, PageOrder::TokenMajor);
    assert!(page(1 << 20).is_ok() && page((1 << 20) + 1).is_err());
    let spread = |tp, pp, dp| Parallel { tp, pp, dp }.validate().is_ok();
    assert!(spread(4096, 1, 1) && !spread(4097, 1, 1) && spread(64, 64, 64) && !spread(64, 65, 1));
    assert!(!spread(0, 1, 1) && !spread(1, 0, 1) && !spread(1, 1, 0) && !spread(6, 1, 4));
    let three =
        Layout::new(&mla(3), DType::Bf16, Parallel { tp: 2, pp: 3, dp: 2 }, 16, PageOrder::TokenMajor);
    let three = three.unwrap();
    assert!(
        Layout::new(&mla(3), DType::Bf16, Parallel { tp: 1, pp: 4, dp: 1 }, 16, PageOrder::TokenMajor)
            .is_err()
    );
    assert_eq!((three.world_rank(5).map(|rank| rank.stage()), three.world_rank(6)), (Some(2), None));
    assert_eq!([0, 1, 16, 17].map(|tokens| three.pages_for(tokens)), [0, 1, 1, 2]);
}

/// Instances of different releases compare it.
#[test]
fn the_fingerprint_is_fixed() {
    let of = |name, dtype| {
        let model = presets::lookup(name).unwrap();
        Layout::new(&model, dtype, Parallel::tp(1), 16, PageOrder::TokenMajor).unwrap().fingerprint()
    };
    assert_eq!(of("llama-3.1-8b", DType::Bf16), 0x0484_8325_62ef_5e8c);
    assert_eq!(of("deepseek-v3.2", DType::Fp8), 0x9380_72d7_2b0c_3522);
}

#[test]
fn deepseek_v32_row_and_pool_sizes() {
    let model = presets::lookup("deepseek-v3.2").unwrap();
    let parallel = Parallel { tp: 8, pp: 2, dp: 1 };
    let layout = Layout::new(&model, DType::Bf16, parallel, 64, PageOrder::TokenMajor).unwrap();
    let rank = layout.world_rank(15).unwrap();
    assert_eq!((rank.stage(), rank.layers()), (1, 31..61));
    assert_eq!(rank.pools()[0].page_bytes, 64 * 1152);
    assert_eq!(rank.pools()[1].page_bytes, 64 * 132);
    assert_eq!(rank.pools()[1].sections[1].base, 64 * 128);
    assert_eq!(rank.bytes_per_token(), 30 * (1152 + 132));
    let llama = presets::lookup("llama-3.1-8b").unwrap();
    for (tp, row) in [(1, 2048), (8, 256), (16, 256)] {
        let layout = Layout::new(&llama, DType::Bf16, Parallel::tp(tp), 16, PageOrder::TokenMajor);
        assert_eq!(layout.unwrap().ranks()[0].pools()[0].row_bytes(), row);
    }
}

fn any_order() -> impl Strategy<Value = PageOrder> {
    prop::sample::select(vec![PageOrder::TokenMajor, PageOrder::HeadMajor])
}

fn any_side(kv_heads: Option<u32>, layers: u32, tokens: u32) -> impl Strategy<Value = Side> {
    let fits: Vec<u32> = [1, 2, 3, 4, 6, 8, 12, 16]
        .into_iter()
        .filter(|a| kv_heads.is_none_or(|h| h % a == 0 || a % h == 0))
        .collect();
    let page = prop_oneof![1_u32..10, prop::sample::select(vec![1, 2, 4, 8, 16])];
    (prop::sample::select(fits), 1..=layers.min(3), 1_u32..4, page, any_order()).prop_flat_map(
        move |(attn_tp, pp, dp, page, order)| {
            let pages = tokens.div_ceil(page) + 2;
            let table = Just((0..pages).collect::<Vec<_>>()).prop_shuffle();
            table.prop_map(move |table| Side {
                parallel: Parallel { tp: attn_tp * dp, pp, dp },
                page,
                order,
                table,
            })
        },
    )
}

fn any_case() -> impl Strategy<Value = Case> {
    let attention = prop_oneof![
        3 => (prop::sample::select(vec![1_u32, 2, 3, 4, 6, 8]), 1_u32..4)
            .prop_map(|(kv_heads, head_dim)| Attention::Gqa { kv_heads, head_dim }),
        1 => (1_u32..5, 1_u32..4)
            .prop_map(|(c, r)| Attention::Mla { kv_lora_rank: c, qk_rope_head_dim: r }),
        1 => Just(Attention::Mla { kv_lora_rank: 128, qk_rope_head_dim: 3 }),
    ];
    let index = prop_oneof![3 => Just(None), 1 => Just(Some(IndexK { head_dim: 128 }))];
    (attention, index, 1_u32..5, 0_u32..30, any::<Index>(), any::<u64>()).prop_flat_map(
        |(attention, index_k, layers, tokens, dtype, salt)| {
            let (kv_heads, dtypes): (_, &[DType]) = match attention {
                Attention::Gqa { kv_heads, .. } => (Some(kv_heads), &[DType::Bf16, DType::Fp8]),
                Attention::Mla { kv_lora_rank: 128, .. } => (None, &[DType::Fp8Packed]),
                Attention::Mla { .. } => (None, &[DType::Fp16, DType::Fp8]),
            };
            let dtype = *dtype.get(dtypes);
            let model = Model { attention, index_k, ..gqa(kv_heads.unwrap_or(1), layers) };
            let sides = || any_side(kv_heads, layers, tokens);
            (sides(), sides()).prop_map(move |(src, dst)| Case {
                model: model.clone(),
                dtype,
                src,
                dst,
                tokens,
                salt,
            })
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(384) })]

    #[test]
    fn every_byte_moves_once_to_its_place(case in any_case()) {
        let slices = |side: &Side| match case.model.attention {
            Attention::Gqa { kv_heads, .. } => (side.parallel.tp / side.parallel.dp).min(kv_heads),
            Attention::Mla { .. } => 1,
        };
        let (p, d) = (slices(&case.src), slices(&case.dst));
        if p % d == 0 || d % p == 0 {
            check(&case);
        } else {
            let error = Relation::new(&layout(&case, &case.src), &layout(&case, &case.dst));
            let refused = matches!(error, Err(RelationError::Slices { .. }));
            prop_assert!(refused);
        }
    }

    /// The default replica gives no source rank more than its share of the destinations.
    #[test]
    fn default_replicas_are_even(p in 0_u32..5, d in 0_u32..5, heads in 0_u32..4) {
        let (p, d, h) = (1 << p, 1 << d, 1 << heads);
        let layout = |tp| {
            Layout::new(&gqa(h, 1), DType::Bf16, Parallel::tp(tp), 1, PageOrder::TokenMajor).unwrap()
        };
        let relation = Relation::new(&layout(p), &layout(d)).unwrap();
        let chosen = relation.assign_default();
        let (slices, replicas) = (p.min(h), p / p.min(h));
        let feeds: usize = (0..d).map(|r| relation.seals(r)).sum();
        let share = feeds.div_ceil((slices * replicas) as usize);
        for rank in 0..p {
            prop_assert!(chosen.duties(rank).len() <= share, "{} > {share}", chosen.duties(rank).len());
        }
    }

    /// No numbers panic: each makes a layout or an error.
    #[test]
    fn absurd_numbers_are_errors(
        n in prop::array::uniform9(prop_oneof![0_u32..20, any::<u32>(), Just(u32::MAX)]),
        is_mla: bool,
    ) {
        let [layers, q_heads, a, b, tp, pp, dp, page, index] = n;
        let attention = if is_mla {
            Attention::Mla { kv_lora_rank: a, qk_rope_head_dim: b }
        } else {
            Attention::Gqa { kv_heads: a, head_dim: b }
        };
        let index_k = (index % 2 == 0).then_some(IndexK { head_dim: index });
        let model = Model { layers, q_heads, attention, index_k, ..gqa(1, 1) };
        let parallel = Parallel { tp, pp, dp };
        for dtype in [DType::Bf16, DType::Fp8Packed] {
            let layout = Layout::new(&model, dtype, parallel, page, PageOrder::HeadMajor);
            if let Ok(layout) = layout {
                let relation = Relation::new(&layout, &layout).unwrap();
                let _ = relation.bytes(0, u32::MAX);
            }
        }
    }
}
