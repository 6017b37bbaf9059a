//! The life of a room at the target: added, listed, decided, released.

use super::super::end::RoomState;
use super::super::news::News;
use super::super::pages::PageTable;
use super::Target;
use super::parts::Source;
use super::pull::Shown;
use crate::id::{InstanceId, Page, RequestId};
use crate::node::{Cx, Reason};
use crate::policy::Direction;
use crate::registry::{LiveRoom, Message, PageList, PageRun, Report, RoomKey};

/// A room to open.
#[derive(Clone, Debug)]
pub struct TargetRoom {
    /// The room.
    pub key: RoomKey,
    /// Whose it is.
    pub request: RequestId,
    /// The initiator's instance.
    pub peer: InstanceId,
    /// This side's DP group.
    pub group: u16,
    /// Prompt tokens.
    pub tokens: u32,
}

/// Whether there is room for one more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// It can be opened.
    Now,
    /// It waits for slots, for the aux row or for staging, that other rooms hold until the word of their end.
    Full,
    /// It waits for something else: facts of the peer, or receives, which come back with what is received.
    Later,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Not decided.
    Live,
    /// Everything is in place at decode. Final.
    Success,
    /// Final.
    Failed,
}

/// A room at the target.
#[derive(Clone, Debug)]
pub(super) struct Room {
    pub spec: TargetRoom,
    /// Its aux slot, or [`NO_SLOT`].
    pub slot: u16,
    pub generation: u8,
    pub state: State,
    /// Push: sources by destination rank of the group.
    pub ranks: Vec<Vec<Source>>,
    /// Sources not yet done, over all ranks.
    pub undone: u32,
    pub report: Option<Report>,
    /// Its node needs the pages no more.
    pub finished: bool,
    /// The link was fenced after everything was seen.
    pub fenced: bool,
    /// Push: receives still promised, by port.
    pub promised: Vec<u32>,
    /// Pull: what is there to read.
    pub shown: Shown,
    /// Staging: its slots, this side's pages to scatter to, and copies under way.
    pub stage: Vec<u32>,
    pub table: PageTable,
    pub copies: u32,
    /// It is released when these are over.
    pub leaving: bool,
    /// Push, with checksums: the pages to sum up.
    pub pages: PageTable,
}

/// Stands for the slot of a room that has none; more than there can be.
pub(super) const NO_SLOT: u16 = u16::MAX;

impl Room {
    pub(super) fn new(spec: TargetRoom) -> Self {
        Self {
            spec,
            slot: NO_SLOT,
            generation: 0,
            state: State::Live,
            ranks: Vec::new(),
            undone: 0,
            report: None,
            finished: false,
            fenced: false,
            promised: Vec::new(),
            shown: Shown::default(),
            stage: Vec::new(),
            table: PageTable::default(),
            copies: 0,
            leaving: false,
            pages: PageTable::default(),
        }
    }
}

/// Slots as runs.
fn runs_of(slots: &[u32]) -> Vec<PageRun> {
    let mut table = PageTable::default();
    slots.iter().for_each(|slot| table.push(PageRun { first: Page(*slot), count: 1 }));
    table.runs().to_vec()
}

impl Room {
    /// What it is doing, in the words of both ends.
    pub(super) fn told_state(&self, direction: Direction) -> RoomState {
        let moved = match direction {
            Direction::Push => self.ranks.iter().flatten().any(|source| !source.seen.is_empty()),
            Direction::Pull => self.shown.is_told(),
        };
        match self.state {
            State::Success => RoomState::Success,
            State::Failed => RoomState::Failed,
            State::Live if moved => RoomState::Transferring,
            // Push: it is opened and its page list said at once.
            State::Live if direction == Direction::Push || self.shown.listed => RoomState::WaitingForInput,
            State::Live => RoomState::Bootstrapping,
        }
    }
}

/// Page runs in one message: keeps the frame well below its bound.
const RUNS_PER_LIST: usize = 2048;

impl Target {
    /// Whether the room has ended here, or is open.
    pub fn knows_room(&self, key: &RoomKey) -> bool {
        self.by_key.contains(key) || (self.config.rules.tombstones && self.tombstones.get(key).is_some())
    }

    /// Puts a room into the tables.
    pub(super) fn add(&mut self, room: Room) -> u32 {
        let (key, peer) = (room.spec.key, room.spec.peer);
        let index = match self.free_rooms.pop() {
            Some(index) => index,
            None => {
                self.rooms.push(None);
                (self.rooms.len() - 1) as u32
            }
        };
        if let Some(link) = self.use_link(peer) {
            link.rooms.push(index);
        }
        self.rooms[index as usize] = Some(room);
        self.by_key.insert(key, index);
        index
    }

    /// A link, one of whose rooms begins or ends now.
    fn use_link(&mut self, peer: InstanceId) -> Option<&mut super::Link> {
        self.uses += 1;
        let link = self.links.get_mut(&peer)?;
        link.used = self.uses;
        Some(link)
    }

    /// Says which pages a room has on this side.
    pub(super) fn list(&mut self, index: u32, table: &PageTable, credits: u16) {
        let Some(room) = self.rooms.get(index as usize).and_then(Option::as_ref) else { return };
        let fence_epoch = self.links.get(&room.spec.peer).map_or(0, |link| link.fence_epoch);
        let mut offset = 0;
        for runs in table.runs().chunks(RUNS_PER_LIST) {
            let pages: Vec<PageRun> = runs.to_vec();
            let count: u32 = pages.iter().map(|run| run.count).sum();
            let list = PageList {
                key: room.spec.key,
                fence_epoch,
                slot: room.slot,
                generation: room.generation,
                group: room.spec.group,
                credits,
                tokens: room.spec.tokens,
                offset,
                total: table.len(),
                pages,
                stage: if offset == 0 { runs_of(&room.stage) } else { Vec::new() },
            };
            offset += count;
            self.news.push_back(News::Tell(Message::Publish(list)));
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

    /// The initiator's word on a room.
    pub fn report(&mut self, cx: &mut Cx<'_>, key: RoomKey, report: Report) {
        let Some(index) = self.by_key.get(&key).copied() else { return };
        let Some(room) = self.rooms[index as usize].as_mut() else { return };
        room.report = Some(report);
        let state = room.state;
        // Its link may have become idle.
        self.feed(cx);
        match state {
            // Its word that everything is there, or for push that it is on its way.
            State::Live if report.delivered && self.config.direction == Direction::Pull => {
                self.was_read(cx, index)
            }
            State::Live if report.delivered => {
                // Its last completions are on their way; should they not come, that is a failure and not a hang.
                let deadline = self.config.drain_deadline;
                self.timers.arm(key, cx.now + deadline);
            }
            State::Live => self.fail(cx, key, Reason::Transfer, false),
            State::Success | State::Failed => {
                self.free_stage(index);
                self.try_release(cx, index);
            }
        }
    }

    /// The other side, the router or this node ends a room. What already is Success stays so.
    pub fn abort(&mut self, cx: &mut Cx<'_>, key: RoomKey, reason: Reason, tell: bool) {
        if self.by_key.contains(&key) {
            self.fail(cx, key, reason, tell);
        } else {
            self.tombstones.add(cx.now, key, RoomState::Failed);
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
        if tell && self.config.rules.failures_told {
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
        let reachable = self.links.get(&peer).is_some_and(super::Link::may_be_used);
        let clean = room.report.is_some_and(|report| report.clean);
        // Pull: without a page list there was nothing to read.
        let unlisted = self.config.direction == Direction::Pull && !room.shown.listed;
        if room.fenced || clean || unlisted {
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
        if let Some(room) = self.rooms[index as usize].as_mut()
            && room.copies > 0
        {
            // Copies of this side still write to its pages.
            room.leaving = true;
            self.timers.cancel(room.spec.key);
            return;
        }
        self.give_stage(index);
        let Some(room) = self.rooms[index as usize].take() else { return };
        let key = room.spec.key;
        if let Some((generation, owner)) = self.slots.get_mut(usize::from(room.slot)) {
            *generation = generation.wrapping_add(1);
            *owner = None;
            self.free_slots.push_back(room.slot);
        }
        if let Some(link) = self.use_link(room.spec.peer) {
            link.rooms.retain(|other| *other != index);
        }
        self.timers.cancel(key);
        self.by_key.remove(&key);
        self.free_rooms.push(index);
        let ended = if room.state == State::Success { RoomState::Success } else { RoomState::Failed };
        self.tombstones.add(cx.now, key, ended);
        if self.config.direction == Direction::Pull && room.report.is_none() {
            self.over(key);
        }
        if room.state != State::Failed || self.config.rules.failed_rooms_released {
            self.news.push_back(News::Released(key));
        }
        self.feed(cx);
    }

    /// Rooms of a link that are not ended, with the parts seen.
    pub(super) fn live_rooms(&self, peer: InstanceId) -> Vec<LiveRoom> {
        let Some(link) = self.links.get(&peer) else { return Vec::new() };
        let mut live = Vec::new();
        for index in &link.rooms {
            let Some(room) = self.rooms[*index as usize].as_ref() else { continue };
            let unlisted = self.config.direction == Direction::Pull && !room.shown.listed;
            if unlisted || room.state == State::Failed || room.report.is_some_and(|report| report.delivered) {
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
