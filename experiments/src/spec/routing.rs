//! `policy.routing`, `policy.admission`, `policy.limits` and `policy.retry`: what router and decode decide about a request.

use models::Picos;
use serde::de::{self, Deserializer};
use serde::{Deserialize, Serialize};

use super::field;
use crate::own;

/// Which prefill and which decode instance a request goes to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Routing {
    /// Each in turn.
    RoundRobin,
    /// The one with the fewest tokens under way.
    LeastLoaded,
    /// The better of two drawn at random.
    PowerOfTwo,
    /// Prefill: where much of the prompt is likely to be cached and little waits; decode: least loaded.
    PrefixAware(PrefixAwareSpec),
    /// The pair with the least predicted time of queue, compute and transfer.
    NetworkAware(NetworkAwareSpec),
    /// A policy that the program registered under this name, see [`crate::own`].
    Own(#[serde(deserialize_with = "registered")] String),
}

/// The name of a routing policy that is there.
fn registered<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let name = String::deserialize(deserializer)?;
    own::find_routing(&name).map_err(de::Error::custom)?;
    Ok(name)
}

/// Parameters of `prefix-aware`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PrefixAwareSpec {
    /// Tokens of queue that a token found in the cache is worth: 0 looks at queues alone.
    #[serde(deserialize_with = "field::not_negative")]
    pub weight: f64,
    /// Blocks of 512 tokens remembered of an instance, at most; what fits into its memory, if that is less.
    #[serde(deserialize_with = "field::count")]
    pub blocks: u32,
}

impl Default for PrefixAwareSpec {
    fn default() -> Self {
        PrefixAwareSpec { weight: 1.0, blocks: 1_000_000 }
    }
}

/// Parameters of `network-aware`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkAwareSpec {
    /// Weight of the newest measurement, above 0 to 1.
    #[serde(deserialize_with = "field::gain")]
    pub gain: f64,
    /// After this time half of what is known against a pair of instances is forgotten.
    pub forget: Picos,
}

impl Default for NetworkAwareSpec {
    fn default() -> Self {
        NetworkAwareSpec { gain: 0.2, forget: Picos(10_000_000_000_000) }
    }
}

/// When decode memory is taken, and how many may wait for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Admission {
    /// For prompt and output, before the transfer.
    Reserve,
    /// For the prompt before the transfer, then page by page; a request that finds none is preempted.
    OnDemand,
    /// One of these, and a request that comes when `waiting` others wait for memory of an instance is rejected at once.
    Refuse {
        /// Requests that may wait, of each decode instance.
        #[serde(deserialize_with = "field::count")]
        waiting: u32,
        /// When memory is taken.
        #[serde(default)]
        pages: Pages,
    },
}

impl Admission {
    /// When memory is taken, and how many may wait.
    pub(crate) fn parts(self) -> (Pages, Option<u32>) {
        match self {
            Admission::Reserve => (Pages::Reserve, None),
            Admission::OnDemand => (Pages::OnDemand, None),
            Admission::Refuse { waiting, pages } => (pages, Some(waiting)),
        }
    }
}

/// When decode memory is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pages {
    /// For prompt and output, before the transfer.
    #[default]
    Reserve,
    /// For the prompt before the transfer, then page by page.
    OnDemand,
}

/// What the router lets fly at a time; others wait there in the order of their arrival.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsSpec {
    /// Requests in flight.
    #[serde(deserialize_with = "field::optional_count", skip_serializing_if = "Option::is_none")]
    pub requests: Option<u32>,
    /// The same for each tenant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<TenantSpec>,
    /// Requests that may wait; one that comes when so many do is rejected at once.
    #[serde(deserialize_with = "field::optional_count", skip_serializing_if = "Option::is_none")]
    pub waiting: Option<u32>,
}

/// What each tenant may have in flight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TenantSpec {
    /// Requests.
    #[serde(deserialize_with = "field::optional_count", skip_serializing_if = "Option::is_none")]
    pub requests: Option<u32>,
    /// Tokens, prompts and outputs; a longer request flies alone.
    #[serde(deserialize_with = "field::optional_tokens", skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u32>,
}

/// What is done about failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetrySpec {
    /// Attempts at a request whose transfer fails; 1: it is not sent again.
    #[serde(deserialize_with = "field::attempts")]
    pub attempts: u32,
    /// An instance that had part in a failed transfer gets no requests for this time, twice as long after each failure that follows; 0s: none
    /// is left alone.
    pub cooldown: Picos,
    /// The longest time that an instance is left alone.
    pub longest: Picos,
}

impl Default for RetrySpec {
    fn default() -> Self {
        RetrySpec { attempts: 1, cooldown: Picos(0), longest: Picos(60_000_000_000_000) }
    }
}

/// What is wrong between these keys and others, if anything: key under `policy`, and problem.
pub(super) fn problem(spec: &super::Spec) -> Option<(&'static str, String)> {
    let policy = &spec.policy;
    if matches!(policy.routing, Routing::PrefixAware(_)) {
        if !spec.batch.prefix_cache {
            return Some((
                "routing",
                "prefix-aware finds nothing without a cache: set batch.prefix_cache to true".into(),
            ));
        }
        let page = spec.cluster.prefill.page_size;
        if page == 0 || !engine::node::BLOCK_TOKENS.is_multiple_of(page) {
            return Some((
                "routing",
                format!(
                    "prefix-aware finds nothing with cluster.prefill.page_size {page}: prefixes are kept in blocks of {} tokens, and \
                     a page must be a part of one (16, 32, 64, ...)",
                    engine::node::BLOCK_TOKENS
                ),
            ));
        }
    }
    let limits = &policy.limits;
    if let Some(tenant) = limits.tenant
        && tenant == TenantSpec::default()
    {
        return Some(("limits.tenant", "expected at least one of `requests`, `tokens`".into()));
    }
    if limits.waiting.is_some() && limits.requests.is_none() && limits.tenant.is_none() {
        return Some((
            "limits.waiting",
            "nobody waits at a router without limits; give limits.requests or limits.tenant, or refuse at decode: \
             policy.admission: {refuse: {waiting: 8}}"
                .into(),
        ));
    }
    let retry = &policy.retry;
    if retry.longest < retry.cooldown {
        return Some((
            "retry.longest",
            format!(
                "{} is shorter than the first cooldown {}; expected at least that",
                retry.longest, retry.cooldown
            ),
        ));
    }
    None
}
