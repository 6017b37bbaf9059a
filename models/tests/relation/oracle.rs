//! Where each byte lies, from the definition of the layout alone (which heads and layers a rank
//! holds, how a page is ordered). Uses no section, feed or lane to find a byte.

use models::{Attention, DType, Group, IndexK, Layout, Model, PageOrder, Parallel, Relation, SectionPair};

/// What one byte of a cache is: (kind, layer, token, byte of the canonical row).
type Byte = (u8, u32, u32, u64);
/// Per rank, pool and buffer.
type Memory = Vec<Vec<Vec<Vec<Option<Byte>>>>>;

#[derive(Debug, Clone)]
pub(crate) struct Side {
    pub(crate) parallel: Parallel,
    pub(crate) page: u32,
    pub(crate) order: PageOrder,
    /// Physical page of each logical one; has more pages than any request needs.
    pub(crate) table: Vec<u32>,
}

#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub(crate) model: Model,
    pub(crate) dtype: DType,
    pub(crate) src: Side,
    pub(crate) dst: Side,
    pub(crate) tokens: u32,
    /// Varies the choice of replicas.
    pub(crate) salt: u64,
}

/// Where the oracle says a byte is.
struct Place {
    pool: usize,
    buffer: usize,
    offset: u64,
}

struct Oracle<'a> {
    model: &'a Model,
    pub(crate) dtype: DType,
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

pub(crate) fn layout(case: &Case, side: &Side) -> Layout {
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
pub(crate) fn check(case: &Case) -> Relation {
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
            // What every rank of a stage holds whole comes with heads, where there are any.
            assert_eq!(feed.groups[0].pool_dst, 0);
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
    relation
}

/// Ranges of a whole page are the sections of every token, joined as far as they go.
fn check_whole_page(group: &Group) {
    if group.whole_page.is_empty() {
        let dense = |s: &SectionPair| s.len == s.src_stride && s.len == s.dst_stride;
        let unlike = group.src_page_tokens != group.dst_page_tokens;
        assert!(unlike || !group.sections.iter().all(dense));
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
