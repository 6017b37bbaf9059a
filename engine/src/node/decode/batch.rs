//! The continuous batch of a decode instance: who joins with a step, who has another token, ends, needs a page, is sent back or stopped.

use super::{DecodeNode, Phase};
use crate::node::{Cx, Reason, Step};
use crate::policy::Admission;
use crate::registry::{Outcome, RoomKey};
use crate::time::Time;
use crate::timers::due;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

impl DecodeNode {
    /// Ends every step that is over by now and starts the one after it.
    pub(super) fn catch_up(&mut self, cx: &mut Cx<'_>) {
        while let Some(end) = self.step_ends.filter(|end| *end <= cx.now) {
            self.step_ended(cx);
            self.next_step(cx, end);
        }
    }

    /// Starts the next step of the batch, at `start`.
    pub(super) fn next_step(&mut self, cx: &mut Cx<'_>, start: Time) {
        let mut joining = std::mem::take(&mut self.joining);
        for key in joining.drain(..) {
            let Some(job) = self.jobs.get_mut(&key).filter(|job| job.phase == Phase::Running) else {
                continue;
            };
            job.joined = self.steps;
            self.batch += 1;
            // The first token's KV is written in this step.
            self.context += u64::from(job.request.prompt) + 1;
            self.finishing.push(Reverse((self.steps + u64::from(job.request.output) - 1, key)));
            if self.config.admission == Admission::OnDemand {
                self.running.insert(job.order, key);
                let room = job.table.len() * self.config.page_size - job.request.prompt;
                self.growing.push(Reverse((self.steps + u64::from(room), key)));
            }
        }
        self.joining = joining;
        if self.config.admission == Admission::OnDemand {
            self.grow(cx);
        }
        if self.batch == 0 {
            (self.step_ends, self.wakes) = (None, Time::NEVER);
            return;
        }
        let estimate = self.compute.decode(self.batch, self.context);
        self.counters.extrapolated += u64::from(estimate.extrapolated);
        let end = start + estimate.span;
        self.step_ends = Some(end);
        if self.wakes <= start || self.wakes == Time::NEVER {
            self.wakes = self.horizon(end);
        }
    }

    /// The end of the step after which something happens, the step under way ending at `end`.
    pub(super) fn horizon(&self, end: Time) -> Time {
        /// Steps looked ahead: a new request makes the look void, so that it should not be long.
        const AHEAD: u64 = 64;
        let next = |heap: &BinaryHeap<Reverse<(u64, RoomKey)>>| {
            heap.peek().map_or(u64::MAX, |Reverse((step, _))| *step)
        };
        let last = next(&self.finishing).min(next(&self.growing)).min(self.steps + AHEAD);
        let (mut at, mut context) = (end, self.context);
        for _ in self.steps + 1..last {
            context += u64::from(self.batch);
            at += self.compute.decode(self.batch, context).span;
        }
        at
    }

    /// Takes the pages that the next step writes to; sends the latest requests back when there are none.
    fn grow(&mut self, cx: &mut Cx<'_>) {
        while let Some(key) = due(&mut self.growing, self.steps) {
            while let Some(job) = self.jobs.get_mut(&key).filter(|job| job.phase == Phase::Running) {
                // The step that comes writes token `joined` + 1 of the output.
                let last = self.steps - job.joined + 2 >= u64::from(job.request.output);
                let group = job.group;
                if self.pools[usize::from(group)].take(1, &mut job.table) {
                    if !last {
                        self.growing.push(Reverse((self.steps + u64::from(self.config.page_size), key)));
                    }
                    break;
                }
                if self.draining > 0 {
                    // Pages are about to come back: sending more requests back would be no sooner. The page is asked for again
                    // with the next step.
                    self.growing.push(Reverse((self.steps + 1, key)));
                    self.say_short(cx.now);
                    break;
                }
                // The latest one of this group: pages of other groups are no help.
                let same = |key: &&RoomKey| self.jobs.get(key).is_some_and(|job| job.group == group);
                let Some(victim) = self.running.values().rev().find(same).copied() else { break };
                self.preempt(cx, victim);
            }
        }
    }

    fn preempt(&mut self, cx: &mut Cx<'_>, key: RoomKey) {
        let Some(tokens) = self.take_out(&key) else { return };
        if let Some(job) = self.jobs.get(&key) {
            cx.out.record(job.request.id, Step::Preempted { tokens });
        }
        self.over(cx, key, Outcome::Preempted { tokens });
        self.on_news(cx);
    }

    /// Takes a request out of the batch. Tokens that it has.
    fn take_out(&mut self, key: &RoomKey) -> Option<u32> {
        let job = self.jobs.get(key)?;
        let generated = self.steps - job.joined;
        self.batch -= 1;
        self.context -= u64::from(job.request.prompt) + 1 + generated;
        self.running.remove(&job.order);
        Some(1 + generated as u32)
    }

    pub(super) fn is_running(&self, key: &RoomKey) -> bool {
        self.jobs.get(key).is_some_and(|job| job.phase == Phase::Running)
    }

    /// Ends a request whose tokens nobody wants any more.
    pub(super) fn stop(&mut self, cx: &mut Cx<'_>, key: RoomKey, reason: Reason) {
        match self.joining.iter().position(|other| *other == key) {
            Some(at) => {
                self.joining.remove(at);
            }
            None => {
                self.take_out(&key);
                // Steps are shorter without it: what was looked ahead to comes sooner.
                self.wakes = self.step_ends.unwrap_or(Time::NEVER);
            }
        }
        self.over(cx, key, Outcome::Failed(reason));
    }

    /// A step of the batch ended: every request in it has one more token.
    fn step_ended(&mut self, cx: &mut Cx<'_>) {
        self.step_ends = None;
        self.steps += 1;
        self.context += u64::from(self.batch);
        while let Some(key) = due(&mut self.finishing, self.steps) {
            let Some(job) = self.jobs.get(&key).filter(|job| job.phase == Phase::Running) else { continue };
            let (request, order) = (job.request.id, job.order);
            self.batch -= 1;
            self.context -= u64::from(job.request.prompt) + u64::from(job.request.output);
            self.running.remove(&order);
            if self.config.transfer.rules.lease && !self.client.lease_valid(cx.now) {
                // Everybody else takes this instance for dead: the request is not its to finish any more.
                self.over(cx, key, Outcome::Failed(Reason::LeaseLost));
                continue;
            }
            cx.out.record(request, Step::Finished);
            self.over(cx, key, Outcome::Finished);
        }
    }
}
