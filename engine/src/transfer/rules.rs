//! The protocol rules as switches, so that a test can put a mistake back and show what it costs.

/// Makes the struct, its default and its list of names from one list.
macro_rules! rules {
    ($($(#[doc = $text:literal])+ $name:ident,)+) => {
        /// What the engine must get right, one switch each. Every one closes a way to lose or corrupt a cache, or to wait for ever; a test
        /// switches each off and shows the loss. Nothing else should ever. All on by default.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct Rules {
            $($(#[doc = $text])+ pub $name: bool,)+
        }

        impl Default for Rules {
            fn default() -> Self {
                Self { $($name: true,)+ }
            }
        }

        impl Rules {
            /// Names of all switches, in the order of the fields.
            pub const NAMES: &'static [&'static str] = &[$(stringify!($name),)+];

            /// Switches the rule of that name off. False if there is no such rule.
            pub fn switch_off(&mut self, name: &str) -> bool {
                match name {
                    $(stringify!($name) => self.$name = false,)+
                    _ => return false,
                }
                true
            }

            /// All rules but this one: the mistake of that name. None if there is no such rule.
            pub fn by_name(name: &str) -> Option<Self> {
                let mut rules = Self::default();
                rules.switch_off(name).then_some(rules)
            }

            /// What a rule says, and what happens where it is off. None if there is no such rule.
            pub fn text(name: &str) -> Option<&'static str> {
                match name {
                    $(stringify!($name) => Some(concat!($($text),+).trim_ascii()),)+
                    _ => None,
                }
            }
        }
    };
}

rules! {
    /// Completion is a set of parts; off: a count of immediates.
    parts_are_a_set,
    /// A slot's reuse raises its generation, and an immediate of another generation is dropped.
    slot_generation,
    /// Success needs every source rank's seal; off: the last part seen is taken for the last there is.
    seals,
    /// The target fences before it frees pages that a posted request may still write.
    fence_before_free,
    /// An immediate counts only from a queue pair of the room's sender.
    sender_check,
    /// Pages are published only when receives stand posted for the room's immediates.
    receive_credits,
    /// A report says clean only if every posted request completed with success.
    honest_report,
    /// Ended rooms are remembered at both sides.
    tombstones,
    /// A node whose lease ran out reports no Success.
    lease,
    /// The initiator gives local pages back only when every request naming them has completed.
    initiator_waits,
    /// The target polls its completions before it offers a reconnect.
    poll_before_offer,
    /// The aux row travels in a part, before its immediate; off: on its own, after it.
    aux_in_part,
    /// An offer lists the live rooms, and the initiator ends all others.
    live_list,
    /// An offer lists the parts already seen, and the initiator does not post them again.
    seen_list,
    /// Page lists carry the fence epoch, and older ones than the accepted offer are refused.
    fence_epoch,
    /// A free by fence voids reconnects under way.
    fence_voids_offers,
    /// The initiator posts only after the target said ready.
    ready_gate,
    /// The side that sees an error tells the other.
    ask,
    /// A failed completion breaks its link, and its rooms end or are posted again; off: it is passed over.
    failures_count,
    /// A failed completion is told by its status; off: by what else stands in it, which is nothing, so that it passes for success.
    status_first,
    /// A destination rank waits for the source ranks that the relation names; off: for every one.
    sources_of_relation,
    /// One source rank writes the aux row of a destination rank; off: every one that sends to it, with the token that it knows.
    one_aux_writer,
    /// A KV head lies on its replicas, `rank / replicas`; off: `rank % heads`.
    heads_by_replica,
    /// Every component of the layout is moved; off: the first one, and what lies beside KV is forgotten.
    every_component,
    /// A chunk's KV is posted once; off: each chunk posts what came before it again.
    chunks_once,
    /// No more is posted than the send queue holds; off: all there is.
    send_queue_bound,
    /// A link that failed is connected anew; off: its peer is blacklisted for ever.
    links_recover,
    /// What is known of a peer is known of that instance; off: an instance that comes after one that went is taken for it.
    facts_of_instance,
    /// A seal and an aux row count for the room that they name; off: for whoever has the slot now.
    seals_name_rooms,
    /// A room that is assigned again is the same room; off: another one under its name.
    assigns_once,
    /// The other side is told when a room fails; off: it finds out by its own timer.
    failures_told,
    /// An abort that meets this side's own changes nothing; off: as both sides want it, the pages are free at once.
    crossed_aborts_wait,
    /// The outcome of a side is that of all its ranks; off: of the first rank that is done.
    all_ranks,
    /// Each rank is registered for itself; off: one that registers twice stands for one that is missing.
    ranks_once,
    /// A room that failed gives its pages back; off: only one that succeeded does.
    failed_rooms_released,
    /// A remote key is that of the port that the queue pair ends at; off: of the peer's first port.
    key_of_port,
    /// A staged part leaves once it is gathered; off: once its whole chunk is, which one larger than the staging memory never is.
    staged_in_parts,
    /// Content is compared with its checksum where that is switched on; off: it is taken as it came.
    checksums_compared,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_switch_has_a_name_and_a_text() {
        for name in Rules::NAMES {
            let off = Rules::by_name(name).unwrap();
            assert_ne!(off, Rules::default(), "{name}");
            assert!(Rules::text(name).is_some_and(|text| text.ends_with('.')), "{name}");
        }
        assert_eq!(Rules::by_name("no_such_rule"), None);
        assert_eq!(Rules::text("no_such_rule"), None);
    }
}
