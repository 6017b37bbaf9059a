//! `kvrail explore --exhaustive`.

// The wall clock is for the person who waits; what is found does not depend on it.
#![allow(clippy::disallowed_types)]

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::time::{Duration, Instant};

use clap::Args;
use engine::transfer::Rules;

use super::{Failure, interrupt, print, status};
use crate::exhaustive::{Limits, Outcome, SCOPES, Scope, walk};
use crate::report::table::count;
use crate::spec::nearest;

#[derive(Args)]
pub(super) struct ExhaustiveArgs {
    /// Instead of seeds: every interleaving of two rooms on two queue pairs, over the real nodes
    #[arg(long, conflicts_with_all = ["seeds", "from", "mistake", "mistakes", "show", "time"])]
    pub(super) exhaustive: bool,
    /// With --exhaustive: states to visit at most in each scope
    #[arg(long, value_name = "N", default_value_t = 200_000, requires = "exhaustive", value_parser = clap::value_parser!(u32).range(1..))]
    states: u32,
    /// With --exhaustive: only this scope, such as `deadlines`; may be given several times [default: all]
    #[arg(long, value_name = "NAME", requires = "exhaustive")]
    scope: Vec<String>,
    /// With --exhaustive: switch a rule of the protocol off; may be given several times
    #[arg(long, value_name = "RULE", requires = "exhaustive")]
    without: Vec<String>,
}

fn unknown(option: &str, name: &str, all: &[&'static str]) -> Failure {
    let meant = nearest(name, all.iter().copied());
    let meant = meant.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
    Failure::input(format!(
        "{option} {name}: there is none of that name{meant} (there are {})",
        all.join(", ")
    ))
}

/// Walks the scopes, and prints a line for each; a violation with its shortest path.
pub(super) fn exhaustive(args: &ExhaustiveArgs, threads: usize, quiet: bool) -> Result<(), Failure> {
    let mut rules = Rules::default();
    for name in &args.without {
        if !rules.switch_off(name) {
            return Err(unknown("--without", name, Rules::NAMES));
        }
    }
    let names: Vec<&'static str> = SCOPES.iter().map(|scope| scope.name).collect();
    let mut scopes = Vec::new();
    for name in &args.scope {
        scopes.push(Scope::named(name).ok_or_else(|| unknown("--scope", name, &names))?);
    }
    if scopes.is_empty() {
        scopes.extend(SCOPES);
    }
    interrupt::catch();
    if !quiet {
        print(&head());
    }
    let mut wrong = String::new();
    for scope in scopes {
        let (outcome, seconds) = one(args, scope, rules, threads, quiet)?;
        if !quiet {
            print(&line(scope, &outcome, seconds));
        }
        if let Some(found) = &outcome.found {
            let _ = writeln!(
                wrong,
                "{}: {}: {}; {} steps lead there:",
                scope.name,
                found.law,
                found.what,
                found.path.len()
            );
            for (number, step) in (1..).zip(&found.trace) {
                let _ = writeln!(wrong, "  {number:>3} {step}");
            }
        }
        if interrupt::requested() {
            break;
        }
    }
    if !wrong.is_empty() {
        return Err(Failure::broken(wrong));
    }
    if interrupt::requested() {
        let message = "interrupted; nothing found".to_owned();
        return Err(Failure { status: status::INTERRUPTED, message });
    }
    Ok(())
}

fn one(
    args: &ExhaustiveArgs,
    scope: &Scope,
    rules: Rules,
    threads: usize,
    quiet: bool,
) -> Result<(Outcome, f64), Failure> {
    let shown = !quiet && std::io::stderr().is_terminal();
    let start = Instant::now();
    let mut last = start;
    let mut progress = |states: usize, depth: usize| {
        if shown && last.elapsed() > Duration::from_millis(250) {
            last = Instant::now();
            let rate = states as f64 / start.elapsed().as_secs_f64().max(1e-9);
            let (name, states) = (scope.name, count(states as u64));
            let _ = write!(
                std::io::stderr(),
                "\r\x1b[K{name}: {states} states of at most {}, {depth} steps deep, {rate:.0} states/s",
                count(args.states.into())
            );
        }
        !interrupt::requested()
    };
    let limits = Limits { states: args.states as usize, threads };
    let outcome = walk(scope, rules, limits, &mut progress).map_err(Failure::broken)?;
    if shown {
        let _ = write!(std::io::stderr(), "\r\x1b[K");
    }
    Ok((outcome, start.elapsed().as_secs_f64()))
}

fn head() -> String {
    format!(
        "{:<12}{:>10}{:>11}{:>7}{:>7}{:>10}{:>10}  outcome\n",
        "scope", "states", "steps", "depth", "ends", "s", "states/s"
    )
}

fn line(scope: &Scope, outcome: &Outcome, seconds: f64) -> String {
    let said = match &outcome.found {
        Some(found) => format!("{} in {} steps", found.law, found.path.len()),
        None if outcome.complete => "complete, nothing breaks".to_owned(),
        None => "not complete, nothing breaks so far".to_owned(),
    };
    format!(
        "{:<12}{:>10}{:>11}{:>7}{:>7}{:>10.1}{:>10.0}  {said}\n",
        scope.name,
        count(outcome.states as u64),
        count(outcome.edges as u64),
        outcome.depth,
        count(outcome.ends as u64),
        seconds,
        outcome.states as f64 / seconds.max(1e-9)
    )
}
