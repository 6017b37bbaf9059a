//! What is measured: options with perftest's defaults, resolved for one message size.

use engine::fabric::Limits;
use serde::{Deserialize, Serialize};

/// Which operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Op {
    /// RDMA WRITE
    Write,
    /// RDMA WRITE with immediate
    WriteImm,
    /// SEND
    Send,
    /// RDMA READ
    Read,
}

impl Op {
    /// As the CSV has it.
    pub fn name(self) -> &'static str {
        match self {
            Op::Write => "WRITE",
            Op::WriteImm => "WRITE_IMM",
            Op::Send => "SEND",
            Op::Read => "READ",
        }
    }

    /// Whether the target posts receives.
    pub(super) fn received(self) -> bool {
        matches!(self, Op::WriteImm | Op::Send)
    }
}

/// What is measured of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Metric {
    /// Bandwidth and message rate
    Bw,
    /// Latency
    Lat,
}

/// Which end of a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Posts the requests that are measured.
    Initiator,
    /// The other one.
    Target,
}

/// Why a test cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadTest {
    /// A value is out of its range.
    #[error("--{option} {value}: expected {right}")]
    Range {
        /// Which option.
        option: &'static str,
        /// Its value.
        value: u64,
        /// What would be right.
        right: String,
    },
    /// `--sizes` cannot be read.
    #[error(
        "--sizes {0}: expected sizes in bytes such as 2,64,4096, or a range of powers of two such as 2..8388608"
    )]
    Sizes(String),
}

fn range<T>(option: &'static str, value: impl Into<u64>, right: impl Into<String>) -> Result<T, BadTest> {
    Err(BadTest::Range { option, value: value.into(), right: right.into() })
}

/// Reads `2,64,4096` or `2..8388608` (powers of two, both ends included); a list may hold ranges.
pub fn sizes(text: &str) -> Result<Vec<u32>, BadTest> {
    let bad = || BadTest::Sizes(text.to_owned());
    let number = |part: &str| part.trim().parse::<u32>().map_err(|_| bad());
    let mut all = Vec::new();
    for part in text.split(',') {
        match part.split_once("..") {
            None => all.push(number(part)?),
            Some((from, to)) => {
                let (from, to) = (number(from)?, number(to)?);
                if !from.is_power_of_two() || !to.is_power_of_two() || from > to {
                    return Err(bad());
                }
                all.extend((from.ilog2()..=to.ilog2()).map(|bits| 1 << bits));
            }
        }
    }
    match all.iter().find(|size| **size == 0 || **size > MAX_MESSAGE) {
        Some(size) => range("sizes", *size, format!("1 to {MAX_MESSAGE} bytes")),
        None => Ok(all),
    }
}

/// Most bytes of a message (InfiniBand spec 9.7.7.1.4).
const MAX_MESSAGE: u32 = 1 << 31;
/// perftest's `MAX_ITER`.
const MAX_ITERATIONS: u64 = 100_000_000;
/// Memory of one side, all queue pairs together.
const MAX_MEMORY: u64 = 64 << 30;
/// perftest's `MSG_SIZE_CQ_MOD_LIMIT`: longer messages are all signalled.
const LONG_MESSAGE: u32 = 8192;

/// What the user asked for; the rest is default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Operation.
    pub op: Op,
    /// Bandwidth or latency.
    pub metric: Metric,
    /// Queue pairs.
    pub qps: Option<u32>,
    /// Requests under way on a queue pair.
    pub depth: Option<u32>,
    /// Requests posted with one doorbell.
    pub batch: Option<u32>,
    /// Messages up to so many bytes go inline.
    pub inline: Option<u32>,
    /// One request in so many is signalled.
    pub signal_every: Option<u32>,
    /// Requests of each queue pair that are measured.
    pub iterations: Option<u64>,
}

/// One measurement, everything said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Test {
    /// Operation.
    pub op: Op,
    /// Bandwidth or latency.
    pub metric: Metric,
    /// Message size, bytes.
    pub size: u32,
    /// Queue pairs.
    pub qps: u32,
    /// Requests under way on a queue pair, at most.
    pub depth: u32,
    /// Requests posted with one doorbell.
    pub batch: u32,
    /// Messages up to so many bytes go inline.
    pub inline: u32,
    /// One request in so many is signalled.
    pub signal_every: u32,
    /// Requests of each queue pair that are measured.
    pub iterations: u64,
    /// Requests of each queue pair before those.
    pub warm_up: u64,
    /// Receives that the target keeps posted on a queue pair.
    pub receives: u32,
}

impl Options {
    /// Fills in the defaults for a size. `limits` are the device's.
    pub fn test(&self, size: u32, limits: &Limits) -> Result<Test, BadTest> {
        let bw = self.metric == Metric::Bw;
        let batch = self.batch.unwrap_or(1);
        let depth = self.depth.unwrap_or(if bw { 128 } else { 1 });
        let signal_every = self.signal_every.unwrap_or(match () {
            () if !bw || size > LONG_MESSAGE => 1,
            // As perftest: with post lists, the last of each.
            () if batch > 1 => batch.min(depth.saturating_add(1).saturating_sub(batch)).max(1),
            () => 100.min(depth).max(1),
        });
        // perftest's DEF_INLINE_WRITE, for latency only.
        let usual = if bw || self.op == Op::Read { 0 } else { 220.min(limits.max_inline) };
        let iterations = self.iterations.unwrap_or(if bw { 5000 } else { 1000 });
        let test = Test {
            op: self.op,
            metric: self.metric,
            size,
            qps: self.qps.unwrap_or(1),
            depth,
            batch,
            inline: self.inline.unwrap_or(usual),
            signal_every,
            iterations,
            warm_up: (iterations / 10).clamp(1, 100),
            receives: 512.min(limits.max_qp_wr).min(limits.max_cqe / self.qps.unwrap_or(1).max(1)).max(1),
        };
        test.check(limits)?;
        Ok(test)
    }
}

impl Test {
    /// Whether its messages go inline.
    pub fn inlined(&self) -> bool {
        self.size <= self.inline && self.op != Op::Read
    }

    /// Whether a device can do it.
    pub fn check(&self, limits: &Limits) -> Result<(), BadTest> {
        let bw = self.metric == Metric::Bw;
        let up_to = |most: u64, what: &str| format!("1 to {most}{what}");
        let most = limits.max_message.min(MAX_MESSAGE);
        if self.size == 0 || self.size > most {
            return range("sizes", self.size, up_to(most.into(), " bytes, the device's largest message"));
        }
        if self.qps == 0 || self.qps > limits.max_qp.min(16_384) {
            return range("qps", self.qps, up_to(limits.max_qp.min(16_384).into(), ", as the device has"));
        }
        if self.depth == 0 || self.depth > limits.max_qp_wr {
            return range(
                "depth",
                self.depth,
                up_to(limits.max_qp_wr.into(), ", the device's queue depth (max_qp_wr)"),
            );
        }
        if self.receives == 0 || self.receives > limits.max_qp_wr {
            return range(
                "receives",
                self.receives,
                up_to(limits.max_qp_wr.into(), ", the device's queue depth"),
            );
        }
        for (depth, name) in [(self.depth, "depth"), (self.receives, "receives")] {
            if u64::from(depth) * u64::from(self.qps) > u64::from(limits.max_cqe) {
                let right = format!(
                    "at most {} with --qps {}: the device's completion queue holds {}",
                    limits.max_cqe / self.qps,
                    self.qps,
                    limits.max_cqe
                );
                return range(name, depth, right);
            }
        }
        if self.batch == 0 || self.batch > self.depth {
            return range("batch", self.batch, up_to(self.depth.into(), ", at most --depth"));
        }
        let backlog = self.depth - self.batch + 1;
        if self.signal_every == 0 || self.signal_every > backlog {
            let right = up_to(
                backlog.into(),
                ", at most --depth - --batch + 1, or the send queue fills with unsignalled requests for ever",
            );
            return range("signal-every", self.signal_every, right);
        }
        if self.inline > limits.max_inline {
            return range(
                "inline",
                self.inline,
                format!("0 to {}, the device's inline limit", limits.max_inline),
            );
        }
        if self.inline > 0 && self.op == Op::Read {
            return range("inline", self.inline, "0: a READ brings data, it has none to send inline");
        }
        if !(5..=MAX_ITERATIONS).contains(&self.iterations) {
            return range("iterations", self.iterations, format!("5 to {MAX_ITERATIONS}"));
        }
        if self.warm_up > self.iterations {
            return range("warm-up", self.warm_up, format!("at most --iterations {}", self.iterations));
        }
        if !bw && self.qps > 1 {
            return range("qps", self.qps, "1 for --metric lat: one message is under way at a time");
        }
        if !bw && self.batch > 1 {
            return range("batch", self.batch, "1 for --metric lat: one message is under way at a time");
        }
        if !bw && self.signal_every > 1 {
            return range(
                "signal-every",
                self.signal_every,
                "1 for --metric lat: every message is signalled",
            );
        }
        if self.memory() > MAX_MEMORY {
            let right = format!(
                "at most {} with messages of {} bytes: {MAX_MEMORY} bytes of memory a side",
                u64::from(self.qps) * MAX_MEMORY / self.memory(),
                self.size
            );
            return range("qps", self.qps, right);
        }
        Ok(())
    }

    /// Bytes from one message's place to the next one's: a cache line at least, as in perftest; the page is one place where two do not fit.
    pub(super) fn stride(&self) -> u64 {
        u64::from(self.size).next_multiple_of(64)
    }

    /// Bytes that a queue pair's messages lie in: a page, or one message.
    pub(super) fn area(&self) -> u64 {
        u64::from(self.size).next_multiple_of(PAGE)
    }

    /// Places in an area.
    pub(super) fn places(&self) -> u64 {
        (PAGE / self.stride()).max(1)
    }

    /// Bytes of one side: what goes out and what comes in.
    pub(super) fn memory(&self) -> u64 {
        2 * self.area() * u64::from(self.qps)
    }
}

const PAGE: u64 = 4096;

#[cfg(test)]
mod tests {
    use super::*;
    use sim::nic::NicProfile;

    fn options(metric: Metric) -> Options {
        Options {
            op: Op::Write,
            metric,
            qps: None,
            depth: None,
            batch: None,
            inline: None,
            signal_every: None,
            iterations: None,
        }
    }

    #[test]
    fn sizes_are_lists_and_ranges_of_powers_of_two() {
        assert_eq!(sizes("2,64,4096").unwrap(), [2, 64, 4096]);
        assert_eq!(sizes("2..16").unwrap(), [2, 4, 8, 16]);
        assert_eq!(sizes("1..2, 7").unwrap(), [1, 2, 7]);
        assert_eq!(sizes("2..8388608").unwrap().len(), 23);
        for bad in ["", "2..", "3..8", "16..2", "x", "-1", "4294967296", "0", "2147483649", "2,,4"] {
            assert!(
                sizes(bad).unwrap_err().to_string().contains(bad.split(',').next_back().unwrap_or(bad)),
                "{bad}"
            );
        }
    }

    #[test]
    fn defaults_are_those_of_perftest() {
        let limits = NicProfile::ideal().limits();
        let test = options(Metric::Bw).test(64, &limits).unwrap();
        assert_eq!((test.depth, test.signal_every, test.iterations, test.inline), (128, 100, 5000, 0));
        assert_eq!(options(Metric::Bw).test(65_536, &limits).unwrap().signal_every, 1);
        let test = options(Metric::Lat).test(64, &limits).unwrap();
        assert_eq!((test.depth, test.signal_every, test.iterations, test.inline), (1, 1, 1000, 220));
        let test = Options { batch: Some(32), ..options(Metric::Bw) }.test(64, &limits).unwrap();
        assert_eq!(test.signal_every, 32);
    }

    #[test]
    fn what_a_device_cannot_do_is_refused_with_what_it_can() {
        let limits = NicProfile::ideal().limits();
        let refused = |options: Options, size, parts: &[&str]| {
            let error = options.test(size, &limits).unwrap_err().to_string();
            for part in parts {
                assert!(error.contains(part), "{error} lacks {part}");
            }
        };
        let (bw, lat) = (options(Metric::Bw), options(Metric::Lat));
        refused(Options { depth: Some(40_000), ..bw.clone() }, 2, &["--depth 40000", "32768"]);
        refused(Options { depth: Some(0), ..bw.clone() }, 2, &["--depth 0", "1 to"]);
        refused(Options { signal_every: Some(129), ..bw.clone() }, 2, &["--signal-every 129", "1 to 128"]);
        refused(
            Options { signal_every: Some(100), batch: Some(64), ..bw.clone() },
            2,
            &["--signal-every 100", "1 to 65"],
        );
        refused(Options { batch: Some(129), ..bw.clone() }, 2, &["--batch 129", "128"]);
        refused(Options { inline: Some(221), ..bw.clone() }, 2, &["--inline 221", "220"]);
        refused(Options { iterations: Some(1), ..bw.clone() }, 2, &["--iterations 1", "5 to"]);
        refused(Options { qps: Some(0), ..bw.clone() }, 2, &["--qps 0"]);
        refused(Options { qps: Some(16_384), ..bw.clone() }, 1 << 30, &["--qps 16384", "at most 32"]);
        refused(Options { op: Op::Read, inline: Some(8), ..bw }, 2, &["--inline 8", "READ"]);
        for (options, option) in [
            (Options { qps: Some(2), ..lat.clone() }, "--qps 2"),
            (Options { depth: Some(4), batch: Some(2), ..lat.clone() }, "--batch 2"),
            (Options { depth: Some(4), signal_every: Some(2), ..lat.clone() }, "--signal-every 2"),
        ] {
            refused(options, 2, &[option, "lat"]);
        }
        let small = Limits { max_message: 1 << 20, ..limits };
        assert!(lat.test(1 << 21, &small).unwrap_err().to_string().contains("1 to 1048576"));
    }
}
