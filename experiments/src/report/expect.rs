//! Expectations on values of `summary.json`.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use serde_json::Value;

use super::result::RunResult;
use super::summary::Summary;
use crate::spec::{Bound, SloSpec, nearest};

/// One expectation and what was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Checked {
    /// The full path in `summary.json`.
    pub path: String,
    /// What was expected.
    pub bound: Bound,
    /// What was found; none where there is no such number (SLO shares without objectives).
    pub found: Option<f64>,
}

impl Checked {
    /// Whether it holds.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.found.is_some_and(|value| self.bound.holds(value))
    }
}

/// Every path of a number in `summary.json`, such as `ttft_ms.p99`.
#[must_use]
pub fn value_paths() -> &'static [String] {
    static PATHS: OnceLock<Vec<String>> = OnceLock::new();
    PATHS.get_or_init(|| {
        // From a summary that has every part, so that the list cannot miss a field.
        let slo = SloSpec { ttft: Some(models::Picos(1)), tpot: Some(models::Picos(1)) };
        let summary = Summary::of("", &slo, &[RunResult::default()]);
        let mut paths = Vec::new();
        if let Ok(tree) = serde_json::to_value(&summary) {
            collect(&tree, "", &mut paths);
        }
        paths
    })
}

fn collect(tree: &Value, at: &str, paths: &mut Vec<String>) {
    match tree {
        Value::Number(_) => paths.push(at.to_owned()),
        Value::Object(map) => {
            for (key, value) in map {
                let dot = if at.is_empty() { "" } else { "." };
                collect(value, &format!("{at}{dot}{key}"), paths);
            }
        }
        _ => {}
    }
}

/// The full path that `name` stands for: itself, or the only path which ends in it (`failed` is
/// `requests.failed`). The error says which names there are.
pub fn value_path(name: &str) -> Result<&'static str, String> {
    let paths = value_paths();
    if let Some(path) = paths.iter().find(|path| *path == name) {
        return Ok(path);
    }
    let tail = format!(".{name}");
    let ends: Vec<&str> = paths.iter().filter(|path| path.ends_with(&tail)).map(String::as_str).collect();
    match ends.as_slice() {
        [path] => Ok(path),
        [] => {
            let meant = nearest(name, paths.iter().map(String::as_str));
            let meant = meant.map(|m| format!("; did you mean `{m}`?")).unwrap_or_default();
            Err(format!("no number of summary.json is called that{meant} (there are {})", paths.join(", ")))
        }
        several => Err(format!("may be any of {}; write one of them", several.join(", "))),
    }
}

/// Checks each expectation against the summary.
#[must_use]
pub fn check(summary: &Summary, expect: &BTreeMap<String, Bound>) -> Vec<Checked> {
    let tree = serde_json::to_value(summary).unwrap_or(Value::Null);
    expect
        .iter()
        .map(|(name, bound)| {
            let path = value_path(name).unwrap_or(name);
            let found = path.split('.').try_fold(&tree, |at, key| at.get(key)).and_then(Value::as_f64);
            Checked { path: path.to_owned(), bound: *bound, found }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert_eq!(value_path("failed"), Ok("requests.failed"));
        assert_eq!(value_path("ttft_ms.p99"), Ok("ttft_ms.p99"));
        assert!(value_path("p99").unwrap_err().contains("ttft_ms.p99, tpot_ms.p99"));
        let error = value_path("ttft.p99").unwrap_err();
        assert!(error.contains("did you mean `ttft_ms.p99`?"), "{error}");
        assert!(value_paths().iter().any(|path| path == "leaks.queue_pairs"));
    }

    #[test]
    fn found_values_are_compared() {
        let summary = Summary::of("", &SloSpec::default(), &[RunResult::default()]);
        let expect = BTreeMap::from([
            ("failed".to_owned(), Bound::Equals(0.0)),
            ("leaks.pages".to_owned(), Bound::Between { min: Some(1.0), max: None }),
            ("slo.both".to_owned(), Bound::Between { min: Some(0.9), max: None }),
        ]);
        let checked = check(&summary, &expect);
        assert_eq!(checked.iter().map(Checked::holds).collect::<Vec<_>>(), [true, false, false]);
        assert_eq!((checked[1].found, checked[2].found), (Some(0.0), None));
    }
}
