//! Random exploration in small: seeds that every change is tried on.

use std::sync::LazyLock;

use experiments::explore::{Counts, Options, Report, explore};

fn explored(threads: usize) -> Report {
    let options = Options { from: 1, seeds: 60, threads, keep_going: true, without: Vec::new() };
    explore(&options, &Counts::default())
}

static SEEDS: LazyLock<Report> = LazyLock::new(|| explored(2));

/// No law is broken, in cases that are worth the name, and what happens does not depend on the number of threads.
#[test]
fn seeds_break_no_law() {
    assert!(SEEDS.failures.is_empty(), "{:#?}", SEEDS.failures);
    assert_eq!(SEEDS.seeds, 60);
    assert!(SEEDS.median_events() > 1000, "{}", SEEDS.median_events());
    assert_eq!(explored(1).digest, SEEDS.digest);
}

/// Of everything that nodes took in and gave out in these seeds, and when.
const DIGEST: u64 = 0x59bb_418b_fae0_ff81;

/// That it is right is what the laws above say. That it is the same says that another machine computes the same, and that a change which was
/// not meant to alter what nodes do does not. One that was, or that alters what is drawn, brings its own number.
#[test]
fn nodes_do_what_they_did() {
    assert_eq!(
        SEEDS.digest, DIGEST,
        "{:#018x}: what nodes do, or what is drawn, is not what it was",
        SEEDS.digest
    );
}
