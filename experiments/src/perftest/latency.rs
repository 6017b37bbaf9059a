//! Latency: a ping-pong, or READs one after the other.

use super::bandwidth::request_op;
use super::end::End;
use super::figures::{Figures, Latency};
use super::spec::{Op as Operation, Test};
use super::{Half, TestError, Turn, at};
use engine::fabric::{Completion, Fabric, Item, WorkRequest};
use engine::time::Time;

/// What a side does next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Ask for the time of the post.
    Clock,
    /// Write the message's number into it.
    Mark,
    /// Post it.
    Post,
    /// Post the receive that the last message took.
    Receive,
    /// Wait for the send's completion.
    Sent,
    /// Wait for the other side's message.
    Message,
}

fn post(end: &End, test: &Test, fabric: &mut dyn Fabric, number: u64) -> Result<(), TestError> {
    let (sge, remote) = end.message(0, 0);
    let (local, flags) = (std::slice::from_ref(&sge), end.flags(true));
    let request = WorkRequest { id: end.id(0, number), op: request_op(test), flags, local, remote };
    fabric
        .post_send(end.qps[0], &[Item::One(request)])
        .map_err(|refused| at("posting a request")(refused.why))
}

fn one(end: &End, fabric: &mut dyn Fabric, receives: bool) -> Result<bool, TestError> {
    Ok(end.poll(fabric, receives, &mut [Completion::default()])? > 0)
}

/// Whether the other side's message number `number` is there.
fn came(end: &End, test: &Test, fabric: &mut dyn Fabric, number: u64) -> Result<bool, TestError> {
    if test.op.received() { one(end, fabric, true) } else { end.marked(fabric, number) }
}

/// The initiator's half.
pub(super) struct Ping<'a> {
    end: &'a End,
    test: Test,
    next: Next,
    /// Messages answered.
    done: u64,
    all: u64,
    posts: Vec<Time>,
}

impl<'a> Ping<'a> {
    pub(super) fn new(end: &'a End, test: &Test) -> Self {
        let all = test.warm_up + test.iterations;
        let posts = Vec::with_capacity(test.iterations.min(1 << 20) as usize);
        Self { end, test: *test, next: Next::Clock, done: 0, all, posts }
    }

    fn answered(&mut self) {
        self.done += 1;
        self.next = Next::Clock;
    }
}

impl Half for Ping<'_> {
    fn turn(&mut self, fabric: &mut dyn Fabric) -> Result<Turn, TestError> {
        let number = self.done + 1;
        match self.next {
            Next::Clock if self.done == self.all => return Ok(Turn::Done),
            Next::Clock => return Ok(Turn::Clock),
            Next::Mark => {
                self.end.mark(fabric, number)?;
                self.next = Next::Post;
            }
            Next::Post => {
                post(self.end, &self.test, fabric, number)?;
                self.next = if self.test.op.received() && self.done > 0 { Next::Receive } else { Next::Sent };
            }
            Next::Receive => {
                self.end.receive(fabric, 0, 1)?;
                self.next = Next::Sent;
            }
            Next::Sent if one(self.end, fabric, false)? => {
                self.next = Next::Message;
                if self.test.op == Operation::Read {
                    self.answered();
                }
            }
            Next::Message if came(self.end, &self.test, fabric, number)? => self.answered(),
            Next::Sent | Next::Message => return Ok(Turn::Idle),
        }
        Ok(Turn::Busy)
    }

    fn clock(&mut self, now: Time) {
        if self.done >= self.test.warm_up {
            self.posts.push(now);
        }
        self.next = if self.test.op == Operation::Write { Next::Mark } else { Next::Post };
    }

    fn progress(&self) -> (u64, u64) {
        (self.done, self.all)
    }

    fn figures(&mut self) -> Option<Figures> {
        let halves = if self.test.op == Operation::Read { 1 } else { 2 };
        Latency::of(&self.posts, halves).map(Figures::Latency)
    }
}

/// The target's half of a ping-pong.
pub(super) struct Pong<'a> {
    end: &'a End,
    test: Test,
    next: Next,
    done: u64,
    all: u64,
}

impl<'a> Pong<'a> {
    pub(super) fn new(end: &'a End, test: &Test) -> Self {
        Self { end, test: *test, next: Next::Message, done: 0, all: test.warm_up + test.iterations }
    }
}

impl Half for Pong<'_> {
    fn turn(&mut self, fabric: &mut dyn Fabric) -> Result<Turn, TestError> {
        let number = self.done + 1;
        match self.next {
            _ if self.done == self.all => return Ok(Turn::Done),
            Next::Message if came(self.end, &self.test, fabric, number)? => {
                self.next = if self.test.op == Operation::Write { Next::Mark } else { Next::Post };
            }
            Next::Mark => {
                self.end.mark(fabric, number)?;
                self.next = Next::Post;
            }
            Next::Post => {
                post(self.end, &self.test, fabric, number)?;
                self.next = if self.test.op.received() { Next::Receive } else { Next::Sent };
            }
            Next::Receive => {
                self.end.receive(fabric, 0, 1)?;
                self.next = Next::Sent;
            }
            Next::Sent if one(self.end, fabric, false)? => {
                self.done += 1;
                self.next = Next::Message;
            }
            Next::Clock | Next::Sent | Next::Message => return Ok(Turn::Idle),
        }
        Ok(Turn::Busy)
    }

    fn clock(&mut self, _now: Time) {}

    fn progress(&self) -> (u64, u64) {
        (self.done, self.all)
    }
}
