//! What the real registry handles, against a bare ROUTER that echoes the same frames.
//!
//! 64 clients (4 routers, 30 prefill, 30 decode) with a DEALER each, in 2 threads, over TCP on this host. Requests come at a fixed rate, whatever has
//! become of earlier ones: Create, two Assign, Publish, Report, Done, with the heartbeats and acknowledgements that real clients
//! send. Each message leaves at once, in a frame of its own: clients under load would put many into one. The frames that clients sent
//! are then sent to the echo, at their times.
//!
//! - Capacity: the most requests per second over rising rates; of the echo, the frames of those requests, sent faster and faster.
//! - Latency at half the registry's capacity: from when a message should leave its client until it is at its addressee; of the echo,
//!   until the frame is back.
//!
//! - Work: processor time of the server's thread for a request, the registry's over the echo's. Clients, registry and ZeroMQ's own threads
//!   share this machine's processors, so that capacity on few of them is also the clients', who have more to do than to replay frames.
//!
//! Runs alternate. Printed are medians over the runs, with the least and the greatest. In the environment: RUNS (7), MS of a run (1000), and
//! RATE, the first that is tried (4000 a second).

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};
use std::thread;

use engine::driver::{self, Context, Driver, DriverConfig, Identity, Link, LinkConfig, Socket};
use engine::fabric::Absent;
use engine::id::{InstanceId, NodeId, Page, RequestId, Room};
use engine::node::{Outbox, Request};
use engine::registry::*;
use engine::time::{Span, Time};

const ROUTERS: usize = 4;
const SIDE: usize = 30;
const NODES: usize = ROUTERS + 2 * SIDE;
const THREADS: usize = 2;
/// From a room's pages to its end at decode.
const GENERATION: Span = Span::ms(10);
/// Room ids whose times are kept apart.
const STAMPS: usize = 1 << 20;
/// A run that takes longer has lost something.
const PATIENCE: Span = Span::s(60);

/// Frames of one client that are to be sent, each with its time since the start.
type Log = Vec<(Span, Vec<u8>)>;

/// One run against the registry or the echo.
struct Run {
    /// Processor time of the server's thread for a request, microseconds.
    work_us: f64,
    /// Requests or frames handled per second, from the first one's time to the end of the last one.
    rooms_per_s: f64,
    frames_per_s: f64,
    frames: usize,
    bytes: usize,
    /// Picoseconds, sorted.
    latencies: Vec<u64>,
    logs: Vec<Log>,
}

impl Run {
    fn p99_us(&self) -> f64 {
        self.latencies[self.latencies.len() * 99 / 100] as f64 / 1e6
    }
    fn p50_us(&self) -> f64 {
        self.latencies[self.latencies.len() / 2] as f64 / 1e6
    }
}

fn seconds(span: Span) -> f64 {
    span.0 as f64 / 1e12
}

/// What the threads of one run share.
struct Shared {
    /// When the first request comes; [`Time::NEVER`] while clients register.
    start: AtomicU64,
    interval: Span,
    rooms: u64,
    published: Vec<AtomicU64>,
    finished: Vec<AtomicU64>,
    /// Rooms that are over, or frames that came back.
    over: AtomicU64,
    /// Threads that are ready, and servers that may stop.
    ready: AtomicU64,
    stop: AtomicBool,
}

impl Shared {
    fn new(interval: Span, rooms: u64) -> Self {
        let stamps = || (0..STAMPS).map(|_| AtomicU64::new(0)).collect();
        Self {
            start: AtomicU64::new(Time::NEVER.0),
            interval,
            rooms,
            published: stamps(),
            finished: stamps(),
            over: AtomicU64::new(0),
            ready: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        }
    }

    fn start(&self) -> Time {
        Time(self.start.load(Acquire))
    }

    /// When a room's request should come.
    fn arrival(&self, room: u64) -> Time {
        self.start() + self.interval * room
    }

    /// Lets the threads begin once all are ready.
    fn begin(&self) {
        let since = driver::now();
        while self.ready.load(Relaxed) < THREADS as u64 {
            assert!(driver::now().since(since) < PATIENCE, "clients do not get ready");
            thread::sleep(std::time::Duration::from_millis(1));
        }
        self.start.store((driver::now() + Span::ms(20)).0, Release);
    }
}

/// Lets the server end when the run does, also by a panic.
struct Stop<'a>(&'a Shared);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Relaxed);
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
    let first = |i: u64| Page((key.room.0 * 7 + i * 977) as u32 % 16_000 + 1);
    let runs = (0..10).map(|i| PageRun { first: first(i), count: 4 }).collect();
    PageList {
        key,
        fence_epoch: 0,
        slot: (key.room.0 % 512) as u16,
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

fn identity(node: usize) -> Identity {
    Identity::new(NodeId(node as u32 + 1), &format!("node-{node}")).expect("valid")
}

fn dealer(context: &Context, address: &str, node: usize) -> Socket {
    let socket = context.socket(zmq::DEALER).expect("a socket");
    socket.set_identity(&identity(node).bytes()).expect("an identity");
    socket.set_sndhwm(8192).expect("an option");
    socket.set_rcvhwm(8192).expect("an option");
    socket.set_linger(0).expect("an option");
    socket.connect(address).expect("an address");
    socket
}

/// A client with what its role must do with rooms, moving no data.
struct Peer {
    node: usize,
    role: Role,
    socket: Socket,
    client: Client,
    out: Outbox,
    events: VecDeque<ClientEvent>,
    members: Vec<Option<InstanceId>>,
    known: BTreeSet<InstanceId>,
    generating: VecDeque<(Time, RoomKey)>,
    log: Log,
    latencies: Vec<u64>,
}

impl Peer {
    fn new(context: &Context, address: &str, node: usize) -> Self {
        let role = match node {
            _ if node < ROUTERS => Role::Router,
            _ if node < ROUTERS + SIDE => Role::Prefill,
            _ => Role::Decode,
        };
        let mut client =
            Client::new(role, (role != Role::Router).then(facts), SessionConfig::default(), driver::life());
        client.start(driver::now());
        Self {
            node,
            role,
            socket: dealer(context, address, node),
            client,
            out: Outbox::default(),
            events: VecDeque::new(),
            members: vec![None; NODES],
            known: BTreeSet::new(),
            generating: VecDeque::new(),
            log: Vec::new(),
            latencies: Vec::new(),
        }
    }

    fn is_ready(&self) -> bool {
        self.client.is_joined()
            && (self.role != Role::Router || self.members.iter().flatten().count() == 2 * SIDE)
    }

    fn create(&mut self, room: u64, shared: &Shared) {
        let (prefill, decode) =
            (ROUTERS + room as usize % SIDE, ROUTERS + SIDE + (room as usize * 7 / 3) % SIDE);
        let request = Request {
            id: RequestId(room),
            prompt: 2560,
            output: 300,
            tenant: 0,
            blocks: (room * 5..room * 5 + 5).collect(),
        };
        let member = |node: usize| self.members[node].expect("joined");
        let key = RoomKey { room: Room(room), attempt: 0 };
        let message = Message::Create { key, prefill: member(prefill), decode: member(decode), request };
        self.say(&message, shared);
    }

    /// In a frame of its own.
    fn say(&mut self, message: &Message, shared: &Shared) {
        self.client.send(message);
        self.flush(driver::now(), shared);
    }

    fn flush(&mut self, now: Time, shared: &Shared) {
        self.client.flush(now, &mut self.out);
        for (_, frame) in self.out.frames() {
            if shared.start() <= now {
                self.log.push((now.since(shared.start()), frame.to_vec()));
            }
            // What does not fit into the queue the session sends again.
            let _ = self.socket.send(frame, zmq::DONTWAIT);
        }
        self.out.clear();
    }

    /// Takes what has come. Whether something has.
    fn receive(&mut self, shared: &Shared) -> bool {
        let mut frame = zmq::Message::new();
        let mut worked = false;
        while self.socket.recv(&mut frame, zmq::DONTWAIT).is_ok() {
            worked = true;
            let now = driver::now();
            self.client.receive(now, &frame, &mut self.events);
            while let Some(event) = self.events.pop_front() {
                self.take(now, event, shared);
            }
        }
        worked
    }

    fn took(&mut self, now: Time, since: Time) {
        self.latencies.push(now.since(since).0);
    }

    fn take(&mut self, now: Time, event: ClientEvent, shared: &Shared) {
        let message = match event {
            ClientEvent::Message(message) => message,
            ClientEvent::Registered(_) => return,
            event => panic!("node {}: {event:?}", self.node),
        };
        match message {
            Message::Joined(member) => self.members[member.node.index() - 1] = Some(member.instance),
            Message::Assign { key, peer, .. } => {
                self.took(now, shared.arrival(key.room.0));
                if self.known.insert(peer) {
                    self.say(&Message::Query { instance: peer }, shared);
                }
                if self.role == Role::Decode {
                    shared.published[key.room.0 as usize % STAMPS].store(now.0, Relaxed);
                    self.say(&Message::Publish(pages(key)), shared);
                    self.generating.push_back((now + GENERATION, key));
                }
            }
            Message::Publish(list) => {
                let since = shared.published[list.key.room.0 as usize % STAMPS].load(Relaxed);
                self.took(now, Time(since));
                let report = Report { delivered: true, clean: true };
                self.say(&Message::Report { key: list.key, report }, shared);
            }
            Message::Done { key, outcome } => {
                assert_eq!(outcome, Outcome::Finished);
                let since = shared.finished[key.room.0 as usize % STAMPS].load(Relaxed);
                self.took(now, Time(since));
                shared.over.fetch_add(1, Relaxed);
            }
            _ => {}
        }
    }

    /// Does what is due.
    fn turn(&mut self, shared: &Shared) {
        let now = driver::now();
        while self.generating.front().is_some_and(|(at, _)| *at <= now) {
            let Some((at, key)) = self.generating.pop_front() else { break };
            shared.finished[key.room.0 as usize % STAMPS].store(at.0, Relaxed);
            self.say(&Message::Done { key, outcome: Outcome::Finished }, shared);
        }
        if self.client.deadline() <= now {
            self.flush(now, shared);
        }
    }
}

/// Leaves the processor to others until there may be something to do.
fn idle(until: Time, sockets: &[&Socket]) {
    if until.since(driver::now()) < Span::ms(1) {
        thread::yield_now();
        return;
    }
    let mut items: Vec<_> = sockets.iter().map(|socket| socket.as_poll_item(zmq::POLLIN)).collect();
    let _ = zmq::poll(&mut items, 1);
}

/// Drives every second client; when they are done, they hold what they recorded.
fn clients(address: &str, thread: usize, shared: &Shared) -> Vec<Peer> {
    let context = Context::new();
    let mine = (0..NODES).filter(|node| node % THREADS == thread);
    let mut all: Vec<Peer> = mine.map(|node| Peer::new(&context, address, node)).collect();
    let mut rooms = (0..shared.rooms).filter(|room| *room as usize % ROUTERS % THREADS == thread).peekable();
    let mut told = false;
    while shared.over.load(Relaxed) < shared.rooms {
        let now = driver::now();
        let began = shared.start() <= now;
        if began {
            let over = shared.over.load(Relaxed);
            assert!(now.since(shared.start()) < PATIENCE, "{over} of {} rooms are over", shared.rooms);
            while let Some(room) = rooms.next_if(|room| shared.arrival(*room) <= now) {
                let router = room as usize % ROUTERS;
                all.iter_mut().find(|client| client.node == router).expect("a router").create(room, shared);
            }
        }
        let mut worked = false;
        for client in &mut all {
            worked |= client.receive(shared);
            client.turn(shared);
        }
        if !told && all.iter().all(Peer::is_ready) {
            told = true;
            shared.ready.fetch_add(1, Relaxed);
        }
        if !worked {
            let generated =
                all.iter().filter_map(|client| client.generating.front()).map(|(at, _)| *at).min();
            let next = rooms.peek().map_or(Time::NEVER, |room| shared.arrival(*room));
            let sockets: Vec<&Socket> = all.iter().map(|client| &client.socket).collect();
            idle(if began { next.min(generated.unwrap_or(Time::NEVER)) } else { Time::NEVER }, &sockets);
        }
    }
    all
}

/// The real registry: `rate` requests a second for `span`.
fn registry(rate: f64, span: Span) -> Run {
    let rooms = (rate * seconds(span)).ceil() as u64;
    let shared = Shared::new(Span((1e12 / rate) as u64), rooms);
    let link = Link::bind(&Context::new(), &LinkConfig::default(), "tcp://127.0.0.1:*").expect("a port");
    let address = link.address().expect("bound");
    let node = Registry::new(driver::life(), RegistryConfig::default());
    let mut server = Driver::new(node, Absent, link, DriverConfig::default()).expect("a driver");
    let (shared, address) = (&shared, address.as_str());
    thread::scope(|scope| {
        let _stop = Stop(shared);
        let work = scope.spawn(move || {
            server.start().expect("it starts");
            while !shared.stop.load(Relaxed) {
                server.turn(&[], driver::now() + Span::ms(20)).expect("it turns");
            }
            processor_s()
        });
        let threads: Vec<_> =
            (0..THREADS).map(|thread| scope.spawn(move || clients(address, thread, shared))).collect();
        shared.begin();
        let ended: Vec<Peer> =
            threads.into_iter().flat_map(|thread| thread.join().expect("clients")).collect();
        let took = seconds(driver::now().since(shared.start()));
        shared.stop.store(true, Relaxed);
        let work = work.join().expect("the registry");
        let (mut latencies, mut logs) = (Vec::new(), vec![Log::new(); NODES]);
        for client in ended {
            latencies.extend(client.latencies);
            logs[client.node] = client.log;
        }
        run(took, work, rooms, latencies, logs)
    })
}

/// Processor time that this thread has had, in seconds.
fn processor_s() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn run(took: f64, work: f64, rooms: u64, mut latencies: Vec<u64>, logs: Vec<Log>) -> Run {
    latencies.sort_unstable();
    let frames = logs.iter().map(Vec::len).sum::<usize>();
    let bytes = logs.iter().flatten().map(|(_, frame)| frame.len()).sum();
    Run {
        rooms_per_s: rooms as f64 / took,
        work_us: work * 1e6 / rooms as f64,
        frames_per_s: frames as f64 / took,
        frames,
        bytes,
        latencies,
        logs,
    }
}

/// What comes goes back to where it came from.
fn echo_server(socket: &Socket, shared: &Shared) {
    while !shared.stop.load(Relaxed) {
        let _ = zmq::poll(&mut [socket.as_poll_item(zmq::POLLIN)], 20);
        loop {
            let (mut from, mut frame) = (zmq::Message::new(), zmq::Message::new());
            if socket.recv(&mut from, zmq::DONTWAIT).is_err() {
                break;
            }
            socket.recv(&mut frame, 0).expect("parts come together");
            socket.send(from, zmq::SNDMORE).expect("room in the queue");
            socket.send(frame, 0).expect("room in the queue");
        }
    }
}

/// Sends every second client's frames at their times, `faster` times as fast.
fn players(address: &str, thread: usize, shared: &Shared, logs: &[Log], faster: f64) -> Vec<u64> {
    struct Player<'a> {
        socket: Socket,
        log: &'a Log,
        sent: usize,
        back: usize,
    }
    let context = Context::new();
    let due = |at: &Span| shared.start() + Span((at.0 as f64 / faster) as u64);
    let mut all: Vec<Player<'_>> = (0..NODES)
        .filter(|node| node % THREADS == thread)
        .map(|node| Player { socket: dealer(&context, address, node), log: &logs[node], sent: 0, back: 0 })
        .collect();
    // A first frame there and back: connected.
    for player in &all {
        player.socket.send("", 0).expect("room in the queue");
        player.socket.recv_bytes(0).expect("an echo");
    }
    shared.ready.fetch_add(1, Relaxed);
    let (mut latencies, mut frame) = (Vec::new(), zmq::Message::new());
    while shared.over.load(Relaxed) < shared.rooms {
        let now = driver::now();
        if now < shared.start() {
            thread::yield_now();
            continue;
        }
        assert!(now.since(shared.start()) < PATIENCE, "frames are lost");
        let (mut worked, mut next) = (0, Time::NEVER);
        for player in &mut all {
            while player.socket.recv(&mut frame, zmq::DONTWAIT).is_ok() {
                latencies.push(driver::now().since(due(&player.log[player.back].0)).0);
                player.back += 1;
                worked += 1;
            }
            while let Some((at, frame)) = player.log.get(player.sent) {
                if due(at) > now || player.socket.send(frame.as_slice(), zmq::DONTWAIT).is_err() {
                    next = next.min(due(at));
                    break;
                }
                player.sent += 1;
            }
        }
        shared.over.fetch_add(worked, Relaxed);
        if worked == 0 {
            let sockets: Vec<&Socket> = all.iter().map(|player| &player.socket).collect();
            idle(next, &sockets);
        }
    }
    latencies
}

/// The echo, with the frames of a run of the registry.
fn echo(of: &Run, faster: f64) -> Run {
    let shared = Shared::new(Span(0), of.frames as u64);
    let context = Context::new();
    let socket = context.socket(zmq::ROUTER).expect("a socket");
    socket.set_sndhwm(8192).expect("an option");
    socket.set_rcvhwm(8192).expect("an option");
    socket.bind("tcp://127.0.0.1:*").expect("a port");
    let address = socket.get_last_endpoint().expect("bound").expect("text");
    let (shared, address, logs) = (&shared, address.as_str(), of.logs.as_slice());
    thread::scope(|scope| {
        let _stop = Stop(shared);
        let work = scope.spawn(move || {
            echo_server(&socket, shared);
            processor_s()
        });
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| scope.spawn(move || players(address, thread, shared, logs, faster)))
            .collect();
        shared.begin();
        let latencies: Vec<u64> =
            threads.into_iter().flat_map(|thread| thread.join().expect("players")).collect();
        let took = seconds(driver::now().since(shared.start()));
        shared.stop.store(true, Relaxed);
        let work = work.join().expect("the echo");
        let rooms = (of.rooms_per_s * of.frames as f64 / of.frames_per_s).round() as u64;
        run(took, work, rooms, latencies, of.logs.clone())
    })
}

/// Raises a rate until less than 0.8 of it are handled. The rate at which most were handled.
fn best(mut rate: f64, mut handled: impl FnMut(f64) -> (f64, f64)) -> f64 {
    let mut best = (0.0, rate);
    loop {
        let (offered, done) = handled(rate);
        if done > best.0 {
            best = (done, rate);
        }
        if done < 0.8 * offered {
            return best.1;
        }
        rate *= 1.3;
    }
}

/// Median, least and greatest.
fn spread(values: &[f64]) -> (f64, f64, f64) {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    (sorted[sorted.len() / 2], sorted[0], sorted[sorted.len() - 1])
}

fn show(what: &str, values: &[f64]) {
    let (median, least, greatest) = spread(values);
    println!("{what:<58}{median:>12.2}   [{least:.2}, {greatest:.2}]");
}

fn main() {
    let number = |name: &str, default: f64| {
        std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    let (runs, span) = (number("RUNS", 7.0) as usize, Span::ms(number("MS", 1000.0) as u64));
    let rate = best(number("RATE", 4000.0), |rate| {
        let run = registry(rate, span);
        eprintln!("registry: {rate:.0} requests/s offered, {:.0} handled", run.rooms_per_s);
        (rate, run.rooms_per_s)
    });
    let sample = registry(rate, span);
    println!(
        "a request is {:.1} frames of clients, {:.0} bytes each",
        sample.frames_per_s / sample.rooms_per_s,
        sample.bytes as f64 / sample.frames as f64
    );
    let offered = sample.frames_per_s;
    let faster = best(1.0, |faster| {
        let run = echo(&sample, faster);
        eprintln!("echo: {:.0} frames/s offered, {:.0} handled", offered * faster, run.frames_per_s);
        (offered * faster, run.frames_per_s)
    });

    let (mut real, mut bare, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    let [mut work, mut echoing, mut share] = [const { Vec::new() }; 3];
    for _ in 0..runs {
        let run = registry(rate, span);
        let echo = echo(&run, faster);
        real.push(run.rooms_per_s);
        bare.push(echo.rooms_per_s);
        ratios.push(run.rooms_per_s / echo.rooms_per_s);
        work.push(run.work_us);
        echoing.push(echo.work_us);
        share.push(echo.work_us / run.work_us);
    }
    show("registry, processor time of its thread for a request, us", &work);
    show("echo, the same", &echoing);
    show("requests of a processor second, over the echo's", &share);
    show("registry, requests/s", &real);
    show("echo of the same frames, requests/s", &bare);
    show("ratio (wanted: 0.6 or more)", &ratios);

    let half = spread(&real).0 / 2.0;
    let [mut real, mut bare, mut ratios, mut real50, mut bare50] = [const { Vec::new() }; 5];
    for _ in 0..runs {
        let run = registry(half, span);
        let echo = echo(&run, 1.0);
        real.push(run.p99_us());
        bare.push(echo.p99_us());
        real50.push(run.p50_us());
        bare50.push(echo.p50_us());
        ratios.push(run.p99_us() / echo.p99_us());
    }
    println!("at {half:.0} requests/s");
    show("registry, p50, us", &real50);
    show("echo, p50, us", &bare50);
    show("registry, p99, us", &real);
    show("echo, p99, us", &bare);
    show("ratio of p99 (wanted: 2 or less)", &ratios);
}
