//! The registry itself: sessions, leases and registration. What it does with rooms is in `relay.rs`.

use super::frame::{Frame, FrameFlags, Header};
use super::lease::{Instance, Members, Standing, Waiting};
use super::room::Rooms;
use super::session::{Session, SessionConfig, SessionStats};
use super::wire;
use super::{Facts, Member, Message, Role};
use crate::id::{InstanceId, NodeId, Room};
use crate::map::Map;
use crate::node::{Counters, Cx, Held, Input, Node, Outbox, Reason};
use crate::time::{Span, Time};
use crate::timers::Timers;
use std::collections::{BTreeMap, VecDeque};

/// Bounds of the registry's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegistryLimits {
    /// Clients at a time; more are not answered.
    pub clients: usize,
    /// Rooms at a time; a Create above it is refused.
    pub rooms: usize,
    /// Ended rooms that are remembered; above it the oldest are forgotten early.
    pub tombstones: usize,
    /// Bytes that wait for one client; a Create for it is refused above half of it, and above it the client is given up.
    pub backlog: usize,
    /// Messages kept after a restart for rooms and instances that have not come back yet.
    pub parked: usize,
}

impl Default for RegistryLimits {
    fn default() -> Self {
        Self { clients: 1 << 16, rooms: 1 << 20, tombstones: 1 << 16, backlog: 64 << 20, parked: 1 << 18 }
    }
}

/// What a registry is told when it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegistryConfig {
    /// Silence after which an instance is gone.
    pub lease: Span,
    /// Sessions.
    pub session: SessionConfig,
    /// How long an ended room is remembered. Longer than what is said about it may wait at its sender: many times
    /// `lease`, as a sender that is slow but alive keeps its queue.
    pub tombstone: Span,
    /// After a restart: how long instances may take to come back before those that others name are gone; `lease` at
    /// least.
    pub recovery: Span,
    /// Tables.
    pub limits: RegistryLimits,
}

impl Default for RegistryConfig {
    fn default() -> Self {
        Self {
            lease: Span::s(5),
            session: SessionConfig::default(),
            tombstone: Span::s(60),
            recovery: Span::s(10),
            limits: RegistryLimits::default(),
        }
    }
}

/// What a registry has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RegistryStats {
    /// Frames that arrived.
    pub frames: u64,
    /// Messages handled.
    pub messages: u64,
    /// Messages sent or relayed.
    pub sent: u64,
    /// Frames and messages that could not be read.
    pub malformed: u64,
    /// Frames of sessions that are over or unknown, answered with a reset.
    pub resets: u64,
    /// Frames that name another epoch, or an instance which is not the sender's.
    pub stale: u64,
    /// Frames of new clients above the bound.
    pub full: u64,
    /// Messages of clients that are not registered.
    pub unregistered: u64,
    /// Messages that this sender may not send: not a participant of the room, or of another role.
    pub not_participant: u64,
    /// Messages for rooms that are not known.
    pub unknown_room: u64,
    /// Messages for rooms that have ended.
    pub late: u64,
    /// Messages for instances that are gone.
    pub to_gone: u64,
    /// Messages that could not be kept until a room or instance comes back.
    pub parked_dropped: u64,
    /// Registrations refused.
    pub refused: u64,
    /// Creates refused.
    pub creates_refused: u64,
    /// Leases that expired.
    pub expired: u64,
    /// Sessions, all together; `queued` is what was sent, `delivered` what was handled.
    pub sessions: SessionStats,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Not registered yet.
    New,
    /// Registered.
    Member,
    /// Refused or left: kept until its lease is over, so that the last words arrive.
    Over,
}

/// One client's session.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    node: NodeId,
    nonce: u64,
    pub(super) session: Session,
    beat: u32,
    /// When it was last heard.
    heard: Time,
    phase: Phase,
    pub(super) instance: InstanceId,
    dirty: bool,
    /// When its timer is set for; never later than the session's deadline.
    armed: Time,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Timer {
    Session(u32),
    Lease(u32),
    Recovery,
}

/// A message for a room that nobody has created again yet.
#[derive(Clone, Debug)]
pub(super) struct Parked {
    pub(super) from: InstanceId,
    pub(super) bytes: Box<[u8]>,
}

/// The registry: a node that ignores the fabric.
///
/// It gives out instance ids and leases, passes on what the participants of a room tell each other, and tells everyone
/// who is gone. It declares nothing failed by itself but an instance whose lease expired.
///
/// A restarted registry knows nothing, has a greater epoch, and says so to everyone who talks to it. For
/// [`RegistryConfig::recovery`] it takes instances of earlier epochs that are named to it for alive and keeps what
/// is for them, and for rooms that their router has not created again.
#[derive(Clone, Debug)]
pub struct Registry {
    pub(super) epoch: u32,
    pub(super) config: RegistryConfig,
    pub(super) members: Members,
    pub(super) rooms: Rooms,
    /// Messages for rooms of an earlier epoch, while recovering.
    pub(super) parked: BTreeMap<Room, Vec<Parked>>,
    pub(super) parked_count: usize,
    peers: Vec<Option<Peer>>,
    free: Vec<u32>,
    nodes: Map<NodeId, u32>,
    /// Last nonce of nodes whose session is over, for a while.
    ended: Map<NodeId, u64>,
    ended_order: VecDeque<(Time, NodeId, u64)>,
    timers: Timers<Timer>,
    /// Slots of peers with something to send.
    dirty: Vec<u32>,
    resets: Vec<(NodeId, u64)>,
    started: bool,
    past: SessionStats,
    pub(super) stats: RegistryStats,
}

impl Registry {
    /// A registry that knows nobody. `epoch` counts its starts from 1 and must rise with each.
    pub fn new(epoch: u32, config: RegistryConfig) -> Self {
        Self {
            epoch: epoch.max(1),
            config,
            members: Members::new(epoch.max(1)),
            rooms: Rooms::new(config.tombstone, config.limits.tombstones),
            parked: BTreeMap::new(),
            parked_count: 0,
            peers: Vec::new(),
            free: Vec::new(),
            nodes: Map::default(),
            ended: Map::default(),
            ended_order: VecDeque::new(),
            timers: Timers::new(),
            dirty: Vec::new(),
            resets: Vec::new(),
            started: false,
            past: SessionStats::default(),
            stats: RegistryStats::default(),
        }
    }

    /// What it has counted.
    pub fn stats(&self) -> RegistryStats {
        let mut stats = self.stats;
        stats.sessions = self.past;
        self.peers.iter().flatten().for_each(|peer| stats.sessions += peer.session.stats());
        stats
    }

    /// Registered instances.
    pub fn instances(&self) -> impl Iterator<Item = (InstanceId, Role, NodeId)> {
        self.members.iter().map(|(id, instance)| (id, instance.role, instance.node))
    }

    /// Entries in all tables: clients, rooms, tombstones, kept messages, unacknowledged and early segments.
    pub fn footprint(&self) -> usize {
        let peers = self.peers.iter().flatten();
        peers.map(|peer| 1 + peer.session.backlog() + peer.session.waiting()).sum::<usize>()
            + self.rooms.live()
            + self.rooms.tombstones()
            + self.members.len()
            + self.members.waiting()
            + self.parked_count
            + self.ended.len()
    }

    /// Messages and pieces not yet acknowledged by clients.
    pub fn backlog(&self) -> usize {
        self.peers.iter().flatten().map(|peer| peer.session.backlog()).sum()
    }

    fn peer(&mut self, slot: u32) -> Option<&mut Peer> {
        self.peers.get_mut(slot as usize)?.as_mut()
    }

    pub(super) fn peer_backlog(&self, slot: u32) -> usize {
        self.peers[slot as usize].as_ref().map_or(0, |peer| peer.session.backlog_bytes())
    }

    /// Queues a message for the client in `slot`.
    pub(super) fn say(&mut self, slot: u32, patient: bool, encode: impl FnOnce(&mut Vec<u8>)) {
        if let Some(peer) = self.peers[slot as usize].as_mut() {
            if patient {
                peer.session.queue_patiently(encode);
            } else {
                peer.session.queue(encode);
            }
            self.stats.sent += 1;
            if !peer.dirty {
                peer.dirty = true;
                self.dirty.push(slot);
            }
        }
    }

    /// Queues a message for an instance: now, or when it comes back. Says whether there is such an instance.
    pub(super) fn tell(&mut self, to: InstanceId, encode: impl FnOnce(&mut Vec<u8>)) -> bool {
        self.tell_when(to, false, encode)
    }

    /// The same; a `patient` message waits for a frame that leaves anyway.
    pub(super) fn tell_when(
        &mut self,
        to: InstanceId,
        patient: bool,
        encode: impl FnOnce(&mut Vec<u8>),
    ) -> bool {
        match self.members.standing(to) {
            Standing::Here(slot) => self.say(slot, patient, encode),
            Standing::Awaited => {
                if self.members.waiting() < self.config.limits.parked {
                    let mut bytes = Vec::new();
                    encode(&mut bytes);
                    self.members.wait_for(to, Some(Waiting::Message(bytes.into())));
                } else {
                    self.stats.parked_dropped += 1;
                }
            }
            Standing::Gone => {
                self.stats.to_gone += 1;
                return false;
            }
        }
        true
    }

    fn touch(&mut self, slot: u32) {
        if let Some(peer) = self.peers[slot as usize].as_mut()
            && !peer.dirty
        {
            peer.dirty = true;
            self.dirty.push(slot);
        }
    }

    fn frame(&mut self, now: Time, from: NodeId, bytes: &[u8]) {
        self.stats.frames += 1;
        let Ok(frame) = Frame::parse(bytes) else {
            self.stats.malformed += 1;
            return;
        };
        let header = frame.header;
        let syn = header.flags.has(FrameFlags::SYN);
        if header.epoch > self.epoch {
            self.stats.stale += 1;
            return;
        }
        let known = self.nodes.get(&from).copied();
        let slot = match known.and_then(|slot| Some((slot, self.peers[slot as usize].as_ref()?.nonce))) {
            Some((slot, nonce)) if nonce == header.nonce && (syn || header.epoch == self.epoch) => slot,
            Some((slot, nonce)) if header.nonce > nonce && syn => {
                let Some(slot) = self.renew(now, slot, from, header.nonce) else { return };
                slot
            }
            None if syn && self.ended.get(&from).is_none_or(|last| *last < header.nonce) => {
                let Some(slot) = self.admit(now, from, header.nonce) else { return };
                slot
            }
            _ => {
                self.stats.resets += 1;
                self.resets.push((from, header.nonce));
                return;
            }
        };
        let Some(peer) = self.peers[slot as usize].as_mut() else { return };
        if peer.phase == Phase::Member && header.instance != 0 && header.instance != peer.instance.0 {
            self.stats.stale += 1;
            return;
        }
        peer.session.acknowledge(&header);
        if header.beat >= peer.beat {
            if header.beat > peer.beat {
                peer.session.ack_by(now + self.config.session.ack_delay);
            }
            peer.beat = header.beat;
            if peer.phase != Phase::Over {
                peer.heard = now;
            }
        }
        let first = peer.session.first_of(&frame);
        for (seq, (more, segment)) in (first..).zip(frame.segments()) {
            let Some(peer) = self.peer(slot).filter(|peer| peer.nonce == header.nonce) else { return };
            if let Some(bytes) = peer.session.admit(now, seq, more, segment) {
                self.message(now, slot, &bytes);
            }
        }
        while let Some(bytes) = self.peer(slot).and_then(|peer| peer.session.early()) {
            self.message(now, slot, &bytes);
        }
        self.touch(slot);
    }

    /// A session for a node that has none.
    fn admit(&mut self, now: Time, node: NodeId, nonce: u64) -> Option<u32> {
        if self.peers.len() - self.free.len() >= self.config.limits.clients {
            self.stats.full += 1;
            return None;
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.peers.push(None);
            self.peers.len() as u32 - 1
        });
        self.peers[slot as usize] = Some(Peer {
            node,
            nonce,
            session: Session::new(self.config.session),
            beat: 0,
            heard: now,
            phase: Phase::New,
            instance: InstanceId(0),
            dirty: false,
            armed: Time::NEVER,
        });
        self.nodes.insert(node, slot);
        self.timers.arm(Timer::Lease(slot), now + self.config.lease);
        Some(slot)
    }

    /// A new session of a node that has one. In the same life this happens if the node met two restarts at once: it has
    /// received nothing in the old session, so all that was queued there goes on in the new one.
    fn renew(&mut self, now: Time, slot: u32, node: NodeId, nonce: u64) -> Option<u32> {
        let peer = self.peer(slot)?;
        if peer.nonce >> 32 == nonce >> 32
            && peer.phase != Phase::Over
            && let Some(session) = peer.session.renew()
        {
            let old = std::mem::replace(&mut peer.session, session).stats();
            (peer.nonce, peer.beat, peer.heard) = (nonce, 0, now);
            self.past += old;
            return Some(slot);
        }
        self.drop_peer(now, slot);
        self.admit(now, node, nonce)
    }

    /// Ends a session, and with it the instance.
    fn drop_peer(&mut self, now: Time, slot: u32) {
        let Some(peer) = self.peers[slot as usize].take() else { return };
        self.free.push(slot);
        self.nodes.remove(&peer.node);
        self.timers.cancel(Timer::Session(slot));
        self.timers.cancel(Timer::Lease(slot));
        self.past += peer.session.stats();
        self.ended.insert(peer.node, peer.nonce);
        self.ended_order.push_back((now + self.config.tombstone, peer.node, peer.nonce));
        if peer.phase == Phase::Member {
            self.gone(now, peer.instance);
        }
    }

    fn message(&mut self, now: Time, slot: u32, bytes: &[u8]) {
        self.stats.messages += 1;
        let message = match wire::decode(bytes) {
            Ok(message) => message,
            Err(error) => {
                self.stats.malformed += 1;
                return self.refuse(now, slot, Reason::Refused, format!("this is no message: {error}"));
            }
        };
        let Some(peer) = self.peers[slot as usize].as_ref() else { return };
        let (phase, from) = (peer.phase, peer.instance);
        match (phase, message) {
            (Phase::New, Message::Register { role, claim, facts }) => {
                self.register(now, slot, role, claim, facts);
            }
            (Phase::Member, Message::Register { claim, .. }) if claim == from => {
                // Renewed session: its Welcome is in the queue.
            }
            (Phase::New | Phase::Member, Message::Leave) => self.part(now, slot),
            (Phase::Member, Message::Heartbeat) => {}
            (Phase::Member, Message::Query { instance }) => self.query(from, instance),
            (Phase::Member, Message::Gone { instance }) => self.witness(now, instance),
            (Phase::Member, Message::Short) => self.short(now, from),
            (Phase::Member, message) => self.relay(now, from, message, bytes),
            (Phase::New | Phase::Over, _) => self.stats.unregistered += 1,
        }
    }

    fn register(&mut self, now: Time, slot: u32, role: Role, claim: InstanceId, facts: Option<Box<Facts>>) {
        if facts.is_some() == (role == Role::Router) {
            let why = "a prefill or decode instance registers memory and layout, a router none";
            return self.refuse(now, slot, Reason::Refused, format!("{role:?}: {why}"));
        }
        if let Some(facts) = &facts
            && let Err(why) = self.members.fits(facts.fingerprint)
        {
            return self.refuse(now, slot, Reason::Layout, why);
        }
        if claim != InstanceId(0)
            && let Err(why) = self.members.may_claim(claim)
        {
            return self.refuse(now, slot, Reason::LeaseLost, why);
        }
        let Some(peer) = self.peer(slot) else { return };
        let node = peer.node;
        let (id, waited) =
            self.members.insert(claim, Instance { slot, node, role, facts, short: Time::ZERO });
        if let Some(peer) = self.peer(slot) {
            peer.phase = Phase::Member;
            peer.instance = id;
        }
        let welcome = Message::Welcome { instance: id, lease: self.config.lease };
        self.say(slot, false, |out| wire::encode(&welcome, out));
        if role == Role::Router {
            let others: Vec<Member> =
                self.members.iter().filter_map(|(id, instance)| member(id, instance)).collect();
            for other in others {
                self.say(slot, false, |out| wire::encode(&Message::Joined(other), out));
            }
        } else if let Some(joined) = self.members.get(id).and_then(|instance| member(id, instance)) {
            let routers: Vec<u32> = self
                .members
                .iter()
                .filter(|(_, other)| other.role == Role::Router)
                .map(|(_, other)| other.slot)
                .collect();
            for router in routers {
                self.say(router, false, |out| wire::encode(&Message::Joined(joined), out));
            }
        }
        for waiting in waited {
            match waiting {
                Waiting::Message(bytes) => self.say(slot, false, |out| out.extend_from_slice(&bytes)),
                Waiting::Query(from) => self.query(from, id),
            }
        }
    }

    /// Ends a client's registration, or attempt at one, and tells it why.
    fn refuse(&mut self, now: Time, slot: u32, reason: Reason, why: String) {
        if self.peer(slot).is_none_or(|peer| peer.phase == Phase::Over) {
            return;
        }
        self.stats.refused += 1;
        self.say(slot, false, |out| wire::encode(&Message::Refused { reason, why }, out));
        self.part(now, slot);
    }

    /// Ends a client's registration; its session stays until its lease is over, so that the last words arrive.
    fn part(&mut self, now: Time, slot: u32) {
        let Some(peer) = self.peer(slot) else { return };
        peer.session.ack_by(now);
        if std::mem::replace(&mut peer.phase, Phase::Over) == Phase::Member {
            let instance = peer.instance;
            self.gone(now, instance);
        }
    }

    fn query(&mut self, from: InstanceId, instance: InstanceId) {
        let facts = match self.members.standing(instance) {
            Standing::Here(_) => self.members.get(instance).and_then(|instance| instance.facts.clone()),
            Standing::Awaited if self.members.waiting() < self.config.limits.parked => {
                return self.members.wait_for(instance, Some(Waiting::Query(from)));
            }
            Standing::Awaited | Standing::Gone => None,
        };
        self.tell(from, |out| wire::encode(&Message::FactsOf { instance, facts }, out));
    }

    /// What waits patiently for a client goes now.
    pub(super) fn hurry(&mut self, slot: u32) {
        if let Some(peer) = self.peer(slot) {
            peer.session.hurry();
        }
        self.touch(slot);
    }

    /// A client says that an instance was given up by an earlier registry.
    fn witness(&mut self, now: Time, instance: InstanceId) {
        match self.members.standing(instance) {
            Standing::Here(slot) if instance.0 >> 32 < u64::from(self.epoch) => {
                let why = format!("instance {instance} was given up before the registry restarted");
                self.refuse(now, slot, Reason::LeaseLost, why);
            }
            Standing::Awaited => self.gone(now, instance),
            _ => {}
        }
    }

    /// An instance is gone for good: everyone is told, and its rooms wait for it no longer.
    fn gone(&mut self, now: Time, instance: InstanceId) {
        let waited = self.members.remove(instance);
        let others: Vec<u32> = self.members.iter().map(|(_, other)| other.slot).collect();
        for slot in others {
            self.say(slot, false, |out| wire::encode(&Message::Gone { instance }, out));
        }
        for waiting in waited {
            if let Waiting::Query(from) = waiting {
                self.query(from, instance);
            }
        }
        self.abandon(now, instance);
    }

    fn expire(&mut self, now: Time) {
        while let Some(timer) = self.timers.expired(now) {
            match timer {
                Timer::Session(slot) => {
                    if let Some(peer) = self.peer(slot) {
                        peer.armed = Time::NEVER;
                    }
                    self.touch(slot);
                }
                Timer::Lease(slot) => {
                    let Some(peer) = self.peers[slot as usize].as_ref() else { continue };
                    let until = peer.heard + self.config.lease;
                    if until > now {
                        self.timers.arm(Timer::Lease(slot), until);
                        continue;
                    }
                    self.stats.expired += u64::from(peer.phase == Phase::Member);
                    self.drop_peer(now, slot);
                }
                Timer::Recovery => {
                    for instance in self.members.end_recovery() {
                        self.gone(now, instance);
                    }
                    self.unpark_all(now);
                }
            }
        }
    }

    fn send(&mut self, now: Time, out: &mut Outbox) {
        for (node, nonce) in self.resets.drain(..) {
            let header = Header { flags: FrameFlags::RESET, epoch: self.epoch, nonce, ..Header::default() };
            out.send(node, |frame| header.write(&[], frame));
        }
        let mut at = 0;
        while let Some(&slot) = self.dirty.get(at) {
            at += 1;
            let backlog = self.config.limits.backlog;
            let Some(peer) = self.peers[slot as usize].as_mut() else { continue };
            peer.dirty = false;
            if peer.session.backlog_bytes() > backlog && peer.phase == Phase::Member {
                let why = format!("{} bytes wait for this client", peer.session.backlog_bytes());
                self.refuse(now, slot, Reason::LeaseLost, why);
                continue;
            }
            let header = Header {
                epoch: self.epoch,
                nonce: peer.nonce,
                instance: peer.instance.0,
                beat: peer.beat,
                ..Header::default()
            };
            peer.session.flush(now, peer.node, header, false, out);
            let deadline = peer.session.deadline();
            if deadline < peer.armed {
                peer.armed = deadline;
                self.timers.arm(Timer::Session(slot), deadline);
            }
        }
        self.dirty.clear();
    }

    fn sweep(&mut self, now: Time) {
        self.rooms.sweep(now);
        while let Some(&(until, node, nonce)) = self.ended_order.front()
            && until <= now
        {
            self.ended_order.pop_front();
            if self.ended.get(&node) == Some(&nonce) {
                self.ended.remove(&node);
            }
        }
    }
}

fn member(instance: InstanceId, known: &Instance) -> Option<Member> {
    let facts = known.facts.as_ref()?;
    Some(Member {
        instance,
        role: known.role,
        node: known.node,
        pages: facts.pages,
        page_size: facts.page_size,
        groups: facts.dp,
    })
}

impl Registry {
    /// [`Node::handle`] and [`Node::flush`], which need no fabric.
    pub fn step(&mut self, now: Time, input: Input<'_>, out: &mut Outbox) {
        self.input(now, input);
        self.send(now, out);
    }

    fn input(&mut self, now: Time, input: Input<'_>) {
        if !self.started {
            self.started = true;
            if self.members.recovering() {
                self.timers.arm(Timer::Recovery, now + self.config.recovery.max(self.config.lease));
            }
        }
        self.sweep(now);
        match input {
            Input::Frame { from, bytes } => self.frame(now, from, bytes),
            Input::Wake => self.expire(now),
            _ => {}
        }
    }
}

impl Node for Registry {
    fn handle(&mut self, cx: &mut Cx<'_>, input: Input<'_>) {
        self.input(cx.now, input);
    }

    fn flush(&mut self, now: Time, out: &mut Outbox) {
        self.send(now, out);
    }

    fn deadline(&self) -> Option<Time> {
        self.timers.head()
    }

    fn held(&self) -> Held {
        Held { rooms: self.rooms.live() as u64, ..Held::default() }
    }

    fn counters(&self) -> Counters {
        let stats = self.stats();
        Counters {
            registry_messages: stats.messages,
            malformed_frames: stats.malformed,
            ..Counters::default()
        }
    }
}
