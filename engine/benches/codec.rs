//! Control channel: messages as bytes, the registry's work for one message, timers.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use engine::id::{InstanceId, NodeId, Page, RequestId, Room};
use engine::node::{Input, Outbox, Request};
use engine::registry::*;
use engine::time::Time;
use engine::timers::Timers;
use std::hint::black_box;

fn key(room: u64) -> RoomKey {
    RoomKey { room: Room(room), attempt: 0 }
}

fn request(room: u64) -> Request {
    let blocks = (room * 10..room * 10 + 20).collect();
    Request { id: RequestId(room), prompt: 10_000, output: 300, tenant: 0, blocks }
}

/// `runs` runs of pages, far from each other.
fn pages(room: u64, runs: u32) -> PageList {
    PageList {
        key: key(room),
        fence_epoch: 0,
        slot: 3,
        generation: 1,
        group: 0,
        credits: 16,
        tokens: 10_000,
        offset: 0,
        total: runs * 4,
        pages: (0..runs).map(|i| PageRun { first: Page(i * 977 % 60_000), count: 4 }).collect(),
        stage: Vec::new(),
    }
}

fn report(room: u64) -> Message {
    Message::Report { key: key(room), report: Report { delivered: true, clean: true } }
}

fn codec(c: &mut Criterion) {
    let (prefill, peer) = (InstanceId(1 << 32 | 2), InstanceId(1 << 32 | 3));
    let messages = [
        ("report", report(4711)),
        ("create, 20 consecutive blocks", {
            Message::Create { key: key(4711), prefill, decode: peer, request: request(4711) }
        }),
        ("publish, 1 run", Message::Publish(pages(4711, 1))),
        ("publish, 157 runs", Message::Publish(pages(4711, 157))),
    ];
    let mut group = c.benchmark_group("codec");
    for (name, message) in &messages {
        let mut bytes = Vec::new();
        encode(message, &mut bytes);
        let (header, mut frame) = (Header { count: 1, ..Header::default() }, Vec::new());
        let mut body = (bytes.len() as u16).to_le_bytes().to_vec();
        body.extend(&bytes);
        group.bench_function(format!("{name}: encode and decode, {} B", bytes.len()), |b| {
            b.iter(|| {
                bytes.clear();
                encode(black_box(message), &mut bytes);
                decode(black_box(&bytes))
            });
        });
        group.bench_function(format!("{name}: frame and check"), |b| {
            b.iter(|| {
                frame.clear();
                header.write(black_box(&body), &mut frame);
                Frame::parse(black_box(&frame)).map(|frame| frame.header.seq)
            });
        });
    }
    group.finish();
}

/// A client that says what it is told to, without timers.
struct Sender {
    node: NodeId,
    instance: u64,
    seq: u32,
    ack: u32,
}

impl Sender {
    fn frame(&mut self, message: &Message) -> (NodeId, Vec<u8>) {
        let (mut body, mut frame) = (vec![0; 2], Vec::new());
        encode(message, &mut body);
        let len = (body.len() - 2) as u16;
        body[..2].copy_from_slice(&len.to_le_bytes());
        self.seq += 1;
        let header = Header {
            flags: FrameFlags(u8::from(self.instance == 0)),
            count: 1,
            epoch: u32::from(self.instance != 0),
            nonce: 1,
            instance: self.instance,
            seq: self.seq,
            ack: self.ack,
            beat: 1,
        };
        header.write(&body, &mut frame);
        (self.node, frame)
    }
}

/// Rooms that warm the registry up, and are measured.
const ROOMS: u64 = 1000;

/// A registry with a router, a prefill and a decode instance, and the frames of rooms that go well.
fn registry() -> (Registry, Vec<(NodeId, Vec<u8>)>) {
    let mut registry = Registry::new(1, RegistryConfig::default());
    let mut out = Outbox::default();
    let facts = Some(Box::new(Facts { fingerprint: 1, ..Facts::default() }));
    let roles = [(Role::Prefill, facts.clone()), (Role::Decode, facts), (Role::Router, None)];
    let mut senders: Vec<Sender> =
        (1..=3).map(|node| Sender { node: NodeId(node), instance: 0, seq: 0, ack: 0 }).collect();
    for (sender, (role, facts)) in senders.iter_mut().zip(roles) {
        let (from, bytes) = sender.frame(&Message::Register { role, claim: InstanceId(0), facts });
        registry.step(Time(1), Input::Frame { from, bytes: &bytes }, &mut out);
        sender.instance = 1 << 32 | u64::from(sender.node.0);
    }
    let (prefill, decode) = (InstanceId(senders[0].instance), InstanceId(senders[1].instance));
    let mut frames = Vec::new();
    for room in 0..2 * ROOMS {
        // What had come until the room began: Welcome, for the router two Joined, and two, two and one for each room.
        for (sender, (first, each)) in senders.iter_mut().zip([(1, 2), (1, 2), (3, 1)]) {
            sender.ack = first + each * room as u32;
        }
        let create = Message::Create { key: key(room), prefill, decode, request: request(room) };
        frames.push(senders[2].frame(&create));
        frames.push(senders[1].frame(&Message::Publish(pages(room, 4))));
        frames.push(senders[0].frame(&report(room)));
        frames.push(senders[1].frame(&Message::Done { key: key(room), outcome: Outcome::Finished }));
    }
    let measured = frames.split_off(frames.len() / 2);
    run(&mut registry, &frames, &mut out);
    (registry, measured)
}

fn run(registry: &mut Registry, frames: &[(NodeId, Vec<u8>)], out: &mut Outbox) {
    for (i, (from, bytes)) in frames.iter().enumerate() {
        out.clear();
        let now = Time(1_000_000 * i as u64 + 2);
        registry.step(now, Input::Frame { from: *from, bytes }, out);
    }
}

fn server(c: &mut Criterion) {
    let mut group = c.benchmark_group("registry");
    group.throughput(Throughput::Elements(ROOMS * 4));
    let mut out = Outbox::default();
    group.bench_function("one message of a room, in and out", |b| {
        b.iter_batched(
            registry,
            |(mut registry, frames)| {
                run(&mut registry, &frames, &mut out);
                assert_eq!(registry.stats().late + registry.stats().unknown_room, 0);
                registry
            },
            BatchSize::LargeInput,
        );
    });
    group.finish();
}

fn timers(c: &mut Criterion) {
    let mut timers = Timers::new();
    (0..10_000u64).for_each(|key| timers.arm(key, Time(key * 7919 % 1_000_003)));
    let mut next = 10_000u64;
    c.bench_function("timers/arm and cancel among 10,000", |b| {
        b.iter(|| {
            timers.arm(next, Time(next * 7919 % 1_000_003));
            timers.cancel(next);
            next += 1;
        });
    });
    let mut next = 2_000_000u64;
    c.bench_function("timers/arm and expire among 10,000", |b| {
        b.iter(|| {
            next += 100;
            let fired = timers.expired(Time(next));
            timers.arm(fired.unwrap_or(next), Time(next + next * 7919 % 1_000_003));
        });
    });
}

criterion_group!(benches, codec, server, timers);
criterion_main!(benches);
