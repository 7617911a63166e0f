//! One file of the journal: a redb database of consecutive entries, and how it is read when it is one no more.
//!
//! Tables: `entries` has the frames of each number, `meta` a frame a state and a cursor (keys `state/NAME`, `cursor/READER`).
//! The newest file's `meta` is complete: it counts, older files' does not.
//!
//! redb trusts a file that was closed well: on damaged pages it may panic or lead astray. So every call into it
//! is caught, entries must be consecutive, and each frame has its own checksums. A file that fails is read by
//! [`Scan`]: frame by frame from its bytes, whatever its tree says.

use std::collections::BTreeMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use disk::{Disk, DiskFile};
use redb::{
    Builder, Database, ReadOnlyDatabase, ReadableDatabase as _, ReadableTable as _, StorageBackend,
    TableDefinition,
};

use crate::frame::{self, HEADER, Header, Kind, MAGIC};
use crate::{MAX_ENTRY_BYTES, Seq};

const ENTRIES: TableDefinition<'_, (Seq, u16), &[u8]> = TableDefinition::new("entries");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");

/// Memory that redb may take for pages of the file that is written, bytes: dirty pages of a group commit and the
/// tail that readers want. More is written out early.
const CACHE_WRITTEN: usize = 8 << 20;
/// The same for a file that is only read, from front to back.
const CACHE_READ: usize = 1 << 20;
/// How far redb says its repair of a file is, of 1, when it is about to go back to the commit before the last one (redb 4.6,
/// `Database::do_repair`: 0.3; before it there is 0, after it 0.6).
const GOES_BACK: std::ops::Range<f64> = 0.1..0.5;
/// What room is counted in, bytes: the blocks of most file systems.
const PAGE: u64 = 4096;
/// Bytes read at once when a damaged file is searched.
const WINDOW: usize = 1 << 20;
/// What of a window that cannot be read is tried by itself, bytes: a page, as damage by the disk comes.
const PIECE: usize = 4096;
/// A search checks at most this many times the file's bytes: payloads made to look like frames within frames would
/// else make it quadratic. What is beyond stays lost.
const SEARCH_FACTOR: u64 = 8;

/// Why redb or the disk did not do what was asked.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The disk failed.
    Io(io::Error),
    /// The bytes are not what was written; or redb is at fault.
    Broken(String),
}

impl<E: Into<redb::Error>> From<E> for Fault {
    fn from(error: E) -> Self {
        use io::ErrorKind::{InvalidData, InvalidInput, UnexpectedEof};
        match error.into() {
            // redb asks beyond the end of the file, or tells that it is no database: the bytes are at fault.
            redb::Error::Io(error) if matches!(error.kind(), InvalidData | InvalidInput | UnexpectedEof) => {
                Self::Broken(error.to_string())
            }
            redb::Error::Io(error) => Self::Io(error),
            redb::Error::PreviousIo => Self::Io(io::Error::other("the file failed before")),
            other => Self::Broken(other.to_string()),
        }
    }
}

/// Runs what calls redb. A panic in there is a fault of the file: what was touched is thrown away by the caller.
fn caught<T>(work: impl FnOnce() -> Result<T, Fault>) -> Result<T, Fault> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        Err(Fault::Broken(format!("redb panicked: {text}")))
    })
}

/// What redb writes to.
#[derive(Debug)]
struct Storage {
    file: Box<dyn DiskFile>,
    taken: Arc<Taken>,
}

/// What a file takes on the disk: redb grows a file by doubling it, but what was never written takes no room.
#[derive(Debug, Default)]
struct Taken {
    /// Pages written since, a bit each.
    pages: Mutex<Vec<u64>>,
    count: AtomicU64,
}

impl Taken {
    fn bytes(&self) -> u64 {
        self.count.load(Ordering::Relaxed) * PAGE
    }

    fn write(&self, offset: u64, len: u64) {
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        for page in offset / PAGE..(offset + len).div_ceil(PAGE) {
            let (at, bit) = (usize::try_from(page / 64).unwrap_or(usize::MAX), 1 << (page % 64));
            if pages.len() <= at {
                pages.resize(at + 1, 0);
            }
            if pages[at] & bit == 0 {
                pages[at] |= bit;
                self.count.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn cut(&self, len: u64) {
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        let keep = len.div_ceil(PAGE);
        for (at, bits) in pages.iter_mut().enumerate() {
            let first = at as u64 * 64;
            let mask = match keep.saturating_sub(first) {
                0 => 0,
                left @ 1..64 => (1 << left) - 1,
                _ => u64::MAX,
            };
            self.count.fetch_sub(u64::from((*bits & !mask).count_ones()), Ordering::Relaxed);
            *bits &= mask;
        }
    }
}

impl StorageBackend for Storage {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)?;
        self.taken.cut(len);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, offset)?;
        self.taken.write(offset, data.len() as u64);
        Ok(())
    }
}

/// An open file of the journal.
#[derive(Debug)]
pub(crate) struct Handle {
    inner: Inner,
    taken: Arc<Taken>,
    is_cut_off: bool,
}

enum Inner {
    /// Written now or not closed yet.
    Rw(Database),
    Ro(ReadOnlyDatabase),
    /// Damaged.
    Scan(Scan),
    /// Removed by someone else.
    Gone,
    /// On its way out.
    Closed,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match self {
            Self::Rw(_) => "Rw",
            Self::Ro(_) => "Ro",
            Self::Scan(_) => "Scan",
            Self::Gone => "Gone",
            Self::Closed => "Closed",
        })
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let inner = std::mem::replace(&mut self.inner, Inner::Closed);
        // Closing writes; if it fails, the next opening repairs.
        drop(caught(|| {
            drop(inner);
            Ok(())
        }));
    }
}

/// What one commit writes.
#[derive(Debug, Default)]
pub(crate) struct Batch<'a> {
    pub(crate) entries: Vec<(Header, &'a [u8])>,
    /// Key in `meta`, header, payload.
    pub(crate) meta: Vec<(String, Header, Vec<u8>)>,
}

/// A frame of `meta`, its name with `state/` or `cursor/` before.
#[derive(Clone, Debug)]
pub(crate) struct Meta {
    pub(crate) header: Header,
    pub(crate) value: Vec<u8>,
}

impl Handle {
    /// Makes a new file.
    pub(crate) fn create(disk: &dyn Disk, path: &Path) -> Result<Self, Fault> {
        Self::rw(disk.create_new(path).map_err(Fault::Io)?, CACHE_WRITTEN)
    }

    /// Opens a file to read it. One that was not closed well is repaired first: that writes to it.
    pub(crate) fn open(disk: &dyn Disk, path: &Path) -> Result<Self, Fault> {
        let file = disk.open_to_read(path).map_err(Fault::Io)?;
        let len = file.len().map_err(Fault::Io)?;
        if len == 0 {
            return Err(Fault::Broken("the file is empty".to_owned()));
        }
        let taken = Arc::<Taken>::default();
        let storage = Storage { file, taken: taken.clone() };
        let opened = caught(|| {
            match Builder::new().set_cache_size(CACHE_READ).open_read_only_with_backend(storage) {
                Ok(database) => Ok(Some(database)),
                Err(redb::DatabaseError::RepairAborted) => Ok(None),
                Err(error) => Err(error.into()),
            }
        })?;
        match opened {
            Some(database) => Ok(Self { inner: Inner::Ro(database), taken, is_cut_off: false }),
            None => Self::rw(disk.open(path).map_err(Fault::Io)?, CACHE_READ),
        }
    }

    /// A new file, or one that was not closed well and is repaired.
    fn rw(file: Box<dyn DiskFile>, cache: usize) -> Result<Self, Fault> {
        let taken = Arc::<Taken>::default();
        let storage = Storage { file, taken: taken.clone() };
        let went_back = Arc::<AtomicBool>::default();
        let goes_back = Arc::clone(&went_back);
        let database = caught(|| {
            let mut builder = Builder::new();
            builder.set_cache_size(cache).set_repair_callback(move |repair| {
                if GOES_BACK.contains(&repair.progress()) {
                    goes_back.store(true, Ordering::Relaxed);
                }
            });
            Ok(builder.create_with_backend(storage)?)
        })?;
        let is_cut_off = went_back.load(Ordering::Relaxed);
        Ok(Self { inner: Inner::Rw(database), taken, is_cut_off })
    }

    /// Whether its last commit was not whole, so that the one before counts.
    pub(crate) fn is_cut_off(&self) -> bool {
        self.is_cut_off
    }

    /// Searches a damaged file. One that is not there has nothing.
    pub(crate) fn scan(disk: &dyn Disk, path: &Path, why: String) -> Result<Self, Fault> {
        let file = match disk.open_to_read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Self { inner: Inner::Gone, taken: Arc::default(), is_cut_off: false });
            }
            file => file.map_err(Fault::Io)?,
        };
        let len = file.len().map_err(Fault::Io)?;
        let scan = Scan::new(file, len, why).map_err(Fault::Io)?;
        Ok(Self { inner: Inner::Scan(scan), taken: Arc::<Taken>::default(), is_cut_off: false })
    }

    /// Bytes on disk that were written through this handle.
    pub(crate) fn bytes(&self) -> u64 {
        self.taken.bytes()
    }

    /// Whether closing it writes.
    pub(crate) fn is_written(&self) -> bool {
        matches!(self.inner, Inner::Rw(_))
    }

    /// Why it is searched, if it is.
    pub(crate) fn damage(&self) -> Option<&str> {
        match &self.inner {
            Inner::Scan(scan) => Some(&scan.why),
            Inner::Gone => Some("the file is gone"),
            _ => None,
        }
    }

    /// Writes all of it, or nothing; durable when this returns. After a fault the handle is of no more use.
    pub(crate) fn commit(&self, batch: &Batch<'_>) -> Result<(), Fault> {
        let Inner::Rw(database) = &self.inner else {
            return Err(Fault::Broken("the file is not open to write".to_owned()));
        };
        caught(|| {
            let txn = database.begin_write()?;
            {
                let mut table = txn.open_table(ENTRIES)?;
                for (header, payload) in &batch.entries {
                    for (header, payload) in header.parts(payload) {
                        let len = HEADER + payload.len();
                        let mut slot = table.insert_reserve((header.seq, header.part), len)?;
                        let bytes = slot.as_mut();
                        bytes[..HEADER].copy_from_slice(&header.encode());
                        bytes[HEADER..].copy_from_slice(payload);
                    }
                }
                let mut table = txn.open_table(META)?;
                for (key, header, payload) in &batch.meta {
                    let mut slot = table.insert_reserve(key.as_str(), HEADER + payload.len())?;
                    let bytes = slot.as_mut();
                    bytes[..HEADER].copy_from_slice(&header.encode());
                    bytes[HEADER..].copy_from_slice(payload);
                }
            }
            txn.commit()?;
            Ok(())
        })
    }

    /// Shows the entries from `low` to `high` in order until `visit` says stop (`false`); returns whether it did.
    /// A tree must have each of them; of a file that is searched some may be missing.
    pub(crate) fn walk(
        &self,
        low: Seq,
        high: Seq,
        visit: &mut dyn FnMut(&Header, &[u8]) -> bool,
    ) -> Result<bool, Fault> {
        if low > high || matches!(self.inner, Inner::Gone) {
            return Ok(false);
        }
        if let Inner::Scan(scan) = &self.inner {
            return scan.walk(low, high, visit);
        }
        caught(|| {
            let table = self.begin_read()?.open_table(ENTRIES)?;
            let mut expected = (low, 0);
            let mut parts = Vec::new();
            for item in table.range((low, 0)..=(high, u16::MAX))? {
                let (key, value) = item?;
                let Some((header, payload)) = frame::decode(value.value()) else {
                    return Err(Fault::Broken(format!("entry {} fails its checksum", key.value().0)));
                };
                if key.value() != expected
                    || (header.seq, header.part) != expected
                    || header.kind != Kind::Entry
                {
                    return Err(Fault::Broken(format!("entry {} is not where it belongs", expected.0)));
                }
                // Most are one part, and need no copy.
                let payload = if header.is_last && header.part == 0 {
                    payload
                } else {
                    parts.extend_from_slice(payload);
                    &parts
                };
                if !header.is_last {
                    expected.1 += 1;
                    continue;
                }
                if payload.len() != header.whole as usize {
                    return Err(Fault::Broken(format!("entry {} has lost parts", header.seq)));
                }
                if !visit(&header, payload) {
                    return Ok(true);
                }
                parts.clear();
                expected = (expected.0 + 1, 0);
            }
            if expected.0 <= high {
                return Err(Fault::Broken(format!("entry {} is missing", expected.0)));
            }
            Ok(false)
        })
    }

    /// The number of the last entry, whatever its frame says; None without entries.
    pub(crate) fn last(&self) -> Result<Option<Seq>, Fault> {
        if matches!(self.inner, Inner::Gone) {
            return Ok(None);
        }
        if let Inner::Scan(scan) = &self.inner {
            return Ok(scan.entries.iter().rfind(|(_, parts)| parts.are_whole()).map(|(seq, _)| *seq));
        }
        caught(|| match self.begin_read()?.open_table(ENTRIES) {
            Ok(table) => Ok(table.last()?.map(|(key, _)| key.value().0)),
            Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
            Err(error) => Err(error.into()),
        })
    }

    /// All of `meta`, by key; None if nothing was ever committed.
    pub(crate) fn meta(&self) -> Result<Option<BTreeMap<String, Meta>>, Fault> {
        if matches!(self.inner, Inner::Gone) {
            return Ok(None);
        }
        if let Inner::Scan(scan) = &self.inner {
            return Ok((!scan.meta.is_empty()).then(|| scan.meta.clone()));
        }
        caught(|| {
            let table = match self.begin_read()?.open_table(META) {
                Ok(table) => table,
                Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            let mut all = BTreeMap::new();
            for item in table.iter()? {
                let (key, value) = item?;
                let found = frame::decode(value.value())
                    .filter(|(header, _)| header.kind == Kind::State)
                    .and_then(|(header, payload)| Some((header, frame::split_state(payload)?)))
                    .filter(|(_, (name, _))| *name == key.value());
                let Some((header, (name, value))) = found else {
                    return Err(Fault::Broken(format!("{} fails its checksum", key.value().escape_debug())));
                };
                all.insert(name.to_owned(), Meta { header, value: value.to_vec() });
            }
            Ok(Some(all))
        })
    }

    fn begin_read(&self) -> Result<redb::ReadTransaction, Fault> {
        match &self.inner {
            Inner::Rw(database) => Ok(database.begin_read()?),
            Inner::Ro(database) => Ok(database.begin_read()?),
            Inner::Scan(_) | Inner::Gone | Inner::Closed => {
                Err(Fault::Broken("the file is not open".to_owned()))
            }
        }
    }
}

/// A damaged file, searched: where its whole frames are.
///
/// A file is written by one process until its first failure, and no number is given twice in it: copies of an entry
/// that redb left in freed pages are the entry.
#[derive(Debug)]
struct Scan {
    file: Box<dyn DiskFile>,
    why: String,
    entries: BTreeMap<Seq, Parts>,
    /// The latest of each.
    meta: BTreeMap<String, Meta>,
}

/// Parts of an entry that were found: offset of the frame and length of the payload.
#[derive(Debug, Default)]
struct Parts {
    found: BTreeMap<u16, (u64, u32)>,
    whole: u32,
}

impl Parts {
    /// Whether all are there: the numbers leave no gap, and the lengths come to the whole.
    fn are_whole(&self) -> bool {
        self.found.keys().copied().eq(0..u16::try_from(self.found.len()).unwrap_or(u16::MAX))
            && self.found.values().map(|(_, len)| u64::from(*len)).sum::<u64>() == u64::from(self.whole)
    }
}

impl Scan {
    fn new(file: Box<dyn DiskFile>, len: u64, why: String) -> io::Result<Self> {
        let mut scan = Self { file, why, entries: BTreeMap::new(), meta: BTreeMap::new() };
        let mut window = Vec::new();
        let mut start = 0;
        let mut checked = 0;
        let (mut any, mut failed) = (false, None);
        while start < len {
            // Headers that lie across the end of the window begin the next one.
            let size = usize::try_from((len - start).min(WINDOW as u64)).unwrap_or(WINDOW);
            window.resize(size, 0);
            match scan.read_what_can_be(&mut window, start) {
                Ok(()) => any = true,
                Err(error) => failed = Some(error),
            }
            let mut at = 0;
            while let Some(found) = window[at..].windows(MAGIC.len()).position(|it| it == MAGIC) {
                at += found;
                if at + HEADER > size && start + size as u64 != len {
                    break;
                }
                at += 1;
                let offset = start + at as u64 - 1;
                if let Some(header) = Header::decode(&window[at - 1..])
                    && u64::from(header.len) <= len - offset
                    && header.len as usize <= MAX_ENTRY_BYTES + 256
                    && checked < len.saturating_mul(SEARCH_FACTOR)
                {
                    checked += u64::from(header.len);
                    if scan.take(&header, offset)? {
                        at += HEADER - 1 + header.len as usize;
                        if at >= size {
                            break;
                        }
                    }
                }
            }
            // At least one byte on; past the frame that reaches beyond the window, if one does.
            let next = if at >= size { at } else { size.saturating_sub(HEADER - 1).max(1) };
            start += if start + size as u64 >= len { size as u64 } else { next as u64 };
        }
        // Of a file that cannot be read at all nobody can say what is whole in it: the disk fails.
        match failed {
            Some(error) if !any => Err(error),
            _ => Ok(scan),
        }
    }

    /// Fills the buffer; what cannot be read is zeros. Fails if nothing can.
    fn read_what_can_be(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        if self.file.read_exact_at(buffer, offset).is_ok() {
            return Ok(());
        }
        let mut result = Ok(());
        let mut any = false;
        for (n, piece) in buffer.chunks_mut(PIECE).enumerate() {
            match self.file.read_exact_at(piece, offset + (n * PIECE) as u64) {
                Ok(()) => any = true,
                Err(error) => {
                    piece.fill(0);
                    result = Err(error);
                }
            }
        }
        if any { Ok(()) } else { result }
    }

    /// Keeps the frame if it is whole.
    fn take(&mut self, header: &Header, offset: u64) -> io::Result<bool> {
        let mut payload = vec![0; header.len as usize];
        if self.file.read_exact_at(&mut payload, offset + HEADER as u64).is_err() || !header.fits(&payload) {
            return Ok(false);
        }
        match header.kind {
            Kind::Entry => {
                let parts = self.entries.entry(header.seq).or_default();
                parts.found.insert(header.part, (offset, header.len));
                parts.whole = header.whole;
            }
            Kind::State => {
                let Some((name, value)) = frame::split_state(&payload) else { return Ok(false) };
                let newer = self.meta.get(name).is_none_or(|old| old.header.span.0 < header.span.0);
                if newer {
                    self.meta.insert(name.to_owned(), Meta { header: *header, value: value.to_vec() });
                }
            }
        }
        Ok(true)
    }

    fn walk(
        &self,
        low: Seq,
        high: Seq,
        visit: &mut dyn FnMut(&Header, &[u8]) -> bool,
    ) -> Result<bool, Fault> {
        for (_, parts) in self.entries.range(low..=high).filter(|(_, parts)| parts.are_whole()) {
            let mut payload = Vec::new();
            let mut last = None;
            for (offset, len) in parts.found.values() {
                let mut bytes = vec![0; HEADER + *len as usize];
                self.file.read_exact_at(&mut bytes, *offset).map_err(Fault::Io)?;
                // Else it went bad since it was found: missing, as others are.
                let Some((header, part)) = frame::decode(&bytes) else { break };
                payload.extend_from_slice(part);
                last = header.is_last.then_some(header);
            }
            if let Some(header) = last
                && payload.len() == header.whole as usize
                && !visit(&header, &payload)
            {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
