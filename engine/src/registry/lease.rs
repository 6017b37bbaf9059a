//! Who is registered: instances and their leases, who is gone, and who may still come back after a restart.

use super::{Facts, Role};
use crate::id::{InstanceId, NodeId};
use crate::map::Map;
use crate::time::Time;
use std::collections::{BTreeMap, VecDeque};

/// What waits for an instance of an earlier epoch to come back.
#[derive(Clone, Debug)]
pub(super) enum Waiting {
    /// This message, as bytes, is for it.
    Message(Box<[u8]>),
    /// This instance asked for its facts.
    Query(InstanceId),
}

/// A registered instance.
#[derive(Clone, Debug)]
pub(super) struct Instance {
    pub(super) slot: u32,
    pub(super) node: NodeId,
    pub(super) role: Role,
    pub(super) facts: Option<Box<Facts>>,
    /// Until when it is short of pages or slots, as far as it said.
    pub(super) short: Time,
}

/// What is known of an instance id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Registered, over the session in this slot.
    Here(u32),
    /// Of an earlier epoch, and it may still come back.
    Awaited,
    /// It never was, or left, or its lease expired.
    Gone,
}

/// Members by instance id. Ids hold the epoch in which they were given out in their upper half, so that none is used twice.
#[derive(Clone, Debug, Default)]
pub(super) struct Members {
    epoch: u32,
    given: u32,
    /// For lookups; `all` has the order.
    slots: Map<InstanceId, u32>,
    all: BTreeMap<InstanceId, Instance>,
    /// Ids of earlier epochs that are gone, oldest first.
    gone: VecDeque<InstanceId>,
    is_gone: Map<InstanceId, ()>,
    /// Whether instances of earlier epochs may still come back.
    recovering: bool,
    awaited: BTreeMap<InstanceId, Vec<Waiting>>,
    waiting: usize,
    /// Layout fingerprint of the members, and whose it was first.
    fingerprint: Option<(u64, InstanceId)>,
}

/// Gone ids of earlier epochs that are remembered.
const GONE: usize = 1 << 14;

fn epoch_of(instance: InstanceId) -> u32 {
    (instance.0 >> 32) as u32
}

impl Members {
    pub(super) fn new(epoch: u32) -> Self {
        // An id has its epoch above zero, so nothing can come back to the first registry.
        Self { epoch, recovering: epoch > 1, ..Self::default() }
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }
    pub(super) fn recovering(&self) -> bool {
        self.recovering
    }
    pub(super) fn get(&self, instance: InstanceId) -> Option<&Instance> {
        self.all.get(&instance)
    }
    pub(super) fn get_mut(&mut self, instance: InstanceId) -> Option<&mut Instance> {
        self.all.get_mut(&instance)
    }
    pub(super) fn iter(&self) -> impl Iterator<Item = (InstanceId, &Instance)> {
        self.all.iter().map(|(id, instance)| (*id, instance))
    }
    /// Messages and queries kept for instances that may come back.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// What is known of an instance. One that somebody is told is gone stays so: it may not come back after recovery, when others
    /// have acted on that.
    #[inline]
    pub(super) fn standing(&mut self, instance: InstanceId) -> Standing {
        if let Some(slot) = self.slots.get(&instance) {
            return Standing::Here(*slot);
        }
        let earlier = epoch_of(instance) < self.epoch && epoch_of(instance) > 0;
        if self.recovering && earlier && !self.is_gone.contains(&instance) {
            return Standing::Awaited;
        }
        self.give_up(instance);
        Standing::Gone
    }

    /// Remembers that an instance of an earlier epoch is gone.
    fn give_up(&mut self, id: InstanceId) {
        let earlier = epoch_of(id) < self.epoch && epoch_of(id) > 0;
        if earlier && self.is_gone.insert(id, ()).is_none() {
            self.gone.push_back(id);
            if self.gone.len() > GONE
                && let Some(oldest) = self.gone.pop_front()
            {
                self.is_gone.remove(&oldest);
            }
        }
    }

    /// Whether this id may be taken again, and if not, why.
    pub(super) fn may_claim(&self, claim: InstanceId) -> Result<(), String> {
        if let Some(holder) = self.all.get(&claim) {
            return Err(format!("instance {claim} is registered by node {}", holder.node));
        }
        if epoch_of(claim) == 0 || epoch_of(claim) >= self.epoch || self.is_gone.contains(&claim) {
            return Err(format!(
                "instance {claim} was given up: its lease expired, or it left; register as a new one"
            ));
        }
        Ok(())
    }

    /// Whether an instance with this fingerprint could talk to those that are here.
    pub(super) fn fits(&self, fingerprint: u64) -> Result<(), String> {
        match self.fingerprint {
            Some((ours, first)) if ours != fingerprint => Err(format!(
                "layout fingerprint {fingerprint:#018x}, but instance {first} and all others have {ours:#018x}: model, \
                 dtype, components and direction (push, pull) must be equal on all sides"
            )),
            _ => Ok(()),
        }
    }

    /// Adds an instance; `claim` is the id it had before, or 0. Returns its id and what waited for it.
    pub(super) fn insert(&mut self, claim: InstanceId, instance: Instance) -> (InstanceId, Vec<Waiting>) {
        let id = if claim == InstanceId(0) {
            self.given += 1;
            InstanceId(u64::from(self.epoch) << 32 | u64::from(self.given))
        } else {
            claim
        };
        if let Some(facts) = &instance.facts {
            self.fingerprint.get_or_insert((facts.fingerprint, id));
        }
        self.slots.insert(id, instance.slot);
        self.all.insert(id, instance);
        let waited = self.awaited.remove(&id).unwrap_or_default();
        self.waiting -= waited.len();
        (id, waited)
    }

    /// Takes an instance out for good; what waited for it comes back.
    pub(super) fn remove(&mut self, id: InstanceId) -> Vec<Waiting> {
        self.slots.remove(&id);
        self.all.remove(&id);
        if !self.all.values().any(|instance| instance.facts.is_some()) {
            self.fingerprint = None;
        }
        self.give_up(id);
        let waited = self.awaited.remove(&id).unwrap_or_default();
        self.waiting -= waited.len();
        waited
    }

    /// Notes that somebody knows this awaited instance, with what is for it.
    pub(super) fn wait_for(&mut self, instance: InstanceId, what: Option<Waiting>) {
        self.waiting += usize::from(what.is_some());
        self.awaited.entry(instance).or_default().extend(what);
    }

    /// Ends the time in which instances may come back; returns those that were named and did not.
    pub(super) fn end_recovery(&mut self) -> Vec<InstanceId> {
        self.recovering = false;
        self.awaited.keys().copied().collect()
    }
}
