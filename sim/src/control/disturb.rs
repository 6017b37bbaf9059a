//! Frames that faults disturb.

use super::stream_of;
use crate::fault::{ControlFault, Disturbance, FaultKind, Ppm};
use engine::id::NodeId;
use engine::time::{Span, Time};
use rand::RngExt as _;
use rand_chacha::ChaCha8Rng;

/// What faults did to frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Disturbed {
    /// Lost.
    pub lost: u64,
    /// Came twice.
    pub duplicated: u64,
    /// Held back.
    pub reordered: u64,
    /// Came later.
    pub delayed: u64,
    /// Came in part.
    pub truncated: u64,
    /// Came with changed bytes.
    pub garbled: u64,
}

/// How a frame's bytes come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Damage {
    None,
    /// So many thousandths of its bytes.
    Cut(u32),
    /// Changed at places that follow from this word.
    Changed(u64),
}

impl Damage {
    /// The bytes that arrive.
    pub(crate) fn apply(self, bytes: &mut Vec<u8>) {
        match self {
            Damage::None => {}
            Damage::Cut(thousandths) => bytes.truncate(bytes.len() * thousandths as usize / 1000),
            Damage::Changed(mut word) => {
                let len = bytes.len().max(1) as u64;
                for _ in 0..=word % 8 {
                    // Knuth's multiplicative generator: any places do.
                    word = word.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
                    if let Some(byte) = bytes.get_mut(((word >> 32) % len) as usize) {
                        *byte ^= (word >> 24) as u8 | 1;
                    }
                }
            }
        }
    }
}

/// A frame that arrives.
pub(crate) type Arrival = (Time, Damage);

/// The disturbances that go on.
#[derive(Default)]
pub(super) struct Disturbances {
    active: Vec<ControlFault>,
    streams: Vec<Option<Box<ChaCha8Rng>>>,
    pub(super) counted: Disturbed,
}

impl Disturbances {
    pub(super) fn begin(&mut self, fault: ControlFault) {
        self.active.push(fault);
    }

    pub(super) fn end(&mut self, fault: &ControlFault) {
        if let Some(at) = self.active.iter().position(|active| active == fault) {
            self.active.remove(at);
        }
    }

    pub(super) fn are_none(&self) -> bool {
        self.active.is_empty()
    }

    /// What becomes of the arrivals of one frame.
    pub(super) fn act(
        &mut self,
        arrivals: &mut Vec<Arrival>,
        (from, to): (NodeId, NodeId),
        index: usize,
        seed: u64,
    ) {
        if self.streams.len() <= index {
            self.streams.resize_with(index + 1, || None);
        }
        let Some(stream) = self.streams.get_mut(index) else { return };
        // Another seed than the channel's own loss: one must not follow from the other.
        let rng = stream.get_or_insert_with(|| Box::new(stream_of(seed ^ 0x6661_756c_7473, index as u64)));
        let c = &mut self.counted;
        for fault in &self.active {
            let meant = fault.from.is_none_or(|node| node == from) && fault.to.is_none_or(|node| node == to);
            if !meant {
                continue;
            }
            let mut at = 0;
            while at < arrivals.len() {
                if fault.probability < Ppm::ONE && !rng.random_bool(fault.probability.share()) {
                    at += 1;
                    continue;
                }
                let within = |rng: &mut ChaCha8Rng, span: Span| Span(rng.random_range(0..=span.0));
                match fault.how {
                    Disturbance::Lose => {
                        c.lost += 1;
                        arrivals.remove(at);
                        continue;
                    }
                    Disturbance::Duplicate(by) => {
                        c.duplicated += 1;
                        let (when, damage) = arrivals[at];
                        let again = when + within(rng, by);
                        arrivals.insert(at + 1, (again, damage));
                        at += 1;
                    }
                    Disturbance::Reorder(by) => {
                        c.reordered += 1;
                        arrivals[at].0 += within(rng, by);
                    }
                    Disturbance::Delay(by) => {
                        c.delayed += 1;
                        arrivals[at].0 += by;
                    }
                    Disturbance::Truncate => {
                        c.truncated += 1;
                        arrivals[at].1 = Damage::Cut(rng.random_range(0..1000));
                    }
                    Disturbance::Garble => {
                        c.garbled += 1;
                        arrivals[at].1 = Damage::Changed(rng.random_range(0..=u64::MAX));
                    }
                }
                at += 1;
            }
        }
    }
}

impl Disturbed {
    /// Frames of one kind of fault; 0 for a kind that is not of the control channel.
    #[must_use]
    pub fn of(&self, kind: FaultKind) -> u64 {
        match kind {
            FaultKind::ControlLoss => self.lost,
            FaultKind::ControlDuplicate => self.duplicated,
            FaultKind::ControlReorder => self.reordered,
            FaultKind::ControlDelay => self.delayed,
            FaultKind::ControlTruncate => self.truncated,
            FaultKind::ControlGarble => self.garbled,
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_always_seen() {
        for word in 0..200u64 {
            let whole: Vec<u8> = (0..60).collect();
            let mut changed = whole.clone();
            Damage::Changed(word.wrapping_mul(0x9e37_79b9_7f4a_7c15)).apply(&mut changed);
            assert_eq!(changed.len(), whole.len());
            let mut cut = whole.clone();
            Damage::Cut(word as u32 * 5 % 1000).apply(&mut cut);
            assert!(cut.len() < whole.len() && whole.starts_with(&cut));
        }
        Damage::Changed(3).apply(&mut Vec::new());
    }
}
