//! Functions whose answer may be far longer than their arguments: DataFusion makes it outside of the memory of queries,
//! and a text of 2 GB would take the whole program down. So each is asked beforehand how long it may become, and some
//! that nobody needs are left out, see [`LEFT_OUT`].

use std::sync::Arc;

use arrow::array::{Array as _, ArrayRef, AsArray as _};
use arrow::compute::kernels::concat_elements::concat_elements_dyn;
use arrow::compute::{cast, max};
use arrow::datatypes::{DataType, Field, FieldRef, Int64Type};
use datafusion::common::tree_node::{Transformed, TreeNode as _};
use datafusion::common::{Result, exec_err, plan_err, resources_err};
use datafusion::config::ConfigOptions;
use datafusion::functions::{core, datetime, encoding, regex, string, unicode};
use datafusion::functions_nested::{concat, make_array, string as nested_string};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::simplify::{ExprSimplifyResult, SimplifyContext};
use datafusion::logical_expr::{
    BinaryExpr, ColumnarValue, Documentation, Expr, LogicalPlan, Operator, ReturnFieldArgs,
    ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use datafusion::optimizer::AnalyzerRule;
use datafusion::scalar::ScalarValue;

/// Bytes of what one call makes of a batch of rows: far more than a column of a table has.
const MAX_MADE_BYTES: usize = 64 << 20;
/// Bytes of what one call makes of constants: the planner has it for all rows, copies it, and writes it into the names of
/// columns and plans, where a byte takes up to four.
const MAX_CONSTANT_BYTES: usize = 64 << 10;
/// Bytes of a value of fixed size, which also null takes: a hash, an address.
const MAX_FIXED_BYTES: i64 = 1 << 10;
/// Bytes between two texts that `string_agg` puts together: it has them once more for each row of a batch.
const MAX_DELIMITER_BYTES: usize = 1 << 10;
/// What two characters of a format of times become at most.
const FORMAT_GROWTH: usize = 16;

/// Lists as long as their caller says, see [`why_left_out`]; and what computes for hours on two long texts, without a
/// pause in which it could be ended.
pub(super) const LEFT_OUT: [&str; 7] = [
    "range",
    "generate_series",
    "array_repeat",
    "array_resize",
    "array_replace_all",
    "array_replace_n",
    LEVENSHTEIN,
];
const LEVENSHTEIN: &str = "levenshtein";

/// For who calls one of [`LEFT_OUT`]. In FROM there are `generate_series` and `range` still: rows come as they are asked
/// for.
pub(super) fn why_left_out(name: &str) -> &'static str {
    match name {
        LEVENSHTEIN => "it would go on for hours on long texts, and cannot be ended",
        _ => "its list may be as long as its caller says; rows come FROM generate_series(…)",
    }
}

/// The functions, in the place of DataFusion's.
pub(super) fn functions() -> impl Iterator<Item = Arc<ScalarUDF>> {
    [
        (string::repeat(), Grows::Times),
        (unicode::lpad(), Grows::To),
        (unicode::rpad(), Grows::To),
        (string::replace(), Grows::Replaced),
        (regex::regexp_replace(), Grows::Matched),
        (string::concat(), Grows::Joined),
        (string::concat_ws(), Grows::Separated),
        (nested_string::array_to_string_udf(), Grows::Elements),
        (datetime::to_char(), Grows::Formatted),
        (encoding::encode(), Grows::Encoded),
        (make_array::make_array_udf(), Grows::Joined),
        (concat::array_concat_udf(), Grows::Joined),
        (concat::array_append_udf(), Grows::Joined),
        (concat::array_prepend_udf(), Grows::Joined),
        (core::arrow_cast(), Grows::Fixed),
        (core::arrow_try_cast(), Grows::Fixed),
    ]
    .into_iter()
    .map(|(function, grows)| Arc::new(ScalarUDF::new_from_impl(Bounded { function, grows })))
}

/// What makes a function's answer long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Grows {
    /// The first argument, as often as the second says.
    Times,
    /// As many characters as the second argument says.
    To,
    /// The third argument stands wherever the second is found in the first.
    Replaced,
    /// The same, found by a pattern, at the first place only if there is no fourth argument.
    Matched,
    /// Two characters for each byte of the first argument.
    Encoded,
    /// All arguments, one after the other.
    Joined,
    /// The same with the first one between.
    Separated,
    /// The elements of the first argument with the others between.
    Elements,
    /// A time in the words of the second argument.
    Formatted,
    /// Its type says how long each value is.
    Fixed,
}

impl Grows {
    /// Bytes of the answer, at most.
    fn most(self, args: &[ColumnarValue], rows: usize) -> Result<usize> {
        let arg = |place: usize| args.get(place).map_or(Ok(0), longest);
        Ok(match self {
            Self::Times => arg(0)?.saturating_mul(number(args.get(1))?).saturating_mul(rows),
            // Of up to four bytes.
            Self::To => number(args.get(1))?.saturating_mul(4).saturating_mul(rows),
            Self::Replaced => {
                let found = shortest(args.get(1));
                places(args, rows)?.saturating_mul(1 + arg(2)?.div_ceil(found))
            }
            // It may name what was found, by two characters each time.
            Self::Matched if args.len() > 3 || names_what_was_found(args.get(2)) => {
                places(args, rows)?.saturating_mul(1 + arg(2)?)
            }
            Self::Matched => total(args.first(), rows)?.saturating_add(arg(2)?.saturating_mul(rows)),
            Self::Encoded => total(args.first(), rows)?.saturating_mul(2),
            Self::Joined => joined(args, rows)?,
            Self::Separated => {
                let between = arg(0)?.saturating_mul(args.len()).saturating_mul(rows);
                joined(args, rows)?.saturating_add(between)
            }
            Self::Elements => {
                let between = arg(1)?.saturating_add(arg(2)?);
                total(args.first(), rows)?.saturating_mul(1 + between)
            }
            Self::Formatted => arg(1)?.saturating_mul(FORMAT_GROWTH).saturating_mul(rows),
            Self::Fixed => 0,
        })
    }
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Bounded {
    function: Arc<ScalarUDF>,
    grows: Grows,
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
        let field = self.function.return_field_from_args(args)?;
        let bytes = fixed_bytes(field.data_type());
        if self.grows == Grows::Fixed && bytes > MAX_FIXED_BYTES {
            return plan_err!(
                "{}: a value would have {bytes} bytes, {MAX_FIXED_BYTES} is the limit",
                self.name()
            );
        }
        Ok(field)
    }

    fn coerce_types(&self, given: &[DataType]) -> Result<Vec<DataType>> {
        self.function.coerce_types(given)
    }

    fn simplify(&self, args: Vec<Expr>, info: &SimplifyContext) -> Result<ExprSimplifyResult> {
        // Casts become what CAST is; what others become would not be asked how long it is.
        match self.grows {
            Grows::Fixed => self.function.simplify(args, info),
            _ => Ok(ExprSimplifyResult::Original(args)),
        }
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.function.documentation()
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        within(self.name(), &args, |args, rows| self.grows.most(args, rows))?;
        self.function.invoke_with_args(args)
    }
}

/// `bytes`: of the answer to these arguments for so many rows, at most.
fn within(
    name: &str,
    args: &ScalarFunctionArgs,
    bytes: impl Fn(&[ColumnarValue], usize) -> Result<usize>,
) -> Result<()> {
    if are_constant(&args.args) {
        let bytes = bytes(&args.args, 1)?;
        if bytes > MAX_CONSTANT_BYTES {
            // No shorter span would help.
            return exec_err!(
                "{name} would make up to {bytes} bytes of constants, {MAX_CONSTANT_BYTES} is the limit"
            );
        }
        return Ok(());
    }
    let bytes = bytes(&args.args, args.number_rows)?;
    if bytes > MAX_MADE_BYTES {
        return resources_err!("{name} would make up to {bytes} bytes, {MAX_MADE_BYTES} is the limit");
    }
    Ok(())
}

fn are_constant(args: &[ColumnarValue]) -> bool {
    args.iter().all(|it| matches!(it, ColumnarValue::Scalar(_)))
}

/// The greatest of these numbers; 0 without one.
fn number(numbers: Option<&ColumnarValue>) -> Result<usize> {
    let Some(numbers) = numbers else { return Ok(0) };
    let numbers = cast(&numbers.to_array(1)?, &DataType::Int64)?;
    Ok(usize::try_from(max(numbers.as_primitive::<Int64Type>()).unwrap_or(0)).unwrap_or(0))
}

/// The lengths of these texts, bytes. They are not copied for that: views may share one long text.
fn lengths(texts: &ArrayRef) -> Vec<usize> {
    match texts.data_type() {
        DataType::Utf8 => texts.as_string::<i32>().iter().map(|it| it.map_or(0, str::len)).collect(),
        DataType::LargeUtf8 => texts.as_string::<i64>().iter().map(|it| it.map_or(0, str::len)).collect(),
        DataType::Utf8View => texts.as_string_view().iter().map(|it| it.map_or(0, str::len)).collect(),
        DataType::BinaryView => texts.as_binary_view().iter().map(|it| it.map_or(0, <[u8]>::len)).collect(),
        DataType::Dictionary(_, _) => {
            let texts = texts.as_any_dictionary();
            let lengths = lengths(texts.values());
            texts.normalized_keys().into_iter().map(|it| lengths.get(it).copied().unwrap_or(0)).collect()
        }
        _ => Vec::new(),
    }
}

fn longest(texts: &ColumnarValue) -> Result<usize> {
    Ok(lengths(&texts.to_array(1)?).into_iter().max().unwrap_or(0))
}

/// At least 1: nothing is found between any two characters.
fn shortest(texts: Option<&ColumnarValue>) -> usize {
    match texts {
        Some(ColumnarValue::Scalar(text)) => text.try_as_str().flatten().map_or(1, |it| it.len().max(1)),
        _ => 1,
    }
}

/// Where something may be found in the first argument: a text has as many places as characters, and one more.
fn places(args: &[ColumnarValue], rows: usize) -> Result<usize> {
    Ok(total(args.first(), rows)?.saturating_add(rows))
}

fn names_what_was_found(replacement: Option<&ColumnarValue>) -> bool {
    match replacement {
        Some(ColumnarValue::Scalar(text)) => {
            text.try_as_str().flatten().is_some_and(|it| it.contains(['\\', '$']))
        }
        _ => true,
    }
}

/// Bytes that an argument takes in all rows.
fn total(arg: Option<&ColumnarValue>, rows: usize) -> Result<usize> {
    let bytes = |array: &ArrayRef| match array.data_type() {
        DataType::Utf8
        | DataType::LargeUtf8
        | DataType::Utf8View
        | DataType::BinaryView
        | DataType::Dictionary(_, _) => Ok(lengths(array).into_iter().sum()),
        _ => Ok(array.to_data().get_slice_memory_size()?),
    };
    match arg {
        None => Ok(0),
        Some(ColumnarValue::Array(array)) => bytes(array),
        Some(ColumnarValue::Scalar(value)) => {
            bytes(&value.to_array()?).map(|it: usize| it.saturating_mul(rows))
        }
    }
}

/// Bytes that null takes of this type.
fn fixed_bytes(data_type: &DataType) -> i64 {
    match data_type {
        DataType::FixedSizeBinary(size) => i64::from(*size),
        DataType::FixedSizeList(of, size) => {
            i64::from(*size).saturating_mul(fixed_bytes(of.data_type()).max(1))
        }
        DataType::Struct(fields) => {
            fields.iter().fold(0, |all, it| fixed_bytes(it.data_type()).saturating_add(all))
        }
        _ => 0,
    }
}

fn joined(args: &[ColumnarValue], rows: usize) -> Result<usize> {
    args.iter().try_fold(0_usize, |all, arg| Ok(all.saturating_add(total(Some(arg), rows)?)))
}

/// Has `||`, `[…]` and `string_agg` obey the limits, too.
#[derive(Debug)]
pub(super) struct Operators;

impl AnalyzerRule for Operators {
    fn name(&self) -> &'static str {
        "bounded_operators"
    }

    fn analyze(&self, plan: LogicalPlan, _: &ConfigOptions) -> Result<LogicalPlan> {
        let signature = Signature::any(2, Volatility::Immutable);
        let function = Arc::new(ScalarUDF::new_from_impl(Concat { signature }));
        let bounded: Vec<Arc<ScalarUDF>> = functions().collect();
        let replaced = |expr: Expr| match expr {
            Expr::BinaryExpr(BinaryExpr { left, op: Operator::StringConcat, right }) => {
                let args = vec![*left, *right];
                Ok(Transformed::yes(Expr::ScalarFunction(ScalarFunction::new_udf(
                    Arc::clone(&function),
                    args,
                ))))
            }
            // What stands for it in a plan may be DataFusion's own, as for `[…]`.
            Expr::ScalarFunction(call) => match bounded.iter().find(|it| it.name() == call.func.name()) {
                Some(it) => {
                    let call = ScalarFunction::new_udf(Arc::clone(it), call.args);
                    Ok(Transformed::yes(Expr::ScalarFunction(call)))
                }
                None => Ok(Transformed::no(Expr::ScalarFunction(call))),
            },
            Expr::AggregateFunction(ref call) if call.func.name() == "string_agg" => {
                let is_short = |it: &Expr| {
                    matches!(it, Expr::Literal(text, _)
                        if text.try_as_str().flatten().is_none_or(|it| it.len() <= MAX_DELIMITER_BYTES))
                };
                if call.params.args.get(1).is_some_and(|it| !is_short(it)) {
                    return plan_err!(
                        "string_agg: its second argument must be a text of {MAX_DELIMITER_BYTES} bytes at most, in \
                         single quotes"
                    );
                }
                Ok(Transformed::no(expr))
            }
            other => Ok(Transformed::no(other)),
        };
        let rewritten = plan.transform_up_with_subqueries(|plan| {
            let names = NamePreserver::new(&plan);
            plan.map_expressions(|expr| {
                let name = names.save(&expr);
                Ok(expr.transform_up(&replaced)?.update_data(|expr| name.restore(expr)))
            })
        })?;
        Ok(rewritten.data)
    }
}

/// `||` of two texts of the same type, which is null where one is.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Concat {
    signature: Signature,
}

impl ScalarUDFImpl for Concat {
    fn name(&self) -> &str {
        "||"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        let names: Vec<String> = args.iter().map(|it| it.schema_name().to_string()).collect();
        Ok(names.join(" || "))
    }

    fn display_name(&self, args: &[Expr]) -> Result<String> {
        let names: Vec<String> = args.iter().map(ToString::to_string).collect();
        Ok(names.join(" || "))
    }

    fn return_type(&self, given: &[DataType]) -> Result<DataType> {
        match given {
            [DataType::FixedSizeBinary(a), DataType::FixedSizeBinary(b)] => {
                Ok(DataType::FixedSizeBinary(a + b))
            }
            [text, _] => Ok(text.clone()),
            _ => plan_err!("|| takes two texts"),
        }
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        let types: Vec<DataType> = args.arg_fields.iter().map(|it| it.data_type().clone()).collect();
        let is_nullable = args.arg_fields.iter().any(|it| it.is_nullable());
        Ok(Arc::new(Field::new(self.name(), self.return_type(&types)?, is_nullable)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        within(self.name(), &args, joined)?;
        let arrays = ColumnarValue::values_to_arrays(&args.args)?;
        let [left, right] = &arrays[..] else { return plan_err!("|| takes two texts") };
        let joined = concat_elements_dyn(left, right)?;
        Ok(match are_constant(&args.args) {
            true => ColumnarValue::Scalar(ScalarValue::try_from_array(&joined, 0)?),
            false => ColumnarValue::Array(joined),
        })
    }
}
