//! The experiment YAML.
//!
//! [`Spec::load`] reads a file with overrides and checks it; every error says where the value was written
//! (file and line, or `--set`), its key, the value and what would be right. Every key has a default, and
//! [`Spec::resolved`] writes the whole experiment back with all of them, which reads back to the same.

mod checks;
mod cluster;
mod coalescing;
mod engine;
mod error;
pub mod faults;
pub(crate) mod field;
mod locate;
mod named;
mod posting;
mod routing;
mod set;
mod validate;
mod verbs;
pub mod workload;
pub mod yaml;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use models::{DType, Model};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_path_to_error::Segment as SerdeSegment;

use crate::compute;
pub use checks::{Bound, SloSpec};
pub use cluster::{Capacity, ClusterSpec, MAX_PAGES, MemorySpec, SideSpec, TopologySpec};
pub use coalescing::{AutoSpec, Coalescing, StagingSpec};
pub use engine::{
    BatchSpec, ComputeSpec, ControlSpec, Direction, Granularity, PolicySpec, PortReach, TransferSpec,
    WindowSpec,
};
pub use error::{Place, SpecError};
pub(crate) use error::{nearest, rephrase};
pub use faults::FaultSpec;
pub use locate::Segment;
pub use posting::{Deadline, Failover, LeastInflight, Order, Priorities, Rails, Replica, Shares};
pub use routing::{
    Admission, LimitsSpec, NetworkAwareSpec, Pages, PrefixAwareSpec, RetrySpec, Routing, TenantSpec,
};
pub use set::{Override, SetError};
pub use verbs::{Network, ReachSpec, VerbsMemory, VerbsSideSpec, VerbsSpec};
pub use workload::{RequestSpec, WorkloadSpec};

/// An experiment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Spec {
    /// What it is called in reports.
    pub name: String,
    /// The seed of every random draw. Either this or `seeds`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// One run per seed; the report pools them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seeds: Option<Vec<u64>>,
    /// A preset (`kvrail models` lists them), or the path of a HuggingFace `config.json`.
    pub model: String,
    /// Element type of the KV cache.
    pub dtype: DType,
    /// Hosts, instances, NICs and the network.
    pub cluster: ClusterSpec,
    /// The control channel.
    pub control: ControlSpec,
    /// Queue pairs and protocol timers.
    pub transfer: TransferSpec,
    /// Who, what and when.
    pub policy: PolicySpec,
    /// How long the GPUs take.
    pub compute: ComputeSpec,
    /// Batching.
    pub batch: BatchSpec,
    /// Requests.
    pub workload: WorkloadSpec,
    /// Service level objectives.
    pub slo: SloSpec,
    /// What goes wrong, and when.
    pub faults: Vec<FaultSpec>,
    /// What values of `summary.json` must be, by their path in it, such as `requests.failed: 0` or
    /// `ttft_ms.p99: {max: 500}`. The run exits with status 1 when one does not hold.
    pub expect: BTreeMap<String, Bound>,
    /// Real devices.
    pub verbs: VerbsSpec,
    /// Compare the KV that arrived with what was sent, request by request.
    pub verify: bool,
    /// Simulated runs: look at every node after every event, and exit with status 1 naming each law that is broken. Slower.
    pub invariants: Invariants,
}

/// Which laws a simulated run is held to, event by event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Invariants {
    /// Those that show at its end.
    #[default]
    None,
    /// All that hold in every run.
    Always,
    /// Also those of a run without faults, in which no time runs out.
    FaultFree,
}

impl Default for Spec {
    fn default() -> Self {
        Spec {
            name: "experiment".to_owned(),
            seed: None,
            seeds: None,
            model: "llama-3.1-8b".to_owned(),
            dtype: DType::Bf16,
            cluster: ClusterSpec::default(),
            control: ControlSpec::default(),
            transfer: TransferSpec::default(),
            policy: PolicySpec::default(),
            compute: ComputeSpec::default(),
            batch: BatchSpec::default(),
            workload: WorkloadSpec::default(),
            slo: SloSpec::default(),
            faults: Vec::new(),
            expect: BTreeMap::new(),
            verbs: VerbsSpec::default(),
            verify: true,
            invariants: Invariants::None,
        }
    }
}

impl Spec {
    /// Reads and checks an experiment file, with overrides in order. A relative path in it is looked for
    /// beside the file first, then in the working directory.
    pub fn load(path: &Path, sets: &[String]) -> Result<Self, SpecError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| SpecError::Read { path: path.to_owned(), source })?;
        let mut spec = Self::parse_unchecked(&text, path, sets)?;
        spec.1.find_files(path.parent().unwrap_or(Path::new("")));
        spec.1.validate().map_err(|(key, problem)| spec.0.error(&key, problem))?;
        Ok(spec.1)
    }

    /// The same for a run on real devices: what only the simulator can do is refused.
    pub fn load_real(path: &Path, sets: &[String]) -> Result<Self, SpecError> {
        let spec = Self::load(path, sets)?;
        let Some((key, problem)) = spec.simulated_only() else { return Ok(spec) };
        let text = std::fs::read_to_string(path)
            .map_err(|source| SpecError::Read { path: path.to_owned(), source })?;
        let (source, _) = Self::parse_unchecked(&text, path, sets)?;
        Err(source.error(&key, problem))
    }

    /// Reads and checks an experiment; `name` stands for the file in errors.
    pub fn parse(text: &str, name: &Path, sets: &[String]) -> Result<Self, SpecError> {
        let (source, spec) = Self::parse_unchecked(text, name, sets)?;
        spec.validate().map_err(|(key, problem)| source.error(&key, problem))?;
        Ok(spec)
    }

    fn parse_unchecked(text: &str, name: &Path, sets: &[String]) -> Result<(Source, Self), SpecError> {
        let mut source = Source { path: name.to_owned(), text: text.to_owned(), sets: Vec::new() };
        let mut tree = yaml::parse(text).map_err(|error| SpecError::Syntax {
            place: match error.line {
                Some(line) => Place::Line(name.to_owned(), line),
                None => Place::File(name.to_owned()),
            },
            message: error.message,
        })?;
        if tree.is_null() {
            tree = Value::Object(serde_json::Map::new());
        }
        for set in sets {
            let set = Override::parse(set)?;
            let path = set.apply(&mut tree)?;
            // `seed` and `seeds` exclude each other: an override of one replaces the other.
            if let [Segment::Key(key)] = path.as_slice()
                && let Value::Object(map) = &mut tree
            {
                match key.as_str() {
                    "seed" => drop(map.shift_remove("seeds")),
                    "seeds" => drop(map.shift_remove("seed")),
                    _ => {}
                }
            }
            source.sets.push((path, set.text));
        }
        let mut spec: Spec = serde_path_to_error::deserialize(&tree).map_err(|error| {
            let mut path: Vec<Segment> = error.path().iter().filter_map(segment).collect();
            let message = error.into_inner().to_string();
            // serde stops at the map for a variant that it does not know: go on to the key, which has a line.
            if let Some(name) = message.strip_prefix("unknown variant `").and_then(|m| m.split('`').next())
                && lookup(&tree, &path).is_some_and(|value| value.get(name).is_some())
            {
                path.push(Segment::Key(name.to_owned()));
            }
            source.error(&path, error::rephrase(&message))
        })?;
        // Settled here, so that the resolved experiment names the profile.
        if spec.compute.profile == engine::AUTO
            && let Some(profile) = compute::for_model(&spec.model)
        {
            spec.compute.profile = profile.to_owned();
        }
        Ok((source, spec))
    }

    /// What is wrong with it, if anything is.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        self.validate().err().map(|(key, problem)| format!("{}: {problem}", locate::show(&key)))
    }

    /// The seeds to run, at least one.
    #[must_use]
    pub fn seeds(&self) -> Vec<u64> {
        match (&self.seeds, self.seed) {
            (Some(seeds), _) if !seeds.is_empty() => seeds.clone(),
            (_, seed) => vec![seed.unwrap_or(1)],
        }
    }

    /// The same experiment with one seed.
    #[must_use]
    pub fn with_seed(self, seed: u64) -> Self {
        Spec { seed: Some(seed), seeds: None, ..self }
    }

    /// The model: a preset or a `config.json`. The error says which models there are.
    pub fn model(&self) -> Result<Model, String> {
        validate::model(&self.model)
    }

    /// The whole experiment with every default, as YAML.
    pub fn resolved(&self) -> Result<String, yaml::YamlError> {
        yaml::print(self)
    }

    /// Makes relative paths of the file relative to the working directory, where they lie beside the file.
    fn find_files(&mut self, folder: &Path) {
        let beside = |path: &Path| {
            let joined = folder.join(path);
            (path.is_relative() && joined.exists()).then_some(joined)
        };
        if let Some(found) = self.workload.path.as_deref().and_then(beside) {
            self.workload.path = Some(found);
        }
        let names = [&mut self.model, &mut self.cluster.nic, &mut self.compute.profile];
        for name in names.into_iter().chain(&mut self.verbs.simulate_as) {
            if is_path(name)
                && let Some(found) = beside(Path::new(name.as_str()))
            {
                *name = found.to_string_lossy().into_owned();
            }
        }
    }
}

/// Whether a name of a model or profile is the path of a file.
pub(crate) fn is_path(name: &str) -> bool {
    name.contains(['/', '\\']) || [".json", ".yaml", ".yml"].iter().any(|end| name.ends_with(end))
}

fn segment(segment: &SerdeSegment) -> Option<Segment> {
    match segment {
        SerdeSegment::Seq { index } => Some(Segment::Index(*index)),
        SerdeSegment::Map { key } => Some(Segment::Key(key.clone())),
        SerdeSegment::Enum { variant } => Some(Segment::Key(variant.clone())),
        SerdeSegment::Unknown => None,
    }
}

fn lookup<'a>(tree: &'a Value, path: &[Segment]) -> Option<&'a Value> {
    path.iter().try_fold(tree, |at, segment| match segment {
        Segment::Key(key) => at.get(key),
        Segment::Index(index) => at.get(index),
    })
}

/// The text that a spec came from, to say where a value stands.
struct Source {
    path: PathBuf,
    text: String,
    sets: Vec<(Vec<Segment>, String)>,
}

impl Source {
    fn error(&self, key: &[Segment], problem: String) -> SpecError {
        // The last override that wrote the key, something in it, or something that it is in.
        let set = self.sets.iter().rev().find(|(path, _)| key.starts_with(path) || path.starts_with(key));
        let place = match (set, locate::line_of(&self.text, key)) {
            (Some((_, text)), _) if !key.is_empty() => Place::Set(text.clone()),
            (_, Some(line)) => Place::Line(self.path.clone(), line),
            _ => Place::File(self.path.clone()),
        };
        SpecError::Key { place, key: locate::show(key), problem }
    }
}

#[cfg(test)]
mod tests;
