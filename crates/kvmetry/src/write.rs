//! The one way of a write, whoever it comes from: parsed, held against the schema, journaled, seen, acknowledged.
//!
//! ```text
//!  write ─▶ room? ─▶ parse ─▶┌ one lock ───────────────┐     ┌ the writer's thread ───────────────────────────┐
//!                            │ Catalog::admit ▸ queue  │ ──▶ │ all that waits ▸ one Journal::append (fsync)   │
//!  offer (collector) ───────▶└─────────────────────────┘     │ ▸ Applied::apply, in order ▸ tell readers ▸ ack │
//!                                                            └────────────────────────────────────────────────┘
//! ```
//!
//! - The order of admission is the order of the journal, so no entry relies on a schema that comes after it. A changed
//!   catalogue is appended with the lines that changed it.
//! - While one append waits for the disk, the next one gathers: that is the group commit.
//! - What is acknowledged is durable, and is in memory: a query that begins after it sees it.
//! - If an append fails, nothing of it is acknowledged, nothing that waited behind it either (it may rely on a schema
//!   that is not durable), and the catalogue is again what is durable.
//! - Nothing here waits for ever: a write without room is refused after [`MAX_WAIT`], and the collector never waits at
//!   all. What it cannot hand over is lost, counted and told.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use journal::{Journal, JournalError, Loss, Seq};
use telemetry::lines::{
    Batch, Catalog, CatalogFault, LineError, MergeConflict, NotUtf8, Parsed, Precision, Refused,
    SeriesMemory, parse, parse_again, text,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

use crate::clock::Clock;
use crate::config::DATABASE;
use crate::entry;
use crate::logging::{OncePerCause, chain};
use crate::losses::{JOURNAL, Losses, Lost};
use crate::vital;

/// Bodies of writes that wait for the disk, bytes, and as much again for the collector's lines. It is three of the
/// largest bodies, and a minute of 1,000 VMs. A write counts as at least 1 KiB, so there are at most 32,768.
const MAX_WAITING_BYTES: usize = 32 << 20;
/// What [`MAX_WAITING_BYTES`] is counted in, bytes.
const UNIT: usize = 1 << 10;
/// How long a write waits for room: the disk hangs, or there is more than it can take. A client's own patience is
/// hardly longer.
const MAX_WAIT: Duration = Duration::from_secs(5);
/// Lines of one append, bytes as they are, unless one write alone has more. An append is held in memory, and must be
/// small beside the journal's size.
const MAX_APPEND_BYTES: usize = 8 << 20;
/// A body up to this many bytes is parsed where it is, a larger one on a thread of its own: in a millisecond or two
/// nobody is kept waiting.
const MAX_INLINE_BYTES: usize = 64 << 10;
/// How often the journal is asked to tidy up while it is written.
const MAINTAIN_EVERY: Duration = Duration::from_secs(1);
/// The same while nothing comes: what is older than its limit may stay a little, and waking up costs as much as a dozen
/// lines.
const MAINTAIN_IDLE_EVERY: Duration = Duration::from_secs(5);
/// The journal's state that holds the catalogue.
pub(crate) const CATALOG: &str = "catalog";
// With the databases' names it must still be a state.
const _: () = assert!(telemetry::lines::limits::MAX_CATALOG_BYTES < journal::MAX_STATE_BYTES);

/// What must see lines in memory before their write is acknowledged.
pub(crate) trait Applied: Send {
    /// Takes the lines of the entry `seq`. Called in the order of the journal, without gaps. It must not fail: the
    /// lines are durable already.
    fn apply(&mut self, seq: Seq, database: &str, batch: Batch);

    /// Whether it has more in memory than it should: then those who can wait do so.
    fn is_behind(&self) -> bool {
        false
    }

    /// Takes what the journal has dropped before its readers were past it, up to the entry `through`. Gives back what is
    /// lost by that.
    fn dropped(&mut self, losses: Vec<Loss>, through: Seq) -> Vec<Loss> {
        let _ = through;
        losses
    }
}

/// A write that is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Written {
    /// Lines that were taken.
    pub(crate) lines: u32,
    /// Lines that were refused, by number.
    pub(crate) errors: Vec<LineError>,
    /// How many more were refused.
    pub(crate) untold_errors: u32,
}

/// Why nothing of a write was taken.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum WriteError {
    /// The client's fault: the body is no text.
    #[error(transparent)]
    NotUtf8(#[from] NotUtf8),
    /// The client's fault: database or lines.
    #[error("{0}")]
    Refused(Refused),
    /// The client's fault: more in one write than an entry of the journal can hold.
    #[error("the write has {bytes} bytes compressed, at most {limit} are taken; send it in parts")]
    TooLarge { bytes: usize, limit: usize },
    /// Nobody's or the disk's: too much waits for it. The same write may be sent again.
    #[error("more is being written than the disk takes; try again later")]
    Busy,
    /// The disk's: it is full. The same write may be sent again.
    #[error("the disk is full: {}", chain(.0))]
    DiskFull(Arc<JournalError>),
    /// The disk's. The same write may be sent again.
    #[error("{}", chain(.0))]
    Disk(Arc<JournalError>),
    /// This program ends.
    #[error("kvmetry is ending")]
    Ended,
}

impl WriteError {
    /// Whether the same write may be taken later (HTTP 503); else it is the client's to mend (400, 413).
    pub(crate) fn is_retryable(&self) -> bool {
        match self {
            Self::NotUtf8(_) | Self::Refused(_) | Self::TooLarge { .. } => false,
            Self::Busy | Self::DiskFull(_) | Self::Disk(_) | Self::Ended => true,
        }
    }
}

/// Why no write can be taken at all.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// The catalogue in the journal.
    #[error("the journal's catalogue: {0}")]
    Catalog(CatalogFault),
    /// The journal and the store.
    #[error("the journal and the store disagree: {0}")]
    Conflict(MergeConflict),
    /// The journal.
    #[error(transparent)]
    Journal(JournalError),
    /// The system.
    #[error("no thread for writing: {0}")]
    Thread(std::io::Error),
}

/// A handle to write with; cheap to clone.
#[derive(Clone)]
pub(crate) struct Writer {
    shared: Arc<Shared>,
}

struct Shared {
    clock: Arc<dyn Clock>,
    losses: Arc<Losses>,
    state: Mutex<State>,
    /// There is something for the writer's thread.
    changed: Condvar,
    /// Room for writes that wait, in [`UNIT`]s.
    room: Arc<Semaphore>,
    /// The same for the collector, whom no client can starve.
    collectors_room: Arc<Semaphore>,
    /// The collector's series.
    collectors_series: Mutex<SeriesMemory>,
    /// Clients' writes wait: [`Applied::is_behind`].
    behind: watch::Sender<bool>,
    /// Whether batches are wanted ([`Applied`]).
    keeps_batches: bool,
    retentions: Arc<Retentions>,
    /// What the store knows although the journal may not.
    known: Catalog,
    /// The last durable entry.
    last: watch::Sender<Seq>,
    ended: watch::Sender<bool>,
}

/// What the order of writes hangs on.
struct State {
    catalog: Catalog,
    queue: VecDeque<Job>,
    closing: bool,
}

/// An admitted write.
struct Job {
    database: String,
    /// Empty where only the catalogue changes: then it is no entry.
    text: String,
    batch: Option<Batch>,
    lines: u32,
    span: (i64, i64),
    schema_changed: bool,
    ack: Ack,
    /// Given back when it is done.
    _room: OwnedSemaphorePermit,
}

/// Who wants to know.
enum Ack {
    Caller(oneshot::Sender<Result<(), WriteError>>),
    /// Nobody waits: what fails is lost.
    Collector,
}

impl Job {
    fn end(self, losses: &Losses, result: Result<(), WriteError>) {
        match (self.ack, result) {
            // It may have gone away.
            (Ack::Caller(caller), result) => drop(caller.send(result)),
            (Ack::Collector, Ok(())) => {}
            (Ack::Collector, Err(error)) => {
                let (lines, span) = (u64::from(self.lines), self.span);
                losses.add([Lost { who: JOURNAL.to_owned(), why: error.to_string(), lines, span }]);
            }
        }
    }
}

/// How long databases keep their points, for those that were told so themselves. Shared with the store and with
/// deliveries.
#[derive(Debug, Default)]
pub(crate) struct Retentions(RwLock<BTreeMap<String, Duration>>);

impl Retentions {
    /// As the journal has them.
    ///
    /// # Errors
    /// A catalogue that a newer version wrote or that is damaged.
    pub(crate) fn of_journal(journal: &Journal) -> Result<Self, StartError> {
        let retentions = Self::default();
        retentions.take(&read_catalog(journal)?);
        Ok(retentions)
    }

    /// Zero: for ever.
    pub(crate) fn of(&self, database: &str) -> Option<Duration> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(database).copied()
    }

    pub(crate) fn take(&self, catalog: &Catalog) {
        let all = catalog.databases().filter_map(|it| Some((it.to_owned(), catalog.retention(it)?)));
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = all.collect();
    }
}

/// What a [`Writer`] works with.
pub(crate) struct Setup {
    pub(crate) journal: Arc<Journal>,
    /// Sees every entry from now on.
    pub(crate) applied: Option<Box<dyn Applied>>,
    /// Tables that are known although the journal may not know them.
    pub(crate) known: Catalog,
    pub(crate) retentions: Arc<Retentions>,
    pub(crate) losses: Arc<Losses>,
    pub(crate) clock: Arc<dyn Clock>,
}

impl Writer {
    /// Reads the catalogue and starts the writer's thread.
    ///
    /// # Errors
    /// A catalogue that a newer version wrote or that is damaged; no thread.
    pub(crate) fn start(setup: Setup) -> Result<Self, StartError> {
        let Setup { journal, applied, known, retentions, losses, clock } = setup;
        let mut catalog = read_catalog(&journal)?;
        catalog.merge(&known).map_err(StartError::Conflict)?;
        retentions.take(&catalog);
        let shared = Arc::new(Shared {
            clock,
            losses,
            state: Mutex::new(State { catalog, queue: VecDeque::new(), closing: false }),
            changed: Condvar::new(),
            room: Arc::new(Semaphore::new(MAX_WAITING_BYTES / UNIT)),
            collectors_room: Arc::new(Semaphore::new(MAX_WAITING_BYTES / UNIT)),
            collectors_series: Mutex::default(),
            keeps_batches: applied.is_some(),
            retentions,
            known,
            behind: watch::Sender::new(false),
            last: watch::Sender::new(journal.stats().last),
            ended: watch::Sender::new(false),
        });
        let troubles = OncePerCause::default();
        let thread = Thread { shared: Arc::clone(&shared), journal, applied, troubles, is_failing: false };
        vital::spawn("writer", move || thread.run()).map_err(StartError::Thread)?;
        Ok(Self { shared })
    }

    /// Writes a body of line protocol to a database. With `partial` the good lines are taken and the others told;
    /// without it all are taken or none. When it returns, what was taken is durable and can be queried.
    ///
    /// # Errors
    /// [`WriteError`], which knows whose fault it is. After a retryable one nothing was taken.
    pub(crate) async fn write(
        &self,
        database: &str,
        body: impl AsRef<[u8]> + Send + 'static,
        precision: Precision,
        partial: bool,
    ) -> Result<Written, WriteError> {
        let bytes = body.as_ref().len();
        let mut behind = self.shared.behind.subscribe();
        let caught_up = tokio::time::timeout(MAX_WAIT, behind.wait_for(|behind| !behind));
        caught_up.await.map_err(|_| WriteError::Busy)?.map_err(|_| WriteError::Ended)?;
        let room = Arc::clone(&self.shared.room).acquire_many_owned(units(bytes));
        let room = tokio::time::timeout(MAX_WAIT, room).await.map_err(|_| WriteError::Busy)?;
        let room = room.map_err(|_| WriteError::Ended)?;
        let (caller, acknowledged) = oneshot::channel();
        let write = {
            let (shared, database) = (Arc::clone(&self.shared), database.to_owned());
            move || {
                let body = text(body.as_ref())?;
                let parsed = parse(body, precision, shared.clock.wall_ns());
                shared.admit(database, parsed, partial, Ack::Caller(caller), room)
            }
        };
        let written = match bytes {
            ..=MAX_INLINE_BYTES => write()?,
            _ => tokio::task::spawn_blocking(write).await.map_err(|_| WriteError::Ended)??,
        };
        if written.lines > 0 {
            acknowledged.await.map_err(|_| WriteError::Ended)??;
        }
        Ok(written)
    }

    /// Hands over what was collected, in ns, `lines` in number. Never waits: what there is no room for is lost, as is
    /// what cannot be written later; that is counted and told.
    pub(crate) fn offer(&self, body: &[u8], lines: u32, at_ns: i64) {
        let lost = |why: String, lines: u64| {
            let span = (at_ns, at_ns);
            self.shared.losses.add([Lost { who: JOURNAL.to_owned(), why, lines, span }]);
        };
        let room = Arc::clone(&self.shared.collectors_room).try_acquire_many_owned(units(body.len()));
        let Ok(room) = room else {
            return lost("the disk is too slow, or hangs".to_owned(), u64::from(lines));
        };
        let admitted = text(body).map_err(WriteError::from).and_then(|body| {
            let mut series = self.shared.collectors_series.lock().unwrap_or_else(PoisonError::into_inner);
            let now_ns = self.shared.clock.wall_ns();
            let parsed = parse_again(body, Precision::Nanosecond, now_ns, Some(&mut series));
            self.shared.admit(DATABASE.to_owned(), parsed, true, Ack::Collector, room)
        });
        match admitted {
            Ok(Written { errors, untold_errors, .. }) => {
                let refused = errors.len() as u64 + u64::from(untold_errors);
                if let Some(first) = errors.first() {
                    lost(format!("the schema refuses them: {}", first.message), refused);
                }
            }
            Err(error) => lost(error.to_string(), u64::from(lines)),
        }
    }

    /// All databases, each with its own retention if it has one.
    pub(crate) fn databases(&self) -> Vec<(String, Option<Duration>)> {
        let state = self.shared.state();
        state.catalog.databases().map(|it| (it.to_owned(), state.catalog.retention(it))).collect()
    }

    /// Whether a database can be asked: it was made or written to, or is the one that needs neither.
    #[cfg(feature = "store")]
    pub(crate) fn has_database(&self, name: &str) -> bool {
        name == DATABASE || self.shared.state().catalog.databases().any(|it| it == name)
    }

    /// Makes a database, durably. False if it is there.
    ///
    /// # Errors
    /// As [`Writer::write`].
    pub(crate) async fn create_database(
        &self,
        name: &str,
        retention: Option<Duration>,
    ) -> Result<bool, WriteError> {
        self.change(|catalog| catalog.create_database(name, retention).map_err(WriteError::Refused)).await
    }

    /// Changes a database's retention, durably. False if there is no such database.
    ///
    /// # Errors
    /// As [`Writer::write`].
    pub(crate) async fn set_retention(
        &self,
        name: &str,
        retention: Option<Duration>,
    ) -> Result<bool, WriteError> {
        self.change(|catalog| Ok(catalog.set_retention(name, retention))).await
    }

    /// Changes the catalogue alone. `change` says whether there is something to write down.
    async fn change(
        &self,
        change: impl FnOnce(&mut Catalog) -> Result<bool, WriteError>,
    ) -> Result<bool, WriteError> {
        let room = Arc::clone(&self.shared.room).acquire_owned();
        let room = tokio::time::timeout(MAX_WAIT, room).await.map_err(|_| WriteError::Busy)?;
        let room = room.map_err(|_| WriteError::Ended)?;
        let (caller, acknowledged) = oneshot::channel();
        {
            let mut state = self.shared.state();
            if state.closing {
                return Err(WriteError::Ended);
            }
            if !change(&mut state.catalog)? {
                return Ok(false);
            }
            state.queue.push_back(Job {
                database: String::new(),
                text: String::new(),
                batch: None,
                lines: 0,
                span: (0, 0),
                schema_changed: true,
                ack: Ack::Caller(caller),
                _room: room,
            });
            self.shared.changed.notify_all();
        }
        acknowledged.await.map_err(|_| WriteError::Ended)??;
        Ok(true)
    }

    /// The number of the last durable entry, as it grows.
    pub(crate) fn last(&self) -> watch::Receiver<Seq> {
        self.shared.last.subscribe()
    }

    /// Takes no more writes, writes what waits, and ends the thread. False if that took longer than `within`: the disk
    /// hangs, and what waits is lost.
    pub(crate) async fn close(&self, within: Duration) -> bool {
        let mut ended = self.shared.ended.subscribe();
        self.shared.state().closing = true;
        self.shared.changed.notify_all();
        let ended = tokio::time::timeout(within, ended.wait_for(|ended| *ended)).await.is_ok();
        if !ended {
            drop(self.shared.fail_waiting(&WriteError::Ended));
        }
        self.shared.losses.tell_all();
        ended
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Admits the lines of a body and queues them.
    fn admit(
        &self,
        database: String,
        parsed: Parsed<'_>,
        partial: bool,
        ack: Ack,
        room: OwnedSemaphorePermit,
    ) -> Result<Written, WriteError> {
        let mut state = self.state();
        if state.closing {
            return Err(WriteError::Ended);
        }
        let admitted = state.catalog.admit(&database, parsed, partial).map_err(WriteError::Refused)?;
        let lines = admitted.batch.lines;
        if let Some(span) = admitted.batch.span {
            state.queue.push_back(Job {
                database,
                text: admitted.text.into_owned(),
                batch: self.keeps_batches.then_some(admitted.batch),
                lines,
                span,
                schema_changed: admitted.schema_changed,
                ack,
                _room: room,
            });
            self.changed.notify_all();
        }
        drop(state);
        Ok(Written { lines, errors: admitted.errors, untold_errors: admitted.untold_errors })
    }

    /// The writes of the next append, and the catalogue if they changed it. Waits for the first one, but not longer
    /// than [`MAINTAIN_IDLE_EVERY`]. `None`: there is none, and there will be none.
    fn take(&self) -> Option<(Vec<Job>, Option<Vec<u8>>)> {
        let mut state = self.state();
        if state.queue.is_empty() && !state.closing {
            let waited = self.changed.wait_timeout(state, MAINTAIN_IDLE_EVERY);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        if state.queue.is_empty() && state.closing {
            return None;
        }
        let mut bytes = 0;
        let fits = |job: &&Job| {
            bytes += job.text.len();
            bytes <= MAX_APPEND_BYTES
        };
        let count = state.queue.iter().take_while(fits).count().max(1).min(state.queue.len());
        let jobs: Vec<_> = state.queue.drain(..count).collect();
        // It may know more than these writes: what those behind them added. That is as good as durable.
        let changed = jobs.iter().any(|job| job.schema_changed);
        let catalog = changed.then(|| state.catalog.to_bytes());
        Some((jobs, catalog))
    }

    /// Ends all writes that wait. Returns under the lock, so that none comes between.
    fn fail_waiting(&self, error: &WriteError) -> MutexGuard<'_, State> {
        let mut state = self.state();
        for job in std::mem::take(&mut state.queue) {
            job.end(&self.losses, Err(error.clone()));
        }
        state
    }
}

struct Thread {
    shared: Arc<Shared>,
    journal: Arc<Journal>,
    applied: Option<Box<dyn Applied>>,
    /// Why the journal cannot tidy up, or not be written.
    troubles: OncePerCause,
    /// Appends fail.
    is_failing: bool,
}

impl Thread {
    fn run(mut self) {
        let clock = Arc::clone(&self.shared.clock);
        let mut maintained = clock.monotonic();
        while let Some((jobs, catalog)) = self.shared.take() {
            if !jobs.is_empty() {
                self.append(jobs, catalog);
            }
            let behind = self.applied.as_ref().is_some_and(|it| it.is_behind());
            self.shared.behind.send_if_modified(|was| std::mem::replace(was, behind) != behind);
            if clock.monotonic().saturating_sub(maintained) >= MAINTAIN_EVERY {
                maintained = clock.monotonic();
                self.maintain();
            }
        }
        self.shared.ended.send_replace(true);
    }

    fn append(&mut self, jobs: Vec<Job>, catalog: Option<Vec<u8>>) {
        let losses = Arc::clone(&self.shared.losses);
        let (mut kept, mut entries) = (Vec::with_capacity(jobs.len()), Vec::with_capacity(jobs.len()));
        for job in jobs {
            if job.lines == 0 {
                kept.push(job);
                continue;
            }
            let payload = entry::encode(&job.database, &job.text);
            let (bytes, limit) = (payload.len(), journal::MAX_ENTRY_BYTES);
            if bytes > limit {
                job.end(&losses, Err(WriteError::TooLarge { bytes, limit }));
                continue;
            }
            entries.push(journal::Entry { payload, lines: job.lines, span: job.span });
            kept.push(job);
        }
        let states: Vec<_> = catalog.iter().map(|bytes| (CATALOG, bytes.as_slice())).collect();
        let appended = match self.journal.append(&entries, &states, self.shared.clock.wall_ns()) {
            Ok(appended) => appended,
            Err(error) => return self.failed(kept, error),
        };
        self.dropped(appended.losses, appended.first - 1);
        if std::mem::take(&mut self.is_failing) {
            tracing::info!("the journal can be written again");
        }
        if let Some(durable) = catalog.and_then(|bytes| Catalog::from_bytes(&bytes).ok()) {
            self.shared.retentions.take(&durable);
        }
        for (seq, job) in (appended.first..).zip(kept.iter_mut().filter(|it| it.lines > 0)) {
            if let (Some(applied), Some(batch)) = (&mut self.applied, job.batch.take()) {
                applied.apply(seq, &job.database, batch);
            }
        }
        self.shared.last.send_replace(appended.last);
        kept.into_iter().for_each(|job| job.end(&losses, Ok(())));
    }

    fn failed(&mut self, jobs: Vec<Job>, error: JournalError) {
        let is_full = error.is_disk_full();
        if let JournalError::Io { .. } | JournalError::Broken { .. } = error {
            // Also where that was told a while ago: whoever read of it waits for the end.
            self.is_failing = true;
            let cause = if is_full { "append: full" } else { "append" };
            if let Some(held_back) = self.troubles.tell(cause, self.shared.clock.monotonic()) {
                let why = chain(&error);
                tracing::error!(held_back, "the journal cannot be written, and writes are refused: {why}");
            }
        }
        let error = Arc::new(error);
        let error = if is_full { WriteError::DiskFull(error) } else { WriteError::Disk(error) };
        let mut state = self.shared.fail_waiting(&error);
        match read_catalog(&self.journal) {
            Ok(mut catalog) => {
                // They agreed when this program started, and neither has changed its mind.
                let _ = catalog.merge(&self.shared.known);
                state.catalog = catalog;
            }
            // It was written by this program and is held in memory by the journal.
            Err(fault) => tracing::error!("{}", chain(&fault)),
        }
        drop(state);
        jobs.into_iter().for_each(|job| job.end(&self.shared.losses, Err(error.clone())));
    }

    /// Tells what is lost of what the journal dropped.
    fn dropped(&mut self, losses: Vec<Loss>, through: Seq) {
        let lost = match &mut self.applied {
            Some(applied) if !losses.is_empty() => applied.dropped(losses, through),
            _ => losses,
        };
        self.shared.losses.add(lost);
    }

    fn maintain(&mut self) {
        let now_ns = self.shared.clock.wall_ns();
        match self.journal.maintain(now_ns) {
            Ok(losses) => {
                let last = *self.shared.last.borrow();
                self.dropped(losses, last);
            }
            Err(error) => {
                let why = chain(&error);
                if self.troubles.tell(&why, self.shared.clock.monotonic()).is_some() {
                    tracing::warn!("the journal cannot tidy up, trying again: {why}");
                }
            }
        }
        self.shared.losses.tell_due();
    }
}

/// The tables that the journal knows.
///
/// # Errors
/// A catalogue that a newer version wrote or that is damaged.
pub(crate) fn read_catalog(journal: &Journal) -> Result<Catalog, StartError> {
    match journal.state(CATALOG).map_err(StartError::Journal)? {
        Some(bytes) => Catalog::from_bytes(&bytes).map_err(StartError::Catalog),
        None => Ok(Catalog::default()),
    }
}

/// How much room a body takes.
fn units(bytes: usize) -> u32 {
    bytes.div_ceil(UNIT).clamp(1, MAX_WAITING_BYTES / UNIT) as u32
}

#[cfg(test)]
mod tests;
