//! A queue of jobs by a key, ties by arrival: what policies that have a key share.

use super::{Job, JobId};
use crate::time::Time;
use std::collections::{BTreeMap, BTreeSet};

/// Jobs, the one with the lowest key first.
#[derive(Debug)]
pub(super) struct Sorted<K> {
    queue: BTreeSet<(K, Time, JobId)>,
    keys: BTreeMap<JobId, (K, Time)>,
}

impl<K> Default for Sorted<K> {
    fn default() -> Self {
        Self { queue: BTreeSet::new(), keys: BTreeMap::new() }
    }
}

impl<K: Ord + Copy> Sorted<K> {
    pub(super) fn push(&mut self, key: K, job: &Job) {
        if let Some((old, arrived)) = self.keys.insert(job.id, (key, job.arrived)) {
            self.queue.remove(&(old, arrived, job.id));
        }
        self.queue.insert((key, job.arrived, job.id));
    }
    pub(super) fn first(&self) -> Option<JobId> {
        self.queue.first().map(|(_, _, id)| *id)
    }
    pub(super) fn change(&mut self, id: JobId, key: K) {
        if let Some((old, arrived)) = self.keys.get_mut(&id) {
            self.queue.remove(&(*old, *arrived, id));
            *old = key;
            self.queue.insert((key, *arrived, id));
        }
    }
    pub(super) fn remove(&mut self, id: JobId) {
        if let Some((key, arrived)) = self.keys.remove(&id) {
            self.queue.remove(&(key, arrived, id));
        }
    }
}
