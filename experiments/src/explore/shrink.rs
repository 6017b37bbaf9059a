//! Makes a case that breaks a law smaller, for as long as it breaks the same law.
//!
//! Delta debugging over the experiment: lists lose runs of their entries, first large ones, then single ones; keys go back to their
//! defaults, whole sections first; numbers halve. Whatever is tried is an experiment that [`Spec`] accepts. The bound is a number of runs
//! and events, not a time, so that the same case always shrinks to the same.

use serde_json::Value;
use sim::watch::Law;

use super::{attempt, quietly};
use crate::spec::{RequestSpec, Spec};

/// How much is tried.
#[derive(Clone, Copy, Debug)]
pub struct Bound {
    /// Runs.
    pub runs: u32,
    /// Events of all of them.
    pub events: u64,
}

impl Default for Bound {
    fn default() -> Self {
        Bound { runs: 3000, events: 30_000_000 }
    }
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Shrunk {
    /// The smallest case found.
    pub spec: Spec,
    /// Runs that it took.
    pub runs: u32,
    /// Events of the smallest case.
    pub events: u64,
    /// How the law is broken by it.
    pub what: String,
}

struct Shrinker<'a> {
    law: Law,
    left: Bound,
    runs: u32,
    best: Shrunk,
    go_on: &'a dyn Fn() -> bool,
}

/// Shrinks a case that breaks `law` first of all. `go_on` is asked before each run; one that says no makes the result depend on when it did.
#[must_use]
pub fn shrink(spec: &Spec, law: Law, bound: Bound, go_on: &dyn Fn() -> bool) -> Shrunk {
    let best = Shrunk { spec: spec.clone(), runs: 0, events: 0, what: String::new() };
    let mut shrinker = Shrinker { law, left: bound, runs: 0, best, go_on };
    quietly(|| shrinker.all());
    Shrunk { runs: shrinker.runs, ..shrinker.best }
}

impl Shrinker<'_> {
    /// Whether a smaller case breaks the same law; then it is the best one.
    fn is_smaller(&mut self, spec: Spec) -> bool {
        if spec == self.best.spec && self.best.events > 0
            || spec.problem().is_some()
            || self.left.runs == 0
            || self.left.events == 0
            || !(self.go_on)()
        {
            return false;
        }
        self.left.runs -= 1;
        self.runs += 1;
        let trial = attempt(&spec);
        self.left.events = self.left.events.saturating_sub(trial.events.max(1000));
        if trial.law() != Some(self.law) {
            return false;
        }
        let what = trial.broken.first().map(|broken| broken.what.clone()).unwrap_or_default();
        self.best = Shrunk { spec, runs: 0, events: trial.events.max(1), what };
        true
    }

    fn all(&mut self) {
        if !self.is_smaller(self.best.spec.clone()) {
            // Not seen again: whatever is tried would prove nothing.
            return;
        }
        loop {
            let before = self.best.spec.clone();
            self.entries(0, |spec| &mut spec.faults);
            // Without any there would be others: those of the default workload.
            self.entries(1, |spec| &mut spec.workload.requests);
            self.defaults();
            self.requests();
            self.numbers();
            if self.best.spec == before {
                return;
            }
        }
    }

    /// Takes entries out of a list, down to so many.
    fn entries<T: Clone>(&mut self, least: usize, list: impl Fn(&mut Spec) -> &mut Vec<T>) {
        let mut size = list(&mut self.best.spec).len();
        while size > 0 {
            let mut from = 0;
            while from < list(&mut self.best.spec).len() {
                let mut spec = self.best.spec.clone();
                let entries = list(&mut spec);
                let end = (from + size).min(entries.len());
                entries.drain(from..end);
                if entries.len() < least || !self.is_smaller(spec) {
                    from += size;
                }
            }
            size /= 2;
        }
    }

    /// Makes requests shorter, plainer and earlier.
    fn requests(&mut self) {
        for i in 0..self.best.spec.workload.requests.len() {
            let changes: [fn(&mut RequestSpec); 8] = [
                |r| r.blocks.clear(),
                |r| r.tenant = 0,
                |r| r.output = 1,
                |r| r.output = r.output.div_ceil(2),
                |r| r.prompt = 1,
                |r| r.prompt = 16,
                |r| r.prompt = 100,
                |r| r.prompt = r.prompt.div_ceil(2),
            ];
            for change in changes {
                let mut spec = self.best.spec.clone();
                let before = spec.workload.requests[i].clone();
                change(&mut spec.workload.requests[i]);
                let now = &spec.workload.requests[i];
                if now.prompt <= before.prompt && *now != before {
                    self.is_smaller(spec);
                }
            }
        }
        // All at once, or each with the one before it.
        let mut spec = self.best.spec.clone();
        let first = spec.workload.requests.first().map_or(models::Picos(0), |request| request.at);
        spec.workload.requests.iter_mut().for_each(|request| request.at = first);
        self.is_smaller(spec);
        for i in 1..self.best.spec.workload.requests.len() {
            let mut spec = self.best.spec.clone();
            spec.workload.requests[i].at = spec.workload.requests[i - 1].at;
            self.is_smaller(spec);
        }
    }

    /// Sets sections, then keys, to their defaults.
    fn defaults(&mut self) {
        let default = tree(&Spec::default());
        let mut paths = Vec::new();
        collect(&tree(&self.best.spec), &default, &mut Vec::new(), &mut paths);
        // Short paths are whole sections.
        paths.sort_by_key(Vec::len);
        for path in paths {
            let mut own = tree(&self.best.spec);
            let (Some(at), Some(to)) = (get_mut(&mut own, &path), get(&default, &path)) else { continue };
            if at == to {
                continue;
            }
            *at = to.clone();
            if let Ok(spec) = serde_json::from_value(own) {
                self.is_smaller(spec);
            }
        }
    }

    /// Numbers of cluster and batch towards 1.
    fn numbers(&mut self) {
        let changes: [fn(&mut Spec); 9] = [
            |spec| spec.cluster.prefill.instances = 1,
            |spec| spec.cluster.decode.instances = 1,
            |spec| spec.cluster.prefill.instances = spec.cluster.prefill.instances.div_ceil(2),
            |spec| spec.cluster.decode.instances = spec.cluster.decode.instances.div_ceil(2),
            |spec| spec.cluster.prefill.tp = spec.cluster.prefill.tp.div_ceil(2),
            |spec| spec.cluster.decode.tp = spec.cluster.decode.tp.div_ceil(2),
            |spec| spec.cluster.nics_per_host = 1,
            |spec| spec.cluster.nics_per_host = spec.cluster.nics_per_host.div_ceil(2),
            |spec| spec.transfer.queue_pairs = spec.transfer.queue_pairs.div_ceil(2),
        ];
        for change in changes {
            let mut spec = self.best.spec.clone();
            change(&mut spec);
            self.is_smaller(spec);
        }
    }
}

fn tree(spec: &Spec) -> Value {
    serde_json::to_value(spec).unwrap_or_default()
}

fn get<'a>(tree: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(tree, |at, key| at.get(key))
}

fn get_mut<'a>(tree: &'a mut Value, path: &[String]) -> Option<&'a mut Value> {
    path.iter().try_fold(tree, |at, key| at.get_mut(key))
}

/// Paths of what differs from the default and can go back to it.
fn collect(own: &Value, default: &Value, path: &mut Vec<String>, paths: &mut Vec<Vec<String>>) {
    // What makes the case what it is.
    let kept = ["name", "seed", "seeds", "invariants", "workload", "faults", "without"];
    let (Value::Object(own), Value::Object(default)) = (own, default) else { return };
    for (key, value) in own {
        let Some(other) = default.get(key) else { continue };
        if value == other || kept.contains(&key.as_str()) {
            continue;
        }
        path.push(key.clone());
        paths.push(path.clone());
        collect(value, other, path, paths);
        path.pop();
    }
}
