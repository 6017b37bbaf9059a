//! Pieces on the rails in turn.

use super::{Piece, Rail, Rails};
use crate::time::Time;

/// Each rank's pieces on its rails in turn. Promises that the numbers of a rank's pieces on two rails that were always there differ by one at
/// most. Ranks count for themselves, so that those with as many pieces stay on different ports.
#[derive(Debug, Default)]
pub struct RoundRobin {
    /// By rank.
    next: Vec<usize>,
}

impl Rails for RoundRobin {
    fn choose(&mut self, _now: Time, piece: &Piece, rails: &[Rail]) -> usize {
        let rank = piece.rank.index();
        self.next.resize(self.next.len().max(rank + 1), 0);
        let chosen = self.next[rank] % rails.len().max(1);
        self.next[rank] = chosen + 1;
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Rank;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn rails_of_a_rank_differ_by_one(ranks in proptest::collection::vec(0u16..4, 1..60), n in 1usize..5) {
            let mut policy = RoundRobin::default();
            let rails = vec![Rail { backlog: 0, rate: 1, far: false }; n];
            let mut counts = vec![vec![0u32; n]; 4];
            for rank in ranks {
                let piece = Piece { room: 1, rank: Rank(rank), nth: 0, bytes: 1 };
                counts[usize::from(rank)][policy.choose(Time(0), &piece, &rails)] += 1;
                for counts in &counts {
                    prop_assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1);
                }
            }
        }
    }
}
