//! `when:` of a fault: it waits until a room is in some state.

use engine::transfer::RoomState;
use models::Picos;
use serde::{Deserialize, Serialize};

use super::super::Spec;
use super::{FaultSpec, NodeName};

/// What a fault waits for, from its `at` on. If it never comes, the fault never strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WhenSpec {
    /// An instance, or any of several.
    pub node: NodeName,
    /// The state that one of its rooms is in.
    pub room: RoomIs,
    /// It strikes so long after that.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub after: Picos,
}

fn is_zero(span: &Picos) -> bool {
    span.0 == 0
}

/// State of a room at an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RoomIs {
    /// Open; the pages of one of the two sides are missing.
    Bootstrapping,
    /// The pages of both sides are known, and nothing has moved.
    WaitingForInput,
    /// Some of its KV was posted, told of or seen.
    Transferring,
    /// All of it is there.
    Success,
    /// It ended without, and something of it is not given back yet.
    Failed,
}

impl RoomIs {
    /// As nodes say it.
    #[must_use]
    pub fn state(self) -> RoomState {
        match self {
            RoomIs::Bootstrapping => RoomState::Bootstrapping,
            RoomIs::WaitingForInput => RoomState::WaitingForInput,
            RoomIs::Transferring => RoomState::Transferring,
            RoomIs::Success => RoomState::Success,
            RoomIs::Failed => RoomState::Failed,
        }
    }
}

/// What is wrong with a `when`: its key, and the problem.
pub(super) fn problem(spec: &Spec, entry: &FaultSpec) -> Result<(), (String, String)> {
    let Some(when) = entry.when else { return Ok(()) };
    let wrong = |key: &str, problem: String| Err((key.to_owned(), problem));
    if matches!(when.node, NodeName::Registry | NodeName::Router) {
        return wrong(
            "when.node",
            format!("the {} has no rooms, expected an instance, such as decode-0", when.node),
        );
    }
    if let Err(problem) = spec.nodes_named(when.node) {
        return wrong("when.node", problem);
    }
    if entry.random.is_some() {
        return wrong(
            "random",
            "what waits for a room is not drawn as well; keep `when` or `random`".to_owned(),
        );
    }
    let until = entry.until.or(entry.flap.and_then(|flap| flap.until));
    if until.is_some() {
        let key = if entry.until.is_some() { "until" } else { "flap.until" };
        return wrong(key, "it is not known when this begins; expected `times`".to_owned());
    }
    Ok(())
}
