//! The walk of every interleaving: what holds with all rules on, and what it finds when one is off.

use engine::transfer::Rules;
use experiments::exhaustive::{Limits, Outcome, SCOPES, Scope, walk};

fn walked(scope: &str, without: Option<&str>, states: usize, threads: usize) -> Outcome {
    let scope = Scope::named(scope).expect("a scope");
    let rules = without.map_or_else(Rules::default, |name| Rules::by_name(name).expect("a rule"));
    walk(scope, rules, Limits { states, threads }, &mut |_, _| true).expect("a scope that can be")
}

/// No fault, then one death of a queue pair with nobody giving up: an event of it that is heard after the reconnect must not cost another try.
#[test]
fn every_order_ends_well() {
    for (scope, most) in [("fault-free", 4000), ("retry", 12_000)] {
        let outcome = walked(scope, None, most, 2);
        assert!(outcome.found.is_none(), "{scope}: {:#?}", outcome.found);
        assert!(outcome.complete && outcome.ends >= 1, "{scope}: {outcome:?}");
        assert!(outcome.states > 1000, "{scope}: {outcome:?}");
    }
}

#[test]
fn no_scope_breaks_early() {
    for scope in SCOPES {
        let outcome = walked(scope.name, None, 1500, 2);
        assert!(outcome.found.is_none(), "{}: {:#?}", scope.name, outcome.found);
    }
}

/// Scope, rule, the law that breaks, and in how many steps at least.
const FOUND: [(&str, &str, &str, usize); 16] = [
    ("fault-free", "seals", "Success without the aux row", 6),
    ("fault-free", "aux_in_part", "Success without the aux row", 9),
    ("fault-free", "receive_credits", "receiver not ready in a fault-free run", 5),
    ("deadlines", "fence_before_free", "data lands in pages of another room or freed", 7),
    ("deadlines", "initiator_waits", "data lands in pages of another room or freed", 6),
    ("lease", "lease", "Success after the lease was declared dead", 10),
    ("reorder", "fence_epoch", "data lands in pages of another room or freed", 12),
    ("reorder", "tombstones", "data lands in pages of another room or freed", 10),
    ("retry", "live_list", "data lands in pages of another room or freed", 18),
    ("retry", "seen_list", "data lands after decode's Success", 15),
    ("retry", "ask", "nothing more can happen, and something is held or undecided", 11),
    ("retry", "poll_before_offer", "nothing more can happen, and something is held or undecided", 15),
    ("retry", "ready_gate", "a room that could succeed did not", 22),
    ("retry", "failures_count", "nothing more can happen, and something is held or undecided", 11),
    ("retry", "links_recover", "nothing more can happen, and something is held or undecided", 13),
    ("zombie", "lease", "Success after the lease was declared dead", 13),
];

#[test]
fn a_rule_that_is_off_is_missed() {
    for (scope, rule, law, steps) in FOUND {
        let found = walked(scope, Some(rule), 10_000, 2).found;
        let found = found.unwrap_or_else(|| panic!("{rule} is not missed in {scope}"));
        assert_eq!((found.law, found.path.len()), (law, steps), "{rule}: {found:#?}");
        assert_eq!(found.trace.len(), found.path.len());
    }
}

#[test]
fn threads_do_not_change_the_outcome() {
    let outcomes = [1, 3].map(|threads| walked("lease", Some("lease"), 3000, threads));
    let [one, three] = outcomes.map(|o| (o.states, o.edges, o.depth, o.found.map(|found| found.path)));
    assert_eq!(one, three);
}

#[test]
fn a_walk_can_be_stopped() {
    let scope = Scope::named("deadlines").expect("a scope");
    let limits = Limits { states: usize::MAX, threads: 1 };
    let outcome = walk(scope, Rules::default(), limits, &mut |states, _| states < 200).expect("a scope");
    assert!(!outcome.complete && outcome.found.is_none() && outcome.states >= 200);
}
