//! `policy.order`, `policy.rails`, `policy.failover` and `policy.replica`: what is posted next, and where it goes.

use std::collections::BTreeMap;

use engine::policy;
use engine::time::Span;
use models::{ByteSize, Picos};
use serde::de::{self, Deserializer};
use serde::{Deserialize, Serialize};

use super::field;
use crate::own;

/// Whose parts are posted next on a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Order {
    /// In the order in which they became ready.
    Fifo,
    /// The request with the fewest bytes left.
    ShortestRemaining,
    /// The request that is due first.
    EarliestDeadline(Deadline),
    /// Tenants in turn, so many bytes each.
    DeficitRoundRobin(Shares),
    /// The tenant of the highest priority.
    StrictPriority(Priorities),
    /// A policy that the program registered under this name, see [`crate::own`].
    Own(#[serde(deserialize_with = "registered")] String),
}

/// The name of an order policy that is there.
fn registered<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let name = String::deserialize(deserializer)?;
    own::find_order(&name).map_err(de::Error::custom)?;
    Ok(name)
}

/// How soon after its arrival a request is due.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Deadline {
    /// From arrival to the first token; `slo.ttft` if it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttft: Option<Picos>,
    /// On top for each token of the prompt.
    pub per_token: Picos,
    /// Other times from arrival to the first token, by tenant.
    #[serde(deserialize_with = "field::by_tenant")]
    pub tenants: BTreeMap<u32, Picos>,
}

/// How tenants share a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Shares {
    /// Bytes of a turn, 1B to 1TiB.
    pub quantum: ByteSize,
    /// Turns of a tenant are so many times as long; 1 for those that are not here.
    #[serde(deserialize_with = "field::by_tenant")]
    pub weights: BTreeMap<u32, u32>,
}

impl Default for Shares {
    fn default() -> Self {
        Shares { quantum: ByteSize(8 << 20), weights: BTreeMap::new() }
    }
}

/// Who goes before whom.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Priorities {
    /// Priority of a tenant, the highest first; 0 for those that are not here.
    #[serde(deserialize_with = "field::by_tenant")]
    pub tenants: BTreeMap<u32, u32>,
}

/// Which NIC port of a host carries a part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Rails {
    /// The port near the rank's GPU.
    Pinned,
    /// All rails at once: each piece is cut.
    Striped,
    /// The rails in turn, a piece each.
    RoundRobin,
    /// A rail for each request, by its room's number.
    Hash,
    /// The rail that would be through first.
    LeastInflight(LeastInflight),
}

/// How the rail that would be through first is estimated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LeastInflight {
    /// Each completion counts 1 in so many for the rate of its rail.
    #[serde(deserialize_with = "field::count")]
    pub window: u32,
    /// What was measured is forgotten over this time.
    pub memory: Picos,
    /// Percent that a port on another NUMA node is taken to be slower, 0 to 1000.
    #[serde(deserialize_with = "field::percent")]
    pub numa_penalty: u32,
}

impl Default for LeastInflight {
    fn default() -> Self {
        let policy::LeastInflight { window, memory, numa_penalty } = policy::LeastInflight::default();
        LeastInflight { window, memory: Picos(memory.0), numa_penalty }
    }
}

/// Whether a port or path that failed is left out, where there is another one between two ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Failover {
    /// Never: everything waits for it.
    Off,
    /// For a time, which doubles with every failure from `first` to `most`.
    Cooldown {
        /// After the first failure.
        #[serde(default = "first_cooldown")]
        first: Picos,
        /// After many.
        #[serde(default = "longest_cooldown")]
        most: Picos,
    },
}

impl Default for Failover {
    fn default() -> Self {
        Failover::Cooldown { first: first_cooldown(), most: longest_cooldown() }
    }
}

fn first_cooldown() -> Picos {
    Picos(policy::Cooldown::default().first.0)
}

fn longest_cooldown() -> Picos {
    Picos(policy::Cooldown::default().most.0)
}

/// Which of several ranks with the same KV sends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Replica {
    /// Spread over the copies by destination rank.
    ByDestination,
    /// Always the same copy.
    Fixed {
        /// Which, from 0 and modulo their number.
        #[serde(deserialize_with = "field::byte")]
        copy: u8,
    },
    /// All of them, a layer each in turn.
    Striped,
}

impl Order {
    /// As the engine knows it; `ttft` is the objective of the experiment.
    pub(crate) fn engine(&self, ttft: Option<Picos>) -> policy::OrderPolicy {
        match self {
            Order::Fifo => policy::OrderPolicy::Fifo,
            Order::ShortestRemaining => policy::OrderPolicy::ShortestRemaining,
            Order::EarliestDeadline(due) => policy::OrderPolicy::EarliestDeadline(policy::Slo {
                ttft: due.ttft.or(ttft).map_or_else(|| policy::Slo::default().ttft, |ttft| Span(ttft.0)),
                per_token: Span(due.per_token.0),
                tenants: due.tenants.iter().map(|(tenant, ttft)| (*tenant, Span(ttft.0))).collect(),
            }),
            Order::DeficitRoundRobin(shares) => policy::OrderPolicy::DeficitRoundRobin(policy::Shares {
                quantum: shares.quantum.0,
                weights: shares.weights.clone(),
            }),
            Order::StrictPriority(priorities) => policy::OrderPolicy::StrictPriority(policy::Priorities {
                tenants: priorities.tenants.clone(),
            }),
            // Looked for before a run begins.
            Order::Own(name) => own::find_order(name).unwrap_or_default(),
        }
    }

    /// What is wrong with it: the key below `policy.order`, and the problem.
    pub(super) fn problem(&self, ttft: Option<Picos>) -> Option<(&'static str, String)> {
        match self {
            Order::EarliestDeadline(due) if due.ttft.or(ttft).is_none() => Some((
                "earliest-deadline",
                "nothing says when a request is due: give ttft here, or slo.ttft".to_owned(),
            )),
            Order::DeficitRoundRobin(shares) if !(1..=1 << 40).contains(&shares.quantum.0) => Some((
                "deficit-round-robin.quantum",
                format!("{} is not a turn; expected 1B to 1TiB, for example 8MiB", shares.quantum),
            )),
            Order::DeficitRoundRobin(shares) => {
                let (tenant, weight) =
                    shares.weights.iter().find(|(_, weight)| !(1..=1_000_000).contains(*weight))?;
                let problem = format!("the weight of tenant {tenant} is {weight}, expected 1 to 1000000");
                Some(("deficit-round-robin.weights", problem))
            }
            _ => None,
        }
    }
}

impl Rails {
    /// As the engine knows it.
    pub(crate) fn engine(&self) -> policy::RailPolicy {
        match self {
            Rails::Pinned => policy::RailPolicy::Pinned,
            Rails::Striped => policy::RailPolicy::Striped,
            Rails::RoundRobin => policy::RailPolicy::RoundRobin,
            Rails::Hash => policy::RailPolicy::Hash,
            Rails::LeastInflight(LeastInflight { window, memory, numa_penalty }) => {
                policy::RailPolicy::LeastInflight(policy::LeastInflight {
                    window: *window,
                    memory: Span(memory.0),
                    numa_penalty: *numa_penalty,
                })
            }
        }
    }

    /// Its name in the YAML.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Rails::Pinned => "pinned",
            Rails::Striped => "striped",
            Rails::RoundRobin => "round-robin",
            Rails::Hash => "hash",
            Rails::LeastInflight(_) => "least-inflight",
        }
    }
}

impl Failover {
    /// As the engine knows it.
    pub(crate) fn engine(self) -> Option<policy::Cooldown> {
        match self {
            Failover::Off => None,
            Failover::Cooldown { first, most } => {
                Some(policy::Cooldown { first: Span(first.0), most: Span(most.0) })
            }
        }
    }

    /// What is wrong with it.
    pub(super) fn problem(self) -> Option<String> {
        match self {
            Failover::Cooldown { first: Picos(0), .. } => Some(
                "first is 0, and what failed would be tried again at once; expected for example 100ms"
                    .to_owned(),
            ),
            Failover::Cooldown { first, most } if most < first => {
                Some(format!("most {most} is below first {first}; exchange them"))
            }
            _ => None,
        }
    }
}

impl Replica {
    /// As the engine knows it.
    pub(crate) fn engine(self) -> policy::ReplicaChoice {
        match self {
            Replica::ByDestination => policy::ReplicaChoice::ByDestination,
            Replica::Fixed { copy } => policy::ReplicaChoice::Fixed(copy.into()),
            Replica::Striped => policy::ReplicaChoice::Striped,
        }
    }
}
