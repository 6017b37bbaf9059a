//! Quantities that are written with a unit: bandwidth, duration, size.
//!
//! Each is a whole number of a base unit (bits per second, picoseconds, bytes), parsed from decimal
//! text without going through floating point, and printed so that it parses back to the same value.
//! A number without a unit is refused, and bits are never taken for bytes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use thiserror::Error;

/// Why a text is not a quantity.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum UnitError {
    /// A bare number.
    #[error("{quantity} `{value}` has no unit: write for example `{example}` (units: {units})")]
    MissingUnit {
        /// What was read: "bandwidth", "duration" or "size".
        quantity: &'static str,
        /// The text that was read.
        value: String,
        /// The same number with a likely unit.
        example: String,
        /// Every unit that is understood.
        units: String,
    },
    /// A unit which is not in the table.
    #[error("{quantity} `{value}`: unknown unit `{unit}`; units are {units} ({note})")]
    UnknownUnit {
        /// What was read.
        quantity: &'static str,
        /// The text that was read.
        value: String,
        /// The part after the number.
        unit: String,
        /// Every unit that is understood.
        units: String,
        /// What the letters mean.
        note: &'static str,
    },
    /// The part before the unit is not a decimal number.
    #[error("{quantity} `{value}` does not start with a decimal number: write for example `{example}`")]
    NotANumber {
        /// What was read.
        quantity: &'static str,
        /// The text that was read.
        value: String,
        /// A text that would be right.
        example: &'static str,
    },
    /// More decimals than the base unit can hold.
    #[error("{quantity} `{value}` is not a whole number of {base}")]
    TooFine {
        /// What was read.
        quantity: &'static str,
        /// The text that was read.
        value: String,
        /// The unit in which the quantity is kept.
        base: &'static str,
    },
    /// More than 64 bits of the base unit.
    #[error("{quantity} `{value}` is too large: at most {max}")]
    TooLarge {
        /// What was read.
        quantity: &'static str,
        /// The text that was read.
        value: String,
        /// The largest value, in the base unit.
        max: String,
    },
}

/// How one quantity is written.
struct Spec {
    quantity: &'static str,
    /// (suffix, how many base units), ascending; the first is the base unit itself.
    units: &'static [(&'static str, u64)],
    base: &'static str,
    example: &'static str,
    example_unit: &'static str,
    note: &'static str,
}

const K: u64 = 1_000;
const M: u64 = 1_000_000;
const G: u64 = 1_000_000_000;
const T: u64 = 1_000_000_000_000;
const KI: u64 = 1 << 10;
const MI: u64 = 1 << 20;
const GI: u64 = 1 << 30;
const TI: u64 = 1 << 40;

const BANDWIDTH: Spec = Spec {
    quantity: "bandwidth",
    units: &[
        ("b/s", 1),
        ("B/s", 8),
        ("kb/s", K),
        ("kB/s", 8 * K),
        ("KiB/s", 8 * KI),
        ("Mb/s", M),
        ("MB/s", 8 * M),
        ("MiB/s", 8 * MI),
        ("Gb/s", G),
        ("GB/s", 8 * G),
        ("GiB/s", 8 * GI),
        ("Tb/s", T),
        ("TB/s", 8 * T),
    ],
    base: "bits per second",
    example: "400Gb/s",
    example_unit: "Gb/s",
    note: "b is bits, B is bytes",
};

const DURATION: Spec = Spec {
    quantity: "duration",
    units: &[("ps", 1), ("ns", K), ("us", M), ("ms", G), ("s", T), ("min", 60 * T), ("h", 3600 * T)],
    base: "picoseconds",
    example: "50ms",
    example_unit: "us",
    note: "us is microseconds",
};

const SIZE: Spec = Spec {
    quantity: "size",
    units: &[
        ("B", 1),
        ("kB", K),
        ("KiB", KI),
        ("MB", M),
        ("MiB", MI),
        ("GB", G),
        ("GiB", GI),
        ("TB", T),
        ("TiB", TI),
    ],
    base: "bytes",
    example: "64KiB",
    example_unit: "B",
    note: "B is bytes; Ki, Mi, Gi are powers of 1024, k, M, G of 1000",
};

impl Spec {
    fn unit_list(&self) -> String {
        let names: Vec<&str> = self.units.iter().map(|u| u.0).collect();
        names.join(", ")
    }

    fn missing_unit(&self, value: &str) -> UnitError {
        UnitError::MissingUnit {
            quantity: self.quantity,
            value: value.to_owned(),
            example: format!("{value}{}", self.example_unit),
            units: self.unit_list(),
        }
    }

    fn too_large(&self, value: &str) -> UnitError {
        UnitError::TooLarge {
            quantity: self.quantity,
            value: value.to_owned(),
            max: format!("{} {}", u64::MAX, self.base),
        }
    }

    fn parse(&self, input: &str) -> Result<u64, UnitError> {
        let text = input.trim();
        let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
        let (number, unit) = (&text[..split], text[split..].trim_start());
        let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
        if whole.is_empty() || fraction.is_empty() || fraction.contains('.') {
            return Err(UnitError::NotANumber {
                quantity: self.quantity,
                value: input.to_owned(),
                example: self.example,
            });
        }
        if unit.is_empty() {
            return Err(self.missing_unit(text));
        }
        let Some(&(_, scale)) = self.units.iter().find(|u| u.0 == unit) else {
            return Err(UnitError::UnknownUnit {
                quantity: self.quantity,
                value: input.to_owned(),
                unit: unit.to_owned(),
                units: self.unit_list(),
                note: self.note,
            });
        };
        let too_fine =
            || UnitError::TooFine { quantity: self.quantity, value: input.to_owned(), base: self.base };
        // whole * scale + fraction * scale / 10^decimals, exactly.
        let fraction = fraction.trim_end_matches('0');
        let mut value = digits(whole)
            .and_then(|w| w.checked_mul(u128::from(scale)))
            .ok_or_else(|| self.too_large(input))?;
        if !fraction.is_empty() {
            // A fraction longer than this is finer than any base unit: the largest scale has 20 digits.
            if fraction.len() > 19 {
                return Err(too_fine());
            }
            let ten = 10_u128.pow(u32::try_from(fraction.len()).unwrap_or(u32::MAX));
            let part = digits(fraction).unwrap_or(0) * u128::from(scale);
            if !part.is_multiple_of(ten) {
                return Err(too_fine());
            }
            value += part / ten;
        }
        u64::try_from(value).map_err(|_| self.too_large(input))
    }

    /// The shortest whole multiple of one unit.
    fn format(&self, value: u64, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut best = self.units[0];
        for &(name, scale) in self.units {
            if value != 0 && value.is_multiple_of(scale) && value / scale < value / best.1 {
                best = (name, scale);
            }
        }
        write!(f, "{}{}", value / best.1, best.0)
    }
}

/// A run of decimal digits; `None` when it is too large for `u64`.
fn digits(text: &str) -> Option<u128> {
    if text.trim_start_matches('0').is_empty() {
        return Some(0);
    }
    text.parse::<u64>().ok().map(u128::from)
}

macro_rules! quantity {
    ($name:ident, $spec:ident) => {
        impl FromStr for $name {
            type Err = UnitError;
            fn from_str(text: &str) -> Result<Self, UnitError> {
                $spec.parse(text).map($name)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                $spec.format(self.0, f)
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
                impl de::Visitor<'_> for Visitor {
                    type Value = $name;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        write!(f, "a {} with its unit, such as `{}`", $spec.quantity, $spec.example)
                    }
                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$name, E> {
                        text.parse().map_err(E::custom)
                    }
                    fn visit_u64<E: de::Error>(self, n: u64) -> Result<$name, E> {
                        Err(E::custom($spec.missing_unit(&n.to_string())))
                    }
                    fn visit_i64<E: de::Error>(self, n: i64) -> Result<$name, E> {
                        Err(E::custom($spec.missing_unit(&n.to_string())))
                    }
                    fn visit_f64<E: de::Error>(self, n: f64) -> Result<$name, E> {
                        Err(E::custom($spec.missing_unit(&n.to_string())))
                    }
                }
                // Self-describing formats only: a bare number must reach the visitor to be refused
                // with the right words.
                deserializer.deserialize_any(Visitor)
            }
        }
    };
}

/// A data rate in bits per second, written `400Gb/s` (bits) or `25GB/s` (bytes).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bandwidth(u64);
quantity!(Bandwidth, BANDWIDTH);

impl Bandwidth {
    /// From bits per second.
    #[must_use]
    pub const fn from_bits_per_sec(bits: u64) -> Self {
        Self(bits)
    }

    /// From units of 10^9 bits per second, the unit of link speeds.
    ///
    /// Saturates above 18 Eb/s.
    #[must_use]
    pub const fn from_gbit_per_sec(gbit: u64) -> Self {
        Self(gbit.saturating_mul(G))
    }

    /// Bits per second.
    #[must_use]
    pub const fn bits_per_sec(self) -> u64 {
        self.0
    }

    /// Bytes per second.
    #[must_use]
    pub fn bytes_per_sec(self) -> f64 {
        self.0 as f64 / 8.0
    }

    /// Time on the wire of `bytes`, rounded up to a picosecond; `None` at zero bandwidth or when it
    /// does not fit 64 bits.
    #[must_use]
    pub fn time_of(self, bytes: u64) -> Option<Picos> {
        if self.0 == 0 {
            return None;
        }
        let bit_picos = u128::from(bytes) * 8 * u128::from(T);
        u64::try_from(bit_picos.div_ceil(u128::from(self.0))).ok().map(Picos)
    }
}

/// A duration in picoseconds, written `1us`, `50ms`. 64 bits hold 213 days.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Picos(pub u64);
quantity!(Picos, DURATION);

impl Picos {
    /// Seconds, for display.
    #[must_use]
    pub fn as_secs_f64(self) -> f64 {
        self.0 as f64 / T as f64
    }
}

/// A size in bytes, written `64KiB`, `3GiB`, `25GB`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);
quantity!(ByteSize, SIZE);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bits(text: &str) -> Result<u64, UnitError> {
        text.parse::<Bandwidth>().map(Bandwidth::bits_per_sec)
    }

    #[test]
    fn a_byte_is_eight_bits_in_every_unit() {
        for unit in ["k", "M", "G", "T"] {
            let of = |rest: &str| bits(&format!("3{unit}{rest}")).expect(unit);
            assert_eq!(of("B/s"), 8 * of("b/s"), "{unit}B/s");
        }
        for (unit, scale) in [("KiB/s", 1 << 10), ("MiB/s", 1 << 20), ("GiB/s", 1 << 30)] {
            assert_eq!(bits(&format!("3{unit}")), Ok(3 * 8 * scale), "{unit}");
        }
    }

    #[test]
    fn bits_and_bytes_are_apart() {
        assert_eq!(bits("400Gb/s"), Ok(400 * G));
        assert_eq!(bits("25GB/s"), bits("200 Gb/s"));
        assert_eq!(bits("12.5Gb/s"), Ok(12_500_000_000));
        assert_eq!(bits("1GiB/s"), Ok(8 << 30));
        assert_eq!("1.5us".parse(), Ok(Picos(1_500_000)));
        assert_eq!("50ms".parse(), Ok(Picos(50 * G)));
        assert_eq!(Picos(50 * G).as_secs_f64(), 0.05);
        assert_eq!("64KiB".parse(), Ok(ByteSize(65_536)));
        assert_eq!("3GiB".parse(), Ok(ByteSize(3 << 30)));
        assert_eq!("0.0B".parse(), Ok(ByteSize(0)));
    }

    #[test]
    fn errors_say_what_would_be_right() {
        for (text, wanted) in [
            ("400", "`400Gb/s`"),
            ("400Gbps", "unknown unit `Gbps`"),
            ("400gb/s", "b is bits, B is bytes"),
            ("-4Gb/s", "decimal number"),
            ("", "decimal number"),
            ("1.2.3Gb/s", "decimal number"),
            ("0.3b/s", "whole number of bits per second"),
            ("99999999999999999999999999999999999999999Gb/s", "too large"),
            ("99999999999Gb/s", "too large"),
        ] {
            let error = text.parse::<Bandwidth>().unwrap_err().to_string();
            assert!(error.contains(wanted), "{text}: {error}");
        }
        let error = "50m".parse::<Picos>().unwrap_err().to_string();
        assert!(error.contains("unknown unit `m`"), "{error}");
        let error = "4KB".parse::<ByteSize>().unwrap_err().to_string();
        assert!(error.contains("kB, KiB"), "{error}");
    }

    #[test]
    fn bare_numbers_are_refused_by_serde() {
        for json in ["400", "-4", "0.5"] {
            let error = serde_json::from_str::<Picos>(json).unwrap_err().to_string();
            assert!(error.contains("no unit"), "{error}");
        }
        let error = serde_json::from_str::<ByteSize>("[]").unwrap_err();
        assert!(error.to_string().contains("such as `64KiB`"), "{error}");
    }

    #[test]
    fn the_shortest_whole_number_is_printed() {
        let sizes = [0, 1, 999, 1000, 1024, 1500, 65_536, 3 << 30, 25 * G];
        let sizes = sizes.map(|bytes| ByteSize(bytes).to_string());
        assert_eq!(sizes, ["0B", "1B", "999B", "1kB", "1KiB", "1500B", "64KiB", "3GiB", "25GB"]);
        assert_eq!([60 * T, 90 * T, 1_500 * M].map(|t| Picos(t).to_string()), ["1min", "90s", "1500us"]);
        let rates = [400 * G, 12_500 * M, 8].map(|bits| Bandwidth(bits).to_string());
        assert_eq!(rates, ["50GB/s", "12500Mb/s", "1B/s"]);
        assert_eq!(Bandwidth(12).bytes_per_sec(), 1.5);
    }

    #[test]
    fn wire_time_rounds_up() {
        let link = Bandwidth::from_gbit_per_sec(400);
        assert_eq!(link.time_of(4096), Some(Picos(81_920)));
        assert_eq!(Bandwidth::from_bits_per_sec(3).time_of(1), Some(Picos(2_666_666_666_667)));
        assert_eq!(Bandwidth::from_bits_per_sec(0).time_of(1), None);
    }

    proptest! {
        #[test]
        fn printed_values_parse_back(value: u64, shift in 0_u32..64) {
            let value = value >> shift;
            for value in [value, value - value % 1000, value & !1023] {
                prop_assert_eq!(ByteSize(value).to_string().parse(), Ok(ByteSize(value)));
                prop_assert_eq!(Picos(value).to_string().parse(), Ok(Picos(value)));
                let json = serde_json::to_string(&Bandwidth(value)).unwrap();
                prop_assert_eq!(serde_json::from_str::<Bandwidth>(&json).unwrap(), Bandwidth(value));
            }
        }

        #[test]
        fn any_text_is_safe(text in ".{0,40}", number in "[0-9.]{0,30}", unit in "[a-zA-Z/]{0,4}") {
            for text in [text, format!("{number}{unit}")] {
                let _ = text.parse::<Bandwidth>();
                let _ = text.parse::<Picos>();
                let _ = text.parse::<ByteSize>();
            }
        }
    }
}
