//! The pools of an instance's ranks: made, registered, filled and checked.
//!
//! Whole pools are registered once, on every port that their rank uses, and never per request. KV content is named
//! ([`Content`]): prefill stamps it where its compute would write it, decode asks whether it is where its layout says.

use super::pages::PageTable;
use super::pairing::{LAYER_STRIDE, stream_position};
use super::reach::Reach;
use super::stage::{CELL_BYTES, HEADER_BYTES, Header};
use super::wire::{AUX_BYTES, AuxRow, SLOT_BYTES};
use crate::fabric::{Access, Content, Error, Extent, Fabric, Grid, Memory, Mr};
use crate::id::{BufId, PortId, Rank, RequestId};
use crate::node::{BLOCK_TOKENS, Request};
use crate::policy::Staging;
use crate::registry::{Facts, RankFacts, Region, RoomKey};
use models::{Layout, PageOrder, PoolLayout};
use std::ops::Range;

/// One registered buffer.
#[derive(Clone, Debug)]
pub struct Pool {
    /// The buffer.
    pub buf: BufId,
    /// Its geometry.
    pub grid: Grid,
    /// By port; none where the rank does not use the port.
    pub mrs: Vec<Option<Mr>>,
}

impl Pool {
    fn new(
        fabric: &mut dyn Fabric,
        kind: Memory,
        grid: Grid,
        ports: &[PortId],
        access: Access,
    ) -> Result<Self, Error> {
        let buf = fabric.alloc(kind, grid)?;
        let mut mrs = vec![None; fabric.ports().len()];
        for port in ports {
            if mrs[port.index()].is_none() {
                mrs[port.index()] = Some(fabric.register(*port, buf, 0..grid.len(), access)?);
            }
        }
        Ok(Self { buf, grid, mrs })
    }
    fn region(&self) -> Region {
        let addr = self.mrs.iter().flatten().map(|mr| mr.addr).next().unwrap_or(0);
        Region { addr, rkeys: self.mrs.iter().map(|mr| mr.map_or(0, |mr| mr.rkey.0)).collect() }
    }
    fn close(&mut self, fabric: &mut dyn Fabric) -> Result<(), Error> {
        for mr in self.mrs.iter_mut().filter_map(Option::take) {
            fabric.deregister(mr.id)?;
        }
        fabric.free(self.buf)
    }
}

/// Memory of one rank.
#[derive(Clone, Debug)]
pub struct RankMemory {
    /// By component.
    pub pools: Vec<Pool>,
    /// Aux slots. Of prefill's, only pull uses more than the first bytes: as scratch for inline requests.
    pub aux: Pool,
    /// Staging slots, if there are any; behind the aux slots there is a cell for the header of each.
    pub stage: Option<Pool>,
}

/// Memory of all ranks of an instance.
#[derive(Clone, Debug)]
pub struct InstanceMemory {
    layout: Layout,
    pages: u32,
    slots: u32,
    staging: Option<Staging>,
    /// By rank of the instance.
    pub ranks: Vec<RankMemory>,
}

/// The port that a rank's rail wants, out of the `ports` of its instance: ranks are spread evenly over the ports, and rails go on
/// from there. Both sides work out each other's with it; where the network does not join two of them, [`Reach`] says which instead.
pub fn port_of(rank: Rank, ranks: usize, rail: u16, ports: usize) -> PortId {
    let ports = ports.max(1);
    PortId(((rank.index() * ports / ranks.max(1) + usize::from(rail)) % ports) as u32)
}

/// Slots one after the other. Nobody counts in its pages but phantom memory, which keeps what it knows by page.
fn stage_grid(staging: Staging) -> Grid {
    let pitch = u64::from(staging.slots).saturating_mul(staging.slot);
    let page = pitch.clamp(1, 16 << 10);
    let pages = u32::try_from(pitch / page).unwrap_or(u32::MAX);
    Grid { buffers: 1, pitch, pages, page }
}

impl InstanceMemory {
    /// Allocates and registers. `pages` and `slots` are those of each rank. Pools are registered on the ports of their rank's rails; where
    /// `reach` may ask for another port than a rail wants, on all.
    pub fn new(
        fabric: &mut dyn Fabric,
        layout: Layout,
        kind: Memory,
        pages: u32,
        (slots, staging): (u32, Option<Staging>),
        (rails, reach): (u16, &Reach),
        access: Access,
    ) -> Result<Self, Error> {
        let parallel = layout.parallel();
        let mut ranks = Vec::new();
        let ranks_in_all = parallel.tp * parallel.pp;
        for rank in 0..ranks_in_all {
            let count = fabric.ports().len();
            let port = |rail| port_of(Rank(rank as u16), ranks_in_all as usize, rail, count);
            let ports: Vec<PortId> = match reach {
                Reach::Any => (0..rails).map(port).collect(),
                Reach::SameRail | Reach::Pairs(_) => (0..count as u32).map(PortId).collect(),
            };
            let Some(rank) = layout.world_rank(rank) else { continue };
            let mut pools = Vec::new();
            for pool in rank.pools() {
                let grid = Grid {
                    buffers: pool.buffers.len() as u32,
                    pitch: pool.page_bytes * u64::from(pages),
                    pages,
                    page: pool.page_bytes,
                };
                pools.push(Pool::new(fabric, kind, grid, &ports, access)?);
            }
            let cells = staging.map_or(0, |staging| u64::from(staging.slots) * CELL_BYTES);
            let pitch = u64::from(slots) * SLOT_BYTES + cells;
            let aux = Grid { buffers: 1, pitch, pages: slots, page: SLOT_BYTES };
            let aux = Pool::new(fabric, Memory::Host, aux, &ports, access)?;
            let stage = staging.map(|staging| Pool::new(fabric, kind, stage_grid(staging), &ports, access));
            ranks.push(RankMemory { pools, aux, stage: stage.transpose()? });
        }
        Ok(Self { layout, pages, slots, staging, ranks })
    }

    /// Deregisters and frees everything.
    pub fn close(&mut self, fabric: &mut dyn Fabric) -> Result<(), Error> {
        for mut rank in self.ranks.drain(..) {
            for pool in &mut rank.pools {
                pool.close(fabric)?;
            }
            rank.aux.close(fabric)?;
            if let Some(stage) = &mut rank.stage {
                stage.close(fabric)?;
            }
        }
        Ok(())
    }

    /// Its layout.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }
    /// Pages in each pool, the padding page included.
    pub fn pages(&self) -> u32 {
        self.pages
    }
    /// Registrations held.
    pub fn memory_regions(&self) -> u64 {
        let count = |pool: &Pool| pool.mrs.iter().flatten().count() as u64;
        let rest = |rank: &RankMemory| count(&rank.aux) + rank.stage.as_ref().map_or(0, count);
        self.ranks.iter().map(|rank| rank.pools.iter().map(count).sum::<u64>() + rest(rank)).sum()
    }

    /// What peers are told.
    pub fn facts(&self) -> Facts {
        let parallel = self.layout.parallel();
        Facts {
            fingerprint: self.layout.fingerprint(),
            tp: parallel.tp as u16,
            pp: parallel.pp as u16,
            dp: parallel.dp as u16,
            page_size: self.layout.page_tokens(),
            head_major: self.layout.order() == PageOrder::HeadMajor,
            pages: self.pages,
            slots: self.slots,
            stage_slots: self.staging.map_or(0, |staging| staging.slots),
            stage_bytes: self.staging.map_or(0, |staging| staging.slot),
            ranks: self
                .ranks
                .iter()
                .map(|rank| RankFacts {
                    pools: rank.pools.iter().map(Pool::region).collect(),
                    pitches: rank.pools.iter().map(|pool| pool.grid.pitch).collect(),
                    aux: rank.aux.region(),
                    stage: rank.stage.as_ref().map(Pool::region).unwrap_or_default(),
                })
                .collect(),
        }
    }

    /// Its staging slots.
    pub(super) fn staging(&self) -> Option<Staging> {
        self.staging
    }

    /// The header in the cell of a staging slot of a rank, if there is one.
    pub(super) fn header(&self, fabric: &dyn Fabric, rank: Rank, slot: u32) -> Option<Header> {
        let mut bytes = [0; HEADER_BYTES as usize];
        let at = u64::from(self.slots) * SLOT_BYTES + u64::from(slot) * CELL_BYTES;
        fabric.read(self.ranks.get(rank.index())?.aux.buf, at, &mut bytes).ok()?;
        Header::from_bytes(&bytes)
    }

    /// World ranks of a DP group.
    fn ranks_of(&self, group: u16) -> impl Iterator<Item = usize> + use<> {
        let p = self.layout.parallel();
        let attn = (p.tp / p.dp.max(1)).max(1);
        let group = u32::from(group);
        (0..p.pp)
            .flat_map(move |stage| (0..attn).map(move |rank| (stage * p.tp + group * attn + rank) as usize))
    }

    /// Pull: writes a room's aux row into its slot, on every rank of a DP group.
    pub(super) fn write_aux(
        &self,
        fabric: &mut dyn Fabric,
        group: u16,
        slot: u16,
        row: &AuxRow,
    ) -> Result<(), Error> {
        let (at, bytes) = (u64::from(slot) * SLOT_BYTES, row.to_bytes());
        self.ranks_of(group).try_for_each(|rank| fabric.write(self.ranks[rank].aux.buf, at, &bytes))
    }

    /// Whether a room's aux row is in its slot, on every rank of a DP group; any room's if it need not be `named`. What arrived is visible after this to whoever computes on it.
    pub(super) fn has_arrived(
        &self,
        fabric: &mut dyn Fabric,
        group: u16,
        slot: u16,
        (key, request): (RoomKey, RequestId),
        named: bool,
    ) -> bool {
        self.ranks_of(group).all(|rank| {
            let Some(memory) = self.ranks.get(rank) else { return false };
            // Nothing to do for host memory.
            if memory.pools.iter().any(|pool| fabric.flush(pool.buf).is_err()) {
                return false;
            }
            let mut bytes = [0; AUX_BYTES as usize];
            let read = fabric.read(memory.aux.buf, u64::from(slot) * SLOT_BYTES, &mut bytes);
            let row = AuxRow::from_bytes(&bytes);
            let right = row.key == key && row.request == request && row.token == AuxRow::first_token(request);
            read.is_ok() && (right || !named)
        })
    }

    /// Writes the KV of some tokens and layers of a request into its pages, on every rank of a DP group.
    pub fn stamp(
        &self,
        fabric: &mut dyn Fabric,
        group: u16,
        request: &Request,
        table: &PageTable,
        tokens: Range<u32>,
        layers: Range<u32>,
    ) -> Result<(), Error> {
        for rank in self.ranks_of(group) {
            let Some(layout) = self.layout.world_rank(rank as u32) else { continue };
            for (pool, memory) in layout.pools().iter().zip(&self.ranks[rank].pools) {
                places(self.layout.model().layers, pool, request, table, &tokens, &layers, |place, what| {
                    fabric.stamp(memory.buf, place, what)
                })?;
            }
        }
        Ok(())
    }

    /// Whether the KV of some tokens of a request is in its pages, on every rank of a DP group.
    pub fn holds(
        &self,
        fabric: &dyn Fabric,
        group: u16,
        request: &Request,
        table: &PageTable,
        tokens: Range<u32>,
    ) -> Result<bool, Error> {
        let mut all = true;
        let layers = 0..self.layout.model().layers;
        for rank in self.ranks_of(group) {
            let Some(layout) = self.layout.world_rank(rank as u32) else { continue };
            for (pool, memory) in layout.pools().iter().zip(&self.ranks[rank].pools) {
                places(self.layout.model().layers, pool, request, table, &tokens, &layers, |place, what| {
                    all &= fabric.holds(memory.buf, place, what)?;
                    Ok(())
                })?;
            }
        }
        Ok(all)
    }
}

/// Calls `each` with the places and the content of some tokens in one rank's pool; the model has `model_layers` layers.
pub(crate) fn places(
    model_layers: u32,
    pool: &PoolLayout,
    request: &Request,
    table: &PageTable,
    tokens: &Range<u32>,
    layers: &Range<u32>,
    mut each: impl FnMut(&Extent, Content) -> Result<(), Error>,
) -> Result<(), Error> {
    let size = pool.page_tokens;
    let mut start = tokens.start;
    while start < tokens.end {
        let (seed, block_start, block_end) = content_block(request, start);
        let end = tokens.end.min(block_end);
        let mut page_start = start / size * size;
        for run in table.slice(start / size, end.div_ceil(size)) {
            let run_end = page_start + run.count * size;
            let (mut from, to) = (start.max(page_start), end.min(run_end));
            // Tokens of neighbouring pages are evenly spaced if a page has one section; else page by page.
            let linear = pool.sections.len() == 1;
            while from < to {
                let upto = if linear { to } else { to.min((from / size + 1) * size) };
                let page = u64::from(run.first.0 + (from - page_start) / size);
                for section in pool.sections.iter() {
                    let in_page = u64::from(from % size);
                    let at = page * pool.page_bytes + section.base + in_page * section.stride;
                    let position = u64::from(from - block_start) * pool.full_row + section.content;
                    let dense = section.len == section.stride && section.len == pool.full_row;
                    let n = upto - from;
                    let (len, count) = if dense { (section.len * u64::from(n), 1) } else { (section.len, n) };
                    spans(model_layers, pool, layers, |buffers, stream| {
                        let place = Extent {
                            buffers,
                            at,
                            len,
                            count,
                            step: if dense { len } else { section.stride },
                        };
                        let what = Content {
                            seed,
                            at: stream + position,
                            per_buffer: LAYER_STRIDE,
                            per_piece: if dense { 0 } else { pool.full_row },
                        };
                        each(&place, what)
                    })?;
                }
                from = upto;
            }
            page_start = run_end;
        }
        start = end;
    }
    Ok(())
}

/// Buffers of some layers in runs whose streams are evenly spaced, with the first one's stream position.
fn spans(
    model_layers: u32,
    pool: &PoolLayout,
    layers: &Range<u32>,
    mut each: impl FnMut(Range<u32>, u64) -> Result<(), Error>,
) -> Result<(), Error> {
    let stream = |i: usize| stream_position(pool.buffers[i].kind, pool.buffers[i].layer, model_layers);
    // Streams ascend, so they are evenly spaced if the last one is where it then must be. A pipeline stage's K and V are not.
    let n = pool.buffers.len();
    if layers.start == 0
        && layers.end == model_layers
        && n > 0
        && stream(n - 1) == stream(0) + (n as u64 - 1) * LAYER_STRIDE
    {
        return each(0..n as u32, stream(0));
    }
    let mut i = 0;
    while i < pool.buffers.len() {
        if !layers.contains(&pool.buffers[i].layer) {
            i += 1;
            continue;
        }
        let start = i;
        i += 1;
        while i < pool.buffers.len()
            && layers.contains(&pool.buffers[i].layer)
            && stream(i) == stream(i - 1) + LAYER_STRIDE
        {
            i += 1;
        }
        each(start as u32..i as u32, stream(start))?;
    }
    Ok(())
}

/// The stream that names a token's content, and the tokens of the request for which that stream holds: the prefix block's, or
/// the request's own where it has no blocks.
fn content_block(request: &Request, token: u32) -> (u64, u32, u32) {
    let block = token / BLOCK_TOKENS;
    match request.blocks.get(block as usize) {
        Some(id) => (mix(*id, 1), block * BLOCK_TOKENS, (block + 1) * BLOCK_TOKENS),
        None => (mix(request.id.0, 2), 0, u32::MAX),
    }
}

/// Block ids and request ids are two name spaces.
fn mix(id: u64, space: u64) -> u64 {
    Content::word(id, space)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Page, RequestId};
    use crate::registry::PageRun;
    use models::{Attention, DType, IndexK, Model, Parallel};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn layout() -> impl Strategy<Value = Layout> {
        let attention = prop_oneof![
            Just((Attention::Gqa { kv_heads: 4, head_dim: 1 }, None)),
            Just((Attention::Mla { kv_lora_rank: 2, qk_rope_head_dim: 1 }, None)),
            Just((Attention::Mla { kv_lora_rank: 2, qk_rope_head_dim: 1 }, Some(IndexK { head_dim: 128 }))),
        ];
        let order = prop::sample::select(vec![PageOrder::TokenMajor, PageOrder::HeadMajor]);
        (attention, 0u32..4, 1u32..4, 1u32..10, order).prop_map(
            |((attention, index_k), tp, pp, page, order)| {
                let model = Model {
                    name: "test".to_owned(),
                    layers: 4,
                    q_heads: 48,
                    attention,
                    context_len: 4096,
                    index_k,
                };
                Layout::new(&model, DType::Bf16, Parallel { tp: 1 << tp, pp, dp: 1 }, page, order).unwrap()
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn places_are_the_bytes_of_the_tokens_once(
            layout in layout(),
            runs in prop::collection::vec((0u32..3, 1u32..30), 20..30),
            start in 480u32..530,
            count in 0u32..20,
            (first_layer, some_layers) in (0u32..4, 0u32..5),
            blocks in prop::collection::vec(0u64..5, 0..3),
        ) {
            let (total, size) = (layout.model().layers, layout.page_tokens());
            let layers = first_layer..(first_layer + some_layers).min(total);
            let mut table = PageTable::default();
            let mut next = 1;
            for &(gap, pages) in runs.iter().chain(&[(1, 600)]) {
                next += gap;
                table.push(PageRun { first: Page(next), count: pages });
                next += pages;
            }
            let pages: Vec<u32> = table.runs().iter().flat_map(|r| r.first.0..r.first.0 + r.count).collect();
            let request = Request { id: RequestId(77), blocks, ..Request::default() };
            let tokens = start..start + count;
            for rank in layout.ranks() {
                for pool in rank.pools() {
                    let mut want = BTreeMap::new();
                    let held = (0u32..).zip(pool.buffers.iter()).filter(|(_, b)| layers.contains(&b.layer));
                    for ((buffer, info), token) in held.flat_map(|b| tokens.clone().map(move |t| (b, t))) {
                        let stream = stream_position(info.kind, info.layer, total);
                        let (seed, before) = match request.blocks.get((token / 512) as usize) {
                            Some(block) => (Content::word(*block, 1), token / 512 * 512),
                            None => (Content::word(77, 2), 0),
                        };
                        let page = u64::from(pages[(token / size) as usize]) * pool.page_bytes;
                        for section in pool.sections.iter() {
                            let at = page + section.base + u64::from(token % size) * section.stride;
                            let row = u64::from(token - before) * pool.full_row;
                            for i in 0..section.len {
                                want.insert((buffer, at + i), (seed, stream + row + section.content + i));
                            }
                        }
                    }
                    let mut got = BTreeMap::new();
                    places(total, pool, &request, &table, &tokens, &layers, |place, what| {
                        for (b, buffer) in (0u64..).zip(place.buffers.clone()) {
                            for k in 0..u64::from(place.count) {
                                let position = what.at + b * what.per_buffer + k * what.per_piece;
                                for i in 0..place.len {
                                    let byte = (buffer, place.at + k * place.step + i);
                                    assert_eq!(got.insert(byte, (what.seed, position + i)), None, "{byte:?} twice");
                                }
                            }
                        }
                        Ok(())
                    }).unwrap();
                    prop_assert!(got == want, "{:?} of {:?}", tokens, pool);
                }
            }
        }
    }
}
