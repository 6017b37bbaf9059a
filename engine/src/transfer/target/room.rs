//! The life of a room at the receiver: opened and published, filled, decided, released.

use super::super::news::News;
use super::super::pages::PageTable;
use super::super::wire::{AUX_BYTES, AuxRow, Immediate, SEAL_BYTES, SLOT_BYTES, Seal};
use super::Target;
use super::link::Link;
use super::parts::Source;
use crate::fabric::{Completion, Opcode};
use crate::id::{InstanceId, RequestId};
use crate::node::{Cx, Reason, Step};
use crate::policy::Granularity;
use crate::registry::{LiveRoom, Message, PageList, PageRun, Report, RoomKey};
use crate::time::Span;

/// A room to open.
#[derive(Clone, Debug)]
pub struct TargetRoom {
    /// The room.
    pub key: RoomKey,
    /// Whose it is.
    pub request: RequestId,
    /// The prefill instance.
    pub peer: InstanceId,
    /// This side's DP group.
    pub group: u16,
    /// Prompt tokens.
    pub tokens: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Published, not decided.
    Live,
    /// Everything is in place. Final.
    Success,
    /// Final.
    Failed,
}

/// A room at the receiver.
#[derive(Clone, Debug)]
pub(super) struct Room {
    pub spec: TargetRoom,
    pub slot: u16,
    pub generation: u8,
    pub state: State,
    /// Sources by destination rank of the group.
    pub ranks: Vec<Vec<Source>>,
    /// Sources not yet done, over all ranks.
    pub undone: u32,
    pub report: Option<Report>,
    /// Its node needs the pages no more.
    pub finished: bool,
    /// The link was fenced after everything was seen.
    pub fenced: bool,
    /// Receives still promised, by port.
    pub promised: Vec<u32>,
}

/// Page runs in one message: keeps the frame well below its bound.
const RUNS_PER_LIST: usize = 2048;

impl Target {
    /// Immediates that each source rank may send to each destination rank.
    fn credits(&self) -> (u16, u16) {
        let per_rail = match self.config.granularity {
            Granularity::Request => 1,
            Granularity::Chunk | Granularity::LayerWise { .. } => self.config.parts_per_rail.max(1),
        };
        let rails = self.config.rail_policy.choose(0, self.config.rails).len() as u16;
        let per_rail = per_rail.min(Immediate::PARTS as u16 / rails.max(1)).max(1);
        (per_rail.saturating_mul(rails).min(Immediate::PARTS as u16), per_rail)
    }

    /// Receives that a room of a link needs, by DP group of this side and port.
    pub(super) fn needs(&self, link: &Link) -> Vec<Vec<u32>> {
        let (_, per_rail) = self.credits();
        let groups = self.memory.layout().parallel().dp as u16;
        let of_group = |group| {
            let mut needs = vec![0; self.ports.len()];
            for (f, feed) in link.pairing.feeds.iter().enumerate() {
                for rail in self.config.rail_policy.choose(feed.nth, link.pairing.rails) {
                    let wire = link.pairing.wire(groups, 0, group, f, rail);
                    needs[link.port_of(wire, &self.memory).index()] += u32::from(per_rail);
                }
            }
            needs
        };
        (0..groups).map(of_group).collect()
    }

    fn needs_of(&self, peer: InstanceId, group: u16) -> Option<&[u32]> {
        self.links.get(&peer)?.needs.get(usize::from(group)).map(Vec::as_slice)
    }

    /// Whether a room could be opened now: the peer is known, a slot is free, and receives can be promised.
    pub fn can_open(&self, peer: InstanceId, group: u16) -> bool {
        let Some(needs) = self.needs_of(peer, group) else { return false };
        let depth = self.config.receive_depth;
        !self.free_slots.is_empty()
            && self.ports.iter().zip(needs).all(|(port, need)| port.promised.saturating_add(*need) <= depth)
    }

    /// Whether a room of this peer and group can ever be opened; false only if its receives are more than a queue holds.
    pub fn could_open(&self, peer: InstanceId, group: u16) -> bool {
        !self.slots.is_empty()
            && self
                .needs_of(peer, group)
                .is_none_or(|needs| needs.iter().all(|need| *need <= self.config.receive_depth))
    }

    /// Whether the room has ended here, or is open.
    pub fn knows_room(&self, key: &RoomKey) -> bool {
        self.by_key.contains(key) || (self.config.rules.tombstones && self.tombstones.get(key).is_some())
    }

    /// Opens a room with these pages and publishes them. False, and nothing done, if it cannot be opened now.
    pub fn open(&mut self, cx: &mut Cx<'_>, spec: TargetRoom, table: &PageTable) -> bool {
        if self.knows_room(&spec.key) || !self.can_open(spec.peer, spec.group) {
            return false;
        }
        let Some(needs) = self.needs_of(spec.peer, spec.group).map(<[u32]>::to_vec) else { return false };
        let Some(slot) = self.free_slots.pop_front() else { return false };
        for (port, need) in self.ports.iter_mut().zip(&needs) {
            port.promised += need;
        }
        // Receives are credits: they stand posted before the pages are published.
        if self.config.rules.receive_credits {
            self.refill(cx.fabric);
            if self.ports.iter().any(|port| port.posted < port.promised) {
                // The device took fewer than were promised: not now.
                for (port, need) in self.ports.iter_mut().zip(&needs) {
                    port.promised -= need;
                }
                self.free_slots.push_front(slot);
                return false;
            }
        }
        let key = spec.key;
        let Some(link) = self.links.get_mut(&spec.peer) else { return false };
        let pairing = &link.pairing;
        let ranks: Vec<Vec<Source>> = pairing
            .feeds_of
            .iter()
            .map(|feeds| pairing.feeds[feeds.clone()].iter().map(|feed| Source::new(feed.src)).collect())
            .collect();
        let generation = self.slots[usize::from(slot)].0;
        let room = Room {
            undone: ranks.iter().map(|sources| sources.len() as u32).sum(),
            spec,
            slot,
            generation,
            state: State::Live,
            ranks,
            report: None,
            finished: false,
            fenced: false,
            promised: needs,
        };
        let index = match self.free_rooms.pop() {
            Some(index) => index,
            None => {
                self.rooms.push(None);
                (self.rooms.len() - 1) as u32
            }
        };
        link.rooms.push(index);
        self.rooms[index as usize] = Some(room);
        self.by_key.insert(key, index);
        self.slots[usize::from(slot)].1 = Some(index);
        self.publish(&key, table);
        let deadline = self.config.room_deadline;
        self.timers.arm(key, cx.now + deadline);
        if !self.config.rules.receive_credits {
            // The mistake: receives follow some time after the page list.
            self.timers.arm(key, cx.now + Span::ms(1));
        }
        true
    }

    /// Tells prefill where it wants a live room's KV.
    pub fn publish(&mut self, key: &RoomKey, table: &PageTable) {
        let Some(room) = self.by_key.get(key).and_then(|index| self.rooms[*index as usize].as_ref()) else {
            return;
        };
        let fence_epoch = self.links.get(&room.spec.peer).map_or(0, |link| link.fence_epoch);
        let (credits, _) = self.credits();
        let mut offset = 0;
        for runs in table.runs().chunks(RUNS_PER_LIST) {
            let pages: Vec<PageRun> = runs.to_vec();
            let count: u32 = pages.iter().map(|run| run.count).sum();
            let list = PageList {
                key: *key,
                fence_epoch,
                slot: room.slot,
                generation: room.generation,
                group: room.spec.group,
                credits,
                tokens: room.spec.tokens,
                offset,
                total: table.len(),
                pages,
            };
            offset += count;
            self.news.push_back(News::Tell(Message::Publish(list)));
        }
    }

    /// A receive completed.
    pub(super) fn received(&mut self, cx: &mut Cx<'_>, completion: &Completion) {
        let Some((peer, wire)) = self.qps.get(&completion.qp).copied() else { return };
        let Some(link) = self.links.get(&peer) else { return };
        let port = link.port_of(wire, &self.memory).index();
        let Ok(done) = completion.result else {
            // This side posts nothing but receives, so a failed completion used one up.
            self.ports[port].posted = self.ports[port].posted.saturating_sub(1);
            return;
        };
        if done.opcode != Opcode::RecvWithImm && done.opcode != Opcode::Recv {
            return;
        }
        self.ports[port].posted = self.ports[port].posted.saturating_sub(1);
        let Some(imm) = done.imm.map(Immediate::from_u32) else { return };
        let ends = link.pairing.wires[wire];
        let feed = &link.pairing.feeds[usize::from(ends.feed)];
        let (src, dst) = (feed.src, feed.dst);
        let rules = self.config.rules;
        let index = self.slots.get(usize::from(imm.slot)).and_then(|(_, room)| *room);
        let room = index.and_then(|index| self.rooms[index as usize].as_mut());
        let right = |room: &&mut Room| {
            (!rules.slot_generation || room.generation == imm.generation)
                && (!rules.sender_check || room.spec.peer == peer && room.spec.group == ends.dst_group)
        };
        let (Some(index), Some(room)) = (index, room.filter(right)) else {
            self.stats.stale_immediates += 1;
            return;
        };
        if let Some(left) = room.promised.get_mut(port).filter(|left| **left > 0) {
            *left -= 1;
            self.ports[port].promised -= 1;
        }
        let sources = room.ranks.get_mut(dst.index());
        let Some(source) = sources.and_then(|sources| sources.iter_mut().find(|source| source.rank == src))
        else {
            self.stats.stale_immediates += 1;
            return;
        };
        source.count = source.count.saturating_add(1);
        if !source.seen.insert(imm.part) {
            self.stats.repeated_parts += 1;
        }
        if source.done || room.state != State::Live {
            return;
        }
        if source.seal.is_none() {
            let memory = &self.memory.ranks[ends.dst.index()];
            let at = u64::from(room.slot) * SLOT_BYTES + AUX_BYTES + u64::from(src.0) * SEAL_BYTES;
            let mut bytes = [0; SEAL_BYTES as usize];
            if cx.fabric.read(memory.aux.buf, at, &mut bytes).is_ok() {
                source.seal = Seal::from_bytes(&bytes, room.spec.key).map(|seal| seal.parts);
            }
        }
        let complete = match source.seal {
            _ if !rules.seals => true,
            Some(parts) if rules.parts_are_a_set => source.seen.is_all_of(parts),
            Some(parts) => source.count >= parts,
            None => false,
        };
        if complete {
            source.done = true;
            room.undone -= 1;
            if room.undone == 0 {
                self.decide(cx, index);
            }
        }
    }

    /// Everything is in: the outcome of this side, decided once for all of its ranks.
    fn decide(&mut self, cx: &mut Cx<'_>, index: u32) {
        let lease = !self.config.rules.lease || cx.now <= self.lease_until;
        let Some(room) = self.rooms[index as usize].as_mut() else { return };
        let key = room.spec.key;
        if !lease {
            self.fail(cx, key, Reason::LeaseLost, true);
            return;
        }
        let parallel = self.memory.layout().parallel();
        let group = u32::from(room.spec.group);
        let whole = (0..room.ranks.len()).all(|rank| {
            let world = parallel.world_rank(group, rank as u32);
            let Some(memory) = self.memory.ranks.get(world as usize) else { return false };
            // What arrived becomes visible to whoever computes on it; nothing to do for host memory.
            if memory.pools.iter().any(|pool| cx.fabric.flush(pool.buf).is_err()) {
                return false;
            }
            let mut bytes = [0; AUX_BYTES as usize];
            let read = cx.fabric.read(memory.aux.buf, u64::from(room.slot) * SLOT_BYTES, &mut bytes);
            let row = AuxRow::from_bytes(&bytes);
            read.is_ok()
                && row.key == key
                && row.request == room.spec.request
                && row.token == AuxRow::first_token(room.spec.request)
        });
        if !whole {
            // Every sealed part has been seen, so this cannot be while the rules hold: decode must not start on it.
            self.stats.missing_aux += 1;
            cx.out.record(room.spec.request, Step::Corrupt);
            self.fail(cx, key, Reason::Transfer, true);
            return;
        }
        room.state = State::Success;
        self.unpromise(index);
        self.timers.cancel(key);
        self.news.push_back(News::Success(key));
    }

    /// Returns what is left of a room's promised receives.
    fn unpromise(&mut self, index: u32) {
        let Some(room) = self.rooms[index as usize].as_mut() else { return };
        for (port, left) in self.ports.iter_mut().zip(&mut room.promised) {
            port.promised -= std::mem::take(left);
        }
    }

    /// A deadline of a room passed.
    pub(super) fn expired(&mut self, cx: &mut Cx<'_>, key: RoomKey) {
        let Some(index) = self.by_key.get(&key).copied() else { return };
        let Some(room) = self.rooms[index as usize].as_ref() else { return };
        if room.state == State::Live {
            if !self.config.rules.receive_credits
                && room.report.is_none()
                && self.ports.iter().any(|p| p.posted < p.promised)
            {
                self.timers.arm(key, cx.now + self.config.room_deadline);
                return;
            }
            self.fail(cx, key, Reason::Deadline, true);
        } else {
            // The timer decides to fence, the fence frees.
            let peer = room.spec.peer;
            self.fence_for_free(cx, peer, index);
        }
    }

    /// Prefill's word on a room.
    pub fn report(&mut self, cx: &mut Cx<'_>, key: RoomKey, report: Report) {
        let Some(index) = self.by_key.get(&key).copied() else { return };
        let Some(room) = self.rooms[index as usize].as_mut() else { return };
        room.report = Some(report);
        match room.state {
            State::Live if report.delivered => {
                // Its last completions are on their way; should they not come, that is a failure and not a hang.
                let deadline = self.config.drain_deadline;
                self.timers.arm(key, cx.now + deadline);
            }
            State::Live => self.fail(cx, key, Reason::Transfer, false),
            State::Success | State::Failed => self.try_release(cx, index),
        }
    }

    /// Prefill or the router ends a room. What already is Success stays so.
    pub fn abort(&mut self, cx: &mut Cx<'_>, key: RoomKey, reason: Reason) {
        if self.by_key.contains(&key) {
            self.fail(cx, key, reason, false);
        } else {
            self.tombstones.add(cx.now, key, ());
        }
    }

    /// This side needs the pages of a room no more; or, of one not yet decided, wants it no more.
    pub fn finish(&mut self, cx: &mut Cx<'_>, key: RoomKey) {
        let Some(index) = self.by_key.get(&key).copied() else { return };
        let Some(room) = self.rooms[index as usize].as_mut() else { return };
        if room.state == State::Live {
            self.fail(cx, key, Reason::Aborted, true);
            return;
        }
        room.finished = true;
        self.try_release(cx, index);
    }

    /// Decides a live room as Failed. Its pages are released when that is safe.
    pub(super) fn fail(&mut self, cx: &mut Cx<'_>, key: RoomKey, reason: Reason, tell: bool) {
        let Some(index) = self.by_key.get(&key).copied() else { return };
        let Some(room) = self.rooms[index as usize].as_mut() else { return };
        if room.state != State::Live {
            return;
        }
        room.state = State::Failed;
        room.finished = true;
        self.timers.cancel(key);
        self.news.push_back(News::Failed(key, reason));
        if tell {
            self.news.push_back(News::Tell(Message::Abort { key, reason }));
        }
        self.try_release(cx, index);
    }

    /// Releases a finished room if the initiator said that nothing more can come, or fences if it said that something may.
    fn try_release(&mut self, cx: &mut Cx<'_>, index: u32) {
        let Some(room) = self.rooms[index as usize].as_ref() else { return };
        if !room.finished {
            return;
        }
        let (key, peer) = (room.spec.key, room.spec.peer);
        let reachable = self.links.get(&peer).is_some_and(super::Link::may_be_written);
        let clean = room.report.is_some_and(|report| report.clean);
        if room.fenced || clean {
            self.release(cx, index);
        } else if room.report.is_some() || !reachable {
            self.fence_for_free(cx, peer, index);
        } else {
            let deadline = self.config.drain_deadline;
            self.timers.arm(key, cx.now + deadline);
        }
    }

    /// Gives everything of a room back.
    pub(super) fn release(&mut self, cx: &mut Cx<'_>, index: u32) {
        self.unpromise(index);
        let Some(room) = self.rooms[index as usize].take() else { return };
        let key = room.spec.key;
        let (generation, owner) = &mut self.slots[usize::from(room.slot)];
        *generation = generation.wrapping_add(1);
        *owner = None;
        self.free_slots.push_back(room.slot);
        if let Some(link) = self.links.get_mut(&room.spec.peer) {
            link.rooms.retain(|other| *other != index);
        }
        self.timers.cancel(key);
        self.by_key.remove(&key);
        self.free_rooms.push(index);
        self.tombstones.add(cx.now, key, ());
        self.news.push_back(News::Released(key));
    }

    /// Rooms of a link that are not ended, with the parts seen.
    pub(super) fn live_rooms(&self, peer: InstanceId) -> Vec<LiveRoom> {
        let Some(link) = self.links.get(&peer) else { return Vec::new() };
        let mut live = Vec::new();
        for index in &link.rooms {
            let Some(room) = self.rooms[*index as usize].as_ref() else { continue };
            if room.state == State::Failed || room.report.is_some_and(|report| report.delivered) {
                continue;
            }
            let mut seen = Vec::new();
            for (rank, sources) in (0u16..).zip(&room.ranks) {
                for source in sources {
                    seen.extend(source.seen.iter().map(|part| (source.rank, crate::id::Rank(rank), part)));
                }
            }
            live.push(LiveRoom { key: room.spec.key, seen });
        }
        live
    }
}
