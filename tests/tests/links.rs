//! Queue pairs under a cap, and networks on which not every port reaches every other one.

use engine::id::NodeId;
use engine::node::{Reason, Step};
use engine::policy::Window;
use engine::time::Span;
use engine::transfer::Reach;
use proptest::prelude::*;
use sim::kit::{Build, Ending, Kit};

fn held(t: &Kit, node: NodeId) -> u64 {
    t.held(node).queue_pairs
}

fn nodes(t: &Kit) -> Vec<NodeId> {
    (2..t.world().nodes() as u32).map(NodeId).collect()
}

/// Every instance with the same cap.
fn capped(prefill: u32, decode: u32, cap: u32) -> Build {
    Kit::cluster(prefill, decode).transfer(move |t| t.max_queue_pairs = cap)
}

/// Runs `requests` in rounds of at most `at_once`, and checks after every event that nobody is above the cap.
fn serve(mut t: Kit, requests: usize, at_once: usize, cap: u64) -> Kit {
    let all = nodes(&t);
    for round in 0..requests.div_ceil(at_once) {
        let ids: Vec<_> =
            (0..at_once.min(requests - round * at_once)).map(|i| t.request(60 + i as u32, 4)).collect();
        while !ids.iter().all(|id| t.ending(*id).is_some()) {
            assert!(t.step(), "stuck with {} requests", ids.len());
            for node in &all {
                assert!(held(&t, *node) <= cap, "{node}: {} queue pairs", held(&t, *node));
            }
        }
        for id in ids {
            t.assert_finished(id);
        }
    }
    assert!(t.run(), "comes to rest");
    t
}

#[test]
fn links_take_turns_where_the_cap_holds_one_of_them() {
    for build in [capped(3, 3, 1), capped(3, 3, 1).pull()] {
        serve(build.build(), 18, 3, 1).assert_clean();
    }
}

#[test]
fn without_need_nothing_is_taken() {
    let mut t = capped(1, 2, 2).build();
    let mut before = 0;
    for _ in 0..8 {
        let ids: Vec<_> = (0..3).map(|_| t.request(50, 3)).collect();
        assert!(t.run());
        ids.into_iter().for_each(|id| t.assert_finished(id));
        let all: u64 = nodes(&t).into_iter().map(|node| held(&t, node)).sum();
        assert!(all >= before, "{all} queue pairs after {before}");
        before = all;
    }
    assert_eq!(before, 4, "each of the two links has one at each end");
    t.assert_clean();
}

/// Two links of three: the one that has nothing to move gives its queue pairs up, though the other was used longer ago.
#[test]
fn who_has_nothing_to_move_makes_way_first() {
    for pull in [false, true] {
        let build = Kit::cluster(if pull { 3 } else { 1 }, if pull { 1 } else { 3 })
            .prefill(|i| i.pages(300).batch(100))
            .decode(|i| i.pages(300))
            .network(0.1, Span::us(1));
        // The initiator decides.
        let cap = |i: sim::kit::Side| i.transfer(|t| t.max_queue_pairs = 2);
        let build = if pull { build.pull().decode(cap) } else { build.prefill(cap) };
        let mut t = build.build();
        let busy = t.request(3000, 2);
        assert!(t.run_until(|t| t.saw(busy, |step| *step == Step::TransferStart)));
        let idle = t.request(20, 2);
        assert!(t.run_until(|t| t.delivered(idle)));
        let next = t.request(20, 2);
        let (first, second) = if pull { (t.prefill(0), t.prefill(1)) } else { (t.decode(0), t.decode(1)) };
        assert_eq!((held(&t, first), held(&t, second)), (1, 1));
        while !t.delivered(next) {
            assert!(t.step());
            assert_eq!(held(&t, first), 1, "pull: {pull}: it was not done");
        }
        assert_eq!((held(&t, second), t.delivered(busy)), (0, false), "pull: {pull}");
        assert!(t.run());
        t.assert_finished(busy);
        t.assert_clean();
    }
}

/// Of two links that have nothing to move, the one whose last room ended first gives way, whichever end the cap is at.
#[test]
fn who_was_used_longest_ago_makes_way() {
    for (pull, initiator) in [(false, false), (false, true), (true, false), (true, true)] {
        let prefill = pull != initiator;
        let build = if prefill { Kit::cluster(1, 3) } else { Kit::cluster(3, 1) };
        let build = build.prefill(|i| i.pages(300)).decode(|i| i.pages(300)).network(0.1, Span::us(1));
        let cap = |i: sim::kit::Side| i.transfer(|t| t.max_queue_pairs = 2);
        let build = if prefill { build.prefill(cap) } else { build.decode(cap) };
        let mut t = if pull { build.pull() } else { build }.build();
        // Dealt out in turns: the first one ends last.
        let long = t.request(3000, 2);
        assert!(t.run_until(|t| t.saw(long, |step| *step == Step::TransferStart)));
        let short = t.request(20, 2);
        assert!(t.run_until(|t| t.ending(short).is_some()));
        assert!(t.ending(long).is_none() && t.run());
        let next = t.request(20, 2);
        assert!(t.run());
        t.assert_finished(next);
        let peer = |n| if prefill { t.decode(n) } else { t.prefill(n) };
        let all: Vec<u64> = (0..3).map(|n| held(&t, peer(n))).collect();
        assert_eq!(all, [1, 0, 1], "pull: {pull}, at the initiator: {initiator}");
        t.assert_clean();
    }
}

/// The side that is written to, or read from, has queue pairs for one link, and both of its peers have work for long: each in turn.
#[test]
fn a_busy_link_is_asked_to_make_way() {
    let alone = |pull: bool| {
        let mut t = if pull { Kit::pair().pull() } else { Kit::pair() }.build();
        t.request(100, 2);
        assert!(t.run());
        t.counted().bytes
    };
    for pull in [false, true] {
        let build =
            Kit::cluster(if pull { 1 } else { 2 }, if pull { 2 } else { 1 }).network(0.05, Span::us(1));
        let build = build.transfer(|t| t.window = Window { bytes: 30_000, ..Window::default() });
        let cap = |i: sim::kit::Side| i.pages(600).transfer(|t| t.max_queue_pairs = 1);
        let build = if pull { build.pull().prefill(cap) } else { build.decode(cap) };
        let mut t = build.build();
        // Dealt out in turns.
        let all: Vec<_> = (0..12).map(|_| t.request(100, 2)).collect();
        let mut order = Vec::new();
        while order.len() < all.len() {
            assert!(t.step());
            let done = |n: &usize| t.delivered(all[*n]);
            let fresh: Vec<usize> = (0..all.len()).filter(|n| !order.contains(n)).filter(done).collect();
            order.extend(fresh);
        }
        // Neither had to wait until the other one had nothing left.
        let last_of = |peer: usize| order.iter().rposition(|n| n % 2 == peer).unwrap();
        let first_of = |peer: usize| order.iter().position(|n| n % 2 == peer).unwrap();
        assert!(first_of(0) < last_of(1) && first_of(1) < last_of(0), "pull: {pull}, {order:?}");
        assert!(t.run());
        // They made way between two parts: nothing was moved twice.
        assert_eq!(t.counted().bytes, all.len() as u64 * alone(pull), "pull: {pull}");
        t.assert_clean();
    }
}

#[test]
fn a_cap_below_one_link_fails_its_requests_at_once() {
    for pull in [false, true] {
        let build = Kit::pair().prefill(|i| i.tp(2)).decode(|i| i.tp(2)).transfer(|t| t.max_queue_pairs = 1);
        let mut t = if pull { build.pull() } else { build }.build();
        let id = t.request(50, 3);
        assert!(t.run());
        assert_eq!(t.ending(id), Some(Ending::Failed(Reason::Connection)), "pull: {pull}");
        assert!(t.now().0 < Span::s(30).0);
        t.assert_clean();
    }
}

/// One side alone has no queue pairs to give: the other one hears why.
#[test]
fn whichever_side_cannot_connect_the_reason_is_told() {
    for prefill in [false, true] {
        for pull in [false, true] {
            let build = Kit::pair().prefill(|i| i.tp(2)).decode(|i| i.tp(2));
            let none = |i: sim::kit::Side| i.transfer(|t| t.max_queue_pairs = 1);
            let build = if prefill { build.prefill(none) } else { build.decode(none) };
            let mut t = if pull { build.pull() } else { build }.build();
            let id = t.request(50, 3);
            assert!(t.run());
            let end = Some(Ending::Failed(Reason::Connection));
            assert_eq!(t.ending(id), end, "pull: {pull}, prefill refuses: {prefill}");
            t.assert_clean();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn whatever_the_cap_every_request_finishes(
        prefill in 1u32..4, decode in 1u32..4, tp in 0u32..2, cap in 1u32..6, pull: bool, at_once in 1usize..12,
        lossy: bool, seed: u64,
    ) {
        let tp = 1 << tp;
        // Queue pairs of one link: each of the `tp` ranks on one side has one peer on the other.
        let cap = cap.max(tp);
        let build = capped(prefill, decode, cap)
            .prefill(move |i| i.tp(tp))
            .decode(move |i| i.tp(tp))
            .control(move |c| if lossy { (c.loss, c.duplicate, c.reorder) = (0.05, 0.05, 0.05) })
            .seed(seed);
        let t = if pull { build.pull() } else { build }.build();
        serve(t, 24, at_once, cap.into()).assert_clean();
    }

    #[test]
    fn kv_arrives_on_whichever_ports_reach_each_other(
        ports in (1u32..5, 1u32..5), tp in (0u32..3, 0u32..3), rails in 1u16..4, pull: bool,
        pairs in prop::collection::vec((0u32..5, 0u32..5), 1..5),
    ) {
        let pairs: Vec<_> = pairs.iter().map(|p| (p.0 % ports.0, p.1 % ports.1)).collect();
        let reach = Reach::Pairs(pairs.into());
        let build = Kit::pair()
            .prefill(|i| i.tp(1 << tp.0).ports(ports.0))
            .decode(|i| i.tp(1 << tp.1).ports(ports.1))
            .transfer(|t| (t.reach, t.rails) = (reach.clone(), rails));
        let mut t = if pull { build.pull() } else { build }.build();
        let id = t.request(70, 5);
        prop_assert!(t.run());
        t.assert_finished(id);
        t.assert_clean();
    }
}

#[test]
fn hosts_that_do_not_reach_each_other_are_told() {
    let mut t = Kit::pair().transfer(|t| t.reach = Reach::Pairs([(3, 3)].into())).build();
    let id = t.request(50, 3);
    assert!(t.run());
    assert_eq!(t.ending(id), Some(Ending::Failed(Reason::Connection)));
    t.assert_clean();
}
