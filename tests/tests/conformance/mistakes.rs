//! Mistakes put into the simulated fabric on purpose: the suite must see each.

use crate::check::{compare, search, simulated};
use kvrail_tests::conformance::coverage::Coverage;
use kvrail_tests::conformance::quirks::Used;
use kvrail_tests::conformance::run::Pace;
use sim::fabric::Mistakes;

/// Programs within which a mistake must be seen.
const WITHIN: u64 = 1000;

#[test]
fn every_mistake_is_seen_on_the_simulated_fabric_alone() {
    let mut missed = Vec::new();
    println!("mistake, programs until it was seen, requests of the shrunk program");
    for (name, mistakes) in Mistakes::each() {
        let found = search(
            0,
            WITHIN,
            2000,
            |program| program,
            &mut Coverage::default(),
            |script, expected| {
                let seen = simulated(script, expected, Pace::VIRTUAL, mistakes);
                compare(expected.iter().map(|e| &e.seen), &seen, expected, false, &mut Used::new())
            },
        );
        match found {
            Some(found) => println!("{name}, {}, {}", found.after, found.requests()),
            None => missed.push(name),
        }
    }
    assert!(missed.is_empty(), "not seen in {WITHIN} programs: {missed:?}");
}
