//! `policy.coalescing`: how pieces that are not contiguous on both sides become work requests.

use models::{Bandwidth, ByteSize, Picos};
use serde::{Deserialize, Serialize};

use super::field;

/// How a part becomes work requests.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Coalescing {
    /// A request for each range that is contiguous at the target.
    #[default]
    Direct,
    /// Gathered on the source, written as one, scattered on the target.
    Staging(StagingSpec),
    /// Whichever is predicted to end sooner, piece by piece.
    Auto(AutoSpec),
}

/// Staging memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StagingSpec {
    /// Bytes of a slot, which holds one part.
    pub slot: ByteSize,
    /// Slots of each rank.
    #[serde(deserialize_with = "field::count")]
    pub slots: u32,
    /// Slots of a decode rank that a request has for each of its senders.
    #[serde(deserialize_with = "field::count")]
    pub window: u32,
}

impl Default for StagingSpec {
    fn default() -> Self {
        let staging = engine::policy::Staging::default();
        StagingSpec { slot: ByteSize(staging.slot), slots: staging.slots, window: staging.window }
    }
}

/// Staging memory, and what the prediction takes things to cost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AutoSpec {
    /// As of `staging`.
    pub slot: ByteSize,
    /// As of `staging`.
    #[serde(deserialize_with = "field::count")]
    pub slots: u32,
    /// As of `staging`.
    #[serde(deserialize_with = "field::count")]
    pub window: u32,
    /// CPU time to build a work request.
    pub build: Picos,
    /// CPU time of each further SGE of one.
    pub sge: Picos,
    /// Time of a work request on its queue pair.
    pub request: Picos,
    /// CPU time to start a copy within a host's memory.
    pub submit: Picos,
    /// Time of such a copy on its GPU, whatever its size.
    pub copy: Picos,
    /// Rate of such a copy.
    pub copy_rate: Bandwidth,
}

impl Default for AutoSpec {
    fn default() -> Self {
        let (staging, costs) = (StagingSpec::default(), engine::policy::StagingCosts::default());
        AutoSpec {
            slot: staging.slot,
            slots: staging.slots,
            window: staging.window,
            build: Picos(costs.build.0),
            sge: Picos(costs.sge.0),
            request: Picos(costs.request.0),
            submit: Picos(costs.submit.0),
            copy: Picos(costs.copy.0),
            copy_rate: Bandwidth::from_bits_per_sec(costs.copy_rate * 8),
        }
    }
}

impl Coalescing {
    /// Staging memory, if it has any.
    #[must_use]
    pub fn staging(&self) -> Option<StagingSpec> {
        match self {
            Coalescing::Direct => None,
            Coalescing::Staging(staging) => Some(staging.clone()),
            Coalescing::Auto(AutoSpec { slot, slots, window, .. }) => {
                Some(StagingSpec { slot: *slot, slots: *slots, window: *window })
            }
        }
    }

    /// The name under `policy.coalescing`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Coalescing::Direct => "direct",
            Coalescing::Staging(_) => "staging",
            Coalescing::Auto(_) => "auto",
        }
    }

    /// What is wrong with it, and the key below `policy.coalescing`, where a decode rank has so many senders and a token of a layer so many
    /// bytes.
    pub(super) fn problem(&self, pull: bool, senders: u64, token: u64) -> Option<(String, String)> {
        let staging = self.staging()?;
        let name = self.name();
        let slot = staging.slot.0;
        if pull {
            let why = format!(
                "{name} needs prefill to write: set policy.direction to push, or coalescing to direct"
            );
            return Some((String::new(), why));
        }
        if slot < token {
            let why = format!(
                "{} holds no token of a layer, which has {token} bytes; for example 4MiB",
                staging.slot
            );
            return Some((format!(".{name}.slot"), why));
        }
        if slot > 1 << 30 {
            return Some((
                format!(".{name}.slot"),
                format!("{} is more than a message can have, 1GiB", staging.slot),
            ));
        }
        if u64::from(staging.slots) < senders || staging.slots > u32::from(u16::MAX) {
            let why =
                format!("{} is not {senders} (the senders of a decode rank) to {}", staging.slots, u16::MAX);
            return Some((format!(".{name}.slots"), why));
        }
        None
    }

    /// As the engine has it.
    pub(crate) fn policy(&self) -> engine::policy::Coalescing {
        use engine::policy::{Coalescing as Policy, Staging, StagingCosts};
        use engine::time::Span;
        let memory = self.staging().map(|s| Staging { slot: s.slot.0, slots: s.slots, window: s.window });
        match (self, memory) {
            (Coalescing::Direct, _) | (_, None) => Policy::Direct,
            (Coalescing::Staging(_), Some(memory)) => Policy::Staging(memory),
            (Coalescing::Auto(auto), Some(memory)) => Policy::Auto(
                memory,
                StagingCosts {
                    build: Span(auto.build.0),
                    sge: Span(auto.sge.0),
                    request: Span(auto.request.0),
                    submit: Span(auto.submit.0),
                    copy: Span(auto.copy.0),
                    copy_rate: auto.copy_rate.bits_per_sec() / 8,
                },
            ),
        }
    }
}
