//! What a roll-up keeps of a field: its columns, and the values that they are made of.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Float64Array, Int64Array, StringArray, UInt64Array,
};
use arrow::datatypes::{Float64Type, Int64Type, UInt64Type};
use telemetry::catalogue;

use crate::schema::{Columns, Kind};

/// What a field's roll-up has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    Gauge,
    Counter,
    Last,
}

pub(super) fn shape(table: &str, field: &str, kind: Kind) -> Shape {
    match kind {
        Kind::String | Kind::Boolean => Shape::Last,
        _ if catalogue::kind_of(table, field) == Some(catalogue::Kind::Counter) => Shape::Counter,
        _ => Shape::Gauge,
    }
}

/// The column of the time that a bucket's increases cover, nanoseconds; of tables with counters. No field is called `time`.
pub(super) const COVERED: &str = "time_increase";

/// The columns of the roll-ups of a table.
pub(crate) fn columns(table: &str, of: &Columns) -> Columns {
    let mut columns = Columns { tags: of.tags.clone(), fields: BTreeMap::new() };
    let mut add = |name: String, kind: Kind| {
        // A tag of that name goes first.
        if !of.tags.contains(&name) {
            columns.fields.insert(name, kind);
        }
    };
    for (field, &kind) in &of.fields {
        let mut add = |tail: &str, kind: Kind| add(format!("{field}_{tail}"), kind);
        add("last", kind);
        match shape(table, field, kind) {
            Shape::Gauge => {
                add("min", kind);
                add("max", kind);
                add("mean", Kind::Float);
            }
            Shape::Counter => {
                add("increase", kind);
                add("rate_min", Kind::Float);
                add("rate_max", Kind::Float);
            }
            Shape::Last => {}
        }
    }
    if catalogue::has_counters(table) {
        add(COVERED.to_owned(), Kind::Integer);
    }
    columns
}

/// A field's value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Float(f64),
    Integer(i64),
    Unsigned(u64),
    Boolean(bool),
    Text(Arc<str>),
}

impl Value {
    pub(super) fn as_f64(&self) -> f64 {
        match self {
            Self::Float(value) => *value,
            Self::Integer(value) => *value as f64,
            Self::Unsigned(value) => *value as f64,
            Self::Boolean(_) | Self::Text(_) => 0.0,
        }
    }

    fn is_less(&self, than: &Self) -> bool {
        match (self, than) {
            (Self::Float(a), Self::Float(b)) => a < b,
            (Self::Integer(a), Self::Integer(b)) => a < b,
            (Self::Unsigned(a), Self::Unsigned(b)) => a < b,
            _ => false,
        }
    }

    /// How much more it is; `None` if less.
    pub(super) fn step_from(&self, before: &Self) -> Option<Self> {
        match (self, before) {
            (Self::Float(now), Self::Float(before)) if now >= before => Some(Self::Float(now - before)),
            (Self::Integer(now), Self::Integer(before)) if now >= before => {
                Some(Self::Integer(now.checked_sub(*before)?))
            }
            (Self::Unsigned(now), Self::Unsigned(before)) => Some(Self::Unsigned(now.checked_sub(*before)?)),
            _ => None,
        }
    }

    /// `None` where that is more than the kind can hold.
    fn plus(&self, step: &Self) -> Option<Self> {
        Some(match (self, step) {
            (Self::Float(a), Self::Float(b)) => Self::Float(Some(a + b).filter(|it| it.is_finite())?),
            (Self::Integer(a), Self::Integer(b)) => Self::Integer(a.checked_add(*b)?),
            (Self::Unsigned(a), Self::Unsigned(b)) => Self::Unsigned(a.checked_add(*b)?),
            _ => self.clone(),
        })
    }
}

/// A field's values in one bucket.
#[derive(Clone, Debug)]
pub(super) struct Summary {
    pub(super) count: u64,
    pub(super) sum: f64,
    pub(super) min: Value,
    pub(super) max: Value,
    pub(super) last: Value,
    pub(super) increase: Increase,
    /// The least rate of a step that is known, and the greatest, a second.
    pub(super) rates: Option<(f64, f64)>,
}

/// From one value of a counter to the next.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) increase: Value,
    /// How long it took, nanoseconds.
    pub(super) ns: i64,
}

impl Step {
    /// A second; `None` where no number is right.
    fn rate(&self) -> Option<f64> {
        Some(self.increase.as_f64() * 1e9 / self.ns as f64).filter(|it| it.is_finite())
    }
}

/// What is left of a rate's digits in a file: three. All of them would take as much room as the rest of the roll-ups, where
/// times jitter more than that.
const RATE_BITS: u32 = 10;
const DROPPED: u64 = (1 << (f64::MANTISSA_DIGITS - 1 - RATE_BITS)) - 1;

/// A rate with fewer digits, not greater.
pub(super) fn rounded_down(rate: f64) -> f64 {
    f64::from_bits(rate.to_bits() & !DROPPED)
}

/// A rate with fewer digits, not less: rates are not negative. `None` where there is no such number.
pub(super) fn rounded_up(rate: f64) -> Option<f64> {
    Some(f64::from_bits((rate.to_bits() + DROPPED) & !DROPPED)).filter(|it| it.is_finite())
}

/// How much more a counter became.
#[derive(Clone, Debug)]
pub(super) enum Increase {
    /// No step is known.
    Unknown,
    Known(Value),
    /// More than its kind can hold: no number is right.
    Beyond,
}

impl Increase {
    fn add(&mut self, step: &Value) {
        *self = match self {
            Self::Unknown => Self::Known(step.clone()),
            Self::Known(sum) => sum.plus(step).map_or(Self::Beyond, Self::Known),
            Self::Beyond => return,
        };
    }

    pub(super) fn known(&self) -> Option<Value> {
        match self {
            Self::Known(sum) => Some(sum.clone()),
            Self::Unknown | Self::Beyond => None,
        }
    }
}

impl Summary {
    pub(super) fn push(this: &mut Option<Self>, value: &Value, step: Option<&Step>) {
        let Some(it) = this else {
            let value = value.clone();
            *this = Some(Self {
                count: 1,
                sum: value.as_f64(),
                min: value.clone(),
                max: value.clone(),
                last: value,
                increase: step.map_or(Increase::Unknown, |it| Increase::Known(it.increase.clone())),
                rates: step.and_then(Step::rate).map(|it| (it, it)),
            });
            return;
        };
        it.count += 1;
        it.sum += value.as_f64();
        if value.is_less(&it.min) {
            it.min = value.clone();
        }
        if it.max.is_less(value) {
            it.max = value.clone();
        }
        it.last = value.clone();
        if let Some(step) = step {
            it.increase.add(&step.increase);
            let rates = it.rates.into_iter().chain(step.rate().map(|it| (it, it)));
            it.rates = rates.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)));
        }
    }

    /// `None` where the sum is more than a float can hold.
    pub(super) fn mean(&self) -> Option<Value> {
        Some(self.sum / self.count as f64).filter(|it| it.is_finite()).map(Value::Float)
    }
}

pub(crate) fn value_at(column: &ArrayRef, row: usize) -> Option<Value> {
    if column.is_null(row) {
        return None;
    }
    if let Some(column) = column.as_primitive_opt::<Int64Type>() {
        return Some(Value::Integer(column.value(row)));
    }
    if let Some(column) = column.as_primitive_opt::<Float64Type>() {
        return Some(Value::Float(column.value(row)));
    }
    if let Some(column) = column.as_primitive_opt::<UInt64Type>() {
        return Some(Value::Unsigned(column.value(row)));
    }
    if let Some(column) = column.as_boolean_opt() {
        return Some(Value::Boolean(column.value(row)));
    }
    column.as_string_opt::<i32>().map(|it| Value::Text(it.value(row).into()))
}

pub(crate) fn array(values: impl Iterator<Item = Option<Value>>, kind: Kind) -> ArrayRef {
    macro_rules! collect {
        ($array:ty, $variant:ident) => {
            Arc::new(
                values
                    .map(|it| match it {
                        Some(Value::$variant(value)) => Some(value),
                        _ => None,
                    })
                    .collect::<$array>(),
            )
        };
    }
    match kind {
        Kind::Float => collect!(Float64Array, Float),
        Kind::Integer => collect!(Int64Array, Integer),
        Kind::Unsigned => collect!(UInt64Array, Unsigned),
        Kind::Boolean => collect!(BooleanArray, Boolean),
        Kind::String => collect!(StringArray, Text),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use telemetry::lines::limits::ROLLUP_TAILS;

    use super::*;

    #[test]
    fn a_rounded_rate_is_a_bound() {
        for rate in [0.0, 1e-9, 0.1, 1.0, 25.0, 999.999, 1_000.0, 1e9 / 3.0, 1e300] {
            let (low, high) = (rounded_down(rate), rounded_up(rate).expect("a number"));
            assert!(low <= rate && rate <= high && high - low <= rate * 0.001, "{low} {rate} {high}");
        }
        assert_eq!((rounded_down(10_000.0), rounded_up(10_000.0)), (10_000.0, Some(10_000.0)));
        assert_eq!(rounded_up(f64::MAX), None);
    }

    #[test]
    fn columns_have_the_tails_that_no_tag_may_have() {
        let fields = [("rxbytes", Kind::Integer), ("heat", Kind::Float), ("note", Kind::String)];
        let fields = fields.into_iter().map(|(name, kind)| (name.to_owned(), kind)).collect();
        let columns = columns("vm_devices", &Columns { tags: BTreeSet::new(), fields });
        let tails = columns.fields.keys().filter_map(|it| Some(&it[it.rfind('_')?..]));
        assert_eq!(tails.collect::<BTreeSet<_>>(), ROLLUP_TAILS.into());
    }
}
