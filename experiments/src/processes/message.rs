//! What a node and the measuring process tell each other: JSON, one message a frame.

use engine::fabric::Objects;
use engine::id::{InstanceId, RequestId};
use engine::node::{Counters, Held, Reason, Record, Step};
use serde::{Deserialize, Serialize};

/// Version of these messages.
pub(super) const VERSION: u32 = 2;
/// Most records in a message: far below the longest frame.
pub(super) const MAX_ROWS: usize = 400;

/// From a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum FromNode {
    /// It is there. Said again until it is pinged.
    Hello(Hello),
    /// Answer to a ping.
    Pong {
        /// Which.
        ping: u32,
        /// Nanoseconds of its host's clock when it answered.
        at_ns: u64,
        /// Router: all instances have joined. Others: always.
        ready: bool,
    },
    /// Steps in requests' lives.
    Records {
        /// How many were sent before.
        first: u64,
        /// The steps.
        rows: Vec<Row>,
    },
    /// Answer to a look; all records made before were sent before.
    Holds {
        /// Which look.
        look: u32,
        /// What it holds.
        standing: Standing,
    },
    /// It has wound down.
    Bye {
        /// What is left.
        standing: Standing,
        /// Completions that were no success, in words.
        failures: Option<String>,
    },
    /// It cannot go on.
    Failed(String),
}

/// Who a node is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Hello {
    /// Of these messages.
    pub(super) version: u32,
    /// Rises with each restart.
    pub(super) life: u32,
    /// Of its host, new with each boot: equal ids share a clock.
    pub(super) boot: String,
    /// Of its experiment.
    pub(super) experiment: u64,
}

/// To a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum ToNode {
    /// To be answered at once.
    Ping {
        /// Which.
        ping: u32,
    },
    /// The workload begins (router).
    Start {
        /// When, in nanoseconds of the node's host's clock.
        zero_ns: u64,
    },
    /// To be answered with what it holds.
    Look {
        /// Which.
        look: u32,
    },
    /// Wind down.
    Stop,
}

/// A record: request, nanoseconds of the node's host's clock, kind of step, and up to two numbers of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Row(pub(super) u64, pub(super) u64, pub(super) u8, pub(super) u64, pub(super) u64);

impl Row {
    pub(super) fn new(at_ns: u64, record: &Record) -> Self {
        let (kind, a, b) = match record.step {
            Step::Routed { prefill, decode } => (0, prefill.0, decode.0),
            Step::PrefillStart { cached } => (1, cached.into(), 0),
            Step::PrefillEnd => (2, 0, 0),
            Step::TransferStart => (3, 0, 0),
            Step::Delivered { work_requests, bytes } => (4, work_requests, bytes),
            Step::Success => (5, 0, 0),
            Step::FirstToken => (6, 0, 0),
            Step::Finished => (7, 0, 0),
            Step::Preempted { tokens } => (8, tokens.into(), 0),
            Step::Failed(reason) => (9, reason as u64, 0),
            Step::Rejected(reason) => (10, reason as u64, 0),
            Step::Corrupt => (11, 0, 0),
            Step::Retried(reason) => (12, reason as u64, 0),
            Step::Lost(reason) => (13, reason as u64, 0),
        };
        Row(record.request.0, at_ns, kind, a, b)
    }

    /// The record; none if there is no such step.
    pub(super) fn record(&self) -> Option<Record> {
        let Row(request, _, kind, a, b) = *self;
        let small = || u32::try_from(a).ok();
        let reason = || Reason::from_wire(u8::try_from(a).ok()?);
        let step = match kind {
            0 => Step::Routed { prefill: InstanceId(a), decode: InstanceId(b) },
            1 => Step::PrefillStart { cached: small()? },
            2 => Step::PrefillEnd,
            3 => Step::TransferStart,
            4 => Step::Delivered { work_requests: a, bytes: b },
            5 => Step::Success,
            6 => Step::FirstToken,
            7 => Step::Finished,
            8 => Step::Preempted { tokens: small()? },
            9 => Step::Failed(reason()?),
            10 => Step::Rejected(reason()?),
            11 => Step::Corrupt,
            12 => Step::Retried(reason()?),
            13 => Step::Lost(reason()?),
            _ => return None,
        };
        Some(Record { request: RequestId(request), step })
    }
}

/// What a node holds and has counted, and what exists on its device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Standing {
    rooms: u64,
    pages: u64,
    slots: u64,
    pool_memory_regions: u64,
    pool_queue_pairs: u64,
    timers: u64,
    receives: u64,
    extrapolated: u64,
    registry_messages: u64,
    fences: u64,
    stale_immediates: u64,
    repeated_parts: u64,
    staged_parts: u64,
    scattered_parts: u64,
    copied_bytes: u64,
    checksum_mismatches: u64,
    malformed_frames: u64,
    pub(super) memory_regions: u64,
    pub(super) queue_pairs: u64,
    pub(super) buffers: u64,
}

impl Standing {
    pub(super) fn new(held: &Held, counters: &Counters, objects: &Objects) -> Self {
        Self {
            rooms: held.rooms,
            pages: held.pages,
            slots: held.slots,
            pool_memory_regions: held.pool_memory_regions,
            pool_queue_pairs: held.pool_queue_pairs,
            timers: held.timers,
            receives: held.receives,
            extrapolated: counters.extrapolated,
            registry_messages: counters.registry_messages,
            fences: counters.fences,
            stale_immediates: counters.stale_immediates,
            repeated_parts: counters.repeated_parts,
            staged_parts: counters.staged_parts,
            scattered_parts: counters.scattered_parts,
            copied_bytes: counters.copied_bytes,
            checksum_mismatches: counters.checksum_mismatches,
            malformed_frames: counters.malformed_frames,
            memory_regions: objects.memory_regions as u64,
            queue_pairs: objects.queue_pairs as u64,
            buffers: objects.buffers as u64,
        }
    }

    pub(super) fn held(&self) -> Held {
        Held {
            rooms: self.rooms,
            pages: self.pages,
            slots: self.slots,
            pool_memory_regions: self.pool_memory_regions,
            pool_queue_pairs: self.pool_queue_pairs,
            timers: self.timers,
            receives: self.receives,
            ..Held::default()
        }
    }

    pub(super) fn counters(&self) -> Counters {
        Counters {
            extrapolated: self.extrapolated,
            registry_messages: self.registry_messages,
            fences: self.fences,
            stale_immediates: self.stale_immediates,
            repeated_parts: self.repeated_parts,
            staged_parts: self.staged_parts,
            scattered_parts: self.scattered_parts,
            copied_bytes: self.copied_bytes,
            checksum_mismatches: self.checksum_mismatches,
            malformed_frames: self.malformed_frames,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::registry::MAX_FRAME;

    #[test]
    fn records_come_back() {
        let steps = [
            Step::Routed { prefill: InstanceId(u64::MAX), decode: InstanceId(7) },
            Step::PrefillStart { cached: 512 },
            Step::PrefillEnd,
            Step::TransferStart,
            Step::Delivered { work_requests: 3, bytes: u64::MAX },
            Step::Success,
            Step::FirstToken,
            Step::Finished,
            Step::Preempted { tokens: 9 },
            Step::Failed(Reason::PeerGone),
            Step::Rejected(Reason::TooLong),
            Step::Corrupt,
            Step::Retried(Reason::Busy),
            Step::Lost(Reason::LeaseLost),
        ];
        for step in steps {
            let record = Record { request: RequestId(5), step };
            assert_eq!(Row::new(8, &record).record(), Some(record));
        }
        for wrong in
            [Row(0, 0, 14, 0, 0), Row(0, 0, 9, 15, 0), Row(0, 0, 9, 300, 0), Row(0, 0, 1, u64::MAX, 0)]
        {
            assert_eq!(wrong.record(), None, "{wrong:?}");
        }
    }

    #[test]
    fn the_longest_message_fits_a_frame() {
        let row = Row(u64::MAX, u64::MAX, u8::MAX, u64::MAX, u64::MAX);
        let message = FromNode::Records { first: u64::MAX, rows: vec![row; MAX_ROWS] };
        let text = serde_json::to_vec(&message).expect("json");
        assert!(text.len() <= MAX_FRAME, "{}", text.len());
        assert_eq!(serde_json::from_slice::<FromNode>(&text).expect("json"), message);
    }
}
