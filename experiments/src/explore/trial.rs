//! One case, run and looked at.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

use sim::watch::{Broken, Coverage, Law};

use crate::build::{Lookout, Silent, simulate_watched};
use crate::spec::{Invariants, Spec};

/// What came of a case.
#[derive(Clone, Debug, Default)]
pub struct Trial {
    /// Events.
    pub events: u64,
    /// Of everything that nodes took in and gave out.
    pub digest: u64,
    /// Laws, in the order in which they were seen broken.
    pub broken: Vec<Broken>,
    /// What it has been through.
    pub coverage: Coverage,
}

impl Trial {
    /// The law that was seen broken first.
    #[must_use]
    pub fn law(&self) -> Option<Law> {
        self.broken.first().map(|broken| broken.law)
    }
}

/// Events after an arrival without another one, after which a case goes round in circles.
const MOST_EVENTS: u64 = 3_000_000;

thread_local! {
    /// Whether a panic of this thread is looked for, and what the last one said.
    static PANIC: Cell<Option<String>> = const { Cell::new(None) };
}

/// Runs `work` with panics of trials told to nobody: they are findings.
pub fn quietly<T>(work: impl FnOnce() -> T) -> T {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(|panic| PANIC.set(Some(panic.to_string()))));
    let done = work();
    std::panic::set_hook(before);
    done
}

/// Runs a case. An experiment that cannot be built is a mistake of whoever made it, and shows as one that breaks a law.
#[must_use]
pub fn attempt(spec: &Spec) -> Trial {
    let lookout = Lookout {
        fault_free: spec.invariants == Invariants::FaultFree,
        most_events: MOST_EVENTS,
        first: true,
    };
    let run = || simulate_watched(spec, spec.seeds().first().copied().unwrap_or(1), &Silent, lookout);
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok((result, findings))) => Trial {
            events: findings.events,
            digest: result.digest,
            broken: findings.broken,
            coverage: findings.coverage,
        },
        Ok(Err(error)) => broken(format!("the case cannot be run: {error}")),
        Err(_) => broken(PANIC.take().unwrap_or_else(|| "a panic that says nothing".to_owned())),
    }
}

fn broken(what: String) -> Trial {
    Trial { broken: vec![Broken::new(Law::NoPanic, what)], ..Trial::default() }
}
