//! The simulated fabric against real verbs.

use crate::check::{compare, count, search, search_races, simulated};
use engine::fabric::verbs::VerbsDuo;
use engine::fabric::{DeviceConfig, Duo};
use engine::time::Time;
use kvrail_tests::conformance::coverage::Coverage;
use kvrail_tests::conformance::model::Expected;
use kvrail_tests::conformance::program::Program;
use kvrail_tests::conformance::quirks::{QUIRKS, Used};
use kvrail_tests::conformance::run::{Pace, run};
use kvrail_tests::conformance::script::Script;
use sim::fabric::Mistakes;

/// Devices of the two sides: one that talks to itself, and two on a cable.
const DEVICES: [[&str; 2]; 2] = [["rxe0", "rxe0"], ["rxeA", "rxeB"]];

/// Opens the two sides; without devices says so, or fails where they are required.
fn open(names: [&str; 2]) -> Option<VerbsDuo> {
    let config = |name: &str| DeviceConfig { devices: vec![name.into()], ..DeviceConfig::default() };
    let sides = names.map(config);
    match VerbsDuo::open([&sides[0], &sides[1]]) {
        Ok(duo) => Some(duo),
        Err(error) if std::env::var("KVRAIL_VERBS").is_ok_and(|v| v == "required") => {
            panic!("{names:?}: {error}")
        }
        Err(error) => {
            eprintln!("SKIPPED: {names:?}: {error}");
            None
        }
    }
}

/// Runs a check on both pairs of devices.
pub(crate) fn everywhere(check: fn(&mut dyn Duo)) {
    for names in DEVICES {
        let Some(mut duo) = open(names) else { return };
        check(&mut duo);
    }
}

/// Runs a script on both pairs of devices.
pub(crate) fn row(script: &Script, expected: &[Expected]) {
    for names in DEVICES {
        let Some(mut duo) = open(names) else { return };
        let seen = run(&mut duo, script, expected, Pace::REAL).expect("objects of a program");
        let want = expected.iter().map(|e| &e.seen);
        assert_eq!(compare(want, &seen, expected, true, &mut Used::new()), [""; 0], "{names:?}");
    }
}

#[test]
fn random_programs_do_the_same_on_real_verbs() {
    let go_on = std::env::var("KVRAIL_CONFORMANCE_ALL").is_ok();
    let mut coverage = Coverage::default();
    let mut used = Used::new();
    let mut diverged = 0;
    for (stream, names) in (0..).zip(DEVICES) {
        let Some(mut duo) = open(names) else { return };
        let found = search(
            stream,
            count().div_ceil(2),
            150,
            Program::for_devices,
            &mut coverage,
            |script, expected| {
                let seen = match run(&mut duo, script, expected, Pace::REAL) {
                    Ok(seen) => seen,
                    Err(error) => return vec![format!("objects of a program: {error}")],
                };
                let virtual_ = simulated(script, expected, Pace::VIRTUAL, Mistakes::default());
                let mut what = compare(expected.iter().map(|e| &e.seen), &seen, expected, true, &mut used);
                let both = compare(virtual_.iter(), &seen, expected, true, &mut Used::new());
                what.extend(both.into_iter().map(|what| format!("simulated and real: {what}")));
                if go_on && !what.is_empty() {
                    diverged += 1;
                    println!("DIVERGENCE {}\n{script:?}", what.join("\n"));
                    return Vec::new();
                }
                what
            },
        );
        if let Some(found) = found {
            panic!("{names:?}: {found}");
        }
        println!(
            "{names:?}: {} programs in {:.0} s",
            count().div_ceil(2),
            duo.now().since(Time::ZERO).as_secs()
        );
    }
    println!("{coverage}");
    println!("quirks of rxe, completions that had them");
    for quirk in QUIRKS {
        println!(
            "  {:>6}  {} ({:?})",
            used.get(quirk.case).copied().unwrap_or_default(),
            quirk.case,
            quirk.queue
        );
    }
    assert_eq!(diverged, 0, "programs diverged");
    let missing: Vec<_> =
        coverage.missing().into_iter().filter(|case| *case != "misaligned atomic").collect();
    assert!(missing.is_empty() || count() < 400, "no program had: {missing:?}");
}

#[test]
fn races_end_as_one_of_the_allowed_outcomes_on_real_verbs() {
    for names in DEVICES {
        let Some(mut duo) = open(names) else { return };
        let found = search_races(count().div_ceil(4), 150, |script, expected| {
            run(&mut duo, script, expected, Pace::REAL).map_err(|error| error.to_string())
        });
        if let Some((after, race, wrong)) = found {
            panic!("{names:?}: race {after}, shrunk to {race:#?}: {wrong:#?}");
        }
    }
}

#[test]
fn every_mistake_is_seen_beside_real_verbs() {
    let Some(mut duo) = open(DEVICES[0]) else { return };
    // What the devices do with each program, once: the programs are the same for every mistake.
    let mut real = Vec::new();
    let mut missed = Vec::new();
    println!("mistake, programs until simulated and real verbs differed");
    for (name, mistakes) in Mistakes::each() {
        let mut n = 0;
        let found = search(0, 200, 0, Program::for_devices, &mut Coverage::default(), |script, expected| {
            n += 1;
            if real.len() < n {
                real.push(run(&mut duo, script, expected, Pace::REAL).expect("objects of a program"));
            }
            let virtual_ = simulated(script, expected, Pace::VIRTUAL, mistakes);
            compare(virtual_.iter(), &real[n - 1], expected, true, &mut Used::new())
        });
        match found {
            Some(found) => println!("{name}, {}", found.after),
            None => missed.push(name),
        }
    }
    assert!(missed.is_empty(), "not seen: {missed:?}");
}
