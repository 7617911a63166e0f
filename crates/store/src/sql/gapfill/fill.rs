//! Fills gaps: takes all groups' buckets, sorts them, and puts the missing ones between.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray as _, Float64Array, Int64Array, TimestampNanosecondArray, UInt32Array,
    UInt64Array,
};
use arrow::compute::{SortColumn, concat_batches, lexsort_to_indices, partition, take, take_record_batch};
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Float64Type, Int64Type, SchemaRef, TimestampNanosecondType, UInt64Type,
};
use arrow::record_batch::RecordBatch;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, internal_datafusion_err, internal_err, plan_err, resources_err};
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, Distribution, ExecutionPlan, InputDistributionRequirements, Partitioning,
    PlanProperties,
};
use futures_util::{StreamExt as _, TryStreamExt as _};

use super::super::waiting::may_wait;
use super::{Filled, Grid, How};

/// Rows that are given at once.
const GIVEN_ROWS: usize = 8_192;
/// Rows of all series together: as many as an answer may have by default.
const MAX_ROWS: usize = 10_000_000;
/// What a value takes while it is filled, bytes, roughly; texts, lists and the like besides.
const VALUE_BYTES: usize = 16;

/// Whether [`How::Line`] can fill it.
pub(super) fn has_line(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Float64 | DataType::Int64 | DataType::UInt64)
}

/// Fills gaps.
#[derive(Debug)]
pub(super) struct GapFillExec {
    input: Arc<dyn ExecutionPlan>,
    grid: Grid,
    filled: Vec<Filled>,
    schema: SchemaRef,
    properties: Arc<PlanProperties>,
}

impl GapFillExec {
    pub(super) fn new(
        input: Arc<dyn ExecutionPlan>,
        grid: Grid,
        filled: Vec<Filled>,
        schema: SchemaRef,
    ) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&schema)),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Final,
            Boundedness::Bounded,
        );
        Self { input, grid, filled, schema, properties: Arc::new(properties) }
    }
}

impl DisplayAs for GapFillExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GapFillExec: buckets={}", self.grid.buckets())
    }
}

impl ExecutionPlan for GapFillExec {
    fn name(&self) -> &'static str {
        "GapFillExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn input_distribution_requirements(&self) -> InputDistributionRequirements {
        InputDistributionRequirements::new(vec![Distribution::SinglePartition])
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        match children.pop() {
            Some(input) => {
                Ok(Arc::new(Self::new(input, self.grid, self.filled.clone(), Arc::clone(&self.schema))))
            }
            None => internal_err!("gaps of nothing"),
        }
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let mut input = self.input.execute(partition, Arc::clone(&context))?;
        let memory = MemoryConsumer::new("gap filling").register(context.memory_pool());
        let (grid, filled, schema) = (self.grid, self.filled.clone(), Arc::clone(&self.schema));
        let rows = async move {
            let mut batches = Vec::new();
            while let Some(batch) = input.next().await.transpose()? {
                // As it came, put together, in order.
                memory.try_grow(3 * batch.get_array_memory_size())?;
                batches.push(batch);
            }
            let rows = concat_batches(&input.schema(), &batches)?;
            let rows = may_wait(move |wanted| {
                let rows = sorted(&rows, grid)?;
                let series = series(&rows, grid)?;
                let most = series.len().saturating_mul(usize::try_from(grid.buckets()).unwrap_or(usize::MAX));
                let most = most.saturating_add(rows.num_rows());
                if most > MAX_ROWS {
                    return resources_err!(
                        "filled gaps would have {most} rows, {MAX_ROWS} is the limit: a longer interval, or fewer series"
                    );
                }
                memory.try_grow(most * VALUE_BYTES * (schema.fields().len() + 1))?;
                wanted.check()?;
                fill(&rows, &series, grid, &filled, &schema, &memory).map(|rows| (rows, memory))
            });
            rows.await
        };
        let given = futures_util::stream::once(rows).map_ok(|(rows, memory)| {
            let starts = (0..rows.num_rows()).step_by(GIVEN_ROWS);
            let given = starts.map(move |at| {
                let _held = &memory;
                Ok(rows.slice(at, GIVEN_ROWS.min(rows.num_rows() - at)))
            });
            futures_util::stream::iter(given)
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), given.try_flatten())))
    }
}

/// By what is grouped by, then by time.
fn sorted(rows: &RecordBatch, grid: Grid) -> Result<RecordBatch> {
    let by: Vec<SortColumn> = (0..grid.groups)
        .filter(|&it| it != grid.time)
        .chain([grid.time])
        .map(|it| SortColumn { values: Arc::clone(rows.column(it)), options: None })
        .collect();
    Ok(take_record_batch(rows, &lexsort_to_indices(&by, None)?)?)
}

/// The rows of each series.
fn series(rows: &RecordBatch, grid: Grid) -> Result<Vec<Range<usize>>> {
    let groups = (0..grid.groups).filter(|&it| it != grid.time);
    let groups: Vec<ArrayRef> = groups.map(|it| Arc::clone(rows.column(it))).collect();
    Ok(match rows.num_rows() {
        0 => Vec::new(),
        // Not one range, but a list of one.
        rows if groups.is_empty() => std::iter::once(0..rows).collect(),
        _ => partition(&groups)?.ranges(),
    })
}

/// The rows that come out: for each its time, its row if it has one, and a row of its series.
#[derive(Default)]
struct Out {
    times: Vec<i64>,
    rows: Vec<Option<u32>>,
    of_series: Vec<u32>,
    /// By series.
    ranges: Vec<Range<usize>>,
}

fn fill(
    rows: &RecordBatch,
    series: &[Range<usize>],
    grid: Grid,
    filled: &[Filled],
    schema: &SchemaRef,
    memory: &MemoryReservation,
) -> Result<RecordBatch> {
    let times = rows.column(grid.time).as_primitive_opt::<TimestampNanosecondType>();
    let times = times.ok_or_else(|| internal_datafusion_err!("buckets are times"))?;
    if times.null_count() > 0 {
        return plan_err!(
            "a row is in no bucket: its time is null, or too far from the origin of the buckets"
        );
    }
    let mut out = Out::default();
    for range in series {
        let from = out.times.len();
        let mut buckets =
            (0..grid.buckets()).map(|it| grid.first.saturating_add(it.saturating_mul(grid.step))).peekable();
        let mut push = |time: i64, row: Option<usize>| {
            out.times.push(time);
            out.rows.push(row.map(|it| it as u32));
            out.of_series.push(range.start as u32);
        };
        for row in range.clone() {
            let time = times.value(row);
            while let Some(missing) = buckets.next_if(|&it| it < time) {
                push(missing, None);
            }
            // A row beyond the grid stays: now() may have gone on.
            buckets.next_if_eq(&time);
            push(time, Some(row));
        }
        buckets.for_each(|missing| push(missing, None));
        out.ranges.push(from..out.times.len());
    }
    let (own, of_series) = (UInt32Array::from(out.rows.clone()), UInt32Array::from(out.of_series.clone()));
    let mut columns: Vec<ArrayRef> = Vec::with_capacity(schema.fields().len());
    for (place, column) in rows.columns().iter().enumerate() {
        columns.push(if place == grid.time {
            let zone = times.timezone().map(Arc::from);
            Arc::new(TimestampNanosecondArray::from(out.times.clone()).with_timezone_opt::<Arc<str>>(zone))
        } else if place < grid.groups {
            taken(column, &of_series, memory)?
        } else {
            taken(column, &own, memory)?
        });
    }
    for it in filled {
        let column = rows.column(it.column);
        columns.push(match it.how {
            How::CarryOn => taken(column, &carried_on(column, &out), memory)?,
            How::Line => line(column, &out)?,
        });
    }
    Ok(RecordBatch::try_new(Arc::clone(schema), columns)?)
}

/// These rows of a column. What a value takes beyond [`VALUE_BYTES`] is counted for each of them.
fn taken(column: &ArrayRef, rows: &UInt32Array, memory: &MemoryReservation) -> Result<ArrayRef> {
    let is_small = matches!(column.data_type(), DataType::Boolean | DataType::Dictionary(_, _));
    if !is_small && !column.data_type().is_primitive() {
        let size = |row| Ok(column.slice(row, 1).to_data().get_slice_memory_size()?);
        let sizes = (0..column.len()).map(size).collect::<Result<Vec<usize>>>()?;
        memory.try_grow(rows.iter().flatten().map(|row| sizes[row as usize]).sum())?;
    }
    Ok(take(column, rows, None)?)
}

/// For each row that comes out the last one of its series that has a value.
fn carried_on(column: &ArrayRef, out: &Out) -> UInt32Array {
    let mut from = Vec::with_capacity(out.rows.len());
    for range in &out.ranges {
        let mut last = None;
        for row in &out.rows[range.clone()] {
            last = row.filter(|&it| column.is_valid(it as usize)).or(last);
            from.push(last);
        }
    }
    from.into()
}

fn line(column: &ArrayRef, out: &Out) -> Result<ArrayRef> {
    // Between two values, as far as the time between them has gone; whole numbers exactly, rounded towards zero.
    let whole = |from: i128, to: i128, gone: u64, of: u64| {
        let part = (to - from).unsigned_abs() * u128::from(gone) / u128::from(of);
        from + (to - from).signum() * part as i128
    };
    Ok(match column.data_type() {
        DataType::Float64 => {
            let between =
                |from: f64, to: f64, gone: u64, of: u64| from + (to - from) * (gone as f64 / of as f64);
            Arc::new(values::<Float64Type>(column, out, between).into_iter().collect::<Float64Array>())
        }
        DataType::Int64 => {
            let between = |from: i64, to: i64, gone, of| whole(from.into(), to.into(), gone, of) as i64;
            Arc::new(values::<Int64Type>(column, out, between).into_iter().collect::<Int64Array>())
        }
        DataType::UInt64 => {
            let between = |from: u64, to: u64, gone, of| whole(from.into(), to.into(), gone, of) as u64;
            Arc::new(values::<UInt64Type>(column, out, between).into_iter().collect::<UInt64Array>())
        }
        other => return internal_err!("no line through {other}"),
    })
}

/// The values of a column with those between them worked out. Before the first and after the last there is none.
fn values<T: ArrowPrimitiveType>(
    column: &ArrayRef,
    out: &Out,
    between: impl Fn(T::Native, T::Native, u64, u64) -> T::Native,
) -> Vec<Option<T::Native>> {
    let column = column.as_primitive::<T>();
    let mut values = vec![None; out.rows.len()];
    for range in &out.ranges {
        let mut before: Option<(usize, T::Native)> = None;
        for at in range.clone() {
            let Some(row) = out.rows[at].filter(|&it| column.is_valid(it as usize)) else { continue };
            let value = column.value(row as usize);
            if let Some((from, old)) = before {
                // Between the first and the last there are more nanoseconds than i64 has.
                let gone = |time: i64| time.abs_diff(out.times[from]);
                for (missing, time) in values[from + 1..at].iter_mut().zip(&out.times[from + 1..]) {
                    *missing = Some(between(old, value, gone(*time), gone(out.times[at])));
                }
            }
            values[at] = Some(value);
            before = Some((at, value));
        }
    }
    values
}
