//! Values that a field can have: each check fails where the value stands, so that the error gets its line.

use std::collections::BTreeMap;

use serde::de::{Deserialize, Deserializer, Error};

use crate::workload::MAX_TOKENS;

/// A number above 0.
pub(crate) fn positive<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    number(deserializer, "a number above 0 (at most 1e12)", |v| v > 0.0 && v <= 1e12)
}

/// A number from 0 on.
pub(crate) fn not_negative<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    number(deserializer, "a number from 0 to 1e12", |v| (0.0..=1e12).contains(&v))
}

/// A weight of what is new in a mean.
pub(crate) fn gain<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    number(deserializer, "a number above 0, at most 1", |v| v > 0.0 && v <= 1.0)
}

/// A coefficient of variation that the gamma sampler can do.
pub(crate) fn cv<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    number(deserializer, "a number from 0.01 to 100", |v| (0.01..=100.0).contains(&v))
}

/// A probability.
pub(crate) fn probability<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    number(deserializer, "a probability from 0 to 1", |v| (0.0..=1.0).contains(&v))
}

fn number<'de, D: Deserializer<'de>>(
    deserializer: D,
    expected: &'static str,
    right: impl Fn(f64) -> bool,
) -> Result<f64, D::Error> {
    let value = f64::deserialize(deserializer)?;
    if right(value) { Ok(value) } else { Err(wrong(&value.to_string(), expected)) }
}

/// A whole number from 1 on.
pub(crate) fn count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    whole(deserializer, "a whole number from 1 to 1000000", 1, 1_000_000)
}

/// A count that may be left out.
pub(crate) fn optional_count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    count(deserializer).map(Some)
}

/// A number of tokens that may be left out.
pub(crate) fn optional_tokens<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    tokens(deserializer).map(Some)
}

/// Attempts at a request.
pub(crate) fn attempts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    whole(deserializer, "a whole number from 1 to 16", 1, 16)
}

/// Weights of tenants, of which somebody must have some.
pub(crate) fn weights<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u32>, D::Error> {
    let values = Vec::<u32>::deserialize(deserializer)?;
    match values.iter().find(|v| **v > 1_000_000) {
        Some(bad) => Err(wrong(&bad.to_string(), "whole numbers from 0 to 1000000")),
        None if values.iter().all(|v| *v == 0) => {
            Err(wrong("weights that are all 0", "at least one above 0"))
        }
        None => Ok(values),
    }
}

/// Values by tenant.
pub(crate) fn by_tenant<'de, D, T>(deserializer: D) -> Result<BTreeMap<u32, T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    let named = BTreeMap::<String, T>::deserialize(deserializer)?;
    let numbered = named.into_iter().map(|(tenant, value)| match tenant.parse() {
        Ok(tenant) => Ok((tenant, value)),
        Err(_) => Err(wrong(&format!("`{tenant}`"), "the number of a tenant, from 0 on, before the colon")),
    });
    numbered.collect()
}

/// A penalty in percent.
pub(crate) fn percent<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    whole(deserializer, "a whole number of percent from 0 to 1000", 0, 1000)
}

/// Queue pairs between two ranks: every one has receives, a cell of each aux slot and a place in the NIC's cache.
pub(crate) fn queue_pairs<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    whole(deserializer, "a whole number from 1 to 256", 1, 256)
}

/// Parts of a room: what an immediate has bits for.
pub(crate) fn parts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    whole(deserializer, "a whole number from 1 to 4096", 1, 4096)
}

/// The probability of an event that, each time, would leave nothing to work with.
pub(crate) fn loss<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    number(deserializer, "a probability from 0 to 0.9", |v| (0.0..=0.9).contains(&v))
}

/// A number of tokens.
pub(crate) fn tokens<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    whole(deserializer, "a whole number of tokens from 1 to 268435456", 1, MAX_TOKENS)
}

/// An ACK timeout code; 0 would mean to wait for ever.
pub(crate) fn ack_timeout<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u8, D::Error> {
    whole(deserializer, "an ACK timeout code from 1 to 31", 1, 31).map(|v| v as u8)
}

/// A retry count of a queue pair: 3 bits.
pub(crate) fn retries<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u8, D::Error> {
    whole(deserializer, "a retry count from 0 to 7", 0, 7).map(|v| v as u8)
}

/// A finite RNR retry count.
pub(crate) fn rnr_retries<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u8, D::Error> {
    whole(deserializer, "a retry count from 0 to 6 (7 means for ever)", 0, 6).map(|v| v as u8)
}

/// A code of the RNR NAK timer: 5 bits.
pub(crate) fn rnr_timer<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u8, D::Error> {
    whole(deserializer, "an RNR NAK timer code from 0 to 31", 0, 31).map(|v| v as u8)
}

/// A field of 8 bits.
pub(crate) fn byte<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u8, D::Error> {
    whole(deserializer, "a whole number from 0 to 255", 0, 255).map(|v| v as u8)
}

/// A field of 8 bits that may be left out.
pub(crate) fn optional_byte<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u8>, D::Error> {
    byte(deserializer).map(Some)
}

/// A DSCP: 6 bits (RFC 2474).
pub(crate) fn dscp<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u8>, D::Error> {
    whole(deserializer, "a DSCP from 0 to 63", 0, 63).map(|v| Some(v as u8))
}

/// An InfiniBand service level: 4 bits.
pub(crate) fn service_level<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u8, D::Error> {
    whole(deserializer, "a service level from 0 to 15", 0, 15).map(|v| v as u8)
}

/// An index into a table of partition keys.
pub(crate) fn pkey_index<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u16, D::Error> {
    whole(deserializer, "an index from 0 to 65535", 0, 65_535).map(|v| v as u16)
}

/// A hop limit; 0 would reach nobody.
pub(crate) fn hop_limit<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u8, D::Error> {
    whole(deserializer, "a hop limit from 1 to 255", 1, 255).map(|v| v as u8)
}

/// READs and atomics of a queue pair.
pub(crate) fn rd_atomic<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u8, D::Error> {
    whole(deserializer, "a whole number from 1 to 255", 1, 255).map(|v| v as u8)
}

/// A list of lengths.
pub(crate) fn token_list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u32>, D::Error> {
    let values = Vec::<u32>::deserialize(deserializer)?;
    if values.is_empty() {
        return Err(wrong("an empty list", "at least one length"));
    }
    match values.iter().find(|v| !(1..=MAX_TOKENS).contains(*v)) {
        Some(bad) => Err(wrong(&bad.to_string(), "lengths from 1 to 268435456 tokens")),
        None => Ok(values),
    }
}

fn whole<'de, D: Deserializer<'de>>(
    deserializer: D,
    expected: &'static str,
    least: u32,
    most: u32,
) -> Result<u32, D::Error> {
    let value = i64::deserialize(deserializer)?;
    match u32::try_from(value) {
        Ok(value) if (least..=most).contains(&value) => Ok(value),
        _ => Err(wrong(&value.to_string(), expected)),
    }
}

fn wrong<E: Error>(value: &str, expected: &'static str) -> E {
    E::custom(format_args!("invalid value {value}, expected {expected}"))
}
