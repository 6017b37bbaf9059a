//! Bandwidth: the initiator keeps requests under way, the target keeps receives posted.

use super::end::End;
use super::figures::{Bandwidth, Figures};
use super::spec::{Op as Operation, Test};
use super::{Half, TestError, Turn, at};
use engine::fabric::{Batch, Completion, Fabric, Item, Lane, Op, Plan, Run, WorkRequest};
use engine::time::Time;
use std::sync::Arc;

/// Completions taken at a time, as perftest's `CTX_POLL_BATCH`.
const POLL: usize = 16;

/// Above so many requests there is no peak, as in perftest: it compares all posts with all completions.
const MOST_FOR_PEAK: u64 = 20_000;

fn op(of: Operation) -> Op {
    match of {
        Operation::Write => Op::Write,
        Operation::WriteImm => Op::WriteImm(1),
        Operation::Send => Op::Send,
        Operation::Read => Op::Read,
    }
}

/// The operation of a test as a request has it.
pub(super) fn request_op(test: &Test) -> Op {
    op(test.op)
}

/// The initiator's half.
pub(super) struct Sender<'a> {
    end: &'a End,
    test: Test,
    /// A batch without inline data is a window of this; its length is a multiple of the batch.
    plan: Option<Arc<Plan>>,
    /// Per queue pair: requests posted and requests known to be done, of this phase.
    posted: Vec<u64>,
    done: Vec<u64>,
    /// Queue pair that is filled now.
    turn: usize,
    /// Requests of a queue pair in this phase: warm-up, then what is measured.
    goal: u64,
    measuring: bool,
    /// Sums over the queue pairs.
    all_posted: u64,
    all_done: u64,
    asked: Asked,
    /// Requests posted before, and when; requests done, and when.
    posts: Vec<(u64, Time)>,
    ends: Vec<(u64, Time)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// Nothing to ask.
    No,
    /// The next post wants its time first.
    BeforePost,
    /// Completions were taken and want theirs.
    AfterPoll,
    /// The time before the next post is known.
    Ready,
}

impl<'a> Sender<'a> {
    pub(super) fn new(end: &'a End, test: &Test) -> Self {
        let n = test.qps as usize;
        let plan =
            (test.batch > 1 && !test.inlined() && test.op != Operation::Send).then(|| plan(test)).flatten();
        Self {
            end,
            test: *test,
            plan,
            posted: vec![0; n],
            done: vec![0; n],
            turn: 0,
            goal: test.warm_up,
            measuring: false,
            all_posted: 0,
            all_done: 0,
            asked: Asked::No,
            posts: Vec::new(),
            ends: Vec::new(),
        }
    }

    fn all(&self) -> u64 {
        self.goal * self.posted.len() as u64
    }

    /// How many requests the next chain has on the first queue pair that has room, from the one whose turn it is.
    fn next(&mut self) -> Option<u64> {
        let n = self.posted.len();
        for _ in 0..n {
            let q = self.turn;
            let chain = u64::from(self.test.batch).min(self.goal - self.posted[q]);
            if chain > 0 && self.posted[q] - self.done[q] + chain <= u64::from(self.test.depth) {
                return Some(chain);
            }
            self.turn = (q + 1) % n;
        }
        None
    }

    fn signaled(&self, number: u64) -> bool {
        number.is_multiple_of(u64::from(self.test.signal_every)) || number == self.goal
    }

    fn post(&mut self, fabric: &mut dyn Fabric, chain: u64) -> Result<(), TestError> {
        let q = self.turn;
        let first = self.posted[q];
        let id = |number| self.end.id(q, number);
        let result = if chain == 1 {
            let (sge, remote) = self.end.message(q, first % self.test.places() * self.test.stride());
            let flags = self.end.flags(self.signaled(first + 1));
            let local = std::slice::from_ref(&sge);
            let request = WorkRequest { id: id(first + 1), op: op(self.test.op), flags, local, remote };
            fabric.post_send(self.end.qps[q], &[Item::One(request)])
        } else if let Some(plan) = &self.plan {
            let (local, remote) = self.end.places(q);
            let (lkey, rkey) = self.end.keys();
            let start = first % plan.requests();
            // Signals are counted from the start, windows within the plan: a window ends at each signal.
            let mut items = Vec::with_capacity(2);
            let mut number = first;
            while number < first + chain {
                let every = u64::from(self.test.signal_every);
                let to = (number / every * every + every).min(first + chain);
                items.push(Item::Many(Batch {
                    plan,
                    first: engine::id::WrId(id(to).0.wrapping_sub(start + (to - first) - 1)),
                    op: op(self.test.op),
                    local: (local, lkey),
                    remote: (remote, rkey),
                    window: start + (number - first)..start + (to - first),
                    signal_every: 0,
                    signal_last: self.signaled(to),
                    last: None,
                }));
                number = to;
            }
            fabric.post_send(self.end.qps[q], &items)
        } else {
            let messages: Vec<_> = (first..first + chain)
                .map(|i| self.end.message(q, i % self.test.places() * self.test.stride()))
                .collect();
            let items: Vec<_> = (first + 1..)
                .zip(&messages)
                .map(|(number, (sge, remote))| {
                    let (id, flags) = (id(number), self.end.flags(self.signaled(number)));
                    let local = std::slice::from_ref(sge);
                    Item::One(WorkRequest { id, op: op(self.test.op), flags, local, remote: *remote })
                })
                .collect();
            fabric.post_send(self.end.qps[q], &items)
        };
        result.map_err(|refused| at("posting requests")(refused.why))?;
        self.posted[q] += chain;
        self.all_posted += chain;
        Ok(())
    }

    /// Whether the time of the next post matters: the first one, and for the peak one in `signal_every`.
    fn timed(&self) -> bool {
        let peak = self.all() <= MOST_FOR_PEAK;
        let since = self.posts.last().map_or(u64::MAX, |(before, _)| self.all_posted - before);
        self.measuring && (self.posts.is_empty() || peak && since >= u64::from(self.test.signal_every))
    }

    fn next_phase(&mut self) -> bool {
        if self.measuring {
            return false;
        }
        self.measuring = true;
        self.goal = self.test.iterations;
        self.posted.fill(0);
        self.done.fill(0);
        (self.all_posted, self.all_done, self.turn) = (0, 0, 0);
        true
    }
}

impl Half for Sender<'_> {
    fn turn(&mut self, fabric: &mut dyn Fabric) -> Result<Turn, TestError> {
        if self.asked == Asked::AfterPoll {
            return Ok(Turn::Clock);
        }
        if self.all_done == self.all() && !self.next_phase() {
            return Ok(Turn::Done);
        }
        if let Some(chain) = self.next() {
            if self.asked != Asked::Ready && self.timed() {
                self.asked = Asked::BeforePost;
                return Ok(Turn::Clock);
            }
            self.asked = Asked::No;
            self.post(fabric, chain)?;
            return Ok(Turn::Busy);
        }
        let mut some = [Completion::default(); POLL];
        let n = self.end.poll(fabric, false, &mut some)?;
        for completion in &some[..n] {
            let (q, number) = End::of(completion.id);
            let done = self.done.get_mut(q).filter(|done| **done < number);
            let done =
                done.ok_or_else(|| TestError::Peer(format!("a completion of an unknown request {number}")))?;
            self.all_done += number - *done;
            *done = number;
        }
        if n > 0 && self.measuring && (self.all() <= MOST_FOR_PEAK || self.all_done == self.all()) {
            self.asked = Asked::AfterPoll;
        }
        Ok(if n > 0 { Turn::Busy } else { Turn::Idle })
    }

    fn clock(&mut self, now: Time) {
        match self.asked {
            Asked::BeforePost => {
                self.posts.push((self.all_posted, now));
                self.asked = Asked::Ready;
            }
            Asked::AfterPoll => {
                self.ends.push((self.all_done, now));
                self.asked = Asked::No;
            }
            Asked::No | Asked::Ready => {}
        }
    }

    fn progress(&self) -> (u64, u64) {
        let n = self.posted.len() as u64;
        let before = if self.measuring { self.test.warm_up * n } else { 0 };
        (before + self.all_done, (self.test.warm_up + self.test.iterations) * n)
    }

    fn figures(&mut self) -> Option<Figures> {
        let peak = self.all() <= MOST_FOR_PEAK;
        Bandwidth::of(self.test.size, &self.posts, &self.ends, peak).map(Figures::Bandwidth)
    }
}

/// A plan of at least a batch of messages in their places.
fn plan(test: &Test) -> Option<Arc<Plan>> {
    let (places, batch) = (test.places(), u64::from(test.batch));
    // A multiple of the batch, so that windows do not wrap within a chain.
    let length = if places >= batch { places / batch * batch } else { batch };
    let stride = if places > 1 { test.stride() } else { 0 };
    let runs = (0..length)
        .step_by(places as usize)
        .map(|start| Run {
            count: places.min(length - start) as u32,
            local_step: stride,
            remote_step: stride,
            ..Run::piece(0, 0, test.size)
        })
        .collect();
    Plan::new(Arc::new([Lane { local: 0, remote: 0 }]), runs).ok().map(Arc::new)
}

/// The target's half of SEND and WRITE with immediate.
pub(super) struct Receiver<'a> {
    end: &'a End,
    all: u64,
    got: u64,
    /// Receives consumed and not posted again, per queue pair.
    owed: Vec<u32>,
    /// Queue pairs that are owed.
    waiting: Vec<usize>,
}

impl<'a> Receiver<'a> {
    pub(super) fn new(end: &'a End, test: &Test) -> Self {
        let all = (test.warm_up + test.iterations) * u64::from(test.qps);
        Self { end, all, got: 0, owed: vec![0; test.qps as usize], waiting: Vec::new() }
    }
}

impl Half for Receiver<'_> {
    fn turn(&mut self, fabric: &mut dyn Fabric) -> Result<Turn, TestError> {
        if let Some(q) = self.waiting.pop() {
            self.end.receive(fabric, q, std::mem::take(&mut self.owed[q]))?;
            return Ok(Turn::Busy);
        }
        if self.got >= self.all {
            return Ok(Turn::Done);
        }
        let mut some = [Completion::default(); POLL];
        let n = self.end.poll(fabric, true, &mut some)?;
        for completion in &some[..n] {
            let (q, _) = End::of(completion.id);
            if self.owed[q] == 0 {
                self.waiting.push(q);
            }
            self.owed[q] += 1;
        }
        self.got += n as u64;
        Ok(if n > 0 { Turn::Busy } else { Turn::Idle })
    }

    fn clock(&mut self, _now: Time) {}

    fn progress(&self) -> (u64, u64) {
        (self.got, self.all)
    }
}
