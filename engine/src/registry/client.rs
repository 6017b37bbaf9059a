//! A client's end of the control channel: what every node but the registry embeds.

use super::frame::{Frame, FrameFlags, Header};
use super::session::{Session, SessionConfig, SessionStats};
use super::wire;
use super::{Facts, Message, Role};
use crate::id::{InstanceId, NodeId};
use crate::node::{Outbox, Reason};
use crate::time::{Span, Time};
use std::borrow::Cow;
use std::collections::{BTreeSet, VecDeque};
use std::fmt;

/// The registry's address.
pub const REGISTRY: NodeId = NodeId(0);

/// What a node is told by its client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientEvent {
    /// Registered: the node has an instance id and a lease.
    Registered(InstanceId),
    /// Registered, under the id it had if it had one, at a registry that knows nothing of what was said before. Say again
    /// what still matters: see [`Client`].
    NewEpoch,
    /// The registry refuses this instance, or gave it up. Final for its id: fail every room, fence every link.
    Evicted {
        /// Machine-readable.
        reason: Reason,
        /// For people.
        why: String,
    },
    /// A message from the registry, in order and once.
    Message(Message),
}

/// Registration, heartbeats, lease and session of one node.
///
/// A node calls [`Client::send`] as it goes, [`Client::receive`] for each frame, and [`Client::flush`] once at the end of every
/// `handle`: only then something leaves. Its deadline must not be later than [`Client::deadline`].
///
/// A node says nothing about rooms before [`ClientEvent::Registered`]; a room's first Done is final, whatever follows.
///
/// After [`ClientEvent::NewEpoch`] everything that the old registry had not passed on is lost, acknowledged or not. A
/// router sends Create again for every room it has not had Done of (and Abort, where it wants it to end). Decode sends Publish again for every
/// live room that has pages and no Report, prefill Report for every room that it ended and still knows. Both sides answer an
/// Assign for a room that has ended there with their Report or Done, again. Links under way begin anew. Queries that had
/// no answer are asked again by the client itself; it also asks about every instance it heard of, so that one
/// which did not survive is told as Gone.
#[derive(Clone)]
pub struct Client {
    role: Role,
    facts: Option<Box<Facts>>,
    config: SessionConfig,
    session: Session,
    /// High half: life of the node; low half: sessions it has begun.
    nonce: u64,
    /// Epoch of this session; 0 until the registry was heard in it.
    epoch: u32,
    /// Greatest epoch ever heard.
    newest: u32,
    instance: InstanceId,
    state: State,
    /// Whether a registry was lost since the last Welcome.
    restarted: bool,
    lease: Span,
    /// Until when nothing waits patiently.
    hurried: Time,
    /// Sending time of the last heartbeat that the registry is known to have seen.
    seen_at: Option<Time>,
    /// Heartbeats on the way, by number.
    beats: VecDeque<(u32, Time)>,
    beat: u32,
    /// Beats in a row without an answer.
    missed: u32,
    last_beat: Time,
    leave_until: Time,
    /// Instances heard of and not gone.
    peers: BTreeSet<InstanceId>,
    /// Queries that wait for their answer; true if only the client asked.
    queries: std::collections::BTreeMap<InstanceId, bool>,
    /// Instances that are gone, to tell a new registry, newest last.
    gone: VecDeque<InstanceId>,
    stats: ClientStats,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Not started.
    Idle,
    /// Register is on its way.
    Joining,
    /// Welcome.
    Joined,
    /// Leave is on its way.
    Leaving,
    /// Left, refused or evicted.
    Ended,
}

/// What its node can tell apart: of the session, how far it is, but neither numbers nor times.
impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            role,
            facts: _,
            config: _,
            session: _,
            nonce: _,
            epoch: _,
            newest: _,
            instance,
            state,
            restarted,
            lease,
            hurried: _,
            seen_at,
            beats: _,
            beat: _,
            missed: _,
            last_beat: _,
            leave_until: _,
            peers,
            queries,
            gone,
            stats: _,
        } = self;
        (role, instance, state, restarted, lease, seen_at, peers, queries, gone).fmt(f)
    }
}

/// What a client has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientStats {
    /// Frames that were none, or no longer.
    pub malformed: u64,
    /// Frames of an earlier session or epoch.
    pub stale: u64,
    /// Sessions begun.
    pub sessions: u64,
}

/// Gone instances that a client remembers.
const GONE: usize = 1024;
/// Heartbeats on the way at most.
const BEATS: usize = 32;

impl Client {
    /// A client of the registry. `facts` is none for a router. `life` must rise with every restart of the node (a boot count, or
    /// seconds of wall clock at the start): the registry takes what an earlier life sent for stale.
    pub fn new(role: Role, facts: Option<Facts>, config: SessionConfig, life: u32) -> Self {
        Self {
            role,
            facts: facts.map(Box::new),
            config,
            session: Session::new(config),
            nonce: u64::from(life) << 32,
            epoch: 0,
            newest: 0,
            instance: InstanceId(0),
            state: State::Idle,
            restarted: false,
            lease: Span(0),
            hurried: Time::ZERO,
            seen_at: None,
            beats: VecDeque::new(),
            beat: 0,
            missed: 0,
            last_beat: Time::ZERO,
            leave_until: Time::NEVER,
            peers: BTreeSet::new(),
            queries: Default::default(),
            gone: VecDeque::new(),
            stats: ClientStats::default(),
        }
    }

    /// Begins to register.
    pub fn start(&mut self, now: Time) {
        self.begin(now);
    }

    /// After an eviction: registers as a new instance.
    pub fn rejoin(&mut self, now: Time) {
        self.instance = InstanceId(0);
        self.peers.clear();
        self.queries.clear();
        self.gone.clear();
        self.begin(now);
    }

    fn begin(&mut self, now: Time) {
        self.session = Session::new(self.config);
        self.nonce += 1;
        self.stats.sessions += 1;
        self.epoch = 0;
        self.beats.clear();
        self.beat = 0;
        self.missed = 0;
        self.last_beat = now;
        self.state = State::Joining;
        self.leave_until = Time::NEVER;
        let register = Message::Register { role: self.role, claim: self.instance, facts: self.facts.clone() };
        self.session.queue(|out| wire::encode(&register, out));
    }

    /// Queues a message; it leaves with the next [`Client::flush`]. Dropped if the node is not registering or registered.
    pub fn send(&mut self, message: &Message) {
        if matches!(self.state, State::Joining | State::Joined) {
            if let Message::Query { instance } = message {
                self.queries.insert(*instance, false);
            }
            // Nobody waits for the word that all went well: pages are in use for much longer.
            if matches!(message, Message::Report { report, .. } if report.delivered && report.clean) {
                self.session.queue_patiently(|out| wire::encode(message, out));
            } else {
                self.session.queue(|out| wire::encode(message, out));
            }
        }
    }

    /// Leaves in good order. Nothing can be sent afterwards; what was queued before still goes. Ends when the registry has
    /// acknowledged it, or after a lease.
    pub fn leave(&mut self, now: Time) {
        if matches!(self.state, State::Joining | State::Joined) {
            self.session.queue(|out| wire::encode(&Message::Leave, out));
            self.state = State::Leaving;
            self.leave_until = now + self.lease.max(self.config.retransmit * 4);
        } else if self.state == State::Idle {
            self.state = State::Ended;
        }
    }

    /// Takes a frame from the registry and appends what it means.
    pub fn receive(&mut self, now: Time, bytes: &[u8], events: &mut VecDeque<ClientEvent>) {
        let Ok(frame) = Frame::parse(bytes) else {
            self.stats.malformed += 1;
            return;
        };
        let header = frame.header;
        if header.nonce != self.nonce || header.epoch < self.newest || header.epoch == 0 {
            self.stats.stale += 1;
            return;
        }
        if self.state == State::Idle {
            return;
        }
        self.newest = header.epoch;
        let restarted = self.epoch != 0 && header.epoch > self.epoch;
        if restarted || header.flags.has(FrameFlags::RESET) {
            self.reset(now, restarted, events);
            return;
        }
        self.epoch = header.epoch;
        self.session.acknowledge(&header);
        self.heard(header.beat);
        let first = self.session.first_of(&frame);
        for (seq, (more, segment)) in (first..).zip(frame.segments()) {
            if let Some(bytes) = self.session.admit(now, seq, more, segment) {
                self.take(bytes, events);
            }
        }
        while let Some(bytes) = self.session.early() {
            self.take(bytes, events);
        }
        if self.state == State::Leaving && self.session.backlog() == 0 {
            self.state = State::Ended;
        }
    }

    /// The registry does not know this session.
    fn reset(&mut self, now: Time, restarted: bool, events: &mut VecDeque<ClientEvent>) {
        match self.state {
            State::Leaving => self.state = State::Ended,
            State::Joining | State::Joined if restarted => {
                self.restarted = true;
                self.begin(now);
            }
            State::Joining | State::Joined => {
                self.end(Reason::LeaseLost, "the registry has given this instance up".into(), events);
            }
            State::Idle | State::Ended => {}
        }
    }

    fn end(&mut self, reason: Reason, why: String, events: &mut VecDeque<ClientEvent>) {
        self.state = State::Ended;
        self.seen_at = None;
        events.push_back(ClientEvent::Evicted { reason, why });
    }

    /// The registry has seen heartbeat `beat`: the lease counts from when it was first sent.
    fn heard(&mut self, beat: u32) {
        while let Some(&(number, at)) = self.beats.front() {
            if number > beat {
                break;
            }
            self.beats.pop_front();
            if number == beat {
                self.seen_at = Some(self.seen_at.map_or(at, |before| before.max(at)));
                self.missed = 0;
            }
        }
    }

    fn take(&mut self, bytes: Cow<'_, [u8]>, events: &mut VecDeque<ClientEvent>) {
        let message = match wire::decode(&bytes) {
            Ok(message) => message,
            Err(error) => {
                self.stats.malformed += 1;
                if self.state != State::Ended {
                    self.end(
                        Reason::Refused,
                        format!("the registry sent what is no message: {error}"),
                        events,
                    );
                }
                return;
            }
        };
        if self.state == State::Ended {
            return;
        }
        match message {
            Message::Welcome { instance, lease } => self.welcome(instance, lease, events),
            Message::Refused { reason, why } => {
                self.session.ack_by(Time::ZERO);
                self.end(reason, why, events);
            }
            Message::Gone { instance } => self.gone(instance, events),
            Message::FactsOf { instance, facts: None } => {
                let silent = self.queries.remove(&instance).unwrap_or(false);
                if self.peers.contains(&instance) {
                    self.gone(instance, events);
                }
                if !silent {
                    events.push_back(ClientEvent::Message(Message::FactsOf { instance, facts: None }));
                }
            }
            Message::FactsOf { instance, facts } => {
                let silent = self.queries.remove(&instance).unwrap_or(false);
                self.peers.insert(instance);
                if !silent {
                    events.push_back(ClientEvent::Message(Message::FactsOf { instance, facts }));
                }
            }
            Message::Joined(member) => {
                self.peers.insert(member.instance);
                events.push_back(ClientEvent::Message(message));
            }
            Message::Link { peer, .. } => {
                self.peers.insert(peer);
                events.push_back(ClientEvent::Message(message));
            }
            message => events.push_back(ClientEvent::Message(message)),
        }
    }

    fn gone(&mut self, instance: InstanceId, events: &mut VecDeque<ClientEvent>) {
        self.peers.remove(&instance);
        if self.gone.len() == GONE {
            self.gone.pop_front();
        }
        self.gone.push_back(instance);
        events.push_back(ClientEvent::Message(Message::Gone { instance }));
    }

    fn welcome(&mut self, instance: InstanceId, lease: Span, events: &mut VecDeque<ClientEvent>) {
        if self.instance != InstanceId(0) && self.instance != instance {
            let why = format!("the registry calls instance {} {instance}", self.instance);
            return self.end(Reason::Refused, why, events);
        }
        let first = self.instance == InstanceId(0);
        self.instance = instance;
        self.lease = lease;
        if self.state == State::Joining {
            self.state = State::Joined;
        }
        if first {
            events.push_back(ClientEvent::Registered(instance));
        }
        if !std::mem::take(&mut self.restarted) {
            return;
        }
        events.push_back(ClientEvent::NewEpoch);
        if self.state != State::Joined {
            return;
        }
        // A registry that has not seen them go must not let them in again.
        for instance in &self.gone {
            self.session.queue(|out| wire::encode(&Message::Gone { instance: *instance }, out));
        }
        for peer in &self.peers {
            self.queries.entry(*peer).or_insert(true);
        }
        for instance in self.queries.keys() {
            self.session.queue(|out| wire::encode(&Message::Query { instance: *instance }, out));
        }
    }

    /// When a heartbeat is due: a third of the lease after the last one; sooner while there is no answer.
    fn beat_at(&self) -> Time {
        let most = match self.state {
            // Who leaves before it was welcomed has no lease.
            State::Joined | State::Leaving if self.lease > Span(0) => Span(self.lease.0 / 3),
            _ => self.config.retransmit_max,
        };
        match self.missed {
            0 => self.last_beat + most,
            missed => {
                self.last_beat + Span(most.0 / 2).min(self.config.retransmit * (1 << (missed - 1).min(16)))
            }
        }
    }

    /// Sends what is due. To be called at the end of every `handle`.
    pub fn flush(&mut self, now: Time, out: &mut Outbox) {
        if self.state == State::Leaving && self.leave_until <= now {
            self.state = State::Ended;
        }
        match self.state {
            State::Idle => return,
            State::Ended => {
                // Only what lets the other end come to rest.
                if self.session.ack_at() <= now {
                    self.session.flush_ack(now, REGISTRY, self.header(), out);
                }
                return;
            }
            State::Joining | State::Joined | State::Leaving => {}
        }
        let due = self.beat_at() <= now;
        if now < self.hurried {
            self.session.hurry();
        }
        self.session.note(now);
        if !due && self.session.deadline() > now {
            return;
        }
        // A heartbeat rides on a frame that leaves anyway, once the last one is half as old as it may get.
        if due || self.state == State::Joining || now.since(self.last_beat).0 >= self.lease.0 / 6 {
            self.beat += 1;
            self.missed += 1;
            self.last_beat = now;
            if self.beats.len() == BEATS {
                self.beats.pop_front();
            }
            self.beats.push_back((self.beat, now));
        }
        let header = self.header();
        self.session.flush(now, REGISTRY, header, due, out);
    }

    fn header(&self) -> Header {
        Header {
            flags: FrameFlags::default().with(FrameFlags::SYN, self.epoch == 0),
            epoch: self.epoch,
            nonce: self.nonce,
            instance: self.instance.0,
            beat: self.beat,
            ..Header::default()
        }
    }

    /// When [`Client::flush`] wants to be called; [`Time::NEVER`] if not at all.
    pub fn deadline(&self) -> Time {
        match self.state {
            State::Idle => Time::NEVER,
            State::Ended => self.session.ack_at(),
            State::Leaving => self.session.deadline().min(self.beat_at()).min(self.leave_until),
            State::Joining | State::Joined => self.session.deadline().min(self.beat_at()),
        }
    }

    /// The instance id; 0 before registration.
    pub fn instance(&self) -> InstanceId {
        self.instance
    }

    /// Whether it is registered at a registry that answers.
    pub fn is_joined(&self) -> bool {
        self.state == State::Joined
    }

    /// Whether it has left, was refused or evicted.
    pub fn is_ended(&self) -> bool {
        self.state == State::Ended
    }

    /// The other side is short of pages or slots: until then nothing waits for a frame that leaves anyway.
    pub fn hurry(&mut self, until: Time) {
        self.hurried = until;
    }

    /// How long silence may last before the registry gives a client up; 0 before registration.
    pub fn lease(&self) -> Span {
        self.lease
    }

    /// Until when the registry certainly takes this instance for alive, by the node's own clock. One sixteenth of the
    /// lease is kept back for clocks that run at different speeds.
    pub fn lease_until(&self) -> Option<Time> {
        self.seen_at.map(|at| at + Span(self.lease.0 - self.lease.0 / 16))
    }

    /// Whether the lease holds at `now`. A node whose lease has run out reports no Success.
    pub fn lease_valid(&self, now: Time) -> bool {
        matches!(self.state, State::Joined | State::Leaving)
            && self.lease_until().is_some_and(|until| now < until)
    }

    /// What it has counted.
    pub fn stats(&self) -> ClientStats {
        self.stats
    }

    /// What its present session has counted.
    pub fn session_stats(&self) -> SessionStats {
        self.session.stats()
    }
}
