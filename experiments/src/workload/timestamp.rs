//! Calendar time stamps as the Azure traces write them.
//!
//! 2023: `2023-11-16 18:17:03.9799600` (100 ns); 2024: `2024-05-10 00:00:00.009930+00:00`, without the
//! fraction on a whole second.

/// What a right time stamp looks like.
pub(crate) const EXPECTED: &str = "a time stamp such as 2023-11-16 18:17:03.9799600";

/// Picoseconds since 1970-01-01 00:00 UTC (of the stamp's own clock where it names no zone).
pub(crate) fn parse(text: &str) -> Option<i128> {
    let bytes = text.as_bytes();
    if bytes.len() < 19 || !text.is_ascii() {
        return None;
    }
    let punctuation = bytes[4] == b'-'
        && bytes[7] == b'-'
        && matches!(bytes[10], b' ' | b'T')
        && bytes[13] == b':'
        && bytes[16] == b':';
    if !punctuation {
        return None;
    }
    let year = number(&bytes[0..4])?;
    let month = number(&bytes[5..7])?;
    let day = number(&bytes[8..10])?;
    let (hour, minute, second) = (number(&bytes[11..13])?, number(&bytes[14..16])?, number(&bytes[17..19])?);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        4 | 6 | 9 | 11 => 30,
        2 if leap => 29,
        2 => 28,
        1..=12 => 31,
        _ => return None,
    };
    if !(1..=days).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let (fraction, zone) = fraction_and_zone(&bytes[19..])?;
    let seconds = days_since_1970(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second - zone;
    Some(i128::from(seconds) * 1_000_000_000_000 + i128::from(fraction))
}

fn number(digits: &[u8]) -> Option<i64> {
    digits.iter().try_fold(0_i64, |value, d| d.is_ascii_digit().then(|| value * 10 + i64::from(d - b'0')))
}

/// (picoseconds, zone offset in seconds)
fn fraction_and_zone(rest: &[u8]) -> Option<(i64, i64)> {
    let mut rest = rest;
    let mut fraction = 0;
    if let Some(after) = rest.strip_prefix(b".") {
        let digits = after.iter().take_while(|d| d.is_ascii_digit()).count();
        if !(1..=12).contains(&digits) {
            return None;
        }
        fraction = number(&after[..digits])? * 10_i64.pow(12 - digits as u32);
        rest = &after[digits..];
    }
    let zone = match rest {
        b"" | b"Z" => 0,
        [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] => {
            let (hours, minutes) = (number(&[*h1, *h2])?, number(&[*m1, *m2])?);
            let offset = hours * 3_600 + minutes * 60;
            if *sign == b'-' { -offset } else { offset }
        }
        _ => return None,
    };
    Some((fraction, zone))
}

/// Days of the proleptic Gregorian calendar, counted in eras of 400 years which start in March, so that
/// the leap day is the last of its year.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let shifted = if month <= 2 { year - 1 } else { year };
    let era = shifted.div_euclid(400);
    let year_of_era = shifted.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const S: i128 = 1_000_000_000_000;

    #[test]
    fn known_instants() {
        assert_eq!(parse("1970-01-01 00:00:00"), Some(0));
        assert_eq!(parse("2000-03-01 00:00:00"), Some(951_868_800 * S));
        assert_eq!(parse("2023-11-16 18:17:03.9799600"), Some(1_700_158_623 * S + 979_960_000_000));
        assert_eq!(parse("2024-05-10 00:00:00.009930+00:00"), Some(1_715_299_200 * S + 9_930_000_000));
        assert_eq!(parse("2024-05-10 02:00:00+02:00"), parse("2024-05-10T00:00:00Z"));
    }

    #[test]
    fn wrong_stamps() {
        for text in [
            "",
            "now",
            "2023-13-01 00:00:00",
            "2023-02-29 00:00:00",
            "2023-11-16 24:00:00",
            "2023-11-16 18:17:03.",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn days_are_consecutive(day in 0_i64..200_000) {
            // Walk by seconds: the stamp of day n is n * 86400 s.
            let (mut year, mut left) = (1970, day);
            let length = |y: i64| if y % 4 == 0 && (y % 100 != 0 || y % 400 == 0) { 366 } else { 365 };
            while left >= length(year) {
                left -= length(year);
                year += 1;
            }
            prop_assert_eq!(days_since_1970(year, 1, 1) + left, day);
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,40}") {
            let _ = parse(&text);
        }
    }
}
