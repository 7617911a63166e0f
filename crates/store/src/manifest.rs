//! What counts: the one file whose replacement is a commit.
//!
//! `manifest.json` is two lines of text: a header `{"format":1,"crc32":…,"bytes":…}` about the second line, which is
//! the [`Manifest`]. It is written as `manifest.json.new`, fsynced, renamed, and its folder fsynced; so at every moment
//! there is one whole manifest. It names every Parquet file that counts and the number of the last journal entry whose
//! rows they hold.

use std::path::{Path, PathBuf};

use disk::Disk;
use serde::{Deserialize, Serialize};

use crate::error::{Result, StoreError};
use crate::layout;
use crate::schema::Columns;

/// The format that is written, and the first one: there is no older one to read. Newer ones are refused.
pub(crate) const FORMAT: u64 = 1;
/// The largest manifest that is read or written, bytes: a million files. The store removes its oldest days before
/// ([`MAX_FILES`]).
const MAX_BYTES: u64 = 256 << 20;
/// So many files are kept; beyond it the oldest days go, as beyond `max_size`. A year of 300 tables in one file a day is a
/// tenth of it, and each takes up to 250 bytes of the manifest.
pub(crate) const MAX_FILES: usize = 1_000_000;

/// All that is durable beside the Parquet files' contents.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// The last journal entry whose rows are all in the files.
    pub(crate) cursor: u64,
    /// Every table, sorted by database and table.
    pub(crate) tables: Vec<TableEntry>,
}

/// A table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct TableEntry {
    pub(crate) database: String,
    pub(crate) table: String,
    pub(crate) columns: Columns,
    /// Of a table of roll-ups, the raw table and the bucket's length, nanoseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) rollup_of: Option<(String, i64)>,
    /// Its files, oldest first: by day, then by the journal's order.
    pub(crate) files: Vec<FileEntry>,
    /// Files that turned out to be damaged: under another name ([`aside`]) until their day goes, and not read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) damaged: Vec<FileEntry>,
    /// Up to this time rows went before their retention was over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) removed_until: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) mark: Option<Mark>,
}

/// What must be known of a table's rows in files and cannot be seen from them fast.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Mark {
    /// No row of a series that is not in `ahead` is later; `None` without rows.
    pub(crate) floor: Option<i64>,
    /// Series with rows in the future, as it was at the last flush: each with its latest time. One host whose clock is
    /// ahead must not make all others late.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) ahead: Vec<(Tags, i64)>,
    /// Buckets that end before this time, and some grace, are in files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) rolled_until: Option<i64>,
}

/// The tags of a series, by name.
pub(crate) type Tags = Vec<(String, String)>;

/// A Parquet file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileEntry {
    /// Days since 1970.
    pub(crate) day: i32,
    /// The first journal entry of the span that the file is of.
    pub(crate) first: u64,
    /// The last one.
    pub(crate) last: u64,
    pub(crate) rows: u64,
    /// The file's length.
    pub(crate) bytes: u64,
    /// Of all its bytes.
    pub(crate) crc32: u32,
    /// The earliest and the latest time.
    pub(crate) times: (i64, i64),
    /// The times of rows that an older file may hold too; none if certainly no row is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) late: Option<(i64, i64)>,
}

impl FileEntry {
    /// Its place, once renamed.
    pub(crate) fn path(&self, root: &Path, database: &str, table: &str) -> PathBuf {
        layout::day_dir(root, database, table, self.day).join(format!("{}-{}.parquet", self.first, self.last))
    }
}

/// The name under which a file is written before it counts.
pub(crate) fn unborn(path: &Path) -> PathBuf {
    with_tail(path, ".new")
}

/// The name of a file that turned out to be damaged: `*.parquet` does not match it.
pub(crate) fn aside(path: &Path) -> PathBuf {
    with_tail(path, ".damaged")
}

fn with_tail(path: &Path, tail: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(tail);
    name.into()
}

#[derive(Serialize, Deserialize)]
struct Header {
    format: u64,
    crc32: u32,
    bytes: u64,
}

fn place(root: &Path) -> PathBuf {
    root.join("manifest.json")
}

/// Reads the manifest; `None` where there is none yet.
///
/// # Errors
/// A newer format, a damaged file, the file system.
pub(crate) fn read(disk: &dyn Disk, root: &Path) -> Result<Option<Manifest>> {
    let path = place(root);
    let file = match disk.open_to_read(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StoreError::io("opening", &path)(error)),
    };
    let damaged = |problem: String| StoreError::Damaged { path: path.clone(), problem };
    let len = file.len().map_err(StoreError::io("reading", &path))?;
    if len > MAX_BYTES {
        return Err(damaged(format!("{len} bytes long, at most {MAX_BYTES} are believed")));
    }
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, 0).map_err(StoreError::io("reading", &path))?;
    let end = bytes.iter().position(|&byte| byte == b'\n').ok_or_else(|| damaged("no header".to_owned()))?;
    let (header, body) = (&bytes[..end], &bytes[end + 1..]);
    let header: Header = serde_json::from_slice(header).map_err(|error| damaged(error.to_string()))?;
    if header.format == 0 {
        return Err(damaged("no release wrote a format 0".to_owned()));
    }
    if header.format > FORMAT {
        return Err(StoreError::Newer { path, found: header.format, known: FORMAT });
    }
    if body.len() as u64 != header.bytes || crc32fast::hash(body) != header.crc32 {
        return Err(damaged("its checksum is not that of its contents".to_owned()));
    }
    serde_json::from_slice(body).map(Some).map_err(|error| damaged(error.to_string()))
}

/// Replaces the manifest. When this returns `Ok`, the new one is durable; otherwise either may be there.
///
/// # Errors
/// The file system; more than is read back, of which nothing is written.
pub(crate) fn write(disk: &dyn Disk, root: &Path, manifest: &Manifest) -> Result<()> {
    let path = place(root);
    let new = unborn(&path);
    let body = serde_json::to_vec(manifest).map_err(|error| StoreError::Internal(error.to_string()))?;
    let header = Header { format: FORMAT, crc32: crc32fast::hash(&body), bytes: body.len() as u64 };
    let mut bytes = serde_json::to_vec(&header).map_err(|error| StoreError::Internal(error.to_string()))?;
    bytes.push(b'\n');
    bytes.extend_from_slice(&body);
    if bytes.len() as u64 > MAX_BYTES {
        let bytes = bytes.len() as u64;
        return Err(StoreError::TooManyFiles { path, bytes, limit: MAX_BYTES });
    }
    let written = || {
        let file = disk.open(&new)?;
        file.set_len(0)?;
        file.write_all_at(&bytes, 0)?;
        file.sync()
    };
    written().map_err(StoreError::io("writing", &new))?;
    disk.rename(&new, &path).map_err(StoreError::io("renaming", &new))?;
    disk.sync_dir(root).map_err(StoreError::io("syncing", root))
}
