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
    /// The checksum that came with the seal.
    pub sum: u64,
    pub done: bool,
}

impl Source {
    pub(super) fn new(rank: Rank) -> Self {
        Self { rank, seen: PartSet::default(), count: 0, seal: None, sum: 0, done: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
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
