//! Parquet files: how rows are written so that they take little room and are found fast, and read back.
//!
//! Sorted by tags, then time. Tags, texts and floats are dictionaries where that pays; integers are written as
//! differences (`DELTA_BINARY_PACKED`): equal steps become nearly nothing. All is zstd.
//!
//! `time` is special. Where it goes in equal steps, as on the tick, differences are nearly nothing. Where it jitters, all
//! series of a host still have the same times: written as they are, in a page that spans many series, zstd finds that.

use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use arrow::array::{BooleanArray, StringArray};
use arrow::compute::kernels::cmp::eq;
use arrow::datatypes::{DataType, SchemaRef};
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use disk::{Disk, DiskFile};
use parquet::arrow::arrow_reader::{
    ArrowPredicate, ArrowPredicateFn, ArrowReaderMetadata, ArrowReaderOptions,
    ParquetRecordBatchReaderBuilder, RowFilter, RowSelection, RowSelector,
};
use parquet::arrow::{ArrowWriter, ProjectionMask};
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader};
use parquet::file::page_index::column_index::ColumnIndexMetaData;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::reader::{ChunkReader, Length};
use parquet::schema::types::ColumnPath;

use crate::error::{Result, StoreError};
use crate::manifest::FileEntry;
use crate::memory::{Times, WantedTags, overlap};
use crate::merge::{Rule, Sorted, merge, times};
use crate::schema::{TIME, tag_type};

/// Rows of a row group: what a reader skips by statistics, and what is in memory while it is written.
const ROW_GROUP_ROWS: usize = 131_072;
/// Bytes of a page, encoded and before zstd: some 8,000 rows of a counter, which is what a query for one VM's hour reads
/// at least. What never changes has larger pages.
const PAGE_BYTES: usize = 16 << 10;
/// The same for times in equal steps: some 8,000 rows.
const STEADY_TIME_PAGE_BYTES: usize = 200;
/// The same for times that jitter: a row group.
const JITTERING_TIME_PAGE_BYTES: usize = 8 * ROW_GROUP_ROWS;
/// Rows that are read at once.
const READ_ROWS: usize = 8_192;
/// Bytes that are checked at once.
const VERIFY_BYTES: u64 = 1 << 20;
/// Bytes that are written at once.
const WRITE_BYTES: usize = 256 << 10;

/// How hard to compress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effort {
    /// A file that will soon be compacted.
    Flush,
    /// A file that stays.
    Compaction,
}

/// A file that counts.
#[derive(Debug)]
pub(crate) struct StoredFile {
    pub(crate) entry: FileEntry,
    pub(crate) path: PathBuf,
    pub(crate) disk: Arc<dyn Disk>,
    metadata: OnceLock<Arc<ParquetMetaData>>,
    damage: OnceLock<Damage>,
    /// How often it could not be read although it had been whole, since it last could.
    doubts: AtomicU32,
}

/// Why a file is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Damage {
    /// It is not there, or the disk does not give it: after a start that may be otherwise.
    Unreadable,
    /// It is not what was written.
    Changed,
}

/// Failures to read a file that had been whole, without a good reading between them, after which it is left out.
const MAX_DOUBTS: u32 = 3;

impl StoredFile {
    pub(crate) fn new(disk: &Arc<dyn Disk>, path: PathBuf, entry: FileEntry) -> Self {
        let disk = Arc::clone(disk);
        Self {
            entry,
            path,
            disk,
            metadata: OnceLock::new(),
            damage: OnceLock::new(),
            doubts: AtomicU32::new(0),
        }
    }

    /// Reads footer and page index and, the first time, the whole file, to see that it is what was written. False if it
    /// is not: that is told once and remembered.
    ///
    /// # Errors
    /// The file system; the file may be whole all the same.
    pub(crate) fn is_whole(&self) -> Result<bool> {
        if self.damage.get().is_some() {
            return Ok(false);
        }
        if self.metadata.get().is_some() {
            return Ok(true);
        }
        let read = || {
            let file = self.open()?;
            self.verify(&file)?;
            self.metadata(&file)
        };
        match read() {
            Ok(_) => Ok(true),
            Err(StoreError::Io { source, .. }) if !is_damage(&source) => {
                Err(StoreError::io("reading", &self.path)(source))
            }
            Err(error) => {
                self.give_up(&error);
                Ok(false)
            }
        }
    }

    /// Whether [`StoredFile::is_whole`] knows without reading.
    pub(crate) fn was_checked(&self) -> bool {
        self.damage.get().is_some() || self.metadata.get().is_some()
    }

    /// Whether the file is known to be other than it was written, for good.
    pub(crate) fn is_damaged(&self) -> bool {
        self.damage.get() == Some(&Damage::Changed)
    }

    /// To be called when reading failed: looks at the file again. True if it is left out from now on, so that whoever
    /// asked can go on without it; false if it may be read the next time.
    pub(crate) fn doubt(&self) -> bool {
        if self.damage.get().is_some() {
            return true;
        }
        let (is_what_was_written, read) = match self.open().and_then(|file| self.verify(&file)) {
            Ok(()) => (true, self.read_all()),
            failed => (false, failed),
        };
        let error = match read {
            // What failed did so for a moment.
            Ok(()) => {
                self.doubts.store(0, Ordering::Relaxed);
                return false;
            }
            // That is no fault of the file.
            Err(StoreError::Io { source, .. }) if is_shortage(&source) => return false,
            Err(error) => error,
        };
        // If it is what was written and cannot be read, or the disk does not give it, the next time may be better.
        let is_changed = !is_what_was_written && matches!(error, StoreError::Damaged { .. });
        if is_changed || self.doubts.fetch_add(1, Ordering::Relaxed) + 1 >= MAX_DOUBTS {
            self.give_up(&error);
        }
        self.damage.get().is_some()
    }

    /// Reads all rows, as a compaction does.
    fn read_all(&self) -> Result<()> {
        let metadata = self.metadata(&self.open()?)?;
        let metadata = ArrowReaderMetadata::try_new(metadata, ArrowReaderOptions::new())
            .map_err(|error| self.damaged(error))?;
        let schema = metadata.schema();
        let rows = self.rows(schema, (i64::MIN, i64::MAX), &[])?;
        merge(schema, vec![Box::new(Sorted::new(schema, &self.path, rows))], Rule::Rows, |_, _| Ok(()))
    }

    /// Leaves the file out from now on.
    fn give_up(&self, error: &StoreError) {
        let problem = std::error::Error::source(error).map_or(String::new(), |source| format!(": {source}"));
        let problem = format!("{error}{problem}");
        let damage = match error {
            StoreError::Io { .. } => Damage::Unreadable,
            _ => Damage::Changed,
        };
        if self.damage.set(damage).is_ok() {
            let rows = self.entry.rows;
            tracing::error!(rows, "a file of the store cannot be read and is left out: {problem}");
        }
    }

    fn verify(&self, file: &OpenFile) -> Result<()> {
        let mut crc = crc32fast::Hasher::new();
        let mut at = 0;
        while at < file.len {
            let end = file.len.min(at + VERIFY_BYTES);
            crc.update(&file.bytes(at..end).map_err(|error| self.damaged(error))?);
            at = end;
        }
        if crc.finalize() != self.entry.crc32 {
            let problem = "its checksum is not that of what was written".to_owned();
            return Err(StoreError::Damaged { path: self.path.clone(), problem });
        }
        Ok(())
    }

    pub(crate) fn open(&self) -> Result<OpenFile> {
        let file = self.disk.open_to_read(&self.path).map_err(StoreError::io("opening", &self.path))?;
        Ok(OpenFile { file: Arc::from(file), len: self.entry.bytes })
    }

    /// Footer and page index; read once.
    pub(crate) fn metadata(&self, file: &OpenFile) -> Result<Arc<ParquetMetaData>> {
        if let Some(known) = self.metadata.get() {
            return Ok(Arc::clone(known));
        }
        let reader = ParquetMetaDataReader::new().with_page_index_policy(PageIndexPolicy::Optional);
        let read = reader.parse_and_finish(file).map_err(|error| self.damaged(error))?;
        Ok(Arc::clone(self.metadata.get_or_init(|| Arc::new(read))))
    }

    /// The rows of these times and some around them, of the columns of `schema` that the file has, in the file's order; of
    /// the series with these tags, if there are any.
    pub(crate) fn rows(
        &self,
        schema: &SchemaRef,
        window: Times,
        tags: &WantedTags,
    ) -> Result<impl Iterator<Item = Result<RecordBatch>> + use<>> {
        let file = self.open()?;
        let metadata = self.metadata(&file)?;
        let selection = pages_of(&metadata, window);
        let options = ArrowReaderOptions::new();
        let metadata =
            ArrowReaderMetadata::try_new(metadata, options).map_err(|error| self.damaged(error))?;
        let mut builder = ParquetRecordBatchReaderBuilder::new_with_metadata(file, metadata);
        let wanted: Vec<&str> = schema.fields().iter().map(|it| it.name().as_str()).collect();
        let roots = builder.schema().fields().iter().enumerate();
        let roots = roots.filter(|(_, it)| wanted.contains(&it.name().as_str())).map(|(place, _)| place);
        let mask = ProjectionMask::roots(builder.parquet_schema(), roots);
        if let Some(selection) = selection {
            builder = builder.with_row_selection(selection);
        }
        if !tags.is_empty() {
            let predicates = tags.iter().map(|(name, value)| has_tag(&builder, name, value)).collect();
            builder = builder.with_row_filter(RowFilter::new(predicates));
        }
        let reader = builder
            .with_projection(mask)
            .with_batch_size(READ_ROWS)
            .build()
            .map_err(|error| self.damaged(error))?;
        let path = self.path.clone();
        Ok(reader.map(move |rows| {
            // An I/O error is a text by now; whoever asks again may have more luck.
            rows.map_err(|error| StoreError::Damaged { path: path.clone(), problem: error.to_string() })
        }))
    }

    fn damaged(&self, error: ParquetError) -> StoreError {
        match io_error(error) {
            Ok(error) => StoreError::io("reading", &self.path)(error),
            Err(error) => StoreError::Damaged { path: self.path.clone(), problem: error.to_string() },
        }
    }
}

/// Says of rows of a file whether they have this tag.
fn has_tag(
    file: &ParquetRecordBatchReaderBuilder<impl ChunkReader + 'static>,
    name: &str,
    value: &str,
) -> Box<dyn ArrowPredicate> {
    // What was a field when the file was written is no tag there.
    let place =
        file.schema().fields().iter().position(|it| it.name() == name && *it.data_type() == tag_type());
    let mask = ProjectionMask::roots(file.parquet_schema(), place);
    let value = StringArray::new_scalar(value);
    Box::new(ArrowPredicateFn::new(mask, move |rows| match rows.columns().first() {
        Some(tags) => eq(tags, &value),
        None => Ok(BooleanArray::from(vec![false; rows.num_rows()])),
    }))
}

/// The rows of pages that may have times within the window; `None` for all.
fn pages_of(metadata: &ParquetMetaData, window: Times) -> Option<RowSelection> {
    let time = metadata.file_metadata().schema_descr().columns().iter().position(|it| it.name() == TIME)?;
    let (columns, offsets) = (metadata.column_index()?, metadata.offset_index()?);
    let mut selectors = Vec::new();
    for (group, about) in metadata.row_groups().iter().enumerate() {
        let ColumnIndexMetaData::INT64(index) = columns.get(group)?.get(time)? else { return None };
        let pages = offsets.get(group)?.get(time)?.page_locations();
        for (number, page) in pages.iter().enumerate() {
            let end = pages.get(number + 1).map_or(about.num_rows(), |it| it.first_row_index);
            let rows = usize::try_from(end.checked_sub(page.first_row_index)?).ok()?;
            let (min, max) = (*index.min_value(number)?, *index.max_value(number)?);
            let is_wanted = overlap((min, max), window);
            selectors.push(if is_wanted { RowSelector::select(rows) } else { RowSelector::skip(rows) });
        }
    }
    Some(selectors.into())
}

/// A file that is open to read.
#[derive(Clone, Debug)]
pub(crate) struct OpenFile {
    file: Arc<dyn DiskFile>,
    len: u64,
}

impl OpenFile {
    pub(crate) fn bytes(&self, range: Range<u64>) -> Result<Bytes, ParquetError> {
        // What a file's own footer says is not believed beyond the file's length.
        if range.start > range.end || range.end > self.len {
            let problem = format!("bytes {}..{} of a file of {}", range.start, range.end, self.len);
            return Err(ParquetError::EOF(problem));
        }
        let mut bytes = vec![0; (range.end - range.start) as usize];
        self.file.read_exact_at(&mut bytes, range.start)?;
        Ok(bytes.into())
    }
}

impl Length for OpenFile {
    fn len(&self) -> u64 {
        self.len
    }
}

impl ChunkReader for OpenFile {
    type T = io::BufReader<Cursor>;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        Ok(io::BufReader::new(Cursor { file: self.clone(), at: start }))
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        self.bytes(start..start.saturating_add(length as u64))
    }
}

/// A place in a file.
pub(crate) struct Cursor {
    file: OpenFile,
    at: u64,
}

impl io::Read for Cursor {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.file.len.saturating_sub(self.at);
        let length = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        self.file.file.read_exact_at(&mut buffer[..length], self.at)?;
        self.at += length as u64;
        Ok(length)
    }
}

/// What was written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Written {
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
    pub(crate) times: Times,
    pub(crate) crc32: u32,
}

/// A file being written: rows come sorted and merged.
pub(crate) struct FileWriter {
    state: State,
    schema: SchemaRef,
    effort: Effort,
    path: PathBuf,
    times: Option<Times>,
    rows: u64,
}

enum State {
    /// Waits for the first rows, which tell how times go.
    Empty(io::BufWriter<Appender>),
    Writing(Box<ArrowWriter<io::BufWriter<Appender>>>),
    /// It failed.
    Broken,
}

impl FileWriter {
    /// Begins a file under this name, in place of one that was left there.
    pub(crate) fn create(disk: &dyn Disk, path: &Path, schema: &SchemaRef, effort: Effort) -> Result<Self> {
        let file = disk.open(path).map_err(StoreError::io("making", path))?;
        file.set_len(0).map_err(StoreError::io("making", path))?;
        let appender = Appender { file, at: 0, crc: crc32fast::Hasher::new() };
        let state = State::Empty(io::BufWriter::with_capacity(WRITE_BYTES, appender));
        Ok(Self { state, schema: Arc::clone(schema), effort, path: path.to_owned(), times: None, rows: 0 })
    }

    /// Appends rows of one series.
    pub(crate) fn write(&mut self, rows: &RecordBatch) -> Result<()> {
        let all = times(rows)?;
        if let (Some(&first), Some(&last)) = (all.first(), all.last()) {
            crate::memory::widen(&mut self.times, (first, last));
        }
        self.rows += rows.num_rows() as u64;
        let mut writer = match std::mem::replace(&mut self.state, State::Broken) {
            State::Writing(writer) => writer,
            State::Empty(out) => {
                let properties = properties(&self.schema, self.effort, is_steady(all));
                let writer = ArrowWriter::try_new(out, Arc::clone(&self.schema), Some(properties));
                Box::new(writer.map_err(|error| failed(&self.path, error))?)
            }
            State::Broken => return Err(StoreError::Internal("a file that failed is written to".to_owned())),
        };
        writer.write(rows).map_err(|error| failed(&self.path, error))?;
        self.state = State::Writing(writer);
        Ok(())
    }

    /// Ends the file and makes its contents durable; its name is not yet. `None` if it got no rows: then it is no Parquet
    /// file.
    pub(crate) fn finish(self) -> Result<Option<Written>> {
        let Self { state, path, times, rows, .. } = self;
        let State::Writing(writer) = state else { return Ok(None) };
        let out = writer.into_inner().map_err(|error| failed(&path, error))?;
        let out = out.into_inner().map_err(|error| StoreError::io("writing", &path)(error.into_error()))?;
        out.file.sync().map_err(StoreError::io("syncing", &path))?;
        let crc32 = out.crc.finalize();
        Ok(times.map(|times| Written { rows, bytes: out.at, times, crc32 }))
    }
}

/// Whether at least nine of ten steps between times are equal to the step before.
fn is_steady(times: &[i64]) -> bool {
    let equal = times.windows(3).filter(|it| it[1].wrapping_sub(it[0]) == it[2].wrapping_sub(it[1])).count();
    equal * 10 >= times.len().saturating_sub(2) * 9
}

fn failed(path: &Path, error: ParquetError) -> StoreError {
    match io_error(error) {
        Ok(error) => StoreError::io("writing", path)(error),
        Err(error) => StoreError::Internal(format!("writing {}: {error}", path.display())),
    }
}

/// Takes an I/O error out of what the Parquet crate made of it.
fn io_error(error: ParquetError) -> Result<io::Error, ParquetError> {
    match error {
        ParquetError::External(source) => match source.downcast::<io::Error>() {
            Ok(error) => Ok(*error),
            Err(source) => Err(ParquetError::External(source)),
        },
        error => Err(error),
    }
}

/// Whether an I/O error says that the file is not what it was, for good.
fn is_damage(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof)
}

/// Whether an I/O error says that this process, or the system, has too little of something to read any file.
fn is_shortage(error: &io::Error) -> bool {
    /// ENFILE and EMFILE, for which there is no [`io::ErrorKind`]: Linux, `include/uapi/asm-generic/errno-base.h`.
    const TOO_MANY_OPEN_FILES: [i32; 2] = [23, 24];
    error.kind() == io::ErrorKind::OutOfMemory
        || error.raw_os_error().is_some_and(|it| TOO_MANY_OPEN_FILES.contains(&it))
}

fn properties(schema: &SchemaRef, effort: Effort, steady: bool) -> WriterProperties {
    let level = match effort {
        Effort::Flush => 1,
        Effort::Compaction => 6,
    };
    let zstd = Compression::ZSTD(ZstdLevel::try_new(level).unwrap_or_default());
    let mut properties = WriterProperties::builder()
        .set_created_by(format!("kvmetry {}", env!("CARGO_PKG_VERSION")))
        .set_compression(zstd)
        .set_dictionary_enabled(false)
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .set_data_page_row_count_limit(ROW_GROUP_ROWS)
        .set_data_page_size_limit(PAGE_BYTES)
        .set_write_batch_size(1_024);
    for field in schema.fields() {
        let column = ColumnPath::from(field.name().as_str());
        properties = match field.data_type() {
            DataType::Timestamp(..) if !steady => {
                properties.set_column_data_page_size_limit(column, JITTERING_TIME_PAGE_BYTES)
            }
            DataType::Timestamp(..) => properties
                .set_column_data_page_size_limit(column.clone(), STEADY_TIME_PAGE_BYTES)
                .set_column_encoding(column, Encoding::DELTA_BINARY_PACKED),
            DataType::Int64 | DataType::UInt64 => {
                properties.set_column_encoding(column, Encoding::DELTA_BINARY_PACKED)
            }
            kind if *kind == tag_type() || *kind == DataType::Utf8 => {
                properties.set_column_dictionary_enabled(column, true)
            }
            DataType::Float64 => properties.set_column_dictionary_enabled(column, true),
            _ => properties,
        };
    }
    properties.build()
}

/// Appends to a file through the disk.
struct Appender {
    file: Box<dyn DiskFile>,
    at: u64,
    crc: crc32fast::Hasher,
}

impl Write for Appender {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write_all_at(bytes, self.at)?;
        self.at += bytes.len() as u64;
        self.crc.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortage_is_no_fault_of_a_file() {
        // ENOMEM, ENFILE, EMFILE; EIO, ENOENT.
        for (errno, expect) in [(12, true), (23, true), (24, true), (5, false), (2, false)] {
            let error = io::Error::from_raw_os_error(errno);
            assert_eq!(is_shortage(&error), expect, "{error}");
        }
    }
}
