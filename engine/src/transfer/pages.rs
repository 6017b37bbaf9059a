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
///
/// Pages are given out in one run where there is one that is long enough, the lowest: neighbouring pages make one work request, and
/// low pages stay in use and warm. Otherwise the lowest free pages are taken as they come.
#[derive(Clone, Debug)]
pub struct PagePool {
    /// A bit for each page, set while it is out.
    out: Vec<u64>,
    pages: u32,
    free_pages: u32,
    /// No page below is free.
    lowest: u32,
    /// Single pages in the order in which they are given out, last first, if they are to be scattered.
    scattered: Option<Vec<Page>>,
}

impl PagePool {
    /// `pages` pages, page 0 among them. With `scatter` pages are given out one by one and never in order, as in a pool that has
    /// been in use for long: the worst case for a planner.
    pub fn new(pages: u32, scatter: bool) -> Self {
        let mut pool = Self {
            out: vec![0; pages.div_ceil(64) as usize],
            pages,
            free_pages: pages.saturating_sub(1),
            lowest: 1,
            scattered: None,
        };
        if let Some(first) = pool.out.first_mut() {
            *first = 1;
        }
        if let Some(last) = pool.out.last_mut()
            && !pages.is_multiple_of(64)
        {
            *last |= u64::MAX << (pages % 64);
        }
        if scatter {
            // A stride coprime to the number of pages visits every page once and no two neighbours in a row.
            let n = u64::from(pages.saturating_sub(1));
            let mut stride = (n * 5 / 8) | 1;
            while n > 0 && gcd(stride, n) != 1 {
                stride += 2;
            }
            pool.scattered = Some((0..n).map(|i| Page((i * stride % n) as u32 + 1)).rev().collect());
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
        if let Some(pages) = &mut self.scattered {
            let at = pages.len() - count as usize;
            for page in pages.split_off(at).into_iter().rev() {
                let run = PageRun { first: page, count: 1 };
                self.mark(run, true);
                into.push(run);
            }
            return true;
        }
        let whole = self.find(count);
        let mut left = count;
        while left > 0 {
            let found = match whole {
                Some(first) => Some(PageRun { first, count }),
                None => self.next_run(self.lowest),
            };
            let Some(found) = found else { break };
            let run = PageRun { count: found.count.min(left), ..found };
            self.mark(run, true);
            into.push(run);
            left -= run.count;
            if run.first.0 == self.lowest || whole.is_none() {
                self.lowest = run.first.0 + run.count;
            }
        }
        true
    }

    /// The first of `count` free pages in a row.
    fn find(&self, count: u32) -> Option<Page> {
        let low = (self.lowest / 64) as usize;
        let (mut start, mut len) = (0, 0);
        for (word, out) in (low as u32..).zip(self.out.get(low..)?) {
            let mut free = !out;
            if word == low as u32 {
                free &= u64::MAX << (self.lowest % 64);
            }
            let mut done = 0;
            if len > 0 {
                // A run goes on from the word before.
                let more = free.trailing_ones();
                len += more;
                if len >= count {
                    return Some(Page(start));
                }
                if more == 64 {
                    continue;
                }
                (len, done) = (0, more);
            }
            free &= u64::MAX << done;
            while free != 0 {
                let bit = free.trailing_zeros();
                let run = (free >> bit).trailing_ones();
                if run >= count {
                    return Some(Page(word * 64 + bit));
                }
                if bit + run == 64 {
                    (start, len) = (word * 64 + bit, run);
                    break;
                }
                free &= u64::MAX << (bit + run);
            }
        }
        None
    }

    /// The first run of free pages from `from` on.
    fn next_run(&self, from: u32) -> Option<PageRun> {
        let first = self.next_bit(from, false)?;
        let end = self.next_bit(first, true).unwrap_or(self.pages);
        Some(PageRun { first: Page(first), count: end.min(self.pages) - first })
    }

    /// The first page from `from` on that is out (or is not).
    fn next_bit(&self, from: u32, out: bool) -> Option<u32> {
        let (mut word, bit) = ((from / 64) as usize, from % 64);
        let flip = if out { 0 } else { u64::MAX };
        let mut bits = (self.out.get(word)? ^ flip) & (u64::MAX << bit);
        while bits == 0 {
            word += 1;
            bits = self.out.get(word)? ^ flip;
        }
        Some(word as u32 * 64 + bits.trailing_zeros())
    }

    /// Takes pages back. Returns how many of them were not out: always zero unless somebody freed twice, and then nothing is
    /// taken back.
    pub fn give(&mut self, run: PageRun) -> u32 {
        let wrong = self.mark(run, false);
        if wrong > 0 {
            return wrong;
        }
        self.free_pages += run.count;
        self.lowest = self.lowest.min(run.first.0);
        if let Some(pages) = &mut self.scattered {
            pages.extend((0..run.count).map(|i| Page(run.first.0 + i)));
        }
        0
    }
    /// Takes a whole table back.
    pub fn give_all(&mut self, table: &mut PageTable) -> u32 {
        let wrong = table.runs.iter().map(|run| self.give(*run)).sum();
        table.clear();
        wrong
    }

    /// Marks pages as out or in, unless some are so already: how many.
    fn mark(&mut self, run: PageRun, out: bool) -> u32 {
        let (first, end) = (run.first.0, run.first.0.saturating_add(run.count));
        if first == 0 || end > self.pages {
            return run.count;
        }
        let words = |first: u32| {
            let mut page = first;
            std::iter::from_fn(move || {
                let (word, bit) = ((page / 64) as usize, page % 64);
                let n = (64 - bit).min(end - page);
                page += n;
                let mask = if n == 64 { u64::MAX } else { ((1u64 << n) - 1) << bit };
                (n > 0).then_some((word, mask))
            })
        };
        let flip = if out { 0 } else { u64::MAX };
        let wrong: u32 = words(first).map(|(word, mask)| ((self.out[word] ^ flip) & mask).count_ones()).sum();
        if wrong == 0 {
            for (word, mask) in words(first) {
                self.out[word] ^= mask;
            }
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

    #[test]
    fn pages_in_a_row_are_preferred_to_the_first_ones() {
        let mut pool = PagePool::new(300, false);
        let mut tables: Vec<PageTable> = (0..10).map(|_| PageTable::default()).collect();
        for table in &mut tables {
            assert!(pool.take(20, table));
        }
        for hole in [1, 3] {
            assert_eq!(pool.give_all(&mut tables[hole]), 0);
        }
        let taken = |pool: &mut PagePool, count| {
            let mut table = PageTable::default();
            assert!(pool.take(count, &mut table));
            table.runs().iter().map(|run| (run.first.0, run.count)).collect::<Vec<_>>()
        };
        // Pages 1..201 were given out, 20 at a time; the second and the fourth twenty came back.
        assert_eq!(taken(&mut pool, 50), [(201, 50)]);
        assert_eq!(taken(&mut pool, 15), [(21, 15)]);
        assert_eq!(taken(&mut pool, 20), [(61, 20)]);
        // Where nothing is long enough: what there is.
        assert_eq!(taken(&mut pool, 54).iter().map(|run| run.1).sum::<u32>(), 54);
        assert_eq!(pool.free(), 0);
    }

    #[test]
    fn what_was_never_given_out_is_refused() {
        let mut pool = PagePool::new(130, false);
        let mut table = PageTable::default();
        assert!(pool.take(129, &mut table));
        assert_eq!(table.runs(), [PageRun { first: Page(1), count: 129 }]);
        assert!(!pool.take(1, &mut table));
        let mut give = |first, count| pool.give(PageRun { first: Page(first), count });
        // Padding, beyond the end, beyond all numbers; then the last page alone, and it with the one before.
        assert_eq!([give(0, 2), give(129, 2), give(2, u32::MAX), give(129, 1)], [2, 2, u32::MAX, 0]);
        assert_eq!([give(128, 2), give(128, 1), give(1, 127)], [1, 0, 0]);
        assert_eq!((pool.free(), pool.used()), (129, 0));
    }

    #[test]
    fn scattered_pages_have_no_neighbours_in_a_row() {
        for pages in 2..300 {
            let mut pool = PagePool::new(pages, true);
            let mut table = PageTable::default();
            assert!(pool.take(pages - 1, &mut table));
            let mut all: Vec<u32> = table.runs().iter().map(|run| run.first.0).collect();
            assert!(pages < 5 || all.len() as u32 == pages - 1, "{all:?}");
            all.sort_unstable();
            assert!(pages < 5 || all.into_iter().eq(1..pages));
        }
    }

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

        /// What is given out is the lowest run that is long enough, or else the lowest free pages.
        #[test]
        fn the_lowest_run_that_fits_is_given_out(
            pages in 0u32..400,
            steps in proptest::collection::vec((0u32..5, 0u32..150), 1..80),
        ) {
            let mut pool = PagePool::new(pages, false);
            prop_assert_eq!((pool.capacity(), pool.used()), (pages.saturating_sub(1), 0));
            let mut free = vec![true; pages as usize];
            free.iter_mut().take(1).for_each(|padding| *padding = false);
            let mut held: Vec<PageTable> = Vec::new();
            for (what, n) in steps {
                if what > 1 {
                    let n = if what > 2 { n % 20 } else { n };
                    let mut table = PageTable::default();
                    if pool.take(n, &mut table) {
                        let all = || (0..pages).filter(|page| free[*page as usize]);
                        let whole = |first: &u32| {
                            free.get(*first as usize..(first + n) as usize).is_some_and(|run| run.iter().all(|free| *free))
                        };
                        let want: Vec<u32> = match all().find(whole) {
                            Some(first) => (first..first + n).collect(),
                            None => all().take(n as usize).collect(),
                        };
                        let got: Vec<u32> =
                            table.runs().iter().flat_map(|run| run.first.0..run.first.0 + run.count).collect();
                        prop_assert_eq!(&got, &want);
                        got.iter().for_each(|page| free[*page as usize] = false);
                        held.push(table);
                    }
                } else if !held.is_empty() {
                    let mut table = held.remove(n as usize % held.len());
                    for run in table.runs() {
                        (run.first.0..run.first.0 + run.count).for_each(|page| free[page as usize] = true);
                    }
                    prop_assert_eq!(pool.give_all(&mut table), 0);
                    prop_assert!(table.is_empty());
                }
                prop_assert_eq!(pool.free() as usize, free.iter().filter(|free| **free).count());
            }
        }

        #[test]
        fn slices_are_the_pages(runs in proptest::collection::vec((1u32..50, 1u32..9), 0..6), a in 0u32..60, b in 0u32..60) {
            let table = PageTable::new(runs.iter().map(|&(first, count)| PageRun { first: Page(first), count }).collect());
            let flat: Vec<u32> = table.runs().iter().flat_map(|r| r.first.0..r.first.0 + r.count).collect();
            let got: Vec<u32> = table.slice(a, b).flat_map(|r| r.first.0..r.first.0 + r.count).collect();
            let want: Vec<u32> = flat.iter().copied().enumerate().filter(|(i, _)| (a..b).contains(&(*i as u32))).map(|(_, p)| p).collect();
            prop_assert_eq!(got, want);
            prop_assert_eq!(table.is_empty(), flat.is_empty());
        }
    }
}
