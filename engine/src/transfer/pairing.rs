//! What two instances have to say to each other: the relation of their layouts, made once per pair.

use crate::fabric::{Lane, Lanes};
use crate::id::Rank;
use crate::policy::ReplicaChoice;
use crate::registry::Facts;
use models::{
    BufferKind, DType, Group, Layout, LayoutError, Model, PageOrder, Parallel, Relation, RelationError,
};
use std::ops::Range;
use std::sync::Arc;

/// Why two instances cannot be paired.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PairingError {
    /// The peer's layout is impossible.
    #[error("the peer's layout: {0}")]
    Layout(#[from] LayoutError),
    /// The two layouts do not fit.
    #[error(transparent)]
    Relation(#[from] RelationError),
    /// The peer's facts contradict themselves.
    #[error("the peer's {what} has {got}, its layout needs {want}")]
    Facts {
        /// Of what.
        what: &'static str,
        /// As told.
        got: usize,
        /// As needed.
        want: usize,
    },
    /// More source ranks than an aux slot has cells for.
    #[error("{0} source ranks in a group, at most {max} are supported", max = super::wire::MAX_SOURCES)]
    Sources(u32),
}

/// The layout that facts describe.
pub fn layout_of(model: &Model, dtype: DType, facts: &Facts) -> Result<Layout, LayoutError> {
    let parallel = Parallel { tp: facts.tp.into(), pp: facts.pp.into(), dp: facts.dp.into() };
    let order = if facts.head_major { PageOrder::HeadMajor } else { PageOrder::TokenMajor };
    Layout::new(model, dtype, parallel, facts.page_size, order)
}

/// One pool's share of a feed, with its lanes as offsets into the two registrations.
#[derive(Clone, Debug)]
pub struct Share {
    /// Geometry: pages, sections.
    pub group: Group,
    /// All lanes.
    pub lanes: Arc<Lanes>,
    /// The layer of each lane.
    pub layers: Vec<u32>,
}

impl Share {
    /// The lanes of some layers.
    pub fn lanes_of(&self, layers: &Range<u32>) -> Arc<Lanes> {
        if self.layers.iter().all(|layer| layers.contains(layer)) {
            return self.lanes.clone();
        }
        self.lanes
            .iter()
            .zip(&self.layers)
            .filter(|(_, layer)| layers.contains(layer))
            .map(|(lane, _)| *lane)
            .collect()
    }
}

/// What one source rank sends to one destination rank, ranks counted within their DP groups.
#[derive(Clone, Debug)]
pub struct PairFeed {
    /// Sends.
    pub src: Rank,
    /// Receives.
    pub dst: Rank,
    /// Whether this one carries the aux row for `dst`.
    pub aux: bool,
    /// By pool.
    pub shares: Vec<Share>,
    /// Which of the source rank's feeds it is; spreads feeds over rails.
    pub nth: u16,
}

/// A queue pair of a link: ends by rank of the whole instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wire {
    /// Which feed.
    pub feed: u16,
    /// DP group at the source.
    pub src_group: u16,
    /// DP group at the destination.
    pub dst_group: u16,
    /// Source rank in its instance.
    pub src: Rank,
    /// Destination rank in its instance.
    pub dst: Rank,
    /// Rail, 0 to `rails - 1`.
    pub rail: u16,
}

/// The relation of a prefill and a decode instance.
#[derive(Clone, Debug)]
pub struct Pairing {
    /// Feeds, by destination rank.
    pub feeds: Vec<PairFeed>,
    /// Ranks of a destination group.
    pub dst_ranks: u16,
    /// Source and destination tokens of a page.
    pub page_tokens: (u32, u32),
    /// Feed indices of each destination rank.
    pub feeds_of: Vec<Range<usize>>,
    /// Queue pairs of a link, in the order in which both ends list their endpoints.
    pub wires: Vec<Wire>,
    /// Queue pairs for each pair of ranks.
    pub rails: u16,
}

/// World rank of a group's rank.
fn world(facts: &Facts, group: u16, rank: u32) -> Rank {
    let attn = u32::from(facts.tp / facts.dp.max(1)).max(1);
    Rank((rank / attn * u32::from(facts.tp) + u32::from(group) * attn + rank % attn) as u16)
}

impl Pairing {
    /// Works it out from both sides' facts, the same at both.
    pub fn new(
        model: &Model,
        dtype: DType,
        src: &Facts,
        dst: &Facts,
        replica: ReplicaChoice,
        rails: u16,
    ) -> Result<Self, PairingError> {
        let (src_layout, dst_layout) = (layout_of(model, dtype, src)?, layout_of(model, dtype, dst)?);
        for (layout, facts, what) in [(&src_layout, src, "rank list"), (&dst_layout, dst, "rank list")] {
            let want = usize::from(facts.tp) * usize::from(facts.pp);
            if facts.ranks.len() != want {
                return Err(PairingError::Facts { what, got: facts.ranks.len(), want });
            }
            for (index, rank) in facts.ranks.iter().enumerate() {
                let pools = layout.world_rank(index as u32).map_or(0, |r| r.pools().len());
                if rank.pools.len() != pools || rank.pitches.len() != pools {
                    return Err(PairingError::Facts {
                        what: "pool list",
                        got: rank.pools.len(),
                        want: pools,
                    });
                }
            }
        }
        let relation = Relation::new(&src_layout, &dst_layout)?;
        if u64::from(relation.src_ranks()) > super::wire::MAX_SOURCES {
            return Err(PairingError::Sources(relation.src_ranks()));
        }
        let assignment = relation.assign(|feed| replica.choose(feed.dst_rank));
        let mut feeds = Vec::new();
        let mut feeds_of = Vec::new();
        let mut nth = vec![0u16; relation.src_ranks() as usize];
        for dst_rank in 0..relation.dst_ranks() {
            let start = feeds.len();
            for (index, feed) in relation.feeds(dst_rank).iter().enumerate() {
                let sender = assignment.senders(dst_rank)[index];
                let (src_world, dst_world) = (world(src, 0, sender), world(dst, 0, dst_rank));
                let (src_facts, dst_facts) = (&src.ranks[src_world.index()], &dst.ranks[dst_world.index()]);
                let buffers = |layout: &Layout, rank: u32, pool: usize| {
                    layout.ranks()[rank as usize].pools()[pool].buffers.clone()
                };
                let shares = feed
                    .groups
                    .iter()
                    .map(|group| {
                        let (from, to) =
                            (src_facts.pitches[group.pool_src], dst_facts.pitches[group.pool_dst]);
                        let lane = |&(s, d): &(u32, u32)| Lane {
                            local: u64::from(s) * from,
                            remote: u64::from(d) * to,
                        };
                        let kinds = buffers(&dst_layout, dst_rank, group.pool_dst);
                        Share {
                            lanes: group.lanes.iter().map(lane).collect(),
                            layers: group.lanes.iter().map(|&(_, d)| kinds[d as usize].layer).collect(),
                            group: group.clone(),
                        }
                    })
                    .collect();
                feeds.push(PairFeed {
                    src: Rank(sender as u16),
                    dst: Rank(dst_rank as u16),
                    aux: index == relation.aux_feed(dst_rank),
                    shares,
                    nth: nth[sender as usize],
                });
                nth[sender as usize] += 1;
            }
            feeds_of.push(start..feeds.len());
        }
        let mut wires = Vec::new();
        for src_group in 0..src.dp {
            for dst_group in 0..dst.dp {
                for (index, feed) in feeds.iter().enumerate() {
                    for rail in 0..rails {
                        wires.push(Wire {
                            feed: index as u16,
                            src_group,
                            dst_group,
                            src: world(src, src_group, feed.src.0.into()),
                            dst: world(dst, dst_group, feed.dst.0.into()),
                            rail,
                        });
                    }
                }
            }
        }
        Ok(Self {
            feeds,
            dst_ranks: relation.dst_ranks() as u16,
            page_tokens: (src.page_size, dst.page_size),
            feeds_of,
            wires,
            rails,
        })
    }

    /// Index of a queue pair in [`Pairing::wires`].
    pub fn wire(&self, dst_groups: u16, src_group: u16, dst_group: u16, feed: usize, rail: u16) -> usize {
        let group = usize::from(src_group) * usize::from(dst_groups) + usize::from(dst_group);
        (group * self.feeds.len() + feed) * usize::from(self.rails) + usize::from(rail)
    }
}

/// Where a (component, layer) stream starts: kinds and layers are evenly spaced, so that the buffers of a rank that
/// has all layers (K of each, then V of each) are one arithmetic sequence.
pub(super) fn stream_position(kind: BufferKind, layer: u32, layers: u32) -> u64 {
    let kind = match kind {
        BufferKind::K | BufferKind::Latent => 0,
        BufferKind::V => 1,
        BufferKind::IndexK => 2,
    };
    (kind * u64::from(layers) + u64::from(layer)) * LAYER_STRIDE
}

/// Positions between the streams of two layers: more bytes than any request has in one.
pub(super) const LAYER_STRIDE: u64 = 1 << 40;
