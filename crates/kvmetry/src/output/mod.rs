//! Outputs: from batches of line protocol to standard output, files and InfluxDB servers.
//!
//! ```text
//!  collectors ──send──▶ queue (bounded) ──worker──▶ writer thread ──▶ stdout, file
//!                ╰────▶ queue (bounded) ──worker──▶ HTTP POST ──────▶ InfluxDB
//! ```
//!
//! Each output has its own queue and its own worker, so none waits for another, and collecting waits for none:
//! [`Outputs::send`] never blocks. When a queue is full its oldest batch goes, counted and logged with its time
//! range. The worker takes batches from the front, several at once where that helps, and leaves them in the
//! queue until they are settled; what fails is tried again, after a growing pause, in order.
//!
//! Nothing here survives the end of the process: on shutdown the workers have a short time to empty their
//! queues, and what is left is counted as dropped.

mod file;
mod influxdb;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use crate::clock::Clock;
use crate::config::{InfluxDb, LineOutput};
use crate::logging::OncePerCause;

pub(crate) use influxdb::probe;

/// Lines waiting for one output, bytes: a quarter of an hour of 100 VMs at 5 s. Beyond, the oldest batch goes.
pub(crate) const MAX_QUEUED_BYTES: usize = 32 << 20;
/// Batches waiting for one output: bounds what small batches cost beside their bytes.
pub(crate) const MAX_QUEUED_BATCHES: usize = 16_384;

/// The pause after the first failure; it doubles with every further one up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause of our own making: how late an output that works again may notice it.
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// The pause where a person must act first (a wrong token, a missing database): asking more often only fills
/// the server's log.
const SLOW_PAUSE: Duration = Duration::from_secs(60);
/// The longest pause that a server may ask for (`Retry-After`).
const MAX_ASKED_PAUSE: Duration = Duration::from_secs(300);
/// Pauses are stretched or shortened by up to this part, percent, so that many collectors do not come back to
/// a restarted server in the same moment.
const JITTER_PERCENT: u32 = 25;

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
    /// `stdout`, `file:PATH` or the server's URL and database.
    pub(crate) name: String,
    /// Lines that the output has.
    pub(crate) delivered_lines: u64,
    /// Lines that a server refused (it said why in the log); they are not sent again.
    pub(crate) refused_lines: u64,
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
    /// A server's configuration.
    #[error("[[influxdb]] {url}: {problem}")]
    InfluxDb { url: String, problem: String },
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
    /// Opens files, prepares clients and starts a worker for each output. Servers are not asked anything yet.
    ///
    /// # Errors
    /// A file that cannot be opened, a certificate authority that cannot be read.
    pub(crate) fn start(
        lines: &[LineOutput],
        servers: &[InfluxDb],
        clock: Arc<dyn Clock>,
    ) -> Result<Self, OutputError> {
        let mut sinks = Vec::new();
        for output in lines {
            sinks.push(match output {
                LineOutput::Stdout => ("stdout".to_owned(), Sink::Writer(file::stdout()?)),
                LineOutput::File(path) => {
                    (format!("file:{}", path.display()), Sink::Writer(file::file(path)?))
                }
            });
        }
        for server in servers {
            let client = influxdb::Client::new(server)?;
            sinks.push((format!("{} {}", server.url, server.database), Sink::InfluxDb(Box::new(client))));
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
                refusals: OncePerCause::default(),
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
    InfluxDb(Box<influxdb::Client>),
    #[cfg(test)]
    Scripted(tests::Scripted),
}

/// What became of a delivery.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// The output has all lines but these, which it refuses for good; why.
    Delivered { refused_lines: u64, why: String },
    /// None is taken, for good: tried again in smaller pieces, and given up when it is a single batch.
    Refused { why: String },
    /// More than the server takes at once: tried again in smaller pieces, down to single lines.
    TooLarge { why: String },
    /// Not now. `after` is the pause that the server asked for.
    Retry { why: String, after: Option<Duration> },
    /// Not before a person has changed something.
    NeedsAPerson { why: String },
    /// Never again.
    Closed(Closed),
}

impl Verdict {
    fn delivered() -> Self {
        Self::Delivered { refused_lines: 0, why: String::new() }
    }
}

impl Sink {
    /// How many bytes of lines go well into one delivery. One batch goes in any case; with 0 never a second.
    fn preferred_bytes(&self) -> usize {
        match self {
            Self::Writer(_) => 0,
            Self::InfluxDb(_) => influxdb::PREFERRED_POST_BYTES,
            #[cfg(test)]
            Self::Scripted(_) => 0,
        }
    }

    async fn deliver(&mut self, batches: &[Batch]) -> Verdict {
        match self {
            Self::Writer(writer) => writer.write(&batches[0]).await,
            Self::InfluxDb(client) => client.post(batches).await,
            #[cfg(test)]
            Self::Scripted(scripted) => scripted.deliver(&batches[0]),
        }
    }
}

/// Takes batches from one queue to one sink.
struct Worker {
    queue: Arc<Queue>,
    sink: Sink,
    clock: Arc<dyn Clock>,
    close: Arc<watch::Sender<Option<Closed>>>,
    /// Why lines were refused.
    refusals: OncePerCause,
    /// Why nothing could be delivered since it last worked: a new outage is told anew.
    troubles: OncePerCause,
    failures_in_a_row: u32,
}

impl Worker {
    async fn run(mut self) {
        let preferred = self.sink.preferred_bytes();
        let mut most = preferred;
        // What the server was seen to take at once.
        let mut most_ever = usize::MAX;
        while let Some(batches) = self.queue.next(most, most_ever).await {
            let pause = match self.sink.deliver(&batches).await {
                Verdict::Delivered { refused_lines, why } => {
                    self.delivered(batches.len(), refused_lines, &why);
                    most = preferred.min(most_ever);
                    continue;
                }
                Verdict::TooLarge { .. } if batches.iter().any(|it| it.line_count > 1) => {
                    // What is sent from now on is at most half as large.
                    self.queue.release();
                    most_ever = bytes(&batches) / 2;
                    most = most_ever;
                    continue;
                }
                Verdict::Refused { .. } | Verdict::TooLarge { .. } if batches.len() > 1 => {
                    // One of them may be to blame: find it, and keep the others.
                    self.queue.release();
                    most = bytes(&batches) / 2;
                    continue;
                }
                Verdict::Refused { why } | Verdict::TooLarge { why } => {
                    self.delivered(1, u64::from(batches[0].line_count), &why);
                    most = preferred.min(most_ever);
                    continue;
                }
                Verdict::Retry { why, after } => {
                    self.failed(&why, false);
                    // A server may ask for more patience than ours, not for less: "0" would mean no pause at all.
                    pause(self.failures_in_a_row).max(after.unwrap_or_default().min(MAX_ASKED_PAUSE))
                }
                Verdict::NeedsAPerson { why } => {
                    self.failed(&why, true);
                    jitter(SLOW_PAUSE)
                }
                Verdict::Closed(closed) => {
                    self.queue.release();
                    self.queue.refuse_more();
                    self.close.send_replace(Some(closed));
                    return;
                }
            };
            if self.queue.is_closing() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.queue.closing() => {}
            }
        }
    }

    fn delivered(&mut self, batches: usize, refused_lines: u64, why: &str) {
        let output = self.queue.name();
        let now = self.clock.monotonic();
        self.queue.settle(batches, refused_lines);
        if refused_lines > 0
            && let Some(held_back) = self.refusals.tell(&cause(why), now)
        {
            tracing::error!(output, lines = refused_lines, held_back, "lines refused for good: {why}");
        }
        if self.failures_in_a_row > 0 {
            tracing::info!(output, failures = self.failures_in_a_row, "delivers again");
            self.failures_in_a_row = 0;
            self.troubles = OncePerCause::default();
        }
        self.queue.tell_losses();
    }

    fn failed(&mut self, why: &str, needs_a_person: bool) {
        let output = self.queue.name();
        self.failures_in_a_row = self.failures_in_a_row.saturating_add(1);
        self.queue.fail(why);
        if let Some(held_back) = self.troubles.tell(&cause(why), self.clock.monotonic()) {
            if needs_a_person {
                tracing::error!(output, held_back, "cannot deliver until this is changed: {why}");
            } else {
                tracing::warn!(output, held_back, "cannot deliver, trying again: {why}");
            }
        }
    }
}

/// A reason without the words that have digits: line numbers, times and a request's id make no new cause.
fn cause(why: &str) -> String {
    let words = why.split(|c: char| !c.is_alphanumeric());
    words.filter(|word| !word.contains(|c: char| c.is_ascii_digit())).collect::<Vec<_>>().join(" ")
}

/// The pause after this many failures in a row (from 1).
fn pause(failures: u32) -> Duration {
    let doubled = FIRST_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(16));
    jitter(doubled.min(MAX_PAUSE))
}

fn jitter(pause: Duration) -> Duration {
    pause * fastrand::u32(100 - JITTER_PERCENT..=100 + JITTER_PERCENT) / 100
}

fn bytes(batches: &[Batch]) -> usize {
    batches.iter().map(|batch| batch.lines.len()).sum()
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
    /// How many at the front are being delivered just now: those are not dropped.
    in_flight: usize,
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
            let oldest = state.in_flight;
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

    /// The batches to deliver next: the oldest, and the ones after it up to `most` bytes in all. They stay in
    /// the queue, and are not dropped, until [`Queue::settle`], [`Queue::fail`] or [`Queue::release`].
    /// A batch of more than `most_ever` bytes is halved until it fits or is a single line.
    /// `None`: the queue closes and is empty.
    async fn next(&self, most: usize, most_ever: usize) -> Option<Vec<Batch>> {
        loop {
            {
                let mut state = self.state();
                while state.batches.front().is_some_and(|first| first.lines.len() > most_ever)
                    && state.split_first()
                {}
                if !state.batches.is_empty() {
                    let mut size = 0;
                    let fits = |batch: &&Batch| {
                        size += batch.lines.len();
                        size <= most
                    };
                    let count = state.batches.iter().take_while(fits).count().max(1);
                    state.in_flight = count;
                    return Some(state.batches.iter().take(count).cloned().collect());
                }
                if state.closing {
                    return None;
                }
            }
            self.changed.notified().await;
        }
    }

    /// The output has the first batches, but for some lines that it refuses.
    fn settle(&self, batches: usize, refused_lines: u64) {
        let mut state = self.state();
        state.in_flight = 0;
        let mut lines = 0;
        for _ in 0..batches {
            if let Some(batch) = state.batches.pop_front() {
                state.stats.queued_bytes -= batch.lines.len();
                state.stats.queued_batches -= 1;
                lines += u64::from(batch.line_count);
            }
        }
        let refused = refused_lines.min(lines);
        state.stats.refused_lines += refused;
        state.stats.delivered_lines += lines - refused;
        state.stats.trouble = None;
    }

    /// The delivery failed and will be tried again.
    fn fail(&self, why: &str) {
        let mut state = self.state();
        state.in_flight = 0;
        state.stats.failures += 1;
        state.stats.trouble = Some(why.to_owned());
    }

    /// The delivery is off.
    fn release(&self) {
        self.state().in_flight = 0;
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
            let (from, to) = (time_of_day(from_ns), time_of_day(to_ns));
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
    /// Makes two batches of the first one, each with half of its lines. False if it has one line only.
    fn split_first(&mut self) -> bool {
        let Some(first) = self.batches.front_mut() else { return false };
        let line_ends =
            || first.lines.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
        let half = line_ends().count() / 2;
        let Some(at) = half.checked_sub(1).and_then(|nth| line_ends().nth(nth)) else { return false };
        let (head, tail) = first.lines.split_at(at);
        let rest = Batch {
            lines: Arc::new(tail.to_vec()),
            line_count: first.line_count - half as u32,
            ..first.clone()
        };
        (first.lines, first.line_count) = (Arc::new(head.to_vec()), half as u32);
        self.batches.insert(1, rest);
        self.stats.queued_batches += 1;
        true
    }

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

fn time_of_day(at_ns: i64) -> String {
    let since = Duration::from_nanos(u64::try_from(at_ns).unwrap_or(0));
    humantime::format_rfc3339_seconds(std::time::UNIX_EPOCH + since).to_string()
}

#[cfg(test)]
mod tests;
