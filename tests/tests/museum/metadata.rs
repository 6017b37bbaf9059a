//! What comes over the metadata channel: cases 13, 14, 19 and 21, on the real decoders, registry and nodes.

use engine::id::{InstanceId, NodeId, RequestId, Room};
use engine::node::{Input, Outbox, Request};
use engine::registry::{
    Client, ClientEvent, Facts, Frame, FrameFlags, Header, MAX_MESSAGE, Message, REGISTRY, Registry,
    RegistryConfig, Role, RoomKey, SessionConfig, decode, encode,
};
use engine::time::{Span, Time};
use engine::transfer::{AuxRow, Pairing, PairingError, Reach, Seal};
use kvrail_tests::stories::{one_request, shows, shows_fault_free, slow};
use models::{DType, Layout, PageOrder, Parallel, presets};
use proptest::prelude::*;
use sim::kit::{Build, Kit};
use std::collections::VecDeque;

/// A registry and its clients, with a channel that loses nothing.
struct Desk {
    now: Time,
    registry: Registry,
    clients: Vec<Client>,
    heard: Vec<Vec<Message>>,
}

impl Desk {
    /// A router, a prefill and a decode instance, registered.
    fn new() -> Self {
        let facts = || Facts { tp: 1, pp: 1, dp: 1, page_size: 16, pages: 100, slots: 8, ..Facts::default() };
        let client =
            |role| Client::new(role, (role != Role::Router).then(facts), SessionConfig::default(), 1);
        let mut desk = Self {
            now: Time::ZERO,
            registry: Registry::new(1, RegistryConfig::default()),
            clients: [Role::Router, Role::Prefill, Role::Decode].map(client).into(),
            heard: vec![Vec::new(); 3],
        };
        let now = desk.now;
        desk.clients.iter_mut().for_each(|client| client.start(now));
        desk.talk();
        assert!(desk.clients.iter().all(Client::is_joined));
        desk
    }

    fn step(&mut self, input: Input<'_>) -> Outbox {
        let mut out = Outbox::default();
        self.registry.step(self.now, input, &mut out);
        out
    }

    /// Everybody says what there is to say, until nobody has anything.
    fn talk(&mut self) {
        for _ in 0..40 {
            self.now += Span::ms(5);
            let now = self.now;
            let mut frames = Vec::new();
            for (node, client) in (1u32..).zip(&mut self.clients) {
                let mut out = Outbox::default();
                client.flush(now, &mut out);
                frames.extend(out.frames().map(|(_, bytes)| (NodeId(node), bytes.to_vec())));
            }
            let mut answers: Vec<(NodeId, Vec<u8>)> = Vec::new();
            for (from, bytes) in &frames {
                let out = self.step(Input::Frame { from: *from, bytes });
                answers.extend(out.frames().map(|(to, bytes)| (to, bytes.to_vec())));
            }
            let out = self.step(Input::Wake);
            answers.extend(out.frames().map(|(to, bytes)| (to, bytes.to_vec())));
            for (to, bytes) in answers {
                let client = (to.0 as usize).wrapping_sub(1);
                if client >= self.clients.len() {
                    continue;
                }
                let mut events = VecDeque::new();
                self.clients[client].receive(now, &bytes, &mut events);
                for event in events {
                    if let ClientEvent::Message(message) = event {
                        self.heard[client].push(message);
                    }
                }
            }
        }
    }

    fn create(&mut self, room: u64, attempt: u32) {
        let (prefill, decode) = (self.clients[1].instance(), self.clients[2].instance());
        let request = Request { id: RequestId(room), prompt: 100, output: 5, ..Request::default() };
        let key = RoomKey { room: Room(room), attempt };
        self.clients[0].send(&Message::Create { key, prefill, decode, request });
        self.talk();
    }

    /// Rooms that a client was given, in order.
    fn assigned(&self, client: usize) -> Vec<RoomKey> {
        let key = |message: &Message| match message {
            Message::Assign { key, .. } => Some(*key),
            _ => None,
        };
        self.heard[client].iter().filter_map(key).collect()
    }
}

/// Two requests came with the same room id: the second one replaced the first in the table, and what the first one held was nobody's any more, or
/// an assertion took the scheduler down. Law: a request ends once. Here the same room comes again whenever a registry restarts.
#[test]
fn case_13_a_duplicate_room_id() {
    let story = |build: Build| {
        let mut t = build.build();
        t.request(100, 5);
        t.run_for(Span::ms(20));
        t.restart_registry();
        t.run();
        t
    };
    shows(story, slow(), |r| r.assigns_once = false, "reached 2 final states");
    // At the registry: the same create is the same room, another attempt at a live room is refused, and nobody falls over.
    let mut desk = Desk::new();
    for (room, attempt) in [(7, 1), (7, 1), (7, 2), (7, 1), (8, 1), (8, 1)] {
        desk.create(room, attempt);
    }
    let key = |room| RoomKey { room: Room(room), attempt: 1 };
    for side in [1, 2] {
        assert_eq!(desk.assigned(side), [key(7), key(8)]);
    }
    let refused =
        desk.heard[0].iter().filter(|m| matches!(m, Message::Done { key, .. } if key.attempt == 2)).count();
    assert_eq!(refused, 1, "the router is told: {:?}", desk.heard[0]);
}

/// Room ids were drawn from 64 bits, and one of the places that they went through had 63. A request in two failed, or two were one. Law: two
/// rooms are two rooms.
#[test]
fn case_14_room_ids_over_63_bits() {
    let peers = |room: u64| room & (u64::MAX >> 1);
    let (low, high) = (5, 5 | 1 << 63);
    let run = |name: fn(u64) -> u64| {
        let mut desk = Desk::new();
        desk.create(name(low), 1);
        desk.create(name(high), 1);
        desk.assigned(2).len()
    };
    assert_eq!(run(peers), 1, "two requests in one room");
    assert_eq!(run(|room| room), 2);
    for room in [high, u64::MAX, 1 << 63] {
        let key = RoomKey { room: Room(room), attempt: u32::MAX };
        let message = Message::Abort { key, reason: engine::node::Reason::Aborted };
        let mut bytes = Vec::new();
        encode(&message, &mut bytes);
        assert_eq!(decode(&bytes), Ok(message));
        let row = AuxRow { key, request: RequestId(room), token: 1, cached: 2 };
        assert_eq!(AuxRow::from_bytes(&row.to_bytes()), row);
        let seal = Seal { key, parts: 3, sum: 7 };
        assert_eq!(Seal::from_bytes(&seal.to_bytes(), key), Some(seal));
        let masked = RoomKey { room: Room(peers(room)), ..key };
        assert_eq!(Seal::from_bytes(&seal.to_bytes(), masked), None);
    }
}

/// The server counted ranks as they registered. One that was restarted registered again while another one was still missing: the count was
/// right, the group was taken for complete, and what was for the missing rank went to the other. Law: without faults every request finishes. Here a rank's facts come with those of all others, in one message.
#[test]
fn case_19_a_rank_that_registers_twice() {
    let base = Kit::pair().prefill(|i| i.tp(2)).decode(|i| i.tp(2));
    shows_fault_free(one_request, base.clone(), "ranks_once", "without faults");
    let pair = |ranks: usize| {
        let model = presets::lookup("tiny-gqa").unwrap();
        let parallel = Parallel { tp: 4, pp: 1, dp: 1 };
        let layout = Layout::new(&model, DType::Bf16, parallel, 16, PageOrder::TokenMajor).unwrap();
        let rank = |pools: usize| engine::registry::RankFacts {
            pools: vec![Default::default(); pools],
            pitches: vec![1 << 20; pools],
            aux: Default::default(),
            ..Default::default()
        };
        let facts = |ranks: usize| Facts {
            fingerprint: layout.fingerprint(),
            tp: 4,
            pp: 1,
            dp: 1,
            page_size: 16,
            pages: 9,
            slots: 4,
            ranks: (0..ranks).map(|i| rank(layout.ranks()[i].pools().len())).collect(),
            ..Facts::default()
        };
        Pairing::new(&model, DType::Bf16, &facts(4), &facts(ranks), Default::default(), 1, &Reach::Any)
            .map(|_| ())
    };
    assert_eq!(pair(4), Ok(()));
    assert_eq!(pair(3), Err(PairingError::Facts { what: "rank list", got: 3, want: 4 }));
}

/// The first frame of a new client, with a right checksum, whose one message is these bytes.
fn good_frame_with(message: &[u8]) -> Vec<u8> {
    let mut body = (message.len() as u16).to_le_bytes().to_vec();
    body.extend(message);
    let mut frame = Vec::new();
    Header { flags: FrameFlags::SYN, count: 1, nonce: 1 << 32, ..Header::default() }.write(&body, &mut frame);
    frame
}

/// Pickles, and what else runs when it is read.
const DUMPS: [&[u8]; 4] = [
    b"cos\nsystem\n(S'echo owned'\ntR.",
    b"\x80\x04\x95\x1e\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x04echo\x94\x85\x94R\x94.",
    b"\xac\xed\x00\x05sr\x00\x11java.util.HashMap",
    b"!!python/object/apply:os.system ['echo owned']",
];

/// The metadata socket took whatever came for a pickle: whoever reached the port could run what he liked. Here a frame has typed fields of bounded
/// size and nothing else; what is no message is counted, and ends the session that it came in, not the server.
#[test]
fn case_21_pickle_on_the_metadata_socket() {
    let mut desk = Desk::new();
    for (n, dump) in (0u32..).zip(DUMPS) {
        assert!(decode(dump).is_err(), "{dump:?}");
        // As a frame, and as a message within a good frame of a new client.
        desk.step(Input::Frame { from: NodeId(90 + n), bytes: dump });
        let frame = good_frame_with(dump);
        assert!(Frame::parse(&frame).is_ok());
        desk.step(Input::Frame { from: NodeId(80 + n), bytes: &frame });
    }
    assert!(desk.registry.stats().malformed >= DUMPS.len() as u64);
    desk.create(1, 1);
    assert_eq!(desk.assigned(1).len(), 1, "the others go on");
}

proptest! {
    #[test]
    fn case_21_whatever_bytes_come(bytes in prop::collection::vec(any::<u8>(), 0..400), good_frame: bool) {
        let mut desk = Desk::new();
        let frame = if good_frame { good_frame_with(&bytes) } else { bytes.clone() };
        desk.step(Input::Frame { from: NodeId(77), bytes: &frame });
        desk.step(Input::Frame { from: NodeId(1), bytes: &frame });
        prop_assert!(desk.registry.footprint() < 100 && MAX_MESSAGE > bytes.len());
        desk.create(1, 1);
        prop_assert_eq!(desk.assigned(1).len(), 1);
    }
}

#[test]
fn nobody_speaks_for_the_registry() {
    // What only the registry says has no meaning to it.
    let mut desk = Desk::new();
    desk.clients[1].send(&Message::Gone { instance: InstanceId(1) });
    desk.talk();
    desk.create(3, 1);
    assert_eq!(desk.assigned(2).len(), 1);
    assert_eq!(REGISTRY, NodeId(0));
}
