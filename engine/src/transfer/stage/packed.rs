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
