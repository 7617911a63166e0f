//! Buckets that are complete, as rows of a table.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, DictionaryArray, Int64Array, TimestampNanosecondArray};
use arrow::datatypes::Int32Type;
use arrow::record_batch::RecordBatch;
use telemetry::lines::SeriesKey;

use super::summary::{COVERED, Shape, Summary, Value, array, rounded_down, rounded_up};
use super::{Fields, Open};
use crate::error::{Result, StoreError};
use crate::memory::{Chunk, Times, widen};
use crate::schema::Kind;

/// Finished buckets that are held as such: one takes some 100 bytes a field, as a row in a chunk a third of that.
const OPEN_ROWS: usize = 2_048;

/// Rows of buckets that are complete for now.
#[derive(Debug, Default)]
pub(super) struct Finished {
    /// At most [`OPEN_ROWS`]: an [`Open`] takes several times what its row takes in a chunk.
    rows: Vec<(Arc<SeriesKey>, Open)>,
    /// Of `rows`.
    late: Option<Times>,
    chunks: Vec<Chunk>,
}

impl Finished {
    /// A bucket that no row was given of before.
    pub(super) fn push(&mut self, fields: &Fields<'_>, name: &Arc<SeriesKey>, open: Open) -> Result<()> {
        self.rows.push((Arc::clone(name), open));
        if self.rows.len() < OPEN_ROWS { Ok(()) } else { self.seal(fields) }
    }

    /// A bucket that a row may have been given of before.
    pub(super) fn push_late(&mut self, fields: &Fields<'_>, name: &Arc<SeriesKey>, open: Open) -> Result<()> {
        widen(&mut self.late, (open.start, open.start));
        self.push(fields, name, open)
    }

    pub(super) fn into_chunks(mut self, fields: &Fields<'_>) -> Result<Vec<Chunk>> {
        self.seal(fields)?;
        Ok(self.chunks)
    }

    fn seal(&mut self, fields: &Fields<'_>) -> Result<()> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let (buckets, late) = (std::mem::take(&mut self.rows), self.late.take());
        let mut ids: HashMap<&Arc<SeriesKey>, u32> = HashMap::new();
        let mut keys: Vec<Arc<SeriesKey>> = Vec::new();
        let mut series = Vec::with_capacity(buckets.len());
        let mut span = None;
        for (key, open) in &buckets {
            widen(&mut span, (open.start, open.start));
            series.push(*ids.entry(key).or_insert_with(|| {
                keys.push(Arc::clone(key));
                keys.len() as u32 - 1
            }));
        }
        let mut columns: Vec<(String, ArrayRef)> = Vec::new();
        for tag in &fields.tags {
            let value = |id: &u32| {
                let tags = &keys[*id as usize].tags;
                tags.iter().find(|it| it.0 == *tag).map(|it| it.1.as_str())
            };
            let values: DictionaryArray<Int32Type> = series.iter().map(value).collect();
            columns.push((tag.clone(), Arc::new(values)));
        }
        let starts: TimestampNanosecondArray = buckets.iter().map(|it| Some(it.1.start)).collect();
        columns.push((crate::schema::TIME.to_owned(), Arc::new(starts)));
        for (place, (name, kind, shape)) in fields.names.iter().enumerate() {
            let of = |take: &dyn Fn(&Summary) -> Option<Value>, kind: Kind| {
                let summaries = buckets.iter().map(|it| it.1.fields.get(place).and_then(Option::as_ref));
                array(summaries.map(|it| it.and_then(take)), kind)
            };
            let mut add = |tail: &str, array: ArrayRef| {
                let name = format!("{name}_{tail}");
                if !fields.tags.contains(&name) {
                    columns.push((name, array));
                }
            };
            add("last", of(&|it| Some(it.last.clone()), *kind));
            match shape {
                Shape::Gauge => {
                    add("min", of(&|it| Some(it.min.clone()), *kind));
                    add("max", of(&|it| Some(it.max.clone()), *kind));
                    add("mean", of(&Summary::mean, Kind::Float));
                }
                Shape::Counter => {
                    add("increase", of(&|it| it.increase.known(), *kind));
                    add(
                        "rate_min",
                        of(&|it| it.rates.map(|it| Value::Float(rounded_down(it.0))), Kind::Float),
                    );
                    add("rate_max", of(&|it| rounded_up(it.rates?.1).map(Value::Float), Kind::Float));
                }
                Shape::Last => {}
            }
        }
        if fields.has_counters && !fields.tags.iter().any(|it| it == COVERED) {
            let covered: Int64Array = buckets.iter().map(|it| it.1.covered).collect();
            columns.push((COVERED.to_owned(), Arc::new(covered)));
        }
        let rows = RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, array)| {
            let nullable = name != crate::schema::TIME;
            (name, array, nullable)
        }))?;
        let times = span.ok_or_else(|| StoreError::Internal("buckets without times".to_owned()))?;
        self.chunks.push(Chunk { rows, series, keys: Arc::new(keys), times, late });
        Ok(())
    }
}
