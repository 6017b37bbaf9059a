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

pub(super) fn frame_of(messages: &[Message], header: Header) -> Vec<u8> {
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

/// The checksum is part of the version: another one is another protocol.
#[test]
fn the_form_of_a_frame_is_fixed() {
    let body: Vec<u8> = [29, 0].into_iter().chain(100..129).collect();
    let header = Header {
        flags: FrameFlags::GAP,
        count: 1,
        epoch: 3,
        nonce: 7 << 32 | 1,
        instance: 9,
        seq: 5,
        ack: 2,
        beat: 6,
    };
    let mut frame = Vec::new();
    header.write(&body, &mut frame);
    let hex: String = frame[..HEADER].iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, "766b01046c27d67b03000000060000000100000007000000090000000000000005000000020000000100");
    assert_eq!(&frame[HEADER..], body);
    assert_eq!(Frame::parse(&frame).unwrap().header, header);
}

/// A frame may be as long as the bound and no longer, a message too; a segment may be empty.
#[test]
fn bounds_are_inclusive() {
    let frame = |bytes: usize| {
        let mut body = Vec::new();
        let mut left = bytes - HEADER;
        let mut count = 0;
        while left > 0 {
            let len = (left - 2).min(0x7000);
            body.extend((len as u16).to_le_bytes());
            body.resize(body.len() + len, 1);
            (left, count) = (left - len - 2, count + 1);
        }
        let mut frame = Vec::new();
        Header { count, ..Header::default() }.write(&body, &mut frame);
        Frame::parse(&frame).map(|_| ())
    };
    assert_eq!(frame(MAX_FRAME), Ok(()));
    let value = MAX_FRAME as u64 + 1;
    let long = FrameError::TooLong { field: "frame", value, max: MAX_FRAME as u64 };
    assert_eq!(frame(MAX_FRAME + 1), Err(long));
    assert_eq!(frame(HEADER + 2), Ok(()));
    assert_eq!(frame(HEADER), Ok(()));
    let message = |len: usize| decode(&vec![99; len]).unwrap_err();
    assert_eq!(message(MAX_MESSAGE), FrameError::Kind(99));
    let value = MAX_MESSAGE as u64 + 1;
    let long = FrameError::TooLong { field: "message", value, max: MAX_MESSAGE as u64 };
    assert_eq!(message(MAX_MESSAGE + 1), long);
}

#[test]
fn a_frame_of_another_protocol_or_with_other_flags_is_refused() {
    let mut frame = frame_of(&[], Header::default());
    frame[0] ^= 1;
    assert_eq!(Frame::parse(&frame).unwrap_err(), FrameError::Magic(0x6b77));
    let frame = frame_of(&[], Header { flags: FrameFlags(7), ..Header::default() });
    assert!(Frame::parse(&frame).is_ok());
    let frame = frame_of(&[], Header { flags: FrameFlags(8), ..Header::default() });
    assert_eq!(Frame::parse(&frame).unwrap_err().to_string(), "flags: 8 is not valid, 0 to 7");
}

/// What a count asks for is compared with its bound and with the bytes that are left, before anything is allocated.
#[test]
fn counts_are_compared_with_what_is_left() {
    // A page list up to its runs: key, fence epoch, slot, generation, group, credits, tokens, offset, total.
    let list = |rest: &[u8]| {
        let mut bytes = vec![11, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 0, 4, 100, 0, 7];
        bytes.extend(rest);
        decode(&bytes).map(|_| ()).map_err(|error| error.to_string())
    };
    // 7 pages in two runs; counted from the end of the run before.
    assert_eq!(list(&[2, 2, 4, 8, 3]), Ok(()));
    assert_eq!(list(&[2, 2, 4, 8]), Err("page runs: needs 4 bytes, 3 are left".into()));
    assert_eq!(list(&[0xe8, 7, 2, 4]), Err("page runs: needs 2000 bytes, 2 are left".into()));
    assert_eq!(
        list(&[0xff, 0xff, 0xff, 0xff, 1, 2, 4]),
        Err("page runs: 536870911, at most 1048576 allowed".into())
    );
    assert_eq!(list(&[2, 2, 4, 8, 4]), Err("pages listed: 8 is not valid, at most the total".into()));
    let none = "run of pages: 0 is not valid, at least one page, numbers of 32 bits";
    assert_eq!(list(&[1, 2, 0]), Err(none.into()));
    // One before page 0.
    assert!(list(&[1, 1, 1]).unwrap_err().starts_with("run of pages: 1 is not valid"));
}

#[test]
fn numbers_have_64_bits_at_most() {
    let lease = |tail: &[u8]| {
        let mut bytes = vec![1, 5];
        bytes.extend(tail);
        decode(&bytes).map_err(|error| error.to_string())
    };
    let all = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    let with = |last: &[u8]| [&all[..], last].concat();
    let longest = Message::Welcome { instance: InstanceId(5), lease: Span(u64::MAX) };
    assert_eq!(lease(&with(&[1])), Ok(longest));
    assert_eq!(lease(&with(&[2])), Err("lease: 2 is not valid, 64 bits at most".into()));
    assert!(lease(&with(&[0x80, 0])).is_err());
    // 32 and 16 bits are bounds of their own.
    let joined = |page_size: &[u8], groups: &[u8]| {
        let bytes = [&[7, 5, 1, 3, 9][..], page_size, groups].concat();
        decode(&bytes).map(|_| ()).map_err(|error| error.to_string())
    };
    assert_eq!(joined(&[0xff, 0xff, 0xff, 0xff, 15], &[0xff, 0xff, 3]), Ok(()));
    let above = "page size: 4294967296 is not valid, 32 bits at most";
    assert_eq!(joined(&[0x80, 0x80, 0x80, 0x80, 16], &[1]), Err(above.into()));
    assert_eq!(joined(&[1], &[0x80, 0x80, 4]), Err("groups: 65536 is not valid, 16 bits at most".into()));
}

/// What no sender says is refused, each for its own reason.
#[test]
fn values_out_of_their_range_are_named() {
    let key = [1, 0, 0, 0, 0, 0, 0, 0, 0];
    let error = |kind: u8, rest: &[u8]| {
        let bytes = [&[kind][..], &key, rest].concat();
        decode(&bytes).unwrap_err().to_string()
    };
    assert_eq!(error(13, &[4]), "report: 4 is not valid, 0 to 3");
    assert_eq!(error(14, &[3]), "outcome: 3 is not valid, 0 to 2");
    // Produced, no pieces before: of a piece without tokens, of tokens behind the last number, of no checksums, of an unknown end.
    assert!(error(16, &[0, 1, 5, 0, 0, 1, 0]).starts_with("length of a piece: 0 is not valid"));
    let last = [0, 1, 0xff, 0xff, 0xff, 0xff, 15, 1, 0, 1, 0];
    assert!(error(16, &last).starts_with("length of a piece: 1 is not valid"));
    assert_eq!(error(16, &[0, 0, 2, 0]), "checksums: 0 is not valid, at least 1");
    assert_eq!(error(16, &[0, 0, 3]), "whether it is the rest: 3 is not valid, 0 to 2");
    let error = |bytes: &[u8]| decode(bytes).unwrap_err().to_string();
    assert_eq!(error(&[15, 2, 8]), "kind of link message: 8 is not valid, 0 to 7");
    assert_eq!(error(&[15, 2, 5, 0]), "READs at a time: 0 is not valid, at least 1");
    assert_eq!(error(&[0, 3, 0, 0]), "role: 3 is not valid, 0 to 2");
    // An endpoint like one that is not there, or is too far back.
    let like = |before: usize, back: u8| {
        let mut bytes = vec![15, 2, 2, 1, 1, before as u8 + 1, 7, 7, 0];
        bytes.extend([0; 16]);
        bytes.extend([0, 1]);
        (1..before).for_each(|_| bytes.extend([7, 7, 1]));
        bytes.extend([7, 7, back]);
        decode(&bytes).map(|_| ()).map_err(|error| error.to_string())
    };
    let wrong = |back| {
        let right = "one that was listed, at most 64 places before";
        Err(format!("endpoint before: {back} is not valid, {right}"))
    };
    assert_eq!((like(3, 3), like(70, 64)), (Ok(()), Ok(())));
    assert_eq!((like(3, 4), like(70, 65)), (wrong(4), wrong(65)));
}

/// A sender finds the nearest one that is alike, as far back as a reader looks.
#[test]
fn an_address_is_said_once_for_neighbours() {
    let end = |gid: u8| Endpoint { qpn: 1, psn: 1, gid: [gid; 16], lid: 0, mtu: 1 };
    let bytes = |ends: Vec<Endpoint>| {
        let mut bytes = Vec::new();
        let body = LinkBody::Answer { offer: 1, fence_epoch: 1, endpoints: ends };
        encode(&Message::Link { peer: InstanceId(2), body: body.clone() }, &mut bytes);
        assert_eq!(decode(&bytes), Ok(Message::Link { peer: InstanceId(2), body }));
        bytes.len()
    };
    let whole = bytes(vec![end(1)]) - bytes(vec![]);
    assert_eq!(bytes(vec![end(1); 100]), bytes(vec![end(1)]) + 99 * 3);
    let apart = |places: u8| {
        let mut ends: Vec<Endpoint> = (0..places).map(end).collect();
        ends.push(end(0));
        bytes(ends.clone()) - bytes(ends[..ends.len() - 1].to_vec())
    };
    assert_eq!((apart(1), apart(64), apart(65)), (3, 3, whole));
}

#[test]
fn a_long_reason_is_cut_between_characters() {
    let said = |why: String| {
        let mut bytes = Vec::new();
        encode(&Message::Refused { reason: Reason::Refused, why }, &mut bytes);
        let Ok(Message::Refused { why, .. }) = decode(&bytes) else { panic!() };
        why
    };
    assert_eq!(said("x".repeat(5000)), "x".repeat(4096));
    assert_eq!(said(format!("x{}", "é".repeat(3000))), format!("x{}", "é".repeat(2047)));
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
