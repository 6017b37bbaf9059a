//! The transfer relation against an oracle that walks single bytes.
//!
//! The oracle knows where each byte lies on each rank from the definition of the layout alone (which
//! heads and layers a rank holds, how a page is ordered); it uses no section, feed or lane. Source
//! memory is filled through it, the relation's feeds are carried out, and destination memory must
//! then be what the oracle says, byte by byte, each byte written once.

use models::{
    Attention, DType, IndexK, Layout, Model, PageOrder, Parallel, Relation, RelationError, presets,
};
use proptest::prelude::*;
use proptest::sample::Index;

/// What one byte of a cache is: (kind, layer, token, byte of the canonical row).
type Byte = (u8, u32, u32, u64);
/// Per rank, pool and buffer.
type Memory = Vec<Vec<Vec<Vec<Option<Byte>>>>>;

#[derive(Debug, Clone)]
struct Side {
    parallel: Parallel,
    page: u32,
    order: PageOrder,
    /// Physical page of each logical one; has more pages than any request needs.
    table: Vec<u32>,
}

#[derive(Debug, Clone)]
struct Case {
    model: Model,
    dtype: DType,
    src: Side,
    dst: Side,
    tokens: u32,
    /// Varies the choice of replicas.
    salt: u64,
}

/// Where the oracle says a byte is.
struct Place {
    pool: usize,
    buffer: usize,
    offset: u64,
}

struct Oracle<'a> {
    model: &'a Model,
    dtype: DType,
    side: &'a Side,
}

impl Oracle<'_> {
    fn attn_tp(&self) -> u32 {
        self.side.parallel.tp / self.side.parallel.dp
    }

    fn ranks(&self) -> u32 {
        self.attn_tp() * self.side.parallel.pp
    }

    fn pages(&self) -> u64 {
        self.side.table.len() as u64
    }

    /// Layers by stage, dealt out one at a time and then put in order.
    fn layers(&self, rank: u32) -> Vec<u32> {
        let pp = self.side.parallel.pp as usize;
        let mut count = vec![0; pp];
        for layer in 0..self.model.layers {
            count[layer as usize % pp] += 1;
        }
        let stage = (rank / self.attn_tp()) as usize;
        let first: u32 = count[..stage].iter().sum();
        (first..first + count[stage]).collect()
    }

    fn heads(&self, rank: u32, kv_heads: u32) -> Vec<u32> {
        let (rank, tp) = (rank % self.attn_tp(), self.attn_tp());
        if tp > kv_heads {
            vec![rank / (tp / kv_heads)]
        } else {
            let each = kv_heads / tp;
            (0..each).map(|i| rank * each + i).collect()
        }
    }

    fn latent_row(&self) -> u64 {
        let Attention::Mla { kv_lora_rank: c, qk_rope_head_dim: r } = self.model.attention else {
            return 0;
        };
        let (c, r) = (u64::from(c), u64::from(r));
        match self.dtype {
            DType::Bf16 | DType::Fp16 => 2 * (c + r),
            DType::Fp8 => c + r,
            DType::Fp8Packed => c + c / 128 * 4 + 2 * r,
        }
    }

    fn elem(&self) -> u64 {
        if self.dtype == DType::Fp8 { 1 } else { 2 }
    }

    /// Calls `visit` for every byte of `tokens` tokens that a rank holds.
    fn walk(&self, rank: u32, tokens: u32, mut visit: impl FnMut(Byte, Place)) {
        let page_size = u64::from(self.side.page);
        let layers = self.layers(rank);
        for token in 0..tokens {
            let page = u64::from(self.side.table[(token / self.side.page) as usize]);
            let slot = u64::from(token % self.side.page);
            for (i, &layer) in layers.iter().enumerate() {
                match self.model.attention {
                    Attention::Gqa { kv_heads, head_dim } => {
                        let head = u64::from(head_dim) * self.elem();
                        let heads = self.heads(rank, kv_heads);
                        let n = heads.len() as u64;
                        for kind in 0..2 {
                            for (h, &id) in heads.iter().enumerate() {
                                for b in 0..head {
                                    let inside = match self.side.order {
                                        PageOrder::TokenMajor => (slot * n + h as u64) * head + b,
                                        PageOrder::HeadMajor => (h as u64 * page_size + slot) * head + b,
                                    };
                                    let place = Place {
                                        pool: 0,
                                        buffer: usize::from(kind) * layers.len() + i,
                                        offset: page * page_size * n * head + inside,
                                    };
                                    visit((kind, layer, token, u64::from(id) * head + b), place);
                                }
                            }
                        }
                    }
                    Attention::Mla { .. } => {
                        let row = self.latent_row();
                        for b in 0..row {
                            let offset = (page * page_size + slot) * row + b;
                            visit((2, layer, token, b), Place { pool: 0, buffer: i, offset });
                        }
                    }
                }
                if let Some(IndexK { head_dim }) = self.model.index_k {
                    let (values, scales) = (u64::from(head_dim), u64::from(head_dim) / 32);
                    for b in 0..values + scales {
                        let inside = if b < values {
                            slot * values + b
                        } else {
                            page_size * values + slot * scales + (b - values)
                        };
                        let offset = page * page_size * (values + scales) + inside;
                        visit((3, layer, token, b), Place { pool: 1, buffer: i, offset });
                    }
                }
            }
        }
    }

    /// Buffers of the layout's sizes, empty. That the sizes are right shows in the walk: each byte
    /// of a page table that is full must be hit.
    fn memory(&self, layout: &Layout) -> Memory {
        let ranks = layout.ranks().iter();
        ranks
            .map(|rank| {
                let pools = rank.pools().iter();
                pools
                    .map(|pool| {
                        let bytes = pool.page_bytes * self.pages();
                        vec![vec![None; bytes as usize]; pool.buffers.len()]
                    })
                    .collect()
            })
            .collect()
    }

    fn filled(&self, layout: &Layout, tokens: u32) -> Memory {
        let mut memory = self.memory(layout);
        for rank in 0..self.ranks() {
            self.walk(rank, tokens, |byte, place| {
                let buffer = &mut memory[rank as usize][place.pool][place.buffer];
                let old = buffer[place.offset as usize].replace(byte);
                assert_eq!(old, None, "two bytes in one place");
            });
        }
        memory
    }
}

fn layout(case: &Case, side: &Side) -> Layout {
    Layout::new(&case.model, case.dtype, side.parallel, side.page, side.order).unwrap()
}

/// A layout's sections and content positions say what the oracle says.
fn check_layout(layout: &Layout, oracle: &Oracle<'_>) {
    let full = oracle.side.page * oracle.side.table.len() as u32;
    let memory = oracle.filled(layout, full);
    for (rank, pools) in layout.ranks().iter().zip(&memory) {
        let mut page_bytes = 0;
        for (pool, buffers) in rank.pools().iter().zip(pools) {
            for (info, bytes) in pool.buffers.iter().zip(buffers) {
                assert!(bytes.iter().all(Option::is_some), "a hole in a full buffer");
                page_bytes += bytes.len() as u64 / oracle.pages();
                for token in 0..full {
                    let page = u64::from(oracle.side.table[(token / layout.page_tokens()) as usize]);
                    let slot = u64::from(token % layout.page_tokens());
                    for section in pool.sections.iter() {
                        let at = page * pool.page_bytes + section.base + slot * section.stride;
                        for b in 0..section.len {
                            let (_, layer, t, content) = bytes[(at + b) as usize].unwrap();
                            assert_eq!((layer, t), (info.layer, token));
                            assert_eq!(content, section.content + b);
                            assert!(content < pool.full_row);
                        }
                    }
                }
            }
        }
        assert_eq!(rank.bytes_per_page(), page_bytes);
        assert_eq!(rank.bytes_per_token() * u64::from(layout.page_tokens()), page_bytes);
    }
}

/// Carries the relation out and compares with the oracle. Returns the destination ranks' feeds.
fn check(case: &Case) -> Relation {
    let (src, dst) = (layout(case, &case.src), layout(case, &case.dst));
    let oracle = |side| Oracle { model: &case.model, dtype: case.dtype, side };
    let (at_src, at_dst) = (oracle(&case.src), oracle(&case.dst));
    check_layout(&src, &at_src);
    check_layout(&dst, &at_dst);
    assert_eq!(src.fingerprint(), dst.fingerprint());

    let relation = Relation::new(&src, &dst).unwrap();
    assert_eq!((relation.src_ranks(), relation.dst_ranks()), (at_src.ranks(), at_dst.ranks()));
    let mut count = case.salt;
    let chosen = relation.assign(|_| {
        count = count.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        count >> 33
    });
    let from = at_src.filled(&src, case.tokens);
    let wanted = at_dst.filled(&dst, case.tokens);
    let mut to = at_dst.memory(&dst);
    for rank in 0..relation.dst_ranks() {
        let feeds = relation.feeds(rank);
        let mut moved = 0;
        let senders = chosen.senders(rank);
        assert_eq!(senders.len(), relation.seals(rank));
        let mut distinct = senders.to_vec();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), senders.len(), "one feed per sender");
        for (index, (feed, &sender)) in feeds.iter().zip(senders).enumerate() {
            assert!(feed.sources.contains(&sender) && feed.sources.contains(&feed.default_source()));
            assert!(chosen.duties(sender).contains(&(rank, index as u32)));
            for group in &feed.groups {
                assert!(group.lanes.is_sorted_by(|a, b| a.0 < b.0 && a.1 < b.1));
                check_whole_page(group);
                for &(a, b) in &group.lanes {
                    let a = &from[sender as usize][group.pool_src][a as usize];
                    let b = &mut to[rank as usize][group.pool_dst][b as usize];
                    for token in 0..case.tokens {
                        let place = |table: &[u32], tokens: u32, bytes: u64| {
                            let page = u64::from(table[(token / tokens) as usize]);
                            (page * bytes, u64::from(token % tokens))
                        };
                        let (a_page, a_slot) =
                            place(&case.src.table, group.src_page_tokens, group.src_page_bytes);
                        let (b_page, b_slot) =
                            place(&case.dst.table, group.dst_page_tokens, group.dst_page_bytes);
                        for s in &group.sections {
                            let a_at = a_page + s.src_base + a_slot * s.src_stride;
                            let b_at = b_page + s.dst_base + b_slot * s.dst_stride;
                            for i in 0..s.len {
                                let byte = a[(a_at + i) as usize].expect("reads what is there");
                                assert_eq!(byte.3, s.content + i);
                                let old = b[(b_at + i) as usize].replace(byte);
                                assert_eq!(old, None, "written twice");
                            }
                            moved += s.len;
                        }
                    }
                }
            }
        }
        assert_eq!(relation.bytes(rank, case.tokens), moved);
        // The aux row: on the last stage that feeds this rank, and its first feed there.
        let aux = relation.aux_feed(rank);
        let last = feeds.iter().map(|f| f.src_stage).max().unwrap();
        assert_eq!(feeds.iter().position(|f| f.src_stage == last), Some(aux));
    }
    assert!(to == wanted, "destination memory differs from the oracle");
    let every: u64 = (0..relation.dst_ranks()).map(|r| relation.bytes(r, case.tokens)).sum();
    assert_eq!(relation.total_bytes(case.tokens), u128::from(every));
    assert!(chosen.active_sources() <= relation.src_ranks() as usize);
    relation
}

/// Ranges of a whole page are the sections of every token, joined as far as they go.
fn check_whole_page(group: &models::Group) {
    if group.whole_page.is_empty() {
        return;
    }
    assert_eq!(group.src_page_tokens, group.dst_page_tokens);
    let mut by_section: Vec<(u64, u64)> = Vec::new();
    for s in &group.sections {
        for t in 0..u64::from(group.src_page_tokens) {
            let (a, b) = (s.src_base + t * s.src_stride, s.dst_base + t * s.dst_stride);
            by_section.extend((0..s.len).map(|i| (a + i, b + i)));
        }
    }
    let mut by_range: Vec<(u64, u64)> = Vec::new();
    for r in &group.whole_page {
        by_range.extend((0..r.len).map(|i| (r.src + i, r.dst + i)));
    }
    by_section.sort_unstable();
    by_range.sort_unstable();
    assert_eq!(by_section, by_range);
    for pair in group.whole_page.windows(2) {
        let joined = pair[0].src + pair[0].len == pair[1].src && pair[0].dst + pair[0].len == pair[1].dst;
        assert!(!joined, "ranges could be joined");
    }
}

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
