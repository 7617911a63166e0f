//! Parsed lines held against the schema.
//!
//! Where the columns of a batch agree with the schema and among themselves, and no limit is met, all of it is taken as
//! it is. Else its lines are looked at one by one, in their order: a line is taken if each of its columns is as the
//! schema has it, or new; so the first line that is taken decides what a new column is.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use super::batch::{Batch, FieldColumn, SeriesKey, TableBatch, Values};
use super::catalog::{Catalog, Column, Columns, Tables, column_bytes, table_bytes};
use super::column::{ParsedTable, too_many_columns};
use super::limits::{
    MAX_CATALOG_BYTES, MAX_COLUMNS, MAX_DATABASES, MAX_TABLES, ROLLUP_SUFFIXES, ROLLUP_TAILS,
    check_database_name, told,
};
use super::parse::{LineError, Parsed, write};

/// What was taken of a write. If no line was good, there is an empty batch and only errors.
#[derive(Clone, Debug, PartialEq)]
pub struct Admitted<'a> {
    /// The taken lines by column, for the store.
    pub batch: Batch,
    /// The taken lines as text, each with its time in nanoseconds and a newline at its end, without comments and
    /// empty lines: for the journal and for servers. The body itself where that is so already. [`parse`](super::parse)
    /// and [`Catalog::admit`], with this catalogue as it is then, give the same batch for it again.
    pub text: Cow<'a, str>,
    /// The refused lines, by number; at most [`MAX_TOLD_ERRORS`](super::limits::MAX_TOLD_ERRORS).
    pub errors: Vec<LineError>,
    /// How many more lines were refused.
    pub untold_errors: u32,
    /// Whether the catalogue has grown, and has to be written with the lines.
    pub schema_changed: bool,
}

/// Why nothing of a write was taken. The catalogue is as it was before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// There is no line in it, good or bad.
    Empty,
    /// The database cannot be called so; what is wrong with the name.
    DatabaseName(String),
    /// It would be one database too many.
    TooManyDatabases,
    /// All or nothing was asked for, and these lines are bad: at least one, by number.
    Lines {
        /// At most [`MAX_TOLD_ERRORS`](super::limits::MAX_TOLD_ERRORS).
        errors: Vec<LineError>,
        /// How many more there are.
        untold: u32,
    },
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // InfluxDB 3's own words.
            Self::Empty => f.write_str("incoming write was empty"),
            Self::DatabaseName(why) => f.write_str(why),
            Self::TooManyDatabases => {
                write!(f, "there are {MAX_DATABASES} databases, and no more can be made")
            }
            Self::Lines { errors, untold } => {
                let count = errors.len() as u64 + u64::from(*untold);
                write!(f, "{count} lines are bad")?;
                match errors.first() {
                    Some(first) => write!(f, ", first line {}: {}", first.line_number, first.message),
                    None => Ok(()),
                }
            }
        }
    }
}

impl std::error::Error for Refused {}

impl Catalog {
    /// Takes the lines of a write to a database that agree with the schema, in their order. What is taken changes the
    /// schema: databases, tables and columns are made on the way. With `partial` the good lines are taken and the
    /// others told; without it all are taken or none.
    ///
    /// Whoever writes the catalogue down must do so also after a write that could not be written, for what it has made
    /// stays.
    ///
    /// # Errors
    /// [`Refused`]; the catalogue is then as it was.
    pub fn admit<'a>(
        &mut self,
        database: &str,
        parsed: Parsed<'a>,
        partial: bool,
    ) -> Result<Admitted<'a>, Refused> {
        check_database_name(database).map_err(Refused::DatabaseName)?;
        if parsed.is_empty() {
            return Err(Refused::Empty);
        }
        let known = self.databases.get(database);
        if known.is_none() && self.databases.len() >= MAX_DATABASES {
            return Err(Refused::TooManyDatabases);
        }
        let (admitted, news) =
            match news_of(known, &parsed.tables).filter(|it| bytes(known, it) <= self.room()) {
                Some(news) => (whole(parsed), news),
                None => line_by_line(database, known, parsed, self.room()),
            };
        if !partial && !admitted.errors.is_empty() {
            return Err(Refused::Lines { errors: admitted.errors, untold: admitted.untold_errors });
        }
        let schema_changed = admitted.batch.lines > 0 && (known.is_none() || !news.is_empty());
        if schema_changed {
            self.databases.entry(database.to_owned()).or_default();
            for (table, columns) in &news {
                self.add(database, table, columns.iter().map(|(name, column)| (name.as_str(), *column)));
            }
        }
        Ok(Admitted { schema_changed, ..admitted })
    }
}

/// What all the tables together add to the schema; `None` if a line of them disagrees with it or goes over a limit.
fn news_of(known: Option<&Tables>, tables: &[ParsedTable]) -> Option<Tables> {
    let mut news = Tables::new();
    for table in tables {
        if table.disagrees {
            return None;
        }
        if is_rollup(known, tables, table) {
            return None;
        }
        let known = known.and_then(|known| known.get(&table.batch.table));
        let mut new_columns = Columns::new();
        for (name, column) in table.columns() {
            match known.and_then(|known| known.get(name)) {
                Some(known) if *known == column => {}
                Some(_) => return None,
                // Its lines' order tells.
                None if column == Column::Tag && may_be_rolled(name, known, table) => return None,
                None => {
                    new_columns.insert(name.to_owned(), column);
                }
            }
        }
        if known.map_or(0, Columns::len) + new_columns.len() > MAX_COLUMNS {
            return None;
        }
        if known.is_none() || !new_columns.is_empty() {
            news.insert(table.batch.table.clone(), new_columns);
        }
    }
    let new_tables = news.keys().filter(|name| known.is_none_or(|known| !known.contains_key(*name))).count();
    (known.map_or(0, Tables::len) + new_tables <= MAX_TABLES).then_some(news)
}

/// What these take in the catalogue.
fn bytes(known: Option<&Tables>, news: &Tables) -> usize {
    let is_new = |table: &str| known.is_none_or(|known| !known.contains_key(table));
    let tables = news.keys().filter(|table| is_new(table)).map(|table| table_bytes(table));
    let columns = news.values().flatten().map(|(name, column)| column_bytes(name, *column));
    tables.chain(columns).sum()
}

/// Whether a new table has the name of another one's roll-ups, which the store makes. (A table of such a name that is
/// there already stays: then the other one has no roll-ups.)
fn is_rollup(known: Option<&Tables>, tables: &[ParsedTable], table: &ParsedTable) -> bool {
    let exists = |name: &str| known.is_some_and(|known| known.contains_key(name));
    let name = &table.batch.table;
    let raw = ROLLUP_SUFFIXES.iter().find_map(|suffix| name.strip_suffix(suffix));
    raw.is_some_and(|raw| !exists(name) && (exists(raw) || tables.iter().any(|it| it.batch.table == raw)))
}

/// The name of the field whose roll-ups have a column of this name, if there is such a field.
fn rolled(name: &str) -> Option<&str> {
    ROLLUP_TAILS.iter().find_map(|tail| name.strip_suffix(tail))
}

/// Whether a new tag has the name of a column in the roll-ups of a field, in the schema or in these lines.
fn may_be_rolled(name: &str, known: Option<&Columns>, table: &ParsedTable) -> bool {
    let is_known = |field| known.is_some_and(|it| matches!(it.get(field), Some(Column::Field(_))));
    rolled(name).is_some_and(|it| is_known(it) || table.batch.fields.iter().any(|field| field.name == it))
}

/// Everything is taken.
fn whole(parsed: Parsed<'_>) -> Admitted<'_> {
    Admitted {
        batch: batch(parsed.tables.into_iter().map(|table| table.batch).collect()),
        text: parsed.text,
        errors: parsed.errors.told,
        untold_errors: parsed.errors.untold,
        schema_changed: false,
    }
}

pub(super) fn batch(tables: Vec<TableBatch>) -> Batch {
    let lines = tables.iter().map(|table| table.rows.len() as u32).sum();
    let earliest = tables.iter().filter_map(|table| table.times.iter().min()).min();
    let latest = tables.iter().filter_map(|table| table.times.iter().max()).max();
    Batch { span: earliest.copied().zip(latest.copied()), lines, tables }
}

/// Takes the lines that agree with the schema, one by one. Tells also what they add to it: at most `room` bytes.
fn line_by_line<'a>(
    database: &str,
    known: Option<&Tables>,
    parsed: Parsed<'a>,
    mut room: usize,
) -> (Admitted<'a>, Tables) {
    let mut errors = parsed.errors;
    let mut table_count = known.map_or(0, Tables::len);
    let mut judges: Vec<Judge<'_>> = parsed
        .tables
        .iter()
        .map(|table| {
            let columns = known.and_then(|known| known.get(&table.batch.table));
            Judge::new(table, columns, is_rollup(known, &parsed.tables, table))
        })
        .collect();
    let mut lines = Vec::new();
    for line in &parsed.lines {
        let Some(judge) = judges.get_mut(line.table as usize) else { continue };
        let verdict = if judge.is_rollup {
            let table = told(&judge.table.batch.table);
            Err(format!(
                "table '{table}' is made by kvmetry, as the roll-ups of another one: write to that one"
            ))
        } else if !judge.exists && table_count >= MAX_TABLES {
            Err(format!("the database '{database}' cannot have more than {MAX_TABLES} tables"))
        } else {
            judge.judge(line.row as usize, room)
        };
        match verdict {
            Ok(taken) => {
                room -= taken;
                table_count += usize::from(!std::mem::replace(&mut judge.exists, true));
                lines.push(line);
            }
            Err(message) => errors.push(line.number, line.text, message),
        }
    }
    errors.told.sort_unstable_by_key(|error| error.line_number);
    let text = Cow::Owned(write(lines.iter().copied(), &parsed.tables));
    let mut news = Tables::new();
    let mut masks = Vec::new();
    for judge in judges {
        let columns = judge.news();
        if judge.exists && (!judge.was_known || !columns.is_empty()) {
            news.insert(judge.table.batch.table.clone(), columns);
        }
        masks.push(judge.taken);
    }
    let tables = parsed.tables.into_iter().zip(masks).filter_map(|(table, taken)| keep(table.batch, &taken));
    let admitted = Admitted {
        batch: batch(tables.collect()),
        text,
        errors: errors.told,
        untold_errors: errors.untold,
        schema_changed: false,
    };
    (admitted, news)
}

/// Judges the rows of one table.
struct Judge<'t> {
    table: &'t ParsedTable,
    /// See [`is_rollup`].
    is_rollup: bool,
    /// Whether the schema had the table before.
    was_known: bool,
    /// Whether it has it by now.
    exists: bool,
    /// How many columns the table has by now.
    column_count: usize,
    names: Vec<Name<'t>>,
    /// For each field its place in `names`.
    fields: Vec<usize>,
    /// For each series the places of its tags.
    series: Vec<Vec<usize>>,
    /// For each row whether it is taken.
    taken: Vec<bool>,
}

/// A name that occurs in the lines of a table, as a tag, a field, or both.
struct Name<'t> {
    name: &'t str,
    /// What it is, as far as that is known.
    column: Option<Column>,
    was_known: bool,
    /// The place of the field in whose roll-ups a column has this name.
    rolled: Option<usize>,
}

impl<'t> Judge<'t> {
    fn new(table: &'t ParsedTable, known: Option<&Columns>, is_rollup: bool) -> Self {
        let mut places = HashMap::new();
        let mut names = Vec::new();
        let mut place_of = |name: &'t str| {
            *places.entry(name).or_insert_with(|| {
                let column = known.and_then(|known| known.get(name)).copied();
                names.push(Name { name, column, was_known: column.is_some(), rolled: None });
                names.len() - 1
            })
        };
        let fields = table.batch.fields.iter().map(|field| place_of(&field.name)).collect();
        let places_of_tags =
            |series: &'t Arc<SeriesKey>| series.tags.iter().map(|(name, _)| place_of(name)).collect();
        let series = table.batch.series.iter().map(places_of_tags).collect();
        // Fields that only the schema has come behind the others.
        for place in 0..names.len() {
            let Some(field) = rolled(names[place].name) else { continue };
            let column = known.and_then(|known| known.get(field)).copied();
            names[place].rolled = places.get(field).copied().or_else(|| {
                names.push(Name { name: field, column: Some(column?), was_known: true, rolled: None });
                Some(names.len() - 1)
            });
        }
        Self {
            table,
            is_rollup,
            was_known: known.is_some(),
            exists: known.is_some(),
            column_count: known.map_or(0, Columns::len),
            names,
            fields,
            series,
            taken: vec![false; table.batch.rows.len()],
        }
    }

    /// Takes a row, or says what is wrong with it. Tells how much of the catalogue's `room` it takes.
    fn judge(&mut self, row: usize, room: usize) -> Result<usize, String> {
        let batch = &self.table.batch;
        let series = batch.rows.get(row).and_then(|series| self.series.get(*series as usize));
        let tags = series.into_iter().flatten().map(|place| (*place, Column::Tag));
        let fields = batch.fields.iter().zip(&self.fields).filter(|(field, _)| field.has(row));
        let fields = fields.map(|(field, place)| (*place, Column::Field(field.values.field_type())));
        let mut new = Vec::new();
        for (place, got) in tags.chain(fields) {
            let name = &self.names[place];
            match name.column {
                Some(expected) if expected == got => {}
                Some(expected) => {
                    // InfluxDB 3's own words.
                    return Err(format!(
                        "invalid column type for column '{}', expected {expected}, got {got}",
                        told(name.name)
                    ));
                }
                None => {
                    let field = name.rolled.map(|it| &self.names[it]);
                    if got == Column::Tag
                        && let Some(field) = field.filter(|it| matches!(it.column, Some(Column::Field(_))))
                    {
                        return Err(taken_by_rollup(name.name, field.name));
                    }
                    new.push((place, got));
                }
            }
        }
        // Both come with this row.
        let is_new_field =
            |it: usize| new.iter().any(|&(place, got)| place == it && matches!(got, Column::Field(_)));
        for &(place, _) in new.iter().filter(|(_, got)| *got == Column::Tag) {
            let name = &self.names[place];
            if let Some(field) = name.rolled.filter(|&it| is_new_field(it)) {
                return Err(taken_by_rollup(name.name, self.names[field].name));
            }
        }
        if self.column_count + new.len() > MAX_COLUMNS {
            return Err(too_many_columns(&batch.table));
        }
        let mut bytes: usize =
            new.iter().map(|(place, column)| column_bytes(self.names[*place].name, *column)).sum();
        if !self.exists {
            bytes += table_bytes(&batch.table);
        }
        if bytes > room {
            return Err(format!(
                "no room for a new table or column: those of all databases may take {MAX_CATALOG_BYTES} bytes with \
                 their names, and do"
            ));
        }
        self.column_count += new.len();
        for (place, column) in new {
            self.names[place].column = Some(column);
        }
        self.taken[row] = true;
        Ok(bytes)
    }

    /// The columns that the taken rows add to the schema.
    fn news(&self) -> Columns {
        let new = self.names.iter().filter(|name| !name.was_known);
        new.filter_map(|name| Some((name.name.to_owned(), name.column?))).collect()
    }
}

fn taken_by_rollup(tag: &str, field: &str) -> String {
    format!(
        "the tag name '{}' is taken: the roll-ups of field '{}' have a column of that name",
        told(tag),
        told(field)
    )
}

/// The rows that are taken; `None` if there is none.
fn keep(batch: TableBatch, taken: &[bool]) -> Option<TableBatch> {
    if !taken.contains(&false) {
        return Some(batch);
    }
    let mut new_places = vec![None; batch.series.len()];
    let mut series = Vec::new();
    let mut rows = Vec::new();
    for (place, _) in batch.rows.iter().zip(taken).filter(|(_, taken)| **taken) {
        let place = *place as usize;
        let new_place = *new_places[place].get_or_insert_with(|| {
            series.push(batch.series[place].clone());
            series.len() as u32 - 1
        });
        rows.push(new_place);
    }
    if rows.is_empty() {
        return None;
    }
    let fields = batch.fields.into_iter().filter_map(|field| {
        let present = field.present.map(|present| kept(present, taken));
        if present.as_ref().is_some_and(|present| !present.contains(&true)) {
            return None;
        }
        let values = match field.values {
            Values::Float(values) => Values::Float(kept(values, taken)),
            Values::Integer(values) => Values::Integer(kept(values, taken)),
            Values::Unsigned(values) => Values::Unsigned(kept(values, taken)),
            Values::String(values) => Values::String(kept(values, taken)),
            Values::Boolean(values) => Values::Boolean(kept(values, taken)),
        };
        let present = present.filter(|present| present.contains(&false));
        Some(FieldColumn { name: field.name, values, present })
    });
    let fields = fields.collect();
    Some(TableBatch { table: batch.table, series, rows, times: kept(batch.times, taken), fields })
}

fn kept<T>(values: Vec<T>, taken: &[bool]) -> Vec<T> {
    values.into_iter().zip(taken).filter(|(_, taken)| **taken).map(|(value, _)| value).collect()
}
