//! SQL over the store: DataFusion, which is InfluxDB 3's engine too, over memory and files.
//!
//! Read-only by construction: the planner knows no table but the store's own, and no statement that changes anything.
//! Queries run on threads of their own, within a memory pool, a time-out and a limit of rows; one that nobody waits
//! for any more is dropped.

mod answer;
mod bounded;
mod error;
mod gapfill;
mod last;
mod merged;
mod provider;
mod pruning;
mod run;
mod selector;
mod size;
mod tz;
mod waiting;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use datafusion::catalog::{
    CatalogProvider as _, CatalogProviderList as _, MemoryCatalogProvider, MemoryCatalogProviderList, Session,
};
use datafusion::execution::SessionStateBuilder;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::GreedyMemoryPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::ScalarUDF;
use datafusion::prelude::{SessionConfig, SessionContext};
use tokio::runtime::{Builder, Handle, Runtime};

use crate::store::{Inner, Store};

pub use answer::{Answer, Format};
pub use error::QueryError;
use run::Query;
pub use run::Rows;
pub(crate) use run::{Described, ListedTable};

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
    /// One that is too large for that.
    Unsigned(u64),
    /// `1.5`
    Float(f64),
    /// `"text"`
    Text(String),
    /// Nanoseconds since 1970.
    Time(i64),
}

impl Param {
    /// A value as JSON has it; `None` for a list and an object. A whole number beyond u64 is a float, as near as one is.
    pub fn of_json(value: &serde_json::Value) -> Option<Self> {
        use serde_json::Value;
        Some(match value {
            Value::Null => Self::Null,
            Value::Bool(value) => Self::Boolean(*value),
            Value::String(value) => Self::Text(value.clone()),
            Value::Number(value) => match (value.as_i64(), value.as_u64()) {
                (Some(value), _) => Self::Integer(value),
                (None, Some(value)) => Self::Unsigned(value),
                (None, None) => Self::Float(value.as_f64().filter(|it| it.is_finite())?),
            },
            Value::Array(_) | Value::Object(_) => return None,
        })
    }
}

/// What asks queries; one a process.
#[derive(Debug)]
pub struct Engine {
    store: Arc<Inner>,
    state: SessionState,
    limits: QueryLimits,
    /// `Some` until it is dropped.
    runtime: Option<Runtime>,
    /// Watches over the time of queries, whatever their threads do; likewise.
    watch: Option<Runtime>,
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
        let watch =
            Builder::new_multi_thread().worker_threads(1).thread_name("query-watch").enable_time().build()?;
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
        let mut state = SessionStateBuilder::new()
            .with_config(config)
            .with_runtime_env(environment)
            .with_default_features();
        state.aggregate_functions().get_or_insert_default().extend(selector::all());
        let tz = ScalarUDF::new_from_impl(tz::TimeZone::new());
        let known = state.scalar_functions().get_or_insert_default();
        known.retain(|it| !bounded::LEFT_OUT.contains(&it.name()));
        let functions = bounded::functions().chain(gapfill::functions()).chain([Arc::new(tz)]);
        known.extend(functions);
        let state = state.with_query_planner(Arc::new(gapfill::Planner));
        let state = state.with_analyzer_rule(Arc::new(bounded::Operators));
        let (store, state) = (Arc::clone(&store.inner), state.build());
        Ok(Self { store, state, limits, runtime: Some(runtime), watch: Some(watch) })
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
        let (query, (threads, watch)) = (self.ask(database, sql, params, exists)?, self.threads()?);
        query.start(threads, watch, self.limits).await
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
        let (query, (threads, watch)) = (self.ask(database, sql, params, exists)?, self.threads()?);
        query.describe(threads, watch, self.limits).await
    }

    /// The tables of a database, those of `information_schema` too.
    ///
    /// # Errors
    /// A database that is not there.
    pub(crate) async fn tables(&self, database: &str, exists: bool) -> Result<Vec<ListedTable>, QueryError> {
        let (query, (threads, watch)) = (self.ask(database, "", HashMap::new(), exists)?, self.threads()?);
        query.tables(threads, watch, self.limits).await
    }

    /// The threads of queries, and those that watch over them.
    fn threads(&self) -> Result<(&Handle, &Handle), QueryError> {
        match (&self.runtime, &self.watch) {
            (Some(runtime), Some(watch)) => Ok((runtime.handle(), watch.handle())),
            _ => Err(QueryError::Ended),
        }
    }

    fn ask(
        &self,
        database: &str,
        sql: &str,
        params: HashMap<String, Param>,
        exists: bool,
    ) -> Result<Query, QueryError> {
        if sql.len() > MAX_SQL_BYTES {
            return Err(QueryError::TooLong { most: MAX_SQL_BYTES });
        }
        let tables = match self.store.tables_of(database) {
            Some(tables) => tables,
            None if exists => Vec::new(),
            None => return Err(QueryError::UnknownDatabase(database.to_owned())),
        };
        let tables: BTreeMap<_, _> = tables.into_iter().map(|it| (it.name.clone(), it)).collect();
        let tables = Arc::new(tables);
        let catalog = MemoryCatalogProvider::new();
        catalog.register_schema(SCHEMA, Arc::new(provider::Tables::new(&self.store, &tables)))?;
        let list = MemoryCatalogProviderList::new();
        list.register_catalog(CATALOG.to_owned(), Arc::new(catalog));
        let context = SessionContext::new_with_state(self.state.clone());
        context.register_catalog_list(Arc::new(list));
        context.register_udtf(last::NAME, Arc::new(last::LastCache { tables: Arc::clone(&tables) }));
        let tables = tables.keys().cloned().collect();
        Ok(Query { context, sql: sql.to_owned(), params, tables })
    }
}

/// When this query began, as its `now()` has it; nanoseconds since 1970.
fn begun_ns(session: &dyn Session) -> i64 {
    let begun = session.execution_props().query_execution_start_time;
    begun.and_then(|it| it.timestamp_nanos_opt()).unwrap_or(i64::MAX)
}

impl Drop for Engine {
    fn drop(&mut self) {
        // May be dropped within another runtime, where waiting is not allowed.
        for runtime in [self.runtime.take(), self.watch.take()].into_iter().flatten() {
            runtime.shutdown_background();
        }
    }
}
