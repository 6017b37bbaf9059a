//! What goes wrong on a wire, put there on purpose: `tc netem` on both ends of the pair that `tests/soft-roce/run` lays.

use std::fs;
use std::process::{Command, Output};
use std::time::Duration;

use engine::driver;
use engine::time::Span;

/// The two ends. What leaves prefill's device goes through the first, what leaves decode's through the second.
pub const ENDS: [&str; 2] = ["veth0", "veth1"];

/// A queueing discipline on an end of the wire, taken away when this goes.
pub struct Netem(&'static str);

impl Netem {
    /// Puts `netem` with these arguments on an end, such as `loss 1%`, `delay 20ms` or `rate 4mbit`.
    ///
    /// # Panics
    /// If `tc` refuses.
    #[must_use]
    pub fn on(end: &'static str, arguments: &str) -> Self {
        // What another test left, if it was killed.
        let _ = tc(&["qdisc", "del", "dev", end, "root"]);
        set("add", end, arguments);
        Netem(end)
    }

    /// Other arguments from now on. What waits stays where it is; it is lost when the discipline goes.
    ///
    /// # Panics
    /// If `tc` refuses.
    pub fn change(&self, arguments: &str) {
        set("change", self.0, arguments);
    }

    /// The same on both ends.
    #[must_use]
    pub fn on_both(arguments: &str) -> [Self; 2] {
        ENDS.map(|end| Netem::on(end, arguments))
    }

    /// Packets that it dropped.
    ///
    /// # Panics
    /// If `tc` does not say.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        let text = tc(&["-s", "qdisc", "show", "dev", self.0]).stdout;
        let text = String::from_utf8_lossy(&text);
        let number = |text: &str| text.split_once("(dropped ")?.1.split_once(',')?.0.parse().ok();
        number(&text).unwrap_or_else(|| panic!("tc does not say what was dropped: {text}"))
    }
}

impl Drop for Netem {
    fn drop(&mut self) {
        let _ = tc(&["qdisc", "del", "dev", self.0, "root"]);
    }
}

fn set(what: &str, end: &str, arguments: &str) {
    let words = ["qdisc", what, "dev", end, "root", "netem", "limit", "100000"];
    let words: Vec<&str> = words.into_iter().chain(arguments.split_whitespace()).collect();
    let done = tc(&words);
    assert!(done.status.success(), "tc {words:?}: {}", String::from_utf8_lossy(&done.stderr));
}

fn tc(words: &[&str]) -> Output {
    let mut command = Command::new("tc");
    // Where it is, which a user's path may lack.
    command.env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin");
    command.args(words).output().unwrap_or_else(|error| panic!("tc: {error}"))
}

/// Bytes that have left an end.
///
/// # Panics
/// If there is no such end.
#[must_use]
pub fn sent(end: &str) -> u64 {
    let file = format!("/sys/class/net/{end}/statistics/tx_bytes");
    let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{file}: {error}"));
    text.trim().parse().unwrap_or_else(|_| panic!("{file}: {text}"))
}

/// Waits until so many bytes more have left an end.
///
/// # Panics
/// If that takes longer than `patience`.
#[track_caller]
pub fn wait_for_bytes(end: &str, bytes: u64, patience: Duration) {
    let (before, by) = (sent(end), driver::now() + Span::ms(patience.as_millis() as u64));
    while sent(end) < before + bytes {
        assert!(driver::now() < by, "{} of {bytes} bytes left {end}", sent(end) - before);
        std::thread::sleep(Duration::from_millis(5));
    }
}
