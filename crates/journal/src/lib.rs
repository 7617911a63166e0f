//! Durable, bounded, ordered entries of opaque bytes, read in order by named readers with durable cursors.
//!
//! - [`Journal::append`] returns when its entries are fsynced. Whoever has many writers gathers their entries into
//!   one call: that is the group commit.
//! - A reader has a name and a cursor: the number of the last entry that it is done with. What every reader is past
//!   is trimmed.
//! - Beyond [`Limits`] the oldest entries go first, and what each reader lost by it is told ([`Loss`]).
//! - Small named values ("states") are written in the same transaction as entries.
//!
//! Knows nothing of VMs, line protocol or InfluxDB. Calls block; they may be made from many threads. One process at
//! a time may have a journal open: that is for the caller to see to, by a lock on its data directory.
//!
//! # On disk
//!
//! ```text
//! DIR/segment-0000000007-00000000000000000101.v1.redb    entries 101 to 249
//!     segment-0000000008-00000000000000000250.v1.redb    entries 250 to the last; written now
//!     spare.redb                                         empty, becomes the next segment
//!     damaged.redb                                       the last segment that was found damaged, for a person
//!             └ serial    └ first entry     └ version of the format: a newer one is refused by name
//! ```
//!
//! A segment is a redb database of about a 64th of [`Limits::max_bytes`] (`segment`; frames in `frame`; `open` finds
//! what is there, `salvage` reads what is whole where a file fails). Segments, and not one file, since so room is given
//! back by removing a file, a crash costs the repair of one segment, damage stays within one, and what is kept aside is
//! small (docs/decisions/0004).
//!
//! - The name of a segment says where the one before it ends. So a segment that failed is never written again, a new
//!   one begins after the last entry that was acknowledged, and what else the failed one may hold does not count.
//!   For the same reason each opening begins a new segment with its first write.
//! - The newest segment has all states and cursors; older ones' do not count. A segment counts from its first commit.
//! - Cursors are written before the segments that they are past are removed, and where entries had to go unread, when
//!   their loss was told. So an entry that is missing at the next start was lost, and its loss is told at least once.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use disk::Disk;

mod frame;
mod open;
mod salvage;
mod segment;

use frame::{HEADER, Header, Kind, Totals};
use salvage::{Files, OpenFile, Walk};
use segment::{Batch, Fault, Handle};

/// The number of an entry: 1 for the first, then one more for each; 0 is before the first.
pub type Seq = u64;

/// Longest payload of an entry, bytes: a write is at most 10 MiB before it is compressed.
pub const MAX_ENTRY_BYTES: usize = 16 << 20;
/// Longest value of a state, bytes: states are written anew with each segment.
pub const MAX_STATE_BYTES: usize = 4 << 20;
/// Longest name of a state or a reader, bytes.
pub const MAX_NAME_BYTES: usize = 200;
/// Most states: enough for what a program keeps by name.
pub const MAX_STATES: usize = 64;
/// Fewest bytes on disk that a journal can be held to: 16 of the smallest segments.
pub const MIN_MAX_BYTES: u64 = 4 << 20;

/// A segment is this part of [`Limits::max_bytes`]: so much goes at once when room is needed.
const SEGMENTS: u64 = 64;
/// Smallest segment, bytes: redb's own pages take some 70 KiB of a file.
const MIN_SEGMENT: u64 = 256 << 10;
/// Largest segment, bytes: a crash costs the repair of one, which reads all of it.
const MAX_SEGMENT: u64 = 32 << 20;
/// What a commit may write beside its entries, bytes: redb's pages, cursors, an empty file.
const OVERHEAD: u64 = 256 << 10;
/// Entries may at most be this part of [`Limits::max_bytes`] in one append: the others need room too.
const APPEND_PART: u64 = 4;
/// Segments held open beside the one written: a few readers, each at its place.
const MAX_OPEN: usize = 4;
/// How often a file is tried anew before it is taken for damaged.
const TRIES: u32 = 2;

/// Before the key of a state, of a cursor; and the key that each commit to an empty segment writes.
const STATE: &str = "state/";
const CURSOR: &str = "cursor/";
const NUMBER: &str = "number";
const SPARE: &str = "spare.redb";
const DAMAGED: &str = "damaged.redb";
const FORMAT: u32 = 1;

/// How much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes on disk; less than [`MIN_MAX_BYTES`] counts as that. The damaged segment that is kept aside, if there
    /// is one, comes on top.
    pub max_bytes: u64,
    /// Age of an entry, by the time given when it was appended. A segment goes when its last entry is older.
    pub max_age: Duration,
}

impl Default for Limits {
    /// 2 GiB: 200 VMs every 5 s are some 100 MB a day compressed, so a server may be away for weeks, yet no
    /// hypervisor's disk fills up. 7 days: what is older than the outage that anyone lets last is rather
    /// collected anew than delivered.
    fn default() -> Self {
        Self { max_bytes: 2 << 30, max_age: Duration::from_secs(7 * 86_400) }
    }
}

/// What is appended and read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What the caller wants to keep; at most [`MAX_ENTRY_BYTES`].
    pub payload: Vec<u8>,
    /// How many lines that are: only for telling what was lost.
    pub lines: u32,
    /// The earliest and the latest time in it, nanoseconds since 1970: only for telling what was lost.
    pub span: (i64, i64),
}

/// What a reader will never see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// Whose.
    pub reader: String,
    /// Why.
    pub cause: LossCause,
    /// How many entries.
    pub entries: u64,
    /// How many lines they had.
    pub lines: u64,
    /// The earliest and latest time in them, nanoseconds since 1970. Of damaged entries: the latest time before and
    /// the earliest after.
    pub span: (i64, i64),
}

/// Why entries went before a reader had read them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LossCause {
    /// The journal was at [`Limits::max_bytes`].
    Full,
    /// They were older than [`Limits::max_age`].
    TooOld,
    /// The disk has no room ([`Journal::set_may_grow`], or it said so).
    DiskFull,
    /// They cannot be read any more.
    Damaged,
}

/// What opening found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// Files that are damaged, each with what is wrong: what is whole in them is read, what is not is told by
    /// [`Read::damaged`] to each reader that comes there.
    pub damage: Vec<String>,
    /// What readers lost by files that are gone.
    pub losses: Vec<Loss>,
    /// Files that were not closed well and whose last commit was not whole, so that the one before it counts. A loss of
    /// power cut it off before it was acknowledged, or it was damaged since, and what it held is lost: the two cannot be
    /// told apart.
    pub cut_off: Vec<PathBuf>,
}

/// What an append did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The number of the first entry; without entries one more than `last`.
    pub first: Seq,
    /// The number of the last.
    pub last: Seq,
    /// What had to go for it.
    pub losses: Vec<Loss>,
}

/// What a reader gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Read {
    /// In order.
    pub entries: Vec<(Seq, Entry)>,
    /// What is missing before, between or behind them since it is damaged.
    pub damaged: Vec<Gap>,
    /// Where to read on, and what to [`Journal::advance`] to when all this is done: the last entry, or the last
    /// that is missing.
    pub through: Seq,
}

/// Entries that cannot be read any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The first of them.
    pub first: Seq,
    /// The last of them.
    pub last: Seq,
    /// How many lines they had, as far as the entries around tell.
    pub lines: u64,
    /// The latest time before and the earliest after, nanoseconds since 1970.
    pub span: (i64, i64),
}

impl Gap {
    /// What the reader lost that met it.
    pub fn loss(&self, reader: &str) -> Loss {
        Loss {
            reader: reader.to_owned(),
            cause: LossCause::Damaged,
            entries: self.last - self.first + 1,
            lines: self.lines,
            span: self.span,
        }
    }
}

/// How full the journal is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// The oldest entry that is kept; one more than `last` if there is none.
    pub first: Seq,
    /// The newest.
    pub last: Seq,
    /// Bytes of the payloads that are kept.
    pub entry_bytes: u64,
    /// Bytes on disk, without the damaged segment that is kept aside.
    pub file_bytes: u64,
    /// When the oldest entry was appended, nanoseconds since 1970; `None` where there is none, or none that can be read.
    pub oldest_at: Option<i64>,
    /// Files.
    pub segments: usize,
    /// Files that were found damaged and are still kept, each with what is wrong.
    pub damage: Vec<String>,
    /// Each reader.
    pub readers: Vec<ReaderStats>,
}

/// Where a reader is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReaderStats {
    /// Its name.
    pub reader: String,
    /// The last entry that it is done with.
    pub cursor: Seq,
    /// Entries behind the newest.
    pub entries_behind: u64,
    /// About how many bytes of payload that are: exact at the ends of segments, in proportion within.
    pub bytes_behind: u64,
}

/// Why the journal did not do what was asked. Nothing acknowledged is lost by it.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The disk failed. The journal goes on when the disk does.
    #[error("cannot {doing} {path}: the disk failed; nothing that was acknowledged is lost by this")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// A file is not what was written, or redb is at fault. What is whole in it will still be read.
    #[error("cannot {doing} {path}: {what}")]
    Broken {
        /// What was tried.
        doing: &'static str,
        /// Where.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A newer kvmetry wrote here.
    #[error(
        "{path} has version {found} of the journal's format, this program knows up to {FORMAT}: \
         run the newer program, or name another data directory"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// The caller's entries or states are beyond a limit.
    #[error("{what} has {bytes} bytes, at most {limit} are taken")]
    TooLarge {
        /// What.
        what: &'static str,
        /// How much.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// More than [`MAX_STATES`] names.
    #[error("more than {MAX_STATES} names of states")]
    TooManyStates,
}

impl JournalError {
    /// Whether the disk has no room: more may help.
    pub fn is_disk_full(&self) -> bool {
        matches!(self, Self::Io { source, .. } if is_full(source))
    }

    fn io(doing: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { doing, path: path.to_owned(), source }
    }

    fn fault(doing: &'static str, path: &Path, fault: Fault) -> Self {
        match fault {
            Fault::Io(source) => Self::io(doing, path, source),
            Fault::Broken(what) => Self::Broken { doing, path: path.to_owned(), what },
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// A journal on disk.
#[derive(Debug)]
pub struct Journal {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    limits: Limits,
    /// A segment is full at this size.
    segment_bytes: u64,
    // Locks are taken in this order, if more than one.
    /// Held through a commit.
    writer: Mutex<Writer>,
    /// An empty file, made beforehand. Held while one is made.
    spare: Mutex<Option<Arc<Handle>>>,
    /// Held while a file is opened or closed.
    files: Mutex<Files>,
    /// Never held while the disk is waited for.
    shared: Mutex<Shared>,
}

#[derive(Debug)]
struct Writer {
    active: Option<Active>,
    next_serial: u64,
    /// Number of the last commit: tells which of two copies of a state is the newer.
    commits: u64,
    states: BTreeMap<String, Vec<u8>>,
    /// Found since they were told last.
    losses: Vec<Loss>,
    /// Entries went since the disk is full, and nothing could be written since.
    in_vain: bool,
}

/// The segment that is written.
#[derive(Debug)]
struct Active {
    serial: u64,
    path: PathBuf,
    handle: Arc<Handle>,
    /// Whether it has had its first commit, with all states and cursors.
    counts: bool,
    /// The last entry in it, or before it.
    last: Seq,
    /// When its first entry was appended.
    first_at: Option<i64>,
}

#[derive(Debug, Default)]
struct Shared {
    /// By age; those that count, the active one last.
    segments: Vec<Segment>,
    /// The last acknowledged entry.
    last: Seq,
    /// Sums up to it.
    totals: Totals,
    cursors: BTreeMap<String, Cursor>,
    /// Bytes of all files when growing was forbidden.
    frozen_at: Option<u64>,
}

#[derive(Clone, Debug)]
struct Segment {
    serial: u64,
    path: PathBuf,
    first: Seq,
    /// Sums up to the entry before the first.
    before: Totals,
    /// When its first entry was appended; `None` as long as it has none.
    first_at: Option<i64>,
    /// When its last entry was appended.
    last_at: i64,
    /// On disk; of the active one what it was at the last commit.
    bytes: u64,
    /// What is wrong with it, if anything is.
    damage: Option<String>,
}

#[derive(Clone, Copy, Debug)]
struct Cursor {
    done: Seq,
    durable: Option<Seq>,
    /// It was moved by a loss that the caller has not heard of yet.
    untold: bool,
}

impl Cursor {
    /// What to write.
    fn to_write(self) -> Seq {
        if self.untold { self.durable.unwrap_or(0) } else { self.done }
    }
}

impl Shared {
    /// The last entry that belongs to a segment: the one before the next segment's first.
    fn last_of(&self, index: usize) -> Seq {
        self.segments.get(index + 1).map_or(self.last, |next| next.first - 1)
    }

    fn first(&self) -> Seq {
        self.segments.first().map_or(self.last + 1, |it| it.first)
    }

    fn damage(&self) -> Vec<String> {
        let told = |it: &Segment| Some(format!("{}: {}", it.path.display(), it.damage.as_deref()?));
        self.segments.iter().filter_map(told).collect()
    }

    fn bytes(&self) -> u64 {
        self.segments.iter().map(|it| it.bytes).sum()
    }

    /// Sums up to an entry, in proportion within its segment.
    fn bytes_up_to(&self, seq: Seq) -> u64 {
        let index = self.segments.partition_point(|it| it.first <= seq);
        let Some(index) = index.checked_sub(1) else {
            return self.segments.first().map_or(self.totals.bytes, |it| it.before.bytes);
        };
        let (from, first) = (self.segments[index].before.bytes, self.segments[index].first);
        let to = self.segments.get(index + 1).map_or(self.totals.bytes, |next| next.before.bytes);
        let entries = u128::from((self.last_of(index) + 1).saturating_sub(first).max(1));
        let part = u128::from(seq + 1 - first).min(entries);
        from.wrapping_add(u64::try_from(u128::from(to.wrapping_sub(from)) * part / entries).unwrap_or(0))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Whoever panicked in here left no half-done change behind: what is changed is changed after the disk was asked.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The name of a segment's file.
fn file_name(serial: u64, first: Seq) -> String {
    format!("segment-{serial:010}-{first:020}.v{FORMAT}.redb")
}

impl Journal {
    /// Appends the entries and sets the states, all or nothing; durable when this returns. If there is no room, the
    /// oldest entries go first.
    ///
    /// # Errors
    /// The disk; what is beyond a limit. Nothing of it was appended then, as far as this journal's readers see
    /// before the next start; after one, the last append that failed may be there.
    pub fn append(
        &self,
        entries: &[Entry],
        states: &[(&str, &[u8])],
        now_ns: i64,
    ) -> Result<Appended, JournalError> {
        let bytes = self.check(entries, states)?;
        let mut writer = lock(&self.writer);
        let names = states.iter().filter(|(name, _)| !writer.states.contains_key(*name)).count();
        if writer.states.len() + names > MAX_STATES {
            return Err(JournalError::TooManyStates);
        }
        self.make_room(&mut writer, bytes)?;
        loop {
            let fresh = writer.active.is_none();
            match self.commit(&mut writer, entries, states, now_ns) {
                Ok((first, last)) => {
                    writer.in_vain = false;
                    return Ok(Appended { first, last, losses: self.tell(&mut writer) });
                }
                Err(error) if error.is_disk_full() => {
                    if writer.in_vain || !self.free(&mut writer, bytes + OVERHEAD)? {
                        return Err(error);
                    }
                    // If that does not help, whoever takes the room takes this too: no more is given.
                    writer.in_vain = true;
                }
                Err(error) if fresh => return Err(error),
                // The file may be at fault, not the disk: once more, in a new one.
                Err(_) => {}
            }
        }
    }

    fn check(&self, entries: &[Entry], states: &[(&str, &[u8])]) -> Result<u64, JournalError> {
        let limited = |what, bytes: usize, limit: usize| {
            let (bytes, limit) = (bytes as u64, limit as u64);
            if bytes > limit { Err(JournalError::TooLarge { what, bytes, limit }) } else { Ok(()) }
        };
        for entry in entries {
            limited("an entry", entry.payload.len(), MAX_ENTRY_BYTES)?;
        }
        for (name, value) in states {
            limited("the name of a state", name.len(), MAX_NAME_BYTES)?;
            limited("a state", value.len(), MAX_STATE_BYTES)?;
        }
        let bytes: usize = entries.iter().map(|it| it.payload.len() + HEADER).sum();
        let limit = usize::try_from(self.limits.max_bytes / APPEND_PART).unwrap_or(usize::MAX);
        limited("what is appended at once", bytes, limit)?;
        Ok(bytes as u64)
    }

    /// One transaction, in the active segment or a new one. On an error the active segment is given up.
    fn commit(
        &self,
        writer: &mut Writer,
        entries: &[Entry],
        states: &[(&str, &[u8])],
        now_ns: i64,
    ) -> Result<(Seq, Seq), JournalError> {
        let mut active = match writer.active.take().filter(|it| self.is_good_to_write(it)) {
            Some(active) => active,
            None => self.begin_segment(writer)?,
        };

        let (start, mut totals, cursors) = {
            let shared = lock(&self.shared);
            (shared.last, shared.totals, shared.cursors.clone())
        };
        let mut batch = Batch::default();
        let mut seq = start;
        for entry in entries {
            seq += 1;
            totals = totals.plus(entry.lines, entry.payload.len());
            let header =
                Header::new(Kind::Entry, seq, now_ns, entry.span, entry.lines, totals, &entry.payload);
            batch.entries.push((header, &entry.payload));
        }
        let number = writer.commits + 1;
        let mut put = |key: String, value: &[u8]| {
            let payload = frame::join_state(&key, value);
            let span = (number.cast_signed(), 0);
            batch.meta.push((key, Header::new(Kind::State, seq, now_ns, span, 0, totals, &payload), payload));
        };
        for (name, value) in states {
            put(format!("{STATE}{name}"), value);
        }
        if !active.counts {
            // States of older segments count no more from here on.
            put(NUMBER.to_owned(), &[]);
            for (name, value) in
                writer.states.iter().filter(|(old, _)| states.iter().all(|(new, _)| old != new))
            {
                put(format!("{STATE}{name}"), value);
            }
        }
        for (reader, cursor) in &cursors {
            if !active.counts || cursor.durable != Some(cursor.to_write()) {
                put(format!("{CURSOR}{reader}"), &cursor.to_write().to_le_bytes());
            }
        }

        if let Err(fault) = active.handle.commit(&batch) {
            let error = JournalError::fault("append to", &active.path, fault);
            self.give_up(active);
            return Err(error);
        }

        writer.commits = number;
        for (name, value) in states {
            writer.states.insert((*name).to_owned(), value.to_vec());
        }
        let mut shared = lock(&self.shared);
        if !active.counts {
            let before = shared.totals;
            shared.segments.push(Segment {
                serial: active.serial,
                path: active.path.clone(),
                first: start + 1,
                before,
                first_at: None,
                last_at: now_ns,
                bytes: 0,
                damage: None,
            });
            active.counts = true;
        }
        if let Some(segment) = shared.segments.last_mut() {
            segment.bytes = active.handle.bytes();
            if !entries.is_empty() {
                segment.first_at.get_or_insert(now_ns);
                segment.last_at = now_ns;
            }
        }
        shared.last = seq;
        shared.totals = totals;
        for (reader, cursor) in cursors {
            if let Some(it) = shared.cursors.get_mut(&reader) {
                it.durable = Some(cursor.to_write());
            }
        }
        drop(shared);
        active.last = seq;
        if !entries.is_empty() {
            active.first_at.get_or_insert(now_ns);
        }
        writer.active = Some(active);
        Ok((start + 1, seq))
    }

    fn is_good_to_write(&self, active: &Active) -> bool {
        let shared = lock(&self.shared);
        let damaged = || shared.segments.iter().any(|it| it.serial == active.serial && it.damage.is_some());
        // After a gap in the numbers (see `advance`) a new segment begins.
        active.handle.bytes() < self.full_at(&shared) && active.last == shared.last && !damaged()
    }

    /// An empty segment that begins after the last entry; it counts from its first commit.
    fn begin_segment(&self, writer: &mut Writer) -> Result<Active, JournalError> {
        let mut spare = lock(&self.spare);
        let handle = match spare.take() {
            Some(handle) => handle,
            None => self.make_spare()?,
        };
        let serial = writer.next_serial;
        let last = lock(&self.shared).last;
        let path = self.dir.join(file_name(serial, last + 1));
        self.disk
            .rename(&self.dir.join(SPARE), &path)
            .map_err(|error| JournalError::io("give its name to", &path, error))?;
        drop(spare);
        writer.next_serial += 1;
        let synced = self.disk.sync_dir(&self.dir);
        let active = Active { serial, path, handle, counts: false, last, first_at: None };
        if let Err(error) = synced {
            let error = JournalError::io("make durable the names in", &self.dir, error);
            self.give_up(active);
            return Err(error);
        }
        let mut files = lock(&self.files);
        files.open.push(OpenFile { serial, handle: Some(active.handle.clone()), failed: false, scan: None });
        files.close_one_idle();
        Ok(active)
    }

    fn make_spare(&self) -> Result<Arc<Handle>, JournalError> {
        let path = self.dir.join(SPARE);
        match self.disk.remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(JournalError::io("remove", &path, error));
            }
            _ => {}
        }
        let handle =
            Handle::create(&*self.disk, &path).map_err(|fault| JournalError::fault("make", &path, fault))?;
        Ok(Arc::new(handle))
    }

    /// Never writes to this segment again.
    fn give_up(&self, active: Active) {
        let Active { serial, path, handle, counts, .. } = active;
        drop(handle);
        self.failed(serial);
        if !counts {
            self.close(serial);
            // If it stays, the next start sees that nothing in it counts.
            drop(self.disk.remove_file(&path));
        }
    }

    /// The size at which a segment is full.
    fn full_at(&self, shared: &Shared) -> u64 {
        if shared.frozen_at.is_some() {
            (self.segment_bytes / 8).max(MIN_SEGMENT)
        } else {
            self.segment_bytes / 8 * 7
        }
    }

    /// Drops the oldest segments until so much more fits.
    fn make_room(&self, writer: &mut Writer, incoming: u64) -> Result<(), JournalError> {
        loop {
            let (bytes, frozen_at) = {
                let shared = lock(&self.shared);
                (shared.bytes(), shared.frozen_at)
            };
            let then = bytes + incoming + OVERHEAD;
            let cause = if then > self.limits.max_bytes {
                LossCause::Full
            } else if frozen_at.is_some_and(|it| then > it + self.segment_bytes / 4) {
                LossCause::DiskFull
            } else {
                return Ok(());
            };
            if !self.drop_oldest(writer, cause)? {
                return Ok(());
            }
        }
    }

    /// Drops the oldest segments until so many bytes are free, as long as there is a newer one that counts; whether
    /// it could drop any.
    fn free(&self, writer: &mut Writer, bytes: u64) -> Result<bool, JournalError> {
        let before = lock(&self.shared).bytes();
        let mut any = false;
        while before.saturating_sub(lock(&self.shared).bytes()) < bytes
            && self.drop_oldest(writer, LossCause::DiskFull)?
        {
            any = true;
        }
        Ok(any)
    }

    /// Drops the oldest segment, if there is a newer one that counts. The cursors that this moves are written when
    /// the loss was told: if the process dies before, the next start tells it.
    fn drop_oldest(&self, writer: &mut Writer, cause: LossCause) -> Result<bool, JournalError> {
        let (segment, last, cursors) = {
            let shared = lock(&self.shared);
            if shared.segments.len() < 2 {
                return Ok(false);
            }
            (shared.segments[0].clone(), shared.last_of(0), shared.cursors.clone())
        };
        for (reader, cursor) in cursors.iter().filter(|(_, it)| it.done < last) {
            let low = cursor.done.max(segment.first - 1) + 1;
            writer.losses.extend(self.lost(&segment, reader, low, last, cause));
        }
        {
            let mut shared = lock(&self.shared);
            for cursor in shared.cursors.values_mut().filter(|it| it.done < last) {
                cursor.done = last;
                cursor.untold = true;
            }
        }
        self.remove_oldest()
    }

    /// The losses, for the caller to tell.
    fn tell(&self, writer: &mut Writer) -> Vec<Loss> {
        for cursor in lock(&self.shared).cursors.values_mut() {
            cursor.untold = false;
        }
        std::mem::take(&mut writer.losses)
    }

    /// What a reader loses with these entries.
    fn lost(&self, segment: &Segment, reader: &str, low: Seq, high: Seq, cause: LossCause) -> Vec<Loss> {
        let mut loss =
            Loss { reader: reader.to_owned(), cause, entries: 0, lines: 0, span: (i64::MAX, i64::MIN) };
        let mut walk = Walk::new(low, self.sums_before(low));
        let walked = self.with(segment, "read", |handle| {
            handle.walk(walk.next.max(low), high, &mut |header, _| {
                walk.meet(header);
                loss.entries += 1;
                loss.lines += u64::from(header.lines);
                loss.span = (loss.span.0.min(header.span.0), loss.span.1.max(header.span.1));
                true
            })
        });
        if walked.is_err() {
            // It goes unread, but not uncounted: about as many lines, and the time of the last append.
            let unread = high + 1 - walk.next;
            let (from, to) = (segment.before.lines, self.sums_before(high + 1).map_or(0, |it| it.lines));
            let share =
                u128::from(to.wrapping_sub(from)) * u128::from(unread) / u128::from(high + 1 - segment.first);
            loss.entries += unread;
            loss.lines += u64::try_from(share).unwrap_or(0);
            loss.span = (loss.span.0.min(segment.last_at), loss.span.1.max(segment.last_at));
        } else {
            walk.end(high, None);
        }
        let mut losses: Vec<Loss> = walk.gaps.iter().map(|it| it.loss(reader)).collect();
        if loss.entries > 0 {
            losses.push(loss);
        }
        losses
    }

    /// Removes the oldest segment's file, if a newer one counts. A damaged one is kept aside, in place of the last.
    fn remove_oldest(&self) -> Result<bool, JournalError> {
        let segment = {
            let mut shared = lock(&self.shared);
            if shared.segments.len() < 2 {
                return Ok(false);
            }
            shared.segments.remove(0)
        };
        self.close(segment.serial);
        let removed = if segment.damage.is_some() {
            match self.disk.rename(&segment.path, &self.dir.join(DAMAGED)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(JournalError::io("put aside", &segment.path, error))
                }
                _ => Ok(()),
            }
        } else {
            self.remove_file(&segment.path)
        };
        if let Err(error) = removed {
            // It still takes room, and goes with the next try.
            lock(&self.shared).segments.insert(0, segment);
            return Err(error);
        }
        self.disk
            .sync_dir(&self.dir)
            .map_err(|error| JournalError::io("make durable the names in", &self.dir, error))?;
        Ok(true)
    }

    fn remove_file(&self, path: &Path) -> Result<(), JournalError> {
        match self.disk.remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(JournalError::io("remove", path, error))
            }
            _ => Ok(()),
        }
    }

    /// What was last set, also by an append of before the last start.
    ///
    /// # Errors
    /// None today; damage was told by [`Journal::open`].
    pub fn state(&self, name: &str) -> Result<Option<Vec<u8>>, JournalError> {
        Ok(lock(&self.writer).states.get(name).cloned())
    }

    /// The entries after this one, in order, until their payloads have `max_bytes` or there is no more; at least
    /// one if there is one.
    ///
    /// # Errors
    /// The disk. Damage is no error: what is missing is told, the rest is read.
    pub fn read(&self, after: Seq, max_bytes: usize) -> Result<Read, JournalError> {
        let (segments, end) = {
            let shared = lock(&self.shared);
            let from = shared.segments.partition_point(|it| it.first <= after + 1).saturating_sub(1);
            (shared.segments[from..].to_vec(), shared.last)
        };
        let Some(low) = segments.first().map(|it| it.first.max(after + 1)).filter(|it| *it <= end) else {
            // What was between is gone: nothing is to be waited for there.
            return Ok(Read { through: after.max(end), ..Read::default() });
        };
        let mut walk = Walk::new(low, self.sums_before(low));
        let mut entries: Vec<(Seq, Entry)> = Vec::new();
        let mut left = max_bytes;
        for (index, segment) in segments.iter().enumerate() {
            let last = segments.get(index + 1).map_or(end, |next| next.first - 1);
            let full = self.with(segment, "read", |handle| {
                walk.look_back(handle)?;
                // What is missing at the end of the one before is not looked for in this one.
                handle.walk(walk.next.max(segment.first), last, &mut |header, payload| {
                    if !entries.is_empty() && payload.len() > left {
                        return false;
                    }
                    walk.meet(header);
                    left = left.saturating_sub(payload.len());
                    let entry = Entry { payload: payload.to_vec(), lines: header.lines, span: header.span };
                    entries.push((header.seq, entry));
                    true
                })
            });
            match full {
                Ok(false) => {}
                Ok(true) => return Ok(Read { through: walk.next - 1, entries, damaged: walk.gaps }),
                // Trimmed meanwhile: the reader is past it, or will hear of its loss.
                Err(_) if self.is_gone(segment) => {
                    walk.skip_to(last + 1);
                }
                Err(_) if !entries.is_empty() => {
                    return Ok(Read { through: walk.next - 1, entries, damaged: walk.gaps });
                }
                Err(error) => return Err(error),
            }
        }
        let totals = {
            let shared = lock(&self.shared);
            (shared.last == end).then_some(shared.totals)
        };
        walk.end(end, totals);
        Ok(Read { through: end, entries, damaged: walk.gaps })
    }

    fn is_gone(&self, segment: &Segment) -> bool {
        lock(&self.shared).segments.iter().all(|it| it.serial != segment.serial)
    }

    /// Sums up to the entry before, where that is known without reading: at the beginning of a segment, and the end.
    fn sums_before(&self, seq: Seq) -> Option<Totals> {
        let shared = lock(&self.shared);
        if seq == shared.last + 1 {
            return Some(shared.totals);
        }
        shared.segments.iter().find(|it| it.first == seq).map(|it| it.before)
    }

    /// The last entry that the reader is done with; for one that is not known the last before the oldest.
    pub fn cursor(&self, reader: &str) -> Seq {
        let shared = lock(&self.shared);
        shared.cursors.get(reader).map_or(shared.first() - 1, |it| it.done)
    }

    /// The reader is done with all entries up to this one. Never goes back. Durable with the next append or
    /// [`Journal::maintain`].
    ///
    /// A number beyond the last entry says that there were more, which the journal has lost: the next entry gets
    /// one after it.
    pub fn advance(&self, reader: &str, done: Seq) {
        let mut shared = lock(&self.shared);
        let Some(cursor) = shared.cursors.get_mut(reader) else { return };
        cursor.done = cursor.done.max(done);
        shared.last = shared.last.max(done);
    }

    /// What the owner calls about every second: writes cursors, removes what all readers are past and what is too
    /// old, gives room back, and prepares the next segment, so that an append need not.
    ///
    /// # Errors
    /// The disk. The next call goes on.
    pub fn maintain(&self, now_ns: i64) -> Result<Vec<Loss>, JournalError> {
        let prepared = self.prepare();
        let mut writer = lock(&self.writer);
        let written =
            self.write_cursors(&mut writer, now_ns).and_then(|()| self.drop_old(&mut writer, now_ns));
        let losses = self.tell(&mut writer);
        // Under the lock: else an append could drop the segment that is to go, and the next one would go unread.
        let trimmed = self.trim();
        drop(writer);
        self.close_idle();
        if losses.is_empty() {
            prepared.and(written).and(trimmed)?;
        }
        Ok(losses)
    }

    fn prepare(&self) -> Result<(), JournalError> {
        let mut spare = lock(&self.spare);
        if spare.is_none() {
            *spare = Some(self.make_spare()?);
        }
        Ok(())
    }

    fn write_cursors(&self, writer: &mut Writer, now_ns: i64) -> Result<(), JournalError> {
        let (full_at, all_read, unwritten, any) = {
            let shared = lock(&self.shared);
            (
                self.full_at(&shared),
                shared.cursors.values().all(|it| it.done >= shared.last),
                shared.cursors.values().any(|it| it.durable != Some(it.to_write())),
                !shared.segments.is_empty(),
            )
        };
        if let Some(active) = &writer.active {
            let bytes = active.handle.bytes();
            // An eighth of the greatest age is as exact as age has to be.
            let aged = active.first_at.is_some_and(|it| it < now_ns.saturating_sub(self.max_age() / 8));
            if bytes >= full_at / 8 * 7 || aged || (all_read && bytes > self.segment_bytes / 8) {
                writer.active = None;
            }
        }
        if (writer.active.is_none() && any) || unwritten {
            self.commit(writer, &[], &[], now_ns)?;
        }
        Ok(())
    }

    fn drop_old(&self, writer: &mut Writer, now_ns: i64) -> Result<(), JournalError> {
        let too_old = now_ns.saturating_sub(self.max_age());
        while lock(&self.shared).segments.first().is_some_and(|it| it.last_at < too_old) {
            // What all readers are past is no loss, and goes in the same way.
            if !self.drop_oldest(writer, LossCause::TooOld)? {
                break;
            }
        }
        self.make_room(writer, 0)
    }

    fn max_age(&self) -> i64 {
        i64::try_from(self.limits.max_age.as_nanos()).unwrap_or(i64::MAX)
    }

    /// Removes what all readers are durably past.
    fn trim(&self) -> Result<(), JournalError> {
        loop {
            {
                let shared = lock(&self.shared);
                let last = shared.last_of(0);
                if shared.cursors.values().any(|it| it.durable.is_none_or(|seq| seq < last)) {
                    return Ok(());
                }
            }
            if !self.remove_oldest()? {
                return Ok(());
            }
        }
    }

    /// Whether the file may grow; it may at first. If not, an append drops the oldest entries instead, beyond a
    /// 256th of [`Limits::max_bytes`] that goes on top: what is new needs a place before the oldest segment goes.
    pub fn set_may_grow(&self, may: bool) {
        let mut shared = lock(&self.shared);
        if may {
            shared.frozen_at = None;
        } else if shared.frozen_at.is_none() {
            shared.frozen_at = Some(shared.bytes());
        }
    }

    /// Bytes on disk beyond which the oldest entries are dropped.
    pub fn max_bytes(&self) -> u64 {
        self.limits.max_bytes
    }

    /// How full it is.
    pub fn stats(&self) -> Stats {
        let shared = lock(&self.shared);
        let readers = shared.cursors.iter().map(|(reader, cursor)| ReaderStats {
            reader: reader.clone(),
            cursor: cursor.done,
            entries_behind: shared.last - cursor.done.min(shared.last),
            bytes_behind: shared.totals.bytes.wrapping_sub(shared.bytes_up_to(cursor.done)),
        });
        Stats {
            first: shared.first(),
            last: shared.last,
            entry_bytes: shared
                .totals
                .bytes
                .wrapping_sub(shared.segments.first().map_or(shared.totals.bytes, |it| it.before.bytes)),
            file_bytes: shared.bytes(),
            oldest_at: shared.segments.iter().find_map(|it| it.first_at),
            segments: shared.segments.len(),
            damage: shared.damage(),
            readers: readers.collect(),
        }
    }
}
