//! The store carried into another folder, and back: each file gets one more name there, and a manifest names them.
//!
//! The manifest is written last, so a folder without one is no store. What is carried is one state of the store: rows
//! that come meanwhile are not in it, and files that compaction or retention replaces meanwhile are.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use disk::{Disk, link_or_copy};

use crate::error::{Result, StoreError};
use crate::files::StoredFile;
use crate::manifest::{self, Manifest, TableEntry};
use crate::store::{Complaints, Store};

/// What was carried.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// The last journal entry whose rows are in it.
    pub cursor: u64,
    /// Parquet files.
    pub files: usize,
    /// Their length, bytes.
    pub bytes: u64,
    /// Their rows, roll-ups among them.
    pub rows: u64,
    /// What is missing, for a person.
    pub complaints: Complaints,
}

impl Store {
    /// Writes all rows into files and gives these one more name each below `into`, a folder that is not there or is
    /// empty. Takes rows in and answers queries meanwhile. Where the file system has no hard links, files are copied.
    ///
    /// # Errors
    /// [`StoreError::InJournalOnly`] and [`StoreError::NoRoom`] before anything is written; the file system. What is in the
    /// folder then is no store.
    pub fn backup(&self, into: &Path, now_ns: i64) -> Result<Carried> {
        let pinned = self.pin(now_ns)?;
        let mut carrier = Carrier::new(&*pinned.disk, into, pinned.manifest.cursor)?;
        for (table, files) in pinned.manifest.tables.iter().zip(&pinned.files) {
            carrier.table(table);
            for file in files.iter() {
                carrier.file(file)?;
            }
        }
        carrier.finish()
    }
}

/// Carries the store that [`Store::backup`] left in `from` into a folder that is not there or is empty. Each file is
/// read before: one that is damaged is left out, and complained of.
///
/// # Errors
/// A newer format, a damaged manifest, the file system. What is in the folder then is no store.
pub fn restore(disk: &Arc<dyn Disk>, from: &Path, into: &Path) -> Result<Carried> {
    let manifest = manifest::read(&**disk, from)?.ok_or_else(|| StoreError::Damaged {
        path: from.join("manifest.json"),
        problem: "it is missing, so this is no store".to_owned(),
    })?;
    let mut carrier = Carrier::new(&**disk, into, manifest.cursor)?;
    for table in manifest.tables {
        carrier.table(&table);
        for entry in table.files {
            let path = entry.path(from, &table.database, &table.table);
            let file = StoredFile::new(disk, path, entry);
            match file.is_whole() {
                Ok(true) => carrier.file(&file)?,
                Ok(false) => carrier.complain(&file, "is damaged"),
                Err(error) if is_missing(&error) => carrier.complain(&file, "is missing"),
                Err(error) => return Err(error),
            }
        }
    }
    carrier.finish()
}

fn is_missing(error: &StoreError) -> bool {
    matches!(error, StoreError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
}

/// Fills a folder.
struct Carrier<'a> {
    disk: &'a dyn Disk,
    into: &'a Path,
    /// Names the files that are there; the last table's are being carried.
    manifest: Manifest,
    folders: BTreeSet<PathBuf>,
    carried: Carried,
}

impl<'a> Carrier<'a> {
    fn new(disk: &'a dyn Disk, into: &'a Path, cursor: u64) -> Result<Self> {
        disk.create_dir_all(into).map_err(StoreError::io("making", into))?;
        let manifest = Manifest { cursor, tables: Vec::new() };
        let carried = Carried { cursor, ..Carried::default() };
        Ok(Self { disk, into, manifest, folders: BTreeSet::new(), carried })
    }

    fn table(&mut self, table: &TableEntry) {
        self.manifest.tables.push(TableEntry { files: Vec::new(), ..table.clone() });
    }

    fn file(&mut self, file: &StoredFile) -> Result<()> {
        let Some(table) = self.manifest.tables.last_mut() else { return Ok(()) };
        let path = file.entry.path(self.into, &table.database, &table.table);
        if let Some(folder) = path.parent()
            && self.folders.insert(folder.to_owned())
        {
            self.disk.create_dir_all(folder).map_err(StoreError::io("making", folder))?;
        }
        match link_or_copy(self.disk, &file.path, &path) {
            Ok(()) => {}
            // Somebody removed it from under us: the store has told that, and the rest is worth carrying.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.complain(file, "is missing");
                return Ok(());
            }
            Err(error) => return Err(StoreError::io("linking or copying", &file.path)(error)),
        }
        table.files.push(file.entry.clone());
        self.carried.files += 1;
        self.carried.bytes += file.entry.bytes;
        self.carried.rows += file.entry.rows;
        Ok(())
    }

    /// Leaves a file out. As for any that is damaged, the roll-ups of its times are not made anew from what is left.
    fn complain(&mut self, file: &StoredFile, what: &str) {
        if let Some(table) = self.manifest.tables.last_mut() {
            table.damaged.push(file.entry.clone());
        }
        let rows = file.entry.rows;
        self.carried.complaints.push(format!("{} {what}: its {rows} rows are left out", file.path.display()));
    }

    fn finish(self) -> Result<Carried> {
        for folder in &self.folders {
            self.disk.sync_dir(folder).map_err(StoreError::io("syncing", folder))?;
        }
        manifest::write(self.disk, self.into, &self.manifest)?;
        Ok(self.carried)
    }
}
