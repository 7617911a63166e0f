//! Delivery: from the journal to InfluxDB servers, and others that speak their line protocol.
//!
//! ```text
//!  journal ──read after the cursor──▶ some entries ▸ by database ▸ pieces ──gzip, POST──▶ server
//!     ▲                                                                        │
//!     └──────────── advance, when all lines are stored or refused ◀── answer ◀─┘──▶ rejects/
//! ```
//!
//! Each server is a reader of its own, so none waits for another. It goes on where its cursor stands: a server that is
//! away costs room in the journal and nothing else, and what a request brought before a crash is brought once more,
//! which is harmless (same table, tags and time: one point). In memory is only what is on its way, so memory stays
//! flat however far a server is behind.
//!
//! A database that the server refuses does not stop the others: they go on, and it is tried every minute. What waits
//! for it stays in the journal, where the cursor, one a server, stands before it; when it is mended, its lines are read
//! there once more and brought to it, in order, a part at a time between the others'. So a restart brings the others
//! again what they had since, and what the journal drops meanwhile counts as lost with all of its lines, though others
//! have theirs.
//!
//! In order of reading: [`chunk`] sorts entries' lines by database, [`attempt`] settles the lines of one request,
//! [`size`] says how many that are, [`answer`] says what an answer means, [`client`] makes requests, [`rejects`] keeps
//! what was refused, and [`question`] asks a server for points.

mod answer;
mod attempt;
mod chunk;
mod client;
mod question;
mod rejects;
mod size;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::io::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use journal::{Entry, Gap, Journal, Seq};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use self::answer::Verdict;
use self::attempt::{Attempt, Next, RefusedLine, Request, Text};
use self::chunk::Chunk;
use self::client::Creation;
use self::size::{SMALL_BYTES, Size};
use crate::backoff::{Pauses, cause};
use crate::clock::Clock;
use crate::config::{Api, InfluxDb};
use crate::entry::Malformed;
use crate::logging::{OncePerCause, chain};
use crate::losses::{Losses, Lost};
use crate::write::Retentions;

pub(crate) use self::client::{Client, ClientError, probe};
pub(crate) use self::question::QuestionError;
pub(crate) use self::rejects::{Rejects, summary};

/// Entries read at once, bytes compressed: some [`PREFERRED_BYTES`](size::PREFERRED_BYTES) of lines.
const READ_BYTES: usize = 1 << 20;
/// Failures with an answer after which a database is not waited for any longer: lines may be taken all the same.
const MAX_CREATIONS: u32 = 5;
/// Databases remembered as looked after. Beyond, all are forgotten and looked after once more.
const MAX_DATABASES: usize = 1024;
/// Databases of a server that may lag behind the others: each is tried every minute. Beyond, the next one that is
/// refused stops the others, as one that is down would.
const MAX_STUCK: usize = 64;
/// What is escaped in a reader's name.
const NOT_PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.');

/// What a delivery has done since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct DeliveryStats {
    /// The server's URL and database.
    pub(crate) name: String,
    /// Lines that the server has.
    pub(crate) delivered_lines: u64,
    /// Lines that it refused (see `DATA/rejects`); they are not sent again.
    pub(crate) refused_lines: u64,
    /// Lines that went from the journal, or could not be read there, before each database had its own: with one that
    /// lags behind that counts also what the others had.
    pub(crate) lost_lines: u64,
    /// Requests that failed and were or will be sent again.
    pub(crate) failures: u64,
    /// Entries of the journal from the first on of which a database has not all yet.
    pub(crate) waiting_entries: u64,
    /// Why the last request failed; `None` once one succeeded.
    pub(crate) trouble: Option<String>,
}

/// The name by which a server reads the journal. It follows from its URL and database alone, so that the order of the
/// configuration does not matter; what it cannot have is percent-encoded.
pub(crate) fn reader(server: &InfluxDb) -> String {
    let name = format!("influxdb {} {}", server.url, server.database);
    let name = percent_encoding::utf8_percent_encode(&name, NOT_PLAIN).to_string();
    if name.len() <= journal::MAX_NAME_BYTES {
        return name;
    }
    // FNV-1a: it must be the same in every version.
    let fnv = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, fnv);
    format!("{}-{hash:016x}", &name[..journal::MAX_NAME_BYTES - 17])
}

/// What all deliveries share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) journal: Arc<Journal>,
    /// The last entry of the journal, as it grows.
    pub(crate) last: watch::Receiver<Seq>,
    pub(crate) rejects: Arc<Rejects>,
    pub(crate) losses: Arc<Losses>,
    pub(crate) clock: Arc<dyn Clock>,
    /// Databases that were told how long they keep their points.
    pub(crate) retentions: Arc<Retentions>,
    /// Between tries.
    pub(crate) pauses: Pauses,
}

/// The deliveries to all servers.
pub(crate) struct Deliveries {
    tasks: Vec<JoinHandle<()>>,
    figures: Figures,
    stop: watch::Sender<bool>,
    shared: Shared,
}

/// What each delivery has done, for whoever shows it.
#[derive(Clone)]
pub(crate) struct Figures {
    /// By reader.
    stats: Vec<(String, Arc<Mutex<DeliveryStats>>)>,
    journal: Arc<Journal>,
    losses: Arc<Losses>,
}

impl Figures {
    /// As of now.
    pub(crate) fn now(&self) -> Vec<DeliveryStats> {
        let readers = self.journal.stats().readers;
        let stats = self.stats.iter().map(|(reader, stats)| {
            let mut stats = lock(stats).clone();
            let there = readers.iter().find(|there| there.reader == *reader);
            stats.waiting_entries = there.map_or(0, |there| there.entries_behind);
            stats.lost_lines = self.losses.lines_of(reader);
            stats
        });
        stats.collect()
    }
}

impl Deliveries {
    /// Starts a task for each server. Servers are not waited for.
    ///
    /// # Errors
    /// A certificate authority that cannot be read.
    pub(crate) fn start(servers: &[InfluxDb], shared: Shared) -> Result<Self, ClientError> {
        let stop = watch::Sender::new(false);
        let (journal, losses) = (Arc::clone(&shared.journal), Arc::clone(&shared.losses));
        let figures = Figures { stats: Vec::new(), journal, losses };
        let mut deliveries = Self { tasks: Vec::new(), figures, stop, shared };
        for server in servers {
            let delivery = deliveries.prepare(server)?;
            deliveries.figures.stats.push((delivery.reader.clone(), Arc::clone(&delivery.stats)));
            deliveries.tasks.push(tokio::spawn(delivery.run()));
        }
        Ok(deliveries)
    }

    fn prepare(&self, server: &InfluxDb) -> Result<Delivery, ClientError> {
        let name = format!("{} {}", server.url, server.database);
        let reader = reader(server);
        let done = self.shared.journal.cursor(&reader);
        Ok(Delivery {
            client: Client::new(server)?,
            server: server.clone(),
            through: done,
            done,
            reader,
            shared: self.shared.clone(),
            stop: self.stop.subscribe(),
            stats: Arc::new(Mutex::new(DeliveryStats { name: name.clone(), ..DeliveryStats::default() })),
            name,
            ahead: VecDeque::new(),
            stuck: BTreeMap::new(),
            damaged: BTreeSet::new(),
            databases: HashMap::new(),
            size: Size::default(),
            failures_in_a_row: 0,
            troubles: OncePerCause::default(),
            told: OncePerCause::default(),
        })
    }

    /// What each delivery has done.
    pub(crate) fn stats(&self) -> Vec<DeliveryStats> {
        self.figures.now()
    }

    /// The same for others, from now on.
    pub(crate) fn figures(&self) -> Figures {
        self.figures.clone()
    }

    /// Ends all deliveries: each has until `within` to bring what is in the journal, a failure ends it at once. What
    /// is left stays in the journal for the next start. Returns the last figures.
    pub(crate) async fn shutdown(mut self, within: Duration) -> Vec<DeliveryStats> {
        self.stop.send_replace(true);
        let end = tokio::time::Instant::now() + within;
        for mut task in std::mem::take(&mut self.tasks) {
            if tokio::time::timeout_at(end, &mut task).await.is_err() {
                task.abort();
            }
        }
        self.stats()
    }
}

fn lock(stats: &Mutex<DeliveryStats>) -> MutexGuard<'_, DeliveryStats> {
    stats.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One server's delivery.
struct Delivery {
    server: InfluxDb,
    /// Its URL and database, for messages.
    name: String,
    client: Client,
    reader: String,
    shared: Shared,
    stop: watch::Receiver<bool>,
    stats: Arc<Mutex<DeliveryStats>>,
    /// Entries read and not yet taken, in order; about [`READ_BYTES`].
    ahead: VecDeque<(Seq, Entry)>,
    /// What was read of the journal.
    through: Seq,
    /// The last entry whose lines are all with the server, but those of databases that lag behind.
    done: Seq,
    /// Databases that lag behind; at most [`MAX_STUCK`].
    stuck: BTreeMap<String, Stuck>,
    /// The first entries of damaged stretches that were told, as far as they may be read again: behind the cursor, so
    /// the journal's limits bound them.
    damaged: BTreeSet<Seq>,
    /// Databases that are there or cannot be made; how often making one failed.
    databases: HashMap<String, Made>,
    /// What the server takes at once, as far as it is known.
    size: Size,
    failures_in_a_row: u32,
    /// Why nothing could be delivered since it last worked: a new outage is told anew.
    troubles: OncePerCause,
    /// What else was told: why lines were refused, which databases were made.
    told: OncePerCause,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Made {
    /// It is there.
    Yes,
    /// The server does not make it.
    No,
    /// It did not say, so many times.
    Failed(u32),
}

/// A database that the server refuses, or that has not caught up since.
#[derive(Debug)]
struct Stuck {
    /// The last entry of which it has all lines.
    through: Seq,
    /// How many of its lines behind that entry it has, too.
    lines: usize,
    next_try: Instant,
    /// Why it was refused last; `None`: it is not any more.
    why: Option<String>,
}

/// What comes next.
enum Turn {
    /// The lines of the next entries, by the server's databases, and the entry up to which they are all.
    Lines { texts: Vec<(String, Text)>, through: Seq },
    /// A database that lags behind is to be tried.
    Stuck,
    /// The program ends, and there are no more lines, or they cannot be read.
    End,
}

/// How far lines were brought to a database.
enum Brought {
    All,
    /// The database is refused: it has the lines before this one.
    Until {
        line: usize,
        why: String,
    },
    /// The program ends.
    Ended,
}

impl Delivery {
    async fn run(mut self) {
        if self.server.api == Api::V2 {
            tracing::info!(
                output = self.name,
                "with api = \"v2\" buckets are not made here: each must be there, with the retention that it is to have"
            );
        }
        // Before the first line, so that each has its retention from the beginning.
        let databases = [Some(self.server.database.clone()), self.server.devices_database.clone()];
        for database in databases.into_iter().flatten() {
            while let Err(verdict) = self.make(&database).await {
                if !self.pause(verdict).await {
                    return;
                }
            }
        }
        loop {
            // One turn for a database that lags behind, one for all others: none waits for another's backlog.
            if let Some(database) = self.due()
                && !self.catch_up(&database).await
            {
                return;
            }
            match self.next_turn().await {
                Turn::Lines { texts, through } => {
                    if !self.bring(&texts, through).await {
                        return;
                    }
                }
                Turn::Stuck => {}
                Turn::End => return,
            }
        }
    }

    /// The lines of the next entries, or what else is to be done.
    async fn next_turn(&mut self) -> Turn {
        loop {
            while self.ahead.is_empty() {
                if let Err(turn) = self.read().await {
                    return turn;
                }
            }
            let count = chunk::count(self.ahead.iter());
            let entries: Vec<_> = self.ahead.range(..count).cloned().collect();
            let Some(chunk) = self.sort(entries).await else {
                if !self.pause(unsorted()).await {
                    return Turn::End;
                }
                continue;
            };
            if let (Some((seq, version)), None) = (chunk.newer, chunk.through) {
                let why = format!("entry {seq} of the journal: {}", Malformed::Newer(version));
                if !self.pause(Verdict::NeedsAPerson { why }).await {
                    return Turn::End;
                }
                continue;
            }
            for (seq, lost) in chunk.unreadable {
                tracing::error!(
                    output = self.name,
                    seq,
                    "an entry of the journal is not one of ours: {}",
                    lost.why
                );
                self.shared.losses.add([Lost { who: self.reader.clone(), ..lost }]);
            }
            let through = chunk.through.unwrap_or(self.through);
            self.ahead.retain(|(seq, _)| *seq > through);
            let through = if self.ahead.is_empty() { self.through.max(through) } else { through };
            return Turn::Lines { texts: chunk.texts, through };
        }
    }

    /// Megabytes take tens of milliseconds: not on a thread that others need.
    async fn sort(&self, entries: Vec<(Seq, Entry)>) -> Option<Chunk> {
        let devices = self.server.devices_database.clone();
        let database = self.server.database.clone();
        let sort = move || Chunk::of(&entries, &database, devices.as_deref());
        tokio::task::spawn_blocking(sort).await.ok()
    }

    /// Reads on, or waits until there is more to do; what that is if it is no reading.
    async fn read(&mut self) -> Result<(), Turn> {
        let after = self.through;
        let Some(read) = self.read_after(after).await else { return Err(Turn::End) };
        let is_more = read.through > after;
        self.through = read.through.max(after);
        if !read.entries.is_empty() {
            self.ahead.extend(read.entries);
            return Ok(());
        }
        if is_more {
            // Damaged entries and nothing else.
            self.done = self.through;
            self.advance();
            return Ok(());
        }
        let next_try = self.stuck.values().map(|stuck| stuck.next_try).min();
        let due = async {
            match next_try {
                Some(next_try) => tokio::time::sleep_until(next_try).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = due => Err(Turn::Stuck),
            grown = self.shared.last.wait_for(|last| *last > after) => grown.map(drop).map_err(|_| Turn::End),
            _ = self.stop.wait_for(|stop| *stop) => Err(Turn::End),
        }
    }

    /// Entries of the journal; what is damaged there is told. `None`: the program ends.
    async fn read_after(&mut self, after: Seq) -> Option<journal::Read> {
        loop {
            let journal = Arc::clone(&self.shared.journal);
            match tokio::task::spawn_blocking(move || journal.read(after, READ_BYTES)).await.ok()? {
                Ok(read) => {
                    self.tell_damage(&read.damaged);
                    return Some(read);
                }
                Err(error) => {
                    let why = format!("the journal cannot be read: {}", chain(&error));
                    if !self.pause(Verdict::NoAnswer { why }).await {
                        return None;
                    }
                }
            }
        }
    }

    /// Counts and tells what is damaged, once: for a database that lags behind the same entries are read every minute.
    fn tell_damage(&mut self, gaps: &[Gap]) {
        let new = gaps.iter().filter(|gap| self.damaged.insert(gap.first));
        self.shared.losses.add(new.map(|gap| gap.loss(&self.reader)));
    }

    /// Brings lines to their databases, but to those that lag behind. False: the program ends, and not all were
    /// brought.
    async fn bring(&mut self, texts: &[(String, Text)], through: Seq) -> bool {
        for (database, text) in texts {
            if self.stuck.contains_key(database) {
                continue;
            }
            match self.deliver(database, text, 0).await {
                Brought::All => {}
                Brought::Until { line, why } => {
                    let stuck =
                        Stuck { through: self.done, lines: line, next_try: Instant::now(), why: None };
                    self.stuck.insert(database.clone(), stuck);
                    self.is_refused(database, why);
                }
                Brought::Ended => return false,
            }
        }
        self.done = through;
        self.advance();
        true
    }

    /// The database that is to be tried next, if it is time.
    fn due(&self) -> Option<String> {
        let (database, stuck) = self.stuck.iter().min_by_key(|(_, stuck)| stuck.next_try)?;
        (stuck.next_try <= Instant::now()).then(|| database.clone())
    }

    /// Brings the next of what waits for a database that lags behind. False: the program ends.
    async fn catch_up(&mut self, database: &str) -> bool {
        let Some(Stuck { through: after, lines, .. }) = self.stuck.get(database) else { return true };
        let (after, mut lines) = (*after, *lines);
        let Some(mut read) = self.read_after(after).await else { return false };
        if !read.damaged.is_empty() || read.entries.first().is_none_or(|(seq, _)| *seq != after + 1) {
            // They are not the entries any more in which these lines were counted.
            lines = 0;
        }
        // What is behind has not been sorted yet, and may be a newer version's.
        read.entries.retain(|(seq, _)| *seq <= self.done);
        let count = chunk::count(read.entries.iter());
        let is_all = count == read.entries.len();
        read.entries.truncate(count);
        let Some(chunk) = self.sort(read.entries).await else { return self.pause(unsorted()).await };
        let through = if is_all { read.through.min(self.done) } else { chunk.through.unwrap_or(after) };
        let text = chunk.texts.into_iter().find(|(name, _)| name == database).map(|(_, text)| text);
        let text = text.unwrap_or_default();
        let brought = self.deliver(database, &text, lines).await;
        let Some(stuck) = self.stuck.get_mut(database) else { return true };
        match brought {
            Brought::All => {
                let left = lines.saturating_sub(text.lines());
                (stuck.through, stuck.lines, stuck.next_try) = (through, left, Instant::now());
                if text.lines() > lines && stuck.why.take().is_some() {
                    tracing::info!(output = self.name, database, "delivers to this database again");
                }
                if through >= self.done {
                    self.stuck.remove(database);
                }
                self.advance();
                lock(&self.stats).trouble = self.trouble();
                true
            }
            Brought::Until { line, why } => {
                stuck.lines = line;
                self.is_refused(database, why);
                true
            }
            Brought::Ended => false,
        }
    }

    /// Tells that a database is refused, and sets the time of the next try.
    fn is_refused(&mut self, database: &str, why: String) {
        self.forget(|name| name == database);
        let Some(stuck) = self.stuck.get_mut(database) else { return };
        if stuck.why.as_deref().map(cause) != Some(cause(&why)) {
            tracing::error!(
                output = self.name,
                database,
                "cannot deliver until this is changed: {why}; what goes to other databases goes on"
            );
        }
        stuck.why = Some(why);
        stuck.next_try = Instant::now() + self.shared.pauses.slow();
        let trouble = self.trouble();
        let mut stats = lock(&self.stats);
        stats.failures += 1;
        stats.trouble = trouble;
    }

    /// The first database that is refused, and why.
    fn trouble(&self) -> Option<String> {
        let why = |(database, stuck): (&String, &Stuck)| {
            stuck.why.as_ref().map(|why| format!("database {database:?}: {why}"))
        };
        self.stuck.iter().find_map(why)
    }

    /// What all databases have is done with.
    fn advance(&mut self) {
        let done = self.stuck.values().map(|stuck| stuck.through).fold(self.done, Seq::min);
        self.damaged = self.damaged.split_off(&(done + 1));
        self.shared.journal.advance(&self.reader, done);
    }

    /// Brings lines to a database of the server, from this one on.
    async fn deliver(&mut self, database: &str, text: &Text, mut from: usize) -> Brought {
        while from < text.lines() {
            let piece = text.piece(from, self.size.bytes());
            from = piece.end;
            let mut attempt = Attempt::new(text, piece);
            while let Some(request) = attempt.next() {
                let bytes = request.lines.len();
                let verdict = self.send(database, request).await;
                match attempt.answered(verdict) {
                    Next::Again(Verdict::NotThisDatabase { why })
                        if self.stuck.contains_key(database) || self.stuck.len() < MAX_STUCK =>
                    {
                        return Brought::Until { line: attempt.first_left().unwrap_or(from), why };
                    }
                    Next::Again(verdict) => {
                        let is_slow = matches!(verdict, Verdict::TimedOut { .. }) && bytes > SMALL_BYTES;
                        if !self.pause(verdict).await {
                            return Brought::Ended;
                        }
                        if is_slow {
                            self.size.was_too_much(bytes);
                            from = attempt.first_left().unwrap_or(from);
                            break;
                        }
                    }
                    Next::TooLarge { bytes } => {
                        self.size.was_too_much(bytes);
                        self.works_again();
                        from = attempt.first_left().unwrap_or(from);
                        break;
                    }
                    Next::Settled { delivered, refused } => {
                        self.size.took(bytes);
                        self.works_again();
                        self.settled(database, text, delivered, &refused).await;
                    }
                }
            }
        }
        Brought::All
    }

    async fn send(&mut self, database: &str, request: Request) -> Verdict {
        if let Err(verdict) = self.make(database).await {
            return verdict;
        }
        let Request { lines, strict } = request;
        match tokio::task::spawn_blocking(move || compress(&lines)).await {
            Ok(Ok(gzip)) => self.client.post(database, gzip, strict).await,
            Ok(Err(error)) => Verdict::Retry { why: format!("cannot compress: {error}"), after: None },
            Err(_) => Verdict::Retry { why: "kvmetry is ending".to_owned(), after: None },
        }
    }

    /// Makes a database that is not known to be there. Whether lines may be sent; else why not yet.
    async fn make(&mut self, database: &str) -> Result<(), Verdict> {
        let failed = match self.databases.get(database) {
            Some(Made::Yes | Made::No) => return Ok(()),
            Some(Made::Failed(times)) => *times,
            None if self.server.api == Api::V2 => return Ok(()),
            None => 0,
        };
        let retention = self.retention_of(database);
        let output = &self.name;
        // A server that needs a person is asked every minute.
        let tell = |what: &str| {
            let now = self.shared.clock.monotonic();
            self.told.tell(&format!("{what} {database}"), now).is_some()
        };
        let made = match self.client.create(database, retention).await {
            Creation::Made => {
                if tell("made") {
                    tracing::info!(output, database, ?retention, "the database is there");
                }
                Made::Yes
            }
            Creation::Exists => {
                if tell("was there") {
                    tracing::info!(output, database, "the database was there: its retention stays as it is");
                }
                Made::Yes
            }
            // No answer at all is an outage; the same answer again and again is a server that has no such API.
            Creation::Unknown(verdict @ Verdict::Retry { .. }) if failed + 1 < MAX_CREATIONS => {
                self.remember(database, Made::Failed(failed + 1));
                return Err(verdict);
            }
            Creation::Refused { why } | Creation::Unknown(Verdict::Retry { why, .. }) => {
                if tell(&why) {
                    tracing::warn!(
                        output,
                        database,
                        "the database cannot be made, so its retention is not set; it must be there, or be made by the \
                         first write: {why}"
                    );
                }
                Made::No
            }
            // No line was sent: that says nothing of how many the link takes.
            Creation::Unknown(Verdict::TimedOut { why }) => return Err(Verdict::NoAnswer { why }),
            Creation::Unknown(verdict) => return Err(verdict),
        };
        self.remember(database, made);
        Ok(())
    }

    /// How long a database of the server is to keep its points: as configured for ours, as it was told for another.
    fn retention_of(&self, database: &str) -> Duration {
        if self.server.devices_database.as_deref() == Some(database) {
            return self.server.devices_retention;
        }
        let is_ours = self.server.database == database;
        let told = self.shared.retentions.of(database).filter(|_| !is_ours);
        told.unwrap_or(self.server.retention)
    }

    /// Whoever mends what is wrong may have mended this, too: a database that could not be made is tried once more, and
    /// with the older APIs, whose writes make none, also one that was there.
    fn forget(&mut self, is_in_doubt: impl Fn(&str) -> bool) {
        let is_v3 = self.server.api == Api::V3;
        self.databases.retain(|name, made| (is_v3 && *made == Made::Yes) || !is_in_doubt(name));
    }

    fn remember(&mut self, database: &str, made: Made) {
        if self.databases.len() >= MAX_DATABASES {
            self.databases.clear();
        }
        self.databases.insert(database.to_owned(), made);
    }

    /// Counts what the server has, and keeps what it refused.
    async fn settled(&mut self, database: &str, text: &Text, delivered: u64, refused: &[RefusedLine]) {
        {
            let mut stats = lock(&self.stats);
            stats.delivered_lines += delivered;
            stats.refused_lines += refused.len() as u64;
        }
        let Some(RefusedLine { why, .. }) = refused.first() else { return };
        if let Some(held_back) = self.told.tell(&cause(why), self.shared.clock.monotonic()) {
            let (output, lines) = (&self.name, refused.len());
            tracing::error!(
                output,
                database,
                lines,
                held_back,
                "lines refused for good, see rejects/: {why}"
            );
        }
        let of = format!("{} {database}", self.server.url);
        let (rejects, now_ns) = (Arc::clone(&self.shared.rejects), self.shared.clock.wall_ns());
        let lines: Vec<_> = refused
            .iter()
            .map(|refused| (text.slice(refused.line..refused.line + 1).to_owned(), refused.why.clone()))
            .collect();
        let keep = move || rejects.keep(now_ns, &of, lines.iter().map(|(line, why)| (&**line, &**why)));
        let kept = tokio::task::spawn_blocking(keep).await;
        if let Err(error) = kept.unwrap_or(Ok(())) {
            // They are not kept back for it: a full disk is made no emptier by that.
            let (output, lines) = (&self.name, refused.len());
            tracing::error!(
                output,
                database,
                lines,
                "refused lines lost: rejects/ cannot be written: {error}"
            );
        }
    }

    fn works_again(&mut self) {
        lock(&self.stats).trouble = self.trouble();
        if self.failures_in_a_row > 0 {
            tracing::info!(output = self.name, failures = self.failures_in_a_row, "delivers again");
            self.failures_in_a_row = 0;
            self.troubles = OncePerCause::default();
        }
    }

    /// Tells a failure and waits until the next try. False: the program ends.
    async fn pause(&mut self, verdict: Verdict) -> bool {
        let needs_a_person = matches!(verdict, Verdict::NeedsAPerson { .. });
        let after = if let Verdict::Retry { after, .. } = &verdict { *after } else { None };
        let why = verdict.why();
        self.failures_in_a_row = self.failures_in_a_row.saturating_add(1);
        {
            let mut stats = lock(&self.stats);
            stats.failures += 1;
            stats.trouble = Some(why.clone());
        }
        if let Some(held_back) = self.troubles.tell(&cause(&why), self.shared.clock.monotonic()) {
            let output = &self.name;
            if needs_a_person {
                tracing::error!(output, held_back, "cannot deliver until this is changed: {why}");
            } else {
                tracing::warn!(output, held_back, "cannot deliver, trying again: {why}");
            }
        }
        if *self.stop.borrow() {
            return false;
        }
        let pause = if needs_a_person {
            self.forget(|_| true);
            self.shared.pauses.slow()
        } else {
            self.shared.pauses.asked(self.failures_in_a_row, after)
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            // Once more, then it is the next start's.
            _ = self.stop.wait_for(|stop| *stop) => {}
        }
        true
    }
}

/// Sorting panicked, or the program ends.
fn unsorted() -> Verdict {
    Verdict::NoAnswer { why: "lines of the journal cannot be sorted: a fault of kvmetry".to_owned() }
}

fn compress(lines: &str) -> std::io::Result<Vec<u8>> {
    // Names and tags repeat from line to line: the fastest level already makes a tenth of them.
    let mut encoder = GzEncoder::new(Vec::with_capacity(lines.len() / 8), Compression::fast());
    encoder.write_all(lines.as_bytes())?;
    encoder.finish()
}

#[cfg(test)]
mod stub;
#[cfg(test)]
mod tests;
