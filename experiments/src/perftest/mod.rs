//! What one pair of ports can do: bandwidth and latency of single operations, as linux-rdma/perftest measures them.
//!
//! A [`Test`] is one measurement at one message size. Each side of it is a [`half`](Half): a state machine that makes one fabric call
//! a step, so the same halves run in virtual time ([`local`] over [`sim::fabric::duo::SimDuo`]), on two ports of one process ([`local`] over
//! real devices), and on two hosts ([`remote`]). [`Figures`] are what comes out; [`table`] and [`csv`] print them.
//!
//! Definitions (linux-rdma/perftest, perftest_resources.c and perftest_parameters.c):
//!
//! - *bandwidth*: `depth` requests are kept under way on each queue pair; one in `signal_every` completes visibly. The average is all bytes
//!   over the time from the first post to the last completion; the peak is the best rate between any post and any later completion.
//! - *latency*: of WRITE, WRITE with immediate and SEND half the time from one post to the next of a ping-pong; of READ all of it. The
//!   receiver of a WRITE polls the last byte in memory, that of the others its completion queue. Every request is signalled and its
//!   completion taken before the answer is looked for. The two longest samples are left out of everything, as perftest does.

mod bandwidth;
pub mod csv;
mod end;
mod figures;
mod latency;
pub mod local;
pub mod remote;

mod spec;
pub mod table;

pub use end::{Card, End};
pub use figures::{Bandwidth, Figures, Latency};
pub use spec::{BadTest, Metric, Op, Options, Side, Test, sizes};

use bandwidth::{Receiver, Sender};
use engine::fabric::{self, Fabric, Status};
use engine::time::Time;
use latency::{Ping, Pong};

/// Why a measurement did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum TestError {
    /// The test cannot be.
    #[error(transparent)]
    Bad(#[from] BadTest),
    /// The fabric refused a call.
    #[error("{what}: {why}")]
    Fabric {
        /// What was tried.
        what: &'static str,
        /// Its answer.
        why: fabric::Error,
    },
    /// A request failed.
    #[error("a {what} completed with {status:?} (vendor code {vendor:#x}){hint}", hint = hint(*status))]
    Completion {
        /// What failed.
        what: &'static str,
        /// How.
        status: Status,
        /// The vendor's code.
        vendor: u32,
    },
    /// Nothing moves any more.
    #[error(
        "nothing completed for {seconds} s at {size} bytes, {done} of {all} requests done: is the link up and the other side alive?"
    )]
    Stuck {
        /// How long.
        seconds: u64,
        /// Message size.
        size: u32,
        /// Requests that are done.
        done: u64,
        /// Requests in all.
        all: u64,
    },
    /// The other side, or the connection to it, failed.
    #[error("{0}")]
    Peer(String),
    /// The user wants to stop.
    #[error("interrupted")]
    Interrupted,
}

fn hint(status: Status) -> &'static str {
    match status {
        Status::RetryExc => {
            ": no answer from the other port; is there a route between the two, and is the right GID used?"
        }
        Status::RnrRetryExc => ": the other side posts no receives",
        _ => "",
    }
}

pub(crate) fn at(what: &'static str) -> impl FnOnce(fabric::Error) -> TestError {
    move |why| TestError::Fabric { what, why }
}

/// What a half did with its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Something; it wants another turn.
    Busy,
    /// Nothing could be done yet.
    Idle,
    /// It made no fabric call and wants to be told the time ([`Half::clock`]).
    Clock,
    /// It has nothing more to do.
    Done,
}

/// One side of a test.
pub trait Half {
    /// At most one fabric call that costs time.
    fn turn(&mut self, fabric: &mut dyn Fabric) -> Result<Turn, TestError>;
    /// The time it asked for.
    fn clock(&mut self, now: Time);
    /// Requests done and requests in all, for progress.
    fn progress(&self) -> (u64, u64);
    /// What it measured, once done.
    fn figures(&mut self) -> Option<Figures> {
        None
    }
}

/// The half of a connected end. None where that side has nothing to do (target of WRITE or READ bandwidth, and of READ latency).
pub fn half<'a>(end: &'a End, test: &Test, side: Side) -> Option<Box<dyn Half + 'a>> {
    match (side, test.metric, test.op) {
        (Side::Initiator, Metric::Bw, _) => Some(Box::new(Sender::new(end, test))),
        (Side::Initiator, Metric::Lat, _) => Some(Box::new(Ping::new(end, test))),
        (Side::Target, Metric::Lat, Op::Write | Op::WriteImm | Op::Send) => {
            Some(Box::new(Pong::new(end, test)))
        }
        (Side::Target, Metric::Bw, Op::WriteImm | Op::Send) => Some(Box::new(Receiver::new(end, test))),
        (Side::Target, _, _) => None,
    }
}
