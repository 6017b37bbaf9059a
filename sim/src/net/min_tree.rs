//! The least of many keys that change often.

/// Children of one node: two cache lines of keys.
const WIDTH: usize = 16;

/// A tree of minima, 16 wide, over keys by place. Most changes touch a leaf and stop at its parent.
#[derive(Clone, Debug)]
pub(super) struct MinTree {
    /// `levels[0]` are the keys, each further level the minima of 16 below it, the last is one node.
    levels: Vec<Vec<u64>>,
    /// The least of all.
    least: u64,
}

impl MinTree {
    /// Key of a place that is not in use.
    pub(super) const NEVER: u64 = u64::MAX;

    pub(super) fn new() -> Self {
        MinTree { levels: vec![vec![Self::NEVER; WIDTH]], least: Self::NEVER }
    }

    /// Makes room for place `at`.
    pub(super) fn reserve(&mut self, at: usize) {
        if at < self.levels[0].len() {
            return;
        }
        let mut keys = std::mem::take(&mut self.levels[0]);
        let mut len = keys.len();
        while len <= at {
            len *= 2;
        }
        keys.resize(len, Self::NEVER);
        self.levels = vec![keys];
        while let Some(below) = self.levels.last()
            && below.len() > WIDTH
        {
            let mut level: Vec<u64> = below.chunks(WIDTH).map(least).collect();
            level.resize(level.len().next_multiple_of(WIDTH), Self::NEVER);
            self.levels.push(level);
        }
    }

    #[inline]
    pub(super) fn set(&mut self, at: usize, key: u64) {
        let mut at = at;
        let mut key = key;
        for level in 0..self.levels.len() {
            let old = std::mem::replace(&mut self.levels[level][at], key);
            if old == key {
                return;
            }
            if level + 1 == self.levels.len() {
                if key < self.least {
                    self.least = key;
                } else if old == self.least {
                    self.least = least(&self.levels[level]);
                }
                return;
            }
            let parent = at / WIDTH;
            let known = self.levels[level + 1][parent];
            if key >= known {
                if old > known {
                    return;
                }
                key = least(&self.levels[level][parent * WIDTH..(parent + 1) * WIDTH]);
            }
            at = parent;
        }
    }

    /// The least key.
    #[inline]
    pub(super) fn min(&self) -> u64 {
        self.least
    }

    /// First place that has the least key; any place when that is [`NEVER`](Self::NEVER).
    pub(super) fn argmin(&self) -> usize {
        let key = self.min();
        let mut node = 0;
        for level in self.levels.iter().rev() {
            let children = &level[node * WIDTH..(node + 1) * WIDTH];
            node = node * WIDTH + children.iter().position(|&k| k == key).unwrap_or(0);
        }
        node
    }
}

#[inline]
fn least(keys: &[u64]) -> u64 {
    keys.iter().fold(MinTree::NEVER, |a, &b| if b < a { b } else { a })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn min_is_the_least_key(changes in prop::collection::vec((0usize..5000, 0u64..100), 1..300)) {
            let mut tree = MinTree::new();
            let mut keys = vec![MinTree::NEVER; 5000];
            for (at, key) in changes {
                let key = if key > 80 { MinTree::NEVER } else { key };
                tree.reserve(at);
                tree.set(at, key);
                keys[at] = key;
                let least = keys.iter().copied().min().unwrap_or(MinTree::NEVER);
                prop_assert_eq!(tree.min(), least);
                if least != MinTree::NEVER {
                    prop_assert_eq!(keys[tree.argmin()], least);
                }
            }
        }
    }
}
