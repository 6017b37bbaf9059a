//! `kvrail registry`.

use std::io::Write;

use models::Picos;

use super::{Failure, RegistryArgs, interrupt, node};
use crate::build::nodes::Place;
use crate::processes::{Service, serve};
use crate::spec::Spec;

/// The shortest lease that leaves time for heartbeats: as `transfer.lease`.
const LEAST_LEASE: Picos = Picos(10_000_000_000);

pub(super) fn registry(args: &RegistryArgs) -> Result<(), Failure> {
    let mut spec = match &args.file {
        Some(file) => Spec::load_real(file, &args.sets).map_err(Failure::input)?,
        None if args.sets.is_empty() => Spec::default(),
        None => return Err(Failure::input("--set changes an experiment: give FILE.yaml too")),
    };
    if let Some(lease) = args.lease {
        if lease < LEAST_LEASE {
            return Err(Failure::input(format!(
                "--lease {lease} is too short; expected at least {LEAST_LEASE}"
            )));
        }
        spec.transfer.lease = lease;
    }
    interrupt::catch();
    node::tie(args.tied);
    let counted = serve(&Service {
        spec: &spec,
        seed: 0,
        place: Place::Registry,
        registry: &args.bind,
        collect: args.collect.as_deref(),
        queue: args.queue,
        // The first line of standard output: where it is, for whoever bound port `*`.
        started: &|address| super::print(&format!("{address}\n")),
        stop: &interrupt::requested,
    })?;
    if !args.quiet {
        let _ = writeln!(std::io::stderr(), "registry: {counted}");
    }
    Ok(())
}
