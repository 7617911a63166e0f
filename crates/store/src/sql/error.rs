//! Why a query has no answer, in the words of whoever wrote it.

use std::time::Duration;

use arrow::error::ArrowError;
use datafusion::common::SchemaError;
use datafusion::common::utils::datafusion_strsim::levenshtein;
use datafusion::error::DataFusionError;

use super::{bounded, size};

/// Names of tables that a message lists.
const TOLD_TABLES: usize = 20;

/// How the crate `regex` says that a pattern takes too much memory, in its two forms.
const PATTERN_TOO_LARGE: [&str; 2] = ["CompiledTooBig", "regex exceeds size limit"];
/// How it says that it is none.
const NO_PATTERN: &str = "regex parse error:";

/// Why a query has no answer.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// No such database.
    #[error("database not found: {0}")]
    UnknownDatabase(String),
    /// No such table.
    #[error("{0}")]
    UnknownTable(String),
    /// No such column.
    #[error("{0}")]
    UnknownColumn(String),
    /// More than one statement.
    #[error("the query must be one statement")]
    ManyStatements,
    /// A statement that would change something.
    #[error("only queries are allowed: SELECT, SHOW, EXPLAIN")]
    NotReadOnly,
    /// Longer than a query may be.
    #[error("the query is longer than {most} bytes")]
    TooLong {
        /// The limit, bytes.
        most: usize,
    },
    /// It cannot be parsed or planned.
    #[error("{0}")]
    Invalid(String),
    /// It ran out of its time.
    #[error(
        "the query took longer than {after:?}: ask for a shorter time range, or from the roll-ups (_1m, _1h)"
    )]
    TooSlow {
        /// The limit.
        after: Duration,
    },
    /// It ran out of rows.
    #[error("the answer has more than {most} rows: aggregate, or add a LIMIT")]
    TooManyRows {
        /// The limit.
        most: u64,
    },
    /// It ran out of memory.
    #[error(
        "the query needs more memory than queries may take: ask for a shorter time range or fewer columns: {0}"
    )]
    TooMuchMemory(String),
    /// It failed while running.
    #[error("{0}")]
    Failed(String),
    /// It made this program panic.
    #[error("internal error: this query met a fault of kvmetry, its log says which: {0}")]
    Panicked(String),
    /// The program ends.
    #[error("the server is stopping")]
    Ended,
}

impl From<DataFusionError> for QueryError {
    fn from(error: DataFusionError) -> Self {
        let text = error.strip_backtrace();
        match error.find_root() {
            DataFusionError::SchemaError(schema, _) => match &**schema {
                SchemaError::FieldNotFound { field, valid_fields } => {
                    let hint = alike(&field.name, valid_fields.iter().map(|it| it.name.as_str()));
                    let hint = hint.map_or(String::new(), |it| format!(": {it}"));
                    Self::UnknownColumn(format!("no column is called {}{hint}", field.name))
                }
                _ => Self::Invalid(text),
            },
            DataFusionError::Plan(problem) if missing_table(problem).is_some() => {
                Self::UnknownTable(problem.clone())
            }
            DataFusionError::Plan(problem) if missing_function(problem).is_some() => {
                Self::Invalid(missing_function(problem).unwrap_or_default())
            }
            DataFusionError::ResourcesExhausted(problem) => {
                Self::TooMuchMemory(problem.lines().next().unwrap_or_default().to_owned())
            }
            DataFusionError::Plan(problem) => {
                Self::Invalid(refused_arguments(problem).unwrap_or(problem).to_owned())
            }
            DataFusionError::SQL(parser, _) => Self::Invalid(format!("the query cannot be parsed: {parser}")),
            DataFusionError::ExecutionJoin(ended) if ended.is_panic() => {
                tracing::error!("a query made this program panic, a fault of its own: {ended}");
                Self::Panicked(ended.to_string())
            }
            // What the query itself says cannot be: a time that is none, a division by zero.
            DataFusionError::ArrowError(problem, _)
                if matches!(
                    **problem,
                    ArrowError::ParseError(_)
                        | ArrowError::CastError(_)
                        | ArrowError::InvalidArgumentError(_)
                        | ArrowError::DivideByZero
                        | ArrowError::ArithmeticOverflow(_)
                        | ArrowError::ComputeError(_)
                ) =>
            {
                if matches!(**problem, ArrowError::InvalidArgumentError(_) | ArrowError::ComputeError(_)) {
                    // Mostly a pattern or a zone that is none; but a fault of this program would be told so, too.
                    tracing::debug!("arrow refused what a query gave it: {problem}");
                }
                Self::Invalid(problem.to_string())
            }
            // What functions say of their arguments. Likewise: what fails here has errors of its own, and DataFusion's
            // faults are told as internal.
            DataFusionError::Execution(problem) => {
                tracing::debug!("a function refused what a query gave it: {problem}");
                Self::Invalid(problem.clone())
            }
            DataFusionError::Configuration(problem) => Self::Invalid(problem.clone()),
            DataFusionError::NotImplemented(problem) => Self::Invalid(format!("not supported: {problem}")),
            _ => match refused_pattern(&text).or_else(|| refused_arguments(&text)) {
                Some(problem) => Self::Invalid(problem.to_owned()),
                None => Self::Failed(text),
            },
        }
    }
}

/// What is wrong with a regular expression, which functions tell in ways of their own, one as DataFusion's fault.
fn refused_pattern(problem: &str) -> Option<&str> {
    if PATTERN_TOO_LARGE.iter().any(|it| problem.contains(it)) {
        return Some("a regular expression is too large: make it shorter, or repeat less in it");
    }
    problem.find(NO_PATTERN).map(|from| &problem[from..])
}

/// What one of the store's own functions says of its arguments, without DataFusion's words around it.
fn refused_arguments(problem: &str) -> Option<&str> {
    let (_, problem) = problem.split_once("user-defined coercion failed with: Error during planning: ")?;
    Some(problem.split(". No function matches").next().unwrap_or(problem))
}

/// As DataFusion says it of a table in FROM.
pub(super) fn unknown_table(name: &str) -> DataFusionError {
    DataFusionError::Plan(format!("table 'public.iox.{name}' not found"))
}

/// A hint if one of these names is nearly this one, and not the same.
fn alike<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<String> {
    let distance = |it: &&str| levenshtein(&it.to_lowercase(), &name.to_lowercase());
    let nearest = names.min_by_key(distance).filter(|it| distance(it) <= 2.max(name.len() / 3))?;
    Some(match nearest {
        same if same == name => return None,
        same if same.eq_ignore_ascii_case(name) => {
            format!("upper-case letters need double quotes, \"{same}\"")
        }
        other => format!("did you mean {other}?"),
    })
}

/// The name of the table that was not found.
fn missing_table(problem: &str) -> Option<&str> {
    let (name, rest) = problem.split_once("table '")?.1.split_once('\'')?;
    rest.starts_with(" not found").then(|| name.rsplit('.').next().unwrap_or(name))
}

fn missing_function(problem: &str) -> Option<String> {
    let (name, rest) = problem.split_once("Invalid function '")?.1.split_once('\'')?;
    let name = name.to_ascii_lowercase();
    if bounded::LEFT_OUT.contains(&name.as_str()) {
        let why = bounded::why_left_out(&name);
        return Some(format!("{name} is left out here: {why}"));
    }
    // DataFusion proposes one that is not alike, too.
    let alike = rest.split('\'').nth(1).filter(|it| levenshtein(it, &name) <= 2);
    let hint = alike.map_or(String::new(), |it| format!(": did you mean {it}?"));
    Some(format!("no function is called {name}{hint}"))
}

/// Adds to an unknown table which ones there are.
pub(super) fn name_tables(error: QueryError, tables: &[String]) -> QueryError {
    let QueryError::UnknownTable(problem) = &error else { return error };
    let name = missing_table(problem).unwrap_or_default();
    if tables.is_empty() {
        return QueryError::UnknownTable(format!("{problem}: there are no points in this database yet"));
    }
    let hint = match alike(name, tables.iter().map(String::as_str)) {
        Some(hint) => format!("{hint} "),
        // There is one of that name: elsewhere.
        None if tables.iter().any(|it| it == name) => format!("did you mean public.iox.{name}? "),
        None => String::new(),
    };
    let is_rollup = |it: &&String| {
        let raw = it.strip_suffix("_1m").or_else(|| it.strip_suffix("_1h"));
        raw.is_some_and(|raw| tables.iter().any(|it| it == raw))
    };
    let raw: Vec<&str> = tables.iter().filter(|it| !is_rollup(it)).map(String::as_str).collect();
    let more = raw.len().saturating_sub(TOLD_TABLES);
    let listed = raw[..raw.len() - more].join(", ");
    let more = if more == 0 { String::new() } else { format!(" and {more} more: SHOW TABLES lists them") };
    let there_are = format!("there are {listed}{more}");
    let hint = if hint.is_empty() { there_are } else { format!("{hint}({there_are})") };
    QueryError::UnknownTable(format!("{problem}: {hint}"))
}

/// # Errors
/// [`QueryError::ManyStatements`], a text that is no SQL, or one that is too large to be planned.
pub(super) fn only_one_statement(sql: &str) -> Result<(), QueryError> {
    use datafusion::sql::parser::DFParserBuilder;
    let dialect = datafusion::sql::sqlparser::dialect::GenericDialect {};
    let statements = DFParserBuilder::new(sql).with_dialect(&dialect).build()?.parse_statements()?;
    match statements.len() {
        1 => size::check(sql, &statements[0]),
        0 => Err(QueryError::Invalid("the query is empty".to_owned())),
        _ => Err(QueryError::ManyStatements),
    }
}
