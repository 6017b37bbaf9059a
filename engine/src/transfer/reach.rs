//! Which ports of two hosts reach each other.

use crate::id::PortId;
use std::sync::Arc;

/// Which port of a prefill host reaches which port of a decode host, by their numbers there. A property of the network, not a choice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    /// Every port reaches every other one.
    #[default]
    Any,
    /// Only the port of the same number: each rail is a network of its own.
    SameRail,
    /// These pairs of (prefill's port, decode's port).
    Pairs(Arc<[(u32, u32)]>),
}

impl Reach {
    /// Whether the two reach each other.
    pub fn joins(&self, prefill: PortId, decode: PortId) -> bool {
        match self {
            Self::Any => true,
            Self::SameRail => prefill == decode,
            Self::Pairs(pairs) => pairs.contains(&(prefill.0, decode.0)),
        }
    }

    /// The two ports of a queue pair: as near to the wanted ones as can be, decode's being the first to give way. None where no port of the
    /// one host reaches a port of the other.
    pub fn nearest(&self, wanted: (PortId, PortId), ports: (usize, usize)) -> Option<(PortId, PortId)> {
        let from = |first: PortId, count: usize| {
            (0..count).map(move |step| PortId(((first.index() + step) % count) as u32))
        };
        from(wanted.0, ports.0)
            .flat_map(|prefill| from(wanted.1, ports.1).map(move |decode| (prefill, decode)))
            .find(|(prefill, decode)| self.joins(*prefill, *decode))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_nearest_ports_that_reach_each_other_are_taken(
            pairs in proptest::collection::vec((0u32..5, 0u32..5), 0..6),
            wanted in (0u32..5, 0u32..5),
            ports in (1usize..5, 1usize..5),
        ) {
            let wanted = (PortId(wanted.0 % ports.0 as u32), PortId(wanted.1 % ports.1 as u32));
            let there = |p: &&(u32, u32)| (p.0 as usize) < ports.0 && (p.1 as usize) < ports.1;
            let possible: Vec<_> = pairs.iter().filter(there).copied().collect();
            let reach = Reach::Pairs(pairs.clone().into());
            match reach.nearest(wanted, ports) {
                None => prop_assert!(possible.is_empty()),
                Some((a, b)) => {
                    prop_assert!(possible.contains(&(a.0, b.0)));
                    // No pair that goes further with prefill's port, nor one as far that goes further with decode's.
                    let steps = |p: (u32, u32)| (
                        (p.0 as usize + ports.0 - wanted.0.index()) % ports.0,
                        (p.1 as usize + ports.1 - wanted.1.index()) % ports.1,
                    );
                    prop_assert_eq!(possible.iter().map(|p| steps(*p)).min(), Some(steps((a.0, b.0))));
                }
            }
            prop_assert_eq!(Reach::Any.nearest(wanted, ports), Some(wanted));
            let same = Reach::SameRail.nearest(wanted, ports);
            prop_assert!(same.is_none_or(|(a, b)| a == b));
            prop_assert!(same.is_some());
        }
    }
}
