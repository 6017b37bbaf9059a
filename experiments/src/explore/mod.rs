//! Random exploration: clusters, layouts, policies, loads and faults drawn from a seed, every law looked at as each runs.
//!
//! A case is an experiment ([`draw::case`]), so that whatever is found can be written as YAML and run again with `kvrail run`. Seeds are
//! independent and run on any number of threads; what is found does not depend on how many. A case that breaks a law is made smaller for as
//! long as it breaks the same law ([`shrink::shrink`]). [`coverage`] says what all cases together have been through, and what cannot be.

pub mod coverage;
mod dice;
pub mod draw;
pub mod shrink;
mod trial;
mod write;

pub use dice::Dice;
pub use trial::{Trial, attempt, quietly};
pub use write::{Size, yaml};

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use sim::watch::{Broken, Coverage};

use crate::spec::Spec;

/// What to explore.
#[derive(Clone, Debug)]
pub struct Options {
    /// The first seed.
    pub from: u64,
    /// How many.
    pub seeds: u64,
    /// Cases at a time.
    pub threads: usize,
    /// Go on after a failure.
    pub keep_going: bool,
    /// Rules that are switched off in every case.
    pub without: Vec<String>,
}

/// Counts while it goes on.
#[derive(Debug, Default)]
pub struct Counts {
    /// Cases that have ended.
    pub seeds: AtomicU64,
    /// Events of them.
    pub events: AtomicU64,
    /// Cases that broke a law.
    pub failures: AtomicU64,
    /// Set it to end soon.
    pub stop: AtomicBool,
}

/// A case that broke laws.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Its seed.
    pub seed: u64,
    /// The laws, in the order in which they were seen broken.
    pub broken: Vec<Broken>,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Cases that ended.
    pub seeds: u64,
    /// Events of each, in ascending order.
    pub events: Vec<u64>,
    /// Over all cases, whatever their order.
    pub digest: u64,
    /// What they have been through.
    pub coverage: Coverage,
    /// By seed.
    pub failures: Vec<Failure>,
    /// Whether it ended before all seeds were tried.
    pub cut_short: bool,
}

impl Report {
    /// Events of all cases.
    #[must_use]
    pub fn total_events(&self) -> u64 {
        self.events.iter().sum()
    }
    /// Half of the cases had so many events or more.
    #[must_use]
    pub fn median_events(&self) -> u64 {
        self.events.get(self.events.len() / 2).copied().unwrap_or(0)
    }
}

/// The case of a seed under these options.
#[must_use]
pub fn case(seed: u64, without: &[String]) -> Spec {
    let mut spec = draw::case(seed);
    spec.transfer.without = without.to_vec();
    spec
}

/// Tries seeds in their order until all are tried, one fails (unless it is to go on), or `counts.stop` is set.
pub fn explore(options: &Options, counts: &Counts) -> Report {
    let next = AtomicU64::new(0);
    // Seeds above the lowest one that failed count for nothing.
    let lowest = AtomicU64::new(u64::MAX);
    let done: Mutex<BTreeMap<u64, Trial>> = Mutex::new(BTreeMap::new());
    let sums: Mutex<Report> = Mutex::new(Report::default());
    let work = || {
        // Sums of this thread, so that threads do not wait for one another.
        let mut own = Report::default();
        while !counts.stop.load(Ordering::Relaxed) {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let seed = options.from.wrapping_add(at);
            if at >= options.seeds || (!options.keep_going && at > lowest.load(Ordering::Relaxed)) {
                break;
            }
            let trial = attempt(&case(seed, &options.without));
            counts.seeds.fetch_add(1, Ordering::Relaxed);
            counts.events.fetch_add(trial.events, Ordering::Relaxed);
            own.seeds += 1;
            own.events.push(trial.events);
            own.digest = own.digest.wrapping_add(trial.digest.wrapping_mul(seed | 1));
            own.coverage.add(&trial.coverage);
            if !trial.broken.is_empty() {
                counts.failures.fetch_add(1, Ordering::Relaxed);
                lowest.fetch_min(at, Ordering::Relaxed);
                if let Ok(mut done) = done.lock() {
                    done.insert(at, trial);
                }
            }
        }
        if let Ok(mut sums) = sums.lock() {
            sums.seeds += own.seeds;
            sums.events.append(&mut own.events);
            sums.digest = sums.digest.wrapping_add(own.digest);
            sums.coverage.add(&own.coverage);
        }
    };
    quietly(|| {
        std::thread::scope(|scope| {
            for _ in 0..options.threads.max(1) {
                scope.spawn(work);
            }
        });
    });
    let mut report = sums.into_inner().unwrap_or_default();
    report.events.sort_unstable();
    report.cut_short = report.seeds < options.seeds;
    let lowest = lowest.into_inner();
    report.failures = done
        .into_inner()
        .unwrap_or_default()
        .into_iter()
        .filter(|(at, _)| options.keep_going || *at == lowest)
        .map(|(at, trial)| Failure { seed: options.from.wrapping_add(at), broken: trial.broken })
        .collect();
    report
}
