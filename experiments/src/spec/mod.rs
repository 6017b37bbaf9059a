//! The experiment YAML.

pub(crate) mod field;
pub mod workload;
