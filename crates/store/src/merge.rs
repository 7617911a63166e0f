//! One point a series and time: rows sorted by tags and time, those that repeat a point merged.
//!
//! Sources give their rows series by series, in the order of tags, and each series by time, in pieces; [`merge`] walks
//! them side by side and holds one piece of each at a time. Where rows of one series have the same time, each field is that of the last row that has it, in
//! the journal's order ([`Rule::Fields`], as InfluxDB 3 does); or the last row counts as a whole ([`Rule::Rows`],
//! for roll-ups, which are made anew as a whole).

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
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

/// Rows sorted by series, then by time.
pub(crate) trait Source {
    /// The series that [`Source::rows`] gives next; `None` at the end.
    fn key(&mut self) -> Result<Option<&Key>>;

    /// The next rows of that series, sorted by time; those of the same time, in the journal's order, are all among them.
    fn rows(&mut self) -> Result<Option<RecordBatch>>;
}

/// Walks sources, older before newer, that all have this schema (tags, time, fields), and gives the merged rows of one
/// series after the other, each in pieces, by time.
pub(crate) fn merge(
    schema: &SchemaRef,
    mut sources: Vec<Box<dyn Source + '_>>,
    rule: Rule,
    mut take_rows: impl FnMut(&Key, RecordBatch) -> Result<()>,
) -> Result<()> {
    // What was read of each source and is not given yet.
    let mut heads: Vec<Option<RecordBatch>> = vec![None; sources.len()];
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
        loop {
            // Up to here all sources have been read.
            let mut through = i64::MAX;
            for (source, head) in sources.iter_mut().zip(&mut heads) {
                while head.as_ref().is_none_or(|it| it.num_rows() == 0) && source.key()? == Some(&key) {
                    *head = source.rows()?;
                }
                if source.key()? == Some(&key)
                    && let Some(head) = head
                {
                    through = times(head)?.last().map_or(through, |&last| through.min(last));
                }
            }
            let mut rows = Vec::new();
            for head in &mut heads {
                let Some(all) = head.take() else { continue };
                let count = times(&all)?.partition_point(|&time| time <= through);
                if count < all.num_rows() {
                    *head = Some(all.slice(count, all.num_rows() - count));
                }
                if count > 0 {
                    rows.push(all.slice(0, count));
                }
            }
            let rows = match rows.len() {
                0 => break,
                1 => rows.remove(0),
                _ => concat_batches(schema, &rows)?,
            };
            take_rows(&key, one_point_a_time(rows, rule)?)?;
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
    let groups: Vec<&[u32]> = order.chunk_by(|&a, &b| all[a as usize] == all[b as usize]).collect();
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

/// Gives rows the columns of another schema: absent ones are null, others are left out. A field is not taken for a tag of
/// its name: what had it before the tag came would be in no order.
pub(crate) fn adapt(rows: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    let mut columns: Vec<ArrayRef> = Vec::with_capacity(schema.fields().len());
    for field in schema.fields() {
        columns.push(match rows.column_by_name(field.name()) {
            Some(column) if column.data_type() == field.data_type() => Arc::clone(column),
            Some(column) if *field.data_type() != tag_type() => {
                arrow::compute::cast(column, field.data_type())?
            }
            _ => new_null_array(field.data_type(), rows.num_rows()),
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

/// A row's time, and the places of its chunk and in it: sorted so, rows of one time stand in the journal's order.
type Place = (i64, usize, usize);

/// Chunks of memory as one source.
pub(crate) struct Chunks {
    schema: SchemaRef,
    /// Time and fields: the tags of a series are in its key, and putting dictionaries together costs more than making
    /// one anew.
    batches: Arc<Vec<RecordBatch>>,
    /// By key, the last first.
    series: Vec<(Key, Vec<Place>)>,
}

impl Chunks {
    /// The rows of these chunks, given in the journal's order, that `keep` says yes to by their time.
    pub(crate) fn new(schema: &SchemaRef, chunks: &[Arc<Chunk>], keep: impl Fn(i64) -> bool) -> Result<Self> {
        let mut all = Self::by(schema, chunks, |time| keep(time).then_some(()))?;
        let none = Self { schema: Arc::clone(schema), batches: Arc::default(), series: Vec::new() };
        Ok(all.remove(&()).unwrap_or(none))
    }

    /// The rows of these chunks, given in the journal's order, sorted out by their time in one walk; those of no group
    /// are left out.
    pub(crate) fn by<G: Copy + Ord>(
        schema: &SchemaRef,
        chunks: &[Arc<Chunk>],
        group_of: impl Fn(i64) -> Option<G>,
    ) -> Result<BTreeMap<G, Self>> {
        let tags = tag_names(schema);
        let untagged = schema.fields().iter().filter(|it| !tags.contains(it.name()));
        let untagged: SchemaRef = Arc::new(Schema::new(untagged.cloned().collect::<Vec<_>>()));
        let batches = chunks.iter().map(|it| adapt(&it.rows, &untagged)).collect::<Result<Vec<_>>>()?;
        let batches = Arc::new(batches);
        let mut keys: HashMap<Key, usize> = HashMap::new();
        // By group, then by the place of the key.
        let mut groups: BTreeMap<G, BTreeMap<usize, Vec<Place>>> = BTreeMap::new();
        for (number, chunk) in chunks.iter().enumerate() {
            let mut of_chunk: Vec<Option<usize>> = vec![None; chunk.keys.len()];
            let mut rows: Vec<(G, usize, i64, usize)> = Vec::with_capacity(chunk.series.len());
            for (row, (&id, &time)) in chunk.series.iter().zip(times(&chunk.rows)?).enumerate() {
                let Some(group) = group_of(time) else { continue };
                let place = *of_chunk[id as usize].get_or_insert_with(|| {
                    let given = &chunk.keys[id as usize].tags;
                    let value = |tag: &String| given.iter().find(|it| it.0 == *tag).map(|it| it.1.clone());
                    let key: Key = tags.iter().map(value).collect();
                    let next = keys.len();
                    *keys.entry(key).or_insert(next)
                });
                rows.push((group, place, time, row));
            }
            // By time, so that most are in order below; of the same time the later row stays behind.
            rows.sort_unstable();
            for of_series in rows.chunk_by(|a, b| (a.0, a.1) == (b.0, b.1)) {
                let (group, place, ..) = of_series[0];
                let places = groups.entry(group).or_default().entry(place).or_default();
                places.extend(of_series.iter().map(|&(_, _, time, row)| (time, number, row)));
            }
        }
        let mut names: Vec<Key> = vec![Key::new(); keys.len()];
        keys.into_iter().for_each(|(key, place)| names[place] = key);
        let source = |(group, of_group): (G, BTreeMap<usize, Vec<Place>>)| {
            let mut series: Vec<_> =
                of_group.into_iter().map(|(place, rows)| (names[place].clone(), rows)).collect();
            series.sort_unstable_by(|a, b| b.0.cmp(&a.0));
            series.iter_mut().for_each(|it| it.1.sort_unstable());
            (group, Self { schema: Arc::clone(schema), batches: Arc::clone(&batches), series })
        };
        Ok(groups.into_iter().map(source).collect())
    }
}

impl Source for Chunks {
    fn key(&mut self) -> Result<Option<&Key>> {
        Ok(self.series.last().map(|it| &it.0))
    }

    fn rows(&mut self) -> Result<Option<RecordBatch>> {
        let Some((key, places)) = self.series.pop() else { return Ok(None) };
        let places: Vec<_> = places.into_iter().map(|(_, chunk, row)| (chunk, row)).collect();
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
        Ok(Some(RecordBatch::try_new(Arc::clone(&self.schema), columns)?))
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
    /// Where they come from.
    path: PathBuf,
}

impl<I: Iterator<Item = Result<RecordBatch>>> Sorted<I> {
    /// The rows of the file of this name.
    pub(crate) fn new(schema: &SchemaRef, path: &Path, batches: I) -> Self {
        let tags = tag_names(schema);
        let (schema, path) = (Arc::clone(schema), path.to_owned());
        Self { batches, schema, tags, runs: Vec::new(), before: None, path }
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
            let problem = "its rows are not sorted by their tags".to_owned();
            return Err(StoreError::Damaged { path: self.path.clone(), problem });
        }
        Ok(key)
    }

    fn rows(&mut self) -> Result<Option<RecordBatch>> {
        self.fill()?;
        let Some((key, rows)) = self.runs.pop() else { return Ok(None) };
        self.before = Some(key);
        Ok(Some(rows))
    }
}

/// A tag's value.
fn text_at(column: &ArrayRef, row: usize) -> Option<String> {
    let column = column.as_dictionary_opt::<Int32Type>()?;
    let place = column.key(row)?;
    let values = column.values().as_string_opt::<i32>()?;
    (place < values.len()).then(|| values.value(place).to_owned())
}
