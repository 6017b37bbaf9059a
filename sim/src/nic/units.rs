//! Quantities of a profile, written with their unit so that none is read in the wrong one.

use engine::time::Span;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use std::fmt;

/// Why a text is no quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {what}: write a number and its unit, {example}")]
pub struct UnitError {
    text: String,
    what: &'static str,
    example: &'static str,
}

/// A length of time in a profile: `120ns`, `1.5us`. Whole picoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Duration(pub Span);

/// Bytes per second in a profile: `252Gb/s` or `31.5GB/s`. 0 stands for no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bandwidth(pub u64);

impl Bandwidth {
    /// In bits per second.
    pub fn bits_per_s(self) -> u64 {
        self.0.saturating_mul(8)
    }
}

/// Splits `12.5ns` and multiplies exactly; `None` if it is not such a text or does not come out whole.
fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, unit) = (&text[..split], text[split..].trim_start());
    let scale = units.iter().find(|(name, _)| *name == unit)?.1;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || number.ends_with('.') || fraction.contains('.') {
        return None;
    }
    let mut value = whole.parse::<u64>().ok()?.checked_mul(scale)?;
    let mut place = scale;
    for digit in fraction.bytes() {
        let digit = u64::from(digit - b'0');
        if (place % 10 != 0 || place == 0) && digit != 0 {
            return None;
        }
        place /= 10;
        value = value.checked_add(digit * place)?;
    }
    Some(value)
}

const TIMES: [(&str, u64); 5] =
    [("ps", 1), ("ns", 1_000), ("us", 1_000_000), ("ms", 1_000_000_000), ("s", 1_000_000_000_000)];

const RATES: [(&str, u64); 6] = [
    ("Mb/s", 125_000),
    ("Gb/s", 125_000_000),
    ("Tb/s", 125_000_000_000),
    ("MB/s", 1_000_000),
    ("GB/s", 1_000_000_000),
    ("B/s", 1),
];

impl std::str::FromStr for Duration {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        scaled(text, &TIMES).map(|ps| Self(Span(ps))).ok_or_else(|| UnitError {
            text: text.into(),
            what: "a time",
            example: "such as \"120ns\", \"1.5us\", \"0ns\" (ps, ns, us, ms, s)",
        })
    }
}

impl std::str::FromStr for Bandwidth {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        scaled(text, &RATES).map(Self).ok_or_else(|| UnitError {
            text: text.into(),
            what: "a bandwidth",
            example: "such as \"252Gb/s\" or \"31.5GB/s\" (Mb/s, Gb/s, Tb/s, B/s, MB/s, GB/s)",
        })
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ps = self.0.0;
        let (unit, scale) =
            TIMES.iter().rev().find(|(_, s)| ps != 0 && ps.is_multiple_of(*s)).unwrap_or(&TIMES[1]);
        write!(f, "{}{unit}", ps / scale)
    }
}

impl fmt::Display for Bandwidth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, scale) =
            [RATES[1], RATES[0]].into_iter().find(|(_, s)| self.0.is_multiple_of(*s)).unwrap_or(RATES[5]);
        write!(f, "{}{unit}", self.0 / scale)
    }
}

macro_rules! as_text { ($($name:ident)*) => {$(
    impl Serialize for $name {
        fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
            to.collect_str(self)
        }
    }
    impl<'de> Deserialize<'de> for $name {
        fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
            String::deserialize(from)?.parse().map_err(D::Error::custom)
        }
    }
)*} }
as_text!(Duration Bandwidth);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn units_are_exact_and_required() {
        assert_eq!("1.5us".parse(), Ok(Duration(Span(1_500_000))));
        assert_eq!("0ns".parse(), Ok(Duration(Span(0))));
        assert_eq!("31.5GB/s".parse(), Ok(Bandwidth(31_500_000_000)));
        assert_eq!("200 Gb/s".parse(), Ok(Bandwidth(25_000_000_000)));
        for bad in ["", "12", "ns", "1.ns", ".5ns", "1.2.3ns", "-1ns", "1 lightyear", "0.0001ps"] {
            assert!(bad.parse::<Duration>().is_err(), "{bad}");
        }
        assert!("25GBps".parse::<Bandwidth>().unwrap_err().to_string().contains("25GBps"));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(n in any::<u64>()) {
            prop_assert_eq!(Duration(Span(n)).to_string().parse(), Ok(Duration(Span(n))));
            prop_assert_eq!(Bandwidth(n).to_string().parse(), Ok(Bandwidth(n)));
        }
    }
}
