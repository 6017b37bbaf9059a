//! Heartbeats, leases, bounds and counts, frame by frame.

use super::codec::frame_of;
use super::net::{facts, key};
use crate::id::{InstanceId, NodeId};
use crate::node::{Input, Node, Outbox, Reason};
use crate::registry::*;
use crate::time::{Span, Time};
use std::collections::VecDeque;

/// The frames of one input: to whom, their headers and messages.
fn answers(registry: &mut Registry, now: Time, input: Input<'_>) -> Vec<(NodeId, Header, Vec<Message>)> {
    let mut out = Outbox::default();
    registry.step(now, input, &mut out);
    let read = |(to, bytes): (NodeId, &[u8])| {
        let frame = Frame::parse(bytes).unwrap();
        (to, frame.header, frame.segments().map(|(_, bytes)| decode(bytes).unwrap()).collect())
    };
    out.frames().map(read).collect()
}

/// A client's frame: the `seq`-th message of its session and those behind it.
fn said(
    registry: &mut Registry,
    at: Time,
    node: u32,
    header: Header,
    messages: &[Message],
) -> Vec<(NodeId, Header, Vec<Message>)> {
    let bytes = frame_of(messages, header);
    answers(registry, at, Input::Frame { from: NodeId(node), bytes: &bytes })
}

fn register(role: Role, claim: InstanceId) -> Message {
    let facts = (role != Role::Router).then(|| Box::new(facts(0xabc)));
    Message::Register { role, claim, facts }
}

fn ms(ms: u64) -> Time {
    Time::ZERO + Span::ms(ms)
}

const SYN: Header = Header {
    flags: FrameFlags::SYN,
    count: 0,
    epoch: 0,
    nonce: 1 << 32 | 1,
    instance: 0,
    seq: 1,
    ack: 0,
    beat: 1,
};

/// What cannot be right is dropped or answered with a reset, and counted for itself.
#[test]
fn frames_that_are_not_of_a_session_are_counted_and_change_nothing() {
    let mut registry = Registry::new(2, RegistryConfig::default());
    let welcome = said(&mut registry, ms(0), 4, SYN, &[register(Role::Router, InstanceId(0))]);
    let id = InstanceId(2 << 32 | 1);
    let (to, header, messages) = &welcome[0];
    assert_eq!((*to, header.epoch, header.nonce, header.ack, header.beat), (NodeId(4), 2, SYN.nonce, 1, 1));
    assert_eq!(messages[..], [Message::Welcome { instance: id, lease: Span::s(5) }]);
    let joined = Header { flags: FrameFlags::default(), epoch: 2, instance: id.0, seq: 2, ack: 1, ..SYN };
    let before = registry.stats();
    assert_eq!((before.frames, before.messages, before.sent), (1, 1, 1));

    assert_eq!(answers(&mut registry, ms(1), Input::Frame { from: NodeId(4), bytes: &[1, 2] }), []);
    // Of an epoch to come; in another instance's name; of an earlier epoch, session or node's life; of nobody.
    assert_eq!(said(&mut registry, ms(1), 4, Header { epoch: 3, ..joined }, &[]), []);
    assert_eq!(said(&mut registry, ms(1), 4, Header { instance: id.0 + 1, ..joined }, &[Message::Leave]), []);
    let strange = [
        (4, Header { epoch: 1, ..joined }),
        (4, Header { nonce: joined.nonce - 1, ..joined }),
        (4, Header { nonce: joined.nonce + 1, ..joined }),
        (4, Header { nonce: joined.nonce - 1, ..SYN }),
        (5, joined),
    ];
    for (node, header) in strange {
        let reset = said(&mut registry, ms(2), node, header, &[Message::Leave]);
        let flags = reset.iter().map(|(to, answer, _)| (to.0, answer.flags, answer.nonce));
        assert_eq!(flags.collect::<Vec<_>>(), [(node, FrameFlags::RESET, header.nonce)]);
    }
    // A message before Register, and one that no client sends.
    let first = Header { nonce: 9 << 32, ..SYN };
    said(&mut registry, ms(3), 6, first, &[Message::Heartbeat, Message::Query { instance: id }]);
    said(&mut registry, ms(3), 4, joined, &[Message::Gone { instance: InstanceId(7) }, Message::Short]);
    said(
        &mut registry,
        ms(3),
        4,
        Header { seq: 4, ..joined },
        &[Message::Welcome { instance: id, lease: Span(1) }],
    );
    let stats = registry.stats();
    assert_eq!((stats.malformed, stats.stale, stats.resets), (1, 2, 5));
    assert_eq!((stats.unregistered, stats.not_participant, stats.full), (2, 2, 0));
    assert_eq!((stats.frames, stats.messages), (12, 6));
    assert_eq!((stats.sessions.delivered, stats.sessions.queued), (6, 1));
    assert_eq!(registry.instances().collect::<Vec<_>>(), [(id, Role::Router, NodeId(4))]);
    // Two clients, one of them registered; a Welcome that the other end has.
    assert_eq!((registry.footprint(), registry.backlog()), (2 + 1, 0));
    assert_eq!(Node::counters(&registry).registry_messages, 6);
    assert_eq!(Node::counters(&registry).malformed_frames, 1);
}

/// To the picosecond: a lease counts from the last heartbeat that is new, and not from repetitions.
#[test]
fn a_lease_ends_when_it_is_over_and_not_before() {
    let mut registry = Registry::new(1, RegistryConfig::default());
    said(&mut registry, ms(0), 4, SYN, &[register(Role::Decode, InstanceId(0))]);
    let header = Header { flags: FrameFlags::default(), epoch: 1, seq: 2, ack: 1, ..SYN };
    said(&mut registry, ms(1000), 4, Header { beat: 3, ..header }, &[]);
    // One that was overtaken.
    said(&mut registry, ms(3000), 4, Header { beat: 2, ..header }, &[]);
    while let Some(at) = registry.deadline().filter(|at| *at < ms(6000)) {
        answers(&mut registry, at, Input::Wake);
    }
    assert_eq!((registry.instances().count(), registry.deadline()), (1, Some(ms(6000))));
    answers(&mut registry, ms(6000), Input::Wake);
    assert_eq!((registry.instances().count(), registry.stats().expired), (0, 1));
    // Who comes now is told that his session is over, until that is forgotten after the time of a tombstone.
    assert_eq!(said(&mut registry, ms(6001), 4, SYN, &[]).len(), 1);
    assert_eq!((registry.stats().resets, registry.footprint()), (1, 1));
    answers(&mut registry, ms(65_999), Input::Wake);
    assert_eq!(registry.footprint(), 1);
    answers(&mut registry, ms(66_000), Input::Wake);
    assert_eq!(registry.footprint(), 0);
}

#[test]
fn a_client_above_the_bound_is_not_answered_until_one_has_gone() {
    let limits = RegistryLimits { clients: 1, ..RegistryLimits::default() };
    let mut registry = Registry::new(1, RegistryConfig { limits, ..RegistryConfig::default() });
    let router = register(Role::Router, InstanceId(0));
    assert_eq!(said(&mut registry, ms(0), 4, SYN, std::slice::from_ref(&router)).len(), 1);
    assert_eq!(said(&mut registry, ms(1), 5, SYN, std::slice::from_ref(&router)), []);
    assert_eq!(registry.stats().full, 1);
    answers(&mut registry, ms(5000), Input::Wake);
    assert_eq!(said(&mut registry, ms(5001), 5, SYN, &[router]).len(), 1);
    assert_eq!(registry.stats().full, 1);
}

/// A router has no memory, the others must say what theirs is.
#[test]
fn facts_belong_to_those_who_have_memory() {
    for (role, facts) in
        [(Role::Router, Some(Box::new(facts(1)))), (Role::Prefill, None), (Role::Decode, None)]
    {
        let mut registry = Registry::new(1, RegistryConfig::default());
        let register = Message::Register { role, claim: InstanceId(0), facts };
        let answer = said(&mut registry, ms(0), 4, SYN, &[register]);
        let [Message::Refused { reason: Reason::Refused, why }] = &answer[0].2[..] else {
            panic!("{answer:?}")
        };
        assert!(why.contains("registers memory and layout"), "{why}");
        assert_eq!((registry.instances().count(), registry.stats().refused), (0, 1));
    }
}

/// While it may still come back, what is for an instance of an earlier epoch is kept, up to a bound.
#[test]
fn what_is_kept_after_a_restart_is_bounded() {
    let limits = RegistryLimits { parked: 2, ..RegistryLimits::default() };
    let mut registry = Registry::new(2, RegistryConfig { limits, ..RegistryConfig::default() });
    answers(&mut registry, ms(0), Input::Start);
    said(&mut registry, ms(0), 4, SYN, &[register(Role::Decode, InstanceId(1 << 32 | 1))]);
    let (awaited, never) = (InstanceId(1 << 32 | 2), InstanceId(1 << 32));
    let link = |broken| Message::Link { peer: awaited, body: LinkBody::Ask { broken } };
    let header = Header { flags: FrameFlags::default(), epoch: 2, seq: 2, ack: 1, ..SYN };
    let all = [link(1), link(2), link(3), Message::Query { instance: never }];
    said(&mut registry, ms(1), 4, header, &all);
    // The third message was one too many, and so is the question, which is answered at once.
    assert_eq!((registry.stats().parked_dropped, registry.stats().to_gone), (1, 0));
    // A client, an instance, two messages that are kept, and the answer.
    assert_eq!(registry.footprint(), 2 + 2 + 1);
    let cancel = |room| Message::Cancel { key: key(room), reason: Reason::Aborted };
    said(&mut registry, ms(2), 4, Header { seq: 6, ..header }, &[cancel(1), cancel(2), cancel(3)]);
    assert_eq!((registry.stats().parked_dropped, registry.stats().unknown_room), (2, 1));
    // It comes back, and has both in their order.
    let back = said(&mut registry, ms(3), 5, SYN, &[register(Role::Prefill, awaited)]);
    let asks = |broken| Message::Link { peer: InstanceId(1 << 32 | 1), body: LinkBody::Ask { broken } };
    let welcome = Message::Welcome { instance: awaited, lease: Span::s(5) };
    let to_it = back.iter().find(|(to, ..)| *to == NodeId(5)).unwrap();
    assert_eq!(to_it.2, [welcome, asks(1), asks(2)]);
}

/// With a lease of six seconds a heartbeat goes every two; where no answer comes, after 250 ms, then after twice as long each time, up to a
/// second. The lease counts from the sending of the last one that was answered.
#[test]
fn heartbeats_are_sent_more_often_while_none_is_answered() {
    let mut client = Client::new(Role::Router, None, SessionConfig::default(), 7);
    let (mut events, mut out) = (VecDeque::new(), Outbox::default());
    assert_eq!((client.deadline(), client.lease_until()), (Time::NEVER, None));
    client.start(ms(0));
    client.flush(ms(0), &mut out);
    assert!(!client.is_joined() && !client.lease_valid(ms(0)));
    let nonce = 7 << 32 | 1;
    let header = Header { epoch: 1, nonce, seq: 1, ack: 1, beat: 1, ..Header::default() };
    let welcome = frame_of(&[Message::Welcome { instance: InstanceId(5), lease: Span::s(6) }], header);
    // Of another session, of no epoch, and no frame at all.
    for strange in [Header { nonce: nonce + 1, ..header }, Header { epoch: 0, ..header }] {
        client.receive(ms(9), &frame_of(&[Message::Leave], strange), &mut events);
    }
    client.receive(ms(9), &welcome[1..], &mut events);
    let stats = client.stats();
    assert_eq!((stats.malformed, stats.stale, stats.sessions), (1, 2, 1));
    assert!(events.is_empty());
    client.receive(ms(10), &welcome, &mut events);
    assert_eq!(events, [ClientEvent::Registered(InstanceId(5))]);
    assert_eq!((client.is_joined(), client.lease()), (true, Span::s(6)));
    assert_eq!(client.lease_until(), Some(ms(5625)));
    assert!(client.lease_valid(ms(5624)) && !client.lease_valid(ms(5625)));
    let (mut beats, mut last) = (Vec::new(), 1);
    while beats.len() < 6 {
        let now = client.deadline();
        out.clear();
        client.flush(now, &mut out);
        for (_, bytes) in out.frames() {
            let header = Frame::parse(bytes).unwrap().header;
            if header.beat > last {
                last = header.beat;
                beats.push(now);
            }
        }
    }
    assert_eq!(beats, [2000, 2250, 2750, 3750, 4750, 5750].map(ms));
    // The third of these was heard, and later the second.
    for beat in [4, 3] {
        let heard = Header { seq: 2, beat, ..header };
        client.receive(ms(5800), &frame_of(&[], heard), &mut events);
        assert_eq!(client.lease_until(), Some(ms(2750 + 5625)));
    }
    assert_eq!(client.deadline(), ms(7750));
}

/// Frames that leave anyway carry a heartbeat once the last one is half as old as it may get, and none before.
#[test]
fn a_heartbeat_rides_when_it_is_half_due() {
    let mut client = Client::new(Role::Router, None, SessionConfig::default(), 1);
    let (mut events, mut out) = (VecDeque::new(), Outbox::default());
    client.start(ms(0));
    client.flush(ms(0), &mut out);
    let header = Header { epoch: 1, nonce: 1 << 32 | 1, seq: 1, ack: 1, beat: 1, ..Header::default() };
    let welcome = frame_of(&[Message::Welcome { instance: InstanceId(5), lease: Span::s(6) }], header);
    client.receive(ms(1), &welcome, &mut events);
    let mut beat = |client: &mut Client, now| {
        client.send(&Message::Heartbeat);
        out.clear();
        client.flush(now, &mut out);
        let frames: Vec<_> =
            out.frames().map(|(_, bytes)| Frame::parse(bytes).unwrap().header.beat).collect();
        // What is sent again says the same.
        assert!(frames.iter().all(|beat| *beat == frames[0]));
        frames[0]
    };
    assert_eq!([998, 999, 1000, 1001].map(|at| beat(&mut client, ms(at))), [1, 1, 2, 2]);
    // It leaves, and ends after a lease without an answer.
    client.leave(ms(1100));
    assert_eq!(beat(&mut client, ms(1100)), 2);
    assert!(!client.is_ended());
    while client.deadline() < ms(7100) {
        client.flush(client.deadline(), &mut Outbox::default());
        assert!(!client.is_ended());
    }
    client.flush(ms(7100), &mut Outbox::default());
    assert!(client.is_ended());
}
