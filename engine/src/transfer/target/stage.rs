//! Staged parts at the target: slots given to rooms, scattered into pages, given back.

use super::super::pairing::Pairing;
use super::super::stage::{Cut, Header, per_token, scatter};
use super::link::Link;
use super::room::{Room, State};
use super::{News, Target};
use crate::fabric::LocalCopy;
use crate::id::{CopyId, Page, Rank};
use crate::node::{Cx, Reason};
use crate::registry::{Message, PageRun, RoomKey};

/// A part on its way from its slot to its pages.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scatter {
    room: u32,
    spot: Spot,
    sequence: u32,
    tell: bool,
    bytes: u64,
}

/// Where a part came, as its queue pair says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spot {
    /// The rank, within its group and within the instance.
    pub dst: Rank,
    pub world: Rank,
    /// Which of the pairing's feeds, and which of the rank's sources that is.
    pub feed: usize,
    pub source: usize,
}

impl Target {
    /// Slots that a room of a link has for each sender to a rank: as many as are asked for and fit, beside what goes directly, into slots and
    /// receives; 0 if not one does, and then everything goes directly.
    pub(super) fn stage_window(&self, link: &Link) -> u32 {
        let Some(staging) = self.memory.staging() else { return 0 };
        let feeds = link.pairing.most_feeds().max(1);
        let most = staging.window.max(1).min(staging.slots / feeds);
        let depth = self.config.receive_depth;
        let fits =
            |window: &u32| self.needs(link, *window).iter().flatten().all(|receives| *receives <= depth);
        (1..=most).rev().find(fits).unwrap_or(0)
    }

    /// Staging slots that a room of this peer takes.
    pub(super) fn stage_need(link: &Link) -> u32 {
        link.stage_window * link.pairing.most_feeds()
    }

    /// Staging slots that a room of this peer would get now. Where the policy may choose, none is waited for: without slots the room goes
    /// directly.
    pub(super) fn stage_offer(&self, link: &Link, group: u16) -> u32 {
        let need = Self::stage_need(link);
        let free = self.stage.get(usize::from(group)).map_or(0, super::super::pages::PagePool::free);
        if self.config.coalescing.predicts() && need > free { 0 } else { need }
    }

    /// Takes a room's staging slots. They are there: [`Target::opening`].
    pub(super) fn take_stage(&mut self, group: u16, need: u32) -> Vec<u32> {
        let mut taken = super::super::pages::PageTable::default();
        if let Some(pool) = self.stage.get_mut(usize::from(group))
            && need > 0
        {
            pool.take(need, &mut taken);
        }
        // Slot 0 is the pool's page 1.
        taken.runs().iter().flat_map(|run| run.first.0 - 1..run.first.0 - 1 + run.count).collect()
    }

    /// Gives a room's staging slots back once nothing can be written to them and nothing is left in them.
    pub(super) fn free_stage(&mut self, index: u32) {
        let Some(room) = self.rooms[index as usize].as_mut() else { return };
        let over = room.fenced || room.report.is_some_and(|report| report.clean);
        if room.stage.is_empty() || room.state == State::Live || room.copies > 0 || !over {
            return;
        }
        self.give_stage(index);
    }

    pub(super) fn give_stage(&mut self, index: u32) {
        let Some(room) = self.rooms[index as usize].as_mut() else { return };
        let (group, slots) = (room.spec.group, std::mem::take(&mut room.stage));
        if let Some(pool) = self.stage.get_mut(usize::from(group)) {
            for slot in slots {
                pool.give(PageRun { first: Page(slot + 1), count: 1 });
            }
        }
    }

    /// The header of a part that came, if it is a staged one, and the slot that it is in.
    pub(super) fn staged(
        &self,
        cx: &Cx<'_>,
        room: &Room,
        pairing: &Pairing,
        spot: Spot,
        part: u16,
    ) -> Option<(Header, u32)> {
        let window = room.stage.len() / pairing.most_feeds().max(1) as usize;
        let own = room.stage.get(spot.source * window..(spot.source + 1) * window)?;
        own.iter().find_map(|slot| {
            let header = self.memory.header(cx.fabric, spot.world, *slot)?;
            let right = header.key == room.spec.key
                && header.generation == room.generation
                && header.part == part
                && own.get(header.sequence as usize % window) == Some(slot);
            right.then_some((header, *slot))
        })
    }

    /// A staged part is in its slot: begins to scatter it. What its header asks for is checked like anything from outside.
    pub(super) fn scatter(&mut self, cx: &mut Cx<'_>, index: u32, spot: Spot, header: &Header, slot: u32) {
        let layers = self.memory.layout().model().layers;
        let Some(staging) = self.memory.staging() else { return };
        let Some(room) = self.rooms[index as usize].as_mut() else { return };
        let key = room.spec.key;
        let Some(link) = self.links.get(&room.spec.peer) else { return };
        let feed = &link.pairing.feeds[spot.feed];
        let source = &mut room.ranks[spot.dst.index()][spot.source];
        let cut = Cut { tokens: header.tokens.clone(), layers: header.layers.clone() };
        let bytes = per_token(feed, &cut.layers).checked_mul(cut.tokens.len() as u64);
        let right = !cut.tokens.is_empty()
            && cut.tokens.end <= room.spec.tokens
            && !cut.layers.is_empty()
            && cut.layers.end <= layers
            && bytes.is_some_and(|bytes| bytes > 0 && bytes <= staging.slot)
            && header.sequence.wrapping_sub(source.scattered) < link.stage_window;
        let memory = &self.memory.ranks[spot.world.index()];
        let (Some(stage), true, Ok(plans)) = (&memory.stage, right, scatter(feed, &cut, &room.table)) else {
            self.fail(cx, key, Reason::Refused, true);
            return;
        };
        let from = (stage.buf, u64::from(slot) * staging.slot);
        let to = |share: usize| (memory.pools[feed.shares[share].group.pool_dst].buf, 0);
        let parts: Vec<LocalCopy<'_>> =
            plans.iter().map(|(plan, share)| LocalCopy { plan, from, to: to(*share) }).collect();
        let at = match self.scatters.iter().position(Option::is_none) {
            Some(at) => at,
            None => {
                self.scatters.push(None);
                self.scatters.len() - 1
            }
        };
        if cx.fabric.copy(spot.world.0.into(), CopyId(at as u64), &parts).is_err() {
            self.fail(cx, key, Reason::Transfer, true);
            return;
        }
        self.scatters[at] = Some(Scatter {
            room: index,
            spot,
            sequence: header.sequence,
            tell: header.tell,
            bytes: bytes.unwrap_or(0),
        });
        source.copying += 1;
        room.copies += 1;
    }

    /// A copy is over: the part is in its pages.
    pub(super) fn copied(&mut self, cx: &mut Cx<'_>, id: CopyId) {
        let Some(done) = self.scatters.get_mut(id.0 as usize).and_then(Option::take) else { return };
        self.stats.staged_parts += 1;
        self.stats.staged_bytes += done.bytes;
        let Some(room) = self.rooms[done.room as usize].as_mut() else { return };
        room.copies -= 1;
        let source = &mut room.ranks[done.spot.dst.index()][done.spot.source];
        source.copying -= 1;
        let tell = source.scattered(done.sequence, done.tell);
        if room.leaving && room.copies == 0 {
            self.release(cx, done.room);
            return;
        }
        if room.state == State::Live {
            self.look(cx, done.room, done.spot);
        }
        let live = |room: &Room| room.state == State::Live;
        if tell && self.rooms[done.room as usize].as_ref().is_some_and(live) {
            self.untold.push(done.room);
            self.tell_scattered(cx);
        }
        self.free_stage(done.room);
    }

    /// Tells senders which slots they may use again, once receives for that stand posted.
    pub(super) fn tell_scattered(&mut self, cx: &mut Cx<'_>) {
        if self.untold.is_empty() {
            return;
        }
        if self.config.rules.receive_credits {
            self.refill(cx.fabric);
            if self.ports.iter().any(|port| port.posted < port.promised) {
                return;
            }
        }
        for index in std::mem::take(&mut self.untold) {
            if let Some(room) = self.rooms[index as usize].as_ref()
                && room.state == State::Live
            {
                let key = room.spec.key;
                self.say_scattered(&key);
            }
        }
    }

    /// Says how many parts of each sender were scattered, if any.
    pub(super) fn say_scattered(&mut self, key: &RoomKey) {
        let room = self.by_key.get(key).and_then(|index| self.rooms[*index as usize].as_ref());
        let Some(room) = room else { return };
        let done: Vec<u32> = room.ranks.iter().flatten().map(|source| source.scattered).collect();
        if done.iter().any(|count| *count > 0) {
            self.news.push_back(News::Tell(Message::Scattered { key: *key, done }));
        }
    }
}
