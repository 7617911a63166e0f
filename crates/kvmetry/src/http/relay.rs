//! Queries under way: how many at once, and how their answers are handed on. For `/api/v3/query_sql` and whatever else
//! on the port asks the store.
//!
//! ```text
//! Turns::next ──▶ Turn ──▶ relay: answer ──▶ task ──one piece ahead──▶ body ──▶ client
//! ```

use std::fmt::Display;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::BoxError;
use axum::body::{Body, Bytes, HttpBody};
use futures_util::{Stream, StreamExt};
use http_body::Frame;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use super::connection::Connection;
use super::limits::Limits;
use super::waiting::Waiting;

/// When to come again where too many queries run.
pub(crate) const BUSY_RETRY: Duration = Duration::from_secs(1);

/// Bytes of an answer that are handed on at once. A client that takes nothing has two such pieces of it in memory, the
/// rest waits in its turn: one table or one batch may be tens of MiB.
const PIECE_BYTES: usize = 64 << 10;

/// So many queries run at once, so many wait.
#[derive(Debug)]
pub(crate) struct Turns {
    running: Arc<Semaphore>,
    /// Those that run and those that wait.
    places: Arc<Semaphore>,
    within: Duration,
    waiting: Waiting,
    slow: Duration,
}

/// Held while a query runs, its answer included.
#[derive(Debug)]
pub(crate) struct Turn {
    _held: [OwnedSemaphorePermit; 2],
    waiting: Waiting,
    /// See [`Limits::slow`].
    slow: Duration,
}

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
            waiting: Waiting::default(),
            slow: limits.slow,
        }
    }

    /// Waits for the next turn.
    ///
    /// # Errors
    /// Too many wait already, or it took too long.
    pub(crate) async fn next(&self) -> Result<Turn, TooManyQueries> {
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| TooManyQueries)?;
        let running = Arc::clone(&self.running);
        let running = match Arc::clone(&running).try_acquire_owned() {
            Ok(running) => running,
            Err(_) => {
                let _waits = self.waiting.begin();
                let running = tokio::time::timeout(self.within, running.acquire_owned()).await;
                running.map_err(|_| TooManyQueries)?.map_err(|_| TooManyQueries)?
            }
        };
        Ok(Turn { _held: [place, running], waiting: self.waiting.clone(), slow: self.slow })
    }
}

/// Hands an answer on, one piece ahead of the client. The answer is dropped as soon as the client has gone; its turn is
/// over when the client has all of it. One who is slow ([`Limits::slow`]) while others wait has its connection cut, so
/// that what it has cannot pass for the whole.
pub(crate) fn relay<E>(
    answer: impl Stream<Item = Result<Frame<Bytes>, E>> + Send + Unpin + 'static,
    connection: Option<Connection>,
    turn: Turn,
) -> Body
where
    E: Display + Into<BoxError> + Send + 'static,
{
    let (pieces, taken) = mpsc::channel(1);
    let (here, gone) = oneshot::channel();
    let client = Client { patience: turn.slow, turn, connection };
    tokio::spawn(hand_on(answer, pieces, gone, client));
    Body::new(Relayed { taken, _here: here })
}

async fn hand_on<E: Display>(
    mut answer: impl Stream<Item = Result<Frame<Bytes>, E>> + Unpin,
    pieces: mpsc::Sender<Result<Frame<Bytes>, E>>,
    mut gone: oneshot::Receiver<()>,
    mut client: Client,
) {
    loop {
        let next = tokio::select! {
            _ = &mut gone => return,
            next = answer.next() => next,
        };
        let frame = match next {
            None => break,
            Some(Ok(frame)) => frame,
            Some(Err(error)) => {
                // The client sees only that the answer breaks off.
                if let Some(held_back) = client.told("a query broke off") {
                    tracing::warn!(%error, held_back, "a query failed after its answer had begun");
                }
                let _ = client.takes(pieces.send(Err(error))).await;
                return;
            }
        };
        let whole = match frame.into_data() {
            Ok(bytes) if bytes.len() > PIECE_BYTES => {
                for piece in bytes.chunks(PIECE_BYTES) {
                    // Copied: a part of them would keep the whole in memory.
                    let piece = Frame::data(Bytes::copy_from_slice(piece));
                    let Some(Ok(())) = client.takes(pieces.send(Ok(piece))).await else { return };
                }
                continue;
            }
            Ok(bytes) => Frame::data(bytes),
            Err(trailers) => trailers,
        };
        let Some(Ok(())) = client.takes(pieces.send(Ok(whole))).await else { return };
    }
    // That was all; the last of it is on its way.
    drop(pieces);
    let _ = client.takes(gone).await;
}

/// Who takes an answer.
struct Client {
    /// What it may still let others wait.
    patience: Duration,
    turn: Turn,
    connection: Option<Connection>,
}

impl Client {
    /// Waits until it has taken something; `None`: it was slow, and is cut off.
    async fn takes<T>(&mut self, taken: impl Future<Output = T>) -> Option<T> {
        let since = Instant::now();
        let others = async {
            sleep_until(since + self.patience).await;
            self.turn.waiting.takes_one(Duration::ZERO).await;
        };
        let taken = tokio::select! {
            biased;
            taken = taken => Some(taken),
            () = others => None,
        };
        self.patience = self.patience.saturating_sub(since.elapsed());
        if let (None, Some(connection)) = (&taken, &self.connection) {
            connection.cut("takes its answer so slowly that other queries wait");
        }
        taken
    }

    fn told(&self, cause: &str) -> Option<u64> {
        self.connection.as_ref().map_or(Some(0), |connection| connection.told(cause))
    }
}

/// The client's end.
struct Relayed<E> {
    taken: mpsc::Receiver<Result<Frame<Bytes>, E>>,
    _here: oneshot::Sender<()>,
}

impl<E: Into<BoxError>> HttpBody for Relayed<E> {
    type Data = Bytes;
    type Error = E;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, E>>> {
        self.taken.poll_recv(cx)
    }
}
