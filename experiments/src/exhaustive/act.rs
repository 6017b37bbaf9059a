//! What can happen next in a state, and what becomes of it then.

use engine::fabric::{Event, Fabric as _, QpState};
use engine::node::Input;
use engine::registry::Message;
use engine::time::Time;
use sim::fabric::{FabricEvent, Lane};

use super::cell::{Cell, IDS, ROOMS, key};
use super::step::{Side, Step};

impl Cell<'_> {
    /// Everything that can happen next, in an order that depends on the state alone.
    pub(super) fn steps(&self) -> Vec<Step> {
        let scope = &self.base.scope;
        let mut steps = Vec::new();
        if self.created < usize::from(scope.rooms).min(ROOMS) && !self.around.iter().any(|node| node.dead) {
            steps.push(Step::Create);
        }
        for side in Side::BOTH.into_iter().filter(|side| self.awake(*side)) {
            let node = &self.around[side as usize];
            if !node.inbox.is_empty() {
                steps.push(Step::Deliver(side));
            }
            steps.extend((0..node.late.len() as u8).map(|at| Step::LateComes(side, at)));
            if self.fabrics.host_ref(side as usize).has_completions() {
                steps.push(Step::Poll(side));
            }
            if !node.events.is_empty() {
                steps.push(Step::Hear(side));
            }
        }
        let mut seen: Vec<Lane> = Vec::new();
        for (_, event) in &self.pending.0 {
            let lane = event.lane();
            if seen.contains(&lane) {
                continue;
            }
            seen.push(lane);
            match lane {
                Lane::Requests { .. } | Lane::Remains(_) | Lane::Copy { .. } => {
                    steps.push(Step::Execute(lane));
                }
                Lane::Acks => steps.push(Step::Ack),
                Lane::Refusal { .. } => steps.push(Step::Refuse(lane)),
                Lane::Internal => {}
            }
        }
        for side in Side::BOTH.into_iter().filter(|side| self.awake(*side)) {
            if self.computed(side).is_some() {
                steps.push(Step::Computed(side));
            }
        }
        for side in Side::BOTH.into_iter().filter(|side| scope.deadlines && self.awake(*side)) {
            for room in 0..ROOMS as u8 {
                let timed = match side {
                    Side::Prefill => self.prefill.is_timed(&key(room.into())),
                    Side::Decode => self.decode.is_timed(&key(room.into())),
                };
                if timed {
                    steps.push(Step::Deadline(side, room));
                }
            }
        }
        if self.paused {
            steps.push(Step::Resume);
        }
        for side in Side::BOTH {
            let node = &self.around[side as usize];
            if node.lease_over && !node.dead {
                steps.push(Step::DeclareDead(side));
            }
        }
        self.faults(&seen, &mut steps);
        steps
    }

    pub(super) fn faults(&self, lanes: &[Lane], steps: &mut Vec<Step>) {
        let [deaths, late, pauses, leases] = self.left;
        if self.created == 0 {
            return;
        }
        if deaths > 0 {
            for lane in lanes.iter().filter(|lane| matches!(lane, Lane::Requests { .. })) {
                steps.push(Step::ExecuteUnheard(*lane));
            }
            for side in Side::BOTH {
                let host = self.fabrics.host_ref(side as usize);
                for (at, qp) in (0u8..).zip(host.queue_pairs()) {
                    if host.qp_state(qp) == Ok(QpState::Rts) {
                        steps.push(Step::Die(side, at));
                    }
                }
            }
        }
        if late > 0 {
            for side in Side::BOTH.into_iter().filter(|side| !self.around[*side as usize].inbox.is_empty()) {
                steps.push(Step::Overtaken(side));
            }
        }
        if pauses > 0 && !self.paused {
            steps.push(Step::Pause);
        }
        for side in Side::BOTH {
            let can = leases > 0 || side == Side::Prefill && self.paused;
            if can && !self.around[side as usize].lease_over {
                steps.push(Step::LeaseEnds(side));
            }
        }
    }

    /// Takes a step.
    pub(super) fn apply(&mut self, step: Step) {
        match step {
            Step::Create => {
                let room = self.created;
                self.created += 1;
                for side in Side::BOTH {
                    let assign = self.assign(room, IDS[side.other() as usize]);
                    self.at(side).inbox.push_back(assign);
                }
            }
            Step::Deliver(side) => {
                if let Some(message) = self.at(side).inbox.pop_front() {
                    self.deliver(side, message);
                }
            }
            Step::Overtaken(side) => {
                self.left[1] -= 1;
                self.undisturbed = false;
                let message = self.at(side).inbox.pop_front();
                if let (Some(said), Some(message)) = (&mut self.said, &message) {
                    *said = format!("{message:?}");
                }
                self.at(side).late.extend(message);
            }
            Step::LateComes(side, at) => {
                if usize::from(at) < self.at(side).late.len() {
                    let message = self.at(side).late.remove(at.into());
                    self.deliver(side, message);
                }
            }
            Step::Execute(lane) | Step::Refuse(lane) => self.take(lane),
            Step::ExecuteUnheard(lane) => {
                self.left[0] -= 1;
                self.undisturbed = false;
                if let Lane::Requests { host, .. } = lane {
                    self.fabrics.swallow_acks(host, 1);
                }
                self.take(lane);
            }
            Step::Ack => self.take(Lane::Acks),
            Step::Poll(side) => self.poll(side),
            Step::Hear(side) => {
                if let Some(event) = self.at(side).events.pop_front() {
                    self.call(side, Input::Fabric(event));
                }
            }
            Step::Deadline(side, room) => {
                self.undisturbed = false;
                self.call(side, Input::Expire(key(room.into())));
            }
            Step::Computed(side) => {
                if let Some(at) = self.computed(side) {
                    self.call_at(side, at, Input::Wake);
                }
            }
            Step::Die(side, at) => {
                self.left[0] -= 1;
                self.undisturbed = false;
                let qp = self.fabrics.host_ref(side as usize).queue_pairs().get(usize::from(at)).copied();
                if let Some(qp) = qp {
                    self.fabrics.fail_qp(side as usize, qp, self.now, &mut self.pending, &mut self.ready);
                }
            }
            Step::Pause => {
                self.left[2] -= 1;
                self.undisturbed = false;
                self.paused = true;
            }
            Step::Resume => self.paused = false,
            Step::LeaseEnds(side) => {
                self.left[3] = self.left[3].saturating_sub(1);
                self.undisturbed = false;
                self.at(side).lease_over = true;
            }
            Step::DeclareDead(side) => {
                self.at(side).dead = true;
                let instance = IDS[side as usize];
                for side in Side::BOTH {
                    self.at(side).inbox.push_back(Message::Gone { instance });
                }
            }
        }
        self.settle();
        self.check();
    }

    /// The first pending event of a lane happens.
    pub(super) fn take(&mut self, lane: Lane) {
        let Some(at) = self.pending.0.iter().position(|(_, event)| event.lane() == lane) else { return };
        let (when, event) = self.pending.0.remove(at);
        self.now = self.now.max(when);
        self.fabrics.handle(self.now, event, &mut self.pending, &mut self.ready);
    }

    /// What makes no difference to anybody happens at once.
    pub(super) fn settle(&mut self) {
        loop {
            let (fabrics, now) = (&self.fabrics, self.now);
            let due = |(when, event): &(Time, FabricEvent)| match event.lane() {
                Lane::Internal => true,
                Lane::Acks => *when <= now || fabrics.is_void(event),
                _ => fabrics.is_void(event),
            };
            let Some(at) = self.pending.0.iter().position(due) else { break };
            let (when, event) = self.pending.0.remove(at);
            if event.lane() == Lane::Internal {
                self.now = self.now.max(when);
            }
            self.fabrics.handle(self.now, event, &mut self.pending, &mut self.ready);
        }
        self.ready.clear();
        for side in Side::BOTH {
            while let Some(event) = self.fabrics.host(side as usize).next_event() {
                // Neither end does anything about these.
                if !matches!(event, Event::LastWqeReached(_) | Event::SrqLimit(_)) {
                    self.at(side).events.push_back(event);
                }
            }
        }
    }
}
