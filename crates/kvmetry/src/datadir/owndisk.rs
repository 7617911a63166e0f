//! The file system of the data directory, as long as it is there.
//!
//! A file system can be unmounted under a running process, or its files be removed. Then the same paths lead somewhere
//! else: into the mount point below, which is not ours to fill. So before each use of a name, and after each sync, the
//! lock file must still say what this process wrote into it; if not, the call fails and says why. When the directory is
//! back, all goes on. It costs three system calls each time, some microseconds beside a sync.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use disk::{Disk, DiskFile, Entry, RealDisk, Space};

/// What is in the data directory; see the module.
#[derive(Clone, Debug)]
pub(crate) struct OwnDisk {
    here: Arc<Here>,
}

#[derive(Debug)]
struct Here {
    dir: PathBuf,
    lock: PathBuf,
    /// How the lock file begins.
    mark: String,
}

/// The data directory is another one, or none.
#[derive(Debug, thiserror::Error)]
#[error(
    "{} is not the data directory any more: it was unmounted or its files were removed; mount it again, or restart \
     kvmetry to begin anew",
    .0.display()
)]
struct Gone(PathBuf);

impl Here {
    fn check(&self) -> io::Result<()> {
        let mut begins = vec![0; self.mark.len()];
        match File::open(&self.lock).and_then(|mut file| file.read_exact(&mut begins)) {
            Ok(()) if begins == self.mark.as_bytes() => Ok(()),
            // EIO or too many open files say nothing of where we are: if it matters, the call itself fails.
            Err(error) if !is_absence(&error) => Ok(()),
            _ => Err(io::Error::other(Gone(self.dir.clone()))),
        }
    }
}

fn is_absence(error: &io::Error) -> bool {
    use io::ErrorKind::{NotADirectory, NotFound, StaleNetworkFileHandle, UnexpectedEof};
    matches!(error.kind(), NotADirectory | NotFound | StaleNetworkFileHandle | UnexpectedEof)
}

impl OwnDisk {
    /// What is below `dir`, as long as its lock file begins with `mark`.
    pub(crate) fn new(dir: PathBuf, mark: String) -> Self {
        Self { here: Arc::new(Here { lock: dir.join("lock"), dir, mark }) }
    }

    /// Whether the directory is there.
    ///
    /// # Errors
    /// It is certainly not.
    pub(crate) fn check(&self) -> io::Result<()> {
        self.here.check()
    }

    fn wrap(&self, file: Box<dyn DiskFile>) -> Box<dyn DiskFile> {
        Box::new(OwnFile { file, here: Arc::clone(&self.here) })
    }
}

impl Disk for OwnDisk {
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.check()?;
        RealDisk.open(path).map(|file| self.wrap(file))
    }

    fn create_new(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.check()?;
        RealDisk.create_new(path).map(|file| self.wrap(file))
    }

    fn open_to_read(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.check()?;
        RealDisk.open_to_read(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.check()?;
        RealDisk.rename(from, to)
    }

    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.check()?;
        RealDisk.hard_link(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.check()?;
        RealDisk.remove_file(path)
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.check()?;
        RealDisk.create_dir_all(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.check()?;
        RealDisk.remove_dir(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        RealDisk.sync_dir(path)?;
        self.check()
    }

    fn list(&self, path: &Path) -> io::Result<Vec<Entry>> {
        self.check()?;
        RealDisk.list(path)
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        self.check()?;
        RealDisk.space(path)
    }
}

/// A file that is written. It may outlive its name: what is synced then is lost when it is closed.
#[derive(Debug)]
struct OwnFile {
    file: Box<dyn DiskFile>,
    here: Arc<Here>,
}

impl DiskFile for OwnFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync()?;
        self.here.check()
    }
}
