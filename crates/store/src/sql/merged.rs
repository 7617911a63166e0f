//! Pieces that may share points, merged while they are read, within the memory of queries.

use std::cell::RefCell;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use datafusion::error::DataFusionError;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::stream::RecordBatchReceiverStreamBuilder;
use datafusion::physical_plan::streaming::PartitionStream;
use tokio::sync::mpsc;

use crate::error::{Result, StoreError};
use crate::memory::Times;
use crate::merge::{Key, Rule, Source, adapt, merge};
use crate::table::{Piece, sources};

/// Batches between the merging thread and the query.
const MERGED_AHEAD: usize = 2;
/// How often the rows of a series are in memory while it is merged: as they were read, put together, and in order.
const COPIES: usize = 3;

/// Pieces that may share points.
#[derive(Debug)]
pub(super) struct Merged {
    pub(super) pieces: Vec<Piece>,
    /// All tags, the time, the fields that are asked for.
    pub(super) needed: SchemaRef,
    pub(super) wanted: SchemaRef,
    /// Rows of other times may be left out.
    pub(super) times: Times,
    /// So may those of series without these tags.
    pub(super) tags: Vec<(String, String)>,
    pub(super) rule: Rule,
}

impl PartitionStream for Merged {
    fn schema(&self) -> &SchemaRef {
        &self.wanted
    }

    fn execute(&self, context: Arc<TaskContext>) -> SendableRecordBatchStream {
        let mut stream = RecordBatchReceiverStreamBuilder::new(Arc::clone(&self.wanted), MERGED_AHEAD);
        let to = stream.tx();
        let (pieces, rule, times, tags) = (self.pieces.clone(), self.rule, self.times, self.tags.clone());
        let (needed, wanted) = (Arc::clone(&self.needed), Arc::clone(&self.wanted));
        let memory = MemoryConsumer::new("merge").register(context.memory_pool());
        stream.spawn_blocking(move || {
            let budget = Budget { memory, to: to.clone(), refused: RefCell::default() };
            let counted = sources(&pieces, &needed, times, &tags)?;
            let counted = counted
                .into_iter()
                .map(|source| Box::new(Counted { source, budget: &budget, held: 0 }) as Box<dyn Source + '_>);
            let merged = merge(&needed, counted.collect(), rule, |_, rows| {
                let rows: RecordBatch = adapt(&rows, &wanted)?;
                to.blocking_send(Ok(rows)).map_err(|_| gone())
            });
            match budget.refused.take() {
                Some(error) => Err(error),
                None => Ok(merged?),
            }
        });
        stream.build()
    }
}

fn gone() -> StoreError {
    StoreError::Internal("the query has ended".to_owned())
}

/// What a merge may take.
struct Budget {
    memory: MemoryReservation,
    /// Whoever takes the rows.
    to: mpsc::Sender<datafusion::error::Result<RecordBatch>>,
    /// Why there is no more.
    refused: RefCell<Option<DataFusionError>>,
}

/// A source whose rows are counted until it is asked for more, by when they are merged.
struct Counted<'a> {
    source: Box<dyn Source>,
    budget: &'a Budget,
    /// Bytes.
    held: usize,
}

impl Source for Counted<'_> {
    fn key(&mut self) -> Result<Option<&Key>> {
        self.source.key()
    }

    fn rows(&mut self) -> Result<Option<RecordBatch>> {
        // Series without a wanted row send nothing.
        if self.budget.to.is_closed() {
            return Err(gone());
        }
        self.budget.memory.shrink(std::mem::take(&mut self.held));
        let rows = self.source.rows()?;
        let columns = rows.iter().flat_map(RecordBatch::columns);
        let bytes: usize = columns.map(|it| it.to_data().get_slice_memory_size().unwrap_or(0)).sum();
        self.budget.memory.try_grow(COPIES * bytes).map_err(|error| {
            self.budget.refused.replace(Some(error));
            StoreError::Internal("a query takes too much memory".to_owned())
        })?;
        self.held = COPIES * bytes;
        Ok(rows)
    }
}
