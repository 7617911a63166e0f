//! Compaction: small files of a day become larger ones.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, TryLockError};

use super::upkeep::{Commit, Done, New, Room, is_one_of};
use super::{Inner, Store, lock};
use crate::error::{Result, StoreError};
use crate::files::{Effort, StoredFile};
use crate::layout::day_of;
use crate::manifest::FileEntry;
use crate::memory::all_of;
use crate::merge::{Sorted, Source};
use crate::table::Table;

/// Files of the current day that are merged together at least.
const COMPACT_FILES: usize = 6;

impl Store {
    /// Merges small files where that is worth it. To be called every few seconds from another thread than
    /// [`Store::maintain`]: it may take minutes, and holds nothing up. Returns how many files went into others.
    ///
    /// # Errors
    /// As [`Store::maintain`].
    pub fn compact_some(&self, now_ns: i64) -> Result<usize> {
        match self.inner.compact(now_ns, false) {
            // It waits for better times.
            Err(StoreError::NoRoom { .. }) => Ok(0),
            merged => merged,
        }
    }

    /// Writes all rows into files and merges the files of each day into one.
    ///
    /// # Errors
    /// As [`Store::maintain`]; [`StoreError::NoRoom`] before anything is written, or at the end, if there was no room for a
    /// day; [`StoreError::Running`] while another one works.
    pub fn compact(&self, now_ns: i64) -> Result<Done> {
        let _one_at_a_time = match self.inner.asked.try_lock() {
            Ok(asked) => asked,
            Err(TryLockError::Poisoned(asked)) => asked.into_inner(),
            Err(TryLockError::WouldBlock) => return Err(StoreError::Running),
        };
        self.inner.demand_room(0)?;
        let (flushed_rows, expired_files) = {
            let mut work = self.inner.begin()?;
            let flushed_rows = self.inner.flush(&mut work, now_ns)?;
            work.last_flush_ns = Some(now_ns);
            (flushed_rows, self.inner.expire(&mut work, now_ns)?)
        };
        let compacted_files = self.inner.compact(now_ns, true)?;
        let mut work = self.inner.begin()?;
        self.inner.set_aside(&mut work)?;
        self.inner.bury(&mut work);
        let (cursor, expired_rows) = (work.cursor, std::mem::take(&mut work.expired_rows));
        Ok(Done { cursor, flushed_rows, compacted_files, expired_files, expired_rows, ..Done::default() })
    }
}

impl Inner {
    /// Merges files where that is worth it; `all` makes one file of each day. Returns how many files went into others.
    /// Files are read and written without holding anything that a flush or a query waits for.
    ///
    /// A file that cannot be read holds up its own day only, and so does want of room: a day may be small enough. The
    /// first such error is returned at the end.
    fn compact(&self, now_ns: i64, all: bool) -> Result<usize> {
        let _one_at_a_time = lock(&self.compacting);
        let today = day_of(now_ns);
        let mut merged = 0;
        let mut unmerged = None;
        for table in self.all_tables() {
            let days: BTreeSet<i32> = table.lock().files.iter().map(|it| it.entry.day).collect();
            for day in days {
                loop {
                    match self.compact_day(&table, day, all || day < today) {
                        Ok(files) => merged += files,
                        Err(error @ StoreError::NoRoom { .. }) => drop(unmerged.get_or_insert(error)),
                        Err(error) => match table.file_of(&error) {
                            // The same without it.
                            Some(file) if file.doubt() => continue,
                            Some(_) => drop(unmerged.get_or_insert(error)),
                            None => return Err(error),
                        },
                    }
                    break;
                }
            }
        }
        unmerged.map_or(Ok(merged), Err)
    }

    /// Merges the files of a day as far as that is worth it. Returns how many went into others.
    fn compact_day(&self, table: &Arc<Table>, day: i32, is_over: bool) -> Result<usize> {
        // Nothing here may hold the list of files: what was replaced is removed once nobody has it.
        let of_day: Vec<_> = table.lock().files.iter().filter(|it| it.entry.day == day).cloned().collect();
        if of_day.len() < 2 {
            return Ok(0);
        }
        // One that may be there again after a start keeps its place in the order: no file becomes one with another across it.
        let (mut runs, mut run) = (Vec::new(), Vec::new());
        for file in of_day {
            if file.is_whole()? {
                run.push(file);
            } else if !file.is_damaged() {
                runs.push(std::mem::take(&mut run));
            }
        }
        runs.push(run);
        let mut merged = 0;
        for run in runs {
            let set = worth_merging(run, is_over);
            if set.len() < 2 {
                continue;
            }
            // At the worst the new file takes as much as the old ones, which stay until it counts.
            let bytes = set.iter().map(|it| it.entry.bytes).sum();
            self.demand_room(bytes)?;
            self.merging.store(bytes, Ordering::Relaxed);
            let files = self.merge_files(table, set);
            self.merging.store(0, Ordering::Relaxed);
            merged += files?;
        }
        Ok(merged)
    }

    /// # Errors
    /// [`StoreError::NoRoom`] if the file system has less than `min_free` left when so many bytes more are taken.
    pub(super) fn demand_room(&self, bytes: u64) -> Result<()> {
        match self.room_for(bytes)? {
            Room::Enough => Ok(()),
            Room::Short { free, min_free } => Err(StoreError::NoRoom { free, needed: min_free }),
        }
    }

    /// Makes one file of these, which stand side by side in the journal's order. Returns how many they were; 0 if one of
    /// them was removed meanwhile.
    fn merge_files(&self, table: &Arc<Table>, set: Vec<Arc<StoredFile>>) -> Result<usize> {
        // A name that a failed commit may have made durable is settled before it is written.
        drop(self.begin()?);
        let (first, last) = (&set[0].entry, &set[set.len() - 1].entry);
        let entry = FileEntry { day: first.day, first: first.first, last: last.last, ..FileEntry::default() };
        let schema = table.lock().columns.resting_schema();
        let late = all_of(set.iter().filter_map(|it| it.entry.late));
        let mut sources: Vec<Box<dyn Source>> = Vec::new();
        for file in &set {
            let rows = file.rows(&schema, (i64::MIN, i64::MAX), &[])?;
            sources.push(Box::new(Sorted::new(&schema, &file.path, rows)));
        }
        let new: Vec<New> =
            self.write_file(table, entry, &schema, sources, late, Effort::Compaction)?.into_iter().collect();
        let mut work = self.begin().inspect_err(|_| self.discard(&new))?;
        let is_there = {
            let state = table.lock();
            set.iter().all(|it| is_one_of(it, &state.files))
        };
        if !is_there {
            self.discard(&new);
            return Ok(0);
        }
        let (cursor, merged) = (work.cursor, set.len());
        self.commit(&mut work, Commit { cursor, new, old: set, ..Commit::default() })?;
        self.bury(&mut work);
        Ok(merged)
    }
}

/// Files of one day, in order: those that should become one, which stand side by side. Of a day that goes on, newer
/// ones until the next older one is larger than all of them, so that a row is rewritten a few times only.
fn worth_merging(mut files: Vec<Arc<StoredFile>>, is_over: bool) -> Vec<Arc<StoredFile>> {
    if is_over {
        return files;
    }
    let mut bytes = 0;
    let mut from = files.len();
    while from > 0 && (files.len() - from < 2 || files[from - 1].entry.bytes <= bytes) {
        from -= 1;
        bytes += files[from].entry.bytes;
    }
    if files.len() - from < COMPACT_FILES { Vec::new() } else { files.split_off(from) }
}
