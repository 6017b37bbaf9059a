//! Cases that `kvrail explore` found, each an experiment below `tests/regressions`. One that names a mistake (`transfer.without`) must show
//! a broken law with it and be clean without it; the others showed a fault of kvrail that was mended.

use experiments::build::{Silent, simulate};
use experiments::spec::Spec;
use std::path::{Path, PathBuf};

fn cases() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions");
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut all: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    all.retain(|path| path.extension().is_some_and(|end| end == "yaml"));
    all.sort();
    assert!(!all.is_empty(), "no cases in {}", folder.display());
    all
}

/// Laws that are broken, panics included: they are what some cases are about.
fn broken(spec: &Spec) -> Vec<String> {
    let trial = experiments::explore::quietly(|| experiments::explore::attempt(spec));
    trial.broken.iter().map(ToString::to_string).collect()
}

#[test]
fn found_cases_stay_mended() {
    for path in cases() {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let spec = Spec::load(&path, &[]).unwrap_or_else(|error| panic!("{error}"));
        let mut mended = spec.clone();
        mended.transfer.without.clear();
        let wrong = broken(&mended);
        assert!(wrong.is_empty(), "{name}: {wrong:#?}");
        if !spec.transfer.without.is_empty() {
            assert!(
                !broken(&spec).is_empty(),
                "{name}: nothing is broken without {:?}",
                spec.transfer.without
            );
        }
    }
}

/// What the command does with such a file is what exploration did.
#[test]
fn a_found_case_replays() {
    let mistaken = |path: &PathBuf| {
        let spec = Spec::load(path, &[]).ok()?;
        let panics = path.to_string_lossy().contains("no-panic");
        (!spec.transfer.without.is_empty() && !panics).then_some(spec)
    };
    let spec = cases().iter().find_map(mistaken).expect("a case with a mistake");
    let result = simulate(&spec, spec.seeds()[0], &Silent).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(result.violations.first(), broken(&spec).first());
}
