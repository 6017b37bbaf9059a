//! `kvrail flows`.

use std::fs::File;
use std::io::{BufReader, BufWriter, Write};

use super::{Failure, FlowsArgs};
use crate::build::{self, RunError};

pub(super) fn flows(args: &FlowsArgs) -> Result<(), Failure> {
    let shown = args.file.display();
    let file = File::open(&args.file).map_err(|error| {
        Failure::input(format_args!(
            "{shown}: cannot open the flows: {error}; expected a file with lines `start_s src dst bytes`"
        ))
    })?;
    let durations =
        build::flows(&mut BufReader::new(file), args.hosts, args.gbps, args.latency_us).map_err(|error| {
            let failure = Failure::from(error);
            Failure { message: format!("{shown}: {}", failure.message), ..failure }
        })?;
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

fn write(mut out: impl Write, durations: &[f64]) -> std::io::Result<()> {
    for duration in durations {
        writeln!(out, "{duration:.9}")?;
    }
    out.flush()
}
