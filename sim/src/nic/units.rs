//! Quantities of a profile: the units of the `models` crate in the measures of the fabric.

use engine::time::Span;
use models::Picos;
use serde::{Deserialize, Serialize};

/// A length of time in a profile: `120ns`, `1.5us`. Whole picoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "Picos", into = "Picos")]
pub struct Duration(pub Span);

impl From<Picos> for Duration {
    fn from(picos: Picos) -> Self {
        Self(Span(picos.0))
    }
}

impl From<Duration> for Picos {
    fn from(duration: Duration) -> Self {
        Self(duration.0.0)
    }
}

/// Bytes per second in a profile: `252Gb/s` or `31.5GB/s`. 0 stands for no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "models::Bandwidth", into = "models::Bandwidth")]
pub struct Bandwidth(pub u64);

impl Bandwidth {
    /// In bits per second.
    pub fn bits_per_s(self) -> u64 {
        self.0.saturating_mul(8)
    }
}

impl From<models::Bandwidth> for Bandwidth {
    fn from(bandwidth: models::Bandwidth) -> Self {
        Self(bandwidth.bits_per_sec() / 8)
    }
}

impl From<Bandwidth> for models::Bandwidth {
    fn from(bandwidth: Bandwidth) -> Self {
        Self::from_bits_per_sec(bandwidth.bits_per_s())
    }
}
