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
    /// Of a step that is the last one, whatever comes after it; [`Step::Lost`] is not, because decode's word goes before it.
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
    /// Steps that are final by themselves, and whether one of them is [`Step::Finished`].
    ends: u32,
    finished: bool,
    /// Times that the router gave it up without word of its end.
    lost: u32,
    /// One of them because decode was gone, and whether decode finished it after that: its lease was over, it must not.
    gone: bool,
    late: bool,
    /// At the router; none once it is final.
    router: Option<State>,
}

impl Life {
    pub(super) fn new(request: Request) -> Self {
        Self {
            request,
            steps: Vec::new(),
            ends: 0,
            finished: false,
            lost: 0,
            gone: false,
            late: false,
            router: Some(State::Queued),
        }
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
    /// Final states that it reached; must be one. Being lost is one if decode never said that it finished, and if decode did so after the
    /// router knew it to be gone.
    #[must_use]
    pub fn ends(&self) -> u32 {
        self.ends + self.lost.saturating_sub(u32::from(self.finished && !self.late))
    }
    /// How it ended.
    #[must_use]
    pub fn ending(&self) -> Option<Ending> {
        let steps = || self.steps.iter().map(|stamped| stamped.record.step);
        let lost = || {
            steps().find_map(|step| match step {
                Step::Lost(reason) => Some(Ending::Failed(reason)),
                _ => None,
            })
        };
        steps().find_map(|step| Ending::of(&step)).or_else(lost)
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
            Step::Lost(_) => Some(State::Lost),
            Step::Rejected(_) => Some(State::Rejected),
            _ => None,
        };
        // A router loses only what it has routed: it has not heard that decode sent this one back.
        let unheard = next == Some(State::Lost) && self.router.is_some();
        let from = if unheard { Some(State::Routed) } else { self.router };
        if let (Some(from), Some(to)) = (from, next)
            && from != to
        {
            coverage.moved(Who::Router, from, to);
            let open = matches!(to, State::Queued | State::Routed);
            self.router = open.then_some(to);
        }
        self.ends += u32::from(Ending::of(&step).is_some());
        self.finished |= step == Step::Finished;
        self.late |= step == Step::Finished && self.gone;
        self.gone |= step == Step::Lost(Reason::PeerGone);
        self.lost += u32::from(matches!(step, Step::Lost(_)));
        self.steps.push(stamped);
        step == Step::Corrupt
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::id::{NodeId, RequestId};
    use engine::node::Record;
    use engine::time::Time;

    fn ends(steps: &[Step]) -> (u32, Option<Ending>) {
        let mut life = Life::new(Request::default());
        for step in steps {
            let record = Record { request: RequestId(0), step: *step };
            life.take(Stamped { at: Time::ZERO, node: NodeId(1), record }, &mut Coverage::default());
        }
        (life.ends(), life.ending())
    }

    #[test]
    fn one_end_is_one_end() {
        let (finished, deadline) = (Step::Finished, Reason::Deadline);
        let (failed, lost) = (Step::Failed(deadline), Step::Lost(deadline));
        assert_eq!(ends(&[]), (0, None));
        assert_eq!(ends(&[finished]), (1, Some(Ending::Finished)));
        assert_eq!(ends(&[failed]), (1, Some(Ending::Failed(deadline))));
        assert_eq!(ends(&[lost]), (1, Some(Ending::Failed(deadline))));
        for both in [[lost, finished], [finished, lost]] {
            assert_eq!(ends(&both), (1, Some(Ending::Finished)));
        }
        for two in
            [[finished, failed], [failed, finished], [failed, lost], [lost, lost], [finished, finished]]
        {
            assert_eq!(ends(&two).0, 2, "{two:?}");
        }
        assert_eq!(ends(&[finished, lost, lost]).0, 2);
        // Whoever is gone finishes nothing any more.
        let gone = Step::Lost(Reason::PeerGone);
        assert_eq!(ends(&[finished, gone]).0, 1);
        assert_eq!(ends(&[gone, finished]).0, 2);
    }
}
