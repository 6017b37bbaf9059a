use crate::fabric::Endpoint;
use crate::id::*;
use crate::node::{Reason, Request};
use crate::registry::*;
use crate::time::Span;
use proptest::collection::vec;
use proptest::prelude::*;

/// Mostly small numbers, sometimes any.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![0u64..300, any::<u64>(), Just(u64::MAX), Just(1 << 63)]
}

fn key() -> impl Strategy<Value = RoomKey> {
    (number(), any::<u32>()).prop_map(|(room, attempt)| RoomKey { room: Room(room), attempt })
}

fn instance() -> impl Strategy<Value = InstanceId> {
    number().prop_map(InstanceId)
}

fn reason() -> impl Strategy<Value = Reason> {
    (0u8..=13).prop_map(|byte| Reason::from_wire(byte).unwrap())
}

fn role() -> impl Strategy<Value = Role> {
    prop_oneof![Just(Role::Router), Just(Role::Prefill), Just(Role::Decode)]
}

fn region() -> impl Strategy<Value = Region> {
    (number(), vec(any::<u32>(), 0..4)).prop_map(|(addr, rkeys)| Region { addr, rkeys })
}

fn facts() -> impl Strategy<Value = Option<Box<Facts>>> {
    let rank = (vec(region(), 0..3), vec(number(), 0..3), region(), region())
        .prop_map(|(pools, pitches, aux, stage)| RankFacts { pools, pitches, aux, stage });
    let head = (any::<u64>(), any::<[u16; 3]>(), any::<[u32; 3]>(), any::<bool>());
    let stage = prop_oneof![Just((0u32, 0u64)), (1u32.., number())];
    prop::option::of((head, stage, vec(rank, 0..5)).prop_map(
        |((fingerprint, p, n, head_major), stage, mut ranks)| {
            let (tp, pp, dp) = (p[0], p[1], p[2]);
            let (page_size, pages, slots) = (n[0], n[1], n[2]);
            let (stage_slots, stage_bytes) = stage;
            if stage_slots == 0 {
                ranks.iter_mut().for_each(|rank: &mut RankFacts| rank.stage = Region::default());
            }
            let facts =
                Facts { fingerprint, tp, pp, dp, page_size, head_major, pages, slots, ..Facts::default() };
            Box::new(Facts { stage_slots, stage_bytes, ranks, ..facts })
        },
    ))
}

fn blocks() -> impl Strategy<Value = Vec<u64>> {
    vec((number(), 1u64..20), 0..6).prop_map(|runs| {
        runs.iter().flat_map(|(first, n)| (0..*n).map(move |i| first.wrapping_add(i))).collect()
    })
}

fn request() -> impl Strategy<Value = Request> {
    (number(), any::<[u32; 3]>(), blocks()).prop_map(|(id, n, blocks)| Request {
        id: RequestId(id),
        prompt: n[0],
        output: n[1],
        tenant: n[2],
        blocks,
    })
}

pub(super) fn pages() -> impl Strategy<Value = PageList> {
    let runs = vec((any::<u32>(), 1u32..50), 0..12);
    (key(), any::<u32>(), any::<[u16; 3]>(), any::<u8>(), any::<[u16; 3]>(), runs).prop_map(
        |(key, fence_epoch, p, generation, n, runs)| {
            let pages: Vec<PageRun> = runs
                .iter()
                .map(|(first, count)| PageRun { first: Page((*first).min(u32::MAX - 50)), count: *count })
                .collect();
            let offset = u32::from(n[1]);
            let total = offset + pages.iter().map(|run| run.count).sum::<u32>() + u32::from(n[2]);
            let (slot, group, credits, tokens) = (p[0], p[1], p[2], u32::from(n[0]));
            let stage = if p[2] % 2 == 0 { Vec::new() } else { pages.clone() };
            PageList {
                key,
                fence_epoch,
                slot,
                generation,
                group,
                credits,
                tokens,
                offset,
                total,
                pages,
                stage,
            }
        },
    )
}

fn endpoints() -> impl Strategy<Value = Vec<Endpoint>> {
    vec((any::<u32>(), any::<u32>(), 0u8..3, 0u16..2), 0..80).prop_map(|ends| {
        let end = |(qpn, psn, gid, lid)| Endpoint { qpn, psn, gid: [gid; 16], lid, mtu: 4096 };
        ends.into_iter().map(end).collect()
    })
}

fn range() -> impl Strategy<Value = std::ops::Range<u32>> {
    (any::<u32>(), 1u32..5000).prop_map(|(start, len)| {
        let start = start.min(u32::MAX - len);
        start..start + len
    })
}

fn link() -> impl Strategy<Value = LinkBody> {
    let seen = vec((any::<u16>(), any::<u16>(), any::<u16>()), 0..5)
        .prop_map(|seen| seen.into_iter().map(|(s, d, p)| (Rank(s), Rank(d), p)).collect());
    let live = vec((key(), seen).prop_map(|(key, seen)| LiveRoom { key, seen }), 0..5);
    prop_oneof![
        any::<u32>().prop_map(|broken| LinkBody::Ask { broken }),
        (any::<[u32; 2]>(), any::<u16>(), any::<u8>(), endpoints(), live).prop_map(
            |(n, rails, reads, endpoints, live)| {
                LinkBody::Offer { offer: n[0], fence_epoch: n[1], rails, reads, endpoints, live }
            }
        ),
        (any::<[u32; 2]>(), endpoints()).prop_map(|(n, endpoints)| LinkBody::Answer {
            offer: n[0],
            fence_epoch: n[1],
            endpoints
        }),
        any::<u32>().prop_map(|offer| LinkBody::Ready { offer }),
        any::<u32>().prop_map(|offer| LinkBody::Close { offer }),
        any::<u32>().prop_map(|offer| LinkBody::Yield { offer }),
        reason().prop_map(|reason| LinkBody::Refuse { reason }),
    ]
}

pub(super) fn message() -> impl Strategy<Value = Message> {
    let outcome = prop_oneof![
        Just(Outcome::Finished),
        any::<u32>().prop_map(|tokens| Outcome::Preempted { tokens }),
        reason().prop_map(Outcome::Failed)
    ];
    prop_oneof![
        (role(), instance(), facts()).prop_map(|(role, claim, facts)| Message::Register {
            role,
            claim,
            facts
        }),
        (instance(), number())
            .prop_map(|(instance, lease)| Message::Welcome { instance, lease: Span(lease) }),
        (reason(), ".{0,80}").prop_map(|(reason, why)| Message::Refused { reason, why }),
        Just(Message::Heartbeat),
        Just(Message::Leave),
        Just(Message::Short),
        instance().prop_map(|instance| Message::Query { instance }),
        (instance(), facts()).prop_map(|(instance, facts)| Message::FactsOf { instance, facts }),
        (instance(), role(), any::<[u32; 3]>(), any::<u16>()).prop_map(|(instance, role, n, groups)| {
            let node = NodeId(n[0]);
            Message::Joined(Member { instance, role, node, pages: n[1], page_size: n[2], groups })
        }),
        instance().prop_map(|instance| Message::Gone { instance }),
        (key(), instance(), instance(), request()).prop_map(|(key, prefill, decode, request)| {
            Message::Create { key, prefill, decode, request }
        }),
        (key(), instance(), request()).prop_map(|(key, peer, request)| Message::Assign {
            key,
            peer,
            request
        }),
        pages().prop_map(Message::Publish),
        (key(), any::<u32>(), vec((range(), range()), 0..6), prop::option::of(vec(number(), 0..4))).prop_map(
            |(key, before, pieces, last)| {
                let piece = |(tokens, layers)| Piece { tokens, layers };
                Message::Produced { key, before, pieces: pieces.into_iter().map(piece).collect(), last }
            }
        ),
        (key(), vec(any::<u32>(), 0..9)).prop_map(|(key, done)| Message::Scattered { key, done }),
        (key(), reason()).prop_map(|(key, reason)| Message::Abort { key, reason }),
        (key(), reason()).prop_map(|(key, reason)| Message::Cancel { key, reason }),
        (key(), any::<bool>(), any::<bool>())
            .prop_map(|(key, delivered, clean)| Message::Report { key, report: Report { delivered, clean } }),
        (key(), outcome).prop_map(|(key, outcome)| Message::Done { key, outcome }),
        (key(), any::<u32>(), any::<[u64; 3]>()).prop_map(|(key, cached, [queued, compute, handoff])| {
            let timing =
                Timing { cached, queued: Span(queued), compute: Span(compute), handoff: Span(handoff) };
            Message::Delivered { key, timing }
        }),
        (instance(), link()).prop_map(|(peer, body)| Message::Link { peer, body }),
    ]
}

/// Everything that is done with bytes from outside.
fn read_all(bytes: &[u8]) -> Result<usize, FrameError> {
    let frame = Frame::parse(bytes)?;
    let mut messages = 0;
    for (_, segment) in frame.segments() {
        decode(segment)?;
        messages += 1;
    }
    assert_eq!(messages, usize::from(frame.header.count));
    Ok(messages)
}

fn frame_of(messages: &[Message], header: Header) -> Vec<u8> {
    let mut body = Vec::new();
    for message in messages {
        let mut bytes = Vec::new();
        encode(message, &mut bytes);
        body.extend((bytes.len() as u16).to_le_bytes());
        body.extend(bytes);
    }
    let mut frame = Vec::new();
    Header { count: messages.len() as u16, ..header }.write(&body, &mut frame);
    frame
}

proptest! {
    #[test]
    fn messages_survive_the_way_through_bytes(message in message()) {
        let mut bytes = Vec::new();
        encode(&message, &mut bytes);
        prop_assert_eq!(decode(&bytes), Ok(message));
        bytes.push(0);
        let error = decode(&bytes).unwrap_err();
        prop_assert_eq!(error, FrameError::Trailing { left: 1 });
    }

    #[test]
    fn a_truncated_message_is_refused(message in message(), cut in any::<prop::sample::Index>()) {
        let mut bytes = Vec::new();
        encode(&message, &mut bytes);
        bytes.truncate(cut.index(bytes.len()));
        prop_assert!(decode(&bytes).is_err());
    }

    #[test]
    fn arbitrary_bytes_never_panic(kind in 0u8..20, bytes in vec(any::<u8>(), 0..200)) {
        let _ = read_all(&bytes);
        let mut message = vec![kind];
        message.extend(&bytes);
        let _ = decode(&message);
    }

    #[test]
    fn changed_messages_never_panic(message in message(), at in any::<prop::sample::Index>(), byte: u8) {
        let mut bytes = Vec::new();
        encode(&message, &mut bytes);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let _ = decode(&bytes);
    }

    #[test]
    fn damaged_frames_are_refused(
        messages in vec(message(), 0..4),
        at in any::<prop::sample::Index>(),
        bit in 0u8..8,
        cut in any::<prop::sample::Index>(),
    ) {
        let header = Header { epoch: 3, nonce: 7 << 32, instance: 9, seq: 5, ack: 2, ..Header::default() };
        let frame = frame_of(&messages, header);
        prop_assert_eq!(read_all(&frame), Ok(messages.len()));
        prop_assert_eq!(Frame::parse(&frame).unwrap().header, Header { count: messages.len() as u16, ..header });
        let mut flipped = frame.clone();
        flipped[at.index(frame.len())] ^= 1 << bit;
        prop_assert!(Frame::parse(&flipped).is_err());
        let cut = cut.index(frame.len());
        prop_assert!(Frame::parse(&frame[..cut]).is_err());
        let mut long = frame;
        long.push(0);
        prop_assert!(Frame::parse(&long).is_err());
    }

    #[test]
    fn page_lists_are_cut_without_loss(list in pages(), runs in 0usize..5) {
        let pieces: Vec<PageList> = list.clone().split(runs).collect();
        let mut offset = list.offset;
        for piece in &pieces {
            prop_assert!(piece.pages.len() <= runs.max(1));
            prop_assert_eq!(piece.offset, offset);
            offset += piece.pages.iter().map(|run| run.count).sum::<u32>();
        }
        let joined: Vec<PageRun> = pieces.iter().flat_map(|piece| piece.pages.clone()).collect();
        prop_assert_eq!(joined, list.pages);
    }
}

#[test]
fn errors_name_the_field_and_the_value() {
    let text = |result: Result<Message, FrameError>| result.unwrap_err().to_string();
    assert_eq!(text(decode(&[99])), "message kind 99 is not known");
    assert_eq!(text(decode(&[])), "kind of message: needs 1 bytes, 0 are left");
    assert_eq!(text(decode(&[12, 1, 0, 0, 0, 0, 0, 0, 0, 1, 77])), "reason: 77 is not valid, 0 to 13");
    let mut huge = vec![9, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0];
    huge.extend([0xff, 0xff, 0xff, 0x7f]);
    assert_eq!(text(decode(&huge)), "blocks: 268435455, at most 65536 allowed");
    let mut frame = frame_of(&[], Header::default());
    frame[2] = 9;
    assert_eq!(Frame::parse(&frame).unwrap_err().to_string(), "version 9, this end speaks 1");
}

#[test]
fn consecutive_blocks_cost_a_few_bytes() {
    let blocks: Vec<u64> = (46_000..46_240).collect();
    let request = Request { id: RequestId(7), prompt: 120_000, output: 300, tenant: 0, blocks };
    let key = RoomKey { room: Room(7), attempt: 0 };
    let (prefill, peer) = (InstanceId(1 << 32 | 1), InstanceId(1 << 32 | 2));
    let mut bytes = Vec::new();
    encode(&Message::Create { key, prefill, decode: peer, request }, &mut bytes);
    assert!(bytes.len() < 40, "{}", bytes.len());
}

#[test]
fn the_last_page_number_is_one() {
    let mut list = super::net::list(super::net::key(1));
    list.pages = vec![PageRun { first: Page(u32::MAX), count: 1 }];
    list.total = 1;
    let mut bytes = Vec::new();
    encode(&Message::Publish(list.clone()), &mut bytes);
    assert_eq!(decode(&bytes), Ok(Message::Publish(list)));
}
