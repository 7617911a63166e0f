//! Rows as bytes, in the formats of InfluxDB 3's `/api/v3/query_sql`.

use std::str::FromStr;

use arrow::csv::WriterBuilder;
use arrow::json::writer::{JsonArray, LineDelimited};
use arrow::json::{Writer, WriterBuilder as JsonWriterBuilder};
use arrow::record_batch::RecordBatch;
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
    Csv { has_header: bool, schema: arrow::datatypes::SchemaRef },
    Pretty(Vec<RecordBatch>),
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
            Format::Pretty => Self::Pretty(vec![RecordBatch::new_empty(rows.schema().clone())]),
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
            Self::Pretty(batches) => {
                batches.push(batch.clone());
                if batches.iter().map(RecordBatch::num_rows).sum::<usize>() > MAX_PRETTY_ROWS {
                    return Err(QueryError::TooManyRows { most: MAX_PRETTY_ROWS as u64 });
                }
                Bytes::new()
            }
            Self::Parquet(writer) => {
                writer.write(batch).map_err(failed)?;
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
            Self::Pretty(batches) => format!("{}\n", pretty_format_batches(&batches).map_err(failed)?).into(),
            Self::Parquet(writer) => writer.into_inner().map_err(failed)?.into(),
        })
    }
}

fn csv(batch: &RecordBatch, header: bool) -> Result<Bytes, QueryError> {
    let mut bytes = Vec::new();
    WriterBuilder::new().with_header(header).build(&mut bytes).write(batch).map_err(failed)?;
    Ok(bytes.into())
}
