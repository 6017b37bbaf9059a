//! What can be wrong with an experiment: where, which key, which value, what would be right.

use std::fmt;
use std::io;
use std::path::PathBuf;

use super::set::SetError;

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the file, on a line (from 1).
    Line(PathBuf, usize),
    /// In the file, or nowhere: a default.
    File(PathBuf),
    /// In an override.
    Set(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Line(path, line) => write!(f, "{}:{line}", path.display()),
            Place::File(path) => write!(f, "{}", path.display()),
            Place::Set(text) => write!(f, "--set {text}"),
        }
    }
}

/// Why an experiment cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// The file cannot be read.
    #[error("{}: cannot read the experiment: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not YAML.
    #[error("{place}: not YAML: {message}")]
    Syntax {
        /// Where.
        place: Place,
        /// What the YAML reader said.
        message: String,
    },
    /// An override cannot be made.
    #[error(transparent)]
    Set(#[from] SetError),
    /// A key or its value is wrong.
    #[error("{place}: {}{problem}", if key.is_empty() { String::new() } else { format!("{key}: ") })]
    Key {
        /// Where it was written.
        place: Place,
        /// The path of the key, empty for the document.
        key: String,
        /// What is wrong, with the value and what would be right.
        problem: String,
    },
}

/// Makes serde's words for unknown keys and variants helpful: what was probably meant, and all that would
/// be right.
pub(crate) fn rephrase(message: &str) -> String {
    for (start, what, all) in [
        ("unknown field `", "unknown key", "the keys here are"),
        ("unknown variant `", "unknown value", "expected one of"),
    ] {
        let Some(rest) = message.strip_prefix(start) else { continue };
        let Some((name, rest)) = rest.split_once('`') else { continue };
        let names: Vec<&str> = rest.split('`').skip(1).step_by(2).collect();
        if names.is_empty() {
            return format!("{what} `{name}`; nothing can stand here");
        }
        let meant = nearest(name, names.iter().copied());
        let meant = meant.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
        return format!("{what} `{name}`{meant} ({all} {})", names.join(", "));
    }
    // The names of Rust's types say nothing to whoever writes YAML.
    let Some((found, expected)) = message.rsplit_once(", expected ") else { return message.to_owned() };
    let found = found.replace("unit variant", "a name alone");
    let expected = match expected {
        "u8" | "u16" | "u32" | "u64" => "a whole number from 0 on",
        "i64" => "a whole number",
        "f64" => "a number",
        "a boolean" => "true or false",
        "a sequence" => "a list",
        other if other.starts_with("struct ") => "a map of keys",
        other => other,
    };
    format!("{found}, expected {expected}")
}

/// The name that was probably meant.
pub(crate) fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let short: String = name.chars().take(64).collect::<String>().to_lowercase().replace('_', "-");
    names
        .map(|candidate| (distance(&short, &candidate.to_lowercase().replace('_', "-")), candidate))
        .min()
        .filter(|(distance, candidate)| *distance <= candidate.len().div_ceil(4))
        .map(|(_, candidate)| candidate)
}

/// Edits from `a` to `b` (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
