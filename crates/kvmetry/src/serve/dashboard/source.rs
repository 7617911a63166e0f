//! Where the pages' rows come from: the embedded store, or the first InfluxDB 3 that gets the points.
//!
//! A server is asked for no more than it can answer: InfluxDB 3 Core refuses what would read more than 432 files, some 72
//! hours, so long spans are asked for in parts ([`PART_MS`]). It makes no roll-ups.

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

#[cfg(feature = "store")]
use std::sync::Arc;

#[cfg(feature = "store")]
use futures_util::StreamExt as _;
#[cfg(feature = "store")]
use store::sql::{Engine, Format, Param, QueryError};
use tokio::time::timeout;

#[cfg(feature = "store")]
use crate::config::DATABASE;
use crate::config::{Api, InfluxDb};
use crate::deliver::{Client, ClientError, QuestionError};
#[cfg(feature = "store")]
use crate::write::Writer;

/// The largest answer that is taken, bytes: some 100,000 rows. The pages' questions are bounded to far less.
#[cfg(feature = "store")]
const MAX_ANSWER_BYTES: usize = 64 << 20;
/// How long a question may take: who waits for a page longer has gone.
const WITHIN: Duration = Duration::from_secs(20);
/// A server is asked for no more than this of readings at once, ms.
pub(crate) const PART_MS: i64 = 48 * 3_600_000;
/// And for no more parts than this: a month.
pub(crate) const MAX_PARTS: usize = 15;

/// Values of `$name` in a query.
pub(crate) type Params = Map<String, Value>;

/// Where rows come from.
pub(crate) enum Source {
    /// This process's own store.
    #[cfg(feature = "store")]
    Embedded {
        /// What answers.
        engine: Arc<Engine>,
        /// What knows the databases, and when something was written.
        writer: Writer,
    },
    /// A server that gets the points.
    Server(Box<Client>),
    /// There is none, and why.
    Nowhere(String),
}

/// Why there are no rows.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SourceError {
    /// Nothing was written yet.
    #[error("there are no points yet")]
    Empty,
    /// Too many ask.
    #[error("too many queries at once; come again")]
    Busy,
    /// It took too long.
    #[error("the answer took longer than {WITHIN:?}")]
    TooSlow,
    /// It is larger than [`MAX_ANSWER_BYTES`].
    #[cfg(feature = "store")]
    #[error("the answer is larger than {MAX_ANSWER_BYTES} bytes")]
    TooLarge,
    /// More readings than a server is asked for.
    #[error(
        "InfluxDB answers no more than {} days of readings: choose a shorter range; the embedded store \
         ([store] enabled = true) reaches back 400 days",
        MAX_PARTS as i64 * PART_MS / 86_400_000
    )]
    TooLong,
    /// What the source says.
    #[error("{0}")]
    Refused(String),
    /// It gave something else than was asked for.
    #[cfg(feature = "store")]
    #[error("the answer cannot be read: {0}")]
    Unreadable(#[from] serde_json::Error),
}

impl Source {
    /// The first server that can be asked.
    ///
    /// # Errors
    /// Its configuration cannot be used.
    pub(crate) fn of(servers: &[InfluxDb]) -> Result<Self, ClientError> {
        match servers.iter().find(|it| it.api == Api::V3) {
            Some(server) => Ok(Self::Server(Box::new(Client::new(server)?))),
            None if servers.is_empty() => Ok(Self::Nowhere(
                "there is no store here (--no-store), and no [[influxdb]] to ask in its place".to_owned(),
            )),
            None => Ok(Self::Nowhere(
                "there is no store here (--no-store), and of the [[influxdb]] none can be asked: only api = \"v3\" \
                 answers SQL"
                    .to_owned(),
            )),
        }
    }

    /// What it is, for a person.
    pub(crate) fn name(&self) -> String {
        match self {
            #[cfg(feature = "store")]
            Self::Embedded { .. } => "the embedded store".to_owned(),
            Self::Server(client) => {
                let server = client.server();
                format!("{}, database {:?}", server.url, server.database)
            }
            Self::Nowhere(_) => "nowhere".to_owned(),
        }
    }

    /// Whether long spans of readings are asked for in parts.
    pub(crate) fn wants_parts(&self) -> bool {
        matches!(self, Self::Server(_))
    }

    /// Whether devices have a database of their own.
    pub(crate) fn keeps_devices_apart(&self) -> bool {
        matches!(self, Self::Server(client) if client.server().devices_database.is_some())
    }

    /// The rows of an answer about this table. All their numbers, times too, are numbers.
    ///
    /// # Errors
    /// Why there are none.
    pub(crate) async fn rows<T: DeserializeOwned>(
        &self,
        table: &str,
        sql: &str,
        params: Params,
    ) -> Result<Vec<T>, SourceError> {
        let asked = async {
            match self {
                #[cfg(feature = "store")]
                Self::Embedded { engine, writer } => embedded(engine, writer, sql, params).await,
                Self::Server(client) => {
                    let server = client.server();
                    let database = match &server.devices_database {
                        Some(devices) if table.starts_with("vm_devices") => devices,
                        _ => &server.database,
                    };
                    Ok(client.rows(database, sql, &params, WITHIN).await?)
                }
                Self::Nowhere(why) => Err(SourceError::Refused(why.clone())),
            }
        };
        timeout(WITHIN, asked).await.map_err(|_| SourceError::TooSlow)?
    }

    /// Waits until there may be something new, a while at least.
    pub(crate) async fn changed(&self, seen: &mut Option<u64>, interval: Duration) {
        match self {
            #[cfg(feature = "store")]
            Self::Embedded { writer, .. } => {
                let mut last = writer.last();
                let was = seen.unwrap_or(*last.borrow());
                // Without news a page is still told the time: what is silent shows by it.
                let _ = timeout(2 * interval, last.wait_for(|it| *it != was)).await;
                *seen = Some(*last.borrow());
            }
            Self::Server(_) | Self::Nowhere(_) => {
                let _ = seen;
                tokio::time::sleep(interval).await;
            }
        }
    }
}

#[cfg(feature = "store")]
async fn embedded<T: DeserializeOwned>(
    engine: &Engine,
    writer: &Writer,
    sql: &str,
    params: Params,
) -> Result<Vec<T>, SourceError> {
    let params = params.into_iter().filter_map(|(name, value)| Some((name, Param::of_json(&value)?)));
    let exists = writer.has_database(DATABASE);
    let rows = engine.query(DATABASE, sql, params.collect(), exists).await.map_err(refused)?;
    let mut answer = rows.write(Format::JsonLines);
    let mut lines = Vec::new();
    while let Some(bytes) = answer.next().await {
        lines.extend_from_slice(&bytes.map_err(refused)?);
        if lines.len() > MAX_ANSWER_BYTES {
            return Err(SourceError::TooLarge);
        }
    }
    let lines = lines.split(|it| *it == b'\n').filter(|it| !it.is_empty());
    lines.map(|line| Ok(serde_json::from_slice(line)?)).collect()
}

#[cfg(feature = "store")]
fn refused(error: QueryError) -> SourceError {
    match error {
        QueryError::UnknownDatabase(_) | QueryError::UnknownTable(_) => SourceError::Empty,
        error => SourceError::Refused(error.to_string()),
    }
}

impl From<QuestionError> for SourceError {
    fn from(error: QuestionError) -> Self {
        match error {
            QuestionError::Empty => Self::Empty,
            error => Self::Refused(error.to_string()),
        }
    }
}

/// Nothing written is no rows.
pub(crate) fn some<T>(rows: Result<Vec<T>, SourceError>) -> Result<Vec<T>, SourceError> {
    match rows {
        Err(SourceError::Empty) => Ok(Vec::new()),
        rows => rows,
    }
}
