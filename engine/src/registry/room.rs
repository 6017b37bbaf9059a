//! The table of rooms: live ones, and tombstones of ended ones.

use super::{Outcome, Report, RoomKey};
use crate::id::{InstanceId, Room};
use crate::map::Map;
use crate::time::{Span, Time};
use std::collections::VecDeque;

/// No slot.
const NONE: u32 = u32::MAX;

/// What the registry knows of a room. One cache line: there are tens of thousands, and each message about a room finds it cold.
#[derive(Clone, Debug)]
#[repr(align(64))]
pub(super) struct RoomState {
    pub(super) key: RoomKey,
    pub(super) router: InstanceId,
    pub(super) prefill: InstanceId,
    pub(super) decode: InstanceId,
    /// Whether the sides were told of it.
    pub(super) assigned: bool,
    /// How it ended at prefill.
    pub(super) report: Option<Report>,
    /// How it ended at decode.
    pub(super) outcome: Option<Outcome>,
    /// Prefill said so, or is gone.
    pub(super) prefill_done: bool,
    /// Decode said so, or is gone.
    pub(super) decode_done: bool,
    /// Decode said where it wants the KV: a room of push.
    pub(super) pushed: bool,
    /// Prefill was told to end it.
    pub(super) aborted: bool,
    /// A tombstone, no longer live.
    ended: bool,
    /// The attempt before this one, as long as it is known.
    older: u32,
}

const _: () = assert!(size_of::<Option<RoomState>>() == 64);

impl RoomState {
    pub(super) fn new(key: RoomKey, router: InstanceId, prefill: InstanceId, decode: InstanceId) -> Self {
        Self {
            key,
            router,
            prefill,
            decode,
            assigned: false,
            report: None,
            outcome: None,
            prefill_done: false,
            decode_done: false,
            pushed: false,
            aborted: false,
            ended: false,
            older: NONE,
        }
    }
    pub(super) fn is_live(&self) -> bool {
        !self.ended
    }
}

/// Rooms by id, the latest attempt first. Ended ones stay for a while, so that what comes late can be answered.
#[derive(Clone, Debug)]
pub(super) struct Rooms {
    slots: Vec<Option<RoomState>>,
    free: Vec<u32>,
    latest: Map<Room, u32>,
    tombs: VecDeque<(Time, u32)>,
    live: usize,
    keep: Span,
    most_tombs: usize,
}

impl Rooms {
    pub(super) fn new(keep: Span, most_tombs: usize) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            latest: Map::default(),
            tombs: VecDeque::new(),
            live: 0,
            keep,
            most_tombs,
        }
    }

    /// Rooms that have not ended.
    pub(super) fn live(&self) -> usize {
        self.live
    }
    /// Rooms that have ended and are still known.
    pub(super) fn tombstones(&self) -> usize {
        self.tombs.len()
    }
    pub(super) fn at(&mut self, slot: u32) -> Option<&mut RoomState> {
        self.slots.get_mut(slot as usize)?.as_mut()
    }
    /// The latest attempt at a room.
    pub(super) fn latest(&self, room: Room) -> Option<&RoomState> {
        self.slots[*self.latest.get(&room)? as usize].as_ref()
    }
    /// Just this attempt.
    pub(super) fn find(&self, key: &RoomKey) -> Option<u32> {
        let mut slot = *self.latest.get(&key.room)?;
        loop {
            let state = self.slots.get(slot as usize)?.as_ref()?;
            if state.key.attempt == key.attempt {
                return Some(slot);
            }
            slot = state.older;
        }
    }

    /// Adds the newest attempt at a room.
    pub(super) fn insert(&mut self, mut state: RoomState) -> u32 {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() as u32 - 1
        });
        state.older = self.latest.insert(state.key.room, slot).unwrap_or(NONE);
        self.slots[slot as usize] = Some(state);
        self.live += 1;
        slot
    }

    /// Makes a room whose sides are both done a tombstone.
    pub(super) fn settle(&mut self, now: Time, slot: u32) {
        let until = now + self.keep;
        if let Some(state) = self.at(slot)
            && state.prefill_done
            && state.decode_done
            && state.is_live()
        {
            state.ended = true;
            self.live -= 1;
            self.tombs.push_back((until, slot));
        }
    }

    /// Slots that may be in use, for the rare walk over all rooms.
    pub(super) fn slots(&self) -> std::ops::Range<u32> {
        0..self.slots.len() as u32
    }

    /// Forgets tombstones whose time is up, and the oldest above the bound.
    pub(super) fn sweep(&mut self, now: Time) {
        while let Some(&(until, slot)) = self.tombs.front()
            && (until <= now || self.tombs.len() > self.most_tombs)
        {
            self.tombs.pop_front();
            self.forget(slot);
        }
    }

    fn forget(&mut self, slot: u32) {
        let Some(state) = self.slots[slot as usize].take() else { return };
        self.free.push(slot);
        let Some(&head) = self.latest.get(&state.key.room) else { return };
        if head == slot {
            match state.older {
                NONE => self.latest.remove(&state.key.room),
                older => self.latest.insert(state.key.room, older),
            };
            return;
        }
        let mut at = head;
        while let Some(newer) = self.at(at) {
            if newer.older == slot {
                newer.older = state.older;
                return;
            }
            at = newer.older;
        }
    }
}
