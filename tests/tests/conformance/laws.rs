//! What the simulated fabric must do by itself.

use crate::check::{compare, search, search_races, simulated, simulated_count};
use kvrail_tests::conformance::coverage::Coverage;
use kvrail_tests::conformance::quirks::Used;
use kvrail_tests::conformance::run::Pace;
use sim::fabric::Mistakes;

#[test]
fn random_programs_keep_the_contract_on_the_simulated_fabric() {
    let mut coverage = Coverage::default();
    let found = search(
        0,
        simulated_count(),
        2000,
        |program| program,
        &mut coverage,
        |script, expected| {
            let seen = simulated(script, expected, Pace::VIRTUAL, Mistakes::default());
            compare(expected.iter().map(|e| &e.seen), &seen, expected, false, &mut Used::new())
        },
    );
    if let Some(found) = found {
        panic!("{found}");
    }
    println!("{coverage}");
    assert!(coverage.missing().is_empty(), "no program had: {:?}", coverage.missing());
}

#[test]
fn the_same_program_does_the_same_again_and_expanded() {
    let found = search(
        0,
        simulated_count(),
        2000,
        |program| program,
        &mut Coverage::default(),
        |script, expected| {
            let run = |pace| simulated(script, expected, pace, Mistakes::default());
            let first = run(Pace::VIRTUAL);
            let mut wrong = Vec::new();
            if run(Pace::VIRTUAL) != first {
                wrong.push("a second run differs".into());
            }
            if run(Pace { expand: true, ..Pace::VIRTUAL }) != first {
                wrong.push("requests one by one differ from windows of plans".into());
            }
            wrong
        },
    );
    if let Some(found) = found {
        panic!("{found}");
    }
}

#[test]
fn races_end_as_one_of_the_allowed_outcomes() {
    let found = search_races(simulated_count(), 2000, |script, expected| {
        Ok(simulated(script, expected, Pace::VIRTUAL, Mistakes::default()))
    });
    if let Some((after, race, wrong)) = found {
        panic!("race {after}, shrunk to {race:#?}: {wrong:#?}");
    }
}

#[test]
fn the_check_of_races_sees_a_wrong_answer() {
    let mistakes = Mistakes { atomics_answer_new: true, ..Mistakes::default() };
    let found =
        search_races(100, 2000, |script, expected| Ok(simulated(script, expected, Pace::VIRTUAL, mistakes)));
    let (after, race, _) = found.expect("an atomic that answers with the new value");
    println!("atomics_answer_new among races: after {after}, shrunk to {race:?}");
}
