//! From a body to columns, each line judged by itself.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use influxdb_line_protocol::{Error, ParsedLine, parse_lines};

use super::column::{ParsedTable, RowSeries, TableBuilder, too_many_columns};
use super::limits::{
    MAX_AHEAD_NS, MAX_COLUMNS, MAX_LINE_BYTES, MAX_TABLES, MAX_TOLD_ERRORS, TOLD_CHARS, check_table_name,
    told,
};
use super::precision::Precision;
use super::series::{KnownSeries, Remembered, SeriesIndex, SeriesMemory, plain_text, series_key, stub};
use super::split::{Pieces, series_end};

/// Why a line was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LineError {
    /// Which line, from 1, where only lines that are neither empty nor comments count.
    pub line_number: u32,
    /// What is wrong.
    pub message: String,
    /// Its first [`TOLD_CHARS`] characters.
    pub original: String,
}

/// A body that is not UTF-8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotUtf8 {
    /// The first byte that is wrong.
    pub offset: usize,
}

impl fmt::Display for NotUtf8 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the body is not UTF-8 from byte {} on", self.offset)
    }
}

impl std::error::Error for NotUtf8 {}

/// A body as text.
///
/// # Errors
/// Where it ceases to be UTF-8.
pub fn text(body: &[u8]) -> Result<&str, NotUtf8> {
    std::str::from_utf8(body).map_err(|e| NotUtf8 { offset: e.valid_up_to() })
}

/// A body that was read: its good lines by table and column, and what is wrong with the others. For
/// [`Catalog::admit`](super::Catalog::admit).
#[derive(Clone, Debug, PartialEq)]
pub struct Parsed<'a> {
    pub(crate) tables: Vec<ParsedTable>,
    /// The good lines.
    pub(crate) lines: Vec<Line<'a>>,
    /// The good lines as text, each with its time in ns and a newline.
    pub(crate) text: Cow<'a, str>,
    pub(crate) errors: Errors,
}

impl Parsed<'_> {
    /// The good lines, without holding them against a schema, and how many lines are bad: for lines that were accepted
    /// once.
    pub fn into_batch(self) -> (super::Batch, u32) {
        let bad = self.errors.told.len() as u32 + self.errors.untold;
        (super::admit::batch(self.tables.into_iter().map(|table| table.batch).collect()), bad)
    }

    /// Whether the body had no line, good or bad.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty() && self.errors.is_empty()
    }
}

/// A good line.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Line<'a> {
    pub(crate) number: u32,
    pub(crate) table: u32,
    pub(crate) row: u32,
    /// Whether it had a time.
    pub(crate) is_timed: bool,
    /// Without leading blanks and the newline.
    pub(crate) text: &'a str,
}

/// Refused lines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Errors {
    pub(crate) told: Vec<LineError>,
    /// How many more there are.
    pub(crate) untold: u32,
}

impl Errors {
    pub(crate) fn is_empty(&self) -> bool {
        self.told.is_empty() && self.untold == 0
    }

    pub(crate) fn push(&mut self, line_number: u32, text: &str, message: String) {
        if self.told.len() < MAX_TOLD_ERRORS {
            let original = text.chars().take(TOLD_CHARS).collect();
            self.told.push(LineError { line_number, message, original });
        } else {
            self.untold += 1;
        }
    }
}

/// Reads a body, each line by itself; a line without a time is of `now_ns`, nanoseconds since 1970.
///
/// Times more than a day after `now_ns` are refused. With `now_ns` = `i64::MAX` none is: so entries of the journal are
/// read again, in [`Precision::Nanosecond`].
///
/// Costs no allocation a line or field beyond what the parser costs and what string fields hold.
pub fn parse(body: &str, precision: Precision, now_ns: i64) -> Parsed<'_> {
    parse_again(body, precision, now_ns, None)
}

/// [`parse`] for who writes the same series again and again, in whose `memory` they are: that takes half of the time.
pub fn parse_again<'a>(
    body: &'a str,
    precision: Precision,
    now_ns: i64,
    memory: Option<&mut SeriesMemory>,
) -> Parsed<'a> {
    let mut parser = Parser {
        memory,
        precision,
        now_ns,
        latest_ns: now_ns.saturating_add(MAX_AHEAD_NS),
        tables: Vec::new(),
        table_by_name: HashMap::new(),
        series: SeriesIndex::new(body.len()),
        cells: 0,
    };
    let mut lines = Vec::new();
    let mut errors = Errors::default();
    let mut number = 0_u32;
    let mut is_verbatim = true;
    for piece in Pieces::new(body) {
        let Some(text) = piece.line else {
            is_verbatim = false;
            continue;
        };
        number = number.saturating_add(1);
        let read = match piece.is_open {
            true => Err("the text of a field does not end".to_owned()),
            false => parser.line(text),
        };
        match read {
            Ok(good) => {
                is_verbatim &= piece.is_whole && good.is_in_ns;
                let Good { table, row, is_timed, .. } = good;
                lines.push(Line { number, table, row, is_timed, text });
            }
            Err(message) => {
                is_verbatim = false;
                errors.push(number, text, message);
            }
        }
    }
    let tables: Vec<ParsedTable> = parser.tables.into_iter().map(TableBuilder::finish).collect();
    let text = if is_verbatim { Cow::Borrowed(body) } else { Cow::Owned(write(&lines, &tables)) };
    Parsed { tables, lines, text, errors }
}

/// The text of lines, each with its time in ns and a newline.
pub(crate) fn write<'l>(lines: impl IntoIterator<Item = &'l Line<'l>>, tables: &[ParsedTable]) -> String {
    let mut out = String::new();
    let mut number = itoa::Buffer::new();
    for line in lines {
        let untimed = if line.is_timed {
            let text = line.text.trim_end_matches(' ');
            text.trim_end_matches(|c: char| c.is_ascii_digit() || c == '-').trim_end_matches(' ')
        } else {
            line.text
        };
        let time = tables.get(line.table as usize).and_then(|table| table.batch.times.get(line.row as usize));
        out.push_str(untimed);
        out.push(' ');
        out.push_str(number.format(time.copied().unwrap_or_default()));
        out.push('\n');
    }
    out
}

struct Parser<'a, 'm> {
    memory: Option<&'m mut SeriesMemory>,
    precision: Precision,
    now_ns: i64,
    latest_ns: i64,
    tables: Vec<TableBuilder<'a>>,
    table_by_name: HashMap<String, u32>,
    series: SeriesIndex<'a>,
    /// Places for values in all tables.
    cells: usize,
}

/// A space and a time in ns, bytes.
const MAX_TIME_BYTES: usize = 21;

/// Where a good line went.
struct Good {
    table: u32,
    row: u32,
    is_timed: bool,
    /// Whether its time stands there in ns.
    is_in_ns: bool,
}

impl<'a> Parser<'a, '_> {
    fn line(&mut self, text: &'a str) -> Result<Good, String> {
        // A time in ns may be longer than the one that stands there; what was accepted is taken again with it.
        let limit = if self.now_ns == i64::MAX { MAX_LINE_BYTES + MAX_TIME_BYTES } else { MAX_LINE_BYTES };
        if text.len() > limit {
            return Err(format!("the line is longer than {MAX_LINE_BYTES} bytes"));
        }
        if let Some(at) = self.series.expected(text) {
            return self.line_of_known(at, text);
        }
        let series_text = text.get(..series_end(text)).unwrap_or(text);
        if let Some(at) = self.series.find(series_text) {
            return self.line_of_known(at, text);
        }
        match self.memory.as_mut().and_then(|memory| memory.find(series_text)) {
            Some(known) => self.line_of_remembered(known, series_text, text),
            None => self.line_of_new(series_text, text),
        }
    }

    /// A line whose measurement and tags a good line had before.
    fn line_of_known(&mut self, at: usize, text: &'a str) -> Result<Good, String> {
        let known = &self.series[at];
        let mut line = read(stub(known.text, text), text)?;
        let (table, mut first_column) = (known.table, known.first_column);
        let series = RowSeries::Known(known.place);
        let (good, _) = self.add(table, series, &mut line, &mut first_column)?;
        self.series.follow(at, first_column);
        Ok(good)
    }

    fn line_of_new(&mut self, series_text: &'a str, text: &'a str) -> Result<Good, String> {
        let mut line = read(text, text)?;
        let tags = line.series.tag_set.as_deref().unwrap_or_default();
        if tags.len() > MAX_COLUMNS {
            return Err(too_many_columns(&line.series.measurement));
        }
        let key = series_key(tags)?;
        let plain = plain_text(series_text, &line, &key);
        let same = plain.as_ref().and_then(|plain| self.series.find(plain)).map(|same| &self.series[same]);
        let (table, series, mut first_column) = match same {
            Some(same) => (same.table, RowSeries::Known(same.place), same.first_column),
            None => {
                let key = Arc::new(key);
                if let (Some(memory), None) = (&mut self.memory, &plain) {
                    memory.add(series_text, &line.series.measurement, &key);
                }
                (self.find_or_add_table(&line.series.measurement)?, RowSeries::New(key), 0)
            }
        };
        self.add_first(series_text, plain, table, series, &mut line, &mut first_column)
    }

    /// A line whose measurement and tags an earlier body had, and no good line of this one.
    fn line_of_remembered(
        &mut self,
        known: Remembered,
        series_text: &'a str,
        text: &'a str,
    ) -> Result<Good, String> {
        let mut line = read(stub(series_text, text), text)?;
        let table = self.find_or_add_table(&known.table)?;
        self.add_first(series_text, None, table, RowSeries::New(known.key), &mut line, &mut 0)
    }

    /// Adds a line whose measurement and tags no good line of this body had in this spelling.
    fn add_first(
        &mut self,
        series_text: &'a str,
        plain: Option<String>,
        table: u32,
        series: RowSeries,
        line: &mut ParsedLine<'a>,
        first_column: &mut usize,
    ) -> Result<Good, String> {
        match self.add(table, series, line, first_column) {
            Ok((good, place)) => {
                let known =
                    KnownSeries { text: series_text, table, place, first_column: *first_column, next: 0 };
                self.series.add(known, plain);
                Ok(good)
            }
            Err(message) => {
                self.drop_empty_table();
                Err(message)
            }
        }
    }

    /// Adds a line to its table. Tells its series' place, too.
    fn add(
        &mut self,
        table: u32,
        series: RowSeries,
        line: &mut ParsedLine<'a>,
        first_column: &mut usize,
    ) -> Result<(Good, u32), String> {
        let time = self.time(line.timestamp)?;
        let builder = &mut self.tables[table as usize];
        let row = builder.rows() as u32;
        let cells_elsewhere = self.cells - builder.cells();
        let added = builder.add(series, &mut line.field_set, time, first_column, cells_elsewhere);
        self.cells = cells_elsewhere + builder.cells();
        let is_in_ns = line.timestamp == Some(time);
        added.map(|place| (Good { table, row, is_timed: line.timestamp.is_some(), is_in_ns }, place))
    }

    /// The time of a line in ns.
    fn time(&self, timestamp: Option<i64>) -> Result<i64, String> {
        let Some(timestamp) = timestamp else { return Ok(self.now_ns) };
        let time = self.precision.nanoseconds(timestamp).ok_or_else(|| {
            format!(
                "the timestamp {timestamp} is out of range (years 1677 to 2262); its unit is taken for {}",
                self.precision
            )
        })?;
        if time > self.latest_ns {
            return Err(format!(
                "the timestamp {timestamp} is more than a day ahead of this server's clock; its unit is taken for {}",
                self.precision
            ));
        }
        Ok(time)
    }

    fn find_or_add_table(&mut self, name: &str) -> Result<u32, String> {
        if let Some(table) = self.table_by_name.get(name) {
            return Ok(*table);
        }
        check_table_name(name)?;
        if self.tables.len() >= MAX_TABLES {
            return Err(format!("a database cannot have more than {MAX_TABLES} tables"));
        }
        let table = self.tables.len() as u32;
        self.tables.push(TableBuilder::new(name));
        self.table_by_name.insert(name.to_owned(), table);
        Ok(table)
    }

    /// Removes the newest table if its first line turned out to be bad.
    fn drop_empty_table(&mut self) {
        if let Some(table) = self.tables.pop_if(|table| table.rows() == 0) {
            self.table_by_name.remove(table.name());
        }
    }
}

/// Reads a line, or what stands for it; `whole` is what an error tells of.
fn read<'a>(line: &'a str, whole: &str) -> Result<ParsedLine<'a>, String> {
    match parse_lines(line).next() {
        Some(Ok(line)) => Ok(line),
        Some(Err(error)) => Err(describe(&error, whole)),
        None => Err("the line is empty".to_owned()),
    }
}

/// Says what the parser found wrong with a line, in words that point at the place.
fn describe(error: &Error, line: &str) -> String {
    if line.ends_with('\r') {
        return "the line ends with CR LF; lines end with LF alone".to_owned();
    }
    let found = |text: &str| format!("'{}'", told(text));
    let (series, fields) = line.split_at_checked(series_end(line)).unwrap_or((line, ""));
    match error {
        Error::MeasurementValueInvalid => "the line does not begin with the name of a measurement".to_owned(),
        Error::TagSetMalformed => {
            format!("the tags in {} are not name=value, with neither empty", found(series))
        }
        Error::FieldSetMissing if !fields.trim_start_matches(' ').is_empty() => {
            format!("no field, name=value, can be read at {}", found(fields.trim_start_matches(' ')))
        }
        Error::IntegerValueInvalid { value, .. } => format!("{} is beyond a 64-bit integer", found(value)),
        Error::UIntegerValueInvalid { value, .. } => {
            format!("{} is beyond an unsigned 64-bit integer", found(value))
        }
        Error::FloatValueInvalid { value, .. } => format!("{} is no float", found(value)),
        Error::TimestampValueInvalid { value, .. } => {
            format!("the timestamp {} is beyond a 64-bit integer", found(value))
        }
        Error::EndsWithBackslash => "a name or tag value ends with a backslash".to_owned(),
        Error::CannotParseEntireLine { trailing_content } => {
            format!("neither a field nor a timestamp can be read at {}", found(trailing_content))
        }
        Error::DuplicateTag { tag_key } => format!("the tag {} stands twice in the line", found(tag_key)),
        _ if fields.is_empty() && !series.contains('\t') => "the line has no fields".to_owned(),
        _ => format!("{} is not a measurement and tags, name=value, with a blank behind them", found(series)),
    }
}
