//! Ctrl-C: the first one asks the run to stop, the second one ends the process.

use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use super::status;

static STOP: AtomicBool = AtomicBool::new(false);

/// Catches Ctrl-C from now on.
pub(super) fn catch() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Where no handler can be set the default remains: the process ends at once.
        let _ = ctrlc::set_handler(|| {
            if STOP.swap(true, Ordering::Relaxed) {
                std::process::exit(i32::from(status::INTERRUPTED));
            }
        });
    });
}

/// Whether the user wants to stop.
pub(super) fn requested() -> bool {
    STOP.load(Ordering::Relaxed)
}
