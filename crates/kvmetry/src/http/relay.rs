//! Queries under way: how many at once, and how their answers are handed on. For `/api/v3/query_sql` and whatever else
//! on the port asks the store.
//!
//! ```text
//! Turns::next ──▶ Turn ──▶ relay: answer ──▶ task ──one piece ahead──▶ body ──▶ client
//! ```

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt, stream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::connection::Connection;
use super::limits::Limits;

/// When to come again where too many queries run.
pub(crate) const BUSY_RETRY: Duration = Duration::from_secs(1);

/// So many queries run at once, so many wait.
#[derive(Debug)]
pub(crate) struct Turns {
    running: Arc<Semaphore>,
    /// Those that run and those that wait.
    places: Arc<Semaphore>,
    within: Duration,
}

/// Held while a query runs, its answer included.
#[derive(Debug)]
pub(crate) struct Turn(#[expect(dead_code, reason = "held, not read")] [OwnedSemaphorePermit; 2]);

/// No turn is to be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many queries at once; come again")]
pub(crate) struct TooManyQueries;

impl Turns {
    pub(crate) fn new(limits: &Limits) -> Self {
        let semaphore = |permits| Arc::new(Semaphore::new(permits));
        Self {
            running: semaphore(limits.queries),
            places: semaphore(limits.queries + limits.queries_waiting),
            within: limits.query_turn_within,
        }
    }

    /// Waits for the next turn.
    ///
    /// # Errors
    /// Too many wait already, or it took too long.
    pub(crate) async fn next(&self) -> Result<Turn, TooManyQueries> {
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| TooManyQueries)?;
        let running = tokio::time::timeout(self.within, Arc::clone(&self.running).acquire_owned());
        match running.await {
            Ok(Ok(running)) => Ok(Turn([place, running])),
            _ => Err(TooManyQueries),
        }
    }
}

/// Hands an answer on, one piece ahead of the client. The answer is dropped, and its turn over, as soon as the client
/// has gone, or has taken nothing for so long (`within`): then its connection is cut, so that what it has cannot pass
/// for the whole.
pub(crate) fn relay<T, E>(
    answer: impl Stream<Item = Result<T, E>> + Send + Unpin + 'static,
    within: Duration,
    connection: Option<Connection>,
    turn: Turn,
) -> impl Stream<Item = Result<T, E>> + Send + 'static
where
    T: Send + 'static,
    E: Display + Send + 'static,
{
    let (pieces, mut taken) = mpsc::channel(1);
    tokio::spawn(async move {
        hand_on(answer, &pieces, within, connection).await;
        drop(turn);
    });
    stream::poll_fn(move |cx| taken.poll_recv(cx))
}

async fn hand_on<T, E: Display>(
    mut answer: impl Stream<Item = Result<T, E>> + Unpin,
    pieces: &mpsc::Sender<Result<T, E>>,
    within: Duration,
    connection: Option<Connection>,
) {
    loop {
        let next = tokio::select! {
            () = pieces.closed() => return,
            next = answer.next() => next,
        };
        let Some(piece) = next else { return };
        let broken = piece.as_ref().err().map(ToString::to_string);
        match tokio::time::timeout(within, pieces.send(piece)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return,
            Err(_) => {
                tracing::warn!(?within, "a client takes nothing of its answer: cut off");
                if let Some(connection) = connection {
                    connection.cut();
                }
                return;
            }
        }
        if let Some(error) = broken {
            // The client sees only that the answer breaks off.
            tracing::warn!(error, "a query failed after its answer had begun");
            return;
        }
    }
}
