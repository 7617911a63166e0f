//! `selector_first`, `selector_last`, `selector_min`, `selector_max`: the value of one row and its time, as InfluxDB 3 has
//! them. `selector_last(memrss, time)['value']` is the newest value, `['time']` its time.
//!
//! Rows whose value is null do not count; without any other, both are null. Of equal values `min` and `max` take the
//! earliest; of equal times `first` and `last` take the greatest value, where InfluxDB leaves open which.

use std::cmp::Ordering;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, StructArray, make_comparator};
use arrow::compute::SortOptions;
use arrow::datatypes::{DataType, Field, FieldRef, Fields, TimeUnit};
use datafusion::common::{Result, internal_datafusion_err, plan_err};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::format_state_name;
use datafusion::logical_expr::{Accumulator, AggregateUDF, AggregateUDFImpl, Signature, Volatility};
use datafusion::scalar::ScalarValue;

/// The four functions.
pub(super) fn all() -> impl Iterator<Item = Arc<AggregateUDF>> {
    [Which::First, Which::Last, Which::Min, Which::Max]
        .into_iter()
        .map(|which| Arc::new(AggregateUDF::new_from_impl(Selector { which, signature: signature() })))
}

fn signature() -> Signature {
    Signature::user_defined(Volatility::Immutable)
}

/// Which row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Which {
    First,
    Last,
    Min,
    Max,
}

impl Which {
    /// How a row stands to another, by value and by time: the lesser one is the one that is wanted.
    fn order(self, value: Ordering, time: Ordering) -> Ordering {
        match self {
            Self::First => time.then(value.reverse()),
            Self::Last => time.reverse().then(value.reverse()),
            Self::Min => value.then(time),
            Self::Max => value.reverse().then(time),
        }
    }
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Selector {
    which: Which,
    signature: Signature,
}

/// `{value, time}`.
fn fields(value: &DataType, time: &DataType) -> Fields {
    vec![Field::new("value", value.clone(), true), Field::new("time", time.clone(), true)].into()
}

impl AggregateUDFImpl for Selector {
    fn name(&self) -> &str {
        match self.which {
            Which::First => "selector_first",
            Which::Last => "selector_last",
            Which::Min => "selector_min",
            Which::Max => "selector_max",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, given: &[DataType]) -> Result<Vec<DataType>> {
        let name = self.name();
        let [value, time] = given else {
            return plan_err!("{name} wants a value and a time: {name}(memrss, time)");
        };
        let value = match value {
            DataType::Dictionary(_, of) => of.as_ref().clone(),
            other => other.clone(),
        };
        match time {
            DataType::Timestamp(_, zone) => {
                Ok(vec![value, DataType::Timestamp(TimeUnit::Nanosecond, zone.clone())])
            }
            other => {
                plan_err!("{name}: its second argument must be a time, and is {other}: {name}(memrss, time)")
            }
        }
    }

    fn return_type(&self, given: &[DataType]) -> Result<DataType> {
        match given {
            [value, time] => Ok(DataType::Struct(fields(value, time))),
            _ => plan_err!("{} wants a value and a time", self.name()),
        }
    }

    fn state_fields(&self, args: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        let DataType::Struct(fields) = args.return_type() else {
            return plan_err!("{} gives no struct", args.name);
        };
        let state = |it: &FieldRef| {
            Arc::new(Field::new(format_state_name(args.name, it.name()), it.data_type().clone(), true))
        };
        Ok(fields.iter().map(state).collect())
    }

    fn accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        let DataType::Struct(fields) = args.return_type() else {
            return plan_err!("{} gives no struct", args.name);
        };
        let null = |place: usize| ScalarValue::try_from(fields[place].data_type());
        Ok(Box::new(Selected { which: self.which, fields: fields.clone(), value: null(0)?, time: null(1)? }))
    }
}

/// The row that is wanted of those that came.
#[derive(Debug)]
struct Selected {
    which: Which,
    fields: Fields,
    /// Null before the first row.
    value: ScalarValue,
    time: ScalarValue,
}

impl Accumulator for Selected {
    fn update_batch(&mut self, columns: &[ArrayRef]) -> Result<()> {
        let [values, times] = columns else { return Err(internal_datafusion_err!("a value and a time")) };
        // A null time stands last.
        let options = SortOptions { descending: false, nulls_first: false };
        let compare = make_comparator(values, values, options)?;
        let compare_times = make_comparator(times, times, options)?;
        let valid = values.logical_nulls();
        let by_time = matches!(self.which, Which::First | Which::Last);
        let counts = |&row: &usize| {
            valid.as_ref().is_none_or(|it| it.is_valid(row)) && !(by_time && times.is_null(row))
        };
        let best = (0..values.len()).filter(counts).min_by(|&a, &b| {
            // Values are compared only where they decide: texts may be long.
            match self.which {
                Which::First | Which::Last => match compare_times(a, b) {
                    Ordering::Equal => self.which.order(compare(a, b), Ordering::Equal),
                    times => self.which.order(Ordering::Equal, times),
                },
                Which::Min | Which::Max => self.which.order(compare(a, b), compare_times(a, b)),
            }
        });
        let Some(row) = best else { return Ok(()) };
        let value = ScalarValue::try_from_array(values, row)?;
        let time = ScalarValue::try_from_array(times, row)?;
        let is_better = self.value.is_null() || {
            let by_value = value.partial_cmp(&self.value).unwrap_or(Ordering::Equal);
            self.which.order(by_value, time_of(&time).cmp(&time_of(&self.time))) == Ordering::Less
        };
        if is_better {
            (self.value, self.time) = (value, time);
        }
        Ok(())
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.update_batch(states)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![self.value.clone(), self.time.clone()])
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let columns = vec![self.value.to_array()?, self.time.to_array()?];
        Ok(ScalarValue::Struct(Arc::new(StructArray::try_new(self.fields.clone(), columns, None)?)))
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.value.size() - size_of_val(&self.value)
    }
}

/// A null time stands last.
fn time_of(time: &ScalarValue) -> i64 {
    match time {
        ScalarValue::TimestampNanosecond(Some(at), _) => *at,
        _ => i64::MAX,
    }
}
