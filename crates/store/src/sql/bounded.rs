//! `repeat`, `lpad` and `rpad`, whose answer may be as long as their caller says: DataFusion makes it outside of the memory
//! of queries, and a text of 2 GB would take the whole program down.

use std::sync::Arc;

use arrow::array::{Array as _, AsArray as _};
use arrow::compute::{cast, max};
use arrow::datatypes::{DataType, FieldRef, Int64Type};
use datafusion::common::{Result, resources_err};
use datafusion::functions::{string, unicode};
use datafusion::logical_expr::{
    ColumnarValue, Documentation, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
};

/// Bytes of the texts that one call makes of a batch of rows: far more than a column of a table has.
const MAX_TEXT_BYTES: i64 = 64 << 20;

/// The functions, in the place of DataFusion's.
pub(super) fn functions() -> impl Iterator<Item = Arc<ScalarUDF>> {
    [string::repeat(), unicode::lpad(), unicode::rpad()]
        .into_iter()
        .map(|function| Arc::new(ScalarUDF::new_from_impl(Bounded { function })))
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Bounded {
    function: Arc<ScalarUDF>,
}

impl ScalarUDFImpl for Bounded {
    fn name(&self) -> &str {
        self.function.name()
    }

    fn aliases(&self) -> &[String] {
        self.function.aliases()
    }

    fn signature(&self) -> &Signature {
        self.function.signature()
    }

    fn return_type(&self, given: &[DataType]) -> Result<DataType> {
        self.function.return_type(given)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        self.function.return_field_from_args(args)
    }

    fn coerce_types(&self, given: &[DataType]) -> Result<Vec<DataType>> {
        self.function.coerce_types(given)
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.function.documentation()
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        if let [text, times, ..] = &args.args[..] {
            // Padding makes texts of that many characters, of up to four bytes.
            let each = if self.name() == "repeat" { longest(text)? } else { 4 };
            let rows = i64::try_from(args.number_rows).unwrap_or(i64::MAX);
            let bytes = most(times)?.saturating_mul(each).saturating_mul(rows);
            if bytes > MAX_TEXT_BYTES {
                return resources_err!(
                    "{} would make up to {bytes} bytes, {MAX_TEXT_BYTES} is the limit",
                    self.name()
                );
            }
        }
        self.function.invoke_with_args(args)
    }
}

/// The greatest of these numbers; 0 without one.
fn most(numbers: &ColumnarValue) -> Result<i64> {
    let numbers = cast(&numbers.to_array(1)?, &DataType::Int64)?;
    Ok(max(numbers.as_primitive::<Int64Type>()).unwrap_or(0).max(0))
}

/// The length of the longest of these texts, or more; bytes.
fn longest(texts: &ColumnarValue) -> Result<i64> {
    let texts = cast(&texts.to_array(1)?, &DataType::LargeUtf8)?;
    let texts = texts.as_string::<i64>();
    let lengths = (0..texts.len()).map(|it| texts.value_length(it));
    Ok(lengths.max().unwrap_or(0))
}
