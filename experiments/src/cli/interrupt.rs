//! Ctrl-C and SIGTERM: the first one asks the run to stop, the second one ends the process.

use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use super::status;

static STOP: AtomicBool = AtomicBool::new(false);

/// Catches Ctrl-C and SIGTERM from now on.
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

/// Stops when standard input ends, which a parent process holds open for as long as it lives. A process that does not come to its
/// end within `grace` is ended.
pub(super) fn tie(grace: std::time::Duration) {
    std::thread::spawn(move || {
        let mut stdin = std::io::stdin().lock();
        while std::io::Read::read(&mut stdin, &mut [0; 64]).is_ok_and(|read| read > 0) {}
        STOP.store(true, Ordering::Relaxed);
        std::thread::sleep(grace);
        std::process::exit(i32::from(status::INTERRUPTED));
    });
}

/// Whether the user wants to stop.
pub(super) fn requested() -> bool {
    STOP.load(Ordering::Relaxed)
}
