//! End-to-end checksums of KV: of what bytes are, not of where they lie.
//!
//! What one prefill rank sends to one decode rank is cut into units: a token's row of one buffer, for GQA each KV head of it on its own. A unit has a
//! name, its component, layer, token and place in the canonical row, which is the same on both sides whatever their page sizes, page order,
//! TP or direction. The checksum is the sum of all units' hashes, mixed with their names ([`Fabric::checksum`]). So it can be added up as
//! KV comes, in any order; a unit that changed, is missing, came twice or is in another one's place changes it.
//!
//! Prefill adds up what it produced, piece by piece, while the next piece is computed. In push the sum travels in the seal, which goes with the
//! last part anyway; in pull with the word that the rest can be read. No message, request or byte is added. Decode adds up
//! what lies in its pages when all of it is there, and fails the room where the two differ, before Success.
//!
//! 48 bits are kept, which is what a seal has room for: a change goes unseen once in 2^48.

use super::memory::InstanceMemory;
use super::pages::PageTable;
use super::pairing::{LAYER_STRIDE, Pairing, stream_position};
use crate::fabric::bytes::MAX_UNIT;
use crate::fabric::{Error, Extent, Fabric, Units};
use crate::id::Rank;
use models::{Attention, Group, PoolLayout, SectionPair};
use std::ops::Range;

/// The end of a pairing whose memory is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// Its rank.
    Initiator(Rank),
    /// Its rank.
    Target(Rank),
}

/// What is kept of a sum.
pub(super) fn fold(sum: u64) -> u64 {
    (sum ^ sum >> 48) & ((1 << 48) - 1)
}

/// Bytes of what no split over ranks divides.
fn unit(memory: &InstanceMemory, len: u64) -> u64 {
    let head = match &memory.layout().model().attention {
        Attention::Gqa { head_dim, .. } => u64::from(*head_dim) * memory.layout().dtype().bytes(),
        Attention::Mla { .. } => len,
    };
    if head > 0 && len.is_multiple_of(head) { head } else { len }
}

/// The sum over some tokens and layers of one feed, as they lie in the pages of `table` on one side.
pub(super) fn of_feed(
    fabric: &dyn Fabric,
    memory: &InstanceMemory,
    pairing: &Pairing,
    feed: usize,
    side: Side,
    table: &PageTable,
    (tokens, layers): (&Range<u32>, &Range<u32>),
) -> Result<u64, Error> {
    let mut sum = 0u64;
    let (Side::Initiator(rank) | Side::Target(rank)) = side;
    let target = matches!(side, Side::Target(_));
    let model_layers = memory.layout().model().layers;
    let layout = memory.layout().world_rank(rank.0.into()).ok_or(Error::NoSuch("rank"))?;
    for share in &pairing.feeds[feed].shares {
        let group = &share.group;
        let index = if target { group.pool_dst } else { group.pool_src };
        let (pool, own) = (&layout.pools()[index], &memory.ranks[rank.index()].pools[index]);
        // Buffers in runs whose streams are evenly spaced.
        let mut runs: Vec<(Range<u32>, u64)> = Vec::new();
        let lanes = share.lanes.iter().zip(&share.layers).filter(|(_, layer)| layers.contains(layer));
        for (lane, layer) in lanes {
            let offset = if target { lane.remote } else { lane.local };
            let buffer = (offset / own.grid.pitch) as u32;
            let stream = stream_position(pool.buffers[buffer as usize].kind, *layer, model_layers);
            match runs.last_mut() {
                Some((buffers, first))
                    if buffers.end == buffer && stream == *first + buffers.len() as u64 * LAYER_STRIDE =>
                {
                    buffers.end += 1;
                }
                _ => runs.push((buffer..buffer + 1, stream)),
            }
        }
        for run in runs {
            let rows = of_rows(fabric, memory, group, pool, (own.buf, target), table, tokens, run)?;
            sum = sum.wrapping_add(rows);
        }
    }
    Ok(sum)
}

/// The sum over the tokens' rows of some buffers.
#[allow(clippy::too_many_arguments)]
fn of_rows(
    fabric: &dyn Fabric,
    memory: &InstanceMemory,
    group: &Group,
    pool: &PoolLayout,
    (buf, target): (crate::id::BufId, bool),
    table: &PageTable,
    tokens: &Range<u32>,
    (buffers, stream): (Range<u32>, u64),
) -> Result<u64, Error> {
    let mut sum = 0u64;
    let size = pool.page_tokens;
    let place_of = |section: &SectionPair| match target {
        true => (section.dst_base, section.dst_stride),
        false => (section.src_base, section.src_stride),
    };
    // Tokens of neighbouring pages are evenly spaced if rows follow each other throughout; else page by page.
    let linear =
        matches!(group.sections.as_slice(), [only] if place_of(only).1 * u64::from(size) == pool.page_bytes);
    let mut page_start = tokens.start / size * size;
    for run in table.slice(tokens.start / size, tokens.end.div_ceil(size)) {
        let run_end = page_start + run.count * size;
        let (mut from, to) = (tokens.start.max(page_start), tokens.end.min(run_end));
        while from < to {
            let upto = if linear { to } else { to.min((from / size + 1) * size) };
            for section in &group.sections {
                let (base, stride) = place_of(section);
                let page = u64::from(run.first.0 + (from - page_start) / size);
                let at = page * pool.page_bytes + base + u64::from(from % size) * stride;
                let name = stream + u64::from(from) * pool.full_row + section.content;
                let (len, count) = (section.len, upto - from);
                let unit = unit(memory, section.len);
                let dense = len == stride && len == pool.full_row && unit <= MAX_UNIT;
                let (len, count) = if dense { (len * u64::from(count), 1) } else { (len, count) };
                let place = Extent {
                    buffers: buffers.clone(),
                    at,
                    len,
                    count,
                    step: if dense { len } else { stride },
                };
                let units = Units { name, per_buffer: LAYER_STRIDE, per_piece: pool.full_row, unit };
                sum = sum.wrapping_add(fabric.checksum(buf, &place, units)?);
            }
            from = upto;
        }
        page_start = run_end;
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_of_a_sum_is_kept() {
        let sum = 0x1234_5678_9abc_def0;
        assert_eq!(fold(sum), 0x5678_9abc_def0 ^ 0x1234);
        for bit in 0..64 {
            assert_ne!(fold(sum ^ 1 << bit), fold(sum), "bit {bit}");
            assert_eq!(fold(sum ^ 1 << bit) >> 48, 0);
        }
    }
}
