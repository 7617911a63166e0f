//! The store's tables as DataFusion sees them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, PoisonError};

use arrow::datatypes::{Schema, SchemaRef};
use async_trait::async_trait;
use bytes::Bytes;
use datafusion::catalog::{SchemaProvider, Session, TableProvider};
use datafusion::datasource::TableType;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::datasource::object_store::ObjectStoreUrl;
use datafusion::datasource::physical_plan::parquet::ParquetFileReaderFactory;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::memory_pool::MemoryConsumer;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use datafusion::physical_plan::union::UnionExec;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use parquet::arrow::arrow_reader::ArrowReaderOptions;
use parquet::arrow::async_reader::AsyncFileReader;
use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaData;
use telemetry::lines::limits::ROLLUP_TAILS;

use super::begun_ns;
use super::merged::Merged;
use super::pruning;
use super::waiting::may_wait;
use crate::error::StoreError;
use crate::files::{OpenFile, StoredFile};
use crate::memory::{Chunk, Times, overlap};
use crate::merge::{Rule, adapt};
use crate::rollup;
use crate::schema::TIME;
use crate::store::Inner;
use crate::table::{Piece, Role, Snapshot, Table};

impl From<StoreError> for DataFusionError {
    fn from(error: StoreError) -> Self {
        Self::External(Box::new(error))
    }
}

/// The tables of a database.
#[derive(Debug)]
pub(super) struct Tables {
    store: Arc<Inner>,
    tables: Arc<BTreeMap<String, Arc<Table>>>,
}

impl Tables {
    pub(super) fn new(store: &Arc<Inner>, tables: &Arc<BTreeMap<String, Arc<Table>>>) -> Self {
        Self { store: Arc::clone(store), tables: Arc::clone(tables) }
    }

    fn rows(&self, table: &Table) -> Result<Rows> {
        let rule = table.rule();
        let raw = match &table.role {
            Role::Raw => None,
            Role::RollUp { of, size } => {
                self.tables.get(of).filter(|raw| raw.rolls).map(|raw| (Arc::clone(raw), *size))
            }
        };
        let _all_at_once = self.store.swap.read().unwrap_or_else(PoisonError::into_inner);
        let mut snapshot = table.snapshot()?;
        let mut live = None;
        if let Some((table, size)) = raw {
            let of = table.snapshot()?;
            snapshot.columns = rollup::columns(&table.name, &of.columns);
            let store = Arc::clone(&self.store);
            live = Some(LiveRollup { store, table, snapshot: of, size });
        }
        let schema = snapshot.columns.sql_schema();
        Ok(Rows { snapshot, live, schema, rule })
    }
}

#[async_trait]
impl SchemaProvider for Tables {
    fn table_names(&self) -> Vec<String> {
        self.tables.keys().cloned().collect()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        let Some(table) = self.tables.get(name) else { return Ok(None) };
        Ok(Some(Arc::new(self.rows(table)?)))
    }

    fn table_exist(&self, name: &str) -> bool {
        self.tables.contains_key(name)
    }
}

/// The rows of a table at one moment.
#[derive(Debug)]
struct Rows {
    snapshot: Snapshot,
    /// Of a table of roll-ups, what is not in files yet.
    live: Option<LiveRollup>,
    schema: SchemaRef,
    rule: Rule,
}

/// Roll-ups still to be worked out.
#[derive(Clone, Debug)]
struct LiveRollup {
    store: Arc<Inner>,
    table: Arc<Table>,
    /// The raw rows.
    snapshot: Snapshot,
    size: usize,
}

#[async_trait]
impl TableProvider for Rows {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        // Each one narrows what is read and is applied again above.
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        session: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        _: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let times = pruning::wanted(filters);
        let tags = pruning::wanted_tags(filters, &self.snapshot.columns.tags);
        let is_quick = self.live.is_none() && files_of(&self.snapshot, times).all(|it| it.was_checked());
        let mut groups = if is_quick {
            self.snapshot.groups(times)?
        } else {
            let (snapshot, live) = (self.snapshot.clone(), self.live.clone());
            let tags = tags.clone();
            let now_ns = begun_ns(session);
            let memory = MemoryConsumer::new("roll-ups").register(&session.runtime_env().memory_pool);
            may_wait(move |wanted| {
                let mut snapshot = snapshot;
                if let Some(live) = live {
                    let LiveRollup { store, table, snapshot: raw, .. } = &live;
                    let some = if tags.is_empty() { None } else { Some(raw.only(&tags)?) };
                    let raw = some.as_ref().unwrap_or(raw);
                    // The rows themselves are the store's: what they take besides while they are worked out.
                    memory.try_grow(raw.chunks.iter().map(|it| it.rows.get_array_memory_size()).sum())?;
                    // What the next flush will not write is not shown either.
                    let oldest = store.believed(now_ns).map_or(i64::MIN, |now| store.oldest_ns(table, now));
                    let mut rows = table.live_rollups(raw, &tags, oldest, store.rollup_room(table))?;
                    snapshot.chunks.append(&mut rows[live.size]);
                }
                // Each is checked once; one after another, so that what a time-out leaves is not done again.
                for file in files_of(&snapshot, times) {
                    wanted.check()?;
                    file.is_whole()?;
                }
                Ok(snapshot.groups(times)?)
            })
            .await?
        };
        let mut plans: Vec<Arc<dyn ExecutionPlan>> = Vec::new();
        let mut files = Vec::new();
        let mut chunks = Vec::new();
        // Their files may have a tag's name for a field from before the tag: DataFusion would take it for the tag.
        let is_like_field = |tag: &String| ROLLUP_TAILS.iter().any(|tail| tag.ends_with(tail));
        if self.rule == Rule::Rows && self.snapshot.columns.tags.iter().any(is_like_field) {
            let is_file = |it: &mut Piece| matches!(it, Piece::File(_));
            groups.merged.extend(groups.single.extract_if(.., is_file).map(|it| vec![it]));
        }
        for piece in groups.single {
            match piece {
                Piece::File(file) => files.push(file),
                Piece::Chunk(chunk) => chunks.push(chunk),
            }
        }
        if !files.is_empty() {
            plans.push(self.scan_files(files, projection)?);
        }
        if !chunks.is_empty() {
            plans.push(self.scan_chunks(&chunks, projection)?);
        }
        if !groups.merged.is_empty() {
            plans.push(self.scan_merged(groups.merged, projection, times, tags)?);
        }
        match plans.len() {
            0 => Ok(Arc::new(EmptyExec::new(self.projected(projection)?))),
            1 => Ok(plans.remove(0)),
            _ => UnionExec::try_new(plans),
        }
    }
}

/// The files that may have rows of these times.
fn files_of(snapshot: &Snapshot, times: Times) -> impl Iterator<Item = &Arc<StoredFile>> {
    snapshot.files.iter().filter(move |it| overlap(it.entry.times, times))
}

impl Rows {
    fn projected(&self, projection: Option<&Vec<usize>>) -> Result<SchemaRef> {
        Ok(match projection {
            None => Arc::clone(&self.schema),
            Some(columns) => Arc::new(self.schema.project(columns)?),
        })
    }

    fn scan_files(
        &self,
        files: Vec<Arc<StoredFile>>,
        projection: Option<&Vec<usize>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let source = ParquetSource::new(Arc::clone(&self.schema))
            .with_parquet_file_reader_factory(Arc::new(Reading))
            .with_pushdown_filters(true)
            .with_enable_page_index(true);
        // One group, which the planner may split between its threads.
        let group: FileGroup = files
            .into_iter()
            .map(|file| {
                // The path is only told in messages; the file is read through the extension.
                PartitionedFile::new(file.path.to_string_lossy(), file.entry.bytes).with_extension(file)
            })
            .collect();
        // Never asked for an object: see `Reading`.
        let scan = FileScanConfigBuilder::new(ObjectStoreUrl::local_filesystem(), Arc::new(source))
            .with_file_group(group)
            .with_projection_indices(projection.cloned())?
            .build();
        Ok(DataSourceExec::from_data_source(scan))
    }

    fn scan_chunks(
        &self,
        chunks: &[Arc<Chunk>],
        projection: Option<&Vec<usize>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let schema = self.projected(projection)?;
        let batches = chunks.iter().map(|it| adapt(&it.rows, &schema)).collect::<Result<Vec<_>, _>>()?;
        Ok(MemorySourceConfig::try_new_exec(&[batches], schema, None)?)
    }

    fn scan_merged(
        &self,
        groups: Vec<Vec<Piece>>,
        projection: Option<&Vec<usize>>,
        times: Times,
        tags: Vec<(String, String)>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let wanted = self.projected(projection)?;
        let resting = self.snapshot.columns.resting_schema();
        // Points are told apart by all tags and the time; of the fields only those that are asked for are read.
        let needed = resting.fields().iter().filter(|it| {
            let name = it.name();
            name == TIME
                || self.snapshot.columns.tags.contains(name)
                || wanted.column_with_name(name).is_some()
        });
        let needed: SchemaRef = Arc::new(Schema::new(needed.cloned().collect::<Vec<_>>()));
        let partitions = groups.into_iter().map(|pieces| {
            let (needed, wanted, tags) = (Arc::clone(&needed), Arc::clone(&wanted), tags.clone());
            Arc::new(Merged { pieces, needed, wanted, times, tags, rule: self.rule })
                as Arc<dyn PartitionStream>
        });
        let partitions = partitions.collect();
        Ok(Arc::new(StreamingTableExec::try_new(wanted, partitions, None, None, false, None)?))
    }
}

/// Reads files through the store's own disk, with the footers that it keeps.
#[derive(Debug)]
struct Reading;

impl ParquetFileReaderFactory for Reading {
    fn create_reader(
        &self,
        _: usize,
        file: PartitionedFile,
        _: Option<usize>,
        _: &ExecutionPlanMetricsSet,
    ) -> Result<Box<dyn AsyncFileReader + Send>> {
        let stored = file.extension::<Arc<StoredFile>>().cloned();
        let stored =
            stored.ok_or_else(|| DataFusionError::Internal("a file without its handle".to_owned()))?;
        let open = stored.open()?;
        Ok(Box::new(Reader { stored, open }))
    }
}

struct Reader {
    stored: Arc<StoredFile>,
    open: OpenFile,
}

impl AsyncFileReader for Reader {
    // Files are local and mostly cached: on the query's own threads, waiting for them is cheaper than handing over.
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, Result<Bytes, ParquetError>> {
        let bytes = self.open.bytes(range);
        async move { bytes }.boxed()
    }

    fn get_metadata<'a>(
        &'a mut self,
        _: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, Result<Arc<ParquetMetaData>, ParquetError>> {
        let metadata = self.stored.metadata(&self.open);
        async move { metadata.map_err(|error| ParquetError::External(Box::new(error))) }.boxed()
    }
}
