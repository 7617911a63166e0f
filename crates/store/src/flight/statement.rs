//! A query as it travels: with its values, in a ticket or handle.
//!
//! ```text
//! InfluxDB's ticket   {"database":"kvmetry","sql_query":"SELECT …","query_type":"sql","params":{"name":1}}
//! handle              {"sql":"SELECT … $1 …","values":{"1":{"Integer":5}}}
//! ```

use std::collections::HashMap;

use arrow::array::{Array, ArrayRef, AsArray as _, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type, Int64Type, TimeUnit, TimestampNanosecondType, UInt64Type};
use bytes::Bytes;
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tonic::Status;

use crate::sql::{MAX_SQL_BYTES, Param, QueryError};

/// A query and the values of its `$name`s or `$1`s.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Statement {
    pub(super) sql: String,
    pub(super) values: HashMap<String, Param>,
}

impl Statement {
    /// A query in which `?` is the same as `$1`, `$2` and so on, in their order.
    ///
    /// # Errors
    /// One that is too long.
    pub(super) fn new(sql: &str) -> Result<Self, Status> {
        if sql.len() > MAX_SQL_BYTES {
            return Err(super::status(QueryError::TooLong { most: MAX_SQL_BYTES }));
        }
        Ok(Self { sql: numbered(sql), values: HashMap::new() })
    }

    /// # Errors
    /// Bytes that are no handle of ours.
    pub(super) fn decode(handle: &[u8]) -> Result<Self, Status> {
        serde_json::from_slice(handle)
            .map_err(|_| Status::invalid_argument("the handle is none that this server gave"))
    }

    pub(super) fn encode(&self) -> Result<Bytes, Status> {
        let json = serde_json::to_vec(self).map_err(|error| Status::internal(error.to_string()))?;
        Ok(json.into())
    }

    /// Takes the values of the first row, `$1` in the first column.
    ///
    /// # Errors
    /// A value that no parameter can be.
    pub(super) fn bind(&mut self, row: &RecordBatch) -> Result<(), Status> {
        let values = row.columns().iter().enumerate();
        let values = values.map(|(at, column)| Ok(((at + 1).to_string(), first(column)?)));
        self.values = values.collect::<Result<_, Status>>()?;
        Ok(())
    }
}

/// `?` as `$1`, `$2`, which is what the planner knows.
fn numbered(sql: &str) -> String {
    let tokens = Tokenizer::new(&GenericDialect, sql).with_unescape(false).tokenize();
    // What cannot be read is refused by the planner, in its words.
    let Ok(tokens) = tokens else { return sql.to_owned() };
    let is_mark = |token: &Token| matches!(token, Token::Placeholder(it) if it == "?");
    if !tokens.iter().any(is_mark) {
        return sql.to_owned();
    }
    let mut marks = 0;
    let text = tokens.into_iter().map(|token| match token {
        Token::Placeholder(it) if it == "?" => {
            marks += 1;
            format!("${marks}")
        }
        other => other.to_string(),
    });
    text.collect()
}

fn first(column: &ArrayRef) -> Result<Param, Status> {
    if column.is_null(0) || *column.data_type() == DataType::Null {
        return Ok(Param::Null);
    }
    let as_type = |wanted| {
        let cast = cast(column, &wanted).ok().filter(|array| !array.is_null(0));
        cast.ok_or_else(|| Status::invalid_argument(format!("a {} value is too large", column.data_type())))
    };
    match column.data_type() {
        DataType::Boolean => Ok(Param::Boolean(column.as_boolean().value(0))),
        DataType::UInt64 => Ok(Param::Unsigned(column.as_primitive::<UInt64Type>().value(0))),
        it if it.is_integer() => {
            Ok(Param::Integer(as_type(DataType::Int64)?.as_primitive::<Int64Type>().value(0)))
        }
        it if it.is_floating() => {
            let value = as_type(DataType::Float64)?.as_primitive::<Float64Type>().value(0);
            // Handles are JSON, which has no other.
            let finite = Some(value).filter(|value| value.is_finite());
            finite.map(Param::Float).ok_or_else(|| Status::invalid_argument("a value is not a finite number"))
        }
        // One of its values only: the others may be anything, and many.
        DataType::Dictionary(_, _) => {
            let dictionary = column.as_any_dictionary();
            first(&dictionary.values().slice(dictionary.normalized_keys()[0], 1))
        }
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => {
            Ok(Param::Text(as_type(DataType::Utf8)?.as_string::<i32>().value(0).to_owned()))
        }
        DataType::Timestamp(_, _) | DataType::Date32 | DataType::Date64 => {
            let time = as_type(DataType::Timestamp(TimeUnit::Nanosecond, None))?;
            Ok(Param::Time(time.as_primitive::<TimestampNanosecondType>().value(0)))
        }
        other => Err(Status::invalid_argument(format!("a value cannot be a {other}"))),
    }
}

/// InfluxDB's ticket, as its clients write it; old ones say `namespace_name`.
#[derive(Deserialize)]
struct JsonTicket {
    #[serde(alias = "namespace_name")]
    database: Option<String>,
    sql_query: String,
    query_type: Option<String>,
    params: Option<Map<String, Value>>,
}

/// The database and the query of a ticket.
///
/// # Errors
/// What is malformed or in another language.
pub(super) fn of_ticket(ticket: &[u8]) -> Result<(Option<String>, Statement), Status> {
    let ticket: JsonTicket = serde_json::from_slice(ticket)
        .map_err(|error| Status::invalid_argument(format!("the ticket is malformed: {error}")))?;
    if let Some(other) = ticket.query_type.filter(|it| !it.eq_ignore_ascii_case("sql")) {
        let message = format!("query_type {other:?} is not spoken here: ask in SQL, with query_type \"sql\"");
        return Err(Status::unimplemented(message));
    }
    let params = ticket.params.unwrap_or_default().into_iter();
    let values = params.map(|(name, value)| match Param::of_json(&value) {
        Some(value) => Ok((name, value)),
        None => {
            let message = format!("the parameter {name:?} must be a text, a number, true, false or null");
            Err(Status::invalid_argument(message))
        }
    });
    let values = values.collect::<Result<_, _>>()?;
    Ok((ticket.database, Statement { sql: ticket.sql_query, values }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn question_marks_are_numbered() {
        #[track_caller]
        fn check(sql: &str, expect: &str) {
            assert_eq!(Statement::new(sql).unwrap().sql, expect);
        }
        check("SELECT 1", "SELECT 1");
        check("SELECT ?  , ? -- why?\n FROM t", "SELECT $1  , $2 -- why?\n FROM t");
        check("SELECT '?', 'it''s', \"?\" , ?", "SELECT '?', 'it''s', \"?\" , $1");
        check("SELECT $2, '?'", "SELECT $2, '?'");
        check("SELECT 'open ?", "SELECT 'open ?");
    }

    #[test]
    fn a_handle_is_the_statement() {
        let values = [
            Param::Null,
            Param::Boolean(true),
            Param::Integer(i64::MIN),
            Param::Unsigned(u64::MAX),
            Param::Float(0.1),
            Param::Text("ä\"".to_owned()),
            Param::Time(i64::MAX),
        ];
        let values = values.into_iter().enumerate().map(|(at, value)| (at.to_string(), value)).collect();
        let statement = Statement { sql: "SELECT $1".to_owned(), values };
        assert_eq!(Statement::decode(&statement.encode().unwrap()).unwrap(), statement);
        for strange in [&b""[..], b"{}", b"\xff", b"{\"sql\":1,\"values\":{}}"] {
            assert!(Statement::decode(strange).is_err());
        }
    }

    #[test]
    fn tickets() {
        #[track_caller]
        fn check(ticket: &str, expect: Result<(Option<&str>, &str), &str>) {
            let found = of_ticket(ticket.as_bytes());
            match (&found, expect) {
                (Ok((database, statement)), Ok(expect)) => {
                    assert_eq!((database.as_deref(), statement.sql.as_str()), expect);
                }
                (Err(status), Err(part)) => assert!(status.message().contains(part), "{status}"),
                _ => panic!("{found:?}"),
            }
        }
        let query = r#"{"database":"kvm","sql_query":"SELECT 1","query_type":"sql"}"#;
        check(query, Ok((Some("kvm"), "SELECT 1")));
        check(r#"{"namespace_name":"kvm","sql_query":"SELECT 1"}"#, Ok((Some("kvm"), "SELECT 1")));
        check(r#"{"sql_query":"SELECT 1","params":{"a":1},"is_debug":true}"#, Ok((None, "SELECT 1")));
        check(r#"{"database":"kvm"}"#, Err("missing field `sql_query`"));
        check(r#"{"database":"kvm","sql_query":"x","query_type":"influxql"}"#, Err("ask in SQL"));
        check(r#"{"sql_query":"x","params":{"a":[1]}}"#, Err("\"a\" must be a text"));
        check("{", Err("malformed"));
    }
}
