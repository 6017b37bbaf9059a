//! `kvrail flows`.

use std::fs::File;
use std::io::{BufReader, BufWriter, Write};

use super::{Failure, FlowsArgs};
use crate::build::{self, RunError};

#[expect(
    clippy::disallowed_types,
    reason = "the time that the run itself takes is told, and nothing depends on it"
)]
pub(super) fn flows(args: &FlowsArgs) -> Result<(), Failure> {
    let shown = args.file.display();
    let file = File::open(&args.file).map_err(|error| {
        Failure::input(format_args!(
            "{shown}: cannot open the flows: {error}; expected a file with lines `start_s src dst bytes`"
        ))
    })?;
    let started = std::time::Instant::now();
    let durations =
        build::flows(&mut BufReader::new(file), args.hosts, args.gbps, args.latency_us).map_err(|error| {
            let failure = Failure::from(error);
            Failure { message: format!("{shown}: {}", failure.message), ..failure }
        })?;
    let took = started.elapsed().as_secs_f64();
    let count = durations.len();
    eprintln!("{count} flows read and solved in {took:.4} s ({:.0} flows/s)", count as f64 / took.max(1e-9));
    match &args.out {
        Some(path) => File::create(path)
            .and_then(|file| write(BufWriter::new(file), &durations))
            .map_err(|source| Failure::from(RunError::Write { path: path.clone(), source })),
        None => {
            // A reader that has gone is not an error.
            let _ = write(BufWriter::new(std::io::stdout().lock()), &durations);
            Ok(())
        }
    }
}

/// Seconds with nine decimals, by way of whole nanoseconds: printing a float to a given precision costs more than the flow did.
fn write(mut out: impl Write, durations: &[f64]) -> std::io::Result<()> {
    for duration in durations {
        let ns = (duration * 1e9 + 0.5) as u64;
        writeln!(out, "{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000)?;
    }
    out.flush()
}
