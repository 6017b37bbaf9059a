//! Memory of ended rooms, so that a late message cannot bring one back.

use crate::map::Map;
use crate::registry::RoomKey;
use crate::time::{Span, Time};
use std::collections::VecDeque;

/// Rooms that ended here within the last `keep`, and how.
#[derive(Clone)]
pub(crate) struct Tombstones<V> {
    keep: Span,
    rooms: Map<RoomKey, V>,
    queue: VecDeque<(Time, RoomKey)>,
}

impl<V> Tombstones<V> {
    pub(crate) fn new(keep: Span) -> Self {
        Self { keep, rooms: Map::default(), queue: VecDeque::new() }
    }
    /// The room ended.
    pub(crate) fn add(&mut self, now: Time, key: RoomKey, how: V) {
        while self.queue.front().is_some_and(|(at, _)| now.since(*at) > self.keep) {
            if let Some((_, old)) = self.queue.pop_front() {
                self.rooms.remove(&old);
            }
        }
        if self.rooms.insert(key, how).is_none() {
            self.queue.push_back((now, key));
        }
    }
    /// How it ended here, if it did.
    pub(crate) fn get(&self, key: &RoomKey) -> Option<&V> {
        self.rooms.get(key)
    }
}

/// Which rooms and how they ended: when is not told.
impl<V: std::fmt::Debug> std::fmt::Debug for Tombstones<V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut keys: Vec<&RoomKey> = self.queue.iter().map(|(_, key)| key).collect();
        keys.sort_unstable();
        f.debug_map().entries(keys.into_iter().map(|key| (key, self.rooms.get(key)))).finish()
    }
}
