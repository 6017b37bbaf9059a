//! `slo:` and `expect:`: what is to hold.

use models::Picos;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Service level objectives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SloSpec {
    /// Arrival to the first token leaving decode.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttft: Option<Picos>,
    /// (Last - first token) / (tokens - 1).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tpot: Option<Picos>,
}

/// What a value of `summary.json` must be: a number, or `{min: .., max: ..}`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// Exactly this.
    Equals(f64),
    /// Within these, both included.
    Between {
        /// Least.
        min: Option<f64>,
        /// Most.
        max: Option<f64>,
    },
}

impl Bound {
    /// Whether `value` is right.
    #[must_use]
    pub fn holds(&self, value: f64) -> bool {
        match *self {
            Bound::Equals(wanted) => value == wanted,
            Bound::Between { min, max } => min.is_none_or(|m| value >= m) && max.is_none_or(|m| value <= m),
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Bound::Equals(wanted) => write!(f, "= {wanted}"),
            Bound::Between { min: Some(min), max: Some(max) } => write!(f, "{min} to {max}"),
            Bound::Between { min: Some(min), max: None } => write!(f, ">= {min}"),
            Bound::Between { min: None, max: Some(max) } => write!(f, "<= {max}"),
            Bound::Between { min: None, max: None } => f.write_str("any number"),
        }
    }
}

impl Serialize for Bound {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match *self {
            Bound::Equals(wanted) => serializer.serialize_f64(wanted),
            Bound::Between { min, max } => {
                let mut map = serializer.serialize_map(None)?;
                if let Some(min) = min {
                    map.serialize_entry("min", &min)?;
                }
                if let Some(max) = max {
                    map.serialize_entry("max", &max)?;
                }
                map.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for Bound {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct BoundVisitor;
        impl<'de> Visitor<'de> for BoundVisitor {
            type Value = Bound;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number, or {min: .., max: ..} with at least one of the two")
            }
            fn visit_f64<E: de::Error>(self, wanted: f64) -> Result<Bound, E> {
                Ok(Bound::Equals(wanted))
            }
            fn visit_u64<E: de::Error>(self, wanted: u64) -> Result<Bound, E> {
                Ok(Bound::Equals(wanted as f64))
            }
            fn visit_i64<E: de::Error>(self, wanted: i64) -> Result<Bound, E> {
                Ok(Bound::Equals(wanted as f64))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Bound, A::Error> {
                let (mut min, mut max) = (None, None);
                while let Some(key) = map.next_key::<String>()? {
                    match key.as_str() {
                        "min" => min = Some(map.next_value::<f64>()?),
                        "max" => max = Some(map.next_value::<f64>()?),
                        _ => return Err(de::Error::unknown_field(&key, &["min", "max"])),
                    }
                }
                match (min, max) {
                    (None, None) => Err(de::Error::custom("expected at least one of `min`, `max`")),
                    (Some(least), Some(most)) if least > most => {
                        Err(de::Error::custom(format_args!("min {least} is above max {most}")))
                    }
                    _ => Ok(Bound::Between { min, max }),
                }
            }
        }
        deserializer.deserialize_any(BoundVisitor)
    }
}
