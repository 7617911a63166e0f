//! Outputs: from batches of line protocol to standard output and files, as they come and in memory.
//!
//! ```text
//!  collectors ──send──▶ queue (bounded) ──worker──▶ writer thread ──▶ stdout, file
//! ```
//!
//! Each output has its own queue and its own worker, so none waits for another, and collecting waits for none:
//! [`Outputs::send`] never blocks. When a queue is full its oldest batch goes, counted and logged with its time
//! range. The worker takes batches from the front and leaves each in the queue until it is written; what fails is
//! tried again, after a growing pause, in order.
//!
//! Nothing here survives the end of the process: on shutdown the workers have a short time to empty their
//! queues, and what is left is counted as dropped. What must survive goes through the journal (`write`, `deliver`).

mod file;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use crate::backoff::{Pauses, cause};
use crate::clock::{Clock, rfc3339};
use crate::config::LineOutput;
use crate::logging::OncePerCause;

/// Lines waiting for one output, bytes: a quarter of an hour of 100 VMs at 5 s. Beyond, the oldest batch goes.
pub(crate) const MAX_QUEUED_BYTES: usize = 32 << 20;
/// Batches waiting for one output: bounds what small batches cost beside their bytes.
pub(crate) const MAX_QUEUED_BATCHES: usize = 16_384;

/// The points of one host's cycle.
#[derive(Clone, Debug)]
pub(crate) struct Batch {
    /// Whose they are, for messages.
    pub(crate) host: Arc<str>,
    /// The points' time, nanoseconds since 1970.
    pub(crate) at_ns: i64,
    /// Whole lines of line protocol, each ended by a line feed, timestamps in nanoseconds.
    pub(crate) lines: Arc<Vec<u8>>,
    /// How many lines.
    pub(crate) line_count: u32,
}

/// What an output has done since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct OutputStats {
    /// `stdout` or `file:PATH`.
    pub(crate) name: String,
    /// Lines that the output has.
    pub(crate) delivered_lines: u64,
    /// Lines that went because the queue was full or the program ended.
    pub(crate) dropped_lines: u64,
    /// Deliveries that failed and were or will be tried again.
    pub(crate) failures: u64,
    /// Batches waiting.
    pub(crate) queued_batches: usize,
    /// Their lines, bytes.
    pub(crate) queued_bytes: usize,
    /// Why the last delivery failed; `None` once one succeeded.
    pub(crate) trouble: Option<String>,
}

/// An output that cannot be started: the user's to mend.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OutputError {
    /// Standard output.
    #[error("--output -: {problem}")]
    Stdout { problem: String },
    /// A file of lines.
    #[error("--output file:{path}: {problem}")]
    File { path: String, problem: String },
}

/// All outputs.
pub(crate) struct Outputs {
    queues: Vec<Arc<Queue>>,
    workers: Vec<JoinHandle<()>>,
    closed: watch::Receiver<Option<Closed>>,
    clock: Arc<dyn Clock>,
}

/// Why standard output can take no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Closed {
    /// Its reader has gone, as in `kvmetry run --output - | head`: the program's clean end.
    ReaderGone,
    /// It cannot be written.
    Failed(String),
}

impl Outputs {
    /// Opens files and starts a worker for each output.
    ///
    /// # Errors
    /// A file that cannot be opened.
    pub(crate) fn start(lines: &[LineOutput], clock: Arc<dyn Clock>) -> Result<Self, OutputError> {
        let mut sinks = Vec::new();
        for output in lines {
            sinks.push(match output {
                LineOutput::Stdout => ("stdout".to_owned(), Sink::Writer(file::stdout()?)),
                LineOutput::File(path) => {
                    (format!("file:{}", path.display()), Sink::Writer(file::file(path)?))
                }
            });
        }
        Ok(Self::of(sinks, clock))
    }

    fn of(sinks: Vec<(String, Sink)>, clock: Arc<dyn Clock>) -> Self {
        let (close, closed) = watch::channel(None);
        let close = Arc::new(close);
        let mut outputs = Self { queues: Vec::new(), workers: Vec::new(), closed, clock };
        for (name, sink) in sinks {
            let queue = Arc::new(Queue::new(name));
            let worker = Worker {
                queue: queue.clone(),
                sink,
                clock: outputs.clock.clone(),
                close: close.clone(),
                troubles: OncePerCause::default(),
                failures_in_a_row: 0,
            };
            outputs.workers.push(tokio::spawn(worker.run()));
            outputs.queues.push(queue);
        }
        outputs
    }

    /// Whether there is no output at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }

    /// Hands a batch to every output. Never blocks; a full queue loses its oldest batch.
    pub(crate) fn send(&self, batch: &Batch) {
        for queue in &self.queues {
            queue.push(batch.clone(), self.clock.monotonic());
        }
    }

    /// What each output has done.
    pub(crate) fn stats(&self) -> Vec<OutputStats> {
        self.queues.iter().map(|queue| queue.stats()).collect()
    }

    /// Waits until standard output can take no more. Without that output, for ever.
    pub(crate) async fn closed(&self) -> Closed {
        let mut closed = self.closed.clone();
        loop {
            if let Some(closed) = closed.borrow_and_update().clone() {
                return closed;
            }
            if closed.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Ends all outputs: each has until `within` to empty its queue, a failure ends it at once. What is left
    /// is counted as dropped and logged. Returns the last figures.
    pub(crate) async fn shutdown(self, within: Duration) -> Vec<OutputStats> {
        for queue in &self.queues {
            queue.close();
        }
        let end = tokio::time::Instant::now() + within;
        for mut worker in self.workers {
            if tokio::time::timeout_at(end, &mut worker).await.is_err() {
                worker.abort();
            }
        }
        self.queues
            .iter()
            .map(|queue| {
                queue.abandon();
                queue.stats()
            })
            .collect()
    }
}

/// Where a worker puts batches.
enum Sink {
    Writer(file::Writer),
    #[cfg(test)]
    Scripted(tests::Scripted),
}

/// What became of a delivery.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// The output has all lines.
    Delivered,
    /// Not now.
    Retry { why: String },
    /// Never again.
    Closed(Closed),
}

impl Sink {
    async fn deliver(&mut self, batch: &Batch) -> Verdict {
        match self {
            Self::Writer(writer) => writer.write(batch).await,
            #[cfg(test)]
            Self::Scripted(scripted) => scripted.deliver(batch),
        }
    }
}

/// Takes batches from one queue to one sink.
struct Worker {
    queue: Arc<Queue>,
    sink: Sink,
    clock: Arc<dyn Clock>,
    close: Arc<watch::Sender<Option<Closed>>>,
    /// Why nothing could be delivered since it last worked: a new outage is told anew.
    troubles: OncePerCause,
    failures_in_a_row: u32,
}

impl Worker {
    async fn run(mut self) {
        while let Some(batch) = self.queue.next().await {
            match self.sink.deliver(&batch).await {
                Verdict::Delivered => {
                    self.delivered();
                    continue;
                }
                Verdict::Retry { why } => self.failed(&why),
                Verdict::Closed(closed) => {
                    self.queue.release();
                    self.queue.refuse_more();
                    self.close.send_replace(Some(closed));
                    return;
                }
            }
            if self.queue.is_closing() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(Pauses::NORMAL.after(self.failures_in_a_row)) => {}
                () = self.queue.closing() => {}
            }
        }
    }

    fn delivered(&mut self) {
        let output = self.queue.name();
        self.queue.settle();
        if self.failures_in_a_row > 0 {
            tracing::info!(output, failures = self.failures_in_a_row, "delivers again");
            self.failures_in_a_row = 0;
            self.troubles = OncePerCause::default();
        }
        self.queue.tell_losses();
    }

    fn failed(&mut self, why: &str) {
        let output = self.queue.name();
        self.failures_in_a_row = self.failures_in_a_row.saturating_add(1);
        self.queue.fail(why);
        if let Some(held_back) = self.troubles.tell(&cause(why), self.clock.monotonic()) {
            tracing::warn!(output, held_back, "cannot deliver, trying again: {why}");
        }
    }
}

/// Batches waiting for one output, oldest first, and what became of those that are gone.
struct Queue {
    state: Mutex<State>,
    /// A batch came, or the queue closes. One worker waits for it.
    changed: Notify,
    /// The queue closes.
    closing: Notify,
    told: OncePerCause,
}

#[derive(Default)]
struct State {
    batches: VecDeque<Batch>,
    /// The first one is being delivered just now: it is not dropped.
    in_flight: bool,
    closing: bool,
    /// No more is taken: the output is gone.
    gone: bool,
    stats: OutputStats,
    /// Losses that do not stand in the log yet.
    untold: Option<Loss>,
}

struct Loss {
    /// Whose points; `None`: several hosts'.
    host: Option<Arc<str>>,
    batches: u64,
    lines: u64,
    from_ns: i64,
    to_ns: i64,
}

impl Queue {
    fn new(name: String) -> Self {
        let stats = OutputStats { name, ..OutputStats::default() };
        Self {
            state: Mutex::new(State { stats, ..State::default() }),
            changed: Notify::new(),
            closing: Notify::new(),
            told: OncePerCause::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn name(&self) -> String {
        self.state().stats.name.clone()
    }

    fn stats(&self) -> OutputStats {
        self.state().stats.clone()
    }

    fn push(&self, batch: Batch, now: Duration) {
        let mut state = self.state();
        if state.gone || batch.lines.is_empty() {
            return;
        }
        state.stats.queued_bytes += batch.lines.len();
        state.stats.queued_batches += 1;
        state.batches.push_back(batch);
        let mut dropped = false;
        while state.stats.queued_bytes > MAX_QUEUED_BYTES || state.stats.queued_batches > MAX_QUEUED_BATCHES {
            let oldest = usize::from(state.in_flight);
            if !state.drop_batch(oldest) {
                break;
            }
            dropped = true;
        }
        drop(state);
        if dropped && self.told.tell("full", now).is_some() {
            self.tell_losses();
        }
        self.changed.notify_one();
    }

    /// The batch to deliver next, the oldest. It stays in the queue, and is not dropped, until [`Queue::settle`],
    /// [`Queue::fail`] or [`Queue::release`]. `None`: the queue closes and is empty.
    async fn next(&self) -> Option<Batch> {
        loop {
            {
                let mut state = self.state();
                if let Some(first) = state.batches.front().cloned() {
                    state.in_flight = true;
                    return Some(first);
                }
                if state.closing {
                    return None;
                }
            }
            self.changed.notified().await;
        }
    }

    /// The output has the first batch.
    fn settle(&self) {
        let mut state = self.state();
        state.in_flight = false;
        if let Some(batch) = state.batches.pop_front() {
            state.stats.queued_bytes -= batch.lines.len();
            state.stats.queued_batches -= 1;
            state.stats.delivered_lines += u64::from(batch.line_count);
        }
        state.stats.trouble = None;
    }

    /// The delivery failed and will be tried again.
    fn fail(&self, why: &str) {
        let mut state = self.state();
        state.in_flight = false;
        state.stats.failures += 1;
        state.stats.trouble = Some(why.to_owned());
    }

    /// The delivery is off.
    fn release(&self) {
        self.state().in_flight = false;
    }

    /// The output is gone: batches are not even queued any more.
    fn refuse_more(&self) {
        self.state().gone = true;
    }

    fn close(&self) {
        self.state().closing = true;
        self.changed.notify_one();
        self.closing.notify_one();
    }

    fn is_closing(&self) -> bool {
        self.state().closing
    }

    async fn closing(&self) {
        if !self.is_closing() {
            self.closing.notified().await;
        }
    }

    /// Drops what is left.
    fn abandon(&self) {
        let mut state = self.state();
        let gone = state.gone;
        while state.drop_batch(0) {}
        if gone {
            // Whoever closed the pipe did not want these.
            state.untold = None;
        }
        drop(state);
        self.tell_losses();
    }

    /// Logs the losses since the last time.
    fn tell_losses(&self) {
        let (output, loss) = {
            let mut state = self.state();
            (state.stats.name.clone(), state.untold.take())
        };
        if let Some(Loss { host, batches, lines, from_ns, to_ns }) = loss {
            let host = host.as_deref().unwrap_or("several");
            let (from, to) = (rfc3339(from_ns), rfc3339(to_ns));
            tracing::error!(
                output,
                host,
                lines,
                batches,
                from,
                to,
                "points dropped: they could not be delivered in time"
            );
        }
    }
}

impl State {
    fn drop_batch(&mut self, index: usize) -> bool {
        let Some(batch) = self.batches.remove(index) else { return false };
        let lines = u64::from(batch.line_count);
        self.stats.queued_bytes -= batch.lines.len();
        self.stats.queued_batches -= 1;
        self.stats.dropped_lines += lines;
        let loss = self.untold.get_or_insert_with(|| Loss {
            host: Some(batch.host.clone()),
            batches: 0,
            lines: 0,
            from_ns: batch.at_ns,
            to_ns: batch.at_ns,
        });
        if loss.host.as_ref().is_some_and(|host| *host != batch.host) {
            loss.host = None;
        }
        loss.batches += 1;
        loss.lines += lines;
        loss.from_ns = loss.from_ns.min(batch.at_ns);
        loss.to_ns = loss.to_ns.max(batch.at_ns);
        true
    }
}

#[cfg(test)]
mod tests;
