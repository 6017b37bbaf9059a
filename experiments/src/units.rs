//! Quantities with their units: what a YAML writes as `"20us"`, `"40GiB"` or `"200Gb/s"`.
//!
//! A number without a unit is refused, because a bandwidth read in the wrong unit gives plausible
//! results which are wrong by a factor of eight.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Why a text is not a quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// The text has a number but no unit, or one which is not of this quantity.
    #[error("`{text}` has {unit} but a {quantity} needs one of {allowed}, for example \"{example}\"")]
    Unit {
        /// What was written.
        text: String,
        /// The unit found, or "no unit".
        unit: String,
        /// What was wanted.
        quantity: &'static str,
        /// Units that would be right.
        allowed: &'static str,
        /// One right value.
        example: &'static str,
    },
    /// The text does not start with a number that can be used.
    #[error(
        "`{text}` is not a {quantity}: it must be a number that is not negative and a unit ({allowed}), for example \"{example}\""
    )]
    Number {
        /// What was written.
        text: String,
        /// What was wanted.
        quantity: &'static str,
        /// Units that would be right.
        allowed: &'static str,
        /// One right value.
        example: &'static str,
    },
    /// The value does not fit 64 bits in the quantity's base unit.
    #[error("`{text}` is too large for a {quantity}: the most is {most}")]
    TooLarge {
        /// What was written.
        text: String,
        /// What was wanted.
        quantity: &'static str,
        /// The largest value.
        most: &'static str,
    },
}

struct Kind {
    quantity: &'static str,
    allowed: &'static str,
    example: &'static str,
    most: &'static str,
    /// Largest first, so that printing picks the largest unit which divides the value.
    units: &'static [(&'static str, u64)],
}

const DURATION: Kind = Kind {
    quantity: "duration",
    allowed: "h, min, s, ms, us, ns, ps",
    example: "20us",
    most: "5000h",
    units: &[
        ("h", 3_600_000_000_000_000),
        ("min", 60_000_000_000_000),
        ("s", 1_000_000_000_000),
        ("ms", 1_000_000_000),
        ("us", 1_000_000),
        ("ns", 1_000),
        ("ps", 1),
    ],
};

const BYTES: Kind = Kind {
    quantity: "byte size",
    allowed: "TiB, GiB, MiB, KiB, TB, GB, MB, kB, B",
    example: "40GiB",
    most: "16000000TB",
    units: &[
        ("TiB", 1 << 40),
        ("TB", 1_000_000_000_000),
        ("GiB", 1 << 30),
        ("GB", 1_000_000_000),
        ("MiB", 1 << 20),
        ("MB", 1_000_000),
        ("KiB", 1 << 10),
        ("kB", 1_000),
        ("B", 1),
    ],
};

const BANDWIDTH: Kind = Kind {
    quantity: "bandwidth",
    allowed: "Tb/s, Gb/s, Mb/s, kb/s, b/s, TB/s, GB/s, MB/s, kB/s, B/s",
    example: "200Gb/s",
    most: "10000000Tb/s",
    units: &[
        ("Tb/s", 1_000_000_000_000),
        ("Gb/s", 1_000_000_000),
        ("Mb/s", 1_000_000),
        ("kb/s", 1_000),
        ("TB/s", 8_000_000_000_000),
        ("GB/s", 8_000_000_000),
        ("MB/s", 8_000_000),
        ("kB/s", 8_000),
        ("B/s", 8),
        ("b/s", 1),
    ],
};

fn parse(text: &str, kind: &Kind) -> Result<u64, UnitError> {
    let number = || UnitError::Number {
        text: text.to_owned(),
        quantity: kind.quantity,
        allowed: kind.allowed,
        example: kind.example,
    };
    let large = || UnitError::TooLarge { text: text.to_owned(), quantity: kind.quantity, most: kind.most };
    let trimmed = text.trim();
    let split =
        trimmed.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '_')).unwrap_or(trimmed.len());
    let (digits, unit) = trimmed.split_at(split);
    let unit = unit.trim();
    let digits = digits.replace('_', "");
    let (whole, fraction) = digits.split_once('.').unwrap_or((&digits, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return Err(number());
    }
    let factor = kind.units.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor);
    let Some(factor) = factor else {
        let unit = if unit.is_empty() { "no unit".to_owned() } else { format!("the unit `{unit}`") };
        return Err(UnitError::Unit {
            text: text.to_owned(),
            unit,
            quantity: kind.quantity,
            allowed: kind.allowed,
            example: kind.example,
        });
    };
    // Decimal arithmetic in integers: 0.1us must be 100 ns exactly.
    if whole.len() > 20 || fraction.len() > 18 {
        return Err(large());
    }
    let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| number())? };
    let scale = 10_u128.pow(fraction.len() as u32);
    let part: u128 = if fraction.is_empty() { 0 } else { fraction.parse().map_err(|_| number())? };
    let value = (whole * scale + part).checked_mul(u128::from(factor)).ok_or_else(large)?;
    let rounded = (value + scale / 2) / scale;
    u64::try_from(rounded).map_err(|_| large())
}

fn print(value: u64, kind: &Kind, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let base = kind.units[kind.units.len() - 1];
    let (name, factor) = kind
        .units
        .iter()
        .filter(|(_, factor)| value != 0 && value.is_multiple_of(*factor))
        .max_by_key(|(_, factor)| *factor)
        .copied()
        .unwrap_or(base);
    write!(f, "{}{name}", value / factor)
}

macro_rules! quantity {
    ($(#[$doc:meta])* $name:ident, $kind:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl FromStr for $name {
            type Err = UnitError;
            fn from_str(text: &str) -> Result<Self, UnitError> {
                parse(text, &$kind).map($name)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                print(self.0, &$kind, f)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Visitor;
                impl serde::de::Visitor<'_> for Visitor {
                    type Value = $name;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        write!(f, "a {} with a unit ({}), for example \"{}\"", $kind.quantity, $kind.allowed, $kind.example)
                    }
                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$name, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                deserializer.deserialize_any(Visitor)
            }
        }
    };
}

quantity!(
    /// A span of virtual time, in picoseconds.
    Duration,
    DURATION
);
quantity!(
    /// A number of bytes.
    ByteSize,
    BYTES
);
quantity!(
    /// A rate in bits per second.
    Bandwidth,
    BANDWIDTH
);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_what_people_write() {
        assert_eq!("20us".parse(), Ok(Duration(20_000_000)));
        assert_eq!("0.1us".parse(), Ok(Duration(100_000)));
        assert_eq!("1.5 s".parse(), Ok(Duration(1_500_000_000_000)));
        assert_eq!("40GiB".parse(), Ok(ByteSize(40 << 30)));
        assert_eq!("200Gb/s".parse(), Ok(Bandwidth(200_000_000_000)));
        assert_eq!("25GB/s".parse(), Ok(Bandwidth(200_000_000_000)));
    }

    #[test]
    fn a_missing_or_foreign_unit_is_refused_and_says_what_is_right() {
        let none = "20".parse::<Duration>().unwrap_err().to_string();
        assert!(none.contains("no unit") && none.contains("20us"), "{none}");
        let wrong = "200Gbps".parse::<Bandwidth>().unwrap_err().to_string();
        assert!(wrong.contains("`Gbps`") && wrong.contains("Gb/s"), "{wrong}");
        assert!("-3us".parse::<Duration>().is_err());
        assert!("99999999999999999h".parse::<Duration>().is_err());
    }

    proptest! {
        #[test]
        fn printing_and_reading_agree(value: u64) {
            prop_assert_eq!(Duration(value).to_string().parse(), Ok(Duration(value)));
            prop_assert_eq!(ByteSize(value).to_string().parse(), Ok(ByteSize(value)));
            prop_assert_eq!(Bandwidth(value).to_string().parse(), Ok(Bandwidth(value)));
        }

        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _ = text.parse::<Duration>();
            let _ = text.parse::<ByteSize>();
            let _ = text.parse::<Bandwidth>();
        }
    }
}
