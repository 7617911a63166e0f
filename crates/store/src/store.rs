//! The store: opening, taking rows in, and the maintenance that turns them into few, small, sorted files.
//!
//! One lock orders what is applied; one lock lets one maintenance run at a time. Neither is held while the other side
//! does I/O: taking rows in never waits for a flush.

mod compaction;
mod opening;
mod upkeep;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use disk::{Disk, Space};
use telemetry::lines::{Batch, Catalog, Column};

use crate::error::Result;
use crate::rollup::BUCKETS;
use crate::schema::Columns;
use crate::table::{Role, Table};
use upkeep::Work;
pub use upkeep::{Done, MaintainError, Room};

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
}
