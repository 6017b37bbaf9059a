//! Which parts of a room have been seen: a set, never a count, because nothing orders two queue pairs.

use crate::id::Rank;

/// A set of part numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PartSet {
    low: u64,
    high: Vec<u64>,
    len: u16,
}

impl PartSet {
    /// Adds one; false if it was there.
    pub(super) fn insert(&mut self, part: u16) -> bool {
        let (word, bit) = (usize::from(part / 64), 1u64 << (part % 64));
        let word = if word == 0 {
            &mut self.low
        } else {
            if self.high.len() < word {
                self.high.resize(word, 0);
            }
            &mut self.high[word - 1]
        };
        let new = *word & bit == 0;
        *word |= bit;
        self.len += u16::from(new);
        new
    }
    /// Whether it has no members.
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }
    /// Its members, ascending.
    pub(super) fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        let words = std::iter::once(self.low).chain(self.high.iter().copied());
        (0u16..)
            .zip(words)
            .flat_map(|(i, word)| (0..64).filter(move |b| word >> b & 1 == 1).map(move |b| i * 64 + b))
    }
    /// Whether it is 0, 1, ... without a gap and every part is below `parts`.
    pub(super) fn is_all_of(&self, parts: u16) -> bool {
        self.len == parts && self.iter().all(|part| part < parts)
    }
}

/// What came from one source rank for one destination rank.
#[derive(Clone, Debug)]
pub(super) struct Source {
    pub rank: Rank,
    pub seen: PartSet,
    /// Immediates counted, for the rule that is switched off.
    pub count: u16,
    pub seal: Option<u16>,
    /// Staged parts that were seen and are not in their pages yet.
    pub copying: u16,
    /// Staged parts that are, from the first one on without a gap; and those behind a gap.
    pub scattered: u32,
    pub late: Vec<u32>,
    /// How many of them the sender wants to be told of, and was not.
    pub asked: Vec<u32>,
    /// The checksum that came with the seal.
    pub sum: u64,
    pub done: bool,
}

impl Source {
    pub(super) fn new(rank: Rank) -> Self {
        Self {
            rank,
            seen: PartSet::default(),
            count: 0,
            seal: None,
            sum: 0,
            copying: 0,
            scattered: 0,
            late: Vec::new(),
            asked: Vec::new(),
            done: false,
        }
    }

    /// A staged part is in its pages, and its sender may want to know. Whether it is to be told now: not before those in front of it, which may
    /// come on another queue pair, are there too.
    pub(super) fn scattered(&mut self, sequence: u32, tell: bool) -> bool {
        self.late.push(sequence);
        if tell {
            self.asked.push(sequence.saturating_add(1));
        }
        while let Some(at) = self.late.iter().position(|late| *late == self.scattered) {
            self.late.swap_remove(at);
            self.scattered += 1;
        }
        let (before, scattered) = (self.asked.len(), self.scattered);
        self.asked.retain(|asked| *asked > scattered);
        self.asked.len() < before
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        /// Whatever the order in which parts come: all of them are counted in the end, and whoever asked was told when his were there.
        #[test]
        fn parts_behind_a_gap_count_when_it_is_filled(
            order in Just((0u32..20).collect::<Vec<_>>()).prop_shuffle(), asks in proptest::collection::vec(any::<bool>(), 20),
        ) {
            let mut source = Source::new(Rank(0));
            let mut there = BTreeSet::new();
            let mut told = 0;
            for part in order {
                there.insert(part);
                let tell = source.scattered(part, asks[part as usize]);
                let whole = (0..).take_while(|part| there.contains(part)).count() as u32;
                prop_assert_eq!(source.scattered, whole);
                let asked = (told..whole).any(|part| asks[part as usize]);
                prop_assert_eq!(tell, asked);
                told = if tell { whole } else { told };
            }
            prop_assert_eq!(source.scattered, 20);
        }

        #[test]
        fn is_a_set(parts in proptest::collection::vec(0u16..300, 0..80)) {
            let (mut set, mut want) = (PartSet::default(), BTreeSet::new());
            for part in parts {
                prop_assert_eq!(set.insert(part), want.insert(part));
            }
            prop_assert_eq!(usize::from(set.len), want.len());
            prop_assert_eq!(set.iter().collect::<Vec<_>>(), want.iter().copied().collect::<Vec<_>>());
            let whole = want.iter().copied().eq(0..want.len() as u16);
            prop_assert_eq!(set.is_all_of(want.len() as u16), whole);
        }
    }
}
