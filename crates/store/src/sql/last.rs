//! `last_cache('table')`: the newest row of each series, from memory. InfluxDB 3 has the function for caches that are
//! made by hand; here every table has one, of all its columns, made when it is first asked for.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableFunctionArgs, TableFunctionImpl, TableProvider};
use datafusion::common::{Result, plan_err};
use datafusion::datasource::TableType;
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::error::DataFusionError;
use datafusion::logical_expr::Expr;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::scalar::ScalarValue;

use super::begun_ns;
use super::error::unknown_table;
use super::waiting::may_wait;
use crate::last::{self, LastRows, MAX_SERIES};
use crate::table::{Role, Table};

/// What the function is called.
pub(super) const NAME: &str = "last_cache";

/// The function, over the tables of one database.
#[derive(Debug)]
pub(super) struct LastCache {
    pub(super) tables: Arc<BTreeMap<String, Arc<Table>>>,
}

impl TableFunctionImpl for LastCache {
    fn call_with_args(&self, args: TableFunctionArgs<'_, '_>) -> Result<Arc<dyn TableProvider>> {
        // The second one names a cache, where a table has several.
        let name = match args.exprs() {
            [table] => text(table),
            [table, cache] => text(cache).and_then(|_| text(table)),
            _ => None,
        };
        let Some(name) = name else {
            return plan_err!("{NAME} wants the name of a table in single quotes: {NAME}('vm_totals')");
        };
        let Some(table) = self.tables.get(name) else { return Err(unknown_table(name)) };
        if let Role::RollUp { of, .. } = &table.role {
            return plan_err!("{NAME} has no roll-ups: ask {NAME}('{of}'), or {name} itself");
        }
        let schema = last::schema(&table.lock().columns);
        Ok(Arc::new(LastOfTable { table: Arc::clone(table), schema }))
    }
}

fn text(expr: &Expr) -> Option<&str> {
    match expr {
        Expr::Literal(ScalarValue::Utf8(text) | ScalarValue::Utf8View(text), _) => text.as_deref(),
        _ => None,
    }
}

#[derive(Debug)]
struct LastOfTable {
    table: Arc<Table>,
    schema: SchemaRef,
}

#[async_trait]
impl TableProvider for LastOfTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Temporary
    }

    async fn scan(
        &self,
        session: &dyn Session,
        projection: Option<&Vec<usize>>,
        _: &[Expr],
        _: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let wanted = match projection {
            None => Arc::clone(&self.schema),
            Some(columns) => Arc::new(self.schema.project(columns)?),
        };
        let now_ns = begun_ns(session);
        let rows = if self.table.must_fill_last() {
            let (table, wanted) = (Arc::clone(&self.table), Arc::clone(&wanted));
            may_wait(move |_| Ok(table.last_rows(&wanted, now_ns)?)).await?
        } else {
            self.table.last_rows(&wanted, now_ns)?
        };
        let LastRows::All(rows) = rows else {
            let name = &self.table.name;
            return Err(DataFusionError::ResourcesExhausted(format!(
                "{NAME}('{name}') holds {MAX_SERIES} series at most, and {name} has more: use SELECT DISTINCT ON over \
                 the last minutes"
            )));
        };
        Ok(MemorySourceConfig::try_new_exec(&[vec![rows]], wanted, None)?)
    }
}
