//! What the router decides: who is let in, what is sent again, who is left alone. Every story is also held to the laws of every run.

use engine::node::{Reason, Request, Step};
use engine::policy::{Limits, Retry, RoutingPolicy};
use engine::registry::Message;
use engine::time::{Span, Time};
use proptest::prelude::*;
use sim::kit::{Build, Ending, Kit, ROUTER};

fn retrying(build: Build, attempts: u32, cooldown: Span) -> Build {
    build.router(|r| r.retry = Retry { attempts, cooldown, longest: Span::s(8) }).transfer(|t| {
        t.rts.timeout = 8;
        t.transfer_deadline = Span::s(1);
        t.room_deadline = Span::s(5);
    })
}

fn count(t: &Kit, request: engine::id::RequestId, step: impl Fn(&Step) -> bool) -> usize {
    t.steps(request).filter(|stamped| step(&stamped.record.step)).count()
}

fn retried(step: &Step) -> bool {
    matches!(step, Step::Retried(_))
}

/// Where a request was sent, try by try: which prefill and decode instance, in the order in which they joined.
fn routes(t: &Kit, request: engine::id::RequestId) -> Vec<(u64, u64)> {
    let ids = |step: &Step| match step {
        Step::Routed { prefill, decode } => Some((prefill.0, decode.0)),
        _ => None,
    };
    t.steps(request).filter_map(|stamped| ids(&stamped.record.step)).collect()
}

#[test]
fn a_failed_transfer_is_tried_elsewhere_as_the_next_attempt_of_its_room() {
    let mut t = retrying(Kit::cluster(2, 2), 2, Span(0)).build();
    t.link_down(t.decode(0), 0);
    let requests: Vec<_> = (0..4).map(|_| t.request(300, 5)).collect();
    assert!(t.run());
    let mut again = 0;
    for request in requests {
        t.assert_finished(request);
        let routes = routes(&t, request);
        if let [first, second] = routes.as_slice() {
            assert!(
                first.0 != second.0 && first.1 != second.1,
                "both ends of a failed transfer are left out: {routes:?}"
            );
            assert_eq!(t.room(request).map(|key| key.attempt), Some(2));
            assert_eq!(count(&t, request, retried), 1);
            again += 1;
        }
    }
    assert_eq!(again, 2, "round-robin sends every second one to the decode instance without a link");
    t.assert_clean();
}

#[test]
fn without_retries_it_fails_as_ever() {
    let mut t = retrying(Kit::cluster(1, 2), 1, Span(0)).build();
    t.link_down(t.decode(0), 0);
    let (a, b) = (t.request(300, 5), t.request(300, 5));
    assert!(t.run());
    assert!(matches!(t.ending(a), Some(Ending::Failed(_))), "{:?}", t.ending(a));
    assert_eq!(count(&t, a, retried), 0);
    t.assert_finished(b);
    t.assert_clean();
}

#[test]
fn attempts_are_bounded() {
    let mut t = retrying(Kit::pair(), 3, Span::ms(10)).build();
    t.link_down(t.decode(0), 0);
    let a = t.request(300, 5);
    assert!(t.run());
    assert!(matches!(t.ending(a), Some(Ending::Failed(_))), "{:?}", t.ending(a));
    assert_eq!((routes(&t, a).len(), count(&t, a, retried)), (3, 2));
    t.assert_clean();
}

#[test]
fn a_cooldown_ends_and_a_repaired_instance_is_used_again() {
    let mut t = retrying(Kit::cluster(1, 2), 2, Span::s(2)).build();
    t.link_down(t.decode(0), 0);
    let a = t.request(300, 5);
    assert!(t.run());
    t.assert_finished(a);
    let (bad, good) = (routes(&t, a)[0].1, routes(&t, a)[1].1);
    // The only prefill instance had part in the failure too; it goes on, because there is no other.
    let early: Vec<_> = (0..4).map(|_| t.request(100, 2)).collect();
    assert!(t.run());
    for request in early {
        assert_eq!(routes(&t, request).iter().map(|route| route.1).collect::<Vec<_>>(), [good]);
    }
    t.link_up(t.decode(0), 0);
    t.run_for(Span::s(3));
    let late: Vec<_> = (0..4).map(|_| t.request(100, 2)).collect();
    assert!(t.run());
    let back = late.iter().filter(|request| routes(&t, **request) == [(routes(&t, a)[0].0, bad)]).count();
    assert_eq!(back, 2, "every second one again");
    late.into_iter().for_each(|request| t.assert_finished(request));
    t.assert_clean();
}

#[test]
fn a_request_whose_prefill_dies_is_computed_by_another() {
    let mut t = retrying(Kit::cluster(2, 1), 2, Span(0)).lease(Span::s(1)).build();
    t.pause(t.prefill(0));
    let a = t.request(300, 5);
    let b = t.request(300, 5);
    assert!(t.run_until(|t| t.ending(a).is_some() && t.ending(b).is_some()));
    t.assert_finished(a);
    t.assert_finished(b);
    assert_eq!(count(&t, a, |step| *step == Step::Retried(Reason::PeerGone)), 1);
    t.resume(t.prefill(0));
    assert!(t.run());
    t.assert_clean();
}

/// Tokens may have left a decode instance that is gone: nobody is left to ask.
#[test]
fn a_request_whose_decode_dies_is_not_begun_anew() {
    let mut t = retrying(Kit::cluster(1, 2), 3, Span(0)).lease(Span::s(1)).build();
    let a = t.request(300, 500);
    assert!(t.run_until(|t| t.saw(a, |step| *step == Step::FirstToken)));
    t.pause(t.decode(0));
    assert!(t.run_until(|t| t.ending(a).is_some()));
    assert_eq!(t.ending(a), Some(Ending::Failed(Reason::PeerGone)));
    assert_eq!(count(&t, a, retried), 0);
    t.resume(t.decode(0));
    assert!(t.run());
    t.assert_clean();
}

#[test]
fn a_leaving_decode_hands_over_what_has_no_token_yet() {
    let mut t = retrying(Kit::cluster(1, 2), 2, Span(0))
        .prefill(|side| side.pages(400))
        .decode(|side| side.pages(400))
        .compute(Span::us(100), Span::us(100))
        .build();
    let (generating, elsewhere) = (t.request(100, 5000), t.request(10, 1));
    assert!(
        t.run_until(|t| t.saw(generating, |step| *step == Step::FirstToken) && t.ending(elsewhere).is_some())
    );
    // To the first decode instance again; its prompt is being computed.
    let waiting = t.request(2000, 5);
    t.run_for(Span::ms(5));
    assert_eq!(routes(&t, generating)[0].1, routes(&t, waiting)[0].1);
    t.leave(t.decode(0));
    assert!(t.run_until(|t| t.ending(waiting).is_some()));
    assert_eq!(t.ending(generating), Some(Ending::Failed(Reason::Interrupted)));
    t.assert_finished(waiting);
    assert_eq!(count(&t, waiting, retried), 1);
    assert!(t.run());
    assert_eq!(t.violations(), Vec::<String>::new());
}

/// What is said of the first attempt comes when the second one is under way, and changes nothing.
#[test]
fn late_words_of_an_earlier_attempt_change_nothing() {
    let mut t = retrying(Kit::pair(), 2, Span(0)).build();
    let first = |key: &engine::registry::RoomKey| key.attempt == 1;
    let held = t.hold(move |said| {
        !said.to_registry() && matches!(said.message, Message::Publish(list) if first(&list.key))
    });
    let a = t.request(300, 5);
    assert!(
        t.run_until(|t| t.saw(a, retried)),
        "the page list never came: {:?}",
        t.steps(a).collect::<Vec<_>>()
    );
    t.let_go(held);
    assert!(t.run());
    t.assert_finished(a);
    assert_eq!(t.room(a).map(|key| key.attempt), Some(2));
    t.assert_clean();
}

#[test]
fn a_registry_that_restarts_between_attempts_serves_the_second() {
    let mut t = retrying(Kit::cluster(1, 2), 2, Span(0)).build();
    t.link_down(t.decode(0), 0);
    let a = t.request(300, 5);
    assert!(t.run_until(|t| t.saw(a, retried)));
    t.restart_registry();
    assert!(t.run());
    t.assert_finished(a);
    t.assert_clean();
}

fn tight() -> Build {
    // Pages for two requests of 100 + 100 tokens, and generation that takes 10 ms.
    Kit::pair().decode(|side| side.pages(26)).compute(Span::us(1), Span::us(100))
}

#[test]
fn who_finds_the_queue_full_is_told_at_once() {
    let mut t = tight().decode(|side| side.refuse_above(2)).build();
    let requests: Vec<_> = (0..10).map(|_| t.request(100, 100)).collect();
    assert!(t.run());
    let mut busy = 0;
    for request in &requests {
        match t.ending(*request) {
            Some(Ending::Finished) => {}
            Some(Ending::Rejected(Reason::Busy)) => {
                let last = t.steps(*request).last().map_or(Time::NEVER, |stamped| stamped.at);
                let first = t.steps(*request).next().map_or(Time::ZERO, |stamped| stamped.at);
                assert!(last.since(first) < Span::ms(5), "{:?}", last.since(first));
                busy += 1;
            }
            other => panic!("{request:?}: {other:?}"),
        }
    }
    assert!((1..9).contains(&busy), "{busy} of 10 were refused");
    t.assert_clean();
}

#[test]
fn a_refused_request_may_find_room_elsewhere() {
    let ends = |attempts| {
        let mut t = retrying(Kit::cluster(1, 2), attempts, Span(0))
            .decode(|side| side.pages(26).refuse_above(1))
            .compute(Span::us(1), Span::us(100))
            // Everything to the first that has fewest tokens under way: the long one keeps its instance out of that.
            .router(|r| r.routing = RoutingPolicy::RoundRobin)
            .build();
        let long = t.request(100, 250);
        let requests: Vec<_> = (0..5).map(|_| t.request(100, 60)).collect();
        assert!(t.run());
        t.assert_finished(long);
        let served = requests.iter().filter(|request| t.ending(**request) == Some(Ending::Finished)).count();
        t.assert_clean();
        served
    };
    assert!(ends(2) > ends(1), "{} with a second attempt, {} without", ends(2), ends(1));
}

#[test]
fn no_tenant_has_more_in_flight_than_its_limit() {
    let limits = Limits { tenant_requests: Some(2), waiting: Some(9), ..Limits::default() };
    let mut t = Kit::cluster(2, 2).router(|r| r.limits = limits).build();
    // Tenant 0 floods; the others have one each.
    let mut requests = Vec::new();
    for n in 0..14u32 {
        let tenant = if n < 11 { 0 } else { n };
        requests.push((
            tenant,
            t.request_with(Request { prompt: 200, output: 20, tenant, ..Request::default() }),
        ));
    }
    let mut most = 0;
    loop {
        let flying = |t: &Kit, who: u32| {
            let own = requests.iter().filter(|(tenant, _)| *tenant == who);
            own.filter(|(_, request)| {
                let end = t.ending(*request);
                t.saw(*request, |step| matches!(step, Step::Routed { .. })) && end.is_none()
            })
            .count()
        };
        most = most.max(flying(&t, 0));
        // Word of an end is on its way to the router for a while; nobody is sent too early.
        assert!(flying(&t, 0) <= 2);
        if requests.iter().all(|(_, request)| t.ending(*request).is_some()) || !t.step() {
            break;
        }
    }
    assert_eq!(most, 2, "and as many as that");
    let start = |request| {
        let mut sent =
            t.steps(request).filter(|s| s.node == ROUTER && matches!(s.record.step, Step::Routed { .. }));
        sent.next().map(|stamped| stamped.at)
    };
    for (tenant, request) in &requests {
        match (tenant, t.ending(*request)) {
            (0, Some(Ending::Rejected(Reason::Busy))) => {}
            (0, _) => t.assert_finished(*request),
            _ => {
                t.assert_finished(*request);
                assert!(start(*request) <= start(requests[2].1), "it waits for nobody else's");
            }
        }
    }
    let refused = requests
        .iter()
        .filter(|(_, request)| matches!(t.ending(*request), Some(Ending::Rejected(_))))
        .count();
    assert_eq!(refused, 0, "nine may wait");
    assert!(t.run());
    t.assert_clean();
}

/// Routing by what prefill tells: every policy serves everything, and what it counts comes back to nothing.
#[test]
fn every_routing_policy_serves_everything() {
    for routing in [
        RoutingPolicy::RoundRobin,
        RoutingPolicy::LeastLoaded,
        RoutingPolicy::PowerOfTwo,
        RoutingPolicy::PrefixAware { weight: 1.0, blocks: 100 },
        RoutingPolicy::NetworkAware { gain: 0.3, forget: Span::ms(10) },
    ] {
        for pull in [false, true] {
            let build = Kit::cluster(2, 3)
                .prefill(|side| side.prefix_cache().pages(400))
                .decode(|side| side.pages(400))
                .router(|r| r.routing = routing.clone());
            let mut t = if pull { build.pull() } else { build }.build();
            let mut requests = Vec::new();
            for n in 0..20u64 {
                let blocks = vec![n % 3, 100 + n];
                requests.push(t.request_with(Request {
                    prompt: 1100,
                    output: 9,
                    blocks,
                    ..Request::default()
                }));
                t.run_for(Span::us(300));
            }
            assert!(t.run());
            requests.into_iter().for_each(|request| t.assert_finished(request));
            t.assert_fault_free();
        }
    }
}

#[test]
fn a_restarted_router_serves_what_comes_next() {
    let mut t = Kit::pair().build();
    let a = t.request(300, 5);
    assert!(t.run());
    t.assert_finished(a);
    // Its rooms are remembered by the registry, and by the instances: the next life must not speak of them.
    t.restart(ROUTER);
    t.run_for(Span::ms(200));
    let b = t.request(300, 5);
    assert!(t.run());
    t.assert_finished(b);
    assert_ne!(t.room(a).map(|key| key.room), t.room(b).map(|key| key.room));
    t.assert_clean();
}

#[test]
fn a_router_that_dies_takes_only_its_own_requests_along() {
    let mut t = Kit::pair().build();
    let a = t.request(3000, 500);
    t.run_for(Span::ms(20));
    t.restart(ROUTER);
    t.run_for(Span::ms(200));
    let b = t.request(300, 5);
    assert!(t.run());
    t.assert_finished(b);
    assert_ne!(t.room(a).map(|key| key.room), t.room(b).map(|key| key.room));
    t.assert_clean();
}

/// What steps say of a request's end, and by whom.
fn last_words(t: &Kit, request: engine::id::RequestId) -> Vec<Step> {
    let ends =
        |step: &Step| matches!(step, Step::Finished | Step::Failed(_) | Step::Lost(_) | Step::Rejected(_));
    t.steps(request).map(|stamped| stamped.record.step).filter(ends).collect()
}

fn impatient(build: Build, deadline: Span) -> Build {
    build.router(|r| r.request_deadline = deadline).compute(Span::us(1), Span::us(100))
}

/// 60 tokens take 6 ms, and the router gives each request 3: decode stops and gives the pages back, and the rest of its batch goes on.
#[test]
fn a_deadline_stops_a_request_that_generates() {
    for on_demand in [false, true] {
        let build = Kit::pair().decode(|side| if on_demand { side.on_demand() } else { side });
        let mut t = impatient(build, Span::ms(3)).build();
        let late = t.request(100, 60);
        t.run_for(Span::ms(2));
        let (next, joins) = (t.request(100, 20), t.request(30, 2));
        assert!(t.run_until(|t| t.ending(late).is_some()));
        assert_eq!(last_words(&t, late), [Step::Failed(Reason::Deadline)]);
        assert!(t.succeeded(late));
        let ends = t.steps(late).last().map(|stamped| stamped.at.since(Time::ZERO));
        let sent = t.steps(late).next().map(|stamped| stamped.at.since(Time::ZERO));
        assert!(ends.zip(sent).is_some_and(|(end, sent)| end < sent + Span::ms(4)), "told at once: {ends:?}");
        let held = t.held(t.decode(0));
        assert!(held.pages <= 8, "{held:?}: pages of the one that goes on, and no others");
        assert!(t.run());
        for request in [next, joins] {
            t.assert_finished(request);
        }
        t.assert_clean();
    }
}

#[test]
fn a_request_that_finished_before_its_cancel_came_is_finished() {
    let mut t = impatient(Kit::pair(), Span::ms(3)).build();
    let held = t.hold(|said| said.to_registry() && matches!(said.message, Message::Done { .. }));
    let a = t.request(100, 20);
    t.run_for(Span::ms(5));
    assert_eq!(last_words(&t, a), [Step::Finished]);
    assert_eq!(t.held(ROUTER).rooms, 1, "the router waits for decode's word");
    t.let_go(held);
    assert!(t.run());
    assert_eq!(last_words(&t, a), [Step::Finished]);
    t.assert_clean();
}

/// Decode dies with its last word unsaid. Nobody can tell the router; what left decode has left it all the same.
#[test]
fn a_word_that_dies_with_decode() {
    let mut t = Kit::pair().lease(Span::s(1)).build();
    let held = t.lose(|said| said.to_registry() && matches!(said.message, Message::Done { .. }));
    let (short, long) = (t.request(100, 20), t.request(100, 500));
    assert!(t.run_until(|t| t.saw(short, |step| *step == Step::Finished)));
    t.crash(t.decode(0));
    t.let_go(held);
    assert!(t.run());
    assert_eq!(last_words(&t, short), [Step::Finished, Step::Lost(Reason::PeerGone)]);
    assert_eq!(last_words(&t, long), [Step::Lost(Reason::PeerGone)]);
    assert_eq!(t.ending(long), Some(Ending::Failed(Reason::PeerGone)));
    t.assert_finished(short);
    t.restart(t.decode(0));
    t.assert_clean();
}

#[test]
fn without_a_registry_a_deadline_is_still_an_end() {
    let build = Kit::pair().lease(Span::s(1)).decode(|side| side.pages(4000));
    let mut t = impatient(build, Span::ms(3)).build();
    let a = t.request(100, 50_000);
    t.run_for(Span::ms(1));
    t.crash(engine::registry::REGISTRY);
    t.run_for(Span::s(3));
    assert_eq!(last_words(&t, a), [Step::Lost(Reason::Deadline)]);
    t.restart_registry();
    assert!(t.run());
    t.assert_clean();
}

#[test]
fn a_registry_that_restarts_passes_the_cancel_on() {
    let build = Kit::pair().lease(Span::s(1)).decode(|side| side.pages(4000));
    let mut t = impatient(build, Span::ms(3)).build();
    let a = t.request(100, 50_000);
    t.run_for(Span::ms(1));
    t.crash(engine::registry::REGISTRY);
    t.run_for(Span::ms(100));
    t.restart_registry();
    assert!(t.run());
    assert!(t.now() < Time::ZERO + Span::s(3), "generation was stopped: {:?}", t.now());
    assert_eq!(t.ending(a), Some(Ending::Failed(Reason::Deadline)));
    t.assert_clean();
}

/// Prefill has left, decode generates what it had delivered, and the registry forgets all of it: the end is decode's to say.
#[test]
fn a_restarted_registry_does_not_guess_an_end() {
    let build = Kit::cluster(1, 1).lease(Span::s(1)).decode(|side| side.pages(400));
    let mut t = build.compute(Span::us(1), Span::us(100)).build();
    let a = t.request(100, 5000);
    assert!(t.run_until(|t| t.saw(a, |step| *step == Step::FirstToken)));
    t.leave(t.prefill(0));
    t.run_for(Span::ms(100));
    t.restart_registry();
    assert!(t.run());
    assert_eq!(last_words(&t, a), [Step::Finished]);
    assert_eq!(t.violations(), Vec::<String>::new());
}

proptest! {
    /// Whenever the deadline comes, and whatever it meets, there is one end, and everything comes back.
    #[test]
    fn a_deadline_at_any_moment(
        deadline in 5u64..6000,
        pull: bool,
        on_demand: bool,
        rooms in prop::collection::vec((1u32..400, 1u32..60), 1..6),
        latency in 1u64..800,
    ) {
        let build = Kit::pair().decode(|side| if on_demand { side.on_demand().pages(30) } else { side.pages(30) });
        let build = if pull { build.pull() } else { build };
        let mut t = impatient(build, Span::us(deadline)).control(|c| c.latency = Span::us(latency)).build();
        let requests: Vec<_> = rooms.iter().map(|(prompt, output)| t.request(*prompt, *output)).collect();
        prop_assert!(t.run());
        for request in requests {
            prop_assert_eq!(last_words(&t, request).len(), 1, "{:?}", t.steps(request).collect::<Vec<_>>());
        }
        prop_assert_eq!(t.violations(), Vec::<String>::new());
    }
}
