//! Red zones: what nobody may write to.
//!
//! Every page of a decode instance that no room has published holds a mark of its own. A page loses it when its room publishes it (in pull:
//! when it is given to a room, for then it is read to), and gets it back when the room is released. So a write that lands where it must not
//! is found, whoever sent it and however late: in pages that were never given out, in pages that are free again, and (by the content checks
//! of the node) in pages of another room.
//!
//! In pull pages of a prefill instance are marked as well when their room is released: nobody writes there, but what is read from there too
//! late is the mark, and the content checks of decode find it. Not where a prefix cache keeps pages beyond their room.

use crate::world::{AnyNode, World};
use engine::fabric::{Content, Extent, Fabric as _, Grid};
use engine::id::{BufId, NodeId};
use engine::registry::{PageList, PageRun, RoomKey};
use engine::transfer::InstanceMemory;
use std::collections::{BTreeMap, BTreeSet};

/// Content of a page that nobody owns.
const MARK: u64 = 0x7265_645f_7a6f_6e65;

struct Group {
    pools: Vec<(BufId, Grid)>,
    free: Vec<bool>,
}

/// The zones of all decode instances.
#[derive(Default)]
pub(super) struct Zones {
    groups: BTreeMap<(NodeId, u16), Group>,
    owned: BTreeMap<(NodeId, RoomKey), (u16, Vec<PageRun>)>,
    /// Pull: pages of prefill instances.
    shown: BTreeMap<(NodeId, RoomKey), (u16, Vec<PageRun>)>,
    broken: Vec<String>,
}

fn memory(node: &AnyNode) -> Option<&InstanceMemory> {
    match node {
        AnyNode::Decode(node) => node.memory(),
        AnyNode::Prefill(node) => node.memory(),
        AnyNode::Registry(_) | AnyNode::Router(_) | AnyNode::Dead(_) => None,
    }
}

/// Prompt pages of a node's room, with their group, once it has any.
fn prompt_pages(world: &World, node: NodeId, key: &RoomKey) -> Option<(u16, Vec<PageRun>)> {
    let pages = match world.node(node) {
        AnyNode::Decode(node) => node.prompt_pages(key).map(|(group, table)| (group, table.runs().to_vec())),
        AnyNode::Prefill(node) => node.pages(key).map(|(group, table)| (group, table.runs().to_vec())),
        AnyNode::Registry(_) | AnyNode::Router(_) | AnyNode::Dead(_) => None,
    };
    pages.filter(|(_, runs)| !runs.is_empty())
}

fn has_room(world: &World, node: NodeId, key: &RoomKey) -> bool {
    match world.node(node) {
        AnyNode::Decode(node) => node.has_room(key),
        _ => false,
    }
}

fn place(grid: &Grid, page: u32) -> (Extent, Content) {
    let at = u64::from(page) * grid.page;
    let extent = Extent { buffers: 0..grid.buffers, at, len: grid.page, count: 1, step: grid.page };
    (extent, Content { seed: MARK, at, per_buffer: 1 << 40, per_piece: 0 })
}

impl Zones {
    /// Marks every page of a decode instance.
    pub(super) fn add(&mut self, world: &mut World, node: NodeId) {
        for at in self.know(world, node) {
            let pages = self.groups.get(&at).map_or(0, |group| group.free.len() as u32);
            self.mark(world, at, &[PageRun { first: engine::id::Page(0), count: pages }]);
        }
    }

    /// The pools of an instance, none of whose pages is marked.
    fn know(&mut self, world: &World, node: NodeId) -> Vec<(NodeId, u16)> {
        let Some(memory) = memory(world.node(node)) else { return Vec::new() };
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
            groups.push((group as u16, Group { pools, free: vec![false; pages as usize] }));
        }
        groups
            .into_iter()
            .map(|(group, zone)| {
                self.groups.insert((node, group), zone);
                (node, group)
            })
            .collect()
    }

    /// Pull: pages of a prefill instance are marked as they are released.
    pub(super) fn add_shown(&mut self, world: &World, node: NodeId) {
        self.know(world, node);
    }

    fn mark(&mut self, world: &mut World, at: (NodeId, u16), runs: &[PageRun]) {
        let Some(group) = self.groups.get_mut(&at) else { return };
        let fabric = world.fabrics_mut().host(at.0.index());
        for page in runs.iter().flat_map(|run| run.first.0..run.first.0 + run.count) {
            for (buf, grid) in &group.pools {
                let (extent, content) = place(grid, page);
                if fabric.stamp(*buf, &extent, content).is_err() {
                    // The instance has closed: nothing is left to be written to.
                    return;
                }
            }
            group.free[page as usize] = true;
        }
    }

    fn look(&mut self, world: &World, at: (NodeId, u16), pages: impl Iterator<Item = u32>) {
        let Some(group) = self.groups.get(&at) else { return };
        let fabric = world.fabrics().host_ref(at.0.index());
        for page in pages {
            if !group.free.get(page as usize).copied().unwrap_or(false) {
                continue;
            }
            for (rank, (buf, grid)) in group.pools.iter().enumerate() {
                let (extent, content) = place(grid, page);
                if fabric.holds(*buf, &extent, content) == Ok(false) {
                    self.broken.push(format!(
                        "page {page} of node {} group {} (pool {rank}) was written to while no room owned it, before {:?}",
                        at.0.0, at.1, world.now()
                    ));
                    break;
                }
            }
        }
    }

    /// After every event, in pull: rooms that were released, then rooms that were given pages.
    pub(super) fn after_pull(&mut self, world: &mut World, rooms: &[RoomKey]) {
        self.released(world);
        let gone: Vec<(NodeId, RoomKey)> = self
            .shown
            .keys()
            .filter(|(node, key)| prompt_pages(world, *node, key).is_none())
            .copied()
            .collect();
        for (node, key) in gone {
            if let Some((group, runs)) = self.shown.remove(&(node, key)) {
                self.mark(world, (node, group), &runs);
            }
        }
        let nodes: BTreeSet<NodeId> = self.groups.keys().map(|(node, _)| *node).collect();
        for (node, key) in nodes.iter().flat_map(|node| rooms.iter().map(|key| (*node, *key))) {
            if self.owned.contains_key(&(node, key)) || self.shown.contains_key(&(node, key)) {
                continue;
            }
            let Some((group, runs)) = prompt_pages(world, node, &key) else { continue };
            let pages = || runs.iter().flat_map(|run| run.first.0..run.first.0 + run.count);
            self.look(world, (node, group), pages());
            if let Some(group) = self.groups.get_mut(&(node, group)) {
                pages().for_each(|page| group.free[page as usize] = false);
            }
            let decode = matches!(world.node(node), AnyNode::Decode(_));
            let rooms = if decode { &mut self.owned } else { &mut self.shown };
            rooms.insert((node, key), (group, runs));
        }
    }

    fn released(&mut self, world: &mut World) {
        let gone: Vec<(NodeId, RoomKey)> =
            self.owned.keys().filter(|(node, key)| !has_room(world, *node, key)).copied().collect();
        for (node, key) in gone {
            if let Some((group, runs)) = self.owned.remove(&(node, key)) {
                self.mark(world, (node, group), &runs);
            }
        }
    }

    /// After every event: rooms that were released, then rooms that were published.
    pub(super) fn after(&mut self, world: &mut World, published: Vec<(NodeId, PageList)>) {
        self.released(world);
        for (node, list) in published {
            if self.owned.contains_key(&(node, list.key)) && list.offset == 0
                || !has_room(world, node, &list.key)
            {
                continue;
            }
            let pages = || list.pages.iter().flat_map(|run| run.first.0..run.first.0 + run.count);
            self.look(world, (node, list.group), pages());
            if let Some(group) = self.groups.get_mut(&(node, list.group)) {
                pages().for_each(|page| group.free[page as usize] = false);
            }
            let (_, runs) = self.owned.entry((node, list.key)).or_insert((list.group, Vec::new()));
            runs.extend(&list.pages);
        }
    }

    /// What was written to and must not be, up to now.
    pub(super) fn check(&mut self, world: &World) -> Vec<String> {
        let all: Vec<((NodeId, u16), u32)> =
            self.groups.iter().map(|(at, group)| (*at, group.free.len() as u32)).collect();
        for (at, pages) in all {
            self.look(world, at, 0..pages);
        }
        self.broken.clone()
    }
}
