//! Plays a [`Script`] to a server, open loop: 64 DEALERs of this process in two threads, frames at their times whatever becomes of earlier ones.

use std::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};
use std::thread;
use std::time::Duration;

use engine::driver::{self, Context, Driver, DriverConfig, Identity, Link, LinkConfig, Socket};
use engine::fabric::Absent;
use engine::id::NodeId;
use engine::registry::{Frame, Message, Registry, RegistryConfig, RoomKey, decode};
use engine::time::{Span, Time};

use super::script::{EPOCH, NODES, SESSION, Script, is_router, number};

const THREADS: usize = 2;
/// How often clients send and take what there is. At a fifth of it their own system calls keep two processors busy at a tenth of the load, and
/// latencies are those of the scheduler.
const TICK: Duration = Duration::from_millis(1);
/// A run in which nothing more arrives for so long has lost something.
const SILENCE: Span = Span::s(3);

/// Who answers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Server {
    /// kvrail's.
    Registry,
    /// A bare ROUTER that sends each frame back.
    Echo,
}

/// What came of a run.
pub(crate) struct Run {
    /// Requests whose end arrived at their router; of the echo, whose frames all came back.
    pub(crate) requests: u64,
    /// From when the last frame that is waited for should leave until it is there, or its message.
    pub(crate) late: Span,
    /// Processor time of the server's thread.
    pub(crate) work_s: f64,
    /// Processor time of the whole process: server, clients and ZeroMQ's threads.
    pub(crate) all_s: f64,
    /// Picoseconds, sorted: from when a frame should leave until it is back, or its message is where it should be.
    pub(crate) latencies: Vec<u64>,
}

impl Run {
    pub(crate) fn work_us(&self) -> f64 {
        self.work_s * 1e6 / self.requests.max(1) as f64
    }
    pub(crate) fn all_us(&self) -> f64 {
        self.all_s * 1e6 / self.requests.max(1) as f64
    }
    /// Microseconds.
    pub(crate) fn quantile(&self, percent: usize) -> f64 {
        self.latencies.get(self.latencies.len() * percent / 100).map_or(f64::NAN, |ps| *ps as f64 / 1e6)
    }
}

/// What the threads of a run share.
struct Shared<'a> {
    script: &'a Script,
    server: Server,
    /// Latencies are taken of what leaves from then on.
    timed_from: Option<Span>,
    start: AtomicU64,
    /// Clients that are in.
    joined: AtomicU64,
    ready: AtomicU64,
    /// Rooms whose Done arrived; of the echo, frames.
    over: AtomicU64,
    /// By room: Done arrived.
    done: Vec<AtomicBool>,
    /// When something last arrived.
    last: AtomicU64,
    stop: AtomicBool,
}

impl Shared<'_> {
    /// Of what has just arrived and should have left at `due`, if that counts.
    fn latency(&self, due: impl FnOnce() -> Option<Span>) -> Option<u64> {
        let from = self.timed_from?;
        let due = due()?;
        (from <= due).then(|| driver::now().since(self.start() + due).0)
    }
    fn start(&self) -> Time {
        Time(self.start.load(Acquire))
    }
    fn ends_at(&self) -> u64 {
        match self.server {
            Server::Registry => self.script.rooms.len() as u64,
            Server::Echo => self.script.load.iter().map(|log| log.len() as u64).sum(),
        }
    }
    fn is_over(&self) -> bool {
        let last = Time(self.last.load(Relaxed)).max(self.start());
        self.over.load(Relaxed) >= self.ends_at() || driver::now().since(last) > SILENCE
    }
}

/// Lets the server end when the run does, also by a panic.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// A thread with a name, for profiles.
fn named<'scope, T: Send + 'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    name: &str,
    work: impl FnOnce() -> T + Send + 'scope,
) -> thread::ScopedJoinHandle<'scope, T> {
    thread::Builder::new().name(name.to_owned()).spawn_scoped(scope, work).expect("a thread")
}

/// One run over `address`, which may be a wildcard.
pub(crate) fn play(script: &Script, server: Server, address: &str, timed_from: Option<Span>) -> Run {
    let shared = Shared {
        script,
        server,
        timed_from,
        start: AtomicU64::new(Time::NEVER.0),
        joined: AtomicU64::new(0),
        ready: AtomicU64::new(0),
        over: AtomicU64::new(0),
        done: script.rooms.iter().map(|_| AtomicBool::new(false)).collect(),
        last: AtomicU64::new(0),
        stop: AtomicBool::new(false),
    };
    let shared = &shared;
    let context = Context::new();
    thread::scope(|scope| {
        let _stop = Stop(&shared.stop);
        let (address, work) = match server {
            Server::Registry => {
                let link = Link::bind(&context, &LinkConfig::default(), address).expect("an address");
                let address = link.address().expect("bound");
                (address, named(scope, "server", || serve(link, shared)))
            }
            Server::Echo => {
                let socket = router(&context, address);
                let address = socket.get_last_endpoint().expect("bound").expect("text");
                (address, named(scope, "server", move || echo(&socket, shared)))
            }
        };
        let play = |thread| {
            let address = address.clone();
            named(scope, "clients", move || players(&address, thread, shared))
        };
        let threads: Vec<_> = (0..THREADS).map(play).collect();
        while shared.ready.load(Relaxed) < THREADS as u64 {
            assert!(!threads.iter().any(thread::ScopedJoinHandle::is_finished), "clients cannot join");
            thread::sleep(Duration::from_millis(1));
        }
        let before = processor_of(rustix::time::ClockId::ProcessCPUTime);
        shared.start.store((driver::now() + Span::ms(20)).0, Release);
        let mut latencies: Vec<u64> =
            threads.into_iter().flat_map(|thread| thread.join().expect("players")).collect();
        shared.stop.store(true, Relaxed);
        let work_s = work.join().expect("the server");
        let all_s = processor_of(rustix::time::ClockId::ProcessCPUTime) - before;
        latencies.sort_unstable();
        let due = match server {
            Server::Registry => script.rooms.iter().map(|times| times.done).max(),
            Server::Echo => script.load.iter().filter_map(|log| log.last()).map(|said| said.at).max(),
        };
        let due = due.unwrap_or(Span(0));
        let (over, rooms) = (shared.over.load(Relaxed), script.rooms.len() as u64);
        Run {
            requests: if server == Server::Registry { over } else { over * rooms / shared.ends_at() },
            late: Time(shared.last.load(Relaxed)).since(shared.start() + due),
            work_s,
            all_s,
            latencies,
        }
    })
}

/// Processor time that this thread has had, in seconds.
fn processor_s() -> f64 {
    processor_of(rustix::time::ClockId::ThreadCPUTime)
}

fn processor_of(clock: rustix::time::ClockId) -> f64 {
    let time = rustix::time::clock_gettime(clock);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// The production driver and registry.
fn serve(link: Link, shared: &Shared<'_>) -> f64 {
    let node = Registry::new(EPOCH, RegistryConfig { session: SESSION, ..RegistryConfig::default() });
    // As `kvrail registry` runs it.
    let config = DriverConfig { spin: Span(0), ..DriverConfig::default() };
    let mut server = Driver::new(node, Absent, link, config).expect("a driver");
    server.start().expect("it starts");
    let mut before = None;
    while !shared.stop.load(Relaxed) {
        server.turn(&[], driver::now() + Span::ms(20)).expect("it turns");
        if before.is_none() {
            shared.joined.store(server.node().instances().count() as u64, Relaxed);
            before = (shared.start() != Time::NEVER).then(processor_s);
        }
    }
    processor_s() - before.unwrap_or_default()
}

fn router(context: &Context, address: &str) -> Socket {
    let socket = context.socket(zmq::ROUTER).expect("a socket");
    socket.set_sndhwm(8192).expect("an option");
    socket.set_rcvhwm(8192).expect("an option");
    socket.bind(address).expect("an address");
    socket
}

/// What comes goes back to where it came from.
fn echo(socket: &Socket, shared: &Shared<'_>) -> f64 {
    let mut before = None;
    while !shared.stop.load(Relaxed) {
        let _ = zmq::poll(&mut [socket.as_poll_item(zmq::POLLIN)], 20);
        if before.is_none() {
            before = (shared.start() != Time::NEVER).then(processor_s);
        }
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
    processor_s() - before.unwrap_or_default()
}

fn dealer(context: &Context, address: &str, node: usize) -> Socket {
    let identity = Identity::new(NodeId(node as u32 + 1), &format!("node-{node}")).expect("valid");
    let socket = context.socket(zmq::DEALER).expect("a socket");
    socket.set_identity(&identity.bytes()).expect("an identity");
    socket.set_sndhwm(8192).expect("an option");
    socket.set_rcvhwm(8192).expect("an option");
    socket.set_linger(0).expect("an option");
    socket.connect(address).expect("an address");
    socket
}

struct Player {
    node: usize,
    socket: Socket,
    sent: usize,
    back: usize,
}

/// Plays every second client's part. Latencies.
fn players(address: &str, thread: usize, shared: &Shared<'_>) -> Vec<u64> {
    let context = Context::new();
    let mut all: Vec<Player> = (0..NODES)
        .filter(|node| node % THREADS == thread)
        .map(|node| Player { node, socket: dealer(&context, address, node), sent: 0, back: 0 })
        .collect();
    join(&all, shared);
    shared.ready.fetch_add(1, Relaxed);
    let mut latencies = Vec::new();
    while shared.start() == Time::NEVER {
        thread::yield_now();
    }
    while !shared.is_over() {
        let mut over = 0;
        for player in &mut all {
            let log = &shared.script.load[player.node];
            while let Some(said) = log.get(player.sent) {
                let due = shared.start() + said.at;
                if due > driver::now() || player.socket.send(said.frame.as_slice(), zmq::DONTWAIT).is_err() {
                    break;
                }
                player.sent += 1;
            }
            over += receive(player, shared, &mut latencies);
        }
        if over > 0 {
            shared.last.fetch_max(driver::now().0, Relaxed);
            shared.over.fetch_add(over, Relaxed);
        }
        // Looking all the time would take the processors from the server, where there are few.
        thread::sleep(TICK);
    }
    latencies
}

/// Joins as the script says, one client after the other; of the echo, a first frame there and back.
fn join(mine: &[Player], shared: &Shared<'_>) {
    if shared.server == Server::Echo {
        for player in mine {
            player.socket.send("", 0).expect("room in the queue");
            player.socket.recv_bytes(0).expect("an echo");
        }
        return;
    }
    // The id of an instance is its turn: nobody begins before the one before is in.
    let mut begun = 0;
    for (node, frame) in &shared.script.joining {
        while begun <= *node && shared.joined.load(Relaxed) < *node as u64 {
            thread::yield_now();
        }
        if let Some(player) = mine.iter().find(|player| player.node == *node) {
            player.socket.send(frame.as_slice(), 0).expect("room in the queue");
        }
        begun = begun.max(node + 1);
    }
    while shared.joined.load(Relaxed) < NODES as u64 {
        thread::yield_now();
    }
}

/// Takes what has come: requests that are over, of the echo frames. Both kinds of frames are read alike.
fn receive(player: &mut Player, shared: &Shared<'_>, latencies: &mut Vec<u64>) -> u64 {
    let (mut over, mut bytes) = (0, zmq::Message::new());
    let reads = shared.timed_from.is_some() || is_router(player.node);
    while player.socket.recv(&mut bytes, zmq::DONTWAIT).is_ok() {
        let mut done = 0;
        let frame = Frame::parse(&bytes).expect("a frame");
        for (_, segment) in frame.segments().filter(|_| reads) {
            // A piece of a longer message is none.
            let Ok(message) = decode(segment) else { continue };
            if let Message::Done { key, .. } = &message
                && shared.server == Server::Registry
                && let Some(done_before) = shared.done.get(number(*key))
            {
                done += u64::from(!done_before.swap(true, Relaxed));
            }
            if shared.server == Server::Registry {
                latencies.extend(shared.latency(|| since(shared.script, &message)));
            }
        }
        if shared.server == Server::Echo {
            done = 1;
            latencies.extend(shared.latency(|| Some(shared.script.load[player.node][player.back].at)));
            player.back += 1;
        }
        over += done;
    }
    over
}

/// When the message left that this one passes on or follows from.
fn since(script: &Script, message: &Message) -> Option<Span> {
    let times = |key: &RoomKey| script.rooms.get(number(*key));
    match message {
        Message::Assign { key, .. } => times(key).map(|times| times.create),
        Message::Publish(list) => times(&list.key).map(|times| times.publish),
        Message::Done { key, .. } => times(key).map(|times| times.done),
        _ => None,
    }
}
