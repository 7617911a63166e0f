//! The store: opening, taking rows in, and the maintenance that turns them into few, small, sorted files.
//!
//! One lock orders what is applied; one lock lets one maintenance run at a time. Neither is held while the other side
//! does I/O: taking rows in never waits for a flush.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use disk::{Disk, Entry, Space};
use telemetry::lines::{Batch, Catalog, Column};

use crate::error::{Result, StoreError};
use crate::files::{Effort, FileWriter, StoredFile};
use crate::layout::{self, DAY_NS, day_of, day_start_ns};
use crate::manifest::{self, FileEntry, Manifest, TableEntry, unborn};
use crate::memory::{Chunk, Times, all_of, overlap};
use crate::merge::{Chunks, Sorted, Source, merge};
use crate::rollup::{self, BUCKETS, Carry, Give};
use crate::schema::Columns;
use crate::table::{Role, Table};

/// Rows rest this long in memory at most: the journal has them, and this is what a start reads again.
const FLUSH_EVERY: Duration = Duration::from_secs(600);
/// Memory for rows beyond which they are flushed at once, bytes.
const FLUSH_BYTES: usize = 48 << 20;
/// Memory for rows that cannot be flushed, bytes; beyond it the oldest go.
const MEMORY_BYTES: usize = 2 * FLUSH_BYTES;
/// Files of the current day that are merged together at least.
const COMPACT_FILES: usize = 6;

/// How long rows are kept, by database and table.
pub type Retention = Arc<dyn Fn(&str, &str) -> Duration + Send + Sync>;

/// How the store is kept.
#[derive(Clone)]
pub struct Options {
    /// How long rows are kept; whole days go.
    pub retention: Retention,
    /// Bytes that the files may take; `None`: [`Options::default_max_size`].
    pub max_size: Option<u64>,
    /// Bytes that stay free on the file system; `None`: [`Options::default_min_free`].
    pub min_free: Option<u64>,
}

impl Options {
    /// A tenth of the file system, 50 GiB at most.
    pub fn default_max_size(space: Space) -> u64 {
        (space.total / 10).min(50 << 30)
    }

    /// A twentieth of the file system, but at least 2 GiB: a full disk pauses VMs.
    pub fn default_min_free(space: Space) -> u64 {
        (space.total / 20).max(2 << 30)
    }
}

impl Default for Options {
    fn default() -> Self {
        let retention = Arc::new(|_: &str, table: &str| default_retention(table));
        Self { retention, max_size: None, min_free: None }
    }
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options")
            .field("max_size", &self.max_size)
            .field("min_free", &self.min_free)
            .finish_non_exhaustive()
    }
}

const DAY: Duration = Duration::from_secs(86_400);

/// `vm_devices` 7 days, everything else 30; roll-ups 30 days by the minute and 400 by the hour.
pub fn default_retention(table: &str) -> Duration {
    match table {
        _ if table.ends_with("_1h") => DAY * 400,
        "vm_devices" => DAY * 7,
        _ => DAY * 30,
    }
}

/// An open store. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    disk: Arc<dyn Disk>,
    root: PathBuf,
    options: Options,
    /// By database, then by table.
    tables: RwLock<BTreeMap<String, BTreeMap<String, Arc<Table>>>>,
    /// The last journal entry that was applied. Held while one is applied, and while rows are taken for a flush.
    applied: Mutex<u64>,
    /// Held while a commit takes effect in memory: whoever looks at two tables sees both before it or both after it.
    pub(crate) swap: RwLock<()>,
    work: Mutex<Work>,
    /// Held while files are merged.
    compacting: Mutex<()>,
}

/// What only maintenance touches.
#[derive(Debug)]
struct Work {
    /// The last journal entry whose rows are all in files.
    cursor: u64,
    last_flush_ns: Option<i64>,
    /// A commit failed half-way: which manifest is durable is not known before the old one is written again.
    is_uncertain: bool,
    /// The files of that commit.
    orphans: Vec<PathBuf>,
    /// Files that no longer count; each is removed when the last query that reads it is done.
    doomed: Vec<Arc<StoredFile>>,
}

/// Rows of a table that are taken for a flush.
type Taken = (Arc<Table>, Vec<Arc<Chunk>>);
/// A file that was written and does not count yet.
type New = (Arc<Table>, StoredFile);
/// What a table's roll-ups go on from after a flush.
type NewCarry = (Arc<Table>, Arc<Carry>);

/// What a commit changes.
#[derive(Default)]
struct Commit {
    /// The last journal entry whose rows are all in files then.
    cursor: u64,
    new: Vec<New>,
    carries: Vec<NewCarry>,
    /// Files that no longer count.
    old: Vec<Arc<StoredFile>>,
}

/// What was found wrong at the opening, each with what was done about it.
pub type Complaints = Vec<String>;

/// What the store holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Parquet files.
    pub files: usize,
    /// Their length, bytes.
    pub file_bytes: u64,
    /// Their rows, roll-ups among them.
    pub file_rows: u64,
    /// Rows that no file has yet.
    pub memory_rows: usize,
    /// What they take, bytes, roughly.
    pub memory_bytes: usize,
}

/// What maintenance did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// The last journal entry whose rows are all in files.
    pub cursor: u64,
    /// Rows that were written into files.
    pub flushed_rows: u64,
    /// Files that were merged into others.
    pub compacted_files: usize,
    /// Files that retention removed.
    pub expired_files: usize,
    /// The days whose rows went because the files took too much, as `YYYY-MM-DD`, and the bytes that this freed.
    pub dropped_days: Vec<String>,
    /// See `dropped_days`.
    pub dropped_bytes: u64,
    /// Rows in memory that went because there was no room to write them.
    pub dropped_rows: u64,
    /// Whether there is room to grow.
    pub room: Room,
}

/// Why maintenance failed, and what it did before.
pub type MaintainError = Box<(StoreError, Done)>;

/// Whether the store may grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Room {
    /// It may.
    #[default]
    Enough,
    /// The file system has less than `min_free` left: nothing is written until it has more.
    Short {
        /// Bytes that are free.
        free: u64,
        /// Bytes that must be.
        min_free: u64,
    },
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Store {
    /// Opens the store in this folder, or makes it. A flush or compaction that a crash broke off is ended or undone.
    ///
    /// # Errors
    /// A folder of a later release, a damaged manifest, the file system.
    pub fn open(disk: Arc<dyn Disk>, root: &Path, options: Options) -> Result<(Self, Complaints)> {
        disk.create_dir_all(root).map_err(StoreError::io("making", root))?;
        let manifest = manifest::read(&*disk, root)?;
        if manifest.is_none()
            && let Some(file) = find_stranger(&*disk, root)?
        {
            let problem = "there are files of a store beside it, and without it nobody knows which of them count: put \
                           it back, or move them away";
            let path = file.path;
            return Err(StoreError::Damaged {
                path: root.join("manifest.json"),
                problem: format!("it is missing, but {problem} ({})", path.display()),
            });
        }
        let manifest = manifest.unwrap_or_default();
        let mut complaints = Vec::new();
        let mut tables: BTreeMap<String, BTreeMap<String, Arc<Table>>> = BTreeMap::new();
        let mut known = BTreeSet::new();
        for mut table in manifest.tables {
            let mut files = Vec::new();
            for entry in std::mem::take(&mut table.files) {
                let path = entry.path(root, &table.database, &table.table);
                // What cannot be had now may be had later: it stays in the manifest, and is looked at when it is used.
                if let Err(error) = settle(&*disk, &path, &entry) {
                    let (rows, table) = (entry.rows, &table.table);
                    complaints
                        .push(format!("{rows} rows of {table} are missing: {}: {error}", path.display()));
                }
                known.insert(path.clone());
                known.insert(unborn(&path));
                files.push(Arc::new(StoredFile::new(&disk, path, entry)));
            }
            let role = role_of(&table)?;
            let opened = Table::new(&table.database, &table.table, role, table.columns, files);
            tables.entry(table.database).or_default().insert(table.table, Arc::new(opened));
        }
        remove_strangers(&*disk, root, &known)?;
        let cursor = manifest.cursor;
        let work = Work {
            cursor,
            last_flush_ns: None,
            is_uncertain: false,
            orphans: Vec::new(),
            doomed: Vec::new(),
        };
        let inner = Inner {
            disk,
            root: root.to_owned(),
            options,
            tables: RwLock::new(tables),
            applied: Mutex::new(cursor),
            swap: RwLock::default(),
            work: Mutex::new(work),
            compacting: Mutex::default(),
        };
        Ok((Self { inner: Arc::new(inner) }, complaints))
    }

    /// The last journal entry whose rows are all in files: a start applies those after it again.
    pub fn cursor(&self) -> u64 {
        lock(&self.inner.work).cursor
    }

    /// The databases, tables and columns that it knows; roll-ups are not among them.
    pub fn catalog(&self) -> Catalog {
        let mut catalog = Catalog::default();
        for table in self.inner.all_tables().iter().filter(|it| it.role == Role::Raw) {
            let columns = table.lock().columns.clone();
            let mut add = |name: &str, column| catalog.add_column(&table.database, &table.name, name, column);
            columns.tags.iter().for_each(|name| add(name, Column::Tag));
            columns.fields.iter().for_each(|(name, kind)| add(name, Column::Field(kind.field_type())));
        }
        catalog
    }

    /// What it holds.
    pub fn stats(&self) -> Stats {
        let mut stats = Stats::default();
        for table in self.inner.all_tables() {
            let state = table.lock();
            stats.files += state.files.len();
            stats.file_bytes += state.files.iter().map(|it| it.entry.bytes).sum::<u64>();
            stats.file_rows += state.files.iter().map(|it| it.entry.rows).sum::<u64>();
            stats.memory_rows += state.memory.rows();
            stats.memory_bytes += state.memory.bytes();
        }
        stats
    }

    /// Takes the rows of a journal entry in; they are seen by every query that begins after this returns. Entries come
    /// in order; one that was applied before is left out.
    ///
    /// # Errors
    /// [`StoreError::Internal`] only: rows that contradict the schema.
    pub fn apply(&self, seq: u64, database: &str, batch: &Batch) -> Result<()> {
        let mut applied = lock(&self.inner.applied);
        if seq <= *applied {
            return Ok(());
        }
        let mut result = Ok(());
        for rows in &batch.tables {
            // The other tables' rows are good all the same.
            result = result.and(self.inner.table(database, &rows.table).append(rows));
        }
        *applied = seq;
        result
    }

    /// Flushes and removes what is due, within the limits of the disk. To be called every second or so, from a
    /// thread that may wait. `others`: bytes that other things of ours take beside the files.
    ///
    /// # Errors
    /// The file system; nothing in files is lost by it, the next call tries again. What was done until then comes with
    /// it.
    pub fn maintain(&self, now_ns: i64, others: u64) -> Result<Done, MaintainError> {
        let room = self.inner.room().map_err(|error| Box::new((error, Done::default())))?;
        let mut done = Done { room, ..Done::default() };
        let worked = self.work_within(now_ns, others, &mut done);
        if (done.room != Room::Enough || worked.is_err()) && self.is_behind() {
            done.dropped_rows = self.inner.drop_oldest_rows();
        }
        match worked {
            Ok(()) => Ok(done),
            Err(error) => Err(Box::new((error, done))),
        }
    }

    fn work_within(&self, now_ns: i64, others: u64, done: &mut Done) -> Result<()> {
        let mut work = self.inner.begin()?;
        self.inner.bury(&mut work);
        let last = work.last_flush_ns.filter(|&last| last <= now_ns).unwrap_or(now_ns);
        work.last_flush_ns = Some(last);
        let is_due = now_ns - last >= FLUSH_EVERY.as_nanos() as i64;
        done.cursor = work.cursor;
        self.inner.keep_within(&mut work, others, done)?;
        if is_due {
            done.expired_files = self.inner.expire(&mut work, now_ns)?;
        }
        if done.room == Room::Enough && (is_due || self.inner.memory_bytes() >= FLUSH_BYTES) {
            done.flushed_rows = self.inner.flush(&mut work, now_ns)?;
            work.last_flush_ns = Some(now_ns);
        }
        self.inner.bury(&mut work);
        done.cursor = work.cursor;
        Ok(())
    }

    /// Writes all rows into files now.
    ///
    /// # Errors
    /// As [`Store::maintain`].
    pub fn flush(&self, now_ns: i64) -> Result<Done> {
        let mut work = self.inner.begin()?;
        let flushed_rows = self.inner.flush(&mut work, now_ns)?;
        work.last_flush_ns = Some(now_ns);
        self.inner.bury(&mut work);
        Ok(Done { cursor: work.cursor, flushed_rows, ..Done::default() })
    }

    /// Merges small files where that is worth it. To be called every few seconds from another thread than
    /// [`Store::maintain`]: it may take minutes, and holds nothing up. Returns how many files went into others.
    ///
    /// # Errors
    /// As [`Store::maintain`].
    pub fn compact_some(&self, now_ns: i64) -> Result<usize> {
        if self.inner.room()? != Room::Enough {
            return Ok(0);
        }
        self.inner.compact(now_ns, false)
    }

    /// Writes all rows into files and merges the files of each day into one.
    ///
    /// # Errors
    /// As [`Store::maintain`].
    pub fn compact(&self, now_ns: i64) -> Result<Done> {
        let (flushed_rows, expired_files) = {
            let mut work = self.inner.begin()?;
            let flushed_rows = self.inner.flush(&mut work, now_ns)?;
            work.last_flush_ns = Some(now_ns);
            (flushed_rows, self.inner.expire(&mut work, now_ns)?)
        };
        let compacted_files = self.inner.compact(now_ns, true)?;
        let mut work = self.inner.begin()?;
        self.inner.bury(&mut work);
        let cursor = work.cursor;
        Ok(Done { cursor, flushed_rows, compacted_files, expired_files, ..Done::default() })
    }

    /// Whether there are more rows in memory than there should be: whoever can wait with more of them should.
    pub fn is_behind(&self) -> bool {
        self.inner.memory_bytes() >= MEMORY_BYTES
    }
}

fn role_of(entry: &TableEntry) -> Result<Role> {
    let Some((of, ns)) = &entry.rollup_of else { return Ok(Role::Raw) };
    let size = BUCKETS.iter().position(|it| it.ns == *ns);
    let size = size.ok_or_else(|| StoreError::Internal(format!("roll-ups of {ns} ns are not known")))?;
    Ok(Role::RollUp { of: of.clone(), size })
}

/// Gives a file that counts its name, if a crash came between the commit and the renaming.
fn settle(disk: &dyn Disk, path: &Path, entry: &FileEntry) -> std::io::Result<()> {
    let has_length = |path: &Path| Ok::<_, std::io::Error>(disk.open_to_read(path)?.len()? == entry.bytes);
    let new = unborn(path);
    match has_length(&new) {
        Ok(true) => disk.rename(&new, path),
        _ => match has_length(path)? {
            true => Ok(()),
            false => Err(std::io::Error::other(format!("not {} bytes long any more", entry.bytes))),
        },
    }
}

/// The folders of all days of all tables.
fn day_folders(disk: &dyn Disk, root: &Path) -> Result<Vec<PathBuf>> {
    let mut folders = vec![root.to_owned()];
    // Databases, their tables, their days.
    for _ in 0..3 {
        let mut below = Vec::new();
        for folder in folders {
            let entries = disk.list(&folder).map_err(StoreError::io("listing", &folder))?;
            below.extend(entries.into_iter().filter(|it| it.is_dir).map(|it| it.path));
        }
        folders = below;
    }
    Ok(folders)
}

/// A file that only a store writes.
fn find_stranger(disk: &dyn Disk, root: &Path) -> Result<Option<Entry>> {
    for day in day_folders(disk, root)? {
        let files = disk.list(&day).map_err(StoreError::io("listing", &day))?;
        if let Some(found) = files.into_iter().find(|it| is_ours(&it.path) && !is_unborn(&it.path)) {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn is_unborn(path: &Path) -> bool {
    path.extension().is_some_and(|it| it == "new")
}

/// Removes Parquet files that do not count: a flush that was not committed, what compaction or retention replaced.
fn remove_strangers(disk: &dyn Disk, root: &Path, known: &BTreeSet<PathBuf>) -> Result<()> {
    for day in day_folders(disk, root)? {
        let (strangers, others): (Vec<_>, Vec<_>) = disk
            .list(&day)
            .map_err(StoreError::io("listing", &day))?
            .into_iter()
            .partition(|it| is_ours(&it.path) && !known.contains(&it.path));
        for stranger in strangers {
            disk.remove_file(&stranger.path).map_err(StoreError::io("removing", &stranger.path))?;
        }
        if others.is_empty() {
            disk.remove_dir(&day).map_err(StoreError::io("removing", &day))?;
        }
    }
    Ok(())
}

/// Whether the name is one that only this store gives: `<first>-<last>.parquet`, perhaps `.new`.
fn is_ours(path: &Path) -> bool {
    let name = path.file_name().and_then(|it| it.to_str()).unwrap_or_default();
    let name = name.strip_suffix(".new").unwrap_or(name);
    let span = name.strip_suffix(".parquet").and_then(|it| it.split_once('-'));
    span.is_some_and(|(first, last)| first.parse::<u64>().is_ok() && last.parse::<u64>().is_ok())
}

impl Inner {
    /// The table of this name, made if it is not there.
    fn table(&self, database: &str, name: &str) -> Arc<Table> {
        if let Some(table) = self.find(database, name) {
            return table;
        }
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        let tables = tables.entry(database.to_owned()).or_default();
        let make =
            |name: &str, role| Arc::new(Table::new(database, name, role, Columns::default(), Vec::new()));
        let is_new = !tables.contains_key(name);
        let table = Arc::clone(tables.entry(name.to_owned()).or_insert_with(|| make(name, Role::Raw)));
        for (size, bucket) in BUCKETS.iter().enumerate().filter(|_| is_new && table.role == Role::Raw) {
            // Whoever wrote a table of that name before has no roll-ups.
            let rollup = format!("{name}{}", bucket.suffix);
            let role = Role::RollUp { of: name.to_owned(), size };
            tables.entry(rollup.clone()).or_insert_with(|| make(&rollup, role));
        }
        table
    }

    pub(crate) fn find(&self, database: &str, name: &str) -> Option<Arc<Table>> {
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        tables.get(database)?.get(name).cloned()
    }

    /// The tables of a database; `None` if there is no such database.
    pub(crate) fn tables_of(&self, database: &str) -> Option<Vec<Arc<Table>>> {
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        tables.get(database).map(|it| it.values().cloned().collect())
    }

    fn all_tables(&self) -> Vec<Arc<Table>> {
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        tables.values().flat_map(BTreeMap::values).cloned().collect()
    }

    fn memory_bytes(&self) -> usize {
        self.all_tables().iter().map(|it| it.lock().memory.bytes()).sum()
    }

    /// Whether the whole day is older than the table's retention.
    fn is_expired(&self, table: &Table, day: i32, now_ns: i64) -> bool {
        day_start_ns(day) < self.oldest_ns(table, now_ns)
    }

    /// Lets one maintenance begin. If the last commit failed half-way, the state before it is made the durable one:
    /// before that no file may be written under a name that a durable manifest may give.
    fn begin(&self) -> Result<MutexGuard<'_, Work>> {
        let mut work = lock(&self.work);
        if work.is_uncertain {
            manifest::write(&*self.disk, &self.root, &self.manifest(work.cursor, &[], &[]))?;
            work.is_uncertain = false;
            for path in std::mem::take(&mut work.orphans) {
                // One of the two names is not there; what stays is removed at the next start.
                let _ = self.disk.remove_file(&path);
                let _ = self.disk.remove_file(&unborn(&path));
            }
        }
        Ok(work)
    }

    /// The start of the oldest day of a table that its retention keeps at this time.
    pub(crate) fn oldest_ns(&self, table: &Table, now_ns: i64) -> i64 {
        let keep = (self.options.retention)(&table.database, &table.name);
        let keep = i64::try_from(keep.as_nanos()).unwrap_or(i64::MAX);
        now_ns.checked_sub(keep).map_or(i64::MIN, |oldest| day_start_ns(day_of(oldest)))
    }

    /// The latest time of a row; `None` without rows.
    fn newest_ns(&self) -> Option<i64> {
        self.all_tables().iter().filter_map(|it| it.newest()).max()
    }

    /// Writes all rows into files. Returns how many.
    fn flush(&self, work: &mut Work, now_ns: i64) -> Result<u64> {
        let (last, taken) = {
            let applied = lock(&self.applied);
            let mut taken = Vec::new();
            for table in self.all_tables() {
                let chunks = table.lock().memory.take()?;
                if !chunks.is_empty() {
                    taken.push((table, chunks));
                }
            }
            (*applied, taken)
        };
        if last == work.cursor {
            return Ok(0);
        }
        let span = (work.cursor + 1, last);
        let written = self.write_flush(&taken, span, now_ns);
        let committed = written.and_then(|(new, carries)| {
            let raw = new.iter().filter(|it| it.0.role == Role::Raw);
            let rows = raw.map(|it| it.1.entry.rows).sum();
            self.commit(work, Commit { cursor: last, new, carries, ..Commit::default() }).map(|()| rows)
        });
        if committed.is_err() {
            taken.iter().for_each(|(table, _)| table.lock().memory.not_flushed());
        }
        committed
    }

    /// Writes the files of a flush: rows as they are, and the roll-ups that they bring to an end.
    fn write_flush(
        &self,
        taken: &[Taken],
        span: (u64, u64),
        now_ns: i64,
    ) -> Result<(Vec<New>, Vec<NewCarry>)> {
        let mut new = self.write_chunks(taken, span, now_ns)?;
        let mut carries = Vec::new();
        for (table, chunks) in taken {
            let snapshot = table.lock().snapshot(chunks.clone());
            let carry = table.carry(&snapshot)?;
            let oldest = self.oldest_ns(table, now_ns);
            let advanced = rollup::advance(&table.name, &carry, &snapshot, oldest, Give::Closed)?;
            carries.push((Arc::clone(table), Arc::new(advanced.carry)));
            for (bucket, rows) in BUCKETS.iter().zip(advanced.rows) {
                let Some(rows) = rows else { continue };
                let name = format!("{}{}", table.name, bucket.suffix);
                let Some(target) = self.find(&table.database, &name).filter(|it| it.role != Role::Raw) else {
                    continue;
                };
                target.lock().columns = rollup::columns(&table.name, &snapshot.columns);
                new.extend(self.write_chunks(&[(target, vec![Arc::new(rows)])], span, now_ns)?);
            }
        }
        Ok((new, carries))
    }

    fn write_chunks(&self, taken: &[Taken], span: (u64, u64), now_ns: i64) -> Result<Vec<New>> {
        let mut new = Vec::new();
        for (table, chunks) in taken {
            let schema = table.lock().columns.resting_schema();
            let late = all_of(chunks.iter().filter_map(|it| it.late));
            let mut days = BTreeSet::new();
            for chunk in chunks {
                days.extend(crate::merge::times(&chunk.rows)?.iter().map(|&time| day_of(time)));
            }
            for day in days.into_iter().filter(|&day| !self.is_expired(table, day, now_ns)) {
                let entry = FileEntry { day, first: span.0, last: span.1, ..FileEntry::default() };
                let source = Chunks::new(&schema, chunks, |time| day_of(time) == day)?;
                let sources: Vec<Box<dyn Source>> = vec![Box::new(source)];
                new.extend(self.write_file(table, entry, &schema, sources, late, Effort::Flush)?);
            }
        }
        Ok(new)
    }

    /// Writes one file from sources that are older before newer. It does not count yet.
    fn write_file(
        &self,
        table: &Arc<Table>,
        mut entry: FileEntry,
        // That of the sources: by now the table may have more columns.
        schema: &SchemaRef,
        sources: Vec<Box<dyn Source + '_>>,
        late: Option<Times>,
        effort: Effort,
    ) -> Result<Option<New>> {
        let path = entry.path(&self.root, &table.database, &table.name);
        if let Some(dir) = path.parent() {
            self.disk.create_dir_all(dir).map_err(StoreError::io("making", dir))?;
        }
        let mut writer = FileWriter::create(&*self.disk, &unborn(&path), schema, effort)?;
        merge(schema, sources, table.rule(), |_, rows| writer.write(&rows))?;
        let Some(written) = writer.finish()? else { return Ok(None) };
        (entry.rows, entry.bytes, entry.times) = (written.rows, written.bytes, written.times);
        entry.crc32 = written.crc32;
        // Only what an older file may hold too is late.
        let files = Arc::clone(&table.lock().files);
        entry.late = late.filter(|&late| {
            let older = files.iter().filter(|it| it.entry.day == entry.day && it.entry.last < entry.first);
            overlap(late, entry.times) && older.into_iter().any(|it| overlap(it.entry.times, late))
        });
        Ok(Some((Arc::clone(table), StoredFile::new(&self.disk, path, entry))))
    }

    /// Makes new files count and old ones not, at once and durably.
    fn commit(&self, work: &mut Work, commit: Commit) -> Result<()> {
        let Commit { cursor, new, carries, old } = commit;
        let is_flush = cursor > work.cursor;
        let old = &old[..];
        let dirs: BTreeSet<&Path> = new.iter().filter_map(|it| it.1.path.parent()).collect();
        for dir in dirs {
            self.disk.sync_dir(dir).map_err(StoreError::io("syncing", dir))?;
        }
        work.orphans = new.iter().map(|it| it.1.path.clone()).collect();
        work.is_uncertain = true;
        manifest::write(&*self.disk, &self.root, &self.manifest(cursor, &new, old))?;
        for (_, file) in &new {
            let named = self.disk.rename(&unborn(&file.path), &file.path);
            named.map_err(StoreError::io("renaming", &file.path))?;
        }
        // The new names need no sync: a start finds either.
        work.is_uncertain = false;
        work.orphans.clear();
        work.cursor = cursor;
        let mut new: Vec<(Arc<Table>, Arc<StoredFile>)> =
            new.into_iter().map(|(table, file)| (table, Arc::new(file))).collect();
        let _swapping = self.swap.write().unwrap_or_else(PoisonError::into_inner);
        for (table, carry) in carries {
            table.lock().carry = Some(carry);
        }
        for table in self.all_tables() {
            let mut state = table.lock();
            let mut files: Vec<_> = state.files.iter().filter(|it| !is_one_of(it, old)).cloned().collect();
            files.extend(new.extract_if(.., |it| Arc::ptr_eq(&it.0, &table)).map(|it| it.1));
            files.sort_by_key(|it| (it.entry.day, it.entry.first));
            state.files = Arc::new(files);
            if is_flush {
                state.memory.flushed();
            }
        }
        work.doomed.extend(old.iter().cloned());
        Ok(())
    }

    /// What is durable after a commit of these.
    fn manifest(&self, cursor: u64, new: &[New], old: &[Arc<StoredFile>]) -> Manifest {
        let mut manifest = Manifest { cursor, tables: Vec::new() };
        for table in self.all_tables() {
            let state = table.lock();
            let kept = state.files.iter().filter(|it| !is_one_of(it, old)).map(|it| &it.entry);
            let added = new.iter().filter(|it| Arc::ptr_eq(&it.0, &table)).map(|it| &it.1.entry);
            let mut files: Vec<FileEntry> = kept.chain(added).cloned().collect();
            files.sort_by_key(|it| (it.day, it.first));
            manifest.tables.push(TableEntry {
                database: table.database.clone(),
                table: table.name.clone(),
                columns: state.columns.clone(),
                rollup_of: match &table.role {
                    Role::Raw => None,
                    Role::RollUp { of, size } => Some((of.clone(), BUCKETS[*size].ns)),
                },
                files,
            });
        }
        manifest
    }

    /// Merges files where that is worth it; `all` makes one file of each day. Returns how many files went into others.
    /// Files are read and written without holding anything that a flush or a query waits for.
    fn compact(&self, now_ns: i64, all: bool) -> Result<usize> {
        let _one_at_a_time = lock(&self.compacting);
        let today = day_of(now_ns);
        let mut merged = 0;
        for table in self.all_tables() {
            let files = Arc::clone(&table.lock().files);
            for of_day in files.chunk_by(|a, b| a.entry.day == b.entry.day) {
                let mut whole = Vec::with_capacity(of_day.len());
                for file in of_day {
                    if file.is_whole()? {
                        whole.push(Arc::clone(file));
                    }
                }
                let set = worth_merging(&whole, all || of_day[0].entry.day < today);
                if set.len() >= 2 {
                    merged += self.merge_files(&table, set)?;
                }
            }
        }
        Ok(merged)
    }

    /// Makes one file of these, which stand side by side in the journal's order. Returns how many they were; 0 if one of
    /// them was removed meanwhile.
    fn merge_files(&self, table: &Arc<Table>, set: &[Arc<StoredFile>]) -> Result<usize> {
        // A name that a failed commit may have made durable is settled before it is written.
        drop(self.begin()?);
        let (first, last) = (&set[0].entry, &set[set.len() - 1].entry);
        let entry = FileEntry { day: first.day, first: first.first, last: last.last, ..FileEntry::default() };
        let schema = table.lock().columns.resting_schema();
        let late = all_of(set.iter().filter_map(|it| it.entry.late));
        let mut sources: Vec<Box<dyn Source>> = Vec::new();
        for file in set {
            sources.push(Box::new(Sorted::new(&schema, file.rows(&schema, (i64::MIN, i64::MAX))?)));
        }
        let new: Vec<New> =
            self.write_file(table, entry, &schema, sources, late, Effort::Compaction)?.into_iter().collect();
        let mut work = self.begin()?;
        let files = Arc::clone(&table.lock().files);
        if !set.iter().all(|it| is_one_of(it, &files)) {
            for (_, file) in new {
                // What stays is removed at the next start.
                let _ = self.disk.remove_file(&unborn(&file.path));
            }
            return Ok(0);
        }
        let cursor = work.cursor;
        self.commit(&mut work, Commit { cursor, new, old: set.to_vec(), ..Commit::default() })?;
        self.bury(&mut work);
        Ok(set.len())
    }

    /// Removes days that are older than their table's retention. Returns how many files that were.
    fn expire(&self, work: &mut Work, now_ns: i64) -> Result<usize> {
        // A clock that is far ahead of all points is not believed.
        let Some(newest) = self.newest_ns() else { return Ok(0) };
        let now_ns = now_ns.min(newest.saturating_add(DAY_NS));
        let mut old = Vec::new();
        for table in self.all_tables() {
            let files = Arc::clone(&table.lock().files);
            old.extend(files.iter().filter(|it| self.is_expired(&table, it.entry.day, now_ns)).cloned());
        }
        let expired = old.len();
        if expired > 0 {
            self.commit(work, Commit { cursor: work.cursor, old, ..Commit::default() })?;
        }
        Ok(expired)
    }

    fn space(&self) -> Result<Space> {
        self.disk.space(&self.root).map_err(StoreError::io("asking for the free space of", &self.root))
    }

    /// Whether the file system has room.
    fn room(&self) -> Result<Room> {
        let space = self.space()?;
        let min_free = self.options.min_free.unwrap_or_else(|| Options::default_min_free(space));
        let is_short = space.free < min_free;
        Ok(if is_short { Room::Short { free: space.free, min_free } } else { Room::Enough })
    }

    /// Removes the oldest days while the files take too much: raw rows and minutes first, of hours what is left.
    fn keep_within(&self, work: &mut Work, others: u64, done: &mut Done) -> Result<()> {
        let max_size = match self.options.max_size {
            Some(max_size) => max_size,
            None => Options::default_max_size(self.space()?),
        };
        let mut files: Vec<(bool, Arc<StoredFile>)> = Vec::new();
        for table in self.all_tables() {
            let is_hours = matches!(&table.role, Role::RollUp { size, .. } if *size + 1 == BUCKETS.len());
            files.extend(table.lock().files.iter().map(|it| (is_hours, Arc::clone(it))));
        }
        // Files that a query still reads go by themselves.
        let mut bytes: u64 = others + files.iter().map(|it| it.1.entry.bytes).sum::<u64>();
        if bytes <= max_size {
            return Ok(());
        }
        files.sort_by_key(|(is_hours, file)| (*is_hours, file.entry.day));
        let mut old = Vec::new();
        for day in files.chunk_by(|a, b| (a.0, a.1.entry.day) == (b.0, b.1.entry.day)) {
            if bytes <= max_size {
                break;
            }
            let freed: u64 = day.iter().map(|it| it.1.entry.bytes).sum();
            bytes = bytes.saturating_sub(freed);
            done.dropped_bytes += freed;
            done.dropped_days.push(layout::day_name(day[0].1.entry.day));
            old.extend(day.iter().map(|it| Arc::clone(&it.1)));
        }
        self.commit(work, Commit { cursor: work.cursor, old, ..Commit::default() })
    }

    /// Gives up the oldest chunk of each table. Returns how many rows that were.
    fn drop_oldest_rows(&self) -> u64 {
        self.all_tables().iter().map(|it| it.lock().memory.drop_oldest() as u64).sum()
    }

    /// Removes files that no longer count and that no query reads.
    fn bury(&self, work: &mut Work) {
        work.doomed.retain(|file| {
            if Arc::strong_count(file) > 1 {
                return true;
            }
            // What cannot be removed now is removed at the next start.
            if let Err(error) = self.disk.remove_file(&file.path) {
                tracing::warn!(path = %file.path.display(), "cannot remove a file that was replaced: {error}");
            }
            false
        });
    }
}

fn is_one_of(file: &Arc<StoredFile>, files: &[Arc<StoredFile>]) -> bool {
    files.iter().any(|it| Arc::ptr_eq(it, file))
}

/// Files of one day, in order: those that should become one, which stand side by side. Of a day that goes on, newer
/// ones until the next older one is larger than all of them, so that a row is rewritten a few times only.
fn worth_merging(files: &[Arc<StoredFile>], is_over: bool) -> &[Arc<StoredFile>] {
    if is_over {
        return files;
    }
    let mut bytes = 0;
    let mut from = files.len();
    while from > 0 && (files.len() - from < 2 || files[from - 1].entry.bytes <= bytes) {
        from -= 1;
        bytes += files[from].entry.bytes;
    }
    if files.len() - from < COMPACT_FILES { &[] } else { &files[from..] }
}
