//! The rooms of all instances, by what each says after every call of it: states only move on, and pages follow them.

use super::coverage::{Coverage, State, Who};
use super::law::{Broken, Law};
use crate::world::{AnyNode, World};
use engine::id::{NodeId, RequestId};
use engine::registry::RoomKey;
use engine::transfer::RoomState;

/// A room at an instance.
#[derive(Clone, Copy, Debug)]
struct Seen {
    key: RoomKey,
    state: RoomState,
}

/// Rooms of one instance as they were after its last call.
#[derive(Clone, Debug, Default)]
pub(super) struct Rooms {
    now: Vec<Seen>,
    before: Vec<Seen>,
}

/// What changed at an instance.
#[derive(Clone, Debug, Default)]
pub(super) struct Changed {
    /// Rooms that were not there, or that moved on to a later state.
    pub(super) moved: Vec<RoomKey>,
    /// Rooms that are no more.
    pub(super) gone: Vec<RoomKey>,
}

fn each(node: &AnyNode, see: &mut dyn FnMut(RoomKey, RequestId, RoomState)) {
    match node {
        AnyNode::Prefill(node) => node.rooms(see),
        AnyNode::Decode(node) => node.rooms(see),
        AnyNode::Registry(_) | AnyNode::Router(_) | AnyNode::Dead(_) => {}
    }
}

fn ended(node: &AnyNode, key: &RoomKey) -> Option<RoomState> {
    match node {
        AnyNode::Prefill(node) => node.room_ended(key),
        AnyNode::Decode(node) => node.room_ended(key),
        AnyNode::Registry(_) | AnyNode::Router(_) | AnyNode::Dead(_) => None,
    }
}

/// The states in which nothing is decided, in order.
const OPEN: [RoomState; 3] = [RoomState::Bootstrapping, RoomState::WaitingForInput, RoomState::Transferring];

/// Counts the way from one state to a later one: a call can take a room through several. False if there is no such way.
fn go(coverage: &mut Coverage, who: Who, from: Option<RoomState>, to: RoomState) -> bool {
    let mut at = match from {
        Some(state) => state,
        None => {
            coverage.moved(who, State::Nowhere, State::Room(RoomState::Bootstrapping));
            RoomState::Bootstrapping
        }
    };
    while at != to {
        let Some(rank) = OPEN.iter().position(|state| *state == at) else { return false };
        let next = match (to, OPEN.get(rank + 1)) {
            (RoomState::Failed, _) => RoomState::Failed,
            (_, Some(next)) => *next,
            (_, None) => RoomState::Success,
        };
        if to < at {
            return false;
        }
        coverage.moved(who, State::Room(at), State::Room(next));
        at = next;
    }
    true
}

impl Rooms {
    /// States of the rooms.
    pub(super) fn states(&self) -> impl Iterator<Item = RoomState> + '_ {
        self.now.iter().map(|seen| seen.state)
    }

    /// Looks at what the node says after a call.
    pub(super) fn look(
        &mut self,
        world: &World,
        node: NodeId,
        who: Who,
        coverage: &mut Coverage,
        changed: &mut Changed,
        broken: &mut Vec<Broken>,
    ) {
        changed.moved.clear();
        changed.gone.clear();
        let any = world.node(node);
        std::mem::swap(&mut self.now, &mut self.before);
        self.now.clear();
        let (now, before) = (&mut self.now, &self.before);
        let mut found = 0;
        each(any, &mut |key, _, state| {
            // Mostly nothing changes, and a room stands where it stood.
            let at = now.len();
            let old = match before.get(at).filter(|seen| seen.key == key) {
                Some(seen) => Some(seen.state),
                None => before.iter().find(|seen| seen.key == key).map(|seen| seen.state),
            };
            now.push(Seen { key, state });
            found += usize::from(old.is_some());
            if old == Some(state) {
                return;
            }
            changed.moved.push(key);
            if !go(coverage, who, old, state) {
                let from = old.map_or("nowhere", |state| State::Room(state).name());
                broken.push(Broken::new(
                    Law::Forward,
                    format!(
                        "room {key:?} of node {} went from {from} to {state:?} at {:?}",
                        node.0,
                        world.now()
                    ),
                ));
            }
        });
        if found == self.before.len() {
            return;
        }
        for seen in &self.before {
            if self.now.iter().any(|other| other.key == seen.key) {
                continue;
            }
            changed.gone.push(seen.key);
            let end = match seen.state {
                RoomState::Success | RoomState::Failed => seen.state,
                // It was decided and released in one call. A node that has closed remembers nothing.
                _ => ended(any, &seen.key).unwrap_or(RoomState::Failed),
            };
            go(coverage, who, Some(seen.state), end);
            coverage.moved(who, State::Room(end), State::Released);
        }
    }
}
