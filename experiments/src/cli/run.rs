//! `kvrail run`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::progress::Meter;
use super::{FabricArg, Failure, RunArgs, interrupt, measured, print, status};
use crate::build::{self, Progress, RunError};
use crate::report::{Checked, Outcome, RunResult, Summary, check, table, write_requests};
use crate::spec::{Invariants, Spec};

pub(super) fn run(args: &RunArgs) -> Result<(), Failure> {
    let real = args.fabric == FabricArg::Verbs;
    if real && args.check {
        return Err(Failure::input(
            "--check looks at a simulated run after every event; drop it, or run with --fabric sim",
        ));
    }
    let load = if real { Spec::load_real } else { Spec::load };
    let mut spec = load(&args.file, &args.sets).map_err(Failure::input)?;
    if let Some(seed) = args.seed {
        spec = spec.with_seed(seed);
    }
    if args.check && spec.invariants == Invariants::None {
        spec.invariants = Invariants::Always;
    }
    let folder = args.out.clone().unwrap_or_else(|| Path::new("out").join(file_name(&spec.name)));
    if real {
        return measured::run(args, &spec, &folder);
    }
    for (given, option) in [(args.external, "--external"), (args.collect.is_some(), "--collect")] {
        if given {
            return Err(Failure::input(format!("{option} is for real devices: give --fabric verbs too")));
        }
    }
    // Written before the run, so that hours of work do not end at a folder that cannot be written.
    prepare(&folder, &spec)?;
    interrupt::catch();
    let meter = Meter::new(spec.seeds().len(), args.quiet);
    let runs = all_seeds(&spec, args.threads as usize, &meter, build::simulate);
    meter.clear();
    let runs = runs?;
    let summary = Summary::of(&spec.name, &spec.slo, &runs);
    write(&folder, &summary, &runs)?;
    let checked = check(&summary, &spec.expect);
    if !args.quiet {
        print(&table(&summary));
        for (why, requests) in reasons(&runs) {
            print(&format!("{:<22}{requests} {why}\n", ""));
        }
        print(&format!("{:<22}{}\n", "written to", folder.display()));
    }
    verdict(&summary, &runs, &checked)
}

/// A name that is one safe component of a path.
fn file_name(name: &str) -> String {
    let clean: String = name
        .chars()
        .map(|c| if c.is_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '-' })
        .collect();
    let clean = clean.trim_matches('.');
    if clean.is_empty() { "experiment".to_owned() } else { clean.to_owned() }
}

pub(super) fn prepare(folder: &Path, spec: &Spec) -> Result<(), Failure> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| Failure::from(RunError::Write { path, source })
    };
    fs::create_dir_all(folder).map_err(failed(folder))?;
    for stale in ["summary.json", "requests.csv", "simulated.json"] {
        // What a run that did not end would leave beside another experiment.
        let path = folder.join(stale);
        if path.exists() {
            fs::remove_file(&path).map_err(failed(&path))?;
        }
    }
    let path = folder.join("experiment.yaml");
    let text = spec.resolved().map_err(Failure::broken)?;
    fs::write(&path, text).map_err(failed(&path))
}

pub(super) fn write(folder: &Path, summary: &Summary, runs: &[RunResult]) -> Result<(), Failure> {
    let failed = |path: &PathBuf, source| Failure::from(RunError::Write { path: path.clone(), source });
    let path = folder.join("requests.csv");
    let file = File::create(&path).map_err(|source| failed(&path, source))?;
    write_requests(BufWriter::new(file), runs)
        .map_err(|error| failed(&path, std::io::Error::other(error)))?;
    let path = folder.join("summary.json");
    let text = summary.to_json().map_err(Failure::broken)?;
    fs::write(&path, text).map_err(|source| failed(&path, source))
}

/// Runs every seed, several at a time. The results are in the order of the seeds, whatever the threads.
pub(super) fn all_seeds<F>(
    spec: &Spec,
    threads: usize,
    meter: &Meter,
    simulate: F,
) -> Result<Vec<RunResult>, Failure>
where
    F: Fn(&Spec, u64, &dyn Progress) -> Result<RunResult, RunError> + Sync,
{
    let seeds = spec.seeds();
    let next = AtomicUsize::new(0);
    let results: Vec<Mutex<Option<Result<RunResult, RunError>>>> =
        seeds.iter().map(|_| Mutex::new(None)).collect();
    let work = || {
        while !meter.cancelled() && !interrupt::requested() {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(&seed) = seeds.get(index) else { break };
            let result = simulate(spec, seed, &meter.of(index));
            if result.is_err() {
                meter.cancel();
            }
            if let Ok(mut slot) = results[index].lock() {
                *slot = Some(result);
            }
        }
    };
    let panicked = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.clamp(1, seeds.len())).map(|_| scope.spawn(work)).collect();
        workers.into_iter().filter_map(|worker| worker.join().err()).count()
    });
    if panicked > 0 {
        return Err(Failure::broken(
            "the run stopped at a broken invariant (see above); this is a fault in kvrail",
        ));
    }
    let mut runs = Vec::new();
    let mut interrupted = interrupt::requested();
    let mut first_error = None;
    for slot in results {
        match slot.into_inner().ok().flatten() {
            Some(Ok(run)) => runs.push(run),
            Some(Err(RunError::Interrupted)) | None => interrupted = true,
            // Runs that were told to stop because of this one are not the cause.
            Some(Err(error)) => first_error = first_error.or(Some(error)),
        }
    }
    match first_error {
        Some(error) => Err(error.into()),
        None if interrupted => {
            Err(Failure { status: status::INTERRUPTED, message: "interrupted".to_owned() })
        }
        None => Ok(runs),
    }
}

/// Why requests failed or were rejected, the most frequent first.
pub(super) fn reasons(runs: &[RunResult]) -> Vec<(String, u64)> {
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for request in runs.iter().flat_map(|run| &run.requests) {
        if request.outcome != Outcome::Succeeded {
            let why = format!("{}: {}", request.outcome.name(), request.outcome.reason());
            *counts.entry(why).or_default() += 1;
        }
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(_, requests)| std::cmp::Reverse(*requests));
    counts
}

/// Whether everything held that must, and what did not.
pub(super) fn verdict(summary: &Summary, runs: &[RunResult], checked: &[Checked]) -> Result<(), Failure> {
    let mut out = String::new();
    for run in runs {
        for violation in &run.violations {
            let _ = writeln!(out, "  seed {}: {violation}", run.seed);
        }
    }
    if !out.is_empty() {
        out.insert_str(0, "invariants do not hold:\n");
    }
    let leaked: Vec<String> = summary
        .leaks
        .named()
        .iter()
        .filter(|(_, n)| *n > 0)
        .map(|(name, n)| format!("{n} {}", name.replace('_', " ")))
        .collect();
    if !leaked.is_empty() {
        let _ = writeln!(out, "leaks at the end of the run: {}; expected none", leaked.join(", "));
    }
    if checked.iter().any(|c| !c.holds()) {
        let _ = writeln!(out, "expectations do not hold:");
        let _ = writeln!(out, "  {:<28}{:>18}{:>18}", "value of summary.json", "expected", "found");
        for one in checked {
            let found = one.found.map_or_else(|| "nothing".to_owned(), |value| value.to_string());
            let mark = if one.holds() { "" } else { "  <-" };
            let _ = writeln!(out, "  {:<28}{:>18}{found:>18}{mark}", one.path, one.bound.to_string());
        }
    }
    if out.is_empty() {
        return Ok(());
    }
    for (why, requests) in reasons(runs) {
        let _ = writeln!(out, "{requests} {why}");
    }
    Err(Failure::broken(out))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Leaks;
    use crate::spec::{Bound, SloSpec};

    fn spec(seeds: &[u64]) -> Spec {
        Spec { seeds: Some(seeds.to_vec()), ..Spec::default() }
    }

    fn fake(_: &Spec, seed: u64, progress: &dyn Progress) -> Result<RunResult, RunError> {
        if !progress.update(0, 0.0, 0) {
            return Err(RunError::Interrupted);
        }
        match seed {
            13 => Err(RunError::Input("unlucky".to_owned())),
            seed => Ok(RunResult { seed, digest: seed * 3, ..RunResult::default() }),
        }
    }

    #[test]
    fn results_do_not_depend_on_threads() {
        let spec = spec(&[5, 4, 3, 2, 1]);
        let run = |threads| all_seeds(&spec, threads, &Meter::new(5, true), fake).expect("runs");
        assert_eq!(run(1), run(4));
        assert_eq!(run(9).iter().map(|r| r.seed).collect::<Vec<_>>(), [5, 4, 3, 2, 1]);
    }

    #[test]
    fn one_bad_seed_is_the_error() {
        for threads in [1, 3] {
            let spec = spec(&[1, 13, 2, 3]);
            let failure = all_seeds(&spec, threads, &Meter::new(4, true), fake).expect_err("fails");
            assert_eq!((failure.status, failure.message.as_str()), (status::INPUT, "unlucky"));
        }
    }

    #[test]
    fn what_does_not_hold_is_said() {
        let mut run = RunResult { leaks: Leaks { rooms: 2, ..Leaks::default() }, ..RunResult::default() };
        run.violations.push("page 3 is wrong".to_owned());
        let summary = Summary::of("x", &SloSpec::default(), std::slice::from_ref(&run));
        let expect = [("events".to_owned(), Bound::Between { min: Some(5.0), max: None })].into();
        let failure = verdict(&summary, &[run], &check(&summary, &expect)).expect_err("fails");
        assert_eq!(failure.status, status::BROKEN);
        for part in ["page 3 is wrong", "2 rooms", ">= 5", "<-"] {
            assert!(failure.message.contains(part), "{}", failure.message);
        }
    }

    #[test]
    fn folder_names_are_safe() {
        assert_eq!(file_name("a b/../c"), "a-b-..-c");
        assert_eq!(file_name(".."), "experiment");
    }
}
