//! What may happen in a walk: the scopes by name.

/// Bounds of a walk. In all of them a router creates rooms, one after the other, between one prefill and one decode instance that are
/// joined by two queue pairs. Either side has one page and decode one aux slot, so that the second room reuses what the first one had.
/// A room is two parts, one on each queue pair; the second one carries aux row and seal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scope {
    /// Its name.
    pub name: &'static str,
    /// What it is for.
    pub text: &'static str,
    /// Rooms, 1 or 2.
    pub rooms: u8,
    /// Any deadline of a room may pass at any moment, on either side. To both sides an abort is the same with another reason.
    pub deadlines: bool,
    /// Every room must succeed at decode, and without a fault at prefill too.
    pub must_succeed: bool,
    /// Decode keeps pages after Success, and appends to them, until it is done at some later moment; else it is done at once.
    pub hold: bool,
    /// Prefill's compute ends at some later moment; else at once.
    pub compute: bool,
    /// Each write of KV is executed on its own, and not together with the immediate behind it.
    pub split: bool,
    /// Queue pairs that die: by themselves at either end, or because the ACK of an executed request is lost.
    pub deaths: u8,
    /// Messages that are overtaken by others.
    pub late: u8,
    /// Prefill's process stops and goes on later, while its NIC goes on; its lease may run out meanwhile.
    pub pauses: u8,
    /// Leases that run out, at either side, and are then declared dead by the registry.
    pub leases: u8,
}

const BASE: Scope = Scope {
    name: "",
    text: "",
    rooms: 2,
    deadlines: false,
    must_succeed: false,
    hold: false,
    compute: false,
    split: false,
    deaths: 0,
    late: 0,
    pauses: 0,
    leases: 0,
};

/// All scopes, small ones first.
pub const SCOPES: &[Scope] = &[
    Scope {
        name: "fault-free",
        text: "nothing fails, and no deadline passes: both rooms succeed",
        must_succeed: true,
        split: true,
        hold: true,
        ..BASE
    },
    Scope {
        name: "retry",
        text: "one room: one queue pair dies, and no deadline passes: it succeeds at decode all the same, after one retry at most",
        rooms: 1,
        must_succeed: true,
        hold: true,
        deaths: 1,
        ..BASE
    },
    Scope {
        name: "recovery",
        text: "one queue pair dies, and no deadline passes: both rooms succeed at decode all the same",
        must_succeed: true,
        deaths: 1,
        ..BASE
    },
    Scope { name: "deadlines", text: "any deadline passes at any moment", deadlines: true, ..BASE },
    Scope {
        name: "compute",
        text: "prefill computes each prompt for a while, and any deadline passes",
        deadlines: true,
        compute: true,
        ..BASE
    },
    Scope {
        name: "lease",
        text: "a lease runs out on either side, and no deadline passes",
        leases: 1,
        ..BASE
    },
    Scope {
        name: "reorder",
        text: "one room: two messages are overtaken by others, and any deadline passes",
        rooms: 1,
        deadlines: true,
        late: 2,
        ..BASE
    },
    Scope {
        name: "reconnect",
        text: "one room: one queue pair dies, one message is overtaken by others, and any deadline passes",
        rooms: 1,
        deadlines: true,
        deaths: 1,
        late: 1,
        ..BASE
    },
    Scope {
        name: "zombie",
        text: "one room: prefill stops and goes on when its lease has run out, and any deadline passes",
        rooms: 1,
        deadlines: true,
        pauses: 1,
        ..BASE
    },
    Scope {
        name: "late",
        text: "one message is overtaken by others, and any deadline passes",
        deadlines: true,
        late: 1,
        ..BASE
    },
    Scope {
        name: "queue-pair",
        text: "one queue pair dies, and any deadline passes",
        deadlines: true,
        deaths: 1,
        ..BASE
    },
    Scope {
        name: "hold",
        text: "one queue pair dies, any deadline passes, and decode appends to its pages for a while",
        deadlines: true,
        hold: true,
        deaths: 1,
        ..BASE
    },
    Scope {
        name: "pause",
        text: "prefill stops, goes on as a zombie when its lease has run out, and any deadline passes",
        deadlines: true,
        pauses: 1,
        ..BASE
    },
];

impl Scope {
    /// The scope of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        SCOPES.iter().find(|scope| scope.name == name)
    }
}
