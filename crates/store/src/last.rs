//! The newest row of each series of a table, held in memory: what `last_cache('table')` answers from.
//!
//! A table has this from the first question for it on: then it is filled from the rows of the last [`KEPT_NS`], files
//! and memory alike, and kept up by each write. Who never asks pays nothing. After [`Last::sweep`] has found twice that
//! nobody asks, it goes again.
//!
//! Rows follow the store's rules: a late one changes nothing, one of the same time adds its fields, the last given wins.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{ArrayRef, DictionaryArray, TimestampNanosecondArray};
use arrow::datatypes::{Field, Int32Type, Schema, SchemaRef};
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use telemetry::lines::{FieldColumn, SeriesKey, TableBatch, Values};

use crate::error::Result;
use crate::merge::{Rule, merge, tag_names, times};
use crate::rollup::{Value, array, value_at};
use crate::schema::{Columns, Kind, TIME, tag_type, time_type};
use crate::table::{Snapshot, Table, sources};

/// A series without a row for this long before the newest one of its table has no last value any more: as long as
/// InfluxDB 3 keeps one by default. It is also what is read of the files at the first question. A table that nobody
/// writes to any more keeps its last values.
pub(crate) const KEPT_NS: i64 = 4 * 3_600_000_000_000;
/// Series of a table: ten hypervisors of 1,000 VMs with five devices each. Beyond it, ordinary SQL has to do.
pub(crate) const MAX_SERIES: usize = 50_000;
/// Bytes of the texts of a table, for the same reason: they may be long.
const MAX_TEXT_BYTES: usize = 16 << 20;

/// What [`Table::last_rows`] found.
#[derive(Debug)]
pub(crate) enum LastRows {
    /// All of them, in no order.
    All(RecordBatch),
    /// More series than [`MAX_SERIES`], or longer texts than are held.
    TooMany,
}

/// The newest rows of a table, where somebody asks for them.
#[derive(Debug, Default)]
pub(crate) struct Last {
    newest: Option<Newest>,
    /// Held while they are filled: whoever asks meanwhile waits.
    filling: Arc<Mutex<()>>,
}

#[derive(Debug, Default)]
struct Newest {
    places: HashMap<Arc<SeriesKey>, usize>,
    /// By place, as all that follows.
    keys: Vec<Arc<SeriesKey>>,
    times: Vec<i64>,
    fields: BTreeMap<String, Vec<Option<Value>>>,
    text_bytes: usize,
    /// Whether the rows from before the first question are among them.
    is_filled: bool,
    is_too_much: bool,
    was_asked: bool,
}

impl Last {
    /// Takes new rows in, in the journal's order.
    pub(crate) fn append(&mut self, batch: &TableBatch) {
        if let Some(newest) = &mut self.newest {
            newest.append(batch);
        }
    }

    /// Forgets series that have had no row for [`KEPT_NS`] before the newest one, and all of them if nobody has asked since
    /// the last time.
    pub(crate) fn sweep(&mut self, now_ns: i64) {
        let Some(newest) = &mut self.newest else { return };
        if !std::mem::take(&mut newest.was_asked) || newest.is_too_much {
            self.newest = None;
            return;
        }
        newest.forget(newest.oldest(now_ns));
    }
}

/// The columns as InfluxDB 3 shows those of a last value cache: tags, fields, time.
pub(crate) fn schema(columns: &Columns) -> SchemaRef {
    let tags = columns.tags.iter().map(|name| Field::new(name, tag_type(), true));
    let fields = columns.fields.iter().map(|(name, kind)| Field::new(name, kind.arrow(), true));
    let time = std::iter::once(Field::new(TIME, time_type(), false));
    Arc::new(Schema::new(tags.chain(fields).chain(time).collect::<Vec<_>>()))
}

impl Table {
    /// Whether [`Table::last_rows`] has to read files first.
    pub(crate) fn must_fill_last(&self) -> bool {
        self.lock().last.newest.as_ref().is_none_or(|it| !it.is_filled && !it.is_too_much)
    }

    /// The newest row of each series, with these of the columns that [`schema`] gives. `now_ns`: rows from after it are
    /// given too, but do not make others old.
    ///
    /// # Errors
    /// A file that cannot be read just now, at the first time.
    pub(crate) fn last_rows(&self, wanted: &SchemaRef, now_ns: i64) -> Result<LastRows> {
        loop {
            // What is written meanwhile waits: for 1,000 VMs and 34 columns 3 ms, for the most series there may be 50
            // times that. The alternative is a copy of all rows at the first write after each question.
            if let Some(newest) = &mut self.lock().last.newest {
                newest.was_asked = true;
                if newest.is_too_much {
                    return Ok(LastRows::TooMany);
                }
                if newest.is_filled {
                    return newest.rows(wanted, now_ns).map(LastRows::All);
                }
            }
            // Once, unless a sweep comes between.
            self.fill_last(now_ns)?;
        }
    }

    fn fill_last(&self, now_ns: i64) -> Result<()> {
        let filling = Arc::clone(&self.lock().last.filling);
        let _one_at_a_time = filling.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.must_fill_last() {
            return Ok(());
        }
        let snapshot = {
            let mut state = self.lock();
            // From here on, what is written is taken in by itself.
            state.last.newest = Some(Newest { was_asked: true, ..Newest::default() });
            let chunks = state.memory.show()?;
            state.snapshot(chunks)
        };
        let mut before = Newest::default();
        before.read(&snapshot, now_ns)?;
        let mut state = self.lock();
        // A sweep may have come between; then it is filled again.
        if let Some(newest) = &mut state.last.newest {
            newest.put_over(before);
        }
        Ok(())
    }
}

impl Newest {
    /// The place of a series, made if it is new.
    fn place(&mut self, key: &SeriesKey) -> usize {
        if let Some(&place) = self.places.get(key) {
            return place;
        }
        let key = Arc::new(key.clone());
        let place = self.keys.len();
        self.places.insert(Arc::clone(&key), place);
        self.keys.push(key);
        self.times.push(i64::MIN);
        self.fields.values_mut().for_each(|column| column.push(None));
        place
    }

    fn append(&mut self, batch: &TableBatch) {
        if self.is_too_much {
            return;
        }
        let mut newest = vec![i64::MIN; batch.series.len()];
        for (&series, &time) in batch.rows.iter().zip(&batch.times) {
            let it = &mut newest[series as usize];
            *it = time.max(*it);
        }
        // Of each series only the rows of its newest time count; a batch may have several.
        let mut taken: Vec<(usize, usize)> = Vec::new();
        for (row, (&series, &time)) in batch.rows.iter().zip(&batch.times).enumerate() {
            if time < newest[series as usize] {
                continue;
            }
            let place = self.place(&batch.series[series as usize]);
            if self.begin(place, time) {
                taken.push((row, place));
            }
        }
        for field in &batch.fields {
            let column = column_of(&mut self.fields, &field.name, self.keys.len());
            for &(row, place) in taken.iter().filter(|it| field.has(it.0)) {
                put(column, &mut self.text_bytes, place, value_of(field, row));
            }
        }
        self.keep_within();
    }

    /// Makes a place ready for a row of this time; false if it has a newer one.
    fn begin(&mut self, place: usize, time: i64) -> bool {
        if time > self.times[place] {
            self.times[place] = time;
            for column in self.fields.values_mut() {
                put(column, &mut self.text_bytes, place, None);
            }
        }
        time == self.times[place]
    }

    /// Reads the newest rows of a snapshot.
    fn read(&mut self, snapshot: &Snapshot, now_ns: i64) -> Result<()> {
        let Some(newest) = snapshot.newest() else { return Ok(()) };
        let window = (newest.min(now_ns).saturating_sub(KEPT_NS), i64::MAX);
        let schema = snapshot.columns.resting_schema();
        let tags = tag_names(&schema);
        let pieces = snapshot.pieces(window)?;
        merge(&schema, sources(&pieces, &schema, window, &[])?, Rule::Fields, |key, rows| {
            let Some(row) = rows.num_rows().checked_sub(1).filter(|_| !self.is_too_much) else {
                return Ok(());
            };
            let given = tags.iter().zip(key);
            let given = given.filter_map(|(name, value)| Some((name.clone(), value.clone()?)));
            let place = self.place(&SeriesKey { tags: given.collect() });
            self.times[place] = times(&rows)?[row];
            for (field, column) in rows.schema().fields().iter().zip(rows.columns()).skip(tags.len() + 1) {
                let to = column_of(&mut self.fields, field.name(), self.keys.len());
                put(to, &mut self.text_bytes, place, value_at(column, row));
            }
            self.keep_within();
            Ok(())
        })
    }

    /// Puts what was written since over `before`, which was there before it.
    fn put_over(&mut self, before: Self) {
        let since = std::mem::replace(self, before);
        self.was_asked = true;
        self.is_filled = true;
        self.is_too_much |= since.is_too_much;
        for (from, (key, &time)) in since.keys.iter().zip(&since.times).enumerate() {
            let place = self.place(key);
            if !self.begin(place, time) {
                continue;
            }
            for (name, column) in &since.fields {
                let to = column_of(&mut self.fields, name, self.keys.len());
                if column[from].is_some() {
                    put(to, &mut self.text_bytes, place, column[from].clone());
                }
            }
        }
        self.keep_within();
    }

    /// Gives all up where it is more than may be held.
    fn keep_within(&mut self) {
        if self.is_too_much || self.keys.len() > MAX_SERIES || self.text_bytes > MAX_TEXT_BYTES {
            *self = Self { is_too_much: true, was_asked: true, ..Self::default() };
        }
    }

    /// Rows from before this are too old. A time ahead of the clock's makes none old.
    fn oldest(&self, now_ns: i64) -> i64 {
        let newest = self.times.iter().copied().max().unwrap_or(i64::MIN);
        newest.min(now_ns).saturating_sub(KEPT_NS)
    }

    /// Forgets series whose last row is older.
    fn forget(&mut self, oldest: i64) {
        let kept: Vec<usize> = (0..self.keys.len()).filter(|&it| self.times[it] >= oldest).collect();
        if kept.len() == self.keys.len() {
            return;
        }
        let old = std::mem::take(self);
        self.is_filled = old.is_filled;
        self.keys = kept.iter().map(|&it| Arc::clone(&old.keys[it])).collect();
        self.times = kept.iter().map(|&it| old.times[it]).collect();
        self.places = self.keys.iter().enumerate().map(|(place, key)| (Arc::clone(key), place)).collect();
        for (name, mut column) in old.fields {
            let column: Vec<Option<Value>> = kept.iter().map(|&it| column[it].take()).collect();
            self.text_bytes += column.iter().map(text_len).sum::<usize>();
            self.fields.insert(name, column);
        }
    }

    fn rows(&self, wanted: &SchemaRef, now_ns: i64) -> Result<RecordBatch> {
        let oldest = self.oldest(now_ns);
        let rows: Vec<usize> = (0..self.keys.len()).filter(|&it| self.times[it] >= oldest).collect();
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(wanted.fields().len());
        for field in wanted.fields() {
            let name = field.name();
            columns.push(if name == TIME {
                let times = rows.iter().map(|&it| self.times[it]);
                Arc::new(TimestampNanosecondArray::from_iter_values(times))
            } else if *field.data_type() == tag_type() {
                let value = |&it: &usize| {
                    let tags = &self.keys[it].tags;
                    tags.iter().find(|it| it.0 == *name).map(|it| it.1.as_str())
                };
                Arc::new(rows.iter().map(value).collect::<DictionaryArray<Int32Type>>())
            } else {
                let column = self.fields.get(name);
                let value = |&it: &usize| column.and_then(|column| column[it].clone());
                array(rows.iter().map(value), Kind::of(field.data_type()))
            });
        }
        let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
        Ok(RecordBatch::try_new_with_options(Arc::clone(wanted), columns, &options)?)
    }
}

fn column_of<'a>(
    fields: &'a mut BTreeMap<String, Vec<Option<Value>>>,
    name: &str,
    len: usize,
) -> &'a mut Vec<Option<Value>> {
    if !fields.contains_key(name) {
        fields.insert(name.to_owned(), vec![None; len]);
    }
    fields.entry(name.to_owned()).or_default()
}

fn put(column: &mut [Option<Value>], text_bytes: &mut usize, place: usize, value: Option<Value>) {
    *text_bytes += text_len(&value);
    *text_bytes -= text_len(&column[place]);
    column[place] = value;
}

fn text_len(value: &Option<Value>) -> usize {
    match value {
        Some(Value::Text(text)) => text.len(),
        _ => 0,
    }
}

fn value_of(field: &FieldColumn, row: usize) -> Option<Value> {
    Some(match &field.values {
        Values::Float(it) => Value::Float(it[row]),
        Values::Integer(it) => Value::Integer(it[row]),
        Values::Unsigned(it) => Value::Unsigned(it[row]),
        Values::String(it) => Value::Text(it[row].as_str().into()),
        Values::Boolean(it) => Value::Boolean(it[row]),
    })
}
