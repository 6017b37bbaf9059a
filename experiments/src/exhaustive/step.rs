//! Steps of a walk, and what they are called in a trace.

use std::fmt;

use sim::fabric::Lane;

/// One of the two instances; as an index also its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// It writes.
    Prefill = 0,
    /// It is written to.
    Decode = 1,
}

impl Side {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Prefill, Self::Decode];

    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Prefill => Self::Decode,
            Self::Decode => Self::Prefill,
        }
    }

    pub(super) fn of(host: usize) -> Self {
        if host == 0 { Self::Prefill } else { Self::Decode }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        })
    }
}

/// Something that can happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// The router creates the next room.
    Create,
    /// The next message for a side arrives.
    Deliver(Side),
    /// The next message for a side is late: those behind it come first.
    Overtaken(Side),
    /// A late message arrives, by its number among them.
    LateComes(Side, u8),
    /// The next request of a queue pair is executed at its target, or finds nobody there.
    Execute(Lane),
    /// The same, but its ACK is lost.
    ExecuteUnheard(Lane),
    /// The next ACK arrives.
    Ack,
    /// A queue pair learns that its request failed.
    Refuse(Lane),
    /// A side polls a completion.
    Poll(Side),
    /// A side hears of a queue pair that failed.
    Hear(Side),
    /// A room's deadline passes on a side.
    Deadline(Side, u8),
    /// What a side computes is done.
    Computed(Side),
    /// A queue pair dies at a side.
    Die(Side, u8),
    /// Prefill's process stops.
    Pause,
    /// It goes on.
    Resume,
    /// A side's lease runs out on its own clock.
    LeaseEnds(Side),
    /// The registry declares a side dead.
    DeclareDead(Side),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lane = |lane: &Lane| match lane {
            Lane::Requests { host, qp } => format!("queue pair {qp} of {}", Side::of(*host)),
            Lane::Refusal { host, qp } => format!("queue pair {qp} of {}", Side::of(*host)),
            Lane::Remains(_) => "a queue pair that has failed since".to_owned(),
            Lane::Copy { host, .. } => format!("{}'s own memory", Side::of(*host)),
            Lane::Acks | Lane::Internal => "the network".to_owned(),
        };
        match self {
            Self::Create => write!(f, "the router creates a room"),
            Self::Deliver(side) => write!(f, "{side} gets"),
            Self::Overtaken(side) => write!(f, "FAULT late on its way to {side}:"),
            Self::LateComes(side, _) => write!(f, "{side} gets, late,"),
            Self::Execute(of) => write!(f, "a request of {} arrives", lane(of)),
            Self::ExecuteUnheard(of) => {
                write!(f, "FAULT a request of {} arrives, and its ACK is lost", lane(of))
            }
            Self::Ack => write!(f, "an ACK arrives"),
            Self::Refuse(of) => write!(f, "{} gives up", lane(of)),
            Self::Poll(side) => write!(f, "{side} polls a completion"),
            Self::Hear(side) => write!(f, "{side} hears that a queue pair of it failed"),
            Self::Deadline(side, room) => write!(f, "{side}: a deadline of room {} passes", room + 1),
            Self::Computed(side) => write!(f, "{side} has computed a step"),
            Self::Die(side, qp) => write!(f, "FAULT queue pair {qp} of {side} dies"),
            Self::Pause => write!(f, "FAULT prefill's process stops, its NIC goes on"),
            Self::Resume => write!(f, "prefill's process goes on"),
            Self::LeaseEnds(side) => write!(f, "FAULT {side}'s lease runs out"),
            Self::DeclareDead(side) => write!(f, "the registry declares {side} dead"),
        }
    }
}
