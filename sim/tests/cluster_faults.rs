//! Every kind of fault bites, and the laws hold under it: requests end once, nothing is lost, corrupted or left.

use engine::id::{NodeId, PortId};
use engine::node::Step;
use engine::registry::REGISTRY;
use engine::time::{Span, Time};
use sim::fault::{ControlFault, Disturbance, Fault, FaultKind, Ppm};
use sim::kit::{Build, Ending, Kit, ROUTER};

/// 100 tokens take 41 ms to move: a story can be told while they do.
fn slow() -> Build {
    Kit::pair().network(0.01, Span::us(1))
}

/// Until the first bytes of a request move.
fn until_moving(t: &mut Kit, request: engine::id::RequestId) {
    assert!(t.run_until(|t| t.saw(request, |step| *step == Step::TransferStart)));
    t.run_for(Span::ms(2));
}

fn port(node: NodeId) -> (usize, PortId) {
    (node.index(), PortId(0))
}

/// One request, with a fault while its bytes move; it must finish, and everything be clean.
fn survives(build: Build, fault: impl Fn(&Kit) -> Fault, lasts: Span) -> Kit {
    let mut t = build.build();
    let a = t.request(100, 5);
    until_moving(&mut t, a);
    let fault = fault(&t);
    t.fault_for(fault, lasts);
    assert!(t.run());
    assert_eq!(t.world().struck().of(fault.kind()), 1);
    assert_eq!(t.violations(), Vec::<String>::new());
    t
}

/// When the first request's bytes were all there.
fn success(t: &Kit) -> Time {
    let first = engine::id::RequestId(0);
    t.steps(first).find(|s| s.record.step == Step::Success).map(|s| s.at).expect("it had Success")
}

/// The same without a fault.
fn undisturbed(build: Build) -> Time {
    let mut t = build.build();
    let a = t.request(100, 5);
    assert!(t.run());
    t.assert_finished(a);
    success(&t)
}

#[test]
fn a_link_that_flaps() {
    let mut t = slow().build();
    let a = t.request(100, 5);
    until_moving(&mut t, a);
    let (host, port) = port(t.prefill(0));
    for n in 0..5 {
        let at = t.now() + Span::ms(20) * n;
        t.world_mut().fault_for(at, Fault::LinkDown { host, port }, Span::ms(5));
    }
    assert!(t.run());
    t.assert_finished(a);
    assert!(success(&t) > undisturbed(slow()) + Span::ms(20));
    assert_eq!(t.world().struck().of(FaultKind::LinkDown), 5);
    assert!(t.world().fabrics().counters().timeouts > 0);
    t.assert_clean();
}

#[test]
fn two_reasons_for_a_link_to_be_down() {
    let mut t = slow().build();
    let node = t.prefill(0);
    let (host, port) = port(node);
    let down = Fault::LinkDown { host, port };
    let up = |t: &Kit| engine::fabric::Fabric::ports(t.world().fabrics().host_ref(host))[0].up;
    t.fault_for(down, Span::ms(10));
    t.fault_for(down, Span::ms(30));
    assert!(!up(&t));
    t.run_for(Span::ms(20));
    assert!(!up(&t));
    t.run_for(Span::ms(20));
    assert!(up(&t));
    t.assert_clean();
}

#[test]
fn a_link_that_is_degraded() {
    let fault = |t: &Kit| {
        let (host, port) = port(t.decode(0));
        Fault::Degrade { host, port, to: Ppm::of(0.1) }
    };
    let t = survives(slow(), fault, Span::s(10));
    // 2 ms of 41 ms had passed.
    assert!(success(&t) > undisturbed(slow()) + Span::ms(300));
    t.assert_clean();
}

#[test]
fn packets_that_get_lost() {
    for pull in [false, true] {
        let build = || if pull { slow().pull() } else { slow() };
        let fault = |t: &Kit| {
            let (host, port) = port(t.prefill(0));
            Fault::Loss { host, port, probability: Ppm::of(0.05) }
        };
        let t = survives(build(), fault, Span::s(10));
        let counters = t.world().fabrics().counters();
        assert!(counters.packets_lost > 0 && counters.retransmissions > 0, "{counters:?}");
        assert_eq!(t.ending(engine::id::RequestId(0)), Some(Ending::Finished));
        assert!(success(&t) > undisturbed(build()));
        t.assert_clean();
    }
}

#[test]
fn loss_of_everything_ends_in_retries_and_then_in_failure() {
    let fault = |t: &Kit| {
        let (host, port) = port(t.prefill(0));
        Fault::Loss { host, port, probability: Ppm::ONE }
    };
    let t = survives(slow(), fault, Span::s(100));
    assert!(matches!(t.ending(engine::id::RequestId(0)), Some(Ending::Failed(_))));
    assert!(t.world().fabrics().counters().timeouts >= 7);
    t.assert_clean();
}

#[test]
fn a_nic_that_resets() {
    for side in 0..2 {
        let fault = |t: &Kit| {
            let (host, port) = port(if side == 0 { t.prefill(0) } else { t.decode(0) });
            Fault::NicReset { host, port }
        };
        let mut t = survives(slow(), fault, Span::ms(100));
        assert!(success_or_failed(&t));
        // It serves again.
        let b = t.request(50, 2);
        assert!(t.run());
        t.assert_finished(b);
        t.assert_clean();
    }
}

fn success_or_failed(t: &Kit) -> bool {
    t.ending(engine::id::RequestId(0)).is_some()
}

#[test]
fn a_chain_that_is_refused_in_the_middle() {
    for (request, pull) in [(0, false), (1, false), (3, false), (0, true), (2, true)] {
        let build = Kit::pair().prefill(|i| i.scatter()).decode(|i| i.scatter());
        let mut t = if pull { build.pull() } else { build }.build();
        let host = if pull { t.decode(0) } else { t.prefill(0) }.index();
        t.fault(Fault::PostFailure { host, request, times: 1 });
        let a = t.request(200, 5);
        assert!(t.run());
        t.assert_finished(a);
        assert_eq!(t.world().fabrics().counters().refused_posts, 1, "request {request}, pull {pull}");
        t.assert_clean();
    }
}

#[test]
fn completions_that_come_late() {
    for side in 0..2 {
        let fault = |t: &Kit| {
            let host = if side == 0 { t.prefill(0) } else { t.decode(0) }.index();
            Fault::CompletionDelay { host, by: Span::ms(200) }
        };
        let t = survives(slow(), fault, Span::s(1));
        assert!(t.world().fabrics().counters().late_completions > 0);
        assert_eq!(t.ending(engine::id::RequestId(0)), Some(Ending::Finished));
        if side == 1 {
            assert!(success(&t) > undisturbed(slow()) + Span::ms(150));
        }
        t.assert_clean();
    }
}

/// The requester cannot know that decode has it all: it fails or moves it again, and decode must not see a part of it twice.
#[test]
fn writes_that_are_executed_and_never_acknowledged() {
    let fault = |t: &Kit| Fault::Unacknowledged { host: t.prefill(0).index(), times: 1 };
    // Long enough that decode does not fence before the last retry.
    let t = survives(slow().transfer(|t| t.drain_deadline = Span::s(5)), fault, Span(0));
    let counters = t.world().fabrics().counters();
    assert_eq!(counters.unacknowledged, 1);
    // One try and seven more.
    assert_eq!(counters.timeouts, 7);
    assert!(success_or_failed(&t));
    t.assert_clean();
}

#[test]
fn receives_that_cannot_be_used() {
    // Three retries of 0.64 ms each.
    for (ms, finishes) in [(42, true), (400, false)] {
        let fault = |t: &Kit| Fault::ReceivesDry { host: t.decode(0).index() };
        let t = survives(slow(), fault, Span::ms(ms));
        assert!(t.counted().rnr_naks > 0 || finishes, "for {ms} ms");
        assert!(success_or_failed(&t));
        t.assert_clean();
    }
}

#[test]
fn instances_that_die_and_come_back() {
    for side in 0..2 {
        let mut t = Kit::cluster(2, 2).network(0.01, Span::us(1)).build();
        let requests: Vec<_> = (0..4).map(|_| t.request(100, 5)).collect();
        until_moving(&mut t, requests[0]);
        let node = if side == 0 { t.prefill(0) } else { t.decode(0) };
        t.crash(node);
        let objects = t.world().fabrics().host_ref(node.index()).objects();
        assert_eq!(objects, Default::default());
        t.run_for(Span::s(1));
        t.restart(node);
        assert!(t.run());
        assert!(requests.iter().any(|r| matches!(t.ending(*r), Some(Ending::Failed(_)))));
        assert!(requests.iter().any(|r| t.ending(*r) == Some(Ending::Finished)));
        assert_eq!(t.world().life(node), 2);
        // The new life serves.
        let later: Vec<_> = (0..4).map(|_| t.request(30, 3)).collect();
        assert!(t.run());
        for request in later {
            t.assert_finished(request);
        }
        assert!(t.held(node).pool_queue_pairs > 0, "it takes part again");
        t.assert_clean();
    }
}

#[test]
fn an_instance_that_dies_for_good() {
    let mut t = Kit::cluster(2, 2).network(0.01, Span::us(1)).build();
    let requests: Vec<_> = (0..4).map(|_| t.request(100, 5)).collect();
    until_moving(&mut t, requests[0]);
    let node = t.decode(1);
    t.crash(node);
    assert!(t.run());
    let later = t.request(30, 3);
    assert!(t.run());
    t.assert_finished(later);
    t.assert_clean();
}

#[test]
fn an_instance_that_leaves_in_good_order_and_comes_back() {
    let mut t = Kit::cluster(2, 2).build();
    let a = t.request(100, 5);
    assert!(t.run());
    t.assert_finished(a);
    let node = t.decode(0);
    t.fault_for(Fault::Leave { node }, Span::s(20));
    t.run_for(Span::s(1));
    let objects = t.world().fabrics().host_ref(node.index()).objects();
    assert_eq!(objects, Default::default());
    let later: Vec<_> = (0..2).map(|_| t.request(30, 3)).collect();
    assert!(t.run());
    for request in later {
        t.assert_finished(request);
    }
    t.run_for(Span::s(20));
    assert_eq!(t.world().life(node), 2);
    let again: Vec<_> = (0..4).map(|_| t.request(30, 3)).collect();
    assert!(t.run());
    for request in again {
        t.assert_finished(request);
    }
    assert!(t.held(node).pool_queue_pairs > 0);
    t.assert_clean();
}

#[test]
fn a_zombie() {
    // Its lease is 5 s.
    let fault = |t: &Kit| Fault::Pause { node: t.prefill(0) };
    let t = survives(slow(), fault, Span::s(12));
    assert!(success_or_failed(&t));
    t.assert_clean();
}

#[test]
fn a_registry_that_dies_and_one_that_stops() {
    let mut t = slow().build();
    let a = t.request(100, 5);
    until_moving(&mut t, a);
    t.fault_for(Fault::Crash { node: REGISTRY }, Span::s(1));
    let b = t.request(100, 5);
    assert!(t.run());
    t.assert_finished(a);
    t.assert_finished(b);
    assert_eq!(t.world().life(REGISTRY), 2);
    let c = t.request(100, 5);
    t.fault_for(Fault::Pause { node: REGISTRY }, Span::s(2));
    assert!(t.run());
    t.assert_finished(c);
    t.assert_clean();
}

#[test]
fn control_messages_that_are_disturbed() {
    let by = Span::ms(5);
    for (how, probability) in [
        (Disturbance::Lose, 0.3),
        (Disturbance::Duplicate(by), 0.5),
        (Disturbance::Reorder(by), 0.5),
        (Disturbance::Delay(by), 1.0),
        (Disturbance::Truncate, 0.3),
        (Disturbance::Garble, 0.3),
    ] {
        let fault =
            Fault::Control(ControlFault { from: None, to: None, probability: Ppm::of(probability), how });
        let mut t = Kit::cluster(2, 2).build();
        t.fault_for(fault, Span::s(4));
        let requests: Vec<_> = (0..8)
            .map(|_| {
                t.run_for(Span::ms(100));
                t.request(100, 5)
            })
            .collect();
        assert!(t.run());
        for request in requests {
            t.assert_finished(request);
        }
        let (disturbed, malformed) = (t.world().disturbed(), t.world().counters().malformed_frames);
        assert!(disturbed.of(fault.kind()) > 10, "{how:?}: {disturbed:?}");
        let damaged = disturbed.truncated + disturbed.garbled;
        // Every damaged frame is refused; some were under way when the run ended.
        assert!(malformed <= damaged && malformed + 5 > damaged, "{how:?}: {malformed} of {damaged}");
        t.assert_clean();
    }
}

#[test]
fn only_the_frames_that_are_meant() {
    let mut t = Kit::pair().build();
    let node = t.decode(0);
    let cut =
        |from, to| Fault::Control(ControlFault { from, to, probability: Ppm::ONE, how: Disturbance::Lose });
    t.fault_for(cut(Some(node), None), Span::s(2));
    t.fault_for(cut(None, Some(node)), Span::s(2));
    let a = t.request(100, 5);
    t.run_for(Span::s(1));
    assert!(t.saw(a, |step| matches!(step, Step::Routed { .. })) && !t.succeeded(a));
    assert!(t.run());
    t.assert_finished(a);
    t.assert_clean();
}

/// Clocks that drift as far apart as leases allow, and leap: no request is lost by it, and no lease is believed in for too long.
#[test]
fn clocks_that_drift() {
    for (registry, node) in [(30_000, -30_000), (-30_000, 30_000), (0, 0)] {
        let mut t = slow().lease(Span::s(2)).build();
        let (p, d) = (t.prefill(0), t.decode(0));
        t.fault(Fault::Clock { node: REGISTRY, ahead: Span::ms(700), drift_ppm: registry });
        t.fault(Fault::Clock { node: p, ahead: Span(0), drift_ppm: node });
        t.fault(Fault::Clock { node: d, ahead: Span::s(1), drift_ppm: node });
        for _ in 0..5 {
            let a = t.request(100, 5);
            assert!(t.run());
            t.assert_finished(a);
            t.run_for(Span::s(3));
        }
        t.assert_clean();
    }
}

/// Decode stops hearing the registry for 6 s, three leases, while it works on many requests. The registry's clock is this much too fast, decode's
/// this much too slow. How many requests the router gave up because decode is gone, and how many of these decode finished afterwards.
fn cut_off_with_clocks_apart(drift_ppm: i32, requests: u32, shortest: u32) -> (Kit, usize, usize) {
    let build = Kit::pair().lease(Span::s(2)).compute(Span::us(1), Span::ms(1));
    let mut t = build.decode(|i| i.pages(20_000)).build();
    let node = t.decode(0);
    t.fault(Fault::Clock { node: REGISTRY, ahead: Span(0), drift_ppm });
    t.fault(Fault::Clock { node, ahead: Span(0), drift_ppm: -drift_ppm });
    let requests: Vec<_> = (0..requests).map(|n| t.request(30, shortest + n * 40)).collect();
    t.run_for(Span::ms(500));
    let cut =
        |from, to| Fault::Control(ControlFault { from, to, probability: Ppm::ONE, how: Disturbance::Lose });
    t.fault_for(cut(Some(node), None), Span::s(6));
    t.fault_for(cut(None, Some(node)), Span::s(6));
    assert!(t.run());
    let (mut failed, mut late) = (0, 0);
    for request in requests {
        let gone = t.steps(request).find(|s| s.node == ROUTER && matches!(s.record.step, Step::Lost(_)));
        let Some(gone) = gone else { continue };
        failed += 1;
        late += usize::from(t.steps(request).any(|s| s.record.step == Step::Finished && s.at > gone.at));
    }
    (t, failed, late)
}

/// With the slowest clock beside the fastest one: when the registry gives the node up, it has given its lease up itself. What it thinks is seen in
/// what it finishes: nothing after the router heard that it is gone.
#[test]
fn a_lease_ends_at_the_node_first() {
    let (t, failed, late) = cut_off_with_clocks_apart(30_000, 40, 1500);
    assert!(failed > 0);
    assert_eq!(late, 0, "finished after its lease was over");
    t.assert_clean();
}

/// A drift beyond what leases allow for is seen: the test above would fail.
#[test]
fn a_lease_outlives_its_end_where_clocks_drift_too_far() {
    let (_, _, late) = cut_off_with_clocks_apart(300_000, 60, 1000);
    assert!(late > 0);
}

#[test]
fn a_slow_node() {
    let nic = || sim::nic::NicProfile {
        post_recv: sim::nic::Duration(Span::us(1)),
        ..sim::nic::NicProfile::ideal()
    };
    let run = |fault: Option<Fault>| {
        let mut t = Kit::pair().nic(nic()).build();
        if let Some(fault) = fault {
            t.fault_for(fault, Span::s(10));
        }
        let a = t.request(300, 200);
        assert!(t.run());
        t.assert_finished(a);
        let end = t.steps(a).last().map(|s| s.at).expect("it has steps");
        t.assert_clean();
        end.since(Time::ZERO)
    };
    let node = NodeId(3);
    let plain = run(None);
    let compute = run(Some(Fault::Slow { node, cpu: 1000, call: Span(0), compute: 3000 }));
    // 199 steps of 100 us.
    assert!(compute.0 > plain.0 + Span::ms(38).0, "{compute:?} after {plain:?}");
    assert!(run(Some(Fault::Slow { node, cpu: 50_000, call: Span(0), compute: 1000 })) > plain);
    assert!(run(Some(Fault::Slow { node, cpu: 1000, call: Span::us(50), compute: 1000 })) > plain);
}

/// A pace that changes while a batch runs: steps under way keep their time, later ones have the new one, and nobody goes round in circles.
#[test]
fn a_node_that_gets_slow_and_fast_again() {
    let mut t = Kit::pair().build();
    let a = t.request(30, 400);
    t.run_for(Span::ms(5));
    let node = t.decode(0);
    t.fault_for(Fault::Slow { node, cpu: 1000, call: Span(0), compute: 2500 }, Span::ms(10));
    assert!(t.run());
    t.assert_finished(a);
    let end = t.steps(a).last().map(|s| s.at).expect("it has steps");
    // 399 steps of 100 us, of which 10 ms went by at two fifths of the pace.
    let slower = end.since(Time::ZERO + Span::ms(20) + Span::ms(40));
    assert!(slower > Span::ms(5) && slower < Span::ms(8), "{slower:?}");
    t.assert_clean();
}

#[test]
fn a_link_that_is_taken_out_of_service_carries_on() {
    let fault = |t: &Kit| {
        let (host, port) = port(t.prefill(0));
        Fault::LinkDrain { host, port }
    };
    let t = survives(slow(), fault, Span::s(1));
    assert_eq!(success(&t), undisturbed(slow()));
    t.assert_clean();
}

#[test]
fn the_same_faults_give_the_same_digest() {
    let run = |seed| {
        let mut t = Kit::cluster(2, 2).network(0.05, Span::us(1)).seed(seed).build();
        let (host, port) = port(t.prefill(0));
        t.fault_for(Fault::Loss { host, port, probability: Ppm::of(0.02) }, Span::s(5));
        let how = Disturbance::Garble;
        let control = ControlFault { from: None, to: None, probability: Ppm::of(0.1), how };
        t.fault_for(Fault::Control(control), Span::s(5));
        let node = t.decode(1);
        for n in 0..6 {
            t.request(60 + n, 5);
            t.run_for(Span::ms(7));
        }
        t.fault_for(Fault::Crash { node }, Span::s(1));
        assert!(t.run());
        let digest = t.digest();
        t.assert_clean();
        digest
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}
