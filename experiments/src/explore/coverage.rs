//! What all cases together have been through, as a table; and what cannot be, with the reason.

use std::fmt::Write as _;

use engine::policy::Direction;
use engine::transfer::RoomState;
use sim::watch::{Coverage, State, Who};

use super::draw::KINDS;

const BOOTSTRAPPING: State = State::Room(RoomState::Bootstrapping);
const WAITING: State = State::Room(RoomState::WaitingForInput);
const TRANSFERRING: State = State::Room(RoomState::Transferring);
const SUCCESS: State = State::Room(RoomState::Success);
const FAILED: State = State::Room(RoomState::Failed);

/// Every transition that there is.
#[must_use]
pub fn transitions() -> Vec<(Who, State, State)> {
    let mut all = vec![
        (Who::Router, State::Nowhere, State::Queued),
        (Who::Router, State::Queued, State::Routed),
        (Who::Router, State::Queued, State::Failed),
        (Who::Router, State::Queued, State::Rejected),
        (Who::Router, State::Routed, State::Queued),
        (Who::Router, State::Routed, State::Finished),
        (Who::Router, State::Routed, State::Failed),
        (Who::Router, State::Routed, State::Lost),
        (Who::Router, State::Routed, State::Rejected),
    ];
    for who in Who::ALL.into_iter().filter(|who| *who != Who::Router) {
        all.extend([
            (who, State::Nowhere, BOOTSTRAPPING),
            (who, BOOTSTRAPPING, WAITING),
            (who, WAITING, TRANSFERRING),
            (who, TRANSFERRING, SUCCESS),
            (who, BOOTSTRAPPING, FAILED),
            (who, WAITING, FAILED),
            (who, TRANSFERRING, FAILED),
            (who, SUCCESS, State::Released),
            (who, FAILED, State::Released),
        ]);
    }
    all
}

/// States in which no fault can meet a room, and why. Where one does after all, the reason is wrong, and that is an error.
pub const NEVER_MET: &[(Who, State, &str)] = &[
    (
        Who::Prefill(Direction::Push),
        SUCCESS,
        "its last completion ends the room: nothing names its pages any more, and they go back at once",
    ),
    (
        Who::Prefill(Direction::Pull),
        SUCCESS,
        "decode's word that everything was read ends the room: nobody reads its pages any more, and they go back at once",
    ),
    (
        Who::Decode(Direction::Pull),
        SUCCESS,
        "its last READ ends the room in the transfer engine: what has arrived is decode's own",
    ),
];

fn never_met(who: Who, state: State) -> Option<&'static str> {
    NEVER_MET.iter().find(|(w, s, _)| (*w, *s) == (who, state)).map(|(.., why)| *why)
}

/// Whether a fault kind and a state can meet.
fn can_meet(who: Who, state: State) -> bool {
    never_met(who, state).is_none()
}

/// What was met that cannot be, or that nobody has named.
#[must_use]
pub fn surprises(coverage: &Coverage) -> Vec<String> {
    let known = transitions();
    let moved = coverage.transitions.keys().filter(|at| !known.contains(at)).map(|(who, from, to)| {
        format!("a transition that is not in the table: {} {} -> {}", who.name(), from.name(), to.name())
    });
    let met = coverage.faults.keys().filter_map(|(kind, who, state)| {
        let why = never_met(*who, *state)?;
        Some(format!("{kind} met {} in {}, which cannot be: {why}", who.name(), state.name()))
    });
    moved.chain(met).collect()
}

/// The cells that can occur with their counts: what, and how often.
#[must_use]
pub fn cells(coverage: &Coverage) -> Vec<(String, u64)> {
    let mut all = Vec::new();
    for at in transitions() {
        let (who, from, to) = at;
        let count = coverage.transitions.get(&at).copied().unwrap_or(0);
        all.push((format!("{}: {} -> {}", who.name(), from.name(), to.name()), count));
    }
    for kind in KINDS {
        for who in Who::ALL {
            for state in who.states().iter().copied().filter(|state| can_meet(who, *state)) {
                let count = coverage.faults.get(&(kind.name(), who, state)).copied().unwrap_or(0);
                all.push((format!("{kind} x {} {}", who.name(), state.name()), count));
            }
        }
    }
    all
}

/// The tables.
#[must_use]
pub fn table(coverage: &Coverage) -> String {
    let mut out = String::from("transitions\n");
    for (who, from, to) in transitions() {
        let count = coverage.transitions.get(&(who, from, to)).copied().unwrap_or(0);
        let way = format!("{} -> {}", from.name(), to.name());
        let _ = writeln!(out, "  {:<16}{way:<36}{count:>12}", who.name());
    }
    for who in Who::ALL {
        let states = who.states();
        let _ = write!(out, "faults that met a {:<17}", who.name());
        for state in states {
            let _ = write!(out, "{:>17}", state.name());
        }
        out.push('\n');
        for kind in KINDS {
            let _ = write!(out, "  {:<32}", kind.name());
            for state in states {
                let count = coverage.faults.get(&(kind.name(), who, *state)).copied().unwrap_or(0);
                let cell = if can_meet(who, *state) { count.to_string() } else { "cannot".to_owned() };
                let _ = write!(out, "{cell:>17}");
            }
            out.push('\n');
        }
    }
    for (who, state, why) in NEVER_MET {
        let _ = writeln!(out, "  {} {}: {why}", who.name(), state.name());
    }
    out
}

/// The same as a row per cell: what, whose, from (fault kind), to (state), count, and why it cannot be.
#[must_use]
pub fn csv(coverage: &Coverage) -> String {
    let mut out = String::from("what,who,from,to,count,cannot\n");
    for (who, from, to) in transitions() {
        let count = coverage.transitions.get(&(who, from, to)).copied().unwrap_or(0);
        let _ = writeln!(out, "transition,{},{},{},{count},", who.name(), from.name(), to.name());
    }
    for kind in KINDS {
        for who in Who::ALL {
            for state in who.states() {
                let count = coverage.faults.get(&(kind.name(), who, *state)).copied().unwrap_or(0);
                let why = never_met(who, *state).unwrap_or_default();
                let _ = writeln!(out, "fault,{},{kind},{},{count},\"{why}\"", who.name(), state.name());
            }
        }
    }
    out
}
