//! One point a series and time: rows sorted by tags and time, those that repeat a point merged.
//!
//! Sources give their rows series by series, in the order of tags; [`merge`] walks them side by side and holds one
//! series at a time. Where rows of one series have the same time, each field is that of the last row that has it, in
//! the journal's order ([`Rule::Fields`], as InfluxDB 3 does); or the last row counts as a whole ([`Rule::Rows`],
//! for roll-ups, which are made anew as a whole).

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, DictionaryArray, Int32Array, StringArray, UInt32Array, new_null_array,
};
use arrow::compute::{concat_batches, interleave_record_batch, partition, take, take_record_batch};
use arrow::datatypes::{Int32Type, Schema, SchemaRef, TimestampNanosecondType};
use arrow::record_batch::{RecordBatch, RecordBatchOptions};

use crate::error::{Result, StoreError};
use crate::memory::Chunk;
use crate::schema::{TIME, tag_type};

/// What becomes of rows of the same series and time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// Each field is the last one given.
    Fields,
    /// The last row counts.
    Rows,
}

/// A series' tags in the order of the schema's tag columns; absent sorts first.
pub(crate) type Key = Vec<Option<String>>;

/// Rows sorted by series.
pub(crate) trait Source {
    /// The series that [`Source::rows`] gives next; `None` at the end.
    fn key(&mut self) -> Result<Option<&Key>>;

    /// All rows of that series, in the journal's order, or by time if none is repeated.
    fn rows(&mut self) -> Result<Vec<RecordBatch>>;
}

/// Walks sources, older before newer, that all have this schema (tags, time, fields), and gives the merged rows of one
/// series after the other, sorted by time.
pub(crate) fn merge(
    schema: &SchemaRef,
    mut sources: Vec<Box<dyn Source + '_>>,
    rule: Rule,
    mut take_rows: impl FnMut(&Key, RecordBatch) -> Result<()>,
) -> Result<()> {
    loop {
        let mut least: Option<Key> = None;
        for source in &mut sources {
            if let Some(key) = source.key()?
                && least.as_ref().is_none_or(|it| key < it)
            {
                least = Some(key.clone());
            }
        }
        let Some(key) = least else { return Ok(()) };
        let mut rows = Vec::new();
        for source in &mut sources {
            if source.key()? == Some(&key) {
                rows.append(&mut source.rows()?);
            }
        }
        let rows = one_point_a_time(concat_batches(schema, &rows)?, rule)?;
        if rows.num_rows() > 0 {
            take_rows(&key, rows)?;
        }
    }
}

/// The times of rows.
pub(crate) fn times(rows: &RecordBatch) -> Result<&[i64]> {
    let column = rows.column_by_name(TIME).and_then(|it| it.as_primitive_opt::<TimestampNanosecondType>());
    let column = column.ok_or_else(|| StoreError::Internal("rows without time".to_owned()))?;
    Ok(column.values())
}

/// Sorts one series' rows by time and merges those of the same time.
fn one_point_a_time(rows: RecordBatch, rule: Rule) -> Result<RecordBatch> {
    let all = times(&rows)?;
    if all.is_sorted_by(|a, b| a < b) {
        return Ok(rows);
    }
    let mut order: Vec<u32> = (0..all.len() as u32).collect();
    order.sort_by_key(|&row| all[row as usize]);
    let mut groups: Vec<&[u32]> = order.chunk_by(|&a, &b| all[a as usize] == all[b as usize]).collect();
    groups.retain(|group| !group.is_empty());
    let last = |group: &&[u32]| group.last().copied().unwrap_or_default();
    let last_rows: UInt32Array = groups.iter().map(last).collect();
    if rule == Rule::Rows || groups.len() == order.len() {
        return Ok(take_record_batch(&rows, &last_rows)?);
    }
    let mut columns = Vec::with_capacity(rows.num_columns());
    for column in rows.columns() {
        let picked = if column.null_count() == 0 {
            take(column, &last_rows, None)?
        } else {
            let last_given = |group: &&[u32]| {
                let given = group.iter().rev().find(|&&row| column.is_valid(row as usize));
                given.copied().unwrap_or_else(|| last(group))
            };
            let given: UInt32Array = groups.iter().map(last_given).collect();
            take(column, &given, None)?
        };
        columns.push(picked);
    }
    Ok(RecordBatch::try_new(rows.schema(), columns)?)
}

/// Gives rows the columns of another schema: absent ones are null, others are left out.
pub(crate) fn adapt(rows: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    let mut columns: Vec<ArrayRef> = Vec::with_capacity(schema.fields().len());
    for field in schema.fields() {
        columns.push(match rows.column_by_name(field.name()) {
            Some(column) if column.data_type() == field.data_type() => Arc::clone(column),
            Some(column) => arrow::compute::cast(column, field.data_type())?,
            None => new_null_array(field.data_type(), rows.num_rows()),
        });
    }
    let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
    Ok(RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)?)
}

/// The tag columns of a resting schema: those before time.
pub(crate) fn tag_names(schema: &SchemaRef) -> Vec<String> {
    let tags = schema.fields().iter().filter(|it| *it.data_type() == tag_type());
    tags.map(|it| it.name().clone()).collect()
}

/// Chunks of memory as one source.
pub(crate) struct Chunks {
    schema: SchemaRef,
    /// Time and fields: the tags of a series are in its key, and putting dictionaries together costs more than making
    /// one anew.
    batches: Vec<RecordBatch>,
    /// By key, the last first; each with its rows as `(chunk, row)`, in the journal's order.
    series: Vec<(Key, Vec<(usize, usize)>)>,
}

impl Chunks {
    /// The rows of these chunks, given in the journal's order, that `keep` says yes to by their time.
    pub(crate) fn new(schema: &SchemaRef, chunks: &[Arc<Chunk>], keep: impl Fn(i64) -> bool) -> Result<Self> {
        let tags = tag_names(schema);
        let untagged = schema.fields().iter().filter(|it| !tags.contains(it.name()));
        let untagged: SchemaRef = Arc::new(Schema::new(untagged.cloned().collect::<Vec<_>>()));
        let mut places: HashMap<Key, usize> = HashMap::new();
        let mut series: Vec<(Key, Vec<(usize, usize)>)> = Vec::new();
        let mut batches = Vec::with_capacity(chunks.len());
        for (number, chunk) in chunks.iter().enumerate() {
            batches.push(adapt(&chunk.rows, &untagged)?);
            let mut of_chunk: Vec<Option<usize>> = vec![None; chunk.keys.len()];
            for (row, (&id, &time)) in chunk.series.iter().zip(times(&chunk.rows)?).enumerate() {
                if !keep(time) {
                    continue;
                }
                let place = *of_chunk[id as usize].get_or_insert_with(|| {
                    let given = &chunk.keys[id as usize].tags;
                    let value = |tag: &String| given.iter().find(|it| it.0 == *tag).map(|it| it.1.clone());
                    let key: Key = tags.iter().map(value).collect();
                    *places.entry(key.clone()).or_insert_with(|| {
                        series.push((key, Vec::new()));
                        series.len() - 1
                    })
                });
                series[place].1.push((number, row));
            }
        }
        series.sort_by(|a, b| b.0.cmp(&a.0));
        Ok(Self { schema: Arc::clone(schema), batches, series })
    }
}

impl Source for Chunks {
    fn key(&mut self) -> Result<Option<&Key>> {
        Ok(self.series.last().map(|it| &it.0))
    }

    fn rows(&mut self) -> Result<Vec<RecordBatch>> {
        let Some((key, places)) = self.series.pop() else { return Ok(Vec::new()) };
        let batches: Vec<&RecordBatch> = self.batches.iter().collect();
        let rows = interleave_record_batch(&batches, &places)?;
        let mut columns = Vec::with_capacity(self.schema.fields().len());
        for value in &key {
            columns.push(match value {
                Some(value) => {
                    let codes = Int32Array::from(vec![0; places.len()]);
                    let values = Arc::new(StringArray::from_iter_values([value]));
                    Arc::new(DictionaryArray::try_new(codes, values)?) as ArrayRef
                }
                None => new_null_array(&tag_type(), places.len()),
            });
        }
        columns.extend(rows.columns().iter().cloned());
        Ok(vec![RecordBatch::try_new(Arc::clone(&self.schema), columns)?])
    }
}

/// A sorted stream of rows, as a file gives them, as a source.
pub(crate) struct Sorted<I> {
    batches: I,
    schema: SchemaRef,
    tags: Vec<String>,
    /// Runs of the batch at hand, the last first.
    runs: Vec<(Key, RecordBatch)>,
    /// The last key that was given, to see that the order holds.
    before: Option<Key>,
}

impl<I: Iterator<Item = Result<RecordBatch>>> Sorted<I> {
    pub(crate) fn new(schema: &SchemaRef, batches: I) -> Self {
        let tags = tag_names(schema);
        Self { batches, schema: Arc::clone(schema), tags, runs: Vec::new(), before: None }
    }

    fn fill(&mut self) -> Result<()> {
        while self.runs.is_empty() {
            let Some(rows) = self.batches.next().transpose()? else { return Ok(()) };
            if rows.num_rows() == 0 {
                continue;
            }
            let rows = adapt(&rows, &self.schema)?;
            let columns: Vec<ArrayRef> = rows.columns()[..self.tags.len()].to_vec();
            let ranges = if columns.is_empty() {
                std::iter::once(0..rows.num_rows()).collect()
            } else {
                partition(&columns)?.ranges()
            };
            for range in ranges.into_iter().rev() {
                let key = columns.iter().map(|it| text_at(it, range.start)).collect();
                self.runs.push((key, rows.slice(range.start, range.end - range.start)));
            }
        }
        Ok(())
    }
}

impl<I: Iterator<Item = Result<RecordBatch>>> Source for Sorted<I> {
    fn key(&mut self) -> Result<Option<&Key>> {
        self.fill()?;
        let key = self.runs.last().map(|it| &it.0);
        if let (Some(key), Some(before)) = (key, &self.before)
            && key.cmp(before) == Ordering::Less
        {
            return Err(StoreError::Internal("a file's rows are not sorted by their tags".to_owned()));
        }
        Ok(key)
    }

    fn rows(&mut self) -> Result<Vec<RecordBatch>> {
        let Some(key) = self.key()?.cloned() else { return Ok(Vec::new()) };
        let mut rows = Vec::new();
        // A series may go on in the next batch.
        while self.key()?.is_some_and(|it| *it == key) {
            rows.extend(self.runs.pop().map(|it| it.1));
        }
        self.before = Some(key);
        Ok(rows)
    }
}

/// A tag's value.
fn text_at(column: &ArrayRef, row: usize) -> Option<String> {
    let column = column.as_dictionary_opt::<Int32Type>()?;
    let place = column.key(row)?;
    let values = column.values().as_string_opt::<i32>()?;
    (place < values.len()).then(|| values.value(place).to_owned())
}
