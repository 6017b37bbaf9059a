//! What a run has been through: state transitions of rooms and requests, and what state each fault met.

use crate::world::Fault;
use engine::id::NodeId;
use engine::policy::Direction;
use engine::transfer::RoomState;
use std::collections::BTreeMap;

/// Whose state it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Who {
    /// A request at the router.
    Router,
    /// A room at prefill.
    Prefill(Direction),
    /// A room at decode.
    Decode(Direction),
}

impl Who {
    /// All of them.
    pub const ALL: [Who; 5] = [
        Who::Router,
        Who::Prefill(Direction::Push),
        Who::Decode(Direction::Push),
        Who::Prefill(Direction::Pull),
        Who::Decode(Direction::Pull),
    ];

    /// As reports say it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Who::Router => "router",
            Who::Prefill(Direction::Push) => "prefill (push)",
            Who::Decode(Direction::Push) => "decode (push)",
            Who::Prefill(Direction::Pull) => "prefill (pull)",
            Who::Decode(Direction::Pull) => "decode (pull)",
        }
    }

    /// The states that it can be in, in order.
    #[must_use]
    pub fn states(self) -> &'static [State] {
        match self {
            Who::Router => &[State::Queued, State::Routed],
            Who::Prefill(_) | Who::Decode(_) => &[
                State::Room(RoomState::Bootstrapping),
                State::Room(RoomState::WaitingForInput),
                State::Room(RoomState::Transferring),
                State::Room(RoomState::Success),
                State::Room(RoomState::Failed),
            ],
        }
    }
}

/// A state of a request at the router, or of a room at one side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// It was not there.
    Nowhere,
    /// At the router: no instance is there, its turn has not come, or it is about to be sent again.
    Queued,
    /// At its instances.
    Routed,
    /// At the router: its last token left decode.
    Finished,
    /// At the router: it failed.
    Failed,
    /// At the router: it was given up without word of its end.
    Lost,
    /// At the router: it can never be served.
    Rejected,
    /// At an instance.
    Room(RoomState),
    /// At an instance: everything of it was given back.
    Released,
}

impl State {
    /// As reports say it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            State::Nowhere => "-",
            State::Queued => "Queued",
            State::Routed => "Routed",
            State::Finished => "Finished",
            State::Failed | State::Room(RoomState::Failed) => "Failed",
            State::Lost => "Lost",
            State::Rejected => "Rejected",
            State::Room(RoomState::Bootstrapping) => "Bootstrapping",
            State::Room(RoomState::WaitingForInput) => "WaitingForInput",
            State::Room(RoomState::Transferring) => "Transferring",
            State::Room(RoomState::Success) => "Success",
            State::Released => "Released",
        }
    }
}

/// What kind a fault is, as the key of an experiment says it.
fn kind(fault: &Fault) -> &'static str {
    match fault {
        Fault::LinkUp { .. } => "link-up",
        Fault::Resume { .. } => "resume",
        fault => fault.kind().name(),
    }
}

/// The node that a fault strikes; a host has the number of its node.
pub(super) fn struck(fault: &Fault) -> Option<NodeId> {
    match fault {
        Fault::QueuePairError { host, .. }
        | Fault::LinkDown { host, .. }
        | Fault::LinkUp { host, .. }
        | Fault::LinkDrain { host, .. }
        | Fault::Degrade { host, .. }
        | Fault::Loss { host, .. }
        | Fault::NicReset { host, .. }
        | Fault::PostFailure { host, .. }
        | Fault::CompletionDelay { host, .. }
        | Fault::Unacknowledged { host, .. }
        | Fault::ReceivesDry { host } => Some(NodeId(*host as u32)),
        Fault::Pause { node }
        | Fault::Resume { node }
        | Fault::Crash { node }
        | Fault::Leave { node }
        | Fault::Clock { node, .. }
        | Fault::Slow { node, .. } => Some(*node),
        // To or from the registry: whoever is named.
        Fault::Control(fault) => fault.from.or(fault.to).filter(|node| node.0 > 0),
    }
}

/// Counts of what was met.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Transitions: whose, from, to.
    pub transitions: BTreeMap<(Who, State, State), u64>,
    /// Faults by kind, and the states that each met: of requests at the router, and of the rooms at the node that it struck; of all rooms
    /// where it struck none in particular.
    pub faults: BTreeMap<(&'static str, Who, State), u64>,
}

impl Coverage {
    pub(super) fn moved(&mut self, who: Who, from: State, to: State) {
        *self.transitions.entry((who, from, to)).or_default() += 1;
    }

    pub(super) fn met(&mut self, fault: &Fault, who: Who, state: State) {
        *self.faults.entry((kind(fault), who, state)).or_default() += 1;
    }

    /// Adds another run's.
    pub fn add(&mut self, other: &Self) {
        for (at, n) in &other.transitions {
            *self.transitions.entry(*at).or_default() += n;
        }
        for (at, n) in &other.faults {
            *self.faults.entry(*at).or_default() += n;
        }
    }
}
