//! The life of a request, as nodes record it.

use super::coverage::{Coverage, State, Who};
use crate::world::Stamped;
use engine::node::{Reason, Request, Step};

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Its last token left decode.
    Finished,
    /// It failed.
    Failed(Reason),
    /// It can never be served.
    Rejected(Reason),
}

impl Ending {
    /// Of a step that is the last one.
    #[must_use]
    pub fn of(step: &Step) -> Option<Self> {
        match step {
            Step::Finished => Some(Ending::Finished),
            Step::Failed(reason) => Some(Ending::Failed(*reason)),
            Step::Rejected(reason) => Some(Ending::Rejected(*reason)),
            _ => None,
        }
    }
}

/// What was seen of a request.
#[derive(Clone, Debug)]
pub struct Life {
    request: Request,
    steps: Vec<Stamped>,
    ends: u32,
    /// At the router; none once it is final.
    router: Option<State>,
}

impl Life {
    pub(super) fn new(request: Request) -> Self {
        Self { request, steps: Vec::new(), ends: 0, router: Some(State::Queued) }
    }

    /// The request.
    #[must_use]
    pub fn request(&self) -> &Request {
        &self.request
    }
    /// Its steps so far, with time and node.
    #[must_use]
    pub fn steps(&self) -> &[Stamped] {
        &self.steps
    }
    /// Final states that it reached.
    #[must_use]
    pub fn ends(&self) -> u32 {
        self.ends
    }
    /// How it ended.
    #[must_use]
    pub fn ending(&self) -> Option<Ending> {
        self.steps.iter().find_map(|stamped| Ending::of(&stamped.record.step))
    }
    /// Its state at the router, until it is final.
    #[must_use]
    pub fn at_router(&self) -> Option<State> {
        self.router
    }

    /// Takes in a step. Whether it says that content is wrong.
    pub(super) fn take(&mut self, stamped: Stamped, coverage: &mut Coverage) -> bool {
        let step = stamped.record.step;
        let next = match step {
            Step::Routed { .. } => Some(State::Routed),
            Step::Preempted { .. } | Step::Retried(_) => Some(State::Queued),
            Step::Finished => Some(State::Finished),
            Step::Failed(_) => Some(State::Failed),
            Step::Rejected(_) => Some(State::Rejected),
            _ => None,
        };
        if let (Some(from), Some(to)) = (self.router, next)
            && from != to
        {
            coverage.moved(Who::Router, from, to);
            let open = matches!(to, State::Queued | State::Routed);
            self.router = open.then_some(to);
        }
        self.ends += u32::from(Ending::of(&step).is_some());
        self.steps.push(stamped);
        step == Step::Corrupt
    }

    /// Whether its last token left decode, and the router says that it failed: outcomes are each side's own. Decode had Success, and then the
    /// router heard that decode's lease is over (a stopped decode that goes on ends the step under way before it hears of it); or the
    /// request's time, or the router's lease, was over before the word of the end reached it.
    pub(super) fn was_lost_after_success(&self) -> bool {
        let (mut success, mut finished, mut failed) = (false, 0, 0);
        for stamped in &self.steps {
            match stamped.record.step {
                Step::Success => success = true,
                Step::Finished if success => finished += 1,
                Step::Failed(Reason::PeerGone) if success => failed += 1,
                Step::Failed(Reason::LeaseLost | Reason::Deadline) => failed += 1,
                Step::Failed(_) | Step::Rejected(_) | Step::Finished => return false,
                _ => {}
            }
        }
        (finished, failed) == (1, 1)
    }
}
