//! What the HTTP port serves: writes go the one way, queries go to the store, pages ask it too.

pub(crate) mod dashboard;

#[cfg(feature = "store")]
use std::sync::Arc;
use std::time::Duration;

use telemetry::lines::Refused;

#[cfg(feature = "store")]
use crate::clock::Clock;
use crate::http::backend::{
    Answer, Backend, Database, DatabaseFailure, Query, QueryFailure, QueryFault, UpkeepFailure, Write,
    WriteFailure,
};
use crate::write::{WriteError, Writer};

/// When a client may try again, whose write had no room.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The program behind the port.
pub(crate) struct Served {
    pub(crate) writer: Writer,
    #[cfg(feature = "store")]
    pub(crate) clock: Arc<dyn Clock>,
    #[cfg(feature = "store")]
    pub(crate) embedded: Option<(store::Store, Arc<store::sql::Engine>)>,
    #[cfg(feature = "store")]
    pub(crate) backups: Option<Arc<crate::backup::Source>>,
}

impl Backend for Served {
    async fn write(&self, write: Write) -> Result<(), WriteFailure> {
        let Write { database, body, precision, accept_partial } = write;
        let written = self.writer.write(&database, body, precision, accept_partial).await;
        let written = written.map_err(write_failure)?;
        if written.errors.is_empty() {
            return Ok(());
        }
        Err(WriteFailure::Lines { errors: written.errors, untold: written.untold_errors })
    }

    async fn query(&self, query: Query) -> Result<Answer, QueryFailure> {
        #[cfg(feature = "store")]
        if let Some((_, engine)) = &self.embedded {
            let exists = self.writer.has_database(&query.database);
            return sql::answer(engine, query, exists).await;
        }
        drop(query);
        Err(QueryFailure {
            fault: QueryFault::Wrong,
            message:
                "there is no store here to ask (--no-store): ask the InfluxDB server that gets the points"
                    .to_owned(),
        })
    }

    async fn compact(&self) -> Result<String, UpkeepFailure> {
        #[cfg(feature = "store")]
        if let Some((store, _)) = &self.embedded {
            let (store, now_ns) = (store.clone(), self.clock.wall_ns());
            let done = tokio::task::spawn_blocking(move || store.compact(now_ns)).await;
            return match done {
                Ok(Ok(done)) => Ok(sql::told(&done)),
                Ok(Err(error)) => Err(sql::upkeep_failure(&error.into())),
                Err(error) => Err(UpkeepFailure::Failed(error.to_string())),
            };
        }
        Err(UpkeepFailure::Failed("there is no store here (--no-store)".to_owned()))
    }

    async fn backup(&self) -> Result<String, UpkeepFailure> {
        #[cfg(feature = "store")]
        if let Some(backups) = &self.backups {
            let backups = Arc::clone(backups);
            let made = tokio::task::spawn_blocking(move || backups.make()).await;
            let made = made.map_err(|error| UpkeepFailure::Failed(error.to_string()))?;
            let made = made.map_err(|error| sql::upkeep_failure(&error))?;
            tracing::info!(dir = %made.dir.display(), rows = made.rows, "made a backup");
            return serde_json::to_string(&made).map_err(|error| UpkeepFailure::Failed(error.to_string()));
        }
        Err(UpkeepFailure::Failed("there is no store here (--no-store)".to_owned()))
    }

    async fn databases(&self) -> Result<Vec<Database>, DatabaseFailure> {
        let all = self.writer.databases().into_iter();
        Ok(all.map(|(name, retention)| Database { name, retention }).collect())
    }

    async fn create_database(
        &self,
        name: String,
        retention: Option<Duration>,
    ) -> Result<(), DatabaseFailure> {
        match self.writer.create_database(&name, retention).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(DatabaseFailure::Exists),
            Err(error) => Err(database_failure(error)),
        }
    }

    async fn set_retention(&self, name: String, retention: Option<Duration>) -> Result<(), DatabaseFailure> {
        match self.writer.set_retention(&name, retention).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(DatabaseFailure::Unknown),
            Err(error) => Err(database_failure(error)),
        }
    }
}

fn write_failure(error: WriteError) -> WriteFailure {
    match error {
        WriteError::Refused(Refused::Empty) => WriteFailure::Empty,
        WriteError::Refused(Refused::DatabaseName(why)) => WriteFailure::DatabaseName(why),
        WriteError::Refused(Refused::Lines { errors, untold }) => WriteFailure::Lines { errors, untold },
        WriteError::Refused(refused @ Refused::TooManyDatabases) => {
            WriteFailure::TooMany(refused.to_string())
        }
        WriteError::DiskFull(_) | WriteError::Disk(_) => WriteFailure::Disk(error.to_string()),
        WriteError::TooLarge { .. } => WriteFailure::TooLarge(error.to_string()),
        error if error.is_retryable() => WriteFailure::Busy { retry_after: RETRY_AFTER },
        error => WriteFailure::Failed(error.to_string()),
    }
}

fn database_failure(error: WriteError) -> DatabaseFailure {
    match error {
        WriteError::Refused(Refused::DatabaseName(why)) => DatabaseFailure::Name(why),
        WriteError::Refused(refused @ Refused::TooManyDatabases) => {
            DatabaseFailure::TooMany(refused.to_string())
        }
        error => DatabaseFailure::Failed(error.to_string()),
    }
}

/// Answers from the embedded store.
#[cfg(feature = "store")]
pub(crate) mod sql {
    use std::fmt::Write as _;

    use futures_util::StreamExt as _;
    use serde_json::Value;
    use store::StoreError;
    use store::sql::{Engine, Format, Param, QueryError};

    use super::*;
    use crate::http::backend;

    pub(crate) async fn answer(engine: &Engine, query: Query, exists: bool) -> Result<Answer, QueryFailure> {
        let params = query.params.into_iter().map(|(name, value)| Ok((name, param(&value)?)));
        let params = params.collect::<Result<_, QueryFailure>>()?;
        let format = match query.format {
            backend::Format::Json => Format::Json,
            backend::Format::JsonLines => Format::JsonLines,
            backend::Format::Csv => Format::Csv,
            backend::Format::Pretty => Format::Pretty,
            backend::Format::Parquet => Format::Parquet,
        };
        let rows = engine.query(&query.database, &query.sql, params, exists).await.map_err(failure)?;
        Ok(rows.write(format).map(|it| it.map_err(failure)).boxed())
    }

    /// What a compaction did, for a person.
    pub(crate) fn told(done: &store::Done) -> String {
        let mut told = format!(
            "{} rows written to files, {} files merged into one a day, {} expired",
            done.flushed_rows, done.compacted_files, done.expired_files
        );
        if done.expired_rows > 0 {
            let _ = write!(
                told,
                "; {} points were not kept: they were older than their table's retention",
                done.expired_rows
            );
        }
        told
    }

    /// What keeps the store from being compacted or backed up.
    pub(super) fn upkeep_failure(error: &anyhow::Error) -> UpkeepFailure {
        let why = format!("{error:#}");
        match error.downcast_ref() {
            _ if error.is::<crate::backup::Running>() => UpkeepFailure::Running(why),
            Some(StoreError::Running) => UpkeepFailure::Running(why),
            Some(StoreError::InJournalOnly) => UpkeepFailure::NoRoom(why),
            Some(error) if error.is_disk_full() => UpkeepFailure::NoRoom(why),
            _ => UpkeepFailure::Failed(why),
        }
    }

    fn param(value: &Value) -> Result<Param, QueryFailure> {
        let wrong = || wrong("a parameter is a text, a number, true, false or null".to_owned());
        Param::of_json(value).ok_or_else(wrong)
    }

    fn wrong(message: String) -> QueryFailure {
        QueryFailure { fault: QueryFault::Wrong, message }
    }

    fn failure(error: QueryError) -> QueryFailure {
        let fault = match &error {
            QueryError::UnknownDatabase(_) => QueryFault::UnknownDatabase,
            QueryError::UnknownTable(_) => QueryFault::UnknownTable,
            QueryError::UnknownColumn(_) => QueryFault::UnknownColumn,
            QueryError::ManyStatements => QueryFault::TwoStatements,
            QueryError::NotReadOnly => QueryFault::NotReadOnly,
            QueryError::TooLong { .. } | QueryError::Invalid(_) => QueryFault::Wrong,
            QueryError::TooSlow { .. } => QueryFault::TimedOut,
            QueryError::TooManyRows { .. } | QueryError::TooMuchMemory(_) => QueryFault::TooBig,
            QueryError::Failed(_) | QueryError::Panicked(_) => QueryFault::Failed,
            QueryError::Ended => QueryFault::Busy,
        };
        QueryFailure { fault, message: error.to_string() }
    }
}
