//! Page tables and the pool that owns pages.

use crate::id::Page;
use crate::registry::PageRun;

/// The pages of a request in token order, as runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageTable {
    runs: Vec<PageRun>,
    len: u32,
}

impl PageTable {
    /// From runs.
    pub fn new(runs: Vec<PageRun>) -> Self {
        let mut table = Self::default();
        for run in runs {
            table.push(run);
        }
        table
    }
    /// Adds a run at the end; one that goes on where the last one ends is merged.
    pub fn push(&mut self, run: PageRun) {
        if run.count == 0 {
            return;
        }
        self.len += run.count;
        match self.runs.last_mut() {
            Some(last) if last.first.0 + last.count == run.first.0 => last.count += run.count,
            _ => self.runs.push(run),
        }
    }
    /// The runs.
    pub fn runs(&self) -> &[PageRun] {
        &self.runs
    }
    /// Pages in it.
    pub fn len(&self) -> u32 {
        self.len
    }
    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    /// Forgets all.
    pub fn clear(&mut self) {
        self.runs.clear();
        self.len = 0;
    }
    /// The runs of pages `from..to` of the table.
    pub fn slice(&self, from: u32, to: u32) -> impl Iterator<Item = PageRun> + '_ {
        let mut at = 0;
        self.runs.iter().filter_map(move |run| {
            let (start, end) = (at.max(from), (at + run.count).min(to));
            let first = Page(run.first.0 + (start.saturating_sub(at)));
            at += run.count;
            (start < end).then(|| PageRun { first, count: end - start })
        })
    }
}

/// Free pages of a pool. Page 0 is padding and never given out (as in SGLang). Knows who has what: giving back
/// a page that is not out is refused, so that a double free cannot hide.
#[derive(Clone, Debug)]
pub struct PagePool {
    /// Free runs, a stack; the last is given out first. Adjacent ones merge when they are pushed next to each other.
    free: Vec<PageRun>,
    free_pages: u32,
    pages: u32,
    out: Vec<u64>,
    scatter: bool,
}

impl PagePool {
    /// `pages` pages, page 0 among them. With `scatter` pages are given out one by one and never in order, as in a pool that has
    /// been in use for long: the worst case for a planner.
    pub fn new(pages: u32, scatter: bool) -> Self {
        let mut pool = Self {
            free: Vec::new(),
            free_pages: pages.saturating_sub(1),
            pages,
            out: vec![0; pages.div_ceil(64) as usize],
            scatter,
        };
        if scatter {
            // A stride coprime to the number of pages visits every page once and no two neighbours in a row.
            let n = u64::from(pages.saturating_sub(1));
            let mut stride = (n * 5 / 8) | 1;
            while n > 0 && gcd(stride, n) != 1 {
                stride += 2;
            }
            pool.free = (0..n)
                .map(|i| PageRun { first: Page((i * stride % n) as u32 + 1), count: 1 })
                .rev()
                .collect();
        } else if pages > 1 {
            pool.free.push(PageRun { first: Page(1), count: pages - 1 });
        }
        pool
    }
    /// Pages that can be given out at most.
    pub fn capacity(&self) -> u32 {
        self.pages.saturating_sub(1)
    }
    /// Pages free now.
    pub fn free(&self) -> u32 {
        self.free_pages
    }
    /// Pages given out.
    pub fn used(&self) -> u32 {
        self.capacity() - self.free_pages
    }
    /// Gives out `count` pages, appended to `into`; or nothing if there are not that many.
    pub fn take(&mut self, count: u32, into: &mut PageTable) -> bool {
        if count > self.free_pages {
            return false;
        }
        self.free_pages -= count;
        let mut left = count;
        while left > 0 {
            let Some(run) = self.free.last_mut() else { break };
            let n = left.min(run.count);
            let taken = PageRun { first: run.first, count: n };
            run.first.0 += n;
            run.count -= n;
            if run.count == 0 {
                self.free.pop();
            }
            self.mark(taken, true);
            into.push(taken);
            left -= n;
        }
        true
    }
    /// Takes pages back. Returns how many of them were not out: always zero unless somebody freed twice.
    pub fn give(&mut self, run: PageRun) -> u32 {
        let wrong = self.mark(run, false);
        if wrong > 0 {
            return wrong;
        }
        self.free_pages += run.count;
        if self.scatter {
            for i in 0..run.count {
                self.free.push(PageRun { first: Page(run.first.0 + i), count: 1 });
            }
            return 0;
        }
        if let Some(last) = self.free.last_mut() {
            if last.first.0 + last.count == run.first.0 {
                last.count += run.count;
                return 0;
            }
            if run.first.0 + run.count == last.first.0 {
                last.first = run.first;
                last.count += run.count;
                return 0;
            }
        }
        self.free.push(run);
        0
    }
    /// Takes a whole table back.
    pub fn give_all(&mut self, table: &mut PageTable) -> u32 {
        // Last run first, so that the next taker finds them in the order in which they were.
        let wrong = table.runs.iter().rev().map(|run| self.give(*run)).sum();
        table.clear();
        wrong
    }

    /// Marks pages as out or in; returns how many were so already.
    fn mark(&mut self, run: PageRun, out: bool) -> u32 {
        let (mut page, end) = (run.first.0, run.first.0.saturating_add(run.count));
        if page == 0 || end > self.pages {
            return run.count;
        }
        let mut wrong = 0;
        while page < end {
            let (word, bit) = ((page / 64) as usize, page % 64);
            let n = (64 - bit).min(end - page);
            let mask = if n == 64 { u64::MAX } else { ((1u64 << n) - 1) << bit };
            let was = self.out[word] & mask;
            wrong += if out { was.count_ones() } else { (mask & !was).count_ones() };
            if out {
                self.out[word] |= mask;
            } else if wrong == 0 {
                self.out[word] &= !mask;
            }
            page += n;
        }
        wrong
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_page_has_one_owner(pages in 2u32..200, scatter: bool, steps in proptest::collection::vec((any::<bool>(), 0u32..40), 1..60)) {
            let mut pool = PagePool::new(pages, scatter);
            let mut held: Vec<PageTable> = Vec::new();
            for (take, n) in steps {
                if take {
                    let mut table = PageTable::default();
                    let fits = n <= pool.free();
                    prop_assert_eq!(pool.take(n, &mut table), fits);
                    prop_assert_eq!(table.len(), if fits { n } else { 0 });
                    held.push(table);
                } else if !held.is_empty() {
                    let mut table = held.remove(n as usize % held.len());
                    let copy = table.clone();
                    prop_assert_eq!(pool.give_all(&mut table), 0);
                    if let Some(run) = copy.runs().first() {
                        prop_assert!(pool.give(*run) > 0, "a second free is refused");
                    }
                }
                let mut seen = vec![false; pages as usize];
                for run in held.iter().flat_map(|t| t.runs()) {
                    for page in run.first.0..run.first.0 + run.count {
                        prop_assert!(page > 0 && !seen[page as usize]);
                        seen[page as usize] = true;
                    }
                }
                prop_assert_eq!(pool.used() as usize, seen.iter().filter(|s| **s).count());
            }
        }

        #[test]
        fn slices_are_the_pages(runs in proptest::collection::vec((1u32..50, 1u32..9), 0..6), a in 0u32..60, b in 0u32..60) {
            let table = PageTable::new(runs.iter().map(|&(first, count)| PageRun { first: Page(first), count }).collect());
            let flat: Vec<u32> = table.runs().iter().flat_map(|r| r.first.0..r.first.0 + r.count).collect();
            let got: Vec<u32> = table.slice(a, b).flat_map(|r| r.first.0..r.first.0 + r.count).collect();
            let want: Vec<u32> = flat.iter().copied().enumerate().filter(|(i, _)| (a..b).contains(&(*i as u32))).map(|(_, p)| p).collect();
            prop_assert_eq!(got, want);
        }
    }
}
