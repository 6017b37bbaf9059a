//! What of a decode node changes, for whoever must tell two of its states apart; left out is what
//! [`crate::transfer::Target`] leaves out too, and when things happened. Steps of the batch and admissions are counted from the present.

use super::DecodeNode;
use crate::registry::RoomKey;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt::{Debug, Formatter, Result};

impl Debug for DecodeNode {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let Self {
            config: _,
            compute: _,
            client,
            events,
            sink,
            peers,
            pools,
            jobs,
            waiting,
            admitted,
            orders: _,
            steps,
            step_ends,
            wakes: _,
            joining,
            finishing,
            growing,
            draining,
            running,
            batch,
            context,
            ended,
            leaving,
            short: _,
            counters: _,
            failed,
        } = self;
        let ahead = |heap: &BinaryHeap<Reverse<(u64, RoomKey)>>| {
            let mut all: Vec<_> =
                heap.iter().map(|Reverse((step, key))| (step.wrapping_sub(*steps), *key)).collect();
            all.sort_unstable();
            all
        };
        let mut outcomes: Vec<_> = ended.iter().collect();
        outcomes.sort_unstable_by_key(|(key, _)| *key);
        f.debug_struct("DecodeNode")
            .field("client", client)
            .field("events", events)
            .field("sink", &sink.as_ref().map(|sink| sink.end()))
            .field("peers", peers)
            .field("pools", pools)
            .field("jobs", jobs)
            .field("waiting", waiting)
            .field("admitted", admitted)
            .field("steps", &(step_ends.is_some(), joining, ahead(finishing), ahead(growing)))
            .field("draining", draining)
            .field("running", &running.values())
            .field("batch", &(batch, context))
            .field("ended", &outcomes)
            .field("leaving", leaving)
            .field("failed", failed)
            .finish_non_exhaustive()
    }
}
