//! Which bytes of which source rank fill which bytes of which destination rank.
//!
//! Computed once per pair of layouts. Both sides are one DP group each, and ranks are group ranks
//! (`stage * attn_tp + rank in group`, see [`Parallel`](crate::Parallel)). Token `t` of a request is
//! token `t % page_tokens` of page `pages[t / page_tokens]` on either side, each with its own page
//! list.
//!
//! A destination rank is filled by *feeds*. Each carries the layers of one source stage and the heads
//! of one source slice, so distinct feeds have distinct source ranks, and every byte of a destination
//! rank comes with exactly one feed. Ranks which hold the same slice (GQA with TP above the KV heads;
//! all ranks of a stage for MLA) can replace one another: a feed lists them all as `sources`.

use thiserror::Error;

use crate::layout::{BufferInfo, BufferKind, Component, Layout, PoolLayout, RankLayout};
use crate::model::Attention;

/// A strided range of a source page and where it goes in a destination page. Token `i` of the source
/// page is at `src_base + i * src_stride`, token `j` of the destination page at
/// `dst_base + j * dst_stride`, `len` bytes each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SectionPair {
    /// Bytes from the start of the source page.
    pub src_base: u64,
    /// Bytes from token to token in the source page.
    pub src_stride: u64,
    /// Bytes from the start of the destination page.
    pub dst_base: u64,
    /// Bytes from token to token in the destination page.
    pub dst_stride: u64,
    /// Bytes per token.
    pub len: u64,
    /// Bytes from the start of the canonical row, for stamping and verifying.
    pub content: u64,
}

/// One contiguous range of a whole page, the same tokens in the same order on both sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PageRange {
    /// Bytes from the start of the source page.
    pub src: u64,
    /// Bytes from the start of the destination page.
    pub dst: u64,
    /// Bytes.
    pub len: u64,
}

/// What a feed moves between two pools: every lane (pair of buffers) in the same way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Index into the source rank's pools.
    pub pool_src: usize,
    /// Index into the destination rank's pools.
    pub pool_dst: usize,
    /// (source buffer, destination buffer) within the pools, ascending in both.
    pub lanes: Vec<(u32, u32)>,
    /// Bytes of a source page.
    pub src_page_bytes: u64,
    /// Bytes of a destination page.
    pub dst_page_bytes: u64,
    /// Tokens of a source page.
    pub src_page_tokens: u32,
    /// Tokens of a destination page.
    pub dst_page_tokens: u32,
    /// Bytes of the canonical row.
    pub full_row: u64,
    /// What moves of each token, ascending in `content`; no two can be joined in every token.
    pub sections: Vec<SectionPair>,
    /// A whole page in the fewest contiguous ranges, ascending in `src`, when both sides' pages have
    /// the same number of tokens and every section is dense (`len == stride`) on both sides. Otherwise
    /// empty: then, and for a page that is filled in part, go by sections.
    pub whole_page: Vec<PageRange>,
}

impl Group {
    /// Bytes of one token over all lanes.
    #[must_use]
    pub fn bytes_per_token(&self) -> u64 {
        self.lanes.len() as u64 * self.sections.iter().map(|s| s.len).sum::<u64>()
    }

    /// The same bytes with source and destination exchanged: what a planner of READs goes by.
    #[must_use]
    pub fn reversed(&self) -> Self {
        let section = |s: &SectionPair| SectionPair {
            src_base: s.dst_base,
            src_stride: s.dst_stride,
            dst_base: s.src_base,
            dst_stride: s.src_stride,
            ..*s
        };
        let range = |r: &PageRange| PageRange { src: r.dst, dst: r.src, ..*r };
        let mut whole_page: Vec<PageRange> = self.whole_page.iter().map(range).collect();
        whole_page.sort_unstable_by_key(|r| r.src);
        Self {
            pool_src: self.pool_dst,
            pool_dst: self.pool_src,
            lanes: self.lanes.iter().map(|&(s, d)| (d, s)).collect(),
            src_page_bytes: self.dst_page_bytes,
            dst_page_bytes: self.src_page_bytes,
            src_page_tokens: self.dst_page_tokens,
            dst_page_tokens: self.src_page_tokens,
            full_row: self.full_row,
            sections: self.sections.iter().map(section).collect(),
            whole_page,
        }
    }
}

/// What one source rank sends to one destination rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Feed {
    /// Destination group rank.
    pub dst_rank: u32,
    /// Source pipeline stage.
    pub src_stage: u32,
    /// Group ranks that hold these bytes, ascending; any one of them may send.
    pub sources: Vec<u32>,
    /// One entry per pool, each with at least one lane.
    pub groups: Vec<Group>,
}

impl Feed {
    /// The `choice`-th source, modulo their number.
    #[must_use]
    pub fn source(&self, choice: u64) -> u32 {
        // `sources` is never empty: a slice has at least one holder.
        let index = choice % self.sources.len().max(1) as u64;
        self.sources.get(index as usize).copied().unwrap_or_default()
    }

    /// The source by destination rank: spreads the destination ranks evenly over the replicas.
    #[must_use]
    pub fn default_source(&self) -> u32 {
        self.source(u64::from(self.dst_rank))
    }

    /// Bytes of one token.
    #[must_use]
    pub fn bytes_per_token(&self) -> u64 {
        self.groups.iter().map(Group::bytes_per_token).sum()
    }
}

/// Why two layouts cannot exchange KV.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RelationError {
    /// Something that must be equal is not.
    #[error("source and destination differ in {what}: {src} and {dst}; they must be equal")]
    Differs {
        /// Which property.
        what: &'static str,
        /// Its value at the source.
        src: String,
        /// Its value at the destination.
        dst: String,
    },
    /// Head slices that straddle.
    #[error(
        "attention tp {src_tp} at the source and {dst_tp} at the destination cut {kv_heads} KV heads into {src_slices} and \
         {dst_slices} slices: one number must divide the other"
    )]
    Slices {
        /// Attention TP of the source.
        src_tp: u32,
        /// Attention TP of the destination.
        dst_tp: u32,
        /// KV heads of the model.
        kv_heads: u32,
        /// `min(src_tp, kv_heads)`.
        src_slices: u32,
        /// `min(dst_tp, kv_heads)`.
        dst_slices: u32,
    },
}

/// The transfer relation of two layouts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation {
    src_ranks: u32,
    /// Per destination rank, by (source stage, slice).
    feeds: Vec<Vec<Feed>>,
    bytes_per_token: Vec<u64>,
}

/// Which source sends each feed, under one choice of replicas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    senders: Vec<Vec<u32>>,
    duties: Vec<Vec<(u32, u32)>>,
}

impl Assignment {
    /// Source ranks that send to a destination rank, in the order of its feeds, all distinct. Each
    /// must seal before that rank has everything.
    #[must_use]
    pub fn senders(&self, dst_rank: u32) -> &[u32] {
        self.senders.get(dst_rank as usize).map_or(&[], Vec::as_slice)
    }

    /// What a source rank sends: (destination rank, index into its feeds), ascending.
    #[must_use]
    pub fn duties(&self, src_rank: u32) -> &[(u32, u32)] {
        self.duties.get(src_rank as usize).map_or(&[], Vec::as_slice)
    }
}

impl Relation {
    /// The relation from one DP group of `src` to one DP group of `dst`.
    ///
    /// # Errors
    /// When model geometry or dtype differ, or the head slices straddle.
    pub fn new(src: &Layout, dst: &Layout) -> Result<Self, RelationError> {
        check_equal(src, dst)?;
        let model = src.model();
        let (src_slices, dst_slices) = (src.parallel().slices(model), dst.parallel().slices(model));
        if let Attention::Gqa { kv_heads, .. } = model.attention
            && src_slices % dst_slices != 0
            && dst_slices % src_slices != 0
        {
            return Err(RelationError::Slices {
                src_tp: src.parallel().attn_tp(),
                dst_tp: dst.parallel().attn_tp(),
                kv_heads,
                src_slices,
                dst_slices,
            });
        }
        let feeds: Vec<Vec<Feed>> = dst.ranks().iter().map(|rank| feeds_of(src, rank, src_slices)).collect();
        let bytes_per_token =
            feeds.iter().map(|feeds| feeds.iter().map(Feed::bytes_per_token).sum()).collect();
        Ok(Self { src_ranks: src.ranks().len() as u32, feeds, bytes_per_token })
    }

    /// Ranks of the source group.
    #[must_use]
    pub fn src_ranks(&self) -> u32 {
        self.src_ranks
    }

    /// Ranks of the destination group.
    #[must_use]
    pub fn dst_ranks(&self) -> u32 {
        self.feeds.len() as u32
    }

    /// What fills a destination rank, ascending in (source stage, head). Empty beyond the group.
    #[must_use]
    pub fn feeds(&self, dst_rank: u32) -> &[Feed] {
        self.feeds.get(dst_rank as usize).map_or(&[], Vec::as_slice)
    }

    /// How many source ranks send to a destination rank, so how many must seal there: one per feed,
    /// whichever replicas are chosen.
    #[must_use]
    pub fn seals(&self, dst_rank: u32) -> usize {
        self.feeds(dst_rank).len()
    }

    /// Which feed of a destination rank carries the aux row: the first of the last source stage among
    /// its feeds. That is exactly one rank per destination rank; it needs no queue pair which the KV
    /// does not need; and it is on the stage that samples the first token whenever that stage sends to
    /// this rank at all. Index into [`Relation::feeds`]; 0 beyond the group.
    #[must_use]
    pub fn aux_feed(&self, dst_rank: u32) -> usize {
        let feeds = self.feeds(dst_rank);
        let last = feeds.last().map_or(0, |feed| feed.src_stage);
        feeds.partition_point(|feed| feed.src_stage < last)
    }

    /// KV bytes that a destination rank gets for `tokens` tokens, whichever replicas send.
    #[must_use]
    pub fn bytes(&self, dst_rank: u32, tokens: u32) -> u64 {
        let each = self.bytes_per_token.get(dst_rank as usize).copied();
        each.unwrap_or(0) * u64::from(tokens)
    }

    /// KV bytes that the destination group gets for `tokens` tokens.
    #[must_use]
    pub fn total_bytes(&self, tokens: u32) -> u128 {
        let each: u128 = self.bytes_per_token.iter().map(|&b| u128::from(b)).sum();
        each * u128::from(tokens)
    }

    /// Senders under a choice of replicas; `choose` returns an index into the feed's sources, taken
    /// modulo their number.
    pub fn assign(&self, mut choose: impl FnMut(&Feed) -> u64) -> Assignment {
        let mut senders = Vec::with_capacity(self.feeds.len());
        let mut duties = vec![Vec::new(); self.src_ranks as usize];
        for (dst_rank, feeds) in (0..).zip(&self.feeds) {
            let mut row = Vec::with_capacity(feeds.len());
            for (index, feed) in (0..).zip(feeds) {
                let source = feed.source(choose(feed));
                row.push(source);
                if let Some(duty) = duties.get_mut(source as usize) {
                    duty.push((dst_rank, index));
                }
            }
            senders.push(row);
        }
        Assignment { senders, duties }
    }

    /// Senders by destination rank ([`Feed::default_source`]).
    #[must_use]
    pub fn assign_default(&self) -> Assignment {
        self.assign(|feed| u64::from(feed.dst_rank))
    }
}

fn check_equal(src: &Layout, dst: &Layout) -> Result<(), RelationError> {
    let differs = |what, a: &dyn std::fmt::Debug, b: &dyn std::fmt::Debug| {
        Err(RelationError::Differs { what, src: format!("{a:?}"), dst: format!("{b:?}") })
    };
    let (a, b) = (src.model(), dst.model());
    if a.layers != b.layers {
        return differs("layers", &a.layers, &b.layers);
    }
    if a.attention != b.attention {
        return differs("attention", &a.attention, &b.attention);
    }
    if a.index_k != b.index_k {
        return differs("index_k", &a.index_k, &b.index_k);
    }
    if src.dtype() != dst.dtype() {
        return Err(RelationError::Differs {
            what: "dtype",
            src: src.dtype().to_string(),
            dst: dst.dtype().to_string(),
        });
    }
    Ok(())
}

fn feeds_of(src: &Layout, dst: &RankLayout, src_slices: u32) -> Vec<Feed> {
    let attn_tp = src.parallel().attn_tp();
    let replicas = attn_tp / src_slices;
    let mut feeds = Vec::new();
    for src_stage in 0..src.parallel().pp {
        for slice in 0..src_slices {
            let first = src_stage * attn_tp + slice * replicas;
            let Some(rank) = src.ranks().get(first as usize) else {
                continue;
            };
            // Once per stage, and on a feed that is there for the heads anyway.
            let first_of_stage = feeds.last().is_none_or(|f: &Feed| f.src_stage != src_stage);
            let groups = groups_of(rank, dst, first_of_stage);
            if !groups.is_empty() {
                let sources = (first..first + replicas).collect();
                feeds.push(Feed { dst_rank: dst.group_rank(), src_stage, sources, groups });
            }
        }
    }
    feeds
}

/// Empty when the two ranks share no layer or no head. Components which every rank of a stage holds
/// whole come along only if `with_whole`.
fn groups_of(src: &RankLayout, dst: &RankLayout, with_whole: bool) -> Vec<Group> {
    let shared = src.layers().start.max(dst.layers().start)..src.layers().end.min(dst.layers().end);
    if shared.is_empty() {
        return Vec::new();
    }
    let no_heads = src.heads().end <= dst.heads().start || dst.heads().end <= src.heads().start;
    if no_heads && !dst.heads().is_empty() {
        return Vec::new();
    }
    let mut groups = Vec::new();
    for (pool_dst, to) in dst.pools().iter().enumerate() {
        let from = src.pools().iter().enumerate().find(|(_, p)| p.component == to.component);
        let Some((pool_src, from)) = from else {
            continue;
        };
        if to.component != Component::Kv && !with_whole {
            continue;
        }
        let sections = pairs(from, to);
        if sections.is_empty() {
            continue;
        }
        let lanes = lanes(from, to);
        groups.push(Group {
            pool_src,
            pool_dst,
            lanes,
            src_page_bytes: from.page_bytes,
            dst_page_bytes: to.page_bytes,
            src_page_tokens: from.page_tokens,
            dst_page_tokens: to.page_tokens,
            full_row: to.full_row,
            whole_page: whole_page(from, to, &sections),
            sections,
        });
    }
    groups
}

/// Buffers of the same kind and layer; both lists are sorted by (kind, layer).
fn lanes(from: &PoolLayout, to: &PoolLayout) -> Vec<(u32, u32)> {
    let key = |b: &BufferInfo| -> (BufferKind, u32) { (b.kind, b.layer) };
    let mut lanes = Vec::new();
    let mut s = 0;
    for (d, buffer) in to.buffers.iter().enumerate() {
        while s < from.buffers.len() && key(&from.buffers[s]) < key(buffer) {
            s += 1;
        }
        if s < from.buffers.len() && key(&from.buffers[s]) == key(buffer) {
            lanes.push((s as u32, d as u32));
        }
    }
    lanes
}

/// Where source and destination sections hold the same part of the canonical row. Sections of one
/// side are maximal, so no two of these can be joined in every token either.
fn pairs(from: &PoolLayout, to: &PoolLayout) -> Vec<SectionPair> {
    let mut pairs = Vec::new();
    let (mut s, mut d) = (0, 0);
    while let (Some(a), Some(b)) = (from.sections.get(s), to.sections.get(d)) {
        let start = a.content.max(b.content);
        let end = (a.content + a.len).min(b.content + b.len);
        if start < end {
            pairs.push(SectionPair {
                src_base: a.base + (start - a.content),
                src_stride: a.stride,
                dst_base: b.base + (start - b.content),
                dst_stride: b.stride,
                len: end - start,
                content: start,
            });
        }
        if a.content + a.len <= b.content + b.len {
            s += 1;
        } else {
            d += 1;
        }
    }
    pairs
}

fn whole_page(from: &PoolLayout, to: &PoolLayout, sections: &[SectionPair]) -> Vec<PageRange> {
    if from.page_tokens != to.page_tokens {
        return Vec::new();
    }
    // Rows that are not dense on both sides (token-major, unequal heads) go token by token anyway.
    let dense = |p: &SectionPair| p.len == p.src_stride && p.len == p.dst_stride;
    if !sections.iter().all(dense) {
        return Vec::new();
    }
    let tokens = u64::from(from.page_tokens);
    let mut ranges: Vec<PageRange> = Vec::new();
    for pair in sections {
        let (src, dst, len) = (pair.src_base, pair.dst_base, tokens * pair.len);
        match ranges.last_mut() {
            Some(last) if last.src + last.len == src && last.dst + last.len == dst => {
                last.len += len;
            }
            _ => ranges.push(PageRange { src, dst, len }),
        }
    }
    ranges
}
