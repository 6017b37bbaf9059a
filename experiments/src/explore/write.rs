//! A case as YAML that a person can read: only what differs from the defaults.

use serde_json::Value;

use crate::spec::{Spec, yaml as text};

/// How large a case is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Requests.
    pub requests: usize,
    /// Faults.
    pub faults: usize,
    /// Instances of both sides.
    pub instances: u32,
    /// Ranks of all instances.
    pub ranks: u32,
    /// Other keys that differ from their defaults.
    pub keys: usize,
}

impl Size {
    /// Of a case.
    #[must_use]
    pub fn of(spec: &Spec) -> Self {
        let sides = [&spec.cluster.prefill, &spec.cluster.decode];
        let tree = pruned(spec);
        let beside = ["name", "seed", "invariants", "workload", "faults"];
        let keys = match &tree {
            Value::Object(map) => {
                map.iter().filter(|(key, _)| !beside.contains(&key.as_str())).map(|(_, v)| leaves(v)).sum()
            }
            _ => 0,
        };
        Size {
            requests: spec.workload.requests.len(),
            faults: spec.faults.len(),
            instances: sides.iter().map(|side| side.instances).sum(),
            ranks: sides.iter().map(|side| side.instances * side.parallel().world()).sum(),
            keys,
        }
    }
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let s = |n: usize| if n == 1 { "" } else { "s" };
        write!(
            f,
            "{} request{}, {} fault{}, {} ranks in {} instances, {} key{}",
            self.requests,
            s(self.requests),
            self.faults,
            s(self.faults),
            self.ranks,
            self.instances,
            self.keys,
            s(self.keys)
        )
    }
}

fn leaves(value: &Value) -> usize {
    match value {
        Value::Object(map) => map.values().map(leaves).sum(),
        _ => 1,
    }
}

/// What of `value` differs from `default`.
fn differing(value: &Value, default: &Value) -> Option<Value> {
    if value == default {
        return None;
    }
    let (Value::Object(own), Value::Object(other)) = (value, default) else { return Some(value.clone()) };
    // A choice with parameters is kept whole.
    if own.keys().any(|key| !other.contains_key(key)) && own.len() == 1 {
        return Some(value.clone());
    }
    let null = Value::Null;
    let kept = own.iter().filter_map(|(key, value)| {
        differing(value, other.get(key).unwrap_or(&null)).map(|value| (key.clone(), value))
    });
    Some(Value::Object(kept.collect()))
}

fn pruned(spec: &Spec) -> Value {
    let tree = |spec: &Spec| serde_json::to_value(spec).unwrap_or_default();
    differing(&tree(spec), &tree(&Spec::default())).unwrap_or_else(|| Value::Object(Default::default()))
}

/// The case, with remarks on top. It reads back to the same experiment.
///
/// # Errors
/// If it cannot be written, which no experiment is known for.
pub fn yaml(spec: &Spec, remarks: &[String]) -> Result<String, text::YamlError> {
    let short = text::print(&pruned(spec))?;
    let same = Spec::parse(&short, std::path::Path::new("case"), &[]).is_ok_and(|read| read == *spec);
    let body = if same { short } else { spec.resolved()? };
    let head = remarks.iter().flat_map(|remark| remark.lines().map(|line| format!("# {line}\n")));
    Ok(head.chain([body]).collect())
}
