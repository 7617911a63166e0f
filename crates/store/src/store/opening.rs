//! Opening: the files that the manifest names get their names, all others go.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, RwLock};

use disk::{Disk, Entry};

use super::{Applied, Complaints, Inner, Options, Store, Work, add_rollups};
use crate::error::{Result, StoreError};
use crate::files::StoredFile;
use crate::manifest::{self, FileEntry, TableEntry, unborn};
use crate::rollup::BUCKETS;
use crate::table::{Role, Table};

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
            let mut damaged = Vec::new();
            for entry in std::mem::take(&mut table.damaged) {
                let path = entry.path(root, &table.database, &table.table);
                let aside = manifest::aside(&path);
                // A crash may have come before it was renamed. What merged its neighbours may have taken its name.
                if !known.contains(&path) {
                    let _ = disk.rename(&path, &aside);
                }
                known.insert(aside.clone());
                damaged.push(Arc::new(StoredFile::new(&disk, aside, entry)));
            }
            let rolls = (options.rollups)(&table.database, &table.table);
            let opened = Table::new(&table.database, &table.table, role, rolls);
            {
                let mut state = opened.lock();
                (state.columns, state.files) = (table.columns, Arc::new(files));
                (state.damaged, state.removed_until, state.mark) = (damaged, table.removed_until, table.mark);
                state.forget_rows();
            }
            tables.entry(table.database).or_default().insert(table.table, Arc::new(opened));
        }
        for tables in tables.values_mut() {
            // They may have been off before.
            let all: Vec<_> = tables.values().cloned().collect();
            all.iter().for_each(|it| add_rollups(tables, it));
        }
        remove_strangers(&*disk, root, &known)?;
        let cursor = manifest.cursor;
        let work = Work {
            cursor,
            last_flush_ns: None,
            last_sweep_ns: None,
            expired_rows: 0,
            is_uncertain: false,
            orphans: Vec::new(),
            doomed: Vec::new(),
            left_out_series: 0,
        };
        let inner = Inner {
            disk,
            root: root.to_owned(),
            options,
            tables: RwLock::new(tables),
            applied: Mutex::new(Applied { seq: cursor, ..Applied::default() }),
            swap: RwLock::default(),
            work: Mutex::new(work),
            compacting: Mutex::default(),
            merging: AtomicU64::new(0),
            asked: Mutex::default(),
        };
        Ok((Self { inner: Arc::new(inner) }, complaints))
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

/// Whether the name is one that only this store gives: `<first>-<last>.parquet`, perhaps `.new` or `.damaged`.
fn is_ours(path: &Path) -> bool {
    let name = path.file_name().and_then(|it| it.to_str()).unwrap_or_default();
    let name = name.strip_suffix(".new").or_else(|| name.strip_suffix(".damaged")).unwrap_or(name);
    let span = name.strip_suffix(".parquet").and_then(|it| it.split_once('-'));
    span.is_some_and(|(first, last)| first.parse::<u64>().is_ok() && last.parse::<u64>().is_ok())
}
