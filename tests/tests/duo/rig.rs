//! The two ends of a transfer and the fabric between them, driven message by message.

use engine::fabric::{Access, Completion, Content, Extent, Fabric as _, LinkLayer, Memory};
use engine::id::{InstanceId, Page, RequestId, Room};
use engine::node::{Cx, Outbox, Reason, Request};
use engine::policy::{Direction, RailPolicy, ReplicaChoice};
use engine::registry::{LinkBody, Message, PageRun, Report, RoomKey};
use engine::time::{Span, Time};
use engine::transfer::{
    End as _, Initiator, InitiatorRoom, InstanceMemory, News, PageTable, Pairing, Rules, Target, TargetRoom,
    TransferConfig,
};
use models::{DType, Layout, PageOrder, Parallel, presets};
use sim::fabric::{FabricEvent, Fabrics, HostSpec, PortSpec, Ready, ReadyWhat};
use sim::net::Topology;
use sim::nic::NicProfile;
use sim::queue::EventQueue;
use std::sync::Arc;

pub(crate) const P: InstanceId = InstanceId(1);
pub(crate) const D: InstanceId = InstanceId(2);
pub(crate) const PAGES: u32 = 9;
/// Tokens of every room: four pages.
pub(crate) const TOKENS: u32 = 64;
pub(crate) const MARK: u64 = 99;

/// One prefill and one decode instance of one rank each, and what they say. Host 0 is the initiator, host 1 the target.
pub(crate) struct Duo {
    pub(crate) direction: Direction,
    pub(crate) fabrics: Fabrics,
    pub(crate) queue: EventQueue<FabricEvent>,
    pub(crate) ready: Vec<Ready>,
    pub(crate) now: Time,
    pub(crate) sender: Initiator,
    pub(crate) receiver: Target,
    /// Said by the initiator, and by the target.
    pub(crate) said: [Vec<Message>; 2],
    pub(crate) news: Vec<News>,
    pub(crate) out: Outbox,
}

pub(crate) fn key(room: u64) -> RoomKey {
    RoomKey { room: Room(room), attempt: 1 }
}

pub(crate) fn table(room: u64) -> PageTable {
    // Rooms 0 and 1 have different pages at the initiator, and the same at the target: they are never there at a time.
    PageTable::new(vec![PageRun { first: Page(1 + 4 * room as u32), count: 4 }])
}

pub(crate) fn request(room: u64) -> Request {
    Request { id: RequestId(room), prompt: TOKENS, output: 1, ..Request::default() }
}

impl Duo {
    pub(crate) fn new(change: impl Fn(&mut TransferConfig)) -> Self {
        let mut config = TransferConfig {
            rails: 2,
            rail_policy: RailPolicy::Striped,
            slots: 1,
            send_depth: 64,
            receive_depth: 256,
            // What is stuck stays so.
            failover: None,
            ..TransferConfig::default()
        };
        change(&mut config);
        let nic = Arc::new(NicProfile::ideal());
        let port = |p| PortSpec {
            name: format!("nic{p}/1"),
            link_layer: LinkLayer::Ethernet,
            bits_per_s: 1_000_000_000,
            mtu: nic.mtu,
            numa: None,
        };
        let host = || HostSpec { ports: (0..2).map(port).collect(), nic: nic.clone() };
        let topology = Topology::star(4, 1.0, Span::us(5).0).unwrap();
        let mut fabrics = Fabrics::new(vec![host(), host()], topology, 1).unwrap();
        let model = presets::lookup("tiny-gqa").unwrap();
        let layout =
            Layout::new(&model, DType::Bf16, Parallel::default(), 16, PageOrder::TokenMajor).unwrap();
        let mut memory = |host: usize, access| {
            let fabric = fabrics.host(host);
            InstanceMemory::new(
                fabric,
                layout.clone(),
                Memory::Phantom,
                PAGES,
                (config.slots, config.coalescing.staging()),
                (2, &config.reach),
                access,
            )
            .unwrap()
        };
        let direction = config.direction;
        let rights = match direction {
            Direction::Push => (Access::REMOTE_READ, Access::REMOTE_WRITE),
            Direction::Pull => (Access::LOCAL, Access::REMOTE_READ),
        };
        let (src, dst) = (memory(0, rights.0), memory(1, rights.1));
        let (src_facts, dst_facts) = (src.facts(), dst.facts());
        let pair = |prefill, decode| {
            let replica = ReplicaChoice::ByDestination;
            Pairing::new(&model, DType::Bf16, prefill, decode, replica, config.rails, &config.reach).unwrap()
        };
        let pairing = Arc::new(match direction {
            Direction::Push => pair(&src_facts, &dst_facts),
            Direction::Pull => pair(&dst_facts, &src_facts).reversed(),
        });
        let sender = Initiator::new(config.clone(), src, fabrics.host(0), 8).unwrap();
        let receiver = Target::new(config, dst, fabrics.host(1), 8).unwrap();
        let mut duo = Self {
            direction,
            fabrics,
            queue: EventQueue::new(),
            ready: Vec::new(),
            now: Time::ZERO,
            sender,
            receiver,
            said: [Vec::new(), Vec::new()],
            news: Vec::new(),
            out: Outbox::default(),
        };
        duo.receiver(|receiver, cx| receiver.meet(cx, P, pairing.clone()));
        duo.sender(|sender, cx| sender.meet(cx, D, Arc::new(dst_facts), pairing));
        duo.mark();
        duo
    }

    /// Connected: asked, offered, answered, ready.
    pub(crate) fn connected(change: impl Fn(&mut Rules)) -> Self {
        Self::connected_to(Direction::Push, change)
    }
    pub(crate) fn connected_to(direction: Direction, change: impl Fn(&mut Rules)) -> Self {
        let mut duo = Self::new(|config| {
            config.direction = direction;
            change(&mut config.rules);
        });
        duo.talk();
        duo
    }

    pub(crate) fn sender<T>(&mut self, call: impl FnOnce(&mut Initiator, &mut Cx<'_>) -> T) -> T {
        self.fabrics.begin_call(0, self.now);
        let mut cx = Cx { now: self.now, fabric: self.fabrics.host(0), out: &mut self.out };
        let value = call(&mut self.sender, &mut cx);
        self.fabrics.after_call(0, self.now, &mut self.queue, &mut self.ready);
        while let Some(news) = self.sender.next_news() {
            match news {
                News::Tell(message) => self.said[0].push(message),
                news => self.news.push(news),
            }
        }
        value
    }

    pub(crate) fn receiver<T>(&mut self, call: impl FnOnce(&mut Target, &mut Cx<'_>) -> T) -> T {
        self.fabrics.begin_call(1, self.now);
        let mut cx = Cx { now: self.now, fabric: self.fabrics.host(1), out: &mut self.out };
        let value = call(&mut self.receiver, &mut cx);
        self.fabrics.after_call(1, self.now, &mut self.queue, &mut self.ready);
        while let Some(news) = self.receiver.next_news() {
            match news {
                News::Tell(message) => self.said[1].push(message),
                news => self.news.push(news),
            }
        }
        value
    }

    /// The first message of a side (0: initiator, 1: target) that `pick` names arrives at the other.
    pub(crate) fn arrives(&mut self, from: usize, pick: impl Fn(&Message) -> bool) {
        let at = self.said[from].iter().position(pick);
        let message = self.said[from].remove(at.expect("the message was said"));
        self.hear(from, message);
    }

    pub(crate) fn hear(&mut self, from: usize, message: Message) {
        match (from, message) {
            (0, Message::Report { key, report }) => self.receiver(|r, cx| r.report(cx, key, report)),
            (0, Message::Abort { key, reason }) => self.receiver(|r, cx| r.abort(cx, key, reason, false)),
            (0, Message::Link { body, .. }) => self.receiver(|r, cx| r.link(cx, P, body)),
            (1, Message::Produced { key, before, pieces, last }) => {
                self.sender(|s, cx| s.told(cx, &key, before, &pieces, last.as_deref()));
            }
            (1, Message::Report { key, .. }) => self.sender(|s, cx| s.ended_there(cx, key)),
            (1, Message::Publish(list)) => self.sender(|s, cx| s.publish(cx, &list)),
            (1, Message::Abort { key, reason }) => self.sender(|s, cx| s.abort(cx, key, reason, false)),
            (1, Message::Link { body, .. }) => self.sender(|s, cx| s.link(cx, D, body)),
            (from, message) => panic!("{from} says {message:?}"),
        }
    }

    /// Everything that was said arrives, in order, until nothing more is said.
    pub(crate) fn talk(&mut self) {
        while let Some(from) = (0..2).find(|from| !self.said[*from].is_empty()) {
            let message = self.said[from].remove(0);
            self.hear(from, message);
        }
    }

    /// The fabric works for a while, and completions are polled as they come.
    pub(crate) fn run(&mut self, span: Span) {
        let until = self.now + span;
        loop {
            for ready in std::mem::take(&mut self.ready) {
                match ready.what {
                    ReadyWhat::Completions(cq) => {
                        let mut batch = [Completion::default(); 16];
                        loop {
                            self.fabrics.begin_call(ready.host, self.now);
                            let n = self.fabrics.host(ready.host).poll(cq, &mut batch);
                            let batch = &batch[..n];
                            if n == 0 {
                                break;
                            }
                            match ready.host {
                                0 => self.sender(|s, cx| s.completions(cx, batch)),
                                _ => self.receiver(|r, cx| r.completions(cx, batch)),
                            }
                        }
                    }
                    ReadyWhat::Events => {
                        while let Some(event) = self.fabrics.host(ready.host).next_event() {
                            match ready.host {
                                0 => self.sender(|s, cx| s.event(cx, event)),
                                _ => self.receiver(|r, cx| r.event(cx, event)),
                            }
                        }
                    }
                }
            }
            if self.queue.peek_time().is_none_or(|at| at > until) {
                self.now = until;
                return;
            }
            if let Some((at, event)) = self.queue.pop() {
                self.now = at;
                self.fabrics.handle(at, event, &mut self.queue, &mut self.ready);
            }
        }
    }

    pub(crate) fn fail_qp(&mut self, host: usize, index: usize) {
        let qp = self.fabrics.host_ref(host).queue_pairs()[index];
        self.fabrics.fail_qp(host, qp, self.now, &mut self.queue, &mut self.ready);
        self.run(Span(0));
    }

    /// The registry assigns a room to the initiator.
    pub(crate) fn assign(&mut self, room: u64) -> bool {
        let spec = InitiatorRoom {
            key: key(room),
            request: RequestId(room),
            peer: D,
            tenant: 0,
            group: 0,
            tokens: TOKENS,
        };
        let opened = self.sender(|s, cx| s.open(cx, spec));
        match self.direction {
            Direction::Push => self.sender(|s, _| s.attach(&key(room), &table(room), 0)),
            Direction::Pull => {
                self.sender(|s, cx| s.land(cx, &key(room), &table(room)));
            }
        }
        opened
    }

    /// Prefill has computed tokens of a room.
    pub(crate) fn computes(&mut self, room: u64, tokens: std::ops::Range<u32>, last: bool) {
        if self.direction == Direction::Pull {
            self.receiver(|r, cx| {
                r.memory().stamp(cx.fabric, 0, &request(room), &table(0), tokens.clone(), 0..4).unwrap();
                r.produced(cx, &key(room), tokens, 0..4, last);
            });
            return;
        }
        self.sender(|s, cx| {
            s.memory().stamp(cx.fabric, 0, &request(room), &table(room), tokens.clone(), 0..4).unwrap();
            s.produced(cx, &key(room), tokens, 0..4, last);
        });
    }

    /// The target opens a room with its pages, and publishes them.
    pub(crate) fn opens(&mut self, room: u64) {
        let spec = TargetRoom { key: key(room), request: RequestId(room), peer: P, group: 0, tokens: TOKENS };
        let opened = match self.direction {
            Direction::Push => self.receiver(|r, cx| r.open(cx, spec, &table(0))),
            Direction::Pull => {
                self.receiver(|r, cx| r.open_shown(cx, spec) && r.attach(cx, &key(room), &table(0), 0))
            }
        };
        assert!(opened);
    }

    /// A room with pages and all of its KV.
    pub(crate) fn begins(&mut self, room: u64) {
        self.assign(room);
        self.opens(room);
        self.computes(room, 0..TOKENS, true);
    }

    /// The target's offer is heard, and the answer to it, and that it is ready.
    pub(crate) fn reconnects(&mut self) {
        self.arrives(1, is_offer);
        self.arrives(0, is_answer);
        self.arrives(1, is_ready);
    }

    /// A timer of the target for a room: it fails now, and later is fenced and freed.
    pub(crate) fn gives_up_and_frees(&mut self, room: u64) {
        self.receiver(|r, cx| r.abort(cx, key(room), Reason::Deadline, false));
        self.now += Span::s(6);
        self.receiver(|r, cx| r.wake(cx));
        assert!(self.news.contains(&News::Released(key(room))), "fenced and freed");
        self.mark();
    }

    /// The same, with an offer made while the room was live: the answer comes, and the word that the target is ready, if it is.
    pub(crate) fn frees_with_an_offer_under_way(&mut self, room: u64) {
        self.gives_up_and_frees(room);
        self.arrives(1, is_offer);
        self.arrives(0, is_answer);
        if self.said[1].iter().any(is_ready) {
            self.arrives(1, is_ready);
        }
    }

    /// Both sides end a room that the initiator does not know yet: it posted nothing, and the target frees for its saying so.
    pub(crate) fn ends_unknown(&mut self, room: u64) {
        self.receiver(|r, cx| r.abort(cx, key(room), Reason::Aborted, false));
        self.sender(|s, cx| s.abort(cx, key(room), Reason::Aborted, false));
        let report = Report { delivered: false, clean: true };
        self.arrives(0, |m| *m == Message::Report { key: key(room), report });
        assert!(self.news.contains(&News::Released(key(room))), "freed without a fence");
        self.mark();
    }

    /// Free pages of the target hold a mark.
    pub(crate) fn mark(&mut self) {
        let pool = &self.receiver.memory().ranks[0].pools[0];
        let place = pages(&pool.grid);
        self.fabrics.host(1).stamp(pool.buf, &place.0, place.1).unwrap();
    }

    /// Whether nobody wrote to them since.
    pub(crate) fn is_marked(&self) -> bool {
        let pool = &self.receiver.memory().ranks[0].pools[0];
        let place = pages(&pool.grid);
        self.fabrics.host_ref(1).holds(pool.buf, &place.0, place.1).unwrap()
    }

    /// Whether decode has a room's KV in place.
    pub(crate) fn holds(&self, room: u64) -> bool {
        if self.direction == Direction::Pull {
            let (fabric, memory) = (self.fabrics.host_ref(0), self.sender.memory());
            return memory.holds(fabric, 0, &request(room), &table(room), 0..TOKENS).unwrap();
        }
        let fabric = self.fabrics.host_ref(1);
        self.receiver.memory().holds(fabric, 0, &request(room), &table(0), 0..TOKENS).unwrap()
    }
}

/// Pull: decode says Success, and does not have the room's KV.
pub(crate) fn is_lost(t: &Duo, room: u64) -> bool {
    t.news.contains(&News::Success(key(room))) && !t.holds(room)
}

pub(crate) fn pages(grid: &engine::fabric::Grid) -> (Extent, Content) {
    let len = grid.page * u64::from(PAGES);
    let place = Extent { buffers: 0..grid.buffers, at: 0, len, count: 1, step: len };
    (place, Content { seed: MARK, at: 0, per_buffer: 1 << 40, per_piece: 0 })
}

pub(crate) fn is_ask(message: &Message) -> bool {
    matches!(message, Message::Link { body: LinkBody::Ask { .. }, .. })
}
pub(crate) fn is_offer(message: &Message) -> bool {
    matches!(message, Message::Link { body: LinkBody::Offer { .. }, .. })
}

pub(crate) fn is_answer(message: &Message) -> bool {
    matches!(message, Message::Link { body: LinkBody::Answer { .. }, .. })
}

pub(crate) fn is_ready(message: &Message) -> bool {
    matches!(message, Message::Link { body: LinkBody::Ready { .. }, .. })
}

pub(crate) fn is_publish(message: &Message) -> bool {
    matches!(message, Message::Publish(_))
}

pub(crate) fn is_produced(message: &Message) -> bool {
    matches!(message, Message::Produced { .. })
}
