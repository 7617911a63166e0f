//! The store: opening, taking rows in, and the maintenance that turns them into few, small, sorted files.
//!
//! One lock orders what is applied; one lock lets one maintenance run at a time. Neither is held while the other side
//! does I/O: taking rows in never waits for a flush.

mod compaction;
mod opening;
#[cfg(test)]
mod tests;
mod upkeep;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use disk::{Disk, Space};
use telemetry::lines::{Batch, Catalog, Column};

use crate::error::Result;
use crate::rollup::BUCKETS;
use crate::table::{Role, Table};
use upkeep::Work;
pub use upkeep::{Bounds, Done, MaintainError, Room};

/// How long rows are kept, by database and table.
pub type Retention = Arc<dyn Fn(&str, &str) -> Duration + Send + Sync>;

/// Whether roll-ups are made, by database and table.
pub type RollUps = Arc<dyn Fn(&str, &str) -> bool + Send + Sync>;

/// How the store is kept.
#[derive(Clone)]
pub struct Options {
    /// How long rows are kept; whole days go.
    pub retention: Retention,
    /// Bytes that the files may take; `None`: [`Options::default_max_size`].
    pub max_size: Option<u64>,
    /// Bytes that stay free on the file system; `None`: [`Options::default_min_free`].
    pub min_free: Option<u64>,
    /// Bytes of memory for rows that no file has, roughly; at half of it they are flushed.
    pub memory: usize,
    /// Bytes of memory for what roll-ups go on from, roughly, over all tables; a flush and a query take as much again each
    /// while they work. Series that find no room have no roll-ups, see [`Done::left_out_series`].
    pub rollup_memory: usize,
    /// Whether roll-ups are made of a table; those that are there stay.
    pub rollups: RollUps,
}

/// [`Options::memory`] unless told: a flush of half of it makes files of some 100,000 rows, large enough to be few.
const MEMORY_BYTES: usize = 96 << 20;

/// [`Options::rollup_memory`] unless told: some 10,000 VMs with five devices each, 700,000 series of one field.
const ROLLUP_MEMORY_BYTES: usize = 512 << 20;

impl Options {
    /// A tenth of the file system, 50 GiB at most.
    pub fn default_max_size(space: Space) -> u64 {
        (space.total / 10).min(50 << 30)
    }

    pub(crate) fn max_size_of(&self, space: Space) -> u64 {
        self.max_size.unwrap_or_else(|| Self::default_max_size(space))
    }

    pub(crate) fn min_free_of(&self, space: Space) -> u64 {
        self.min_free.unwrap_or_else(|| Self::default_min_free(space))
    }

    /// A twentieth of the file system, but at least 2 GiB: a full disk pauses VMs.
    pub fn default_min_free(space: Space) -> u64 {
        (space.total / 20).max(2 << 30)
    }
}

impl Default for Options {
    fn default() -> Self {
        let retention = Arc::new(|_: &str, table: &str| default_retention(table));
        let rollups = Arc::new(|_: &str, _: &str| true);
        let (memory, rollup_memory) = (MEMORY_BYTES, ROLLUP_MEMORY_BYTES);
        Self { retention, max_size: None, min_free: None, memory, rollup_memory, rollups }
    }
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options")
            .field("max_size", &self.max_size)
            .field("min_free", &self.min_free)
            .field("memory", &self.memory)
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
    /// Held while an entry is applied, and while rows are taken for a flush.
    applied: Mutex<Applied>,
    /// Held while a commit takes effect in memory: whoever looks at two tables sees both before it or both after it.
    pub(crate) swap: RwLock<()>,
    work: Mutex<Work>,
    /// Held while files are merged.
    compacting: Mutex<()>,
    /// Held while a compaction works that somebody asked for.
    asked: Mutex<()>,
    /// Length of the files that are being merged, bytes: as much may be written beside them.
    pub(crate) merging: AtomicU64,
}

/// How far the journal is in.
///
/// ```text
///  whole ──no room to write, memory is full──▶ has_gap ──room again: read_again──▶ reading ──caught_up──▶ whole
/// ```
#[derive(Debug, Default)]
struct Applied {
    /// The last entry that was applied.
    seq: u64,
    /// Rows after the cursor were given up, which only the journal has now: nothing is flushed before they are back.
    has_gap: bool,
    /// While entries are read from the journal, the last one that came by itself and was left out: it is read, too.
    left_out: Option<u64>,
}

impl Applied {
    fn is_whole(&self) -> bool {
        !self.has_gap && self.left_out.is_none()
    }
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
    /// What they and their series take, bytes, roughly.
    pub memory_bytes: usize,
    /// What the open buckets of roll-ups take beside it, bytes, roughly: some 15 KB for a series of 60 fields.
    pub rollup_bytes: usize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Store {
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

    /// Makes the tables of this catalogue whose names could be those of another table's roll-ups. To be called before rows
    /// are applied, where the folder may be newer than the catalogue: else whichever came first would have the name.
    pub fn know(&self, catalog: &Catalog) {
        for database in catalog.databases() {
            let is_like_rollup = |it: &&str| BUCKETS.iter().any(|bucket| it.ends_with(bucket.suffix));
            let mut tables: Vec<&str> = catalog.tables(database).filter(is_like_rollup).collect();
            // `x_1m_1m` before `x_1m`, which would take it for its own.
            tables.sort_by_key(|it| std::cmp::Reverse(it.len()));
            tables.into_iter().for_each(|it| drop(self.inner.table(database, it)));
        }
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
            stats.rollup_bytes += state.rollup_bytes();
        }
        stats
    }

    /// Takes the rows of a journal entry in; they are seen by every query that begins after this returns. Entries come
    /// in order; one that was applied before is left out, as are all while the journal is read again
    /// ([`Store::read_again`]).
    ///
    /// # Errors
    /// [`StoreError::Internal`] only: rows that contradict the schema.
    pub fn apply(&self, seq: u64, database: &str, batch: &Batch) -> Result<()> {
        let mut applied = lock(&self.inner.applied);
        match &mut applied.left_out {
            Some(left_out) => {
                *left_out = seq.max(*left_out);
                Ok(())
            }
            None => self.inner.apply(&mut applied, seq, database, batch),
        }
    }

    /// As [`Store::apply`], for an entry that was read from the journal.
    ///
    /// # Errors
    /// As [`Store::apply`].
    pub fn apply_read(&self, seq: u64, database: &str, batch: &Batch) -> Result<()> {
        self.inner.apply(&mut lock(&self.inner.applied), seq, database, batch)
    }

    /// Whether all rows that it was given are in files or in memory: none was given up, or those were read again.
    pub fn has_all_rows(&self) -> bool {
        lock(&self.inner.applied).is_whole()
    }

    /// Whether the journal is to be read again: rows were given up for want of room and there is room now, or an earlier
    /// reading broke off.
    ///
    /// # Errors
    /// The file system.
    pub fn wants_reading(&self) -> Result<bool> {
        let (has_gap, is_reading) = {
            let applied = lock(&self.inner.applied);
            (applied.has_gap, applied.left_out.is_some())
        };
        if !has_gap || self.inner.room()? != Room::Enough {
            return Ok(is_reading && !has_gap);
        }
        // Room alone is not enough: a disk that takes no writes has it, too.
        self.inner.write_again().map(|()| true)
    }

    /// Begins anew with what is in files, because rows in memory were given up. Whoever calls this hands over the
    /// journal's entries after the returned cursor, with [`Store::apply_read`], until [`Store::caught_up`].
    pub fn read_again(&self) -> u64 {
        let work = lock(&self.inner.work);
        let mut applied = lock(&self.inner.applied);
        let _at_once = self.inner.swap.write().unwrap_or_else(PoisonError::into_inner);
        self.inner.all_tables().iter().for_each(|it| it.lock().forget_rows());
        *applied = Applied { seq: work.cursor, has_gap: false, left_out: Some(0) };
        work.cursor
    }

    /// All entries up to this one were handed over, or are gone for good, and at that moment the journal had no more.
    /// False if one has come since: then it is to be read, too.
    pub fn caught_up(&self, through: u64) -> bool {
        let mut applied = lock(&self.inner.applied);
        applied.seq = applied.seq.max(through);
        if applied.left_out.is_some_and(|it| it > applied.seq) {
            return false;
        }
        applied.left_out = None;
        true
    }
}

impl Inner {
    fn apply(&self, applied: &mut Applied, seq: u64, database: &str, batch: &Batch) -> Result<()> {
        if seq <= applied.seq {
            return Ok(());
        }
        let mut result = Ok(());
        for rows in &batch.tables {
            // The other tables' rows are good all the same.
            result = result.and(self.table(database, &rows.table).append(rows));
        }
        applied.seq = seq;
        result
    }

    /// The table of this name, made if it is not there.
    fn table(&self, database: &str, name: &str) -> Arc<Table> {
        if let Some(table) = self.find(database, name) {
            return table;
        }
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        let tables = tables.entry(database.to_owned()).or_default();
        let is_new = !tables.contains_key(name);
        let rolls = (self.options.rollups)(database, name);
        let make = || Arc::new(Table::new(database, name, Role::Raw, rolls));
        let table = Arc::clone(tables.entry(name.to_owned()).or_insert_with(make));
        if is_new {
            add_rollups(tables, &table);
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
}

/// Makes the tables of a table's roll-ups, if it has some and they are not there.
fn add_rollups(tables: &mut BTreeMap<String, Arc<Table>>, table: &Table) {
    for (size, bucket) in BUCKETS.iter().enumerate().filter(|_| table.rolls) {
        // Whoever wrote a table of that name before has no roll-ups.
        let name = format!("{}{}", table.name, bucket.suffix);
        let role = Role::RollUp { of: table.name.clone(), size };
        let make = || Arc::new(Table::new(&table.database, &name, role, false));
        tables.entry(name.clone()).or_insert_with(make);
    }
}
