//! What a write may hold. Beyond a limit a line is refused with a message that names it.

/// Bytes of the name of a table, tag or field; of a table percent-encoded, as the store's directory has it
/// ([`encoded_len`]). Longer names are mistakes, and file systems end at 255.
pub const MAX_NAME_BYTES: usize = 200;

/// Bytes of a database's name, as InfluxDB 3 has it.
pub const MAX_DATABASE_NAME_BYTES: usize = 64;

/// Tags and fields of a table, as InfluxDB 3 Core has it.
pub const MAX_COLUMNS: usize = 500;

/// Tables of a database, as InfluxDB 3 Core has it.
pub const MAX_TABLES: usize = 2_000;

/// Databases. Each costs a directory a table and day, and a place in every catalogue that is written; nobody is known
/// to need more.
pub const MAX_DATABASES: usize = 1_000;

/// Bytes that all tables and columns take in the catalogue ([`Catalog::to_bytes`](super::Catalog::to_bytes)): a name and
/// a word each, so some 200,000 columns. The catalogue is written whole when it has grown, and a journal keeps at most
/// 4 MiB of it; the rest of those is for the databases, [`MAX_DATABASES`] of them with their retention. Beyond, lines
/// that need a new table or column are refused.
pub const MAX_CATALOG_BYTES: usize = (4 << 20) - (128 << 10);

/// Bytes of a line: a string field of the largest size that any server takes, with room to spare.
pub const MAX_LINE_BYTES: usize = 1024 * 1024;

/// Places for values in one batch: rows times fields, over all tables. A batch holds a place for every field in every
/// row, so that a small body could ask for much memory: a line that names 500 fields, and a million lines that have one.
/// This is three times what a body of 10 MiB can fill; with strings it is 200 MiB.
pub const MAX_CELLS: usize = 8 * 1024 * 1024;

/// Refused lines of one body that are told one by one; further ones are only counted. A body of 10 MiB can hold over a
/// million lines.
pub const MAX_TOLD_ERRORS: usize = 50_000;

/// How far ahead of the clock a time may be, ns: one day. A clock that is wrong by more would write points that hide the
/// true ones until that day comes.
pub const MAX_AHEAD_NS: i64 = 24 * 3_600 * 1_000_000_000;

/// Characters of a refused line that are told, as InfluxDB 3 has it.
pub const TOLD_CHARS: usize = 20;

/// Bytes of a name when everything but letters, digits, `_` and `-` is percent-encoded.
pub fn encoded_len(name: &str) -> usize {
    name.bytes().map(|byte| if is_plain(byte) { 1 } else { 3 }).sum()
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')
}

/// Checks a database's name by the rule of InfluxDB 3: it begins with an ASCII letter or digit and goes on with
/// letters, digits, `_` and `-`; one `/` may stand within it, between the names of a database and a retention policy of
/// InfluxDB 1. So there is no `..` and nothing that a file system or a URL takes for something else.
///
/// # Errors
/// What is wrong with it.
pub fn check_database_name(name: &str) -> Result<(), String> {
    let told = told(name);
    if name.is_empty() {
        return Err("the database name is empty".to_owned());
    }
    if name.len() > MAX_DATABASE_NAME_BYTES {
        return Err(format!("the database name '{told}' is longer than {MAX_DATABASE_NAME_BYTES} bytes"));
    }
    if !name.bytes().all(|byte| is_plain(byte) || byte == b'/') {
        return Err(format!(
            "the database name '{told}' has characters other than ASCII letters, digits, _ and -"
        ));
    }
    let mut parts = name.split('/');
    if !parts.all(|part| part.starts_with(|c: char| c.is_ascii_alphanumeric()))
        || name.matches('/').count() > 1
    {
        return Err(format!(
            "the database name '{told}' does not begin with a letter or digit, or a / stands in a place other than \
             between two names"
        ));
    }
    Ok(())
}

/// Checks the name of a table. A measurement is never empty: the parser sees to that.
pub(crate) fn check_table_name(name: &str) -> Result<(), String> {
    if encoded_len(name) > MAX_NAME_BYTES {
        return Err(format!(
            "the table name '{}' is longer than {MAX_NAME_BYTES} bytes (with 3 for each byte that is no ASCII letter, \
             digit, _ or -)",
            told(name)
        ));
    }
    check_characters("table", name)
}

/// Checks the name of a tag or a field. It is never empty: the parser sees to that.
pub(crate) fn check_column_name(kind: &str, name: &str) -> Result<(), String> {
    if name == "time" {
        return Err(format!("'time' is the column of the timestamps and cannot be a {kind}"));
    }
    if name.len() > MAX_NAME_BYTES {
        return Err(format!("the {kind} name '{}' is longer than {MAX_NAME_BYTES} bytes", told(name)));
    }
    check_characters(kind, name)
}

fn check_characters(kind: &str, name: &str) -> Result<(), String> {
    if name.contains(char::is_control) {
        return Err(format!("the {kind} name '{}' has a control character", told(name)));
    }
    Ok(())
}

/// A text as a message shows it: short, and without control characters.
pub(crate) fn told(text: &str) -> String {
    const CHARS: usize = 60;
    let mut told: String =
        text.chars().take(CHARS).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if text.chars().nth(CHARS).is_some() {
        told.push('…');
    }
    told
}

/// What stands behind the name of a table in the names of its roll-ups.
pub const ROLLUP_SUFFIXES: [&str; 2] = ["_1m", "_1h"];

/// What stands behind the name of a field in the names of its columns in roll-ups.
pub const ROLLUP_TAILS: [&str; 5] = ["_last", "_min", "_max", "_mean", "_increase"];
