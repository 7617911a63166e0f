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
//! In order of reading: [`attempt`] settles the lines of one request, [`answer`] says what an answer means, [`client`]
//! makes requests, [`rejects`] keeps what was refused.

mod answer;
mod attempt;
mod client;
mod rejects;

use std::collections::{HashMap, VecDeque};
use std::io::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use journal::{Entry, Journal, JournalError, Seq};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use self::answer::Verdict;
use self::attempt::{Attempt, Next, RefusedLine, Request, Text};
use self::client::{Client, Creation};
use crate::backoff::{Pauses, cause};
use crate::clock::Clock;
use crate::config::{Api, DATABASE, InfluxDb};
use crate::entry::{self, Malformed};
use crate::logging::{OncePerCause, chain};
use crate::losses::{Losses, Lost};

pub(crate) use self::client::{ClientError, probe};
pub(crate) use self::rejects::{Rejects, summary};

/// Lines are put together up to this many bytes a request, before compression, when a server is behind. InfluxDB 3
/// answers a write only when it has synced its log, once a second, so many entries must share a request; its own limit
/// is 10 MiB, and what a smaller limit is, is learnt from its answers.
const PREFERRED_BYTES: usize = 4 << 20;
/// Entries read at once, bytes compressed: some [`PREFERRED_BYTES`] of lines.
const READ_BYTES: usize = 1 << 20;
/// Failures with an answer after which a database is not waited for any longer: lines may be taken all the same.
const MAX_CREATIONS: u32 = 5;
/// Databases remembered as looked after. Beyond, all are forgotten and looked after once more.
const MAX_DATABASES: usize = 1024;
/// What is escaped in a reader's name.
const NOT_PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.');
/// What goes to `devices_database`.
const DEVICES: &str = telemetry::catalogue::VM_DEVICES.name;

/// What a delivery has done since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct DeliveryStats {
    /// The server's URL and database.
    pub(crate) name: String,
    /// Lines that the server has.
    pub(crate) delivered_lines: u64,
    /// Lines that it refused (see `DATA/rejects`); they are not sent again.
    pub(crate) refused_lines: u64,
    /// Lines that went from the journal, or could not be read there, before they were delivered.
    pub(crate) lost_lines: u64,
    /// Requests that failed and were or will be sent again.
    pub(crate) failures: u64,
    /// Entries of the journal that it has not yet.
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
    /// Between tries.
    pub(crate) pauses: Pauses,
}

/// The deliveries to all servers.
pub(crate) struct Deliveries {
    tasks: Vec<JoinHandle<()>>,
    stats: Vec<(String, Arc<Mutex<DeliveryStats>>)>,
    stop: watch::Sender<bool>,
    shared: Shared,
}

impl Deliveries {
    /// Starts a task for each server. Servers are not waited for.
    ///
    /// # Errors
    /// A certificate authority that cannot be read.
    pub(crate) fn start(servers: &[InfluxDb], shared: Shared) -> Result<Self, ClientError> {
        let stop = watch::Sender::new(false);
        let mut deliveries = Self { tasks: Vec::new(), stats: Vec::new(), stop, shared };
        for server in servers {
            let delivery = deliveries.prepare(server)?;
            deliveries.stats.push((delivery.reader.clone(), Arc::clone(&delivery.stats)));
            deliveries.tasks.push(tokio::spawn(delivery.run()));
        }
        Ok(deliveries)
    }

    fn prepare(&self, server: &InfluxDb) -> Result<Delivery, ClientError> {
        let name = format!("{} {}", server.url, server.database);
        let reader = reader(server);
        Ok(Delivery {
            client: Client::new(server)?,
            server: server.clone(),
            through: self.shared.journal.cursor(&reader),
            reader,
            shared: self.shared.clone(),
            stop: self.stop.subscribe(),
            stats: Arc::new(Mutex::new(DeliveryStats { name: name.clone(), ..DeliveryStats::default() })),
            name,
            ahead: VecDeque::new(),
            databases: HashMap::new(),
            most_bytes: PREFERRED_BYTES,
            failures_in_a_row: 0,
            troubles: OncePerCause::default(),
            told: OncePerCause::default(),
        })
    }

    /// What each delivery has done.
    pub(crate) fn stats(&self) -> Vec<DeliveryStats> {
        let readers = self.shared.journal.stats().readers;
        let stats = self.stats.iter().map(|(reader, stats)| {
            let mut stats = lock(stats).clone();
            let there = readers.iter().find(|there| there.reader == *reader);
            stats.waiting_entries = there.map_or(0, |there| there.entries_behind);
            stats.lost_lines = self.shared.losses.lines_of(reader);
            stats
        });
        stats.collect()
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
    /// Databases that are there or cannot be made; how often making one failed.
    databases: HashMap<String, Made>,
    /// What the server takes at once, as far as it is known, bytes of lines.
    most_bytes: usize,
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

/// Lines of some entries, by the server's databases, and the entry up to which they are all.
struct Chunk {
    texts: Vec<(String, Text)>,
    through: Seq,
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
        while let Some(chunk) = self.next_chunk().await {
            for (database, text) in &chunk.texts {
                if !self.deliver(database, text).await {
                    return;
                }
            }
            self.shared.journal.advance(&self.reader, chunk.through);
        }
    }

    /// The lines of the next entries. `None`: the program ends, and there are no more, or they cannot be read.
    async fn next_chunk(&mut self) -> Option<Chunk> {
        loop {
            if self.ahead.is_empty() && !self.read().await? {
                continue;
            }
            let mut bytes = 0;
            let fits = |(_, entry): &&(Seq, Entry)| {
                bytes += entry::lines_len(&entry.payload).unwrap_or_default();
                bytes <= PREFERRED_BYTES
            };
            let count = self.ahead.iter().take_while(fits).count().max(1).min(self.ahead.len());
            let entries: Vec<_> = self.ahead.range(..count).cloned().collect();
            let devices = self.server.devices_database.clone();
            let database = self.server.database.clone();
            // Megabytes take tens of milliseconds: not on a thread that others need.
            let sort = move || sort(&entries, &database, devices.as_deref());
            let Ok(sorted) = tokio::task::spawn_blocking(sort).await else { continue };
            match sorted.newer {
                Some(seq) if sorted.through.is_none() => {
                    let why = format!("entry {seq} of the journal: {}", Malformed::Newer(sorted.version));
                    if !self.pause(Verdict::NeedsAPerson { why }).await {
                        return None;
                    }
                    continue;
                }
                _ => {}
            }
            for (seq, lost) in sorted.unreadable {
                tracing::error!(
                    output = self.name,
                    seq,
                    "an entry of the journal is not one of ours: {}",
                    lost.why
                );
                self.shared.losses.add([Lost { who: self.reader.clone(), ..lost }]);
            }
            let through = sorted.through.unwrap_or(self.through);
            self.ahead.retain(|(seq, _)| *seq > through);
            let through = if self.ahead.is_empty() { self.through.max(through) } else { through };
            return Some(Chunk { texts: sorted.texts, through });
        }
    }

    /// Reads on, or waits until there is more. Whether there is an entry now; `None`: the program ends.
    async fn read(&mut self) -> Option<bool> {
        let (journal, after) = (Arc::clone(&self.shared.journal), self.through);
        let read = move || journal.read(after, READ_BYTES);
        let read: Result<_, JournalError> = match tokio::task::spawn_blocking(read).await {
            Ok(read) => read,
            Err(_) => return None,
        };
        let read = match read {
            Ok(read) => read,
            Err(error) => {
                let why = format!("the journal cannot be read: {}", chain(&error));
                return self.pause(Verdict::NoAnswer { why }).await.then_some(false);
            }
        };
        self.shared.losses.add(read.damaged.iter().map(|gap| gap.loss(&self.reader)));
        let is_more = read.through > after;
        self.through = read.through.max(after);
        if !read.entries.is_empty() {
            self.ahead.extend(read.entries);
            return Some(true);
        }
        if is_more {
            // Damaged entries and nothing else.
            self.shared.journal.advance(&self.reader, self.through);
            return Some(false);
        }
        tokio::select! {
            grown = self.shared.last.wait_for(|last| *last > after) => grown.is_ok().then_some(false),
            _ = self.stop.wait_for(|stop| *stop) => None,
        }
    }

    /// Brings lines to a database of the server. False: the program ends, and not all were brought.
    async fn deliver(&mut self, database: &str, text: &Text) -> bool {
        let mut from = 0;
        while from < text.lines() {
            let piece = text.piece(from, self.most_bytes);
            from = piece.end;
            let mut attempt = Attempt::new(text, piece);
            while let Some(request) = attempt.next() {
                let verdict = self.send(database, request).await;
                match attempt.answered(verdict) {
                    Next::Again(verdict) => {
                        if !self.pause(verdict).await {
                            return false;
                        }
                    }
                    Next::TooLarge { bytes } => {
                        self.most_bytes = self.most_bytes.min(bytes / 2);
                        self.works_again();
                    }
                    Next::Settled { delivered, refused } => {
                        self.works_again();
                        self.settled(database, text, delivered, &refused).await;
                    }
                }
            }
        }
        true
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
        let is_devices = self.server.devices_database.as_deref() == Some(database);
        let retention = if is_devices { self.server.devices_retention } else { self.server.retention };
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
            Creation::Unknown(verdict) => return Err(verdict),
        };
        self.remember(database, made);
        Ok(())
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
        lock(&self.stats).trouble = None;
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
            // Whoever mends it may have mended this, too.
            self.databases.retain(|_, made| *made == Made::Yes);
            if self.server.api != Api::V3 {
                self.databases.clear();
            }
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

/// Lines of entries, sorted by database.
#[derive(Debug, Default)]
struct Sorted {
    texts: Vec<(String, Text)>,
    /// Entries that are none of ours.
    unreadable: Vec<(Seq, Lost)>,
    /// An entry that a newer version wrote, its format's version, and nothing of what is behind it.
    newer: Option<Seq>,
    version: u8,
    /// The last entry that is in this.
    through: Option<Seq>,
}

/// Sorts the lines of entries by the server's databases, each in order.
fn sort(entries: &[(Seq, Entry)], database: &str, devices: Option<&str>) -> Sorted {
    let mut sorted = Sorted::default();
    let mut texts: Vec<(String, String)> = Vec::new();
    let mut push = |database: &str, text: &str| match texts.iter_mut().find(|(name, _)| name == database) {
        Some((_, all)) => all.push_str(text),
        None => texts.push((database.to_owned(), text.to_owned())),
    };
    for (seq, entry) in entries {
        match entry::decode(&entry.payload) {
            Ok(lines) if lines.database != DATABASE => push(&lines.database, &lines.text),
            Ok(lines) => match devices {
                None => push(database, &lines.text),
                Some(devices) => {
                    let text = Text::new(lines.text);
                    for (is_devices, run) in text.runs(|line| is_of(line, DEVICES)) {
                        push(if is_devices { devices } else { database }, text.slice(run));
                    }
                }
            },
            Err(Malformed::Newer(version)) => {
                (sorted.newer, sorted.version) = (Some(*seq), version);
                break;
            }
            Err(wrong) => {
                let why = format!("an entry of the journal cannot be read: {wrong}");
                let (lines, span) = (u64::from(entry.lines), entry.span);
                sorted.unreadable.push((*seq, Lost { who: String::new(), why, lines, span }));
            }
        }
        sorted.through = Some(*seq);
    }
    sorted.texts = texts.into_iter().map(|(database, text)| (database, Text::new(text))).collect();
    sorted
}

/// Whether a line is of this measurement, which needs no escaping.
fn is_of(line: &str, measurement: &str) -> bool {
    line.strip_prefix(measurement).is_some_and(|rest| rest.starts_with([',', ' ']))
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
