//! The router: every request comes here, and is sent to one prefill and one decode instance.

mod health;
mod waiting;

use super::{BLOCK_TOKENS, Counters, Cx, Held, Input, Node, Outbox, Reason, Request, Step};
use crate::id::{InstanceId, Room};
use crate::map::Map;
use crate::policy::{Ask, Candidate, Choice, Delivery, Limits, Retry, Routing, RoutingPolicy};
use crate::registry::{Client, ClientEvent, Member, Message, Outcome, Role, RoomKey, SessionConfig, Timing};
use crate::time::{Span, Time};
use health::Health;
use std::collections::VecDeque;
use waiting::Waiting;

/// A router.
#[derive(Clone, Debug)]
pub struct RouterConfig {
    /// How instances are chosen.
    pub routing: RoutingPolicy,
    /// What routing may let fly.
    pub limits: Limits,
    /// What is done about failures.
    pub retry: Retry,
    /// The run's seed, for policies that draw.
    pub seed: u64,
    /// The control channel.
    pub session: SessionConfig,
    /// Life of the node, see [`Client::new`].
    pub life: u32,
    /// Tokens of prompt and output together that the model can take.
    pub context_len: u32,
    /// How long an attempt at a request may take from being sent to an instance; then it is cancelled. The request fails with decode's word
    /// of it, unless decode says that it finished before.
    pub request_deadline: Span,
    /// How long a request waits for instances to join, and for its turn.
    pub patience: Span,
}

impl Default for RouterConfig {
    fn default() -> Self {
        Self {
            routing: RoutingPolicy::default(),
            limits: Limits::default(),
            retry: Retry::default(),
            seed: 0,
            session: SessionConfig::default(),
            life: 1,
            context_len: u32::MAX,
            request_deadline: Span::s(14_400),
            patience: Span::s(3600),
        }
    }
}

/// A request that was let in and is to be sent.
struct Parcel {
    request: Request,
    /// What it takes of its tenant's share.
    share: u64,
    /// The room and attempt to use; a new room if there is none yet.
    key: Option<RoomKey>,
    /// Instances that failed it.
    tried: Vec<InstanceId>,
}

/// A request under way.
struct Flight {
    parcel: Parcel,
    prefill: InstanceId,
    decode: InstanceId,
    /// Tokens undelivered at the two when it was sent, its own included.
    ahead: (u64, u64),
    delivered: bool,
    /// A new registry was told of it: what it answers may be a guess.
    told_again: bool,
    /// Its deadline has passed, and it was cancelled.
    cancelled: bool,
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
    /// Those whose deadline has passed, until when decode's word is waited for.
    cancelled: VecDeque<(Time, RoomKey)>,
    /// Requests that are not let in yet: no instance is there, or limits hold them.
    waiting: Waiting,
    /// Requests that were let in and cannot be sent again for now, because no instance is there.
    returned: VecDeque<(Time, Parcel)>,
    health: Health,
    /// The room that was begun last: see [`rooms_of`].
    rooms: u64,
    leaving: bool,
}

impl RouterNode {
    /// A node to be started.
    pub fn new(config: RouterConfig) -> Self {
        Self {
            routing: config.routing.build(config.seed),
            client: Client::new(Role::Router, None, config.session, config.life),
            events: VecDeque::new(),
            prefill: Vec::new(),
            decode: Vec::new(),
            flights: Map::default(),
            deadlines: VecDeque::new(),
            cancelled: VecDeque::new(),
            waiting: Waiting::new(config.limits),
            returned: VecDeque::new(),
            health: Health::new(config.retry),
            rooms: 0,
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
                let capacity = u64::from(member.pages.saturating_sub(1))
                    * u64::from(member.page_size)
                    * u64::from(member.groups.max(1));
                side.insert(at, Candidate::new(instance, capacity));
            }
        }
    }

    fn on_client(&mut self, cx: &mut Cx<'_>) {
        while let Some(event) = self.events.pop_front() {
            match event {
                ClientEvent::Registered(instance) => self.rooms = rooms_of(instance),
                ClientEvent::NewEpoch => {
                    for key in self.in_flight(|_| true) {
                        if let Some(flight) = self.flights.get_mut(&key) {
                            flight.told_again = true;
                            self.client.send(&create(key, flight));
                            if flight.cancelled {
                                self.client.send(&Message::Cancel { key, reason: Reason::Deadline });
                            }
                        }
                    }
                }
                ClientEvent::Evicted { reason, .. } => {
                    let known = self.prefill.drain(..).chain(self.decode.drain(..));
                    known.for_each(|c| self.routing.gone(c.instance));
                    self.health = Health::new(self.config.retry);
                    // The registry has ended its rooms, and will tell nobody how.
                    for key in self.in_flight(|_| true) {
                        self.end(cx, key, Outcome::Failed(reason), false);
                    }
                    if !self.leaving {
                        self.client.rejoin(cx.now);
                    }
                }
                ClientEvent::Message(Message::Joined(member)) => self.joined(member),
                ClientEvent::Message(Message::Gone { instance }) => {
                    self.prefill.retain(|c| c.instance != instance);
                    self.decode.retain(|c| c.instance != instance);
                    self.routing.gone(instance);
                    self.health.well(instance);
                    for key in self.in_flight(|flight| flight.decode == instance) {
                        self.end(cx, key, Outcome::Failed(Reason::PeerGone), false);
                    }
                }
                ClientEvent::Message(Message::Done { key, outcome }) => self.end(cx, key, outcome, true),
                ClientEvent::Message(Message::Delivered { key, timing }) => {
                    self.delivered(cx.now, key, timing);
                }
                ClientEvent::Message(_) => {}
            }
        }
    }

    /// Keys of these flights, in order of sending.
    fn in_flight(&self, which: impl Fn(&Flight) -> bool) -> Vec<RoomKey> {
        let keys = self.cancelled.iter().chain(&self.deadlines).map(|(_, key)| *key);
        keys.filter(|key| self.flights.get(key).is_some_and(&which)).collect()
    }

    fn arrived(&mut self, cx: &mut Cx<'_>, request: &Request) {
        let tokens = u64::from(request.prompt) + u64::from(request.output);
        if request.prompt == 0 || request.output == 0 || tokens > u64::from(self.config.context_len) {
            cx.out.record(request.id, Step::Rejected(Reason::TooLong));
            return;
        }
        let number = self.waiting.push(cx.now + self.config.patience, request.clone());
        self.dispatch(cx);
        if let Some(request) = self.waiting.refuse(number) {
            cx.out.record(request.id, Step::Rejected(Reason::Busy));
        }
    }

    /// Sends what can be sent.
    fn dispatch(&mut self, cx: &mut Cx<'_>) {
        while !self.prefill.is_empty() && !self.decode.is_empty() {
            let parcel = match self.returned.pop_front() {
                Some((_, parcel)) => parcel,
                None => {
                    let Some(request) = self.waiting.pop() else { return };
                    let share = u64::from(request.prompt) + u64::from(request.output);
                    Parcel { request, share, key: None, tried: Vec::new() }
                }
            };
            self.send(cx, parcel);
        }
    }

    /// Asks the policy. None if it names no candidate.
    fn choose(&mut self, now: Time, parcel: &Parcel) -> Option<(InstanceId, InstanceId)> {
        let prefill = self.health.choice(&self.prefill, &parcel.tried, now);
        let decode = self.health.choice(&self.decode, &parcel.tried, now);
        let ask = Ask {
            request: &parcel.request,
            now,
            attempt: parcel.key.map_or(1, |key| key.attempt),
            prefill: prefill.as_deref().unwrap_or(&self.prefill),
            decode: decode.as_deref().unwrap_or(&self.decode),
        };
        let Choice { prefill: p, decode: d } = self.routing.choose(&ask);
        Some((ask.prefill.get(p)?.instance, ask.decode.get(d)?.instance))
    }

    fn send(&mut self, cx: &mut Cx<'_>, mut parcel: Parcel) {
        let Some((prefill, decode)) = self.choose(cx.now, &parcel) else {
            // A policy that names no candidate is not trusted with this request.
            cx.out.record(parcel.request.id, Step::Failed(Reason::NoInstance));
            self.waiting.landed(parcel.request.tenant, parcel.share);
            return;
        };
        let (prompt, output) = (u64::from(parcel.request.prompt), u64::from(parcel.request.output));
        let mut ahead = (0, 0);
        if let Some(c) = candidate(&mut self.prefill, prefill) {
            c.requests += 1;
            c.tokens += prompt;
            c.undelivered += prompt;
            ahead.0 = c.undelivered;
        }
        if let Some(c) = candidate(&mut self.decode, decode) {
            c.requests += 1;
            c.tokens += prompt + output;
            c.undelivered += prompt;
            ahead.1 = c.undelivered;
        }
        cx.out.record(parcel.request.id, Step::Routed { prefill, decode });
        let key = *parcel.key.get_or_insert_with(|| {
            self.rooms += 1;
            RoomKey { room: Room(self.rooms), attempt: 1 }
        });
        let flight =
            Flight { parcel, prefill, decode, ahead, delivered: false, told_again: false, cancelled: false };
        self.client.send(&create(key, &flight));
        self.flights.insert(key, flight);
        self.deadlines.push_back((cx.now + self.config.request_deadline, key));
    }

    /// Prefill says that a request's KV has arrived.
    fn delivered(&mut self, now: Time, key: RoomKey, timing: Timing) {
        let Some(flight) = self.flights.get_mut(&key).filter(|flight| !flight.delivered) else { return };
        flight.delivered = true;
        let prompt = u64::from(flight.parcel.request.prompt);
        let sides = [(&mut self.prefill, flight.prefill), (&mut self.decode, flight.decode)];
        for c in sides.into_iter().filter_map(|(side, instance)| candidate(side, instance)) {
            c.undelivered = c.undelivered.saturating_sub(prompt);
        }
        self.routing.delivered(&Delivery {
            now,
            request: &flight.parcel.request,
            prefill: flight.prefill,
            decode: flight.decode,
            ahead: flight.ahead,
            cached: timing.cached,
            queued: timing.queued,
            compute: timing.compute,
            handoff: timing.handoff,
        });
    }

    /// An attempt is over. `told`: decode said so, or the registry for a room that it never assigned; else it is concluded.
    fn end(&mut self, cx: &mut Cx<'_>, key: RoomKey, outcome: Outcome, told: bool) {
        let Some(flight) = self.flights.remove(&key) else { return };
        let (prompt, output) =
            (u64::from(flight.parcel.request.prompt), u64::from(flight.parcel.request.output));
        let undelivered = if flight.delivered { 0 } else { prompt };
        let less = |candidate: Option<&mut Candidate>, tokens: u64| {
            if let Some(c) = candidate {
                c.requests = c.requests.saturating_sub(1);
                c.tokens = c.tokens.saturating_sub(tokens);
                c.undelivered = c.undelivered.saturating_sub(undelivered);
            }
        };
        less(candidate(&mut self.prefill, flight.prefill), prompt);
        less(candidate(&mut self.decode, flight.decode), prompt + output);
        for order in [&mut self.deadlines, &mut self.cancelled] {
            while order.front().is_some_and(|(_, key)| !self.flights.contains(key)) {
                order.pop_front();
            }
        }
        match outcome {
            Outcome::Finished => {
                self.health.well(flight.prefill);
                self.health.well(flight.decode);
                self.landed(cx, &flight.parcel);
            }
            Outcome::Failed(reason) => self.failed(cx, key, flight, reason, told),
            // It was sent back when its time was over already.
            Outcome::Preempted { .. } if flight.cancelled => {
                self.failed(cx, key, flight, Reason::Deadline, told);
            }
            Outcome::Preempted { tokens } => {
                let Parcel { mut request, share, .. } = flight.parcel;
                // What was generated is part of the prompt now. A last block that was not full is no prefix of others any more.
                request.blocks.truncate((request.prompt / BLOCK_TOKENS) as usize);
                request.prompt = request.prompt.saturating_add(tokens);
                request.output = request.output.saturating_sub(tokens).max(1);
                self.again(cx, Parcel { request, share, key: None, tried: Vec::new() });
            }
        }
    }

    fn failed(&mut self, cx: &mut Cx<'_>, key: RoomKey, flight: Flight, reason: Reason, told: bool) {
        let Flight { mut parcel, prefill, decode, told_again, cancelled, .. } = flight;
        let request = parcel.request.id;
        use Reason::{Checksum, Connection, Deadline, Retries, Transfer};
        let blames = matches!(reason, Transfer | Retries | Deadline | Checksum | Connection);
        if blames && told && !cancelled {
            self.health.failed(prefill, cx.now);
            self.health.failed(decode, cx.now);
        }
        // Decode is not there to have said it, or may have been gone for a new registry: tokens may be out.
        let gone = candidate(&mut self.decode, decode).is_none();
        let unsure = told_again || gone;
        let again = match reason {
            Transfer | Retries | Deadline | Checksum | Connection => {
                parcel.tried.extend([prefill, decode]);
                true
            }
            // One of the two is leaving, or does not know the room any more.
            Reason::Refused | Reason::Aborted => {
                parcel.tried.extend([prefill, decode]);
                !unsure
            }
            Reason::PeerGone => {
                parcel.tried.push(prefill);
                !unsure
            }
            Reason::Busy => {
                parcel.tried.push(decode);
                true
            }
            Reason::LeaseLost
            | Reason::TooLong
            | Reason::NoMemory
            | Reason::Layout
            | Reason::NoInstance
            | Reason::Interrupted => false,
        };
        if again && told && !cancelled && !self.leaving && key.attempt < self.config.retry.attempts {
            cx.out.record(request, Step::Retried(reason));
            parcel.key = Some(RoomKey { attempt: key.attempt + 1, ..key });
            self.again(cx, parcel);
            return;
        }
        let rejected = matches!(reason, Reason::NoMemory | Reason::TooLong | Reason::Busy);
        let step = match reason {
            _ if !told || gone => Step::Lost(reason),
            _ if rejected => Step::Rejected(reason),
            _ => Step::Failed(reason),
        };
        cx.out.record(request, step);
        self.landed(cx, &parcel);
    }

    /// A request that was let in is sent once more, before all that wait.
    fn again(&mut self, cx: &mut Cx<'_>, parcel: Parcel) {
        self.returned.push_back((cx.now + self.config.patience, parcel));
        self.dispatch(cx);
    }

    /// A request is final: its tenant has room for another one.
    fn landed(&mut self, cx: &mut Cx<'_>, parcel: &Parcel) {
        self.waiting.landed(parcel.request.tenant, parcel.share);
        if !self.waiting.is_empty() {
            self.dispatch(cx);
        }
    }

    /// Deadlines that passed.
    fn wake(&mut self, cx: &mut Cx<'_>) {
        while let Some((at, key)) = self.deadlines.front().copied()
            && at <= cx.now
        {
            self.deadlines.pop_front();
            if let Some(flight) = self.flights.get_mut(&key) {
                flight.cancelled = true;
                self.client.send(&Message::Cancel { key, reason: Reason::Deadline });
                // Decode's word comes, or the registry's that decode is gone, or there is no registry.
                self.cancelled.push_back((cx.now + self.client.lease() * 2, key));
            }
        }
        while let Some((_, key)) = self.cancelled.front().copied().filter(|(at, _)| *at <= cx.now) {
            self.cancelled.pop_front();
            self.end(cx, key, Outcome::Failed(Reason::Deadline), false);
        }
        let nobody = self.prefill.is_empty() || self.decode.is_empty();
        let reason = if nobody { Reason::NoInstance } else { Reason::Deadline };
        while self.returned.front().is_some_and(|(at, _)| *at <= cx.now) {
            if let Some((_, parcel)) = self.returned.pop_front() {
                cx.out.record(parcel.request.id, Step::Failed(reason));
                self.landed(cx, &parcel);
            }
        }
        while let Some(request) = self.waiting.expired(cx.now) {
            cx.out.record(request.id, Step::Failed(reason));
        }
    }
}

/// The candidate of that instance, unless it is gone.
fn candidate(side: &mut [Candidate], instance: InstanceId) -> Option<&mut Candidate> {
    let at = side.binary_search_by_key(&instance, |c| c.instance).ok()?;
    side.get_mut(at)
}

/// Where an instance begins to count rooms. Several routers, and the lives of one that restarts, share a registry and its instances: they must
/// not speak of each other's rooms. Ids of more than 63 bits are as good as any, and exercised from the first request on.
fn rooms_of(router: InstanceId) -> u64 {
    let (epoch, number) = (router.0 >> 32, router.0 & 0xffff_ffff);
    let lives = epoch.saturating_sub(1) << 12 ^ number.saturating_sub(1);
    lives << 32 ^ 1 << 63
}

fn create(key: RoomKey, flight: &Flight) -> Message {
    Message::Create {
        key,
        prefill: flight.prefill,
        decode: flight.decode,
        request: flight.parcel.request.clone(),
    }
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
            Input::Completions { .. } | Input::Fabric(_) | Input::Expire(_) => {}
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
        let first = |order: &VecDeque<(Time, RoomKey)>| order.front().map_or(Time::NEVER, |(at, _)| *at);
        let flight = first(&self.deadlines).min(first(&self.cancelled));
        let returned = self.returned.front().map_or(Time::NEVER, |(at, _)| *at);
        Time::earliest([self.client.deadline(), flight, returned.min(self.waiting.deadline())])
    }

    fn held(&self) -> Held {
        Held {
            rooms: (self.flights.len() + self.waiting.len() + self.returned.len()) as u64,
            ..Held::default()
        }
    }

    fn counters(&self) -> Counters {
        Counters { malformed_frames: self.client.stats().malformed, ..Counters::default() }
    }
}
