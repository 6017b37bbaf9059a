//! What only a target of WRITEs does: promises receives, and knows from immediates and seals what has come.

use super::super::checksum::{Side, fold, of_feed};
use super::super::news::News;
use super::super::pages::{PagePool, PageTable};
use super::super::wire::{AUX_BYTES, Immediate, SEAL_BYTES, SLOT_BYTES, Seal};
use super::link::Link;
use super::parts::Source;
use super::room::{Room, State};
use super::stage::Spot;
use super::{Opening, PortReceives, Target, TargetRoom};
use crate::fabric::{Completion, Opcode};
use crate::id::InstanceId;
use crate::node::{Cx, Reason, Step};
use crate::policy::{Direction, Granularity, Spread};
use crate::registry::RoomKey;
use crate::time::Span;

impl Target {
    /// Immediates that each source rank may send to each destination rank.
    fn credits(&self) -> (u16, u16) {
        let per_rail = match self.config.granularity {
            Granularity::Request => 1,
            Granularity::Chunk | Granularity::LayerWise { .. } => self.config.parts_per_rail.max(1),
        };
        let rails = self.config.rail_policy.spread(0, self.config.rails).width();
        let per_rail = per_rail.min(Immediate::PARTS as u16 / rails.max(1)).max(1);
        (per_rail.saturating_mul(rails).min(Immediate::PARTS as u16), per_rail)
    }

    /// Receives that a room of a link needs, by DP group of this side and port.
    pub(super) fn needs(&self, link: &Link, stage_window: u32) -> Vec<Vec<u32>> {
        let (_, per_rail) = self.credits();
        let groups = self.memory.layout().parallel().dp as u16;
        let (pairing, rails) = (&link.pairing, link.pairing.rails);
        let each = pairing.feeds.len() * usize::from(rails) * usize::from(groups);
        let senders = (pairing.wires.len() / each.max(1)) as u16;
        let of_group = |group| {
            let mut needs = vec![0; self.ports.len()];
            for (f, feed) in pairing.feeds.iter().enumerate() {
                // Which of the initiator's groups a room comes from is not known, and neither are the ports then: enough for any.
                let mut most = vec![0; self.ports.len()];
                for sender in 0..senders {
                    let base = pairing.wire(groups, sender, group, f, 0);
                    let mut need = vec![0; self.ports.len()];
                    let port = |rail: u16| pairing.wires[base + usize::from(rail)].dst_port.index();
                    match self.config.rail_policy.spread(feed.nth, rails) {
                        Spread::All(homes) => homes.for_each(|home| {
                            need[port(link.usable.carrier(base, rails, home))] +=
                                u32::from(per_rail) + stage_window;
                        }),
                        Spread::One => (0..rails)
                            .filter(|rail| link.usable.has(base + usize::from(*rail)))
                            .for_each(|rail| need[port(rail)] = u32::from(per_rail) + stage_window),
                    }
                    most.iter_mut().zip(need).for_each(|(most, need)| *most = need.max(*most));
                }
                needs.iter_mut().zip(most).for_each(|(needs, most)| *needs += most);
            }
            needs
        };
        (0..groups).map(of_group).collect()
    }

    /// Queue pairs of a link have come or gone, and its live rooms' parts go over others: receives are promised where they may come now. A
    /// room for which a queue has too few fails.
    pub(super) fn promise_again(&mut self, cx: &mut Cx<'_>, peer: InstanceId) {
        let Some(link) = self.links.get(&peer).filter(|_| self.config.direction == Direction::Push) else {
            return;
        };
        let needs = self.needs(link, link.stage_window);
        if needs == link.needs {
            return;
        }
        let rooms = link.rooms.clone();
        let mut failed: Vec<RoomKey> = Vec::new();
        let depth = self.config.receive_depth;
        for index in rooms {
            let Some(room) = self.rooms[index as usize].as_mut().filter(|room| room.state == State::Live)
            else {
                continue;
            };
            let Some(needs) = needs.get(usize::from(room.spec.group)) else { continue };
            for (port, left) in self.ports.iter_mut().zip(&mut room.promised) {
                port.promised -= std::mem::take(left);
            }
            let fits = |(port, need): (&PortReceives, &u32)| port.promised.saturating_add(*need) <= depth;
            if self.ports.iter().zip(needs).all(fits) {
                self.ports.iter_mut().zip(needs).for_each(|(port, need)| port.promised += need);
                room.promised.clone_from(needs);
            } else {
                failed.push(room.spec.key);
            }
        }
        if let Some(link) = self.links.get_mut(&peer) {
            link.needs = needs;
        }
        if self.config.rules.receive_credits {
            self.refill(cx.fabric);
        }
        for key in failed {
            self.fail(cx, key, Reason::Transfer, true);
        }
    }

    fn needs_of(&self, peer: InstanceId, group: u16) -> Option<&[u32]> {
        self.links.get(&peer)?.needs.get(usize::from(group)).map(Vec::as_slice)
    }

    /// The same with all queue pairs there.
    fn whole_needs_of(&self, peer: InstanceId, group: u16) -> Option<&[u32]> {
        self.links.get(&peer)?.whole_needs.get(usize::from(group)).map(Vec::as_slice)
    }

    /// Whether a room of this peer and group could be opened now: the peer is known, slots are free, and receives can be promised.
    pub fn opening(&self, peer: InstanceId, group: u16) -> Opening {
        let Some(link) = self.links.get(&peer) else { return Opening::Later };
        let free = self.stage.get(usize::from(group)).map_or(0, PagePool::free);
        if self.free_slots.is_empty() || self.stage_offer(link, group) > free {
            return Opening::Full;
        }
        let depth = self.config.receive_depth;
        let fits = |needs: &Vec<u32>| {
            self.ports.iter().zip(needs).all(|(port, need)| port.promised.saturating_add(*need) <= depth)
        };
        if link.needs.get(usize::from(group)).is_some_and(fits) { Opening::Now } else { Opening::Later }
    }

    /// Whether a room of this peer and group can ever be opened; false only if its receives are more than a queue holds.
    pub fn could_open(&self, peer: InstanceId, group: u16) -> bool {
        !self.slots.is_empty()
            && self
                .whole_needs_of(peer, group)
                .is_none_or(|needs| needs.iter().all(|need| *need <= self.config.receive_depth))
    }

    /// Opens a room with these pages and publishes them. False, and nothing done, if it cannot be opened now.
    pub fn open(&mut self, cx: &mut Cx<'_>, spec: TargetRoom, table: &PageTable) -> bool {
        if self.knows_room(&spec.key) || self.opening(spec.peer, spec.group) != Opening::Now {
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
        let Some(link) = self.links.get(&spec.peer) else { return false };
        let pairing = &link.pairing;
        let all = 0..pairing.feeds.len();
        let named = |feeds: &std::ops::Range<usize>| match self.config.rules.sources_of_relation {
            true => feeds.clone(),
            false => all.clone(),
        };
        let sources = |feeds| pairing.feeds[named(feeds)].iter().map(|feed| Source::new(feed.src)).collect();
        let ranks: Vec<Vec<Source>> = pairing.feeds_of.iter().map(sources).collect();
        let generation = self.slots[usize::from(slot)].0;
        let need = self.stage_offer(link, spec.group);
        let stage = self.take_stage(spec.group, need);
        let table_of = if stage.is_empty() { PageTable::default() } else { table.clone() };
        let room = Room {
            stage,
            table: table_of,
            undone: ranks.iter().map(|sources| sources.len() as u32).sum(),
            slot,
            generation,
            ranks,
            promised: needs,
            pages: if self.config.checksums { table.clone() } else { PageTable::default() },
            ..Room::new(spec)
        };
        let index = self.add(room);
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
        let (credits, _) = self.credits();
        if let Some(index) = self.by_key.get(key).copied() {
            self.list(index, table, credits);
            self.say_scattered(key);
        }
    }

    /// A receive completed.
    pub(super) fn received(&mut self, cx: &mut Cx<'_>, completion: &Completion) {
        let Some((peer, wire)) = self.qps.get(&completion.qp).copied() else { return };
        let Some(link) = self.links.get(&peer) else { return };
        let port = link.pairing.wires[wire].dst_port.index();
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
        let room = index.and_then(|index| self.rooms[index as usize].as_ref());
        let right = |room: &&Room| {
            (!rules.slot_generation || room.generation == imm.generation)
                && (!rules.sender_check || room.spec.peer == peer && room.spec.group == ends.dst_group)
        };
        let (Some(index), Some(room)) = (index, room.filter(right)) else {
            self.stats.stale_immediates += 1;
            return;
        };
        let sources = room.ranks.get(dst.index());
        let source = sources.and_then(|sources| sources.iter().position(|source| source.rank == src));
        let staged = source.filter(|_| !room.stage.is_empty()).and_then(|source| {
            let spot = Spot { dst, world: ends.dst, feed: usize::from(ends.feed), source };
            let room = self.rooms[index as usize].as_ref()?;
            let (header, slot) = self.staged(cx, room, &link.pairing, spot, imm.part)?;
            Some((spot, header, slot))
        });
        let Some(room) = self.rooms[index as usize].as_mut() else { return };
        // A staged part's receive stays promised: it is posted anew before its slot is given back.
        if staged.is_none()
            && let Some(left) = room.promised.get_mut(port).filter(|left| **left > 0)
        {
            *left -= 1;
            self.ports[port].promised -= 1;
        }
        let Some(at) = source else {
            self.stats.stale_immediates += 1;
            return;
        };
        let source = &mut room.ranks[dst.index()][at];
        source.count = source.count.saturating_add(1);
        let new = source.seen.insert(imm.part);
        if !new {
            self.stats.repeated_parts += 1;
        }
        if source.done || room.state != State::Live {
            return;
        }
        match staged {
            Some((spot, header, slot)) if new => self.scatter(cx, index, spot, &header, slot),
            // It is on its way to its pages, or there.
            Some(_) => {}
            None => self.look(cx, index, Spot { dst, world: ends.dst, feed: ends.feed.into(), source: at }),
        }
    }

    /// Whether everything of a source is in, and so perhaps everything of the room.
    pub(super) fn look(&mut self, cx: &mut Cx<'_>, index: u32, spot: Spot) {
        let Spot { dst, world, feed, source: at } = spot;
        let rules = self.config.rules;
        let Some(room) = self.rooms[index as usize].as_mut() else { return };
        let source = &mut room.ranks[dst.index()][at];
        if source.done {
            return;
        }
        if source.seal.is_none() {
            let memory = &self.memory.ranks[world.index()];
            let cell = u64::from(room.slot) * SLOT_BYTES + AUX_BYTES + u64::from(source.rank.0) * SEAL_BYTES;
            let mut bytes = [0; SEAL_BYTES as usize];
            if cx.fabric.read(memory.aux.buf, cell, &mut bytes).is_ok() {
                let key = if rules.seals_name_rooms { room.spec.key } else { Seal::key_in(&bytes) };
                if let Some(seal) = Seal::from_bytes(&bytes, key) {
                    (source.seal, source.sum) = (Some(seal.parts), seal.sum);
                }
            }
        }
        let complete = match source.seal {
            _ if source.copying > 0 => false,
            _ if !rules.seals => true,
            Some(parts) if rules.parts_are_a_set => source.seen.is_all_of(parts),
            Some(parts) => source.count >= parts,
            None => false,
        };
        if complete {
            if self.config.checksums && rules.checksums_compared {
                let (side, tokens, layers) = (Side::Target(world), 0..room.spec.tokens, 0..u32::MAX);
                let Some(pairing) = self.links.get(&room.spec.peer).map(|link| &link.pairing) else { return };
                let range = (&tokens, &layers);
                let sum = of_feed(cx.fabric, &self.memory, pairing, feed, side, &room.pages, range);
                if sum.map(fold) != Ok(source.sum) {
                    let key = room.spec.key;
                    self.stats.checksum_mismatches += 1;
                    self.fail(cx, key, Reason::Checksum, true);
                    return;
                }
            }
            source.done = true;
            room.undone -= 1;
            let first = !rules.all_ranks && room.ranks[dst.index()].iter().all(|source| source.done);
            if room.undone == 0 || first {
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
        let (group, slot, request) = (room.spec.group, room.slot, room.spec.request);
        let named = self.config.rules.seals_name_rooms;
        let whole = self.memory.has_arrived(cx.fabric, group, slot, (key, request), named);
        if !whole {
            // Every sealed part has been seen, so this cannot be while the rules hold: decode must not start on it.
            self.stats.missing_aux += 1;
            cx.out.record(request, Step::Corrupt);
            self.fail(cx, key, Reason::Transfer, true);
            return;
        }
        let Some(room) = self.rooms[index as usize].as_mut() else { return };
        room.state = State::Success;
        self.unpromise(index);
        self.timers.cancel(key);
        self.news.push_back(News::Success(key));
        self.free_stage(index);
    }

    /// Returns what is left of a room's promised receives.
    pub(super) fn unpromise(&mut self, index: u32) {
        let Some(room) = self.rooms[index as usize].as_mut() else { return };
        for (port, left) in self.ports.iter_mut().zip(&mut room.promised) {
            port.promised -= std::mem::take(left);
        }
    }
}
