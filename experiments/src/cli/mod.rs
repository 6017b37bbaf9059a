//! The `kvrail` command: arguments, exit status, what goes to which stream.
//!
//! Results go to standard output, progress and errors to standard error. Exit status: 0 done, 1 an invariant or
//! an expectation does not hold, 2 bad input, 3 the environment lacks something, 130 interrupted.

mod check;
mod doctor;
mod exhaustive;
mod explore;
mod flows;
mod interrupt;
mod measured;
mod models;
mod node;
mod perftest;
mod progress;
mod registry;
mod run;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use ::models::Picos;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::build::RunError;

/// Exit statuses.
pub mod status {
    /// Done.
    pub const DONE: u8 = 0;
    /// An invariant or an expectation does not hold.
    pub const BROKEN: u8 = 1;
    /// Bad input.
    pub const INPUT: u8 = 2;
    /// The environment lacks something: cannot write, cannot bind, no device.
    pub const ENVIRONMENT: u8 = 3;
    /// Interrupted.
    pub const INTERRUPTED: u8 = 130;
}

#[derive(Parser)]
#[command(
    name = "kvrail",
    version,
    about = "Moves KV caches between prefill and decode, in simulation first",
    after_help = "Exit status: 0 done, 1 an invariant or an expectation does not hold, 2 bad input,\n\
                  3 the environment lacks something (cannot write, no device), 130 interrupted.\n\n\
                  Examples:\n  \
                  kvrail run experiments/quickstart.yaml\n  \
                  kvrail run experiments/mooncake.yaml --set workload.path=conversation_trace.jsonl --out out/a\n  \
                  kvrail check experiments/quickstart.yaml --set cluster.decode.tp=8\n  \
                  kvrail run experiments/quickstart.yaml --fabric verbs\n  \
                  kvrail doctor\n  \
                  kvrail models"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run an experiment and write its report
    Run(RunArgs),
    /// Run one node of an experiment in this process, on real devices
    Node(NodeArgs),
    /// Run the registry, which the nodes of a real cluster meet at
    Registry(RegistryArgs),
    /// Check an experiment and its workload without running it
    Check(CheckArgs),
    /// Look for broken laws in random clusters, loads and faults
    Explore(explore::ExploreArgs),
    /// Run bare flows on a star of hosts
    Flows(FlowsArgs),
    /// Say whether experiments could run on RDMA devices here, and what is missing
    Doctor(DoctorArgs),
    /// List the model presets with their bytes of KV per token
    Models(ModelsArgs),
    /// Measure bandwidth or latency of single operations, on a simulated NIC or a real device
    Perftest(perftest::PerftestArgs),
}

#[derive(Args)]
#[command(
    after_help = "Writes to the output folder: experiment.yaml (the experiment with every default and override, \
ready to run again), summary.json, requests.csv.\n\nExamples:\n  \
kvrail run experiments/quickstart.yaml\n  \
kvrail run experiments/quickstart.yaml --set policy.order=shortest-remaining --seed 7 --out out/srf\n  \
kvrail run experiments/mooncake.yaml --set workload.path=conversation_trace.jsonl --set 'seeds=[1,2,3,4]' --threads 2\n  \
kvrail run experiments/mooncake.yaml --set 'workload.arrival={gamma: {rate: 8, cv: 2}}' --set workload.limit=500\n  \
kvrail run experiments/quickstart.yaml --fabric verbs --set 'verbs.prefill.devices=[mlx5_0]' --set 'verbs.decode.devices=[mlx5_1]'\n  \
kvrail run experiments/quickstart.yaml --fabric verbs --external --collect 'tcp://*:5556'"
)]
struct RunArgs {
    /// The experiment
    #[arg(value_name = "FILE.yaml")]
    file: PathBuf,
    /// Replace one value: a path of keys (a list entry by its index, a key with dots in double quotes) and a YAML
    /// value. May be given several times
    #[arg(long = "set", value_name = "A.B.C=VALUE")]
    sets: Vec<String>,
    /// Run with this seed instead of those of the file
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Run so many seeds at the same time; results do not depend on it
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096))]
    threads: u32,
    /// Where to write [default: out/NAME of the experiment]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Look at every node after every event, and name each law that is broken, as `invariants: always` does
    #[arg(long)]
    check: bool,
    /// Neither table nor progress: only errors
    #[arg(long)]
    quiet: bool,
    /// What the nodes run on: `sim` is the simulator, `verbs` real RDMA devices, with registry and nodes as processes of this host
    #[arg(long, value_enum, default_value_t = FabricArg::Sim)]
    fabric: FabricArg,
    /// verbs: start no process; nodes come by themselves (`kvrail node --collect`)
    #[arg(long)]
    external: bool,
    /// verbs: where nodes find this process [default: a free port of 127.0.0.1; needed with --external]
    #[arg(long, value_name = "tcp://HOST:PORT")]
    collect: Option<String>,
    /// verbs: how long nodes may take to come, in seconds
    #[arg(long, value_name = "S", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    patience: u32,
}

/// What nodes run on.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FabricArg {
    Sim,
    Verbs,
}

#[derive(Args)]
#[command(
    after_help = "The name may be left out where srun or mpirun give a rank: rank 0 is the router, then come the prefill and the \
decode instances. See docs/cluster.md.\n\nExamples:\n  \
kvrail node experiment.yaml --name prefill-0 --registry tcp://head:5555\n  \
srun -n 5 kvrail node experiment.yaml --registry tcp://head:5555 --collect tcp://head:5556"
)]
struct NodeArgs {
    /// The experiment
    #[arg(value_name = "FILE.yaml")]
    file: PathBuf,
    /// Which of its nodes: router, prefill-0, decode-0 and so on [default: by the rank that a launcher gave]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Where the registry is
    #[arg(long, value_name = "tcp://HOST:PORT")]
    registry: String,
    /// Where the measuring process is (`kvrail run --external`); without one the router begins when all instances have joined
    #[arg(long, value_name = "tcp://HOST:PORT")]
    collect: Option<String>,
    /// Replace one value, as in `kvrail run`
    #[arg(long = "set", value_name = "A.B.C=VALUE")]
    sets: Vec<String>,
    /// Run with this seed instead of that of the file
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Frames that may wait to be sent, or to be taken
    #[arg(long, value_name = "N", default_value_t = 8192, value_parser = clap::value_parser!(u16).range(1..))]
    queue: u16,
    /// Only errors
    #[arg(long)]
    quiet: bool,
    /// End when standard input does
    #[arg(long)]
    tied: bool,
}

#[derive(Args)]
#[command(after_help = "Prints the address that it is bound to.\n\nExamples:\n  \
kvrail registry --bind tcp://0.0.0.0:5555\n  kvrail registry experiment.yaml --bind 'tcp://*:5555' --lease 5s")]
struct RegistryArgs {
    /// Where to listen; port `*` is any free one
    #[arg(long, value_name = "tcp://HOST:PORT")]
    bind: String,
    /// The experiment that lease and timers are taken from [default: theirs]
    #[arg(value_name = "FILE.yaml")]
    file: Option<PathBuf>,
    /// Replace one value, as in `kvrail run`
    #[arg(long = "set", value_name = "A.B.C=VALUE")]
    sets: Vec<String>,
    /// Silence after which a node is gone, such as 10s; the same as the nodes' `transfer.lease`
    #[arg(long, value_name = "TIME")]
    lease: Option<Picos>,
    /// Where the measuring process is, if it is to count messages
    #[arg(long, value_name = "tcp://HOST:PORT")]
    collect: Option<String>,
    /// Frames that may wait to be sent to, or taken from, one node
    #[arg(long, value_name = "N", default_value_t = 8192, value_parser = clap::value_parser!(u16).range(1..))]
    queue: u16,
    /// Only errors, and the address
    #[arg(long)]
    quiet: bool,
    /// End when standard input does
    #[arg(long)]
    tied: bool,
}

#[derive(Args)]
#[command(after_help = "Examples:\n  kvrail check experiments/quickstart.yaml\n  \
kvrail check experiments/mooncake.yaml --set workload.path=trace.jsonl --resolved")]
struct CheckArgs {
    /// The experiment
    #[arg(value_name = "FILE.yaml")]
    file: PathBuf,
    /// Replace one value, as in `kvrail run`
    #[arg(long = "set", value_name = "A.B.C=VALUE")]
    sets: Vec<String>,
    /// Print the experiment with every default
    #[arg(long)]
    resolved: bool,
}

#[derive(Args)]
#[command(
    after_help = "Each line of the file is `start_s src dst bytes`; each host has one up and one down link, which \
flows share max-min fairly. A flow's duration runs from its start to the arrival of its last byte.\n\nExample:\n  \
kvrail flows a.flows --hosts 64 --gbps 400 --latency-us 1 --out a.fct"
)]
struct FlowsArgs {
    /// The flows
    #[arg(value_name = "FILE.flows")]
    file: PathBuf,
    /// Hosts of the star
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    hosts: u32,
    /// Rate of each link, 10^9 bits per second
    #[arg(long, value_name = "G", allow_negative_numbers = true)]
    gbps: f64,
    /// One-way latency of each link, microseconds
    #[arg(long, value_name = "L", allow_negative_numbers = true)]
    latency_us: f64,
    /// Where to write the durations, one a line in seconds with 9 decimals [default: standard output]
    #[arg(long, value_name = "FCT")]
    out: Option<PathBuf>,
}

#[derive(Args)]
#[command(
    after_help = "Exit status: 0 usable, 3 not (what is missing is printed).\n\nExamples:\n  kvrail doctor\n  \
kvrail doctor experiments/quickstart.yaml --json"
)]
struct DoctorArgs {
    /// An experiment whose settings count [default: those of an empty one]
    #[arg(value_name = "FILE.yaml")]
    file: Option<PathBuf>,
    /// Replace one value, as in `kvrail run`
    #[arg(long = "set", value_name = "A.B.C=VALUE")]
    sets: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Look at the sys, proc, dev and usr in this folder: a copy of another host's
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
}

#[derive(Args)]
#[command(after_help = "Example:\n  kvrail models --dtype fp8 --tp 8")]
struct ModelsArgs {
    /// Element type of the KV cache: bf16, fp16, fp8 or fp8-packed
    #[arg(long, default_value = "bf16")]
    dtype: String,
    /// Tensor parallel sizes of the columns with bytes per rank
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [1, 2, 4, 8, 16])]
    tp: Vec<u32>,
}

/// Why a command did not end well: what to print, and the exit status.
#[derive(Debug)]
struct Failure {
    status: u8,
    message: String,
}

impl Failure {
    fn input(message: impl std::fmt::Display) -> Self {
        Failure { status: status::INPUT, message: message.to_string() }
    }

    fn broken(message: impl std::fmt::Display) -> Self {
        Failure { status: status::BROKEN, message: message.to_string() }
    }
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        let status = match &error {
            RunError::Workload(_) | RunError::Input(_) => status::INPUT,
            RunError::Environment(_) | RunError::Write { .. } => status::ENVIRONMENT,
            RunError::Interrupted => status::INTERRUPTED,
        };
        Failure { status, message: error.to_string() }
    }
}

/// Reads the arguments and does what they say.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // clap's own status is 2 for wrong arguments, 0 for --help and --version.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(status::INPUT));
        }
    };
    let done = match cli.command {
        Command::Run(args) => run::run(&args),
        Command::Node(args) => node::node(&args),
        Command::Registry(args) => registry::registry(&args),
        Command::Check(args) => check::check(&args),
        Command::Explore(args) => explore::explore(&args),
        Command::Flows(args) => flows::flows(&args),
        Command::Doctor(args) => doctor::doctor(&args),
        Command::Models(args) => models::models(&args),
        Command::Perftest(args) => perftest::perftest(&args),
    };
    match done {
        Ok(()) => ExitCode::from(status::DONE),
        Err(failure) => {
            let _ = writeln!(std::io::stderr(), "kvrail: {}", failure.message.trim_end());
            ExitCode::from(failure.status)
        }
    }
}

/// Prints to standard output. A reader that has gone (`kvrail models | head`) is not an error.
fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn arguments_are_consistent() {
        Cli::command().debug_assert();
    }
}
