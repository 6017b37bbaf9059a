//! A room on one rail, by its number.

use super::{Piece, Rail, Rails};
use crate::fabric::Content;
use crate::time::Time;

/// The rail by a hash of the room's number, so that all pieces of a room keep to one rail of each pair of ranks while the rails stay what
/// they are. Promises nothing about how even that is: rooms whose numbers collide share a rail while others are idle.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hash;

impl Rails for Hash {
    fn choose(&mut self, _now: Time, piece: &Piece, rails: &[Rail]) -> usize {
        let hash = Content::word(piece.room, 0x7261_696c).wrapping_add(piece.nth.into());
        (hash % rails.len().max(1) as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Rank;

    #[test]
    fn rooms_keep_their_rail_and_are_spread() {
        let rails = [Rail { backlog: 0, rate: 1, far: false }; 4];
        let mut counts = [0u32; 4];
        for room in 0..4000 {
            let piece = Piece { room, rank: Rank(0), nth: 0, bytes: 1 };
            let chosen = Hash.choose(Time(0), &piece, &rails);
            counts[chosen] += 1;
            for (rank, bytes) in [(1, 7), (5, 1 << 40)] {
                let other = Piece { rank: Rank(rank), bytes, ..piece };
                assert_eq!(Hash.choose(Time(9), &other, &rails), chosen);
            }
            // Feeds of one rank are on different rails.
            assert_eq!(Hash.choose(Time(0), &Piece { nth: 1, ..piece }, &rails), (chosen + 1) % 4);
        }
        // Five standard deviations around 1000.
        assert!(counts.iter().all(|n| (863..1137).contains(n)), "{counts:?}");
    }
}
