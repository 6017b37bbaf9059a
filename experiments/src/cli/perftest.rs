//! `kvrail perftest`.

// The wall clock is for progress and for real devices; simulated figures do not depend on it.
#![allow(clippy::disallowed_types)]

use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{ArgGroup, Args};
use engine::fabric::{Limits, LinkLayer, Port};
use engine::time::Span;
use models::Picos;
use sim::fabric::duo::{DuoSpec, SimDuo};

use super::{Failure, interrupt, print, status};
use crate::nic;
use crate::perftest::csv::{self, About, Row};
use crate::perftest::local::{self, Clock};
use crate::perftest::{self, Metric, Op, Options, Test, TestError, table};

#[derive(Args)]
#[command(
    group(ArgGroup::new("where").args(["nic", "device"]).required(true)),
    after_help = "Figures are defined as in linux-rdma/perftest: latency of write, write_imm and send is half a round trip, that of \
read a whole one; bandwidth runs from the first post to the last completion. MiB/s are 2^20, Gb/s 10^9 bits per second. The two \
longest latencies are left out of everything. Simulated figures (--nic) are exact; the same command gives the same ones.\n\nExamples:\n  \
kvrail perftest --op write --metric bw --sizes 2..8388608 --nic connectx-7-400g\n  \
kvrail perftest --op read --metric lat --sizes 8,4096 --nic my-nic.yaml --csv read.csv\n  \
kvrail perftest --op write --metric bw --sizes 65536 --device mlx5_0,mlx5_1      both ends in this process\n  \
kvrail perftest --serve tcp://0.0.0.0:18515 --device mlx5_0                      on one host, then on the other:\n  \
kvrail perftest --op write --metric lat --sizes 2..4096 --device mlx5_0 --connect tcp://node1:18515"
)]
pub(super) struct PerftestArgs {
    /// Operation
    #[arg(long, value_enum, required_unless_present = "serve")]
    op: Option<Op>,
    /// Bandwidth (and message rate), or latency
    #[arg(long, value_enum, required_unless_present = "serve")]
    metric: Option<Metric>,
    /// Message sizes in bytes: a list, or a range of powers of two, 2..8388608
    #[arg(long, value_name = "LIST", required_unless_present = "serve")]
    sizes: Option<String>,
    /// Queue pairs [default: 1]
    #[arg(long, value_name = "N")]
    qps: Option<u32>,
    /// Requests under way on each queue pair [default: 128; for latency 1]
    #[arg(long, value_name = "N")]
    depth: Option<u32>,
    /// Requests posted with one doorbell [default: 1]
    #[arg(long, value_name = "N")]
    batch: Option<u32>,
    /// Send messages of up to so many bytes inline [default: 0; for latency 220 or what the device can]
    #[arg(long, value_name = "N")]
    inline: Option<u32>,
    /// Signal one request in so many [default: 100, or the batch; 1 above 8192 bytes and for latency]
    #[arg(long, value_name = "N")]
    signal_every: Option<u32>,
    /// Requests of each queue pair that are measured, after a tenth as many (at most 100) to warm up [default: 5000; for latency 1000]
    #[arg(long, value_name = "N")]
    iterations: Option<u64>,
    /// Simulate this NIC on two hosts: a built-in profile or a YAML file
    #[arg(long, value_name = "NAME|FILE")]
    nic: Option<String>,
    /// Simulated: latency of each of the two links, host to switch and switch to host
    #[arg(long, value_name = "TIME", default_value = "130ns", requires = "nic")]
    link: Picos,
    /// Simulated: link layer, ethernet (RoCE v2) or infiniband
    #[arg(long, value_name = "LAYER", default_value = "ethernet", requires = "nic", value_parser = ["ethernet", "infiniband"])]
    link_layer: String,
    /// Use this device; DEV,DEV: both ends in this process on two devices, otherwise both on the one, unless with --serve or --connect
    #[arg(long, value_name = "DEV")]
    device: Option<String>,
    /// Be the target for another host's kvrail perftest --connect, once; op, metric and sizes come from there
    #[arg(long, value_name = "tcp://HOST:PORT", requires = "device",
          conflicts_with_all = ["connect", "op", "metric", "sizes", "qps", "depth", "batch", "inline", "signal_every", "iterations", "csv"])]
    serve: Option<String>,
    /// Measure against the kvrail perftest --serve of another host
    #[arg(long, value_name = "tcp://HOST:PORT", requires = "device")]
    connect: Option<String>,
    /// Write every figure as a row to this file too
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
}

impl From<TestError> for Failure {
    fn from(error: TestError) -> Self {
        let status = match &error {
            TestError::Bad(_) => status::INPUT,
            TestError::Interrupted => status::INTERRUPTED,
            TestError::Fabric { .. }
            | TestError::Completion { .. }
            | TestError::Stuck { .. }
            | TestError::Peer(_) => status::ENVIRONMENT,
        };
        Failure { status, message: error.to_string() }
    }
}

fn environment(message: impl std::fmt::Display) -> Failure {
    Failure { status: status::ENVIRONMENT, message: message.to_string() }
}

pub(super) fn perftest(args: &PerftestArgs) -> Result<(), Failure> {
    if let Some(place) = &args.serve {
        return real::serve(args.device.as_deref().unwrap_or_default(), place);
    }
    let (Some(op), Some(metric), Some(sizes)) = (args.op, args.metric, &args.sizes) else {
        return Err(Failure::input("--op, --metric and --sizes are needed"));
    };
    let options = Options {
        op,
        metric,
        qps: args.qps,
        depth: args.depth,
        batch: args.batch,
        inline: args.inline,
        signal_every: args.signal_every,
        iterations: args.iterations,
    };
    let sizes = perftest::sizes(sizes).map_err(Failure::input)?;
    match (&args.nic, &args.device, &args.connect) {
        (Some(nic), _, _) => simulate(args, nic, &options, &sizes),
        (None, Some(device), None) => real::local(args, device, &options, &sizes),
        (None, Some(device), Some(place)) => real::connect(args, device, place, &options, &sizes),
        (None, None, _) => Err(Failure::input("where? give --nic NAME|FILE or --device DEV")),
    }
}

fn simulate(args: &PerftestArgs, name: &str, options: &Options, sizes: &[u32]) -> Result<(), Failure> {
    let profile = nic::load(name).map_err(|error| match error {
        nic::NicError::Unknown(_) => Failure::input(format_args!("--nic {name}: {error}")),
        error => Failure::input(error),
    })?;
    let spec = DuoSpec {
        link_layer: if args.link_layer == "infiniband" { LinkLayer::InfiniBand } else { LinkLayer::Ethernet },
        link: Span(args.link.0),
        gbps: profile.rate.bits_per_s() as f64 / 1e9,
        mtu: profile.mtu,
        nic: profile,
        ..DuoSpec::default()
    };
    let limits = spec.nic.limits();
    let wire = if spec.link_layer == LinkLayer::InfiniBand { "IB" } else { "RoCEv2" };
    let about = About {
        nic: spec.nic.name.clone(),
        bits_per_s: spec.nic.rate.bits_per_s(),
        notes: format!("simulated; {wire} MTU{}; two links of {}", spec.nic.mtu, args.link),
    };
    let refused = |error: &dyn std::fmt::Display| Failure::input(format_args!("--nic {name}: {error}"));
    // Every size starts from the same state, so a size's figures do not depend on the ones before.
    sweep(args, options, sizes, &limits, about, |test, watch| {
        let mut duo = SimDuo::new(spec.clone()).map_err(|error| refused(&error))?;
        Ok(local::run(&mut duo, test, Clock::Virtual, watch)?)
    })
}

/// What a port's figures say of it.
#[cfg_attr(not(feature = "verbs"), allow(dead_code))]
fn about(port: Option<&Port>, device: &str, ends: &str) -> About {
    let wire = match port.map(|port| port.link_layer) {
        Some(LinkLayer::InfiniBand) => "IB",
        _ => "RoCEv2",
    };
    About {
        nic: device.to_owned(),
        bits_per_s: port.map_or(0, |port| port.bits_per_s),
        notes: format!("{wire} MTU{}; {ends}", port.map_or(0, |port| port.mtu)),
    }
}

/// All sizes, one after the other: a table as it grows, progress, and the CSV.
fn sweep(
    args: &PerftestArgs,
    options: &Options,
    sizes: &[u32],
    limits: &Limits,
    about: About,
    mut run: impl FnMut(&Test, local::Watch<'_>) -> Result<perftest::Figures, Failure>,
) -> Result<(), Failure> {
    // Refused before anything is measured.
    let tests: Vec<Test> = sizes
        .iter()
        .map(|size| options.test(*size, limits))
        .collect::<Result<_, _>>()
        .map_err(|error| Failure::input(format_args!("{}: {error}", about.nic)))?;
    let file = match &args.csv {
        Some(path) => {
            let file = File::create(path);
            Some((
                path,
                file.map_err(|error| environment(format_args!("--csv {}: {error}", path.display())))?,
            ))
        }
        None => None,
    };
    interrupt::catch();
    print(&format!(
        "{} {} on {} ({})\n{}",
        options.op.name(),
        word(options.metric),
        about.nic,
        about.notes,
        table::head(options.metric)
    ));
    let mut meter = Meter::new();
    let mut rows: Vec<Row> = Vec::new();
    for (index, test) in tests.iter().enumerate() {
        let result = run(test, &mut |done, all| {
            meter.show(test, index, tests.len(), done, all);
            !interrupt::requested()
        });
        meter.clear();
        let figures = result?;
        rows.extend(csv::rows(&about, test, &figures));
        print(&table::line(test, &figures));
    }
    match file {
        Some((path, file)) => csv::write(&rows, file)
            .map_err(|error| environment(format_args!("--csv {}: {error}", path.display()))),
        None => Ok(()),
    }
}

fn word(metric: Metric) -> &'static str {
    match metric {
        Metric::Bw => "bandwidth",
        Metric::Lat => "latency",
    }
}

/// One line on a terminal, for tests that take long.
struct Meter {
    terminal: bool,
    start: Instant,
    last: Option<Instant>,
}

impl Meter {
    fn new() -> Self {
        Meter { terminal: std::io::stderr().is_terminal(), start: Instant::now(), last: None }
    }

    fn show(&mut self, test: &Test, index: usize, sizes: usize, done: u64, all: u64) {
        let now = Instant::now();
        let soon = self.last.map_or(now - self.start < Duration::from_secs(1), |last| {
            now - last < Duration::from_millis(250)
        });
        if !self.terminal || soon || all == 0 {
            return;
        }
        self.last = Some(now);
        let percent = done * 100 / all;
        let _ = write!(
            std::io::stderr(),
            "\r\x1b[K{} bytes (size {} of {sizes}): {percent} %",
            test.size,
            index + 1
        );
    }

    fn clear(&mut self) {
        if self.last.take().is_some() {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

/// Without the verbs fabric.
#[cfg(not(feature = "verbs"))]
mod real {
    use super::*;

    fn none(device: &str) -> Failure {
        environment(format_args!(
            "--device {device}: this kvrail was built without verbs; build with `cargo build --release --features verbs`, or simulate with --nic {}",
            nic::names().collect::<Vec<_>>().join("|")
        ))
    }

    pub(super) fn local(
        _args: &PerftestArgs,
        device: &str,
        _options: &Options,
        _sizes: &[u32],
    ) -> Result<(), Failure> {
        Err(none(device))
    }

    pub(super) fn connect(
        _args: &PerftestArgs,
        device: &str,
        _place: &str,
        _options: &Options,
        _sizes: &[u32],
    ) -> Result<(), Failure> {
        Err(none(device))
    }

    pub(super) fn serve(device: &str, _place: &str) -> Result<(), Failure> {
        Err(none(device))
    }
}
