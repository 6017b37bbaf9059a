//! The conformance suite: the simulated fabric against the contract, and against real verbs where there are devices.

use kvrail_tests::conformance::model::Expected;
use kvrail_tests::conformance::outcome::{Seen, differences};
use kvrail_tests::conformance::program::{Program, programs};
use kvrail_tests::conformance::quirks::Used;
use kvrail_tests::conformance::resolve;
use kvrail_tests::conformance::run::{Pace, run};
use kvrail_tests::conformance::script::Script;
use proptest::prelude::*;
use sim::fabric::Mistakes;
use sim::fabric::duo::{DuoSpec, SimDuo};

fn simulated(script: &Script, expected: &[Expected], pace: Pace, mistakes: Mistakes) -> Vec<Seen> {
    let mut duo = SimDuo::new(DuoSpec { mistakes, ..DuoSpec::default() }).unwrap();
    run(&mut duo, script, expected, pace).unwrap()
}

fn against_the_contract(program: &Program, mistakes: Mistakes) -> Result<(), TestCaseError> {
    let (script, expected) = resolve(program);
    let seen = simulated(&script, &expected, Pace::VIRTUAL, mistakes);
    let mut wrong = Vec::new();
    for (n, (expected, seen)) in expected.iter().zip(&seen).enumerate() {
        let mut of_round = Vec::new();
        differences(&expected.seen, seen, &expected.either, false, &mut Used::new(), &mut of_round);
        wrong.extend(of_round.into_iter().map(|w| format!("round {n}: {w}")));
    }
    prop_assert!(wrong.is_empty(), "{}\n{script:#?}", wrong.join("\n"));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_simulated_fabric_keeps_the_contract(program in programs()) {
        against_the_contract(&program, Mistakes::default())?;
    }
}
