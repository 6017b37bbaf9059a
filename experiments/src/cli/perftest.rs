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
          conflicts_with_all = ["nic", "connect", "op", "metric", "sizes", "qps", "depth", "batch", "inline", "signal_every", "iterations", "csv"])]
    serve: Option<String>,
    /// Measure against the kvrail perftest --serve of another host
    #[arg(long, value_name = "tcp://HOST:PORT", requires = "device", conflicts_with = "nic")]
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

/// On devices of this host.
#[cfg(feature = "verbs")]
mod real {
    use super::*;
    use crate::perftest::remote::{self, Initiator};
    use engine::fabric::verbs::{VerbsDuo, VerbsFabric};
    use engine::fabric::{DeviceConfig, Fabric};
    use engine::time::Time;
    use std::net::{TcpListener, TcpStream};

    /// How long the other side may take to start.
    const PATIENCE: Duration = Duration::from_secs(10);

    fn config(device: &str) -> Result<DeviceConfig, Failure> {
        if device.trim().is_empty() {
            return Err(Failure::input("--device: expected the name of a device, as mlx5_0 or mlx5_0/1"));
        }
        Ok(DeviceConfig { devices: vec![device.trim().to_owned()], ..DeviceConfig::default() })
    }

    fn open(device: &str) -> Result<VerbsFabric, Failure> {
        if device.contains(',') {
            return Err(Failure::input(format_args!(
                "--device {device}: one device; the other end is on the other host"
            )));
        }
        VerbsFabric::open(&config(device)?)
            .map_err(|error| environment(format_args!("--device {device}: {error}")))
    }

    fn clock() -> impl Fn() -> Time {
        let start = Instant::now();
        move || Time(u64::try_from(start.elapsed().as_nanos() * 1000).unwrap_or(u64::MAX))
    }

    fn place(option: &str, text: &str) -> Result<String, Failure> {
        let place = text.strip_prefix("tcp://").filter(|rest| {
            rest.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
        });
        place.map(str::to_owned).ok_or_else(|| {
            Failure::input(format_args!("{option} {text}: expected tcp://HOST:PORT, as tcp://node1:18515"))
        })
    }

    pub(super) fn local(
        args: &PerftestArgs,
        device: &str,
        options: &Options,
        sizes: &[u32],
    ) -> Result<(), Failure> {
        let names: Vec<&str> = device.split(',').collect();
        let (first, second) = match names[..] {
            [one] => (config(one)?, config(one)?),
            [one, two] => (config(one)?, config(two)?),
            _ => return Err(Failure::input(format_args!("--device {device}: expected DEV or DEV,DEV"))),
        };
        let mut duo = VerbsDuo::open([&first, &second])
            .map_err(|error| environment(format_args!("--device {device}: {error}")))?;
        let limits = both(*duo.side(0).limits(), duo.side(1).limits());
        let ends = if names.len() == 1 { "both ends on one device" } else { "both ends in one process" };
        let about = about(duo.side(0).ports().first(), device, ends);
        sweep(args, options, sizes, &limits, about, |test, watch| {
            Ok(local::run(&mut duo, test, Clock::Real, watch)?)
        })
    }

    /// What two devices can both do.
    fn both(a: Limits, b: &Limits) -> Limits {
        Limits {
            max_qp_wr: a.max_qp_wr.min(b.max_qp_wr),
            max_sge: a.max_sge.min(b.max_sge),
            max_inline: a.max_inline.min(b.max_inline),
            max_rd_atomic: a.max_rd_atomic.min(b.max_rd_atomic),
            max_cqe: a.max_cqe.min(b.max_cqe),
            max_srq_wr: a.max_srq_wr.min(b.max_srq_wr),
            max_qp: a.max_qp.min(b.max_qp),
            max_message: a.max_message.min(b.max_message),
        }
    }

    pub(super) fn connect(
        args: &PerftestArgs,
        device: &str,
        server: &str,
        options: &Options,
        sizes: &[u32],
    ) -> Result<(), Failure> {
        let at = place("--connect", server)?;
        let mut fabric = open(device)?;
        let limits = *fabric.limits();
        let about = about(fabric.ports().first(), device, &format!("to {server}"));
        let start = Instant::now();
        let stream = loop {
            match TcpStream::connect(&at) {
                Ok(stream) => break stream,
                Err(error)
                    if start.elapsed() > PATIENCE
                        || error.kind() != std::io::ErrorKind::ConnectionRefused =>
                {
                    return Err(environment(format_args!(
                        "--connect {server}: {error}; is kvrail perftest --serve running there?"
                    )));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        };
        let mut peer = Initiator::new(stream)?;
        let now = clock();
        sweep(args, options, sizes, &limits, about, |test, watch| {
            Ok(peer.run(&mut fabric, test, &now, watch)?)
        })
    }

    pub(super) fn serve(device: &str, server: &str) -> Result<(), Failure> {
        let at = place("--serve", server)?;
        let mut fabric = open(device)?;
        let failed = |error| environment(format_args!("--serve {server}: {error}"));
        let listener = TcpListener::bind(&at).map_err(failed)?;
        let _ =
            writeln!(std::io::stderr(), "kvrail: {device} waits on {server} for kvrail perftest --connect");
        let (stream, from) = listener.accept().map_err(failed)?;
        remote::serve(&mut fabric, stream, &clock(), &mut |test| {
            let _ = writeln!(
                std::io::stderr(),
                "kvrail: {from}: {} {}, {} bytes",
                test.op.name(),
                word(test.metric),
                test.size
            );
        })?;
        Ok(())
    }
}
