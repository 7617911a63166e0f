//! The embedded store as a reader of the journal: opened and caught up at the start, fed before each acknowledgement,
//! kept tidy by a thread of its own.

mod others;

use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use disk::Disk;
use journal::{Entry, Journal, Loss, Seq, Stats};
use store::sql::{Engine, QueryLimits};
use store::{Room, Store, StoreError};
use telemetry::lines::limits::ROLLUP_SUFFIXES;
use telemetry::lines::{Batch, Catalog, Precision, parse};

pub(crate) use self::others::Others;
use crate::clock::{Clock, rfc3339};
use crate::config;
use crate::entry;
use crate::keep::STORE;
use crate::logging::OncePerCause;
use crate::losses::{Losses, Lost};
use crate::vital;
use crate::write::{Applied, Retentions, read_catalog};

/// How often the store is looked after while its rows in memory want to be written.
const MAINTAIN_EVERY: Duration = Duration::from_secs(1);
/// The same otherwise: looking costs more than it finds, and a disk does not fill up by what fits into memory.
const MAINTAIN_IDLE_EVERY: Duration = Duration::from_secs(5);
/// How often it is looked whether files should be merged.
const COMPACT_EVERY: Duration = Duration::from_secs(10);
/// How long after one reading of the journal another may begin: room that comes and goes must not keep it read all the
/// time.
const READ_AGAIN_AFTER: Duration = Duration::from_secs(60);
/// The part of the journal's bound that may be filled with rows that only memory has besides: beyond it they are written
/// into files before their time, because the journal drops its oldest entries at its bound.
const JOURNAL_PART: u64 = 4;
/// Bytes of the journal that are read at once.
const READ_BYTES: usize = 8 << 20;

/// What the store is opened with.
pub(crate) struct Setup {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) dir: PathBuf,
    pub(crate) journal: Arc<Journal>,
    pub(crate) config: config::Store,
    pub(crate) retentions: Arc<Retentions>,
    pub(crate) losses: Arc<Losses>,
    /// What else counts against the store's max_size.
    pub(crate) others: Others,
    pub(crate) clock: Arc<dyn Clock>,
}

/// The open store.
pub(crate) struct Embedded {
    store: Store,
    engine: Arc<Engine>,
    at_risk: Arc<Mutex<AtRisk>>,
    stop: Arc<Stop>,
    ended: tokio::sync::oneshot::Receiver<()>,
}

/// What the journal has dropped before the store's files had it: only memory has it.
#[derive(Default)]
struct AtRisk {
    losses: Vec<Loss>,
    /// The last entry of it at most: files that are past it have all.
    through: Seq,
}

impl AtRisk {
    fn add(&mut self, loss: Loss) {
        match self.losses.iter_mut().find(|it| it.cause == loss.cause) {
            Some(it) => {
                it.entries += loss.entries;
                it.lines += loss.lines;
                it.span = (it.span.0.min(loss.span.0), it.span.1.max(loss.span.1));
            }
            None => self.losses.push(loss),
        }
    }
}

#[derive(Default)]
struct Stop {
    state: Mutex<Asked>,
    changed: Condvar,
}

/// What the threads are asked to do.
#[derive(Clone, Copy, Default)]
struct Asked {
    stop: bool,
    /// To look after the store soon.
    hurry: bool,
}

/// The store as it was opened.
pub(crate) struct Opened {
    pub(crate) store: Store,
    pub(crate) engine: Engine,
    /// Rows that are in the journal only: they could not be written, and there was no memory left for them.
    pub(crate) left_out: u64,
}

/// Opens the store and takes in what the journal has and the store's files have not. Nothing is written as long as
/// memory has room.
///
/// # Errors
/// A directory that cannot be used.
pub(crate) fn open(setup: &Setup) -> anyhow::Result<Opened> {
    let (config, retentions) = (setup.config.clone(), Arc::clone(&setup.retentions));
    let no_rollups = setup.config.no_rollups.clone();
    let rollups = move |database: &str, table: &str| {
        let is_meant = |it: &String| match it.split_once('/') {
            Some(one) => one == (database, table),
            None => it == "*" || it == database,
        };
        !no_rollups.iter().any(is_meant)
    };
    let retention = move |database: &str, table: &str| {
        let own = retentions.of(database).filter(|_| !is_rollup(table));
        match own {
            // Zero: for ever.
            Some(own) if own.is_zero() => Duration::MAX,
            Some(own) => own,
            None => config.retention_of(table),
        }
    };
    let options = store::Options {
        retention: Arc::new(retention),
        rollups: Arc::new(rollups),
        max_size: setup.config.max_size,
        min_free: setup.config.min_free,
        ..store::Options::default()
    };
    let opened = Store::open(Arc::clone(&setup.disk), &setup.dir, options);
    let (store, complaints) = opened.map_err(|error| {
        let about = match &error {
            StoreError::Damaged { .. } => format!(
                "the embedded store cannot be opened (restore a backup with kvmetry restore --replace; or move {} away, \
                 and a new one begins with what the journal still has; --no-store goes on without)",
                setup.dir.display()
            ),
            _ => "the embedded store".to_owned(),
        };
        anyhow::Error::from(error).context(about)
    })?;
    store.know(&read_catalog(&setup.journal)?);
    for complaint in complaints {
        tracing::error!("the store: {complaint}");
    }
    let (Stats { first, last, .. }, cursor) = (setup.journal.stats(), store.cursor());
    // A store that has no files yet begins with what is there.
    if cursor > 0 && first > cursor + 1 {
        tracing::error!(
            first,
            cursor,
            "the journal begins after what the store's files have: it dropped what was between, or the two are of \
             different moments. What was acknowledged between and was in no file is lost"
        );
    }
    if last < cursor {
        tracing::error!(
            last,
            cursor,
            "the journal ends before what the store's files have: it was lost, or is an older one. What was acknowledged \
             last and was in no file yet is lost with it"
        );
    }
    let reading =
        Reading { store: &store, journal: &setup.journal, losses: &setup.losses, clock: &*setup.clock };
    let left_out =
        reading.catch_up(store.cursor(), || true).context("reading the journal into the embedded store")?;
    let engine = Engine::new(&store, QueryLimits::default()).context("no threads for queries")?;
    Ok(Opened { store, engine, left_out })
}

impl Embedded {
    /// Opens the store and starts its upkeep.
    ///
    /// # Errors
    /// As [`open`].
    pub(crate) fn start(setup: Setup) -> anyhow::Result<Self> {
        let Opened { store, engine, left_out } = open(&setup)?;
        if left_out > 0 {
            warn_of_left_out(left_out, 0);
        }
        let Setup { journal, losses, clock, others, .. } = setup;
        let stop = Arc::new(Stop::default());
        let (end, ended) = tokio::sync::oneshot::channel();
        let compactor =
            Compactor { store: store.clone(), clock: Arc::clone(&clock), told: OncePerCause::default() };
        let compactor_stop = Arc::clone(&stop);
        vital::spawn("compact", move || compactor.run(&compactor_stop)).context("no thread for the store")?;
        let told = OncePerCause::default();
        let at_risk = Arc::new(Mutex::default());
        let upkeep = Upkeep {
            store: store.clone(),
            journal,
            losses,
            at_risk: Arc::clone(&at_risk),
            others,
            clock,
            told,
            has_room: true,
            read_at: None,
        };
        let upkeep_stop = Arc::clone(&stop);
        let run = move || {
            upkeep.run(&upkeep_stop);
            // Whoever waited may have given up.
            let _ = end.send(());
        };
        vital::spawn("store", run).context("no thread for the store")?;
        Ok(Self { store, engine: Arc::new(engine), at_risk, stop, ended })
    }

    /// What feeds it.
    pub(crate) fn applied(&self) -> Box<dyn Applied> {
        let at_risk = Arc::clone(&self.at_risk);
        Box::new(Feed { store: self.store.clone(), at_risk, stop: Arc::clone(&self.stop) })
    }

    /// The tables that it knows.
    pub(crate) fn catalog(&self) -> Catalog {
        self.store.catalog()
    }

    /// What answers queries.
    pub(crate) fn engine(&self) -> Arc<Engine> {
        Arc::clone(&self.engine)
    }

    /// The store itself.
    pub(crate) fn store(&self) -> Store {
        self.store.clone()
    }

    /// Logs what it holds.
    pub(crate) fn tell(&self) {
        let stats = self.store.stats();
        tracing::info!(
            files = stats.files,
            file_bytes = stats.file_bytes,
            rows = stats.file_rows,
            memory_rows = stats.memory_rows,
            memory_bytes = stats.memory_bytes,
            rollup_bytes = stats.rollup_bytes,
            "the store"
        );
    }

    /// Ends the upkeep. What is in memory stays in the journal.
    pub(crate) async fn close(self, within: Duration) {
        self.stop.ask(|it| it.stop = true);
        if tokio::time::timeout(within, self.ended).await.is_err() {
            tracing::warn!("ended in the middle of a flush or compaction: it begins anew at the next start");
        }
    }
}

fn is_rollup(table: &str) -> bool {
    ROLLUP_SUFFIXES.iter().any(|suffix| table.ends_with(suffix))
}

/// Reads the journal into the store.
struct Reading<'a> {
    store: &'a Store,
    journal: &'a Journal,
    losses: &'a Losses,
    clock: &'a dyn Clock,
}

impl Reading<'_> {
    /// Applies the entries after this one, all that there are, as long as it may go on. Returns how many rows had to go
    /// from memory since they could not be written.
    fn catch_up(&self, mut after: Seq, may_go_on: impl Fn() -> bool) -> anyhow::Result<u64> {
        let mut left_out = 0;
        // Before anything is appended: numbers that the store has seen are not given again.
        self.journal.advance(STORE, after);
        while may_go_on() {
            let read = self.journal.read(after, READ_BYTES)?;
            self.losses.add(read.damaged.iter().map(|gap| gap.loss(STORE)));
            if read.through == after && self.store.caught_up(after) {
                break;
            }
            after = read.through;
            read.entries.iter().for_each(|(seq, entry)| self.apply(*seq, entry));
            if self.store.is_behind() {
                // What fails is told by the upkeep, which tries again; the newest rows are in memory then.
                let (Ok(done) | Err(done)) =
                    self.store.maintain(self.clock.wall_ns(), 0).map_err(|failed| failed.1);
                self.journal.advance(STORE, done.cursor);
                if done.expired_rows > 0 {
                    tell_expired(done.expired_rows, 0);
                }
                left_out += done.dropped_rows;
            }
        }
        Ok(left_out)
    }

    fn apply(&self, seq: Seq, entry: &Entry) {
        let lost = |lines: u32, why: String| {
            let who = STORE.to_owned();
            self.losses.add([Lost { who, why, lines: lines.into(), span: entry.span }]);
        };
        let lines = match entry::decode(&entry.payload) {
            Ok(lines) => lines,
            Err(fault) => return lost(entry.lines, fault.to_string()),
        };
        // They were accepted once, and are not judged again.
        let (batch, bad) = parse(&lines.text, Precision::Nanosecond, i64::MAX).into_batch();
        if bad > 0 {
            lost(bad, "they cannot be read back from the journal".to_owned());
        }
        if let Err(error) = self.store.apply_read(seq, &lines.database, &batch) {
            lost(batch.lines, format!("the store cannot take them: {error}"));
        }
    }
}

fn tell_expired(rows: u64, held_back: u64) {
    tracing::warn!(
        held_back,
        rows,
        "points were written that are older than their table's retention, and are not kept; see [store] retention"
    );
}

fn warn_of_left_out(rows: u64, held_back: u64) {
    tracing::warn!(
        held_back,
        rows,
        "the store cannot write and has no memory left: its oldest rows are in the journal only, and are read from it \
         when there is room"
    );
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Feed {
    store: Store,
    at_risk: Arc<Mutex<AtRisk>>,
    stop: Arc<Stop>,
}

impl Applied for Feed {
    fn is_behind(&self) -> bool {
        if self.store.wants_flush() {
            self.stop.ask(|it| it.hurry = true);
        }
        self.store.is_behind()
    }

    fn apply(&mut self, seq: Seq, database: &str, batch: Batch) {
        if let Err(error) = self.store.apply(seq, database, &batch) {
            // The schema check lets no such line through.
            tracing::error!(seq, lines = batch.lines, "the store cannot take an entry: {error}");
        }
    }

    fn dropped(&mut self, losses: Vec<Loss>, through: Seq) -> Vec<Loss> {
        if !self.store.has_all_rows() {
            return losses;
        }
        let (ours, others): (Vec<_>, _) = losses.into_iter().partition(|it| it.reader == STORE);
        if !ours.is_empty() {
            let mut at_risk = lock(&self.at_risk);
            ours.into_iter().for_each(|it| at_risk.add(it));
            at_risk.through = through;
        }
        others
    }
}

struct Upkeep {
    store: Store,
    journal: Arc<Journal>,
    losses: Arc<Losses>,
    at_risk: Arc<Mutex<AtRisk>>,
    others: Others,
    clock: Arc<dyn Clock>,
    told: OncePerCause,
    has_room: bool,
    /// When the journal was read again last.
    read_at: Option<Duration>,
}

impl Stop {
    fn state(&self) -> MutexGuard<'_, Asked> {
        lock(&self.state)
    }

    fn ask(&self, what: impl FnOnce(&mut Asked)) {
        what(&mut self.state());
        self.changed.notify_all();
    }

    fn is_asked(&self) -> bool {
        self.state().stop
    }

    /// Waits, no longer than this, until it is asked to stop, or for what is `enough` too.
    fn wait(&self, time: Duration, enough: impl Fn(&Asked) -> bool) {
        let go_on = |it: &mut Asked| !it.stop && !enough(it);
        drop(self.changed.wait_timeout_while(self.state(), time, go_on));
    }
}

/// Merges files, beside all else. Nobody waits for its end: what it has not committed does not count.
struct Compactor {
    store: Store,
    clock: Arc<dyn Clock>,
    told: OncePerCause,
}

impl Compactor {
    fn run(self, stop: &Stop) {
        while !stop.is_asked() {
            match self.store.compact_some(self.clock.wall_ns()) {
                Ok(0) => {}
                Ok(files) => tracing::debug!(files, "merged files of the store"),
                Err(error) => {
                    if let Some(held_back) = self.told.tell("compact", self.clock.monotonic()) {
                        let error = anyhow::Error::from(error);
                        tracing::warn!(
                            held_back,
                            "files of the store cannot be merged, which costs room only: {error:#}"
                        );
                    }
                }
            }
            stop.wait(COMPACT_EVERY, |_| false);
        }
    }
}

impl Upkeep {
    fn run(mut self, stop: &Stop) {
        while !stop.is_asked() {
            stop.state().hurry = false;
            self.maintain();
            self.settle(false);
            self.read_again(stop);
            stop.wait(MAINTAIN_EVERY, |_| false);
            stop.wait(MAINTAIN_IDLE_EVERY - MAINTAIN_EVERY, |it| it.hurry);
        }
        // So that the files are whole for whoever reads them without us. If the time does not suffice, the journal has it.
        if self.has_room {
            self.flush();
        }
        self.settle(true);
    }

    /// Says what became of what only memory has: files have it, it is lost, or that is to be seen yet. `ends`: nothing more
    /// will be written.
    fn settle(&self, ends: bool) {
        let mut at_risk = lock(&self.at_risk);
        if at_risk.losses.is_empty() || self.store.cursor() >= at_risk.through {
            at_risk.losses.clear();
        } else if ends || !self.store.has_all_rows() {
            self.losses.add(std::mem::take(&mut at_risk.losses));
            if ends {
                self.losses.tell_all();
            }
        } else if let Some(held_back) = self.told.tell("at risk", self.clock.monotonic()) {
            for Loss { lines, span, .. } in &at_risk.losses {
                tracing::warn!(
                    held_back,
                    lines,
                    from = rfc3339(span.0),
                    to = rfc3339(span.1),
                    "the journal had to drop lines that the store has in memory only, until it can write: they are lost if \
                     kvmetry ends before"
                );
            }
        }
    }

    fn maintain(&mut self) {
        let done = match self.store.maintain(self.clock.wall_ns(), self.others.bytes(self.clock.monotonic()))
        {
            Ok(done) => done,
            Err(failed) => {
                let (error, done) = *failed;
                if let Some(held_back) = self.told.tell("upkeep", self.clock.monotonic()) {
                    let error = anyhow::Error::from(error);
                    tracing::error!(held_back, "the store cannot write; rows stay in the journal: {error:#}");
                }
                done
            }
        };
        if done.cursor > 0 {
            self.journal.advance(STORE, done.cursor);
        }
        if !done.dropped_days.is_empty() {
            let (days, bytes) = (done.dropped_days.join(", "), done.dropped_bytes);
            tracing::warn!(
                days,
                bytes,
                "the store is at its max_size: its oldest days were removed; see [store] max_size and retention"
            );
        }
        if done.dropped_rows > 0
            && let Some(held_back) = self.told.tell("dropped", self.clock.monotonic())
        {
            warn_of_left_out(done.dropped_rows, held_back);
        }
        if done.expired_rows > 0
            && let Some(held_back) = self.told.tell("expired", self.clock.monotonic())
        {
            tell_expired(done.expired_rows, held_back);
        }
        if done.left_out_series > 0
            && let Some(held_back) = self.told.tell("roll-ups", self.clock.monotonic())
        {
            tracing::warn!(
                held_back,
                series = done.left_out_series,
                "there are more series than memory for their roll-ups: these have none until others have rested for two \
                 hours, their points are all there; look for a tag whose values never come again, or see [store] \
                 no_rollups"
            );
        }
        let has_room = done.room == Room::Enough;
        if has_room != self.has_room {
            match done.room {
                Room::Enough => tracing::info!("the disk has room again: the store grows on"),
                Room::Short { free, min_free } => tracing::error!(
                    free,
                    min_free,
                    "the disk is nearly full: the store stops growing, the journal drops its oldest entries instead of \
                     growing; free some space, or see [store] min_free"
                ),
            }
            self.journal.set_may_grow(has_room);
        }
        let came_back = has_room && !self.has_room;
        self.has_room = has_room;
        if came_back || (has_room && self.journal_is_full_of_ours()) {
            self.flush();
        }
    }

    /// The journal may have dropped, or may soon drop, what is in memory.
    fn journal_is_full_of_ours(&self) -> bool {
        let stats = self.journal.stats();
        let ours = stats.readers.iter().find(|it| it.reader == STORE);
        ours.is_some_and(|it| it.bytes_behind > self.journal.max_bytes() / JOURNAL_PART)
    }

    fn flush(&self) {
        match self.store.flush(self.clock.wall_ns()) {
            Ok(done) => self.journal.advance(STORE, done.cursor),
            // The next upkeep tells it if it goes on.
            Err(error) => tracing::debug!("a flush before its time: {error}"),
        }
    }

    /// Takes in again what was given up.
    fn read_again(&mut self, stop: &Stop) {
        let now = self.clock.monotonic();
        if self.read_at.is_some_and(|at| now.saturating_sub(at) < READ_AGAIN_AFTER) {
            return;
        }
        // Why it cannot write is told by its upkeep.
        let wanted = self.store.wants_reading().unwrap_or(false);
        if !wanted {
            return;
        }
        self.read_at = Some(now);
        let Self { store, journal, losses, clock, .. } = self;
        let reading = Reading { store, journal, losses, clock: &**clock };
        match reading.catch_up(store.read_again(), || !stop.is_asked()) {
            Ok(_) => tracing::info!("the store has read again from the journal what it had no room for"),
            Err(error) => {
                if let Some(held_back) = self.told.tell("reading", self.clock.monotonic()) {
                    tracing::error!(held_back, "the store cannot read the journal, trying again: {error:#}");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use disk::RealDisk;
    use journal::{Limits, LossCause};
    use store::Options;

    use super::*;
    use crate::clock::ManualClock;
    use crate::logging::log_of_this_thread;

    const NOW_NS: i64 = 1_795_478_400_000_000_000;

    /// A start with a disk that is nearly full writes nothing and keeps the newest rows in memory; the journal keeps all,
    /// and a start with room takes them in.
    #[test]
    fn a_start_without_room_leaves_the_rows_to_the_journal() {
        const ENTRIES: u64 = 400;
        let dir = tempfile::tempdir().unwrap();
        let clock: Arc<ManualClock> = Arc::new(ManualClock::at(NOW_NS));
        let losses = Losses::new(Arc::clone(&clock) as Arc<dyn Clock>);
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        let journal = dir.path().join("journal");
        let (journal, _) = Journal::open(Arc::clone(&disk), &journal, Limits::default(), &[STORE]).unwrap();
        for number in 0..ENTRIES {
            let line =
                |it: u64| format!("t,vm=a n={number}i {}\n", NOW_NS as u64 - 1_000_000 + number * 100 + it);
            let payload = entry::encode("db", &(0..100).map(line).collect::<String>());
            let entry = Entry { payload, lines: 100, span: (NOW_NS, NOW_NS) };
            journal.append(&[entry], &[], NOW_NS).unwrap();
        }
        let open = |min_free: u64| {
            let options = Options { min_free: Some(min_free), memory: 200 << 10, ..Options::default() };
            let store = Store::open(Arc::clone(&disk), &dir.path().join("store"), options).unwrap().0;
            let reading = Reading { store: &store, journal: &journal, losses: &losses, clock: &*clock };
            let left_out = reading.catch_up(store.cursor(), || true).unwrap();
            (store, left_out)
        };
        let (store, left_out) = open(u64::MAX >> 1);
        let held = store.stats().memory_rows as u64;
        assert_eq!(held + left_out, ENTRIES * 100, "what an answer lacks is told");
        assert_eq!((store.cursor(), journal.cursor(STORE), store.stats().files), (0, 0, 0));
        assert!((1..ENTRIES as usize * 100).contains(&store.stats().memory_rows), "{:?}", store.stats());
        assert!(!store.is_behind());
        drop(store);

        let (store, left_out) = open(0);
        assert_eq!(left_out, 0);
        store.flush(NOW_NS).unwrap();
        assert_eq!(store.cursor(), ENTRIES);
        let raw = store.stats().file_rows;
        assert!(raw >= ENTRIES * 100, "{:?}", store.stats());
        assert_eq!(losses.lines_of(STORE), 0);
    }

    /// The journal drops what only memory has: what becomes of it decides whether it is lost.
    #[test]
    fn what_the_journal_drops_is_lost_if_memory_loses_it_too() {
        /// Lines that count as lost after `then`, of 7 of the store and 5 of another reader.
        #[track_caller]
        fn check(then: impl FnOnce(&Store), expect: u64) {
            let dir = tempfile::tempdir().unwrap();
            let disk: Arc<dyn Disk> = Arc::new(RealDisk);
            let clock: Arc<dyn Clock> = Arc::new(ManualClock::at(NOW_NS));
            let journal = dir.path().join("journal");
            let journal = Journal::open(Arc::clone(&disk), &journal, Limits::default(), &[STORE]).unwrap().0;
            let options = Options { min_free: Some(0), memory: 1, ..Options::default() };
            let store = Store::open(Arc::clone(&disk), &dir.path().join("store"), options).unwrap().0;
            let (batch, _) = parse("t,vm=a n=1i 1", Precision::Nanosecond, i64::MAX).into_batch();
            store.apply(1, "db", &batch).unwrap();
            let losses = Arc::new(Losses::new(Arc::clone(&clock)));
            let at_risk: Arc<Mutex<AtRisk>> = Arc::default();
            let mut feed = Feed { store: store.clone(), at_risk: Arc::clone(&at_risk), stop: Arc::default() };
            let loss = |reader: &str, lines: u64| Loss {
                reader: reader.to_owned(),
                cause: LossCause::DiskFull,
                entries: 1,
                lines,
                span: (1, 1),
            };
            let lost = feed.dropped(vec![loss(STORE, 4), loss("influxdb", 5), loss(STORE, 3)], 1);
            assert_eq!(lost, [loss("influxdb", 5)]);
            let upkeep = Upkeep {
                store: store.clone(),
                journal: Arc::new(journal),
                losses: Arc::clone(&losses),
                at_risk,
                others: Others::new(disk, dir.path().to_owned()),
                clock,
                told: OncePerCause::default(),
                has_room: true,
                read_at: None,
            };
            upkeep.settle(false);
            assert_eq!(losses.lines_of(STORE), 0, "memory has them");
            then(&store);
            upkeep.settle(false);
            upkeep.settle(true);
            assert_eq!(losses.lines_of(STORE), expect);
            assert_eq!(feed.dropped(vec![loss(STORE, 1)], 1).len(), usize::from(!store.has_all_rows()));
        }
        check(|store| drop(store.flush(NOW_NS).unwrap()), 0);
        check(|_| {}, 7);
        // It reads the journal again, which has them no more.
        check(|store| assert_eq!(store.read_again(), 0), 7);
    }

    /// As of a data directory that was copied while it was written to.
    #[test]
    fn what_is_in_neither_files_nor_journal_is_missed_aloud() {
        let (log, _guard) = log_of_this_thread();
        let folder = tempfile::tempdir().unwrap();
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        // With a journal of this name that has one entry after this one.
        let told = |name: &str, after: Seq| {
            let (journal, _) =
                Journal::open(Arc::clone(&disk), &folder.path().join(name), Limits::default(), &[STORE])
                    .unwrap();
            journal.advance(STORE, after);
            let payload = entry::encode("db", &format!("t,vm=a n=1i {NOW_NS}\n"));
            journal.append(&[Entry { payload, lines: 1, span: (NOW_NS, NOW_NS) }], &[], NOW_NS).unwrap();
            let clock: Arc<dyn Clock> = Arc::new(ManualClock::at(NOW_NS));
            let store = config::Config::from_parts(None, &[], &config::Flags::default()).unwrap().store;
            let opened = open(&Setup {
                disk: Arc::clone(&disk),
                dir: folder.path().join("store"),
                journal: Arc::new(journal),
                config: config::Store { min_free: Some(0), ..store },
                retentions: Arc::default(),
                losses: Arc::new(Losses::new(Arc::clone(&clock))),
                others: Others::new(Arc::clone(&disk), folder.path().to_owned()),
                clock,
            });
            opened.unwrap().store.flush(NOW_NS).unwrap();
            String::from_utf8(std::mem::take(&mut *log.lock().unwrap())).unwrap()
        };
        assert_eq!(told("new", 3), "");
        assert_eq!(told("next", 4), "");
        let gap = told("late", 6);
        assert!(
            gap.contains("the journal begins after what the store's files have") && gap.contains("cursor=5"),
            "{gap}"
        );
    }

    /// What only memory and the journal have is written before the journal drops it, and as soon as there is room again.
    #[test]
    fn rows_are_written_early_where_the_journal_may_drop_them() {
        /// Together more than a quarter of the smallest journal.
        const ENTRIES: u64 = 16;
        #[track_caller]
        fn check(max_bytes: u64, has_room: bool, expect: u64) {
            let dir = tempfile::tempdir().unwrap();
            let clock: Arc<ManualClock> = Arc::new(ManualClock::at(NOW_NS));
            let disk: Arc<dyn Disk> = Arc::new(RealDisk);
            let limits = Limits { max_bytes, ..Limits::default() };
            let journal = Journal::open(Arc::clone(&disk), &dir.path().join("journal"), limits, &[STORE]);
            let journal = Arc::new(journal.unwrap().0);
            let options = Options { min_free: Some(0), ..Options::default() };
            let store = Store::open(Arc::clone(&disk), &dir.path().join("store"), options).unwrap().0;
            let lines: String = (0..10_000).map(|n| format!("t,vm=a n={n}i {}\n", NOW_NS + n)).collect();
            let payload = entry::encode("db", &lines);
            let entry = Entry { payload, lines: 10_000, span: (NOW_NS, NOW_NS) };
            for _ in 0..ENTRIES {
                journal.append(std::slice::from_ref(&entry), &[], NOW_NS).unwrap();
            }
            let clock = clock as Arc<dyn Clock>;
            let losses = Arc::new(Losses::new(Arc::clone(&clock)));
            let reading = Reading { store: &store, journal: &journal, losses: &losses, clock: &*clock };
            reading.catch_up(0, || true).unwrap();
            let mut upkeep = Upkeep {
                store: store.clone(),
                journal: Arc::clone(&journal),
                losses,
                at_risk: Arc::default(),
                others: Others::new(disk, dir.path().to_owned()),
                clock,
                told: OncePerCause::default(),
                has_room,
                read_at: None,
            };
            upkeep.maintain();
            let stats = journal.stats();
            assert_eq!((store.cursor(), stats.readers[0].cursor), (expect, expect), "{stats:?}");
        }
        check(u64::MAX / 2, true, 0);
        check(u64::MAX / 2, false, ENTRIES);
        check(4 << 20, true, ENTRIES);
    }
}
