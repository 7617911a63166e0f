//! A table's columns while its lines are read.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use influxdb_line_protocol::{EscapedStr, FieldSet, FieldValue};

use super::batch::{FieldColumn, FieldType, SeriesKey, TableBatch, Values};
use super::catalog::Column;
use super::limits::{MAX_CELLS, MAX_COLUMNS, check_column_name, told};

/// Names of tags of one table that a body may have: far more than a table can have, since names count here also in lines
/// that the schema will refuse, and few enough to be looked at under the lock.
const MAX_TAG_NAMES: usize = 8 * MAX_COLUMNS;

/// One table of a body: what its lines hold, by column, each line judged by itself.
///
/// Lines may disagree on a field's type: then the field has a column for each type. Only the schema can tell which of
/// them is right.
#[derive(Debug, Default)]
pub(crate) struct TableBuilder<'a> {
    name: String,
    series: Vec<Arc<SeriesKey>>,
    tag_names: BTreeSet<String>,
    rows: Vec<u32>,
    times: Vec<i64>,
    columns: Vec<ColumnBuilder<'a>>,
    /// The newest column of each name; the others follow by [`ColumnBuilder::twin`].
    by_name: HashMap<Cow<'a, str>, usize>,
    /// The columns that the row has which is being added.
    touched: Vec<usize>,
    has_twins: bool,
    /// Whether a name is a tag in one line and a field in another.
    has_mixed: bool,
}

/// A table whose lines were read.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ParsedTable {
    /// The fields may hold a name more than once, with different types.
    pub(crate) batch: TableBatch,
    /// Every tag that occurs.
    pub(crate) tag_names: Vec<String>,
    /// Whether a name occurs twice: as fields of two types, or as a tag and a field.
    pub(crate) disagrees: bool,
}

impl ParsedTable {
    /// Every column that occurs.
    pub(crate) fn columns(&self) -> impl Iterator<Item = (&str, Column)> {
        let tags = self.tag_names.iter().map(|name| (name.as_str(), Column::Tag));
        let fields = self.batch.fields.iter();
        tags.chain(fields.map(|field| (field.name.as_str(), Column::Field(field.values.field_type()))))
    }
}

#[derive(Debug)]
struct ColumnBuilder<'a> {
    name: Cow<'a, str>,
    field_type: FieldType,
    /// One a row, up to the last row that has the field.
    values: Values,
    /// As long as `values`.
    present: Option<Vec<bool>>,
    /// Another column of this name, with another type.
    twin: Option<usize>,
    has_twin: bool,
    /// The column that followed in the last line that had this one: where to look for the next field first.
    next: usize,
}

/// The series of a row.
#[derive(Debug)]
pub(crate) enum RowSeries {
    /// The place of one that the table has.
    Known(u32),
    /// One that it does not have; no tag twice.
    New(Arc<SeriesKey>),
}

impl<'a> TableBuilder<'a> {
    pub(crate) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows.len()
    }

    /// How many places for values the table has.
    pub(crate) fn cells(&self) -> usize {
        self.rows.len() * self.columns.len()
    }

    /// Adds a row, or nothing if something is wrong with it. `first` is the column in which to look for the first
    /// field; it becomes the one where that was found. `cells_elsewhere` counts towards [`MAX_CELLS`]. Tells the
    /// series' place.
    pub(crate) fn add(
        &mut self,
        series: RowSeries,
        fields: &mut FieldSet<'a>,
        time: i64,
        first: &mut usize,
        cells_elsewhere: usize,
    ) -> Result<u32, String> {
        let columns_before = self.columns.len();
        let added = self.add_parts(series, fields, first, cells_elsewhere);
        match added {
            Ok(series) => {
                self.rows.push(series);
                self.times.push(time);
            }
            Err(_) => self.take_back(columns_before),
        }
        added
    }

    /// Ends the table.
    pub(crate) fn finish(self) -> ParsedTable {
        let rows = self.rows.len();
        ParsedTable {
            batch: TableBatch {
                table: self.name,
                series: self.series,
                rows: self.rows,
                times: self.times,
                fields: self.columns.into_iter().map(|column| column.finish(rows)).collect(),
            },
            tag_names: self.tag_names.into_iter().collect(),
            disagrees: self.has_twins || self.has_mixed,
        }
    }

    fn add_parts(
        &mut self,
        series: RowSeries,
        fields: &mut FieldSet<'a>,
        first: &mut usize,
        cells_elsewhere: usize,
    ) -> Result<u32, String> {
        let tags = match &series {
            RowSeries::Known(place) => self.series.get(*place as usize).map_or(0, |key| key.tags.len()),
            RowSeries::New(key) => key.tags.len(),
        };
        self.touched.clear();
        if tags + fields.len() > MAX_COLUMNS {
            return Err(too_many_columns(&self.name));
        }
        let columns_before = self.columns.len();
        self.add_fields(fields, first)?;
        if cells_elsewhere + (self.rows.len() + 1) * self.columns.len() > MAX_CELLS {
            return Err(format!(
                "this write has too many rows and fields, {MAX_CELLS} values at most, where each field of a table \
                 counts in each of its rows: split it"
            ));
        }
        let has_new_column = self.columns.len() > columns_before;
        match series {
            RowSeries::Known(place) => {
                // Tags and fields that lines before had, and no name that is both: nothing to look at.
                if has_new_column || self.has_mixed {
                    if let Some(key) = self.series.get(place as usize) {
                        self.check_no_tag_is_field(key)?;
                    }
                    self.find_mixed(columns_before);
                }
                Ok(place)
            }
            RowSeries::New(key) => {
                // The same, where the tags have the names that those of the series before had.
                if has_new_column || self.has_mixed || !self.has_names_of_last(&key) {
                    self.check_no_tag_is_field(&key)?;
                    self.add_tag_names(&key)?;
                    self.find_mixed(columns_before);
                }
                self.series.push(key);
                Ok(self.series.len() as u32 - 1)
            }
        }
    }

    fn has_names_of_last(&self, key: &SeriesKey) -> bool {
        let names = key.tags.iter().map(|(name, _)| name);
        self.series.last().is_some_and(|last| names.eq(last.tags.iter().map(|(name, _)| name)))
    }

    fn add_fields(&mut self, fields: &mut FieldSet<'a>, first: &mut usize) -> Result<(), String> {
        let row = self.rows.len();
        let mut expected = *first;
        let mut before: Option<usize> = None;
        for (name, value) in fields.drain(..) {
            let field_type = type_of(&value);
            let at = match self.columns.get(expected) {
                Some(column)
                    if column.field_type == field_type
                        && !column.has_twin
                        && column.name == name.as_str() =>
                {
                    expected
                }
                _ => {
                    let at = self.find_or_add(name, field_type, row)?;
                    match before {
                        Some(before) => self.columns[before].next = at,
                        None => *first = at,
                    }
                    at
                }
            };
            let column = &mut self.columns[at];
            column.push(row, value)?;
            self.touched.push(at);
            expected = column.next;
            before = Some(at);
        }
        Ok(())
    }

    /// The column of a field that is not where it was expected.
    fn find_or_add(
        &mut self,
        name: EscapedStr<'a>,
        field_type: FieldType,
        row: usize,
    ) -> Result<usize, String> {
        let newest = self.by_name.get(name.as_str()).copied();
        if self.twins(newest).any(|at| self.columns[at].values.len() > row) {
            return Err(twice("field", &name));
        }
        if let Some(at) = self.twins(newest).find(|at| self.columns[*at].field_type == field_type) {
            return Ok(at);
        }
        check_column_name("field", &name)?;
        if let Some(newest) = newest {
            self.columns[newest].has_twin = true;
            self.has_twins = true;
        }
        let at = self.columns.len();
        let name = cow(name);
        self.by_name.insert(name.clone(), at);
        self.columns.push(ColumnBuilder {
            name,
            field_type,
            values: empty(field_type),
            present: None,
            twin: newest,
            has_twin: newest.is_some(),
            next: at + 1,
        });
        Ok(at)
    }

    /// The columns of one name, from its newest on.
    fn twins(&self, newest: Option<usize>) -> impl Iterator<Item = usize> {
        std::iter::successors(newest, |at| self.columns[*at].twin)
    }

    /// Checks that no tag of the row that is being added is one of its fields.
    fn check_no_tag_is_field(&self, key: &SeriesKey) -> Result<(), String> {
        let row = self.rows.len();
        let is_field = |name: &str| {
            self.twins(self.by_name.get(name).copied()).any(|at| self.columns[at].values.len() > row)
        };
        match key.tags.iter().find(|(name, _)| is_field(name)) {
            Some((name, _)) => Err(format!("'{}' is a tag and a field", told(name))),
            None => Ok(()),
        }
    }

    /// Checks and notes the names of the tags of a new series. Nothing can go wrong with its row after that.
    fn add_tag_names(&mut self, key: &SeriesKey) -> Result<(), String> {
        let names = key.tags.iter().map(|(name, _)| name);
        let new: Vec<_> = names.filter(|name| !self.tag_names.contains(*name)).collect();
        for name in &new {
            check_column_name("tag", name)?;
        }
        if self.tag_names.len() + new.len() > MAX_TAG_NAMES {
            return Err(too_many_columns(&self.name));
        }
        self.has_mixed |= new.iter().any(|name| self.by_name.contains_key(name.as_str()));
        self.tag_names.extend(new.into_iter().cloned());
        Ok(())
    }

    /// Notes whether one of the new columns is a tag of another line.
    fn find_mixed(&mut self, columns_before: usize) {
        let new = &self.columns[columns_before..];
        self.has_mixed |= new.iter().any(|column| self.tag_names.contains(&*column.name));
    }

    /// Takes back what a row left behind that was not added. Looks at the row's columns alone: there may be many
    /// others, and many bad rows.
    fn take_back(&mut self, columns_before: usize) {
        let rows = self.rows.len();
        for at in self.touched.drain(..) {
            self.columns[at].truncate(rows);
        }
        while self.columns.len() > columns_before
            && let Some(column) = self.columns.pop()
        {
            match column.twin {
                Some(twin) => self.by_name.insert(column.name, twin),
                None => self.by_name.remove(&column.name),
            };
        }
    }
}

impl<'a> ColumnBuilder<'a> {
    /// Appends the value of a row, which is of this column's type.
    fn push(&mut self, row: usize, value: FieldValue<'a>) -> Result<(), String> {
        let present = &mut self.present;
        let is_new = match (&mut self.values, value) {
            (Values::Integer(values), FieldValue::I64(value)) => put(values, present, row, value),
            (Values::Unsigned(values), FieldValue::U64(value)) => put(values, present, row, value),
            (Values::Float(_), FieldValue::F64(value)) if !value.is_finite() => {
                return Err(format!(
                    "the value of field '{}' is beyond what a float holds",
                    told(&self.name)
                ));
            }
            (Values::Float(values), FieldValue::F64(value)) => put(values, present, row, value),
            (Values::Boolean(values), FieldValue::Boolean(value)) => put(values, present, row, value),
            (Values::String(values), FieldValue::String(value)) => put(values, present, row, value.into()),
            // The caller has looked for the column of the value's type.
            (_, _) => false,
        };
        if is_new { Ok(()) } else { Err(twice("field", &self.name)) }
    }

    fn truncate(&mut self, rows: usize) {
        match &mut self.values {
            Values::Float(values) => values.truncate(rows),
            Values::Integer(values) => values.truncate(rows),
            Values::Unsigned(values) => values.truncate(rows),
            Values::String(values) => values.truncate(rows),
            Values::Boolean(values) => values.truncate(rows),
        }
        if let Some(present) = &mut self.present {
            present.truncate(rows);
        }
    }

    /// Fills it up to the table's length.
    fn finish(mut self, rows: usize) -> FieldColumn {
        let present = &mut self.present;
        match &mut self.values {
            Values::Float(values) => pad(values, present, rows),
            Values::Integer(values) => pad(values, present, rows),
            Values::Unsigned(values) => pad(values, present, rows),
            Values::String(values) => pad(values, present, rows),
            Values::Boolean(values) => pad(values, present, rows),
        }
        FieldColumn { name: self.name.into_owned(), values: self.values, present: self.present }
    }
}

/// Appends the value of a row; false if the row has one.
fn put<T: Default + Clone>(
    values: &mut Vec<T>,
    present: &mut Option<Vec<bool>>,
    row: usize,
    value: T,
) -> bool {
    if values.len() > row {
        return false;
    }
    pad(values, present, row);
    values.push(value);
    if let Some(present) = present {
        present.push(true);
    }
    true
}

/// Fills up with absent values.
fn pad<T: Default + Clone>(values: &mut Vec<T>, present: &mut Option<Vec<bool>>, rows: usize) {
    if values.len() < rows {
        present.get_or_insert_with(|| vec![true; values.len()]).resize(rows, false);
        values.resize(rows, T::default());
    }
}

fn empty(field_type: FieldType) -> Values {
    match field_type {
        FieldType::Float => Values::Float(Vec::new()),
        FieldType::Integer => Values::Integer(Vec::new()),
        FieldType::Unsigned => Values::Unsigned(Vec::new()),
        FieldType::String => Values::String(Vec::new()),
        FieldType::Boolean => Values::Boolean(Vec::new()),
    }
}

fn type_of(value: &FieldValue<'_>) -> FieldType {
    match value {
        FieldValue::F64(_) => FieldType::Float,
        FieldValue::I64(_) => FieldType::Integer,
        FieldValue::U64(_) => FieldType::Unsigned,
        FieldValue::String(_) => FieldType::String,
        FieldValue::Boolean(_) => FieldType::Boolean,
    }
}

fn cow(text: EscapedStr<'_>) -> Cow<'_, str> {
    match text {
        EscapedStr::SingleSlice(text) => Cow::Borrowed(text),
        EscapedStr::CopiedValue(text) => Cow::Owned(text),
    }
}

pub(crate) fn twice(kind: &str, name: &str) -> String {
    format!("the {kind} '{}' stands twice in the line", told(name))
}

pub(crate) fn too_many_columns(table: &str) -> String {
    format!("the table '{}' cannot have more than {MAX_COLUMNS} tags and fields", told(table))
}
