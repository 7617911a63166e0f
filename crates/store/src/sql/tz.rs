//! `tz(time, 'Europe/Berlin')`: the same moment, shown in a zone, as InfluxDB 3 has it. Times without a zone are UTC;
//! without a second argument the zone is UTC.

use std::str::FromStr as _;
use std::sync::Arc;

use arrow::array::timezone::Tz;
use arrow::array::{Array as _, AsArray as _};
use arrow::datatypes::{DataType, Field, FieldRef, TimeUnit, TimestampNanosecondType};
use datafusion::common::{Result, internal_err, plan_err};
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility,
};
use datafusion::scalar::ScalarValue;

#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct TimeZone {
    signature: Signature,
}

impl TimeZone {
    pub(super) fn new() -> Self {
        Self { signature: Signature::user_defined(Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for TimeZone {
    fn name(&self) -> &'static str {
        "tz"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, given: &[DataType]) -> Result<Vec<DataType>> {
        let Some(time) = given.first().filter(|_| given.len() <= 2) else {
            return plan_err!("tz wants a time and a time zone: tz(time, 'Europe/Berlin')");
        };
        let zone = match time {
            DataType::Timestamp(_, zone) => zone.clone(),
            DataType::Null | DataType::Utf8 | DataType::Utf8View | DataType::LargeUtf8 | DataType::Date32 => {
                None
            }
            other => return plan_err!("tz: its first argument must be a time, and is {other}"),
        };
        let time = DataType::Timestamp(TimeUnit::Nanosecond, zone);
        Ok(std::iter::once(time).chain(given.get(1).map(|_| DataType::Utf8)).collect())
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        internal_err!("tz depends on the value of its second argument")
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        let zone = match args.scalar_arguments {
            [_] => "UTC",
            [_, Some(zone)] => match zone.try_as_str() {
                Some(Some(zone)) => zone,
                _ => return plan_err!("tz: its second argument must be the name of a time zone"),
            },
            _ => {
                return plan_err!(
                    "tz: its second argument must be a time zone in single quotes: 'Europe/Berlin'"
                );
            }
        };
        if Tz::from_str(zone).is_err() {
            return plan_err!("tz: {zone:?} is no time zone: write it as Europe/Berlin or as +01:00");
        }
        let time = DataType::Timestamp(TimeUnit::Nanosecond, Some(Arc::from(zone)));
        Ok(Arc::new(Field::new("tz", time, args.arg_fields[0].is_nullable())))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let DataType::Timestamp(_, zone) = args.return_field.data_type() else {
            return internal_err!("tz gives a time");
        };
        match &args.args[0] {
            ColumnarValue::Scalar(ScalarValue::TimestampNanosecond(at, _)) => {
                Ok(ColumnarValue::Scalar(ScalarValue::TimestampNanosecond(*at, zone.clone())))
            }
            ColumnarValue::Array(times) => match times.as_primitive_opt::<TimestampNanosecondType>() {
                Some(times) => {
                    Ok(ColumnarValue::Array(Arc::new(times.clone().with_timezone_opt(zone.clone()))))
                }
                None => internal_err!("tz of {}", times.data_type()),
            },
            ColumnarValue::Scalar(other) => internal_err!("tz of {}", other.data_type()),
        }
    }
}
