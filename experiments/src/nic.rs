//! NIC profiles: the cost model's parameters, by name or from a file.

use crate::spec::{is_path, yaml};
use sim::nic::NicProfile;
use std::path::PathBuf;
use std::sync::OnceLock;

/// Profiles of this repository.
const BUILT_IN: &[(&str, &str)] = &[
    ("connectx-6-200g", include_str!("../nic/connectx-6-200g.yaml")),
    ("connectx-7-400g", include_str!("../nic/connectx-7-400g.yaml")),
    ("ideal", include_str!("../nic/ideal.yaml")),
    ("soft-roce", include_str!("../nic/soft-roce.yaml")),
];

/// Built-in profiles that were asked for: many short runs ask again and again.
static LOADED: [OnceLock<NicProfile>; BUILT_IN.len()] = [const { OnceLock::new() }; BUILT_IN.len()];

/// Why there is no such profile.
#[derive(Debug, thiserror::Error)]
pub enum NicError {
    /// Not a name of this repository, nor a path.
    #[error("there is no NIC profile `{0}`; use {known} or the path of a YAML file", known = names().collect::<Vec<_>>().join(", "))]
    Unknown(String),
    /// The file cannot be read.
    #[error("{}: {source}; a NIC profile must be a readable YAML file", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is not a profile.
    #[error("{name}{line}: {message}")]
    Parse {
        /// Name or path.
        name: String,
        /// `:LINE`, if known.
        line: String,
        /// What is wrong.
        message: String,
    },
}

/// Names of the built-in profiles.
pub fn names() -> impl Iterator<Item = &'static str> {
    BUILT_IN.iter().map(|(name, _)| *name)
}

/// The profile of that name, or in the file at that path.
pub fn load(name: &str) -> Result<NicProfile, NicError> {
    let built_in = BUILT_IN.iter().position(|(known, _)| known.eq_ignore_ascii_case(name));
    if let Some(loaded) = built_in.and_then(|at| LOADED[at].get()) {
        return Ok(loaded.clone());
    }
    let text = match built_in {
        Some(at) => BUILT_IN[at].1.to_owned(),
        None if is_path(name) => {
            let path = PathBuf::from(name);
            std::fs::read_to_string(&path).map_err(|source| NicError::Read { path, source })?
        }
        None => return Err(NicError::Unknown(name.to_owned())),
    };
    let fail = |line: Option<usize>, message: String| NicError::Parse {
        name: name.to_owned(),
        line: line.map_or_else(String::new, |line| format!(":{line}")),
        message,
    };
    let profile: NicProfile = yaml::parse_as(&text).map_err(|error| fail(error.line, error.message))?;
    profile.check().map_err(|error| fail(None, error.to_string()))?;
    Ok(match built_in {
        Some(at) => LOADED[at].get_or_init(|| profile).clone(),
        None => profile,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_profiles_are_right_and_others_are_refused_with_the_names() {
        for name in names() {
            assert_eq!(load(name).unwrap().name, name);
        }
        let error = load("connectx-9").unwrap_err().to_string();
        assert!(error.contains("connectx-9") && error.contains("connectx-7-400g"), "{error}");
        assert!(load("no/such.yaml").unwrap_err().to_string().contains("no/such.yaml"));
    }
}
