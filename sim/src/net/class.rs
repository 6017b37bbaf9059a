//! Flows that share a rate, and what each still has to go.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// Class of a flow that waits for its start.
pub(super) const WAITING: u32 = u32::MAX;
/// Number of a place in the flow table that is free.
pub(super) const FREE: u64 = u64::MAX;

/// What flows must have in common to have one rate. Weight and cap by their bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct ClassKey {
    pub(super) ports: u64,
    pub(super) choice: u32,
    pub(super) weight: u64,
    pub(super) cap: u64,
}

#[derive(Clone, Debug)]
pub(super) struct Flow {
    /// Number of its start, or [`FREE`].
    pub(super) seq: u64,
    /// Service of its class at which it ends, bytes.
    pub(super) target: f64,
    /// All its bytes.
    pub(super) bytes: f64,
    pub(super) class: u32,
    pub(super) tag: u32,
}

/// Where a flow of a class ends; the nearest comes out first, then the earliest started.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Target {
    pub(super) at: f64,
    pub(super) seq: u64,
    pub(super) slot: u32,
}

impl Eq for Target {}
impl PartialOrd for Target {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Target {
    fn cmp(&self, other: &Self) -> Ordering {
        other.at.total_cmp(&self.at).then(other.seq.cmp(&self.seq))
    }
}

/// The targets of a class. Most classes have few flows, so the nearest lies apart and costs no
/// allocation.
#[derive(Clone, Debug, Default)]
pub(super) struct Targets {
    pub(super) first: Option<Target>,
    rest: BinaryHeap<Target>,
}

impl Targets {
    pub(super) fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.rest.len()
    }

    pub(super) fn push(&mut self, target: Target) {
        match &mut self.first {
            None => self.first = Some(target),
            Some(first) if target > *first => self.rest.push(std::mem::replace(first, target)),
            Some(_) => self.rest.push(target),
        }
    }

    pub(super) fn pop(&mut self) {
        self.first = self.rest.pop();
    }

    pub(super) fn clear(&mut self) {
        self.first = None;
        self.rest.clear();
    }

    /// Keeps the entries that `keep` is true for, which may change them.
    pub(super) fn rebuild(&mut self, mut keep: impl FnMut(&mut Target) -> bool) {
        let mut all = std::mem::take(&mut self.rest).into_vec();
        all.extend(self.first.take());
        all.retain_mut(|target| keep(target));
        self.rest = BinaryHeap::from(all);
        self.first = self.rest.pop();
    }
}

/// Flows of one path, weight and cap, which therefore have one rate.
#[derive(Clone, Debug)]
pub(super) struct Class {
    pub(super) key: ClassKey,
    /// Bytes that each flow which was always there had carried at `since`.
    pub(super) service: f64,
    pub(super) since: u64,
    /// Bytes per picosecond of each flow.
    pub(super) rate: f64,
    /// Flows under way; `targets` may also hold entries of flows that left.
    pub(super) live: u32,
    pub(super) targets: Targets,
    /// Its flows changed and its next end was not worked out since.
    pub(super) queued: bool,
}

impl Class {
    /// Of each flow.
    pub(super) fn weight(&self) -> f64 {
        f64::from_bits(self.key.weight)
    }

    pub(super) fn service_at(&self, now: u64) -> f64 {
        self.service + self.rate * (now - self.since) as f64
    }
}

/// Whether an entry of a class's heap still stands for a flow of it.
pub(super) fn is_live(flows: &[Flow], class: u32, entry: &Target) -> bool {
    let flow = &flows[entry.slot as usize];
    flow.seq == entry.seq && flow.class == class && flow.target == entry.at
}
