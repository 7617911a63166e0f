//! Where the pages' rows come from: the embedded store.

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
#[cfg(feature = "store")]
use crate::write::Writer;

/// The largest answer that is taken, bytes: some 100,000 rows. The pages' questions are bounded to far less.
#[cfg(feature = "store")]
const MAX_ANSWER_BYTES: usize = 64 << 20;
/// How long a question may take: who waits for a page longer has gone.
const WITHIN: Duration = Duration::from_secs(20);

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
    /// There is none.
    Nowhere,
}

/// Why there are no rows.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SourceError {
    /// Nothing was written yet.
    #[cfg_attr(not(feature = "store"), expect(dead_code, reason = "of the store's answers"))]
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
    /// What the source says.
    #[error("{0}")]
    Refused(String),
    /// It gave something else than was asked for.
    #[error("the answer cannot be read: {0}")]
    Unreadable(#[from] serde_json::Error),
}

impl Source {
    /// What it is, for a person.
    pub(crate) fn name(&self) -> &str {
        match self {
            #[cfg(feature = "store")]
            Self::Embedded { .. } => "the embedded store",
            Self::Nowhere => "nothing",
        }
    }

    /// The rows of an answer, all of them.
    ///
    /// # Errors
    /// Why there are none.
    pub(crate) async fn rows<T: DeserializeOwned>(
        &self,
        sql: &str,
        params: Params,
    ) -> Result<Vec<T>, SourceError> {
        let lines = timeout(WITHIN, self.lines(sql, params)).await.map_err(|_| SourceError::TooSlow)??;
        let lines = lines.split(|it| *it == b'\n').filter(|it| !it.is_empty());
        lines.map(|line| Ok(serde_json::from_slice(line)?)).collect()
    }

    /// A JSON object a line.
    async fn lines(&self, sql: &str, params: Params) -> Result<Vec<u8>, SourceError> {
        match self {
            #[cfg(feature = "store")]
            Self::Embedded { engine, writer } => {
                let params =
                    params.into_iter().filter_map(|(name, value)| Some((name, Param::of_json(&value)?)));
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
                Ok(lines)
            }
            Self::Nowhere => {
                let _ = (sql, params);
                Err(SourceError::Refused("there is no store here (--no-store)".to_owned()))
            }
        }
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
            Self::Nowhere => {
                let _ = seen;
                tokio::time::sleep(interval).await;
            }
        }
    }
}

#[cfg(feature = "store")]
fn refused(error: QueryError) -> SourceError {
    match error {
        QueryError::UnknownDatabase(_) | QueryError::UnknownTable(_) => SourceError::Empty,
        error => SourceError::Refused(error.to_string()),
    }
}
