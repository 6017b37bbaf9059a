//! The real driver: operating system clock, ZeroMQ sockets, completion polling.
//!
//! A [`Driver`] is the real counterpart of the simulated world: it runs one node over one [`Device`] and one [`Link`] of the control
//! channel, in one thread. It polls completion queues, carries frames, wakes the node at its deadline, and sleeps when there is
//! nothing to do. It decides nothing about requests.
//!
//! ```no_run
//! use engine::driver::{self, Context, Driver, DriverConfig, Link, LinkConfig};
//! use engine::fabric::Absent;
//! use engine::registry::{Registry, RegistryConfig};
//! use engine::time::Span;
//!
//! let link = Link::bind(&Context::new(), &LinkConfig::default(), "tcp://127.0.0.1:5555")?;
//! let registry = Registry::new(driver::life(), RegistryConfig::default());
//! let mut driver = Driver::new(registry, Absent, link, DriverConfig::default())?;
//! driver.start()?;
//! loop {
//!     driver.turn(&[], driver::now() + Span::ms(100))?;
//! }
//! # #[allow(unreachable_code)]
//! # Ok::<(), driver::DriverError>(())
//! ```
//!
//! On the wire a frame is one ZeroMQ message part, and the [`Identity`] of a node's socket says which node it is. ZeroMQ reconnects by
//! itself; what is lost meanwhile, or because a queue is full, the sessions above send again.

mod clock;
mod identity;
mod link;

pub use clock::{from_host_ns, host_ns, life, now};
pub use identity::{Identity, IdentityError, MAX_NAME, MAX_NODES};
pub use link::{Link, LinkConfig, LinkError, LinkStats};
pub use zmq::{Context, POLLIN, PollEvents, Socket};

use crate::fabric::{Completion, Device, Error, Failed, Status};
use crate::id::CqId;
use crate::node::{Cx, Input, Node, Outbox, Record, Request};
use crate::time::{Span, Time};
use clock::Alarm;

/// How a driver shares its thread's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DriverConfig {
    /// How long it polls after the last work before it sleeps.
    pub spin: Span,
    /// Frames taken in a row before it looks at completions again, and before the node says something.
    pub frames: usize,
    /// Completions taken in a row from one queue.
    pub completions: usize,
}

impl Default for DriverConfig {
    fn default() -> Self {
        Self { spin: Span::us(20), frames: 2048, completions: 64 }
    }
}

/// Why a driver cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The control channel.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The device.
    #[error("the device cannot wake its host: {0}")]
    Device(Error),
    /// The system's timer, or waiting for descriptors.
    #[error("{what}: {why}")]
    System {
        /// What was asked.
        what: &'static str,
        /// The system's answer.
        why: String,
    },
}

/// What a driver has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DriverStats {
    /// Frames handed to the node.
    pub frames: u64,
    /// Completions handed to the node.
    pub completions: u64,
    /// Completions that were no success, those of them that were flushed because of another apart.
    pub failed: u64,
    /// Completions that were flushed.
    pub flushed: u64,
    /// How the last of [`DriverStats::failed`] ended.
    pub last_failure: Option<Failed>,
    /// Asynchronous events handed to the node.
    pub events: u64,
    /// Times that the thread slept.
    pub sleeps: u64,
}

/// Descriptors are looked at this often while there is always work: asynchronous events come only that way.
const LOOK: Span = Span::ms(1);
/// A sleep shorter than this is not worth its system calls.
const SHORTEST_SLEEP: Span = Span::us(5);
/// The clock is looked at once for so many frames: they take microseconds, and a look costs as much as some of what is in them.
const FRAMES_A_LOOK: usize = 8;
/// Asynchronous events taken in a row.
const EVENTS: usize = 16;

/// Runs one node in real time.
pub struct Driver<N, D> {
    node: N,
    device: D,
    link: Link,
    config: DriverConfig,
    out: Outbox,
    records: Vec<(Time, Record)>,
    batch: Vec<Completion>,
    queues: Vec<CqId>,
    alarm: Alarm,
    worked: Time,
    looked: Time,
    stats: DriverStats,
}

impl<N: Node, D: Device> Driver<N, D> {
    /// A driver of a node that has not been started.
    pub fn new(node: N, device: D, link: Link, config: DriverConfig) -> Result<Self, DriverError> {
        let config =
            DriverConfig { frames: config.frames.max(1), completions: config.completions.max(1), ..config };
        Ok(Self {
            node,
            device,
            link,
            out: Outbox::default(),
            records: Vec::new(),
            batch: vec![Completion::default(); config.completions],
            queues: Vec::new(),
            alarm: Alarm::new()?,
            worked: Time::ZERO,
            looked: Time::ZERO,
            stats: DriverStats::default(),
            config,
        })
    }

    /// Starts the node.
    pub fn start(&mut self) -> Result<(), DriverError> {
        self.input(Input::Start)
    }

    /// Hands the node a request of the workload (router only).
    pub fn arrive(&mut self, request: &Request) -> Result<(), DriverError> {
        self.input(Input::Arrival(request))
    }

    /// Tells the node to wind down: it gives back what it can, leaves the registry, and goes on to be driven until that is done.
    pub fn shut_down(&mut self) -> Result<(), DriverError> {
        self.input(Input::Shutdown)
    }

    /// Does what there is to do; if there has been nothing for [`DriverConfig::spin`], sleeps until there is, one of the sockets `aside`
    /// has something to read, or it is `until`.
    pub fn turn(&mut self, aside: &[&Socket], until: Time) -> Result<(), DriverError> {
        if self.round()? {
            self.worked = now();
            if self.worked.since(self.looked) >= LOOK {
                self.looked = self.worked;
                self.device.wake();
            }
            return Ok(());
        }
        let present = now();
        let until = self.node.deadline().map_or(until, |deadline| deadline.min(until));
        if present.since(self.worked) < self.config.spin || until.since(present) < SHORTEST_SLEEP {
            std::hint::spin_loop();
            return Ok(());
        }
        self.device.arm().map_err(DriverError::Device)?;
        // What came between the last look and the arming wakes nobody.
        if self.round()? {
            self.worked = now();
            return Ok(());
        }
        self.sleep(aside, until)
    }

    /// The node.
    pub fn node(&self) -> &N {
        &self.node
    }
    /// The device.
    pub fn device(&self) -> &D {
        &self.device
    }
    /// What was counted.
    pub fn stats(&self) -> DriverStats {
        self.stats
    }
    /// What was counted at the node's end of the control channel.
    pub fn link(&self) -> &Link {
        &self.link
    }
    /// Takes the records made since the last call, with the time of each.
    pub fn records(&mut self) -> std::vec::Drain<'_, (Time, Record)> {
        self.records.drain(..)
    }
    /// The device, once the node is done with it.
    pub fn into_device(self) -> D {
        self.device
    }

    /// One bounded look at everything. Whether there was something.
    fn round(&mut self) -> Result<bool, DriverError> {
        let mut worked = self.completions();
        let mut at = now();
        for taken in 1..=self.config.frames {
            if taken % FRAMES_A_LOOK == 0 {
                at = now();
            }
            let Some((from, frame)) = self.link.receive(at)? else { break };
            worked = true;
            self.stats.frames += 1;
            let mut cx = Cx { now: at, fabric: &mut self.device, out: &mut self.out };
            self.node.handle(&mut cx, Input::Frame { from, bytes: frame });
            stamp(&mut self.out, at, &mut self.records);
        }
        for _ in 0..EVENTS {
            let Some(event) = self.device.next_event() else { break };
            worked = true;
            self.stats.events += 1;
            self.handle(Input::Fabric(event));
        }
        if self.node.deadline().is_some_and(|deadline| deadline <= now()) {
            worked = true;
            self.handle(Input::Wake);
        }
        if worked {
            self.flush()?;
        }
        Ok(worked)
    }

    fn completions(&mut self) -> bool {
        // A node that handles completions may make and destroy queues.
        self.queues.clear();
        self.queues.extend_from_slice(self.device.queues());
        let mut worked = false;
        for at in 0..self.queues.len() {
            let cq = self.queues[at];
            let count = self.device.poll(cq, &mut self.batch);
            if count == 0 {
                continue;
            }
            worked = true;
            self.stats.completions += count as u64;
            for failed in self.batch[..count].iter().filter_map(|completion| completion.result.err()) {
                if failed.status == Status::WrFlush {
                    self.stats.flushed += 1;
                } else {
                    self.stats.failed += 1;
                    self.stats.last_failure = Some(failed);
                }
            }
            let at = now();
            let mut cx = Cx { now: at, fabric: &mut self.device, out: &mut self.out };
            self.node.handle(&mut cx, Input::Completions { cq, batch: &self.batch[..count] });
            stamp(&mut self.out, at, &mut self.records);
        }
        worked
    }

    fn input(&mut self, input: Input<'_>) -> Result<(), DriverError> {
        self.handle(input);
        self.worked = now();
        self.flush()
    }

    fn handle(&mut self, input: Input<'_>) {
        let at = now();
        let mut cx = Cx { now: at, fabric: &mut self.device, out: &mut self.out };
        self.node.handle(&mut cx, input);
        stamp(&mut self.out, at, &mut self.records);
    }

    /// Lets out what the node has gathered over a round: under load, what is said to the same node shares frames.
    fn flush(&mut self) -> Result<(), DriverError> {
        let at = now();
        self.node.flush(at, &mut self.out);
        stamp(&mut self.out, at, &mut self.records);
        for (to, frame) in self.out.frames() {
            self.link.send(to, frame)?;
        }
        self.out.clear();
        Ok(())
    }

    fn sleep(&mut self, aside: &[&Socket], until: Time) -> Result<(), DriverError> {
        self.alarm.set(until)?;
        self.stats.sleeps += 1;
        let own = [self.link.socket()];
        let sockets = own.iter().chain(aside).map(|socket| socket.as_poll_item(zmq::POLLIN));
        let mut items: Vec<zmq::PollItem<'_>> = sockets.collect();
        let first = items.len();
        items.push(zmq::PollItem::from_fd(self.alarm.descriptor(), zmq::POLLIN));
        let descriptors = self.device.descriptors().iter();
        items.extend(descriptors.map(|fd| zmq::PollItem::from_fd(*fd, zmq::POLLIN)));
        match zmq::poll(&mut items, -1) {
            // A signal came: whoever drives looks at what it means.
            Ok(_) | Err(zmq::Error::EINTR) => {}
            Err(why) => {
                return Err(DriverError::System { what: "waiting for descriptors", why: why.to_string() });
            }
        }
        let device = items[first + 1..].iter().any(|item| item.is_readable() || item.is_error());
        drop(items);
        if device {
            self.looked = now();
            self.device.wake();
        }
        Ok(())
    }
}

/// Gives the records of one call their time.
fn stamp(out: &mut Outbox, at: Time, records: &mut Vec<(Time, Record)>) {
    records.extend(out.records.drain(..).map(|record| (at, record)));
}
