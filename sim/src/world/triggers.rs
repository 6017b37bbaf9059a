//! Faults that wait for a room: they strike when one of a node's rooms is in some state, whenever that is.

use super::{AnyNode, Ev, World};
use crate::fault::Fault;
use engine::id::NodeId;
use engine::time::{Span, Time};
use engine::transfer::RoomState;

/// Faults that begin when a room is in a state.
#[derive(Clone, Debug)]
pub struct Trigger {
    /// Not before this.
    pub from: Time,
    /// Whose rooms.
    pub nodes: Vec<NodeId>,
    /// The state.
    pub state: RoomState,
    /// What follows: how long after that, what, and how long it lasts. None: for ever, or what strikes at an instant only.
    pub strikes: Vec<(Span, Fault, Option<Span>)>,
}

/// The states that rooms of the node are in, a bit each.
fn states(node: &AnyNode) -> u32 {
    let mut all = 0;
    let mut see = |state| all |= bit(state);
    match node {
        AnyNode::Prefill(node) => node.rooms(&mut |_, _, state| see(state)),
        AnyNode::Decode(node) => node.rooms(&mut |_, _, state| see(state)),
        AnyNode::Registry(_) | AnyNode::Router(_) | AnyNode::Dead(_) => {}
    }
    all
}

fn bit(state: RoomState) -> u32 {
    1 << state as u32
}

impl World {
    /// Faults that strike at the first call of one of these nodes after which a room of it is in this state. If none ever is, they never do.
    pub fn fault_when(&mut self, trigger: Trigger) {
        self.faults.triggers.push(trigger);
    }

    /// Whether faults wait for a room.
    pub fn has_triggers(&self) -> bool {
        !self.faults.triggers.is_empty()
    }

    /// When the last fault that is on its way, or goes on, is over. Those that never end count when they begin.
    pub fn faults_until(&self) -> Time {
        self.faults.until
    }

    /// A node was called.
    pub(super) fn trip(&mut self, node: NodeId) {
        let now = self.now;
        let waits = |trigger: &Trigger| trigger.from <= now && trigger.nodes.contains(&node);
        if !self.faults.triggers.iter().any(waits) {
            return;
        }
        let (there, mut i) = (states(&self.places[node.index()].node), 0);
        while let Some(trigger) = self.faults.triggers.get(i) {
            if there & bit(trigger.state) == 0 || !waits(trigger) {
                i += 1;
                continue;
            }
            let trigger = self.faults.triggers.remove(i);
            for (after, fault, lasts) in trigger.strikes {
                let at = now + after;
                self.fault(at, fault);
                if let Some(span) = lasts.filter(|_| fault.lasts()) {
                    self.fault_over(at + span, fault);
                }
            }
        }
    }

    pub(super) fn push_fault(&mut self, at: Time, event: Ev) {
        self.faults.until = self.faults.until.max(at);
        self.queue.push(at, event);
    }
}
