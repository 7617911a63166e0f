//! SQL over the store: DataFusion, which is InfluxDB 3's engine too, over memory and files.
//!
//! Read-only by construction: the planner knows no table but the store's own, and no statement that changes anything.
//! Queries run on threads of their own, within a memory pool, a time-out and a limit of rows; one that nobody waits
//! for any more is dropped.

mod answer;
mod error;
mod provider;
mod pruning;

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use datafusion::catalog::information_schema::InformationSchemaProvider;
use datafusion::catalog::{
    CatalogProvider, CatalogProviderList, MemoryCatalogProvider, MemoryCatalogProviderList, SchemaProvider,
};
use datafusion::common::{ParamValues, ScalarValue};
use datafusion::execution::SessionStateBuilder;
use datafusion::execution::context::SQLOptions;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::GreedyMemoryPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::LogicalPlan;
use datafusion::prelude::{SessionConfig, SessionContext};
use futures_util::{Stream, StreamExt as _};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

use crate::store::{Inner, Store};

pub use answer::{Answer, Format};
pub use error::QueryError;

/// The catalog and the schema that InfluxDB 3 calls a database's tables by.
pub(crate) const CATALOG: &str = "public";
/// See [`CATALOG`].
pub(crate) const SCHEMA: &str = "iox";
/// Where SQL keeps what it knows of itself.
pub(crate) const INFORMATION_SCHEMA: &str = "information_schema";
/// The longest query, bytes.
///
/// A chain of a thousand ORs is as many levels deep: this, and the stack of query threads, keep it from overflowing.
pub(crate) const MAX_SQL_BYTES: usize = 64 << 10;
/// Stack of a query thread, bytes; what is not used is not taken.
const STACK_BYTES: usize = 64 << 20;
/// Batches between a query and its client: one is made while one is sent.
const BATCHES_AHEAD: usize = 2;

/// What a query may take.
#[derive(Clone, Copy, Debug)]
pub struct QueryLimits {
    /// Memory of all queries together, bytes.
    pub memory: usize,
    /// How long one may run.
    pub time: Duration,
    /// Rows of an answer.
    pub rows: u64,
    /// Threads of all queries together.
    pub threads: usize,
}

impl Default for QueryLimits {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(4);
        Self { memory: 256 << 20, time: Duration::from_secs(60), rows: 10_000_000, threads }
    }
}

/// A value for a `$name` in a query.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub enum Param {
    /// `null`
    Null,
    /// `true`
    Boolean(bool),
    /// `1`
    Integer(i64),
    /// `1.5`
    Float(f64),
    /// `"text"`
    Text(String),
    /// Nanoseconds since 1970.
    Time(i64),
}

impl Param {
    /// A value as JSON has it; `None` for a list, an object and a number that is too large.
    pub fn of_json(value: &serde_json::Value) -> Option<Self> {
        use serde_json::Value;
        Some(match value {
            Value::Null => Self::Null,
            Value::Bool(value) => Self::Boolean(*value),
            Value::String(value) => Self::Text(value.clone()),
            Value::Number(value) => match value.as_i64() {
                Some(value) => Self::Integer(value),
                None => Self::Float(value.as_f64().filter(|it| it.is_finite())?),
            },
            Value::Array(_) | Value::Object(_) => return None,
        })
    }
}

/// What a query takes and gives.
#[derive(Debug)]
pub(crate) struct Described {
    pub(crate) columns: SchemaRef,
    /// `$1`, `$2` or by name; `Null` where any type will do.
    pub(crate) parameters: Schema,
}

/// A table as catalogs list it.
#[derive(Debug)]
pub(crate) struct ListedTable {
    /// [`SCHEMA`] or [`INFORMATION_SCHEMA`].
    pub(crate) schema: String,
    pub(crate) name: String,
    pub(crate) columns: SchemaRef,
}

/// What asks queries; one a process.
#[derive(Debug)]
pub struct Engine {
    store: Arc<Inner>,
    state: SessionState,
    limits: QueryLimits,
    /// `Some` until it is dropped.
    runtime: Option<Runtime>,
}

impl Engine {
    /// Over this store.
    ///
    /// # Errors
    /// Threads that cannot be started.
    pub fn new(store: &Store, limits: QueryLimits) -> std::io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(limits.threads.max(1))
            .thread_name("query")
            .thread_stack_size(STACK_BYTES)
            .enable_time()
            .build()?;
        let mut config = SessionConfig::new()
            .with_information_schema(true)
            .with_default_catalog_and_schema(CATALOG, SCHEMA)
            .with_create_default_catalog_and_schema(false)
            .with_target_partitions(limits.threads.max(1));
        let parquet = &mut config.options_mut().execution.parquet;
        parquet.pushdown_filters = true;
        parquet.reorder_filters = true;
        let no_spilling = DiskManagerBuilder::default().with_mode(DiskManagerMode::Disabled);
        let environment = RuntimeEnvBuilder::new()
            .with_disk_manager_builder(no_spilling)
            .with_memory_pool(Arc::new(GreedyMemoryPool::new(limits.memory)))
            .build_arc()
            .map_err(std::io::Error::other)?;
        let state = SessionStateBuilder::new()
            .with_config(config)
            .with_runtime_env(environment)
            .with_default_features()
            .build();
        Ok(Self { store: Arc::clone(&store.inner), state, limits, runtime: Some(runtime) })
    }

    /// Plans a query and starts it. Rows come as they are asked for. `exists`: the database does, though perhaps without a
    /// table.
    ///
    /// # Errors
    /// A database, table or column that is not there, a statement that is no query, a query that cannot be planned.
    pub async fn query(
        &self,
        database: &str,
        sql: &str,
        params: HashMap<String, Param>,
        exists: bool,
    ) -> Result<Rows, QueryError> {
        if sql.len() > MAX_SQL_BYTES {
            return Err(QueryError::TooLong { most: MAX_SQL_BYTES });
        }
        let context = self.context(database, exists)?;
        let sql = sql.to_owned();
        let (rows, from) = mpsc::channel(BATCHES_AHEAD);
        let (told, schema) = tokio::sync::oneshot::channel();
        let limits = self.limits;
        let run = async move {
            let stream = match plan(&context, &sql, params).await {
                Ok(stream) => stream,
                Err(error) => {
                    // Who asked may have gone.
                    let _ = told.send(Err(error));
                    return;
                }
            };
            let _ = told.send(Ok(stream.schema()));
            send_all(stream, rows, limits.rows).await;
        };
        let Some(runtime) = &self.runtime else { return Err(QueryError::Ended) };
        let timed = async move {
            // The channels close with it, and whoever reads is told by `Rows`.
            let _ = tokio::time::timeout(limits.time, run).await;
        };
        let threads = runtime.handle().clone();
        let task = runtime.spawn(timed).abort_handle();
        let schema_less = Arc::new(Schema::empty());
        let mut rows = Rows { schema: schema_less, from, task, threads, limits, ended: false };
        match schema.await {
            Ok(Ok(schema)) => rows.schema = schema,
            Ok(Err(error)) => return Err(error),
            Err(_) => return Err(QueryError::TooSlow { after: limits.time }),
        }
        Ok(rows)
    }

    /// Plans a query without running it. Values may be missing.
    ///
    /// # Errors
    /// As [`Engine::query`].
    pub(crate) async fn describe(
        &self,
        database: &str,
        sql: &str,
        params: HashMap<String, Param>,
        exists: bool,
    ) -> Result<Described, QueryError> {
        let (context, sql) = (self.context(database, exists)?, sql.to_owned());
        self.on_query_threads(async move { describe(&context, &sql, params).await }).await
    }

    /// The tables of a database, those of `information_schema` too.
    ///
    /// # Errors
    /// A database that is not there.
    pub(crate) async fn tables(&self, database: &str, exists: bool) -> Result<Vec<ListedTable>, QueryError> {
        let context = self.context(database, exists)?;
        self.on_query_threads(async move {
            let mut tables = Vec::new();
            let catalog = context.catalog(CATALOG);
            let own = catalog.and_then(|it| it.schema(SCHEMA)).map(|it| (SCHEMA, it));
            let views: Arc<dyn SchemaProvider> =
                Arc::new(InformationSchemaProvider::new(Arc::clone(context.state().catalog_list())));
            for (schema, provider) in own.into_iter().chain([(INFORMATION_SCHEMA, views)]) {
                for name in provider.table_names() {
                    // It may be gone meanwhile.
                    let Some(table) = provider.table(&name).await? else { continue };
                    tables.push(ListedTable { schema: schema.to_owned(), name, columns: table.schema() });
                }
            }
            Ok(tables)
        })
        .await
    }

    fn context(&self, database: &str, exists: bool) -> Result<SessionContext, QueryError> {
        let tables = match self.store.tables_of(database) {
            Some(tables) => tables,
            None if exists => Vec::new(),
            None => return Err(QueryError::UnknownDatabase(database.to_owned())),
        };
        let catalog = MemoryCatalogProvider::new();
        catalog.register_schema(SCHEMA, Arc::new(provider::Tables::new(&self.store, tables)))?;
        let context = SessionContext::new_with_state(self.state.clone());
        let list = MemoryCatalogProviderList::new();
        list.register_catalog(CATALOG.to_owned(), Arc::new(catalog));
        context.register_catalog_list(Arc::new(list));
        Ok(context)
    }

    /// Ends when nobody waits for it, and within the time that a query has.
    async fn on_query_threads<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, QueryError>> + Send + 'static,
    ) -> Result<T, QueryError> {
        let Some(runtime) = &self.runtime else { return Err(QueryError::Ended) };
        let after = self.limits.time;
        let mut tasks = JoinSet::new();
        tasks.spawn_on(tokio::time::timeout(after, work), runtime.handle());
        match tasks.join_next().await {
            Some(Ok(Ok(done))) => done,
            Some(Ok(Err(_))) => Err(QueryError::TooSlow { after }),
            Some(Err(error)) => Err(QueryError::Failed(error.to_string())),
            None => Err(QueryError::Ended),
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // May be dropped within another runtime, where waiting is not allowed.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// The statement, if it only reads.
async fn read_only(context: &SessionContext, sql: &str) -> Result<LogicalPlan, QueryError> {
    let read_only =
        SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
    let state = context.state();
    error::only_one_statement(&state, sql)?;
    let plan = state.create_logical_plan(sql).await?;
    read_only.verify_plan(&plan).map_err(|_| QueryError::NotReadOnly)?;
    Ok(plan)
}

async fn describe(
    context: &SessionContext,
    sql: &str,
    params: HashMap<String, Param>,
) -> Result<Described, QueryError> {
    let plan = read_only(context, sql).await?;
    let mut parameters: Vec<_> = plan.get_parameter_types()?.into_iter().collect();
    // `$2` before `$10`.
    parameters.sort_by(|(a, _), (b, _)| (a.len(), a).cmp(&(b.len(), b)));
    let fields =
        parameters.into_iter().map(|(name, kind)| Field::new(name, kind.unwrap_or(DataType::Null), true));
    let parameters = Schema::new(fields.collect::<Vec<_>>());
    let values: HashMap<String, ScalarValue> =
        params.into_iter().map(|(name, value)| (name, scalar(value))).collect();
    let plan = if values.is_empty() { plan } else { plan.with_param_values(ParamValues::from(values))? };
    // The types are settled by the analyzer.
    let plan = context.state().optimize(&plan)?;
    Ok(Described { columns: Arc::clone(plan.schema().inner()), parameters })
}

async fn plan(
    context: &SessionContext,
    sql: &str,
    params: HashMap<String, Param>,
) -> Result<datafusion::execution::SendableRecordBatchStream, QueryError> {
    let plan = read_only(context, sql).await?;
    let values: HashMap<String, ScalarValue> =
        params.into_iter().map(|(name, value)| (name, scalar(value))).collect();
    let plan = if values.is_empty() { plan } else { plan.with_param_values(ParamValues::from(values))? };
    let frame = context.execute_logical_plan(plan).await?;
    Ok(frame.execute_stream().await?)
}

fn scalar(param: Param) -> ScalarValue {
    match param {
        Param::Null => ScalarValue::Null,
        Param::Boolean(value) => ScalarValue::Boolean(Some(value)),
        Param::Integer(value) => ScalarValue::Int64(Some(value)),
        Param::Float(value) => ScalarValue::Float64(Some(value)),
        Param::Text(value) => ScalarValue::Utf8(Some(value)),
        Param::Time(ns) => ScalarValue::TimestampNanosecond(Some(ns), None),
    }
}

async fn send_all(
    mut stream: datafusion::execution::SendableRecordBatchStream,
    to: mpsc::Sender<Result<RecordBatch, QueryError>>,
    most: u64,
) {
    let mut rows = 0;
    while let Some(batch) = stream.next().await {
        let batch = batch.map_err(QueryError::from);
        // An empty one would say that this was all.
        if batch.as_ref().is_ok_and(|it| it.num_rows() == 0) {
            continue;
        }
        rows += batch.as_ref().map_or(0, |it| it.num_rows() as u64);
        let too_many = rows > most;
        let batch = if too_many { Err(QueryError::TooManyRows { most }) } else { batch };
        let failed = batch.is_err();
        if to.send(batch).await.is_err() || failed {
            return;
        }
    }
    // An empty batch says that this was all, not a time-out.
    let _ = to.send(Ok(RecordBatch::new_empty(stream.schema()))).await;
}

/// The rows of an answer, batch by batch. The query ends when this is dropped.
#[derive(Debug)]
pub struct Rows {
    schema: SchemaRef,
    from: mpsc::Receiver<Result<RecordBatch, QueryError>>,
    task: AbortHandle,
    /// Where it is written, too.
    threads: Handle,
    limits: QueryLimits,
    ended: bool,
}

impl Rows {
    pub(crate) fn schema(&self) -> &SchemaRef {
        &self.schema
    }
}

impl Stream for Rows {
    type Item = Result<RecordBatch, QueryError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        loop {
            let next = std::task::ready!(self.from.poll_recv(context));
            match next {
                Some(Ok(batch)) if batch.num_rows() == 0 => self.ended = true,
                Some(Ok(batch)) => return Poll::Ready(Some(Ok(batch))),
                Some(Err(error)) => {
                    self.ended = true;
                    return Poll::Ready(Some(Err(error)));
                }
                None if self.ended => return Poll::Ready(None),
                None => {
                    self.ended = true;
                    let after = self.limits.time;
                    return Poll::Ready(Some(Err(QueryError::TooSlow { after })));
                }
            }
        }
    }
}

impl Drop for Rows {
    fn drop(&mut self) {
        self.task.abort();
    }
}
