//! The packed layout: how some tokens of some layers of a feed lie in a slot.
//!
//! Pool by pool, buffer by buffer, section by section, token by token, without a gap: each buffer's share of a pool is a page of as many
//! tokens as the part has. That is a layout like any other, so that the planner works out the way there and the way from there.

use super::super::pages::PageTable;
use super::super::pairing::{PairFeed, Share};
use super::super::plan::{PlanLimits, PlanningError, Side, plan_between};
use crate::fabric::{Lane, Lanes, Plan};
use crate::id::Page;
use crate::registry::PageRun;
use models::{Group, SectionPair};
use std::ops::Range;
use std::sync::Arc;

/// Tokens and layers of one staged part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    /// Tokens.
    pub tokens: Range<u32>,
    /// Layers.
    pub layers: Range<u32>,
}

/// Bytes of a token in one buffer of a share.
fn row(group: &Group) -> u64 {
    group.sections.iter().map(|section| section.len).sum()
}

/// Bytes of a token of some layers of a feed.
pub(crate) fn per_token(feed: &PairFeed, layers: &Range<u32>) -> u64 {
    let bytes = |share: &Share| {
        let lanes = share.layers.iter().filter(|layer| layers.contains(layer)).count() as u64;
        lanes * row(&share.group)
    };
    feed.shares.iter().map(bytes).sum()
}

/// Cuts a piece of a feed into what fits into slots of so many bytes: by tokens, at page borders where that costs no part, and by layers only
/// where one token has more. None if a token of one layer has more.
pub(crate) fn cut(feed: &PairFeed, piece: &Cut, slot: u64) -> Option<Vec<Cut>> {
    let mut cuts = Vec::new();
    let mut first = piece.layers.start;
    while first < piece.layers.end {
        // As many layers as fit with one token; all of them, nearly always.
        let mut upto = piece.layers.end;
        if per_token(feed, &(first..upto)) > slot {
            upto = first;
            while upto < piece.layers.end && per_token(feed, &(first..upto + 1)) <= slot {
                upto += 1;
            }
            if upto == first {
                return None;
            }
        }
        let layers = first..upto;
        first = upto;
        let each = per_token(feed, &layers);
        if each == 0 {
            continue;
        }
        let most = u32::try_from(slot / each).unwrap_or(u32::MAX);
        let page = feed.shares.iter().map(|share| share.group.dst_page_tokens.max(1)).max().unwrap_or(1);
        let mut start = piece.tokens.start;
        while start < piece.tokens.end {
            let mut end = start.saturating_add(most).min(piece.tokens.end);
            let border = end / page * page;
            if end < piece.tokens.end && border > start && most / page >= 4 {
                end = border;
            }
            cuts.push(Cut { tokens: start..end, layers: layers.clone() });
            start = end;
        }
    }
    Some(cuts)
}

/// The way from a side's pages to packed tokens, or back.
fn plans(
    feed: &PairFeed,
    cut: &Cut,
    table: &PageTable,
    gathers: bool,
) -> Result<Vec<(Arc<Plan>, usize)>, PlanningError> {
    let tokens = cut.tokens.len() as u32;
    let packed = PageTable::new(vec![PageRun { first: Page(0), count: 1 }]);
    let limits = PlanLimits { max_sge: 1, max_message: u32::MAX };
    let mut base = 0;
    let mut all = Vec::with_capacity(feed.shares.len());
    for (index, share) in feed.shares.iter().enumerate() {
        let group = &share.group;
        let page = u64::from(tokens) * row(group);
        let lanes: Arc<Lanes> = share
            .lanes
            .iter()
            .zip(&share.layers)
            .filter(|(_, layer)| cut.layers.contains(layer))
            .zip(0u64..)
            .map(|((lane, _), nth)| {
                let at = base + nth * page;
                if gathers {
                    Lane { local: lane.local, remote: at }
                } else {
                    Lane { local: at, remote: lane.remote }
                }
            })
            .collect();
        base += page * lanes.len() as u64;
        let mut before = 0;
        let section = |section: &SectionPair| {
            let at = before * u64::from(tokens);
            before += section.len;
            if gathers {
                SectionPair { dst_base: at, dst_stride: section.len, ..*section }
            } else {
                SectionPair { src_base: at, src_stride: section.len, ..*section }
            }
        };
        let sections = group.sections.iter().map(section).collect();
        let half = Group { sections, lanes: Vec::new(), whole_page: Vec::new(), ..*group };
        let pages = Side { table, origin: 0 };
        let slot = Side { table: &packed, origin: cut.tokens.start };
        let (half, src, dst) = if gathers {
            (Group { dst_page_tokens: tokens, dst_page_bytes: page, ..half }, pages, slot)
        } else {
            (Group { src_page_tokens: tokens, src_page_bytes: page, ..half }, slot, pages)
        };
        let plan = plan_between(&half, false, lanes, src, dst, cut.tokens.clone(), limits)?;
        if plan.requests() > 0 {
            all.push((Arc::new(plan), index));
        }
    }
    Ok(all)
}

/// What to copy from the initiator's pages into a slot, by share.
///
/// # Errors
/// When the page table is too short.
pub(crate) fn gather(
    feed: &PairFeed,
    cut: &Cut,
    table: &PageTable,
) -> Result<Vec<(Arc<Plan>, usize)>, PlanningError> {
    plans(feed, cut, table, true)
}

/// What to copy from a slot into the target's pages, by share.
///
/// # Errors
/// When the page table is too short.
pub(crate) fn scatter(
    feed: &PairFeed,
    cut: &Cut,
    table: &PageTable,
) -> Result<Vec<(Arc<Plan>, usize)>, PlanningError> {
    plans(feed, cut, table, false)
}

#[cfg(test)]
mod tests {
    use super::super::super::pairing::Pairing;
    use super::super::super::pairing::tests::{facts, pairing};
    use super::super::super::plan::plan;
    use super::*;
    use models::{Parallel, presets};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn pair(name: &str, tp: (u32, u32), pages: (u32, u32), orders: (bool, bool)) -> Pairing {
        let model = presets::lookup(name).unwrap();
        let side = |tp, page, order| facts(&model, Parallel::tp(tp), page, order);
        pairing(&model, &side(tp.0, pages.0, orders.0), &side(tp.1, pages.1, orders.1), 1)
    }

    /// Pages in pairs, with gaps between them.
    fn table(pages: u32, first: u32) -> PageTable {
        PageTable::new(
            (0..pages).map(|i| PageRun { first: Page(first + i / 2 * 5 + i % 2), count: 1 }).collect(),
        )
    }

    /// Bytes of one side by the bytes of the other, and how many there are if none comes twice.
    fn bytes(plan: &Plan, into: &mut BTreeMap<u64, u64>, turned: bool) -> u64 {
        plan.for_each(&(0..plan.requests()), |_, pieces, mut remote| {
            for &(local, len) in pieces {
                for i in 0..u64::from(len) {
                    let (from, to) = (local + i, remote + i);
                    into.insert(if turned { to } else { from }, if turned { from } else { to });
                }
                remote += u64::from(len);
            }
        });
        plan.bytes()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn cuts_are_the_piece_in_as_few_as_fit(
            pages in (1u32..9, 1u32..9),
            (tp, mla) in ((0u32..3, 0u32..3), any::<bool>()),
            (start, count) in (0u32..50, 1u32..120),
            (first, more) in (0u32..4, 1u32..4),
            // From less than a token of a layer to more than all.
            (layers_in_slot, tokens_in_slot) in (0u64..5, 1u64..60),
            odd in 0u64..7,
        ) {
            let name = if mla { "tiny-mla-index" } else { "tiny-gqa" };
            let pairing = pair(name, (1 << tp.0, 1 << tp.1), pages, (false, false));
            let feed = &pairing.feeds[0];
            let piece = Cut { tokens: start..start + count, layers: first..(first + more).min(4) };
            let layer = per_token(feed, &(first..first + 1));
            let slot = layer * layers_in_slot * tokens_in_slot + odd;
            let Some(cuts) = cut(feed, &piece, slot) else {
                prop_assert!(layer > slot);
                return Ok(());
            };
            prop_assert!(layer <= slot);
            let mut got = Vec::new();
            for cut in &cuts {
                let bytes = per_token(feed, &cut.layers) * cut.tokens.len() as u64;
                prop_assert!(bytes > 0 && bytes <= slot, "{cut:?}: {bytes} of {slot}");
                got.extend(cut.layers.clone().flat_map(|l| cut.tokens.clone().map(move |t| (l, t))));
            }
            got.sort_unstable();
            let want: Vec<_> =
                piece.layers.clone().flat_map(|l| piece.tokens.clone().map(move |t| (l, t))).collect();
            prop_assert_eq!(got, want);
            // All layers at once where a token of all fits, or else as many as do.
            let layers = u64::from(piece.layers.end - first).min(slot / layer);
            prop_assert_eq!(u64::from(cuts[0].layers.end - first), layers);
            let (most, page) = ((slot / (layers * layer)) as u32, pages.1);
            let same: Vec<&Cut> = cuts.iter().filter(|cut| cut.layers == cuts[0].layers).collect();
            for (nth, cut) in same.iter().enumerate() {
                let last = nth + 1 == same.len();
                if most / page >= 4 {
                    // At page borders, less than a page short of what fits.
                    prop_assert!(last || cut.tokens.end % page == 0, "{cut:?}");
                    prop_assert!(last || most - (cut.tokens.len() as u32) < page, "{cut:?}");
                } else {
                    prop_assert!(last || cut.tokens.len() as u32 == most, "{cut:?} of {most}");
                }
            }
        }

        /// From the source's pages into a slot and from there into the target's pages is the direct way.
        #[test]
        fn gather_and_scatter_are_the_direct_way(
            name in prop::sample::select(vec!["tiny-gqa", "tiny-mla-index"]),
            pages in (1u32..7, 1u32..7),
            tp in (0u32..3, 0u32..3),
            orders: (bool, bool),
            (start, count) in (0u32..20, 1u32..20),
            (first, more) in (0u32..4, 1u32..4),
        ) {
            let pairing = pair(name, (1 << tp.0, 1 << tp.1), pages, orders);
            let feed = &pairing.feeds[0];
            let cut = Cut { tokens: start..start + count, layers: first..(first + more).min(4) };
            let (src, dst) = (table(40, 1), table(40, 3));
            let (gathers, scatters) = (gather(feed, &cut, &src).unwrap(), scatter(feed, &cut, &dst).unwrap());
            let total = per_token(feed, &cut.layers) * u64::from(count);
            let (mut used, mut moved) = (BTreeMap::new(), 0);
            for (index, share) in feed.shares.iter().enumerate() {
                let of = |plans: &[(Arc<Plan>, usize)]| {
                    plans.iter().find(|(_, nth)| *nth == index).map(|(plan, _)| plan.clone())
                };
                let (from, to) = (of(&gathers).unwrap(), of(&scatters).unwrap());
                let (mut into, mut out, mut want) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
                moved += bytes(&from, &mut into, true);
                bytes(&to, &mut out, false);
                let limits = PlanLimits { max_sge: 1, max_message: u32::MAX };
                let lanes = share.lanes_of(&cut.layers);
                let direct = plan(share, lanes, &src, &dst, cut.tokens.clone(), limits).unwrap();
                bytes(&direct, &mut want, false);
                let way: BTreeMap<u64, u64> =
                    into.iter().filter_map(|(slot, from)| Some((*from, *out.get(slot)?))).collect();
                prop_assert_eq!(way, want);
                used.extend(into);
            }
            // Without a gap, and nothing twice.
            prop_assert_eq!(moved, total);
            prop_assert!(used.keys().copied().eq(0..total));
        }
    }
}
