//! What each end answers when it is asked, and what it refuses to take from the other.

use crate::rig::{D, Duo, P, PAGES, TOKENS, is_ask, is_offer, is_publish, key, table};
use engine::fabric::Fabric as _;
use engine::id::{InstanceId, Page, RequestId};
use engine::node::Reason;
use engine::policy::{Direction, Window};
use engine::registry::{LinkBody, LiveRoom, Message, PageList, PageRun, RoomKey};
use engine::time::Span;
use engine::transfer::{End, News, Opening, RoomState, TargetRoom};

const NOBODY: InstanceId = InstanceId(7);

/// Both ends connected, with aux slots for so many rooms.
fn with_slots(slots: u32, direction: Direction) -> Duo {
    let mut t = Duo::new(|config| (config.slots, config.direction) = (slots, direction));
    t.talk();
    t
}

fn state(end: &dyn End, room: u64) -> Option<RoomState> {
    let mut state = None;
    end.rooms(&mut |named, _, is| state = (named == key(room)).then_some(is).or(state));
    state.or_else(|| end.ended(&key(room)))
}

/// Takes the offer that the target makes next and says whom it names as live.
fn offered(t: &mut Duo) -> Vec<LiveRoom> {
    t.fail_qp(0, 0);
    t.run(Span::ms(1));
    t.arrives(0, is_ask);
    match t.said[1].iter().find(|message| is_offer(message)) {
        Some(Message::Link { body: LinkBody::Offer { live, .. }, .. }) => live.clone(),
        other => panic!("{other:?}"),
    }
}

/// An offer names the rooms that may still move, with the parts that have been seen of them.
#[test]
fn an_offer_names_live_rooms_alone() {
    let keys = |live: Vec<LiveRoom>| live.iter().map(|room| room.key).collect::<Vec<RoomKey>>();
    let mut t = with_slots(2, Direction::Push);
    t.begins(0);
    t.talk();
    t.run(Span::ms(10));
    t.talk();
    assert!(t.news.contains(&News::Success(key(0))), "and reported, but decode is not done with it");
    t.opens(1);
    let live = offered(&mut t);
    assert!(live[0].seen.is_empty());
    assert_eq!(keys(live), [key(1)]);

    // Without pages there is nothing to read.
    let mut t = with_slots(2, Direction::Pull);
    let spec = TargetRoom { key: key(0), request: RequestId(0), peer: P, group: 0, tokens: TOKENS };
    assert!(t.receiver(|r, cx| r.open_shown(cx, spec)));
    t.opens(1);
    assert_eq!(keys(offered(&mut t)), [key(1)]);
}

/// An instance that is known is known at both ends, and nobody else.
#[test]
fn peers_are_known() {
    let mut t = Duo::connected(|_| {});
    assert!(t.sender.knows(D) && t.receiver.knows(P));
    assert!(!t.sender.knows(NOBODY) && !t.receiver.knows(NOBODY));
    t.sender(|s, cx| s.peer_gone(cx, D));
    t.receiver(|r, cx| r.peer_gone(cx, P));
    assert!(!t.sender.knows(D) && !t.receiver.knows(P));
}

/// A room can be opened if there are a slot and receives for it, and could ever be if all receives of a queue are enough.
#[test]
fn when_a_room_can_be_opened() {
    let mut t = with_slots(2, Direction::Push);
    assert_eq!((t.receiver.opening(P, 0), t.receiver.opening(NOBODY, 0)), (Opening::Now, Opening::Later));
    assert!(t.receiver.could_open(P, 0));
    t.opens(0);
    let one = t.receiver.held().receives;
    assert!(one > 0 && t.receiver.opening(P, 0) == Opening::Now);
    t.opens(1);
    assert_eq!((t.receiver.held().receives, t.receiver.opening(P, 0)), (2 * one, Opening::Full));
    for room in 0..2 {
        t.receiver(|r, cx| r.abort(cx, key(room), Reason::Aborted, false));
    }
    t.sender(|s, cx| s.abort(cx, key(0), Reason::Aborted, false));
    t.arrives(0, |message| matches!(message, Message::Report { .. }));
    assert_eq!((t.receiver.held().receives, t.receiver.opening(P, 0)), (one, Opening::Now));
    // Both ports have the same.
    let need = one as u32 / 2;
    for (depth, first, could) in [(need - 1, Opening::Later, false), (need, Opening::Now, true)] {
        let mut t = Duo::new(|config| (config.slots, config.receive_depth) = (2, depth));
        t.talk();
        assert_eq!((t.receiver.opening(P, 0), t.receiver.could_open(P, 0)), (first, could), "{depth}");
        if could {
            t.opens(0);
            assert_eq!(t.receiver.opening(P, 0), Opening::Later, "its receives are all promised");
        }
    }
}

/// What both ends say of a room to who looks on, and which of them is still at work on it.
#[test]
fn a_room_moves_on_through_its_states() {
    use RoomState::{Bootstrapping, Failed, Success, Transferring, WaitingForInput};
    for direction in [Direction::Push, Direction::Pull] {
        let pull = direction == Direction::Pull;
        let mut t = with_slots(2, direction);
        let both = |t: &Duo| (state(&t.sender, 0), state(&t.receiver, 0));
        assert_eq!(both(&t), (None, None));
        assert!(t.assign(0) && !t.assign(0), "once");
        assert!(t.sender.is_active(&key(0)) && !t.sender.is_active(&key(1)));
        assert_eq!(both(&t), (Some(Bootstrapping), None));
        t.opens(0);
        assert!(t.receiver.is_live(&key(0)) && !t.receiver.is_live(&key(1)));
        assert!(t.sender.is_timed(&key(0)) && t.receiver.is_timed(&key(0)));
        t.talk();
        assert_eq!(both(&t), (Some(WaitingForInput), Some(WaitingForInput)));
        t.computes(0, 0..32, false);
        t.talk();
        t.run(Span::ms(10));
        assert_eq!(both(&t), (Some(Transferring), Some(Transferring)));
        t.computes(0, 32..TOKENS, true);
        t.talk();
        t.run(Span::ms(10));
        t.talk();
        assert_eq!(both(&t), (Some(Success), Some(Success)), "{direction:?}");
        assert!(!t.receiver.is_live(&key(0)) && !t.sender.is_active(&key(0)));
        if pull {
            assert!(!t.sender.is_timed(&key(0)) && !t.receiver.is_timed(&key(0)));
        }
        // Its deadline passes at one end: it has failed at both.
        t.assign(1);
        t.opens(1);
        t.talk();
        assert!(t.receiver(|r, cx| r.expire(cx, key(1))));
        assert!(t.news.contains(&News::Failed(key(1), Reason::Deadline)));
        t.talk();
        assert_eq!((state(&t.sender, 1), state(&t.receiver, 1)), (Some(Failed), Some(Failed)));
        assert!(!t.sender.is_active(&key(1)) && !t.sender.is_timed(&key(1)));
    }
}

/// A room lands once, and not after it has ended.
#[test]
fn pages_to_read_into_are_given_once() {
    let mut t = with_slots(2, Direction::Pull);
    t.assign(0);
    assert!(t.sender.can_land() && !t.sender(|s, cx| s.land(cx, &key(0), &table(0))), "it has its pages");
    t.opens(0);
    assert!(t.receiver.can_attach() && !t.receiver(|r, cx| r.attach(cx, &key(0), &table(0), 0)));
    assert_eq!((t.sender.held().slots, t.receiver.held().slots), (1, 1));
}

/// Prefill takes a page list only if it can be written to, and in order: all of it, once.
#[test]
fn page_lists_are_checked() {
    let story = |change: &dyn Fn(&mut PageList) -> Vec<PageList>| {
        let mut t = with_slots(1, Direction::Push);
        t.assign(0);
        t.opens(0);
        let at = t.said[1].iter().position(is_publish).unwrap();
        let Message::Publish(mut list) = t.said[1].remove(at) else { unreachable!() };
        for list in change(&mut list) {
            t.sender(|s, cx| s.publish(cx, &list));
        }
        t.computes(0, 0..TOKENS, true);
        t.run(Span::ms(10));
        let refused = t.news.contains(&News::Failed(key(0), Reason::Refused));
        assert!(!refused || t.is_marked(), "nothing is written for what is refused");
        (refused, t.holds(0))
    };
    let one = |change: &dyn Fn(&mut PageList)| {
        story(&|list| {
            change(list);
            vec![list.clone()]
        })
    };
    let (taken, refused) = ((false, true), (true, false));
    assert_eq!(one(&|_| {}), taken);
    for wrong in [
        &|list: &mut PageList| list.pages[0].first = Page(0),
        &|list| list.pages[0].first = Page(PAGES - 3),
        &|list| list.pages[0].first = Page(u32::MAX),
        &|list| list.tokens += 1,
        &|list| list.credits = 0,
        &|list| list.total -= 1,
        &|list| list.offset = 1,
        &|list| list.slot = 1,
        &|list| list.group = 1,
        &|list| list.pages.push(PageRun { first: Page(1), count: u32::MAX }),
    ] as [&dyn Fn(&mut PageList); 10]
    {
        assert_eq!(one(wrong), refused);
    }
    // To the last page of the pool.
    assert!(!one(&|list| list.pages[0].first = Page(PAGES - 4)).0);
    // In pieces, some of them twice.
    let cut = |list: &PageList, from: u32, to: u32| PageList {
        offset: from,
        pages: vec![PageRun { first: Page(list.pages[0].first.0 + from), count: to - from }],
        ..list.clone()
    };
    assert_eq!(story(&|list| vec![cut(list, 0, 1), cut(list, 1, 4)]), taken);
    assert_eq!(
        story(&|list| vec![cut(list, 0, 1), cut(list, 0, 1), cut(list, 1, 4), cut(list, 1, 4)]),
        taken
    );
    assert_eq!(story(&|list| vec![cut(list, 0, 1), cut(list, 2, 4)]), refused, "a gap");
    assert_eq!(story(&|list| vec![cut(list, 0, 3)]), (false, false), "waits for the rest");
    let empty = |list: &PageList| PageList { pages: Vec::new(), ..list.clone() };
    assert_eq!(story(&|list| vec![empty(list), list.clone()]), taken);
}

/// With one request to a slice, each that a failed queue pair flushes ends its own slice: nothing is waited for, and nothing is left in the window.
#[test]
fn single_requests_end_with_their_queue_pair() {
    for direction in [Direction::Push, Direction::Pull] {
        let mut t = Duo::new(|config| {
            config.direction = direction;
            config.max_message = 1024;
            config.window = Window { bytes: 1024, ..Window::default() };
        });
        t.talk();
        t.begins(0);
        t.talk();
        t.run(Span::us(100));
        t.fail_qp(0, 0);
        t.run(Span::ms(1));
        t.talk();
        t.run(Span::ms(20));
        t.talk();
        assert!(t.news.contains(&News::Success(key(0))) && t.holds(0), "{direction:?}");
        let counts = t.fabrics.host(0).ports().len();
        let left: Vec<_> = (0..counts as u32)
            .map(|port| t.fabrics.host_ref(0).outstanding(engine::id::PortId(port)))
            .collect();
        assert_eq!(left, vec![(0, 0); counts]);
    }
}
