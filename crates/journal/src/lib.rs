//! Durable, bounded, ordered entries of opaque bytes, read in order by named readers with durable cursors.
//!
//! - [`Journal::append`] returns when its entries are fsynced. Whoever has many writers gathers their entries into
//!   one call: that is the group commit.
//! - A reader has a name and a cursor: the number of the last entry that it is done with. An entry that every
//!   reader is past is trimmed.
//! - Beyond [`Limits`] the oldest entries go first, and what each reader lost by it is told ([`Loss`]).
//! - Small named values ("states") are written in the same transaction as entries.
//!
//! Knows nothing of VMs, line protocol or InfluxDB. Calls block; they may be made from many threads.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use disk::Disk;

/// The number of an entry: 1 for the first, then one more for each.
pub type Seq = u64;

/// How much is kept.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes on disk.
    pub max_bytes: u64,
    /// Age of an entry, by the time given when it was appended.
    pub max_age: Duration,
}

/// What is appended and read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What the caller wants to keep.
    pub payload: Vec<u8>,
    /// How many lines that are: only for telling what was lost.
    pub lines: u32,
    /// The earliest and the latest time in it, nanoseconds since 1970: only for telling what was lost.
    pub span: (i64, i64),
}

/// What a reader will never see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// Whose.
    pub reader: String,
    /// Why.
    pub cause: LossCause,
    /// How many entries.
    pub entries: u64,
    /// How many lines they had.
    pub lines: u64,
    /// The earliest and latest time in them.
    pub span: (i64, i64),
}

/// Why entries went before a reader had read them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LossCause {
    /// The journal was at [`Limits::max_bytes`].
    Full,
    /// They were older than [`Limits::max_age`].
    TooOld,
    /// The disk has no room ([`Journal::set_may_grow`]).
    DiskFull,
    /// They cannot be read any more.
    Damaged,
}

/// A journal on disk.
#[derive(Debug)]
pub struct Journal {}

impl Journal {
    /// Opens the journal in this folder, or makes it.
    pub fn open(_disk: Arc<dyn Disk>, _dir: &Path, _limits: Limits) -> Self {
        Self {}
    }
}
