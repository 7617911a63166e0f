//! Every file operation of what must survive a crash, behind one trait.
//!
//! The journal and the store reach the file system through [`Disk`] and nothing else. So the same code runs on
//! a real disk ([`RealDisk`]) and, in tests, on one that forgets at a crash what was not made durable, and fails
//! on demand.
//!
//! What is durable, as POSIX leaves it:
//! - a file's bytes and length: after [`DiskFile::sync`];
//! - a name (made, renamed, linked, removed): after [`Disk::sync_dir`] of its folder;
//! - anything else may or may not be there after a crash, in any combination.
//!
//! Calls block. Paths are absolute.
//!
//! With the feature `double` there is `double::Double`, the disk for tests.

use std::io;
use std::path::{Path, PathBuf};

#[cfg(feature = "double")]
pub mod double;
mod real;

pub use real::{RealDisk, create_new, open_or_create};

/// A file system.
pub trait Disk: Send + Sync + std::fmt::Debug + 'static {
    /// Opens a file to read and write, made if it is not there; never truncated.
    ///
    /// # Errors
    /// What the system says.
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// Makes a new, empty file.
    ///
    /// # Errors
    /// `AlreadyExists` if the name is taken; what the system says.
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// Opens a file that is there, to read.
    ///
    /// # Errors
    /// `NotFound`; what the system says.
    fn open_to_read(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// Gives a file another name, in place of the file that had it.
    ///
    /// # Errors
    /// What the system says.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Gives a file one more name.
    ///
    /// # Errors
    /// `AlreadyExists`; what the system says.
    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a name of a file.
    ///
    /// # Errors
    /// `NotFound`; what the system says.
    fn remove_file(&self, path: &Path) -> io::Result<()>;

    /// Makes a folder and those above it that are missing. Their names are durable when this returns, also if the
    /// last of them was there before.
    ///
    /// # Errors
    /// What the system says.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;

    /// Removes an empty folder.
    ///
    /// # Errors
    /// `DirectoryNotEmpty`; what the system says.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;

    /// Makes the names in a folder durable.
    ///
    /// # Errors
    /// What the system says.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;

    /// What is in a folder, by name.
    ///
    /// # Errors
    /// `NotFound`; what the system says.
    fn list(&self, path: &Path) -> io::Result<Vec<Entry>>;

    /// Size and free space of the file system that a folder is on.
    ///
    /// # Errors
    /// What the system says.
    fn space(&self, path: &Path) -> io::Result<Space>;
}

/// An open file. Reads and writes may be made from many threads.
pub trait DiskFile: Send + Sync + std::fmt::Debug {
    /// The length, bytes.
    ///
    /// # Errors
    /// What the system says.
    fn len(&self) -> io::Result<u64>;

    /// Whether it has no bytes.
    ///
    /// # Errors
    /// What the system says.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Fills the buffer from the offset on.
    ///
    /// # Errors
    /// `UnexpectedEof` if the file ends before; what the system says.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all bytes at the offset; the file grows as needed.
    ///
    /// # Errors
    /// `StorageFull`; what the system says. A part may have been written.
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Cuts or grows the file; what is new reads as zeros.
    ///
    /// # Errors
    /// What the system says.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Makes bytes and length durable (fdatasync).
    ///
    /// # Errors
    /// What the system says. The bytes since the last success may be lost, and stay lost though a later call
    /// succeeds.
    fn sync(&self) -> io::Result<()>;
}

/// A name in a folder.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// The whole path.
    pub path: PathBuf,
    /// Whether it is a folder.
    pub is_dir: bool,
    /// The length of a file, bytes; 0 for a folder.
    pub len: u64,
    /// What it takes on the disk, bytes: holes take nothing, the last block counts whole.
    pub taken: u64,
}

/// A file system's size and what of it an unprivileged process may still use, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Its size.
    pub total: u64,
    /// What is free.
    pub free: u64,
}

/// Bytes that [`copy`] holds in memory.
const COPY_BYTES: usize = 1 << 20;

/// Copies a file's bytes into a new file. They are durable when this returns, the new name is not.
///
/// # Errors
/// `AlreadyExists`; what the system says. The new file may be there in part.
pub fn copy(disk: &dyn Disk, from: &Path, to: &Path) -> io::Result<()> {
    let (from, to) = (disk.open_to_read(from)?, disk.create_new(to)?);
    let len = from.len()?;
    let mut buffer = vec![0; COPY_BYTES];
    let mut at = 0;
    while at < len {
        let part = usize::try_from(len - at).map_or(COPY_BYTES, |left| left.min(COPY_BYTES));
        from.read_exact_at(&mut buffer[..part], at)?;
        to.write_all_at(&buffer[..part], at)?;
        at += part as u64;
    }
    to.sync()
}

/// Gives a file that nobody writes any more one more name, or copies it where the file system cannot do that: to
/// another one, or at all. The new name is not durable yet.
///
/// # Errors
/// As [`copy`].
pub fn link_or_copy(disk: &dyn Disk, from: &Path, to: &Path) -> io::Result<()> {
    use io::ErrorKind::{CrossesDevices, PermissionDenied, TooManyLinks, Unsupported};
    match disk.hard_link(from, to) {
        // vfat and others say EPERM, and so does Linux of another user's file.
        Err(error)
            if matches!(error.kind(), CrossesDevices | PermissionDenied | TooManyLinks | Unsupported) =>
        {
            copy(disk, from, to)
        }
        linked => linked,
    }
}
