//! Parameters of the transfer engine.

use super::reach::Reach;
use super::rules::Rules;
use crate::fabric::{Limits, RnrTimer, Rts};
use crate::policy::{
    Coalescing, Cooldown, Direction, Granularity, OrderPolicy, RailPolicy, ReplicaChoice, Window,
};
use crate::time::Span;

/// Parameters of both sides. What must be equal on both sides says so.
#[derive(Clone, Debug, PartialEq)]
pub struct TransferConfig {
    /// Queue pairs for each pair of ranks. Equal on both sides.
    pub rails: u16,
    /// Queue pairs that an instance has at a time, at most. A link that needs some takes them from one that nothing uses, the one used
    /// longest ago first, and waits where there is none.
    pub max_queue_pairs: u32,
    /// Which ports reach each other. Equal on both sides.
    pub reach: Reach,
    /// How work is spread over them. Equal on both sides: receives are promised by it.
    pub rail_policy: RailPolicy,
    /// How long a port or path that failed is left out where there is another one between the same ranks; none: never, everything waits for it.
    pub failover: Option<Cooldown>,
    /// Which copy of replicated KV sends. Equal on both sides.
    pub replica: ReplicaChoice,
    /// Whether prefill writes or decode reads. Equal on both sides: an instance of the other kind is refused when it registers.
    pub direction: Direction,
    /// In how large pieces KV leaves prefill.
    pub granularity: Granularity,
    /// How parts become work requests. Push only, if it is not [`Coalescing::Direct`].
    pub coalescing: Coalescing,
    /// Who posts next on a port.
    pub order: OrderPolicy,
    /// How much is posted at a time on a port.
    pub window: Window,
    /// Work requests that a send queue holds.
    pub send_depth: u32,
    /// SGEs in a request; 1 never gathers.
    pub max_sge: u16,
    /// Most bytes of a work request.
    pub max_message: u32,
    /// Parts that a source rank may send to a destination rank for one room on one rail: what decode promises receives for. In pull: how
    /// often prefill tells decode of a room that more KV is there.
    pub parts_per_rail: u16,
    /// Receives that a shared receive queue holds.
    pub receive_depth: u32,
    /// Aux slots of each rank: rooms that decode can have in transfer at a time; in pull, that prefill can have published.
    pub slots: u32,
    /// Reconnects that a room survives before it fails.
    pub retries: u32,
    /// ACK timeout, retries and READ window of the queue pairs. The window is lowered to what the devices of both ends can do.
    pub rts: Rts,
    /// What a peer is told to wait when no receive is posted.
    pub min_rnr_timer: RnrTimer,
    /// From all KV of a room being there to send until it must be delivered.
    pub transfer_deadline: Span,
    /// From the start of a room on a side until its end there. At the initiator it holds until all of the room's KV is there to send; from
    /// then on the transfer's own deadline does.
    pub room_deadline: Span,
    /// How long the target waits for the initiator's report before it fences.
    pub drain_deadline: Span,
    /// How long ended rooms are remembered: longer than any message of theirs can be under way.
    pub tombstone: Span,
    /// Whether KV has end-to-end checksums: prefill sums up what it made, decode what arrived, and fails a room before Success where the two
    /// differ. Equal on both sides: an instance of the other kind is refused when it registers. Costs a pass over all KV on each CPU.
    pub checksums: bool,
    /// Whether decode checks content: at Success and again when it gives the pages back.
    pub verify: bool,
    /// Protocol rules; all on except in tests that show what each is for.
    pub rules: Rules,
}

impl Default for TransferConfig {
    fn default() -> Self {
        Self {
            rails: 1,
            max_queue_pairs: u32::MAX,
            reach: Reach::default(),
            rail_policy: RailPolicy::default(),
            failover: Some(Cooldown::default()),
            replica: ReplicaChoice::default(),
            direction: Direction::default(),
            granularity: Granularity::default(),
            coalescing: Coalescing::default(),
            order: OrderPolicy::default(),
            window: Window::default(),
            send_depth: 8192,
            max_sge: 16,
            max_message: 1 << 30,
            parts_per_rail: 16,
            receive_depth: 16384,
            slots: 512,
            retries: 3,
            rts: Rts { timeout: 14, retry_cnt: 7, rnr_retry: 3, max_rd_atomic: 16 },
            min_rnr_timer: RnrTimer(12),
            transfer_deadline: Span::s(60),
            room_deadline: Span::s(3600),
            drain_deadline: Span::s(5),
            tombstone: Span::s(120),
            checksums: false,
            verify: true,
            rules: Rules::default(),
        }
    }
}

impl TransferConfig {
    /// The timers, and the READ window that a device with these limits can have.
    pub(super) fn rts_within(&self, limits: &Limits) -> Rts {
        Rts { max_rd_atomic: self.rts.max_rd_atomic.min(limits.max_rd_atomic), ..self.rts }
    }
}
