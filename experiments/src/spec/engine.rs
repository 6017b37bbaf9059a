//! `control:`, `transfer:`, `policy:`, `batch:` and `compute:`: how the nodes work.

use models::{ByteSize, Picos};
use serde::{Deserialize, Serialize};

use super::coalescing::Coalescing;
use super::field;
use super::named;
use super::posting::{Failover, Order, Rails, Replica};
use super::routing::{Admission, LimitsSpec, RetrySpec, Routing};

/// The control channel between nodes and the registry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ControlSpec {
    /// One-way delay of a message.
    pub latency: Picos,
    /// Up to this much is added to the delay, uniformly.
    pub jitter: Picos,
    /// Probability that a message is lost, at most 0.9.
    #[serde(deserialize_with = "field::loss")]
    pub loss: f64,
    /// Probability that a message arrives twice.
    #[serde(deserialize_with = "field::probability")]
    pub duplicate: f64,
    /// Probability that a message is overtaken by later ones.
    #[serde(deserialize_with = "field::probability")]
    pub reorder: f64,
    /// Time the registry takes for a message.
    pub service_per_message: Picos,
    /// Time the registry takes for a byte of a message.
    pub service_per_byte: Picos,
    /// Messages that wait at the registry before more are dropped.
    #[serde(deserialize_with = "field::count")]
    pub queue: u32,
}

impl Default for ControlSpec {
    fn default() -> Self {
        ControlSpec {
            latency: us(20),
            jitter: Picos(0),
            loss: 0.0,
            duplicate: 0.0,
            reorder: 0.0,
            service_per_message: us(2),
            service_per_byte: Picos(1_000),
            queue: 65_536,
        }
    }
}

/// Queue pairs, their limits and the timers of the transfer protocol.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TransferSpec {
    /// Queue pairs per pair of ranks that exchange KV.
    #[serde(deserialize_with = "field::queue_pairs")]
    pub queue_pairs: u32,
    /// Queue pairs that an instance has at a time, at most, and never more than the device can have. A pair of instances that needs some
    /// takes those of one that moves nothing, or waits its turn.
    #[serde(deserialize_with = "field::count")]
    pub max_queue_pairs: u32,
    /// Which NIC port of a prefill host reaches which of a decode host.
    pub reach: PortReach,
    /// Work requests a send queue holds.
    #[serde(deserialize_with = "field::count")]
    pub send_depth: u32,
    /// Receives a receive queue holds.
    #[serde(deserialize_with = "field::count")]
    pub receive_depth: u32,
    /// Scatter/gather entries of a work request.
    #[serde(deserialize_with = "field::count")]
    pub max_sge: u32,
    /// Every n-th work request is signalled, and the last of each posting; 0: only the last.
    pub signal_every: u32,
    /// ACK timeout code t: 4.096 us * 2^t (InfiniBand spec 9.7.6.1.3), 1 to 31.
    #[serde(deserialize_with = "field::ack_timeout")]
    pub ack_timeout: u8,
    /// Retries after an ACK timeout, 0 to 7.
    #[serde(deserialize_with = "field::retries")]
    pub retries: u8,
    /// Retries after an RNR NAK, 0 to 6 (7 would mean for ever).
    #[serde(deserialize_with = "field::rnr_retries")]
    pub rnr_retries: u8,
    /// Code of the wait that an RNR NAK asks for, 0 to 31 (InfiniBand spec, table 45): 12 is 0.64 ms, 0 is 655.36 ms.
    #[serde(deserialize_with = "field::rnr_timer")]
    pub min_rnr_timer: u8,
    /// READs and atomics that a queue pair has outstanding, and answers, at a time.
    #[serde(deserialize_with = "field::rd_atomic")]
    pub max_rd_atomic: u8,
    /// How often a part that an error of another room flushed is posted again before its room fails.
    pub reposts: u32,
    /// Parts that a source rank may send to a destination rank for one request on one rail: decode holds receives for them. In pull: how often
    /// prefill tells decode that more of a request's KV is there.
    #[serde(deserialize_with = "field::parts")]
    pub parts: u32,
    /// Aux slots of a rank: requests that a decode instance can have in transfer or generating; in pull, that a prefill instance can have
    /// published and decode not read.
    #[serde(deserialize_with = "field::count")]
    pub slots: u32,
    /// A room that has not ended after this time fails.
    pub room_timeout: Picos,
    /// A room whose KV is all there to send fails after this time.
    pub transfer_timeout: Picos,
    /// An aborted room whose initiator (prefill; in pull decode) has not reported "drained" after this time is fenced.
    pub drain_timeout: Picos,
    /// How long an acknowledgement waits for a message to ride on.
    pub ack_delay: Picos,
    /// An unacknowledged registry message is sent again after this time.
    pub retransmit: Picos,
    /// A lease that was not renewed for this time has expired.
    pub lease: Picos,
    /// End-to-end checksums: prefill sums up the KV that it made, decode what arrived, and a request whose sums differ fails before its first
    /// token. One pass over all KV on a CPU core of each side, which simulated time does not count.
    pub checksums: bool,
    /// Rules of the protocol that are switched off, by name, to see what each is for: `kvrail explore --mistakes` lists them. A run
    /// without one of them can lose, corrupt or leak caches.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub without: Vec<String>,
}

impl Default for TransferSpec {
    fn default() -> Self {
        TransferSpec {
            queue_pairs: 1,
            max_queue_pairs: 1_000_000,
            reach: PortReach::Any,
            send_depth: 8192,
            receive_depth: 16_384,
            max_sge: 16,
            signal_every: 0,
            ack_timeout: 14,
            retries: 7,
            rnr_retries: 6,
            min_rnr_timer: 12,
            max_rd_atomic: 16,
            reposts: 3,
            parts: 16,
            slots: 512,
            room_timeout: Picos(3600 * S),
            transfer_timeout: Picos(60 * S),
            drain_timeout: Picos(5 * S),
            ack_delay: Picos(200_000 * 1_000_000),
            retransmit: Picos(S),
            lease: Picos(10 * S),
            checksums: false,
            without: Vec::new(),
        }
    }
}

const S: u64 = 1_000_000_000_000;

const fn us(us: u64) -> Picos {
    Picos(us * 1_000_000)
}

/// Which NIC port of a prefill host reaches which of a decode host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum PortReach {
    /// Each reaches all.
    Any,
    /// Each reaches the one of its own number: a network for each rail.
    SameRail,
    /// These: (prefill's port, decode's port), counted from 0.
    Pairs(Vec<(u32, u32)>),
}

/// What decides who, what and when. A policy is a name, or a map of its name to its parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PolicySpec {
    /// Which prefill and which decode instance a request goes to.
    #[serde(deserialize_with = "named::or_map")]
    pub routing: Routing,
    /// Whether prefill writes KV to decode, or decode reads it from prefill.
    pub direction: Direction,
    /// Whose parts are posted next on a port.
    #[serde(deserialize_with = "named::or_map")]
    pub order: Order,
    /// How much of a request is sent at once.
    #[serde(deserialize_with = "named::or_map")]
    pub granularity: Granularity,
    /// Which NIC port of a host carries a part.
    #[serde(deserialize_with = "named::or_map")]
    pub rails: Rails,
    /// Whether a NIC port or path that failed is left out.
    #[serde(deserialize_with = "named::or_map")]
    pub failover: Failover,
    /// Which of several ranks with the same KV sends it.
    #[serde(deserialize_with = "named::or_map")]
    pub replica: Replica,
    /// How parts become work requests.
    #[serde(deserialize_with = "named::or_map")]
    pub coalescing: Coalescing,
    /// What may be posted and not completed, per port.
    pub window: WindowSpec,
    /// When decode memory is taken, and how many may wait for it.
    #[serde(deserialize_with = "named::or_map")]
    pub admission: Admission,
    /// What the router lets fly at a time.
    pub limits: LimitsSpec,
    /// Whether a request whose transfer failed is sent again, and who is left alone after failures.
    pub retry: RetrySpec,
}

impl Default for PolicySpec {
    fn default() -> Self {
        PolicySpec {
            routing: Routing::LeastLoaded,
            direction: Direction::Push,
            order: Order::Fifo,
            granularity: Granularity::Chunk,
            rails: Rails::Pinned,
            failover: Failover::default(),
            replica: Replica::ByDestination,
            coalescing: Coalescing::default(),
            window: WindowSpec::default(),
            admission: Admission::Reserve,
            limits: LimitsSpec::default(),
            retry: RetrySpec::default(),
        }
    }
}

/// Whether prefill writes KV to decode, or decode reads it from prefill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// Prefill WRITEs, as soon as KV is there and decode has pages for it.
    Push,
    /// Decode READs, when it has pages and is told that KV is there. Prefill holds its pages until then.
    Pull,
}

/// How much of a request is sent at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Granularity {
    /// Everything when prefill has ended.
    Request,
    /// Each chunk when its prefill step has ended.
    Chunk,
    /// Layers while the step computes the next ones.
    LayerWise {
        /// Layers per part.
        #[serde(deserialize_with = "field::count")]
        layers: u32,
    },
}

/// What may be posted and not completed, per port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WindowSpec {
    /// Bytes.
    pub bytes: ByteSize,
    /// Work requests.
    #[serde(deserialize_with = "field::count")]
    pub requests: u32,
}

impl Default for WindowSpec {
    fn default() -> Self {
        WindowSpec { bytes: ByteSize(64 << 20), requests: 65_536 }
    }
}

/// What the GPUs' time is taken from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ComputeSpec {
    /// A profile's name, the path of a YAML file, or `auto`: the built-in profile for the model.
    pub profile: String,
    /// Multiplies every time: 0.5 is a GPU twice as fast.
    #[serde(deserialize_with = "field::positive")]
    pub scale: f64,
}

impl Default for ComputeSpec {
    fn default() -> Self {
        ComputeSpec { profile: AUTO.to_owned(), scale: 1.0 }
    }
}

/// The name that stands for the built-in profile of the model.
pub(super) const AUTO: &str = "auto";

/// Batching on both sides.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BatchSpec {
    /// Most prompt tokens of a prefill step; a longer prompt is computed in chunks.
    #[serde(deserialize_with = "field::count")]
    pub prefill_tokens: u32,
    /// Most requests of a decode step.
    #[serde(deserialize_with = "field::count")]
    pub decode_requests: u32,
    /// Keep prompt blocks on prefill for later requests with the same prefix.
    pub prefix_cache: bool,
}

impl Default for BatchSpec {
    fn default() -> Self {
        BatchSpec { prefill_tokens: 8192, decode_requests: 128, prefix_cache: true }
    }
}
