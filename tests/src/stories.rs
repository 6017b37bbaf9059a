//! What tests of single rules and of peers' mistakes have in common: scenarios with names, and the comparison of a run that keeps a rule with
//! one that does not.

use engine::time::Span;
use engine::transfer::Rules;
use sim::kit::{Build, Kit};

/// Slow enough that a story can be told while data moves: 100 tokens take 41 ms.
#[must_use]
pub fn slow() -> Build {
    Kit::pair().network(0.01, Span::us(1))
}

/// With the rule everything is clean; without it `loss` must be in what the laws say.
///
/// # Panics
/// If that is not so.
#[track_caller]
pub fn shows(story: impl Fn(Build) -> Kit, base: Build, off: impl Fn(&mut Rules), loss: &str) {
    let wrong = story(base.clone()).violations();
    assert!(wrong.is_empty(), "with the rule: {wrong:#?}");
    let wrong = story(base.rules(off)).violations();
    assert!(wrong.iter().any(|w| w.contains(loss)), "without the rule, expected `{loss}`: {wrong:#?}");
}

/// The same for a rule by its name, and for the laws of runs without faults.
///
/// # Panics
/// If that is not so.
#[track_caller]
pub fn shows_fault_free(story: impl Fn(Build) -> Kit, base: Build, name: &str, loss: &str) {
    let wrong = story(base.clone()).fault_free_violations();
    assert!(wrong.is_empty(), "with {name}: {wrong:#?}");
    let wrong = story(without(base, name)).fault_free_violations();
    assert!(wrong.iter().any(|w| w.contains(loss)), "without {name}, expected `{loss}`: {wrong:#?}");
}

/// A scenario without one rule.
///
/// # Panics
/// If there is no such rule.
#[must_use]
#[track_caller]
pub fn without(base: Build, name: &str) -> Build {
    let rules = Rules::by_name(name).unwrap_or_else(|| panic!("no rule {name}"));
    base.rules(|r| *r = rules)
}

/// One request of 100 tokens, from its arrival to rest.
///
/// # Panics
/// If it does not come to rest.
#[must_use]
pub fn one_request(build: Build) -> Kit {
    let mut t = build.build();
    t.request(100, 5);
    assert!(t.run(), "not quiet within the bound");
    t
}

/// One request of 100 tokens; the run may hang.
#[must_use]
pub fn tries_one_request(build: Build) -> Kit {
    let mut t = build.build();
    t.request(100, 5);
    t.run();
    t
}

/// A room fails on decode in the middle of its transfer, and prefill's report does not come in time: decode's pages must not be free before a
/// fence.
#[must_use]
pub fn no_report_in_time() -> Build {
    slow().decode(|i| {
        i.transfer(|t| {
            t.room_deadline = Span::ms(10);
            t.drain_deadline = Span::ms(1);
        })
    })
}

/// Decode aborts a room while prefill's requests are outstanding.
#[must_use]
pub fn decode_aborts() -> Build {
    slow().decode(|i| i.transfer(|t| t.room_deadline = Span::ms(10)))
}
