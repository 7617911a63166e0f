//! What the endpoints need of the rest of the program: writing, asking, databases.
//!
//! The port knows HTTP and nothing of journals or SQL; whoever implements [`Backend`] knows those and nothing of HTTP.
//! A future that is dropped means that the client has gone: stop working on it, except for a write that is under way,
//! which may as well be finished.

use std::future::Future;
use std::time::Duration;

use axum::body::Bytes;
use futures_util::stream::BoxStream;
use serde_json::{Map, Value};
use telemetry::lines::{LineError, Precision};

/// The rest of the program, as the port sees it.
pub(crate) trait Backend: Send + Sync + 'static {
    /// Takes the lines of one body: it returns when they are durable and a query that starts now sees them.
    ///
    /// # Errors
    /// What was wrong with the lines, or why nothing can be taken now. With [`Write::accept_partial`] the good lines
    /// are in when it is [`WriteFailure::Lines`]; in every other case nothing is.
    fn write(&self, write: Write) -> impl Future<Output = Result<(), WriteFailure>> + Send;

    /// Starts a query and returns its answer as it comes. Dropping the answer ends the query.
    ///
    /// # Errors
    /// Whose fault it is that there is no answer.
    fn query(&self, query: Query) -> impl Future<Output = Result<Answer, QueryFailure>> + Send;

    /// Writes all points into files and makes one of each day's. Returns what was done, for a person.
    ///
    /// # Errors
    /// Why not, for a person.
    fn compact(&self) -> impl Future<Output = Result<String, UpkeepFailure>> + Send;

    /// Makes a backup in the data directory. Returns what and where, as JSON.
    ///
    /// # Errors
    /// Why not, for a person.
    fn backup(&self) -> impl Future<Output = Result<String, UpkeepFailure>> + Send;

    /// All databases, by name.
    ///
    /// # Errors
    /// The catalogue cannot be read.
    fn databases(&self) -> impl Future<Output = Result<Vec<Database>, DatabaseFailure>> + Send;

    /// Makes a database. Without a retention it has the configured ones.
    ///
    /// # Errors
    /// It is there, it cannot be called so, or there are too many.
    fn create_database(
        &self,
        name: String,
        retention: Option<Duration>,
    ) -> impl Future<Output = Result<(), DatabaseFailure>> + Send;

    /// Changes how long a database keeps its points; `None`: as configured.
    ///
    /// # Errors
    /// There is no such database.
    fn set_retention(
        &self,
        name: String,
        retention: Option<Duration>,
    ) -> impl Future<Output = Result<(), DatabaseFailure>> + Send;
}

/// The body of one write. It is not empty, at most [`super::limits::MAX_BODY_BYTES`] long, and may still have no
/// line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Write {
    /// As the client calls it: perhaps not there yet, perhaps no name at all.
    pub(crate) database: String,
    /// Line protocol.
    pub(crate) body: String,
    pub(crate) precision: Precision,
    /// Whether the good lines are kept where others are bad.
    pub(crate) accept_partial: bool,
}

/// Why a write was refused, in whole or in part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum WriteFailure {
    /// At least one line was bad.
    Lines {
        /// By number.
        errors: Vec<LineError>,
        /// How many more there are.
        untold: u32,
    },
    /// No line in it.
    Empty,
    /// No database can be called so; the message says why.
    DatabaseName(String),
    /// One database, table or column more than there may be; the message says which.
    TooMany(String),
    /// More than one write may have once it is compressed; the message says how much.
    TooLarge(String),
    /// It would be taken later: the journal is behind, or the program ends.
    Busy { retry_after: Duration },
    /// The disk is full, fails, is read-only or gone: it would be taken when that is mended. The message says what is
    /// wrong and where.
    Disk(String),
    /// A fault of this side.
    Failed(String),
}

/// One SQL statement.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Query {
    pub(crate) database: String,
    pub(crate) sql: String,
    /// Values of `$name` in the statement: text, number, true, false or null.
    pub(crate) params: Map<String, Value>,
    pub(crate) format: Format,
}

/// How an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// One array of objects; null columns are left out; times without a zone; no rows: `[]`.
    Json,
    /// An object a line.
    JsonLines,
    /// With a header line.
    Csv,
    /// A table for people.
    Pretty,
    /// An Apache Parquet file.
    Parquet,
}

/// The answer in its format, as it comes. An error in it breaks the answer off, unless it comes first: then the client
/// sees it as if the query had not started.
pub(crate) type Answer = BoxStream<'static, Result<Bytes, QueryFailure>>;

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct QueryFailure {
    pub(crate) fault: QueryFault,
    /// For the person who asked: what, where, what to do.
    pub(crate) message: String,
}

/// Whose fault, which decides the status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "store"), expect(dead_code, reason = "of the store's answers"))]
pub(crate) enum QueryFault {
    UnknownDatabase,
    UnknownTable,
    UnknownColumn,
    /// More than one statement.
    TwoStatements,
    /// It would change something.
    NotReadOnly,
    /// Any other mistake in the SQL or its parameters.
    Wrong,
    /// It needs more memory or gives more rows than a query may.
    TooBig,
    TimedOut,
    /// It would run later.
    Busy,
    /// A fault of this side.
    Failed,
}

/// A database, as it is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Database {
    pub(crate) name: String,
    /// `None`: as configured.
    pub(crate) retention: Option<Duration>,
}

/// Why a database was not made or changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DatabaseFailure {
    Exists,
    Unknown,
    /// No database can be called so; the message says why.
    Name(String),
    /// One more than there may be; the message says how many.
    TooMany(String),
    /// A fault of this side.
    Failed(String),
}

/// Why there was no compaction or backup, for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "store"), expect(dead_code, reason = "of the store's answers"))]
pub(crate) enum UpkeepFailure {
    /// One is running already.
    Running(String),
    /// The disk has no room for it.
    NoRoom(String),
    /// Anything else.
    Failed(String),
}
