//! The router: every request comes here, and is sent to one prefill and one decode instance.

use super::{BLOCK_TOKENS, Counters, Cx, Held, Input, Node, Outbox, Reason, Request, Step};
use crate::id::{InstanceId, Room};
use crate::map::Map;
use crate::policy::{Candidate, Routing, RoutingPolicy};
use crate::registry::{Client, ClientEvent, Member, Message, Outcome, Role, RoomKey, SessionConfig};
use crate::time::{Span, Time};
use std::collections::VecDeque;

/// A router.
#[derive(Clone, Debug)]
pub struct RouterConfig {
    /// How instances are chosen.
    pub routing: RoutingPolicy,
    /// The control channel.
    pub session: SessionConfig,
    /// Life of the node, see [`Client::new`].
    pub life: u32,
    /// Tokens of prompt and output together that the model can take.
    pub context_len: u32,
    /// How long a request may take from being sent to an instance; then it is aborted and failed.
    pub request_deadline: Span,
    /// How long a request waits for instances to join.
    pub patience: Span,
}

/// A request under way.
struct Flight {
    request: Request,
    prefill: InstanceId,
    decode: InstanceId,
}

/// The node.
pub struct RouterNode {
    config: RouterConfig,
    routing: Box<dyn Routing>,
    client: Client,
    events: VecDeque<ClientEvent>,
    prefill: Vec<Candidate>,
    decode: Vec<Candidate>,
    flights: Map<RoomKey, Flight>,
    /// In order of sending: the deadline rises.
    deadlines: VecDeque<(Time, RoomKey)>,
    /// Requests that came before there was an instance.
    early: VecDeque<(Time, Request)>,
    rooms: u64,
    leaving: bool,
}

impl RouterNode {
    /// A node to be started.
    pub fn new(config: RouterConfig) -> Self {
        Self {
            routing: config.routing.build(),
            client: Client::new(Role::Router, None, config.session, config.life),
            events: VecDeque::new(),
            prefill: Vec::new(),
            decode: Vec::new(),
            flights: Map::default(),
            deadlines: VecDeque::new(),
            early: VecDeque::new(),
            // Ids over 63 bits are as good as any, and exercised from the first request on.
            rooms: 1 << 63,
            leaving: false,
            config,
        }
    }

    /// Instances that it knows and that are not gone: prefill, decode.
    pub fn instances(&self) -> (usize, usize) {
        (self.prefill.len(), self.decode.len())
    }

    fn side(&mut self, role: Role) -> Option<&mut Vec<Candidate>> {
        match role {
            Role::Prefill => Some(&mut self.prefill),
            Role::Decode => Some(&mut self.decode),
            Role::Router => None,
        }
    }

    fn joined(&mut self, member: Member) {
        let instance = member.instance;
        if let Some(side) = self.side(member.role) {
            let at = side.partition_point(|c| c.instance < instance);
            if side.get(at).is_none_or(|c| c.instance != instance) {
                side.insert(at, Candidate { instance, requests: 0, tokens: 0 });
            }
        }
    }

    fn on_client(&mut self, cx: &mut Cx<'_>) {
        while let Some(event) = self.events.pop_front() {
            match event {
                ClientEvent::Registered(_) => {}
                ClientEvent::NewEpoch => {
                    for (_, key) in &self.deadlines {
                        if let Some(flight) = self.flights.get(key) {
                            self.client.send(&create(*key, flight));
                        }
                    }
                }
                ClientEvent::Evicted { reason, .. } => {
                    self.prefill.clear();
                    self.decode.clear();
                    // The registry has ended its rooms, and will tell nobody how.
                    let lost: Vec<RoomKey> = self.deadlines.iter().map(|(_, key)| *key).collect();
                    for key in lost {
                        self.end(cx, key, Outcome::Failed(reason));
                    }
                    if !self.leaving {
                        self.client.rejoin(cx.now);
                    }
                }
                ClientEvent::Message(Message::Joined(member)) => self.joined(member),
                ClientEvent::Message(Message::Gone { instance }) => {
                    self.prefill.retain(|c| c.instance != instance);
                    self.decode.retain(|c| c.instance != instance);
                    let lost: Vec<RoomKey> = self
                        .deadlines
                        .iter()
                        .map(|(_, key)| *key)
                        .filter(|key| self.flights.get(key).is_some_and(|flight| flight.decode == instance))
                        .collect();
                    for key in lost {
                        self.end(cx, key, Outcome::Failed(Reason::PeerGone));
                    }
                }
                ClientEvent::Message(Message::Done { key, outcome }) => self.end(cx, key, outcome),
                ClientEvent::Message(_) => {}
            }
        }
    }

    fn arrived(&mut self, cx: &mut Cx<'_>, request: &Request) {
        let tokens = u64::from(request.prompt) + u64::from(request.output);
        if request.prompt == 0 || request.output == 0 || tokens > u64::from(self.config.context_len) {
            cx.out.record(request.id, Step::Rejected(Reason::TooLong));
            return;
        }
        self.early.push_back((cx.now + self.config.patience, request.clone()));
        self.dispatch(cx);
    }

    /// Sends what can be sent.
    fn dispatch(&mut self, cx: &mut Cx<'_>) {
        while !self.early.is_empty() && !self.prefill.is_empty() && !self.decode.is_empty() {
            let Some((_, request)) = self.early.pop_front() else { return };
            self.send(cx, request);
        }
    }

    fn send(&mut self, cx: &mut Cx<'_>, request: Request) {
        let p = self.routing.prefill(&request, &self.prefill);
        let d = self.routing.decode(&request, &self.decode);
        let (Some(prefill), Some(decode)) = (self.prefill.get_mut(p), self.decode.get_mut(d)) else {
            // A policy that names no candidate is not trusted with this request.
            cx.out.record(request.id, Step::Failed(Reason::NoInstance));
            return;
        };
        prefill.requests += 1;
        prefill.tokens += u64::from(request.prompt);
        decode.requests += 1;
        decode.tokens += u64::from(request.prompt) + u64::from(request.output);
        let (prefill, decode) = (prefill.instance, decode.instance);
        cx.out.record(request.id, Step::Routed { prefill, decode });
        self.rooms += 1;
        let key = RoomKey { room: Room(self.rooms), attempt: 1 };
        let flight = Flight { request, prefill, decode };
        self.client.send(&create(key, &flight));
        self.flights.insert(key, flight);
        self.deadlines.push_back((cx.now + self.config.request_deadline, key));
    }

    fn end(&mut self, cx: &mut Cx<'_>, key: RoomKey, outcome: Outcome) {
        let Some(flight) = self.flights.remove(&key) else { return };
        let Flight { mut request, prefill, decode } = flight;
        let less = |side: &mut Vec<Candidate>, instance: InstanceId, tokens: u64| {
            if let Ok(at) = side.binary_search_by_key(&instance, |c| c.instance) {
                side[at].requests = side[at].requests.saturating_sub(1);
                side[at].tokens = side[at].tokens.saturating_sub(tokens);
            }
        };
        less(&mut self.prefill, prefill, u64::from(request.prompt));
        less(&mut self.decode, decode, u64::from(request.prompt) + u64::from(request.output));
        while self.deadlines.front().is_some_and(|(_, key)| !self.flights.contains(key)) {
            self.deadlines.pop_front();
        }
        match outcome {
            Outcome::Finished => {}
            Outcome::Failed(reason @ (Reason::NoMemory | Reason::TooLong)) => {
                cx.out.record(request.id, Step::Rejected(reason));
            }
            Outcome::Failed(reason) => cx.out.record(request.id, Step::Failed(reason)),
            Outcome::Preempted { tokens } => {
                // What was generated is part of the prompt now. A last block that was not full is no prefix of others any more.
                request.blocks.truncate((request.prompt / BLOCK_TOKENS) as usize);
                request.prompt = request.prompt.saturating_add(tokens);
                request.output = request.output.saturating_sub(tokens).max(1);
                self.early.push_back((cx.now + self.config.patience, request));
                self.dispatch(cx);
            }
        }
    }

    /// Deadlines that passed.
    fn wake(&mut self, cx: &mut Cx<'_>) {
        while let Some((at, key)) = self.deadlines.front().copied()
            && at <= cx.now
        {
            self.deadlines.pop_front();
            if self.flights.contains(&key) {
                self.client.send(&Message::Abort { key, reason: Reason::Deadline });
                self.end(cx, key, Outcome::Failed(Reason::Deadline));
            }
        }
        while self.early.front().is_some_and(|(at, _)| *at <= cx.now) {
            if let Some((_, request)) = self.early.pop_front() {
                cx.out.record(request.id, Step::Failed(Reason::NoInstance));
            }
        }
    }
}

fn create(key: RoomKey, flight: &Flight) -> Message {
    Message::Create { key, prefill: flight.prefill, decode: flight.decode, request: flight.request.clone() }
}

impl Node for RouterNode {
    fn handle(&mut self, cx: &mut Cx<'_>, input: Input<'_>) {
        match input {
            Input::Start => self.client.start(cx.now),
            Input::Wake => self.wake(cx),
            Input::Frame { bytes, .. } => {
                self.client.receive(cx.now, bytes, &mut self.events);
                self.on_client(cx);
                self.dispatch(cx);
            }
            Input::Arrival(request) => self.arrived(cx, request),
            Input::Completions { .. } | Input::Fabric(_) => {}
            Input::Shutdown => {
                if !self.leaving {
                    self.leaving = true;
                    self.client.leave(cx.now);
                }
            }
        }
    }

    fn flush(&mut self, now: Time, out: &mut Outbox) {
        self.client.flush(now, out);
    }

    fn deadline(&self) -> Option<Time> {
        let flight = self.deadlines.front().map_or(Time::NEVER, |(at, _)| *at);
        let early = self.early.front().map_or(Time::NEVER, |(at, _)| *at);
        Time::earliest([self.client.deadline(), flight, early])
    }

    fn held(&self) -> Held {
        Held { rooms: (self.flights.len() + self.early.len()) as u64, ..Held::default() }
    }

    fn counters(&self) -> Counters {
        Counters { malformed_frames: self.client.stats().malformed, ..Counters::default() }
    }
}
