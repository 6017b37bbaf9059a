//! The event queue: what happens next, in order of time and then of insertion.

use engine::time::Time;

/// Children of a heap node. Four keys of 24 bytes lie in two cache lines, and the heap is half as deep as a binary one.
const ARITY: usize = 4;

#[derive(Clone, Copy)]
struct Key {
    time: u64,
    sequence: u64,
    slot: u32,
}

impl Key {
    #[inline]
    fn before(&self, other: &Self) -> bool {
        (self.time, self.sequence) < (other.time, other.sequence)
    }
}

/// A priority queue of events ordered by (time, sequence of insertion): ties come out as they went in.
///
/// The heap holds only 24-byte keys. Events lie in a slab and never move, so their size does not matter.
pub struct EventQueue<E> {
    heap: Vec<Key>,
    slab: Vec<Option<E>>,
    free: Vec<u32>,
    sequence: u64,
}

impl<E> Default for EventQueue<E> {
    fn default() -> Self {
        Self { heap: Vec::new(), slab: Vec::new(), free: Vec::new(), sequence: 0 }
    }
}

impl<E> EventQueue<E> {
    /// An empty queue.
    pub fn new() -> Self {
        Self::default()
    }

    /// Events in it.
    pub fn len(&self) -> usize {
        self.heap.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }

    /// Events ever put in.
    pub fn pushed(&self) -> u64 {
        self.sequence
    }

    /// When the next event happens.
    pub fn peek_time(&self) -> Option<Time> {
        self.heap.first().map(|key| Time(key.time))
    }

    /// Puts an event in.
    pub fn push(&mut self, time: Time, event: E) {
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slab[slot as usize] = Some(event);
                slot
            }
            None => {
                self.slab.push(Some(event));
                (self.slab.len() - 1) as u32
            }
        };
        let key = Key { time: time.0, sequence: self.sequence, slot };
        self.sequence += 1;
        let mut at = self.heap.len();
        self.heap.push(key);
        while at > 0 {
            let parent = (at - 1) / ARITY;
            if !key.before(&self.heap[parent]) {
                break;
            }
            self.heap[at] = self.heap[parent];
            at = parent;
        }
        self.heap[at] = key;
    }

    /// Takes the next event out.
    pub fn pop(&mut self) -> Option<(Time, E)> {
        let last = self.heap.pop()?;
        let first = match self.heap.first() {
            Some(&first) => {
                self.sink(last);
                first
            }
            None => last,
        };
        self.free.push(first.slot);
        let event = self.slab[first.slot as usize].take()?;
        Some((Time(first.time), event))
    }

    /// Fills the hole at the root with `key`: the hole goes down along the smallest children, then up to where `key` belongs.
    /// A key from the end of the heap nearly always belongs far down.
    fn sink(&mut self, key: Key) {
        let n = self.heap.len();
        let heap = &mut self.heap[..n];
        let mut hole = 0;
        loop {
            let child = hole * ARITY + 1;
            if child >= n {
                break;
            }
            let mut best = child;
            let mut best_key = heap[child];
            for (i, other) in heap.iter().enumerate().take((child + ARITY).min(n)).skip(child + 1) {
                if other.before(&best_key) {
                    (best, best_key) = (i, *other);
                }
            }
            heap[hole] = best_key;
            hole = best;
        }
        while hole > 0 {
            let parent = (hole - 1) / ARITY;
            if !key.before(&heap[parent]) {
                break;
            }
            heap[hole] = heap[parent];
            hole = parent;
        }
        heap[hole] = key;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Against a stable sort, with pushes and pops mixed.
        #[test]
        fn comes_out_by_time_then_insertion(steps in proptest::collection::vec(proptest::option::of(0u64..20), 1..300)) {
            let mut queue = EventQueue::new();
            let mut model: Vec<(u64, usize)> = Vec::new();
            for (i, step) in steps.into_iter().enumerate() {
                match step {
                    Some(time) => {
                        queue.push(Time(time), i);
                        model.push((time, i));
                    }
                    None => {
                        let next = model.iter().copied().min();
                        model.retain(|e| Some(*e) != next);
                        prop_assert_eq!(queue.peek_time(), next.map(|e| Time(e.0)));
                        prop_assert_eq!(queue.pop(), next.map(|e| (Time(e.0), e.1)));
                    }
                }
                prop_assert_eq!(queue.len(), model.len());
            }
        }
    }
}
