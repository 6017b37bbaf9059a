//! The rail that would be through first.

use super::{Piece, Rail, Rails};
use crate::time::{Span, Time};

/// The rail on which the piece would be through first: what is under way there and the piece itself, at the rate that was measured there
/// lately. Promises that no rail is chosen while another one, by these figures, would be through sooner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeastInflight {
    /// How many completions back an estimate looks: each new one counts 1 in so many. At least 1.
    pub window: u32,
    /// An estimate is as good as none when nothing was measured for so long; until then it goes back to the line rate by degrees. So a rail
    /// that was slow is tried again.
    pub memory: Span,
    /// Percent that a port on another NUMA node than the rank's own is taken to be slower.
    pub numa_penalty: u32,
}

impl Default for LeastInflight {
    fn default() -> Self {
        Self { window: 8, memory: Span::s(1), numa_penalty: 25 }
    }
}

impl Rails for LeastInflight {
    fn choose(&mut self, _now: Time, piece: &Piece, rails: &[Rail]) -> usize {
        // Picoseconds until it is through.
        let through = |rail: &Rail| {
            let bytes = u128::from(rail.backlog) + u128::from(piece.bytes.max(1));
            let penalty = if rail.far { 100 + u128::from(self.numa_penalty) } else { 100 };
            bytes * penalty * 10_000_000_000 / u128::from(rail.rate.max(1))
        };
        (0..rails.len()).min_by_key(|i| (through(&rails[*i]), *i)).unwrap_or(0)
    }
    fn measures(&self) -> bool {
        true
    }
}

/// What goes over a path: bytes over the time in which there were some under way, both averaged exponentially.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bandwidth {
    bytes: u64,
    /// Picoseconds.
    time: u64,
    /// When something last completed.
    last: Time,
}

impl Bandwidth {
    /// So many bytes, posted then, have completed. Time in which nothing was under way does not count.
    pub fn completed(&mut self, now: Time, posted: Time, bytes: u64, policy: &LeastInflight) {
        let busy = now.since(self.last.max(posted)).0;
        self.last = self.last.max(now);
        let window = u64::from(policy.window.max(1));
        let fade = |sum: u64, new: u64| (sum - sum / window).saturating_add(new);
        (self.bytes, self.time) = (fade(self.bytes, bytes), fade(self.time, busy));
    }

    /// Bytes per second, of a path whose ports could do `line`.
    pub fn rate(&self, now: Time, line: u64, policy: &LeastInflight) -> u64 {
        if self.bytes == 0 || self.time == 0 {
            return line;
        }
        let measured = u128::from(self.bytes) * 1_000_000_000_000 / u128::from(self.time);
        let measured = measured.clamp(1, line.max(1).into());
        let (age, memory) = (u128::from(now.since(self.last).0), u128::from(policy.memory.0.max(1)));
        let forgotten = (u128::from(line) - measured.min(line.into())) * age.min(memory) / memory;
        (measured + forgotten) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Rank;
    use proptest::prelude::*;

    const MB: u64 = 1_000_000;

    fn piece(bytes: u64) -> Piece {
        Piece { room: 1, rank: Rank(0), nth: 0, bytes }
    }

    proptest! {
        /// Two rails of any speed, always with work: the policy learns the speeds, and both end together, within a piece.
        #[test]
        fn rails_end_together(speeds in prop::array::uniform2(1u64..20), sizes in prop::collection::vec(1u64..50, 200)) {
            let mut policy = LeastInflight::default();
            // Bytes a second: speed MB.
            let (mut free, mut backlog, mut paths) = ([0u64; 2], [0u64; 2], [Bandwidth::default(); 2]);
            let mut queue: Vec<(u64, usize, u64)> = Vec::new();
            let mut now = 0;
            for size in sizes {
                // Eight pieces are under way at a time.
                if queue.len() >= 8 {
                    queue.sort_unstable();
                    let (at, rail, bytes) = queue.remove(0);
                    now = at;
                    backlog[rail] -= bytes;
                    paths[rail].completed(Time(now), Time(0), bytes, &policy);
                }
                let rate = |i: usize| paths[i].rate(Time(now), 20 * MB, &policy);
                let rails = [0, 1].map(|i| Rail { backlog: backlog[i], rate: rate(i), far: false });
                let bytes = size * 1000;
                let chosen = policy.choose(Time(now), &piece(bytes), &rails);
                // In picoseconds.
                free[chosen] = free[chosen].max(now) + bytes * MB / speeds[chosen];
                backlog[chosen] += bytes;
                queue.push((free[chosen], chosen, bytes));
            }
            // The larger of a piece on the slower rail, and what was given out before anything was measured.
            let slower = *speeds.iter().min().unwrap();
            prop_assert!(free[0].abs_diff(free[1]) <= 9 * 50_000 * MB / slower, "{:?}", free);
        }
    }

    #[test]
    fn a_slow_rail_is_tried_again() {
        let mut policy = LeastInflight::default();
        let mut path = Bandwidth::default();
        path.completed(Time(Span::s(1).0), Time(0), MB, &policy);
        assert_eq!(path.rate(Time(Span::s(1).0), 100 * MB, &policy), MB);
        let rails = |now: Time| {
            [(path.rate(now, 100 * MB, &policy), false), (50 * MB, false)].map(|(rate, far)| Rail {
                backlog: 0,
                rate,
                far,
            })
        };
        let (soon, late) = (rails(Time(Span::s(1).0)), rails(Time(Span::s(2).0)));
        assert_eq!(policy.choose(Time(0), &piece(MB), &soon), 1);
        assert_eq!(policy.choose(Time(0), &piece(MB), &late), 0);
    }

    #[test]
    fn another_numa_node_is_taken_when_it_is_quicker_all_the_same() {
        let mut policy = LeastInflight { numa_penalty: 50, ..LeastInflight::default() };
        let rails =
            |near| [Rail { backlog: near, rate: MB, far: false }, Rail { backlog: 0, rate: MB, far: true }];
        assert_eq!(policy.choose(Time(0), &piece(100), &rails(49)), 0);
        assert_eq!(policy.choose(Time(0), &piece(100), &rails(51)), 1);
    }
}
