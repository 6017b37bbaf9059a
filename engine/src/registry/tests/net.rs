//! A bad network, and toy nodes that follow the rules for participants.

use crate::id::{InstanceId, NodeId, Page, RequestId, Room};
use crate::node::{Input, Node, Outbox, Reason, Request};
use crate::registry::*;
use crate::time::{Span, Time};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::{BTreeMap, VecDeque};

/// What the network does to frames.
#[derive(Clone, Copy, Debug)]
pub(super) struct Faults {
    /// Of a thousand frames: lost, doubled, damaged.
    pub(super) lost: u32,
    pub(super) doubled: u32,
    pub(super) damaged: u32,
    /// Longest delay; different delays reorder.
    pub(super) delay: Span,
}

impl Faults {
    pub(super) const NONE: Self = Self { lost: 0, doubled: 0, damaged: 0, delay: Span::us(20) };

    pub(super) fn any() -> impl Strategy<Value = Self> {
        (0u32..300, 0u32..300, 0u32..100, prop_oneof![Just(20u64), 1u64..300_000])
            .prop_map(|(lost, doubled, damaged, us)| Self { lost, doubled, damaged, delay: Span::us(us) })
    }
}

/// Frames on their way.
pub(super) struct Wire {
    faults: Faults,
    rng: ChaCha8Rng,
    frames: BTreeMap<(Time, u64), (NodeId, NodeId, Vec<u8>)>,
    order: u64,
    pub(super) carried: u64,
}

impl Wire {
    pub(super) fn new(faults: Faults, seed: u64) -> Self {
        let rng = ChaCha8Rng::seed_from_u64(seed);
        Self { faults, rng, frames: BTreeMap::new(), order: 0, carried: 0 }
    }
    fn chance(&mut self, per_mille: u32) -> bool {
        self.rng.random_range(0..1000) < per_mille
    }
    pub(super) fn take(&mut self, now: Time, from: NodeId, out: &Outbox) {
        for (to, bytes) in out.frames() {
            assert!(bytes.len() <= MAX_FRAME);
            self.carried += 1;
            let copies = if self.chance(self.faults.lost) {
                0
            } else {
                1 + u32::from(self.chance(self.faults.doubled))
            };
            for _ in 0..copies {
                let mut bytes = bytes.to_vec();
                if self.chance(self.faults.damaged) {
                    let at = self.rng.random_range(0..bytes.len());
                    if self.rng.random() {
                        bytes[at] ^= 1 << self.rng.random_range(0..8);
                    } else {
                        bytes.truncate(at);
                    }
                }
                let delay = Span(self.rng.random_range(1..=self.faults.delay.0));
                self.order += 1;
                self.frames.insert((now + delay, self.order), (from, to, bytes));
            }
        }
    }
    pub(super) fn next(&self) -> Option<Time> {
        self.frames.first_key_value().map(|((at, _), _)| *at)
    }
    pub(super) fn arrive(&mut self, now: Time) -> Option<(NodeId, NodeId, Vec<u8>)> {
        self.next().filter(|at| *at <= now)?;
        self.frames.pop_first().map(|(_, frame)| frame)
    }
}

/// A room at a toy node.
#[derive(Clone, Debug, Default)]
pub(super) struct ToyRoom {
    pub(super) peer: InstanceId,
    pub(super) assigned: u32,
    pub(super) report: Option<Report>,
    pub(super) outcome: Option<Outcome>,
    /// Router: both instances.
    pub(super) sides: (InstanceId, InstanceId),
}

/// A node that does what its role must do with rooms, and moves no data.
pub(super) struct Toy {
    pub(super) client: Client,
    pub(super) role: Role,
    pub(super) rooms: BTreeMap<RoomKey, ToyRoom>,
    pub(super) members: BTreeMap<InstanceId, Role>,
    pub(super) gone: Vec<InstanceId>,
    pub(super) events: Vec<ClientEvent>,
    /// Every Done that came, per room (router).
    pub(super) dones: BTreeMap<RoomKey, Vec<Outcome>>,
    pub(super) paused: bool,
    /// Decode never publishes.
    pub(super) passive: bool,
    /// Registers as a new instance when it was evicted.
    pub(super) rejoins: bool,
}

pub(super) fn facts(fingerprint: u64) -> Facts {
    Facts { fingerprint, tp: 1, pp: 1, dp: 1, page_size: 16, pages: 100, slots: 8, ..Facts::default() }
}

pub(super) fn key(room: u64) -> RoomKey {
    RoomKey { room: Room(room), attempt: 0 }
}

pub(super) fn list(key: RoomKey) -> PageList {
    PageList {
        key,
        fence_epoch: 0,
        slot: 1,
        generation: 1,
        group: 0,
        credits: 4,
        tokens: 100,
        offset: 0,
        total: 7,
        pages: vec![PageRun { first: Page(1), count: 4 }, PageRun { first: Page(9), count: 3 }],
        stage: Vec::new(),
    }
}

impl Toy {
    pub(super) fn new(role: Role, life: u32) -> Self {
        Self::with(role, life, 0xabc)
    }
    pub(super) fn with(role: Role, life: u32, fingerprint: u64) -> Self {
        let facts = (role != Role::Router).then(|| facts(fingerprint));
        Self {
            client: Client::new(role, facts, SessionConfig::default(), life),
            role,
            rooms: BTreeMap::new(),
            members: BTreeMap::new(),
            gone: Vec::new(),
            events: Vec::new(),
            dones: BTreeMap::new(),
            paused: false,
            passive: false,
            rejoins: false,
        }
    }
    pub(super) fn id(&self) -> InstanceId {
        self.client.instance()
    }
    pub(super) fn create(&mut self, key: RoomKey, prefill: InstanceId, decode: InstanceId) {
        self.rooms.insert(key, ToyRoom { sides: (prefill, decode), ..ToyRoom::default() });
        self.say_create(key);
    }
    fn say_create(&mut self, key: RoomKey) {
        let (prefill, decode) = self.rooms[&key].sides;
        let request = Request { id: RequestId(key.room.0), prompt: 100, output: 5, ..Request::default() };
        self.client.send(&Message::Create { key, prefill, decode, request });
    }
    pub(super) fn live(&self) -> usize {
        self.rooms
            .values()
            .filter(
                |room| {
                    if self.role == Role::Prefill { room.report.is_none() } else { room.outcome.is_none() }
                },
            )
            .count()
    }
    fn end_prefill(&mut self, key: RoomKey, report: Report) {
        let room = self.rooms.entry(key).or_default();
        let report = *room.report.get_or_insert(report);
        self.client.send(&Message::Report { key, report });
    }
    fn end_decode(&mut self, key: RoomKey, outcome: Outcome) {
        let room = self.rooms.entry(key).or_default();
        let outcome = *room.outcome.get_or_insert(outcome);
        self.client.send(&Message::Done { key, outcome });
    }
    pub(super) fn event(&mut self, event: ClientEvent) {
        self.events.push(event.clone());
        match event {
            ClientEvent::Registered(_) => {}
            ClientEvent::NewEpoch => self.again(),
            ClientEvent::Evicted { .. } => {
                for room in self.rooms.values_mut() {
                    room.report.get_or_insert(Report { delivered: false, clean: true });
                    room.outcome.get_or_insert(Outcome::Failed(Reason::LeaseLost));
                }
            }
            ClientEvent::Message(message) => self.message(message),
        }
    }
    /// Says again what a new registry must know.
    fn again(&mut self) {
        for (key, room) in self.rooms.clone() {
            match self.role {
                Role::Router if room.outcome.is_none() => self.say_create(key),
                Role::Prefill => {
                    if let Some(report) = room.report {
                        self.client.send(&Message::Report { key, report });
                    }
                }
                Role::Decode if room.report.is_none() && !self.passive => {
                    self.client.send(&Message::Publish(list(key)));
                }
                _ => {}
            }
        }
    }
    fn message(&mut self, message: Message) {
        match (self.role, message) {
            (_, Message::Joined(member)) => {
                self.members.insert(member.instance, member.role);
            }
            (role, Message::Gone { instance }) => {
                self.gone.push(instance);
                self.members.remove(&instance);
                for (key, room) in self.rooms.clone() {
                    let named = room.peer == instance || room.sides.0 == instance || room.sides.1 == instance;
                    match role {
                        _ if !named => {}
                        Role::Router if room.outcome.is_none() => {
                            self.client.send(&Message::Cancel { key, reason: Reason::PeerGone });
                            if room.sides.1 == instance {
                                let room = self.rooms.get_mut(&key).unwrap();
                                room.outcome = Some(Outcome::Failed(Reason::PeerGone));
                            }
                        }
                        Role::Prefill if room.report.is_none() => {
                            self.end_prefill(key, Report { delivered: false, clean: true });
                        }
                        Role::Decode if room.outcome.is_none() => {
                            self.end_decode(key, Outcome::Failed(Reason::PeerGone));
                        }
                        _ => {}
                    }
                }
            }
            (Role::Router, Message::Done { key, outcome }) => {
                self.dones.entry(key).or_default().push(outcome);
                if let Some(room) = self.rooms.get_mut(&key) {
                    room.outcome.get_or_insert(outcome);
                }
            }
            (role, Message::Assign { key, peer, .. }) => {
                let room = self.rooms.entry(key).or_default();
                room.peer = peer;
                room.assigned += 1;
                let (first, room) = (room.assigned == 1, room.clone());
                match role {
                    Role::Prefill => {
                        if let Some(report) = room.report {
                            self.end_prefill(key, report);
                        }
                    }
                    _ => match room.outcome {
                        Some(outcome) => self.end_decode(key, outcome),
                        None if first && !self.passive => self.client.send(&Message::Publish(list(key))),
                        None => {}
                    },
                }
            }
            (Role::Prefill, Message::Publish(list)) => {
                self.end_prefill(list.key, Report { delivered: true, clean: true });
            }
            (Role::Prefill, Message::Abort { key, .. } | Message::Cancel { key, .. }) => {
                self.end_prefill(key, Report { delivered: false, clean: true });
            }
            (Role::Decode, Message::Abort { key, reason } | Message::Cancel { key, reason }) => {
                self.end_decode(key, Outcome::Failed(reason));
            }
            (Role::Decode, Message::Report { key, report }) => {
                let outcome =
                    if report.delivered { Outcome::Finished } else { Outcome::Failed(Reason::Transfer) };
                self.rooms.entry(key).or_default().report = Some(report);
                if self.rooms[&key].outcome.is_none() {
                    self.end_decode(key, outcome);
                }
            }
            _ => {}
        }
    }
}

/// A registry, toys and a wire between them; time goes as fast as there is nothing to do.
pub(super) struct Net {
    pub(super) now: Time,
    pub(super) registry: Option<Registry>,
    pub(super) toys: Vec<Toy>,
    pub(super) wire: Wire,
    out: Outbox,
}

impl Net {
    pub(super) fn new(roles: &[Role], faults: Faults, seed: u64) -> Self {
        let toys = roles.iter().map(|role| Toy::new(*role, 1)).collect();
        let registry = Some(Registry::new(1, RegistryConfig::default()));
        let mut net = Self {
            now: Time::ZERO + Span::s(1),
            registry,
            toys,
            wire: Wire::new(faults, seed),
            out: Outbox::default(),
        };
        (0..net.toys.len()).for_each(|toy| net.toys[toy].client.start(net.now));
        net
    }
    fn flush(&mut self) {
        for (i, toy) in self.toys.iter_mut().enumerate().filter(|(_, toy)| !toy.paused) {
            self.out.clear();
            toy.client.flush(self.now, &mut self.out);
            self.wire.take(self.now, NodeId(i as u32 + 1), &self.out);
        }
    }
    fn step(&mut self, input: Input<'_>) {
        if let Some(registry) = &mut self.registry {
            self.out.clear();
            registry.step(self.now, input, &mut self.out);
            self.wire.take(self.now, REGISTRY, &self.out);
        }
    }
    pub(super) fn run(&mut self, span: Span) {
        let until = self.now + span;
        self.flush();
        loop {
            let toys = self.toys.iter().filter(|toy| !toy.paused).map(|toy| toy.client.deadline());
            let toys = toys.filter(|at| *at != Time::NEVER);
            let registry = self.registry.as_ref().and_then(|registry| registry.deadline());
            let Some(at) = toys.chain(registry).chain(self.wire.next()).min() else { break };
            if at > until {
                break;
            }
            self.now = self.now.max(at);
            while let Some((from, to, bytes)) = self.wire.arrive(self.now) {
                if to == REGISTRY {
                    self.step(Input::Frame { from, bytes: &bytes });
                } else if let Some(toy) = self.toys.get_mut(to.index() - 1).filter(|toy| !toy.paused) {
                    let mut events = VecDeque::new();
                    toy.client.receive(self.now, &bytes, &mut events);
                    for event in events {
                        if matches!(event, ClientEvent::Evicted { .. }) && toy.rejoins {
                            toy.client.rejoin(self.now);
                        }
                        toy.event(event);
                    }
                }
            }
            if self
                .registry
                .as_ref()
                .and_then(|registry| registry.deadline())
                .is_some_and(|at| at <= self.now)
            {
                self.step(Input::Wake);
            }
            self.flush();
        }
        self.now = until;
    }
    pub(super) fn restart(&mut self, epoch: u32) {
        self.registry = Some(Registry::new(epoch, RegistryConfig::default()));
        self.step(Input::Start);
    }
    pub(super) fn registry(&self) -> &Registry {
        self.registry.as_ref().unwrap()
    }
    pub(super) fn id(&self, toy: usize) -> InstanceId {
        self.toys[toy].id()
    }
}
