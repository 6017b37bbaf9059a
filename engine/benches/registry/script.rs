//! What 64 real clients say to a real registry, written down in virtual time: the frames that are then played to servers.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, VecDeque};

use engine::id::{InstanceId, NodeId, Page, RequestId, Room};
use engine::node::{Input, Node as _, Outbox, Request};
use engine::registry::*;
use engine::time::{Span, Time};

const ROUTERS: usize = 16;
const SIDE: usize = 24;
/// Clients.
pub(crate) const NODES: usize = ROUTERS + 2 * SIDE;
/// From a room's pages to its end at decode.
const GENERATION: Span = Span::ms(10);
/// Of a frame, each way. Much longer than a server that keeps up takes: what a client says in answer to something is then said after it,
/// although nobody waits for it.
const LATENCY: Span = Span::ms(20);
/// What is on its way at a time for so long, at the greatest rates.
pub(crate) const SESSION: SessionConfig = SessionConfig {
    ack_delay: Span::ms(50),
    retransmit: Span::ms(250),
    retransmit_max: Span::s(2),
    window: 1 << 17,
    window_bytes: 64 << 20,
    reorder: 1024,
};
/// The start of the registry that is played to.
pub(crate) const EPOCH: u32 = 1;

/// Whether a client is a router; the first ones are.
pub(crate) fn is_router(node: usize) -> bool {
    node < ROUTERS
}

/// The how manyth room of all this is.
pub(crate) fn number(key: RoomKey) -> usize {
    (key.room.0 as u32 as u64 * ROUTERS as u64 + (key.room.0 >> 32)) as usize
}

/// A frame of a client.
pub(crate) struct Said {
    /// Since the start of the load.
    pub(crate) at: Span,
    /// What goes over the wire.
    pub(crate) frame: Vec<u8>,
}

/// When something is said about a room that somebody else is to hear.
#[derive(Clone, Copy, Default)]
pub(crate) struct RoomTimes {
    /// Create leaves the router.
    pub(crate) create: Span,
    /// Publish leaves decode.
    pub(crate) publish: Span,
    /// Done leaves decode.
    pub(crate) done: Span,
}

/// Frames of all clients.
pub(crate) struct Script {
    /// While they join, one after the other: (client, frame).
    pub(crate) joining: Vec<(usize, Vec<u8>)>,
    /// Afterwards, by client.
    pub(crate) load: Vec<Vec<Said>>,
    /// By room.
    pub(crate) rooms: Vec<RoomTimes>,
    /// When the last request is over.
    pub(crate) end: Span,
}

/// A client with what its role must do with rooms.
struct Peer {
    role: Role,
    client: Client,
    members: Vec<Option<InstanceId>>,
    known: BTreeSet<InstanceId>,
}

enum Event {
    Join(usize),
    Create(u64),
    Done(usize, RoomKey),
    ToRegistry(usize, Vec<u8>),
    ToClient(usize, Vec<u8>),
    ClientWakes(usize),
    RegistryWakes,
}

struct Due(Time, u64, Event);

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Due {}
impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

struct Writer {
    queue: BinaryHeap<Reverse<Due>>,
    number: u64,
    now: Time,
    begin: Time,
    registry: Registry,
    registry_wakes: Time,
    peers: Vec<Peer>,
    wakes: Vec<Time>,
    out: Outbox,
    over: u64,
    script: Script,
}

impl Script {
    /// Requests every `interval`, so many.
    pub(crate) fn write(interval: Span, rooms: u64) -> Self {
        let peers = (0..NODES)
            .map(|node| {
                let role = match node {
                    _ if is_router(node) => Role::Router,
                    _ if node < ROUTERS + SIDE => Role::Prefill,
                    _ => Role::Decode,
                };
                let facts = (role != Role::Router).then(facts);
                let client = Client::new(role, facts, SESSION, 1);
                Peer { role, client, members: vec![None; NODES], known: BTreeSet::new() }
            })
            .collect();
        let step = LATENCY * 3;
        let mut writer = Writer {
            queue: BinaryHeap::new(),
            number: 0,
            now: Time::ZERO,
            begin: Time::ZERO + step * (NODES as u64 + 10),
            registry: Registry::new(EPOCH, RegistryConfig { session: SESSION, ..RegistryConfig::default() }),
            registry_wakes: Time::NEVER,
            peers,
            wakes: vec![Time::NEVER; NODES],
            out: Outbox::default(),
            over: 0,
            script: Script {
                joining: Vec::new(),
                load: (0..NODES).map(|_| Vec::new()).collect(),
                rooms: vec![RoomTimes::default(); rooms as usize],
                end: Span(0),
            },
        };
        for node in 0..NODES {
            writer.at(Time::ZERO + step * node as u64, Event::Join(node));
        }
        if rooms > 0 {
            writer.at(writer.begin, Event::Create(0));
        }
        writer.run(interval, rooms);
        writer.script.end = writer.now.since(writer.begin);
        writer.script
    }
}

impl Writer {
    fn at(&mut self, time: Time, event: Event) {
        self.number += 1;
        self.queue.push(Reverse(Due(time, self.number, event)));
    }

    fn run(&mut self, interval: Span, rooms: u64) {
        while self.over < rooms {
            let Reverse(Due(now, _, event)) = self.queue.pop().expect("rooms are under way");
            self.now = now;
            match event {
                Event::Join(node) => {
                    self.peers[node].client.start(now);
                    self.flush(node);
                }
                Event::Create(room) => {
                    self.create(room);
                    if room + 1 < rooms {
                        self.at(now + interval, Event::Create(room + 1));
                    }
                }
                Event::Done(node, key) => {
                    self.script.rooms[number(key)].done = now.since(self.begin);
                    self.say(node, &Message::Done { key, outcome: Outcome::Finished });
                }
                Event::ToRegistry(node, frame) => {
                    let input = Input::Frame { from: NodeId(node as u32 + 1), bytes: &frame };
                    self.registry.step(now, input, &mut self.out);
                    self.registry_said();
                }
                Event::RegistryWakes => {
                    self.registry_wakes = Time::NEVER;
                    self.registry.step(now, Input::Wake, &mut self.out);
                    self.registry_said();
                }
                Event::ToClient(node, frame) => self.heard(node, &frame),
                Event::ClientWakes(node) => {
                    self.wakes[node] = Time::NEVER;
                    self.flush(node);
                }
            }
        }
    }

    fn registry_said(&mut self) {
        let frames: Vec<(NodeId, Vec<u8>)> =
            self.out.frames().map(|(to, frame)| (to, frame.to_vec())).collect();
        self.out.clear();
        for (to, frame) in frames {
            self.at(self.now + LATENCY, Event::ToClient(to.index() - 1, frame));
        }
        if let Some(deadline) = self.registry.deadline()
            && deadline < self.registry_wakes
        {
            self.registry_wakes = deadline;
            self.at(deadline, Event::RegistryWakes);
        }
    }

    fn flush(&mut self, node: usize) {
        self.peers[node].client.flush(self.now, &mut self.out);
        let frames: Vec<Vec<u8>> = self.out.frames().map(|(_, frame)| frame.to_vec()).collect();
        self.out.clear();
        for frame in frames {
            if self.now < self.begin {
                self.script.joining.push((node, frame.clone()));
            } else {
                let at = self.now.since(self.begin);
                self.script.load[node].push(Said { at, frame: frame.clone() });
            }
            self.at(self.now + LATENCY, Event::ToRegistry(node, frame));
        }
        let deadline = self.peers[node].client.deadline();
        if deadline < self.wakes[node] {
            self.wakes[node] = deadline;
            self.at(deadline, Event::ClientWakes(node));
        }
    }

    /// In a frame of its own.
    fn say(&mut self, node: usize, message: &Message) {
        self.peers[node].client.send(message);
        self.flush(node);
    }

    fn create(&mut self, room: u64) {
        let router = room as usize % ROUTERS;
        let prefill = ROUTERS + room as usize % SIDE;
        let decode = ROUTERS + SIDE + (room as usize * 7 / 3) % SIDE;
        let request = Request {
            id: RequestId(room),
            prompt: 2560,
            output: 300,
            blocks: (room * 5..room * 5 + 5).collect(),
            ..Request::default()
        };
        let member = |node: usize| self.peers[router].members[node].expect("joined");
        // As a router does it: rooms of its own, one after the other.
        let key = RoomKey { room: Room(((router as u64) << 32) | (room / ROUTERS as u64)), attempt: 0 };
        let message = Message::Create { key, prefill: member(prefill), decode: member(decode), request };
        self.script.rooms[room as usize].create = self.now.since(self.begin);
        self.say(router, &message);
    }

    fn heard(&mut self, node: usize, frame: &[u8]) {
        let mut events = VecDeque::new();
        self.peers[node].client.receive(self.now, frame, &mut events);
        for event in events {
            match event {
                ClientEvent::Message(message) => self.take(node, message),
                ClientEvent::Registered(_) => {}
                event => panic!("client {node}: {event:?}"),
            }
        }
        self.flush(node);
    }

    fn take(&mut self, node: usize, message: Message) {
        match message {
            Message::Joined(member) => {
                self.peers[node].members[member.node.index() - 1] = Some(member.instance);
            }
            Message::Assign { key, peer, .. } => {
                if self.peers[node].known.insert(peer) {
                    self.say(node, &Message::Query { instance: peer });
                }
                if self.peers[node].role == Role::Decode {
                    self.script.rooms[number(key)].publish = self.now.since(self.begin);
                    self.say(node, &Message::Publish(pages(key)));
                    self.at(self.now + GENERATION, Event::Done(node, key));
                }
            }
            Message::Publish(list) => {
                let report = Report { delivered: true, clean: true };
                self.say(node, &Message::Report { key: list.key, report });
            }
            Message::Done { outcome, .. } => {
                assert_eq!(outcome, Outcome::Finished);
                self.over += 1;
            }
            _ => {}
        }
    }
}

fn facts() -> Facts {
    let region = |at: u64| Region { addr: at << 40, rkeys: vec![0x1234; 4] };
    let rank = |rank: u64| RankFacts {
        pools: vec![region(2 * rank + 1)],
        pitches: vec![1 << 30],
        aux: region(2 * rank + 2),
        stage: Region::default(),
    };
    Facts {
        fingerprint: 7,
        tp: 8,
        pp: 1,
        dp: 1,
        page_size: 64,
        pages: 16_384,
        slots: 512,
        ranks: (0..8).map(rank).collect(),
        ..Facts::default()
    }
}

fn pages(key: RoomKey) -> PageList {
    let first = |i: u64| Page((number(key) as u64 * 7 + i * 977) as u32 % 16_000 + 1);
    let runs = (0..10).map(|i| PageRun { first: first(i), count: 4 }).collect();
    PageList {
        key,
        fence_epoch: 0,
        slot: (number(key) % 512) as u16,
        generation: 1,
        group: 0,
        credits: 16,
        tokens: 2560,
        offset: 0,
        total: 40,
        pages: runs,
        stage: Vec::new(),
    }
}
