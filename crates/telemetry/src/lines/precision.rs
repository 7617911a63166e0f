//! In which unit the times of a body stand.

use std::fmt;
use std::str::FromStr;

/// The unit of the times in a body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// Each time tells by its size, as InfluxDB 3 judges it: up to 5·10⁹ it counts seconds, up to 5·10¹² milliseconds,
    /// up to 5·10¹⁵ microseconds, beyond that nanoseconds.
    #[default]
    Auto,
    /// Seconds since 1970.
    Second,
    /// Milliseconds since 1970.
    Millisecond,
    /// Microseconds since 1970.
    Microsecond,
    /// Nanoseconds since 1970.
    Nanosecond,
}

impl Precision {
    /// A time in nanoseconds; `None` where 64 bits do not hold it.
    pub(crate) fn nanoseconds(self, time: i64) -> Option<i64> {
        let unit = match self {
            Self::Auto => match time.unsigned_abs() / 1_000_000_000 {
                0..5 => 1_000_000_000,
                5..5_000 => 1_000_000,
                5_000..5_000_000 => 1_000,
                _ => 1,
            },
            Self::Second => 1_000_000_000,
            Self::Millisecond => 1_000_000,
            Self::Microsecond => 1_000,
            Self::Nanosecond => 1,
        };
        time.checked_mul(unit)
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "what its size tells",
            Self::Second => "seconds",
            Self::Millisecond => "milliseconds",
            Self::Microsecond => "microseconds",
            Self::Nanosecond => "nanoseconds",
        })
    }
}

/// A word that is no precision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownPrecision(String);

impl fmt::Display for UnknownPrecision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unknown precision {:?}: auto, s, ms, us or ns is expected", self.0)
    }
}

impl std::error::Error for UnknownPrecision {}

impl FromStr for Precision {
    type Err = UnknownPrecision;

    /// Takes the spellings of InfluxDB 3 (`auto`, `second`, `s`, …), of 2 (`s`, `ms`, `us`, `ns`) and of 1 (`s`, `ms`,
    /// `u`, `n`).
    ///
    /// # Errors
    /// [`UnknownPrecision`] for anything else, minutes and hours (`m`, `h` of InfluxDB 1) among them: InfluxDB 3 takes
    /// them no longer.
    fn from_str(word: &str) -> Result<Self, UnknownPrecision> {
        match word {
            "auto" => Ok(Self::Auto),
            "s" | "second" => Ok(Self::Second),
            "ms" | "millisecond" => Ok(Self::Millisecond),
            "us" | "u" | "microsecond" => Ok(Self::Microsecond),
            "ns" | "n" | "nanosecond" => Ok(Self::Nanosecond),
            _ => Err(UnknownPrecision(word.chars().take(20).collect())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_influxdb_is_known() {
        let check = |words: &str, expect: Precision| {
            for word in words.split('|') {
                assert_eq!(word.parse(), Ok(expect), "{word}");
            }
        };
        check("auto", Precision::Auto);
        check("s|second", Precision::Second);
        check("ms|millisecond", Precision::Millisecond);
        check("us|u|microsecond", Precision::Microsecond);
        check("ns|n|nanosecond", Precision::Nanosecond);
        for word in ["", "m", "h", "S", "seconds", " s"] {
            assert_eq!(word.parse::<Precision>(), Err(UnknownPrecision(word.to_owned())));
        }
    }

    #[test]
    fn a_time_tells_its_unit_by_its_size() {
        let check =
            |time: i64, expect: Option<i64>| assert_eq!(Precision::Auto.nanoseconds(time), expect, "{time}");
        check(0, Some(0));
        check(1_795_385_500, Some(1_795_385_500_000_000_000));
        check(4_999_999_999, Some(4_999_999_999_000_000_000));
        check(5_000_000_000, Some(5_000_000_000_000_000));
        check(1_795_385_500_000, Some(1_795_385_500_000_000_000));
        check(4_999_999_999_999, Some(4_999_999_999_999_000_000));
        check(5_000_000_000_000, Some(5_000_000_000_000_000));
        check(4_999_999_999_999_999, Some(4_999_999_999_999_999_000));
        check(5_000_000_000_000_000, Some(5_000_000_000_000_000));
        check(-1_795_385_500, Some(-1_795_385_500_000_000_000));
        check(i64::MAX, Some(i64::MAX));
        check(i64::MIN, Some(i64::MIN));
    }

    #[test]
    fn a_time_that_64_bits_do_not_hold_is_none() {
        assert_eq!(Precision::Second.nanoseconds(9_223_372_036), Some(9_223_372_036_000_000_000));
        assert_eq!(Precision::Second.nanoseconds(9_223_372_037), None);
        assert_eq!(Precision::Millisecond.nanoseconds(i64::MIN), None);
    }
}
