//! What only a target of READs does: shows its pages, says what of the KV is in them, and takes the initiator's word for the rest.

use super::super::checksum::{Side, fold, of_feed};
use super::super::news::News;
use super::super::pages::PageTable;
use super::super::wire::AuxRow;
use super::room::{NO_SLOT, Room, State};
use super::{Target, TargetRoom};
use crate::node::{Cx, Reason};
use crate::registry::{Message, Piece, Report, RoomKey};
use std::ops::Range;

/// What of a room there is to read.
#[derive(Clone, Debug, Default)]
pub(super) struct Shown {
    /// This side's pages; none yet if it has no slot either.
    table: PageTable,
    /// Tokens that came from the prefix cache.
    cached: u32,
    /// The initiator was told of the pages: from now on it may read them.
    pub(super) listed: bool,
    /// KV that is there, in the order in which it came.
    pieces: Vec<Piece>,
    /// How many of these the initiator was told of, and how often.
    told: usize,
    messages: u16,
    /// All of the KV is there, and the initiator knows.
    all: bool,
    all_told: bool,
    /// With checksums: of what was told of, by feed.
    sums: Vec<u64>,
}

impl Shown {
    /// Whether the initiator was told of any KV.
    pub(super) fn is_told(&self) -> bool {
        self.told > 0 || self.all_told
    }
}

impl Target {
    /// Opens a room whose pages will be read. False if it is open already, and what the initiator must know is told again; or has ended
    /// here, which is told again as well.
    pub fn open_shown(&mut self, cx: &mut Cx<'_>, spec: TargetRoom) -> bool {
        let key = spec.key;
        if let Some(index) = self.by_key.get(&key).copied() {
            self.show_again(cx, index);
            return false;
        }
        if self.knows_room(&key) {
            self.over(key);
            return false;
        }
        self.add(Room::new(spec));
        self.timers.arm(key, cx.now + self.config.room_deadline);
        true
    }

    /// The registry lost what was said of a live room: all of it is said again. It stays listed, for it may be read already.
    fn show_again(&mut self, cx: &mut Cx<'_>, index: u32) {
        let Some(room) = self.rooms[index as usize].as_mut() else { return };
        if room.state != State::Live || !room.shown.listed {
            return;
        }
        (room.shown.told, room.shown.messages, room.shown.all_told) = (0, 0, false);
        room.shown.sums.clear();
        self.list_shown(index);
        self.show(cx, index);
    }

    /// Says which pages of this side are to be read.
    fn list_shown(&mut self, index: u32) {
        let Some(room) = self.rooms[index as usize].as_mut() else { return };
        room.shown.listed = true;
        let table = std::mem::take(&mut room.shown.table);
        self.list(index, &table, 0);
        if let Some(room) = self.rooms[index as usize].as_mut() {
            room.shown.table = table;
        }
    }

    /// Whether the room is open and not decided.
    pub fn is_live(&self, key: &RoomKey) -> bool {
        self.by_key
            .get(key)
            .is_some_and(|i| self.rooms[*i as usize].as_ref().is_some_and(|room| room.state == State::Live))
    }

    /// Whether [`Target::attach`] finds a slot.
    pub fn can_attach(&self) -> bool {
        !self.free_slots.is_empty()
    }

    /// The room's pages on this side, and how many of its tokens came from the prefix cache. They are shown to the initiator. False if there
    /// is no slot, or no such room.
    pub fn attach(&mut self, cx: &mut Cx<'_>, key: &RoomKey, table: &PageTable, cached: u32) -> bool {
        let Some(index) = self.by_key.get(key).copied() else { return false };
        let Some(room) = self.rooms[index as usize].as_mut() else { return false };
        if room.state != State::Live || room.slot != NO_SLOT {
            return false;
        }
        let Some(slot) = self.free_slots.pop_front() else { return false };
        let (generation, owner) = &mut self.slots[usize::from(slot)];
        *owner = Some(index);
        (room.slot, room.generation) = (slot, *generation);
        room.shown.table.clone_from(table);
        room.shown.cached = cached;
        self.show(cx, index);
        true
    }

    /// More KV of a room is in its pages: these tokens of these layers. `last` says that it was the rest.
    pub fn produced(
        &mut self,
        cx: &mut Cx<'_>,
        key: &RoomKey,
        tokens: Range<u32>,
        layers: Range<u32>,
        last: bool,
    ) {
        let Some(index) = self.by_key.get(key).copied() else { return };
        let Some(room) = self.rooms[index as usize].as_mut() else { return };
        let shown = &mut room.shown;
        if room.state != State::Live || shown.all {
            return;
        }
        if !tokens.is_empty() && !layers.is_empty() {
            match shown.pieces[shown.told..].last_mut() {
                Some(piece) if piece.tokens.end == tokens.start && piece.layers == layers => {
                    piece.tokens.end = tokens.end;
                }
                Some(piece) if piece.tokens == tokens && piece.layers.end == layers.start => {
                    piece.layers.end = layers.end;
                }
                _ => shown.pieces.push(Piece { tokens, layers }),
            }
        }
        shown.all = last;
        self.show(cx, index);
    }

    /// Tells the initiator what it does not know yet: the pages, once there are any and the peer is known, then the pieces in them.
    /// Messages are bounded as parts are in push: what is beyond is kept back until everything is there.
    pub(super) fn show(&mut self, cx: &mut Cx<'_>, index: u32) {
        let Some(room) = self.rooms.get_mut(index as usize).and_then(Option::as_mut) else { return };
        if room.state != State::Live || room.slot == NO_SLOT || !self.links.contains_key(&room.spec.peer) {
            return;
        }
        if !room.shown.listed {
            self.list_shown(index);
        }
        let Some(room) = self.rooms[index as usize].as_mut() else { return };
        let shown = &mut room.shown;
        let more = shown.told < shown.pieces.len() || shown.all;
        let kept_back = !shown.all && shown.messages + 1 >= self.config.parts_per_rail.max(1);
        if shown.all_told || !more || kept_back {
            return;
        }
        let (key, request) = (room.spec.key, room.spec.request);
        let (before, last) = (shown.told as u32, shown.all);
        let pieces = shown.pieces[shown.told..].to_vec();
        (shown.told, shown.all_told) = (shown.pieces.len(), shown.all);
        shown.messages += 1;
        let mut sums = std::mem::take(&mut shown.sums);
        if self.config.checksums && !self.add_up(cx, index, &pieces, &mut sums) {
            self.fail(cx, key, Reason::Checksum, true);
            return;
        }
        let Some(room) = self.rooms[index as usize].as_mut() else { return };
        let told = last.then(|| sums.iter().map(|sum| fold(*sum)).collect());
        room.shown.sums = sums;
        let shown = &room.shown;
        if last {
            // In place before the word that it can be read, with the last of the KV.
            let row = AuxRow { key, request, token: AuxRow::first_token(request), cached: shown.cached };
            let (group, slot) = (room.spec.group, room.slot);
            if self.memory.write_aux(cx.fabric, group, slot, &row).is_err() {
                self.fail(cx, key, Reason::Transfer, true);
                return;
            }
        }
        self.news.push_back(News::Tell(Message::Produced { key, before, pieces, last: told }));
    }

    /// Adds the checksums of some pieces to those of a room's feeds. False if its memory cannot be read.
    fn add_up(&self, cx: &mut Cx<'_>, index: u32, pieces: &[Piece], sums: &mut Vec<u64>) -> bool {
        let Some(room) = self.rooms[index as usize].as_ref() else { return false };
        let Some(link) = self.links.get(&room.spec.peer) else { return false };
        let (pairing, groups) = (&link.pairing, self.memory.layout().parallel().dp as u16);
        sums.resize(pairing.feeds.len(), 0);
        pieces.iter().all(|piece| {
            (0..).zip(sums.iter_mut()).all(|(feed, sum)| {
                let wire = pairing.wire(groups, 0, room.spec.group, feed, 0);
                let (side, range) = (Side::Target(pairing.wires[wire].dst), (&piece.tokens, &piece.layers));
                let more = of_feed(cx.fabric, &self.memory, pairing, feed, side, &room.shown.table, range);
                *sum = sum.wrapping_add(*more.as_ref().unwrap_or(&0));
                more.is_ok()
            })
        })
    }

    /// The initiator has read everything, and nothing of it is outstanding.
    pub(super) fn was_read(&mut self, cx: &mut Cx<'_>, index: u32) {
        let Some(room) = self.rooms[index as usize].as_mut() else { return };
        (room.state, room.finished) = (State::Success, true);
        let key = room.spec.key;
        self.timers.cancel(key);
        self.news.push_back(News::Success(key));
        self.release(cx, index);
    }

    /// Says that a room is over here without the initiator's word on it: nothing is expected of this side any more.
    pub(super) fn over(&mut self, key: RoomKey) {
        let report = Report { delivered: false, clean: true };
        self.news.push_back(News::Tell(Message::Report { key, report }));
    }
}
