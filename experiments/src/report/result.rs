//! What a simulation of one seed hands over.

/// One seed's run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunResult {
    /// The seed.
    pub seed: u64,
    /// The running hash over every input and output of every node.
    pub digest: u64,
    /// Every request of the workload, in the order of their ids.
    pub requests: Vec<RequestRecord>,
    /// Totals.
    pub counters: Counters,
    /// Faults that struck, by kind.
    pub struck: sim::fault::Struck,
    /// What faults did.
    pub effects: Effects,
    /// What was left over at the end.
    pub leaks: Leaks,
    /// Virtual time of the last event, ps.
    pub sim_ps: u64,
    /// Time the run took on this machine, s. Not part of any comparison.
    pub wall_seconds: f64,
    /// Invariants that did not hold, each with what was wrong; a run with one exits with status 1.
    pub violations: Vec<String>,
}

/// Totals of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes of KV and aux that were written to the other side.
    pub bytes_moved: u64,
    /// Work requests posted.
    pub work_requests: u64,
    /// Messages that the registry received or sent.
    pub registry_messages: u64,
    /// RNR NAKs.
    pub rnr_naks: u64,
    /// Staged parts posted.
    pub staged_parts: u64,
    /// Bytes copied to gather and scatter them.
    pub copied_bytes: u64,
    /// Transfers whose KV arrived with another checksum.
    pub checksum_mismatches: u64,
    /// Compute times taken beyond what was measured.
    pub extrapolated: u64,
    /// Events of the simulator.
    pub events: u64,
}

/// What faults did to packets, requests, completions and control messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Effects {
    /// Packets lost on links.
    pub packets_lost: u64,
    /// Times that a requester went back at once, because the responder saw a gap.
    pub retransmissions: u64,
    /// Times that a requester went back because no acknowledgement came.
    pub ack_timeouts: u64,
    /// Chains refused in part.
    pub refused_posts: u64,
    /// Completions that came late.
    pub late_completions: u64,
    /// Rows of requests that were executed and never acknowledged.
    pub unacknowledged: u64,
    /// Control messages (frames) lost, doubled, held back, delayed, cut or changed.
    pub frames_disturbed: u64,
    /// Frames that a node refused, because they were cut or changed.
    pub malformed_frames: u64,
}

impl Effects {
    /// Of a simulation.
    pub(crate) fn of(world: &sim::world::World) -> Self {
        let (fabric, frames) = (world.fabrics().counters(), world.disturbed());
        Self {
            packets_lost: fabric.packets_lost,
            retransmissions: fabric.retransmissions,
            ack_timeouts: fabric.timeouts,
            refused_posts: fabric.refused_posts,
            late_completions: fabric.late_completions,
            unacknowledged: fabric.unacknowledged,
            frames_disturbed: frames.lost
                + frames.duplicated
                + frames.reordered
                + frames.delayed
                + frames.truncated
                + frames.garbled,
            malformed_frames: world.counters().malformed_frames,
        }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.packets_lost += other.packets_lost;
        self.retransmissions += other.retransmissions;
        self.ack_timeouts += other.ack_timeouts;
        self.refused_posts += other.refused_posts;
        self.late_completions += other.late_completions;
        self.unacknowledged += other.unacknowledged;
        self.frames_disturbed += other.frames_disturbed;
        self.malformed_frames += other.malformed_frames;
    }
}

/// Deviations from a clean end, each 0 when nothing leaked: rooms, slots, timers and promised receives left
/// over; pages neither free nor held by the prefix cache; memory regions and queue pairs beyond the pools'.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Leaks {
    /// Rooms that have not ended.
    pub rooms: u64,
    /// Pages neither free nor held by the prefix cache.
    pub pages: u64,
    /// Aux slots in use.
    pub slots: u64,
    /// Memory regions beyond the pools'.
    pub memory_regions: u64,
    /// Queue pairs beyond the pools'.
    pub queue_pairs: u64,
    /// Request timers still armed.
    pub timers: u64,
    /// Receives promised to a room that has ended.
    pub receives: u64,
}

impl Leaks {
    /// All together.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.named().iter().map(|(_, count)| count).sum()
    }

    /// Each with its name.
    #[must_use]
    pub fn named(&self) -> [(&'static str, u64); 7] {
        [
            ("rooms", self.rooms),
            ("pages", self.pages),
            ("slots", self.slots),
            ("memory_regions", self.memory_regions),
            ("queue_pairs", self.queue_pairs),
            ("timers", self.timers),
            ("receives", self.receives),
        ]
    }

    pub(crate) fn add(&mut self, other: &Leaks) {
        self.rooms += other.rooms;
        self.pages += other.pages;
        self.slots += other.slots;
        self.memory_regions += other.memory_regions;
        self.queue_pairs += other.queue_pairs;
        self.timers += other.timers;
        self.receives += other.receives;
    }
}

/// How a request ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Outcome {
    /// Its last token left decode.
    #[default]
    Succeeded,
    /// It was accepted and not finished; why.
    Failed(String),
    /// It was refused at once, for instance because it is longer than the model's context; why.
    Rejected(String),
}

impl Outcome {
    /// `succeeded`, `failed` or `rejected`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Outcome::Succeeded => "succeeded",
            Outcome::Failed(_) => "failed",
            Outcome::Rejected(_) => "rejected",
        }
    }

    /// Why, empty for a success.
    #[must_use]
    pub fn reason(&self) -> &str {
        match self {
            Outcome::Succeeded => "",
            Outcome::Failed(reason) | Outcome::Rejected(reason) => reason,
        }
    }
}

/// One request. Times are in picoseconds of virtual time, none where the request did not come so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestRecord {
    /// Its id in the workload.
    pub id: u64,
    /// Whose it is.
    pub tenant: u32,
    /// Arrival.
    pub arrival: u64,
    /// Tokens of the prompt.
    pub prompt: u32,
    /// Tokens to generate.
    pub output: u32,
    /// Prefill instance, from 0.
    pub prefill_instance: Option<u32>,
    /// Decode instance, from 0.
    pub decode_instance: Option<u32>,
    /// How it ended.
    pub outcome: Outcome,
    /// Prompt tokens found in the prefix cache of prefill.
    pub cached_tokens: u32,
    /// Start of its first prefill step.
    pub prefill_start: Option<u64>,
    /// End of its last prefill step.
    pub prefill_end: Option<u64>,
    /// First work request posted.
    pub transfer_start: Option<u64>,
    /// Decode's Success: all KV and aux in place.
    pub success: Option<u64>,
    /// The first token leaves decode.
    pub first_token: Option<u64>,
    /// The last token leaves decode.
    pub last_token: Option<u64>,
    /// The router, or for a success decode, knew how it ended.
    pub end: Option<u64>,
    /// Times that it was sent again because an attempt failed.
    pub retries: u32,
    /// Bytes written to decode.
    pub bytes: u64,
    /// Work requests posted.
    pub work_requests: u64,
}

impl RequestRecord {
    /// Arrival to the first token leaving decode, ps.
    #[must_use]
    pub fn ttft(&self) -> Option<u64> {
        self.first_token?.checked_sub(self.arrival)
    }

    /// (Last - first token) / (tokens - 1), ps; none for a single token.
    #[must_use]
    pub fn tpot(&self) -> Option<f64> {
        let span = self.last_token?.checked_sub(self.first_token?)?;
        (self.output > 1).then(|| span as f64 / f64::from(self.output - 1))
    }

    /// First request posted to decode's Success, ps.
    #[must_use]
    pub fn transfer(&self) -> Option<u64> {
        self.success?.checked_sub(self.transfer_start?)
    }

    /// End of prefill compute to decode's Success, ps; 0 when the transfer ended before.
    #[must_use]
    pub fn exposed_transfer(&self) -> Option<u64> {
        Some(self.success?.saturating_sub(self.prefill_end?))
    }
}
