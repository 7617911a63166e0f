//! Why a query has no answer, in the words of whoever wrote it.

use std::time::Duration;

use datafusion::common::SchemaError;
use datafusion::error::DataFusionError;
use datafusion::execution::session_state::SessionState;

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
                    let alike = valid_fields.iter().find(|it| it.name.eq_ignore_ascii_case(&field.name));
                    let hint = alike.map_or(String::new(), |it| {
                        format!(": upper-case letters need double quotes, \"{}\"", it.name)
                    });
                    Self::UnknownColumn(format!("no column is called {}{hint}", field.name))
                }
                _ => Self::Invalid(text),
            },
            DataFusionError::Plan(problem)
                if problem.contains("table '") && problem.contains("not found") =>
            {
                Self::UnknownTable(problem.clone())
            }
            DataFusionError::ResourcesExhausted(problem) => {
                Self::TooMuchMemory(problem.lines().next().unwrap_or_default().to_owned())
            }
            DataFusionError::Plan(problem) => Self::Invalid(problem.clone()),
            DataFusionError::SQL(parser, _) => Self::Invalid(format!("the query cannot be parsed: {parser}")),
            DataFusionError::NotImplemented(problem) => Self::Invalid(format!("not supported: {problem}")),
            _ => Self::Failed(text),
        }
    }
}

/// # Errors
/// [`QueryError::ManyStatements`], or a text that is no SQL.
pub(super) fn only_one_statement(state: &SessionState, sql: &str) -> Result<(), QueryError> {
    use datafusion::sql::parser::DFParserBuilder;
    let dialect = datafusion::sql::sqlparser::dialect::GenericDialect {};
    let _ = state;
    let statements = DFParserBuilder::new(sql).with_dialect(&dialect).build()?.parse_statements()?;
    match statements.len() {
        1 => Ok(()),
        0 => Err(QueryError::Invalid("the query is empty".to_owned())),
        _ => Err(QueryError::ManyStatements),
    }
}
