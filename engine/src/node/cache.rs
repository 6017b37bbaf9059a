//! Prefill's prefix cache: pages of whole prefix blocks, kept for as long as nobody needs the room.
//!
//! Blocks form chains: one can be used only together with all before it. So what is evicted is the end of a chain, and of those the one
//! used longest ago: no block is ever kept whose parent is not.

use crate::map::Map;
use crate::registry::PageRun;
use crate::transfer::{PagePool, PageTable};
use std::collections::BTreeMap;

#[derive(Debug)]
struct Block {
    pages: PageTable,
    /// The block before it, and how many of those after it are here.
    parent: Option<u64>,
    children: u32,
    refs: u32,
    /// When it was last used, by count; none before its first user is done.
    stamp: u64,
}

impl Block {
    fn is_free_leaf(&self) -> bool {
        self.refs == 0 && self.children == 0
    }
}

/// Blocks by content id.
#[derive(Debug, Default)]
pub(super) struct PrefixCache {
    blocks: Map<u64, Block>,
    /// Blocks that nobody uses and that none here come after, by stamp.
    leaves: BTreeMap<u64, u64>,
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
            if block.is_free_leaf() {
                self.leaves.remove(&block.stamp);
            }
            if block.refs == 0 {
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
                self.idle_pages += u64::from(block.pages.len());
                if block.is_free_leaf() {
                    self.leaves.insert(block.stamp, id);
                }
            }
        }
    }

    /// Gives the cache pages that were just computed, one user among them. False if it has this block already, or not the one before it.
    pub(super) fn insert(
        &mut self,
        id: u64,
        parent: Option<u64>,
        pages: impl Iterator<Item = PageRun>,
    ) -> bool {
        if self.blocks.contains(&id) {
            return false;
        }
        if let Some(parent) = parent {
            let Some(before) = self.blocks.get_mut(&parent) else { return false };
            if before.is_free_leaf() {
                self.leaves.remove(&before.stamp);
            }
            before.children += 1;
        }
        let pages = PageTable::new(pages.collect());
        self.blocks.insert(id, Block { pages, parent, children: 0, refs: 1, stamp: 0 });
        true
    }

    /// Pages that nobody uses.
    pub(super) fn idle_pages(&self) -> u64 {
        self.idle_pages
    }

    /// Evicts until `pool` has `pages` free, or nothing is left to evict.
    pub(super) fn make_room(&mut self, pool: &mut PagePool, pages: u32) {
        while pool.free() < pages {
            let Some((_, id)) = self.leaves.pop_first() else { return };
            let Some(mut block) = self.blocks.remove(&id) else { continue };
            self.idle_pages -= u64::from(block.pages.len());
            pool.give_all(&mut block.pages);
            let Some(parent) = block.parent else { continue };
            if let Some(before) = self.blocks.get_mut(&parent) {
                before.children -= 1;
                if before.is_free_leaf() {
                    self.leaves.insert(before.stamp, parent);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// What prefill does with the cache: takes what is there of a chain, computes the rest, gives its blocks to the cache, and lets go of them.
    struct Prefill {
        pool: PagePool,
        cache: PrefixCache,
        /// Chains under way: how many of their blocks they share, and the pages of the others.
        jobs: Vec<(Vec<u64>, usize, PageTable)>,
        /// Every block that there ever was.
        known: BTreeSet<u64>,
    }

    impl Prefill {
        fn new(pages: u32) -> Self {
            Self {
                pool: PagePool::new(pages + 1, false),
                cache: PrefixCache::default(),
                jobs: Vec::new(),
                known: BTreeSet::new(),
            }
        }

        /// A block is one page.
        fn begin(&mut self, chain: &[u64]) -> bool {
            let (mut shared, mut own) = (PageTable::default(), PageTable::default());
            let hits = self.cache.hits(chain);
            chain[..hits].iter().for_each(|id| self.cache.take(*id, &mut shared));
            let need = (chain.len() - hits) as u32;
            self.cache.make_room(&mut self.pool, need);
            if !self.pool.take(need, &mut own) {
                chain[..hits].iter().for_each(|id| self.cache.put(*id));
                return false;
            }
            self.jobs.push((chain.to_vec(), hits, own));
            true
        }

        fn end(&mut self, at: usize) {
            let (chain, mut shared, own) = self.jobs.remove(at);
            let first = shared;
            while shared < chain.len() {
                let page = (shared - first) as u32;
                let parent = shared.checked_sub(1).map(|before| chain[before]);
                if !self.cache.insert(chain[shared], parent, own.slice(page, page + 1)) {
                    break;
                }
                self.known.insert(chain[shared]);
                shared += 1;
            }
            chain[..shared].iter().for_each(|id| self.cache.put(*id));
            let mut rest = PageTable::new(own.slice((shared - first) as u32, own.len()).collect());
            assert_eq!(self.pool.give_all(&mut rest), 0);
        }

        fn check(&self) {
            let (mut free_leaves, mut idle, mut cached) = (BTreeSet::new(), 0, 0);
            let blocks = || self.known.iter().filter_map(|id| Some((id, self.cache.blocks.get(id)?)));
            assert_eq!(blocks().count(), self.cache.blocks.len());
            for (id, block) in blocks() {
                let children = blocks().filter(|(_, other)| other.parent == Some(*id)).count();
                assert_eq!(block.children as usize, children, "block {id}");
                if let Some(parent) = block.parent {
                    assert!(
                        self.cache.blocks.contains(&parent),
                        "block {id} is kept without its parent {parent}"
                    );
                }
                if block.is_free_leaf() {
                    free_leaves.insert((block.stamp, *id));
                }
                cached += block.pages.len();
                idle += if block.refs == 0 { u64::from(block.pages.len()) } else { 0 };
            }
            assert_eq!(free_leaves, self.cache.leaves.iter().map(|(stamp, id)| (*stamp, *id)).collect());
            assert_eq!(self.cache.idle_pages(), idle);
            let own: u32 = self.jobs.iter().map(|(_, _, own)| own.len()).sum();
            assert_eq!(self.pool.used(), cached + own);
        }
    }

    #[test]
    fn the_end_of_a_chain_goes_first() {
        let mut prefill = Prefill::new(4);
        let chain = [1, 2, 3, 4];
        assert!(prefill.begin(&chain));
        prefill.end(0);
        assert_eq!(prefill.cache.hits(&chain), 4);
        assert!(prefill.begin(&[9]));
        assert_eq!(prefill.cache.hits(&chain), 3, "the rest of the chain can still be used");
        prefill.end(0);
        // Of two ends the one used longest ago.
        assert!(prefill.begin(&[1, 2]));
        prefill.end(0);
        assert!(prefill.begin(&[8]));
        assert_eq!((prefill.cache.hits(&chain), prefill.cache.hits(&[9])), (2, 1));
        prefill.check();
    }

    /// A chain in a tree of prefixes: a block's id says all that comes before it.
    fn chain(turns: &[u8]) -> Vec<u64> {
        let step = |id: &mut u64, turn: &u8| {
            *id = *id * 4 + u64::from(*turn) + 1;
            Some(*id)
        };
        turns.iter().scan(0, step).collect()
    }

    proptest! {
        #[test]
        fn no_block_without_its_parent(
            pages in 1u32..24,
            steps in prop::collection::vec((prop::option::weighted(0.6, prop::collection::vec(0u8..3, 1..9)), any::<prop::sample::Index>()), 1..80),
        ) {
            let mut prefill = Prefill::new(pages);
            for (begin, at) in steps {
                match begin {
                    Some(turns) => {
                        let need = chain(&turns);
                        let began = prefill.begin(&need);
                        prop_assert!(began || !prefill.jobs.is_empty() || need.len() > pages as usize);
                    }
                    None if !prefill.jobs.is_empty() => prefill.end(at.index(prefill.jobs.len())),
                    None => {}
                }
                prefill.check();
            }
        }
    }
}
