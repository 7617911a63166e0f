//! Opening: which files there are, where the entries end, and where each reader is.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use disk::Disk;

use crate::frame::Totals;
use crate::{
    CURSOR, Cursor, FORMAT, Journal, JournalError, Limits, Loss, LossCause, MAX_SEGMENT, MIN_MAX_BYTES,
    MIN_SEGMENT, Opened, SEGMENTS, SPARE, STATE, Segment, Seq, Writer, lock,
};

/// What the newest segment says of the end.
struct End {
    cursors: BTreeMap<String, Seq>,
    /// Sums up to the last entry, which itself may be damaged.
    totals: Option<Totals>,
}

impl Journal {
    /// Opens the journal in this folder, or makes it. `readers` are exactly those who read from now on: others'
    /// cursors are forgotten, a new one begins with the oldest entry there. Nothing is appended yet.
    ///
    /// A reader that keeps its own cursor elsewhere says it now ([`Journal::advance`]), before anything is appended:
    /// where the newest entries were lost to damage, their numbers are then not given a second time.
    ///
    /// # Errors
    /// A newer format, the disk. Damage is no error: it is told.
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        limits: Limits,
        readers: &[&str],
    ) -> Result<(Self, Opened), JournalError> {
        let limits = Limits { max_bytes: limits.max_bytes.max(MIN_MAX_BYTES), ..limits };
        let journal = Self {
            disk,
            dir: dir.to_owned(),
            limits,
            segment_bytes: (limits.max_bytes / SEGMENTS).clamp(MIN_SEGMENT, MAX_SEGMENT),
            writer: Mutex::new(Writer {
                active: None,
                next_serial: 1,
                commits: 0,
                states: BTreeMap::new(),
                losses: Vec::new(),
                in_vain: false,
            }),
            spare: Mutex::default(),
            files: Mutex::default(),
            shared: Mutex::default(),
        };
        journal.find_segments()?;
        let end = journal.find_end()?;
        journal.find_sums(end.totals)?;
        let losses = journal.set_readers(readers, &end.cursors);
        let damage = lock(&journal.shared).damage();
        let cut_off = std::mem::take(&mut lock(&journal.files).cut_off);
        Ok((journal, Opened { damage, losses, cut_off }))
    }

    /// Lists the files.
    fn find_segments(&self) -> Result<(), JournalError> {
        self.disk
            .create_dir_all(&self.dir)
            .map_err(|error| JournalError::io("make the folder", &self.dir, error))?;
        let list = self.disk.list(&self.dir).map_err(|error| JournalError::io("list", &self.dir, error))?;
        let mut segments = Vec::new();
        for entry in list {
            let name = entry.path.file_name().and_then(|it| it.to_str()).unwrap_or_default();
            let Some((serial, first, version)) = parse_name(name) else {
                if name == SPARE {
                    self.remove_file(&entry.path)?;
                }
                continue;
            };
            if version > FORMAT {
                return Err(JournalError::Newer { path: entry.path, found: version });
            }
            segments.push(Segment {
                serial,
                path: entry.path,
                first: first.max(1),
                before: Totals::default(),
                first_at: None,
                last_at: i64::MIN,
                bytes: entry.taken,
                damage: None,
            });
        }
        segments.sort_by_key(|it| it.serial);
        lock(&self.writer).next_serial = segments.last().map_or(1, |it| it.serial + 1);
        lock(&self.shared).segments = segments;
        Ok(())
    }

    /// Finds the last entry, states and cursors: the newest segment has them.
    fn find_end(&self) -> Result<End, JournalError> {
        let mut last = 0;
        let mut totals = None;
        let mut cursors = BTreeMap::new();
        let newest_first: Vec<Segment> = lock(&self.shared).segments.iter().rev().cloned().collect();
        for segment in newest_first {
            let (entry, meta) = self.with(&segment, "read", |handle| Ok((handle.last()?, handle.meta()?)))?;
            if entry.is_none() && meta.is_none() && !self.is_damaged(segment.serial) {
                // It was given up before its first commit.
                lock(&self.shared).segments.retain(|it| it.serial != segment.serial);
                self.close(segment.serial);
                self.remove_file(&segment.path)?;
                continue;
            }
            last = last.max(segment.first - 1).max(entry.unwrap_or(0));
            let Some(meta) = meta else { continue };
            let mut writer = lock(&self.writer);
            for (key, meta) in meta {
                if last <= meta.header.seq {
                    last = meta.header.seq;
                    totals = Some((last, meta.header.totals()));
                }
                writer.commits = writer.commits.max(meta.header.span.0.cast_unsigned());
                if let Some(name) = key.strip_prefix(STATE) {
                    writer.states.insert(name.to_owned(), meta.value);
                } else if let Some(name) = key.strip_prefix(CURSOR)
                    && let Some(seq) = meta.value.first_chunk()
                {
                    cursors.insert(name.to_owned(), Seq::from_le_bytes(*seq));
                }
            }
            break;
        }
        // A cursor beyond the last entry says that there were more.
        last = last.max(cursors.values().copied().max().unwrap_or(0));
        lock(&self.shared).last = last;
        Ok(End { cursors, totals: totals.filter(|it| it.0 == last).map(|it| it.1) })
    }

    fn is_damaged(&self, serial: u64) -> bool {
        lock(&self.shared).segments.iter().any(|it| it.serial == serial && it.damage.is_some())
    }

    /// Finds the sums at the ends of each segment, and when its first and last entry were appended.
    ///
    /// `at_end`: the sums up to the last entry, if that is known otherwise.
    fn find_sums(&self, at_end: Option<Totals>) -> Result<(), JournalError> {
        let count = lock(&self.shared).segments.len();
        let (mut totals, mut sums_up_to) = (Totals::default(), 0);
        for index in 0..count {
            let (segment, last) = {
                let shared = lock(&self.shared);
                (shared.segments[index].clone(), shared.last_of(index))
            };
            let ends = |low, high| {
                self.with(&segment, "read", |handle| {
                    let mut found = None;
                    handle.walk(low, high, &mut |header, _| {
                        found = Some(*header);
                        false
                    })?;
                    Ok(found)
                })
            };
            let (first, mut end) = (ends(segment.first, last)?, ends(last.max(segment.first), last)?);
            if end.is_none() && self.is_damaged(segment.serial) {
                end = self.with(&segment, "read", |handle| {
                    let mut found = None;
                    handle.walk(segment.first, last, &mut |header, _| {
                        found = Some(*header);
                        true
                    })?;
                    Ok(found)
                })?;
            }
            if let Some(header) = first {
                // If the first of a damaged segment cannot be read, what came before it tells, if that is known.
                let known = segment.first == 1 || sums_up_to == segment.first - 1;
                if header.seq == segment.first || !known {
                    totals = header.totals_before();
                }
            }
            let mut shared = lock(&self.shared);
            shared.segments[index].before = totals;
            shared.segments[index].first_at = first.or(end).map(|it| it.at);
            if let Some(header) = end.or(first) {
                totals = header.totals();
                sums_up_to = header.seq;
                shared.segments[index].last_at = header.at;
            }
        }
        lock(&self.shared).totals = at_end.unwrap_or(totals);
        Ok(())
    }

    /// Gives each reader its cursor; returns what they lost by files that are gone.
    fn set_readers(&self, readers: &[&str], cursors: &BTreeMap<String, Seq>) -> Vec<Loss> {
        let mut shared = lock(&self.shared);
        let before_first = shared.first() - 1;
        let mut losses = Vec::new();
        for reader in readers {
            let known = cursors.get(*reader).copied();
            let done = known.unwrap_or(before_first).max(before_first);
            if let Some(known) = known
                && known < before_first
            {
                losses.push(Loss {
                    reader: (*reader).to_owned(),
                    cause: LossCause::Damaged,
                    entries: before_first - known,
                    lines: 0,
                    span: (0, 0),
                });
            }
            shared.cursors.insert((*reader).to_owned(), Cursor { done, durable: known, untold: false });
        }
        losses
    }
}

/// Serial, first entry and version of a segment's file.
fn parse_name(name: &str) -> Option<(u64, Seq, u32)> {
    let rest = name.strip_prefix("segment-")?.strip_suffix(".redb")?;
    let (rest, version) = rest.split_once(".v")?;
    let (serial, first) = rest.split_once('-')?;
    Some((serial.parse().ok()?, first.parse().ok()?, version.parse().ok()?))
}
