//! Which queue pairs of a link are connected, and which of them carries what was meant for one that is not.
//!
//! Each side leaves out queue pairs whose port is down, or failed lately, in its offer or answer, but never all between two ranks: then they
//! wait for the port as they would without another. Both sides know the outcome, so both know how many parts a queue pair may carry.

use super::pairing::{Pairing, Wire};
use crate::fabric::Endpoint;
use crate::registry::Endpoints;

/// By queue pair of a link, in the order of [`Pairing::wires`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Usable {
    /// Those that are left out; empty if none is.
    out: Vec<bool>,
}

impl Usable {
    /// All but those to be avoided, and those that the other side has left out already.
    pub(super) fn without(pairing: &Pairing, theirs: &Self, avoid: impl Fn(usize, &Wire) -> bool) -> Self {
        let mut out: Vec<bool> = Vec::new();
        let rails = usize::from(pairing.rails.max(1));
        for (base, wires) in pairing.wires.chunks(rails).enumerate().map(|(i, wires)| (i * rails, wires)) {
            let left = |i: usize| theirs.has(base + i) && !avoid(base + i, &wires[i]);
            let some = (0..wires.len()).any(left);
            for i in 0..wires.len() {
                if !(if some { left(i) } else { theirs.has(base + i) }) {
                    out.resize(pairing.wires.len(), false);
                    out[base + i] = true;
                }
            }
        }
        Self { out }
    }

    /// As the other side's endpoints say. None if they leave two ranks without a queue pair, or have one that `ours` leaves out.
    pub(super) fn of(pairing: &Pairing, endpoints: &Endpoints, ours: &Self) -> Option<Self> {
        if endpoints.len() != pairing.wires.len() {
            return None;
        }
        let out: Vec<bool> = endpoints.iter().map(Endpoint::is_none).collect();
        let stranded =
            out.chunks(usize::from(pairing.rails.max(1))).any(|rails| rails.iter().all(|out| *out));
        let more = (0..out.len()).any(|wire| !out[wire] && !ours.has(wire));
        let out = if out.contains(&true) { out } else { Vec::new() };
        (!stranded && !more).then_some(Self { out })
    }

    /// Whether none is left out.
    pub(super) fn is_whole(&self) -> bool {
        self.out.is_empty()
    }

    /// Whether a queue pair is connected.
    pub(super) fn has(&self, wire: usize) -> bool {
        !self.out.get(wire).copied().unwrap_or(false)
    }

    /// Which rail carries what was meant for `home`, where the first of `rails` is queue pair `base`. What was meant for those left out is
    /// spread over the others.
    pub(super) fn carrier(&self, base: usize, rails: u16, home: u16) -> u16 {
        if self.is_whole() || self.has(base + usize::from(home)) {
            return home;
        }
        let has = |rail: &u16| self.has(base + usize::from(*rail));
        let (live, before) = ((0..rails).filter(has).count(), (0..home).filter(|rail| !has(rail)).count());
        (0..rails).filter(has).nth(before % live.max(1)).unwrap_or(home)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fabric::Gid;
    use crate::id::{PortId, Rank};
    use proptest::prelude::*;

    fn pairing(feeds: u16, rails: u16) -> Pairing {
        let wire = |feed, rail| Wire {
            feed,
            src_group: 0,
            dst_group: 0,
            src: Rank(0),
            dst: Rank(feed),
            rail,
            src_port: PortId(rail.into()),
            dst_port: PortId(rail.into()),
        };
        Pairing {
            feeds: Vec::new(),
            dst_ranks: feeds,
            page_tokens: (1, 1),
            feeds_of: Vec::new(),
            wires: (0..feeds).flat_map(|feed| (0..rails).map(move |rail| wire(feed, rail))).collect(),
            rails,
        }
    }

    fn endpoints(usable: &Usable, wires: usize) -> Endpoints {
        let there = Endpoint { qpn: 17, psn: 0, gid: Gid::default(), lid: 0, mtu: 1024 };
        (0..wires).map(|wire| if usable.has(wire) { there } else { Endpoint::NONE }).collect()
    }

    proptest! {
        #[test]
        fn every_feed_keeps_a_rail_and_both_sides_agree(
            (feeds, rails) in (1u16..4, 1u16..5),
            avoid in prop::collection::vec(prop::array::uniform2(any::<bool>()), 16),
        ) {
            let pairing = pairing(feeds, rails);
            let n = pairing.wires.len();
            // The target offers, the initiator leaves more out, the target hears of it.
            let offered = Usable::without(&pairing, &Usable::default(), |wire, _| avoid[wire][0]);
            let heard = Usable::of(&pairing, &endpoints(&offered, n), &Usable::default());
            prop_assert_eq!(heard.as_ref(), Some(&offered));
            let answered = Usable::without(&pairing, &offered, |wire, _| avoid[wire][1]);
            let heard = Usable::of(&pairing, &endpoints(&answered, n), &offered);
            prop_assert_eq!(heard.as_ref(), Some(&answered));
            for feed in 0..usize::from(feeds) {
                let base = feed * usize::from(rails);
                let all = base..base + usize::from(rails);
                let live: Vec<usize> = all.clone().filter(|wire| answered.has(*wire)).collect();
                prop_assert!(!live.is_empty());
                prop_assert!(live.iter().all(|wire| offered.has(*wire)));
                let good = |side: usize| all.clone().any(|wire| !avoid[wire][side] && (side == 0 || offered.has(wire)));
                prop_assert!(!good(1) || live.iter().all(|wire| !avoid[*wire][1]));
                prop_assert!(!good(0) || live.iter().all(|wire| !avoid[*wire][0]));
                // Rails that are there carry their own; the others' share is even.
                let mut extra = vec![0; usize::from(rails)];
                for home in 0..rails {
                    let carrier = answered.carrier(base, rails, home);
                    prop_assert!(answered.has(base + usize::from(carrier)));
                    prop_assert!(carrier == home || !answered.has(base + usize::from(home)));
                    extra[usize::from(carrier)] += u32::from(carrier != home);
                }
                let extras = live.iter().map(|wire| extra[wire - base]);
                prop_assert!(extras.clone().max().unwrap() - extras.min().unwrap() <= 1);
            }
            // What strands a feed, or names a queue pair that was not offered, is refused.
            let mut wrong = endpoints(&answered, n);
            wrong[..usize::from(rails)].fill(Endpoint::NONE);
            prop_assert_eq!(Usable::of(&pairing, &wrong, &offered), None);
            prop_assert_eq!(Usable::of(&pairing, &wrong[1..].to_vec(), &offered), None);
            if !offered.is_whole() {
                prop_assert_eq!(Usable::of(&pairing, &endpoints(&Usable::default(), n), &offered), None);
            }
        }
    }
}
