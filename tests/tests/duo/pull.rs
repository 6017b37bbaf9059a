//! Pull: decode reads.

use crate::rig::{Duo, TOKENS, is_ask, is_lost, is_offer, is_produced, is_publish, is_ready, key};
use engine::node::Reason;
use engine::policy::Direction;
use engine::registry::Message;
use engine::time::Span;
use engine::transfer::{End as _, News, RoomState};

#[test]
fn nothing_goes_wrong_in_order() {
    let mut t = Duo::connected_to(Direction::Pull, |_| {});
    for room in 0..2 {
        t.opens(room);
        t.assign(room);
        t.talk();
        t.computes(room, 0..40, false);
        t.talk();
        t.computes(room, 40..TOKENS, true);
        t.talk();
        t.run(Span::ms(10));
        assert!(t.news.contains(&News::Success(key(room))) && t.holds(room));
        t.talk();
        assert!(t.news.contains(&News::Released(key(room))), "prefill has its pages back");
    }
    assert_eq!((t.receiver.held().rooms, t.sender.held().rooms, t.receiver.stats().fences), (0, 0, 0));
    assert_eq!((t.receiver.held().slots, t.sender.held().slots), (0, 0));
}

/// Prefill frees by fence what decode has the page list of, the abort is late: the offer must name who is live. Then comes the word that
/// all of it can be read.
#[test]
fn live_list() {
    let story = |on: bool| {
        let mut t = Duo::connected_to(Direction::Pull, |r| r.live_list = on);
        t.begins(0);
        t.arrives(1, is_publish);
        t.gives_up_and_frees(0);
        t.reconnects();
        t.arrives(1, is_produced);
        t.run(Span::ms(10));
        is_lost(&t, 0)
    };
    assert!(!story(true));
    assert!(story(false), "Success with what the next owner has in the pages");
}

/// The page list itself arrives after the fence that freed its pages and the reconnect.
#[test]
fn fence_epoch() {
    let story = |on: bool| {
        let mut t = Duo::connected_to(Direction::Pull, |r| r.fence_epoch = on);
        t.begins(0);
        t.gives_up_and_frees(0);
        t.reconnects();
        t.arrives(1, is_publish);
        t.arrives(1, is_produced);
        t.run(Span::ms(10));
        is_lost(&t, 0)
    };
    assert!(!story(true));
    assert!(story(false), "Success with what the next owner has in the pages");
}

/// An offer that lists a room as live is under way when prefill frees the room.
#[test]
fn fence_voids_offers() {
    let story = |on: bool| {
        let mut t = Duo::connected_to(Direction::Pull, |r| r.fence_voids_offers = on);
        t.begins(0);
        t.talk();
        t.fail_qp(0, 0);
        t.run(Span::ms(1));
        t.arrives(0, is_ask);
        t.frees_with_an_offer_under_way(0);
        t.run(Span::ms(10));
        is_lost(&t, 0)
    };
    assert!(!story(true));
    assert!(story(false), "Success with what the next owner has in the pages");
}

/// An abort reaches decode before the room does, is answered with "none posted", and prefill frees for it. Then room and page list come.
#[test]
fn tombstones() {
    let story = |on: bool| {
        let mut t = Duo::connected_to(Direction::Pull, |r| r.tombstones = on);
        t.opens(0);
        t.computes(0, 0..TOKENS, true);
        t.ends_unknown(0);
        t.assign(0);
        t.arrives(1, is_publish);
        t.arrives(1, is_produced);
        t.run(Span::ms(10));
        is_lost(&t, 0)
    };
    assert!(!story(true));
    assert!(story(false), "Success with what the next owner has in the pages");
}

/// Decode gives up with READs that were flushed: one of them may still be under way, so that only a fence frees prefill's pages.
#[test]
fn honest_report() {
    let story = |on: bool| {
        let mut t = Duo::connected_to(Direction::Pull, |r| r.honest_report = on);
        t.begins(0);
        t.talk();
        t.fail_qp(0, 0);
        t.sender(|s, cx| s.abort(cx, key(0), Reason::Aborted, true));
        t.run(Span::ms(1));
        t.arrives(0, |m| matches!(m, Message::Report { .. }));
        assert!(t.news.contains(&News::Released(key(0))));
        t.receiver.stats().fences
    };
    assert_eq!(story(true), 1);
    assert_eq!(story(false), 0, "pages are freed that a READ may still be served from");
}

/// READs are posted only when prefill's end can answer them.
#[test]
fn ready_gate() {
    let story = |on: bool| {
        let mut t = Duo::new(|config| {
            config.direction = Direction::Pull;
            config.rules.ready_gate = on;
        });
        t.begins(0);
        while let Some(at) = t.said[1].iter().position(|m| !is_ready(m)) {
            let message = t.said[1].remove(at);
            t.hear(1, message);
        }
        t.arrives(0, is_ask);
        t.arrives(1, is_offer);
        // The answer takes its time.
        t.run(Span::ms(1));
        t.talk();
        t.run(Span::ms(10));
        let early = t.fabrics.counters().dropped;
        t.run(Span::s(2));
        t.talk();
        t.run(Span::s(2));
        assert!(t.holds(0));
        early
    };
    assert_eq!(story(true), 0);
    assert!(story(false) > 0, "requests are sent to an end that cannot take them");
}

/// What decode is told of a room is checked: pieces that lie outside, and a rest that is not all, end the room instead of a Success on part of
/// it; what comes twice is passed over, and what comes too early is waited for.
#[test]
fn pieces_are_checked() {
    use engine::registry::Piece;
    let piece = |tokens, layers| Piece { tokens, layers };
    let story = |told: &[(u32, &[Piece], bool)]| {
        let mut t = Duo::connected_to(Direction::Pull, |_| {});
        t.begins(0);
        t.arrives(1, is_publish);
        for (before, pieces, last) in told {
            t.sender(|s, cx| s.told(cx, &key(0), *before, pieces, last.then_some(&[][..])));
        }
        t.run(Span::ms(10));
        (t.news.contains(&News::Success(key(0))), t.sender.held().rooms)
    };
    let halves = [piece(0..32, 0..4), piece(32..TOKENS, 0..4)];
    assert_eq!(story(&[(0, &halves, true)]), (true, 0));
    assert_eq!(story(&[(0, &halves[..1], false), (0, &halves, true)]), (true, 0));
    assert_eq!(
        story(&[(0, &halves[..1], false), (0, &halves[..1], false), (1, &halves[1..], true)]),
        (true, 0)
    );
    assert_eq!(story(&[(0, &halves, false), (2, &[], true)]), (true, 0));
    // A gap: the rest is told again.
    assert_eq!(story(&[(1, &halves[1..], true)]), (false, 1));
    assert_eq!(story(&[(1, &halves[1..], true), (0, &halves, true)]), (true, 0));
    for wrong in [
        &[halves[0].clone()][..],
        &[],
        &[piece(0..TOKENS + 1, 0..4)],
        &[piece(0..TOKENS, 0..5)],
        &[piece(0..TOKENS, 0..3)],
    ] {
        assert_eq!(story(&[(0, wrong, true)]), (false, 0), "{wrong:?}");
    }
}

/// What the target says of a room to who looks on.
#[test]
fn states() {
    let mut t = Duo::connected_to(Direction::Pull, |_| {});
    let state = |t: &Duo| {
        let mut state = None;
        t.receiver.rooms(&mut |room, _, is| state = (room == key(0)).then_some(is).or(state));
        state
    };
    assert_eq!(state(&t), None);
    t.opens(0);
    assert_eq!(state(&t), Some(RoomState::WaitingForInput));
    t.computes(0, 0..40, false);
    assert_eq!(state(&t), Some(RoomState::Transferring));
}
