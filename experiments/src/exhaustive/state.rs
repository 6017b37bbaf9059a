//! When two states are the same.

use std::collections::hash_map::DefaultHasher;
use std::hash::Hasher;
use std::io::Write as _;

use sim::fabric::Lane;

use super::cell::Cell;

impl Cell<'_> {
    /// A fingerprint of all that a later step can see. `buffer` is for its memory only.
    pub(super) fn fingerprint(&self, buffer: &mut Vec<u8>) -> u128 {
        buffer.clear();
        // Writing to memory does not fail, here and below.
        let _ = write!(buffer, "{:?}{:?}", self.prefill, self.decode);
        for around in &self.around {
            let rooms = (around.assigned, around.ended, around.done, around.lease_over, around.dead);
            let _ = write!(buffer, "{rooms:?}{:?}{:?}{:?}", around.inbox, around.late, around.events);
        }
        let rest = (self.created, self.paused, self.left, self.undisturbed);
        let _ = write!(buffer, "{rest:?}");
        self.fabrics.show(self.now, buffer);
        // Within a lane events come in the order of their times; between lanes it means nothing.
        let mut lanes: Vec<(Lane, String)> = Vec::new();
        for (_, event) in &self.pending.0 {
            let lane = event.lane();
            let what = match lane {
                // The send queue says which they are.
                Lane::Requests { .. } => String::new(),
                _ => format!("{event:?}"),
            };
            lanes.push((lane, what));
        }
        lanes.sort_by_key(|(lane, _)| *lane);
        let _ = write!(buffer, "{lanes:?}");
        let half = |seed: u64| {
            // SipHash with a key that is always the same.
            let mut hasher = DefaultHasher::new();
            hasher.write_u64(seed);
            hasher.write(buffer);
            u128::from(hasher.finish())
        };
        half(1) << 64 | half(2)
    }
}
