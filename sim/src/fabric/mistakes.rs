//! What the simulated fabric can be made to get wrong.

/// Mistakes on purpose, all off by default: with each of them the conformance suite must fail, which shows that it looks.
/// Nothing else should ever turn one on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mistakes {
    /// The receive of a WRITE with immediate completes 20 us before the message's data is in memory.
    pub immediate_before_data: bool,
    /// A request that fails completes only if it was signalled.
    pub silent_errors: bool,
    /// A range may run one byte over the end of its registration.
    pub range_off_by_one: bool,
    /// Requests of a failed queue pair complete last one first.
    pub flush_reversed: bool,
    /// A message that finds no receive is dropped and acknowledged.
    pub rnr_ignored: bool,
    /// Bytes of inline requests are read when they leave, not at posting.
    pub inline_late: bool,
    /// A remote key is good after its registration ended.
    pub stale_rkeys: bool,
    /// A completion gives back only its own place in the send queue, not those of the unsignalled requests before it.
    pub unsignaled_places_kept: bool,
    /// Atomics answer with the new value.
    pub atomics_answer_new: bool,
    /// Rights of the registration count at the responder, those of the queue pair do not.
    pub queue_pair_rights_ignored: bool,
    /// Receives are not flushed when a queue pair fails.
    pub receives_not_flushed: bool,
    /// Requests of no bytes need a remote key that is good.
    pub zero_length_checked: bool,
    /// Immediates come with their bytes in the other order.
    pub immediates_swapped: bool,
    /// The first byte of what a WRITE or READ moves changes on its way, unseen by any checksum of the wire; of messages longer than 64 bytes.
    pub bits_flipped: bool,
    /// The same of what a copy within a host's memory moves. Not among [`Mistakes::each`]: the suite's programs copy nothing.
    pub copies_flipped: bool,
}

impl Mistakes {
    /// Each of them alone, with its name.
    pub fn each() -> Vec<(&'static str, Self)> {
        let one = |name, set: fn(&mut Self)| {
            let mut mistakes = Self::default();
            set(&mut mistakes);
            (name, mistakes)
        };
        vec![
            one("immediate_before_data", |m| m.immediate_before_data = true),
            one("silent_errors", |m| m.silent_errors = true),
            one("range_off_by_one", |m| m.range_off_by_one = true),
            one("flush_reversed", |m| m.flush_reversed = true),
            one("rnr_ignored", |m| m.rnr_ignored = true),
            one("inline_late", |m| m.inline_late = true),
            one("stale_rkeys", |m| m.stale_rkeys = true),
            one("unsignaled_places_kept", |m| m.unsignaled_places_kept = true),
            one("atomics_answer_new", |m| m.atomics_answer_new = true),
            one("queue_pair_rights_ignored", |m| m.queue_pair_rights_ignored = true),
            one("receives_not_flushed", |m| m.receives_not_flushed = true),
            one("zero_length_checked", |m| m.zero_length_checked = true),
            one("immediates_swapped", |m| m.immediates_swapped = true),
            one("bits_flipped", |m| m.bits_flipped = true),
        ]
    }
}
