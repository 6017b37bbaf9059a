//! What of a target changes, for whoever must tell two of its states apart; left out is what
//! [the initiator](crate::transfer::Initiator) leaves out too.

use super::link::Link;
use super::{PortReceives, Target};
use std::fmt::{Debug, Formatter, Result};

impl Debug for Target {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let Self {
            config: _,
            memory: _,
            ports,
            links,
            asked,
            starved,
            uses: _,
            qps: _,
            rooms,
            free_rooms,
            by_key: _,
            slots,
            free_slots,
            tombstones,
            timers,
            news,
            lease_until,
            stats: _,
            recheck,
            stage,
            scatters,
            untold,
        } = self;
        let timed = rooms.iter().flatten().map(|room| timers.get(room.spec.key).is_some());
        f.debug_struct("Target")
            .field("ports", ports)
            .field("links", links)
            .field("asked", asked)
            .field("starved", starved)
            .field("rooms", rooms)
            .field("free_rooms", free_rooms)
            .field("slots", slots)
            .field("free_slots", free_slots)
            .field("tombstones", tombstones)
            .field("timers", &timed.collect::<Vec<_>>())
            .field("news", news)
            .field("lease_until", lease_until)
            .field("recheck", recheck)
            .field("stage", stage)
            .field("scatters", scatters)
            .field("untold", untold)
            .finish_non_exhaustive()
    }
}

impl Debug for PortReceives {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let Self { srq: _, cq, posted, promised, next: _, health } = self;
        (cq, posted, promised, health).fmt(f)
    }
}

impl Debug for Link {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        self.show(f)
    }
}
