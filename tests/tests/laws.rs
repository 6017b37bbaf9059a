//! The invariants, on random layouts, loads, policies and faults, whichever side moves the bytes. What a case breaks is printed with the case, which replays it.

mod common;

use common::{Case, cases, fault_free, faulty};
use proptest::prelude::*;
use sim::kit::{Build, Kit};

proptest! {
    #![proptest_config(cases(60))]

    /// Without faults everything arrives, once, with the fewest bytes, no RNR NAK and no fence; nothing else changes, nothing is left.
    #[test]
    fn fault_free_runs_are_perfect(case in fault_free()) {
        case.keeps(Kit::fault_free_violations)?;
    }

    /// With faults every request ends, and no cache is lost, corrupted or leaked.
    #[test]
    fn faults_corrupt_and_leak_nothing(case in faulty()) {
        case.keeps(Kit::violations)?;
    }
}

proptest! {
    #![proptest_config(cases(12))]

    /// The same case has the same digest, and whether memory is bytes or provenance changes nothing that a node can see.
    #[test]
    fn same_case_same_digest(case in faulty()) {
        let digest = |case: &Case| {
            let mut t = case.play();
            t.run();
            (t.digest(), t.now(), t.world().events())
        };
        let first = digest(&case);
        prop_assert_eq!(first, digest(&case));
        prop_assert_eq!(first, digest(&Case { bytes: !case.bytes, ..case.clone() }));
    }
}

#[test]
fn another_policy_or_seed_is_another_digest() {
    use engine::policy::{Granularity, OrderPolicy};
    use engine::time::Span;
    let digest = |change: fn(Build) -> Build| {
        let base = Kit::pair()
            .prefill(|i| i.tp(2).batch(128))
            .decode(|i| i.tp(2))
            .network(1.0, Span::us(1))
            .control(|c| c.jitter = Span::us(10))
            .transfer(|t| t.window.requests = 16);
        let mut t = change(base).build();
        for prompt in [500, 300, 70, 250, 40] {
            t.request(prompt, 10);
        }
        assert!(t.run());
        t.digest()
    };
    let all = [
        digest(|b| b),
        digest(|b| b.seed(2)),
        digest(|b| b.transfer(|t| t.granularity = Granularity::Request)),
        digest(|b| b.transfer(|t| t.granularity = Granularity::LayerWise { layers: 1 })),
        digest(|b| b.transfer(|t| t.window.bytes = 4096)),
        digest(|b| b.transfer(|t| t.order = OrderPolicy::ShortestRemaining)),
        digest(Build::pull),
        digest(|b| b.transfer(|t| t.rails = 2)),
        digest(|b| b.transfer(|t| t.max_sge = 1).prefill(|i| i.scatter()).decode(|i| i.scatter())),
    ];
    for (i, a) in all.iter().enumerate() {
        assert!(!all[i + 1..].contains(a), "{i} has the digest of another: {all:x?}");
    }
    assert_eq!(digest(|b| b), all[0]);
}
