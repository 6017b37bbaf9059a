//! Red zones: what nobody may write to.
//!
//! Every page of a decode instance that no room has holds a mark of its own. A page loses it when it is given to a room, and gets it back
//! when the room is released. So a write that lands where it must not is found, whoever sent it and however late: in pages that were never
//! given out, in pages that are free again, and (by the content checks of the node) in pages of another room.
//!
//! In pull pages of a prefill instance are marked as well when their room is released: nobody writes there, but what is read from there too
//! late is the mark, and the content checks of decode find it. Not where a prefix cache keeps pages beyond their room.

use super::law::{Broken, Law};
use super::rooms::Changed;
use crate::world::{AnyNode, World};
use engine::fabric::{Content, Extent, Fabric as _, Grid};
use engine::id::{BufId, NodeId, Page};
use engine::registry::{PageRun, RoomKey};
use engine::transfer::InstanceMemory;
use std::collections::BTreeMap;
use std::ops::Range;

/// Content of a page that nobody owns.
const MARK: u64 = 0x7265_645f_7a6f_6e65;

/// Pools of the ranks of a DP group, whose pages are given out together.
struct Group {
    pools: Vec<(BufId, Grid)>,
    /// By page: whether it is marked.
    free: Vec<bool>,
}

/// Pages of a room.
struct Owned {
    key: RoomKey,
    group: u16,
    runs: Vec<PageRun>,
}

/// Zones of an instance.
struct Zone {
    groups: Vec<Group>,
    owned: Vec<Owned>,
    /// Rooms that have no pages yet.
    pending: Vec<RoomKey>,
}

/// The zones of all instances.
#[derive(Default)]
pub(super) struct Zones(BTreeMap<NodeId, Zone>);

fn memory(node: &AnyNode) -> Option<&InstanceMemory> {
    match node {
        AnyNode::Decode(node) => node.memory(),
        AnyNode::Prefill(node) => node.memory(),
        AnyNode::Registry(_) | AnyNode::Router(_) | AnyNode::Dead(_) => None,
    }
}

/// Prompt pages of a node's room, with their group, once it has any.
fn prompt_pages(node: &AnyNode, key: &RoomKey) -> Option<(u16, Vec<PageRun>)> {
    let pages = match node {
        AnyNode::Decode(node) => node.prompt_pages(key).map(|(group, table)| (group, table.runs().to_vec())),
        AnyNode::Prefill(node) => node.pages(key).map(|(group, table)| (group, table.runs().to_vec())),
        AnyNode::Registry(_) | AnyNode::Router(_) | AnyNode::Dead(_) => None,
    };
    pages.filter(|(_, runs)| !runs.is_empty())
}

fn has_room(node: &AnyNode, key: &RoomKey) -> bool {
    match node {
        AnyNode::Decode(node) => node.has_room(key),
        AnyNode::Prefill(node) => node.has_room(key),
        AnyNode::Registry(_) | AnyNode::Router(_) | AnyNode::Dead(_) => false,
    }
}

/// The mark of pages that lie behind one another: every byte's is its own place.
fn mark_of(grid: &Grid, pages: &Range<u32>) -> (Extent, Content) {
    let (at, len) = (u64::from(pages.start) * grid.page, u64::from(pages.end - pages.start) * grid.page);
    let extent = Extent { buffers: 0..grid.buffers, at, len, count: 1, step: len };
    (extent, Content { seed: MARK, at, per_buffer: 1 << 40, per_piece: 0 })
}

fn range(run: &PageRun) -> Range<u32> {
    run.first.0..run.first.0.saturating_add(run.count)
}

impl Group {
    fn mark(&mut self, world: &mut World, node: NodeId, runs: &[PageRun]) {
        let fabric = world.fabrics_mut().host(node.index());
        for run in runs {
            for (buf, grid) in &self.pools {
                let (extent, content) = mark_of(grid, &range(run));
                if fabric.stamp(*buf, &extent, content).is_err() {
                    // The instance has closed: nothing is left to be written to.
                    return;
                }
            }
            range(run).for_each(|page| self.free[page as usize] = true);
        }
    }

    /// Looks at marked pages among these.
    fn look(&self, world: &World, node: NodeId, group: usize, pages: Range<u32>, broken: &mut Vec<Broken>) {
        let fabric = world.fabrics().host_ref(node.index());
        let mut from = pages.start;
        while from < pages.end {
            let marked = |page: &u32| self.free.get(*page as usize).copied().unwrap_or(false);
            let Some(first) = (from..pages.end).find(marked) else { return };
            let end = (first..pages.end).find(|page| !marked(page)).unwrap_or(pages.end);
            from = end;
            for (pool, (buf, grid)) in self.pools.iter().enumerate() {
                let holds = |pages: &Range<u32>| {
                    let (extent, content) = mark_of(grid, pages);
                    fabric.holds(*buf, &extent, content) != Ok(false)
                };
                if holds(&(first..end)) {
                    continue;
                }
                for page in (first..end).filter(|page| !holds(&(*page..page + 1))) {
                    broken.push(Broken::new(
                        Law::RedZone,
                        format!(
                            "page {page} of node {} group {group} (pool {pool}) was written to while no room owned it, before {:?}",
                            node.0,
                            world.now()
                        ),
                    ));
                }
                break;
            }
        }
    }
}

impl Zones {
    /// Marks every page of a decode instance; of a prefill instance pages are marked as they are released.
    pub(super) fn add(&mut self, world: &mut World, node: NodeId) {
        let Some(memory) = memory(world.node(node)) else { return };
        let decode = matches!(world.node(node), AnyNode::Decode(_));
        let parallel = memory.layout().parallel();
        let attn = parallel.tp / parallel.dp;
        let pages = memory.pages();
        let mut groups = Vec::new();
        for group in 0..parallel.dp {
            let ranks = (0..parallel.pp)
                .flat_map(|stage| (0..attn).map(move |rank| stage * parallel.tp + group * attn + rank));
            let pools = ranks
                .filter_map(|rank| memory.ranks.get(rank as usize))
                .flat_map(|rank| rank.pools.iter().map(|pool| (pool.buf, pool.grid)))
                .collect();
            groups.push(Group { pools, free: vec![false; pages as usize] });
        }
        if decode {
            let all = [PageRun { first: Page(0), count: pages }];
            groups.iter_mut().for_each(|group| group.mark(world, node, &all));
        }
        self.0.insert(node, Zone { groups, owned: Vec::new(), pending: Vec::new() });
    }

    /// The instance is no more, and nothing of its memory is left.
    pub(super) fn forget(&mut self, node: NodeId) {
        self.0.remove(&node);
    }

    /// After a call of an instance: rooms that were released, then rooms that were given pages.
    pub(super) fn after(
        &mut self,
        world: &mut World,
        node: NodeId,
        changed: &Changed,
        broken: &mut Vec<Broken>,
    ) {
        let Some(zone) = self.0.get_mut(&node) else { return };
        let mut i = 0;
        while let Some(owned) = zone.owned.get(i) {
            if has_room(world.node(node), &owned.key) {
                i += 1;
                continue;
            }
            let owned = zone.owned.swap_remove(i);
            if let Some(group) = zone.groups.get_mut(usize::from(owned.group)) {
                group.mark(world, node, &owned.runs);
            }
        }
        for key in &changed.moved {
            if !zone.pending.contains(key) && zone.owned.iter().all(|owned| owned.key != *key) {
                zone.pending.push(*key);
            }
        }
        let mut i = 0;
        while let Some(key) = zone.pending.get(i).copied() {
            match prompt_pages(world.node(node), &key) {
                Some((group, runs)) => {
                    zone.pending.swap_remove(i);
                    if let Some(of) = zone.groups.get_mut(usize::from(group)) {
                        for run in &runs {
                            of.look(world, node, usize::from(group), range(run), broken);
                            range(run).for_each(|page| of.free[page as usize] = false);
                        }
                    }
                    zone.owned.push(Owned { key, group, runs });
                }
                None if changed.gone.contains(&key) => drop(zone.pending.swap_remove(i)),
                None => i += 1,
            }
        }
    }

    /// What was written to and must not be, up to now.
    pub(super) fn check(&self, world: &World, broken: &mut Vec<Broken>) {
        for (node, zone) in &self.0 {
            for (index, group) in zone.groups.iter().enumerate() {
                group.look(world, *node, index, 0..group.free.len() as u32, broken);
            }
        }
    }
}
