//! What can go wrong in the store, and whose fault it is.

use std::io;
use std::path::{Path, PathBuf};

/// A failure of the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system refused something.
    #[error("{doing} {path}")]
    Io {
        /// What was tried: `writing`, `reading`, …
        doing: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The folder was written by a later release.
    #[error(
        "{path} has format {found}, this release knows formats up to {known}: use the release that wrote it, or another data directory"
    )]
    Newer {
        /// The manifest.
        path: PathBuf,
        /// Its format.
        found: u64,
        /// The newest that is known here.
        known: u64,
    },
    /// A file does not hold what was written into it.
    #[error("{path} is damaged: {problem}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// There are more tables, columns and files than can be kept track of.
    #[error(
        "{path} would have {bytes} bytes, at most {limit} are read back: keep fewer days ([store] retention), or fewer tables"
    )]
    TooManyFiles {
        /// The manifest.
        path: PathBuf,
        /// What it would have.
        bytes: u64,
        /// What it may have.
        limit: u64,
    },
    /// The file system has no room for what was asked.
    #[error(
        "{free} bytes are free, and {needed} must stay free while it works: make room, or see [store] min_free"
    )]
    NoRoom {
        /// Bytes that are free.
        free: u64,
        /// `min_free`, and what the work takes for a time.
        needed: u64,
    },
    /// Rows that were given up for want of room have not been read again from the journal yet.
    #[error(
        "some points are in the journal only, for want of room: make room if the disk is nearly full, and try again when \
         the log tells that the store has read them again"
    )]
    InJournalOnly,
    /// The same is being done already.
    #[error("a compaction is running already")]
    Running,
    /// A fault of this program.
    #[error("internal error: {0}")]
    Internal(String),
}

impl StoreError {
    /// Wraps an I/O error with what was done to which file.
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { doing, path, source }
    }

    /// The file or folder that it is about.
    pub(crate) fn path(&self) -> Option<&Path> {
        match self {
            Self::Io { path, .. } | Self::Damaged { path, .. } => Some(path),
            _ => None,
        }
    }

    /// Whether the disk has no room.
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::Io { source, .. } => {
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            Self::NoRoom { .. } => true,
            _ => false,
        }
    }
}

/// The usual result.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

impl From<arrow::error::ArrowError> for StoreError {
    fn from(error: arrow::error::ArrowError) -> Self {
        Self::Internal(error.to_string())
    }
}
