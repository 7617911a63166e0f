//! The rows of one table that no file has yet.
//!
//! ```text
//!  Batch ──append──▶ open rows ──seal──▶ chunks (Arrow) ──take──▶ chunks being flushed ──▶ Parquet
//! ```
//!
//! Rows stand in the journal's order. A series has a small number here ([`SeriesId`]), its tags are kept once.
//! A row is *late* if its series may have had a row of this or a later time before, here or in a file: only late
//! rows can repeat a point, so units without them need no merging.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BooleanArray, DictionaryArray, Float64Array, Int32Array, Int64Array, StringArray,
    TimestampNanosecondArray, UInt64Array,
};
use arrow::buffer::NullBuffer;
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, Schema};
use arrow::record_batch::RecordBatch;
use telemetry::lines::{FieldColumn, SeriesKey, TableBatch, Values};

use crate::error::Result;
use crate::manifest::{Mark, Tags};
use crate::schema::{Kind, TIME, tag_type, time_type};

/// Rows of a chunk at least: below, too many small pieces; above, what a query converts anew gets long.
pub(crate) const CHUNK_ROWS: usize = 8_192;

/// How long a series without new rows is remembered: two flushes, so that no living series is taken for a new one.
const REMEMBERED_NS: i64 = 3_600_000_000_000;

/// Series whose clocks are ahead, as many as are remembered for it; beyond it their rows count as everybody's, and the
/// others' are late until their time has come.
const MAX_AHEAD: usize = 100;

/// Bytes of texts in a chunk, roughly: they may be long.
const CHUNK_TEXT_BYTES: usize = 8 << 20;

/// The place of a series in its table's [`Registry`].
pub(crate) type SeriesId = u32;

/// A time span, both ends included.
pub(crate) type Times = (i64, i64);

pub(crate) fn overlap(a: Times, b: Times) -> bool {
    a.0 <= b.1 && b.0 <= a.1
}

pub(crate) fn widen(times: &mut Option<Times>, by: Times) {
    *times = Some(times.map_or(by, |it| (it.0.min(by.0), it.1.max(by.1))));
}

/// The span of all these.
pub(crate) fn all_of(times: impl Iterator<Item = Times>) -> Option<Times> {
    times.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)))
}

/// The series of a table since memory was last empty.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    ids: HashMap<Arc<SeriesKey>, SeriesId>,
    series: Vec<Arc<SeriesKey>>,
    /// The series after the one that was asked for last.
    next: usize,
    /// `series` as the last chunk took it.
    shared: Keys,
    /// The latest time of each.
    last: Vec<i64>,
    tags: HashMap<String, TagValues>,
    /// What the series take here, bytes, roughly.
    bytes: usize,
    /// What chunks took of lists that were made anew for them, bytes; what the next one takes of them is among it.
    given: usize,
}

/// What a series takes in a [`Registry`] beside its tags, bytes, and each tag beside its texts.
const SERIES_BYTES: usize = 160;
/// See [`SERIES_BYTES`].
const TAG_BYTES: usize = 104;

/// The values of one tag, and which series has which.
#[derive(Debug, Default)]
struct TagValues {
    codes: HashMap<String, i32>,
    values: Vec<String>,
    /// A code a series; shorter than the list of series where the later ones lack the tag.
    of_series: Vec<Option<i32>>,
    built: Option<Arc<StringArray>>,
}

impl Registry {
    fn id(&mut self, key: &Arc<SeriesKey>, floor: i64) -> SeriesId {
        // A collector's series come in the same order each time, and their keys are the same ones.
        let next = self.series.get(self.next);
        if next.is_some_and(|it| Arc::ptr_eq(it, key)) {
            self.next += 1;
            return self.next as SeriesId - 1;
        }
        if let Some(&id) = self.ids.get(key) {
            self.next = id as usize + 1;
            return id;
        }
        // Bounded by the memory for rows: each series here has at least one.
        let id = self.series.len() as SeriesId;
        for (name, value) in &key.tags {
            let tag = self.tags.entry(name.clone()).or_default();
            let next = tag.values.len() as i32;
            let code = *tag.codes.entry(value.clone()).or_insert_with(|| {
                tag.values.push(value.clone());
                tag.built = None;
                next
            });
            let before = tag.of_series.len();
            tag.of_series.resize(id as usize, None);
            tag.of_series.push(Some(code));
            self.bytes += (tag.of_series.len() - before) * size_of::<Option<i32>>();
        }
        // The key, and its values twice more.
        let of_tag = |it: &(String, String)| TAG_BYTES + it.0.len() + 3 * it.1.len();
        self.bytes += SERIES_BYTES + key.tags.iter().map(of_tag).sum::<usize>();
        self.ids.insert(Arc::clone(key), id);
        self.series.push(Arc::clone(key));
        self.next = self.series.len();
        self.last.push(floor);
        id
    }

    /// All series, by id.
    fn share(&mut self) -> Keys {
        if self.shared.len() < self.series.len() {
            self.shared = Arc::new(self.series.clone());
            self.given += 8 * self.series.len();
        }
        Arc::clone(&self.shared)
    }

    /// What the lists take that the next chunk gets as they are, bytes.
    fn ready(&self) -> usize {
        let values = self.tags.values().filter_map(|it| it.built.as_ref());
        8 * self.shared.len() + values.map(|it| it.get_array_memory_size()).sum::<usize>()
    }

    /// Forgets the series that have had no row for [`REMEMBERED_NS`] before the newest one, or all that are not ahead of
    /// now. Returns the latest time of those that went.
    fn forget(&mut self, now_ns: i64, all: bool) -> Option<i64> {
        let newest = self.last.iter().copied().filter(|&last| last <= now_ns).max();
        let limit =
            if all { i64::MAX } else { newest.map_or(i64::MIN, |it| it.saturating_sub(REMEMBERED_NS)) };
        let mut ahead = 0;
        let mut stays = |last: i64| {
            let is_ahead = last > now_ns && ahead < MAX_AHEAD;
            ahead += usize::from(is_ahead);
            last >= limit || is_ahead
        };
        let stays: Vec<bool> = self.last.iter().map(|&last| stays(last)).collect();
        // Mostly so, and whoever takes rows in waits for this.
        if stays.iter().all(|&it| it) {
            return None;
        }
        let old = std::mem::take(self);
        let mut gone = None;
        for ((key, last), stays) in old.series.iter().zip(old.last).zip(stays) {
            if stays {
                self.id(key, last);
            } else {
                gone = gone.max(Some(last));
            }
        }
        gone
    }

    /// Series that have rows later than now, if they are few.
    fn ahead(&self, now_ns: i64) -> Vec<(Tags, i64)> {
        let all = self.series.iter().zip(&self.last).filter(|it| *it.1 > now_ns);
        let ahead: Vec<_> = all.take(MAX_AHEAD + 1).map(|(key, &last)| (key.tags.clone(), last)).collect();
        if ahead.len() > MAX_AHEAD { Vec::new() } else { ahead }
    }

    fn tag_array(&mut self, name: &str, rows: &[SeriesId]) -> Option<ArrayRef> {
        let tag = self.tags.get_mut(name)?;
        let given = &mut self.given;
        let values = tag.built.get_or_insert_with(|| {
            let values = StringArray::from_iter_values(&tag.values);
            *given += values.get_array_memory_size();
            Arc::new(values)
        });
        let codes = rows.iter().map(|&row| tag.of_series.get(row as usize).copied().flatten());
        let codes: Int32Array = codes.collect();
        DictionaryArray::try_new(codes, values.clone()).ok().map(|it| Arc::new(it) as ArrayRef)
    }
}

/// Rows by column, being filled.
#[derive(Debug, Default)]
struct Rows {
    series: Vec<SeriesId>,
    times: Vec<i64>,
    fields: Vec<OpenField>,
    /// The place of a field in `fields`, by name.
    places: HashMap<String, usize>,
    span: Option<Times>,
    late: Option<Times>,
    text_bytes: usize,
}

#[derive(Debug)]
struct OpenField {
    name: String,
    values: Values,
    present: Option<Vec<bool>>,
}

/// The series of rows, by their place.
pub(crate) type Keys = Arc<Vec<Arc<SeriesKey>>>;

/// Rows that change no more.
#[derive(Debug)]
pub(crate) struct Chunk {
    /// Tags, time, fields; in the journal's order.
    pub(crate) rows: RecordBatch,
    /// For each row the place of its series in `keys`.
    pub(crate) series: Vec<SeriesId>,
    pub(crate) keys: Keys,
    pub(crate) times: Times,
    pub(crate) late: Option<Times>,
}

/// Series by what their tags must be: name and value.
pub(crate) type WantedTags = [(String, String)];

/// Whether a series has all these tags.
pub(crate) fn has_tags(key: &SeriesKey, wanted: &WantedTags) -> bool {
    wanted.iter().all(|it| key.tags.contains(it))
}

impl Chunk {
    /// Its rows of these series; `None` where it has none.
    pub(crate) fn only(&self, is_wanted: &[bool]) -> Result<Option<Self>> {
        let of_wanted = |id: &SeriesId| is_wanted.get(*id as usize).copied().unwrap_or(false);
        let mask: BooleanArray = self.series.iter().map(|it| Some(of_wanted(it))).collect();
        if mask.true_count() == 0 {
            return Ok(None);
        }
        let rows = filter_record_batch(&self.rows, &mask)?;
        let series = self.series.iter().copied().filter(of_wanted).collect();
        Ok(Some(Self { rows, series, keys: Arc::clone(&self.keys), times: self.times, late: self.late }))
    }

    /// What it takes in memory, bytes, roughly, without what it shares with other chunks ([`Registry::given`]).
    fn bytes(&self) -> usize {
        let columns = self.rows.columns().iter().map(|column| match column.data_type() {
            DataType::Dictionary(..) => 4 * column.len(),
            DataType::Utf8 => column.get_array_memory_size(),
            _ => 8 * column.len(),
        });
        columns.sum::<usize>() + 4 * self.series.len()
    }
}

/// The rows of one table that no file has yet.
#[derive(Debug)]
pub(crate) struct Memory {
    registry: Registry,
    open: Rows,
    /// The open rows as a chunk, while none is added.
    shown: Option<Arc<Chunk>>,
    chunks: Vec<Arc<Chunk>>,
    /// Taken for a flush that has not ended; still to be shown.
    flushing: Vec<Arc<Chunk>>,
    /// No row of a series that is not in `registry` is later, here or in the files.
    floor: i64,
}

impl Default for Memory {
    /// For a table without rows.
    fn default() -> Self {
        Self::new(&Mark::default())
    }
}

impl Memory {
    /// For a table with these rows in files.
    pub(crate) fn new(mark: &Mark) -> Self {
        let mut memory = Self {
            registry: Registry::default(),
            open: Rows::default(),
            shown: None,
            chunks: Vec::new(),
            flushing: Vec::new(),
            floor: mark.floor.unwrap_or(i64::MIN),
        };
        for (tags, last) in &mark.ahead {
            memory.registry.id(&Arc::new(SeriesKey { tags: tags.clone() }), *last);
        }
        memory
    }

    /// What is to be known of all rows up to now, once they are in files.
    fn mark(&self, now_ns: i64) -> Mark {
        let ahead = self.registry.ahead(now_ns);
        let is_counted = |last: &i64| ahead.is_empty() || *last <= now_ns;
        let floor = self.registry.last.iter().copied().filter(is_counted).max();
        let floor = floor.map_or(self.floor, |it| it.max(self.floor));
        Mark { floor: Some(floor), ahead, ..Mark::default() }
    }

    /// Adds rows, in the journal's order.
    pub(crate) fn append(&mut self, batch: &TableBatch) -> Result<()> {
        let ids: Vec<SeriesId> = batch.series.iter().map(|key| self.registry.id(key, self.floor)).collect();
        let mut rows = 0..0;
        while rows.end < batch.times.len() {
            rows = rows.end..batch.times.len().min(rows.end + CHUNK_ROWS);
            self.append_some(batch, &ids, rows.clone());
            if self.open.times.len() >= CHUNK_ROWS || self.open.text_bytes >= CHUNK_TEXT_BYTES {
                self.seal()?;
            }
        }
        Ok(())
    }

    fn append_some(&mut self, batch: &TableBatch, ids: &[SeriesId], rows: Range<usize>) {
        self.shown = None;
        let open = &mut self.open;
        let before = open.times.len();
        for (&row, &time) in batch.rows[rows.clone()].iter().zip(&batch.times[rows.clone()]) {
            let id = ids[row as usize];
            open.series.push(id);
            open.times.push(time);
            widen(&mut open.span, (time, time));
            let last = &mut self.registry.last[id as usize];
            if time > *last {
                *last = time;
            } else {
                widen(&mut open.late, (time, time));
            }
        }
        for field in &batch.fields {
            open.append_field(before, field, rows.clone());
        }
        open.fill_up();
    }

    /// Closes the open rows.
    fn seal(&mut self) -> Result<()> {
        let closed = self.open_chunk()?;
        self.chunks.extend(closed);
        self.open = Rows::default();
        self.shown = None;
        Ok(())
    }

    /// The open rows as a chunk.
    fn open_chunk(&mut self) -> Result<Option<Arc<Chunk>>> {
        let Some(times) = self.open.span else { return Ok(None) };
        if self.shown.is_none() {
            let open = &self.open;
            self.shown = Some(Arc::new(Chunk {
                rows: open.to_arrow(&mut self.registry)?,
                series: open.series.clone(),
                keys: self.registry.share(),
                times,
                late: open.late,
            }));
        }
        Ok(self.shown.clone())
    }

    /// All rows, in the journal's order.
    pub(crate) fn show(&mut self) -> Result<Vec<Arc<Chunk>>> {
        let open = self.open_chunk()?;
        Ok(self.flushing.iter().chain(&self.chunks).cloned().chain(open).collect())
    }

    /// Takes all rows for a flush, with what is to be known of them then. They are still shown until [`Memory::flushed`] or
    /// [`Memory::not_flushed`]. `forget`: all series, too.
    pub(crate) fn take(&mut self, now_ns: i64, forget: bool) -> Result<(Vec<Arc<Chunk>>, Mark)> {
        self.seal()?;
        let mark = self.mark(now_ns);
        self.flushing.append(&mut self.chunks);
        self.forget(now_ns, forget);
        Ok((self.flushing.clone(), mark))
    }

    /// The taken rows are in files now.
    pub(crate) fn flushed(&mut self) {
        self.flushing.clear();
        self.registry.given = self.registry.ready();
    }

    /// The flush failed: the taken rows stay, for the next one.
    pub(crate) fn not_flushed(&mut self) {
        self.flushing.append(&mut self.chunks);
        std::mem::swap(&mut self.flushing, &mut self.chunks);
    }

    /// Gives up the oldest chunk, or the open rows and, as no row needs them then, the series. Returns how many rows that
    /// were.
    pub(crate) fn drop_oldest(&mut self, now_ns: i64) -> usize {
        if !self.chunks.is_empty() {
            return self.chunks.remove(0).series.len();
        }
        self.shown = None;
        let rows = std::mem::take(&mut self.open).times.len();
        self.forget(now_ns, true);
        if self.flushing.is_empty() {
            self.registry.given = self.registry.ready();
        }
        rows
    }

    /// See [`Registry::forget`].
    fn forget(&mut self, now_ns: i64, all: bool) {
        let given = self.registry.given;
        if let Some(gone) = self.registry.forget(now_ns, all) {
            self.floor = self.floor.max(gone);
        }
        self.registry.given = given;
    }

    /// The latest time.
    pub(crate) fn newest(&self) -> Option<i64> {
        let chunks = self.flushing.iter().chain(&self.chunks).map(|it| it.times);
        all_of(chunks.chain(self.open.span)).map(|it| it.1)
    }

    /// How many rows.
    pub(crate) fn rows(&self) -> usize {
        let chunks = self.flushing.iter().chain(&self.chunks);
        self.open.times.len() + chunks.map(|it| it.series.len()).sum::<usize>()
    }

    /// What their series take, bytes, roughly.
    pub(crate) fn series_bytes(&self) -> usize {
        self.registry.bytes
    }

    /// What they take with their series, bytes, roughly.
    pub(crate) fn bytes(&self) -> usize {
        let chunks = self.flushing.iter().chain(&self.chunks);
        let sealed: usize = chunks.map(|it| it.bytes()).sum();
        let series = self.registry.bytes + self.registry.given;
        sealed + series + self.open.text_bytes + self.open.times.len() * (12 + 8 * self.open.fields.len())
    }
}

impl Rows {
    /// Appends the column; rows before it lack the field, rows after it are filled by [`Rows::fill_up`].
    fn append_field(&mut self, before: usize, column: &FieldColumn, rows: Range<usize>) {
        let place = match self.places.get(&column.name) {
            Some(&place) => place,
            None => {
                let place = self.fields.len();
                let name = column.name.clone();
                self.places.insert(name.clone(), place);
                self.fields.push(OpenField { name, values: empty_like(&column.values), present: None });
                place
            }
        };
        if let Values::String(texts) = &column.values {
            self.text_bytes += texts[rows.clone()].iter().map(String::len).sum::<usize>();
        }
        self.fields[place].extend(before, column, rows);
    }

    /// Fields that the last batch lacked are absent in its rows.
    fn fill_up(&mut self) {
        let rows = self.times.len();
        for field in &mut self.fields {
            if field.values.len() < rows {
                let had = field.values.len();
                field.present.get_or_insert_with(|| vec![true; had]).resize(rows, false);
                fill(&mut field.values, rows);
            }
        }
    }

    fn to_arrow(&self, registry: &mut Registry) -> Result<RecordBatch> {
        let mut columns: Vec<(Field, ArrayRef)> = Vec::new();
        let mut tags: Vec<String> = registry.tags.keys().cloned().collect();
        tags.sort_unstable();
        for name in tags {
            if let Some(array) = registry.tag_array(&name, &self.series) {
                columns.push((Field::new(&name, tag_type(), true), array));
            }
        }
        let times = TimestampNanosecondArray::from(self.times.clone());
        columns.push((Field::new(TIME, time_type(), false), Arc::new(times)));
        for field in &self.fields {
            let kind = Kind::from(field.values.field_type());
            columns.push((Field::new(&field.name, kind.arrow(), true), field.to_arrow()));
        }
        let (fields, arrays): (Vec<_>, Vec<_>) = columns.into_iter().unzip();
        Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays)?)
    }
}

impl OpenField {
    /// Appends these rows of a column; the first one becomes row `before`.
    fn extend(&mut self, before: usize, column: &FieldColumn, rows: Range<usize>) {
        let had = self.values.len();
        if had < before {
            self.present.get_or_insert_with(|| vec![true; had]).resize(before, false);
            fill(&mut self.values, before);
        }
        match (&mut self.values, &column.values) {
            (Values::Float(to), Values::Float(from)) => to.extend_from_slice(&from[rows.clone()]),
            (Values::Integer(to), Values::Integer(from)) => to.extend_from_slice(&from[rows.clone()]),
            (Values::Unsigned(to), Values::Unsigned(from)) => to.extend_from_slice(&from[rows.clone()]),
            (Values::String(to), Values::String(from)) => to.extend_from_slice(&from[rows.clone()]),
            (Values::Boolean(to), Values::Boolean(from)) => to.extend_from_slice(&from[rows.clone()]),
            // The schema check lets no column change its type; if it did, the column's rows stay absent.
            _ => return,
        }
        match (&mut self.present, &column.present) {
            (None, None) => {}
            (Some(to), Some(from)) => to.extend_from_slice(&from[rows]),
            (Some(to), None) => to.resize(self.values.len(), true),
            (to @ None, Some(from)) => {
                let mut all = vec![true; before];
                all.extend_from_slice(&from[rows]);
                *to = Some(all);
            }
        }
    }

    fn to_arrow(&self) -> ArrayRef {
        let nulls = self.present.clone().map(NullBuffer::from);
        match &self.values {
            Values::Float(it) => Arc::new(Float64Array::new(it.clone().into(), nulls)),
            Values::Integer(it) => Arc::new(Int64Array::new(it.clone().into(), nulls)),
            Values::Unsigned(it) => Arc::new(UInt64Array::new(it.clone().into(), nulls)),
            Values::Boolean(it) => Arc::new(BooleanArray::new(it.clone().into(), nulls)),
            Values::String(it) => {
                let present = |row: usize| self.present.as_ref().is_none_or(|present| present[row]);
                let texts = it.iter().enumerate().map(|(row, text)| present(row).then_some(text.as_str()));
                Arc::new(texts.collect::<StringArray>())
            }
        }
    }
}

fn empty_like(values: &Values) -> Values {
    match values {
        Values::Float(_) => Values::Float(Vec::new()),
        Values::Integer(_) => Values::Integer(Vec::new()),
        Values::Unsigned(_) => Values::Unsigned(Vec::new()),
        Values::String(_) => Values::String(Vec::new()),
        Values::Boolean(_) => Values::Boolean(Vec::new()),
    }
}

/// Makes it as long as this, with any values.
fn fill(values: &mut Values, len: usize) {
    match values {
        Values::Float(it) => it.resize(len, 0.0),
        Values::Integer(it) => it.resize(len, 0),
        Values::Unsigned(it) => it.resize(len, 0),
        Values::String(it) => it.resize(len, String::new()),
        Values::Boolean(it) => it.resize(len, false),
    }
}
