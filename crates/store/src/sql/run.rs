//! One query from its text to its rows, and what becomes of it when it takes too long, panics, or nobody waits for it.
//!
//! ```text
//!  run (threads of queries): plan ▸ execute ──schema, batches──▶ Rows
//!  watch (a thread of its own): time-out, panic ───────failure──▶ Rows
//! ```

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use datafusion::catalog::SchemaProvider;
use datafusion::catalog::information_schema::InformationSchemaProvider;
use datafusion::common::{ParamValues, ScalarValue};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::context::SQLOptions;
use datafusion::logical_expr::LogicalPlan;
use datafusion::prelude::SessionContext;
use futures_util::future::{Either, FutureExt as _, select};
use futures_util::{Stream, StreamExt as _};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinError, JoinHandle};

use super::error::{name_tables, only_one_statement};
use super::{CATALOG, INFORMATION_SCHEMA, Param, QueryError, QueryLimits, SCHEMA, gapfill};

/// Batches between a query and its client: one is made while one is sent.
const BATCHES_AHEAD: usize = 2;
/// How often the time of a query that waits for its client is looked at, where little of it is left.
const LOOKS_AGAIN: Duration = Duration::from_millis(20);
/// Characters of a query that a line of the log shows.
const TOLD_CHARS: usize = 1_000;

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

/// A query as it was asked.
pub(super) struct Query {
    pub(super) context: SessionContext,
    pub(super) sql: String,
    pub(super) params: HashMap<String, Param>,
    /// The tables that there are, for messages.
    pub(super) tables: Vec<String>,
}

impl Query {
    /// Starts it on the threads of queries, watched from the other ones: they see the time-out even where all queries
    /// compute without a pause.
    pub(super) async fn start(
        self,
        threads: &Handle,
        watch: &Handle,
        limits: QueryLimits,
    ) -> Result<Rows, QueryError> {
        let (to, from) = mpsc::channel(BATCHES_AHEAD);
        let (told, schema) = oneshot::channel();
        let shown = self.shown();
        let waits = Arc::new(Waits::default());
        let clients = Arc::clone(&waits);
        let running = threads.spawn(async move {
            match self.plan().await {
                Ok(stream) => {
                    // Who asked may have gone.
                    let _ = told.send(Ok(stream.schema()));
                    send_all(stream, to, limits.rows, &clients).await;
                }
                Err(error) => drop(told.send(Err(error))),
            }
        });
        // Whatever ends before the rows are there ends the query.
        let ends = EndsTask(running.abort_handle());
        let (schema, failure) = first(schema, watch, watched(running, limits, shown, waits)).await?;
        let threads = threads.clone();
        Ok(Rows { schema, from, failure: Some(failure), threads, ended: false, _task: ends })
    }

    /// What it takes and gives, without running it.
    pub(super) async fn describe(
        self,
        threads: &Handle,
        watch: &Handle,
        limits: QueryLimits,
    ) -> Result<Described, QueryError> {
        self.look(threads, watch, limits, async |query| {
            let plan = query.read_only().await?;
            let mut parameters: Vec<_> = plan.get_parameter_types()?.into_iter().collect();
            // `$2` before `$10`.
            parameters.sort_by(|(a, _), (b, _)| (a.len(), a).cmp(&(b.len(), b)));
            let fields = parameters.into_iter();
            let fields = fields.map(|(name, kind)| Field::new(name, kind.unwrap_or(DataType::Null), true));
            let parameters = Schema::new(fields.collect::<Vec<_>>());
            // The types are settled by the analyzer.
            let state = query.context.state();
            let plan = gapfill::rewrite(query.with_values(plan)?, state.config().options())?;
            let plan = state.optimize(&plan)?;
            Ok(Described { columns: Arc::clone(plan.schema().inner()), parameters })
        })
        .await
    }

    /// All that it could ask.
    pub(super) async fn tables(
        self,
        threads: &Handle,
        watch: &Handle,
        limits: QueryLimits,
    ) -> Result<Vec<ListedTable>, QueryError> {
        self.look(threads, watch, limits, async |query| {
            let catalogs = Arc::clone(query.context.state().catalog_list());
            let own = catalogs.catalog(CATALOG).and_then(|it| it.schema(SCHEMA)).map(|it| (SCHEMA, it));
            let views: Arc<dyn SchemaProvider> = Arc::new(InformationSchemaProvider::new(catalogs));
            let mut tables = Vec::new();
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

    /// Does something that gives one answer, as [`Query::start`] does.
    async fn look<T: Send + 'static, F>(
        self,
        threads: &Handle,
        watch: &Handle,
        limits: QueryLimits,
        does: impl FnOnce(Self) -> F,
    ) -> Result<T, QueryError>
    where
        F: Future<Output = Result<T, QueryError>> + Send + 'static,
    {
        let (told, answer) = oneshot::channel();
        let (shown, work) = (self.shown(), does(self));
        let running = threads.spawn(async move { drop(told.send(work.await)) });
        let _ends = EndsTask(running.abort_handle());
        let watched = watched(running, limits, shown, Arc::default());
        Ok(first(answer, watch, watched).await?.0)
    }

    /// For the log.
    fn shown(&self) -> String {
        self.sql.chars().take(TOLD_CHARS).collect()
    }

    async fn plan(&self) -> Result<SendableRecordBatchStream, QueryError> {
        let plan = self.with_values(self.read_only().await?)?;
        if let Some(name) = plan.get_parameter_names()?.iter().min() {
            return Err(QueryError::Invalid(format!("{name} has no value: give it one in params")));
        }
        let plan = gapfill::rewrite(plan, self.context.state().config().options())?;
        let frame = self.context.execute_logical_plan(plan).await?;
        Ok(frame.execute_stream().await?)
    }

    /// The statement, if it only reads.
    async fn read_only(&self) -> Result<LogicalPlan, QueryError> {
        let read_only =
            SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
        let state = self.context.state();
        only_one_statement(&self.sql)?;
        let planned = state.create_logical_plan(&self.sql).await;
        let plan = planned.map_err(|error| name_tables(error.into(), &self.tables))?;
        read_only.verify_plan(&plan).map_err(|_| QueryError::NotReadOnly)?;
        Ok(plan)
    }

    fn with_values(&self, plan: LogicalPlan) -> Result<LogicalPlan, QueryError> {
        let values: HashMap<String, ScalarValue> =
            self.params.iter().map(|(name, value)| (name.clone(), scalar(value))).collect();
        Ok(if values.is_empty() { plan } else { plan.with_param_values(ParamValues::from(values))? })
    }
}

/// Waits for what a query tells first, or for its failure, of which there may be one later.
async fn first<T>(
    told: oneshot::Receiver<Result<T, QueryError>>,
    watch: &Handle,
    watched: impl Future<Output = Option<QueryError>> + Send + 'static,
) -> Result<(T, oneshot::Receiver<QueryError>), QueryError> {
    let (fails, failure) = oneshot::channel();
    watch.spawn(async move {
        if let Some(error) = watched.await {
            // Who asked may have gone.
            let _ = fails.send(error);
        }
    });
    let (told, failure) = match select(told, failure).await {
        Either::Left((Ok(told), failure)) => (told, failure),
        Either::Left((Err(_), failure)) => return Err(failure.await.unwrap_or(QueryError::Ended)),
        Either::Right((Ok(error), _)) => return Err(error),
        // It has ended well, and so has told it.
        Either::Right((Err(_), told)) => (told.await.unwrap_or(Err(QueryError::Ended)), oneshot::channel().1),
    };
    Ok((told?, failure))
}

fn scalar(param: &Param) -> ScalarValue {
    match param {
        Param::Null => ScalarValue::Null,
        Param::Boolean(value) => ScalarValue::Boolean(Some(*value)),
        Param::Integer(value) => ScalarValue::Int64(Some(*value)),
        Param::Unsigned(value) => ScalarValue::UInt64(Some(*value)),
        Param::Float(value) => ScalarValue::Float64(Some(*value)),
        Param::Text(value) => ScalarValue::Utf8(Some(value.clone())),
        Param::Time(ns) => ScalarValue::TimestampNanosecond(Some(*ns), None),
    }
}

async fn send_all(
    mut stream: SendableRecordBatchStream,
    to: mpsc::Sender<Result<RecordBatch, QueryError>>,
    most: u64,
    waits: &Waits,
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
        if waits.during(to.send(batch)).await.is_err() || failed {
            return;
        }
    }
    // An empty batch says that this was all, not a failure.
    let _ = to.send(Ok(RecordBatch::new_empty(stream.schema()))).await;
}

/// How long a query has waited for its client, which is no time of its own: who reads slowly, and when that is too
/// slow, is the port's business.
#[derive(Debug, Default)]
struct Waits(Mutex<(Duration, Option<Instant>)>);

impl Waits {
    async fn during<T>(&self, sending: impl Future<Output = T>) -> T {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1 = Some(Instant::now());
        let sent = sending.await;
        let mut waits = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(since) = waits.1.take() {
            waits.0 += since.elapsed();
        }
        sent
    }

    /// All of it, and what goes on just now.
    fn until_now(&self) -> Duration {
        let (before, since) = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        before + since.map_or(Duration::ZERO, |it| it.elapsed())
    }
}

/// Waits for the end of a query, and tells if that is no good one.
async fn watched(
    mut running: JoinHandle<()>,
    limits: QueryLimits,
    sql: String,
    waits: Arc<Waits>,
) -> Option<QueryError> {
    let ends = EndsTask(running.abort_handle());
    let begun = Instant::now();
    let error = loop {
        let own = begun.elapsed().saturating_sub(waits.until_now());
        let left = limits.time.saturating_sub(own);
        if left.is_zero() {
            break QueryError::TooSlow { after: limits.time };
        }
        match tokio::time::timeout(left.max(LOOKS_AGAIN), &mut running).await {
            Ok(Ok(())) => return None,
            Ok(Err(ended)) => break ended_early(ended, &sql),
            // Perhaps it has waited meanwhile.
            Err(_) => {}
        }
    };
    drop(ends);
    Some(error)
}

/// Why a task ended that did not end by itself.
pub(super) fn ended_early(ended: JoinError, sql: &str) -> QueryError {
    let Ok(panic) = ended.try_into_panic() else { return QueryError::Ended };
    let text = panic.downcast_ref::<&str>().map(|it| (*it).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
    tracing::error!(sql, "a query made this program panic, a fault of its own: {text}");
    QueryError::Panicked(text)
}

/// Ends a task when it is dropped.
#[derive(Debug)]
pub(super) struct EndsTask(pub(super) AbortHandle);

impl Drop for EndsTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The rows of an answer, batch by batch. The query ends when this is dropped.
#[derive(Debug)]
pub struct Rows {
    schema: SchemaRef,
    from: mpsc::Receiver<Result<RecordBatch, QueryError>>,
    /// `None` once the query can fail no more.
    failure: Option<oneshot::Receiver<QueryError>>,
    /// Where it is written, too.
    pub(super) threads: Handle,
    ended: bool,
    _task: EndsTask,
}

impl Rows {
    pub(crate) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn end(&mut self, error: QueryError) -> Poll<Option<Result<RecordBatch, QueryError>>> {
        self.ended = true;
        Poll::Ready(Some(Err(error)))
    }
}

impl Stream for Rows {
    type Item = Result<RecordBatch, QueryError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let next = self.from.poll_recv(context);
        match next {
            Poll::Ready(Some(Ok(batch))) if batch.num_rows() == 0 => {
                self.ended = true;
                return Poll::Ready(None);
            }
            Poll::Ready(Some(Ok(batch))) => return Poll::Ready(Some(Ok(batch))),
            Poll::Ready(Some(Err(error))) => return self.end(error),
            Poll::Ready(None) | Poll::Pending => {}
        }
        // No batch, and perhaps none will come.
        match self.failure.as_mut().map(|it| it.poll_unpin(context)) {
            Some(Poll::Pending) => Poll::Pending,
            Some(Poll::Ready(Ok(error))) => self.end(error),
            Some(Poll::Ready(Err(_))) | None => {
                self.failure = None;
                if next.is_ready() { self.end(QueryError::Ended) } else { Poll::Pending }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use arrow::datatypes::DataType;
    use datafusion::common::exec_err;
    use datafusion::logical_expr::{ColumnarValue, Volatility, create_udf};
    use futures_util::StreamExt as _;
    use tokio::runtime::{Builder, Runtime};

    use super::*;

    fn runtime() -> Runtime {
        Builder::new_multi_thread().worker_threads(1).enable_time().build().expect("a runtime")
    }

    /// What becomes of a query that calls a function which does this.
    fn outcome(time: Duration, does: impl Fn() + Send + Sync + 'static) -> QueryError {
        let (threads, watch) = (runtime(), runtime());
        let function = move |_: &[ColumnarValue]| {
            does();
            exec_err!("it goes on")
        };
        let context = SessionContext::new();
        let function = Arc::new(function);
        context.register_udf(create_udf("does", vec![], DataType::Int64, Volatility::Volatile, function));
        let limits = QueryLimits { time, ..QueryLimits::default() };
        let sql = "SELECT does()".to_owned();
        let query = Query { context, sql, params: HashMap::new(), tables: Vec::new() };
        let asked = Builder::new_current_thread().build().expect("a runtime");
        let error = asked.block_on(async {
            let mut rows = query.start(threads.handle(), watch.handle(), limits).await?;
            let error = rows.next().await.expect("an item").expect_err("no rows");
            assert!(rows.next().await.is_none(), "a failure is the last item");
            Err::<(), _>(error)
        });
        threads.shutdown_background();
        error.expect_err("it fails")
    }

    #[test]
    fn a_panic_is_told_as_one() {
        let error = outcome(Duration::from_secs(600), || panic!("a fault"));
        assert!(matches!(&error, QueryError::Panicked(text) if text == "a fault"), "{error}");
    }

    #[test]
    fn a_client_that_reads_slowly_is_no_slow_query() {
        let (threads, watch) = (runtime(), runtime());
        let limits = QueryLimits { time: Duration::from_secs(2), ..QueryLimits::default() };
        let sql = "SELECT * FROM generate_series(1, 100000)".to_owned();
        let query = Query { context: SessionContext::new(), sql, params: HashMap::new(), tables: Vec::new() };
        let asked = Builder::new_current_thread().enable_time().build().expect("a runtime");
        let count = asked.block_on(async {
            let mut rows = query.start(threads.handle(), watch.handle(), limits).await.expect("it starts");
            let mut count = 0;
            // The time is what is tested: it passes while some batches wait.
            tokio::time::sleep(limits.time + Duration::from_millis(500)).await;
            while let Some(batch) = rows.next().await {
                count += batch.expect("no failure").num_rows();
            }
            count
        });
        assert_eq!(count, 100_000);
    }

    #[test]
    fn a_time_out_comes_though_the_query_never_pauses() {
        let (release, wait) = channel::<()>();
        let wait: Mutex<Receiver<()>> = Mutex::new(wait);
        let error = outcome(Duration::from_millis(50), move || {
            // Until the test is over.
            let _ = wait.lock().expect("not poisoned").recv();
        });
        assert!(matches!(error, QueryError::TooSlow { .. }), "{error}");
        drop(release);
    }
}
