//! What a driver runs: nodes, which take inputs and leave posted work, frames and records behind.
//!
//! A [`Node`] is one process: the registry, the router, or one instance's ranks on one host. It is handed everything
//! it may touch in a [`Cx`] and keeps nothing of it. Time comes in with each input; a node that wants to be woken
//! names one [`Node::deadline`] and keeps its own timers, so that no driver has to.

mod cache;
mod compute;
mod decode;
mod instance;
mod job;
mod prefill;
mod router;

pub use crate::policy::Admission;
pub use compute::{Chunk, Compute, Estimate};
pub use decode::DecodeNode;
pub use instance::{InstanceConfig, StartError};
pub use prefill::PrefillNode;
pub use router::{RouterConfig, RouterNode};

use crate::fabric::{Completion, Event, Fabric};
use crate::id::{CqId, InstanceId, NodeId, RequestId};
use crate::registry::RoomKey;
use crate::time::Time;
use std::ops::Range;

/// One request of the workload, as it reaches the router.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// Its number in the workload.
    pub id: RequestId,
    /// Tokens of the prompt.
    pub prompt: u32,
    /// Tokens to generate, the first one (from prefill) included.
    pub output: u32,
    /// Who sent it, for fairness.
    pub tenant: u32,
    /// Content ids of its prefix, one for each [`BLOCK_TOKENS`] tokens; empty if it shares nothing.
    pub blocks: Vec<u64>,
}

/// Tokens of a prefix block, as in the Mooncake traces (Qin et al., "Mooncake", FAST '25).
pub const BLOCK_TOKENS: u32 = 512;

/// What happens to a node.
#[derive(Clone, Debug)]
pub enum Input<'a> {
    /// The process has started.
    Start,
    /// The node's own deadline has come.
    Wake,
    /// A frame from the control channel: bytes from outside, to be checked.
    Frame {
        /// Who sent it, as the channel knows it.
        from: NodeId,
        /// The frame.
        bytes: &'a [u8],
    },
    /// Completions that the driver polled.
    Completions {
        /// From this queue.
        cq: CqId,
        /// Oldest first.
        batch: &'a [Completion],
    },
    /// An asynchronous event of the fabric.
    Fabric(Event),
    /// A request of the workload arrived (router only).
    Arrival(&'a Request),
    /// The deadline of this room passes now and no other does, as [`crate::transfer::End::expire`]. From an explorer of every order alone.
    Expire(RoomKey),
    /// Wind down: end what can be ended, leave the registry, give everything back.
    Shutdown,
}

/// All that a node may reach while it handles one input.
pub struct Cx<'a> {
    /// The node's clock.
    pub now: Time,
    /// The host's NICs and memory.
    pub fabric: &'a mut dyn Fabric,
    /// Where frames and records go.
    pub out: &'a mut Outbox,
}

/// A step in a request's life. The driver adds the global time; reports are made of these.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Step {
    /// The router sent it to these instances.
    Routed {
        /// Prefill instance.
        prefill: InstanceId,
        /// Decode instance.
        decode: InstanceId,
    },
    /// Its first prefill step began; this many prompt tokens came from the prefix cache.
    PrefillStart {
        /// Tokens that need no compute.
        cached: u32,
    },
    /// Its last prefill step ended.
    PrefillEnd,
    /// The first work request was posted.
    TransferStart,
    /// All work requests of it completed, as the sender knows it: how many, and payload bytes.
    Delivered {
        /// Work requests posted, repeats included.
        work_requests: u64,
        /// Payload bytes posted.
        bytes: u64,
    },
    /// Decode has all KV and the aux row.
    Success,
    /// The first token left decode.
    FirstToken,
    /// The last token left decode. Final.
    Finished,
    /// Decode ran out of memory and sent it back; generated so far.
    Preempted {
        /// Tokens that left decode.
        tokens: u32,
    },
    /// An attempt at it failed, and the router will send it again.
    Retried(Reason),
    /// It failed. Final.
    Failed(Reason),
    /// The router gave it up without word of its end, which nobody is left to say or which did not come. It will not be sent again. If its last
    /// token left decode it is [`Step::Finished`], whichever of the two was first; else it failed.
    Lost(Reason),
    /// It was not served: it never can be, or not now. Final.
    Rejected(Reason),
    /// Content on the decode side was not what it must be.
    Corrupt,
}

/// Why a room or request failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Reason {
    /// Somebody asked for it.
    Aborted = 0,
    /// A deadline passed.
    Deadline = 1,
    /// The transfer failed: a work request of this room was the culprit.
    Transfer = 2,
    /// The transfer was disturbed by others more often than the retry bound.
    Retries = 3,
    /// The other side's instance is gone.
    PeerGone = 4,
    /// This side's lease ran out.
    LeaseLost = 5,
    /// The prompt is longer than the model's context.
    TooLong = 6,
    /// It can never fit into the pages of an instance.
    NoMemory = 7,
    /// The two sides' layouts cannot be brought together.
    Layout = 8,
    /// The other side refused the room.
    Refused = 9,
    /// There is no instance to serve it.
    NoInstance = 10,
    /// What arrived is not what was sent: its checksum is another one.
    Checksum = 11,
    /// Decode left while it was generating: tokens are out already.
    Interrupted = 12,
    /// The queue that it would have to wait in is full.
    Busy = 13,
    /// The fabric of one side refused queue pairs to the other, or a way to connect them.
    Connection = 14,
}

impl Reason {
    /// From its number on the wire.
    pub fn from_wire(byte: u8) -> Option<Self> {
        use Reason::*;
        [
            Aborted,
            Deadline,
            Transfer,
            Retries,
            PeerGone,
            LeaseLost,
            TooLong,
            NoMemory,
            Layout,
            Refused,
            NoInstance,
            Checksum,
            Interrupted,
            Busy,
            Connection,
        ]
        .get(usize::from(byte))
        .copied()
    }
}

/// A step of a request, as a node reports it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record {
    /// Which request.
    pub request: RequestId,
    /// What happened.
    pub step: Step,
}

/// Frames and records of one call. The driver owns it and clears it, so a warm system allocates nothing here.
#[derive(Clone, Debug, Default)]
pub struct Outbox {
    bytes: Vec<u8>,
    frames: Vec<(NodeId, Range<usize>)>,
    /// Steps in requests' lives.
    pub records: Vec<Record>,
}

impl Outbox {
    /// Adds a frame. What leaves a node is encoded bytes, in simulation too, so that codec and truncation are
    /// exercised everywhere.
    pub fn send(&mut self, to: NodeId, encode: impl FnOnce(&mut Vec<u8>)) {
        let start = self.bytes.len();
        encode(&mut self.bytes);
        self.frames.push((to, start..self.bytes.len()));
    }
    /// The frames, in the order they were sent.
    pub fn frames(&self) -> impl Iterator<Item = (NodeId, &[u8])> {
        self.frames.iter().map(|(to, range)| (*to, &self.bytes[range.clone()]))
    }
    /// Adds a record.
    pub fn record(&mut self, request: RequestId, step: Step) {
        self.records.push(Record { request, step });
    }
    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty() && self.records.is_empty()
    }
    /// Forgets all, keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.frames.clear();
        self.records.clear();
    }
}

/// What a node holds. A leak is a deviation at quiescence: rooms, slots, timers and receives must be zero, pages free or held
/// by the prefix cache alone, memory regions and queue pairs equal to the pools.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Held {
    /// Rooms not yet ended and released.
    pub rooms: u64,
    /// Pages owned by rooms or requests (prefix cache apart).
    pub pages: u64,
    /// Pages held by the prefix cache alone.
    pub cached_pages: u64,
    /// Aux slots owned.
    pub slots: u64,
    /// Memory registrations.
    pub memory_regions: u64,
    /// Memory registrations that belong to the pools.
    pub pool_memory_regions: u64,
    /// Queue pairs.
    pub queue_pairs: u64,
    /// Queue pairs that belong to links to live peers.
    pub pool_queue_pairs: u64,
    /// Timers of requests and rooms.
    pub timers: u64,
    /// Receives promised to rooms.
    pub receives: u64,
}

/// A state machine that a driver runs.
pub trait Node: Send {
    /// Takes one input. What it says may be kept back until [`Node::flush`].
    fn handle(&mut self, cx: &mut Cx<'_>, input: Input<'_>);
    /// Lets out what was kept back. A driver calls it after one input, or after several that were there at once: then what is said
    /// to the same node shares frames.
    fn flush(&mut self, now: Time, out: &mut Outbox);
    /// When it wants [`Input::Wake`]. The driver asks after every `flush`.
    fn deadline(&self) -> Option<Time>;
    /// What it holds now.
    fn held(&self) -> Held;
    /// What it counted since it started.
    fn counters(&self) -> Counters {
        Counters::default()
    }
}

/// Things worth counting, added up over nodes for a report.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Counters {
    /// Compute times that lay outside what was measured.
    pub extrapolated: u64,
    /// Control messages handled (registry only).
    pub registry_messages: u64,
    /// Fences that targets of requests had to make: decode, in pull prefill.
    pub fences: u64,
    /// Immediates dropped because their slot had a new owner or their sender was the wrong one.
    pub stale_immediates: u64,
    /// Parts that came twice.
    pub repeated_parts: u64,
    /// Staged parts posted, repetitions included.
    pub staged_parts: u64,
    /// Staged parts scattered.
    pub scattered_parts: u64,
    /// Bytes copied to gather and to scatter.
    pub copied_bytes: u64,
    /// Rooms that failed because what arrived had another checksum.
    pub checksum_mismatches: u64,
    /// Frames of the control channel that were none.
    pub malformed_frames: u64,
}

impl std::ops::AddAssign for Counters {
    fn add_assign(&mut self, other: Self) {
        self.extrapolated += other.extrapolated;
        self.registry_messages += other.registry_messages;
        self.fences += other.fences;
        self.stale_immediates += other.stale_immediates;
        self.repeated_parts += other.repeated_parts;
        self.staged_parts += other.staged_parts;
        self.scattered_parts += other.scattered_parts;
        self.copied_bytes += other.copied_bytes;
        self.checksum_mismatches += other.checksum_mismatches;
        self.malformed_frames += other.malformed_frames;
    }
}
