//! What must hold in every state, and where nothing more can happen.

use engine::fabric::Fabric as _;

use super::base::{LAYERS, page_of};
use super::cell::{Cell, ROOMS, key};
use super::step::Side;

/// A law that does not hold in a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Broken {
    pub(super) law: &'static str,
    pub(super) what: String,
}

/// What decode writes behind the prompt.
pub(super) const APPENDED: u8 = 0xA5;

/// Fills pages and slots that nobody owns.
pub(super) fn mark(side: Side) -> u8 {
    match side {
        Side::Prefill => 0xF0,
        Side::Decode => 0xD0,
    }
}

/// Bytes of the aux row in a slot, and of a seal behind it.
const AUX: usize = 64;

impl Cell<'_> {
    pub(super) fn breaks(&mut self, law: &'static str, what: String) {
        self.broken.get_or_insert(Broken { law, what });
    }

    /// Looks at every byte of decode that somebody could have written, and at what a run without faults never sees.
    pub(super) fn check(&mut self) {
        let mut owner = None;
        for room in 0..ROOMS {
            if let Some(page) = self.around[1].pages[room] {
                owner = Some((room, page));
            }
        }
        let free = [mark(Side::Decode)];
        for page in 1..2 {
            let of = owner.filter(|(_, own)| *own == page).map(|(room, _)| room);
            for layer in 0..LAYERS {
                let bytes = page_of(self.fabrics.host_ref(1), self.memory(Side::Decode), layer, page);
                let filled = |byte: u8| bytes.iter().all(|b| *b == byte);
                let right = match of.map(|room| (room, self.around[1].ended[room])) {
                    None => filled(free[0]),
                    Some((_, Some(true))) => filled(APPENDED),
                    Some((room, _)) => filled(free[0]) || bytes == self.base.content[room][layer as usize],
                };
                if right {
                    continue;
                }
                let law = match of {
                    Some(room) if self.around[1].ended[room] == Some(true) => {
                        "data lands after decode's Success"
                    }
                    _ => "data lands in pages of another room or freed",
                };
                let whose = of.map_or("nobody".to_owned(), |room| format!("room {}", room + 1));
                self.breaks(law, format!("layer {layer} of page {page}, which {whose} owns"));
            }
        }
        self.check_slot(owner.map(|(room, _)| room));
        if self.undisturbed && self.fabrics.counters().rnr_naks > 0 {
            self.breaks("receiver not ready in a fault-free run", "an immediate found no receive".to_owned());
        }
    }

    fn slot(&self) -> [u8; AUX + 32] {
        let mut bytes = [0; AUX + 32];
        if let Some(rank) = self.memory(Side::Decode).and_then(|memory| memory.ranks.first()) {
            let _ = self.fabrics.host_ref(1).read(rank.aux.buf, 0, &mut bytes);
        }
        bytes
    }

    /// The aux row and the seal begin with the number of their room.
    fn check_slot(&mut self, owner: Option<usize>) {
        let slot = self.slot();
        for (what, part) in [("aux row", &slot[..AUX]), ("seal", &slot[AUX..])] {
            let mut word = [0; 8];
            word.copy_from_slice(&part[..8]);
            let number = u64::from_le_bytes(word);
            let free = part.iter().all(|byte| *byte == mark(Side::Decode));
            if !free && owner.map(|room| room as u64 + 1) != Some(number) {
                let whose = owner.map_or("nobody".to_owned(), |room| format!("room {}", room + 1));
                let text = format!("the {what} of room {number} in the slot, which {whose} owns");
                self.breaks("seal or aux lands in a slot of another room or freed", text);
            }
        }
    }

    /// A side says Success of a room: at decode everything must be there; and where decode has not given the room up, prefill's word that it is
    /// delivered must be true.
    pub(super) fn check_success(&mut self, side: Side, room: usize) {
        let Some(page) = self.around[1].pages[room] else { return };
        if side == Side::Prefill && self.around[1].ended[room].is_some() {
            return;
        }
        let whole = (0..LAYERS).all(|layer| {
            page_of(self.fabrics.host_ref(1), self.memory(Side::Decode), layer, page)
                == self.base.content[room][layer as usize]
        });
        let mut word = [0; 8];
        word.copy_from_slice(&self.slot()[..8]);
        let aux = u64::from_le_bytes(word) == room as u64 + 1;
        let what = || format!("room {}", room + 1);
        match side {
            Side::Decode if !whole => self.breaks("Success without all data", what()),
            Side::Decode if !aux => self.breaks("Success without the aux row", what()),
            Side::Prefill if !whole || !aux => self.breaks("prefill says delivered, not true", what()),
            _ => {}
        }
    }

    /// Nothing but faults can happen any more.
    pub(super) fn check_end(&mut self) {
        for side in Side::BOTH {
            let (around, held) = (&self.around[side as usize], self.node(side).held());
            let clean = held.rooms + held.slots + held.timers + held.receives + held.pages == 0;
            // Prefill need not say how a room ended of which it was told so.
            let ended = |room: usize| match side {
                Side::Prefill => {
                    around.ended[room].is_some() || self.prefill.room_ended(&key(room)).is_some()
                }
                Side::Decode => around.ended[room].is_some(),
            };
            let open: Vec<usize> =
                (0..ROOMS).filter(|room| around.assigned[*room] && !around.dead && !ended(*room)).collect();
            let rooms = usize::from(self.base.scope.rooms);
            let failed: Vec<usize> = (0..rooms).filter(|room| around.ended[*room] != Some(true)).collect();
            // Prefill may hear of a fault what decode, done with the room, need not: each side's outcome is its own.
            let must = self.base.scope.must_succeed && (side == Side::Decode || self.undisturbed);
            let must = must && !failed.is_empty();
            if !clean || !open.is_empty() {
                let what = format!("{side} holds {held:?}; not ended: {open:?}");
                self.breaks("nothing more can happen, and something is held or undecided", what);
            } else if must {
                let what = format!("{side}: room {}", failed[0] + 1);
                self.breaks("a room that could succeed did not", what);
            }
        }
    }
}
