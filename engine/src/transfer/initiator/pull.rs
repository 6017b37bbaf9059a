//! What only an initiator that READs does: it is told what there is to read, and its own completions say that it is here.

use super::super::checksum::{Side, fold, of_feed};
use super::super::pages::PageTable;
use super::Initiator;
use crate::node::{Cx, Reason, Step};
use crate::registry::{Message, Piece, RoomKey};
use crate::transfer::News;

impl Initiator {
    /// Whether [`Initiator::land`] finds a slot.
    pub fn can_land(&self) -> bool {
        !self.free_slots.is_empty()
    }

    /// Whether a slot can ever be free.
    pub fn could_land(&self) -> bool {
        self.config.slots > 0
    }

    /// Whether the room has ended here, or is open.
    pub fn knows_room(&self, key: &RoomKey) -> bool {
        self.by_key.contains(key) || (self.config.rules.tombstones && self.tombstones.get(key).is_some())
    }

    /// Gives an open room the pages of this side; what can be read is read from now on. False if there is no slot for its aux row, or no
    /// such room.
    pub fn land(&mut self, cx: &mut Cx<'_>, key: &RoomKey, table: &PageTable) -> bool {
        let Some(index) = self.by_key.get(key).copied() else { return false };
        let Some(room) = self.rooms.get_mut(index as usize).and_then(Option::as_mut) else { return false };
        if room.ending || room.landing.is_some() {
            return false;
        }
        let Some(slot) = self.free_slots.pop_front() else { return false };
        room.landing = Some(slot);
        room.src.clone_from(table);
        self.go_on(cx, index);
        true
    }

    /// The target's word that these pieces are in its pages, `before` others having been told of. What was told already is passed over, so
    /// that everything can be told again after a restart of the registry; what leaves a gap will be. `last` comes with the rest, and has the
    /// checksum of each feed where there are any.
    pub fn told(
        &mut self,
        cx: &mut Cx<'_>,
        key: &RoomKey,
        before: u32,
        pieces: &[Piece],
        last: Option<&[u64]>,
    ) {
        let Some(index) = self.by_key.get(key).copied() else { return };
        let layers = self.memory.layout().model().layers;
        let Some(room) = self.rooms.get_mut(index as usize).and_then(Option::as_mut) else { return };
        if room.ending || room.all_produced || before > room.told.0 {
            return;
        }
        if let Some(sums) = last {
            room.sums = sums.to_vec();
        }
        let last = last.is_some();
        let new = pieces.get((room.told.0 - before) as usize..).unwrap_or_default();
        let outside = |piece: &Piece| piece.tokens.end > room.spec.tokens || piece.layers.end > layers;
        let mut refused = new.iter().any(outside);
        for piece in new {
            room.told.0 += 1;
            room.told.1 += piece.tokens.len() as u64 * piece.layers.len() as u64;
        }
        // The rest of less than everything: what is missing would be taken for read.
        refused |= last && room.told.1 != u64::from(room.spec.tokens) * u64::from(layers);
        if refused {
            self.fail(cx, *key, Reason::Refused, true);
            return;
        }
        let (Some(end), before) = (new.last().cloned(), new.len().saturating_sub(1)) else {
            if last {
                self.produced(cx, key, 0..0, 0..0, true);
            }
            return;
        };
        for piece in &new[..before] {
            Self::join(&mut room.pieces, piece.tokens.clone(), piece.layers.clone());
        }
        self.produced(cx, key, end.tokens, end.layers, last);
    }

    /// Whether what was read is here and can be seen: the aux row is this room's.
    pub(super) fn has_arrived(&mut self, cx: &mut Cx<'_>, index: u32) -> bool {
        let Some(room) = self.rooms.get(index as usize).and_then(Option::as_ref) else { return false };
        let (key, request) = (room.spec.key, room.spec.request);
        let slot = room.landing.unwrap_or_default();
        let (group, named) = (room.spec.group, self.config.rules.seals_name_rooms);
        let here = self.memory.has_arrived(cx.fabric, group, slot, (key, request), named);
        if !here {
            // All parts completed, so this cannot be while the rules hold: decode must not start on it.
            self.stats.missing_aux += 1;
            cx.out.record(request, Step::Corrupt);
        }
        here
    }

    /// Whether what was read has the checksums that prefill said; true without checksums.
    pub(super) fn is_as_sent(&mut self, cx: &mut Cx<'_>, index: u32) -> bool {
        if !self.config.checksums || !self.config.rules.checksums_compared {
            return true;
        }
        let Some(room) = self.rooms.get(index as usize).and_then(Option::as_ref) else { return false };
        let (Some(link), Some(remote)) = (self.links.get(&room.spec.peer), &room.remote) else {
            return false;
        };
        let pairing = &link.pairing;
        let (tokens, layers) = (0..room.spec.tokens, 0..u32::MAX);
        room.sums.len() == pairing.feeds.len()
            && (0..pairing.feeds.len()).all(|feed| {
                let wire = pairing.wire(link.facts.dp, room.spec.group, remote.group, feed, 0);
                let (side, range) = (Side::Initiator(pairing.wires[wire].src), (&tokens, &layers));
                let sum = of_feed(cx.fabric, &self.memory, pairing, feed, side, &room.src, range);
                sum.map(fold) == Ok(room.sums[feed])
            })
    }

    /// This side needs the pages of a room no more; or, of one not yet decided, wants it no more.
    pub fn finish(&mut self, cx: &mut Cx<'_>, key: RoomKey) {
        if self.by_key.contains(&key) {
            self.fail(cx, key, Reason::Aborted, true);
        } else {
            // Success was the end of the room here: nothing is outstanding that names the pages.
            self.news.push_back(News::Released(key));
        }
    }

    /// The registry lost what was said of a room. If it has ended here, its report is told again.
    pub fn tell_again(&mut self, key: RoomKey) {
        if let Some(report) = self.tombstones.get(&key).copied() {
            self.news.push_back(News::Tell(Message::Report { key, report }));
        }
    }

    /// The target ended a room by itself: what is posted for it is of no use.
    pub fn ended_there(&mut self, cx: &mut Cx<'_>, key: RoomKey) {
        self.fail(cx, key, Reason::Transfer, false);
    }
}
