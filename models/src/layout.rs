//! Where each token's bytes lie on each rank.
//!
//! A rank holds *pools*: sets of buffers with the same page. Pages of a pool are allocated together:
//! page `p` of every buffer starts at `p * page_bytes` inside that buffer. Inside a page, token `t`
//! of a [`Section`] occupies `[base + t * stride, + len)`.
//!
//! So that two sides can name the same byte, each (buffer kind, layer) has a *canonical row* per
//! token: all KV heads in order, the whole latent, or index-K values then scales. A section's
//! `content` is where its bytes lie in that row.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::model::{Attention, DType, IndexK, Model, ModelError};
use crate::parallel::{Parallel, ParallelError};

/// Most tokens of a page.
pub const MAX_PAGE_TOKENS: u32 = 1 << 20;

/// Order of heads and tokens within a page of a K or V buffer. Latents and index keys have no heads:
/// it does not matter to them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PageOrder {
    /// `[token][head][dim]`, as in SGLang's token pool.
    #[default]
    TokenMajor,
    /// `[head][token][dim]`: each head's slice of a page is contiguous.
    HeadMajor,
}

/// What a pool holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Component {
    /// K and V rows.
    Kv,
    /// MLA latent rows.
    Latent,
    /// Index keys and their scales.
    IndexK,
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kv => "KV",
            Self::Latent => "latent",
            Self::IndexK => "index-K",
        })
    }
}

/// What one buffer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BufferKind {
    /// Keys.
    K,
    /// Values.
    V,
    /// MLA latent with its rope part.
    Latent,
    /// Index keys and their scales.
    IndexK,
}

impl fmt::Display for BufferKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::K => "K",
            Self::V => "V",
            Self::Latent => "latent",
            Self::IndexK => "index-K",
        })
    }
}

/// One buffer of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BufferInfo {
    /// What it holds.
    pub kind: BufferKind,
    /// Of which layer of the whole model.
    pub layer: u32,
}

/// A strided range of a page: token `t` has `len` bytes at `base + t * stride`. Sections of a page
/// do not overlap, and are maximal: no two are adjacent in every token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Section {
    /// Bytes from the start of the page.
    pub base: u64,
    /// Bytes from token to token, at least `len`.
    pub stride: u64,
    /// Bytes per token.
    pub len: u64,
    /// Bytes from the start of the canonical row.
    pub content: u64,
}

/// A set of buffers of one rank with equal pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolLayout {
    /// What the buffers hold.
    pub component: Component,
    /// All K buffers by layer, then all V buffers; or one buffer per layer.
    pub buffers: Arc<[BufferInfo]>,
    /// Bytes of a page of one buffer. Sections fill it without gaps.
    pub page_bytes: u64,
    /// Tokens of a page.
    pub page_tokens: u32,
    /// Bytes of a token's canonical row: all heads, also those of other ranks.
    pub full_row: u64,
    /// How a page is filled, ascending in `base` and in `content`.
    pub sections: Arc<[Section]>,
}

impl PoolLayout {
    /// Bytes of one token in one buffer of this rank.
    #[must_use]
    pub fn row_bytes(&self) -> u64 {
        self.page_bytes / u64::from(self.page_tokens)
    }

    /// Bytes of one token over all buffers of the pool.
    #[must_use]
    pub fn bytes_per_token(&self) -> u64 {
        self.row_bytes() * self.buffers.len() as u64
    }
}

/// One rank's memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RankLayout {
    group_rank: u32,
    stage: u32,
    layers: Range<u32>,
    heads: Range<u32>,
    pools: Vec<PoolLayout>,
}

impl RankLayout {
    /// Rank within the DP group: `stage * attn_tp + rank in group`.
    #[must_use]
    pub fn group_rank(&self) -> u32 {
        self.group_rank
    }

    /// Pipeline stage.
    #[must_use]
    pub fn stage(&self) -> u32 {
        self.stage
    }

    /// Layers held.
    #[must_use]
    pub fn layers(&self) -> Range<u32> {
        self.layers.clone()
    }

    /// KV heads held; empty for MLA.
    #[must_use]
    pub fn heads(&self) -> Range<u32> {
        self.heads.clone()
    }

    /// The KV or latent pool, then the index-K pool if the model has one.
    #[must_use]
    pub fn pools(&self) -> &[PoolLayout] {
        &self.pools
    }

    /// Bytes of a token over all pools of this rank.
    #[must_use]
    pub fn bytes_per_token(&self) -> u64 {
        self.pools.iter().map(PoolLayout::bytes_per_token).sum()
    }

    /// Bytes of a page over all buffers of all pools of this rank.
    #[must_use]
    pub fn bytes_per_page(&self) -> u64 {
        let pool = |p: &PoolLayout| p.page_bytes * p.buffers.len() as u64;
        self.pools.iter().map(pool).sum()
    }
}

/// Why there is no such layout.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LayoutError {
    /// The model's numbers.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The parallelism does not fit the model.
    #[error(transparent)]
    Parallel(#[from] ParallelError),
    /// A page of zero or absurdly many tokens.
    #[error("page_size is {value} tokens, must be 1 to {MAX_PAGE_TOKENS} (commonly 1, 16 or 64)")]
    PageSize {
        /// Tokens asked for.
        value: u32,
    },
}

/// Where an instance keeps KV: the ranks of one DP group (all groups are alike).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    model: Model,
    dtype: DType,
    parallel: Parallel,
    page_tokens: u32,
    order: PageOrder,
    ranks: Vec<RankLayout>,
}

impl Layout {
    /// Lays out `model` over the ranks of `parallel` in pages of `page_tokens`.
    ///
    /// # Errors
    /// When the numbers do not fit together; says which and what would.
    pub fn new(
        model: &Model,
        dtype: DType,
        parallel: Parallel,
        page_tokens: u32,
        order: PageOrder,
    ) -> Result<Self, LayoutError> {
        model.validate(dtype)?;
        parallel.check(model)?;
        if page_tokens == 0 || page_tokens > MAX_PAGE_TOKENS {
            return Err(LayoutError::PageSize { value: page_tokens });
        }
        let mut ranks = Vec::with_capacity(parallel.group_size() as usize);
        for stage in 0..parallel.pp {
            let layers = parallel.stage_layers(model.layers, stage);
            let shape = Shape { model, dtype, page_tokens, order };
            let kinds: &[BufferKind] = match model.attention {
                Attention::Gqa { .. } => &[BufferKind::K, BufferKind::V],
                Attention::Mla { .. } => &[BufferKind::Latent],
            };
            let index_pool = |index| shape.index_pool(index, buffers(&[BufferKind::IndexK], &layers));
            let index = model.index_k.map(index_pool);
            let main = buffers(kinds, &layers);
            for rank_in_group in 0..parallel.attn_tp() {
                let (heads, main) = match model.attention {
                    Attention::Gqa { kv_heads, head_dim } => {
                        let slice = rank_in_group / parallel.replicas(model);
                        let each = kv_heads / parallel.slices(model);
                        let heads = slice * each..(slice + 1) * each;
                        let pool = shape.kv_pool(head_dim, &heads, main.clone());
                        (heads, pool)
                    }
                    Attention::Mla { .. } => (0..0, shape.latent_pool(main.clone())),
                };
                let mut pools = vec![main];
                pools.extend(index.clone());
                ranks.push(RankLayout {
                    group_rank: stage * parallel.attn_tp() + rank_in_group,
                    stage,
                    layers: layers.clone(),
                    heads,
                    pools,
                });
            }
        }
        Ok(Self { model: model.clone(), dtype, parallel, page_tokens, order, ranks })
    }

    /// The model.
    #[must_use]
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Element type.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Parallelism.
    #[must_use]
    pub fn parallel(&self) -> Parallel {
        self.parallel
    }

    /// Tokens of a page.
    #[must_use]
    pub fn page_tokens(&self) -> u32 {
        self.page_tokens
    }

    /// Order within a page.
    #[must_use]
    pub fn order(&self) -> PageOrder {
        self.order
    }

    /// The ranks of one DP group, by group rank.
    #[must_use]
    pub fn ranks(&self) -> &[RankLayout] {
        &self.ranks
    }

    /// The rank of an instance's world rank, `None` beyond the world.
    #[must_use]
    pub fn world_rank(&self, world_rank: u32) -> Option<&RankLayout> {
        if world_rank >= self.parallel.world() {
            return None;
        }
        let (_, group_rank) = self.parallel.group_rank(world_rank);
        self.ranks.get(group_rank as usize)
    }

    /// How many pages hold `tokens` tokens.
    #[must_use]
    pub fn pages_for(&self, tokens: u32) -> u32 {
        tokens.div_ceil(self.page_tokens)
    }

    /// A stable number of what must be equal for two sides to exchange KV: layers, attention
    /// geometry, components and dtype. The model's name, parallelism and pages may differ.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        // FNV-1a 64: stable across platforms and releases; not against an adversary.
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        let mut put = |value: u32| {
            for byte in value.to_le_bytes() {
                hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
            }
        };
        put(1); // version of this list
        put(self.model.layers);
        match self.model.attention {
            Attention::Gqa { kv_heads, head_dim } => {
                put(1);
                put(kv_heads);
                put(head_dim);
            }
            Attention::Mla { kv_lora_rank, qk_rope_head_dim } => {
                put(2);
                put(kv_lora_rank);
                put(qk_rope_head_dim);
            }
        }
        put(self.model.index_k.map_or(0, |index| index.head_dim));
        put(match self.dtype {
            DType::Bf16 => 1,
            DType::Fp16 => 2,
            DType::Fp8 => 3,
            DType::Fp8Packed => 4,
        });
        hash
    }
}

fn buffers(kinds: &[BufferKind], layers: &Range<u32>) -> Arc<[BufferInfo]> {
    kinds.iter().flat_map(|&kind| layers.clone().map(move |layer| BufferInfo { kind, layer })).collect()
}

/// What all ranks share. Products fit: `Model::validate` bounds a token to 2^32 bytes, a page has at
/// most 2^20 tokens.
struct Shape<'a> {
    model: &'a Model,
    dtype: DType,
    page_tokens: u32,
    order: PageOrder,
}

impl Shape<'_> {
    fn kv_pool(&self, head_dim: u32, heads: &Range<u32>, buffers: Arc<[BufferInfo]>) -> PoolLayout {
        let head = u64::from(head_dim) * self.dtype.bytes();
        let first = u64::from(heads.start) * head;
        let row = heads.len() as u64 * head;
        // With one token or one head the orders are the same: one section keeps sections maximal.
        let one = self.page_tokens == 1 || heads.len() == 1;
        let sections = if one || self.order == PageOrder::TokenMajor {
            [Section { base: 0, stride: row, len: row, content: first }].into()
        } else {
            let page = u64::from(self.page_tokens) * head;
            (0..heads.len() as u64)
                .map(|h| Section { base: h * page, stride: head, len: head, content: first + h * head })
                .collect()
        };
        self.pool(Component::Kv, row, self.model.row_bytes_unchecked(self.dtype), sections, buffers)
    }

    fn latent_pool(&self, buffers: Arc<[BufferInfo]>) -> PoolLayout {
        let row = self.model.row_bytes_unchecked(self.dtype);
        let sections = [Section { base: 0, stride: row, len: row, content: 0 }].into();
        self.pool(Component::Latent, row, row, sections, buffers)
    }

    /// A page is all values, then all scales (SGLang's NSA index buffer).
    fn index_pool(&self, index: IndexK, buffers: Arc<[BufferInfo]>) -> PoolLayout {
        let (values, scales) = (index.value_bytes(), index.scale_bytes());
        let row = index.row_bytes();
        let sections = if self.page_tokens == 1 {
            [Section { base: 0, stride: row, len: row, content: 0 }].into()
        } else {
            let base = u64::from(self.page_tokens) * values;
            [
                Section { base: 0, stride: values, len: values, content: 0 },
                Section { base, stride: scales, len: scales, content: values },
            ]
            .into()
        };
        self.pool(Component::IndexK, row, row, sections, buffers)
    }

    fn pool(
        &self,
        component: Component,
        row: u64,
        full_row: u64,
        sections: Arc<[Section]>,
        buffers: Arc<[BufferInfo]>,
    ) -> PoolLayout {
        PoolLayout {
            component,
            buffers,
            page_bytes: row * u64::from(self.page_tokens),
            page_tokens: self.page_tokens,
            full_row,
            sections,
        }
    }
}
