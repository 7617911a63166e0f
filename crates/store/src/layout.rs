//! Where everything is, under the store's folder.
//!
//! ```text
//! manifest.json                                     what counts: files, schema, cursor (see `manifest`)
//! <db>/<table>/day=2026-11-24/17-230.parquet        the rows of the journal's entries 17 to 230, of that day
//! <db>/<table>/day=2026-11-24/17-230.parquet.new    written, and not yet in the manifest or not yet renamed
//! ```
//!
//! `<db>` and `<table>` are the names, percent-encoded: no name from the wire can leave its folder.

use std::path::{Path, PathBuf};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// What stands unencoded in a folder's name.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_');

/// Nanoseconds of a day.
pub(crate) const DAY_NS: i64 = 86_400_000_000_000;

/// As long as [`telemetry::lines::limits::encoded_len`] says, which bounds the names of tables.
pub(crate) fn encode(name: &str) -> String {
    utf8_percent_encode(name, PLAIN).to_string()
}

/// The day (UTC) that this time is in, days since 1970.
pub(crate) fn day_of(time_ns: i64) -> i32 {
    // An i64 of nanoseconds is 106,752 days.
    time_ns.div_euclid(DAY_NS) as i32
}

pub(crate) fn day_start_ns(day: i32) -> i64 {
    i64::from(day).saturating_mul(DAY_NS)
}

/// `2026-11-24`.
pub(crate) fn day_name(day: i32) -> String {
    let (year, month, day) = civil(day);
    format!("{year:04}-{month:02}-{day:02}")
}

/// Year, month and day of a day since 1970: Howard Hinnant's `civil_from_days`.
fn civil(day: i32) -> (i64, u32, u32) {
    let shifted = i64::from(day) + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month as u32, day_of_month as u32)
}

/// The folder of a table's day.
pub(crate) fn day_dir(root: &Path, database: &str, table: &str, day: i32) -> PathBuf {
    root.join(encode(database)).join(encode(table)).join(format!("day={}", day_name(day)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_in_their_folder() {
        for (name, expect) in [
            ("vm_totals", "vm_totals"),
            ("../../etc", "%2E%2E%2F%2E%2E%2Fetc"),
            (".", "%2E"),
            ("a b", "a%20b"),
            ("ü", "%C3%BC"),
            ("x\0y", "x%00y"),
        ] {
            assert_eq!(encode(name), expect);
        }
        for byte in 0..=u8::MAX {
            let name = char::from(byte).to_string();
            assert_eq!(encode(&name).len(), telemetry::lines::limits::encoded_len(&name), "{name:?}");
        }
    }

    #[test]
    fn days_are_those_of_the_calendar() {
        for (seconds, expect) in [
            (0, "1970-01-01"),
            (-1, "1969-12-31"),
            (951_782_400, "2000-02-29"),
            (1_795_478_400, "2026-11-24"),
            (1_795_478_399, "2026-11-23"),
            (4_107_542_400, "2100-03-01"),
        ] {
            assert_eq!(day_name(day_of(seconds * 1_000_000_000)), expect);
        }
        assert_eq!(day_of(day_start_ns(20_000)), 20_000);
        assert_eq!(day_of(day_start_ns(20_000) - 1), 19_999);
    }
}
