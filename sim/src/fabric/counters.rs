//! What a host did, and what exists on it.

/// What a host did and saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Payload bytes of requests that were executed, at their requester.
    pub bytes: u64,
    /// Bytes handed to the network, headers and repetitions included, at the requester.
    pub wire_bytes: u64,
    /// Data packets handed to the network.
    pub packets: u64,
    /// Work requests posted.
    pub work_requests: u64,
    /// Chains posted.
    pub doorbells: u64,
    /// Segments, the unit of service: rows of requests that are observed as one.
    pub segments: u64,
    /// Completions written.
    pub completions: u64,
    /// RNR NAKs received.
    pub rnr_naks: u64,
    /// Repetitions because no ACK came.
    pub timeouts: u64,
    /// Arrivals that a responder dropped because its queue pair was not there, not ready or somebody else's by then.
    pub dropped: u64,
    /// Copies within the host's memory.
    pub copies: u64,
    /// Bytes that they moved.
    pub copied_bytes: u64,
    /// Packets that a fault lost, data and acknowledgements, at the requester.
    pub packets_lost: u64,
    /// Times that a requester went back because of a lost packet, NAKed or timed out.
    pub retransmissions: u64,
    /// Rows of requests that a fault kept from ever being acknowledged.
    pub unacknowledged: u64,
    /// Chains that a fault refused in part.
    pub refused_posts: u64,
    /// Completions that a fault held back.
    pub late_completions: u64,
}

impl Counters {
    /// Adds another host's.
    pub fn add(&mut self, other: &Self) {
        self.bytes += other.bytes;
        self.wire_bytes += other.wire_bytes;
        self.packets += other.packets;
        self.work_requests += other.work_requests;
        self.doorbells += other.doorbells;
        self.segments += other.segments;
        self.completions += other.completions;
        self.rnr_naks += other.rnr_naks;
        self.timeouts += other.timeouts;
        self.dropped += other.dropped;
        self.copies += other.copies;
        self.copied_bytes += other.copied_bytes;
        self.packets_lost += other.packets_lost;
        self.retransmissions += other.retransmissions;
        self.unacknowledged += other.unacknowledged;
        self.refused_posts += other.refused_posts;
        self.late_completions += other.late_completions;
    }
}

/// Objects that exist on a host; what is left after shutdown is a leak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Objects {
    /// Buffers.
    pub buffers: usize,
    /// Memory registrations.
    pub memory_regions: usize,
    /// Queue pairs.
    pub queue_pairs: usize,
    /// Completion queues.
    pub completion_queues: usize,
    /// Shared receive queues.
    pub shared_receive_queues: usize,
    /// Receives posted and not consumed, own and shared queues.
    pub receives: u64,
    /// Requests that occupy a send queue.
    pub sends: u64,
}
