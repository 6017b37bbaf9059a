//! A room's parts on one port, in the queues of the order policies.

use super::Initiator;
use super::room::PartState;
use crate::id::PortId;
use crate::policy::JobId;
use std::collections::VecDeque;
use std::ops::Range;

/// A room's parts on one port, as the order policy sees them.
#[derive(Clone, Debug, Default)]
pub(super) struct JobState {
    pub room: u32,
    pub port: PortId,
    pub parts: VecDeque<u32>,
    /// Staged parts that are gathered: these go first.
    pub ready: VecDeque<u32>,
    pub left: u64,
    pub queued: bool,
    /// The wire for whose send queue it waits.
    pub blocked: Option<u32>,
}

impl JobState {
    /// Whether something of it is to be posted.
    pub(super) fn has_work(&self) -> bool {
        !(self.parts.is_empty() && self.ready.is_empty())
    }
}

impl Initiator {
    /// Puts parts into the queues of their ports.
    pub(super) fn enqueue(&mut self, index: u32, parts: Range<u32>) {
        let Some(room) = self.rooms.get_mut(index as usize).and_then(Option::as_mut) else { return };
        let Some(link) = self.links.get(&room.spec.peer) else { return };
        for p in parts {
            let part = &room.parts[p as usize];
            if part.state != PartState::Waiting {
                continue;
            }
            let port = link.pairing.wires[part.wire as usize].src_port;
            let found = room.jobs.iter().copied().find(|id| self.jobs[*id as usize].port == port);
            let id = found.unwrap_or_else(|| {
                let id = self.free_jobs.pop().unwrap_or_else(|| {
                    self.jobs.push(JobState::default());
                    (self.jobs.len() - 1) as JobId
                });
                let job = &mut self.jobs[id as usize];
                // In the memory of one that is over, whose queues are empty.
                (job.room, job.port, job.left) = (index, port, 0);
                room.jobs.push(id);
                id
            });
            let job = &mut self.jobs[id as usize];
            job.left += part.bytes.max(1);
            // One that is being gathered is put in when that is over.
            if !part.is_gathering() {
                job.parts.push_back(p);
            }
        }
        if link.is_up() {
            self.queue_jobs(index);
        }
    }

    /// A part that was being gathered comes back to its job. Without one the link is down, and all that waits is put into queues when it is
    /// connected anew.
    pub(super) fn put_back(&mut self, index: u32, p: u32) {
        let Some(room) = self.rooms.get(index as usize).and_then(Option::as_ref) else { return };
        let Some(link) = self.links.get(&room.spec.peer) else { return };
        let part = &room.parts[p as usize];
        let port = link.pairing.wires[part.wire as usize].src_port;
        match room.jobs.iter().copied().find(|id| self.jobs[*id as usize].port == port) {
            Some(id) if part.lacks_gather() => self.jobs[id as usize].parts.push_front(p),
            Some(id) => self.jobs[id as usize].ready.push_back(p),
            None => return,
        }
        if link.is_up() {
            self.queue_jobs(index);
        }
    }

    /// Offers a room's jobs to the order policies.
    pub(super) fn queue_jobs(&mut self, index: u32) {
        let Some(room) = self.rooms.get_mut(index as usize).and_then(Option::as_mut) else { return };
        for id in &room.jobs {
            let job = &mut self.jobs[*id as usize];
            let order = &mut self.ports[job.port.index()].order;
            if !job.has_work() || job.blocked.is_some() {
                continue;
            }
            if job.queued {
                order.update(*id, job.left);
            } else {
                job.queued = true;
                order.push(room.spec.job(*id, room.arrived, job.left));
            }
        }
    }

    /// Takes a room's jobs away from the order policies.
    pub(super) fn drop_jobs(&mut self, index: u32) {
        let Some(room) = self.rooms.get_mut(index as usize).and_then(Option::as_mut) else { return };
        let mut link = self.links.get_mut(&room.spec.peer);
        for id in room.jobs.drain(..) {
            let job = &mut self.jobs[id as usize];
            // The id is used again: no list may keep it.
            if let Some(wire) = job.blocked.take()
                && let Some(wire) = link.as_mut().and_then(|link| link.wires.get_mut(wire as usize))
            {
                wire.blocked.retain(|other| *other != id);
            }
            if job.queued {
                self.ports[job.port.index()].order.remove(id);
                job.queued = false;
            }
            job.parts.clear();
            job.ready.clear();
            self.free_jobs.push(id);
        }
    }
}
