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
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};

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

/// Queries that wait for a turn; to each of them one turn is given up, not all that could be.
#[derive(Clone, Debug, Default)]
struct Waiting(watch::Sender<Wanted>);

#[derive(Clone, Copy, Debug, Default)]
struct Wanted {
    turns: usize,
    /// Given up for one that waits, and not taken yet.
    given: usize,
}

impl Waiting {
    /// One more waits, until this is dropped.
    fn begin(&self) -> Waits {
        self.0.send_modify(|wanted| wanted.turns += 1);
        Waits(self.clone())
    }

    /// Returns when the turn of whoever calls is to be given up.
    async fn takes_one(&self) {
        let mut wanted = self.0.subscribe();
        let take = |wanted: &mut Wanted| {
            let take = wanted.turns > 0;
            if take {
                wanted.turns -= 1;
                wanted.given += 1;
            }
            take
        };
        while !self.0.send_if_modified(take) {
            // The sender is here.
            let _ = wanted.wait_for(|wanted| wanted.turns > 0).await;
        }
    }
}

struct Waits(Waiting);

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.0.send_modify(|wanted| {
            if wanted.given > 0 {
                wanted.given -= 1;
            } else {
                wanted.turns = wanted.turns.saturating_sub(1);
            }
        });
    }
}

/// Hands an answer on, one piece ahead of the client. The answer is dropped, and its turn over, as soon as the client
/// has gone, or has taken nothing for so long (`within`), or is slow ([`Limits::slow`]) and others wait: then its
/// connection is cut, so that what it has cannot pass for the whole.
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
        hand_on(answer, &pieces, within, connection, &turn).await;
        drop(turn);
    });
    stream::poll_fn(move |cx| taken.poll_recv(cx))
}

async fn hand_on<T, E: Display>(
    mut answer: impl Stream<Item = Result<T, E>> + Unpin,
    pieces: &mpsc::Sender<Result<T, E>>,
    within: Duration,
    connection: Option<Connection>,
    turn: &Turn,
) {
    // What the client may still let others wait.
    let mut patience = turn.slow;
    loop {
        let next = tokio::select! {
            () = pieces.closed() => return,
            next = answer.next() => next,
        };
        let Some(piece) = next else { return };
        let broken = piece.as_ref().err().map(ToString::to_string);
        let since = Instant::now();
        let others = async {
            sleep_until(since + patience).await;
            turn.waiting.takes_one().await;
        };
        let why = tokio::select! {
            biased;
            sent = pieces.send(piece) => if sent.is_ok() { None } else { return },
            () = sleep(within) => Some("takes nothing of its answer"),
            () = others => Some("takes its answer so slowly that other queries wait"),
        };
        if let Some(why) = why {
            tracing::warn!(waited = ?since.elapsed(), "a client {why}: cut off");
            if let Some(connection) = connection {
                connection.cut();
            }
            return;
        }
        patience = patience.saturating_sub(since.elapsed());
        if let Some(error) = broken {
            // The client sees only that the answer breaks off.
            tracing::warn!(error, "a query failed after its answer had begun");
            return;
        }
    }
}
