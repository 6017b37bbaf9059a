//! Progress of long runs on a terminal.

// The wall clock is for the person who waits; no result depends on it.
#![allow(clippy::disallowed_types)]

use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::interrupt;
use crate::build::Progress;
use crate::report::table::count;

/// A run shorter than this shows nothing.
const QUIET_START: Duration = Duration::from_millis(700);
const PERIOD: Duration = Duration::from_millis(250);

/// Adds up the runs of all seeds and shows one line.
pub(super) struct Meter {
    shown: bool,
    start: Instant,
    runs: Vec<Run>,
    last: Mutex<Instant>,
    /// Another seed has failed: stop.
    cancelled: AtomicBool,
}

#[derive(Default)]
struct Run {
    ended: AtomicU64,
    /// Millionths.
    fraction: AtomicU64,
}

impl Meter {
    pub(super) fn new(seeds: usize, quiet: bool) -> Self {
        let now = Instant::now();
        Meter {
            shown: !quiet && std::io::stderr().is_terminal(),
            start: now,
            runs: (0..seeds).map(|_| Run::default()).collect(),
            last: Mutex::new(now),
            cancelled: AtomicBool::new(false),
        }
    }

    /// The progress of the seed at `index`.
    pub(super) fn of(&self, index: usize) -> SeedProgress<'_> {
        SeedProgress { meter: self, index }
    }

    /// Makes every run stop.
    pub(super) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    pub(super) fn cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Wall time since the start.
    pub(super) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Takes the line away.
    pub(super) fn clear(&self) {
        if self.shown && self.elapsed() > QUIET_START {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }

    fn show(&self) {
        // Whoever finds another thread at it leaves it to that one.
        let Ok(mut last) = self.last.try_lock() else { return };
        let elapsed = self.elapsed();
        if elapsed < QUIET_START || last.elapsed() < PERIOD {
            return;
        }
        *last = Instant::now();
        let _ = write!(std::io::stderr(), "\r\x1b[K{}", self.line(elapsed));
    }

    fn line(&self, elapsed: Duration) -> String {
        let ended: u64 = self.runs.iter().map(|run| run.ended.load(Ordering::Relaxed)).sum();
        let millionths: u64 = self.runs.iter().map(|run| run.fraction.load(Ordering::Relaxed)).sum();
        let fraction = millionths as f64 / 1e6 / self.runs.len().max(1) as f64;
        let seconds = elapsed.as_secs_f64();
        let left = if fraction > 0.001 {
            format!("{:.0} s left", seconds / fraction * (1.0 - fraction))
        } else {
            "time left not known yet".to_owned()
        };
        format!(
            "{:.1} %, {} requests ended, {}/s, {seconds:.0} s, {left}",
            fraction * 100.0,
            count(ended),
            count((ended as f64 / seconds.max(1e-9)) as u64)
        )
    }
}

/// What one seed's run reports to.
pub(super) struct SeedProgress<'a> {
    meter: &'a Meter,
    index: usize,
}

impl Progress for SeedProgress<'_> {
    fn update(&self, ended: u64, fraction: f64, _sim_ps: u64) -> bool {
        if let Some(run) = self.meter.runs.get(self.index) {
            run.ended.store(ended, Ordering::Relaxed);
            run.fraction.store((fraction.clamp(0.0, 1.0) * 1e6) as u64, Ordering::Relaxed);
        }
        if self.meter.shown {
            self.meter.show();
        }
        !interrupt::requested() && !self.meter.cancelled()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_added_up() {
        let meter = Meter::new(2, true);
        assert!(meter.of(0).update(300, 1.0, 0) && meter.of(1).update(100, 0.5, 0));
        let line = meter.line(Duration::from_secs(3));
        assert_eq!(line, "75.0 %, 400 requests ended, 133/s, 3 s, 1 s left");
        meter.cancel();
        assert!(!meter.of(0).update(301, 1.0, 0));
    }
}
