//! Rules that the order of the control channel protects as well, shown on sender and receiver alone: a real sender, a real receiver and the
//! simulated fabric between them, with messages that arrive when the story says so. This is what the protocol's model assumed, and what is
//! left when a registry restarts in between. In push the initiator is prefill and the target decode; pull, where it is the other way round, has
//! the rules that are about the two ends of a link as well, and loses other things without them: what it reads from pages that are not the
//! room's any more.

use engine::fabric::{Access, Completion, Content, Extent, Fabric as _, LinkLayer, Memory};
use engine::id::{InstanceId, Page, RequestId, Room};
use engine::node::{Cx, Outbox, Reason, Request};
use engine::policy::{Direction, RailPolicy, ReplicaChoice};
use engine::registry::{LinkBody, Message, PageRun, Report, RoomKey};
use engine::time::{Span, Time};
use engine::transfer::{
    End as _, Initiator, InitiatorRoom, InstanceMemory, News, PageTable, Pairing, RoomState, Rules, Target,
    TargetRoom, TransferConfig,
};
use models::{DType, Layout, PageOrder, Parallel, presets};
use sim::fabric::{FabricEvent, Fabrics, HostSpec, PortSpec, Ready, ReadyWhat};
use sim::net::Topology;
use sim::nic::NicProfile;
use sim::queue::EventQueue;
use std::sync::Arc;

const P: InstanceId = InstanceId(1);
const D: InstanceId = InstanceId(2);
const PAGES: u32 = 9;
/// Tokens of every room: four pages.
const TOKENS: u32 = 64;
const MARK: u64 = 99;

/// One prefill and one decode instance of one rank each, and what they say. Host 0 is the initiator, host 1 the target.
struct Duo {
    direction: Direction,
    fabrics: Fabrics,
    queue: EventQueue<FabricEvent>,
    ready: Vec<Ready>,
    now: Time,
    sender: Initiator,
    receiver: Target,
    /// Said by the initiator, and by the target.
    said: [Vec<Message>; 2],
    news: Vec<News>,
    out: Outbox,
}

fn key(room: u64) -> RoomKey {
    RoomKey { room: Room(room), attempt: 1 }
}

fn table(room: u64) -> PageTable {
    // Rooms 0 and 1 have different pages at the initiator, and the same at the target: they are never there at a time.
    PageTable::new(vec![PageRun { first: Page(1 + 4 * room as u32), count: 4 }])
}

fn request(room: u64) -> Request {
    Request { id: RequestId(room), prompt: TOKENS, output: 1, ..Request::default() }
}

impl Duo {
    fn new(change: impl Fn(&mut TransferConfig)) -> Self {
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
    fn connected(change: impl Fn(&mut Rules)) -> Self {
        Self::connected_to(Direction::Push, change)
    }
    fn connected_to(direction: Direction, change: impl Fn(&mut Rules)) -> Self {
        let mut duo = Self::new(|config| {
            config.direction = direction;
            change(&mut config.rules);
        });
        duo.talk();
        duo
    }

    fn sender<T>(&mut self, call: impl FnOnce(&mut Initiator, &mut Cx<'_>) -> T) -> T {
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

    fn receiver<T>(&mut self, call: impl FnOnce(&mut Target, &mut Cx<'_>) -> T) -> T {
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
    fn arrives(&mut self, from: usize, pick: impl Fn(&Message) -> bool) {
        let at = self.said[from].iter().position(pick);
        let message = self.said[from].remove(at.expect("the message was said"));
        self.hear(from, message);
    }

    fn hear(&mut self, from: usize, message: Message) {
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
    fn talk(&mut self) {
        while let Some(from) = (0..2).find(|from| !self.said[*from].is_empty()) {
            let message = self.said[from].remove(0);
            self.hear(from, message);
        }
    }

    /// The fabric works for a while, and completions are polled as they come.
    fn run(&mut self, span: Span) {
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

    fn fail_qp(&mut self, host: usize, index: usize) {
        let qp = self.fabrics.host_ref(host).queue_pairs()[index];
        self.fabrics.fail_qp(host, qp, self.now, &mut self.queue, &mut self.ready);
        self.run(Span(0));
    }

    /// The registry assigns a room to the initiator.
    fn assign(&mut self, room: u64) -> bool {
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
    fn computes(&mut self, room: u64, tokens: std::ops::Range<u32>, last: bool) {
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
    fn opens(&mut self, room: u64) {
        let spec = TargetRoom { key: key(room), request: RequestId(room), peer: P, group: 0, tokens: TOKENS };
        let opened = match self.direction {
            Direction::Push => self.receiver(|r, cx| r.open(cx, spec, &table(0))),
            Direction::Pull => {
                self.receiver(|r, cx| r.open_shown(cx, spec) && r.attach(cx, &key(room), &table(0), 0))
            }
        };
        assert!(opened);
    }

    /// A timer of the target for a room: it fails now, and later is fenced and freed.
    fn gives_up_and_frees(&mut self, room: u64) {
        self.receiver(|r, cx| r.abort(cx, key(room), Reason::Deadline, false));
        self.now += Span::s(6);
        self.receiver(|r, cx| r.wake(cx));
        assert!(self.news.contains(&News::Released(key(room))), "fenced and freed");
        self.mark();
    }

    /// Free pages of the target hold a mark.
    fn mark(&mut self) {
        let pool = &self.receiver.memory().ranks[0].pools[0];
        let place = pages(&pool.grid);
        self.fabrics.host(1).stamp(pool.buf, &place.0, place.1).unwrap();
    }

    /// Whether nobody wrote to them since.
    fn is_marked(&self) -> bool {
        let pool = &self.receiver.memory().ranks[0].pools[0];
        let place = pages(&pool.grid);
        self.fabrics.host_ref(1).holds(pool.buf, &place.0, place.1).unwrap()
    }

    /// Whether decode has a room's KV in place.
    fn holds(&self, room: u64) -> bool {
        if self.direction == Direction::Pull {
            let (fabric, memory) = (self.fabrics.host_ref(0), self.sender.memory());
            return memory.holds(fabric, 0, &request(room), &table(room), 0..TOKENS).unwrap();
        }
        let fabric = self.fabrics.host_ref(1);
        self.receiver.memory().holds(fabric, 0, &request(room), &table(0), 0..TOKENS).unwrap()
    }
}

/// Pull: decode says Success, and does not have the room's KV.
fn is_lost(t: &Duo, room: u64) -> bool {
    t.news.contains(&News::Success(key(room))) && !t.holds(room)
}

fn pages(grid: &engine::fabric::Grid) -> (Extent, Content) {
    let len = grid.page * u64::from(PAGES);
    let place = Extent { buffers: 0..grid.buffers, at: 0, len, count: 1, step: len };
    (place, Content { seed: MARK, at: 0, per_buffer: 1 << 40, per_piece: 0 })
}

fn is_offer(message: &Message) -> bool {
    matches!(message, Message::Link { body: LinkBody::Offer { .. }, .. })
}
fn is_answer(message: &Message) -> bool {
    matches!(message, Message::Link { body: LinkBody::Answer { .. }, .. })
}
fn is_ready(message: &Message) -> bool {
    matches!(message, Message::Link { body: LinkBody::Ready { .. }, .. })
}
fn is_publish(message: &Message) -> bool {
    matches!(message, Message::Publish(_))
}
fn is_produced(message: &Message) -> bool {
    matches!(message, Message::Produced { .. })
}

#[test]
fn nothing_goes_wrong_in_order() {
    let mut t = Duo::connected(|_| {});
    for room in 0..2 {
        t.assign(room);
        t.opens(room);
        t.talk();
        t.computes(room, 0..40, false);
        t.computes(room, 40..TOKENS, true);
        t.run(Span::ms(10));
        assert!(t.news.contains(&News::Success(key(room))) && t.holds(room));
        t.receiver(|r, cx| r.finish(cx, key(room)));
        t.talk();
    }
    assert_eq!((t.receiver.held().rooms, t.sender.held().rooms, t.receiver.stats().fences), (0, 0, 0));
    // No deadline of a room that never was can pass.
    assert!(!t.receiver(|r, cx| r.expire(cx, key(7))) && !t.sender(|s, cx| s.expire(cx, key(7))));
}

/// A page list arrives, decode frees by fence, and the abort that would tell so is late: the offer must name who is live.
#[test]
fn live_list() {
    let story = |on: bool| {
        let mut t = Duo::connected(|r| r.live_list = on);
        t.assign(0);
        t.opens(0);
        t.arrives(1, is_publish);
        t.gives_up_and_frees(0);
        t.arrives(1, is_offer);
        t.arrives(0, is_answer);
        t.arrives(1, is_ready);
        t.computes(0, 0..TOKENS, true);
        t.run(Span::ms(10));
        t
    };
    assert!(story(true).is_marked());
    assert!(!story(false).is_marked(), "data lands in freed pages");
}

/// A page list arrives after the fence that freed its pages and the reconnect: its epoch must give it away.
#[test]
fn fence_epoch() {
    let story = |on: bool| {
        let mut t = Duo::connected(|r| r.fence_epoch = on);
        t.assign(0);
        t.opens(0);
        t.gives_up_and_frees(0);
        t.arrives(1, is_offer);
        t.arrives(0, is_answer);
        t.arrives(1, is_ready);
        t.arrives(1, is_publish);
        t.computes(0, 0..TOKENS, true);
        t.run(Span::ms(10));
        t
    };
    assert!(story(true).is_marked());
    assert!(!story(false).is_marked(), "data lands in freed pages");
}

/// An offer that lists a room as live is under way when decode frees the room: the answer to it must not be accepted.
#[test]
fn fence_voids_offers() {
    let story = |on: bool| {
        let mut t = Duo::connected(|r| r.fence_voids_offers = on);
        t.assign(0);
        t.opens(0);
        t.talk();
        t.computes(0, 0..16, false);
        t.fail_qp(0, 0);
        t.run(Span::ms(1));
        // The ask arrives, the offer is made while the room is live.
        t.arrives(0, |m| matches!(m, Message::Link { body: LinkBody::Ask { .. }, .. }));
        t.gives_up_and_frees(0);
        t.arrives(1, is_offer);
        t.arrives(0, is_answer);
        if let Some(at) = t.said[1].iter().position(is_ready) {
            let ready = t.said[1].remove(at);
            t.hear(1, ready);
        }
        t.run(Span::ms(10));
        t
    };
    assert!(story(true).is_marked());
    assert!(!story(false).is_marked(), "data lands in freed pages");
}

/// An abort for a room that is not known yet, answered with "none posted"; decode frees for it. Then the assignment arrives.
#[test]
fn tombstones() {
    let story = |on: bool| {
        let mut t = Duo::connected(|r| r.tombstones = on);
        t.opens(0);
        t.receiver(|r, cx| r.abort(cx, key(0), Reason::Aborted, false));
        t.sender(|s, cx| s.abort(cx, key(0), Reason::Aborted, false));
        t.arrives(0, |m| {
            *m == Message::Report { key: key(0), report: Report { delivered: false, clean: true } }
        });
        assert!(t.news.contains(&News::Released(key(0))), "freed without a fence");
        t.mark();
        t.assign(0);
        t.arrives(1, is_publish);
        t.computes(0, 0..TOKENS, true);
        t.run(Span::ms(10));
        t
    };
    assert!(story(true).is_marked());
    assert!(!story(false).is_marked(), "data lands in freed pages");
}

/// Decode has answered, but its end cannot receive before it has the answer: requests posted before that are lost, and come again only after
/// the ACK timeout.
#[test]
fn ready_gate() {
    let story = |on: bool| {
        let mut t = Duo::connected(|r| r.ready_gate = on);
        t.assign(0);
        t.opens(0);
        t.talk();
        t.fail_qp(0, 0);
        t.run(Span::ms(1));
        t.arrives(0, |m| matches!(m, Message::Link { body: LinkBody::Ask { .. }, .. }));
        t.arrives(1, is_offer);
        t.computes(0, 0..TOKENS, true);
        // The answer takes its time.
        t.run(Span::ms(1));
        t.talk();
        t.run(Span::ms(10));
        let early = t.fabrics.counters().dropped;
        t.run(Span::s(2));
        t.talk();
        t.run(Span::s(2));
        assert!(t.holds(0));
        early
    };
    assert_eq!(story(true), 0);
    assert!(story(false) > 0, "requests are sent to an end that cannot take them");
}

/// A part arrives, its completion is lost with the queue pair: it must not be written again.
fn seen_part_comes_again(change: impl Fn(&mut Rules)) -> Duo {
    let mut t = Duo::connected(change);
    t.assign(0);
    t.opens(0);
    t.talk();
    t.computes(0, 0..32, false);
    // Both parts of the first piece have arrived, no ACK has come back.
    while t.fabrics.host_ref(1).counters().completions < 2 {
        t.run(Span::ns(500));
    }
    t.fail_qp(0, 0);
    t.run(Span::ms(1));
    t.talk();
    t
}

#[test]
fn seen_list() {
    let story = |on: bool| {
        let mut t = seen_part_comes_again(|r| r.seen_list = on);
        t.computes(0, 32..TOKENS, true);
        t.run(Span::ms(10));
        assert!(t.news.contains(&News::Success(key(0))) && t.holds(0));
        t.receiver.stats().repeated_parts
    };
    assert_eq!(story(true), 0);
    assert!(story(false) > 0, "a part that was seen, and that decode may have appended to, is written again");
}

/// The count counts a repeated part for one that is missing. With the seen list no part is repeated, so both must be off for the loss;
/// the set is what makes the target safe whatever the initiator repeats.
#[test]
fn parts_are_a_set() {
    let story = |set: bool| {
        let mut t = seen_part_comes_again(|r| {
            r.seen_list = false;
            r.parts_are_a_set = set;
        });
        t.run(Span::ms(1));
        assert_eq!(t.receiver.stats().repeated_parts, 2);
        // Of the second piece only the part on rail 1 gets through: it has the seal.
        t.fabrics.link_down(0, engine::id::PortId(0), t.now, &mut t.queue, &mut t.ready);
        t.computes(0, 32..TOKENS, true);
        t.run(Span::ms(5));
        (t.news.contains(&News::Success(key(0))), t.holds(0))
    };
    assert_eq!(story(true), (false, false));
    assert_eq!(story(false), (true, false), "Success without all data");
}

#[test]
fn pull_nothing_goes_wrong_in_order() {
    let mut t = Duo::connected_to(Direction::Pull, |_| {});
    for room in 0..2 {
        t.opens(room);
        t.assign(room);
        t.talk();
        t.computes(room, 0..40, false);
        t.talk();
        t.computes(room, 40..TOKENS, true);
        t.talk();
        t.run(Span::ms(10));
        assert!(t.news.contains(&News::Success(key(room))) && t.holds(room));
        t.talk();
        assert!(t.news.contains(&News::Released(key(room))), "prefill has its pages back");
    }
    assert_eq!((t.receiver.held().rooms, t.sender.held().rooms, t.receiver.stats().fences), (0, 0, 0));
    assert_eq!((t.receiver.held().slots, t.sender.held().slots), (0, 0));
}

/// Prefill frees by fence what decode has the page list of, the abort is late: the offer must name who is live. Then comes the word that
/// all of it can be read.
#[test]
fn pull_live_list() {
    let story = |on: bool| {
        let mut t = Duo::connected_to(Direction::Pull, |r| r.live_list = on);
        t.assign(0);
        t.opens(0);
        t.computes(0, 0..TOKENS, true);
        t.arrives(1, is_publish);
        t.gives_up_and_frees(0);
        t.arrives(1, is_offer);
        t.arrives(0, is_answer);
        t.arrives(1, is_ready);
        t.arrives(1, is_produced);
        t.run(Span::ms(10));
        is_lost(&t, 0)
    };
    assert!(!story(true));
    assert!(story(false), "Success with what the next owner has in the pages");
}

/// The page list itself arrives after the fence that freed its pages and the reconnect.
#[test]
fn pull_fence_epoch() {
    let story = |on: bool| {
        let mut t = Duo::connected_to(Direction::Pull, |r| r.fence_epoch = on);
        t.assign(0);
        t.opens(0);
        t.computes(0, 0..TOKENS, true);
        t.gives_up_and_frees(0);
        t.arrives(1, is_offer);
        t.arrives(0, is_answer);
        t.arrives(1, is_ready);
        t.arrives(1, is_publish);
        t.arrives(1, is_produced);
        t.run(Span::ms(10));
        is_lost(&t, 0)
    };
    assert!(!story(true));
    assert!(story(false), "Success with what the next owner has in the pages");
}

/// An offer that lists a room as live is under way when prefill frees the room.
#[test]
fn pull_fence_voids_offers() {
    let story = |on: bool| {
        let mut t = Duo::connected_to(Direction::Pull, |r| r.fence_voids_offers = on);
        t.assign(0);
        t.opens(0);
        t.computes(0, 0..TOKENS, true);
        t.talk();
        t.fail_qp(0, 0);
        t.run(Span::ms(1));
        t.arrives(0, |m| matches!(m, Message::Link { body: LinkBody::Ask { .. }, .. }));
        t.gives_up_and_frees(0);
        t.arrives(1, is_offer);
        t.arrives(0, is_answer);
        if let Some(at) = t.said[1].iter().position(is_ready) {
            let ready = t.said[1].remove(at);
            t.hear(1, ready);
        }
        t.run(Span::ms(10));
        is_lost(&t, 0)
    };
    assert!(!story(true));
    assert!(story(false), "Success with what the next owner has in the pages");
}

/// An abort reaches decode before the room does, is answered with "none posted", and prefill frees for it. Then room and page list come.
#[test]
fn pull_tombstones() {
    let story = |on: bool| {
        let mut t = Duo::connected_to(Direction::Pull, |r| r.tombstones = on);
        t.opens(0);
        t.computes(0, 0..TOKENS, true);
        t.receiver(|r, cx| r.abort(cx, key(0), Reason::Aborted, false));
        t.sender(|s, cx| s.abort(cx, key(0), Reason::Aborted, false));
        t.arrives(0, |m| {
            *m == Message::Report { key: key(0), report: Report { delivered: false, clean: true } }
        });
        assert!(t.news.contains(&News::Released(key(0))), "freed without a fence");
        t.mark();
        t.assign(0);
        t.arrives(1, is_publish);
        t.arrives(1, is_produced);
        t.run(Span::ms(10));
        is_lost(&t, 0)
    };
    assert!(!story(true));
    assert!(story(false), "Success with what the next owner has in the pages");
}

/// Decode gives up with READs that were flushed: one of them may still be under way, so that only a fence frees prefill's pages.
#[test]
fn pull_honest_report() {
    let story = |on: bool| {
        let mut t = Duo::connected_to(Direction::Pull, |r| r.honest_report = on);
        t.assign(0);
        t.opens(0);
        t.computes(0, 0..TOKENS, true);
        t.talk();
        t.fail_qp(0, 0);
        t.sender(|s, cx| s.abort(cx, key(0), Reason::Aborted, true));
        t.run(Span::ms(1));
        t.arrives(0, |m| matches!(m, Message::Report { .. }));
        assert!(t.news.contains(&News::Released(key(0))));
        t.receiver.stats().fences
    };
    assert_eq!(story(true), 1);
    assert_eq!(story(false), 0, "pages are freed that a READ may still be served from");
}

/// READs are posted only when prefill's end can answer them.
#[test]
fn pull_ready_gate() {
    let story = |on: bool| {
        let mut t = Duo::new(|config| {
            config.direction = Direction::Pull;
            config.rules.ready_gate = on;
        });
        t.assign(0);
        t.opens(0);
        t.computes(0, 0..TOKENS, true);
        while let Some(at) = t.said[1].iter().position(|m| !is_ready(m)) {
            let message = t.said[1].remove(at);
            t.hear(1, message);
        }
        t.arrives(0, |m| matches!(m, Message::Link { body: LinkBody::Ask { .. }, .. }));
        t.arrives(1, is_offer);
        // The answer takes its time.
        t.run(Span::ms(1));
        t.talk();
        t.run(Span::ms(10));
        let early = t.fabrics.counters().dropped;
        t.run(Span::s(2));
        t.talk();
        t.run(Span::s(2));
        assert!(t.holds(0));
        early
    };
    assert_eq!(story(true), 0);
    assert!(story(false) > 0, "requests are sent to an end that cannot take them");
}

/// What decode is told of a room is checked: pieces that lie outside, and a rest that is not all, end the room instead of a Success on part of
/// it; what comes twice is passed over, and what comes too early is waited for.
#[test]
fn pull_pieces_are_checked() {
    use engine::registry::Piece;
    let piece = |tokens, layers| Piece { tokens, layers };
    let story = |told: &[(u32, &[Piece], bool)]| {
        let mut t = Duo::connected_to(Direction::Pull, |_| {});
        t.assign(0);
        t.opens(0);
        t.computes(0, 0..TOKENS, true);
        t.arrives(1, is_publish);
        for (before, pieces, last) in told {
            t.sender(|s, cx| s.told(cx, &key(0), *before, pieces, last.then_some(&[][..])));
        }
        t.run(Span::ms(10));
        (t.news.contains(&News::Success(key(0))), t.sender.held().rooms)
    };
    let halves = [piece(0..32, 0..4), piece(32..TOKENS, 0..4)];
    assert_eq!(story(&[(0, &halves, true)]), (true, 0));
    assert_eq!(story(&[(0, &halves[..1], false), (0, &halves, true)]), (true, 0));
    assert_eq!(
        story(&[(0, &halves[..1], false), (0, &halves[..1], false), (1, &halves[1..], true)]),
        (true, 0)
    );
    assert_eq!(story(&[(0, &halves, false), (2, &[], true)]), (true, 0));
    // A gap: the rest is told again.
    assert_eq!(story(&[(1, &halves[1..], true)]), (false, 1));
    assert_eq!(story(&[(1, &halves[1..], true), (0, &halves, true)]), (true, 0));
    for wrong in [
        &[halves[0].clone()][..],
        &[],
        &[piece(0..TOKENS + 1, 0..4)],
        &[piece(0..TOKENS, 0..5)],
        &[piece(0..TOKENS, 0..3)],
    ] {
        assert_eq!(story(&[(0, wrong, true)]), (false, 0), "{wrong:?}");
    }
}

/// The initiator gives the queue pairs up: nothing can be written any more, so what waited for that is free at once.
#[test]
fn a_close_is_a_fence() {
    let mut t = Duo::connected(|_| {});
    t.assign(0);
    t.opens(0);
    t.receiver(|r, cx| r.abort(cx, key(0), Reason::Deadline, false));
    assert!(!t.news.contains(&News::Released(key(0))), "the initiator has not reported");
    let queue_pairs = t.receiver.held().queue_pairs;
    t.hear(0, Message::Link { peer: D, body: LinkBody::Close { offer: 0 } });
    assert_eq!(t.receiver.held().queue_pairs, queue_pairs, "another offer's");
    t.hear(0, Message::Link { peer: D, body: LinkBody::Close { offer: 1 } });
    assert!(t.news.contains(&News::Released(key(0))));
    assert_eq!(t.receiver.held().queue_pairs, 0);
}

/// What a target of READs says of a room to who looks on.
#[test]
fn pull_states() {
    let mut t = Duo::connected_to(Direction::Pull, |_| {});
    let state = |t: &Duo| {
        let mut state = None;
        t.receiver.rooms(&mut |room, _, is| state = (room == key(0)).then_some(is).or(state));
        state
    };
    assert_eq!(state(&t), None);
    t.opens(0);
    assert_eq!(state(&t), Some(RoomState::WaitingForInput));
    t.computes(0, 0..40, false);
    assert_eq!(state(&t), Some(RoomState::Transferring));
}
