//! What two instances have to say to each other: the relation of their layouts, made once per pair.

use super::memory::port_of;
use super::reach::Reach;
use crate::fabric::{Lane, Lanes};
use crate::id::{PortId, Rank};
use crate::policy::ReplicaChoice;
use crate::registry::{Facts, RankFacts};
use models::{
    BufferKind, DType, Feed, Group, Layout, LayoutError, Model, PageOrder, Parallel, RankLayout, Relation,
    RelationError, SectionPair,
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
    /// An address, pitch or number of slots that no memory has.
    #[error("the peer's {what} reaches beyond 64-bit addresses")]
    Address {
        /// Of what.
        what: &'static str,
    },
    /// Hosts of which no port reaches one of the other.
    #[error("no port of the prefill host ({0} ports) reaches a port of the decode host ({1} ports)")]
    Unreachable(usize, usize),
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
    /// Geometry: pages, sections. Its source is the initiator's side, its destination the target's.
    pub group: Group,
    /// Requests READ: the target's bytes stay as they are, so that one of its pages may be named more than once.
    pub reads: bool,
    /// All lanes.
    pub lanes: Arc<Lanes>,
    /// The layer of each lane.
    pub layers: Vec<u32>,
    /// The lowest of them, and the one above the highest.
    pub span: Range<u32>,
    /// Shares of a [`Pairing`] with equal class have the same lanes, layers and geometry (all but `content`), so that a plan
    /// of one is a plan of the others. Classes count from 0.
    pub class: u32,
}

impl Share {
    /// Whether plans for the two are the same: where a section's bytes lie in the canonical row is nothing to a plan.
    fn alike(&self, other: &Self) -> bool {
        let pages = |g: &Group| (g.src_page_bytes, g.dst_page_bytes, g.src_page_tokens, g.dst_page_tokens);
        let place = |p: &SectionPair| (p.src_base, p.src_stride, p.dst_base, p.dst_stride, p.len);
        let (a, b) = (&self.group, &other.group);
        pages(a) == pages(b)
            && a.sections.iter().map(place).eq(b.sections.iter().map(place))
            && a.whole_page == b.whole_page
            && self.lanes == other.lanes
            && self.layers == other.layers
    }

    /// The lanes of some layers.
    pub fn lanes_of(&self, layers: &Range<u32>) -> Arc<Lanes> {
        if layers.start <= self.span.start && self.span.end <= layers.end {
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

/// What moves between one rank of the initiator and one of the target, ranks counted within their DP groups.
#[derive(Clone, Debug)]
pub struct PairFeed {
    /// The initiator's rank: sends in push, receives in pull.
    pub src: Rank,
    /// The target's rank.
    pub dst: Rank,
    /// Whether this one carries the aux row of its decode rank.
    pub aux: bool,
    /// By pool.
    pub shares: Vec<Share>,
    /// Which of the initiator rank's feeds it is; spreads feeds over rails.
    pub nth: u16,
}

/// What of a rank's memory reaches beyond 64-bit addresses: facts come from outside, and offsets are added up from them.
fn out_of_bounds(facts: &Facts, rank: &RankFacts, layout: Option<&RankLayout>) -> Option<&'static str> {
    let end =
        |base: u64, count: u64, each: u64| count.checked_mul(each).and_then(|len| base.checked_add(len));
    let aux = end(rank.aux.addr, facts.slots.into(), super::wire::SLOT_BYTES);
    if aux.is_none_or(|aux| end(aux, facts.stage_slots.into(), super::stage::CELL_BYTES).is_none()) {
        return Some("aux slots");
    }
    if end(rank.stage.addr, facts.stage_slots.into(), facts.stage_bytes).is_none() {
        return Some("staging slots");
    }
    let pools = layout.map(RankLayout::pools).unwrap_or_default();
    let whole = rank.pools.iter().zip(&rank.pitches).zip(pools).all(|((region, pitch), pool)| {
        let pages = end(0, facts.pages.into(), pool.page_bytes);
        pages.is_some_and(|len| len <= *pitch)
            && end(region.addr, pool.buffers.len() as u64, *pitch).is_some()
    });
    (!whole).then_some("KV pools")
}

/// A queue pair of a link: ends by rank of the whole instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wire {
    /// Which feed.
    pub feed: u16,
    /// DP group at the initiator.
    pub src_group: u16,
    /// DP group at the target.
    pub dst_group: u16,
    /// The initiator's rank in its instance.
    pub src: Rank,
    /// The target's rank in its instance.
    pub dst: Rank,
    /// Rail, 0 to `rails - 1`.
    pub rail: u16,
    /// The initiator's port.
    pub src_port: PortId,
    /// The target's port.
    pub dst_port: PortId,
}

/// The relation of a prefill and a decode instance, as initiator (`src`) and target (`dst`) of the requests see it. In push, where
/// [`Pairing::new`] begins, these are source and destination of the bytes; for pull it is [`Pairing::reversed`].
#[derive(Clone, Debug)]
pub struct Pairing {
    /// Feeds, by decode rank.
    pub feeds: Vec<PairFeed>,
    /// Ranks of a decode group.
    pub dst_ranks: u16,
    /// The initiator's and the target's tokens of a page.
    pub page_tokens: (u32, u32),
    /// Feed indices of each decode rank.
    pub feeds_of: Vec<Range<usize>>,
    /// Queue pairs of a link, in the order in which both ends list their endpoints.
    pub wires: Vec<Wire>,
    /// Queue pairs for each pair of ranks.
    pub rails: u16,
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
        reach: &Reach,
    ) -> Result<Self, PairingError> {
        let (src_layout, dst_layout) = (layout_of(model, dtype, src)?, layout_of(model, dtype, dst)?);
        for (layout, facts, what) in [(&src_layout, src, "rank list"), (&dst_layout, dst, "rank list")] {
            let want = usize::from(facts.tp) * usize::from(facts.pp);
            if facts.ranks.len() != want {
                return Err(PairingError::Facts { what, got: facts.ranks.len(), want });
            }
            for (index, rank) in facts.ranks.iter().enumerate() {
                if let Some(what) = out_of_bounds(facts, rank, layout.world_rank(index as u32)) {
                    return Err(PairingError::Address { what });
                }
                let pools = layout.world_rank(index as u32).map_or(0, |r| r.pools().len());
                if rank.pools.len() != pools || rank.pitches.len() != pools {
                    return Err(PairingError::Facts {
                        what: "pool list",
                        got: rank.pools.len().min(rank.pitches.len()),
                        want: pools,
                    });
                }
            }
        }
        let relation = Relation::new(&src_layout, &dst_layout)?;
        let world = |layout: &Layout, group: u16, rank: u32| {
            Rank(layout.parallel().world_rank(group.into(), rank) as u16)
        };
        if u64::from(relation.src_ranks()) > super::wire::MAX_SOURCES {
            return Err(PairingError::Sources(relation.src_ranks()));
        }
        let mut classes: Vec<Share> = Vec::new();
        let mut feeds = Vec::new();
        let mut feeds_of = Vec::new();
        let mut nth = vec![0u16; relation.src_ranks() as usize];
        for dst_rank in 0..relation.dst_ranks() {
            let start = feeds.len();
            let mut aux_due = false;
            for (index, feed, copy) in relation
                .feeds(dst_rank)
                .iter()
                .enumerate()
                .flat_map(|(index, feed)| copies_of(feed, replica).map(move |copy| (index, feed, copy)))
            {
                let sender = feed.source(copy);
                aux_due |= index == relation.aux_feed(dst_rank) && copy == first_copy(feed, replica);
                let (src_world, dst_world) = (world(&src_layout, 0, sender), world(&dst_layout, 0, dst_rank));
                let (src_facts, dst_facts) = (&src.ranks[src_world.index()], &dst.ranks[dst_world.index()]);
                let buffers = |layout: &Layout, rank: u32, pool: usize| {
                    layout.ranks()[rank as usize].pools()[pool].buffers.clone()
                };
                let shares: Vec<Share> = feed
                    .groups
                    .iter()
                    .filter_map(|group| {
                        let kinds = buffers(&dst_layout, dst_rank, group.pool_dst);
                        let sends = |&(_, d): &(u32, u32)| {
                            !replica.splits()
                                || feed.source(replica.choose(dst_rank, kinds[d as usize].layer)) == sender
                        };
                        let lanes: Vec<(u32, u32)> = group.lanes.iter().copied().filter(sends).collect();
                        let group = Group { lanes, ..group.clone() };
                        let (from, to) =
                            (src_facts.pitches[group.pool_src], dst_facts.pitches[group.pool_dst]);
                        let lane = |&(s, d): &(u32, u32)| Lane {
                            local: u64::from(s) * from,
                            remote: u64::from(d) * to,
                        };
                        let layers: Vec<u32> =
                            group.lanes.iter().map(|&(_, d)| kinds[d as usize].layer).collect();
                        let first = layers.iter().copied().min()?;
                        let share = Share {
                            lanes: group.lanes.iter().map(lane).collect(),
                            span: first..layers.iter().copied().max().map_or(0, |last| last + 1),
                            layers,
                            reads: false,
                            group,
                            class: classes.len() as u32,
                        };
                        Some(intern(&mut classes, share))
                    })
                    .collect();
                // More copies than layers: this one has nothing to send.
                if shares.is_empty() {
                    continue;
                }
                feeds.push(PairFeed {
                    src: Rank(sender as u16),
                    dst: Rank(dst_rank as u16),
                    aux: std::mem::take(&mut aux_due),
                    shares,
                    nth: nth[sender as usize],
                });
                nth[sender as usize] += 1;
            }
            feeds_of.push(start..feeds.len());
        }
        let mut wires = Vec::new();
        let port_count = |facts: &Facts, rank: Rank| facts.ranks[rank.index()].aux.rkeys.len().max(1);
        for src_group in 0..src.dp {
            for dst_group in 0..dst.dp {
                for (index, feed) in feeds.iter().enumerate() {
                    let from = world(&src_layout, src_group, feed.src.0.into());
                    let to = world(&dst_layout, dst_group, feed.dst.0.into());
                    let ports = (port_count(src, from), port_count(dst, to));
                    for rail in 0..rails {
                        let wanted = (
                            port_of(from, src.ranks.len(), rail, ports.0),
                            port_of(to, dst.ranks.len(), rail, ports.1),
                        );
                        let (src_port, dst_port) = reach
                            .nearest(wanted, ports)
                            .ok_or(PairingError::Unreachable(ports.0, ports.1))?;
                        wires.push(Wire {
                            feed: index as u16,
                            src_group,
                            dst_group,
                            src: from,
                            dst: to,
                            rail,
                            src_port,
                            dst_port,
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

    /// The same relation for pull: decode is the initiator, and reads where prefill would have written. Which copy of replicated KV a
    /// rank is served from stays as it was; the feeds of a decode rank are numbered anew, for its rails are what they are spread over.
    #[must_use]
    pub fn reversed(self) -> Self {
        let mut classes: Vec<Share> = Vec::new();
        let mut nth: Vec<u16> = Vec::new();
        let mut turn = |share: Share| {
            let group = share.group.reversed();
            let lane = |lane: &Lane| Lane { local: lane.remote, remote: lane.local };
            match classes.iter().find(|first| first.class == share.class) {
                Some(first) => Share { group, reads: true, lanes: first.lanes.clone(), ..share },
                None => {
                    let lanes = share.lanes.iter().map(lane).collect();
                    let share = Share { group, reads: true, lanes, ..share };
                    classes.push(share.clone());
                    share
                }
            }
        };
        let mut feeds = Vec::with_capacity(self.feeds.len());
        for feed in self.feeds {
            let at = feed.dst.index();
            nth.resize(nth.len().max(at + 1), 0);
            feeds.push(PairFeed {
                src: feed.dst,
                dst: feed.src,
                aux: feed.aux,
                shares: feed.shares.into_iter().map(&mut turn).collect(),
                nth: nth[at],
            });
            nth[at] += 1;
        }
        let mut wires: Vec<Wire> = self
            .wires
            .into_iter()
            .map(|wire| Wire {
                src_group: wire.dst_group,
                dst_group: wire.src_group,
                src: wire.dst,
                dst: wire.src,
                src_port: wire.dst_port,
                dst_port: wire.src_port,
                ..wire
            })
            .collect();
        // As `Pairing::wire` counts.
        wires.sort_by_key(|wire| (wire.src_group, wire.dst_group, wire.feed, wire.rail));
        let page_tokens = (self.page_tokens.1, self.page_tokens.0);
        Self { feeds, wires, page_tokens, ..self }
    }

    /// Most feeds that one of the target's ranks has: a room's staging slots are shared out among so many.
    pub fn most_feeds(&self) -> u32 {
        self.feeds_of.iter().map(|feeds| feeds.len() as u32).max().unwrap_or(0)
    }

    /// Index of a queue pair in [`Pairing::wires`].
    pub fn wire(&self, dst_groups: u16, src_group: u16, dst_group: u16, feed: usize, rail: u16) -> usize {
        let group = usize::from(src_group) * usize::from(dst_groups) + usize::from(dst_group);
        (group * self.feeds.len() + feed) * usize::from(self.rails) + usize::from(rail)
    }
}

/// Which copies of a feed send, as indices into its sources.
fn copies_of(feed: &Feed, replica: ReplicaChoice) -> Range<u64> {
    let first = first_copy(feed, replica);
    first..if replica.splits() { feed.sources.len().max(1) as u64 } else { first + 1 }
}

fn first_copy(feed: &Feed, replica: ReplicaChoice) -> u64 {
    if replica.splits() { 0 } else { replica.choose(feed.dst_rank, 0) }
}

/// Gives a share the class and the lanes of the first one that is like it.
fn intern(classes: &mut Vec<Share>, share: Share) -> Share {
    match classes.iter().find(|first| first.alike(&share)) {
        Some(first) => Share { class: first.class, lanes: first.lanes.clone(), ..share },
        None => {
            classes.push(share.clone());
            share
        }
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

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::registry::RankFacts;
    use models::presets;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    pub(in super::super) fn facts(
        model: &Model,
        parallel: Parallel,
        page_size: u32,
        head_major: bool,
    ) -> Facts {
        let (tp, pp, dp) = (parallel.tp as u16, parallel.pp as u16, parallel.dp as u16);
        let mut facts = Facts { tp, pp, dp, page_size, head_major, ..Facts::default() };
        let layout = layout_of(model, DType::Bf16, &facts).unwrap();
        for rank in 0..parallel.world() {
            let pools = layout.world_rank(rank).unwrap().pools();
            facts.ranks.push(RankFacts {
                pools: pools.iter().map(|_| Default::default()).collect(),
                pitches: pools.iter().map(|pool| pool.page_bytes * 100).collect(),
                aux: Default::default(),
                stage: Default::default(),
            });
        }
        facts
    }

    pub(in super::super) fn pairing(model: &Model, src: &Facts, dst: &Facts, rails: u16) -> Pairing {
        Pairing::new(model, DType::Bf16, src, dst, ReplicaChoice::ByDestination, rails, &Reach::Any).unwrap()
    }

    fn parallel() -> impl Strategy<Value = Parallel> {
        (0u32..4, 1u32..4, 0u32..3).prop_map(|(attn, pp, dp)| Parallel {
            tp: 1 << (attn + dp),
            pp,
            dp: 1 << dp,
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn both_sides_have_a_wire_for_every_feed_rail_and_pair_of_groups(
            name in prop::sample::select(vec!["tiny-gqa", "tiny-mla", "deepseek-v3.2"]),
            (a, b) in (parallel(), parallel()),
            pages in (1u32..5, 1u32..5),
            orders: (bool, bool),
            rails in 1u16..4,
            (ports, joined) in ((1usize..5, 1usize..5), prop::collection::vec((0u32..5, 0u32..5), 1..4)),
        ) {
            let model = presets::lookup(name).unwrap();
            let (src, dst) = (facts(&model, a, pages.0, orders.0), facts(&model, b, pages.1, orders.1));
            let pairing = pairing(&model, &src, &dst, rails);
            let again = self::pairing(&model, &src.clone(), &dst.clone(), rails);
            prop_assert_eq!(&pairing.wires, &again.wires);
            let ends = |p: &Pairing| p.feeds.iter().map(|f| (f.src, f.dst, f.aux, f.nth)).collect::<Vec<_>>();
            prop_assert_eq!(ends(&pairing), ends(&again));

            let mut seen = BTreeSet::new();
            for src_group in 0..src.dp {
                for dst_group in 0..dst.dp {
                    for (index, feed) in pairing.feeds.iter().enumerate() {
                        for rail in 0..rails {
                            let at = pairing.wire(dst.dp, src_group, dst_group, index, rail);
                            let wire = pairing.wires[at];
                            prop_assert!(seen.insert(at));
                            let named = (usize::from(wire.feed), wire.src_group, wire.dst_group, wire.rail);
                            prop_assert_eq!(named, (index, src_group, dst_group, rail));
                            // Group and rank within it, back from the rank of the instance.
                            let group = |p: Parallel, rank: Rank| p.group_rank(rank.0.into());
                            prop_assert_eq!(group(a, wire.src), (src_group.into(), feed.src.0.into()));
                            prop_assert_eq!(group(b, wire.dst), (dst_group.into(), feed.dst.0.into()));
                        }
                    }
                }
            }
            prop_assert_eq!(seen.len(), pairing.wires.len());
            // On whichever ports there are, only such as reach each other; and both directions see the same.
            let (mut src, mut dst) = (src.clone(), dst.clone());
            for (facts, count) in [(&mut src, ports.0), (&mut dst, ports.1)] {
                facts.ranks.iter_mut().for_each(|rank| rank.aux.rkeys = vec![1; count]);
            }
            for reach in [Reach::Any, Reach::SameRail, Reach::Pairs(joined.into())] {
                let there = |p: &PortId, count| p.index() < count;
                match Pairing::new(&model, DType::Bf16, &src, &dst, ReplicaChoice::ByDestination, rails, &reach) {
                    Ok(pairing) => {
                        let fine = |w: &Wire| reach.joins(w.src_port, w.dst_port)
                            && there(&w.src_port, ports.0) && there(&w.dst_port, ports.1);
                        prop_assert!(pairing.wires.iter().all(fine));
                        let mut ends: Vec<_> = pairing.wires.iter().map(|w| (w.src_port, w.dst_port)).collect();
                        let mut back: Vec<_> =
                            pairing.reversed().wires.iter().map(|w| (w.dst_port, w.src_port)).collect();
                        ends.sort();
                        back.sort();
                        prop_assert_eq!(ends, back);
                    }
                    Err(error) => {
                        prop_assert_eq!(error, PairingError::Unreachable(ports.0, ports.1));
                        let all = (0..ports.0 as u32).flat_map(|a| (0..ports.1 as u32).map(move |b| (a, b)));
                        prop_assert!(!all.into_iter().any(|(a, b)| reach.joins(PortId(a), PortId(b))));
                    }
                }
            }
            // One aux row for each destination rank, from among its feeds; distinct senders.
            for (dst_rank, range) in pairing.feeds_of.iter().enumerate() {
                let feeds = &pairing.feeds[range.clone()];
                prop_assert!(feeds.iter().all(|f| f.dst.index() == dst_rank));
                prop_assert_eq!(feeds.iter().filter(|f| f.aux).count(), 1);
                prop_assert_eq!(feeds.iter().map(|f| f.src).collect::<BTreeSet<_>>().len(), feeds.len());
            }
            prop_assert_eq!(pairing.feeds_of.len(), usize::from(pairing.dst_ranks));
            prop_assert_eq!(u32::from(pairing.dst_ranks), b.group_size());

            let shares: Vec<&Share> = pairing.feeds.iter().flat_map(|f| &f.shares).collect();
            for (i, x) in shares.iter().enumerate() {
                for y in &shares[..i] {
                    prop_assert_eq!(x.class == y.class, x.alike(y));
                    prop_assert!(x.class != y.class || Arc::ptr_eq(&x.lanes, &y.lanes));
                }
            }
            let classes: BTreeSet<u32> = shares.iter().map(|s| s.class).collect();
            prop_assert!(classes.iter().copied().eq(0..classes.len() as u32));
        }
    }

    #[test]
    fn streams_are_evenly_spaced() {
        for layers in [1, 3, 61] {
            let of = |kind| (0..layers).map(move |layer| stream_position(kind, layer, layers));
            let all: Vec<u64> =
                [BufferKind::K, BufferKind::V, BufferKind::IndexK].into_iter().flat_map(of).collect();
            let want: Vec<u64> = (0..3 * u64::from(layers)).map(|nth| nth * LAYER_STRIDE).collect();
            assert_eq!(all, want);
            assert!(of(BufferKind::Latent).eq(of(BufferKind::K)));
        }
    }

    #[test]
    fn ranks_with_other_heads_share_a_class() {
        let model = presets::lookup("llama-3.1-70b").unwrap();
        let classes = |src, dst| {
            let pairing = pairing(
                &model,
                &facts(&model, Parallel::tp(src), 64, false),
                &facts(&model, Parallel::tp(dst), 64, false),
                1,
            );
            let shares = pairing.feeds.iter().flat_map(|f| &f.shares);
            (pairing.feeds.len(), shares.map(|s| s.class).collect::<BTreeSet<_>>().len())
        };
        assert_eq!(classes(8, 8), (8, 1));
        assert_eq!(classes(4, 8), (8, 2));
        assert_eq!(classes(8, 2), (8, 4));
    }

    #[test]
    fn facts_that_contradict_themselves_are_refused() {
        let model = presets::lookup("tiny-gqa").unwrap();
        let good = facts(&model, Parallel::tp(4), 16, false);
        let new = |src: &Facts| {
            Pairing::new(&model, DType::Bf16, src, &good, ReplicaChoice::ByDestination, 1, &Reach::Any)
                .map(|_| ())
        };
        assert_eq!(new(&good), Ok(()));
        let mut short = good.clone();
        short.ranks.pop();
        assert_eq!(new(&short), Err(PairingError::Facts { what: "rank list", got: 3, want: 4 }));
        let mut short = good.clone();
        short.ranks[2].pitches.clear();
        assert_eq!(new(&short), Err(PairingError::Facts { what: "pool list", got: 0, want: 1 }));
    }

    #[test]
    fn memory_beyond_64_bit_addresses_is_refused() {
        let model = presets::lookup("tiny-gqa").unwrap();
        let mut good = facts(&model, Parallel::tp(4), 16, false);
        (good.pages, good.slots, good.stage_slots, good.stage_bytes) = (100, 10, 4, 1000);
        let new = |change: &dyn Fn(&mut Facts)| {
            let mut facts = good.clone();
            change(&mut facts);
            let replica = ReplicaChoice::ByDestination;
            match Pairing::new(&model, DType::Bf16, &good, &facts, replica, 1, &Reach::Any) {
                Ok(_) => "",
                Err(PairingError::Address { what }) => what,
                Err(error) => panic!("{error}"),
            }
        };
        // The last address that all of it fits behind, and the next one.
        let aux = u64::MAX - 10 * super::super::wire::SLOT_BYTES - 4 * super::super::stage::CELL_BYTES;
        let stage = u64::MAX - 4000;
        let pitch = good.ranks[3].pitches[0];
        let kv = u64::MAX - 2 * u64::from(model.layers) * pitch;
        assert_eq!(new(&|f| f.ranks[3].aux.addr = aux), "");
        assert_eq!(new(&|f| f.ranks[3].aux.addr = aux + 1), "aux slots");
        assert_eq!(new(&|f| f.ranks[3].stage.addr = stage), "");
        assert_eq!(new(&|f| f.ranks[3].stage.addr = stage + 1), "staging slots");
        assert_eq!(new(&|f| f.ranks[3].pools[0].addr = kv), "");
        assert_eq!(new(&|f| f.ranks[3].pools[0].addr = kv + 1), "KV pools");
        // More pages than a buffer has room for.
        assert_eq!(new(&|f| f.pages = 101), "KV pools");
        assert_eq!(new(&|f| f.ranks[3].pitches[0] = pitch - 1), "KV pools");
    }
}
