//! One after the other.

use super::{Ask, Choice, Routing};

/// One after the other, whatever they have to do. Promises that the numbers of requests sent to two instances that were always there differ
/// by one at most.
///
/// It needs to know nothing, and is the best there is when all requests are alike. When they are not, long ones meet by chance.
#[derive(Debug, Default)]
pub struct RoundRobin {
    asked: usize,
}

impl Routing for RoundRobin {
    fn choose(&mut self, ask: &Ask<'_>) -> Choice {
        let n = self.asked;
        self.asked = n.wrapping_add(1);
        Choice { prefill: n % ask.prefill.len().max(1), decode: n % ask.decode.len().max(1) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{ask, candidates, loads};
    use super::*;
    use crate::node::Request;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn is_even(loads in loads(), asks in 1usize..40) {
            let (candidates, mut policy) = (candidates(&loads), RoundRobin::default());
            let mut counts = vec![[0u32; 2]; loads.len()];
            for _ in 0..asks {
                let choice = policy.choose(&ask(&Request::default(), &candidates, &candidates));
                counts[choice.prefill][0] += 1;
                counts[choice.decode][1] += 1;
            }
            for side in 0..2 {
                let of = || counts.iter().map(|count| count[side]);
                prop_assert!(of().max().unwrap() - of().min().unwrap() <= 1);
            }
        }
    }
}
