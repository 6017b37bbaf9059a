//! The world: all nodes, the fabric between them, the control channel and one event queue.
//!
//! [`World`] is the simulated driver. It calls the production nodes of the `engine` crate as the real driver does: polls completion
//! queues, carries frames, wakes nodes at their deadline. A node whose calls cost CPU time takes later inputs later. Everything
//! happens in one order, by (time, sequence), so a run depends on its configuration and seed alone.

mod faults;
mod triggers;

pub use crate::fault::Fault;
pub use faults::Maker;
pub use triggers::Trigger;

use crate::control::{Arrival, Channel, ControlConfig};
use crate::digest::Digest;
use crate::fabric::{FabricEvent, Fabrics, Ready, ReadyWhat};
use crate::fault::Clock;
use crate::queue::EventQueue;
use engine::fabric::{Completion, Event, Fabric as _};
use engine::id::{CqId, NodeId};
use engine::node::{
    Counters, Cx, DecodeNode, Held, Input, Node, Outbox, PrefillNode, Record, Request, RouterNode,
};
use engine::registry::Registry;
use engine::time::{Span, Time};
use std::collections::VecDeque;

/// The production nodes, by role.
pub enum AnyNode {
    /// The registry; always node 0.
    Registry(Registry),
    /// The router.
    Router(RouterNode),
    /// A prefill instance.
    Prefill(PrefillNode),
    /// A decode instance.
    Decode(DecodeNode),
    /// A process that died.
    Dead(Dead),
}

/// A process that died: nothing reaches it, and it holds nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Dead;

impl Node for Dead {
    fn handle(&mut self, _cx: &mut Cx<'_>, _input: Input<'_>) {}
    fn flush(&mut self, _now: Time, _out: &mut Outbox) {}
    fn deadline(&self) -> Option<Time> {
        None
    }
    fn held(&self) -> Held {
        Held::default()
    }
}

macro_rules! each {
    ($self:expr, $node:ident => $call:expr) => {
        match $self {
            AnyNode::Registry($node) => $call,
            AnyNode::Router($node) => $call,
            AnyNode::Prefill($node) => $call,
            AnyNode::Decode($node) => $call,
            AnyNode::Dead($node) => $call,
        }
    };
}

impl Node for AnyNode {
    fn handle(&mut self, cx: &mut Cx<'_>, input: Input<'_>) {
        each!(self, node => node.handle(cx, input));
    }
    fn flush(&mut self, now: Time, out: &mut Outbox) {
        each!(self, node => node.flush(now, out));
    }
    fn deadline(&self) -> Option<Time> {
        each!(self, node => node.deadline())
    }
    fn held(&self) -> Held {
        each!(self, node => node.held())
    }
    fn counters(&self) -> Counters {
        each!(self, node => node.counters())
    }
}

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes its way.
    Pass,
    /// It is lost.
    Drop,
    /// It is kept until [`World::let_go`].
    Hold,
}

/// Looks at every frame: (from, to, bytes).
pub type Censor = Box<dyn FnMut(NodeId, NodeId, &[u8]) -> Verdict>;

/// A record with the time and the node it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamped {
    /// Global time.
    pub at: Time,
    /// Who.
    pub node: NodeId,
    /// What.
    pub record: Record,
}

enum Ev {
    Fabric(FabricEvent),
    Frame { to: NodeId, from: NodeId, frame: u32 },
    Wake(NodeId),
    Resume(NodeId),
    Fault(Fault),
    FaultOver(Fault),
}

impl From<FabricEvent> for Ev {
    fn from(event: FabricEvent) -> Self {
        Self::Fabric(event)
    }
}

/// An input that waits until its node has time.
enum Waiting {
    Frame { from: NodeId, frame: u32 },
    Poll(CqId),
    Events,
    Wake,
    Arrival(Request),
    Start,
    Shutdown,
}

struct Place {
    node: AnyNode,
    host: usize,
    busy: Time,
    paused: bool,
    inbox: VecDeque<Waiting>,
    /// A [`Ev::Resume`] is on its way.
    resuming: bool,
    /// When the earliest [`Ev::Wake`] on its way comes.
    armed: Time,
    digest: Digest,
    /// How often it was started.
    life: u32,
    clock: Clock,
    slow: faults::Slowness,
    /// What its earlier lives counted.
    past: Counters,
}

impl Place {
    /// When its node wants to be woken, in true time.
    fn deadline(&self) -> Option<Time> {
        self.node.deadline().map(|at| self.clock.when(at))
    }
}

/// All nodes and what is between them.
pub struct World {
    now: Time,
    queue: EventQueue<Ev>,
    fabrics: Fabrics,
    places: Vec<Place>,
    /// By host: its node.
    node_of: Vec<Option<NodeId>>,
    channel: Channel,
    /// Frames on their way, each with its digest.
    frames: Vec<(Vec<u8>, u64)>,
    free_frames: Vec<u32>,
    out: Outbox,
    ready: Vec<Ready>,
    settling: bool,
    records: Vec<Stamped>,
    censor: Option<Censor>,
    held_frames: VecDeque<(NodeId, NodeId, u32)>,
    events: u64,
    dropped: u64,
    faults: faults::Faults,
    arrivals: Vec<Arrival>,
    /// What happened since it was last asked, if anybody asks.
    noted: Option<Noted>,
}

/// What happened in a world that a watcher must look at.
#[derive(Clone, Debug, Default)]
pub struct Noted {
    /// Nodes that were called, in order, each once at least.
    pub called: Vec<NodeId>,
    /// Faults that struck.
    pub faults: Vec<Fault>,
}

impl World {
    /// Nodes on hosts; node `i` of the list gets id `i`, and the first must be the registry.
    pub fn new(fabrics: Fabrics, nodes: Vec<(AnyNode, usize)>, control: ControlConfig, seed: u64) -> Self {
        let mut node_of = vec![None; fabrics.hosts()];
        let count = nodes.len();
        let places = nodes
            .into_iter()
            .enumerate()
            .map(|(i, (node, host))| {
                node_of[host] = Some(NodeId(i as u32));
                Place {
                    node,
                    host,
                    busy: Time::ZERO,
                    paused: false,
                    inbox: VecDeque::new(),
                    resuming: false,
                    armed: Time::NEVER,
                    digest: Digest::default(),
                    life: 1,
                    clock: Clock::default(),
                    slow: faults::Slowness::default(),
                    past: Counters::default(),
                }
            })
            .collect();
        Self {
            now: Time::ZERO,
            queue: EventQueue::new(),
            fabrics,
            places,
            node_of,
            channel: Channel::new(control, seed, count),
            frames: Vec::new(),
            free_frames: Vec::new(),
            out: Outbox::default(),
            ready: Vec::new(),
            settling: false,
            records: Vec::new(),
            censor: None,
            held_frames: VecDeque::new(),
            events: 0,
            dropped: 0,
            faults: faults::Faults::default(),
            arrivals: Vec::new(),
            noted: None,
        }
    }

    /// Starts every node, the registry first.
    pub fn start(&mut self) {
        for node in 0..self.places.len() {
            self.deliver(NodeId(node as u32), Waiting::Start);
        }
    }

    /// Tells every node to wind down, the registry last. Faults are over: who was stopped goes on, so that it can leave, and nobody who died
    /// comes back.
    pub fn shut_down(&mut self) {
        self.end_faults();
        for node in (0..self.places.len()).rev() {
            self.deliver(NodeId(node as u32), Waiting::Shutdown);
        }
    }

    /// Tells one node to wind down.
    pub fn leave(&mut self, node: NodeId) {
        self.deliver(node, Waiting::Shutdown);
    }

    /// The present.
    pub fn now(&self) -> Time {
        self.now
    }
    /// When the last node that is busy now has time again; not before the present.
    pub fn busy_until(&self) -> Time {
        self.places.iter().map(|place| place.busy).fold(self.now, Time::max)
    }
    /// Events worked off.
    pub fn events(&self) -> u64 {
        self.events
    }
    /// Control frames dropped because the registry's queue was full.
    pub fn dropped_frames(&self) -> u64 {
        self.dropped
    }
    /// When the next event is.
    pub fn next_time(&self) -> Option<Time> {
        self.queue.peek_time()
    }
    /// Takes the records made since the last call.
    pub fn records(&mut self) -> std::vec::Drain<'_, Stamped> {
        self.records.drain(..)
    }
    /// Whether there are any.
    pub fn has_records(&self) -> bool {
        !self.records.is_empty()
    }
    /// How many nodes there are.
    pub fn nodes(&self) -> usize {
        self.places.len()
    }
    /// A node, to look at.
    pub fn node(&self, node: NodeId) -> &AnyNode {
        &self.places[node.index()].node
    }
    /// The fabrics, to look at.
    pub fn fabrics(&self) -> &Fabrics {
        &self.fabrics
    }
    /// The fabrics, for tests that look into memory.
    pub fn fabrics_mut(&mut self) -> &mut Fabrics {
        &mut self.fabrics
    }
    /// Looks at every frame from now on.
    pub fn set_censor(&mut self, censor: Option<Censor>) {
        self.censor = censor;
    }
    /// Notes from now on what [`World::noted`] tells.
    pub fn note(&mut self) {
        self.noted = Some(Noted::default());
    }
    /// What happened since the last call: `last`, emptied, takes the place of what is handed out.
    pub fn noted(&mut self, mut last: Noted) -> Noted {
        last.called.clear();
        last.faults.clear();
        match &mut self.noted {
            Some(noted) => std::mem::replace(noted, last),
            None => last,
        }
    }
    /// Lets the frames go that the censor held, in their order; they arrive a latency from now.
    pub fn let_go(&mut self) {
        for (from, to, frame) in std::mem::take(&mut self.held_frames) {
            let at = self.now + self.channel.config().latency;
            self.queue.push(at, Ev::Frame { to, from, frame });
        }
    }
    /// Lets those held frames go that `pick` names by (from, to, bytes), in their order.
    pub fn let_go_where(&mut self, mut pick: impl FnMut(NodeId, NodeId, &[u8]) -> bool) {
        for (from, to, frame) in std::mem::take(&mut self.held_frames) {
            if pick(from, to, &self.frames[frame as usize].0) {
                let at = self.now + self.channel.config().latency;
                self.queue.push(at, Ev::Frame { to, from, frame });
            } else {
                self.held_frames.push_back((from, to, frame));
            }
        }
    }
    /// The digest of all nodes so far, joined in node order.
    pub fn digest(&self) -> u64 {
        let mut all = Digest::default();
        for place in &self.places {
            all.word(place.digest.value());
        }
        all.value()
    }
    /// What all nodes counted.
    pub fn counters(&self) -> Counters {
        let mut sum = Counters::default();
        for place in &self.places {
            sum += place.past;
            sum += place.node.counters();
        }
        sum
    }

    /// A request reaches the router, which is `node`, at `at`. Nothing earlier may be left in the queue.
    pub fn arrive(&mut self, at: Time, node: NodeId, request: Request) {
        self.now = self.now.max(at);
        self.events += 1;
        self.deliver(node, Waiting::Arrival(request));
    }

    /// Works off the next event. False if there is none.
    pub fn step(&mut self) -> bool {
        let Some((at, event)) = self.queue.pop() else { return false };
        self.now = at;
        self.events += 1;
        match event {
            Ev::Fabric(event) => {
                self.fabrics.handle(at, event, &mut self.queue, &mut self.ready);
                self.settle();
            }
            Ev::Frame { to, from, frame } => self.deliver(to, Waiting::Frame { from, frame }),
            Ev::Wake(node) => {
                let place = &mut self.places[node.index()];
                if place.armed == at {
                    place.armed = Time::NEVER;
                    if place.deadline().is_some_and(|deadline| deadline <= at) {
                        self.deliver(node, Waiting::Wake);
                    } else {
                        self.arm(node);
                    }
                }
            }
            Ev::Resume(node) => {
                self.places[node.index()].resuming = false;
                self.resume(node);
            }
            Ev::Fault(fault) => self.strike(fault),
            Ev::FaultOver(fault) => self.over(fault),
        }
        true
    }

    /// Works off what comes before `at`, at most so many events.
    pub fn run_before(&mut self, at: Time, events: u64) {
        let last = self.events + events;
        while self.events < last && self.queue.peek_time().is_some_and(|next| next < at) {
            self.step();
        }
    }

    /// Works off everything up to and at `until`.
    pub fn run_until(&mut self, until: Time) {
        while self.queue.peek_time().is_some_and(|at| at <= until) {
            self.step();
        }
        self.now = self.now.max(until);
    }

    /// Hands nodes what the fabric has ready for them, one after the other. Calls of nodes come back here while it is under way: what
    /// they made ready waits its turn, or a node whose every call makes something ready would be called without end on one stack.
    fn settle(&mut self) {
        if std::mem::replace(&mut self.settling, true) {
            return;
        }
        while !self.ready.is_empty() {
            let Ready { host, what } = self.ready.remove(0);
            if let Some(node) = self.node_of[host] {
                let input = match what {
                    ReadyWhat::Completions(cq) => Waiting::Poll(cq),
                    ReadyWhat::Events => Waiting::Events,
                };
                self.deliver(node, input);
            }
        }
        self.settling = false;
    }

    /// Gives a node an input, or puts it into the inbox while the node is busy.
    fn deliver(&mut self, node: NodeId, input: Waiting) {
        let limit = self.channel.config().queue;
        let place = &mut self.places[node.index()];
        if matches!(place.node, AnyNode::Dead(_)) {
            if let Waiting::Frame { frame, .. } = input {
                self.free_frames.push(frame);
            }
            return;
        }
        if place.paused || place.busy > self.now || !place.inbox.is_empty() {
            if node.0 == 0
                && place.inbox.len() >= limit
                && let Waiting::Frame { frame, .. } = input
            {
                self.dropped += 1;
                self.free_frames.push(frame);
                return;
            }
            place.inbox.push_back(input);
            if !place.paused && !place.resuming {
                place.resuming = true;
                let at = place.busy.max(self.now);
                self.queue.push(at, Ev::Resume(node));
            }
            return;
        }
        self.call(node, input);
    }

    /// The node has time again.
    fn resume(&mut self, node: NodeId) {
        let place = &mut self.places[node.index()];
        if place.paused || place.resuming {
            return;
        }
        if place.busy <= self.now
            && let Some(input) = place.inbox.pop_front()
        {
            self.call(node, input);
        }
        let place = &mut self.places[node.index()];
        if !place.inbox.is_empty() && !place.resuming {
            place.resuming = true;
            let at = place.busy.max(self.now);
            self.queue.push(at, Ev::Resume(node));
        }
    }

    /// The one door into a node.
    fn call(&mut self, node: NodeId, input: Waiting) {
        let host = self.places[node.index()].host;
        self.fabrics.begin_call(host, self.now);
        match input {
            Waiting::Frame { from, frame } => {
                let (bytes, digest) = std::mem::take(&mut self.frames[frame as usize]);
                self.places[node.index()].digest.pair(1 ^ u64::from(from.0) << 8, digest);
                let service = if node.0 == 0 {
                    let c = self.channel.config();
                    c.service_per_frame + c.service_per_byte * bytes.len() as u64
                } else {
                    Span(0)
                };
                self.handle(node, Input::Frame { from, bytes: &bytes }, service);
                self.frames[frame as usize] = (bytes, digest);
                self.free_frames.push(frame);
            }
            Waiting::Poll(cq) => {
                let mut batch = [Completion::default(); 16];
                loop {
                    let n = self.fabrics.host(host).poll(cq, &mut batch);
                    if n == 0 {
                        break;
                    }
                    let digest = &mut self.places[node.index()].digest;
                    for completion in &batch[..n] {
                        let result = u64::from(completion.qp.0) << 32 ^ fingerprint(completion);
                        digest.pair(2 ^ completion.id.0 << 8, result);
                    }
                    self.handle(node, Input::Completions { cq, batch: &batch[..n] }, Span(0));
                    if n < batch.len() {
                        break;
                    }
                }
            }
            Waiting::Events => {
                while let Some(event) = self.fabrics.host(host).next_event() {
                    let (kind, id) = match event {
                        Event::QpFatal(qp) => (1, qp.0.into()),
                        Event::CqOverrun(cq) => (2, cq.0.into()),
                        Event::SrqLimit(srq) => (3, srq.0.into()),
                        Event::LastWqeReached(qp) => (4, qp.0.into()),
                        Event::PortDown(port) => (5, port.0.into()),
                        Event::PortUp(port) => (6, port.0.into()),
                        Event::Copied(copy) => (7, copy.0),
                    };
                    self.places[node.index()].digest.word(3 ^ kind << 8 ^ id << 16);
                    self.handle(node, Input::Fabric(event), Span(0));
                }
            }
            Waiting::Wake => {
                self.places[node.index()].digest.word(4);
                self.handle(node, Input::Wake, Span(0));
            }
            Waiting::Arrival(request) => {
                let digest = &mut self.places[node.index()].digest;
                digest.word(5 ^ request.id.0 << 8);
                digest.word(u64::from(request.prompt) << 32 | u64::from(request.output));
                digest.word(u64::from(request.tenant) << 32 | request.blocks.len() as u64);
                request.blocks.iter().for_each(|block| digest.word(*block));
                self.handle(node, Input::Arrival(&request), Span(0));
            }
            Waiting::Start => {
                self.places[node.index()].digest.word(6);
                self.handle(node, Input::Start, Span(0));
            }
            Waiting::Shutdown => {
                self.places[node.index()].digest.word(7);
                self.handle(node, Input::Shutdown, Span(0));
            }
        }
    }

    fn handle(&mut self, node: NodeId, input: Input<'_>, service: Span) {
        let now = self.now;
        if let Some(noted) = &mut self.noted
            && noted.called.last() != Some(&node)
        {
            noted.called.push(node);
        }
        let place = &mut self.places[node.index()];
        let host = place.host;
        place.digest.word(now.0);
        let mut cx = Cx { now: place.clock.reads(now), fabric: self.fabrics.host(host), out: &mut self.out };
        place.node.handle(&mut cx, input);
        place.node.flush(cx.now, cx.out);
        for record in &self.out.records {
            place.digest.pair(record.request.0, step_word(record));
        }
        let cpu = self.fabrics.after_call(host, now, &mut self.queue, &mut self.ready);
        let place = &mut self.places[node.index()];
        place.busy = now + place.slow.stretch(cpu + service);
        let leaves = place.busy;
        if !self.out.is_empty() {
            let mut out = std::mem::take(&mut self.out);
            for (to, bytes) in out.frames() {
                let digest = Digest::of(bytes);
                self.places[node.index()].digest.pair(to.0.into(), digest);
                self.carry(leaves, node, to, bytes, digest);
            }
            self.records.extend(out.records.drain(..).map(|record| Stamped { at: now, node, record }));
            out.clear();
            self.out = out;
        }
        if !self.faults.triggers.is_empty() {
            self.trip(node);
        }
        self.arm(node);
        self.settle();
    }

    /// Puts a frame on its way.
    fn carry(&mut self, now: Time, from: NodeId, to: NodeId, bytes: &[u8], digest: u64) {
        if to.index() >= self.places.len() {
            return;
        }
        let verdict = self.censor.as_mut().map_or(Verdict::Pass, |censor| censor(from, to, bytes));
        if verdict == Verdict::Drop {
            return;
        }
        if verdict == Verdict::Hold {
            let frame = self.keep(bytes, digest);
            self.held_frames.push_back((from, to, frame));
            return;
        }
        if !self.channel.is_calm() {
            return self.carry_disturbed(now, from, to, bytes);
        }
        for at in self.channel.send(now, from, to).into_iter().flatten() {
            let frame = self.keep(bytes, digest);
            self.queue.push(at, Ev::Frame { to, from, frame });
        }
    }

    fn keep(&mut self, bytes: &[u8], digest: u64) -> u32 {
        let frame = self.free_frames.pop().unwrap_or_else(|| {
            self.frames.push((Vec::new(), 0));
            (self.frames.len() - 1) as u32
        });
        let kept = &mut self.frames[frame as usize];
        kept.0.clear();
        kept.0.extend_from_slice(bytes);
        kept.1 = digest;
        frame
    }

    /// Makes sure that a wake is on its way for the node's deadline.
    fn arm(&mut self, node: NodeId) {
        let place = &mut self.places[node.index()];
        if let Some(deadline) = place.deadline() {
            let at = deadline.max(self.now);
            if at < place.armed {
                place.armed = at;
                self.queue.push(at, Ev::Wake(node));
            }
        }
    }
}

/// A completion's result as a word.
fn fingerprint(completion: &Completion) -> u64 {
    match completion.result {
        Ok(done) => {
            let imm = done.imm.map_or(0, |imm| u64::from(imm) << 1 | 1);
            imm << 20 ^ u64::from(done.bytes) << 8 ^ done.opcode as u64
        }
        Err(failed) => 0x8000_0000_0000_0000 | u64::from(failed.vendor) << 8 | failed.status as u64,
    }
}

/// A record's step as a word.
fn step_word(record: &Record) -> u64 {
    use engine::node::Step;
    match record.step {
        Step::Routed { prefill, decode } => 1 ^ prefill.0 << 8 ^ decode.0 << 36,
        Step::PrefillStart { cached } => 2 ^ u64::from(cached) << 8,
        Step::PrefillEnd => 3,
        Step::TransferStart => 4,
        Step::Delivered { work_requests, bytes } => 5 ^ work_requests << 8 ^ bytes.rotate_left(40),
        Step::Success => 6,
        Step::FirstToken => 7,
        Step::Finished => 8,
        Step::Preempted { tokens } => 9 ^ u64::from(tokens) << 8,
        Step::Failed(reason) => 10 ^ (reason as u64) << 8,
        Step::Rejected(reason) => 11 ^ (reason as u64) << 8,
        Step::Corrupt => 12,
        Step::Retried(reason) => 13 ^ (reason as u64) << 8,
        Step::Lost(reason) => 14 ^ (reason as u64) << 8,
    }
}
