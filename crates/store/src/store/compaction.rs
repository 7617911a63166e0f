//! Compaction: small files of a day become larger ones.

use std::sync::Arc;

use super::upkeep::{Commit, Done, New, Room, is_one_of};
use super::{Inner, Store, lock};
use crate::error::Result;
use crate::files::{Effort, StoredFile};
use crate::layout::day_of;
use crate::manifest::{FileEntry, unborn};
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
}

impl Inner {
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
