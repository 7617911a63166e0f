//! Upkeep: rows from memory into files, the commit that makes files count, retention, and the limits of the disk.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use disk::{Disk, Space};

use super::{Inner, Store, lock};
use crate::error::{Result, StoreError};
use crate::files::{Effort, FileWriter, StoredFile};
use crate::layout::{self, DAY_NS, day_of, day_start_ns};
use crate::manifest::{self, FileEntry, MAX_FILES, Manifest, Mark, TableEntry, unborn};
use crate::memory::{Chunk, Times, all_of, overlap};
use crate::merge::{Chunks, Source, merge};
use crate::rollup::{self, Advanced, BUCKETS, Carry, Give};
use crate::table::{Role, Snapshot, Table};

/// Rows rest this long in memory at most: the journal has them, and this is what a start reads again.
const FLUSH_EVERY: Duration = Duration::from_secs(600);

/// How often series without rows leave the newest rows, and tables that nobody asks for them: whether something was
/// written says nothing about that.
const SWEEP_EVERY: Duration = Duration::from_secs(600);

/// What only maintenance touches.
#[derive(Debug)]
pub(super) struct Work {
    /// The last journal entry whose rows are all in files.
    pub(super) cursor: u64,
    pub(super) last_flush_ns: Option<i64>,
    pub(super) last_sweep_ns: Option<i64>,
    /// See [`Done::expired_rows`]: those that are not told yet.
    pub(super) expired_rows: u64,
    /// A commit failed half-way: which manifest is durable is not known before the old one is written again.
    pub(super) is_uncertain: bool,
    /// The files of that commit.
    pub(super) orphans: Vec<PathBuf>,
    /// Files that no longer count; each is removed when the last query that reads it is done.
    pub(super) doomed: Vec<Arc<StoredFile>>,
    /// Series that roll-ups left out, as long as nobody was told.
    pub(super) left_out_series: usize,
}

/// Of the memory for rows, what series may take that are remembered beyond a flush: a quarter. Where there are more, they
/// are forgotten, and their next rows count as late if another series is before them.
const SERIES_PART: usize = 4;

/// Rows of a table that are taken for a flush.
type Taken = (Arc<Table>, Vec<Arc<Chunk>>);
/// A file that was written and does not count yet.
pub(super) type New = (Arc<Table>, StoredFile);
/// What is known of a table after a flush, and what its roll-ups go on from.
pub(super) type Known = (Arc<Table>, Mark, Option<Arc<Carry>>);

/// What counted at one moment.
pub(crate) struct Pinned {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) manifest: Manifest,
    /// Of each table of the manifest.
    pub(crate) files: Vec<Arc<Vec<Arc<StoredFile>>>>,
}

/// What a commit changes.
#[derive(Default)]
pub(super) struct Commit {
    /// The last journal entry whose rows are all in files then.
    pub(super) cursor: u64,
    pub(super) new: Vec<New>,
    pub(super) known: Vec<Known>,
    /// Files that no longer count.
    pub(super) old: Vec<Arc<StoredFile>>,
    /// They go before their retention is over.
    pub(super) is_early: bool,
    /// Files that are set aside.
    pub(super) damaged: Vec<Arc<StoredFile>>,
}

/// What a flush did beside the files that it wrote.
struct Flushed {
    known: Vec<Known>,
    /// See [`Done::expired_rows`].
    expired_rows: u64,
    /// See [`Done::left_out_series`].
    left_out_series: usize,
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
    /// Rows that no file got, because they were older than their table's retention when they were to be written, in all
    /// flushes since the last [`Store::maintain`] or [`Store::compact`].
    pub expired_rows: u64,
    /// The days whose rows went because the files took too much, as `YYYY-MM-DD`, and the bytes that this freed.
    pub dropped_days: Vec<String>,
    /// See `dropped_days`.
    pub dropped_bytes: u64,
    /// Rows in memory that went because there was no room to write them: the journal has them, see
    /// [`Store::read_again`].
    pub dropped_rows: u64,
    /// Series whose rows were written and went into no roll-up, since there were too many for
    /// [`super::Options::rollup_memory`]; [`Store::maintain`] tells them, each once a flush.
    pub left_out_series: usize,
    /// Whether there is room to grow.
    pub room: Room,
}

/// How much of the disk there is, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// See [`super::Options::max_size`].
    pub max_size: u64,
    /// See [`super::Options::min_free`].
    pub min_free: u64,
    /// What is free.
    pub free: u64,
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

impl Store {
    /// Flushes and removes what is due, within the limits of the disk. To be called every few seconds, soon where
    /// [`Store::wants_flush`], from a thread that may wait. `others`: bytes that other things of ours take beside the
    /// files; of half of [`Options::max_size`] at most the files' days go for them.
    ///
    /// # Errors
    /// The file system; nothing in files is lost by it, the next call tries again. What was done until then comes with
    /// it.
    pub fn maintain(&self, now_ns: i64, others: u64) -> Result<Done, MaintainError> {
        let room = self.inner.room().map_err(|error| Box::new((error, Done::default())))?;
        let mut done = Done { room, ..Done::default() };
        let worked = self.work_within(now_ns, others, &mut done);
        if self.is_behind()
            && (done.room != Room::Enough || worked.is_err() || lock(&self.inner.applied).has_gap)
        {
            done.dropped_rows = self.inner.drop_oldest_rows(now_ns);
        }
        match worked {
            Ok(()) => Ok(done),
            Err(error) => Err(Box::new((error, done))),
        }
    }

    fn work_within(&self, now_ns: i64, others: u64, done: &mut Done) -> Result<()> {
        let mut work = self.inner.begin()?;
        self.inner.bury(&mut work);
        if is_due(&mut work.last_sweep_ns, now_ns, SWEEP_EVERY) {
            self.inner.all_tables().iter().for_each(|it| it.lock().last.sweep(now_ns));
            work.last_sweep_ns = Some(now_ns);
        }
        let is_due = is_due(&mut work.last_flush_ns, now_ns, FLUSH_EVERY);
        done.cursor = work.cursor;
        self.inner.set_aside(&mut work)?;
        self.inner.keep_within(&mut work, others, done)?;
        let flushes = done.room == Room::Enough && (is_due || self.wants_flush());
        // Before old rows go: it brings the roll-ups of the last of them to an end.
        let flushed = if flushes { self.inner.flush(&mut work, now_ns) } else { Ok(0) };
        // Also where it failed, perhaps for want of the room that this gives, unless no commit can be begun now.
        if is_due && !work.is_uncertain {
            done.expired_files = self.inner.expire(&mut work, now_ns)?;
        }
        done.flushed_rows = flushed?;
        if flushes {
            work.last_flush_ns = Some(now_ns);
        }
        self.inner.bury(&mut work);
        done.cursor = work.cursor;
        done.expired_rows = std::mem::take(&mut work.expired_rows);
        done.left_out_series = std::mem::take(&mut work.left_out_series);
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

    /// Writes all rows into files, and returns what counts then, with the files of each table. They stay where they are
    /// as long as they are held, whatever compaction and retention do.
    ///
    /// # Errors
    /// As [`Store::backup`].
    pub(crate) fn pin(&self, now_ns: i64) -> Result<Pinned> {
        self.inner.demand_room(0)?;
        let mut work = self.inner.begin()?;
        self.inner.demand_all_rows()?;
        self.inner.flush(&mut work, now_ns)?;
        // Rows may have been given up meanwhile.
        self.inner.demand_all_rows()?;
        work.last_flush_ns = Some(now_ns);
        let manifest = self.inner.manifest(&Commit { cursor: work.cursor, ..Commit::default() });
        let files_of = |it: &TableEntry| match self.inner.find(&it.database, &it.table) {
            Some(table) => Arc::clone(&table.lock().files),
            None => Arc::default(),
        };
        let files = manifest.tables.iter().map(files_of).collect();
        Ok(Pinned { disk: Arc::clone(&self.inner.disk), manifest, files })
    }

    /// What the store may take of its disk, and what that has.
    ///
    /// # Errors
    /// The file system.
    pub fn bounds(&self) -> Result<Bounds> {
        let (space, options) = (self.inner.space()?, &self.inner.options);
        Ok(Bounds {
            max_size: options.max_size_of(space),
            min_free: options.min_free_of(space),
            free: space.free,
        })
    }

    /// Whether there are more rows in memory than there should be: whoever can wait with more of them should.
    pub fn is_behind(&self) -> bool {
        self.inner.memory_bytes() >= self.inner.options.memory
    }

    /// Whether there are so many rows in memory that [`Store::maintain`] should be called now.
    pub fn wants_flush(&self) -> bool {
        self.inner.memory_bytes() >= self.inner.options.memory / 2
    }
}

impl Inner {
    fn memory_bytes(&self) -> usize {
        self.all_tables().iter().map(|it| it.lock().memory.bytes()).sum()
    }

    /// Whether the whole day is older than the table's retention.
    fn is_expired(&self, table: &Table, day: i32, now_ns: i64) -> bool {
        day_start_ns(day) < self.oldest_ns(table, now_ns)
    }

    /// Lets one maintenance begin. If the last commit failed half-way, the state before it is made the durable one:
    /// before that no file may be written under a name that a durable manifest may give.
    pub(super) fn begin(&self) -> Result<MutexGuard<'_, Work>> {
        let mut work = lock(&self.work);
        if work.is_uncertain {
            manifest::write(
                &*self.disk,
                &self.root,
                &self.manifest(&Commit { cursor: work.cursor, ..Commit::default() }),
            )?;
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
        // What is longer than all times is for ever, also for rows from before 1734.
        let oldest = i64::try_from(keep.as_nanos()).ok().and_then(|keep| now_ns.checked_sub(keep));
        oldest.map_or(i64::MIN, |oldest| day_start_ns(day_of(oldest)))
    }

    /// The latest time of a row; `None` without rows.
    fn newest_ns(&self) -> Option<i64> {
        self.all_tables().iter().filter_map(|it| it.newest()).max()
    }

    /// What of the clock is believed, which may be far ahead: a day after the latest row. `None` without rows.
    pub(crate) fn believed(&self, now_ns: i64) -> Option<i64> {
        self.newest_ns().map(|newest| now_ns.min(newest.saturating_add(DAY_NS)))
    }

    /// Writes all rows into files. Returns how many.
    pub(super) fn flush(&self, work: &mut Work, now_ns: i64) -> Result<u64> {
        let (last, taken, marks) = {
            let applied = lock(&self.applied);
            if applied.has_gap {
                return Ok(0);
            }
            let (mut taken, mut marks) = (Vec::new(), Vec::new());
            let tables = self.all_tables();
            let series: usize = tables.iter().map(|it| it.lock().memory.series_bytes()).sum();
            let forget = series > self.options.memory / SERIES_PART;
            for table in tables {
                let (chunks, mark) = table.lock().memory.take(now_ns, forget)?;
                if !chunks.is_empty() {
                    taken.push((table, chunks));
                    marks.push(mark);
                }
            }
            (applied.seq, taken, marks)
        };
        if last == work.cursor {
            return Ok(0);
        }
        let now_ns = self.believed(now_ns).unwrap_or(now_ns);
        let span = (work.cursor + 1, last);
        let mut new = Vec::new();
        let committed = match self.write_flush(&taken, marks, span, now_ns, &mut new) {
            Ok(Flushed { known, expired_rows, left_out_series }) => {
                let raw = new.iter().filter(|it| it.0.role == Role::Raw);
                let rows = raw.map(|it| it.1.entry.rows).sum();
                let done = self.commit(work, Commit { cursor: last, new, known, ..Commit::default() });
                done.map(|()| {
                    work.expired_rows += expired_rows;
                    work.left_out_series += left_out_series;
                    rows
                })
            }
            Err(error) => {
                self.discard(&new);
                Err(error)
            }
        };
        if committed.is_err() {
            taken.iter().for_each(|(table, _)| table.lock().memory.not_flushed());
        }
        committed
    }

    /// What the roll-ups of all tables go on from, bytes, roughly.
    fn rollup_bytes(&self) -> usize {
        self.all_tables().iter().map(|it| it.lock().rollup_bytes()).sum()
    }

    /// How many bytes the roll-ups of this table may go on from.
    pub(crate) fn rollup_room(&self, table: &Table) -> usize {
        let own = table.lock().rollup_bytes();
        self.options.rollup_memory.saturating_sub(self.rollup_bytes().saturating_sub(own))
    }

    /// Writes the files of a flush: rows as they are, and the roll-ups that they bring to an end. What was written until an
    /// error is in `new`, too.
    fn write_flush(
        &self,
        taken: &[Taken],
        marks: Vec<Mark>,
        span: (u64, u64),
        now_ns: i64,
        new: &mut Vec<New>,
    ) -> Result<Flushed> {
        let expired_rows = self.write_chunks(taken, span, now_ns, new)?;
        let (mut known, mut left_out_series) = (Vec::new(), 0);
        let mut rollup_bytes = self.rollup_bytes();
        for ((table, chunks), mut mark) in taken.iter().zip(marks) {
            if !table.rolls {
                // If it gets roll-ups one day, they begin there.
                mark.rolled_until = mark.floor;
                known.push((Arc::clone(table), mark, None));
                continue;
            }
            let snapshot = table.lock().snapshot(chunks.clone());
            rollup_bytes = rollup_bytes.saturating_sub(snapshot.carry.as_ref().map_or(0, |it| it.bytes()));
            let room = self.options.rollup_memory.saturating_sub(rollup_bytes);
            let advanced = self.advance(table, &snapshot, now_ns, room)?;
            rollup_bytes += advanced.carry.bytes();
            left_out_series += advanced.left_out;
            mark.rolled_until = advanced.carry.newest();
            known.push((Arc::clone(table), mark, Some(Arc::new(advanced.carry))));
            for (bucket, rows) in BUCKETS.iter().zip(advanced.rows) {
                if rows.is_empty() {
                    continue;
                }
                let name = format!("{}{}", table.name, bucket.suffix);
                let Some(target) = self.find(&table.database, &name).filter(|it| it.role != Role::Raw) else {
                    continue;
                };
                target.lock().columns = rollup::columns(&table.name, &snapshot.columns);
                let rows = rows.into_iter().map(Arc::new).collect();
                self.write_chunks(&[(target, rows)], span, now_ns, new)?;
            }
        }
        Ok(Flushed { known, expired_rows, left_out_series })
    }

    /// The roll-ups that the rows in memory bring to an end. Older files that late rows need and that turn out to be
    /// damaged are left out.
    fn advance(&self, table: &Arc<Table>, snapshot: &Snapshot, now_ns: i64, room: usize) -> Result<Advanced> {
        let oldest = self.oldest_ns(table, now_ns);
        loop {
            let advance = || {
                let carry = table.carry(snapshot, room)?;
                rollup::advance(&table.name, &carry, snapshot, oldest, Give::Closed, now_ns, room)
            };
            match advance() {
                // Each time there is a file less.
                Err(error) if table.file_of(&error).is_some_and(|it| it.doubt()) => {}
                advanced => return advanced,
            }
        }
    }

    /// Returns how many rows were left out.
    fn write_chunks(
        &self,
        taken: &[Taken],
        span: (u64, u64),
        now_ns: i64,
        new: &mut Vec<New>,
    ) -> Result<u64> {
        let expired = Cell::new(0);
        for (table, chunks) in taken {
            let schema = table.lock().columns.resting_schema();
            let late = all_of(chunks.iter().filter_map(|it| it.late));
            // Days that are over long ago are not written at all. So there are as many files as days that are kept at most,
            // and with retention for ever no more than rows.
            let day_of = |time| {
                let day = day_of(time);
                let is_expired = self.is_expired(table, day, now_ns);
                expired.set(expired.get() + u64::from(is_expired));
                (!is_expired).then_some(day)
            };
            for (day, source) in Chunks::by(&schema, chunks, day_of)? {
                let entry = FileEntry { day, first: span.0, last: span.1, ..FileEntry::default() };
                let sources: Vec<Box<dyn Source>> = vec![Box::new(source)];
                new.extend(self.write_file(table, entry, &schema, sources, late, Effort::Flush)?);
            }
        }
        Ok(expired.get())
    }

    /// Writes one file from sources that are older before newer. It does not count yet.
    pub(super) fn write_file(
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
        let new = unborn(&path);
        let write = || {
            let mut writer = FileWriter::create(&*self.disk, &new, schema, effort)?;
            merge(schema, sources, table.rule(), |_, rows| writer.write(&rows))?;
            writer.finish()
        };
        let written = write();
        if !matches!(written, Ok(Some(_))) {
            self.remove_unborn(&path);
        }
        let Some(written) = written? else { return Ok(None) };
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

    /// Removes what was written and does not count: the next try has other names, and would leave it.
    pub(super) fn discard(&self, new: &[New]) {
        new.iter().for_each(|(_, file)| self.remove_unborn(&file.path));
    }

    fn remove_unborn(&self, path: &Path) {
        // What stays is removed at the next start.
        let _ = self.disk.remove_file(&unborn(path));
    }

    /// Makes new files count and old ones not, at once and durably.
    pub(super) fn commit(&self, work: &mut Work, commit: Commit) -> Result<()> {
        let Commit { cursor, new, old, .. } = &commit;
        let is_flush = *cursor > work.cursor;
        let dirs: BTreeSet<&Path> = new.iter().filter_map(|it| it.1.path.parent()).collect();
        for dir in dirs {
            if let Err(error) = self.disk.sync_dir(dir) {
                self.discard(new);
                return Err(StoreError::io("syncing", dir)(error));
            }
        }
        work.orphans = new.iter().map(|it| it.1.path.clone()).collect();
        work.is_uncertain = true;
        manifest::write(&*self.disk, &self.root, &self.manifest(&commit))?;
        for (_, file) in new {
            let named = self.disk.rename(&unborn(&file.path), &file.path);
            named.map_err(StoreError::io("renaming", &file.path))?;
        }
        for file in &commit.damaged {
            // It may be gone. What cannot be renamed now is renamed at the next start.
            if let Err(error) = self.disk.rename(&file.path, &manifest::aside(&file.path)) {
                tracing::warn!(path = %file.path.display(), "cannot rename a damaged file: {error}");
            }
        }
        // The new names need no sync: a start finds either.
        work.is_uncertain = false;
        work.orphans.clear();
        work.cursor = *cursor;
        work.doomed.extend(old.iter().cloned());
        let Commit { new, known, old, is_early, damaged, .. } = commit;
        let mut new: Vec<(Arc<Table>, Arc<StoredFile>)> =
            new.into_iter().map(|(table, file)| (table, Arc::new(file))).collect();
        let _swapping = self.swap.write().unwrap_or_else(PoisonError::into_inner);
        for (table, mark, carry) in known {
            let mut state = table.lock();
            (state.mark, state.carry) = (Some(mark), carry);
        }
        for table in self.all_tables() {
            let mut state = table.lock();
            if is_early {
                state.removed_until = state.removed_by(&old);
            }
            let (kept, gone): (Vec<_>, Vec<_>) =
                state.files.iter().cloned().partition(|it| !is_one_of(it, &old) && !is_one_of(it, &damaged));
            let aside = gone.iter().filter(|it| is_one_of(it, &damaged));
            let aside = aside
                .map(|it| Arc::new(StoredFile::new(&self.disk, manifest::aside(&it.path), it.entry.clone())));
            state.damaged.extend(aside);
            state.damaged.retain(|it| !is_one_of(it, &old));
            let mut files = kept;
            files.extend(new.extract_if(.., |it| Arc::ptr_eq(&it.0, &table)).map(|it| it.1));
            files.sort_by_key(|it| (it.entry.day, it.entry.first));
            state.files = Arc::new(files);
            if is_flush {
                state.memory.flushed();
            }
        }
        Ok(())
    }

    /// Writes down once more what is durable: whether the disk takes it.
    pub(super) fn write_again(&self) -> Result<()> {
        let work = self.begin()?;
        let now = Commit { cursor: work.cursor, ..Commit::default() };
        manifest::write(&*self.disk, &self.root, &self.manifest(&now))
    }

    /// What is durable after this commit.
    fn manifest(&self, commit: &Commit) -> Manifest {
        let mut manifest = Manifest { cursor: commit.cursor, tables: Vec::new() };
        for table in self.all_tables() {
            let state = table.lock();
            let stays = |it: &&Arc<StoredFile>| !is_one_of(it, &commit.old);
            let (kept, set_aside): (Vec<_>, Vec<_>) =
                state.files.iter().filter(stays).partition(|it| !is_one_of(it, &commit.damaged));
            let kept = kept.into_iter().map(|it| &it.entry);
            let added = commit.new.iter().filter(|it| Arc::ptr_eq(&it.0, &table)).map(|it| &it.1.entry);
            let mut files: Vec<FileEntry> = kept.chain(added).cloned().collect();
            files.sort_by_key(|it| (it.day, it.first));
            let damaged = state.damaged.iter().filter(stays).chain(set_aside);
            let mark = commit.known.iter().find(|it| Arc::ptr_eq(&it.0, &table)).map(|it| &it.1);
            manifest.tables.push(TableEntry {
                database: table.database.clone(),
                table: table.name.clone(),
                columns: state.columns.clone(),
                rollup_of: match &table.role {
                    Role::Raw => None,
                    Role::RollUp { of, size } => Some((of.clone(), BUCKETS[*size].ns)),
                },
                files,
                damaged: damaged.map(|it| it.entry.clone()).collect(),
                removed_until: if commit.is_early {
                    state.removed_by(&commit.old)
                } else {
                    state.removed_until
                },
                mark: mark.or(state.mark.as_ref()).cloned(),
            });
        }
        manifest
    }

    /// Files that were found damaged count no more; they stay, under another name, until their day goes.
    pub(super) fn set_aside(&self, work: &mut Work) -> Result<()> {
        let mut damaged = Vec::new();
        for table in self.all_tables() {
            damaged.extend(table.lock().files.iter().filter(|it| it.is_damaged()).cloned());
        }
        if damaged.is_empty() {
            return Ok(());
        }
        self.commit(work, Commit { cursor: work.cursor, damaged, ..Commit::default() })
    }

    /// Removes days that are older than their table's retention. Returns how many files that were.
    pub(super) fn expire(&self, work: &mut Work, now_ns: i64) -> Result<usize> {
        let Some(now_ns) = self.believed(now_ns) else { return Ok(0) };
        let mut old = Vec::new();
        for table in self.all_tables() {
            let files = table.lock().all_files();
            old.extend(files.into_iter().filter(|it| self.is_expired(&table, it.entry.day, now_ns)));
        }
        let expired = old.len();
        if expired > 0 {
            self.keep_open_buckets(&old);
            self.commit(work, Commit { cursor: work.cursor, old, ..Commit::default() })?;
        }
        Ok(expired)
    }

    /// To be called before these files go: what roll-ups that are not at their end must know of their rows is in memory from
    /// then on. After an outage longer than the retention of raw rows that is the hour in which it began.
    fn keep_open_buckets(&self, old: &[Arc<StoredFile>]) {
        for table in self.all_tables().iter().filter(|it| it.rolls) {
            let is_needed = {
                let state = table.lock();
                state.carry.is_none() && state.files.iter().any(|it| is_one_of(it, old))
            };
            let room = self.rollup_room(table);
            // The disk's room is not held up by a file that cannot be read.
            if is_needed && let Err(error) = table.snapshot().and_then(|it| table.carry(&it, room)) {
                let (database, table) = (&table.database, &table.name);
                tracing::warn!(
                    database,
                    table,
                    "old rows go, and the roll-ups of the last of them with them: {error}"
                );
            }
        }
    }

    fn space(&self) -> Result<Space> {
        self.disk.space(&self.root).map_err(StoreError::io("asking for the free space of", &self.root))
    }

    /// Whether the file system has room.
    pub(super) fn room(&self) -> Result<Room> {
        self.room_for(0)
    }

    /// Whether it has room while so many bytes more are taken.
    pub(super) fn room_for(&self, bytes: u64) -> Result<Room> {
        let space = self.space()?;
        let min_free = self.options.min_free_of(space).saturating_add(bytes);
        let is_short = space.free < min_free;
        Ok(if is_short { Room::Short { free: space.free, min_free } } else { Room::Enough })
    }

    /// Removes the oldest days while the files take too much: raw rows and minutes first, of hours what is left.
    fn keep_within(&self, work: &mut Work, others: u64, done: &mut Done) -> Result<()> {
        let max_size = match self.options.max_size {
            Some(max_size) => max_size,
            None => self.options.max_size_of(self.space()?),
        };
        let mut files: Vec<(bool, Arc<StoredFile>)> = Vec::new();
        for table in self.all_tables() {
            let is_hours = matches!(&table.role, Role::RollUp { size, .. } if *size + 1 == BUCKETS.len());
            files.extend(table.lock().all_files().into_iter().map(|it| (is_hours, it)));
        }
        // Files that a query still reads go by themselves. Of others as much is counted as leaves the files half of what they
        // may take: those do not go when days do, and a small limit would cost all days, again and again.
        let others = others.min(max_size / 2) + self.merging.load(Ordering::Relaxed);
        let mut bytes: u64 = others + files.iter().map(|it| it.1.entry.bytes).sum::<u64>();
        let mut count = files.len();
        if bytes <= max_size && count <= MAX_FILES {
            return Ok(());
        }
        files.sort_by_key(|(is_hours, file)| (*is_hours, file.entry.day));
        let (mut old, mut days, mut freed) = (Vec::new(), Vec::new(), 0);
        for day in files.chunk_by(|a, b| (a.0, a.1.entry.day) == (b.0, b.1.entry.day)) {
            if bytes <= max_size && count <= MAX_FILES {
                break;
            }
            count -= day.len();
            let of_day: u64 = day.iter().map(|it| it.1.entry.bytes).sum();
            bytes = bytes.saturating_sub(of_day);
            freed += of_day;
            days.push(layout::day_name(day[0].1.entry.day));
            old.extend(day.iter().map(|it| Arc::clone(&it.1)));
        }
        self.keep_open_buckets(&old);
        self.commit(work, Commit { cursor: work.cursor, old, is_early: true, ..Commit::default() })?;
        (done.dropped_days, done.dropped_bytes) = (days, freed);
        Ok(())
    }

    /// Gives up the oldest chunk of each table, and again, until an eighth of the memory is free; of a table without rows its
    /// series. The journal has the rows, and they are read again from it when there is room. Returns how many that were.
    fn drop_oldest_rows(&self, now_ns: i64) -> u64 {
        let mut applied = lock(&self.applied);
        let mut dropped = 0;
        while self.memory_bytes() > self.options.memory / 8 * 7 {
            let before = dropped;
            for table in self.all_tables() {
                dropped += table.lock().memory.drop_oldest(now_ns) as u64;
            }
            if dropped == before {
                break;
            }
        }
        applied.has_gap |= dropped > 0;
        dropped
    }

    /// # Errors
    /// [`StoreError::InJournalOnly`] if only the journal has some rows.
    fn demand_all_rows(&self) -> Result<()> {
        lock(&self.applied).is_whole().then_some(()).ok_or(StoreError::InJournalOnly)
    }

    /// Removes files that no longer count and that no query reads.
    pub(super) fn bury(&self, work: &mut Work) {
        work.doomed.retain(|file| {
            if Arc::strong_count(file) > 1 {
                return true;
            }
            // What cannot be removed now is removed at the next start. One that was damaged may be missing.
            if let Err(error) = self.disk.remove_file(&file.path)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                tracing::warn!(path = %file.path.display(), "cannot remove a file that was replaced: {error}");
            }
            false
        });
    }
}

/// Whether what was done last at this time is to be done again. The first time it begins to count, as where the clock was
/// set back.
fn is_due(last: &mut Option<i64>, now_ns: i64, every: Duration) -> bool {
    let at = last.filter(|&it| it <= now_ns).unwrap_or(now_ns);
    *last = Some(at);
    now_ns - at >= every.as_nanos() as i64
}

pub(super) fn is_one_of(file: &Arc<StoredFile>, files: &[Arc<StoredFile>]) -> bool {
    files.iter().any(|it| Arc::ptr_eq(it, file))
}
