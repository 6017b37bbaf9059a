//! Push: prefill writes.

use crate::rig::{D, Duo, TOKENS, is_ask, is_offer, is_publish, key};
use engine::id::PortId;
use engine::node::Reason;
use engine::registry::{LinkBody, Message};
use engine::time::Span;
use engine::transfer::{End as _, News, Rules};
use sim::fabric::PortFault;

#[test]
fn nothing_goes_wrong_in_order() {
    let mut t = Duo::connected(|_| {});
    for room in 0..2 {
        t.assign(room);
        t.opens(room);
        t.talk();
        t.computes(room, 0..40, false);
        t.computes(room, 40..TOKENS, true);
        t.run(Span::ms(10));
        assert!(t.news.contains(&News::Success(key(room))) && t.holds(room));
        t.receiver(|r, cx| r.finish(cx, key(room)));
        t.talk();
    }
    assert_eq!((t.receiver.held().rooms, t.sender.held().rooms, t.receiver.stats().fences), (0, 0, 0));
    // No deadline of a room that never was can pass.
    assert!(!t.receiver(|r, cx| r.expire(cx, key(7))) && !t.sender(|s, cx| s.expire(cx, key(7))));
}

/// A page list arrives, decode frees by fence, and the abort that would tell so is late: the offer must name who is live.
#[test]
fn live_list() {
    let story = |on: bool| {
        let mut t = Duo::connected(|r| r.live_list = on);
        t.assign(0);
        t.opens(0);
        t.arrives(1, is_publish);
        t.gives_up_and_frees(0);
        t.reconnects();
        t.computes(0, 0..TOKENS, true);
        t.run(Span::ms(10));
        t
    };
    assert!(story(true).is_marked());
    assert!(!story(false).is_marked(), "data lands in freed pages");
}

/// A page list arrives after the fence that freed its pages and the reconnect: its epoch must give it away.
#[test]
fn fence_epoch() {
    let story = |on: bool| {
        let mut t = Duo::connected(|r| r.fence_epoch = on);
        t.assign(0);
        t.opens(0);
        t.gives_up_and_frees(0);
        t.reconnects();
        t.arrives(1, is_publish);
        t.computes(0, 0..TOKENS, true);
        t.run(Span::ms(10));
        t
    };
    assert!(story(true).is_marked());
    assert!(!story(false).is_marked(), "data lands in freed pages");
}

/// An offer that lists a room as live is under way when decode frees the room: the answer to it must not be accepted.
#[test]
fn fence_voids_offers() {
    let story = |on: bool| {
        let mut t = Duo::connected(|r| r.fence_voids_offers = on);
        t.assign(0);
        t.opens(0);
        t.talk();
        t.computes(0, 0..16, false);
        t.fail_qp(0, 0);
        t.run(Span::ms(1));
        // The ask arrives, the offer is made while the room is live.
        t.arrives(0, is_ask);
        t.frees_with_an_offer_under_way(0);
        t.run(Span::ms(10));
        t
    };
    assert!(story(true).is_marked());
    assert!(!story(false).is_marked(), "data lands in freed pages");
}

/// An abort for a room that is not known yet, answered with "none posted"; decode frees for it. Then the assignment arrives.
#[test]
fn tombstones() {
    let story = |on: bool| {
        let mut t = Duo::connected(|r| r.tombstones = on);
        t.opens(0);
        t.ends_unknown(0);
        t.assign(0);
        t.arrives(1, is_publish);
        t.computes(0, 0..TOKENS, true);
        t.run(Span::ms(10));
        t
    };
    assert!(story(true).is_marked());
    assert!(!story(false).is_marked(), "data lands in freed pages");
}

/// Decode has answered, but its end cannot receive before it has the answer: requests posted before that are lost, and come again only after
/// the ACK timeout.
#[test]
fn ready_gate() {
    let story = |on: bool| {
        let mut t = Duo::connected(|r| r.ready_gate = on);
        t.assign(0);
        t.opens(0);
        t.talk();
        t.fail_qp(0, 0);
        t.run(Span::ms(1));
        t.arrives(0, is_ask);
        t.arrives(1, is_offer);
        t.computes(0, 0..TOKENS, true);
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

/// A part arrives, its completion is lost with the queue pair: it must not be written again.
fn seen_part_comes_again(change: impl Fn(&mut Rules)) -> Duo {
    let mut t = Duo::connected(change);
    t.assign(0);
    t.opens(0);
    t.talk();
    t.computes(0, 0..32, false);
    // Both parts of the first piece have arrived, no ACK has come back.
    while t.fabrics.host_ref(1).counters().completions < 2 {
        t.run(Span::ns(500));
    }
    t.fail_qp(0, 0);
    t.run(Span::ms(1));
    t.talk();
    t
}

#[test]
fn seen_list() {
    let story = |on: bool| {
        let mut t = seen_part_comes_again(|r| r.seen_list = on);
        t.computes(0, 32..TOKENS, true);
        t.run(Span::ms(10));
        assert!(t.news.contains(&News::Success(key(0))) && t.holds(0));
        t.receiver.stats().repeated_parts
    };
    assert_eq!(story(true), 0);
    assert!(story(false) > 0, "a part that was seen, and that decode may have appended to, is written again");
}

/// The count counts a repeated part for one that is missing. With the seen list no part is repeated, so both must be off for the loss;
/// the set is what makes the target safe whatever the initiator repeats.
#[test]
fn parts_are_a_set() {
    let story = |set: bool| {
        let mut t = seen_part_comes_again(|r| {
            r.seen_list = false;
            r.parts_are_a_set = set;
        });
        t.run(Span::ms(1));
        assert_eq!(t.receiver.stats().repeated_parts, 2);
        // Of the second piece only the part on rail 1 gets through: it has the seal.
        t.fabrics.port_fault(0, PortId(0), PortFault::Down(true), t.now, &mut t.queue, &mut t.ready);
        t.computes(0, 32..TOKENS, true);
        t.run(Span::ms(5));
        (t.news.contains(&News::Success(key(0))), t.holds(0))
    };
    assert_eq!(story(true), (false, false));
    assert_eq!(story(false), (true, false), "Success without all data");
}

/// The initiator gives the queue pairs up: nothing can be written any more, so what waited for that is free at once.
#[test]
fn a_close_is_a_fence() {
    let mut t = Duo::connected(|_| {});
    t.assign(0);
    t.opens(0);
    t.receiver(|r, cx| r.abort(cx, key(0), Reason::Deadline, false));
    assert!(!t.news.contains(&News::Released(key(0))), "the initiator has not reported");
    let queue_pairs = t.receiver.held().queue_pairs;
    t.hear(0, Message::Link { peer: D, body: LinkBody::Close { offer: 0 } });
    assert_eq!(t.receiver.held().queue_pairs, queue_pairs, "another offer's");
    t.hear(0, Message::Link { peer: D, body: LinkBody::Close { offer: 1 } });
    assert!(t.news.contains(&News::Released(key(0))));
    assert_eq!(t.receiver.held().queue_pairs, 0);
}
