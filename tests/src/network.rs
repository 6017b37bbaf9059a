//! What goes wrong on a wire, put there on purpose: `tc` on the ends of the pair that `tests/soft-roce/run` lays.

use std::fs;
use std::process::{Command, Output};
use std::time::Duration;

use engine::driver;
use engine::time::Span;

/// The two ends of the first wire. What leaves prefill's device goes through the first, what leaves decode's through the second.
pub const ENDS: [&str; 2] = ["veth0", "veth1"];

/// A queueing discipline on an end of the wire, taken away when this goes.
pub struct Discipline(&'static str);

impl Discipline {
    /// Puts one on an end: `netem loss 1%`, `netem delay 20ms`.
    ///
    /// # Panics
    /// If `tc` refuses.
    #[must_use]
    pub fn on(end: &'static str, arguments: &str) -> Self {
        // What another test left, if it was killed.
        let _ = tc(&["qdisc", "del", "dev", end, "root"]);
        must(&format!("qdisc add dev {end} root {arguments}"));
        Discipline(end)
    }

    /// Makes an end slow. Nothing is lost: a NIC sends no more than so many packets ahead of their acknowledgements.
    ///
    /// # Panics
    /// If `tc` refuses.
    #[must_use]
    pub fn slow(end: &'static str, rate: &str) -> Self {
        Discipline::on(end, &bucket(rate))
    }

    /// Makes an end slow for what goes to these queue pairs, and for nothing else.
    ///
    /// # Panics
    /// If `tc` refuses.
    #[must_use]
    pub fn slow_to(end: &'static str, queue_pairs: &[u32], rate: &str) -> Self {
        assert!(!queue_pairs.is_empty(), "no queue pair to be slow for");
        let first = "prio bands 2 priomap 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0";
        let own = Discipline::on(end, &format!("handle 1: {first}"));
        must(&format!("qdisc add dev {end} parent 1:2 {}", bucket(rate)));
        for qpn in queue_pairs {
            // Destination of the base transport header: 4 bytes into it, after 20 of IPv4 and 8 of UDP.
            let to = format!("match u32 {qpn:#x} 0x00ffffff at 32");
            must(&format!("filter add dev {end} parent 1: protocol ip prio 1 u32 {to} flowid 1:2"));
        }
        own
    }

    /// Another rate from now on, also for what waits.
    ///
    /// # Panics
    /// If `tc` refuses.
    pub fn rate(&self, rate: &str) {
        must(&format!("qdisc change dev {} root {}", self.0, bucket(rate)));
    }

    /// The same on both ends.
    #[must_use]
    pub fn on_both(arguments: &str) -> [Self; 2] {
        ENDS.map(|end| Discipline::on(end, arguments))
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

impl Drop for Discipline {
    fn drop(&mut self) {
        let _ = tc(&["qdisc", "del", "dev", self.0, "root"]);
    }
}

fn bucket(rate: &str) -> String {
    format!("tbf rate {rate} burst 64kb limit 256mb")
}

fn must(words: &str) {
    let done = tc(&words.split_whitespace().collect::<Vec<_>>());
    assert!(done.status.success(), "tc {words}: {}", String::from_utf8_lossy(&done.stderr));
}

fn tc(words: &[&str]) -> Output {
    run("tc", words)
}

fn run(program: &str, words: &[&str]) -> Output {
    let mut command = Command::new(program);
    // Where it is, which a user's path may lack.
    command.env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin");
    command.args(words).output().unwrap_or_else(|error| panic!("{program}: {error}"))
}

/// Numbers of a process's queue pairs that can send: its own ends, or those at its peers.
#[must_use]
pub fn queue_pairs(pid: u32, own: bool) -> Vec<u32> {
    let text = run("rdma", &["resource", "show", "qp"]).stdout;
    let text = String::from_utf8_lossy(&text);
    let value = |line: &str, name: &str| {
        let mut words = line.split_whitespace().skip_while(|word| *word != name);
        words.nth(1).map(str::to_owned)
    };
    let mine = |line: &&str| {
        value(line, "pid") == Some(pid.to_string()) && value(line, "state").as_deref() == Some("RTS")
    };
    let number = |line: &str| value(line, if own { "lqpn" } else { "rqpn" })?.parse().ok();
    text.lines().filter(mine).filter_map(number).collect()
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
