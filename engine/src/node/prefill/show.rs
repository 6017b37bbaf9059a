//! What of a prefill node changes, for whoever must tell two of its states apart; left out is what
//! [`crate::transfer::Initiator`] leaves out too, and when things happened.

use super::{Job, PrefillNode, Running, StepPart};
use std::fmt::{Debug, Formatter, Result};

impl Debug for PrefillNode {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let Self {
            config: _,
            compute: _,
            client,
            events,
            source,
            peers,
            pools,
            caches,
            jobs,
            waiting,
            step,
            chunks: _,
            spare_parts: _,
            leaving,
            short: _,
            counters: _,
            failed,
        } = self;
        f.debug_struct("PrefillNode")
            .field("client", client)
            .field("events", events)
            .field("source", &source.as_ref().map(|source| source.end()))
            .field("peers", peers)
            .field("pools", pools)
            .field("caches", caches)
            .field("jobs", jobs)
            .field("waiting", waiting)
            .field("step", step)
            .field("leaving", leaving)
            .field("failed", failed)
            .finish_non_exhaustive()
    }
}

impl Debug for Job {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let Self {
            request,
            group,
            table,
            placed,
            shared,
            done,
            cached,
            came: _,
            began: _,
            ended: _,
            computing,
            released,
        } = self;
        (request.id, group, table.runs(), placed, shared, done, cached, computing, released).fmt(f)
    }
}

impl Debug for Running {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let Self { started: _, span, parts, layers, next: _ } = self;
        (span, parts, layers).fmt(f)
    }
}

impl Debug for StepPart {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let Self { key, from, to } = self;
        (key, from, to).fmt(f)
    }
}
