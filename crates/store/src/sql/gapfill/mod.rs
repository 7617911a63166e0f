//! `date_bin_gapfill`: `date_bin` that also gives the buckets without a row, as InfluxDB 3 has it; beside it
//! `locf(aggregate)`, which carries the last value on, and `interpolate(aggregate)`, which draws a line between two.
//!
//! The functions themselves do nothing: a plan that has them is written anew before it is optimized.
//!
//! ```text
//!  Projection: bucket, name, locf(avg(v))            Projection: bucket, name, "locf(avg(v))"
//!    Aggregate: date_bin_gapfill(…), name; avg(v)      GapFill: from, to, step; locf(avg(v))
//!      Filter: time >= … AND time < …           ──▶      Aggregate: date_bin(…), name; avg(v)
//!                                                          Filter: …
//! ```
//!
//! Where it begins and ends is what WHERE says of `time`; without an end it is now.

mod fill;

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, IntervalUnit, TimeUnit};
use async_trait::async_trait;
use datafusion::catalog::Session;
use datafusion::common::tree_node::{Transformed, TreeNode as _, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, DFSchemaRef, Result, internal_err, plan_err};
use datafusion::config::ConfigOptions;
use datafusion::execution::context::QueryPlanner;
use datafusion::functions::datetime;
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::{
    Aggregate, ColumnarValue, Expr, Extension, LogicalPlan, Projection, ScalarFunctionArgs, ScalarUDF,
    ScalarUDFImpl, Signature, UserDefinedLogicalNode, UserDefinedLogicalNodeCore, Volatility,
};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_planner::{DefaultPhysicalPlanner, ExtensionPlanner, PhysicalPlanner};
use datafusion::scalar::ScalarValue;

use super::pruning;
use crate::memory::Times;
use crate::schema::TIME;

const GAPFILL: &str = "date_bin_gapfill";
const LOCF: &str = "locf";
const INTERPOLATE: &str = "interpolate";
/// Buckets of a series: more than any chart has. Beyond it the query is refused.
const MAX_BUCKETS: i64 = 1_000_000;

/// The three functions.
pub(super) fn functions() -> impl Iterator<Item = Arc<ScalarUDF>> {
    [GAPFILL, LOCF, INTERPOLATE].into_iter().map(|name| {
        let signature = Signature::user_defined(Volatility::Volatile);
        Arc::new(ScalarUDF::new_from_impl(Marker { name, signature }))
    })
}

/// A function that says what is wanted and is gone before the query runs.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Marker {
    name: &'static str,
    signature: Signature,
}

impl ScalarUDFImpl for Marker {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, given: &[DataType]) -> Result<Vec<DataType>> {
        match (self.name, given) {
            (GAPFILL, [_, DataType::Timestamp(_, zone)] | [_, DataType::Timestamp(_, zone), _]) => {
                let time = DataType::Timestamp(TimeUnit::Nanosecond, zone.clone());
                let interval = DataType::Interval(IntervalUnit::MonthDayNano);
                Ok([interval, time.clone(), time][..given.len()].to_vec())
            }
            (GAPFILL, _) => {
                plan_err!("{GAPFILL} wants an interval and time: {GAPFILL}(INTERVAL '1 minute', time)")
            }
            (_, [_]) => Ok(given.to_vec()),
            (name, _) => plan_err!("{name} wants one aggregate: {name}(avg(memrss))"),
        }
    }

    fn return_type(&self, given: &[DataType]) -> Result<DataType> {
        let place = usize::from(self.name == GAPFILL);
        given.get(place).cloned().map_or_else(|| plan_err!("{} without arguments", self.name), Ok)
    }

    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> Result<ColumnarValue> {
        match self.name {
            GAPFILL => plan_err!("{GAPFILL} must be what the query groups by: GROUP BY 1, and once only"),
            name => plan_err!(
                "{name} wants an aggregate of the same SELECT as {GAPFILL}, and nothing else: {name}(avg(memrss)); \
                 filter, sort and window what it gives in a query around that one"
            ),
        }
    }
}

fn call<'a>(expr: &'a Expr, name: &str) -> Option<&'a ScalarFunction> {
    match expr {
        Expr::ScalarFunction(call) if call.func.name() == name => Some(call),
        Expr::Alias(alias) => self::call(&alias.expr, name),
        _ => None,
    }
}

/// Puts what fills gaps in the place of the functions that ask for it. A plan whose values are missing cannot run: only
/// its columns are as they will be.
///
/// # Errors
/// No beginning in WHERE, too many buckets, an interval of months.
pub(super) fn rewrite(plan: LogicalPlan, config: &Arc<ConfigOptions>) -> Result<LogicalPlan> {
    let has_values = plan.get_parameter_names()?.is_empty();
    let rewritten = plan.transform_up_with_subqueries(|plan| match plan {
        LogicalPlan::Aggregate(aggregate) => {
            match aggregate.group_expr.iter().position(|it| call(it, GAPFILL).is_some()) {
                Some(place) => {
                    Ok(Transformed::yes(fill_gaps(&aggregate, place, has_values.then_some(config))?))
                }
                None => Ok(Transformed::no(LogicalPlan::Aggregate(aggregate))),
            }
        }
        LogicalPlan::Projection(projection) => fill_values(projection),
        other => Ok(Transformed::no(other)),
    })?;
    Ok(rewritten.data)
}

/// Groups by date_bin, and adds the buckets that are missing. Without `config`: no matter which.
fn fill_gaps(
    aggregate: &Aggregate,
    place: usize,
    config: Option<&Arc<ConfigOptions>>,
) -> Result<LogicalPlan> {
    let group = &aggregate.group_expr[place];
    let Some(call) = call(group, GAPFILL) else { return internal_err!("no {GAPFILL}") };
    let grid = match config {
        Some(config) => grid(aggregate, place, call, config)?,
        None => Grid { time: place, groups: aggregate.group_expr.len(), first: 0, last: 0, step: 1 },
    };
    let mut groups = aggregate.group_expr.clone();
    let name = aggregate.schema.field(place).name().clone();
    groups[place] =
        Expr::ScalarFunction(ScalarFunction::new_udf(datetime::date_bin(), call.args.clone())).alias(name);
    let below = Aggregate::try_new(Arc::clone(&aggregate.input), groups, aggregate.aggr_expr.clone())?;
    Ok(GapFill::new(LogicalPlan::Aggregate(below), grid, Vec::new())?.into_plan())
}

/// Which buckets a query asks for.
fn grid(
    aggregate: &Aggregate,
    place: usize,
    call: &ScalarFunction,
    config: &Arc<ConfigOptions>,
) -> Result<Grid> {
    let time = match &call.args[..] {
        [_, Expr::Column(time), ..] if time.name == TIME => time,
        _ => return plan_err!("{GAPFILL}: its second argument must be the column time"),
    };
    let constant = |expr: &Expr| Constants::new(aggregate.input.schema(), config).simplify(expr);
    let step = match constant(&call.args[0])? {
        Expr::Literal(ScalarValue::IntervalMonthDayNano(Some(it)), _) if it.months == 0 => {
            i64::from(it.days).saturating_mul(86_400_000_000_000).saturating_add(it.nanoseconds)
        }
        _ => 0,
    };
    if step <= 0 {
        return plan_err!("{GAPFILL}: its interval must be a constant of days, hours, minutes or seconds");
    }
    let origin = match call.args.get(2).map(constant).transpose()? {
        None => 0,
        Some(Expr::Literal(ScalarValue::TimestampNanosecond(Some(at), _), _)) => at,
        Some(_) => return plan_err!("{GAPFILL}: its origin must be a constant time"),
    };
    let (low, high) = bounds(&aggregate.input, time, config)?;
    if low == i64::MIN {
        return plan_err!("{GAPFILL} wants to know where to begin: WHERE {time} >= …");
    }
    let start = |time: i64| {
        origin.saturating_add((time.saturating_sub(origin)).div_euclid(step).saturating_mul(step))
    };
    let grid =
        Grid { time: place, groups: aggregate.group_expr.len(), first: start(low), last: start(high), step };
    if grid.buckets() > MAX_BUCKETS {
        return plan_err!(
            "{GAPFILL}: more than {MAX_BUCKETS} buckets: a longer interval, or a shorter range of time"
        );
    }
    Ok(grid)
}

/// Has the node below fill the values that this one asks for by `locf` and `interpolate`.
fn fill_values(projection: Projection) -> Result<Transformed<LogicalPlan>> {
    let Some(node) = gap_fill_below(&projection.input) else {
        return Ok(Transformed::no(LogicalPlan::Projection(projection)));
    };
    let schema = node.input.schema();
    let filled = |expr: &Expr| {
        let Expr::ScalarFunction(it) = expr else { return Ok(None) };
        let how = match it.func.name() {
            LOCF => How::CarryOn,
            INTERPOLATE => How::Line,
            _ => return Ok(None),
        };
        let [Expr::Column(column)] = &it.args[..] else { return Ok(None) };
        let Some(column) = schema.maybe_index_of_column(column).filter(|&it| it >= node.grid.groups) else {
            return Ok(None);
        };
        let data_type = schema.field(column).data_type();
        if how == How::Line && !fill::has_line(data_type) {
            return plan_err!("{INTERPOLATE} wants numbers, and has {data_type}: use {LOCF}");
        }
        Ok(Some(Filled { column, how, name: expr.schema_name().to_string() }))
    };
    let mut wanted = BTreeSet::new();
    for expr in &projection.expr {
        expr.apply(|expr| {
            wanted.extend(filled(expr)?);
            Ok(TreeNodeRecursion::Continue)
        })?;
    }
    if wanted.is_empty() {
        return Ok(Transformed::no(LogicalPlan::Projection(projection)));
    }
    let new_node = GapFill::new(node.input.clone(), node.grid, wanted.into_iter().collect())?;
    let exprs = projection.expr.iter().cloned().map(|expr| {
        let replaced = expr.transform_up(|expr| match filled(&expr)? {
            Some(filled) => Ok(Transformed::yes(Expr::Column(Column::from_name(filled.name)))),
            None => Ok(Transformed::no(expr)),
        });
        replaced.map(|it| it.data)
    });
    let exprs = exprs.collect::<Result<Vec<_>>>()?;
    let input = put_below(projection.input.as_ref().clone(), &new_node)?;
    Ok(Transformed::yes(LogicalPlan::Projection(Projection::try_new(exprs, Arc::new(input))?)))
}

fn gap_fill(plan: &LogicalPlan) -> Option<&GapFill> {
    match plan {
        LogicalPlan::Extension(extension) => extension.node.as_any().downcast_ref(),
        _ => None,
    }
}

/// The node of the same SELECT.
fn gap_fill_below(plan: &LogicalPlan) -> Option<&GapFill> {
    match plan {
        LogicalPlan::Filter(having) => gap_fill_below(&having.input),
        LogicalPlan::Window(window) => gap_fill_below(&window.input),
        other => gap_fill(other),
    }
}

/// Puts this node in the place of [`gap_fill_below`]. What stands between hands on what is new.
fn put_below(plan: LogicalPlan, node: &GapFill) -> Result<LogicalPlan> {
    if gap_fill(&plan).is_some() {
        return Ok(node.clone().into_plan());
    }
    let plan = plan.map_children(|it| put_below(it, node).map(Transformed::yes))?;
    plan.data.recompute_schema()
}

/// Works out what is known before the query runs.
struct Constants(ExprSimplifier, DFSchemaRef);

impl Constants {
    fn new(schema: &DFSchemaRef, config: &Arc<ConfigOptions>) -> Self {
        let context = SimplifyContext::builder()
            .with_schema(Arc::clone(schema))
            .with_config_options(Arc::clone(config))
            .with_current_time();
        Self(ExprSimplifier::new(context.build()), Arc::clone(schema))
    }

    fn simplify(&self, expr: &Expr) -> Result<Expr> {
        self.0.simplify(self.0.coerce(expr.clone(), &self.1)?)
    }
}

/// The times that WHERE asks for of this column, which is called so in `input`; without an end, until now.
fn bounds(input: &LogicalPlan, time: &Column, config: &Arc<ConfigOptions>) -> Result<Times> {
    let (mut times, mut plan, mut place) =
        ((i64::MIN, i64::MAX), input, input.schema().index_of_column(time)?);
    loop {
        plan = match plan {
            LogicalPlan::Filter(filter) => {
                let schema = filter.input.schema();
                let predicate = Constants::new(schema, config).simplify(&filter.predicate)?;
                // Other tables of a join have a column of that name, too.
                let is_time = |it: &Column| schema.maybe_index_of_column(it) == Some(place);
                times = pruning::narrow(&[predicate], times, &is_time);
                &filter.input
            }
            LogicalPlan::SubqueryAlias(alias) => &alias.input,
            // What hands time on as it is.
            LogicalPlan::Projection(it) => match it.expr.get(place).map(|it| it.clone().unalias()) {
                Some(Expr::Column(column)) => {
                    place = it.input.schema().index_of_column(&column)?;
                    &it.input
                }
                _ => break,
            },
            _ => break,
        };
    }
    let (low, high) = times;
    if high < i64::MAX {
        return Ok((low, high));
    }
    let now =
        Expr::ScalarFunction(ScalarFunction::new_udf(datetime::now(&ConfigOptions::default()), Vec::new()));
    match Constants::new(input.schema(), config).simplify(&now)? {
        Expr::Literal(ScalarValue::TimestampNanosecond(Some(now), _), _) => Ok((low, now)),
        other => internal_err!("now is {other}"),
    }
}

/// Which buckets there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Grid {
    /// The place of the bucket among the columns.
    time: usize,
    /// So many columns are what is grouped by; the others are aggregates.
    groups: usize,
    first: i64,
    last: i64,
    step: i64,
}

impl Grid {
    fn buckets(&self) -> i64 {
        self.last.saturating_sub(self.first).div_euclid(self.step).saturating_add(1).max(0)
    }
}

/// How a value that is missing is filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum How {
    CarryOn,
    Line,
}

/// A column that is added: another one, filled.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Filled {
    column: usize,
    how: How,
    name: String,
}

/// The node of a plan that adds the buckets.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct GapFill {
    input: LogicalPlan,
    grid: Grid,
    filled: Vec<Filled>,
    schema: DFSchemaRef,
}

impl GapFill {
    fn new(input: LogicalPlan, grid: Grid, filled: Vec<Filled>) -> Result<Self> {
        let below = input.schema();
        let mut fields: Vec<_> = below
            .iter()
            .enumerate()
            .map(|(place, (table, field))| {
                // What is aggregated is null in a bucket without rows.
                let nullable = field.is_nullable() || place >= grid.groups;
                (table.cloned(), Arc::new(field.as_ref().clone().with_nullable(nullable)))
            })
            .collect();
        for it in &filled {
            let data_type = below.field(it.column).data_type().clone();
            fields.push((None, Arc::new(Field::new(&it.name, data_type, true))));
        }
        let schema = Arc::new(DFSchema::new_with_metadata(fields, below.metadata().clone())?);
        Ok(Self { input, grid, filled, schema })
    }

    fn into_plan(self) -> LogicalPlan {
        LogicalPlan::Extension(Extension { node: Arc::new(self) })
    }
}

impl PartialOrd for GapFill {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        if self == other { Some(Ordering::Equal) } else { None }
    }
}

impl UserDefinedLogicalNodeCore for GapFill {
    fn name(&self) -> &'static str {
        "GapFill"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.input]
    }

    fn schema(&self) -> &DFSchemaRef {
        &self.schema
    }

    fn expressions(&self) -> Vec<Expr> {
        Vec::new()
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let filled: Vec<&str> = self.filled.iter().map(|it| it.name.as_str()).collect();
        write!(f, "GapFill: buckets={}, filled=[{}]", self.grid.buckets(), filled.join(", "))
    }

    fn with_exprs_and_inputs(&self, _: Vec<Expr>, mut inputs: Vec<LogicalPlan>) -> Result<Self> {
        match inputs.pop() {
            Some(input) => Self::new(input, self.grid, self.filled.clone()),
            None => internal_err!("a GapFill without input"),
        }
    }
}

/// Plans as DataFusion does, and [`GapFill`].
#[derive(Debug)]
pub(super) struct Planner;

#[async_trait]
impl QueryPlanner for Planner {
    async fn create_physical_plan(
        &self,
        plan: &LogicalPlan,
        session: &dyn Session,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let planner = DefaultPhysicalPlanner::with_extension_planners(vec![Arc::new(Self)]);
        planner.create_physical_plan(plan, session).await
    }
}

#[async_trait]
impl ExtensionPlanner for Planner {
    async fn plan_extension(
        &self,
        _: &dyn PhysicalPlanner,
        node: &dyn UserDefinedLogicalNode,
        _: &[&LogicalPlan],
        inputs: &[Arc<dyn ExecutionPlan>],
        _: &dyn Session,
        _: &PhysicalPlanningContext,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let (Some(node), [input]) = (node.as_any().downcast_ref::<GapFill>(), inputs) else {
            return Ok(None);
        };
        let schema = Arc::clone(node.schema.inner());
        Ok(Some(Arc::new(fill::GapFillExec::new(Arc::clone(input), node.grid, node.filled.clone(), schema))))
    }
}
