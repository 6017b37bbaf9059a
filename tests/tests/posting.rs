//! What is posted next and where, end to end: a port that dies in the middle of a transfer, windows, copies that share the work.

use engine::id::PortId;
use engine::node::Step;
use engine::policy::{LeastInflight, RailPolicy, ReplicaChoice, Window};
use engine::time::Span;
use proptest::prelude::*;
use sim::fault::Ppm;
use sim::kit::{Build, Ending, Kit};
use sim::world::Fault;

/// Hosts with two ports of 1 Gb/s each: 4,000 tokens are 2 MB, 16 ms on one of them.
fn two_ports(policy: RailPolicy) -> Build {
    Kit::pair()
        .prefill(|i| i.ports(2).pages(600).batch(500))
        .decode(|i| i.ports(2).pages(600))
        .network(1.0, Span::us(1))
        .compute(Span::us(1), Span::us(100))
        .transfer(move |t| {
            t.rails = 2;
            t.rail_policy = policy.clone();
            t.window = Window { bytes: 100_000, ..Window::default() };
        })
}

fn policies() -> [RailPolicy; 5] {
    let least = RailPolicy::LeastInflight(LeastInflight::default());
    [RailPolicy::Pinned, RailPolicy::Striped, RailPolicy::RoundRobin, RailPolicy::Hash, least]
}

/// One of the two ports of a host goes down for good in the middle of a transfer, on either side, whichever way it goes and whatever spreads the
/// work: the transfer ends on the other, long before the queue pairs would have given up.
#[test]
fn a_transfer_ends_on_the_other_port() {
    for policy in policies() {
        for (pull, side, port) in [
            (false, 0, 0),
            (false, 0, 1),
            (false, 1, 0),
            (false, 1, 1),
            (true, 0, 0),
            (true, 1, 0),
            (true, 1, 1),
        ] {
            let build = two_ports(policy.clone());
            let mut t = if pull { build.pull() } else { build }.build();
            let a = t.request(4000, 3);
            assert!(t.run_until(|t| t.saw(a, |s| *s == Step::TransferStart)));
            t.run_for(Span::ms(3));
            assert!(!t.delivered(a));
            let (node, before) = (if side == 0 { t.prefill(0) } else { t.decode(0) }, t.now());
            t.link_down(node, port);
            assert!(t.run_until(|t| t.ending(a).is_some()), "{policy:?}");
            assert_eq!(t.ending(a), Some(Ending::Finished), "{policy:?} {pull} {side} {port}");
            assert!(t.now().since(before) < Span::ms(120), "{policy:?}: after {:?}", t.now().since(before));
            // And so does one that comes while the port is down.
            let b = t.request(1000, 3);
            assert!(t.run());
            t.assert_finished(b);
            t.assert_clean();
        }
    }
}

/// Without failover everything waits for the port, and the transfer ends when it is back.
#[test]
fn without_failover_the_port_is_waited_for() {
    let mut t = two_ports(RailPolicy::Striped).transfer(|t| t.failover = None).build();
    let a = t.request(4000, 3);
    assert!(t.run_until(|t| t.saw(a, |s| *s == Step::TransferStart)));
    t.run_for(Span::ms(3));
    let (node, before) = (t.prefill(0), t.now());
    t.link_down(node, 0);
    t.fault_in(Span::ms(200), Fault::LinkUp { host: node.index(), port: PortId(0) });
    assert!(t.run_until(|t| t.ending(a).is_some()));
    assert!(t.now().since(before) > Span::ms(200));
    t.assert_finished(a);
}

/// Bytes that a host's two ports have moved are not counted apart, but time is: with both ports a transfer takes half as long.
fn transfer_time(t: &mut Kit, tokens: u32) -> u64 {
    let request = t.request(tokens, 1);
    assert!(t.run_until(|t| t.ending(request).is_some()));
    t.assert_finished(request);
    let at = |what: fn(&Step) -> bool| {
        t.steps(request).find(|s| what(&s.record.step)).map(|s| s.at).expect("a finished request has it")
    };
    at(|s| *s == Step::Success).since(at(|s| *s == Step::TransferStart)).0
}

/// A port that is back is used again after its cooldown, on either side or both, without a request that fails for it; and one that flaps is left
/// alone for longer each time.
#[test]
fn a_port_that_is_back_is_used_again() {
    for (side, pull) in [(0, false), (1, false), (2, false), (0, true), (1, true), (2, true)] {
        let build = two_ports(RailPolicy::Striped).transfer(|t| t.window = Window::default());
        let build = build.transfer(|t| t.granularity = engine::policy::Granularity::Request);
        let mut t = if pull { build.pull() } else { build }.build();
        // A wire that breaks is missed at both ends.
        let nodes = [&[t.prefill(0)][..], &[t.decode(0)], &[t.prefill(0), t.decode(0)]][side].to_vec();
        let whole = transfer_time(&mut t, 4000);
        for flap in 0..3 {
            nodes.iter().for_each(|node| t.link_down(*node, 0));
            t.run_for(Span::ms(1));
            let half = transfer_time(&mut t, 4000);
            assert!(half > whole + whole * 2 / 3, "{half:?} on one port, {whole:?} on two");
            nodes.iter().for_each(|node| t.link_up(*node, 0));
            // 100 ms, 200 ms, 400 ms.
            t.run_for(Span::ms(80 << flap));
            let half = transfer_time(&mut t, 4000);
            assert!(half > whole + whole * 2 / 3, "flap {flap}: avoided for a while, {half:?} and {whole:?}");
            t.run_for(Span::ms(40 << flap));
            // The connection is made anew between two transfers, or with the next one.
            transfer_time(&mut t, 100);
            t.run_for(Span::ms(20));
            let again = transfer_time(&mut t, 4000);
            assert!(again < whole + whole / 4, "side {side} flap {flap}: {again:?}, before {whole:?}");
        }
        t.run();
        t.assert_clean();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Never more is posted on a port than its window, but for the one request that reaches it.
    #[test]
    fn no_more_is_posted_than_the_window(
        bytes in prop::sample::select(vec![1u64, 700, 20_000, 300_000]),
        requests in prop::sample::select(vec![1u64, 3, 40]),
        policy in 0usize..5,
        pull: bool,
        prompts in prop::collection::vec(1u32..900, 1..6),
    ) {
        let build = two_ports(policies()[policy].clone())
            .transfer(|t| {
                t.window = Window { bytes, requests, signal_every: 0 };
                t.max_message = 4096;
            });
        let mut t = if pull { build.pull() } else { build }.build();
        let all: Vec<_> = prompts.iter().map(|prompt| t.request(*prompt, 2)).collect();
        let initiator = if pull { t.decode(0) } else { t.prefill(0) };
        let mut most = 0;
        while all.iter().any(|request| t.ending(*request).is_none()) {
            prop_assert!(t.step());
            let host = t.world().fabrics().host_ref(initiator.index());
            for port in 0..2 {
                let (posted, sends) = host.outstanding(PortId(port));
                // An aux row and a seal go with the request that they follow.
                prop_assert!(sends <= requests + 2, "{sends} requests on port {port}");
                prop_assert!(posted < bytes + 4096 + 64 + 32, "{posted} bytes on port {port}");
                most = most.max(sends);
            }
        }
        prop_assert!(most > 0);
        all.into_iter().for_each(|request| t.assert_finished(request));
    }
}

/// Prefill TP 4 of MLA, so that every rank has all KV, and four decode instances of one rank, all of them served at once by one prefill
/// instance: by destination rank all of it leaves by the first rank's NIC, striped by all four.
#[test]
fn striped_copies_use_all_nics() {
    let time = |replica| {
        let mut t = Kit::cluster(1, 4)
            .model("tiny-mla")
            .prefill(|i| i.tp(4).ports(4).pages(2000).batch(4000))
            .decode(|i| i.pages(600))
            .network(1.0, Span::us(1))
            .compute(Span(1000), Span::us(100))
            .transfer(|t| t.replica = replica)
            .build();
        let all: Vec<_> = (0..4).map(|_| t.request(1000, 1)).collect();
        assert!(t.run());
        all.into_iter().for_each(|request| t.assert_finished(request));
        let (bytes, end) = (t.counted().bytes, t.now());
        assert_eq!(t.fault_free_violations(), Vec::<String>::new());
        (bytes, end)
    };
    let (by_destination, striped) = (time(ReplicaChoice::ByDestination), time(ReplicaChoice::Striped));
    // The same KV; each copy seals.
    assert_eq!(striped.0 - by_destination.0, 4 * 3 * 32);
    assert_eq!(time(ReplicaChoice::Fixed(2)).0, by_destination.0);
    assert!(striped.1 < by_destination.1);
}

/// Prefill's second port has a tenth of its speed: a policy that measures gives it a tenth of the work, one that deals out half of it waits.
#[test]
fn a_slow_port_gets_less() {
    let time = |policy: RailPolicy, pull: bool| {
        let build = two_ports(policy).transfer(|t| t.window = Window { bytes: 300_000, ..Window::default() });
        let mut t = if pull { build.pull() } else { build }.build();
        let host = t.prefill(0).index();
        t.fault(Fault::Degrade { host, port: PortId(1), to: Ppm::of(0.1) });
        let times: Vec<_> = (0..3).map(|_| transfer_time(&mut t, 4000)).collect();
        assert!(t.run());
        t.assert_clean();
        times[2]
    };
    for pull in [false, true] {
        let least = time(RailPolicy::LeastInflight(LeastInflight::default()), pull);
        let striped = time(RailPolicy::Striped, pull);
        println!("least {least}, striped {striped}");
        assert!(least * 2 < striped, "pull: {pull}, {least} against {striped}");
    }
}

/// What was posted to a peer that is gone counts for nothing: the window is the others' again.
#[test]
fn a_peer_that_is_gone_gives_its_part_of_the_window_back() {
    for window in [Window { bytes: 30_000, ..Window::default() }, Window { requests: 3, ..Window::default() }]
    {
        let mut t = Kit::cluster(1, 2)
            .network(0.05, Span::us(1))
            .lease(Span::ms(200))
            .transfer(move |t| (t.window, t.max_message) = (window, 10_000))
            .build();
        let gone = t.request(900, 2);
        assert!(t.run_until(|t| t.saw(gone, |step| *step == Step::TransferStart)));
        t.crash(t.decode(0));
        assert!(t.run_until(|t| t.ending(gone).is_some()));
        let other = t.request(900, 2);
        assert!(t.run_until(|t| t.ending(other).is_some()));
        t.assert_finished(other);
    }
}
