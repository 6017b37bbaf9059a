//! `workload:` where requests come from.

use std::path::PathBuf;

use models::Picos;
use serde::{Deserialize, Serialize};

use super::field;

/// Where requests come from: a trace file, a list, or distributions.
///
/// When `path` is given beside another one the path wins, so that `--set workload.path=FILE` replays a
/// trace on any experiment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WorkloadSpec {
    /// A trace file; its format (Mooncake, Azure, LLMServingSim, Vidur) is recognised from its first line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// At most this many requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// Leave out this many requests at the start; time then starts at the first one that is left.
    pub skip: u64,
    /// Multiplies the arrival rate: 2 halves every gap.
    #[serde(deserialize_with = "field::positive")]
    pub rate_scale: f64,
    /// What to do with requests of a Mooncake trace that share a time stamp.
    pub spread: Spread,
    /// Arrivals of synthetic requests, and of trace files which have lengths only (Vidur).
    pub arrival: Arrival,
    /// Tenants of the requests, each drawn by itself; without, all requests of a trace are tenant 0's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenants: Option<Tenants>,
    /// These requests, one by one, in the order of their arrival; used when `path` is not given.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub requests: Vec<RequestSpec>,
    /// Requests from distributions; used when neither `path` nor `requests` is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub synthetic: Option<SyntheticSpec>,
}

/// One request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RequestSpec {
    /// When it arrives, from the start of the run; not before the one before it.
    pub at: Picos,
    /// Tokens of the prompt.
    #[serde(deserialize_with = "field::tokens")]
    pub prompt: u32,
    /// Tokens to generate; the first comes out of prefill.
    #[serde(deserialize_with = "field::tokens")]
    pub output: u32,
    /// Prefix blocks: an id for each started 512 tokens of the prompt. Requests that agree on the first n share them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blocks: Vec<u64>,
    /// Whose it is.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub tenant: u32,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

impl Default for WorkloadSpec {
    fn default() -> Self {
        WorkloadSpec {
            path: None,
            limit: None,
            skip: 0,
            rate_scale: 1.0,
            spread: Spread::Random,
            arrival: Arrival::Poisson { rate: 8.0 },
            tenants: None,
            requests: Vec::new(),
            synthetic: None,
        }
    }
}

/// What to do with requests that share a time stamp: the published Mooncake trace counts time in ticks of
/// about three seconds, and arrivals in bursts of ten every three seconds would measure the clock of
/// whoever recorded it. Offsets stay below the next time stamp and below three seconds, so a time stamp
/// that only one request has moves by less than the gap to the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Spread {
    /// Each at a uniformly random place in its tick, in the order of the file (what a Poisson process is,
    /// given the counts). Depends on the seed. A time stamp that one request alone has is kept.
    #[default]
    Random,
    /// The i-th of n at i/n of the tick. The same for every seed.
    Even,
    /// As the file says.
    None,
}

/// Who sends the requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Tenants {
    /// So many, each as likely as the others.
    Count(#[serde(deserialize_with = "field::count")] u32),
    /// One for each weight, with a part of the requests in proportion to it.
    Weights(#[serde(deserialize_with = "field::weights")] Vec<u32>),
}

/// When requests arrive.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Arrival {
    /// Exponential gaps.
    Poisson {
        /// Requests per second.
        #[serde(deserialize_with = "field::positive")]
        rate: f64,
    },
    /// Gamma gaps: burstier than Poisson when `cv` is above 1.
    Gamma {
        /// Requests per second.
        #[serde(deserialize_with = "field::positive")]
        rate: f64,
        /// Coefficient of variation of the gaps (deviation / mean), 0.01 to 100.
        #[serde(deserialize_with = "field::cv")]
        cv: f64,
    },
    /// Equal gaps, the first request at 0.
    Fixed {
        /// Requests per second.
        #[serde(deserialize_with = "field::positive")]
        rate: f64,
    },
    /// All at time 0.
    AtOnce,
}

/// Requests from distributions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SyntheticSpec {
    /// How many.
    pub requests: u64,
    /// Prompt lengths, tokens.
    pub prompt: Length,
    /// Output lengths, tokens.
    pub output: Length,
    /// Prefixes that requests share; without, no request has prefix blocks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<Prefix>,
    /// Tenants, each request's drawn uniformly.
    #[serde(deserialize_with = "field::count")]
    pub tenants: u32,
}

impl Default for SyntheticSpec {
    fn default() -> Self {
        SyntheticSpec {
            requests: 100,
            prompt: Length::Uniform { min: 512, max: 1536 },
            output: Length::Uniform { min: 64, max: 192 },
            prefix: None,
            tenants: 1,
        }
    }
}

/// A distribution of lengths, in tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Length {
    /// Always the same.
    Fixed(#[serde(deserialize_with = "field::tokens")] u32),
    /// Uniform from `min` to `max`, both included.
    Uniform {
        /// Least.
        #[serde(deserialize_with = "field::tokens")]
        min: u32,
        /// Most.
        #[serde(deserialize_with = "field::tokens")]
        max: u32,
    },
    /// exp(normal), cut to `min` .. `max`.
    Lognormal {
        /// The value that half of the lengths are below.
        #[serde(deserialize_with = "field::positive")]
        median: f64,
        /// Deviation of the logarithm.
        #[serde(deserialize_with = "field::not_negative")]
        sigma: f64,
        /// Least; shorter lengths become this.
        #[serde(deserialize_with = "field::tokens", default = "one")]
        min: u32,
        /// Most; longer lengths become this.
        #[serde(deserialize_with = "field::tokens", default = "million")]
        max: u32,
    },
    /// Each of these values with the same probability.
    Empirical(#[serde(deserialize_with = "field::token_list")] Vec<u32>),
}

fn one() -> u32 {
    1
}

fn million() -> u32 {
    1 << 20
}

/// Prefixes that requests share, as blocks of 512 tokens.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prefix {
    /// How many different prefixes there are.
    #[serde(deserialize_with = "field::count")]
    pub groups: u32,
    /// Tokens of each prefix; whole blocks of 512 of it are shared, at most what leaves one token of the
    /// prompt to compute.
    #[serde(deserialize_with = "field::tokens")]
    pub tokens: u32,
    /// The part of requests that have one, 0 to 1.
    #[serde(deserialize_with = "field::probability")]
    pub share: f64,
}
