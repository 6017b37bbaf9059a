//! The walk of every interleaving: what holds with all rules on, and what it finds when one is off.

use engine::transfer::Rules;
use experiments::exhaustive::{Limits, Outcome, SCOPES, Scope, walk};

fn walked(scope: &str, without: Option<&str>, states: usize, threads: usize) -> Outcome {
    let scope = Scope::named(scope).expect("a scope");
    let rules = without.map_or_else(Rules::default, |name| Rules::by_name(name).expect("a rule"));
    walk(scope, rules, Limits { states, threads }, &mut |_, _| true).expect("a scope that can be")
}

#[test]
fn without_faults_every_order_ends_well() {
    let outcome = walked("fault-free", None, 100_000, 2);
    assert!(outcome.found.is_none(), "{:#?}", outcome.found);
    assert!(outcome.complete);
    // The last report arrives in every order, and all of them end in the same state but for what was said last.
    assert!(outcome.states > 1000 && outcome.ends >= 1, "{outcome:?}");
}

#[test]
fn no_scope_breaks_early() {
    for scope in SCOPES {
        let outcome = walked(scope.name, None, 1500, 2);
        assert!(outcome.found.is_none(), "{}: {:#?}", scope.name, outcome.found);
    }
}

/// Scope, rule, the law that breaks, and in how many steps at least.
const FOUND: [(&str, &str, &str, usize); 6] = [
    ("fault-free", "seals", "Success without the aux row", 6),
    ("fault-free", "aux_in_part", "Success without the aux row", 9),
    ("fault-free", "receive_credits", "receiver not ready in a fault-free run", 5),
    ("deadlines", "fence_before_free", "data lands in pages of another room or freed", 7),
    ("deadlines", "initiator_waits", "data lands in pages of another room or freed", 6),
    ("lease", "lease", "Success after the lease was declared dead", 10),
];

#[test]
fn a_rule_that_is_off_is_missed() {
    for (scope, rule, law, steps) in FOUND {
        let found = walked(scope, Some(rule), 3000, 2).found;
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
