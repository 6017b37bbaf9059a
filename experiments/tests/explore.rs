//! Random exploration in small: seeds that every change is tried on.

use experiments::explore::{Counts, Options, Report, explore};

fn explored(threads: usize) -> Report {
    let options = Options { from: 1, seeds: 60, threads, keep_going: true, without: Vec::new() };
    explore(&options, &Counts::default())
}

/// No law is broken, in cases that are worth the name, whatever the number of threads.
#[test]
fn seeds_break_no_law() {
    let report = explored(2);
    assert!(report.failures.is_empty(), "{:#?}", report.failures);
    assert_eq!(report.seeds, 60);
    assert!(report.median_events() > 1000, "{}", report.median_events());
    assert_eq!(explored(1).digest, report.digest);
}
