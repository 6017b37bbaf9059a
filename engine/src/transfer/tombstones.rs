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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Room;

    #[test]
    fn rooms_are_remembered_for_as_long_as_asked() {
        let key = |room| RoomKey { room: Room(room), attempt: 1 };
        let mut tombstones = Tombstones::new(Span(100));
        tombstones.add(Time(50), key(2), "delivered");
        tombstones.add(Time(60), key(1), "failed");
        // What is remembered is told apart, in the order of the rooms.
        let told = format!("{tombstones:?}");
        assert!(told.find("failed") < told.find("delivered") && told.contains("failed"), "{told}");
        tombstones.add(Time(150), key(3), "failed");
        assert_eq!(tombstones.get(&key(2)), Some(&"delivered"));
        tombstones.add(Time(151), key(4), "failed");
        let known = [2, 1, 3, 4].map(|room| tombstones.get(&key(room)).is_some());
        assert_eq!(known, [false, true, true, true]);
    }
}
