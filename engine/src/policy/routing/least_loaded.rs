//! Fewest tokens under way.

use super::{Ask, Choice, Routing, least};

/// Fewest tokens under way, ties to fewer requests, then to the lowest instance. Promises that no instance is chosen while another has fewer.
///
/// A token under way counts until its request has ended, also on prefill, which has long done its part: with long outputs prefill's load is
/// that of the past.
#[derive(Debug, Default)]
pub struct LeastLoaded;

impl Routing for LeastLoaded {
    fn choose(&mut self, ask: &Ask<'_>) -> Choice {
        let of = |side| least(side, |c| (c.tokens, c.requests));
        Choice { prefill: of(ask.prefill), decode: of(ask.decode) }
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
        fn picks_the_least(prefill in loads(), decode in loads()) {
            let choice = LeastLoaded.choose(&ask(&Request::default(), &candidates(&prefill), &candidates(&decode)));
            prop_assert!(prefill.iter().all(|load| *load >= prefill[choice.prefill]));
            prop_assert!(decode.iter().all(|load| *load >= decode[choice.decode]));
        }
    }
}
