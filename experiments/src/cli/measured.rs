//! `kvrail run --fabric verbs`.

use std::fs;
use std::io::{IsTerminal as _, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use engine::driver;
use engine::time::Span;

use super::progress::Meter;
use super::run::{all_seeds, prepare, reasons, verdict, write};
use super::{Failure, RunArgs, interrupt, print};
use crate::build::{self, Progress, RunError};
use crate::processes::local::Local;
use crate::processes::{Elsewhere, Hub, Measured, available, measure};
use crate::report::{Digest, RunResult, Summary, beside, check};
use crate::spec::Spec;

pub(super) fn run(args: &RunArgs, spec: &Spec, folder: &Path) -> Result<(), Failure> {
    let seeds = spec.seeds();
    if args.external && args.collect.is_none() {
        return Err(Failure::input(
            "--external waits for nodes that others start: say with --collect tcp://HOST:PORT where they find this process",
        ));
    }
    if args.external && seeds.len() > 1 {
        return Err(Failure::input(
            "--external runs one seed, that of the nodes; choose one with --seed, for them and here",
        ));
    }
    if !args.external {
        available().map_err(RunError::Environment)?;
    }
    prepare(folder, spec)?;
    interrupt::catch();

    // Simulated first: afterwards the processes have the host for themselves.
    let twin = simulated(spec);
    let meter = Meter::new(seeds.len(), true);
    let simulated = all_seeds(&twin, args.threads as usize, &meter, build::simulate)?;
    let simulated = Summary::of(&spec.name, &spec.slo, &simulated);

    let meter = Meter::new(seeds.len(), args.quiet);
    let (mut runs, mut notes): (Vec<RunResult>, Vec<String>) = Default::default();
    for (index, seed) in seeds.iter().enumerate() {
        let measured = one(args, &spec.clone().with_seed(*seed), *seed, folder, &meter, index);
        meter.clear();
        let Measured { run, notes: more } = measured?;
        runs.push(run);
        notes.extend(more.into_iter().filter(|note| !notes.contains(note)).collect::<Vec<_>>());
    }
    let mut summary = Summary::of(&spec.name, &spec.slo, &runs);
    // Real time does not come twice.
    summary.digest = Digest(Vec::new());
    write(folder, &summary, &runs)?;
    let path = folder.join("simulated.json");
    let text = simulated.to_json().map_err(Failure::broken)?;
    fs::write(&path, text).map_err(|source| RunError::Write { path, source })?;
    let checked = check(&summary, &spec.expect);
    if !args.quiet {
        print(&beside(&simulated, &twin.cluster.nic, &summary));
        for (why, requests) in reasons(&runs) {
            print(&format!("{:<22}{requests} {why}\n", ""));
        }
        for note in &notes {
            print(&format!("{note}\n"));
        }
        print(&format!("{:<22}{}\n", "written to", folder.display()));
    }
    verdict(&summary, &runs, &checked)
}

/// The same experiment for the simulator.
fn simulated(spec: &Spec) -> Spec {
    let mut twin = spec.clone();
    if let Some(nic) = &spec.verbs.simulate_as {
        twin.cluster.nic.clone_from(nic);
        // `link` is the speed of the NICs of `cluster.nic`.
        twin.cluster.link = None;
    }
    twin
}

/// Measures one seed.
fn one(
    args: &RunArgs,
    spec: &Spec,
    seed: u64,
    folder: &Path,
    meter: &Meter,
    index: usize,
) -> Result<Measured, Failure> {
    let patience = Span::s(args.patience.into());
    let meter = meter.of(index);
    let shown = !args.quiet && !std::io::stderr().is_terminal();
    let progress = Lines {
        inner: &meter,
        shown,
        next: AtomicU64::new(0),
        said: AtomicU64::new(0),
        begun: AtomicBool::new(false),
    };
    let address = args.collect.as_deref().unwrap_or("tcp://127.0.0.1:*");
    if args.external {
        let mut hub = Hub::bind(spec, address).map_err(RunError::from)?;
        if !args.quiet {
            let _ = writeln!(
                std::io::stderr(),
                "waiting for nodes at {}",
                hub.address().map_err(RunError::from)?
            );
        }
        return Ok(measure(spec, seed, &mut hub, &mut Elsewhere, patience, &progress)?);
    }
    // Nodes read the experiment as it was written, so that what this process was told holds for them too.
    let file = folder.join("experiment.yaml");
    let read = Spec::load(&file, &[]).map_err(Failure::input)?.with_seed(seed);
    let mut hub = Hub::bind(&read, address).map_err(RunError::from)?;
    let address = hub.address().map_err(RunError::from)?;
    let mut local = Local::start(&read, seed, &file, &address)?;
    Ok(measure(&read, seed, &mut hub, &mut local, patience, &progress)?)
}

/// Progress where there is no terminal: a line a second, for logs and whoever reads them.
struct Lines<'a> {
    inner: &'a dyn Progress,
    shown: bool,
    /// When the next line may come, ps of this process's clock.
    next: AtomicU64,
    /// Requests that the last line told.
    said: AtomicU64,
    /// Whether the workload has begun.
    begun: AtomicBool,
}

impl Progress for Lines<'_> {
    fn update(&self, ended: u64, fraction: f64, ps: u64) -> bool {
        let now = driver::now();
        if self.shown && ps > 0 && !self.begun.swap(true, Ordering::Relaxed) {
            let _ = writeln!(std::io::stderr(), "the workload has begun");
        }
        let due = now.0 >= self.next.load(Ordering::Relaxed) && ended > self.said.load(Ordering::Relaxed);
        if self.shown && due {
            self.next.store((now + Span::s(1)).0, Ordering::Relaxed);
            self.said.store(ended, Ordering::Relaxed);
            let _ = writeln!(std::io::stderr(), "{ended} requests ended");
        }
        self.inner.update(ended, fraction, ps)
    }
}
