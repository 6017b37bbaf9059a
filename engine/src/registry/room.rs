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

/// Slots that are made at a time.
const CHUNK: usize = 1024;

/// Rooms by slot, in chunks that stay where they are: growing copies nothing, which would hold up all that waits for milliseconds.
#[derive(Clone, Debug, Default)]
struct Slots {
    chunks: Vec<Box<[Option<RoomState>]>>,
    len: u32,
}

impl Slots {
    fn get(&self, slot: u32) -> Option<&Option<RoomState>> {
        self.chunks.get(slot as usize / CHUNK)?.get(slot as usize % CHUNK)
    }

    fn get_mut(&mut self, slot: u32) -> Option<&mut Option<RoomState>> {
        self.chunks.get_mut(slot as usize / CHUNK)?.get_mut(slot as usize % CHUNK)
    }

    /// A new slot, with nothing in it.
    fn add(&mut self) -> u32 {
        if self.len as usize == self.chunks.len() * CHUNK {
            self.chunks.push(vec![None; CHUNK].into());
        }
        self.len += 1;
        self.len - 1
    }
}

/// Rooms of one leaf of the [`Index`].
const LEAF: usize = 16;

/// From a room to a slot. A router numbers its rooms one after the other, so that neighbours share a cache line: a table of single rooms is
/// sixteen times as large, and cold for each message.
#[derive(Clone, Debug, Default)]
struct Index(Map<u64, Leaf>);

/// Slots of neighbouring rooms, [`NONE`] where there is none.
#[derive(Clone, Copy, Debug)]
struct Leaf([u32; LEAF]);

impl Index {
    fn place(room: Room) -> (u64, usize) {
        (room.0 / LEAF as u64, (room.0 % LEAF as u64) as usize)
    }

    fn get(&self, room: Room) -> Option<u32> {
        let (leaf, at) = Self::place(room);
        Some(self.0.get(&leaf)?.0[at]).filter(|slot| *slot != NONE)
    }

    /// Sets the slot of a room, to [`NONE`] too. What it was.
    fn set(&mut self, room: Room, slot: u32) -> u32 {
        let (key, at) = Self::place(room);
        let leaf = self.0.or_insert_with(key, || Leaf([NONE; LEAF]));
        let before = std::mem::replace(&mut leaf.0[at], slot);
        if slot == NONE && leaf.0.iter().all(|slot| *slot == NONE) {
            self.0.remove(&key);
        }
        before
    }
}

/// Rooms by id, the latest attempt first. Ended ones stay for a while, so that what comes late can be answered.
#[derive(Clone, Debug)]
pub(super) struct Rooms {
    slots: Slots,
    free: Vec<u32>,
    latest: Index,
    tombs: VecDeque<(Time, u32)>,
    live: usize,
    keep: Span,
    most_tombs: usize,
}

impl Rooms {
    pub(super) fn new(keep: Span, most_tombs: usize) -> Self {
        Self {
            slots: Slots::default(),
            free: Vec::new(),
            latest: Index::default(),
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
        self.slots.get_mut(slot)?.as_mut()
    }
    /// The latest attempt at a room.
    pub(super) fn latest(&self, room: Room) -> Option<&RoomState> {
        self.slots.get(self.latest.get(room)?)?.as_ref()
    }
    /// Just this attempt.
    pub(super) fn find(&self, key: &RoomKey) -> Option<u32> {
        let mut slot = self.latest.get(key.room)?;
        loop {
            let state = self.slots.get(slot)?.as_ref()?;
            if state.key.attempt == key.attempt {
                return Some(slot);
            }
            slot = state.older;
        }
    }

    /// Adds the newest attempt at a room.
    pub(super) fn insert(&mut self, mut state: RoomState) -> u32 {
        let slot = self.free.pop().unwrap_or_else(|| self.slots.add());
        state.older = self.latest.set(state.key.room, slot);
        if let Some(place) = self.slots.get_mut(slot) {
            *place = Some(state);
        }
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
        0..self.slots.len
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
        let Some(state) = self.slots.get_mut(slot).and_then(Option::take) else { return };
        self.free.push(slot);
        let Some(head) = self.latest.get(state.key.room) else { return };
        if head == slot {
            self.latest.set(state.key.room, state.older);
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
