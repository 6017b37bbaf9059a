//! Prefill's prefix cache: pages of whole prefix blocks, kept for as long as nobody needs the room.

use crate::map::Map;
use crate::registry::PageRun;
use crate::transfer::{PagePool, PageTable};
use std::collections::BTreeMap;

struct Block {
    pages: PageTable,
    refs: u32,
    /// Key in `idle` while nobody uses it.
    stamp: u64,
}

/// Blocks by content id, least recently used first out.
#[derive(Default)]
pub(super) struct PrefixCache {
    blocks: Map<u64, Block>,
    idle: BTreeMap<u64, u64>,
    clock: u64,
    idle_pages: u64,
}

impl PrefixCache {
    /// How many of these blocks, from the first on, are there.
    pub(super) fn hits(&self, ids: &[u64]) -> usize {
        ids.iter().take_while(|id| self.blocks.contains(id)).count()
    }

    /// Uses a block: its pages are appended to `table` and stay until [`PrefixCache::put`].
    pub(super) fn take(&mut self, id: u64, table: &mut PageTable) {
        if let Some(block) = self.blocks.get_mut(&id) {
            if block.refs == 0 {
                self.idle.remove(&block.stamp);
                self.idle_pages -= u64::from(block.pages.len());
            }
            block.refs += 1;
            for run in block.pages.runs() {
                table.push(*run);
            }
        }
    }

    /// A user of a block is done.
    pub(super) fn put(&mut self, id: u64) {
        if let Some(block) = self.blocks.get_mut(&id) {
            block.refs -= 1;
            if block.refs == 0 {
                self.clock += 1;
                block.stamp = self.clock;
                self.idle.insert(self.clock, id);
                self.idle_pages += u64::from(block.pages.len());
            }
        }
    }

    /// Gives the cache pages that were just computed, one user among them. False if it has this block already.
    pub(super) fn insert(&mut self, id: u64, pages: impl Iterator<Item = PageRun>) -> bool {
        if self.blocks.contains(&id) {
            return false;
        }
        let pages = PageTable::new(pages.collect());
        self.blocks.insert(id, Block { pages, refs: 1, stamp: 0 });
        true
    }

    /// Pages that nobody uses.
    pub(super) fn idle_pages(&self) -> u64 {
        self.idle_pages
    }

    /// Evicts until `pool` has `pages` free, or nothing is left to evict.
    pub(super) fn make_room(&mut self, pool: &mut PagePool, pages: u32) {
        while pool.free() < pages {
            let Some((_, id)) = self.idle.pop_first() else { return };
            if let Some(mut block) = self.blocks.remove(&id) {
                self.idle_pages -= u64::from(block.pages.len());
                pool.give_all(&mut block.pages);
            }
        }
    }
}
