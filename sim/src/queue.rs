//! The event queue: what happens next, in order of time and then of insertion.

use engine::time::Time;

/// Children of a heap node: four keys of 16 bytes fill a cache line, and the heap is half as deep as a binary one.
const ARITY: usize = 4;

/// Bits of a key below the time: 40 of sequence, 24 of slot. Enough for 10^12 events, 16 million of them pending.
const SLOT_BITS: u32 = 24;

/// Most keys in front of the heap: few enough to move.
const FRONT: usize = 16;

/// A priority queue of events ordered by (time, sequence of insertion): ties come out as they went in.
///
/// The heap holds only keys, each one number: time, sequence, slot. Events lie in a slab and never move, so their size does not
/// matter. What comes before everything in the heap lies in front of it, in a short row: one thing leads to another far sooner than
/// the next thing happens by itself, so most events never see the heap.
pub struct EventQueue<E> {
    /// Keys before all of the heap, the next one last.
    front: Vec<u128>,
    heap: Vec<u128>,
    slab: Vec<Option<E>>,
    free: Vec<u32>,
    sequence: u64,
}

impl<E> Default for EventQueue<E> {
    fn default() -> Self {
        Self {
            front: Vec::with_capacity(FRONT + 1),
            heap: Vec::new(),
            slab: Vec::new(),
            free: Vec::new(),
            sequence: 0,
        }
    }
}

fn time(key: u128) -> Time {
    Time((key >> 64) as u64)
}

impl<E> EventQueue<E> {
    /// An empty queue.
    pub fn new() -> Self {
        Self::default()
    }

    /// Events in it.
    pub fn len(&self) -> usize {
        self.front.len() + self.heap.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.front.is_empty() && self.heap.is_empty()
    }

    /// Events ever put in.
    pub fn pushed(&self) -> u64 {
        self.sequence
    }

    /// When the next event happens.
    pub fn peek_time(&self) -> Option<Time> {
        self.front.last().or(self.heap.first()).map(|key| time(*key))
    }

    /// Puts an event in.
    pub fn push(&mut self, at: Time, event: E) {
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slab[slot as usize] = Some(event);
                slot
            }
            None => {
                assert!(
                    self.slab.len() < 1 << SLOT_BITS,
                    "2^24 events are pending: nothing drains the queue"
                );
                self.slab.push(Some(event));
                (self.slab.len() - 1) as u32
            }
        };
        let key = u128::from(at.0) << 64 | u128::from(self.sequence << SLOT_BITS | u64::from(slot));
        self.sequence += 1;
        if self.heap.first().is_some_and(|first| *first < key) {
            self.push_back(key);
        } else {
            self.push_front(key);
        }
    }

    fn push_back(&mut self, key: u128) {
        let hole = self.heap.len();
        self.heap.push(key);
        rise(&mut self.heap, hole, key);
    }

    fn push_front(&mut self, key: u128) {
        let mut hole = self.front.len();
        self.front.push(key);
        while let Some(before) = hole.checked_sub(1)
            && self.front[before] < key
        {
            self.front[hole] = self.front[before];
            hole = before;
        }
        self.front[hole] = key;
        if self.front.len() > FRONT {
            let last = self.front.remove(0);
            self.push_back(last);
        }
    }

    fn pop_key(&mut self) -> Option<u128> {
        if let Some(key) = self.front.pop() {
            return Some(key);
        }
        let last = self.heap.pop()?;
        match self.heap.first() {
            Some(&first) => {
                sink(&mut self.heap, last);
                Some(first)
            }
            None => Some(last),
        }
    }

    /// Takes the next event out.
    pub fn pop(&mut self) -> Option<(Time, E)> {
        let first = self.pop_key()?;
        let slot = first as u32 & ((1 << SLOT_BITS) - 1);
        self.free.push(slot);
        let event = self.slab[slot as usize].take()?;
        Some((time(first), event))
    }
}

/// Moves the hole up to where `key` belongs, and fills it.
#[inline]
fn rise(heap: &mut [u128], mut hole: usize, key: u128) {
    while hole > 0 {
        let parent = (hole - 1) / ARITY;
        if key >= heap[parent] {
            break;
        }
        heap[hole] = heap[parent];
        hole = parent;
    }
    heap[hole] = key;
}

/// Fills the hole at the root with `key`: the hole goes down along the smallest children, then up to where `key` belongs.
/// A key from the end of the heap nearly always belongs far down.
#[inline]
fn sink(heap: &mut [u128], key: u128) {
    let mut hole = 0;
    loop {
        let child = hole * ARITY + 1;
        let (best, at) = match heap.get(child..) {
            // Comparisons without branches: which child is smallest cannot be predicted.
            Some(&[a, b, c, d, ..]) => {
                let (x, i) = if b < a { (b, 1) } else { (a, 0) };
                let (y, j) = if d < c { (d, 3) } else { (c, 2) };
                if y < x { (y, j) } else { (x, i) }
            }
            Some(some) => match some.iter().zip(0..).min() {
                Some((key, i)) => (*key, i),
                None => break,
            },
            None => break,
        };
        heap[hole] = best;
        hole = child + at;
    }
    rise(heap, hole, key);
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
