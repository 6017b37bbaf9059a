use super::net::{Faults, Net, Toy, facts, key, list};
use crate::id::{InstanceId, NodeId};
use crate::node::{Input, Node, Outbox, Reason};
use crate::registry::*;
use crate::time::{Span, Time};

const THREE: [Role; 3] = [Role::Router, Role::Prefill, Role::Decode];

fn net() -> Net {
    let mut net = Net::new(&THREE, Faults::NONE, 1);
    net.run(Span::ms(100));
    net
}

fn outcome(net: &Net, room: u64) -> Option<Outcome> {
    net.toys[0].rooms[&key(room)].outcome
}

fn create(net: &mut Net, room: u64) {
    let (prefill, decode) = (net.id(1), net.id(2));
    net.toys[0].create(key(room), prefill, decode);
}

#[test]
fn a_room_costs_nine_messages() {
    let mut net = net();
    let before = net.registry().stats();
    (1..=100).for_each(|room| create(&mut net, room));
    net.run(Span::s(1));
    let after = net.registry().stats();
    // Create, Publish, Report, Done in; two Assign, Publish, Report, Done out.
    assert_eq!((after.messages - before.messages, after.sent - before.sent), (400, 500));
    assert_eq!(after.sessions.retransmitted, 0);
    assert!((1..=100).all(|room| outcome(&net, room) == Some(Outcome::Finished)));
}

#[test]
fn a_router_learns_of_all_instances_whoever_comes_first() {
    let mut net = net();
    assert_eq!(net.toys[0].members.len(), 2);
    net.toys.push(Toy::new(Role::Prefill, 1));
    net.toys.push(Toy::new(Role::Router, 1));
    for toy in 3..5 {
        net.toys[toy].client.start(net.now);
    }
    net.run(Span::ms(100));
    assert_eq!(net.toys[0].members, net.toys[4].members);
    assert_eq!(net.toys[0].members.len(), 3);
}

#[test]
fn the_same_create_is_accepted_and_another_attempt_of_a_live_room_refused() {
    let mut net = net();
    net.toys[2].passive = true;
    create(&mut net, 1);
    net.run(Span::ms(100));
    create(&mut net, 1);
    let again = RoomKey { attempt: 1, ..key(1) };
    let (prefill, decode) = (net.id(1), net.id(2));
    net.toys[0].create(again, prefill, decode);
    net.run(Span::ms(100));
    assert_eq!(net.toys[0].rooms[&again].outcome, Some(Outcome::Failed(Reason::Refused)));
    assert_eq!(outcome(&net, 1), None);
    assert_eq!(net.toys[1].rooms.len(), 1);
    assert_eq!(net.toys[2].rooms[&key(1)].assigned, 1);
    // Once decode is done the next attempt may begin, even if prefill has not reported.
    net.toys[2].client.send(&Message::Done { key: key(1), outcome: Outcome::Preempted { tokens: 2 } });
    net.toys[2].passive = false;
    net.run(Span::ms(100));
    net.toys[0].create(again, prefill, decode);
    net.run(Span::ms(100));
    assert_eq!(net.toys[0].dones[&again].last(), Some(&Outcome::Finished));
    assert_eq!(outcome(&net, 1), Some(Outcome::Preempted { tokens: 2 }));
    // And the old one ends when prefill says so.
    assert_eq!(net.registry().held().rooms, 1);
    let report = Report { delivered: true, clean: true };
    net.toys[1].client.send(&Message::Report { key: key(1), report });
    net.run(Span::ms(100));
    assert_eq!(net.registry().held().rooms, 0);
}

#[test]
fn a_create_for_a_gone_instance_fails_at_once() {
    let mut net = net();
    let (prefill, decode) = (net.id(1), net.id(2));
    net.toys[1].client.leave(net.now);
    net.run(Span::ms(100));
    assert_eq!(net.toys[0].gone, [prefill]);
    assert_eq!(net.toys[2].gone, [prefill]);
    net.toys[0].create(key(1), prefill, decode);
    net.run(Span::ms(1));
    assert_eq!(outcome(&net, 1), Some(Outcome::Failed(Reason::PeerGone)));
    assert_eq!(net.registry().stats().creates_refused, 1);
    // Prefill was never told of it, so decode may free without a fence if it asks.
    net.toys[2].client.send(&Message::Abort { key: key(1), reason: Reason::Aborted });
    net.run(Span::ms(1));
    let clean = Message::Report { key: key(1), report: Report { delivered: false, clean: true } };
    assert_eq!(net.toys[2].events.last(), Some(&ClientEvent::Message(clean)));
}

#[test]
fn a_layout_that_does_not_fit_is_refused_with_both_fingerprints() {
    let mut net = net();
    net.toys.push(Toy::with(Role::Decode, 1, 0xdef));
    net.toys[3].client.start(net.now);
    net.run(Span::s(20));
    let Some(ClientEvent::Evicted { reason: Reason::Layout, why }) = net.toys[3].events.last() else {
        panic!("{:?}", net.toys[3].events)
    };
    assert!(why.contains("0x0000000000000def") && why.contains("0x0000000000000abc"), "{why}");
    assert!(net.toys[3].client.deadline() == Time::NEVER);
    assert_eq!(net.registry().instances().count(), 3);
    assert_eq!(net.registry().stats().refused, 1);
}

#[test]
fn silence_longer_than_the_lease_is_the_end_of_an_instance() {
    let mut net = net();
    net.toys[1].passive = true;
    net.toys[2].passive = true;
    create(&mut net, 1);
    net.run(Span::ms(100));
    let lost = net.id(1);
    net.toys[1].paused = true;
    // Nobody is told too early: the other side's view of the lease ends after its holder's.
    let until = net.toys[1].client.lease_until().unwrap();
    net.run(until.since(net.now));
    assert!(!net.toys[1].client.lease_valid(net.now));
    assert_eq!(net.toys[2].gone, []);
    net.run(Span::s(2));
    assert_eq!((&net.toys[0].gone, &net.toys[2].gone), (&vec![lost], &vec![lost]));
    assert_eq!(net.registry().stats().expired, 1);
    assert_eq!(outcome(&net, 1), Some(Outcome::Failed(Reason::PeerGone)));
    assert_eq!(net.registry().held().rooms, 0);
    // The zombie is told as soon as it speaks, and comes back as another instance.
    net.toys[1].paused = false;
    net.run(Span::s(1));
    assert!(matches!(
        net.toys[1].events.last(),
        Some(ClientEvent::Evicted { reason: Reason::LeaseLost, .. })
    ));
    assert!(!net.toys[1].client.lease_valid(net.now));
    net.toys[1].client.rejoin(net.now);
    net.run(Span::ms(100));
    assert!(net.id(1).0 > lost.0);
    assert_eq!(net.toys[0].members.len(), 2);
}

#[test]
fn heartbeats_keep_a_quiet_instance_and_cost_two_frames_each_third_of_a_lease() {
    let mut net = net();
    let before = net.wire.carried;
    for _ in 0..600 {
        net.run(Span::ms(100));
        assert!(net.toys.iter().all(|toy| toy.client.lease_valid(net.now)));
    }
    // 60 s, a lease of 5 s, three clients.
    let frames = net.wire.carried - before;
    assert!(frames <= 3 * 2 * 37, "{frames}");
    assert_eq!(net.registry().stats().expired, 0);
}

#[test]
fn a_restarted_node_is_a_new_instance_at_once() {
    let mut net = net();
    let old = net.id(2);
    net.toys[2] = Toy::new(Role::Decode, 2);
    net.toys[2].client.start(net.now);
    net.run(Span::ms(100));
    assert_eq!(net.toys[0].gone, [old]);
    assert!(net.id(2) != old && net.id(2) != InstanceId(0));
}

#[test]
fn frames_of_an_earlier_life_do_not_disturb_the_next() {
    let mut net = net();
    let mut late = Outbox::default();
    let mut ghost = Client::new(Role::Decode, Some(facts(0xabc)), SessionConfig::default(), 0);
    ghost.start(net.now);
    ghost.flush(net.now, &mut late);
    net.wire.take(net.now, NodeId(3), &late);
    net.run(Span::s(10));
    assert_eq!(net.registry().stats().resets, 1);
    assert!(net.toys[2].client.lease_valid(net.now) && net.toys[0].gone.is_empty());
}

#[test]
fn only_participants_are_heard() {
    let mut net = net();
    net.toys.push(Toy::new(Role::Decode, 1));
    net.toys[3].client.start(net.now);
    net.toys[1].passive = true;
    net.toys[2].passive = true;
    create(&mut net, 1);
    net.run(Span::ms(100));
    for message in [
        Message::Publish(list(key(1))),
        Message::Done { key: key(1), outcome: Outcome::Finished },
        Message::Report { key: key(1), report: Report { delivered: true, clean: true } },
        Message::Abort { key: key(1), reason: Reason::Aborted },
        Message::Cancel { key: key(1), reason: Reason::Aborted },
    ] {
        net.toys[3].client.send(&message);
    }
    // Nor are participants in another's place.
    net.toys[2].client.send(&Message::Publish(list(key(1))));
    net.toys[1].client.send(&Message::Done { key: key(1), outcome: Outcome::Finished });
    net.toys[2]
        .client
        .send(&Message::Report { key: key(1), report: Report { delivered: true, clean: true } });
    net.toys[2].client.send(&Message::Create {
        key: key(2),
        prefill: InstanceId(1),
        decode: InstanceId(2),
        request: Default::default(),
    });
    net.run(Span::ms(100));
    assert_eq!(net.registry().stats().not_participant, 8);
    assert_eq!((outcome(&net, 1), net.registry().held().rooms), (None, 1));
}

#[test]
fn a_cancel_reaches_both_sides_and_each_ends_on_its_own_word() {
    let mut net = net();
    net.toys[2].passive = true;
    create(&mut net, 1);
    net.run(Span::ms(1));
    net.toys[0].client.send(&Message::Cancel { key: key(1), reason: Reason::Deadline });
    net.run(Span::ms(1));
    assert_eq!(outcome(&net, 1), Some(Outcome::Failed(Reason::Deadline)));
    assert_eq!(net.toys[1].rooms[&key(1)].report, Some(Report { delivered: false, clean: true }));
    assert_eq!(net.registry().held().rooms, 0);
    // Once more: the tombstone answers.
    net.toys[0].client.send(&Message::Cancel { key: key(1), reason: Reason::Deadline });
    net.run(Span::ms(1));
    assert_eq!((net.toys[0].dones[&key(1)].len(), net.registry().stats().late), (2, 1));
}

#[test]
fn a_failed_decode_ends_prefill_too() {
    let mut net = net();
    net.toys[2].passive = true;
    create(&mut net, 1);
    net.run(Span::ms(1));
    let outcome = Outcome::Failed(Reason::NoMemory);
    net.toys[2].rooms.get_mut(&key(1)).unwrap().outcome = Some(outcome);
    net.toys[2].client.send(&Message::Done { key: key(1), outcome });
    net.run(Span::ms(1));
    assert_eq!(net.toys[1].rooms[&key(1)].report, Some(Report { delivered: false, clean: true }));
    assert_eq!(net.registry().held().rooms, 0);
}

#[test]
fn a_page_list_for_an_unknown_room_is_answered() {
    let mut net = net();
    net.toys[2].client.send(&Message::Publish(list(key(77))));
    net.toys[0].client.send(&Message::Cancel { key: key(78), reason: Reason::Aborted });
    net.run(Span::ms(1));
    let abort = Message::Abort { key: key(77), reason: Reason::PeerGone };
    assert!(net.toys[2].events.contains(&ClientEvent::Message(abort)));
    assert_eq!(net.toys[0].dones[&key(78)], [Outcome::Failed(Reason::Aborted)]);
    // Decode says that it is done with a room that is not known either.
    assert_eq!(net.registry().stats().unknown_room, 3);
    // The abort left a tombstone: the room cannot begin any more, nor a later attempt that was cancelled as early.
    let again = RoomKey { attempt: 2, ..key(78) };
    net.toys[0].client.send(&Message::Cancel { key: again, reason: Reason::Aborted });
    net.run(Span::ms(1));
    let (prefill, decode) = (net.id(1), net.id(2));
    for key in [key(78), again] {
        net.toys[0].create(key, prefill, decode);
    }
    net.run(Span::ms(1));
    let ends = [key(78), again].map(|key| net.toys[0].rooms[&key].outcome);
    assert_eq!(ends, [Some(Outcome::Failed(Reason::Refused)), Some(Outcome::Failed(Reason::Aborted))]);
    assert!(net.toys[1].rooms.is_empty());
}

#[test]
fn links_and_facts_go_through_and_say_who_is_gone() {
    let mut net = net();
    let (prefill, decode) = (net.id(1), net.id(2));
    net.toys[1].client.send(&Message::Query { instance: decode });
    net.toys[1].client.send(&Message::Link { peer: decode, body: LinkBody::Ask { broken: 4 } });
    net.toys[1].client.send(&Message::Link { peer: InstanceId(99), body: LinkBody::Ask { broken: 4 } });
    net.toys[1].client.send(&Message::Query { instance: InstanceId(99) });
    net.run(Span::ms(1));
    let told = &net.toys[1].events;
    let facts = Some(Box::new(facts(0xabc)));
    assert!(told.contains(&ClientEvent::Message(Message::FactsOf { instance: decode, facts })));
    let none = Message::FactsOf { instance: InstanceId(99), facts: None };
    assert!(told.contains(&ClientEvent::Message(none)));
    assert_eq!((&net.toys[1].gone[..], net.registry().stats().to_gone), (&[InstanceId(99)][..], 1));
    let ask = Message::Link { peer: prefill, body: LinkBody::Ask { broken: 4 } };
    assert_eq!(net.toys[2].events.last(), Some(&ClientEvent::Message(ask)));
}

#[test]
fn a_restarted_registry_gets_its_instances_back_under_their_ids() {
    let mut net = net();
    let ids: Vec<_> = (0..3).map(|toy| net.id(toy)).collect();
    net.registry = None;
    net.run(Span::s(1));
    net.restart(2);
    net.run(Span::s(3));
    assert_eq!((0..3).map(|toy| net.id(toy)).collect::<Vec<_>>(), ids);
    assert!(net.toys.iter().all(|toy| toy.events.contains(&ClientEvent::NewEpoch)));
    net.toys.push(Toy::new(Role::Prefill, 1));
    net.toys[3].client.start(net.now);
    net.run(Span::s(10));
    assert!(!ids.contains(&net.id(3)), "an id was given out twice");
    create(&mut net, 5);
    net.run(Span::ms(500));
    assert_eq!(outcome(&net, 5), Some(Outcome::Finished));
    assert!(net.toys.iter().all(|toy| toy.gone.is_empty()));
}

#[test]
fn an_instance_that_died_with_the_registry_is_told_as_gone() {
    let mut net = net();
    let (prefill, decode) = (net.id(1), net.id(2));
    net.toys[2].client.send(&Message::Query { instance: prefill });
    net.toys[2].passive = true;
    create(&mut net, 1);
    net.run(Span::ms(10));
    net.registry = None;
    net.toys[1].paused = true;
    net.run(Span::ms(100));
    net.restart(2);
    net.run(Span::s(4));
    // It may still come back.
    assert_eq!((outcome(&net, 1), net.toys[2].gone.len()), (None, 0));
    net.run(Span::s(8));
    assert_eq!((&net.toys[0].gone, &net.toys[2].gone), (&vec![prefill], &vec![prefill]));
    assert_eq!(outcome(&net, 1), Some(Outcome::Failed(Reason::PeerGone)));
    assert_eq!(net.registry().held().rooms, 0);
    // Too late: everyone has fenced it.
    net.toys[1].paused = false;
    net.run(Span::s(5));
    assert!(net.toys[1].client.is_ended());
    assert_eq!(net.id(2), decode);
}

#[test]
fn who_was_given_up_before_a_restart_is_not_let_in_after_it() {
    let mut net = net();
    let zombie = net.id(1);
    net.toys[1].paused = true;
    net.run(Span::s(8));
    assert_eq!(net.toys[0].gone, [zombie]);
    net.registry = None;
    net.run(Span::ms(10));
    net.restart(2);
    net.toys[1].paused = false;
    net.run(Span::s(12));
    assert!(net.toys[1].client.is_ended(), "{:?}", net.toys[1].events);
    assert_eq!(net.registry().instances().count(), 2);
}

/// Nobody named it while it could come back, so it was not told as gone to everybody; but the router acted on it.
#[test]
fn who_a_create_was_refused_for_is_not_let_in_later() {
    let mut net = net();
    let (prefill, decode) = (net.id(1), net.id(2));
    net.registry = None;
    net.toys[1].paused = true;
    net.run(Span::ms(100));
    net.restart(2);
    net.run(Span::s(15));
    net.toys[0].create(key(1), prefill, decode);
    net.run(Span::ms(10));
    assert_eq!(outcome(&net, 1), Some(Outcome::Failed(Reason::PeerGone)));
    net.toys[1].paused = false;
    net.run(Span::s(5));
    assert!(net.toys[1].client.is_ended(), "{:?}", net.toys[1].events);
    assert_eq!(net.registry().instances().count(), 2);
}

#[test]
fn a_router_that_is_gone_leaves_no_rooms_behind() {
    let mut net = net();
    net.toys[2].passive = true;
    create(&mut net, 1);
    net.run(Span::ms(10));
    net.toys[0].paused = true;
    net.run(Span::s(8));
    assert_eq!(net.registry().held().rooms, 0);
    assert_eq!((net.toys[1].live(), net.toys[2].live()), (0, 0));
}

#[test]
fn tables_are_bounded() {
    let limits = RegistryLimits { clients: 3, rooms: 2, tombstones: 5, ..RegistryLimits::default() };
    let mut net = Net::new(&[THREE[0], THREE[1], THREE[2], THREE[2]], Faults::NONE, 1);
    net.registry = Some(Registry::new(1, RegistryConfig { limits, ..RegistryConfig::default() }));
    net.run(Span::s(1));
    assert_eq!(net.registry().instances().count(), 3);
    assert!(net.registry().stats().full > 0);
    net.toys.iter_mut().for_each(|toy| toy.passive = true);
    let out = (0..4).find(|toy| net.id(*toy) == InstanceId(0)).unwrap();
    if out != 0 {
        let members: Vec<_> = net.toys[0].members.iter().map(|(id, role)| (*id, *role)).collect();
        let side =
            |wanted| members.iter().find(|(_, role)| *role == wanted).map_or(InstanceId(9), |(id, _)| *id);
        let (prefill, decode) = (side(Role::Prefill), side(Role::Decode));
        if out == 3 {
            (1..=3).for_each(|room| net.toys[0].create(key(room), prefill, decode));
            net.run(Span::ms(10));
            assert_eq!(outcome(&net, 3), Some(Outcome::Failed(Reason::Refused)));
            assert_eq!(net.registry().held().rooms, 2);
        }
    }
    let before = net.registry().footprint();
    for room in 10..200 {
        net.toys[0].client.send(&Message::Cancel { key: key(room), reason: Reason::Aborted });
        net.run(Span::ms(100));
    }
    net.run(Span::ms(500));
    assert!(net.registry().footprint() <= before + 5 + 4, "{}", net.registry().footprint());
}

#[test]
fn what_is_no_message_ends_the_session_that_sent_it() {
    let mut registry = Registry::new(1, RegistryConfig::default());
    let mut out = Outbox::default();
    let mut frame = Vec::new();
    let header = Header { flags: FrameFlags::SYN, count: 1, nonce: 1, seq: 1, ..Header::default() };
    header.write(&[2, 0, 99, 1], &mut frame);
    registry.step(Time(1), Input::Frame { from: NodeId(4), bytes: &frame }, &mut out);
    let (to, answer) = out.frames().next().unwrap();
    let answer = Frame::parse(answer).unwrap();
    let (_, segment) = answer.segments().next().unwrap();
    let Ok(Message::Refused { reason: Reason::Refused, why }) = decode(segment) else { panic!() };
    assert_eq!((to, why.as_str()), (NodeId(4), "this is no message: message kind 99 is not known"));
}

#[test]
fn a_run_repeats_itself_frame_by_frame() {
    let run = || {
        let faults = Faults { lost: 100, doubled: 100, damaged: 20, delay: Span::ms(20) };
        let mut net = Net::new(&THREE, faults, 9);
        net.run(Span::s(2));
        for room in 1..50 {
            create(&mut net, room);
            net.run(Span::ms(13));
        }
        net.run(Span::s(20));
        (net.wire.carried, net.registry().stats(), format!("{:?}", net.toys[0].dones))
    };
    assert_eq!(run(), run());
}

#[test]
fn who_leaves_before_it_began_has_ended() {
    let mut client = Toy::new(Role::Decode, 1).client;
    assert!(!client.is_ended());
    client.leave(Time::ZERO);
    assert!(client.is_ended());
    // And who has begun only when the registry knows.
    let mut net = net();
    net.toys[2].client.leave(net.now);
    net.toys[2].client.leave(net.now);
    assert!(!net.toys[2].client.is_ended());
    net.run(Span::s(1));
    assert!(net.toys[2].client.is_ended());
}

#[test]
fn an_instance_that_hears_nothing_is_given_no_more_rooms() {
    let limits = RegistryLimits { backlog: 4000, ..RegistryLimits::default() };
    let mut net = Net::new(&THREE, Faults::NONE, 1);
    net.registry = Some(Registry::new(1, RegistryConfig { limits, ..RegistryConfig::default() }));
    net.run(Span::ms(100));
    net.toys[2].paused = true;
    for room in 1..=200 {
        create(&mut net, room);
        net.run(Span::us(200));
    }
    let refused = (1..=200).filter(|room| outcome(&net, *room).is_some()).collect::<Vec<_>>();
    assert!(refused.iter().all(|room| outcome(&net, *room) == Some(Outcome::Failed(Reason::Refused))));
    // Half of what it may have waiting was for rooms, and it is not given up for them.
    assert!(refused.len() > 100 && refused.len() < 190, "{}", refused.len());
    assert!(refused.iter().copied().eq(200 - refused.len() as u64 + 1..=200));
    assert!(net.toys[0].gone.is_empty());
}

/// Who does not listen while more than the bound is said to him is given up, and told so when he comes back.
#[test]
fn a_client_for_whom_too_much_waits_is_given_up() {
    let limits = RegistryLimits { backlog: 1000, ..RegistryLimits::default() };
    let mut net = Net::new(&THREE, Faults::NONE, 1);
    net.registry = Some(Registry::new(1, RegistryConfig { limits, ..RegistryConfig::default() }));
    net.run(Span::ms(100));
    let (prefill, decode) = (net.id(1), net.id(2));
    net.toys[2].paused = true;
    let mut said = 0;
    while net.toys[0].gone.is_empty() {
        said += 1;
        assert!(said < 200, "it was never given up");
        net.toys[1].client.send(&Message::Link { peer: decode, body: LinkBody::Ask { broken: said } });
        net.run(Span::us(100));
    }
    // A message takes a dozen bytes.
    assert!(said > 50, "after {said} messages");
    assert_eq!((&net.toys[0].gone, net.registry().stats().refused), (&vec![decode], 1));
    assert_eq!(net.registry().instances().map(|(id, ..)| id).collect::<Vec<_>>(), [net.id(0), prefill]);
    net.toys[2].paused = false;
    net.run(Span::s(3));
    let Some(ClientEvent::Evicted { reason: Reason::LeaseLost, why }) = net.toys[2].events.last() else {
        panic!("{:?}", net.toys[2].events)
    };
    assert!(why.ends_with("bytes wait for this client"), "{why}");
}

/// Decode is gone and prefill has not said how it ended: the room is no one else's to have.
#[test]
fn a_room_whose_decode_is_gone_is_not_created_again_with_another() {
    let mut net = Net::new(&[THREE[0], THREE[1], THREE[2], THREE[2]], Faults::NONE, 1);
    net.run(Span::ms(100));
    net.toys[1].passive = true;
    net.toys[2].passive = true;
    create(&mut net, 1);
    net.run(Span::ms(1));
    net.toys[1].paused = true;
    net.toys[2].client.leave(net.now);
    net.run(Span::ms(100));
    let (prefill, other) = (net.id(1), net.id(3));
    net.toys[0].create(key(1), prefill, other);
    net.run(Span::ms(1));
    assert_eq!(net.toys[0].dones[&key(1)], [Outcome::Failed(Reason::Refused)]);
    assert!(net.toys[3].rooms.is_empty());
    // Another attempt may be made.
    let again = RoomKey { attempt: 1, ..key(1) };
    net.toys[0].create(again, prefill, other);
    net.run(Span::ms(1));
    assert_eq!(net.toys[3].rooms[&again].assigned, 1);
}
