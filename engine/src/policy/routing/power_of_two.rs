//! The better of two that were drawn at random.

use super::{Ask, Candidate, Choice, Routing};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// Draws two instances of a side, each pair as likely as any other, and takes the one with fewer tokens under way (Mitzenmacher, "The power
/// of two choices in randomized load balancing", 2001). Promises that the worse of the two is never chosen, and so never the worst of all.
///
/// It is for routers that see loads late: whoever follows the least of stale loads sends everything to the same instance until the next
/// news, while two draws spread. With one router, which knows what it has sent, least-loaded sees more and does better.
#[derive(Debug)]
pub struct PowerOfTwo {
    random: ChaCha8Rng,
}

/// Makes the stream another than those of the simulator and the workload.
const STREAM: u64 = 0x7077_725f_6f66_5f32;

impl PowerOfTwo {
    /// Draws from a stream of its own.
    pub fn new(seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(STREAM);
        Self { random }
    }

    fn draw(&mut self, side: &[Candidate]) -> usize {
        if side.len() < 2 {
            return 0;
        }
        // Drawn as 32 bits, so that it is the same draw whatever the width of an index.
        let count = u32::try_from(side.len()).unwrap_or(u32::MAX);
        let first = self.random.random_range(0..count) as usize;
        let other = self.random.random_range(0..count - 1) as usize;
        let second = other + usize::from(other >= first);
        let load = |i: usize| (side[i].tokens, side[i].requests);
        if load(second) < load(first) { second } else { first }
    }
}

impl Routing for PowerOfTwo {
    fn choose(&mut self, ask: &Ask<'_>) -> Choice {
        let prefill = self.draw(ask.prefill);
        Choice { prefill, decode: self.draw(ask.decode) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{ask, candidates, loads};
    use super::*;
    use crate::node::Request;
    use proptest::prelude::*;

    proptest! {
        /// The drawn pair is hidden; what shows is that the worst alone is never chosen, and that with two the better always is.
        #[test]
        fn the_worse_of_two_is_never_chosen(loads in loads(), seed in any::<u64>()) {
            let (candidates, mut policy) = (candidates(&loads), PowerOfTwo::new(seed));
            let worst = *loads.iter().max().unwrap();
            let alone = loads.len() > 1 && loads.iter().filter(|load| **load == worst).count() == 1;
            for _ in 0..50 {
                let choice = policy.choose(&ask(&Request::default(), &candidates, &candidates));
                for chosen in [choice.prefill, choice.decode] {
                    prop_assert!(!alone || loads[chosen] < worst, "{loads:?}: {chosen}");
                    if loads.len() == 2 {
                        prop_assert_eq!(loads[chosen], *loads.iter().min().unwrap());
                    }
                }
            }
        }
    }

    #[test]
    fn every_pair_is_as_likely() {
        // Of four with rising loads the n-th is chosen when it is drawn with a worse one: 3, 2, 1 and 0 of 6 pairs.
        let candidates = candidates(&[1, 2, 3, 4]);
        let mut policy = PowerOfTwo::new(7);
        let mut counts = [0u32; 4];
        for _ in 0..6000 {
            counts[policy.choose(&ask(&Request::default(), &candidates, &candidates)).prefill] += 1;
        }
        for (count, right) in counts.iter().zip([3000, 2000, 1000, 0u32]) {
            assert!(count.abs_diff(right) < 200, "{counts:?}");
        }
        assert_eq!(counts[3], 0);
    }

    #[test]
    fn same_seed_same_draws() {
        let candidates = candidates(&[0; 8]);
        let draws = |seed| {
            let mut policy = PowerOfTwo::new(seed);
            (0..50)
                .map(|_| policy.choose(&ask(&Request::default(), &candidates, &candidates)))
                .collect::<Vec<_>>()
        };
        assert_eq!(draws(1), draws(1));
        assert_ne!(draws(1), draws(2));
    }
}
