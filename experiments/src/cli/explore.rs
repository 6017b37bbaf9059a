//! `kvrail explore`.

// The wall clock is for the person who waits, and for --time; what a seed finds does not depend on it.
#![allow(clippy::disallowed_types)]

use std::fmt::Write as _;
use std::fs;
use std::io::{IsTerminal, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use engine::transfer::Rules;
use models::Picos;

use super::exhaustive::{self, ExhaustiveArgs};
use super::{Failure, interrupt, print, status};
use crate::build::RunError;
use crate::explore::{self, Counts, Options, Report, Size, coverage, shrink};
use crate::report::table::count;
use crate::spec::nearest;

#[derive(Args)]
#[command(
    after_help = "Each seed is a random cluster, layout, load, set of policies and schedule of faults. What a seed does depends on nothing \
but the seed.\nA case that breaks a law is shrunk and written as an experiment that `kvrail run` replays. Exit status 1 if a law was broken.\n\n\
Examples:\n  kvrail explore --seeds 20000\n  kvrail explore --time 10min --keep-going --csv coverage.csv\n  \
kvrail explore --from 4711 --seeds 1 --show\n  kvrail explore --mistake fence_before_free --seeds 2000\n  kvrail explore --mistakes --seeds 2000\n  \
kvrail explore --exhaustive --states 1000000\n  kvrail explore --exhaustive --scope reorder --without fence_epoch"
)]
pub(super) struct ExploreArgs {
    /// How many seeds
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// The first one
    #[arg(long, value_name = "S", default_value_t = 1)]
    from: u64,
    /// Cases at a time; what is found does not depend on it [default: the number of processors]
    #[arg(long, value_name = "T", value_parser = clap::value_parser!(u32).range(1..=4096))]
    threads: Option<u32>,
    /// Where cases that break a law are written
    #[arg(long, value_name = "DIR", default_value = "out/explore")]
    out: PathBuf,
    /// Go on after the first case that breaks a law
    #[arg(long)]
    keep_going: bool,
    /// Begin no new case after this time, such as 60s
    #[arg(long, value_name = "TIME")]
    time: Option<Picos>,
    /// Leave cases as they were found
    #[arg(long)]
    no_shrink: bool,
    /// Write what all cases have been through, a row per cell
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Every transition, and every fault kind and state that can meet, must have come so often; else exit status 1
    #[arg(long, value_name = "N")]
    least: Option<u64>,
    /// Switch a rule of the protocol off, to see whether it is missed
    #[arg(long, value_name = "RULE")]
    mistake: Vec<String>,
    /// Switch each rule off in turn, and say how many seeds it took until it was missed
    #[arg(long, conflicts_with_all = ["mistake", "csv", "least", "keep_going", "show"])]
    mistakes: bool,
    /// Print the case of the first seed, and run nothing
    #[arg(long)]
    show: bool,
    /// Only errors, and what was found
    #[arg(long)]
    quiet: bool,
    #[command(flatten)]
    exhaustive: ExhaustiveArgs,
}

pub(super) fn explore(args: &ExploreArgs) -> Result<(), Failure> {
    if args.exhaustive.exhaustive {
        return exhaustive::exhaustive(&args.exhaustive, threads(args), args.quiet);
    }
    for name in &args.mistake {
        if Rules::by_name(name).is_none() {
            let meant = nearest(name, Rules::NAMES.iter().copied());
            let meant = meant.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
            let all = Rules::NAMES.join(", ");
            return Err(Failure::input(format!(
                "--mistake {name}: there is no such rule{meant} (there are {all})"
            )));
        }
    }
    if args.show {
        let case = explore::case(args.from, &args.mistake);
        print(&explore::yaml(&case, &[]).map_err(Failure::broken)?);
        return Ok(());
    }
    // Before hours of work end at a folder that cannot be written.
    let (out, written) = (&args.out, |path: &Path| {
        let path = path.to_owned();
        move |source| Failure::from(RunError::Write { path, source })
    });
    fs::create_dir_all(out).map_err(written(out))?;
    interrupt::catch();
    let clock =
        Clock { start: Instant::now(), end: args.time.map(|time| Duration::from_nanos(time.0 / 1000)) };
    if args.mistakes {
        return mistakes(args, &clock);
    }
    let report = run(args, &args.mistake, &clock);
    let seconds = clock.start.elapsed().as_secs_f64();
    if !args.quiet {
        print(&summary(&report, seconds));
        if report.failures.is_empty() || args.keep_going {
            print(&coverage::table(&report.coverage));
        }
    }
    if let Some(path) = &args.csv {
        fs::write(path, coverage::csv(&report.coverage)).map_err(written(path))?;
    }
    let mut wrong = String::new();
    for failure in &report.failures {
        let (text, _) = found(args, &args.mistake, failure)?;
        let _ = writeln!(wrong, "{text}");
    }
    for surprise in coverage::surprises(&report.coverage) {
        let _ = writeln!(wrong, "{surprise}");
    }
    if let Some(least) = args.least {
        for (cell, n) in coverage::cells(&report.coverage).into_iter().filter(|(_, n)| *n < least) {
            let _ = writeln!(wrong, "{cell}: {n} times, expected at least {least}");
        }
    }
    if !wrong.is_empty() {
        return Err(Failure::broken(wrong));
    }
    if interrupt::requested() {
        return Err(Failure {
            status: status::INTERRUPTED,
            message: "interrupted; nothing found".to_owned(),
        });
    }
    Ok(())
}

/// Since when it goes on, and how long it may.
struct Clock {
    start: Instant,
    end: Option<Duration>,
}

impl Clock {
    fn is_over(&self) -> bool {
        interrupt::requested() || self.end.is_some_and(|end| self.start.elapsed() > end)
    }
}

fn threads(args: &ExploreArgs) -> usize {
    let processors = || std::thread::available_parallelism().map_or(1, usize::from);
    args.threads.map_or_else(processors, |threads| threads as usize)
}

/// Explores, with a line that says how far it is.
fn run(args: &ExploreArgs, without: &[String], clock: &Clock) -> Report {
    let options = Options {
        from: args.from,
        seeds: args.seeds,
        threads: threads(args),
        keep_going: args.keep_going,
        without: without.to_vec(),
    };
    let counts = Counts::default();
    let done = AtomicBool::new(false);
    let shown = !args.quiet && std::io::stderr().is_terminal();
    std::thread::scope(|scope| {
        let watch = || {
            let start = Instant::now();
            let mut line = Instant::now();
            while !done.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(20));
                if clock.is_over() {
                    counts.stop.store(true, Ordering::Relaxed);
                }
                if shown && line.elapsed() > Duration::from_millis(250) {
                    line = Instant::now();
                    let _ = write!(
                        std::io::stderr(),
                        "\r\x1b[K{}",
                        progress(&counts, args.seeds, start.elapsed())
                    );
                }
            }
            if shown {
                let _ = write!(std::io::stderr(), "\r\x1b[K");
            }
        };
        scope.spawn(watch);
        let report = explore::explore(&options, &counts);
        done.store(true, Ordering::Relaxed);
        report
    })
}

fn progress(counts: &Counts, seeds: u64, elapsed: Duration) -> String {
    let seconds = elapsed.as_secs_f64().max(1e-9);
    let (tried, events) = (counts.seeds.load(Ordering::Relaxed), counts.events.load(Ordering::Relaxed));
    let rate = tried as f64 / seconds;
    let left = if tried > 0 { (seeds.saturating_sub(tried)) as f64 / rate } else { 0.0 };
    format!(
        "{} of {} seeds, {:.0} seeds/s, {} events/s, {} failed, {seconds:.0} s, {left:.0} s left",
        count(tried),
        count(seeds),
        rate,
        count((events as f64 / seconds) as u64),
        counts.failures.load(Ordering::Relaxed)
    )
}

fn summary(report: &Report, seconds: f64) -> String {
    let (events, seeds) = (report.total_events(), report.seeds);
    format!(
        "explored              {} seeds{}, {} broke a law\nevents                {} in all, {} in the median case\n\
         time                  {seconds:.3} s, {:.0} seeds/s, {} events/s\ndigest                {:016x}\n",
        count(seeds),
        if report.cut_short { " (cut short)" } else { "" },
        report.failures.len(),
        count(events),
        count(report.median_events()),
        seeds as f64 / seconds.max(1e-9),
        count((events as f64 / seconds.max(1e-9)) as u64),
        report.digest
    )
}

/// Shrinks and writes a case. What to say of it, and how small it became.
fn found(
    args: &ExploreArgs,
    without: &[String],
    failure: &explore::Failure,
) -> Result<(String, Size), Failure> {
    let seed = failure.seed;
    let case = explore::case(seed, without);
    let Some(first) = failure.broken.first() else { return Ok((String::new(), Size::of(&case))) };
    let (law, mut what, mut spec, mut runs) = (first.law, first.what.clone(), case.clone(), 0);
    if !args.no_shrink {
        let shrunk = shrink::shrink(&case, law, shrink::Bound::default(), &|| !interrupt::requested());
        if shrunk.events > 0 {
            (what, spec, runs) = (shrunk.what, shrunk.spec, shrunk.runs);
        }
    }
    let mistake = without.iter().map(|name| format!("-without-{name}")).collect::<String>();
    spec.name = format!("seed-{seed}-{law}{mistake}");
    let path = args.out.join(format!("{}.yaml", spec.name));
    let remarks = [format!("kvrail explore, seed {seed}: {law}"), what.clone()];
    let text = explore::yaml(&spec, &remarks).map_err(Failure::broken)?;
    fs::write(&path, text).map_err(|source| Failure::from(RunError::Write { path: path.clone(), source }))?;
    let (before, after) = (Size::of(&case), Size::of(&spec));
    let shrunk = if runs > 0 {
        format!("\n  shrunk from {before}\n  to {after} in {runs} runs")
    } else {
        String::new()
    };
    let text = format!("seed {seed} breaks {law}: {what}{shrunk}\n  replay: kvrail run {}", path.display());
    Ok((text, after))
}

/// Each rule off in turn: seeds until it was missed, and how small the case became.
fn mistakes(args: &ExploreArgs, clock: &Clock) -> Result<(), Failure> {
    let mut missed = 0;
    print(&format!("{:<24}{:>8}  {:<16}after shrinking\n", "rule switched off", "seeds", "law"));
    for name in Rules::NAMES {
        if clock.is_over() {
            break;
        }
        let without = [(*name).to_owned()];
        let report = run(args, &without, clock);
        let line = match report.failures.first() {
            Some(failure) => {
                missed += 1;
                let seeds = failure.seed - args.from + 1;
                let law = failure.broken.first().map_or("", |broken| broken.law.name());
                let (_, size) = found(args, &without, failure)?;
                format!("{name:<24}{seeds:>8}  {law:<16}{size}\n")
            }
            None => format!("{name:<24}{:>8}  {:<16}\n", format!("> {}", report.seeds), "none"),
        };
        print(&line);
    }
    print(&format!("{missed} of {} rules were missed within {} seeds\n", Rules::NAMES.len(), args.seeds));
    Ok(())
}
