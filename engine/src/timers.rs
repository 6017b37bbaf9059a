//! A set of timers, one for each key, for nodes that name only their earliest deadline to the driver.

use crate::map::Map;
use crate::time::Time;
use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::fmt;
use std::hash::Hash;

/// Heap entry. Ordered by time, then by the order of arming, so that equal times fire first in, first out.
#[derive(Clone, Copy, Debug)]
struct Entry<K> {
    at: Time,
    order: u64,
    key: K,
}

impl<K> PartialEq for Entry<K> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl<K> Eq for Entry<K> {}
impl<K> PartialOrd for Entry<K> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl<K> Ord for Entry<K> {
    fn cmp(&self, other: &Self) -> Ordering {
        // Reversed: `BinaryHeap` keeps the greatest on top.
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

/// Keys and the times at which they are due; each key at most once.
///
/// Cancelled and moved timers stay in the heap until they surface or outnumber the live ones; the top of the heap is
/// always live, so that [`Timers::head`] is exact.
#[derive(Clone)]
pub struct Timers<K> {
    heap: BinaryHeap<Entry<K>>,
    live: Map<K, (Time, u64)>,
    order: u64,
}

/// What is armed, and for when.
impl<K: fmt::Debug + Ord> fmt::Debug for Timers<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.live.fmt(f)
    }
}

impl<K: Copy + Eq + Hash> Default for Timers<K> {
    fn default() -> Self {
        Self { heap: BinaryHeap::new(), live: Map::default(), order: 0 }
    }
}

impl<K: Copy + Eq + Hash> Timers<K> {
    /// No timers.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the timer of `key` to `at`, wherever it was before. [`Time::NEVER`] cancels it.
    pub fn arm(&mut self, key: K, at: Time) {
        if at == Time::NEVER {
            self.cancel(key);
            return;
        }
        let order = self.order;
        match self.live.insert(key, (at, order)) {
            Some((before, order)) if before == at => {
                self.live.insert(key, (at, order));
            }
            before => {
                self.order += 1;
                self.heap.push(Entry { at, order, key });
                if before.is_some() {
                    self.clean();
                }
            }
        }
    }

    /// Stops the timer of `key`; false if it was not armed.
    pub fn cancel(&mut self, key: K) -> bool {
        let armed = self.live.remove(&key).is_some();
        if armed {
            self.clean();
        }
        armed
    }

    /// Takes out the earliest timer that is due at `now`.
    pub fn expired(&mut self, now: Time) -> Option<K> {
        if self.heap.peek()?.at > now {
            return None;
        }
        let key = self.heap.pop()?.key;
        self.live.remove(&key);
        self.clean();
        Some(key)
    }

    /// When `key` is due.
    pub fn get(&self, key: K) -> Option<Time> {
        self.live.get(&key).map(|(at, _)| *at)
    }

    /// When the earliest is due.
    pub fn head(&self) -> Option<Time> {
        self.heap.peek().map(|entry| entry.at)
    }

    /// How many are armed.
    pub fn len(&self) -> usize {
        self.live.len()
    }

    /// Whether none is armed.
    pub fn is_empty(&self) -> bool {
        self.live.is_empty()
    }

    /// Stops all.
    pub fn clear(&mut self) {
        self.heap.clear();
        self.live.clear();
    }

    /// Restores the two bounds: a live top, and at most as many dead entries as live ones (and 64).
    fn clean(&mut self) {
        let live = &self.live;
        let alive = |entry: &Entry<K>| live.get(&entry.key).is_some_and(|(_, order)| *order == entry.order);
        while self.heap.peek().is_some_and(|top| !alive(top)) {
            self.heap.pop();
        }
        if self.heap.len() > 2 * live.len() + 64 {
            self.heap.retain(alive);
        }
    }
}

/// The next of those whose step has come, for what counts steps instead of time.
pub(crate) fn due<K: Copy + Ord>(heap: &mut BinaryHeap<Reverse<(u64, K)>>, steps: u64) -> Option<K> {
    let at = heap.peek().map(|Reverse((step, _))| *step)?;
    (at <= steps).then(|| heap.pop()).flatten().map(|Reverse((_, key))| key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[test]
    fn equal_times_fire_in_the_order_of_arming() {
        let mut timers = Timers::new();
        for key in [3, 1, 2] {
            timers.arm(key, Time(7));
        }
        timers.arm(1, Time(7));
        let fired: Vec<u32> = std::iter::from_fn(|| timers.expired(Time(7))).collect();
        assert_eq!(fired, [3, 1, 2]);
        assert_eq!(timers.head(), None);
    }

    #[test]
    fn dead_entries_do_not_pile_up() {
        let mut timers = Timers::new();
        timers.arm(0u32, Time(1));
        for at in 0..100_000 {
            timers.arm(1, Time(10 + at));
        }
        assert!(timers.heap.len() <= 2 * 2 + 64 + 1, "{}", timers.heap.len());
        assert_eq!((timers.len(), timers.head()), (2, Some(Time(1))));
    }

    proptest! {
        #[test]
        fn behaves_like_a_sorted_map(steps in prop::collection::vec((0u8..3, 0u32..12, 0u64..40), 0..300)) {
            let mut timers = Timers::new();
            let mut model: BTreeMap<u32, u64> = BTreeMap::new();
            for (what, key, at) in steps {
                match what {
                    0 => {
                        timers.arm(key, Time(at));
                        model.insert(key, at);
                    }
                    1 => prop_assert_eq!(timers.cancel(key), model.remove(&key).is_some()),
                    _ => while let Some(key) = timers.expired(Time(at)) {
                        let due = model.remove(&key);
                        prop_assert!(due.is_some_and(|due| due <= at));
                        prop_assert!(model.values().all(|other| Some(*other) >= due));
                    },
                }
                if what == 2 {
                    prop_assert!(model.values().all(|due| *due > at));
                }
                prop_assert_eq!(timers.head().map(|t| t.0), model.values().min().copied());
                prop_assert_eq!(timers.len(), model.len());
            }
        }
    }
}
