//! Rows as bytes, in the formats of InfluxDB 3's `/api/v3/query_sql`.

use std::str::FromStr;
use std::sync::Arc;

use arrow::csv::WriterBuilder;
use arrow::datatypes::SchemaRef;
use arrow::json::writer::{JsonArray, LineDelimited};
use arrow::json::{Writer, WriterBuilder as JsonWriterBuilder};
use arrow::record_batch::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use arrow::util::pretty::pretty_format_batches;
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::run::{EndsTask, ended_early};
use super::{QueryError, Rows};

/// Rows of a `pretty` table at most: its columns are as wide as the widest value, so all are held.
const MAX_PRETTY_ROWS: usize = 100_000;
/// Bytes of such a table while it is held. Beyond it: csv and jsonl, which are sent as they come.
const MAX_PRETTY_BYTES: usize = 128 << 20;
/// What a cell of it takes besides its text, bytes: the table's maker keeps its lines, its style and its width.
const PRETTY_CELL_BYTES: usize = 128;
/// Bytes of rows that a Parquet file keeps back before it writes them as a group.
const MAX_GROUP_BYTES: usize = 32 << 20;

/// Pieces of an answer between the encoder and the client.
const PIECES_AHEAD: usize = 2;

/// How an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// An array of objects; null columns are left out.
    Json,
    /// An object a line.
    JsonLines,
    /// With a header line.
    Csv,
    /// A table for people.
    Pretty,
    /// An Apache Parquet file.
    Parquet,
}

impl FromStr for Format {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Ok(match name {
            "json" => Self::Json,
            "jsonl" => Self::JsonLines,
            "csv" => Self::Csv,
            "pretty" => Self::Pretty,
            "parquet" => Self::Parquet,
            _ => return Err(format!("format {name:?} is none of json, jsonl, csv, pretty, parquet")),
        })
    }
}

impl Format {
    /// Its media type.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::JsonLines => "application/jsonl",
            Self::Csv => "text/csv",
            Self::Pretty => "text/plain; charset=utf-8",
            Self::Parquet => "application/vnd.apache.parquet",
        }
    }
}

/// An answer as bytes, piece by piece.
pub type Answer = std::pin::Pin<Box<dyn Stream<Item = Result<Bytes, QueryError>> + Send>>;

impl Rows {
    /// Writes the rows in this format, as they come. A failure while running is the last item.
    pub fn write(self, format: Format) -> Answer {
        let encoder = match Encoder::new(format, &self) {
            Ok(encoder) => encoder,
            Err(error) => return futures_util::stream::once(async { Err(error) }).boxed(),
        };
        // On the query's threads: whoever asks may have one thread for all there is.
        let (pieces, from) = mpsc::channel(PIECES_AHEAD);
        let task = self.threads.clone().spawn(encode(self, encoder, pieces));
        let ends = EndsTask(task.abort_handle());
        let taken = Taken { from, task: Some(task), _ends: ends };
        futures_util::stream::unfold(taken, async |mut taken| Some((taken.next().await?, taken))).boxed()
    }
}

/// An answer on its way; the work on it ends when this is dropped.
struct Taken {
    from: mpsc::Receiver<Result<Bytes, QueryError>>,
    /// `None` after its end.
    task: Option<JoinHandle<()>>,
    _ends: EndsTask,
}

impl Taken {
    async fn next(&mut self) -> Option<Result<Bytes, QueryError>> {
        if let Some(piece) = self.from.recv().await {
            return Some(piece);
        }
        // An answer that was broken off must not look whole.
        let ended = self.task.take()?.await.err()?;
        Some(Err(ended_early(ended, "")))
    }
}

async fn encode(mut rows: Rows, mut encoder: Encoder, to: mpsc::Sender<Result<Bytes, QueryError>>) {
    while let Some(batch) = rows.next().await {
        let bytes = batch.and_then(|batch| encoder.write(&batch));
        if bytes.as_ref().is_ok_and(Bytes::is_empty) {
            continue;
        }
        let failed = bytes.is_err();
        if to.send(bytes).await.is_err() || failed {
            return;
        }
    }
    // Who asked may have gone.
    let _ = to.send(encoder.finish()).await;
}

enum Encoder {
    Json(Writer<Vec<u8>, JsonArray>),
    JsonLines(Writer<Vec<u8>, LineDelimited>),
    Csv { has_header: bool, schema: SchemaRef },
    Pretty(Table),
    Parquet(Box<ArrowWriter<Vec<u8>>>),
}

fn failed(error: impl std::fmt::Display) -> QueryError {
    QueryError::Failed(format!("the answer cannot be written in this format: {error}"))
}

impl Encoder {
    fn new(format: Format, rows: &Rows) -> Result<Self, QueryError> {
        Ok(match format {
            Format::Json => Self::Json(JsonWriterBuilder::new().build(Vec::new())),
            Format::JsonLines => Self::JsonLines(JsonWriterBuilder::new().build(Vec::new())),
            Format::Csv => Self::Csv { has_header: false, schema: rows.schema().clone() },
            Format::Pretty => Self::Pretty(Table::new(rows.schema())),
            Format::Parquet => {
                let zstd = Compression::ZSTD(ZstdLevel::default());
                let properties = WriterProperties::builder().set_compression(zstd).build();
                let writer = ArrowWriter::try_new(Vec::new(), rows.schema().clone(), Some(properties));
                Self::Parquet(Box::new(writer.map_err(failed)?))
            }
        })
    }

    fn write(&mut self, batch: &RecordBatch) -> Result<Bytes, QueryError> {
        Ok(match self {
            Self::Json(writer) => {
                writer.write(batch).map_err(failed)?;
                std::mem::take(writer.get_mut()).into()
            }
            Self::JsonLines(writer) => {
                writer.write(batch).map_err(failed)?;
                std::mem::take(writer.get_mut()).into()
            }
            Self::Csv { has_header, .. } => csv(batch, !std::mem::replace(has_header, true))?,
            Self::Pretty(table) => {
                table.push(batch)?;
                Bytes::new()
            }
            Self::Parquet(writer) => {
                writer.write(batch).map_err(failed)?;
                if writer.memory_size() > MAX_GROUP_BYTES {
                    writer.flush().map_err(failed)?;
                }
                std::mem::take(writer.inner_mut()).into()
            }
        })
    }

    fn finish(self) -> Result<Bytes, QueryError> {
        Ok(match self {
            Self::Json(mut writer) => {
                writer.finish().map_err(failed)?;
                writer.into_inner().into()
            }
            Self::JsonLines(mut writer) => {
                writer.finish().map_err(failed)?;
                writer.into_inner().into()
            }
            Self::Csv { has_header: false, schema } => csv(&RecordBatch::new_empty(schema), true)?,
            Self::Csv { .. } => Bytes::new(),
            Self::Pretty(table) => {
                format!("{}\n", pretty_format_batches(&table.batches).map_err(failed)?).into()
            }
            Self::Parquet(writer) => writer.into_inner().map_err(failed)?.into(),
        })
    }
}

/// Rows of a `pretty` table, until all are there.
struct Table {
    batches: Vec<RecordBatch>,
    rows: usize,
    /// The widest text of each column, bytes.
    widths: Vec<usize>,
}

impl Table {
    fn new(schema: &SchemaRef) -> Self {
        let widths = schema.fields().iter().map(|it| it.name().len()).collect();
        Self { batches: vec![RecordBatch::new_empty(Arc::clone(schema))], rows: 0, widths }
    }

    fn push(&mut self, batch: &RecordBatch) -> Result<(), QueryError> {
        self.rows += batch.num_rows();
        if self.rows > MAX_PRETTY_ROWS {
            return Err(QueryError::TooManyRows { most: MAX_PRETTY_ROWS as u64 });
        }
        let options = FormatOptions::default().with_display_error(true);
        for (column, width) in batch.columns().iter().zip(&mut self.widths) {
            let texts = ArrayFormatter::try_new(column.as_ref(), &options).map_err(failed)?;
            let mut text = String::new();
            for row in 0..batch.num_rows() {
                text.clear();
                // What cannot be shown is told in its place.
                let _ = texts.value(row).write(&mut text);
                *width = text.len().max(*width);
            }
        }
        // Each line is as long as the widest texts together.
        let line: usize = self.widths.iter().map(|it| it + PRETTY_CELL_BYTES).sum();
        if self.rows.saturating_mul(line) > MAX_PRETTY_BYTES {
            return Err(QueryError::TooMuchMemory(format!(
                "a table for people is made as a whole, of {MAX_PRETTY_BYTES} bytes at most; csv and jsonl are not"
            )));
        }
        self.batches.push(batch.clone());
        Ok(())
    }
}

fn csv(batch: &RecordBatch, header: bool) -> Result<Bytes, QueryError> {
    let mut bytes = Vec::new();
    WriterBuilder::new().with_header(header).build(&mut bytes).write(batch).map_err(failed)?;
    Ok(bytes.into())
}
