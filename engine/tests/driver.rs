//! The real driver over real sockets: joining, restarts, bad frames and identities, back-pressure.

use engine::driver::{self, Context, Driver, DriverConfig, Identity, Link, LinkConfig, LinkError};
use engine::fabric::Absent;
use engine::id::{NodeId, RequestId};
use engine::node::{Input, Node, Outbox, Reason, Request, RouterConfig, RouterNode, Step};
use engine::policy::RoutingPolicy;
use engine::registry::{MAX_FRAME, Registry, RegistryConfig, Role, SessionConfig};
use engine::time::{Span, Time};

type Hub = Driver<Registry, Absent>;
type Spoke = Driver<RouterNode, Absent>;

fn session() -> SessionConfig {
    SessionConfig { ack_delay: Span::ms(5), retransmit: Span::ms(50), ..SessionConfig::default() }
}

fn hub(context: &Context, epoch: u32, address: &str) -> Hub {
    let config = RegistryConfig { lease: Span::s(5), session: session(), ..RegistryConfig::default() };
    let link = Link::bind(context, &LinkConfig::default(), address).expect("binds");
    let mut hub =
        Driver::new(Registry::new(epoch, config), Absent, link, DriverConfig::default()).expect("driver");
    hub.start().expect("starts");
    hub
}

fn spoke(context: &Context, number: u32, life: u32, address: &str) -> Spoke {
    let identity = Identity::new(NodeId(number), "router").expect("identity");
    let link = Link::connect(context, &LinkConfig::default(), address, &identity).expect("connects");
    let config = RouterConfig {
        routing: RoutingPolicy::RoundRobin,
        session: session(),
        life,
        context_len: 4096,
        request_deadline: Span::s(5),
        patience: Span::ms(50),
        ..RouterConfig::default()
    };
    let mut spoke =
        Driver::new(RouterNode::new(config), Absent, link, DriverConfig::default()).expect("driver");
    spoke.start().expect("starts");
    spoke
}

/// Drives both by turns until it holds; fails after ten seconds.
#[track_caller]
fn until(hub: &mut Hub, spokes: &mut [&mut Spoke], mut holds: impl FnMut(&Hub, &[&mut Spoke]) -> bool) {
    let end = driver::now() + Span::s(10);
    while !holds(hub, spokes) {
        assert!(driver::now() < end, "it does not come to that");
        hub.turn(&[], driver::now() + Span::ms(1)).expect("turn");
        for spoke in spokes.iter_mut() {
            spoke.turn(&[], driver::now() + Span::ms(1)).expect("turn");
        }
    }
}

fn routers(hub: &Hub) -> usize {
    hub.node().instances().filter(|(_, role, _)| *role == Role::Router).count()
}

#[test]
fn nodes_join_and_leave_over_tcp() {
    let context = Context::new();
    let mut hub = hub(&context, 1, "tcp://127.0.0.1:*");
    let address = hub.link().address().expect("address");
    let (mut a, mut b) = (spoke(&context, 1, 1, &address), spoke(&context, 2, 1, &address));
    until(&mut hub, &mut [&mut a, &mut b], |hub, _| routers(hub) == 2);
    a.shut_down().expect("shutdown");
    until(&mut hub, &mut [&mut a, &mut b], |hub, _| routers(hub) == 1);
    assert!(hub.stats().sleeps > 0 && hub.stats().frames > 0);
    assert_eq!(hub.link().stats().refused + hub.link().stats().malformed, 0);
}

#[test]
fn records_have_their_time_and_deadlines_wake() {
    let context = Context::new();
    // Nobody is there: the request waits for its patience, and that deadline must wake the node.
    let mut spoke = spoke(&context, 1, 1, "tcp://127.0.0.1:9");
    let before = driver::now();
    let request = Request { id: RequestId(3), prompt: 10, output: 10, ..Request::default() };
    spoke.arrive(&request).expect("arrives");
    let mut ended: Option<(Time, Step)> = None;
    while ended.is_none() && driver::now() < before + Span::s(10) {
        spoke.turn(&[], driver::now() + Span::s(1)).expect("turn");
        ended = spoke.records().map(|(at, record)| (at, record.step)).next_back();
    }
    let (at, step) = ended.expect("a record");
    assert_eq!(step, Step::Failed(Reason::NoInstance));
    let waited = at.since(before);
    assert!(waited >= Span::ms(50) && waited < Span::s(1), "{waited:?}");
}

#[test]
fn a_restarted_registry_finds_its_clients_again() {
    let (context, dying) = (Context::new(), Context::new());
    let mut first = hub(&dying, 1, "tcp://127.0.0.1:*");
    let address = first.link().address().expect("address");
    let mut node = spoke(&context, 1, 1, &address);
    until(&mut first, &mut [&mut node], |hub, _| routers(hub) == 1);
    let before: Vec<_> = first.node().instances().collect();
    drop(first);
    // Waits until its port is free.
    drop(dying);
    // Frames for the dead registry wait in the socket, and reach the new one: stale, and harmless.
    for _ in 0..20 {
        node.turn(&[], driver::now() + Span::ms(20)).expect("turn");
    }
    let mut second = hub(&context, 2, &address);
    until(&mut second, &mut [&mut node], |hub, _| routers(hub) == 1);
    assert_eq!(second.node().instances().collect::<Vec<_>>(), before, "the same instance came back");
}

#[test]
fn a_restarted_node_takes_its_place() {
    let context = Context::new();
    let mut hub = hub(&context, 1, "tcp://127.0.0.1:*");
    let address = hub.link().address().expect("address");
    let mut old = spoke(&context, 1, 7, &address);
    until(&mut hub, &mut [&mut old], |hub, _| routers(hub) == 1);
    let before: Vec<_> = hub.node().instances().collect();
    // The old one hangs with its connection open, as a stopped process does.
    let mut new = spoke(&context, 1, 8, &address);
    until(&mut hub, &mut [&mut new], |hub, _| {
        let present: Vec<_> = hub.node().instances().collect();
        present.len() == 1 && present != before
    });
    drop(old);
}

#[test]
fn what_is_no_frame_or_no_node_is_counted_and_dropped() {
    let context = Context::new();
    let mut hub = hub(&context, 1, "tcp://127.0.0.1:*");
    let address = hub.link().address().expect("address");
    let mut node = spoke(&context, 1, 1, &address);
    until(&mut hub, &mut [&mut node], |hub, _| routers(hub) == 1);
    let stranger = |identity: Option<&[u8]>| {
        let socket = context.socket(zmq::DEALER).expect("socket");
        socket.set_linger(1000).expect("linger");
        if let Some(identity) = identity {
            socket.set_identity(identity).expect("identity");
        }
        socket.connect(&address).expect("connects");
        socket
    };
    let fine = Identity::new(NodeId(2), "decode-0").expect("identity").bytes();
    // Another name under a number that is in use.
    let thief = Identity::new(NodeId(1), "thief").expect("identity").bytes();
    let strangers = [stranger(None), stranger(Some(b"somebody")), stranger(Some(&thief))];
    for socket in &strangers {
        socket.send("hello", 0).expect("sends");
    }
    let known = stranger(Some(&fine));
    known.send(vec![0; MAX_FRAME + 1], 0).expect("sends");
    known.send_multipart(["two", "parts"], 0).expect("sends");
    known.send("", 0).expect("sends");
    known.send(vec![0xff; 300], 0).expect("sends");
    until(&mut hub, &mut [&mut node], |hub, _| {
        let link = hub.link().stats();
        // What is one part reaches the registry, which finds that it is none of its frames.
        (link.refused, link.malformed, hub.node().stats().malformed) == (3, 2, 2)
    });
    // ZeroMQ cuts off who sends more than anybody may.
    known.send(vec![0; 4 << 20], 0).expect("sends");
    node.shut_down().expect("shutdown");
    until(&mut hub, &mut [&mut node], |hub, _| routers(hub) == 0);
}

/// Sends far more than anybody takes.
struct Flood(u32);

impl Node for Flood {
    fn handle(&mut self, cx: &mut engine::node::Cx<'_>, input: Input<'_>) {
        if matches!(input, Input::Start) {
            send(cx.out, self.0);
        }
    }
    fn flush(&mut self, _now: Time, _out: &mut Outbox) {}
    fn deadline(&self) -> Option<Time> {
        None
    }
    fn held(&self) -> engine::node::Held {
        engine::node::Held::default()
    }
}

fn send(out: &mut Outbox, count: u32) {
    for _ in 0..count {
        out.send(engine::registry::REGISTRY, |frame| frame.resize(1000, 7));
    }
}

#[test]
fn a_full_queue_loses_frames_and_blocks_nobody() {
    let context = Context::new();
    let config = LinkConfig { send_queue: 100, linger: Span(0), ..LinkConfig::default() };
    let identity = Identity::new(NodeId(1), "flood").expect("identity");
    // Nobody listens there.
    let link = Link::connect(&context, &config, "tcp://127.0.0.1:9", &identity).expect("connects");
    let mut flood = Driver::new(Flood(1000), Absent, link, DriverConfig::default()).expect("driver");
    let before = driver::now();
    flood.start().expect("starts");
    assert!(driver::now().since(before) < Span::s(5));
    let stats = flood.link().stats();
    assert_eq!(stats.sent + stats.full, 1000);
    assert!(stats.sent >= 100 && stats.full > 500, "{stats:?}");
}

#[test]
fn an_address_in_use_is_said() {
    let context = Context::new();
    let hub = hub(&context, 1, "tcp://127.0.0.1:*");
    let address = hub.link().address().expect("address");
    let error = Link::bind(&context, &LinkConfig::default(), &address).err().expect("in use");
    assert!(matches!(error, LinkError::Bind { .. }));
    let text = error.to_string();
    assert!(text.contains(&address) && text.contains("another process has it"), "{text}");
    for wrong in ["nonsense", "tcp://127.0.0.1", "tcp://127.0.0.1:99999"] {
        let error = Link::bind(&context, &LinkConfig::default(), wrong).err().expect("no address");
        assert!(error.to_string().contains(wrong), "{error}");
    }
}
