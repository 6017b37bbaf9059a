//! A node's end of the measuring process's socket.

use std::collections::VecDeque;

use engine::driver::{self, Context, Identity, Link, LinkConfig, LinkError, Socket};
use engine::id::NodeId;
use engine::node::Record;
use engine::registry::REGISTRY;
use engine::time::{Span, Time};

use super::message::{FromNode, Hello, MAX_ROWS, Row, Standing, ToNode, VERSION};
use crate::build::nodes::Place;

/// Silence after which a node says hello again.
const FORGOTTEN: Span = Span::s(1);
/// Records wait this long for others to leave with.
const GATHER: Span = Span::ms(2);
/// Records that wait for a measuring process that does not take them; more are dropped, and missed there.
const MAX_WAITING: usize = 1 << 20;

/// What the measuring process wants of a node.
pub(super) enum Order {
    /// The workload begins then.
    Start(Time),
    /// Wind down.
    Stop,
}

/// A node's end.
pub(super) struct Member {
    link: Link,
    hello: Hello,
    /// Last hello, and last word of the measuring process.
    greeted: Time,
    heard: Option<Time>,
    rows: VecDeque<Row>,
    /// Rows that left, or were dropped.
    sent: u64,
    flushed: Time,
    looks: Option<u32>,
}

impl Member {
    pub(super) fn connect(
        context: &Context,
        address: &str,
        number: NodeId,
        place: Place,
        life: u32,
        experiment: u64,
    ) -> Result<Self, LinkError> {
        let identity = Identity::new(member_number(number), &place.to_string())?;
        let link = Link::connect(context, &LinkConfig::default(), address, &identity)?;
        Ok(Self {
            link,
            hello: Hello { version: VERSION, life, boot: boot_id(), experiment },
            greeted: Time::ZERO,
            heard: None,
            rows: VecDeque::new(),
            sent: 0,
            flushed: Time::ZERO,
            looks: None,
        })
    }

    pub(super) fn socket(&self) -> &Socket {
        self.link.socket()
    }

    /// Takes a record for the measuring process.
    pub(super) fn record(&mut self, at: Time, record: &Record) {
        if self.rows.len() == MAX_WAITING {
            self.rows.pop_front();
            self.sent += 1;
        }
        self.rows.push_back(Row::new(driver::host_ns(at), record));
    }

    /// Sends what is due, answers what came, and says what is wanted.
    pub(super) fn tick(
        &mut self,
        now: Time,
        ready: bool,
        standing: impl Fn() -> Standing,
    ) -> Result<Option<Order>, LinkError> {
        let mut order = None;
        while order.is_none() {
            let Some((_, frame)) = self.link.receive(driver::now())? else { break };
            // What cannot be read is from another version; its hello will say so there.
            let Ok(message) = serde_json::from_slice::<ToNode>(frame) else { continue };
            self.heard = Some(now);
            match message {
                ToNode::Ping { ping } => {
                    let at_ns = driver::host_ns(driver::now());
                    self.say(&FromNode::Pong { ping, at_ns, ready })?;
                }
                ToNode::Start { zero_ns } => order = Some(Order::Start(driver::from_host_ns(zero_ns))),
                ToNode::Look { look } => self.looks = Some(look),
                ToNode::Stop => order = Some(Order::Stop),
            }
        }
        let silent = self.heard.is_none_or(|heard| now.since(heard) > FORGOTTEN);
        if silent && (self.greeted == Time::ZERO || now.since(self.greeted) > FORGOTTEN) {
            self.greeted = now;
            let hello = self.hello.clone();
            self.say(&FromNode::Hello(hello))?;
        }
        if self.rows.len() >= MAX_ROWS || now.since(self.flushed) >= GATHER || self.looks.is_some() {
            self.flushed = now;
            self.flush()?;
        }
        if self.rows.is_empty()
            && let Some(look) = self.looks.take()
        {
            self.say(&FromNode::Holds { look, standing: standing() })?;
        }
        Ok(order)
    }

    /// When [`Member::tick`] has something to do by itself.
    pub(super) fn deadline(&self, now: Time) -> Time {
        if self.rows.is_empty() { now + FORGOTTEN } else { self.flushed + GATHER }
    }

    /// The last word of a node that has wound down.
    pub(super) fn bye(&mut self, standing: Standing, failures: Option<String>) -> Result<(), LinkError> {
        self.flush()?;
        self.say(&FromNode::Bye { standing, failures }).map(drop)
    }

    /// The last word of a node that cannot go on.
    pub(super) fn failed(&mut self, why: &str) -> Result<(), LinkError> {
        let hello = self.hello.clone();
        self.say(&FromNode::Hello(hello))?;
        self.say(&FromNode::Failed(why.chars().take(2000).collect())).map(drop)
    }

    fn flush(&mut self) -> Result<(), LinkError> {
        while !self.rows.is_empty() {
            let rows: Vec<Row> = self.rows.iter().take(MAX_ROWS).copied().collect();
            let count = rows.len();
            if !self.say(&FromNode::Records { first: self.sent, rows })? {
                break;
            }
            self.rows.drain(..count);
            self.sent += count as u64;
        }
        Ok(())
    }

    fn say(&mut self, message: &FromNode) -> Result<bool, LinkError> {
        match serde_json::to_vec(message) {
            Ok(bytes) => self.link.send(REGISTRY, &bytes),
            Err(_) => Ok(false),
        }
    }
}

/// A node's number on the measuring process's socket, where the registry is a node like others and number 0 is nobody.
pub(super) fn member_number(node: NodeId) -> NodeId {
    NodeId(node.0 + 1)
}

/// The id of this boot of this host. Processes with the same one share CLOCK_MONOTONIC.
pub(super) fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}
