//! What of an initiator changes, for whoever must tell two of its states apart.
//!
//! Left out is what never changes ([`Initiator::memory`], configuration, facts of peers), what can be worked out from the rest (lookup
//! tables), memory kept for reuse, when deadlines pass ([`crate::transfer::End::expire`]), and what only statistics or the choice between several links
//! go by. A new field is an error here until somebody has said which of these it is.

use super::link::Link;
use super::room::{Part, Room};
use super::{Initiator, PortQueue};
use std::fmt::{Debug, Formatter, Result};

impl Debug for Initiator {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let Self {
            config: _,
            depth: _,
            memory: _,
            ports,
            links,
            qps: _,
            rooms,
            free_rooms,
            spare_rooms: _,
            by_key: _,
            jobs,
            free_jobs,
            uses: _,
            starved,
            free_slots,
            tombstones,
            timers,
            news,
            lease_until,
            stats: _,
            plans: _,
            rails: _,
            measures: _,
            homes: _,
            doubts,
            recheck,
            sources,
            starved_rooms,
            rates: _,
        } = self;
        let timed = rooms.iter().flatten().map(|room| timers.get(room.spec.key).is_some());
        f.debug_struct("Initiator")
            .field("ports", ports)
            .field("links", links)
            .field("rooms", rooms)
            .field("free_rooms", free_rooms)
            .field("jobs", jobs)
            .field("free_jobs", free_jobs)
            .field("starved", starved)
            .field("free_slots", free_slots)
            .field("tombstones", tombstones)
            .field("timers", &timed.collect::<Vec<_>>())
            .field("news", news)
            .field("lease_until", lease_until)
            .field("doubts", doubts)
            .field("recheck", recheck)
            .field("sources", sources)
            .field("starved_rooms", starved_rooms)
            .finish_non_exhaustive()
    }
}

/// What the order policy holds is in the jobs, but for its own memory of the past (deficits, say).
impl Debug for PortQueue {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let Self { order: _, posted_bytes, posted_requests, cq, health, most_requests: _ } = self;
        (posted_bytes, posted_requests, cq, health).fmt(f)
    }
}

impl Debug for Link {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let Self {
            facts: _,
            pairing: _,
            wires,
            rooms,
            outstanding,
            state,
            heard,
            accepted,
            fence_epoch,
            live,
            pending,
            asked,
            used: _,
            served,
            yielding,
            wanted,
            renewing,
            usable,
            offered,
            paths,
            path_of: _,
            banned,
        } = self;
        (wires, rooms, outstanding, state, heard, accepted, fence_epoch, live).fmt(f)?;
        (pending, asked, served, yielding, wanted, renewing, usable, offered).fmt(f)?;
        (paths, banned).fmt(f)
    }
}

impl Debug for Room {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let Self {
            spec,
            cached,
            arrived: _,
            src,
            landing,
            told,
            remote,
            pieces,
            all_produced,
            sealed,
            cuts,
            numbers,
            parts,
            undone,
            jobs,
            outstanding,
            started,
            dirty,
            retries,
            ending,
            sums,
            work_requests: _,
            bytes: _,
            stage,
        } = self;
        (spec.key, cached, src, landing, told, remote, pieces, jobs).fmt(f)?;
        (all_produced, sealed, cuts, numbers, parts, undone).fmt(f)?;
        (outstanding, started, dirty, retries, ending, sums, stage).fmt(f)
    }
}

/// Its plans follow from the room's pages and pieces.
impl Debug for Part {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let Self {
            feed,
            wire,
            number,
            plans: _,
            window,
            cursor,
            bytes: _,
            seal,
            aux,
            state,
            home,
            acked,
            stage,
        } = self;
        (feed, wire, number, window, cursor, seal, aux, state, home, acked, stage).fmt(f)
    }
}
